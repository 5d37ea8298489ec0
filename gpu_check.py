"""Checks on this machine's GPU all that TensorRT executes: one table, and one JSON file to send us.

    make gpu-check                              or: python gpu_check.py --json gpu_check.json
    python gpu_check.py --all                   every fusion with every batching and every precision
    python gpu_check.py --only packed,fp16,int8     names of one kind are alternatives
    python gpu_check.py --jobs 4                rows at a time; times mean nothing then

A row of the table is one network: a fusion, a batching, a precision. Without --all there are so many rows that every
two of these meet in one. Each step of a row is a process of its own, since what is looked for may end one:

1. The network is assembled and read back, plans are built, and network_runner.py runs the network, on CUDA where
   there is a GPU, in the row's precision and in fp32.
2. Where TensorRT executes plans, each plan is loaded in a new process and run at the least, the typical and the
   greatest size of its profile, and at the least again.

Where TensorRT executes nothing, the columns of the second step stay empty.

Exit status: 0 nothing that could be checked is wrong, 1 something is, 2 wrong usage.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bert_trt.command_line import gpu_check_arguments
from bert_trt.interrupts import begin_script
from bert_trt.options import (
    BATCHINGS,
    DEFAULT_DATA,
    FUSIONS,
    ONE_SEQUENCE,
    QUANTIZED_PRECISIONS,
    TOLERANCES,
    CalibrationSettings,
    SequenceRange,
)

if __name__ == "__main__":
    begin_script(gpu_check_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import numpy as np
from rich.table import Table

from bert_trt import tensorrt_product
from bert_trt.calibration import CalibrationContext, calibrate, quantization_of
from bert_trt.calibration_data import read_data
from bert_trt.comparison import Run, SequenceError, compare_sequences, reference_batches, together
from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.files import make_folder, write_json
from bert_trt.fusion import fused_layers
from bert_trt.inference import InferHelper, execution_obstacle, gpu_capability
from bert_trt.layers.fused import UnsuitableFusionError
from bert_trt.model_files import BertConfig, ModelFolder, ReferenceSequence
from bert_trt.network_proof import check_definition
from bert_trt.network_runner import NetworkRunner
from bert_trt.packing import Limits, NetworkBatch, pack, packed_batch, pad, padded_batch, single_batch
from bert_trt.plan import BuildOptions, build_plan
from bert_trt.quantization import Quantization
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from builder import assemble
from plugins import build

ROOT = Path(__file__).resolve().parent
CONSTANT_FIELDS = ("constant_weight", "constant_weights")  # by their leave a kernel reads its weights early
COLUMNS = {  # of the table: what the JSON file calls them, what the table does, and what is checked
    "build": ("build", "the network holds what it was asked to hold, and TensorRT builds its plan"),
    "runner": ("runner", "network_runner.py: the reference sequences and three sizes, against PyTorch in fp32"),
    "early_weights_runner": ("0 = 1, runner", "constant_weight(s) 0 and 1 give the same bits in network_runner.py"),
    "second_build": ("2nd build", "with the timing cache of the first, and without the plugin library in it"),
    "third_build": ("3rd build", "with a damaged timing cache"),
    "load": ("load", "the plan in a new process that cannot find the plugin library"),
    "sizes": ("sizes", "least, typical, greatest and least size in one context, against network_runner.py"),
    "pytorch": (
        "PyTorch",
        "the reference sequences against PyTorch in fp32, and the sizes against the runner in fp32",
    ),
    "graph": ("graph", "the replay of a CUDA graph gives enqueue's bits, at every size in turn"),
    "times": ("ms, graph", "median milliseconds of enqueue and of the graph at the typical size"),
    "inspector": ("layers", "layers of the engine, by the engine inspector"),
    "library_apart": (
        "apart",
        "the plan of the second build in a new process, with the plugin library from its file",
    ),
    "early_weights": ("0 = 1", "a plan with constant_weight(s) 0 gives the bits of the first plan"),
}
EXECUTING = ("load", "sizes", "pytorch", "graph", "times", "inspector", "library_apart", "early_weights")
SEQ_LEN, BATCH = SequenceRange(1, 32, 128), SequenceRange(1, 4, 8)
SIZES = ("least", "typical", "greatest")
STEP_SECONDS = 1800
IN_FP32 = "network_runner.py in fp32"
LOG_LINES = 100  # of TensorRT's verbose log that are kept of a step that failed
CALIBRATION_SENTENCES = 64
FEW_TOKENS = 5  # in 8 bits one sequence may be off by so many times what all together may be, see comparison.py
OLDEST_GPU = {"bf16": (8, 0), "fp8": (8, 9)}


# --- rows and their checks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """One network."""

    fusion: str
    batching: str
    precision: str

    def __str__(self) -> str:
        """As the table and messages name it."""
        return f"{self.fusion} {self.batching} {self.precision}"


def every_combination() -> list[Combination]:
    """The whole matrix."""
    return [Combination(f, b, p) for f in FUSIONS for b in BATCHINGS for p in TOLERANCES]


def every_pair() -> list[Combination]:
    """So many that each fusion meets each precision, and each batching meets both."""
    return [
        Combination(fusion, BATCHINGS[(i + j) % len(BATCHINGS)], precision)
        for i, fusion in enumerate(FUSIONS)
        for j, precision in enumerate(TOLERANCES)
    ]


def chosen(names: Sequence[str]) -> list[Combination]:
    """Those of the whole matrix that --only names; names of one kind are alternatives."""
    kinds = [[name for name in names if name in kind] for kind in (FUSIONS, BATCHINGS, TOLERANCES)]
    return [
        one
        for one in every_combination()
        if all(not kind or part in kind for kind, part in zip(kinds, asdict(one).values(), strict=True))
    ]


@dataclass
class Check:
    """One cell of the table.

    Attributes:
        status: ok, wrong, or skipped.
        cell: what the table shows; the status without one.
        reason: what is wrong, or why it was skipped.
        values: figures for the JSON file.
    """

    status: str = "ok"
    cell: str = ""
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def demand(self, condition: bool, reason: str) -> None:
        """Makes the check wrong unless ``condition`` holds; the first reason is kept."""
        if not condition and self.status != "wrong":
            self.status, self.reason = "wrong", reason

    def skip(self, reason: str) -> None:
        """There is nothing to check here."""
        self.status, self.reason = "skipped", reason


class Checks:
    """The checks of one step, in a file that is up to date whenever the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Check] = {}

    @contextmanager
    def check(self, column: str) -> Iterator[Check]:
        """What goes wrong inside makes this check wrong, and the next ones are made all the same."""
        one = Check()
        self._write(column)
        try:
            yield one
        except Exception as error:  # whatever it is: this is what is looked for
            traceback.print_exc()
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            one.status, one.reason = "wrong", told
        self.found[column] = one
        self._write(None)

    def _write(self, running: str | None) -> None:
        found = {column: asdict(one) for column, one in self.found.items()}
        self._path.write_text(json.dumps({"running": running, "found": found}))


