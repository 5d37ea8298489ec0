"""The plugins inside networks of the real TensorRT: built through the API and through the parser."""

import functools
import json
import math
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Script
from plugin_build_for_tests import built_plugins

import builder
import onnx2trt
from bert_trt import plugin_layers
from bert_trt.comparison import relative_l2
from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.model_files import ModelFolder
from bert_trt.network import NetworkContents
from bert_trt.network_proof import WrongNetworkError, check_definition
from bert_trt.network_runner import NetworkRunner, UnsupportedLayerError
from bert_trt.options import LAYER_NORM_KERNELS, TOLERANCES, SequenceRange
from bert_trt.plan import BuildOptions, build_plan, create_builder, read_info
from bert_trt.plugin_layers import PluginLayer, PluginLayers, RecordedLayer, check_creators
from bert_trt.recording import RecordingHelper, define_network
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from bert_trt.tensors import shape_of
from plugins import build, reference
from trt_helper import LayerError, TrtNetworkHelper


@pytest.fixture(scope="module", autouse=True)
def plugins():
    return built_plugins()


def assemble(way: str, folder: ModelFolder, precision: str, kernel: str) -> Any:
    if way == "api":
        return builder.assemble(folder, TrtLog(), precision, layer_norm=kernel)
    return onnx2trt.parse(folder, precision, TrtLog(), kernel)


def plugin_names(network: trt.INetworkDefinition) -> list[str]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kernel", LAYER_NORM_KERNELS)
@pytest.mark.parametrize("way", ["api", "parser"])
def test_every_layer_norm_is_a_plugin_and_the_answer_the_same(model_dir, way, kernel, precision):
    folder = ModelFolder(model_dir)
    made = assemble(way, folder, precision, kernel)
    assert len(plugin_names(made.network)) == 2 * 2 + 2
    assert set(plugin_names(made.network)) == set(made.contents.plugins)
    demo = folder.demo()
    output = NetworkRunner(made.network, contents=made.contents).run(demo.inputs)["logit"].numpy()
    assert relative_l2(output, demo.output) <= TOLERANCES[precision]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kernel", LAYER_NORM_KERNELS)
def test_the_plugins_kernels_in_the_whole_network(model_dir, kernel, precision):
    folder = ModelFolder(model_dir)
    made = assemble("api", folder, precision, kernel)
    demo = folder.demo()
    output = NetworkRunner(made.network, "cuda", contents=made.contents).run(demo.inputs)["logit"].cpu().numpy()
    assert relative_l2(output, demo.output) <= TOLERANCES[precision]


def test_layer_names_are_those_of_the_modules(model_dir):
    made = assemble("api", ModelFolder(model_dir), "fp16", "fast")
    assert sorted(plugin_names(made.network)) == [
        "bert.embeddings.LayerNorm",
        "bert.encoder.layer.0.attention.output.LayerNorm",
        "bert.encoder.layer.0.output.LayerNorm",
        "bert.encoder.layer.1.attention.output.LayerNorm",
        "bert.encoder.layer.1.output.LayerNorm",
        "cls.predictions.transform.LayerNorm",
    ]


