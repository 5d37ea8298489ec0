"""How much quantization changes the answers: altogether, and product by product.

    python model2onnx.py        writes out/
    python sensitivity.py       int8: every product of the encoder alone, ranked by the error that it brings
    python sensitivity.py --precision fp8 --plot sensitivity.png --json sensitivity.json

``builder.py --precision int8 --max-error X`` uses the ranking: it returns the worst products to fp16, one by one,
until the error is at most X. Errors are measured with network_runner.py on sentences that were not calibrated on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bert_trt.interrupts import begin_script
from bert_trt.options import sensitivity_arguments

if __name__ == "__main__":
    begin_script(sensitivity_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

import numpy as np
import torch
from rich.progress import track
from rich.table import Table

from bert_trt.comparison import best_words
from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.files import atomic_write, check_outputs, make_folder, write_json
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import CACHE_NAME, Settings, has_linear
from bert_trt.quantization import (
    BASE_PRECISION,
    Product,
    Quantization,
    in_groups,
)
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog
from calibrator import (
    Assemble,
    Calibration,
    Subject,
    batch_inputs,
    batches,
    best_device,
    calibrate,
    calibrate_cached,
    choose_ranges,
    load_pyplot,
    read_data,
    spread,
)

EVALUATION_SENTENCES = 64
CHOICE_SENTENCES = 32
SMOOTHING_STRENGTHS = (None, 0.5, 0.7, 0.85)
SPREADING_PRIME = 7919  # beyond any length, so that no length divides it


@dataclass(frozen=True)
class Change:
    """How far answers are from those of the fp32 network.

    Attributes:
        sentences: how many were compared.
        rel_l2: relative L2 error over all outputs together; infinite if one of them is not finite.
        cosine: mean cosine similarity of a token's output to fp32's.
        first_word_same: share of sentences whose best word for [MASK] is the same; None without a head.
        ten_best_same: how many of the ten best words are the same, mean; None without a head.
    """

    sentences: int
    rel_l2: float
    cosine: float
    first_word_same: float | None
    ten_best_same: float | None


class Evaluation:
    """Compares networks with the fp32 one on sentences. One word of each is [MASK], if the model has a head.

    Args:
        folder: the model.
        sentences: what to compare on.
        mask_id: the id of [MASK]; None leaves the sentences as they are.
        assemble: ``builder.assemble``.
        log: for TensorRT's messages.
        device: "cpu" or "cuda"; default: CUDA where there is a GPU.
    """

    def __init__(
        self,
        folder: ModelFolder,
        sentences: Sequence[Sentence],
        mask_id: int | None,
        assemble: Assemble,
        log: TrtLog,
        device: str | None = None,
    ) -> None:
        self.folder = folder
        self.mask_id = mask_id
        self.device = device or best_device()
        self._assemble = assemble
        self._log = log
        self._batches = batches([hide_word(sentence, mask_id) for sentence in sentences])
        self._reference = self.run("fp32", None)

    def run(self, precision: str, quantization: Quantization | None) -> list[torch.Tensor]:
        """The outputs of one network, for each batch fp32 (B, S, vocabulary or H)."""
        made = self._assemble(self.folder, self._log, precision, batching="padded", quantization=quantization)
        runner = NetworkRunner(made.network, self.device, contents=made.contents)
        name = self.folder.config.output_name
        return [runner.run(batch_inputs(batch))[name] for batch in self._batches]

    def measure(self, precision: str, quantization: Quantization | None) -> Change:
        """How far a network's answers are from those in fp32."""
        return self.compare(self.run(precision, quantization))

    def compare(self, outputs: Sequence[torch.Tensor]) -> Change:
        """How far these outputs are from those in fp32."""
        difference = square = cosine = 0.0
        tokens = 0
        first, ten = [], []
        for batch, ours, theirs in zip(self._batches, outputs, self._reference, strict=True):
            difference += float((ours - theirs).square().sum(dtype=torch.float64))
            square += float(theirs.square().sum(dtype=torch.float64))
            cosine += float(torch.cosine_similarity(ours, theirs, dim=-1).sum())
            tokens += theirs.shape[0] * theirs.shape[1]
            if self.mask_id is not None:
                for row, sentence in enumerate(batch):
                    position = int(np.flatnonzero(sentence.ids == self.mask_id)[0])
                    a, b = (best_words(x[row, position].cpu().numpy()) for x in (ours, theirs))
                    first.append(a[0] == b[0])
                    ten.append(len({*a} & {*b}))
        count = sum(map(len, self._batches))
        masked = self.mask_id is not None
        return Change(
            count,
            (difference / square) ** 0.5 if math.isfinite(difference) else math.inf,  # a NaN could not be ranked
            cosine / tokens,
            sum(first) / count if masked else None,
            sum(ten) / count if masked else None,
        )


