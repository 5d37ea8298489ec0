"""Which TensorRT is chosen, and what is said where none can be."""

import os
import subprocess
import sys
from pathlib import Path

import tensorrt_product

ROOT = Path(__file__).parent.parent


def import_with(product: str, extra_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(path) for path in (extra_path, ROOT) if path]
    environment = os.environ | {"BERT_TENSORRT_PRODUCT": product, "PYTHONPATH": os.pathsep.join(paths)}
    if not product:
        del environment["BERT_TENSORRT_PRODUCT"]
    command = [sys.executable, "-c", "import tensorrt_product as p; print(p.describe())"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_describe_names_product_and_version():
    product, version = tensorrt_product.describe().split()
    assert product in ("tensorrt", "tensorrt_rtx")
    assert version == tensorrt_product.trt.__version__


def test_full_tensorrt_wins_when_new_enough(tmp_path):
    (tmp_path / "tensorrt.py").write_text('__version__ = "11.1.0.1"\n')
    assert import_with("", tmp_path).stdout.strip() == "tensorrt 11.1.0.1"


def test_too_old_full_tensorrt_is_passed_over(tmp_path):
    (tmp_path / "tensorrt.py").write_text('__version__ = "10.12.0.36"\n')
    assert import_with("", tmp_path).stdout.startswith("tensorrt_rtx ")


def test_too_old_full_tensorrt_asked_for_by_name_is_an_error(tmp_path):
    (tmp_path / "tensorrt.py").write_text('__version__ = "8.6.1"\n')
    answer = import_with("tensorrt", tmp_path)
    assert answer.returncode != 0
    assert "version 8.6.1 is installed, 10.13 or newer is needed" in answer.stderr


def test_unknown_product_is_an_error():
    assert "expected one of tensorrt, tensorrt_rtx" in import_with("tensorflow").stderr
