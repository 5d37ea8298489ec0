"""Compiles triton_loader.c, which registers the plugins where Triton loads them by its option ``plugins=``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from plugins.build import BuildError, run_c_compiler

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
    run_c_compiler(command, "set the variable CC to another C compiler")
    return loader
