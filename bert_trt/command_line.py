"""The command line of each script: ``..._arguments`` reads it into the script's dataclass of options.py.

Each of these functions ends the process after --help (exit code 0) and after wrong usage (2). This module imports
only the standard library and ``console``, so that a script can answer both before it imports TensorRT.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from bert_trt.exercise.tasks import BY_NUMBER
from bert_trt.options import (
    BATCHINGS,
    BUNDLED_MODEL,
    CACHE_NAME,
    DEFAULT_DATA,
    DEFAULT_OUT_DIR,
    FUSIONS,
    GELU_KINDS,
    GROUPS,
    INPUT_ROLES,
    LANGUAGES,
    LAYER_NORM_KERNELS,
    LINEAR_GROUPS,
    METHODS,
    POOLINGS,
    QUANTIZED_PRECISIONS,
    RAGGED,
    TASKS,
    TENSORRT_ATTENTION,
    TOLERANCES,
    AnswerOptions,
    CalibrationSettings,
    CalibratorOptions,
    Columns,
    CorpusOptions,
    ExerciseOptions,
    ExportOptions,
    GpuCheckOptions,
    ParserOptions,
    PlanOptions,
    PredictOptions,
    QuantizationOptions,
    SequenceRange,
    TritonOptions,
)

Options = TypeVar("Options")


def _as(options: type[Options], args: argparse.Namespace, **given: Any) -> Options:
    """The dataclass ``options`` with the values of the namespace; ``given`` overrides them."""
    names = [option.name for option in fields(options)]  # pyright: ignore[reportArgumentType]
    return options(**{name: getattr(args, name) for name in names if name in args} | given)


def _quantization(args: argparse.Namespace) -> QuantizationOptions:
    """The options of ``add_quantization_arguments``; the defaults where nothing is quantized."""
    if args.precision not in QUANTIZED_PRECISIONS:
        return QuantizationOptions()
    settings = CalibrationSettings(
        *(args.precision, args.calibration, args.percentile, args.calibration_sentences, args.quantize, args.smooth)
    )
    return QuantizationOptions(settings, args.calibration_data, getattr(args, "max_error", None))


# --- options of several scripts ----------------------------------------------------------------------------


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that builder.py and onnx2trt.py have in common."""
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
        help="leave the plugin library out of the plan; the program that loads the plan then needs the library",
    )
    parser.add_argument("--verbose", action="store_true", help="write TensorRT's verbose log beside the plan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--no-structure-check",
        action="store_true",
        help="do not run the network without its roundings, in fp32, which would show a lost bias or a wrong GELU; "
        "it is run all the same if the plan takes no sequence that PyTorch has answered",
    )
    add_quantization_arguments(parser)


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only builder.py's network has."""
    group = parser.add_argument_group("the network of builder.py")
    group.add_argument(
        "--fusion",
        choices=list(FUSIONS),
        default="none",
        help="none: elementary layers; tensorrt: TensorRT's own attention layer, without any plugin; "
        "plugins: EmbLayerNorm, SkipLayerNorm and QkvToContext; all: also the encoder's matrix products, by Linear "
        "and LinearSkipLayerNorm, which in fp32 are TensorRT's own layers; in int8 and fp8 the plugins write "
        "activations in 8 bits "
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
        help="sequences in a batch that the plan accepts and is tuned for (default: 1,8,32)",
    )
    group.add_argument(
        "--sentences",
        type=Path,
        metavar="FILE",
        help="texts, one a line, or JSON lines (see predict.py): predict the task's answer for each",
    )
    group.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="file for the answers for --sentences, as JSON lines (default: beside the plan)",
    )


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the scripts that calibrate."""
    defaults = CalibrationSettings()
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
        type=_alpha,
        default=defaults.smoothing,
        metavar="ALPHA",
        help="SmoothQuant: move outliers of activations into the weights: off, an alpha from 0 to 1, or auto, "
        "which measures several and takes the best (default: %(default)s)",
    )


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the scripts that quantize."""
    add_calibration_arguments(parser)
    parser.add_argument(
        "--max-error",
        action=_Given,
        type=_error,
        metavar="X",
        help="int8 and fp8: return the worst products to fp16 until the relative L2 error is at most X",
    )


# --- options without effect --------------------------------------------------------------------------------


