"""The runner reads any order of layers, honours types, follows shapes, and refuses what it does not know."""

import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import encoder_products
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from test_trt_helper import (
    OneLayer,
    attention_inputs,
    attention_loop,
    close,
    packed_attention_loop,
    random,
    random_mask,
)

import builder
import onnx2trt
from bert_trt import network_runner
from bert_trt.console import UserError
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, ModelFolder
from bert_trt.network import NetworkContents
from bert_trt.network_runner import NetworkRunner, UnsupportedLayerError
from bert_trt.options import BATCHINGS
from bert_trt.plugin_layers import PluginLayer
from bert_trt.quantization import Quantization
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt
from plugins.plugin_host import TensorSpec


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
    return (
        NetworkRunner(net.network, contents=NetworkContents(net.helper.weights), **options)
        .run(net.inputs)["y"]
        .numpy()
    )


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposes", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(1, 1, 4096, 1), (3, 7, 1024, 5), (2, 64, 768, 64)])
def test_a_narrow_product_is_rounded_once(shape, transposes, dtype):
    """All partial sums are kept in fp32. Positive factors: the sum grows, and each rounding of it would show."""
    batch, rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(batch, rows, inner, generator=generator).to(dtype)
    b = torch.rand(batch, inner, columns, generator=generator).to(dtype)
    given_a = a.transpose(-1, -2).contiguous() if transposes[0] else a
    given_b = b.transpose(-1, -2).contiguous() if transposes[1] else b
    found = network_runner.matrix_multiply(given_a, given_b, *transposes)
    assert found.dtype == dtype
    exact = a.double() @ b.double()
    step = torch.finfo(dtype).eps * 2 ** exact.log2().floor()  # between two numbers of the type
    # Half a step is the one rounding; fp32 sums of up to 4096 terms add less than a hundredth of a step.
    assert ((found.double() - exact).abs() <= 0.51 * step).all()


def test_partial_sums_beyond_fp16_are_no_infinities():
    a = torch.tensor([[[60000.0, 60000.0, -60000.0, -60000.0, 1.0]]], dtype=torch.float16)
    ones = torch.ones(1, 5, 1, dtype=torch.float16)
    assert network_runner.matrix_multiply(a, ones, False, False).item() == 1.0


def test_normalization_computes_in_fp32():
    net = OneLayer("fp16")
    x = random(1, 1, 64, scale=20000.0)
    gamma = np.ones(64, np.float32)
    net.helper.markOutput(net.helper.addLayerNorm(net.input(x), gamma, gamma * 0, 1e-12, "n"), "y")
    assert np.abs(net_output(net)).max() < 10


# --- TensorRT's own attention -------------------------------------------------------------------------------

small = st.integers(1, 9)
NEWER: Any = trt  # TensorRT 10.13, whose types are checked, has no attention


@pytest.mark.parametrize("kind", ["none", "boolean", "added"])
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 3), rows=small, width=small, seed=small)
def test_attention_by_a_loop(kind, batch, heads, rows, width, seed):
    q, k, v = (random(batch, heads, rows, width, seed=seed + place) for place in range(3))
    mask = {
        "none": None,
        "boolean": random_mask(seed, batch, 1, rows, rows),
        "added": random(1, heads, rows, rows, seed=seed, scale=5),
    }[kind]
    given_mask = None if mask is None else torch.from_numpy(mask)
    tensors = [torch.from_numpy(values) for values in (q, k, v)]
    found = network_runner.attention(tensors[0], tensors[1], tensors[2], given_mask)
    close(found.numpy(), attention_loop(q, k, v, mask))


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (5, 1, 7), (3, 0, 4), (16,)])
def test_packed_attention_by_a_loop(lengths):
    """A sequence of one token sees itself alone: its output is its value."""
    q, k, v = (random(sum(lengths), 2, 6, seed=seed) for seed in range(3))
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    found = network_runner.packed_attention(*map(torch.from_numpy, (q, k, v, ends))).numpy()
    close(found, packed_attention_loop(q, k, v, [length for length in lengths if length]))
    for begin, length in zip(ends, lengths, strict=False):
        if length == 1:
            np.testing.assert_array_equal(found[begin], v[begin])


def test_attention_of_fp16_is_rounded_once():
    """Scores and probabilities stay fp32: rounded to fp16, 2049 equal probabilities would not sum to 1."""
    ones = torch.ones(1, 1, 2049, 8, dtype=torch.float16)
    found = network_runner.attention(ones * 100, ones * 100, ones, None)
    assert found.dtype == torch.float16
    assert (found == 1).all()


def test_a_mask_that_is_added_is_read_from_the_network():
    net = OneLayer()
    q, k, v = (random(1, 2, 5, 8, seed=seed) for seed in range(3))
    added = random(1, 1, 5, 5, seed=3, scale=3)
    tensors = [net.input(values) for values in (q, k, v)]
    output = net.helper.addAttention(*tensors, "own", mask=net.input(added))
    close(net.run(output), attention_loop(q, k, v, added))


