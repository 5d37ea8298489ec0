"""Ctrl-C ends every script with 130, without a traceback, a half-written file or a file of its own left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.progress import Progress
from test_options import ROOT, SCRIPTS

from bert_trt import interrupts
from bert_trt.model_files import ModelFolder
from bert_trt.options import SequenceRange
from bert_trt.plan import BuildOptions, build_plan, check_plan
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

KILL = "os.kill(os.getpid(), signal.SIGINT)"


def start(*command: object, default: bool = True, **environment: str) -> subprocess.Popen[str]:
    """A process that hears SIGINT, or ignores it, whatever the tests run under."""
    action = signal.SIG_DFL if default else signal.SIG_IGN
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, action),  # noqa: PLW1509  what the tests run under is set
    )


def check_interrupted(process: subprocess.Popen[str]) -> None:
    """Waits for the end; it is that of Ctrl-C."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert err.endswith("interrupted\n")
    assert err.count("interrupted\n") == 1
    assert "Traceback" not in err
    assert "Exception" not in err


def run_interrupted(script: str, where: str, *arguments: object) -> None:
    """Runs a script that gets Ctrl-C when it calls a function, such as ``bert_trt.tensorrt_log:TrtLog.receive``."""
    module, _, path = where.partition(":")
    *parents, name = path.split(".")
    owner = ".".join(["module", *parents])
    driver = (
        f"import importlib, os, runpy, signal, sys\n"
        f"module = importlib.import_module({module!r})\n"
        f"owner, name = {owner}, {name!r}\n"
        f"before = getattr(owner, name)\n"
        f"def struck(*arguments, **options):\n"
        f"    setattr(owner, name, before)\n"
        f"    {KILL}\n"
        f"    return before(*arguments, **options)\n"
        f"setattr(owner, name, struck)\n"
        f"sys.argv = sys.argv[1:]\n"
        f"runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    check_interrupted(start("-c", driver, script, *arguments))


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model folder."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- while a script imports -------------------------------------------------------------------------------

ARGUMENTS = {  # those that a script does not go without
    "corpus.py": ["x.txt", "--out", "x"],
    "predict.py": ["x.plan", "x.txt", "--out", "x.jsonl"],
    "triton_repository.py": ["--out", "x"],
    "demo_model/train.py": ["--text", "x.txt"],
    "benchmarks/batching_accuracy.py": ["x", "y"],
    "benchmarks/calibration_speed.py": ["x"],
    "benchmarks/corpus_throughput.py": ["x"],
    "benchmarks/embedding.py": ["x", "y"],
    "benchmarks/reranker.py": ["x"],
    "benchmarks/gpu_check_stand_in.py": ["--json", "x"],
    "benchmarks/network_accuracy.py": ["x"],
    "benchmarks/packed_batches.py": ["x"],
    "benchmarks/quantization_accuracy.py": ["x"],
    "benchmarks/quantized_plans.py": ["x"],
    "benchmarks/random_checkpoint.py": ["x"],
    "benchmarks/triton_server.py": ["x"],
}
LIGHT = ("exercise.py", "plugins/build.py", "benchmarks/packaged_checkpoint.py")  # import nothing that takes long


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in LIGHT])
def test_while_a_library_is_imported(script, tmp_path):
    for name in ("numpy", "torch"):
        (tmp_path / f"{name}.py").write_text(f"import os, signal, time\n{KILL}\ntime.sleep(60)\n")
    check_interrupted(start(script, *ARGUMENTS.get(script, []), PYTHONPATH=str(tmp_path)))


# --- while a script works ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "where"),
    [
        ("builder.py", "bert_trt.tensorrt_log:TrtLog.receive"),  # in TensorRT's logger, called from C++
        ("onnx2trt.py", "bert_trt.tensorrt_log:TrtLog.receive"),
        ("builder.py", "trt_helper:TrtNetworkHelper.addLinear"),
        ("onnx2trt.py", "bert_trt.model_files:WeightFile.get"),
        ("builder.py", "bert_trt.plan:_ProgressMonitor.phase_start"),
        ("builder.py", "bert_trt.plan:_PlanWriter.write"),
        ("builder.py", "json:dumps"),  # of the file beside the plan, which is not in its place yet
    ],
)
def test_before_the_plan_is_there_none_is_left(script, where, folder):
    before = contents(folder)
    run_interrupted(script, where, "--model-dir", folder, "--precision", "fp16")
    assert contents(folder) == before


def test_half_a_model_repository_is_none(folder, tmp_path):
    out = tmp_path / "models"
    where = "bert_trt.triton_models:protobuf_text"
    run_interrupted("triton_repository.py", where, "--model-dir", folder, "--out", out)
    assert not any(out.iterdir())


@pytest.mark.parametrize("where", ["bert_trt.network_runner:NetworkRunner.run", "bert_trt.report:print_report"])
def test_after_the_plan_is_there_it_is_left_whole(where, folder):
    before = contents(folder)
    run_interrupted("builder.py", where, "--model-dir", folder, "--json", folder / "results.json")
    assert set(contents(folder)) - set(before) == {"builder.fp32.plan", "builder.fp32.plan.json"}
    check_plan(folder / "builder.fp32.plan")


