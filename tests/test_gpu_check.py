"""gpu_check.py: rows, checks, what each check finds, and what is said at the end.

No engine is executed here. InferHelper's device memory is a stand-in's of test_infer_helper.py, and the engine is one
of benchmarks/gpu_check_stand_in.py: it runs the plan's network with PyTorch in that memory. Each fault is put into
one of them, and the check that is for it must say so.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plugin_build_for_tests import built_plugins
from test_infer_helper import FakeCuda

import gpu_check
from bert_trt import inference
from bert_trt.comparison import SequenceError
from bert_trt.console import UserError
from bert_trt.model_files import ModelFolder
from bert_trt.options import BATCHINGS, FUSIONS, TOLERANCES, SequenceRange
from bert_trt.tensorrt_log import TrtLog
from gpu_check import COLUMNS, SIZES, Check, Checks, Combination, Step

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
stand_in = importlib.import_module("gpu_check_stand_in")
TIME_ON_STREAM = inference.time_on_stream
PACKED = Combination("none", "packed", "fp32")


# --- rows -----------------------------------------------------------------------------------------------------


def test_every_two_meet_in_a_row():
    rows = gpu_check.every_pair()
    assert len(rows) == len(set(rows)) < len(gpu_check.every_combination())
    for kinds in combinations([("fusion", FUSIONS), ("batching", BATCHINGS), ("precision", TOLERANCES)], 2):
        (one, values), (other, others) = kinds
        assert {(getattr(r, one), getattr(r, other)) for r in rows} == set(product(values, others))


def test_only_takes_names_of_one_kind_as_alternatives():
    rows = gpu_check.select_combinations(["packed", "fp16", "int8"])
    assert {row.batching for row in rows} == {"packed"}
    assert {row.precision for row in rows} == {"fp16", "int8"}
    assert {row.fusion for row in rows} == set(FUSIONS)
    assert gpu_check.select_combinations(["none", "single", "bf16"]) == [Combination("none", "single", "bf16")]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_sizes_fill_the_profile_with_ragged_sequences(model_dir, batching):
    folder = ModelFolder(model_dir)
    seq_len, batch = gpu_check.profile(folder.config, batching)
    sizes = gpu_check.size_batches(folder, batching)
    assert tuple(sizes) == SIZES
    for place, (name, made) in enumerate(sizes.items()):
        count, length = batch.as_tuple()[place], seq_len.as_tuple()[place]
        shape = {"single": (1, length), "padded": (count, length), "packed": (count * length,)}[batching]
        assert made.inputs["input_ids"].shape == shape, name
        output = np.arange(np.prod(shape)).reshape(*shape, 1)
        lengths = [len(part) for part in made.split(output)]
        assert len(lengths) == count
        assert max(lengths) <= folder.config.max_positions
        assert count == 1 or len(set(lengths)) > 1, "ragged"


@pytest.mark.parametrize(
    ("precision", "capability", "reason"),
    [
        ("fp8", (8, 6), "fp8 needs compute capability 8.9; this GPU has 8.6"),
        ("bf16", (7, 5), "bf16 needs compute capability 8.0; this GPU has 7.5"),
        ("fp8", (9, 0), None),
        ("fp8", None, None),
        ("fp32", (7, 5), None),
    ],
)
def test_precisions_that_a_gpu_does_not_have(precision, capability, reason):
    assert gpu_check.unsupported_precision(Combination("none", "single", precision), capability) == reason


# --- checks -----------------------------------------------------------------------------------------------------


def test_a_check_goes_wrong_by_an_error_and_the_next_is_made(tmp_path):
    checks = Checks(tmp_path / "checks.json")
    with checks.check("first"):
        raise ZeroDivisionError("by nothing")
    with checks.check("second") as check:
        check.demand(bool(np.float32("nan") <= 1), "NaN is not within the limit")
        check.demand(False, "a later reason")
    with checks.check("third") as check:
        check.skip("not here")
    state = json.loads((tmp_path / "checks.json").read_text())
    found = {name: (one["status"], one["reason"]) for name, one in state["checks"].items()}
    assert state["running"] is None
    assert found == {
        "first": ("wrong", "ZeroDivisionError: by nothing"),
        "second": ("wrong", "NaN is not within the limit"),
        "third": ("skipped", "not here"),
    }


def judged(precision: str, *errors: float) -> Check:
    check = Check()
    gpu_check.judge(check, {str(i): SequenceError(9, error, 2.0) for i, error in enumerate(errors)}, precision, "X")
    return check


@pytest.mark.parametrize(
    ("precision", "errors", "status", "told"),
    [
        ("fp16", (1e-3, 5e-3), "ok", "5e-03"),
        ("fp16", (1e-3, 6e-3), "wrong", "1: relative L2 error 6.00e-03 against X, at most 5.0e-03"),
        ("fp16", (float("nan"), 1e-3), "wrong", "0: relative L2 error nan against X"),
        ("int8", (1e-2, 6e-2), "ok", "4e-02"),  # one is off by more, and all together are not
        ("int8", (6e-2, 6e-2), "wrong", "all together: relative L2 error 6.00e-02 against X, at most 5.0e-02"),
        ("int8", (*[1e-3] * 99, 0.3), "wrong", "99: relative L2 error 3.00e-01 against X, at most 2.5e-01"),
        ("int8", (1e-3, float("nan")), "wrong", "1: relative L2 error nan"),
    ],
)
def test_errors_are_judged_one_by_one_and_in_8_bits_together(precision, errors, status, told):
    check = judged(precision, *errors)
    assert check.status == status
    assert told in (check.reason or check.cell)


def test_bits_tell_zeros_and_nans_apart():
    a, b = np.array([0.0, np.nan, 1.0], np.float32), np.array([-0.0, np.nan, 1.0], np.float32)
    assert gpu_check.differing(a, a.copy()) == 0
    assert gpu_check.differing(a, b) == 1


# --- steps in processes -----------------------------------------------------------------------------------------


def replaced_process(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Steps run ``code`` with the step's file as its argument."""
    real = gpu_check.run_process

    def run(command: Any, environment: Any = None) -> Any:
        return real([sys.executable, "-c", code, command[-1]], environment)

    monkeypatch.setattr(gpu_check, "run_process", run)


