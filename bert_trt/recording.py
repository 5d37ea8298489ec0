"""Defines a network that may hold plugin layers, in both products of TensorRT, from one description.

TensorRT for RTX makes plugin layers in an empty network alone (see plugin_layers.py), so it has to know them before
the first layer is added. There is no second list of them: the description itself runs twice, first on a
``RecordingHelper``, which notes the plugin layers as they are added, then on the real network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from bert_trt.plan import create_builder, create_network
from bert_trt.plugin_layers import PluginLayer, PluginLayers, RecordedLayer
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper

Defined = TypeVar("Defined")


class RecordingHelper(TrtNetworkHelper):
    """Notes the plugin layers that are added, in a network that is thrown away.

    The network is a real one, so that TensorRT works out the shapes; what costs time or memory is not in it: matrices
    of weights and the outputs of plugins are inputs of the network.

    Attributes:
        recorded: the plugin layers so far.
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
        """An input of the network in place of a matrix; scales and scalars are constants, as TensorRT wants them."""
        if values.ndim < 2:
            return super().addConstant(values, name, dtype, shape)
        return self.addInput(name, dtype or self.dtype, values.shape if shape is None else shape)

    def addPlugin(self, layer: PluginLayer, inputs: Sequence[trt.ITensor]) -> tuple[trt.ITensor, ...]:
        """Notes the layer; its outputs are inputs of the network."""
        self.recorded.append(RecordedLayer.of(layer, inputs))
        return tuple(
            self.addInput(layer.name if place == 0 else f"{layer.name}.{place}", dtype, shape)
            for place, (dtype, shape) in enumerate(layer.outputs)
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
        define: adds inputs, layers and outputs; called a second time where TensorRT must know plugin layers first.
        has_plugins: whether it may add plugin layers; without any, the plugin library need not be built.

    Returns:
        The builder, which must live as long as the network; the helper with its network; and what ``define`` has
        returned for it.

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
