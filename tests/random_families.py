"""Random checkpoints of every family and task, in Hugging Face layout, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import WORDS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bert_trt.families import CLASS_SUFFIXES, FAMILIES

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
HAS_TYPES = ("bert", "electra", "albert")
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}
DISTILBERT_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


def save_tokenizer(folder: Path, family: str) -> int:
    """Saves a WordPiece tokenizer with the family's special tokens; returns the size of its vocabulary."""
    is_roberta = FAMILIES[family].pads_positions
    special = ROBERTA_TOKENS if is_roberta else BERT_TOKENS
    words = [*special.values(), *dict.fromkeys([*WORDS, *LETTERS]), *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = special["cls_token"], special["sep_token"]
    pair = f"{cls} $A {sep} {sep} $B {sep}" if is_roberta else f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=pair, special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    names = ["input_ids", *(["token_type_ids"] if family in HAS_TYPES else []), "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=names, **special
    ).save_pretrained(folder)
    return len(words)


def make_family_checkpoint(
    folder: Path, family: str, task: str, seed: int = 0, pooler: bool = False, **sizes: Any
) -> Path:
    """Saves a random checkpoint, all parameters different from zero and one.

    Args:
        folder: the folder to write.
        family: a key of ``FAMILIES``.
        task: one of ``options.TASKS``.
        seed: of the parameters.
        pooler: whether a bare encoder has a pooler.
        sizes: entries of config.json, under BERT's names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = SIZES | {"vocab_size": save_tokenizer(folder, family)} | sizes
    if FAMILIES[family].pads_positions:
        entries |= {"pad_token_id": 1, "type_vocab_size": 1}
        entries["max_position_embeddings"] += 2
    if family == "distilbert":
        entries = {DISTILBERT_NAMES.get(name, name): value for name, value in entries.items()}
    if family in ("electra", "albert"):
        entries = {"embedding_size": 24} | entries
    name = FAMILIES[family].classes
    config = getattr(transformers, f"{name}Config")(**entries)
    torch.manual_seed(seed)
    options = {"add_pooling_layer": pooler} if task not in CLASS_SUFFIXES and FAMILIES[family].has_pooler else {}
    model = getattr(transformers, f"{name}{CLASS_SUFFIXES.get(task, 'Model')}")(config, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_gain = "norm" in key.lower() and key.endswith("weight")
            parameter.normal_(1.0 if is_gain else 0.0, 0.4 if "norm" in key.lower() else 0.12)
    model.save_pretrained(folder)
    return folder