CRASH = """
import os, sys
from pathlib import Path
state = '{"running": "graph", "checks": {"load": {"status": "ok", "cell": "", "reason": "", "values": {}}}}'
Path(sys.argv[1]).with_suffix(".checks.json").write_text(state)
Path(sys.argv[1]).with_suffix(".trt.log").write_text("[VERBOSE] the last thing said")
print("CUDA error: an illegal memory access", flush=True)
os.abort()
"""


def test_a_process_that_dies_makes_the_check_wrong_that_it_was_at(monkeypatch, tmp_path):
    replaced_process(monkeypatch, CRASH)
    log = gpu_check.Log(tmp_path / "x.log")
    found = gpu_check.run_step(Step("execute", tmp_path, tmp_path, True, PACKED), log)
    assert found["load"].status == "ok"
    assert found["graph"].status == "wrong"
    assert found["graph"].reason == "the process ended with status -6: CUDA error: an illegal memory access"
    assert "[VERBOSE] the last thing said" in log.path.read_text()


def test_a_process_that_dies_before_any_check(monkeypatch, tmp_path):
    replaced_process(monkeypatch, "raise SystemExit(3)")
    found = gpu_check.run_step(Step("build", tmp_path, tmp_path, False, PACKED), gpu_check.Log(tmp_path / "x.log"))
    assert found == {"build step": Check("wrong", reason="the process ended with status 3: it wrote nothing")}


def test_a_process_that_does_not_end(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "STEP_SECONDS", 0.2)
    replaced_process(monkeypatch, "import time; time.sleep(60)")
    found = gpu_check.run_step(Step("build", tmp_path, tmp_path, False, PACKED), gpu_check.Log(tmp_path / "x.log"))
    assert found["build step"].reason == "no end after 0.2 s: it wrote nothing"


