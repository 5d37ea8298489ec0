"""Measures packed and padded batches on the GPU.

    python benchmarks/random_checkpoint.py out/base/checkpoint      weights of BERT-base size from a seed
    python model2onnx.py --model out/base/checkpoint --out-dir out/base/model --text "a [MASK] ."
    python benchmarks/packed_batches.py out/base/model --json FILE --markdown FILE

network_runner.py runs embeddings and encoder of builder.py's network definition in CUDA graphs, in fp16, with all
fused layers (--fusion all); TensorRT executes nothing. In a padded batch every sequence has the length of the longest
one, with a mask.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Time of packed and padded batches.")
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import numpy as np
import torch
from report import check_results, markdown_table, print_table, versions, write_results

from bert_trt.console import UserError, run_script
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import DEFAULT_DATA
from bert_trt.packing import Limits, NetworkBatch, pack, packed_batch, pad, padded_batch
from bert_trt.sentences import load_tokenizer, read_sentences
from bert_trt.tensorrt_log import TrtLog
from builder import assemble
from plugins.measure import graph_times

MIX = 64  # number of sentences from the calibration text
SEQUENCES = 32  # the most sequences in a batch
HEADINGS = ("sentences", "padded", "tokens", "padded us", "packed us", "time ratio", "token ratio", "share reached")


def cases(folder: ModelFolder) -> dict[str, list[np.ndarray]]:
    """Token ids of the sequences of each case, each (S_i,)."""
    random = np.random.default_rng(0)

    def of(lengths: Sequence[int]) -> list[np.ndarray]:
        return [random.integers(5, folder.config.vocab_size, length).astype(np.int32) for length in lengths]

    lines, _ = read_sentences(DEFAULT_DATA, load_tokenizer(folder), folder.config, truncate=True)
    mix = [lines[index * len(lines) // MIX].ids for index in range(MIX)]
    return {
        "10 and 100": of([10, 100]),
        "16 of 10, 16 of 100": of([10, 100] * 16),
        f"{MIX} of the calibration text": mix,
    }


def in_given_order(sequences: Sequence[np.ndarray], limits: Limits) -> list[NetworkBatch]:
    """Padded batches in the given order, each padded to its longest sequence: no length buckets."""
    groups = [sequences[start : start + SEQUENCES] for start in range(0, len(sequences), SEQUENCES)]
    unlimited = Limits(10**9, SEQUENCES, limits.max_positions)
    return [
        padded_batch(batch)
        for group in groups
        for batch in pad(group, unlimited, buckets=[max(len(ids) for ids in group)])
    ]


def time_of(folder: ModelFolder, batches: Sequence[NetworkBatch], batching: str) -> float:
    """The microseconds of all batches together, each in its own CUDA graph."""
    network = assemble(folder, TrtLog(), "fp16", batching=batching, fusion="all")
    last = network.hidden_states[-1]
    runner = NetworkRunner(network.network, "cuda", [last], network.contents)

    def function(batch: NetworkBatch) -> Callable[[], Any]:
        inputs = [torch.as_tensor(batch.inputs[name]).cuda() for name in runner.input_names]
        return lambda: runner.module(*inputs)

    with torch.inference_mode():
        times = graph_times({str(index): function(batch) for index, batch in enumerate(batches)}, 4, 25)
    return sum(times.values())


def measure(folder: ModelFolder, name: str, sequences: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Measures one case: padded in the given order, padded in length buckets, and packed."""
    positions = folder.config.max_positions
    limits = Limits(SEQUENCES * positions, SEQUENCES, positions)
    packed = [packed_batch(batch) for batch in pack(sequences, limits)]
    tokens = sum(len(ids) for ids in sequences)
    packed_time = time_of(folder, packed, "packed")
    results = []
    padded_batches = {
        "as they come": in_given_order(sequences, limits),
        "length buckets": [padded_batch(batch) for batch in pad(sequences, limits, buckets=16)],
    }
    for method, batches in padded_batches.items():
        padded_tokens = sum(batch.inputs["input_ids"].size for batch in batches)
        time = time_of(folder, batches, "padded")
        results.append(
            {
                "case": name,
                "padded": method,
                "batches": len(batches),
                "packed_batches": len(packed),
                "padded_tokens": padded_tokens,
                "tokens": tokens,
                "padded_us": time,
                "packed_us": packed_time,
                "time_ratio": time / packed_time,
                "token_ratio": padded_tokens / tokens,
            }
        )
    return results


def rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            result["case"],
            f"{result['padded']}, {result['batches']} batches",
            f"{result['padded_tokens']} : {result['tokens']}",
            f"{result['padded_us']:.0f}",
            f"{result['packed_us']:.0f} ({result['packed_batches']} batches)",
            f"{result['time_ratio']:.2f}",
            f"{result['token_ratio']:.2f}",
            f"{result['time_ratio'] / result['token_ratio']:.0%}",
        ]
        for result in results
    ]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir])
    if not torch.cuda.is_available():
        raise UserError("benchmarks/packed_batches.py needs an NVIDIA GPU and PyTorch for CUDA")
    folder, about = ModelFolder(args.model_dir), versions("cuda")
    command = f"python benchmarks/packed_batches.py {args.model_dir}"
    results = [result for name, sequences in cases(folder).items() for result in measure(folder, name, sequences)]
    print_table("Packed against padded, fp16", HEADINGS, rows(results))
    details = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [
        "# Packed against padded batches",
        "",
        "fp16, embeddings and encoder with all fused layers (`--fusion all`), in CUDA graphs, run by "
        "`network_runner.py` from the TensorRT network definition, not by TensorRT. "
        f"{details}. Command: `{command}`. Share reached: time ratio by "
        "token ratio.",
        "",
        *markdown_table(HEADINGS, rows(results)),
    ]
    record = {"about": about, "command": command, "results": results}
    write_results(args.json, record, args.markdown, lines)
    return 0


if __name__ == "__main__":
    run_script(main)
