"""The QkvToContext plugin: what it accepts and refuses anywhere, what it computes on a GPU."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from torch.nn.functional import scaled_dot_product_attention

from plugins import build, reference
from plugins.plugin_host import PluginHost, PluginHostError, TensorSpec

FLOATS = ("float32", "float16", "bfloat16")
TYPE_FIELDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and PyTorch for CUDA")


@pytest.fixture(scope="module")
def host():
    folder = built_plugins()
    return PluginHost(folder / build.LIBRARY, folder / build.HOST)


def create(host, **fields):
    return host.create("QkvToContext", fields={"num_heads": 2} | fields)


def specs(layout="single", dtype="float16", width=384, second="int32"):
    shape = {"single": (7, width), "padded": (3, 7, width), "packed": (7, width)}[layout]
    seconds = {"single": [], "padded": [TensorSpec((3, 7), second)], "packed": [TensorSpec((4,), second)]}
    return [TensorSpec(shape, dtype), *seconds[layout]]


# --- Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field num_heads is missing"),
        ({"num_heads": 0}, "field num_heads is 0; expected 1 or more"),
        ({"num_heads": -12}, "field num_heads is -12; expected 1 or more"),
        ({"num_heads": 12.0}, "field num_heads has plugin field type 1, expected int32"),
        ({"num_heads": 12, "heads": 12}, "unknown field heads"),
        ({"num_heads": 12, "layout": "ragged"}, 'field layout is "ragged"; expected single, padded or packed'),
        (
            {"num_heads": 12, "layout": "packed", "max_sequence_length": -1},
            "field max_sequence_length is -1; expected 0 (not known) or more",
        ),
        (
            {"num_heads": 12, "layout": "padded", "max_sequence_length": 128},
            "field max_sequence_length is 128 for layout padded; it is for layout packed",
        ),
        ({"num_heads": 12, "qkv_scale": -0.1}, "field qkv_scale is -0.1; expected 1e-30 to 1e+30, or 0 for no scale"),
        ({"num_heads": 12, "output_scale": float("nan")}, "field output_scale is nan; expected 1e-30 to 1e+30"),
        ({"num_heads": 12, "output_scale": float("inf")}, "field output_scale is inf; expected 1e-30 to 1e+30"),
        (
            {"num_heads": 12, "qkv_scale": 0.1, "output_type": "int8"},
            'field output_type is "int8"; give the scale of the context',
        ),
        ({"num_heads": 12, "output_type": "fp16"}, "it is for qkv of int8 (qkv_scale greater than 0)"),
        (
            {"num_heads": 12, "output_type": "fp16", "qkv_scale": 0.1, "output_scale": 0.1},
            "and an output that is not (no output_scale)",
        ),
        (
            {"num_heads": 12, "output_type": "fp8"},
            'field output_type is "fp8"; give the scale of the context in the field',
        ),
        ({"num_heads": 12, "output_scale": 0.1, "output_type": "int4"}, "expected fp32, fp16, bf16, int8 or fp8"),
        (
            {"num_heads": 12, "qkv_scale": 0.1, "output_scale": 0.1, "output_type": "fp8"},
            'field output_type is "fp8", but qkv_scale is 0.1, so qkv is int8',
        ),
        ({"num_heads": 12, "qkv_scale": 0.1}, "neither output_scale (for an output of int8) nor output_type"),
    ],
)
def test_wrong_fields_are_refused_by_name(host, fields, message):
    with pytest.raises(PluginHostError) as error:
        host.create("QkvToContext", fields=fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_heads": 12, "layout": "single", "qkv_scale": 0.0, "output_scale": 0.0},
        {"num_heads": 12, "layout": "packed", "qkv_scale": 0.5, "output_scale": 0.0, "output_type": "bf16"},
        {"num_heads": 12, "layout": "packed", "max_sequence_length": 128, "qkv_scale": 0.0, "output_scale": 0.0},
        {"num_heads": 1, "layout": "padded", "qkv_scale": 0.5, "output_scale": 0.25},
        {"num_heads": 1, "layout": "padded", "qkv_scale": 0.0, "output_scale": 0.25, "output_type": "fp8"},
    ],
)
def test_serialized_fields_make_the_same_plugin(host, fields):
    fields = {"max_sequence_length": 0} | fields
    plugin = host.create("QkvToContext", fields=fields)
    assert plugin.serialized_fields() == fields
    assert host.create("QkvToContext", fields=plugin.serialized_fields()).serialized_fields() == fields
    assert plugin.clone().serialized_fields() == fields


def test_layout_is_single_unless_told(host):
    assert create(host).serialized_fields()["layout"] == "single"


# --- Types, shapes, formats


@pytest.mark.parametrize("layout", ["single", "padded", "packed"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_accepted_types(host, layout, dtype):
    inputs = specs(layout, dtype)
    context_shape = (*inputs[0].shape[:-1], 128)
    for scale, expected in ((0.0, dtype), (0.5, "int8")):
        plugin = create(host, layout=layout, output_scale=scale)
        assert plugin.output_specs(inputs) == [TensorSpec(context_shape, expected)]
        assert plugin.configure(inputs) == 0  # no workspace


@pytest.mark.parametrize("layout", ["single", "padded", "packed"])
@pytest.mark.parametrize("output", [*FLOATS, "int8"])
def test_accepted_types_for_int8(host, layout, output):
    how = {"output_scale": 0.5} if output == "int8" else {"output_type": TYPE_FIELDS[output]}
    plugin = create(host, layout=layout, qkv_scale=0.1, **how)
    inputs = specs(layout, "int8")
    assert plugin.output_specs(inputs)[0].dtype == output
    plugin.configure(inputs)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_context_in_fp8(host, dtype):
    plugin = create(host, output_scale=0.1, output_type="fp8")
    assert plugin.output_specs(specs("single", dtype))[0].dtype == "float8_e4m3fn"
    plugin.configure(specs("single", dtype))


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        ({}, specs(dtype="int32"), "qkv is int32; expected fp32, fp16, bf16 or int8"),
        ({}, specs(dtype="int8"), "qkv is int8, but field qkv_scale is missing or 0"),
        (
            {"qkv_scale": 0.5, "output_scale": 0.5},
            specs(),
            "qkv is fp16, but field qkv_scale is 0.5; it is for int8 only",
        ),
        ({"layout": "padded"}, specs("padded", second="bool"), "mask is bool; expected int32"),
        ({"layout": "packed"}, specs("packed", second="int64"), "cu_seqlens is int64; expected int32"),
        ({"layout": "padded"}, specs("padded")[:1], "number of inputs: 1, expected 2"),
        ({}, specs("packed"), "number of inputs: 2, expected 1"),
    ],
)
def test_wrong_types_are_refused_by_name(host, fields, inputs, message):
    with pytest.raises(PluginHostError) as error:
        create(host, **fields).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "shapes", "message"),
    [
        ({}, [(7, 288)], "with num_heads 2 a head has 48 elements; expected 32, 64 or 128"),
        ({}, [(7, 385)], "so with num_heads 2 a head has 64.1667 elements; expected 32, 64 or 128"),
        ({}, [(7, 1536)], "a head has 256 elements"),
        ({}, [(384,)], "qkv has the shape [384]; expected [S, 3H] or [B, S, 3H] for layout single"),
        ({}, [(1, 1, 7, 384)], "expected [S, 3H] or [B, S, 3H] for layout single"),
        ({"layout": "padded"}, [(7, 384), (1, 7)], "expected [B, S, 3H] for layout padded"),
        ({"layout": "padded"}, [(3, 7, 384), (3, 8)], "mask has the shape [3, 8] for qkv of [3, 7, 384]"),
        ({"layout": "padded"}, [(3, 7, 384), (7, 3)], "mask has the shape [7, 3] for qkv of [3, 7, 384]"),
        ({"layout": "padded"}, [(3, 7, 384), (21,)], "mask has the shape [21] for qkv of [3, 7, 384]"),
        ({"layout": "packed"}, [(3, 7, 384), (4,)], "expected [T, 3H] for layout packed"),
        ({"layout": "packed"}, [(7, 384), (0,)], "cu_seqlens has the shape [0]; expected [B + 1]"),
        ({"layout": "packed"}, [(7, 384), (1, 4)], "cu_seqlens has the shape [1, 4]; expected [B + 1]"),
        ({}, [(2**31, 384)], "at most 1073741824 tokens are possible"),
        ({}, [(2**20, 2**20, 384)], "at most 1073741824 tokens are possible"),
        ({"num_heads": 100}, [(2**30, 19200)], "more than one kernel can be launched for"),
    ],
)
def test_wrong_shapes_are_refused_by_name(host, fields, shapes, message):
    inputs = [TensorSpec(shapes[0], "float16"), *(TensorSpec(shape, "int32") for shape in shapes[1:])]
    with pytest.raises(PluginHostError) as error:
        create(host, **fields).output_specs(inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("layout", "shapes", "expected"),
    [
        ("single", [(-1, 384)], (-1, 128)),
        ("single", [(-1, -1, 384)], (-1, -1, 128)),
        ("single", [(-1, -1, -1)], (-1, -1, -1)),
        ("padded", [(-1, 7, 384), (3, -1)], (-1, 7, 128)),
        ("packed", [(-1, 384), (-1,)], (-1, 128)),
    ],
)
def test_unknown_dimensions_pass_through(host, layout, shapes, expected):
    inputs = [TensorSpec(shapes[0], "float16"), *(TensorSpec(shape, "int32") for shape in shapes[1:])]
    (output,) = create(host, layout=layout).output_specs(inputs)
    assert output.shape == expected


@pytest.mark.parametrize("position", range(3))
def test_only_linear_format_is_supported(host, position):
    plugin = create(host, layout="padded")
    tensors = [*specs("padded"), TensorSpec((3, 7, 128), "float16")]
    assert plugin.supports(position, tensors[:2], tensors[2:])
    tensors[position] = TensorSpec(tensors[position].shape, tensors[position].dtype, format=2)  # kHWC8
    assert not plugin.supports(position, tensors[:2], tensors[2:])


@given(
    batch=st.integers(0, 50),
    length=st.integers(0, 4096),
    heads=st.integers(1, 32),
    head_size=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(["single", "padded", "packed"]),
)
@settings(deadline=None, max_examples=100)
def test_any_shape_is_prepared(host, batch, length, heads, head_size, dtype, layout):
    plugin = create(host, num_heads=heads, layout=layout)
    leading = (length,) if layout == "packed" else (batch, length)
    inputs = [TensorSpec((*leading, 3 * heads * head_size), dtype)]
    seconds = {"padded": [TensorSpec(leading, "int32")], "packed": [TensorSpec((batch + 1,), "int32")]}
    (output,), workspace = plugin.prepare([*inputs, *seconds.get(layout, [])])
    assert output == TensorSpec((*leading, heads * head_size), dtype)
    assert workspace == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, where a launch must fail")
@pytest.mark.parametrize("dtype", FLOATS)
def test_cuda_error_is_returned_and_logged(host, dtype):
    with pytest.raises(PluginHostError) as error:
        create(host).enqueue(specs(dtype=dtype), [0], [0])
    assert "enqueue returned -1" in str(error.value)
    assert "QkvToContext plugin, enqueue: CUDA error" in str(error.value)


def test_misaligned_tensors_are_an_error(host):
    with pytest.raises(PluginHostError, match="QkvToContext plugin, enqueue: CUDA error 716: misaligned address"):
        create(host).enqueue(specs(), [2], [0])


@pytest.mark.parametrize("shape", [(0, 384), (0, 7, 384), (3, 0, 384)])
def test_no_tokens_launch_nothing(host, shape):
    create(host).enqueue([TensorSpec(shape, "float16")], [0], [0])  # without a GPU any launch would be an error


# --- The reference


def heads_of(qkv, num_heads):
    """(B, S, 3H) to Q, K and V, each (B, N, S, D), in float64."""
    batch, length, _ = qkv.shape
    return qkv.double().view(batch, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)


def sdpa(qkv, num_heads, mask=None):
    """PyTorch's attention in float64 on (B, S, 3H)."""
    counts = None if mask is None else (mask != 0)[:, None, None, :]
    q, k, v = heads_of(qkv, num_heads)
    context = scaled_dot_product_attention(q, k, v, attn_mask=counts)
    return context.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_size", [32, 64, 128])
