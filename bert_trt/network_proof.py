"""``check_definition`` proves that a network has the values that it was defined with.

An example that agrees with PyTorch within its precision proves little: the tolerances of fp16, bf16 and 8 bits can
hide a lost bias or the wrong GELU, a single sequence hides a mask that is ignored, and any example hides an epsilon.
So every run of builder.py and onnx2trt.py checks three more things:

* ``check_definition`` compares the plugin fields, epsilons, weights and scales in the network with their sources.
* ``comparison.compare_sequences`` compares sequences of several lengths, in batches, with PyTorch.
* ``NetworkRunner(in_fp32=True)`` runs the same sequences without the network's roundings, within fp32's tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_trt.console import UserError
from bert_trt.element_types import convert_weight, element_type, quantize_weight
from bert_trt.network import NetworkContents
from bert_trt.network_runner import constant_values, input_names, output_names, read_layer
from bert_trt.plugin_layers import PluginLayer
from bert_trt.tensorrt_product import trt
from plugins.reference import OPTIONAL_INPUTS, WITH_WEIGHT

Producers = Mapping[str, tuple[str, Any]]  # by a tensor's name: kind and layer that computes it


class WrongNetworkError(UserError):
    """A value in the network differs from its definition; the message names the layer and both values."""


def check_definition(network: trt.INetworkDefinition, contents: NetworkContents, epsilon: float) -> None:
    """Reads the network back and compares it with its definition.

    Args:
        network: ours, or a parsed one.
        contents: its plugin layers, and the fp32 values of its constants.
        epsilon: the epsilon of the model's layer norms.

    Raises:
        WrongNetworkError: a plugin field, an epsilon, a constant or a scale has another value.
    """
    layers = [read_layer(network, index) for index in range(network.num_layers)]
    producers = {name: (kind, layer) for kind, layer in layers for name in output_names(layer)}
    for kind, layer in layers:
        if kind == "PLUGIN_V3":
            _check_plugin(layer, contents.plugins[layer.name])
            _check_plugin_scales(layer, producers, contents)
            _check_epsilon(layer.name, float(contents.plugins[layer.name].fields.get("epsilon", epsilon)), epsilon)
        elif kind == "NORMALIZATION":
            _check_epsilon(layer.name, layer.epsilon, epsilon)
        elif (
            kind == "CONSTANT"
            and layer.name in contents.sources
            and not element_type(layer.get_output(0).dtype).is_quantized
        ):
            _check_constant(layer, contents)
        elif kind == "DEQUANTIZE":
            _check_scales(layer, producers, contents)
        if kind == "QUANTIZE":
            _check_range(input_names(layer)[0], layer.get_output(0).name, producers, contents)
        elif kind == "PLUGIN_V3" and contents.plugins[layer.name].fields.get("output_scale"):
            _check_range(layer.name, output_names(layer)[-1], producers, contents)


def check_constants(network: trt.INetworkDefinition, contents: NetworkContents) -> None:
    """Compares only the constants of a network with their sources; for networks from a foreign ONNX file.

    Raises:
        WrongNetworkError: a constant has other values than its source.
    """
    for index in range(network.num_layers):
        kind, layer = read_layer(network, index)
        if kind == "CONSTANT" and layer.name in contents.sources:
            _check_constant(layer, contents)


def _check_epsilon(name: str, actual: float, expected: float) -> None:
    if np.float32(actual) != np.float32(expected):
        raise WrongNetworkError(f"layer {name!r} has epsilon {actual:.9g}, the model {expected:.9g}")


def _check_plugin(layer: Any, expected: PluginLayer) -> None:
    """Compares the plugin's name and fields, which the plugin states in its metadata, with the expected ones."""
    layer.__class__ = trt.IPluginV3Layer
    core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    build = layer.plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
    if core.plugin_name != expected.plugin:
        raise WrongNetworkError(f"layer {layer.name!r} is a {core.plugin_name} plugin, expected {expected.plugin}")
    fields = read_fields(build.metadata_string)
    for name, value in expected.fields.items():
        if name not in fields:
            raise WrongNetworkError(f"layer {layer.name!r}: the plugin does not state its field {name}")
        if not _same(fields[name], value):
            raise WrongNetworkError(f"layer {layer.name!r} has {name} {fields[name]}, expected {value}")
    for name in fields.keys() - expected.fields.keys():
        if fields[name] not in FIELD_DEFAULTS.get(name, ("", "0")):
            raise WrongNetworkError(f"layer {layer.name!r} has {name} {fields[name]}, expected the default")


FIELD_DEFAULTS = {"outputs": ("y",), "activation": ("none",), "layout": ("single",)}  # other fields: empty, or 0


