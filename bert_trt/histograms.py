"""Histograms of absolute values, and the ranges that methods of calibration choose from them.

A range is the absolute value that becomes the quantized type's largest one (amax, clipped):

    max         the largest value: nothing is clipped, but one outlier makes all steps coarse
    percentile  the value below which 99.99 % lie (--percentile)
    entropy     the one whose int8 distribution diverges least from the true one (TensorRT's old calibrator)
    mse         the one with the least mean squared error of rounding and clipping
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import torch

from bert_trt.element_types import ELEMENT_TYPES

BINS = 8192
ENTROPY_BINS, ENTROPY_LEVELS = 2048, 128
COUNTED_AT_ONCE = 2**24  # torch.histc counts in fp32, exact up to here
LARGEST_COUNTED = 2.0**114  # torch.histc multiplies by the number of bins, in fp32


class Histogram:
    """Counts of absolute values in equal bins from 0 to ``limit``.

    ``limit`` is a power of two and doubles, pairs of bins becoming one, when a value reaches it: nothing has to be
    known beforehand, and the result does not depend on the order of the data.

    Attributes:
        counts: int64 (BINS,), on the device of the data. A value at the edge of two bins is in the upper one.
        limit: upper end of the last bin, greater than every value.
        largest: the largest absolute value, exactly.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64, device=device)
        self.limit = 2.0**-60
        self.largest = 0.0
        self.is_empty = True

    def add(self, magnitudes: torch.Tensor, largest: float) -> None:
        """Counts more values.

        Args:
            magnitudes: absolute values, any shape, less than LARGEST_COUNTED.
            largest: the largest of them.
        """
        self.largest = max(self.largest, largest)
        while self.limit <= largest:
            if not self.is_empty:
                merged = self.counts.view(-1, 2).sum(1)
                self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.limit *= 2
        for part in magnitudes.float().flatten().split(COUNTED_AT_ONCE):
            self.counts += torch.histc(part, BINS, 0, self.limit).to(torch.int64)
        self.is_empty = False

    def on_cpu(self) -> np.ndarray:
        """The counts as an array, int64 (BINS,)."""
        return self.counts.cpu().numpy()


def find_range(counts: np.ndarray, limit: float, largest: float, method: str, kind: str, percentile: float) -> float:
    """The absolute value that becomes the quantized type's largest one.

    Args:
        counts: of absolute values in equal bins, int64 (bins,).
        limit: upper end of the last bin.
        largest: the largest value, greater than 0.
        method: one of ``METHODS``.
        kind: ``int8`` or ``fp8``.
        percentile: for the method of that name, in percent.
    """
    if method == "max":
        return largest
    if method == "percentile":
        return float(min(percentile_range(counts, limit, percentile), largest))
    if method == "entropy":
        return min(entropy_range(counts, limit, largest), largest)
    return mse_range(counts, limit, largest, kind)


def percentile_range(counts: np.ndarray, limit: float, percentile: float) -> float:
    """The value below which ``percentile`` percent lie, linear inside a bin."""
    reached = np.cumsum(counts)
    wanted = percentile / 100 * reached[-1]
    bin_index = int(np.searchsorted(reached, wanted))
    below = reached[bin_index - 1] if bin_index else 0
    inside = (wanted - below) / counts[bin_index]
    return (bin_index + inside) * limit / len(counts)


def entropy_range(counts: np.ndarray, limit: float, largest: float) -> float:
    """The range with the least Kullback-Leibler divergence between the values and their int8 form.

    For each candidate, what lies beyond it is added to its last bin (as saturation does), and the bins are averaged
    in 128 groups, the positive half of int8. (Migacz, "8-bit inference with TensorRT", GTC 2017.)
    """
    used = math.floor(largest / limit * len(counts)) + 1  # up to the bin of the largest value
    edges = np.linspace(0, used, ENTROPY_BINS + 1)
    reached = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    fine = np.diff(np.interp(edges, np.arange(len(reached)), reached))  # (ENTROPY_BINS,)
    ends = range(ENTROPY_LEVELS, ENTROPY_BINS + 1)
    best = min(ends, key=lambda end: _divergence(fine, end))
    return best / ENTROPY_BINS * used / len(counts) * limit


def _divergence(fine: np.ndarray, end: int) -> float:
    """KL divergence between the histogram saturated at bin ``end`` and its form in ENTROPY_LEVELS levels."""
    inside = fine[:end]
    saturated = inside.copy()
    saturated[-1] += fine[end:].sum()
    starts = np.arange(ENTROPY_LEVELS) * end // ENTROPY_LEVELS
    filled = inside > 0
    totals, places = np.add.reduceat(inside, starts), np.add.reduceat(filled.astype(np.float64), starts)
    level = np.repeat(totals / np.maximum(places, 1), np.diff(np.append(starts, end)))
    quantized = np.where(filled, level, 0)
    p, q = saturated / saturated.sum(), quantized / max(quantized.sum(), 1e-300)
    known = p > 0
    return float(np.sum(p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))))


def mse_range(counts: np.ndarray, limit: float, largest: float, kind: str) -> float:
    """The range, from largest/16 to largest, with the least mean squared error of rounding and cutting off."""
    filled = np.flatnonzero(counts)
    values = (filled + 0.5) * limit / len(counts)
    weights = counts[filled].astype(np.float64)

    def error(candidate: float) -> float:
        rounded = _round_trip(values, candidate, kind)
        return float(np.sum(weights * (rounded - values) ** 2))

    candidates = largest * np.geomspace(1, 1 / 16, 161)
    return float(min(candidates, key=error))


def _round_trip(values: np.ndarray, largest: float, kind: str) -> np.ndarray:
    """Values quantized and dequantized."""
    top = ELEMENT_TYPES[kind].largest
    scaled = np.minimum(values * (top / largest), top)
    rounded = np.rint(scaled) if kind == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return rounded * (largest / top)