def test_reference_is_pytorchs_attention(dtype, head_size):
    qkv = torch.randn(2, 5, 3 * 3 * head_size).to(dtype)
    expected = sdpa(qkv, 3)
    found = reference.qkv_to_context(qkv, num_heads=3)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    exact = reference.qkv_to_context(qkv, num_heads=3, dtype=torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reference.qkv_to_context(qkv[0], num_heads=3, dtype=torch.float64), expected[0])


def test_reference_leaves_masked_keys_out_and_gives_zeros_without_keys():
    qkv = torch.randn(3, 6, 3 * 64)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]])
    found = reference.qkv_to_context(qkv, mask, num_heads=2, layout="padded", dtype=torch.float64)
    torch.testing.assert_close(found[:2], sdpa(qkv[:2], 2, mask[:2]), rtol=1e-12, atol=1e-12)
    assert (found[2] == 0).all()


def test_reference_of_packed_sentences_is_that_of_each():
    qkv = torch.randn(12, 3 * 64)
    cu_seqlens = torch.tensor([0, 3, 3, 10], dtype=torch.int32)
    found = reference.qkv_to_context(qkv, cu_seqlens, num_heads=2, layout="packed", dtype=torch.float64)
    torch.testing.assert_close(found[:3], sdpa(qkv[None, :3], 2)[0])
    torch.testing.assert_close(found[3:10], sdpa(qkv[None, 3:10], 2)[0])
    assert (found[10:] == 0).all()


