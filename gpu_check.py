"""Checks everything that TensorRT executes on this machine's GPU. The result is a table, and a JSON file to send us.

    make gpu-check                              or: python gpu_check.py --json gpu_check.json
    python gpu_check.py --all                   every fusion with every batching and every precision
    python gpu_check.py --only packed,fp16,int8     names of one kind are alternatives
    python gpu_check.py --jobs 4                checks 4 rows at a time; times mean nothing then

A row of the table is one network: a fusion, a batching and a precision. Without --all, every two options meet in at
least one row. Each step of a row runs in its own process, since an error may end the process:

1. The script assembles the network and reads it back, builds plans, and runs the network with network_runner.py, on
   CUDA where there is a GPU, in the row's precision and in fp32.
2. Where TensorRT executes plans, a new process loads each plan and runs it at the least, the typical and the greatest
   size of its profile, and again at the least.

Where TensorRT executes no plans, the columns of the second step stay empty.

Exit status: 0 if no check found an error, 1 if a check did, 2 for wrong usage.
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
from rich.text import Text

from bert_trt import tensorrt_product
from bert_trt.calibration import CalibrationContext, calibrate, quantization_of
from bert_trt.calibration_data import read_data
from bert_trt.comparison import Run, SequenceError, combined_rel_l2, compare_sequences, reference_batches
from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.files import make_folder, write_json
from bert_trt.fusion import fused_layers
from bert_trt.inference import InferHelper, execution_obstacle, gpu_capability
from bert_trt.layers.fused import UnsuitableFusionError
from bert_trt.model_files import BertConfig, ModelFolder, ReferenceSequence
from bert_trt.network_proof import check_definition
from bert_trt.network_runner import NetworkRunner, best_device
from bert_trt.packing import Limits, NetworkBatch, pack, packed_batch, pad, padded_batch, single_batch
from bert_trt.plan import BuildOptions, build_plan
from bert_trt.quantization import Quantization
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from builder import assemble
from plugins import build

ROOT = Path(__file__).resolve().parent
CONSTANT_FIELDS = ("constant_weight", "constant_weights")  # these fields allow a kernel to read its weights early
COLUMNS = {  # the key in the JSON file: the heading in the table, and what is checked
    "build": ("build", "the network has the values that it was defined with, and TensorRT builds its plan"),
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
LOG_LINES = 100  # the number of lines of TensorRT's verbose log that are kept for a step that failed
CALIBRATION_SENTENCES = 64
FEW_TOKENS = 5  # in 8 bits, one sequence may have this many times the error of all together, see comparison.py
OLDEST_GPU = {"bf16": (8, 0), "fp8": (8, 9)}


# --- rows and their checks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """The options of one network, a row of the table."""

    fusion: str
    batching: str
    precision: str

    def __str__(self) -> str:
        """The name of the row in the table and in messages."""
        return f"{self.fusion} {self.batching} {self.precision}"


def every_combination() -> list[Combination]:
    """All combinations."""
    return [Combination(f, b, p) for f in FUSIONS for b in BATCHINGS for p in TOLERANCES]


def every_pair() -> list[Combination]:
    """Combinations in which each fusion meets each precision, and each batching meets both."""
    return [
        Combination(fusion, BATCHINGS[(i + j) % len(BATCHINGS)], precision)
        for i, fusion in enumerate(FUSIONS)
        for j, precision in enumerate(TOLERANCES)
    ]


def select_combinations(names: Sequence[str]) -> list[Combination]:
    """The combinations that --only names; names of one kind are alternatives."""
    kinds = [[name for name in names if name in kind] for kind in (FUSIONS, BATCHINGS, TOLERANCES)]
    return [
        combination
        for combination in every_combination()
        if all(not kind or part in kind for kind, part in zip(kinds, asdict(combination).values(), strict=True))
    ]


@dataclass
class Check:
    """One cell of the table.

    Attributes:
        status: ok, wrong, or skipped.
        cell: the text in the table; empty for the status.
        reason: the error, or why the check was skipped.
        values: figures for the JSON file.
    """

    status: str = "ok"
    cell: str = ""
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def demand(self, condition: bool, reason: str) -> None:
        """Sets the status to wrong unless ``condition`` holds; keeps the first reason."""
        if not condition and self.status != "wrong":
            self.status, self.reason = "wrong", reason

    def skip(self, reason: str) -> None:
        """Sets the status to skipped."""
        self.status, self.reason = "skipped", reason


class Checks:
    """The checks of one step. They are written to a file at once, since an error may end the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.results: dict[str, Check] = {}

    @contextmanager
    def check(self, column: str) -> Iterator[Check]:
        """Yields a check. An exception in the context sets its status to wrong; the next checks run all the same."""
        check = Check()
        self._write(column)
        try:
            yield check
        except Exception as error:  # any exception is a result of the check
            traceback.print_exc()
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            check.status, check.reason = "wrong", message
        self.results[column] = check
        self._write(None)

    def _write(self, running: str | None) -> None:
        results = {column: asdict(check) for column, check in self.results.items()}
        self._path.write_text(json.dumps({"running": running, "checks": results}))


