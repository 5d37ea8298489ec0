"""Turns the fp32 graph that model2onnx.py writes into the one that TensorRT's parser reads.

The network is strongly typed, so types, plugins, attention layers and Q/DQ nodes must be in the ONNX model itself.
Every function edits an ``onnx_ir.Model`` in place. ``convert_model`` calls them in the right order.

Files of other exporters take onnx_precision.py instead. There a constant beyond fp16 is an attention mask and stays
fp32. Here it is a weight, and an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES, convert_weight, element_type, quantize_weight
from bert_trt.model_files import BertConfig, WeightFile
from bert_trt.network import NetworkContents
from bert_trt.plugin_layers import NAMESPACE, VERSION, PluginLayer
from bert_trt.quantization import BASE_PRECISION, Product, Quantization, range_name
from bert_trt.tensorrt_product import trt

LAYER_NORM = "LayerNormalization"
LARGEST_MODEL = 2**31 - 1  # bytes; protobuf's limit for one message
FP32_OPERATORS = (LAYER_NORM, "Softmax")  # compute in fp32 whatever the type around them


def convert_model(
    model: ir.Model,
    weights: WeightFile,
    config: BertConfig,
    precision: str,
    layer_norm: str = "native",
    quantization: Quantization | None = None,
    fusion: str = "none",
    products: Sequence[Product] = (),
) -> NetworkContents:
    """Converts the model to a precision and adds the attention layers, Q/DQ nodes and plugins that are asked for.

    Args:
        model: the fp32 model that model2onnx.py wrote; changed in place.
        weights: its weights.
        config: the model's sizes.
        precision: fp32, fp16 or bf16; fp16 with ``quantization``.
        layer_norm: ``native``, or a kernel of the LayerNorm plugin.
        quantization: which products are quantized and how.
        fusion: none or tensorrt.
        products: with ``quantization``, all products of the encoder, in the order of computation.

    Returns:
        The converted constants, the fp32 values that they were converted from, and the plugin layers, by name.

    Raises:
        UserError: a weight does not fit the precision, or the graph is not one that model2onnx.py writes.
    """
    if fusion == "tensorrt":
        use_attention(model, config)
    converted: dict[str, np.ndarray] = {}
    sources: dict[str, np.ndarray] = {}
    if precision != "fp32":
        converted, sources = convert_precision(model, weights, precision, layer_norm)
    if quantization is not None:
        quantizer = GraphQuantizer(model, weights, config, quantization, products)
        quantizer.run()
        converted |= quantizer.values
        sources |= quantizer.sources
    plugins = {}
    if layer_norm != "native":
        plugins = use_plugin(model, config, ELEMENT_TYPES[precision].trt, layer_norm)
    return NetworkContents(converted, plugins, sources)


def serialize(model: ir.Model, description: str, remedy: str = "") -> bytes:
    """Serializes a model for the parser.

    Args:
        model: the model.
        description: names it in the message.
        remedy: ends the message.

    Raises:
        UserError: it is larger than one ONNX message can be.
    """
    proto = ir.to_proto(model)
    if proto.ByteSize() > LARGEST_MODEL:
        raise UserError(f"{description} is larger than 2 GiB, more than one ONNX message can hold{remedy}")
    return proto.SerializeToString()


# --- fp16 and bf16 --------------------------------------------------------------------------------------------


def convert_precision(
    model: ir.Model, weights: WeightFile, precision: str, layer_norm: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Turns an fp32 graph into an fp16 or bf16 one, in place.

    Every fp32 tensor is converted, with two exceptions. ``FP32_OPERATORS`` compute in fp32: their input is cast to
    fp32 and their output is cast back. The graph's outputs stay fp32. A LayerNorm plugin reads fp16 and bf16 itself;
    its gamma and beta stay fp32.

    Args:
        model: the graph; its weights may lie in a data file.
        weights: that data file.
        precision: "fp16" or "bf16".
        layer_norm: "native", or a kernel of the plugin.

    Returns:
        The converted weights by name, and their fp32 values by name.

    Raises:
        UserError: a weight does not fit the precision; the message names it.
    """
    graph, dtype = model.graph, ELEMENT_TYPES[precision]
    narrow = ir.DataType(dtype.onnx)
    fp32_weights = {value for node in graph if node.op_type in FP32_OPERATORS for value in node.inputs[1:]}
    converted: dict[str, np.ndarray] = {}
    sources: dict[str, np.ndarray] = {}
    for name, value in graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and value not in fp32_weights:
            source = sources[name] = weights.get(name, _shape(value))
            converted[name] = convert_weight(source, dtype.trt, name)
            value.const_value = ir.tensor(converted[name], name=name)
            value.type = ir.TensorType(narrow)
        elif isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(weights.get(name, _shape(value)), name=name)
    for value in (value for node in graph for value in node.outputs):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(narrow)
    for node in list(graph):
        if node.op_type in FP32_OPERATORS and (node.op_type != LAYER_NORM or layer_norm == "native"):
            _compute_in_fp32(node, narrow)
    for index, value in enumerate(graph.outputs):  # the producer of NAME now writes NAME_narrow; a cast writes NAME
        name, value.name = str(value.name), f"{value.name}_narrow"
        cast = _cast(value, name, ir.DataType.FLOAT)
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
    return converted, sources


