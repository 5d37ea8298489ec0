"""Runs a TensorRT network definition with PyTorch, on CPU or CUDA: no TensorRT engine, no GPU needed.

``NetworkRunner`` reads a network, ours or one that the ONNX parser defined, layer by layer and lowers it once to a
``torch.fx`` graph, which can be printed, run, captured in a CUDA graph or compiled. It returns any tensor by name, so
that the first incorrect layer can be found.

The runner keeps the network's types: an fp16 tensor is fp16, products accumulate in fp32, normalisation computes in
fp32. Its results therefore equal those of an engine up to the order of summation, and up to the roundings that
TensorRT saves when it fuses layers. TensorRT itself executes nothing here.

To read: ``NetworkRunner`` at the end, then ``_Lowering``, then the functions of the layers.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import ml_dtypes
import numpy as np
import torch

from bert_trt import plugin_layers
from bert_trt.console import UserError
from bert_trt.element_types import element_type, has_element_type
from bert_trt.network import NetworkContents
from bert_trt.packing import CHECKED, check_batch
from bert_trt.plugin_layers import PluginLayer
from bert_trt.tensorrt_product import trt
from bert_trt.tensors import as_tuple
from plugins import reference

HALF_TYPES = (torch.float16, torch.bfloat16)
SHORT_ON_AVERAGE = 128  # tokens of a sequence, up to which ``mean_of_sequences`` adds them up one after another


def best_device() -> str:
    """CUDA where there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class UnsupportedLayerError(UserError):
    """The runner does not support a layer of the network; the message names it."""


# --- the functions of the layers --------------------------------------------------------------------------
# Each layer type has a plain function, so that the printed graph reads as the computation.


def matrix_multiply(a: torch.Tensor, b: torch.Tensor, transpose_a: bool, transpose_b: bool) -> torch.Tensor:
    """a @ b over the last two axes, accumulated in fp32: (..., M, K), (..., K, N) -> (..., M, N)."""
    a = a.transpose(-1, -2) if transpose_a else a
    b = b.transpose(-1, -2) if transpose_b else b
    b = b.reshape(b.shape[-2:]) if is_one_matrix(b) else b  # one product of all rows, not one for each batch member
    if a.dtype in HALF_TYPES and not a.is_cuda:
        return torch.matmul(a.float(), b.float()).to(a.dtype)
    return torch.matmul(a, b)


def is_one_matrix(b: torch.Tensor) -> bool:
    """Whether all leading axes of (..., K, N) are 1."""
    return all(size == 1 for size in b.shape[:-2])


def product_with_bias(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor, transpose_a: bool, transpose_b: bool
) -> torch.Tensor:
    """a @ b + bias: (..., M, K), (..., K, N) and (1 ..., N) -> (..., M, N).

    On CUDA, one kernel computes both, as TensorRT fuses them: the result is rounded once, after the bias is added.
    """
    if not a.is_cuda:
        return matrix_multiply(a, b, transpose_a, transpose_b) + bias
    return product_with_bias_kernel(a, b, bias, transpose_a, transpose_b)


def product_with_bias_kernel(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor, transpose_a: bool, transpose_b: bool
) -> torch.Tensor:
    """As ``product_with_bias``, by one kernel of PyTorch's on any device where the shapes allow it."""
    if transpose_a or not is_one_matrix(b) or bias.numel() != bias.shape[-1]:
        return matrix_multiply(a, b, transpose_a, transpose_b) + bias
    matrix = b.reshape(b.shape[-2:])
    rows = a.reshape(-1, a.shape[-1])
    product = torch.addmm(bias.reshape(-1), rows, matrix.t() if transpose_b else matrix)
    return product.reshape(*a.shape[:-1], product.shape[-1])


def quantize(x: torch.Tensor, scale: torch.Tensor, axis: int | None, dtype: torch.dtype) -> torch.Tensor:
    """x / scale, rounded half to even, saturated: to int8 [-128, 127], or to fp8 (E4M3) [-448, 448].

    ``scale`` is one number, or one for each slice along ``axis``. See "Explicit Quantization" in TensorRT's guide.
    """
    scaled = x.float() / along_axis(scale.float(), axis, x.dim())
    low, high = reference.QUANTIZED_LIMITS[dtype]
    rounded = scaled.round() if dtype == torch.int8 else scaled  # the cast to fp8 itself rounds half to even
    return rounded.clamp(low, high).to(dtype)


def dequantize(q: torch.Tensor, scale: torch.Tensor, axis: int | None, dtype: torch.dtype) -> torch.Tensor:
    """q · scale, computed in fp32; ``scale`` as in ``quantize``."""
    return (q.float() * along_axis(scale.float(), axis, q.dim())).to(dtype)


def along_axis(scale: torch.Tensor, axis: int | None, rank: int) -> torch.Tensor:
    """Reshapes scales for broadcasting: one scale to (), scales along ``axis`` to ``rank`` axes."""
    if scale.numel() == 1 or axis is None:
        return scale.reshape(())
    return scale.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def quantized_product(
    a: torch.Tensor,
    scale_a: torch.Tensor,
    b: torch.Tensor,
    scale_b: torch.Tensor,
    transpose_a: bool,
    transpose_b: bool,
    dtype: torch.dtype,
    int8_kernel: bool,
) -> torch.Tensor:
    """The product of two dequantized tensors, as an int8 engine computes it.

    It multiplies and sums the integers, applies the scales, and only then rounds to ``dtype``.

    Args:
        a: (..., M, K) before ``transpose_a``, int8 or fp8.
        scale_a: one number.
        b: (..., K, N) before ``transpose_b``.
        scale_b: one number, or (N,).
        transpose_a: as in ``matrix_multiply``.
        transpose_b: as in ``matrix_multiply``.
        dtype: the type of the result.
        int8_kernel: use PyTorch's int8 product, which sums in int32, where b is one matrix. Otherwise the product
            is computed in fp32, which is exact for products of int8 and of fp8 and rounds sums beyond 2^24.
    """
    a = a.transpose(-1, -2) if transpose_a else a
    b = b.transpose(-1, -2) if transpose_b else b
    b = b.reshape(b.shape[-2:]) if is_one_matrix(b) else b  # one product of all rows, not one for each batch member
    is_one_weight = a.dtype == torch.int8 and b.dim() == 2
    is_one_weight &= b.shape[-1] % 8 == 0 and b.shape[-2] % 8 == 0  # cuBLAS needs multiples of 8
    product = int8_product(a, b) if int8_kernel and is_one_weight else torch.matmul(a.float(), b.float())
    return (product * (scale_a.float().reshape(()) * scale_b.float().reshape(-1))).to(dtype)