# --- what networks are run on -------------------------------------------------------------------------------


def profile(config: BertConfig, batching: str) -> tuple[SequenceRange, SequenceRange]:
    """Sequence lengths and sequences in a batch."""
    longest = max(1, config.max_positions // 2)
    lengths = SequenceRange(*(min(length, longest) for length in SEQ_LEN.as_tuple()))
    return lengths, ONE_SEQUENCE if batching == "single" else BATCH


def ragged_lengths(batching: str, count: int, length: int) -> list[int]:
    """Lengths of ``count`` sequences, the longest first, that fill a batch of ``count`` by ``length``.

    A padded batch is full where its longest sequence is; a packed one where the sum is, so that its longest sequences
    are longer than ``length``.
    """
    if batching != "packed":
        return [max(1, round(length * (count - place) / count)) for place in range(count)]
    total = count * length
    lengths = [max(1, 2 * total * (count - place) // (count * (count + 1))) for place in range(count)]
    lengths[0] += total - sum(lengths)
    return lengths


def size_batches(folder: ModelFolder, batching: str) -> dict[str, NetworkBatch]:
    """A ragged batch for each of ``SIZES``, cut out of the longest reference sequence."""
    source = folder.reference()[-1]
    seq_len, batch = profile(folder.config, batching)
    made = {}
    for name, count, length in zip(SIZES, batch.as_tuple(), seq_len.as_tuple(), strict=True):
        lengths = ragged_lengths(batching, count, length)
        starts = [place % (len(source.input_ids) - size + 1) for place, size in enumerate(lengths)]
        parts = [slice(start, start + size) for start, size in zip(starts, lengths, strict=True)]
        ids, types = ([values[part] for part in parts] for values in (source.input_ids, source.token_type_ids))
        limits = Limits(count * length, count, max(lengths))
        if batching == "single":
            made[name] = single_batch(ids[0], types[0], 0)
        elif batching == "packed":
            (made[name],) = map(packed_batch, pack(ids, limits, types))
        else:
            (made[name],) = map(padded_batch, pad(ids, limits, types, buckets=[length]))
    return made


def tokens_only(batch: NetworkBatch, output: np.ndarray) -> np.ndarray:
    """The output without that of padding, which means nothing: (tokens, vocabulary or H)."""
    return np.concatenate(batch.split(output))


def error_of(output: np.ndarray, reference: np.ndarray) -> SequenceError:
    """How far the output for a size is from another's."""
    return SequenceError.of(len(output), output, reference)


def judge(check: Check, errors: Mapping[str, SequenceError], precision: str, against: str) -> None:
    """Demands that errors are within the precision's tolerance: each, or in 8 bits all together, each within more.

    Args:
        check: gets the errors as values, and the largest in its cell.
        errors: by what they are of.
        precision: of the network.
        against: what the outputs were compared with.
    """
    tolerance, is_narrow = TOLERANCES[precision], precision in QUANTIZED_PRECISIONS
    limit = FEW_TOKENS * tolerance if is_narrow else tolerance
    for name, error in errors.items():
        told = f"{name}: relative L2 error {error.rel_l2:.2e} against {against}, at most {limit:.1e}"
        check.demand(error.rel_l2 <= limit, told)
    overall = together(list(errors.values()))
    told = f"all together: relative L2 error {overall:.2e} against {against}, at most {tolerance:.1e}"
    check.demand(overall <= tolerance, told)
    shown = overall if is_narrow else float(np.max([error.rel_l2 for error in errors.values()]))  # NaN if one is
    check.cell = f"{shown:.0e}"
    check.values |= {f"{name}, against {against}": error.rel_l2 for name, error in errors.items()}


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """In how many values two outputs differ, bit for bit."""
    return int(np.count_nonzero(a.view(np.uint32) != b.view(np.uint32)))


# --- step 1: build, and run the network with PyTorch --------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a process of this script is to do.

    Attributes:
        kind: calibrate, build, execute, apart or early.
        folder: where this row's files are.
        model: written by model2onnx.py.
        executes: whether TensorRT executes plans here.
        combination: the row.
    """

    kind: str
    folder: Path
    model: Path
    executes: bool
    combination: Combination = Combination("none", "single", "int8")

    def plan(self, name: str) -> Path:
        """One of the row's plans: first, second, third or late."""
        return self.folder / f"{name}.plan"

    def answers(self, name: str) -> Path:
        """Outputs by size, float32: of the runner, or of a plan."""
        return self.folder / f"{name}.npz"

    def write(self, path: Path) -> None:
        """For ``read``."""
        path.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> Step:
        """What the parent process wrote."""
        values = json.loads(path.read_text())
        combination = Combination(**values.pop("combination"))
        return cls(values["kind"], Path(values["folder"]), Path(values["model"]), values["executes"], combination)


def calibration_path(model: Path, precision: str) -> Path:
    """Where the ranges of int8 or fp8 lie."""
    return model / f"gpu_check.{precision}.json"


def calibrate_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Finds ranges for one 8-bit precision, for all rows that have it."""
    with checks.check("calibrate"):
        folder, precision = ModelFolder(step.model), step.combination.precision
        settings = CalibrationSettings(precision, sentences=CALIBRATION_SENTENCES, smoothing=None)
        data = read_data(folder, DEFAULT_DATA, settings.sentences, 0)
        encoder = assemble(folder, log, batching="padded").products
        subject = CalibrationContext(folder, encoder, data.calibration, data.path, assemble, log)
        made = quantization_of(calibrate(subject, settings), subject.products(settings))
        values = {"products": sorted(made.products), "ranges": dict(made.ranges)}
        calibration_path(step.model, precision).write_text(json.dumps(values))


def read_quantization(model: Path, precision: str) -> Quantization | None:
    """What ``calibrate_step`` found; None where nothing is quantized.

    Raises:
        UserError: it found nothing.
    """
    if precision not in QUANTIZED_PRECISIONS:
        return None
    path = calibration_path(model, precision)
    if not path.is_file():
        raise UserError(f"there are no ranges for {precision}: the calibration failed, see there")
    values = json.loads(path.read_text())
    return Quantization(precision, frozenset(values["products"]), values["ranges"])


def build_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Assembles and builds the network, and runs it with PyTorch."""
    one, folder = step.combination, ModelFolder(step.model)
    seq_len, batch = profile(folder.config, one.batching)
    made = None

    def assembled(constant_weights: bool = True) -> Any:
        quantization = read_quantization(step.model, one.precision)
        return assemble(
            folder,
            log,
            one.precision,
            batching=one.batching,
            quantization=quantization,
            fusion=one.fusion,
            constant_weights=constant_weights,
        )

    def build_one(bert: Any, name: str, embed: bool) -> dict[str, Any]:
        library = build.library_path() if bert.contents.plugins else None
        cache = step.folder / "timing.cache"
        options = BuildOptions(seq_len, batch, timing_cache=cache, plugin_library=library, embed_plugins=embed)
        info = build_plan(bert.builder, bert.network, log, options, step.plan(name))
        return {"seconds": info.seconds_build, "bytes": info.num_bytes}

    with checks.check("build") as check:
        try:
            fused_layers(one.fusion, one.precision)
        except UserError as error:  # this TensorRT has no such layer
            check.skip(str(error))
            return
        try:
            made = assembled()
        except UnsuitableFusionError as error:  # the plugins do not take this model
            check.skip(str(error))
            return
        check_definition(made.network, made.contents, folder.config.layer_norm_eps)
        check.values = build_one(made, "first", embed=True)
        check.cell = f"{check.values['seconds']:.1f} s"
    if checks.found["build"].status == "wrong":
        return
    with checks.check("second_build") as check:
        check.values = build_one(made, "second", embed=False)
        check.cell = f"{check.values['seconds']:.1f} s"
    with checks.check("third_build") as check:
        if IS_RTX:
            check.skip("tensorrt_rtx has no timing cache")
        else:
            check.values = build_with_damaged_cache(step, check, lambda: build_one(made, "third", embed=True))
    with checks.check("runner") as check:
        answers = run_with_pytorch(folder, one, made, check)
        np.savez(step.answers("runner"), **answers)  # pyright: ignore[reportArgumentType]
    has_early_weights = any(
        key in CONSTANT_FIELDS for layer in made.contents.plugins.values() for key in layer.fields
    )
    with checks.check("early_weights_runner") as check:
        late = assembled(constant_weights=False) if has_early_weights else None
        compare_late_weights(folder, one, made, late, check)
        if late is not None and step.executes:
            build_one(late, "late", embed=True)


def build_with_damaged_cache(step: Step, check: Check, build_again: Any) -> dict[str, Any]:
    """Builds with half a timing cache whose bytes are wrong, after which there must be a good one."""
    cache = step.folder / "timing.cache"
    whole = cache.read_bytes()
    damaged = bytes(255 - byte for byte in whole[: len(whole) // 2])
    cache.write_bytes(damaged)
    values = build_again()
    check.demand(cache.read_bytes() != damaged, "the damaged timing cache is still there after the build")
    check.cell = f"{values['seconds']:.1f} s"
    return values


def pytorch_device() -> str:
    """Where the runner runs."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def runner_of(folder: ModelFolder, made: Any, in_fp32: bool = False) -> Run:
    """A function that runs the network with PyTorch."""
    runner = NetworkRunner(made.network, pytorch_device(), contents=made.contents, in_fp32=in_fp32)
    return lambda inputs: runner.run(inputs)[folder.config.output_name].cpu().numpy()


def run_with_pytorch(folder: ModelFolder, one: Combination, made: Any, check: Check) -> dict[str, np.ndarray]:
    """Compares the runner with PyTorch's own answers. Returns its own by size, in this precision and in fp32."""
    run, run_in_fp32 = runner_of(folder, made), runner_of(folder, made, in_fp32=True)
    reference = folder.reference()
    batches = reference_batches(reference, one.batching, *profile(folder.config, one.batching))
    answers = {}
    for name, batch in size_batches(folder, one.batching).items():
        answers[name] = tokens_only(batch, run(batch.inputs))
        answers[f"{name}.fp32"] = tokens_only(batch, run_in_fp32(batch.inputs))
    check.values["device"] = pytorch_device()
    judge(check, reference_errors(run_in_fp32, batches, reference), "fp32", "PyTorch, without roundings")
    judge(check, {name: error_of(answers[name], answers[f"{name}.fp32"]) for name in SIZES}, one.precision, IN_FP32)
    judge(check, reference_errors(run, batches, reference), one.precision, "PyTorch")
    return answers


def reference_errors(
    run: Run, batches: Sequence[NetworkBatch], reference: Sequence[ReferenceSequence]
) -> dict[str, SequenceError]:
    """Errors of the reference sequences by their length."""
    return {f"{one.tokens} tokens": one for one in compare_sequences(run, batches, reference)}


def compare_late_weights(folder: ModelFolder, one: Combination, made: Any, late: Any, check: Check) -> None:
    """Runs the plugins' own kernels with the leave to read weights early and without: the bits are the same."""
    if late is None:
        check.skip("no plugin of this network has the field")
        return
    if pytorch_device() == "cpu":
        check.skip("network_runner.py runs the plugins' kernels on a GPU only")
        return
    early_run, late_run = runner_of(folder, made), runner_of(folder, late)
    for name, batch in size_batches(folder, one.batching).items():
        early, slow = (tokens_only(batch, run(batch.inputs)) for run in (early_run, late_run))
        count = differing(early, slow)
        check.demand(count == 0, f"{count} of {early.size} values differ at the {name} size")


# --- step 2: execute the plans ------------------------------------------------------------------------------


def execute_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Loads the first plan in this new process and does with it all that is done with plans."""
    one, folder = step.combination, ModelFolder(step.model)
    batches, output_name = size_batches(folder, one.batching), folder.config.output_name
    runner = dict(np.load(step.answers("runner")))
    found: dict[str, np.ndarray] = {}
    with ExitStack() as stack:
        helper: Any = None
        with checks.check("load"):
            helper = stack.enter_context(InferHelper(step.plan("first"), log))
        if helper is None:
            return

        def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return helper.infer(inputs)[output_name]

        with checks.check("sizes") as check:
            errors = {}
            for turn, name in enumerate((*SIZES, SIZES[0])):
                answer = tokens_only(batches[name], run(batches[name].inputs))
                label = f"{name} size again" if turn == len(SIZES) else f"{name} size"
                errors[label] = error_of(answer, runner[name])
                found.setdefault(name, answer)
            judge(check, errors, one.precision, "network_runner.py")
            np.savez(step.answers("first"), **found)  # pyright: ignore[reportArgumentType]
        with checks.check("pytorch") as check:
            reference = folder.reference()
            sequences = reference_batches(reference, one.batching, *profile(folder.config, one.batching))
            sizes = {f"{name} size": error_of(found[name], runner[f"{name}.fp32"]) for name in SIZES}
            judge(check, sizes, one.precision, IN_FP32)
            judge(check, reference_errors(run, sequences, reference), one.precision, "PyTorch")
        with checks.check("graph") as check:
            for name in (*SIZES, SIZES[0]):
                batch = batches[name]
                enqueued = tokens_only(batch, run(batch.inputs))
                replayed = tokens_only(batch, helper.infer_by_graph(batch.inputs)[output_name])
                count = differing(enqueued, replayed)
                check.demand(count == 0, f"{count} of {enqueued.size} values differ at the {name} size")
        with checks.check("times") as check:
            inputs = batches["typical"].inputs
            latency = {way: helper.benchmark(inputs, cuda_graph=way == "graph") for way in ("enqueue", "graph")}
            check.values = {way: asdict(times) for way, times in latency.items()}
            check.cell = ", ".join(f"{times.median:.2f}" for times in latency.values())
            check.demand(all(times.median > 0 for times in latency.values()), "a time is not positive")
        with checks.check("inspector") as check:
            inspector = helper.engine.create_engine_inspector()
            layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
            check.values, check.cell = {"layers": layers}, str(len(layers))
            check.demand(len(layers) > 0, "the engine inspector names no layer")


def apart_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Loads the plan of the second build, which needs the plugin library beside it."""
    one, folder = step.combination, ModelFolder(step.model)
    runner = dict(np.load(step.answers("runner")))
    with checks.check("library_apart") as check, InferHelper(step.plan("second"), log) as helper:
        answers = infer_sizes(helper, folder, one)
        np.savez(step.answers("second"), **answers)  # pyright: ignore[reportArgumentType]
        errors = {f"{name} size": error_of(answer, runner[name]) for name, answer in answers.items()}
        judge(check, errors, one.precision, "network_runner.py")


def early_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Compares the plan with constant_weight(s) 0 with the first, bit for bit."""
    one, folder = step.combination, ModelFolder(step.model)
    with checks.check("early_weights") as check:
        if not step.plan("late").is_file():
            check.skip("no plugin of this network has the field, or the plan without it could not be built")
            return
        first = dict(np.load(step.answers("first")))
        with InferHelper(step.plan("late"), log) as helper:
            answers = infer_sizes(helper, folder, one)
        check.values = {name: differing(answers[name], first[name]) for name in SIZES}
        if any(check.values.values()) and step.answers("second").is_file():
            second = dict(np.load(step.answers("second")))
            check.values["same_network_twice"] = sum(differing(first[name], second[name]) for name in SIZES)
            if check.values["same_network_twice"]:
                check.skip("two builds of one network differ in bits too: TensorRT chose other kernels")
                return
        for name in SIZES:
            check.demand(check.values[name] == 0, f"{check.values[name]} values differ at the {name} size")


def infer_sizes(helper: InferHelper, folder: ModelFolder, one: Combination) -> dict[str, np.ndarray]:
    """A plan's answers by size."""
    name = folder.config.output_name
    batches = size_batches(folder, one.batching)
    return {size: tokens_only(batch, helper.infer(batch.inputs)[name]) for size, batch in batches.items()}


STEPS = {
    "calibrate": calibrate_step,
    "build": build_step,
    "execute": execute_step,
    "apart": apart_step,
    "early": early_step,
}


def do_step(path: Path) -> None:
    """What a process of this script does: reads a step, writes its checks beside it."""
    step = Step.read(path)
    with path.with_suffix(".trt.log").open("wb") as file:
        STEPS[step.kind](step, Checks(path.with_suffix(".found.json")), TrtLog(file))


# --- the parent: steps as processes -------------------------------------------------------------------------


class Log:
    """The file that everything goes to, beside the JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def add(self, title: str, *texts: str) -> None:
        """One part of it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n".join([f"==== {title}", *texts, ""]))


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Runs a command. Returns its exit code, None where it did not end in time, and all that it wrote."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            timeout=STEP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout.decode(errors="replace")


def run_step(step: Step, log: Log) -> dict[str, Check]:
    """Does a step in a process of its own. Returns its checks, of which the one that ended the process is wrong."""
    path = step.folder / f"{step.kind}.{step.combination.precision}.json"
    step.write(path)
    environment = {}
    if step.kind in ("execute", "early"):  # the library is in the plan, and nowhere else
        environment[build.BUILD_DIR_VARIABLE] = str(step.folder / "no plugins here")
    start = time.monotonic()
    code, output = run_process([sys.executable, str(Path(__file__).resolve()), "--step", str(path)], environment)
    checks = path.with_suffix(".found.json")
    state = json.loads(checks.read_text()) if checks.is_file() else {"running": None, "found": {}}
    found = {column: Check(**values) for column, values in state["found"].items()}
    if code != 0:
        told = f"no end after {STEP_SECONDS} s" if code is None else f"the process ended with status {code}"
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "it wrote nothing")
        found[state["running"] or f"{step.kind} step"] = Check("wrong", reason=f"{told}: {last.strip()}")
    told = [output.rstrip()]
    verbose = path.with_suffix(".trt.log")
    if verbose.is_file() and any(one.status == "wrong" for one in found.values()):
        told += ["---- TensorRT, the last lines", *verbose.read_text(errors="replace").splitlines()[-LOG_LINES:]]
    log.add(f"{step.combination}: {step.kind}, {time.monotonic() - start:.1f} s", *told)
    return found


def run_row(one: Combination, model: Path, out: Path, executes: bool, log: Log) -> dict[str, Check]:
    """All checks of one row, by column."""
    found: dict[str, Check] = {}
    with TemporaryDirectory(prefix="row-", dir=out) as name:
        for kind in ("build", "execute", "apart", "early") if executes else ("build",):
            if kind != "build" and not (Path(name) / "runner.npz").is_file():
                break
            log_console.print(f"{one}: {kind}", soft_wrap=True)
            found |= run_step(Step(kind, Path(name), model, executes, one), log)
    return found


def unfit(one: Combination, capability: tuple[int, int] | None) -> str | None:
    """Why this GPU has no kernels for a precision."""
    oldest = OLDEST_GPU.get(one.precision)
    if oldest is None or capability is None or capability >= oldest:
        return None
    wanted, here = (".".join(map(str, pair)) for pair in (oldest, capability))
    return f"{one.precision} needs compute capability {wanted}; this GPU has {here}"


def build_plugins() -> Check:
    """Builds the plugin library where it is missing or older than its sources; minutes, with progress."""
    try:
        return Check(values={"library": str(build.library_path()), "host": str(build.host_path())})
    except build.BuildError as error:
        return Check("wrong", reason=str(error))


def layer_norm_test(log: Log) -> Check:
    """The plugin's own test, without its times."""
    code, output = run_process([sys.executable, str(ROOT / "plugins/testLayerNormPlugin.py"), "--no-benchmark"])
    log.add("plugins/testLayerNormPlugin.py", output.rstrip())
    lines = [line for line in output.splitlines() if line.strip()]
    if code == 0:
        return Check(values={"output": lines})
    return Check("wrong", reason=f"exit status {code}: {lines[-1] if lines else 'it wrote nothing'}")


def export_model(name: str, folder: Path, log: Log) -> None:
    """Writes the model's folder.

    Raises:
        UserError: that failed, and without it nothing can be checked.
    """
    code, output = run_process(
        [sys.executable, str(ROOT / "model2onnx.py"), "--model", name, "--out-dir", str(folder)]
    )
    log.add("model2onnx.py", output.rstrip())
    if code != 0:
        raise UserError(f"model2onnx.py ended with status {code}: {output.strip()}")


# --- the machine --------------------------------------------------------------------------------------------


def package_version(name: str) -> str | None:
    """An installed package's version; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def query_gpus() -> list[dict[str, str]]:
    """Name, driver, memory and compute capability of each GPU, by nvidia-smi."""
    keys = ("name", "driver_version", "memory.total", "compute_cap")
    try:
        code, output = run_process(["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"])
    except OSError:
        return []
    lines = [line.split(", ") for line in output.splitlines()] if code == 0 else []
    return [dict(zip(keys, line, strict=True)) for line in lines if len(line) == len(keys)]


def built_architectures() -> str:
    """What CMake was told when it built the plugin library."""
    cache = build.build_dir() / "CMakeCache.txt"
    text = cache.read_text(errors="replace") if cache.is_file() else ""
    found = re.search(r"^BERT_ARCHITECTURES:\w+=(.*)$", text, re.MULTILINE)
    return found[1] if found else "unknown"


def environment() -> dict[str, Any]:
    """What results depend on."""
    import torch

    code, commit = run_process(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    return {
        "gpus": query_gpus(),
        "tensorrt": tensorrt_product.describe(),
        "pycuda": package_version("pycuda"),
        "cuda-bindings": package_version("cuda-bindings"),
        "torch": torch.__version__,
        "torch cuda": torch.version.cuda,
        "plugin library": built_architectures(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": commit.strip() if code == 0 else None,
    }


# --- the table ----------------------------------------------------------------------------------------------


def print_results(report: Mapping[str, Any], rows: Mapping[Combination, Mapping[str, Check]]) -> None:
    """The machine, the table, and what its columns are."""
    for name, value in report["environment"].items():
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)
    used = [column for column in COLUMNS if any(column in found for found in rows.values())]
    table = Table(title="Every network, every check", title_justify="left", padding=(0, 0))
    table.add_column("fusion, batching, precision", no_wrap=True)
    for column in used:
        table.add_column(COLUMNS[column][0], justify="right", overflow="fold")
    for one, found in rows.items():
        table.add_row(str(one), *(cell(found.get(column)) for column in used))
    console.print(table)
    for column in used:
        console.print(f"{COLUMNS[column][0]}: {COLUMNS[column][1]}", markup=False, soft_wrap=True)


def cell(check: Check | None) -> str:
    """What the table shows."""
    if check is None:
        return ""
    return {"ok": check.cell or "ok", "skipped": "-", "wrong": "[bold red]WRONG[/]"}[check.status]


def problems(rows: Mapping[Combination, Mapping[str, Check]], others: Mapping[str, Check]) -> list[str]:
    """All that is wrong, a line each."""
    named = [
        (f"{one}, {COLUMNS.get(key, (key,))[0]}", check) for one, row in rows.items() for key, check in row.items()
    ]
    return [f"{name}: {check.reason}" for name, check in [*named, *others.items()] if check.status == "wrong"]


# --- the script ---------------------------------------------------------------------------------------------


def check_all(args: Any, log: Log) -> tuple[dict[str, Any], list[str]]:
    """Runs every step. Returns the report, and what is wrong."""
    start = time.monotonic()
    combinations = chosen(args.only) if args.only else every_combination() if args.all else every_pair()
    about, obstacle = environment(), execution_obstacle()
    if obstacle is not None:
        console.print(
            f"Plans are built, but not executed: {obstacle}. The networks are run with PyTorch.", soft_wrap=True
        )
    model, others = args.out_dir / "model", {"plugins": build_plugins()}
    log_console.print("model2onnx.py")
    export_model(args.model, model, log)
    for precision in QUANTIZED_PRECISIONS:
        if any(one.precision == precision for one in combinations):
            log_console.print(f"ranges for {precision}")
            step = Step("calibrate", model, model, obstacle is None, Combination("none", "single", precision))
            others |= {f"{name} {precision}": check for name, check in run_step(step, log).items()}

    def row(one: Combination) -> dict[str, Check]:
        reason = unfit(one, gpu_capability()) if obstacle is None else None
        if reason is not None:
            return {column: Check("skipped", reason=reason) for column in COLUMNS}
        return run_row(one, model, args.out_dir, obstacle is None, log)

    with ThreadPoolExecutor(args.jobs) as pool:
        rows = dict(zip(combinations, pool.map(row, combinations), strict=True))
    log_console.print("plugins/testLayerNormPlugin.py")
    others["plugins/testLayerNormPlugin.py"] = layer_norm_test(log)
    wrong = problems(rows, others)
    report = {
        "environment": about,
        "executes": obstacle is None,
        "not_executed_because": obstacle,
        "seconds": round(time.monotonic() - start, 1),
        "wrong": wrong,
        "rows": [asdict(one) | {"checks": {k: asdict(v) for k, v in row.items()}} for one, row in rows.items()],
        "others": {name: asdict(check) for name, check in others.items()},
    }
    print_results(report, rows)
    for name, check in others.items():
        console.print(f"{name}: {check.status}", markup=False, soft_wrap=True)
    return report, wrong


def main() -> int:
    """The script."""
    args = gpu_check_arguments()
    if args.step is not None:
        do_step(args.step)
        return 0
    make_folder(args.out_dir)
    path = args.json or args.out_dir / "gpu_check.json"
    log = Log(path.with_suffix(".log"))
    report, wrong = check_all(args, log)
    write_json(path, report)
    for problem in wrong:
        console.print(f"wrong: {problem}", markup=False, soft_wrap=True)
    if wrong:
        console.print(
            f"Please send us {path} and {log.path}: they hold all that we need.", markup=False, soft_wrap=True
        )
    else:
        done = (
            "Everything that could be checked is right." if report["executes"] else "What could be checked is right."
        )
        console.print(f"{done} Results: {path}; log: {log.path}", markup=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    run_script(main)