@pytest.mark.parametrize("name", ["builder.py", "onnx2trt.py"])
def test_tensorrt_builds_the_plan_and_embeds_the_library(script: Script, model_dir, tmp_path, name):
    sizes = {}
    for option in ((), ("--no-embed-plugins",)):
        plan, result = tmp_path / f"{len(option)}.plan", tmp_path / "result.json"
        done = script(
            name, "--model-dir", model_dir, "--plan", plan, "--json", result, "--layer-norm", "fast", *option
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(result.read_text())["layer_norm"] == "fast"
        info = read_info(plan)
        assert info is not None
        assert info.plugin_library == build.LIBRARY
        assert info.plugins_embedded is (option == ())
        sizes[option] = plan.stat().st_size
    library = build.library_path().stat().st_size
    assert sizes[()] - sizes[("--no-embed-plugins",)] == pytest.approx(library, rel=0.1)


def test_a_library_that_is_not_built_is_an_error_with_the_command(script: Script, model_dir, tmp_path):
    done = script(
        "builder.py", "--model-dir", model_dir, "--layer-norm", "fast", BERT_PLUGINS_BUILD_DIR=str(tmp_path)
    )
    assert done.returncode == 1
    assert "libbert_plugins.so is missing: the plugins are not built" in " ".join(done.stderr.split())
    assert build.BUILD_COMMAND in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_kernel_is_wrong_usage(script: Script, model_dir):
    done = script("builder.py", "--model-dir", model_dir, "--layer-norm", "fastest")
    assert done.returncode == 2
    assert "invalid choice: 'fastest'" in done.stderr


# --- what the plugin refuses, told by TensorRT ------------------------------------------------------------


def define(steps: Callable[[TrtNetworkHelper], Any], dtype: trt.DataType = trt.DataType.HALF) -> Any:
    """A builder, which owns the network; a helper; and what ``steps`` has returned for it."""
    return define_network(TrtLog(), dtype, steps)


def one_layer(hidden=8, epsilon=1e-12, kernel="fast", gamma=8, dtype=trt.DataType.HALF):
    """A layer norm of x (1, S, hidden)."""

    def steps(helper):
        x = helper.addInput("x", dtype, (1, -1, hidden))
        parameters = np.ones(gamma, np.float32), np.ones(hidden, np.float32)
        helper.markOutput(helper.addLayerNorm(x, *parameters, epsilon, "norm", kernel), "y")

    return define(steps)


def test_one_layer_engine(tmp_path):
    made_builder, helper, _ = one_layer()
    options = BuildOptions(SequenceRange(1, 4, 8), plugin_library=build.library_path())
    assert build_plan(made_builder, helper.network, helper.log, options, tmp_path / "p.plan").num_bytes > 0


def test_gamma_of_the_wrong_length_is_named():
    with pytest.raises(LayerError) as error:
        one_layer(gamma=9)
    message = str(error.value)
    assert "'norm'" in message
    assert "norm.weight FLOAT [9]" in message
    assert "gamma has the shape [9]" in message
    assert "expected both [8]" in message


def test_integers_are_refused():
    def steps(helper):
        x = helper.addInput("x", trt.DataType.INT32, (1, -1, 8))
        constants = [helper.addConstant(np.ones(8, np.float32), name, trt.DataType.FLOAT) for name in ("g", "b")]
        outputs = ((trt.DataType.INT32, (1, -1, 8)),)
        layer = PluginLayer("norm", "LayerNorm", {"epsilon": 1e-12, "kernel": "fast"}, outputs)
        return helper.addPlugin(layer, [x, *constants])

    with pytest.raises(LayerError, match=r"'norm'.*x INT32.*x is int32; expected fp32, fp16 or bf16"):
        define(steps)


@pytest.mark.parametrize("epsilon", [0.0, -1e-12, float("nan"), float("inf")])
def test_a_wrong_epsilon_is_refused(epsilon):
    with pytest.raises(UserError, match=r"epsilon is .*expected a finite number greater than 0"):
        one_layer(epsilon=epsilon)


def test_an_unknown_kernel_field_is_refused():
    with pytest.raises(UserError, match=r'field kernel is "slow"; expected basic, fused or fast'):
        one_layer(kernel="slow")


@pytest.mark.skipif(not IS_RTX, reason="the full TensorRT adds plugin layers at any time")
def test_a_layer_that_was_not_recorded():
    _owner, helper, _ = one_layer()
    with pytest.raises(ValueError, match=r"plugin layer 'other' was not recorded: .*define_network"):
        helper.addPlugin(PluginLayer("other", "LayerNorm", {}, ()), [])


def test_a_helper_without_plugins_says_how_to_get_them():
    _owner, network = create_builder(TrtLog())
    helper = TrtNetworkHelper(network, TrtLog())
    x = helper.addInput("x", trt.DataType.FLOAT, (1, -1, 8))
    with pytest.raises(ValueError, match=r"layer 'norm'.*define_network"):
        helper.addLayerNorm(x, np.ones(8, np.float32), np.ones(8, np.float32), 1e-12, "norm", "fast")


def test_the_runner_needs_the_fields(model_dir):
    made = assemble("api", ModelFolder(model_dir), "fp32", "fast")
    with pytest.raises(UnsupportedLayerError, match=r"'bert\.embeddings\.LayerNorm'.*contents\.plugins"):
        NetworkRunner(made.network, contents=NetworkContents(made.contents.weights))


def placeholders(steps, dtype) -> list[tuple[list[int], int]]:
    """Shapes and types of the constants that TensorRT for RTX reserves plugin layers with."""
    made_builder, _ = create_builder(TrtLog())
    recorder = RecordingHelper(made_builder, TrtLog(), dtype)
    steps(recorder)
    graph = onnx.load_from_string(plugin_layers.placeholder_model(recorder.recorded)).graph
    return [(list(tensor.dims), tensor.data_type) for tensor in graph.initializer]


def test_placeholders_have_the_recorded_types():
    dtype = ELEMENT_TYPES["bf16"].trt

    def steps(helper):
        x = helper.addInput("x", dtype, (-1, 8))
        helper.addLayerNorm(x, np.ones(8, np.float32), np.ones(8, np.float32), 1e-12, "norm", "fast")

    bf16, fp32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    assert placeholders(steps, dtype) == [([1, 8], bf16), ([8], fp32), ([8], fp32)]


def test_placeholders_take_no_room_for_weights():
    def steps(helper):
        x = helper.addInput("x", trt.DataType.HALF, (-1, 768))
        helper.addFusedLinear(x, np.ones((3072, 768), np.float32), np.ones(3072, np.float32), "dense")

    assert [shape for shape, _ in placeholders(steps, trt.DataType.HALF)] == [[1, 1], [1, 1], [1]]


def test_a_recording_is_the_network(model_dir, monkeypatch):
    """Each step of the description adds to both what it adds; matrices of weights are not converted for the first."""
    helpers = []
    original = TrtNetworkHelper.__init__
    monkeypatch.setattr(
        TrtNetworkHelper, "__init__", lambda self, *rest: (helpers.append(self), original(self, *rest))[1]
    )
    builder.assemble(ModelFolder(model_dir), TrtLog(), "fp16", batching="packed", fusion="all")
    recorder, helper = helpers
    assert [one.layer for one in recorder.recorded] == list(helper.plugin_layers.values())
    assert all(values.ndim < 2 for values in recorder.weights.values())
    assert set(recorder.weights) == {name for name, values in helper.weights.items() if values.ndim < 2}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batching": "packed", "max_length": 7}, 7),
        ({"batching": "packed"}, None),  # as many as the position table has rows
        ({"batching": "padded", "max_length": 7}, 0),
        ({"max_length": 7}, 0),
    ],
)
@pytest.mark.parametrize("fusion", ["plugins", "all"])
def test_packed_attention_is_told_the_longest_sequence(model_dir, fusion, options, expected):
    folder = ModelFolder(model_dir)
    made = builder.assemble(folder, TrtLog(), "fp16", fusion=fusion, **options)
    expected = folder.config.max_positions if expected is None else expected
    fields = [layer.fields for layer in made.contents.plugins.values() if layer.plugin == "QkvToContext"]
    assert [of_layer.get("max_sequence_length", 0) for of_layer in fields] == [expected] * folder.config.num_layers


# --- SkipLayerNorm and EmbLayerNorm -----------------------------------------------------------------------

H, EPSILON, SCALE = 16, 1e-12, 0.05


def contents(helper: TrtNetworkHelper) -> NetworkContents:
    return NetworkContents(helper.weights, helper.plugin_layers)


def build_with_plugins(made, path):
    made_builder, helper, _ = made
    options = BuildOptions(SequenceRange(1, 4, 8), plugin_library=build.library_path())
    return build_plan(made_builder, helper.network, helper.log, options, path)


