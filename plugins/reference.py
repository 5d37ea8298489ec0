"""What each plugin computes, in plain PyTorch: the tests' reference, and how plugin layers run on a CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch


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
    wide = x.to(dtype)  # (..., H)
    mean = wide.mean(-1, keepdim=True)
    variance = (wide - mean).square().mean(-1, keepdim=True)  # two passes: E[x²] − mean² would cancel
    y = (wide - mean) / torch.sqrt(variance + epsilon) * gamma.to(dtype) + beta.to(dtype)
    return y if dtype == torch.float64 else y.to(x.dtype)


def _layer_norm(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float, kernel: str
) -> torch.Tensor:
    return layer_norm(x, gamma, beta, epsilon)  # all kernels compute the same


def qkv_to_context(
    qkv: torch.Tensor,
    second: torch.Tensor | None = None,
    *,
    num_heads: int,
    layout: str = "single",
    qkv_scale: float = 0.0,
    output_scale: float = 0.0,
    output_type: str = "",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """softmax(Q·Kᵀ / √D)·V for each head (Vaswani et al. 2017, equation 1), computed in ``dtype``.

    Args:
        qkv: (..., 3H), the last axis (3, N, D): (S, 3H) or (B, S, 3H), for layout packed (T, 3H).
        second: for layout padded the mask (B, S), 0 where a key is padding; for packed cu_seqlens (B + 1,).
        num_heads: N.
        layout: single, padded or packed.
        qkv_scale: what one step of an int8 ``qkv`` counts; 0 for other types.
        output_scale: what one step of an int8 output counts; 0 for other types.
        output_type: fp32, fp16 or bf16; by default the type of ``qkv``.
        dtype: with float64 the result stays in float64 and is not quantised, for error measurements.

    Returns:
        (..., H). A query whose keys are all masked gives zeros, and so does a token behind the last sentence.
    """
    width = qkv.shape[-1] // 3
    real = qkv.to(dtype) * (qkv_scale or 1.0)
    heads = real.reshape(*qkv.shape[:-1], 3, num_heads, width // num_heads)  # (..., S, 3, N, D)
    if layout == "packed":
        assert second is not None
        context = torch.zeros_like(heads[:, 0])
        for start, end in itertools.pairwise(second.tolist()):
            context[start:end] = _attention(heads[start:end], None)
    else:
        context = _attention(heads, None if second is None else second != 0)
    context = context.reshape(*qkv.shape[:-1], width)
    if dtype == torch.float64:
        return context
    if output_scale:
        return (context / output_scale).round().clamp(-128, 127).to(torch.int8)  # halves to the even neighbour
    types = {"": qkv.dtype, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return context.to(types[output_type])


def _attention(heads: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """(..., S, 3, N, D) and which keys count (..., S) to (..., S, N, D)."""
    q, k, v = heads.movedim(-3, 0).transpose(-2, -3)  # each (..., N, S, D)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (..., N, S, S)
    if counts is not None:
        scores = scores.masked_fill(~counts[..., None, None, :], -math.inf)
        return (torch.softmax(scores, -1).nan_to_num(0.0) @ v).transpose(-2, -3)
    return (torch.softmax(scores, -1) @ v).transpose(-2, -3)


# A plugin's name -> its inputs, and its fields by name, to its output.
REFERENCES: dict[str, Callable[..., torch.Tensor]] = {"LayerNorm": _layer_norm, "QkvToContext": qkv_to_context}
