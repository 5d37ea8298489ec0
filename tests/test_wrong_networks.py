"""Wrong networks, each of which builder.py's own run must call wrong, in every precision.

Each is made by a small change of builder.py, the layer sets, trt_helper.py or of the weights, as a slip of the hand
would be. The tolerances of fp16 to fp8 hide most of them: what finds them is the run without roundings, the sequences
of several lengths, and the definition that is read back. (A key bias that is lost in all layers is none of them: a
softmax does not see it.) The plan itself is not built here, which other tests do: the verdict does not need it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCES

import builder
import trt_helper
from bert_trt import element_types, options, pipeline, plugin_layers
from bert_trt.command_line import builder_arguments
from bert_trt.console import UserError
from bert_trt.layers import EightBitProducts, fused, fused_quantized, native
from bert_trt.layers.layouts import SingleLayout
from bert_trt.layers.native import NativeLayers
from bert_trt.model_files import WeightFile
from bert_trt.pipeline import Result, Task
from bert_trt.tensorrt_product import trt
from builder import Bert
from plugins import build
from trt_helper import TrtNetworkHelper

needs_plugins = pytest.mark.skipif(
    not (build.build_dir() / build.LIBRARY).is_file(), reason="the plugins are not built: python plugins/build.py"
)
Mutate = Callable[[pytest.MonkeyPatch], None]
LAYER = "bert.encoder.layer.1"
SWAPPED = str.maketrans("01", "10")  # of the numbers of layers
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


def patch_method(owner: type, name: str, change: Callable[..., Any]) -> Mutate:
    """A method is replaced by ``change(original, self, *arguments)``."""
    original = getattr(owner, name)

    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(owner, name, lambda self, *rest, **named: change(original, self, *rest, **named))

    return mutate


def weights(change: Callable[[str, np.ndarray], np.ndarray]) -> Mutate:
    """Weights are read from the file and changed."""

    def get(original: Any, self: WeightFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(change(name, original(self, name, shape)))

    return patch_method(WeightFile, "get", get)


def one_weight(wanted: str, change: Callable[[np.ndarray], np.ndarray]) -> Mutate:
    return weights(lambda name, values: change(values) if name == wanted else values)


def one_more(values: np.ndarray) -> np.ndarray:
    changed = values.copy()
    changed.flat[0] += 0.5
    return changed


def instead_of(wanted: str, other: str) -> Mutate:
    """The weight of another module of the same shape."""
    return patch_method(
        WeightFile,
        "get",
        lambda original, self, name, shape: original(self, other if name == wanted else name, shape),
    )


def attribute(owner: Any, name: str, value: Any) -> Mutate:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def scaled_scores(factor: float) -> Mutate:
    def change(original: Any, self: Any, x: Any, by: float, name: str) -> Any:
        return original(self, x, by * factor if name.endswith("scaled_query") else by, name)

    return patch_method(TrtNetworkHelper, "addScale", change)


def residual(change: Callable[..., Any]) -> Mutate:
    def residual_sum(original: Any, self: Any, a: Any, b: Any, name: str) -> Any:
        return change(original, self, a, b, name) if name == f"{LAYER}.output.sum" else original(self, a, b, name)

    return patch_method(NativeLayers, "residual_sum", residual_sum)


def layer_norm(change: Callable[[Any], Any], only: str = "") -> Mutate:
    """The layer that TensorRT's own normalization adds is changed."""

    def add(original: Any, self: Any, x: Any, gamma: Any, beta: Any, epsilon: float, name: str, *rest: Any) -> Any:
        arguments = SimpleNamespace(gamma=gamma, beta=beta, epsilon=epsilon)
        if name.endswith(only):
            change(arguments)
        return original(self, x, arguments.gamma, arguments.beta, arguments.epsilon, name, *rest)

    return patch_method(TrtNetworkHelper, "addLayerNorm", add)


def swapped_parameters(arguments: Any) -> None:
    arguments.gamma, arguments.beta = arguments.beta, arguments.gamma


def embeddings_of(order: Sequence[int]) -> Mutate:
    """Ids, types and positions given to the embeddings in another order."""
    return patch_method(Bert, "embeddings", lambda original, self, ids: original(self, [ids[i] for i in order]))


def layer_order(order: Callable[[int], int]) -> Mutate:
    def encoder_layer(original: Any, self: Any, x: Any, name: str) -> Any:
        prefix, _, index = name.rpartition(".")
        changed = order(int(index))
        return x if changed < 0 else original(self, x, f"{prefix}.{changed}")

    return patch_method(Bert, "encoder_layer", encoder_layer)