def weights(count) -> Any:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(H, np.float32) for _ in range(count)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_residual_sum_and_norm_in_one_layer(tmp_path, precision, bias):
    dtype = ELEMENT_TYPES[precision].trt
    gamma, beta, linear_bias = weights(3)

    def steps(helper):
        x, skip = (helper.addInput(name, dtype, (1, -1, H)) for name in ("x", "skip"))
        (y,) = helper.addSkipLayerNorm(x, skip, gamma, beta, EPSILON, "norm", linear_bias if bias else None)
        helper.markOutput(y, "y")

    made = define(steps, dtype)
    tensors = {name: torch.randn(1, 5, H) for name in ("x", "skip")}
    found = NetworkRunner(made[1].network, contents=contents(made[1])).run(tensors)["y"]
    total = tensors["x"] + tensors["skip"] + (torch.from_numpy(linear_bias) if bias else 0)
    expected = torch.nn.functional.layer_norm(total, (H,), torch.from_numpy(gamma), torch.from_numpy(beta), EPSILON)
    assert relative_l2(found.numpy(), expected.numpy()) <= TOLERANCES[precision]
    assert build_with_plugins(made, tmp_path / "p.plan").num_bytes > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, -1, H), (-1, H)])
def test_a_product_with_bias_and_activation_in_one_layer(tmp_path, precision, bias, activation, shape):
    dtype = ELEMENT_TYPES[precision].trt
    weight, linear_bias = (
        np.random.default_rng(0).standard_normal((24, H), np.float32),
        np.arange(24, dtype=np.float32),
    )

    def steps(helper):
        x = helper.addInput("x", dtype, shape)
        y = helper.addFusedLinear(x, weight, linear_bias if bias else None, "dense", "gelu", activation)
        assert (y.name, y.dtype, tuple(y.shape)) == ("gelu", dtype, (*shape[:-1], 24))
        helper.markOutput(y, "y")

    made_builder, helper, _ = define(steps, dtype)
    assert {"dense.weight", "dense.bias"} & helper.weights.keys() == {"dense.weight", *(["dense.bias"] * bias)}
    tensor = torch.randn(1, 5, H) if len(shape) == 3 else torch.randn(5, H)
    found = NetworkRunner(helper.network, contents=contents(helper)).run({"x": tensor})["y"]
    expected = tensor @ torch.from_numpy(weight).T + (torch.from_numpy(linear_bias) if bias else 0)
    expected = torch.nn.functional.gelu(expected) if activation == "gelu" else expected
    assert relative_l2(found.numpy(), expected.numpy()) <= TOLERANCES[precision]
    options = BuildOptions(SequenceRange(1, 4, 8), plugin_library=build.library_path())
    if len(shape) == 3:
        assert build_plan(made_builder, helper.network, helper.log, options, tmp_path / "p.plan").num_bytes > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_residual_sum_and_norm_in_one_layer(tmp_path, precision, kind, bias):
    """x in 16 bits, or in 8 with a quantized weight; y and y in 8 bits."""
    dtype, scale = ELEMENT_TYPES[precision].trt, 0.03
    gamma, beta, linear_bias = weights(3)
    weight = np.random.default_rng(1).standard_normal((H, 24), np.float32)
    narrow = ELEMENT_TYPES[kind or "fp8"].trt

    def steps(helper):
        x, skip = helper.addInput("x", dtype, (1, -1, 24)), helper.addInput("skip", dtype, (1, -1, H))
        x = helper.addQuantize(x, scale, "narrow", narrow) if kind else x
        y, quantized = helper.addLinearSkipLayerNorm(
            *(x, weight, linear_bias if bias else None, skip, gamma, beta, EPSILON, "norm", "dense"),
            x_scale=scale if kind else 0.0,
            output_scale=SCALE,
            outputs="both",
            quantized_type=narrow,
        )
        assert (y.name, y.dtype, tuple(y.shape)) == ("norm", dtype, (1, -1, H))
        assert (quantized.name, quantized.dtype, tuple(quantized.shape)) == ("norm.1", narrow, (1, -1, H))
        helper.markOutput(y, "y")
        helper.markOutput(helper.addDequantize(quantized, SCALE, "wide"), "again")

    made = define(steps, dtype)
    _, helper, _ = made
    assert {"dense.weight", "norm.weight", "norm.bias"} <= helper.weights.keys()
    assert ("dense.bias" in helper.weights) == bias
    assert ("dense.weight.scales" in helper.weights) == (kind is not None)
    shapes = {"x": (1, 5, 24), "skip": (1, 5, H)}
    tensors = {name: torch.randn(shape).bfloat16().float() for name, shape in shapes.items()}  # exact in both types
    read = NetworkContents(helper.weights, helper.plugin_layers, helper.sources)
    check_definition(helper.network, read, EPSILON)
    total = tensors["x"] @ torch.from_numpy(weight).T + tensors["skip"]
    total = total + torch.from_numpy(linear_bias) if bias else total
    affine = torch.from_numpy(gamma), torch.from_numpy(beta)
    expected = torch.nn.functional.layer_norm(total, (H,), *affine, EPSILON).numpy()
    found = NetworkRunner(helper.network, contents=read).run(tensors)
    assert relative_l2(found["y"].numpy(), expected) <= TOLERANCES[kind or precision]
    assert relative_l2(found["again"].numpy(), expected) <= TOLERANCES[kind or "fp8"]
    unrounded = NetworkRunner(helper.network, contents=read, in_fp32=True).run(tensors)["y"]
    one_rounding = torch.finfo(ELEMENT_TYPES[precision].torch).eps / 2  # y has the type of skip, a network's input
    assert relative_l2(unrounded.numpy(), expected) <= one_rounding
    assert build_with_plugins(made, tmp_path / "p.plan").num_bytes > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weight": np.ones((H, 25), np.float32)}, "weight has the shape [16, 25] for x of [1, -1, 24]; expected"),
        ({"weight": np.ones((8, 24), np.float32)}, "skip has the shape [1, -1, 16] for x of [1, -1, 24] and a w"),
        ({"gamma": np.ones(H + 1, np.float32)}, "gamma has the shape [17] for a weight of [16, 24]; expected [N]"),
        ({"bias": np.ones(H - 1, np.float32)}, "bias has the shape [15] for a weight of [16, 24]; ex"),
        ({"output_scale": 0.1}, 'field output_scale is 0.1, but the field outputs is "y"; expected both'),
        ({"x_scale": -1.0}, "x of weight 'dense.weight' is HALF, with a scale; expected INT8 or FP8"),
    ],
)  # fmt: skip
def test_a_wrong_product_with_residual_sum_and_norm_is_named(changes, told):
    ones = np.ones(H, np.float32)
    given = {"weight": np.ones((H, 24), np.float32), "bias": ones, "gamma": ones, "beta": ones} | changes

    def steps(helper):
        x = helper.addInput("x", trt.DataType.HALF, (1, -1, 24))
        skip = helper.addInput("skip", trt.DataType.HALF, (1, -1, H))
        helper.addLinearSkipLayerNorm(x=x, skip=skip, epsilon=EPSILON, name="norm", linear_name="dense", **given)

    with pytest.raises(LayerError) as error:
        define(steps)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("precision", "width", "bias", "told"),
    [
        ("fp16", H + 1, H, "weight has the shape [16, 17] for x of [1, -1, 16]; expected [N, K]"),
        ("bf16", H, H + 1, "bias has the shape [17] for a weight of [16, 16]; expected [N]"),
    ],
)
def test_a_wrong_product_is_named(precision, width, bias, told):
    dtype = ELEMENT_TYPES[precision].trt

    def steps(helper):
        x = helper.addInput("x", dtype, (1, -1, H))
        helper.addFusedLinear(x, np.ones((H, width), np.float32), np.ones(bias, np.float32), "dense")

    with pytest.raises(LayerError) as error:
        define(steps, dtype)
    assert "'dense'" in str(error.value)
    assert told in str(error.value)


