"""InferHelper's own logic: buffers, casts, checks, timing, the order of calls.

No engine is executed here. A stand-in for pycuda keeps "device" memory in NumPy, and a stand-in for the engine
computes y = 2 x in it; both record what is asked of them. Whether TensorRT executes a plan is for
test_plan_execution below, which needs a GPU that the installed TensorRT supports.
"""

import json
import math
import sys
import types
import zlib
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from bert_trt import inference, pipeline, plugin_layers, tensorrt_log, tensorrt_product
from bert_trt.console import UserError
from bert_trt.inference import InferHelper, execution_obstacle
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, ModelFolder
from bert_trt.options import SequenceRange
from bert_trt.packing import NetworkBatch
from bert_trt.plan import PlanError, PlanInfo, info_path, profile_shapes
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt


class FakeCuda(types.ModuleType):
    """The part of pycuda.driver that InferHelper uses."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.memory: dict[int, np.ndarray] = {}
        self.calls: list[str] = []
        self.clock = 0.0
        fake = self

        class Allocation:
            def __init__(self, size: int) -> None:
                self.address = 4096 * (len(fake.memory) + 1)
                fake.memory[self.address] = np.full(size, 0xCD, np.uint8)  # poison
                fake.calls.append("alloc")

            def __int__(self) -> int:
                return self.address

            def free(self) -> None:
                fake.calls.append("free")
                del fake.memory[self.address]

        class Context:
            def push(self) -> None:
                fake.calls.append("push")

            def pop(self) -> None:
                fake.calls.append("pop")

        class Device:
            def __init__(self, index: int) -> None:
                pass

            @staticmethod
            def count() -> int:
                return 1

            def compute_capability(self) -> tuple[int, int]:
                return (8, 9)

            def retain_primary_context(self) -> Context:
                return Context()

        class Stream:
            handle = 77

            def synchronize(self) -> None:
                fake.calls.append("synchronize")

        class Event:
            def record(self, stream: Stream) -> None:
                self.time = fake.clock

            def time_till(self, other: "Event") -> float:
                return other.time - self.time

        self.Device, self.Stream, self.Event, self.mem_alloc = Device, Stream, Event, Allocation

    def init(self) -> None:
        pass

    def pagelocked_empty(self, count: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(count, dtype)

    def memset_d8_async(self, device: Any, value: int, count: int, stream: Any) -> None:
        self.memory[int(device)][:count] = value

    def memcpy_htod_async(self, device: Any, host: np.ndarray, stream: Any) -> None:
        self.memory[int(device)][: host.nbytes] = host.view(np.uint8)

    def memcpy_dtoh_async(self, host: np.ndarray, device: Any, stream: Any) -> None:
        host.view(np.uint8)[:] = self.memory[int(device)][: host.nbytes]


class FakeEngine:
    """y = 2 x, int32 (1, S) -> fp32 (1, S), 1 <= S <= 8."""

    names = ("x", "y")
    num_io_tensors = 2

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.length = 0
        self.addresses: dict[str, int] = {}
        self.fails = False

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_dtype(self, name):
        return trt.DataType.INT32 if name == "x" else trt.DataType.FLOAT

    def get_tensor_mode(self, name):
        return trt.TensorIOMode.INPUT if name == "x" else trt.TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name, profile) -> Any:
        return [(1, 1), (1, 4), (1, 8)]

    def create_runtime_config(self):
        return types.SimpleNamespace()

    def create_execution_context(self, runtime_config=None):
        self.runtime_config = runtime_config
        return self

    def set_input_shape(self, name, shape):
        self.length = tuple(shape)[1]
        return True

    def get_tensor_shape(self, name) -> Any:
        return (1, self.length)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 77
        self.cuda.calls.append("execute")
        self.cuda.clock += 0.25
        x = self.cuda.memory[self.addresses["x"]].view(np.int32)[: self.length]
        self.cuda.memory[self.addresses["y"]].view(np.float32)[: self.length] = 2.0 * x
        return not self.fails


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    package = types.ModuleType("pycuda")
    package.__dict__["driver"] = fake
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    monkeypatch.setattr(inference.ctypes, "CDLL", lambda name: None)
    return fake


@pytest.fixture
def engine(cuda, monkeypatch):
    fake = FakeEngine(cuda)

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, plan):
            if plan == b"good":
                return fake
            self.log.log(trt.ILogger.ERROR, "IRuntime::deserializeCudaEngine: header does not match")
            return None

    monkeypatch.setattr(trt, "Runtime", Runtime)
    return fake


def describe_plan(plan, library: str = "", embedded: bool = False) -> None:
    """Writes PLAN.json, as a build does."""
    content = plan.read_bytes()
    product, version = tensorrt_product.describe().split()
    info = PlanInfo(product, version, [], zlib.crc32(content), len(content), {}, 1, 0.0, library, embedded)
    info_path(plan).write_text(json.dumps(asdict(info)))


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "p.plan").write_bytes(b"good")
    return tmp_path / "p.plan"


def test_infer_casts_runs_and_returns_a_copy(engine, plan):
    with InferHelper(plan) as helper:
        first = helper.infer({"x": np.array([[1, 2, 3]], np.int64)})
        second = helper.infer({"x": np.array([[5, 6, 7, 8]], np.int16)})
    np.testing.assert_array_equal(first["y"], [[2, 4, 6]])
    np.testing.assert_array_equal(second["y"], [[10, 12, 14, 16]])
    assert first["y"].dtype == np.float32


def test_buffers_are_allocated_once_for_the_largest_shape(engine, cuda, plan):
    with InferHelper(plan) as helper:
        for length in (1, 8, 3):
            helper.infer({"x": np.ones((1, length), np.int32)})
        assert cuda.calls.count("alloc") == 2
        assert sorted(memory.size for memory in cuda.memory.values()) == [8 * 4, 8 * 4]
    assert cuda.memory == {}
    assert cuda.calls[-1] == "pop"


@pytest.mark.parametrize("length", [0, 9])
def test_lengths_outside_the_profile(engine, plan, length):
    with InferHelper(plan) as helper, pytest.raises(UserError, match=r"input 'x' .*\[1, 1\] to \[1, 8\].*--seq-len"):
        helper.infer({"x": np.ones((1, length), np.int32)})


def test_missing_and_unknown_inputs(engine, plan):
    with (
        InferHelper(plan) as helper,
        pytest.raises(UserError, match=r"are x; missing: \['x'\], unknown: \['z'\]"),
    ):
        helper.infer({"z": np.ones((1, 2), np.int32)})


def test_ids_that_do_not_fit(engine, plan):
    with InferHelper(plan) as helper, pytest.raises(UserError, match="'x' has values that do not fit int32"):
        helper.infer({"x": np.array([[2**40]])})


def test_a_failed_execution_is_an_error(engine, plan):
    with InferHelper(plan) as helper:
        engine.fails = True
        with pytest.raises(UserError, match="TensorRT could not execute the plan"):
            helper.infer({"x": np.ones((1, 2), np.int32)})


def test_benchmark_warms_up_and_times_each_run(engine, cuda, plan):
    with InferHelper(plan) as helper:
        latency = helper.benchmark({"x": np.ones((1, 2), np.int32)}, runs=10, warm_up=3)
    assert cuda.calls.count("execute") == 1 + 3 + 10
    assert (latency.runs, latency.median, latency.p95, latency.p99) == (10, 0.25, 0.25, 0.25)


def test_benchmark_replays_a_graph(engine, cuda, plan, monkeypatch):
    replays = []

    class Runtime(types.ModuleType):
        class cudaError_t:
            cudaSuccess = 0

        class cudaStreamCaptureMode:
            cudaStreamCaptureModeThreadLocal = 1

        def __getattr__(self, name):
            def call(*arguments):
                if name == "cudaGraphLaunch":
                    replays.append(arguments)
                    cuda.clock += 0.125
                return (0, f"{name}-handle")

            return call

    package = types.ModuleType("cuda.bindings")
    package.__dict__["runtime"] = Runtime("cuda.bindings.runtime")
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    with InferHelper(plan) as helper:
        latency = helper.benchmark({"x": np.ones((1, 2), np.int32)}, runs=10, warm_up=3, cuda_graph=True)
    assert cuda.calls.count("execute") == 2  # before the capture, and in it
    assert replays == [("cudaGraphInstantiate-handle", 77)] * 13
    assert latency.median == 0.125


@pytest.mark.parametrize("replays", [True, False])
def test_infer_by_graph_returns_what_the_replay_wrote(engine, plan, monkeypatch, replays):
    @contextmanager
    def captured(handle, enqueue):
        assert handle == 77
        yield enqueue if replays else lambda: None

    monkeypatch.setattr(inference, "captured_graph", captured)
    with InferHelper(plan) as helper:
        answer = helper.infer_by_graph({"x": np.array([[1, 2, 3]])})["y"]
    np.testing.assert_array_equal(answer, [[2, 4, 6]] if replays else [[np.nan] * 3])


def test_a_plan_that_tensorrt_cannot_load(engine, cuda, plan):
    plan.write_bytes(b"from another version")
    with pytest.raises(PlanError, match=r"cannot load the plan .*p\.plan: .*header does not match.*build it on this"):
        InferHelper(plan)
    assert cuda.calls == ["push", "pop"]


@pytest.mark.parametrize(
    ("driver", "pycuda", "reason"),
    [
        (False, True, "no driver is installed"),
        (True, False, r"pycuda is not installed.*: pip install -r requirements-pycuda\.txt"),
    ],
)
def test_execution_obstacle(monkeypatch, driver, pycuda, reason, plan):
    def load(name):
        if not driver:
            raise OSError(name)

    monkeypatch.setattr(inference.ctypes, "CDLL", load)
    if not pycuda:
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(UserError, match=rf"plans cannot be executed here: .*{reason}"):
        InferHelper(plan)


def test_kernels_are_compiled_before_they_are_timed(engine, plan, monkeypatch):
    """TensorRT for RTX would run stand-ins meanwhile; the full product has no such choice."""
    strategies = types.SimpleNamespace(EAGER="eager")
    monkeypatch.setattr(trt, "DynamicShapesKernelSpecializationStrategy", strategies, raising=False)
    InferHelper(plan).close()
    assert engine.runtime_config.dynamic_shapes_kernel_specialization_strategy == "eager"
    monkeypatch.delattr(trt, "DynamicShapesKernelSpecializationStrategy")
    InferHelper(plan).close()
    assert engine.runtime_config is None


@pytest.mark.skipif(not inference.IS_RTX, reason="only tensorrt_rtx has the strategies")
def test_the_eager_strategy_exists():
    strategies: Any = getattr(trt, "DynamicShapesKernelSpecializationStrategy")  # noqa: B009
    assert {"EAGER", "LAZY"} <= set(strategies.__members__)
    runtime_config: Any = trt.IRuntimeConfig
    assert runtime_config.dynamic_shapes_kernel_specialization_strategy.fset is not None  # a property to be set


@pytest.mark.parametrize(
    ("library", "embedded", "allowed", "loaded"),
    [("", False, False, 0), ("p.so", False, False, 1), ("p.so", True, True, 0), (None, False, False, 0)],
)
def test_host_code_is_allowed_where_the_plan_holds_it(engine, plan, monkeypatch, library, embedded, allowed, loaded):
    runtimes, loads = [], []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log):
            runtimes.append(self)

        def deserialize_cuda_engine(self, plan):
            return engine

    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(plugin_layers, "load_library", lambda: loads.append(1))
    if library is not None:  # else a plan from elsewhere, which says nothing
        describe_plan(plan, library, embedded)
    InferHelper(plan).close()
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [allowed]
    assert len(loads) == loaded


NO_CREATOR = "IPluginRegistry::getCreator: Error Code 4: Cannot find plugin: LayerNorm, version: 1, namespace:."


class ForgetfulRuntime:
    """Deserializes a plan once its plugin library is loaded."""

    def __init__(self, engine, told: str = NO_CREATOR) -> None:
        self.engine, self.told, self.loads, self.attempts = engine, told, 0, 0

    def __call__(self, log) -> "ForgetfulRuntime":
        return self

    def load_library(self) -> None:
        self.loads += 1

    def deserialize_cuda_engine(self, plan):
        self.attempts += 1
        if self.loads:
            return self.engine
        tensorrt_log.LOGGER.log(trt.ILogger.ERROR, self.told)
        return None


def test_a_plan_that_lacks_its_creators_gets_the_built_library(engine, plan, monkeypatch):
    runtime = ForgetfulRuntime(engine)
    monkeypatch.setattr(trt, "Runtime", runtime)
    monkeypatch.setattr(plugin_layers, "load_library", runtime.load_library)
    with InferHelper(plan) as helper:
        assert helper.infer({"x": np.array([[3]])})["y"] == [[6]]
    assert (runtime.loads, runtime.attempts) == (1, 2)


def test_a_plan_that_the_built_library_does_not_help_is_an_error_after_two_attempts(engine, plan, monkeypatch):
    runtime = ForgetfulRuntime(engine)
    monkeypatch.setattr(trt, "Runtime", runtime)
    monkeypatch.setattr(plugin_layers, "load_library", lambda: None)
    with pytest.raises(PlanError, match=r"cannot load the plan .*: .*Cannot find plugin: LayerNorm"):
        InferHelper(plan)
    assert runtime.attempts == 2


def test_creators_that_nothing_can_bring_are_told(engine, plan, monkeypatch):
    def no_library():
        raise UserError("the plugins are not built. Build them: make plugins")

    runtime = ForgetfulRuntime(engine)
    monkeypatch.setattr(trt, "Runtime", runtime)
    monkeypatch.setattr(plugin_layers, "load_library", no_library)
    with pytest.raises(PlanError, match=r"Cannot find plugin: LayerNorm.*not built\. Build them: make plugins"):
        InferHelper(plan)
    assert runtime.attempts == 1


def test_another_error_does_not_load_plugins(engine, plan, monkeypatch):
    runtime = ForgetfulRuntime(engine, "Platform mismatch between build and runtime environments")
    monkeypatch.setattr(trt, "Runtime", runtime)
    monkeypatch.setattr(plugin_layers, "load_library", runtime.load_library)
    with pytest.raises(PlanError, match="Platform mismatch"):
        InferHelper(plan)
    assert (runtime.loads, runtime.attempts) == (0, 1)


def test_a_verbose_log_goes_on_while_and_after_a_plan_is_executed(engine, plan, tmp_path):
    with (tmp_path / "verbose.log").open("wb") as file:
        log = TrtLog(file)
        with InferHelper(plan):
            tensorrt_log.LOGGER.log(trt.ILogger.VERBOSE, "while it is executed")
        tensorrt_log.LOGGER.log(trt.ILogger.ERROR, "after it")
    assert "while it is executed" in (tmp_path / "verbose.log").read_text()
    assert "after it" in (tmp_path / "verbose.log").read_text()
    assert log.take_errors() == "after it"


def test_errors_from_before_are_not_a_plans(engine, plan):
    tensorrt_log.LOGGER.listener = TrtLog()
    tensorrt_log.LOGGER.log(trt.ILogger.ERROR, "of an earlier build")
    plan.write_bytes(b"from another version")
    with pytest.raises(PlanError, match="header does not match") as told:
        InferHelper(plan)
    assert "earlier build" not in str(told.value)


class FakeDriver:
    """libcuda with one GPU of compute capability 8.6, or with none."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer

    def cuInit(self, flags):
        return self.answer

    def cuDeviceGet(self, device, index):
        return self.answer

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 6}[attribute]
        return self.answer


