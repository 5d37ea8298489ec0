"""Calibration: runs the fp32 network over sentences and finds the range of every tensor that will be quantized.

``BertCalibrator`` collects histograms, ``calibrate`` chooses the ranges from them (bert_trt/histograms.py), and
``calibrate_best`` also searches SmoothQuant's alpha.

The fp32 network runs over the sentences twice, however many values of alpha are tried. The first run gives the
histograms of the tensors as they are and amax of each channel, from which SmoothQuant's factors follow. The second
run gives the histograms of the tensors divided by the factors of every alpha, computed from the plain tensors.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from bert_trt.calibration_data import batch_inputs, batches, num_tokens, real_tokens, spread
from bert_trt.console import UserError, log_console, remaining_time
from bert_trt.evaluation import Evaluation
from bert_trt.histograms import LARGEST_COUNTED, Histogram, find_range
from bert_trt.model_files import ModelFolder
from bert_trt.network import Assemble
from bert_trt.network_runner import NetworkRunner, best_device
from bert_trt.options import LINEAR_GROUPS, CalibrationSettings
from bert_trt.quantization import Product, Quantization, in_groups, range_name, smoothing_factors
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog

CHOICE_SENTENCES = 32  # how many sentences the values of alpha are compared on
ALPHAS = (None, 0.5, 0.7, 0.85)  # SmoothQuant's alpha; None: no smoothing


class BertCalibrator:
    """Runs a network over sentences and keeps histograms of the tensors that will be quantized.

    Args:
        runner: runs an fp32 network for padded batches; its outputs are the tensors to observe.
        smoothings: SmoothQuant's factors s by tensor, float32 (H,); several of them are observed in the same run. A
            tensor without factors is observed as it is.

    Attributes:
        histograms: for each of ``smoothings``, the histogram of each tensor, divided by its s, by ``range_name``.
        channel_amax: by tensor, the largest absolute value of each channel of the last axis, float32 (H,).
    """

    def __init__(self, runner: NetworkRunner, smoothings: Sequence[Mapping[str, np.ndarray]] = ({},)) -> None:
        self.runner = runner
        self.histograms = [
            {range_name(name, smoothing): Histogram(runner.device) for name in runner.output_names}
            for smoothing in smoothings
        ]
        self.channel_amax: dict[str, torch.Tensor] = {}
        self._reciprocals = [
            {name: torch.from_numpy(1 / s).to(runner.device) for name, s in smoothing.items()}
            for smoothing in smoothings
        ]

    def run(
        self,
        sentences: Sequence[Sentence],
        source: Path,
        advance: Callable[[int], None] | None = None,
        same_length: bool = False,
    ) -> None:
        """Runs the network over the sentences, each once.

        Args:
            sentences: the sentences.
            source: the file that they are from, for messages.
            advance: is told the number of tokens of each batch that was run.
            same_length: no padding, which attention's own tensors need: their axes are not those of a batch (B, S).

        Raises:
            UserError: a tensor has a value that is not finite, or is zero throughout.
        """
        for batch in batches(sentences, same_length):
            self.add(self.runner.run(batch_inputs(batch)), batch, source)
            if advance is not None:
                advance(num_tokens(batch))
        for name, histogram in self.histograms[0].items():
            if histogram.amax == 0:
                raise UserError(
                    f"tensor {name!r} is zero in all {len(sentences)} sentences, from {source}, line "
                    f"{sentences[0].line} on: it has no range; leave its group out (--quantize), or check the model"
                )

    def add(self, tensors: Mapping[str, torch.Tensor], batch: Sequence[Sentence], source: Path) -> None:
        """Counts the tensors of one batch, each (B, S, H), without the padding; or (B, ...) if there is none."""
        mask = real_tokens(batch)
        is_real = None if mask.all() else torch.from_numpy(mask.astype(bool)).to(self.runner.device)
        for name, tensor in tensors.items():
            magnitudes = (tensor if is_real is None else tensor[is_real]).abs()  # padding removed: (T, H)
            channels = magnitudes.flatten(0, -2).amax(0)
            amax = float(channels.max())
            if not amax < LARGEST_COUNTED:  # NaN is not less
                lengths = [len(sentence.ids) for sentence in batch]
                parts = magnitudes if is_real is None else magnitudes.split(lengths)
                raise _bad_value(name, [float(part.max()) for part in parts], batch, source)
            for histograms, reciprocals in zip(self.histograms, self._reciprocals, strict=True):
                if name in reciprocals:
                    smoothed = magnitudes * reciprocals[name]
                    histograms[f"{name}.smoothed"].add(smoothed, float((channels * reciprocals[name]).max()))
                else:
                    histograms[name].add(magnitudes, amax)
            before = self.channel_amax.get(name, channels)
            if before.shape == channels.shape:  # attention probabilities have no channels: their last axis is S
                self.channel_amax[name] = torch.maximum(before, channels)


def _bad_value(name: str, amax: Sequence[float], batch: Sequence[Sentence], source: Path) -> UserError:
    """The error for a tensor with a value that is not finite or too large; ``amax`` is that of each sentence."""
    bad = next(index for index, value in enumerate(amax) if not value < LARGEST_COUNTED)
    return UserError(
        f"tensor {name!r} has the value {amax[bad]:.4g} in the sentence of {source}, line {batch[bad].line}; "
        f"expected finite values, less than {LARGEST_COUNTED:.0e}: the model is damaged or computes beyond fp32"
    )


def tensors_of(products: Iterable[Product]) -> list[str]:
    """Names of the tensors that these products read, each once."""
    return list(dict.fromkeys(tensor for product in products for tensor in product.activations))


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        settings: the settings.
        ranges: the range of each tensor, by ``quantization.range_name``.
        amax: the largest absolute value of each tensor, by the same name.
        smoothing: by tensor, SmoothQuant's factors s of its channels, float32 (H,).
        seconds: the time that it took; 0 if it comes from the cache.
        histograms: by tensor; empty if it comes from the cache.
    """

    settings: CalibrationSettings
    ranges: dict[str, float]
    amax: dict[str, float]
    smoothing: dict[str, np.ndarray]
    seconds: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationContext:
    """A model with everything that its calibration needs.

    Attributes:
        folder: the model.
        encoder: all products of the encoder, in the order of computation.
        sentences: the sentences to calibrate on.
        source: the file that they are from, for messages.
        assemble: ``builder.assemble``, passed in because no library imports a script.
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
        """The products that the settings select."""
        return in_groups(self.encoder, settings.groups)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the sentences."""
        return num_tokens(self.sentences)

    def observe(
        self,
        settings: CalibrationSettings,
        smoothings: Sequence[Mapping[str, np.ndarray]] = ({},),
        advance: Callable[[int], None] | None = None,
    ) -> BertCalibrator:
        """Runs the fp32 network over the sentences; observes the tensors divided by the factors of each smoothing.

        With factors, only the tensors that have some are observed.
        """
        network = self.assemble(self.folder, self.log, "fp32", batching="padded")
        tensors = [name for name in tensors_of(self.products(settings)) if not smoothings[0] or name in smoothings[0]]
        runner = NetworkRunner(network.network, self.device, tensors, network.contents)
        calibrator = BertCalibrator(runner, smoothings)
        calibrator.run(self.sentences, self.source, advance, same_length="attention" in settings.groups)
        return calibrator

    def smoothing(self, settings: CalibrationSettings, plain: BertCalibrator, alpha: float) -> dict[str, np.ndarray]:
        """SmoothQuant's factors for one alpha, from what ``plain`` observed without smoothing."""
        channel_amax = {name: values.cpu().numpy() for name, values in plain.channel_amax.items()}
        products = in_groups(self.products(settings), LINEAR_GROUPS)
        return smoothing_factors(products, self.folder.weights(), channel_amax, alpha)

    def histograms(
        self,
        settings: CalibrationSettings,
        smoothings: Sequence[Mapping[str, np.ndarray]],
        plain: BertCalibrator,
        advance: Callable[[int], None] | None = None,
    ) -> list[dict[str, Histogram]]:
        """The histograms of the tensors that are quantized under each smoothing, from a single run for all of them.

        Args:
            settings: the settings.
            smoothings: SmoothQuant's factors for several values of alpha, all of the same tensors.
            plain: what was observed without smoothing; the tensors that are not smoothed are taken from it.
            advance: as for ``BertCalibrator.run``.
        """
        if not smoothings or not smoothings[0]:  # without a linear layer there is nothing to smooth
            return [plain.histograms[0] for _ in smoothings]
        smoothed = self.observe(settings, smoothings, advance)
        return [
            {
                range_name(name, smoothing): histograms.get(range_name(name, smoothing), histogram)
                for name, histogram in plain.histograms[0].items()
            }
            for smoothing, histograms in zip(smoothings, smoothed.histograms, strict=True)
        ]


