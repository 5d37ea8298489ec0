"""The SkipLayerNorm plugin: what it accepts and refuses anywhere, what it computes on a GPU."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from plugin_runs_for_tests import (
    assert_as_good_as_pytorch,
    assert_replays_equal,
    in_half_steps,
    needs_gpu,
    relative_error,
    run_guarded,
)
from torch.nn import functional

from plugins import build, reference
from plugins.plugin_host import PluginHost, PluginHostError, TensorSpec

FLOATS = ("float32", "float16", "bfloat16")
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
EPSILON = 1e-12


@pytest.fixture(scope="module")
def host():
    folder = built_plugins()
    return PluginHost(folder / build.LIBRARY, folder / build.HOST)


def create(host, **fields):
    return host.create("SkipLayerNorm", fields={"epsilon": EPSILON} | fields)


def specs(x="float16", skip=None, weight=None, bias=True, shape=(2, 7, 768)):
    skip = skip or x
    weight = weight or (x if x != "int8" else "float32")
    return [TensorSpec(shape, x), TensorSpec(shape, skip)] + [TensorSpec(shape[-1:], weight)] * (3 if bias else 2)


# --- Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field epsilon is missing"),
        ({"epsilon": 0.0}, "field epsilon is 0; expected a finite number greater than 0"),
        ({"epsilon": float("nan")}, "field epsilon is nan; expected"),
        ({"epsilon": 1}, "field epsilon has plugin field type 5, expected float32"),
        ({"epsilon": 1e-5, "x_scale": -1.0}, "field x_scale is -1; expected 1e-30 to 1e+30, or 0 for no scale"),
        ({"epsilon": 1e-5, "skip_scale": float("nan")}, "field skip_scale is nan; expected"),
        ({"epsilon": 1e-5, "output_scale": float("inf")}, "field output_scale is inf; expected"),
        ({"epsilon": 1e-5, "output_scale": 1e-31}, "field output_scale is 1e-31; expected"),
        ({"epsilon": 1e-5, "output_scale": 1}, "field output_scale has plugin field type 5, expected float32"),
        ({"epsilon": 1e-5, "output_type": "int8"}, 'field output_type is "int8"; expected fp32, fp16 or bf16'),
        ({"epsilon": 1e-5, "output_type": ""}, "field output_type is empty"),
        ({"epsilon": 1e-5, "outputs": "all"}, 'field outputs is "all"; expected y or both'),
        ({"epsilon": 1e-5, "outputs": "both"}, 'field outputs is "both"; give the scale of the output in 8 bits'),
        ({"epsilon": 1e-5, "quantized_type": "fp8"}, 'quantized_type is "fp8", but there is no output_scale'),
        (
            {"epsilon": 1e-5, "output_scale": 0.5, "quantized_type": "fp16"},
            'field quantized_type is "fp16"; expected int8 or fp8',
        ),
        (
            {"epsilon": 1e-5, "output_factors": 1},
            "field output_factors is 1, but there is no output_scale; only an output in 8 bits has factors",
        ),
        ({"epsilon": 1e-5, "output_scale": 0.5, "output_factors": 2}, "field output_factors is 2; expected 0 or 1"),
        ({"epsilon": 1e-5, "constant_weights": 2}, "field constant_weights is 2; expected 0 or 1"),
        ({"epsilon": 1e-5, "constant_weights": -1}, "field constant_weights is -1; expected 0 or 1"),
        ({"epsilon": 1e-5, "constant_weights": 1.0}, "field constant_weights has plugin field type"),
        ({"epsilon": 1e-5, "kernel": "fast"}, "unknown field kernel"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(host, fields, message):
    with pytest.raises(PluginHostError) as error:
        host.create("SkipLayerNorm", fields=fields)
    assert message in str(error.value)


@pytest.mark.parametrize("constant_weights", [0, 1])
def test_serialized_fields_make_the_same_plugin(host, constant_weights):
    given_fields = {"x_scale": 0.5, "skip_scale": 0.25, "output_scale": 2.0, "output_type": "bf16", "outputs": "both"}
    given_fields |= {"constant_weights": constant_weights}
    plugin = create(host, **given_fields)
    fields = plugin.serialized_fields()
    assert fields == {"epsilon": np.float32(EPSILON), **given_fields}
    assert host.create("SkipLayerNorm", fields=fields).serialized_fields() == fields
    assert plugin.clone().serialized_fields() == fields
    assert not {"output_type", "output_factors"}.intersection(create(host).serialized_fields())
    factors = create(host, output_scale=2.0, output_factors=1)
    assert factors.serialized_fields()["output_factors"] == factors.clone().serialized_fields()["output_factors"] == 1
    assert create(host).serialized_fields()["constant_weights"] == 0


# --- Types, shapes, formats


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x", FLOATS)
def test_accepted_floating_types(host, x, bias):
    plugin = create(host)
    for weight in {x, "float32"}:
        inputs = specs(x, weight=weight, bias=bias)
        assert plugin.output_specs(inputs) == [TensorSpec((2, 7, 768), x)]
        assert plugin.configure(inputs) == 0


@pytest.mark.parametrize(
    ("fields", "x", "skip", "weight", "outputs"),
    [
        ({"x_scale": 0.1}, "int8", "float16", "float16", ["float16"]),
        ({"skip_scale": 0.1}, "bfloat16", "int8", "float32", ["bfloat16"]),
        ({"x_scale": 0.1, "output_scale": 0.1, "outputs": "both"}, "int8", "float16", "float32", ["float16", "int8"]),
        ({"output_scale": 0.1}, "float32", "float32", "float32", ["int8"]),
        ({"x_scale": 0.1, "skip_scale": 0.1, "output_scale": 0.1}, "int8", "int8", "float32", ["int8"]),
        ({"x_scale": 0.1, "skip_scale": 0.1, "output_type": "bf16"}, "int8", "int8", "bfloat16", ["bfloat16"]),
        (
            {"x_scale": 0.1, "skip_scale": 0.1, "output_scale": 0.1, "output_type": "fp16", "outputs": "both"},
            "int8", "int8", "float16", ["float16", "int8"],
        ),
        ({"x_scale": 0.1, "output_type": "fp16"}, "int8", "float16", "float16", ["float16"]),
        ({"output_scale": 0.1, "quantized_type": "fp8"}, "float16", "float16", "float32", ["float8_e4m3fn"]),
        (
            {"output_scale": 0.1, "outputs": "both", "quantized_type": "fp8"},
            "bfloat16", "bfloat16", "float32", ["bfloat16", "float8_e4m3fn"],
        ),
        ({"output_scale": 0.1, "outputs": "both", "quantized_type": "int8"},
            "float16", "float16", "float32", ["float16", "int8"]),
    ],
)  # fmt: skip
def test_int8_in_and_out(host, fields, x, skip, weight, outputs):
    inputs = specs(x, skip, weight)
    plugin = create(host, **fields)
    assert plugin.output_specs(inputs) == [TensorSpec((2, 7, 768), dtype) for dtype in outputs]
    assert plugin.configure(inputs) == 0
    plugin.start()


@pytest.mark.parametrize(
    ("fields", "types", "message"),
    [
        ({}, ("int32", "float16", "float16"), "x is int32; expected fp32, fp16, bf16 or int8"),
        ({}, ("int8", "float16", "float16"), "x is int8; give its scale in the field x_scale"),
        ({}, ("float16", "int8", "float16"), "skip is int8; give its scale in the field skip_scale"),
        (
            {"x_scale": 0.5}, ("float16", "float16", "float16"),
            "x is fp16, but the field x_scale is 0.5; expected int8, or no scale",
        ),
        ({}, ("float16", "float32", "float16"), "x is fp16 and skip is fp32; expected both of one type, or int8"),
        ({}, ("float16", "float16", "bfloat16"), "gamma is bf16, beta is bf16, bias is bf16; expected all of"),
        ({}, ("float32", "float32", "float16"), "expected all of them fp32"),
        (
            {"x_scale": 0.5, "skip_scale": 0.5}, ("int8", "int8", "float32"),
            "x and skip are int8; name the type of y in the field output_type",
        ),
        (
            {"x_scale": 0.5, "skip_scale": 0.5, "output_scale": 0.5}, ("int8", "int8", "float16"),
            "expected all of them fp32",
        ),
        (
            {"output_type": "bf16"}, ("float16", "float16", "float16"),
            "field output_type is bf16, but x is fp16; expected the same type",
        ),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_by_name(host, fields, types, message):
    with pytest.raises(PluginHostError) as error:
        create(host, **fields).output_specs(specs(*types))
    assert message in str(error.value)


WITH_FACTORS = {"output_scale": 0.1, "outputs": "both", "output_factors": 1}


def specs_with_factors(bias=True, dtype="float32", length=768):
    """x, skip, gamma, beta, output_factors, and perhaps the bias."""
    inputs = specs(weight="float16", bias=bias)
    return [*inputs[:4], TensorSpec((length,), dtype), *inputs[4:]]


@pytest.mark.parametrize("bias", [True, False])
def test_factors_of_the_output_in_8_bits(host, bias):
    inputs, plugin = specs_with_factors(bias), create(host, **WITH_FACTORS)
    outputs = plugin.output_specs(inputs)
    assert outputs == [TensorSpec((2, 7, 768), "float16"), TensorSpec((2, 7, 768), "int8")]
    assert all(plugin.supports(position, inputs, outputs) for position in range(len(inputs) + 2))
    assert not plugin.supports(4, specs_with_factors(bias, "float16"), outputs)
    assert plugin.configure(inputs) == 0
    plugin.start()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (specs_with_factors(dtype="float16"), "output_factors is fp16; expected fp32"),
        (specs_with_factors(dtype="int8"), "output_factors is int8; expected fp32"),
        (specs_with_factors(length=767), "output_factors has the shape [767]; expected [768]"),
        (specs(), "output_factors is fp16; expected fp32"),
        (specs(bias=False), "number of inputs: 4, expected 5, or 6 with a bias; they are x, skip, gamma, beta, out"),
    ],
)
def test_wrong_factors_are_refused_by_name(host, inputs, message):
    with pytest.raises(PluginHostError) as error:
        create(host, **WITH_FACTORS).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changed", "shape", "message"),
    [
        (1, (2, 6, 768), "skip has the shape [2, 6, 768]; expected that of x, [2, 7, 768]"),
        (1, (768,), "skip has the shape [768]; expected that of x, [2, 7, 768]"),
        (2, (767,), "gamma has the shape [767]; expected [768]"),
        (3, (1, 768), "beta has the shape [1, 768]; expected [768]"),
        (4, (), "bias has the shape []; expected [768]"),
    ],
)
def test_wrong_shapes_are_refused_by_name(host, changed, shape, message):
    inputs = specs()
    inputs[changed] = TensorSpec(shape, "float16")
    with pytest.raises(PluginHostError) as error:
        create(host).output_specs(inputs)
    assert message in str(error.value)


def test_an_empty_last_axis_is_refused(host):
    with pytest.raises(PluginHostError, match=r"x has the shape \[2, 0\]; its last axis must have 1 to"):
        create(host).output_specs(specs(shape=(2, 0)))


@pytest.mark.parametrize("count", [3, 6])
def test_wrong_number_of_inputs_is_refused(host, count):
    with pytest.raises(PluginHostError, match=f"number of inputs: {count}, expected 4, or 5 with a bias"):
        create(host).output_specs((specs() + specs()[-1:])[:count])


def test_unknown_dimensions_pass_through(host):
    (output,) = create(host).output_specs(specs(shape=(-1, -1, 768)))
    assert output.shape == (-1, -1, 768)


@pytest.mark.parametrize("position", range(7))
def test_only_linear_format_is_supported(host, position):
    plugin = create(host, x_scale=0.1, output_scale=0.1, outputs="both")
    tensors = specs("int8", "float16", "float32")
    tensors += plugin.output_specs(tensors)
    assert plugin.supports(position, tensors[:5], tensors[5:])
    tensors[position] = TensorSpec(tensors[position].shape, tensors[position].dtype, format=2)  # kHWC8
    assert not plugin.supports(position, tensors[:5], tensors[5:])


@pytest.mark.parametrize(
    ("position", "dtype"),
    [(0, "float16"), (1, "int8"), (2, "bfloat16"), (3, "float16"), (4, "float16"), (5, "float32"), (6, "float16")],
)
def test_other_types_are_not_supported(host, position, dtype):
    plugin = create(host, x_scale=0.1, output_scale=0.1, outputs="both")
    tensors = specs("int8", "float16", "float32")
    tensors += plugin.output_specs(tensors)
    tensors[position] = TensorSpec(tensors[position].shape, dtype)
    assert not plugin.supports(position, tensors[:5], tensors[5:])


@given(leading=st.lists(st.integers(0, 50), max_size=6), hidden=st.integers(1, 10_000), dtype=st.sampled_from(FLOATS))
@settings(deadline=None, max_examples=100)
def test_any_shape_is_prepared(host, leading, hidden, dtype):
    shape = (*leading, hidden)
    (y, quantized), workspace = create(host, output_scale=0.1, outputs="both").prepare(specs(dtype, shape=shape))
    assert (y, quantized) == (TensorSpec(shape, dtype), TensorSpec(shape, "int8"))
    assert workspace == 0


# --- CUDA errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, where a launch must fail")
@pytest.mark.parametrize("hidden", [768, 33])
def test_cuda_error_is_returned_and_logged(host, hidden):
    with pytest.raises(PluginHostError, match="SkipLayerNorm plugin, enqueue: CUDA error"):
        create(host).enqueue(specs(shape=(2, hidden)), [0] * 5, [0])


def test_no_rows_launch_nothing(host):  # without a GPU any launch would be an error
    create(host).enqueue(specs(shape=(0, 7, 768)), [0] * 5, [0])


# --- The reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_is_pytorchs_layer_norm_of_the_sum(dtype):
    x, skip = (torch.randn(5, 33).to(dtype) for _ in range(2))
    gamma, beta, bias = (torch.randn(33).to(dtype) for _ in range(3))
    wide = (x.double() + skip.double() + bias.double(), (33,), gamma.double(), beta.double(), EPSILON)
    expected = functional.layer_norm(*wide)
    ours = reference.REFERENCES["SkipLayerNorm"](x, skip, gamma, beta, bias, epsilon=EPSILON)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    exact = reference.skip_layer_norm(x, skip, gamma, beta, bias, epsilon=EPSILON, dtype=torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)


def test_reference_quantizes_as_tensorrt_does():
    values = torch.tensor([0.25, 0.75, -0.25, -0.75, 63.6, -64.4, 1e30, -1e30])  # ties go to the even number
    assert reference.quantize(values, 0.5).tolist() == [0, 2, 0, -2, 127, -128, 127, -128]


def test_reference_of_int8_and_both_outputs():
    x = torch.randint(-128, 128, (4, 16), dtype=torch.int8)
    skip, gamma, beta = torch.randn(4, 16).half(), torch.randn(16), torch.randn(16)
    fields = {"epsilon": EPSILON, "x_scale": 0.1, "output_scale": 0.05, "outputs": "both"}
    y, quantized = reference.REFERENCES["SkipLayerNorm"](x, skip, gamma, beta, **fields)
    expected = functional.layer_norm(x * float(np.float32(0.1)) + skip.float(), (16,), gamma, beta, EPSILON)
    assert (y.dtype, quantized.dtype) == (torch.float16, torch.int8)
    torch.testing.assert_close(y.float(), expected, rtol=1e-3, atol=1e-3)
    assert (quantized * 0.05 - expected.clamp(-6.4, 6.35)).abs().max() <= 0.025 + 1e-4
    only = reference.REFERENCES["SkipLayerNorm"](x, skip, gamma, beta, **fields | {"outputs": "y"})
    assert torch.equal(only, quantized)


@pytest.mark.parametrize("narrow", ["int8", "fp8"])
def test_reference_multiplies_the_output_in_8_bits_alone(narrow):
    x, skip, gamma, beta, bias = (torch.randn(4, 16), torch.randn(4, 16), *torch.randn(3, 16))
    factors, plain = torch.rand(16) * 4 + 0.1, {"epsilon": EPSILON, "output_scale": 0.05, "quantized_type": narrow}
    fields = plain | {"outputs": "both", "output_factors": 1}
    y, quantized = reference.REFERENCES["SkipLayerNorm"](x, skip, gamma, beta, factors, bias, **fields)
    assert torch.equal(y, reference.REFERENCES["SkipLayerNorm"](x, skip, gamma, beta, bias, epsilon=EPSILON))
    assert torch.equal(quantized, reference.quantize(y * factors, 0.05, reference.TYPES[narrow]))
    wide = reference.compute_in_fp32("SkipLayerNorm", [x, skip, gamma, beta, factors, bias], fields)
    assert torch.equal(wide[0], y)
    assert torch.equal(wide[1], y * factors)


# --- On a GPU

WIDTHS = (1, 5, 33, 64, 384, 768, 769, 1023, 1024, 2048, 4096, 20000, 40000)
FLOATING_TYPES = (  # of x and skip, and of the weights
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
)
CONTENTS = ("normal", "outliers", "constant rows", "large mean", "overflow in fp16")


def make_inputs(content, rows, width, dtype, weight_dtype):
    """x, skip, gamma, beta, bias: hard in one way each."""
    x, skip = (torch.randn(rows, width, device="cuda") for _ in range(2))
    gamma, beta, bias = (torch.randn(width, device="cuda") for _ in range(3))
    if content == "outliers":  # what a few features of trained BERTs do
        x[:, :: max(width // 3, 1)] *= 100.0
    elif content == "constant rows":  # variance 0: epsilon alone decides
        x, skip, bias = x[:, :1].expand(rows, width), skip[:, :1].expand(rows, width), torch.zeros_like(bias)
    elif content == "large mean":  # E[x²] − mean² has no digit left here
        x = 1e4 + 1e-2 * x
    elif content == "overflow in fp16":  # x and skip fit, their sum of 8e4 does not
        x, skip = 4e4 + 1e3 * x.clamp(-5, 5), 4e4 + 1e3 * skip.clamp(-5, 5)
    return [*(t.to(dtype).contiguous() for t in (x, skip)), *(t.to(weight_dtype) for t in (gamma, beta, bias))]


def pytorchs(x, skip, gamma, beta, bias=None):
    """PyTorch's own, in the type of x as far as it goes."""
    total = (x if bias is None else x + bias.to(x.dtype)) + skip
    gamma, beta = gamma.to(x.dtype), beta.to(x.dtype)
    return functional.layer_norm(total, x.shape[-1:], gamma, beta, EPSILON)