def hide_word(sentence: Sentence, mask_id: int | None) -> Sentence:
    """The sentence with [MASK] in place of one token, a different place in each line; as it is if it has one."""
    if mask_id is None or mask_id in sentence.ids or len(sentence.ids) < 3:
        return sentence
    ids = sentence.ids.copy()
    ids[1 + sentence.line * SPREADING_PRIME % (len(ids) - 2)] = mask_id  # neither [CLS] nor [SEP]
    return replace(sentence, ids=ids)


def quantization_of(calibration: Calibration, products: Sequence[Product]) -> Quantization:
    """These products quantized with the calibration's ranges."""
    names = frozenset(product.name for product in products)
    return Quantization(calibration.settings.kind, names, calibration.ranges, calibration.smoothing)


@dataclass(frozen=True)
class Sensitivity:
    """One product and the relative L2 error of the network in which it alone is quantized."""

    name: str
    group: str
    rel_l2: float


def rank(evaluation: Evaluation, quantization: Quantization, products: Sequence[Product]) -> list[Sensitivity]:
    """Quantizes each product alone; the worst first."""
    found = []
    for product in track(products, "one product at a time", console=log_console, transient=True):
        change = evaluation.measure(quantization.kind, quantization.only(product.name))
        found.append(Sensitivity(product.name, product.group, change.rel_l2))
    return sorted(found, key=lambda one: -one.rel_l2)


@dataclass(frozen=True)
class Spared:
    """Products that went back to fp16, the worst first, and what came of it.

    Attributes:
        quantization: what is left.
        steps: product and the relative L2 error after it went back.
        ranking: of all products.
    """

    quantization: Quantization
    steps: list[tuple[str, float]]
    ranking: list[Sensitivity]


def spare(
    evaluation: Evaluation,
    quantization: Quantization,
    products: Sequence[Product],
    max_error: float,
) -> Spared:
    """Returns the worst products to fp16, one by one, until the error is at most ``max_error``.

    Raises:
        UserError: not even without any quantized product; the message has the best error that can be reached.
    """
    error = evaluation.measure(quantization.kind, quantization).rel_l2
    if error <= max_error:
        return Spared(quantization, [], [])
    best = evaluation.measure(BASE_PRECISION, None).rel_l2
    if not best <= max_error:
        raise UserError(
            f"--max-error {max_error:g} cannot be met: with everything in {BASE_PRECISION} the relative L2 error is "
            f"{best:.2e}, the best that can be reached; with all {len(quantization.products)} products in "
            f"{quantization.kind} it is {error:.2e}"
        )
    ranking = rank(evaluation, quantization, products)
    steps = []
    for one in track(ranking, "returning products to fp16", console=log_console, transient=True):
        quantization = quantization.without(one.name)
        error = evaluation.measure(quantization.kind, quantization).rel_l2
        steps.append((one.name, error))
        if error <= max_error:
            break
    return Spared(quantization, steps, ranking)