def test_a_product_in_fp32_is_refused():
    def steps(helper):
        x = helper.addInput("x", trt.DataType.FLOAT, (1, -1, H))
        helper.addFusedLinear(x, np.ones((H, H)), np.ones(H), "dense")

    with pytest.raises(UserError, match=r"x is fp32; expected fp16 or bf16, or int8 or fp8 with x_scale"):
        define(steps, trt.DataType.FLOAT)


# --- Linear in 8 bits

NARROW_TYPES = {"int8": trt.DataType.INT8, "fp8": trt.DataType.FP8}
IN, OUT = 16, 32


def two_products(kind: str, dtype: trt.DataType = trt.DataType.HALF, bias: bool = True) -> Any:
    """x is quantized; the first product's output stays in 8 bits, the second one's has the helper's type."""
    generator = np.random.default_rng(0)
    first, second = (generator.standard_normal(shape, np.float32) for shape in ((OUT, IN), (IN, OUT)))
    biases = generator.standard_normal(OUT, np.float32)

    def steps(helper):
        x = helper.addInput("x", dtype, (1, -1, IN))
        narrow = helper.addQuantize(x, 0.03, "narrow", NARROW_TYPES[kind])
        y = helper.addFusedLinear(
            *(narrow, first, biases if bias else None, "up", "gelu", "gelu"), x_scale=0.03, output_scale=0.1
        )
        assert (y.dtype, tuple(y.shape)) == (NARROW_TYPES[kind], (1, -1, OUT))
        z = helper.addFusedLinear(y, second, None, "down", x_scale=0.1)
        assert (z.dtype, tuple(z.shape)) == (dtype, (1, -1, IN))
        helper.markOutput(z, "y")

    def exact(x: torch.Tensor) -> torch.Tensor:
        hidden = x @ torch.from_numpy(first).T + (torch.from_numpy(biases) if bias else 0)
        return torch.nn.functional.gelu(hidden) @ torch.from_numpy(second).T

    return define(steps, dtype), exact


@pytest.mark.parametrize("kind", NARROW_TYPES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("bias", [True, False])
def test_products_in_8_bits_in_an_engine(tmp_path, kind, precision, bias):
    (made_builder, helper, _), exact = two_products(kind, ELEMENT_TYPES[precision].trt, bias)
    assert helper.weights["up.weight"].dtype == ELEMENT_TYPES[kind].numpy
    assert helper.weights["up.weight.scales"].dtype == np.float32
    read = NetworkContents(helper.weights, helper.plugin_layers, helper.sources)
    check_definition(helper.network, read, EPSILON)
    x = torch.randn(1, 5, IN)
    found = NetworkRunner(helper.network, contents=read).run({"x": x})["y"]
    assert 1e-4 < relative_l2(found.numpy(), exact(x).numpy()) <= 0.1  # rounded to 8 bits, but to no other scale
    wide = NetworkRunner(helper.network, contents=read, in_fp32=True).run({"x": x})["y"]
    assert relative_l2(wide.numpy(), exact(x.to(ELEMENT_TYPES[precision].torch).float()).numpy()) <= 1e-6
    options = BuildOptions(SequenceRange(1, 4, 8), plugin_library=build.library_path())
    assert build_plan(made_builder, helper.network, helper.log, options, tmp_path / "p.plan").num_bytes > 0


def test_placeholders_in_8_bits():
    def steps(helper):
        x = helper.addInput("x", trt.DataType.HALF, (-1, 768))
        narrow = helper.addQuantize(x, 0.03, "narrow", trt.DataType.FP8)
        helper.addFusedLinear(narrow, np.ones((3072, 768), np.float32), np.ones(3072), "dense", x_scale=0.03)

    fp8, fp32 = onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT
    assert placeholders(steps, trt.DataType.HALF) == [([1, 1], fp8), ([1, 1], fp8), ([1], fp32), ([1], fp32)]


def one_product(x_dtype=trt.DataType.INT8, width=IN, dtype=trt.DataType.HALF, **given) -> Any:
    """A product of x, which comes from a quantize layer where ``x_dtype`` has 8 bits."""

    def steps(helper):
        x = helper.addInput("x", dtype, (1, -1, width))
        if x_dtype in NARROW_TYPES.values():
            x = helper.addQuantize(x, 0.03, "narrow", x_dtype)
        y = helper.addFusedLinear(x, np.ones((OUT, width), np.float32), None, "dense", **given)
        helper.markOutput(helper.addDequantize(y, 1.0, "wide") if y.dtype in NARROW_TYPES.values() else y, "y")

    return define(steps, dtype)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "x is int8; give its scale in the field x_scale"),
        ({"x_scale": -0.5}, "field x_scale is -0.5; expected 1e-30 to 1e"),
        ({"x_scale": float("nan")}, "field x_scale is nan; expected 1e-30 to 1e"),
        ({"x_scale": 0.5, "output_scale": -1.0}, "field output_scale is -1; expected 1e-30 to 1e"),
        ({"x_scale": 0.5, "output": trt.DataType.INT8}, "field output_type is int8; give the scale of y"),
        ({"x_scale": 0.5, "output": trt.DataType.FP8, "output_scale": 1.0}, "expected fp16, bf16 or int8"),
        ({"x_scale": 0.5, "output": trt.DataType.FLOAT}, 'field output_type is "fp32"; expected fp16, bf16, int8 or'),
        (
            {"x_scale": 0.5, "x_dtype": trt.DataType.HALF},
            "x of weight 'dense.weight' is HALF, with a scale",
        ),
        ({"x_dtype": trt.DataType.HALF, "output_scale": 0.5}, "field output_scale is given, but not x_scale"),
        ({"x_dtype": trt.DataType.HALF, "output": trt.DataType.INT8}, "field output_type is given, but not x_scale"),
    ],
)
def test_a_wrong_product_in_8_bits_is_named(given, message):
    with pytest.raises(UserError) as error:
        one_product(**given)
    assert message in str(error.value)


