"""Measures how many pairs of texts a reranker scores in a second: packed, padded by length, padded as they come.

    python benchmarks/random_checkpoint.py out/reranker-checkpoint --architecture BertForSequenceClassification
    python model2onnx.py --model out/reranker-checkpoint --out-dir out/reranker --text "a query"
    python benchmarks/reranker.py out/reranker --json FILE --markdown FILE

A query is a line of the calibration text, a passage the one to eight lines after it. network_runner.py runs the
network of builder.py, on a GPU in fp16 with all plugins, on a CPU in fp32 without. "by length" are the padded batches
of predict.py: 32 sequences of nearly the same length. "as they come" are 32 pairs in the order of their arrival, as a
server without packing has them. Tokenising is not counted; putting sequences into batches is. The three run in turn,
round by round, and their scores are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Pairs per second of a reranker, packed and padded.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="written by model2onnx.py")
    parser.add_argument("--pairs", type=int, default=4096, metavar="N", help="number of pairs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import numpy as np
import torch
from report import PRECISION_AND_FUSION, check_results, model_name, publish, versions

from bert_trt.console import UserError, log_console, run_script
from bert_trt.model_files import INPUT_NAMES, ModelFolder
from bert_trt.network_runner import best_device
from bert_trt.options import DEFAULT_DATA, SEQUENCE_CLASSIFICATION, AnswerOptions
from bert_trt.prediction import GROUP, Source, make_batches
from bert_trt.pytorch_network import PyTorchNetwork
from bert_trt.records import CHUNK_LINES, Record
from bert_trt.tasks import Window
from builder import assemble

MOST_LINES = 8  # of a passage
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}  # largest difference of two methods' scores, relative to their spread
HEADINGS = ("batches", "pairs/s", "tokens with padding", "packed is times as fast")


class Method:
    """The network with one kind of batch.

    Args:
        name: the row's name.
        folder: the model.
        chunks: the pairs' tokens, in the pieces that are put into batches together.
        device: cpu or cuda.
        batching: packed or padded.
    """

    def __init__(
        self, name: str, folder: ModelFolder, chunks: Sequence[Sequence[Window]], device: str, batching: str
    ) -> None:
        self.name = name
        self.chunks = chunks
        self.network = PyTorchNetwork(folder, assemble, *PRECISION_AND_FUSION[device])
        self.network.ranges = replace(self.network.ranges, batching=batching)
        self.seconds: list[float] = []
        self.scores = np.array([])
        self.tokens = 0

    def run(self) -> None:
        """Scores all pairs and keeps scores, (N,), and time."""
        scores, self.tokens, start = [], 0, time.perf_counter()
        places: deque[tuple[np.ndarray, list[int]]] = deque()  # where the scores of the next outputs go

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for chunk in self.chunks:
                scores.append(np.empty(len(chunk)))
                for batch in make_batches(chunk, self.network.ranges):
                    places.append((scores[-1], list(batch.sequences)))
                    self.tokens += batch.inputs[INPUT_NAMES[0]].size
                    yield batch.inputs

        for output in self.network.run_all(batches()):  # (B, 1)
            of_chunk, sequences = places.popleft()
            of_chunk[sequences] = output[:, 0]
        self.seconds.append(time.perf_counter() - start)
        self.scores = np.concatenate(scores)


def make_pairs(number: int) -> list[tuple[str, str]]:
    """Queries and passages from the calibration text."""
    lines = [line for line in DEFAULT_DATA.read_text(encoding="utf-8").splitlines() if line.strip()]
    lengths = np.random.default_rng(0).integers(1, MOST_LINES, number, endpoint=True)
    pairs = []
    for index, length in enumerate(lengths):
        following = [lines[(index + place) % len(lines)] for place in range(1, length + 1)]
        pairs.append((lines[index % len(lines)], " ".join(following)))
    return pairs


def tokenise(folder: ModelFolder, pairs: Sequence[tuple[str, str]], device: str) -> list[Window]:
    """The tokens of each pair, in their order."""
    ranges = PyTorchNetwork(folder, assemble, *PRECISION_AND_FUSION[device]).ranges
    tokenization = Source(folder, DEFAULT_DATA, ranges, AnswerOptions(truncate=True)).tokenization
    windows = []
    for found in tokenization.tokenise([Record(number, pair) for number, pair in enumerate(pairs, start=1)]):
        if isinstance(found, str):
            raise UserError(found)
        windows += found
    return windows


def pieces(windows: Sequence[Window], size: int) -> list[Sequence[Window]]:
    """Pieces of ``size`` pairs, the last one shorter."""
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def check_same(methods: Sequence[Method], device: str) -> float:
    """The largest difference of a pair's scores between methods, relative to the standard deviation of all scores.

    Raises:
        UserError: it is too large.
    """
    expected = methods[0].scores
    largest = max(float(np.abs(method.scores - expected).max() / expected.std()) for method in methods[1:])
    if not largest <= TOLERANCE[device]:
        raise UserError(f"the scores of packed and padded batches differ by {largest:.2e} of their spread")
    return largest


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir])
    folder, device = ModelFolder(args.model_dir), best_device()
    if folder.config.task != SEQUENCE_CLASSIFICATION or folder.config.output_width != 1:
        raise UserError(f"{folder.path} is no reranker; expected {SEQUENCE_CLASSIFICATION} with one output")
    windows = tokenise(folder, make_pairs(args.pairs), device)
    methods = [
        Method("packed", folder, pieces(windows, CHUNK_LINES), device, "packed"),
        Method("padded, by length", folder, pieces(windows, CHUNK_LINES), device, "padded"),
        Method("padded, as they come", folder, pieces(windows, GROUP), device, "padded"),
    ]
    for number in range(args.rounds + 1):
        with log_console.status(f"round {number} of {args.rounds}" if number else "warming up"):
            for method in methods:
                method.run()
    results: list[dict[str, Any]] = [
        {
            "method": method.name,
            "pairs_per_second": len(windows) / statistics.median(method.seconds[1:]),
            "seconds_of_rounds": method.seconds[1:],
            "tokens_with_padding": method.tokens,
        }
        for method in methods
    ]
    num_tokens = sum(len(one.ids) for one in windows)
    record = {
        "versions": versions(device),
        "model": model_name(folder),
        "precision and fusion": PRECISION_AND_FUSION[device],
        "pairs": len(windows),
        "tokens": num_tokens,
        "threads": torch.get_num_threads(),
        "largest_difference_of_scores": check_same(methods, device),
        "results": results,
    }
    packed = results[0]["pairs_per_second"]
    rows = [
        [
            one["method"],
            f"{one['pairs_per_second']:.0f}",
            f"{one['tokens_with_padding']}",
            f"{packed / one['pairs_per_second']:.2f}",
        ]
        for one in results
    ]
    title = f"{record['model']}, {len(windows)} pairs of {num_tokens / len(windows):.1f} tokens, {device}"
    publish(title, HEADINGS, rows, record, args.json, args.markdown)
    return 0


if __name__ == "__main__":
    run_script(main)