def packed(attention: Any, net: Any) -> None:
    attention.query_form = NEWER.AttentionIOForm.PACKED_NHD
    attention.query_lengths = net.helper.addInput("ends", trt.DataType.INT32, (2,))


def causal(attention: Any, net: Any) -> None:
    attention.causal_kind = NEWER.CausalMaskKind.LOWER_RIGHT


def without_softmax(attention: Any, net: Any) -> None:
    attention.norm_op = NEWER.AttentionNormalizationOp.NONE


def quantized(attention: Any, net: Any) -> None:
    attention.normalization_quantize_to_type = trt.DataType.INT8
    attention.normalization_quantize_scale = net.helper.addConstant(np.full((), 0.01, np.float32), "scale")


def shorter(attention: Any, net: Any) -> None:
    attention.key_value_lengths = net.helper.addInput("ends", trt.DataType.INT32, (1,))


def fewer_heads(attention: Any, net: Any) -> None:
    for place in (1, 2):
        attention.set_input(place, net.helper.addInput(f"head{place}", trt.DataType.FLOAT, (1, 1, 4, 8)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (causal, "causal attention"),
        (without_softmax, "attention with AttentionNormalizationOp.NONE"),
        (quantized, "attention with quantized probabilities"),
        (fewer_heads, "attention with fewer heads of keys than of queries"),
        (packed, "attention with queries and keys in different forms or of different lengths"),
        (shorter, "attention with queries and keys in different forms or of different lengths"),
    ],
)
def test_attention_that_is_not_berts_is_refused_by_name(change, told):
    net: Any = OneLayer()
    softmax, no_mask = NEWER.AttentionNormalizationOp.SOFTMAX, NEWER.CausalMaskKind.NONE
    attention = net.network.add_attention_v2(*attention_inputs(net, 1, 2, 4, 8), softmax, no_mask)
    attention.name = "own"
    change(attention, net)
    net.network.mark_output(attention.get_output(0))
    with pytest.raises(UnsupportedLayerError, match=f"cannot run layer 'own_AttentionInput': {told}"):
        NetworkRunner(net.network)


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


def numbers(net: Any, *values: int) -> Any:
    """A constant int64 vector; the network reads it when it is made."""
    array = np.array(values, np.int64)
    return net.network.add_constant(trt.Dims([len(values)]), trt.Weights(array)).get_output(0)


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize(
    ("mode", "start", "size", "stride", "rows", "columns"),
    [
        ("STRICT_BOUNDS", (1, 0), (2, 3), (1, 2), [1, 2], [0, 2, 4]),
        ("STRICT_BOUNDS", (2, 4), (2, 3), (-1, -2), [2, 1], [4, 2, 0]),
        ("STRICT_BOUNDS", (1, 0), (4, 5), (0, 1), [1, 1, 1, 1], [0, 1, 2, 3, 4]),  # what becomes of Expand
        ("STRICT_BOUNDS", (0, 0), (0, 5), (1, 1), [], [0, 1, 2, 3, 4]),
        ("CLAMP", (1, -1), (4, 3), (1, 1), [1, 2, 2, 2], [0, 0, 1]),
        ("WRAP", (2, 3), (3, 4), (1, 1), [2, 0, 1], [3, 4, 0, 1]),
    ],
)
def test_slices(mode, start, size, stride, rows, columns, computed):
    net = OneLayer()
    x = random(3, 5)
    layer = net.network.add_slice(net.input(x), start, size, stride)
    layer.mode = trt.SampleMode.__members__[mode]
    if computed:
        for index, values in enumerate((start, size, stride), 1):
            layer.set_input(index, numbers(net, *values))
    net.helper.markOutput(layer.get_output(0), "y")
    np.testing.assert_array_equal(net_output(net), x[np.ix_(rows, columns)] if rows else x[:0])


def test_a_slice_that_is_filled_and_names_its_axes():
    net = OneLayer()
    x = random(3, 5)
    layer = net.network.add_slice(net.input(x), *map(trt.Dims, ([3], [4], [1])))
    layer.axes = trt.Dims([1])
    layer.mode = trt.SampleMode.FILL
    layer.set_input(4, net.helper.addConstant(np.array(7.0, np.float32), "seven"))
    net.helper.markOutput(layer.get_output(0), "y")
    np.testing.assert_array_equal(net_output(net), np.pad(x[:, 3:], ((0, 0), (0, 2)), constant_values=7.0))


def test_a_slice_that_reflects_is_refused():
    net = OneLayer()
    layer = net.network.add_slice(net.input(random(3, 5)), *map(trt.Dims, ([0, 0], [3, 7], [1, 1])))
    layer.mode, layer.name = trt.SampleMode.REFLECT, "mirror"
    net.helper.markOutput(layer.get_output(0), "y")
    with pytest.raises(UnsupportedLayerError, match="'mirror': SLICE that reflects"):
        NetworkRunner(net.network)