@pytest.mark.parametrize(("kind", "hidden"), [("execute", True), ("early", True), ("apart", False), ("build", False)])
def test_the_plugin_library_is_hidden_where_it_is_in_the_plan(monkeypatch, tmp_path, kind, hidden):
    monkeypatch.delenv("BERT_PLUGINS_BUILD_DIR", raising=False)
    replaced_process(monkeypatch, "import os; raise SystemExit('BERT_PLUGINS_BUILD_DIR' in os.environ)")
    found = gpu_check.run_step(Step(kind, tmp_path, tmp_path, True, PACKED), gpu_check.Log(tmp_path / "x.log"))
    assert bool(found) == hidden


# --- plans executed by a stand-in -------------------------------------------------------------------------------


class Gpu:
    """A stand-in for GPU and engine, and the faults that they have."""

    def __init__(self, cuda: FakeCuda, out: Path, model: Path, one: Combination) -> None:
        self.cuda, self.one = cuda, one
        self.step = Step("build", out, model, True, one)
        self.folder, self.log = ModelFolder(model), TrtLog()
        self.runs = 0
        self.network: Any = None
        self.fault: Any = None  # changes the outputs of a run: fault(output, number of the run, shape)

    def build(self) -> dict[str, Check]:
        checks = Checks(self.step.folder / "checks.json")
        gpu_check.build_step(self.step, checks, self.log)
        return checks.results

    def engine(self) -> Any:
        profile = gpu_check.profile(self.folder.config, self.one.batching)
        return stand_in.network_engine(self.network, *profile, self.folder.config.output_width, self.on_fake_memory)

    def on_fake_memory(self, runner: Any) -> Any:
        def work(addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], stream: int) -> bool:
            def view(name: str, dtype: Any) -> np.ndarray:
                count = int(np.prod(shapes[name]))
                return self.cuda.memory[addresses[name]].view(dtype)[:count].reshape(shapes[name])

            answers = runner.run({name: view(name, np.int32).copy() for name in runner.input_names})
            self.runs += 1
            for name, answer in answers.items():
                output = answer.numpy().copy()
                if self.fault is not None:
                    self.fault(output, self.runs, shapes["input_ids"])
                view(name, np.float32)[:] = output
            return True

        return work

    def execute(self, *steps: Any) -> dict[str, Check]:
        checks = Checks(self.step.folder / "checks.json")
        with stand_in.standing_in(self.engine()):
            for step in steps:
                step(self.step, checks, self.log)
        return checks.results


@contextmanager
def eager_graph(handle: int, enqueue: Any) -> Iterator[Any]:
    """In place of captured_graph: a replay enqueues."""
    yield enqueue


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    package = type(sys)("pycuda")
    package.__dict__["driver"] = fake
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    monkeypatch.setattr(inference, "captured_graph", eager_graph)
    monkeypatch.setattr(inference, "time_on_stream", lambda *arguments: [0.25, 0.5, 0.25])
    return fake


@pytest.fixture(scope="module", autouse=True)
def small_profile():
    """Time is spent on nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_check, "SEQ_LEN", SequenceRange(1, 8, 16))
        patch.setattr(gpu_check, "BATCH", SequenceRange(1, 2, 4))
        yield


@pytest.fixture(scope="module")
def built(small_profile, model_dir, tmp_path_factory):
    """Plans and the runner's answers, once for all faults."""
    gpu = Gpu(FakeCuda(), tmp_path_factory.mktemp("row"), model_dir, PACKED)
    found = gpu.build()
    assert {name: one.status for name, one in found.items()} == {
        "build": "ok",
        "second_build": "ok",
        "third_build": "skipped" if gpu_check.IS_RTX else "ok",
        "runner": "ok",
        "early_weights_runner": "skipped",
    }
    gpu.network = gpu_check.assemble(gpu.folder, gpu.log, PACKED.precision, batching=PACKED.batching)
    return gpu


@pytest.fixture
def gpu(built, cuda):
    made = Gpu(cuda, built.step.folder, built.step.model, PACKED)
    made.network = built.network
    return made


ALL = (gpu_check.execute_step, gpu_check.apart_step)