def wrong_heads(original: Any, self: Any, x: Any, num_heads: int, head_size: int, name: str) -> Any:
    """(S, D, N) where it should be (S, N, D)."""
    shape = (-1, head_size, num_heads)
    return self.helper.addShuffle(x, name, shape=shape, second_transpose=(2, 0, 1))


def unmerged_heads(original: Any, self: Any, x: Any, name: str, first_transpose: Any = None, **rest: Any) -> Any:
    """(N, S, D) read as (S, N, D)."""
    return original(self, x, name, first_transpose=None, **rest)


def without_bias(original: Any, self: Any, x: Any, bias: np.ndarray, name: str) -> Any:
    return self.addCast(x, x.dtype, name) if name == f"{LAYER}.intermediate.dense" else original(self, x, bias, name)


def softmax_over_queries(original: Any, self: Any, x: Any, name: str, axis: int = -1, bias: Any = None) -> Any:
    return original(self, x, name, -2, bias)


ANY = {  # wrong whatever the batching; elementary layers
    "softmax over queries": patch_method(TrtNetworkHelper, "addSoftmax", softmax_over_queries),
    "query and key swapped": attribute(native, "QKV", ("key", "query", "value")),
    "key and value swapped": attribute(native, "QKV", ("query", "value", "key")),
    "query and value swapped": attribute(native, "QKV", ("value", "key", "query")),
    "a transposed weight": one_weight(f"{LAYER}.attention.output.dense.weight", np.transpose),
    "a transposed query weight": one_weight(f"{LAYER}.attention.self.query.weight", np.transpose),
    "one element of a weight": one_weight(f"{LAYER}.output.dense.weight", one_more),
    "a weight of another layer": instead_of(
        f"{LAYER}.intermediate.dense.weight", "bert.encoder.layer.0.intermediate.dense.weight"
    ),
    "epsilon 1e-5": layer_norm(lambda norm: setattr(norm, "epsilon", 1e-5)),
    "epsilon 1e-6 in one layer": layer_norm(lambda norm: setattr(norm, "epsilon", 1e-6), f"{LAYER}.output.LayerNorm"),
    "gamma and beta swapped": layer_norm(swapped_parameters, f"{LAYER}.output.LayerNorm"),
    "gamma lost": one_weight(f"{LAYER}.output.LayerNorm.weight", np.ones_like),
    "beta lost": one_weight(f"{LAYER}.attention.output.LayerNorm.bias", np.zeros_like),
    "tanh for erf": patch_method(
        TrtNetworkHelper, "addGELU", lambda original, self, x, name, kind="erf": original(self, x, name, "tanh")
    ),
    "relu for gelu": patch_method(
        TrtNetworkHelper, "addGELU", lambda original, self, x, name, kind="erf": self.addReLU(x, name)
    ),
    "a lost bias of one layer": patch_method(TrtNetworkHelper, "addBias", without_bias),
    "a lost query bias": one_weight(f"{LAYER}.attention.self.query.bias", np.zeros_like),
    "a lost value bias": one_weight("bert.encoder.layer.0.attention.self.value.bias", np.zeros_like),
    "a lost attention output bias": one_weight(f"{LAYER}.attention.output.dense.bias", np.zeros_like),
    "a lost bias of the head": one_weight("cls.predictions.bias", np.zeros_like),
    "2 % off in the scores": scaled_scores(1.02),
    "scores not scaled": scaled_scores(8.0),
    "positions ignored": one_weight(
        "bert.embeddings.position_embeddings.weight", lambda table: np.repeat(table[:1], len(table), 0)
    ),
    "types ignored": one_weight(
        "bert.embeddings.token_type_embeddings.weight", lambda table: np.repeat(table[:1], len(table), 0)
    ),
    "types for positions": embeddings_of((0, 1, 1)),
    "positions off by one": one_weight(
        "bert.embeddings.position_embeddings.weight", lambda table: np.roll(table, 1, 0)
    ),
    "words off by one": one_weight("bert.embeddings.word_embeddings.weight", lambda table: np.roll(table, 1, 0)),
    "a residual lost": residual(lambda original, self, a, b, name: original(self, a, a, name)),
    "a residual twice": residual(
        lambda original, self, a, b, name: original(self, original(self, a, b, f"{name}.once"), b, name)
    ),
    "a layer left out": layer_order(lambda index: index if index == 0 else -1),
    "layers swapped": patch_method(
        WeightFile,
        "get",
        lambda original, self, name, shape: original(
            self, name.translate(SWAPPED) if ".layer." in name else name, shape
        ),
    ),
    "the head's layer norm left out": patch_method(
        NativeLayers,
        "layer_norm",
        lambda original, self, x, name, *width: x if name.startswith("cls") else original(self, x, name, *width),
    ),
    "the head's activation left out": patch_method(
        TrtNetworkHelper,
        "addActivation",
        lambda original, self, x, name, kind: x if name.startswith("cls") else original(self, x, name, kind),
    ),
}
SINGLE = {
    "heads of the wrong columns": patch_method(SingleLayout, "split_heads", wrong_heads),
    "heads not put side by side": patch_method(TrtNetworkHelper, "addShuffle", unmerged_heads),
}


