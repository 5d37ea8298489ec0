"""The runner reads any order of layers, honours types, follows shapes, and refuses what it does not know."""

from typing import Any

import numpy as np
import pytest
import torch
from test_trt_helper import OneLayer, random

import builder
import network_runner
import onnx2trt
from common import UserError
from model_files import ModelFolder
from network_runner import NetworkRunner, UnsupportedLayerError
from plugin_layers import Known
from tensorrt_product import trt
from trt_helper import TrtLog


def test_any_tensor_can_be_asked_for():
    net = OneLayer()
    x = random(1, 2, 3)
    hidden = net.helper.addScale(net.input(x), 2.0, "hidden")
    net.helper.markOutput(net.helper.addReLU(hidden, "act"), "y")
    answer = NetworkRunner(net.network, outputs=["y", "hidden", "hidden.factor"]).run(net.inputs)
    np.testing.assert_array_equal(answer["hidden"].numpy(), 2 * x)
    np.testing.assert_array_equal(answer["y"].numpy(), np.maximum(2 * x, 0))
    assert answer["hidden.factor"].item() == 2.0


def test_a_tensor_that_is_not_there_is_named():
    net = OneLayer()
    net.helper.markOutput(net.helper.addReLU(net.input(random(1, 2)), "act"), "y")
    with pytest.raises(UserError, match="the network has no tensor 'layer99'"):
        NetworkRunner(net.network, outputs=["layer99"])


def test_wrong_inputs_are_named():
    net = OneLayer()
    net.helper.markOutput(net.helper.addReLU(net.input(random(1, 2)), "act"), "y")
    with pytest.raises(UserError, match=r"inputs given: \['ids'\]; the network has \['x0'\]"):
        NetworkRunner(net.network).run({"ids": random(1, 2)})


def test_an_unknown_layer_type_is_named():
    net = OneLayer()
    layer = net.network.add_topk(net.input(random(1, 8)), trt.TopKOperation.MAX, 2, 2)
    layer.name = "best"
    net.helper.markOutput(layer.get_output(0), "y")
    with pytest.raises(UnsupportedLayerError, match=r"cannot run layer 'best': type TOPK; it knows ACTIVATION"):
        NetworkRunner(net.network)


def test_an_unknown_operation_is_named():
    net = OneLayer()
    layer = net.network.add_unary(net.input(random(1, 8)), trt.UnaryOperation.ASINH)
    layer.name = "strange"
    net.helper.markOutput(layer.get_output(0), "y")
    with pytest.raises(UnsupportedLayerError, match=r"'strange': .*ASINH is not one of"):
        NetworkRunner(net.network)


def test_layers_may_stand_in_any_order():
    """set_input can connect a layer to one that was added later, as the ONNX parser and plugin placement do."""
    net = OneLayer()
    x = net.input(random(1, 4))
    first = net.network.add_activation(x, trt.ActivationType.RELU)
    later = net.helper.addScale(x, -3.0, "later")
    first.set_input(0, later)
    net.helper.markOutput(first.get_output(0), "y")
    np.testing.assert_array_equal(net_output(net), np.maximum(-3 * net.inputs["x0"], 0))


def net_output(net, **options) -> np.ndarray:
    return NetworkRunner(net.network, known=Known(net.helper.weights), **options).run(net.inputs)["y"].numpy()


def test_fp16_tensors_are_fp16():
    net = OneLayer("fp16")
    x = net.input(np.array([[1.0, 2048.0]], np.float32))
    total = net.helper.addAdd(x, net.helper.addConstant(np.ones((1, 2), np.float32), "one"), "sum")
    net.helper.markOutput(total, "y")
    np.testing.assert_array_equal(net_output(net), [[2.0, 2048.0]])  # 2049 is no fp16 number


def test_fp16_products_accumulate_in_fp32():
    """4096 ones after 4096: summed in fp16 the total would stop at 4096, where the next number is 4100."""
    net = OneLayer("fp16")
    a = np.concatenate([np.full((1, 1, 1), 4096.0), np.ones((1, 1, 4096))], axis=2).astype(np.float32)
    weight = np.ones((4097, 1), np.float32)
    net.helper.markOutput(net.helper.addLinear(net.input(a), weight, np.zeros(1, np.float32), "d"), "y")
    assert net_output(net).item() == 8192.0


def test_normalization_computes_in_fp32():
    net = OneLayer("fp16")
    x = random(1, 1, 64, scale=20000.0)
    gamma = np.ones(64, np.float32)
    net.helper.markOutput(net.helper.addLayerNorm(net.input(x), gamma, gamma * 0, 1e-12, "n"), "y")
    assert np.abs(net_output(net)).max() < 10


def test_shapes_computed_at_run_time_are_followed():
    """SHAPE, GATHER, CONCATENATION, SHUFFLE with a computed shape: the way the ONNX parser reshapes."""
    net = OneLayer()
    x = net.input(random(2, 3, 4), dynamic=(0, 1))
    shape = net.network.add_shape(x).get_output(0)  # int64 (3,)

    def integers(*values):
        array = np.array(values, np.int64)
        net.helper.weights[f"int{values}"] = array
        return net.network.add_constant(trt.Dims([len(values)]), trt.Weights(array)).get_output(0)

    rows = net.network.add_gather(shape, integers(0), 0).get_output(0)
    columns = net.network.add_gather(shape, integers(1), 0).get_output(0)
    product = net.network.add_elementwise(rows, columns, trt.ElementWiseOperation.PROD).get_output(0)
    target = net.network.add_concatenation([product, integers(4)])
    target.axis = 0
    reshape = net.network.add_shuffle(x)
    reshape.set_input(1, target.get_output(0))
    net.helper.markOutput(reshape.get_output(0), "y")
    runner = NetworkRunner(net.network)
    for shape_in in ((2, 3, 4), (5, 1, 4)):
        x_values = random(*shape_in)
        answer = runner.run({"x0": x_values})["y"].numpy()
        np.testing.assert_array_equal(answer, x_values.reshape(-1, 4))


