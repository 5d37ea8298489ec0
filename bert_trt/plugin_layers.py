"""Our CUDA plugins as layers of a network, in both products of TensorRT.

The full ``tensorrt`` has ``INetworkDefinition.add_plugin_v3``. ``tensorrt_rtx`` 1.7 has not, but its ONNX parser
makes plugin layers: so a small ONNX model that holds just the plugin nodes is parsed into the network while it is
still empty, and each layer is connected to its real inputs later, with ``ILayer.set_input``. Both ways stand behind
``PluginLayers.place``; the network must say beforehand which plugin layers it will hold.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper as onnx_helper

from bert_trt.console import UserError
from bert_trt.element_types import element_type
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from plugins import build, rtx_parser_shim

CONSTANT_FIELDS = ("constant_weight", "constant_weights")  # weights may be read early, see early_launch.cuh
HEAD_SIZES = (32, 64, 128)  # those that QkvToContext has kernels for
VERSION, NAMESPACE = "1", ""


@dataclass(frozen=True)
class PluginLayer:
    """One plugin layer.

    Attributes:
        name: of the layer and of its first output.
        plugin: the creator's name, e.g. ``LayerNorm``.
        fields: the plugin's fields; a float becomes fp32, an int int32, a str chars.
        inputs: type and shape of each input, -1 where dynamic.
        outputs: type of each output.
    """

    name: str
    plugin: str
    fields: Mapping[str, float | int | str]
    inputs: tuple[tuple[trt.DataType, tuple[int, ...]], ...]
    outputs: tuple[trt.DataType, ...]


@dataclass(frozen=True)
class Known:
    """What TensorRT's Python API cannot read back from a network, by layer name; network_runner.py needs it.

    Attributes:
        weights: values of constants, bf16 ones above all.
        plugins: plugin layers with their fields.
        sources: fp32 values from which constants were rounded or quantized.
    """

    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    plugins: Mapping[str, PluginLayer] = field(default_factory=dict)
    sources: Mapping[str, np.ndarray] = field(default_factory=dict)


def layer_norm_layer(name: str, hidden: int, dtype: trt.DataType, epsilon: float, kernel: str) -> PluginLayer:
    """The LayerNorm plugin on x (S, H) of ``dtype`` with gamma and beta (H,) in fp32."""
    weight = (trt.DataType.FLOAT, (hidden,))
    fields = {"epsilon": epsilon, "kernel": kernel}
    return PluginLayer(name, "LayerNorm", fields, ((dtype, (-1, hidden)), weight, weight), (dtype,))


def skip_layer_norm_layer(
    name: str,
    hidden: int,
    dtype: trt.DataType,
    epsilon: float,
    bias: bool = False,
    x_scale: float = 0.0,
    skip_scale: float = 0.0,
    output_scale: float = 0.0,
    outputs: str = "y",
) -> PluginLayer:
    """The SkipLayerNorm plugin on x and skip (S, H) and fp32 constants (H,): gamma, beta and, if asked for, a bias.

    Args:
        name: of the layer.
        hidden: H.
        dtype: type of x, skip and y as far as they are floating.
        epsilon: BERT: 1e-12.
        bias: whether there is one.
        x_scale: x is int8, real value = int8 · scale; 0: x is of ``dtype``.
        skip_scale: likewise.
        output_scale: scale of an int8 output; 0: there is none.
        outputs: ``y``: one output, int8 if there is a scale for it; ``both``: y in ``dtype``, then y in int8.
    """
    scales = {"x_scale": x_scale, "skip_scale": skip_scale, "output_scale": output_scale}
    given = {key: scale for key, scale in scales.items() if scale}
    fields = {"epsilon": epsilon, **given, "outputs": outputs, "constant_weights": 1}
    if x_scale and skip_scale:
        fields["output_type"] = element_type(dtype).name
    kinds = [trt.DataType.INT8 if scale else dtype for scale in (x_scale, skip_scale)]
    weights = [(trt.DataType.FLOAT, (hidden,))] * (3 if bias else 2)
    floating = (dtype,) if outputs == "both" or not output_scale else ()
    made = (*floating, trt.DataType.INT8) if output_scale else floating
    return PluginLayer(name, "SkipLayerNorm", fields, (*((kind, (-1, hidden)) for kind in kinds), *weights), made)


def emb_layer_norm_layer(name: str, hidden: int, dtype: trt.DataType, epsilon: float) -> PluginLayer:
    """The EmbLayerNorm plugin on ids (S,), three tables (rows, H) of ``dtype``, gamma and beta (H,) in fp32."""
    ids, table, weight = (trt.DataType.INT32, (-1,)), (dtype, (-1, hidden)), (trt.DataType.FLOAT, (hidden,))
    inputs = (ids, ids, ids, table, table, table, weight, weight)
    return PluginLayer(name, "EmbLayerNorm", {"epsilon": epsilon}, inputs, (dtype,))


def qkv_to_context_layer(
    name: str,
    hidden: int,
    num_heads: int,
    dtype: trt.DataType,
    layout: str = "single",
    qkv_scale: float = 0.0,
    output_scale: float = 0.0,
    output: trt.DataType | None = None,
) -> PluginLayer:
    """The QkvToContext plugin on qkv of ``dtype``.

    Args:
        name: of the layer.
        hidden: H.
        num_heads: N.
        dtype: of qkv.
        layout: single: qkv (S, 3H) alone; padded: qkv (B, S, 3H) and mask (B, S); packed: qkv (T, 3H) and
            cu_seqlens (B + 1,).
        qkv_scale: what one step of an int8 ``qkv`` counts.
        output_scale: what one step of an int8 output counts; the output is int8 then.
        output: the output's type where qkv is int8 and the output is not.
    """
    fields: dict[str, float | int | str] = {"num_heads": num_heads, "layout": layout}
    fields |= {"qkv_scale": qkv_scale} if qkv_scale else {}
    fields |= {"output_scale": output_scale} if output_scale else {}
    fields |= {"output_type": element_type(output).name} if output is not None else {}
    qkv = (dtype, (-1, -1, 3 * hidden) if layout == "padded" else (-1, 3 * hidden))
    second = {"single": (), "padded": ((trt.DataType.INT32, (-1, -1)),), "packed": ((trt.DataType.INT32, (-1,)),)}
    made = trt.DataType.INT8 if output_scale else output or dtype
    return PluginLayer(name, "QkvToContext", fields, (qkv, *second[layout]), (made,))


def linear_layer(name: str, dtype: trt.DataType, bias: bool = True, activation: str = "none") -> PluginLayer:
    """The Linear plugin on x (S, K) and constants, a weight (N, K) and, if asked for, a bias (N,), all of ``dtype``.

    K and N are left open: the constants that TensorRT for RTX reserves a layer with stay small.

    Args:
        name: of the layer.
        dtype: fp16 or bf16.
        bias: whether there is one.
        activation: none or gelu.
    """
    matrix, vector = (dtype, (-1, -1)), (dtype, (-1,))
    inputs = (matrix, matrix, vector) if bias else (matrix, matrix)
    fields = {"activation": activation, "constant_weight": 1}
    return PluginLayer(name, "Linear", fields, inputs, (dtype,))


def reading_weights_late(layer: PluginLayer) -> PluginLayer:
    """The layer without the leave to read its weights before the layer in front of it has ended."""
    late = {key: 0 for key in layer.fields if key in CONSTANT_FIELDS}
    return replace(layer, fields={**layer.fields, **late})


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
    """Places plugin layers in a network.

    Args:
        network: a network without any layer.
        log: its builder's logger.
        planned: every plugin layer that the network will hold.

    Raises:
        UserError: the library is not built, or TensorRT refuses a layer.
    """

    def __init__(self, network: trt.INetworkDefinition, log: TrtLog, planned: Sequence[PluginLayer]) -> None:
        self._network = network
        self._log = log
        self.library = load_library()
        check_creators(self.library, {layer.plugin for layer in planned})
        self.planned = {layer.name: layer for layer in planned}
        self._has_plugin_call = hasattr(network, "add_plugin_v3")
        self._reserved = {} if self._has_plugin_call else self._reserve(planned)

    def place(self, name: str, inputs: Sequence[trt.ITensor]) -> trt.ILayer | None:
        """Adds the planned layer ``name`` with these inputs; None if TensorRT refuses it."""
        layer = self.planned[name]
        if self._has_plugin_call:
            return self._network.add_plugin_v3(list(inputs), [], _create(layer))
        reserved = self._reserved[name]
        for index, tensor in enumerate(inputs):
            reserved.set_input(index, tensor)
        return reserved

    def _reserve(self, planned: Sequence[PluginLayer]) -> dict[str, trt.ILayer]:
        """Lets the ONNX parser make the layers, with constants for inputs. Returns them by name."""
        parser = plugin_parser(self._network)
        if not parser.parse(placeholder_model(planned)):
            raise UserError(f"TensorRT refuses the plugin layers: {self._log.take_errors()}")
        for index in reversed(range(self._network.num_outputs)):
            self._network.unmark_output(self._network.get_output(index))
        layers = (self._network.get_layer(index) for index in range(self._network.num_layers))
        return {layer.name: layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3}


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


def placeholder_model(planned: Sequence[PluginLayer]) -> bytes:
    """A small ONNX model: each plugin layer once, its inputs constants of the right types and ranks."""
    nodes, constants, outputs = [], [], []
    for layer in planned:
        names = [f"{layer.name}.placeholder{index}" for index in range(len(layer.inputs))]
        for name, (dtype, shape) in zip(names, layer.inputs, strict=True):
            fixed = [1 if axis == -1 else axis for axis in shape]
            size = onnx_helper.tensor_dtype_to_np_dtype(element_type(dtype).onnx).itemsize * int(np.prod(fixed))
            constants.append(onnx_helper.make_tensor(name, element_type(dtype).onnx, fixed, bytes(size), raw=True))
        reserved = [f"{layer.name}.reserved{index}" for index in range(len(layer.outputs))]
        nodes.append(plugin_node(layer, names, reserved))
        outputs += [
            onnx_helper.make_tensor_value_info(name, element_type(dtype).onnx, None)
            for name, dtype in zip(reserved, layer.outputs, strict=True)
        ]
    graph = onnx_helper.make_graph(nodes, "plugins", [], outputs, constants)
    model = onnx_helper.make_model(graph, opset_imports=[onnx_helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()
