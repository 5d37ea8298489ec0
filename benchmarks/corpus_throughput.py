"""Measures corpus.py: lines per second against a loop over predict.py's own function, and memory.

    python benchmarks/corpus_throughput.py out --actors 1,2 --json FILE --markdown FILE
    python benchmarks/corpus_throughput.py out --memory 10000,1000000 --json FILE --markdown FILE
    python benchmarks/corpus_throughput.py out --actors 1,2 --precision fp16 --fusion all       with a GPU an actor

The lines are those of the calibration text, again and again; of a fill-mask model each has one word masked. The loop
is ``Predictor.answer`` on one piece of the file after the other, as in predict.py, and drops the answers. corpus.py
runs as a user runs it, in a process of its own; its speed is read from the times at which its parts appear. Of both,
the first fifth is left out, in which networks are made. Without a GPU, the loop and each actor have one core; all
processes of a run are bound to as many cores as it has actors. CPU seconds are those of all its processes, Ray's too:
on a machine with other work they say more than the time that passes. Memory is the most that a process has had
(VmHWM), its libraries and Ray's shared memory included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bert_trt.interrupts import begin_script


def numbers(text: str) -> list[int]:
    """A list such as 1,2."""
    return [int(part) for part in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Lines per second and memory of corpus.py.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="written by model2onnx.py")
    parser.add_argument("--lines", type=int, default=40_960, metavar="N", help="default: %(default)s")
    parser.add_argument("--shard-lines", type=int, default=1024, metavar="N", help="default: %(default)s")
    parser.add_argument("--actors", type=numbers, default=[1, 2], metavar="N,...", help="default: 1,2")
    parser.add_argument(
        "--memory", type=numbers, metavar="LINES,...", help="measure memory at these numbers of lines"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--fusion", default="none")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)  # the work of a process that the script started
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

from report import check_results, markdown_table, model_name, print_table, versions, write_results

from bert_trt.console import UserError, log_console, run_script
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import best_device
from bert_trt.options import DEFAULT_DATA, FILL_MASK, MASK, AnswerOptions
from bert_trt.prediction import Predictor, Source
from bert_trt.pytorch_network import PyTorchNetwork
from bert_trt.records import read_chunks
from builder import assemble

POLL_SECONDS = 0.1
LEFT_OUT = 5  # the first of so many parts of a run
LOOP = "loop"
ACTOR, DRIVER, RAY = "actor", "driver", "Ray"  # roles of processes
SPEED_HEADINGS = ("", "lines/s", "÷ loop", "CPU s per 1000 lines", "loop's CPU s ÷ these")
MEMORY_HEADINGS = ("lines", "driver, MiB", "largest actor, MiB", "largest other process of Ray, MiB", "seconds")


# --- processes --------------------------------------------------------------------------------------------------


@dataclass
class Usage:
    """What a tree of processes has used.

    Attributes:
        times: of the samples, seconds since the epoch.
        cpu: CPU seconds at each of them, of all processes so far.
        peaks: by role, the most memory that one process has had, in MiB.
    """

    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    _by_process: dict[int, float] = field(default_factory=dict)

    def sample(self, root: int) -> None:
        """Looks at a process and all that it has started."""
        for pid in tree(root):
            try:
                process = Path("/proc") / str(pid)
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
            self._by_process[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            role = DRIVER if pid == root else ACTOR if b"MapWorker" in command else RAY
            if "VmHWM" in status:
                peak = int(status["VmHWM"].split()[0]) / 1024
                self.peaks[role] = max(self.peaks.get(role, 0), peak)
        self.times.append(time.time())
        self.cpu.append(sum(self._by_process.values()))

    def cpu_since(self, moment: float) -> float:
        """CPU seconds from a moment to the end."""
        return self.cpu[-1] - next(cpu for when, cpu in zip(self.times, self.cpu, strict=True) if when >= moment)


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit():
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, level = [root], {root}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found += sorted(level)
    return found


def run_corpus(options: argparse.Namespace, source: Path, out: Path, actors: int, cores: int | None) -> Usage:
    """Runs corpus.py to its end.

    Args:
        options: the command line.
        source: the input.
        out: the output folder.
        actors: their number.
        cores: the number of cores to which all processes are bound; None for all.

    Raises:
        UserError: it failed.
    """
    names = {"--model-dir": options.model_dir, "--out": out, "--actors": actors}
    names |= {"--shard-lines": options.shard_lines, "--precision": options.precision, "--fusion": options.fusion}
    command = [sys.executable, ROOT / "corpus.py", source, *(part for pair in names.items() for part in pair)]
    command = [*bound_to(cores), *map(str, command)]
    usage = Usage()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None:
            usage.sample(process.pid)
            time.sleep(POLL_SECONDS)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise UserError(f"corpus.py failed:\n{printed}")
    return usage


def bound_to(cores: int | None) -> list[str]:
    """The beginning of a command that is bound to some of the cores that this process may use.

    Raises:
        UserError: there are not so many.
    """
    if cores is None:
        return []
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    if len(chosen) < cores:
        raise UserError(f"{cores} actors need a core each, and there are {len(chosen)}; name fewer with --actors")
    return ["taskset", "--cpu-list", ",".join(map(str, chosen))]


# --- speed ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Of one run, without its first fifth.

    Attributes:
        lines_per_second: by the time that passed.
        cpu_per_line: CPU seconds.
    """

    lines_per_second: float
    cpu_per_line: float