def test_ranges_and_fills_follow_their_shape():
    """A range from 3 in steps of 2 as long as x, and a matrix of one value: parsed Range and ConstantOfShape."""
    net = OneLayer()
    x = net.input(random(4, 2), dynamic=(0,))
    length = net.network.add_shape(x).get_output(0)
    range_of = net.network.add_fill(trt.Dims([0]), trt.FillOperation.LINSPACE, trt.DataType.INT64)
    range_of.set_input(0, net.network.add_slice(length, *map(trt.Dims, ([0], [1], [1]))).get_output(0))
    range_of.set_input(1, scalar(net, 3))
    range_of.set_input(2, numbers(net, 2))
    value = net.network.add_fill(trt.Dims([0, 0]), trt.FillOperation.LINSPACE, trt.DataType.INT64)
    value.set_input(0, length)
    value.set_input(1, scalar(net, 9))
    value.set_input(2, numbers(net, 0, 0))
    for layer, name in ((range_of, "range"), (value, "nines")):
        layer.get_output(0).name = name
        net.network.mark_output(layer.get_output(0))
    runner = NetworkRunner(net.network)
    for rows in (1, 4):
        found = runner.run({"x0": random(rows, 2)})
        np.testing.assert_array_equal(found["range"].numpy(), 3 + 2 * np.arange(rows))
        np.testing.assert_array_equal(found["nines"].numpy(), np.full((rows, 2), 9))


def scalar(net: Any, value: int) -> Any:
    return net.network.add_constant(trt.Dims([]), trt.Weights(np.array([value], np.int64))).get_output(0)


def test_elements_gathered_along_an_axis():
    net = OneLayer()
    x, places = random(3, 5), np.array([[4, 0], [1, 1], [2, 3]], np.int64)
    layer = net.network.add_gather_v2(net.input(x), net.input(places, trt.DataType.INT64), trt.GatherMode.ELEMENT)
    layer.axis = 1
    net.helper.markOutput(layer.get_output(0), "y")
    np.testing.assert_array_equal(net_output(net), np.take_along_axis(x, places, axis=1))


@pytest.mark.parametrize("batch_axes", [0, 1])
def test_slices_gathered_at_places_of_several_coordinates(batch_axes):
    net = OneLayer()
    x, places = random(2, 3, 4), np.array([[[1, 0], [0, 2]], [[1, 1], [0, 0]]], np.int64)
    layer = net.network.add_gather_v2(net.input(x), net.input(places, trt.DataType.INT64), trt.GatherMode.ND)
    layer.num_elementwise_dims = batch_axes
    net.helper.markOutput(layer.get_output(0), "y")
    first, second = places[..., 0], places[..., 1]
    expected = x[np.arange(2)[:, None], first, second] if batch_axes else x[first, second]
    np.testing.assert_array_equal(net_output(net), expected)


def test_a_selection_broadcasts():
    net = OneLayer()
    x, visible = random(2, 3), np.array([[True, False, True]])
    hidden = net.helper.addConstant(np.full((1, 1), -1e30, np.float32), "hidden")
    layer = net.network.add_select(net.input(visible, trt.DataType.BOOL), net.input(x), hidden)
    net.helper.markOutput(layer.get_output(0), "y")
    np.testing.assert_array_equal(net_output(net), np.where(visible, x, np.float32(-1e30)))


def test_whole_numbers_are_divided_towards_zero():
    net = OneLayer()
    a, b = (net.input(np.array(values, np.int64), trt.DataType.INT64) for values in ([7, -7, 64], [2, 2, 8]))
    quotient = net.network.add_elementwise(a, b, trt.ElementWiseOperation.DIV).get_output(0)
    quotient.name = "y"
    net.network.mark_output(quotient)
    np.testing.assert_array_equal(net_output(net), [3, -3, 8])


