"""What the graders share: a comparison that says what differs and why, and what becomes of a student's exceptions."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from bert_trt.console import UserError
from bert_trt.exercise.tasks import NOT_GRADED, WRONG, Grade, Task, WrongAnswer

Mistakes = Mapping[str, Callable[[], torch.Tensor]]  # by the likely cause: the answer that this mistake gives
LIKENESS = 10.0  # an answer is that of a mistake if it is so many tolerances from it at most


def check_task(task: Task, seed: int, folder: Path) -> Grade:
    """Grades one task in this process.

    Args:
        task: the task.
        seed: decides shapes, weights and sentences.
        folder: the work folder, whose files are the ones imported.
    """
    start = time.monotonic()
    try:
        grade = importlib.import_module(f"bert_trt.exercise.{task.grader}").check(task, seed)
    except Exception as error:  # whatever the student's code raises is an answer
        grade = _grade_of(error, task, folder)
    return replace(grade, seconds=time.monotonic() - start)


def _grade_of(error: Exception, task: Task, folder: Path) -> Grade:
    if isinstance(error, WrongAnswer):
        return Grade(WRONG, error.found, error.cause)
    if isinstance(error, SyntaxError) and error.filename:
        name, reason = _name(error.filename, folder), f"line {error.lineno}: {error.msg}"
        status = WRONG if name in task.files else NOT_GRADED
        return Grade(status, f"{name}, {reason}", "a syntax error: Python cannot read the file")
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{_name(frame.filename, folder)}, line {frame.lineno}" for frame in frames]
    own = [place for place in places if place.rpartition(",")[0] in task.files]
    if isinstance(error, NotImplementedError):
        return Grade(NOT_GRADED, f"its code calls what is still blank: {places[-1]}: {error}")
    where = f"{own[-1]}: " if own else ""
    if isinstance(error, UserError):
        return Grade(WRONG, f"{where}{error}")
    is_theirs = bool(own) and "bert_trt/exercise" not in places[-1]
    status = WRONG if own or is_theirs else NOT_GRADED
    return Grade(status, f"{where or places[-1] + ': '}{type(error).__name__}: {error}")


def _name(path: str, folder: Path) -> str:
    resolved = Path(path).resolve()
    return resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else resolved.name


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest expected value; NaN where anything is not finite."""
    if not found.isfinite().all():
        return float("nan")
    largest = expected.abs().max().clamp(min=1e-30) if expected.numel() else torch.ones(())
    return float((found.double() - expected.double()).abs().max() / largest) if expected.numel() else 0.0


def is_close(found: torch.Tensor, expected: torch.Tensor, allowed: float) -> bool:
    """Whether the shapes are equal, and the largest difference, relative to the largest value, is at most this."""
    return found.shape == expected.shape and relative_error(found, expected) <= allowed


def compare(
    name: str,
    found: torch.Tensor,
    expected: torch.Tensor,
    allowed: float,
    mistakes: Mistakes,
    given: str,
    otherwise: str = "",
) -> None:
    """Compares a tensor with its reference.

    Args:
        name: the tensor's name.
        found: what the student's network or kernel computed.
        expected: the reference, fp64.
        allowed: the largest difference, relative to the largest expected value.
        mistakes: the answers of typical mistakes.
        given: the inputs, for the message.
        otherwise: the likely cause where no mistake gives this answer.

    Raises:
        WrongAnswer: they differ; it names the first element that does, and the likely cause.
    """
    found = found.detach().cpu().double()
    if is_close(found, expected, allowed):
        return
    cause = likely_cause(found, expected, allowed, mistakes) or otherwise
    if found.shape != expected.shape:
        raise WrongAnswer(f"{name} is {list(found.shape)}, expected {list(expected.shape)}; {given}", cause)
    limit = allowed * float(expected.abs().max().clamp(min=1e-30))
    bad = ~((found - expected).abs() <= limit)  # NaN is not less
    first = tuple(int(number) for number in bad.nonzero()[0])
    raise WrongAnswer(
        f"{name} {list(found.shape)} differs in {int(bad.sum())} of {bad.numel()} elements, first in "
        f"{list(first)}: {float(found[first]):.7g}, expected {float(expected[first]):.7g} "
        f"(error {relative_error(found, expected):.1e} of the largest value, allowed {allowed:.1e}); {given}",
        cause or ("a value is not finite" if not found.isfinite().all() else ""),
    )


def likely_cause(found: torch.Tensor, expected: torch.Tensor, allowed: float, mistakes: Mistakes) -> str:
    """The mistake whose answer is nearest, if it is near enough and not right itself; empty if there is none."""
    causes: list[tuple[float, str]] = []
    for cause, answer in mistakes.items():
        mistaken = answer()
        if mistaken.shape != found.shape or is_close(mistaken, expected, LIKENESS * allowed):
            continue
        if is_close(found, mistaken, LIKENESS * allowed):
            causes.append((relative_error(found, mistaken), cause))
    return min(causes)[1] if causes else ""


def first_answer(checks: Iterable[Callable[[], None]]) -> None:
    """Makes checks and raises the first finding, with the first likely cause that any of them knows.

    One check may show best that something is wrong, and another one why: a transposed weight that is not square is
    refused by TensorRT, and a square one gives the answer that tells the mistake.

    Raises:
        WrongAnswer: a check found something.
    """
    first = ""
    for check in checks:
        try:
            check()
        except (WrongAnswer, UserError) as error:
            first = first or str(error)
            if isinstance(error, WrongAnswer) and error.cause:
                raise WrongAnswer(first, error.cause) from error
    if first:
        raise WrongAnswer(first)
