"""Builds the plugins once for all tests that need them; `make test` has built them before.

All tests of a run use the same library: TensorRT registers a plugin only once in a process.
"""

from __future__ import annotations

import functools
import os
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
