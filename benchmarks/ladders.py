"""What does each step from a plain loop to the fastest kernel bring, for Linear and for attention?

    cmake -S plugins -B plugins/build
    cmake --build plugins/build --target linear_functions qkv_to_context_functions
    python benchmarks/ladders.py --json FILE --markdown FILE      any GPU from Ampere on; the upper rungs need Hopper

Every rung is a kernel of plugins/linear/ or plugins/qkv_to_context/; docs/kernels/linear.md and attention.md explain
them. "gain" is the time of the rung that it is compared with, most often the one before, divided by its own.

Linear: y = GELU(x Wᵀ + bias), M rows of x, K in, N out; fp16 unless the name says otherwise. Every rung includes bias
and GELU; "the product alone" has neither. Attention: bf16, heads of 64; ours read the merged product, PyTorch gets
contiguous Q, K and V.

Microseconds of one launch in a CUDA graph of many, median of replays. All kernels take turns, and each runs for a
while before it is timed, since clocks depend on the load. Each launch of Linear takes other weights than the one
before, from more memory than the L2 cache has.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

BUILD = Path(__file__).parent.parent / "plugins/build"
LIBRARIES = ("liblinear_functions.so", "libqkv_to_context_functions.so")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", type=Path, default=BUILD, help=f"the folder of {' and '.join(LIBRARIES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all times")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before NumPy and PyTorch are imported

import torch
from linear_sweep import Call, Functions, Shape, Tensors, environment
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.files import atomic_write, check_outputs
from plugins.measure import capture, replay_time

LINEAR_SHAPES = ((4096, 768, 3072), (1024, 1024, 4096), (4096, 1024, 4096))  # M, K, N: BERT-base, BERT-large
ATTENTION_SHAPES = ((8, 128), (32, 384), (8, 512))  # B, S
HEADS, HEAD_SIZE = 12, 64
BF16 = 2  # of ElementType
FP16 = 1
NOT_SUPPORTED = (1, 801)  # cudaErrorInvalidValue: not on this GPU; cudaErrorNotSupported
HOPPER_SHAPES = {  # of linear_hopper_shapes.cuh: the tile of the rungs; one with and without two tiles in turn
    "hopper, 128 x 256": "128x256",
    "hopper, 128 x 128": "128x128",
    "hopper, 128 x 128 in turn": "128x128 in turn",
}
AGAINST = {  # the rung that each is compared with
    "linear": {
        "shared": "plain",
        "tiles": "shared",
        "tensor": "tiles",
        "wgmma, one stage": "tiles",
        "wgmma, four stages": "wgmma, one stage",
        "wgmma, producer warp": "wgmma, four stages",
        "wgmma, products in flight": "wgmma, producer warp",
        "wgmma, persistent": "wgmma, products in flight",
        "hopper, 128 x 256": "wgmma, persistent",
        "hopper, 128 x 128 in turn": "hopper, 128 x 128",
        "the plugin": "the plugin, GELU apart",
        "the plugin, int8": "the plugin",
        "the plugin, fp8": "the plugin",
    },
    "attention": {"basic": "plain", "tensor": "basic", "hopper": "tensor", "short": "hopper"},
}
GRAPH_MILLISECONDS = 3.0
MOST_LAUNCHES = 48
TURNS, REPLAYS = 5, 7
SETTLING = 0.2  # seconds


@dataclass
class Time:
    """A rung at one shape."""

    ladder: str
    shape: tuple[int, ...]
    rung: str
    turns: list[float]  # microseconds
    operations: float

    @property
    def microseconds(self) -> float:
        """The median of the turns."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """How far the turns are apart, as a share of their median."""
        return (max(self.turns) - min(self.turns)) / self.microseconds


def measure(contenders: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Microseconds of one launch of each, the median of every turn; slow kernels are launched less often."""
    graphs = {}
    for name, launch in contenders.items():
        once = replay_time(capture(launch, 1))
        launches = max(1, min(MOST_LAUNCHES, math.ceil(GRAPH_MILLISECONDS / once)))
        graphs[name] = (capture(launch, launches), launches)
    turns: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(TURNS):
        for name, (graph, launches) in graphs.items():
            for _ in range(math.ceil(SETTLING * 1000.0 / replay_time(graph))):
                graph.replay()
            samples = [replay_time(graph) * 1000.0 / launches for _ in range(REPLAYS)]
            turns[name].append(round(statistics.median(samples), 3))
    return turns


def takes(launch: Callable[[], int], what: str) -> bool:
    """Whether the GPU has this kernel.

    Raises:
        UserError: the launch failed for another reason.
    """
    status = launch()
    torch.cuda.synchronize()
    if status != 0 and status not in NOT_SUPPORTED:
        raise UserError(f"{what}: launch failed, CUDA error {status}")
    return status == 0


