"""Builds the plugins once for all tests that need them; `make test` has built them before.

All tests of a run use the same library: TensorRT registers a plugin only once in a process.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest

from plugins import build

ROOT = Path(__file__).parent.parent


@functools.cache
def built_plugins() -> Path:
    """The folder with both libraries; skips the test where nothing can be built."""
    missing = build.missing_tools()
    if missing and not os.environ.get(build.BUILD_DIR_VARIABLE):
        pytest.skip(f"needs {', '.join(missing)}: pip install -r {build.REQUIREMENTS}, and a C++ compiler")
    return build.library_path().parent


def cuda_include() -> str:
    """The folder of cuda_runtime_api.h, as CMake found it."""
    flags = (built_plugins() / "CMakeFiles/plugin_host.dir/flags.make").read_text()
    return next(word for word in flags.split() if (Path(word) / "cuda_runtime_api.h").is_file())


def compile_and_run(source: str, tmp_path: Path, options: list[str], arguments: list[str]) -> str:
    """Compiles a program of this folder and returns what it writes to standard output."""
    program = tmp_path / source.removesuffix(".cpp")
    command = ["c++", "-std=c++17", "-w", f"-I{ROOT / 'plugins'}", "-isystem", cuda_include(), *options]
    subprocess.run([*command, str(ROOT / "tests" / source), "-o", str(program), "-ldl", "-pthread"], check=True)
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True).stdout
