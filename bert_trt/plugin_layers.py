"""Our CUDA plugins as layers of a network, in both products of TensorRT.

The full ``tensorrt`` has ``INetworkDefinition.add_plugin_v3``. ``tensorrt_rtx`` 1.7 has not, but its ONNX parser
makes plugin layers: so a small ONNX model that holds just the plugin nodes is parsed into the network while it is
still empty, and each layer is connected to its real inputs later, with ``ILayer.set_input``. ``PluginLayers.add``
does either; recording.py finds out beforehand which plugin layers a network will hold.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper as onnx_helper

from bert_trt.console import UserError
from bert_trt.element_types import element_type
from bert_trt.plan import create_network
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from bert_trt.tensors import LayerError, as_tuple, describe_tensor
from plugins import build, rtx_parser_shim

VERSION, NAMESPACE = "1", ""

TensorType = tuple[trt.DataType, tuple[int, ...]]  # type and shape, -1 where dynamic


@dataclass(frozen=True)
class PluginLayer:
    """One plugin layer.

    Attributes:
        name: of the layer and of its first output.
        plugin: the creator's name, e.g. ``LayerNorm``.
        fields: the plugin's fields; a float becomes fp32, an int int32, a str chars.
        outputs: type and shape of each output, -1 where dynamic.
    """

    name: str
    plugin: str
    fields: Mapping[str, float | int | str]
    outputs: tuple[TensorType, ...]


@dataclass(frozen=True)
class RecordedLayer:
    """A plugin layer that a network will hold.

    Attributes:
        layer: the layer.
        inputs: type and shape of each input.
        description: of the inputs, for messages.
    """

    layer: PluginLayer
    inputs: tuple[TensorType, ...]
    description: str

    @classmethod
    def of(cls, layer: PluginLayer, inputs: Sequence[trt.ITensor]) -> RecordedLayer:
        """The layer with these inputs."""
        types = tuple((tensor.dtype, as_tuple(tensor.shape)) for tensor in inputs)
        return cls(layer, types, "; ".join(describe_tensor(tensor) for tensor in inputs))


def load_library(path: Path | None = None) -> Path:
    """Makes the plugins known to TensorRT, for the rest of the process: taken back, networks with plugins crash.

    Args:
        path: the library; default: the built one.

    Returns:
        The library's path.

    Raises:
        UserError: it is not built or cannot be loaded.
    """
    return _load_once((path or build.library_path()).resolve())


@functools.cache
def _load_once(path: Path) -> Path:
    if trt.get_plugin_registry().load_library(os.fsencode(path)) is None:
        raise UserError(f"TensorRT cannot load the plugin library {path}; build it again: {build.BUILD_COMMAND}")
    return path


def plugin_parser(network: trt.INetworkDefinition) -> trt.OnnxParser:
    """An ONNX parser that can make plugin layers, which that of ``tensorrt_rtx`` cannot do without help.

    Raises:
        UserError: there is no C compiler to make that help.
    """
    if IS_RTX:
        rtx_parser_shim.load()
    return trt.OnnxParser(network, LOGGER)


def check_creators(library: Path, plugins: Collection[str]) -> None:
    """Checks that the library has these plugins.

    Raises:
        UserError: it lacks one: it was built from an older version of plugins/.
    """
    for plugin in sorted(plugins):
        if trt.get_plugin_registry().get_creator(plugin, VERSION, NAMESPACE) is None:
            raise UserError(f"{library} has no plugin {plugin}: it is too old; build it again: {build.BUILD_COMMAND}")


class PluginLayers:
    """Adds plugin layers to a network.

    Args:
        network: a network without any layer.
        log: its builder's logger.
        recorded: every plugin layer that the network will hold.

    Raises:
        UserError: the library is not built, or lacks a plugin.
        LayerError: TensorRT refuses a layer.
    """

    def __init__(self, network: trt.INetworkDefinition, log: TrtLog, recorded: Sequence[RecordedLayer]) -> None:
        self._network = network
        self._log = log
        self.library = load_library()
        check_creators(self.library, {one.layer.plugin for one in recorded})
        self._has_plugin_call = hasattr(network, "add_plugin_v3")
        self._reserved = {} if self._has_plugin_call else self._reserve(recorded)

    def add(self, layer: PluginLayer, inputs: Sequence[trt.ITensor]) -> trt.ILayer | None:
        """Adds the layer; None if TensorRT refuses it.

        Raises:
            ValueError: TensorRT for RTX has not been told of this layer beforehand.
        """
        if self._has_plugin_call:
            return self._network.add_plugin_v3(list(inputs), [], _create(layer))
        if layer.name not in self._reserved:
            raise ValueError(f"plugin layer {layer.name!r} was not recorded: define the network by define_network")
        reserved = self._reserved[layer.name]
        for index, tensor in enumerate(inputs):
            reserved.set_input(index, tensor)
        return reserved

    def _reserve(self, recorded: Sequence[RecordedLayer]) -> dict[str, trt.ILayer]:
        """Lets the ONNX parser make the layers, with constants for inputs. Returns them by name."""
        if not plugin_parser(self._network).parse(placeholder_model(recorded)):
            raise self._refusal(recorded, self._log.take_errors())
        for index in reversed(range(self._network.num_outputs)):
            self._network.unmark_output(self._network.get_output(index))
        layers = (self._network.get_layer(index) for index in range(self._network.num_layers))
        return {layer.name: layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3}

    def _refusal(self, recorded: Sequence[RecordedLayer], message: str) -> UserError:
        """The error for layers that TensorRT refuses together; it names the first that is refused alone."""
        for one in recorded:
            network = create_network(self._network.builder)
            if not plugin_parser(network).parse(placeholder_model([one])):
                reason = self._log.take_errors()
                return LayerError(f"layer {one.layer.name!r} refused. Inputs: {one.description}. TensorRT: {reason}")
        return UserError(f"TensorRT refuses the plugin layers: {message}")


def _create(layer: PluginLayer) -> Any:
    """A plugin object from TensorRT's registry, as the full product wants it."""
    creator: Any = trt.get_plugin_registry().get_creator(layer.plugin, VERSION, NAMESPACE)
    if creator is None:
        raise UserError(f"plugin {layer.plugin!r} version {VERSION} is not in TensorRT's registry")
    fields = [_field(name, value) for name, value in layer.fields.items()]
    plugin = creator.create_plugin(layer.name, trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    if plugin is None:
        raise UserError(f"plugin {layer.plugin!r} refuses the fields {dict(layer.fields)} of layer {layer.name!r}")
    return plugin


def _field(name: str, value: float | int | str) -> trt.PluginField:
    if isinstance(value, str):
        array, kind = np.frombuffer(value.encode(), np.int8), trt.PluginFieldType.CHAR
    elif isinstance(value, int):
        array, kind = np.array([value], np.int32), trt.PluginFieldType.INT32
    else:
        array, kind = np.array([value], np.float32), trt.PluginFieldType.FLOAT32
    any_name: Any = name  # the stubs have a class of TensorRT's own here, which a str becomes by itself
    return trt.PluginField(any_name, array, kind)


def plugin_node(layer: PluginLayer, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    """An ONNX node from which TensorRT's parser makes the plugin layer."""
    node = onnx_helper.make_node(layer.plugin, inputs, outputs, name=layer.name)
    attributes = {"plugin_version": VERSION, "plugin_namespace": NAMESPACE, **layer.fields}
    node.attribute.extend(onnx_helper.make_attribute(key, value) for key, value in attributes.items())
    return node


def placeholder_model(recorded: Sequence[RecordedLayer]) -> bytes:
    """A small ONNX model: each plugin layer once, its inputs constants of the right types and ranks.

    Dynamic axes have the length 1. So have all axes of a layer that reads matrices of weights: as large as those, the
    placeholders would take their memory once more.
    """
    nodes, constants, outputs = [], [], []
    for one in recorded:
        layer, inputs = one.layer, one.inputs
        names = [f"{layer.name}.placeholder{index}" for index in range(len(inputs))]
        reads_matrices = any(len(shape) > 1 and -1 not in shape for _, shape in inputs)
        for name, (dtype, shape) in zip(names, inputs, strict=True):
            fixed = [1 if axis == -1 or reads_matrices else axis for axis in shape]
            size = element_type(dtype).numpy.itemsize * int(np.prod(fixed))
            constants.append(onnx_helper.make_tensor(name, element_type(dtype).onnx, fixed, bytes(size), raw=True))
        reserved = [f"{layer.name}.reserved{index}" for index in range(len(layer.outputs))]
        nodes.append(plugin_node(layer, names, reserved))
        outputs += [
            onnx_helper.make_tensor_value_info(name, element_type(dtype).onnx, None)
            for name, (dtype, _) in zip(reserved, layer.outputs, strict=True)
        ]
    graph = onnx_helper.make_graph(nodes, "plugins", [], outputs, constants)
    model = onnx_helper.make_model(graph, opset_imports=[onnx_helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()
