"""Layer sets in which one plugin alone takes the place of elementary layers, to see what each of them brings."""

from __future__ import annotations

from bert_trt.layers.fused import FusedLayers
from bert_trt.layers.native import NativeLayers


class OnlyEmbLayerNorm(NativeLayers):
    """Embeddings by the plugin."""

    embeddings = FusedLayers.embeddings


class OnlySkipLayerNorm(NativeLayers):
    """Residual sums and the layer norms behind them by the plugin."""

    linear_add_norm = FusedLayers.linear_add_norm


class OnlyQkvToContext(NativeLayers):
    """Attention by the plugin."""

    computes_attention_whole = True
    self_attention = FusedLayers.self_attention


# A name for a table -> fusion, layer set and plugins of ``builder.assemble``.
ALONE: dict[str, tuple[str, type[NativeLayers], tuple[str, ...]]] = {
    "EmbLayerNorm": ("none", OnlyEmbLayerNorm, ("EmbLayerNorm",)),
    "SkipLayerNorm": ("none", OnlySkipLayerNorm, ("SkipLayerNorm",)),
    "QkvToContext": ("none", OnlyQkvToContext, ("QkvToContext",)),
    "Linear": ("all", NativeLayers, ("Linear",)),
}
