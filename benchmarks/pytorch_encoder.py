"""The peer of the encoder benchmarks: BERT in PyTorch, in fp16 and in fp8, as fast as torch.compile makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import embedding, gelu, layer_norm, linear, scaled_dot_product_attention

from bert_trt.console import UserError
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, BertConfig, WeightFile
from plugins.measure import graph_times

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
PRODUCTS = ("qkv", "attended", "inner", "outer")  # of each layer
SIZES = 64  # of packed batches at most, for each of which torch.compile compiles; its own limit is 8
FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max


def fastest_attention(config: BertConfig, batch: int, length: int) -> str:
    """The key of the fastest of ``BACKENDS`` for sequences of this size."""
    shape = (batch, length, config.num_heads, config.head_size)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.float16).transpose(1, 2) for _ in range(3))
    times = {}
    for name, backend in BACKENDS.items():
        with sdpa_kernel(backend):
            times[name] = graph_times({"it": lambda: scaled_dot_product_attention(q, k, v)}, 5, 5)["it"]
    return min(times, key=lambda name: times[name])


def fp8_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_scale: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """(x · x_scale) @ (weight · scale)ᵀ + bias by cuBLAS, E4M3 (M, in) and (out, in) -> fp16 (M, out)."""
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return multiply(x, weight.t(), x_scale, scale, bias=bias, out_dtype=torch.float16, use_fast_accum=True)


class Peer(torch.nn.Module):
    """Embeddings and encoder in PyTorch, in fp16, with one merged product for Q, K and V.

    Args:
        config: the model's sizes.
        weights: the model's weights.
        device: where to compute.
    """

    def __init__(self, config: BertConfig, weights: WeightFile, device: str | torch.device = "cuda") -> None:
        super().__init__()
        self.config = config
        hidden, inner = config.hidden_size, config.intermediate_size

        def get(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            return torch.from_numpy(weights.get(f"{config.prefix}{name}", shape).copy()).to(device).half()

        def norm(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return get(f"{name}.weight", (hidden,)), get(f"{name}.bias", (hidden,))

        rows = {
            "word": config.vocab_size,
            "token_type": config.type_vocab_size,
            "position": config.max_positions,
        }
        self.tables = [get(f"embeddings.{name}_embeddings.weight", (count, hidden)) for name, count in rows.items()]
        self.embedding_norm = norm("embeddings.LayerNorm")
        self.layers: list[dict[str, torch.Tensor]] = []
        for index in range(config.num_layers):
            name = f"encoder.layer.{index}"
            qkv = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
            layer = {
                "qkv": torch.cat([get(f"{part}.weight", (hidden, hidden)) for part in qkv]),
                "qkv_bias": torch.cat([get(f"{part}.bias", (hidden,)) for part in qkv]),
            }
            for short, part, width_in, width_out in (
                ("attended", "attention.output.dense", hidden, hidden),
                ("inner", "intermediate.dense", hidden, inner),
                ("outer", "output.dense", inner, hidden),
            ):
                layer[short] = get(f"{name}.{part}.weight", (width_out, width_in))
                layer[f"{short}_bias"] = get(f"{name}.{part}.bias", (width_out,))
            for short, part in (("first", "attention.output.LayerNorm"), ("second", "output.LayerNorm")):
                layer[f"{short}_gamma"], layer[f"{short}_beta"] = norm(f"{name}.{part}")
            self.layers.append(layer)

    def embed(self, *ids: torch.Tensor) -> torch.Tensor:
        """Token ids, token types and positions, each (B, S) -> (B, S, H)."""
        word, kind, position = (embedding(rows, table) for rows, table in zip(ids, self.tables, strict=True))
        shape = (self.config.hidden_size,)
        return layer_norm(word + kind + position, shape, *self.embedding_norm, self.config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs all layers: (B, S, H) -> (B, S, H)."""
        for weights in self.layers:
            x = self.run_layer(x, weights)
        return x

    def run_layer(self, x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
        """Runs one layer: (B, S, H) -> (B, S, H)."""
        heads, size = self.config.num_heads, self.config.head_size
        shape, epsilon = (self.config.hidden_size,), self.config.layer_norm_eps
        context = self.attend(self.product(x, w, "qkv").unflatten(-1, (3, heads, size)))
        attended = self.product(context, w, "attended")
        x = layer_norm(attended + x, shape, w["first_gamma"], w["first_beta"], epsilon)
        y = self.product(gelu(self.product(x, w, "inner")), w, "outer")
        return layer_norm(y + x, shape, w["second_gamma"], w["second_beta"], epsilon)

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Q, K and V (B, S, 3, N, D) -> context (B, S, N · D)."""
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, N, S, D)
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def product(self, x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        """One of ``PRODUCTS``, with its bias: (B, S, in) -> (B, S, out)."""
        return linear(x, w[name], w[f"{name}_bias"])

    def compiled(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The layers by torch.compile, which compiles once for all layers, as they have the same shapes.

        Functions returned earlier must not be called again, since they would be compiled anew.
        """
        torch._dynamo.reset()
        run_layer = torch.compile(self.run_layer, fullgraph=True, dynamic=False)

        def run(x: torch.Tensor) -> torch.Tensor:
            for weights in self.layers:
                x = run_layer(x, weights)
            return x

        return run


class Fp8Peer(Peer):
    """``Peer`` whose products are ``torch._scaled_mm`` of E4M3: one scale for each weight and each activation.

    Args:
        config: the model's sizes.
        weights: the model's weights.
        samples: token ids, token types and positions, each (B, S), from which the scales of activations come. The
            peer computes on their device.
    """

    def __init__(self, config: BertConfig, weights: WeightFile, samples: tuple[torch.Tensor, ...]) -> None:
        super().__init__(config, weights, samples[0].device)
        self._amax: dict[int, torch.Tensor] = {}  # by the id of a weight, while the scales are found
        self._finds_scales = True
        self.forward(self.embed(*samples))
        self._finds_scales = False
        for layer in self.layers:
            for name in PRODUCTS:
                weight = layer[name].float()
                x_scale = self._amax.pop(id(layer[name])).float() / FP8_LARGEST
                scale = weight.abs().max() / FP8_LARGEST
                layer |= {
                    name: (weight / scale).to(FP8),
                    f"{name}_scale": scale,
                    f"{name}_x_scale": x_scale,
                    f"{name}_x_reciprocal": 1 / x_scale,
                }

    def product(self, x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        """Quantizes x by PyTorch's operations, which torch.compile fuses with those before, and multiplies."""
        if self._finds_scales:
            self._amax[id(w[name])] = x.abs().max()
            return super().product(x, w, name)
        scaled = x.float() * w[f"{name}_x_reciprocal"]
        rows = scaled.clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8).flatten(0, -2)
        y = fp8_product(rows, w[name], w[f"{name}_x_scale"], w[f"{name}_scale"], w[f"{name}_bias"])
        return y.unflatten(0, x.shape[:-1])


class PackedPeer(Peer):
    """An embedding model for packed batches: ``Peer`` with PyTorch's attention for sequences of various lengths.

    Args:
        config: the model's sizes; its embedding is the mean of the tokens, without dense layers.
        weights: the model's weights.
        longest: the most tokens of a sequence.

    Raises:
        UserError: it is another model.
    """

    def __init__(self, config: BertConfig, weights: WeightFile, longest: int) -> None:
        if config.pooling != "mean" or config.embedding_layers or config.has_relative_positions:
            raise UserError("PyTorch's kernels are measured for a BERT whose embedding is the mean of its tokens")
        super().__init__(config, weights)
        self.longest = longest
        torch._dynamo.config.recompile_limit = SIZES
        self._compiled = torch.compile(self.embed_sequences, fullgraph=True, dynamic=False)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The embeddings of a batch, fp32 (B, H), as ``NetworkRunner.run`` returns them."""
        return {self.config.output_name: self._compiled(*(inputs[name] for name in (*INPUT_NAMES, LENGTHS_NAME)))}

    def embed_sequences(
        self, ids: torch.Tensor, types: torch.Tensor, positions: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """Three ids (T,) and cu_seqlens (B + 1,) -> (B, H)."""
        self._cu_seqlens = cu_seqlens
        x = self.forward(self.embed(ids, types, positions))
        pooled = torch.segment_reduce(x.float(), "mean", offsets=cu_seqlens, unsafe=True)
        return torch.nn.functional.normalize(pooled) if self.config.normalize else pooled

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Q, K and V (T, 3, N, D) -> context (T, N · D)."""
        q, k, v = qkv.unbind(1)
        bounds = self._cu_seqlens
        context = varlen_attn(q, k, v, bounds, bounds, self.longest, self.longest)
        assert isinstance(context, torch.Tensor)  # without the sums of its softmax
        return context.flatten(1)