class _Given(argparse.Action):
    """Stores the value, and adds the option to ``given``, the list of options on the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = [*getattr(namespace, "given", []), self.option_strings[0]]


def _refuse_idle_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with exit code 2 if an option has no effect; the message says which option it needs."""
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
    if "--smooth" in given and args.smooth is not None and not set(args.quantize) & set(LINEAR_GROUPS):
        parser.error(
            f"--smooth has no effect with --quantize {','.join(args.quantize)}: only inputs of linear layers are "
            f"smoothed; add one of {', '.join(LINEAR_GROUPS)}"
        )


def _refuse_idle_plugin_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with exit code 2 if --no-embed-plugins is given for a network without plugins."""
    if args.no_embed_plugins and args.layer_norm == "native" and not set(FUSIONS[args.fusion]) - {TENSORRT_ATTENTION}:
        parser.error("--no-embed-plugins has no effect without plugins; it needs --layer-norm or --fusion with some")


# --- values of options -------------------------------------------------------------------------------------


def sequence_range(text: str) -> SequenceRange:
    """Reads ``MIN,OPT,MAX``."""
    try:
        minimum, optimum, maximum = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three whole numbers MIN,OPT,MAX") from None
    if not 1 <= minimum <= optimum <= maximum:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 <= MIN <= OPT <= MAX")
    return SequenceRange(minimum, optimum, maximum)


def capability_list(text: str) -> list[str]:
    """Reads ``8.6,8.9``."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        major, dot, minor = part.partition(".")
        if not (dot and major.isdigit() and minor.isdigit()):
            raise argparse.ArgumentTypeError(f"{part!r} is no compute capability; expected e.g. 8.6")
    return parts


def picture_path(text: str) -> Path:
    """Reads a path for --plot, whose suffix names the picture's format."""
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


def _alpha(text: str) -> float | str | None:
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


def model2onnx_arguments() -> ExportOptions:
    """The command line of model2onnx.py."""
    parser = argparse.ArgumentParser(description="Export a BERT checkpoint to ONNX with a checked example.")
    parser.add_argument(
        "--model",
        default=str(BUNDLED_MODEL),
        help="checkpoint folder or hub name (default: the bundled demo_model)",
    )
    _add_example_arguments(parser)
    parser.add_argument("--out-dir", type=Path, default=DEFAULT_OUT_DIR, help="where to write (default: %(default)s)")
    return _as(ExportOptions, parser.parse_args())


def _add_example_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the export: the example, and whether parts of the checkpoint may be left out."""
    parser.add_argument("--text", help="the sentence to run, with the mask token where a word is to be filled in")
    parser.add_argument("--text-pair", metavar="TEXT", help="a second sentence, which makes a pair with the first")
    parser.add_argument(
        "--task", choices=TASKS, help="what the network answers (default: what the checkpoint's own files say)"
    )
    parser.add_argument("--pooling", choices=POOLINGS, help="of an embedding (default: the checkpoint's, else mean)")
    parser.add_argument(
        "--ignore-config",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="KEY,...",
        help="entries of config.json that are unknown here and have no effect on the answer",
    )
    parser.add_argument(
        "--ignore-extra-weights",
        action="store_true",
        help="leave out the parts of the checkpoint that cannot be exported: other heads, layers that config.json "
        "does not count, pooling, an adapter",
    )


def builder_arguments() -> PlanOptions:
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
    _refuse_idle_options(parser, args)
    _refuse_idle_plugin_options(parser, args)
    return _as(PlanOptions, args, quantization=_quantization(args))


def onnx2trt_arguments() -> ParserOptions:
    """The command line of onnx2trt.py."""
    parser = argparse.ArgumentParser(description="Build BERT through TensorRT's ONNX parser, run and check it.")
    add_common_arguments(parser)
    parser.add_argument(
        "--fusion",
        choices=("none", "tensorrt"),
        default="none",
        help="none: attention as exported; tensorrt: attention as one Attention node, which the parser turns into "
        "TensorRT's own attention layer (default: %(default)s)",
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
        help=f"the roles of inputs, where their names do not say it; roles: {', '.join(INPUT_ROLES)}",
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
    _refuse_idle_options(parser, args)
    _refuse_idle_plugin_options(parser, args)
    return _as(ParserOptions, args, quantization=_quantization(args))


def demo_arguments() -> tuple[ExportOptions, PlanOptions]:
    """The command line of demo.py: the options of the export, and those of the plans."""
    parser = argparse.ArgumentParser(description="Export the bundled checkpoint, build its plans, run and compare.")
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="checkpoint folder or hub name")
    _add_example_arguments(parser)
    add_common_arguments(parser)
    add_network_arguments(parser)
    args = parser.parse_args()
    if args.plan is not None:
        parser.error("--plan names one file, and here are several plans; use builder.py or onnx2trt.py")
    _refuse_idle_options(parser, args)
    if args.fusion != "none":  # with none, demo.py builds a third network, which has plugins
        _refuse_idle_plugin_options(parser, args)
    if args.predictions is not None and args.fusion == "none":
        parser.error("--predictions names one file, and here two plans predict; use builder.py, or leave it out")
    export = _as(ExportOptions, args, out_dir=args.model_dir)
    return export, _as(PlanOptions, args, quantization=_quantization(args))


PREDICT_DESCRIPTION = """\
Answer every line of a file: words for mask tokens, labels, entities, answers to questions, or embeddings, as
the model's task says. The answers are in the order of the lines."""
PREDICT_NOTES = """\
input
  text         one text a line. Sequence classification: a tab separates the two texts of a pair. Question
               answering: question TAB context. For other tasks a tab is a character of the text.
  *.jsonl      a JSON object a line: {"text": ...}, {"text": ..., "text_pair": ...}, or {"question": ...,
               "context": ...}. Other keys, such as "id", are copied to the output.

output, by the name's end
  .jsonl       a JSON object a line, for any task: "line", the input's keys, and "prediction" or "error". Blank lines
               have none.
  .npy, .parquet, .safetensors
               embeddings, a row for each line of the input; bad and blank lines have a row of NaN. (.parquet needs
               requirements-predict.txt.)

An interrupted run goes on when the same command is given again: its state is in FILE.partial and FILE.partial.json.
"""


