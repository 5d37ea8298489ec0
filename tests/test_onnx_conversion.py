"""The graph that the parser reads: casts, Q/DQ and attention. ONNX's own checker accepts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import builder
import onnx2trt
from bert_trt import onnx_conversion
from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.model_files import ModelFolder, load_onnx
from bert_trt.onnx_conversion import GraphQuantizer, convert_model, convert_precision, use_attention
from bert_trt.quantization import Product, Quantization
from bert_trt.tensorrt_log import TrtLog


def read(folder: ModelFolder) -> ir.Model:
    return ir.from_proto(load_onnx(folder.onnx_path))


@pytest.fixture(scope="module")
def products(model_dir: Path) -> list[Product]:
    return builder.assemble(ModelFolder(model_dir), TrtLog(), "fp16").products


def quantize(products: list[Product], kind: str = "int8", smoothed: int = 0) -> Quantization:
    """Every product, with the same range for all tensors; the first ``smoothed`` tensors are smoothed."""
    tensors = list(dict.fromkeys(name for product in products for name in product.activations))
    linear = list(dict.fromkeys(product.activations[0] for product in products if product.weight_shape is not None))
    smoothing = {name: np.full(128, 2, np.float32) for name in linear[:smoothed]}
    ranges = dict.fromkeys([*tensors, *(f"{name}.smoothed" for name in linear)], 4.0)
    return Quantization(kind, frozenset(product.name for product in products), ranges, smoothing)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("layer_norm", ["native", "fast"])
def test_fp32_operators_are_between_casts(model_dir, precision, layer_norm):
    folder = ModelFolder(model_dir)
    model = read(folder)
    convert_precision(model, folder.weights(), precision, layer_norm)
    operators = ["Softmax", *(["LayerNormalization"] if layer_norm == "native" else [])]
    nodes = [node for node in model.graph if node.op_type in operators]
    assert len(nodes) == 2 + (6 if layer_norm == "native" else 0)
    for node in nodes:
        before: Any = node.inputs[0] and node.inputs[0].producer()
        assert (before.op_type, before.attributes["to"].as_int()) == ("Cast", ir.DataType.FLOAT)
        after = [(user.op_type, user.attributes["to"].as_int()) for user in node.outputs[0].consumers()]
        assert after == [("Cast", ELEMENT_TYPES[precision].onnx)]


@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8", "fp8", "int8, smoothed"])
def test_onnx_accepts_the_converted_graph(model_dir, products, tmp_path, kind):
    """The checker infers every type anew and compares it with the one that stands in the file."""
    folder = ModelFolder(model_dir)
    model = read(folder)
    name, _, smoothed = kind.partition(", ")
    quantization = quantize(products, name, 2 if smoothed else 0) if name in ("int8", "fp8") else None
    precision = name if quantization is None else "fp16"
    convert_model(model, folder.weights(), folder.config, precision, quantization=quantization, products=products)
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    (output,) = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.output
    assert output.name == "logit"
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_a_tensor_is_quantized_once_for_all_products_that_read_it(model_dir, products):
    folder = ModelFolder(model_dir)
    model = read(folder)
    convert_model(
        *(model, folder.weights(), folder.config, "fp16"), quantization=quantize(products), products=products
    )
    activations = {name for product in products for name in product.activations}
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == len(activations)
    weights = sum(product.weight_shape is not None for product in products)
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == len(activations) + weights


def test_fp16_weights_that_nothing_reads_any_more_are_removed(model_dir, products):
    folder = ModelFolder(model_dir)
    model = read(folder)
    quantization = quantize(products, smoothed=2)
    contents = convert_model(
        *(model, folder.weights(), folder.config, "fp16"), quantization=quantization, products=products
    )
    names = set(model.graph.initializers)
    for product in products:
        if product.weight_shape is not None:
            assert f"{product.name}.weight" not in names
            assert f"{product.name}.weight.smoothed" not in names
            assert contents.weights[f"{product.name}.weight.quantized"].dtype == np.int8
    assert "bert.embeddings.word_embeddings.weight" in names


def test_a_graph_without_the_attention_that_we_write_is_an_error(model_dir):
    folder = ModelFolder(model_dir)
    model = read(folder)
    next(node for node in model.graph if node.op_type == "Mul").op_type = "Div"
    with pytest.raises(UserError, match="the ONNX graph has no attention around 'node_softmax'; write it again"):
        use_attention(model, folder.config)
    (softmax,) = [node for node in model.graph if node.name == "node_softmax"]
    softmax.replace_input_with(0, model.graph.inputs[0])
    with pytest.raises(UserError, match="the ONNX graph has no attention around 'node_softmax'; write it again"):
        use_attention(model, folder.config)


def test_a_graph_without_a_product_is_an_error(model_dir, products):
    folder = ModelFolder(model_dir)
    model = read(folder)
    convert_precision(model, folder.weights(), "fp16", "native")
    name = products[0].name
    model.graph.initializers[f"{name}.weight"].name = "other"
    quantizer = GraphQuantizer(model, folder.weights(), folder.config, quantize(products), products)
    with pytest.raises(UserError, match=f"the ONNX graph has no product '{name}'; write it again with model2onnx"):
        quantizer.run()


def test_a_model_that_is_too_large_for_one_onnx_message_is_an_error(model_dir, monkeypatch):
    monkeypatch.setattr(onnx_conversion, "LARGEST_MODEL", 10**5)
    folder = ModelFolder(model_dir)
    onnx2trt.parse(folder, "fp32", TrtLog())  # its weights stay in their file
    with pytest.raises(UserError, match=f"{folder.onnx_path} in fp16 is larger than 2 GiB, .*; use builder.py"):
        onnx2trt.parse(folder, "fp16", TrtLog())