def test_all_is_well_with_a_right_engine(gpu):
    found = gpu.execute(*ALL, gpu_check.early_step)
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(gpu_check.EXECUTING, "ok") | {
        "early_weights": "skipped"
    }
    sizes = [name.partition(",")[0] for name in found["sizes"].values]
    assert sizes == ["least size", "typical size", "greatest size", "least size again"]
    assert found["times"].cell == "0.25, 0.25"
    assert found["inspector"].values == {"layers": ["stand-in"]}
    assert gpu.cuda.memory == {}


def wrong_everywhere(output: np.ndarray, run: int, shape: Any) -> None:
    output *= 1.01


def wrong_for_one_token(output: np.ndarray, run: int, shape: Any) -> None:
    output[-1] = 0.0


def wrong_the_second_time(output: np.ndarray, run: int, shape: Any) -> None:
    if run == 4:
        output *= 1.01


def nan_at_the_greatest(output: np.ndarray, run: int, shape: Any) -> None:
    if shape[0] == 4 * 16:
        output[0, 0] = np.nan


def wrong_for_short_sequences(output: np.ndarray, run: int, shape: Any) -> None:
    if run > 4:
        output *= 1.01


def no_two_runs_alike(output: np.ndarray, run: int, shape: Any) -> None:
    output *= np.float32(1 + run * 1e-6)


@pytest.mark.parametrize(
    ("fault", "column", "told"),
    [
        (
            wrong_everywhere,
            "sizes",
            "least size: relative L2 error 1.00e-02 against network_runner.py, at most 1.0e-05",
        ),
        (wrong_everywhere, "pytorch", "least size: relative L2 error 1.00e-02 against network_runner.py in fp32"),
        (wrong_everywhere, "library_apart", "least size: relative L2 error 1.00e-02"),
        (wrong_for_one_token, "sizes", "least size: relative L2 error 1.00e+00"),
        (wrong_the_second_time, "sizes", "least size again: relative L2 error 1.00e-02"),
        (nan_at_the_greatest, "sizes", "greatest size: relative L2 error nan"),
        (wrong_for_short_sequences, "pytorch", "3 tokens: relative L2 error 1.00e-02 against PyTorch"),
        (no_two_runs_alike, "graph", "values differ at the least size"),
    ],
)
def test_a_wrong_engine_is_seen(gpu, fault, column, told):
    gpu.fault = fault
    check = gpu.execute(*ALL)[column]
    assert check.status == "wrong"
    assert told in check.reason


def test_a_graph_that_does_nothing_is_seen(gpu, monkeypatch):
    @contextmanager
    def empty(handle: int, enqueue: Any) -> Iterator[Any]:
        yield lambda: None

    monkeypatch.setattr(inference, "captured_graph", empty)
    found = gpu.execute(gpu_check.execute_step)
    assert found["graph"].status == "wrong"
    assert found["pytorch"].status == "ok"


def test_a_graph_of_another_shape_is_seen(gpu, monkeypatch):
    first: list[Any] = []

    @contextmanager
    def stale(handle: int, enqueue: Any) -> Iterator[Any]:
        helper = enqueue.__self__
        name = helper.outputs[0]
        first.append(np.prod(helper._context.get_tensor_shape(name)))

        def replay() -> None:
            enqueue()
            gpu.cuda.memory[int(helper._device[name])].view(np.float32)[first[0] :] = np.nan

        yield replay

    monkeypatch.setattr(inference, "captured_graph", stale)
    check = gpu.execute(gpu_check.execute_step)["graph"]
    assert check.status == "wrong"
    assert "at the typical size" in check.reason


def test_an_error_in_the_middle_does_not_end_the_step(gpu, monkeypatch):
    def refuse(*arguments: Any) -> Any:
        raise UserError("CUDA graph: operation not permitted")

    monkeypatch.setattr(inference, "captured_graph", refuse)
    found = gpu.execute(*ALL)
    wrong = {name: one.reason for name, one in found.items() if one.status == "wrong"}
    assert wrong == dict.fromkeys(("graph", "times"), "CUDA graph: operation not permitted")
    assert found["inspector"].status == found["library_apart"].status == "ok"


