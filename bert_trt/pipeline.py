"""What builder.py and onnx2trt.py share once their network is made: build the plan, run, compare, report."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from bert_trt import tensorrt_product
from bert_trt.comparison import (
    OWN_NETWORK,
    PYTORCH,
    Comparison,
    Run,
    SequenceError,
    compare_sequences,
    compare_with_own,
    in_words,
    profile_batch,
    reference_batches,
    sequence_reasons,
    together,
    worst_of,
)
from bert_trt.console import UserError, console, log_console, warn
from bert_trt.files import check_outputs, make_folder
from bert_trt.inference import InferHelper, Latency, execution_obstacle, gpu_capability, graph_obstacle
from bert_trt.model_files import LENGTHS_NAME, MASK_NAME, DemoIO, ModelFolder, ReferenceSequence
from bert_trt.network import DefinedNetwork, NetworkContents
from bert_trt.options import (
    CACHE_NAME,
    ONE_SENTENCE,
    QUANTIZED_PRECISIONS,
    TENSORRT_ATTENTION,
    TOLERANCES,
    SequenceRange,
    fillings_path,
)
from bert_trt.packing import NetworkBatch
from bert_trt.plan import BuildOptions, build_plan, info_path
from bert_trt.quantization import BASE_PRECISION, Quantization, QuantizedParts, check_quantized
from bert_trt.tensorrt_log import TrtLog, raise_failure
from bert_trt.tensorrt_product import IS_RTX, trt
from plugins import build

DEFAULT_SEQ_LEN = (1, 32, 128)  # clipped to the model's position table
TIMED_RUNS = 200
TIMING_CACHE_NAME = "timing.cache"

if TYPE_CHECKING:
    from bert_trt.network_runner import NetworkRunner
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
    wrong_definition: str | None = None  # what the network holds that it was not asked to hold
    overflow: str | None = None  # where values stop to be finite, if an output is not
    where_wrong: str | None = None  # without roundings, where the network is not PyTorch's
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
        plan = args.plan or folder.path / plan_name(way, args.precision, args.layer_norm, batching, fused)
        log = plan.with_suffix(".log") if args.verbose else None
        _check_files(plan, log, folder, args)
        demo = folder.demo()
        positions = folder.config.max_positions
        low, best, high = (min(length, positions) for length in DEFAULT_SEQ_LEN)
        default = SequenceRange(low, best, max(high, demo.inputs["input_ids"].shape[1]))
        seq_len = (args.seq_len or default).check(positions)
        options = BuildOptions(
            seq_len=seq_len,
            batch=batch,
            compute_capabilities=args.compute_capability,
            timing_cache=folder.path / TIMING_CACHE_NAME,
            plugin_library=build.library_path() if plugins or args.layer_norm != "native" else None,
            embed_plugins=not args.no_embed_plugins,
        )
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

    @functools.cached_property
    def example(self) -> NetworkBatch | None:
        """The demo's sentence in a batch that the plan takes, the only one or several times; None where it does not
        fit. The output for it is the last of those that the batch's ``split`` returns."""
        ids, types = (self.demo.inputs[name][0] for name in ("input_ids", "token_type_ids"))
        one = ReferenceSequence(ids, types, np.arange(len(ids)), self.demo.output[0])
        batches = reference_batches([one], self.batching, self.options.seq_len, self.options.batch)
        return batches[0] if batches else None

    @functools.cached_property
    def own_batch(self) -> NetworkBatch:
        """Made-up sequences of the size that the plan is tuned for."""
        return profile_batch(self.reference, self.batching, self.options.seq_len, self.options.batch)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The demo's sentence as the network takes it, in a batch as often as the smallest batch has sentences.

        For network_runner.py: the sentence has its own length, whatever the plan takes.
        """
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
        results = self.comparison.reasons(self.precision) if self.comparison is not None else []
        if self.unrounded is not self.sequences:
            results += sequence_reasons(self.sequences, self.precision)
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
        return self.sequences if self.precision == "fp32" and self.executed_by == "pytorch" else []

    @property
    def _what_rounds(self) -> str:
        """Words for a result out of tolerance whose network is right."""
        if self.precision in QUANTIZED_PRECISIONS:
            return (
                f"{self.precision} that is too coarse: --max-error X returns the worst products to fp16, "
                "sensitivity.py ranks them, and --calibration-data takes text like that of the application"
            )
        if self.precision == "fp32":
            return "the plan that computes something else than its network"
        return f"the roundings of {self.precision} that are too coarse: build with --precision fp32"

    def quantize(self, args: argparse.Namespace, assemble: Callable[..., Any], log: TrtLog) -> Quantization | None:
        """Calibrates for int8 and fp8, and measures the error; nothing for other types."""
        if self.precision not in QUANTIZED_PRECISIONS:
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
        """What --json writes. What was not compared is null."""
        compared = {one.name: None for one in fields(Comparison)}
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
            "reasons": self.reasons,
            **(compared if self.comparison is None else asdict(self.comparison)),
            "sequences": [asdict(one) for one in self.sequences],
            "structure": None if self.structure is None else [asdict(one) for one in self.structure],
            "latency_ms": {name: asdict(latency) for name, latency in self.latency.items()},
            "quantized": self.quantized.as_dict() if self.quantized else None,
            "quantized_parts": asdict(self.parts) if self.parts else None,
        }


def plan_name(way: str, precision: str, layer_norm: str, batching: str, fused: Sequence[str]) -> str:
    """What a plan is called that has no name of its own."""
    plugins = [name for name in fused if name != TENSORRT_ATTENTION]
    fusion = ["attention" if TENSORRT_ATTENTION in fused else "", "fused" if plugins else ""]
    fusion += ["linear" if "Linear" in fused else ""]
    marks = [precision, layer_norm, batching, *fusion]
    stem = ".".join([Path(way).stem, *(mark for mark in marks if mark not in ("native", "single", ""))])
    return f"{stem}.plan"


def _check_files(plan: Path, log: Path | None, folder: ModelFolder, args: argparse.Namespace) -> None:
    """Refuses outputs that would overwrite inputs or each other; makes the folders of those that are named."""
    sentences, named = getattr(args, "sentences", None), getattr(args, "fillings", None)
    quantized = args.precision in QUANTIZED_PRECISIONS
    outputs = {
        "--plan": plan,
        "the plan's description": info_path(plan),
        "the log of --verbose": log,
        "--fillings": fillings_path(named, plan) if sentences is not None else None,
        "the calibration cache": plan.with_name(CACHE_NAME) if quantized else None,
        "the timing cache": folder.path / TIMING_CACHE_NAME,
        "--json": args.json,
    }
    data = args.calibration_data if quantized else None
    check_outputs(outputs, {"--sentences": sentences, "--calibration-data": data} | folder.files())
    for path in (plan, outputs["--fillings"], args.json):
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


def finish(
    job: Job,
    log: TrtLog,
    defined: DefinedNetwork,
    seconds_network: float,
    weights_read: AbstractContextManager[None] | None = None,
) -> None:
    """Builds the plan, runs the network, compares; fills in ``job``.

    Args:
        job: from ``Job.prepare``.
        log: the builder's logger.
        defined: the network, outputs marked.
        seconds_network: what making the network took.
        weights_read: see ``build_plan``.

    Raises:
        UserError: the build or the execution fails.
    """
    builder, network, contents = defined.builder, defined.network, defined.contents
    job.seconds_network = seconds_network
    job.num_layers = network.num_layers
    if job.quantized is not None:
        names = len(job.quantized.quantization.products)
        expected = names if defined.num_quantized is None else defined.num_quantized
        job.parts = check_quantized(network, job.precision, expected)
    info = build_plan(builder, network, log, job.options, job.plan_path, weights_read)
    job.plan_bytes, job.seconds_build = info.num_bytes, info.seconds_build
    job.not_executed_because = execution_obstacle() or foreign_target(job.options.compute_capabilities)
    job.executed_by = "pytorch" if job.not_executed_because else "tensorrt"
    own = _run_with_pytorch(job, network, contents) if job.not_executed_because else _execute_plan(job)
    _prove_definition(job, network, contents, own)
    job.overflow = _find_overflow(job, network, contents)
    if defined.hidden_states and job.overflow is None and sequence_reasons(job.unrounded, "fp32"):
        job.where_wrong = _find_wrong_layer(job, network, contents, defined.hidden_states)


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


def _batches(job: Job, seq_len: SequenceRange | None = None) -> list[NetworkBatch]:
    return reference_batches(job.reference, job.batching, seq_len or job.options.seq_len, job.options.batch)


def _execute_plan(job: Job) -> list[np.ndarray]:
    name = job.folder.config.output_name
    with InferHelper(job.plan_path) as helper:
        own = _run(job, lambda inputs: helper.infer(inputs)[name])
        timed = (job.example or job.own_batch).inputs
        job.latency["enqueue"] = helper.benchmark(timed, TIMED_RUNS)
        if graph_obstacle() is None:
            job.latency["cuda_graph"] = helper.benchmark(timed, TIMED_RUNS, cuda_graph=True)
    return own


def _run_with_pytorch(job: Job, network: trt.INetworkDefinition, contents: NetworkContents) -> list[np.ndarray]:
    return _run(job, _pytorch_run(job, network, contents))


def _run(job: Job, run: Run) -> list[np.ndarray]:
    """Runs what PyTorch has answered and the plan takes, and compares.

    Returns:
        Where nothing of it fits the plan, the outputs for ``job.own_batch``, which are still to be compared.
    """
    if job.example is not None:
        tokens = job.folder.tokens() if job.demo.mask_positions else []
        output = job.example.split(run(job.example.inputs))[-1]  # (S, vocabulary or H)
        job.comparison = Comparison.of(output[None], job.demo, tokens)
    batches = _batches(job)
    job.sequences = compare_sequences(run, batches, job.reference)
    return [] if job.example is not None or batches else job.own_batch.split(run(job.own_batch.inputs))


def _prove_definition(
    job: Job, network: trt.INetworkDefinition, contents: NetworkContents, own: Sequence[np.ndarray]
) -> None:
    """What the network holds, and what it computes without its roundings. In fp32 that has been compared already,
    unless TensorRT executed the plan.

    ``own``, outputs for ``job.own_batch``, are compared with the network without its roundings, and that one, since
    then all depends on it, with PyTorch at every length of the reference sequences.
    """
    from bert_trt.network_proof import WrongNetworkError, check_definition

    try:
        check_definition(network, contents, job.folder.config.layer_norm_eps)
    except WrongNetworkError as error:
        job.wrong_definition = str(error)
    if own:
        run = _pytorch_run(job, network, contents, in_fp32=True)
        job.sequences = compare_with_own(job.own_batch, own, run)
        every = SequenceRange(1, job.folder.config.max_positions, job.folder.config.max_positions)
        batches = reference_batches(job.reference, job.batching, every, replace(job.options.batch, minimum=1))
        job.structure = compare_sequences(run, batches, job.reference)
    elif job.proves_structure and (job.precision != "fp32" or job.executed_by == "tensorrt"):
        run = _pytorch_run(job, network, contents, in_fp32=True)
        lengths = replace(job.options.seq_len, minimum=1)  # PyTorch takes shorter sequences than the plan
        job.structure = compare_sequences(run, _batches(job, lengths), job.reference)


def _find_overflow(job: Job, network: trt.INetworkDefinition, contents: NetworkContents) -> str | None:
    """Where values stop to be finite, in words; None if all outputs are finite."""
    errors = [one.rel_l2 for one in job.sequences]
    errors += [] if job.comparison is None else [job.comparison.rel_l2]
    if all(map(math.isfinite, errors)):
        return None
    base = BASE_PRECISION if job.precision in QUANTIZED_PRECISIONS else job.precision
    runner = _pytorch_runner(network, contents)
    examples = [batch.inputs for batch in (job.example, *_batches(job), job.own_batch) if batch is not None]
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


def _find_wrong_layer(
    job: Job, network: trt.INetworkDefinition, contents: NetworkContents, hidden_states: Sequence[str]
) -> str:
    """Where the network without its roundings is not PyTorch's, in words."""
    from bert_trt.layer_comparison import fp32_errors

    errors = fp32_errors(network, hidden_states, job.demo, contents, job.inputs)
    wrong = [name for name, error in errors.items() if not error <= TOLERANCES["fp32"]]
    if not wrong:
        return (
            "for the sentence alone every layer gives what PyTorch's does: what differs is how other lengths, token "
            "types, or several sequences in a batch are treated"
        )
    if wrong[0] not in hidden_states:
        return "every encoder layer gives what PyTorch's does: it is the head that differs"
    return f"the first layer after which it differs from PyTorch's is {wrong[0]!r}"


