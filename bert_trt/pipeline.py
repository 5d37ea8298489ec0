"""The steps that builder.py and onnx2trt.py share.

1. ``Task.prepare`` checks the options.
2. The script defines the network.
3. ``build_and_check`` builds the plan, runs it (or runs the network with PyTorch where TensorRT cannot execute here),
   compares the outputs with PyTorch's, and returns a ``Result``.
"""

from __future__ import annotations

import functools
import math
import re
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
from bert_trt.layers.fused import attention_obstacle
from bert_trt.model_files import (
    LENGTHS_NAME,
    MASK_NAME,
    SEQUENCE_LENGTHS_NAME,
    DemoIO,
    ModelFolder,
    ReferenceSequence,
)
from bert_trt.network import DefinedNetwork
from bert_trt.options import (
    CACHE_NAME,
    DEFAULT_BATCH,
    ONE_SEQUENCE,
    QUANTIZED_PRECISIONS,
    RAGGED,
    TENSORRT_ATTENTION,
    TOLERANCES,
    PlanOptions,
    SequenceRange,
    predictions_path,
)
from bert_trt.packing import NetworkBatch
from bert_trt.plan import BuildOptions, build_plan, info_path
from bert_trt.quantization import BASE_PRECISION, QuantizedParts, check_quantized
from bert_trt.tasks import Rankings
from bert_trt.tensorrt_log import TrtLog, raise_failure
from plugins.build import library_path

DEFAULT_SEQ_LEN = (1, 32, 128)  # clipped to the model's position table
TIMED_RUNS = 200
TIMING_CACHE_NAME = "timing.cache"
OLDEST_FP8 = (8, 9)  # the first compute capability with fp8 in its tensor cores

if TYPE_CHECKING:
    from bert_trt.network_runner import NetworkRunner
    from bert_trt.quantized_model import QuantizedModel


