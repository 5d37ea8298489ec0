"""The LinearSkipLayerNorm plugin: what it accepts and refuses anywhere, what it computes on a GPU."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from plugin_runs_for_tests import assert_replays_equal, needs_gpu, run_guarded
from test_linear_plugin import NARROW_TYPES, e4m3_error, narrow_tensors, skip_without, steps_of
from torch.nn import functional

from plugins import build, reference
from plugins.plugin_host import PluginHost, PluginHostError, TensorSpec

TYPES = ("float16", "bfloat16")
EPSILON = 1e-12
IN, OUT = 3072, 768


@pytest.fixture(scope="module")
def host():
    folder = built_plugins()
    return PluginHost(folder / build.LIBRARY, folder / build.HOST)


def create(host, **fields):
    return host.create("LinearSkipLayerNorm", fields={"epsilon": EPSILON} | fields)


X, WEIGHT, SKIP, GAMMA, BETA = range(5)
IN_8_BITS = {"x_scale": 0.05}
BOTH = {"output_scale": 0.1, "outputs": "both"}
WITH_FACTORS = BOTH | {"output_factors": 1}


def specs(
    dtype="float16", leading=(2, 7), bias=True, skip=None, norm=None, factors=False, width_in=IN, width_out=OUT
):
    """The inputs; with x of 8 bits weight_scales among them."""
    skip = skip or (dtype if dtype in TYPES else "float16")
    column = TensorSpec((width_out,), norm or skip)
    tensors = [TensorSpec((*leading, width_in), dtype), TensorSpec((width_out, width_in), dtype)]
    tensors += [TensorSpec((*leading, width_out), skip), column, column]
    tensors += [TensorSpec((width_out,), "float32")] * ((dtype not in TYPES) + factors)
    return [*tensors, column] if bias else tensors


# --- Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field epsilon is missing"),
        ({"epsilon": 0.0}, "field epsilon is 0; expected a finite number greater than 0"),
        ({"epsilon": math.inf}, "field epsilon is inf; expected a finite number greater than 0"),
        ({"epsilon": 1}, "field epsilon has plugin field type 5, expected float32"),
        ({"epsilon": 1e-5, "x_scale": -0.5}, "field x_scale is -0.5; expected 1e-30 to 1e+30, or 0 for no scale"),
        ({"epsilon": 1e-5, "x_scale": math.nan}, "field x_scale is nan; expected 1e-30 to 1e+30"),
        ({"epsilon": 1e-5, "x_scale": 1}, "field x_scale has plugin field type 5, expected float32"),
        ({"epsilon": 1e-5, "output_scale": math.inf}, "field output_scale is inf; expected 1e-30 to 1e+30"),
        (
            {"epsilon": 1e-5, "output_scale": 0.5},
            'field output_scale is 0.5, but the field outputs is "y"; expected both: y, which',
        ),
        ({"epsilon": 1e-5, "outputs": "both"}, 'field outputs is "both"; give the scale of the output in 8 bits'),
        ({"epsilon": 1e-5, "outputs": "all"}, 'field outputs is "all"; expected y or both'),
        ({"epsilon": 1e-5, **BOTH, "quantized_type": "fp16"}, 'quantized_type is "fp16"; expected int8 or fp8'),
        ({"epsilon": 1e-5, "quantized_type": "fp8"}, 'quantized_type is "fp8", but there is no output_scale'),
        ({"epsilon": 1e-5, "output_factors": 1}, "field output_factors is 1, but there is no output_scale"),
        ({"epsilon": 1e-5, **BOTH, "output_factors": 2}, "field output_factors is 2; expected 0 or 1"),
        ({"epsilon": 1e-5, "constant_weights": 2}, "field constant_weights is 2; expected 0 or 1"),
        ({"epsilon": 1e-5, "constant_weight": 1}, "unknown field constant_weight"),
        ({"epsilon": 1e-5, "output_type": "fp16"}, "unknown field output_type"),
        ({"epsilon": 1e-5, "activation": "gelu"}, "unknown field activation"),
    ],
)
def test_wrong_fields_are_refused_by_name(host, fields, message):
    with pytest.raises(PluginHostError) as error:
        host.create("LinearSkipLayerNorm", fields=fields)
    assert message in str(error.value)


@pytest.mark.parametrize("constant_weights", [0, 1])
def test_serialized_fields_make_the_same_plugin(host, constant_weights):
    given_fields = {"x_scale": 0.5, "output_scale": 2.0, "outputs": "both", "quantized_type": "fp8"}
    given_fields |= {"output_factors": 1, "constant_weights": constant_weights}
    plugin = create(host, **given_fields)
    fields = plugin.serialized_fields()
    assert fields == {"epsilon": np.float32(EPSILON), **given_fields}
    assert host.create("LinearSkipLayerNorm", fields=fields).serialized_fields() == fields
    assert plugin.clone().serialized_fields() == fields


def test_what_is_not_given_has_its_default(host):
    assert create(host).serialized_fields() == {
        "epsilon": np.float32(EPSILON), "x_scale": 0, "output_scale": 0, "outputs": "y", "constant_weights": 0
    }  # fmt: skip


# --- Types, shapes, formats


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_accepted_types_of_16_bits(host, dtype, bias):
    for norm, fields in itertools.product((dtype, "float32"), ({}, BOTH, WITH_FACTORS)):
        inputs = specs(dtype, bias=bias, norm=norm, factors="output_factors" in fields)
        plugin = create(host, **fields)
        outputs = plugin.output_specs(inputs)
        assert outputs == [TensorSpec((2, 7, OUT), kind) for kind in (dtype, *(["int8"] if fields else []))]
        assert all(plugin.supports(position, inputs, outputs) for position in range(len(inputs) + len(outputs)))
        assert plugin.configure(inputs) == 14 * OUT * 2
        plugin.start()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("skip", TYPES)
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_accepted_types_of_8_bits(host, kind, skip, bias):
    narrow = NARROW_TYPES[kind]
    for norm, fields in itertools.product((skip, "float32"), ({}, BOTH, WITH_FACTORS)):
        inputs = specs(narrow, bias=bias, skip=skip, norm=norm, factors="output_factors" in fields)
        plugin = create(host, **IN_8_BITS, **fields, **({"quantized_type": kind} if fields else {}))
        outputs = plugin.output_specs(inputs)
        assert outputs == [TensorSpec((2, 7, OUT), dtype) for dtype in (skip, *([narrow] if fields else []))]
        assert all(plugin.supports(position, inputs, outputs) for position in range(len(inputs) + len(outputs)))
        plugin.start()


def replaced(inputs, place, dtype=None, shape=None):
    """The inputs with another type or shape of one of them."""
    old = inputs[place]
    changed = TensorSpec(old.shape if shape is None else shape, dtype or old.dtype)
    return [changed if tensor is old and index == place else tensor for index, tensor in enumerate(inputs)]


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        ({}, specs("float32", skip="float32")[:5], "x is fp32; expected fp16 or bf16, or int8 or fp8 with x_scale;"),
        ({}, replaced(specs(), X, "int8"), "x is int8; give its scale in the field x_scale"),
        ({}, replaced(specs(), WEIGHT, "bfloat16"), "weight is bf16; expected the type of x, fp16"),
        ({}, replaced(specs(), SKIP, "bfloat16"), "skip is bf16; expected the type of x, fp16"),
        ({}, replaced(specs(), SKIP, "float32"), "skip is fp32; expected the type of x, fp16"),
        ({}, replaced(specs(), GAMMA, "float32"), "gamma is fp32, beta is fp16, bias is fp16; expected all of them"),
        (
            {},
            specs(norm="bfloat16", bias=False),
            "gamma is bf16, beta is bf16; expected all of them fp16 or all fp32",
        ),
        (IN_8_BITS, specs("int8")[:5] + specs()[:1], "weight_scales is fp16; expected fp32, as x is int8"),
        (IN_8_BITS, replaced(specs("int8"), X, "float16"), "x is fp16, but the field x_scale is 0.05; expected int8"),
        (IN_8_BITS, replaced(specs("int8"), WEIGHT, "float8_e4m3fn"), "weight is fp8; expected the type of x, int8"),
        (IN_8_BITS, replaced(specs("int8"), SKIP, "float32"), "skip is fp32; expected fp16 or bf16"),
        (IN_8_BITS, replaced(specs("int8"), SKIP, "int8"), "skip is int8; expected fp16 or bf16"),
        (IN_8_BITS, replaced(specs("int8"), 6, "float32"), "bias is fp32; expected all of them fp16 or all fp32"),
        (WITH_FACTORS, replaced(specs(factors=True), 5, "float16"), "output_factors is fp16; expected fp32"),
        (
            IN_8_BITS | WITH_FACTORS,
            replaced(specs("int8", factors=True), 6, "float16"),
            "output_factors is fp16; expected fp32",
        ),
    ],
)
def test_wrong_types_are_refused_by_name(host, fields, inputs, message):
    with pytest.raises(PluginHostError) as error:
        create(host, **fields).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (X, (), "x is a scalar; expected [..., K]"),
        (WEIGHT, (OUT, IN + 1), "weight has the shape [768, 3073] for x of [2, 7, 3072]; expected [N, K]"),
        (WEIGHT, (IN,), "weight has the shape [3072] for x of [2, 7, 3072]; expected [N, K]"),
        (SKIP, (2, 7, IN), "skip has the shape [2, 7, 3072] for x of [2, 7, 3072] and a weight of [768, 3072]; exp"),
        (SKIP, (2, 6, OUT), "expected [2, 7, 768]"),
        (SKIP, (14, OUT), "skip has the shape [14, 768] for x of [2, 7, 3072]"),
        (GAMMA, (OUT + 1,), "gamma has the shape [769] for a weight of [768, 3072]; expected [N] where"),
        (BETA, (1, OUT), "beta has the shape [1, 768] for a weight of [768, 3072]; expected [N]"),
        (5, (OUT - 1,), "weight_scales has the shape [767] for a weight of [768, 3072]; expected [N]"),
        (6, (), "output_factors has the shape [] for a weight of [768, 3072]; expected [N]"),
        (7, (1,), "bias has the shape [1] for a weight of [768, 3072]; expected [N]"),
    ],
)
def test_wrong_shapes_are_refused_by_name(host, place, shape, message):
    inputs = replaced(specs("int8", factors=True), place, shape=shape)
    with pytest.raises(PluginHostError) as error:
        create(host, **IN_8_BITS, **WITH_FACTORS).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (specs(leading=(2**20, 2**20)), "that is more than one kernel can be launched for"),
        (specs(width_out=0), "weight has the shape [0, 3072]; expected 1 to 1073741824 rows and columns"),
        (specs(width_in=0), "weight has the shape [768, 0]; expected 1 to 1073741824 rows and columns"),
    ],
)
def test_sizes_without_a_kernel_are_refused(host, inputs, message):
    with pytest.raises(PluginHostError) as error:
        create(host).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        (
            {},
            specs()[:4],
            "number of inputs: 4, expected 5, or 6 with a bias; they are x, weight, skip, gamma, beta, b",
        ),
        ({}, specs() + specs()[-1:], "number of inputs: 7, expected 5, or 6 with a bias"),
        (
            IN_8_BITS,
            specs()[:5],
            "number of inputs: 5, expected 6, or 7 with a bias; they are x, weight, skip, gamma,",
        ),
        (
            WITH_FACTORS,
            specs()[:5],
            "expected 6, or 7 with a bias; they are x, weight, skip, gamma, beta, output_fac",
        ),
        (IN_8_BITS | WITH_FACTORS, specs(), "number of inputs: 6, expected 7, or 8 with a bias"),
    ],
)
def test_a_wrong_number_of_inputs_is_refused(host, fields, inputs, message):
    with pytest.raises(PluginHostError) as error:
        create(host, **fields).output_specs(inputs)
    assert message in str(error.value)


def test_unknown_dimensions_pass_through(host):
    (output,) = create(host).output_specs(specs(leading=(-1, -1)))
    assert output.shape == (-1, -1, OUT)


@pytest.mark.parametrize("position", range(10))
def test_only_linear_format_is_supported(host, position):
    plugin = create(host, **IN_8_BITS, **WITH_FACTORS)
    tensors = specs("int8", factors=True)
    tensors += plugin.output_specs(tensors)
    assert plugin.supports(position, tensors[:8], tensors[8:])
    tensors[position] = TensorSpec(tensors[position].shape, tensors[position].dtype, format=2)  # kHWC8
    assert not plugin.supports(position, tensors[:8], tensors[8:])


@pytest.mark.parametrize(
    ("position", "dtypes"),
    [
        (X, ("float16", "float32")),
        (WEIGHT, ("float16", "float8_e4m3fn")),
        (SKIP, ("float32", "int8")),
        (GAMMA, ("bfloat16", "int8")),
        (BETA, ("float32",)),
        (5, ("float16",)),
        (6, ("float16",)),
        (7, ("float32",)),
        (8, ("bfloat16", "float32")),
        (9, ("float8_e4m3fn", "float16")),
    ],
)
def test_other_types_are_not_supported(host, position, dtypes):
    plugin = create(host, **IN_8_BITS, **WITH_FACTORS)
    for dtype in dtypes:
        tensors = specs("int8", factors=True)
        tensors += plugin.output_specs(tensors)
        tensors[position] = TensorSpec(tensors[position].shape, dtype)
        assert not plugin.supports(position, tensors[:8], tensors[8:])
    for place, dtype in ((X, "int8"), (WEIGHT, "bfloat16"), (SKIP, "bfloat16")):
        tensors = specs()
        tensors += create(host).output_specs(tensors)
        tensors[place] = TensorSpec(tensors[place].shape, dtype)
        assert not create(host).supports(place, tensors[:6], tensors[6:])


@given(
    leading=st.lists(st.integers(0, 30), max_size=6),
    width_in=st.integers(1, 5000),
    width_out=st.integers(1, 5000),
    dtype=st.sampled_from(TYPES),
    bias=st.booleans(),
    both=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_any_shape_is_prepared(host, leading, width_in, width_out, dtype, bias, both):
    plugin = create(host, **(BOTH if both else {}))
    inputs = specs(dtype, leading, bias, width_in=width_in, width_out=width_out)
    outputs, workspace = plugin.prepare(inputs)
    shape = (*leading, width_out)
    assert outputs == [TensorSpec(shape, dtype), *([TensorSpec(shape, "int8")] if both else [])]
    assert workspace == 2 * math.prod(shape)  # x weightᵀ


# --- CUDA errors

SOMEWHERE = 4096  # an address; nothing may be read there


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, where a launch must fail")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width_in", [768, 33])
def test_cuda_error_is_returned_and_logged(host, width_in, dtype):
    with pytest.raises(PluginHostError, match="LinearSkipLayerNorm plugin, enqueue: CUDA error"):
        create(host).enqueue(specs(dtype, width_in=width_in), [SOMEWHERE] * 6, [SOMEWHERE], SOMEWHERE)


def test_a_missing_workspace_is_refused(host):
    with pytest.raises(PluginHostError, match="enqueue: there is no workspace; expected as many bytes as getWork"):
        create(host).enqueue(specs(), [SOMEWHERE] * 6, [SOMEWHERE])


def test_no_rows_launch_nothing(host):  # without a GPU any launch would be an error
    create(host).enqueue(specs(leading=(0, 7)), [0] * 6, [0])


# --- The reference


def test_reference_overflows_where_two_kernels_do():
    """Most GPUs round x weightᵀ to fp16 before the residual is added; 8e4 there is infinite, 8e4 − 4e4 is not."""
    x, weight, skip = (
        torch.full((1, 2), 200.0).half(),
        torch.full((4, 2), 200.0).half(),
        torch.full((1, 4), -4e4).half(),
    )
    weight[0] = 0
    given_tensors = (x, weight, skip, torch.ones(4), torch.zeros(4))
    found = reference.REFERENCES["LinearSkipLayerNorm"](*given_tensors, epsilon=EPSILON)
    assert found.isnan().any()
    wide = [tensor.float() for tensor in given_tensors]
    expected = functional.layer_norm(wide[0] @ wide[1].t() + wide[2], (4,), eps=EPSILON)
    torch.testing.assert_close(reference.linear_skip_layer_norm(*given_tensors, epsilon=EPSILON), expected)
    in_fp32 = reference.compute_in_fp32("LinearSkipLayerNorm", wide, {"epsilon": EPSILON})
    torch.testing.assert_close(in_fp32, expected)


@given(
    rows=st.integers(1, 20),
    width_in=st.integers(1, 500),
    width_out=st.integers(2, 60),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=100)
def test_reference_is_pytorchs_linear_and_layer_norm(rows, width_in, width_out, dtype, bias, seed):
    inputs = make_inputs("normal", rows, width_in, width_out, dtype, dtype, "cpu", seed)[: 6 if bias else 5]
    x, weight, skip, gamma, beta, *rest = (tensor.double() for tensor in inputs)
    total = functional.linear(x, weight, *rest) + skip
    expected = functional.layer_norm(total, (width_out,), gamma, beta, EPSILON)
    exact = reference.linear_skip_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-9)
    found = reference.REFERENCES["LinearSkipLayerNorm"](*inputs, epsilon=EPSILON, constant_weights=1)
    assert found.dtype == dtype
    assert_within(found, *exact_and_allowed(inputs))
    unrounded = reference.linear_skip_layer_norm(*inputs, epsilon=EPSILON)
    assert_within(unrounded.to(dtype), *exact_and_allowed(inputs, rounds_product=False))


def narrow_inputs(kind, rows, width_in, width_out, skip_type, norm_type, device, seed=0):
    """x, weight, skip, gamma, beta, weight_scales, bias for x of 8 bits."""
    x, weight, scales, _ = narrow_tensors(kind, rows, width_in, width_out, device, seed)
    _, _, skip, gamma, beta, bias = make_inputs("normal", rows, 1, width_out, skip_type, norm_type, device, seed)
    return [x, weight, skip, gamma, beta, scales, bias]


NARROW_X_SCALE = 0.5


@given(
    rows=st.integers(1, 20),
    width_in=st.integers(1, 1000),
    width_out=st.integers(2, 60),
    kind=st.sampled_from(sorted(NARROW_TYPES)),
    quantized=st.sampled_from(["int8", "fp8"]),
    skip_type=st.sampled_from([torch.float16, torch.bfloat16]),
    bias=st.booleans(),
    factors=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=100)
def test_reference_in_eight_bits(rows, width_in, width_out, kind, quantized, skip_type, bias, factors, seed):
    """Both outputs against float64; in fp32 no scale counts."""
    inputs = narrow_inputs(kind, rows, width_in, width_out, skip_type, torch.float32, "cpu", seed)[: 7 if bias else 6]
    x, weight, skip, gamma, beta, scales, *rest = (tensor.double() for tensor in inputs)
    product = x @ weight.t() * (scales * float(np.float32(NARROW_X_SCALE)))
    total = product + skip + (rest[0] if bias else 0.0)
    expected = functional.layer_norm(total, (width_out,), gamma, beta, EPSILON)
    exact, allowed = exact_and_allowed(inputs, NARROW_X_SCALE, on_tensor_cores=False)
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-9)
    multipliers = torch.rand(width_out, generator=torch.Generator().manual_seed(seed)) * 4 + 0.1
    fields = {"epsilon": EPSILON, "x_scale": NARROW_X_SCALE, "output_scale": 0.05, "outputs": "both"}
    fields |= {"quantized_type": quantized, "output_factors": int(factors)}
    given_inputs = [*inputs[:6], multipliers, *inputs[6:]] if factors else inputs
    y, narrow = reference.REFERENCES["LinearSkipLayerNorm"](*given_inputs, **fields)
    assert (y.dtype, narrow.dtype) == (skip_type, reference.TYPES[quantized])
    assert_within(y, exact, allowed)
    assert_quantized_within(narrow, exact, allowed, skip_type, 0.05, multipliers if factors else None)
    wide = [tensor.float() for tensor in given_inputs]
    plain = reference.compute_in_fp32("LinearSkipLayerNorm", wide, fields)
    x_in_fp32 = reference.linear_skip_layer_norm(*wide[:5], *(wide[-1:] if bias else []), epsilon=EPSILON)
    torch.testing.assert_close(plain[0], x_in_fp32, rtol=0, atol=0)  # no scale counts
    torch.testing.assert_close(plain[1], x_in_fp32 * multipliers if factors else x_in_fp32, rtol=0, atol=0)


# --- On a GPU. One kernel computes wide results of many rows on Hopper, two compute all others; both are tried.

WIDTHS = (384, 512, 768, 1024)
SIZES = [(rows, *widths) for rows in (1, 7, 131, 1000, 5000) for widths in ((64, 384), (3072, 768))]
SIZES += [(rows, width, width) for rows in (129, 4096, 4999) for width in WIDTHS]
SIZES += [(0, 768, 768), (3, 4096, 1024), (2048, 4096, 1024)]
ODD_SIZES = [(1, 1, 1), (5, 33, 5), (64, 7, 64), (131, 100, 1001), (300, 769, 8), (300, 768, 769), (2000, 72, 136)]
CONTENTS = ("normal", "outliers", "constant rows", "large mean")
FLOATING_TYPES = (  # of x, weight and skip, and of gamma, beta and bias
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
)


def make_inputs(content, rows, width_in, width_out, dtype, norm_type, device="cuda", seed=0):
    """x, weight, skip, gamma, beta, bias: hard in one way each."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    x, weight, skip = (
        normal(rows, width_in),
        normal(width_out, width_in) / math.sqrt(width_in),
        normal(rows, width_out),
    )
    gamma, beta, bias = (normal(width_out) for _ in range(3))
    if content == "outliers":  # what a few features of trained BERTs do
        skip[:, :: max(width_out // 3, 1)] *= 100.0
        x[:, :: max(width_in // 3, 1)] *= 10.0
    elif content == "constant rows":  # variance 0: epsilon alone decides, and y is beta
        x, skip, bias = torch.zeros_like(x), skip[:, :1].expand(rows, width_out), torch.zeros_like(bias)
    elif content == "large mean":  # E[x²] − mean² has no digit left here
        skip = 1e3 + skip
    matrices = (tensor.to(dtype).contiguous() for tensor in (x, weight, skip))
    return [*matrices, *(tensor.to(norm_type) for tensor in (gamma, beta, bias))]


def exact_and_allowed(inputs, x_scale=0.0, rounds_product=True, on_tensor_cores=True):
    """y in float64 (rows, out), and how far each element may be off.

    That is the rounding of the result; and for the products what fp32 sums are off by, in fp8 what those of tensor
    cores are, and one rounding to the type of skip, where two kernels compute y. The errors of a row of sums, divided
    by its standard deviation, are those of the normalised row; mean and deviation are off by no more than their mean
    square.
    """
    others, scales, _ = reference.split_inputs("LinearSkipLayerNorm", inputs, x_scale, 0)
    x, weight, skip, gamma, _, *bias = (tensor.double() for tensor in others)
    eps = torch.finfo(others[SKIP].dtype).eps
    scale = 1.0 if scales is None else scales.double() * float(np.float32(x_scale))
    product, terms = x @ weight.t() * scale, (x.square() @ weight.square().t()).sqrt() * scale
    exact = reference.linear_skip_layer_norm(
        *others, epsilon=EPSILON, x_scale=x_scale, weight_scales=scales, dtype=torch.float64
    )
    total = product + skip + (bias[0] if bias else 0.0)
    sums = {torch.int8: 1e-6, torch.float8_e4m3fn: e4m3_error(x.shape[1]) if on_tensor_cores else 3e-5}
    error = sums.get(others[X].dtype, 3e-5) * terms
    error = error + 3e-7 * total.abs() + (0.51 * eps * product.abs() if rounds_product else 0.0)
    deviation = (total.var(-1, correction=0, keepdim=True) + EPSILON).sqrt()
    normal = (total - total.mean(-1, keepdim=True)) / deviation
    common = error.square().mean(-1, keepdim=True).sqrt() * (1 + normal.abs())
    return exact, 0.55 * eps * exact.abs() + gamma.abs() * ((error + common) / deviation + 1e-5) + 1e-5


def assert_within(found, exact, allowed):
    """Fails for NaN too."""
    error = (found.double() - exact).abs()
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times what is allowed"


def assert_quantized_within(found, exact, allowed, y_type, scale, factors):
    """y · factors in 8 bits is at most one step from where y may be, before its rounding to its type."""
    allowed = allowed - 0.55 * torch.finfo(y_type).eps * exact.abs()
    exact, allowed = (one if factors is None else one * factors.double() for one in (exact, allowed))
    low, high = (steps_of(reference.quantize(exact + sign * allowed, scale, found.dtype)) for sign in (-1, 1))
    steps = steps_of(found)
    assert ((steps >= low - 1) & (steps <= high + 1)).all()


def check(host, inputs, shift=0, factors=None, **fields):
    """One run against float64: y, and where there is one the output in 8 bits, up to one step of its type."""
    x_scale = NARROW_X_SCALE if inputs[X].dtype.itemsize == 1 else 0.0
    fields = {"x_scale": x_scale, "constant_weights": 1, "output_factors": int(factors is not None), **fields}
    place = 6 if x_scale else 5
    given_inputs = inputs if factors is None else [*inputs[:place], factors, *inputs[place:]]
    torch.cuda.synchronize()  # from here on the weights are constant
    y, *narrow = run_guarded(create(host, **fields), given_inputs, shift)
    exact, allowed = exact_and_allowed(inputs, x_scale)
    assert y.dtype == inputs[SKIP].dtype
    assert_within(y, exact, allowed)
    if "output_scale" in fields:
        (quantized,) = narrow
        assert quantized.dtype == reference.TYPES[fields["quantized_type"]]
        assert_quantized_within(quantized, exact, allowed, y.dtype, fields["output_scale"], factors)


@needs_gpu
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("dtype", "norm_type"), FLOATING_TYPES)
def test_floating_results(host, dtype, norm_type, content):
    for size, bias in itertools.product((*SIZES, *ODD_SIZES), (True, False)):
        check(host, make_inputs(content, *size, dtype, norm_type)[: 6 if bias else 5])


@needs_gpu
@pytest.mark.parametrize("quantized_type", ["int8", "fp8"])
@pytest.mark.parametrize(("dtype", "norm_type"), FLOATING_TYPES)
def test_both_outputs(host, dtype, norm_type, quantized_type):
    fields = {"output_scale": 0.04, "outputs": "both", "quantized_type": quantized_type}
    for size in (*SIZES, *ODD_SIZES):
        inputs = make_inputs("normal", *size, dtype, norm_type)
        check(host, inputs, **fields)
        check(host, inputs, **fields, factors=torch.rand(size[-1], device="cuda") * 2 + 0.05)


@needs_gpu
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("skip_type", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_results_in_eight_bits(host, kind, skip_type, both):
    skip_without(kind)
    fields = {"output_scale": 0.04, "outputs": "both", "quantized_type": kind} if both else {}
    for size, bias in itertools.product((*SIZES, *ODD_SIZES), (True, False)):
        inputs = narrow_inputs(kind, *size, skip_type, torch.float32, "cuda")[: 7 if bias else 6]
        check(host, inputs, **fields)
        if both:
            check(host, inputs, **fields, factors=torch.rand(size[-1], device="cuda") * 2 + 0.05)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_addresses_that_vectors_cannot_be_read_from(host, dtype):
    check(host, make_inputs("normal", 1000, 768, 768, dtype, dtype), shift=dtype.itemsize)


@needs_gpu
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_in_eight_bits_addresses_that_vectors_cannot_be_read_from(host, kind):
    skip_without(kind)
    check(host, narrow_inputs(kind, 1000, 768, 768, torch.float16, torch.float32, "cuda"), shift=4)


@needs_gpu
@given(
    rows=st.integers(1, 5000),
    width_in=st.integers(1, 2000),
    width_out=st.one_of(st.sampled_from(WIDTHS), st.integers(1, 2000)),
    multiple=st.sampled_from([1, 8, 128]),
    types=st.sampled_from(FLOATING_TYPES),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=100)
def test_random_shapes(host, rows, width_in, width_out, multiple, types, bias, seed):
    width_in = multiple * math.ceil(width_in / multiple)
    check(host, make_inputs("normal", rows, width_in, width_out, *types, seed=seed)[: 6 if bias else 5])


@needs_gpu
@given(
    rows=st.integers(1, 5000),
    width_in=st.integers(1, 2000),
    width_out=st.one_of(st.sampled_from(WIDTHS), st.integers(1, 2000)),
    multiple=st.sampled_from([1, 16, 128]),
    kind=st.sampled_from(sorted(NARROW_TYPES)),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=100)
def test_random_shapes_in_eight_bits(host, rows, width_in, width_out, multiple, kind, bias, seed):
    skip_without(kind)
    width_in = multiple * math.ceil(width_in / multiple)
    inputs = narrow_inputs(kind, rows, width_in, width_out, torch.float16, torch.float32, "cuda", seed)
    check(host, inputs[: 7 if bias else 6], output_scale=0.04, outputs="both", quantized_type=kind)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_infinity_and_nan_stay_in_their_row(host, dtype):
    for width in (768, 1024, 136):
        inputs = make_inputs("normal", 1000, 768, width, dtype, torch.float32)
        inputs[X][3, 5], inputs[SKIP][130, 100] = math.inf, math.nan
        (found,) = run_guarded(create(host), inputs)
        broken = torch.tensor([3, 130], device="cuda")
        others = torch.ones(1000, dtype=torch.bool, device="cuda").index_fill(0, broken, False)
        kept = [inputs[X][others], inputs[WEIGHT], inputs[SKIP][others], *inputs[GAMMA:]]
        assert_within(found[others], *exact_and_allowed(kept))
        assert found[broken].isnan().all()


@needs_gpu
def test_the_same_bits_every_time_and_with_constant_weights(host):
    for rows, width in itertools.product((1, 128, 1000, 5000), (136, *WIDTHS)):
        inputs = make_inputs("normal", rows, 768, width, torch.float16, torch.float16)
        torch.cuda.synchronize()  # from here on the weights are constant
        (expected,) = create(host).run_torch(inputs)
        for constant_weights in (0, 1):
            plugin = create(host, constant_weights=constant_weights)
            for _ in range(10):
                (found,) = plugin.run_torch(inputs)
                assert torch.equal(found, expected)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("constant_weights", [0, 1])
def test_in_a_cuda_graph_each_waits_for_the_one_before(host, dtype, constant_weights):
    """The kernels are launched while those before them still run; here these write what they read."""
    plugin = create(host, constant_weights=constant_weights)
    for rows, width in itertools.product((1, 100, 2048, 5000), (768, 1024)):
        x, *weights = make_inputs("normal", rows, width, width, dtype, torch.float32)
        torch.cuda.synchronize()
        expected = x
        for _ in range(20):
            (expected,) = plugin.run_torch([expected, *weights])
            torch.cuda.synchronize()
        buffers = [torch.empty_like(x) for _ in range(2)]

        def chain(x=x, weights=weights, buffers=buffers):
            y = x
            for index in range(20):
                (y,) = plugin.run_torch([y, *weights], [buffers[index % 2]])
            return y

        assert_replays_equal(chain, expected, buffers)


@needs_gpu
@pytest.mark.parametrize("rows", [128, 5000])
def test_weights_that_the_kernel_before_writes(host, rows):
    plugin = create(host)
    x, weight, skip, gamma, beta, bias = make_inputs("normal", rows, 768, 768, torch.float16, torch.float16)
    ones, nothing, identity = torch.ones_like(gamma), torch.zeros_like(gamma), torch.eye(768).half().cuda()
    before = [weight, identity, torch.zeros_like(weight), ones, nothing]  # rows of the weight, normalised
    (made,) = plugin.run_torch(before)
    (expected,) = plugin.run_torch([x, made, skip, made[0], beta, bias])
    torch.cuda.synchronize()
    buffer = torch.empty_like(weight)
    for _ in range(20):
        buffer.fill_(float("nan"))
        plugin.run_torch(before, [buffer])
        (found,) = plugin.run_torch([x, buffer, skip, buffer[0], beta, bias])
        assert torch.equal(found, expected)
