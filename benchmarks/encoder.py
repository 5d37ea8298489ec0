"""Measures BERT's encoder on the GPU: our network with each fusion, and PyTorch, all in CUDA graphs.

    python benchmarks/encoder.py --json FILE --markdown FILE                        random weights of BERT-base size
    python benchmarks/encoder.py --sweep --json FILE --markdown FILE --plot FILE.png
    python benchmarks/encoder.py MODEL_DIR --sizes 8x128

The encoder runs in fp16, without embeddings and head. "ours" is builder.py's network definition, which
network_runner.py runs with the plugins' own kernels, without TensorRT and without torch.compile. It gets a padded
batch with a mask of ones; "packed" gets the same tokens without padding. The peer is the same encoder in PyTorch,
with one merged product for Q, K and V, and scaled_dot_product_attention with the faster of its backends and no mask:
eager, and with each layer compiled by torch.compile. Hugging Face's own encoder is measured too. "products alone" are
the 48 matrix products through cuBLAS, with weights (out, in), as in PyTorch's linear, and (in, out), as in ONNX.

--sweep compares --fusion all with torch.compile only, at every size from B1 S32 to B256 S512; a layer is compiled for
each size.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from sizes import sizes_parser

from bert_trt.interrupts import begin_script

SIZES = ((1, 128), (8, 128), (32, 128), (128, 128), (32, 384), (8, 512))
ALL_SIZES = tuple(itertools.product((2**power for power in range(9)), (32, 64, 128, 256, 384, 512)))  # of --sweep


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = sizes_parser("The encoder in a CUDA graph, ours and PyTorch's.")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="only --fusion all against torch.compile, without --sizes at all sizes from 1x32 to 256x512",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --sweep: a picture of the ratios")
    args = parser.parse_args()
    args.sizes = args.sizes or (ALL_SIZES if args.sweep else SIZES)
    if args.plot is not None and not args.sweep:
        parser.error("--plot draws the ratios of --sweep; add it")
    return args


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from partial_fusion import ALONE
from pytorch_encoder import BACKENDS, PRODUCTS, Peer, fastest_attention
from random_model import open_model
from report import check_results, markdown_table, print_table, versions, write_results
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import linear

from bert_trt.console import UserError, log_console, run_script
from bert_trt.files import atomic_write
from bert_trt.fusion import LAYER_SETS
from bert_trt.model_files import LENGTHS_NAME, MASK_NAME, BertConfig, ModelFolder
from bert_trt.network_runner import NetworkRunner, best_device
from bert_trt.options import FUSIONS
from bert_trt.pictures import load_pyplot
from bert_trt.tensorrt_log import TrtLog
from builder import assemble
from plugins.measure import graph_times

# By name: each plugin alone, and the choices of --fusion. EmbLayerNorm is left out, as it is not in the encoder, and
# so is TensorRT's own attention, whose kernel only TensorRT has.
FUSED = {name: entry for name, entry in ALONE.items() if name != "EmbLayerNorm"}
FUSED |= {name: (name, LAYER_SETS[name], fused) for name, fused in FUSIONS.items() if name != "tensorrt"}
DEVICE = best_device()  # a CPU only in tests, which measure nothing
Function = Callable[[], Any]

SWEEP_ROUNDS = 10
CONTENDERS = ("padded", "packed")


# --- the peers --------------------------------------------------------------------------------------------


def hugging_face(config: BertConfig) -> torch.nn.Module:
    """Hugging Face's encoder of the same sizes, with random weights, which do not change the time."""
    from transformers import BertConfig as HfConfig
    from transformers import BertModel

    sizes = HfConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
    )
    return BertModel(sizes).encoder.cuda().half().eval()


# --- ours -------------------------------------------------------------------------------------------------


def our_module(folder: ModelFolder, name: str, batching: str, length: int) -> torch.nn.Module:
    """The encoder of builder.py's network: (B, S, H) or (T, H), and mask or cu_seqlens, to the same shape.

    ``length`` is the longest sequence that the network is for, as builder.py takes it from --seq-len.
    """
    fusion, layer_set, fused = FUSED[name]
    network = assemble(
        *(folder, TrtLog(), "fp16"), batching=batching, fusion=fusion, layer_set=layer_set, max_length=length
    )
    first, *_, last = network.hidden_states
    batch_input = {"padded": MASK_NAME, "packed": LENGTHS_NAME}[batching]
    if "QkvToContext" not in fused:
        batch_input = "mask.bias"  # native attention adds this tensor, which layers outside the encoder compute
    runner = NetworkRunner(network.network, DEVICE, [last], network.contents, inputs=[first, batch_input])
    module: Any = runner.module
    module.network = network  # whose memory holds the weights on a CPU
    return module


