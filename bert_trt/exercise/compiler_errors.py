"""Finds the first error in what a CUDA or C++ compiler printed."""

from __future__ import annotations

import re
from pathlib import Path

from plugins.build import PLUGINS

COMPILER_ERROR = re.compile(
    r"^(?P<file>[^\s(:]+)[(:](?P<line>\d+)(?:\)|:\d+:|:) ?:? ?(?:fatal |catastrophic )?error ?:? ?(?P<text>.*)$",
    re.MULTILINE,
)


def first_compiler_error(text: str) -> str:
    """The first error in a compiler's output, with file and line."""
    match = COMPILER_ERROR.search(text)
    if match is None:
        lines = [line for line in text.splitlines() if line.strip()]
        return next((line for line in lines if "error" in line.lower() or "undefined" in line), "\n".join(lines[:3]))
    path = Path(match["file"])
    name = path.relative_to(PLUGINS.parent).as_posix() if path.is_relative_to(PLUGINS.parent) else path.name
    return f"{name}, line {match['line']}: {match['text']}"
