"""What the scripts can be asked for: the values to choose from, and the options of each script as a dataclass.

command_line.py reads them from a command line. Nothing here imports more than the standard library and ``console``: a
script reads its command line before it imports TensorRT or PyTorch, which take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bert_trt.console import UserError

HERE = Path(__file__).parent.parent
BUNDLED_MODEL = HERE / "demo_model"
DEFAULT_TEXT = "The capital of France, [MASK], contains the Eiffel Tower."
DEFAULT_OUT_DIR = Path("out")
# Largest relative L2 error of the output against PyTorch fp32.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int8": 5e-2, "fp8": 5e-2}
QUANTIZED_PRECISIONS = ("int8", "fp8")
BATCHINGS = ("single", "padded", "packed")
FUSED_LAYERS = ("EmbLayerNorm", "SkipLayerNorm", "QkvToContext")
TENSORRT_ATTENTION = "Attention"  # among the layers that stand for several: TensorRT's own, without a plugin
FUSIONS = {  # what stands in a network for several elementary layers
    "none": (),
    "tensorrt": (TENSORRT_ATTENTION,),
    "plugins": FUSED_LAYERS,
    "all": (*FUSED_LAYERS, "Linear"),
}
LAYER_NORM_KERNELS = ("basic", "fused", "fast")
GELU_KINDS = ("erf", "tanh", "decomposed")
LINEAR_GROUPS = ("qkv", "attention-output", "intermediate", "output")  # the default: the encoder's linear layers
GROUPS = (*LINEAR_GROUPS, "attention")
METHODS = ("max", "percentile", "entropy", "mse")  # see calibrator.py
DEFAULT_DATA = HERE / "calibrator_data.txt"
CACHE_NAME = "calibration.json"
INPUT_ROLES = ("ids", "mask", "types", "positions")  # what the inputs of an ONNX file can mean


@dataclass(frozen=True)
class SequenceRange:
    """Sequence lengths, or numbers of sentences, that a plan accepts, and the one that it is tuned for."""

    minimum: int
    optimum: int
    maximum: int

    def as_tuple(self) -> tuple[int, int, int]:
        """(minimum, optimum, maximum)."""
        return self.minimum, self.optimum, self.maximum

    def check(self, max_positions: int) -> SequenceRange:
        """Itself, after a check against the model's position table.

        Raises:
            UserError: the table is too short.
        """
        if self.maximum > max_positions:
            raise UserError(
                f"--seq-len: maximum {self.maximum} is more than the {max_positions} positions of the model; "
                f"name at most {max_positions}"
            )
        return self


ONE_SEQUENCE = SequenceRange(1, 1, 1)
DEFAULT_BATCH = SequenceRange(1, 8, 32)


def has_linear(groups: Iterable[str]) -> bool:
    """Whether there are linear layers among the groups: only their inputs can be smoothed."""
    return any(group in LINEAR_GROUPS for group in groups)


# --- calibration and quantization --------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationSettings:
    """What a calibration depends on besides model and data.

    Attributes:
        kind: ``int8`` or ``fp8``.
        method: one of ``METHODS``.
        percentile: used by the method of that name only.
        sentences: how many of the file's lines, evenly spread over it.
        groups: groups of products whose tensors are looked at.
        smoothing: SmoothQuant's alpha; None for no smoothing, "auto" for the best of several.

    Raises:
        UserError: a combination that has no meaning.
    """

    kind: str = "int8"
    method: str = "mse"
    percentile: float = 99.99
    sentences: int = 128
    groups: tuple[str, ...] = LINEAR_GROUPS
    smoothing: float | str | None = "auto"

    def __post_init__(self) -> None:
        if self.kind == "fp8" and self.method == "entropy":
            raise UserError(
                "--calibration entropy counts the even steps of int8, and those of fp8 are not even; "
                "choose max, percentile or mse"
            )

    def used(self) -> dict[str, object]:
        """The settings on which the ranges depend: not those that the method, or the groups, do not read."""
        values: dict[str, object] = asdict(self)
        if self.method != "percentile":
            del values["percentile"]
        if not has_linear(self.groups):
            del values["smoothing"]
        return values


@dataclass(frozen=True)
class QuantizationOptions:
    """How a network is quantized.

    Attributes:
        settings: of the calibration.
        data: the text to calibrate on, one sentence a line.
        max_error: products go back to fp16 until the relative L2 error is at most this; None: none goes back.
    """

    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    data: Path = DEFAULT_DATA
    max_error: float | None = None


# --- the scripts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanOptions:
    """What builder.py and onnx2trt.py are asked for; onnx2trt.py reads only the first part.

    Attributes:
        model_dir: written by model2onnx.py.
        precision: fp32, fp16, bf16, int8 or fp8.
        fusion: one of ``FUSIONS``.
        layer_norm: ``native``, or a kernel of the LayerNorm plugin.
        seq_len: sequence lengths; None: those of ``pipeline.DEFAULT_SEQ_LEN``.
        plan: the plan file; None: in the model folder.
        compute_capability: GPUs to build for; empty: those that the product chooses.
        no_embed_plugins: the plugin library stays out of the plan.
        verbose: TensorRT's verbose log is written beside the plan.
        json: where the results go.
        no_structure_check: the network is not run without its roundings.
        quantization: for int8 and fp8.
        batching: single, padded or packed.
        batch: sequences in a batch; None: 1, or ``DEFAULT_BATCH``.
        sentences: a text file whose every [MASK] is filled.
        fillings: where the predictions for it go; None: beside the plan.
        gelu: one of ``GELU_KINDS``; None: the checkpoint's.
        compare_layers: the difference to PyTorch is printed after every encoder layer.
    """

    model_dir: Path = DEFAULT_OUT_DIR
    precision: str = "fp32"
    fusion: str = "none"
    layer_norm: str = "native"
    seq_len: SequenceRange | None = None
    plan: Path | None = None
    compute_capability: list[str] = field(default_factory=list)
    no_embed_plugins: bool = False
    verbose: bool = False
    json: Path | None = None
    no_structure_check: bool = False
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    batching: str = "single"
    batch: SequenceRange | None = None
    sentences: Path | None = None
    fillings: Path | None = None
    gelu: str | None = None
    compare_layers: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether the precision is int8 or fp8."""
        return self.precision in QUANTIZED_PRECISIONS