def test_an_engine_is_built_for_a_product_in_8_bits_of_any_width(tmp_path):
    made_builder, helper, _ = one_product(width=24, x_scale=0.03)  # no multiple of 16, as Hopper's kernel needs it
    options = BuildOptions(SequenceRange(1, 4, 8), plugin_library=build.library_path())
    assert build_plan(made_builder, helper.network, helper.log, options, tmp_path / "p.plan").num_bytes > 0
    assert (tmp_path / "p.plan").is_file()


@pytest.mark.parametrize("kind", NARROW_TYPES)
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("up.weight", "constant 'up.weight' does not hold the quantized values of its source"),
        ("up.weight.scales", "constant 'up.weight.scales' does not hold the scales of 'up.weight'"),
        ("down.weight", "constant 'down.weight' does not hold the quantized values of its source"),
    ],
)
def test_another_weight_or_scale_than_the_sources_is_found(kind, changed, told):
    (_owner, helper, _), _ = two_products(kind)
    helper.weights[changed].reshape(-1)[5] *= -1
    helper.sources.pop("up.weight.scales")  # these are made from the weight, not kept
    with pytest.raises(WrongNetworkError, match=told):
        check_definition(
            helper.network, NetworkContents(helper.weights, helper.plugin_layers, helper.sources), EPSILON
        )


@pytest.mark.parametrize(
    ("scales", "told"),
    [
        ((0.04, 0.1, 0.1), "layer 'up' has x_scale 0.04, but 'narrow' was quantized with 0.03"),
        ((0.03, 0.1, 0.2), "layer 'down' has x_scale 0.2, but 'up' was quantized with 0.1"),
    ],
)
def test_a_product_that_reads_with_another_scale_is_found(scales, told):
    def steps(helper):
        x = helper.addInput("x", trt.DataType.HALF, (1, -1, IN))
        narrow = helper.addQuantize(x, 0.03, "narrow", trt.DataType.INT8)
        ones = np.ones((IN, IN), np.float32)
        y = helper.addFusedLinear(narrow, ones, None, "up", x_scale=scales[0], output_scale=scales[1])
        helper.markOutput(helper.addFusedLinear(y, ones, None, "down", x_scale=scales[2]), "y")

    _owner, helper, _ = define(steps)
    with pytest.raises(WrongNetworkError) as error:
        check_definition(
            helper.network, NetworkContents(helper.weights, helper.plugin_layers, helper.sources), EPSILON
        )
    assert told in str(error.value)


NORM_WIDTH = 16


def embeddings_of(helper: Any) -> tuple[list[Any], list[Any]]:
    """Ids and tables for EmbLayerNorm."""
    ids = [helper.addInput(name, trt.DataType.INT32, (1, -1)) for name in ("words", "types", "positions")]
    return ids, [helper.addConstant(np.ones((9, NORM_WIDTH), np.float32), f"table{i}") for i in range(3)]


def layer_in_8_bits(plugin: str, **outputs: Any) -> Any:
    """One plugin layer, ``outputs`` are the arguments of its output in int8, the network's output."""
    affine = np.ones(NORM_WIDTH, np.float32), np.zeros(NORM_WIDTH, np.float32)

    def steps(helper):
        if plugin == "Linear":
            x = helper.addQuantize(helper.addInput("x", trt.DataType.HALF, (1, -1, IN)), 0.03, "q", trt.DataType.INT8)
            weight = np.ones((NORM_WIDTH, IN), np.float32)
            y = helper.addFusedLinear(x, weight, None, "layer", None, "gelu", x_scale=0.03, **outputs)
        elif plugin == "EmbLayerNorm":
            *_, y = helper.addEmbLayerNorm(*embeddings_of(helper), *affine, EPSILON, "layer", **outputs)
        elif plugin == "SkipLayerNorm":
            x, skip = (helper.addInput(name, trt.DataType.HALF, (1, -1, NORM_WIDTH)) for name in ("x", "skip"))
            *_, y = helper.addSkipLayerNorm(x, skip, *affine, EPSILON, "layer", **outputs)
        elif plugin == "LinearSkipLayerNorm":
            x, skip = (helper.addInput(name, trt.DataType.HALF, (1, -1, NORM_WIDTH)) for name in ("x", "skip"))
            both = {"outputs": "both"} if "output_scale" in outputs else {}
            weight = np.eye(NORM_WIDTH, dtype=np.float32)
            *_, y = helper.addLinearSkipLayerNorm(
                *(x, weight, None, skip, *affine, EPSILON, "layer", "dense"), **both, **outputs
            )
        else:
            qkv = helper.addInput("qkv", trt.DataType.HALF, (-1, 3 * 64))
            y = helper.addQkvToContext(qkv, 2, "layer", output=trt.DataType.INT8, **outputs)
        helper.markOutput(helper.addDequantize(y, 0.1, "wide"), "y")

    return define(steps)


WITH_FACTORS = pytest.mark.parametrize("plugin", ["SkipLayerNorm", "EmbLayerNorm", "Linear", "LinearSkipLayerNorm"])


