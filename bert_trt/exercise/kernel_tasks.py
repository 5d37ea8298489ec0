"""Grades tasks 8 to 10, the LayerNorm kernels: compiles each file by itself, and runs it on a CUDA GPU.

A kernel's file is compiled together with plugins/layer_norm/layer_norm_functions.cu into a library with one C
function. So a kernel that does not compile leaves the others alone. Without a GPU nothing more can be said. On a GPU:

1. compute-sanitizer, where it is installed, runs the kernel on small tensors: accesses out of bounds, races.
2. The kernel runs on random rows and hard ones, and is compared with fp64. Guards beside each tensor show writes.
3. The optimised kernel is timed beside the basic one and torch.compile, in one process.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_trt.exercise.checks import Mistakes, compare, first_answer
from bert_trt.exercise.compiler_errors import run_compiler
from bert_trt.exercise.layer_norms import CANCELLED, layer_norm, layer_norm_mistakes
from bert_trt.exercise.tasks import COMPILED, NOT_GRADED, RIGHT, WRONG, Grade, Task, WrongAnswer
from plugins import build
from plugins.build import PLUGINS, Compiler

FUNCTIONS = "layer_norm/layer_norm_functions.cu"
BUILD = PLUGINS.parent / "build" / "exercise"
SANITIZER = "compute-sanitizer"
ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # common/element_type.h
ROUNDING = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest value
STATISTICS_BYTES = 12  # of the basic kernel's workspace, for each row
TIMED_ROWS, TIMED_WIDTH = 4096, 768
# The measured ratios of the kernel in this project are 5.8 and 1.3 on an H200 (docs/kernels/layer_norm.md).
LEAST_OF_BASIC, LEAST_OF_COMPILED = 3.0, 0.9

OUT_OF_BOUNDS = re.compile(
    r"Invalid __(?P<space>\w+)__ (?P<access>read|write) of size (?P<size>\d+) bytes?\n"
    r"=+ +at (?P<kernel>.*)\n"
    r"=+ +by thread (?P<thread>\([\d,]+\)) in block (?P<block>\([\d,]+\))\n"
    r"(?:=+ +(?P<address>(?:Address|Access) .*)\n)?(?:=+ +and is (?P<where>.*)\n)?"
)
RACE = re.compile(r"(?:Race reported between|Potential \w+ hazard).*")


@dataclass(frozen=True)
class Kernel:
    """A kernel to grade.

    Attributes:
        source: its file, in plugins/.
        launcher: its launcher.
        types: the types of x and of gamma and beta to run it with.
        widths: widths of rows to draw from.
    """

    source: str
    launcher: str
    types: tuple[tuple[torch.dtype, torch.dtype], ...]
    widths: tuple[int, ...]


FLOAT, HALF, BF16 = torch.float32, torch.float16, torch.bfloat16
ANY_WIDTH = (33, 200, 384, 500, 768, 769, 1023, 1024, 2048)
BASIC = Kernel("layer_norm/layer_norm_basic.cu", "launchLayerNormBasic", ((FLOAT, FLOAT),), ANY_WIDTH)
KERNELS = {
    8: Kernel("layer_norm/layer_norm_fused.cu", "launchLayerNormFused", ((FLOAT, FLOAT),), ANY_WIDTH),
    9: Kernel(
        "layer_norm/layer_norm_fused.cu",
        "launchLayerNormFused",
        ((HALF, HALF), (HALF, FLOAT), (BF16, BF16), (FLOAT, FLOAT)),
        ANY_WIDTH,
    ),
    10: Kernel(  # rows of vectors of 16 bytes; the launcher leaves all others to the fused kernel
        "layer_norm/layer_norm_fast.cu",
        "launchLayerNormFast",
        ((FLOAT, FLOAT), (HALF, HALF), (HALF, FLOAT), (BF16, BF16)),
        (64, 200, 384, 512, 768, 1024, 1536, 2048, 4096),
    ),
}


def check(task: Task, seed: int) -> Grade:
    """Grades a kernel.

    Raises:
        WrongAnswer: it does not compile, or what it computes is wrong.
    """
    kernel, compiler = KERNELS[task.number], build.find_compiler()
    if compiler is None:
        return Grade(NOT_GRADED, f"no CUDA compiler (nvcc) is installed: pip install -r {build.REQUIREMENTS}")
    library = compile_kernel(kernel, compiler)
    if not torch.cuda.is_available():
        return Grade(COMPILED, "compiled without an error; not run: needs an NVIDIA GPU and PyTorch for CUDA")
    sanitize(kernel, library, compiler)
    rng = np.random.default_rng([seed, task.number])
    judge(Launcher(library), kernel, rng)
    return Grade(RIGHT) if task.number != 10 else time_kernel(library, compiler)


# --- compiling --------------------------------------------------------------------------------------------------


def compile_kernel(kernel: Kernel, compiler: Compiler) -> Path:
    """Compiles a kernel's file into a library of its own, unless that was done before.

    Raises:
        WrongAnswer: it does not compile; the first error of the compiler.
    """
    architecture = build.native_architectures().split(",")[0]
    command = [
        str(compiler.nvcc), "-std=c++17", "-O3", "-lineinfo", "-shared", "-Xcompiler", "-fPIC",
        "-gencode", f"arch=compute_{architecture},code=sm_{architecture}", f"-I{PLUGINS}",
        f"-DBERT_LAUNCHER={kernel.launcher}",
        *(["-DBERT_WITHOUT_FUSED"] if kernel.launcher == "launchLayerNormFast" else []),
        str(PLUGINS / kernel.source), str(PLUGINS / FUNCTIONS),
    ]  # fmt: skip
    digest = hashlib.sha256("\0".join(command).encode())
    for path in sorted([*PLUGINS.glob("common/*"), *PLUGINS.glob("layer_norm/*")]):
        digest.update(path.name.encode() + path.read_bytes())
    library = BUILD / f"{Path(kernel.source).stem}-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")  # another task may compile the same file
    try:
        run_compiler([*command, "-o", str(unfinished)], compiler)
    except WrongAnswer:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(library)
    return library


# --- compute-sanitizer --------------------------------------------------------------------------------------------

RUN_SMALL = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
run = library.runOnSmallTensors
run.argtypes = [ctypes.c_int32, ctypes.c_int64, ctypes.c_int32]
for width in map(int, sys.argv[3:]):
    for rows in (1, 7):
        if run(int(sys.argv[2]), rows, width):
            sys.exit(1)
"""