def predict_arguments() -> PredictOptions:
    """The command line of predict.py."""
    parser = argparse.ArgumentParser(
        description=PREDICT_DESCRIPTION,
        epilog=PREDICT_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a plan of builder.py, or a folder written by model2onnx.py"
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="the texts, in UTF-8")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the answers")
    parser.add_argument(
        "--model-dir", type=Path, help="folder of a plan's model (default: the plan's own folder, or out)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="of the network of a folder (default: fp32)"
    )
    parser.add_argument("--fusion", choices=list(FUSIONS), help="of the network of a folder (default: none)")
    parser.add_argument("--restart", action="store_true", help="discard what an interrupted run has left")
    _add_answer_arguments(parser)
    args = parser.parse_args()
    if args.model.is_dir():
        if args.model_dir is not None:
            parser.error("--model-dir is for a plan; MODEL is a folder already")
    elif args.precision is not None or args.fusion is not None:
        parser.error("--precision and --fusion are for a folder written by model2onnx.py; a plan has its own")
    return _as(PredictOptions, args, answers=_as(AnswerOptions, args))


def _add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``AnswerOptions``."""
    group = parser.add_argument_group("answers")
    defaults = AnswerOptions()
    group.add_argument(
        "--top-k",
        type=_count,
        default=defaults.top_k,
        metavar="N",
        help="words for each mask token (default: %(default)s)",
    )
    group.add_argument("--aggregate", action="store_true", help="token classification: join the tokens of an entity")
    group.add_argument(
        "--max-answer",
        type=_count,
        default=defaults.max_answer,
        metavar="N",
        help="question answering: the most tokens of an answer (default: %(default)s)",
    )
    group.add_argument(
        "--no-answer",
        action="store_true",
        help="question answering: the answer is empty where [CLS] scores higher than every span",
    )
    longer = group.add_mutually_exclusive_group()
    longer.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long, which are bad lines else"
    )
    longer.add_argument(
        "--stride",
        type=_count,
        metavar="N",
        help="question answering: read a long context in windows that have N tokens in common",
    )


TRITON_NOTES = """\
The folder needs nothing else: its README.md has the commands. Triton counts the sequences of a batch, not its tokens,
so that a plan must take --max-batch sequences of the model's longest each: as many tokens as --max-tokens at most.
"""


def triton_arguments() -> TritonOptions:
    """The command line of triton_repository.py."""
    parser = argparse.ArgumentParser(
        description="Write a model repository for Triton Inference Server: bert, the plan, and bert_text, which "
        "takes texts.",
        epilog=TRITON_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder written by model2onnx.py (default: out)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="REPOSITORY", help="the folder to write; a new one"
    )
    parser.add_argument(
        "--batching",
        choices=("packed", "padded"),
        default="packed",
        help="packed: Triton joins requests of any lengths, without padding; padded: it puts requests of one length "
        "together (default: %(default)s)",
    )
    parser.add_argument("--precision", choices=list(TOLERANCES), help="of the plan (default: fp32)")
    parser.add_argument("--fusion", choices=list(FUSIONS), help="as for builder.py (default: none)")
    parser.add_argument(
        "--no-embed-plugins",
        action="store_true",
        help="leave the plugin library out of the plan; Triton loads it then",
    )
    parser.add_argument("--max-batch", type=_count, metavar="N", help="the most sequences in a batch")
    parser.add_argument(
        "--max-tokens",
        type=_count,
        metavar="N",
        help="the most tokens in a batch (default: 16384; 4096 for fill-mask, whose output is larger)",
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="a plan built before, which must take every batch (default: build it)",
    )
    _add_answer_arguments(parser)
    add_quantization_arguments(parser)
    args = parser.parse_args()
    if args.plan is not None:
        for option in ("precision", "fusion", "no_embed_plugins"):
            if getattr(args, option):
                parser.error(f"--{option.replace('_', '-')} has no effect on a plan that is built; leave out --plan")
    given = argparse.Namespace(**vars(args) | {"precision": args.precision or "fp32", "layer_norm": "native"})
    given.fusion = args.fusion or "none"
    _refuse_idle_options(parser, given)
    _refuse_idle_plugin_options(parser, given)
    batching = RAGGED if args.batching == "packed" else args.batching
    answers, quantization = _as(AnswerOptions, args), _quantization(given)
    return _as(TritonOptions, args, batching=batching, answers=answers, quantization=quantization)


CORPUS_DESCRIPTION = """\
Answer every line of many files with Ray, in several processes of one machine or of a cluster. predict.py is simpler
for a file that one process can answer."""
CORPUS_NOTES = """\
input
  text, *.jsonl  as for predict.py
  *.parquet      a row a line, with the columns text, text and text_pair, or question and context

