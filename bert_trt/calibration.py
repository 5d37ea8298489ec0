"""Finds the range of every tensor that will be quantized: the fp32 network runs over sentences."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from bert_trt.calibration_data import batch_inputs, batches, spread
from bert_trt.console import UserError, log_console
from bert_trt.evaluation import Assemble, Evaluation, best_device
from bert_trt.histograms import LARGEST_COUNTED, Histogram, find_range
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import CalibrationSettings, has_linear
from bert_trt.quantization import Product, Quantization, in_groups, range_name, smoothing_factors
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog

CHOICE_SENTENCES = 32  # on which the values of alpha are compared
ALPHAS = (None, 0.5, 0.7, 0.85)  # of SmoothQuant; None: no smoothing


class BertCalibrator:
    """Runs a network over sentences and keeps a histogram of each tensor that will be quantized.

    Args:
        runner: of an fp32 network for padded batches; its outputs are the tensors to look at.

    Attributes:
        histograms: by tensor.
        channel_maxima: by tensor, the largest absolute value of each element of the last axis, float32 (H,).
    """

    def __init__(self, runner: NetworkRunner) -> None:
        self.runner = runner
        self.histograms = {name: Histogram(runner.device) for name in runner.output_names}
        self.channel_maxima: dict[str, torch.Tensor] = {}

    def run(self, sentences: Sequence[Sentence], source: Path) -> None:
        """Runs over the sentences, each once.

        Args:
            sentences: to run.
            source: the file that they are from, for messages.

        Raises:
            UserError: a tensor has a value that is not finite, or is zero throughout.
        """
        for batch in track(batches(sentences), "calibrating", console=log_console, transient=True):
            self.add(self.runner.run(batch_inputs(batch)), batch, source)
        for name, histogram in self.histograms.items():
            if histogram.largest == 0:
                raise UserError(
                    f"tensor {name!r} is zero in all {len(sentences)} sentences, from {source}, line "
                    f"{sentences[0].line} on: it has no range; leave its group out (--quantize), or check the model"
                )

    def add(self, tensors: Mapping[str, torch.Tensor], batch: Sequence[Sentence], source: Path) -> None:
        """Counts the tensors of one batch, each (B, ...)."""
        magnitudes = {name: tensor.abs() for name, tensor in tensors.items()}
        maxima = torch.stack([tensor.flatten(1).amax(1) for tensor in magnitudes.values()]).cpu()  # (tensors, B)
        for name, of_sentences in zip(magnitudes, maxima, strict=True):
            bad = (~(of_sentences < LARGEST_COUNTED)).nonzero().flatten().tolist()  # NaN is not less
            if bad:
                raise UserError(
                    f"tensor {name!r} has the value {of_sentences[bad[0]]:.4g} in the sentence of {source}, line "
                    f"{batch[bad[0]].line}; expected finite values, less than {LARGEST_COUNTED:.0e}: the model is "
                    "damaged or computes beyond fp32"
                )
            self.histograms[name].add(magnitudes[name], float(of_sentences.max()))
            channels = magnitudes[name].flatten(0, -2).amax(0)
            before = self.channel_maxima.get(name, channels)
            if before.shape == channels.shape:  # probabilities have no channels, but as many columns as words
                self.channel_maxima[name] = torch.maximum(before, channels)


def tensors_of(products: Iterable[Product], smoothing: Mapping[str, np.ndarray]) -> list[str]:
    """Names of all tensors that these products multiply, after smoothing, each once."""
    names = (range_name(tensor, smoothing) for product in products for tensor in product.activations)
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Calibration:
    """Ranges, and how they were found.

    Attributes:
        settings: the settings.
        ranges: by tensor (``quantization.range_name``).
        maxima: by tensor, the largest absolute value seen.
        smoothing: by tensor, the divisors of its channels, float32 (H,).
        seconds: what it took; 0 if it comes from the cache.
        histograms: by tensor; empty if it comes from the cache.
    """

    settings: CalibrationSettings
    ranges: dict[str, float]
    maxima: dict[str, float]
    smoothing: dict[str, np.ndarray]
    seconds: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationContext:
    """What is calibrated, and what it takes.

    Attributes:
        folder: the model.
        encoder: all products of the encoder, in the order of computation.
        sentences: to run over.
        source: the file that they are from, for messages.
        assemble: ``builder.assemble``; a parameter, since builder.py comes after this file.
        log: for TensorRT's messages.
        device: "cpu" or "cuda".
    """

    folder: ModelFolder
    encoder: Sequence[Product]
    sentences: Sequence[Sentence]
    source: Path
    assemble: Assemble
    log: TrtLog
    device: str = field(default_factory=best_device)

    def products(self, settings: CalibrationSettings) -> list[Product]:
        """The products that the settings want quantized."""
        return in_groups(self.encoder, settings.groups)

    def observe(self, settings: CalibrationSettings, smoothing: Mapping[str, np.ndarray]) -> BertCalibrator:
        """Runs the fp32 network over the sentences; ``smoothing`` is part of it."""
        smoothed = Quantization(settings.kind, smoothing=smoothing)  # no product is quantized
        made = self.assemble(self.folder, self.log, "fp32", batching="padded", quantization=smoothed)
        tensors = tensors_of(self.products(settings), smoothing)
        calibrator = BertCalibrator(NetworkRunner(made.network, self.device, tensors, made.contents))
        calibrator.run(self.sentences, self.source)
        return calibrator

    def smoothing(self, settings: CalibrationSettings, plain: BertCalibrator, alpha: float) -> dict[str, np.ndarray]:
        """The divisors for one alpha, from what was observed without smoothing."""
        maxima = {name: values.cpu().numpy() for name, values in plain.channel_maxima.items()}
        return smoothing_factors(self.products(settings), self.folder.weights(), maxima, alpha)


def calibrate(context: CalibrationContext, settings: CalibrationSettings) -> Calibration:
    """Finds the range of every tensor that the products of ``settings.groups`` multiply.

    Raises:
        UserError: a tensor has no range; the message names it.
    """
    start = time.perf_counter()
    observed, smoothing = context.observe(settings, {}), {}
    if isinstance(settings.smoothing, float):
        smoothing = context.smoothing(settings, observed, settings.smoothing)
        observed = context.observe(settings, smoothing)  # what is quantized now are other tensors
    return choose_ranges(observed, settings, smoothing, start)


def choose_ranges(
    observed: BertCalibrator, settings: CalibrationSettings, smoothing: dict[str, np.ndarray], start: float
) -> Calibration:
    """Ranges by the settings' method; ``start`` is when the work began, by ``time.perf_counter``."""
    ranges = ranges_of(observed.histograms, settings)
    maxima = {name: histogram.largest for name, histogram in observed.histograms.items()}
    return Calibration(settings, ranges, maxima, smoothing, time.perf_counter() - start, observed.histograms)


