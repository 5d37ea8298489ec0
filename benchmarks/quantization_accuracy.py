"""Measures the error of int8 and fp8 by calibration method and number of sentences.

    python model2onnx.py                                            the bundled checkpoint, in out/
    python benchmarks/quantization_accuracy.py out out/minilm       out/minilm: see benchmarks/packaged_checkpoint.py
    python benchmarks/quantization_accuracy.py out out/minilm --json FILE --markdown FILE

First it measures every method with 8 to 512 sentences, with and without smoothing, on lines that were not used for
calibration. Then it measures builder.py's defaults, int8 and fp8, with --fusion none and all, on 200 such lines, and
with the bundled checkpoint also on questions for capitals in forms that the checkpoint was not trained on.
network_runner.py runs the networks; TensorRT executes nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Accuracy of int8 and fp8 by calibration method and data.")
    parser.add_argument("model_dirs", nargs="+", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where PyTorch finds a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from report import check_results, markdown_table, model_name, print_table, versions, write_results

from bert_trt.calibration import BertCalibrator, CalibrationContext, calibrate_best, choose_ranges, quantization_of
from bert_trt.calibration_data import read_data, spread
from bert_trt.console import log_console, run_script
from bert_trt.evaluation import Evaluation
from bert_trt.model_files import ModelFolder
from bert_trt.options import DEFAULT_DATA, METHODS, CalibrationSettings
from bert_trt.sentences import Sentence, load_tokenizer, read_sentences
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

COUNTS = (8, 32, 128, 512)
ALPHAS = (None, 0.7)
FUSIONS = ("none", "all")  # Q/DQ around TensorRT's products, and 8 bits between the plugins
EVALUATED = 200
CAPITAL_QUESTIONS = 400


def methods_and_counts(folder: ModelFolder, device: str) -> list[dict[str, Any]]:
    """The error of every method with every number of sentences, with and without smoothing."""
    log = TrtLog()
    data = read_data(folder, DEFAULT_DATA, max(COUNTS), EVALUATED)
    evaluation = Evaluation(folder, data.evaluation, data.mask_id, assemble, log, device)
    results = []
    for count in COUNTS:
        sentences = [data.calibration[index] for index in spread(len(data.calibration), count)]
        products = assemble(folder, TrtLog(), batching="padded").products
        context = CalibrationContext(folder, products, sentences, data.path, assemble, log, device)
        settings = CalibrationSettings(sentences=count, smoothing=None)
        plain = context.observe(settings)
        for alpha in ALPHAS:
            smoothing = context.smoothing(settings, plain, alpha) if alpha else {}
            with log_console.status(f"{folder.path}: {count} sentences, smoothing {alpha}"):
                results += [
                    measure_method(
                        context, evaluation, replace(settings, method=method, smoothing=alpha), smoothing, plain
                    )
                    for method in METHODS
                ]
    return results


def measure_method(
    context: CalibrationContext,
    evaluation: Evaluation,
    settings: CalibrationSettings,
    smoothing: dict[str, Any],
    plain: BertCalibrator,
) -> dict[str, Any]:
    """Calibrates with one method, histograms included, and measures the error."""
    start = time.perf_counter()
    (histograms,) = context.histograms(settings, [smoothing], plain)
    calibration = choose_ranges(histograms, settings, smoothing, start)
    change = evaluation.measure(settings.kind, quantization_of(calibration, context.products(settings)))
    return {
        "model": model_name(context.folder),
        "method": settings.method,
        "sentences": settings.sentences,
        "smoothing": settings.smoothing or "off",
        "seconds": calibration.seconds,
        **{key: value for key, value in asdict(change).items() if key != "sentences"},
        "evaluated": change.sentences,
    }


def defaults(folder: ModelFolder, device: str) -> list[dict[str, Any]]:
    """Measures int8 and fp8 with builder.py's default settings."""
    log, settings = TrtLog(), CalibrationSettings()
    data = read_data(folder, DEFAULT_DATA, settings.sentences, EVALUATED)
    kinds_of_text = {"lines not calibrated on": data.evaluation}
    if folder.config.has_head:
        kinds_of_text["questions for capitals"] = capital_questions(folder)
    results = []
    for kind, fusion in itertools.product(("int8", "fp8"), FUSIONS):
        products = assemble(folder, TrtLog(), batching="padded").products
        context = CalibrationContext(folder, products, data.calibration, data.path, assemble, log, device)
        calibration = calibrate_best(context, replace(settings, kind=kind, fusion=fusion), data.mask_id)
        quantization = quantization_of(calibration, context.products(settings))
        for text, sentences in kinds_of_text.items():
            fused = functools.partial(assemble, fusion=fusion)
            evaluation = Evaluation(folder, sentences, data.mask_id, fused, log, device)
            for precision in (kind, "fp16") if kind == "int8" else (kind,):
                change = evaluation.measure(precision, quantization if precision == kind else None)
                about = {"model": model_name(folder), "precision": precision, "fusion": fusion, "text": text}
                results.append({**about, **asdict(change)})
    return results


