"""BERT's steps as our CUDA plugins with activations in 8 bits (``--fusion all`` in int8 and fp8).

An activation that a quantized product reads is stored in 8 bits, by the kernel that computes it:

    embeddings                   fp16 for the residual sum, and 8 bits for the product
    product, sum, layer norm     8 bits in, and fp16 for the residual sum; out as embeddings
    attention                    reads fp16 Q, K and V, writes its context in 8 bits
    intermediate                 8 bits in, GELU, 8 bits out
    Q, K and V                   8 bits in, fp16 out

So no quantize layer stands alone, and residual sums stay in fp16. A product that is not quantized (``--max-error``)
takes its fp16 kernel, and the activation in front of it is fp16 only.

SmoothQuant adds no layer. Layer norms and the intermediate product multiply their 8-bit output with 1 / s of each
channel (``output_factors``); the fp16 output of a layer norm is not divided. Dividing the weight and bias of V by s
divides the context by s. The weight of the product that reads the tensor is multiplied with s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_trt.element_types import element_type
from bert_trt.layers.fused import FusedLayers
from bert_trt.layers.native import QKV
from bert_trt.layers.products import LinearPluginProducts
from bert_trt.quantization import Quantization, range_name
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper


class EightBitProducts(LinearPluginProducts):
    """Linear layers by the Linear plugin, those of the quantization in int8 or fp8, the others in fp16.

    Args:
        helper: adds the layers.
        quantization: the products to quantize, their ranges, and SmoothQuant's factors.
        constant_weights: whether the kernel may read its weights before the previous layer has finished.

    Attributes:
        eight_bits: the 8-bit form of fp16 activations, by name.
    """

    def __init__(self, helper: TrtNetworkHelper, quantization: Quantization, constant_weights: bool = True) -> None:
        super().__init__(helper, constant_weights)
        self.quantization = quantization
        self.eight_bits: dict[str, trt.ITensor] = {}

    def linear(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray | None, name: str, modules: Sequence[str] = ()
    ) -> trt.ITensor:
        """As ``Products.linear``. A quantized product reads the 8-bit form of x."""
        if not self.is_quantized(*(modules or (name,))):
            return super().linear(x, weight, bias, name, modules)
        return self._quantized_linear(x, weight, bias, name)

    def linear_activation(
        self,
        x: trt.ITensor,
        weight: np.ndarray,
        bias: np.ndarray,
        name: str,
        activation: str,
        activation_name: str,
        output_scale: float = 0.0,
    ) -> trt.ITensor:
        """As ``Products.linear_activation``; ``output_scale`` is that of the result's 8-bit form, 0 for none."""
        if activation == "erf" and self.is_quantized(name):
            return self._quantized_linear(
                *(x, weight, bias, name),
                layer_name=activation_name,
                activation="gelu",
                output_scale=output_scale,
                output_factors=self.output_factors(activation_name) if output_scale else None,
            )
        return super().linear_activation(x, weight, bias, name, activation, activation_name)

    def is_quantized(self, *modules: str) -> bool:
        """Whether the product of these modules runs in int8 or fp8."""
        return self.quantization.includes(*modules)

    def scale(self, tensor: str) -> float:
        """The scale of an activation's 8-bit form."""
        return self.quantization.scales[range_name(tensor, self.quantization.smoothing)]

    def output_factors(self, tensor: str) -> np.ndarray | None:
        """1 / s, float32 (H,), for the 8-bit form of a tensor that SmoothQuant divides by s; None for others."""
        s = self.quantization.smoothing.get(tensor)
        return None if s is None else 1 / s

    def eight_bit_form(self, x: trt.ITensor) -> trt.ITensor:
        """x in 8 bits: as the kernel that computed it wrote it; by a quantize layer where no kernel does, as after a
        native attention or an activation that the Linear plugin does not have."""
        if element_type(x.dtype).is_quantized:
            return x
        if x.name not in self.eight_bits:
            factors = self.output_factors(x.name)
            smoothed = x if factors is None else self.helper.addChannelScale(x, factors, f"{x.name}.smoothed")
            self.eight_bits[x.name] = self.helper.addQuantize(
                smoothed, self.scale(x.name), f"{x.name}.quantized", self.quantization.dtype
            )
        return self.eight_bits[x.name]

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
        """As ``LinearPluginProducts.linear_add_norm``. A quantized product reads the 8-bit form of x."""
        if self.is_quantized(f"{name}.dense"):
            weight, bias = linear_weights
            outputs["x_scale"] = self.scale(x.name)
            x, weight = self._quantized_operands(x, weight)
            linear_weights = weight, bias
        return super().linear_add_norm(x, residual, linear_weights, norm_weights, epsilon, name, **outputs)

    def _quantized_linear(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray | None, name: str, **fused: Any
    ) -> trt.ITensor:
        """A product in 8 bits; ``fused`` are arguments of ``addFusedLinear``."""
        scale = self.scale(x.name)
        x, weight = self._quantized_operands(x, weight)
        return self.helper.addFusedLinear(
            *(x, weight, bias, name), constant_weight=self._constant_weights, x_scale=scale, **fused
        )

    def _quantized_operands(self, x: trt.ITensor, weight: np.ndarray) -> tuple[trt.ITensor, np.ndarray]:
        """The 8-bit form of x, and the weight for it; counts the product."""
        self.num_quantized += 1
        factors = self.quantization.smoothing.get(x.name)  # x has been divided by them
        return self.eight_bit_form(x), weight if factors is None else weight * factors


