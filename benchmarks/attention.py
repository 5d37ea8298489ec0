"""Measures times and errors of the QkvToContext plugin and of PyTorch's attention.

    python benchmarks/attention.py                                 the table; needs a CUDA GPU and the built plugins
    python benchmarks/attention.py --json FILE --markdown FILE     the same as files

The plugin reads the merged product (B, S, 3H). PyTorch's attention gets contiguous Q, K and V, (B, N, S, D); the time
to separate and transpose them is not counted. The lengths of packed sequences are spread evenly from S / 8 to S, and
PyTorch computes the padded batch. With int8, input and output are int8.

Errors are relative L2 norms against float64 on the same inputs.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

TYPE_NAMES: tuple[str, ...] = ("fp16", "bf16", "fp32", "int8")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=TYPE_NAMES, help="only this type")
    parser.add_argument("--heads", type=int, default=12, help="heads (default: 12)")
    parser.add_argument("--head-size", type=int, choices=(32, 64, 128), default=64, help="elements of a head")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.files import atomic_write, check_outputs
from plugins import reference
from plugins.measure import graph_times
from plugins.plugin_host import PluginHost

TYPES: dict[str, torch.dtype] = dict(
    zip(TYPE_NAMES, (torch.float16, torch.bfloat16, torch.float32, torch.int8), strict=True)
)
SHAPES = ((1, 128), (8, 128), (32, 128), (1, 384), (32, 384), (8, 512))
PACKED_SHAPES = ((8, 128), (32, 128), (32, 384))
INPUT_SCALE = 1 / 30  # for inputs with a standard deviation of 1
OUTPUT_SCALE = 0.01
# By the type of PyTorch's inputs. PyTorch has no int8 attention and runs in fp16 instead.
PEERS = {
    torch.float16: {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION},
    torch.bfloat16: {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION},
    torch.float32: {"efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH},
}
METHOD = "CUDA graphs of 20 or 50 launches on the same buffers, median of 30 replays, contenders in turn"


@dataclass
class Row:
    """A row of the table: microseconds, and errors of the floating-point types."""

    type: str
    layout: str
    batch: int
    length: int
    tokens: int
    plugin: float
    peers: dict[str, float]
    ratio: float  # fastest peer / plugin
    error: float | None
    peer_error: float | None  # error of the first peer


def make_inputs(type_name: str, layout: str, batch: int, length: int, width: int) -> list[torch.Tensor]:
    """qkv (B, S, 3H), or (T, 3H) and cu_seqlens (B + 1,)."""
    lengths = torch.linspace(length // 8, length, batch).round().int()
    shape = (batch, length) if layout == "single" else (int(lengths.sum()),)
    qkv = torch.randn(*shape, 3 * width, device="cuda")
    if type_name == "int8":
        qkv = (qkv / INPUT_SCALE).round().clamp(-128, 127)
    inputs = [qkv.to(TYPES[type_name])]
    if layout == "packed":
        inputs.append(torch.cat([torch.zeros(1), lengths.cumsum(0)]).int().cuda())
    return inputs


def attend(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's attention on (B, N, S, D), with one of its kernels."""
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def measure(
    host: PluginHost, type_name: str, layout: str, batch: int, length: int, heads: int, head_size: int
) -> Row:
    """Measures plugin and peers with one shape."""
    width = heads * head_size
    inputs = make_inputs(type_name, layout, batch, length, width)
    fields: dict[str, Any] = {"num_heads": heads, "layout": layout}
    if type_name == "int8":
        fields |= {"qkv_scale": INPUT_SCALE, "output_scale": OUTPUT_SCALE}
    plugin = host.create("QkvToContext", fields=fields)
    (context,) = plugin.run_torch(inputs)

    peer_type = torch.float16 if type_name == "int8" else TYPES[type_name]
    padded = inputs[0] if layout == "single" else torch.randn(batch, length, 3 * width, device="cuda")
    q, k, v = (
        part.contiguous() for part in padded.to(peer_type).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    )
    contenders: dict[str, Callable[[], object]] = {"plugin": lambda: plugin.run_torch(inputs, [context])}
    contenders |= {name: functools.partial(attend, backend, q, k, v) for name, backend in PEERS[peer_type].items()}
    times = graph_times(contenders, 50 if batch * length <= 4096 else 20)
    peers = {name: round(time, 2) for name, time in times.items() if name != "plugin"}

    error = peer_error = None
    if layout == "single" and type_name != "int8":
        exact = reference.qkv_to_context(*inputs, **fields, dtype=torch.float64)  # (B, S, H)
        error = relative_error(context, exact)
        peer = attend(next(iter(PEERS[peer_type].values())), q, k, v)  # (B, N, S, D)
        peer_error = relative_error(peer.transpose(1, 2).flatten(2), exact)
    tokens = inputs[0].numel() // (3 * width)
    ratio = round(min(peers.values()) / times["plugin"], 3)
    return Row(type_name, layout, batch, length, tokens, round(times["plugin"], 2), peers, ratio, error, peer_error)


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Versions and hardware on which the figures depend."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver.splitlines()[0] if driver else "unknown",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "python": platform.python_version(),
        "heads": f"{arguments.heads} of {arguments.head_size}",
        "method": METHOD,
    }


HEADINGS = ("type", "layout", "B", "S", "tokens", "plugin", "PyTorch", "faster ÷ plugin", "error", "PyTorch's error")


def cells(row: Row) -> list[str]:
    """The cells of a row as text."""
    errors = ["" if error is None else f"{error:.2e}" for error in (row.error, row.peer_error)]
    peers = ", ".join(f"{name} {time:.2f}" for name, time in row.peers.items())
    return [
        row.type, row.layout, str(row.batch), str(row.length), str(row.tokens),
        f"{row.plugin:.2f}", peers, f"{row.ratio:.2f}", *errors,
    ]  # fmt: skip


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    """The Markdown file."""
    lines = ["# Attention", "", __doc__.split("\n\n", 2)[2].strip() if __doc__ else "", ""]
    lines += ["Microseconds.", "", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += ["", *(f"- {key}: {value}" for key, value in about.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the script; returns its exit code."""
    arguments = parse_arguments()
    check_outputs({"--json": arguments.json, "--markdown": arguments.markdown}, {})
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA GPU; the benchmark needs one and PyTorch for CUDA")
    torch.manual_seed(0)
    host = PluginHost()
    cases = [
        (type_name, layout, *shape)
        for layout, shapes in (("single", SHAPES), ("packed", PACKED_SHAPES))
        for type_name in ([arguments.type] if arguments.type else TYPES)
        for shape in shapes
    ]
    rows = []
    for case in cases:
        rows.append(measure(host, *case, arguments.heads, arguments.head_size))
        log_console.print("  ".join(cells(rows[-1])))
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    about = environment(arguments) | {"command": "python " + " ".join(sys.argv)}
    if arguments.json:
        with atomic_write(arguments.json) as file:
            file.write(json.dumps({"environment": about, "rows": [asdict(row) for row in rows]}, indent=1).encode())
    if arguments.markdown:
        with atomic_write(arguments.markdown) as file:
            file.write(markdown(rows, about).encode())
    return 0


if __name__ == "__main__":
    run_script(main)
