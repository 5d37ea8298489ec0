"""``define_network`` defines a network that may have plugin layers, for both products of TensorRT.

TensorRT for RTX can only add plugin layers to an empty network (see plugin_layers.py), so that they must be known
before the first layer is added. Instead of a second list of them, the code that defines the network runs twice: first
with a ``RecordingHelper``, which records the plugin layers, then with the real network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from bert_trt.element_types import element_type
from bert_trt.plan import create_builder, create_network
from bert_trt.plugin_layers import PluginLayer, PluginLayers, RecordedLayer
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper

Defined = TypeVar("Defined")


class RecordingHelper(TrtNetworkHelper):
    """Records the plugin layers that are added. Its network is discarded.

    The network is a real one, so that TensorRT infers the shapes. To save time and memory, weight matrices and the
    outputs of plugins are inputs of this network.

    Attributes:
        recorded: the plugin layers that were added so far.
    """

    def __init__(self, builder: trt.Builder, log: TrtLog, dtype: trt.DataType) -> None:
        super().__init__(create_network(builder), log, dtype)
        self.recorded: list[RecordedLayer] = []

    def addConstant(
        self,
        values: np.ndarray,
        name: str,
        dtype: trt.DataType | None = None,
        shape: Sequence[int] | None = None,
    ) -> trt.ITensor:
        """Adds an input in place of a matrix; scales and scalars stay constants, as TensorRT requires."""
        if values.ndim < 2:
            return super().addConstant(values, name, dtype, shape)
        return self.addInput(name, dtype or self.dtype, values.shape if shape is None else shape)

    def _quantize(self, weight: np.ndarray, dtype: trt.DataType, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Arrays of the right shapes and types, without the work: the network needs no values."""
        scales = np.ones(weight.shape[0], np.float32)
        return np.broadcast_to(np.zeros((), element_type(dtype).numpy), weight.shape), scales

    def addPlugin(self, layer: PluginLayer, inputs: Sequence[trt.ITensor]) -> tuple[trt.ITensor, ...]:
        """Records the layer and adds an input for each of its outputs."""
        self.recorded.append(RecordedLayer.of(layer, inputs))
        return tuple(
            self.addInput(layer.name if index == 0 else f"{layer.name}.{index}", dtype, shape)
            for index, (dtype, shape) in enumerate(layer.outputs)
        )


def define_network(
    log: TrtLog,
    dtype: trt.DataType,
    define: Callable[[TrtNetworkHelper], Defined],
    has_plugins: bool = True,
) -> tuple[trt.Builder, TrtNetworkHelper, Defined]:
    """Defines a network.

    Args:
        log: for TensorRT's messages.
        dtype: the helper's type of weights and tensors.
        define: adds inputs, layers and outputs; it is called twice if ``has_plugins``.
        has_plugins: whether ``define`` may add plugin layers; if not, the plugin library need not be built.

    Returns:
        The builder, which must live as long as the network; the helper with its network; the result of ``define``.

    Raises:
        UserError: the plugin library is not built, or TensorRT refuses a layer.
    """
    builder, network = create_builder(log)
    plugins = None
    if has_plugins:
        recorder = RecordingHelper(builder, log, dtype)
        define(recorder)
        plugins = PluginLayers(network, log, recorder.recorded)
    helper = TrtNetworkHelper(network, log, dtype, plugins)
    return builder, helper, define(helper)