def test_a_plan_that_cannot_be_loaded(gpu):
    checks = Checks(gpu.step.folder / "checks.json")
    with stand_in.standing_in(None):
        for step in ALL:
            step(gpu.step, checks, gpu.log)
    assert {name: one.status for name, one in checks.results.items()} == {"load": "wrong", "library_apart": "wrong"}
    assert "TensorRT cannot load the plan" in checks.results["load"].reason


def test_no_layer_in_the_inspector_is_wrong(gpu, monkeypatch):
    nothing = type("Inspector", (), {"get_engine_information": lambda self, form: '{"Layers": []}'})
    monkeypatch.setattr(stand_in.StandInEngine, "create_engine_inspector", lambda self: nothing())
    assert gpu.execute(gpu_check.execute_step)["inspector"].reason == "the engine inspector names no layer"


@pytest.mark.parametrize(
    ("late", "second", "status"), [(0.0, 0.0, "ok"), (1e-6, 0.0, "wrong"), (1e-6, 1e-6, "skipped")]
)
def test_bits_of_early_and_late_weights(gpu, tmp_path, late, second, status):
    """Plans whose bits differ say nothing about weights if two plans of one network differ as well."""
    gpu.step = Step("early", tmp_path, gpu.step.model, True, PACKED)
    engine = gpu.engine()
    gpu.step.plan("late").write_bytes(b"a plan from elsewhere")
    scaled = {"first": 1.0, "second": 1.0 + second}
    with stand_in.standing_in(engine):
        with inference.InferHelper(gpu.step.plan("late")) as helper:
            answers = gpu_check.infer_sizes(helper, gpu.folder, PACKED)
        for name, factor in scaled.items():
            changed: dict[str, Any] = {size: answer * np.float32(factor) for size, answer in answers.items()}
            np.savez(gpu.step.answers(name), **changed)
        gpu.fault = lambda output, run, shape: np.multiply(output, np.float32(1 + late), out=output)
        checks = Checks(tmp_path / "checks.json")
        gpu_check.early_step(gpu.step, checks, gpu.log)
    assert checks.results["early_weights"].status == status


# --- building -----------------------------------------------------------------------------------------------------


def test_a_network_whose_answers_are_wrong_is_seen_by_the_runner(model_dir, tmp_path, monkeypatch):
    real = gpu_check.runner_of

    def wrong(folder: Any, made: Any, in_fp32: bool = False) -> Any:
        run = real(folder, made, in_fp32)
        return lambda inputs: run(inputs) * (1.01 if in_fp32 else 1.0)

    monkeypatch.setattr(gpu_check, "runner_of", wrong)
    one = Combination("none", "single", "fp16")
    found = Gpu(FakeCuda(), tmp_path, model_dir, one).build()
    assert found["runner"].status == "wrong"


def test_a_build_that_fails_ends_the_step(model_dir, tmp_path, monkeypatch):
    def refuse(*arguments: Any) -> Any:
        raise UserError("TensorRT could not build the plan: out of memory")

    monkeypatch.setattr(gpu_check, "build_plan", refuse)
    found = Gpu(FakeCuda(), tmp_path, model_dir, PACKED).build()
    assert found == {"build": Check("wrong", reason="TensorRT could not build the plan: out of memory")}


def test_ranges_that_are_missing(model_dir, tmp_path):
    one = Combination("none", "single", "int8")
    found = Gpu(FakeCuda(), tmp_path, model_dir, one).build()
    assert found["build"].reason == "there are no ranges for int8: the calibration failed, see there"


@pytest.mark.parametrize("replaced", [True, False])
def test_a_damaged_timing_cache_must_be_replaced(tmp_path, replaced):
    step, check = Step("build", tmp_path, tmp_path, True, PACKED), Check()
    cache = tmp_path / "timing.cache"
    cache.write_bytes(bytes(range(100)))
    seen = []

    def build_again() -> dict[str, Any]:
        seen.append(cache.read_bytes())
        if replaced:
            cache.write_bytes(b"a good one")
        return {"seconds": 1.0}

    gpu_check.build_with_damaged_cache(step, check, build_again)
    assert seen == [bytes(255 - byte for byte in range(50))]
    assert check.status == ("ok" if replaced else "wrong")