def test_without_roundings_the_end_of_an_attention_does_not_round():
    net = OneLayer("fp16")
    query, key, value = (net.input(random(1, 2, 5, 8, seed=seed)) for seed in range(3))
    net.helper.markOutput(net.helper.addAttention(query, key, value, "context"), "y")
    runner = NetworkRunner(net.network, contents=NetworkContents(net.helper.weights), in_fp32=True)
    given = {name: torch.from_numpy(values) for name, values in net.inputs.items()}
    found = runner.module(*given.values())[0]
    expected = network_runner.attention(*given.values(), mask=None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_bf16_constants_need_known_weights():
    """The API gives no way to the bytes of a bf16 constant."""
    net = OneLayer("bf16")
    weight = random(4, 4)
    net.helper.markOutput(net.helper.addLinear(net.input(random(1, 2, 4)), weight, np.zeros(4, np.float32), "d"), "y")
    with pytest.raises(UnsupportedLayerError, match=r"cannot read the BF16 constant 'd\..*contents.weights"):
        NetworkRunner(net.network)
    reference = torch.from_numpy(net.inputs["x0"]).bfloat16().float() @ torch.from_numpy(weight).bfloat16().float()
    np.testing.assert_allclose(net_output(net), reference.bfloat16().float().numpy(), rtol=1e-2, atol=1e-2)


def test_the_graph_can_be_printed_and_traced(model_dir):
    bert = builder.assemble(ModelFolder(model_dir), TrtLog())
    runner = NetworkRunner(bert.network)
    functions = [node.target for node in runner.module.graph.nodes if node.op == "call_function"]
    assert functions.count(network_runner.product_with_bias) == 2 * 6 + 2
    assert functions.count(network_runner.matrix_multiply) == 2 * 2  # attention's own
    assert functions.count(network_runner.normalization) == 2 * 2 + 2
    assert "def forward(self, input_ids, token_type_ids, position_ids)" in runner.module.code


@pytest.mark.parametrize("fusion", ["none", "tensorrt"])
@pytest.mark.parametrize("way", ["api", "parser"])
def test_the_graph_can_be_compiled_as_a_whole(model_dir, way, fusion):
    """No break in the graph: nothing in it has to go back to Python, which would also forbid a CUDA graph."""
    folder = ModelFolder(model_dir)
    made: Any = (
        builder.assemble(folder, TrtLog(), fusion=fusion)
        if way == "api"
        else onnx2trt.parse(folder, "fp32", TrtLog(), fusion=fusion)
    )
    runner = NetworkRunner(made.network, contents=made.contents)
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
        NetworkRunner(bert.network, device, contents=bert.contents).run(inputs)["logit"].cpu().double()
        for device in ("cpu", "cuda")
    ]
    tolerance = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}[precision]
    assert (outputs[0] - outputs[1]).norm() <= tolerance * outputs[0].norm()


# --- int8 and fp8 -----------------------------------------------------------------------------------------

INT8, FP8 = torch.int8, torch.float8_e4m3fn


def one(value: float) -> torch.Tensor:
    return torch.tensor(value)


def test_int8_rounds_half_to_even_and_saturates():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.4, 127.5, 200.0, -128.0, -128.5, -129.0, 1e30, -torch.inf])
    found = network_runner.quantize(x, one(1.0), None, INT8)
    assert found.dtype == INT8
    assert found.tolist() == [0, 2, 2, 0, -2, -2, 127, 127, 127, -128, -128, -128, 127, -128]


def test_the_value_is_divided_by_the_scale_not_multiplied_by_its_inverse():
    """Ties, which the other way misses often."""
    scales = np.random.default_rng(0).uniform(0.1, 10, 20000).astype(np.float32)
    x = (np.random.default_rng(1).integers(-127, 127, 20000).astype(np.float32) + np.float32(0.5)) * scales
    found = network_runner.quantize(torch.from_numpy(x), torch.from_numpy(scales), 0, INT8)
    np.testing.assert_array_equal(found.numpy(), np.rint(x / scales))
    assert (np.rint(x / scales) != np.rint(x * (1 / scales))).any()


def test_fp8_rounds_half_to_even_and_saturates():
    x = torch.tensor([17.0, 19.0, -17.0, 0.0009765625, 0.0029296875, 448.0, 463.9, 1e6, -1e6, 2.0**-10 * 0.9])
    found = network_runner.quantize(x, one(1.0), None, FP8)
    assert found.dtype == FP8
    assert found.float().tolist() == [16, 20, -16, 0, 0.00390625, 448, 448, 448, -448, 0]


@pytest.mark.parametrize("dtype", [INT8, FP8])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("source", [torch.float32, torch.float16])
def test_quantize_and_dequantize_by_numpy(dtype, axis, source):
    x = torch.from_numpy(random(3, 4, 5, scale=300)).to(source)
    scale = np.float32(0.7) if axis is None else np.geomspace(0.5, 8, x.shape[axis]).astype(np.float32)
    shaped = scale if axis is None else scale.reshape([-1 if place == axis % 3 else 1 for place in range(3)])
    wide = x.float().numpy() / shaped
    if dtype == INT8:
        expected = np.clip(np.rint(wide), -128, 127)
    else:
        expected = np.clip(wide, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    q = network_runner.quantize(x, torch.as_tensor(scale), axis, dtype)
    np.testing.assert_array_equal(q.float().numpy(), expected)
    back = network_runner.dequantize(q, torch.as_tensor(scale), axis, source)
    assert back.dtype == source
    np.testing.assert_array_equal(back.numpy(), (expected * shaped).astype(back.numpy().dtype))


def integers(*shape: int, seed: int = 0, low: int = -128, high: int = 128) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, shape).astype(np.int8))


