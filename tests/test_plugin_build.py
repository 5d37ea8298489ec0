"""The plugins' build: own header and NVIDIA's, loggers of old and new TensorRT, what is said when it fails.

TENSORRT_INCLUDE_DIR may name folders of NVIDIA's headers (separated as in PATH) to compare with.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_build_for_tests import ARCHITECTURES, ROOT, built_plugins, compile_and_run

from plugins import build

TESTS = Path(__file__).parent
HEADERS = [path for path in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if path]
needs_headers = pytest.mark.skipif(
    not HEADERS, reason="needs NVIDIA's headers: set TENSORRT_INCLUDE_DIR to the folder of NvInferRuntime.h"
)
headers = pytest.mark.parametrize("include", HEADERS or ["none"])


@needs_headers
@headers
def test_own_header_has_nvidias_layout(include, tmp_path):
    own = compile_and_run("plugin_abi_probe.cpp", tmp_path, [], [])
    nvidia = ["-DBERT_USE_NVIDIA_HEADERS", f"-I{include}"]
    assert own == compile_and_run("plugin_abi_probe.cpp", tmp_path, nvidia, [])
    assert own.count("slot ") == 34


def test_own_header_has_the_layout_that_nvidias_headers_had(tmp_path):
    """Without NVIDIA's headers: their answer for 10.16 and 11.1, which agree, is kept beside the probe."""
    kept = (TESTS / "plugin_abi_expected.txt").read_text()
    assert compile_and_run("plugin_abi_probe.cpp", tmp_path, [], []) == kept


@needs_headers
@headers
def test_builds_with_nvidias_headers_and_loads_into_tensorrt(include, tmp_path):
    library = build.build(ARCHITECTURES, include, tmp_path)
    command = [sys.executable, "plugins/testLayerNormPlugin.py", "--kernel", "fast", "--no-benchmark"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {build.BUILD_DIR_VARIABLE: str(library.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loads the library and builds 3 engines" in done.stdout


def test_logs_through_the_logger_of_tensorrt_10(tmp_path):
    library = built_plugins() / build.LIBRARY
    output = compile_and_run("plugin_logger_probe.cpp", tmp_path, [], [str(library)])
    assert output == ('severity 1: LayerNorm plugin, createPlugin: layer "encoder": field epsilon is missing\n')


def test_second_build_does_nothing():
    folder = built_plugins()
    if os.environ.get(build.BUILD_DIR_VARIABLE):
        pytest.skip("the libraries were given, not built here")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.o")}
    assert before
    build.build(directory=folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.o")}


def test_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    with pytest.raises(build.BuildError, match=r"CUDA compiler \(nvcc\) missing") as error:
        build.build(directory=tmp_path)
    assert "pip install -r plugins/requirements-cuda.txt" in str(error.value)


def test_unknown_architecture_is_an_error(tmp_path):
    if build.missing_tools():
        pytest.skip(f"needs {', '.join(build.missing_tools())}")
    command = [sys.executable, "plugins/build.py", "--architectures", "12345", "--build-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "12345" in done.stderr


def test_wrong_usage_exits_with_2():
    done = subprocess.run(
        [sys.executable, "plugins/build.py", "--nonsense"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2


def test_pip_toolkit_gets_its_library_folder(monkeypatch, tmp_path):
    """nvcc from pip looks in lib64 and finds its libraries in lib only where it is told."""
    nvcc = tmp_path / "nvidia" / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("")
    (tmp_path / "nvidia" / "cu13" / "lib").mkdir()
    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    compiler = build.find_compiler()
    assert compiler is not None
    assert compiler.environment == {"LIBRARY_PATH": str(tmp_path / "nvidia" / "cu13" / "lib")}


def test_shim_is_built_once(tmp_path):
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    pytest.importorskip("tensorrt_rtx_libs", reason="needs tensorrt_rtx")
    from plugins import rtx_parser_shim

    shim = rtx_parser_shim.build_shim(tmp_path)
    built = shim.stat().st_mtime_ns
    assert rtx_parser_shim.build_shim(tmp_path) == shim
    assert shim.stat().st_mtime_ns == built
