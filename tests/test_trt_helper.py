"""TrtNetworkHelper's layers against NumPy and PyTorch in fp64, its errors, and what is checked before a plan runs."""

import gc
import itertools
import math
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_trt import plan as plan_module
from bert_trt import tensorrt_product
from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES, convert_weight, element_type, quantize_weight
from bert_trt.inference import Latency, cast_input, check_in_profile
from bert_trt.model_files import LENGTHS_NAME
from bert_trt.network import NetworkContents
from bert_trt.network_runner import NetworkRunner, read_layer
from bert_trt.options import SequenceRange
from bert_trt.plan import (
    BuildOptions,
    PlanError,
    build_plan,
    check_plan,
    create_builder,
    info_path,
    profile_shapes,
    read_info,
    set_compute_capabilities,
)
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt
from bert_trt.tensors import as_tuple
from trt_helper import LayerError, TrtNetworkHelper, has_packed_attention

FLOAT, HALF, BF16 = trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16
# A few units in the last place of each type, relative to the largest value of the result.
ROUNDING = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 1.6e-2}


class OneLayer:
    """A network with inputs x, y ... and whatever is added to it."""

    def __init__(self, precision: str = "fp32") -> None:
        self.log = TrtLog()
        self.builder, self.network = create_builder(self.log)
        self.helper: Any = TrtNetworkHelper(self.network, self.log, ELEMENT_TYPES[precision].trt)
        self.inputs: dict[str, np.ndarray] = {}

    def input(self, values, dtype=None, dynamic=()):
        name = f"x{len(self.inputs)}"
        self.inputs[name] = values
        shape = [-1 if axis in dynamic else length for axis, length in enumerate(values.shape)]
        return self.helper.addInput(name, dtype or self.helper.dtype, shape)

    def run(self, output) -> np.ndarray:
        self.helper.markOutput(output, "result")
        runner = NetworkRunner(self.network, contents=NetworkContents(self.helper.weights))
        return runner.run(self.inputs)["result"].numpy().astype(np.float64)