def _shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of an initializer."""
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def _compute_in_fp32(node: ir.Node, narrow: ir.DataType) -> None:
    """Casts the node's first input to fp32, and its output back to the narrow type."""
    graph, source, output = node.graph, node.inputs[0], node.outputs[0]
    assert graph is not None and source is not None
    before = _cast(source, f"{source.name}_wide_for_{node.name}", ir.DataType.FLOAT)
    node.replace_input_with(0, before.outputs[0])
    name, output.name, output.type = str(output.name), f"{output.name}_wide", ir.TensorType(ir.DataType.FLOAT)
    after = _cast(output, name, narrow)
    output.replace_all_uses_with(after.outputs[0], replace_graph_outputs=True)
    after.replace_input_with(0, output)
    graph.insert_before(node, before)
    graph.insert_after(node, after)


def _cast(source: ir.Value, name: str, to: ir.DataType) -> ir.Node:
    """A Cast node whose output is called ``name``."""
    node = ir.node("Cast", [source], {"to": to}, name=f"cast_{name}")
    (output,) = node.outputs
    output.name, output.type, output.shape = name, ir.TensorType(to), source.shape
    return node


# --- plugins and attention ------------------------------------------------------------------------------------


def use_plugin(model: ir.Model, config: BertConfig, dtype: trt.DataType, kernel: str) -> dict[str, PluginLayer]:
    """Turns every LayerNormalization into a LayerNorm plugin node, in place.

    Args:
        model: the graph.
        config: the model's sizes.
        dtype: the type of the plugin's input and output.
        kernel: which kernel of the plugin.

    Returns:
        The plugin layers by name.
    """
    layers: dict[str, PluginLayer] = {}
    for node in model.graph:
        if node.op_type == LAYER_NORM:
            epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
            outputs = ((dtype, (-1, -1, config.hidden_size)),)
            layer = PluginLayer(str(node.name), "LayerNorm", {"epsilon": epsilon, "kernel": kernel}, outputs)
            layers[layer.name] = layer
            node.op_type = layer.plugin
            fields = {"plugin_version": VERSION, "plugin_namespace": NAMESPACE, **layer.fields}
            node.attributes.clear()
            node.attributes.update({attr.name: attr for attr in ir.convenience.convert_attributes(fields)})
    return layers


