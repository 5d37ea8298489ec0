"""Compares the sizes of plans in int8, fp8, fp16 and fp32 with the sizes of their weights.

    python benchmarks/random_checkpoint.py out/base/checkpoint      weights of BERT-base size from a seed
    python model2onnx.py --model out/base/checkpoint --out-dir out/base/model --text "a [MASK] ."
    python benchmarks/quantized_plans.py out/base/model --json FILE --markdown FILE

The weights of quantized products have 1 byte an element, all others 2 (4 in fp32); the network adds constants such as
scales. A plan has weights and code.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Plan sizes by precision, beside the weights' bytes.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

from report import check_results, markdown_table, print_table, versions, write_results

from bert_trt.calibration import CalibrationContext, calibrate, quantization_of
from bert_trt.calibration_data import read_data
from bert_trt.console import log_console, run_script
from bert_trt.model_files import ModelFolder
from bert_trt.options import DEFAULT_DATA, CalibrationSettings, SequenceRange
from bert_trt.plan import BuildOptions, build_plan
from bert_trt.quantization import Quantization, inspect
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

HEADINGS = (
    "precision",
    "products in it",
    "weights, MB",
    "plan, MB",
    "plan : weights",
    "plan : fp32 plan",
    "build, s",
)
SENTENCES = 8  # few, since the values of the ranges do not change the size


def measure(folder: ModelFolder, precision: str, quantization: Quantization | None) -> dict[str, Any]:
    """Builds one plan."""
    log = TrtLog()
    with TemporaryDirectory() as work_dir, log_console.status(f"{folder.path} {precision}"):
        network = assemble(folder, log, precision, quantization=quantization)
        options = BuildOptions(SequenceRange(1, 32, 128))
        info = build_plan(network.builder, network.network, log, options, Path(work_dir) / "plan")
    parts = inspect(network.network)
    return {
        "precision": precision,
        "plan_bytes": info.num_bytes,
        "seconds_build": info.seconds_build,
        **asdict(parts),
    }


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    fp32_bytes = results[0]["plan_bytes"]
    return [
        [
            result["precision"],
            f"{result['quantized_products']} of {result['products']}" if result["quantized_products"] else "all",
            f"{result['weight_bytes'] / 1e6:.1f}",
            f"{result['plan_bytes'] / 1e6:.1f}",
            f"{result['plan_bytes'] / result['weight_bytes']:.3f}",
            f"{result['plan_bytes'] / fp32_bytes:.3f}",
            f"{result['seconds_build']:.1f}",
        ]
        for result in results
    ]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir])
    folder = ModelFolder(args.model_dir)
    results = [measure(folder, precision, None) for precision in ("fp32", "fp16")]
    for kind in ("int8", "fp8"):
        settings = CalibrationSettings(kind, sentences=SENTENCES, smoothing=None)
        data = read_data(folder, DEFAULT_DATA, SENTENCES, 0)
        products = assemble(folder, TrtLog(), batching="padded").products
        context = CalibrationContext(folder, products, data.calibration, data.path, assemble, TrtLog())
        quantization = quantization_of(calibrate(context, settings), context.products(settings))
        results.append(measure(folder, kind, quantization))
    print_table("Plans", HEADINGS, rows(results))
    about, command = versions("cpu"), f"python benchmarks/quantized_plans.py {args.model_dir}"
    config = folder.config
    details = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [
        "# Plan sizes",
        "",
        f"BERT with {config.num_layers} layers, hidden size {config.hidden_size}, vocabulary {config.vocab_size}. "
        f"Built without a GPU: {details}. Command: `{command}`. MB are 10^6 bytes. The word table, which is also the "
        "head's matrix, is not quantized: it is the larger part of the weights that int8 does not halve.",
        "",
        *markdown_table(HEADINGS, rows(results)),
    ]
    record = {"about": about, "command": command, "results": results}
    write_results(args.json, record, args.markdown, lines)
    return 0


if __name__ == "__main__":
    run_script(main)
