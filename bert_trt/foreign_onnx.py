"""Plans from ONNX files that others exported: ``python onnx2trt.py --onnx FILE``.

Such a file comes alone, without a tokenizer and without PyTorch's answers. The names of its inputs say what they
mean, the tables that they index say how large ids may be. The network is compared with onnxruntime on the same file,
on batches of random tokens of several lengths, padded where the file takes a mask.

The plan is written before it is compared. Where nothing can be compared (network_runner.py lacks a layer, onnxruntime
an operator), the report says so, and the exit code is 1 as for a plan that does not agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.table import Table
from rich.text import Text

from bert_trt import tensorrt_product
from bert_trt.comparison import relative_l2
from bert_trt.console import UserError, console, log_console
from bert_trt.files import make_folder
from bert_trt.inference import InferHelper, Latency, execution_obstacle, graph_obstacle
from bert_trt.network import NetworkContents
from bert_trt.network_proof import check_constants
from bert_trt.network_runner import NetworkRunner, UnsupportedLayerError
from bert_trt.onnx_precision import QUANTIZED, NarrowGraph
from bert_trt.options import TOLERANCES, ParserOptions, SequenceRange
from bert_trt.pipeline import DEFAULT_SEQ_LEN, TIMED_RUNS, foreign_target, open_log, warn_of_missing_bindings
from bert_trt.plan import BuildOptions, build_plan, create_builder, parse_onnx
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import trt

NAMES = {  # what exporters call the inputs, without what TensorFlow puts around it
    "ids": ("input_ids", "ids", "input", "inputs", "token_ids", "tokens", "input_word_ids"),
    "mask": ("attention_mask", "mask", "input_mask", "att_mask", "attention_masks"),
    "types": ("token_type_ids", "types", "segment_ids", "token_types", "segments", "input_type_ids"),
    "positions": ("position_ids", "positions", "pos_ids"),
}
WHOLE_TYPES = (ir.DataType.INT64, ir.DataType.INT32)
MASK_TYPES = (*WHOLE_TYPES, ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.FLOAT16)
INDEX_OPERATORS = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten")  # indices stay what they are
TABLE_OPERATORS = ("Cast", "Identity", "DequantizeLinear")
DEFAULT_BATCH = SequenceRange(1, 8, 32)
LARGEST_MODEL = 2**31 - 1  # bytes; protobuf's limit for one message


@dataclass(frozen=True)
class ForeignInput:
    """An input of the file: (S,), (B, S), or a mask up to (B, N, S, S).

    Attributes:
        name: as the file has it.
        role: one of ``INPUT_ROLES``.
        dtype: its type.
        shape: -1 where dynamic.
    """

    name: str
    role: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    def axes(self, batch: int, length: int) -> tuple[int, ...]:
        """The shape for ``batch`` sequences of ``length`` tokens, where it is not fixed."""
        rank = len(self.shape)
        wanted = [batch, 1, length, length] if rank == 4 else [batch, length, length][:rank] if rank > 1 else [length]
        return tuple(want if size == -1 else size for want, size in zip(wanted, self.shape, strict=True))

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype.name} {list(self.shape)}"


@dataclass(frozen=True)
class ForeignModel:
    """An ONNX file and what is known of it.

    Attributes:
        path: the file.
        model: the graph; weights are read when asked for.
        inputs: in the file's order.
        rows: rows of the table that the inputs of a role index, where one was found.
    """

    path: Path
    model: ir.Model
    inputs: tuple[ForeignInput, ...]
    rows: Mapping[str, int]

    @classmethod
    def load(cls, path: Path, names: Mapping[str, str]) -> ForeignModel:
        """Reads the file.

        Args:
            path: the file.
            names: input names by role, where they are not among ``NAMES``.

        Raises:
            UserError: the file is missing, damaged or no BERT, its data is missing, or an input's meaning is unclear.
        """
        model = _load(path)
        _check_data(path, model)
        inputs = _inputs(path, model, names)
        return cls(path, model, inputs, _table_rows(model, inputs))

    @property
    def operators(self) -> set[str]:
        """Types of the graph's nodes."""
        return {node.op_type for node in self.model.graph}

    def sequence_range(self, asked: SequenceRange | None) -> SequenceRange:
        """Lengths that a plan takes.

        Raises:
            UserError: the file has one fixed length, or fewer positions than asked for.
        """
        fixed = {one.shape[-1] for one in self.inputs} - {-1}
        positions = self.rows.get("positions", max(DEFAULT_SEQ_LEN))
        default = SequenceRange(*(min(length, positions) for length in DEFAULT_SEQ_LEN))
        if "positions" in self.rows and asked is not None:
            asked.check(positions)
        return self._range("length", fixed, asked, default, "--seq-len")

    def batch_range(self, asked: SequenceRange | None) -> SequenceRange:
        """Numbers of sequences that a plan takes; the same errors."""
        ids = next(one for one in self.inputs if one.role == "ids")
        fixed = {ids.shape[0]} - {-1} if len(ids.shape) == 2 else {1}
        return self._range("batch", fixed, asked, DEFAULT_BATCH, "--batch")

    def _range(
        self, what: str, fixed: set[int], asked: SequenceRange | None, default: SequenceRange, option: str
    ) -> SequenceRange:
        if len(fixed) > 1:
            raise UserError(f"{self.path}: its inputs have different fixed sizes of the {what}: {sorted(fixed)}")
        if not fixed:
            return asked or default
        (size,) = fixed
        only = SequenceRange(size, size, size)
        if asked not in (None, only):
            raise UserError(
                f"{self.path} has the fixed {what} {size}; leave {option} out, or export it with dynamic axes"
            )
        return only

    def profile(self, seq_len: SequenceRange, batch: SequenceRange) -> dict[str, list[list[int]]]:
        """[minimum, optimum, maximum] of every input's shape."""
        pairs = list(zip(batch.as_tuple(), seq_len.as_tuple(), strict=True))
        return {one.name: [list(one.axes(*pair)) for pair in pairs] for one in self.inputs}

    def examples(self, seq_len: SequenceRange, batch: SequenceRange) -> list[dict[str, np.ndarray]]:
        """Batches to compare: the shortest, the usual and the longest sequences, few at a time."""
        generator = np.random.default_rng(0)
        sizes = [max(batch.minimum, min(wanted, batch.maximum)) for wanted in (1, 3, 2)]
        pairs = sorted(set(zip(sizes, seq_len.as_tuple(), strict=True)))
        return [{one.name: self._values(one, *pair, generator) for one in self.inputs} for pair in pairs]

    def _values(self, one: ForeignInput, batch: int, length: int, generator: np.random.Generator) -> np.ndarray:
        shape = one.axes(batch, length)
        place = np.arange(shape[-1])
        if one.role == "ids":
            values = generator.integers(0, self.rows.get("ids", 100), shape)
        elif one.role == "types":
            values = np.broadcast_to((place >= len(place) // 2) * (self.rows.get("types", 1) > 1), shape)
        elif one.role == "positions":
            values = np.broadcast_to(place, shape)
        else:
            ends = np.array(
                [max(1, len(place) - row * len(place) // 4) for row in range(shape[0])]
            )  # every row shorter
            visible = place < ends.reshape(-1, *[1] * (len(shape) - 1))
            values = np.broadcast_to(visible, shape)
            if len(shape) > 2 and one.dtype.is_floating_point():  # it is added to the scores
                values = np.where(values, 0, np.finfo(one.dtype.numpy()).min)
        return np.array(values, one.dtype.numpy(), order="C")


# --- reading the file -----------------------------------------------------------------------------------------


def _load(path: Path) -> ir.Model:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the .onnx file in it: --onnx {path / 'model.onnx'}")
    if not path.is_file():
        raise UserError(f"no ONNX file at {path}")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise errors of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not a readable ONNX file ({reason}); it is damaged, or of another format"
        ) from error
    if not len(model.graph) or not model.opset_imports:
        raise UserError(f"{path} holds no complete graph: it is empty or truncated")
    return model


def _check_data(path: Path, model: ir.Model) -> None:
    """Checks that weights outside the file lie in its folder, and whole. A link in the folder may lead elsewhere, as
    in the cache of a hub."""
    graphs = [model.graph, *model.graph.subgraphs()]
    for value in (value for graph in graphs for value in graph.initializers.values()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location, end = Path(tensor.location), (tensor.offset or 0) + tensor.nbytes
        if location.is_absolute() or ".." in location.parts:
            raise UserError(f"{path}: weight {value.name!r} lies in {str(location)!r}, outside the file's folder")
        try:
            size = (path.parent / location).stat().st_size
        except OSError as error:
            raise UserError(
                f"cannot read {path.parent / location}, where weight {value.name!r} lies: {error.strerror}; "
                f"it belongs beside {path.name}"
            ) from error
        if end > size:
            raise UserError(
                f"{path.parent / location} has {size} bytes, but weight {value.name!r} ends at byte {end}: "
                "the file is truncated, or another model's"
            )


def _data_files(path: Path, model: ir.Model) -> set[Path]:
    """Where weights outside the file lie."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return {path.parent / tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def _inputs(path: Path, model: ir.Model, names: Mapping[str, str]) -> tuple[ForeignInput, ...]:
    roles = {name: role for role, usual in NAMES.items() for name in usual}
    given = {name: role for role, name in names.items()}
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    unknown = sorted(given.keys() - {value.name for value in values})
    if unknown:
        raise UserError(f"--inputs: {path} has no input {unknown[0]!r}; it has {_listed(values)}")
    found: dict[str, ForeignInput] = {}
    for value in values:
        name = str(value.name)
        role = given.get(name) or roles.get(name.rpartition("/")[2].partition(":")[0].lower(), "")
        if not role or role in found:
            break
        shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in value.shape or ())
        found[role] = ForeignInput(name, role, value.dtype or ir.DataType.UNDEFINED, shape)
    if len(found) < len(values) or "ids" not in found:
        raise UserError(
            f"{path} has the inputs {_listed(values)}; expected those of a BERT: token ids, called "
            f"{' or '.join(NAMES['ids'][:2])}, and if it takes them a mask, token types and positions. If it is one, "
            "say which input is which: --inputs ids=NAME,mask=NAME,types=NAME,positions=NAME"
        )
    for one in found.values():
        types, ranks = (MASK_TYPES, (1, 2, 3, 4)) if one.role == "mask" else (WHOLE_TYPES, (1, 2))
        if one.dtype not in types or len(one.shape) not in ranks:
            raise UserError(f"{path}: the {one.role} are the input {one}, expected (B, S) of {types[0].name}")
    return tuple(found.values())


def _listed(values: Sequence[ir.Value]) -> str:
    return (
        ", ".join(
            f"{value.name!r} {value.dtype.name if value.dtype else ''} {value.shape if value.shape else '[]'}"
            for value in values
        )
        or "none"
    )


def _table_rows(model: ir.Model, inputs: Sequence[ForeignInput]) -> dict[str, int]:
    """Rows of the tables from which rows are gathered, by the role of the input that says which."""
    roles, rows = {one.name: one.role for one in inputs}, {}
    for node in model.graph:
        if node.op_type != "Gather" or ("axis" in node.attributes and node.attributes["axis"].as_int() != 0):
            continue
        table, indices = _origin(node.inputs[0], TABLE_OPERATORS), _origin(node.inputs[1], INDEX_OPERATORS)
        if table is None or indices is None or not table.is_initializer() or len(table.shape or ()) != 2:
            continue
        role = roles.get(str(indices.name), "positions")  # they are constants often, or computed from the length
        rows[role] = max(rows.get(role, 0), int(table.shape[0]))  # pyright: ignore[reportOptionalSubscript,reportArgumentType]
    return rows


def _origin(value: ir.Value | None, operators: Sequence[str]) -> ir.Value | None:
    """What the value is made from by ``operators`` alone."""
    while value is not None and (maker := value.producer()) is not None and maker.op_type in operators:
        value = maker.inputs[0]
    return value


# --- the network and what it is compared with ---------------------------------------------------------------------


def parse_foreign(
    model: ForeignModel, precision: str, log: TrtLog
) -> tuple[trt.Builder, trt.INetworkDefinition, trt.OnnxParser, NetworkContents]:
    """Parses the file, converted to the precision.

    Returns:
        The builder, the network, the parser, which owns the network's weights, and what the runner has to know.

    Raises:
        UserError: a weight does not fit the precision, or the parser refuses the file, in its own words.
    """
    builder, network = create_builder(log)
    data, contents = _model_bytes(model, precision)
    parser = trt.OnnxParser(network, LOGGER)
    parse_onnx(parser, data, model.path, log)
    return builder, network, parser, contents


def _model_bytes(model: ForeignModel, precision: str) -> tuple[bytes, NetworkContents]:
    """The file, or what it is converted to, and the constants that were converted."""
    if precision == "fp32" and "Attention" not in model.operators:
        return model.path.read_bytes(), NetworkContents()
    changed = ir.load(model.path)
    for node in changed.graph:
        if node.op_type == "Attention":  # see TrtNetworkHelper.addAttention
            node.attributes.add(ir.AttrInt64("TRT_decomposable", 1))
    contents = NetworkContents()
    if precision != "fp32":
        _follow_links(changed, model.path.parent)
        narrow = NarrowGraph(changed, precision)
        narrow.run()
        for value in changed.graph.initializers.values():  # those that stayed fp32
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        contents = NetworkContents(narrow.weights, {}, narrow.sources)
    proto = ir.to_proto(changed)
    if proto.ByteSize() > LARGEST_MODEL:
        raise UserError(f"{model.path} is larger than 2 GiB in {precision}, more than one ONNX message can hold")
    return proto.SerializeToString(), contents


def _follow_links(model: ir.Model, folder: Path) -> None:
    """Lets onnx_ir read data files that are links, as in the cache of a hub; ``_check_data`` has seen them."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            place = folder.absolute() / tensor.location  # without a base folder, in which it would have to stay
            value.const_value = ir.ExternalTensor(
                place, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )


def import_onnxruntime() -> Any:
    """The package onnxruntime.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--onnx compares with the package onnxruntime, which cannot be imported ({error}); "
            "install it: pip install -r requirements-onnx.txt"
        ) from error
    onnxruntime.set_default_logger_severity(4)  # what it refuses comes as an exception
    return onnxruntime


def onnxruntime_answers(path: Path, examples: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The file's outputs by name for each example, computed by onnxruntime on the CPU.

    Raises:
        NotComparedError: onnxruntime cannot read or run the file; the message has its own words.
    """
    runtime = import_onnxruntime()
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(None, dict(example)), strict=True)) for example in examples]
    except Exception as error:  # its exceptions have no base class of their own
        raise NotComparedError(f"onnxruntime cannot run {path}: {' '.join(str(error).split())}") from error


class NotComparedError(UserError):
    """The plan is whole, but there is nothing to compare it with; the message says why."""


Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def output_error(values: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2 error; of whole numbers and truth values the share that differs."""
    if values.shape != reference.shape:
        return float("inf")
    if not np.issubdtype(reference.dtype, np.floating):
        return float((values != reference).mean()) if values.size else 0.0
    return relative_l2(values, reference) if np.any(reference) else float(np.abs(values).max(initial=0))


def worst_errors(
    run: Run, examples: Sequence[Mapping[str, np.ndarray]], answers: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The largest error of every output over all examples; NaN stays NaN."""
    worst: dict[str, float] = dict.fromkeys(answers[0], 0.0)
    for example, answer in zip(examples, answers, strict=True):
        outputs = run(example)
        for name, reference in answer.items():
            worst[name] = float(np.maximum(worst[name], output_error(outputs[name], reference)))
    return worst


# --- the job --------------------------------------------------------------------------------------------------


@dataclass
class ForeignJob:
    """One file on its way to a plan that was compared with onnxruntime."""

    model: ForeignModel
    precision: str
    plan_path: Path
    options: BuildOptions
    examples: list[dict[str, np.ndarray]]
    num_layers: int = 0
    plan_bytes: int = 0
    seconds_network: float = 0.0
    seconds_build: float = 0.0
    executed_by: str = "nobody"
    not_executed_because: str | None = None
    not_compared_because: str | None = None
    not_proved_because: str | None = None  # why ``structure`` was not looked at, though it was asked for
    errors: dict[str, float] = field(default_factory=dict)  # by output
    structure: dict[str, float] | None = None  # without the roundings of a conversion; None: not looked at
    latency: dict[str, Latency] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """Largest error that is accepted: that of the narrowest type, be it the file's own."""
        types = {value.dtype for value in self.model.model.graph.initializers.values()}
        kind = self.precision
        if kind == "fp32" and not self.model.operators.isdisjoint(QUANTIZED):
            kind = "int8"
        elif kind == "fp32" and ir.DataType.BFLOAT16 in types:
            kind = "bf16"
        elif kind == "fp32" and ir.DataType.FLOAT16 in types:
            kind = "fp16"
        return TOLERANCES[kind]

    @property
    def agrees(self) -> bool | None:
        """Whether the outputs are onnxruntime's, within tolerance; None: not compared."""
        if self.not_compared_because is not None:
            return None
        structure = (self.structure or {}).values()
        return all(error <= self.tolerance for error in self.errors.values()) and all(
            error <= TOLERANCES["fp32"] for error in structure
        )  # a NaN is never <=

    def as_dict(self) -> dict[str, Any]:
        """What --json writes."""
        return {
            "way": "onnx2trt.py",
            "tensorrt": tensorrt_product.describe(),
            "onnx": str(self.model.path),
            "inputs": {one.role: one.name for one in self.model.inputs},
            "profile": self.options.profile,
            "precision": self.precision,
            "executed_by": self.executed_by,
            "not_executed_because": self.not_executed_because,
            "not_compared_because": self.not_compared_because,
            "not_proved_because": self.not_proved_because,
            "num_layers": self.num_layers,
            "plan": str(self.plan_path),
            "plan_bytes": self.plan_bytes,
            "seconds_network": self.seconds_network,
            "seconds_build": self.seconds_build,
            "tolerance": self.tolerance,
            "within_tolerance": self.agrees,
            "errors": self.errors,
            "structure": self.structure,
            "latency_ms": {name: asdict(latency) for name, latency in self.latency.items()},
        }


def prepare(path: Path, options: ParserOptions) -> ForeignJob:
    """Checks everything that can be checked before the long work."""
    import_onnxruntime()
    model = ForeignModel.load(path, options.inputs)
    mark = "" if options.precision == "fp32" else f".{options.precision}"
    plan = options.plan or path.with_suffix(f"{mark}.plan")
    for output in filter(None, (plan, options.json)):
        make_folder(output.parent)
        if output.exists() and any(output.samefile(one) for one in (path, *_data_files(path, model.model))):
            raise UserError(f"{output} belongs to the ONNX file itself; name another file to write")
    seq_len, batch = model.sequence_range(options.seq_len), model.batch_range(options.batch)
    build = BuildOptions(
        seq_len,
        batch,
        compute_capabilities=options.compute_capability,
        timing_cache=plan.with_name("timing.cache"),
        profile=model.profile(seq_len, batch),
    )
    warn_of_missing_bindings()
    return ForeignJob(model, options.precision, plan, build, model.examples(seq_len, batch))


def run(path: Path, options: ParserOptions) -> ForeignJob:
    """Parses the file, builds the plan, runs it, compares it with onnxruntime.

    Raises:
        UserError: the file or an option is wrong, or the parser or the builder refuses the file.
    """
    job = prepare(path, options)
    with open_log(job.plan_path.with_suffix(".log") if options.verbose else None) as log:
        start = time.perf_counter()
        builder, network, parser, contents = parse_foreign(job.model, job.precision, log)
        job.seconds_network, job.num_layers = time.perf_counter() - start, network.num_layers
        info = build_plan(builder, network, log, job.options, job.plan_path)
        job.plan_bytes, job.seconds_build = info.num_bytes, info.seconds_build
        job.not_executed_because = execution_obstacle() or foreign_target(job.options.compute_capabilities)
        try:
            _compare(job, network, contents, not options.no_structure_check)
        except (NotComparedError, UnsupportedLayerError) as error:
            job.not_compared_because = str(error)
        del parser  # the network's weights were its own
    return job


def _compare(
    job: ForeignJob, network: trt.INetworkDefinition, contents: NetworkContents, proves_structure: bool
) -> None:
    check_constants(network, contents)
    answers = onnxruntime_answers(job.model.path, job.examples)
    if job.not_executed_because is None:
        job.executed_by = "tensorrt"
        with InferHelper(job.plan_path, checks_batch=False) as helper:
            job.errors = worst_errors(helper.infer, job.examples, answers)
            job.latency["enqueue"] = helper.benchmark(job.examples[-1], TIMED_RUNS)
            if graph_obstacle() is None:
                job.latency["cuda_graph"] = helper.benchmark(job.examples[-1], TIMED_RUNS, cuda_graph=True)
    else:
        job.errors = worst_errors(_pytorch_run(network, contents), job.examples, answers)
        job.executed_by = "pytorch"
    if proves_structure and job.precision != "fp32":
        try:
            job.structure = worst_errors(_pytorch_run(network, contents, in_fp32=True), job.examples, answers)
        except (NotComparedError, UnsupportedLayerError) as error:  # the plan itself was compared
            job.not_proved_because = str(error)


def _pytorch_run(network: trt.INetworkDefinition, contents: NetworkContents, in_fp32: bool = False) -> Run:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    runner = NetworkRunner(network, device, contents=contents, in_fp32=in_fp32, checks_batch=False)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            with log_console.status(f"running the network with PyTorch on {device}{' in fp32' if in_fp32 else ''}"):
                outputs = runner.run(inputs)
        except UserError:
            raise
        except Exception as error:  # PyTorch's; a layer that the runner does not run as TensorRT would
            raise NotComparedError(
                f"network_runner cannot run the network: {' '.join(str(error).split())}"
            ) from error
        return {
            name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
            for name, tensor in outputs.items()
        }

    return run


def print_report(job: ForeignJob) -> None:
    """Prints one table, and what stands behind it."""
    table = Table(title=Text(str(job.model.path)), title_justify="left")
    for heading in ("", f"onnx2trt.py {job.precision}"):
        table.add_column(heading, overflow="fold")
    for one in job.model.inputs:
        shapes = [" x ".join(map(str, shape)) for shape in (job.options.profile or {})[one.name]]
        table.add_row(f"input: {one.role}", Text(f"{one.name} {one.dtype.name} {', '.join(dict.fromkeys(shapes))}"))
    for name, error in job.errors.items():
        limit = f"{error:.2e} (at most {job.tolerance:.0e})"
        table.add_row(Text(f"error of output {name}"), limit)
    if job.structure is not None:
        limit = f"{max(job.structure.values(), key=_nan_last):.2e} (at most {TOLERANCES['fp32']:.0e})"
        table.add_row("without roundings, worst", limit)
    table.add_row("network layers", str(job.num_layers))
    table.add_row("plan", f"{job.plan_bytes / 2**20:.2f} MiB")
    table.add_row("seconds for network + plan", f"{job.seconds_network:.2f} + {job.seconds_build:.2f}")
    table.add_row("network run by", {"tensorrt": "TensorRT", "pytorch": "PyTorch"}.get(job.executed_by, "nobody"))
    for name, times in job.latency.items():
        table.add_row(f"milliseconds, median (p99), {name}", f"{times.median:.3f} ({times.p99:.3f})")
    verdict = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "[bold yellow]not compared[/]"}[job.agrees]
    table.add_row("agrees with onnxruntime", verdict)
    console.print(table)
    told = f"Plan built by {tensorrt_product.describe()}: {job.plan_path}"
    if job.not_executed_because is not None:
        told += f"; not executed: {job.not_executed_because}"
    if job.executed_by == "pytorch":
        told += ". The results above are those of the same network definition, run by PyTorch"
    console.print(Text(f"{told}."), soft_wrap=True)
    if job.not_compared_because is not None:
        console.print(Text(f"The plan is written, but not compared: {job.not_compared_because}"), soft_wrap=True)
    if job.not_proved_because is not None:
        told = f"The network was not run without its roundings: {job.not_proved_because}"
        console.print(Text(told), soft_wrap=True)


def _nan_last(error: float) -> tuple[bool, float]:
    return bool(np.isnan(error)), error
