"""Grades the projects in Python by the tests of the real source."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import NOT_GRADED, RIGHT, Grade, Task, WrongAnswer
from plugins.build import PLUGINS

ROOT = PLUGINS.parent
NEEDED = ("pytest", "hypothesis")


def check(task: Task, seed: int) -> Grade:
    """Grades a project; the seed is that of the tests.

    Raises:
        WrongAnswer: a test fails.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Grade(NOT_GRADED, say("{name} is not installed: make .venv/.installed-dev", name=missing[0]))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *task.tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return grade_tests(done.stdout, done.stderr)


def grade_tests(output: str, errors: str) -> Grade:
    """The grade from what pytest printed.

    Raises:
        WrongAnswer: a test failed.
    """
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", output)}
    blank = re.search(r"NotImplementedError: (TODO .*)", output)
    if blank:
        return Grade(NOT_GRADED, say("its tests call what is still blank: {blank}", blank=blank[1]))
    if counts.get("passed") and not counts.get("failed") and not counts.get("error"):
        return Grade(RIGHT, say("{count} tests passed", count=counts["passed"]))
    failed = re.search(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)
    reason = re.search(r"^E +(.*)$", output, re.MULTILINE)
    last = next(iter(reversed((output + errors).strip().splitlines())), say("pytest printed nothing"))
    found = failed[1] if failed else last
    raise WrongAnswer(f"{found}: {reason[1]}" if reason and reason[1] not in found else found)
