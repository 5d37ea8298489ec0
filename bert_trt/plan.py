"""``build_plan`` builds a network into a plan file with a description beside it; ``check_plan`` reads both back."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bert_trt import interrupts, tensorrt_product
from bert_trt.console import UserError, log_console, warn
from bert_trt.files import atomic_write
from bert_trt.model_files import LENGTHS_NAME, SEQUENCE_LENGTHS_NAME
from bert_trt.options import ONE_SEQUENCE, SequenceRange
from bert_trt.tensorrt_log import LOGGER, TrtLog, called_by_tensorrt, has_failed, raise_failure
from bert_trt.tensorrt_product import IS_RTX, trt
from bert_trt.tensors import as_tuple


def profile_shapes(name: str, shape: Sequence[int], seq_len: SequenceRange, batch: SequenceRange) -> list[list[int]]:
    """The [minimum, optimum, maximum] shape of an input. Its last dynamic axis is S, an earlier dynamic axis is B.

    Args:
        name: the input's name.
        shape: the network's shape: (1, -1) for one sequence, (-1, -1) for a padded batch, (-1,) for a packed batch.
        seq_len: the range of S.
        batch: the range of B, the number of sequences in a batch.
    """
    pairs = list(zip(batch.as_tuple(), seq_len.as_tuple(), strict=True))
    if name == LENGTHS_NAME:  # cu_seqlens
        return [[sequences + 1] for sequences, _ in pairs]
    if name == SEQUENCE_LENGTHS_NAME:
        return [[sequences] for sequences, _ in pairs]
    if len(shape) == 1:
        return [[sequences * length] for sequences, length in pairs]
    last = max((axis for axis, size in enumerate(shape) if size == -1), default=-1)
    return [
        [size if size != -1 else length if axis == last else sequences for axis, size in enumerate(shape)]
        for sequences, length in pairs
    ]


@dataclass(frozen=True)
class PlanInfo:
    """The content of ``PLAN.json`` beside a plan, which shows without a GPU whether the plan can be used."""

    product: str
    version: str
    compute_capabilities: list[str]  # empty if TensorRT chose them
    crc32: int
    num_bytes: int
    profile: dict[str, list[list[int]]]  # input name -> [minimum, optimum, maximum] shape
    num_layers: int
    seconds_build: float
    plugin_library: str  # file name of the library whose plugins the plan uses; "" without plugins
    plugins_embedded: bool  # the plan holds that library


@dataclass
class BuildOptions:
    """The options of a build."""

    seq_len: SequenceRange
    batch: SequenceRange = ONE_SEQUENCE
    allow_tf32: bool = False  # fp32 products on tensor cores, with 10 bits of mantissa
    compute_capabilities: list[str] = field(default_factory=list)  # "8.6", rtx only
    timing_cache: Path | None = None  # full product only
    plugin_library: Path | None = None  # the library of the network's plugins
    embed_plugins: bool = True  # store that library in the plan, which then loads without the library's file
    profile: dict[str, list[list[int]]] | None = None  # shapes by input; None for those of ``profile_shapes``


@interrupts.uninterrupted()
def create_builder(log: TrtLog) -> tuple[trt.Builder, trt.INetworkDefinition]:
    """A builder and an empty, strongly typed network.

    Raises:
        UserError: TensorRT cannot start, for example the full product on a machine without a GPU.
    """
    try:
        builder = trt.Builder(LOGGER)
        network = create_network(builder)
    except (RuntimeError, TypeError) as error:  # pybind raises a TypeError for a null pointer
        raise UserError(
            f"{tensorrt_product.describe()} cannot create a builder: {log.take_errors()}. The full tensorrt needs "
            "an NVIDIA GPU; tensorrt_rtx builds without one (pip install -r requirements.txt)"
        ) from error
    return builder, network


def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
    """An empty, strongly typed network."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def parse_onnx(parser: trt.OnnxParser, model: bytes, path: Path, log: TrtLog) -> None:
    """Parses an ONNX model into the parser's network.

    Args:
        parser: the parser of an empty network; it owns the weights that it reads.
        model: the serialized model.
        path: the model's path, to which the paths of weights outside the model are relative.
        log: the log of the network's builder.

    Raises:
        UserError: the parser refuses the model; the message contains the parser's errors.
    """
    with interrupts.uninterrupted():
        # The path is passed as bytes, since it need not be valid UTF-8.
        parsed = parser.parse(model, os.fsencode(path))  # pyright: ignore[reportArgumentType]
    if not parsed:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in errors]
        raise UserError(f"the ONNX parser refuses {path}: {'; '.join(reasons) or log.take_errors()}")


