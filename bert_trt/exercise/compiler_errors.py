"""Compiles a kernel, and finds the first error in what a CUDA or C++ compiler printed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import WrongAnswer
from plugins.build import PLUGINS, BuildError, Compiler

COMPILER_ERROR = re.compile(
    r"^(?P<file>[^\s(:]+)[(:](?P<line>\d+)(?:\)|:\d+:|:) ?:? ?(?:fatal |catastrophic )?error ?:? ?(?P<text>.*)$",
    re.MULTILINE,
)


def first_compiler_error(text: str) -> str:
    """The first error in a compiler's output, with file and line; empty if it has none about the source."""
    match = COMPILER_ERROR.search(text)
    if match is None:
        return next((line for line in text.splitlines() if "error" in line.lower() or "undefined" in line), "")
    path = Path(match["file"])
    name = path.relative_to(PLUGINS.parent).as_posix() if path.is_relative_to(PLUGINS.parent) else path.name
    return say("{file}, line {line}: {error}", file=name, line=match["line"], error=match["text"])


def run_compiler(command: Sequence[str], compiler: Compiler) -> None:
    """Runs a compiler's command line.

    Raises:
        WrongAnswer: it fails; the text is the first error.
        BuildError: it fails for another reason than the source, such as a missing C++ compiler.
    """
    done = subprocess.run(
        command,
        env=os.environ | compiler.environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    text = done.stdout + done.stderr
    found = first_compiler_error(text)
    if found:
        raise WrongAnswer(found, say("the kernel does not compile"))
    reason = " ".join(text.split()) or say("it ended with code {code}", code=done.returncode)
    raise BuildError(say("the CUDA compiler {path} does not work: {reason}", path=compiler.nvcc, reason=reason))
