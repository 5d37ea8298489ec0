"""From options to a quantization: calibrate, measure the error, return products to fp16 until it is small enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from bert_trt.calibration import Calibration, CalibrationContext, calibrate_best, quantization_of
from bert_trt.calibration_cache import calibrate_cached
from bert_trt.calibration_data import read_data
from bert_trt.console import UserError, console, log_console
from bert_trt.evaluation import Assemble, Evaluation, OutputChange
from bert_trt.model_files import ModelFolder
from bert_trt.options import QuantizationOptions
from bert_trt.quantization import BASE_PRECISION, Product, Quantization, in_groups
from bert_trt.tensorrt_log import TrtLog

EVALUATION_SENTENCES = 64


@dataclass(frozen=True)
class Sensitivity:
    """One product and the relative L2 error of the network in which it alone is quantized."""

    name: str
    group: str
    rel_l2: float


def rank_products(
    evaluation: Evaluation, quantization: Quantization, products: Sequence[Product]
) -> list[Sensitivity]:
    """Quantizes each product alone; the worst first."""
    found = []
    for product in track(products, "one product at a time", console=log_console, transient=True):
        change = evaluation.measure(quantization.kind, quantization.only(product.name))
        found.append(Sensitivity(product.name, product.group, change.rel_l2))
    return sorted(found, key=lambda one: -one.rel_l2)


@dataclass(frozen=True)
class ReturnedProducts:
    """Products that went back to fp16, the worst first, and what came of it.

    Attributes:
        quantization: what is left.
        steps: product and the relative L2 error after it went back.
        ranking: of all products.
    """

    quantization: Quantization
    steps: list[tuple[str, float]]
    ranking: list[Sensitivity]


def return_products(
    evaluation: Evaluation,
    quantization: Quantization,
    products: Sequence[Product],
    max_error: float,
) -> ReturnedProducts:
    """Returns the worst products to fp16, one by one, until the error is at most ``max_error``.

    Raises:
        UserError: not even without any quantized product; the message has the best error that can be reached.
    """
    error = evaluation.measure(quantization.kind, quantization).rel_l2
    if error <= max_error:
        return ReturnedProducts(quantization, [], [])
    best = evaluation.measure(BASE_PRECISION, None).rel_l2
    if not best <= max_error:
        raise UserError(
            f"--max-error {max_error:g} cannot be met: with everything in {BASE_PRECISION} the relative L2 error is "
            f"{best:.2e}, the best that can be reached; with all {len(quantization.products)} products in "
            f"{quantization.kind} it is {error:.2e}"
        )
    ranking = rank_products(evaluation, quantization, products)
    steps = []
    for one in track(ranking, "returning products to fp16", console=log_console, transient=True):
        quantization = quantization.without(one.name)
        error = evaluation.measure(quantization.kind, quantization).rel_l2
        steps.append((one.name, error))
        if error <= max_error:
            break
    return ReturnedProducts(quantization, steps, ranking)


@dataclass(frozen=True)
class QuantizedModel:
    """A model's quantization, and what it does to the answers.

    Attributes:
        products: all products of the encoder, in the order of computation.
        calibration: the ranges.
        quantization: what is quantized in the end.
        evaluation: compares networks on sentences that were not calibrated on; None if there are none.
        change: the answers against fp32, on sentences that were not calibrated on; None if there are none.
        returned: what --max-error returned to fp16; None without it.
    """

    products: list[Product]
    calibration: Calibration
    quantization: Quantization
    evaluation: Evaluation | None
    change: OutputChange | None
    returned: ReturnedProducts | None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "settings": asdict(self.calibration.settings),
            "quantized_products": sorted(self.quantization.products),
            "change": asdict(self.change) if self.change else None,
            "returned_to_fp16": self.returned.steps if self.returned else [],
        }

    def print_change(self) -> None:
        """What quantization did to the answers, and what was returned to fp16."""
        kind, change = self.quantization.kind, self.change
        if self.returned is not None and self.returned.steps:
            table = Table(title="Returned to fp16, the worst first", title_justify="left")
            for heading in ("product", "its error alone", "error of the whole without it"):
                table.add_column(heading, overflow="fold")
            alone = {one.name: one.rel_l2 for one in self.returned.ranking}
            for name, error in self.returned.steps:
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
    folder: ModelFolder, options: QuantizationOptions, assemble: Assemble, log: TrtLog, cache: Path
) -> QuantizedModel:
    """Calibrates as asked, measures the error, and meets --max-error.

    Raises:
        UserError: the data, the model or --max-error will not do.
    """
    settings = options.settings
    data = read_data(folder, options.data, settings.sentences, EVALUATION_SENTENCES)
    encoder = assemble(folder, log, batching="padded").products
    products = in_groups(encoder, settings.groups)
    context = CalibrationContext(folder, encoder, data.calibration, data.path, assemble, log)
    if options.max_error is not None and not data.evaluation:
        raise UserError(
            f"{data.path} has {settings.sentences} sentences and all are calibrated on; --max-error needs others to "
            "measure the error: add some, or lower --calibration-sentences"
        )
    calibration = calibrate_cached(
        folder, data.calibration, settings, cache, lambda: calibrate_best(context, settings, data.mask_id)
    )
    evaluation = Evaluation(folder, data.evaluation, data.mask_id, assemble, log) if data.evaluation else None
    quantization, returned, change = quantization_of(calibration, products), None, None
    if evaluation is not None:
        if options.max_error is not None:
            returned = return_products(evaluation, quantization, products, options.max_error)
            quantization = returned.quantization
        change = evaluation.measure(settings.kind, quantization)
    return QuantizedModel(encoder, calibration, quantization, evaluation, change, returned)
