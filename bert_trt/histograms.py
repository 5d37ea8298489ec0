"""Histograms of absolute values, and the calibration methods that choose a range from them.

amax is the largest absolute value of a tensor. Its range is the absolute value that is mapped to the largest value of
the quantized type: amax, or less, which clips the values beyond. The methods:

    max         amax itself: nothing is clipped, but one outlier makes the steps of all values coarse
    percentile  the value below which 99.99 % of the values lie (--percentile)
    entropy     the value whose int8 distribution diverges least from the true one (TensorRT's retired calibrator)
    mse         the value with the least mean squared error of rounding and clipping
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import torch

from bert_trt.element_types import ELEMENT_TYPES

BINS = 8192
ENTROPY_BINS, ENTROPY_LEVELS = 2048, 128
COUNTED_AT_ONCE = 2**24  # torch.histc counts in fp32, which is exact up to this number
LARGEST_COUNTED = 2.0**114  # torch.histc multiplies values by the number of bins in fp32, which must not overflow


class Histogram:
    """Counts of absolute values in equal bins from 0 to ``limit``.

    ``limit`` is a power of two. It doubles when a value reaches it, and each pair of bins is merged into one. So amax
    need not be known beforehand, and the result does not depend on the order of the data.

    Attributes:
        counts: int64 (BINS,), on the device of the data. A value at the edge of two bins counts in the upper one.
        limit: the upper end of the last bin, greater than every value.
        amax: the largest absolute value, exactly.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64, device=device)
        self.limit = 2.0**-60
        self.amax = 0.0
        self.is_empty = True

    def add(self, magnitudes: torch.Tensor, amax: float) -> None:
        """Counts more values.

        Args:
            magnitudes: absolute values, any shape, less than LARGEST_COUNTED.
            amax: the largest of them.
        """
        self.amax = max(self.amax, amax)
        while self.limit <= amax:
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


def find_range(counts: np.ndarray, limit: float, amax: float, method: str, kind: str, percentile: float) -> float:
    """The range by one of the methods: the absolute value that is mapped to the largest value of the quantized type.

    Args:
        counts: counts of absolute values in equal bins, int64 (bins,).
        limit: the upper end of the last bin.
        amax: the largest absolute value, greater than 0.
        method: one of ``METHODS``.
        kind: ``int8`` or ``fp8``.
        percentile: for the method of that name, in percent.
    """
    if method == "max":
        return amax
    if method == "percentile":
        return float(min(percentile_range(counts, limit, percentile), amax))
    if method == "entropy":
        return min(entropy_range(counts, limit, amax), amax)
    return mse_range(counts, limit, amax, kind)


def percentile_range(counts: np.ndarray, limit: float, percentile: float) -> float:
    """The value below which ``percentile`` percent of the values lie, interpolated linearly inside its bin."""
    # exercise 11 begins
    cumulative = np.cumsum(counts)
    target = percentile / 100 * cumulative[-1]
    bin_index = int(np.searchsorted(cumulative, target))
    below = cumulative[bin_index - 1] if bin_index else 0
    inside = (target - below) / counts[bin_index]
    return (bin_index + inside) * limit / len(counts)
    # exercise 11 ends


def entropy_range(counts: np.ndarray, limit: float, amax: float) -> float:
    """The range with the least Kullback-Leibler divergence between the values and their int8 form.

    For each candidate range, the counts beyond it are added to its last bin, as saturation does, and the bins are
    averaged in 128 groups, the levels of the positive half of int8 (Migacz, "8-bit inference with TensorRT", GTC
    2017).
    """
    used = math.floor(amax / limit * len(counts)) + 1  # the bins up to that of amax
    edges = np.linspace(0, used, ENTROPY_BINS + 1)
    cumulative = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    fine = np.diff(np.interp(edges, np.arange(len(cumulative)), cumulative))  # (ENTROPY_BINS,)
    ends = range(ENTROPY_LEVELS, ENTROPY_BINS + 1)
    best = min(ends, key=lambda end: _divergence(fine, end))
    return best / ENTROPY_BINS * used / len(counts) * limit


def _divergence(fine: np.ndarray, end: int) -> float:
    """KL divergence between the histogram saturated at bin ``end`` and its quantization to ENTROPY_LEVELS levels."""
    inside = fine[:end]
    saturated = inside.copy()
    saturated[-1] += fine[end:].sum()
    starts = np.arange(ENTROPY_LEVELS) * end // ENTROPY_LEVELS
    filled = inside > 0
    totals, num_filled = np.add.reduceat(inside, starts), np.add.reduceat(filled.astype(np.float64), starts)
    level = np.repeat(totals / np.maximum(num_filled, 1), np.diff(np.append(starts, end)))
    quantized = np.where(filled, level, 0)
    p, q = saturated / saturated.sum(), quantized / max(quantized.sum(), 1e-300)
    positive = p > 0
    return float(np.sum(p[positive] * np.log(p[positive] / np.maximum(q[positive], 1e-12))))


def mse_range(counts: np.ndarray, limit: float, amax: float, kind: str) -> float:
    """The range from amax / 16 to amax with the least mean squared error of rounding and clipping."""
    # exercise 11 begins
    filled = np.flatnonzero(counts)
    values = (filled + 0.5) * limit / len(counts)
    weights = counts[filled].astype(np.float64)

    def error(candidate: float) -> float:
        rounded = _round_trip(values, candidate, kind)
        return float(np.sum(weights * (rounded - values) ** 2))

    candidates = amax * np.geomspace(1, 1 / 16, 161)
    return float(min(candidates, key=error))
    # exercise 11 ends


def _round_trip(values: np.ndarray, amax: float, kind: str) -> np.ndarray:
    """Absolute values quantized with the range ``amax`` and dequantized."""
    top = ELEMENT_TYPES[kind].largest
    scaled = np.minimum(values * (top / amax), top)
    rounded = np.rint(scaled) if kind == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return rounded * (amax / top)
