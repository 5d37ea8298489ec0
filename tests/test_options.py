"""Command lines are answered at once: --help and wrong usage import neither PyTorch nor TensorRT nor ONNX."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_trt import command_line, options
from bert_trt.element_types import ELEMENT_TYPES

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "tensorrt",
    "bert_trt.tensorrt_product",
    "ml_dtypes",
    "numpy",
}
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "plugins", "benchmarks", "demo_model")
    for path in (ROOT / folder).glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text() and path.name != "progress.py"
)


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--no-such-option", 2)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_line_is_answered_before_anything_heavy_is_imported(script, argument, code):
    command = [sys.executable, "-X", "importtime", script, argument]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "usage: " in (done.stdout if code == 0 else done.stderr)
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argparse" in imported
    assert not imported & HEAVY


def test_precisions_that_quantize_are_those_that_the_helper_has_types_for():
    assert [name for name, one in ELEMENT_TYPES.items() if one.is_quantized] == sorted(options.QUANTIZED_PRECISIONS)
    assert set(options.QUANTIZED_PRECISIONS) < set(options.TOLERANCES)


# --- options without effect -----------------------------------------------------------------------------------

QUANTIZING = {
    "--calibration": "mse",  # the default's own values are refused as well
    "--percentile": "99.99",
    "--calibration-data": "calibrator_data.txt",
    "--calibration-sentences": "128",
    "--quantize": "qkv",
    "--smooth": "off",
    "--max-error": "0.1",
}
BUILDING = [command_line.builder_arguments, command_line.onnx2trt_arguments, command_line.demo_arguments]
EVERY = [*BUILDING, command_line.calibrator_arguments, command_line.sensitivity_arguments]


def read(monkeypatch: pytest.MonkeyPatch, arguments: Callable[[], Any], *given: str) -> Any:
    """The options of a plan, of demo.py too, or of a calibration."""
    monkeypatch.setattr(sys, "argv", ["script.py", *given])
    found = arguments()
    return found[1] if isinstance(found, tuple) else found


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[], Any],
    *given: str,
) -> str:
    with pytest.raises(SystemExit) as ended:
        read(monkeypatch, arguments, *given)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("option", QUANTIZING)
@pytest.mark.parametrize("arguments", BUILDING)
def test_an_option_of_quantization_is_refused_in_other_types(monkeypatch, capsys, arguments, option, precision):
    told = refused(monkeypatch, capsys, arguments, "--precision", precision, option, QUANTIZING[option])
    assert f"{option} has no effect with --precision {precision}; it needs int8 or fp8" in told


@pytest.mark.parametrize("precision", options.QUANTIZED_PRECISIONS)
@pytest.mark.parametrize("arguments", BUILDING)
def test_all_of_them_are_taken_where_they_are_read(monkeypatch, arguments, precision):
    given = [part for pair in QUANTIZING.items() for part in pair]
    found = read(monkeypatch, arguments, "--precision", precision, *given, "--calibration", "percentile").quantization
    assert (found.settings.percentile, found.settings.method, found.max_error) == (99.99, "percentile", 0.1)


@pytest.mark.parametrize("arguments", EVERY)
def test_nothing_given_is_nothing_refused(monkeypatch, arguments):
    assert read(monkeypatch, arguments).quantization == options.QuantizationOptions()


@pytest.mark.parametrize("method", ["max", "mse", "entropy"])
@pytest.mark.parametrize("arguments", EVERY)
def test_a_percentile_needs_its_method(monkeypatch, capsys, arguments, method):
    given = ("--precision", "int8", "--percentile", "99", "--calibration", method)
    told = refused(monkeypatch, capsys, arguments, *given)
    assert f"--percentile has no effect with --calibration {method}; it needs --calibration percentile" in told


@pytest.mark.parametrize("arguments", EVERY)
def test_smoothing_needs_a_linear_layer(monkeypatch, capsys, arguments):
    given = ("--precision", "int8", "--quantize", "attention", "--smooth")
    assert "--smooth has no effect with --quantize attention" in refused(
        monkeypatch, capsys, arguments, *given, "0.5"
    )
    assert read(monkeypatch, arguments, *given, "off").quantization.settings.smoothing is None
    taken = read(monkeypatch, arguments, *given[:3], "attention,qkv", "--smooth", "0.5")
    assert taken.quantization.settings.smoothing == 0.5


@pytest.mark.parametrize(
    ("arguments", "given", "taken"),
    [
        (command_line.builder_arguments, (), False),
        (command_line.builder_arguments, ("--fusion", "tensorrt"), False),
        (command_line.builder_arguments, ("--fusion", "plugins"), True),
        (command_line.builder_arguments, ("--layer-norm", "fast"), True),
        (command_line.onnx2trt_arguments, (), False),
        (command_line.onnx2trt_arguments, ("--layer-norm", "fast"), True),
        (command_line.demo_arguments, (), True),  # its third network has plugins
        (command_line.demo_arguments, ("--fusion", "tensorrt"), False),
    ],
)
def test_nothing_is_left_out_of_a_plan_without_plugins(monkeypatch, capsys, arguments, given, taken):
    if taken:
        assert read(monkeypatch, arguments, "--no-embed-plugins", *given).no_embed_plugins
    else:
        told = refused(monkeypatch, capsys, arguments, "--no-embed-plugins", *given)
        assert "--no-embed-plugins has no effect without plugins" in told