@pytest.mark.parametrize("int8_kernel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3), rows=st.integers(1, 40), inner=st.integers(1, 1024), columns=st.integers(1, 40),
    ta=st.booleans(), tb=st.booleans(), per_column=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_quantized_product_is_that_of_integers(
    int8_kernel, dtype, batch, rows, inner, columns, ta, tb, per_column, seed
):
    """Sums of at most 1024 products of int8 are below 2^24: exact in fp32 in any order."""
    a = integers(batch, *((inner, rows) if ta else (rows, inner)), seed=seed)
    b = integers(1, *((columns, inner) if tb else (inner, columns)), seed=seed + 1)
    scale_a = np.float32(0.013)
    scale_b = np.geomspace(1e-3, 1e-1, columns).astype(np.float32) if per_column else np.float32(0.02)
    found = network_runner.quantized_product(
        a, torch.as_tensor(scale_a), b, torch.as_tensor(scale_b), ta, tb, dtype, int8_kernel
    )
    wide_a, wide_b = a.numpy().astype(np.int64), b.numpy().astype(np.int64)
    exact = (wide_a.swapaxes(-1, -2) if ta else wide_a) @ (wide_b.swapaxes(-1, -2) if tb else wide_b)
    assert found.dtype == dtype
    expected = torch.from_numpy(exact.astype(np.float32) * (scale_a * scale_b)).to(dtype)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_long_sums_are_exact_in_the_int8_kernel_and_rounded_in_fp32():
    a, b = integers(1, 20, 4096, low=100), integers(1, 4096, 8, seed=1, low=100)
    exact = (a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)).astype(np.float32)
    assert exact.min() > 2**24
    kernel, simulated = (
        network_runner.quantized_product(a, one(1.0), b, one(1.0), False, False, torch.float32, one_kernel).numpy()
        for one_kernel in (True, False)
    )
    np.testing.assert_array_equal(kernel, exact)
    np.testing.assert_allclose(simulated, exact, rtol=1e-5)  # 4096 roundings, each of 6e-8 at most


def test_an_fp8_product_sums_in_fp32():
    a = network_runner.quantize(torch.from_numpy(random(1, 6, 300, scale=20)), one(0.1), None, FP8)
    b = network_runner.quantize(torch.from_numpy(random(1, 300, 4, seed=1)), one(0.01), None, FP8)
    found = network_runner.quantized_product(a, one(0.1), b, one(0.01), False, False, torch.float32, True)
    reference = (a.double() @ b.double()) * 0.001
    assert (found - reference).norm() <= 1e-6 * reference.norm()


def quantized_bert(folder: ModelFolder, kind: str = "int8", batching: str = "single"):
    products = encoder_products(folder)
    ranges = {tensor: 6.0 for product in products for tensor in product.activations}
    quantization = Quantization(kind, frozenset(product.name for product in products), ranges)
    return builder.assemble(folder, TrtLog(), kind, batching=batching, quantization=quantization)


def functions_of(runner: NetworkRunner) -> list[Any]:
    return [node.target for node in runner.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_all_quantized_products_are_run_as_such(model_dir, kind):
    made = quantized_bert(ModelFolder(model_dir), kind)
    targets = functions_of(NetworkRunner(made.network, contents=made.contents))
    assert targets.count(network_runner.quantized_product) == 2 * 8
    assert targets.count(network_runner.product_with_bias) == 2  # the head
    assert targets.count(network_runner.matrix_multiply) == 0
    assert targets.count(network_runner.dequantize) == 0  # nothing else reads dequantized tensors


def test_a_product_whose_scales_cannot_follow_it_is_run_on_dequantized_factors():
    net = OneLayer()
    x, weight = random(1, 3, 8), random(8, 4)
    q = net.helper.addQuantizedRange(net.input(x), 3.0, trt.DataType.INT8)
    stored = net.helper.addConstant(np.ones((1, 8, 4), np.int8), "w", trt.DataType.INT8)
    of_rows = net.helper.addDequantize(stored, np.abs(weight).max(1), "w.dequantized", axis=1)
    net.helper.markOutput(net.helper.addMatMul(q, of_rows, "product"), "y")
    assert network_runner.quantized_product not in functions_of(NetworkRunner(net.network))
    scale = np.float32(3 / 127)
    expected = (np.clip(np.rint(x / scale), -128, 127) * scale) @ np.tile(np.abs(weight).max(1)[:, None], 4)
    np.testing.assert_allclose(net_output(net), expected, rtol=1e-5)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_int8_kernels_equal_the_simulation(model_dir, batching):
    folder = ModelFolder(model_dir)
    made = quantized_bert(folder, batching=batching)
    inputs: dict[str, Any] = dict(folder.demo().inputs)
    if batching == "padded":
        inputs[MASK_NAME] = np.ones_like(inputs["input_ids"])
    if batching == "packed":
        inputs = {name: values[0] for name, values in inputs.items()}
        inputs[LENGTHS_NAME] = np.array([0, len(inputs["input_ids"])])
    outputs = [
        NetworkRunner(made.network, contents=made.contents, int8_kernels=kernels).run(inputs)["logit"]
        for kernels in (False, True)
    ]
    assert torch.equal(*outputs)  # no sum of this small model exceeds 2^24
    assert outputs[0].isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
@pytest.mark.parametrize("rows", [1, 16, 17, 100])
def test_int8_kernels_of_cuda_are_exact(rows):
    a, b = integers(1, rows, 3072), integers(1, 3072, 768, seed=1)
    exact = (a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)).astype(np.float32)
    found = network_runner.int8_product(a.cuda(), b.cuda()).cpu().numpy()
    np.testing.assert_array_equal(found, exact)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantized_cuda_equals_cpu(model_dir, kind):
    folder = ModelFolder(model_dir)
    made = quantized_bert(folder, kind)
    cpu, simulated, kernels = (
        NetworkRunner(made.network, device, contents=made.contents, int8_kernels=real)
        .run(folder.demo().inputs)["logit"]
        .cpu()
        for device, real in (("cpu", False), ("cuda", False), ("cuda", True))
    )
    assert torch.equal(simulated, kernels)
    assert (simulated - cpu).norm() <= 2e-2 * cpu.norm()  # an fp16 rounding may move a value to the next integer


