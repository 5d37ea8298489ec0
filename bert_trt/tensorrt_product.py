"""Imports TensorRT: the full ``tensorrt`` (10.13 or newer, 11.x) if it is installed, else ``tensorrt_rtx``.

Both products have the same Python classes. No other file imports them: they use
``from bert_trt.tensorrt_product import trt``.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING, Any

from bert_trt.console import UserError

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST_FULL_TENSORRT = (10, 13)  # the first version with IStreamWriter, and with fp32 scales of fp16 tensors
PRODUCT_VARIABLE = "BERT_TENSORRT_PRODUCT"  # set it to "tensorrt" or "tensorrt_rtx" to choose the product
PRODUCTS = ("tensorrt", "tensorrt_rtx")


class TensorRTMissingError(UserError, ImportError):
    """No usable TensorRT is installed; the message says what to install."""


def _import_product() -> tuple[Any, str]:
    """Imports the chosen product. Returns (module, product name)."""
    chosen = os.environ.get(PRODUCT_VARIABLE)
    if chosen is not None and chosen not in PRODUCTS:
        raise TensorRTMissingError(f"{PRODUCT_VARIABLE} is {chosen!r}; expected one of {', '.join(PRODUCTS)}")
    reasons = []
    for product in [chosen] if chosen else PRODUCTS:
        try:
            module = importlib.import_module(product)
        except Exception as error:  # a broken installation: libraries are missing or have another version
            reasons.append(f"{product}: {error}")
            continue
        version = re.match(r"(\d+)\.(\d+)", str(getattr(module, "__version__", "")))
        if version is None:  # any folder with the name tensorrt can be imported
            reasons.append(f"{product}: {getattr(module, '__file__', None) or list(module.__path__)} is not TensorRT")
            continue
        if product == "tensorrt" and (int(version[1]), int(version[2])) < OLDEST_FULL_TENSORRT:
            reasons.append(f"tensorrt: version {module.__version__} is installed, 10.13 or newer is needed")
            continue
        return module, product
    raise TensorRTMissingError(
        "no usable TensorRT found (" + "; ".join(reasons) + "). "
        "Install one: pip install -r requirements.txt (no GPU needed), or -r requirements-gpu.txt"
        + (f"; or unset {PRODUCT_VARIABLE}" if chosen else "")
    )


if TYPE_CHECKING:
    PRODUCT: str = ""
else:
    trt, PRODUCT = _import_product()

VERSION: str = trt.__version__
IS_RTX: bool = PRODUCT == "tensorrt_rtx"


def describe() -> str:
    """The product and its version in one string, e.g. ``tensorrt_rtx 1.7.1.116``."""
    return f"{PRODUCT} {VERSION}"