@pytest.mark.parametrize(("answer", "capability"), [(0, (8, 6)), (100, None)])
def test_gpu_capability_needs_nothing_but_the_driver(monkeypatch, answer, capability):
    monkeypatch.setattr(inference.ctypes, "CDLL", lambda name: FakeDriver(answer))
    assert inference.gpu_capability() == capability


@pytest.fixture
def missing_bindings(cuda, monkeypatch):
    """A machine with a GPU and pycuda, but without cuda-bindings."""
    monkeypatch.setattr(pipeline, "gpu_capability", lambda: (8, 9))
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    pipeline.warn_of_missing_bindings.cache_clear()
    yield cuda
    pipeline.warn_of_missing_bindings.cache_clear()


def test_without_cuda_bindings_there_is_a_warning_and_no_graph(missing_bindings, engine, plan, capsys):
    pipeline.warn_of_missing_bindings()
    pipeline.warn_of_missing_bindings()
    told = capsys.readouterr().err
    assert told.count("not timed in a CUDA graph: cuda-bindings is not installed") == 1
    assert "pip install -r requirements-gpu.txt" in told
    with InferHelper(plan) as helper, pytest.raises(UserError, match="no CUDA graph can be captured: cuda-bindings"):
        helper.benchmark({"x": np.ones((1, 2), np.int32)}, runs=2, cuda_graph=True)


