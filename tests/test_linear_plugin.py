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
from plugin_build_for_tests import built_plugins, compile_and_run
from plugin_runs_for_tests import assert_replays_equal, needs_gpu, run_guarded

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


QUANTIZED_GELU_ERROR = 8.5e-4  # linear_gelu.cuh
NARROW_TYPES = {"int8": "int8", "fp8": "float8_e4m3fn"}
SCALED = {"x_scale": 0.05, "output_type": "fp16"}


def narrow_specs(kind="int8", leading=(2, 7), width_in=768, width_out=3072, bias=True):
    """x, weight, weight_scales and bias of a linear layer in 8 bits."""
    dtype = NARROW_TYPES[kind]
    tensors = [TensorSpec((*leading, width_in), dtype), TensorSpec((width_out, width_in), dtype)]
    return [*tensors, *[TensorSpec((width_out,), "float32")] * (2 if bias else 1)]


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
        ({"x_scale": -0.5}, "field x_scale is -0.5; expected 1e-30 to 1e+30, or 0 for no scale"),
        ({"x_scale": math.nan}, "field x_scale is nan; expected 1e-30 to 1e+30"),
        ({"x_scale": math.inf}, "field x_scale is inf; expected 1e-30 to 1e+30"),
        ({"x_scale": 1e-31}, "field x_scale is 1e-31; expected 1e-30 to 1e+30"),
        ({**SCALED, "output_scale": -1.0}, "field output_scale is -1; expected 1e-30 to 1e+30, or 0 for no scale"),
        ({**SCALED, "output_scale": math.nan}, "field output_scale is nan"),
        ({"x_scale": 1}, "field x_scale has plugin field type 5, expected float32"),
        ({"x_scale": 0.5}, "field x_scale is 0.5, so x has 8 bits; name the type of y in the field output_type"),
        ({"output_scale": 0.5}, "field output_scale is given, but not x_scale"),
        ({"output_type": "fp16"}, "field output_type is given, but not x_scale"),
        ({"x_scale": 0.5, "output_type": "fp32"}, 'field output_type is "fp32"; expected fp16, bf16, int8 or fp8'),
        (
            {"x_scale": 0.5, "output_type": "int8"},
            "field output_type is int8; give the scale of y in the field output_scale",
        ),
        (
            {"x_scale": 0.5, "output_type": "fp8", "output_scale": 0.0},
            "field output_type is fp8; give the scale of y",
        ),
        (
            {**SCALED, "output_scale": 0.5},
            "field output_type is fp16, but the field output_scale is 0.5; expected an output_type of 8 bits",
        ),
        ({"output_factors": 1}, "field output_factors is 1, but x_scale is not given; only y in 8 bits has factors"),
        ({**SCALED, "output_factors": 1}, "field output_factors is 1, but output_type is fp16; only y in 8 bits has"),
        ({**SCALED, "output_factors": -1}, "field output_factors is -1; expected 0 or 1"),
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
    assert fields == {
        "activation": activation, "constant_weight": constant_weight, "x_scale": 0, "output_scale": 0
    }  # fmt: skip
    assert create(host, **fields).serialized_fields() == fields
    assert plugin.clone().serialized_fields() == fields


def test_without_fields_there_is_no_activation_and_the_weight_may_change(host):
    fields = create(host).serialized_fields()
    assert fields == {"activation": "none", "constant_weight": 0, "x_scale": 0, "output_scale": 0}


def test_scales_and_type_make_the_same_plugin(host):
    given = {"x_scale": 1 / 3, "output_type": "int8", "output_scale": 0.1, "output_factors": 1}
    fields = create(host, **given).serialized_fields()
    assert fields == {"activation": "none", "constant_weight": 0} | {
        name: np.float32(value) if isinstance(value, float) else value for name, value in given.items()
    }
    assert create(host, **fields).serialized_fields() == fields


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
            "x is fp32; expected fp16 or bf16, or int8 or fp8 with x_scale; for other types take TensorRT's own",
        ),
        (0, "int8", "x is int8; give its scale in the field x_scale"),
        (0, "float8_e4m3fn", "x is fp8; give its scale in the field x_scale"),
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