def total_of(x, skip, gamma, beta, bias=None):
    """What is normalised, in float64."""
    return x.double() + skip.double() + (0 if bias is None else bias.double())


@needs_gpu
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("dtype", "weight_dtype"), FLOATING_TYPES)
def test_floating_results(host, dtype, weight_dtype, content):
    torch.manual_seed(0)
    plugin = create(host)
    for width, rows, bias in itertools.product(WIDTHS, (0, 1, 7, 300), (True, False)):
        inputs = make_inputs(content, rows, width, dtype, weight_dtype)[: 5 if bias else 4]
        exact = reference.skip_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
        (found,) = run_guarded(plugin, inputs)
        assert found.dtype == dtype
        if rows:
            assert_as_good_as_pytorch(found, exact, pytorchs(*inputs), total_of(*inputs))


@needs_gpu
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("constant_weights", [0, 1])
@pytest.mark.parametrize(("dtype", "weight_dtype"), FLOATING_TYPES[1:])
def test_rows_around_one_wave(host, dtype, weight_dtype, constant_weights, content):
    """As many rows as are under way at the same time, or twice as many, and one more: that takes another kernel."""
    torch.manual_seed(0)
    plugin = create(host, constant_weights=constant_weights)
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    threads = (768, 1024) if weight_dtype == torch.float32 else (1024, 1536)  # late one wave, early two
    of_row = ((64, 8), (256, 32), (512, 32), (768, 32), (1536, 64))  # width, threads for each row
    for (width, used), more in itertools.product(of_row, (0, 1)):
        rows = threads[constant_weights] // used * multiprocessors + more
        inputs = make_inputs(content, rows, width, dtype, weight_dtype)
        torch.cuda.synchronize()  # from here on the weights are constant
        exact = reference.skip_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
        (found,) = run_guarded(plugin, inputs)
        assert_as_good_as_pytorch(found, exact, pytorchs(*inputs), total_of(*inputs))