output, in the folder DIR
  part-*.parquet         id, file, line, prediction, extra: a row for each line with an answer, in the order of the
                         lines; id is the line's number in all files together, from 1, extra is JSON: the other keys
                         of a JSON object, or the columns of --keep
  _bad/part-*.jsonl      bad lines: id, file, line, error. Blank lines are in neither.
  _corpus.json           the settings

An interrupted run goes on with the first part that is missing when the same command is given again. On a cluster,
every machine needs the project, the model, the inputs and DIR under the same paths, and the packages of
requirements-cluster.txt in the same versions.
"""


def corpus_arguments() -> CorpusOptions:
    """The command line of corpus.py."""
    parser = argparse.ArgumentParser(
        description=CORPUS_DESCRIPTION, epilog=CORPUS_NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="text, JSON lines or Parquet")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the answers")
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder written by model2onnx.py")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="default: fp32")
    parser.add_argument("--fusion", choices=list(FUSIONS), help="default: none")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run has left in DIR")
    parser.add_argument(
        "--shard-lines",
        type=_count,
        default=4096,
        metavar="N",
        help="lines of a part, the work that a lost process costs (default: %(default)s)",
    )
    group = parser.add_argument_group("Ray")
    group.add_argument(
        "--actors",
        type=_count,
        metavar="N",
        help="processes (default: one for each GPU; without GPUs, one for every 4 CPU cores)",
    )
    group.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster (default: this machine alone)")
    group = parser.add_argument_group("Parquet inputs")
    group.add_argument(
        "--columns",
        type=_names,
        dest="text_columns",
        metavar="NAME[,NAME]",
        help="columns of the text, or of the two texts of a pair (default: named like the keys of JSON lines)",
    )
    group.add_argument(
        "--keep",
        type=_names,
        default=(),
        metavar="NAME,...",
        help="columns to copy to the output's extra: text, integers or booleans",
    )
    _add_answer_arguments(parser)
    args = parser.parse_args()
    columns = Columns(args.text_columns, args.keep)
    return _as(CorpusOptions, args, inputs=tuple(args.inputs), columns=columns, answers=_as(AnswerOptions, args))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def calibrator_arguments() -> CalibratorOptions:
    """The command line of calibrator.py."""
    parser = argparse.ArgumentParser(description="Find the ranges of activations for int8 or fp8.")
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder written by model2onnx.py")
    parser.add_argument("--precision", choices=QUANTIZED_PRECISIONS, default="int8")
    parser.add_argument("--cache", type=Path, metavar="FILE", help=f"default: {CACHE_NAME} in the model folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ranges as JSON")
    parser.add_argument(
        "--plot", type=picture_path, metavar="FILE", help="picture of the tensors with the furthest outliers"
    )
    add_calibration_arguments(parser)
    args = parser.parse_args()
    _refuse_idle_options(parser, args)
    return _as(CalibratorOptions, args, quantization=_quantization(args))


def sensitivity_arguments() -> CalibratorOptions:
    """The command line of sensitivity.py."""
    parser = argparse.ArgumentParser(description="Rank the encoder's products by the error that each causes alone.")
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder written by model2onnx.py")
    parser.add_argument("--precision", choices=QUANTIZED_PRECISIONS, default="int8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ranking as JSON")
    parser.add_argument("--plot", type=picture_path, metavar="FILE", help="the ranking as a picture")
    parser.add_argument(
        "--fusion",
        choices=("none", "all"),
        default="none",
        help="the network to measure: none, in which TensorRT quantizes; all, of plugins in 8 bits, in which the "
        "products of Q, K and V are one (default: %(default)s)",
    )
    add_quantization_arguments(parser)
    args = parser.parse_args()
    _refuse_idle_options(parser, args)
    return _as(CalibratorOptions, args, quantization=_quantization(args))


def gpu_check_arguments() -> GpuCheckOptions:
    """The command line of gpu_check.py."""
    parser = argparse.ArgumentParser(description="Check on this machine's GPU all that TensorRT executes.")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--all",
        action="store_true",
        help="every fusion with every batching and every precision (default: rows in which every two options meet)",
    )
    names = ",".join((*FUSIONS, *BATCHINGS, *TOLERANCES))
    rows.add_argument("--only", type=_row_names, metavar="NAMES", help=f"only the rows with these names: {names}")
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="checkpoint folder or hub name")
    parser.add_argument("--out-dir", type=Path, default=DEFAULT_OUT_DIR / "gpu_check", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: gpu_check.json in the --out-dir")
    parser.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="rows at a time (default: 1); times mean nothing then"
    )
    parser.add_argument("--step", type=Path, help=argparse.SUPPRESS)  # the work of a process that the script started
    return _as(GpuCheckOptions, parser.parse_args())


def exercise_arguments() -> ExerciseOptions:
    """The command line of exercise.py."""
    parser = argparse.ArgumentParser(
        description="The exercise: a work folder with blanks to fill in, and its grading. See docs/tutorial/."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    language = argparse.ArgumentParser(add_help=False)
    language.add_argument("--language", choices=LANGUAGES, help="of what is printed (default: the locale's)")
    make = commands.add_parser("make", parents=[language], help="make a work folder: make exercise DIR=FOLDER")
    make.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="the new folder; it must not have files yet",
    )
    grade = commands.add_parser(
        "grade", parents=[language], help="grade the work folder that this script is in: make grade"
    )
    grade.add_argument("tasks", type=_task, nargs="*", metavar="TASK", help="numbers of tasks (default: all)")
    grade.add_argument("--seed", type=_seed, help="shapes, weights and sentences (default: another one each time)")
    grade.add_argument("--json", type=Path, metavar="FILE", help="write the grades as JSON")
    grade.add_argument(
        "--time-limit",
        type=_count,
        metavar="SECONDS",
        help="for one task (default: 60 for networks and calibration, 600 for kernels and projects)",
    )
    grade.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # of a process that the script started
    args = parser.parse_args()
    return _as(ExerciseOptions, args, tasks=tuple(getattr(args, "tasks", ())))


def _task(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) not in BY_NUMBER:
        tasks = f"the tasks are 1 to {max(BY_NUMBER)}; several have spaces between them: 1 6"
        raise argparse.ArgumentTypeError(f"{text!r} is no task; {tasks}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; expected a whole number of at least 0")
    return int(text)


def _row_names(text: str) -> list[str]:
    choices, names = (*FUSIONS, *BATCHINGS, *TOLERANCES), text.split(",")
    for name in names:
        if name not in choices:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
    return names
