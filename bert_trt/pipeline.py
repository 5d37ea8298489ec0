"""What builder.py and onnx2trt.py share: check what is asked for, build the plan, run the network, compare.

A script makes a ``Task`` of its options, defines the network, and ``build_and_check`` returns a ``Result``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_trt import tensorrt_product
from bert_trt.comparison import (
    Comparison,
    Run,
    SequenceError,
    compare_sequences,
    compare_with_own,
    profile_batch,
    reference_batches,
    sequence_reasons,
)
from bert_trt.console import UserError, log_console, warn
from bert_trt.files import check_outputs, make_folder
from bert_trt.fusion import check_quantized_groups, fused_layers, plugins_of
from bert_trt.inference import InferHelper, Latency, execution_obstacle, gpu_capability, graph_obstacle
from bert_trt.model_files import LENGTHS_NAME, MASK_NAME, DemoIO, ModelFolder, ReferenceSequence
from bert_trt.network import DefinedNetwork
from bert_trt.options import (
    CACHE_NAME,
    DEFAULT_BATCH,
    ONE_SEQUENCE,
    QUANTIZED_PRECISIONS,
    TENSORRT_ATTENTION,
    TOLERANCES,
    PlanOptions,
    SequenceRange,
    predictions_path,
)
from bert_trt.packing import NetworkBatch
from bert_trt.plan import BuildOptions, build_plan, info_path
from bert_trt.quantization import BASE_PRECISION, QuantizedParts, check_quantized
from bert_trt.tensorrt_log import TrtLog, raise_failure
from plugins.build import library_path

DEFAULT_SEQ_LEN = (1, 32, 128)  # clipped to the model's position table
TIMED_RUNS = 200
TIMING_CACHE_NAME = "timing.cache"

if TYPE_CHECKING:
    from bert_trt.network_runner import NetworkRunner
    from bert_trt.quantized_model import QuantizedModel


# --- what is asked for --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One network to build, and what it is compared with.

    Attributes:
        script: ``builder.py`` or ``onnx2trt.py``.
        options: of the command line.
        folder: the model.
        demo: the example of model2onnx.py.
        reference: sequences that PyTorch has answered.
        fused: what stands for several layers: plugins, or ``TENSORRT_ATTENTION``.
        build: how the plan is built.
        plan_path: the plan file.
        verbose_log: where TensorRT's messages go; None without --verbose.
    """

    script: str
    options: PlanOptions
    folder: ModelFolder
    demo: DemoIO
    reference: list[ReferenceSequence]
    fused: tuple[str, ...]
    build: BuildOptions
    plan_path: Path
    verbose_log: Path | None

    @classmethod
    def prepare(cls, script: str, folder: ModelFolder, options: PlanOptions) -> Task:
        """Checks everything that can be checked before the long work.

        Raises:
            UserError: an option does not suit the model, a file is missing or would be overwritten.
        """
        fused = fused_layers(options.fusion, options.precision)
        check_quantized_groups(options.fusion, options.precision, options.quantization.settings.groups)
        plan = options.plan or folder.path / plan_name(script, options)
        log = plan.with_suffix(".log") if options.verbose else None
        _check_files(plan, log, folder, options)
        demo, positions = folder.demo(), folder.config.max_positions
        low, best, high = (min(length, positions) for length in DEFAULT_SEQ_LEN)
        default = SequenceRange(low, best, max(high, demo.inputs["input_ids"].shape[1]))
        has_plugins = bool(plugins_of(fused)) or options.layer_norm != "native"
        build = BuildOptions(
            seq_len=(options.seq_len or default).check(positions),
            batch=options.batch or (ONE_SEQUENCE if options.batching == "single" else DEFAULT_BATCH),
            compute_capabilities=options.compute_capability,
            timing_cache=folder.path / TIMING_CACHE_NAME,
            plugin_library=library_path() if has_plugins else None,
            embed_plugins=not options.no_embed_plugins,
        )
        warn_of_missing_bindings()
        return cls(script, options, folder, demo, folder.reference(), fused, build, plan, log)

    @property
    def precision(self) -> str:
        """fp32, fp16, bf16, int8 or fp8."""
        return self.options.precision

    @property
    def batching(self) -> str:
        """single, padded or packed."""
        return self.options.batching

    @functools.cached_property
    def example(self) -> NetworkBatch | None:
        """The demo's sentence in a batch that the plan takes, the only one or several times; None where it does not
        fit. The output for it is the last of those that the batch's ``split`` returns."""
        ids, types = (self.demo.inputs[name][0] for name in ("input_ids", "token_type_ids"))
        one = ReferenceSequence(ids, types, np.arange(len(ids)), self.demo.output[0])
        batches = reference_batches([one], self.batching, self.build.seq_len, self.build.batch)
        return batches[0] if batches else None

    @functools.cached_property
    def own_batch(self) -> NetworkBatch:
        """Made-up sequences of the size that the plan is tuned for."""
        return profile_batch(self.reference, self.batching, self.build.seq_len, self.build.batch)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The demo's sentence as the network takes it, in a batch as often as the smallest batch has sentences.

        For network_runner.py: the sentence has its own length, whatever the plan takes.
        """
        ids, copies = self.demo.inputs, self.build.batch.minimum
        if self.batching == "single":
            return ids
        length = ids["input_ids"].shape[1]
        rows = {name: np.repeat(values, copies, axis=0) for name, values in ids.items()}  # (B, S)
        if self.batching == "padded":
            return rows | {MASK_NAME: np.ones((copies, length), np.int32)}
        flat = {name: values.reshape(-1) for name, values in rows.items()}  # (T,)
        return flat | {LENGTHS_NAME: np.arange(copies + 1, dtype=np.int32) * length}

    @property
    def heading(self) -> str:
        """Of the column in a report."""
        return f"{self.script} {self.precision}{' plugins' if self.fused else ''}"

    @property
    def tolerance(self) -> float:
        """Largest relative L2 error that is accepted."""
        return TOLERANCES[self.precision]

    def quantize(self, assemble: Callable[..., DefinedNetwork], log: TrtLog) -> QuantizedModel | None:
        """Calibrates for int8 and fp8, and measures the error; None for other types."""
        if not self.options.is_quantized:
            return None
        from bert_trt.quantized_model import quantize  # brings PyTorch, which other builds do not need

        cache = self.plan_path.with_name(CACHE_NAME)
        return quantize(self.folder, self.options.quantization, assemble, log, cache)

    @contextmanager
    def logging(self) -> Iterator[TrtLog]:
        """TensorRT's logger; with --verbose it also writes a file beside the plan, which stays if the build fails."""
        with open_log(self.verbose_log) as log:
            yield log