def build_plan(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    log: TrtLog,
    options: BuildOptions,
    path: Path,
) -> PlanInfo:
    """Builds the network and writes the plan to ``path`` and its description to ``path``.json.

    Args:
        builder: the network's builder.
        network: the network, its outputs marked.
        log: the builder's log.
        options: profile, targets, caches.
        path: the plan file.

    Raises:
        UserError: TensorRT refuses the network or the options, or the file cannot be written.
    """
    config = builder.create_builder_config()
    profile = add_profile(builder, network, config, options)
    if not options.allow_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    set_compute_capabilities(config, options.compute_capabilities)
    if options.plugin_library is not None and options.embed_plugins:
        library = os.fsencode(options.plugin_library)  # bytes, since a path need not be valid UTF-8
        config.plugins_to_serialize = [library]  # pyright: ignore[reportAttributeAccessIssue]
    start = time.perf_counter()
    with atomic_write(path) as file:
        with timing_cache(config, options.timing_cache), build_progress(config) as monitor:
            checksum, size = _build_to_file(builder, network, config, log, path, file, monitor)
        info = PlanInfo(
            product=tensorrt_product.PRODUCT,
            version=tensorrt_product.VERSION,
            compute_capabilities=options.compute_capabilities,
            crc32=checksum,
            num_bytes=size,
            profile=profile,
            num_layers=network.num_layers,
            seconds_build=time.perf_counter() - start,
            plugin_library=options.plugin_library.name if options.plugin_library else "",
            plugins_embedded=options.plugin_library is not None and options.embed_plugins,
        )
        with atomic_write(
            info_path(path)
        ) as description:  # before the plan is renamed: both files appear, or neither
            description.write(json.dumps(asdict(info), indent=2).encode())
    return info


def info_path(plan: Path) -> Path:
    """The path of a plan's description."""
    return plan.with_name(plan.name + ".json")