@needs_gpu
@pytest.mark.parametrize(("dtype", "weight_dtype"), FLOATING_TYPES)
def test_constant_weights_give_the_same_results(host, dtype, weight_dtype):
    """With rows for each way to fetch the weights: early, late, and with the rows.

    Bit for bit, but that narrow rows with fp32 weights are added up in another order where these are fetched early.
    """
    torch.manual_seed(0)
    other_order = dtype != weight_dtype
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    for width, of_each, more, bias in itertools.product(
        (64, 256, 512, 768, 1000, 1024, 1536), (0, 4, 8, 12, 16, 24, 32, 48, 128, 192), (0, 1), (True, False)
    ):
        rows = max(of_each * multiprocessors + more, 7)
        inputs = make_inputs("normal", rows, width, dtype, weight_dtype)[: 5 if bias else 4]
        torch.cuda.synchronize()  # from here on the weights are constant
        (expected,) = create(host).run_torch(inputs)
        (found,) = run_guarded(create(host, constant_weights=1), inputs)
        step = 2 * torch.finfo(dtype).eps if other_order else 0.0
        torch.testing.assert_close(found, expected, rtol=step, atol=step * 1e-2)
        assert (found != expected).float().mean() <= (0.01 if other_order else 0.0)


@needs_gpu
@pytest.mark.parametrize(("dtype", "weight_dtype"), FLOATING_TYPES)
def test_weights_that_the_kernel_before_writes(host, dtype, weight_dtype):
    before, plugin = create(host), create(host)
    x, skip, gamma, beta, bias = make_inputs("normal", 128, 768, dtype, weight_dtype)
    row, nothing, one = gamma.reshape(1, -1), torch.zeros_like(gamma), torch.ones_like(gamma)
    (made,) = before.run_torch([row, row, one, nothing])  # a layer norm's row, which is the next one's gamma
    (expected,) = plugin.run_torch([x, skip, made[0], beta, bias])
    torch.cuda.synchronize()
    buffer = torch.empty_like(row)
    for _ in range(20):
        buffer.fill_(float("nan"))
        before.run_torch([row, row, one, nothing], [buffer])
        (found,) = plugin.run_torch([x, skip, buffer[0], beta, bias])
        assert torch.equal(found, expected)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_addresses_that_vectors_cannot_be_read_from(host, dtype):
    inputs = make_inputs("normal", 7, 768, dtype, dtype)
    exact = reference.skip_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
    (found,) = run_guarded(create(host), inputs, shift=dtype.itemsize)
    assert_as_good_as_pytorch(found, exact, pytorchs(*inputs), total_of(*inputs))


