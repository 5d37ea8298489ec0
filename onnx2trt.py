"""Builds BERT from the same ONNX file through TensorRT's ONNX parser, for comparison with builder.py.

    python model2onnx.py                       writes out/
    python onnx2trt.py                         fp32 plan, run, compared with PyTorch
    python onnx2trt.py --precision fp16
    python onnx2trt.py --fusion tensorrt       attention as one layer of TensorRT's own
    python onnx2trt.py --onnx FILE             a BERT that somebody else exported, compared with onnxruntime

The network is strongly typed, so fp16 has to stand in the ONNX model: its weights and tensors are converted
before it is parsed, and layer norm and softmax keep computing in fp32. (On TensorRT 11 a mere request for
fp16 would be built as fp32 without a word.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_trt.command_line import onnx2trt_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(onnx2trt_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import numpy as np
import onnx
from onnx import helper as onnx_helper
from onnx import numpy_helper

import builder
from bert_trt.console import UserError, run_script
from bert_trt.element_types import ELEMENT_TYPES, convert_weight, element_type, quantize_weight
from bert_trt.files import write_json
from bert_trt.model_files import BertConfig, ModelFolder, WeightFile, load_onnx
from bert_trt.network import DefinedNetwork, NetworkContents
from bert_trt.options import ParserOptions, PlanOptions
from bert_trt.pipeline import Result, Task, build_and_check
from bert_trt.plan import create_builder, parse_onnx
from bert_trt.plugin_layers import PluginLayer, load_library, plugin_node, plugin_parser
from bert_trt.quantization import BASE_PRECISION, Product, Quantization, range_name
from bert_trt.report import print_report
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import trt

LAYER_NORM = "LayerNormalization"
WIDE_OPERATORS = (LAYER_NORM, "Softmax")  # compute in fp32 whatever the type around them
HALF = trt.DataType.HALF
LARGEST_MODEL = 2**31 - 1  # bytes; protobuf's limit for one message


def convert_precision(
    model: onnx.ModelProto, weights: WeightFile, precision: str, layer_norm: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Turns an fp32 graph into an fp16 or bf16 one, in place.

    Every fp32 tensor becomes narrow, except around ``WIDE_OPERATORS``, whose inputs are cast to fp32 and whose
    outputs are cast back, and the graph's outputs, which stay fp32. A LayerNorm plugin takes narrow inputs itself;
    its gamma and beta stay fp32.

    Args:
        model: the graph; its weights may lie in a data file.
        weights: that data file.
        precision: "fp16" or "bf16".
        layer_norm: "native", or a kernel of the plugin.

    Returns:
        The converted weights by name, and what they were converted from.

    Raises:
        UserError: a weight does not fit the precision; the message names it.
    """
    narrow = ELEMENT_TYPES[precision].onnx
    graph = model.graph
    wide_weights = {name for node in graph.node if node.op_type in WIDE_OPERATORS for name in node.input[1:]}
    converted: dict[str, np.ndarray] = {}
    sources: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in wide_weights:
            source = sources[tensor.name] = weights.get(tensor.name, tuple(tensor.dims))
            values = converted[tensor.name] = convert_weight(source, ELEMENT_TYPES[precision].trt, tensor.name)
            graph.initializer[index].CopyFrom(_tensor(tensor.name, values, narrow))
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            values = weights.get(tensor.name, tuple(tensor.dims))
            graph.initializer[index].CopyFrom(numpy_helper.from_array(values, tensor.name))
    wide = [name for name in WIDE_OPERATORS if layer_norm == "native" or name != LAYER_NORM]
    nodes = [new for node in graph.node for new in ([node] if node.op_type not in wide else _widen(node, narrow))]
    outputs = {value.name for value in graph.output}
    for node in nodes:  # the graph's outputs stay fp32: what made them makes NAME_narrow, and a cast follows
        for place, name in enumerate(node.output):
            if name in outputs:
                node.output[place] = f"{name}_narrow"
    nodes += [_cast(f"{name}_narrow", name, onnx.TensorProto.FLOAT) for name in sorted(outputs)]
    _replace_nodes(graph, nodes)
    return converted, sources


