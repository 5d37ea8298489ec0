"""Layer sets in which one plugin alone takes the place of elementary layers, to see what each of them brings."""

from __future__ import annotations

from bert_trt.layers.fused import FusedLayers
from bert_trt.layers.native import NativeLayers


class OnlyEmbLayerNorm(FusedLayers):
    """Embeddings by the plugin, every other step native."""

    has_fused_attention = False
    __init__ = NativeLayers.__init__  # which takes heads of any size
    self_attention = NativeLayers.self_attention
    linear_add_norm = NativeLayers.linear_add_norm


class OnlySkipLayerNorm(FusedLayers):
    """Residual sums and the layer norms behind them by the plugin, every other step native."""

    has_fused_attention = False
    __init__ = NativeLayers.__init__
    embeddings = NativeLayers.embeddings
    self_attention = NativeLayers.self_attention


class OnlyQkvToContext(FusedLayers):
    """Attention by the plugin, every other step native."""

    embeddings = NativeLayers.embeddings
    linear_add_norm = NativeLayers.linear_add_norm


# A name for a table -> fusion, layer set and plugins of ``builder.assemble``.
ALONE: dict[str, tuple[str, type[NativeLayers], tuple[str, ...]]] = {
    "EmbLayerNorm": ("none", OnlyEmbLayerNorm, ("EmbLayerNorm",)),
    "SkipLayerNorm": ("none", OnlySkipLayerNorm, ("SkipLayerNorm",)),
    "QkvToContext": ("none", OnlyQkvToContext, ("QkvToContext",)),
    "Linear": ("all", NativeLayers, ("Linear",)),
}
