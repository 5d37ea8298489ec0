"""Measures time and memory of a build: through TensorRT's API (builder.py) and through its ONNX parser (onnx2trt.py).

    python benchmarks/build_paths.py --json benchmarks/build_paths.json --markdown benchmarks/build_paths.md

First the script makes and exports a checkpoint of BERT-base size with random weights (in --work-dir, about 1 GB).
Then both paths run alternately, each in a new process that defines the network and builds the plan. Memory is the
process's largest resident size, libraries and mapped files included. The plans are written to memory if possible, so
that the speed of the disk does not matter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

PATHS = ("builder.py", "onnx2trt.py")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Time and memory of a plan, through the API and through the parser.")
    parser.add_argument("--work-dir", type=Path, default=Path("out/base"), help="for the checkpoint and the plans")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "fp16", "bf16"], default=["fp32", "fp16"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--one", choices=PATHS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

from rich.table import Table

from bert_trt import tensorrt_product
from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.files import atomic_write, check_outputs


def build_once(script: str, folder: Path, precision: str) -> dict[str, float]:
    """Defines the network and builds the plan in this process. Returns seconds and bytes."""
    import time

    import builder
    import onnx2trt
    from bert_trt.model_files import ModelFolder
    from bert_trt.options import SequenceRange
    from bert_trt.pipeline import DEFAULT_SEQ_LEN
    from bert_trt.plan import BuildOptions, build_plan, info_path
    from bert_trt.tensorrt_log import TrtLog

    plan = plan_folder() / f"benchmark.{os.getpid()}.plan"
    options = BuildOptions(SequenceRange(*DEFAULT_SEQ_LEN))
    log = TrtLog()
    before = peak_bytes()
    start = time.perf_counter()
    if script == "builder.py":
        bert = builder.assemble(ModelFolder(folder), log, precision)
        network_done = time.perf_counter()
        info = build_plan(bert.builder, bert.network, log, options, plan)
    else:
        parsed = onnx2trt.parse(ModelFolder(folder), precision, log)
        network_done = time.perf_counter()
        info = build_plan(parsed.builder, parsed.network, log, options, plan)
    end = time.perf_counter()
    plan.unlink()
    info_path(plan).unlink()
    return {
        "seconds": end - start,
        "seconds_network": network_done - start,
        "peak_bytes": peak_bytes(),
        "bytes_before": before,
        "plan_bytes": info.num_bytes,
        "num_layers": info.num_layers,
    }


def plan_folder() -> Path:
    """The folder for plans: in memory if the system has such a folder, so that no disk is measured."""
    in_memory = Path("/dev/shm")
    return in_memory if in_memory.is_dir() and os.access(in_memory, os.W_OK) else Path(tempfile.gettempdir())


def peak_bytes() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(script: str, folder: Path, precision: str) -> dict[str, float]:
    """Runs ``build_once`` in a new process."""
    command = [sys.executable, __file__, "--one", script, "--work-dir", str(folder), "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{script} {precision} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def prepare(folder: Path) -> Path:
    """Makes and exports the checkpoint unless it exists. Returns the model folder."""
    from random_checkpoint import make_random_checkpoint

    import model2onnx

    model = folder / "model"
    if not (model / model2onnx.DEMO_NAME).is_file():
        model2onnx.quiet_libraries()
        make_random_checkpoint(folder / "checkpoint")
        model2onnx.export(str(folder / "checkpoint"), "a [MASK] .", model)
    return model


def summarise(runs: list[dict[str, float]], weight_bytes: int) -> dict[str, float]:
    """Medians over runs, and the peak in multiples of the weights."""
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    peak = max(run["peak_bytes"] for run in runs)
    return medians | {
        "seconds_min": min(run["seconds"] for run in runs),
        "seconds_max": max(run["seconds"] for run in runs),
        "peak_bytes": peak,
        "peak_over_weights": peak / weight_bytes,
    }


def compare(folder: Path, precisions: list[str], runs: int) -> dict[str, Any]:
    """Runs all measurements, alternately with each script."""
    weight_bytes = (folder / "model.onnx.data").stat().st_size
    results: dict[str, Any] = {
        "tensorrt": tensorrt_product.describe(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "weight_bytes": weight_bytes,
        "plans_in": "memory (/dev/shm)" if plan_folder() == Path("/dev/shm") else "the temporary folder",
        "runs": runs,
        "precisions": {},
    }
    for precision in precisions:
        collected: dict[str, list[dict[str, float]]] = {script: [] for script in PATHS}
        for number in range(runs + 1):
            for script in PATHS:
                with log_console.status(f"{precision}: run {number} of {runs}, {script}"):
                    result = measure(script, folder, precision)
                if number > 0:  # the first run of each only warms the file cache
                    collected[script].append(result)
        pairs = zip(*(collected[script] for script in PATHS), strict=True)
        results["precisions"][precision] = {
            "time_ratio": statistics.median(api["seconds"] / parser["seconds"] for api, parser in pairs),
            **{script: summarise(collected[script], weight_bytes) for script in PATHS},
        }
    return results


def cpu_name() -> str:
    """The processor's model name and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