def use_plugin(
    model: onnx.ModelProto, config: BertConfig, dtype: trt.DataType, kernel: str
) -> dict[str, PluginLayer]:
    """Replaces every LayerNormalization by a LayerNorm plugin node, in place.

    Returns:
        The plugin layers by name.
    """
    layers: dict[str, PluginLayer] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type == LAYER_NORM:
            epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
            outputs = ((dtype, (-1, -1, config.hidden_size)),)
            layer = PluginLayer(node.name, "LayerNorm", {"epsilon": epsilon, "kernel": kernel}, outputs)
            layers[layer.name] = layer
            nodes.append(plugin_node(layer, list(node.input), list(node.output)))
        else:
            nodes.append(node)
    _replace_nodes(model.graph, nodes)
    return layers


def use_attention(model: onnx.ModelProto, config: BertConfig) -> None:
    """Replaces scores, their scaling, softmax and the product with V by one Attention node a layer, in place: the
    parser makes TensorRT's own attention of it.

    Raises:
        UserError: the graph is not one that model2onnx.py writes.
    """
    graph = model.graph
    model.opset_import[0].version = 23  # the first with Attention
    makers = {node.output[0]: node for node in graph.node}
    readers = {name: node for node in graph.node for name in node.input}
    scale, gone = 1 / math.sqrt(config.head_size), set()
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        context, scaled = readers[softmax.output[0]], makers[softmax.input[0]]
        scores = makers[scaled.input[0]]
        turned = makers[scores.input[1]]
        kinds = [node.op_type for node in (turned, scores, scaled, context)]
        if kinds != ["Transpose", "MatMul", "Mul", "MatMul"]:
            raise UserError(
                f"the ONNX graph has no attention around {softmax.name!r}; write it again with model2onnx.py"
            )
        del turned.attribute[:]
        turned.attribute.append(onnx_helper.make_attribute("perm", (0, 2, 1, 3)))  # K like Q and V: (B, N, S, D)
        inputs = [scores.input[0], turned.output[0], context.input[1]]
        # TRT_decomposable: see TrtNetworkHelper.addAttention.
        attributes = {"scale": scale, "TRT_decomposable": 1}
        fused = onnx_helper.make_node("Attention", inputs, context.output, name=context.name, **attributes)
        context.CopyFrom(fused)
        gone.update(node.output[0] for node in (scores, scaled, softmax))
    _replace_nodes(graph, [node for node in graph.node if node.output[0] not in gone])


# --- int8 and fp8: QuantizeLinear and DequantizeLinear nodes ------------------------------------------------


