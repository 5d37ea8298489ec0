"""Tests and times the LayerNorm plugin.

    python plugins/testLayerNormPlugin.py                         everything that this machine supports
    python plugins/testLayerNormPlugin.py --kernel basic          one of the three kernels: basic, fused, fast
    python plugins/testLayerNormPlugin.py --json FILE --plot FILE the table as JSON and as a picture

1. Loads the library into TensorRT's plugin registry and builds engines of one layer (with TensorRT for RTX also
   without a GPU).
2. On a CUDA GPU, runs every kernel and type over a grid of widths, rows and hard inputs, and compares with float64.
3. On a CUDA GPU, prints a table of times beside those of PyTorch and of a plain copy.

Exit status: 0 if no check found an error, 1 if a check did, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bert_trt.interrupts import begin_script

KERNELS = ("basic", "fused", "fast")
TYPE_NAMES: tuple[str, ...] = ("fp32", "fp16", "bf16")
TIMED_ROWS = (16, 128, 512, 2048, 4096, 8192, 32768, 131072)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line; ends the process with status 2 after wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=[*KERNELS, "all"], default="all")
    parser.add_argument("--type", choices=[*TYPE_NAMES, "all"], default="all")
    parser.add_argument("--hidden", type=positive, default=768, help="width of the timed rows")
    parser.add_argument("--rows", type=positive, nargs="+", default=TIMED_ROWS, help="numbers of rows to time")
    parser.add_argument("--quick", action="store_true", help="small shapes only, for sanitizers; times nothing")
    parser.add_argument("--no-benchmark", dest="benchmark", action="store_false", help="time nothing")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="write the table there")
    parser.add_argument("--plot", type=Path, help="draw the table there (needs matplotlib)")
    arguments = parser.parse_args()
    arguments.kernels = KERNELS if arguments.kernel == "all" else (arguments.kernel,)
    return arguments


def positive(text: str) -> int:
    """Reads a positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from rich.table import Table
from torch.nn import functional

from bert_trt.console import UserError, console, run_script
from bert_trt.files import atomic_write, check_outputs
from plugins import build, reference
from plugins.plugin_host import Plugin, PluginHost, TensorSpec

TYPES: dict[str, torch.dtype] = dict(zip(TYPE_NAMES, (torch.float32, torch.float16, torch.bfloat16), strict=True))
EPSILON = 1e-12  # BERT's

# ----------------------------------------------------------------------------------------------------------
# 1. TensorRT's own registry
# ----------------------------------------------------------------------------------------------------------