def plan_name(script: str, options: PlanOptions) -> str:
    """What a plan is called that has no name of its own."""
    fused = fused_layers(options.fusion, options.precision)
    fusion = ["attention" if TENSORRT_ATTENTION in fused else "", "fused" if plugins_of(fused) else ""]
    fusion += ["linear" if "Linear" in fused else ""]
    marks = [options.precision, options.layer_norm, options.batching, *fusion]
    stem = ".".join([Path(script).stem, *(mark for mark in marks if mark not in ("native", "single", ""))])
    return f"{stem}.plan"


def _check_files(plan: Path, log: Path | None, folder: ModelFolder, options: PlanOptions) -> None:
    """Refuses outputs that would overwrite inputs or each other; makes the folders of those that are named."""
    outputs = {
        "--plan": plan,
        "the plan's description": info_path(plan),
        "the log of --verbose": log,
        "--fillings": predictions_path(options.fillings, plan) if options.sentences is not None else None,
        "the calibration cache": plan.with_name(CACHE_NAME) if options.is_quantized else None,
        "the timing cache": folder.path / TIMING_CACHE_NAME,
        "--json": options.json,
    }
    data = options.quantization.data if options.is_quantized else None
    check_outputs(outputs, {"--sentences": options.sentences, "--calibration-data": data} | folder.files())
    for path in (plan, outputs["--fillings"], options.json):
        if path is not None:
            make_folder(path.parent)


