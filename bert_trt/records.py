"""Reads the input of predict.py line by line: text, pairs in two columns, or JSON lines; for corpus.py also Parquet.

A line that cannot be read becomes a record with a problem, so that every line of the file has its record.
"""

from __future__ import annotations

import io
import json
import math
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bert_trt.console import UserError
from bert_trt.options import QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION
from bert_trt.sentences import decode_line

JSON_SUFFIX = ".jsonl"
LINE_LIMIT = 2**24  # characters; a longer line is a bad one
CHUNK_LINES, CHUNK_CHARACTERS = 2048, 2**20  # of the lines that are in memory at one time
FIRST_LINES = 512  # of the first chunk, which the network waits for
RESERVED = ("line", "prediction", "error")  # keys of the output


@dataclass(frozen=True)
class Wanted:
    """Which texts a task takes.

    Attributes:
        task: one of ``options.TASKS``.
        keys: the keys of the first and of the second text in a JSON object.
        minimum: the fewest texts.
        maximum: the most texts.
    """

    task: str
    keys: tuple[str, str]
    minimum: int
    maximum: int

    @classmethod
    def by(cls, task: str) -> Wanted:
        """What a task takes: one text, a question and its context, or for sequence classification one text or two."""
        if task == QUESTION_ANSWERING:
            return cls(task, ("question", "context"), 2, 2)
        return cls(task, ("text", "text_pair"), 1, 2 if task == SEQUENCE_CLASSIFICATION else 1)


@dataclass(frozen=True)
class Record:
    """One line of the input.

    Attributes:
        line: the line's number, from 1; blank lines count.
        texts: one text, or the two of a pair; empty for a blank line, or one with a problem.
        extra: the other keys of a JSON object.
        problem: what is wrong with the line, without its number; None if it can be read.
    """

    line: int
    texts: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def is_blank(self) -> bool:
        """Whether the line is blank."""
        return not self.texts and self.problem is None


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of a file.

    Attributes:
        records: the lines.
        position: bytes of the file that have been read.
    """

    records: list[Record]
    position: int


def check_input(path: Path) -> int:
    """The size of the input in bytes; 0 for a pipe, whose size is not known.

    Raises:
        UserError: there is no such file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"no file {path} ({error.strerror or error}); name a file of texts, one a line, or of JSON lines"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a folder; name a file of texts, one a line, or of JSON lines")
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def read_chunks(path: Path, task: str, done: int = 0) -> Iterator[Chunk]:
    """Reads a file piece by piece. Memory does not grow with the file.

    Args:
        path: UTF-8, with any of the usual line ends, and perhaps a byte order mark. The name .jsonl means JSON lines.
        task: one of ``options.TASKS``.
        done: the number of lines to skip.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = islice(enumerate(_lines(file), start=1), done, None)
            for records in in_growing_chunks(_read_records(lines, path, task), done):
                yield Chunk(records, _position(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_section(path: Path, task: str, start: int, first: int, count: int) -> Iterator[list[Record]]:
    """Reads a part of a file piece by piece.

    Args:
        path: as for ``read_chunks``.
        task: one of ``options.TASKS``.
        start: the byte at which the part's first line begins.
        first: the number of that line.
        count: the number of lines to read.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as binary:
            binary.seek(start)
            encoding = "utf-8" if start else "utf-8-sig"  # only the file's first bytes can be a byte order mark
            with io.TextIOWrapper(binary, encoding, errors="surrogateescape") as file:
                lines = islice(enumerate(_lines(file), start=first), count)
                yield from in_chunks(_read_records(lines, path, task))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def in_chunks(records: Iterable[tuple[Record, int]]) -> Iterator[list[Record]]:
    """Groups records, each with the number of characters read for it, to what is in memory at one time."""
    return _group(records, lambda _: CHUNK_LINES, 0)


def in_growing_chunks(records: Iterable[tuple[Record, int]], done: int = 0) -> Iterator[list[Record]]:
    """As ``in_chunks``, but the first chunks are small, so that the network starts early.

    A chunk has as many lines as are before it, so that it is ready before the network has computed those. Its size
    depends on nothing else: a run that goes on where a chunk ended has the same chunks as one without a break.

    Args:
        records: as for ``in_chunks``.
        done: the number of lines before the first record.
    """
    return _group(records, lambda before: min(CHUNK_LINES, max(FIRST_LINES, before)), done)


def _group(
    records: Iterable[tuple[Record, int]], lines_after: Callable[[int], int], done: int
) -> Iterator[list[Record]]:
    """Groups records; ``lines_after`` gives the most lines of a chunk by the number of lines before it."""
    chunk: list[Record] = []
    characters, most = 0, lines_after(done)
    for record, length in records:
        chunk.append(record)
        characters += length
        if len(chunk) == most or characters >= CHUNK_CHARACTERS:
            yield chunk
            done += len(chunk)
            chunk, characters, most = [], 0, lines_after(done)
    if chunk:
        yield chunk