@pytest.mark.parametrize(
    ("script", "where", "arguments"),
    [
        ("calibrator.py", "torch:histc", []),
        ("sensitivity.py", "bert_trt.calibration:BertCalibrator.run", ["--smooth", "off"]),
    ],
)
def test_while_it_calibrates(script, where, arguments, folder, sentence_file):
    before = contents(folder)
    data = ["--calibration-data", sentence_file, "--calibration-sentences", 8]
    run_interrupted(script, where, "--model-dir", folder, *data, *arguments)
    assert contents(folder) == before


@pytest.mark.parametrize("where", ["torch:onnx.export", "numpy:savez"])
def test_while_it_exports_the_old_folder_stays(where, checkpoint, folder):
    before = contents(folder)
    run_interrupted("model2onnx.py", where, "--model", checkpoint, "--out-dir", folder)
    assert contents(folder) == before


def test_while_an_exports_files_are_put_in_their_place_all_of_them_are(checkpoint, folder, tmp_path):
    names = set(contents(folder))
    run_interrupted("model2onnx.py", "pathlib:Path.replace", "--model", checkpoint, "--out-dir", tmp_path / "new")
    assert set(contents(tmp_path / "new")) == names


@pytest.mark.parametrize("seconds", [0, 0.2, 0.6])
def test_from_outside_at_any_moment_of_a_build(seconds, folder):
    """Here the signal strikes while TensorRT is in C++, and not in a function of ours."""
    before = contents(folder)
    process = start("builder.py", "--model-dir", folder)
    while not list(folder.glob(".*.tmp")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # impatience changes nothing
    check_interrupted(process)
    after = contents(folder)
    made = set(after) - set(before)
    if seconds and made:  # a machine on which the build was over by then
        assert made == {"builder.fp32.plan", "builder.fp32.plan.json"}
        check_plan(folder / "builder.fp32.plan")
    else:
        assert made == set()
    assert {name: after[name] for name in before} == before


def test_a_command_under_progress_is_ended_too(tmp_path):
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    process = start("bert_trt/progress.py", "label", *command)
    assert process.stderr is not None
    number = int(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    check_interrupted(process)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


# --- where an exception would be lost ---------------------------------------------------------------------


def run_code(code: str, default: bool = True) -> subprocess.Popen[str]:
    head = "import os, signal, time\nfrom bert_trt.console import run_script\n"
    head += "from bert_trt.interrupts import begin_script, uninterrupted\n"
    return start("-c", f"{head}begin_script(lambda: None)\n{code}\nrun_script(main)", default=default)


@pytest.mark.parametrize(
    "work",
    [
        f"class A:\n  def __del__(self): {KILL}; time.sleep(0)\n a = A()\n del a\n time.sleep(20)",
        f"try: {KILL}; time.sleep(1)\n except BaseException: raise ImportError('numpy is damaged')",
        f"try: {KILL}; time.sleep(1)\n except BaseException: pass",
    ],
)
def test_an_interrupt_that_a_library_loses_is_one_all_the_same(work):
    begun = time.monotonic()
    check_interrupted(run_code(f"def main():\n {work}\n return 0"))
    assert time.monotonic() - begun < 15


def test_what_belongs_together_is_done_together(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    together = f"with uninterrupted(): open({str(first)!r}, 'w'); {KILL}; open({str(second)!r}, 'w')"
    check_interrupted(run_code(f"def main():\n {together}\n open({str(tmp_path / 'third')!r}, 'w')"))
    assert set(contents(tmp_path)) == {"first", "second"}


def test_a_job_in_the_background_goes_on_ignoring_it():
    process = run_code(f"def main(): {KILL}; print('done'); return 0", default=False)
    assert process.communicate() == ("done\n", "")
    assert process.returncode == 0


def test_an_error_that_is_none_of_ctrl_c_keeps_its_traceback():
    process = run_code("def main(): raise ImportError('numpy is damaged')")
    assert "ImportError: numpy is damaged" in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["default", "ignored"])
def test_without_raising_nothing_has_happened(handler):
    """Nor where the signal is ignored, as in a background job."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts.raising():
            pass
        assert not interrupts.happened()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


# --- exceptions in what TensorRT calls --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["add_task", "update", "remove_task"])
def test_an_exception_in_the_progress_bars_stops_the_build_and_is_raised(method, folder, monkeypatch):
    def fail(*_arguments, **_options):
        raise ValueError("no bar")

    bert = assemble(ModelFolder(folder), TrtLog())
    monkeypatch.setattr(Progress, method, fail)
    before = contents(folder)
    options = BuildOptions(SequenceRange(1, 4, 8))
    with pytest.raises(ValueError, match="no bar"):
        build_plan(bert.builder, bert.network, TrtLog(), options, folder / "x.plan")
    assert contents(folder) == before
    monkeypatch.undo()
    build_plan(bert.builder, bert.network, TrtLog(), options, folder / "x.plan")  # nothing is left of the failure


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("script_name", ["builder.py", "onnx2trt.py"])
def test_a_full_disk_under_the_verbose_log_is_an_error_that_names_it(script, script_name, folder):
    log = folder / f"{Path(script_name).stem}.fp32.log"
    log.symlink_to("/dev/full")
    answer = script(script_name, "--model-dir", folder, "--verbose")
    assert answer.returncode == 1, answer.stderr
    told = f"error: cannot write the log {log}: No space left on device; build without --verbose\n"
    assert answer.stderr.endswith(told)
    assert "Exception" not in answer.stderr
    assert not list(folder.glob("*.plan*"))
