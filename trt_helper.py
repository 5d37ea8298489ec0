"""A thin layer over TensorRT's Python API: ``TrtNetworkHelper`` adds layers to a network.

``addLinear``, ``addSoftmax``, ``addGELU``, ``addLayerNorm`` ... Each method gives its layer the name of the model's
module and checks at once that TensorRT accepts it. The steps before and after are in the package and can be imported
from here too: ``create_builder`` and ``build_plan`` (bert_trt/plan.py), ``InferHelper`` (bert_trt/inference.py).

Networks are strongly typed: in fp16, weights and tensors are fp16, and TensorRT casts nothing implicitly.
Letters in shapes: B batch, S sequence length, H hidden size, N heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_trt import tensorrt_product
from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES, convert_weight, element_type, quantize_weight
from bert_trt.inference import InferHelper, Latency
from bert_trt.options import GELU_KINDS, SequenceRange
from bert_trt.plan import BuildOptions, PlanError, build_plan, check_plan, create_builder
from bert_trt.plugin_layers import PluginLayer, PluginLayers, TensorType
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from bert_trt.tensors import LayerError, as_tuple, describe_tensor, shape_of

__all__ = [
    "ELEMENT_TYPES",
    "LOGGER",
    "BuildOptions",
    "InferHelper",
    "Latency",
    "LayerError",
    "PlanError",
    "SequenceRange",
    "TrtLog",
    "TrtNetworkHelper",
    "build_plan",
    "check_plan",
    "create_builder",
]


class TrtNetworkHelper:
    """Adds the layers that BERT needs to a strongly typed network.

    Every method names its layer ``name`` and returns its output tensor, which carries the same name.

    Args:
        network: the network to add layers to.
        log: the log of the network's builder.
        dtype: type of weights and tensors (fp32, fp16 or bf16); layer norm and softmax compute in fp32 regardless.
        plugins: adds plugin layers; None for a network without any. See bert_trt/recording.py.

    Attributes:
        weights: the values of constants by layer name. TensorRT reads them when it builds: they must live until then.
        sources: the fp32 values from which constants were rounded or quantized, see bert_trt/network_proof.py.
        plugin_layers: the plugin layers by name.
        gelu_parts: names of the layers that ``addGELU(kind="decomposed")`` added.
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
        self.gelu_parts: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.sources: dict[str, np.ndarray] = {}
        self.plugin_layers: dict[str, PluginLayer] = {}
        self._converted: dict[Any, tuple[np.ndarray, np.ndarray]] = {}  # stores tied weights only once
        self._dequantized: dict[tuple[str, trt.DataType], trt.ITensor] = {}  # results of ``addQuantizedRange``

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
            values: any shape.
            name: the parameter's name.
            dtype: the constant's type; default: the helper's.
            shape: the constant's shape, with as many elements as ``values``; default: the shape of ``values``.

        Raises:
            UserError: a value does not fit the type.
        """
        dtype = dtype or self.dtype
        source = (values.ctypes.data, values.shape, values.strides, dtype)
        if source not in self._converted:
            converted = np.ascontiguousarray(convert_weight(values, dtype, name))
            self._converted[source] = (values, converted)  # keeps values alive, so that its address is not reused
        stored = self.weights[name] = self._converted[source][1]
        self.sources[name] = values
        weights = trt.Weights(dtype, stored.ctypes.data, stored.size)
        layer = self.network.add_constant(trt.Dims(list(stored.shape if shape is None else shape)), weights)
        return self._check_layer(layer, name, [])

    # matrix products

    def addMatMul(
        self, a: trt.ITensor, b: trt.ITensor, name: str, transpose_a: bool = False, transpose_b: bool = False
    ) -> trt.ITensor:
        """a @ b over the last two axes: (..., M, K) and (..., K, N) -> (..., M, N); leading axes broadcast."""
        op = {False: trt.MatrixOperation.NONE, True: trt.MatrixOperation.TRANSPOSE}
        layer = self.network.add_matrix_multiply(a, op[transpose_a], b, op[transpose_b])
        return self._check_layer(layer, name, [a, b])

    def addLinear(
        self,
        x: trt.ITensor,
        weight: np.ndarray,
        bias: np.ndarray | None,
        name: str,
        quantized: trt.DataType | None = None,
    ) -> trt.ITensor:
        """x @ weightᵀ + bias.

        Args:
            x: (..., in); for a quantized product, what ``addQuantizedRange`` returned.
            weight: (out, in), PyTorch's ``Linear.weight``.
            bias: (out,); None where a fused layer adds it.
            name: the module's name.
            quantized: the type of a quantized product, INT8 or FP8: the weight is stored in this type with a scale
                for each output channel.

        Returns:
            (..., out).
        """
        # exercise 1 begins
        if quantized is None:
            w = self.addConstant(weight, f"{name}.weight", shape=_as_rank(weight.shape, x))  # (1 ..., out, in)
        else:
            w = self._addQuantizedWeight(x, weight, f"{name}.weight", quantized)
        if bias is None:
            return self.addMatMul(x, w, name, transpose_b=True)
        product = self.addMatMul(x, w, f"{name}.product", transpose_b=True)  # (..., out)
        return self.addBias(product, bias, name)
        # exercise 1 ends

    def addTiedLinear(self, x: trt.ITensor, table: trt.ITensor, bias: np.ndarray, name: str) -> trt.ITensor:
        """x @ tableᵀ + bias, for a decoder that shares its weight with an embedding.

        Args:
            x: (..., H).
            table: (V, H), a tensor of the network.
            bias: (V,).
            name: the module's name.

        Returns:
            (..., V).
        """
        shape = _as_rank(as_tuple(table.shape), x)
        if len(shape) > len(as_tuple(table.shape)):  # the operands of a product must have the same rank
            table = self.addReshape(table, shape, f"{name}.decoder.weight")
        return self.addBias(self.addMatMul(x, table, f"{name}.decoder", transpose_b=True), bias, name)

    def _addQuantizedWeight(self, x: trt.ITensor, weight: np.ndarray, name: str, dtype: trt.DataType) -> trt.ITensor:
        values, scales = self._quantize(weight, dtype, name)
        stored = self.addConstant(values, name, dtype, _as_rank(values.shape, x))  # (1 ..., out, in)
        self.sources[name] = weight
        return self.addDequantize(stored, scales, f"{name}.dequantized", axis=len(x.shape) - 2)

    def _quantize(self, weight: np.ndarray, dtype: trt.DataType, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The quantized weight (out, in) and its scales (out,)."""
        return quantize_weight(weight, dtype, name)

    # explicit, symmetric quantization (Q/DQ)

    def addQuantize(
        self, x: trt.ITensor, scale: float | np.ndarray, name: str, dtype: trt.DataType, axis: int | None = None
    ) -> trt.ITensor:
        """x / scale, rounded half to even and saturated: to int8 [-128, 127], or to fp8 (E4M3) [-448, 448].

        Args:
            x: any shape.
            scale: one number, or with ``axis`` one for each slice along it.
            name: the layer's name.
            dtype: INT8 or FP8.
            axis: the axis of several scales; None for one scale.
        """
        scales = self._scales(scale, f"{name}.scale")
        layer = self.network.add_quantize(x, scales, dtype)
        if layer is not None and axis is not None:
            layer.axis = axis
        return self._check_layer(layer, name, [x, scales])

    def addDequantize(
        self, q: trt.ITensor, scale: float | np.ndarray, name: str, axis: int | None = None
    ) -> trt.ITensor:
        """q · scale in the helper's type; arguments as for ``addQuantize``."""
        scales = self._scales(scale, f"{name}.scale")
        layer = self.network.add_dequantize(q, scales, self.dtype)
        if layer is not None and axis is not None:
            layer.axis = axis
        return self._check_layer(layer, name, [q, scales])

    def addQuantizedRange(self, x: trt.ITensor, amax: float, dtype: trt.DataType) -> trt.ITensor:
        """Quantizes and dequantizes x (Q/DQ): TensorRT runs a product of two such tensors in ``dtype``.

        The layers are added once for each x, however many products read it.

        Args:
            x: any shape.
            amax: the absolute value that is mapped to the type's largest value; values beyond it are clipped.
            dtype: INT8 or FP8.

        Returns:
            x, rounded to multiples of the scale, in the helper's type.
        """
        key = (x.name, dtype)
        if key not in self._dequantized:
            scale = amax / element_type(dtype).largest
            q = self.addQuantize(x, scale, f"{x.name}.quantized", dtype)
            self._dequantized[key] = self.addDequantize(q, scale, f"{x.name}.dequantized")
        return self._dequantized[key]

    def _scales(self, scale: float | np.ndarray, name: str) -> trt.ITensor:
        """Scales are fp32 in any network: the scales of small weights would lose digits in fp16."""
        values = np.asarray(scale, np.float32)
        return self.addConstant(values, name, trt.DataType.FLOAT, values.shape)

    def addBias(self, x: trt.ITensor, bias: np.ndarray, name: str) -> trt.ITensor:
        """x + bias along the last axis: (..., H) and (H,)."""
        return self.addAdd(x, self.addConstant(bias, f"{name}.bias", shape=_as_rank(bias.shape, x)), name)

    # lookups

    def addEmbedding(self, indices: trt.ITensor, table: trt.ITensor, name: str) -> trt.ITensor:
        """Rows of a table: indices (...) and table (rows, H) -> (..., H)."""
        # exercise 4 begins
        return self.addGather(table, indices, 0, name)
        # exercise 4 ends

    def addGather(self, x: trt.ITensor, indices: trt.ITensor, axis: int, name: str) -> trt.ITensor:
        """The elements of x at ``indices`` along an axis, in whose place the result has the axes of ``indices``."""
        # exercise 4 begins
        return self._check_layer(self.network.add_gather(x, indices, axis), name, [x, indices])
        # exercise 4 ends

    def addWithout(self, x: trt.ITensor, first: int, last: int, name: str) -> trt.ITensor:
        """A vector (n,) without its ``first`` elements and without its ``last`` ones."""
        length = self._check_layer(self.network.add_shape(x), f"{name}.length", [x])  # int64 (1,)
        removed = self.addConstant(np.array([first + last], np.int64), f"{name}.removed", length.dtype)
        kept = self.addDifference(length, removed, f"{name}.kept")
        layer = self.network.add_slice(x, trt.Dims([first]), trt.Dims([0]), trt.Dims([1]))
        if layer is not None:
            layer.set_input(2, kept)
        return self._check_layer(layer, name, [x, kept])

    # activations

    def addActivation(self, x: trt.ITensor, name: str, kind: str) -> trt.ITensor:
        """The activation ``kind``: relu, silu, quick_gelu, hyperbolic_tangent, identity, or one of ``addGELU``.

        SiLU is x · sigmoid(x), and quick GELU x · sigmoid(1.702 x) (both in arXiv:1606.08415).
        """
        if kind in ("silu", "quick_gelu"):
            scaled = x if kind == "silu" else self.addScale(x, 1.702, f"{name}.scaled")
            layer = self.network.add_activation(scaled, trt.ActivationType.SIGMOID)
            return self.addProduct(x, self._check_layer(layer, f"{name}.sigmoid", [scaled]), name)
        simple = {"relu": self.addReLU, "hyperbolic_tangent": self.addTanh, "identity": lambda x, _: x}
        return simple[kind](x, name) if kind in simple else self.addGELU(x, name, kind)

    def addGELU(self, x: trt.ITensor, name: str, kind: str = "erf") -> trt.ITensor:
        """Gaussian error linear unit, x · Φ(x) (Hendrycks & Gimpel, arXiv:1606.08415).

        Args:
            x: any shape.
            name: the module's name.
            kind: ``erf``: Φ by the error function, as in BERT; ``tanh``: the paper's approximation, as in GPT-2;
                ``decomposed``: the same as ``erf``, from elementary layers.
        """
        # exercise 3 begins
        if kind == "decomposed":
            return self._addDecomposedGELU(x, name)
        kinds = {"erf": trt.ActivationType.GELU_ERF, "tanh": trt.ActivationType.GELU_TANH}
        if kind not in kinds:
            raise ValueError(f"GELU kind {kind!r}; expected one of {', '.join(GELU_KINDS)}")
        return self._check_layer(self.network.add_activation(x, kinds[kind]), name, [x])
        # exercise 3 ends

    def _addDecomposedGELU(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """x/2 · (1 + erf(x / √2)), with a layer for each operation."""
        # exercise 3 begins
        scaled = self.addScale(x, 1 / math.sqrt(2), f"{name}.gelu_scale")
        erf = self._unary(scaled, trt.UnaryOperation.ERF, f"{name}.gelu_erf")
        shifted = self.addShift(erf, 1.0, f"{name}.gelu_add")
        half = self.addScale(x, 0.5, f"{name}.gelu_half")
        product = self._elementwise(half, shifted, trt.ElementWiseOperation.PROD, name)
        self.gelu_parts += [scaled.name, erf.name, shifted.name, half.name, product.name]
        return product
        # exercise 3 ends

    def addReLU(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """max(x, 0)."""
        return self._check_layer(self.network.add_activation(x, trt.ActivationType.RELU), name, [x])

    def addTanh(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """Hyperbolic tangent."""
        return self._check_layer(self.network.add_activation(x, trt.ActivationType.TANH), name, [x])

    def addLog(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """Natural logarithm."""
        return self._unary(x, trt.UnaryOperation.LOG, name)

    def addSoftmax(self, x: trt.ITensor, name: str, axis: int = -1, bias: trt.ITensor | None = None) -> trt.ITensor:
        """Softmax along ``axis``, computed in fp32, returned in x's type.

        In fp16 the sum of exponentials over a long sequence would lose most of its digits.

        Args:
            x: any shape.
            name: the module's name.
            axis: the axis along which the results sum to 1.
            bias: fp32, added to x before the softmax; it broadcasts. An attention mask is 0, or a large negative
                number for masked tokens.
        """
        # exercise 2 begins
        scores = self.addCast(x, trt.DataType.FLOAT, f"{name}.input_fp32")
        if bias is not None:
            scores = self.addAdd(scores, bias, f"{name}.masked")
        layer = self.network.add_softmax(scores)
        if layer is not None:
            layer.axes = 1 << (axis % len(x.shape))
        needs_cast = x.dtype != trt.DataType.FLOAT
        probabilities = self._check_layer(layer, f"{name}.fp32" if needs_cast else name, [scores])
        return self.addCast(probabilities, x.dtype, name)
        # exercise 2 ends

    def addAttention(
        self,
        query: trt.ITensor,
        key: trt.ITensor,
        value: trt.ITensor,
        name: str,
        mask: trt.ITensor | None = None,
        cu_seqlens: trt.ITensor | None = None,
    ) -> trt.ITensor:
        """softmax(query · keyᵀ) · value for each head, by TensorRT's own attention layer.

        TensorRT does not scale the scores: the caller divides the query by √D.

        Args:
            query: padded (B, N, S, D), or packed (T, N, D), all sequences one after another.
            key: as the query.
            value: as the query.
            name: the module's name.
            mask: for a padded batch, bool (B, N, S, S), B and N may be 1: true where the query may attend to the key.
            cu_seqlens: for a packed batch, int32 (B + 1,), the running sum of the lengths, from 0 to T. See
                ``has_packed_attention``.

        Returns:
            The context, in the shape of the query.

        Raises:
            UserError: the installed TensorRT has no attention, or none in packed form.
            LayerError: TensorRT refuses the inputs.
        """
        check_attention()
        network: Any = self.network
        newer: Any = trt  # types are checked against TensorRT 10.13, which has no attention
        inputs, softmax = [query, key, value], newer.AttentionNormalizationOp.SOFTMAX
        if hasattr(network, "add_attention_v2"):
            attention = network.add_attention_v2(*inputs, softmax, newer.CausalMaskKind.NONE)
        else:  # TensorRT 10.14 to 10.16
            attention = network.add_attention(*inputs, softmax, causal=False)
        if attention is None:
            return self._check_layer(None, name, inputs)
        # Allows TensorRT to decompose the layer where it has no fused kernel for the type, the head size and the GPU;
        # without this it refuses such layers, for example in fp32. Where it has a kernel, the plan is the same.
        attention.decomposable = True
        if mask is not None:
            attention.mask = mask
            inputs.append(mask)
        if cu_seqlens is not None:
            self._pack_attention(attention, cu_seqlens, name)
            inputs.append(cu_seqlens)
        return self._check_layer(attention, name, inputs)

    def _pack_attention(self, attention: Any, cu_seqlens: trt.ITensor, name: str) -> None:
        """Sets an attention layer to packed inputs, (T, N, D)."""
        if not hasattr(attention, "query_form"):
            raise UserError(
                f"{tensorrt_product.describe()} has no attention in packed form; TensorRT has it from 11.0 on"
            )
        newer: Any = trt
        attention.query_form = attention.key_value_form = newer.AttentionIOForm.PACKED_NHD
        try:
            attention.query_lengths = attention.key_value_lengths = cu_seqlens
        except RuntimeError as error:
            message = self.log.take_errors()
            raise LayerError(f"layer {name!r} refuses {describe_tensor(cu_seqlens)}. TensorRT: {message}") from error

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

        Mean and variance are computed in fp32 for every type: squares of fp16 values overflow from 256 on.

        Args:
            x: (..., H), the helper's type or fp32.
            gamma: (H,).
            beta: (H,).
            epsilon: added to the variance; 1e-12 in BERT.
            name: the module's name.
            kernel: ``native`` for TensorRT's own layer; ``basic``, ``fused`` or ``fast`` for this kernel of the
                LayerNorm plugin.

        Returns:
            (..., H) in the helper's type.
        """
        if kernel != "native":
            return self._addLayerNormPlugin(x, gamma, beta, epsilon, name, kernel)
        # exercise 5 begins
        x_fp32 = self.addCast(x, trt.DataType.FLOAT, f"{name}.input_fp32")
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT, _as_rank(gamma.shape, x))
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT, _as_rank(beta.shape, x))
        network: Any = self.network
        # add_normalization is deprecated since TensorRT 10.15 in favour of v2, which 10.13 does not have. For a layer
        # norm both are the same; they differ only in the shapes of group norm.
        has_v2 = hasattr(network, "add_normalization_v2")
        add_normalization = network.add_normalization_v2 if has_v2 else network.add_normalization
        layer = add_normalization(x_fp32, scale, shift, 1 << (len(x.shape) - 1))
        if layer is not None:
            layer.epsilon = epsilon
        needs_cast = self.dtype != trt.DataType.FLOAT
        y = self._check_layer(layer, f"{name}.fp32" if needs_cast else name, [x_fp32, scale, shift])
        return self.addCast(y, self.dtype, name)
        # exercise 5 ends

    def _addLayerNormPlugin(
        self, x: trt.ITensor, gamma: np.ndarray, beta: np.ndarray, epsilon: float, name: str, kernel: str
    ) -> trt.ITensor:
        """The plugin reads and writes the helper's type; gamma and beta stay fp32."""
        # exercise 7 begins
        x = self.addCast(x, self.dtype, f"{name}.input")
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT)
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT)
        layer = PluginLayer(
            name, "LayerNorm", {"epsilon": epsilon, "kernel": kernel}, ((x.dtype, as_tuple(x.shape)),)
        )
        (y,) = self.addPlugin(layer, [x, scale, shift])
        return y
        # exercise 7 ends

    # plugins

    def addSkipLayerNorm(
        self,
        x: trt.ITensor,
        skip: trt.ITensor,
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float,
        name: str,
        bias: np.ndarray | None = None,
        x_scale: float = 0.0,
        skip_scale: float = 0.0,
        output_scale: float = 0.0,
        outputs: str = "y",
        constant_weights: bool = True,
        quantized_type: trt.DataType = trt.DataType.INT8,
        output_factors: np.ndarray | None = None,
    ) -> tuple[trt.ITensor, ...]:
        """LN(x + skip + bias) by the SkipLayerNorm plugin.

        The kernel computes the sum in fp32: in a trained BERT it would be the first value to overflow fp16.

        Args:
            x: (..., H), the helper's type, or int8 with ``x_scale``.
            skip: (..., H), the helper's type, or int8 with ``skip_scale``.
            gamma: (H,).
            beta: (H,).
            epsilon: added to the variance; 1e-12 in BERT.
            name: the module's name.
            bias: (H,), the bias of the linear layer that computed x, or None.
            x_scale: the scale of an int8 x, value = int8 · scale; 0 for a floating-point x.
            skip_scale: the scale of an int8 skip; 0 for a floating-point skip.
            output_scale: the scale of an output in 8 bits; 0 for none.
            outputs: ``y`` for one output, in 8 bits if it has a scale; ``both`` for y in the helper's type, then y in
                8 bits.
            constant_weights: the kernel may read gamma, beta and bias before the previous layer has finished.
            quantized_type: the type of an output in 8 bits, INT8 or FP8.
            output_factors: (H,), finite and greater than 0: the output in 8 bits is that of y · factors, channel by
                channel; the floating-point one is y. None for ones.

        Returns:
            The outputs, each (..., H).

        Raises:
            LayerError: a scale or a factor is invalid, or TensorRT refuses the layer.
        """
        fields: dict[str, float | int | str] = {"epsilon": epsilon, "constant_weights": int(constant_weights)}
        fields |= {key: scale for key, scale in (("x_scale", x_scale), ("skip_scale", skip_scale)) if scale}
        fields |= _output_fields(output_scale, outputs, quantized_type, name)
        if x_scale and skip_scale:  # otherwise the output has the type of the floating-point input
            fields["output_type"] = element_type(self.dtype).name
        inputs = [
            tensor if scale else self.addCast(tensor, self.dtype, f"{name}.{side}")
            for tensor, scale, side in ((x, x_scale, "x"), (skip, skip_scale, "skip"))
        ]
        parameters = (("weight", gamma), ("bias", beta))
        inputs += [self.addConstant(values, f"{name}.{part}", trt.DataType.FLOAT) for part, values in parameters]
        if output_factors is not None:
            inputs.append(self._addFactors(output_factors, len(gamma), output_scale, name))
            fields["output_factors"] = 1
        if bias is not None:
            inputs.append(self.addConstant(bias, f"{name}.linear_bias", trt.DataType.FLOAT))
        output_types = self._outputTypes(as_tuple(x.shape), output_scale, outputs, quantized_type)
        return self.addPlugin(PluginLayer(name, "SkipLayerNorm", fields, output_types), inputs)

    def addEmbLayerNorm(
        self,
        ids: Sequence[trt.ITensor],
        tables: Sequence[trt.ITensor],
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float,
        name: str,
        output_scale: float = 0.0,
        outputs: str = "y",
        quantized_type: trt.DataType = trt.DataType.INT8,
        output_factors: np.ndarray | None = None,
    ) -> tuple[trt.ITensor, ...]:
        """LN(word + position + type) by the EmbLayerNorm plugin.

        Args:
            ids: input_ids, token_type_ids and position_ids, int32 (...). The row of an id outside its table is NaN.
            tables: the tables of words (V, H), positions (P, H) and token types (Y, H), in the helper's type.
            gamma: (H,).
            beta: (H,).
            epsilon: added to the variance; 1e-12 in BERT.
            name: the module's name.
            output_scale: the scale of an output in 8 bits; 0 for none.
            outputs: ``y`` or ``both``, as for ``addSkipLayerNorm``.
            quantized_type: the type of an output in 8 bits, INT8 or FP8.
            output_factors: (H,), as for ``addSkipLayerNorm``.

        Returns:
            The outputs, each (..., H).

        Raises:
            LayerError: a scale or a factor is invalid, or TensorRT refuses the layer.
        """
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT)
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT)
        fields = {"epsilon": epsilon, **_output_fields(output_scale, outputs, quantized_type, name)}
        inputs = [*ids, *tables, scale, shift]
        if output_factors is not None:
            inputs.append(self._addFactors(output_factors, len(gamma), output_scale, name))
            fields["output_factors"] = 1
        shape = (*as_tuple(ids[0].shape), len(gamma))
        output_types = self._outputTypes(shape, output_scale, outputs, quantized_type)
        return self.addPlugin(PluginLayer(name, "EmbLayerNorm", fields, output_types), inputs)

    def _outputTypes(
        self, shape: tuple[int, ...], output_scale: float, outputs: str, quantized_type: trt.DataType
    ) -> tuple[TensorType, ...]:
        """Types and shapes of the outputs of a plugin that gives y, y in 8 bits, or both."""
        floating = (self.dtype,) if outputs == "both" or not output_scale else ()
        return tuple((dtype, shape) for dtype in (*floating, *((quantized_type,) if output_scale else ())))

    def addQkvToContext(
        self,
        qkv: trt.ITensor,
        num_heads: int,
        name: str,
        layout: str = "single",
        lengths: trt.ITensor | None = None,
        max_sequence_length: int = 0,
        qkv_scale: float = 0.0,
        output_scale: float = 0.0,
        output: trt.DataType | None = None,
    ) -> trt.ITensor:
        """softmax(Q Kᵀ / √D) V for each head by the QkvToContext plugin.

        Args:
            qkv: Q, K and V concatenated: single (S, 3 H), padded (B, S, 3 H), packed (T, 3 H).
            num_heads: N; D = H / N is 32, 64 or 128.
            name: the module's name.
            layout: single, padded or packed.
            lengths: padded: the attention mask, int32 (B, S); packed: cu_seqlens, int32 (B + 1,).
            max_sequence_length: packed: the tokens of the longest sequence to expect, which chooses the kernel; 0 if
                not known. Longer ones are computed as well, but slowly.
            qkv_scale: the scale of an int8 ``qkv``; 0 for a floating-point one.
            output_scale: the scale of an output in 8 bits; 0 for a floating-point one.
            output: the output's type: with ``output_scale`` INT8 (the default), or FP8 where qkv is floating-point;
                without it the floating-point type where qkv is int8.

        Returns:
            The context: the shape of ``qkv`` with H in place of 3 H.
        """
        fields: dict[str, float | int | str] = {"num_heads": num_heads, "layout": layout}
        fields |= {"max_sequence_length": max_sequence_length} if max_sequence_length else {}
        fields |= {"qkv_scale": qkv_scale} if qkv_scale else {}
        fields |= {"output_type": element_type(output).name} if output is not None else {}
        fields |= {"output_scale": output_scale} if output_scale else {}
        dtype = output or (trt.DataType.INT8 if output_scale else qkv.dtype)
        *axes, width = as_tuple(qkv.shape)
        layer = PluginLayer(name, "QkvToContext", fields, ((dtype, (*axes, width // 3)),))
        (context,) = self.addPlugin(layer, [qkv] if lengths is None else [qkv, lengths])
        return context

    def addFusedLinear(
        self,
        x: trt.ITensor,
        weight: np.ndarray,
        bias: np.ndarray | None,
        name: str,
        layer_name: str | None = None,
        activation: str = "none",
        constant_weight: bool = True,
        x_scale: float = 0.0,
        output_scale: float = 0.0,
        output: trt.DataType | None = None,
        output_factors: np.ndarray | None = None,
    ) -> trt.ITensor:
        """activation(x @ weightᵀ + bias) by the Linear plugin.

        Args:
            x: (..., in) in the helper's type, fp16 or bf16; int8 or fp8 with ``x_scale``.
            weight: (out, in); with ``x_scale`` it is stored in the type of x, with a scale for each output channel.
            bias: (out,), or None.
            name: the module's name, which begins the names of its parameters.
            layer_name: the layer's name, for example the activation's; default: ``name``.
            activation: ``none``, or ``gelu`` by the error function.
            constant_weight: the kernel may read the weight before the previous layer has finished.
            x_scale: the scale of an int8 or fp8 x, value = x · scale; 0 for a floating-point x.
            output_scale: the scale of an int8 or fp8 output; 0 for a floating-point one.
            output: the output's type, only with ``x_scale``: fp16, bf16 or the type of x. Default: the type of x with
                ``output_scale``, else the helper's.
            output_factors: (out,), as for ``addSkipLayerNorm``.

        Returns:
            (..., out) in the helper's type; with ``x_scale`` in ``output``.

        Raises:
            LayerError: a scale or a factor is invalid, or TensorRT refuses the layer.
        """
        fields: dict[str, float | int | str] = {"activation": activation, "constant_weight": int(constant_weight)}
        if x_scale:
            output = output or (x.dtype if output_scale else self.dtype)
            inputs = [x, *self._addScaledWeight(weight, f"{name}.weight", x.dtype)]
        else:
            inputs = [x, self.addConstant(weight, f"{name}.weight")]
        fields |= {"x_scale": x_scale} if x_scale else {}
        fields |= {"output_scale": output_scale} if output_scale else {}
        fields |= {"output_type": element_type(output).name} if output is not None else {}
        if output_factors is not None:
            inputs.append(self._addFactors(output_factors, len(weight), output_scale, name))
            fields["output_factors"] = 1
        if bias is not None:
            inputs.append(self.addConstant(bias, f"{name}.bias", trt.DataType.FLOAT if x_scale else self.dtype))
        output_types = ((output or self.dtype, (*as_tuple(x.shape)[:-1], weight.shape[0])),)
        (y,) = self.addPlugin(PluginLayer(layer_name or name, "Linear", fields, output_types), inputs)
        return y

    def addLinearSkipLayerNorm(
        self,
        x: trt.ITensor,
        weight: np.ndarray,
        bias: np.ndarray | None,
        skip: trt.ITensor,
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float,
        name: str,
        linear_name: str,
        x_scale: float = 0.0,
        output_scale: float = 0.0,
        outputs: str = "y",
        constant_weights: bool = True,
        quantized_type: trt.DataType = trt.DataType.INT8,
        output_factors: np.ndarray | None = None,
    ) -> tuple[trt.ITensor, ...]:
        """LN(x @ weightᵀ + bias + skip) by the LinearSkipLayerNorm plugin, in fp16 and bf16.

        Args:
            x: (..., in) in the helper's type; int8 or fp8 with ``x_scale``.
            weight: (out, in); with ``x_scale`` it is stored in the type of x, with a scale for each output channel.
            bias: (out,), or None.
            skip: (..., out) in the helper's type.
            gamma: (out,).
            beta: (out,).
            epsilon: added to the variance; 1e-12 in BERT.
            name: the layer norm's name, which is that of the layer.
            linear_name: the linear layer's name, which begins the names of weight and bias.
            x_scale: the scale of an int8 or fp8 x, value = x · scale; 0 for a floating-point x.
            output_scale: the scale of the output in 8 bits; 0 for none.
            outputs: ``y``, or ``both`` for y in the helper's type, then y in 8 bits.
            constant_weights: the kernel may read weights before the previous layer has finished.
            quantized_type: the type of the output in 8 bits, INT8 or FP8.
            output_factors: (out,), as for ``addSkipLayerNorm``.

        Returns:
            The outputs, each (..., out).

        Raises:
            LayerError: a scale or a factor is invalid, or TensorRT refuses the layer.
        """
        fields: dict[str, float | int | str] = {"epsilon": epsilon, "constant_weights": int(constant_weights)}
        fields |= _output_fields(output_scale, outputs, quantized_type, name)
        if x_scale:
            fields["x_scale"] = x_scale
            stored, *scales = self._addScaledWeight(weight, f"{linear_name}.weight", x.dtype)
        else:
            stored, *scales = (self.addConstant(weight, f"{linear_name}.weight"),)
        parameters = (("weight", gamma), ("bias", beta))
        inputs = [x, stored, skip]
        inputs += [self.addConstant(values, f"{name}.{part}", trt.DataType.FLOAT) for part, values in parameters]
        inputs += scales
        if output_factors is not None:
            inputs.append(self._addFactors(output_factors, len(gamma), output_scale, name))
            fields["output_factors"] = 1
        if bias is not None:
            inputs.append(self.addConstant(bias, f"{linear_name}.bias", trt.DataType.FLOAT))
        output_types = self._outputTypes(as_tuple(skip.shape), output_scale, outputs, quantized_type)
        return self.addPlugin(PluginLayer(name, "LinearSkipLayerNorm", fields, output_types), inputs)

    def _addFactors(self, factors: np.ndarray, width: int, output_scale: float, name: str) -> trt.ITensor:
        """What the channels of a plugin's output in 8 bits are multiplied with, fp32 (H,).

        Raises:
            LayerError: there is no such output, or they are not ``width`` finite numbers greater than 0.
        """
        if not output_scale:
            raise LayerError(f"layer {name!r} has output_factors, but no output_scale: only 8 bits have factors")
        if factors.shape != (width,):
            raise LayerError(f"layer {name!r} has output_factors of shape {factors.shape}; expected ({width},)")
        bad = np.flatnonzero(~(np.isfinite(factors) & (factors > 0)))
        if len(bad):
            raise LayerError(
                f"layer {name!r} has the output factor {factors[bad[0]]:g} for channel {bad[0]}; expected finite "
                "numbers greater than 0"
            )
        return self.addConstant(factors, f"{name}.output_factors", trt.DataType.FLOAT)

    def _addScaledWeight(self, weight: np.ndarray, name: str, dtype: trt.DataType) -> tuple[trt.ITensor, trt.ITensor]:
        """The weight (out, in) in 8 bits, and its scales (out,) in fp32, for a plugin layer."""
        if not element_type(dtype).is_quantized:
            raise LayerError(f"x of weight {name!r} is {dtype.name}, with a scale; expected INT8 or FP8")
        values, scales = self._quantize(weight, dtype, name)
        stored = self.addConstant(values, name, dtype)
        self.sources[name] = weight
        return stored, self.addConstant(scales, f"{name}.scales", trt.DataType.FLOAT)

    def addPlugin(self, layer: PluginLayer, inputs: Sequence[trt.ITensor]) -> tuple[trt.ITensor, ...]:
        """Adds a plugin layer. Its outputs have the layer's name, ``name.1`` and so on.

        Raises:
            LayerError: TensorRT refuses the layer.
            ValueError: the helper has no ``plugins``, or this layer was not recorded, see bert_trt/recording.py.
        """
        if self.plugins is None:
            raise ValueError(f"no plugin library for layer {layer.name!r}: define the network by define_network")
        self.plugin_layers[layer.name] = layer
        added = self.plugins.add(layer, inputs)
        outputs = [self._check_layer(added, layer.name, inputs)]
        assert added is not None  # otherwise _check_layer has raised
        for index in range(1, added.num_outputs):
            outputs.append(added.get_output(index))
            outputs[index].name = f"{layer.name}.{index}"
        return tuple(outputs)

    # arithmetic

    def addAdd(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a + b; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.SUM, name)

    def addDifference(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a - b; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.SUB, name)

    def addProduct(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a · b element by element; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.PROD, name)

    def addQuotient(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a / b; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.DIV, name)

    def addMaximum(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """The larger of a and b; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.MAX, name)

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
        """a < b as booleans; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.LESS, name)

    def addEqual(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a = b as booleans; axes of length 1 broadcast."""
        return self._elementwise(a, b, trt.ElementWiseOperation.EQUAL, name)

    def addSum(self, x: trt.ITensor, axis: int, name: str, keep_axis: bool = False) -> trt.ITensor:
        """The sum along one axis, without that axis, or with length 1 there."""
        layer = self.network.add_reduce(x, trt.ReduceOperation.SUM, 1 << axis, keep_dims=keep_axis)
        return self._check_layer(layer, name, [x])

    def addMean(self, x: trt.ITensor, axis: int, name: str) -> trt.ITensor:
        """The mean along one axis, which has length 1 then."""
        layer = self.network.add_reduce(x, trt.ReduceOperation.AVG, 1 << axis, keep_dims=True)
        return self._check_layer(layer, name, [x])

    def addLargest(self, x: trt.ITensor, axis: int, name: str, keep_axis: bool = False) -> trt.ITensor:
        """The largest element along one axis, without that axis, or with length 1 there."""
        layer = self.network.add_reduce(x, trt.ReduceOperation.MAX, 1 << axis, keep_dims=keep_axis)
        return self._check_layer(layer, name, [x])

    def addNormalized(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """x / max(‖x‖, 1e-12), the L2 norm along the last axis, in fp32: (B, H) -> (B, H)."""
        x = self.addCast(x, trt.DataType.FLOAT, f"{name}.fp32")
        square = self.addSum(self.addProduct(x, x, f"{name}.squares"), 1, f"{name}.square", keep_axis=True)
        norm = self._unary(square, trt.UnaryOperation.SQRT, f"{name}.norm")
        return self.addQuotient(
            x, self.addMaximum(norm, self._scalar(1e-12, norm, f"{name}.least"), f"{name}.divisor"), name
        )

    def addRunningSum(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The inclusive cumulative sum along the first axis."""
        axis = self.addConstant(np.zeros((), np.int32), f"{name}.axis", trt.DataType.INT32, ())
        layer = self.network.add_cumulative(x, axis, trt.CumulativeOperation.SUM, exclusive=False, reverse=False)
        return self._check_layer(layer, name, [x])

    # types and shapes

    def addConcatenation(self, tensors: Sequence[trt.ITensor], name: str) -> trt.ITensor:
        """The tensors one after another along the first axis."""
        return self._check_layer(self.network.add_concatenation(list(tensors)), name, tensors)

    def addCast(self, x: trt.ITensor, dtype: trt.DataType, name: str) -> trt.ITensor:
        """x in another type; x itself if it has that type already."""
        if x.dtype == dtype:
            return x
        return self._check_layer(self.network.add_cast(x, dtype), name, [x])

    def addReshape(self, x: trt.ITensor, shape: Sequence[int], name: str) -> trt.ITensor:
        """x in another shape; 0 keeps the length of x's axis at that index, and TensorRT infers one -1."""
        return self.addShuffle(x, name, shape=shape)

    def addShuffle(
        self,
        x: trt.ITensor,
        name: str,
        first_transpose: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        second_transpose: Sequence[int] | None = None,
    ) -> trt.ITensor:
        """Transposes, reshapes and transposes again in one layer; each of the three is optional."""
        layer = self.network.add_shuffle(x)
        if layer is not None:
            if first_transpose is not None:
                layer.first_transpose = trt.Permutation(list(first_transpose))
            if shape is not None:
                layer.reshape_dims = trt.Dims(list(shape))
            if second_transpose is not None:
                layer.second_transpose = trt.Permutation(list(second_transpose))
        return self._check_layer(layer, name, [x])

    # helpers of the methods above

    def _elementwise(
        self, a: trt.ITensor, b: trt.ITensor, operation: trt.ElementWiseOperation, name: str
    ) -> trt.ITensor:
        return self._check_layer(self.network.add_elementwise(a, b, operation), name, [a, b])

    def _unary(self, x: trt.ITensor, operation: trt.UnaryOperation, name: str) -> trt.ITensor:
        return self._check_layer(self.network.add_unary(x, operation), name, [x])

    def _scalar(self, value: float, like: trt.ITensor, name: str) -> trt.ITensor:
        """A constant of x's type that broadcasts over x."""
        return self.addConstant(np.full((1,) * len(like.shape), value, np.float32), name, like.dtype)

    def _check_layer(self, layer: trt.ILayer | None, name: str, inputs: Sequence[trt.ITensor]) -> trt.ITensor:
        """Names the layer and its output, and checks that TensorRT accepts the layer.

        Raises:
            LayerError: TensorRT refuses the layer.
        """
        given = "; ".join(describe_tensor(tensor) for tensor in inputs) or "none"
        if layer is None:
            raise LayerError(f"layer {name!r} refused. Inputs: {given}. TensorRT: {self.log.take_errors()}")
        layer.name = name
        output = layer.get_output(0)
        if shape_of(output) is None:  # reading the shape makes TensorRT check shapes and types
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

    TensorRT cannot decompose a packed attention and needs a fused kernel for it. RTX 1.7.1 accepts such a layer and
    then finds no kernel for any GPU and type.
    """
    return not IS_RTX and dtype != trt.DataType.FLOAT and hasattr(getattr(trt, "IAttention", None), "query_form")


def _output_fields(
    output_scale: float, outputs: str, quantized_type: trt.DataType, name: str
) -> dict[str, float | int | str]:
    """The fields of a plugin's output in 8 bits; what is the plugin's default is left out.

    Raises:
        LayerError: both outputs are asked for without a scale, so that the caller would get one.
    """
    if outputs == "both" and not output_scale:
        raise LayerError(
            f"layer {name!r} has outputs 'both', but output_scale 0; give the scale of the one in 8 bits"
        )
    fields: dict[str, float | int | str] = {"output_scale": output_scale} if output_scale else {}
    fields["outputs"] = outputs
    if quantized_type != trt.DataType.INT8:
        fields["quantized_type"] = element_type(quantized_type).name
    return fields


def _as_rank(shape: Sequence[int], like: trt.ITensor) -> tuple[int, ...]:
    """``shape`` with leading axes of length 1, up to the rank of ``like``: TensorRT only broadcasts equal ranks."""
    return (1,) * (len(like.shape) - len(shape)) + tuple(shape)