def _lines(file: Any) -> Iterator[str]:
    """The lines without their ends; of a line that is too long its first ``LINE_LIMIT`` + 1 characters."""
    while line := file.readline(LINE_LIMIT + 1):
        rest = line
        while not rest.endswith("\n") and len(rest) > LINE_LIMIT:
            rest = file.readline(LINE_LIMIT + 1)
        yield line.removesuffix("\n")


def _position(file: Any) -> int:
    return file.buffer.tell() if file.buffer.seekable() else 0


def _read_records(lines: Iterable[tuple[int, str]], path: Path, task: str) -> Iterator[tuple[Record, int]]:
    wanted, is_json = Wanted.by(task), path.suffix.lower() == JSON_SUFFIX
    for number, line in lines:
        yield _read_record(number, line, wanted, is_json), len(line)


def _read_record(number: int, line: str, wanted: Wanted, is_json: bool) -> Record:
    try:
        if len(line) > LINE_LIMIT:
            raise UserError(f"more than {LINE_LIMIT} characters; split the text")
        text = decode_line(line.encode(errors="surrogateescape"), "")
        if not text.strip():
            return Record(number)
        if is_json:
            return _read_object(number, text, wanted)
        texts = tuple(text.split("\t")) if wanted.maximum == 2 else (text,)
        _check_count(texts, wanted)
        return Record(number, texts)
    except UserError as error:
        return Record(number, problem=str(error).removeprefix(": "))


def read_row(number: int, texts: Mapping[str, bytes | None], extra: dict[str, Any], wanted: Wanted) -> Record:
    """The record of a table's row.

    Args:
        number: the row's number, from 1.
        texts: UTF-8 by the key of ``wanted``; None for a null.
        extra: the values of other columns.
        wanted: which texts the task takes.
    """
    try:
        values = {key: None if text is None else decode_line(text, repr(key)) for key, text in texts.items()}
        if any(text is not None and len(text) > LINE_LIMIT for text in values.values()):
            raise UserError(f"more than {LINE_LIMIT} characters; split the text")
        return Record(number, _read_texts(values, wanted, "a text"), extra)
    except UserError as error:
        return Record(number, extra=extra, problem=str(error))


def _check_count(texts: tuple[str, ...], wanted: Wanted) -> None:
    first, second = (key.upper() for key in wanted.keys)
    if len(texts) > 2:
        raise UserError(f"{len(texts)} columns, expected {first} and {second} with one tab between them")
    if len(texts) < wanted.minimum:
        raise UserError(f"one text, but {wanted.task} takes a pair; write {first}, a tab, {second}")


def _read_object(number: int, text: str, wanted: Wanted) -> Record:
    """Reads a JSON object. One that lacks a text, or has one too many, is a record with a problem and the other keys.

    Raises:
        UserError: it is none.
    """
    try:
        values = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON ({error}); write one object a line") from error
    first, second = wanted.keys
    form = f'{{"{first}": ...}}' if wanted.maximum == 1 else f'{{"{first}": ..., "{second}": ...}}'
    if not isinstance(values, dict):
        raise UserError(f"a JSON {type(values).__name__}, expected an object: {form}")
    extra = {key: value for key, value in values.items() if key not in (*wanted.keys, *RESERVED)}
    try:
        return Record(number, _read_texts(values, wanted, form), extra)
    except UserError as error:
        return Record(number, extra=extra, problem=str(error))


def _read_texts(values: Mapping[str, Any], wanted: Wanted, form: str) -> tuple[str, ...]:
    """The texts of an object.

    Raises:
        UserError: there are too few or too many, or one is no text.
    """
    texts = []
    for index, key in enumerate(wanted.keys):
        value = values.get(key)
        if value is None and index >= wanted.minimum:
            continue
        if value is None:
            raise UserError(f"no {key!r}, which {wanted.task} takes; expected {form}")
        if index >= wanted.maximum:
            raise UserError(f"a pair ({key!r}), but {wanted.task} takes one text; expected {form}")
        if not isinstance(value, str):
            raise UserError(f"{key!r} is a JSON {type(value).__name__}, expected text")
        texts.append(_check_text(value, key))
    reserved = [key for key in RESERVED if key in values]
    if reserved:
        raise UserError(f"the key {reserved[0]!r} is one of the output; rename it")
    return tuple(texts)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large a number")
    return value


def _check_text(text: str, key: str) -> str:
    """JSON can escape what UTF-8 cannot hold."""
    if "\0" in text:
        raise UserError(f"{key!r} has a NUL, which no text has")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{key!r} has half of a surrogate pair at character {error.start + 1}") from error
    return text
