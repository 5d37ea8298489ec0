"""TensorRT's messages: ``LOGGER`` is the process's only logger, ``TrtLog`` collects the errors for exceptions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import IO, Any

from bert_trt.console import UserError
from bert_trt.tensorrt_product import trt

# --- methods that TensorRT calls --------------------------------------------------------------------------

_failures: list[BaseException] = []  # exceptions of methods that TensorRT called; see ``raise_failure``


def called_by_tensorrt(answer: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a method that TensorRT calls, from any of its threads.

    The bindings print an exception and continue. So the decorator stores it for ``raise_failure`` and returns
    ``answer`` to TensorRT, and the progress monitor stops the build at its next step.
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
    """Raises the first exception of a method that TensorRT called. Call it after TensorRT has returned."""
    if _failures:
        first = _failures[0]
        _failures.clear()
        raise first


# --- the logger -------------------------------------------------------------------------------------------


class _ProcessLogger(trt.ILogger):
    """The only logger that TensorRT gets in this process.

    TensorRT keeps the first logger of a process forever, for itself and for plugins, and calls it even after the
    builder that was created with it is gone. A new logger for every build would therefore end in a crash.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.listener: TrtLog | None = None

    @called_by_tensorrt()
    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if self.listener is not None:
            self.listener.receive(severity, msg)


LOGGER = _ProcessLogger()


class TrtLog:
    """Receives TensorRT's messages until another TrtLog is created, and keeps errors for the text of exceptions.

    A function that runs as part of a caller's work uses ``TrtLog.current``, so that the caller's log continues.

    Args:
        verbose_file: a file to which every message is written as a line; None keeps errors only.
    """

    NO_GPU_NOISE = "CUDA driver version is insufficient"  # comes with other errors where there is no GPU

    def __init__(self, verbose_file: IO[bytes] | None = None) -> None:
        self.verbose_file = verbose_file
        self.errors: list[str] = []
        LOGGER.listener = self
        _failures.clear()  # failures of earlier work

    @staticmethod
    def current() -> TrtLog:
        """The log that receives messages now; a new one if there is none."""
        return LOGGER.listener or TrtLog()

    def receive(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Receives one message."""
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
        """The errors since the last call as one string. Errors that only say that there is no GPU are left out if
        there are others."""
        messages = [message for message in self.errors if self.NO_GPU_NOISE not in message] or self.errors
        self.errors = []
        return " | ".join(dict.fromkeys(messages)) or "TensorRT gave no message"
