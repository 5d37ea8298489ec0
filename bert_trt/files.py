"""Writing files atomically, checking that no output overwrites an input, and JSON files."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from bert_trt import interrupts
from bert_trt.console import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens ``path`` for binary writing, atomically: the file appears complete or not at all.

    The data is written to a temporary file in the same folder, which is renamed at the end. After a failure, an
    existing file is unchanged. For a symbolic link, the file that it points to is replaced. A device or a pipe
    (``/dev/stdout``) is written directly, since a rename would replace it by a file.

    Raises:
        UserError: the file cannot be written (full disk, no such folder, no permission).
    """
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if path.is_file() or not path.exists():
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with (temporary or path).open("wb") as file:
            yield file
        if temporary is not None:
            temporary.replace(target)
    except OSError as error:
        if error.filename not in (None, str(path), str(target), str(temporary)):
            raise  # an error of the caller about another file
        raise UserError(explain_write_error(path, error)) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # it was never created, for the reason that was raised above
                temporary.unlink(missing_ok=True)


def explain_write_error(path: Path, error: OSError) -> str:
    """The message for a file that cannot be written: the reason and a remedy."""
    remedy = {
        errno.ENOSPC: "free some space or name a file on another disk",
        errno.EDQUOT: "free some of the quota or name a file on another disk",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f) or name a file on another disk",
        errno.ENOENT: f"create the folder {path.parent} first",
        errno.ENOTDIR: f"{path.parent} is not a folder: name another",
        errno.EACCES: "choose a place that you may write to",
        errno.EROFS: "choose a place that you may write to",
    }.get(error.errno or 0, "name another file")
    return f"cannot write {path}: {error.strerror or error}; {remedy}"


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Checks that no output is also an input or another output, under the same or another path.

    Args:
        outputs: paths by the user's name for them, such as ``--json``. A device or a pipe may occur twice.
        inputs: paths by the user's name for them.

    Raises:
        UserError: two of them are the same file; the message names both.
    """
    taken = [(name, path) for name, path in inputs.items() if path is not None]
    for name, path in outputs.items():
        if path is None or (path.exists() and not path.is_file()):
            continue
        for other, other_path in taken:
            if _is_same_file(path, other_path):
                raise UserError(f"{name} {path} would overwrite {other} ({other_path}); name another file")
        taken.append((name, path))


def _is_same_file(path: Path, other: Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):  # works for files that do not exist yet
        return True
    with suppress(OSError):
        return path.samefile(other)
    return False


def make_folder(path: Path) -> None:
    """Creates the folder and its parents.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror or error}; name another") from error


def file_version(path: Path) -> str:
    """The file with what changes when it is written again."""
    status = path.stat()
    return f"{os.path.realpath(path)} ({status.st_size} bytes, time {status.st_mtime_ns})"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder whose files are moved to ``folder`` at the end: all of them, or none after a failure.

    Raises:
        UserError: ``folder`` cannot be created or written to.
    """
    make_folder(folder)
    try:
        with TemporaryDirectory(prefix=".new-", dir=folder) as name:
            yield Path(name)
            with interrupts.uninterrupted():
                for new in sorted(Path(name).iterdir()):
                    new.replace(folder / new.name)
    except OSError as error:
        raise UserError(explain_write_error(folder, error)) from error


def write_json(path: Path | None, results: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Writes results as JSON; nothing if ``path`` is None. Numbers that are not finite become null.

    Raises:
        UserError: the file cannot be written.
    """
    if path is not None:
        with atomic_write(path) as file:
            file.write((json.dumps(_without_nan(results), indent=2, allow_nan=False) + "\n").encode())


def _without_nan(value: Any) -> Any:
    """The value with null for numbers that are not finite, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _without_nan(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, remedy: str = "write it again with model2onnx.py") -> dict[str, Any]:
    """Reads a JSON object; ``remedy`` is the end of the message about a damaged file.

    Raises:
        UserError: the file is missing, or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; write it with model2onnx.py") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a JSON {type(values).__name__}, expected an object; {remedy}")
    return values
