"""Files: they appear whole or not at all, and no output overwrites an input."""

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
    """Opens ``path`` for binary writing so that it appears whole or not at all.

    The data goes to a file beside it, which is renamed at the end; after a failure the old file, if there
    was one, is untouched. A link stays a link: the file that it points to is replaced. A device or a pipe
    (``/dev/stdout``) is written to as it is, since a rename would put a file in its place.

    Raises:
        UserError: the file cannot be written (full disk, no such folder, no permission).
    """
    target = Path(os.path.realpath(path))
    beside: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if path.is_file() or not path.exists():
            beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with (beside or path).open("wb") as file:
            yield file
        if beside is not None:
            beside.replace(target)
    except OSError as error:
        if error.filename not in (None, str(path), str(target), str(beside)):
            raise  # the caller's own, about another file
        raise UserError(_explain_write_error(path, error)) from error
    finally:
        if beside is not None:
            with suppress(OSError):  # the same reason for which it was never made, and that was told above
                beside.unlink(missing_ok=True)


def _explain_write_error(path: Path, error: OSError) -> str:
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
    """Refuses, before the work, an output that is an input or another output, however the two are spelled.

    Args:
        outputs: by what the user calls them, such as ``--json``. A device or a pipe may be there twice.
        inputs: likewise.

    Raises:
        UserError: the message names both.
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
    if os.path.realpath(path) == os.path.realpath(other):  # of files that are not there yet, too
        return True
    with suppress(OSError):
        return path.samefile(other)
    return False


def make_folder(path: Path) -> None:
    """Creates the folder and its parents.

    Raises:
        UserError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror or error}; name another") from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder whose files go to ``folder`` at the end: all of them, or none after a failure.

    Raises:
        UserError: ``folder`` cannot be made or written to.
    """
    make_folder(folder)
    try:
        with TemporaryDirectory(prefix=".new-", dir=folder) as name:
            yield Path(name)
            with interrupts.uninterrupted():
                for new in sorted(Path(name).iterdir()):
                    new.replace(folder / new.name)
    except OSError as error:
        raise UserError(_explain_write_error(folder, error)) from error


def write_json(path: Path | None, results: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Writes what --json asks for; nothing without a path. Called last, when all that decides has been compared.

    Raises:
        UserError: the file cannot be written.
    """
    if path is not None:
        with atomic_write(path) as file:
            file.write((json.dumps(_without_nan(results), indent=2, allow_nan=False) + "\n").encode())


def _without_nan(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, remedy: str = "write it again with model2onnx.py") -> dict[str, Any]:
    """Reads a JSON object; ``remedy`` ends the message where it is damaged.

    Raises:
        UserError: the file is missing or is no JSON object.
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
