"""Measures the time of builder.py in 8 bits from its start to the plan: calibration, error, build and check.

    python benchmarks/random_checkpoint.py out/base/checkpoint      weights of BERT-base size from a seed
    python model2onnx.py --model out/base/checkpoint --out-dir out/base/model --text "a [MASK] ."
    python benchmarks/calibration_speed.py out/base/model --json FILE

builder.py runs with its default settings, in a copy of the model's folder without a calibration cache. Processor
seconds are those of all threads, user and system together. Run it on an idle machine: among other work even the
processor seconds double, since threads wait for each other actively.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script
from bert_trt.options import FUSIONS, QUANTIZED_PRECISIONS

FUSIONS_MEASURED = ("none", "all")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Time of builder.py in 8 bits, from start to plan.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--precision", choices=QUANTIZED_PRECISIONS, nargs="+", default=["int8"])
    parser.add_argument("--fusion", choices=FUSIONS, nargs="+", default=list(FUSIONS_MEASURED))
    parser.add_argument("--calibration-sentences", metavar="N", help="default: that of builder.py")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import json
import os
import resource
import subprocess
import time
from tempfile import TemporaryDirectory
from typing import Any

from report import check_results, model_name, print_table, versions, write_results

from bert_trt.console import UserError, run_script
from bert_trt.model_files import FILE_NAMES, ModelFolder
from bert_trt.network_runner import best_device

BUILDER = Path(__file__).parent.parent / "builder.py"
HEADINGS = ("type", "--fusion", "seconds", "processor seconds", "of them system", "relative L2 error")


def measure(folder: ModelFolder, precision: str, fusion: str, sentences: str | None = None) -> dict[str, Any]:
    """Runs builder.py once, with that many sentences to calibrate on.

    Raises:
        UserError: it fails; it has printed why.
    """
    with TemporaryDirectory() as name:
        for file in FILE_NAMES:
            if (folder.path / file).exists():
                (Path(name) / file).symlink_to((folder.path / file).resolve())
        results = Path(name) / "results.json"
        command = [sys.executable, BUILDER, "--model-dir", name, "--precision", precision, "--fusion", fusion]
        command += ["--calibration-sentences", sentences] if sentences else []
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([*command, "--json", results], stdout=subprocess.DEVNULL, check=False)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if not results.is_file():
            raise UserError(f"builder.py --precision {precision} --fusion {fusion} ended with {done.returncode}")
        change = json.loads(results.read_text())["quantized"]["change"]
    system = after.ru_stime - before.ru_stime
    return {
        "precision": precision,
        "fusion": fusion,
        "seconds": seconds,
        "processor_seconds": after.ru_utime - before.ru_utime + system,
        "system_seconds": system,
        "rel_l2": change["rel_l2"],
    }


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            *(result["precision"], result["fusion"]),
            *(f"{result[key]:.1f}" for key in ("seconds", "processor_seconds", "system_seconds")),
            f"{result['rel_l2']:.1e}",
        ]
        for result in results
    ]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, None, [args.model_dir])
    folder = ModelFolder(args.model_dir)
    about = versions(best_device()) | {"processors": str(len(os.sched_getaffinity(0)))}
    results = [
        measure(folder, precision, fusion, args.calibration_sentences)
        for precision in args.precision
        for fusion in args.fusion
    ]
    print_table(f"builder.py from start to plan, {model_name(folder)}", HEADINGS, rows(results))
    command = " ".join(["python benchmarks/calibration_speed.py", *sys.argv[1:]])
    write_results(args.json, {"about": about, "command": command, "results": results})
    return 0


if __name__ == "__main__":
    run_script(main)
