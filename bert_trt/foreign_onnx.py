"""Plans from ONNX files that others exported: ``python onnx2trt.py --onnx FILE``.

Such a file comes without a tokenizer and without PyTorch's outputs. The names of its inputs say what they mean. The
tables that they index say how large ids may be. The network is compared with onnxruntime on the same file, on batches
of random tokens of several lengths, padded where the file takes an attention mask.

The plan is written before it is compared. If it cannot be compared, because network_runner.py lacks a layer or
onnxruntime an operator, the report says so, and the exit code is 1 as for a plan that does not agree.
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
from bert_trt.files import check_outputs, make_folder
from bert_trt.inference import InferHelper, Latency, execution_obstacle, graph_obstacle
from bert_trt.network import DefinedNetwork, NetworkContents
from bert_trt.network_proof import check_constants
from bert_trt.network_runner import NetworkRunner, UnsupportedLayerError, best_device
from bert_trt.onnx_conversion import serialize
from bert_trt.onnx_precision import QUANTIZED, NarrowGraph
from bert_trt.options import TOLERANCES, ParserOptions, SequenceRange
from bert_trt.pipeline import (
    DEFAULT_SEQ_LEN,
    TIMED_RUNS,
    TIMING_CACHE_NAME,
    foreign_target,
    open_log,
    warn_of_missing_bindings,
)
from bert_trt.plan import BuildOptions, build_plan, create_builder, info_path, parse_onnx
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import trt

NAMES = {  # what exporters call the inputs, without the prefix and suffix of TensorFlow
    "ids": ("input_ids", "ids", "input", "inputs", "token_ids", "tokens", "input_word_ids"),
    "mask": ("attention_mask", "mask", "input_mask", "att_mask", "attention_masks"),
    "types": ("token_type_ids", "types", "segment_ids", "token_types", "segments", "input_type_ids"),
    "positions": ("position_ids", "positions", "pos_ids"),
}
INTEGER_TYPES = (ir.DataType.INT64, ir.DataType.INT32)
MASK_TYPES = (*INTEGER_TYPES, ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.FLOAT16)
INDEX_OPERATORS = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten")  # the indices keep their values
TABLE_OPERATORS = ("Cast", "Identity", "DequantizeLinear")
DEFAULT_BATCH = SequenceRange(1, 8, 32)


@dataclass(frozen=True)
class ForeignInput:
    """An input of the file: (S,), (B, S), or a mask up to (B, N, S, S).

    Attributes:
        name: as the file has it.
        role: one of ``INPUT_ROLES``.
        dtype: its element type.
        shape: -1 on dynamic axes.
    """

    name: str
    role: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    def axes(self, batch: int, length: int) -> tuple[int, ...]:
        """The input's shape for ``batch`` sequences of ``length`` tokens; fixed axes keep their size."""
        rank = len(self.shape)
        sizes = [batch, 1, length, length] if rank == 4 else [batch, length, length][:rank] if rank > 1 else [length]
        return tuple(size if fixed == -1 else fixed for size, fixed in zip(sizes, self.shape, strict=True))

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype.name} {list(self.shape)}"