def random(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def close(values, reference, precision="fp32", factor=1.0):
    """Within rounding of the type, relative to the largest value; NaN is not close."""
    assert values.shape == reference.shape
    error = np.abs(values - reference).max(initial=0.0)
    assert error <= factor * ROUNDING[precision] * max(1e-30, np.abs(reference).max(initial=0.0)), error


def as_stored(values, precision):
    """What a value is after rounding to the type, in fp64."""
    types: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
    return values.astype(types[precision]).astype(np.float64)


PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
sizes = st.integers(1, 40)


# --- layers -----------------------------------------------------------------------------------------------


@PRECISIONS
@settings(max_examples=15, deadline=None)
@given(length=sizes, width_in=sizes, width_out=sizes)
def test_linear(precision, length, width_in, width_out):
    x, weight, bias = random(1, length, width_in), random(width_out, width_in, seed=1), random(width_out, seed=2)
    net = OneLayer(precision)
    output = net.run(net.helper.addLinear(net.input(x, dynamic=(1,)), weight, bias, "dense"))
    reference = as_stored(x, precision) @ as_stored(weight, precision).T + as_stored(bias, precision)
    close(output, reference, precision, factor=2)


@PRECISIONS
@settings(max_examples=15, deadline=None)
@given(heads=st.integers(1, 4), rows=sizes, inner=sizes, columns=sizes, ta=st.booleans(), tb=st.booleans())
def test_mat_mul(precision, heads, rows, inner, columns, ta, tb):
    a = random(1, heads, *((inner, rows) if ta else (rows, inner)))
    b = random(1, heads, *((columns, inner) if tb else (inner, columns)), seed=1)
    net = OneLayer(precision)
    output = net.run(net.helper.addMatMul(net.input(a), net.input(b), "scores", ta, tb))
    wide_a, wide_b = as_stored(a, precision), as_stored(b, precision)
    reference = (wide_a.swapaxes(-1, -2) if ta else wide_a) @ (wide_b.swapaxes(-1, -2) if tb else wide_b)
    close(output, reference, precision)


@settings(max_examples=15, deadline=None)
@given(rows=sizes, width=sizes, length=sizes)
def test_embedding(rows, width, length):
    table = random(rows, width)
    ids = np.random.default_rng(0).integers(0, rows, (1, length)).astype(np.int32)
    net = OneLayer()
    tensor = net.input(ids, trt.DataType.INT32, dynamic=(1,))
    output = net.run(net.helper.addEmbedding(tensor, net.helper.addConstant(table, "table"), "words"))
    np.testing.assert_array_equal(output, table[ids].astype(np.float64))


def exact_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@PRECISIONS
@pytest.mark.parametrize(("kind", "formula"), [("erf", exact_gelu), ("tanh", tanh_gelu), ("decomposed", exact_gelu)])
def test_gelu(precision, kind, formula):
    x = np.linspace(-8, 8, 257, dtype=np.float32).reshape(1, 1, 257)  # negative side: cancellation in 1 + erf
    net = OneLayer(precision)
    output = net.run(net.helper.addGELU(net.input(x), "act", kind))
    close(output, formula(as_stored(x, precision)), precision)


def test_gelu_erf_and_tanh_differ():
    assert np.abs(exact_gelu(np.linspace(-3, 3, 99)) - tanh_gelu(np.linspace(-3, 3, 99))).max() > 1e-4


def test_unknown_gelu_is_an_error():
    net = OneLayer()
    with pytest.raises(ValueError, match="'swish'; expected one of erf, tanh, decomposed"):
        net.helper.addGELU(net.input(random(1, 1, 4)), "act", "swish")


HARD_ROWS = {
    "ordinary": random(1, 5, 33),
    "one element wide": random(1, 5, 1),
    "a constant row": np.full((1, 2, 768), 3.0, np.float32),  # variance 0: only epsilon keeps it finite
    "a planted outlier": np.concatenate([random(1, 4, 767), np.full((1, 4, 1), 500.0, np.float32)], axis=-1),
    "a large mean": random(1, 4, 769, scale=1e-2) + 100.0,  # E[x²] − mean² loses all digits here
    "a small variance": random(1, 4, 64, scale=1e-5),  # 1e-10: far above an epsilon of 1e-12, far below one of 1e-6
    "values near fp16's largest": random(1, 4, 64, scale=15000.0),  # squares overflow fp16
}


@PRECISIONS
@pytest.mark.parametrize("case", HARD_ROWS)
def test_layer_norm(precision, case):
    x = HARD_ROWS[case]
    gamma, beta = random(x.shape[-1], seed=1), random(x.shape[-1], seed=2)
    net = OneLayer(precision)
    output = net.run(net.helper.addLayerNorm(net.input(x), gamma, beta, 1e-12, "LayerNorm"))
    wide = torch.from_numpy(as_stored(x, precision))
    parameters = (torch.from_numpy(values).double() for values in (gamma, beta))
    reference = torch.nn.functional.layer_norm(wide, x.shape[-1:], *parameters, eps=1e-12).numpy()
    # fp32 statistics of a mean of 100 with deviation 1e-2: the input itself holds the deviation to 4e-6 / 1e-2
    factor = 200 if case == "a large mean" and precision == "fp32" else 1
    close(output, reference, precision, factor)


@PRECISIONS
@pytest.mark.parametrize("epsilon", [1e-12, 1e-7, 1e-5])
def test_layer_norm_has_the_epsilon_that_was_asked_for(precision, epsilon):
    net = OneLayer(precision)
    ones = np.ones(8, np.float32)
    net.helper.markOutput(net.helper.addLayerNorm(net.input(random(1, 2, 8)), ones, ones, epsilon, "n"), "y")
    layers = dict(read_layer(net.network, index) for index in range(net.network.num_layers))
    assert layers["NORMALIZATION"].epsilon == np.float32(epsilon)


@PRECISIONS
def test_softmax_of_a_long_row_sums_to_one(precision):
    x = random(1, 2, 3, 512, scale=3)
    net = OneLayer(precision)
    output = net.run(net.helper.addSoftmax(net.input(x), "probabilities"))
    wide = as_stored(x, precision)
    reference = np.exp(wide - wide.max(-1, keepdims=True))
    reference /= reference.sum(-1, keepdims=True)
    close(output, reference, precision)
    np.testing.assert_allclose(output.sum(-1), 1.0, atol=512 * 2**-12 * 2e-2 if precision != "fp32" else 1e-5)


def test_softmax_along_another_axis():
    x = random(2, 3, 4)
    net = OneLayer()
    output = net.run(net.helper.addSoftmax(net.input(x), "p", axis=1))
    np.testing.assert_allclose(output, torch.from_numpy(x).double().softmax(1).numpy(), rtol=1e-5)


def attention_loop(query, key, value, mask=None):
    """Attention in fp64, one query after another: (B, N, S, D) -> the same. ``mask`` (B, N, S, S) is true, or finite
    and added, where a query may look."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    output = np.zeros_like(query)
    for batch, head, row in np.ndindex(*query.shape[:3]):
        scores = np.array([np.dot(query[batch, head, row], one) for one in key[batch, head]])
        if mask is not None:
            seen = np.broadcast_to(mask, (*query.shape[:3], key.shape[2]))[batch, head, row]
            scores = np.where(seen, scores, -np.inf) if seen.dtype == bool else scores + seen
        weights = np.exp(scores - scores.max())
        output[batch, head, row] = weights @ value[batch, head] / weights.sum()
    return output


def packed_attention_loop(query, key, value, lengths):
    """The same for sequences one after another: (T, N, D) -> the same."""
    ends = np.cumsum([0, *lengths])
    parts = []
    for begin, end in itertools.pairwise(ends):
        q, k, v = (array[None, begin:end].swapaxes(1, 2) for array in (query, key, value))  # each (1, N, S, D)
        parts.append(attention_loop(q, k, v)[0].swapaxes(0, 1))
    return np.concatenate(parts)


def random_mask(seed, *shape):
    """Every query sees something, one sees nothing but one key, one sees everything."""
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[..., np.arange(shape[-1]), np.arange(shape[-1])] = True
    mask[..., 0, :] = np.arange(shape[-1]) == shape[-1] - 1
    mask[..., -1, :] = True
    return mask


small = st.integers(1, 9)


@PRECISIONS
@pytest.mark.parametrize("masked", [False, True])
@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 3), length=small, width=small, shared=st.booleans(), seed=small)
def test_tensorrts_attention(precision, masked, batch, heads, length, width, shared, seed):
    q, k, v = (random(batch, heads, length, width, seed=seed + place) for place in range(3))
    mask = random_mask(seed, 1 if shared else batch, 1 if shared else heads, length, length) if masked else None
    net = OneLayer(precision)
    tensors = [net.input(values, dynamic=(0, 2)) for values in (q, k, v)]
    given_mask = None if mask is None else net.input(mask, trt.DataType.BOOL, dynamic=(2, 3))
    output = net.run(net.helper.addAttention(*tensors, "attention", mask=given_mask))
    q, k, v = (as_stored(values, precision) for values in (q, k, v))
    close(output, attention_loop(q, k, v, mask), precision)


@PRECISIONS
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(small, min_size=1, max_size=5), heads=st.integers(1, 3), width=small, seed=small)
def test_tensorrts_attention_in_packed_form(precision, lengths, heads, width, seed):
    q, k, v = (random(sum(lengths), heads, width, seed=seed + place) for place in range(3))
    net = OneLayer(precision)
    tensors = [net.input(values, dynamic=(0,)) for values in (q, k, v)]
    ends = net.input(np.cumsum([0, *lengths]).astype(np.int32), trt.DataType.INT32, dynamic=(0,))
    output = net.run(net.helper.addAttention(*tensors, "attention", cu_seqlens=ends))
    q, k, v = (as_stored(values, precision) for values in (q, k, v))
    close(output, packed_attention_loop(q, k, v, lengths), precision)


@PRECISIONS
def test_tensorrts_attention_of_scores_beyond_fp16(precision):
    """Whole numbers, so that the scores, up to 640000, are exact in fp32: what is left is softmax's own rounding."""
    whole = np.random.default_rng(0)
    q, k = (whole.integers(-100, 101, (2, 2, 7, 64)).astype(np.float32) for _ in range(2))
    k[0, 0] = k[0, 0, :1]  # all scores of a query equal
    v = random(2, 2, 7, 64)
    net = OneLayer(precision)
    tensors = [net.input(values) for values in (q, k, v)]
    output = net.run(net.helper.addAttention(*tensors, "attention"))
    close(output, attention_loop(q, k, as_stored(v, precision)), precision)


def test_relu_tanh_log_add_scale():
    x, y = np.abs(random(1, 3, 5)) + 0.1, random(1, 1, 5, seed=1)
    cases = {
        "relu": (lambda h, a, b: h.addReLU(b, "n"), np.maximum(y, 0).astype(np.float64)),
        "tanh": (lambda h, a, b: h.addTanh(a, "n"), np.tanh(x.astype(np.float64))),
        "log": (lambda h, a, b: h.addLog(a, "n"), np.log(x.astype(np.float64))),
        "add": (lambda h, a, b: h.addAdd(a, b, "n"), x.astype(np.float64) + y),
        "scale": (lambda h, a, b: h.addScale(a, -2.5, "n"), -2.5 * x.astype(np.float64)),
    }
    for add, reference in cases.values():
        net = OneLayer()
        close(net.run(add(net.helper, net.input(x), net.input(y))), reference)


def test_shuffle_transposes_reshapes_and_transposes():
    x = random(1, 6, 8)
    net = OneLayer()
    tensor = net.input(x, dynamic=(1,))
    heads = net.helper.addShuffle(tensor, "heads", shape=(0, -1, 2, 4), second_transpose=(0, 2, 1, 3))
    back = net.helper.addShuffle(heads, "back", first_transpose=(0, 2, 1, 3), shape=(0, -1, 8))
    wide = net.helper.addReshape(back, (0, -1, 4), "wide")
    np.testing.assert_array_equal(net.run(wide), x.reshape(1, 12, 4))


def test_every_layer_and_its_output_are_named():
    net = OneLayer("fp16")
    x = net.input(random(1, 4, 8))
    net.helper.addLayerNorm(net.helper.addLinear(x, random(8, 8), random(8), "m"), random(8), random(8), 1e-12, "n")
    layers = [net.network.get_layer(index) for index in range(net.network.num_layers)]
    assert [layer.name for layer in layers] == [layer.get_output(0).name for layer in layers]
    assert [layer.name for layer in layers] == [
        "m.weight", "m.product", "m.bias", "m", "n.input_fp32", "n.weight", "n.bias", "n.fp32", "n",
    ]  # fmt: skip


def test_outputs_are_fp32_whatever_the_precision():
    net = OneLayer("fp16")
    net.helper.markOutput(net.helper.addReLU(net.input(random(1, 2)), "act"), "logit")
    assert net.network.get_output(0).name == "logit"
    assert net.network.get_output(0).dtype == FLOAT


# --- errors while the network is assembled ----------------------------------------------------------------


def test_shapes_that_do_not_fit_are_an_error_with_names_shapes_and_tensorrts_words():
    net = OneLayer()
    with pytest.raises(LayerError) as error:
        net.helper.addLinear(net.input(random(1, 4, 8)), random(3, 9), random(3), "bert.pooler.dense")
    message = str(error.value)
    assert "'bert.pooler.dense.product'" in message
    assert "x0 FLOAT [1, 4, 8]" in message
    assert "bert.pooler.dense.weight FLOAT [1, 3, 9]" in message
    assert "TensorRT: " in message
    assert "CUDA driver" not in message


def test_types_that_do_not_fit_are_an_error():
    net = OneLayer()
    x, y = net.input(random(1, 4), FLOAT), net.input(random(1, 4), HALF)
    with pytest.raises(LayerError, match=r"'sum'.*x0 FLOAT \[1, 4\]; x1 HALF \[1, 4\]"):
        net.helper.addAdd(x, y, "sum")


def test_a_reshape_that_cannot_be_is_an_error():
    net = OneLayer()
    with pytest.raises(LayerError, match="'heads'"):
        net.helper.addReshape(net.input(random(1, 4, 8)), (0, -1, 3, 5), "heads")


def attention_inputs(net, *shape):
    return [net.input(random(*shape)) for _ in range(3)]


def test_attention_of_wrong_shape_is_an_error():
    net = OneLayer()
    with pytest.raises(LayerError, match=r"layer 'own' is wrong\. Inputs: x0 FLOAT \[2, 4, 8\]; .*must be 4D"):
        net.helper.addAttention(*attention_inputs(net, 2, 4, 8), "own")


def test_a_mask_that_does_not_fit_is_an_error():
    net = OneLayer()
    tensors = attention_inputs(net, 1, 2, 4, 8)
    mask = net.input(np.ones((1, 1, 4, 5), bool), trt.DataType.BOOL)
    with pytest.raises(LayerError, match=r"layer 'own' is wrong\. .*x3 BOOL \[1, 1, 4, 5\]\. .*broadcastable"):
        net.helper.addAttention(*tensors, "own", mask=mask)


def test_lengths_of_the_wrong_type_are_an_error():
    net = OneLayer()
    tensors = attention_inputs(net, 4, 2, 8)
    lengths = net.input(np.array([0, 4]), trt.DataType.INT64)
    with pytest.raises(LayerError, match=r"layer 'own' refuses x3 INT64 \[2\]\. TensorRT: .*INT32"):
        net.helper.addAttention(*tensors, "own", cu_seqlens=lengths)


def test_a_tensorrt_without_attention_is_an_error_that_says_which_has_it(monkeypatch):
    """TensorRT 10.13."""
    for name in ("add_attention", "add_attention_v2"):
        monkeypatch.delattr(trt.INetworkDefinition, name)
    net = OneLayer()
    with pytest.raises(UserError, match=r"has no attention layer of its own .*10\.14 on, .*--fusion none or plugins"):
        net.helper.addAttention(*attention_inputs(net, 1, 2, 4, 8), "own")


class EarlierAttention:
    """That of TensorRT 10.14 to 10.16, which knows no forms."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        if name in ("query_form", "key_value_form", "query_lengths", "key_value_lengths"):
            raise AttributeError(name)
        return getattr(self.real, name)


def test_tensorrt_10_14_has_attention_but_not_in_packed_form(monkeypatch):
    definition: Any = trt.INetworkDefinition
    add = definition.add_attention
    monkeypatch.delattr(trt.INetworkDefinition, "add_attention_v2")
    net = OneLayer()
    q, k, v = (random(1, 2, 4, 8, seed=seed) for seed in range(3))
    tensors = [net.input(values) for values in (q, k, v)]
    close(net.run(net.helper.addAttention(*tensors, "own")), attention_loop(q, k, v))
    monkeypatch.setattr(
        trt.INetworkDefinition, "add_attention", lambda *given, causal: EarlierAttention(add(*given, causal))
    )
    lengths = net.input(np.array([0, 4]), trt.DataType.INT32)
    with pytest.raises(UserError, match=r"has no attention in packed form; TensorRT has it from 11\.0 on"):
        net.helper.addAttention(*tensors, "own", cu_seqlens=lengths)


@pytest.mark.parametrize("packed", [False, True])
@PRECISIONS
def test_whether_packed_attention_can_run_is_what_tensorrt_builds(precision, packed, tmp_path):
    """RTX 1.7.1 takes the packed form and then has no kernel; padded it builds every type, with several kernels if
    need be. This fails when a TensorRT can more."""
    net = OneLayer(precision)
    if packed:
        lengths = net.helper.addInput(LENGTHS_NAME, trt.DataType.INT32, (2,))
        y = net.helper.addAttention(*attention_inputs(net, 4, 2, 64), "own", cu_seqlens=lengths)
    else:
        y = net.helper.addAttention(*attention_inputs(net, 1, 2, 4, 64), "own")
    net.helper.markOutput(y, "y")
    options = BuildOptions(SequenceRange(1, 4, 4))
    if packed and not has_packed_attention(ELEMENT_TYPES[precision].trt):
        with pytest.raises(UserError, match="no fused kernel is available"):
            build_plan(net.builder, net.network, net.log, options, tmp_path / "p.plan")
    else:
        assert build_plan(net.builder, net.network, net.log, options, tmp_path / "p.plan").num_bytes > 0


def test_an_input_of_the_same_name_is_an_error():
    net = OneLayer()
    net.helper.addInput("ids", trt.DataType.INT32, (1, -1))
    with pytest.raises(LayerError, match="input 'ids'"):
        net.helper.addInput("ids", trt.DataType.INT32, (1, -1))


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [(65504.0, HALF, True), (65519.9, HALF, True), (65520.0, HALF, False), (-7e4, HALF, False), (3e38, BF16, True)],
)
def test_convert_weight_refuses_what_would_become_infinite(value, dtype, fits):
    weight = np.array([0.0, value, 1.0], np.float32)
    if fits:
        assert np.isfinite(convert_weight(weight, dtype, "w").astype(np.float32)).all()
    else:
        with pytest.raises(UserError, match=r"weight 'w' has the value .* the largest of HALF \(65504\).*bf16"):
            convert_weight(weight, dtype, "w")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [FLOAT, HALF, BF16])
def test_convert_weight_refuses_what_is_not_finite(value, dtype):
    with pytest.raises(UserError, match="weight 'w' has values that are not finite"):
        convert_weight(np.array([1.0, value], np.float32), dtype, "w")


def test_convert_weight_does_not_copy_without_need():
    weight = random(4, 4)
    assert convert_weight(weight, FLOAT, "w") is weight


def test_constants_of_equal_address_do_not_mix():
    """Temporary arrays may get the address of an earlier one: each constant must keep its own values."""
    net = OneLayer("fp16")
    x = net.input(np.ones((1, 1), np.float32))
    for factor in range(2, 40):
        x = net.helper.addScale(x, 1 + 1 / factor, f"scale{factor}")
    assert net.run(x)[0, 0] == pytest.approx(np.prod([1 + 1 / factor for factor in range(2, 40)]), rel=2e-2)


def test_tied_weights_are_stored_once():
    net = OneLayer("fp16")
    table = random(10, 4)
    net.helper.addConstant(table, "embedding")
    net.helper.addConstant(table, "decoder", shape=(1, 10, 4))
    assert net.helper.weights["embedding"] is net.helper.weights["decoder"]


class WatchedNetwork:
    """A network of which one method is watched, and another may be missing, as in TensorRT 10.13."""

    def __init__(self, network, lacks: tuple[str, ...] = ()) -> None:
        self.network, self.lacks, self.called = network, lacks, []

    def __getattr__(self, name):
        if name in self.lacks:
            raise AttributeError(name)
        if name.startswith("add_normalization"):
            self.called.append(name)
        return getattr(self.network, name)


def normalization_plan(path, lacks=()):
    net = OneLayer("fp16")
    x = net.input(random(1, 3, 8).astype(np.float16), dynamic=(1,))
    watched = net.helper.network = WatchedNetwork(net.network, lacks)
    net.helper.markOutput(net.helper.addLayerNorm(x, random(8) + 1, random(8), 1e-12, "norm"), "y")
    build(net, path)
    return watched.called[-1], path.read_bytes()


@pytest.mark.skipif(not hasattr(trt.INetworkDefinition, "add_normalization_v2"), reason="TensorRT before 10.15")
def test_layer_norm_takes_the_newer_call_where_there_is_one(tmp_path):
    newer, plan = normalization_plan(tmp_path / "newer.plan")
    older, same = normalization_plan(tmp_path / "older.plan", ("add_normalization_v2",))
    assert (newer, older) == ("add_normalization_v2", "add_normalization")
    assert plan == same


# --- building ---------------------------------------------------------------------------------------------


def small_network(log=None):
    net = OneLayer()
    x = net.input(random(1, 3, 8), dynamic=(1,))
    net.helper.markOutput(net.helper.addLinear(x, random(4, 8), random(4), "dense"), "y")
    return net


def build(net, path, **options):
    return build_plan(net.builder, net.network, net.log, BuildOptions(SequenceRange(1, 2, 8), **options), path)


def test_build_plan_writes_plan_and_description(tmp_path):
    info = build(small_network(), tmp_path / "p.plan")
    assert info.num_bytes == (tmp_path / "p.plan").stat().st_size > 0
    assert info.profile == {"x0": [[1, 1, 8], [1, 2, 8], [1, 8, 8]]}
    assert f"{info.product} {info.version}" == tensorrt_product.describe()
    assert len(check_plan(tmp_path / "p.plan")) == info.num_bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.plan", "p.plan.json"]


def test_a_failed_build_leaves_the_old_plan(tmp_path):
    (tmp_path / "p.plan").write_bytes(b"old")
    net = OneLayer()
    net.helper.addReLU(net.input(random(1, 3, 8), dynamic=(1,)), "act")  # no output marked
    with pytest.raises(UserError, match=r"TensorRT could not build the plan: .*[Oo]utput"):
        build(net, tmp_path / "p.plan")
    assert [path.name for path in tmp_path.iterdir()] == ["p.plan"]
    assert (tmp_path / "p.plan").read_bytes() == b"old"


def test_a_plan_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/p.plan: .*create the folder"):
        build(small_network(), tmp_path / "nowhere" / "p.plan")


@pytest.mark.skipif(not tensorrt_product.IS_RTX, reason="only tensorrt_rtx builds for other GPUs")
def test_compute_capability_is_a_real_target(tmp_path):
    build(small_network(), tmp_path / "all.plan")
    build(small_network(), tmp_path / "one.plan", compute_capabilities=["8.9"])
    assert (tmp_path / "all.plan").read_bytes() != (tmp_path / "one.plan").read_bytes()


@pytest.mark.skipif(not tensorrt_product.IS_RTX, reason="only tensorrt_rtx builds for other GPUs")
def test_unknown_compute_capability_names_those_that_are_known():
    net = small_network()
    with pytest.raises(UserError, match=r"--compute-capability 3\.5: not a target .*8\.6, 8\.9"):
        set_compute_capabilities(net.builder.create_builder_config(), ["3.5"])


def test_compute_capability_is_refused_by_the_full_product(monkeypatch):
    monkeypatch.setattr("bert_trt.plan.IS_RTX", False)
    with pytest.raises(UserError, match="builds for the GPU of this machine only; leave the option out"):
        set_compute_capabilities(small_network().builder.create_builder_config(), ["8.6"])


class EmptyBuilder:
    """Says that it has built, and writes nothing."""

    def __init__(self, builder):
        self._builder = builder

    def __getattr__(self, name):
        return getattr(self._builder, name)

    def build_serialized_network_to_stream(self, network, config, writer):
        return True


def test_a_plan_of_no_bytes_is_an_error_and_leaves_the_old_plan(tmp_path):
    (tmp_path / "p.plan").write_bytes(b"old")
    net: Any = small_network()
    stand_in: Any = EmptyBuilder(net.builder)
    options = BuildOptions(SequenceRange(1, 4, 8))
    with pytest.raises(UserError, match=r"built the plan .*p\.plan, but wrote 0 bytes: .*; build it again"):
        plan_module.build_plan(stand_in, net.network, net.log, options, tmp_path / "p.plan")
    assert (tmp_path / "p.plan").read_bytes() == b"old"


class TimingConfig:
    """The part of IBuilderConfig that has to do with timings. It takes only its own cache, or an empty one."""

    GOOD = b"timings of this GPU"

    def __init__(self, refusal: str) -> None:
        self.refusal = refusal
        self.taken: bytes | None = None

    def create_timing_cache(self, timings):
        if timings in (b"", self.GOOD):
            return timings
        if self.refusal == "create raises":
            raise TypeError("incompatible function arguments")
        return None if self.refusal == "create returns None" else timings

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        if cache is None:
            raise TypeError("incompatible function arguments")
        if cache in (b"", self.GOOD):
            self.taken = cache
            return True
        if self.refusal == "set raises":
            raise RuntimeError("Timing cache is damaged")
        return False

    def get_timing_cache(self):
        return None if self.taken is None else self

    def serialize(self):
        return b"timings of this build"


REFUSALS = ["create returns None", "create raises", "set returns False", "set raises"]


@pytest.fixture
def full_product(monkeypatch):
    monkeypatch.setattr(plan_module, "IS_RTX", False)  # RTX has no use for timings when it builds


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_timing_cache_of_another_version_or_damaged_means_a_fresh_one(full_product, tmp_path, refusal):
    path = tmp_path / "timing.cache"
    path.write_bytes(b"of another version")
    config: Any = TimingConfig(refusal)
    with plan_module.timing_cache(config, path):
        assert config.taken == b""
    assert path.read_bytes() == b"timings of this build"


@pytest.mark.parametrize("before", [None, TimingConfig.GOOD])
def test_a_good_timing_cache_is_used(full_product, tmp_path, before):
    path = tmp_path / "timing.cache"
    if before is not None:
        path.write_bytes(before)
    config: Any = TimingConfig("create returns None")
    with plan_module.timing_cache(config, path):
        assert config.taken == (before or b"")
    assert path.read_bytes() == b"timings of this build"


def test_a_folder_in_the_place_of_the_timing_cache_costs_no_build(full_product, tmp_path, capsys):
    (tmp_path / "timing.cache").mkdir()
    config: Any = TimingConfig("create returns None")
    with plan_module.timing_cache(config, tmp_path / "timing.cache"):
        assert config.taken == b""
    told = capsys.readouterr().err
    assert "cannot read the timing cache" in told
    assert "the timing cache is not kept: cannot write" in told


@pytest.mark.parametrize("method", ["create_timing_cache", "get_timing_cache", "serialize"])
def test_a_builder_that_has_no_timing_cache_builds_without(full_product, tmp_path, capsys, monkeypatch, method):
    config: Any = TimingConfig("create returns None")
    monkeypatch.setattr(config, method, lambda *_timings: None)
    with plan_module.timing_cache(config, tmp_path / "timing.cache"):
        pass
    assert "TensorRT offers no timing cache" in capsys.readouterr().err
    assert not (tmp_path / "timing.cache").exists()


# --- checks before a plan is executed ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "p.plan"
    build(small_network(), path)
    return path


@pytest.fixture
def plan(good_plan, tmp_path):
    for path in (good_plan, info_path(good_plan)):
        shutil.copy(path, tmp_path)
    return tmp_path / good_plan.name


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_anywhere_is_found(good_plan, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copy(info_path(good_plan), folder)
    content = bytearray(good_plan.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "p.plan").write_bytes(content)
    with pytest.raises(PlanError, match=r"p\.plan .*is corrupt or truncated; build it again"):
        check_plan(folder / "p.plan")


def test_a_truncated_plan_is_found(plan):
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(PlanError, match="corrupt or truncated"):
        check_plan(plan)


def test_an_empty_plan_is_found(plan):
    plan.write_bytes(b"")
    with pytest.raises(PlanError, match=r"p\.plan is empty; build it again"):
        check_plan(plan)


def test_a_missing_plan_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"cannot read the plan .*none\.plan: No such file.*builder\.py"):
        check_plan(tmp_path / "none.plan")


def test_a_plan_of_another_version_says_which(plan):
    text = info_path(plan).read_text().replace(tensorrt_product.VERSION, "9.9.9")
    info_path(plan).write_text(text)
    with pytest.raises(PlanError, match=r"built by \w+ 9\.9\.9, but this is .*build it again"):
        check_plan(plan)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"product": 1}', "\xff"])
def test_an_unreadable_description_is_an_error(plan, text):
    info_path(plan).write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match=r"p\.plan\.json is not readable"):
        check_plan(plan)


@pytest.mark.parametrize("shape", [(1, 0), (1, 9), (2, 5), (1, 5, 1), ()])
def test_shapes_outside_the_profile_are_named(shape):
    with pytest.raises(UserError, match=r"input 'ids' is \[.*outside the plan's profile \[1, 1\] to \[1, 8\]"):
        check_in_profile("ids", shape, [[1, 1], [1, 4], [1, 8]])


def test_shapes_at_the_profiles_ends_are_inside():
    for length in (1, 8):
        check_in_profile("ids", (1, length), [[1, 1], [1, 4], [1, 8]])


def test_cast_input_refuses_ids_that_change():
    np.testing.assert_array_equal(cast_input("ids", np.array([1, 2**31 - 1]), np.int32), [1, 2**31 - 1])
    with pytest.raises(UserError, match="input 'ids' has values that do not fit int32"):
        cast_input("ids", np.array([2**31]), np.int32)


def test_latency_percentiles():
    times = Latency.of(list(range(1, 101)))
    assert (times.runs, times.median) == (100, 50.5)
    assert times.p95 == pytest.approx(np.percentile(range(1, 101), 95))
    assert times.p99 == pytest.approx(np.percentile(range(1, 101), 99))


def test_sequence_range_beyond_the_position_table():
    with pytest.raises(UserError, match="maximum 600 is more than the 512 positions of the model; name at most 512"):
        SequenceRange(1, 8, 600).check(512)


def test_messages_reach_the_newest_log_after_older_ones_are_gone():
    """TensorRT keeps the first logger of the process for good; it must never be a thing that dies."""
    for _ in range(3):
        net = OneLayer()
        x, y = net.input(random(1, 4), FLOAT), net.input(random(1, 4), HALF)
        with pytest.raises(LayerError, match=r"TensorRT: .*[Tt]ype"):
            net.helper.addAdd(x, y, "sum")
        del net, x, y
        gc.collect()


# --- int8 and fp8 -----------------------------------------------------------------------------------------

INT8, FP8 = trt.DataType.INT8, trt.DataType.FP8
QUANTIZED = pytest.mark.parametrize("kind", [INT8, FP8])


@QUANTIZED
@pytest.mark.parametrize("shape", [(5, 8), (1, 5, 8), (2, 5, 8)])
def test_a_quantized_linear_has_these_layers_types_and_shapes(kind, shape):
    net = OneLayer("fp16")
    x = net.input(random(*shape), dynamic=(0, 1) if len(shape) == 3 else (0,))
    y = net.helper.addLinear(net.helper.addQuantizedRange(x, 2.0, kind), random(3, 8), random(3), "m", kind)
    assert y.dtype == HALF
    found = {
        layer.name: (layer.type.name, layer.get_output(0).dtype.name, as_tuple(layer.get_output(0).shape))
        for layer in (net.network.get_layer(index) for index in range(net.network.num_layers))
    }
    dynamic = as_tuple(x.shape)
    front = (1,) * (len(shape) - 2)
    assert found == {
        "x0.quantized.scale": ("CONSTANT", "FLOAT", ()),
        "x0.quantized": ("QUANTIZE", kind.name, dynamic),
        "x0.dequantized.scale": ("CONSTANT", "FLOAT", ()),
        "x0.dequantized": ("DEQUANTIZE", "HALF", dynamic),
        "m.weight": ("CONSTANT", kind.name, (*front, 3, 8)),
        "m.weight.dequantized.scale": ("CONSTANT", "FLOAT", (3,)),
        "m.weight.dequantized": ("DEQUANTIZE", "HALF", (*front, 3, 8)),
        "m.product": ("MATRIX_MULTIPLY", "HALF", (*dynamic[:-1], 3)),
        "m.bias": ("CONSTANT", "HALF", (*front, 1, 3)),
        "m": ("ELEMENTWISE", "HALF", (*dynamic[:-1], 3)),
    }
    assert net.helper.weights["m.weight"].nbytes == 8 * 3


@QUANTIZED
@settings(max_examples=15, deadline=None)
@given(length=sizes, width_in=sizes, width_out=sizes, seed=st.integers(0, 99))
def test_a_quantized_linear_computes_with_the_rounded_factors(kind, length, width_in, width_out, seed):
    x, weight, bias = (
        random(length, width_in, seed=seed),
        random(width_out, width_in, seed=1),
        random(width_out, seed=2),
    )
    net = OneLayer("fp32")
    largest = float(np.abs(x).max())
    y = net.helper.addLinear(net.helper.addQuantizedRange(net.input(x), largest, kind), weight, bias, "m", kind)
    q, scales = quantize_weight(weight, kind, "m")
    scale = np.float32(largest / element_type(kind).largest)
    scaled = x / scale
    rounded = np.clip(np.rint(scaled), -128, 127) if kind == INT8 else scaled.astype(ml_dtypes.float8_e4m3fn)
    reference = (rounded.astype(np.float64) * scale) @ (q.astype(np.float64) * scales[:, None]).T + bias
    close(net.run(y), reference, factor=4)


def test_one_tensor_is_quantized_once_for_all_its_readers():
    net = OneLayer("fp16")
    x = net.input(random(2, 8))
    first, second = (net.helper.addQuantizedRange(x, 2.0, INT8) for _ in range(2))
    assert first is second
    assert net.helper.addQuantizedRange(x, 2.0, FP8) is not first
    kinds = [net.network.get_layer(index).type for index in range(net.network.num_layers)]
    assert kinds.count(trt.LayerType.QUANTIZE) == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quantize_and_dequantize_along_an_axis(axis):
    x = random(2, 3, 4, scale=10)
    scale = np.array([0.5, 0.25, 2.0, 1.0], np.float32)[: x.shape[axis]]
    net = OneLayer()
    q = net.helper.addQuantize(net.input(x), scale, "q", INT8, axis)
    output = net.run(net.helper.addDequantize(q, scale, "dq", axis))
    shaped = scale.reshape([-1 if place == axis else 1 for place in range(3)])
    np.testing.assert_array_equal(output, np.clip(np.rint(x / shaped), -128, 127) * shaped)


def test_weights_are_rounded_half_to_even_with_a_scale_for_each_output_channel():
    weight = np.array([[127, 2.5, -3.5, 0.4], [0.5, -127, 1.5, -0.5], [0, 0, 0, 0]], np.float32)  # (out 3, in 4)
    q, scales = quantize_weight(weight, INT8, "w")
    assert q.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.tolist() == [1, 1, 1]  # a channel of zeros must not divide by zero
    assert q.tolist() == [[127, 2, -4, 0], [0, -127, 2, 0], [0, 0, 0, 0]]


@QUANTIZED
@settings(max_examples=25, deadline=None)
@given(rows=sizes, columns=sizes, exponent=st.integers(-100, 100), seed=st.integers(0, 99))
def test_every_channel_uses_the_whole_range_and_is_within_half_a_step(kind, rows, columns, exponent, seed):
    weight = (
        np.ldexp(random(rows, columns, seed=seed), exponent) * np.geomspace(1, 1e3, rows, dtype=np.float32)[:, None]
    )
    weight = weight.astype(np.float32)
    q, scales = quantize_weight(weight, kind, "w")
    scales = scales[:, None]
    np.testing.assert_allclose(np.abs(q.astype(np.float64)).max(1), element_type(kind).largest)
    error = np.abs(q.astype(np.float64) * scales - weight)
    if kind == INT8:
        assert (error <= 0.5001 * scales).all()
    else:  # E4M3: 3 bits of mantissa, below 2^-6 steps of 2^-9
        assert (error <= np.maximum(np.abs(weight) * 2.0**-4, 2.0**-10 * scales) * 1.0001).all()


@QUANTIZED
def test_channels_too_small_for_a_scale_become_zero(kind):
    weight = np.array([[1e-44, -3e-44], [1e-39, 1e-40], [1.0, -1.0]], np.float32)
    q, scales = quantize_weight(weight, kind, "w")
    assert np.isfinite(scales).all()
    np.testing.assert_allclose(q.astype(np.float64) * scales[:, None], weight, atol=1e-38)
    assert np.abs(q[2].astype(np.float64)).tolist() == [element_type(kind).largest] * 2


def test_fp8_weights_are_the_nearest_numbers_of_e4m3():
    weight = np.array(
        [[448, 17, 0.001], [448, 19, -21]], np.float32
    )  # between 16 and 18: a tie, to the even mantissa
    q, scales = quantize_weight(weight, FP8, "w")
    assert scales.tolist() == [1, 1]
    assert q.dtype == ml_dtypes.float8_e4m3fn
    assert q.astype(np.float32).tolist() == [[448, 16, 0.001953125], [448, 20, -20]]


@QUANTIZED
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named_before_it_is_quantized(kind, value):
    net = OneLayer("fp16")
    weight = random(3, 8)
    weight[1, 4] = value
    x = net.helper.addQuantizedRange(net.input(random(2, 8)), 2.0, kind)
    with pytest.raises(UserError, match=r"weight 'm\.weight' has values that are not finite"):
        net.helper.addLinear(x, weight, random(3), "m", kind)


# --- for padded batches -----------------------------------------------------------------------------------


@PRECISIONS
def test_softmax_with_a_bias_gives_masked_places_no_weight(precision):
    x = random(2, 3, 4, 5, scale=3)
    bias = np.zeros((2, 1, 1, 5), np.float32)
    bias[1, ..., 3:] = -1e30  # beyond fp16: the bias stays fp32
    net = OneLayer(precision)
    output = net.run(net.helper.addSoftmax(net.input(x), "p", bias=net.input(bias, FLOAT)))
    wide = as_stored(x, precision) + bias
    reference = np.exp(wide - wide.max(-1, keepdims=True))
    close(output, reference / reference.sum(-1, keepdims=True), precision)
    assert (output[1, ..., 3:] == 0).all()


@PRECISIONS
def test_channel_scale(precision):
    x, factors = random(2, 3, 5), random(5, seed=1)
    net = OneLayer(precision)
    output = net.run(net.helper.addChannelScale(net.input(x), factors, "s"))
    close(output, as_stored(x, precision) * as_stored(factors, precision), precision)


# --- for packed batches, and for fused layers -------------------------------------------------------------


@PRECISIONS
def test_linear_without_a_bias_is_the_product_alone(precision):
    """A fused layer adds the bias; the product then carries the module's name."""
    x, weight = random(2, 3, 8), random(5, 8, seed=1)
    net = OneLayer(precision)
    output = net.run(net.helper.addLinear(net.input(x), weight, None, "dense"))
    close(output, as_stored(x, precision) @ as_stored(weight, precision).T, precision)
    assert "dense" in {net.network.get_layer(index).name for index in range(net.network.num_layers)}


@settings(max_examples=15, deadline=None)
@given(length=sizes, width=sizes)
def test_running_sum(length, width):
    x = np.random.default_rng(0).integers(-9, 9, (length, width)).astype(np.float32)
    net = OneLayer()
    np.testing.assert_array_equal(
        net.run(net.helper.addRunningSum(net.input(x, dynamic=(0,)), "sum")), np.cumsum(x, 0)
    )


def test_concatenation_of_dynamic_vectors():
    x, y = np.arange(3, dtype=np.int32), np.arange(7, 12, dtype=np.int32)
    net = OneLayer()
    inputs = [net.input(values, trt.DataType.INT32, dynamic=(0,)) for values in (x, y)]
    np.testing.assert_array_equal(net.run(net.helper.addConcatenation(inputs, "both")), [*x, *y])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sum_along_one_axis(axis):
    x = random(3, 4, 5)
    net = OneLayer()
    output = net.run(net.helper.addSum(net.input(x), axis, "sum"))
    close(output, x.astype(np.float64).sum(axis))


@pytest.mark.parametrize(("method", "function"), [("addLess", np.less), ("addEqual", np.equal)])
def test_comparisons_broadcast(method, function):
    column, row = np.arange(4, dtype=np.int32)[:, None], np.array([[2, 0, 3, 7, 3]], np.int32)
    net = OneLayer()
    a, b = net.input(column, trt.DataType.INT32, dynamic=(0,)), net.input(row, trt.DataType.INT32, dynamic=(1,))
    compared = getattr(net.helper, method)(a, b, "compared")
    assert compared.dtype == trt.DataType.BOOL
    np.testing.assert_array_equal(net.run(compared), function(column, row))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("input_ids", (1, -1), [[1, 2], [1, 8], [1, 64]]),  # of one sentence
        ("input_ids", (-1, -1), [[3, 2], [5, 8], [7, 64]]),  # padded
        ("input_ids", (-1,), [[6], [40], [448]]),  # packed
        ("cu_seqlens", (-1,), [[4], [6], [8]]),
        ("sequence_lengths", (-1,), [[3], [5], [7]]),  # ragged
        ("x0", (1, -1, 8), [[1, 2, 8], [1, 8, 8], [1, 64, 8]]),
        ("x0", (-1, -1, 8), [[3, 2, 8], [5, 8, 8], [7, 64, 8]]),
        ("x0", (4, 8), [[4, 8]] * 3),  # nothing dynamic
    ],
)
def test_profile_shapes(name, shape, expected):
    assert profile_shapes(name, shape, SequenceRange(2, 8, 64), SequenceRange(3, 5, 7)) == expected


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_every_batch_in_the_ranges_is_in_the_packed_profile(lengths):
    ranges = SequenceRange(2, 3, 9), SequenceRange(1, 2, 4)
    check_in_profile("input_ids", (sum(lengths),), profile_shapes("input_ids", (-1,), *ranges))
    check_in_profile("cu_seqlens", (len(lengths) + 1,), profile_shapes("cu_seqlens", (-1,), *ranges))


def test_a_plan_has_the_profile_of_its_batch(tmp_path):
    net = OneLayer()
    x = net.input(random(2, 3, 8), dynamic=(0, 1))
    net.helper.markOutput(net.helper.addReLU(x, "act"), "y")
    info = build(net, tmp_path / "p.plan", batch=SequenceRange(2, 3, 5))
    assert info.profile == {"x0": [[2, 1, 8], [3, 2, 8], [5, 8, 8]]}
    assert read_info(tmp_path / "p.plan") == info
