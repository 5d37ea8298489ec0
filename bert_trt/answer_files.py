"""Writes the answers of predict.py: JSON lines, or one row of a vector for each line as .npy, Parquet or safetensors.

``AnswerFile`` appends to FILE.partial and keeps the run's state beside it, in FILE.partial.json: the command that it
belongs to and how many lines are done. An interrupted run goes on from there, and FILE appears whole at the end.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from bert_trt import interrupts
from bert_trt.console import UserError
from bert_trt.files import atomic_write, explain_write_error
from bert_trt.options import EMBEDDING
from bert_trt.records import Record, Wanted

REQUIREMENTS = "requirements-predict.txt"
SAFETENSORS_HEADER = 256  # bytes, more than the header needs with any number of rows


@dataclass(frozen=True)
class Answer:
    """What the output has for one line.

    Attributes:
        record: the line.
        prediction: the task's answer, of JSON types, or float32 (width,) for an embedding; None with a problem.
        problem: what is wrong with the line, with the file and the line's number; None with a prediction.
    """

    record: Record
    prediction: Any = None
    problem: str | None = None


# --- the forms of a file --------------------------------------------------------------------------------------


class JsonLines:
    """A JSON object for each line that is not blank."""

    has_rows = False

    def __init__(self, task: str, width: int) -> None:
        self.keys = Wanted.by(task).keys

    def begin(self) -> bytes:
        """The beginning of the file."""
        return b""

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """What the answers add to the file."""
        return b"".join(self._encode(answer) for answer in answers if not answer.record.is_blank)

    def _encode(self, answer: Answer) -> bytes:
        record = answer.record
        values: dict[str, Any] = {"line": record.line, **record.extra}
        if answer.problem is None:
            values |= dict(zip(self.keys, record.texts, strict=False))
            prediction = answer.prediction
            values["prediction"] = prediction.tolist() if isinstance(prediction, np.ndarray) else prediction
        else:
            values["error"] = answer.problem
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode(errors="backslashreplace")  # JSON's own escape for half of a surrogate pair

    def finish(self, partial: Path, target: Path, rows: int) -> None:
        """Makes the whole file of the partial one."""
        partial.replace(target)


class NumpyRows:
    """A .npy file, float32 (lines, width)."""

    has_rows = True

    def __init__(self, task: str, width: int) -> None:
        self.width = width

    def begin(self) -> bytes:
        """The header, in which NumPy leaves room for the number of rows."""
        return self._header(0)

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """The rows, NaN where a line has no vector."""
        return rows_of(answers, self.width).tobytes()

    def finish(self, partial: Path, target: Path, rows: int) -> None:
        """Writes the number of rows into the header."""
        with partial.open("r+b") as file:
            file.write(self._header(rows))
        partial.replace(target)

    def _header(self, rows: int) -> bytes:
        header = io.BytesIO()
        description = {"descr": "<f4", "fortran_order": False, "shape": (rows, self.width)}
        np.lib.format.write_array_header_1_0(header, description)
        return header.getvalue()


class SafetensorsRows(NumpyRows):
    """A .safetensors file with the tensor ``embedding``, float32 (lines, width)."""

    def _header(self, rows: int) -> bytes:
        size = rows * self.width * 4
        description = {"embedding": {"dtype": "F32", "shape": [rows, self.width], "data_offsets": [0, size]}}
        text = json.dumps(description).encode().ljust(SAFETENSORS_HEADER)  # the format allows spaces at the end
        return struct.pack("<Q", len(text)) + text


class ParquetRows:
    """A Parquet file: line, embedding, error, and the other keys of a JSON object as JSON.

    The partial file is an Arrow stream, to which batches can be appended; a Parquet file could not be continued.
    """

    has_rows = True

    def __init__(self, task: str, width: int) -> None:
        self.arrow = _import_pyarrow()
        pa = self.arrow
        self.width = width
        self.schema = pa.schema(
            [
                pa.field("line", pa.int64(), nullable=False),
                pa.field("embedding", pa.list_(pa.float32(), width), nullable=False),
                pa.field("error", pa.string()),
                pa.field("extra", pa.string()),
            ]
        )

    def begin(self) -> bytes:
        """The schema."""
        return self.schema.serialize().to_pybytes()

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """A record batch."""
        pa = self.arrow
        rows = pa.FixedSizeListArray.from_arrays(pa.array(rows_of(answers, self.width).ravel()), self.width)
        extras = [json.dumps(answer.record.extra) if answer.record.extra else None for answer in answers]
        columns = [
            pa.array([answer.record.line for answer in answers], pa.int64()),
            rows,
            pa.array([answer.problem for answer in answers], pa.string()),
            pa.array(extras, pa.string()),
        ]
        return pa.record_batch(columns, schema=self.schema).serialize().to_pybytes()

    def finish(self, partial: Path, target: Path, rows: int) -> None:
        """Copies the batches into a Parquet file."""
        from pyarrow import parquet

        with (
            atomic_write(target) as file,
            partial.open("rb") as stream,
            self.arrow.ipc.open_stream(stream) as batches,
            parquet.ParquetWriter(file, self.schema) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
        partial.unlink()


FORMS: Mapping[str, Any] = {
    ".jsonl": JsonLines,
    ".npy": NumpyRows,
    ".parquet": ParquetRows,
    ".safetensors": SafetensorsRows,
}
Form = JsonLines | NumpyRows | ParquetRows


def form_of(path: Path, task: str, width: int) -> Form:
    """The form of an output, by its name's end.

    Args:
        path: the output. A device or a pipe gets JSON lines.
        task: the model's task.
        width: the length of an embedding.

    Raises:
        UserError: there is no such form, the task has no vectors, or a package is missing.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return JsonLines(task, width)
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        raise UserError(f"--out {path}: the name ends in {suffix or 'nothing'}, expected one of {', '.join(FORMS)}")
    if FORMS[suffix].has_rows and task != EMBEDDING:
        raise UserError(
            f"--out {path}: {suffix} holds a vector for each line, which the task {task} does not give; "
            "name a file that ends in .jsonl"
        )
    return FORMS[suffix](task, width)


