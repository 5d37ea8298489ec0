"""The tasks of the exercise, their levels, and the grade of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PASS, EXCELLENT, ADVANCED, PROJECT = "及格 (pass)", "优秀 (excellent)", "进阶 (advanced)", "projects"
LEVELS = (PASS, EXCELLENT, ADVANCED)  # in order; a level is reached with all tasks up to it. Projects have no level.

NOT_STARTED, WRONG, RIGHT = "not started", "wrong", "right"
COMPILED = "compiled, not run"  # a kernel on a machine without a GPU
NOT_GRADED = "not graded"  # something that the task does not answer for is missing

HELPER, NATIVE, FUSED = "trt_helper.py", "bert_trt/layers/native.py", "bert_trt/layers/fused.py"
FUSED_NORM, FAST_NORM = "plugins/layer_norm/layer_norm_fused.cu", "plugins/layer_norm/layer_norm_fast.cu"


NETWORK_TASKS = (1, 2, 3, 4, 5, 6)  # a whole network has a step of each


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        number: the number in the marks of the sources.
        title: what is to be written.
        level: one of ``LEVELS``, or ``PROJECT``.
        files: the files with its marks.
        hint: what the blank says below its number.
        page: the name of its page under docs/tutorial/.
        grader: the module of this package that grades it.
        tests: for a project, the arguments of pytest.
        needs: tasks that must be right before this one can be graded, since its code calls theirs.
    """

    number: int
    title: str
    level: str
    files: tuple[str, ...]
    hint: str
    page: str
    grader: str
    tests: tuple[str, ...] = ()
    needs: tuple[int, ...] = ()

    @property
    def is_kernel(self) -> bool:
        """Whether a CUDA kernel is to be written."""
        return self.files[0].endswith(".cu")

    @property
    def needs_library(self) -> bool:
        """Whether the grading puts plugin layers into networks, for which TensorRT loads the plugin library."""
        return self.page == "layer_norm_plugin" or bool(self.tests)


