"""What every script shares: errors a user can act on, files that appear whole or not at all, one console."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console

# A table that is read from a file or a pipe need not fit a narrow terminal.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # results
log_console = Console(stderr=True, highlight=False)  # progress, warnings, errors


class UserError(Exception):
    """A failure the user can act on: names the thing, says what was expected and how to fix it."""


def run_script(main: Callable[[], int]) -> None:
    """Runs ``main`` and ends the process with its exit code: 1 after a UserError, without a traceback."""
    try:
        code = main()
    except UserError as error:
        log_console.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        code = 1
    except KeyboardInterrupt:
        log_console.print("interrupted")
        code = 130
    sys.exit(code)


def warn(message: str) -> None:
    """Prints a warning to standard error."""
    log_console.print(f"[yellow]warning:[/] {_escape(message)}", soft_wrap=True)


def _escape(text: str) -> str:
    """Keeps rich from reading ``[MASK]`` or ``[1, S]`` as markup."""
    return text.replace("[", "\\[")


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Opens ``path`` for binary writing so that it appears whole or not at all.

    The data goes to a file beside it, which is renamed at the end; after a failure the old file, if there
    was one, is untouched.

    Raises:
        UserError: the file cannot be written (full disk, no such folder, no permission).
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise UserError(_explain_write_error(path, error)) from error
    finally:
        beside.unlink(missing_ok=True)


def _explain_write_error(path: Path, error: OSError) -> str:
    remedy = {
        errno.ENOSPC: "free some space or name a file on another disk",
        errno.EDQUOT: "free some of the quota or name a file on another disk",
        errno.ENOENT: f"create the folder {path.parent} first",
        errno.EACCES: "choose a place that you may write to",
        errno.EROFS: "choose a place that you may write to",
    }.get(error.errno or 0, "name another file")
    return f"cannot write {path}: {error.strerror or error}; {remedy}"


def make_folder(path: Path) -> None:
    """Creates the folder and its parents.

    Raises:
        UserError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror or error}") from error