def int8_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b by an int8 kernel, summed in int32: (..., M, K) and (1 ..., K, N) -> fp32 (..., M, N)."""
    rows = a.reshape(-1, a.shape[-1])
    missing = max(0, 17 - rows.shape[0])  # cuBLAS needs more than 16 rows
    padded = torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
    int8_mm = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]
    product = int8_mm(padded, b.reshape(b.shape[-2:]))[: rows.shape[0]]
    return product.float().reshape(*a.shape[:-1], b.shape[-1])


def shuffle(
    x: torch.Tensor,
    target: torch.Tensor | None,
    first: Sequence[int] | None,
    shape: Sequence[int] | None,
    second: Sequence[int] | None,
    zero_is_placeholder: bool,
) -> torch.Tensor:
    """Transposes, reshapes and transposes x. ``target`` is a shape computed at run time, ``shape`` a constant one."""
    if first is not None:
        x = x.permute(tuple(first))
    new_shape = target.tolist() if target is not None else shape
    if new_shape is not None:
        if zero_is_placeholder:
            new_shape = [x.shape[axis] if length == 0 else length for axis, length in enumerate(new_shape)]
        x = x.reshape(tuple(new_shape))
    return x.permute(tuple(second)) if second is not None else x


def gather(table: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    """Slices of ``table`` along ``axis``, which the axes of ``indices`` replace."""
    flat = torch.index_select(table, axis, indices.reshape(-1))
    return flat.reshape((*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :]))


def gather_elements(table: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    """Elements of ``table``, in the shape of ``indices``: each index counts along ``axis``, at its own other axes."""
    return torch.gather(table, axis, indices.long())


def gather_nd(table: torch.Tensor, indices: torch.Tensor, batch_axes: int) -> torch.Tensor:
    """Slices of ``table`` at K coordinates each: indices (..., K) -> (..., the remaining axes of the table).

    The first ``batch_axes`` axes are batch axes of both tensors and are not among the K coordinates.
    """
    leading = indices.shape[:-1]
    batch = [
        torch.arange(leading[axis], device=table.device).reshape([-1] + [1] * (len(leading) - axis - 1))
        for axis in range(batch_axes)
    ]
    return table[(*batch, *indices.long().unbind(-1))]


def select(condition: torch.Tensor, chosen: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """``chosen`` where the condition is true, else ``otherwise``; all three broadcast."""
    return torch.where(condition, chosen, otherwise)


Numbers = Sequence[int] | torch.Tensor  # constants, or numbers computed at run time


def strided_slice(
    x: torch.Tensor,
    start: Numbers,
    size: Numbers,
    stride: Numbers,
    axes: Numbers | None,
    mode: str,
    fill: torch.Tensor | None,
) -> torch.Tensor:
    """Takes ``size`` elements at start + i · stride along each of ``axes`` (default: all); a stride of 0 repeats one.

    Beyond the end of an axis, CLAMP takes the last element, WRAP begins again, FILL takes ``fill`` (default: 0), and
    STRICT_BOUNDS has no element.
    """
    chosen = range(x.dim()) if axes is None else [axis % x.dim() for axis in as_numbers(axes)]
    outside: torch.Tensor | None = None
    for axis, first, count, step in zip(chosen, *map(as_numbers, (start, size, stride)), strict=True):
        length = x.shape[axis]
        if mode == "STRICT_BOUNDS" and step == 0:
            x = x.narrow(axis, first, min(count, 1)).expand(*x.shape[:axis], count, *x.shape[axis + 1 :])
            continue
        indices = first + step * torch.arange(count, device=x.device)
        if mode == "FILL":
            shape = [-1 if index == axis else 1 for index in range(x.dim())]
            beyond = ((indices < 0) | (indices >= length)).reshape(shape)
            outside = beyond if outside is None else outside | beyond
        if mode in ("FILL", "CLAMP"):
            indices = indices.clamp(0, max(length - 1, 0))
        x = x.index_select(axis, indices % length if mode == "WRAP" else indices)
    if outside is not None:
        x = torch.where(outside, torch.zeros((), dtype=x.dtype, device=x.device) if fill is None else fill, x)
    return x


def as_numbers(numbers: Numbers) -> list[int]:
    """Numbers as a list; a tensor's numbers are copied from its device."""
    return numbers.tolist() if isinstance(numbers, torch.Tensor) else list(numbers)


def linear_fill(
    shape: Numbers, start: torch.Tensor | float, step: torch.Tensor | float, dtype: torch.dtype
) -> torch.Tensor:
    """A tensor of the given shape with the elements start + Σ step[axis] · index[axis]: a range, or with steps of 0 a
    constant. It is computed on the CPU, like shapes."""
    sizes = as_numbers(shape)
    steps = torch.as_tensor(step, device="cpu").reshape(-1)
    total = torch.as_tensor(start, device="cpu").to(dtype).reshape(()).expand(sizes)
    for axis, size in enumerate(sizes):
        index = torch.arange(size).reshape([-1 if other == axis else 1 for other in range(len(sizes))])
        total = total + (steps[axis] * index).to(dtype)
    return total


def normalization(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, axes: Sequence[int], epsilon: float
) -> torch.Tensor:
    """(x − mean) / √(variance + epsilon) · scale + bias over ``axes``, in fp32, returned in x's type."""
    x_fp32 = x.float()
    variance, mean = torch.var_mean(x_fp32, dim=list(axes), correction=0, keepdim=True)
    normal = (x_fp32 - mean) * torch.rsqrt(variance + epsilon)
    return (normal * scale.float() + bias.float()).to(x.dtype)


def normalization_kernel(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, axes: Sequence[int], epsilon: float
) -> torch.Tensor:
    """As ``normalization``, by one kernel of PyTorch's where x is fp32 and the last axis is normalised."""
    if list(axes) != [x.dim() - 1] or not scale.numel() == bias.numel() == x.shape[-1] or x.dtype != torch.float32:
        return normalization(x, scale, bias, axes, epsilon)
    width = x.shape[-1:]
    return torch.nn.functional.layer_norm(x, width, scale.float().view(width), bias.float().view(width), epsilon)


def softmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Softmax along one axis, in x's type."""
    return torch.softmax(x, dim=axis)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(query · keyᵀ) · value for each head, in fp32, rounded once at the end: three (B, N, S, D) -> the same.

    ``mask`` broadcasts over the scores (B, N, S, S). A boolean mask is true where the query may attend to the key;
    another mask is added to the scores.
    """
    scores = torch.matmul(query.float(), key.float().transpose(-1, -2))
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask.float()
    return torch.matmul(torch.softmax(scores, dim=-1), value.float()).to(query.dtype)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor
) -> torch.Tensor:
    """``attention`` within each sequence of a packed batch: three (T, N, D) and int32 (B + 1,) -> (T, N, D)."""
    token = torch.arange(query.shape[0], dtype=cu_seqlens.dtype, device=query.device)
    sequence = torch.bucketize(token, cu_seqlens, right=True)  # (T,): the number of the token's sequence, from 1
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))  # each (N, T, D)
    return attention(query, key, value, sequence[:, None] == sequence).transpose(0, 1)


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in another type."""
    return x.to(dtype)


def shape_tensor(x: torch.Tensor) -> torch.Tensor:
    """The shape of x, int64 (rank,), on the CPU, where shapes are computed."""
    return torch.tensor(x.shape, dtype=torch.int64)


def unsqueeze(x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Inserts axes of length 1; ``axes`` are axes of the result."""
    for axis in sorted(axis % (x.dim() + axes.numel()) for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: torch.Tensor, axes: torch.Tensor | None) -> torch.Tensor:
    """Removes the given axes of length 1; None removes all of them."""
    return x.squeeze() if axes is None else x.squeeze([axis % x.dim() for axis in axes.tolist()])


def concatenation(axis: int, *parts: torch.Tensor) -> torch.Tensor:
    """The parts one after another along ``axis``."""
    return torch.cat(parts, dim=axis)


def reduce(x: torch.Tensor, operation: str, axes: Sequence[int], keep_dims: bool) -> torch.Tensor:
    """Sum, product, average, maximum or minimum over ``axes``, in x's type."""
    return REDUCTIONS[operation](x, dim=list(axes), keepdim=keep_dims).to(x.dtype)


def cumulative(x: torch.Tensor, axis: int, exclusive: bool, reverse: bool) -> torch.Tensor:
    """Cumulative sum along ``axis``; exclusive: without the element itself; reverse: from the end."""
    flipped = x.flip(axis) if reverse else x
    total = flipped.cumsum(axis, dtype=x.dtype)
    total = total - flipped if exclusive else total
    return total.flip(axis) if reverse else total


def clip(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """x, at least ``low`` and at most ``high``."""
    return x.clamp(low, high)


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor that was computed with the shapes, on the CPU, for a layer that uses it as data."""
    return x.to(device)


def mean_of_sequences(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """The mean of each sequence's tokens: fp32 (T, H) and int32 (B + 1,) -> (B, H); NaN for an empty sequence."""
    if x.shape[0] <= SHORT_ON_AVERAGE * (cu_seqlens.shape[0] - 1):
        return torch.segment_reduce(x, "mean", offsets=cu_seqlens, unsafe=True)  # a check would wait for the GPU
    # That adds up one token after another, which takes long for long sequences. Of those, a batch has few.
    row, bounds = torch.arange(x.shape[0], device=x.device), cu_seqlens[:, None]
    members = (row >= bounds[:-1]) & (row < bounds[1:])  # (B, T)
    return torch.matmul(members.to(x.dtype), x) / bounds.diff(dim=0)


def _gelu_erf(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def _product(x: torch.Tensor, dim: Sequence[int], keepdim: bool) -> torch.Tensor:
    for axis in sorted(dim, reverse=True):
        x = torch.prod(x, axis, keepdim=keepdim)
    return x


def _divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b; for integers the quotient is truncated towards 0."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "RELU": torch.relu,
    "TANH": torch.tanh,
    "SIGMOID": torch.sigmoid,
    "GELU_ERF": _gelu_erf,
    "GELU_TANH": _gelu_tanh,
}
UNARIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ERF": torch.erf,
    "EXP": torch.exp,
    "LOG": torch.log,
    "NEG": torch.neg,
    "ABS": torch.abs,
    "SQRT": torch.sqrt,
    "RECIP": torch.reciprocal,
    "NOT": torch.logical_not,
    "SIN": torch.sin,
    "COS": torch.cos,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ROUND": torch.round,
    "SIGN": torch.sign,
    "ISINF": torch.isinf,
    "ISNAN": torch.isnan,
}
REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "SUM": torch.sum,
    "PROD": _product,
    "AVG": torch.mean,
    "MAX": torch.amax,
    "MIN": torch.amin,
}
ELEMENTWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "SUM": torch.add,
    "SUB": torch.sub,
    "PROD": torch.mul,
    "DIV": _divide,
    "FLOOR_DIV": torch.floor_divide,
    "POW": torch.pow,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
}


