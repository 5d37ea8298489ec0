"""The computations of the plugins in plain PyTorch: references for tests, and the plugin layers on a CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

TYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
QUANTIZED_LIMITS = {torch.int8: (-128.0, 127.0), torch.float8_e4m3fn: (-448.0, 448.0)}
EXACT_TERMS = 2**24 // 128**2  # a sum of so many products of int8 is exact in fp32


def layer_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    epsilon: float,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Layer normalisation over the last axis, computed in ``dtype`` and returned in the type of ``x``.

    With ``dtype=torch.float64`` the result stays in float64, for error measurements.
    """
    y = _normalize(x.to(dtype), gamma, beta, epsilon)  # (..., H)
    return y if dtype == torch.float64 else y.to(x.dtype)


def _normalize(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Layer normalisation in the type of ``x``."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)  # two passes, since E[x²] − mean² loses digits
    return (x - mean) / torch.sqrt(variance + epsilon) * gamma.to(x.dtype) + beta.to(x.dtype)


def skip_layer_norm(
    x: torch.Tensor,
    skip: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float,
    x_scale: float = 0.0,
    skip_scale: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """LN(x + skip + bias), computed and returned in ``dtype``.

    Args:
        x: (..., H); int8 where ``x_scale`` is not 0.
        skip: (..., H); int8 where ``skip_scale`` is not 0.
        gamma: (H,).
        beta: (H,).
        bias: (H,), or None.
        epsilon: added to the variance; 1e-12 in BERT.
        x_scale: the scale of an int8 x, value = int8 · scale; 0 for other types.
        skip_scale: the scale of an int8 skip; 0 for other types.
        dtype: the type to compute in.
    """
    total = _dequantize(x, x_scale, dtype) + _dequantize(skip, skip_scale, dtype)
    total = total if bias is None else total + bias.to(dtype)
    return _normalize(total, gamma, beta, epsilon)


def _dequantize(x: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype) * float(np.float32(scale)) if scale else x.to(dtype)


def quantize(y: torch.Tensor, scale: float, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    """y / scale as int8 or fp8 (E4M3), rounded half to even and saturated, as in TensorRT.

    ``scale`` is rounded to fp32. NaN becomes −128 in int8, as in the kernels, and stays NaN in fp8.
    """
    scaled = y / float(np.float32(scale))
    rounded = torch.round(scaled) if dtype == torch.int8 else scaled  # the cast to fp8 itself rounds half to even
    rounded = rounded.nan_to_num(-math.inf, math.inf, -math.inf) if dtype == torch.int8 else rounded
    return rounded.clamp(*QUANTIZED_LIMITS[dtype]).to(dtype)


def emb_layer_norm(
    input_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
    position_ids: torch.Tensor,
    words: torch.Tensor,
    positions: torch.Tensor,
    types: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    epsilon: float,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """LN(words[input_ids] + types[token_type_ids] + positions[position_ids]), computed and returned in ``dtype``.

    A row with an id outside its table is NaN.

    Args:
        input_ids: (...).
        token_type_ids: (...).
        position_ids: (...).
        words: (V, H).
        positions: (P, H).
        types: (Y, H).
        gamma: (H,).
        beta: (H,).
        epsilon: added to the variance; 1e-12 in BERT.
        dtype: the type to compute in.
    """
    valid = torch.ones_like(input_ids, dtype=torch.bool)
    total = torch.zeros((), dtype=dtype, device=words.device)
    for ids, table in ((input_ids, words), (token_type_ids, types), (position_ids, positions)):
        inside = (ids >= 0) & (ids < table.shape[0])
        total = total + table[torch.where(inside, ids, 0).long()].to(dtype)  # (..., H)
        valid = valid & inside
    y = _normalize(total, gamma, beta, epsilon)
    return torch.where(valid.unsqueeze(-1), y, float("nan"))


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "none",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """activation(x @ weightᵀ + bias), computed and returned in ``dtype``.

    Args:
        x: (..., K).
        weight: (N, K), as in ``torch.nn.Linear``.
        bias: (N,), or None.
        activation: none, or gelu: v · Φ(v) by the error function (Hendrycks & Gimpel, arXiv:1606.08415).
        dtype: the type to compute in.
    """
    bias = None if bias is None else bias.to(dtype)
    y = torch.nn.functional.linear(x.to(dtype), weight.to(dtype), bias)  # (..., N)
    return _activate(y, activation)


def _activate(y: torch.Tensor, activation: str) -> torch.Tensor:
    return torch.nn.functional.gelu(y) if activation == "gelu" else y


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: float,
    activation: str = "none",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """activation(x @ weightᵀ · x_scale · weight_scales + bias) for x and weight in 8 bits, returned in ``dtype``.

    Sums of int8 are exact; sums of fp8, and everything else, are computed in ``dtype``.

    Args:
        x: (..., K), int8 or float8_e4m3fn.
        weight: (N, K), of the type of x.
        weight_scales: (N,), float32.
        bias: (N,), float32, or None.
        x_scale: the scale of x, value = x · scale; rounded to fp32.
        activation: none or gelu.
        dtype: float32, or float64 for error measurements.
    """
    if x.dtype == torch.int8:
        sums = _integer_product(x, weight).to(dtype)  # (..., N)
    else:
        sums = torch.nn.functional.linear(x.to(dtype), weight.to(dtype))
    y = sums * (weight_scales * float(np.float32(x_scale))).to(dtype)
    return _activate(y if bias is None else y + bias.to(dtype), activation)


def _integer_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weightᵀ for int8 (..., K) and (N, K), exact, in float64: as fast as fp32, in which it sums parts of K."""
    total = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[-1], EXACT_TERMS):
        part = slice(start, start + EXACT_TERMS)
        total += torch.nn.functional.linear(x[..., part].float(), weight[:, part].float())
    return total


# --- the plugins: results in the types of their outputs -----------------------------------------------------


def _layer_norm_plugin(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float, kernel: str
) -> torch.Tensor:
    return layer_norm(x, gamma, beta, epsilon)  # all kernels compute the same


def _skip_layer_norm_plugin(
    x: torch.Tensor,
    skip: torch.Tensor,
    *weights: torch.Tensor,
    epsilon: float,
    x_scale: float = 0.0,
    skip_scale: float = 0.0,
    output_scale: float = 0.0,
    output_type: str | None = None,
    outputs: str = "y",
    quantized_type: str = "int8",
    output_factors: int = 0,
    constant_weights: int = 0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    (x, skip, *others), _, factors = split_inputs("SkipLayerNorm", (x, skip, *weights), 0.0, output_factors)
    y = skip_layer_norm(x, skip, *others, epsilon=epsilon, x_scale=x_scale, skip_scale=skip_scale)
    floating = next((t.dtype for t in (x, skip) if t.dtype != torch.int8), None) or TYPES[output_type or "fp32"]
    return _with_quantized(y, factors, floating, output_scale, outputs, quantized_type)


def split_inputs(
    plugin: str, inputs: Sequence[torch.Tensor], x_scale: float, output_factors: int
) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    """A plugin's inputs without ``weight_scales`` and ``output_factors``, then these two, or None.

    Args:
        plugin: the plugin's name.
        inputs: its inputs.
        x_scale: its field; ``weight_scales`` (N,) are an input of a linear layer that has it.
        output_factors: its field; 1 where there is an input of that name, (N,).
    """
    others = list(inputs)
    weight_scales = others.pop(OPTIONAL_INPUTS[plugin]) if x_scale and plugin in WITH_WEIGHT else None
    return others, weight_scales, others.pop(OPTIONAL_INPUTS[plugin]) if output_factors else None


def _scaled(y: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    return y if factors is None else y * factors


def _with_quantized(
    y: torch.Tensor,
    factors: torch.Tensor | None,
    floating: torch.dtype,
    output_scale: float,
    outputs: str,
    quantized_type: str,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y in its floating type, y · factors in 8 bits, or both."""
    if not output_scale:
        return y.to(floating)
    narrow = quantize(_scaled(y, factors), output_scale, TYPES[quantized_type])
    return (y.to(floating), narrow) if outputs == "both" else narrow


def _emb_layer_norm_plugin(
    *inputs: torch.Tensor,
    epsilon: float,
    output_scale: float = 0.0,
    outputs: str = "y",
    quantized_type: str = "int8",
    output_factors: int = 0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    others, _, factors = split_inputs("EmbLayerNorm", inputs, 0.0, output_factors)
    words = others[3]
    y = emb_layer_norm(*others, epsilon=epsilon)
    return _with_quantized(y, factors, words.dtype, output_scale, outputs, quantized_type)


def _linear_plugin(
    x: torch.Tensor,
    *weights: torch.Tensor,
    activation: str = "none",
    constant_weight: int = 0,
    x_scale: float = 0.0,
    output_scale: float = 0.0,
    output_type: str = "",
    output_factors: int = 0,
) -> torch.Tensor:
    (x, weight, *bias), scales, factors = split_inputs("Linear", (x, *weights), x_scale, output_factors)
    if scales is None:
        return linear(x, weight, *bias, activation=activation).to(x.dtype)
    y = quantized_linear(x, weight, scales, *bias, x_scale=x_scale, activation=activation)
    return (
        quantize(_scaled(y, factors), output_scale, TYPES[output_type]) if output_scale else y.to(TYPES[output_type])
    )


def linear_skip_layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    skip: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float,
    x_scale: float = 0.0,
    weight_scales: torch.Tensor | None = None,
    product_type: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """LN(x @ weightᵀ + bias + skip), computed and returned in ``dtype``.

    Args:
        x: (..., K); int8 or float8_e4m3fn where there are ``weight_scales``.
        weight: (N, K), of the type of x.
        skip: (..., N).
        gamma: (N,).
        beta: (N,).
        bias: (N,), or None.
        epsilon: added to the variance; 1e-12 in BERT.
        x_scale: the scale of x in 8 bits.
        weight_scales: (N,), the scales of a weight in 8 bits: x @ weightᵀ is multiplied with x_scale · weight_scales.
        product_type: what x @ weightᵀ is rounded to, as between two kernels; None does not round.
        dtype: the type to compute in.
    """
    if weight_scales is None:
        product = linear(x, weight, dtype=dtype)
    else:
        product = quantized_linear(x, weight, weight_scales, x_scale=x_scale, dtype=dtype)
    product = product if product_type is None else product.to(product_type)
    return skip_layer_norm(product, skip, gamma, beta, bias, epsilon=epsilon, dtype=dtype)


def _linear_skip_layer_norm_plugin(
    *inputs: torch.Tensor,
    epsilon: float,
    x_scale: float = 0.0,
    output_scale: float = 0.0,
    outputs: str = "y",
    quantized_type: str = "int8",
    output_factors: int = 0,
    constant_weights: int = 0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    others, scales, factors = split_inputs("LinearSkipLayerNorm", inputs, x_scale, output_factors)
    skip = others[2]
    rounded = {"product_type": skip.dtype}  # as the two kernels of most GPUs: an overflow there shall not stay unseen
    y = linear_skip_layer_norm(*others, epsilon=epsilon, x_scale=x_scale, weight_scales=scales, **rounded)
    return _with_quantized(y, factors, skip.dtype, output_scale, outputs, quantized_type)


def qkv_to_context(
    qkv: torch.Tensor,
    lengths: torch.Tensor | None = None,
    *,
    num_heads: int,
    layout: str = "single",
    max_sequence_length: int = 0,
    qkv_scale: float = 0.0,
    output_scale: float = 0.0,
    output_type: str = "",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """softmax(Q·Kᵀ / √D)·V for each head (Vaswani et al. 2017, equation 1), computed in ``dtype``.

    Args:
        qkv: (..., 3H), the last axis (3, N, D): (S, 3H) or (B, S, 3H), for layout packed (T, 3H).
        lengths: the attention mask (B, S) of layout padded, 0 for padding; the cu_seqlens (B + 1,) of layout packed.
        num_heads: N.
        layout: single, padded or packed.
        max_sequence_length: chooses the plugin's kernel; it does not change the result.
        qkv_scale: the scale of an int8 ``qkv``; 0 for other types.
        output_scale: the scale of an output in 8 bits; 0 for other types.
        output_type: fp32, fp16 or bf16, by default the type of ``qkv``; with ``output_scale`` int8 (default) or fp8.
        dtype: with float64 the result stays in float64 and is not quantised, for error measurements.

    Returns:
        (..., H). A query with only masked keys has a context of zeros, and so has a token after the last sequence.
    """
    width = qkv.shape[-1] // 3
    values = qkv.to(dtype) * (qkv_scale or 1.0)
    heads = values.reshape(*qkv.shape[:-1], 3, num_heads, width // num_heads)  # (..., S, 3, N, D)
    if layout == "packed":
        assert lengths is not None
        context = torch.zeros_like(heads[:, 0])
        for start, end in itertools.pairwise(lengths.tolist()):
            context[start:end] = _attention(heads[start:end], None)
    else:
        context = _attention(heads, None if lengths is None else lengths != 0)
    context = context.reshape(*qkv.shape[:-1], width)
    if dtype == torch.float64:
        return context
    if output_scale:
        return quantize(context, output_scale, TYPES[output_type or "int8"])
    return context.to(TYPES[output_type] if output_type else qkv.dtype)


def _attention(heads: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Q, K and V (..., S, 3, N, D) to the context (..., S, N, D); ``mask`` (..., S) is true for tokens."""
    q, k, v = heads.movedim(-3, 0).transpose(-2, -3)  # each (..., N, S, D)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (..., N, S, S)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., None, None, :], -math.inf)
        return (torch.softmax(scores, -1).nan_to_num(0.0) @ v).transpose(-2, -3)
    return (torch.softmax(scores, -1) @ v).transpose(-2, -3)


QUANTIZATION_FIELDS = (
    "x_scale",
    "skip_scale",
    "qkv_scale",
    "output_scale",
    "output_type",
    "outputs",
    "quantized_type",
    "output_factors",
)
WITH_WEIGHT = ("Linear", "LinearSkipLayerNorm")
# Where weight_scales and output_factors are among the inputs, those that there are, in this order.
OPTIONAL_INPUTS = {"SkipLayerNorm": 4, "EmbLayerNorm": 8, "Linear": 2, "LinearSkipLayerNorm": 5}

# By the plugin's name: a function from its inputs, and its fields by name, to its output or outputs.
REFERENCES: dict[str, Callable[..., Any]] = {
    "LayerNorm": _layer_norm_plugin,
    "SkipLayerNorm": _skip_layer_norm_plugin,
    "EmbLayerNorm": _emb_layer_norm_plugin,
    "QkvToContext": qkv_to_context,
    "Linear": _linear_plugin,
    "LinearSkipLayerNorm": _linear_skip_layer_norm_plugin,
}


def compute_in_fp32(
    plugin: str, inputs: Sequence[torch.Tensor], fields: Mapping[str, Any]
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """A plugin without its roundings: nothing is quantized, and scales are ignored; ``output_factors`` are not.

    Args:
        plugin: the plugin's name.
        inputs: its inputs in fp32, ids and masks as they are.
        fields: its fields.

    Returns:
        Its output or outputs in fp32.
    """
    kept = {name: value for name, value in fields.items() if name not in QUANTIZATION_FIELDS}
    x_scale, output_factors = fields.get("x_scale", 0.0), fields.get("output_factors", 0)
    inputs, _, factors = split_inputs(plugin, inputs, x_scale, output_factors)
    y = REFERENCES[plugin](*inputs, **kept)
    return (y, _scaled(y, factors)) if fields.get("outputs") == "both" else _scaled(y, factors)
