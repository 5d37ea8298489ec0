"""Which matrix products of BERT can run in int8 or fp8, and what has to be known for it.

A product runs in int8 when both its factors have been quantized: integers times a scale. Weights get a scale for
each output channel from the weights themselves; activations get one scale, from the range that ``calibrator.py``
finds. Embeddings, layer norms, softmax, residual sums and the head are no such products and stay in fp16.
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

MEASURABLE_BYTES = 2**24  # a plan has some 10 MB of code
BASE_PRECISION = "fp16"  # of everything that is not quantized
DIVISORS = (2.0**-14, 2.0**14)  # of smoothing, and their inverses, are ordinary fp16 numbers


@dataclass(frozen=True)
class Product:
    """A matrix product of the encoder.

    Attributes:
        name: the linear layer's name, or the name of one of attention's own two products.
        group: one of ``options.GROUPS``.
        activations: the tensors that it multiplies: one, besides its weight, for a linear layer, else two.
        weight_shape: (in, out); None for attention's own products, which have no weight.
    """

    name: str
    group: str
    activations: tuple[str, ...]
    weight_shape: tuple[int, int] | None = None


def in_groups(products: Iterable[Product], groups: Iterable[str]) -> list[Product]:
    """Those products that belong to one of the groups."""
    wanted = set(groups)
    return [product for product in products if product.group in wanted]


@dataclass(frozen=True)
class Quantization:
    """What ``builder.assemble`` and ``onnx2trt.parse`` need to quantize a network.

    Attributes:
        kind: ``int8`` or ``fp8``.
        products: names of the products to quantize.
        ranges: for each tensor that they multiply, by ``range_name``, the value that becomes the type's largest one.
        smoothing: by name of a tensor, the divisors (H,) of its channels; see ``smoothing_factors``.
    """

    kind: str
    products: frozenset[str] = frozenset()
    ranges: Mapping[str, float] = field(default_factory=dict)
    smoothing: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def dtype(self) -> trt.DataType:
        """TensorRT's type of quantized values."""
        return ELEMENT_TYPES[self.kind].trt

    def without(self, name: str) -> Quantization:
        """The same with one product back in fp16."""
        return Quantization(self.kind, self.products - {name}, self.ranges, self.smoothing)

    def only(self, name: str) -> Quantization:
        """The same with one product quantized alone."""
        return Quantization(self.kind, frozenset({name}), self.ranges, self.smoothing)


def range_name(tensor: str, smoothing: Mapping[str, np.ndarray]) -> str:
    """The name of what is quantized: the tensor, or the tensor after smoothing."""
    return f"{tensor}.smoothed" if tensor in smoothing else tensor


@dataclass(frozen=True)
class QuantizedParts:
    """What a network holds, read back from it.

    Attributes:
        quantized_products: matrix products whose factors are both quantized.
        products: all matrix products.
        quantized_weights: elements of the weights in such products, 1 byte each.
        weight_bytes: of all constants together.
    """

    quantized_products: int
    products: int
    quantized_weights: int
    weight_bytes: int

    def plan_has_narrow_weights(self, plan_bytes: int) -> bool | None:
        """Whether a plan's size shows that the weights are 1 byte each in it: it is smaller than with 2 bytes.
        None for a small model, in which weights are not most of the plan."""
        wider = self.weight_bytes + self.quantized_weights
        if self.quantized_weights < MEASURABLE_BYTES:
            return None
        return plan_bytes < wider


def inspect(network: trt.INetworkDefinition) -> QuantizedParts:
    """Counts products and weights in a network."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producer = {layer.get_output(0).name: layer for layer in layers}

    def source(layer: trt.ILayer, place: int) -> trt.ILayer | None:
        return producer.get(layer.get_input(place).name)

    def quantized_source(layer: trt.ILayer, place: int) -> trt.ILayer | None:
        """The quantize layer or the constant of 1 byte an element from which a factor of a product comes."""
        dequantize = source(layer, place)
        if dequantize is None or dequantize.type != trt.LayerType.DEQUANTIZE:
            return None
        origin = source(dequantize, 0)
        narrow = element_type(dequantize.get_input(0).dtype).is_quantized
        return origin if narrow else None

    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    factors = [(quantized_source(layer, 0), quantized_source(layer, 1)) for layer in products]
    quantized = [pair for pair in factors if None not in pair]
    constants = [layer for layer in layers if layer.type == trt.LayerType.CONSTANT]
    sizes = {layer.name: math.prod(as_tuple(layer.get_output(0).shape)) for layer in constants}
    return QuantizedParts(
        len(quantized),
        len(products),
        sum(sizes.get(b.name, 0) for _, b in quantized if b is not None),
        sum(sizes[layer.name] * element_type(layer.get_output(0).dtype).numpy.itemsize for layer in constants),
    )


def smoothing_factors(
    products: Iterable[Product],
    weights: WeightFile,
    channel_maxima: Mapping[str, np.ndarray],
    strength: float,
) -> dict[str, np.ndarray]:
    """Divisors that move activation outliers into the weights: x W = (x / s) (s W).

    s = max|x|^strength / max|W|^(1 − strength) for each channel of x (Xiao et al., SmoothQuant, arXiv:2211.10438,
    equation 4), where the maximum over W is over all linear layers that read the tensor.

    Args:
        products: linear layers to smooth.
        weights: the checkpoint's.
        channel_maxima: by tensor, the largest absolute value of each channel, (H,).
        strength: 0 to 1; 0.5 splits the difficulty evenly.

    Returns:
        Divisors by tensor, float32 (H,), within ``DIVISORS``: a channel that is almost never on is not blown up
        beyond fp16. Their reciprocals are numbers of fp16, so that x / s and s W are off by no rounding of s.
    """
    rows: dict[str, np.ndarray] = {}
    for product in products:
        if product.weight_shape is not None:
            (tensor,) = product.activations
            largest = np.abs(weights.get(f"{product.name}.weight", product.weight_shape)).max(axis=1)  # (in,)
            rows[tensor] = np.maximum(rows[tensor], largest) if tensor in rows else largest
    factors = {}
    for tensor, largest in rows.items():
        maxima = channel_maxima[tensor]
        usable = (maxima > 0) & (largest > 0)  # a channel that is always zero stays as it is
        x, w = np.where(usable, maxima, 1).astype(np.float64), np.where(usable, largest, 1).astype(np.float64)
        divisors = np.where(usable, x**strength / w ** (1 - strength), 1).clip(*DIVISORS)
        reciprocals = (1 / divisors).astype(np.float16)  # what the network multiplies by, in its own type
        factors[tensor] = 1 / reciprocals.astype(np.float32)
    return factors


def check_quantized(network: trt.INetworkDefinition, kind: str, expected: int) -> QuantizedParts:
    """What the network holds, after a check that ``expected`` products are quantized.

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
