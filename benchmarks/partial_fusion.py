"""Layer sets with a single plugin, to measure the effect of each plugin."""

from __future__ import annotations

from bert_trt.layers.fused import FusedLayers
from bert_trt.layers.native import NativeLayers


class OnlyEmbLayerNorm(NativeLayers):
    """Embeddings by EmbLayerNorm; every other step is native."""

    embeddings = FusedLayers.embeddings


class OnlySkipLayerNorm(NativeLayers):
    """Residual sums with layer norm by SkipLayerNorm; every other step is native."""

    linear_add_norm = FusedLayers.linear_add_norm


class OnlyQkvToContext(NativeLayers):
    """Attention by QkvToContext; every other step is native."""

    has_fused_attention = True
    self_attention = FusedLayers.self_attention


# By the name in tables: ``fusion`` and ``layer_set`` for ``builder.assemble``, and the plugins in the network.
ALONE: dict[str, tuple[str, type[NativeLayers], tuple[str, ...]]] = {
    "EmbLayerNorm": ("none", OnlyEmbLayerNorm, ("EmbLayerNorm",)),
    "SkipLayerNorm": ("none", OnlySkipLayerNorm, ("SkipLayerNorm",)),
    "QkvToContext": ("none", OnlyQkvToContext, ("QkvToContext",)),
    "Linear": ("all", NativeLayers, ("Linear",)),
}