@contextmanager
def open_log(path: Path | None) -> Iterator[TrtLog]:
    """TensorRT's logger, which also writes to ``path``, if there is one.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        yield TrtLog()
        return
    try:
        file = path.open("wb", buffering=0)  # nothing is left for the end, when the disk may be full
    except OSError as error:
        raise UserError(f"cannot write the log {path}: {error.strerror or error}") from error
    with file:
        yield TrtLog(file)
    raise_failure()


# --- what comes of it ---------------------------------------------------------------------------------------


@dataclass
class Result:
    """What came of a task.

    Attributes:
        task: the task.
        quantized: what is quantized, and its error; None for other types.
        parts: the quantized products and weights, read back from the network.
        executed_by: who ran the network: ``tensorrt`` or ``pytorch``.
        not_executed_because: why TensorRT did not execute the plan; None if it did.
        num_layers: of the network.
        plan_bytes: of the plan.
        seconds_network: what defining the network took.
        seconds_build: what building the plan took.
        comparison: the example against PyTorch; None where it does not fit the plan.
        sequences: errors of sequences of several lengths, in batches.
        structure: errors of the same sequences without any rounding; None: not looked at.
        wrong_definition: what the network holds that it was not asked to hold.
        overflow: where values stop to be finite, if an output is not.
        where_wrong: without roundings, where the network is not PyTorch's.
        latency: times of the executed plan by way of launching.
        layers_agree: whether --compare-layers found every layer within tolerance.
    """

    task: Task
    quantized: QuantizedModel | None = None
    parts: QuantizedParts | None = None
    executed_by: str = ""
    not_executed_because: str | None = None
    num_layers: int = 0
    plan_bytes: int = 0
    seconds_network: float = 0.0
    seconds_build: float = 0.0
    comparison: Comparison | None = None
    sequences: list[SequenceError] = field(default_factory=list)
    structure: list[SequenceError] | None = None
    wrong_definition: str | None = None
    overflow: str | None = None
    where_wrong: str | None = None
    latency: dict[str, Latency] = field(default_factory=dict)
    layers_agree: bool = True

    @property
    def agrees(self) -> bool:
        """Whether the result is what PyTorch says, within tolerance."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why the result is not what PyTorch says, the cause first; empty if it is."""
        told = (
            [] if self.wrong_definition is None else [f"other values than it was made from: {self.wrong_definition}"]
        )
        if self.overflow is not None:
            return [*told, self.overflow]
        for reason in sequence_reasons(self.unrounded, "fp32"):
            told.append(
                "the network itself is not PyTorch's, whatever its types: other weights or other layers. Without "
                f"roundings, in fp32: {reason}"
            )
        told += [] if self.where_wrong is None else [self.where_wrong]
        results = self.comparison.reasons(self.task.precision) if self.comparison is not None else []
        if self.unrounded is not self.sequences:
            results += sequence_reasons(self.sequences, self.task.precision)
        if results and self.structure and not told:
            results.append(f"without roundings the network is PyTorch's, so that it is {self._what_rounds}")
        told += results
        if not self.layers_agree:
            told.append("--compare-layers: a layer is out of tolerance, see the table of layers")
        if self.comparison is None and not self.sequences:
            told.append("nothing was compared")
        return told

    @property
    def unrounded(self) -> list[SequenceError]:
        """Errors without roundings; in fp32, run by PyTorch, those are the sequences'."""
        if self.structure is not None:
            return self.structure
        return self.sequences if self.task.precision == "fp32" and self.executed_by == "pytorch" else []

    @property
    def _what_rounds(self) -> str:
        """Words for a result out of tolerance whose network is right."""
        if self.task.precision in QUANTIZED_PRECISIONS:
            return (
                f"{self.task.precision} that is too coarse: --max-error X returns the worst products to fp16, "
                "sensitivity.py ranks them, and --calibration-data takes text like that of the application"
            )
        if self.task.precision == "fp32":
            return "the plan that computes something else than its network"
        return f"the roundings of {self.task.precision} that are too coarse: build with --precision fp32"

    def as_dict(self) -> dict[str, Any]:
        """What --json writes. What was not compared is null."""
        compared = {one.name: None for one in fields(Comparison)}
        return {
            "way": self.task.script,
            "tensorrt": tensorrt_product.describe(),
            "model": str(self.task.folder.path),
            "text": self.task.demo.text,
            "precision": self.task.precision,
            "layer_norm": self.task.options.layer_norm,
            "batching": self.task.batching,
            "fused": list(self.task.fused),
            "executed_by": self.executed_by,
            "not_executed_because": self.not_executed_because,
            "num_layers": self.num_layers,
            "plan": str(self.task.plan_path),
            "plan_bytes": self.plan_bytes,
            "seconds_network": self.seconds_network,
            "seconds_build": self.seconds_build,
            "tolerance": self.task.tolerance,
            "within_tolerance": self.agrees,
            "reasons": self.reasons,
            **(compared if self.comparison is None else asdict(self.comparison)),
            "sequences": [asdict(one) for one in self.sequences],
            "structure": None if self.structure is None else [asdict(one) for one in self.structure],
            "latency_ms": {name: asdict(latency) for name, latency in self.latency.items()},
            "quantized": self.quantized.as_dict() if self.quantized else None,
            "quantized_parts": asdict(self.parts) if self.parts else None,
        }


