"""Grades tasks 8 to 10, the LayerNorm kernels: compiles each file by itself, and runs it on a CUDA GPU.

A kernel's file is compiled together with the ``*_functions.cu`` beside it into a library with a C function. So a
kernel that does not compile leaves the others alone. Without a GPU nothing more can be said. On a GPU:

1. compute-sanitizer, where it is installed, runs the kernel on small tensors: accesses out of bounds, races.
2. The kernel runs on random rows and hard ones, and is compared with fp64. Guards beside each tensor show writes.
3. A kernel that is launched while the one before it still runs must wait for it.
4. The optimised kernel is timed beside the basic one and torch.compile, in one process.

sum_tasks.py grades the kernels of tasks 13 and 14 in the same way.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bert_trt.exercise.checks import Mistakes, compare, first_answer
from bert_trt.exercise.kernel_library import (
    BF16,
    ELEMENT_TYPES,
    FLOAT,
    HALF,
    ROUNDING,
    Kernel,
    KernelLibrary,
    compile_kernel,
    prepare,
    type_name,
)
from bert_trt.exercise.layer_norms import cancelled, layer_norm, layer_norm_mistakes
from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import RIGHT, WRONG, Grade, Task
from plugins import build

STATISTICS_BYTES = 12  # of the basic kernel's workspace, for each row
TIMED_ROWS, TIMED_WIDTH = 4096, 768
# The measured ratios of the kernel in this project are 5.8 and 1.3 on an H200 (docs/kernels/layer_norm.md).
LEAST_OF_BASIC, LEAST_OF_COMPILED = 3.0, 0.9

ANY_WIDTH = (33, 200, 384, 500, 768, 769, 1023, 1024, 2048)
VECTOR_WIDTHS = (64, 200, 384, 512, 768, 1024, 1536, 2048, 4096)  # rows of vectors of 16 bytes
BASIC = Kernel("layer_norm/layer_norm_basic.cu", "launchLayerNormBasic", ((FLOAT, FLOAT),), ANY_WIDTH)
KERNELS = {
    8: Kernel("layer_norm/layer_norm_fused.cu", "launchLayerNormFused", ((FLOAT, FLOAT),), ANY_WIDTH),
    9: Kernel(
        "layer_norm/layer_norm_fused.cu",
        "launchLayerNormFused",
        ((HALF, HALF), (HALF, FLOAT), (BF16, BF16), (FLOAT, FLOAT)),
        ANY_WIDTH,
    ),
    10: Kernel(  # the launcher leaves other widths to the fused kernel
        "layer_norm/layer_norm_fast.cu",
        "launchLayerNormFast",
        ((FLOAT, FLOAT), (HALF, HALF), (HALF, FLOAT), (BF16, BF16)),
        VECTOR_WIDTHS,
    ),
}


def check(task: Task, seed: int) -> Grade:
    """Grades a kernel.

    Raises:
        WrongAnswer: it does not compile, or what it computes is wrong.
    """
    kernel = KERNELS[task.number]
    library = prepare(kernel)
    if isinstance(library, Grade):
        return library
    launcher = Launcher(library)
    judge(launcher, kernel, np.random.default_rng([seed, task.number]))
    if task.number != 10:
        return Grade(RIGHT)
    launcher.check_waits_for_x()
    return time_kernel(launcher)


class Arguments(ctypes.Structure):
    """``LayerNormArguments`` of layer_norm_kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "gamma", "beta", "y", "workspace")),
        ("rows", ctypes.c_int64),
        ("hidden", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("type", ctypes.c_int32),
        ("weight_type", ctypes.c_int32),
    )