class GraphQuantizer:
    """Quantizes products of an fp16 graph, in place, with the same ranges and weights as builder.py.

    Args:
        model: the graph, converted to fp16.
        weights: the fp32 weights.
        config: the model's sizes.
        quantization: which products, and their ranges.
        products: all products of the encoder, in the order of computation, as builder.py names them.

    Attributes:
        values: the weights that it changed, by name.
        sources: what they were rounded or quantized from.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
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
        self._nodes: list[onnx.NodeProto] = []
        self._made: set[str] = set()  # tensors that stand in the graph already
        model.opset_import[0].version = 23  # from here on DequantizeLinear has output_dtype

    def run(self) -> None:
        """Gives every product of the encoder its new inputs.

        Raises:
            UserError: the graph is not one that model2onnx.py writes.
        """
        products = self.products
        if any(node.op_type == "Attention" for node in self.graph.node):
            products = [product for product in products if product.weight_shape is not None]
        linear = {f"{product.name}.weight": product for product in products if product.weight_shape is not None}
        attention = [product for product in products if product.weight_shape is None]  # in the order of the graph
        constants = {tensor.name for tensor in self.graph.initializer}
        done = set()
        for node in self.graph.node:
            if node.op_type == "MatMul" and node.input[1] in linear:
                done.add(self._linear(node, linear[node.input[1]]))
            elif node.op_type == "MatMul" and node.input[1] not in constants and attention:
                done.add(self._attention_product(node, attention.pop(0)))
            self._nodes.append(node)
        missing = [product.name for product in products if product.name not in done]
        if missing:
            raise UserError(f"the ONNX graph has no product {missing[0]!r}; write it again with model2onnx.py")
        _replace_nodes(self.graph, self._nodes)
        used = {name for node in self.graph.node for name in node.input}
        kept = [onnx.TensorProto.FromString(one.SerializeToString()) for one in self.graph.initializer]
        del self.graph.initializer[:]
        self.graph.initializer.extend(one for one in kept if one.name in used)

    def _linear(self, node: onnx.NodeProto, product: Product) -> str:
        """x @ W, smoothed and quantized as asked for."""
        (tensor,) = product.activations
        assert product.weight_shape is not None
        weight = self.weights.get(node.input[1], product.weight_shape)
        divisors = self.quantization.smoothing.get(tensor)
        if divisors is not None:
            weight = weight * divisors[:, None]
            node.input[0] = self._smoothed(node.input[0], divisors)
            name, values = f"{node.input[1]}.smoothed", convert_weight(weight, HALF, product.name)
            node.input[1] = self._constant(name, values, weight)
        if product.name in self.quantization.products:
            largest = self.quantization.ranges[range_name(tensor, self.quantization.smoothing)]
            node.input[0] = self._quantized(node.input[0], largest)
            node.input[1] = self._quantized_weight(product.name, weight)
        return product.name

    def _attention_product(self, node: onnx.NodeProto, product: Product) -> str:
        """Q Kᵀ or P V. The exported graph scales the scores, builder.py the queries: its range of scaled queries is
        that of the queries here times √D, and the same integers come out."""
        if product.name in self.quantization.products:
            for place, tensor in enumerate(product.activations):
                factor = math.sqrt(self.config.head_size) if tensor.endswith(".scaled_query") else 1.0
                node.input[place] = self._quantized(node.input[place], self.quantization.ranges[tensor] * factor)
        return product.name

    def _smoothed(self, tensor: str, divisors: np.ndarray) -> str:
        name = f"{tensor}.smoothed"
        if name not in self._made:
            factors = self._constant(f"{name}.factors", convert_weight(1 / divisors, HALF, name), 1 / divisors)
            self._add("Mul", [tensor, factors], name)
        return name

    def _quantized(self, tensor: str, largest: float) -> str:
        """A tensor quantized and dequantized, once for all products that read it."""
        name = f"{tensor}.dequantized"
        if name not in self._made:
            scale = np.asarray(largest / element_type(self.quantization.dtype).largest, np.float32)
            step = self._constant(f"{tensor}.scale", scale)
            zero = self._constant(f"{tensor}.zero", np.zeros((), element_type(self.quantization.dtype).numpy))
            self._add("QuantizeLinear", [tensor, step, zero], f"{tensor}.quantized")  # the zero point says the type
            self._dequantize([f"{tensor}.quantized", step], name)
        return name

    def _quantized_weight(self, product: str, weight: np.ndarray) -> str:
        """(in, out) in one byte an element; with a third axis in front, as the other factor has."""
        values, scales = quantize_weight(weight, self.quantization.dtype, product)
        stored = self._constant(f"{product}.weight.quantized", values[None], weight)
        self._dequantize([stored, self._constant(f"{product}.scale", scales)], f"{product}.dequantized", axis=2)
        return f"{product}.dequantized"

    def _dequantize(self, inputs: list[str], output: str, **attributes: Any) -> None:
        """To fp16, without a zero point: the parsers of TensorRT 10 refuse one beside an ``output_dtype``."""
        self._add("DequantizeLinear", inputs, output, output_dtype=ELEMENT_TYPES["fp16"].onnx, **attributes)

    def _constant(self, name: str, values: np.ndarray, source: np.ndarray | None = None) -> str:
        if source is not None:
            self.sources[name] = source
        if name not in self._made:
            self._made.add(name)
            kind = onnx_helper.np_dtype_to_tensor_dtype(values.dtype)
            self.graph.initializer.append(_tensor(name, np.ascontiguousarray(values).reshape(values.shape), kind))
            self.values[name] = values
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._made.add(output)
        self._nodes.append(onnx_helper.make_node(operator, inputs, [output], name=output, **attributes))


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # clearing frees the originals
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)


def _widen(node: onnx.NodeProto, narrow: int) -> list[onnx.NodeProto]:
    """Cast to fp32, the node, cast back."""
    wide_in, wide_out = f"{node.input[0]}_wide_for_{node.name}", f"{node.output[0]}_wide"
    before = _cast(node.input[0], wide_in, onnx.TensorProto.FLOAT)
    after = _cast(wide_out, node.output[0], narrow)
    node.input[0], node.output[0] = wide_in, wide_out
    return [before, node, after]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return onnx_helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)


def _tensor(name: str, values: np.ndarray, onnx_type: int) -> onnx.TensorProto:
    return onnx_helper.make_tensor(name, onnx_type, values.shape, values.tobytes(), raw=True)


def parse(
    folder: ModelFolder,
    precision: str,
    log: TrtLog,
    layer_norm: str = "native",
    quantization: Quantization | None = None,
    fusion: str = "none",
    products: Sequence[Product] = (),
) -> DefinedNetwork:
    """Parses the folder's ONNX file, converted to the precision and quantized, with attention fused if asked for.

    Args:
        folder: written by model2onnx.py.
        precision: fp32, fp16 or bf16; without effect with ``quantization``, around which everything is fp16.
        log: for TensorRT's messages.
        layer_norm: ``native``, or a kernel of the LayerNorm plugin.
        quantization: which products are quantized and how.
        fusion: none or tensorrt.
        products: with ``quantization``, all products of the encoder, see ``DefinedNetwork``.

    Raises:
        UserError: the file is missing or corrupt, a weight does not fit, or the parser refuses a node; the
            message carries the parser's own words.
    """
    path = folder.onnx_path
    weights, model = WeightFile(path), load_onnx(path)
    if fusion == "tensorrt":
        use_attention(model, folder.config)
    builder, network = create_builder(log)
    converted: dict[str, np.ndarray] = {}
    sources: dict[str, np.ndarray] = {}
    plugins: Mapping[str, PluginLayer] = {}
    precision = precision if quantization is None else BASE_PRECISION
    if precision != "fp32":
        converted, sources = convert_precision(model, weights, precision, layer_norm)
    if quantization is not None:
        quantizer = GraphQuantizer(model, weights, folder.config, quantization, products)
        quantizer.run()
        converted |= quantizer.values
        sources |= quantizer.sources
    if layer_norm != "native":
        load_library()
        plugins = use_plugin(model, folder.config, ELEMENT_TYPES[precision].trt, layer_norm)
    if model.ByteSize() > LARGEST_MODEL:
        raise UserError(f"{path} is larger than 2 GiB in {precision}; use builder.py, which has no limit")
    parser = plugin_parser(network) if plugins else trt.OnnxParser(network, LOGGER)
    parse_onnx(parser, model.SerializeToString(), path, log)
    contents = NetworkContents(converted, plugins, sources)
    return DefinedNetwork(builder, network, contents, owner=(parser, weights))


def run(options: PlanOptions) -> Result:
    """Parses, builds the plan, runs it, compares it with PyTorch."""
    folder = ModelFolder(options.model_dir)
    task = Task.prepare("onnx2trt.py", folder, options)
    with task.logging() as log:
        quantized = task.quantize(builder.assemble, log)
        start = time.perf_counter()
        quantization, products = (None, ()) if quantized is None else (quantized.quantization, quantized.products)
        parsed = parse(folder, options.precision, log, options.layer_norm, quantization, options.fusion, products)
        return build_and_check(task, log, parsed, time.perf_counter() - start, quantized)


def run_foreign(path: Path, options: ParserOptions) -> int:
    """A file that somebody else exported. Exits with 0 only if it was compared and agrees."""
    from bert_trt import foreign_onnx  # brings PyTorch, which other builds need only later

    result = foreign_onnx.run(path, options)
    foreign_onnx.print_report(result)
    write_json(options.json, result.as_dict())
    return 0 if result.agrees else 1


def main() -> int:
    """The script."""
    options = onnx2trt_arguments()
    if options.onnx is not None:
        return run_foreign(options.onnx, options)
    result = run(options)
    print_report(result)
    write_json(options.json, result.as_dict())
    return 0 if result.agrees else 1


if __name__ == "__main__":
    run_script(main)
