"""The grading of the network tasks: the solution is right, and typical mistakes are wrong, with their cause.

Each mistake is a student's method, put in the place of the real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bert_trt.exercise import network_tasks
from bert_trt.exercise.checks import check_task
from bert_trt.exercise.tasks import BY_NUMBER, RIGHT, WRONG, Grade, WrongAnswer
from bert_trt.layers.native import QKV, NativeLayers
from bert_trt.plugin_layers import PluginLayer
from bert_trt.tensorrt_product import trt
from bert_trt.tensors import as_tuple
from trt_helper import TrtNetworkHelper

ROOT = Path(__file__).parent.parent
FLOAT = trt.DataType.FLOAT
SEEDS = (0, 1, 2)


def grade(number: int, seed: int = 0) -> Grade:
    return check_task(BY_NUMBER[number], seed, ROOT)


@pytest.mark.parametrize("number", range(1, 8))
def test_the_solution_is_right(number):
    for seed in range(8):
        answer = grade(number, seed)
        assert answer.status == RIGHT, answer


# --- mistakes -------------------------------------------------------------------------------------------------


def rank(values: np.ndarray, x: Any) -> tuple[int, ...]:
    return (1,) * (len(x.shape) - values.ndim) + values.shape


def linear(transpose: bool = True, has_bias: bool = True, shaped: bool = True) -> Callable[..., Any]:
    def add(self, x, weight, bias, name, quantized=None):
        w = self.addConstant(weight, f"{name}.weight", shape=rank(weight, x) if shaped else None)
        if bias is None or not has_bias:
            return self.addMatMul(x, w, name, transpose_b=transpose)
        return self.addBias(self.addMatMul(x, w, f"{name}.product", transpose_b=transpose), bias, name)

    return add


def softmax(
    axes: Callable[[int, int], int] | None = lambda axis, size: 1 << (axis % size),
    masks: bool = True,
    fp32: bool = True,
    back: bool = True,
) -> Callable[..., Any]:
    def add(self, x, name, axis=-1, bias=None):
        scores = self.addCast(x, FLOAT, f"{name}.wide") if fp32 else x
        if bias is not None and masks:
            scores = self.addAdd(scores, self.addCast(bias, scores.dtype, f"{name}.bias"), f"{name}.masked")
        layer = self.network.add_softmax(scores)
        if axes is not None:
            layer.axes = axes(axis, len(x.shape))
        needs_cast = scores.dtype != x.dtype and back
        y = self._check_layer(layer, f"{name}.fp32" if needs_cast else name, [scores])
        return self.addCast(y, x.dtype, name) if needs_cast else y

    return add


def gelu(kinds: dict[str, Any], factor: float = 1 / math.sqrt(2), half: float = 0.5) -> Callable[..., Any]:
    def add(self, x, name, kind="erf"):
        if kind != "decomposed" or "decomposed" in kinds:
            layer = self.network.add_activation(x, kinds[kind])
            return self._check_layer(layer, name, [x])
        erf = self._unary(self.addScale(x, factor, f"{name}.a"), trt.UnaryOperation.ERF, f"{name}.b")
        return self.addProduct(self.addScale(x, half, f"{name}.c"), self.addShift(erf, 1.0, f"{name}.d"), name)

    return add


KINDS = {"erf": trt.ActivationType.GELU_ERF, "tanh": trt.ActivationType.GELU_TANH}
ERF = {**KINDS, "tanh": trt.ActivationType.GELU_ERF}
TANH = {**KINDS, "erf": trt.ActivationType.GELU_TANH}
ALL_TENSORRT = {**KINDS, "decomposed": trt.ActivationType.GELU_ERF}


def gather(axis: int | None = None, swapped: bool = False) -> Callable[..., Any]:
    def add(self, x, indices, axis_, name):
        data = (indices, x) if swapped else (x, indices)
        return self._check_layer(self.network.add_gather(*data, axis_ if axis is None else axis), name, [x, indices])

    return add


def embedding_along(axis: int) -> Callable[..., Any]:
    return lambda self, indices, table, name: self.addGather(table, indices, axis, name)


def layer_norm(
    sets_epsilon: bool = True, axis: int = 1, fp32: bool = True, exchanged: bool = False, has_beta: bool = True
) -> Callable[..., Any]:
    """By TensorRT's layer."""

    def add(self, x, gamma, beta, epsilon, name, kernel="native"):
        dtype = FLOAT if fp32 else self.dtype
        wide = self.addCast(x, dtype, f"{name}.wide")
        gamma, beta = (beta, gamma) if exchanged else (gamma, beta if has_beta else np.zeros_like(beta))
        scale = self.addConstant(gamma, f"{name}.weight", dtype, rank(gamma, x))
        shift = self.addConstant(beta, f"{name}.bias", dtype, rank(beta, x))
        layer = self.network.add_normalization_v2(wide, scale, shift, 1 << (len(x.shape) - axis))
        if sets_epsilon:
            layer.epsilon = epsilon
        y = self._check_layer(layer, f"{name}.y" if wide.dtype != self.dtype else name, [wide, scale, shift])
        return self.addCast(y, self.dtype, name)

    return add


