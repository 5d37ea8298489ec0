"""The grading of the kernel tasks. Without a GPU, PyTorch imitates kernels: the right ones, and typical mistakes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plugin_runs_for_tests import needs_gpu

from bert_trt.exercise import kernel_library, kernel_tasks
from bert_trt.exercise.checks import check_task
from bert_trt.exercise.compiler_errors import first_compiler_error
from bert_trt.exercise.kernel_library import sanitizer_finding
from bert_trt.exercise.kernel_tasks import KERNELS, Rows, draw_rows, judge
from bert_trt.exercise.tasks import BY_NUMBER, COMPILED, NOT_GRADED, RIGHT, WRONG, WrongAnswer
from plugins import build

ROOT = Path(__file__).parent.parent
HALVES = (torch.float16, torch.bfloat16)


def kernel(  # a layer norm in fp32 as a kernel computes it, with one part changed
    correction: int = 0,
    sets_epsilon: bool = True,
    squares: bool = False,
    outside: bool = False,
    in_type: bool = False,
    rows: slice = slice(None),
    columns: int | None = None,
    has_beta: bool = True,
    empty: bool = False,
    corrects: bool = False,
) -> Callable[..., torch.Tensor]:
    def run(x, gamma, beta, epsilon):
        y = torch.full_like(x, math.nan)
        if empty:
            return y
        wide = x if in_type else x.float()
        seen = wide if columns is None else wide * (torch.arange(x.shape[1]) % 256 < columns)
        mean = seen.sum(-1, keepdim=True) / x.shape[1]
        if squares:
            variance = (seen * seen).sum(-1, keepdim=True) / x.shape[1] - mean * mean
        else:
            deviation = wide - mean if columns is None else (wide - mean) * (torch.arange(x.shape[1]) % 256 < columns)
            variance = (deviation * deviation).sum(-1, keepdim=True) / (x.shape[1] - correction)
            if corrects:
                shift = deviation.sum(-1, keepdim=True) / x.shape[1]
                mean, variance = mean + shift, variance - shift * shift
        used = (epsilon if sets_epsilon else 0.0) if not outside else 0.0
        root = (variance.clamp(min=0) + used).sqrt() + (epsilon if outside else 0.0)
        z = (wide - mean) / root * gamma.float() + (beta.float() if has_beta else 0.0)
        y[rows] = z.to(x.dtype)[rows]
        return y

    return run


@pytest.mark.parametrize("number", KERNELS)
def test_a_right_kernel_is_right(number):
    for seed in range(6):
        judge(kernel(), KERNELS[number], np.random.default_rng(seed), "cpu")


MISTAKES = {
    "sample variance": (8, kernel(correction=1), "sample variance"),
    "no epsilon": (8, kernel(sets_epsilon=False), "epsilon"),
    "epsilon outside": (8, kernel(outside=True), "outside of the root"),
    "E[x²] − mean²": (8, kernel(squares=True), "cancels"),
    "no beta": (8, kernel(has_beta=False), "beta is missing"),
    "empty": (8, kernel(empty=True), "the kernel is empty"),
    "every other row": (8, kernel(rows=slice(0, None, 2)), "compare the grid with the number of rows"),
    "one warp": (8, kernel(columns=32), "only the first warp's part of each row"),
    "one warp, in both sums": (8, kernel(columns=32, corrects=True), "only the first warp's part of both sums"),
    "fp16 sums": (9, kernel(in_type=True), "add up in float"),
    "fp16 without beta": (9, kernel(has_beta=False), "beta is missing"),
    "fast: empty": (10, kernel(empty=True), "the kernel is empty"),
    "fast: sample variance": (10, kernel(correction=1), "sample variance"),
}


@pytest.mark.parametrize("title", MISTAKES)
def test_a_mistake_is_wrong_and_its_cause_is_named(title):
    number, run, cause = MISTAKES[title]
    for seed in range(4):
        with pytest.raises(WrongAnswer) as raised:
            judge(run, KERNELS[number], np.random.default_rng(seed), "cpu")
        assert cause in raised.value.cause, raised.value.found
        assert "x [" in raised.value.found


def test_the_rows_hold_what_they_say():
    rng = np.random.default_rng(0)
    drawn = {rows.title: rows for rows in draw_rows(rng, 5, 64, torch.float32)}
    assert drawn["constant rows"].x.var(-1, correction=0).max() == 0
    near = drawn["variance near epsilon"]
    assert 0.2 * near.epsilon < near.x.var() < 5 * near.epsilon
    assert all(isinstance(rows, Rows) and rows.x.isfinite().all() for rows in drawn.values())


# --- what compiler and sanitizer say --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            'nvcc warning : x\n/a/kernel.cu(95): error: identifier "mean" is undefined\n x\nb.cu(99): error: b\n',
            'kernel.cu, line 95: identifier "mean" is undefined',
        ),
        ("/a/b/kernel.h:12:5: error: expected ';'\n", "kernel.h, line 12: expected ';'"),
        ("/a/b/kernel.h:12:10: fatal error: no.h: No such file\n", "kernel.h, line 12: no.h: No such file"),
        (
            "ptxas error   : Entry function uses too much shared data\n",
            "ptxas error   : Entry function uses too much",
        ),
        ("x.o: undefined reference to `bert::f()'\n", "undefined reference to `bert::f()'"),
    ],
)
def test_the_first_error_of_the_compiler(text, found):
    assert found in first_compiler_error(text)


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void bert::<unnamed>::layerNormFusedKernel<float, float>(T1 *)+0x4a0 in layer_norm_fused.cu:118
=========     by thread (199,0,0) in block (6,0,0)
=========     Access to 0x7f1f2e201180 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f1f2e200000 of size 4480 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
========= ERROR SUMMARY: 1 error
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at layerNormFusedKernel+0x1b0 in layer_norm_fused.cu:50
=========     and Read access at layerNormFusedKernel+0x1f0 in layer_norm_fused.cu:54 [24 hazards]
"""


