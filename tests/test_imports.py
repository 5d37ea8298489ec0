"""Scripts import libraries, never the other way round, and no import runs in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"trt_helper"}  # trt_helper is a library that users know
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for pattern in ("*.py", "bert_trt/**/*.py", "plugins/*.py")
    for path in ROOT.glob(pattern)
}
ALLOWED_NAMESPACES = {"bert_trt.command_line", "plugins.testLayerNormPlugin"}  # they parse a command line themselves


def imported(name: str) -> set[str]:
    """The project's modules that a module imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & FILES.keys()) or {node.module}
    return found & FILES.keys()


GRAPH = {name: imported(name) for name in FILES}


def test_no_import_runs_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("name", sorted(set(FILES) - SCRIPTS))
def test_no_library_imports_a_script(name):
    assert not GRAPH[name] & SCRIPTS


def test_the_rule_sees_the_scripts():
    assert {"builder", "onnx2trt", "model2onnx", "calibrator", "sensitivity", "demo", "predict", "corpus"} <= SCRIPTS
    assert "bert_trt.layers" in GRAPH["builder"]
    assert "bert_trt.layers.native" in GRAPH["bert_trt.layers"]
    assert "builder" in GRAPH["calibrator"]


@pytest.mark.parametrize("name", sorted(set(FILES) - ALLOWED_NAMESPACES))
def test_options_are_a_dataclass(name):
    """No function takes an argparse.Namespace but those that parse a command line."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.arg) and node.annotation is not None:
            assert "Namespace" not in ast.unparse(node.annotation), f"line {node.lineno}"