def build_and_check(
    task: Task,
    log: TrtLog,
    network: DefinedNetwork,
    seconds_network: float,
    quantized: QuantizedModel | None = None,
) -> Result:
    """Builds the plan, runs the network, compares.

    Args:
        task: what is asked for.
        log: the builder's logger.
        network: the network, outputs marked.
        seconds_network: what defining the network took.
        quantized: for int8 and fp8.

    Raises:
        UserError: the build or the execution fails.
    """
    result = Result(task, quantized, seconds_network=seconds_network, num_layers=network.network.num_layers)
    if quantized is not None:
        names = len(quantized.quantization.products)
        expected = names if network.num_quantized is None else network.num_quantized
        result.parts = check_quantized(network.network, task.precision, expected)
    info = build_plan(network.builder, network.network, log, task.build, task.plan_path)
    result.plan_bytes, result.seconds_build = info.num_bytes, info.seconds_build
    result.not_executed_because = execution_obstacle() or foreign_target(task.build.compute_capabilities)
    result.executed_by = "pytorch" if result.not_executed_because else "tensorrt"
    own = _run_with_pytorch(result, network) if result.not_executed_because else _execute_plan(result)
    _prove_definition(result, network, own)
    result.overflow = _find_overflow(result, network)
    if network.hidden_states and result.overflow is None and sequence_reasons(result.unrounded, "fp32"):
        result.where_wrong = _find_wrong_layer(task, network)
    return result


@functools.cache
def warn_of_missing_bindings() -> None:
    """Says before the long work what will stop a plan from being executed or timed on this machine's GPU."""
    if gpu_capability() is None:
        return  # nothing is executed here anyway, and the report says so
    obstacle = execution_obstacle()
    if obstacle is not None:
        warn(f"the plan will be built but not executed: {obstacle}")
        return
    obstacle = graph_obstacle()
    if obstacle is not None:
        warn(f"the plan will be executed, but not timed in a CUDA graph: {obstacle}")


def foreign_target(capabilities: Sequence[str]) -> str | None:
    """Why a plan for other GPUs cannot be executed here."""
    if not capabilities:
        return None
    import pycuda.driver as cuda  # pyright: ignore[reportMissingImports]

    here = "{}.{}".format(*cuda.Device(0).compute_capability())
    return None if here in capabilities else f"built for {', '.join(capabilities)}, this GPU is {here}"


def _batches(result: Result, seq_len: SequenceRange | None = None) -> list[NetworkBatch]:
    task = result.task
    return reference_batches(task.reference, task.batching, seq_len or task.build.seq_len, task.build.batch)


def _execute_plan(result: Result) -> list[np.ndarray]:
    task = result.task
    name = task.folder.config.output_name
    with InferHelper(task.plan_path) as helper:
        own = _run(result, lambda inputs: helper.infer(inputs)[name])
        timed = (task.example or task.own_batch).inputs
        result.latency["enqueue"] = helper.benchmark(timed, TIMED_RUNS)
        if graph_obstacle() is None:
            result.latency["cuda_graph"] = helper.benchmark(timed, TIMED_RUNS, cuda_graph=True)
    return own


def _run_with_pytorch(result: Result, network: DefinedNetwork) -> list[np.ndarray]:
    return _run(result, _pytorch_run(result, network))


def _run(result: Result, run: Run) -> list[np.ndarray]:
    """Runs what PyTorch has answered and the plan takes, and compares.

    Returns:
        Where nothing of it fits the plan, the outputs for ``task.own_batch``, which are still to be compared.
    """
    task = result.task
    if task.example is not None:
        tokens = task.folder.tokens() if task.demo.mask_positions else []
        output = task.example.split(run(task.example.inputs))[-1]  # (S, vocabulary or H)
        result.comparison = Comparison.of(output[None], task.demo, tokens)
    batches = _batches(result)
    result.sequences = compare_sequences(run, batches, task.reference)
    return [] if task.example is not None or batches else task.own_batch.split(run(task.own_batch.inputs))


