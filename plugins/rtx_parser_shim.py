"""Lets the ONNX parser of TensorRT for RTX create plugin layers.

For a node whose op type is a registered plugin, the parser of tensorrt_rtx 1.7.1 opens
``libtensorrt_rtx.so``, by exactly this name, while the pip package ships ``libtensorrt_rtx.so.1``; it does
not find it and ends the process. So, before parsing, an empty library of the wanted name is loaded that
depends on the package's own: whoever opens that name from then on gets it, and through it TensorRT. The
package itself is not touched.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import shutil
import subprocess
from pathlib import Path

from plugins.build import BuildError, build_dir

SHIM = "libtensorrt_rtx.so"


def _packaged_library() -> Path:
    """libtensorrt_rtx.so.N of the installed package."""
    package = importlib.import_module("tensorrt_rtx_libs")
    found = [path for folder in package.__path__ for path in sorted(Path(folder).glob(f"{SHIM}.*"))]
    if not found:
        raise BuildError(f"the package tensorrt_rtx_libs in {list(package.__path__)} has no {SHIM}.*")
    return found[0]


def build_shim(folder: Path) -> Path:
    """Links the shim into ``folder``, unless one for the installed package is there already."""
    packaged = _packaged_library()
    shim = folder / SHIM
    if shim.is_file() and shim.stat().st_mtime >= packaged.stat().st_mtime:
        return shim
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("c++")
    if compiler is None:
        raise BuildError("no C compiler found; plugins in tensorrt_rtx need one (Debian, Ubuntu: apt install gcc)")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{SHIM}.{os.getpid()}"  # renamed when whole: another process may be doing the same
    options = ["-shared", "-x", "c", os.devnull, "-x", "none", f"-Wl,-soname,{SHIM}", "-Wl,--no-as-needed"]
    command = [compiler, *options, str(packaged), f"-Wl,-rpath,{packaged.parent}", "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{done.stderr}\nfailed: {' '.join(command)}")
    partial.replace(shim)
    return shim


@functools.cache
def load() -> None:
    """Makes ``libtensorrt_rtx.so`` known to this process. Call it before parsing a model with plugins."""
    ctypes.CDLL(str(build_shim(build_dir())))
