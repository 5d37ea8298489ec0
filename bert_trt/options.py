"""The command lines of the scripts, and the values that they choose from.

Nothing here imports more than the standard library and ``common``, so that ``--help`` and wrong usage are answered at
once: a script reads its command line before it imports TensorRT or PyTorch, which take seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


ONE_SENTENCE = SequenceRange(1, 1, 1)


@dataclass(frozen=True)
class Settings:
    """What a calibration depends on besides model and data.

    Attributes:
        kind: ``int8`` or ``fp8``.
        method: one of ``METHODS``.
        percentile: used by the method of that name only.
        sentences: how many of the file's lines, evenly spread over it.
        groups: groups of products whose tensors are looked at.
        smoothing: strength of the smoothing of outliers; None for none, "auto" for the best of several.
    """

    kind: str = "int8"
    method: str = "mse"
    percentile: float = 99.99
    sentences: int = 128
    groups: tuple[str, ...] = LINEAR_GROUPS
    smoothing: float | str | None = "auto"

    @classmethod
    def of(cls, args: argparse.Namespace) -> Settings:
        """Those of the command line; see ``add_calibration_arguments``."""
        return cls(
            args.precision, args.calibration, args.percentile, args.calibration_sentences, args.quantize, args.smooth
        ).check()

    def check(self) -> Settings:
        """Itself.

        Raises:
            UserError: a combination that has no meaning.
        """
        if self.kind == "fp8" and self.method == "entropy":
            raise UserError(
                "--calibration entropy counts the even steps of int8, and those of fp8 are not even; "
                "choose max, percentile or mse"
            )
        return self

    def used(self) -> dict[str, object]:
        """The settings on which the ranges depend: not those that the method, or the groups, do not read."""
        values: dict[str, object] = asdict(self)
        if self.method != "percentile":
            del values["percentile"]
        if not has_linear(self.groups):
            del values["smoothing"]
        return values


def has_linear(groups: Iterable[str]) -> bool:
    """Whether there are linear layers among the groups: only their inputs can be smoothed."""
    return any(group in LINEAR_GROUPS for group in groups)


# --- options that several scripts have ---------------------------------------------------------------------


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that both ways to a plan understand."""
    parser.add_argument(
        "--model-dir", type=Path, default=Path("out"), help="folder written by model2onnx.py (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=list(TOLERANCES),
        default="fp32",
        help="type of weights and tensors; int8 and fp8: of the encoder's linear layers (default: %(default)s)",
    )
    parser.add_argument("--plan", type=Path, help="plan file to write (default: in the model folder)")
    parser.add_argument(
        "--seq-len",
        type=sequence_range,
        metavar="MIN,OPT,MAX",
        help="sequence lengths that the plan accepts and is tuned for (default: 1,32,128)",
    )
    parser.add_argument(
        "--compute-capability",
        type=capability_list,
        default=[],
        metavar="LIST",
        help="GPUs to build for, e.g. 8.6,8.9 (tensorrt_rtx only; default: all that it supports)",
    )
    parser.add_argument(
        "--layer-norm",
        choices=("native", *LAYER_NORM_KERNELS),
        default="native",
        help="layer norm by TensorRT's own layer or by a kernel of the LayerNorm plugin (default: %(default)s)",
    )
    parser.add_argument(
        "--no-embed-plugins",
        action="store_true",
        help="leave the plugin library out of the plan; whoever loads the plan then needs the library",
    )
    parser.add_argument("--verbose", action="store_true", help="write TensorRT's verbose log beside the plan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--no-structure-check",
        action="store_true",
        help="do not run the network without its roundings, in fp32, where a lost bias or a wrong GELU would show; "
        "it is run all the same if the plan takes no sequence that PyTorch has answered",
    )
    add_quantization_arguments(parser)


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the network that the parser's way does not have."""
    group = parser.add_argument_group("the network of builder.py")
    group.add_argument(
        "--fusion",
        choices=list(FUSIONS),
        default="none",
        help="none: elementary layers; tensorrt: TensorRT's own attention layer, without any plugin; "
        "plugins: EmbLayerNorm, SkipLayerNorm and QkvToContext; all: Linear too, for "
        "the encoder's matrix products in fp16 and bf16; in fp32, or quantized, they are TensorRT's own all the same "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--batching",
        choices=BATCHINGS,
        default="single",
        help="one sentence, a padded batch with a mask, or packed tokens without padding (default: %(default)s)",
    )
    group.add_argument(
        "--batch",
        type=sequence_range,
        metavar="MIN,OPT,MAX",
        help="sentences in a batch that the plan accepts and is tuned for (default: 1,8,32)",
    )
    group.add_argument(
        "--sentences", type=Path, metavar="FILE", help="text with [MASK], one sentence a line: fill every [MASK]"
    )
    group.add_argument(
        "--fillings",
        type=Path,
        metavar="FILE",
        help="where the ten best fillings of --sentences go, as JSON lines (default: beside the plan)",
    )


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of everything that calibrates."""
    defaults = Settings()
    group = parser.add_argument_group("calibration, for int8 and fp8")
    group.add_argument(
        "--calibration",
        action=_Given,
        choices=METHODS,
        default=defaults.method,
        help="how ranges are chosen (default: %(default)s)",
    )
    group.add_argument(
        "--percentile",
        action=_Given,
        type=_percentage,
        default=defaults.percentile,
        metavar="P",
        help="for --calibration percentile (default: %(default)s)",
    )
    group.add_argument(
        "--calibration-data",
        action=_Given,
        type=Path,
        default=DEFAULT_DATA,
        metavar="FILE",
        help="text, one sentence a line",
    )
    group.add_argument(
        "--calibration-sentences",
        action=_Given,
        type=_count,
        default=defaults.sentences,
        metavar="N",
        help="how many of its lines to calibrate on (default: %(default)s); others serve to measure the error",
    )
    group.add_argument(
        "--quantize",
        action=_Given,
        type=_groups,
        default=defaults.groups,
        metavar="GROUPS",
        help=f"which products, of {','.join(GROUPS)} (default: {','.join(LINEAR_GROUPS)})",
    )
    group.add_argument(
        "--smooth",
        action=_Given,
        type=_strength,
        default=defaults.smoothing,
        metavar="S",
        help="SmoothQuant: move outliers of activations into the weights: off, a strength from 0 to 1, or auto, "
        "which measures several and takes the best (default: %(default)s)",
    )


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of everything that quantizes."""
    add_calibration_arguments(parser)
    parser.add_argument(
        "--max-error",
        action=_Given,
        type=_error,
        metavar="X",
        help="int8 and fp8: return the worst products to fp16 until the relative L2 error is at most X",
    )


