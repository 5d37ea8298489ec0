"""Ctrl-C: a script stops, says so, and exits with 130, in whatever phase it is and without half a file.

* ``begin_script``: while a script still imports its libraries, Ctrl-C ends the process on the spot. A
  KeyboardInterrupt would come as a traceback, or as an ImportError of the library in the midst of which it struck.
* ``raising``, around a script's work: Ctrl-C raises KeyboardInterrupt, and who writes a file takes it away. Where a
  library swallows the exception, it is raised again.
* ``uninterrupted``: what is inside is done to its end, and then the exception is raised. For files that belong
  together, and for calls of TensorRT: the exception would be raised in the logger that it calls back, or on the way
  there, and TensorRT's bindings print it and go on.

Needs the standard library alone, so that it is there before anything else.
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

EXIT_CODE = 130  # what shells make of SIGINT: 128 + 2
RETRY_SECONDS = 1.0  # by then an exception that nobody swallowed has ended the work


class _State:
    """Of this process; Python runs signal handlers in the main thread alone."""

    def __init__(self) -> None:
        self.happened = False
        self.waiting = False  # for the end of ``uninterrupted``
        self.held = 0
        self.retry: threading.Timer | None = None


_state = _State()


def begin_script(read_command_line: Callable[[], object]) -> None:
    """Answers --help, wrong usage and Ctrl-C before a script imports anything that takes long.

    Args:
        read_command_line: ends the process after --help and wrong usage.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise ignored, as for a background job
        signal.signal(signal.SIGINT, _end_at_once)
    read_command_line()


def happened() -> bool:
    """Whether Ctrl-C was pressed inside the last ``raising``."""
    return _state.happened


@contextmanager
def raising() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, and nothing swallows it."""
    global _state  # noqa: PLW0603  one for the process, as there is one handler
    _state = _State()
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if before not in (signal.default_int_handler, _end_at_once):
        yield  # ignored, or somebody else's
        return

    def show(lost: Any) -> None:
        """An exception in a destructor, for example, is only printed; this one is raised again."""
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
    """Inside, Ctrl-C waits; also a decorator. For what takes no more than seconds, or has been told to stop."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
    if _state.waiting and not _state.held:
        _state.waiting = False
        raise KeyboardInterrupt


def _end_at_once(number: int, frame: FrameType | None) -> None:
    if not _state.happened:  # otherwise it has been said
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