# --- the task -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One network to build, and the data to compare it with.

    Attributes:
        script: ``builder.py`` or ``onnx2trt.py``.
        options: the script's options.
        folder: the model.
        demo: the example of model2onnx.py, with PyTorch's output.
        reference: sequences of several lengths, with PyTorch's outputs.
        fused: the layers that replace several elementary ones: plugins, or ``TENSORRT_ATTENTION``.
        build: how the plan is built.
        plan_path: the plan file.
        verbose_log: the file for TensorRT's messages; None without --verbose.
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
        """Checks the options before anything that takes long.

        Raises:
            UserError: an option does not suit the model, a file is missing or would be overwritten.
        """
        fused = fused_layers(options.fusion, options.precision)
        obstacle = attention_obstacle(folder.config)
        if "QkvToContext" in fused and obstacle is not None:
            warn(f"--fusion {options.fusion}: {obstacle}; attention stays native")
            fused = tuple(layer for layer in fused if layer != "QkvToContext")
        check_quantized_groups(options.fusion, options.precision, options.quantization.settings.groups)
        if options.precision == "fp8":
            check_fp8(options.compute_capability)
        plan = options.plan or folder.path / plan_name(script, options)
        log = plan.with_suffix(".log") if options.verbose else None
        _check_files(plan, log, folder, options)
        demo, positions = folder.demo(), folder.config.max_positions
        minimum, optimum, maximum = (min(length, positions) for length in DEFAULT_SEQ_LEN)
        default = SequenceRange(minimum, optimum, max(maximum, demo.inputs["input_ids"].shape[1]))
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
        """single, padded, packed or ``RAGGED``."""
        return self.options.batching

    @functools.cached_property
    def rankings(self) -> Rankings:
        """Finds the rankings in the output for the demo's sequence."""
        return Rankings(self.folder, self.demo.mask_positions)

    @functools.cached_property
    def example(self) -> NetworkBatch | None:
        """A batch that the plan accepts and that holds the demo's sequence, repeated where the batch needs several;
        None where it does not fit. The last array that the batch's ``split`` returns is the output for it."""
        ids, types = (self.demo.inputs[name][0] for name in ("input_ids", "token_type_ids"))
        sequence = ReferenceSequence(ids, types, np.arange(self.demo.output.shape[1]), self.demo.output[0])
        batches = reference_batches([sequence], self.batching, self.build.seq_len, self.build.batch)
        return batches[0] if batches else None

    @functools.cached_property
    def own_batch(self) -> NetworkBatch:
        """Made-up sequences of the profile's optimum size."""
        return profile_batch(self.reference, self.batching, self.build.seq_len, self.build.batch)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The network's inputs for the demo's sequence, repeated to the smallest batch of the profile.

        They are for network_runner.py: the sequence keeps its length, even one that the plan does not accept.
        """
        ids, copies = self.demo.inputs, self.build.batch.minimum
        if self.batching == "single":
            return ids
        length = ids["input_ids"].shape[1]
        rows = {name: np.repeat(values, copies, axis=0) for name, values in ids.items()}  # (B, S)
        if self.batching == "padded":
            return rows | {MASK_NAME: np.ones((copies, length), np.int32)}
        flat = {name: values.reshape(-1) for name, values in rows.items()}  # (T,)
        if self.batching == RAGGED:
            del flat["position_ids"]
            return flat | {SEQUENCE_LENGTHS_NAME: np.full(copies, length, np.int32)}
        return flat | {LENGTHS_NAME: np.arange(copies + 1, dtype=np.int32) * length}

    @property
    def heading(self) -> str:
        """The heading of the result's column in a report."""
        return f"{self.script} {self.precision}{' plugins' if self.fused else ''}"

    @property
    def tolerance(self) -> float:
        """The largest relative L2 error that is accepted."""
        return TOLERANCES[self.precision]

    def quantize(self, assemble: Callable[..., DefinedNetwork], log: TrtLog) -> QuantizedModel | None:
        """For int8 and fp8, calibrates and measures the error; for other types returns None."""
        if not self.options.is_quantized:
            return None
        from bert_trt.quantized_model import quantize  # imports PyTorch, which other builds do not need

        cache = self.plan_path.with_name(CACHE_NAME)
        fusion = "all" if self.options.fusion == "all" else "none"  # the others have the elementary network's Q/DQ
        return quantize(self.folder, self.options.quantization, assemble, log, cache, fusion)

    @contextmanager
    def logging(self) -> Iterator[TrtLog]:
        """TensorRT's log. With --verbose it is also written to a file beside the plan, which a failed build keeps."""
        with open_log(self.verbose_log) as log:
            yield log


def plan_name(script: str, options: PlanOptions) -> str:
    """The default file name of a plan."""
    fused = fused_layers(options.fusion, options.precision)
    fusion = ["attention" if TENSORRT_ATTENTION in fused else "", "fused" if plugins_of(fused) else ""]
    fusion += ["linear" if "Linear" in fused else ""]
    parts = [options.precision, options.layer_norm, options.batching, *fusion]
    stem = ".".join([Path(script).stem, *(part for part in parts if part not in ("native", "single", ""))])
    return f"{stem}.plan"


def _check_files(plan: Path, log: Path | None, folder: ModelFolder, options: PlanOptions) -> None:
    """Refuses outputs that would overwrite inputs or each other; creates the folders that the options name."""
    outputs = {
        "--plan": plan,
        "the plan's description": info_path(plan),
        "the log of --verbose": log,
        "--predictions": predictions_path(options.predictions, plan) if options.sentences is not None else None,
        "the calibration cache": plan.with_name(CACHE_NAME) if options.is_quantized else None,
        "the timing cache": folder.path / TIMING_CACHE_NAME,
        "--json": options.json,
    }
    data = options.quantization.data if options.is_quantized else None
    check_outputs(outputs, {"--sentences": options.sentences, "--calibration-data": data} | folder.files())
    for path in (plan, outputs["--predictions"], options.json):
        if path is not None:
            make_folder(path.parent)