def fillings_path(named: Path | None, plan: Path) -> Path:
    """Where the fillings go: what --fillings names, else beside the plan."""
    return named or plan.with_suffix(".fillings.jsonl")


# --- options without effect --------------------------------------------------------------------------------


class _Given(argparse.Action):
    """Stores the value, and in ``given`` that the option stood on the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = [*getattr(namespace, "given", []), self.option_strings[0]]


def refuse_idle_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with exit code 2 if an option was given that nothing reads; the message says what it needs."""
    given = getattr(args, "given", [])
    if given and args.precision not in QUANTIZED_PRECISIONS:
        needed = " or ".join(QUANTIZED_PRECISIONS)
        parser.error(
            f"{given[0]} has no effect with --precision {args.precision}; it needs {needed}, or leave it out"
        )
    if "--percentile" in given and args.calibration != "percentile":
        parser.error(
            f"--percentile has no effect with --calibration {args.calibration}; it needs --calibration percentile"
        )
    if "--smooth" in given and args.smooth is not None and not has_linear(args.quantize):
        parser.error(
            f"--smooth has no effect with --quantize {','.join(args.quantize)}: only inputs of linear layers are "
            f"smoothed; add one of {', '.join(LINEAR_GROUPS)}"
        )


def refuse_idle_plugin_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The same for --no-embed-plugins in a network without plugins."""
    if args.no_embed_plugins and args.layer_norm == "native" and not set(FUSIONS[args.fusion]) - {TENSORRT_ATTENTION}:
        parser.error("--no-embed-plugins has no effect without plugins; it needs --layer-norm or --fusion with some")


# --- values of options -------------------------------------------------------------------------------------


def sequence_range(text: str) -> SequenceRange:
    """Reads ``MIN,OPT,MAX``."""
    try:
        low, best, high = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three whole numbers MIN,OPT,MAX") from None
    if not 1 <= low <= best <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 <= MIN <= OPT <= MAX")
    return SequenceRange(low, best, high)


def capability_list(text: str) -> list[str]:
    """Reads ``8.6,8.9``."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        major, dot, minor = part.partition(".")
        if not (dot and major.isdigit() and minor.isdigit()):
            raise argparse.ArgumentTypeError(f"{part!r} is no compute capability; expected e.g. 8.6")
    return parts