INT8_VARIANTS = [
    {"x_scale": 0.03},
    {"skip_scale": 0.05},
    {"x_scale": 0.03, "skip_scale": 0.05},
    {"output_scale": 0.02},
    {"x_scale": 0.03, "output_scale": 0.02},
    {"x_scale": 0.03, "skip_scale": 0.05, "output_scale": 0.02},
    {"output_scale": 0.02, "outputs": "both"},
    {"x_scale": 0.03, "output_scale": 0.02, "outputs": "both"},
    {"skip_scale": 0.05, "output_scale": 0.02, "outputs": "both"},
    {"x_scale": 0.03, "skip_scale": 0.05, "output_scale": 0.02, "outputs": "both"},
    {"output_scale": 0.02, "quantized_type": "fp8"},
    {"output_scale": 0.02, "outputs": "both", "quantized_type": "fp8"},
    {"x_scale": 0.03, "output_scale": 0.02, "outputs": "both", "quantized_type": "fp8"},
    {"output_scale": 0.02, "outputs": "both", "output_factors": 1},
    {"output_scale": 0.02, "outputs": "both", "output_factors": 1, "constant_weights": 1, "quantized_type": "fp8"},
    {"x_scale": 0.03, "skip_scale": 0.05, "output_scale": 0.02, "output_factors": 1},
]