def sanitize(kernel: Kernel, library: Path, compiler: Compiler) -> None:
    """Runs a kernel on small tensors under compute-sanitizer's memcheck and racecheck, where it is installed.

    Raises:
        WrongAnswer: the sanitizer found something.
    """
    beside = compiler.nvcc.resolve().parent / SANITIZER
    program = shutil.which(SANITIZER) or (str(beside) if beside.is_file() else None)
    if program is None:
        return
    types = sorted({min(ELEMENT_TYPES[dtype], 1) for dtype, _ in kernel.types})
    for tool in ("memcheck", "racecheck"):
        for number in types:
            command = [
                program, "--tool", tool, "--print-limit", "1", sys.executable, "-c", RUN_SMALL, str(library),
                str(number), "200", "768",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            finding = sanitizer_finding(done.stdout + done.stderr)
            if finding:
                raise WrongAnswer(f"compute-sanitizer, {tool}: {finding}", _sanitizer_cause(finding))


def sanitizer_finding(text: str) -> str:
    """The first finding of compute-sanitizer, in words; empty if there is none."""
    match = OUT_OF_BOUNDS.search(text)
    if match is not None:
        where = match["where"] or match["address"] or "at an address that is not of any tensor"
        memory = "memory" if match["space"] == "global" else f"{match['space']} memory"
        place = re.search(r"(\w+Kernel)\b", match["kernel"])
        line = re.search(r"([\w.]+):(\d+)", match["kernel"])
        return (
            f"thread {match['thread']} of block {match['block']} {match['access']}s {match['size']} bytes of "
            f"{memory} out of bounds, {where.rstrip('.')}"
            + (f", in {place[1]}" if place else "")
            + (f", {line[1]} line {line[2]}" if line else "")
        )
    race = RACE.search(text)
    return f"two threads use one element of shared memory without a barrier between: {race[0]}" if race else ""


def _sanitizer_cause(finding: str) -> str:
    if "barrier" in finding:
        return "a __syncthreads() is missing"
    return "an index runs past the end of a row or of the tensor: check the loop's limit, and rows against the grid"


# --- running ------------------------------------------------------------------------------------------------------


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


class Launcher:
    """Calls a kernel's library.

    Args:
        library: the library of ``compile_kernel``.
    """

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
        self._launch = functions.launchLayerNorm
        self._launch.argtypes = [ctypes.POINTER(Arguments), ctypes.c_void_p]
        self._text = functions.cudaErrorText
        self._text.restype = ctypes.c_char_p

    def launch(self, arguments: Arguments, stream: int) -> None:
        """Launches the kernel.

        Raises:
            WrongAnswer: CUDA refuses the launch.
        """
        status = self._launch(ctypes.byref(arguments), stream)
        if status:
            text = self._text(status).decode()
            raise WrongAnswer(
                f"the launch fails: {text}", "" if "support" not in text else "this type is not launched"
            )

    def __call__(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Runs the kernel on CUDA tensors between guards.

        Raises:
            WrongAnswer: CUDA reports an error, or something was written beside a tensor.
        """
        from plugins.device_buffers import Buffer, TorchDevice

        device = TorchDevice()
        inputs = [Buffer.of(device, tensor) for tensor in (x, gamma, beta)]
        output = Buffer(device, x.numel() * x.element_size())
        workspace = Buffer(device, STATISTICS_BYTES * x.shape[0])
        addresses = [buffer.address for buffer in (*inputs, output, workspace)]
        types = (ELEMENT_TYPES[x.dtype], ELEMENT_TYPES[gamma.dtype])
        try:
            self.launch(Arguments(*addresses, x.shape[0], x.shape[1], epsilon, *types), device.stream)
            device.synchronize()
        except RuntimeError as error:  # of PyTorch: the context is lost
            reason = str(error).splitlines()[0]
            cause = "an access out of bounds" if "illegal" in reason or "misaligned" in reason else ""
            raise WrongAnswer(f"the kernel fails: {reason}", cause) from error
        if not all(buffer.guards_intact() for buffer in (*inputs, output, workspace)):
            raise WrongAnswer("the kernel writes outside of its tensors", "an index runs past the end of a row")
        return output.tensor(tuple(x.shape), x.dtype)


Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


NEAR_EPSILON = "variance near epsilon"


@dataclass(frozen=True)
class Rows:
    """Rows to normalise.

    Attributes:
        title: what is special about them.
        x: (rows, width), on the CPU.
        epsilon: the epsilon to normalise them with.
        cause: the likely cause where ordinary rows are right and these are wrong; empty for ordinary rows.
        factor: how much more than the usual rounding errors is allowed.
    """

    title: str
    x: torch.Tensor
    epsilon: float
    cause: str = ""
    factor: float = 1.0


def draw_rows(rng: np.random.Generator, rows: int, width: int, dtype: torch.dtype) -> Iterator[Rows]:
    """Random rows, ordinary ones first, then hard ones."""
    x = torch.from_numpy(rng.standard_normal((rows, width)).astype(np.float32))
    epsilon = float(rng.choice([1e-12, 3e-6, 4e-4])) if dtype == FLOAT else 1e-5
    yield Rows("ordinary rows", (x + 0.5).to(dtype), epsilon)
    near = max(epsilon, 1e-6)
    yield Rows(NEAR_EPSILON, (x * math.sqrt(near)).to(dtype), near, "epsilon is not what was asked for")
    if dtype == FLOAT:
        yield Rows("mean 100, deviation 1", x + 100, epsilon, CANCELLED, 10)
    else:
        overflow = "sums or squares overflow fp16: add up in float"
        yield Rows("values of thousands", (2000 * x + 4000).clamp(-2e4, 2e4).to(dtype), epsilon, overflow)
    negative = "the variance of a constant row is 0, and must not become negative by rounding"
    yield Rows("constant rows", x[:, :1].expand(rows, width).to(dtype).contiguous(), 1e-2, negative, 5)


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
    given = f"{drawn.title}: x {list(x.shape)} {x_name(drawn.x)}, weights {x_name(gamma)}, epsilon {epsilon:g}"
    cause = drawn.cause
    mistakes: Mistakes = {}
    if not cause or drawn.title == NEAR_EPSILON:
        mistakes = {
            why: (lambda mistaken=mistaken: mistaken(x))
            for why, mistaken in layer_norm_mistakes(g, b, epsilon).items()
        } | {
            "only the first warp's part of each row is added up": lambda: _one_warp(x, g, b, epsilon, False),
            "only the first warp's part of both sums is added up": lambda: _one_warp(x, g, b, epsilon, True),
        }
    if not cause:
        unwritten = found.isnan().any(-1)
        if unwritten.all():
            cause = "nothing is written: the kernel is empty, or returns before it stores"
        elif unwritten.any():
            cause = "some rows are not written: compare the grid with the number of rows"
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


def x_name(tensor: torch.Tensor) -> str:
    """The type of a tensor, such as ``float16``."""
    return str(tensor.dtype).removeprefix("torch.")


# --- times --------------------------------------------------------------------------------------------------------


def time_kernel(library: Path, compiler: Compiler) -> Grade:
    """Times the kernel beside the basic one and torch.compile, in fp16."""
    from plugins.measure import graph_times

    x = torch.randn(TIMED_ROWS, TIMED_WIDTH, device="cuda", dtype=HALF)
    gamma, beta = (torch.randn(TIMED_WIDTH, device="cuda", dtype=HALF) for _ in range(2))
    y = torch.empty_like(x)
    workspace = torch.empty(TIMED_ROWS * STATISTICS_BYTES, dtype=torch.uint8, device="cuda")
    addresses = [tensor.data_ptr() for tensor in (x, gamma, beta, y, workspace)]
    arguments = Arguments(*addresses, TIMED_ROWS, TIMED_WIDTH, 1e-12, 1, 1)

    def launch(path: Path) -> Callable[[], object]:
        launcher = Launcher(path)
        return lambda: launcher.launch(arguments, torch.cuda.current_stream().cuda_stream)

    compiled: Any = torch.compile(lambda: torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, 1e-12))
    times = graph_times(
        {"yours": launch(library), "basic": launch(compile_kernel(BASIC, compiler)), "torch.compile": compiled}
    )
    return grade_times(times, torch.cuda.get_device_name())


def grade_times(times: dict[str, float], device: str) -> Grade:
    """Whether a right kernel is optimised.

    Args:
        times: microseconds of ``yours``, ``basic`` and ``torch.compile``, from one run.
        device: the GPU's name.
    """
    ratios = {f"{name} ÷ yours": times[name] / times["yours"] for name in ("basic", "torch.compile")}
    measured = {"device": device, "type": "fp16", "rows": TIMED_ROWS, "hidden": TIMED_WIDTH, "microseconds": times}
    found = (
        f"{TIMED_ROWS} rows of {TIMED_WIDTH} in fp16 on {device}: {times['yours']:.2f} µs; "
        f"basic {times['basic']:.2f} µs, {ratios['basic ÷ yours']:.2f} times as long; "
        f"torch.compile {times['torch.compile']:.2f} µs, {ratios['torch.compile ÷ yours']:.2f} times as long"
    )
    is_fast = ratios["basic ÷ yours"] >= LEAST_OF_BASIC and ratios["torch.compile ÷ yours"] >= LEAST_OF_COMPILED
    if is_fast:
        return Grade(RIGHT, found, "", measured | ratios)
    wanted = f"expected at least {LEAST_OF_BASIC:g} and {LEAST_OF_COMPILED:g} times"
    cause = "right, but not optimised: read x once, in vectors of 16 bytes, and keep the row in registers"
    return Grade(WRONG, f"{found}; {wanted}", cause, measured | ratios)