def read_fields(metadata: str) -> dict[str, str]:
    """The fields in a plugin's metadata string, ``name=value`` separated by blanks."""
    return dict(pair.split("=", 1) for pair in metadata.split())


def _same(text: str, value: float | int | str) -> bool:
    return np.float32(text) == np.float32(value) if isinstance(value, float) else text == str(value)


def _check_constant(layer: Any, contents: NetworkContents) -> None:
    """Checks that the constant equals its source, converted to the constant's type, bit for bit."""
    stored = constant_values(layer, contents).reshape(-1)
    expected = convert_weight(contents.sources[layer.name], layer.get_output(0).dtype, layer.name).reshape(-1)
    if stored.shape != expected.shape or stored.tobytes() != expected.tobytes():
        raise WrongNetworkError(f"constant {layer.name!r} does not hold the values of its source")


SCALED_INPUTS = {"x_scale": 0, "skip_scale": 1, "qkv_scale": 0}  # a plugin's input that the field is the scale of


def _check_plugin_scales(layer: Any, producers: Producers, contents: NetworkContents) -> None:
    """Checks that a plugin reads its inputs with the scales that they were quantized with, and the weight of a linear
    layer in 8 bits."""
    plugin, names = contents.plugins[layer.name], input_names(layer)
    for field, index in SCALED_INPUTS.items():
        scale = plugin.fields.get(field, 0.0)
        if scale and names[index] in producers:  # not an input of the network
            expected = _scale_of(names[index], producers, contents)
            if expected is None or not np.array_equal(expected, [np.float32(scale)]):
                raise WrongNetworkError(
                    f"layer {layer.name!r} has {field} {scale:.6g}, but {names[index]!r} was quantized with "
                    f"{'no scale' if expected is None else f'{float(expected[0]):.6g}'}"
                )
    if plugin.plugin in WITH_WEIGHT and plugin.fields.get("x_scale"):
        weight, scales = (producers[names[index]][1] for index in (1, OPTIONAL_INPUTS[plugin.plugin]))
        values, expected = quantize_weight(contents.sources[weight.name], weight.get_output(0).dtype, weight.name)
        if values.tobytes() != constant_values(weight, contents).tobytes():
            raise WrongNetworkError(f"constant {weight.name!r} does not hold the quantized values of its source")
        if not np.array_equal(constant_values(scales, contents), expected):
            raise WrongNetworkError(f"constant {scales.name!r} does not hold the scales of {weight.name!r}")


def _check_range(tensor: str, quantized: str, producers: Producers, contents: NetworkContents) -> None:
    """Checks that a tensor was quantized to ``quantized`` with the scale that its range gives."""
    expected = contents.scales.get(f"{tensor}.smoothed", contents.scales.get(tensor))
    actual = _scale_of(quantized, producers, contents)
    if expected is not None and (actual is None or not np.array_equal(actual, [np.float32(expected)])):
        found = "no scale" if actual is None else f"the scale {float(actual[0]):.6g}"
        raise WrongNetworkError(f"tensor {tensor!r} is quantized with {found}; its range gives {expected:.6g}")


def _scale_of(name: str, producers: Producers, contents: NetworkContents) -> np.ndarray | None:
    """The scale or scales that a tensor was quantized with, float32 (n,); None for one that was not quantized."""
    kind, producer = producers[name]
    if kind == "QUANTIZE":
        return constant_values(producers[input_names(producer)[1]][1], contents).reshape(-1)
    scale = contents.plugins[producer.name].fields.get("output_scale", 0.0) if kind == "PLUGIN_V3" else 0.0
    return np.array([scale], np.float32) if scale else None


def _check_scales(layer: Any, producers: Producers, contents: NetworkContents) -> None:
    """Checks a weight's bytes and scales against its source, and that an activation's two scales are equal."""
    value_name, scale_name = input_names(layer)[:2]
    kind, producer = producers[value_name]
    scales = constant_values(producers[scale_name][1], contents).reshape(-1)
    if kind == "CONSTANT":
        source = contents.sources[producer.name]
        weight = source.reshape(source.shape[-2:])
        is_transposed = layer.axis == len(producer.get_output(0).shape) - 1  # (in, out): a scale for each column
        values, expected = quantize_weight(
            weight.T if is_transposed else weight, producer.get_output(0).dtype, producer.name
        )
        values = values.T if is_transposed else values
        if values.tobytes() != constant_values(producer, contents).tobytes():
            raise WrongNetworkError(f"constant {producer.name!r} does not hold the quantized values of its source")
    else:
        expected = _scale_of(value_name, producers, contents)
    if expected is None or not np.array_equal(scales, expected):
        raise WrongNetworkError(f"layer {layer.name!r} has other scales than what it dequantizes was quantized with")
