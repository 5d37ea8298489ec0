"""The ladders of Linear and attention: the rungs compile, are short, are checked and measured; pages and pictures."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

from plugins import build, reference

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
RECORD = ROOT / "benchmarks" / "ladders_h100.json"
TABLES = ROOT / "benchmarks" / "ladders_h100.md"
SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("online_softmax", "packed_batches", "packed_qkv", "pipeline_stages")
PAGES = {
    "online_softmax": ("kernels/attention",),
    "packed_batches": ("fusion_and_batching",),
    "packed_qkv": ("kernels/attention",),
    "pipeline_stages": ("kernels/linear",),
}
CMAKE = (build.PLUGINS / "CMakeLists.txt").read_text()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# --- the rungs


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("linear/linear_plain.cu", ["-arch=compute_75", "-ptx"]),
        ("linear/linear_shared.cu", ["-arch=compute_75", "-ptx"]),
        ("linear/linear_tiles.cu", ["-arch=compute_75", "-ptx"]),
        ("linear/linear_wgmma.cu", ["-arch=compute_90a", "-ptx"]),
        ("qkv_to_context/qkv_to_context_plain.cu", ["-arch=compute_75", "-ptx"]),
        ("linear/linear_functions.cpp", ["-c", "-DBERT_HOPPER"]),
        ("qkv_to_context/qkv_to_context_functions.cpp", ["-c", "-DBERT_HOPPER"]),
    ],
)
def test_a_rung_compiles(source, how, tmp_path):
    """As far as PTX: most are not part of the library, which the other tests build."""
    compiler = build.find_compiler()
    if build.missing_tools() or compiler is None:
        pytest.skip(f"needs {', '.join(build.missing_tools())}")
    command = [str(compiler.nvcc), "-std=c++17", *how, f"-I{build.PLUGINS}", str(build.PLUGINS / source)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")],
        env=os.environ | compiler.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_first_product_on_tensor_cores_can_be_read_at_once():
    lines = (build.PLUGINS / "linear" / "linear_tiles.cu").read_text().splitlines()
    assert len(lines) <= 100
    assert "multiply(sums" in "\n".join(lines)


def sources_of(target: str) -> set[str]:
    """The files that CMake compiles for a check program or a library of functions."""
    variables = dict(re.findall(r"^set\((\w+_kernels) ([^)]*)\)", CMAKE, re.MULTILINE))
    (listed,) = re.findall(rf"^add_(?:check|library)\({target} ([^)]*)\)", CMAKE, re.MULTILINE)
    for name, files in variables.items():
        listed = listed.replace(f"${{{name}}}", files)
    return {Path(word).name for word in listed.split() if "/" in word}


@pytest.mark.parametrize(
    ("folder", "rungs"),
    [
        ("linear", {"linear_plain.cu", "linear_shared.cu", "linear_tiles.cu", "linear_tensor.cu"}),
        ("qkv_to_context", {"qkv_to_context_plain.cu", "qkv_to_context_basic.cu", "qkv_to_context_tensor.cu"}),
    ],
)
def test_the_check_program_and_the_benchmark_have_every_rung(folder, rungs):
    assert rungs <= sources_of(f"{folder}_check")
    assert rungs <= sources_of(f"{folder}_functions")


def test_rungs_for_hopper_are_checked_and_measured():
    assert "add_library(hopper_rungs OBJECT EXCLUDE_FROM_ALL linear/linear_wgmma.cu)" in CMAKE
    assert {"linear_check", "linear_functions"} <= set(re.findall(r"add_hopper_rungs\((\w+)\)", CMAKE))


def test_the_library_has_no_rung_that_no_plugin_takes():
    (listed,) = re.findall(r"^add_library\(bert_plugins SHARED([^)]*)\)", CMAKE, re.MULTILINE)
    assert "linear/linear_plain.cu" in listed  # bf16 on Turing
    for rung in ("linear_shared.cu", "linear_tiles.cu", "linear_wgmma.cu", "qkv_to_context_plain.cu"):
        assert rung not in listed


# --- what was measured


def test_the_tables_are_those_of_the_record(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ladders = load(ROOT / "benchmarks" / "ladders.py")
    times = [
        ladders.Time(**(one | {"shape": tuple(one["shape"])})) for one in json.loads(RECORD.read_text())["times"]
    ]
    text = TABLES.read_text(encoding="utf-8")
    linear = ladders.table(times, "linear", [f"M {m}, K {k}, N {n}" for m, k, n in ladders.LINEAR_SHAPES])
    attention = ladders.table(times, "attention", [f"B {b}, S {s}" for b, s in ladders.ATTENTION_SHAPES])
    assert "\n".join(linear) in text
    assert "\n".join(attention) in text
    for ladder, against in ladders.AGAINST.items():
        assert {*against, *against.values()} <= {time.rung for time in times if time.ladder == ladder}


def cells(row: str) -> list[str]:
    """The cells of a Markdown row without its first, as plain text."""
    return [cell.strip().replace("*", "") for cell in row.strip("|").split("|")][1:]


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
@pytest.mark.parametrize(("page", "heading"), [("linear", "M 4096"), ("attention", "B 8, S 128")])
def test_the_page_shows_the_measured_table(page, heading, suffix):
    def table_with(path: Path) -> list[str]:
        lines = path.read_text(encoding="utf-8").splitlines()
        (start,) = [i for i, line in enumerate(lines) if line.startswith("|") and f"| {heading}" in line]
        end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
        return lines[start + 2 : end]

    shown = table_with(ROOT / "docs" / "kernels" / f"{page}{suffix}.md")
    measured = table_with(TABLES)
    assert len(measured) >= 7
    assert [cells(row) for row in shown] == [cells(row) for row in measured]


# --- the pictures


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return load(ROOT / "docs" / "draw_pictures.py")


def test_the_pictures_are_what_the_script_draws(tmp_path):
    command = [sys.executable, "docs/draw_pictures.py", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in PICTURES.iterdir()}
    assert sorted(drawn) == [f"{name}.svg" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_has_words_for_those_who_do_not_see_it_and_stays_in_its_frame(name):
    root = ElementTree.parse(PICTURES / f"{name}.svg").getroot()
    assert len(root.findtext(f"{SVG}title") or "") > 10
    assert len(root.findtext(f"{SVG}desc") or "") > 100
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for box in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert w > 0
        assert h > 0
        assert x + w <= width
        assert y + h <= height
    for text in root.iter(f"{SVG}text"):
        assert 0 < float(text.attrib["y"]) < height
        classes = text.attrib["class"].split()
        long = len(text.text or "") * 7.4  # of a monospaced font of 13 pixels, the widest
        x = float(text.attrib["x"])
        begin = x if "left" in classes else x - long if "right" in classes else x - long / 2
        assert begin > -1
        assert begin + long < width + 40  # other fonts are narrower


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
def test_a_picture_is_shown_with_words_in_its_place(name, suffix):
    for page in PAGES[name]:
        path = ROOT / "docs" / f"{page}{suffix}.md"
        shown = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", path.read_text(encoding="utf-8"))
        (words,) = [words for words, target in shown if target.endswith(f"/{name}.svg")]
        assert len(words) > 8


def test_the_model_of_the_pipeline_keeps_to_its_barriers(pictures):
    steps, epilogues = pictures.simulate()
    assert len(steps) == pictures.TILES * pictures.STEPS
    for index, step in enumerate(steps):
        assert step.arrived >= step.issued + pictures.LATENCY
        assert all(start >= step.arrived for start, _ in step.multiplied)
        assert step.released == max(end for _, end in step.multiplied)
        if index >= pictures.STAGES:
            assert step.issued >= steps[index - pictures.STAGES].released  # the stage was empty
    products = sorted(span for step in steps for span in step.multiplied)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(products))
    first_tile_stored = min(end for _, end in epilogues)
    assert steps[pictures.STEPS].arrived < first_tile_stored  # the next tile's operands come during the epilogue


def test_the_offsets_of_the_layout_are_those_of_the_plugin(pictures):
    """Attention of one head, read where the picture says it is, against the plugin's reference."""
    svg = pictures.packed_qkv().svg()
    ((token, which, head),) = [map(int, found) for found in re.findall(r"(\d+) t \+ (\d+) w \+ (\d+) n \+ d", svg)]
    tokens, heads, size, n = 5, 4, 64, 1
    qkv = torch.randn(tokens, 3 * heads * size, dtype=torch.float64)
    places = token * torch.arange(tokens)[:, None] + head * n + torch.arange(size)  # (T, D)
    q, k, v = (qkv.flatten()[places + which * w] for w in range(3))
    context = torch.softmax(q @ k.T / size**0.5, dim=-1) @ v
    expected = reference.qkv_to_context(qkv, num_heads=heads, layout="single", dtype=torch.float64)
    torch.testing.assert_close(context, expected.reshape(tokens, heads, size)[:, n])