@dataclass(frozen=True)
class ParserOptions(PlanOptions):
    """What onnx2trt.py is asked for.

    Attributes:
        onnx: a file that somebody else exported, instead of ``model_dir``.
        inputs: role of an input (``INPUT_ROLES``) -> its name in that file.
    """

    onnx: Path | None = None
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportOptions:
    """What model2onnx.py is asked for.

    Attributes:
        model: checkpoint folder or hub name.
        text: the sentence to run.
        text_pair: a second sentence.
        ignore_extra_weights: what cannot be exported of the checkpoint is left out.
        out_dir: where to write.
    """

    model: str = str(BUNDLED_MODEL)
    text: str = DEFAULT_TEXT
    text_pair: str | None = None
    ignore_extra_weights: bool = False
    out_dir: Path = DEFAULT_OUT_DIR


@dataclass(frozen=True)
class FillOptions:
    """What fill_mask.py is asked for.

    Attributes:
        plan: written by builder.py.
        sentences: the text file.
        model_dir: written by model2onnx.py.
        fillings: where the predictions go; None: beside the plan.
    """

    plan: Path
    sentences: Path
    model_dir: Path = DEFAULT_OUT_DIR
    fillings: Path | None = None


@dataclass(frozen=True)
class CalibratorOptions:
    """What calibrator.py and sensitivity.py are asked for.

    Attributes:
        model_dir: written by model2onnx.py.
        cache: where the ranges go; None: in the model folder.
        json: where the results go.
        plot: where a picture goes.
        quantization: what is calibrated, and how.
    """

    model_dir: Path = DEFAULT_OUT_DIR
    cache: Path | None = None
    json: Path | None = None
    plot: Path | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)


@dataclass(frozen=True)
class GpuCheckOptions:
    """What gpu_check.py is asked for.

    Attributes:
        all: every combination, instead of so many that every two values meet.
        only: names that a row must have; None: no such choice.
        model: checkpoint folder or hub name.
        out_dir: where the work is done.
        json: where the results go; None: in ``out_dir``.
        jobs: rows at a time.
        step: what a process of the script itself is to do.
    """

    all: bool = False
    only: list[str] | None = None
    model: str = str(BUNDLED_MODEL)
    out_dir: Path = DEFAULT_OUT_DIR / "gpu_check"
    json: Path | None = None
    jobs: int = 1
    step: Path | None = None


def predictions_path(named: Path | None, plan: Path) -> Path:
    """Where the predictions for a text file go: what --fillings names, else beside the plan."""
    return named or plan.with_suffix(".fillings.jsonl")
