"""The options of each script as a dataclass, and the values that the options can have.

command_line.py reads them from a command line. This module imports only the standard library and ``console``: a
script reads its command line before it imports TensorRT or PyTorch, which take seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from bert_trt.console import UserError

HERE = Path(__file__).parent.parent
BUNDLED_MODEL = HERE / "demo_model"
MASK = "[MASK]"  # BERT's mask token; other families have others, such as <mask>
DEFAULT_TEXT = f"The capital of France, {MASK}, contains the Eiffel Tower."
DEFAULT_ANSWER = "Paris"  # in place of the mask, for other tasks
DEFAULT_QUESTION = "What is the capital of France?"
FILL_MASK, HIDDEN_STATES, EMBEDDING = "fill-mask", "hidden-states", "embedding"
SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION = "sequence-classification", "token-classification"
QUESTION_ANSWERING = "question-answering"
TASKS = (
    *(FILL_MASK, HIDDEN_STATES, EMBEDDING),
    *(SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING),
)
POOLINGS = ("mean", "cls", "max", "pooler")  # of an embedding
DEFAULT_OUT_DIR = Path("out")
# Largest relative L2 error of the output against PyTorch fp32.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int8": 5e-2, "fp8": 5e-2}
QUANTIZED_PRECISIONS = ("int8", "fp8")
BATCHINGS = ("single", "padded", "packed")
RAGGED = "ragged"  # packed, with lengths in place of positions and cu_seqlens: what triton_repository.py builds
FUSED_LAYERS = ("EmbLayerNorm", "SkipLayerNorm", "QkvToContext")
TENSORRT_ATTENTION = "Attention"  # TensorRT's own fused layer, without a plugin
FUSIONS = {  # --fusion -> the fused layers, each of which replaces several elementary layers
    "none": (),
    "tensorrt": (TENSORRT_ATTENTION,),
    "plugins": FUSED_LAYERS,
    "all": ("EmbLayerNorm", "QkvToContext", "Linear", "LinearSkipLayerNorm"),
}
LAYER_NORM_KERNELS = ("basic", "fused", "fast")
GELU_KINDS = ("erf", "tanh", "decomposed")
LINEAR_GROUPS = ("qkv", "attention-output", "intermediate", "output")  # groups of linear layers: --quantize's default
GROUPS = (*LINEAR_GROUPS, "attention")
METHODS = ("max", "percentile", "entropy", "mse")  # see histograms.py
DEFAULT_DATA = HERE / "calibrator_data.txt"
CACHE_NAME = "calibration.json"
ENGLISH, CHINESE = "en", "zh"
LANGUAGES = (ENGLISH, CHINESE)  # of what the exercise says
INPUT_ROLES = ("ids", "mask", "types", "positions")  # the roles of an ONNX file's inputs


@dataclass(frozen=True)
class SequenceRange:
    """The sequence lengths, or numbers of sequences in a batch, that a plan accepts, and the optimum among them."""

    minimum: int
    optimum: int
    maximum: int

    def as_tuple(self) -> tuple[int, int, int]:
        """(minimum, optimum, maximum)."""
        return self.minimum, self.optimum, self.maximum

    def check(self, max_positions: int) -> SequenceRange:
        """Checks lengths against the model's position table, and returns them.

        Raises:
            UserError: the maximum is more than ``max_positions``.
        """
        if self.maximum > max_positions:
            raise UserError(
                f"--seq-len: maximum {self.maximum} is more than the {max_positions} positions of the model; "
                f"name at most {max_positions}"
            )
        return self


ONE_SEQUENCE = SequenceRange(1, 1, 1)
DEFAULT_BATCH = SequenceRange(1, 8, 32)


# --- calibration and quantization --------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationSettings:
    """The settings of a calibration.

    Attributes:
        kind: ``int8`` or ``fp8``.
        method: one of ``METHODS``.
        percentile: in percent, for the method of that name.
        sentences: number of sentences to calibrate on, spread evenly over the file.
        groups: groups of products whose activations are calibrated.
        smoothing: SmoothQuant's alpha; None for no smoothing, "auto" for the best of several.
        fusion: the fusion of the network in which "auto" compares values of alpha: none, or all for 8-bit plugins.
            Ranges are those of the elementary network: both have the same tensors.

    Raises:
        UserError: the method does not go with the kind.
    """

    kind: str = "int8"
    method: str = "mse"
    percentile: float = 99.99
    sentences: int = 128
    groups: tuple[str, ...] = LINEAR_GROUPS
    smoothing: float | str | None = "auto"
    fusion: str = "none"

    def __post_init__(self) -> None:
        if self.kind == "fp8" and self.method == "entropy":
            raise UserError(
                "--calibration entropy counts the even steps of int8, and those of fp8 are not even; "
                "choose max, percentile or mse"
            )

    @property
    def can_smooth(self) -> bool:
        """Whether any of the groups can be smoothed: only inputs of linear layers are."""
        return not set(self.groups).isdisjoint(LINEAR_GROUPS)

    def used(self) -> dict[str, object]:
        """The settings on which the ranges depend, without those that method and groups do not use."""
        values: dict[str, object] = asdict(self)
        if self.method != "percentile":
            del values["percentile"]
        if not self.can_smooth:
            del values["smoothing"]
        if values.get("smoothing") != "auto":
            del values["fusion"]
        return values


@dataclass(frozen=True)
class QuantizationOptions:
    """How a network is quantized.

    Attributes:
        settings: the settings of the calibration.
        data: the text to calibrate on, one sentence a line.
        max_error: products are returned to fp16 until the relative L2 error is at most this; None returns none.
    """

    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    data: Path = DEFAULT_DATA
    max_error: float | None = None


# --- the scripts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanOptions:
    """The options of builder.py and onnx2trt.py; onnx2trt.py uses only those up to ``quantization``.

    Attributes:
        model_dir: the folder written by model2onnx.py.
        precision: fp32, fp16, bf16, int8 or fp8.
        fusion: one of ``FUSIONS``.
        layer_norm: ``native``, or a kernel of the LayerNorm plugin.
        seq_len: sequence lengths; None for ``pipeline.DEFAULT_SEQ_LEN``.
        plan: the plan file; None for the default name in the model folder.
        compute_capability: GPUs to build for; empty for those that TensorRT chooses.
        no_embed_plugins: leave the plugin library out of the plan.
        verbose: write TensorRT's verbose log beside the plan.
        json: the file for the results; None writes none.
        no_structure_check: do not run the network without its roundings.
        quantization: the quantization for int8 and fp8.
        batching: single, padded or packed; or ``RAGGED``, which no command line of builder.py names.
        batch: sequences in a batch; None for 1, or ``DEFAULT_BATCH`` with padded and packed batches.
        sentences: a file of texts, for each of which the task's answer is predicted.
        predictions: the file for these predictions; None for the default name beside the plan.
        gelu: one of ``GELU_KINDS``; None for the checkpoint's.
        compare_layers: print the difference to PyTorch after every encoder layer.
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
    predictions: Path | None = None
    gelu: str | None = None
    compare_layers: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether the precision is int8 or fp8."""
        return self.precision in QUANTIZED_PRECISIONS


@dataclass(frozen=True)
class ParserOptions(PlanOptions):
    """The options of onnx2trt.py.

    Attributes:
        onnx: a file that somebody else exported, instead of ``model_dir``.
        inputs: names of the file's inputs, by role (``INPUT_ROLES``).
    """

    onnx: Path | None = None
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportOptions:
    """The options of model2onnx.py.

    Attributes:
        model: checkpoint folder or hub name.
        text: the sentence of the example; None for one that suits the task.
        text_pair: a second sentence, or None.
        task: one of ``TASKS``; None for that of the checkpoint's own files.
        pooling: one of ``POOLINGS``, for an embedding; None for that of the checkpoint's own files.
        ignore_extra_weights: leave out the parts of the checkpoint that cannot be exported.
        ignore_config: entries of config.json that are unknown and without effect.
        out_dir: the folder to write.
    """

    model: str = str(BUNDLED_MODEL)
    text: str | None = None
    text_pair: str | None = None
    task: str | None = None
    pooling: str | None = None
    ignore_extra_weights: bool = False
    ignore_config: tuple[str, ...] = ()
    out_dir: Path = DEFAULT_OUT_DIR


@dataclass(frozen=True)
class AnswerOptions:
    """How a task's output becomes answers, and what happens to texts that are too long.

    Attributes:
        top_k: the number of words for each mask token.
        truncate: cut texts to the checkpoint's longest, instead of reporting them.
        stride: question answering: the number of tokens that two windows of a long context have in common; None
            takes no windows.
        aggregate: token classification: join the tokens of one entity.
        max_answer: question answering: the most tokens of an answer.
        no_answer: question answering: the answer is empty where [CLS] scores higher than every span.
    """

    top_k: int = 10
    truncate: bool = False
    stride: int | None = None
    aggregate: bool = False
    max_answer: int = 30
    no_answer: bool = False


@dataclass(frozen=True)
class PredictOptions:
    """The options of predict.py.

    Attributes:
        model: a plan of builder.py, or a folder written by model2onnx.py.
        input: the file of texts.
        out: the file for the answers.
        model_dir: the folder of a plan's model; None for the plan's own folder, or ``DEFAULT_OUT_DIR``.
        precision: the network's precision, for a folder; None for fp32.
        fusion: one of ``FUSIONS``, for a folder; None for none.
        restart: discard what an interrupted run has left.
        answers: how the output becomes answers.
    """

    model: Path
    input: Path
    out: Path
    model_dir: Path | None = None
    precision: str | None = None
    fusion: str | None = None
    restart: bool = False
    answers: AnswerOptions = field(default_factory=AnswerOptions)


@dataclass(frozen=True)
class TritonOptions:
    """The options of triton_repository.py.

    Attributes:
        model_dir: the folder written by model2onnx.py.
        out: the model repository to write.
        batching: padded, or ``RAGGED`` for packed batches.
        precision: fp32, fp16, bf16, int8 or fp8; None with ``plan``.
        fusion: one of ``FUSIONS``; None with ``plan``.
        no_embed_plugins: leave the plugin library out of the plan.
        max_batch: the most sequences in a batch; None for as many as ``max_tokens`` allow.
        max_tokens: the most tokens in a batch; None for the task's default, or as many as ``max_batch`` need.
        plan: a plan that was built before; None builds one.
        answers: how outputs become answers.
        quantization: the quantization for int8 and fp8.
    """

    model_dir: Path
    out: Path
    batching: str = RAGGED
    precision: str | None = None
    fusion: str | None = None
    no_embed_plugins: bool = False
    max_batch: int | None = None
    max_tokens: int | None = None
    plan: Path | None = None
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)


@dataclass(frozen=True)
class Columns:
    """The columns of Parquet files that corpus.py reads.

    Attributes:
        texts: those of the texts, in the order of the task's keys; None for those named like the keys.
        kept: those whose values are copied to the output.
    """

    texts: tuple[str, ...] | None = None
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class CorpusOptions:
    """The options of corpus.py.

    Attributes:
        inputs: files of texts, JSON lines or Parquet.
        out: the output folder.
        model_dir: the folder written by model2onnx.py.
        precision: the network's precision; None for fp32.
        fusion: one of ``FUSIONS``; None for none.
        actors: the number of actors; None for one a GPU, or a few that share the CPUs.
        address: HOST:PORT of a Ray cluster; None for this machine.
        shard_lines: lines of a shard, the work that is done as a whole.
        restart: discard what an earlier run has left.
        columns: what is read of Parquet files.
        answers: how the output becomes answers.
    """

    inputs: tuple[Path, ...]
    out: Path
    model_dir: Path = DEFAULT_OUT_DIR
    precision: str | None = None
    fusion: str | None = None
    actors: int | None = None
    address: str | None = None
    shard_lines: int = 4096
    restart: bool = False
    columns: Columns = field(default_factory=Columns)
    answers: AnswerOptions = field(default_factory=AnswerOptions)


@dataclass(frozen=True)
class CalibratorOptions:
    """The options of calibrator.py and sensitivity.py.

    Attributes:
        model_dir: the folder written by model2onnx.py.
        cache: the file for the ranges; None for the default name in the model folder.
        json: the file for the results; None writes none.
        plot: the file for a picture; None draws none.
        quantization: the calibration's settings and data.
        fusion: none or all: the network that sensitivity.py measures.
    """

    model_dir: Path = DEFAULT_OUT_DIR
    cache: Path | None = None
    json: Path | None = None
    plot: Path | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    fusion: str = "none"


@dataclass(frozen=True)
class GpuCheckOptions:
    """The options of gpu_check.py.

    Attributes:
        all: check every combination, not just rows in which every two options meet.
        only: names that a row must have; None for no selection.
        model: checkpoint folder or hub name.
        out_dir: the folder to work in.
        json: the file for the results; None for the default name in ``out_dir``.
        jobs: number of rows to check at a time.
        step: a file with the step of a process that the script started itself.
    """

    all: bool = False
    only: list[str] | None = None
    model: str = str(BUNDLED_MODEL)
    out_dir: Path = DEFAULT_OUT_DIR / "gpu_check"
    json: Path | None = None
    jobs: int = 1
    step: Path | None = None


def predictions_path(named: Path | None, plan: Path) -> Path:
    """The file for the predictions: the one that --predictions names, else the default name beside the plan."""
    return named or plan.with_suffix(".predictions.jsonl")


@dataclass(frozen=True)
class ExerciseOptions:
    """The options of exercise.py.

    Attributes:
        command: ``make`` or ``grade``.
        folder: the work folder to make.
        tasks: the tasks to grade; empty for all.
        seed: decides shapes, weights and sentences; None for a random one.
        json: the file for the grades.
        time_limit: seconds for one task; None for the limit of its kind.
        result: in a process that the script started itself: the file for the grade of the only task.
        language: of what is printed, one of ``LANGUAGES``; None for that of the locale.
    """

    command: str
    folder: Path | None = None
    tasks: tuple[int, ...] = ()
    seed: int | None = None
    json: Path | None = None
    time_limit: int | None = None
    result: Path | None = None
    language: str | None = None
