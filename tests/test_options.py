"""Command lines are answered at once: --help and wrong usage import neither PyTorch nor TensorRT nor ONNX."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import options
from trt_helper import QUANTIZED_TYPES

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "tensorrt",
    "tensorrt_product",
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
    imported = set(re.findall(r"^import time: .*\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "argparse" in imported
    assert not imported & HEAVY


def test_precisions_that_quantize_are_those_that_the_helper_has_types_for():
    assert tuple(QUANTIZED_TYPES) == options.QUANTIZED_PRECISIONS
    assert set(options.QUANTIZED_PRECISIONS) < set(options.TOLERANCES)