def test_a_shape_used_as_data():
    net = OneLayer()
    x = net.input(random(2, 3), dynamic=(0,))
    shape = net.network.add_shape(x).get_output(0)
    as_float = net.network.add_cast(shape, trt.DataType.FLOAT).get_output(0)
    row = net.network.add_shuffle(as_float)
    row.reshape_dims = trt.Dims([1, 2])
    scaled = net.network.add_matrix_multiply(row.get_output(0), trt.MatrixOperation.NONE, x, trt.MatrixOperation.NONE)
    net.helper.markOutput(scaled.get_output(0), "y")
    np.testing.assert_allclose(net_output(net), np.array([[2.0, 3.0]]) @ net.inputs["x0"], rtol=1e-6)


def test_squeeze_unsqueeze_and_reduce():
    net = OneLayer()
    x = net.input(random(2, 1, 3))
    axes = np.array([1], np.int64)
    constant = net.network.add_constant(trt.Dims([1]), trt.Weights(axes)).get_output(0)
    squeezed = net.network.add_squeeze(x, constant).get_output(0)  # (2, 3)
    again = net.network.add_unsqueeze(squeezed, constant).get_output(0)  # (2, 1, 3)
    mean = net.network.add_reduce(again, trt.ReduceOperation.AVG, 1 << 2, True).get_output(0)  # (2, 1, 1)
    net.helper.markOutput(mean, "y")
    np.testing.assert_allclose(net_output(net), net.inputs["x0"].mean(2, keepdims=True), rtol=1e-6)


def test_bf16_constants_need_known_weights():
    """The API gives no way to the bytes of a bf16 constant."""
    net = OneLayer("bf16")
    weight = random(4, 4)
    net.helper.markOutput(net.helper.addLinear(net.input(random(1, 2, 4)), weight, np.zeros(4, np.float32), "d"), "y")
    with pytest.raises(UnsupportedLayerError, match=r"cannot read the BF16 constant 'd\..*known.weights"):
        NetworkRunner(net.network)
    reference = torch.from_numpy(net.inputs["x0"]).bfloat16().float() @ torch.from_numpy(weight).bfloat16().float()
    np.testing.assert_allclose(net_output(net), reference.bfloat16().float().numpy(), rtol=1e-2, atol=1e-2)


def test_the_graph_can_be_printed_and_traced(model_dir):
    bert = builder.assemble(ModelFolder(model_dir), TrtLog())
    runner = NetworkRunner(bert.network)
    functions = [node.target for node in runner.module.graph.nodes if node.op == "call_function"]
    assert functions.count(network_runner.matrix_multiply) == 2 * 8 + 2
    assert functions.count(network_runner.normalization) == 2 * 2 + 2
    assert "def forward(self, input_ids, token_type_ids, position_ids)" in runner.module.code


@pytest.mark.parametrize("way", ["api", "parser"])
def test_the_graph_can_be_compiled_as_a_whole(model_dir, way):
    """No break in the graph: nothing in it has to go back to Python, which would also forbid a CUDA graph."""
    folder = ModelFolder(model_dir)
    made = builder.assemble(folder, TrtLog()) if way == "api" else onnx2trt.parse(folder, "fp32", TrtLog())
    runner = NetworkRunner(made.network, known=made.known)
    integers = torch.int32 if way == "api" else torch.int64
    inputs = [torch.as_tensor(folder.demo().inputs[name]).to(integers) for name in runner.input_names]
    with torch.inference_mode():
        (expected,) = runner.module(*inputs)
        (found,) = torch.compile(runner.module, backend="eager", fullgraph=True)(*inputs)
    assert torch.equal(found, expected)


def test_every_listed_operation_is_one_of_tensorrts():
    """A misspelt name in a table would never be found."""
    tables: list[tuple[Any, Any]] = [
        (network_runner.ACTIVATIONS, trt.ActivationType),
        (network_runner.UNARIES, trt.UnaryOperation),
        (network_runner.ELEMENTWISE, trt.ElementWiseOperation),
        (network_runner.REDUCTIONS, trt.ReduceOperation),
        (network_runner.RULES, trt.LayerType),
        (network_runner.LAYER_CLASSES, trt.LayerType),
    ]
    for table, enumeration in tables:
        assert set(table) <= set(enumeration.__members__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cuda_equals_cpu(model_dir, precision):
    folder = ModelFolder(model_dir)
    bert = builder.assemble(folder, TrtLog(), precision)
    inputs = folder.demo().inputs
    outputs = [
        NetworkRunner(bert.network, device, known=bert.known).run(inputs)["logit"].cpu().double()
        for device in ("cpu", "cuda")
    ]
    tolerance = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}[precision]
    assert (outputs[0] - outputs[1]).norm() <= tolerance * outputs[0].norm()