# --- the inputs of networks ---------------------------------------------------------------------------------


def profile(config: BertConfig, batching: str) -> tuple[SequenceRange, SequenceRange]:
    """The ranges of sequence lengths and of sequences in a batch."""
    longest = max(1, config.max_positions // 2)
    lengths = SequenceRange(*(min(length, longest) for length in SEQ_LEN.as_tuple()))
    return lengths, ONE_SEQUENCE if batching == "single" else BATCH


def ragged_lengths(batching: str, count: int, length: int) -> list[int]:
    """Lengths of ``count`` sequences, the longest first, that fill a batch of ``count`` by ``length``.

    The longest sequence of a padded batch has ``length`` tokens. A packed batch has ``count`` · ``length`` tokens
    altogether, so that its longest sequences are longer than ``length``.
    """
    if batching != "packed":
        return [max(1, round(length * (count - index) / count)) for index in range(count)]
    total = count * length
    lengths = [max(1, 2 * total * (count - index) // (count * (count + 1))) for index in range(count)]
    lengths[0] += total - sum(lengths)
    return lengths


def size_batches(folder: ModelFolder, batching: str) -> dict[str, NetworkBatch]:
    """A ragged batch for each of ``SIZES``, cut out of the longest reference sequence."""
    source = folder.reference()[-1]
    seq_len, batch = profile(folder.config, batching)
    batches = {}
    for name, count, length in zip(SIZES, batch.as_tuple(), seq_len.as_tuple(), strict=True):
        lengths = ragged_lengths(batching, count, length)
        starts = [index % (len(source.input_ids) - size + 1) for index, size in enumerate(lengths)]
        parts = [slice(start, start + size) for start, size in zip(starts, lengths, strict=True)]
        ids, types = ([values[part] for part in parts] for values in (source.input_ids, source.token_type_ids))
        limits = Limits(count * length, count, max(lengths))
        if batching == "single":
            batches[name] = single_batch(ids[0], types[0], 0)
        elif batching == "packed":
            (batches[name],) = map(packed_batch, pack(ids, limits, types))
        else:
            (batches[name],) = map(padded_batch, pad(ids, limits, types, buckets=[length]))
    return batches


def tokens_only(batch: NetworkBatch, output: np.ndarray) -> np.ndarray:
    """The output without the rows of padding: (tokens, vocabulary or H)."""
    return np.concatenate(batch.split(output))


def error_of(output: np.ndarray, reference: np.ndarray) -> SequenceError:
    """The error of an output, (tokens, vocabulary or H), against another one."""
    return SequenceError.of(len(output), output, reference)


def judge(check: Check, errors: Mapping[str, SequenceError], precision: str, against: str) -> None:
    """Demands that each error is within the precision's tolerance.

    In int8 and fp8 the tolerance holds for all sequences together, and a larger one for each of them.

    Args:
        check: the check; the errors are added to its values, and the largest is shown in its cell.
        errors: the errors by the name of what was compared.
        precision: the network's precision.
        against: a name for what the outputs were compared with.
    """
    tolerance, is_quantized = TOLERANCES[precision], precision in QUANTIZED_PRECISIONS
    limit = FEW_TOKENS * tolerance if is_quantized else tolerance
    for name, error in errors.items():
        message = f"{name}: relative L2 error {error.rel_l2:.2e} against {against}, at most {limit:.1e}"
        check.demand(error.rel_l2 <= limit, message)
    overall = combined_rel_l2(list(errors.values()))
    message = f"all together: relative L2 error {overall:.2e} against {against}, at most {tolerance:.1e}"
    check.demand(overall <= tolerance, message)
    # np.max returns NaN if an error is NaN.
    decisive = overall if is_quantized else float(np.max([error.rel_l2 for error in errors.values()]))
    check.cell = f"{decisive:.0e}"
    check.values |= {f"{name}, against {against}": error.rel_l2 for name, error in errors.items()}


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """The number of values in which the bits of two outputs differ."""
    return int(np.count_nonzero(a.view(np.uint32) != b.view(np.uint32)))


# --- step 1: build, and run the network with PyTorch --------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """The work of one process of this script.

    Attributes:
        kind: calibrate, build, execute, apart or early.
        folder: the folder of this row's files.
        model: the folder written by model2onnx.py.
        executes: whether TensorRT executes plans here.
        combination: the row.
    """

    kind: str
    folder: Path
    model: Path
    executes: bool
    combination: Combination = Combination("none", "single", "int8")

    def plan(self, name: str) -> Path:
        """The path of one of the row's plans: first, second, third or late."""
        return self.folder / f"{name}.plan"

    def answers(self, name: str) -> Path:
        """The path of the outputs of the runner or of a plan, float32 arrays by size."""
        return self.folder / f"{name}.npz"

    def write(self, path: Path) -> None:
        """Writes the step for ``read``."""
        path.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> Step:
        """Reads the step that the parent process wrote."""
        values = json.loads(path.read_text())
        combination = Combination(**values.pop("combination"))
        return cls(values["kind"], Path(values["folder"]), Path(values["model"]), values["executes"], combination)


def calibration_path(model: Path, precision: str) -> Path:
    """The path of the ranges for int8 or fp8."""
    return model / f"gpu_check.{precision}.json"


def calibrate_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Calibrates for one 8-bit precision, for all rows with that precision."""
    with checks.check("calibrate"):
        folder, precision = ModelFolder(step.model), step.combination.precision
        settings = CalibrationSettings(precision, sentences=CALIBRATION_SENTENCES, smoothing=None)
        data = read_data(folder, DEFAULT_DATA, settings.sentences, 0)
        encoder = assemble(folder, log, batching="padded").products
        context = CalibrationContext(folder, encoder, data.calibration, data.path, assemble, log)
        quantization = quantization_of(calibrate(context, settings), context.products(settings))
        values = {"products": sorted(quantization.products), "ranges": dict(quantization.ranges)}
        calibration_path(step.model, precision).write_text(json.dumps(values))


def read_quantization(model: Path, precision: str) -> Quantization | None:
    """The quantization by ``calibrate_step``; None for a precision without quantization.

    Raises:
        UserError: the calibration failed.
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
    combination, folder = step.combination, ModelFolder(step.model)
    seq_len, batch = profile(folder.config, combination.batching)
    network = None

    def assembled(constant_weights: bool = True) -> Any:
        quantization = read_quantization(step.model, combination.precision)
        return assemble(
            folder,
            log,
            combination.precision,
            batching=combination.batching,
            quantization=quantization,
            fusion=combination.fusion,
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
            fused_layers(combination.fusion, combination.precision)
        except UserError as error:  # the installed TensorRT does not have this layer
            check.skip(str(error))
            return
        try:
            network = assembled()
        except UnsuitableFusionError as error:  # the plugins do not suit this model
            check.skip(str(error))
            return
        check_definition(network.network, network.contents, folder.config.layer_norm_eps)
        check.values = build_one(network, "first", embed=True)
        check.cell = f"{check.values['seconds']:.1f} s"
    if checks.results["build"].status == "wrong":
        return
    with checks.check("second_build") as check:
        check.values = build_one(network, "second", embed=False)
        check.cell = f"{check.values['seconds']:.1f} s"
    with checks.check("third_build") as check:
        if IS_RTX:
            check.skip("tensorrt_rtx has no timing cache")
        else:
            check.values = build_with_damaged_cache(step, check, lambda: build_one(network, "third", embed=True))
    with checks.check("runner") as check:
        answers = run_with_pytorch(folder, combination, network, check)
        np.savez(step.answers("runner"), **answers)  # pyright: ignore[reportArgumentType]
    has_early_weights = any(
        key in CONSTANT_FIELDS for layer in network.contents.plugins.values() for key in layer.fields
    )
    with checks.check("early_weights_runner") as check:
        late = assembled(constant_weights=False) if has_early_weights else None
        compare_late_weights(folder, combination, network, late, check)
        if late is not None and step.executes:
            build_one(late, "late", embed=True)


def build_with_damaged_cache(step: Step, check: Check, build_again: Any) -> dict[str, Any]:
    """Builds with a truncated timing cache with inverted bytes, which the build must replace."""
    cache = step.folder / "timing.cache"
    content = cache.read_bytes()
    damaged = bytes(255 - byte for byte in content[: len(content) // 2])
    cache.write_bytes(damaged)
    values = build_again()
    check.demand(cache.read_bytes() != damaged, "the damaged timing cache is still there after the build")
    check.cell = f"{values['seconds']:.1f} s"
    return values


def runner_of(folder: ModelFolder, network: Any, in_fp32: bool = False) -> Run:
    """A function that runs the network with PyTorch."""
    runner = NetworkRunner(network.network, best_device(), contents=network.contents, in_fp32=in_fp32)
    return lambda inputs: runner.run(inputs)[folder.config.output_name].cpu().numpy()


def run_with_pytorch(
    folder: ModelFolder, combination: Combination, network: Any, check: Check
) -> dict[str, np.ndarray]:
    """Compares the runner's outputs with PyTorch's. Returns the runner's by size, in this precision and in fp32."""
    run, run_in_fp32 = runner_of(folder, network), runner_of(folder, network, in_fp32=True)
    reference = folder.reference()
    batches = reference_batches(reference, combination.batching, *profile(folder.config, combination.batching))
    answers = {}
    for name, batch in size_batches(folder, combination.batching).items():
        answers[name] = tokens_only(batch, run(batch.inputs))
        answers[f"{name}.fp32"] = tokens_only(batch, run_in_fp32(batch.inputs))
    check.values["device"] = best_device()
    judge(check, reference_errors(run_in_fp32, batches, reference), "fp32", "PyTorch, without roundings")
    judge(
        check,
        {name: error_of(answers[name], answers[f"{name}.fp32"]) for name in SIZES},
        combination.precision,
        IN_FP32,
    )
    judge(check, reference_errors(run, batches, reference), combination.precision, "PyTorch")
    return answers


def reference_errors(
    run: Run, batches: Sequence[NetworkBatch], reference: Sequence[ReferenceSequence]
) -> dict[str, SequenceError]:
    """Errors of the reference sequences by their length."""
    return {f"{error.tokens} tokens": error for error in compare_sequences(run, batches, reference)}


def compare_late_weights(
    folder: ModelFolder, combination: Combination, network: Any, late: Any, check: Check
) -> None:
    """Checks that the plugins' kernels compute the same bits whether or not they may read weights early."""
    if late is None:
        check.skip("no plugin of this network has the field")
        return
    if best_device() == "cpu":
        check.skip("network_runner.py runs the plugins' kernels on a GPU only")
        return
    early_run, late_run = runner_of(folder, network), runner_of(folder, late)
    for name, batch in size_batches(folder, combination.batching).items():
        early, slow = (tokens_only(batch, run(batch.inputs)) for run in (early_run, late_run))
        count = differing(early, slow)
        check.demand(count == 0, f"{count} of {early.size} values differ at the {name} size")


# --- step 2: execute the plans ------------------------------------------------------------------------------


def execute_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Loads the first plan in this new process and checks its execution."""
    combination, folder = step.combination, ModelFolder(step.model)
    batches, output_name = size_batches(folder, combination.batching), folder.config.output_name
    runner = dict(np.load(step.answers("runner")))
    answers: dict[str, np.ndarray] = {}
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
            for run_number, name in enumerate((*SIZES, SIZES[0])):
                answer = tokens_only(batches[name], run(batches[name].inputs))
                label = f"{name} size again" if run_number == len(SIZES) else f"{name} size"
                errors[label] = error_of(answer, runner[name])
                answers.setdefault(name, answer)
            judge(check, errors, combination.precision, "network_runner.py")
            np.savez(step.answers("first"), **answers)  # pyright: ignore[reportArgumentType]
        with checks.check("pytorch") as check:
            reference = folder.reference()
            sequences = reference_batches(
                reference, combination.batching, *profile(folder.config, combination.batching)
            )
            sizes = {f"{name} size": error_of(answers[name], runner[f"{name}.fp32"]) for name in SIZES}
            judge(check, sizes, combination.precision, IN_FP32)
            judge(check, reference_errors(run, sequences, reference), combination.precision, "PyTorch")
        with checks.check("graph") as check:
            for name in (*SIZES, SIZES[0]):
                batch = batches[name]
                enqueued = tokens_only(batch, run(batch.inputs))
                replayed = tokens_only(batch, helper.infer_by_graph(batch.inputs)[output_name])
                count = differing(enqueued, replayed)
                check.demand(count == 0, f"{count} of {enqueued.size} values differ at the {name} size")
        with checks.check("times") as check:
            inputs = batches["typical"].inputs
            latency = {
                launch: helper.benchmark(inputs, cuda_graph=launch == "graph") for launch in ("enqueue", "graph")
            }
            check.values = {launch: asdict(times) for launch, times in latency.items()}
            check.cell = ", ".join(f"{times.median:.2f}" for times in latency.values())
            check.demand(all(times.median > 0 for times in latency.values()), "a time is not positive")
        with checks.check("inspector") as check:
            inspector = helper.engine.create_engine_inspector()
            layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
            check.values, check.cell = {"layers": layers}, str(len(layers))
            check.demand(len(layers) > 0, "the engine inspector names no layer")


def apart_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Loads the plan of the second build, which does not contain the plugin library."""
    combination, folder = step.combination, ModelFolder(step.model)
    runner = dict(np.load(step.answers("runner")))
    with checks.check("library_apart") as check, InferHelper(step.plan("second"), log) as helper:
        answers = infer_sizes(helper, folder, combination)
        np.savez(step.answers("second"), **answers)  # pyright: ignore[reportArgumentType]
        errors = {f"{name} size": error_of(answer, runner[name]) for name, answer in answers.items()}
        judge(check, errors, combination.precision, "network_runner.py")


def early_step(step: Step, checks: Checks, log: TrtLog) -> None:
    """Compares the plan with constant_weight(s) 0 with the first, bit for bit."""
    combination, folder = step.combination, ModelFolder(step.model)
    with checks.check("early_weights") as check:
        if not step.plan("late").is_file():
            check.skip("no plugin of this network has the field, or the plan without it could not be built")
            return
        first = dict(np.load(step.answers("first")))
        with InferHelper(step.plan("late"), log) as helper:
            answers = infer_sizes(helper, folder, combination)
        check.values = {name: differing(answers[name], first[name]) for name in SIZES}
        if any(check.values.values()) and step.answers("second").is_file():
            second = dict(np.load(step.answers("second")))
            check.values["same_network_twice"] = sum(differing(first[name], second[name]) for name in SIZES)
            if check.values["same_network_twice"]:
                check.skip("two builds of one network differ in bits too: TensorRT chose other kernels")
                return
        for name in SIZES:
            check.demand(check.values[name] == 0, f"{check.values[name]} values differ at the {name} size")


def infer_sizes(helper: InferHelper, folder: ModelFolder, combination: Combination) -> dict[str, np.ndarray]:
    """A plan's outputs by size."""
    name = folder.config.output_name
    batches = size_batches(folder, combination.batching)
    return {size: tokens_only(batch, helper.infer(batch.inputs)[name]) for size, batch in batches.items()}


STEPS = {
    "calibrate": calibrate_step,
    "build": build_step,
    "execute": execute_step,
    "apart": apart_step,
    "early": early_step,
}


def do_step(path: Path) -> None:
    """Runs a step in this process: reads it from ``path`` and writes its checks to a file beside it."""
    step = Step.read(path)
    with path.with_suffix(".trt.log").open("wb") as file:
        STEPS[step.kind](step, Checks(path.with_suffix(".checks.json")), TrtLog(file))


# --- the parent: steps as processes -------------------------------------------------------------------------


class Log:
    """The log file beside the JSON file, with the output of all processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def add(self, title: str, *texts: str) -> None:
        """Appends a section."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n".join([f"==== {title}", *texts, ""]))


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Runs a command. Returns its exit code, None if it did not end in time, and its output."""
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
    """Runs a step in a new process. Returns its checks; a check that ended the process is wrong."""
    path = step.folder / f"{step.kind}.{step.combination.precision}.json"
    step.write(path)
    environment = {}
    if step.kind in ("execute", "early"):  # hides the library's file, so that the plan must contain it
        environment[build.BUILD_DIR_VARIABLE] = str(step.folder / "no plugins here")
    start = time.monotonic()
    code, output = run_process([sys.executable, str(Path(__file__).resolve()), "--step", str(path)], environment)
    checks_path = path.with_suffix(".checks.json")
    state = json.loads(checks_path.read_text()) if checks_path.is_file() else {"running": None, "checks": {}}
    checks = {column: Check(**values) for column, values in state["checks"].items()}
    if code != 0:
        message = f"no end after {STEP_SECONDS} s" if code is None else f"the process ended with status {code}"
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "it wrote nothing")
        checks[state["running"] or f"{step.kind} step"] = Check("wrong", reason=f"{message}: {last.strip()}")
    texts = [output.rstrip()]
    verbose = path.with_suffix(".trt.log")
    if verbose.is_file() and any(check.status == "wrong" for check in checks.values()):
        texts += ["---- TensorRT, the last lines", *verbose.read_text(errors="replace").splitlines()[-LOG_LINES:]]
    log.add(f"{step.combination}: {step.kind}, {time.monotonic() - start:.1f} s", *texts)
    return checks


def run_row(combination: Combination, model: Path, out: Path, executes: bool, log: Log) -> dict[str, Check]:
    """All checks of one row, by column."""
    checks: dict[str, Check] = {}
    with TemporaryDirectory(prefix="row-", dir=out) as name:
        for kind in ("build", "execute", "apart", "early") if executes else ("build",):
            if kind != "build" and not (Path(name) / "runner.npz").is_file():
                break
            log_console.print(f"{combination}: {kind}", soft_wrap=True)
            checks |= run_step(Step(kind, Path(name), model, executes, combination), log)
    return checks


def unsupported_precision(combination: Combination, capability: tuple[int, int] | None) -> str | None:
    """The reason why this GPU does not support a precision; None if it does."""
    oldest = OLDEST_GPU.get(combination.precision)
    if oldest is None or capability is None or capability >= oldest:
        return None
    needed, actual = (".".join(map(str, pair)) for pair in (oldest, capability))
    return f"{combination.precision} needs compute capability {needed}; this GPU has {actual}"


def build_plugins() -> Check:
    """Builds the plugin library where it is missing or older than its sources; minutes, with progress."""
    try:
        return Check(values={"library": str(build.library_path()), "host": str(build.host_path())})
    except build.BuildError as error:
        return Check("wrong", reason=str(error))


def layer_norm_test(log: Log) -> Check:
    """Runs the LayerNorm plugin's test without its benchmark."""
    code, output = run_process([sys.executable, str(ROOT / "plugins/testLayerNormPlugin.py"), "--no-benchmark"])
    log.add("plugins/testLayerNormPlugin.py", output.rstrip())
    lines = [line for line in output.splitlines() if line.strip()]
    if code == 0:
        return Check(values={"output": lines})
    return Check("wrong", reason=f"exit status {code}: {lines[-1] if lines else 'it wrote nothing'}")


def export_model(name: str, folder: Path, log: Log) -> None:
    """Writes the model's folder with model2onnx.py.

    Raises:
        UserError: the export failed, so that nothing can be checked.
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
    """The GPU architectures for which CMake built the plugin library."""
    cache = build.build_dir() / "CMakeCache.txt"
    text = cache.read_text(errors="replace") if cache.is_file() else ""
    match = re.search(r"^BERT_ARCHITECTURES:\w+=(.*)$", text, re.MULTILINE)
    return match[1] if match else "unknown"


def environment() -> dict[str, Any]:
    """Versions and hardware on which the results depend."""
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
    """Prints the machine, the table of checks, and the meaning of its columns."""
    machine = Table(title="This machine", title_justify="left", show_header=False)
    for name, value in report["environment"].items():
        machine.add_row(name, Text(str(value)))
    console.print(machine)
    used = [column for column in COLUMNS if any(column in checks for checks in rows.values())]
    table = Table(title="Every network, every check", title_justify="left", padding=(0, 0))
    table.add_column("fusion, batching, precision", no_wrap=True)
    for column in used:
        table.add_column(COLUMNS[column][0], justify="right", overflow="fold")
    for combination, checks in rows.items():
        table.add_row(str(combination), *(cell(checks.get(column)) for column in used))
    console.print(table)
    legend = Table(title="What the columns check", title_justify="left", show_header=False)
    for column in used:
        legend.add_row(*map(Text, COLUMNS[column]))
    console.print(legend)


def cell(check: Check | None) -> str:
    """The text of a check in the table."""
    if check is None:
        return ""
    return {"ok": check.cell or "ok", "skipped": "-", "wrong": "[bold red]WRONG[/]"}[check.status]


def problems(rows: Mapping[Combination, Mapping[str, Check]], others: Mapping[str, Check]) -> list[str]:
    """The errors of all checks, one line each."""
    named = [
        (f"{combination}, {COLUMNS.get(key, (key,))[0]}", check)
        for combination, row in rows.items()
        for key, check in row.items()
    ]
    return [f"{name}: {check.reason}" for name, check in [*named, *others.items()] if check.status == "wrong"]


# --- the script ---------------------------------------------------------------------------------------------


def check_all(args: Any, log: Log) -> tuple[dict[str, Any], list[str]]:
    """Runs every step. Returns the report and the list of errors."""
    start = time.monotonic()
    combinations = select_combinations(args.only) if args.only else every_combination() if args.all else every_pair()
    about, obstacle = environment(), execution_obstacle()
    if obstacle is not None:
        console.print(
            f"Plans are built, but not executed: {obstacle}. The networks are run with PyTorch.", soft_wrap=True
        )
    model, others = args.out_dir / "model", {"plugins": build_plugins()}
    log_console.print("model2onnx.py")
    export_model(args.model, model, log)
    for precision in QUANTIZED_PRECISIONS:
        if any(combination.precision == precision for combination in combinations):
            log_console.print(f"ranges for {precision}")
            step = Step("calibrate", model, model, obstacle is None, Combination("none", "single", precision))
            others |= {f"{name} {precision}": check for name, check in run_step(step, log).items()}

    def row(combination: Combination) -> dict[str, Check]:
        reason = unsupported_precision(combination, gpu_capability()) if obstacle is None else None
        if reason is not None:
            return {column: Check("skipped", reason=reason) for column in COLUMNS}
        return run_row(combination, model, args.out_dir, obstacle is None, log)

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
        "rows": [
            asdict(combination) | {"checks": {k: asdict(v) for k, v in row.items()}}
            for combination, row in rows.items()
        ],
        "others": {name: asdict(check) for name, check in others.items()},
    }
    print_results(report, rows)
    for name, check in others.items():
        console.print(f"{name}: {check.status}", markup=False, soft_wrap=True)
    return report, wrong


def main() -> int:
    """Runs the script; returns its exit code."""
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
