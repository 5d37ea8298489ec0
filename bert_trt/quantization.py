"""The quantization of BERT's matrix products to int8 or fp8: which products, amax of their activations, SmoothQuant.

A product runs in int8 when both its operands are quantized: integers times a scale. A weight has a scale for each
output channel, from the weight's own amax. An activation has one scale, from the range (its amax, possibly clipped)
that ``calibrator.py`` finds. Embeddings, layer norms, softmax, residual sums and the head stay in fp16.

Letters in shapes: H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES, element_type
from bert_trt.model_files import WeightFile
from bert_trt.tensorrt_product import trt
from bert_trt.tensors import as_tuple

MEASURABLE_BYTES = 2**24  # fewer bytes of weights do not show in a plan's size, since it has some 10 MB of code
BASE_PRECISION = "fp16"  # the type of everything that is not quantized
SMOOTHING_LIMITS = (2.0**-14, 2.0**14)  # SmoothQuant's s and 1 / s stay within the normal numbers of fp16


@dataclass(frozen=True)
class Product:
    """A matrix product of the encoder.

    Attributes:
        name: the linear layer's name, or the name of one of attention's own two products.
        group: one of ``options.GROUPS``.
        activations: the names of its operands that are no weights: one for a linear layer, else two.
        weight_shape: (out, in); None for attention's own products, which have no weight.
    """

    name: str
    group: str
    activations: tuple[str, ...]
    weight_shape: tuple[int, int] | None = None


def in_groups(products: Iterable[Product], groups: Iterable[str]) -> list[Product]:
    """The products that belong to one of the groups."""
    names = set(groups)
    return [product for product in products if product.group in names]


def kernels_of(products: Iterable[Product], fusion: str) -> dict[str, list[Product]]:
    """The products that one kernel computes together, by its name: with 8-bit plugins those of Q, K and V of a layer
    (``.attention.self.qkv``), otherwise each product alone."""
    kernels: dict[str, list[Product]] = {}
    for product in products:
        is_merged = fusion == "all" and product.group == "qkv"
        name = f"{product.name.rpartition('.')[0]}.qkv" if is_merged else product.name
        kernels.setdefault(name, []).append(product)
    return kernels


@dataclass(frozen=True)
class Quantization:
    """What ``builder.assemble`` and ``onnx2trt.parse`` need to quantize a network.

    Attributes:
        kind: ``int8`` or ``fp8``.
        products: names of the products to quantize.
        ranges: amax of each activation of these products, by ``range_name``: the absolute value that is mapped to the
            largest value of the type, so that scale = range / largest value.
        smoothing: by tensor, SmoothQuant's factors s of its channels, float32 (H,); see ``smoothing_factors``.
    """

    kind: str
    products: frozenset[str] = frozenset()
    ranges: Mapping[str, float] = field(default_factory=dict)
    smoothing: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def dtype(self) -> trt.DataType:
        """TensorRT's type of quantized values."""
        return ELEMENT_TYPES[self.kind].trt

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each activation, by ``range_name``: its range over the largest value of the type."""
        return {name: amax / ELEMENT_TYPES[self.kind].largest for name, amax in self.ranges.items()}

    def includes(self, *modules: str) -> bool:
        """Whether all these products are quantized."""
        return self.products.issuperset(modules)

    def without(self, *names: str) -> Quantization:
        """This quantization with these products in fp16."""
        return Quantization(self.kind, self.products.difference(names), self.ranges, self.smoothing)

    def only(self, *names: str) -> Quantization:
        """This quantization with no product quantized but these."""
        return Quantization(self.kind, frozenset(names), self.ranges, self.smoothing)


def range_name(tensor: str, smoothing: Mapping[str, np.ndarray]) -> str:
    """The name of the tensor that is quantized: ``tensor``, or its smoothed form where it is smoothed."""
    return f"{tensor}.smoothed" if tensor in smoothing else tensor


@dataclass(frozen=True)
class QuantizedParts:
    """The matrix products and weights of a network, read back from it.

    Attributes:
        quantized_products: number of matrix products whose operands are both quantized.
        products: number of all matrix products.
        quantized_weights: number of elements in the weights of quantized products, 1 byte each.
        weight_bytes: size of all constants together.
    """

    quantized_products: int
    products: int
    quantized_weights: int
    weight_bytes: int

    def plan_has_quantized_weights(self, plan_bytes: int) -> bool | None:
        """Whether a plan's size proves that its quantized weights have 1 byte an element: it is smaller than the
        weights alone would be with 2 bytes. None for a small model, whose plan is mostly code."""
        if self.quantized_weights < MEASURABLE_BYTES:
            return None
        return plan_bytes < self.weight_bytes + self.quantized_weights


def inspect(network: trt.INetworkDefinition) -> QuantizedParts:
    """Counts the matrix products and weights of a network."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producer = {layer.get_output(0).name: layer for layer in layers}

    def source(layer: trt.ILayer, index: int) -> trt.ILayer | None:
        return producer.get(layer.get_input(index).name)

    def quantized_source(layer: trt.ILayer, index: int) -> trt.ILayer | None:
        """The quantize layer, or the constant of 1 byte an element, behind an operand of a product."""
        dequantize = source(layer, index)
        if dequantize is None or dequantize.type != trt.LayerType.DEQUANTIZE:
            return None
        origin = source(dequantize, 0)
        return origin if element_type(dequantize.get_input(0).dtype).is_quantized else None

    def weight_of_plugin(layer: trt.ILayer) -> trt.ILayer | None:
        """The constant matrix that a plugin layer multiplies with: Linear's; None for other plugins."""
        weight = source(layer, 1) if layer.type == trt.LayerType.PLUGIN_V3 and layer.num_inputs > 1 else None
        is_matrix = weight is not None and len(as_tuple(weight.get_output(0).shape)) > 1
        return weight if is_matrix and weight is not None and weight.type == trt.LayerType.CONSTANT else None

    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    operands = [(quantized_source(layer, 0), quantized_source(layer, 1)) for layer in products]
    quantized = [b for a, b in operands if a is not None and b is not None]
    plugin_weights = list(filter(None, map(weight_of_plugin, layers)))
    quantized += [weight for weight in plugin_weights if element_type(weight.get_output(0).dtype).is_quantized]
    constants = [layer for layer in layers if layer.type == trt.LayerType.CONSTANT]
    sizes = {layer.name: math.prod(as_tuple(layer.get_output(0).shape)) for layer in constants}
    return QuantizedParts(
        len(quantized),
        len(products) + len(plugin_weights),
        sum(sizes.get(weight.name, 0) for weight in quantized),
        sum(sizes[layer.name] * element_type(layer.get_output(0).dtype).numpy.itemsize for layer in constants),
    )


