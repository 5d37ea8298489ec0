"""Compiles the file of one kernel into a library of its own, and runs it under compute-sanitizer and between guards.

The library has the kernel's file and the ``*_functions.cu`` beside it, which exports C functions
(plugins/common/kernel_functions.cuh).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bert_trt.exercise.compiler_errors import run_compiler
from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import COMPILED, NOT_GRADED, Grade, WrongAnswer
from plugins import build
from plugins.build import PLUGINS, Compiler

BUILD = PLUGINS.parent / "build" / "exercise"
SANITIZER = "compute-sanitizer"
ELEMENT_TYPES = {  # common/element_type.h
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
}
FLOAT, HALF, BF16 = torch.float32, torch.float16, torch.bfloat16
ROUNDING = {FLOAT: 4e-6, HALF: 2e-3, BF16: 1.6e-2}  # of the largest value
SMALL_WIDTHS = ("64", "200", "768")  # two rows in a warp, a part of a warp left over, a whole number of vectors

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
        launcher: its launcher, if its functions must be told; empty otherwise.
        types: the types of its tensors and of gamma and beta to run it with.
        widths: widths of rows to draw from.
    """

    source: str
    launcher: str
    types: tuple[tuple[torch.dtype, torch.dtype], ...]
    widths: tuple[int, ...]

    @property
    def functions(self) -> str:
        """The file with its C functions, in plugins/."""
        folder = Path(self.source).parent
        return str(folder / f"{folder}_functions.cu")


def prepare(kernel: Kernel) -> Path | Grade:
    """Compiles a kernel, and runs it under compute-sanitizer. Returns its library, or a grade if nothing can be run.

    Raises:
        WrongAnswer: it does not compile, or the sanitizer found something.
    """
    compiler = build.find_compiler()
    if compiler is None:
        needed = say("no CUDA compiler (nvcc) is installed: pip install -r {file}", file=build.REQUIREMENTS)
        return Grade(NOT_GRADED, needed)
    library = compile_kernel(kernel, compiler)
    if not torch.cuda.is_available():
        return Grade(COMPILED, say("compiled without an error; not run: needs an NVIDIA GPU and PyTorch for CUDA"))
    sanitize(kernel, library, compiler)
    return library


def compile_kernel(kernel: Kernel, compiler: Compiler) -> Path:
    """Compiles a kernel's file into a library of its own, unless that was done before.

    Raises:
        WrongAnswer: it does not compile; the first error of the compiler.
    """
    architecture = build.native_architectures().split(",")[0]
    command = [
        str(compiler.nvcc), "-std=c++17", "-O3", "-lineinfo", "-shared", "-Xcompiler", "-fPIC",
        "-gencode", f"arch=compute_{architecture},code=sm_{architecture}", f"-I{PLUGINS}",
        *([f"-DBERT_LAUNCHER={kernel.launcher}"] if kernel.launcher else []),
        *(["-DBERT_WITHOUT_FUSED"] if kernel.launcher == "launchLayerNormFast" else []),
        str(PLUGINS / kernel.source), str(PLUGINS / kernel.functions),
    ]  # fmt: skip
    digest = hashlib.sha256("\0".join(command).encode())
    for path in sorted([*PLUGINS.glob("common/*"), *(PLUGINS / kernel.source).parent.glob("*")]):
        digest.update(path.name.encode() + path.read_bytes())
    library = BUILD / f"{Path(kernel.source).stem}-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")  # another task may compile the same file
    try:
        run_compiler([*command, "-o", str(unfinished)], compiler)
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
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
                str(number), *SMALL_WIDTHS,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            finding, cause = sanitizer_finding(done.stdout + done.stderr)
            if finding:
                raise WrongAnswer(f"compute-sanitizer, {tool}: {finding}", cause)


def sanitizer_finding(text: str) -> tuple[str, str]:
    """The first finding of compute-sanitizer, in words, and its likely cause; both empty if there is none."""
    match = OUT_OF_BOUNDS.search(text)
    if match is not None:
        place = re.search(r"(\w+Kernel)\b", match["kernel"])
        line = re.search(r"([\w.]+):(\d+)", match["kernel"])
        what = {"thread": match["thread"], "block": match["block"], "size": match["size"]}
        parts = [
            say("thread {thread} of block {block} reads {size} bytes out of bounds", **what)
            if match["access"] == "read"
            else say("thread {thread} of block {block} writes {size} bytes out of bounds", **what),
            say("in {space} memory", space=match["space"]),
            (match["where"] or match["address"] or say("at an address that is not of any tensor")).rstrip("."),
            *([say("in {kernel}", kernel=place[1])] if place else []),
            *([say("{file} line {line}", file=line[1], line=line[2])] if line else []),
        ]
        return ", ".join(parts), say(
            "an index runs past the end of a row or of the tensor: check the loop's limit, and rows against the grid"
        )
    race = RACE.search(text)
    if race is None:
        return "", ""
    finding = say("two threads use one element of shared memory without a barrier between: {race}", race=race[0])
    return finding, say("a __syncthreads() is missing")