# --- from options to a quantization -----------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizedModel:
    """A model's quantization, and what it does to the answers.

    Attributes:
        products: all products of the encoder, in the order of computation.
        calibration: the ranges.
        quantization: what is quantized in the end.
        evaluation: compares networks on sentences that were not calibrated on; None if there are none.
        change: the answers against fp32, on sentences that were not calibrated on; None if there are none.
        spared: what --max-error returned to fp16; None without it.
    """

    products: list[Product]
    calibration: Calibration
    quantization: Quantization
    evaluation: Evaluation | None
    change: Change | None
    spared: Spared | None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "settings": asdict(self.calibration.settings),
            "quantized_products": sorted(self.quantization.products),
            "change": asdict(self.change) if self.change else None,
            "returned_to_fp16": self.spared.steps if self.spared else [],
        }

    def print_change(self) -> None:
        """What quantization did to the answers, and what was returned to fp16."""
        kind, change = self.quantization.kind, self.change
        if self.spared is not None and self.spared.steps:
            table = Table(title="Returned to fp16, the worst first", title_justify="left")
            for heading in ("product", "its error alone", "error of the whole without it"):
                table.add_column(heading, overflow="fold")
            alone = {one.name: one.rel_l2 for one in self.spared.ranking}
            for name, error in self.spared.steps:
                table.add_row(name, f"{alone[name]:.2e}", f"{error:.2e}")
            console.print(table)
        if change is None:
            console.print("No sentence was left over to measure the error on.")
            return
        words = ""
        if change.first_word_same is not None:
            words = (
                f"; the first word for [MASK] is the same in {change.first_word_same:.1%}, "
                f"{change.ten_best_same:.1f} of the ten best are"
            )
        console.print(
            f"{kind} against fp32 on {change.sentences} sentences not used for calibration: relative L2 error "
            f"{change.rel_l2:.2e}, mean cosine similarity {change.cosine:.5f}{words}.",
            markup=False,
            soft_wrap=True,
        )


def quantize(
    folder: ModelFolder, args: argparse.Namespace, assemble: Assemble, log: TrtLog, cache: Path
) -> QuantizedModel:
    """Calibrates as the command line asks, measures the error, and meets --max-error.

    Raises:
        UserError: the data, the model or --max-error will not do.
    """
    settings = Settings.of(args)
    data = read_data(folder, args.calibration_data, settings.sentences, EVALUATION_SENTENCES)
    encoder = assemble(folder, log, batching="padded").products
    products = in_groups(encoder, settings.groups)
    subject = Subject(folder, encoder, data.calibration, data.path, assemble, log)
    if args.max_error is not None and not data.evaluation:
        raise UserError(
            f"{data.path} has {settings.sentences} sentences and all are calibrated on; --max-error needs others to "
            "measure the error: add some, or lower --calibration-sentences"
        )
    calibration = calibrate_cached(
        folder, data.calibration, settings, cache, lambda: calibrate_best(subject, settings, data.mask_id)
    )
    evaluation = Evaluation(folder, data.evaluation, data.mask_id, assemble, log) if data.evaluation else None
    quantization, spared, change = quantization_of(calibration, products), None, None
    if evaluation is not None:
        if args.max_error is not None:
            spared = spare(evaluation, quantization, products, args.max_error)
            quantization = spared.quantization
        change = evaluation.measure(settings.kind, quantization)
    return QuantizedModel(encoder, calibration, quantization, evaluation, change, spared)