def check_int8(host, fields, rows, width, dtype, weight_dtype, bias):
    """One run with int8 tensors against float64."""
    inputs = make_inputs("normal", rows, width, dtype, weight_dtype)[: 5 if bias else 4]
    for place, name in enumerate(("x_scale", "skip_scale")):
        if name in fields:
            inputs[place] = torch.randint(-128, 128, (rows, width), dtype=torch.int8, device="cuda")
    if "x_scale" in fields and "skip_scale" in fields:
        fields = fields | {"output_type": SHORT[str(dtype).removeprefix("torch.")]}
    factors = torch.rand(width, device="cuda") * 2 + 0.05
    with_factors = [*inputs[:4], factors, *inputs[4:]] if "output_factors" in fields else inputs
    torch.cuda.synchronize()  # from here on the weights are constant
    found = run_guarded(create(host, **fields), with_factors)
    scales = {name: fields.get(name, 0.0) for name in ("x_scale", "skip_scale")}
    exact = reference.skip_layer_norm(*inputs, epsilon=EPSILON, **scales, dtype=torch.float64)
    if found[0].dtype.itemsize > 1:
        assert found[0].dtype == dtype
        assert not rows or relative_error(found[0], exact) <= 2 * torch.finfo(dtype).eps
    if "output_scale" in fields:
        narrow = reference.TYPES[fields.get("quantized_type", "int8")]
        assert found[-1].dtype == narrow
        smoothed = exact * factors.double() if "output_factors" in fields else exact
        assert not rows or in_half_steps(found[-1], smoothed / float(np.float32(fields["output_scale"]))) <= 1.04


