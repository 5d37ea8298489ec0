"""benchmarks/calibration_speed.py runs builder.py and leaves the model's folder as it is."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, InProcess


@pytest.fixture
def calibration_speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("calibration_speed")


def test_it_calibrates_without_the_models_cache(
    calibration_speed, in_process: InProcess, small_weights_dir: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(small_weights_dir, tmp_path / "model"))
    (folder / "calibration.json").write_text("not to be read")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments = ("--fusion", "none", "--calibration-sentences", "8", "--json", tmp_path / "x.json")
    ended = in_process(calibration_speed.main, folder, *arguments)
    assert ended.code == 0, ended.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert (result["precision"], result["fusion"]) == ("int8", "none")
    assert 0 < result["system_seconds"] < result["processor_seconds"]
    assert result["seconds"] > 1  # it has imported PyTorch and calibrated
    assert 0 < result["rel_l2"] < 0.05


def test_a_failure_of_the_builder_is_an_error(
    calibration_speed, in_process: InProcess, small_weights_dir: Path, tmp_path: Path
):
    damaged = Path(shutil.copytree(small_weights_dir, tmp_path / "damaged"))
    (damaged / "model.onnx.data").unlink()
    ended = in_process(calibration_speed.main, damaged, "--fusion", "none")
    assert ended.code == 1
    assert ended.err.endswith("error: builder.py --precision int8 --fusion none ended with 1\n")
