"""Checks the execution of plans on a GPU where TensorRT itself does not execute: another engine stands in for it.

    python benchmarks/gpu_check_stand_in.py --json FILE         needs an NVIDIA GPU, pycuda and cuda-bindings
    python benchmarks/gpu_check_stand_in.py --json FILE --gpu-check="--all --jobs 4"

TensorRT for RTX builds plans on a machine with a Hopper GPU but does not execute them there. Everything else that
``InferHelper`` does is real: buffers, copies, streams, graph capture, times.

1. SkipLayerNorm: the engine enqueues the plugin's kernel through the plugin host, on the helper's stream and buffers.
2. Networks: the engine runs a network of builder.py with PyTorch, on the helper's stream and buffers. The steps of
   gpu_check.py check it like a plan.
3. gpu_check.py: it builds every plan, and runs every network with the plugins' own kernels.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="all results")
    parser.add_argument("--out-dir", type=Path, default=Path("out/gpu_check_stand_in"), help="default: %(default)s")
    parser.add_argument("--gpu-check", type=shlex.split, default=[], metavar="OPTIONS", help="for gpu_check.py")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import numpy as np
from rich.table import Table

from bert_trt.console import UserError, console, run_script
from bert_trt.files import atomic_write, make_folder

try:
    import gpu_check
    from bert_trt import inference, plan
    from bert_trt.comparison import relative_l2
    from bert_trt.tensorrt_product import trt
except ImportError as error:  # InferHelper uses TensorRT's Python classes
    sys.exit(f"error: nothing can be run: {error}")

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, EPSILON = 768, 1e-12
ROWS = (1, 32, 8192)  # least, typical, greatest
HALF_ULP = float(np.finfo(np.float16).eps) / 2  # the error of a correct result, which is rounded once
ROWS_NETWORKS = (("plugins", "packed", "fp16"), ("all", "single", "bf16"), ("none", "padded", "fp32"))
OPENINGS = 10

Shape = tuple[int, ...]
# (addresses by tensor, shapes by tensor, stream as a number) -> whether the work was enqueued
Work = Callable[[Mapping[str, int], Mapping[str, Shape], int], bool]


# --- an engine that stands in for TensorRT's ----------------------------------------------------------------


class StandInEngine:
    """The methods of an engine and its context that ``InferHelper`` calls; a function does the work.

    Args:
        profile: the [least, typical, greatest] shape of each input.
        types: TensorRT's type of each tensor; tensors without a profile are outputs.
        output_shape: returns the shape of every output for the shapes of the inputs.
        work: enqueues the work.
        owner: an object that must live as long as the engine.
    """

    def __init__(
        self,
        profile: Mapping[str, list[Shape]],
        types: Mapping[str, Any],
        output_shape: Callable[[Mapping[str, Shape]], Shape],
        work: Work,
        owner: object = None,
    ) -> None:
        self._profile, self._types, self._output_shape, self._work = profile, types, output_shape, work
        self._names, self._owner = list(types), owner
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self.num_io_tensors = len(self._names)

    # ICudaEngine

    def get_tensor_name(self, index: int) -> str:
        """The name of an input or output."""
        return self._names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        """The type of a tensor."""
        return self._types[name]

    def get_tensor_mode(self, name: str) -> Any:
        """Whether a tensor is an input or an output."""
        return trt.TensorIOMode.INPUT if name in self._profile else trt.TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        """The [least, typical, greatest] shape of an input."""
        return self._profile[name]

    def create_runtime_config(self) -> Any:
        """An object that accepts any setting."""
        return SimpleNamespace()

    def create_execution_context(self, config: Any = None) -> StandInEngine:
        """The engine is its only context."""
        return self

    def create_engine_inspector(self) -> Any:
        """An inspector that names one layer."""
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": ["stand-in"]}))

    # IExecutionContext

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """Stores the shape of an input."""
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        """The shape that was set for an input; an output's shape follows from the inputs'."""
        return self._shapes[name] if name in self._profile else self._output_shape(self._shapes)

    def set_tensor_address(self, name: str, address: int) -> None:
        """Stores the address of a tensor."""
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        """Enqueues the work."""
        shapes = {name: self.get_tensor_shape(name) for name in self._names}
        return self._work(self._addresses, shapes, stream)


@contextmanager
def standing_in(engine: StandInEngine | None) -> Iterator[None]:
    """Within the context, TensorRT deserializes every plan as this engine; with None it fails."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    with (
        mock.patch.object(trt, "Runtime", lambda logger: runtime),
        mock.patch.object(inference, "execution_obstacle", lambda: None),
    ):
        yield


