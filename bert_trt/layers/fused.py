"""BERT's steps as our CUDA plugins (``--fusion plugins``): EmbLayerNorm, QkvToContext, SkipLayerNorm.

Each plugin replaces several elementary layers of native.py, and reads and writes the tensors once. The method of
trt_helper.py that adds a plugin shows its fields; its kernels are under plugins/. With the products of ``--fusion
all`` the step of SkipLayerNorm is one layer with its linear layer, see products.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_trt.console import UserError
from bert_trt.layers.native import QKV, NativeLayers
from bert_trt.model_files import BertConfig
from bert_trt.tensorrt_product import trt

HEAD_SIZES = (32, 64, 128)  # QkvToContext has kernels for these


class UnsuitableFusionError(UserError):
    """The model or the quantization does not suit the chosen fusion; the message says why."""


def attention_obstacle(config: BertConfig) -> str | None:
    """Why the QkvToContext plugin cannot compute a model's attention; None if it can."""
    if config.has_relative_positions:
        return "the model's scores have a bias by relative positions, which the QkvToContext plugin does not add"
    if config.head_size not in HEAD_SIZES:
        return (
            f"the model's heads have {config.head_size} elements, and the QkvToContext plugin takes "
            f"{', '.join(map(str, HEAD_SIZES))}"
        )
    return None


class FusedLayers(NativeLayers):
    """Embeddings, attention, and residual sum with layer norm as plugins. Arguments as for ``NativeLayers``.

    Attention is native where the QkvToContext plugin has no kernel for it, see ``attention_obstacle``.
    """

    has_fused_attention = True

    def embeddings(self, ids: Sequence[trt.ITensor], name: str) -> trt.ITensor:
        """LN(word + position + type): three (S,) -> (S, E)."""
        (y,) = self.add_embeddings(ids, name)
        return y

    def add_embeddings(self, ids: Sequence[trt.ITensor], name: str, **outputs: Any) -> tuple[trt.ITensor, ...]:
        """The outputs of the EmbLayerNorm plugin, each (S, E); ``outputs`` are arguments of ``addEmbLayerNorm``."""
        config = self.config
        rows = {
            "word_embeddings": config.vocab_size,
            "position_embeddings": config.max_positions,
            "token_type_embeddings": config.type_vocab_size,
        }
        tables = [self.table(f"{name}.{part}", count) for part, count in rows.items()]
        gamma, beta = self.norm_weights(f"{name}.LayerNorm", config.embedding_size)
        return self.helper.addEmbLayerNorm(
            *(ids, tables, gamma, beta, config.layer_norm_eps, f"{name}.LayerNorm"), **outputs
        )

    def self_attention(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """softmax(Q Kᵀ / √D) V for each head: (S, H) -> (S, H).

        One product with the concatenated weights of Q, K and V computes (S, 3 H), which the plugin reads.
        """
        if attention_obstacle(self.config) is not None:
            return super().self_attention(x, name)
        # exercise 15 begins
        weight, bias = self.qkv_weights(name)
        modules = [f"{name}.{part}" for part in QKV]
        return self.context(self.products.linear(x, weight, bias, f"{name}.qkv", modules), name)
        # exercise 15 ends

    def qkv_weights(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight (3 H, H) and bias (3 H,) of Q, K and V together."""
        # exercise 15 begins
        hidden = self.config.hidden_size
        parts = [self.linear_weights(f"{name}.{part}", hidden, hidden) for part in QKV]
        weights, biases = zip(*parts, strict=True)
        return np.concatenate(weights), np.concatenate(biases)
        # exercise 15 ends

    def context(self, qkv: trt.ITensor, name: str) -> trt.ITensor:
        """(S, 3 H) -> (S, H) by the QkvToContext plugin."""
        layout = self.layout
        return self.helper.addQkvToContext(
            *(qkv, self.config.num_heads, name, layout.name, layout.lengths, layout.max_sequence_length)
        )

    def linear_add_norm(self, x: trt.ITensor, residual: trt.ITensor, name: str) -> trt.ITensor:
        """LN(x @ weightᵀ + bias + residual): (S, in) and (S, H) -> (S, H)."""
        (y,) = self.add_linear_norm(x, residual, name)
        return y

    def add_linear_norm(
        self, x: trt.ITensor, residual: trt.ITensor, name: str, **outputs: Any
    ) -> tuple[trt.ITensor, ...]:
        """The outputs of the plugin that normalises, each (S, H); ``outputs`` as for ``Products.linear_add_norm``."""
        return self.products.linear_add_norm(
            *(x, residual),
            self.linear_weights(f"{name}.dense", x.shape[-1], self.config.hidden_size),
            self.norm_weights(f"{name}.LayerNorm"),
            *(self.config.layer_norm_eps, name),
            constant_weights=self.constant_weights,
            **outputs,
        )
