"""Grades the projects by the tests of the real source; their kernels are compiled first."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bert_trt.exercise.compiler_errors import run_compiler
from bert_trt.exercise.tasks import COMPILED, NOT_GRADED, RIGHT, Grade, Task, WrongAnswer
from plugins import build
from plugins.build import PLUGINS

ROOT = PLUGINS.parent
NEEDED = ("pytest", "hypothesis")


def check(task: Task, seed: int) -> Grade:
    """Grades a project; the seed is that of the tests.

    Raises:
        WrongAnswer: a kernel does not compile, or a test fails.
    """
    kernels = [name for name in task.files if name.endswith(".cu")]
    for name in kernels:
        grade = compile_file(ROOT / name)
        if grade is not None:
            return grade
    if kernels and not torch.cuda.is_available():
        return Grade(COMPILED, "compiled without an error; not run: needs an NVIDIA GPU and PyTorch for CUDA")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Grade(NOT_GRADED, f"{missing[0]} is not installed: make .venv/.installed-dev")
    variables = dict(os.environ)
    if kernels:  # the library must be built from the student's sources
        variables.pop(build.BUILD_DIR_VARIABLE, None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *task.tests]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    return grade_tests(done.stdout, done.stderr)


def compile_file(path: Path) -> Grade | None:
    """Compiles a file with kernels. Returns a grade only if there is no compiler.

    Raises:
        WrongAnswer: it does not compile.
    """
    compiler = build.find_compiler()
    if compiler is None:
        return Grade(NOT_GRADED, f"no CUDA compiler (nvcc) is installed: pip install -r {build.REQUIREMENTS}")
    architecture = build.native_architectures().split(",")[0]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(compiler.nvcc), "-std=c++17", "-c", f"-I{PLUGINS}",
            "-gencode", f"arch=compute_{architecture},code=sm_{architecture}",
            str(path), "-o", str(Path(folder) / "kernel.o"),
        ]  # fmt: skip
        run_compiler(command, compiler)
    return None


def grade_tests(output: str, errors: str) -> Grade:
    """The grade from what pytest printed.

    Raises:
        WrongAnswer: a test failed.
    """
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", output)}
    blank = re.search(r"NotImplementedError: (TODO .*)", output)
    if blank:
        return Grade(NOT_GRADED, f"its tests call what is still blank: {blank[1]}")
    if counts.get("passed") and not counts.get("failed") and not counts.get("error"):
        return Grade(RIGHT, f"{counts['passed']} tests passed")
    failed = re.search(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)
    reason = re.search(r"^E +(.*)$", output, re.MULTILINE)
    last = next(iter(reversed((output + errors).strip().splitlines())), "pytest printed nothing")
    found = failed[1] if failed else last
    raise WrongAnswer(f"{found}: {reason[1]}" if reason and reason[1] not in found else found)
