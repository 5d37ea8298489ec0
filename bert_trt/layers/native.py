"""BERT's steps from TensorRT's own elementary layers: the exercise's first network.

Each step is a method that builder.py calls. Attention scales the query, multiplies it with the keys, turns the scores
into probabilities by a softmax, and multiplies these with the values. A layer norm is a single layer of TensorRT, or
one of the three kernels of the LayerNorm plugin.

Letters in shapes: S sequence length, H hidden size, N heads, D head size. Where shapes say (S, H), a padded batch has
(B, S, H) and a packed batch (T, H), see layouts.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from bert_trt.layers.layouts import SingleLayout
from bert_trt.layers.products import Products
from bert_trt.model_files import BertConfig, WeightFile
from bert_trt.options import GELU_KINDS
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper

QKV = ("query", "key", "value")


class NativeLayers:
    """The layer set that makes every step of elementary layers.

    Args:
        helper: adds the layers.
        config: the model's sizes.
        weights: the checkpoint's parameters by name. A ``Linear`` weight is (out, in), PyTorch's.
        layout: how the sequences of a batch lie in the tensors.
        products: computes the encoder's matrix products.
        gelu: which GELU (``options.GELU_KINDS``); None takes the checkpoint's.
        layer_norm_kernel: ``native``, or a kernel of the LayerNorm plugin.
        constant_weights: whether plugins may read weights before the previous layer has finished.

    Attributes:
        has_fused_attention: whether attention is a single layer, whose two products cannot be quantized.
    """

    has_fused_attention: ClassVar[bool] = False

    def __init__(
        self,
        helper: TrtNetworkHelper,
        config: BertConfig,
        weights: WeightFile,
        layout: SingleLayout,
        products: Products,
        gelu: str | None = None,
        layer_norm_kernel: str = "native",
        constant_weights: bool = True,
    ) -> None:
        self.helper = helper
        self.config = config
        self.weights = weights
        self.layout = layout
        self.products = products
        self._gelu = gelu
        self.activation = self._chosen_gelu(config.activation)
        self.layer_norm_kernel = layer_norm_kernel
        self.constant_weights = constant_weights
        self._tables: dict[str, trt.ITensor] = {}

    # the steps of the model

    def embeddings(self, ids: Sequence[trt.ITensor], name: str) -> trt.ITensor:
        """LN(word + type + position): three (S,) -> (S, E)."""
        input_ids, token_type_ids, position_ids = ids
        word = self.embedding(input_ids, f"{name}.word_embeddings", self.config.vocab_size)
        kind = self.embedding(token_type_ids, f"{name}.token_type_embeddings", self.config.type_vocab_size)
        position = self.embedding(position_ids, f"{name}.position_embeddings", self.config.max_positions)
        total = self.residual_sum(self.residual_sum(word, kind, f"{name}.word_and_type"), position, f"{name}.sum")
        return self.layer_norm(total, f"{name}.LayerNorm", self.config.embedding_size)

    def projection(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """x @ weightᵀ + bias: (S, E) -> (S, H)."""
        return self.head_linear(x, name, self.config.hidden_size)

    def self_attention(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """softmax(Q Kᵀ / √D) V for each head: (S, H) -> (S, H) (Vaswani et al., arXiv:1706.03762)."""
        # exercise 6 begins
        helper, heads, size = self.helper, self.config.num_heads, self.config.head_size
        query, key, value = (
            self.layout.split_heads(self.linear(x, f"{name}.{part}"), heads, size, f"{name}.{part}.heads")
            for part in QKV
        )  # each (N, S, D)
        # The query is scaled before the product, since unscaled scores can overflow fp16.
        query = helper.addScale(query, 1 / math.sqrt(size), f"{name}.scaled_query")
        scores = self.products.matmul(query, key, f"{name}.scores", transpose_b=True)  # (N, S, S)
        probabilities = helper.addSoftmax(scores, f"{name}.probabilities", bias=self.score_bias)  # (N, S, S)
        context = self.products.matmul(probabilities, value, f"{name}.context")  # (N, S, D)
        return self.layout.merge_heads(context, self.config.hidden_size, name)
        # exercise 6 ends

    def linear_activation(self, x: trt.ITensor, name: str, width: int) -> trt.ITensor:
        """activation(x @ weightᵀ + bias): (S, in) -> (S, width)."""
        weight, bias = self.linear_weights(f"{name}.dense", x.shape[-1], width)
        activation_name = f"{name}.{name.rpartition('.')[2]}_act_fn"
        return self.products.linear_activation(x, weight, bias, f"{name}.dense", self.activation, activation_name)

    def linear_add_norm(self, x: trt.ITensor, residual: trt.ITensor, name: str) -> trt.ITensor:
        """LN(x @ weightᵀ + bias + residual): (S, in) and (S, H) -> (S, H)."""
        x = self.linear(x, f"{name}.dense")
        return self.layer_norm(self.residual_sum(x, residual, f"{name}.sum"), f"{name}.LayerNorm")

    # the heads; every layer set has these elementary ones

    def head_transform(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """LN(activation(x @ weightᵀ + bias)): (S, H) -> (S, E)."""
        x = self.head_linear(x, f"{name}.dense", self.config.embedding_size)
        kind = self._chosen_gelu(self.config.head_activation)
        x = self.helper.addActivation(x, f"{name}.{name.rpartition('.')[2]}_act_fn", kind)
        return self.layer_norm(x, f"{name}.LayerNorm", self.config.embedding_size)

    def decoder(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """Logits over the vocabulary V: (S, E) -> (S, V). A tied decoder's weight is the word embeddings' table."""
        vocab_size = self.config.vocab_size
        if not self.config.tied_decoder:
            return self.head_linear(x, f"{name}.decoder", vocab_size)
        table = self.table(f"{self.config.prefix}embeddings.word_embeddings", vocab_size)  # (V, E)
        return self.helper.addTiedLinear(x, table, self.weights.get(f"{name}.bias", (vocab_size,)), name)

    def head_linear(self, x: trt.ITensor, name: str, width: int) -> trt.ITensor:
        """x @ weightᵀ + bias: (..., in) -> (..., width)."""
        weight, bias = self.linear_weights(name, x.shape[-1], width)
        return self.helper.addLinear(x, weight, bias, name)

    def pooler(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """activation(first token @ weightᵀ + bias): (S, H) -> (1, H)."""
        x = self.layout.first_token(x, f"{name}.token")
        x = self.head_linear(x, f"{name}.dense", self.config.hidden_size)
        return self.helper.addActivation(x, f"{name}.activation", self.config.pooler_activation)

    def pooled(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The embedding of a sequence before its dense layers: (S, H) -> (1, H)."""
        if self.config.pooling == "mean":
            x = self.layout.mean_token(x, name)
        elif self.config.pooling == "max":
            x = self.layout.largest_token(x, name)
        else:
            x = self.layout.first_token(x, name)
        return x

    def embedding_layers(self, x: trt.ITensor) -> trt.ITensor:
        """The dense layers of an embedding and its division by its L2 norm: (1, H) -> (1, width)."""
        for index, dense in enumerate(self.config.embedding_layers):
            name = f"dense_{index}"
            x = self.helper.addCast(x, self.helper.dtype, f"{name}.input")
            weight = self.weights.get(f"{name}.weight", (dense.width_out, dense.width_in))
            bias = self.weights.get(f"{name}.bias", (dense.width_out,)) if dense.has_bias else None
            x = self.helper.addActivation(
                self.helper.addLinear(x, weight, bias, name), f"{name}.activation", dense.activation
            )
        return self.helper.addNormalized(x, "embedding.normalized") if self.config.normalize else x

    # modules

    def linear(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """A ``Linear`` of the encoder with H outputs: (S, in) -> (S, H)."""
        weight, bias = self.linear_weights(name, x.shape[-1], self.config.hidden_size)
        return self.products.linear(x, weight, bias, name)

    def layer_norm(self, x: trt.ITensor, name: str, width: int | None = None) -> trt.ITensor:
        """A ``LayerNorm``: (S, width) -> (S, width), H by default."""
        gamma, beta = self.norm_weights(name, width)
        return self.helper.addLayerNorm(x, gamma, beta, self.config.layer_norm_eps, name, self.layer_norm_kernel)

    def embedding(self, ids: trt.ITensor, name: str, rows: int) -> trt.ITensor:
        """An ``Embedding``: (S,) -> (S, E)."""
        return self.helper.addEmbedding(ids, self.table(name, rows), name)

    def residual_sum(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a + b in fp32: a trained BERT has its largest values in the residual sum, which would overflow fp16 first.

        TensorRT's layer norm, which follows, computes in fp32 anyway. The LayerNorm plugin reads the network's type,
        so that before it the sum has that type.
        """
        if self.layer_norm_kernel != "native":
            return self.helper.addAdd(a, b, name)
        fp32 = [
            self.helper.addCast(x, trt.DataType.FLOAT, f"{name}.{side}") for x, side in ((a, "left"), (b, "right"))
        ]
        return self.helper.addAdd(fp32[0], fp32[1], name)

    @functools.cached_property
    def score_bias(self) -> trt.ITensor | None:
        """What is added to the scores: the layout's mask and the bias of relative positions, fp32; None for nothing.

        Its layers are added once for all encoder layers.
        """
        mask = self.layout.additive_mask()
        if not self.config.has_relative_positions:
            return mask
        helper, name = self.helper, f"{self.config.prefix}encoder.relative_attention_bias"
        weight = self.weights.get(f"{name}.weight", (2 * self.config.max_positions - 1, self.config.num_heads))
        table = helper.addConstant(weight, f"{name}.weight", trt.DataType.FLOAT)
        bias = helper.addEmbedding(self.layout.distances(), table, name)  # (S, S, N)
        bias = self.layout.spread_bias(bias, f"{name}.heads")  # (N, S, S)
        return bias if mask is None else helper.addAdd(bias, mask, f"{name}.masked")

    def _chosen_gelu(self, activation: str) -> str:
        """The GELU that --gelu asks for, in place of the checkpoint's; another activation as it is."""
        return self._gelu if self._gelu is not None and activation in GELU_KINDS else activation

    # parameters

    def linear_weights(self, name: str, width_in: int, width_out: int) -> tuple[np.ndarray, np.ndarray]:
        """Weight (out, in) and bias (out,) of a ``Linear``."""
        weight = self.weights.get(f"{name}.weight", (width_out, width_in))
        return weight, self.weights.get(f"{name}.bias", (width_out,))

    def norm_weights(self, name: str, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Gamma and beta of a ``LayerNorm``, each (width,), H by default."""
        width = width or self.config.hidden_size
        gamma, beta = (self.weights.get(f"{name}.{part}", (width,)) for part in ("weight", "bias"))
        return gamma, beta

    def table(self, name: str, rows: int) -> trt.ITensor:
        """The table of an ``Embedding``, (rows, E); the decoder that is tied to it uses the same constant."""
        if name not in self._tables:
            weight = self.weights.get(f"{name}.weight", (rows, self.config.embedding_size))
            self._tables[name] = self.helper.addConstant(weight, f"{name}.weight")
        return self._tables[name]
