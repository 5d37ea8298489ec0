"""quantization.py: which products there are, what smoothing does to them, what is read back from a network."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import encoder_products
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trt_helper import OneLayer, random

import builder
from bert_trt.command_line import sensitivity_arguments
from bert_trt.console import UserError
from bert_trt.model_files import ModelFolder
from bert_trt.options import BATCHINGS, DEFAULT_DATA, GROUPS, LINEAR_GROUPS, CalibrationSettings, QuantizationOptions
from bert_trt.quantization import (
    MEASURABLE_BYTES,
    SMOOTHING_LIMITS,
    Product,
    Quantization,
    QuantizedParts,
    check_quantized,
    in_groups,
    inspect,
    range_name,
    smoothing_factors,
)
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt

# --- which products ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model_dir: Path) -> ModelFolder:
    return ModelFolder(model_dir)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_products_and_their_tensors_are_in_the_network(folder, batching):
    made = builder.assemble(folder, TrtLog(), "fp32", batching=batching)
    layers = {layer.name: layer for layer in (made.network.get_layer(i) for i in range(made.network.num_layers))}
    multiplied = {}
    for layer in layers.values():
        if layer.type == trt.LayerType.MATRIX_MULTIPLY:
            multiplied[layer.name.removesuffix(".product")] = [layer.get_input(place).name for place in (0, 1)]
    head = {name for name in multiplied if name.startswith("cls.")}
    products = encoder_products(folder)
    assert {product.name for product in products} == set(multiplied) - head
    for product in products:
        factors = multiplied[product.name]
        weight = [f"{product.name}.weight"] if product.weight_shape else []
        assert factors == [*product.activations, *weight]
        if product.weight_shape:
            assert folder.weights().get(weight[0], product.weight_shape).shape == product.weight_shape


def test_groups(folder):
    products = encoder_products(folder)
    assert len(products) == 2 * 8
    counts = {group: len(in_groups(products, [group])) for group in GROUPS}
    assert counts == {"qkv": 6, "attention-output": 2, "intermediate": 2, "output": 2, "attention": 4}
    assert in_groups(products, GROUPS) == products
    assert all(product.weight_shape for product in in_groups(products, LINEAR_GROUPS))
    assert in_groups(products, []) == []


def test_without_and_only():
    whole = Quantization("fp8", frozenset("abc"), {"x": 1.0}, {"x": np.ones(2)})
    assert whole.without("b").products == {"a", "c"}
    assert whole.only("b").products == {"b"}
    assert whole.products == {"a", "b", "c"}
    for one in (whole.without("b"), whole.only("b")):
        assert (one.kind, one.ranges, one.smoothing) == (whole.kind, whole.ranges, whole.smoothing)
        assert one.dtype == trt.DataType.FP8


def test_range_names():
    assert range_name("x", {"x": np.ones(1)}) == "x.smoothed"
    assert range_name("x", {"y": np.ones(1)}) == "x"


# --- smoothing --------------------------------------------------------------------------------------------


class Weights:
    """Stands for a WeightFile."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = self.arrays[name.removesuffix(".weight")]
        assert array.shape == shape
        return array


def smooth(x_maxima: np.ndarray, alpha: float, **weights: np.ndarray) -> np.ndarray:
    products = [Product(name, "qkv", ("x",), weight.shape) for name, weight in weights.items()]
    stored: Any = Weights(**weights)
    (factors,) = smoothing_factors(products, stored, {"x": x_maxima}, alpha).values()
    return factors


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 30), alpha=st.floats(0, 1), seed=st.integers(0, 99))
def test_smoothing_keeps_the_product(width, alpha, seed):
    x, w = random(7, width, seed=seed), random(5, width, seed=seed + 1)
    x[:, 0] *= 300  # a planted outlier channel
    s = smooth(np.abs(x).max(0), alpha, a=w).astype(np.float64)
    np.testing.assert_allclose((x / s) @ (w * s).T, x.astype(np.float64) @ w.T, rtol=1e-9, atol=1e-9)


def test_the_equation_with_all_weights_that_read_the_tensor():
    x, q, k = random(7, 4), random(3, 4, seed=1), random(6, 4, seed=2)
    maxima = np.abs(x).max(0)
    column = np.maximum(np.abs(q).max(0), np.abs(k).max(0))
    half = 2**-11 * 1.001  # the reciprocal is rounded to fp16
    np.testing.assert_allclose(smooth(maxima, 0.7, q=q, k=k), maxima**0.7 / column**0.3, rtol=half)
    np.testing.assert_allclose(smooth(maxima, 1.0, q=q), maxima, rtol=half)  # everything into the weights
    np.testing.assert_allclose(smooth(maxima, 0.0, q=q), 1 / np.abs(q).max(0), rtol=half)


def test_channels_without_values_stay_as_they_are():
    x, w = np.array([2, 0, 2, 0], np.float32), np.array([[1, 1, 0, 0]], np.float32)
    assert smooth(x, 0.5, a=w).tolist() == pytest.approx([2**0.5, 1, 1, 1], rel=2**-11)


def test_divisors_and_their_inverses_are_fp16_numbers():
    """A GELU that is almost never on leaves a channel of 1e-7; the inverse of such an s would be infinite in fp16."""
    x, w = np.array([1e-30, 1e-7, 1, 1e30], np.float32), np.array([[1, 1, 1e-40, 1e-3]], np.float32)
    for alpha in (0.0, 0.5, 0.85, 1.0):
        found = smooth(x, alpha, a=w)
        assert SMOOTHING_LIMITS[0] <= found.min() <= found.max() <= SMOOTHING_LIMITS[1]
        np.testing.assert_allclose((1 / found).astype(np.float16), 1 / found, rtol=2e-7)


