"""Measures BERT's encoder in 8 bits on the GPU: against fp16, and against fp8 in PyTorch, all in CUDA graphs.

    python benchmarks/quantized_encoder.py --json FILE --markdown FILE        random weights of BERT-base size
    python benchmarks/quantized_encoder.py MODEL_DIR --sizes 8x128

Embeddings and encoder run, without the head. Ours are the networks of builder.py with --fusion all, which
network_runner.py runs with the plugins' own kernels, without TensorRT. The peer is the same network in PyTorch. Its
products are torch._scaled_mm in fp8, with one scale for each weight and each activation, the fastest form of it;
torch.compile fuses quantization with the layer norm or GELU before it.

Ranges come from random sequences, and nothing is smoothed: with random weights the errors say only that the kernels
compute what they should.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from sizes import sizes_parser

from bert_trt.interrupts import begin_script

SIZES = ((8, 128), (32, 128), (128, 128), (32, 384), (8, 512))
PRECISIONS = ("fp16", "int8", "fp8")
PEER = "PyTorch fp8, compiled"
CALIBRATION_SEQUENCES, CALIBRATION_TOKENS = 8, 128


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    return sizes_parser("The encoder in 8 bits and in fp16, in a CUDA graph.", SIZES).parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import numpy as np
import torch
from pytorch_encoder import BACKENDS, Fp8Peer, fastest_attention
from random_model import open_model
from report import check_results, markdown_table, print_table, versions, write_results
from torch.nn.attention import sdpa_kernel

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
    context = CalibrationContext(folder, products, sentences, Path("random"), assemble, log)
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
    """Times every precision and batching, and the peer, at every size."""
    quantizations = {kind: find_quantization(folder, kind) for kind in PRECISIONS if kind != "fp16"}
    runners = {
        (precision, batching): encoder(folder, precision, batching, quantizations.get(precision))
        for precision in PRECISIONS
        for batching in ("padded", "packed")
    }
    results = []
    with torch.inference_mode():
        samples = inputs_of(folder, CALIBRATION_SEQUENCES, CALIBRATION_TOKENS, "padded")
        peer = Fp8Peer(folder.config, folder.weights(), tuple(samples[name] for name in INPUT_NAMES))
        for batch, length in sizes:
            functions, outputs = {}, {}
            for (precision, batching), runner in runners.items():
                values = inputs_of(folder, batch, length, batching)
                arguments = [values[name] for name in runner.input_names]
                name = f"{precision} {batching}"
                functions[name] = lambda module=runner.module, arguments=arguments: module(*arguments)[0]
                outputs[name] = functions[name]().float().flatten()
            backend = fastest_attention(folder.config, batch, length)
            with sdpa_kernel(BACKENDS[backend]):
                functions[PEER] = peer_function(peer, inputs_of(folder, batch, length, "padded"))
                outputs[PEER] = functions[PEER]().float().flatten()
                times = graph_times(functions, 5, 20)
            for name, time in times.items():
                fp16 = "fp16 padded" if name == PEER else f"fp16 {name.split()[1]}"
                error = (outputs[name] - outputs["fp16 padded"]).norm() / outputs["fp16 padded"].norm()
                results.append(
                    {
                        "batch": batch,
                        "length": length,
                        "network": name,
                        "us": time,
                        "fp16_ratio": times[fp16] / time,
                        "peer_ratio": times[PEER] / time,
                        "rel_l2_to_fp16": float(error),
                    }
                )
    return results


def peer_function(peer: Fp8Peer, values: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The compiled peer, run on these inputs."""
    layers = peer.compiled()  # before the embeddings, which it would make compile anew
    embed = torch.compile(peer.embed, fullgraph=True, dynamic=False)
    ids = [values[name] for name in INPUT_NAMES]
    return lambda: layers(embed(*ids))


HEADINGS = ("B", "S", "network", "us", "fp16 : this", "PyTorch fp8 : this", "rel. L2 to fp16")


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            str(result["batch"]),
            str(result["length"]),
            result["network"],
            f"{result['us']:.1f}",
            f"{result['fp16_ratio']:.3f}",
            f"{result['peer_ratio']:.3f}",
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
    results = measure(open_model(args.model_dir), args.sizes)
    print_table("Embeddings and encoder, CUDA graph, median", HEADINGS, rows(results))
    command = " ".join(["python benchmarks/quantized_encoder.py", *sys.argv[1:]])
    lines = [
        "# The encoder in 8 bits in a CUDA graph",
        "",
        "BERT-base size, random weights, `--fusion all`, embeddings included, nothing padded. Ours is run by "
        "`network_runner.py` from the TensorRT network definition, not by TensorRT. The peer is the same network in "
        "PyTorch with `torch._scaled_mm`, by `torch.compile`. "
        f"{', '.join(f'{key} {value}' for key, value in about.items())}. "
        f"Command: `{command}`",
        "",
        *markdown_table(HEADINGS, rows(results)),
    ]
    write_results(args.json, {"about": about, "command": command, "results": results}, args.markdown, lines)
    return 0


if __name__ == "__main__":
    run_script(main)