def our_inputs(x: torch.Tensor, name: str, batching: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's inputs for x (B, S, H): x, and the mask, cu_seqlens, or the additive mask of native attention."""
    batch, length, _ = x.shape
    if batching == "packed":
        return x.flatten(0, 1), torch.arange(batch + 1, dtype=torch.int32, device=DEVICE) * length
    if "QkvToContext" in FUSED[name][2]:
        return x, torch.ones(batch, length, dtype=torch.int32, device=DEVICE)
    return x, torch.zeros(batch, 1, 1, length, device=DEVICE)


# --- measuring --------------------------------------------------------------------------------------------


def products_alone(peer: Peer, tokens: int, transposed: bool) -> Function:
    """The products of all layers, through cuBLAS, without biases; ``transposed``: weights are (in, out) in memory."""
    hidden, inner = peer.config.hidden_size, peer.config.intermediate_size
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.float16)
    inner_x = torch.randn(tokens, inner, device="cuda", dtype=torch.float16)

    layers = [[w[name].t().contiguous().t() if transposed else w[name] for name in PRODUCTS] for w in peer.layers]

    def run() -> None:
        for qkv, attended, inner_weight, outer in layers:
            linear(x, qkv)
            linear(x, attended)
            linear(x, inner_weight)
            linear(inner_x, outer)

    return run


def measure(folder: ModelFolder, batch: int, length: int) -> dict[str, Any]:
    """Measures all contenders at one size, in one run."""
    config = folder.config
    torch.manual_seed(0)
    x = torch.randn(batch, length, config.hidden_size, device="cuda", dtype=torch.float16)
    peer = Peer(config, folder.weights())
    functions: dict[str, Function] = {
        "products alone": products_alone(peer, batch * length, transposed=False),
        "products alone, (in, out)": products_alone(peer, batch * length, transposed=True),
    }
    results: dict[str, torch.Tensor] = {}

    def add(name: str, run: Callable[..., Any], *inputs: torch.Tensor) -> None:
        with log_console.status(f"B{batch} S{length}: {name}"):
            answer = run(*inputs)
            hidden = answer[0] if isinstance(answer, tuple) else answer
            results[name] = hidden.reshape(-1, config.hidden_size).clone()
        functions[name] = lambda: run(*inputs)

    with torch.inference_mode():
        best = fastest_attention(config, batch, length)
        with sdpa_kernel(BACKENDS[best]):
            add("PyTorch eager", peer, x)
            add("PyTorch compiled", peer.compiled(), x)
            for name in FUSED:
                add(f"ours {name}", our_module(folder, name, "padded", length), *our_inputs(x, name, "padded"))
            add("ours all, packed", our_module(folder, "all", "packed", length), *our_inputs(x, "all", "packed"))
            times_by_name = graph_times(functions, launches=4, rounds=25)
        encoder = hugging_face(config)
        times_by_name["Hugging Face eager"] = graph_times({"it": lambda: encoder(x)}, launches=4, rounds=25)["it"]
    reference = results["PyTorch eager"].double()
    errors = {
        name: float((result.double() - reference).norm() / reference.norm()) for name, result in results.items()
    }
    return {
        "batch": batch,
        "length": length,
        "backend": best,
        "microseconds": times_by_name,
        "rel_l2_to_eager": errors,
    }


HEADINGS = (
    "B",
    "S",
    "what",
    "us",
    "compiled peer : this",
    "eager peer : this",
    "this : products",
    "rel. L2 to eager",
)


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    table_rows = []
    for result in results:
        times = result["microseconds"]
        for name, time in times.items():
            error = result["rel_l2_to_eager"].get(name)
            table_rows.append(
                [
                    str(result["batch"]),
                    str(result["length"]),
                    name + (f" ({result['backend']})" if name.startswith("PyTorch") else ""),
                    f"{time:.1f}",
                    f"{times['PyTorch compiled'] / time:.3f}",
                    f"{times['PyTorch eager'] / time:.3f}",
                    f"{time / times['products alone']:.3f}",
                    "—" if error is None else f"{error:.1e}",
                ]
            )
    return table_rows


# --- the sweep ------------------------------------------------------------------------------------------------


