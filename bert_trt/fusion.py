"""``--fusion``: the layer set and the fused layers of each choice, and checks of options that do not go with it."""

from __future__ import annotations

from collections.abc import Sequence

from bert_trt import tensorrt_product
from bert_trt.console import warn
from bert_trt.inference import gpu_capability
from bert_trt.layers.fused import FusedLayers, UnsuitableFusionError
from bert_trt.layers.native import NativeLayers
from bert_trt.layers.tensorrt_attention import TensorRTAttentionLayers
from bert_trt.options import FUSIONS, QUANTIZED_PRECISIONS, TENSORRT_ATTENTION
from bert_trt.quantization import Quantization
from bert_trt.tensorrt_product import IS_RTX
from trt_helper import check_attention

LAYER_SETS: dict[str, type[NativeLayers]] = {
    "none": NativeLayers,
    "tensorrt": TensorRTAttentionLayers,
    "plugins": FusedLayers,
    "all": FusedLayers,  # together with LinearPluginProducts
}
HOPPER = (9, 0)  # the compute capability that the Linear plugin's kernels were measured on
ATTENTION_NOT_QUANTIZED = (
    "--quantize attention: attention as one layer, the QkvToContext plugin or TensorRT's own, computes its two "
    "products in fp16; leave attention out, or build with --fusion none"
)


def fused_layers(fusion: str, precision: str) -> tuple[str, ...]:
    """The fused layers of a network with this ``--fusion`` and ``--precision``: in fp32, which Linear does not have,
    all is plugins.

    Raises:
        UserError: the fusion needs TensorRT's own attention, which the installed TensorRT does not have.
    """
    if TENSORRT_ATTENTION in FUSIONS[fusion]:
        check_attention()
    return FUSIONS["plugins" if fusion == "all" and precision == "fp32" else fusion]


def plugins_of(fused: Sequence[str]) -> list[str]:
    """The plugins among the fused layers that ``fused_layers`` returned."""
    return [name for name in fused if name != TENSORRT_ATTENTION]


def warn_off_hopper() -> None:
    """Warns that the Linear plugin was only measured on compute capability 9.0, unless the plan will run there.

    The full product builds for the GPU of this machine. TensorRT for RTX does not execute on 9.0.
    """
    capability = gpu_capability()
    if IS_RTX:
        target = f"{tensorrt_product.describe()} does not execute there"
    elif capability is not None and capability != HOPPER:
        target = f"this GPU is {capability[0]}.{capability[1]}"
    else:
        return
    warn(
        "--fusion all: the Linear plugin has been measured against TensorRT's own matrix products on compute "
        f"capability 9.0 (Hopper) only, and {target}; compare with --fusion plugins"
    )


def check_quantized_groups(fusion: str, precision: str, groups: Sequence[str]) -> None:
    """Checks, before the network is defined, that attention is not quantized where it is a single layer.

    Raises:
        UnsuitableFusionError: it is to be quantized.
    """
    is_fused = LAYER_SETS[fusion].has_fused_attention
    if is_fused and precision in QUANTIZED_PRECISIONS and "attention" in groups:
        raise UnsuitableFusionError(ATTENTION_NOT_QUANTIZED)


def refuse_attention_products(quantization: Quantization) -> None:
    """Checks that no product of attention is to be quantized: an attention layer computes them itself, not in int8.

    Raises:
        UnsuitableFusionError: one of them is to be quantized.
    """
    suffixes = (".attention.self.scores", ".attention.self.context")
    if any(name.endswith(suffixes) for name in quantization.products):
        raise UnsuitableFusionError(ATTENTION_NOT_QUANTIZED)
