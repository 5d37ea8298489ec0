"""Splits the files of a corpus into shards of consecutive lines, and reads a shard's lines. For corpus.py.

Text is scanned for line ends, at about a gigabyte a second; of a Parquet file only the footer is read.
Memory does not grow with the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bert_trt.console import UserError
from bert_trt.options import Columns
from bert_trt.records import CHUNK_LINES, Record, Wanted, check_input, in_chunks, read_row, read_section

PARQUET_SUFFIX = ".parquet"
BLOCK_BYTES = 2**22  # of a text file that is scanned
BUFFER_BYTES = 2**20  # of a column of a Parquet file; without a buffer a whole column chunk is read


@dataclass(frozen=True)
class Shard:
    """Consecutive lines of a file; of a Parquet file, rows.

    Attributes:
        number: the shard's place in the corpus, from 0.
        path: the file, as the user named it.
        start: the byte at which the first line begins; 0 for a Parquet file.
        first: the number of the first line in the file, from 1. Blank lines count.
        count: the number of lines.
        first_id: the number of the first line in the corpus, from 1.
    """

    number: int
    path: str
    start: int
    first: int
    count: int
    first_id: int

    @property
    def last(self) -> int:
        """The number of the last line in the file."""
        return self.first + self.count - 1


def is_parquet(path: Path) -> bool:
    """Whether the file's name says that it is one of Parquet."""
    return path.suffix.lower() == PARQUET_SUFFIX


def split_corpus(paths: Sequence[Path], task: str, columns: Columns, lines: int) -> Iterator[Shard]:
    """Splits files into shards.

    Args:
        paths: the files; the name .parquet means Parquet, .jsonl JSON lines, another one text.
        task: one of ``options.TASKS``.
        columns: what is read of Parquet files.
        lines: the number of lines of each shard but a file's last.

    Raises:
        UserError: a file is missing, empty or unreadable, or lacks a column.
    """
    number, first_id = 0, 1
    for path in paths:
        parts = split_rows(path, task, columns, lines) if is_parquet(path) else split_text(path, lines)
        for start, first, count in parts:
            yield Shard(number, str(path), start, first, count, first_id)
            number, first_id = number + 1, first_id + count


def read_shard(shard: Shard, root: Path, task: str, columns: Columns) -> Iterator[list[Record]]:
    """Reads a shard piece by piece.

    Args:
        shard: the shard.
        root: the folder to which a relative path belongs.
        task: one of ``options.TASKS``.
        columns: what is read of Parquet files.

    Raises:
        UserError: the file cannot be read.
    """
    path = root / shard.path
    if is_parquet(path):
        return in_chunks(_read_rows(path, shard, task, columns))
    return read_section(path, task, shard.start, shard.first, shard.count)


# --- text -----------------------------------------------------------------------------------------------------


def split_text(path: Path, lines: int) -> Iterator[tuple[int, int, int]]:
    """The parts of a text file: the byte at which one begins, the number of its first line, its number of lines."""
    if not check_input(path):
        raise UserError(f"{path} is empty, or no file on a disk; name files that hold texts, one a line")
    start, seen, first = 0, 0, 1  # ``seen`` lines are before the block
    try:
        with path.open("rb") as file:
            for ends in _line_ends(file):
                for index in range(first + lines - 2 - seen, len(ends), lines):
                    yield start, first, lines
                    start, first = int(ends[index]), first + lines
                seen += len(ends)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if first <= seen:
        yield start, first, seen - first + 1


def _line_ends(file: IO[bytes]) -> Iterator[np.ndarray]:
    """The bytes at which lines end, block by block: after each of the usual line ends, and at the file's end."""
    position, last = 0, 0
    while block := file.read(BLOCK_BYTES):
        while block.endswith(b"\r") and (more := file.read(1)):  # perhaps the first half of a line end
            block += more
        values = np.frombuffer(block, np.uint8)
        is_end = values == ord("\n")
        if b"\r" in block:
            is_return = values == ord("\r")
            is_return[:-1] &= ~is_end[1:]
            is_end |= is_return
        ends = np.flatnonzero(is_end) + position + 1
        position += len(block)
        last = int(ends[-1]) if len(ends) else last
        yield ends
    if position > last:
        yield np.array([position])