def loop(options: argparse.Namespace) -> None:
    """Answers the file of --loop without Ray, and prints when and with how much CPU each piece was done."""
    network = PyTorchNetwork(ModelFolder(options.model_dir), assemble, options.precision, options.fusion)
    source = Source(network.folder, options.loop, network.ranges, AnswerOptions())
    predictor = Predictor(source, network.run_all)
    for chunk in read_chunks(options.loop, source.task):
        predictor.answer(chunk.records)
        print(json.dumps([len(chunk.records), time.perf_counter(), time.process_time()]))


def measure_loop(options: argparse.Namespace, source: Path, cores: int | None) -> Speed:
    """The speed of the loop, in a process of its own."""
    arguments = [options.model_dir, "--precision", options.precision, "--fusion", options.fusion, "--loop", source]
    command = [*bound_to(cores), sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the loop failed:\n{done.stderr}")
    pieces = [json.loads(line) for line in done.stdout.splitlines()]
    first = len(pieces) // LEFT_OUT
    _, start, cpu_start = pieces[first]
    _, end, cpu_end = pieces[-1]
    lines = sum(count for count, _, _ in pieces[first + 1 :])
    return Speed(lines / (end - start), (cpu_end - cpu_start) / lines)


def measure_corpus(options: argparse.Namespace, source: Path, actors: int, cores: int | None) -> Speed:
    """The speed of corpus.py."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        usage = run_corpus(options, source, out, actors, cores)
        times = sorted(path.stat().st_mtime for path in out.glob("part-*.parquet"))
    start, end = times[len(times) // LEFT_OUT], times[-1]
    # every part has the same number of lines
    lines = options.lines / len(times) * (len(times) - len(times) // LEFT_OUT - 1)
    return Speed(lines / (end - start), usage.cpu_since(start) / lines)


def measure_speeds(options: argparse.Namespace, source: Path, device: str) -> dict[str, list[Speed]]:
    """The speeds of every round, by method."""
    one_core = 1 if device == "cpu" else None
    speeds: dict[str, list[Speed]] = {}
    for number in range(options.rounds):
        with log_console.status(f"round {number + 1} of {options.rounds}"):
            speeds.setdefault(LOOP, []).append(measure_loop(options, source, one_core))
            for actors in options.actors:
                cores = actors if device == "cpu" else None
                speeds.setdefault(f"corpus.py, actors: {actors}", []).append(
                    measure_corpus(options, source, actors, cores)
                )
    return speeds


def speed_rows(speeds: Mapping[str, Sequence[Speed]]) -> list[list[str]]:
    """A row for each method: medians of the rounds."""
    rates = {name: statistics.median(one.lines_per_second for one in some) for name, some in speeds.items()}
    cpu = {name: statistics.median(one.cpu_per_line for one in some) for name, some in speeds.items()}
    return [
        [
            name,
            f"{rates[name]:.1f}",
            f"{rates[name] / rates[LOOP]:.2f}",
            f"{1000 * cpu[name]:.2f}",
            f"{cpu[LOOP] / cpu[name]:.2f}",
        ]
        for name in speeds
    ]


# --- memory -----------------------------------------------------------------------------------------------------


def measure_memory(options: argparse.Namespace, folder: Path, is_fill_mask: bool) -> list[dict[str, Any]]:
    """The memory of corpus.py at every number of lines of --memory."""
    results = []
    for lines in options.memory:
        source = folder / f"{lines}.txt"
        write_lines(source, lines, is_fill_mask, short=True)
        with log_console.status(f"{lines} lines"):
            start = time.perf_counter()
            usage = run_corpus(options, source, folder / f"out-{lines}", max(options.actors), None)
        results.append({"lines": lines, "peaks": usage.peaks, "seconds": time.perf_counter() - start})
    return results


def memory_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each number of lines."""
    return [
        [
            str(result["lines"]),
            *(f"{result['peaks'][role]:.0f}" for role in (DRIVER, ACTOR, RAY)),
            f"{result['seconds']:.0f}",
        ]
        for result in results
    ]


# --- the script -------------------------------------------------------------------------------------------------


def write_lines(path: Path, count: int, is_fill_mask: bool, short: bool = False) -> None:
    """Writes lines of the calibration text, again and again.

    Args:
        path: the file.
        count: the number of lines.
        is_fill_mask: replace a word of each by the mask token.
        short: take only the first six words.
    """
    texts = [line.split() for line in DEFAULT_DATA.read_text(encoding="utf-8").splitlines() if line.strip()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = texts[number % len(texts)][: 6 if short else None]
            if is_fill_mask:
                place = number % len(words)
                words = [*words[:place], MASK, *words[place + 1 :]]
            file.write(" ".join(words) + "\n")


def main() -> int:
    """Runs the script; returns its exit code."""
    options = parse_arguments()
    if options.loop is not None:
        loop(options)
        return 0
    check_results(options.json, options.markdown, [options.model_dir])
    folder, device = ModelFolder(options.model_dir), best_device()
    is_fill_mask = folder.config.task == FILL_MASK
    record: dict[str, Any] = {"versions": versions(device) | {"ray": ray_version()}, "model": model_name(folder)}
    record |= {"shard_lines": options.shard_lines, "precision": options.precision, "fusion": options.fusion}
    with TemporaryDirectory() as name:
        if options.memory:
            headings, results = MEMORY_HEADINGS, measure_memory(options, Path(name), is_fill_mask)
            rows, title = memory_rows(results), f"{max(options.actors)} actors, lines of 6 words"
            record |= {"actors": max(options.actors), "results": results}
        else:
            source = Path(name) / "lines.txt"
            write_lines(source, options.lines, is_fill_mask)
            speeds = measure_speeds(options, source, device)
            headings, rows, title = SPEED_HEADINGS, speed_rows(speeds), f"{options.lines} lines"
            rounds = {method: [vars(speed) for speed in some] for method, some in speeds.items()}
            record |= {"lines": options.lines, "rounds": rounds}
    title = f"{record['model']}, {title}, {options.precision}, {device}"
    print_table(title, headings, rows)
    text = [f"# {title}", "", f"{record['versions']}", "", *markdown_table(headings, rows)]
    write_results(options.json, record, options.markdown, text)
    return 0


def ray_version() -> str:
    """The version of Ray.

    Raises:
        UserError: it is not installed.
    """
    from bert_trt.ray_cluster import import_ray

    return import_ray().__version__


if __name__ == "__main__":
    run_script(main)