def use_attention(model: ir.Model, config: BertConfig) -> None:
    """Replaces the scores, their scaling, the softmax and the product with V by one Attention node in each layer, in
    place. The parser turns it into TensorRT's own attention.

    Raises:
        UserError: the graph is not one that model2onnx.py writes.
    """
    graph = model.graph
    model.opset_imports[""] = 23  # the first with Attention
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        context, scaled = softmax.outputs[0].consumers()[0], _producer(softmax, 0)
        scores = _producer(scaled, 0)
        transposed_key = _producer(scores, 1)
        pattern = [node and node.op_type for node in (transposed_key, scores, scaled, context)]
        if pattern != ["Transpose", "MatMul", "Mul", "MatMul"]:
            raise UserError(
                f"the ONNX graph has no attention around {softmax.name!r}; write it again with model2onnx.py"
            )
        assert transposed_key is not None and scores is not None and scaled is not None
        transposed_key.attributes["perm"] = ir.AttrInt64s("perm", (0, 2, 1, 3))  # K like Q and V: (B, N, S, D)
        key = transposed_key.outputs[0]
        key.shape = None
        query, value = scores.inputs[0], context.inputs[1]
        context.op_type = "Attention"
        context.resize_inputs(3)
        for index, tensor in enumerate((query, key, value)):
            context.replace_input_with(index, tensor)
        context.attributes.add(ir.AttrFloat32("scale", 1 / math.sqrt(config.head_size)))
        context.attributes.add(ir.AttrInt64("TRT_decomposable", 1))  # see TrtNetworkHelper.addAttention
        graph.remove([softmax, scaled, scores], safe=True)


def _producer(node: ir.Node | None, index: int) -> ir.Node | None:
    """The node that computes an input of ``node``."""
    value = None if node is None or index >= len(node.inputs) else node.inputs[index]
    return None if value is None else value.producer()


# --- int8 and fp8: QuantizeLinear and DequantizeLinear nodes --------------------------------------------------