def sweep(folder: ModelFolder, sizes: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Measures all sizes; yields one after another."""
    peer = Peer(folder.config, folder.weights(), DEVICE)
    our_module_for = functools.cache(functools.partial(our_module, folder, "all"))
    for batch, length in sizes:
        x = torch.randn(batch, length, peer.config.hidden_size, device=DEVICE, dtype=torch.float16)
        functions: dict[str, Function] = {"compiled": functools.partial(peer.compiled(), x)}
        for batching in CONTENDERS:
            functions[batching] = functools.partial(our_module_for(batching, length), *our_inputs(x, "all", batching))
        launches = min(8, max(1, 4096 // (batch * length)))
        with torch.inference_mode(), log_console.status(f"B{batch} S{length}"):
            backend = fastest_attention(peer.config, batch, length)
            with sdpa_kernel(BACKENDS[backend]):
                times = graph_times(functions, launches, SWEEP_ROUNDS)
        yield {"batch": batch, "length": length, "backend": backend, "microseconds": times}


def sweep_tables(results: Sequence[dict[str, Any]]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, headings and rows of each table of the sweep."""
    headings = ("B", *(f"S {length}" for length in lengths_of(results)))
    return [
        *((f"torch.compile ÷ ours, {batching}", headings, ratio_rows(results, batching)) for batching in CONTENDERS),
        ("Microseconds", SWEEP_HEADINGS, sweep_rows(results)),
    ]


def ratio_rows(results: Sequence[dict[str, Any]], batching: str) -> list[list[str]]:
    """The ratios as a table: a row for each B, a column for each S."""
    cells = ratios(results, batching)
    return [
        [str(batch), *("—" if math.isnan(cell) else f"{cell:.2f}" for cell in row)]
        for batch, row in zip(batches_of(results), cells, strict=True)
    ]


def ratios(results: Sequence[dict[str, Any]], batching: str) -> list[list[float]]:
    """The compiled peer's time by ours: a row for each B, a column for each S; NaN for a size not measured."""
    by_size = {
        (result["batch"], result["length"]): result["microseconds"]["compiled"] / result["microseconds"][batching]
        for result in results
    }
    return [
        [by_size.get((batch, length), math.nan) for length in lengths_of(results)] for batch in batches_of(results)
    ]


def batches_of(results: Sequence[dict[str, Any]]) -> list[int]:
    """Every B that was measured, ascending."""
    return sorted({result["batch"] for result in results})


def lengths_of(results: Sequence[dict[str, Any]]) -> list[int]:
    """Every S that was measured, ascending."""
    return sorted({result["length"] for result in results})


SWEEP_HEADINGS = ("B", "S", "torch.compile", *CONTENDERS, "attention of torch.compile")


def sweep_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """All times, in microseconds."""
    return [
        [
            *(str(result["batch"]), str(result["length"])),
            *(f"{result['microseconds'][name]:.1f}" for name in ("compiled", *CONTENDERS)),
            result["backend"],
        ]
        for result in results
    ]


def draw(results: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draws the ratios as a map of colours for each batching: blue where ours is faster, red where it is slower."""
    pyplot = load_pyplot()
    batches, lengths = batches_of(results), lengths_of(results)
    figure, axes = pyplot.subplots(1, len(CONTENDERS), figsize=(11, 5), layout="constrained")
    for axis, batching in zip(axes, CONTENDERS, strict=True):
        cells = ratios(results, batching)
        axis.imshow(cells, cmap="RdBu", vmin=0, vmax=2, aspect="auto")  # white at 1
        for row, column in itertools.product(range(len(batches)), range(len(lengths))):
            cell = cells[row][column]
            if not math.isnan(cell):
                colour = "white" if abs(cell - 1) > 0.6 else "black"
                axis.text(column, row, f"{cell:.2f}", ha="center", va="center", color=colour)
        axis.set(xlabel="tokens of each sequence", ylabel="sequences", title=f"torch.compile ÷ ours, {batching}")
        axis.set_xticks(range(len(lengths)), lengths)
        axis.set_yticks(range(len(batches)), batches)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir], args.plot)
    if not torch.cuda.is_available():
        raise UserError("benchmarks/encoder.py needs an NVIDIA GPU and PyTorch for CUDA")
    if args.plot is not None:
        load_pyplot()  # an error now, not after the measurement
    folder, about = open_model(args.model_dir), versions("cuda")
    command = " ".join(["python benchmarks/encoder.py", *sys.argv[1:]])
    lines = [
        "# The encoder in a CUDA graph",
        "",
        "fp16, BERT-base size. Ours is run by `network_runner.py` from the TensorRT network definition, not by "
        f"TensorRT. {', '.join(f'{key} {value}' for key, value in about.items())}. Command: `{command}`",
        "",
    ]
    record = {"about": about, "command": command}
    results: list[dict[str, Any]] = []
    if args.sweep:
        for result in sweep(folder, args.sizes):
            results.append(result)
            page = list(lines)
            for title, headings, table in sweep_tables(results):
                page += [f"## {title}", "", *markdown_table(headings, table), ""]
            write_results(args.json, record | {"results": results}, args.markdown, page[:-1])
        for title, headings, table in sweep_tables(results):
            print_table(title, headings, table)
        if args.plot is not None:
            draw(results, f"BERT-base encoder, fp16, {about['device']}", args.plot)
        return 0
    for batch, length in args.sizes:
        results.append(measure(folder, batch, length))
        print_table("Encoder, fp16, CUDA graph, median", HEADINGS, rows(results[-1:]))
        page = [*lines, *markdown_table(HEADINGS, rows(results))]
        write_results(args.json, record | {"results": results}, args.markdown, page)
    return 0


if __name__ == "__main__":
    run_script(main)