@WITH_FACTORS
def test_an_output_in_8_bits_with_factors_in_an_engine(tmp_path, plugin):
    factors = np.linspace(0.25, 4, NORM_WIDTH, dtype=np.float32)
    made_builder, helper, _ = layer_in_8_bits(plugin, output_scale=0.1, output_factors=factors)
    assert helper.plugin_layers["layer"].fields["output_factors"] == 1
    np.testing.assert_array_equal(helper.weights["layer.output_factors"], factors)
    read = NetworkContents(helper.weights, helper.plugin_layers, helper.sources)
    check_definition(helper.network, read, EPSILON)
    options = BuildOptions(SequenceRange(1, 4, 8), plugin_library=build.library_path())
    assert build_plan(made_builder, helper.network, helper.log, options, tmp_path / "p.plan").num_bytes > 0
    helper.sources["layer.output_factors"] = factors * 2
    with pytest.raises(WrongNetworkError, match=r"constant 'layer\.output_factors' does not hold the values of its"):
        check_definition(helper.network, read, EPSILON)


@WITH_FACTORS
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_invalid_factor_is_named_with_its_channel(plugin, value):
    factors = np.ones(NORM_WIDTH, np.float32)
    factors[3] = value
    with pytest.raises(LayerError, match=rf"layer 'layer' has the output factor {value:g} for channel 3;"):
        layer_in_8_bits(plugin, output_scale=0.1, output_factors=factors)


@WITH_FACTORS
def test_factors_of_the_wrong_number_or_of_no_output_are_refused(plugin):
    with pytest.raises(LayerError, match=r"'layer' has output_factors of shape \(15,\); expected \(16,\)"):
        layer_in_8_bits(plugin, output_scale=0.1, output_factors=np.ones(NORM_WIDTH - 1, np.float32))
    with pytest.raises(LayerError, match="'layer' has output_factors, but no output_scale: only 8 bits have factors"):
        layer_in_8_bits(plugin, output_factors=np.ones(NORM_WIDTH, np.float32))


@pytest.mark.parametrize("plugin", ["SkipLayerNorm", "EmbLayerNorm", "QkvToContext"])
@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (0.0, "give the scale of"),
        (-0.5, "field output_scale is -0.5; expected 1e-30 to 1e"),
        (math.nan, "field output_scale is nan; expected 1e-30 to 1e"),
        (math.inf, "field output_scale is inf; expected 1e-30 to 1e"),
        (1e-40, "; expected 1e-30 to 1e"),
    ],
)
def test_a_wrong_scale_of_an_output_in_8_bits_is_named(plugin, scale, told):
    both = {} if plugin == "QkvToContext" else {"outputs": "both"}
    with pytest.raises(UserError, match="'layer'") as error:
        layer_in_8_bits(plugin, output_scale=scale, **both)
    assert told in str(error.value)


def test_a_weight_whose_channel_is_all_zeros(tmp_path):
    """Its scale must not be 0: the channel's results are the bias."""
    weight, bias = np.ones((OUT, IN), np.float32), np.arange(OUT, dtype=np.float32)
    weight[3] = 0

    def steps(helper):
        x = helper.addInput("x", trt.DataType.HALF, (1, -1, IN))
        narrow = helper.addQuantize(x, 0.03, "narrow", trt.DataType.INT8)
        helper.markOutput(helper.addFusedLinear(narrow, weight, bias, "dense", x_scale=0.03), "y")

    _owner, helper, _ = define(steps)
    assert (helper.weights["dense.weight.scales"] > 0).all()
    found = NetworkRunner(helper.network, contents=contents(helper)).run({"x": torch.randn(1, 5, IN)})["y"]
    assert (found[..., 3] == 3).all()


def two_outputs() -> Any:
    """SkipLayerNorm in fp16 that gives y and y in int8, both marked as outputs."""

    def steps(helper):
        x, skip = (helper.addInput(name, trt.DataType.HALF, (1, -1, H)) for name in ("x", "skip"))
        scales = {"output_scale": SCALE, "outputs": "both"}
        y, quantized = helper.addSkipLayerNorm(x, skip, *weights(2), EPSILON, "norm", **scales)
        assert (quantized.name, quantized.dtype, tuple(quantized.shape)) == ("norm.1", trt.DataType.INT8, (1, -1, H))
        helper.markOutput(y, "y")
        helper.network.mark_output(quantized)

    return define(steps)


def test_the_runner_gives_both_outputs():
    _owner, helper, _ = two_outputs()
    tensors = {name: torch.randn(1, 5, H).half() for name in ("x", "skip")}
    runner = NetworkRunner(helper.network, contents=contents(helper))
    found = runner.run(tensors)
    gamma, beta = (torch.from_numpy(values) for values in weights(2))
    fields = helper.plugin_layers["norm"].fields
    y, quantized = reference.REFERENCES["SkipLayerNorm"](tensors["x"], tensors["skip"], gamma, beta, **fields)
    assert found["norm.1"].dtype == torch.int8
    assert torch.equal(found["norm.1"], quantized)
    assert torch.equal(found["y"], y.float())
    only = NetworkRunner(helper.network, outputs=["norm.1"], contents=contents(helper)).run(tensors)
    assert torch.equal(only["norm.1"], quantized)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
def test_the_runner_gives_both_outputs_of_the_plugins_kernel():
    _owner, helper, _ = two_outputs()
    tensors = {name: torch.randn(1, 5, H).half() for name in ("x", "skip")}
    on_cpu, on_gpu = (
        NetworkRunner(helper.network, device, contents=contents(helper)).run(tensors) for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu["y"].cpu(), on_cpu["y"], rtol=2e-3, atol=2e-3)
    assert (on_gpu["norm.1"].cpu().int() - on_cpu["norm.1"].int()).abs().max() <= 1


def test_tensorrt_builds_an_engine_with_two_outputs(tmp_path):
    assert build_with_plugins(two_outputs(), tmp_path / "p.plan").num_bytes > 0


def quantize(helper, x, name):
    scale = helper.addConstant(np.array(SCALE, np.float32), f"{name}.scale", shape=())
    return helper._check_layer(helper.network.add_quantize(x, scale, trt.DataType.INT8), name, [x, scale])


def dequantize(helper, x, name):
    scale = helper.addConstant(np.array(SCALE, np.float32), f"{name}.scale", shape=())
    return helper._check_layer(helper.network.add_dequantize(x, scale, helper.dtype), name, [x, scale])


