"""Which TensorRT is chosen, and what is said where none can be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Script

from bert_trt import tensorrt_product

ROOT = Path(__file__).parent.parent


def import_with(product: str, extra_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(path) for path in (extra_path, ROOT) if path]
    environment = os.environ | {"BERT_TENSORRT_PRODUCT": product, "PYTHONPATH": os.pathsep.join(paths)}
    if not product:
        del environment["BERT_TENSORRT_PRODUCT"]
    command = [sys.executable, "-c", "from bert_trt import tensorrt_product as p; print(p.describe())"]
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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            'raise OSError("libnvinfer.so.10: cannot open shared object file")',
            "tensorrt: libnvinfer.so.10: cannot open",
        ),
        ("raise RuntimeError('TensorRT currently does not build wheels for this Python')", "does not build wheels"),
        ("import no_such_bindings", "tensorrt: No module named 'no_such_bindings'"),
        ("", "tensorrt.py is not TensorRT"),
        ('__version__ = "unknown"', "tensorrt.py is not TensorRT"),
    ],
)
def test_a_broken_installation_is_an_error_with_its_reason(tmp_path, content, told):
    (tmp_path / "tensorrt.py").write_text(content + "\n")
    answer = import_with("tensorrt", tmp_path)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert told in answer.stderr
    assert "; or unset BERT_TENSORRT_PRODUCT" in answer.stderr
    assert import_with("", tmp_path).stdout.startswith("tensorrt_rtx ")


SCRIPTS = {
    "builder.py": (),
    "onnx2trt.py": (),
    "demo.py": (),
    "calibrator.py": (),
    "sensitivity.py": (),
    "predict.py": ("a.plan", "sentences.txt", "--out", "a.jsonl"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_tensorrt_ends_with_the_message(script: Script, tmp_path, name):
    for product in tensorrt_product.PRODUCTS:
        (tmp_path / f"{product}.py").write_text(f"raise ImportError('no {product} here')\n")
    answer = script(name, *SCRIPTS[name], PYTHONPATH=str(tmp_path))
    assert answer.returncode == 1
    assert answer.stderr == (
        "error: no usable TensorRT found (tensorrt: no tensorrt here; tensorrt_rtx: no tensorrt_rtx here). "
        "Install one: pip install -r requirements.txt (no GPU needed), or -r requirements-gpu.txt\n"
    )


@pytest.mark.parametrize("product", ["tensorflow", "", "tensorrt_rtx "])
def test_a_script_with_a_wrong_product_ends_with_the_message(script: Script, product):
    answer = script("builder.py", BERT_TENSORRT_PRODUCT=product)
    assert answer.returncode == 1
    assert answer.stderr == (f"error: BERT_TENSORRT_PRODUCT is {product!r}; expected one of tensorrt, tensorrt_rtx\n")


def test_it_is_an_import_error_for_those_who_can_do_without():
    assert issubclass(tensorrt_product.TensorRTMissingError, ImportError)