def capital_questions(folder: ModelFolder) -> list[Sentence]:
    """Sentences with [MASK] for a capital, in forms that the bundled checkpoint was not trained on."""
    from demo_model.facts import HELD_OUT_CAPITAL_FORMS, load_countries, plain

    tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    questions = [
        form.format(country=country.name, capital="[MASK]")
        for country in load_countries()
        for form in HELD_OUT_CAPITAL_FORMS
        if plain(country.capital).lower() in vocabulary
    ]
    chosen = [questions[index] for index in spread(len(questions), min(CAPITAL_QUESTIONS, len(questions)))]

    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(chosen) + "\n")
        file.flush()
        sentences, problems = read_sentences(Path(file.name), tokenizer, folder.config)
    assert not problems
    return sentences


def share(value: float | None) -> str:
    """A share as text."""
    return "—" if value is None else f"{value:.1%}"


def method_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row for each model, smoothing and number of sentences; a column for each method."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        key = (result["model"], str(result["smoothing"]), str(result["sentences"]))
        rows.setdefault(key, []).append(f"{result['rel_l2']:.4f} ({result['cosine']:.4f}), {result['seconds']:.1f} s")
    return [[*key, *cells] for key, cells in rows.items()]


def default_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row for each model, precision, fusion and kind of text."""
    return [
        [
            result["model"],
            result["precision"],
            result["fusion"],
            f"{result['sentences']} {result['text']}",
            f"{result['rel_l2']:.4f}",
            f"{result['cosine']:.5f}",
            share(result["first_word_same"]),
            "—" if result["ten_best_same"] is None else f"{result['ten_best_same']:.2f}",
        ]
        for result in results
    ]


METHOD_HEADINGS = ("model", "smoothing", "sentences", *METHODS)
DEFAULT_HEADINGS = (
    *("model", "precision", "fusion", "text"),
    *("relative L2", "mean cosine", "first word same", "of ten best"),
)


def markdown(results: dict[str, Any]) -> list[str]:
    """The lines of the Markdown file."""
    about = ", ".join(f"{key} {value}" for key, value in results["about"].items())
    return [
        "# int8 and fp8 against fp32",
        "",
        f"Run by `network_runner.py` from the TensorRT network definition, not by TensorRT. {about}. "
        f"Command: `{results['command']}`. All linear layers of the encoder are quantized; everything else is fp16.",
        "",
        "## With the defaults",
        "Ranges by mse from 128 sentences, smoothing auto. Each on sentences that were not calibrated on.",
        "",
        *markdown_table(DEFAULT_HEADINGS, default_rows(results["defaults"])),
        "",
        "## Methods and numbers of sentences",
        "int8: relative L2 error (mean cosine similarity), seconds to calibrate.",
        "",
        *markdown_table(METHOD_HEADINGS, method_rows(results["methods"])),
    ]


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, args.model_dirs)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folders = [ModelFolder(path) for path in args.model_dirs]
    results = {
        "about": versions(args.device),
        "command": "python benchmarks/quantization_accuracy.py " + " ".join(map(str, args.model_dirs)),
        "defaults": [result for folder in folders for result in defaults(folder, args.device)],
        "methods": [result for folder in folders for result in methods_and_counts(folder, args.device)],
    }
    print_table("With the defaults", DEFAULT_HEADINGS, default_rows(results["defaults"]))
    print_table("Methods and numbers of sentences, int8", METHOD_HEADINGS, method_rows(results["methods"]))
    write_results(args.json, results, args.markdown, markdown(results))
    return 0


if __name__ == "__main__":
    run_script(main)
