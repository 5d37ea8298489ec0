"""Builds the plugins once for all tests that need them, for one GPU architecture: that takes seconds."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from plugins import build

ROOT = Path(__file__).parent.parent
TEST_BUILD_DIR = ROOT / "build" / "plugins_for_tests"
ARCHITECTURES = os.environ.get("BERT_TEST_ARCHITECTURES", "90")


@functools.cache
def built_plugins() -> Path:
    """The folder with both libraries; skips the test where nothing can be built."""
    given = os.environ.get(build.BUILD_DIR_VARIABLE)
    if given:
        return Path(given)
    missing = build.missing_tools()
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install -r {build.REQUIREMENTS}, and a C++ compiler")
    build.build(ARCHITECTURES, "OFF", TEST_BUILD_DIR)
    return TEST_BUILD_DIR