# --- padded batches ---------------------------------------------------------------------------------------

LENGTHS = (1, 3, 17, 64)


def padded_inputs(length: int, padding: int) -> dict[str, np.ndarray]:
    """Sentences of ``LENGTHS`` in one batch; the padding holds ids from another generator for each ``padding``."""
    generator, other = np.random.default_rng(7), np.random.default_rng(100 + padding)
    limits = dict(zip(INPUT_NAMES, (71, 2, 64), strict=True))
    made = {name: np.zeros((len(LENGTHS), length), np.int32) for name in (*INPUT_NAMES, MASK_NAME)}
    for row, own in enumerate(LENGTHS):
        made[MASK_NAME][row, :own] = 1
        for name, limit in limits.items():
            made[name][row, :own] = generator.integers(0, limit, own)
            made[name][row, own:] = other.integers(0, limit, length - own)
    return made


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 3e-2)])
def test_a_padded_batch_gives_what_single_sentences_give(model_dir, precision, tolerance):
    folder = ModelFolder(model_dir)
    single, padded = (builder.assemble(folder, TrtLog(), precision, batching=way) for way in ("single", "padded"))
    inputs = padded_inputs(max(LENGTHS), 0)
    together = NetworkRunner(padded.network, contents=padded.contents).run(inputs)["logit"]
    alone = NetworkRunner(single.network, contents=single.contents)
    for row, length in enumerate(LENGTHS):
        reference = alone.run({name: inputs[name][row : row + 1, :length] for name in INPUT_NAMES})["logit"][0]
        error = (together[row, :length] - reference).norm() / reference.norm()
        assert error <= tolerance, length


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_what_the_padding_holds_does_not_matter_bit_for_bit(model_dir, precision):
    folder = ModelFolder(model_dir)
    if precision in ("int8", "fp8"):
        made = quantized_bert(folder, precision, "padded")
    else:
        made = builder.assemble(folder, TrtLog(), precision, batching="padded")
    runner = NetworkRunner(made.network, contents=made.contents)
    first, second = (runner.run(padded_inputs(64, padding))["logit"] for padding in (0, 1))
    assert not torch.equal(first, second)  # the padding's own rows differ
    for row, length in enumerate(LENGTHS):
        assert torch.equal(first[row, :length], second[row, :length]), length


# --- parts of a network -------------------------------------------------------------------------------------


def test_a_part_gives_what_the_whole_gives(model_dir):
    """From one layer's output to another's: what lies before is neither run nor asked for."""
    bert = builder.assemble(ModelFolder(model_dir), TrtLog(), "fp16")
    first, middle, last = bert.hidden_states
    inputs = ModelFolder(model_dir).demo().inputs
    whole = NetworkRunner(bert.network, outputs=[first, middle, last], contents=bert.contents).run(inputs)
    part = NetworkRunner(bert.network, outputs=[last], contents=bert.contents, inputs=[middle])
    assert part.input_names == [middle]
    assert torch.equal(part.run({middle: whole[middle]})[last], whole[last])
    functions = [node.target for node in part.module.graph.nodes if node.op == "call_function"]
    assert functions.count(network_runner.product_with_bias) == 6  # of one encoder layer
    assert functions.count(network_runner.matrix_multiply) == 2
    both = NetworkRunner(bert.network, outputs=[last, middle], contents=bert.contents, inputs=[first, middle])
    other = torch.zeros_like(whole[middle])
    found = both.run({first: whole[first], middle: other})
    assert torch.equal(found[middle], other)  # given and wanted: passed through
    assert not torch.equal(found[last], whole[last])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_part_takes_any_type_for_the_one_it_has(model_dir, precision):
    """NumPy has no bf16: such a tensor cannot be looked at as an array on its way in."""
    bert = builder.assemble(ModelFolder(model_dir), TrtLog(), precision)
    first, _, last = bert.hidden_states
    runner = NetworkRunner(bert.network, outputs=[last], contents=bert.contents, inputs=[first])
    x = torch.randn(5, 128).to(runner._input_types[first])
    assert x.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    narrow, wide = runner.run({first: x})[last], runner.run({first: x.float().numpy()})[last]
    assert torch.equal(narrow, wide)


