"""Compares the whole network with PyTorch, for each precision and each kind of layer norm.

    python benchmarks/network_accuracy.py out                     the model in out/, on the GPU if there is one
    python benchmarks/network_accuracy.py out out/base/model --json FILE --markdown FILE

network_runner.py runs the network definition, with the plugins' own kernels on CUDA and their PyTorch references on a
CPU; TensorRT executes nothing. The reference is the output of PyTorch in fp32 on the CPU, from the export.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Accuracy of the whole network by precision and layer norm.")
    parser.add_argument("model_dirs", nargs="+", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where PyTorch finds a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from report import check_results, markdown_table, print_table, versions, write_results

import builder
import onnx2trt
from bert_trt.comparison import Comparison
from bert_trt.console import log_console, run_script
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import LAYER_NORM_KERNELS, TOLERANCES
from bert_trt.tasks import Rankings
from bert_trt.tensorrt_log import TrtLog

PATHS = {"builder.py": ("native", *LAYER_NORM_KERNELS), "onnx2trt.py": ("native", "fast")}
HEADINGS = (
    "model",
    "script",
    "precision",
    "layer norm",
    "relative L2",
    "at most",
    "largest difference",
    "first word",
)


def measure(folder: ModelFolder, script: str, precision: str, layer_norm: str, device: str) -> dict[str, Any]:
    """Runs one network and compares it with PyTorch."""
    demo, log = folder.demo(), TrtLog()
    if script == "builder.py":
        network = builder.assemble(folder, log, precision, layer_norm=layer_norm)
    else:
        network = onnx2trt.parse(folder, precision, log, layer_norm)
    output = NetworkRunner(network.network, device, contents=network.contents).run(demo.inputs)[
        folder.config.output_name
    ]
    rank = Rankings(folder, demo.mask_positions).of
    compared = Comparison.of(output.cpu().numpy(), demo, rank)
    config = folder.config
    return {
        "model": f"{config.num_layers} layers, H {config.hidden_size}",
        "way": script,
        "precision": precision,
        "layer_norm": layer_norm,
        "rel_l2": compared.rel_l2,
        "tolerance": TOLERANCES[precision],
        "max_abs": compared.max_abs,
        "top1_same": compared.top1_same,
        "top10_same": compared.top10_same,
        "agrees": compared.agrees(precision),
    }


def rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table's rows."""
    return [
        (
            result["model"],
            result["way"],
            result["precision"],
            result["layer_norm"],
            f"{result['rel_l2']:.2e}",
            f"{result['tolerance']:.0e}",
            f"{result['max_abs']:.2e}",
            "same" if result["top1_same"] else "differs",
        )
        for result in results
    ]


def markdown(results: list[dict[str, Any]], about: dict[str, str], command: str) -> list[str]:
    """The lines of the Markdown file."""
    return [
        "# The whole network against PyTorch",
        "",
        "Run by `network_runner.py` from the TensorRT network definition, not by TensorRT. "
        + ", ".join(f"{key} {value}" for key, value in about.items())
        + f". Command: `{command}`",
        "",
        *markdown_table(HEADINGS, rows(results)),
    ]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, args.model_dirs)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for path, precision, script in itertools.product(args.model_dirs, TOLERANCES, PATHS):
        for layer_norm in PATHS[script]:
            with log_console.status(f"{path} {script} {precision} {layer_norm}"):
                results.append(measure(ModelFolder(path), script, precision, layer_norm, args.device))
    about = versions(args.device)
    print_table("Against PyTorch", HEADINGS, rows(results))
    command = "python benchmarks/network_accuracy.py " + " ".join(map(str, args.model_dirs))
    record = {**about, "command": command, "results": results}
    write_results(args.json, record, args.markdown, markdown(results, about, command))
    return 0 if all(result["agrees"] for result in results) else 1


if __name__ == "__main__":
    run_script(main)
