"""Builds the plugin library and its host with CMake, unless both are up to date.

    python plugins/build.py                          the architectures of the last build; at first "native"
    python plugins/build.py --architectures native   the GPU of this machine; without one 8.0
    python plugins/build.py --architectures 80,90    only these
    python plugins/build.py --architectures all      Turing to Blackwell, for releases: takes minutes

Scripts that need the libraries build them (``library_path``), so that this script need not be run first. A library
has machine code for the named architectures, and PTX of the newest one, which the driver of a newer GPU compiles when
it loads the library. The kernels for Hopper are only built if 90 is among the architectures.

The CUDA compiler is the first of: $CUDACXX, nvcc on the PATH, /usr/local/cuda, and NVIDIA's pip packages
(plugins/requirements-cuda.txt). The build uses ccache if it is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bert_trt.console import UserError, run_script
from bert_trt.progress import run_with_progress

PLUGINS = Path(__file__).resolve().parent
BUILD_DIR = PLUGINS / "build"
LIBRARY = "libbert_plugins.so"
HOST = "libplugin_host.so"
BUILD_COMMAND = "python plugins/build.py"
REQUIREMENTS = "plugins/requirements-cuda.txt"
USUAL_NVCC = Path("/usr/local/cuda/bin/nvcc")
# The variable names a folder of built libraries, used as they are. Without it, plugins/build is kept up to date.
BUILD_DIR_VARIABLE = "BERT_PLUGINS_BUILD_DIR"
NATIVE = "native"
# For a machine without a GPU: the oldest architecture whose PTX has bf16 products.
ARCHITECTURE_WITHOUT_GPU = "80"
OLDEST_WITH_FP8 = 89
SOURCE_SUFFIXES = (".cpp", ".cu", ".cuh", ".h", ".map", ".txt")
DIGEST = "sources.sha256"  # file in the build folder with the digest of the sources that were built last
CACHE = "CMakeCache.txt"
COMPILED = re.compile(r"Building (?:CUDA|CXX) object \S+?\.dir/(\S+)\.o\b")


class BuildError(UserError):
    """The plugins are not built or cannot be built; the message says what to do."""


def run_c_compiler(command: Sequence[str], remedy: str) -> None:
    """Runs a C compiler's command line, for the small libraries that CMake does not build.

    Raises:
        BuildError: it cannot be run, or it fails; ``remedy`` is the message's last line then.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"cannot run the C compiler {command[0]}: {error.strerror}; set the variable CC to one that works"
        ) from error
    if done.returncode != 0:
        raise BuildError(f"{done.stderr}\nfailed: {' '.join(command)}\n{remedy}")


@dataclass(frozen=True)
class Compiler:
    """A CUDA compiler and the environment variables that it needs."""

    nvcc: Path
    environment: dict[str, str]


def build_dir() -> Path:
    """The folder of built libraries: $BERT_PLUGINS_BUILD_DIR, else plugins/build."""
    return Path(os.environ.get(BUILD_DIR_VARIABLE) or BUILD_DIR)


def built_file(name: str) -> Path:
    """The path of a library. In plugins/build it is built first if it is missing or older than its sources.

    Raises:
        BuildError: the library is missing in $BERT_PLUGINS_BUILD_DIR, or cannot be built.
    """
    path = build_dir() / name
    if os.environ.get(BUILD_DIR_VARIABLE):
        if not path.is_file():
            raise BuildError(
                f"{path} is missing: the plugins are not built. Build them: {BUILD_COMMAND} --build-dir "
                f"{path.parent}; or unset {BUILD_DIR_VARIABLE}"
            )
    elif not _is_up_to_date(BUILD_DIR):
        build()
    return path


def library_path() -> Path:
    """The TensorRT plugin library, up to date; see ``built_file``."""
    return built_file(LIBRARY)


def host_path() -> Path:
    """The plugin host, up to date; see ``built_file``."""
    return built_file(HOST)


def _digest_of_sources() -> str:
    """The digest of file names and contents: file times are unreliable in a copy or after a change of branches."""
    digest = hashlib.sha256()
    for path in sorted(PLUGINS.rglob("*")):
        if path.suffix in SOURCE_SUFFIXES and BUILD_DIR not in path.parents:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(PLUGINS)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _is_up_to_date(directory: Path) -> bool:
    """Whether both libraries were built from the present sources."""
    if not all((directory / name).is_file() for name in (LIBRARY, HOST, DIGEST)):
        return False
    return (directory / DIGEST).read_text() == _digest_of_sources()


def _pip_toolkit() -> Path | None:
    """The folder of NVIDIA's pip packages, if nvcc is among them."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for toolkit in sorted(Path(folder).glob("cu[0-9]*"), reverse=True):
            if (toolkit / "bin" / "nvcc").is_file():
                return toolkit
    return None


def _environment(nvcc: Path) -> dict[str, str]:
    """The environment for nvcc, which looks for libraries in lib64, while the pip packages have them in lib."""
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
    """The command that starts CMake: the one on the PATH, else the pip package's; None without CMake."""
    on_path = shutil.which("cmake")
    if on_path:
        return [on_path]
    return [sys.executable, "-m", "cmake"] if importlib.util.find_spec("cmake") else None


def missing_tools() -> list[str]:
    """The names of the tools that are missing for a build on this machine."""
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


