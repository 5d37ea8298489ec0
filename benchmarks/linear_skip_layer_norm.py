"""LinearSkipLayerNorm on Hopper: one kernel or two, and does the plugin take the faster way?

    cmake -S plugins -B plugins/build && cmake --build plugins/build --target linear_skip_layer_norm_functions
    python benchmarks/linear_skip_layer_norm.py --json FILE --markdown FILE      needs an H100 or H200

The two places of a layer where it stands, of BERT-base and BERT-large, with y in fp16, and in 8 bits too where x is.
The choice was made from these numbers of rows; whether it holds between them was not measured.

Times are microseconds of one launch in CUDA graphs, medians; the ways take turns, and each runs before it is timed.
Weights are those of 12 layers in turn.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

LIBRARY = Path(__file__).parent.parent / "plugins/build/liblinear_skip_layer_norm_functions.so"
PRODUCTS = {  # out, in
    "base": ((768, 768), (768, 3072)),
    "large": ((1024, 1024), (1024, 4096)),
}
ROWS = (2048, 3072, 4096, 5000, 6144, 8192, 9000, 10240, 12288, 16384, 20000, 32768, 65536)
LAYERS = 12
LAUNCHERS = {"two": "linearSkipLayerNormLaunchTwo", "one": "linearSkipLayerNormLaunchOne"}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=LIBRARY, help="liblinear_skip_layer_norm_functions.so")
    parser.add_argument("--types", nargs="+", choices=("fp16", "fp8", "int8"), default=["fp16", "fp8", "int8"])
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="numbers of rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all times")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before NumPy and PyTorch are imported

import torch
from linear_sweep import TYPE_NUMBERS, Tensors, environment, load_library

from bert_trt.console import UserError, console, run_script
from bert_trt.files import atomic_write, check_outputs, write_json
from plugins.measure import graph_times


class Call(ctypes.Structure):
    """LinearSkipLayerNormCall in plugins/linear_skip_layer_norm/linear_skip_layer_norm_functions.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "skip", "gamma", "beta", "y", "quantized")),
        *((name, ctypes.c_void_p) for name in ("workspace", "weight_scales")),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("inner", "out", "type")),
        ("x_scale", ctypes.c_float),
        ("output_scale", ctypes.c_float),
    )


class Layer:
    """The tensors of one product and type, for up to ``most_rows`` rows."""

    def __init__(self, type_name: str, out: int, inner: int, most_rows: int) -> None:
        self.linear = Tensors(type_name, (out, inner, False), most_rows, LAYERS)
        self.number = TYPE_NUMBERS[type_name]
        half = {"dtype": torch.float16, "device": "cuda"}
        self.skip = torch.randn(most_rows, out, **half)
        self.bias, self.gamma, self.beta = torch.randn(3, out, **half)
        self.y, self.workspace = torch.empty(2, most_rows, out, **half)
        self.quantized = torch.empty(most_rows, out, dtype=torch.int8, device="cuda") if self.linear.narrow else None

    def call(self, layer: int, rows: int) -> Call:
        """The arguments of a launch."""
        linear = self.linear
        return Call(
            *(linear.x[0].data_ptr(), linear.weights[layer].data_ptr()),
            *(tensor.data_ptr() for tensor in (self.bias, self.skip, self.gamma, self.beta, self.y)),
            None if self.quantized is None else self.quantized.data_ptr(),
            *(self.workspace.data_ptr(), linear.scales.data_ptr(), rows, linear.inner, linear.out, self.number),
            *(1.0 / 16.0, 0.02),
        )


def measure_rows(library: ctypes.CDLL, layer: Layer, rows: int) -> dict[str, Any]:
    """Both ways at one number of rows, and which one the plugin takes."""
    calls = [layer.call(i, rows) for i in range(LAYERS)]

    def launch(name: str) -> Callable[[], None]:
        def run() -> None:
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            for call in calls:
                status = getattr(library, LAUNCHERS[name])(ctypes.byref(call), stream)
                if status != 0:
                    raise UserError(f"{rows} rows, {name}: launch failed, CUDA error {status}")

        return run

    times = graph_times({name: launch(name) for name in LAUNCHERS}, launches=2, rounds=6)
    takes_one = bool(library.linearSkipLayerNormTakesOne(ctypes.byref(calls[0])))
    return {"rows": rows, "taken": "one" if takes_one else "two"} | {
        name: round(time / LAYERS, 2) for name, time in times.items()
    }


def measure_all(library: ctypes.CDLL, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every type, product and number of rows."""
    found = []
    for type_name in arguments.types:
        for model, products in PRODUCTS.items():
            for out, inner in products:
                layer = Layer(type_name, out, inner, max(arguments.rows))
                for rows in arguments.rows:
                    row = {"type": type_name, "model": model, "in": inner, "out": out}
                    found.append(row | measure_rows(library, layer, rows))
                    print(found[-1], flush=True)
                del layer
                torch.cuda.empty_cache()
    return found


def table(found: list[dict[str, Any]]) -> list[str]:
    """Markdown: a row for each measurement, and what the choice costs on average."""
    lines = ["| type | in | out | rows | two kernels | one | two ÷ one | taken | regret |", "|" + " --- |" * 9]
    regrets = []
    for row in found:
        regret = row[row["taken"]] / min(row["one"], row["two"]) - 1
        regrets.append(regret)
        ratio = row["two"] / row["one"]
        lines.append(
            f"| {row['type']} | {row['in']} | {row['out']} | {row['rows']} | {row['two']} | {row['one']} "
            f"| {ratio:.3f} | {row['taken']} | {100 * regret:.1f} % |"
        )
    mean = 100 * sum(regrets) / len(regrets)
    return [*lines, "", f"Regret, how much longer the way takes that the plugin chooses: {mean:.2f} % on average."]


def main() -> int:
    """Runs the script; returns its exit code."""
    arguments = parse_arguments()
    check_outputs({"--json": arguments.json, "--markdown": arguments.markdown}, {})
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        raise UserError("PyTorch finds no GPU of compute capability 9.0; the one kernel is for an H100 or H200")
    library = load_library(arguments.library, "linear_skip_layer_norm_functions")
    torch.manual_seed(0)
    found = measure_all(library, arguments)
    where = environment()
    lines = ["# LinearSkipLayerNorm: one kernel or two", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    lines += [*table(found), "", *(f"- {key}: {value}" for key, value in where.items())]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if arguments.markdown:
        with atomic_write(arguments.markdown) as file:
            file.write(("\n".join(lines) + "\n").encode())
    write_json(arguments.json, {"environment": where, "rows": found})
    return 0


if __name__ == "__main__":
    run_script(main)
