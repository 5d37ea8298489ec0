"""What every script shares: errors a user can act on, files that appear whole or not at all, one console."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.text import Text

import interrupts

_to_terminal = sys.stdout is not None and sys.stdout.isatty()  # None: closed by who started the process
# A table that is read from a file or a pipe need not fit a narrow terminal.
console = Console(highlight=False, emoji=False, width=None if _to_terminal else 140)  # results
log_console = Console(stderr=True, highlight=False, emoji=False)  # progress, warnings, errors


class UserError(Exception):
    """A failure the user can act on: names the thing, says what was expected and how to fix it."""


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an error that nobody caught: a UserError as ``run_script`` does, which is not there yet while a script
    imports TensorRT."""
    if isinstance(error, UserError):
        _print_literally("error:", "bold red", str(error))
    else:
        _show_traceback(kind, error, trace)


_show_traceback = sys.excepthook
sys.excepthook = _show_uncaught


def run_script(main: Callable[[], int]) -> None:
    """Runs ``main`` and ends the process with its exit code: 1 after a UserError, 130 after Ctrl-C, both without a
    traceback. Whatever error an interrupted library makes of Ctrl-C, it is 130.

    The work does not depend on the output. Where standard output or standard error is closed, or its reader has
    ended, ``main`` goes on and the exit code is that of the result. Where it cannot be written for another reason
    (a full disk), ``main`` goes on as well, and then the exit code is 1, with an error that names standard output.
    A character that the encoding lacks is written as an escape.
    """
    outputs = _replace_standard_streams()
    code: Any
    with interrupts.raising():
        try:
            code, failure = main(), None
        except SystemExit as ended:  # argparse: --help, or wrong usage
            code, failure = ended.code, None
        except BaseException as error:  # raised again below, unless it is the user's
            code, failure = 1, error
    if isinstance(failure, KeyboardInterrupt) or interrupts.happened():
        log_console.print("interrupted")
        code = interrupts.EXIT_CODE
    elif isinstance(failure, UserError):
        _print_literally("error:", "bold red", str(failure))
    elif failure is not None:
        raise failure
    for output in outputs:
        unwritten = output.end()
        if unwritten is not None:
            reason = f"cannot write to {output.title}: {unwritten.strerror or unwritten}"
            _print_literally("error:", "bold red", f"{reason}; the text is lost, but files were written as usual")
            code = code or 1
    sys.exit(code)


class _Output(io.FileIO):
    """Standard output or standard error; drops what it cannot write, and remembers why."""

    def __init__(self, descriptor: int, title: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.title = title
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._failure = self._failure or error
            return memoryview(data).nbytes

    def open_text(self, before: Any) -> io.TextIOWrapper:
        """A text stream that never raises, otherwise like ``before``, which is None where the stream was closed."""
        encoding, errors, by_line = "utf-8", "strict", True
        if before is not None:
            encoding, errors = before.encoding, before.errors
            by_line = before.line_buffering or before.write_through
        if errors in ("strict", "surrogateescape"):  # those that refuse characters
            errors = "backslashreplace"
        self._text = io.TextIOWrapper(
            io.BufferedWriter(self), encoding=encoding, errors=errors, line_buffering=by_line
        )
        return self._text

    def end(self) -> OSError | None:
        """Writes what still waits. Returns the first failure, unless it is that the reader has ended."""
        self._text.flush()
        return None if isinstance(self._failure, BrokenPipeError) else self._failure


def _replace_standard_streams() -> list[_Output]:
    """Makes standard output and standard error streams that never raise; leaves those that a test has put there.

    A closed one becomes the null device. Otherwise the next file that is opened would get its number, and with it
    what a library in C writes to standard output.
    """
    outputs = []
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        if before is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # noqa: PLW2901  the lowest free number: that of the closed one
            os.set_inheritable(descriptor, True)
        if name != "stdin" and before is getattr(sys, f"__{name}__"):
            output = _Output(descriptor, {"stdout": "standard output", "stderr": "standard error"}[name])
            with suppress(OSError):
                if before is not None:
                    before.flush()
            setattr(sys, name, output.open_text(before))
            outputs.append(output)
    return outputs


def note(message: str) -> None:
    """Prints to standard error what a user may want to know, and need not act on."""
    _print_literally("note:", "bold", message)


def warn(message: str) -> None:
    """Prints a warning to standard error."""
    _print_literally("warning:", "yellow", message)


def _print_literally(label: str, style: str, message: str) -> None:
    """Prints to standard error; brackets in the message, as in ``[unused1]``, are not read as markup."""
    log_console.print(Text.assemble((label, style), " ", message), soft_wrap=True)


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
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
def write_together(folder: Path) -> Iterator[Path]:
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