class FusedQuantizedLayers(FusedLayers):
    """``FusedLayers`` whose kernels write 8 bits for quantized products. Arguments as for ``NativeLayers``."""

    products: EightBitProducts

    def embeddings(self, ids: Sequence[trt.ITensor], name: str) -> trt.ITensor:
        """LN(word + position + type): three (S,) -> (S, E) in fp16, and in 8 bits for the first layer's product."""
        if self.config.has_projection:
            return super().embeddings(ids, name)
        return self.keep_quantized(self.add_embeddings(ids, name, **self.norm_outputs(name)))

    def qkv_weights(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """As ``FusedLayers.qkv_weights``; V is divided by SmoothQuant's factors s, and so is the context."""
        weight, bias = super().qkv_weights(name)
        factors = self.products.quantization.smoothing.get(name)
        if factors is None or not self.products.is_quantized(*self.readers(name)):
            return weight, bias
        divisor = np.concatenate([np.ones(2 * len(factors), np.float32), factors])  # Q and K are not divided
        return weight / divisor[:, None], bias / divisor

    def context(self, qkv: trt.ITensor, name: str) -> trt.ITensor:
        """(S, 3 H) -> (S, H) by the QkvToContext plugin, in 8 bits if the next product is quantized."""
        layout, scale = self.layout, self.output_scale(name, name)
        return self.helper.addQkvToContext(
            *(qkv, self.config.num_heads, name, layout.name, layout.lengths, layout.max_sequence_length),
            output_scale=scale,
            output=self.products.quantization.dtype if scale else None,
        )

    def linear_activation(self, x: trt.ITensor, name: str, width: int) -> trt.ITensor:
        """activation(x @ weightᵀ + bias): (S, H) -> (S, width), in 8 bits if the next product is quantized."""
        weight, bias = self.linear_weights(f"{name}.dense", self.config.hidden_size, width)
        activation_name = f"{name}.intermediate_act_fn"
        return self.products.linear_activation(
            *(x, weight, bias, f"{name}.dense", self.activation, activation_name),
            output_scale=self.output_scale(name, activation_name),
        )

    def linear_add_norm(self, x: trt.ITensor, residual: trt.ITensor, name: str) -> trt.ITensor:
        """LN(x @ weightᵀ + bias + residual): (S, in) and (S, H) -> (S, H) in fp16, and in 8 bits for a product."""
        return self.keep_quantized(self.add_linear_norm(x, residual, name, **self.norm_outputs(name)))

    def readers(self, name: str) -> tuple[str, ...]:
        """The modules whose product reads the result of the step ``name``; none after the last layer."""
        in_layer = re.fullmatch(r".+\.layer\.(\d+)\.(.+)", name)
        index, step = (int(in_layer[1]), in_layer[2]) if in_layer else (-1, "output")  # embeddings: as a layer before
        layers = f"{self.config.prefix}encoder.layer"
        readers = {
            "attention.self": (f"{layers}.{index}.attention.output.dense",),
            "attention.output": (f"{layers}.{index}.intermediate.dense",),
            "intermediate": (f"{layers}.{index}.output.dense",),
            "output": tuple(f"{layers}.{index + 1}.attention.self.{part}" for part in QKV),
        }
        return () if (index + 1, step) == (self.config.num_layers, "output") else readers[step]

    def output_scale(self, step: str, tensor: str) -> float:
        """The scale in which ``tensor``, the result of a step, is written in 8 bits; 0 if the next product reads fp16
        or there is none."""
        readers = self.readers(step)
        return self.products.scale(tensor) if readers and self.products.is_quantized(*readers) else 0.0

    def norm_outputs(self, step: str) -> dict[str, Any]:
        """The arguments that make the layer norm of a step write fp16 and 8 bits; none for fp16 alone."""
        scale = self.output_scale(step, f"{step}.LayerNorm")
        if not scale:
            return {}
        return {
            "output_scale": scale,
            "outputs": "both",
            "quantized_type": self.products.quantization.dtype,
            "output_factors": self.products.output_factors(f"{step}.LayerNorm"),
        }

    def keep_quantized(self, outputs: Sequence[trt.ITensor]) -> trt.ITensor:
        """Keeps the 8-bit form, if there is one, for the product that reads it; returns the fp16 form."""
        y, *quantized = outputs
        if quantized:
            (self.products.eight_bits[y.name],) = quantized
        return y