@needs_gpu
@pytest.mark.parametrize("fields", INT8_VARIANTS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float32, torch.float32), (torch.float16, torch.float16), (torch.bfloat16, torch.float32)],
)
def test_int8_results(host, dtype, weight_dtype, fields):
    torch.manual_seed(0)
    for width, rows, bias in itertools.product(WIDTHS[3:], (0, 1, 7, 300), (True, False)):
        check_int8(host, fields, rows, width, dtype, weight_dtype, bias)


@needs_gpu
@pytest.mark.parametrize("fields", INT8_VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_of_widths_with_kernels_of_their_own(host, dtype, fields):
    torch.manual_seed(0)
    for width, rows in itertools.product((256, 384, 512, 768, 1024), (3, 5000)):
        check_int8(host, fields, rows, width, dtype, dtype, bias=True)


@needs_gpu
def test_ties_go_to_the_even_number_and_the_rest_saturates(host):
    """gamma 0: y is beta, and beta / scale is known to the last bit."""
    beta = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e30, -1e30, -128.5, 3.49, 0.0], device="cuda")
    beta = torch.cat([beta * 0.25, torch.zeros(4, device="cuda")])
    x, gamma = torch.randn(3, 16, device="cuda"), torch.zeros(16, device="cuda")
    (found,) = run_guarded(create(host, output_scale=0.25), [x, x, gamma, beta])
    expected = [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 3, 0, 0, 0, 0, 0]
    assert found.tolist() == [expected] * 3