@contextmanager
def open_log(path: Path | None) -> Iterator[TrtLog]:
    """TensorRT's log, also written to ``path`` unless that is None.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        yield TrtLog()
        return
    try:
        file = path.open("wb", buffering=0)  # a full disk is noticed at the write, not when the file is closed
    except OSError as error:
        raise UserError(f"cannot write the log {path}: {error.strerror or error}") from error
    with file:
        yield TrtLog(file)
    raise_failure()


# --- the result ---------------------------------------------------------------------------------------------


@dataclass
class Result:
    """The result of a task.

    Attributes:
        task: the task.
        quantized: the quantization and its error; None for types other than int8 and fp8.
        parts: the quantized products and weights, read back from the network.
        executed_by: what ran the network: ``tensorrt`` or ``pytorch``.
        not_executed_because: why TensorRT did not execute the plan; None if it did.
        num_layers: number of layers in the network.
        plan_bytes: size of the plan.
        seconds_network: time to define the network.
        seconds_build: time to build the plan.
        comparison: the example against PyTorch; None where it does not fit the plan.
        sequences: errors of sequences of several lengths, in batches.
        structure: errors of the same sequences without any rounding; None if they were not measured.
        definition_error: a value in the network that differs from the value that it was defined from.
        overflow: the layer after which values are not finite, if an output is not finite.
        first_difference: the first layer that differs from PyTorch's without roundings.
        latency: times of the executed plan, by how it was launched: ``enqueue`` or ``cuda_graph``.
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
    definition_error: str | None = None
    overflow: str | None = None
    first_difference: str | None = None
    latency: dict[str, Latency] = field(default_factory=dict)
    layers_agree: bool = True

    @property
    def agrees(self) -> bool:
        """Whether the result agrees with PyTorch's, within tolerance."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why the result does not agree with PyTorch's, the cause first; empty if it does."""
        reasons = [] if self.definition_error is None else [f"other values than defined: {self.definition_error}"]
        if self.overflow is not None:
            return [*reasons, self.overflow]
        for reason in sequence_reasons(self.unrounded, "fp32"):
            reasons.append(
                "the network itself is not PyTorch's, whatever its types: other weights or other layers. Without "
                f"roundings, in fp32: {reason}"
            )
        reasons += [] if self.first_difference is None else [self.first_difference]
        results = self.comparison.reasons(self.task.precision) if self.comparison is not None else []
        if self.unrounded is not self.sequences:
            results += sequence_reasons(self.sequences, self.task.precision)
        if results and self.structure and not reasons:
            results.append(f"without roundings the network is PyTorch's, so that it is {self._what_rounds}")
        reasons += results
        if not self.layers_agree:
            reasons.append("--compare-layers: a layer is out of tolerance, see the table of layers")
        if self.comparison is None and not self.sequences:
            reasons.append("nothing was compared")
        return reasons

    @property
    def unrounded(self) -> list[SequenceError]:
        """Errors without roundings; an fp32 network that PyTorch ran has none, so that its errors are these."""
        if self.structure is not None:
            return self.structure
        return self.sequences if self.task.precision == "fp32" and self.executed_by == "pytorch" else []

    @property
    def _what_rounds(self) -> str:
        """The cause and the remedy for a result that is out of tolerance although the network is correct."""
        if self.task.precision in QUANTIZED_PRECISIONS:
            return (
                f"{self.task.precision} that is too coarse: --max-error X returns the worst products to fp16, "
                "sensitivity.py ranks them, and --calibration-data takes text like that of the application"
            )
        if self.task.precision == "fp32":
            return "the plan that computes something else than its network"
        return f"the roundings of {self.task.precision} that are too coarse: build with --precision fp32"

    def as_dict(self) -> dict[str, Any]:
        """The object that --json writes; null for what was not compared."""
        not_compared = {attribute.name: None for attribute in fields(Comparison)}
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
            **(not_compared if self.comparison is None else asdict(self.comparison)),
            "sequences": [asdict(error) for error in self.sequences],
            "structure": None if self.structure is None else [asdict(error) for error in self.structure],
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
    """Builds the plan, runs it or the network, and compares the outputs with PyTorch's.

    Args:
        task: the task.
        log: the builder's logger.
        network: the network, outputs marked.
        seconds_network: time that defining the network took.
        quantized: what ``Task.quantize`` returned.

    Raises:
        UserError: the build or the execution fails.
    """
    result = Result(task, quantized, seconds_network=seconds_network, num_layers=network.network.num_layers)
    if quantized is not None:
        count = len(quantized.quantization.products)
        expected = count if network.num_quantized is None else network.num_quantized
        result.parts = check_quantized(network.network, task.precision, expected)
    info = build_plan(network.builder, network.network, log, task.build, task.plan_path)
    result.plan_bytes, result.seconds_build = info.num_bytes, info.seconds_build
    result.not_executed_because = execution_obstacle() or foreign_target(task.build.compute_capabilities)
    result.executed_by = "pytorch" if result.not_executed_because else "tensorrt"
    own_outputs = _run_with_pytorch(result, network) if result.not_executed_because else _execute_plan(result)
    _prove_definition(result, network, own_outputs)
    result.overflow = _find_overflow(result, network)
    if network.hidden_states and result.overflow is None and sequence_reasons(result.unrounded, "fp32"):
        result.first_difference = _find_first_difference(task, network)
    return result