def elementary_layer_norm(kind: str = "right") -> Callable[..., Any]:
    """Of elementary layers."""

    def add(self, x, gamma, beta, epsilon, name, kernel="native"):
        x = self.addCast(x, FLOAT, f"{name}.wide") if kind != "fp16" else x
        last = len(x.shape) - 1
        mean = self.addMean(x, last, f"{name}.mean")
        centred = self.addDifference(x, mean, f"{name}.centred")
        if kind == "squares":
            square = self.addMean(self.addProduct(x, x, f"{name}.x2"), last, f"{name}.ex2")
            variance = self.addDifference(square, self.addProduct(mean, mean, f"{name}.m2"), f"{name}.v")
        else:
            variance = self.addMean(self.addProduct(centred, centred, f"{name}.c2"), last, f"{name}.v")
        if kind == "sample":
            variance = self.addScale(variance, gamma.size / (gamma.size - 1), f"{name}.sample")
        if kind not in ("no epsilon", "outside"):
            variance = self.addShift(variance, epsilon, f"{name}.e")
        root = self._unary(variance, trt.UnaryOperation.SQRT, f"{name}.root")
        if kind == "outside":
            root = self.addShift(root, epsilon, f"{name}.e")
        y = self.addQuotient(centred, variance if kind == "no root" else root, f"{name}.q")
        weights = [self.addConstant(w, f"{name}.{n}", x.dtype, rank(w, x)) for n, w in (("g", gamma), ("b", beta))]
        y = self.addAdd(self.addProduct(y, weights[0], f"{name}.scaled"), weights[1], f"{name}.sum")
        return self.addCast(y, self.dtype, name) if y.dtype != self.dtype else renamed(y, name)

    return add


def renamed(tensor: Any, name: str) -> Any:
    tensor.name = name
    return tensor


def attention(
    factor: Callable[[Any], float] = lambda c: 1 / math.sqrt(c.head_size),
    masks: bool = True,
    axis: int = -1,
    parts: tuple[str, ...] = QKV,
    transposes: bool = True,
    names: bool = True,
) -> Callable[..., Any]:
    def add(self, x, name):
        helper, config = self.helper, self.config
        made = {part: self.linear(x, f"{name}.{part}") for part in QKV}

        def split(part: str, index: int) -> Any:
            if transposes:
                return self.layout.split_heads(made[part], config.num_heads, config.head_size, f"{name}.{index}")
            shape = (config.num_heads, -1, config.head_size)
            full = shape if len(x.shape) == 2 else (0, *shape)
            return helper.addShuffle(made[part], f"{name}.{index}", shape=full)

        q, k, v = (split(part, index) for index, part in enumerate(parts))
        q = helper.addScale(q, factor(config), f"{name}.scaled")
        scores = self.products.matmul(q, k, f"{name}.scores" if names else "a", transpose_b=True)
        bias = self.score_bias if masks else None
        weights = helper.addSoftmax(scores, f"{name}.probabilities" if names else "b", axis, bias=bias)
        context = self.products.matmul(weights, v, f"{name}.context" if names else "c")
        if transposes:
            return self.layout.merge_heads(context, config.hidden_size, name)
        return helper.addReshape(
            context, (-1, config.hidden_size) if len(x.shape) == 2 else (0, -1, config.hidden_size), name
        )

    return add


