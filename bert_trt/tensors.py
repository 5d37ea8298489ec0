"""Shapes and descriptions of TensorRT's tensors, and the error that names them."""

from __future__ import annotations

from typing import Any

from bert_trt.console import UserError
from bert_trt.tensorrt_product import trt


class LayerError(UserError):
    """TensorRT refused a layer; the message has its name, the shapes and types of its inputs, and why."""


def as_tuple(dims: Any) -> tuple[int, ...]:
    """TensorRT's shape as a tuple."""
    return tuple(dims)


def shape_of(tensor: trt.ITensor) -> tuple[int, ...] | None:
    """The tensor's shape, -1 where dynamic; None if TensorRT could not work it out."""
    try:
        return as_tuple(tensor.shape)
    except (RuntimeError, ValueError):  # rtx raises; the full product returns a shape of negative length
        return None


def describe_tensor(tensor: trt.ITensor) -> str:
    """Name, type and shape in one string."""
    shape = shape_of(tensor)
    return f"{tensor.name} {tensor.dtype.name} {list(shape) if shape is not None else 'of no valid shape'}"
