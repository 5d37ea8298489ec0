"""``DefinedNetwork``: a network that is defined but not yet built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bert_trt.plugin_layers import PluginLayer
from bert_trt.quantization import Product
from bert_trt.tensorrt_product import trt


@dataclass(frozen=True)
class NetworkContents:
    """Values in a network that TensorRT's Python API does not expose, by layer name; network_runner.py needs them.

    Attributes:
        weights: the values of constants; the API does not expose those of bf16.
        plugins: the plugin layers with their fields.
        sources: the fp32 values from which constants were rounded or quantized.
        scales: the scales of quantized activations, by ``quantization.range_name``; empty if they are not known.
    """

    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    plugins: Mapping[str, PluginLayer] = field(default_factory=dict)
    sources: Mapping[str, np.ndarray] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DefinedNetwork:
    """A network ready to be built, with the objects that must live until then.

    Attributes:
        builder: the network's builder.
        network: the network, its outputs marked.
        contents: its constants and plugin layers.
        owner: owns the weights that TensorRT reads when it builds: the weight file, or the parser.
        hidden_states: names of the tensors that are PyTorch's hidden states; empty if they are not known.
        products: the encoder's matrix products, in the order of computation; empty if they are not known.
        num_quantized: number of products with two quantized operands; None: as many as the quantization names.
        gelu_parts: names of the elementary layers of decomposed GELUs.
    """

    builder: trt.Builder
    network: trt.INetworkDefinition
    contents: NetworkContents
    owner: Any
    hidden_states: list[str] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    num_quantized: int | None = None
    gelu_parts: list[str] = field(default_factory=list)


Assemble = Callable[..., DefinedNetwork]  # builder.assemble, which is passed in, since no library imports a script