@contextmanager
def running(result: Result, network: DefinedNetwork) -> Iterator[Run]:
    """A function that runs the plan, or, where TensorRT cannot execute it here, its network with PyTorch."""
    name = result.task.folder.config.output_name
    if result.executed_by == "tensorrt":
        with InferHelper(result.task.plan_path) as helper:
            yield lambda inputs: helper.infer(inputs)[name]
        return
    runner = _pytorch_runner(network)
    yield lambda inputs: runner.run(inputs)[name].cpu().numpy()


def _prove_definition(result: Result, network: DefinedNetwork, own: Sequence[np.ndarray]) -> None:
    """What the network holds, and what it computes without its roundings. In fp32 that has been compared already,
    unless TensorRT executed the plan.

    ``own``, outputs for ``task.own_batch``, are compared with the network without its roundings, and that one, since
    then all depends on it, with PyTorch at every length of the reference sequences.
    """
    task = result.task
    from bert_trt.network_proof import WrongNetworkError, check_definition

    try:
        check_definition(network.network, network.contents, task.folder.config.layer_norm_eps)
    except WrongNetworkError as error:
        result.wrong_definition = str(error)
    if own:
        run = _pytorch_run(result, network, in_fp32=True)
        result.sequences = compare_with_own(task.own_batch, own, run)
        every = SequenceRange(1, task.folder.config.max_positions, task.folder.config.max_positions)
        batches = reference_batches(task.reference, task.batching, every, replace(task.build.batch, minimum=1))
        result.structure = compare_sequences(run, batches, task.reference)
    elif not task.options.no_structure_check and (task.precision != "fp32" or result.executed_by == "tensorrt"):
        run = _pytorch_run(result, network, in_fp32=True)
        lengths = replace(task.build.seq_len, minimum=1)  # PyTorch takes shorter sequences than the plan
        result.structure = compare_sequences(run, _batches(result, lengths), task.reference)


def _find_overflow(result: Result, network: DefinedNetwork) -> str | None:
    """Where values stop to be finite, in words; None if all outputs are finite."""
    task = result.task
    errors = [one.rel_l2 for one in result.sequences]
    errors += [] if result.comparison is None else [result.comparison.rel_l2]
    if all(map(math.isfinite, errors)):
        return None
    base = BASE_PRECISION if task.precision in QUANTIZED_PRECISIONS else task.precision
    runner = _pytorch_runner(network)
    examples = [batch.inputs for batch in (task.example, *_batches(result), task.own_batch) if batch is not None]
    found = next(filter(None, map(runner.first_not_finite, examples)), None)
    where = (
        f"in {base}, after layer {found}"
        if found is not None
        else "in the plan; its network, run by PyTorch, stays finite"
    )
    remedy = {
        "fp32": "a weight of the checkpoint is damaged, or far too large",
        "bf16": "bf16 has the range of fp32: a weight of the checkpoint is damaged, or far too large",
        "fp16": f"{base} ends at 65504; --precision bf16 has the range of fp32 and will do",
    }[base]
    return f"overflow {where}: the output has values that are not finite; {remedy}"


def _find_wrong_layer(task: Task, network: DefinedNetwork) -> str:
    """Where the network without its roundings is not PyTorch's, in words."""
    from bert_trt.layer_comparison import fp32_errors

    errors = fp32_errors(network, task.demo, task.inputs)
    wrong = [name for name, error in errors.items() if not error <= TOLERANCES["fp32"]]
    if not wrong:
        return (
            "for the sentence alone every layer gives what PyTorch's does: what differs is how other lengths, token "
            "types, or several sequences in a batch are treated"
        )
    if wrong[0] not in network.hidden_states:
        return "every encoder layer gives what PyTorch's does: it is the head that differs"
    return f"the first layer after which it differs from PyTorch's is {wrong[0]!r}"


def _pytorch_runner(network: DefinedNetwork, in_fp32: bool = False) -> NetworkRunner:
    # Imported here: while a plan is built, PyTorch would only take memory.
    import torch

    from bert_trt.network_runner import NetworkRunner

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return NetworkRunner(network.network, device, contents=network.contents, in_fp32=in_fp32)


def _pytorch_run(result: Result, network: DefinedNetwork, in_fp32: bool = False) -> Run:
    """A function that runs the network with PyTorch, on CUDA where there is a GPU."""
    task = result.task
    name, runner = task.folder.config.output_name, _pytorch_runner(network, in_fp32)

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with log_console.status(
            f"running the network with PyTorch on {runner.device}{' in fp32' if in_fp32 else ''}"
        ):
            return runner.run(inputs)[name].cpu().numpy()

    return run
