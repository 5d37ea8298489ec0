"""The layer sets: each adds the layers for the steps of BERT in builder.py to a network.

Read ``native.py`` first: it makes every step of TensorRT's elementary layers. The other sets replace single steps:

* ``tensorrt_attention.py``: attention as TensorRT's own attention layer (``--fusion tensorrt``).
* ``fused.py``: embeddings, attention, and residual sum with layer norm as our plugins (``--fusion plugins``).
* ``fused_quantized.py``: the plugins of ``--fusion all``, with activations in 8 bits between them (``--precision
  int8`` and ``fp8``).

Every layer set gets two more objects. A layout of ``layouts.py`` knows how the sequences of a batch lie in the
tensors (``--batching``). ``products.py`` and ``quantized.py`` compute the encoder's matrix products (``--fusion
all``, ``--precision int8`` and ``fp8``).
"""

from bert_trt.layers.fused_quantized import EightBitProducts, FusedQuantizedLayers
from bert_trt.layers.layouts import LAYOUTS
from bert_trt.layers.native import NativeLayers
from bert_trt.layers.products import LinearPluginProducts, Products
from bert_trt.layers.quantized import QuantizedProducts

__all__ = [
    "LAYOUTS",
    "EightBitProducts",
    "FusedQuantizedLayers",
    "LinearPluginProducts",
    "NativeLayers",
    "Products",
    "QuantizedProducts",
]