# --- Eight bits


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output", ["fp16", "bf16", "same"])
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_accepted_types_in_eight_bits(host, kind, output, bias):
    inputs = narrow_specs(kind, bias=bias)
    fields = {"x_scale": 0.05, "output_type": kind if output == "same" else output}
    fields |= {"output_scale": 0.1} if output == "same" else {}
    plugin = create(host, **fields)
    dtype = {"fp16": "float16", "bf16": "bfloat16", "same": NARROW_TYPES[kind]}[output]
    assert plugin.output_specs(inputs) == [TensorSpec((2, 7, 3072), dtype)]
    if not torch.cuda.is_available():
        assert plugin.configure(inputs) == 0
        plugin.start()


@pytest.mark.parametrize(
    ("changed", "dtype", "message"),
    [
        (0, "float16", "x is fp16, but the field x_scale is 0.05; expected int8 or fp8, or no scale"),
        (0, "float8_e4m3fn", "weight is int8; expected the type of x, fp8"),
        (1, "float16", "weight is fp16; expected the type of x, int8"),
        (2, "float16", "weight_scales is fp16; expected fp32, as x is int8"),
        (3, "float16", "bias is fp16; expected fp32, as x is int8"),
    ],
)
def test_wrong_types_in_eight_bits_are_refused_by_name(host, changed, dtype, message):
    inputs = narrow_specs()
    inputs[changed] = TensorSpec(inputs[changed].shape, dtype)
    with pytest.raises(PluginHostError) as error:
        create(host, **SCALED).output_specs(inputs)
    assert message in str(error.value)


def test_an_output_in_the_other_type_of_eight_bits_is_refused(host):
    plugin = create(host, x_scale=0.05, output_scale=0.1, output_type="fp8")
    with pytest.raises(PluginHostError, match='field output_type is "fp8"; expected fp16, bf16 or int8'):
        plugin.output_specs(narrow_specs("int8"))


@pytest.mark.parametrize(
    ("changed", "shape", "message"),
    [
        (1, (3072, 767), "weight has the shape [3072, 767] for x of [2, 7, 768]; expected [N, K]"),
        (2, (768,), "weight_scales has the shape [768] for a weight of [3072, 768]; expected [N]"),
        (2, (), "weight_scales has the shape [] for a weight of [3072, 768]; expected [N]"),
        (3, (1, 3072), "bias has the shape [1, 3072] for a weight of [3072, 768]; expected [N]"),
    ],
)
def test_wrong_shapes_in_eight_bits_are_refused_by_name(host, changed, shape, message):
    inputs = narrow_specs()
    inputs[changed] = TensorSpec(shape, inputs[changed].dtype)
    with pytest.raises(PluginHostError) as error:
        create(host, **SCALED).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize("count", [2, 5])
def test_wrong_number_of_inputs_in_eight_bits_is_refused(host, count):
    message = (
        f"number of inputs: {count}, expected 3, or 4 with a bias; with x_scale they are x, weight, weight_scales"
    )
    with pytest.raises(PluginHostError, match=message):
        create(host, **SCALED).output_specs((narrow_specs() + narrow_specs()[-1:])[:count])


@needs_gpu
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_a_gpu_without_a_kernel_is_refused_when_an_engine_is_built(host, kind):
    plugin, capability = create(host, **SCALED), torch.cuda.get_device_capability()
    if capability >= ((8, 9) if kind == "fp8" else (7, 5)):
        assert plugin.configure(narrow_specs(kind)) == 0
    else:
        with pytest.raises(PluginHostError, match=f"x is {kind}: this GPU has compute capability"):
            plugin.configure(narrow_specs(kind))


def test_what_is_said_of_gpus_without_a_kernel(tmp_path):
    lines = compile_and_run("linear_gpu_probe.cpp", tmp_path, [], []).splitlines()
    said = dict(line.split(":", 1) for line in lines)
    assert {which for which, reason in said.items() if not reason} == {
        "int8, 7.5, code for 75", "int8, 8.0, code for 80", "int8, 8.6, code for 86", "int8, 8.9, code for 80",
        "int8, 8.9, code for 89", "fp8, 8.9, code for 89", "int8, 9.0, code for 80", "int8, 9.0, code for 90",
        "fp8, 9.0, code for 90", "int8, 10.0, code for 100", "fp8, 10.0, code for 100", "int8, 12.0, code for 90",
        "fp8, 12.0, code for 90",
    }  # fmt: skip
    assert said["int8, 7.0, code for 0"] == (
        " this GPU has compute capability 7.0, and linear layers in int8 have a kernel from 7.5 (Turing) on; build "
        "with fp16"
    )
    for capability, code in (("7.5", 75), ("8.0", 80), ("8.6", 86)):
        assert said[f"fp8, {capability}, code for {code}"] == (
            f" this GPU has compute capability {capability}, and linear layers in fp8 have a kernel from 8.9 "
            "(Ada) on; build with int8, fp16 or bf16"
        )
    built_for_another = (
        " this library was built for the GPU architectures 80, and so has no kernel in {} for this GPU of compute "
        "capability {}; build it for this GPU: python plugins/build.py --architectures native"
    )
    for kind, capability, code in (("fp8", "8.9", 80), ("fp8", "9.0", 80), ("fp8", "12.0", 0), ("int8", "12.0", 0)):
        assert said[f"{kind}, {capability}, code for {code}"] == built_for_another.format(kind, capability)


