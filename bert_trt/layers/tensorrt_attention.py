"""Attention as TensorRT's own attention layer (``--fusion tensorrt``); every other step is native."""

from __future__ import annotations

import functools
import math
from typing import Any

from bert_trt.console import UserError
from bert_trt.layers.layouts import PackedLayout
from bert_trt.layers.native import QKV, NativeLayers
from bert_trt.tensorrt_product import trt
from trt_helper import check_attention, has_packed_attention


class TensorRTAttentionLayers(NativeLayers):
    """Native layers with TensorRT's own attention. Arguments as for ``NativeLayers``.

    Raises:
        UserError: the installed TensorRT has no attention of its own, or the model has relative positions.
    """

    has_fused_attention = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        check_attention()
        super().__init__(*arguments, **named)
        if self.config.has_relative_positions:
            raise UserError(
                "--fusion tensorrt: the model's scores have a bias by relative positions, and the mask of TensorRT's "
                "attention is true or false here; build with --fusion none or plugins"
            )
        self._packs = isinstance(self.layout, PackedLayout) and has_packed_attention(self.helper.dtype)

    def self_attention(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """softmax(Q Kᵀ / √D) V for each head: (S, H) -> (S, H).

        Q, K and V are three products. TensorRT merges them itself, and its attention reads three tensors: a product
        that was merged here would have to be split again.
        """
        helper, config = self.helper, self.config
        # (S, H) -> (B, S, N, D) -> (B, N, S, D); packed (T, H) -> (T, N, D)
        axes, swap = ((-1,), None) if self._packs else (self.layout.attention_axes, (0, 2, 1, 3))
        query, key, value = (
            helper.addShuffle(
                self.linear(x, f"{name}.{part}"),
                f"{name}.{part}.heads",
                shape=(*axes, config.num_heads, config.head_size),
                second_transpose=swap,
            )
            for part in QKV
        )
        query = helper.addScale(query, 1 / math.sqrt(config.head_size), f"{name}.scaled_query")
        mask, cu_seqlens = (None, self.layout.lengths) if self._packs else (self.boolean_mask, None)
        context = helper.addAttention(query, key, value, f"{name}.context", mask, cu_seqlens)
        # Where TensorRT has no packed attention, a packed batch is one sequence with a block-diagonal mask.
        return helper.addShuffle(
            context, name, first_transpose=swap, shape=(*self.layout.flat_axes, config.hidden_size)
        )

    @functools.cached_property
    def boolean_mask(self) -> trt.ITensor | None:
        """The layout's boolean mask; its layers are added once for all encoder layers."""
        return self.layout.boolean_mask()
