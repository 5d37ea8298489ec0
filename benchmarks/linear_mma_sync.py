"""How fast is Linear's kernel for GPUs other than Hopper (mma.sync), in fp16, int8 and fp8?

    cmake -S plugins -B plugins/build && cmake --build plugins/build --target linear_functions
    python benchmarks/linear_mma_sync.py --markdown FILE      measures; any GPU from Turing on

The four products of all 12 layers of BERT-base, one after another in a CUDA graph, each layer with weights of its
own; microseconds (TFLOP/s), medians. Everything is counted: scales, bias, GELU in the intermediate product, and y in
8 bits there, fp16 elsewhere. "the plugin" is the kernel that the plugin launches on this GPU: on Hopper another one,
with wgmma.

A type that the GPU's tensor cores do not have is left out. On Hopper, mma.sync of fp8 is compiled to conversions and
products in fp16: that says nothing of GPUs that have an instruction for it, as Ada (8.9) has.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

LIBRARY = Path(__file__).parent.parent / "plugins/build/liblinear_functions.so"
ROWS = (128, 1024, 4096, 16384)
TYPES = ("fp16", "int8", "fp8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=LIBRARY, help="liblinear_functions.so")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before NumPy and PyTorch are imported

import torch
from linear_sweep import LAYERS, PRODUCTS, Call, Tensors, environment, load_library, measure

from bert_trt.console import UserError, console, run_script
from bert_trt.files import atomic_write, check_outputs

NOT_SUPPORTED = 801  # cudaErrorNotSupported
LAUNCHERS = {"tensor": "linearLaunchTensor", "plugin": "linearLaunch"}


def measure_type(library: ctypes.CDLL, type_name: str) -> dict[int, dict[str, float]] | None:
    """Microseconds of all layers, by number of rows and launcher; None if the GPU does not have the type."""
    layers = LAYERS["base"]
    of_layer = [Tensors(type_name, product, max(ROWS), layers) for product in PRODUCTS["base"]]
    times = {}
    for rows in ROWS:
        calls = [[tensors.call(i, rows) for tensors in of_layer] for i in range(layers)]
        if library.linearLaunchTensor(ctypes.byref(calls[0][0]), None) == NOT_SUPPORTED:
            return None

        def launch(name: str, layer: int, calls: list[list[Call]] = calls) -> None:
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            for call in calls[layer]:
                status = getattr(library, LAUNCHERS[name])(ctypes.byref(call), stream)
                if status != 0:
                    raise UserError(f"{type_name}, {call.rows} rows, {name}: launch failed, CUDA error {status}")

        contenders: dict[str, Callable[[int], object]] = {name: functools.partial(launch, name) for name in LAUNCHERS}
        times[rows] = {name: time * layers for name, time in measure(contenders, layers).items()}
    return times


def table(times: dict[str, dict[int, dict[str, float]]]) -> list[str]:
    """Markdown: a row for each type and number of rows."""
    lines = [
        "| type | rows | mma.sync | fp16 ÷ this type, both mma.sync | the plugin | mma.sync ÷ the plugin |",
        "|" + " --- |" * 6,
    ]
    for type_name, of_type in times.items():
        for rows, found in of_type.items():
            work = sum(2 * rows * out * inner for out, inner, _ in PRODUCTS["base"]) * LAYERS["base"] / 1e6
            cells = {name: f"{time:.0f} ({work / time:.0f})" for name, time in found.items()}
            gain = times["fp16"][rows]["tensor"] / found["tensor"]
            ratio = found["tensor"] / found["plugin"]
            lines.append(
                f"| {type_name} | {rows} | {cells['tensor']} | {gain:.2f} | {cells['plugin']} | {ratio:.2f} |"
            )
    return lines


def main() -> int:
    """Runs the script; returns its exit code."""
    arguments = parse_arguments()
    check_outputs({"--markdown": arguments.markdown}, {})
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA GPU; the benchmark needs one and PyTorch for CUDA")
    library = load_library(arguments.library, "linear_functions")
    torch.manual_seed(0)
    times = {}
    for type_name in TYPES:
        found = measure_type(library, type_name)
        if found is not None:
            times[type_name] = found
        torch.cuda.empty_cache()
    lines = ["# Linear by mma.sync", "", (__doc__ or "").split("\n\n", 2)[2].strip(), "", *table(times), ""]
    lines += [f"- {key}: {value}" for key, value in environment().items()]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if arguments.markdown:
        with atomic_write(arguments.markdown) as file:
            file.write(("\n".join(lines) + "\n").encode())
    return 0


if __name__ == "__main__":
    run_script(main)
