"""A network that holds something else than it was made from is found, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import encoder_products
from plugin_build_for_tests import built_plugins

import builder
import onnx2trt
from bert_trt import plugin_layers
from bert_trt.comparison import compare_sequences, reference_batches
from bert_trt.model_files import ModelFolder
from bert_trt.network_proof import WrongNetworkError, check_definition, read_fields
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import ONE_SEQUENCE, SequenceRange
from bert_trt.quantization import Quantization
from bert_trt.tensorrt_log import TrtLog
from trt_helper import TrtNetworkHelper

EPSILON = 1e-12


@pytest.fixture(scope="module")
def folder(model_dir) -> ModelFolder:
    return ModelFolder(model_dir)


def quantization_of(folder: ModelFolder, kind: str, smoothed: bool) -> Quantization:
    products = encoder_products(folder)
    linear = [product for product in products if product.weight_shape is not None]
    smoothing = {}
    if smoothed:
        for product in linear:
            assert product.weight_shape is not None
            smoothing[product.activations[0]] = np.linspace(0.5, 2.0, product.weight_shape[0]).astype(np.float32)
    ranges = {tensor: 6.0 for product in products for tensor in product.activations}
    ranges |= {f"{tensor}.smoothed": 6.0 for tensor in smoothing}
    return Quantization(kind, frozenset(product.name for product in linear), ranges, smoothing)


def ways(folder: ModelFolder, precision: str, smoothed: bool = True, **options: Any) -> list[Any]:
    quantization = quantization_of(folder, precision, smoothed) if precision in ("int8", "fp8") else None
    return [
        builder.assemble(folder, TrtLog(), precision, quantization=quantization, **options),
        onnx2trt.parse(folder, precision, TrtLog(), quantization=quantization, products=encoder_products(folder)),
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_a_right_network_passes_and_without_roundings_gives_pytorchs_answers(folder, precision):
    """Smoothed and quantized too: a network without its roundings is the model, whatever its types."""
    sequences = folder.reference()
    for made in ways(folder, precision):
        check_definition(made.network, made.contents, EPSILON)
        runner = NetworkRunner(made.network, contents=made.contents, in_fp32=True)
        batches = reference_batches(sequences, "single", SequenceRange(1, 16, 64), ONE_SEQUENCE)
        errors = compare_sequences(lambda inputs, run=runner.run: run(inputs)["logit"].numpy(), batches, sequences)
        assert len(errors) == len(sequences)
        assert max(error.rel_l2 for error in errors) <= 1e-5


def test_without_roundings_every_tensor_is_fp32(folder):
    import torch

    (made, _) = ways(folder, "int8")
    names = [layer.get_output(0).name for layer in map(made.network.get_layer, range(made.network.num_layers))]
    wanted = [name for name in names if "LayerNorm" in name and not name.endswith((".weight", ".bias"))]
    runner = NetworkRunner(made.network, outputs=wanted, contents=made.contents, in_fp32=True)
    assert {tensor.dtype for tensor in runner.run(folder.demo().inputs).values()} == {torch.float32}


@pytest.mark.parametrize("way", [0, 1])
def test_another_epsilon_than_the_models(folder, way):
    made = ways(folder, "fp32")[way]
    with pytest.raises(WrongNetworkError, match=r"layer '.*' has epsilon .*, the model 9\.99999997e-07|1e-06"):
        check_definition(made.network, made.contents, 1e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("way", [0, 1])
def test_a_constant_that_is_not_its_source(folder, precision, way):
    made = ways(folder, precision)[way]
    held = {made.network.get_layer(index).name for index in range(made.network.num_layers)}
    name = next(name for name in made.contents.sources if "intermediate.dense.weight" in name and name in held)
    source = made.contents.sources[name].copy()
    source.flat[5] += 0.25
    known = replace(made.contents, sources={**made.contents.sources, name: source})
    with pytest.raises(WrongNetworkError, match=f"constant '{name}' does not hold"):
        check_definition(made.network, known, EPSILON)


def test_scales_that_do_not_belong_together(folder, monkeypatch):
    """Quantized with one scale, dequantized with another: an error of 2 % that no tolerance of int8 sees."""
    original = TrtNetworkHelper.addDequantize

    def other_scale(self: Any, q: Any, scale: Any, name: str, axis: int | None = None) -> Any:
        return original(self, q, scale * 1.02 if axis is None else scale, name, axis)

    monkeypatch.setattr(TrtNetworkHelper, "addDequantize", other_scale)
    made = ways(folder, "int8", smoothed=False)[0]
    with pytest.raises(WrongNetworkError, match="has other scales than what it dequantizes was quantized with"):
        check_definition(made.network, made.contents, EPSILON)


FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "num_heads": ("QkvToContext", {"num_heads": 4}, "has num_heads 4, expected 2"),
    "epsilon": ("SkipLayerNorm", {"epsilon": 1e-5}, r"has epsilon 9\.99999975e-06, expected 1e-12"),
    "constant_weights": ("SkipLayerNorm", {"constant_weights": 0}, "has constant_weights 0, expected 1"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_plugin_with_other_fields_than_were_asked_for(folder, monkeypatch, case):
    built_plugins()
    plugin, changes, message = FIELDS[case]
    original: Callable[..., Any] = plugin_layers.plugin_node

    def plugin_node(layer: Any, inputs: Any, outputs: Any) -> Any:
        changed = replace(layer, fields={**layer.fields, **changes}) if layer.plugin == plugin else layer
        return original(changed, inputs, outputs)

    made = builder.assemble(folder, TrtLog(), "fp16", fusion="plugins")
    check_definition(made.network, made.contents, EPSILON)
    monkeypatch.setattr(plugin_layers, "plugin_node", plugin_node)
    made = builder.assemble(folder, TrtLog(), "fp16", fusion="plugins")
    with pytest.raises(WrongNetworkError, match=message):
        check_definition(made.network, made.contents, EPSILON)


def test_fields_are_read_as_the_plugins_state_them():
    assert read_fields("epsilon=9.99999996e-13 kernel=fast") == {"epsilon": "9.99999996e-13", "kernel": "fast"}