def ignored(original: Any, self: Any, visible: Any) -> Any:
    return self.helper.addScale(visible, 0.0, "mask.bias")


def inverted(original: Any, self: Any, visible: Any) -> Any:
    return self.helper.addScale(visible, -1e30, "mask.bias")


def too_weak(original: Any, self: Any, visible: Any) -> Any:
    return self.helper.addScale(self.helper.addShift(visible, -1.0, "mask.shifted"), 1.0, "mask.bias")


def ends_off_by(step: float) -> Mutate:
    def change(original: Any, self: Any, a: Any, b: Any, name: str) -> Any:
        return original(self, self.addShift(a, step, f"{name}.shifted"), b, name)

    return patch_method(TrtNetworkHelper, "addLess", change)


PADDED = {
    "mask ignored": patch_method(SingleLayout, "_additive", ignored),
    "mask inverted": patch_method(SingleLayout, "_additive", inverted),
    "mask too weak": patch_method(SingleLayout, "_additive", too_weak),
}
PACKED = {
    "cu_seqlens ignored": patch_method(SingleLayout, "_additive", ignored),
    "cu_seqlens one too large": ends_off_by(1.0),
    "cu_seqlens one too small": ends_off_by(-1.0),
}


def lengths(change: Callable[[Any, Any], Any]) -> Mutate:
    """What keeps sequences apart is changed before the QkvToContext plugin gets it."""

    def add(
        original: Any, self: Any, qkv: Any, num_heads: int, name: str, layout: str, given: Any, longest: int
    ) -> Any:
        return original(self, qkv, num_heads, name, layout, change(self, given), longest)

    return patch_method(TrtNetworkHelper, "addQkvToContext", add)


def all_words(helper: Any, mask: Any) -> Any:
    name = f"{helper.network.num_layers}.words"
    return helper.addCast(helper.addEqual(mask, mask, f"{name}.true"), trt.DataType.INT32, name)


def shorter_first(helper: Any, cu_seqlens: Any) -> Any:
    """1 less at every end that is behind another one."""
    name = f"{helper.network.num_layers}.ends"
    one = helper.addConstant(np.ones(1, np.int32), f"{name}.one", trt.DataType.INT32)
    positive = helper.addCast(helper.addLess(one, cu_seqlens, f"{name}.positive"), trt.DataType.INT32, f"{name}.step")
    return helper._elementwise(cu_seqlens, positive, trt.ElementWiseOperation.SUB, name)


def in_the_network_only(plugin: str, **changes: Any) -> Mutate:
    """The plugin is created with other fields than the network was asked for."""

    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        for maker in ("plugin_node", "_create"):
            original = getattr(plugin_layers, maker)

            def make(layer: Any, *rest: Any, original: Any = original) -> Any:
                changed = replace(layer, fields={**layer.fields, **changes}) if layer.plugin == plugin else layer
                return original(changed, *rest)

            monkeypatch.setattr(plugin_layers, maker, make)

    return mutate


PLUGINS = {
    "num_heads in the network": in_the_network_only("QkvToContext", num_heads=4),
    "num_heads as asked for": patch_method(
        TrtNetworkHelper,
        "addQkvToContext",
        lambda original, self, qkv, num_heads, *rest: original(self, qkv, 4, *rest),
    ),
    "epsilon of SkipLayerNorm in the network": in_the_network_only("SkipLayerNorm", epsilon=1e-5),
    "epsilon of EmbLayerNorm in the network": in_the_network_only("EmbLayerNorm", epsilon=1e-6),
    "query and key swapped, fused": attribute(fused, "QKV", ("key", "query", "value")),
    "a lost bias before a residual": one_weight(f"{LAYER}.output.dense.bias", np.zeros_like),
}
PLUGINS_PADDED = {"mask ignored by the plugin": lengths(all_words)}
PLUGINS_PACKED = {"cu_seqlens off by one in the plugin": lengths(shorter_first)}
LINEAR = {
    "GELU of Linear in the network": in_the_network_only("Linear", activation="none"),
    "constant_weight in the network": in_the_network_only("Linear", constant_weight=0),
    "epsilon of LinearSkipLayerNorm in the network": in_the_network_only("LinearSkipLayerNorm", epsilon=1e-5),
    "constant_weights in the network": in_the_network_only("LinearSkipLayerNorm", constant_weights=0),
    "a lost bias before a residual, in one layer": PLUGINS["a lost bias before a residual"],
}


