"""Converts an fp32 ONNX graph of any exporter to fp16 or bf16, for a strongly typed network.

Most tensors become narrow, that is fp16 or bf16. These are computed in fp32, between casts:

* Softmax and layer norm, and the mean, variance and root of a layer norm in elementary operators (before opset 17).
* Attention masks. Exported graphs hide a token by adding −3.4e38 or −∞ to its score. fp16 and bf16 cannot represent
  −3.4e38, and −∞ gives a row of NaN if every token is hidden. So a constant beyond the narrow type stays fp32, and so
  do the tensors computed from it, up to the softmax. There −3.4e38 + score is −3.4e38, as in PyTorch. If such a
  tensor must become narrow earlier, it is clamped to the type's finite range.
* Sizes and masks that were integers, and the tensors computed from them: fp16 is exact up to 2048, bf16 up to 256.

onnx_conversion.convert_precision converts model2onnx.py's own graphs, where a constant beyond the narrow type is a
weight that does not fit, and an error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES, convert_weight

NORMALIZED = ("Softmax", "LogSoftmax", "LayerNormalization")  # compute in fp32; their results are small again
STATISTICS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Pow", "Sqrt", "Exp", "Log")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div")  # compute in fp32 next to statistics
PRODUCTS = ("MatMul", "Gemm", "Attention", "Conv")  # never compute in fp32
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")


@dataclass
class NarrowGraph:
    """An fp32 graph that is converted to a narrow one.

    Attributes:
        model: changed in place.
        precision: "fp16" or "bf16".
        weights: the converted constants by name.
        sources: their fp32 values by name.
    """

    model: ir.Model
    precision: str
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    sources: dict[str, np.ndarray] = field(default_factory=dict)
    _wide: set[ir.Node] = field(default_factory=set)  # nodes that compute in fp32
    _exact: set[ir.Value] = field(default_factory=set)  # tensors whose readers compute in fp32
    _huge: set[ir.Value] = field(default_factory=set)  # the exact tensors that may be beyond the narrow type
    _cast: dict[tuple[ir.Value, bool], ir.Value] = field(default_factory=dict)  # (tensor, to fp32) -> its cast

    def run(self) -> None:
        """Converts the model.

        Raises:
            UserError: an operator cannot be converted, or a weight does not fit; the message names it.
        """
        self._prepare()
        nodes = list(self.model.graph)
        for node in nodes:
            self._decide(node)
        for node in nodes:
            self._connect(node)
        self._widen_outputs()
        passes.RemoveUnusedNodesPass()(self.model)  # among them fp32 constants that only narrow nodes read

    def _prepare(self) -> None:
        """Turns constants into initializers, inlines functions, infers every tensor's type, and finds masks."""
        logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns if a shape stays unknown
        passes.InlinePass()(self.model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(self.model)
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(self.model)
        for node in self.model.graph:
            label = f"node {node.name!r} ({node.op_type})"
            if any(
                attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _attributes(node)
            ):
                raise UserError(f"{label} holds a graph of its own, which cannot be converted; use --precision fp32")
            if node.op_type in QUANTIZED or node.op_type.startswith("QLinear"):
                raise UserError(f"{label}: the file is quantized already; build it as it is, with --precision fp32")
            unknown = [value.name for value in node.outputs if value.dtype is None and value.name]
            if unknown:
                raise UserError(f"{label}: the type of its output {unknown[0]!r} is not known; use --precision fp32")
        for value in self.model.graph.initializers.values():
            if _is_float(value) and self._is_beyond(value):
                self._exact.add(value)
                self._huge.add(value)
        for value in filter(_is_float, self.model.graph.inputs):  # an additive attention mask
            self._exact.add(value)
            self._huge.add(value)

    def _is_beyond(self, value: ir.Value) -> bool:
        """Whether a constant has a value beyond the narrow type's range; NaN and infinity are."""
        assert value.const_value is not None
        array = value.const_value.numpy()
        amax = max(-array.min(initial=0), array.max(initial=0))
        return not amax < ELEMENT_TYPES[self.precision].overflow

    def _decide(self, node: ir.Node) -> None:
        """Decides whether the node computes in fp32, and whether its outputs must stay fp32."""
        floats = [value for value in node.inputs if _is_float(value)]
        carries = node.op_type not in PRODUCTS and any(value in self._exact for value in floats)
        makes_floats = any(map(_is_float, node.outputs)) and not floats
        converts = node.op_type == "Cast" and any(map(_is_float, node.outputs))
        if carries or makes_floats or converts or node.op_type in NORMALIZED or self._is_statistic(node):
            self._wide.add(node)
        counts = converts and node.inputs[0] is not None and _is_integer(node.inputs[0])
        if node.op_type not in NORMALIZED and (carries or counts):
            self._exact.update(node.outputs)
        if node.op_type not in NORMALIZED and carries and any(value in self._huge for value in floats):
            self._huge.update(node.outputs)

    def _is_statistic(self, node: ir.Node) -> bool:
        """Whether the node belongs to a layer norm in elementary operators, up to the division by the root."""
        if node.op_type in STATISTICS or _is_square(node):
            return True
        producers = [value.producer() for value in node.inputs if value is not None]
        reads_statistic = any(
            producer is not None and (producer.op_type in STATISTICS or _is_square(producer))
            for producer in producers
        )
        return node.op_type in ELEMENTWISE and reads_statistic

    def _connect(self, node: ir.Node) -> None:
        """Replaces the node's inputs by tensors of its own type, and sets the type of its outputs."""
        is_wide = node in self._wide
        for index, value in enumerate(node.inputs):
            if value is not None and _was_float(value):
                node.replace_input_with(index, self._typed(value, is_wide))
        if not is_wide:
            for value in filter(_is_float, node.outputs):
                value.type = ir.TensorType(ir.DataType(ELEMENT_TYPES[self.precision].onnx))
                value.meta["was_float"] = True

    def _typed(self, value: ir.Value, is_wide: bool) -> ir.Value:
        """The tensor in fp32 or in the narrow type."""
        if (value.dtype == ir.DataType.FLOAT) == is_wide:
            return value
        if (value, is_wide) not in self._cast:
            self._cast[value, is_wide] = self._converted(value, is_wide)
        return self._cast[value, is_wide]

    def _converted(self, value: ir.Value, is_wide: bool) -> ir.Value:
        name = f"{value.name}_{'wide' if is_wide else 'narrow'}"
        if value.is_initializer():
            assert value.const_value is not None
            source = self.sources[name] = value.const_value.numpy()
            self.weights[name] = convert_weight(source, ELEMENT_TYPES[self.precision].trt, str(value.name))
            return self._constant(name, self.weights[name])
        nodes = []
        if not is_wide and value in self._huge:
            largest = float(ml_dtypes.finfo(ELEMENT_TYPES[self.precision].numpy).max)
            limits = [self._constant(f"{name}_{limit}", np.float32(limit)) for limit in (-largest, largest)]
            nodes.append(ir.node("Clip", [value, *limits], name=f"clip_{name}"))
        before = nodes[-1].outputs[0] if nodes else value
        target = ir.DataType.FLOAT if is_wide else ir.DataType(ELEMENT_TYPES[self.precision].onnx)
        nodes.append(ir.node("Cast", [before], {"to": target}, name=f"cast_{name}"))
        result = nodes[-1].outputs[0]
        result.name, result.type, result.shape = name, ir.TensorType(target), value.shape
        producer, graph = value.producer(), self.model.graph
        if producer is None:
            graph.insert_before(graph[0], nodes)
        else:
            graph.insert_after(producer, nodes)
        return result

    def _constant(self, name: str, values: np.ndarray | np.floating) -> ir.Value:
        graph = self.model.graph
        if name not in graph.initializers:
            tensor = ir.tensor(np.asarray(values), name=name)
            kind = ir.TensorType(tensor.dtype)
            graph.register_initializer(
                ir.Value(name=name, const_value=tensor, shape=ir.Shape(values.shape), type=kind)
            )
        return graph.initializers[name]

    def _widen_outputs(self) -> None:
        """Keeps the graph's outputs in fp32: the producer of NAME now writes NAME_narrow, and a cast writes NAME."""
        graph = self.model.graph
        for index, value in enumerate(graph.outputs):
            if value.meta.get("was_float"):
                name, value.name = value.name, f"{value.name}_narrow"
                cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"cast_{name}")
                (wide,) = cast.outputs
                wide.name, wide.type, wide.shape = name, ir.TensorType(ir.DataType.FLOAT), value.shape
                graph.append(cast)
                graph.outputs[index] = wide


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return list(node.attributes.values())


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _was_float(value: ir.Value) -> bool:
    return _is_float(value) or bool(value.meta.get("was_float"))


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