def calibrate(context: CalibrationContext, settings: CalibrationSettings) -> Calibration:
    """Finds the range of every tensor that the products of ``settings.groups`` read.

    Raises:
        UserError: a tensor has no range; the message names it.
    """
    start = time.perf_counter()
    is_smoothed = isinstance(settings.smoothing, float)
    with remaining_time("calibrating", context.num_tokens * (2 if is_smoothed else 1)) as advance:
        plain = context.observe(settings, advance=advance)
        histograms, smoothing = plain.histograms[0], {}
        if isinstance(settings.smoothing, float):
            smoothing = context.smoothing(settings, plain, settings.smoothing)
            (histograms,) = context.histograms(settings, [smoothing], plain, advance)
    return choose_ranges(histograms, settings, smoothing, start)


def choose_ranges(
    histograms: dict[str, Histogram], settings: CalibrationSettings, smoothing: dict[str, np.ndarray], start: float
) -> Calibration:
    """Chooses the ranges by the settings' method; ``start`` is the begin of the work, by ``time.perf_counter``."""
    ranges = ranges_of(histograms, settings)
    amax = {name: histogram.amax for name, histogram in histograms.items()}
    return Calibration(settings, ranges, amax, smoothing, time.perf_counter() - start, histograms)


def ranges_of(histograms: Mapping[str, Histogram], settings: CalibrationSettings) -> dict[str, float]:
    """The range of each tensor by the settings' method."""
    return {
        name: find_range(
            histogram.on_cpu(),
            histogram.limit,
            histogram.amax,
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
    """Calibrates. With smoothing ``auto`` it tries several values of SmoothQuant's alpha and takes the best one.

    The best alpha has the least error on the calibration's own sentences; the final error is measured on others.
    Only inputs of linear layers can be smoothed: without a linear layer among the groups, alpha is not searched.
    """
    if settings.smoothing != "auto" or not settings.can_smooth:
        return calibrate(context, settings)
    start, products = time.perf_counter(), context.products(settings)
    count = len(context.sentences)
    sentences = [context.sentences[index] for index in spread(count, min(CHOICE_SENTENCES, count))]
    work = 2 * context.num_tokens + (1 + len(ALPHAS)) * num_tokens(sentences)  # tokens that networks run over
    with remaining_time("calibrating", work) as advance:
        plain = context.observe(settings, advance=advance)
        smoothings = [context.smoothing(settings, plain, alpha) for alpha in ALPHAS if alpha is not None]
        smoothed = iter(context.histograms(settings, smoothings, plain, advance))
        factors = iter(smoothings)
        fused = functools.partial(context.assemble, fusion=settings.fusion)
        evaluation = Evaluation(context.folder, sentences, mask_id, fused, context.log, context.device, advance)
        candidates: dict[float | None, tuple[float, Calibration]] = {}
        for alpha in ALPHAS:
            histograms, smoothing = (plain.histograms[0], {}) if alpha is None else (next(smoothed), next(factors))
            calibration = choose_ranges(histograms, settings, smoothing, start)
            change = evaluation.measure(settings.kind, quantization_of(calibration, products), advance)
            candidates[alpha] = change.rel_l2, calibration
    errors = ", ".join(f"{alpha or 'off'} {error:.2e}" for alpha, (error, _) in candidates.items())
    log_console.print(f"smoothing: relative L2 error by alpha: {errors}", soft_wrap=True)
    _, best = min(candidates.values(), key=lambda pair: pair[0])
    return replace(best, seconds=time.perf_counter() - start)