@pytest.mark.parametrize(("precision", "values"), [("fp16", {0, 1}), ("fp32", {0, 1})])
def test_late_weights_are_a_field_of_the_plugins(model_dir, precision, values):
    built_plugins()
    from bert_trt.network_proof import check_definition
    from builder import assemble

    found = set()
    for constant in (True, False):
        made = assemble(ModelFolder(model_dir), TrtLog(), precision, fusion="all", constant_weights=constant)
        check_definition(made.network, made.contents, ModelFolder(model_dir).config.layer_norm_eps)
        fields = [layer.fields for layer in made.contents.plugins.values()]
        own = {one[key] for one in fields for key in one if key in gpu_check.CONSTANT_FIELDS}
        assert own == {int(constant)}
        found |= own
    assert found == values


# --- the script -----------------------------------------------------------------------------------------------------


def run_script(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "gpu_check.py"), *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_wrong_names(tmp_path):
    done = run_script(tmp_path, "--only", "fp16,fp17")
    assert done.returncode == 2
    assert "'fp17' is none of none, " in done.stderr


@pytest.fixture
def quick(monkeypatch, tmp_path, model_dir):
    """The script without what takes long: the row's checks are given."""
    rows: dict[Combination, dict[str, Check]] = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_check, "export_model", lambda name, folder, log: None)
    monkeypatch.setattr(gpu_check, "build_plugins", Check)
    monkeypatch.setattr(gpu_check, "layer_norm_test", lambda log: Check())
    monkeypatch.setattr(
        gpu_check, "run_row", lambda one, model, out, executes, log: rows.get(one, {"build": Check()})
    )
    return rows


def test_without_a_gpu_it_says_so_and_ends_well(quick, in_process, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "execution_obstacle", lambda: "no NVIDIA GPU")
    done = in_process(gpu_check.main, "--only", "fp32,packed")
    assert done.code == 0
    assert "Plans are built, but not executed: no NVIDIA GPU." in done.out
    assert "What could be checked is right." in done.out
    report = json.loads((tmp_path / "out/gpu_check/gpu_check.json").read_text())
    assert report["executes"] is False
    assert [row["fusion"] for row in report["rows"]] == list(FUSIONS)
    assert {"gpus", "tensorrt", "pycuda", "cuda-bindings", "torch", "plugin library"} <= report["environment"].keys()


def test_a_failure_is_named_and_the_files_to_send(quick, in_process, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "execution_obstacle", lambda: None)
    quick[PACKED] = {"build": Check(cell="2.0 s"), "graph": Check("wrong", reason="7 of 9 values differ")}
    done = in_process(gpu_check.main, "--only", "none,fp32,packed", "--json", "report.json")
    assert done.code == 1
    assert "wrong: none packed fp32, graph: 7 of 9 values differ" in done.out
    assert "Please send us report.json and report.log" in done.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["wrong"] == ["none packed fp32, graph: 7 of 9 values differ"]
    assert report["rows"][0]["checks"]["graph"]["status"] == "wrong"
    assert Path("report.log").is_file()


def test_a_precision_that_the_gpu_lacks_is_skipped(quick, in_process, monkeypatch):
    monkeypatch.setattr(gpu_check, "execution_obstacle", lambda: None)
    monkeypatch.setattr(gpu_check, "gpu_capability", lambda: (7, 5))
    quick[Combination("none", "packed", "bf16")] = {"build": Check("wrong", reason="must not be run")}
    done = in_process(gpu_check.main, "--only", "none,packed,bf16")
    assert done.code == 0
    report = json.loads(Path("out/gpu_check/gpu_check.json").read_text())
    assert {one["status"] for one in report["rows"][0]["checks"].values()} == {"skipped"}


def test_every_column_has_its_check(gpu, built):
    found = gpu.execute(*ALL, gpu_check.early_step).keys() | built.build().keys()
    assert found == COLUMNS.keys()