def test_tensorrt_builds_an_engine_with_int8_in_and_out(tmp_path):
    """int8 from QUANTIZE into a plugin, from plugin to plugin, and from a plugin into DEQUANTIZE."""
    gamma, beta, bias = weights(3)

    def steps(helper):
        x, skip = (helper.addInput(name, trt.DataType.HALF, (1, -1, H)) for name in ("x", "skip"))
        narrow = [quantize(helper, tensor, f"quantized_{tensor.name}") for tensor in (x, skip)]
        norm = functools.partial(helper.addSkipLayerNorm, gamma=gamma, beta=beta, epsilon=EPSILON)
        scales = {"x_scale": SCALE, "output_scale": SCALE}
        wide, first = norm(narrow[0], skip, name="first", bias=bias, outputs="both", **scales)
        (second,) = norm(first, narrow[1], name="second", skip_scale=SCALE, **scales)
        (third,) = norm(second, narrow[1], name="third", x_scale=SCALE, skip_scale=SCALE)
        types = [tensor.dtype for tensor in (wide, first, second, third)]
        assert types == [trt.DataType.HALF, trt.DataType.INT8, trt.DataType.INT8, trt.DataType.HALF]
        total = helper.addAdd(dequantize(helper, second, "wide_again"), helper.addAdd(wide, third, "half"), "sum")
        helper.markOutput(total, "y")

    made = define(steps)
    fields = made[1].plugin_layers["third"].fields
    assert fields["output_type"] == "fp16"  # both inputs are int8, so that no type says it
    assert fields["constant_weights"] == 1
    assert build_with_plugins(made, tmp_path / "p.plan").num_bytes > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_embeddings_and_norm_in_one_layer(tmp_path, precision):
    dtype = ELEMENT_TYPES[precision].trt
    names, sizes = ("input_ids", "token_type_ids", "position_ids"), (50, 20, 2)
    generator = np.random.default_rng(1)
    values = [generator.standard_normal((size, H), np.float32) for size in sizes]
    gamma, beta = weights(2)

    def steps(helper):
        ids = [helper.addInput(name, trt.DataType.INT32, (1, -1)) for name in names]
        tables = [helper.addConstant(table, f"table{index}") for index, table in enumerate(values)]
        (y,) = helper.addEmbLayerNorm(ids, tables, gamma, beta, EPSILON, "emb")
        helper.markOutput(y, "y")

    made = define(steps, dtype)
    chosen = {name: np.array([[0, 1, 1, 0]], np.int32) for name in names}
    chosen["input_ids"] = np.array([[49, 3, 50, 0]], np.int32)  # 50 is not in the table
    found = NetworkRunner(made[1].network, contents=contents(made[1])).run(chosen)["y"]
    assert found.shape == (1, 4, H)
    assert found[0, 2].isnan().all()
    rows = [values[0][[49, 3, 0]], values[1][[0, 1, 0]], values[2][[0, 1, 0]]]
    total, affine = torch.from_numpy(sum(rows)), (torch.from_numpy(gamma), torch.from_numpy(beta))
    expected = torch.nn.functional.layer_norm(total, (H,), *affine, EPSILON)
    assert relative_l2(found[0, [0, 1, 3]].numpy(), expected.numpy()) <= TOLERANCES[precision]
    assert build_with_plugins(made, tmp_path / "p.plan").num_bytes > 0


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_layer_in_8_bits_from_the_embeddings_on(tmp_path, kind):
    """EmbLayerNorm and SkipLayerNorm give y and y in 8 bits, attention and the first product give 8 bits alone."""
    narrow, scale, width, heads = NARROW_TYPES[kind], 0.03, 64, 2
    generator = np.random.default_rng(1)
    values = [generator.standard_normal((size, width), np.float32) for size in (50, 20, 2)]
    gamma, beta = np.ones(width, np.float32), generator.standard_normal(width, np.float32)
    shapes = {"qkv": (3 * width, width), "out": (width, width), "up": (2 * width, width), "down": (width, 2 * width)}
    matrices = {
        name: generator.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[1]))
        for name, shape in shapes.items()
    }
    names = ("input_ids", "token_type_ids", "position_ids")

    def steps(helper):
        in_8_bits = {"output_scale": scale, "quantized_type": narrow}
        ids = [helper.addInput(name, trt.DataType.INT32, (1, -1)) for name in names]
        tables = [helper.addConstant(table, f"table{index}") for index, table in enumerate(values)]
        y, q = helper.addEmbLayerNorm(ids, tables, gamma, beta, EPSILON, "emb", outputs="both", **in_8_bits)
        qkv = helper.addFusedLinear(q, matrices["qkv"], None, "qkv", x_scale=scale)
        context = helper.addQkvToContext(qkv, heads, "attention", output_scale=scale, output=narrow)
        attended = helper.addFusedLinear(context, matrices["out"], None, "out", x_scale=scale)
        y, q = helper.addSkipLayerNorm(attended, y, gamma, beta, EPSILON, "norm", outputs="both", **in_8_bits)
        up = helper.addFusedLinear(
            q, matrices["up"], beta.repeat(2), "up", None, "gelu", x_scale=scale, output_scale=0.1
        )
        down = helper.addFusedLinear(up, matrices["down"], None, "down", x_scale=0.1)
        (y,) = helper.addSkipLayerNorm(down, y, gamma, beta, EPSILON, "last")
        assert {tensor.dtype for tensor in (q, context, up)} == {narrow}
        assert {tensor.dtype for tensor in (qkv, attended, down, y)} == {trt.DataType.HALF}
        helper.markOutput(y, "y")

    made_builder, helper, _ = define(steps)
    read = NetworkContents(helper.weights, helper.plugin_layers, helper.sources)
    check_definition(helper.network, read, EPSILON)
    chosen = {name: np.array([[0, 1, 1, 0]], np.int32) for name in names}
    chosen["input_ids"] = np.array([[49, 3, 17, 0]], np.int32)
    found, wide = (
        NetworkRunner(helper.network, contents=read, in_fp32=in_fp32).run(chosen)["y"].numpy()
        for in_fp32 in (False, True)
    )
    assert 1e-3 < relative_l2(found, wide) <= 0.1
    assert build_with_plugins((made_builder, helper, None), tmp_path / "p.plan").num_bytes > 0


