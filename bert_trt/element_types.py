"""The element types of tensors: ``ELEMENT_TYPES`` has their names in TensorRT, NumPy, ONNX and PyTorch.
``convert_weight`` and ``quantize_weight`` convert weights to a type.
"""

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
    """One element type with its names in four libraries.

    Attributes:
        name: the name in ``--precision`` and in messages.
        trt: TensorRT's type.
        numpy: NumPy's type.
        onnx: the number in ``onnx.TensorProto.DataType`` (https://onnx.ai/onnx/api/serialization.html).
        torch_name: the name of the type in the module ``torch``.
        largest: the largest finite value.
        overflow: the smallest absolute value that rounds to infinity; infinite for types that saturate.
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
        """PyTorch's type; the first access imports PyTorch, which a build does not need."""
        import torch

        return getattr(torch, self.torch_name)

    @property
    def is_floating(self) -> bool:
        """Whether this is a floating-point type, fp8 included."""
        return self in (FP32, FP16, BF16, FP8)

    @property
    def is_quantized(self) -> bool:
        """Whether values of this type need a scale: int8 and fp8."""
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

ELEMENT_TYPES = {entry.name: entry for entry in (FP32, FP16, BF16, FP8, INT8, UINT8, INT32, INT64, BOOL)}
_BY_TENSORRT = {entry.trt: entry for entry in ELEMENT_TYPES.values()}


def has_element_type(dtype: trt.DataType) -> bool:
    """Whether the table has an entry for TensorRT's ``dtype``; it has none for types of 4 bits."""
    return dtype in _BY_TENSORRT


def element_type(dtype: trt.DataType) -> ElementType:
    """The table's entry for TensorRT's ``dtype``."""
    return _BY_TENSORRT[dtype]


def convert_weight(values: np.ndarray, dtype: trt.DataType, name: str) -> np.ndarray:
    """``values`` in the NumPy type of ``dtype``; the same array if it has that type already.

    Args:
        values: any shape.
        dtype: the type to convert to.
        name: the weight's name, for the error.

    Raises:
        UserError: a value is not finite, or becomes infinite in the type, as 70000 does in fp16.
    """
    target = element_type(dtype)
    if np.issubdtype(values.dtype, np.floating):
        amax = float(max(-values.min(initial=0), values.max(initial=0)))  # NaN if a value is NaN
        if not math.isfinite(amax):
            raise UserError(f"weight {name!r} has values that are not finite; the checkpoint is damaged")
        if not target.is_quantized and amax >= target.overflow:
            raise UserError(
                f"weight {name!r} has the value {amax:.6g}, beyond the largest of {dtype.name} "
                f"({target.largest:.6g}); build with --precision bf16 or fp32"
            )
    return values.astype(target.numpy, copy=False)


def quantize_weight(values: np.ndarray, dtype: trt.DataType, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes a weight symmetrically, with a scale for each output channel.

    Args:
        values: (out, in).
        dtype: INT8 or FP8.
        name: the weight's name, for the error.

    Returns:
        The quantized weight (out, in), and the scales, float32 (out,): values ≈ weight · scales[:, None].

    Raises:
        UserError: the weight has values that are not finite.
    """
    target, source = element_type(dtype), convert_weight(values, trt.DataType.FLOAT, name)
    amax = np.abs(source).max(axis=1)  # (out,)
    scales = (amax / np.float32(target.largest)).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1  # zeros, or values too small for an fp32 scale
    scaled = source / scales[:, None]
    return (np.rint(scaled) if target is INT8 else scaled).astype(target.numpy), scales