def test_reference_quantises_as_tensorrt_does():
    qkv = torch.zeros(1, 3 * 32, dtype=torch.int8)
    qkv[0, 64:70] = torch.tensor([1, 3, 5, -1, -3, 127], dtype=torch.int8)  # one key: the context is V
    found = reference.qkv_to_context(qkv, num_heads=1, qkv_scale=0.5, output_scale=1.0)
    assert found[0, :6].tolist() == [0, 2, 2, 0, -2, 64]  # of 0.5, 1.5, 2.5, -0.5, -1.5, 63.5
    wide = reference.qkv_to_context(qkv, num_heads=1, qkv_scale=4.0, output_scale=1.0)
    assert wide[0, 5] == 127
    assert reference.qkv_to_context(qkv, num_heads=1, qkv_scale=0.5, output_type="bf16").dtype == torch.bfloat16


# --- On a GPU


def relative_error(found, expected):
    """‖found − expected‖ / ‖expected‖; NaN where anything is NaN."""
    norm = expected.norm().item()
    return (found.double() - expected).norm().item() / norm if norm else found.double().norm().item()


TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def settings_of(fields) -> dict[str, Any]:
    """The plugin's fields as the reference wants them."""
    return {"num_heads": 2} | fields


def check(host, qkv, second=None, **fields):
    """Runs the plugin into poisoned memory and compares with float64."""
    plugin = create(host, **fields)
    inputs = [qkv] if second is None else [qkv, second]
    (spec,), _ = plugin.prepare([TensorSpec.of_torch(tensor) for tensor in inputs])
    dtype = getattr(torch, spec.dtype)
    context = torch.empty(spec.shape, dtype=dtype, device="cuda")
    context.fill_(77 if dtype == torch.int8 else float("nan"))
    plugin.run_torch(inputs, [context])
    exact = reference.qkv_to_context(qkv, second, dtype=torch.float64, **settings_of(fields))
    if dtype == torch.float8_e4m3fn:
        # Half a step is at most 1/16; what fp16 or bf16 weights add to it is small beside that.
        expected = (exact / fields["output_scale"]).clamp(-448, 448)
        allowed = expected.abs() * (1 / 16 + (8e-3 if qkv.dtype == torch.bfloat16 else 2e-3)) + 0.3
        assert ((context.double() - expected).abs() <= allowed).all()
    elif dtype == torch.int8:
        # Half a step of rounding, and what fp16 or bf16 weights add to it.
        difference = context.double() - (exact / fields["output_scale"]).clamp(-128, 127)
        error = difference.abs().max().item() if difference.numel() else 0.0
        assert error <= 0.5 + (0.3 if qkv.dtype == torch.bfloat16 else 0.04)
    else:
        assert relative_error(context, exact) <= max(TOLERANCES[dtype], 0 if qkv.dtype == dtype else 5e-4)
    return context


