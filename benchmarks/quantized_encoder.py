"""Measures BERT's encoder in 8 bits against fp16 on the GPU: our networks with --fusion all, in CUDA graphs.

    python benchmarks/random_checkpoint.py out/base/checkpoint      weights of BERT-base size from a seed
    python model2onnx.py --model out/base/checkpoint --out-dir out/base/model --text "a [MASK] ."
    python benchmarks/quantized_encoder.py out/base/model --json FILE --markdown FILE

Embeddings and encoder run, without the head. network_runner.py runs the network definition of builder.py with the
plugins' own kernels, without TensorRT. Ranges come from random sequences, and nothing is smoothed: with random
weights the errors say only that the kernels compute what they should.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from sizes import parse_sizes

from bert_trt.interrupts import begin_script

SIZES = ((8, 128), (32, 128), (128, 128), (32, 384), (8, 512))
PRECISIONS = ("fp16", "int8", "fp8")
CALIBRATION_SEQUENCES, CALIBRATION_TOKENS = 8, 128


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    return parse_sizes("The encoder in 8 bits and in fp16, in a CUDA graph.", SIZES)


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import numpy as np
import torch
from report import check_results, markdown_table, print_table, versions, write_results

from bert_trt.calibration import CalibrationContext, calibrate, quantization_of
from bert_trt.console import UserError, run_script
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import LINEAR_GROUPS, CalibrationSettings
from bert_trt.quantization import Quantization, in_groups
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog
from builder import assemble
from plugins.measure import graph_times


def find_quantization(folder: ModelFolder, kind: str) -> Quantization:
    """Every linear layer of the encoder in ``kind``, with ranges from random sequences."""
    generator = np.random.default_rng(0)
    ids = generator.integers(5, folder.config.vocab_size, (CALIBRATION_SEQUENCES, CALIBRATION_TOKENS), np.int32)
    sentences = [Sentence(line, "", row, np.zeros_like(row)) for line, row in enumerate(ids, start=1)]
    log = TrtLog()
    products = assemble(folder, log, batching="padded").products
    context = CalibrationContext(folder, products, sentences, Path("random"), assemble, log, "cuda")
    settings = CalibrationSettings(kind, "max", groups=LINEAR_GROUPS, smoothing=None)
    return quantization_of(calibrate(context, settings), in_groups(products, LINEAR_GROUPS))


def encoder(folder: ModelFolder, precision: str, batching: str, quantization: Quantization | None) -> Any:
    """The whole network up to the last hidden state, of ids: (B, S) or (T,) -> (B, S, H) or (T, H)."""
    network = assemble(folder, TrtLog(), precision, batching=batching, quantization=quantization, fusion="all")
    return NetworkRunner(network.network, "cuda", [network.hidden_states[-1]], network.contents)


def inputs_of(folder: ModelFolder, batch: int, length: int, batching: str) -> dict[str, torch.Tensor]:
    """Random ids, each input int32 (B, S), or (T,) packed; nothing is padded."""
    generator = np.random.default_rng(1)
    ids = generator.integers(5, folder.config.vocab_size, (batch, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
    values: dict[str, Any] = dict(zip(INPUT_NAMES, (ids, np.zeros_like(ids), positions), strict=True))
    if batching == "packed":
        values = {name: array.reshape(-1) for name, array in values.items()}
        values[LENGTHS_NAME] = np.arange(batch + 1, dtype=np.int32) * length
    else:
        values[MASK_NAME] = np.ones_like(ids)
    return {name: torch.from_numpy(array).cuda() for name, array in values.items()}


def measure(folder: ModelFolder, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Times every precision and batching at every size."""
    quantizations = {kind: find_quantization(folder, kind) for kind in PRECISIONS if kind != "fp16"}
    runners = {
        (precision, batching): encoder(folder, precision, batching, quantizations.get(precision))
        for precision in PRECISIONS
        for batching in ("padded", "packed")
    }
    results = []
    with torch.inference_mode():
        for batch, length in sizes:
            functions, outputs = {}, {}
            for (precision, batching), runner in runners.items():
                values = inputs_of(folder, batch, length, batching)
                arguments = [values[name] for name in runner.input_names]
                name = f"{precision} {batching}"
                functions[name] = lambda module=runner.module, arguments=arguments: module(*arguments)
                output = functions[name]()
                outputs[name] = (output[0] if isinstance(output, tuple) else output).float().flatten()
            times = graph_times(functions, 5, 20)
            for name, time in times.items():
                fp16 = f"fp16 {name.split()[1]}"
                error = (outputs[name] - outputs["fp16 padded"]).norm() / outputs["fp16 padded"].norm()
                results.append(
                    {
                        "batch": batch,
                        "length": length,
                        "network": name,
                        "us": time,
                        "fp16_ratio": times[fp16] / time,
                        "rel_l2_to_fp16": float(error),
                    }
                )
    return results


HEADINGS = ("B", "S", "network", "us", "fp16 : this", "rel. L2 to fp16")


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            str(result["batch"]),
            str(result["length"]),
            result["network"],
            f"{result['us']:.1f}",
            f"{result['fp16_ratio']:.3f}",
            f"{result['rel_l2_to_fp16']:.1e}",
        ]
        for result in results
    ]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir])
    if not torch.cuda.is_available():
        raise UserError("benchmarks/quantized_encoder.py needs an NVIDIA GPU and PyTorch for CUDA")
    about = versions("cuda")
    results = measure(ModelFolder(args.model_dir), args.sizes)
    print_table("Embeddings and encoder, CUDA graph, median", HEADINGS, rows(results))
    command = " ".join(["python benchmarks/quantized_encoder.py", *sys.argv[1:]])
    lines = [
        "# The encoder in 8 bits in a CUDA graph",
        "",
        "BERT-base size, random weights, `--fusion all`, embeddings included, nothing padded. Run by "
        "`network_runner.py` from the TensorRT network definition, not by TensorRT. "
        f"{', '.join(f'{key} {value}' for key, value in about.items())}. "
        f"Command: `{command}`",
        "",
        *markdown_table(HEADINGS, rows(results)),
    ]
    write_results(args.json, {"about": about, "command": command, "results": results}, args.markdown, lines)
    return 0


if __name__ == "__main__":
    run_script(main)
