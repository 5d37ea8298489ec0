"""Measures requests per second through Triton against direct calls of the same network, for several clients.

    python model2onnx.py
    python benchmarks/triton_server.py out --json FILE --markdown FILE

Without a GPU: the network is the stand-in of triton_stand_in.py, run by PyTorch, and the packages are those of
requirements-serving.txt. A client is a thread that sends one text, waits for the answer and sends the next. "direct"
answers as many texts as there are clients by one call of predict.py's code, in this process: what remains when nobody
waits for a server, and every batch is full. Server, clients and network share the machine's cores. OMP_NUM_THREADS
sets the threads of the network, here and there. The ways are measured in turn, round by round; of each way, the round
with the most requests counts, since other work on the machine only takes time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

CLIENTS = (1, 8, 32)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Requests per second through Triton against direct calls.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="written by model2onnx.py")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import numpy as np
import torch
from report import check_results, markdown_table, model_name, print_table, versions, write_results
from triton_stand_in import Server, obstacle, replace_network, running_server

from bert_trt.console import UserError, log_console, run_script
from bert_trt.inference import Latency
from bert_trt.model_files import INPUT_NAMES, ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import DEFAULT_DATA, FILL_MASK, RAGGED, AnswerOptions, SequenceRange
from bert_trt.plan import BuildOptions, build_plan, read_info
from bert_trt.prediction import BatchRanges, Predictor, Source, one_by_one
from bert_trt.records import Chunk, Record
from bert_trt.sentences import load_tokenizer
from bert_trt.tensorrt_log import TrtLog
from bert_trt.triton_models import Repository, Sizes
from bert_trt.triton_text import answer_name
from builder import assemble

TEXTS = 256
MAX_TOKENS = 4096  # of a direct call
HEADINGS = ("clients", "way", "requests/s", "p50, ms", "p99, ms", "overhead at p50, ms", "sequences in a batch")
Request = Callable[[int], None]  # sends the n-th request and waits for the answer


@dataclass(frozen=True)
class Measured:
    """One measurement.

    Attributes:
        clients: the number of clients.
        way: direct, or through the server.
        per_second: requests in a second.
        latency: of a request.
        batch: sequences in a batch, on average; None for direct calls.
    """

    clients: int
    way: str
    per_second: float
    latency: Latency
    batch: float | None


def example_texts(folder: ModelFolder) -> list[str]:
    """Texts of the calibration text, with a mask token in place of the last word where the task needs one."""
    lines = [line for line in DEFAULT_DATA.read_text(encoding="utf-8").splitlines() if 3 < len(line.split()) < 40]
    texts = lines[:TEXTS]
    if folder.config.task != FILL_MASK:
        return texts
    mask = load_tokenizer(folder).mask_token
    return [f"{text.rsplit(' ', 1)[0]} {mask} ." for text in texts]


def measure_direct(predictor: Predictor, texts: Sequence[str], clients: int, seconds: float) -> Measured:
    """Calls with ``clients`` texts each."""
    records = [Record(1, (text,)) for text in texts]
    times: list[float] = []

    def call(number: int) -> None:
        chosen = [records[(number * clients + index) % len(records)] for index in range(clients)]
        ((_, answers),) = predictor.answer([Chunk(chosen, 0)])
        assert all(answer.problem is None for answer in answers)

    for number in range(5):
        call(number)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call(len(times))
        times.append(1e3 * (time.perf_counter() - before))
    passed = time.perf_counter() - start
    return Measured(clients, "direct", clients * len(times) / passed, Latency.of(times), None)


def measure_server(server: Server, way: str, make: Callable[[], Request], clients: int, seconds: float) -> Measured:
    """Requests of several clients at once; ``make`` makes a client."""
    times: list[list[float]] = [[] for _ in range(clients)]
    errors: list[BaseException] = []
    ready = threading.Barrier(clients + 1)

    def work(own: int) -> None:
        try:
            send = make()
            for number in range(3):
                send(own + number)
            ready.wait()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                before = time.perf_counter()
                send(own * 7 + len(times[own]))
                times[own].append(1e3 * (time.perf_counter() - before))
        except BaseException as error:
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(own,), daemon=True) for own in range(clients)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        raise UserError(f"{way}: {errors}") from None
    before, start = len(server.batches()), time.perf_counter()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - start
    if errors:
        raise UserError(f"{way}: {errors}")
    batches = [batch["requests"] for batch in server.batches()[before:]]
    flat = [one for own in times for one in own]
    return Measured(clients, way, len(flat) / passed, Latency.of(flat), float(np.mean(batches)))


def text_client(server: Server, protocol: str, texts: Sequence[str], output: str) -> Request:
    """A client of ``bert_text``."""
    module: Any = importlib.import_module(f"tritonclient.{protocol}")
    client = module.InferenceServerClient(getattr(server, protocol))

    def send(number: int) -> None:
        tensor = module.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[texts[number % len(texts)].encode()]], object))
        assert client.infer("bert_text", [tensor]).as_numpy(output) is not None

    return send


def token_client(server: Server, windows: Sequence[Any], output: str) -> Request:
    """A client of ``bert`` over gRPC."""
    module: Any = importlib.import_module("tritonclient.grpc")
    client = module.InferenceServerClient(server.grpc)

    def send(number: int) -> None:
        window = windows[number % len(windows)]
        tensors = []
        for name, values in zip(INPUT_NAMES[:2], (window.ids[None], window.types[None]), strict=True):
            tensors.append(module.InferInput(name, list(values.shape), "INT32"))
            tensors[-1].set_data_from_numpy(values)
        assert client.infer("bert", tensors).as_numpy(output) is not None

    return send


def write_repository(folder: ModelFolder, path: Path) -> None:
    """The repository of triton_repository.py with the stand-in for the plan, which nobody reads here."""
    sizes = Sizes.of(folder.config, max(CLIENTS), None)
    network = assemble(folder, TrtLog(), batching=RAGGED)
    plan = path.with_suffix(".plan")
    build_plan(network.builder, network.network, TrtLog(), BuildOptions(sizes.seq_len, sizes.batch), plan)
    info = read_info(plan)
    assert info is not None
    Repository(folder, plan, info, RAGGED, sizes, AnswerOptions(), None, "").write(path)
    replace_network(path, folder.path, "fp32", "none", RAGGED, graphs=False)


def measure(folder: ModelFolder, seconds: float, rounds: int) -> list[Measured]:
    """The best round of every way, for every number of clients."""
    texts, output = example_texts(folder), folder.config.output_name
    network = assemble(folder, TrtLog(), batching=RAGGED)
    runner = NetworkRunner(network.network, contents=network.contents)
    runner.use_fast_kernels()
    positions = folder.config.max_positions
    ranges = BatchRanges(
        RAGGED, SequenceRange(1, positions, positions), SequenceRange(1, max(CLIENTS), max(CLIENTS)), MAX_TOKENS
    )
    source = Source(folder, DEFAULT_DATA, ranges, AnswerOptions())
    predictor = Predictor(source, one_by_one(lambda inputs: runner.run(inputs)[output].numpy()))
    windows: list[Any] = []
    for one in predictor.source.tokenization.tokenise([Record(1, (text,)) for text in texts]):
        windows += one
    results: list[Measured] = []
    with tempfile.TemporaryDirectory() as name:
        write_repository(folder, Path(name) / "models")
        with log_console.status("starting Triton"), running_server(Path(name) / "models") as server:
            ways: dict[str, Callable[[], Request]] = {
                "bert_text, gRPC": lambda: text_client(server, "grpc", texts, answer_name(folder.config)),
                "bert_text, HTTP": lambda: text_client(server, "http", texts, answer_name(folder.config)),
                "bert, gRPC": lambda: token_client(server, windows, output),
            }
            for clients in CLIENTS:
                for _ in range(rounds):
                    results.append(measure_direct(predictor, texts, clients, seconds))
                    results += [measure_server(server, way, make, clients, seconds) for way, make in ways.items()]
    best: dict[tuple[int, str], Measured] = {}
    for one in results:
        key = (one.clients, one.way)
        best[key] = max(one, best.get(key, one), key=lambda measured: measured.per_second)
    return list(best.values())


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir])
    reason = obstacle()
    if reason is not None:
        raise UserError(f"Triton cannot be started here: {reason}")
    folder = ModelFolder(args.model_dir)
    results = measure(folder, args.seconds, args.rounds)
    direct = {one.clients: one.latency.median for one in results if one.way == "direct"}
    rows = [
        [
            *(str(one.clients), one.way, f"{one.per_second:.1f}"),
            *(f"{one.latency.median:.1f}", f"{one.latency.p99:.1f}"),
            "" if one.batch is None else f"{one.latency.median - direct[one.clients]:.1f}",
            "" if one.batch is None else f"{one.batch:.1f}",
        ]
        for one in results
    ]
    record = {
        "versions": versions("cpu") | {"triton": "2.51.0 of nvidia-pytriton 0.7.0"},
        "model": model_name(folder),
        "task": folder.config.task,
        "threads": torch.get_num_threads(),
        "seconds": args.seconds,
        "rounds": args.rounds,
        "results": [
            {
                "clients": one.clients,
                "way": one.way,
                "requests_per_second": one.per_second,
                "latency_ms": vars(one.latency),
                "sequences_in_a_batch": one.batch,
            }
            for one in results
        ],
    }
    title = f"{record['model']}, {folder.config.task}, two cores"
    print_table(title, HEADINGS, rows)
    lines = [f"# {title}", "", json.dumps(record["versions"]), "", *markdown_table(HEADINGS, rows)]
    write_results(args.json, record, args.markdown, lines)
    return 0


if __name__ == "__main__":
    run_script(main)