@needs_gpu
@given(
    rows=st.integers(1, 300),
    hidden=st.integers(1, 5000),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_random_shapes(host, rows, hidden, dtype, bias):
    inputs = make_inputs("normal", rows, hidden, dtype, dtype)[: 5 if bias else 4]
    exact = reference.skip_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
    (found,) = run_guarded(create(host), inputs)
    assert_as_good_as_pytorch(found, exact, pytorchs(*inputs), total_of(*inputs))


@needs_gpu
@pytest.mark.parametrize("constant_weights", [0, 1])
@pytest.mark.parametrize(("dtype", "weight_dtype"), FLOATING_TYPES)
def test_in_a_cuda_graph_each_waits_for_the_one_before(host, dtype, weight_dtype, constant_weights):
    """The kernel is launched while the one before it still runs; here that one writes what it reads."""
    plugin = create(host, constant_weights=constant_weights)
    for rows in (1, 100, 2048):
        x, skip, gamma, beta, bias = make_inputs("normal", rows, 768, dtype, weight_dtype)
        torch.cuda.synchronize()
        expected = x
        for _ in range(40):
            (expected,) = plugin.run_torch([expected, skip, gamma, beta, bias])
            torch.cuda.synchronize()
        buffers = [torch.empty_like(x) for _ in range(2)]

        def chain(x=x, weights=(skip, gamma, beta, bias), buffers=buffers):
            y = x
            for index in range(40):
                (y,) = plugin.run_torch([y, *weights], [buffers[index % 2]])
            return y

        assert_replays_equal(chain, expected, buffers)
