"""``InferHelper`` executes plans: device buffers, CUDA graphs and times. ``execution_obstacle`` says why a machine
cannot execute plans.
"""

from __future__ import annotations

import ctypes
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_trt import interrupts, plugin_layers, tensorrt_product
from bert_trt.console import UserError
from bert_trt.element_types import element_type
from bert_trt.packing import check_batch
from bert_trt.plan import PlanError, check_plan, read_info
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from bert_trt.tensors import as_tuple


@dataclass(frozen=True)
class Latency:
    """Times of one inference in milliseconds."""

    runs: int
    median: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """The summary of at least two single times."""
        cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
        return cls(len(milliseconds), statistics.median(milliseconds), cuts[94], cuts[98])


def execution_obstacle() -> str | None:
    """The reason why plans cannot be executed on this machine; None if they can."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA GPU (no driver is installed)"
    try:
        import pycuda.driver as cuda  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return (
            f"pycuda is not installed, or does not work ({error}): pip install -r requirements-pycuda.txt, which "
            "needs a CUDA toolkit"
        )
    try:
        cuda.init()
        if cuda.Device.count() == 0:
            return "no NVIDIA GPU"
    except cuda.Error as error:
        return f"no usable NVIDIA driver ({error})"
    capability = cuda.Device(0).compute_capability()
    if IS_RTX and capability in ((9, 0), (10, 0), (10, 3)):
        name = f"{capability[0]}.{capability[1]}"
        return f"{tensorrt_product.describe()} does not execute on compute capability {name} (data-centre GPUs)"
    return None


def graph_obstacle() -> str | None:
    """The reason why CUDA graphs cannot be captured here; None if they can."""
    try:
        from cuda.bindings import runtime  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"cuda-bindings is not installed, or does not work ({error}): pip install -r requirements-gpu.txt"
    return None


def gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None without one.

    It comes from the driver itself, so that it is known even where the packages that execute plans are missing.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # ..._COMPUTE_CAPABILITY_MAJOR
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ..._COMPUTE_CAPABILITY_MINOR
    )
    return None if failed else (major.value, minor.value)


def check_in_profile(name: str, shape: Sequence[int], profile: Sequence[Sequence[int]]) -> None:
    """Checks one input's shape against [minimum, optimum, maximum].

    Raises:
        UserError: the shape is outside the profile; the message names input, shape and range.
    """
    minimum, _, maximum = profile
    inside = len(shape) == len(minimum) and all(a <= s <= b for a, s, b in zip(minimum, shape, maximum, strict=True))
    if not inside:
        raise UserError(
            f"input {name!r} is {list(shape)}, outside the plan's profile {list(minimum)} to {list(maximum)}; "
            "build the plan with a wider --seq-len MIN,OPT,MAX or --batch MIN,OPT,MAX"
        )


def cast_input(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    """Casts ``values`` to the engine's dtype, contiguous.

    Raises:
        UserError: the cast changes integers, e.g. an id that does not fit int32.
    """
    cast = np.ascontiguousarray(values, dtype=dtype)
    if values.dtype.kind in "iu" and not np.array_equal(cast, values):
        raise UserError(f"input {name!r} has values that do not fit {np.dtype(dtype)}")
    return cast


@interrupts.uninterrupted()
def load_engine(path: Path, plan: bytes, log: TrtLog) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """Deserializes a plan, and loads the plugins that it uses.

    Args:
        path: the plan file; ``PLAN.json`` beside it names the plugin library.
        plan: what ``check_plan`` returned.
        log: collects TensorRT's messages.

    Returns:
        The runtime, which must live as long as the engine, and the engine.

    Raises:
        PlanError: TensorRT refuses the plan.
        UserError: the plan's plugin library is not built.
    """

    log.take_errors()  # discards errors of earlier work
    info = read_info(path)
    embedded = info is not None and info.plugins_embedded
    if info is not None and info.plugin_library and not embedded:
        plugin_layers.load_library()
    runtime = trt.Runtime(LOGGER)
    if embedded:
        runtime.engine_host_code_allowed = True  # only set for a plan that contains a library: it allows host code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        message = log.take_errors()
        if "plugin" in message.lower() or "creator" in message.lower():
            try:
                plugin_layers.load_library()
            except UserError as error:
                message += f" (the built plugin library does not help: {error})"
            else:
                engine = runtime.deserialize_cuda_engine(plan)
                message = message if engine is not None else log.take_errors()
        if engine is None:
            raise PlanError(
                f"TensorRT cannot load the plan {path}: {message}. It is corrupt, for another GPU or from another "
                "TensorRT version; build it on this machine"
            )
    return runtime, engine


class InferHelper:
    """Executes a plan.

    It allocates one stream and the device buffers, for the largest shapes of the profile, once. Use it as a context
    manager, or call ``close``.

    Args:
        plan_path: the plan file; if ``PLAN.json`` is beside it, the plan is checked against it.
        log: collects TensorRT's messages; default: ``TrtLog.current()``.
        checks_batch: ``infer`` checks masks and cu_seqlens; False for networks whose inputs of these names differ.

    Raises:
        PlanError: the plan is missing, corrupt, from another TensorRT version, or for another GPU.
        UserError: this machine cannot execute plans.
    """

    def __init__(self, plan_path: Path, log: TrtLog | None = None, checks_batch: bool = True) -> None:
        plan = check_plan(plan_path)
        self._checks_batch = checks_batch
        obstacle = execution_obstacle()
        if obstacle is not None:
            raise UserError(f"plans cannot be executed here: {obstacle}")
        import pycuda.driver as cuda  # pyright: ignore[reportMissingImports]

        self._cuda = cuda
        self._cleanup = ExitStack()
        device_context = cuda.Device(0).retain_primary_context()  # shared with PyTorch and plugins
        device_context.push()
        self._cleanup.callback(device_context.pop)
        try:
            self.log = log or TrtLog.current()
            self._runtime, self.engine = load_engine(plan_path, plan, self.log)
            self._context = self._create_context(plan_path)
            self._allocate()
        except BaseException:
            self._cleanup.close()
            raise

    @interrupts.uninterrupted()
    def _create_context(self, path: Path) -> trt.IExecutionContext:
        """The engine's execution context.

        By default, TensorRT for RTX compiles kernels for new shapes in the background and runs slower kernels
        meanwhile, which would be timed, or captured in a CUDA graph. The eager strategy compiles kernels at once.
        """
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            engine: Any = self.engine  # these names are not in the full product's types
            strategies: Any = getattr(trt, "DynamicShapesKernelSpecializationStrategy")  # noqa: B009
            self._runtime_config = engine.create_runtime_config()
            self._runtime_config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = engine.create_execution_context(self._runtime_config)
        else:
            context = self.engine.create_execution_context()
        if context is None:
            raise PlanError(f"no execution context for {path}: {self.log.take_errors()}; is the GPU's memory full?")
        return context

    def _allocate(self) -> None:
        """Allocates device and page-locked host buffers for the largest shapes."""
        cuda, engine = self._cuda, self.engine
        self._stream = cuda.Stream()
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._dtypes: dict[str, Any] = {}
        self._device: dict[str, Any] = {}
        self._host: dict[str, np.ndarray] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in names:
            self._dtypes[name] = element_type(engine.get_tensor_dtype(name)).numpy
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self.inputs.append(name)
                self._context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[2])
            else:
                self.outputs.append(name)
        for name in names:  # after all input shapes are set, output shapes are known
            count = math.prod(as_tuple(self._context.get_tensor_shape(name)))
            self._device[name] = cuda.mem_alloc(max(count * self._dtypes[name].itemsize, 1))
            self._cleanup.callback(self._device[name].free)
            self._host[name] = cuda.pagelocked_empty(count, self._dtypes[name])
            self._context.set_tensor_address(name, int(self._device[name]))

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs once, asynchronously on the helper's stream, and waits for the result.

        Args:
            inputs: an array for each input, of any integer or float type; it is cast to the engine's type.

        Returns:
            An array for each output, in the engine's type.

        Raises:
            UserError: an input is missing, unknown, or outside the profile.
        """
        self._upload(inputs)
        self._enqueue()
        return self._download()

    def infer_by_graph(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As ``infer``, by the replay of a CUDA graph that is captured for these shapes."""
        self._upload(inputs)
        self._enqueue()  # TensorRT finishes its own preparations for these shapes before a capture
        with captured_graph(self._stream.handle, self._enqueue) as replay:
            for name in self.outputs:  # poisons the outputs, so that a replay that does nothing is noticed
                self._cuda.memset_d8_async(self._device[name], 0xFF, self._host[name].nbytes, self._stream)
            replay()
            return self._download()

    def benchmark(
        self, inputs: Mapping[str, np.ndarray], runs: int = 200, warm_up: int = 20, cuda_graph: bool = False
    ) -> Latency:
        """Times the network, without copies, with CUDA events.

        Args:
            inputs: as for ``infer``; they are uploaded once.
            runs: number of timed runs, at least 2.
            warm_up: number of runs before the timed ones.
            cuda_graph: replay a captured CUDA graph instead of enqueueing layer by layer.
        """
        self._upload(inputs)
        self._enqueue()  # TensorRT finishes its own preparations for these shapes before a capture
        launch: Callable[[], None] = self._enqueue
        with ExitStack() as graph_owner:
            if cuda_graph:
                launch = graph_owner.enter_context(captured_graph(self._stream.handle, self._enqueue))
            return Latency.of(time_on_stream(self._cuda, self._stream, launch, runs, warm_up))

    def _upload(self, inputs: Mapping[str, np.ndarray]) -> None:
        unknown = set(inputs) - set(self.inputs)
        missing = set(self.inputs) - set(inputs)
        if unknown or missing:
            raise UserError(
                f"the plan's inputs are {', '.join(self.inputs)}; missing: {sorted(missing) or 'none'}, "
                f"unknown: {sorted(unknown) or 'none'}"
            )
        cast = {name: cast_input(name, inputs[name], self._dtypes[name]) for name in self.inputs}
        if self._checks_batch:
            check_batch(cast)
        for name, values in cast.items():
            check_in_profile(
                name, values.shape, [as_tuple(shape) for shape in self.engine.get_tensor_profile_shape(name, 0)]
            )
            if not self._context.set_input_shape(name, trt.Dims(list(values.shape))):
                raise UserError(f"TensorRT refused input {name!r} {list(values.shape)}: {self.log.take_errors()}")
            host = self._host[name][: values.size]
            host[:] = values.ravel()
            self._cuda.memcpy_htod_async(self._device[name], host, self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise UserError(f"TensorRT could not execute the plan: {self.log.take_errors()}")

    def _download(self) -> dict[str, np.ndarray]:
        results = {}
        for name in self.outputs:
            shape = as_tuple(self._context.get_tensor_shape(name))
            host = self._host[name][: math.prod(shape)]
            self._cuda.memcpy_dtoh_async(host, self._device[name], self._stream)
            results[name] = host.reshape(shape)
        self._stream.synchronize()
        return {name: values.copy() for name, values in results.items()}

    def close(self) -> None:
        """Frees the buffers and leaves the CUDA context."""
        self._cleanup.close()

    def __enter__(self) -> InferHelper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def time_on_stream(cuda: Any, stream: Any, launch: Callable[[], None], runs: int, warm_up: int) -> list[float]:
    """The milliseconds of each of ``runs`` launches on a pycuda stream, by CUDA events."""
    for _ in range(warm_up):
        launch()
    events = [(cuda.Event(), cuda.Event()) for _ in range(runs)]
    for begin, end in events:
        begin.record(stream)
        launch()
        end.record(stream)
    stream.synchronize()
    return [begin.time_till(end) for begin, end in events]


@contextmanager
def captured_graph(stream_handle: int, enqueue: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Captures the work of ``enqueue`` on a stream in a CUDA graph; yields a function that replays it there.

    It uses NVIDIA's own bindings, since pycuda has no graphs.

    Raises:
        UserError: the bindings are not installed, or CUDA reports an error.
    """
    obstacle = graph_obstacle()
    if obstacle is not None:
        raise UserError(f"no CUDA graph can be captured: {obstacle}")
    from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

    def check(answer: tuple[Any, ...]) -> Any:
        if answer[0] != runtime.cudaError_t.cudaSuccess:
            raise UserError(f"CUDA graph: {runtime.cudaGetErrorString(answer[0])[1].decode()}")
        return answer[1] if len(answer) > 1 else None

    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(runtime.cudaStreamBeginCapture(stream_handle, mode))
    try:
        enqueue()
    finally:
        graph = check(runtime.cudaStreamEndCapture(stream_handle))
    executable = check(runtime.cudaGraphInstantiate(graph, 0))
    try:
        yield lambda: check(runtime.cudaGraphLaunch(executable, stream_handle))
    finally:
        check(runtime.cudaGraphExecDestroy(executable))
        check(runtime.cudaGraphDestroy(graph))
