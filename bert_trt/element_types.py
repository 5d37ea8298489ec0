"""The element types of tensors: one table for TensorRT, NumPy, ONNX and PyTorch, and weights converted to a type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from bert_trt.console import UserError
from bert_trt.tensorrt_product import trt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ElementType:
    """One element type under its names in four libraries.

    Attributes:
        name: what ``--precision`` calls it.
        trt: TensorRT's.
        numpy: NumPy's.
        onnx: the number in ``onnx.TensorProto.DataType`` (https://onnx.ai/onnx/api/serialization.html).
        torch_name: its attribute of the module ``torch``.
        largest: the largest finite value.
        overflow: absolute values from here on round to infinity, or are saturated by a quantization.
    """

    name: str
    trt: trt.DataType
    numpy: np.dtype
    onnx: int
    torch_name: str
    largest: float
    overflow: float = math.inf

    @property
    def torch(self) -> torch.dtype:
        """PyTorch's; imports PyTorch, which a build does not need."""
        import torch

        return getattr(torch, self.torch_name)

    @property
    def is_floating(self) -> bool:
        """Whether it is a floating-point type, fp8 included."""
        return self in (FP32, FP16, BF16, FP8)

    @property
    def is_quantized(self) -> bool:
        """Whether its values need a scale: int8 and fp8."""
        return self in (INT8, FP8)


def _integer(name: str, dtype: trt.DataType, numpy: Any, onnx: int, torch_name: str) -> ElementType:
    return ElementType(name, dtype, np.dtype(numpy), onnx, torch_name, float(np.iinfo(numpy).max))


FP32 = ElementType("fp32", trt.DataType.FLOAT, np.dtype(np.float32), 1, "float32", float(np.finfo(np.float32).max))
FP16 = ElementType("fp16", trt.DataType.HALF, np.dtype(np.float16), 10, "float16", 65504.0, 65520.0)
BF16 = ElementType(
    *("bf16", trt.DataType.BF16, np.dtype(ml_dtypes.bfloat16), 16, "bfloat16"),
    largest=float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
    overflow=(2 - 2**-8) * 2.0**127,
)
FP8 = ElementType("fp8", trt.DataType.FP8, np.dtype(ml_dtypes.float8_e4m3fn), 17, "float8_e4m3fn", 448.0)  # E4M3
INT8 = _integer("int8", trt.DataType.INT8, np.int8, 3, "int8")
UINT8 = _integer("uint8", trt.DataType.UINT8, np.uint8, 2, "uint8")
INT32 = _integer("int32", trt.DataType.INT32, np.int32, 6, "int32")
INT64 = _integer("int64", trt.DataType.INT64, np.int64, 7, "int64")
BOOL = ElementType("bool", trt.DataType.BOOL, np.dtype(np.bool_), 9, "bool", 1.0)

ELEMENT_TYPES = {one.name: one for one in (FP32, FP16, BF16, FP8, INT8, UINT8, INT32, INT64, BOOL)}
_BY_TENSORRT = {one.trt: one for one in ELEMENT_TYPES.values()}


def has_element_type(dtype: trt.DataType) -> bool:
    """Whether the table has TensorRT's ``dtype``; it lacks those of 4 bits."""
    return dtype in _BY_TENSORRT


def element_type(dtype: trt.DataType) -> ElementType:
    """The entry of TensorRT's ``dtype``."""
    return _BY_TENSORRT[dtype]


def convert_weight(values: np.ndarray, dtype: trt.DataType, name: str) -> np.ndarray:
    """``values`` in the NumPy type that belongs to ``dtype``; the same array if it has it already.

    Raises:
        UserError: a finite value becomes infinite, as 70000 does in fp16, or is not finite to begin with.
    """
    target = element_type(dtype)
    if np.issubdtype(values.dtype, np.floating):
        largest = float(max(-values.min(initial=0), values.max(initial=0)))  # NaN if there is one
        if not math.isfinite(largest):
            raise UserError(f"weight {name!r} has values that are not finite; the checkpoint is damaged")
        if not target.is_quantized and largest >= target.overflow:
            raise UserError(
                f"weight {name!r} has the value {largest:.6g}, beyond the largest of {dtype.name} "
                f"({target.largest:.6g}); build with --precision bf16 or fp32"
            )
    return values.astype(target.numpy, copy=False)


def quantize_weight(values: np.ndarray, dtype: trt.DataType, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A weight in one byte an element, symmetric, each output channel with its own scale.

    Args:
        values: (in, out).
        dtype: INT8 or FP8.
        name: for the error.

    Returns:
        The quantized weight (in, out), and the scales, float32 (out,): values ≈ weight · scales.

    Raises:
        UserError: the weight has values that are not finite.
    """
    target, source = element_type(dtype), convert_weight(values, trt.DataType.FLOAT, name)
    amax = np.abs(source).max(axis=0)  # (out,)
    scales = (amax / np.float32(target.largest)).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1  # a channel of zeros, or of values that no fp32 scale can hold
    scaled = source / scales
    return (np.rint(scaled) if target is INT8 else scaled).astype(target.numpy), scales
