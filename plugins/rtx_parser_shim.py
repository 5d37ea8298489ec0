"""Lets the ONNX parser of TensorRT for RTX create plugin layers.

For a node whose op type is a registered plugin, the parser of tensorrt_rtx 1.7.1 opens
``libtensorrt_rtx.so``, by exactly this name, while the pip package ships ``libtensorrt_rtx.so.1``; it does
not find it and ends the process. So, before parsing, an empty library of the wanted name is loaded that
depends on the one in this process: whoever opens that name from then on gets it, and through it TensorRT. The
package itself is not touched.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path

from bert_trt.files import make_folder
from plugins.build import BUILD_DIR_VARIABLE, BuildError, build_dir

SHIM = "libtensorrt_rtx.so"


MAPPINGS = Path("/proc/self/maps")  # a line for each piece of each loaded library; the path comes last


def loaded_library() -> Path:
    """The libtensorrt_rtx.so.N that this process has loaded, wherever its package keeps it.

    Raises:
        BuildError: there is none.
    """
    try:
        lines = os.fsdecode(MAPPINGS.read_bytes()).splitlines()  # paths of any process need not be UTF-8
    except OSError as error:
        raise BuildError(
            f"cannot find {SHIM}.*: {MAPPINGS} is not readable ({error.strerror}); plugins in tensorrt_rtx need "
            "Linux with /proc, or the full tensorrt (pip install -r requirements-gpu.txt)"
        ) from error
    paths = (Path(line.split(maxsplit=5)[5]) for line in lines if SHIM in line)
    found = sorted({path for path in paths if path.name.startswith(f"{SHIM}.") and path.is_file()})
    if not found:
        raise BuildError(
            f"no {SHIM}.* is loaded in this process, although tensorrt_rtx is in use; install it again: "
            "pip install --force-reinstall -r requirements.txt"
        )
    return found[0]


def build_shim(folder: Path) -> Path:
    """Links the shim into ``folder``, unless one for the loaded library is there already.

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
    partial = folder / f"{SHIM}.{os.getpid()}"  # renamed when whole: another process may be doing the same
    options = ["-shared", "-x", "c", os.devnull, "-x", "none", f"-Wl,-soname,{SHIM}", "-Wl,--no-as-needed"]
    command = [compiler, *options, str(library), f"-Wl,-rpath,{library.parent}", "-o", str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"cannot run the C compiler {compiler}: {error.strerror}; set the variable CC to one that works"
        ) from error
    if done.returncode != 0:
        raise BuildError(
            f"{done.stderr}\nfailed: {' '.join(command)}\n"
            "Plugins in tensorrt_rtx need a C compiler and a folder that can be written: set CC, or "
            f"{BUILD_DIR_VARIABLE}"
        )
    partial.replace(shim)
    return shim


@functools.cache
def load() -> None:
    """Makes ``libtensorrt_rtx.so`` known to this process. Call it before parsing a model with plugins.

    Raises:
        BuildError: it cannot be made or loaded.
    """
    shim = build_shim(build_dir())
    try:
        ctypes.CDLL(str(shim))
    except OSError as error:
        raise BuildError(f"cannot load {shim} ({error}); remove it, and it is made again") from error
