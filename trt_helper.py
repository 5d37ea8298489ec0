"""TensorRT, one small step above the Python API: ``TrtNetworkHelper`` assembles a network.

``addLinear``, ``addSoftmax``, ``addGELU``, ``addLayerNorm`` ... Every layer carries the name of the module it stands
for, and TensorRT's answer is checked at once. What comes before and after stands in the package, and can be imported
from here too: ``create_builder`` and ``build_plan`` (bert_trt/plan.py), ``InferHelper`` (bert_trt/inference.py).

Networks are strongly typed: fp16 means fp16 weights and tensors, and nothing is cast behind one's back.
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
from bert_trt.plugin_layers import PluginLayer, PluginLayers
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
        network: the network to add to.
        log: the logger that the network's builder uses.
        dtype: type of weights and tensors (fp32, fp16 or bf16); layer norm and softmax compute in fp32 regardless.
        plugins: makes plugin layers; None for a network without any. See bert_trt/recording.py.

    Attributes:
        weights: the values of constants by layer name. TensorRT reads them when it builds: they must live until then.
        sources: the fp32 values that constants were rounded or quantized from, see bert_trt/network_proof.py.
        plugin_layers: the plugin layers by name.
        gelu_parts: names of the layers that ``addGELU(kind="decomposed")`` made.
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
            quantized: the type of a quantized product (INT8 or FP8): the weight is stored in it, one byte an
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

    def addTiedLinear(self, x: trt.ITensor, table: trt.ITensor, bias: np.ndarray, name: str) -> trt.ITensor:
        """x @ tableᵀ + bias, for a decoder whose weight is the table of an embedding.

        Args:
            x: (..., H).
            table: (V, H), a tensor of the network.
            bias: (V,).
            name: the module's name.

        Returns:
            (..., V).
        """
        shape = _as_rank(as_tuple(table.shape), x)
        if len(shape) > len(as_tuple(table.shape)):  # a product takes as many axes on both sides
            table = self.addReshape(table, shape, f"{name}.decoder.weight")
        return self.addBias(self.addMatMul(x, table, f"{name}.decoder", transpose_b=True), bias, name)

    def _addQuantizedWeight(self, x: trt.ITensor, weight: np.ndarray, name: str, dtype: trt.DataType) -> trt.ITensor:
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
            dtype: INT8 or FP8.
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
            scale = largest / element_type(dtype).largest
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

    def addActivation(self, x: trt.ITensor, name: str, kind: str) -> trt.ITensor:
        """``relu``, or a GELU as for ``addGELU``."""
        return self.addReLU(x, name) if kind == "relu" else self.addGELU(x, name, kind)

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
                plugin.

        Returns:
            (..., H) in the helper's type.
        """
        if kernel != "native":
            return self._addLayerNormPlugin(x, gamma, beta, epsilon, name, kernel)
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

    def _addLayerNormPlugin(
        self, x: trt.ITensor, gamma: np.ndarray, beta: np.ndarray, epsilon: float, name: str, kernel: str
    ) -> trt.ITensor:
        """The plugin reads and writes the helper's type; gamma and beta stay fp32."""
        x = self.addCast(x, self.dtype, f"{name}.narrow")
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT)
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT)
        layer = PluginLayer(
            name, "LayerNorm", {"epsilon": epsilon, "kernel": kernel}, ((x.dtype, as_tuple(x.shape)),)
        )
        (y,) = self.addPlugin(layer, [x, scale, shift])
        return y

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
    ) -> tuple[trt.ITensor, ...]:
        """LN(x + skip + bias) by the SkipLayerNorm plugin.

        The sum is fp32 inside the kernel: in fp16 it would be the first to overflow in a trained BERT.

        Args:
            x: (..., H), the helper's type, or int8 with ``x_scale``.
            skip: (..., H), likewise.
            gamma: (H,).
            beta: (H,).
            epsilon: BERT: 1e-12.
            name: the module's name.
            bias: (H,), of the linear layer that made x, or None.
            x_scale: x is int8, real value = int8 · scale; 0: x is floating.
            skip_scale: likewise.
            output_scale: scale of an int8 output; 0: there is none.
            outputs: ``y``: one output, int8 if there is a scale for it; ``both``: y in the helper's type, then int8.
            constant_weights: the kernel may read gamma, beta and bias before the layer in front of it has ended.

        Returns:
            The outputs, each (..., H).
        """
        scales = {"x_scale": x_scale, "skip_scale": skip_scale, "output_scale": output_scale}
        given = {key: scale for key, scale in scales.items() if scale}
        fields = {"epsilon": epsilon, **given, "outputs": outputs, "constant_weights": int(constant_weights)}
        if x_scale and skip_scale:  # else the type of the floating input says it
            fields["output_type"] = element_type(self.dtype).name
        inputs = [
            tensor if scale else self.addCast(tensor, self.dtype, f"{name}.{side}")
            for tensor, scale, side in ((x, x_scale, "x"), (skip, skip_scale, "skip"))
        ]
        parameters = (("weight", gamma), ("bias", beta), ("linear_bias", bias))
        inputs += [
            self.addConstant(values, f"{name}.{part}", trt.DataType.FLOAT)
            for part, values in parameters
            if values is not None
        ]
        floating = (self.dtype,) if outputs == "both" or not output_scale else ()
        dtypes = (*floating, trt.DataType.INT8) if output_scale else floating
        made = tuple((dtype, as_tuple(x.shape)) for dtype in dtypes)
        return self.addPlugin(PluginLayer(name, "SkipLayerNorm", fields, made), inputs)

    def addEmbLayerNorm(
        self,
        ids: Sequence[trt.ITensor],
        tables: Sequence[trt.ITensor],
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float,
        name: str,
    ) -> trt.ITensor:
        """LN(word + position + type) by the EmbLayerNorm plugin.

        Args:
            ids: input_ids, token_type_ids and position_ids, int32 (...). An id outside its table makes its row NaN.
            tables: of words (V, H), positions (P, H) and token types (Y, H), in the helper's type.
            gamma: (H,).
            beta: (H,).
            epsilon: BERT: 1e-12.
            name: the module's name.

        Returns:
            (..., H) in the helper's type.
        """
        scale = self.addConstant(gamma, f"{name}.weight", trt.DataType.FLOAT)
        shift = self.addConstant(beta, f"{name}.bias", trt.DataType.FLOAT)
        made = ((self.dtype, (*as_tuple(ids[0].shape), len(gamma))),)
        layer = PluginLayer(name, "EmbLayerNorm", {"epsilon": epsilon}, made)
        (y,) = self.addPlugin(layer, [*ids, *tables, scale, shift])
        return y

    def addQkvToContext(
        self,
        qkv: trt.ITensor,
        num_heads: int,
        name: str,
        layout: str = "single",
        lengths: trt.ITensor | None = None,
        qkv_scale: float = 0.0,
        output_scale: float = 0.0,
        output: trt.DataType | None = None,
    ) -> trt.ITensor:
        """softmax(Q Kᵀ / √D) V for each head by the QkvToContext plugin.

        Args:
            qkv: Q, K and V side by side: single (S, 3 H), padded (B, S, 3 H), packed (T, 3 H).
            num_heads: N; D = H / N is 32, 64 or 128.
            name: the module's name.
            layout: single, padded or packed.
            lengths: padded: the attention mask, int32 (B, S); packed: cu_seqlens, int32 (B + 1,).
            qkv_scale: scale of an int8 ``qkv``; 0: it is floating.
            output_scale: scale of an int8 output; 0: it is floating.
            output: the output's type where qkv is int8 and the output is not.

        Returns:
            As ``qkv``, with H for 3 H.
        """
        fields: dict[str, float | int | str] = {"num_heads": num_heads, "layout": layout}
        fields |= {"qkv_scale": qkv_scale} if qkv_scale else {}
        fields |= {"output_scale": output_scale} if output_scale else {}
        fields |= {"output_type": element_type(output).name} if output is not None else {}
        dtype = trt.DataType.INT8 if output_scale else output or qkv.dtype
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
    ) -> trt.ITensor:
        """activation(x @ weight + bias) by the Linear plugin.

        Args:
            x: (..., in) in the helper's type, fp16 or bf16.
            weight: (in, out).
            bias: (out,), or None.
            name: the module's name, for its parameters.
            layer_name: the layer's name, such as that of the activation; default: ``name``.
            activation: ``none`` or ``gelu``, by the error function.
            constant_weight: the kernel may read the weight before the layer in front of it has ended.

        Returns:
            (..., out).
        """
        inputs = [x, self.addConstant(weight.T, f"{name}.weight")]  # (out, in), as the plugin reads it
        if bias is not None:
            inputs.append(self.addConstant(bias, f"{name}.bias"))
        fields = {"activation": activation, "constant_weight": int(constant_weight)}
        made = ((self.dtype, (*as_tuple(x.shape)[:-1], weight.shape[1])),)
        (y,) = self.addPlugin(PluginLayer(layer_name or name, "Linear", fields, made), inputs)
        return y

    def addPlugin(self, layer: PluginLayer, inputs: Sequence[trt.ITensor]) -> tuple[trt.ITensor, ...]:
        """A plugin layer: its outputs, called by the layer's name, ``name.1`` and so on.

        Raises:
            LayerError: TensorRT refuses it.
            ValueError: the helper makes no plugins, or this layer was not recorded, see bert_trt/recording.py.
        """
        if self.plugins is None:
            raise ValueError(f"no plugin library for layer {layer.name!r}: define the network by define_network")
        self.plugin_layers[layer.name] = layer
        added = self.plugins.add(layer, inputs)
        outputs = [self._finish(added, layer.name, inputs)]
        assert added is not None  # _finish has raised
        for place in range(1, added.num_outputs):
            outputs.append(added.get_output(place))
            outputs[place].name = f"{layer.name}.{place}"
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