class GraphQuantizer:
    """Quantizes matrix products of an fp16 graph, in place, with the same scales and weights as builder.py.

    Args:
        model: the graph, converted to fp16.
        weights: the fp32 weights.
        config: the model's sizes.
        quantization: which products, and the ranges of their activations.
        products: all products of the encoder, in the order of computation, under builder.py's names.

    Attributes:
        values: the constants that were added, by name.
        sources: the fp32 values that were rounded or quantized to them.
    """

    def __init__(
        self,
        model: ir.Model,
        weights: WeightFile,
        config: BertConfig,
        quantization: Quantization,
        products: Sequence[Product],
    ) -> None:
        self.graph = model.graph
        self.weights = weights
        self.config = config
        self.quantization = quantization
        self.products = list(products)
        self.values: dict[str, np.ndarray] = {}
        self.sources: dict[str, np.ndarray] = {}
        self._added: dict[str, ir.Value] = {}  # outputs of added nodes by name: one for all products that read it
        model.opset_imports[""] = 23  # the first whose DequantizeLinear has output_dtype

    def run(self) -> None:
        """Replaces the inputs of every product that is smoothed or quantized.

        Raises:
            UserError: the graph is not one that model2onnx.py writes.
        """
        products = self.products
        if any(node.op_type == "Attention" for node in self.graph):
            products = [product for product in products if product.weight_shape is not None]
        linear = {f"{product.name}.weight": product for product in products if product.weight_shape is not None}
        attention = [product for product in products if product.weight_shape is None]  # in the order of the graph
        done = set()
        for node in [node for node in self.graph if node.op_type == "MatMul"]:
            factor = node.inputs[1]
            assert factor is not None
            if factor.name in linear:
                done.add(self._linear(node, linear[factor.name]))
            elif not factor.is_initializer() and attention:
                done.add(self._attention_product(node, attention.pop(0)))
        missing = [product.name for product in products if product.name not in done]
        if missing:
            raise UserError(f"the ONNX graph has no product {missing[0]!r}; write it again with model2onnx.py")
        for value in list(self.graph.initializers.values()):
            if not value.uses():
                del self.graph.initializers[str(value.name)]

    def _linear(self, node: ir.Node, product: Product) -> str:
        """x @ W, smoothed and quantized as asked for. Returns the product's name."""
        (tensor,) = product.activations
        x, factor = node.inputs
        assert product.weight_shape is not None and x is not None and factor is not None
        weight = self.weights.get(str(factor.name), product.weight_shape)
        divisors = self.quantization.smoothing.get(tensor)
        if divisors is not None:
            weight = weight * divisors[:, None]
            x = self._smoothed(node, x, divisors)
            fp16 = convert_weight(weight, ELEMENT_TYPES[BASE_PRECISION].trt, product.name)
            factor = self._constant(f"{factor.name}.smoothed", fp16, weight)
        if product.name in self.quantization.products:
            amax = self.quantization.ranges[range_name(tensor, self.quantization.smoothing)]
            x = self._quantized(node, x, amax)
            factor = self._quantized_weight(node, product.name, weight)
        node.replace_input_with(0, x)
        node.replace_input_with(1, factor)
        return product.name

    def _attention_product(self, node: ir.Node, product: Product) -> str:
        """Q Kᵀ or P V. Returns the product's name.

        The exported graph scales the scores, builder.py the queries. So the range of the queries here is that of
        builder.py's scaled queries times √D, and both get the same integers.
        """
        if product.name in self.quantization.products:
            for index, tensor in enumerate(product.activations):
                x = node.inputs[index]
                assert x is not None
                factor = math.sqrt(self.config.head_size) if tensor.endswith(".scaled_query") else 1.0
                node.replace_input_with(index, self._quantized(node, x, self.quantization.ranges[tensor] * factor))
        return product.name

    def _smoothed(self, node: ir.Node, x: ir.Value, divisors: np.ndarray) -> ir.Value:
        """x / divisors, computed before ``node`` unless it is there already."""
        name = f"{x.name}.smoothed"
        if name not in self._added:
            fp16 = convert_weight(1 / divisors, ELEMENT_TYPES[BASE_PRECISION].trt, name)
            self._add(node, "Mul", [x, self._constant(f"{name}.factors", fp16, 1 / divisors)], name)
        return self._added[name]

    def _quantized(self, node: ir.Node, x: ir.Value, amax: float) -> ir.Value:
        """x quantized and dequantized before ``node``, once for all products that read it."""
        name = f"{x.name}.dequantized"
        if name not in self._added:
            dtype = element_type(self.quantization.dtype)
            scale = self._constant(f"{x.name}.scale", np.asarray(amax / dtype.largest, np.float32))
            zero_point = self._constant(f"{x.name}.zero", np.zeros((), dtype.numpy))  # it gives the type
            quantized = self._add(node, "QuantizeLinear", [x, scale, zero_point], f"{x.name}.quantized")
            self._dequantize(node, [quantized, scale], name)
        return self._added[name]

    def _quantized_weight(self, node: ir.Node, product: str, weight: np.ndarray) -> ir.Value:
        """The weight (in, out) in one byte an element, dequantized before ``node`` to (1, in, out), the other
        factor's rank."""
        values, scales = quantize_weight(weight, self.quantization.dtype, product)
        stored = self._constant(f"{product}.weight.quantized", values[None], weight)
        scale = self._constant(f"{product}.scale", scales)
        return self._dequantize(node, [stored, scale], f"{product}.dequantized", axis=2)

    def _dequantize(self, node: ir.Node, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
        """To fp16, without a zero point: the parsers of TensorRT 10 refuse one beside an ``output_dtype``."""
        fp16 = ELEMENT_TYPES[BASE_PRECISION].onnx
        return self._add(node, "DequantizeLinear", inputs, name, output_dtype=fp16, **attributes)

    def _constant(self, name: str, values: np.ndarray, source: np.ndarray | None = None) -> ir.Value:
        """An initializer, once for each name; ``source`` holds the fp32 values that it was converted from."""
        if source is not None:
            self.sources[name] = source
        if name not in self.values:
            self.values[name] = values
            tensor = ir.tensor(values, name=name)
            kind = ir.TensorType(tensor.dtype)
            self.graph.register_initializer(
                ir.Value(name=name, const_value=tensor, shape=ir.Shape(values.shape), type=kind)
            )
        return self.graph.initializers[name]

    def _add(
        self, node: ir.Node, operator: str, inputs: Sequence[ir.Value], name: str, **attributes: int
    ) -> ir.Value:
        """The output of a new node before ``node``; both are called ``name``."""
        added = ir.node(operator, inputs, attributes, name=name)
        self.graph.insert_before(node, added)
        self._added[name] = added.outputs[0]
        self._added[name].name = name
        return self._added[name]
