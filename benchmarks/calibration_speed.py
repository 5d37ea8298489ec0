"""Measures the sentences a second of the calibration, and of PyTorch's eager model on the CPU.

    python benchmarks/random_checkpoint.py out/base/checkpoint      weights of BERT-base size from a seed
    python model2onnx.py --model out/base/checkpoint --out-dir out/base/model --text "a [MASK] ."
    python benchmarks/calibration_speed.py out/base/model out/base/checkpoint --json FILE

Both run the same lines of calibrator_data.txt. The calibration runs as in calibrator.py: sentences of similar lengths
are one batch, and all histograms are counted. The peer is Hugging Face's model in eager fp32 on the CPU, without its
head, one sentence after another.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

SENTENCES = 512


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Speed of the calibration.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("checkpoint")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where PyTorch finds a GPU")
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from report import check_results, print_table, versions, write_results

from bert_trt.calibration import CalibrationContext
from bert_trt.calibration_data import read_data
from bert_trt.checkpoint import load_checkpoint
from bert_trt.console import run_script
from bert_trt.model_files import ModelFolder
from bert_trt.options import DEFAULT_DATA, CalibrationSettings
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

EAGER_SENTENCES = 64  # evenly spread over the calibration's sentences; fewer, since the CPU is slow


def calibration_rate(folder: ModelFolder, sentences: list[Sentence], device: str) -> float:
    """The sentences a second of the second run; the first warms up."""
    products = assemble(folder, TrtLog(), batching="padded").products
    context = CalibrationContext(folder, products, sentences, DEFAULT_DATA, assemble, TrtLog(), device)
    settings = CalibrationSettings(smoothing=None)
    rate = 0.0
    for _ in range(2):
        start = time.perf_counter()
        context.observe(settings)
        rate = len(sentences) / (time.perf_counter() - start)
    return rate


def eager_rate(checkpoint: str, sentences: list[Sentence], threads: int) -> float:
    """The sentences a second of PyTorch's eager model on the CPU."""
    torch.set_num_threads(threads)
    model = load_checkpoint(checkpoint).reference
    encoder = getattr(model, "bert", model)
    with torch.inference_mode():
        encoder(torch.from_numpy(sentences[0].ids)[None])
        start = time.perf_counter()
        for sentence in sentences:
            encoder(torch.from_numpy(sentence.ids)[None])
    return len(sentences) / (time.perf_counter() - start)


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, None, [args.model_dir])
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = ModelFolder(args.model_dir)
    data = read_data(folder, DEFAULT_DATA, args.sentences, EAGER_SENTENCES)
    rates: dict[str, Any] = {f"calibration on {args.device}": calibration_rate(folder, data.calibration, args.device)}
    for threads in sorted({2, os.cpu_count() or 2}):
        sentences = data.calibration[:: max(1, len(data.calibration) // EAGER_SENTENCES)]
        rates[f"PyTorch eager, CPU, {threads} threads"] = eager_rate(args.checkpoint, sentences, threads)
    ours = next(iter(rates.values()))
    rows = [[name, f"{rate:.1f}", f"{ours / rate:.1f}"] for name, rate in rates.items()]
    print_table("Sentences a second", ("what", "sentences a second", "calibration : this"), rows)
    command = f"python benchmarks/calibration_speed.py {args.model_dir} {args.checkpoint}"
    write_results(args.json, {"about": versions(args.device), "command": command, "sentences_per_second": rates})
    return 0


if __name__ == "__main__":
    run_script(main)
