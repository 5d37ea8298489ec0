"""Reference sequences: tokens of several lengths, and PyTorch's fp32 outputs for them in a padded batch.

model2onnx.py writes them beside the model. A network that ignores the attention mask, the token types or the
positions gives other outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_trt.checkpoint import Checkpoint, first_line
from bert_trt.console import UserError
from bert_trt.model_files import BertConfig, ReferenceSequence
from bert_trt.options import DEFAULT_DATA

REFERENCE_LENGTHS = (3, 9, 33, 128)  # tokens; 128 is the longest sequence of a plan by default
CHECKED_TOKENS = 32  # of a reference sequence: every token's logits would take 62 MB for 512 tokens of BERT-base


def reference_sequences(tokenizer: Any, config: BertConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Makes sequences that depend on attention mask, token types and positions.

    The tokens come from the calibration text. A token that the tokenizer does not know is replaced by a random one of
    its vocabulary, so that tokens differ. A sequence of nine or more tokens is a pair with both token types and has
    [MASK] near its beginning, in its middle and near its end.

    Args:
        tokenizer: the checkpoint's, from transformers.
        config: the model's sizes.

    Returns:
        ``input_ids`` and ``token_type_ids``, each int64 (S,), for every length of ``REFERENCE_LENGTHS`` and for the
        position table's, the shortest first.

    Raises:
        UserError: the tokenizer cannot read the calibration text.
    """
    lengths = sorted({min(length, config.max_positions) for length in (*REFERENCE_LENGTHS, config.max_positions)})
    tokens = _known_tokens(tokenizer, config, sum(lengths))
    sequences = []
    for length in lengths:
        ids, tokens = tokens[:length].copy(), tokens[length:]
        types = np.zeros(length, np.int64)
        middle = length // 2
        if length >= 9:
            types[middle + 1 :] = min(1, config.type_vocab_size - 1)
        special = {0: tokenizer.cls_token_id, length - 1: tokenizer.sep_token_id} if length >= 3 else {}
        if length >= 9:
            special |= {middle: tokenizer.sep_token_id}
            special |= dict.fromkeys((1, middle + 1, length - 2), tokenizer.mask_token_id)
        for position, token_id in special.items():
            if token_id is not None:
                ids[position] = token_id
        sequences.append((ids, types))
    return sequences


def _known_tokens(tokenizer: Any, config: BertConfig, count: int) -> np.ndarray:
    """The ids of the calibration text's first tokens, int64 (count,), none of them special."""
    random = np.random.default_rng(0)
    vocabulary = np.setdiff1d(np.arange(config.vocab_size), tokenizer.all_special_ids)
    ids = random.choice(vocabulary if len(vocabulary) else np.arange(config.vocab_size), count)
    text = DEFAULT_DATA.read_text(encoding="utf-8")[: 16 * count]  # far more letters than that many tokens have
    try:
        text_ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:count], np.int64)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(
            f"the checkpoint's tokenizer cannot read {DEFAULT_DATA} ({first_line(error)}); "
            "its vocabulary is incomplete or damaged"
        ) from error
    is_known = np.isin(text_ids, vocabulary)
    ids[: len(text_ids)][is_known] = text_ids[is_known]
    return ids


def run_reference(
    checkpoint: Checkpoint, sequences: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[ReferenceSequence]:
    """Runs PyTorch in fp32 on padded batches of two sequences of neighbouring lengths, with its own attention mask.

    Args:
        checkpoint: loaded by ``load_checkpoint``.
        sequences: ``input_ids`` and ``token_type_ids``, each int64 (S,).

    Returns:
        The sequences with their outputs, in the same order.
    """
    references = []
    for start in range(0, len(sequences), 2):
        pair = sequences[start : start + 2]
        longest = max(len(ids) for ids, _ in pair)
        padding = {"input_ids": checkpoint.tokenizer.pad_token_id or 0, "token_type_ids": 0}
        padded = {name: np.full((len(pair), longest), value, np.int64) for name, value in padding.items()}  # (B, S)
        mask = np.zeros((len(pair), longest), np.int64)
        for row, (ids, types) in enumerate(pair):
            padded["input_ids"][row, : len(ids)], padded["token_type_ids"][row, : len(ids)] = ids, types
            mask[row, : len(ids)] = 1
        tensors = {name: torch.from_numpy(values) for name, values in padded.items()}
        result, _ = checkpoint.run_reference(tensors | {"attention_mask": torch.from_numpy(mask)})
        output = result.numpy()  # (B, S, width) or (B, 1, width)
        for row, (ids, types) in enumerate(pair):
            rows = 1 if checkpoint.config.is_per_sequence else len(ids)
            checked = np.linspace(0, rows - 1, min(CHECKED_TOKENS, rows)).astype(np.int64)
            references.append(ReferenceSequence(ids, types, checked, output[row, checked]))
    return references


def write_reference(sequences: Sequence[ReferenceSequence], path: Path) -> None:
    """Writes the file that ``ModelFolder.reference`` reads: the arrays of all sequences, concatenated."""
    lengths = np.array([len(sequence.input_ids) for sequence in sequences], np.int64)
    starts = np.cumsum(lengths) - lengths
    np.savez(
        path,
        allow_pickle=False,
        input_ids=np.concatenate([sequence.input_ids for sequence in sequences]),
        token_type_ids=np.concatenate([sequence.token_type_ids for sequence in sequences]),
        lengths=lengths,
        checked=np.concatenate([sequence.checked + start for sequence, start in zip(sequences, starts, strict=True)]),
        output=np.concatenate([sequence.output for sequence in sequences]),
    )