def mistaken_scale(original: Any, self: Any, q: Any, scale: Any, name: str, axis: int | None = None) -> Any:
    return original(self, q, scale * 2 if name == f"{LAYER}.output.dense.weight.dequantized" else scale, name, axis)


QUANTIZED = {
    "a weight's scale twice as large": patch_method(TrtNetworkHelper, "addDequantize", mistaken_scale),
    "smoothing of the weight alone": patch_method(
        TrtNetworkHelper,
        "addChannelScale",
        lambda original, self, x, factors, name: original(self, x, np.ones_like(factors), name),
    ),
    "scales of one channel for another": attribute(
        trt_helper,
        "quantize_weight",
        lambda values, dtype, name, original=element_types.quantize_weight: (
            original(values, dtype, name)[0],
            np.roll(original(values, dtype, name)[1], 1),
        ),
    ),
}


def doubled(original: Any, self: Any, *rest: Any, **named: Any) -> Any:
    return 2 * original(self, *rest, **named)


def x_scale_doubled(original: Any, self: Any, *given: Any, **named: Any) -> Any:
    if f"{LAYER}.intermediate.dense" in map(str, given) or f"{LAYER}.output.dense" in map(str, given):
        named["x_scale"] *= 2
    return original(self, *given, **named)


def factors_inverted(original: Any, self: Any, x: Any, weight: Any, bias: Any, name: str, **named: Any) -> Any:
    if name == f"{LAYER}.intermediate.dense":
        named["output_factors"] = 1 / named["output_factors"]
    return original(self, x, weight, bias, name, **named)


def of_another_tensor(original: Any, self: Any, tensor: str) -> Any:
    return original(self, tensor.replace(".layer.1.", ".layer.0."))


EIGHT_BIT_PLUGINS = {
    "every scale twice as large": patch_method(EightBitProducts, "scale", doubled),
    "scales of another layer": patch_method(EightBitProducts, "scale", of_another_tensor),
    "x_scale of one product twice as large": patch_method(TrtNetworkHelper, "addFusedLinear", x_scale_doubled),
    "x_scale of a product before a residual twice as large": patch_method(
        TrtNetworkHelper, "addLinearSkipLayerNorm", x_scale_doubled
    ),
    "output_scale of LinearSkipLayerNorm in the network": in_the_network_only(
        "LinearSkipLayerNorm", output_scale=0.5
    ),
    "output_scale of QkvToContext in the network": in_the_network_only("QkvToContext", output_scale=0.5),
    "smoothing of the weight alone, in plugins": patch_method(
        fused_quantized.FusedQuantizedLayers,
        "qkv_weights",
        lambda original, self, name: fused.FusedLayers.qkv_weights(self, name),
    ),
    "smoothing of V's weight without its bias": patch_method(
        fused_quantized.FusedQuantizedLayers,
        "qkv_weights",
        lambda original, self, name: (original(self, name)[0], fused.FusedLayers.qkv_weights(self, name)[1]),
    ),
    "factors of norms and GELU lost": patch_method(
        EightBitProducts,
        "output_factors",
        lambda original, self, tensor: np.ones_like(original(self, tensor)),
    ),
    "factors of one channel for another": patch_method(
        EightBitProducts,
        "output_factors",
        lambda original, self, tensor: np.roll(original(self, tensor), 1),
    ),
    "factors of one GELU inverted": patch_method(TrtNetworkHelper, "addFusedLinear", factors_inverted),
    "scales of one channel for another, in plugins": QUANTIZED["scales of one channel for another"],
    "a lost bias before a residual, in plugins": PLUGINS["a lost bias before a residual"],
    "GELU lost, in plugins": LINEAR["GELU of Linear in the network"],
    "query and key swapped, in plugins": PLUGINS["query and key swapped, fused"],
}


@dataclass(frozen=True)
class Case:
    """One wrong network: a mutation and the options that it is tried with."""

    name: str
    mutate: Mutate
    precision: str
    options: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return "-".join([self.precision, *self.options[1::2], self.name.replace(" ", "_")])


