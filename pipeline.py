"""What builder.py and onnx2trt.py share once their network is made: build the plan, run, compare, report."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

import tensorrt_product
from common import UserError, console, log_console, make_folder, warn, write_whole
from comparison import (
    Comparison,
    Run,
    SequenceError,
    compare_sequences,
    reference_batches,
    sequences_agree,
    together,
)
from model_files import LENGTHS_NAME, MASK_NAME, DemoIO, ModelFolder, ReferenceSequence
from options import (
    CACHE_NAME,
    ONE_SENTENCE,
    TENSORRT_ATTENTION,
    TOLERANCES,
    SequenceRange,
)
from packing import NetworkBatch
from plugin_layers import Known
from plugins import build
from quantization import Quantization, QuantizedParts, check_quantized
from tensorrt_product import IS_RTX, trt
from trt_helper import (
    QUANTIZED_TYPES,
    BuildOptions,
    InferHelper,
    Latency,
    TrtLog,
    build_plan,
    check_in_profile,
    execution_obstacle,
    gpu_capability,
    graph_obstacle,
    profile_shapes,
)

DEFAULT_SEQ_LEN = (1, 32, 128)  # clipped to the model's position table
TIMED_RUNS = 200

if TYPE_CHECKING:
    from sensitivity import QuantizedModel


# --- one job ----------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One network on its way from definition to checked result."""

    way: str  # "builder.py" or "onnx2trt.py"
    folder: ModelFolder
    demo: DemoIO
    precision: str
    layer_norm: str  # "native" or a kernel of the plugin
    batching: str  # "single", "padded" or "packed"
    fused: tuple[str, ...]  # what stands for several layers: plugins, or TENSORRT_ATTENTION
    options: BuildOptions
    plan_path: Path
    verbose_log: Path | None
    reference: list[ReferenceSequence] = field(default_factory=list)
    proves_structure: bool = True
    executed_by: str = ""
    not_executed_because: str | None = None
    num_layers: int = 0
    plan_bytes: int = 0
    seconds_network: float = 0.0
    seconds_build: float = 0.0
    comparison: Comparison | None = None
    sequences: list[SequenceError] = field(default_factory=list)  # of several lengths, in batches
    structure: list[SequenceError] | None = None  # the same sequences without any rounding; None: not looked at
    latency: dict[str, Latency] = field(default_factory=dict)
    layers_agree: bool = True
    quantized: QuantizedModel | None = None  # what is quantized, and its error
    parts: QuantizedParts | None = None  # the same, read back from the network

    @classmethod
    def prepare(
        cls,
        way: str,
        folder: ModelFolder,
        args: argparse.Namespace,
        batching: str = "single",
        batch: SequenceRange = ONE_SENTENCE,
        fused: Sequence[str] = (),
    ) -> Job:
        """Checks everything that can be checked before the long work."""
        plugins = [name for name in fused if name != TENSORRT_ATTENTION]
        fusion = ["attention" if TENSORRT_ATTENTION in fused else "", "fused" if plugins else ""]
        fusion += ["linear" if "Linear" in fused else ""]
        marks = [args.precision, args.layer_norm, batching, *fusion]
        stem = ".".join([Path(way).stem, *(mark for mark in marks if mark not in ("native", "single", ""))])
        plan = args.plan or folder.path / f"{stem}.plan"
        for path in (plan, args.json):
            if path is not None:
                make_folder(path.parent)
        demo = folder.demo()
        positions = folder.config.max_positions
        default = SequenceRange(*(min(length, positions) for length in DEFAULT_SEQ_LEN))
        seq_len = (args.seq_len or default).check(positions)
        for name, ids in demo.inputs.items():
            check_in_profile(name, ids.shape, profile_shapes(name, (1, -1), seq_len, ONE_SENTENCE))
        options = BuildOptions(
            seq_len=seq_len,
            batch=batch,
            compute_capabilities=args.compute_capability,
            timing_cache=folder.path / "timing.cache",
            plugin_library=build.library_path() if plugins or args.layer_norm != "native" else None,
            embed_plugins=not args.no_embed_plugins,
        )
        log = plan.with_suffix(".log") if args.verbose else None
        warn_of_missing_bindings()
        return cls(
            way,
            folder,
            demo,
            args.precision,
            args.layer_norm,
            batching,
            tuple(fused),
            options,
            plan,
            log,
            folder.reference(),
            not args.no_structure_check,
        )

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The demo's sentence as the network takes it, in a batch as often as the smallest batch has sentences."""
        ids, copies = self.demo.inputs, self.options.batch.minimum
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
        """Of the job's column."""
        return f"{self.way} {self.precision}{' plugins' if self.fused else ''}"

    @property
    def tolerance(self) -> float:
        """Largest relative L2 error that is accepted."""
        return TOLERANCES[self.precision]

    @property
    def agrees(self) -> bool:
        """Whether the result is what PyTorch says, within tolerance."""
        return (
            self.comparison is not None
            and self.comparison.agrees(self.precision)
            and self.layers_agree
            and sequences_agree(self.sequences, self.precision)
            and sequences_agree(self.structure or [], "fp32")
        )

    def quantize(self, args: argparse.Namespace, assemble: Callable[..., Any], log: TrtLog) -> Quantization | None:
        """Calibrates for int8 and fp8, and measures the error; nothing for other types."""
        if self.precision not in QUANTIZED_TYPES:
            return None
        from sensitivity import quantize  # brings PyTorch, which other builds do not need

        self.quantized = quantize(self.folder, args, assemble, log, self.plan_path.with_name(CACHE_NAME))
        return self.quantized.quantization

    @contextmanager
    def logging(self) -> Iterator[TrtLog]:
        """TensorRT's logger; with --verbose it also writes a file beside the plan, which stays if the build fails."""
        with open_log(self.verbose_log) as log:
            yield log

    def as_dict(self) -> dict[str, Any]:
        """What --json writes."""
        assert self.comparison is not None
        return {
            "way": self.way,
            "tensorrt": tensorrt_product.describe(),
            "model": str(self.folder.path),
            "text": self.demo.text,
            "precision": self.precision,
            "layer_norm": self.layer_norm,
            "batching": self.batching,
            "fused": list(self.fused),
            "executed_by": self.executed_by,
            "not_executed_because": self.not_executed_because,
            "num_layers": self.num_layers,
            "plan": str(self.plan_path),
            "plan_bytes": self.plan_bytes,
            "seconds_network": self.seconds_network,
            "seconds_build": self.seconds_build,
            "tolerance": self.tolerance,
            "within_tolerance": self.agrees,
            **asdict(self.comparison),
            "sequences": [asdict(one) for one in self.sequences],
            "structure": None if self.structure is None else [asdict(one) for one in self.structure],
            "latency_ms": {name: asdict(latency) for name, latency in self.latency.items()},
            "quantized": self.quantized.as_dict() if self.quantized else None,
            "quantized_parts": asdict(self.parts) if self.parts else None,
        }


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
        file = path.open("wb")
    except OSError as error:
        raise UserError(f"cannot write the log {path}: {error.strerror or error}") from error
    with file:
        yield TrtLog(file)