BOUNDS = (
    "What bounds a build. Time: both paths end in the same optimiser, and defining the network takes little of it "
    "(less than 0.1 s in fp32). builder.py gives the optimiser fewer and simpler layers; the rest is compilation "
    "and page faults, since TensorRT allocates new memory for its copy of the weights. Memory: TensorRT's copy of "
    "the weights, the same bytes once more when they are passed to Python to be written, and about 0.2 GB of "
    "libraries. The pages of the mapped weight file are counted too, though they are the system's file cache and can "
    "be reclaimed."
)
HEADINGS = (
    "precision",
    "script",
    "layers",
    "network + plan, s",
    "ratio",
    "peak memory, MB",
    "over weights",
    "plan, MB",
)


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows."""
    table = []
    for precision, entry in results["precisions"].items():
        for script in PATHS:
            measured = entry[script]
            table.append(
                (
                    precision,
                    script,
                    f"{measured['num_layers']:.0f}",
                    f"{measured['seconds']:.2f} ({measured['seconds_min']:.2f} to {measured['seconds_max']:.2f})",
                    f"{entry['time_ratio']:.2f}" if script == PATHS[0] else "1",
                    f"{measured['peak_bytes'] / 1e6:.0f}",
                    f"{measured['peak_over_weights']:.2f}",
                    f"{measured['plan_bytes'] / 1e6:.0f}",
                )
            )
    return table


def markdown(results: dict[str, Any]) -> str:
    """The Markdown file."""
    lines = [
        "# A plan through the API and through the ONNX parser",
        "",
        f"BERT-base-sized, random weights, {results['weight_bytes'] / 1e6:.0f} MB in fp32. {results['tensorrt']}, "
        f"Python {results['python']}, {results['cpu']}, no GPU. "
        f"Median (range) of {results['runs']} alternating runs, each in a new process; "
        f"the ratio is the median over pairs. Plans were written to {results['plans_in']}. "
        "Command: `python benchmarks/build_paths.py --json benchmarks/build_paths.json "
        "--markdown benchmarks/build_paths.md`",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + " --- |" * len(HEADINGS),
        *("| " + " | ".join(row) + " |" for row in rows(results)),
        "",
        BOUNDS,
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_outputs({"--json": args.json, "--markdown": args.markdown}, {})
    if args.one:
        print(json.dumps(build_once(args.one, args.work_dir, args.precision[0])))
        return 0
    results = compare(prepare(args.work_dir), args.precision, args.runs)
    table = Table(*HEADINGS)
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
    for path, text in ((args.json, json.dumps(results, indent=2) + "\n"), (args.markdown, markdown(results))):
        if path is not None:
            with atomic_write(path) as file:
                file.write(text.encode())
    return 0


if __name__ == "__main__":
    run_script(main)