def random_qkv(shape, dtype, heads=2, head_size=64, spread=1.0):
    qkv = torch.randn(*shape, 3 * heads * head_size, device="cuda") * spread
    return (qkv * 30).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else qkv.to(dtype)


def combinations():
    """Types of qkv, and the fields that go with them."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield dtype, {}
        yield dtype, {"output_scale": 0.02}
        yield dtype, {"output_scale": 0.02, "output_type": "fp8"}
    for output in ("fp32", "fp16", "bf16"):
        yield torch.int8, {"qkv_scale": 1 / 30, "output_type": output}
    yield torch.int8, {"qkv_scale": 1 / 30, "output_scale": 0.02}


all_types = pytest.mark.parametrize(("dtype", "fields"), [*combinations()])
all_head_sizes = pytest.mark.parametrize("head_size", [32, 64, 128])


@needs_gpu
@all_types
@all_head_sizes
def test_lengths_on_the_gpu(host, dtype, fields, head_size):
    torch.manual_seed(0)
    for length in [*range(1, 512, 1 if head_size == 64 else 37), 512, 1025]:  # one by one: no length is special
        check(host, random_qkv((length,), dtype, 2, head_size), **fields)
    check(host, random_qkv((3, 77), dtype, 3, head_size), num_heads=3, **fields)
    check(host, random_qkv((1, 4096), dtype, 1, head_size), num_heads=1, **fields)


@needs_gpu
@all_types
@all_head_sizes
@pytest.mark.parametrize("length", [1, 5, 64, 100, 130, 384])
def test_masks_on_the_gpu(host, dtype, fields, head_size, length):
    torch.manual_seed(0)
    mask = (torch.rand(5, length, device="cuda") < 0.5).int()  # a pattern with holes
    mask[1] = 0  # nothing but padding: zeros
    mask[2] = 1
    mask[3, length // 2 :] = 0  # padding behind
    mask[4, : length // 2] = 0  # padding in front
    context = check(host, random_qkv((5, length), dtype, 2, head_size), mask, layout="padded", **fields)
    assert (context[1] == 0).all()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize(("batch", "heads"), [(3, 2), (9, 12), (15, 12), (70, 5), (400, 1)])
def test_short_sentences_on_the_gpu(host, dtype, head_size, batch, heads):
    """Up to 128 tokens; how many sentences and heads there are decides how a GPU shares them out."""
    torch.manual_seed(0)
    for length in (*range(1, 128, 1 if batch == 3 else 9), 63, 64, 65, 80, 96, 127, 128):
        qkv = random_qkv((batch, length), dtype, heads, head_size)
        mask = (torch.rand(batch, length, device="cuda") < 0.5).int()
        mask[1] = 0  # nothing but padding: zeros
        check(host, qkv, num_heads=heads)
        check(host, qkv, num_heads=heads, output_scale=0.02)
        context = check(host, qkv, mask, num_heads=heads, layout="padded")
        assert (context[1] == 0).all()


@needs_gpu
@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize(("batch", "heads"), [(3, 2), (9, 12), (15, 12), (22, 12), (70, 5), (400, 1)])
def test_sentences_of_int8_on_the_gpu(host, head_size, batch, heads):
    """Blocks of one or two tiles of queries, and chunks of keys that are full, partial or single."""
    torch.manual_seed(0)
    for length in (1, 37, 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 256, 300, 384, 385, 448, 511, 512, 513):
        qkv = random_qkv((batch, length), torch.int8, heads, head_size)
        mask = (torch.rand(batch, length, device="cuda") < 0.5).int()
        mask[1] = 0  # nothing but padding: zeros
        fields = {"num_heads": heads, "qkv_scale": 1 / 30}
        check(host, qkv, **fields, output_scale=0.02)
        check(host, qkv, **fields, output_type="fp16")
        context = check(host, qkv, mask, layout="padded", **fields, output_scale=0.02)
        assert (context[1] == 0).all()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [3, 70, 400])
@pytest.mark.parametrize("length", [1, 37, 63, 65, 100, 127, 128])
def test_sentences_do_not_touch_each_other(host, dtype, batch, length):
    """One of NaN, between others, is the only one of NaN."""
    torch.manual_seed(0)
    qkv = random_qkv((batch, length), dtype)
    clean = check(host, qkv)
    qkv[1] = float("nan")
    found = create(host).run_torch([qkv])[0]
    assert found[1].isnan().all()
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[2:], clean[2:])


@needs_gpu
@all_types
@all_head_sizes
@pytest.mark.parametrize(
    "lengths",
    [[5], [1, 1, 1], [10, 100], [0, 7, 0, 64, 65, 0], [128, 384, 33], [1] * 70, [*range(1, 60)], [512, 3], []],
)
def test_packed_sentences_on_the_gpu(host, dtype, fields, head_size, lengths):
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cuda")
    for behind in (0, 70):  # tokens of no sentence
        qkv = random_qkv((sum(lengths) + behind,), dtype, 2, head_size)
        check(host, qkv, cu_seqlens, layout="packed", **fields)
        for expected in (64, 128):  # also where a sentence is longer
            check(host, qkv, cu_seqlens, layout="packed", max_sequence_length=expected, **fields)


@needs_gpu
@all_types
@all_head_sizes
@pytest.mark.parametrize(("batch", "length"), [(40, 128), (40, 192), (30, 200), (210, 70)])
def test_more_tiles_than_the_gpu_takes_at_a_time(host, dtype, fields, head_size, batch, length):
    """Blocks that stay take several tiles each; padded and packed sentences likewise."""
    torch.manual_seed(0)
    qkv = random_qkv((batch, length), dtype, 12, head_size)
    mask = (torch.rand(batch, length, device="cuda") < 0.5).int()
    cu_seqlens = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device="cuda")
    most = length // 3  # so that no sentence ends before it begins
    cu_seqlens[1:-1] += torch.randint(-most, most, (batch - 1,), dtype=torch.int32, device="cuda")
    for _ in range(5):  # what is wrong now and then shows
        check(host, qkv, num_heads=12, **fields)
    check(host, qkv, mask, num_heads=12, layout="padded", **fields)
    for expected in (0, 64, 128):
        packed = {"layout": "packed", "max_sequence_length": expected}
        check(host, qkv.flatten(0, 1), cu_seqlens, num_heads=12, **packed, **fields)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize(("batch", "heads"), [(1, 12), (3, 2), (15, 12), (70, 5), (400, 1)])
@pytest.mark.parametrize("longest", [60, 64, 65, 128])
def test_packed_short_sentences_on_the_gpu(host, dtype, head_size, batch, heads, longest):
    """Blocks that belong to a sentence: lengths of all sizes, every position in the rows that a copy brings."""
    generator = torch.Generator().manual_seed(batch + longest)
    for _ in range(5):
        lengths = torch.randint(0, longest + 1, (batch,), generator=generator)
        cu_seqlens = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int().cuda()
        qkv = random_qkv((int(lengths.sum()) + 5,), dtype, heads, head_size)
        fields = {"num_heads": heads, "layout": "packed", "max_sequence_length": longest}
        check(host, qkv, cu_seqlens, **fields)
        check(host, qkv, cu_seqlens, output_scale=0.02, **fields)


@needs_gpu
@all_types
@all_head_sizes
@pytest.mark.parametrize("behind", [float("nan"), 3000.0])
@pytest.mark.parametrize("expected", [0, 64, 128])
def test_what_lies_behind_a_sentence_does_not_matter(host, dtype, fields, head_size, behind, expected):
    """Tokens of no sentence and of the next one may be anything: not a bit changes.

    They are rows of the same tile. NaN spreads by multiplication with zero. Large scores make a warp rescale and take
    another formula, and with a spread of 3 later chunks of keys have larger scores.
    """
    torch.manual_seed(0)
    if dtype == torch.int8:
        behind = 127
    for length in (1, 5, 17, 70, 100, 130, 200, 300, 450):
        cu_seqlens = torch.tensor([0, length, length + 30], dtype=torch.int32, device="cuda")
        qkv = random_qkv((length + 80,), dtype, head_size=head_size, spread=3.0)
        plugin = create(host, layout="packed", max_sequence_length=expected, **fields)
        (clean,) = plugin.run_torch([qkv, cu_seqlens])
        qkv[length:] = behind
        (found,) = plugin.run_torch([qkv, cu_seqlens])
        as_numbers = torch.uint8 if found.element_size() == 1 else found.dtype
        assert torch.equal(found[:length].view(as_numbers), clean[:length].view(as_numbers)), length
        assert (found[length + 30 :].view(as_numbers) == 0).all(), length


@needs_gpu
@all_types
@pytest.mark.parametrize("starts", [[1, 5, 9], [0, 9, 5], [0, 5, None], [0, 5, 99999], [0, -3, 5], [-5, 2, 5]])
@pytest.mark.parametrize("tokens", [9, 300])  # few enough for the kernel for short sentences, and more
def test_broken_cu_seqlens_poison_the_output(host, dtype, fields, starts, tokens):
    qkv = random_qkv((tokens,), dtype)
    starts = [tokens + 1 if start is None else start for start in starts]
    cu_seqlens = torch.tensor(starts, dtype=torch.int32, device="cuda")
    (context,) = create(host, layout="packed", **fields).run_torch([qkv, cu_seqlens])
    assert (context == -128).all() if context.dtype == torch.int8 else context.isnan().all()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@all_head_sizes
@pytest.mark.parametrize("spread", [8.0, 60.0, 2000.0])
def test_large_scores_on_the_gpu(host, dtype, head_size, spread):
    """Scores of 1e3 to 1e8: the softmax is that of one or two keys, and nothing overflows."""
    torch.manual_seed(0)
    qkv = random_qkv((2, 300), dtype, 2, head_size, spread)
    (context,) = create(host).run_torch([qkv])
    expected = sdpa(qkv, 2)
    ours = relative_error(context, expected)
    q, k, v = heads_of(qkv, 2).to(dtype)
    pytorchs = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert ours <= max(1.5 * relative_error(pytorchs, expected), TOLERANCES[dtype])


@needs_gpu
@all_head_sizes
@pytest.mark.parametrize("length", [100, 200, 600])
def test_largest_int8_scores_on_the_gpu(host, head_size, length):
    """Sums of up to 128 · 128 · D are exact, in steps of 1, and no step is lost in the softmax."""
    torch.manual_seed(0)
    qkv = torch.randint(0, 2, (3, length, 6 * head_size), device="cuda") * 255 - 128  # -128 and 127 only
    qkv[0, :, : 4 * head_size] = -128  # the largest score there is, and the same for all keys
    qkv = qkv.to(torch.int8)
    cu_seqlens = torch.arange(4, dtype=torch.int32, device="cuda") * length
    for scale in (0.01, 3.0):  # the larger one leaves each query the values of one or two keys
        fields = {"qkv_scale": scale, "output_type": "fp32"}
        check(host, qkv, **fields)
        check(host, qkv.flatten(0, 1), cu_seqlens, layout="packed", **fields)


@needs_gpu
@pytest.mark.parametrize("length", [1, 100, 200, 600])
def test_absurd_scales_of_int8_on_the_gpu(host, length):
    """A step of a score is many of the softmax's exponent, or a step of a value more than int8 has for contexts."""
    torch.manual_seed(0)
    qkv = random_qkv((3, length), torch.int8)
    check(host, qkv, qkv_scale=30.0, output_type="fp32")
    qkv[..., 256:] = torch.tensor([-1, 0, 1, 2], dtype=torch.int8, device="cuda").repeat(32)  # of all keys
    check(host, qkv, qkv_scale=30.0, output_scale=30.0)
    check(host, qkv, qkv_scale=1.0, output_scale=1e-5)