def _pytorch_runner(
    network: trt.INetworkDefinition, contents: NetworkContents, in_fp32: bool = False
) -> NetworkRunner:
    # Imported here: while a plan is built, PyTorch would only take memory.
    import torch

    from bert_trt.network_runner import NetworkRunner

    return NetworkRunner(network, "cuda" if torch.cuda.is_available() else "cpu", contents=contents, in_fp32=in_fp32)


def _pytorch_run(job: Job, network: trt.INetworkDefinition, contents: NetworkContents, in_fp32: bool = False) -> Run:
    """A function that runs the network with PyTorch, on CUDA where there is a GPU."""
    name, runner = job.folder.config.output_name, _pytorch_runner(network, contents, in_fp32)

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with log_console.status(
            f"running the network with PyTorch on {runner.device}{' in fp32' if in_fp32 else ''}"
        ):
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
            cells = [_word_cell(comparison, rank) for comparison in (reference, *(job.comparison for job in jobs))]
            table.add_row(f"{rank + 1}.", *cells)
        table.add_section()
    rows = [
        ("relative L2 error", _error_cell),
        ("largest difference", lambda job: "" if job.comparison is None else f"{job.comparison.max_abs:.2e}"),
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
    for job in jobs:
        for line in _remarks(job):
            console.print(Text(f"{job.heading}: {line}"), soft_wrap=True)  # Text: words such as [unused1]
        if job.reasons:
            console.print(Text(f"{job.heading} does not agree with PyTorch:"), soft_wrap=True)
        for reason in job.reasons:
            console.print(Text(f"- {reason}"), soft_wrap=True)


def _remarks(job: Job) -> list[str]:
    """What was compared, where it is not the sentence, and near-ties."""
    told = [] if job.example is not None else [_explain_length(job)]
    ties = job.comparison.near_ties(job.precision) if job.comparison is not None else []
    return told + [f"a near-tie, which counts as the same: {swap.describe()}" for swap in ties]


def _explain_length(job: Job) -> str:
    """What took the place of a sentence that does not fit the plan."""
    tokens, seq_len, batch = job.demo.inputs["input_ids"].shape[1], job.options.seq_len, job.options.batch
    takes = f"{_told_range(seq_len)} tokens"
    takes += "" if batch == ONE_SENTENCE else f" in each of {_told_range(batch)} sequences"
    told = f"the sentence has {tokens} tokens and does not fit the plan, which takes {takes}; compared were "
    compared = _lengths(job.sequences)
    if any(one.expected_from == OWN_NETWORK for one in job.sequences):
        return (
            f"{told}made-up sequences of {compared} tokens, with the same network without its roundings, and that "
            f"one with PyTorch at {_lengths(job.structure or [])} tokens"
        )
    return f"{told}other sequences that PyTorch has answered, of {compared} tokens"


def _told_range(allowed: SequenceRange) -> str:
    low, high = allowed.minimum, allowed.maximum
    return str(low) if low == high else f"{low} to {high}"


def _lengths(errors: Sequence[SequenceError]) -> str:
    return in_words([str(length) for length in sorted({one.tokens for one in errors})])


def _error_cell(job: Job) -> str:
    if job.comparison is None:
        return "the sentence does not fit"
    return f"{job.comparison.rel_l2:.2e} (at most {job.tolerance:.0e})"


def _word_cell(comparison: Comparison | None, rank: int) -> Text:  # Text, not markup: there is a word [unused1]
    if comparison is None:
        return Text("not run")
    if not comparison.top10:
        return Text("not finite")
    entry = comparison.top10[rank]
    return Text(f"{entry['word']} {entry['probability']:.4f}")


def _sequences_cell(job: Job) -> str:
    """The worst sequence; in 8 bits, where all of them count together, that too."""
    if job.precision in QUANTIZED_PRECISIONS and job.sequences:
        return f"{together(job.sequences):.2e}\n{_worst(job.sequences)}"
    return _worst(job.sequences)


def _structure_cell(job: Job) -> str:
    if job.structure is None:
        return "as above" if job.precision == "fp32" and job.executed_by == "pytorch" else "not looked at"
    return f"{_worst(job.structure)}\n(at most {TOLERANCES['fp32']:.0e})"


def _worst(errors: Sequence[SequenceError]) -> str:
    if not errors:
        return "none fits the plan"
    worst = worst_of(errors)
    against = "" if worst.expected_from == PYTORCH else f"\nagainst {worst.expected_from}"
    return f"{worst.rel_l2:.2e} at {worst.tokens} tokens{against}"


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
    shape = (
        "" if job.example is not None else f"\nof {job.options.batch.optimum} x {job.options.seq_len.optimum} tokens"
    )
    lines = (f"{name}: {times.median:.3f} ({times.p99:.3f})" for name, times in job.latency.items())
    return "\n".join(lines) + shape


def _explain_execution(job: Job) -> str:
    built_by = tensorrt_product.describe()
    if job.executed_by == "tensorrt":
        return f"Plans built and executed by {built_by}."
    where = " It builds without a GPU." if IS_RTX else ""
    return (
        f"Plans built by {built_by}, not executed: {job.not_executed_because}.{where} "
        "The results above are those of the same network definition, run by PyTorch."
    )