class Launcher(KernelLibrary):
    """Calls a layer norm's library."""

    def __call__(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Runs the kernel on CUDA tensors between guards.

        Raises:
            WrongAnswer: CUDA reports an error, or something was written beside a tensor.
        """
        types = (ELEMENT_TYPES[x.dtype], ELEMENT_TYPES[gamma.dtype])
        y, _ = self.run(
            [x, gamma, beta],
            [(tuple(x.shape), x.dtype), ((x.shape[0] * STATISTICS_BYTES,), torch.int8)],
            lambda read, written: Arguments(*read, *written, x.shape[0], x.shape[1], epsilon, *types),
        )
        return y

    def check_waits_for_x(self) -> None:
        """Checks that the kernel waits for the one in front of it.

        Raises:
            WrongAnswer: it does not.
        """
        x, values, y = (torch.randn(64, TIMED_WIDTH, device="cuda", dtype=HALF) for _ in range(3))
        gamma, beta = (torch.randn(TIMED_WIDTH, device="cuda", dtype=HALF) for _ in range(2))
        addresses = [tensor.data_ptr() for tensor in (x, gamma, beta, y, y)]
        self.check_waits(x, values, y, Arguments(*addresses, 64, TIMED_WIDTH, 1e-12, 1, 1))


Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """Rows to normalise.

    Attributes:
        title: what is special about them.
        x: (rows, width), on the CPU.
        epsilon: the epsilon to normalise them with.
        cause: the likely cause where ordinary rows are right and these are wrong; empty for ordinary rows.
        factor: how much more than the usual rounding errors is allowed.
        shows_mistakes: whether the answer may be that of a typical mistake.
    """

    title: str
    x: torch.Tensor
    epsilon: float
    cause: str = ""
    factor: float = 1.0
    shows_mistakes: bool = False


def draw_rows(rng: np.random.Generator, rows: int, width: int, dtype: torch.dtype) -> Iterator[Rows]:
    """Random rows, ordinary ones first, then hard ones."""
    x = torch.from_numpy(rng.standard_normal((rows, width)).astype(np.float32))
    epsilon = float(rng.choice([1e-12, 3e-6, 4e-4])) if dtype == FLOAT else 1e-5
    yield Rows(say("ordinary rows"), (x + 0.5).to(dtype), epsilon, shows_mistakes=True)
    near = max(epsilon, 1e-6)
    asked = say("epsilon is not what was asked for")
    yield Rows(say("variance near epsilon"), (x * math.sqrt(near)).to(dtype), near, asked, shows_mistakes=True)
    if dtype == FLOAT:
        yield Rows(say("mean 100, deviation 1"), x + 100, epsilon, cancelled(), 10)
    else:
        overflow = say("sums or squares overflow fp16: add up in float")
        yield Rows(say("values of thousands"), (2000 * x + 4000).clamp(-2e4, 2e4).to(dtype), epsilon, overflow)
    negative = say("the variance of a constant row is 0, and must not become negative by rounding")
    yield Rows(say("constant rows"), x[:, :1].expand(rows, width).to(dtype).contiguous(), 1e-2, negative, 5)


def judge(run: Run, kernel: Kernel, rng: np.random.Generator, device: str = "cuda") -> None:
    """Runs a kernel on rows from the random generator and compares it with fp64.

    Raises:
        WrongAnswer: something is wrong.
    """

    def check_types(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
        for rows in (1, int(rng.integers(2, 40)), int(rng.integers(100, 300))):
            width = int(rng.choice(kernel.widths))
            gamma = torch.from_numpy(rng.standard_normal(width).astype(np.float32) + 1).to(weight_dtype)
            beta = torch.from_numpy(rng.standard_normal(width).astype(np.float32)).to(weight_dtype)
            for drawn in draw_rows(rng, rows, width, dtype):
                found = run(drawn.x.to(device), gamma.to(device), beta.to(device), drawn.epsilon).cpu()
                _compare(found, drawn, gamma, beta)

    first_answer([lambda types=types: check_types(*types) for types in kernel.types])


def _compare(found: torch.Tensor, drawn: Rows, gamma: torch.Tensor, beta: torch.Tensor) -> None:
    x, g, b, epsilon = drawn.x.double(), gamma.double(), beta.double(), drawn.epsilon
    expected = layer_norm(x, g, b, epsilon)
    given = say(
        "{title}: x {shape} {type}, weights {weights}, epsilon {epsilon:g}",
        title=drawn.title,
        shape=list(x.shape),
        type=type_name(drawn.x.dtype),
        weights=type_name(gamma.dtype),
        epsilon=epsilon,
    )
    cause = drawn.cause
    mistakes: Mistakes = {}
    if drawn.shows_mistakes:
        mistakes = {
            why: (lambda mistaken=mistaken: mistaken(x))
            for why, mistaken in layer_norm_mistakes(g, b, epsilon).items()
        } | {
            say("only the first warp's part of each row is added up"): lambda: _one_warp(x, g, b, epsilon, False),
            say("only the first warp's part of both sums is added up"): lambda: _one_warp(x, g, b, epsilon, True),
        }
    if not cause:
        unwritten = found.isnan().any(-1)
        if unwritten.all():
            cause = say("nothing is written: the kernel is empty, or returns before it stores")
        elif unwritten.any():
            cause = say("some rows are not written: compare the grid with the number of rows")
    compare("y", found, expected, drawn.factor * ROUNDING[drawn.x.dtype], mistakes, given, cause)


def _one_warp(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float, corrects: bool
) -> torch.Tensor:
    """What comes out where a block's sum is the sum of its first warp alone, for blocks of 256 threads.

    ``corrects``: the mean is corrected by the deviations' sum, as makeStatistics does it.
    """
    width = x.shape[-1]
    taken = (torch.arange(width) % 256 < 32).double()
    mean = (x * taken).sum(-1, keepdim=True) / width
    correction = ((x - mean) * taken).sum(-1, keepdim=True) / width if corrects else 0.0
    variance = ((x - mean) ** 2 * taken).sum(-1, keepdim=True) / width - correction**2
    return (x - mean - correction) / (variance + epsilon).sqrt() * gamma + beta


# --- times --------------------------------------------------------------------------------------------------------


def time_kernel(launcher: KernelLibrary) -> Grade:
    """Times the kernel beside the basic one and torch.compile, in fp16."""
    from plugins.measure import graph_times

    compiler = build.find_compiler()
    assert compiler is not None  # it has compiled the kernel
    basic = KernelLibrary(compile_kernel(BASIC, compiler))

    x = torch.randn(TIMED_ROWS, TIMED_WIDTH, device="cuda", dtype=HALF)
    gamma, beta = (torch.randn(TIMED_WIDTH, device="cuda", dtype=HALF) for _ in range(2))
    y = torch.empty_like(x)
    workspace = torch.empty(TIMED_ROWS * STATISTICS_BYTES, dtype=torch.uint8, device="cuda")
    addresses = [tensor.data_ptr() for tensor in (x, gamma, beta, y, workspace)]
    arguments = Arguments(*addresses, TIMED_ROWS, TIMED_WIDTH, 1e-12, 1, 1)

    def launch(library: KernelLibrary) -> Callable[[], object]:
        return lambda: library.launch(arguments, torch.cuda.current_stream().cuda_stream)

    compiled: Any = torch.compile(lambda: torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, 1e-12))
    times = graph_times({"yours": launch(launcher), "basic": launch(basic), "torch.compile": compiled})
    return grade_times(times, torch.cuda.get_device_name())


def grade_times(times: dict[str, float], device: str) -> Grade:
    """Whether a right kernel is optimised.

    Args:
        times: microseconds of ``yours``, ``basic`` and ``torch.compile``, from one run.
        device: the GPU's name.
    """
    ratios = {f"{name} ÷ yours": times[name] / times["yours"] for name in ("basic", "torch.compile")}
    measured = {"device": device, "type": "fp16", "rows": TIMED_ROWS, "hidden": TIMED_WIDTH, "microseconds": times}
    found = say(
        "{rows} rows of {width} in fp16 on {device}: {yours:.2f} µs; basic {basic:.2f} µs, "
        "{of_basic:.2f} times as long; torch.compile {compiled:.2f} µs, {of_compiled:.2f} times "
        "as long",
        rows=TIMED_ROWS,
        width=TIMED_WIDTH,
        device=device,
        yours=times["yours"],
        basic=times["basic"],
        of_basic=ratios["basic ÷ yours"],
        compiled=times["torch.compile"],
        of_compiled=ratios["torch.compile ÷ yours"],
    )
    is_fast = ratios["basic ÷ yours"] >= LEAST_OF_BASIC and ratios["torch.compile ÷ yours"] >= LEAST_OF_COMPILED
    if is_fast:
        return Grade(RIGHT, found, "", measured | ratios)
    wanted = say(
        "expected at least {basic:g} and {compiled:g} times", basic=LEAST_OF_BASIC, compiled=LEAST_OF_COMPILED
    )
    cause = say("right, but not optimised: read x once, in vectors of 16 bytes, and keep the row in registers")
    return Grade(WRONG, f"{found}; {wanted}", cause, measured | ratios)