def calibrate_best(subject: Subject, settings: Settings, mask_id: int | None) -> Calibration:
    """Calibrates; with ``auto``, with several strengths of smoothing, of which it takes that of the least error.

    The error is measured on the calibration's own sentences: others are for the final measurement. Where no linear
    layer is quantized nothing can be smoothed, and it calibrates once.
    """
    if settings.smoothing != "auto" or not has_linear(settings.groups):
        return calibrate(subject, settings)
    start, products = time.perf_counter(), subject.products(settings)
    plain = subject.observe(settings, {})
    count = len(subject.sentences)
    some = [subject.sentences[place] for place in spread(count, min(CHOICE_SENTENCES, count))]
    evaluation = Evaluation(subject.folder, some, mask_id, subject.assemble, subject.log, subject.device)
    found: dict[float | None, tuple[float, Calibration]] = {}
    for strength in SMOOTHING_STRENGTHS:
        smoothing = subject.smoothing(settings, plain, strength) if strength else {}
        observed = subject.observe(settings, smoothing) if strength else plain
        made = choose_ranges(observed, settings, smoothing, start)
        found[strength] = evaluation.measure(settings.kind, quantization_of(made, products)).rel_l2, made
    told = ", ".join(f"{strength or 'off'} {error:.2e}" for strength, (error, _) in found.items())
    log_console.print(f"smoothing: relative L2 error by strength: {told}", soft_wrap=True)
    _, best = min(found.values(), key=lambda pair: pair[0])
    return replace(best, seconds=time.perf_counter() - start)


# --- tables and pictures ----------------------------------------------------------------------------------


def print_ranking(ranking: Sequence[Sensitivity], kind: str, plain_error: float) -> None:
    """One row for each product."""
    title = f"Relative L2 error with one product in {kind} (with none: {plain_error:.2e})"
    table = Table(title=title, title_justify="left")
    for heading in ("product", "group", "relative L2 error"):
        table.add_column(heading, overflow="fold")
    for one in ranking:
        table.add_row(one.name, one.group, f"{one.rel_l2:.2e}")
    console.print(table)


def plot_ranking(ranking: Sequence[Sensitivity], kind: str, products: Sequence[Product], path: Path) -> None:
    """Error by layer, a line for each group (the worst product of the group), as a picture."""
    pyplot = load_pyplot()
    errors = {one.name: one.rel_l2 for one in ranking}
    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for group in dict.fromkeys(product.group for product in products):
        by_layer: dict[int, float] = {}
        for product in in_groups(products, [group]):
            layer = int(product.name.split("layer.")[1].split(".")[0])
            by_layer[layer] = max(by_layer.get(layer, 0.0), errors[product.name])
        axis.plot(list(by_layer), list(by_layer.values()), marker="o", label=group)
    axis.set(xlabel="encoder layer", ylabel="relative L2 error of the output", title=f"One product alone in {kind}")
    axis.set_ylim(bottom=0)
    axis.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=120)
    pyplot.close(figure)


def main() -> int:
    """The script."""
    from builder import assemble

    args = sensitivity_arguments()
    folder, log = ModelFolder(args.model_dir), TrtLog()
    outputs = {"the calibration cache": folder.path / CACHE_NAME, "--json": args.json, "--plot": args.plot}
    check_outputs(outputs, {"--calibration-data": args.calibration_data} | folder.files())
    for path in outputs.values():
        if path is not None:
            make_folder(path.parent)
    model = quantize(folder, args, assemble, log, folder.path / CACHE_NAME)
    evaluation = model.evaluation
    if evaluation is None:
        raise UserError(
            f"{args.calibration_data}: no sentence is left over to measure on; lower --calibration-sentences"
        )
    products = in_groups(model.products, args.quantize)
    ranking = model.spared.ranking if model.spared else []
    if not ranking:  # --max-error ranks only if it has to return something
        ranking = rank(evaluation, quantization_of(model.calibration, products), products)
    print_ranking(ranking, args.precision, evaluation.measure(BASE_PRECISION, None).rel_l2)
    model.print_change()
    if args.plot is not None:
        plot_ranking(ranking, args.precision, products, args.plot)
    write_json(args.json, {**model.as_dict(), "ranking": [asdict(one) for one in ranking]})
    return 0


if __name__ == "__main__":
    run_script(main)
