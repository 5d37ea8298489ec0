"""Layer normalisation in fp64, and what typical mistakes make of it; for the network tasks and the kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bert_trt.exercise.messages import say


def cancelled() -> str:
    """The cause of wrong rows with a large mean."""
    return say("E[x²] − mean² cancels where the mean is large: sum up (x − mean)²")


def layer_norm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The reference."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, epsilon)


def layer_norm_mistakes(
    gamma: torch.Tensor, beta: torch.Tensor, epsilon: float
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """By the likely cause: what a mistaken layer norm makes of x (..., H), fp64."""

    def deviation(x: torch.Tensor, axis: int | tuple[int, ...], correction: int, inside: float) -> torch.Tensor:
        return (x.var(axis, correction=correction, keepdim=True) + inside).sqrt()

    def by(
        x: torch.Tensor,
        axis: int | tuple[int, ...] = -1,
        correction: int = 0,
        inside: float = epsilon,
        outside: float = 0.0,
    ) -> torch.Tensor:
        """The normalised x, with one part of the formula changed."""
        return (x - x.mean(axis, keepdim=True)) / (deviation(x, axis, correction, inside) + outside)

    def by_squares(x: torch.Tensor) -> torch.Tensor:
        """E[x²] − mean² in fp32."""
        narrow = x.float()
        mean = narrow.mean(-1, keepdim=True)
        variance = ((narrow * narrow).mean(-1, keepdim=True) - mean * mean).clamp(min=0)
        return ((narrow - mean) * (variance + epsilon).rsqrt()).double()

    normalised: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        say("the sample variance (divided by H − 1); layer norm has the population variance (divided by H)"): (
            lambda x: by(x, correction=1)
        ),
        say("epsilon is missing"): lambda x: by(x, inside=0.0),
        say("epsilon is 1e-5, TensorRT's default; set the epsilon that was asked for"): lambda x: by(x, inside=1e-5),
        say("epsilon is outside of the root: expected √(variance + epsilon)"): lambda x: by(
            x, inside=0.0, outside=epsilon
        ),
        say("divided by the variance, not by its root"): lambda x: by(x) / deviation(x, -1, 0, epsilon),
        say("the mean is not subtracted"): lambda x: x / deviation(x, -1, 0, epsilon),
        say("the statistics are over the axis before the last one"): lambda x: by(x, -2),
        say("the statistics are over all axes but the first"): lambda x: by(x, tuple(range(1, x.dim()))),
        say("the statistics are over all axes"): lambda x: by(x, tuple(range(x.dim()))),
        cancelled(): by_squares,
    }
    weighted = {
        say("gamma is missing"): lambda x: by(x) + beta,
        say("beta is missing"): lambda x: by(x) * gamma,
        say("gamma and beta are exchanged"): lambda x: by(x) * beta + gamma,
    }
    return weighted | {
        cause: (lambda x, change=change: change(x) * gamma + beta) for cause, change in normalised.items()
    }