def add_profile(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    options: BuildOptions,
) -> dict[str, list[list[int]]]:
    """Adds the optimization profile, the range of every dynamic axis of every input. Returns the shapes by input."""
    profile = builder.create_optimization_profile()
    shapes: dict[str, list[list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes[tensor.name] = (
            profile_shapes(tensor.name, as_tuple(tensor.shape), options.seq_len, options.batch)
            if options.profile is None
            else options.profile[tensor.name]
        )
        profile.set_shape(tensor.name, *(trt.Dims(shape) for shape in shapes[tensor.name]))
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"TensorRT refused the profile {shapes}")
    return shapes


def set_compute_capabilities(config: trt.IBuilderConfig, capabilities: Sequence[str]) -> None:
    """Targets the given GPUs, e.g. ``["8.6", "8.9"]``; an empty list leaves the choice to TensorRT.

    Raises:
        UserError: the product only builds for the GPU it runs on, or does not support one of them.
    """
    if not capabilities:
        return
    if not IS_RTX:
        raise UserError(
            f"--compute-capability: {tensorrt_product.describe()} builds for the GPU of this machine only; "
            "leave the option out, or install tensorrt_rtx and set BERT_TENSORRT_PRODUCT=tensorrt_rtx"
        )
    rtx_config: Any = config  # these attributes are not in the full product's types
    targets = getattr(trt, "ComputeCapability").__members__  # noqa: B009
    rtx_config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = "SM" + capability.replace(".", "")
        if name not in targets:
            supported = ", ".join(f"{key[2:-1]}.{key[-1]}" for key in targets if key.startswith("SM"))
            raise UserError(
                f"--compute-capability {capability}: not a target of {tensorrt_product.describe()}; "
                f"expected some of {supported}"
            )
        rtx_config.set_compute_capability(targets[name], index)


@contextmanager
def timing_cache(config: trt.IBuilderConfig, path: Path | None) -> Iterator[None]:
    """Uses the kernel timings of earlier builds and stores those of this one.

    Only the full product times kernels when it builds; tensorrt_rtx would look for a GPU. A cache that is damaged, or
    from another GPU or version, is replaced. A problem with the cache is a warning, since it should not fail a build.
    """
    if path is None or IS_RTX:
        yield
        return
    usable = _use_timings(config, _earlier_timings(path)) or _use_timings(config, b"")
    yield
    cache = config.get_timing_cache() if usable else None
    timings = None if cache is None else cache.serialize()
    if timings is None:
        warn(f"TensorRT offers no timing cache: {path} is not written, and the next build takes as long as this one")
        return
    try:
        with atomic_write(path) as file:
            file.write(memoryview(timings))
    except UserError as error:
        warn(f"the timing cache is not kept: {error}")


def _earlier_timings(path: Path) -> bytes:
    """The timing cache of an earlier build; empty if there is none, or it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        warn(f"cannot read the timing cache {path} ({error.strerror}); kernels are timed afresh")
        return b""


def _use_timings(config: trt.IBuilderConfig, timings: bytes) -> bool:
    """Sets the builder's timing cache. Returns whether TensorRT accepts it."""
    try:
        cache = config.create_timing_cache(timings)
        return cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    except (RuntimeError, TypeError, ValueError):  # pybind raises one of these for a null pointer
        return False


class _ProgressMonitor(trt.IProgressMonitor):
    """Shows TensorRT's nested build phases as progress bars, and can stop a build.

    Attributes:
        is_cancelled: whether the build is to stop; another thread sets it.
    """

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self.is_cancelled = False

    def cancel(self) -> None:
        """Makes TensorRT stop after the current step."""
        self.is_cancelled = True

    @called_by_tensorrt()
    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        """Called by TensorRT."""
        indent = "  " if parent_phase else ""
        self._tasks[phase_name] = self._progress.add_task(indent + phase_name, total=num_steps)

    @called_by_tensorrt(answer=False)
    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False stops the build."""
        if phase_name in self._tasks:
            self._progress.update(self._tasks[phase_name], completed=step + 1)
        return not self.is_cancelled and not has_failed()

    @called_by_tensorrt()
    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT."""
        if phase_name in self._tasks:
            self._progress.remove_task(self._tasks.pop(phase_name))


@contextmanager
def build_progress(config: trt.IBuilderConfig) -> Iterator[_ProgressMonitor]:
    """Shows the build's progress on a terminal. Yields the monitor, which can cancel the build."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    is_shown = log_console.is_terminal
    with Progress(*columns, console=log_console, transient=True, disable=not is_shown) as progress:
        monitor = config.progress_monitor = _ProgressMonitor(progress)
        yield monitor


class _PlanWriter(trt.IStreamWriter):
    """Receives a plan from TensorRT piece by piece and writes it to a file.

    The plan is never in memory as a whole, which saves as much memory as all weights take.
    """

    def __init__(self, file: IO[bytes]) -> None:
        trt.IStreamWriter.__init__(self)
        self._file = file
        self.crc32 = 0
        self.num_bytes = 0

    @called_by_tensorrt(answer=0)
    def write(self, data: bytes) -> int:
        """Called by TensorRT, which stops the build if the returned number of bytes is less than the data's."""
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.num_bytes += len(data)
        return len(data)


def _build_to_file(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    log: TrtLog,
    path: Path,
    file: IO[bytes],
    monitor: _ProgressMonitor,
) -> tuple[int, int]:
    """Builds the plan and writes it to ``file``, the new content of ``path``. Returns (CRC-32, number of bytes)."""
    raise_failure()
    writer = _PlanWriter(file)
    built = _run_in_thread(
        lambda: builder.build_serialized_network_to_stream(network, config, writer), cancel=monitor.cancel
    )
    raise_failure()
    if not built:
        raise UserError(f"TensorRT could not build the plan: {log.take_errors()}")
    if writer.num_bytes == 0:
        raise UserError(
            f"TensorRT says that it built the plan {path}, but wrote 0 bytes: {log.take_errors()}; build it "
            "again with --verbose and report what the log says"
        )
    return writer.crc32, writer.num_bytes


def _run_in_thread(work: Callable[[], bool], cancel: Callable[[], None]) -> bool:
    """Runs ``work`` in another thread, so that the main thread can handle Ctrl-C while ``work`` is in C++.

    After Ctrl-C it calls ``cancel`` and waits until ``work`` has stopped, since ``work`` uses objects of the caller.
    """
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(work)
        try:
            return result.result()
        except KeyboardInterrupt:
            with interrupts.uninterrupted():
                cancel()
                wait([result])
            raise


# --- reading a plan -----------------------------------------------------------------------------------------


class PlanError(UserError):
    """A plan cannot be used; the message says why and what to do."""


def check_plan(path: Path) -> bytes:
    """Reads a plan and checks it against its description, which needs no GPU.

    Raises:
        PlanError: the file is missing, corrupt or truncated, or was built by another TensorRT.
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror}; build it with builder.py") from error
    if not plan:
        raise PlanError(f"the plan {path} is empty; build it again")
    info = read_info(path)
    if info is None:
        return plan  # a plan of another program: TensorRT itself checks it
    if len(plan) != info.num_bytes or zlib.crc32(plan) != info.crc32:
        raise PlanError(
            f"the plan {path} ({len(plan)} bytes) is not the one that {info_path(path).name} describes "
            f"({info.num_bytes} bytes): it is corrupt or truncated; build it again"
        )
    built_by = f"{info.product} {info.version}"
    if built_by != tensorrt_product.describe():
        raise PlanError(
            f"the plan {path} was built by {built_by}, but this is {tensorrt_product.describe()}; plans are tied to "
            "product and version: build it again"
        )
    return plan


def read_info(plan: Path) -> PlanInfo | None:
    """The description of a plan; None if there is none.

    Raises:
        PlanError: the description is not readable.
    """
    path = info_path(plan)
    if not path.is_file():
        return None
    try:
        return PlanInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PlanError(f"{path} is not readable ({error}); build the plan again") from error