@dataclass(frozen=True)
class ForeignModel:
    """An ONNX file with the meaning of its inputs.

    Attributes:
        path: the file.
        model: the graph; weights are read on access.
        inputs: in the file's order.
        rows: by role of an input, the number of rows of the table that it indexes, if the graph has such a table.
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
            names: input names by role, for inputs whose names are not among ``NAMES``.

        Raises:
            UserError: the file is missing, damaged or no BERT, its data is missing, or an input's meaning is unclear.
        """
        model = _load(path)
        _check_data(path, model)
        inputs = _inputs(path, model, names)
        return cls(path, model, inputs, _table_rows(model, inputs))

    @property
    def operators(self) -> set[str]:
        """The operators of the graph's nodes."""
        return {node.op_type for node in self.model.graph}

    def sequence_range(self, requested: SequenceRange | None) -> SequenceRange:
        """The sequence lengths that the plan accepts: those requested, or the default.

        Raises:
            UserError: the file has another fixed length, or fewer positions than requested.
        """
        fixed = {tensor.shape[-1] for tensor in self.inputs} - {-1}
        positions = self.rows.get("positions", max(DEFAULT_SEQ_LEN))
        default = SequenceRange(*(min(length, positions) for length in DEFAULT_SEQ_LEN))
        if "positions" in self.rows and requested is not None:
            requested.check(positions)
        return self._range("length", fixed, requested, default, "--seq-len")

    def batch_range(self, requested: SequenceRange | None) -> SequenceRange:
        """The batch sizes that the plan accepts: those requested, or the default.

        Raises:
            UserError: the file has another fixed batch size.
        """
        ids = next(tensor for tensor in self.inputs if tensor.role == "ids")
        fixed = {ids.shape[0]} - {-1} if len(ids.shape) == 2 else {1}
        return self._range("batch", fixed, requested, DEFAULT_BATCH, "--batch")

    def _range(
        self, what: str, fixed: set[int], requested: SequenceRange | None, default: SequenceRange, option: str
    ) -> SequenceRange:
        if len(fixed) > 1:
            raise UserError(f"{self.path}: its inputs have different fixed sizes of the {what}: {sorted(fixed)}")
        if not fixed:
            return requested or default
        (size,) = fixed
        only = SequenceRange(size, size, size)
        if requested not in (None, only):
            raise UserError(
                f"{self.path} has the fixed {what} {size}; leave {option} out, or export it with dynamic axes"
            )
        return only

    def profile(self, seq_len: SequenceRange, batch: SequenceRange) -> dict[str, list[list[int]]]:
        """[minimum, optimum, maximum] of every input's shape."""
        pairs = list(zip(batch.as_tuple(), seq_len.as_tuple(), strict=True))
        return {tensor.name: [list(tensor.axes(*pair)) for pair in pairs] for tensor in self.inputs}

    def examples(self, seq_len: SequenceRange, batch: SequenceRange) -> list[dict[str, np.ndarray]]:
        """Random inputs to compare: small batches of the minimum, optimum and maximum length."""
        generator = np.random.default_rng(0)
        sizes = [max(batch.minimum, min(size, batch.maximum)) for size in (1, 3, 2)]
        pairs = sorted(set(zip(sizes, seq_len.as_tuple(), strict=True)))
        return [{tensor.name: self._values(tensor, *pair, generator) for tensor in self.inputs} for pair in pairs]

    def _values(self, tensor: ForeignInput, batch: int, length: int, generator: np.random.Generator) -> np.ndarray:
        """Values for one input: random ids, both token types, ascending positions, a mask of shorter and shorter
        sequences."""
        shape = tensor.axes(batch, length)
        position = np.arange(shape[-1])
        if tensor.role == "ids":
            values = generator.integers(0, self.rows.get("ids", 100), shape)
        elif tensor.role == "types":
            values = np.broadcast_to((position >= len(position) // 2) * (self.rows.get("types", 1) > 1), shape)
        elif tensor.role == "positions":
            values = np.broadcast_to(position, shape)
        else:
            lengths = np.array([max(1, len(position) - row * len(position) // 4) for row in range(shape[0])])
            visible = position < lengths.reshape(-1, *[1] * (len(shape) - 1))
            values = np.broadcast_to(visible, shape)
            if len(shape) > 2 and tensor.dtype.is_floating_point():  # an additive mask
                values = np.where(values, 0, np.finfo(tensor.dtype.numpy()).min)
        return np.array(values, tensor.dtype.numpy(), order="C")


# --- reading the file -----------------------------------------------------------------------------------------


def _load(path: Path) -> ir.Model:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the .onnx file in it: --onnx {path / 'model.onnx'}")
    if not path.is_file():
        raise UserError(f"no ONNX file at {path}")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not a readable ONNX file ({reason}); it is damaged, or of another format"
        ) from error
    if not len(model.graph) or not model.opset_imports:
        raise UserError(f"{path} holds no complete graph: it is empty or truncated")
    return model


def _check_data(path: Path, model: ir.Model) -> None:
    """Checks that weights outside the file are in its folder and complete. A link in the folder may lead elsewhere,
    as in the hub's cache."""
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
    """The files that hold weights outside the ONNX file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return {path.parent / tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def _inputs(path: Path, model: ir.Model, names: Mapping[str, str]) -> tuple[ForeignInput, ...]:
    """The inputs with their roles, in the file's order."""
    usual_roles = {name: role for role, usual in NAMES.items() for name in usual}
    named_roles = {name: role for role, name in names.items()}
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    unknown = sorted(named_roles.keys() - {value.name for value in values})
    if unknown:
        raise UserError(f"--inputs: {path} has no input {unknown[0]!r}; it has {_describe(values)}")
    by_role: dict[str, ForeignInput] = {}
    for value in values:
        name = str(value.name)
        role = named_roles.get(name) or usual_roles.get(name.rpartition("/")[2].partition(":")[0].lower(), "")
        if not role or role in by_role:
            break
        shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in value.shape or ())
        by_role[role] = ForeignInput(name, role, value.dtype or ir.DataType.UNDEFINED, shape)
    if len(by_role) < len(values) or "ids" not in by_role:
        raise UserError(
            f"{path} has the inputs {_describe(values)}; expected those of a BERT: token ids, called "
            f"{' or '.join(NAMES['ids'][:2])}, and if it takes them a mask, token types and positions. If it is one, "
            "say which input is which: --inputs ids=NAME,mask=NAME,types=NAME,positions=NAME"
        )
    for tensor in by_role.values():
        types, ranks = (MASK_TYPES, (1, 2, 3, 4)) if tensor.role == "mask" else (INTEGER_TYPES, (1, 2))
        if tensor.dtype not in types or len(tensor.shape) not in ranks:
            raise UserError(f"{path}: the {tensor.role} are the input {tensor}, expected (B, S) of {types[0].name}")
    return tuple(by_role.values())


def _describe(values: Sequence[ir.Value]) -> str:
    """Names, types and shapes in one string."""
    return (
        ", ".join(
            f"{value.name!r} {value.dtype.name if value.dtype else ''} {value.shape if value.shape else '[]'}"
            for value in values
        )
        or "none"
    )


def _table_rows(model: ir.Model, inputs: Sequence[ForeignInput]) -> dict[str, int]:
    """The number of rows of each table from which rows are gathered, by the role of the input that indexes it."""
    roles, rows = {tensor.name: tensor.role for tensor in inputs}, {}
    for node in model.graph:
        if node.op_type != "Gather" or ("axis" in node.attributes and node.attributes["axis"].as_int() != 0):
            continue
        table, indices = _origin(node.inputs[0], TABLE_OPERATORS), _origin(node.inputs[1], INDEX_OPERATORS)
        if table is None or indices is None or not table.is_initializer() or len(table.shape or ()) != 2:
            continue
        role = roles.get(str(indices.name), "positions")  # often constants, or computed from the length
        rows[role] = max(rows.get(role, 0), int(table.shape[0]))  # pyright: ignore[reportOptionalSubscript,reportArgumentType]
    return rows


def _origin(value: ir.Value | None, operators: Sequence[str]) -> ir.Value | None:
    """The value from which ``value`` is computed by ``operators`` alone."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type in operators:
        value = producer.inputs[0]
    return value


# --- the network and what it is compared with ---------------------------------------------------------------------


def parse_foreign(model: ForeignModel, precision: str, log: TrtLog) -> DefinedNetwork:
    """Parses the file, converted to the precision.

    Args:
        model: the file.
        precision: fp32, fp16 or bf16.
        log: receives TensorRT's messages.

    Raises:
        UserError: a weight does not fit the precision, or the parser refuses the file, in its own words.
    """
    builder, network = create_builder(log)
    data, contents = _model_bytes(model, precision)
    parser = trt.OnnxParser(network, LOGGER)
    parse_onnx(parser, data, model.path, log)
    return DefinedNetwork(builder, network, contents, owner=parser)


def _model_bytes(model: ForeignModel, precision: str) -> tuple[bytes, NetworkContents]:
    """The ONNX model in the precision, serialized, and its converted constants."""
    if precision == "fp32" and "Attention" not in model.operators:
        return model.path.read_bytes(), NetworkContents()
    converted = ir.load(model.path)
    for node in converted.graph:
        if node.op_type == "Attention":  # see TrtNetworkHelper.addAttention
            node.attributes.add(ir.AttrInt64("TRT_decomposable", 1))
    contents = NetworkContents()
    if precision != "fp32":
        _follow_links(converted, model.path.parent)
        narrow = NarrowGraph(converted, precision)
        narrow.run()
        for value in converted.graph.initializers.values():  # those that stayed fp32
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        contents = NetworkContents(narrow.weights, {}, narrow.sources)
    return serialize(converted, f"{model.path} in {precision}"), contents


def _follow_links(model: ir.Model, folder: Path) -> None:
    """Lets onnx_ir read data files that are links, as in the hub's cache; ``_check_data`` has checked them."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            target = folder.absolute() / tensor.location  # absolute, so that onnx_ir accepts a link out of the folder
            value.const_value = ir.ExternalTensor(
                target, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )


def import_onnxruntime() -> Any:
    """Imports the package onnxruntime.

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
    """Runs the file with onnxruntime on the CPU.

    Returns:
        The outputs by name, for each example.

    Raises:
        NotComparedError: onnxruntime cannot read or run the file; the message quotes it.
    """
    runtime = import_onnxruntime()
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(None, dict(example)), strict=True)) for example in examples]
    except Exception as error:  # its exceptions have no base class of their own
        raise NotComparedError(f"onnxruntime cannot run {path}: {' '.join(str(error).split())}") from error


class NotComparedError(UserError):
    """The plan is built but cannot be compared; the message says why."""


Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def output_error(values: np.ndarray, reference: np.ndarray) -> float:
    """The relative L2 error, or, for integers and booleans, the share of elements that differ."""
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
class ForeignResult:
    """A plan and its comparison with onnxruntime."""

    model: ForeignModel
    precision: str
    plan_path: Path
    profile: dict[str, list[list[int]]]  # input name -> [minimum, optimum, maximum] shape
    num_layers: int = 0
    plan_bytes: int = 0
    seconds_network: float = 0.0
    seconds_build: float = 0.0
    executed_by: str = "nobody"
    not_executed_because: str | None = None
    not_compared_because: str | None = None
    not_proved_because: str | None = None  # why ``structure`` could not be computed
    errors: dict[str, float] = field(default_factory=dict)  # by output
    structure: dict[str, float] | None = None  # errors without the precision's roundings; None: not computed
    latency: dict[str, Latency] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """The largest accepted error: that of the narrowest type, including the types in the file."""
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
        """Whether the outputs are onnxruntime's within tolerance; None: not compared."""
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
            "inputs": {tensor.role: tensor.name for tensor in self.model.inputs},
            "profile": self.profile,
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


def run(path: Path, options: ParserOptions) -> ForeignResult:
    """Parses the file, builds the plan, runs it and compares it with onnxruntime.

    Args:
        path: the ONNX file.
        options: precision, profile, files; what belongs to a folder by model2onnx.py is ignored.

    Raises:
        UserError: onnxruntime is not installed, the file or an option is wrong, or the parser or the builder refuses
            the file.
    """
    import_onnxruntime()
    model = ForeignModel.load(path, options.inputs)
    mark = "" if options.precision == "fp32" else f".{options.precision}"
    plan_path = options.plan or path.with_suffix(f"{mark}.plan")
    log_path = plan_path.with_suffix(".log") if options.verbose else None
    timing_cache = plan_path.with_name(TIMING_CACHE_NAME)
    outputs = {
        "--plan": plan_path,
        "the plan's description": info_path(plan_path),
        "the log of --verbose": log_path,
        "the timing cache": timing_cache,
        "--json": options.json,
    }
    weights = {f"the weights in {file.name}": file for file in _data_files(path, model.model)}
    check_outputs(outputs, {"--onnx": path} | weights)
    for output in filter(None, (plan_path, options.json)):
        make_folder(output.parent)
    seq_len, batch = model.sequence_range(options.seq_len), model.batch_range(options.batch)
    profile = model.profile(seq_len, batch)
    build_options = BuildOptions(
        seq_len,
        batch,
        compute_capabilities=options.compute_capability,
        timing_cache=timing_cache,
        profile=profile,
    )
    warn_of_missing_bindings()
    result = ForeignResult(model, options.precision, plan_path, profile)
    with open_log(log_path) as log:
        start = time.perf_counter()
        defined = parse_foreign(model, options.precision, log)
        result.seconds_network, result.num_layers = time.perf_counter() - start, defined.network.num_layers
        info = build_plan(defined.builder, defined.network, log, build_options, plan_path)
        result.plan_bytes, result.seconds_build = info.num_bytes, info.seconds_build
        result.not_executed_because = execution_obstacle() or foreign_target(options.compute_capability)
        try:
            _compare(result, defined, model.examples(seq_len, batch), not options.no_structure_check)
        except (NotComparedError, UnsupportedLayerError) as error:
            result.not_compared_because = str(error)
    return result


def _compare(
    result: ForeignResult,
    defined: DefinedNetwork,
    examples: Sequence[Mapping[str, np.ndarray]],
    checks_structure: bool,
) -> None:
    check_constants(defined.network, defined.contents)
    answers = onnxruntime_answers(result.model.path, examples)
    if result.not_executed_because is None:
        result.executed_by = "tensorrt"
        with InferHelper(result.plan_path, checks_batch=False) as helper:
            result.errors = worst_errors(helper.infer, examples, answers)
            result.latency["enqueue"] = helper.benchmark(examples[-1], TIMED_RUNS)
            if graph_obstacle() is None:
                result.latency["cuda_graph"] = helper.benchmark(examples[-1], TIMED_RUNS, cuda_graph=True)
    else:
        result.errors = worst_errors(_pytorch_run(defined), examples, answers)
        result.executed_by = "pytorch"
    if checks_structure and result.precision != "fp32":
        try:
            result.structure = worst_errors(_pytorch_run(defined, in_fp32=True), examples, answers)
        except (NotComparedError, UnsupportedLayerError) as error:  # the plan itself was compared
            result.not_proved_because = str(error)


def _pytorch_run(defined: DefinedNetwork, in_fp32: bool = False) -> Run:
    runner = NetworkRunner(
        defined.network, best_device(), contents=defined.contents, in_fp32=in_fp32, checks_batch=False
    )

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            with log_console.status(
                f"running the network with PyTorch on {runner.device}{' in fp32' if in_fp32 else ''}"
            ):
                outputs = runner.run(inputs)
        except UserError:
            raise
        except Exception as error:  # PyTorch's, for a layer that the runner does not run as TensorRT would
            raise NotComparedError(
                f"network_runner cannot run the network: {' '.join(str(error).split())}"
            ) from error
        return {
            name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
            for name, tensor in outputs.items()
        }

    return run


def print_report(result: ForeignResult) -> None:
    """Prints a table of the results, and what they rest on."""
    table = Table(title=Text(str(result.model.path)), title_justify="left")
    for heading in ("", f"onnx2trt.py {result.precision}"):
        table.add_column(heading, overflow="fold")
    for tensor in result.model.inputs:
        shapes = dict.fromkeys(" x ".join(map(str, shape)) for shape in result.profile[tensor.name])
        table.add_row(f"input: {tensor.role}", Text(f"{tensor.name} {tensor.dtype.name} {', '.join(shapes)}"))
    for name, error in result.errors.items():
        table.add_row(Text(f"error of output {name}"), f"{error:.2e} (at most {result.tolerance:.0e})")
    if result.structure is not None:
        worst = max(result.structure.values(), key=_nan_last)
        table.add_row("without roundings, worst", f"{worst:.2e} (at most {TOLERANCES['fp32']:.0e})")
    table.add_row("network layers", str(result.num_layers))
    table.add_row("plan", f"{result.plan_bytes / 2**20:.2f} MiB")
    table.add_row("seconds for network + plan", f"{result.seconds_network:.2f} + {result.seconds_build:.2f}")
    table.add_row("network run by", {"tensorrt": "TensorRT", "pytorch": "PyTorch"}.get(result.executed_by, "nobody"))
    for name, times in result.latency.items():
        table.add_row(f"milliseconds, median (p99), {name}", f"{times.median:.3f} ({times.p99:.3f})")
    verdict = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "[bold yellow]not compared[/]"}[result.agrees]
    table.add_row("agrees with onnxruntime", verdict)
    console.print(table)
    message = f"Plan built by {tensorrt_product.describe()}: {result.plan_path}"
    if result.not_executed_because is not None:
        message += f"; not executed: {result.not_executed_because}"
    if result.executed_by == "pytorch":
        message += ". The results above are those of the same network definition, run by PyTorch"
    console.print(Text(f"{message}."), soft_wrap=True)
    if result.not_compared_because is not None:
        console.print(Text(f"The plan is written, but not compared: {result.not_compared_because}"), soft_wrap=True)
    if result.not_proved_because is not None:
        message = f"The network was not run without its roundings: {result.not_proved_because}"
        console.print(Text(message), soft_wrap=True)


def _nan_last(error: float) -> tuple[bool, float]:
    return bool(np.isnan(error)), error