def test_the_sanitizers_findings_in_words():
    words, cause = sanitizer_finding(MEMCHECK)
    assert words == (
        "thread (199,0,0) of block (6,0,0) writes 4 bytes out of bounds, in global memory, 1 bytes after the nearest "
        "allocation at 0x7f1f2e200000 of size 4480 bytes, in layerNormFusedKernel, layer_norm_fused.cu line 118"
    )
    assert "check the loop's limit" in cause
    words, cause = sanitizer_finding(RACECHECK)
    assert "without a barrier between" in words
    assert "__syncthreads() is missing" in cause
    assert sanitizer_finding("========= ERROR SUMMARY: 0 errors\n") == ("", "")


# --- times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yours", "status"), [(3.3, RIGHT), (14.1, WRONG), (6.0, WRONG), (math.nan, WRONG)]
)  # basic 18.9, torch.compile 4.4
def test_an_optimised_kernel_is_measured_against_the_basic_one_and_torch_compile(yours, status):
    times = {"yours": yours, "basic": 18.9, "torch.compile": 4.4}
    answer = kernel_tasks.grade_times(times, "a GPU")
    assert answer.status == status
    assert "basic 18.90" in answer.found
    assert answer.measured["microseconds"] == times
    assert ("not optimised" in answer.cause) == (status == WRONG)


# --- real kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(build.find_compiler() is None, reason="needs a CUDA compiler")
def test_a_kernel_without_a_compiler_or_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_tasks.check(BY_NUMBER[8], 0).status == COMPILED
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    assert "no CUDA compiler" in kernel_tasks.check(BY_NUMBER[8], 0).found


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("exit 1", "it ended with code 1"),
        (
            "echo gcc: not found; echo nvcc fatal: Failed to preprocess; exit 2",
            "gcc: not found nvcc fatal: Failed to",
        ),
    ],
)
def test_a_compiler_that_does_not_work_is_no_mistake_of_the_kernel(program, reason, tmp_path, monkeypatch):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{program}\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(kernel_library, "BUILD", tmp_path / "build")
    monkeypatch.setattr(build, "find_compiler", lambda: build.Compiler(nvcc, {}))
    answer = check_task(BY_NUMBER[8], 0, ROOT)
    assert answer.status == NOT_GRADED
    assert answer.found.startswith(f"the CUDA compiler {nvcc} does not work: {reason}")


@needs_gpu
@pytest.mark.parametrize("number", KERNELS)
def test_the_solution_on_a_gpu(number):
    answer = kernel_tasks.check(BY_NUMBER[number], 0)
    assert answer.status == RIGHT, answer


FUSED, FAST = "layer_norm/layer_norm_fused.cu", "layer_norm/layer_norm_fast.cu"
STORE = "i < hidden; i += kBLOCK)\n        {\n            yRow"
CHANGES = {  # of a solution: task, file, what is there, what it becomes, a part of the finding or of the cause
    "sample variance": (8, FUSED, "Scratch), width, epsilon", "Scratch), Width{hidden - 1}, epsilon",
                        "sample variance"),
    "beyond the row": (8, FUSED, STORE, STORE.replace("<", "<="), "out of bounds"),
    "no barrier": (8, FUSED, "    __syncthreads();\n    value = scratch[0];", "    value = scratch[0];", "barrier"),
    "the sum of one warp": (8, FUSED, "warp < kWARPS", "warp < 1", "first warp"),
    "only the first row": (8, FUSED, "row < rows; row += gridDim.x", "row < 1; row += gridDim.x", "not written"),
    "always fp32": (9, FUSED, "return dispatchTypes(arguments.type, arguments.weightType,",
                    "return dispatchTypes(ElementType::kFLOAT, ElementType::kFLOAT,", ""),
    "squares in fp16": (9, FUSED, "sums.y += deviation * deviation;",
                        "sums.y = toFloat(fromFloat<T>(sums.y + deviation * deviation));", "add up in float"),
    "slow": (10, FAST, "    waitForPreviousKernel();", "    waitForPreviousKernel();\n    __nanosleep(50000);",
             "not optimised"),
    "empty": (10, FAST, "    waitForPreviousKernel();", "    waitForPreviousKernel();\n    return;", "is empty"),
    "no wait": (10, FAST, "    waitForPreviousKernel();", "", "waitForPreviousKernel() is missing"),
}  # fmt: skip


@needs_gpu
@pytest.mark.parametrize("title", CHANGES)
def test_a_mistake_on_a_gpu(title, tmp_path, monkeypatch):
    number, source, before, after, cause = CHANGES[title]
    plugins = Path(shutil.copytree(ROOT / "plugins", tmp_path / "plugins", ignore=shutil.ignore_patterns("build")))
    text = (plugins / source).read_text()
    assert before in text
    (plugins / source).write_text(text.replace(before, after))
    monkeypatch.setattr(kernel_library, "PLUGINS", plugins)
    monkeypatch.setattr(kernel_library, "BUILD", tmp_path / "build")
    answer = check_task(BY_NUMBER[number], 0, ROOT)
    assert answer.status == WRONG
    assert cause in answer.found + answer.cause, answer