# --- Parquet --------------------------------------------------------------------------------------------------


def split_rows(path: Path, task: str, columns: Columns, lines: int) -> Iterator[tuple[int, int, int]]:
    """The parts of a Parquet file: 0, the number of a part's first row, and its number of rows."""
    check_input(path)
    with _open_table(path) as table:
        _check_columns(path, table.schema_arrow, task, columns)
        rows = table.metadata.num_rows
    if not rows:
        raise UserError(f"{path} has no rows; leave it out")
    for done in range(0, rows, lines):
        yield 0, done + 1, min(lines, rows - done)


@contextmanager
def _open_table(path: Path) -> Iterator[Any]:
    """Opens a Parquet file.

    Raises:
        UserError: it is none, or damaged, which perhaps shows only while it is read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path} ({reason}); expected a whole Parquet file") from error


def _text_columns(names: Sequence[str], task: str, columns: Columns) -> dict[str, str]:
    """The column of each text, by the task's key."""
    wanted = Wanted.by(task)
    if columns.texts is not None:
        return dict(zip(wanted.keys, columns.texts, strict=False))
    needed, optional = wanted.keys[: wanted.minimum], wanted.keys[wanted.minimum : wanted.maximum]
    return {key: key for key in (*needed, *(key for key in optional if key in names))}


def _check_columns(path: Path, schema: Any, task: str, columns: Columns) -> None:
    """Checks that there are all columns, with values that can be used.

    Raises:
        UserError: there are not.
    """
    from pyarrow import types

    texts = _text_columns(schema.names, task, columns).values()
    for name in (*texts, *columns.kept):
        option = "--columns" if name in texts else "--keep"
        if name not in schema.names:
            raise UserError(
                f"{path} has no column {name!r}, only {', '.join(schema.names)}; name one of them with {option}"
            )
        kind = schema.field(name).type
        if name in texts and not _is_text(kind):
            raise UserError(f"{path}: the column {name!r} is {kind}, expected text; name another with {option}")
        if not (_is_text(kind) or types.is_integer(kind) or types.is_boolean(kind)):
            raise UserError(f"{path}: the column {name!r} is {kind}; {option} copies text, integers and booleans")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _read_rows(path: Path, shard: Shard, task: str, columns: Columns) -> Iterator[tuple[Record, int]]:
    """The record of each row of a shard, and its number of bytes."""
    wanted = Wanted.by(task)
    begin, stop = shard.first - 1, shard.last
    with _open_table(path) as table:
        keys = _text_columns(table.schema_arrow.names, task, columns)
        sizes = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.flatnonzero((ends > begin) & (ends - sizes < stop)).tolist()
        position = int(ends[groups[0]] - sizes[groups[0]])
        names = [*dict.fromkeys((*keys.values(), *columns.kept))]
        for batch in table.iter_batches(CHUNK_LINES, groups, names, use_threads=False):
            low, high = max(begin - position, 0), min(stop - position, len(batch))
            if low < high:
                part = batch.slice(low, high - low)
                texts = zip(*(_text_bytes(part.column(name)) for name in keys.values()), strict=True)
                kept = _kept_values(part, columns.kept)
                for index, row in enumerate(texts):
                    values = dict(zip(keys, row, strict=True))
                    extra = {name: column[index] for name, column in kept.items()}
                    record = read_row(position + low + index + 1, values, extra, wanted)
                    yield record, sum(len(text or b"") for text in row)
            position += len(batch)
            if position >= stop:
                return


def _text_bytes(column: Any) -> list[bytes | None]:
    """The texts of a column as UTF-8, or what should be: pyarrow does not check it on reading."""
    import pyarrow as pa

    return column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()


def _kept_values(batch: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    kept = {}
    for name in names:
        column = batch.column(name)
        if _is_text(column.type):
            kept[name] = [text and text.decode(errors="replace") for text in _text_bytes(column)]
        else:
            kept[name] = column.to_pylist()
    return kept
