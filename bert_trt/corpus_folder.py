"""The output folder of corpus.py: a Parquet file for each shard, its bad lines beside it, and the run's settings.

    part-00000000.parquet        id, file, line, prediction, extra: a row for each line with an answer
    _bad/part-00000000.jsonl     the bad lines of the same shard, if it has any
    _corpus.json                 what the answers depend on

A part is renamed to its name when it is whole, after its bad lines. So a part that exists is finished, and writing it
twice does no harm. Readers of such folders skip names that begin with "_" or ".".
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bert_trt.answer_files import Answer
from bert_trt.console import UserError
from bert_trt.files import atomic_write, explain_write_error, make_folder, read_json
from bert_trt.model_files import BertConfig
from bert_trt.options import EMBEDDING, FILL_MASK, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from bert_trt.shards import Shard

SETTINGS_NAME = "_corpus.json"
BAD_FOLDER = "_bad"
PART_PATTERN = "part-*.parquet"


def part_path(folder: Path, number: int) -> Path:
    """The file of a shard's answers."""
    return folder / f"part-{number:08}.parquet"


def bad_path(folder: Path, number: int) -> Path:
    """The file of a shard's bad lines."""
    return folder / BAD_FOLDER / f"part-{number:08}.jsonl"


# --- parts ----------------------------------------------------------------------------------------------------


def answer_schema(config: BertConfig, aggregate: bool) -> Any:
    """The Arrow schema of a part.

    Args:
        config: the model's.
        aggregate: tokens of one entity are joined.
    """
    import pyarrow as pa

    text, number, score = pa.string(), pa.int32(), pa.float64()
    span = [("start", number), ("end", number)]
    if config.task == EMBEDDING:
        prediction = pa.list_(pa.float32(), config.output_width)
    elif config.task == FILL_MASK:
        word = pa.struct([("word", text), ("id", number), ("probability", score)])
        prediction = pa.list_(pa.list_(word))
    elif config.task == SEQUENCE_CLASSIFICATION:
        label = [("label", text), ("score", score)]
        prediction = pa.struct([*label, ("scores", pa.list_(pa.struct(label)))])
    elif config.task == TOKEN_CLASSIFICATION:
        entity = [("entity", text), ("score", score), ("index", number), ("word", text), *span]
        group = [("entity_group", text), ("score", score), ("word", text), *span]
        prediction = pa.list_(pa.struct(group if aggregate else entity))
    else:
        prediction = pa.struct([("answer", text), *span, ("score", score), ("no_answer_score", score)])
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("file", pa.string(), nullable=False),
            pa.field("line", pa.int64(), nullable=False),
            pa.field("prediction", prediction, nullable=False),
            pa.field("extra", pa.string()),
        ]
    )