def test_int8_without_a_scale_is_refused_by_name():
    def steps(helper):
        x = helper.addInput("x", trt.DataType.HALF, (1, -1, H))
        gamma, beta = weights(2)
        parameters = [helper.addConstant(gamma, "gamma", trt.DataType.FLOAT)]
        parameters.append(helper.addConstant(beta, "beta", trt.DataType.FLOAT))
        layer = PluginLayer("norm", "SkipLayerNorm", {"epsilon": EPSILON}, ((trt.DataType.HALF, (1, -1, H)),))
        return helper.addPlugin(layer, [quantize(helper, x, "q"), x, *parameters])

    with pytest.raises(LayerError, match=r"'norm'.*x is int8; give its scale in the field x_scale"):
        define(steps)


@pytest.mark.parametrize("layout", ["single", "padded", "packed"])
@pytest.mark.parametrize(
    ("dtype", "options", "output"),
    [
        ("fp32", {}, trt.DataType.FLOAT),
        ("fp16", {}, trt.DataType.HALF),
        ("bf16", {}, trt.DataType.BF16),
        ("fp16", {"output_scale": 0.02}, trt.DataType.INT8),
        ("fp16", {"output_scale": 0.02, "output": trt.DataType.FP8}, trt.DataType.FP8),
        ("bf16", {"output_scale": 0.02, "output": trt.DataType.FP8}, trt.DataType.FP8),
        ("int8", {"qkv_scale": 0.1, "output_scale": 0.02}, trt.DataType.INT8),
        ("int8", {"qkv_scale": 0.1, "output": trt.DataType.HALF}, trt.DataType.HALF),
        ("int8", {"qkv_scale": 0.1, "output": trt.DataType.BF16}, trt.DataType.BF16),
        ("int8", {"qkv_scale": 0.1, "output": trt.DataType.FLOAT}, trt.DataType.FLOAT),
    ],
)
def test_attention_plugin_in_an_engine(tmp_path, layout, dtype, options, output):
    """Placed by the parser's way, and built by TensorRT; int8 comes from a quantize layer."""
    hidden, heads, given = 128, 2, trt.DataType.HALF if dtype == "int8" else ELEMENT_TYPES[dtype].trt
    leading = (-1, -1) if layout == "padded" else (-1,)

    def steps(helper):
        qkv, lengths = helper.addInput("qkv", given, (*leading, 3 * hidden)), None
        if dtype == "int8":
            qkv = helper.addQuantize(qkv, 0.1, "quantized", trt.DataType.INT8)
        if layout != "single":
            lengths = helper.addInput("second", trt.DataType.INT32, (-1, -1) if layout == "padded" else (-1,))
        context = helper.addQkvToContext(qkv, heads, "attention", layout, lengths, **options)
        assert context.dtype == output
        assert shape_of(context) == (*leading, hidden)
        helper.network.mark_output(context)

    made_builder, helper, _ = define(steps, given)
    network, config = helper.network, made_builder.create_builder_config()
    profile = made_builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shapes = [[size if axis == -1 else axis for axis in tensor.shape] for size in (1, 4, 8)]
        profile.set_shape(tensor.name, *(trt.Dims(shape) for shape in shapes))
    config.add_optimization_profile(profile)
    plan = made_builder.build_serialized_network(network, config)
    assert plan is not None, helper.log.errors


def test_wrong_attention_fields_are_named():
    def steps(helper):
        helper.addQkvToContext(helper.addInput("qkv", trt.DataType.HALF, (-1, 3 * 96)), 2, "attention")

    with pytest.raises(LayerError, match=r"'attention'.*a head has 48 elements; expected 32, 64 or 128"):
        define(steps)


def test_attention_on_a_cpu_is_its_reference():
    qkv, mask = torch.randn(2, 3, 192), torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.int32)
    found = reference.REFERENCES["QkvToContext"](qkv, mask, num_heads=2, layout="padded")
    torch.testing.assert_close(found[1, 0], qkv[1, 0, 128:])  # one key: its value


class NetworkWithPluginCall:
    """What PluginLayers needs of a network that has ``add_plugin_v3``."""

    def __init__(self) -> None:
        self.added = []

    def add_plugin_v3(self, inputs, shape_inputs, plugin):
        self.added.append((inputs, shape_inputs, plugin))
        return "layer"


def test_the_network_decides_how_plugins_are_added(monkeypatch):
    """Whichever product it belongs to; the parser and its shim stay out of it."""

    def refuse(*_arguments):
        raise AssertionError("the parser's way was taken")

    monkeypatch.setattr(plugin_layers.rtx_parser_shim, "load", refuse)
    monkeypatch.setattr(trt, "OnnxParser", refuse)
    monkeypatch.setattr(plugin_layers, "_create", lambda layer: layer.name)
    network: Any = NetworkWithPluginCall()
    layer = PluginLayer("norm", "LayerNorm", {"epsilon": 1e-12, "kernel": "fast"}, ())
    layers = PluginLayers(network, TrtLog(), [RecordedLayer(layer, (), "")])
    tensors: Any = ["x", "gamma", "beta"]
    assert layers.add(layer, tensors) == "layer"
    assert network.added == [(["x", "gamma", "beta"], [], "norm")]


def test_loading_the_library_needs_no_shim(monkeypatch, tmp_path):
    def refuse():
        raise AssertionError("the shim was loaded")

    loaded = []
    registry = types.SimpleNamespace(load_library=lambda path: loaded.append(path) or "handle")
    monkeypatch.setattr(plugin_layers.rtx_parser_shim, "load", refuse)
    monkeypatch.setattr(trt, "get_plugin_registry", lambda: registry)
    assert plugin_layers._load_once.__wrapped__(tmp_path / "p.so") == tmp_path / "p.so"
    assert loaded == [os.fsencode(tmp_path / "p.so")]  # bytes: a path need not be valid UTF-8


def test_a_library_from_before_a_plugin_was_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"libold\.so has no plugin Attention2: .* build it again: python"):
        check_creators(tmp_path / "libold.so", ["LayerNorm", "Attention2"])
