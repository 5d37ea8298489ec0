"""No script overwrites its own input, or one output with another: it is refused before the work."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, InProcess

import builder
import calibrator
import demo
import model2onnx
import onnx2trt
import predict
import sensitivity
from bert_trt.console import UserError
from bert_trt.files import check_outputs
from bert_trt.model_files import FILE_NAMES, INPUT_NAMES, ModelFolder

SPELLINGS = [
    "as it is",
    "relative",
    "by way of another folder",
    "link to the file",
    "link to the folder",
    "hard link",
]


def spell(path: Path, spelling: str, place: Path) -> Path:
    """The same file by another path."""
    if spelling == "relative":
        return Path(os.path.relpath(path))
    if spelling == "by way of another folder":
        return path.parent / "nowhere" / ".." / path.name
    if spelling == "link to the file":
        (place / "link").symlink_to(path)
        return place / "link"
    if spelling == "link to the folder":
        (place / "folder").symlink_to(path.parent)
        return place / "folder" / path.name
    if spelling == "hard link":
        (place / "hard").hardlink_to(path)
        return place / "hard"
    return path


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_file_is_seen_however_it_is_spelled(spelling, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("x")
    other = spell(path, spelling, tmp_path)
    with pytest.raises(UserError) as raised:
        check_outputs({"--json": other}, {"--sentences": path})
    assert str(raised.value) == f"--json {other} would overwrite --sentences ({path}); name another file"


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "hard link"])
def test_two_outputs_that_are_not_there_yet_are_seen_to_be_one(spelling, tmp_path):
    path = tmp_path / "new"
    with pytest.raises(UserError, match=r"--plot .* would overwrite --json"):
        check_outputs({"--json": path, "--cache": None, "--plot": spell(path, spelling, tmp_path)}, {})


def test_other_files_and_devices_are_allowed(tmp_path):
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    null = Path(os.devnull)
    check_outputs(
        {"--json": tmp_path / "a", "--plot": tmp_path / "new", "--predictions": null, "--cache": null},
        {"--sentences": tmp_path / "b", "--calibration-data": tmp_path / "missing", "x": None, "y": null},
    )


def test_the_names_of_the_model_folders_files_are_all_of_them(model_dir):
    assert {path.name for path in model_dir.iterdir()} <= set(FILE_NAMES)
    assert set(ModelFolder(model_dir).files().values()) == {model_dir / name for name in FILE_NAMES}


# --- the scripts: M is the model folder, S a text file ----------------------------------------------------------

QUANTIZED = "--precision int8 --calibration-data S"
REFUSED = [
    *[(builder, f"--plan M/{name}", f"the model's {name}") for name in FILE_NAMES],
    (builder, "--json M/config.json", "the model's config.json"),
    (builder, "--json M/builder.fp32.plan", "--plan"),
    (builder, "--json M/builder.fp32.plan.json", "the plan's description"),
    (builder, "--verbose --json M/builder.fp32.log", "the log of --verbose"),
    (builder, "--json M/timing.cache", "the timing cache"),
    (builder, "--plan x --sentences x", "--sentences"),
    (builder, "--sentences S --json S", "--sentences"),
    (builder, "--sentences S --predictions S", "--sentences"),
    (builder, "--sentences S --plan x.plan --json x.predictions.jsonl", "--predictions"),
    (builder, "--sentences S --plan x --predictions x", "--plan"),
    (builder, f"{QUANTIZED} --json S", "--calibration-data"),
    (builder, f"{QUANTIZED} --json M/calibration.json", "the calibration cache"),
    (builder, f"{QUANTIZED} --plan M/calibration.json", "--plan"),
    (onnx2trt, "--plan M/model.onnx", "the model's model.onnx"),
    (onnx2trt, "--json M/model.onnx.data", "the model's model.onnx.data"),
    (onnx2trt, "--plan x --json x.json", "the plan's description"),
    (calibrator, "--cache M/config.json", "the model's config.json"),
    (calibrator, "--calibration-data S --cache S", "--calibration-data"),
    (calibrator, "--calibration-data S --json S", "--calibration-data"),
    (calibrator, "--json x --cache x", "--cache"),
    (calibrator, "--json M/calibration.json", "--cache"),
    (calibrator, "--json x.png --plot x.png", "--json"),
    (sensitivity, "--json M/calibration.json", "the calibration cache"),
    (sensitivity, "--json M/demo_io.npz", "the model's demo_io.npz"),
    (sensitivity, "--calibration-data S --json S", "--calibration-data"),
    (sensitivity, "--json x.svg --plot x.svg", "--json"),
]


def check_refused(run: InProcess, script, arguments: str, overwritten: str, folder: Path, text: Path) -> None:
    """It is an error that names what would be overwritten; nothing has been written."""
    place = text.parent
    words = [{"S": str(text)}.get(word, word.replace("M/", f"{folder}/")) for word in arguments.split()]
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    ended = run(script.main, *words)
    assert ended.code == 1, ended.out + ended.err
    assert f" would overwrite {overwritten} (" in ended.err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the model folder; relative paths are beside it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


@pytest.mark.parametrize(("script", "arguments", "overwritten"), REFUSED)
def test_a_script_refuses(script, arguments, overwritten, in_process, folder, sentence_file):
    check_refused(in_process, script, f"--model-dir M/ {arguments}", overwritten, folder, sentence_file)


@pytest.mark.parametrize(
    ("arguments", "overwritten"),
    [
        ("x.plan S --out x.plan", "MODEL"),
        ("x.plan S --out x.plan.json", "MODEL.json"),
        ("x.plan S --out S", "INPUT"),
        ("x.plan S --out M/model.onnx", "the model's model.onnx"),
    ],
)
def test_predict_refuses(arguments, overwritten, in_process, folder, sentence_file, monkeypatch):
    profile = {name: [[1, 1], [1, 8], [1, 24]] for name in INPUT_NAMES}
    monkeypatch.setattr(predict, "check_plan", lambda _plan: b"")
    monkeypatch.setattr(predict, "read_info", lambda _plan: SimpleNamespace(profile=profile))
    words = [{"S": str(sentence_file)}.get(word, word.replace("M/", f"{folder}/")) for word in arguments.split()]
    ended = in_process(predict.main, *words, "--model-dir", folder)
    assert ended.code == 1
    assert f" would overwrite {overwritten} (" in ended.err


@pytest.mark.parametrize(
    ("arguments", "overwritten"),
    [
        ("--json M/onnx2trt.fp16.plan", "the plan onnx2trt.fp16.plan"),
        ("--json M/builder.fp16.fused.plan.json", "the description builder.fp16.fused.plan.json"),
        ("--json M/model.onnx", "the model's model.onnx"),
        ("--sentences S --json S", "--sentences"),
        ("--sentences S --fusion plugins --predictions S", "--sentences"),
    ],
)
def test_the_demo_refuses_before_it_exports(arguments, overwritten, in_process, checkpoint, folder, sentence_file):
    arguments = f"--model {checkpoint} --model-dir M/ --precision fp16 {arguments}"
    check_refused(in_process, demo, arguments, overwritten, folder, sentence_file)


def test_the_demo_has_no_one_file_for_the_predictions_of_two_plans(in_process):
    ended = in_process(demo.main, "--sentences", "x", "--predictions", "y")
    assert ended.code == 2
    assert "--predictions names one file, and here two plans predict" in ended.err


@pytest.mark.parametrize("spelling", ["as it is", "link to the folder", "by way of another folder"])
def test_an_export_does_not_go_over_its_checkpoint(spelling, in_process, checkpoint, tmp_path):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    out = spell(copy, "as it is", tmp_path)
    if spelling == "link to the folder":
        (tmp_path / "link").symlink_to(copy)
        out = tmp_path / "link"
    elif spelling == "by way of another folder":
        out = copy / ".." / "checkpoint"
    ended = in_process(model2onnx.main, "--model", copy, "--out-dir", out)
    assert ended.code == 1
    assert "config.json of --out-dir" in ended.err
    assert "would overwrite config.json of --model" in ended.err
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize(
    ("script_name", "arguments"),
    [
        ("benchmarks/attention.py", ""),
        ("benchmarks/batching_accuracy.py", "M C"),
        ("benchmarks/build_paths.py", ""),
        ("benchmarks/embedding.py", "M C"),
        ("benchmarks/encoder.py", "M"),
        ("benchmarks/ladders.py", ""),
        ("benchmarks/network_accuracy.py", "M"),
        ("benchmarks/packed_batches.py", "M"),
        ("benchmarks/quantization_accuracy.py", "M"),
        ("benchmarks/quantized_encoder.py", "M"),
        ("benchmarks/reranker.py", "M"),
        ("benchmarks/quantized_plans.py", "M"),
        ("benchmarks/skip_and_embedding_norms.py", ""),
        ("benchmarks/squad_throughput.py", ""),
    ],
)
def test_a_benchmark_refuses(script_name, arguments, in_process, model_dir, monkeypatch):
    words = [str(model_dir) if word == "M" else word for word in arguments.split()]
    main = load_main(script_name, monkeypatch)
    ended = in_process(main, *words, "--json", "x", "--markdown", "./x")
    assert ended.code == 1
    assert ended.err == "error: --markdown x would overwrite --json (x); name another file\n"


def load_main(script_name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    path = ROOT / script_name
    monkeypatch.syspath_prepend(path.parent)
    return importlib.import_module(path.stem).main


def test_a_benchmark_refuses_the_models_files(in_process, model_dir, monkeypatch):
    main = load_main("benchmarks/calibration_speed.py", monkeypatch)
    ended = in_process(main, model_dir, "--json", model_dir / "config.json")
    assert ended.code == 1
    assert "would overwrite the model's config.json" in ended.err


@pytest.mark.parametrize(
    ("script_name", "arguments"),
    [
        ("plugins/testLayerNormPlugin.py", "--json x.png --plot x.png"),
        ("demo_model/train.py", "--text vocab.txt --out-dir ."),
        ("demo_model/evaluate.py", "--model . --json config.json"),
    ],
)
def test_the_plugins_test_and_the_demo_models_scripts_refuse(
    script_name, arguments, in_process, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("vocab.txt", "config.json"):
        (tmp_path / name).write_text("a b c")
    ended = in_process(load_main(script_name, monkeypatch), *arguments.split())
    assert ended.code == 1
    assert " would overwrite " in ended.err
    assert {path.read_text() for path in tmp_path.iterdir()} == {"a b c"}
