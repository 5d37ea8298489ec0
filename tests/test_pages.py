"""The pages: both languages show the same, links lead somewhere, and what is named exists.

The commands of the pages are run by test_readme.py.
"""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
RESULTS = ROOT / "docs" / "results.md"
ISSUE_TEMPLATE = ROOT / ".github" / "ISSUE_TEMPLATE" / "gpu_failure.md"
CHINESE = ".zh-CN.md"
MAX_README_LINES = 150
MAX_README_WIDTH = 125  # characters; tables are wider
BLOCK_MARKS = {
    "sh",
    "sh download",
    "sh gpu",
    "sh slow",
    "text",
    "python",
    "",
}  # unmarked: pictures made of characters

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\d)", re.ASCII)  # ASCII: a Chinese word ends it


# --- reading pages --------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Every English page that has a Chinese twin: the top level's, and all under docs/; the README first."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*top, *sorted(path for path in (ROOT / "docs").rglob("*.md") if not path.name.endswith(CHINESE))]


def translation(page: Path) -> Path:
    """The same page in Chinese."""
    return page.with_name(page.stem + CHINESE)


def page_name(path: Path) -> str:
    """The path as one writes it, for the names of tests."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[tuple[str, str]]:
    """(info string, body) of every fenced block."""
    return [(match["info"], match["body"]) for match in FENCE.finditer(path.read_text(encoding="utf-8"))]


def without_comment(line: str) -> str:
    """A command without the comment that follows it."""
    return re.sub(r"\s+# .*", "", line).strip()


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def section(path: Path, heading: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    return path.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]


def headings(path: Path) -> list[tuple[int, str]]:
    """(level, text) of every heading."""
    return [(len(marks), text) for marks, text in HEADING.findall(prose(path))]


@functools.cache
def anchors(path: Path) -> set[str]:
    """What GitHub lets links to this page end with."""
    texts = [re.sub(r"[^\w\- ]", "", LINK.sub(r"\1", text).lower()).replace(" ", "-") for _, text in headings(path)]
    assert len(set(texts)) == len(texts), f"{page_name(path)}: two headings of one name"
    return set(texts)


def local_links(path: Path) -> list[tuple[str, Path, str]]:
    """(text, file, anchor or nothing) of every link that leads into the repository."""
    found = []
    for match in LINK.finditer(prose(path)):
        target, _, anchor = match["target"].partition("#")
        if "://" not in target:
            found.append((match["text"], (path.parent / target).resolve() if target else path, anchor))
    return found


def tables(path: Path) -> list[list[str]]:
    """Rows of every table."""
    return [table.splitlines() for table in TABLE.findall(prose(path))]


def figures(text: str) -> list[str]:
    """Numbers in a text, in order of size; those in names, links and code are none."""
    return sorted(FIGURE.findall(CODE.sub("", LINK.sub(r"\1", text))))


def named_commands(path: Path) -> list[str]:
    """Commands that the page names and test_readme.py does not run: in its prose, and in blocks that are not run."""
    inline = [code for code in CODE.findall(prose(path)) if re.match(r"(?:\w+=\S+ )*(?:python|make) ", code)]
    lines = [line for info, body in blocks(path) if info.startswith("sh ") for line in body.splitlines()]
    return [*inline, *(without_comment(line) for line in lines)]


each_page = pytest.mark.parametrize("page", pages(), ids=page_name)
TEXTS = [text for page in pages() for text in (page, translation(page))]
each_text = pytest.mark.parametrize("path", TEXTS, ids=page_name)


# --- both languages -------------------------------------------------------------------------------------------


def test_every_page_is_in_both_languages():
    english = set(pages())
    chinese = {*ROOT.glob(f"*{CHINESE}"), *(ROOT / "docs").rglob(f"*{CHINESE}")}
    assert chinese == {translation(page) for page in english}
    assert README in english
    assert ARCHITECTURE in english


@each_page
def test_both_languages_have_the_same_blocks(page: Path):
    def stripped(path: Path) -> list[tuple[str, list[str]]]:
        return [
            (info, [without_comment(line) for line in body.splitlines()] if info else [])
            for info, body in blocks(path)
        ]

    assert stripped(translation(page)) == stripped(page)


@each_page
def test_both_languages_have_the_same_parts(page: Path):
    levels = [[level for level, _ in headings(path)] for path in (page, translation(page))]
    assert levels[1] == levels[0]


@each_page
def test_both_languages_have_the_same_tables(page: Path):
    for english, chinese in zip_longest(tables(page), tables(translation(page)), fillvalue=[]):
        for row, twin in zip_longest(english, chinese, fillvalue=""):
            assert (figures(twin), twin.count(" | ")) == (figures(row), row.count(" | ")), f"{row}\n{twin}"


def is_measured(number: str) -> bool:
    """Whether a number is no small whole one, which may be a word in either language."""
    return "." in number or "e" in number or len(number) > 2


@each_page
def test_both_languages_have_the_same_figures(page: Path):
    english, chinese = (Counter(filter(is_measured, figures(prose(path)))) for path in (page, translation(page)))
    assert chinese == english


@each_page
def test_both_languages_have_the_same_links(page: Path):
    """Each page links to its twin, and to the other pages in its own language."""
    twin = translation(page)
    english, chinese = ({target for _, target, _ in local_links(path)} for path in (page, twin))
    assert twin in english
    assert page in chinese
    in_chinese = {translation(target) if target in pages() else target for target in english - {twin}}
    assert chinese - {page} == in_chinese - {page}


# --- links and names --------------------------------------------------------------------------------------------


def defines(path: Path, name: str) -> bool:
    """Whether a function, method or class of this name is in the file."""
    return re.search(rf"^\s*(?:def|class) {name}\b", path.read_text(), re.MULTILINE) is not None


@each_text
def test_links(path: Path):
    links = local_links(path)
    assert len(links) > (30 if path in (README, translation(README)) else 0)
    missing = []
    for text, target, anchor in links:
        name = text.strip("`")
        if not target.exists():
            missing.append(f"{target.relative_to(ROOT)}: no such file")
        elif anchor and anchor not in anchors(target):
            missing.append(f"{target.relative_to(ROOT)} has no #{anchor}")
        elif target.suffix == ".py" and text == f"`{name}`" and name.isidentifier() and not defines(target, name):
            missing.append(f"{target.relative_to(ROOT)} has no {name}")
    assert not missing


@functools.cache
def options_of(script: str) -> set[str]:
    """The options that a script lists with --help."""
    answer = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][a-z-]*", answer.stdout))


@functools.cache
def all_source() -> str:
    """The Python files, in which options are defined."""
    folders = (ROOT, ROOT / "bert_trt", ROOT / "plugins", ROOT / "benchmarks", ROOT / "demo_model")
    return "\n".join(path.read_text() for folder in folders for path in folder.glob("*.py"))


def has_target(target: str) -> bool:
    """Whether make knows how to make it."""
    rules = re.findall(r"^([^\s#:=][^:=\n]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    names = {name.replace("$(PY)", "$(VENV)/bin/python") for rule in rules for name in rule.split()}
    return target.replace(".venv/", "$(VENV)/") in names


@pytest.mark.parametrize("path", [*TEXTS, ISSUE_TEMPLATE], ids=page_name)
def test_named_commands_exist(path: Path):
    for command in named_commands(path):
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "make":
            targets = [word for word in words[1:] if re.fullmatch(r"[\w./-]+", word)]
            assert all(map(has_target, targets)), f"no such make target: {command}"
        elif len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), command
            options = set(re.findall(r"(?<!\S)--[a-z-]+", " ".join(words[2:])))
            assert not options or options <= options_of(words[1]), command


def test_the_commit_hook_runs_a_make_target():
    (entry,) = re.findall(r"entry: make (\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert has_target(entry)


@each_text
def test_named_options_exist(path: Path):
    """Options in the prose, such as `--max-error X`, are options of some script."""
    for code in CODE.findall(prose(path)):
        for option in re.findall(r"^--[a-z][a-z-]+", code):
            assert option == "--help" or f'"{option}"' in all_source(), f"no script has {option}"


@each_text
def test_no_machine_shows_through(path: Path):
    folder = r"(?<![\w.…])/(?:work|home|root|tmp|opt|usr)/(?!local/cuda)"
    assert not re.search(folder, path.read_text(encoding="utf-8"))


@each_text
def test_marks_of_blocks_are_known(path: Path):
    for info, body in blocks(path):
        assert info in BLOCK_MARKS, f"```{info}\n{body}"


# --- the README, the file map, the results, the picture -----------------------------------------------------------


@pytest.mark.parametrize("path", [README, translation(README)], ids=page_name)
def test_readme_is_short(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES
    wide = [line for line in prose(path).splitlines() if len(line) > MAX_README_WIDTH and not line.startswith("|")]
    assert not wide


def test_file_map_is_complete():
    """architecture.md lists every file at the top level, every module of bert_trt/, and every benchmark, once."""
    for path in (ARCHITECTURE, translation(ARCHITECTURE)):
        rows = [row for table in tables(path) for row in table]
        listed = [
            (path.parent / match["target"]).resolve().relative_to(ROOT).as_posix()
            for row in rows
            if (match := re.match(r"\| " + LINK.pattern + r" \|", row)) and "`" not in match["text"]
        ]
        patterns = ("*.py", "*.txt", "Makefile", "bert_trt/*.py", "bert_trt/*/*.py", "benchmarks/*.py")
        files = {found.relative_to(ROOT).as_posix() for pattern in patterns for found in ROOT.glob(pattern)}
        files = {name for name in files if not name.endswith("__init__.py")}
        assert files <= set(listed), f"not in the file map: {sorted(files - set(listed))}"
        assert len(set(listed)) == len(listed), f"twice in the file map: {sorted(listed)}"


def is_rounded(shown: str, exact: float) -> bool:
    """Whether a number as shown is this one, rounded to the digits that are shown."""
    digits, _, exponent = shown.partition("e")
    step = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return math.isclose(float(shown), exact, rel_tol=0, abs_tol=step * 0.501)


@pytest.mark.parametrize(
    ("shown", "exact", "same"),
    [
        ("275", 274.7, True),
        ("276", 274.7, False),
        ("5e-07", 5.12e-07, True),
        ("5.07e-07", 5.09e-07, False),
        ("0.017", 0.0171, True),
        ("0.018", 0.0171, False),
    ],
)
def test_rounding(shown: str, exact: float, same: bool):
    assert is_rounded(shown, exact) == same


def test_results_are_those_of_the_benchmarks():
    """Every figure in a table of results.md stands, with as many digits or more, in a file that its section links."""
    checked = 0
    for name in (text for level, text in headings(RESULTS) if level == 2):
        text = section(RESULTS, name)
        sources = [
            path
            for match in LINK.finditer(text)
            if (path := (RESULTS.parent / match["target"]).resolve()).parent == ROOT / "benchmarks"
            and path.suffix != ".png"
        ]
        if not sources:
            continue
        known = [float(number) for path in sources for number in FIGURE.findall(path.read_text())]
        for row in (row for table in TABLE.findall(text) for row in table.splitlines()):
            for cell in row.strip("|").split("|"):
                if re.search(r"[^\d.e:%*\s-]", cell):
                    continue  # words
                for number in FIGURE.findall(cell):
                    if is_measured(number):
                        assert any(is_rounded(number, exact) for exact in known), f"{name}: {number} in {row}"
                        checked += 1
    assert checked > 100


TUTORIAL = [page for page in pages() if page.parent.name == "tutorial" and page.name != "README.md"]


@pytest.mark.parametrize("page", TUTORIAL, ids=page_name)
def test_the_figures_of_the_exercise_stand_where_they_were_measured(page: Path):
    """Every figure in a table and every time in the prose is one of results.md, of a kernel's page or a benchmark.

    profile.md has figures of its own, with the program that made them.
    """
    profile = ROOT / "docs" / "tutorial" / "profile.md"
    sources = [RESULTS, profile, *(ROOT / "docs" / "kernels").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    known = [float(number) for path in sources for number in FIGURE.findall(path.read_text(encoding="utf-8"))]
    text = prose(page)
    shown = [number for table in tables(page) for row in table for number in figures(row) if is_measured(number)]
    shown += re.findall(r"(?<![\w.])(\d+(?:\.\d+)?) µs", text)
    own = {"3.44", "18.99", "4.51"} if page.stem == "fast_kernel" else set()  # what the grading said, in that run
    if page.stem == "profile":
        own = set(re.findall(r"\d+\.\d+", page.read_text(encoding="utf-8"))) | {"98", "159"}
    for number in set(shown) - own:
        assert any(is_rounded(number, value) for value in known), f"{number} is measured nowhere"


def test_the_results_of_the_readme_are_in_the_results_page():
    exact = [float(number) for number in FIGURE.findall(RESULTS.read_text(encoding="utf-8"))]
    known = [*exact, *(number / 100 for number in exact)]  # the page writes 35 %, the README 0.35
    (table,) = TABLE.findall(section(README, "Results"))
    shown = [
        number for row in table.splitlines() for number in FIGURE.findall(row.split("|")[2]) if is_measured(number)
    ]
    assert len(shown) > 10
    for number in shown:
        assert any(is_rounded(number, value) for value in known), number


def test_pipeline_picture():
    picture = ElementTree.parse(ROOT / "docs" / "pipeline.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    scripts = {name for text in texts for name in re.findall(r"\w+\.py", text)}
    assert {"model2onnx.py", "builder.py", "onnx2trt.py", "network_runner.py"} <= scripts
    for name in scripts:
        assert (ROOT / name).is_file() or (ROOT / "bert_trt" / name).is_file(), name
