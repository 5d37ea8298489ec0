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
from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import NOT_GRADED, WRONG, Grade, Task, WrongAnswer
from plugins.build import BuildError

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
        name = _name(error.filename, folder)
        status = WRONG if name in task.files else NOT_GRADED
        found = say("{file}, line {line}: {error}", file=name, line=error.lineno, error=error.msg)
        return Grade(status, found, say("a syntax error: Python cannot read the file"))
    frames = traceback.extract_tb(error.__traceback__)
    names = [_name(frame.filename, folder) for frame in frames]
    places = [
        say("{file}, line {line}", file=name, line=frame.lineno) for name, frame in zip(names, frames, strict=True)
    ]
    own = [place for name, place in zip(names, places, strict=True) if name in task.files]
    if isinstance(error, NotImplementedError):
        return Grade(
            NOT_GRADED, say("its code calls what is still blank: {place}: {error}", place=places[-1], error=error)
        )
    where = f"{own[-1]}: " if own else ""
    if isinstance(error, BuildError):
        return Grade(NOT_GRADED, str(error))
    if isinstance(error, UserError):
        return Grade(WRONG, f"{where}{error}")
    return Grade(WRONG if own else NOT_GRADED, f"{where or places[-1] + ': '}{type(error).__name__}: {error}")


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
        raise WrongAnswer(
            say(
                "{name} is {shape}, expected {wanted_shape}; {given}",
                name=name,
                shape=list(found.shape),
                wanted_shape=list(expected.shape),
                given=given,
            ),
            cause,
        )
    limit = allowed * float(expected.abs().max().clamp(min=1e-30))
    bad = ~((found - expected).abs() <= limit)  # NaN is not less
    first = tuple(int(number) for number in bad.nonzero()[0])
    raise WrongAnswer(
        say(
            "{name} {shape} differs in {bad} of {count} elements, first in {first}: {found:.7g}, "
            "expected {wanted:.7g} (error {error:.1e} of the largest value, allowed {allowed:.1e}); "
            "{given}",
            name=name,
            shape=list(found.shape),
            bad=int(bad.sum()),
            count=bad.numel(),
            first=list(first),
            found=float(found[first]),
            wanted=float(expected[first]),
            error=relative_error(found, expected),
            allowed=allowed,
            given=given,
        ),
        cause or (say("a value is not finite") if not found.isfinite().all() else ""),
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