@pytest.mark.parametrize("kind", NARROW_TYPES)
@pytest.mark.parametrize(("width_in", "width_out"), [(1, 1), (772, 5), (769, 1023)])
def test_any_width_in_eight_bits(host, kind, width_in, width_out):
    inputs = narrow_specs(kind, (2, 7), width_in, width_out)
    plugin = create(host, x_scale=0.05, output_type="fp16")
    assert plugin.output_specs(inputs) == [TensorSpec((2, 7, width_out), "float16")]
    if not torch.cuda.is_available():
        assert plugin.configure(inputs) == 0


@pytest.mark.parametrize("position", range(5))
def test_supported_types_in_eight_bits(host, position):
    tensors = [*narrow_specs(), TensorSpec((2, 7, 3072), "float16")]
    plugin = create(host, **SCALED)
    for dtype in ("float32", "float16", "bfloat16", "int8", "float8_e4m3fn", "int32"):
        tensors[position] = TensorSpec(tensors[position].shape, dtype)
        allowed = (("int8", "float8_e4m3fn"), ("int8",), ("float32",), ("float32",), ("float16",))[position]
        assert plugin.supports(position, tensors[:4], tensors[4:]) is (dtype in allowed)


@given(
    leading=st.lists(st.integers(0, 30), max_size=6),
    width_in=st.integers(1, 300),
    width_out=st.integers(1, 300),
    kind=st.sampled_from(sorted(NARROW_TYPES)),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_any_number_of_rows_in_eight_bits(host, leading, width_in, width_out, kind, bias):
    inputs = narrow_specs(kind, leading, 16 * width_in, 16 * width_out, bias)
    plugin = create(host, x_scale=0.05, output_scale=0.1, output_type=kind)
    assert plugin.output_specs(inputs) == [TensorSpec((*leading, 16 * width_out), NARROW_TYPES[kind])]


# --- One type


WITH_FACTORS = {"x_scale": 0.05, "output_type": "int8", "output_scale": 0.1, "output_factors": 1}


@pytest.mark.parametrize("bias", [True, False])
def test_factors_of_y_in_8_bits(host, bias):
    inputs, plugin = narrow_specs(bias=bias), create(host, **WITH_FACTORS)
    inputs.insert(3, TensorSpec((3072,), "float32"))
    outputs = plugin.output_specs(inputs)
    assert outputs == [TensorSpec((2, 7, 3072), "int8")]
    assert all(plugin.supports(position, inputs, outputs) for position in range(len(inputs) + 1))
    inputs[3] = TensorSpec((3072,), "float16")
    assert not plugin.supports(3, inputs, outputs)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([TensorSpec((3072,), "float16")], "output_factors is fp16; expected fp32, as x is int8"),
        ([TensorSpec((768,), "float32")], "output_factors has the shape [768] for a weight of [3072, 768]; expected"),
        ([], "number of inputs: 3, expected 4, or 5 with a bias; with output_factors they are x, weight, weight_sca"),
    ],
)
def test_wrong_factors_are_refused_by_name(host, factors, message):
    with pytest.raises(PluginHostError) as error:
        create(host, **WITH_FACTORS).output_specs([*narrow_specs(bias=False), *factors])
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


