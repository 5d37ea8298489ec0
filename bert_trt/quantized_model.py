"""Quantizes a model as the options say: ``quantize`` calibrates, measures the error on other sentences, and returns
products to fp16 until --max-error is met.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from bert_trt.calibration import Calibration, CalibrationContext, calibrate_best, quantization_of
from bert_trt.calibration_cache import calibrate_cached
from bert_trt.calibration_data import num_tokens, read_data
from bert_trt.console import UserError, console, log_console, remaining_time
from bert_trt.evaluation import Evaluation, OutputChange
from bert_trt.model_files import ModelFolder
from bert_trt.network import Assemble
from bert_trt.options import QuantizationOptions
from bert_trt.quantization import BASE_PRECISION, Product, Quantization, in_groups, kernels_of
from bert_trt.tensorrt_log import TrtLog

EVALUATION_SENTENCES = 64


@dataclass(frozen=True)
class Sensitivity:
    """The relative L2 error of the network in which only one product, ``name``, is quantized; with 8-bit plugins also
    only the merged product of Q, K and V."""

    name: str
    group: str
    rel_l2: float


def rank_products(
    evaluation: Evaluation, quantization: Quantization, kernels: Mapping[str, Sequence[Product]]
) -> list[Sensitivity]:
    """Quantizes each product alone and returns their errors, the largest first.

    Args:
        evaluation: measures the errors.
        quantization: the quantization.
        kernels: the products, by ``quantization.kernels_of``: those of one kernel are quantized together.
    """
    ranking = []
    for name, products in track(kernels.items(), "one product at a time", console=log_console, transient=True):
        alone = quantization.only(*(product.name for product in products))
        ranking.append(Sensitivity(name, products[0].group, evaluation.measure(quantization.kind, alone).rel_l2))
    return sorted(ranking, key=lambda sensitivity: -sensitivity.rel_l2)


@dataclass(frozen=True)
class ReturnedProducts:
    """The products that ``return_products`` returned to fp16.

    Attributes:
        quantization: the quantization without these products.
        steps: each product, the most sensitive first, and the relative L2 error after it was returned.
        ranking: the sensitivity of all products; empty if none had to be returned.
    """

    quantization: Quantization
    steps: list[tuple[str, float]]
    ranking: list[Sensitivity]


def return_products(
    evaluation: Evaluation,
    quantization: Quantization,
    kernels: Mapping[str, Sequence[Product]],
    max_error: float,
) -> ReturnedProducts:
    """Returns the most sensitive products to fp16, one by one, until the error is at most ``max_error``.

    Raises:
        UserError: the error is larger even without any quantized product; the message states that error.
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
    ranking = rank_products(evaluation, quantization, kernels)
    steps = []
    for sensitivity in track(ranking, "returning products to fp16", console=log_console, transient=True):
        quantization = quantization.without(*(product.name for product in kernels[sensitivity.name]))
        error = evaluation.measure(quantization.kind, quantization).rel_l2
        steps.append((sensitivity.name, error))
        if error <= max_error:
            break
    return ReturnedProducts(quantization, steps, ranking)


@dataclass(frozen=True)
class QuantizedModel:
    """A model's quantization and its error.

    Attributes:
        products: all products of the encoder, in the order of computation.
        kernels: the products that can be quantized, by ``quantization.kernels_of``.
        calibration: the ranges.
        quantization: the final quantization, without the products that --max-error returned to fp16.
        evaluation: compares networks on sentences that were not used for calibration; None if there are none.
        change: the outputs against fp32 on these sentences; None if there are none.
        returned: the products that --max-error returned to fp16; None without --max-error.
    """

    products: list[Product]
    kernels: dict[str, list[Product]]
    calibration: Calibration
    quantization: Quantization
    evaluation: Evaluation | None
    change: OutputChange | None
    returned: ReturnedProducts | None

    def as_dict(self) -> dict[str, Any]:
        """The object that --json writes."""
        return {
            "settings": asdict(self.calibration.settings),
            "quantized_products": sorted(self.quantization.products),
            "change": asdict(self.change) if self.change else None,
            "returned_to_fp16": self.returned.steps if self.returned else [],
        }

    def print_change(self) -> None:
        """Prints the error that quantization causes, and the products that were returned to fp16."""
        kind, change = self.quantization.kind, self.change
        if self.returned is not None and self.returned.steps:
            table = Table(title="Returned to fp16, the worst first", title_justify="left")
            for heading in ("product", "its error alone", "error of the whole without it"):
                table.add_column(heading, overflow="fold")
            alone = {sensitivity.name: sensitivity.rel_l2 for sensitivity in self.returned.ranking}
            for name, error in self.returned.steps:
                table.add_row(name, f"{alone[name]:.2e}", f"{error:.2e}")
            console.print(table)
        if change is None:
            console.print("No sentence was left over to measure the error on.")
            return
        predictions = ""
        if change.first_word_same is not None:
            predictions = (
                f"; the first word for [MASK] is the same in {change.first_word_same:.1%}, "
                f"{change.ten_best_same:.1f} of the ten best are"
            )
        console.print(
            f"{kind} against fp32 on {change.sentences} sentences not used for calibration: relative L2 error "
            f"{change.rel_l2:.2e}, mean cosine similarity {change.cosine:.5f}{predictions}.",
            markup=False,
            soft_wrap=True,
        )


def quantize(
    folder: ModelFolder,
    options: QuantizationOptions,
    assemble: Assemble,
    log: TrtLog,
    cache: Path,
    fusion: str = "none",
) -> QuantizedModel:
    """Calibrates a model, measures the error, and returns products to fp16 until --max-error is met.

    Args:
        folder: the model.
        options: calibration settings, data and --max-error.
        assemble: ``builder.assemble``.
        log: for TensorRT's messages.
        cache: the file of the calibration cache.
        fusion: the fusion of the network whose error is measured: none, or all for 8-bit plugins.

    Raises:
        UserError: the data has too few sentences, a tensor has no range, or --max-error cannot be met.
    """
    settings = replace(options.settings, fusion=fusion)
    data = read_data(folder, options.data, settings.sentences, EVALUATION_SENTENCES)
    encoder = assemble(folder, log, batching="padded").products
    products = in_groups(encoder, settings.groups)
    kernels = kernels_of(products, fusion)
    context = CalibrationContext(folder, encoder, data.calibration, data.path, assemble, log)
    if options.max_error is not None and not data.evaluation:
        raise UserError(
            f"{data.path} has {settings.sentences} sentences and all are calibrated on; --max-error needs others to "
            "measure the error: add some, or lower --calibration-sentences"
        )
    calibration = calibrate_cached(
        folder, data.calibration, settings, cache, lambda: calibrate_best(context, settings, data.mask_id)
    )
    quantization, evaluation, returned, change = quantization_of(calibration, products), None, None, None
    if data.evaluation:
        with remaining_time("fp32, to measure the error", num_tokens(data.evaluation)) as advance:
            fused = functools.partial(assemble, fusion=fusion)
            evaluation = Evaluation(folder, data.evaluation, data.mask_id, fused, log, advance=advance)
        if options.max_error is not None:
            returned = return_products(evaluation, quantization, kernels, options.max_error)
            quantization = returned.quantization
        with remaining_time(f"{settings.kind}, to measure the error", evaluation.num_tokens) as advance:
            change = evaluation.measure(settings.kind, quantization, advance)
    return QuantizedModel(encoder, kernels, calibration, quantization, evaluation, change, returned)