def cases(mutants: dict[str, Mutate], *chosen: str, precisions: Sequence[str] = PRECISIONS) -> list[Any]:
    return [
        pytest.param(
            (case := Case(name, mutate, precision, chosen)),
            id=case.id,
            marks=[needs_plugins] if "--fusion" in chosen else [],
        )
        for name, mutate in mutants.items()
        for precision in precisions
    ]


PADDED_OPTIONS, PACKED_OPTIONS = ("--batching", "padded"), ("--batching", "packed")
FUSED = ("--fusion", "plugins")
ALL_CASES = [
    *cases(ANY),
    *cases(SINGLE),
    *cases(PADDED, *PADDED_OPTIONS),
    *cases(PACKED, *PACKED_OPTIONS),
    *cases(PLUGINS, *FUSED),
    *cases(PLUGINS_PADDED, *FUSED, *PADDED_OPTIONS),
    *cases(PLUGINS_PACKED, *FUSED, *PACKED_OPTIONS),
    *cases(LINEAR, "--fusion", "all", precisions=("fp16", "bf16")),
    *cases(QUANTIZED, "--smooth", "0.5", precisions=("int8", "fp8")),
    *cases(EIGHT_BIT_PLUGINS, "--fusion", "all", "--smooth", "0.5", precisions=("int8", "fp8")),
]


class Runs:
    """Runs builder.py's ``run`` without building the plan. 8-bit ranges come from the right network, found once."""

    def __init__(self, model_dir: Path, sentences: Path) -> None:
        data = ["--calibration-data", str(sentences), "--calibration-sentences", "8"]
        self._model, self._data = ["--model-dir", str(model_dir)], data
        self._quantized: dict[tuple[str, ...], Any] = {}

    def calibrate(self, *given: str) -> None:
        """Finds the ranges that runs with these options have; call it while the network is right."""
        if {"int8", "fp8"}.intersection(given) and given not in self._quantized:
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(builder, "build_and_check", lambda task, *_: Result(task, _[3]))
                self._quantized[given] = builder.run(self._options(*given)).quantized

    def agrees(self, *given: str) -> bool:
        """Whether the run is called right."""

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(Task, "quantize", lambda *_: self._quantized.get(given))
            return builder.run(self._options(*given)).agrees

    def _options(self, *given: str) -> options.PlanOptions:
        with pytest.MonkeyPatch.context() as monkeypatch:
            calibrates = {"int8", "fp8"}.intersection(given)
            monkeypatch.setattr(
                sys, "argv", ["builder.py", *self._model, *(self._data if calibrates else []), *given]
            )
            return builder_arguments()


@pytest.fixture(scope="module")
def runs(small_weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = shutil.copytree(small_weights_dir, tmp_path_factory.mktemp("wrong") / "out")
    (folder / "sentences.txt").write_text(SENTENCES)
    return Runs(folder, folder / "sentences.txt")


@pytest.fixture(autouse=True)
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "build_plan", lambda *_: SimpleNamespace(num_bytes=10**9, seconds_build=0.0))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "chosen",
    [
        (),
        PADDED_OPTIONS,
        PACKED_OPTIONS,
        pytest.param(FUSED, marks=needs_plugins),
        pytest.param((*FUSED, *PADDED_OPTIONS), marks=needs_plugins),
        pytest.param((*FUSED, *PACKED_OPTIONS), marks=needs_plugins),
        pytest.param(("--fusion", "all"), marks=needs_plugins),
        pytest.param(("--fusion", "all", *PADDED_OPTIONS), marks=needs_plugins),
        pytest.param(("--fusion", "all", *PACKED_OPTIONS), marks=needs_plugins),
        ("--fusion", "tensorrt"),
        ("--fusion", "tensorrt", *PADDED_OPTIONS),
        ("--fusion", "tensorrt", *PACKED_OPTIONS),
    ],
    ids=lambda chosen: "-".join(chosen[1::2]) or "single",
)
def test_the_right_network_is_called_right(runs, precision, chosen):
    runs.calibrate("--precision", precision, *chosen)
    assert runs.agrees("--precision", precision, *chosen)


@pytest.mark.parametrize("case", ALL_CASES)
def test_a_wrong_network_is_called_wrong(runs, monkeypatch, case):
    given = ("--precision", case.precision, *case.options)
    runs.calibrate(*given)
    case.mutate(monkeypatch)
    try:
        agrees = runs.agrees(*given)
    except UserError:
        return  # refused, with a message that names what is wrong
    assert not agrees


def test_there_are_enough_of_them():
    everywhere = {case.values[0].name for case in ALL_CASES if case.values[0].precision == "fp8"}
    assert len(everywhere) >= 30