class PluginModule(torch.nn.Module):
    """Runs one plugin layer: on CUDA with the plugin's kernels, through the plugin host; on a CPU with its reference.

    Args:
        layer: the layer.
        device: the device of its inputs.
        in_fp32: use the reference on CUDA too, and ignore scales: inputs and outputs are fp32.
    """

    def __init__(self, layer: PluginLayer, device: torch.device, in_fp32: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.in_fp32 = in_fp32
        self._plugin: Any = None
        if device.type == "cuda" and not in_fp32:
            version, namespace = plugin_layers.VERSION, plugin_layers.NAMESPACE
            self._plugin = _plugin_host().create(layer.plugin, version, namespace, layer.fields)
            self._handle = next(_HANDLES)
            _PLUGINS[self._handle] = self._plugin

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Returns the layer's output, or a tuple of its outputs where there are several."""
        if self.in_fp32:
            return reference.compute_in_fp32(self.layer.plugin, inputs, self.layer.fields)
        if self._plugin is None:
            return reference.REFERENCES[self.layer.plugin](*inputs, **self.layer.fields)
        outputs = run_plugin(self._handle, list(inputs))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        """The text for ``print(module)``."""
        return f"{self.layer.plugin}, {dict(self.layer.fields)}"


_HANDLES = itertools.count()  # a handle is never reused: a compiled graph holds the handle of its plugin
_PLUGINS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # the living plugins by handle


@torch.library.custom_op("bert_plugins::run", mutates_args=())
def run_plugin(handle: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Runs a plugin. It is an operator of PyTorch, so that a graph with plugins in it can be compiled."""
    return _PLUGINS[handle].run_torch([tensor.contiguous() for tensor in inputs])


@run_plugin.register_fake
def _(handle: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    from plugins.plugin_host import TensorSpec

    specs = _PLUGINS[handle].output_specs([TensorSpec.of_torch(tensor) for tensor in inputs])
    return [inputs[0].new_empty(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs]


@functools.cache
def _plugin_host() -> Any:
    from plugins.plugin_host import PluginHost

    return PluginHost()


# --- reading a network back -------------------------------------------------------------------------------

LAYER_CLASSES = {
    "ACTIVATION": "IActivationLayer",
    "ATTENTION_INPUT": "IAttentionInputLayer",
    "CAST": "ICastLayer",
    "CONCATENATION": "IConcatenationLayer",
    "CONSTANT": "IConstantLayer",
    "CUMULATIVE": "ICumulativeLayer",
    "DEQUANTIZE": "IDequantizeLayer",
    "ELEMENTWISE": "IElementWiseLayer",
    "FILL": "IFillLayer",
    "GATHER": "IGatherLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "NORMALIZATION": "INormalizationLayer",
    "QUANTIZE": "IQuantizeLayer",
    "REDUCE": "IReduceLayer",
    "SHUFFLE": "IShuffleLayer",
    "SLICE": "ISliceLayer",
    "SOFTMAX": "ISoftMaxLayer",
    "UNARY": "IUnaryLayer",
}


def read_layer(network: trt.INetworkDefinition, index: int) -> tuple[str, Any]:
    """The name of the layer's type, and the layer as that type: the API returns an ILayer without its attributes."""
    layer = network.get_layer(index)
    kind = layer.type.name  # read before the class changes: IActivationLayer.type is the activation's type
    if kind in LAYER_CLASSES:
        layer.__class__ = getattr(trt, LAYER_CLASSES[kind])
    return kind, layer


def in_order_of_computation(network: trt.INetworkDefinition) -> list[tuple[str, Any]]:
    """All layers, each after the layers whose outputs it reads; a network lists them in the order of addition."""
    layers = [read_layer(network, index) for index in range(network.num_layers)]
    producer = {
        layer.get_output(output).name: index
        for index, (_, layer) in enumerate(layers)
        for output in range(layer.num_outputs)
    }
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for index, (_, layer) in enumerate(layers):
        sorter.add(index, *(producer[name] for name in input_names(layer) if name in producer))
    return [layers[index] for index in sorter.static_order()]


def input_names(layer: Any) -> list[str]:
    """Names of the tensors that a layer reads."""
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor.name for tensor in tensors if tensor is not None]


def tensor_types(network: trt.INetworkDefinition) -> dict[str, torch.dtype]:
    """PyTorch's type of every tensor, by name.

    Raises:
        UnsupportedLayerError: PyTorch has no such type.
    """
    layers = (network.get_layer(index) for index in range(network.num_layers))
    outputs = (layer.get_output(output) for layer in layers for output in range(layer.num_outputs))
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    types = {tensor.name: tensor.dtype for tensor in itertools.chain(inputs, outputs)}
    for name, dtype in types.items():
        if not has_element_type(dtype):
            raise UnsupportedLayerError(f"network_runner cannot run what makes tensor {name!r}: its type is {dtype}")
    return {name: element_type(dtype).torch for name, dtype in types.items()}


def output_names(layer: Any) -> list[str]:
    """Names of a layer's outputs."""
    return [layer.get_output(output).name for output in range(layer.num_outputs)]


def needed_tensors(layers: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> set[str]:
    """The tensors from which ``outputs`` are computed, ``outputs`` included, without ``inputs``.

    ``layers`` are in the order of computation.
    """
    needed = set(outputs) - set(inputs)
    for layer in reversed(layers):
        if needed.intersection(output_names(layer)):
            needed.update(name for name in input_names(layer) if name not in inputs)
    return needed


def constant_values(layer: Any, contents: NetworkContents) -> np.ndarray:
    """The values of a constant layer, in the network's type.

    Raises:
        UnsupportedLayerError: they are bf16 and not in ``contents.weights``.
    """
    values = layer.weights
    if isinstance(values, np.ndarray):
        return values
    if layer.name not in contents.weights:  # NumPy has no bf16, and the API does not expose the bytes
        raise UnsupportedLayerError(
            f"network_runner cannot read the {values.dtype.name} constant {layer.name!r}: TensorRT's Python API does "
            "not give its values; pass them in contents.weights"
        )
    return contents.weights[layer.name]


def axes_of_mask(mask: int) -> list[int]:
    """The axes of TensorRT's bit mask as a list."""
    return [axis for axis in range(mask.bit_length()) if mask >> axis & 1]


def as_torch(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor, bf16 and fp8 included; it shares the memory where PyTorch allows it."""
    if array.dtype == ml_dtypes.bfloat16:
        return as_torch(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return as_torch(array.view(np.int8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True)
class _Input:
    """A placeholder for an input tensor of a layer among the arguments of its function."""

    name: str
    on_host: bool = False  # the function reads it on the CPU, wherever the other inputs are
    as_number: bool = False  # a constant that TensorRT needs at build time becomes a number in the graph too

    @classmethod
    def all_of(cls, layer: Any) -> list[_Input]:
        return [cls(name) for name in input_names(layer)]


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: the node that computes it, and whether it is on the CPU."""

    node: torch.fx.Node
    on_host: bool


class _Lowering:
    """Lowers a network to a torch.fx graph, one TensorRT layer after another."""

    def __init__(
        self,
        network: trt.INetworkDefinition,
        device: torch.device,
        contents: NetworkContents,
        int8_kernels: bool,
        in_fp32: bool,
    ) -> None:
        self.network = network
        self.device = device
        self.contents = contents
        self.int8_kernels = int8_kernels
        self.in_fp32 = in_fp32
        self.graph = torch.fx.Graph()
        self.attributes: dict[str, torch.Tensor | torch.nn.Module] = {}
        self.values: dict[str, _Value] = {}
        self.constants: dict[str, Any] = {}  # constant layers by output
        self.origins: dict[str, list[str]] = {}  # the constants that a tensor is computed from, if from nothing else
        self.dequantized: dict[str, Any] = {}  # dequantize layers by output
        self.products: dict[str, tuple[Any, ...]] = {}  # arguments of matrix products by output
        self.placed: dict[tuple[str, bool], torch.fx.Node] = {}  # constants and copied tensors by (name, on_host)

    def run(self, inputs: Sequence[str], outputs: Sequence[str]) -> torch.fx.GraphModule:
        """Lowers the layers. The returned module computes the tensors ``outputs`` from the tensors ``inputs``."""
        for name in inputs:
            argument = re.sub(r"\W", "_", name if name[:1].isalpha() else f"input_{name}")
            self.values[name] = _Value(self.graph.placeholder(argument), on_host=False)
        layers = in_order_of_computation(self.network)
        needed = needed_tensors([layer for _, layer in layers], inputs, outputs)
        for kind, layer in layers:
            if needed.intersection(output_names(layer)):
                self.lower(kind, layer)
        unknown = [name for name in outputs if name not in self.values and name not in self.constants]
        if unknown:
            raise UserError(f"the network has no tensor {unknown[0]!r}")
        self.graph.output(tuple(self.node(name, on_host=False) for name in outputs))
        module = torch.fx.GraphModule(self.attributes, self.graph, "TensorRTNetwork")
        module.graph.eliminate_dead_code()  # layers that no output needs
        module.recompile()
        return module

    def lower(self, kind: str, layer: Any) -> None:
        """Adds one layer."""
        name = layer.get_output(0).name
        if kind == "CONSTANT":
            self.constants[name] = layer  # read on demand: placeholders of plugin layers remain that no layer reads
            self.origins[name] = [layer.name]
            return
        if kind == "PLUGIN_V3":
            for output, node in enumerate(self.plugin(layer)):
                self.values[layer.get_output(output).name] = _Value(node, on_host=False)
            return
        if kind == "DEQUANTIZE":
            self.dequantized[name] = layer
        rule = (
            self.fp32_rule(kind, layer)
            or self.quantized_rule(kind, layer)
            or self.bias_rule(kind, layer)
            or RULES.get(kind)
        )
        if rule is None:
            raise UnsupportedLayerError(
                f"network_runner cannot run layer {layer.name!r}: type {kind}; it knows {', '.join(sorted(RULES))}"
            )
        inputs_on_host = [self.values[key].on_host for key in input_names(layer) if key in self.values]
        # Arithmetic on shapes stays on the CPU.
        on_host = kind in ("SHAPE", "FILL") or (bool(inputs_on_host) and all(inputs_on_host))
        function, *arguments = rule(layer)
        if function is matrix_multiply:
            self.products[name] = tuple(arguments)
        resolved = tuple(self.argument(argument, on_host and kind != "SHAPE") for argument in arguments)
        node = self.graph.call_function(function, resolved)
        node.meta["layer"] = self.describe(layer)
        self.values[name] = _Value(node, on_host)

    def describe(self, layer: Any) -> str:
        """The layer's name and the constants that it reads, without those whose names begin with the layer's.

        In a parsed network only constants have meaningful names; and a plugin layer has the name of the last of the
        modules that it computes.
        """
        inputs = [self.origins.get(name) for name in input_names(layer)]
        constants = [name for origin in inputs for name in origin or ()]
        if inputs and None not in inputs:  # all inputs are constants, perhaps cast or reshaped
            self.origins[layer.get_output(0).name] = constants
        named = [repr(name) for name in constants if not name.startswith(layer.name)]
        return repr(layer.name) + (f" (of {', '.join(named)})" if named else "")

    def argument(self, argument: Any, on_host: bool) -> Any:
        """The argument of a graph node for the argument of a rule."""
        if not isinstance(argument, _Input):
            return argument
        if argument.as_number:
            return int(self.constant(self.constants[argument.name]))
        return self.node(argument.name, argument.on_host or on_host)

    def fp32_rule(self, kind: str, layer: Any) -> Callable[[Any], Call] | None:
        """With ``in_fp32``, the rule for a layer that casts or quantizes: it returns its input in fp32."""
        casts_to_float = (
            kind in ("ATTENTION_OUTPUT", "CAST", "IDENTITY") and element_type(layer.get_output(0).dtype).is_floating
        )
        if self.in_fp32 and (casts_to_float or kind in ("QUANTIZE", "DEQUANTIZE")):
            return lambda layer: (cast, _Input(layer.get_input(0).name), torch.float32)
        return None

    def quantized_rule(self, kind: str, layer: Any) -> Callable[[Any], Call] | None:
        """The rule for a product of two dequantized tensors whose scales can be applied to the product; else None."""
        if kind != "MATRIX_MULTIPLY" or self.in_fp32:
            return None
        a, b = (self.dequantized.get(name) for name in input_names(layer))
        if a is None or b is None or not _is_one_scale(a) or not (_is_one_scale(b) or _is_scale_of_columns(b, layer)):
            return None
        return functools.partial(_quantized_product, a=a, b=b, int8_kernel=self.int8_kernels)

    def bias_rule(self, kind: str, layer: Any) -> Callable[[Any], Call] | None:
        """The rule for the sum of a product and a constant; else None."""
        if kind != "ELEMENTWISE" or layer.op != trt.ElementWiseOperation.SUM:
            return None
        product, bias = input_names(layer)
        if product not in self.products or bias not in self.constants:
            return None
        a, b, *transposes = self.products[product]
        return lambda _: (product_with_bias, a, b, _Input(bias), *transposes)

    def plugin(self, layer: Any) -> list[torch.fx.Node]:
        """The nodes of a plugin layer's outputs."""
        if layer.name not in self.contents.plugins:
            raise UnsupportedLayerError(
                f"network_runner cannot run layer {layer.name!r}: TensorRT's Python API does not give a plugin's "
                "fields; pass the layer in contents.plugins"
            )
        attribute = f"plugin_{len(self.attributes)}"
        self.attributes[attribute] = PluginModule(self.contents.plugins[layer.name], self.device, self.in_fp32)
        inputs = tuple(self.node(name, on_host=False) for name in input_names(layer))
        module = self.graph.call_module(attribute, inputs)
        module.meta["layer"] = self.describe(layer)
        if layer.num_outputs == 1:
            return [module]
        return [self.graph.call_function(operator.getitem, (module, output)) for output in range(layer.num_outputs)]

    def constant(self, layer: Any) -> torch.Tensor:
        """The values of a constant layer in its type and shape; with ``in_fp32`` the values before rounding."""
        if self.in_fp32 and layer.name in self.contents.sources:
            return as_torch(self.contents.sources[layer.name]).reshape(as_tuple(layer.shape))
        values = constant_values(layer, self.contents)
        if self.in_fp32 and element_type(layer.get_output(0).dtype).is_floating:
            values = values.astype(np.float32)
        return as_torch(values).reshape(as_tuple(layer.shape))

    def node(self, name: str, on_host: bool) -> torch.fx.Node:
        """The node that holds tensor ``name``, on the CPU or on the device."""
        key = (name, on_host)
        if key in self.placed:
            return self.placed[key]
        if name in self.constants:
            attribute = f"weight_{len(self.attributes)}"
            weight = self.constant(self.constants[name])
            self.attributes[attribute] = weight if on_host else weight.to(self.device)
            self.placed[key] = self.graph.get_attr(attribute)
            return self.placed[key]
        value = self.values[name]
        if value.on_host and not on_host:
            self.placed[key] = self.graph.call_function(to_device, (value.node, self.device))
            return self.placed[key]
        return value.node


# --- one rule for each layer type: it returns the function and its arguments, _Input for an input tensor --

Call = tuple[Any, ...]


def _choose(table: Mapping[str, Any], layer: Any, kind: Any) -> Any:
    """The function of an operation such as ERF."""
    if kind.name not in table:
        raise UnsupportedLayerError(
            f"network_runner cannot run layer {layer.name!r}: {kind} is not one of {', '.join(sorted(table))}"
        )
    return table[kind.name]


def _refuse(layer: Any, what: str) -> None:
    raise UnsupportedLayerError(f"network_runner cannot run layer {layer.name!r}: {what}")


def _activation(layer: Any) -> Call:
    if layer.type == trt.ActivationType.CLIP:
        return clip, *_Input.all_of(layer), layer.alpha, layer.beta
    return _choose(ACTIVATIONS, layer, layer.type), *_Input.all_of(layer)


def _attention(layer: Any) -> Call:
    """TensorRT represents an attention by two layers, an input and an output layer. Here the input layer computes the
    attention, and the output layer returns it."""
    operation = layer.attention
    query, key, value = (operation.get_input(index) for index in range(3))
    forms = {getattr(operation, form).name for form in ("query_form", "key_value_form") if hasattr(operation, form)}
    lengths: list[Any] = [getattr(operation, part, None) for part in ("query_lengths", "key_value_lengths")]
    length_names = {None if tensor is None else tensor.name for tensor in lengths}
    head_axis = -2 if forms == {"PACKED_NHD"} else -3
    if operation.norm_op.name != "SOFTMAX":
        _refuse(layer, f"attention with {operation.norm_op}")
    if operation.causal:
        _refuse(layer, "causal attention")
    if operation.normalization_quantize_scale is not None:
        _refuse(layer, "attention with quantized probabilities")
    if as_tuple(query.shape)[head_axis] != as_tuple(key.shape)[head_axis]:
        _refuse(layer, "attention with fewer heads of keys than of queries")
    if len(forms) > 1 or len(length_names) > 1:
        _refuse(layer, "attention with queries and keys in different forms or of different lengths")
    parts = [_Input(tensor.name) for tensor in (query, key, value)]
    if head_axis == -2:
        return packed_attention, *parts, _Input(lengths[0].name)
    return attention, *parts, None if operation.mask is None else _Input(operation.mask.name)


def _cast(layer: Any) -> Call:
    return cast, *_Input.all_of(layer), element_type(layer.get_output(0).dtype).torch


def _concatenation(layer: Any) -> Call:
    return concatenation, layer.axis, *_Input.all_of(layer)


def _cumulative(layer: Any) -> Call:
    if layer.op != trt.CumulativeOperation.SUM:
        _refuse(layer, f"CUMULATIVE {layer.op}")
    x, axis = _Input.all_of(layer)
    return cumulative, x, _Input(axis.name, as_number=True), layer.exclusive, layer.reverse


def _value_and_scale(layer: Any) -> list[_Input]:
    """Value and scale of a quantize or dequantize layer; a parsed layer also has a zero point, which must be 0."""
    return _Input.all_of(layer)[:2]


def _quantize(layer: Any) -> Call:
    return quantize, *_value_and_scale(layer), _axis(layer), element_type(layer.get_output(0).dtype).torch


def _dequantize(layer: Any) -> Call:
    return dequantize, *_value_and_scale(layer), _axis(layer), element_type(layer.get_output(0).dtype).torch


def _axis(layer: Any) -> int | None:
    """The axis along which a quantize or dequantize layer has scales; None for one scale."""
    return None if _is_one_scale(layer) else layer.axis


def _is_one_scale(layer: Any) -> bool:
    return int(np.prod(as_tuple(layer.get_input(1).shape))) == 1


def _is_scale_of_columns(layer: Any, product: Any) -> bool:
    """Whether the second operand of a product, (K, N), has a scale for each column, (N,)."""
    rank = len(as_tuple(layer.get_input(0).shape))
    return layer.axis % rank == rank - (2 if product.op1 == trt.MatrixOperation.TRANSPOSE else 1)


def _quantized_product(layer: Any, a: Any, b: Any, int8_kernel: bool) -> Call:
    transposes = (op == trt.MatrixOperation.TRANSPOSE for op in (layer.op0, layer.op1))
    dtype = element_type(layer.get_output(0).dtype).torch
    return quantized_product, *_value_and_scale(a), *_value_and_scale(b), *transposes, dtype, int8_kernel


def _elementwise(layer: Any) -> Call:
    return _choose(ELEMENTWISE, layer, layer.op), *_Input.all_of(layer)


def _optional(layer: Any, index: int, on_host: bool = False) -> _Input | None:
    """An optional input of a layer; None if the layer does not have it."""
    tensor = layer.get_input(index) if index < layer.num_inputs else None
    return None if tensor is None else _Input(tensor.name, on_host)


def _numbers(layer: Any, index: int, fixed: Any) -> Any:
    """The numbers that a layer reads from input ``index``; without that input, the constants ``fixed``, or None."""
    at_run_time = _optional(layer, index, on_host=True)
    return at_run_time or (None if fixed is None else as_tuple(fixed))


def _fill(layer: Any) -> Call:
    if layer.operation != trt.FillOperation.LINSPACE:
        _refuse(layer, f"FILL {layer.operation}")
    start, step = _optional(layer, 1), _optional(layer, 2)
    values = (layer.alpha if start is None else start, layer.beta if step is None else step)
    return linear_fill, _numbers(layer, 0, layer.shape), *values, element_type(layer.get_output(0).dtype).torch


def _gather(layer: Any) -> Call:
    if layer.mode == trt.GatherMode.ELEMENT:
        return gather_elements, *_Input.all_of(layer), layer.axis
    if layer.mode == trt.GatherMode.ND:
        return gather_nd, *_Input.all_of(layer), layer.num_elementwise_dims
    if layer.mode != trt.GatherMode.DEFAULT or layer.num_elementwise_dims:
        _refuse(layer, f"GATHER with {layer.mode} and {layer.num_elementwise_dims} elementwise axes")
    return gather, *_Input.all_of(layer), layer.axis


def _matrix_multiply(layer: Any) -> Call:
    operations = (layer.op0, layer.op1)
    if trt.MatrixOperation.VECTOR in operations:
        _refuse(layer, "MATRIX_MULTIPLY with a VECTOR")
    return matrix_multiply, *_Input.all_of(layer), *(op == trt.MatrixOperation.TRANSPOSE for op in operations)


def _normalization(layer: Any) -> Call:
    if layer.num_groups != 1:
        _refuse(layer, f"NORMALIZATION in {layer.num_groups} groups")
    return normalization, *_Input.all_of(layer), axes_of_mask(layer.axes), layer.epsilon


def _reduce(layer: Any) -> Call:
    if layer.op.name not in REDUCTIONS:
        _refuse(layer, f"REDUCE {layer.op.name}")
    return reduce, *_Input.all_of(layer), layer.op.name, axes_of_mask(layer.axes), layer.keep_dims


def _select(layer: Any) -> Call:
    return select, *_Input.all_of(layer)


def _slice(layer: Any) -> Call:
    if layer.mode == trt.SampleMode.REFLECT:
        _refuse(layer, "SLICE that reflects")
    numbers = (
        _numbers(layer, index, getattr(layer, part)) for index, part in enumerate(("start", "shape", "stride"), 1)
    )
    axes = _numbers(layer, 5, layer.axes)
    return strided_slice, _Input(layer.get_input(0).name), *numbers, axes, layer.mode.name, _optional(layer, 4)


def _shape(layer: Any) -> Call:
    return shape_tensor, *_Input.all_of(layer)


def _shuffle(layer: Any) -> Call:
    x, *target = _Input.all_of(layer)
    first = list(layer.first_transpose)[: len(as_tuple(layer.get_input(0).shape))]
    second = list(layer.second_transpose)[: len(as_tuple(layer.get_output(0).shape))]
    fixed = None if target or layer.reshape_dims is None else as_tuple(layer.reshape_dims)
    at_run_time = _Input(target[0].name, on_host=True) if target else None
    return shuffle, x, at_run_time, first, fixed, second, layer.zero_is_placeholder


def _softmax(layer: Any) -> Call:
    (axis,) = axes_of_mask(layer.axes)
    return softmax, *_Input.all_of(layer), axis


def _squeeze(layer: Any) -> Call:
    return squeeze, _Input(layer.get_input(0).name), _optional(layer, 1, on_host=True)


def _unary(layer: Any) -> Call:
    return _choose(UNARIES, layer, layer.op), *_Input.all_of(layer)


def _unsqueeze(layer: Any) -> Call:
    x, axes = _Input.all_of(layer)
    return unsqueeze, x, _Input(axes.name, on_host=True)


RULES: dict[str, Callable[[Any], Call]] = {
    "ACTIVATION": _activation,
    "ATTENTION_INPUT": _attention,
    "ATTENTION_OUTPUT": _cast,
    "CAST": _cast,
    "CONCATENATION": _concatenation,
    "CUMULATIVE": _cumulative,
    "DEQUANTIZE": _dequantize,
    "ELEMENTWISE": _elementwise,
    "FILL": _fill,
    "GATHER": _gather,
    "IDENTITY": _cast,
    "MATRIX_MULTIPLY": _matrix_multiply,
    "NORMALIZATION": _normalization,
    "QUANTIZE": _quantize,
    "REDUCE": _reduce,
    "SELECT": _select,
    "SHAPE": _shape,
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "SQUEEZE": _squeeze,
    "UNARY": _unary,
    "UNSQUEEZE": _unsqueeze,
}


# --- patterns in the graph --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A place in a pattern that any value takes; the same one wherever the name is the same."""

    name: str


_ANY = object()  # in a pattern, any value


def _find(pattern: Any, value: Any, parts: dict[str, Any]) -> bool:
    """Whether an argument of a graph node is as the pattern says: a tuple (function, *arguments) stands for a node.

    ``parts`` receives the values of the pattern's parts, by name.
    """
    if pattern is _ANY:
        return True
    if isinstance(pattern, _Part):
        return parts.setdefault(pattern.name, value) is value
    if isinstance(value, torch.fx.Node):
        return (
            isinstance(pattern, tuple)
            and value.target is pattern[0]
            and len(value.args) == len(pattern) - 1
            and all(_find(one, argument, parts) for one, argument in zip(pattern[1:], value.args, strict=True))
        )
    return value == pattern


def _mean_of_packed_tokens() -> Any:
    """The pattern of ``PackedLayout.mean_token``: a product with a matrix that says which token is of which sequence,
    and a division by the lengths."""
    bounds = (cast, _Part("cu_seqlens"), torch.float32)

    def column(first: int) -> Any:  # (B, 1): all of cu_seqlens but the last, or but the first
        size = (torch.sub, (shape_tensor, bounds), _ANY)
        sliced = (strided_slice, bounds, (first,), size, (1,), None, "STRICT_BOUNDS", None)
        return (shuffle, sliced, None, [0], (-1, 1), [0, 1], True)

    ones = (cast, (torch.eq, _Part("ids"), _Part("ids")), torch.float32)
    count = (shuffle, (cumulative, ones, 0, False, False), None, [0], (1, -1), [0, 1], True)  # (1, T): 1 to T
    start, end = column(0), column(1)
    after_start, after_end = ((cast, (torch.lt, bound, count), torch.float32) for bound in (start, end))
    total = (matrix_multiply, (torch.sub, after_start, after_end), _Part("x"), False, False)
    return (_divide, total, (torch.sub, end, start))


# --- running ----------------------------------------------------------------------------------------------


class NetworkRunner:
    """Runs a network definition with PyTorch.

    Args:
        network: a strongly typed network, ours or a parsed one; must live as long as the runner.
        device: "cpu" or "cuda".
        outputs: names of the tensors to return; default: the network's outputs.
        contents: the values that TensorRT's API does not expose.
        int8_kernels: run int8 products with a weight with int8 kernels, not in fp32 with the same integers.
        inputs: names of the tensors that ``run`` takes; default: the network's inputs. With other tensors, a part of
            the network runs alone.
        in_fp32: compute in fp32 throughout: weights have their values before rounding and quantization
            (``contents.sources``), nothing is cast or quantized, and plugins run by their references. The network
            then shows its structure without its rounding errors.
        checks_batch: ``run`` checks masks and cu_seqlens; False for networks whose inputs of these names differ.

    Attributes:
        module: the lowered graph (``print(runner.module.code)``), callable with the inputs in order.
        input_names: names of the inputs in order.
        output_names: names of the tensors that a call returns, in order.

    Raises:
        UnsupportedLayerError: the runner does not support a layer.
        UserError: the network has no tensor of a name in ``inputs`` or ``outputs``.
    """

    def __init__(
        self,
        network: trt.INetworkDefinition,
        device: str = "cpu",
        outputs: Sequence[str] | None = None,
        contents: NetworkContents | None = None,
        int8_kernels: bool = False,
        inputs: Sequence[str] | None = None,
        in_fp32: bool = False,
        checks_batch: bool = True,
    ) -> None:
        self.device = torch.device(device)
        self._checks_batch = checks_batch
        types = tensor_types(network)
        self.input_names = list(inputs or (network.get_input(index).name for index in range(network.num_inputs)))
        unknown = [name for name in self.input_names if name not in types]
        if unknown:
            raise UserError(f"the network has no tensor {unknown[0]!r}")
        self._input_types = {name: types[name] for name in self.input_names}
        self.output_names = list(outputs or (network.get_output(index).name for index in range(network.num_outputs)))
        self.module = _Lowering(network, self.device, contents or NetworkContents(), int8_kernels, in_fp32).run(
            self.input_names, self.output_names
        )

    def run(self, inputs: Mapping[str, np.ndarray | torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs once.

        Args:
            inputs: an array or tensor for each input; it is cast to the network's type.

        Returns:
            A tensor for each of ``output_names``, in the network's type, on the runner's device.

        Raises:
            UserError: an input is missing or unknown, or a mask or cu_seqlens is invalid.
        """
        if set(inputs) != set(self.input_names):
            raise UserError(f"inputs given: {sorted(inputs)}; the network has {sorted(self.input_names)}")
        cast = {name: torch.as_tensor(inputs[name]).to(self._input_types[name]) for name in self.input_names}
        # Inputs on a GPU are not checked, since reading them would wait for the GPU.
        if self._checks_batch and not any(tensor.is_cuda for tensor in cast.values()):
            check_batch({name: cast[name].numpy() for name in CHECKED if name in cast})
        arguments = [tensor.to(self.device) for tensor in cast.values()]
        with torch.inference_mode(), _accurate_products():
            return dict(zip(self.output_names, self.module(*arguments), strict=True))

    def use_fast_kernels(self) -> None:
        """Computes layer norms, and products with their bias, by one kernel of PyTorch's each.

        They are a tenth faster on a CPU in fp32. Comparisons do without: there each operation is TensorRT's own.
        """
        faster = {normalization: normalization_kernel, product_with_bias: product_with_bias_kernel}
        for node in self.module.graph.nodes:
            node.target = faster.get(node.target, node.target)
        self.module.recompile()

    def use_sequence_means(self) -> None:
        """Computes the mean of each sequence of a packed batch from its own tokens, in place of the network's product
        of all tokens with a matrix (B, T), which takes longer the more sequences there are. For valid cu_seqlens."""
        pattern, graph = _mean_of_packed_tokens(), self.module.graph
        for node in graph.nodes:
            parts: dict[str, Any] = {}
            if _find(pattern, node, parts):
                node.target, node.args = mean_of_sequences, (parts["x"], parts["cu_seqlens"])
        graph.eliminate_dead_code()
        self.module.recompile()

    def first_not_finite(self, inputs: Mapping[str, np.ndarray | torch.Tensor]) -> str | None:
        """Finds the first layer, in the order of computation, whose result is not finite.

        A layer counts if its result has a NaN, or has an infinity although its inputs are finite: a mask of −inf does
        not count.

        Args:
            inputs: as for ``run``.

        Returns:
            The layer's name and the constants that it reads; None if all values are finite.
        """
        interpreter = _FiniteCheck(self.module)
        arguments = [torch.as_tensor(inputs[name]).to(self._input_types[name]) for name in self.input_names]
        with torch.inference_mode(), _accurate_products():
            interpreter.run(*(tensor.to(self.device) for tensor in arguments))
        return interpreter.first_layer


class _FiniteCheck(torch.fx.Interpreter):
    """Runs a lowered network node by node and remembers the first layer whose result is not finite."""

    first_layer: str | None = None

    def run_node(self, n: torch.fx.Node) -> Any:
        """Runs a node and checks its result."""
        result = super().run_node(n)
        if self.first_layer is None and "layer" in n.meta and _floats(result):
            inputs = itertools.chain(*(_floats(self.env[source]) for source in n.all_input_nodes))
            has_nan = any(tensor.isnan().any() for tensor in _floats(result))
            if has_nan or (not _are_finite(_floats(result)) and _are_finite(inputs)):
                self.first_layer = n.meta["layer"]
        return result


def _floats(value: Any) -> list[torch.Tensor]:
    """The floating-point tensors of a node's result."""
    values = value if isinstance(value, tuple | list) else [value]
    return [tensor for tensor in values if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()]


def _are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    return all(bool(tensor.float().isfinite().all()) for tensor in tensors)


@contextmanager
def _accurate_products() -> Iterator[None]:
    """Within the context, CUDA products of fp16 accumulate in fp32, and fp32 products do not use TF32."""
    backend = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = {name: getattr(backend, name) for name in names}
    try:
        for name in names:
            setattr(backend, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(backend, name, value)
