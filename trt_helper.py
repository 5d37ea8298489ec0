"""TensorRT, one small step above the Python API: assemble a network, build a plan, execute it.

* ``TrtNetworkHelper``: ``addLinear``, ``addSoftmax``, ``addGELU``, ``addLayerNorm`` ... Every layer carries
  the name of the module it stands for, and TensorRT's answer is checked at once.
* ``build_plan``: profile, progress bar, plan written whole or not at all.
* ``InferHelper``: validates a plan, allocates once, executes asynchronously, times.

Networks are strongly typed: fp16 means fp16 weights and tensors, and nothing is cast behind one's back.
Letters in shapes: B batch, S sequence length, H hidden size, N heads, D head size.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import interrupts
import tensorrt_product
from common import UserError, log_console, warn, write_whole
from model_files import LENGTHS_NAME
from options import GELU_KINDS, ONE_SENTENCE, SequenceRange
from packing import check_batch
from tensorrt_product import IS_RTX, trt

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from plugin_layers import PluginLayers

DTYPES = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}
NUMPY_TYPES: dict[trt.DataType, Any] = {
    trt.DataType.FLOAT: np.float32,
    trt.DataType.HALF: np.float16,
    trt.DataType.BF16: ml_dtypes.bfloat16,
    trt.DataType.INT8: np.int8,
    trt.DataType.FP8: ml_dtypes.float8_e4m3fn,
    trt.DataType.INT32: np.int32,
    trt.DataType.INT64: np.int64,
    trt.DataType.BOOL: np.bool_,
}
NARROW_LIMITS = {  # absolute values from here on round to infinity
    trt.DataType.HALF: 65520.0,
    trt.DataType.BF16: (2 - 2**-8) * 2.0**127,
}
QUANTIZED_TYPES = {"int8": trt.DataType.INT8, "fp8": trt.DataType.FP8}
QUANTIZED_MAXIMA = {trt.DataType.INT8: 127.0, trt.DataType.FP8: 448.0}  # largest value of the type; fp8 is E4M3


# --- what TensorRT calls ----------------------------------------------------------------------------------

_failures: list[BaseException] = []  # of methods that TensorRT has called; see ``raise_failure``


def _called_by_tensorrt(answer: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a method that TensorRT calls, from any of its threads.

    The bindings print an exception and go on. So it is kept for ``raise_failure``, TensorRT gets ``answer``, and the
    next step of a build is the last one.
    """

    def decorate(method: Callable[..., Any]) -> Any:
        @functools.wraps(method)
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except BaseException as error:  # raised again by ``raise_failure``
                _failures.append(error)
                return answer

        return call

    return decorate


def raise_failure() -> None:
    """Raises the first exception of a method that TensorRT called; to be called when TensorRT has returned."""
    if _failures:
        first = _failures[0]
        _failures.clear()
        raise first


# --- what TensorRT says -----------------------------------------------------------------------------------


class _ProcessLogger(trt.ILogger):
    """The one logger that TensorRT is ever given.

    TensorRT keeps the first logger of a process for good, for itself and for plugins, and calls it after the
    builder that it came with is gone: a logger of its own for every build ends in a crash.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.listener: TrtLog | None = None

    @_called_by_tensorrt()
    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if self.listener is not None:
            self.listener.hear(severity, msg)


LOGGER = _ProcessLogger()


class TrtLog:
    """What TensorRT says from now on, until another TrtLog is made: what runs inside somebody's job should take
    ``TrtLog.current``. Keeps errors, so that an exception can carry TensorRT's own message.

    Args:
        verbose_file: where every message is written as a line; None keeps errors only.
    """

    NO_GPU_NOISE = "CUDA driver version is insufficient"  # said beside other errors where there is no GPU

    def __init__(self, verbose_file: IO[bytes] | None = None) -> None:
        self.verbose_file = verbose_file
        self.errors: list[str] = []
        LOGGER.listener = self
        _failures.clear()  # of work that has ended

    @staticmethod
    def current() -> TrtLog:
        """The log that is listening, so that a verbose log goes on; a new one where none is."""
        return LOGGER.listener or TrtLog()

    def hear(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Takes one message."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(msg.strip())
        if self.verbose_file is not None and not self.verbose_file.closed:
            try:
                self.verbose_file.write(f"[{str(severity).rpartition('.')[2]}] {msg}\n".encode())
            except OSError as error:
                name, self.verbose_file = self.verbose_file.name, None
                raise UserError(
                    f"cannot write the log {name}: {error.strerror or error}; build without --verbose"
                ) from error

    def take_errors(self) -> str:
        """The errors since the last call as one string, without those that only say that there is no GPU."""
        told = [message for message in self.errors if self.NO_GPU_NOISE not in message] or self.errors
        self.errors = []
        return " | ".join(dict.fromkeys(told)) or "TensorRT gave no message"


class LayerError(UserError):
    """TensorRT refused a layer; the message has its name, the shapes and types of its inputs, and why."""


def as_tuple(dims: Any) -> tuple[int, ...]:
    """TensorRT's shape as a tuple."""
    return tuple(dims)


def shape_of(tensor: trt.ITensor) -> tuple[int, ...] | None:
    """The tensor's shape, -1 where dynamic; None if TensorRT could not work it out."""
    try:
        return as_tuple(tensor.shape)
    except (RuntimeError, ValueError):  # rtx raises; the full product returns a shape of negative length
        return None


def describe_tensor(tensor: trt.ITensor) -> str:
    """Name, type and shape in one string."""
    shape = shape_of(tensor)
    return f"{tensor.name} {tensor.dtype.name} {list(shape) if shape is not None else 'of no valid shape'}"


# --- the network ------------------------------------------------------------------------------------------