@functools.cache
def warn_of_missing_bindings() -> None:
    """Warns, before the build, of missing packages without which a plan cannot be executed or timed on this GPU."""
    if gpu_capability() is None:
        return  # without a GPU nothing is executed, and the report says so
    obstacle = execution_obstacle()
    if obstacle is not None:
        warn(f"the plan will be built but not executed: {obstacle}")
        return
    obstacle = graph_obstacle()
    if obstacle is not None:
        warn(f"the plan will be executed, but not timed in a CUDA graph: {obstacle}")


def check_fp8(capabilities: Sequence[str]) -> None:
    """Checks that the GPUs of the plan have fp8: ``capabilities``, or the GPU of this machine, if there is one.

    Raises:
        UserError: one of them has none.
    """
    here = gpu_capability()
    for capability in capabilities or ([] if here is None else ["{}.{}".format(*here)]):
        if tuple(map(int, re.findall(r"\d+", capability))) < OLDEST_FP8:
            raise UserError(
                f"--precision fp8: GPUs of compute capability {capability} do not multiply fp8; those from 8.9 (Ada) "
                "on do. Build with --precision int8 or fp16"
            )


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
        own_outputs = _run(result, lambda inputs: helper.infer(inputs)[name])
        timed = (task.example or task.own_batch).inputs
        result.latency["enqueue"] = helper.benchmark(timed, TIMED_RUNS)
        if graph_obstacle() is None:
            result.latency["cuda_graph"] = helper.benchmark(timed, TIMED_RUNS, cuda_graph=True)
    return own_outputs


def _run_with_pytorch(result: Result, network: DefinedNetwork) -> list[np.ndarray]:
    return _run(result, _pytorch_run(result, network))


def _run(result: Result, run: Run) -> list[np.ndarray]:
    """Runs the example and the reference sequences that the plan accepts, and compares them with PyTorch's outputs.

    Returns:
        The outputs for ``task.own_batch``, not yet compared, if no example and no sequence fits the plan; else
        nothing.
    """
    task = result.task
    if task.example is not None:
        output = task.example.split(run(task.example.inputs))[-1]  # (R, width)
        result.comparison = Comparison.of(output[None], task.demo, task.rankings.of)
    batches = _batches(result)
    result.sequences = compare_sequences(run, batches, task.reference)
    return [] if task.example is not None or batches else task.own_batch.split(run(task.own_batch.inputs))


