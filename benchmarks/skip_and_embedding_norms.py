"""Measures the SkipLayerNorm and EmbLayerNorm plugins, PyTorch, and a copy of as many bytes.

    python benchmarks/skip_and_embedding_norms.py                  needs a CUDA GPU and the built plugins
    python benchmarks/skip_and_embedding_norms.py --rows 128 4096 --hidden 384 --json FILE --markdown FILE

Each contender is captured in a CUDA graph; the figures are medians of the replays, contenders in turn. Inputs rotate
over sets that together are larger than the L2 cache. PyTorch's allocator places the outputs of every contender. Bytes
are those that must move:

    SkipLayerNorm   x, skip and the outputs once; gamma, beta and the bias are not counted
    EmbLayerNorm    the ids and the output once, and each row of the tables that is read once

The copy is a cudaMemcpyAsync that reads half of these bytes and writes the other half.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

CASE_NAMES = (
    "SkipLayerNorm fp16",
    "SkipLayerNorm fp16, fp32 weights",
    "SkipLayerNorm fp32",
    "SkipLayerNorm bf16",
    "SkipLayerNorm int8 + fp16 to fp16 and int8",
    "SkipLayerNorm int8 to int8",
    "EmbLayerNorm fp16, even words",
    "EmbLayerNorm fp16, words as in text",
)
ROWS = (128, 512, 2048, 4096, 8192, 32768, 131072)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--hidden", type=int, default=768, metavar="N", help="the rows' width (default: %(default)s)")
    parser.add_argument("--case", choices=CASE_NAMES, nargs="+", default=CASE_NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from rich.table import Table
from torch.nn import functional

from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.files import atomic_write, check_outputs
from plugins import reference
from plugins.measure import graph_times
from plugins.plugin_host import PluginHost

EPSILON = 1e-12
WORDS, POSITIONS, TYPES = 30522, 512, 2  # the tables of bert-base
SCALE = 0.05  # the scale of int8 tensors
PLUGIN, COPY, EAGER, COMPILED = "plugin", "copy", "eager", "torch.compile"
CONTENDERS = (PLUGIN, EAGER, COMPILED, COPY)
LAUNCHES = 20  # the fewest launches of a contender in a graph; more if there are more sets of inputs

Tensors = tuple[torch.Tensor, ...]
Result = torch.Tensor | Tensors


@dataclass
class Case:
    """One layer and type with one number of rows."""

    plugin: str
    fields: dict[str, Any]
    sets: list[Tensors]  # several sets of the plugin's inputs
    peer: Callable[..., Result]  # the layer in PyTorch, for the same inputs
    exact: Callable[..., torch.Tensor]  # y in float64
    moved: int  # bytes that must move


def random(rows: int, hidden: int, dtype: torch.dtype) -> torch.Tensor:
    """A random tensor (rows, H)."""
    if dtype == torch.int8:
        return torch.randint(-128, 128, (rows, hidden), dtype=dtype, device="cuda")
    return torch.randn(rows, hidden, device="cuda").to(dtype)


def number_of_sets(bytes_of_set: int) -> int:
    """The number of sets that fill three times the L2 cache, so that a set has left it before its next use."""
    return 3 * torch.cuda.get_device_properties().L2_cache_size // bytes_of_set + 2


def floating_skip(dtype: torch.dtype, weight: torch.dtype) -> Callable[[int, int], Case]:
    """x, skip and y have ``dtype``; gamma, beta and bias have it too, or fp32 as in builder.py's networks."""

    def peer(x: torch.Tensor, skip: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        gamma, beta, bias = weights  # an fp32 bias makes the sum fp32
        return functional.layer_norm(x + bias + skip, gamma.shape, gamma, beta, EPSILON).to(dtype)

    return lambda rows, hidden: skip_case(rows, hidden, dtype, dtype, weight, {}, peer, 3 * dtype.itemsize)


def int8_to_both(rows: int, hidden: int) -> Case:
    """x is int8 and skip fp16; y is fp16 for the next residual sum, and int8 for the next product."""

    def peer(x: torch.Tensor, skip: torch.Tensor, *weights: torch.Tensor) -> Tensors:
        gamma, beta, bias = (weight.float() for weight in weights)
        y = functional.layer_norm(x.float() * SCALE + bias + skip.float(), gamma.shape, gamma, beta, EPSILON)
        return y.half(), torch.round(y / SCALE).clamp(-128, 127).to(torch.int8)

    fields = {"x_scale": SCALE, "output_scale": SCALE, "outputs": "both"}
    return skip_case(rows, hidden, torch.int8, torch.float16, torch.float16, fields, peer, 1 + 2 + 2 + 1)


def int8_throughout(rows: int, hidden: int) -> Case:
    """x, skip and y are int8."""

    def peer(x: torch.Tensor, skip: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        gamma, beta, bias = weights
        y = functional.layer_norm(x.float() * SCALE + bias + skip.float() * SCALE, gamma.shape, gamma, beta, EPSILON)
        return torch.round(y / SCALE).clamp(-128, 127).to(torch.int8)

    fields = {"x_scale": SCALE, "skip_scale": SCALE, "output_scale": SCALE}
    return skip_case(rows, hidden, torch.int8, torch.int8, torch.float32, fields, peer, 3)


def skip_case(
    rows: int,
    hidden: int,
    x: torch.dtype,
    skip: torch.dtype,
    weight: torch.dtype,
    fields: dict[str, Any],
    peer: Callable[..., Result],
    bytes_of_element: int,
) -> Case:
    """SkipLayerNorm with a bias."""
    moved = rows * hidden * bytes_of_element
    weights = tuple(torch.randn(hidden, device="cuda").to(weight) for _ in range(3))
    sets = [(random(rows, hidden, x), random(rows, hidden, skip), *weights) for _ in range(number_of_sets(moved))]
    scales = {name: fields.get(name, 0.0) for name in ("x_scale", "skip_scale")}

    def exact(*inputs: torch.Tensor) -> torch.Tensor:
        return reference.skip_layer_norm(*inputs, epsilon=EPSILON, **scales, dtype=torch.float64)

    fields = {"epsilon": EPSILON, "constant_weights": 1, **fields}
    return Case("SkipLayerNorm", fields, sets, peer, exact, moved)


def embedding(zipf: bool) -> Callable[[int, int], Case]:
    """EmbLayerNorm in fp16. Words are drawn evenly, or with ``zipf`` as in a text: word k with a weight of 1 / k."""

    def peer(*inputs: torch.Tensor) -> torch.Tensor:
        words, types, positions, word_table, position_table, type_table, gamma, beta = inputs
        total = (
            functional.embedding(words, word_table)
            + functional.embedding(types, type_table)
            + functional.embedding(positions, position_table)
        )
        return functional.layer_norm(total, gamma.shape, gamma, beta, EPSILON)

    def case(rows: int, hidden: int) -> Case:
        tables = [random(size, hidden, torch.float16) for size in (WORDS, POSITIONS, TYPES)]
        weights = [torch.randn(hidden, device="cuda").half() for _ in range(2)]
        weight_of_word = 1 / torch.arange(1, WORDS + 1, device="cuda") if zipf else torch.ones(WORDS, device="cuda")
        shuffled = torch.randperm(WORDS, device="cuda")  # spreads frequent words over the table
        sets, touched = [], 0
        for _ in range(number_of_sets(rows * hidden * 4)):
            words = shuffled[torch.multinomial(weight_of_word, rows, replacement=True)].int()
            types = torch.randint(TYPES, (rows,), dtype=torch.int32, device="cuda")
            positions = (torch.arange(rows, device="cuda") % POSITIONS).int()
            sets.append((words, types, positions, *tables, *weights))
            touched = sum(len(ids.unique()) for ids in (words, types, positions))
        moved = 3 * 4 * rows + 2 * hidden * (rows + touched)

        def exact(*inputs: torch.Tensor) -> torch.Tensor:
            return reference.emb_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)

        return Case("EmbLayerNorm", {"epsilon": EPSILON}, sets, peer, exact, moved)

    return case


CASES: dict[str, Callable[[int, int], Case]] = dict(
    zip(
        CASE_NAMES,
        (
            floating_skip(torch.float16, torch.float16),
            floating_skip(torch.float16, torch.float32),
            floating_skip(torch.float32, torch.float32),
            floating_skip(torch.bfloat16, torch.bfloat16),
            int8_to_both,
            int8_throughout,
            embedding(zipf=False),
            embedding(zipf=True),
        ),
        strict=True,
    )
)


def rotating(function: Callable[..., object], sets: list[Tensors]) -> Callable[[], object]:
    """A function that calls ``function`` with one set after another."""
    cycle = itertools.cycle(sets)
    return lambda: function(*next(cycle))


def relative_error(output: Result | list[torch.Tensor], exact: torch.Tensor) -> float | None:
    """‖output − exact‖ / ‖exact‖ of a floating-point output; None for int8."""
    y = output[0] if isinstance(output, tuple | list) else output
    return None if y.dtype == torch.int8 else ((y.double() - exact).norm() / exact.norm()).item()


def measure(host: PluginHost, name: str, rows: int, hidden: int) -> dict[str, Any]:
    """Measures all contenders in one case."""
    torch.manual_seed(rows)
    case = CASES[name](rows, hidden)
    plugin = host.create(case.plugin, fields=case.fields)
    torch.compiler.reset()  # otherwise it stops specialising after eight shapes
    compiled = torch.compile(case.peer, dynamic=False)
    sources = [(torch.randint(127, (case.moved // 2,), dtype=torch.int8, device="cuda"),) for _ in case.sets]
    first = case.sets[0]
    with torch.no_grad():
        times = graph_times(
            {
                PLUGIN: rotating(lambda *inputs: plugin.run_torch(inputs), case.sets),
                EAGER: rotating(case.peer, case.sets),
                COMPILED: rotating(compiled, case.sets),
                COPY: rotating(torch.clone, sources),
            },
            max(LAUNCHES, len(case.sets)),
        )
        exact = case.exact(*first)
        error, error_of_pytorch = (
            relative_error(output, exact) for output in (plugin.run_torch(first), case.peer(*first))
        )
    return {
        "case": name,
        "rows": rows,
        "megabytes": round(case.moved / 1e6, 3),
        "sets": len(case.sets),
        "microseconds": {contender: round(times[contender], 3) for contender in CONTENDERS},
        "gigabytes_per_second": round(case.moved / times[PLUGIN] / 1e3, 1),
        "share_of_copy": round(times[COPY] / times[PLUGIN], 3),
        "times_eager": round(times[EAGER] / times[PLUGIN], 2),
        "times_compiled": round(times[COMPILED] / times[PLUGIN], 3),
        "error": error,
        "error_of_pytorch": error_of_pytorch,
    }


HEADINGS = (
    "rows", "MB", *CONTENDERS, "eager ÷ plugin", "torch.compile ÷ plugin", "GB/s", "of the copy", "error",
    "PyTorch's error",
)  # fmt: skip


def cells(result: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row as text."""
    errors = ("" if result[key] is None else f"{result[key]:.1e}" for key in ("error", "error_of_pytorch"))
    times = (f"{result['microseconds'][contender]:.2f}" for contender in CONTENDERS)
    return (
        str(result["rows"]),
        f"{result['megabytes']:.1f}",
        *times,
        f"{result['times_eager']:.2f}",
        f"{result['times_compiled']:.3f}",
        f"{result['gigabytes_per_second']:.0f}",
        f"{result['share_of_copy']:.1%}",
        *errors,
    )


def by_case(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results by case."""
    return {
        name: [result for result in results if result["case"] == name]
        for name in dict.fromkeys(r["case"] for r in results)
    }


def markdown(results: list[dict[str, Any]], hidden: int, about: dict[str, str]) -> str:
    """The Markdown file."""
    lines = [
        "# SkipLayerNorm and EmbLayerNorm",
        "",
        ", ".join(f"{key} {value}" for key, value in about.items() if key != "command")
        + f". Command: `{about['command']}`",
        "",
        f"Microseconds, hidden size {hidden}. MB: what must move, counted as the script's first lines say. Error: "
        "relative L2 against float64.",
    ]
    for name, case_results in by_case(results).items():
        lines += ["", f"## {name}", "", "| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
        lines += ["| " + " | ".join(cells(result)) + " |" for result in case_results]
    return "\n".join(lines) + "\n"


def environment(command: str) -> dict[str, str]:
    """Versions and hardware on which the figures depend."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver.splitlines()[0] if driver else "unknown",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "method": f"CUDA graphs of {LAUNCHES} launches or more, median of 30 replays, in turn",
        "command": command,
    }


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_outputs({"--json": args.json, "--markdown": args.markdown}, {})
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA GPU on this machine; times are measured on one")
    host, results = PluginHost(), []
    for name, rows in itertools.product(args.case, args.rows):
        with log_console.status(f"{name}, {rows} rows"):
            results.append(measure(host, name, rows, args.hidden))
    about = environment(f"python benchmarks/skip_and_embedding_norms.py --hidden {args.hidden}")
    for name, case_results in by_case(results).items():
        table = Table(*HEADINGS, title=name)
        for result in case_results:
            table.add_row(*cells(result))
        console.print(table)
    texts = (
        (args.json, json.dumps({**about, "hidden": args.hidden, "results": results}, indent=1) + "\n"),
        (args.markdown, markdown(results, args.hidden, about)),
    )
    for path, text in texts:
        if path is not None:
            with atomic_write(path) as file:
                file.write(text.encode())
    return 0


if __name__ == "__main__":
    run_script(main)