def narrow_tensors(kind, rows, width_in, width_out, device="cpu", seed=0):
    """x, weight, weight_scales and bias of every size that 8 bits can have, values that saturate y among them."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    limit, spread = (127, 40.0) if kind == "int8" else (448, 100.0)
    dtype = reference.TYPES[kind]
    x, weight = (
        (normal(count, width_in) * spread).clamp(-limit, limit).to(dtype) for count in (rows, width_out)
    )  # int8: towards zero, which any rounding would do
    scales = normal(width_out).abs() * 0.05 / spread / math.sqrt(width_in) + 1e-6
    return [x, weight, scales, normal(width_out)]


NARROW_FIELDS = {"x_scale": 20.0 / 40.0}


def in_float64(tensors, activation, x_scale):
    x, weight, scales, *bias = (tensor.double() for tensor in tensors)
    y = x @ weight.t() * (scales * float(np.float32(x_scale))) + (bias[0] if bias else 0.0)
    return 0.5 * y * torch.erfc(-y / math.sqrt(2)) if activation == "gelu" else y


@given(
    rows=st.integers(0, 40),
    width_in=st.integers(1, 3000),
    width_out=st.integers(1, 60),
    kind=st.sampled_from(sorted(NARROW_TYPES)),
    activation=st.sampled_from(["none", "gelu"]),
    bias=st.booleans(),
    output=st.sampled_from(["fp16", "bf16", "same"]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_reference_in_eight_bits(rows, width_in, width_out, kind, activation, bias, output, seed):
    """Against float64: one rounding of the output's type away, in 8 bits one step at most."""
    tensors = narrow_tensors(kind, rows, width_in, width_out, seed=seed)[: 4 if bias else 3]
    output_type, output_scale = (kind, 0.02) if output == "same" else (output, 0.0)
    fields = {"x_scale": NARROW_FIELDS["x_scale"], "output_type": output_type, "output_scale": output_scale}
    found = reference.REFERENCES["Linear"](*tensors, activation=activation, constant_weight=1, **fields)
    exact = in_float64(tensors, activation, fields["x_scale"])
    assert found.dtype == reference.TYPES[output_type]
    if output == "same":
        assert steps_apart(found, reference.quantize(exact, output_scale, found.dtype)) <= 1
    else:
        eps = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found.double(), exact, rtol=0.51 * eps + 1e-5, atol=1e-5)


def steps_of(values):
    """The number of a value of 8 bits in the order of values, so that neighbours differ by 1."""
    bits = values.view(torch.uint8).int()
    if values.dtype == torch.int8:
        return values.int()
    return torch.where(bits < 128, bits, 128 - bits)


def steps_apart(found, expected):
    """The largest number of steps of their type between two tensors; 0 for tensors without elements."""
    return int((steps_of(found) - steps_of(expected)).abs().max()) if found.numel() else 0


@pytest.mark.parametrize("kind", sorted(NARROW_TYPES))
@pytest.mark.parametrize("bias", [True, False])
def test_reference_multiplies_with_the_factors_after_the_activation(kind, bias):
    tensors, factors = narrow_tensors(kind, 5, 64, 32)[: 4 if bias else 3], torch.rand(32) * 4 + 0.1
    fields = {"activation": "gelu", **NARROW_FIELDS, "output_type": kind, "output_scale": 0.05, "output_factors": 1}
    inputs = [*tensors[:3], factors, *tensors[3:]]
    y = reference.quantized_linear(*tensors, activation="gelu", **NARROW_FIELDS)
    found = reference.REFERENCES["Linear"](*inputs, **fields)
    assert torch.equal(found, reference.quantize(y * factors, 0.05, found.dtype))
    wide = [tensor.float() for tensor in inputs]
    plain = reference.linear(wide[0], wide[1], *wide[4:], activation="gelu")
    torch.testing.assert_close(reference.compute_in_fp32("Linear", wide, fields), plain * factors, rtol=0, atol=0)


def test_steps_of_fp8_are_neighbours():
    bits = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    values = bits.view(torch.float8_e4m3fn).float()
    order = values[~values.isnan()].unique()  # sorted; −0 and 0 are one
    steps = steps_of(order.to(torch.float8_e4m3fn))
    assert (steps.diff() == 1).all()


def test_integer_sums_of_the_reference_are_exact():
    """127 · 127 · 4096 is beyond 2^24, where fp32 has no odd numbers."""
    x = torch.full((1, 4096), 127, dtype=torch.int8)
    weight = torch.full((1, 4096), 127, dtype=torch.int8)
    weight[0, 0] = 126
    y = reference.quantized_linear(x, weight, torch.ones(1), x_scale=1.0, dtype=torch.float64)
    assert int(y) == 127 * 127 * 4096 - 127