def finish(
    job: Job,
    log: TrtLog,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    known: Known,
    seconds_network: float,
    weights_read: AbstractContextManager[None] | None = None,
    quantized_products: int | None = None,
) -> None:
    """Builds the plan, runs the network, compares; fills in ``job``.

    Args:
        job: from ``Job.prepare``.
        log: the builder's logger.
        builder: the network's builder.
        network: the network, outputs marked.
        known: for the runner.
        seconds_network: what making the network took.
        weights_read: see ``build_plan``.
        quantized_products: how many products are to be quantized, where it is not one for each name.

    Raises:
        UserError: the build or the execution fails.
    """
    job.seconds_network = seconds_network
    job.num_layers = network.num_layers
    if job.quantized is not None:
        names = len(job.quantized.quantization.products)
        expected = names if quantized_products is None else quantized_products
        job.parts = check_quantized(network, job.precision, expected)
    info = build_plan(builder, network, log, job.options, job.plan_path, weights_read)
    job.plan_bytes, job.seconds_build = info.num_bytes, info.seconds_build
    job.not_executed_because = execution_obstacle() or foreign_target(job.options.compute_capabilities)
    job.executed_by = "pytorch" if job.not_executed_because else "tensorrt"
    output = _run_with_pytorch(job, network, known) if job.not_executed_because else _execute_plan(job)
    _prove_definition(job, network, known)
    tokens = job.folder.tokens() if job.demo.mask_positions else []
    last = output.reshape(-1, *job.demo.output.shape[1:])[-1:]  # (1, S, vocabulary or H)
    job.comparison = Comparison.of(last, job.demo, tokens)


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