def test_unknown_names_of_a_part_are_named(model_dir):
    bert = builder.assemble(ModelFolder(model_dir), TrtLog())
    with pytest.raises(UserError, match="the network has no tensor 'hidden'"):
        NetworkRunner(bert.network, inputs=["hidden"])
    runner = NetworkRunner(bert.network, outputs=["logit"], inputs=[bert.hidden_states[1]])
    with pytest.raises(UserError, match=r"inputs given: \['input_ids'\]; the network has \['bert\.encoder"):
        runner.run({"input_ids": np.ones((1, 2), np.int32)})


def test_a_product_and_its_bias_are_one_unless_the_product_is_wanted_too():
    net = OneLayer()
    a, b, square = random(3, 4), random(4, 3, seed=1), random(3, 3, seed=2)
    product = net.helper.addMatMul(net.input(a), net.helper.addConstant(b, "b"), "product")
    biased = net.helper.addBias(product, square[0], "biased")
    shifted = net.helper.addAdd(
        product, net.helper.addConstant(square, "square"), "shifted"
    )  # not one for each column
    both = net.helper.addAdd(biased, shifted, "both")
    assert both.name == "both"
    found = NetworkRunner(net.network, outputs=["biased", "shifted", "product"]).run(net.inputs)
    np.testing.assert_allclose(found["biased"].numpy(), a @ b + square[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["shifted"].numpy(), a @ b + square, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["product"].numpy(), a @ b, rtol=1e-5, atol=1e-6)
    alone = functions_of(NetworkRunner(net.network, outputs=["biased"]))
    assert alone == [network_runner.product_with_bias]


# --- running sums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [trt.DataType.FLOAT, trt.DataType.INT32])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_cumulative(exclusive, reverse, axis, dtype):
    net = OneLayer()
    values = np.random.default_rng(0).integers(-9, 9, (3, 5, 4))
    x = net.input(values.astype(np.float32 if dtype == trt.DataType.FLOAT else np.int32), dtype, dynamic=(1,))
    along = net.helper.addConstant(np.array(axis, np.int32), "axis", trt.DataType.INT32, ())
    layer = net.network.add_cumulative(x, along, trt.CumulativeOperation.SUM, exclusive, reverse)
    layer.name = layer.get_output(0).name = "sums"
    turned = np.flip(values, axis) if reverse else values
    expected = np.cumsum(turned, axis) - (turned if exclusive else 0)
    expected = np.flip(expected, axis) if reverse else expected
    found = NetworkRunner(net.network, outputs=["sums"], contents=NetworkContents(net.helper.weights)).run(
        net.inputs
    )["sums"]
    assert found.dtype == network_runner.element_type(dtype).torch
    np.testing.assert_array_equal(found.numpy(), expected)


# --- batches ------------------------------------------------------------------------------------------------


def batch_inputs(batching: str) -> dict[str, np.ndarray]:
    """Two sentences, of 3 and of 5 words."""
    if batching == "packed":
        ids = np.array([5, 6, 7, 5, 6, 7, 8, 9])
        positions = np.array([0, 1, 2, 0, 1, 2, 3, 4])
        values, separator = (ids, 0 * ids, positions), {LENGTHS_NAME: np.array([0, 3, 8], np.int32)}
    else:
        ids = np.array([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
        values = (ids, 0 * ids, np.tile(np.arange(5), (2, 1)))
        separator = {MASK_NAME: (ids != 0).astype(np.int32)}
    return dict(zip(INPUT_NAMES, values, strict=True)) | separator


WRONG_BATCHES = [
    ("packed", {LENGTHS_NAME: np.array([1, 3, 8])}, r"cu_seqlens\[0\] is 1, expected 0"),
    ("packed", {LENGTHS_NAME: np.array([0, 5, 3, 8])}, r"cu_seqlens\[2\] is 3 after 5, expected more"),
    ("packed", {LENGTHS_NAME: np.array([0, 3, 3, 8])}, "sequence 2 of the batch is empty; leave it out"),
    ("packed", {LENGTHS_NAME: np.array([0, 3, 7])}, "ends with 7, expected 8, the number of packed tokens"),
    ("packed", {LENGTHS_NAME: np.array([0, 3, 9])}, "cu_seqlens ends with 9, expected 8"),
    ("packed", {LENGTHS_NAME: np.array([0])}, r"cu_seqlens is int32 \[1\], expected int32 \[B \+ 1\]"),
    ("packed", {LENGTHS_NAME: np.array([[0, 3, 8]])}, r"cu_seqlens is int32 \[1, 3\]"),
    ("padded", {MASK_NAME: np.ones((2, 4), np.int32)}, r"the mask is int32 \[2, 4\], expected int32 \[2, 5\]"),
    ("padded", {MASK_NAME: np.ones((1, 5), np.int32)}, r"the mask is int32 \[1, 5\], expected int32 \[2, 5\]"),
    ("padded", {MASK_NAME: np.full((2, 5), 2)}, r"mask\[0, 0\] is 2, expected 1 for a token or 0 for padding"),
    ("padded", {MASK_NAME: np.eye(2, 5, 5)}, "row 0 of the mask has no 1: sequence 1 of the batch is empty"),
]


@pytest.mark.parametrize(("batching", "wrong", "told"), WRONG_BATCHES)
def test_a_wrong_batch_is_refused_before_it_runs(model_dir, batching, wrong, told):
    bert = builder.assemble(ModelFolder(model_dir), TrtLog(), batching=batching)
    runner = NetworkRunner(bert.network, contents=bert.contents)
    right = batch_inputs(batching)
    assert runner.run(right)["logit"].isfinite().all()
    with pytest.raises(UserError, match=told):
        runner.run(right | wrong)
    with pytest.raises(UserError, match=told):
        runner.run({name: torch.as_tensor(values) for name, values in (right | wrong).items()})


# --- compiled graphs, and the plugins in them ---------------------------------------------------------------


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize(("fusion", "precision"), [("none", "fp32"), ("plugins", "fp32"), ("all", "fp16")])
def test_networks_of_batches_and_plugins_can_be_compiled_as_a_whole(model_dir, fusion, precision, batching):
    built_plugins()
    folder = ModelFolder(model_dir)
    made = builder.assemble(folder, TrtLog(), precision, batching=batching, fusion=fusion)
    runner = NetworkRunner(made.network, contents=made.contents)
    inputs = folder.demo().inputs if batching == "single" else batch_inputs(batching)
    tensors = [torch.as_tensor(inputs[name]).to(torch.int32) for name in runner.input_names]
    with torch.inference_mode():
        (expected,) = runner.module(*tensors)
        (found,) = torch.compile(runner.module, backend="eager", fullgraph=True)(*tensors)
    assert torch.equal(found, expected)


class FakePlugin:
    """Takes the place of a plugin on a GPU: adds its epsilon, and tells what it will return."""

    def __init__(self, fields: Any) -> None:
        self.epsilon = fields["epsilon"]

    def run_torch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        assert all(tensor.is_contiguous() for tensor in inputs)
        return [inputs[0] + self.epsilon]

    def output_specs(self, specs: list[TensorSpec]) -> list[TensorSpec]:
        return specs[:1]


class FakeHost:
    def create(self, name: str, version: str, namespace: str, fields: Any) -> FakePlugin:
        return FakePlugin(fields)


def plugin_module(epsilon: float) -> network_runner.PluginModule:
    layer = PluginLayer("norm", "LayerNorm", {"epsilon": epsilon, "kernel": "fast"}, ())
    return network_runner.PluginModule(layer, torch.device("cuda"))


def test_each_plugin_keeps_its_number_when_others_are_gone(monkeypatch):
    monkeypatch.setattr(network_runner, "_plugin_host", FakeHost)
    modules = [plugin_module(epsilon) for epsilon in (1.0, 2.0, 3.0)]
    x = torch.zeros(2, 4)
    del modules[0]
    gc.collect()
    modules.append(plugin_module(4.0))
    assert [float(module(x)[0, 0]) for module in modules] == [2.0, 3.0, 4.0]


def test_plugins_in_a_compiled_graph(monkeypatch):
    """The operation stays one node of the graph; inputs that are not contiguous are made so."""
    monkeypatch.setattr(network_runner, "_plugin_host", FakeHost)
    module = plugin_module(0.5)
    compiled: Any = torch.compile(lambda x: module(x.t()) * 2, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3)
    assert torch.equal(compiled(x), (x.t() + 0.5) * 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and PyTorch for CUDA")
@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("fusion", ["plugins", "all"])
def test_a_compiled_fused_encoder_equals_the_uncompiled_one(model_dir, batching, fusion):
    built_plugins()
    made = builder.assemble(ModelFolder(model_dir), TrtLog(), "fp16", batching=batching, fusion=fusion)
    first, *_, last = made.hidden_states
    separator = LENGTHS_NAME if batching == "packed" else MASK_NAME
    runner = NetworkRunner(made.network, "cuda", [last], made.contents, inputs=[first, separator])
    inputs = batch_inputs(batching)
    torch.manual_seed(0)
    x = torch.randn(*inputs[INPUT_NAMES[0]].shape, 128, device="cuda", dtype=torch.float16)
    given = (x, torch.as_tensor(inputs[separator]).cuda())
    with torch.inference_mode():
        (expected,) = runner.module(*given)
        (found,) = torch.compile(runner.module, fullgraph=True, dynamic=False)(*given)
    assert (found.double() - expected.double()).norm() <= 2e-3 * expected.double().norm()