def plugin(
    epsilon: float | None = None, kernel: str | None = None, casts: bool = True, exchanged: bool = False
) -> Any:
    def add(self, x, gamma, beta, epsilon_, name, kernel_):
        x = self.addCast(x, self.dtype, f"{name}.input") if casts else x
        pair = (beta, gamma) if exchanged else (gamma, beta)
        weights = [self.addConstant(w, f"{name}.{n}", FLOAT) for n, w in zip(("weight", "bias"), pair, strict=True)]
        fields = {"epsilon": epsilon or epsilon_, "kernel": kernel or kernel_}
        (y,) = self.addPlugin(PluginLayer(name, "LayerNorm", fields, ((x.dtype, as_tuple(x.shape)),)), [x, *weights])
        return y

    return add


Helper = TrtNetworkHelper
MISTAKES = {  # title: task, class, method, what is put there, the cause
    "weight not transposed": (1, Helper, "addLinear", linear(transpose=False), "not transposed"),
    "bias missing": (1, Helper, "addLinear", linear(has_bias=False), "the bias is missing"),
    "weight of another rank": (1, Helper, "addLinear", linear(shaped=False), ""),
    "x as it is": (1, Helper, "addLinear", lambda self, x, *_: renamed(self.addScale(x, 1.0, "y"), "step"), ""),
    "returns nothing": (1, Helper, "addLinear", lambda self, *_: None, "return is missing"),
    "softmax: axes not set": (2, Helper, "addSoftmax", softmax(axes=None), "set the layer's axes"),
    "softmax: always the last axis": (
        2, Helper, "addSoftmax", softmax(axes=lambda axis, size: 1 << (size - 1)), "expected axis 1"),
    "softmax: mask forgotten": (2, Helper, "addSoftmax", softmax(masks=False), "the mask (bias) is not added"),
    "softmax in fp16": (2, Helper, "addSoftmax", softmax(fp32=False), "softmax is computed in fp16"),
    "softmax: stays fp32": (2, Helper, "addSoftmax", softmax(back=False), "the cast back from fp32 is missing"),
    "gelu: tanh for erf": (3, Helper, "addGELU", gelu(TANH), "GELU by tanh, where the error function"),
    "gelu: erf for tanh": (3, Helper, "addGELU", gelu(ERF), "where the approximation by tanh"),
    "gelu: erf of x": (3, Helper, "addGELU", gelu(KINDS, factor=1.0), "1/√2 is missing"),
    "gelu: without 1/2": (3, Helper, "addGELU", gelu(KINDS, half=1.0), "the factor 1/2 is missing"),
    "gelu: decomposed by TensorRT": (3, Helper, "addGELU", gelu(ALL_TENSORRT), "made by TensorRT's own GELU"),
    "embedding along axis 1": (4, Helper, "addEmbedding", embedding_along(1), "along axis 1, expected axis 0"),
    "gather always along axis 0": (4, Helper, "addGather", gather(axis=0), "along axis 0, expected axis 1"),
    "gather: table and ids exchanged": (4, Helper, "addGather", gather(swapped=True), ""),
    "norm: epsilon not set": (5, Helper, "addLayerNorm", layer_norm(sets_epsilon=False), "epsilon is 1e-5"),
    "norm: another axis": (5, Helper, "addLayerNorm", layer_norm(axis=2), ""),
    "norm in fp16": (5, Helper, "addLayerNorm", layer_norm(fp32=False), "computed in fp16"),
    "norm: gamma and beta exchanged": (5, Helper, "addLayerNorm", layer_norm(exchanged=True), "exchanged"),
    "norm: no beta": (5, Helper, "addLayerNorm", layer_norm(has_beta=False), "beta is missing"),
    "norm: sample variance": (5, Helper, "addLayerNorm", elementary_layer_norm("sample"), "sample variance"),
    "norm: no epsilon": (5, Helper, "addLayerNorm", elementary_layer_norm("no epsilon"), "epsilon is missing"),
    "norm: epsilon outside": (5, Helper, "addLayerNorm", elementary_layer_norm("outside"), "outside of the root"),
    "norm: no root": (5, Helper, "addLayerNorm", elementary_layer_norm("no root"), "not by its root"),
    "norm: E[x²] − mean²": (5, Helper, "addLayerNorm", elementary_layer_norm("squares"), "cancels"),
    "norm: squares in fp16": (5, Helper, "addLayerNorm", elementary_layer_norm("fp16"), ""),
    "attention: no scale": (6, NativeLayers, "self_attention", attention(lambda c: 1.0), "1/√D is missing"),
    "attention: 1/D": (6, NativeLayers, "self_attention", attention(lambda c: 1 / c.head_size), "divided by D"),
    "attention: 1/√H": (
        6, NativeLayers, "self_attention", attention(lambda c: 1 / math.sqrt(c.hidden_size)), "divided by √H"),
    "attention: no mask": (6, NativeLayers, "self_attention", attention(masks=False), "the mask"),
    "attention: softmax of queries": (6, NativeLayers, "self_attention", attention(axis=-2), "along the queries"),
    "attention: K and V": (
        6, NativeLayers, "self_attention", attention(parts=("query", "value", "key")), "K and V are exchanged"),
    "attention: heads reshaped": (6, NativeLayers, "self_attention", attention(transposes=False), "a reshape alone"),
    "attention: no scale, own names": (
        6, NativeLayers, "self_attention", attention(lambda c: 1.0, names=False), "1/√D is missing"),
    "plugin: fixed epsilon": (7, Helper, "_addLayerNormPlugin", plugin(epsilon=1e-12), "the field epsilon"),
    "plugin: always fused": (7, Helper, "_addLayerNormPlugin", plugin(kernel="fused"), "the field kernel"),
    "plugin: no cast": (7, Helper, "_addLayerNormPlugin", plugin(casts=False), ""),
    "plugin: gamma and beta exchanged": (7, Helper, "_addLayerNormPlugin", plugin(exchanged=True), "exchanged"),
    "plugin: TensorRT's layer instead": (
        7, Helper, "_addLayerNormPlugin",
        lambda self, x, gamma, beta, epsilon, name, kernel: self.addLayerNorm(x, gamma, beta, epsilon, name), ""),
}  # fmt: skip