class TrtNetworkHelper:
    """Adds the layers that BERT needs to a strongly typed network.

    Every method names its layer ``name`` and returns its output tensor, which carries the same name.

    Args:
        network: the network to add to.
        log: the logger that the network's builder uses.
        dtype: type of weights and tensors (``DTYPES``); layer norm and softmax compute in fp32 regardless.
        plugins: the plugin layers that the network will hold, if any.
    """

    def __init__(
        self,
        network: trt.INetworkDefinition,
        log: TrtLog,
        dtype: trt.DataType = trt.DataType.FLOAT,
        plugins: PluginLayers | None = None,
    ) -> None:
        self.network = network
        self.log = log
        self.dtype = dtype
        self.plugins = plugins
        self.quantized_products = 0  # products of two quantized factors
        self.gelu_parts: list[str] = []  # names of the layers that addGELU("decomposed") made
        self.weights: dict[str, np.ndarray] = {}  # TensorRT reads them when it builds: they must live until then
        self.sources: dict[str, np.ndarray] = {}  # what they were rounded or quantized from, see network_proof.py
        self._converted: dict[Any, tuple[np.ndarray, np.ndarray]] = {}  # so that tied weights are stored once
        self._ranged: dict[tuple[str, trt.DataType], trt.ITensor] = {}  # quantized and dequantized tensors

    # inputs and outputs

    def addInput(self, name: str, dtype: trt.DataType, shape: Sequence[int]) -> trt.ITensor:
        """A network input; -1 marks a dynamic axis."""
        tensor = self.network.add_input(name, dtype, trt.Dims(list(shape)))
        if tensor is None:
            raise LayerError(f"input {name!r} {dtype.name} {list(shape)} refused: {self.log.take_errors()}")
        return tensor

    def markOutput(self, tensor: trt.ITensor, name: str) -> trt.ITensor:
        """Makes ``tensor`` a network output called ``name``, always fp32."""
        if tensor.dtype != trt.DataType.FLOAT:
            tensor = self.addCast(tensor, trt.DataType.FLOAT, name)
        tensor.name = name
        self.network.mark_output(tensor)
        return tensor

    # weights

    def addConstant(
        self,
        values: np.ndarray,
        name: str,
        dtype: trt.DataType | None = None,
        shape: Sequence[int] | None = None,
    ) -> trt.ITensor:
        """A constant of the helper's type, or of ``dtype``.

        Args:
            values: any shape; a float that does not fit the type is an error.
            name: the parameter's name.
            dtype: type to store; default: the helper's.
            shape: shape to give it, as many elements as ``values``; default: its own.
        """
        dtype = dtype or self.dtype
        source = (values.ctypes.data, values.shape, values.strides, dtype)
        if source not in self._converted:
            converted = np.ascontiguousarray(convert_weight(values, dtype, name))
            self._converted[source] = (values, converted)  # values too: its address must not be used again
        stored = self.weights[name] = self._converted[source][1]
        self.sources[name] = values
        weights = trt.Weights(dtype, stored.ctypes.data, stored.size)
        layer = self.network.add_constant(trt.Dims(list(stored.shape if shape is None else shape)), weights)
        return self._finish(layer, name, [])

    # matrix products

    def addMatMul(
        self, a: trt.ITensor, b: trt.ITensor, name: str, transpose_a: bool = False, transpose_b: bool = False
    ) -> trt.ITensor:
        """a @ b over the last two axes: (..., M, K) and (..., K, N) -> (..., M, N); leading axes broadcast."""
        op = {False: trt.MatrixOperation.NONE, True: trt.MatrixOperation.TRANSPOSE}
        layer = self.network.add_matrix_multiply(a, op[transpose_a], b, op[transpose_b])
        return self._finish(layer, name, [a, b])

    def addLinear(
        self,
        x: trt.ITensor,
        weight: np.ndarray,
        bias: np.ndarray | None,
        name: str,
        quantized: trt.DataType | None = None,
    ) -> trt.ITensor:
        """x @ weight + bias.

        Args:
            x: (..., in); for a quantized product what ``addQuantizedRange`` returned.
            weight: (in, out), as ONNX's MatMul has it: the transpose of PyTorch's ``Linear.weight``.
            bias: (out,); None where a fused layer adds it.
            name: the module's name.
            quantized: the type of a quantized product (``QUANTIZED_TYPES``): the weight is stored in it, one byte an
                element, with a scale for each output channel.

        Returns:
            (..., out).
        """
        if quantized is None:
            w = self.addConstant(weight, f"{name}.weight", shape=_as_rank(weight.shape, x))  # (1 ..., in, out)
        else:
            w = self._addQuantizedWeight(x, weight, f"{name}.weight", quantized)
        if bias is None:
            return self.addMatMul(x, w, name)
        product = self.addMatMul(x, w, f"{name}.product")  # (..., out)
        return self.addBias(product, bias, name)

    def _addQuantizedWeight(self, x: trt.ITensor, weight: np.ndarray, name: str, dtype: trt.DataType) -> trt.ITensor:
        self.quantized_products += 1
        values, scales = quantize_weight(weight, dtype, name)
        stored = self.addConstant(values, name, dtype, _as_rank(values.shape, x))  # (1 ..., in, out)
        self.sources[name] = weight
        return self.addDequantize(stored, scales, f"{name}.dequantized", axis=len(x.shape) - 1)

    # quantization: explicit, symmetric

    def addQuantize(
        self, x: trt.ITensor, scale: float | np.ndarray, name: str, dtype: trt.DataType, axis: int | None = None
    ) -> trt.ITensor:
        """x / scale, rounded half to even and saturated: to int8 [-128, 127], or to fp8 (E4M3) [-448, 448].

        Args:
            x: any shape.
            scale: one number, or with ``axis`` one for each slice along it.
            name: the layer's name.
            dtype: one of ``QUANTIZED_TYPES``.
            axis: see ``scale``.
        """
        scales = self._scales(scale, f"{name}.scale")
        layer = self.network.add_quantize(x, scales, dtype)
        if layer is not None and axis is not None:
            layer.axis = axis
        return self._finish(layer, name, [x, scales])

    def addDequantize(
        self, q: trt.ITensor, scale: float | np.ndarray, name: str, axis: int | None = None
    ) -> trt.ITensor:
        """q · scale in the helper's type; arguments as for ``addQuantize``."""
        scales = self._scales(scale, f"{name}.scale")
        layer = self.network.add_dequantize(q, scales, self.dtype)
        if layer is not None and axis is not None:
            layer.axis = axis
        return self._finish(layer, name, [q, scales])

    def addQuantizedRange(self, x: trt.ITensor, largest: float, dtype: trt.DataType) -> trt.ITensor:
        """x quantized, ``largest`` becoming the type's largest value, and dequantized: TensorRT runs a product of two
        such tensors in ``dtype``. Made once for each tensor, however many products read it."""
        key = (x.name, dtype)
        if key not in self._ranged:
            scale = largest / QUANTIZED_MAXIMA[dtype]
            q = self.addQuantize(x, scale, f"{x.name}.quantized", dtype)
            self._ranged[key] = self.addDequantize(q, scale, f"{x.name}.dequantized")
        return self._ranged[key]

    def _scales(self, scale: float | np.ndarray, name: str) -> trt.ITensor:
        """Scales are fp32 whatever the network's type: those of small weights would lose digits in fp16."""
        values = np.asarray(scale, np.float32)
        return self.addConstant(values, name, trt.DataType.FLOAT, values.shape)

    def addBias(self, x: trt.ITensor, bias: np.ndarray, name: str) -> trt.ITensor:
        """x + bias along the last axis: (..., H) and (H,)."""
        return self.addAdd(x, self.addConstant(bias, f"{name}.bias", shape=_as_rank(bias.shape, x)), name)

    # lookups

    def addEmbedding(self, indices: trt.ITensor, table: trt.ITensor, name: str) -> trt.ITensor:
        """Rows of a table: indices (...) and table (rows, H) -> (..., H)."""
        return self._finish(self.network.add_gather(table, indices, 0), name, [table, indices])

    # activations

    def addGELU(self, x: trt.ITensor, name: str, kind: str = "erf") -> trt.ITensor:
        """Gaussian error linear unit, x · Φ(x) (Hendrycks & Gimpel, arXiv:1606.08415).

        Args:
            x: any shape.
            name: the module's name.
            kind: ``erf``: Φ by the error function, what BERT uses; ``tanh``: the paper's approximation, which
                GPT-2 uses; ``decomposed``: the same as ``erf``, from elementary layers.
        """
        if kind == "decomposed":
            return self._addDecomposedGELU(x, name)
        kinds = {"erf": trt.ActivationType.GELU_ERF, "tanh": trt.ActivationType.GELU_TANH}
        if kind not in kinds:
            raise ValueError(f"GELU kind {kind!r}; expected one of {', '.join(GELU_KINDS)}")
        return self._finish(self.network.add_activation(x, kinds[kind]), name, [x])

    def _addDecomposedGELU(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """x/2 · (1 + erf(x / √2)), each operation a layer of its own."""
        scaled = self.addScale(x, 1 / math.sqrt(2), f"{name}.gelu_scale")
        erf = self._unary(scaled, trt.UnaryOperation.ERF, f"{name}.gelu_erf")
        shifted = self.addShift(erf, 1.0, f"{name}.gelu_add")
        half = self.addScale(x, 0.5, f"{name}.gelu_half")
        product = self._elementwise(half, shifted, trt.ElementWiseOperation.PROD, name)
        self.gelu_parts += [scaled.name, erf.name, shifted.name, half.name, product.name]
        return product

    def addReLU(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """max(x, 0)."""
        return self._finish(self.network.add_activation(x, trt.ActivationType.RELU), name, [x])

    def addTanh(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """Hyperbolic tangent."""
        return self._finish(self.network.add_activation(x, trt.ActivationType.TANH), name, [x])

    def addLog(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """Natural logarithm."""
        return self._unary(x, trt.UnaryOperation.LOG, name)

    def addSoftmax(self, x: trt.ITensor, name: str, axis: int = -1, bias: trt.ITensor | None = None) -> trt.ITensor:
        """Softmax along ``axis``, computed in fp32, returned in x's type.

        In fp16 the sum of exponentials over a long sequence would lose most of its digits.

        Args:
            x: any shape.
            name: the module's name.
            axis: where the results sum to 1.
            bias: fp32, added to x before; broadcasts. An attention mask: 0, or very negative where nothing may be
                looked at.
        """
        wide = self.addCast(x, trt.DataType.FLOAT, f"{name}.wide")
        if bias is not None:
            wide = self.addAdd(wide, bias, f"{name}.masked")
        layer = self.network.add_softmax(wide)
        if layer is not None:
            layer.axes = 1 << (axis % len(x.shape))
        narrow = x.dtype != trt.DataType.FLOAT
        probabilities = self._finish(layer, f"{name}.fp32" if narrow else name, [wide])
        return self.addCast(probabilities, x.dtype, name)

    def addAttention(
        self,
        query: trt.ITensor,
        key: trt.ITensor,
        value: trt.ITensor,
        name: str,
        mask: trt.ITensor | None = None,
        cu_seqlens: trt.ITensor | None = None,
    ) -> trt.ITensor:
        """softmax(query · keyᵀ) · value for each head, by TensorRT's own attention: one kernel where it has one.

        TensorRT does not scale the scores: the query comes divided by √D.

        Args:
            query: padded (B, N, S, D), or packed (T, N, D): all sequences one after another.
            key: likewise.
            value: likewise.
            name: the module's name.
            mask: of a padded batch: bool (B, N, S, S), B and N may be 1; true where the query may look at the key.
            cu_seqlens: of a packed batch: int32 (B + 1,), where each sequence begins, and T. See
                ``has_packed_attention``.

        Returns:
            As the query.

        Raises:
            UserError: the installed TensorRT has no attention, or none in packed form.
            LayerError: TensorRT refuses the inputs.
        """
        check_attention()
        network: Any = self.network
        newer: Any = trt  # TensorRT 10.13, whose types are checked, has none of this
        inputs, softmax = [query, key, value], newer.AttentionNormalizationOp.SOFTMAX
        if hasattr(network, "add_attention_v2"):
            attention = network.add_attention_v2(*inputs, softmax, newer.CausalMaskKind.NONE)
        else:  # TensorRT 10.14 to 10.16
            attention = network.add_attention(*inputs, softmax, causal=False)
        if attention is None:
            return self._finish(None, name, inputs)
        # TensorRT takes a fused kernel if it has one for the type, the head size and the GPU; the plan is then the
        # same byte for byte. Without this permission it refuses the rest, fp32 for one.
        attention.decomposable = True
        if mask is not None:
            attention.mask = mask
            inputs.append(mask)
        if cu_seqlens is not None:
            self._pack_attention(attention, cu_seqlens, name)
            inputs.append(cu_seqlens)
        return self._finish(attention, name, inputs)

    def _pack_attention(self, attention: Any, cu_seqlens: trt.ITensor, name: str) -> None:
        """Says that an attention's inputs are (T, N, D)."""
        if not hasattr(attention, "query_form"):
            raise UserError(
                f"{tensorrt_product.describe()} has no attention in packed form; TensorRT has it from 11.0 on"
            )
        newer: Any = trt
        attention.query_form = attention.key_value_form = newer.AttentionIOForm.PACKED_NHD
        try:
            attention.query_lengths = attention.key_value_lengths = cu_seqlens
        except RuntimeError as error:
            told = self.log.take_errors()
            raise LayerError(f"layer {name!r} refuses {describe_tensor(cu_seqlens)}. TensorRT: {told}") from error

    # normalisation

    def addLayerNorm(
        self,
        x: trt.ITensor,
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float,
        name: str,
        kernel: str = "native",
    ) -> trt.ITensor:
        """(x − mean) / √(variance + epsilon) · gamma + beta over the last axis (Ba et al., arXiv:1607.06450).

        Statistics are computed in fp32 whatever the type: squares of fp16 values overflow from 256 on.

        Args:
            x: (..., H), the helper's type or fp32.
            gamma: (H,).
            beta: (H,).
            epsilon: BERT: 1e-12.
            name: the module's name.
            kernel: ``native``: TensorRT's own layer; ``basic``, ``fused`` or ``fast``: that kernel of the LayerNorm
                plugin, which must have been planned under this name.

        Returns:
            (..., H) in the helper's type.
        """
        if kernel != "native":
            return self._addLayerNormPlugin(x, gamma, beta, name)
        wide = self.addCast(x, trt.DataType.FLOAT, f"{name}.wide")
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT, _as_rank(gamma.shape, x))
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT, _as_rank(beta.shape, x))
        network: Any = self.network
        # The first is deprecated since TensorRT 10.15 in favour of v2, which 10.13 does not have. For a layer norm
        # they are the same; only the shapes of group norm differ.
        has_v2 = hasattr(network, "add_normalization_v2")
        add_normalization = network.add_normalization_v2 if has_v2 else network.add_normalization
        layer = add_normalization(wide, scale, shift, 1 << (len(x.shape) - 1))
        if layer is not None:
            layer.epsilon = epsilon
        narrow = self.dtype != trt.DataType.FLOAT
        y = self._finish(layer, f"{name}.fp32" if narrow else name, [wide, scale, shift])
        return self.addCast(y, self.dtype, name)

    def _addLayerNormPlugin(self, x: trt.ITensor, gamma: np.ndarray, beta: np.ndarray, name: str) -> trt.ITensor:
        """The plugin reads and writes the helper's type; gamma and beta stay fp32."""
        narrow = self.addCast(x, self.dtype, f"{name}.narrow")
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT)
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT)
        return self.addPlugin(name, [narrow, scale, shift])

    def addSkipLayerNorm(
        self,
        x: trt.ITensor,
        skip: trt.ITensor,
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float,
        name: str,
        bias: np.ndarray | None = None,
    ) -> tuple[trt.ITensor, ...]:
        """LN(x + skip + bias) by the SkipLayerNorm plugin, which must have been planned under this name.

        The sum is fp32 inside the kernel: in fp16 it would be the first to overflow in a trained BERT.

        Args:
            x: (..., H), the helper's type, or int8 if it was planned so.
            skip: (..., H), likewise.
            gamma: (H,).
            beta: (H,).
            epsilon: that of the planned layer.
            name: the module's name.
            bias: (H,), of the linear layer that made x, or None.

        Returns:
            The planned outputs, each (..., H).
        """
        self._check_planned(name, epsilon)
        inputs = [self._narrow(x, f"{name}.x"), self._narrow(skip, f"{name}.skip")]
        parameters = (("weight", gamma), ("bias", beta), ("linear_bias", bias))
        inputs += [
            self.addConstant(values, f"{name}.{part}", trt.DataType.FLOAT)
            for part, values in parameters
            if values is not None
        ]
        return self.addPluginOutputs(name, inputs)

    def addEmbLayerNorm(
        self,
        ids: Sequence[trt.ITensor],
        tables: Sequence[trt.ITensor],
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float,
        name: str,
    ) -> trt.ITensor:
        """LN(word + position + type) by the EmbLayerNorm plugin, which must have been planned under this name.

        Args:
            ids: input_ids, token_type_ids and position_ids, int32 (...). An id outside its table makes its row NaN.
            tables: of words (V, H), positions (P, H) and token types (Y, H), in the helper's type.
            gamma: (H,).
            beta: (H,).
            epsilon: that of the planned layer.
            name: the module's name.

        Returns:
            (..., H) in the helper's type.
        """
        self._check_planned(name, epsilon)
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT)
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT)
        return self.addPlugin(name, [*ids, *tables, scale, shift])

    def addFusedLinear(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray | None, name: str, layer: str
    ) -> trt.ITensor:
        """activation(x @ weight + bias) by the Linear plugin, which must have been planned with or without a bias.

        Args:
            x: (..., in) in the helper's type, fp16 or bf16.
            weight: (in, out).
            bias: (out,), or None.
            name: the module's name, for its parameters.
            layer: that of the planned layer, which may be called after the activation.

        Returns:
            (..., out).
        """
        inputs = [x, self.addConstant(weight.T, f"{name}.weight")]  # (out, in), as the plugin reads it
        if bias is not None:
            inputs.append(self.addConstant(bias, f"{name}.bias"))
        return self.addPlugin(layer, inputs)

    def _narrow(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """x in the helper's type, or as it is if it is int8."""
        return x if x.dtype == trt.DataType.INT8 else self.addCast(x, self.dtype, name)

    def _check_planned(self, name: str, epsilon: float) -> None:
        """The plugin's fields were fixed when it was planned."""
        if self.plugins is not None and name in self.plugins.planned:
            planned = self.plugins.planned[name].fields["epsilon"]
            if planned != epsilon:
                raise ValueError(f"plugin layer {name!r} was planned with epsilon {planned}, not {epsilon}")

    def addPlugin(self, name: str, inputs: Sequence[trt.ITensor]) -> trt.ITensor:
        """The planned plugin layer ``name`` (see plugin_layers.py), which has one output."""
        (output,) = self.addPluginOutputs(name, inputs)
        return output

    def addPluginOutputs(self, name: str, inputs: Sequence[trt.ITensor]) -> tuple[trt.ITensor, ...]:
        """The planned plugin layer ``name``: its outputs, called ``name``, ``name.1`` and so on."""
        if self.plugins is None or name not in self.plugins.planned:
            raise ValueError(f"no plugin layer {name!r} was planned for this network")
        layer = self.plugins.place(name, inputs)
        outputs = [self._finish(layer, name, inputs)]
        assert layer is not None  # _finish has raised
        for place in range(1, layer.num_outputs):
            outputs.append(layer.get_output(place))
            outputs[place].name = f"{name}.{place}"
        return tuple(outputs)

    # arithmetic

    def addAdd(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a + b; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.SUM, name)

    def addScale(self, x: trt.ITensor, factor: float, name: str) -> trt.ITensor:
        """factor · x."""
        scalar = self._scalar(factor, x, f"{name}.factor")
        return self._elementwise(x, scalar, trt.ElementWiseOperation.PROD, name)

    def addChannelScale(self, x: trt.ITensor, factors: np.ndarray, name: str) -> trt.ITensor:
        """factors · x along the last axis: (..., H) and (H,)."""
        channels = self.addConstant(factors, f"{name}.factors", x.dtype, _as_rank(factors.shape, x))
        return self._elementwise(x, channels, trt.ElementWiseOperation.PROD, name)

    def addShift(self, x: trt.ITensor, summand: float, name: str) -> trt.ITensor:
        """x + summand."""
        return self.addAdd(x, self._scalar(summand, x, f"{name}.summand"), name)

    def addLess(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """Whether a < b, as booleans; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.LESS, name)

    def addEqual(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """Whether a = b, as booleans; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.EQUAL, name)

    def addSum(self, x: trt.ITensor, axis: int, name: str) -> trt.ITensor:
        """The sum along one axis, which goes away."""
        layer = self.network.add_reduce(x, trt.ReduceOperation.SUM, 1 << axis, keep_dims=False)
        return self._finish(layer, name, [x])

    def addRunningSum(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The sum of all elements up to each one, itself included, along the first axis."""
        axis = self.addConstant(np.zeros((), np.int32), f"{name}.axis", trt.DataType.INT32, ())
        layer = self.network.add_cumulative(x, axis, trt.CumulativeOperation.SUM, exclusive=False, reverse=False)
        return self._finish(layer, name, [x])

    # types and shapes

    def addCast(self, x: trt.ITensor, dtype: trt.DataType, name: str) -> trt.ITensor:
        """x in another type; x itself if it has that type already."""
        if x.dtype == dtype:
            return x
        return self._finish(self.network.add_cast(x, dtype), name, [x])

    def addReshape(self, x: trt.ITensor, shape: Sequence[int], name: str) -> trt.ITensor:
        """x in another shape; 0 keeps the axis of x in that place, one -1 is worked out."""
        return self.addShuffle(x, name, shape=shape)

    def addShuffle(
        self,
        x: trt.ITensor,
        name: str,
        first_transpose: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        second_transpose: Sequence[int] | None = None,
    ) -> trt.ITensor:
        """Transpose, reshape and transpose again, each optional, in one layer."""
        layer = self.network.add_shuffle(x)
        if layer is not None:
            if first_transpose is not None:
                layer.first_transpose = trt.Permutation(list(first_transpose))
            if shape is not None:
                layer.reshape_dims = trt.Dims(list(shape))
            if second_transpose is not None:
                layer.second_transpose = trt.Permutation(list(second_transpose))
        return self._finish(layer, name, [x])

    # what every method above goes through

    def _elementwise(
        self, a: trt.ITensor, b: trt.ITensor, operation: trt.ElementWiseOperation, name: str
    ) -> trt.ITensor:
        return self._finish(self.network.add_elementwise(a, b, operation), name, [a, b])

    def _unary(self, x: trt.ITensor, operation: trt.UnaryOperation, name: str) -> trt.ITensor:
        return self._finish(self.network.add_unary(x, operation), name, [x])

    def _scalar(self, value: float, like: trt.ITensor, name: str) -> trt.ITensor:
        """A constant of x's type that broadcasts over x."""
        return self.addConstant(np.full((1,) * len(like.shape), value, np.float32), name, like.dtype)

    def _finish(self, layer: trt.ILayer | None, name: str, inputs: Sequence[trt.ITensor]) -> trt.ITensor:
        """Names the layer and its output and checks that TensorRT accepts it.

        Raises:
            LayerError: it does not.
        """
        given = "; ".join(describe_tensor(tensor) for tensor in inputs) or "none"
        if layer is None:
            raise LayerError(f"layer {name!r} refused. Inputs: {given}. TensorRT: {self.log.take_errors()}")
        layer.name = name
        output = layer.get_output(0)
        if shape_of(output) is None:  # this is where TensorRT checks shapes and types
            raise LayerError(f"layer {name!r} is wrong. Inputs: {given}. TensorRT: {self.log.take_errors()}")
        output.name = name
        return output


def check_attention() -> None:
    """Checks that the installed TensorRT has an attention layer of its own.

    Raises:
        UserError: it has none; the message names the first version that has.
    """
    if not hasattr(trt.INetworkDefinition, "add_attention"):
        raise UserError(
            f"{tensorrt_product.describe()} has no attention layer of its own (add_attention): TensorRT has it from "
            "10.14 on, TensorRT for RTX in 1.7.1; install a newer one, or build with --fusion none or plugins"
        )


def has_packed_attention(dtype: trt.DataType) -> bool:
    """Whether TensorRT can run its attention on a packed batch: in fp16 and bf16, the full product from 11.0 on.

    There is no decomposition of it, so that a fused kernel must exist. RTX 1.7.1 takes such a layer and then finds no
    kernel for any of its GPUs and types.
    """
    return not IS_RTX and dtype != trt.DataType.FLOAT and hasattr(getattr(trt, "IAttention", None), "query_form")


def _as_rank(shape: Sequence[int], like: trt.ITensor) -> tuple[int, ...]:
    """``shape`` with axes of length 1 in front, as many axes as ``like`` has: TensorRT broadcasts no other way."""
    return (1,) * (len(like.shape) - len(shape)) + tuple(shape)


def convert_weight(values: np.ndarray, dtype: trt.DataType, name: str) -> np.ndarray:
    """``values`` in the NumPy type that belongs to ``dtype``; the same array if it has it already.

    Raises:
        UserError: a finite value becomes infinite, as 70000 does in fp16, or is not finite to begin with.
    """
    target = np.dtype(NUMPY_TYPES[dtype])
    if np.issubdtype(values.dtype, np.floating):
        largest = float(max(-values.min(initial=0), values.max(initial=0)))  # NaN if there is one
        if not math.isfinite(largest):
            raise UserError(f"weight {name!r} has values that are not finite; the checkpoint is damaged")
        if dtype in NARROW_LIMITS and largest >= NARROW_LIMITS[dtype]:
            raise UserError(
                f"weight {name!r} has the value {largest:.6g}, beyond the largest of {dtype.name} "
                f"({float(ml_dtypes.finfo(target).max):.6g}); build with --precision bf16 or fp32"
            )
    return values.astype(target, copy=False)


def quantize_weight(values: np.ndarray, dtype: trt.DataType, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A weight in one byte an element, symmetric, each output channel with its own scale.

    Args:
        values: (in, out).
        dtype: one of ``QUANTIZED_TYPES``.
        name: for the error.

    Returns:
        The quantized weight (in, out), and the scales, float32 (out,): values ≈ weight · scales.

    Raises:
        UserError: the weight has values that are not finite.
    """
    wide = convert_weight(values, trt.DataType.FLOAT, name)
    largest = np.abs(wide).max(axis=0)  # (out,)
    scales = (largest / np.float32(QUANTIZED_MAXIMA[dtype])).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1  # a channel of zeros, or of values that no fp32 scale can hold
    scaled = wide / scales
    target = NUMPY_TYPES[dtype]
    return (np.rint(scaled) if target is np.int8 else scaled).astype(target), scales


# --- building ---------------------------------------------------------------------------------------------


def profile_shapes(name: str, shape: Sequence[int], seq_len: SequenceRange, batch: SequenceRange) -> list[list[int]]:
    """[minimum, optimum, maximum] of an input's shape: the last dynamic axis is the length, one before it the batch.

    Args:
        name: the input's name.
        shape: of the network's input: (1, -1) for one sentence, (-1, -1) for a padded batch, (-1,) for a packed one.
        seq_len: sequence lengths.
        batch: sentences in a batch.
    """
    pairs = list(zip(batch.as_tuple(), seq_len.as_tuple(), strict=True))
    if name == LENGTHS_NAME:
        return [[sentences + 1] for sentences, _ in pairs]
    if len(shape) == 1:
        return [[sentences * length] for sentences, length in pairs]
    last = max((axis for axis, size in enumerate(shape) if size == -1), default=-1)
    return [
        [size if size != -1 else length if axis == last else sentences for axis, size in enumerate(shape)]
        for sentences, length in pairs
    ]


@dataclass(frozen=True)
class PlanInfo:
    """What stands beside a plan in ``PLAN.json``: enough to say, without a GPU, whether it can be used."""

    product: str
    version: str
    compute_capabilities: list[str]  # empty: those that the product chooses
    crc32: int
    num_bytes: int
    profile: dict[str, list[list[int]]]  # input name -> [minimum, optimum, maximum] shape
    num_layers: int
    seconds_build: float
    plugin_library: str  # file name of the library whose plugins the plan uses; "" without plugins
    plugins_embedded: bool  # the plan holds that library


@dataclass
class BuildOptions:
    """How to build a plan."""

    seq_len: SequenceRange
    batch: SequenceRange = ONE_SENTENCE
    allow_tf32: bool = False  # fp32 products on tensor cores, with 10 bits of mantissa
    compute_capabilities: list[str] = field(default_factory=list)  # "8.6", rtx only
    timing_cache: Path | None = None  # full product only
    plugin_library: Path | None = None  # where the network's plugins come from
    embed_plugins: bool = True  # put that library into the plan, which then loads where it is not installed
    profile: dict[str, list[list[int]]] | None = None  # shapes by input; None: those of ``profile_shapes``


@interrupts.uninterrupted()
def create_builder(log: TrtLog) -> tuple[trt.Builder, trt.INetworkDefinition]:
    """A builder and an empty, strongly typed network.

    Raises:
        UserError: TensorRT cannot start, as the full product on a machine without a GPU.
    """
    try:
        builder = trt.Builder(LOGGER)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    except (RuntimeError, TypeError) as error:  # pybind's answer to a null pointer is a TypeError
        raise UserError(
            f"{tensorrt_product.describe()} cannot create a builder: {log.take_errors()}. The full tensorrt needs "
            "an NVIDIA GPU; tensorrt_rtx builds without one (pip install -r requirements.txt)"
        ) from error
    return builder, network


def parse_onnx(parser: trt.OnnxParser, model: bytes, path: Path, log: TrtLog) -> None:
    """Parses an ONNX model into the parser's network.

    Args:
        parser: of an empty network; owns the weights that it reads.
        model: the serialized model.
        path: says where weights outside the model lie.
        log: the logger of the network's builder.

    Raises:
        UserError: the parser refuses the model; the message carries its own words.
    """
    with interrupts.uninterrupted():
        # The path as bytes, since it need not be valid UTF-8.
        parsed = parser.parse(model, os.fsencode(path))  # pyright: ignore[reportArgumentType]
    if not parsed:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in errors)
        raise UserError(f"the ONNX parser refuses {path}: {told or log.take_errors()}")


def build_plan(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    log: TrtLog,
    options: BuildOptions,
    path: Path,
    weights_read: AbstractContextManager[None] | None = None,
) -> PlanInfo:
    """Builds the network and writes the plan to ``path`` and what it is to ``path``.json.

    Args:
        builder: the network's builder.
        network: the network, its outputs marked.
        log: the builder's logger.
        options: profile, targets, caches.
        path: the plan file.
        weights_read: entered while TensorRT reads the weights.

    Raises:
        UserError: TensorRT refuses the network or the options, or the file cannot be written.
    """
    config = builder.create_builder_config()
    profile = add_profile(builder, network, config, options)
    if not options.allow_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    set_compute_capabilities(config, options.compute_capabilities)
    if options.plugin_library is not None and options.embed_plugins:
        library = os.fsencode(options.plugin_library)  # bytes, since a path need not be valid UTF-8
        config.plugins_to_serialize = [library]  # pyright: ignore[reportAttributeAccessIssue]
    start = time.perf_counter()
    with write_whole(path) as file:
        with (
            timing_cache(config, options.timing_cache),
            build_progress(config) as monitor,
            weights_read or nullcontext(),
        ):
            checksum, size = _build_to_file(builder, network, config, log, path, file, monitor)
        info = PlanInfo(
            product=tensorrt_product.PRODUCT,
            version=tensorrt_product.VERSION,
            compute_capabilities=options.compute_capabilities,
            crc32=checksum,
            num_bytes=size,
            profile=profile,
            num_layers=network.num_layers,
            seconds_build=time.perf_counter() - start,
            plugin_library=options.plugin_library.name if options.plugin_library else "",
            plugins_embedded=options.plugin_library is not None and options.embed_plugins,
        )
        with write_whole(info_path(path)) as description:  # while the plan is not in its place: both are, or neither
            description.write(json.dumps(asdict(info), indent=2).encode())
    return info


def info_path(plan: Path) -> Path:
    """Where the description of a plan lies."""
    return plan.with_name(plan.name + ".json")


def add_profile(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    options: BuildOptions,
) -> dict[str, list[list[int]]]:
    """Gives every dynamic axis of every input its range. Returns the shapes by input."""
    profile = builder.create_optimization_profile()
    shapes: dict[str, list[list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes[tensor.name] = (
            profile_shapes(tensor.name, as_tuple(tensor.shape), options.seq_len, options.batch)
            if options.profile is None
            else options.profile[tensor.name]
        )
        profile.set_shape(tensor.name, *(trt.Dims(shape) for shape in shapes[tensor.name]))
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"TensorRT refused the profile {shapes}")
    return shapes


def set_compute_capabilities(config: trt.IBuilderConfig, capabilities: Sequence[str]) -> None:
    """Targets the given GPUs, e.g. ``["8.6", "8.9"]``; an empty list leaves the choice to TensorRT.

    Raises:
        UserError: the product builds only for the GPU it runs on, or does not know one of them.
    """
    if not capabilities:
        return
    if not IS_RTX:
        raise UserError(
            f"--compute-capability: {tensorrt_product.describe()} builds for the GPU of this machine only; "
            "leave the option out, or install tensorrt_rtx and set BERT_TENSORRT_PRODUCT=tensorrt_rtx"
        )
    rtx_config: Any = config  # these attributes are not in the full product's types
    known = getattr(trt, "ComputeCapability").__members__  # noqa: B009
    rtx_config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = "SM" + capability.replace(".", "")
        if name not in known:
            supported = ", ".join(f"{key[2:-1]}.{key[-1]}" for key in known if key.startswith("SM"))
            raise UserError(
                f"--compute-capability {capability}: not a target of {tensorrt_product.describe()}; "
                f"expected some of {supported}"
            )
        rtx_config.set_compute_capability(known[name], index)


@contextmanager
def timing_cache(config: trt.IBuilderConfig, path: Path | None) -> Iterator[None]:
    """Uses the kernel timings of earlier builds and adds those of this one.

    Only the full product times kernels when it builds; tensorrt_rtx would look for a GPU. A cache that is damaged, or
    of another GPU or version, is replaced by a fresh one. None of this is worth a failed build: what goes wrong is a
    warning.
    """
    if path is None or IS_RTX:
        yield
        return
    usable = _use_timings(config, _earlier_timings(path)) or _use_timings(config, b"")
    yield
    cache = config.get_timing_cache() if usable else None
    timings = None if cache is None else cache.serialize()
    if timings is None:
        warn(f"TensorRT offers no timing cache: {path} is not written, and the next build takes as long as this one")
        return
    try:
        with write_whole(path) as file:
            file.write(memoryview(timings))
    except UserError as error:
        warn(f"the timing cache is not kept: {error}")


def _earlier_timings(path: Path) -> bytes:
    """What an earlier build left; empty where there is nothing to read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        warn(f"cannot read the timing cache {path} ({error.strerror}); kernels are timed afresh")
        return b""


def _use_timings(config: trt.IBuilderConfig, timings: bytes) -> bool:
    """Gives the builder a timing cache. False where TensorRT does not take it."""
    try:
        cache = config.create_timing_cache(timings)
        return cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    except (RuntimeError, TypeError, ValueError):  # pybind's answers to a null pointer
        return False


class _ProgressMonitor(trt.IProgressMonitor):
    """Shows TensorRT's build phases, nested as TensorRT nests them, as progress bars, and stops a build.

    Attributes:
        is_cancelled: the build is to stop; set by another thread.
    """

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self.is_cancelled = False

    def cancel(self) -> None:
        """Asks TensorRT to stop after the present step."""
        self.is_cancelled = True

    @_called_by_tensorrt()
    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        """Called by TensorRT."""
        indent = "  " if parent_phase else ""
        self._tasks[phase_name] = self._progress.add_task(indent + phase_name, total=num_steps)

    @_called_by_tensorrt(answer=False)
    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False stops the build."""
        if phase_name in self._tasks:
            self._progress.update(self._tasks[phase_name], completed=step + 1)
        return not self.is_cancelled and not _failures

    @_called_by_tensorrt()
    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT."""
        if phase_name in self._tasks:
            self._progress.remove_task(self._tasks.pop(phase_name))


@contextmanager
def build_progress(config: trt.IBuilderConfig) -> Iterator[_ProgressMonitor]:
    """While inside, shows the build's progress on a terminal. Yields what can cancel the build."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = log_console.is_terminal
    with Progress(*columns, console=log_console, transient=True, disable=not shown) as progress:
        monitor = config.progress_monitor = _ProgressMonitor(progress)
        yield monitor


class _PlanWriter(trt.IStreamWriter):
    """Takes a plan from TensorRT piece by piece and writes it to a file.

    A plan need not be in memory as a whole: that saves as much memory as all weights take.
    """

    def __init__(self, file: IO[bytes]) -> None:
        trt.IStreamWriter.__init__(self)
        self._file = file
        self.crc32 = 0
        self.num_bytes = 0

    @_called_by_tensorrt(answer=0)
    def write(self, data: bytes) -> int:
        """Called by TensorRT; fewer bytes than given stop the build."""
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.num_bytes += len(data)
        return len(data)


def _build_to_file(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    log: TrtLog,
    path: Path,
    file: IO[bytes],
    monitor: _ProgressMonitor,
) -> tuple[int, int]:
    """Builds the plan and writes it to ``file``, which becomes ``path``. Returns (CRC-32, bytes)."""
    raise_failure()
    writer = _PlanWriter(file)
    built = _run_in_thread(
        lambda: builder.build_serialized_network_to_stream(network, config, writer), cancel=monitor.cancel
    )
    raise_failure()
    if not built:
        raise UserError(f"TensorRT could not build the plan: {log.take_errors()}")
    if writer.num_bytes == 0:
        raise UserError(
            f"TensorRT says that it built the plan {path}, but wrote 0 bytes: {log.take_errors()}; build it "
            "again with --verbose and report what the log says"
        )
    return writer.crc32, writer.num_bytes


def _run_in_thread(work: Callable[[], bool], cancel: Callable[[], None]) -> bool:
    """Returns what ``work`` returns, and hears Ctrl-C while it is in C++: only this, the main thread does.

    After Ctrl-C it calls ``cancel`` and waits until ``work`` has stopped, since that uses what the caller owns.
    """
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(work)
        try:
            return result.result()
        except KeyboardInterrupt:
            with interrupts.uninterrupted():
                cancel()
                wait([result])
            raise


# --- executing --------------------------------------------------------------------------------------------


class PlanError(UserError):
    """A plan that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Latency:
    """Times of one inference in milliseconds."""

    runs: int
    median: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Summary of single times (at least two)."""
        cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
        return cls(len(milliseconds), statistics.median(milliseconds), cuts[94], cuts[98])


def check_plan(path: Path) -> bytes:
    """Reads a plan and checks what can be checked without a GPU.

    Raises:
        PlanError: no such file, corrupt or truncated, or built by another TensorRT.
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror}; build it with builder.py") from error
    if not plan:
        raise PlanError(f"the plan {path} is empty; build it again")
    info = read_info(path)
    if info is None:
        return plan  # a plan from elsewhere: TensorRT itself judges it
    if len(plan) != info.num_bytes or zlib.crc32(plan) != info.crc32:
        raise PlanError(
            f"the plan {path} ({len(plan)} bytes) is not the one that {info_path(path).name} describes "
            f"({info.num_bytes} bytes): it is corrupt or truncated; build it again"
        )
    built_by = f"{info.product} {info.version}"
    if built_by != tensorrt_product.describe():
        raise PlanError(
            f"the plan {path} was built by {built_by}, but this is {tensorrt_product.describe()}; plans are tied to "
            "product and version: build it again"
        )
    return plan


def read_info(plan: Path) -> PlanInfo | None:
    """What stands beside a plan; None if nothing does.

    Raises:
        PlanError: it is not readable.
    """
    path = info_path(plan)
    if not path.is_file():
        return None
    try:
        return PlanInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PlanError(f"{path} is not readable ({error}); build the plan again") from error


def execution_obstacle() -> str | None:
    """Why plans cannot be executed on this machine; None if they can."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA GPU (no driver is installed)"
    try:
        import pycuda.driver as cuda  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return (
            f"pycuda is not installed, or does not work ({error}): pip install -r requirements-pycuda.txt, which "
            "needs a CUDA toolkit"
        )
    try:
        cuda.init()
        if cuda.Device.count() == 0:
            return "no NVIDIA GPU"
    except cuda.Error as error:
        return f"no usable NVIDIA driver ({error})"
    capability = cuda.Device(0).compute_capability()
    if IS_RTX and capability in ((9, 0), (10, 0), (10, 3)):
        name = f"{capability[0]}.{capability[1]}"
        return f"{tensorrt_product.describe()} does not execute on compute capability {name} (data-centre GPUs)"
    return None


def graph_obstacle() -> str | None:
    """Why CUDA graphs cannot be captured here; None if they can."""
    try:
        from cuda.bindings import runtime  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"cuda-bindings is not installed, or does not work ({error}): pip install -r requirements-gpu.txt"
    return None


def gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None without one.

    The driver itself is asked: it answers where the packages that execute plans are missing.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # ..._COMPUTE_CAPABILITY_MAJOR
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ..._COMPUTE_CAPABILITY_MINOR
    )
    return None if failed else (major.value, minor.value)


def check_in_profile(name: str, shape: Sequence[int], profile: Sequence[Sequence[int]]) -> None:
    """Checks one input's shape against [minimum, optimum, maximum].

    Raises:
        UserError: it lies outside; the message names input, shape and range.
    """
    low, _, high = profile
    inside = len(shape) == len(low) and all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))
    if not inside:
        raise UserError(
            f"input {name!r} is {list(shape)}, outside the plan's profile {list(low)} to {list(high)}; "
            "build the plan with a wider --seq-len MIN,OPT,MAX or --batch MIN,OPT,MAX"
        )


def cast_input(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    """``values`` in the dtype that the engine states, contiguous.

    Raises:
        UserError: values change by the cast, e.g. an id that does not fit int32.
    """
    cast = np.ascontiguousarray(values, dtype=dtype)
    if values.dtype.kind in "iu" and not np.array_equal(cast, values):
        raise UserError(f"input {name!r} has values that do not fit {np.dtype(dtype)}")
    return cast


@interrupts.uninterrupted()
def load_engine(path: Path, plan: bytes, log: TrtLog) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """Deserializes a plan, with the plugins that it uses.

    Args:
        path: the plan's file; ``PLAN.json`` beside it says which plugins it uses.
        plan: from ``check_plan``.
        log: collects TensorRT's messages.

    Returns:
        The runtime, which must live as long as the engine, and the engine.

    Raises:
        PlanError: TensorRT refuses the plan.
        UserError: the plan's plugin library is not built.
    """
    import plugin_layers

    log.take_errors()  # earlier ones are about something else
    info = read_info(path)
    embedded = info is not None and info.plugins_embedded
    if info is not None and info.plugin_library and not embedded:
        plugin_layers.load_library()
    runtime = trt.Runtime(LOGGER)
    if embedded:
        runtime.engine_host_code_allowed = True  # the library is in the plan; a plan without one needs no such leave
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        told = log.take_errors()
        if "plugin" in told.lower() or "creator" in told.lower():
            try:
                plugin_layers.load_library()
            except UserError as error:
                told += f" (the built plugin library is of no help: {error})"
            else:
                engine = runtime.deserialize_cuda_engine(plan)
                told = told if engine is not None else log.take_errors()
        if engine is None:
            raise PlanError(
                f"TensorRT cannot load the plan {path}: {told}. It is corrupt, for another GPU or from another "
                "TensorRT version; build it on this machine"
            )
    return runtime, engine


class InferHelper:
    """Executes a plan.

    Device buffers for the largest shapes of the profile and one stream are allocated once. Use as a context
    manager, or call ``close``.

    Args:
        plan_path: the plan file; ``PLAN.json`` beside it, if there, is checked too.
        log: collects TensorRT's messages; default: the log that is listening.
        checks_batch: masks and lengths are those of our networks, and ``infer`` refuses wrong ones.

    Raises:
        PlanError: the plan is missing, corrupt, from another TensorRT version, or for another GPU.
        UserError: this machine cannot execute plans.
    """

    def __init__(self, plan_path: Path, log: TrtLog | None = None, checks_batch: bool = True) -> None:
        plan = check_plan(plan_path)
        self._checks_batch = checks_batch
        obstacle = execution_obstacle()
        if obstacle is not None:
            raise UserError(f"plans cannot be executed here: {obstacle}")
        import pycuda.driver as cuda  # pyright: ignore[reportMissingImports]

        self._cuda = cuda
        self._cleanup = ExitStack()
        device_context = cuda.Device(0).retain_primary_context()  # shared with PyTorch and plugins
        device_context.push()
        self._cleanup.callback(device_context.pop)
        try:
            self.log = log or TrtLog.current()
            self._runtime, self.engine = load_engine(plan_path, plan, self.log)
            self._context = self._create_context(plan_path)
            self._allocate()
        except BaseException:
            self._cleanup.close()
            raise

    @interrupts.uninterrupted()
    def _create_context(self, path: Path) -> trt.IExecutionContext:
        """The engine's execution context.

        TensorRT for RTX compiles kernels for new shapes in the background and runs stand-ins meanwhile, which would
        then be timed, or captured in a CUDA graph: it is told to compile them at once.
        """
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            engine: Any = self.engine  # the full product's types have none of this
            strategies: Any = getattr(trt, "DynamicShapesKernelSpecializationStrategy")  # noqa: B009
            self._runtime_config = engine.create_runtime_config()
            self._runtime_config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = engine.create_execution_context(self._runtime_config)
        else:
            context = self.engine.create_execution_context()
        if context is None:
            raise PlanError(f"no execution context for {path}: {self.log.take_errors()}; is the GPU's memory full?")
        return context

    def _allocate(self) -> None:
        """Device and page-locked host buffers for the largest shapes."""
        cuda, engine = self._cuda, self.engine
        self._stream = cuda.Stream()
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._dtypes: dict[str, Any] = {}
        self._device: dict[str, Any] = {}
        self._host: dict[str, np.ndarray] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in names:
            self._dtypes[name] = np.dtype(NUMPY_TYPES[engine.get_tensor_dtype(name)])
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self.inputs.append(name)
                self._context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[2])
            else:
                self.outputs.append(name)
        for name in names:  # after all input shapes are set, output shapes are known
            count = math.prod(as_tuple(self._context.get_tensor_shape(name)))
            self._device[name] = cuda.mem_alloc(max(count * self._dtypes[name].itemsize, 1))
            self._cleanup.callback(self._device[name].free)
            self._host[name] = cuda.pagelocked_empty(count, self._dtypes[name])
            self._context.set_tensor_address(name, int(self._device[name]))

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs once, asynchronously on the helper's stream, and waits for the result.

        Args:
            inputs: an array per input, any integer or float type; cast to the engine's type.

        Returns:
            An array per output, in the engine's type.

        Raises:
            UserError: an input is missing, unknown, or outside the profile.
        """
        self._upload(inputs)
        self._enqueue()
        return self._download()

    def infer_by_graph(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same as ``infer`` by the replay of a CUDA graph, which is captured for these shapes."""
        self._upload(inputs)
        self._enqueue()  # TensorRT finishes its own preparations for these shapes before a capture
        with captured_graph(self._stream.handle, self._enqueue) as replay:
            for name in self.outputs:  # a replay that does nothing leaves no answer of the run before
                self._cuda.memset_d8_async(self._device[name], 0xFF, self._host[name].nbytes, self._stream)
            replay()
            return self._download()

    def benchmark(
        self, inputs: Mapping[str, np.ndarray], runs: int = 200, warm_up: int = 20, cuda_graph: bool = False
    ) -> Latency:
        """Times the network alone (no copies) with CUDA events.

        Args:
            inputs: as for ``infer``; uploaded once.
            runs: timed runs, at least 2.
            warm_up: runs before the first timed one.
            cuda_graph: replay a captured CUDA graph instead of enqueueing layer by layer.
        """
        self._upload(inputs)
        self._enqueue()  # TensorRT finishes its own preparations for these shapes before a capture
        launch: Callable[[], None] = self._enqueue
        with ExitStack() as graph_owner:
            if cuda_graph:
                launch = graph_owner.enter_context(captured_graph(self._stream.handle, self._enqueue))
            return Latency.of(time_on_stream(self._cuda, self._stream, launch, runs, warm_up))

    def _upload(self, inputs: Mapping[str, np.ndarray]) -> None:
        unknown = set(inputs) - set(self.inputs)
        missing = set(self.inputs) - set(inputs)
        if unknown or missing:
            raise UserError(
                f"the plan's inputs are {', '.join(self.inputs)}; missing: {sorted(missing) or 'none'}, "
                f"unknown: {sorted(unknown) or 'none'}"
            )
        cast = {name: cast_input(name, inputs[name], self._dtypes[name]) for name in self.inputs}
        if self._checks_batch:
            check_batch(cast)
        for name, values in cast.items():
            check_in_profile(
                name, values.shape, [as_tuple(shape) for shape in self.engine.get_tensor_profile_shape(name, 0)]
            )
            if not self._context.set_input_shape(name, trt.Dims(list(values.shape))):
                raise UserError(f"TensorRT refused input {name!r} {list(values.shape)}: {self.log.take_errors()}")
            host = self._host[name][: values.size]
            host[:] = values.ravel()
            self._cuda.memcpy_htod_async(self._device[name], host, self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise UserError(f"TensorRT could not execute the plan: {self.log.take_errors()}")

    def _download(self) -> dict[str, np.ndarray]:
        results = {}
        for name in self.outputs:
            shape = as_tuple(self._context.get_tensor_shape(name))
            host = self._host[name][: math.prod(shape)]
            self._cuda.memcpy_dtoh_async(host, self._device[name], self._stream)
            results[name] = host.reshape(shape)
        self._stream.synchronize()
        return {name: values.copy() for name, values in results.items()}

    def close(self) -> None:
        """Frees the buffers and leaves the CUDA context."""
        self._cleanup.close()

    def __enter__(self) -> InferHelper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def time_on_stream(cuda: Any, stream: Any, launch: Callable[[], None], runs: int, warm_up: int) -> list[float]:
    """Milliseconds of each of ``runs`` launches on a pycuda stream, by CUDA events."""
    for _ in range(warm_up):
        launch()
    events = [(cuda.Event(), cuda.Event()) for _ in range(runs)]
    for begin, end in events:
        begin.record(stream)
        launch()
        end.record(stream)
    stream.synchronize()
    return [begin.time_till(end) for begin, end in events]


@contextmanager
def captured_graph(stream_handle: int, enqueue: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Records what ``enqueue`` does on a stream; yields a function that replays it there.

    pycuda has no graphs, hence NVIDIA's own bindings.

    Raises:
        UserError: those are not installed, or CUDA refuses.
    """
    obstacle = graph_obstacle()
    if obstacle is not None:
        raise UserError(f"no CUDA graph can be captured: {obstacle}")
    from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

    def check(answer: tuple[Any, ...]) -> Any:
        if answer[0] != runtime.cudaError_t.cudaSuccess:
            raise UserError(f"CUDA graph: {runtime.cudaGetErrorString(answer[0])[1].decode()}")
        return answer[1] if len(answer) > 1 else None

    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(runtime.cudaStreamBeginCapture(stream_handle, mode))
    try:
        enqueue()
    finally:
        graph = check(runtime.cudaStreamEndCapture(stream_handle))
    executable = check(runtime.cudaGraphInstantiate(graph, 0))
    try:
        yield lambda: check(runtime.cudaGraphLaunch(executable, stream_handle))
    finally:
        check(runtime.cudaGraphExecDestroy(executable))
        check(runtime.cudaGraphDestroy(graph))
