"""Reads a text file with one sentence a line and tokenises it; a bad line does not cost the others.

Both the calibration and the inference on many sentences read their text here, so that a line means the same to
both. The lengths are true ones: nothing is padded, that is left to packing.py.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_trt.console import UserError
from bert_trt.model_files import TOKENIZER_NAME, BertConfig, ModelFolder, check_inputs


@dataclass(frozen=True)
class Sentence:
    """One line of the file.

    Attributes:
        line: its number, from 1; blank lines count.
        text: without spaces around it.
        ids: word ids with those of [CLS] and [SEP], int32 (S,).
        types: token types, int32 (S,); see ``pair_types``.
    """

    line: int
    text: str
    ids: np.ndarray
    types: np.ndarray


@dataclass(frozen=True)
class Problem:
    """A line that cannot be used.

    Attributes:
        line: its number, from 1.
        message: what is wrong and how to correct it; begins with the file and the line.
    """

    line: int
    message: str


@functools.cache
def _tokenizer_at(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} has no usable tokenizer ({reason}); write it again with model2onnx.py") from error


def load_tokenizer(folder: ModelFolder) -> Any:
    """The tokenizer that model2onnx.py put beside the model; nothing is downloaded."""
    if not (folder.path / TOKENIZER_NAME).is_file():
        raise UserError(f"{folder.path / TOKENIZER_NAME} is missing; write it again with model2onnx.py")
    return _tokenizer_at(folder.path.resolve())


def pair_types(ids: np.ndarray, separator: int | None, type_vocab_size: int) -> np.ndarray:
    """Token types of a text as it stands: where it says ``[SEP]`` itself, those of a pair of texts.

    Args:
        ids: word ids, whole numbers (S,).
        separator: the id of [SEP]; None if the tokenizer has none.
        type_vocab_size: token types of the model.

    Returns:
        Like ``ids``: 0 up to the first [SEP], 1 behind it. All 0 where nothing but [SEP] follows, and where the model
        has one type.
    """
    types = np.zeros_like(ids)
    places = np.flatnonzero(ids == separator)
    if type_vocab_size > 1 and len(places) and (ids[places[0] :] != separator).any():
        types[places[0] + 1 :] = 1
    return types


def read_sentences(
    path: Path, tokenizer: Any, config: BertConfig, *, need_mask: bool = False, truncate: bool = False
) -> tuple[list[Sentence], list[Problem]]:
    """Reads and tokenises ``path``: UTF-8, one sentence a line. Blank lines are skipped.

    Args:
        path: the file. A byte order mark and any of the usual line ends will do.
        tokenizer: the checkpoint's, from transformers.
        config: the model's sizes.
        need_mask: a line without the tokenizer's [MASK] is a problem.
        truncate: a line longer than the position table is cut, [SEP] kept; otherwise it is a problem.

    Returns:
        (at least one sentence, the lines that cannot be used), each in the file's order. A line cannot be used
        if it is not UTF-8, has no word, is too long, lacks a [MASK] that is needed, or has an id outside the
        vocabulary.

    Raises:
        UserError: the file cannot be read or has nothing but spaces, no line of it can be used, or the tokenizer
            has no mask token and one is needed.
    """
    if need_mask and tokenizer.mask_token is None:
        raise UserError("the checkpoint's tokenizer has no mask token; expected one, such as [MASK]")
    sentences, problems = [], []
    for number, line in enumerate(_read_lines(path), start=1):
        source = f"{path}, line {number}"
        try:
            text = _decode(line, source).strip()
            if text:
                ids = _tokenize(text, tokenizer, config, source, truncate)
                if need_mask:
                    _check_mask(ids, tokenizer, config, source)
                types = pair_types(ids, tokenizer.sep_token_id, config.type_vocab_size)
                sentences.append(Sentence(number, text, ids, types))
        except UserError as error:
            problems.append(Problem(number, str(error)))
    if not sentences and not problems:
        raise UserError(f"{path} holds no sentence, only blank lines or none; expected one sentence a line")
    if not sentences:
        raise UserError(f"{path}: no line can be used ({len(problems)} are bad); the first: {problems[0].message}")
    return sentences, problems


def _read_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; name a text file with one sentence a line"
        ) from error
    return content.removeprefix(b"\xef\xbb\xbf").splitlines()  # of bytes: at \n, \r and \r\n only


def _decode(line: bytes, source: str) -> str:
    """UTF-8 to text. A NUL is valid UTF-8, but stands where the file is UTF-16, and tokenizers pass over it."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise UserError(f"{source}: byte {line.index(0) + 1} is NUL, which no text has; save the file as UTF-8")
    return text


def _tokenize(text: str, tokenizer: Any, config: BertConfig, source: str, truncate: bool) -> np.ndarray:
    """Text to ids, int32 (S,), S at most the length of the position table."""
    try:
        # Given a max_length, the library does not print a warning of its own about a line that is too long.
        encoded = tokenizer(text, truncation=truncate, max_length=config.max_positions)
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source}: the checkpoint's tokenizer cannot read it ({reason}); its vocabulary is incomplete or damaged"
        ) from error
    ids = np.array(encoded["input_ids"], np.int32)
    if len(ids) <= tokenizer.num_special_tokens_to_add():
        raise UserError(f"{source}: {text!a} has no word; write a sentence or leave the line blank")
    inputs = {
        "input_ids": ids[None],
        "token_type_ids": np.zeros_like(ids)[None],
        "position_ids": np.arange(len(ids))[None],
    }
    check_inputs(inputs, config, source)
    return ids


def _check_mask(ids: np.ndarray, tokenizer: Any, config: BertConfig, source: str) -> None:
    if tokenizer.mask_token_id not in ids:
        place = f" among its first {len(ids)} tokens" if len(ids) == config.max_positions else ""
        raise UserError(f"{source}: no {tokenizer.mask_token}{place}; write it where a word is to be filled in")