# --- running ------------------------------------------------------------------------------------------------------


class KernelLibrary:
    """Calls a kernel's library.

    Args:
        library: the library of ``compile_kernel``.
    """

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
        self._launch = functions.launchKernel
        self._launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._copy_late = functions.copyLate
        self._copy_late.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        self._text = functions.cudaErrorText
        self._text.restype = ctypes.c_char_p

    def launch(self, arguments: ctypes.Structure, stream: int) -> None:
        """Launches the kernel.

        Raises:
            WrongAnswer: CUDA refuses the launch.
        """
        status = self._launch(ctypes.addressof(arguments), stream)
        if status:
            text = self._text(status).decode()
            raise WrongAnswer(
                say("the launch fails: {reason}", reason=text),
                "" if "support" not in text else say("this type is not launched"),
            )

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[tuple[tuple[int, ...], torch.dtype]],
        arguments: Callable[[Sequence[int], Sequence[int]], ctypes.Structure],
    ) -> list[torch.Tensor]:
        """Runs the kernel on CUDA tensors between guards. What is not written is NaN, or -1 in int8.

        Args:
            inputs: the inputs.
            outputs: shape and type of each output.
            arguments: makes the launcher's arguments of the addresses of inputs and outputs.

        Raises:
            WrongAnswer: CUDA reports an error, or something was written beside a tensor.
        """
        from plugins.device_buffers import Buffer, TorchDevice

        device = TorchDevice()
        read = [Buffer.of(device, tensor) for tensor in inputs]
        written = [Buffer(device, torch.Size(shape).numel() * dtype.itemsize) for shape, dtype in outputs]
        addresses = [[buffer.address for buffer in buffers] for buffers in (read, written)]
        try:
            self.launch(arguments(*addresses), device.stream)
            device.synchronize()
        except RuntimeError as error:  # of PyTorch: the context is lost
            reason = str(error).splitlines()[0]
            is_access = "illegal" in reason or "misaligned" in reason
            cause = say("an access out of bounds") if is_access else ""
            raise WrongAnswer(say("the kernel fails: {reason}", reason=reason), cause) from error
        if not all(buffer.guards_intact() for buffer in (*read, *written)):
            raise WrongAnswer(
                say("the kernel writes outside of its tensors"), say("an index runs past the end of a row")
            )
        return [buffer.tensor(*output) for buffer, output in zip(written, outputs, strict=True)]

    def check_waits(
        self, late: torch.Tensor, values: torch.Tensor, output: torch.Tensor, arguments: ctypes.Structure
    ) -> None:
        """Runs the kernel behind one that allows its launch at once and writes an input long after that.

        Args:
            late: the CUDA tensor that the arguments name, in which no element may be an id outside its table.
            values: what the other kernel writes there.
            output: the CUDA tensor that the kernel writes.
            arguments: the launcher's arguments.

        Raises:
            WrongAnswer: the kernel read the tensor before it was written.
        """
        stream = torch.cuda.Stream()
        before = late.clone()

        def run(writes: Callable[[], object]) -> torch.Tensor:
            late.copy_(before)
            writes()
            torch.cuda.synchronize()
            self._copy_late(values.data_ptr(), late.data_ptr(), values.nbytes, stream.cuda_stream)
            self.launch(arguments, stream.cuda_stream)
            torch.cuda.synchronize()
            return output.clone()

        expected = run(lambda: late.copy_(values))  # nothing to wait for
        if not torch.equal(run(lambda: None), expected):
            raise WrongAnswer(
                say("the kernel reads its input before the kernel in front of it has written it"),
                say("waitForPreviousKernel() is missing, or stands behind a load"),
            )


def type_name(dtype: torch.dtype) -> str:
    """The name of a type, such as ``float16``."""
    return str(dtype).removeprefix("torch.")
