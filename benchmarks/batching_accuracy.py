"""Compares every combination of fusion and batching with PyTorch.

    python model2onnx.py                                        the bundled checkpoint, in out/
    python benchmarks/batching_accuracy.py out demo_model       on the GPU if there is one
    python benchmarks/batching_accuracy.py out demo_model out/base/model out/base/checkpoint --json FILE

The batch has sentences of different lengths. The reference is Hugging Face's model in fp32 on the CPU, with its own
attention mask. network_runner.py runs the networks, with the plugins' own kernels on CUDA; TensorRT executes nothing.
"others unchanged": after one sentence of the batch is replaced, the results of all others are the same bit for bit.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Accuracy of every combination of fusion and batching.")
    parser.add_argument("models", nargs="+", metavar="MODEL_DIR CHECKPOINT", help="pairs")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where PyTorch finds a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args()
    if len(args.models) % 2:
        parser.error("expected pairs of MODEL_DIR and CHECKPOINT")
    return args


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import numpy as np
import torch
from partial_fusion import ALONE
from report import check_results, markdown_table, model_name, print_table, versions, write_results

from bert_trt.checkpoint import load_checkpoint
from bert_trt.comparison import relative_l2
from bert_trt.console import log_console, run_script
from bert_trt.fusion import LAYER_SETS
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import BATCHINGS, DEFAULT_DATA, FUSIONS, ONE_SEQUENCE, TOLERANCES, SequenceRange
from bert_trt.prediction import BatchRanges, make_batches
from bert_trt.sentences import Sentence, load_tokenizer, read_sentences
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

# By name: each plugin alone, and the choices of --fusion.
FUSED = ALONE | {name: (name, LAYER_SETS[name], fused) for name, fused in FUSIONS.items()}
SENTENCES = 12
HEADINGS = ("model", "precision", "fused", "batching", "relative L2", "at most", "others unchanged")


def chosen_sentences(folder: ModelFolder) -> list[Sentence]:
    """Sentences of different lengths from the calibration text."""
    lines, _ = read_sentences(DEFAULT_DATA, load_tokenizer(folder), folder.config, truncate=True)
    return [lines[index * len(lines) // SENTENCES] for index in range(SENTENCES)]


def reference(checkpoint: str, sentences: Sequence[Sentence]) -> list[np.ndarray]:
    """Hugging Face's outputs, each (S, vocabulary or H), from one padded batch with its mask."""
    loaded = load_checkpoint(checkpoint)
    longest = max(len(sentence.ids) for sentence in sentences)
    ids = np.zeros((len(sentences), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence.ids)], mask[row, : len(sentence.ids)] = sentence.ids, 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    output, _ = loaded.run_reference({name: torch.from_numpy(values) for name, values in inputs.items()})
    return [output[row, : len(sentence.ids)].numpy() for row, sentence in enumerate(sentences)]


def run(runner: NetworkRunner, name: str, sentences: Sequence[Sentence], batching: str) -> list[np.ndarray]:
    """Our outputs, in the order of the sentences; ``single`` runs them one by one, otherwise they are one batch."""
    longest = max(len(sentence.ids) for sentence in sentences)
    batch = ONE_SEQUENCE if batching == "single" else SequenceRange(1, 1, len(sentences))
    answers: dict[int, np.ndarray] = {}
    for batched in make_batches(sentences, BatchRanges(batching, SequenceRange(1, longest, longest), batch)):
        output = runner.run(batched.inputs)[name].cpu().numpy()
        answers |= dict(zip(batched.sequences, batched.split(output), strict=True))
    return [answers[index] for index in range(len(sentences))]


def replaced(sentences: Sequence[Sentence]) -> list[Sentence]:
    """The sentences with the tokens of the first one in reverse order."""
    first = sentences[0]
    ids = first.ids.copy()
    ids[1:-1] = ids[1:-1][::-1]
    return [replace(first, ids=ids), *sentences[1:]]


def measure(folder: ModelFolder, checkpoint: str, device: str) -> list[dict[str, Any]]:
    """Measures all combinations for one model."""
    sentences = chosen_sentences(folder)
    expected, output_name, results = reference(checkpoint, sentences), folder.config.output_name, []
    for precision, (name, (fusion, layer_set, fused)), batching in itertools.product(
        ("fp32", "fp16"), FUSED.items(), BATCHINGS
    ):
        if precision == "fp32" and "Linear" in fused:
            continue  # the plugin has no fp32
        with log_console.status(f"{folder.path} {precision} {fusion} {batching}"):
            network = assemble(folder, TrtLog(), precision, batching=batching, fusion=fusion, layer_set=layer_set)
            runner = NetworkRunner(network.network, device, contents=network.contents)
            answers = run(runner, output_name, sentences, batching)
            others = run(runner, output_name, replaced(sentences), batching)[1:]
        results.append(
            {
                "model": model_name(folder),
                "precision": precision,
                "fused": name,
                "batching": batching,
                "rel_l2": relative_l2(np.concatenate(answers), np.concatenate(expected)),
                "tolerance": TOLERANCES[precision],
                "others_unchanged": all(np.array_equal(a, b) for a, b in zip(answers[1:], others, strict=True)),
            }
        )
    return results


def rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            result["model"],
            result["precision"],
            result["fused"],
            result["batching"],
            f"{result['rel_l2']:.2e}",
            f"{result['tolerance']:.0e}",
            "yes" if result["others_unchanged"] else "NO",
        ]
        for result in results
    ]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [Path(path) for path in args.models[::2]])
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    about, command = versions(args.device), " ".join(["python benchmarks/batching_accuracy.py", *args.models])
    pairs = zip(args.models[::2], args.models[1::2], strict=True)
    results = [
        result for path, checkpoint in pairs for result in measure(ModelFolder(Path(path)), checkpoint, args.device)
    ]
    print_table("Fusion and batching against PyTorch", HEADINGS, rows(results))
    details = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [
        "# Fusion and batching against PyTorch",
        "",
        f"{SENTENCES} sentences of different lengths, against Hugging Face's model in fp32 with its own mask. Run by "
        f"`network_runner.py` from the TensorRT network definition, not by TensorRT. {details}. Command: `{command}`",
        "",
        *markdown_table(HEADINGS, rows(results)),
    ]
    record = {"about": about, "command": command, "results": results}
    write_results(args.json, record, args.markdown, lines)
    within = all(result["rel_l2"] <= result["tolerance"] and result["others_unchanged"] for result in results)
    return 0 if within else 1


if __name__ == "__main__":
    run_script(main)
