"""Runs plugins on a GPU for tests: buffers with guards, and the comparison with PyTorch's own error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from plugins.device_buffers import Buffer, TorchDevice
from plugins.plugin_host import Plugin, TensorSpec
from plugins.reference import QUANTIZED_LIMITS
from plugins.testLayerNormPlugin import ACCEPTED_ROUNDINGS, TIMES_PYTORCH

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and PyTorch for CUDA")


def run_guarded(plugin: Plugin, tensors: list[torch.Tensor], shift: int = 0) -> list[torch.Tensor]:
    """The plugin's outputs; checks that nothing was written beside a tensor. Unwritten elements are NaN or -1."""
    device = TorchDevice()
    specs = [TensorSpec.of_torch(tensor) for tensor in tensors]
    outputs, workspace_size = plugin.prepare(specs)
    types = [getattr(torch, spec.dtype) for spec in outputs]
    inputs = [Buffer.of(device, tensor, shift) for tensor in tensors]
    found = [
        Buffer(device, math.prod(spec.shape) * dtype.itemsize, shift=shift)
        for spec, dtype in zip(outputs, types, strict=True)
    ]
    workspace = Buffer(device, workspace_size)
    pointers = [[buffer.address for buffer in buffers] for buffers in (inputs, found)]
    plugin.enqueue(specs, pointers[0], pointers[1], workspace.address, device.stream)
    device.synchronize()
    assert all(buffer.guards_intact() for buffer in [*inputs, *found, workspace])
    return [buffer.tensor(spec.shape, dtype) for buffer, spec, dtype in zip(found, outputs, types, strict=True)]


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """‖found − exact‖ / ‖exact‖ in float64; NaN where anything is NaN."""
    return ((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def assert_as_good_as_pytorch(
    found: torch.Tensor, exact: torch.Tensor, pytorch: torch.Tensor, total: torch.Tensor
) -> None:
    """The error is at most 1.5 times PyTorch's.

    Few numbers may come out exact by luck, on either side. So the rounding of the result is always allowed, and for
    fewer than 1000 numbers also the rounding of ``total``, the sum that is normalised, to fp32.
    """
    ours, theirs = relative_error(found, exact), relative_error(pytorch, exact)
    allowed = ACCEPTED_ROUNDINGS * torch.finfo(found.dtype).eps / 2
    if math.isfinite(theirs):  # PyTorch overflows where sums are beyond fp16
        allowed = max(allowed, TIMES_PYTORCH * theirs)
    if total.numel() < 1000:
        deviation = total.std(-1, correction=0, keepdim=True)
        in_deviations = torch.where(deviation > 0, total / deviation, 0).square().mean().sqrt().item()
        allowed = max(allowed, ACCEPTED_ROUNDINGS * torch.finfo(torch.float32).eps * in_deviations)
    assert ours <= allowed, f"error {ours:.2e}, PyTorch's {theirs:.2e}"


def in_half_steps(found: torch.Tensor, exact: torch.Tensor) -> float:
    """How far int8 or fp8 (E4M3) is from what was rounded, at most, in halves of the step there: at most 1.

    What fp32 may differ from float64 by comes on top: a row of two or three numbers may be nearly constant.
    """
    low, high = QUANTIZED_LIMITS[found.dtype]
    bounded = exact.double().clamp(low, high)
    step = torch.ones_like(bounded)
    if found.dtype == torch.float8_e4m3fn:
        step = torch.exp2(bounded.abs().clamp(min=2.0**-6).log2().floor()) / 8
    return ((found.double() - bounded).abs() * 2 / step).max().item()


def assert_replays_equal(
    chain: Callable[[], torch.Tensor], expected: torch.Tensor, buffers: Sequence[torch.Tensor]
) -> None:
    """Captures launches in a CUDA graph; every replay gives the same bits, whatever its ``buffers`` hold before."""
    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain()
    for _ in range(10):
        for buffer in buffers:
            buffer.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)
