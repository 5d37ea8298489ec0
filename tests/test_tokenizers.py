"""The tokenizer of an exported folder gives the ids of the checkpoint's own, for every family and on hard text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

import model2onnx
from bert_trt.sentences import load_tokenizer

HARD_TEXT = [
    "",
    " ",
    "  two  spaces and a tab\there ",
    "The Capital of FRANCE, is Paris!",
    "naïve café Ångström Zürich",  # NFC
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m",  # NFD
    "巴黎是法国的首都。東京 서울",
    "שלום עולם \u202eאבג\u202c مرحبا بالعالم",
    "😀👩‍👩‍👧🏽 ❤️ flags 🇫🇷",
    "zero\u200bwidth\u200djoin\ufeffer soft\u00adhyphen",
    "control \x01\x02\x7f\x85 and \u2028 separators",
    "no\u00a0break em\u2003space",
    "x" * 150 + " " + "hippopotomonstrosesquippedaliophobia" * 4,
    "don't can't l'été 3.14 1,000 $5 #tag @name a_b-c/d\\e",
    "<s> </s> <pad> <mask> [MASK] [SEP] [CLS] [PAD] [UNK]",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﬁ ½ ² ™ Ⅷ ｆｕｌｌ",
    "ß İstanbul ǅ Σίσυφος ς",
    "\U000e0041\U000e0042 tags",
]
CORPUS = [*HARD_TEXT, "the capital of france is paris .", "a cat sat on a mat", "reading and writing"] * 3
BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
ALBERT = BERT | {"unk_token": "<unk>", "pad_token": "<pad>"}


def word_pieces(lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    parts: Any = tokenizer
    parts.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    parts.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(dict.fromkeys(BERT.values())))
    tokenizer.train_from_iterator(CORPUS, trainer)
    parts.decoder = decoders.WordPiece()
    return tokenizer


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    parts: Any = tokenizer
    parts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    parts.decoder = decoders.ByteLevel()
    return tokenizer


def unigrams(special: dict[str, str], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    parts: Any = tokenizer
    steps = [normalizers.NFKC(), normalizers.Replace("  ", " ")]
    parts.normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] if lowercase else [])])
    parts.pre_tokenizer = pre_tokenizers.Metaspace()
    names = list(dict.fromkeys(special.values()))
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=names, unk_token=special["unk_token"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    parts.decoder = decoders.Metaspace()
    return tokenizer


def frame(tokenizer: Tokenizer, single: str, pair: str) -> Tokenizer:
    """Adds the special tokens around a text and around a pair."""
    words = [word for word in dict.fromkeys(f"{single} {pair}".split()) if not word.startswith("$")]
    names = [(word.split(":")[0], tokenizer.token_to_id(word.split(":")[0])) for word in words]
    parts: Any = tokenizer
    parts.post_processor = processors.TemplateProcessing(single, pair, names)
    return tokenizer


BERT_FRAME = ("[CLS] $A [SEP]", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")
ROBERTA_FRAME = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
# family -> the tokenizer, its special tokens and the class that a checkpoint's tokenizer_config.json names
KINDS: dict[str, tuple[Any, tuple[str, str], dict[str, str], str]] = {
    "bert": (lambda: word_pieces(True), BERT_FRAME, BERT, "BertTokenizer"),
    "bert, cased": (lambda: word_pieces(False), BERT_FRAME, BERT | {"do_lower_case": ""}, "BertTokenizer"),
    "distilbert": (lambda: word_pieces(True), BERT_FRAME, BERT, "DistilBertTokenizerFast"),
    "electra": (lambda: word_pieces(True), BERT_FRAME, BERT, "ElectraTokenizerFast"),
    "roberta": (byte_pairs, ROBERTA_FRAME, ROBERTA, "RobertaTokenizerFast"),
    "xlm-roberta": (lambda: unigrams(ROBERTA, False), ROBERTA_FRAME, ROBERTA, "XLMRobertaTokenizerFast"),
    "camembert": (lambda: unigrams(ROBERTA, False), ROBERTA_FRAME, ROBERTA, "CamembertTokenizerFast"),
    "albert": (lambda: unigrams(ALBERT, True), BERT_FRAME, ALBERT, "AlbertTokenizerFast"),
    "mpnet": (lambda: word_pieces(True), BERT_FRAME, BERT, "MPNetTokenizerFast"),
    "xlm-roberta, any class": (
        *(lambda: unigrams(ROBERTA, False), ROBERTA_FRAME, ROBERTA, "PreTrainedTokenizerFast"),
    ),
}


def save_checkpoint(folder: Path, kind: str) -> None:
    """The tokenizer files of a checkpoint, and its configuration."""
    make, framing, special, name = KINDS[kind]
    folder.mkdir()
    frame(make(), *framing).save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": name, **special}
    if "do_lower_case" in settings:
        settings["do_lower_case"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": kind.partition(",")[0]}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_the_checkpoints_tokenizer(kind, tmp_path):
    save_checkpoint(tmp_path / "source", kind)
    expected: Any = AutoTokenizer.from_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()
    model2onnx._save_tokenizer(expected, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": "bert"}))  # as in every exported folder
    folder: Any = SimpleNamespace(path=tmp_path / "out")
    ours = load_tokenizer(folder)
    known = 0
    for text in HARD_TEXT:
        found, wanted = ours(text), expected(text)
        assert found["input_ids"] == wanted["input_ids"], text
        assert found.tokens() == wanted.tokens()
        known += sum(token != expected.unk_token_id for token in wanted["input_ids"]) - 2
        for other in HARD_TEXT[3:8]:
            found, wanted = ours(text, other), expected(text, other)
            assert dict(found) == dict(wanted), (text, other)
    assert known > 100  # not a row of [UNK]
    for name in ("mask_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "truncation_side"):
        assert getattr(ours, name) == getattr(expected, name)
    assert ours.num_special_tokens_to_add(pair=True) == expected.num_special_tokens_to_add(pair=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_truncation_is_the_checkpoints(side, tmp_path):
    save_checkpoint(tmp_path / "source", "bert")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "source", truncation_side=side)
    (tmp_path / "out").mkdir()
    model2onnx._save_tokenizer(tokenizer, tmp_path / "out")
    folder: Any = SimpleNamespace(path=tmp_path / "out")
    ids = load_tokenizer(folder)("a cat sat on a mat", truncation=True, max_length=5)["input_ids"]
    assert ids == tokenizer("a cat sat on a mat", truncation=True, max_length=5)["input_ids"]
    assert tokenizer.decode(ids[1:-1]) == ("on a mat" if side == "left" else "a cat sat")


def test_a_vocabulary_without_tokenizer_json(tmp_path):
    """vocab.txt alone, with transformers' own slow-to-fast conversion at the export."""
    words = [*BERT.values(), "paris", "##is", "par", "Par", "is", "巴", "cafe"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    for lower in (True, False):
        source, out = tmp_path / f"source{lower}", tmp_path / f"out{lower}"
        transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lower).save_pretrained(source)
        (source / "config.json").write_text(json.dumps({"model_type": "bert"}))
        expected: Any = AutoTokenizer.from_pretrained(source)
        out.mkdir()
        model2onnx._save_tokenizer(expected, out)
        folder: Any = SimpleNamespace(path=out)
        for text in ("Paris paris 巴 café", *HARD_TEXT):
            assert load_tokenizer(folder)(text)["input_ids"] == expected(text)["input_ids"]