def layer_norm_model(kernel: str, type_name: str, hidden: int = 768) -> bytes:
    """An ONNX model with one LayerNorm node, whose op type is the plugin's name."""
    import ml_dtypes
    import numpy as np
    import onnx

    numpy_type = np.dtype({"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[type_name])
    onnx_type = onnx.helper.np_dtype_to_tensor_dtype(numpy_type)
    node = onnx.helper.make_node(
        "LayerNorm", ["x", "gamma", "beta"], ["y"], name="layer_norm",
        epsilon=EPSILON, kernel=kernel, plugin_version="1", plugin_namespace="",
    )  # fmt: skip
    weights = {"gamma": np.ones(hidden, numpy_type), "beta": np.zeros(hidden, numpy_type)}
    graph = onnx.helper.make_graph(
        [node],
        "layer_norm",
        [onnx.helper.make_tensor_value_info("x", onnx_type, ["B", "S", hidden])],
        [onnx.helper.make_tensor_value_info("y", onnx_type, ["B", "S", hidden])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def build_engine(model: bytes, library: Path, hidden: int = 768) -> tuple[bytes | None, list[str]]:
    """Builds a model with plugins. Returns the plan, or None, and the errors that TensorRT and the plugin logged."""
    from bert_trt.plan import create_builder
    from bert_trt.plugin_layers import load_library, plugin_parser
    from bert_trt.tensorrt_log import TrtLog
    from bert_trt.tensorrt_product import trt

    load_library(library)
    log = TrtLog()
    builder, network = create_builder(log)
    parser = plugin_parser(network)
    if not parser.parse(model):
        return None, log.errors
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    minimum, optimum, maximum = ([1, 1, hidden], [1, 128, hidden], [8, 512, hidden])
    profile.set_shape("x", trt.Dims(minimum), trt.Dims(optimum), trt.Dims(maximum))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return (None if plan is None else bytes(plan)), log.errors


def check_registry(library: Path, kernels: tuple[str, ...]) -> list[str]:
    """Builds engines of one layer with the installed TensorRT. Returns the errors."""
    try:
        from bert_trt.tensorrt_product import IS_RTX, describe
    except ImportError as error:
        print(f"TensorRT: not checked: {error}")
        return []
    if not IS_RTX and not torch.cuda.is_available():
        print(f"TensorRT: not checked: {describe()} builds engines on a machine with a GPU only")
        return []
    problems = []
    for kernel in kernels:
        for type_name in TYPES:
            plan, errors = build_engine(layer_norm_model(kernel, type_name), library)
            if plan is None:
                problems.append(f"TensorRT built no engine for {kernel} {type_name}: {'; '.join(errors)}")
    if not problems:
        print(f"TensorRT: {describe()} loads the library and builds {len(kernels) * len(TYPES)} engines")
    return problems


# ----------------------------------------------------------------------------------------------------------
# 2. Results against float64
# ----------------------------------------------------------------------------------------------------------

WIDTHS = (1, 5, 33, 384, 768, 769, 1023, 1024, 4096)  # rows of odd widths cannot be read with vector loads
ROWS = (0, 1, 7, 128, 4096)
# An error of this many roundings is accepted whatever PyTorch's error is, since a row of five numbers may happen to
# be exact in either of them.
ACCEPTED_ROUNDINGS = 2
TIMES_PYTORCH = 1.5


@dataclass(frozen=True)
class Case:
    """One run of one kernel."""

    kernel: str
    dtype: torch.dtype
    weight_dtype: torch.dtype
    rows: int
    width: int
    content: str
    shift: int = 0  # distance in bytes of the tensors from an aligned address

    def __str__(self) -> str:
        """The text of an error message."""
        types = f"{self.dtype}, weights {self.weight_dtype}".replace("torch.", "")
        return f"{self.kernel} [{self.rows}, {self.width}] {types}, {self.content}, shift {self.shift}"


def make_input(content: str, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Input rows (rows, width) with one difficulty, which ``content`` names."""
    x = torch.randn(rows, width, device="cuda")
    if content == "outliers":  # trained BERTs have a few such features
        x[:, :: max(width // 3, 1)] *= 100.0
    elif content == "constant rows":  # the variance is 0, so that epsilon decides
        x = x[:, :1].expand(rows, width)
    elif content == "large mean":  # E[x²] − mean² would lose all digits
        x = 1e4 + 1e-2 * x
    elif content == "fp16 limits":  # squares and sums overflow in half precision
        x = 3e4 * x.clamp(-2.0, 2.0)
    return x.to(dtype).contiguous()


CONTENTS = ("normal", "outliers", "constant rows", "large mean", "fp16 limits")


def type_pairs(types: tuple[str, ...]) -> Iterator[tuple[torch.dtype, torch.dtype]]:
    """The pairs of types of x, and of gamma and beta."""
    for dtype in (TYPES[name] for name in types):
        yield dtype, dtype
        if dtype != torch.float32:
            yield dtype, torch.float32


def cases(kernels: tuple[str, ...], types: tuple[str, ...], quick: bool) -> Iterator[Case]:
    """The cases of the grid; the quick grid, for sanitizers, has only small shapes."""
    rows_list = (0, 1, 7) if quick else ROWS
    contents = CONTENTS[:1] if quick else CONTENTS
    for dtype, weight_dtype in type_pairs(types):
        for width in WIDTHS:
            for rows in rows_list:
                for content in contents:
                    for kernel in kernels:
                        yield Case(kernel, dtype, weight_dtype, rows, width, content)
        for kernel in kernels:  # an address that is not aligned for vector loads
            yield Case(kernel, dtype, weight_dtype, 7, 768, "normal", shift=weight_dtype.itemsize)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; NaN if a value is NaN."""
    norm = expected.norm().item()
    return (actual.double() - expected).norm().item() / norm if norm else actual.double().norm().item()


def pytorch_layer_norm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """PyTorch's layer norm, which needs one type for all inputs."""
    if gamma.dtype == x.dtype:
        return functional.layer_norm(x, (x.shape[-1],), gamma, beta, EPSILON)
    return functional.layer_norm(x.to(gamma.dtype), (x.shape[-1],), gamma, beta, EPSILON).to(x.dtype)


def run_plugin(plugin: Plugin, device: Any, tensors: list[torch.Tensor], shift: int) -> tuple[torch.Tensor, bool]:
    """Runs the plugin on buffers of ``device``. Returns (output, whether all guards are intact)."""
    from plugins.device_buffers import Buffer

    specs = [TensorSpec.of_torch(tensor) for tensor in tensors]
    _, workspace_size = plugin.prepare(specs)
    inputs = [Buffer.of(device, tensor, shift) for tensor in tensors]
    x = tensors[0]
    output = Buffer(device, x.numel() * x.element_size(), shift=shift)
    workspace = Buffer(device, workspace_size)
    plugin.enqueue(specs, [buffer.address for buffer in inputs], [output.address], workspace.address, device.stream)
    device.synchronize()
    intact = all(buffer.guards_intact() for buffer in [*inputs, output, workspace])
    return output.tensor(tuple(x.shape), x.dtype), intact


@dataclass
class Errors:
    """The largest errors of one kernel and type."""

    ours: float = 0.0
    pytorch: float = 0.0
    worst_ratio: float = 0.0


def check_case(case: Case, plugin: Plugin, device: Any, errors: Errors) -> str | None:
    """Runs one case. Returns the error, or None."""
    x = make_input(case.content, case.rows, case.width, case.dtype)
    gamma = torch.randn(case.width, device="cuda").to(case.weight_dtype)
    beta = torch.randn(case.width, device="cuda").to(case.weight_dtype)
    expected = reference.layer_norm(x, gamma, beta, EPSILON, torch.float64)
    actual, intact = run_plugin(plugin, device, [x, gamma, beta], case.shift)
    if not intact:
        return f"{case}: wrote outside a tensor"
    if case.rows == 0:
        return None
    ours = relative_error(actual, expected)
    pytorch = relative_error(pytorch_layer_norm(x, gamma, beta), expected)
    rounding = torch.finfo(case.dtype).eps / 2
    limit = max(TIMES_PYTORCH * pytorch, ACCEPTED_ROUNDINGS * rounding)
    errors.ours, errors.pytorch = max(errors.ours, ours), max(errors.pytorch, pytorch)
    if case.rows >= 128 and pytorch > 0:
        errors.worst_ratio = max(errors.worst_ratio, ours / pytorch)
    if not ours <= limit:
        return f"{case}: error {ours:.2e}, PyTorch's {pytorch:.2e}, limit {limit:.2e}"
    return None


def check_results(host: PluginHost, kernels: tuple[str, ...], types: tuple[str, ...], quick: bool) -> list[str]:
    """Runs the grid. Returns the errors."""
    from plugins.device_buffers import open_device

    device, about = open_device()
    torch.manual_seed(0)
    plugins = {kernel: host.create("LayerNorm", fields={"epsilon": EPSILON, "kernel": kernel}) for kernel in kernels}
    problems, count = [], 0
    errors: dict[tuple[str, str], Errors] = {}
    for case in cases(kernels, types, quick):
        key = (case.kernel, str(case.dtype).removeprefix("torch."))
        problem = check_case(case, plugins[case.kernel], device, errors.setdefault(key, Errors()))
        problems += [problem] if problem else []
        count += 1
    print(f"Results: {count} runs against float64 ({about}), {len(problems)} wrong")
    table = Table(title="Largest relative errors", title_justify="left")
    for heading in ("kernel", "type", "error", "PyTorch's", "largest ratio for an input of 128 rows or more"):
        table.add_column(heading, justify="left" if heading in ("kernel", "type") else "right")
    for (kernel, dtype), largest in errors.items():
        table.add_row(kernel, dtype, f"{largest.ours:.2e}", f"{largest.pytorch:.2e}", f"{largest.worst_ratio:.2f}")
    console.print(table)
    return problems


# ----------------------------------------------------------------------------------------------------------
# 3. Times
# ----------------------------------------------------------------------------------------------------------

COPY = "copy"  # cudaMemcpyAsync from device to device, which shows the memory's bandwidth


@dataclass
class Timing:
    """The time of one contender for one shape."""

    type: str
    rows: int
    hidden: int
    contender: str
    microseconds: float
    gigabytes_per_second: float
    share_of_copy: float


def launches_for(rows: int, hidden: int) -> int:
    """The number of launches in a graph: more for small shapes."""
    return 100 if rows * hidden <= 8192 * 768 else 20


def time_shape(host: PluginHost, arguments: argparse.Namespace, type_name: str, rows: int) -> list[Timing]:
    """Times all contenders with one shape."""
    from plugins.measure import graph_times

    dtype, hidden = TYPES[type_name], arguments.hidden
    x = torch.randn(rows, hidden, device="cuda").to(dtype)
    gamma, beta = (torch.randn(hidden, device="cuda").to(dtype) for _ in range(2))
    y = torch.empty_like(x)
    contenders: dict[str, Callable[[], object]] = {COPY: lambda: y.copy_(x)}
    for kernel in arguments.kernels:
        plugin = host.create("LayerNorm", fields={"epsilon": EPSILON, "kernel": kernel})
        contenders[kernel] = lambda plugin=plugin: plugin.run_torch([x, gamma, beta], [y])
    contenders["eager"] = lambda: functional.layer_norm(x, (hidden,), gamma, beta, EPSILON)
    if arguments.compile:
        torch.compiler.reset()  # otherwise it stops specialising after eight shapes
        peer = torch.compile(functional.layer_norm, dynamic=False)
        contenders["torch.compile"] = lambda: peer(x, (hidden,), gamma, beta, EPSILON)
    with torch.no_grad():
        times = graph_times(contenders, launches_for(rows, hidden))
    moved = 2 * x.numel() * x.element_size()  # each element is read once and written once
    return [
        Timing(
            type_name,
            rows,
            hidden,
            name,
            round(time, 3),
            round(moved / time / 1e3, 1),
            round(times[COPY] / time, 3),
        )
        for name, time in times.items()
    ]


def print_table(timings: list[Timing]) -> None:
    """Prints microseconds, GB/s and the share of a copy's bandwidth, with a row for each shape."""
    table = Table(title="Microseconds (GB/s, share of the copy's bandwidth)", title_justify="left")
    table.add_column("type")
    table.add_column("rows", justify="right")
    for name in dict.fromkeys(timing.contender for timing in timings):
        table.add_column(name, justify="right")
    for key in dict.fromkeys((timing.type, timing.rows) for timing in timings):
        row = [timing for timing in timings if (timing.type, timing.rows) == key]
        cells = [f"{t.microseconds:.2f} ({t.gigabytes_per_second:.0f}, {t.share_of_copy:.0%})" for t in row]
        table.add_row(key[0], str(key[1]), *cells)
    console.print(table)


def environment() -> dict[str, str]:
    """Versions and hardware on which the times depend."""
    import subprocess

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver.splitlines()[0] if driver else "unknown",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "method": "CUDA graphs of 20 or 100 launches on the same buffers, median of 30 replays, in turn",
    }


def plot(timings: list[Timing], about: dict[str, str], path: Path) -> None:
    """Plots the bandwidth over the rows, with a panel for each type."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    types = list(dict.fromkeys(timing.type for timing in timings))
    figure, panels = pyplot.subplots(1, len(types), figsize=(6 * len(types), 4.5), sharey=True, squeeze=False)
    for panel, type_name in zip(panels[0], types, strict=True):
        for name in dict.fromkeys(timing.contender for timing in timings):
            line = [t for t in timings if (t.type, t.contender) == (type_name, name)]
            panel.plot(
                [t.rows for t in line], [t.gigabytes_per_second for t in line], marker="o", label=name,
                linestyle="--" if name == COPY else "-",
            )  # fmt: skip
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="rows",
            title=f"layer norm, hidden {timings[0].hidden}, {type_name}",
        )
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("GB/s, bytes read and written")
    panels[0][0].legend()
    figure.suptitle(f"{about['gpu']}, driver {about['driver']}, PyTorch {about['torch']}")
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format=path.suffix[1:] or "png")


def benchmark(host: PluginHost, arguments: argparse.Namespace, types: tuple[str, ...]) -> None:
    """Times all shapes, prints the table, and writes it to --json and --plot."""
    timings: list[Timing] = []
    for type_name in types:
        for rows in arguments.rows:
            timings += time_shape(host, arguments, type_name, rows)
    about = environment()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print_table(timings)
    if arguments.json:
        document = {"environment": about, "timings": [asdict(timing) for timing in timings]}
        with atomic_write(arguments.json) as file:
            file.write((json.dumps(document, indent=1) + "\n").encode())
    if arguments.plot:
        plot(timings, about, arguments.plot)


# ----------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Runs the checks that this machine supports; returns the exit code."""
    arguments = parse_arguments()
    check_outputs({"--json": arguments.json, "--plot": arguments.plot}, {})
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install -r requirements-dev.txt")
    types = tuple(TYPES) if arguments.type == "all" else (arguments.type,)
    library = build.library_path()
    host = PluginHost(library)
    problems = check_registry(library, arguments.kernels)
    if torch.cuda.is_available():
        problems += check_results(host, arguments.kernels, types, arguments.quick)
        if arguments.benchmark and not arguments.quick:
            benchmark(host, arguments, types)
    else:
        print("Results and times: not checked, because PyTorch finds no CUDA GPU on this machine")
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    run_script(main)
