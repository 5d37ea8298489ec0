"""What each plugin computes, in plain PyTorch: the tests' reference, and how plugin layers run on a CPU."""

from __future__ import annotations

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


# A plugin's name -> its inputs, and its fields by name, to its output.
REFERENCES: dict[str, Callable[..., torch.Tensor]] = {"LayerNorm": _layer_norm}