def test_a_plan_is_timed_without_cuda_bindings(missing_bindings, engine, plan):
    config = types.SimpleNamespace(output_name="y")
    ones = SequenceRange(1, 1, 1)
    task: Any = types.SimpleNamespace(
        plan_path=plan,
        example=None,
        own_batch=NetworkBatch({"x": np.ones((1, 2))}, [0], lambda output: [output[0]]),
        folder=types.SimpleNamespace(config=config),
        reference=[],
        batching="single",
        build=types.SimpleNamespace(seq_len=ones, batch=ones),
    )
    result = pipeline.Result(task)
    np.testing.assert_array_equal(pipeline._execute_plan(result), [[2, 2]])
    assert list(result.latency) == ["enqueue"]


def test_a_missing_pycuda_is_told_before_the_build(missing_bindings, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    pipeline.warn_of_missing_bindings()
    told = capsys.readouterr().err
    assert "warning: the plan will be built but not executed: pycuda is not installed" in told
    assert "pip install -r requirements-pycuda.txt" in told


def test_without_a_gpu_nothing_is_missing(missing_bindings, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "gpu_capability", lambda: None)
    pipeline.warn_of_missing_bindings()
    assert capsys.readouterr().err == ""


def test_no_obstacle_on_a_supported_gpu(cuda):
    assert execution_obstacle() is None


@pytest.mark.skipif(not inference.IS_RTX, reason="only tensorrt_rtx leaves data-centre GPUs out")
def test_tensorrt_rtx_does_not_execute_on_hopper(cuda, monkeypatch):
    monkeypatch.setattr(cuda.Device, "compute_capability", lambda self: (9, 0))
    assert "does not execute on compute capability 9.0" in (execution_obstacle() or "")


@pytest.mark.skipif(
    execution_obstacle() is not None,
    reason=f"needs a GPU on which the installed TensorRT executes, and pycuda; here: {execution_obstacle()}",
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_plan_execution(model_dir, tmp_path, precision):
    import builder
    from bert_trt.comparison import relative_l2
    from bert_trt.options import TOLERANCES, SequenceRange
    from bert_trt.plan import BuildOptions, build_plan

    folder, log = ModelFolder(model_dir), TrtLog()
    bert = builder.assemble(folder, log, precision)
    build_plan(bert.builder, bert.network, log, BuildOptions(SequenceRange(1, 8, 64)), tmp_path / "p.plan")
    demo = folder.demo()
    with InferHelper(tmp_path / "p.plan") as helper:
        output = helper.infer(demo.inputs)["logit"]
        times = [helper.benchmark(demo.inputs, 20, cuda_graph=graph) for graph in (False, True)]
    assert relative_l2(output, demo.output) <= TOLERANCES[precision]
    assert all(latency.median > 0 for latency in times)


def has_pycuda() -> bool:
    try:
        from pycuda import driver  # pyright: ignore[reportMissingImports]

        driver.init()
        return driver.Device.count() > 0
    except Exception:  # no pycuda, no driver, no GPU: whatever it is, there is nothing to test on
        return False


@pytest.mark.skipif(not has_pycuda(), reason="needs an NVIDIA GPU and pycuda")
def test_a_captured_graph_is_replayed_and_timed_on_a_real_gpu():
    from pycuda import driver  # pyright: ignore[reportMissingImports]

    context = driver.Device(0).retain_primary_context()
    context.push()
    try:
        stream = driver.Stream()
        host = driver.pagelocked_empty(1 << 20, np.float32)
        host[:] = np.arange(1 << 20)
        source, target = driver.mem_alloc(host.nbytes), driver.mem_alloc(host.nbytes)
        driver.memcpy_htod_async(source, host, stream)
        launches = []

        def launch():
            launches.append(1)
            driver.memcpy_dtod_async(target, source, host.nbytes, stream)

        with inference.captured_graph(stream.handle, launch) as replay:
            assert len(launches) == 1  # recorded, and not again at every replay
            driver.memset_d8_async(target, 0xCD, host.nbytes, stream)
            times = inference.time_on_stream(driver, stream, replay, runs=20, warm_up=3)
        result = driver.pagelocked_empty(1 << 20, np.float32)
        driver.memcpy_dtoh_async(result, target, stream)
        stream.synchronize()
    finally:
        context.pop()
    assert len(launches) == 1
    assert len(times) == 20
    assert all(0 < time < 100 for time in times)
    np.testing.assert_array_equal(result, host)


# --- batches ------------------------------------------------------------------------------------------------


class BatchEngine(FakeEngine):
    """y = 2 x for a packed or a padded batch of at most 3 sentences of at most 4 words."""

    def __init__(self, cuda: FakeCuda, batching: str) -> None:
        super().__init__(cuda)
        shape, separator = {"packed": ((-1,), LENGTHS_NAME), "padded": ((-1, -1), MASK_NAME)}[batching]
        ranges = (SequenceRange(1, 2, 4), SequenceRange(1, 2, 3))
        self.names = (INPUT_NAMES[0], separator, "y")
        self.num_io_tensors = 3
        self.profile = {name: profile_shapes(name, shape, *ranges) for name in self.names[:2]}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def get_tensor_dtype(self, name):
        return trt.DataType.FLOAT if name == "y" else trt.DataType.INT32

    def get_tensor_mode(self, name):
        return trt.TensorIOMode.OUTPUT if name == "y" else trt.TensorIOMode.INPUT

    def get_tensor_profile_shape(self, name, profile):
        return self.profile[name]

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        return self.shapes[INPUT_NAMES[0] if name == "y" else name]

    def execute_async_v3(self, stream):
        count = math.prod(self.shapes[INPUT_NAMES[0]])
        x = self.cuda.memory[self.addresses[INPUT_NAMES[0]]].view(np.int32)[:count]
        self.cuda.memory[self.addresses["y"]].view(np.float32)[:count] = 2.0 * x
        self.cuda.calls.append("execute")
        return True


@pytest.fixture
def batch_helper(cuda, plan, monkeypatch):
    helpers = []

    def open_plan(batching: str) -> InferHelper:
        engine = BatchEngine(cuda, batching)
        runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
        monkeypatch.setattr(trt, "Runtime", lambda log: runtime)
        helpers.append(InferHelper(plan))
        return helpers[-1]

    yield open_plan
    for helper in helpers:
        helper.close()


PACKED = {INPUT_NAMES[0]: np.arange(6), LENGTHS_NAME: np.array([0, 4, 6])}
PADDED = {INPUT_NAMES[0]: np.arange(6).reshape(2, 3), MASK_NAME: np.array([[1, 1, 1], [1, 0, 0]])}


def test_batches_are_run_at_any_size_of_the_profile(batch_helper):
    packed, padded = batch_helper("packed"), batch_helper("padded")
    np.testing.assert_array_equal(packed.infer(PACKED)["y"], 2 * np.arange(6))
    np.testing.assert_array_equal(padded.infer(PADDED)["y"], 2 * np.arange(6).reshape(2, 3))
    full = {INPUT_NAMES[0]: np.arange(12), LENGTHS_NAME: np.array([0, 4, 8, 12])}
    np.testing.assert_array_equal(packed.infer(full)["y"], 2 * np.arange(12))
    alone = {INPUT_NAMES[0]: np.array([7]), LENGTHS_NAME: np.array([0, 1])}
    np.testing.assert_array_equal(packed.infer(alone)["y"], [14])


WRONG_BATCHES = [
    (PACKED | {LENGTHS_NAME: np.array([1, 4, 6])}, r"cu_seqlens\[0\] is 1, expected 0"),
    (PACKED | {LENGTHS_NAME: np.array([0, 4, 4, 6])}, "sentence 2 of the batch is empty; leave it out"),
    (PACKED | {LENGTHS_NAME: np.array([0, 5, 4, 6])}, "sentence 2 of the batch ends before it starts"),
    (PACKED | {LENGTHS_NAME: np.array([0, 4, 5])}, "ends with 5, expected 6, the number of packed tokens"),
    (PACKED | {LENGTHS_NAME: np.array([0, 4, 7])}, "cu_seqlens ends with 7, expected 6"),
    (PACKED | {LENGTHS_NAME: np.array([[0, 4, 6]])}, r"cu_seqlens is int32 \[1, 3\], expected int32 \[B \+ 1\]"),
    (
        PACKED | {LENGTHS_NAME: np.array([0, 1, 2, 4, 6])},
        r"'cu_seqlens' is \[5\], .* \[2\] to \[4\].*--batch MIN",
    ),
    (
        {INPUT_NAMES[0]: np.arange(13), LENGTHS_NAME: np.array([0, 13])},
        r"'input_ids' is \[13\], outside .* \[1\] to \[12\]",
    ),
    (PADDED | {MASK_NAME: np.ones((2, 4), int)}, r"the mask is int32 \[2, 4\], expected int32 \[2, 3\] like the ids"),
    (PADDED | {MASK_NAME: np.array([[1, 1, 1], [0, 0, 0]])}, "row 1 of the mask has no 1: sentence 2 of the batch"),
    (PADDED | {MASK_NAME: -PADDED[MASK_NAME]}, r"mask\[0, 0\] is -1, expected 1 for a word or 0 for padding"),
    (
        {name: np.ones((4, 3), int) for name in PADDED},
        r"'input_ids' is \[4, 3\], .* \[1, 1\] to \[3, 4\].*--batch",
    ),
    ({name: np.ones((2, 5), int) for name in PADDED}, r"'input_ids' is \[2, 5\], .* \[1, 1\] to \[3, 4\]"),
]


@pytest.mark.parametrize(("inputs", "told"), WRONG_BATCHES)
def test_a_wrong_batch_never_reaches_the_gpu(batch_helper, cuda, inputs, told):
    helper = batch_helper("packed" if LENGTHS_NAME in inputs else "padded")
    with pytest.raises(UserError, match=told):
        helper.infer(inputs)
    assert "execute" not in cuda.calls