def test_a_row_from_its_build_to_its_end(model_dir, tmp_path):
    """In processes, as a user runs it; on a machine where plans are not executed its one step."""
    log = gpu_check.Log(tmp_path / "x.log")
    found = gpu_check.run_row(Combination("none", "padded", "fp16"), model_dir, tmp_path, False, log)
    assert {name: one.status for name, one in found.items() if name != "third_build"} == {
        "build": "ok",
        "second_build": "ok",
        "runner": "ok",
        "early_weights_runner": "skipped",
    }
    assert "none padded fp16: build" in log.path.read_text()
    assert list(tmp_path.iterdir()) == [log.path], "nothing is left behind"


# --- the stand-in for one plugin, whose own faults are seen as well -------------------------------------------------


class FakePlugin(stand_in.SkipLayerNorm):
    """Computes the plugin's answer in the memory of the stand-in for pycuda."""

    def __init__(self, cuda: FakeCuda, fault: str) -> None:
        self.cuda, self.fault, self.fails, self.runs = cuda, fault, False, 0
        self.weights = [torch.ones(stand_in.HIDDEN), torch.zeros(stand_in.HIDDEN)]

    def __call__(self, addresses: Mapping[str, int], shapes: Mapping[str, Any], stream: int) -> bool:
        count, self.runs = int(np.prod(shapes["x"])), self.runs + 1
        self.cuda.clock += 1e-6 if self.fault == "too fast" else 0.05
        memory = {name: self.cuda.memory[address].view(np.float16)[:count] for name, address in addresses.items()}
        inputs = {name: memory[name].reshape(shapes["x"]) for name in ("x", "skip")}
        answer = self.reference(inputs) * (1.001 if self.fault == "wrong" else 1.0)
        if self.fault == "unsteady":
            answer[0, 0] += self.runs
        memory["y"][:] = answer.reshape(-1).astype(np.float16)
        return not self.fails or self.fault == "never fails"


def check_fake_plugin(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> dict[str, Check]:
    def free() -> int:
        return 10**10 - sum(memory.nbytes for memory in cuda.memory.values())

    if fault == "leak":
        monkeypatch.setattr(inference.InferHelper, "close", lambda self: None)
    cuda.__dict__["mem_get_info"] = lambda: (free(), 10**10)
    monkeypatch.setattr(stand_in, "free_memory", free)
    monkeypatch.setattr(stand_in, "SkipLayerNorm", lambda: FakePlugin(cuda, fault))
    monkeypatch.setattr(stand_in, "ROWS", (1, 32, 128))
    return stand_in.run_checks(tmp_path, stand_in.check_plugin_alone)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("none", set()),
        ("wrong", {"infer, fp64"}),
        ("unsteady", {"infer, fp64", "graph = enqueue"}),
        ("too fast", {"times"}),
        ("never fails", {"error: execution fails"}),
        ("leak", {"memory is freed"}),
    ],
)
def test_infer_helper_with_a_plugin_for_an_engine(cuda, monkeypatch, tmp_path, fault, wrong):
    monkeypatch.setattr(inference, "time_on_stream", TIME_ON_STREAM)
    found = check_fake_plugin(cuda, monkeypatch, tmp_path, fault)
    assert {name for name, check in found.items() if check.status == "wrong"} == wrong, found
    assert len(found) == 10


def test_an_error_outside_of_every_check_is_told(tmp_path):
    def fail(checks: Any, out: Path) -> None:
        with checks.check("first"):
            pass
        raise ZeroDivisionError("by nothing")

    found = stand_in.run_checks(tmp_path, fail)
    assert found == {"first": Check(), "outside of every check": Check("wrong", reason="by nothing")}


def test_a_network_by_a_stand_in_as_on_the_gpu(cuda, model_dir, tmp_path, monkeypatch):
    """check_network with the stand-in's memory in place of the GPU's."""
    gpu = Gpu(cuda, tmp_path, model_dir, PACKED)
    monkeypatch.setattr(stand_in, "runner_on_gpu", gpu.on_fake_memory)
    found = stand_in.run_checks(tmp_path, partial(stand_in.check_network, PACKED, model_dir))
    skipped = {"early_weights_runner"} | ({"third_build"} if gpu_check.IS_RTX else set())
    assert found.keys() == COLUMNS.keys() - {"early_weights"}
    assert {name: one.status for name, one in found.items()} == {
        name: "skipped" if name in skipped else "ok" for name in found
    }