@needs_gpu
@given(
    batch=st.integers(1, 9),
    length=st.integers(1, 700),
    heads=st.integers(1, 5),
    head_size=st.sampled_from([32, 64, 128]),
    case=st.sampled_from([*combinations()]),
    layout=st.sampled_from(["single", "padded", "packed"]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=300)
def test_random_shapes_on_the_gpu(host, batch, length, heads, head_size, case, layout, seed):
    dtype, fields = case
    generator = torch.Generator().manual_seed(seed)
    second = None
    if layout == "padded":
        second = torch.randint(0, 2, (batch, length), generator=generator, dtype=torch.int32).cuda()
    elif layout == "packed":
        cuts = torch.randint(0, length + 1, (batch,), generator=generator).sort().values
        second = torch.cat([torch.zeros(1), cuts]).int().cuda()
    shape = (length,) if layout == "packed" else (batch, length)
    qkv = random_qkv(shape, dtype, heads, head_size)
    check(host, qkv, second, num_heads=heads, layout=layout, **fields)


@needs_gpu
@pytest.mark.parametrize("expected", [0, 64, 128])
def test_cuda_graph_with_other_lengths(host, expected):
    """Lengths are read on the device: a captured graph follows them."""
    qkv = random_qkv((200,), torch.float16)
    cu_seqlens = torch.tensor([0, 50, 200], dtype=torch.int32, device="cuda")
    plugin = create(host, layout="packed", max_sequence_length=expected)
    plugin.run_torch([qkv, cu_seqlens])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (context,) = plugin.run_torch([qkv, cu_seqlens])
    for middle in (1, 64, 130, 200):
        cu_seqlens[1] = middle
        context.fill_(float("nan"))
        graph.replay()
        exact = reference.qkv_to_context(qkv, cu_seqlens, num_heads=2, layout="packed", dtype=torch.float64)
        assert relative_error(context, exact) <= TOLERANCES[torch.float16]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int8])
