"""The console, ``UserError`` for errors that a user can act on, and ``run_script``, which ends a script."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from bert_trt import interrupts

_to_terminal = sys.stdout is not None and sys.stdout.isatty()  # None if the parent process closed it
# Without a terminal, tables need not fit a terminal's width.
console = Console(highlight=False, emoji=False, width=None if _to_terminal else 140)  # results
log_console = Console(stderr=True, highlight=False, emoji=False)  # progress, warnings, errors


class UserError(Exception):
    """An error that the user can act on: it names the thing, says what was expected and how to fix it."""


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an uncaught error. A UserError is shown as ``run_script`` shows it, since it can occur before
    ``run_script``, while a script imports TensorRT."""
    if isinstance(error, UserError):
        _print_literally("error:", "bold red", str(error))
    else:
        _show_traceback(kind, error, trace)


_show_traceback = sys.excepthook
sys.excepthook = _show_uncaught


@contextmanager
def remaining_time(title: str, work: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar with the remaining time; yields a function that is told how much of ``work`` was done."""
    with Progress(console=log_console, transient=True) as progress:
        task = progress.add_task(title, total=work)
        yield lambda done: progress.advance(task, done)


def run_script(main: Callable[[], int]) -> None:
    """Runs ``main`` and ends the process with the exit code that it returns.

    The exit code is 1 after a UserError and 130 after Ctrl-C, both without a traceback. It is 130 also where a
    library turns Ctrl-C into another error.

    ``main`` does not fail because its output cannot be written. If standard output or standard error is closed, or
    its reader has ended, the exit code is that of the result. If writing fails for another reason, such as a full
    disk, the exit code is 1, and an error names standard output. A character that the encoding lacks is written as an
    escape.
    """
    outputs = _replace_standard_streams()
    code: Any
    with interrupts.raising():
        try:
            code, failure = main(), None
        except SystemExit as end:  # raised by argparse for --help and wrong usage
            code, failure = end.code, None
        except BaseException as error:  # raised again below, unless it is a UserError or Ctrl-C
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
    """Standard output or standard error. It drops data that it cannot write, and remembers the first error."""

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
        """A text stream like ``before`` that never raises; ``before`` is None if the stream was closed."""
        encoding, errors, by_line = "utf-8", "strict", True
        if before is not None:
            encoding, errors = before.encoding, before.errors
            by_line = before.line_buffering or before.write_through
        if errors in ("strict", "surrogateescape"):  # these raise an error for characters that the encoding lacks
            errors = "backslashreplace"
        self._text = io.TextIOWrapper(
            io.BufferedWriter(self), encoding=encoding, errors=errors, line_buffering=by_line
        )
        return self._text

    def end(self) -> OSError | None:
        """Flushes the stream. Returns the first error, unless it is that the reader has ended."""
        self._text.flush()
        return None if isinstance(self._failure, BrokenPipeError) else self._failure


def _replace_standard_streams() -> list[_Output]:
    """Replaces standard output and standard error by streams that never raise, unless a test has replaced them.

    A closed stream becomes the null device. Otherwise the next file that is opened would get its descriptor, and
    would receive what a C library writes to standard output.
    """
    outputs = []
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        if before is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # noqa: PLW2901  the lowest free descriptor: the closed one
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
    """Prints information that needs no action to standard error."""
    _print_literally("note:", "bold", message)


def warn(message: str) -> None:
    """Prints a warning to standard error."""
    _print_literally("warning:", "yellow", message)


def _print_literally(label: str, style: str, message: str) -> None:
    """Prints to standard error without interpreting brackets in the message, as in ``[unused1]``, as markup."""
    log_console.print(Text.assemble((label, style), " ", message), soft_wrap=True)
