"""Reads a text file with one sentence a line and tokenises it. Bad lines are reported and skipped.

The calibration reads its text here; predict.py's input has forms of its own, see records.py. Nothing is padded.
"""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bert_trt.console import UserError
from bert_trt.files import read_json
from bert_trt.model_files import TOKENIZER_NAME, BertConfig, ModelFolder, check_inputs

TOKENIZER_SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER_NAME, TOKENIZER_SETTINGS, "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Sentence:
    """One line of the file.

    Attributes:
        line: the line's number, from 1; blank lines count.
        text: the line without surrounding spaces.
        ids: token ids with those of [CLS] and [SEP], int32 (S,).
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
        line: the line's number, from 1.
        message: what is wrong and how to correct it; begins with file and line.
    """

    line: int
    message: str


@functools.cache
def _tokenizer_at(path: Path) -> Any:
    import transformers

    # Not AutoTokenizer: the folder's model_type is always "bert", and a family's class may build a tokenizer of its
    # own from the vocabulary, instead of reading tokenizer.json, which is the checkpoint's. What the class does
    # besides is to say which inputs the model gets, token types among them.
    try:
        settings = read_json(path / TOKENIZER_SETTINGS) if (path / TOKENIZER_SETTINGS).is_file() else {}
        named = getattr(transformers, str(settings.get("tokenizer_class")), transformers.PreTrainedTokenizerFast)
        names = settings.get("model_input_names") or named.model_input_names
        with TemporaryDirectory() as copy:  # the tokenizers library reads no path that is not valid UTF-8
            for name in TOKENIZER_FILES:
                if (path / name).is_file():
                    shutil.copyfile(path / name, Path(copy) / name)
            return transformers.PreTrainedTokenizerFast.from_pretrained(
                copy, local_files_only=True, model_input_names=names
            )
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} has no usable tokenizer ({reason}); write it again with model2onnx.py") from error


def load_tokenizer(folder: ModelFolder) -> Any:
    """Loads the tokenizer from the model folder. Nothing is downloaded.

    Raises:
        UserError: it is missing or damaged.
    """
    if not (folder.path / TOKENIZER_NAME).is_file():
        raise UserError(f"{folder.path / TOKENIZER_NAME} is missing; write it again with model2onnx.py")
    return _tokenizer_at(folder.path.resolve())


def pair_types(ids: np.ndarray, sep_token_id: int | None, type_vocab_size: int) -> np.ndarray:
    """Token types of a text in which the user may have typed ``[SEP]``, which makes it a pair of texts.

    Args:
        ids: token ids, integer (S,).
        sep_token_id: the id of [SEP]; None if the tokenizer has none.
        type_vocab_size: the model's number of token types.

    Returns:
        An array like ``ids``: 0 up to the first [SEP], 1 after it. All 0 if only [SEP] follows, or if the model has
        one type.
    """
    types = np.zeros_like(ids)
    separators = np.flatnonzero(ids == sep_token_id)
    if type_vocab_size > 1 and len(separators) and (ids[separators[0] :] != sep_token_id).any():
        types[separators[0] + 1 :] = 1
    return types


def read_sentences(
    path: Path, tokenizer: Any, config: BertConfig, *, truncate: bool = False
) -> tuple[list[Sentence], list[Problem]]:
    """Reads and tokenises ``path``: UTF-8, one sentence a line. Blank lines are skipped.

    Args:
        path: the file. It may have a byte order mark and any of the usual line ends.
        tokenizer: the checkpoint's, from transformers.
        config: the model's sizes.
        truncate: cut lines longer than the position table, keeping [SEP], instead of reporting them.

    Returns:
        The sentences, at least one, and the lines that cannot be used, each in the file's order. A line cannot be
        used if it is not UTF-8, has no word, is too long, or has an id outside the vocabulary.

    Raises:
        UserError: the file cannot be read or is blank, or no line of it can be used.
    """
    sentences, problems = [], []
    for number, line in enumerate(_read_lines(path), start=1):
        source = f"{path}, line {number}"
        try:
            text = decode_line(line, source).strip()
            if text:
                ids = _tokenize(text, tokenizer, config, source, truncate)
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
    return content.removeprefix(b"\xef\xbb\xbf").splitlines()  # bytes are split at \n, \r and \r\n only


def decode_line(line: bytes, source: str) -> str:
    """Decodes UTF-8. NUL is valid UTF-8, but a sign of UTF-16, and tokenizers ignore it.

    Raises:
        UserError: the line is not UTF-8, or has a NUL; the message begins with ``source``.
    """
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
    """Token ids, int32 (S,), S at most the length of the position table."""
    try:
        # With a max_length the library prints no warning of its own about a line that is too long.
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