TASKS = (
    Task(
        1,
        "addLinear",
        PASS,
        (HELPER,),
        "A matrix product with a constant, then a sum. PyTorch's weight is (out, in), and TensorRT broadcasts only "
        "tensors of equal rank: self.addConstant takes a shape, _as_rank makes one. self._addQuantizedWeight(x, "
        'weight, f"{name}.weight", quantized) is the weight of a quantized product. The last layer is called name.',
        "linear",
        "network_tasks",
    ),
    Task(
        2,
        "addSoftmax",
        PASS,
        (HELPER,),
        "network.add_softmax; its attribute axes is a bit mask, 1 << axis, and axis may be negative. Compute in fp32 "
        "(self.addCast) and return x's type. bias is added before the softmax.",
        "softmax",
        "network_tasks",
    ),
    Task(
        3,
        "addGELU",
        PASS,
        (HELPER,),
        'kind "erf" and "tanh": network.add_activation with trt.ActivationType. kind "decomposed": '
        "x/2 · (1 + erf(x / √2)) from self.addScale, self._unary, self.addShift and self._elementwise.",
        "gelu",
        "network_tasks",
    ),
    Task(
        4,
        "addEmbedding",
        PASS,
        (HELPER,),
        "network.add_gather takes the table, the indices and the axis. self._check_layer names the layer, checks its "
        "output and returns it.",
        "embedding",
        "network_tasks",
    ),
    Task(
        5,
        "addLayerNorm",
        PASS,
        (HELPER,),
        "network.add_normalization_v2 (before TensorRT 10.15: add_normalization) takes x, gamma, beta and a bit mask "
        "of axes; gamma and beta have the rank of x. Set the layer's epsilon. Compute in fp32, return self.dtype.",
        "layer_norm",
        "network_tasks",
    ),
    Task(
        6,
        "self_attention",
        PASS,
        (NATIVE,),
        "softmax(Q Kᵀ / √D + self.score_bias) V. self.linear makes Q, K and V, self.layout.split_heads and "
        "merge_heads transpose, self.products.matmul multiplies two activations. Scale the query, not the scores: "
        'they could overflow fp16. Names: f"{name}.scores", f"{name}.probabilities", f"{name}.context".',
        "self_attention",
        "network_tasks",
        needs=(1, 2),
    ),
    Task(
        7,
        "the LayerNorm plugin in the network",
        PASS,
        (HELPER,),
        'A PluginLayer "LayerNorm" with the fields epsilon and kernel and one output like x; self.addPlugin adds it. '
        "Its inputs are x in the helper's type, and gamma and beta in fp32.",
        "layer_norm_plugin",
        "network_tasks",
    ),
    Task(
        8,
        "the fused LayerNorm kernel",
        EXCELLENT,
        (FUSED_NORM,),
        "The three kernels of layer_norm_basic.cu in one: a block takes a row, sums it up, sums up the deviations, "
        "and normalises. makeStatistics and normalize of normalize.cuh are given.",
        "fused_kernel",
        "kernel_tasks",
    ),
    Task(
        9,
        "the fused kernel in fp16 and bf16",
        EXCELLENT,
        (FUSED_NORM,),
        "dispatchTypes of normalize.cuh calls a function with the C++ types of x and of the weights. Load with "
        "toFloat, compute in float, round once with fromFloat.",
        "fp16_kernel",
        "kernel_tasks",
        needs=(8,),
    ),
    Task(
        10,
        "the optimised LayerNorm kernel",
        ADVANCED,
        (FAST_NORM,),
        "Shape of row_in_registers.cuh says which row and which vectors of 16 bytes a thread has, and loads, adds up "
        "and stores them. x is read once; nothing that is loaded waits for a sum.",
        "fast_kernel",
        "kernel_tasks",
    ),
    Task(
        11,
        "the calibrator's range",
        ADVANCED,
        ("bert_trt/histograms.py",),
        "percentile: walk through the cumulative counts, and interpolate inside the bin. mse: try ranges from amax / "
        "16 to amax; _round_trip quantizes and dequantizes values; a bin's centre stands for its values.",
        "calibration_range",
        "calibration_tasks",
    ),
    Task(
        12,
        "the calibrator's batches",
        ADVANCED,
        ("bert_trt/calibration_data.py",),
        "Sort by length, and fill a batch as long as (number of sentences) · (longest length) is at most "
        "BATCH_TOKENS. Inputs are int32 (B, S); padding repeats a sentence's last token; the mask is 1 for a token.",
        "calibration_batches",
        "calibration_tasks",
    ),
    Task(
        13,
        "the EmbLayerNorm kernel",
        PROJECT,
        ("plugins/emb_layer_norm/emb_layer_norm.cu",),
        "layer_norm_fast.cu with three lookups in front. lookUp finds the rows, nanUnless marks a bad id.",
        "projects",
        "sum_tasks",
    ),
    Task(
        14,
        "the sum in the SkipLayerNorm kernel",
        PROJECT,
        ("plugins/skip_layer_norm/skip_layer_norm.cu",),
        "values = bias, then + x, then + skip, in fp32: toFloat(biases[v], i) for each element by Shape::forEach, "
        "and addTo(values) of x and of skip.",
        "projects",
        "sum_tasks",
    ),
    Task(
        15,
        "one product for Q, K and V",
        PROJECT,
        (FUSED,),
        "Concatenate the three weights (H, H) to (3 H, H) and the biases to (3 H,), multiply once, and give the "
        "result to self.context.",
        "projects",
        "projects",
        ("tests/test_batching_and_fusion.py", "-k", "ragged and plugins or take_the_place_of_elementary"),
        needs=NETWORK_TASKS,
    ),
    Task(
        16,
        "the mask of padded batches",
        PROJECT,
        ("bert_trt/layers/layouts.py",),
        "fp32 (B, 1, 1, S) from the attention mask (B, S): 0 for a token, -MASKED_SCORE for padding; self._additive.",
        "projects",
        "projects",
        ("tests/test_batching_and_fusion.py", "-k", "ragged and none and padded or padding or without_the_mask"),
        needs=NETWORK_TASKS,
    ),
    Task(
        17,
        "the mask of packed batches",
        PROJECT,
        ("bert_trt/layers/layouts.py",),
        "Count the elements of cu_seqlens (self.lengths) before each token, whose number from 1 on is in "
        "self._token_count(): that is the number of its sequence. Two tokens see each other if it is the same.",
        "projects",
        "projects",
        ("tests/test_batching_and_fusion.py", "-k", "packed and none and (ragged or another_sentence)"),
        needs=NETWORK_TASKS,
    ),
)
BY_NUMBER = {task.number: task for task in TASKS}


@dataclass(frozen=True)
class Grade:
    """What the grading of one task found.

    Attributes:
        status: one of the five above.
        found: what was found: the first tensor that differs, its shape, both values; or TensorRT's or the
            compiler's first error.
        cause: the likely cause; empty if none is known.
        measured: for kernels on a GPU, times in microseconds and ratios.
        seconds: how long the grading took.
    """

    status: str
    found: str = ""
    cause: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class WrongAnswer(Exception):
    """A check's finding: ``found`` and ``cause`` of ``Grade``."""

    def __init__(self, found: str, cause: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.cause = cause
