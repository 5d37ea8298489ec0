"""Builds the plugin library and its host with CMake; does nothing where both are up to date.

    python plugins/build.py                          all architectures from Turing to Blackwell
    python plugins/build.py --architectures 80,90    only these; "native" for the GPU of this machine

The CUDA compiler is the first of: $CUDACXX, nvcc on the PATH, /usr/local/cuda, and NVIDIA's pip packages
(plugins/requirements-cuda.txt).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, run_script

PLUGINS = Path(__file__).resolve().parent
BUILD_DIR = PLUGINS / "build"
LIBRARY = "libbert_plugins.so"
HOST = "libplugin_host.so"
BUILD_COMMAND = "python plugins/build.py"
REQUIREMENTS = "plugins/requirements-cuda.txt"
USUAL_NVCC = Path("/usr/local/cuda/bin/nvcc")
# The folder to take built libraries from, where it is not plugins/build.
BUILD_DIR_VARIABLE = "BERT_PLUGINS_BUILD_DIR"


class BuildError(UserError):
    """The plugins are not built or cannot be built; the message says what to do."""


@dataclass(frozen=True)
class Compiler:
    """A CUDA compiler, and what the environment must hold for it to work."""

    nvcc: Path
    environment: dict[str, str]


def build_dir() -> Path:
    """Where built libraries are looked for: $BERT_PLUGINS_BUILD_DIR, else plugins/build."""
    return Path(os.environ.get(BUILD_DIR_VARIABLE) or BUILD_DIR)


def built_file(name: str) -> Path:
    """A built library. Raises BuildError with the command that builds it where it is missing."""
    path = build_dir() / name
    if not path.is_file():
        raise BuildError(f"{path} is missing: the plugins are not built. Build them: {BUILD_COMMAND}")
    return path


def library_path() -> Path:
    """The TensorRT plugin library. Raises BuildError where it is not built."""
    return built_file(LIBRARY)


def host_path() -> Path:
    """The plugin host. Raises BuildError where it is not built."""
    return built_file(HOST)


def _pip_toolkit() -> Path | None:
    """The folder that NVIDIA's pip packages install into, if nvcc is among them."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for toolkit in sorted(Path(folder).glob("cu[0-9]*"), reverse=True):
            if (toolkit / "bin" / "nvcc").is_file():
                return toolkit
    return None


def _environment(nvcc: Path) -> dict[str, str]:
    """What nvcc needs set: it looks for libraries in lib64, and the pip packages have them in lib."""
    toolkit = nvcc.resolve().parent.parent
    if (toolkit / "lib64").is_dir() or not (toolkit / "lib").is_dir():
        return {}
    library_paths = [str(toolkit / "lib"), os.environ.get("LIBRARY_PATH", "")]
    return {"LIBRARY_PATH": os.pathsep.join(filter(None, library_paths))}


def find_compiler() -> Compiler | None:
    """The CUDA compiler to use, or None."""
    toolkit = _pip_toolkit()
    pip_nvcc = toolkit / "bin" / "nvcc" if toolkit else None
    for candidate in (os.environ.get("CUDACXX"), shutil.which("nvcc"), USUAL_NVCC, pip_nvcc):
        if candidate and Path(candidate).is_file():
            return Compiler(Path(candidate), _environment(Path(candidate)))
    return None


def find_cmake() -> list[str] | None:
    """The command that starts CMake: the one on the PATH, else the pip package's."""
    found = shutil.which("cmake")
    if found:
        return [found]
    return [sys.executable, "-m", "cmake"] if importlib.util.find_spec("cmake") else None


def missing_tools() -> list[str]:
    """What a build lacks on this machine, in words; empty where it can start."""
    missing = []
    if find_compiler() is None:
        missing.append("CUDA compiler (nvcc)")
    if find_cmake() is None:
        missing.append("cmake")
    if not (shutil.which("c++") or shutil.which("g++") or os.environ.get("CXX")):
        missing.append("C++ compiler")
    if not (shutil.which("make") or shutil.which("ninja")):
        missing.append("make")
    return missing


def _run(command: list[str], environment: dict[str, str], verbose: bool) -> None:
    """Runs a command quietly; raises BuildError with all it wrote if it fails."""
    done = subprocess.run(
        command,
        env=os.environ | environment,
        stdout=None if verbose else subprocess.PIPE,
        stderr=None if verbose else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{done.stdout or ''}\nfailed: {' '.join(command)}")


def build(
    architectures: str | None = None,
    tensorrt_include: str | None = None,
    directory: Path | None = None,
    jobs: int | None = None,
    verbose: bool = False,
) -> Path:
    """Configures and builds what is not up to date, and returns the plugin library.

    ``architectures`` ("80,90", "native") and ``tensorrt_include`` (a folder, or "OFF" for the project's own
    header) stay as they were in the last build where they are None.
    """
    missing = missing_tools()
    if missing:
        raise BuildError(
            f"cannot build the plugins, {', '.join(missing)} missing on this machine. "
            f"A CUDA compiler and cmake come with: pip install -r {REQUIREMENTS}"
        )
    compiler, cmake = find_compiler(), find_cmake()
    assert compiler is not None and cmake is not None
    directory = directory or build_dir()
    options = [f"-DCMAKE_CUDA_COMPILER={compiler.nvcc}"]
    if architectures is not None:
        options.append(f"-DBERT_ARCHITECTURES={architectures.replace(',', ';').replace('.', '')}")
    if tensorrt_include is not None:
        options.append(f"-DTENSORRT_INCLUDE_DIR={tensorrt_include}")
    _run([*cmake, "-S", str(PLUGINS), "-B", str(directory), *options], compiler.environment, verbose)
    jobs = jobs or len(os.sched_getaffinity(0))
    _run([*cmake, "--build", str(directory), "--parallel", str(jobs)], compiler.environment, verbose)
    return directory / LIBRARY


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", help='GPU architectures, e.g. "8.0,9.0", or "native"')
    parser.add_argument("--tensorrt-include", help='folder of NvInferRuntime.h, or "OFF"')
    parser.add_argument("--build-dir", type=Path, help="default: plugins/build")
    parser.add_argument("--jobs", type=int, help="compilers at a time; default: one for each processor")
    parser.add_argument("--check-tools", action="store_true", help="exit with 1 if nvcc or CMake is missing")
    parser.add_argument("--verbose", action="store_true", help="show what CMake and the compilers write")
    arguments = parser.parse_args()
    if arguments.check_tools:
        return 1 if find_compiler() is None or find_cmake() is None else 0
    print(
        build(
            arguments.architectures,
            arguments.tensorrt_include,
            arguments.build_dir,
            arguments.jobs,
            arguments.verbose,
        )
    )
    return 0


if __name__ == "__main__":
    run_script(main)
