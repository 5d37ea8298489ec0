"""Quantized matrix products: ``QuantizedProducts`` adds Q/DQ and SmoothQuant to the products of any layer set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bert_trt.layers.products import Products
from bert_trt.quantization import Quantization
from bert_trt.tensorrt_product import trt


class QuantizedProducts(Products):
    """Matrix products in int8 or fp8. ``inner`` computes the products that stay in fp16.

    Args:
        inner: computes the products that are not quantized.
        quantization: the products to quantize, their ranges, and SmoothQuant's factors.
    """

    def __init__(self, inner: Products, quantization: Quantization) -> None:
        super().__init__(inner.helper)
        self.inner = inner
        self.quantization = quantization
        self._smoothed: dict[str, trt.ITensor] = {}  # by the name of the tensor before smoothing

    def linear(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray | None, name: str, modules: Sequence[str] = ()
    ) -> trt.ITensor:
        """As ``Products.linear``. The weight has a scale for each output channel, x has one scale."""
        x, weight = self.smooth(x, weight)
        if not self.is_quantized(*(modules or (name,))):
            return self.inner.linear(x, weight, bias, name)
        self.num_quantized += 1
        return self.helper.addLinear(self._quantize(x), weight, bias, name, self.quantization.dtype)

    def linear_activation(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray, name: str, activation: str, activation_name: str
    ) -> trt.ITensor:
        """As ``Products.linear_activation``."""
        if self.is_quantized(name):
            return super().linear_activation(x, weight, bias, name, activation, activation_name)
        x, weight = self.smooth(x, weight)
        return self.inner.linear_activation(x, weight, bias, name, activation, activation_name)

    def matmul(self, a: trt.ITensor, b: trt.ITensor, name: str, transpose_b: bool = False) -> trt.ITensor:
        """As ``Products.matmul``."""
        if not self.is_quantized(name):
            return self.inner.matmul(a, b, name, transpose_b)
        self.num_quantized += 1
        return self.helper.addMatMul(self._quantize(a), self._quantize(b), name, transpose_b=transpose_b)

    def is_quantized(self, *modules: str) -> bool:
        """Whether all these products run in int8 or fp8."""
        return self.quantization.includes(*modules)

    def smooth(self, x: trt.ITensor, weight: np.ndarray) -> tuple[trt.ITensor, np.ndarray]:
        """Returns x / s and weight · s where x is smoothed (SmoothQuant, arXiv:2211.10438), else both unchanged.

        Args:
            x: (..., H); the layer that divides it is added once, however many products read x.
            weight: (out, H).
        """
        s = self.quantization.smoothing.get(x.name)  # (H,)
        if s is None:
            return x, weight
        if x.name not in self._smoothed:
            self._smoothed[x.name] = self.helper.addChannelScale(x, 1 / s, f"{x.name}.smoothed")
        return self._smoothed[x.name], weight * s

    def _quantize(self, x: trt.ITensor) -> trt.ITensor:
        return self.helper.addQuantizedRange(x, self.quantization.ranges[x.name], self.quantization.dtype)
