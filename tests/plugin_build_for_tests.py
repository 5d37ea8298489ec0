"""Builds the plugins once for all tests that need them.

`make test` has built them before. Where that was not done, they are built for one GPU architecture, which takes
seconds. All tests of a run use the same library: TensorRT registers a plugin only once in a process.
"""

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
    has_been_built = (build.BUILD_DIR / build.LIBRARY).is_file()
    missing = build.missing_tools()
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install -r {build.REQUIREMENTS}, and a C++ compiler")
    if has_been_built:
        build.build()  # brings it up to date
        return build.BUILD_DIR
    build.build(ARCHITECTURES, "OFF", TEST_BUILD_DIR)
    os.environ[build.BUILD_DIR_VARIABLE] = str(TEST_BUILD_DIR)
    return TEST_BUILD_DIR
