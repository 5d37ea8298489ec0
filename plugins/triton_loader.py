"""Compiles triton_loader.c, which registers the plugins where Triton loads them by its option ``plugins=``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from plugins.build import BuildError

SOURCE = Path(__file__).with_suffix(".c")
LOADER = "libbert_plugins_loader.so"


def build_loader(folder: Path) -> Path:
    """Compiles the loader into the folder of the plugin library, and returns its path.

    Raises:
        BuildError: there is no C compiler, or it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BuildError(
            "no C compiler found, and Triton needs a small library to load plugins that are not in the plan (Debian, "
            "Ubuntu: apt install gcc); or leave out --no-embed-plugins"
        )
    loader = folder / LOADER
    command = [compiler, "-shared", "-fPIC", "-O2", str(SOURCE), "-o", str(loader), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"cannot run the C compiler {compiler}: {error.strerror}; set the variable CC to one that works"
        ) from error
    if done.returncode != 0:
        raise BuildError(f"{done.stderr}\nfailed: {' '.join(command)}\nset the variable CC to another C compiler")
    return loader