def current_stream() -> ctypes.c_void_p:
    """Where PyTorch's kernels go, also while a graph is captured."""
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


# -------------------------------------------------------------------------------------------------------------------
# Linear
# -------------------------------------------------------------------------------------------------------------------


def rotating(function: Callable[[Call], int], calls: list[Call]) -> Callable[[], int]:
    """A launch that takes the next call each time."""
    turn = itertools.cycle(calls)
    return lambda: function(next(turn))


def without_gelu(call: Call) -> Call:
    """The same call, product and bias alone."""
    copy = Call.from_buffer_copy(call)
    copy.gelu = 0
    return copy


def linear_contenders(functions: Functions, shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """The rungs that this GPU has, and cuBLAS; in the order of the table."""
    rows, inner, out = shape
    library = functions.library
    library.linearRungName.restype = ctypes.c_char_p
    tensors = {name: Tensors(name, (out, inner, True), rows) for name in ("fp16", "int8", "fp8")}
    calls = {name: [one.call(i, rows) for i in range(2 * len(one.weights))] for name, one in tensors.items()}

    def launch_rung(rung: int, call: Call) -> int:
        return library.linearLaunchRung(ctypes.byref(call), rung, current_stream())

    def launch_tensor(call: Call) -> int:
        return library.linearLaunchTensor(ctypes.byref(call), current_stream())

    def launch_shape(one: Shape, call: Call) -> int:
        return functions.launch(call, one, torch.cuda.current_stream().cuda_stream)

    def launch_chosen(call: Call) -> int:
        return library.linearLaunch(ctypes.byref(call), current_stream())

    ours: dict[str, Callable[[], int]] = {}
    for rung in range(library.linearRungs()):
        name = library.linearRungName(rung).decode()
        ours[name] = rotating(functools.partial(launch_rung, rung), calls["fp16"])
        if name == "tiles":
            ours["tensor"] = rotating(launch_tensor, calls["fp16"])
    if hasattr(library, "linearShapes") and torch.cuda.get_device_capability() == (9, 0):
        shapes = {one.name: one for one in functions.shapes(FP16)}
        for name, of_hopper in HOPPER_SHAPES.items():
            ours[name] = rotating(functools.partial(launch_shape, shapes[of_hopper]), calls["fp16"])
    ours["the plugin"] = rotating(launch_chosen, calls["fp16"])
    ours["the plugin, int8"] = rotating(launch_chosen, calls["int8"])
    ours["the plugin, fp8"] = rotating(launch_chosen, calls["fp8"])
    found: dict[str, Callable[[], object]] = {name: one for name, one in ours.items() if takes(one, name)}

    bare = rotating(launch_chosen, [without_gelu(call) for call in calls["fp16"]])
    of_call = itertools.cycle(range(2 * len(tensors["fp16"].weights)))
    fp16 = tensors["fp16"]

    def gelu_apart() -> torch.Tensor:
        bare()
        return gelu(fp16.y[0])

    def pytorch() -> torch.Tensor:
        i = next(of_call)
        return gelu(linear(fp16.x[i % 2], fp16.weights[i % len(fp16.weights)], fp16.bias))

    found["the plugin, GELU apart"] = gelu_apart
    for name in ("the plugin", "the plugin, int8", "the plugin, fp8"):  # after what they are compared with
        if name in found:
            found[name] = found.pop(name)
    found["cuBLAS with bias, GELU apart"] = pytorch
    peers = {"fp16": "cuBLAS, the product alone"} | {
        kind: f"cuBLAS, {kind}, the product alone" for kind in ("int8", "fp8") if f"the plugin, {kind}" in found
    }
    for kind, name in peers.items():
        product = tensors[kind].cublas(rows)
        if product is not None:
            turn = itertools.cycle(range(2 * len(tensors[kind].weights)))
            found[name] = lambda product=product, turn=turn: product(next(turn))
    return found


# -------------------------------------------------------------------------------------------------------------------
# Attention
# -------------------------------------------------------------------------------------------------------------------


class AttentionCall(ctypes.Structure):
    """AttentionCall in plugins/qkv_to_context/qkv_to_context_functions.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "context", "scores")),
        *((name, ctypes.c_int32) for name in ("sequences", "length", "heads", "head_size", "type")),
    )


def attention_contenders(library: ctypes.CDLL, batch: int, length: int) -> dict[str, Callable[[], object]]:
    """The rungs that this GPU has, and PyTorch's kernels."""
    qkv = torch.randn(batch, length, 3, HEADS, HEAD_SIZE, device="cuda").bfloat16()
    context = torch.empty(batch, length, HEADS * HEAD_SIZE, dtype=torch.bfloat16, device="cuda")
    scores = torch.empty(HEADS, batch * length, length, device="cuda")
    call = AttentionCall(qkv.data_ptr(), context.data_ptr(), scores.data_ptr(), batch, length, HEADS, HEAD_SIZE, BF16)
    tensors = (qkv, context, scores)  # kept as long as the launches

    def launch(kernel: str, _kept: tuple[torch.Tensor, ...] = tensors) -> int:
        return library.attentionLaunch(ctypes.byref(call), kernel.encode(), current_stream())

    found: dict[str, Callable[[], object]] = {}
    for kernel in ("plain", "basic", "tensor", "hopper", "short"):
        one = functools.partial(launch, kernel)
        if takes(one, kernel):
            found[kernel] = one
    q, k, v = (part.contiguous() for part in qkv.permute(2, 0, 3, 1, 4))  # (B, N, S, D)

    def attend(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    found["PyTorch, flash"] = functools.partial(attend, SDPBackend.FLASH_ATTENTION)
    found["PyTorch, cuDNN"] = functools.partial(attend, SDPBackend.CUDNN_ATTENTION)
    return found


# -------------------------------------------------------------------------------------------------------------------
# Tables
# -------------------------------------------------------------------------------------------------------------------


def table(times: list[Time], ladder: str, headings: list[str]) -> list[str]:
    """Markdown: a row for each rung; for each shape microseconds (TFLOP/s) and the gain."""
    found = {(time.rung, time.shape): time for time in times if time.ladder == ladder}
    rungs = dict.fromkeys(rung for rung, _ in found)
    shapes = list(dict.fromkeys(shape for _, shape in found))
    lines = ["| rung | " + " | ".join(f"{one} | gain" for one in headings) + " |"]
    lines.append("|" + " --- |" * (1 + 2 * len(shapes)))
    for rung in rungs:
        row = [rung]
        for shape in shapes:
            time, before = found.get((rung, shape)), found.get((AGAINST[ladder].get(rung, ""), shape))
            speed = (
                f"{digits(time.microseconds)} ({digits(time.operations / time.microseconds / 1e6)})" if time else ""
            )
            row += [speed, f"{before.microseconds / time.microseconds:.2f}" if time and before else ""]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def digits(number: float) -> str:
    """Three digits, or as many as stand before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def load(folder: Path, name: str) -> Path:
    """The path of a library.

    Raises:
        UserError: it is not built.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; build it: cmake -S plugins -B plugins/build && cmake --build plugins/build "
            "--target linear_functions qkv_to_context_functions"
        )
    return path.resolve()


def main() -> int:
    """Runs the script; returns its exit code."""
    arguments = parse_arguments()
    check_outputs({"--json": arguments.json, "--markdown": arguments.markdown}, {})
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA GPU; the benchmark needs one and PyTorch for CUDA")
    functions = Functions(load(arguments.build_dir, LIBRARIES[0]))
    attention = ctypes.CDLL(str(load(arguments.build_dir, LIBRARIES[1])))
    torch.manual_seed(0)
    times: list[Time] = []

    def add(ladder: str, shape: tuple[int, ...], operations: float, found: dict[str, list[float]]) -> None:
        for rung, turns in found.items():
            times.append(Time(ladder, shape, rung, turns, operations))
            log_console.print(f"{ladder} {shape}: {rung} {turns} us", highlight=False)

    for shape in LINEAR_SHAPES:
        add("linear", shape, 2.0 * math.prod(shape), measure(linear_contenders(functions, shape)))
        torch.cuda.empty_cache()
    for batch, length in ATTENTION_SHAPES:
        operations = 4.0 * batch * length * length * HEADS * HEAD_SIZE
        add("attention", (batch, length), operations, measure(attention_contenders(attention, batch, length)))
        torch.cuda.empty_cache()

    lines = ["# The ladders of Linear and attention", "", (__doc__ or "").split("\n\n", 2)[2].strip()]
    lines += ["", "Linear, microseconds (TFLOP/s):", ""]
    lines += table(times, "linear", [f"M {m}, K {k}, N {n}" for m, k, n in LINEAR_SHAPES])
    lines += ["", f"Attention, {HEADS} heads, microseconds (TFLOP/s):", ""]
    lines += table(times, "attention", [f"B {batch}, S {length}" for batch, length in ATTENTION_SHAPES])
    spreads = sorted(time.spread for time in times)
    lines += [
        "",
        f"The turns of a kernel differ by {statistics.median(spreads):.1%} in the median, at most {spreads[-1]:.1%}.",
    ]
    about = environment()
    lines += ["", *(f"- {key}: {value}" for key, value in about.items())]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if arguments.markdown:
        with atomic_write(arguments.markdown) as file:
            file.write(("\n".join(lines) + "\n").encode())
    if arguments.json:
        record = {"environment": about, "times": [asdict(time) for time in times]}
        with atomic_write(arguments.json) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    run_script(main)