def test_attention_products_are_not_smoothed():
    stored: Any = Weights()
    assert smoothing_factors([Product("p", "attention", ("a", "b"))], stored, {"a": np.ones(2)}, 0.5) == {}


# --- what a network holds ---------------------------------------------------------------------------------


def linear_network(quantized: int, plain: int, kind: str = "int8") -> OneLayer:
    net = OneLayer("fp16")
    x = net.input(random(2, 8))
    quantization = Quantization(kind)
    for number in range(quantized):
        x8 = net.helper.addQuantizedRange(x, 3.0, quantization.dtype)
        x = net.helper.addLinear(x8, random(8, 8), random(8), f"q{number}", quantization.dtype)
    for number in range(plain):
        x = net.helper.addLinear(x, random(8, 8, seed=number), random(8), f"p{number}")
    return net


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_counts_of_products_and_bytes(kind):
    parts = inspect(linear_network(3, 2, kind).network)
    assert (parts.quantized_products, parts.products) == (3, 5)
    assert parts.quantized_weights == 3 * 64
    scales = 3 * (8 + 2) * 4  # fp32: one for each output channel, and two for the input: quantize, dequantize
    assert parts.weight_bytes == 3 * 64 + 2 * 64 * 2 + 5 * 8 * 2 + scales


def test_one_quantized_factor_is_not_enough():
    net = OneLayer("fp16")
    x = net.input(random(2, 8))
    x8 = net.helper.addQuantizedRange(x, 3.0, trt.DataType.INT8)
    net.helper.addLinear(x8, random(8, 8), random(8), "half")  # the weight stays fp16
    net.helper.addMatMul(x, net.helper.addShuffle(x8, "t", first_transpose=(1, 0)), "transposed")
    assert inspect(net.network).quantized_products == 0


def test_two_activations_are_a_quantized_product_without_weights():
    net = OneLayer("fp16")
    x8 = net.helper.addQuantizedRange(net.input(random(2, 8)), 3.0, trt.DataType.INT8)
    net.helper.addMatMul(x8, x8, "scores", transpose_b=True)
    parts = inspect(net.network)
    assert (parts.quantized_products, parts.quantized_weights) == (1, 0)


def test_a_network_with_another_number_of_quantized_products_is_refused():
    net = linear_network(2, 1)
    assert check_quantized(net.network, "int8", 2).quantized_products == 2
    for expected in (1, 3):
        with pytest.raises(UserError, match=rf"2 products .* both factors in int8, expected {expected}"):
            check_quantized(net.network, "int8", expected)


def test_the_plans_size_shows_the_weights_width():
    weights = MEASURABLE_BYTES
    parts = QuantizedParts(5, 6, weights, 2 * weights)
    assert parts.plan_has_quantized_weights(3 * weights - 1) is True
    assert parts.plan_has_quantized_weights(3 * weights) is False  # what 2 bytes an element would take
    assert QuantizedParts(5, 6, weights - 1, 2 * weights).plan_has_quantized_weights(1) is None


# --- options ----------------------------------------------------------------------------------------------


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., QuantizationOptions]:
    def read(*arguments: str) -> QuantizationOptions:
        monkeypatch.setattr(sys, "argv", ["sensitivity.py", *arguments])
        return sensitivity_arguments().quantization

    return read


def test_defaults(parse):
    assert parse() == QuantizationOptions()
    assert parse().settings == CalibrationSettings()
    assert parse().max_error is None
    assert parse().data == DEFAULT_DATA
    assert DEFAULT_DATA.is_file()
    assert CalibrationSettings().groups == LINEAR_GROUPS


def test_what_is_given_arrives(parse):
    given = ("--precision", "fp8", "--calibration", "percentile", "--percentile", "99", "--max-error", "1e-2")
    found = parse(*given, "--quantize", "attention, qkv")
    assert found.settings == CalibrationSettings("fp8", "percentile", 99.0, groups=("qkv", "attention"))
    assert found.max_error == 0.01
    assert parse("--smooth", "off").settings.smoothing is None
    assert parse("--smooth", "auto").settings.smoothing == "auto"
    assert [parse("--smooth", text).settings.smoothing for text in ("0", "0.5", "1")] == [0.0, 0.5, 1.0]
    assert parse("--calibration-sentences", "512").settings.sentences == 512


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--max-error", ["0", "-1", "nan", "inf", "small", ""]),
        ("--percentile", ["0", "100.1", "nan", "-5", "many"]),
        ("--calibration-sentences", ["0", "-1", "1.0", "ten", "", "²"]),
        ("--quantize", ["", "qkv,", "heads", "QKV"]),
        ("--smooth", ["on", "-0.1", "1.01", "nan", ""]),
        ("--calibration", ["average", ""]),
    ],
)
def test_wrong_values_are_named(parse, capsys, option, values):
    for value in values:
        with pytest.raises(SystemExit) as ended:
            parse(f"{option}={value}")
        assert ended.value.code == 2
        assert f"argument {option}:" in capsys.readouterr().err


def test_entropy_is_for_int8_alone():
    assert CalibrationSettings("int8", "entropy")
    with pytest.raises(UserError, match="choose max, percentile or mse"):
        CalibrationSettings("fp8", "entropy")
