"""Lets the ONNX parser of TensorRT for RTX create plugin layers.

For a node whose op type is a registered plugin, the parser of tensorrt_rtx 1.7.1 opens ``libtensorrt_rtx.so``, by
exactly this name. The pip package ships ``libtensorrt_rtx.so.1``, so that the parser does not find the library and
ends the process. ``load`` therefore links and loads an empty library of that name, the shim, which depends on the
TensorRT library in this process: the parser then opens the shim, and finds TensorRT through it. The package is not
changed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
from pathlib import Path

from bert_trt.files import make_folder
from plugins.build import BUILD_DIR_VARIABLE, BuildError, build_dir, run_c_compiler

SHIM = "libtensorrt_rtx.so"
MAPPINGS = Path("/proc/self/maps")  # a line for each mapping of each loaded library, with the path at its end


def loaded_library() -> Path:
    """The path of the libtensorrt_rtx.so.N that this process has loaded.

    Raises:
        BuildError: no such library is loaded.
    """
    try:
        lines = os.fsdecode(MAPPINGS.read_bytes()).splitlines()  # paths need not be UTF-8
    except OSError as error:
        raise BuildError(
            f"cannot find {SHIM}.*: {MAPPINGS} is not readable ({error.strerror}); plugins in tensorrt_rtx need "
            "Linux with /proc, or the full tensorrt (pip install -r requirements-gpu.txt)"
        ) from error
    paths = (Path(line.split(maxsplit=5)[5]) for line in lines if SHIM in line)
    libraries = sorted({path for path in paths if path.name.startswith(f"{SHIM}.") and path.is_file()})
    if not libraries:
        raise BuildError(
            f"no {SHIM}.* is loaded in this process, although tensorrt_rtx is in use; install it again: "
            "pip install --force-reinstall -r requirements.txt"
        )
    return libraries[0]


def build_shim(folder: Path) -> Path:
    """Links the shim in ``folder``, unless there is one for the loaded library already.

    Raises:
        BuildError: there is no C compiler, it fails, or the folder cannot be written.
    """
    library = loaded_library()
    shim = folder / SHIM
    if shim.is_file() and shim.stat().st_mtime >= library.stat().st_mtime:
        return shim
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("c++")
    if compiler is None:
        raise BuildError("no C compiler found; plugins in tensorrt_rtx need one (Debian, Ubuntu: apt install gcc)")
    make_folder(folder)
    partial = folder / f"{SHIM}.{os.getpid()}"  # renamed when complete, since another process may build it too
    options = ["-shared", "-x", "c", os.devnull, "-x", "none", f"-Wl,-soname,{SHIM}", "-Wl,--no-as-needed"]
    command = [compiler, *options, str(library), f"-Wl,-rpath,{library.parent}", "-o", str(partial)]
    run_c_compiler(
        command,
        "Plugins in tensorrt_rtx need a C compiler and a folder that can be written: set CC, or "
        f"{BUILD_DIR_VARIABLE}",
    )
    partial.replace(shim)
    return shim


@functools.cache
def load() -> None:
    """Builds and loads the shim. Call it before parsing a model with plugins.

    Raises:
        BuildError: the shim cannot be built or loaded.
    """
    shim = build_shim(build_dir())
    try:
        ctypes.CDLL(str(shim))
    except OSError as error:
        raise BuildError(f"cannot load {shim} ({error}); remove it, and it is built again") from error