@contextmanager
def running(result: Result, network: DefinedNetwork) -> Iterator[Run]:
    """Yields a function that runs the plan, or its network with PyTorch where TensorRT cannot execute it here."""
    name = result.task.folder.config.output_name
    if result.executed_by == "tensorrt":
        with InferHelper(result.task.plan_path) as helper:
            yield lambda inputs: helper.infer(inputs)[name]
        return
    runner = _pytorch_runner(network)
    yield lambda inputs: runner.run(inputs)[name].cpu().numpy()


def _prove_definition(result: Result, network: DefinedNetwork, own_outputs: Sequence[np.ndarray]) -> None:
    """Checks the values in the network, and what the network computes without its roundings.

    An fp32 network that PyTorch ran is not run again: its outputs have been compared already. ``own_outputs``, the
    outputs for ``task.own_batch``, are compared with those of the network without its roundings. Since everything
    then depends on that network, it is compared with PyTorch at every length of the reference sequences.
    """
    task = result.task
    from bert_trt.network_proof import WrongNetworkError, check_definition

    try:
        check_definition(network.network, network.contents, task.folder.config.layer_norm_eps)
    except WrongNetworkError as error:
        result.definition_error = str(error)
    if own_outputs:
        run = _pytorch_run(result, network, in_fp32=True)
        result.sequences = compare_with_own(task.own_batch, own_outputs, run)
        all_lengths = SequenceRange(1, task.folder.config.max_positions, task.folder.config.max_positions)
        batches = reference_batches(task.reference, task.batching, all_lengths, replace(task.build.batch, minimum=1))
        result.structure = compare_sequences(run, batches, task.reference)
    elif not task.options.no_structure_check and (task.precision != "fp32" or result.executed_by == "tensorrt"):
        run = _pytorch_run(result, network, in_fp32=True)
        lengths = replace(task.build.seq_len, minimum=1)  # PyTorch takes shorter sequences than the plan
        result.structure = compare_sequences(run, _batches(result, lengths), task.reference)


def _find_overflow(result: Result, network: DefinedNetwork) -> str | None:
    """A sentence on where values stop being finite; None if all outputs are finite."""
    task = result.task
    errors = [error.rel_l2 for error in result.sequences]
    errors += [] if result.comparison is None else [result.comparison.rel_l2]
    if all(map(math.isfinite, errors)):
        return None
    base = BASE_PRECISION if task.precision in QUANTIZED_PRECISIONS else task.precision
    runner = _pytorch_runner(network)
    examples = [batch.inputs for batch in (task.example, *_batches(result), task.own_batch) if batch is not None]
    layer = next(filter(None, map(runner.first_not_finite, examples)), None)
    where = (
        f"in {base}, after layer {layer}"
        if layer is not None
        else "in the plan; its network, run by PyTorch, stays finite"
    )
    remedy = {
        "fp32": "a weight of the checkpoint is damaged, or far too large",
        "bf16": "bf16 has the range of fp32: a weight of the checkpoint is damaged, or far too large",
        "fp16": f"{base} ends at 65504; --precision bf16 has the range of fp32 and will do",
    }[base]
    return f"overflow {where}: the output has values that are not finite; {remedy}"


def _find_first_difference(task: Task, network: DefinedNetwork) -> str:
    """A sentence on where the network without its roundings first differs from PyTorch's."""
    from bert_trt.layer_comparison import fp32_errors

    errors = fp32_errors(network, task.demo, task.inputs)
    different = [name for name, error in errors.items() if not error <= TOLERANCES["fp32"]]
    if not different:
        return (
            "for the sentence alone every layer gives what PyTorch's does: what differs is how other lengths, token "
            "types, or several sequences in a batch are treated"
        )
    if different[0] not in network.hidden_states:
        return "every encoder layer gives what PyTorch's does: it is the head that differs"
    return f"the first layer after which it differs from PyTorch's is {different[0]!r}"


def _pytorch_runner(network: DefinedNetwork, in_fp32: bool = False) -> NetworkRunner:
    # Imported here, since PyTorch would take memory while a plan is built.
    from bert_trt.network_runner import NetworkRunner, best_device

    return NetworkRunner(network.network, best_device(), contents=network.contents, in_fp32=in_fp32)


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
