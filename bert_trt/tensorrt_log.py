"""TensorRT's messages: the one logger of a process, and the errors that an exception carries to the user."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import IO, Any

from bert_trt.console import UserError
from bert_trt.tensorrt_product import trt

# --- what TensorRT calls ----------------------------------------------------------------------------------

_failures: list[BaseException] = []  # of methods that TensorRT has called; see ``raise_failure``


def called_by_tensorrt(answer: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a method that TensorRT calls, from any of its threads.

    The bindings print an exception and go on. So it is kept for ``raise_failure``, TensorRT gets ``answer``, and the
    next step of a build is the last one.
    """

    def decorate(method: Callable[..., Any]) -> Any:
        @functools.wraps(method)
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except BaseException as error:  # raised again by ``raise_failure``
                _failures.append(error)
                return answer

        return call

    return decorate


def has_failed() -> bool:
    """Whether a method that TensorRT called has raised an exception."""
    return bool(_failures)


def raise_failure() -> None:
    """Raises the first exception of a method that TensorRT called; to be called when TensorRT has returned."""
    if _failures:
        first = _failures[0]
        _failures.clear()
        raise first


# --- what TensorRT says -----------------------------------------------------------------------------------


class _ProcessLogger(trt.ILogger):
    """The one logger that TensorRT is ever given.

    TensorRT keeps the first logger of a process for good, for itself and for plugins, and calls it after the
    builder that it came with is gone: a logger of its own for every build ends in a crash.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.listener: TrtLog | None = None

    @called_by_tensorrt()
    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if self.listener is not None:
            self.listener.hear(severity, msg)


LOGGER = _ProcessLogger()


class TrtLog:
    """What TensorRT says from now on, until another TrtLog is made: what runs inside somebody's job should take
    ``TrtLog.current``. Keeps errors, so that an exception can carry TensorRT's own message.

    Args:
        verbose_file: where every message is written as a line; None keeps errors only.
    """

    NO_GPU_NOISE = "CUDA driver version is insufficient"  # said beside other errors where there is no GPU

    def __init__(self, verbose_file: IO[bytes] | None = None) -> None:
        self.verbose_file = verbose_file
        self.errors: list[str] = []
        LOGGER.listener = self
        _failures.clear()  # of work that has ended

    @staticmethod
    def current() -> TrtLog:
        """The log that is listening, so that a verbose log goes on; a new one where none is."""
        return LOGGER.listener or TrtLog()

    def hear(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Takes one message."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(msg.strip())
        if self.verbose_file is not None and not self.verbose_file.closed:
            try:
                self.verbose_file.write(f"[{str(severity).rpartition('.')[2]}] {msg}\n".encode())
            except OSError as error:
                name, self.verbose_file = self.verbose_file.name, None
                raise UserError(
                    f"cannot write the log {name}: {error.strerror or error}; build without --verbose"
                ) from error

    def take_errors(self) -> str:
        """The errors since the last call as one string, without those that only say that there is no GPU."""
        told = [message for message in self.errors if self.NO_GPU_NOISE not in message] or self.errors
        self.errors = []
        return " | ".join(dict.fromkeys(told)) or "TensorRT gave no message"