def rows_of(answers: Sequence[Answer], width: int) -> np.ndarray:
    """The vectors of the lines, float32 (lines, width), NaN where a line has none."""
    rows = np.full((len(answers), width), np.nan, "<f4")
    for row, answer in zip(rows, answers, strict=True):
        if answer.prediction is not None:
            row[:] = answer.prediction
    return rows


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"a .parquet file needs pyarrow, which cannot be imported ({error}): pip install -r {REQUIREMENTS}; or "
            "name a file that ends in .npy or .safetensors"
        ) from error
    return pyarrow


# --- a file that can be continued -----------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        lines: lines of the input that are done.
        size: bytes of the partial file that belong to them.
        answered: lines with a prediction.
        bad: lines with a problem.
        first_bad: the first problems.
    """

    lines: int = 0
    size: int = 0
    answered: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)


def partial_files(path: Path) -> tuple[Path, Path]:
    """The partial file of an output, and the file of its state."""
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name}.partial"), target.with_name(f"{target.name}.partial.json")


class AnswerFile:
    """The output while it is written; see ``open_answers``.

    Attributes:
        progress: how far it is.
        was_continued: an interrupted run had left something.
    """

    def __init__(self, path: Path, form: Form, command: Mapping[str, Any]) -> None:
        self.path = path
        self.form = form
        self.command = dict(command)
        self.progress = Progress()
        self.was_continued = False
        self.target = Path(os.path.realpath(path))
        self.is_direct = path.exists() and not path.is_file()  # a device or a pipe
        self.partial, self.state = partial_files(path)
        self.file: IO[bytes]

    def open(self, restart: bool) -> None:
        """Opens the partial file, at the end of what is done."""
        if self.is_direct:
            self.file = self.path.open("wb")
            return
        self.file = self.partial.open("a+b")
        try:
            self._lock()
            if not restart:
                self._read_state()
        except BaseException:
            self.file.close()
            raise
        self.file.truncate(self.progress.size)
        if not self.was_continued:
            self._append(self.form.begin())
            self._write_state()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing {self.partial}; wait for its end, or name another file"
            ) from error

    def _read_state(self) -> None:
        """Reads the state of an interrupted run.

        Raises:
            UserError: it belongs to another command.
        """
        size = self.file.seek(0, os.SEEK_END)
        remedy = "to discard it, add --restart; to keep it, name another file, or give that command again"
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            command, progress = dict(state["command"]), Progress(**state["progress"])
        except FileNotFoundError as error:
            if size == 0:
                return  # new
            raise UserError(
                f"{self.partial} exists without {self.state.name}, which says whose it is; {remedy}"
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.state} is damaged ({error}); to discard it, add --restart") from error
        if size == 0:
            return  # the end of a run, or its very beginning
        different = [key for key in {**command, **self.command} if command.get(key) != self.command.get(key)]
        if different:
            key = different[0]
            raise UserError(
                f"{self.partial} is of another command: its {key} is {command.get(key)}, here it is "
                f"{self.command.get(key)}; {remedy}"
            )
        if size < progress.size:
            raise UserError(
                f"{self.partial} has {size} bytes, but {progress.size} are done: it is damaged; to discard it, "
                "add --restart"
            )
        self.progress, self.was_continued = progress, progress.lines > 0

    def add(self, answers: Sequence[Answer], problems_to_keep: int) -> None:
        """Appends the answers for the next lines."""
        progress = self.progress
        self._append(self.form.encode(answers))
        problems = [answer.problem for answer in answers if answer.problem is not None]
        progress.lines += len(answers)
        progress.bad += len(problems)
        progress.answered += sum(answer.prediction is not None for answer in answers)
        progress.first_bad += problems[: max(0, problems_to_keep - len(progress.first_bad))]
        self._write_state()

    def _append(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()
        self.progress.size += len(data)

    def _write_state(self) -> None:
        if not self.is_direct:
            state = {"command": self.command, "progress": asdict(self.progress)}
            with atomic_write(self.state) as file:
                file.write(json.dumps(state).encode())

    def finish(self) -> None:
        """Makes FILE of the partial file."""
        if self.is_direct:
            return
        with interrupts.uninterrupted():
            self.form.finish(self.partial, self.target, self.progress.lines)
            self.state.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the partial file and its state."""
        if not self.is_direct:
            with suppress(OSError):
                self.partial.unlink(missing_ok=True)
                self.state.unlink(missing_ok=True)


@contextmanager
def open_answers(path: Path, form: Form, command: Mapping[str, Any], restart: bool) -> Iterator[AnswerFile]:
    """Opens an output. After a failure what is done is kept, unless that is nothing.

    Args:
        path: the output.
        form: its form.
        command: what the output depends on, of JSON types; a run goes on only with the same.
        restart: discard what an interrupted run has left.

    Raises:
        UserError: the file cannot be written, or the partial file belongs to another command.
    """
    answers = AnswerFile(path, form, command)
    try:
        if path.is_dir():
            raise IsADirectoryError(21, os.strerror(21), str(path))
        answers.open(restart)
        try:
            yield answers
        finally:
            answers.file.close()
            if answers.progress.lines == 0:
                answers.discard()
    except OSError as error:
        names = (None, *map(str, (path, answers.target, answers.partial, answers.state)))
        if error.filename not in names:
            raise  # an error of the caller about another file
        raise UserError(explain_write_error(path, error)) from error