def write_part(folder: Path, shard: Shard, schema: Any, answers: Iterable[Sequence[Answer]]) -> None:
    """Writes a shard's answers and bad lines. The part appears last, whole or not at all.

    Args:
        folder: the output folder.
        shard: the shard.
        schema: see ``answer_schema``.
        answers: an answer or a problem for each line of the shard, piece by piece.

    Raises:
        UserError: a file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    bad: list[str] = []
    with atomic_write(part_path(folder, shard.number)) as file:
        with parquet.ParquetWriter(file, schema) as writer:
            for chunk in answers:
                good = [answer for answer in chunk if answer.prediction is not None]
                writer.write_table(pa.table(_columns(shard, good, schema), schema))
                bad += [_bad_line(shard, answer) for answer in chunk if answer.problem is not None]
        if bad:
            make_folder(folder / BAD_FOLDER)
            with atomic_write(bad_path(folder, shard.number)) as side:
                side.write("".join(bad).encode(errors="backslashreplace"))


def line_id(shard: Shard, line: int) -> int:
    """The number of a line in the corpus, from 1."""
    return shard.first_id + line - shard.first


def _columns(shard: Shard, answers: Sequence[Answer], schema: Any) -> list[Any]:
    import pyarrow as pa

    lines = [answer.record.line for answer in answers]
    kind, predictions = schema.field("prediction").type, [answer.prediction for answer in answers]
    if pa.types.is_fixed_size_list(kind):
        values = np.array(predictions, np.float32).ravel()
        column = pa.FixedSizeListArray.from_arrays(pa.array(values), kind.list_size)
    else:
        column = pa.array(predictions, kind)
    return [
        pa.array([line_id(shard, line) for line in lines], pa.int64()),
        pa.array([shard.path] * len(lines), pa.string()),
        pa.array(lines, pa.int64()),
        column,
        pa.array(
            [json.dumps(answer.record.extra) if answer.record.extra else None for answer in answers], pa.string()
        ),
    ]


def _bad_line(shard: Shard, answer: Answer) -> str:
    record = answer.record
    place = {"id": line_id(shard, record.line), "file": shard.path, "line": record.line, "error": answer.problem}
    return json.dumps(place | ({"extra": record.extra} if record.extra else {}), ensure_ascii=False) + "\n"


# --- the folder -----------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What the folder has.

    Attributes:
        answered: lines with an answer.
        bad: bad lines.
        first_bad: what is wrong with the first of them.
    """

    answered: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)


def summarise(folder: Path, problems_to_keep: int) -> Summary:
    """Counts the answers and the bad lines of a finished folder."""
    from pyarrow import parquet

    summary = Summary()
    for path in sorted(folder.glob(PART_PATTERN)):
        summary.answered += parquet.read_metadata(path).num_rows
    for path in sorted((folder / BAD_FOLDER).glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                summary.bad += 1
                if len(summary.first_bad) < problems_to_keep:
                    summary.first_bad.append(json.loads(line)["error"])
    return summary


@contextmanager
def open_folder(folder: Path, settings: Mapping[str, Any], restart: bool) -> Iterator[None]:
    """Creates the output folder, or opens what an interrupted run has left, and locks it.

    Args:
        folder: the folder.
        settings: what the answers depend on, of JSON types. A run goes on only with the same.
        restart: remove what an interrupted run has left.

    Raises:
        UserError: it cannot be written, belongs to another run, or to another program.
    """
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        _prepare(folder, dict(settings), restart)
        yield
        _remove_unfinished(folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing to {folder}; wait for its end, or name another folder"
        ) from error
    except OSError:  # a network's file system that does not lock folders
        pass


def _prepare(folder: Path, settings: dict[str, Any], restart: bool) -> None:
    path = folder / SETTINGS_NAME
    is_ours = path.exists()
    if not is_ours and any(not other.name.startswith(".") for other in folder.iterdir()):
        raise UserError(f"--out {folder} has files of other programs; name an empty folder or a new one")
    try:
        if is_ours and restart:
            for old in _files_of_run(folder):
                old.unlink()
        elif is_ours:
            _check_settings(path, settings)
        _remove_unfinished(folder)
    except OSError as error:
        raise UserError(explain_write_error(folder, error)) from error
    with atomic_write(path) as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())


def _remove_unfinished(folder: Path) -> None:
    """Removes the files of processes that were killed."""
    for unfinished in (*folder.glob(".part-*.tmp"), *(folder / BAD_FOLDER).glob(".part-*.tmp")):
        unfinished.unlink()


def _files_of_run(folder: Path) -> list[Path]:
    return [*folder.glob(PART_PATTERN), *(folder / BAD_FOLDER).glob("part-*.jsonl")]


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises a UserError if the settings of the run before are others."""
    before = read_json(path, "to discard the run that it belongs to, add --restart")
    different = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    if different:
        key = different[0]
        raise UserError(
            f"{path.parent} is of another command: its {key} is {before.get(key)}, here it is {settings.get(key)}; "
            "to discard it, add --restart; to keep it, name another folder"
        )