@pytest.mark.parametrize("shape", [(1,), (64,), (128,), (384,), (1000,), (70, 128), (200, 100)])
def test_kernels_that_follow_each_other_wait_for_each_other(host, shape, dtype):
    """They are launched early; here each reads what the one before wrote."""
    scales = {"qkv_scale": 1 / 30, "output_scale": 1 / 60} if dtype == torch.int8 else {}
    plugin = create(host, **scales)
    qkv = random_qkv(shape, dtype)
    width = qkv.shape[-1] // 3

    def chain(wait):
        """The context becomes the V of the next attention, in place."""
        tensor = qkv.clone()
        for _ in range(20):
            (context,) = plugin.run_torch([tensor])
            tensor[..., 2 * width :].copy_(context)
            if wait:
                torch.cuda.synchronize()
        return tensor

    expected = chain(wait=True)
    for _ in range(10):
        assert torch.equal(chain(wait=False), expected)


def test_scores_of_one_key_are_weight_one():
    """The reference of one token is its V, whatever Q and K are."""
    qkv = torch.full((1, 96), math.pi, dtype=torch.float64)
    qkv[0, 64:] = torch.arange(32)
    found = reference.qkv_to_context(qkv, num_heads=1, dtype=torch.float64)
    assert found[0].tolist() == np.arange(32).tolist()