def test_reference_without_quantization_is_the_layer():
    """With in_fp32 a network computes with the weight before it was quantized, and no scale is applied."""
    x, weight, bias = torch.randn(3, 32), torch.randn(8, 32), torch.randn(8)
    fields = {"activation": "gelu", "constant_weight": 1, "x_scale": 0.1, "output_scale": 0.2, "output_type": "int8"}
    found = reference.compute_in_fp32("Linear", (x, weight, torch.full((8,), 7.0), bias), fields)
    torch.testing.assert_close(found, torch.nn.functional.gelu(x @ weight.t() + bias))
    x, gamma = torch.randn(3, 8), torch.ones(8)
    fields = {"epsilon": 1e-12, "x_scale": 0.1, "output_scale": 0.2, "outputs": "both", "constant_weights": 1}
    first, second = reference.compute_in_fp32("SkipLayerNorm", (x, x, gamma, gamma), fields)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.nn.functional.layer_norm(2 * x, (8,), gamma, gamma, 1e-12))


# --- GELU, as the kernels compute it: with the coefficients of their source, in fp32


NUMBER = r"(-?\d[\d.e+-]*)F"


def gelu_source(function: str) -> str:
    """The body of a function of linear_gelu.cuh."""
    source = GELU_SOURCE.read_text(encoding="utf-8")
    return source[source.index(f"float {function}(float x") :].split("\n}\n")[0]


def times_phi(a: np.ndarray, source: str, degree: int) -> np.ndarray:
    """a · 2^q(a) with the coefficients of ``source``: float64 (n,) -> float64 (n,)."""
    (leading,) = re.findall(rf"float q = {NUMBER}", source)
    coefficients = [leading, *re.findall(rf"q = fmaf\(q, a, {NUMBER}\)", source)]
    assert len(coefficients) == degree + 1
    q = np.full_like(a, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        q = (q * a + np.float32(coefficient)).astype(np.float32).astype(np.float64)  # as fmaf: one rounding
    return a * np.where(q < -126, 0.0, np.exp2(q).astype(np.float32).astype(np.float64))  # ex2.approx.ftz


def kernels_gelu(x: np.ndarray) -> np.ndarray:
    """max(x, 0) − a · 2^q(a), a = min(|x|, limit), every step rounded to fp32: fp32 (n,) -> fp32 (n,)."""
    source = gelu_source("gelu")
    (limit,) = re.findall(rf"kLARGEST = {NUMBER}", source)
    a = np.minimum(np.abs(x), np.float32(limit)).astype(np.float64)
    return (np.maximum(x, 0) - times_phi(a, source, 6)).astype(np.float32)


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])


def test_phi_of_the_kernels_is_precise():
    x = np.linspace(-4.2, -1e-3, 40_001, dtype=np.float32)
    exact = exact_gelu(x)
    assert np.abs(kernels_gelu(x) / exact - 1).max() <= 8e-6
    beyond = np.linspace(-20, -4.2, 40_001, dtype=np.float32)
    assert np.abs(kernels_gelu(beyond) - exact_gelu(beyond)).max() <= 4.5e-10


def test_gelu_for_8_bits_is_off_by_less_than_half_a_step():
    """E4M3 has half a step of 3e-2 of a value; int8 has steps of output_scale."""
    source = gelu_source("quantizedGelu")
    a = np.linspace(1e-3, 4.5, 40_001)
    assert np.abs(times_phi(a, source, 3) / -exact_gelu(-a) - 1).max() <= 5.1e-3
    beyond = np.linspace(4.5, 1000, 40_001)
    assert np.abs(times_phi(beyond, source, 3) + exact_gelu(-beyond)).max() <= 1e-7
    everywhere = np.linspace(0, 20, 40_001)
    assert np.abs(times_phi(everywhere, source, 3) + exact_gelu(-everywhere)).max() <= QUANTIZED_GELU_ERROR


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

        assert_replays_equal(chain, expected, buffers)


# --- On a GPU, in 8 bits


def skip_without(kind):
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with fp8")


def e4m3_error(width_in):
    """How far a sum of E4M3 products may be off, relative to how large it is by chance.

    Hopper's tensor cores add 32 products to the sum so far and cut off what lies more than 13 bits behind the largest
    addend. A sum is seldom more than 4 times as large as by chance. Largest error on an H200, of 2.3 million sums:
    2.2e-4 for 16 products, 8.1e-4 for 64, 6.5e-3 for 768, 1.6e-2 for 3072, which is 0.2 to 0.6 of this.
    """
    return (math.ceil(width_in / 32) + 1) * 2.0**-13 * 4.0