def write_json(path: Path | None, results: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Writes what --json asks for; nothing without a path. Called last, when all that decides has been compared.

    Raises:
        UserError: the file cannot be written.
    """
    if path is not None:
        with write_whole(path) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())


def foreign_target(capabilities: Sequence[str]) -> str | None:
    """Why a plan for other GPUs cannot be executed here."""
    if not capabilities:
        return None
    import pycuda.driver as cuda  # pyright: ignore[reportMissingImports]

    here = "{}.{}".format(*cuda.Device(0).compute_capability())
    return None if here in capabilities else f"built for {', '.join(capabilities)}, this GPU is {here}"


def _batches(job: Job, seq_len: SequenceRange | None = None) -> list[NetworkBatch]:
    return reference_batches(job.reference, job.batching, seq_len or job.options.seq_len, job.options.batch)


def _execute_plan(job: Job) -> np.ndarray:
    name = job.folder.config.output_name
    with InferHelper(job.plan_path) as helper:
        output = helper.infer(job.inputs)[name]
        job.sequences = compare_sequences(lambda inputs: helper.infer(inputs)[name], _batches(job), job.reference)
        job.latency["enqueue"] = helper.benchmark(job.inputs, TIMED_RUNS)
        if graph_obstacle() is None:
            job.latency["cuda_graph"] = helper.benchmark(job.inputs, TIMED_RUNS, cuda_graph=True)
    return output


def _run_with_pytorch(job: Job, network: trt.INetworkDefinition, known: Known) -> np.ndarray:
    run = _pytorch_run(job, network, known)
    output = run(job.inputs)
    job.sequences = compare_sequences(run, _batches(job), job.reference)
    return output


def _prove_definition(job: Job, network: trt.INetworkDefinition, known: Known) -> None:
    """What the network holds, and what it computes without its roundings. In fp32 that has been compared already,
    unless TensorRT executed the plan."""
    from network_proof import check_definition

    check_definition(network, known, job.folder.config.layer_norm_eps)
    if job.proves_structure and (job.precision != "fp32" or job.executed_by == "tensorrt"):
        run = _pytorch_run(job, network, known, in_fp32=True)
        lengths = replace(job.options.seq_len, minimum=1)  # PyTorch takes shorter sequences than the plan
        job.structure = compare_sequences(run, _batches(job, lengths), job.reference)


def _pytorch_run(job: Job, network: trt.INetworkDefinition, known: Known, in_fp32: bool = False) -> Run:
    """A function that runs the network with PyTorch, on CUDA where there is a GPU."""
    # Imported here: while a plan is built, PyTorch would only take memory.
    import torch

    from network_runner import NetworkRunner

    device, name = "cuda" if torch.cuda.is_available() else "cpu", job.folder.config.output_name
    runner = NetworkRunner(network, device, known=known, in_fp32=in_fp32)

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with log_console.status(f"running the network with PyTorch on {device}{' in fp32' if in_fp32 else ''}"):
            return runner.run(inputs)[name].cpu().numpy()

    return run


# --- the table --------------------------------------------------------------------------------------------


def print_report(*jobs: Job) -> None:
    """Prints one table with a column for PyTorch and one for each job."""
    demo, folder = jobs[0].demo, jobs[0].folder
    table = Table(title=Text(demo.text), title_justify="left")
    for heading in ("", "PyTorch fp32", *(job.heading for job in jobs)):
        table.add_column(heading, overflow="fold")
    if demo.mask_positions:
        reference = Comparison.of(demo.output, demo, folder.tokens())
        for rank in range(len(reference.top10)):
            cells = [_word_cell(comparison, rank) for comparison in (reference, *map(_compared, jobs))]
            table.add_row(f"{rank + 1}.", *cells)
        table.add_section()
    rows = [
        ("relative L2 error", lambda job: f"{_compared(job).rel_l2:.2e} (at most {job.tolerance:.0e})"),
        ("largest difference", lambda job: f"{_compared(job).max_abs:.2e}"),
        ("other lengths, worst", _sequences_cell),
        ("without roundings, worst", _structure_cell),
        ("network layers", lambda job: str(job.num_layers)),
        ("plan", lambda job: f"{job.plan_bytes / 2**20:.2f} MiB"),
        *([("products in int8 or fp8", _products_cell)] if jobs[0].parts is not None else []),
        ("seconds for network + plan", lambda job: f"{job.seconds_network:.2f} + {job.seconds_build:.2f}"),
        ("network run by", lambda job: {"tensorrt": "TensorRT", "pytorch": "PyTorch"}[job.executed_by]),
        ("milliseconds, median (p99)", _latency_cell),
        ("agrees with PyTorch", lambda job: "[green]yes[/]" if job.agrees else "[bold red]NO[/]"),
    ]
    for label, cell in rows:
        table.add_row(label, "", *(cell(job) for job in jobs))
    console.print(table)
    console.print(_explain_execution(jobs[0]), soft_wrap=True)
    for job in jobs:
        if job.quantized is not None:
            console.print(_explain_quantization(job), soft_wrap=True)
            job.quantized.print_change()


def _compared(job: Job) -> Comparison:
    assert job.comparison is not None
    return job.comparison


def _word_cell(comparison: Comparison, rank: int) -> Text:  # Text, not markup: there is a word [unused1]
    entry = comparison.top10[rank]
    return Text(f"{entry['word']} {entry['probability']:.4f}")


def _sequences_cell(job: Job) -> str:
    """The worst sequence; in 8 bits, where all of them count together, that too."""
    if job.precision in QUANTIZED_TYPES and job.sequences:
        return f"{together(job.sequences):.2e}\n{_worst(job.sequences)}"
    return _worst(job.sequences)


def _structure_cell(job: Job) -> str:
    if job.structure is None:
        return "as above" if job.precision == "fp32" and job.executed_by == "pytorch" else "not looked at"
    return f"{_worst(job.structure)}\n(at most {TOLERANCES['fp32']:.0e})"


def _worst(errors: Sequence[SequenceError]) -> str:
    if not errors:
        return "none fits the plan"
    worst = max(errors, key=lambda one: (not math.isfinite(one.rel_l2), one.rel_l2))
    return f"{worst.rel_l2:.2e} at {worst.tokens} tokens"


def _products_cell(job: Job) -> str:
    assert job.parts is not None
    return f"{job.parts.quantized_products} of {job.parts.products}"


def _explain_quantization(job: Job) -> str:
    """The weights' bytes in the network and in the plan."""
    assert job.parts is not None
    parts, plan = job.parts, job.plan_bytes / 1e6
    narrow, every = parts.quantized_weights / 1e6, parts.weight_bytes / 1e6
    shown = {
        True: f"which proves it: with 2 bytes an element the weights alone would take {every + narrow:.1f} MB",
        False: "[bold red]too large for that[/]: TensorRT has widened them",
        None: "of which so small a model is too little to prove it",
    }[parts.plan_has_narrow_weights(job.plan_bytes)]
    return (
        f"{job.way}: {parts.quantized_products} of {parts.products} products have both factors in {job.precision}; "
        f"their weights take {narrow:.2f} MB at 1 byte an element, all weights {every:.2f} MB. The plan has "
        f"{plan:.2f} MB, {shown}."
    )


def _latency_cell(job: Job) -> str:
    if not job.latency:
        return "plan not executed"
    return "\n".join(f"{name}: {times.median:.3f} ({times.p99:.3f})" for name, times in job.latency.items())


def _explain_execution(job: Job) -> str:
    built_by = tensorrt_product.describe()
    if job.executed_by == "tensorrt":
        return f"Plans built and executed by {built_by}."
    where = " It builds without a GPU." if IS_RTX else ""
    return (
        f"Plans built by {built_by}, not executed: {job.not_executed_because}.{where} "
        "The results above are those of the same network definition, run by PyTorch."
    )
