"""The encoder's matrix products: ``Products`` by TensorRT's layers, ``LinearPluginProducts`` by the Linear plugin.

A layer set calls one of these classes for every product of the encoder. ``QuantizedProducts`` of quantized.py wraps
either of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_trt.quantization import Product
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper

GROUP_OF_SUFFIX = {  # the end of a product's name -> its group for ``--quantize``
    ".attention.self.query": "qkv",
    ".attention.self.key": "qkv",
    ".attention.self.value": "qkv",
    ".attention.self.scores": "attention",
    ".attention.self.context": "attention",
    ".attention.output.dense": "attention-output",
    ".intermediate.dense": "intermediate",
    ".output.dense": "output",  # comes after ".attention.output.dense", which ends in it
}


class Products:
    """Matrix products by TensorRT's own layers.

    Attributes:
        helper: adds the layers.
        added: the products that were added so far, in the order of computation.
        num_quantized: number of products so far whose operands are quantized.
    """

    def __init__(self, helper: TrtNetworkHelper) -> None:
        self.helper = helper
        self.added: list[Product] = []
        self.num_quantized = 0

    def linear(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray | None, name: str, modules: Sequence[str] = ()
    ) -> trt.ITensor:
        """x @ weightᵀ + bias: (..., in) -> (..., out).

        Args:
            x: (..., in).
            weight: (out, in).
            bias: (out,); None where a fused layer adds it.
            name: the layer's name.
            modules: names of the model's modules whose weights are concatenated; default: the module ``name``.
        """
        self.record(name, (x,), weight.shape)
        return self.helper.addLinear(x, weight, bias, name)

    def linear_activation(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray, name: str, activation: str, activation_name: str
    ) -> trt.ITensor:
        """activation(x @ weightᵀ + bias): (..., in) -> (..., out); ``activation`` as for ``addActivation``."""
        return self.helper.addActivation(self.linear(x, weight, bias, name), activation_name, activation)

    def linear_add_norm(
        self,
        x: trt.ITensor,
        residual: trt.ITensor,
        linear_weights: tuple[np.ndarray, np.ndarray],
        norm_weights: tuple[np.ndarray, np.ndarray],
        epsilon: float,
        name: str,
        **outputs: Any,
    ) -> tuple[trt.ITensor, ...]:
        """LN(x @ weightᵀ + bias + residual): (..., in) and (..., out) -> the outputs of a plugin, each (..., out).

        The SkipLayerNorm plugin adds the bias.

        Args:
            x: (..., in).
            residual: (..., out).
            linear_weights: weight (out, in) and bias (out,).
            norm_weights: gamma and beta, each (out,).
            epsilon: added to the variance.
            name: the step's name; its modules are ``name.dense`` and ``name.LayerNorm``.
            outputs: further arguments of ``addSkipLayerNorm``, above all which outputs there are.
        """
        weight, bias = linear_weights
        x = self.linear(x, weight, None, f"{name}.dense")
        return self.helper.addSkipLayerNorm(x, residual, *norm_weights, epsilon, f"{name}.LayerNorm", bias, **outputs)

    def matmul(self, a: trt.ITensor, b: trt.ITensor, name: str, transpose_b: bool = False) -> trt.ITensor:
        """a @ b, or a @ bᵀ, of two activations."""
        self.record(name, (a, b))
        return self.helper.addMatMul(a, b, name, transpose_b=transpose_b)

    def record(
        self, name: str, activations: Sequence[trt.ITensor], weight_shape: Sequence[int] | None = None
    ) -> None:
        """Appends a product to ``added``."""
        group = next((group for suffix, group in GROUP_OF_SUFFIX.items() if name.endswith(suffix)), "qkv")
        names = tuple(tensor.name for tensor in activations)
        shape = None if weight_shape is None else (weight_shape[0], weight_shape[1])
        self.added.append(Product(name, group, names, shape))


class LinearPluginProducts(Products):
    """Linear layers by the Linear plugin: product, bias and GELU in one kernel, in fp16 and bf16.

    A linear layer before a residual sum, the sum and its layer norm are one layer of the LinearSkipLayerNorm plugin.

    Args:
        helper: adds the layers.
        constant_weights: whether the kernel may read its weights before the previous layer has finished.
    """

    def __init__(self, helper: TrtNetworkHelper, constant_weights: bool = True) -> None:
        super().__init__(helper)
        self._constant_weights = constant_weights

    def linear(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray | None, name: str, modules: Sequence[str] = ()
    ) -> trt.ITensor:
        """As ``Products.linear``."""
        return self.helper.addFusedLinear(x, weight, bias, name, constant_weight=self._constant_weights)

    def linear_activation(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray, name: str, activation: str, activation_name: str
    ) -> trt.ITensor:
        """As ``Products.linear_activation``; the plugin's only activation is the GELU by the error function."""
        if activation != "erf":
            return self.helper.addActivation(self.linear(x, weight, bias, name), activation_name, activation)
        return self.helper.addFusedLinear(
            *(x, weight, bias, name),
            layer_name=activation_name,
            activation="gelu",
            constant_weight=self._constant_weights,
        )

    def linear_add_norm(
        self,
        x: trt.ITensor,
        residual: trt.ITensor,
        linear_weights: tuple[np.ndarray, np.ndarray],
        norm_weights: tuple[np.ndarray, np.ndarray],
        epsilon: float,
        name: str,
        **outputs: Any,
    ) -> tuple[trt.ITensor, ...]:
        """As ``Products.linear_add_norm``, by one plugin; ``outputs`` are arguments of ``addLinearSkipLayerNorm``."""
        return self.helper.addLinearSkipLayerNorm(
            *(x, *linear_weights, residual, *norm_weights, epsilon, f"{name}.LayerNorm", f"{name}.dense"), **outputs
        )
