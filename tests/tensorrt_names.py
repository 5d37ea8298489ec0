"""Writes tensorrt_names.json: which names of TensorRT that this project uses exist in which release.

    python tests/tensorrt_names.py        downloads the Python bindings of each release from the package index

The bindings are real wheels that hold all classes, enums and signatures. Only the libraries that they link against
are missing, so stub libraries take their place: enough to import the bindings, and to look at them. Needs pip, a C
compiler and Linux on x86-64; test_tensorrt_names.py, which checks the result, needs none of them.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAMES = Path(__file__).with_suffix(".json")
RELEASES = {  # the oldest that is supported, the last of 10, the one in requirements-gpu.txt, and the newest
    "10.13.0.35": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.1.0.106": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
LINKED_FUNCTIONS = (  # what the bindings look for in TensorRT's libraries when they are loaded
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)

# Classes of objects that TensorRT hands out and whose names the sources never write.
HANDED_OUT = (
    "IEngineInspector",
    "IHostMemory",
    "IOptimizationProfile",
    "IPluginCreatorV3One",
    "IPluginRegistry",
    "ITimingCache",
    "ParserError",
)

# --- what the project uses ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uses:
    """What source files use, or could.

    Attributes:
        dotted: what is written as ``trt.X`` or ``trt.X.Y``, without ``trt.``.
        attributes: every attribute of whatever object that is read, written or called.
        guarded: names that are asked for by ``getattr`` or ``hasattr``.
        words: strings that could be the name of a class.
    """

    dotted: set[str]
    attributes: set[str]
    guarded: set[str]
    words: set[str]

    @classmethod
    def of(cls, trees: Iterable[ast.AST]) -> Uses:
        """The uses in all of these files."""
        nodes = [node for tree in trees for node in ast.walk(tree)]
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        dotted = {".".join(ast.unparse(node).split(".")[1:3]) for node in attributes if _root(node) == "trt"}
        calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        guarded = {
            argument.value
            for call in calls
            if ast.unparse(call.func) in ("getattr", "hasattr")
            for argument in call.args[1:2]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        }
        words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        return cls(
            dotted,
            {node.attr for node in attributes} | guarded,
            guarded,
            {word for word in words if word.isidentifier()},
        )


def _root(node: ast.AST) -> str | None:
    """``a`` of ``a.b.c``."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def sources() -> dict[Path, ast.Module]:
    """The project's files that use TensorRT, parsed."""
    paths = [
        path
        for pattern in ("*.py", "bert_trt/**/*.py", "plugins/*.py", "benchmarks/*.py")
        for path in sorted(ROOT.glob(pattern))
    ]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    uses = re.compile(r"\b(?:tensorrt_product|trt_helper|plugin_layers)\b")
    return {path: ast.parse(text) for path, text in texts.items() if uses.search(text)}


# --- what a module has --------------------------------------------------------------------------------------


def members(module: ModuleType, uses: Uses) -> dict[str, list[str]]:
    """Those of the module's members that the sources use or could, such as ``Dims`` and ``Builder.create_network``.

    Returns:
        The parameters of each overload, such as ``input, axis, flag=``; ``[""]`` for what is no method.
    """
    found: dict[str, list[str]] = {}
    for name, value in inspect.getmembers(module):
        if name in uses.dotted:
            found[name] = overloads("__init__", value.__init__) if isinstance(value, type) else [""]
        if not isinstance(value, type) or not ({name} & (uses.words | set(HANDED_OUT)) or name in uses.dotted):
            continue
        is_enum = hasattr(value, "__members__")
        for inner in dir(value):
            if f"{name}.{inner}" in uses.dotted or (inner in uses.attributes and inner[0] != "_" and not is_enum):
                found[f"{name}.{inner}"] = overloads(inner, getattr(value, inner))
    return found


def overloads(name: str, value: object) -> list[str]:
    """The parameters of each overload of a method, read from what pybind11 writes into its docstring."""
    text = getattr(value, "__doc__", None) or ""
    signatures = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) ->", text, re.MULTILINE)
    return sorted({", ".join(_parameters(one)) for one in signatures if not one.startswith("*args")}) or [""]


def _parameters(signature: str) -> Iterator[str]:
    """Names in ``self: a.B, flags: typing.SupportsInt = 0``; ``name=`` where it may be left out."""
    flat = signature
    while "[" in flat:  # types with commas inside
        flat = re.sub(r"\[[^\[\]]*\]", "", flat)
    flat = re.sub(r"<[^<>]*>", "", flat)  # values of enums
    for part in flat.split(","):
        match = re.match(r"\s*(\w+): ", part)
        if match is not None and match[1] != "self":
            yield f"{match[1]}=" if " = " in part else match[1]


# --- the releases -------------------------------------------------------------------------------------------


def import_bindings(wheel: Path, folder: Path) -> ModuleType:
    """The extension module of a wheel, with stub libraries for TensorRT's own."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("tensorrt_bindings/tensorrt.so", folder)
    module = folder / "tensorrt_bindings" / "tensorrt.so"
    code = "".join(f"void* {function}(void) {{ return 0; }}\n" for function in LINKED_FUNCTIONS)
    for name in sorted(set(re.findall(rb"libnv\w+\.so\.\d+", module.read_bytes()))):
        stub = folder / name.decode()
        options = ["-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{stub.name}", "-o", str(stub)]
        subprocess.run(["cc", *options], input=code, text=True, check=True)
        ctypes.CDLL(str(stub), ctypes.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("tensorrt_bindings.tensorrt", module)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def read_release(release: str) -> dict[str, list[str]]:
    """``members`` of a release, in a process of its own: no two of them go into one."""
    with TemporaryDirectory() as folder:
        package = f"{RELEASES[release]}=={release}"
        download = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, package]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        command = [sys.executable, __file__, str(wheel), folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> int:
    """The script."""
    if len(sys.argv) == 3:  # the process of one release
        module = import_bindings(Path(sys.argv[1]), Path(sys.argv[2]))
        print(json.dumps(members(module, Uses.of(sources().values()))))
        return 0
    found = {release: read_release(release) for release in RELEASES}
    rows = []
    for name in sorted({name for one in found.values() for name in one}):
        signatures: dict[str, list[str]] = {}
        for release, names in found.items():
            if name in names:
                signatures.setdefault(" | ".join(names[name]), []).append(release)
        everywhere = list(signatures.values()) == [list(RELEASES)]
        rows.append(f"  {json.dumps(name)}: {json.dumps(next(iter(signatures)) if everywhere else signatures)}")
    NAMES.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"{NAMES}: {len(rows)} names in {', '.join(RELEASES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