def check_narrow(host, kind, tensors, activation, output, shift=0, factors=None):
    """The kernel against the reference: 8 bits at most one step apart, beyond what sums and GELU are off by."""
    output_type, output_scale = (kind, 0.05) if output == "same" else (output, 0.0)
    fields = {"x_scale": NARROW_FIELDS["x_scale"], "output_type": output_type, "output_scale": output_scale}
    fields |= {} if factors is None else {"output_factors": 1}
    inputs = tensors if factors is None else [*tensors[:3], factors, *tensors[3:]]
    (found,) = run_guarded(create(host, activation=activation, constant_weight=1, **fields), inputs, shift)
    assert found.dtype == reference.TYPES[output_type]
    x, weight, scales = (tensor.double() for tensor in tensors[:3])
    exact = in_float64(tensors, activation, fields["x_scale"])
    terms = (x.square() @ weight.square().t()).sqrt() * scales * fields["x_scale"]
    error = terms * (e4m3_error(x.shape[1]) if kind == "fp8" else 0.0)
    if output == "same":
        error = error + (QUANTIZED_GELU_ERROR if activation == "gelu" else 0.0)
        exact, error = (exact, error) if factors is None else (exact * factors, error * factors)
        low, high = (
            steps_of(reference.quantize(exact + sign * error, output_scale, found.dtype)) for sign in (-1, 1)
        )
        steps = steps_of(found)
        assert ((steps >= low - 1) & (steps <= high + 1)).all()
    else:
        eps = torch.finfo(found.dtype).eps
        allowed = 0.55 * eps * exact.abs() + error + 1e-5
        assert ((found.double() - exact).abs() <= allowed).all()


@needs_gpu
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("output", ["fp16", "bf16", "same"])
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_results_in_eight_bits(host, kind, output, activation):
    skip_without(kind)
    widths = ((16, 16), (64, 80), (320, 1200), (768, 2304), (768, 3072), (3072, 768), *ODD_WIDTHS)
    for (width_in, width_out), rows, bias in itertools.product(widths, (0, 1, 7, 64, 131, 1000), (True, False)):
        tensors = narrow_tensors(kind, rows, width_in, width_out, "cuda")[: 4 if bias else 3]
        check_narrow(host, kind, tensors, activation, output)
        if output == "same":
            factors = torch.rand(width_out, device="cuda") * 2 + 0.05
            check_narrow(host, kind, tensors, activation, output, factors=factors)


@needs_gpu
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_in_eight_bits_addresses_that_vectors_cannot_be_read_from(host, kind):
    skip_without(kind)
    check_narrow(host, kind, narrow_tensors(kind, 131, 768, 72, "cuda"), "gelu", "fp16", shift=4)


@needs_gpu
@given(
    rows=st.integers(1, 2000),
    width_in=st.integers(1, 4000),
    width_out=st.integers(1, 4000),
    multiple=st.sampled_from([1, 8, 16]),
    kind=st.sampled_from(sorted(NARROW_TYPES)),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu"]),
    output=st.sampled_from(["fp16", "bf16", "same"]),
)
@settings(deadline=None, max_examples=200)
def test_random_shapes_in_eight_bits(host, rows, width_in, width_out, multiple, kind, bias, activation, output):
    skip_without(kind)
    width_in, width_out = (multiple * math.ceil(width / multiple) for width in (width_in, width_out))
    tensors = narrow_tensors(kind, rows, width_in, width_out, "cuda")[: 4 if bias else 3]
    check_narrow(host, kind, tensors, activation, output)


@needs_gpu
@pytest.mark.parametrize("kind", NARROW_TYPES)
def test_in_eight_bits_a_constant_weight_gives_the_same_bits(host, kind):
    skip_without(kind)
    fields = {"x_scale": 0.5, "output_type": kind, "output_scale": 0.05}
    for rows, widths in itertools.product((1, 128, 1000, 4096), ((768, 2304), (3072, 768), (64, 144))):
        tensors = narrow_tensors(kind, rows, *widths, "cuda")
        torch.cuda.synchronize()  # from here on the weight is constant
        (expected,) = create(host, activation="gelu", **fields).run_torch(tensors)
        (found,) = create(host, activation="gelu", constant_weight=1, **fields).run_torch(tensors)
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