def picture_path(text: str) -> Path:
    """A path for --plot; its ending says which kind of picture."""
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends in .png, .svg or .pdf")
    return path


def _percentage(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected more than 0 and at most 100, such as 99.99")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def _groups(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    for part in parts:
        if part not in GROUPS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in parts)


def _input_names(text: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for part in text.split(","):
        role, _, name = part.partition("=")
        if role not in INPUT_ROLES or not name:
            raise argparse.ArgumentTypeError(f"{part!r}: expected ROLE=NAME with one of {', '.join(INPUT_ROLES)}")
        names[role] = name
    return names


def _strength(text: str) -> float | str | None:
    if text in ("off", "auto"):
        return None if text == "off" else text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected off, auto, or a number from 0 to 1")
    return value


def _error(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number greater than 0, such as 0.02")
    return value


# --- the scripts -------------------------------------------------------------------------------------------


def model2onnx_arguments() -> argparse.Namespace:
    """The command line of model2onnx.py; this and the following end the process after --help and wrong usage."""
    parser = argparse.ArgumentParser(description="Export a BERT checkpoint to ONNX with a checked example.")
    parser.add_argument(
        "--model",
        default=str(BUNDLED_MODEL),
        help="checkpoint folder or hub name (default: the bundled demo_model)",
    )
    _add_example_arguments(parser)
    parser.add_argument("--out-dir", type=Path, default=DEFAULT_OUT_DIR, help="where to write (default: %(default)s)")
    return parser.parse_args()


def _add_example_arguments(parser: argparse.ArgumentParser) -> None:
    """What is exported: the example, and what of the checkpoint may be left out."""
    parser.add_argument(
        "--text", default=DEFAULT_TEXT, help="the sentence to run, with [MASK] (default: %(default)s)"
    )
    parser.add_argument("--text-pair", metavar="TEXT", help="a second sentence, which makes a pair with the first")
    parser.add_argument(
        "--ignore-extra-weights",
        action="store_true",
        help="go on without what cannot be exported of the checkpoint: other heads, layers that config.json does not "
        "count, pooling, an adapter",
    )


def builder_arguments() -> argparse.Namespace:
    """The command line of builder.py."""
    parser = argparse.ArgumentParser(description="Build BERT layer by layer with the TensorRT API, run and check it.")
    add_common_arguments(parser)
    add_network_arguments(parser)
    parser.add_argument(
        "--gelu", choices=GELU_KINDS, help="which GELU (default: the checkpoint's; decomposed: elementary layers)"
    )
    parser.add_argument(
        "--compare-layers", action="store_true", help="print the difference to PyTorch after every encoder layer"
    )
    args = parser.parse_args()
    refuse_idle_options(parser, args)
    refuse_idle_plugin_options(parser, args)
    return args


def onnx2trt_arguments() -> argparse.Namespace:
    """The command line of onnx2trt.py."""
    parser = argparse.ArgumentParser(description="Build BERT through TensorRT's ONNX parser, run and check it.")
    add_common_arguments(parser)
    parser.add_argument(
        "--fusion",
        choices=("none", "tensorrt"),
        default="none",
        help="none: attention as exported; tensorrt: as one Attention node, of which the parser makes TensorRT's own "
        "attention layer (default: %(default)s)",
    )
    group = parser.add_argument_group(
        "a BERT that somebody else exported",
        "The exit code is 0 only if the network was compared with onnxruntime and agrees.",
    )
    group.add_argument("--onnx", type=Path, metavar="FILE", help="the ONNX file, instead of --model-dir")
    group.add_argument(
        "--inputs",
        type=_input_names,
        default={},
        metavar="ROLE=NAME,...",
        help=f"which input is which, where the names do not say it; roles: {', '.join(INPUT_ROLES)}",
    )
    group.add_argument(
        "--batch",
        type=sequence_range,
        metavar="MIN,OPT,MAX",
        help="sequences in a batch, where the file leaves it open (default: 1,8,32)",
    )
    args = parser.parse_args()
    if args.onnx is None and (args.inputs or args.batch is not None):
        parser.error("--inputs and --batch belong to --onnx FILE")
    if args.onnx is not None:
        if args.precision in QUANTIZED_PRECISIONS:
            parser.error(
                f"--precision {args.precision} needs a folder by model2onnx.py, where products have known names;"
                " a file that is quantized already is built as it is with --precision fp32"
            )
        if args.layer_norm != "native" or args.fusion != "none":
            parser.error(
                "--layer-norm and --fusion need a folder by model2onnx.py, whose graph is known; leave them out"
            )
    refuse_idle_options(parser, args)
    refuse_idle_plugin_options(parser, args)
    return args


def demo_arguments() -> argparse.Namespace:
    """The command line of demo.py."""
    parser = argparse.ArgumentParser(description="Export the bundled checkpoint, build its plans, run and compare.")
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="checkpoint folder or hub name")
    _add_example_arguments(parser)
    add_common_arguments(parser)
    add_network_arguments(parser)
    args = parser.parse_args()
    if args.plan is not None:
        parser.error("--plan names one file, and here are several plans; use builder.py or onnx2trt.py")
    refuse_idle_options(parser, args)
    if args.fusion != "none":  # else the third network has plugins
        refuse_idle_plugin_options(parser, args)
    if args.fillings is not None and args.fusion == "none":
        parser.error("--fillings names one file, and here two plans fill; use builder.py, or leave it out")
    return args


def fill_masks_arguments() -> argparse.Namespace:
    """The command line of fill_masks.py."""
    parser = argparse.ArgumentParser(description="Fill every [MASK] of a text file with a plan.")
    parser.add_argument("plan", type=Path, metavar="PLAN", help="written by builder.py")
    parser.add_argument("sentences", type=Path, metavar="FILE", help="UTF-8, one sentence a line")
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder written by model2onnx.py")
    parser.add_argument("--fillings", type=Path, metavar="FILE", help="JSON lines (default: beside the plan)")
    return parser.parse_args()


def calibrator_arguments() -> argparse.Namespace:
    """The command line of calibrator.py."""
    parser = argparse.ArgumentParser(description="Find the ranges of activations for int8 or fp8.")
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder written by model2onnx.py")
    parser.add_argument("--precision", choices=QUANTIZED_PRECISIONS, default="int8")
    parser.add_argument("--cache", type=Path, metavar="FILE", help=f"default: {CACHE_NAME} in the model folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ranges as JSON")
    parser.add_argument("--plot", type=picture_path, metavar="FILE", help="picture of the worst tensors' histograms")
    add_calibration_arguments(parser)
    args = parser.parse_args()
    refuse_idle_options(parser, args)
    return args


def sensitivity_arguments() -> argparse.Namespace:
    """The command line of sensitivity.py."""
    parser = argparse.ArgumentParser(description="Rank the encoder's products by the error that each alone brings.")
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder written by model2onnx.py")
    parser.add_argument("--precision", choices=QUANTIZED_PRECISIONS, default="int8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ranking as JSON")
    parser.add_argument("--plot", type=picture_path, metavar="FILE", help="the ranking as a picture")
    add_quantization_arguments(parser)
    args = parser.parse_args()
    refuse_idle_options(parser, args)
    return args


def gpu_check_arguments() -> argparse.Namespace:
    """The command line of gpu_check.py."""
    parser = argparse.ArgumentParser(description="Check on this machine's GPU all that TensorRT executes.")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--all",
        action="store_true",
        help="every fusion with every batching and every precision (default: so many that every two meet)",
    )
    names = ",".join((*FUSIONS, *BATCHINGS, *TOLERANCES))
    rows.add_argument("--only", type=_row_names, metavar="NAMES", help=f"of all rows those with these names: {names}")
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="checkpoint folder or hub name")
    parser.add_argument("--out-dir", type=Path, default=DEFAULT_OUT_DIR / "gpu_check", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: gpu_check.json in the --out-dir")
    parser.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="rows at a time (default: 1); times mean nothing then"
    )
    parser.add_argument("--step", type=Path, help=argparse.SUPPRESS)  # what a process of the script itself is to do
    return parser.parse_args()


def _row_names(text: str) -> list[str]:
    contents, names = (*FUSIONS, *BATCHINGS, *TOLERANCES), text.split(",")
    for name in names:
        if name not in contents:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(contents)}")
    return names
