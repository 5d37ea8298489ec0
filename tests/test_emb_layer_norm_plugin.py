"""The EmbLayerNorm plugin: what it accepts and refuses anywhere, what it computes on a GPU."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from plugin_runs_for_tests import assert_as_good_as_pytorch, in_half_steps, needs_gpu, run_guarded
from torch.nn import functional

from plugins import build, reference
from plugins.plugin_host import PluginHost, PluginHostError, TensorSpec

FLOATS = ("float32", "float16", "bfloat16")
EPSILON = 1e-12
NAMES = ("input_ids", "token_type_ids", "position_ids", "words", "positions", "types", "gamma", "beta")


@pytest.fixture(scope="module")
def host():
    folder = built_plugins()
    return PluginHost(folder / build.LIBRARY, folder / build.HOST)


def create(host, epsilon=EPSILON, **fields):
    return host.create("EmbLayerNorm", fields={"epsilon": epsilon, **fields})


def specs(dtype="float16", weight=None, shape=(2, 7), hidden=768, **changed):
    ids, weights = TensorSpec(shape, "int32"), TensorSpec((hidden,), weight or dtype)
    tables = [TensorSpec((rows, hidden), dtype) for rows in (30522, 512, 2)]
    named = dict(zip(NAMES, (ids, ids, ids, *tables, weights, weights), strict=True))
    return list((named | {name: TensorSpec(*spec) for name, spec in changed.items()}).values())


# --- Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field epsilon is missing"),
        ({"epsilon": 0.0}, "field epsilon is 0; expected a finite number greater than 0"),
        ({"epsilon": float("inf")}, "field epsilon is inf; expected"),
        ({"epsilon": np.float64(1e-5)}, "field epsilon has plugin field type 2, expected float32"),
        ({"epsilon": 1e-5, "kernel": "fast"}, "unknown field kernel"),
        ({"epsilon": 1e-5, "output_scale": -0.5}, "field output_scale is -0.5; expected 1e-30 to 1e+30, or 0 for"),
        ({"epsilon": 1e-5, "output_scale": float("nan")}, "field output_scale is nan; expected 1e-30 to 1e+30"),
        ({"epsilon": 1e-5, "outputs": "two"}, 'field outputs is "two"; expected y or both'),
        ({"epsilon": 1e-5, "outputs": "both"}, 'field outputs is "both"; give the scale of the output in 8 bits'),
        ({"epsilon": 1e-5, "quantized_type": "int8"}, 'field quantized_type is "int8", but there is no output_scale'),
        (
            {"epsilon": 1e-5, "output_scale": 0.5, "quantized_type": "bf16"},
            'field quantized_type is "bf16"; expected int8 or fp8',
        ),
        ({"epsilon": 1e-5, "output_factors": 1}, "field output_factors is 1, but there is no output_scale"),
    ],
)
def test_wrong_fields_are_refused_by_name(host, fields, message):
    with pytest.raises(PluginHostError) as error:
        host.create("EmbLayerNorm", fields=fields)
    assert message in str(error.value)


def test_serialized_fields_make_the_same_plugin(host):
    plugin = create(host)
    assert plugin.serialized_fields() == {"epsilon": np.float32(EPSILON), "output_scale": 0, "outputs": "y"}
    assert plugin.clone().serialized_fields() == plugin.serialized_fields()
    given_fields = {"output_scale": 0.5, "outputs": "both", "quantized_type": "fp8", "output_factors": 1}
    fields = create(host, **given_fields).serialized_fields()
    assert fields == {"epsilon": np.float32(EPSILON), **given_fields}
    assert host.create("EmbLayerNorm", fields=fields).serialized_fields() == fields


# --- Types, shapes, formats


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("fields", "narrow"),
    [({}, "int8"), ({"quantized_type": "int8"}, "int8"), ({"quantized_type": "fp8"}, "float8_e4m3fn")],
)
def test_outputs_in_8_bits(host, dtype, fields, narrow):
    floating, quantized = TensorSpec((2, 7, 768), dtype), TensorSpec((2, 7, 768), narrow)
    both = create(host, output_scale=0.1, outputs="both", **fields)
    assert both.output_specs(specs(dtype)) == [floating, quantized]
    assert both.configure(specs(dtype)) == 0
    both.start()
    assert create(host, output_scale=0.1, **fields).output_specs(specs(dtype)) == [quantized]


@pytest.mark.parametrize("dtype", FLOATS)
def test_factors_of_the_output_in_8_bits(host, dtype):
    plugin = create(host, output_scale=0.1, outputs="both", output_factors=1)
    inputs = [*specs(dtype), TensorSpec((768,), "float32")]
    outputs = plugin.output_specs(inputs)
    assert outputs == [TensorSpec((2, 7, 768), dtype), TensorSpec((2, 7, 768), "int8")]
    assert all(plugin.supports(position, inputs, outputs) for position in range(11))
    assert not plugin.supports(8, [*inputs[:8], TensorSpec((768,), "float16")], outputs)
    assert plugin.configure(inputs) == 0
    plugin.start()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([TensorSpec((768,), "float16")], "output_factors is fp16; expected fp32"),
        ([TensorSpec((767,), "float32")], "output_factors has the shape [767]; expected [768]"),
        ([], "number of inputs: 8, expected 9"),
    ],
)
def test_wrong_factors_are_refused_by_name(host, factors, message):
    with pytest.raises(PluginHostError) as error:
        create(host, output_scale=0.1, output_factors=1).output_specs([*specs(), *factors])
    assert message in str(error.value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_accepted_types(host, dtype):
    plugin = create(host)
    for weight in {dtype, "float32"}:
        assert plugin.output_specs(specs(dtype, weight)) == [TensorSpec((2, 7, 768), dtype)]
        assert plugin.configure(specs(dtype, weight)) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_ids": ((2, 7), "int64")}, "input_ids is int64; expected int32"),
        ({"position_ids": ((2, 7), "float32")}, "position_ids is fp32; expected int32"),
        ({"words": ((9, 768), "int8")}, "the word table is int8; expected fp32, fp16 or bf16"),
        ({"types": ((2, 768), "float32")}, "the type table is fp32; expected the type of the word table, fp16"),
        ({"beta": ((768,), "float32")}, "gamma is fp16, beta is fp32; expected all of them fp16 or all fp32"),
        ({"token_type_ids": ((7,), "int32")}, "token_type_ids has the shape [7]; expected that of input_ids, [2,"),
        ({"position_ids": ((1, 7), "int32")}, "position_ids has the shape [1, 7]; expected that of input_ids"),
        ({"words": ((768,), "float16")}, "the word table has the shape [768]; expected [at least 1, 768]"),
        ({"words": ((0, 768), "float16")}, "the word table has the shape [0, 768]; expected [at least 1, 768]"),
        ({"words": ((9, 0), "float16")}, "the word table has the shape [9, 0]; its last axis must have 1 to"),
        ({"positions": ((9, 767), "float16")}, "the position table has the shape [9, 767]; expected [at least 1,"),
        ({"gamma": ((1, 768), "float16")}, "gamma has the shape [1, 768]; expected [768]"),
        ({"beta": ((767,), "float16")}, "beta has the shape [767]; expected [768]"),
    ],
)  # fmt: skip
def test_wrong_types_and_shapes_are_refused_by_name(host, changed, message):
    with pytest.raises(PluginHostError) as error:
        create(host).output_specs(specs(**changed))
    assert message in str(error.value)


def test_fp32_tables_want_fp32_weights(host):
    with pytest.raises(PluginHostError, match="gamma is fp16, beta is fp16; expected all of them fp32"):
        create(host).output_specs(specs("float32", "float16"))


def test_ids_of_eight_dimensions_are_refused(host):
    with pytest.raises(PluginHostError, match="input_ids has 8 dimensions; expected at most 7"):
        create(host).output_specs(specs(shape=(1,) * 8))


def test_wrong_number_of_inputs_is_refused(host):
    with pytest.raises(PluginHostError, match="number of inputs: 7, expected 8"):
        create(host).output_specs(specs()[:7])


def test_unknown_dimensions_pass_through(host):
    (output,) = create(host).output_specs(specs(shape=(-1, -1)))
    assert output.shape == (-1, -1, 768)


@pytest.mark.parametrize("position", range(9))
def test_only_linear_format_and_the_right_types_are_supported(host, position):
    plugin = create(host)
    tensors = [*specs(), TensorSpec((2, 7, 768), "float16")]
    assert plugin.supports(position, tensors[:8], tensors[8:])
    for other in (TensorSpec(tensors[position].shape, tensors[position].dtype, format=2), TensorSpec((1,), "int8")):
        changed = [*tensors[:position], other, *tensors[position + 1 :]]
        assert not plugin.supports(position, changed[:8], changed[8:])


@given(shape=st.lists(st.integers(0, 50), max_size=7), hidden=st.integers(1, 10_000), dtype=st.sampled_from(FLOATS))
@settings(deadline=None, max_examples=100)
def test_any_shape_is_prepared(host, shape, hidden, dtype):
    (output,), workspace = create(host).prepare(specs(dtype, shape=tuple(shape), hidden=hidden))
    assert output == TensorSpec((*shape, hidden), dtype)
    assert workspace == 0


# --- CUDA errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, where a launch must fail")
@pytest.mark.parametrize("hidden", [768, 33])
def test_cuda_error_is_returned_and_logged(host, hidden):
    with pytest.raises(PluginHostError, match="EmbLayerNorm plugin, enqueue: CUDA error"):
        create(host).enqueue(specs(hidden=hidden), [0] * 8, [0])


def test_no_rows_launch_nothing(host):  # without a GPU any launch would be an error
    create(host).enqueue(specs(shape=(0, 7)), [0] * 8, [0])


# --- The reference


def make_inputs(shape, hidden, dtype, weight_dtype, device, content="normal"):
    """In the order of the plugin's inputs; tables of 50, 20 and 2 rows."""
    sizes = (50, 20, 2)
    words, positions, types = (torch.randn(size, hidden, device=device) for size in sizes)
    if content == "outliers":  # what a few features of trained BERTs do
        words[:, :: max(hidden // 3, 1)] *= 100.0
    elif content == "constant rows":  # variance 0: epsilon alone decides
        words, positions, types = (table[:, :1].expand(-1, hidden) for table in (words, positions, types))
    elif content == "overflow in fp16":
        words, positions = 4e4 + 1e3 * words.clamp(-5, 5), 4e4 + 1e3 * positions.clamp(-5, 5)
    ids = [torch.randint(size, shape, dtype=torch.int32, device=device) for size in (50, 2, 20)]
    tables = [table.to(dtype).contiguous() for table in (words, positions, types)]
    return [*ids, *tables, *(torch.randn(hidden, device=device).to(weight_dtype) for _ in range(2))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_is_pytorchs_embeddings_and_layer_norm(dtype):
    inputs = make_inputs((2, 5), 33, dtype, dtype, "cpu")
    words, types, positions = inputs[0].long(), inputs[1].long(), inputs[2].long()
    total = inputs[3].double()[words] + inputs[4].double()[positions] + inputs[5].double()[types]
    expected = functional.layer_norm(total, (33,), inputs[6].double(), inputs[7].double(), EPSILON)
    ours = reference.REFERENCES["EmbLayerNorm"](*inputs, epsilon=EPSILON)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    exact = reference.emb_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("narrow", ["int8", "fp8"])
def test_reference_gives_both_outputs(narrow):
    inputs = make_inputs((2, 5), 32, torch.float16, torch.float32, "cpu")
    inputs[0][1, 2] = 50  # not in the table
    fields = {"output_scale": 0.02, "quantized_type": narrow}
    y, quantized = reference.REFERENCES["EmbLayerNorm"](*inputs, epsilon=EPSILON, outputs="both", **fields)
    assert (y.dtype, quantized.dtype) == (torch.float16, reference.TYPES[narrow])
    torch.testing.assert_close(y, reference.REFERENCES["EmbLayerNorm"](*inputs, epsilon=EPSILON), equal_nan=True)
    exact = reference.emb_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
    valid = ~exact.isnan()
    assert in_half_steps(quantized[valid], exact[valid] / float(np.float32(0.02))) <= 1.001
    lost = quantized[1, 2].float()
    assert (lost == -128).all() if narrow == "int8" else lost.isnan().all()
    alone = reference.REFERENCES["EmbLayerNorm"](*inputs, epsilon=EPSILON, **fields)
    assert torch.equal(alone.view(torch.uint8), quantized.view(torch.uint8))


def test_reference_multiplies_the_output_in_8_bits_alone():
    inputs, factors = make_inputs((2, 5), 32, torch.float32, torch.float32, "cpu"), torch.rand(32) * 4 + 0.1
    fields = {"epsilon": EPSILON, "output_scale": 0.02, "outputs": "both", "output_factors": 1}
    y, quantized = reference.REFERENCES["EmbLayerNorm"](*inputs, factors, **fields)
    assert torch.equal(y, reference.emb_layer_norm(*inputs, epsilon=EPSILON))
    assert torch.equal(quantized, reference.quantize(y * factors, 0.02))
    wide = reference.compute_in_fp32("EmbLayerNorm", [*inputs, factors], fields)
    assert torch.equal(wide[0], y)
    assert torch.equal(wide[1], y * factors)


OUTSIDE = [(0, 50), (0, -1), (0, 2**31 - 1), (0, -(2**31)), (1, 2), (1, -1), (2, 20), (2, -7)]


@pytest.mark.parametrize(("table", "wrong"), OUTSIDE)
def test_reference_gives_nan_for_an_id_outside_its_table(table, wrong):
    inputs = make_inputs((3, 4), 16, torch.float32, torch.float32, "cpu")
    inputs[table][1, 2] = wrong
    y = reference.emb_layer_norm(*inputs, epsilon=EPSILON)
    assert y[1, 2].isnan().all()
    assert y.isnan().sum() == 16


# --- On a GPU

WIDTHS = (1, 5, 33, 64, 384, 768, 769, 1023, 1024, 2048, 4096, 20000, 40000)
CONTENTS = ("normal", "outliers", "constant rows", "overflow in fp16")


def pytorchs(words, types, positions, word_table, position_table, type_table, gamma, beta):
    """PyTorch's own, in the tables' type."""
    total = (
        functional.embedding(words, word_table)
        + functional.embedding(types, type_table)
        + functional.embedding(positions, position_table)
    )
    return functional.layer_norm(total, total.shape[-1:], gamma.to(total.dtype), beta.to(total.dtype), EPSILON)


def total_of(words, types, positions, word_table, position_table, type_table, gamma, beta):
    """What is normalised, in float64."""
    pairs = ((words, word_table), (types, type_table), (positions, position_table))
    return torch.stack([table.double()[ids.long()] for ids, table in pairs]).sum(0)


@needs_gpu
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_results(host, dtype, weight_dtype, content):
    torch.manual_seed(0)
    plugin = create(host)
    for hidden, shape in itertools.product(WIDTHS, ((0,), (1,), (7,), (3, 100))):
        inputs = make_inputs(shape, hidden, dtype, weight_dtype, "cuda", content)
        exact = reference.emb_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
        (found,) = run_guarded(plugin, inputs)
        assert found.dtype == dtype
        if found.numel():
            assert_as_good_as_pytorch(found, exact, pytorchs(*inputs), total_of(*inputs))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_addresses_that_vectors_cannot_be_read_from(host, dtype):
    inputs = make_inputs((7,), 768, dtype, dtype, "cuda")
    exact = reference.emb_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
    (found,) = run_guarded(create(host), inputs, shift=4)  # ids must be aligned to 4 bytes all the same
    assert_as_good_as_pytorch(found, exact, pytorchs(*inputs), total_of(*inputs))


@needs_gpu
@pytest.mark.parametrize(("table", "wrong"), OUTSIDE)
@pytest.mark.parametrize("hidden", [33, 64, 768])
def test_an_id_outside_its_table_makes_its_row_nan(host, table, wrong, hidden):
    inputs = make_inputs((3, 4), hidden, torch.float16, torch.float16, "cuda")
    (expected,) = run_guarded(create(host), inputs)
    inputs[table][1, 2] = wrong
    (found,) = run_guarded(create(host), inputs)
    assert found[1, 2].isnan().all()
    found[1, 2] = expected[1, 2]
    assert torch.equal(found, expected)


@needs_gpu
@given(
    rows=st.integers(1, 300),
    hidden=st.integers(1, 5000),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(deadline=None, max_examples=100)
def test_random_shapes(host, rows, hidden, dtype):
    inputs = make_inputs((rows,), hidden, dtype, dtype, "cuda")
    exact = reference.emb_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
    (found,) = run_guarded(create(host), inputs)
    assert_as_good_as_pytorch(found, exact, pytorchs(*inputs), total_of(*inputs))


@needs_gpu
def test_in_a_cuda_graph_it_waits_for_its_ids(host):
    """The kernel is launched while the one before it still runs; here that one writes the ids."""
    inputs = make_inputs((2048,), 768, torch.float16, torch.float16, "cuda")
    plugin, ids = create(host), inputs[0].clone()
    (expected,) = plugin.run_torch(inputs)
    inputs[0].zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inputs[0].copy_(ids)
        (found,) = plugin.run_torch(inputs)
        inputs[0].zero_()
    for _ in range(10):
        found.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)


@needs_gpu
@pytest.mark.parametrize("factors", [0, 1])
@pytest.mark.parametrize("narrow", ["int8", "fp8"])
@pytest.mark.parametrize("outputs", ["y", "both"])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float32, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_results_in_8_bits(host, dtype, weight_dtype, outputs, narrow, factors):
    torch.manual_seed(0)
    plugin = create(host, output_scale=0.02, outputs=outputs, quantized_type=narrow, output_factors=factors)
    for hidden, shape in itertools.product(WIDTHS[3:], ((0,), (1,), (7,), (3, 100))):
        inputs = make_inputs(shape, hidden, dtype, weight_dtype, "cuda")
        exact = reference.emb_layer_norm(*inputs, epsilon=EPSILON, dtype=torch.float64)
        smoothing = torch.rand(hidden, device="cuda") * 2 + 0.05
        found = run_guarded(plugin, [*inputs, smoothing] if factors else inputs)
        assert [tensor.dtype for tensor in found] == [dtype] * (outputs == "both") + [reference.TYPES[narrow]]
        if exact.numel():
            smoothed = exact * smoothing.double() if factors else exact
            assert in_half_steps(found[-1], smoothed / float(np.float32(0.02))) <= 1.04
            if outputs == "both":
                (alone,) = run_guarded(create(host), inputs)
                assert torch.equal(found[0], alone)


@needs_gpu
@pytest.mark.parametrize("narrow", ["int8", "fp8"])
@pytest.mark.parametrize("hidden", [33, 64, 768])
def test_in_8_bits_an_id_outside_its_table_changes_its_row_only(host, hidden, narrow):
    plugin = create(host, output_scale=0.02, quantized_type=narrow)
    inputs = make_inputs((3, 4), hidden, torch.float16, torch.float16, "cuda")
    (expected,) = run_guarded(plugin, inputs)
    inputs[0][1, 2] = 50
    (found,) = run_guarded(plugin, inputs)
    lost = found[1, 2].float()
    assert (lost == -128).all() if narrow == "int8" else lost.isnan().all()
    found[1, 2] = expected[1, 2]
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
