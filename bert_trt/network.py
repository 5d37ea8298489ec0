"""A network that is defined and not yet built, with what TensorRT's Python API cannot read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bert_trt.plugin_layers import PluginLayer
from bert_trt.quantization import Product
from bert_trt.tensorrt_product import trt


@dataclass(frozen=True)
class NetworkContents:
    """What TensorRT's Python API cannot read back from a network, by layer name; network_runner.py needs it.

    Attributes:
        weights: values of constants, bf16 ones above all.
        plugins: plugin layers with their fields.
        sources: fp32 values from which constants were rounded or quantized.
    """

    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    plugins: Mapping[str, PluginLayer] = field(default_factory=dict)
    sources: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class DefinedNetwork:
    """A network ready to be built, and what must live until then.

    Attributes:
        builder: the network's builder.
        network: the network, its outputs marked.
        contents: what was put into it.
        owner: owns the weights that TensorRT reads when it builds: the weight file, or the parser.
        hidden_states: names of the tensors that are PyTorch's hidden states; empty if they are not known.
        products: the encoder's matrix products, in the order of computation; empty if they are not contents.
        num_quantized: how many products have two quantized factors; None: as many as the quantization names.
        gelu_parts: names of the layers of a GELU that was decomposed.
    """

    builder: trt.Builder
    network: trt.INetworkDefinition
    contents: NetworkContents
    owner: Any
    hidden_states: list[str] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    num_quantized: int | None = None
    gelu_parts: list[str] = field(default_factory=list)