def ranges_of(histograms: Mapping[str, Histogram], settings: CalibrationSettings) -> dict[str, float]:
    """The range of each tensor by the settings' method."""
    return {
        name: find_range(
            histogram.on_cpu(),
            histogram.limit,
            histogram.largest,
            settings.method,
            settings.kind,
            settings.percentile,
        )
        for name, histogram in histograms.items()
    }


def quantization_of(calibration: Calibration, products: Sequence[Product]) -> Quantization:
    """These products quantized with the calibration's ranges."""
    names = frozenset(product.name for product in products)
    return Quantization(calibration.settings.kind, names, calibration.ranges, calibration.smoothing)


def calibrate_best(context: CalibrationContext, settings: CalibrationSettings, mask_id: int | None) -> Calibration:
    """Calibrates; with ``auto``, with several values of SmoothQuant's alpha, and takes the one of the least error.

    The error is measured on the calibration's own sentences: others are for the final measurement. Where no linear
    layer is quantized nothing can be smoothed, and it calibrates once.
    """
    if settings.smoothing != "auto" or not has_linear(settings.groups):
        return calibrate(context, settings)
    start, products = time.perf_counter(), context.products(settings)
    plain = context.observe(settings, {})
    count = len(context.sentences)
    some = [context.sentences[place] for place in spread(count, min(CHOICE_SENTENCES, count))]
    evaluation = Evaluation(context.folder, some, mask_id, context.assemble, context.log, context.device)
    found: dict[float | None, tuple[float, Calibration]] = {}
    for alpha in ALPHAS:
        smoothing = context.smoothing(settings, plain, alpha) if alpha else {}
        observed = context.observe(settings, smoothing) if alpha else plain
        made = choose_ranges(observed, settings, smoothing, start)
        found[alpha] = evaluation.measure(settings.kind, quantization_of(made, products)).rel_l2, made
    told = ", ".join(f"{alpha or 'off'} {error:.2e}" for alpha, (error, _) in found.items())
    log_console.print(f"smoothing: relative L2 error by strength: {told}", soft_wrap=True)
    _, best = min(found.values(), key=lambda pair: pair[0])
    return replace(best, seconds=time.perf_counter() - start)