def native_architectures() -> str:
    """The architectures of this machine's GPUs, such as "90"; without a GPU ``ARCHITECTURE_WITHOUT_GPU``."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        answer = ""
    architectures = {int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", answer, re.MULTILINE)}
    return ",".join(map(str, sorted(architectures))) or ARCHITECTURE_WITHOUT_GPU


def describe_architectures(architectures: str) -> str:
    """One line that says which GPUs a library is built for, and what it lacks for newer ones.

    Args:
        architectures: as CMake gets them, such as "80;90", or "all".
    """
    numbers = [int(number) for number in architectures.split(";") if number.isdigit()]
    if not numbers:
        return f"building the plugins for the GPU architectures: {architectures}"
    names = ", ".join(f"{number // 10}.{number % 10}" for number in numbers)
    lacking = ""
    if max(numbers) < OLDEST_WITH_FP8:
        lacking = f"; fp8 on a GPU of 8.9 or newer needs {BUILD_COMMAND} --architectures with its own (89, 90)"
    return f"building the plugins for the GPU architectures: {names}{lacking}"


def _read_cache(directory: Path) -> dict[str, str]:
    """CMake's cache of the last configuration; empty before the first one."""
    path = directory / CACHE
    text = path.read_text(errors="replace") if path.is_file() else ""
    return dict(re.findall(r"^([\w-]+):\w+=(.*)$", text, re.MULTILINE))


def _is_usable(cache: dict[str, str], compiler: Compiler) -> bool:
    """Whether CMake can reuse its cache: not after the checkout was moved or copied, nor with other compilers."""
    tools = (cache.get("CMAKE_CXX_COMPILER", ""), cache.get("CMAKE_MAKE_PROGRAM", ""))
    return (
        cache.get("CMAKE_HOME_DIRECTORY") == str(PLUGINS)
        and cache.get("CMAKE_CUDA_COMPILER") == str(compiler.nvcc)
        and all(Path(tool).is_file() for tool in tools)
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds a lock on the folder, so that only one process builds in it at a time."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another process that builds the plugins", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], label: str, environment: dict[str, str], verbose: bool) -> None:
    """Runs a command and prints each file that is compiled; raises a BuildError with its output if it fails."""
    num_started = 0

    def show(line: str) -> str | None:
        nonlocal num_started
        file = COMPILED.search(line)
        if file:
            num_started += 1
        return line if verbose else f"compiling {file[1]} ({num_started})" if file else None

    code, written = run_with_progress(command, label, show, os.environ | environment)
    if code != 0:
        raise BuildError(f"{written}\nfailed: {' '.join(command)}")


def build(
    architectures: str | None = None,
    tensorrt_include: str | None = None,
    directory: Path | None = None,
    jobs: int | None = None,
    verbose: bool = False,
) -> Path:
    """Configures and builds the plugins.

    Args:
        architectures: such as "80,90", "native" or "all"; None for those of the last build, at first "native".
        tensorrt_include: the folder of TensorRT's headers, or "OFF" for the project's own header; None for that of
            the last build.
        directory: the build folder; default: ``build_dir()``.
        jobs: number of compilers at a time; default: one for each processor.
        verbose: whether to print the output of CMake and the compilers.

    Returns:
        The path of the plugin library.

    Raises:
        BuildError: tools are missing, or CMake or a compiler fails.
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
    with _locked(directory):
        cache = _read_cache(directory)
        if cache and not _is_usable(cache, compiler):
            (directory / CACHE).unlink()
            shutil.rmtree(directory / "CMakeFiles", ignore_errors=True)
        digest = _digest_of_sources()
        architectures = architectures or cache.get("BERT_ARCHITECTURES") or NATIVE
        if architectures == NATIVE:
            architectures = native_architectures()
        architectures = architectures.replace(",", ";").replace(".", "")
        print(describe_architectures(architectures), file=sys.stderr, flush=True)
        options = _options(architectures, tensorrt_include, cache, compiler)
        configure = [*cmake, "-S", str(PLUGINS), "-B", str(directory), *options]
        _run(configure, "configuring the plugins", compiler.environment, verbose)
        jobs = jobs or len(os.sched_getaffinity(0))
        compile_all = [*cmake, "--build", str(directory), "--parallel", str(jobs)]
        _run(compile_all, "compiling the plugins", compiler.environment, verbose)
        (directory / DIGEST).write_text(digest)
    return directory / LIBRARY


def _options(
    architectures: str, tensorrt_include: str | None, cache: dict[str, str], compiler: Compiler
) -> list[str]:
    """CMake's -D options; the folder of headers is that of the last build where it is None."""
    include = tensorrt_include or cache.get("TENSORRT_INCLUDE_DIR", "")
    launcher = shutil.which("ccache") or ""
    options = {
        "CMAKE_CUDA_COMPILER": str(compiler.nvcc),
        "CMAKE_CUDA_COMPILER_LAUNCHER": launcher,
        "CMAKE_CXX_COMPILER_LAUNCHER": launcher,
        "BERT_ARCHITECTURES": architectures,
    }
    if tensorrt_include or include == "OFF" or Path(include, "NvInferRuntime.h").is_file():
        options["TENSORRT_INCLUDE_DIR"] = include
    return [f"-D{name}={value}" for name, value in options.items()]


def main() -> int:
    """Runs the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", help='GPU architectures: e.g. "8.0,9.0", "native" or "all"')
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
