"""Measures the sequences a second of BERT for question answering, over the lengths of SQuAD's development set.

    python benchmarks/squad_throughput.py --json FILE --markdown FILE
    python benchmarks/squad_throughput.py --model base --precision fp8 --budget 32768

The work is that of MLPerf Inference's BERT, offline scenario: all 10,833 sequences are there at once, may be sorted,
and only throughput counts. Weights and token ids are random, the lengths are those of SQuAD v1.1. The sequences are
packed by bert_trt/packing.py, so that nothing is padded but the end of a batch.

network_runner.py runs the network definition of builder.py (--fusion all --batching packed) with the plugins' own
kernels, without TensorRT; the head's product is PyTorch's. Each size of batch has a CUDA graph. The clock starts
before the first token ids are copied to the GPU, and stops when the span logits of all sequences are back on the CPU.
Packing and captures come before; packing takes about 0.1 s on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

MODELS = {  # layers, H, heads, rows of the word table
    "large": (24, 1024, 16, 30522),
    "base": (12, 768, 12, 30522),
    "tiny": (2, 128, 2, 1000),  # for tests
}
PRECISIONS = ("fp16", "int8", "fp8")
BUDGETS = (8192, 16384, 32768, 65536, 131072)
GRAPH_STEPS = 8  # a graph has a multiple of budget / 8 tokens
GRAPH_SEQUENCES = 128  # and a multiple of this many sequences, some of them empty


def budget(text: str) -> int:
    """Reads a token budget: a graph's tokens must be a multiple of 16 for all kernels to be aligned."""
    value = int(text) if text.isdecimal() else 0
    if value < 512 or value % (16 * GRAPH_STEPS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 512 tokens, a multiple of {16 * GRAPH_STEPS}")
    return value


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="BERT for question answering over the lengths of SQuAD.")
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["large", "base"])
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument(
        *("--budget", "--budgets"),
        dest="budgets",
        type=budget,
        nargs="+",
        default=list(BUDGETS),
        metavar="TOKENS",
        help="token budgets of a batch to try; the fastest is measured again",
    )
    parser.add_argument("--sequences", type=positive, help="only so many sequences; default: all")
    parser.add_argument("--passes", type=positive, default=3, help="over all sequences; the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_encoder import FP8, fp8_product
from quantized_encoder import find_quantization
from random_model import RandomModel, random_config
from report import check_results, markdown_table, print_table, versions, write_results

from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, BertConfig, ModelFolder
from bert_trt.network_runner import NetworkRunner, best_device
from bert_trt.options import QUESTION_ANSWERING
from bert_trt.packing import Limits, PackedBatch, pack, packed_batch, scatter
from bert_trt.quantization import Quantization
from bert_trt.tensorrt_log import TrtLog
from builder import assemble
from plugins.measure import capture, graph_times

LENGTHS = Path(__file__).parent / "squad_v1.1_dev_lengths.json"
FIRST_ID = 5  # ids below are those of special tokens
PEAK_SIZE = 8192  # the product whose speed stands for a type's peak is this large on every side
KINDS = {  # the kind of a kernel: what its name has in it; the first that fits
    "embedding": r"embLayerNorm\w*Kernel",
    "norms": r"\b(l|skipL)ayerNorm\w*Kernel",
    "attention": r"qkvToContext\w*Kernel",
    "Linear": r"linear\w*Kernel",  # also that with a layer norm behind it
    "copies": r"^Mem(cpy|set)",
    "head": r"gemm|gemv|nvjet|cutlass|cublas|splitK",  # PyTorch's product, the only one
    "other": "",
}
SOURCE = "https://mlcommons.org/benchmarks/inference-datacenter/"
PUBLISHED = (  # MLPerf Inference, closed division, BERT-large, offline scenario: round, GPU, note, samples/s of a GPU
    ("v4.1", "H200", "int8, weights trained for it", 9224),
    ("v4.1", "H200", "fp8, the 99.9 % line", 8165),
    ("v3.0", "H100", "the 99 % line", 9369),
    ("v3.0", "H100", "the 99.9 % line", 8007),
    ("v3.0", "A100", "the 99 % line", 3534),
)
REMARK = (
    "MLPerf's results ran in TensorRT, with a trained model whose accuracy was checked. These are random weights, "
    "run by network_runner.py: the same work, without that proof."
)


# --- the sequences ----------------------------------------------------------------------------------------------


def read_lengths(count: int | None) -> np.ndarray:
    """Tokens of each sequence, (n,), in random order; the first ``count`` of them."""
    counts = {int(length): number for length, number in json.loads(LENGTHS.read_text())["count_by_length"].items()}
    lengths = np.repeat(list(counts), list(counts.values()))
    return np.random.default_rng(0).permutation(lengths)[:count]


def random_sequences(lengths: np.ndarray, vocabulary: int) -> list[np.ndarray]:
    """Random token ids of these lengths, each int32 (S_i,)."""
    generator = np.random.default_rng(1)
    return [generator.integers(FIRST_ID, vocabulary, length, np.int32) for length in lengths]


def operations(config: BertConfig, lengths: np.ndarray) -> float:
    """The multiplications and additions of the products: of the real tokens, nothing of the padding.

    A token passes the linear layers' weights; attention multiplies each query with the keys of its own sequence, and
    the probabilities with the values.
    """
    hidden, inner, lengths = config.hidden_size, config.intermediate_size, lengths.astype(np.float64)
    weights = config.num_layers * (4 * hidden**2 + 2 * hidden * inner) + 2 * hidden
    return 2 * weights * lengths.sum() + 4 * config.num_layers * hidden * (lengths**2).sum()


# --- the network ------------------------------------------------------------------------------------------------


class SpanNetwork:
    """The whole network, from the inputs of a packed batch to span logits (T, 2) in fp32.

    Args:
        model: the model.
        precision: one of ``PRECISIONS``.
        device: "cpu" or "cuda".
        quantization: for 8 bits.
    """

    def __init__(self, model: ModelFolder, precision: str, device: str, quantization: Quantization | None) -> None:
        network = assemble(*(model, TrtLog(), precision), batching="packed", quantization=quantization, fusion="all")
        self._network = network  # must live as long as the runner
        self.runner = NetworkRunner(network.network, device, contents=network.contents)

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Ids, token types and positions, each int32 (T,), and cu_seqlens (B + 1,) -> (T, 2)."""
        (logits,) = self.runner.module(*(inputs[name] for name in self.runner.input_names))
        return logits


@dataclass(frozen=True)
class HostBatch:
    """A batch in the CPU's memory.

    Attributes:
        batch: the sequences.
        inputs: the network's inputs, padded to the size of a graph: T' tokens, B' sequences.
        logits: the results are copied here, fp32 (T', 2).
    """

    batch: PackedBatch
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(T', B')."""
        return len(self.inputs[INPUT_NAMES[0]]), len(self.inputs[LENGTHS_NAME]) - 1

    @classmethod
    def of(cls, batch: PackedBatch, max_tokens: int, pin: bool) -> HostBatch:
        """The batch, padded; ``pin``: in memory that the GPU can copy from while it computes.

        Tokens after the last sequence belong to none, so that attention skips them, and sequences after the last one
        are empty.
        """
        inputs = packed_batch(batch).inputs
        tokens, sequences = len(batch.input_ids), len(batch.sequences)
        padded_tokens = _round_up(tokens, max_tokens // GRAPH_STEPS)
        tensors = {name: torch.from_numpy(np.pad(inputs[name], (0, padded_tokens - tokens))) for name in INPUT_NAMES}
        more = _round_up(sequences, GRAPH_SEQUENCES) - sequences
        tensors[LENGTHS_NAME] = torch.from_numpy(np.pad(inputs[LENGTHS_NAME], (0, more), mode="edge"))
        logits = torch.zeros(padded_tokens, 2)
        if pin:
            return cls(batch, {name: tensor.pin_memory() for name, tensor in tensors.items()}, logits.pin_memory())
        return cls(batch, tensors, logits)

    @property
    def result(self) -> np.ndarray:
        """The span logits of the real tokens, fp32 (T, 2)."""
        return self.logits[: len(self.batch.input_ids)].numpy()


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


class Graph:
    """The network for one size of batch, captured in a CUDA graph.

    Args:
        network: the network.
        size: tokens and sequences.
    """

    def __init__(self, network: SpanNetwork, size: tuple[int, int]) -> None:
        tokens, sequences = size
        widths = dict.fromkeys(INPUT_NAMES, tokens) | {LENGTHS_NAME: sequences + 1}
        self.inputs = {name: torch.zeros(width, dtype=torch.int32, device="cuda") for name, width in widths.items()}
        self.logits = torch.zeros(0)

        def run() -> None:
            self.logits = network(self.inputs)

        self.graph = capture(run, 1)

    def launch(self, batch: HostBatch) -> None:
        """Copies the inputs to the GPU, runs, and copies the logits back; returns before that is done."""
        for name, values in batch.inputs.items():
            self.inputs[name].copy_(values, non_blocking=True)
        self.graph.replay()
        batch.logits.copy_(self.logits, non_blocking=True)


class Workload:
    """All batches of one budget, ready to run.

    Args:
        network: the network.
        sequences: token ids of each sequence.
        max_tokens: the token budget.
        config: the model's sizes.

    Attributes:
        packing_seconds: the time that the CPU took to put the sequences into batches.
    """

    def __init__(
        self, network: SpanNetwork, sequences: Sequence[np.ndarray], max_tokens: int, config: BertConfig
    ) -> None:
        self.network = network
        self.on_gpu = network.runner.device.type == "cuda"
        start = time.perf_counter()
        packed = pack(sequences, Limits(max_tokens, len(sequences), config.max_positions, config.vocab_size))
        self.packing_seconds = time.perf_counter() - start
        self.batches = [HostBatch.of(batch, max_tokens, self.on_gpu) for batch in packed]
        sizes = {batch.size for batch in self.batches}
        self.graphs = {size: Graph(network, size) for size in sizes} if self.on_gpu else {}

    def run(self) -> float:
        """Runs all batches once; returns the seconds that it took."""
        self._finish()
        start = time.perf_counter()
        for batch in self.batches:
            if self.on_gpu:
                self.graphs[batch.size].launch(batch)
            else:
                batch.logits.copy_(self.network(batch.inputs))
        self._finish()
        return time.perf_counter() - start

    def results(self) -> np.ndarray:
        """The span logits of all sequences, one after another in the caller's order, fp32 (all tokens, 2)."""
        return np.concatenate(
            scatter([batch.batch for batch in self.batches], [batch.result for batch in self.batches])
        )

    def time_by_kind(self) -> dict[str, float]:
        """The seconds of one run in kernels of each kind; kernels overlap at their ends, so the sum can exceed it."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            self.run()
        seconds = dict.fromkeys(KINDS, 0.0)
        for entry in profile.key_averages():
            if entry.self_device_time_total > 0:
                seconds[kind_of(entry.key)] += entry.self_device_time_total * 1e-6
        return seconds

    def _finish(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel))


# --- measuring --------------------------------------------------------------------------------------------------


def peak_tflops(precision: str) -> float:
    """TFLOP/s of cuBLAS for one large product of this type."""
    torch.manual_seed(0)
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=torch.float16) for _ in range(2))
    if precision == "fp16":
        microseconds = graph_times({"it": lambda: torch.mm(a, b.t())}, 5, 10)["it"]
    elif precision == "int8":
        multiply = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]
        x, y = ((matrix * 40).clamp(-127, 127).to(torch.int8) for matrix in (a, b))
        microseconds = graph_times({"it": lambda: multiply(x, y.t())}, 5, 10)["it"]
    else:
        x, y = (matrix.to(FP8) for matrix in (a, b))
        one = torch.ones((), device="cuda")
        microseconds = graph_times({"it": lambda: fp8_product(x, y, one, one)}, 5, 10)["it"]
    return 2 * PEAK_SIZE**3 / microseconds * 1e-6


def measure(
    name: str, lengths: np.ndarray, precisions: Sequence[str], budgets: Sequence[int], passes: int
) -> list[dict[str, Any]]:
    """Measures one model: a result for each precision."""
    model = RandomModel(random_config(*MODELS[name], task=QUESTION_ANSWERING))
    sequences = random_sequences(lengths, model.config.vocab_size)
    work = operations(model.config, lengths) * 1e-12
    results, reference = [], None
    for precision in precisions:
        quantization = None if precision == "fp16" else find_quantization(model, precision)
        with log_console.status(f"BERT-{name}, {precision}"), torch.inference_mode():
            network = SpanNetwork(model, precision, best_device(), quantization)
            by_budget = {
                max_tokens: seconds_of(Workload(network, sequences, max_tokens, model.config), 1)
                for max_tokens in budgets
            }
            best = min(budgets, key=lambda max_tokens: by_budget[max_tokens])
            workload = Workload(network, sequences, best, model.config)
            seconds = seconds_of(workload, passes)
            logits = workload.results()
            reference = logits if precision == "fp16" else reference
            peak = peak_tflops(precision) if workload.on_gpu else None
            by_kind = workload.time_by_kind() if workload.on_gpu else None
        results.append(
            {
                "model": name,
                "precision": precision,
                "sequences": len(sequences),
                "tokens": int(lengths.sum()),
                "budget": best,
                "batches": len(workload.batches),
                "graphs": len(workload.graphs),
                "seconds": seconds,
                "samples_per_second": len(sequences) / seconds,
                "tflops": work / seconds,
                "peak_tflops": peak,
                "samples_per_second_by_budget": {key: len(sequences) / value for key, value in by_budget.items()},
                "seconds_by_kind": by_kind,
                "packing_seconds": workload.packing_seconds,
                "rel_l2_to_fp16": None if reference is None else relative_error(logits, reference),
            }
        )
        del workload, network  # the next one needs the GPU's memory
    return results


def seconds_of(workload: Workload, passes: int) -> float:
    """The median time of so many passes, after one that warms up."""
    workload.run()
    return statistics.median(workload.run() for _ in range(passes))


def relative_error(values: np.ndarray, reference: np.ndarray) -> float:
    """‖values − reference‖ / ‖reference‖."""
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


# --- tables -----------------------------------------------------------------------------------------------------

HEADINGS = (
    *("model", "type", "budget", "batches", "samples/s", "TFLOP/s", "cuBLAS peak", "share of it"),
    "rel. L2 to fp16",
)
KIND_HEADINGS = ("model", "type", *KINDS)
PUBLISHED_HEADINGS = ("round", "GPU", "what", "samples/s per GPU")


def tables_of(
    results: Sequence[dict[str, Any]], budgets: Sequence[int]
) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, headings and rows of each table; a CPU has no kernels to divide the time between."""
    published = f"MLPerf Inference, closed, BERT-large, offline ({SOURCE})"
    tables = [
        ("Throughput, median of all passes", HEADINGS, rows(results)),
        ("Time of all kernels, by kind", KIND_HEADINGS, kind_rows(results)),
        ("Samples/s by token budget, a single pass", ("model", "type", *map(str, budgets)), budget_rows(results)),
        (published, PUBLISHED_HEADINGS, published_rows()),
    ]
    return [table for table in tables if table[2]]


def optional(value: float | None, form: str) -> str:
    """A number as text; a dash for none."""
    return "—" if value is None else format(value, form)


def rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows of the main table."""
    return [
        [
            f"BERT-{result['model']}",
            result["precision"],
            str(result["budget"]),
            str(result["batches"]),
            f"{result['samples_per_second']:.0f}",
            f"{result['tflops']:.4g}",
            optional(result["peak_tflops"], ".0f"),
            optional(result["peak_tflops"] and result["tflops"] / result["peak_tflops"], ".0%"),
            optional(result["rel_l2_to_fp16"], ".1e"),
        ]
        for result in results
    ]


def kind_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows of the table by kind of kernel: shares of the time of all kernels."""
    table = []
    for result in results:
        seconds = result["seconds_by_kind"]
        if seconds is not None:
            shares = [f"{value / sum(seconds.values()):.1%}" for value in seconds.values()]
            table.append([f"BERT-{result['model']}", result["precision"], *shares])
    return table


def budget_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows of the table by budget: samples/s of a single pass."""
    return [
        [
            *(f"BERT-{result['model']}", result["precision"]),
            *(f"{speed:.0f}" for speed in result["samples_per_second_by_budget"].values()),
        ]
        for result in results
    ]


def published_rows() -> list[list[str]]:
    """The rows of MLPerf's table."""
    return [[version, gpu, what, f"{samples:,}"] for version, gpu, what, samples in PUBLISHED]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown)
    if not torch.cuda.is_available() and args.model != ["tiny"]:
        raise UserError("benchmarks/squad_throughput.py needs an NVIDIA GPU; a CPU can only run --model tiny")
    about = versions(best_device())
    lengths = read_lengths(args.sequences)
    command = " ".join(["python benchmarks/squad_throughput.py", *sys.argv[1:]])
    lines = [
        "# BERT for question answering over the lengths of SQuAD",
        "",
        f"{len(lengths)} sequences with {lengths.sum()} tokens, `--fusion all --batching packed`, from token ids in "
        "the CPU's memory to span logits there, weights on the GPU, CUDA graphs. TFLOP/s count real tokens only. Run "
        "by `network_runner.py` from the TensorRT network definition, not by TensorRT. "
        f"{', '.join(f'{key} {value}' for key, value in about.items())}. Command: `{command}`",
        "",
    ]
    results: list[dict[str, Any]] = []
    for name in args.model:
        results += measure(name, lengths, args.precision, args.budgets, args.passes)
        page = list(lines)
        for title, headings, table in tables_of(results, args.budgets):
            page += [f"## {title}", "", *markdown_table(headings, table), ""]
        record = {"about": about, "command": command, "results": results}
        write_results(args.json, record, args.markdown, [*page, REMARK])
    for title, headings, table in tables_of(results, args.budgets):
        print_table(title, headings, table)
    console.print(REMARK, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_script(main)