def check_machine() -> None:
    """Checks that TensorRT's support of the GPU is the only obstacle to the execution of plans.

    Raises:
        UserError: there is another obstacle.
    """
    obstacle = inference.execution_obstacle()
    if obstacle is not None and "does not execute on compute capability" not in obstacle:
        raise UserError(f"nothing can be run: {obstacle}")


# --- 1. one plugin ------------------------------------------------------------------------------------------


class SkipLayerNorm:
    """The plugin as the work of an engine: y = LN(x + skip), fp16 (S, H), with weights and workspace on the GPU."""

    def __init__(self) -> None:
        import torch

        from plugins.plugin_host import PluginHost, TensorSpec

        fields = {"epsilon": EPSILON, "constant_weights": 1}
        self._plugin, self._spec = PluginHost().create("SkipLayerNorm", fields=fields), TensorSpec
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(HIDDEN, generator=generator) for _ in range(2)]  # gamma, beta
        self._on_gpu = [weight.cuda() for weight in self.weights]
        _, size = self._plugin.prepare(self._specs(ROWS[-1]))
        self._workspace = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        self.fails = False

    def _specs(self, rows: int) -> list[Any]:
        activation, weight = self._spec((rows, HIDDEN), "float16"), self._spec((HIDDEN,), "float32")
        return [activation, activation, weight, weight]

    def __call__(self, addresses: Mapping[str, int], shapes: Mapping[str, Shape], stream: int) -> bool:
        """Enqueues the kernel."""
        inputs = [addresses["x"], addresses["skip"], *(weight.data_ptr() for weight in self._on_gpu)]
        specs = self._specs(shapes["x"][0])
        self._plugin.enqueue(specs, inputs, [addresses["y"]], self._workspace.data_ptr(), stream)
        return not self.fails

    def engine(self) -> StandInEngine:
        """An engine with this layer."""
        profile: dict[str, list[Shape]] = {name: [(rows, HIDDEN) for rows in ROWS] for name in ("x", "skip")}
        types: dict[str, Any] = dict.fromkeys(("x", "skip", "y"), trt.DataType.HALF)
        return StandInEngine(profile, types, lambda shapes: shapes["x"], self)

    def reference(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The result in fp64, (S, H)."""
        total = inputs["x"].astype(np.float64) + inputs["skip"].astype(np.float64)
        centred = total - total.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        gamma, beta = (weight.double().numpy() for weight in self.weights)
        return normal * gamma + beta


def random_inputs(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random x and skip, fp16 (rows, H)."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((rows, HIDDEN)).astype(np.float16) for name in ("x", "skip")}


def check_plugin_alone(checks: Any, out: Path) -> None:
    """Checks ``InferHelper`` with the plugin as its engine."""
    plan = out / "stand-in.plan"
    plan.write_bytes(b"stand-in")
    work: Any = None
    with checks.check("plugin host"):
        work = SkipLayerNorm()
    if work is None:
        return
    engine, row_counts = work.engine(), (*ROWS, ROWS[0], 77)
    with standing_in(engine), inference.InferHelper(plan) as helper:
        with checks.check("infer, fp64") as check:
            for index, rows in enumerate(row_counts):
                inputs = random_inputs(rows, index)
                error = relative_l2(helper.infer(inputs)["y"], work.reference(inputs))
                check.values[f"{index}: {rows} rows"] = error
                check.demand(error <= HALF_ULP, f"{rows} rows: relative L2 error {error:.2e}")
            check.cell = f"{max(check.values.values()):.1e}"
        with checks.check("graph = enqueue") as check:
            for index, rows in enumerate(row_counts):
                inputs = random_inputs(rows, index)
                a, b = (run(inputs)["y"] for run in (helper.infer, helper.infer_by_graph))
                check.demand(a.tobytes() == b.tobytes(), f"{rows} rows: the replay gives other bits")
        with checks.check("times") as check:
            check_times(check, helper)
        check_errors(checks, helper, work)
    with standing_in(None), checks.check("error: no engine") as check:
        expect_error(check, "cannot load the plan", lambda: inference.InferHelper(plan))
    with standing_in(engine), checks.check("memory is freed") as check:
        check_memory(check, plan)


def check_times(check: Any, helper: Any) -> None:
    """Checks the times at the greatest size: not faster than memory and L2 cache allow, the graph not slower than
    enqueue, and enqueue about as long as launches in a row."""
    inputs = random_inputs(ROWS[-1], 0)
    enqueue, graph = (helper.benchmark(inputs, cuda_graph=is_graph).median for is_graph in (False, True))
    stream, cuda = helper._stream, helper._cuda
    begin, end, count = cuda.Event(), cuda.Event(), 200
    begin.record(stream)
    for _ in range(count):
        helper._enqueue()
    end.record(stream)
    stream.synchronize()
    plain = begin.time_till(end) / count
    fastest = 3 * ROWS[-1] * HIDDEN * 2 / 12e12 * 1e3  # bytes at 12 TB/s, in milliseconds
    check.values = {"enqueue_ms": enqueue, "graph_ms": graph, "in_a_row_ms": plain, "at_12_TB_per_s_ms": fastest}
    check.cell = f"{enqueue:.4f}, {graph:.4f} ms"
    check.demand(fastest <= graph <= 1.5 * enqueue, f"graph {graph:.4f} ms, enqueue {enqueue:.4f} ms")
    check.demand(enqueue <= 5 * plain + 0.02, f"enqueue {enqueue:.4f} ms, launches in a row {plain:.4f} ms each")


def check_errors(checks: Any, helper: Any, work: SkipLayerNorm) -> None:
    """Checks that invalid inputs, and an engine that fails, are errors."""
    good = random_inputs(2, 0)
    invalid = {
        "outside the profile": (
            {"x": random_inputs(ROWS[-1] + 1, 0)["x"], "skip": good["skip"]},
            "outside the plan's",
        ),
        "missing input": ({"x": good["x"]}, r"missing: ['skip']"),
        "unknown input": ({**good, "z": good["x"]}, r"unknown: ['z']"),
    }
    for name, (inputs, message) in invalid.items():
        with checks.check(f"error: {name}") as check:
            expect_error(check, message, lambda inputs=inputs: helper.infer(inputs))
    with checks.check("error: execution fails") as check:
        work.fails = True
        expect_error(check, "could not execute the plan", lambda: helper.infer(good))
        work.fails = False
        check.demand(np.isfinite(helper.infer(good)["y"]).all(), "it does not run any more after that")


def expect_error(check: Any, message: str, function: Callable[[], object]) -> None:
    """Demands a UserError whose text contains ``message``."""
    try:
        function()
    except UserError as error:
        check.demand(message in str(error), f"the message is {error}")
    else:
        check.demand(False, "there was no error")


def check_memory(check: Any, plan: Path) -> None:
    """Checks that opening and closing many times leaves as much free GPU memory as the first time."""
    free, with_buffers = [], 0
    for _ in range(OPENINGS):
        with inference.InferHelper(plan) as helper:
            helper.infer(random_inputs(ROWS[-1], 0))
            cuda = helper._cuda
            with_buffers = cuda.mem_get_info()[0]
        free.append(free_memory())
    check.values = {"with_buffers": with_buffers, "free_after": free}
    buffer_bytes = 3 * ROWS[-1] * HIDDEN * 2
    check.cell = f"{(free[0] - free[-1]) / 2**20:.1f} MiB kept"
    check.demand(free[0] - free[-1] < buffer_bytes, f"{free[0] - free[-1]} bytes are kept after {OPENINGS} openings")
    check.demand(free[-1] - with_buffers >= buffer_bytes / 2, "closing frees nothing")


def free_memory() -> int:
    """Free bytes of the GPU's memory."""
    import torch

    return torch.cuda.mem_get_info()[0]


# --- 2. networks, with gpu_check.py's own steps -------------------------------------------------------------


def as_tensor(address: int, shape: Shape, dtype: Any) -> Any:
    """The GPU memory at an address as a PyTorch tensor, without a copy."""
    import torch

    view = {"shape": shape, "typestr": np.dtype(dtype).str, "data": (address, False), "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=view), device="cuda")


def network_engine(
    network: Any, seq_len: Any, batch: Any, width: int, on_stream: Callable[..., Work]
) -> StandInEngine:
    """An engine that runs a network with network_runner.py.

    Args:
        network: what ``builder.assemble`` returned.
        seq_len: the profile's sequence lengths.
        batch: the profile's numbers of sequences in a batch.
        width: the length of the output's last axis.
        on_stream: turns a runner into the work of an engine.
    """
    inputs = [network.network.get_input(index) for index in range(network.network.num_inputs)]
    output = network.network.get_output(0)
    profile = {
        tensor.name: list(map(tuple, plan.profile_shapes(tensor.name, tuple(tensor.shape), seq_len, batch)))
        for tensor in inputs
    }
    types = {tensor.name: tensor.dtype for tensor in [*inputs, output]}
    runner = gpu_check.NetworkRunner(network.network, gpu_check.best_device(), contents=network.contents)
    return StandInEngine(profile, types, lambda shapes: (*shapes["input_ids"], width), on_stream(runner), network)


def runner_on_gpu(runner: Any) -> Work:
    """The work of an engine: the runner runs on the caller's stream, with the caller's buffers."""
    import torch

    def work(addresses: Mapping[str, int], shapes: Mapping[str, Shape], stream: int) -> bool:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            tensors = {name: as_tensor(addresses[name], shapes[name], np.int32) for name in runner.input_names}
            for name, answer in runner.run(tensors).items():
                as_tensor(addresses[name], shapes[name], np.float32).copy_(answer)
        return True

    return work


def check_network(combination: Any, model: Path, checks: Any, out: Path) -> None:
    """Builds one network and executes it with a stand-in, by gpu_check.py's steps."""
    folder, log = gpu_check.ModelFolder(model), gpu_check.TrtLog()
    step = gpu_check.Step("build", out, model, True, combination)
    gpu_check.build_step(step, checks, log)
    if not step.answers("runner").is_file():
        return
    seq_len, batch = gpu_check.profile(folder.config, combination.batching)
    network = gpu_check.assemble(
        folder, log, combination.precision, batching=combination.batching, fusion=combination.fusion
    )
    engine = network_engine(network, seq_len, batch, folder.config.output_width, runner_on_gpu)
    with standing_in(engine):
        gpu_check.execute_step(step, checks, log)
        gpu_check.apart_step(step, checks, log)


# --- the script ---------------------------------------------------------------------------------------------


def print_checks(title: str, checks: Mapping[str, Any]) -> None:
    """Prints a table with a row for each check."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "result", ""):
        table.add_column(heading, overflow="fold")
    for name, check in checks.items():
        result = {"ok": "ok", "skipped": "-", "wrong": "[bold red]WRONG[/]"}[check.status]
        table.add_row(name, result, check.reason or check.cell)
    console.print(table)


def run_gpu_check(arguments: list[str], out: Path) -> tuple[int, dict[str, Any] | None]:
    """Runs gpu_check.py as a user runs it. Returns its exit code and its report."""
    path = out / "gpu_check.json"
    command = [sys.executable, str(ROOT / "gpu_check.py"), "--out-dir", str(out), "--json", str(path), *arguments]
    code = subprocess.run(command, check=False).returncode
    return code, json.loads(path.read_text()) if path.is_file() else None


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_machine()
    make_folder(args.out_dir)
    results: dict[str, Any] = {}
    report: dict[str, Any] = {"environment": gpu_check.environment(), "gpu_check": None}

    def keep(name: str, part: Mapping[str, Any]) -> None:
        """Adds checks to the results and writes the file at once, in case a later part ends the process."""
        results.update({f"{name}: {key}": check for key, check in part.items()})
        report["checks"] = {key: asdict(check) for key, check in results.items()}
        with atomic_write(args.json) as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())

    keep("SkipLayerNorm", run_checks(args.out_dir, check_plugin_alone))
    model, log = args.out_dir / "model", gpu_check.Log(args.out_dir / "stand_in.log")
    gpu_check.export_model(str(gpu_check.ROOT / "demo_model"), model, log)
    for parts in ROWS_NETWORKS:
        combination = gpu_check.Combination(*parts)
        keep(str(combination), run_checks(args.out_dir, partial(check_network, combination, model)))
    code, report["gpu_check"] = run_gpu_check(args.gpu_check, args.out_dir)
    status = gpu_check.Check("ok" if code == 0 else "wrong", reason=f"exit status {code}")
    keep("gpu_check.py", {"on this GPU": status})
    print_checks("InferHelper with an engine that stands in for TensorRT's", results)
    return 1 if any(check.status == "wrong" for check in results.values()) else 0


def run_checks(out: Path, part: Callable[[Any, Path], None]) -> dict[str, Any]:
    """Runs the checks of one part. An error outside of every check is added to them."""
    with TemporaryDirectory(dir=out) as name:
        checks = gpu_check.Checks(Path(name, "checks.json"))
        try:
            part(checks, Path(name))
        except Exception as error:  # any exception is a result of the check
            traceback.print_exc()
            checks.results["outside of every check"] = gpu_check.Check("wrong", reason=f"{error}")
        return checks.results


if __name__ == "__main__":
    run_script(main)