def smoothing_factors(
    products: Iterable[Product],
    weights: WeightFile,
    channel_amax: Mapping[str, np.ndarray],
    alpha: float,
) -> dict[str, np.ndarray]:
    """SmoothQuant's factors s, which move activation outliers into the weights: x W = (x / s) (s W).

    s = max|x|^alpha / max|W|^(1 − alpha) for each channel of x (Xiao et al., SmoothQuant, arXiv:2211.10438, equation
    4). The maximum over W is over all linear layers that read the tensor x.

    Args:
        products: linear layers to smooth.
        weights: the checkpoint's weights.
        channel_amax: by tensor, the largest absolute value of each channel, (H,).
        alpha: 0 to 1, how much of the outliers moves into the weights; 0.5 splits it evenly.

    Returns:
        s by tensor, float32 (H,), within ``SMOOTHING_LIMITS``, so that 1 / s of a channel that is almost always zero
        does not overflow fp16. Each 1 / s is a number of fp16, so that x / s and s W use exactly the same s.
    """
    weight_amax: dict[str, np.ndarray] = {}
    for product in products:
        if product.weight_shape is not None:
            (tensor,) = product.activations
            amax = np.abs(weights.get(f"{product.name}.weight", product.weight_shape)).max(axis=0)  # (in,)
            weight_amax[tensor] = np.maximum(weight_amax[tensor], amax) if tensor in weight_amax else amax
    smoothing = {}
    for tensor, w_amax in weight_amax.items():
        x_amax = channel_amax[tensor]
        usable = (x_amax > 0) & (w_amax > 0)  # a channel that is always zero is not smoothed
        x, w = np.where(usable, x_amax, 1).astype(np.float64), np.where(usable, w_amax, 1).astype(np.float64)
        s = np.where(usable, x**alpha / w ** (1 - alpha), 1).clip(*SMOOTHING_LIMITS)
        reciprocals = (1 / s).astype(np.float16)  # the network multiplies by these, in its own type
        smoothing[tensor] = 1 / reciprocals.astype(np.float32)
    return smoothing


def check_quantized(network: trt.INetworkDefinition, kind: str, expected: int) -> QuantizedParts:
    """Checks that ``expected`` products of the network are quantized, and returns the counts.

    Raises:
        UserError: another number of products is quantized.
    """
    parts = inspect(network)
    if parts.quantized_products != expected:
        raise UserError(
            f"{parts.quantized_products} products of the network have both factors in {kind}, expected {expected}: "
            "please report this"
        )
    return parts
