"""BERT in PyTorch, in the one form that all families are brought into; model2onnx.py exports it.

The parameters have the names of Hugging Face's BERT, whatever the family (see families.py). Shapes are those of one
sequence: S sequence length, H hidden size, E width of the embeddings, N heads, D head size, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_trt.model_files import BertConfig

# The kinds of addActivation and of the pooler, as PyTorch's functions.
FUNCTIONS = {
    "erf": F.gelu,
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hyperbolic_tangent": torch.tanh,
    "identity": lambda x: x,
}


class Embeddings(nn.Module):
    """LN(word + type + position), and a projection where the embeddings are narrower than the encoder."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_positions, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.projection = nn.Linear(width, config.hidden_size) if config.has_projection else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Three (1, S) -> (1, S, H)."""
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = self.LayerNorm(x + self.position_embeddings(position_ids))
        return x if self.projection is None else self.projection(x)


class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √D + bias) V for each head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads, self.head_size = config.num_heads, config.head_size
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(1, S, H), and bias (1, N, S, S) or None -> (1, S, H)."""
        query, key, value = (
            linear(x).view(1, -1, self.heads, self.head_size).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )  # each (1, N, S, D)
        scores = torch.matmul(query, key.transpose(2, 3)) * (1 / math.sqrt(self.head_size))  # (1, N, S, S)
        probabilities = torch.softmax(scores if bias is None else scores + bias, -1)
        context = torch.matmul(probabilities, value)  # (1, N, S, D)
        return context.transpose(1, 2).reshape(1, -1, self.heads * self.head_size)


class Dense(nn.Module):
    """A Linear with the parameter names of Hugging Face's BERT: ``dense.weight``, ``dense.bias``."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.dense(x)


class DenseNorm(Dense):
    """LN(x @ weightᵀ + bias + residual)."""

    def __init__(self, width_in: int, width_out: int, epsilon: float) -> None:
        super().__init__(width_in, width_out)
        self.LayerNorm = nn.LayerNorm(width_out, epsilon)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(1, S, in) and (1, S, H) -> (1, S, H)."""
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    """One encoder layer: attention and feed-forward network, each followed by residual sum and layer norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        hidden, inner, epsilon = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        attention = {"self": SelfAttention(config), "output": DenseNorm(hidden, hidden, epsilon)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = Dense(hidden, inner)
        self.output = DenseNorm(inner, hidden, epsilon)
        self.activation = FUNCTIONS[config.activation]

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(1, S, H) -> (1, S, H); ``bias`` as for ``SelfAttention``."""
        x = self.attention["output"](self.attention["self"](x, bias), x)
        return self.output(self.activation(self.intermediate(x)), x)


class Encoder(nn.Module):
    """The encoder layers, and the table of the relative positions' bias where the family has one."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        if config.has_relative_positions:
            self.relative_attention_bias = nn.Embedding(2 * config.max_positions - 1, config.num_heads)
        self.max_positions = config.max_positions
        self.has_relative_positions = config.has_relative_positions

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """(1, S, H) and (1, S) -> (1, S, H)."""
        bias = self.attention_bias(position_ids) if self.has_relative_positions else None
        for layer in self.layer:
            x = layer(x, bias)
        return x

    def attention_bias(self, position_ids: Tensor) -> Tensor:
        """Positions (1, S) -> (1, N, S, S): row p_key - p_query + P - 1 of the table."""
        distance = position_ids[:, None, :] - position_ids[:, :, None] + self.max_positions - 1  # (1, S, S)
        return self.relative_attention_bias(distance).permute(0, 3, 1, 2)


class Pooler(nn.Module):
    """activation(first token @ weightᵀ + bias)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = FUNCTIONS[config.pooler_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(1, S, H) -> (1, H)."""
        return self.activation(self.dense(x[:, 0]))


class EncoderModel(nn.Module):
    """Embeddings, encoder, and the pooler where the task reads it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        if config.has_pooler:
            self.pooler = Pooler(config)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Three (1, S) -> (1, S, H)."""
        return self.encoder(self.embeddings(input_ids, token_type_ids, position_ids), position_ids)


class Transform(nn.Module):
    """LN(activation(x @ weightᵀ + bias)): the head's step before the decoder, H -> E."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.LayerNorm = nn.LayerNorm(config.embedding_size, config.layer_norm_eps)
        self.activation = FUNCTIONS[config.head_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(1, S, H) -> (1, S, E)."""
        return self.LayerNorm(self.activation(self.dense(x)))


class Predictions(nn.Module):
    """The head of a masked language model. A tied decoder's weight is the word embeddings."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder: nn.Linear | None = None
        if config.tied_decoder:
            self.bias = nn.Parameter(torch.empty(config.vocab_size))
        else:
            self.decoder = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(1, S, H) and the word embeddings (V, E) -> (1, S, V)."""
        x = self.transform(x)
        return self.decoder(x) if self.decoder is not None else torch.matmul(x, table.transpose(0, 1)) + self.bias


class PyTorchBert(nn.Module):
    """BERT with the head of its task.

    Args:
        config: the model's sizes and its task.
        state: its parameters by name; they are used as they are, not copied.

    Raises:
        RuntimeError: a parameter is missing, superfluous, or has another shape.
    """

    def __init__(self, config: BertConfig, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            encoder = EncoderModel(config)
            if config.prefix:
                self.bert = encoder
            else:  # the encoder's parameters have no prefix
                for name, module in encoder.named_children():
                    self.add_module(name, module)
            if config.task == "fill-mask":
                self.cls = nn.ModuleDict({"predictions": Predictions(config)})
            elif config.task == "question-answering":
                self.qa_outputs = nn.Linear(config.hidden_size, 2)
            elif config.labels:
                self.classifier = nn.Linear(config.hidden_size, len(config.labels))
            for index, dense in enumerate(config.embedding_layers):
                self.add_module(f"dense_{index}", nn.Linear(dense.width_in, dense.width_out, dense.has_bias))
        self.encoder_model = [encoder]  # in a list, so that it is not registered a second time
        self.load_state_dict(dict(state), assign=True)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Three int64 (1, S) to the task's output: fp32 (1, S, width), or (1, width) where the task has one row."""
        config, (encoder,) = self.config, self.encoder_model
        x = encoder(input_ids, token_type_ids, position_ids)  # (1, S, H)
        if config.task == "fill-mask":
            return self.cls["predictions"](x, encoder.embeddings.word_embeddings.weight)
        if config.task == "embedding":
            return self.embedding(x)
        if config.task == "sequence-classification":
            return self.classifier(encoder.pooler(x) if config.has_pooler else x[:, 0])
        if config.task == "token-classification":
            return self.classifier(x)
        return self.qa_outputs(x) if config.task == "question-answering" else x

    def embedding(self, x: Tensor) -> Tensor:
        """(1, S, H) -> (1, width): pooled, and what ``finish_embedding`` does."""
        (encoder,) = self.encoder_model
        pooled = {
            "mean": lambda: x.mean(1),
            "max": lambda: x.amax(1),
            "cls": lambda: x[:, 0],
            "pooler": lambda: encoder.pooler(x),
        }[self.config.pooling]()
        return self.finish_embedding(pooled)

    def finish_embedding(self, pooled: Tensor) -> Tensor:
        """(B, H) -> (B, width): the dense layers and the division by the L2 norm."""
        for index, dense in enumerate(self.config.embedding_layers):
            pooled = FUNCTIONS[dense.activation](self.get_submodule(f"dense_{index}")(pooled))
        return F.normalize(pooled, dim=-1) if self.config.normalize else pooled
