"""The Linear plugin: what it accepts and refuses anywhere, what it computes on a GPU."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from plugin_runs_for_tests import needs_gpu, run_guarded

from plugins import build, reference
from plugins.plugin_host import PluginHost, PluginHostError, TensorSpec

TYPES = ("float16", "bfloat16")
GELU_SOURCE = Path(__file__).parent.parent / "plugins" / "linear" / "linear_gelu.cuh"


@pytest.fixture(scope="module")
def host():
    folder = built_plugins()
    return PluginHost(folder / build.LIBRARY, folder / build.HOST)


def create(host, **fields):
    return host.create("Linear", fields=fields)


def specs(dtype="float16", leading=(2, 7), width_in=768, width_out=3072, bias=True):
    tensors = [TensorSpec((*leading, width_in), dtype), TensorSpec((width_out, width_in), dtype)]
    return [*tensors, TensorSpec((width_out,), dtype)] if bias else tensors


# --- Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "relu"}, 'field activation is "relu"; expected none or gelu'),
        ({"activation": "GELU"}, 'field activation is "GELU"; expected none or gelu'),
        ({"activation": ""}, "field activation is empty"),
        ({"activation": 1}, "field activation has plugin field type 5, expected char (a string)"),
        ({"gelu": 1}, "unknown field gelu"),
        ({"constant_weight": 2}, "field constant_weight is 2; expected 0 or 1"),
        ({"constant_weight": -1}, "field constant_weight is -1; expected 0 or 1"),
        ({"constant_weight": "yes"}, "field constant_weight has plugin field type"),
    ],
)
def test_wrong_fields_are_refused_by_name(host, fields, message):
    with pytest.raises(PluginHostError) as error:
        create(host, **fields)
    assert message in str(error.value)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("constant_weight", [0, 1])
def test_serialized_fields_make_the_same_plugin(host, activation, constant_weight):
    plugin = create(host, activation=activation, constant_weight=constant_weight)
    fields = plugin.serialized_fields()
    assert fields == {"activation": activation, "constant_weight": constant_weight}
    assert create(host, **fields).serialized_fields() == fields
    assert plugin.clone().serialized_fields() == fields


def test_without_fields_there_is_no_activation_and_the_weight_may_change(host):
    assert create(host).serialized_fields() == {"activation": "none", "constant_weight": 0}


# --- Types, shapes, formats


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_accepted_types(host, dtype, bias):
    inputs = specs(dtype, bias=bias)
    plugin = create(host)
    assert plugin.output_specs(inputs) == [TensorSpec((2, 7, 3072), dtype)]
    assert plugin.configure(inputs) == 0
    plugin.start()


@pytest.mark.parametrize(
    ("changed", "dtype", "message"),
    [
        (
            0,
            "float32",
            "x is fp32; expected fp16 or bf16; for other types take TensorRT's own layers, MatrixMultiply",
        ),
        (0, "int8", "x is int8; expected fp16 or bf16"),
        (1, "bfloat16", "weight is bf16; expected the type of x, fp16"),
        (1, "int8", "weight is int8; expected the type of x, fp16"),
        (2, "float32", "bias is fp32; expected the type of x, fp16"),
    ],
)
def test_wrong_types_are_refused_by_name(host, changed, dtype, message):
    inputs = specs()
    inputs[changed] = TensorSpec(inputs[changed].shape, dtype)
    with pytest.raises(PluginHostError) as error:
        create(host).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changed", "shape", "message"),
    [
        (
            0,
            (2, 7, 767),
            "weight has the shape [3072, 768] for x of [2, 7, 767]; expected [N, K] where x is [..., K]",
        ),
        (0, (), "x is a scalar; expected [..., K]"),
        (1, (768, 3072), "weight has the shape [768, 3072] for x of [2, 7, 768]; expected [N, K]"),
        (1, (768,), "weight has the shape [768] for x of [2, 7, 768]; expected [N, K]"),
        (1, (1, 3072, 768), "weight has the shape [1, 3072, 768] for x of"),
        (1, (0, 768), "weight has the shape [0, 768]; expected 1 to 1073741824 rows and columns"),
        (2, (768,), "bias has the shape [768] for a weight of [3072, 768]; expected [N] where the weight is [N, K]"),
        (2, (1, 3072), "bias has the shape [1, 3072] for a weight of [3072, 768]; expected [N]"),
        (
            0,
            (1 << 31, 64, 768),
            "x has the shape [2147483648, 64, 768]: with 3072 rows of the weight that is more",
        ),
    ],
)
def test_wrong_shapes_are_refused_by_name(host, changed, shape, message):
    inputs = specs()
    inputs[changed] = TensorSpec(shape, "float16")
    with pytest.raises(PluginHostError) as error:
        create(host).output_specs(inputs)
    assert message in str(error.value)


def test_no_columns_at_all_are_refused(host):
    with pytest.raises(PluginHostError, match=r"weight has the shape \[8, 0\]; expected 1 to"):
        create(host).output_specs(specs(width_in=0, width_out=8))


@pytest.mark.parametrize("count", [1, 4])
def test_wrong_number_of_inputs_is_refused(host, count):
    with pytest.raises(PluginHostError, match=f"number of inputs: {count}, expected 2, or 3 with a bias"):
        create(host).output_specs((specs() + specs()[-1:])[:count])


def test_unknown_dimensions_pass_through(host):
    (output,) = create(host).output_specs(specs(leading=(-1, -1)))
    assert output.shape == (-1, -1, 3072)


@pytest.mark.parametrize("position", range(4))
def test_only_linear_format_is_supported(host, position):
    plugin = create(host)
    tensors = [*specs(), TensorSpec((2, 7, 3072), "float16")]
    assert plugin.supports(position, tensors[:3], tensors[3:])
    tensors[position] = TensorSpec(tensors[position].shape, tensors[position].dtype, format=2)  # kHWC8
    assert not plugin.supports(position, tensors[:3], tensors[3:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int32"])
@pytest.mark.parametrize("position", range(4))
def test_other_types_are_not_supported(host, position, dtype):
    tensors = [*specs(), TensorSpec((2, 7, 3072), "float16")]
    tensors[position] = TensorSpec(tensors[position].shape, dtype)
    may_be = position == 0 and dtype == "bfloat16"  # then the others must be bf16 as well
    assert create(host).supports(position, tensors[:3], tensors[3:]) is may_be


@given(
    leading=st.lists(st.integers(0, 30), max_size=6),
    width_in=st.integers(1, 5000),
    width_out=st.integers(1, 5000),
    dtype=st.sampled_from(TYPES),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_any_shape_is_prepared(host, leading, width_in, width_out, dtype, bias):
    (y,), workspace = create(host, activation="gelu").prepare(specs(dtype, leading, width_in, width_out, bias))
    assert y == TensorSpec((*leading, width_out), dtype)
    assert workspace == 0


# --- CUDA errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, where a launch must fail")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width_in", [768, 33])
def test_cuda_error_is_returned_and_logged(host, width_in, dtype):
    with pytest.raises(PluginHostError, match="Linear plugin, enqueue: CUDA error"):
        create(host).enqueue(specs(dtype, width_in=width_in), [0] * 3, [0])


def test_no_rows_launch_nothing(host):  # without a GPU any launch would be an error
    create(host).enqueue(specs(leading=(0, 7)), [0] * 3, [0])


# --- The reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_reference_is_pytorchs_linear(dtype, activation, bias):
    x, weight, b = torch.randn(2, 5, 33).to(dtype), torch.randn(17, 33).to(dtype), torch.randn(17).to(dtype)
    expected = x.double() @ weight.double().t() + (b.double() if bias else 0.0)
    if activation == "gelu":
        expected = expected * 0.5 * (1 + torch.erf(expected / math.sqrt(2)))
    inputs = (x, weight, b) if bias else (x, weight)
    ours = reference.REFERENCES["Linear"](*inputs, activation=activation)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    exact = reference.linear(*inputs, activation=activation, dtype=torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)


# --- GELU, as the kernels compute it: with the coefficients of their source, in fp32


def kernels_gelu(x: np.ndarray) -> np.ndarray:
    """max(x, 0) − a · 2^q(a), a = min(|x|, limit), every step rounded to fp32: fp32 (n,) -> fp32 (n,)."""
    source = GELU_SOURCE.read_text(encoding="utf-8")
    number = r"(-?\d[\d.e+-]*)F"
    (limit,) = re.findall(rf"kLARGEST = {number}", source)
    (leading,) = re.findall(rf"float q = {number}", source)
    coefficients = [leading, *re.findall(rf"q = fmaf\(q, a, {number}\)", source)]
    assert len(coefficients) == 7
    a = np.minimum(np.abs(x), np.float32(limit)).astype(np.float64)
    q = np.full_like(a, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        q = (q * a + np.float32(coefficient)).astype(np.float32).astype(np.float64)  # as fmaf: one rounding
    power = np.where(q < -126, 0.0, np.exp2(q).astype(np.float32).astype(np.float64))  # ex2.approx.ftz
    return (np.maximum(x, 0) - a * power).astype(np.float32)


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])


def test_phi_of_the_kernels_is_precise():
    x = np.linspace(-4.2, -1e-3, 40_001, dtype=np.float32)
    exact = exact_gelu(x)
    assert np.abs(kernels_gelu(x) / exact - 1).max() <= 8e-6
    beyond = np.linspace(-20, -4.2, 40_001, dtype=np.float32)
    assert np.abs(kernels_gelu(beyond) - exact_gelu(beyond)).max() <= 4.5e-10


def test_gelu_of_every_fp16_number_is_rounded_right_but_for_a_few():
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = numbers[np.isfinite(numbers)].astype(np.float32)
    found, exact = kernels_gelu(x).astype(np.float16), exact_gelu(x).astype(np.float16)
    steps = np.abs(found.view(np.int16).astype(int) - exact.view(np.int16).astype(int))
    steps[(found == 0) & (exact == 0)] = 0  # of either sign
    assert steps.max() <= 1
    assert (steps > 0).mean() <= 0.004


def test_gelu_far_out():
    x = np.array([3e38, -3e38, 1e4, -1e4, 0.0], np.float32)
    np.testing.assert_allclose(kernels_gelu(x), np.maximum(x, 0), rtol=0, atol=1e-30)


# --- On a GPU

WIDTHS = ((8, 8), (64, 72), (312, 1200), (320, 1200), (768, 2304), (768, 3072), (3072, 768))
ODD_WIDTHS = ((1, 1), (33, 5), (7, 64), (100, 1001), (769, 8))
CONTENTS = ("normal", "outliers", "one large row", "cancelling")


def make_inputs(content, rows, width_in, width_out, dtype):
    """x, weight, bias: hard in one way each."""
    x = torch.randn(rows, width_in, device="cuda")
    weight = torch.randn(width_out, width_in, device="cuda") / math.sqrt(width_in)
    bias = torch.randn(width_out, device="cuda")
    if content == "outliers":  # what a few features of trained BERTs do
        x[:, :: max(width_in // 3, 1)] *= 100.0
    elif content == "one large row":  # of the weight: its results are near fp16's end, its neighbours' are not
        weight[width_out // 2] *= 1e3
    elif content == "cancelling":  # sums that come to little: only fp32 sums keep their digits
        half = width_in // 2
        x[:, half : 2 * half] = x[:, :half]
        weight[:, half : 2 * half] = -weight[:, :half]
    return [tensor.to(dtype) for tensor in (x, weight, bias)]


def assert_close_to_exact(found, inputs, activation):
    """Every element: little more than half a step of its type, and what fp32 sums of so many products are off by."""
    exact = reference.linear(*inputs, activation=activation, dtype=torch.float64)
    info = torch.finfo(found.dtype)
    x, weight = (tensor.double() for tensor in inputs[:2])
    terms = (x.square() @ weight.square().t()).sqrt()  # (rows, out): how large a sum of theirs is by chance
    allowed = 0.55 * info.eps * exact.abs() + 3e-5 * terms + info.smallest_normal * info.eps
    error = (found.double() - exact).abs()
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times what is allowed"


def check(host, inputs, activation, shift=0):
    (found,) = run_guarded(create(host, activation=activation), inputs, shift)
    assert found.dtype == inputs[0].dtype
    assert_close_to_exact(found, inputs, activation)


@needs_gpu
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results(host, dtype, activation, content):
    torch.manual_seed(0)
    for widths, rows, bias in itertools.product((*WIDTHS, *ODD_WIDTHS), (0, 1, 7, 64, 131, 1000), (True, False)):
        check(host, make_inputs(content, rows, *widths, dtype)[: 3 if bias else 2], activation)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_addresses_that_vectors_cannot_be_read_from(host, dtype):
    check(host, make_inputs("normal", 131, 768, 72, dtype), "gelu", shift=dtype.itemsize)


@needs_gpu
@given(
    rows=st.integers(1, 2000),
    width_in=st.integers(1, 4000),
    width_out=st.integers(1, 4000),
    multiple=st.sampled_from([1, 8, 64]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu"]),
)
@settings(deadline=None, max_examples=100)
def test_random_shapes(host, rows, width_in, width_out, multiple, dtype, bias, activation):
    width_in = multiple * math.ceil(width_in / multiple)
    width_out = min(multiple, 8) * math.ceil(width_out / min(multiple, 8))
    check(host, make_inputs("normal", rows, width_in, width_out, dtype)[: 3 if bias else 2], activation)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_infinity_and_nan_stay_in_their_row(host, dtype):
    x, weight, bias = make_inputs("normal", 200, 768, 768, dtype)
    x[3, 5], x[130, 700] = math.inf, math.nan
    (found,) = run_guarded(create(host, activation="gelu"), [x, weight, bias])
    broken = torch.tensor([3, 130], device="cuda")
    others = torch.ones(200, dtype=torch.bool, device="cuda").index_fill(0, broken, False)
    assert_close_to_exact(found[others], [x[others], weight, bias], "gelu")
    assert found[130].isnan().all()
    assert (found[3].isposinf() | (found[3].abs() <= 1e-30)).all()  # GELU of infinity and of minus infinity


@needs_gpu
def test_the_same_bits_every_time(host):
    for rows, widths in itertools.product((1, 128, 1000), ((768, 2304), (3072, 768))):
        inputs = make_inputs("normal", rows, *widths, torch.float16)
        plugin = create(host, activation="gelu")
        (expected,) = plugin.run_torch(inputs)
        for _ in range(20):
            (found,) = plugin.run_torch(inputs)
            assert torch.equal(found, expected)


@needs_gpu
def test_a_constant_weight_gives_the_same_bits(host):
    for rows, widths in itertools.product((1, 128, 1000, 4096), ((768, 2304), (3072, 768), (64, 136), (72, 136))):
        inputs = make_inputs("normal", rows, *widths, torch.float16)
        torch.cuda.synchronize()  # from here on the weight is constant
        (expected,) = create(host, activation="gelu").run_torch(inputs)
        (found,) = create(host, activation="gelu", constant_weight=1).run_torch(inputs)
        assert torch.equal(found, expected)


@needs_gpu
def test_a_weight_that_the_kernel_before_writes(host):
    plugin = create(host)
    x, weight, bias = make_inputs("normal", 128, 768, 768, torch.float16)
    (expected,) = plugin.run_torch([x, weight, bias])
    square = x.new_empty(768, 768)
    identity = torch.eye(768, dtype=torch.float16, device="cuda")
    for _ in range(20):
        square.fill_(float("nan"))
        plugin.run_torch([weight, identity], [square])  # writes what the next one takes for its weight
        (found,) = plugin.run_torch([x, square, bias])
        assert torch.equal(found, expected)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("constant_weight", [0, 1])
def test_in_a_cuda_graph_each_waits_for_the_one_before(host, dtype, constant_weight):
    """The kernel is launched while the one before it still runs; here that one writes what it reads."""
    up, down = (create(host, activation=kind, constant_weight=constant_weight) for kind in ("gelu", "none"))
    for rows in (1, 100, 2048):
        x, first, bias = make_inputs("normal", rows, 768, 3072, dtype)
        second = make_inputs("normal", 1, 3072, 768, dtype)[1]
        torch.cuda.synchronize()
        expected = x
        for _ in range(12):
            for plugin, weights in ((up, (first, bias)), (down, (second,))):
                (expected,) = plugin.run_torch([expected, *weights])
                torch.cuda.synchronize()
        buffers = [torch.empty(rows, width, dtype=dtype, device="cuda") for width in (3072, 768)]

        def chain(x=x, up_weights=(first, bias), down_weights=(second,), buffers=buffers):
            y = x
            for _ in range(12):
                (wide,) = up.run_torch([y, *up_weights], [buffers[0]])
                (y,) = down.run_torch([wide, *down_weights], [buffers[1]])
            return y

        chain()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = chain()
        for _ in range(10):
            for buffer in buffers:
                buffer.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(found, expected)
