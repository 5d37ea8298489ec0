"""Ctrl-C: at any time, a script stops, prints ``interrupted``, exits with 130, and leaves no incomplete file.

* ``begin_script``: while a script imports its libraries, Ctrl-C ends the process at once. A KeyboardInterrupt would
  appear as a traceback, or as an ImportError of the library that was being imported.
* ``raising``, around a script's work: Ctrl-C raises KeyboardInterrupt, so that code that writes a file can remove it.
  If a library swallows the exception, it is raised again.
* ``uninterrupted``: Ctrl-C waits for the end of the block, and then raises the exception. It is for files that belong
  together, and for calls of TensorRT, which may call a Python logger: there the exception would be raised inside the
  logger, where TensorRT's bindings print it and continue.

This module only needs the standard library, so that a script can import it first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

EXIT_CODE = 130  # the shell's exit code for SIGINT: 128 + 2
RETRY_SECONDS = 1.0  # by then an exception that was not swallowed has ended the work


class _State:
    """The state of this process. It needs no lock, since Python runs signal handlers only in the main thread."""

    def __init__(self) -> None:
        self.happened = False
        self.waiting = False  # Ctrl-C waits for the end of ``uninterrupted``
        self.held = 0  # depth of nested ``uninterrupted`` blocks
        self.retry: threading.Timer | None = None


_state = _State()


def begin_script(read_command_line: Callable[[], object]) -> None:
    """Handles --help, wrong usage and Ctrl-C before a script imports libraries that take long.

    Args:
        read_command_line: reads the command line, and ends the process after --help and wrong usage.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job ignores SIGINT
        signal.signal(signal.SIGINT, _end_at_once)
    read_command_line()


def happened() -> bool:
    """Whether Ctrl-C was pressed inside the last ``raising``."""
    return _state.happened


@contextmanager
def raising() -> Iterator[None]:
    """Within the context, Ctrl-C raises KeyboardInterrupt, again and again if a library swallows it."""
    global _state  # noqa: PLW0603  the process has one state, as it has one handler
    _state = _State()
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if before not in (signal.default_int_handler, _end_at_once):
        yield  # SIGINT is ignored, or another program has set the handler
        return

    def show(lost: Any) -> None:
        """Hides a KeyboardInterrupt that Python would only print, as in a destructor: it is raised again."""
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)

    signal.signal(signal.SIGINT, _raise)
    sys.unraisablehook = show
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
        if _state.retry is not None:
            _state.retry.cancel()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C to the end of the context; also a decorator. For work that takes seconds or is about to stop."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
    if _state.waiting and not _state.held:
        _state.waiting = False
        raise KeyboardInterrupt


def _end_at_once(number: int, frame: FrameType | None) -> None:
    if not _state.happened:  # otherwise the message was printed before
        with suppress(OSError):
            os.write(2, b"interrupted\n")
    os._exit(EXIT_CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    _state.happened = True
    if _state.held:
        _state.waiting = True
        return
    if _state.retry is not None:
        _state.retry.cancel()
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    _state.retry = threading.Timer(RETRY_SECONDS, signal.pthread_kill, (main_thread, signal.SIGINT))
    _state.retry.daemon = True
    _state.retry.start()
    raise KeyboardInterrupt
