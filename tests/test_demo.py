"""The demo shows three networks; without plugins it says why there are two, and goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import InProcess, make_checkpoint
from plugin_build_for_tests import built_plugins

import demo
from plugins import build


@pytest.fixture
def run_demo(in_process: InProcess, tmp_path):
    def run(checkpoint, *options: object) -> tuple[list[dict[str, Any]], str, str]:
        result = tmp_path / "result.json"
        done = in_process(
            demo.main, "--model", checkpoint, "--model-dir", tmp_path / "out", "--json", result, *options
        )
        assert done.code == 0, done.out + done.err
        return json.loads(result.read_text()), done.out, " ".join(done.err.split())

    return run


def test_three_networks_agree_with_pytorch(run_demo, checkpoint):
    built_plugins()
    results, out, _ = run_demo(checkpoint)
    assert [one["way"] for one in results] == ["builder.py", "onnx2trt.py", "builder.py"]
    assert [bool(one["fused"]) for one in results] == [False, False, True]
    assert all(one["within_tolerance"] for one in results)
    assert results[2]["num_layers"] < results[0]["num_layers"] < results[1]["num_layers"]
    assert "builder.py fp32 plugins" in out


def test_two_networks_where_the_plugins_are_asked_for_throughout(run_demo, checkpoint):
    built_plugins()
    results, _, _ = run_demo(checkpoint, "--fusion", "plugins")
    assert [bool(one["fused"]) for one in results] == [True, False]


def test_plugins_that_cannot_be_built_are_left_out_with_the_remedy(run_demo, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "BUILD_DIR", tmp_path / "plugins")
    monkeypatch.delenv(build.BUILD_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    results, out, err = run_demo(checkpoint)
    assert [bool(one["fused"]) for one in results] == [False, False]
    assert "warning: the network with plugins is left out: cannot build the plugins" in err
    assert "pip install -r plugins/requirements-cuda.txt" in err
    assert "fp32 plugins" not in out


def test_a_model_whose_heads_the_plugin_has_not_is_shown_with_native_attention(run_demo, tmp_path):
    built_plugins()
    results, _, err = run_demo(make_checkpoint(tmp_path / "narrow", num_attention_heads=8))
    assert [one["fused"] for one in results] == [[], [], ["EmbLayerNorm", "SkipLayerNorm"]]
    assert (
        "--fusion plugins: the model's heads have 16 elements, and the QkvToContext plugin takes 32, 64, 128" in err
    )
    assert "attention stays native" in err