@pytest.mark.parametrize("title", MISTAKES)
def test_a_mistake_is_wrong_and_its_cause_is_named(title, monkeypatch):
    number, owner, method, mistaken, cause = MISTAKES[title]
    monkeypatch.setattr(owner, method, mistaken)
    for seed in SEEDS:
        answer = grade(number, seed)
        assert answer.status == WRONG, answer
        assert answer.found
        assert cause in answer.cause, answer
        assert bool(cause) <= bool(answer.cause)


@pytest.mark.parametrize(
    ("number", "owner", "method", "another"),
    [
        (1, Helper, "addLinear", linear()),
        (2, Helper, "addSoftmax", softmax()),
        (3, Helper, "addGELU", gelu(KINDS)),
        (5, Helper, "addLayerNorm", layer_norm()),
        (5, Helper, "addLayerNorm", elementary_layer_norm()),
        (6, NativeLayers, "self_attention", attention()),
        (6, NativeLayers, "self_attention", attention(names=False)),
        (7, Helper, "_addLayerNormPlugin", plugin()),
    ],
)
def test_another_solution_is_right_too(number, owner, method, another, monkeypatch):
    monkeypatch.setattr(owner, method, another)
    for seed in SEEDS:
        answer = grade(number, seed)
        assert answer.status == RIGHT, answer


# --- answers that are no answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 6))
def test_a_network_of_constants_is_wrong(number, monkeypatch):
    """A function that knows the answer for one length puts it into the network as a constant."""
    for case in network_tasks.CASES[number](np.random.default_rng([0, number])):
        inputs = [
            network_tasks.as_stored(one.values, case.precision) if one.dtype is None else torch.from_numpy(one.values)
            for one in case.inputs
        ]
        values = case.answer(inputs).numpy().astype(np.float32)
        hard_coded = replace(case, add=lambda helper, x, values=values: helper.addConstant(values, "step"))
        with pytest.raises(WrongAnswer):
            hard_coded.run()
