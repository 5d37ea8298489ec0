"""The README's commands do what it shows, the Chinese README shows the same, and all that they name exists."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import pytest
from plugin_build_for_tests import built_plugins

from bert_trt.inference import execution_obstacle
from bert_trt.tensorrt_product import IS_RTX

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
NOT_RUN = "make test"  # it runs this file

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\.?\d)")
ERROR = re.compile(r"\d\.\d\de-\d\d")
RULES = str.maketrans("━─┏┳┓┡╇┩├┼┤└┴┘┌┬┐┃│", " " * 19)

# The README shows a machine without a GPU. On another one only these lines of its output need be the same.
LIKE_README = IS_RTX and execution_obstacle() == "no NVIDIA GPU (no driver is installed)"
SAME_ANYWHERE = re.compile(r"^\d+\. |^relative L2|^agrees with|^first layer|^True$")
VARIES = re.compile(r"^seconds for network")


# --- what the README says -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One shell command of the README and the output that it shows, if any."""

    block: int
    line: str
    exit_code: int
    shown: str | None


def blocks(path: Path) -> list[tuple[str, str]]:
    """(info string, body) of every fenced block."""
    return [(match["info"], match["body"]) for match in FENCE.finditer(path.read_text(encoding="utf-8"))]


def without_comment(line: str) -> str:
    return re.sub(r"\s+# .*", "", line).strip()


def commands() -> list[Command]:
    found: list[Command] = []
    all_blocks = blocks(ENGLISH)
    for number, (info, body) in enumerate(all_blocks):
        following = all_blocks[number + 1] if number + 1 < len(all_blocks) else ("", "")
        if info != "sh":
            continue
        lines = body.splitlines()
        for line in lines:
            told = re.search(r"# exit code (\d+)", line)
            is_last = line is lines[-1]
            shown = following[1] if is_last and following[0] == "text" else None
            found.append(Command(number, without_comment(line), int(told[1]) if told else 0, shown))
    return [command for command in found if command.line != NOT_RUN]


def section(path: Path, heading: str) -> str:
    """The text below a heading, up to the next one."""
    return path.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]


def first_column(path: Path, heading: str) -> list[str]:
    """Targets of the links in the first cells of a section's table."""
    rows = re.findall(r"^\| \[[^\]]*\]\(([^)]+)\) \|", section(path, heading), re.MULTILINE)
    assert rows
    return rows


def local_links(path: Path) -> list[tuple[str, str]]:
    """(text, target) of every link that leads into the repository."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [(match["text"], match["target"]) for match in LINK.finditer(text) if "://" not in match["target"]]


# --- comparing shown with real output -----------------------------------------------------------------------


def normalised(text: str) -> list[str]:
    """Lines without the rules of tables and with single spaces; empty lines are left out."""
    lines = (" ".join(line.translate(RULES).split()) for line in text.splitlines())
    return [line for line in lines if line]


def same_number(shown: str, real: str) -> bool:
    """Whole numbers are equal, decimals nearly, errors such as 5.07e-07 within a factor of ten."""
    if "." not in shown:
        return shown == real
    if "e" in shown:
        return 0.1 <= float(real) / float(shown) <= 10
    return math.isclose(float(shown), float(real), rel_tol=0.02, abs_tol=1.5e-4)


def same_line(shown: str, real: str) -> bool:
    """The words are the same and the numbers too; … in the shown line stands for anything."""
    if "…" in shown:
        return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), real) is not None
    if NUMBER.sub("#", shown) != NUMBER.sub("#", real):
        return False
    if VARIES.match(shown):
        return True
    return all(same_number(*pair) for pair in zip(NUMBER.findall(shown), NUMBER.findall(real), strict=True))


def find_run(lines: list[str], real: list[str], start: int) -> int | None:
    """Where ``lines`` stand in ``real`` one below the other, from ``start`` on."""
    for first in range(start, len(real) - len(lines) + 1):
        if all(same_line(shown, line) for shown, line in zip(lines, real[first:], strict=False)):
            return first
    return None


def assert_shows(shown: str, real: str) -> None:
    """Fails unless the output is what is shown; a line … stands for any lines."""
    wanted, got = normalised(shown), normalised(real)
    if not LIKE_README:
        wanted = ["…", *(line for line in wanted if SAME_ANYWHERE.search(line)), "…"]
        got = [line for line in got if SAME_ANYWHERE.search(line)]
    place, may_skip, run = 0, False, []
    for line in [*wanted, None]:
        if line is not None and line != "…":
            run.append(line)
            continue
        if run:
            found = find_run(run, got, place)
            ends_right = line is not None or found is None or found + len(run) == len(got)
            if found is None or (found != place and not may_skip) or not ends_right:
                pytest.fail("shown:\n  " + "\n  ".join(run) + "\nbut the output is:\n  " + "\n  ".join(got))
            place = found + len(run)
        run, may_skip = [], line == "…"


# --- the commands -------------------------------------------------------------------------------------------


# make reads this instead of the Makefile: the environment is what it is.
GNUMAKEFILE = """include Makefile
PIP = echo 'the README test must not install packages:' && false
"""
STAMPS = (".installed-base", ".installed-gpu", ".installed", ".installed-cuda", ".installed-dev")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the environment that runs this test, in which ``make`` installs nothing."""
    folder = tmp_path_factory.mktemp("readme") / "project"
    ignored = shutil.ignore_patterns(".*", "out", "build", "__pycache__", "*.plan")
    shutil.copytree(ROOT, folder, ignore=ignored)
    environment = folder / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith(".installed"):
            (environment / entry.name).symlink_to(entry)
    for stamp in STAMPS:
        (environment / stamp).touch()
    (folder / "GNUmakefile").write_text(GNUMAKEFILE)
    return folder


Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def outputs(workplace: Path) -> dict[str, Done]:
    """Every command as it was run: the first block alone, the others two at a time, each block in its order."""
    variables = os.environ | {
        "PATH": f"{workplace / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "BERT_PLUGINS_BUILD_DIR": str(built_plugins()),
    }
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "COLUMNS"):  # of the make that runs this test
        variables.pop(name, None)

    def run(line: str) -> Done:
        shell = ["bash", "-c", line]
        return subprocess.run(shell, cwd=workplace, env=variables, capture_output=True, text=True, check=False)

    def run_block(lines: list[str]) -> list[tuple[str, Done]]:
        return [(line, run(line)) for line in lines]

    groups = groupby(commands(), key=lambda command: command.block)
    first, *others = ([command.line for command in group] for _, group in groups)
    done = run_block(first)
    with ThreadPoolExecutor(2) as pool:
        for answers in pool.map(run_block, others):
            done += answers
    return dict(done)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.line)
def test_command(command: Command, outputs: dict[str, Done]):
    done = outputs[command.line]
    assert done.returncode == command.exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if command.shown is not None:
        assert_shows(command.shown, done.stdout)


def test_results_table(outputs: dict[str, Done]):
    """The errors in the results table are those of the commands, and within what is accepted."""
    rows = re.findall(
        r"^\| (fp32|fp16|bf16) \| (\S+) \| (\S+) \| (\S+) \|", section(ENGLISH, "Results"), re.MULTILINE
    )
    assert [row[0] for row in rows] == ["fp32", "fp16", "bf16"]
    for precision, accepted, *shown in rows:
        if precision == "fp32":
            told = normalised(outputs["make demo"].stdout)
        else:
            ways = (f"python {way} --precision {precision}" for way in ("builder.py", "onnx2trt.py"))
            told = [line for way in ways for line in normalised(outputs[way].stdout)]
        lines = " ".join(line for line in told if line.startswith("relative L2 error"))
        assert {float(limit) for limit in re.findall(r"at most (\S+)\)", lines)} == {float(accepted)}
        in_the_table = ERROR.findall(lines)[:2]  # the demo's third network is that with plugins
        for real, number in zip(in_the_table, shown, strict=True):
            assert float(real) <= float(accepted)
            assert not LIKE_README or 1 / 3 <= float(real) / float(number) <= 3


def test_the_repository_is_not_touched(workplace: Path, outputs: dict[str, Done]):
    assert outputs
    assert (workplace / "out" / "builder.fp32.plan").is_file()
    assert not workplace.is_relative_to(ROOT)


# --- the comparison itself can fail -------------------------------------------------------------------------

REAL = "title\n│ 1. │ paris 0.9678 │\n│ error │ 5.07e-07 (at most 1e-05) │\n│ layers │ 527 │\nend\n"


@pytest.mark.parametrize(
    "shown",
    [
        REAL,
        "…\n1. paris 0.9679\n…\n",
        "title\n…\nerror 2.00e-07 (at most 1e-05)\nlayers 527\nend",
        "title\n…\nlay…\nend",
    ],
)
def test_comparison_accepts(shown: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "LIKE_README", True)
    assert_shows(shown, REAL)


@pytest.mark.parametrize(
    "shown",
    [
        "…\n1. rome 0.9678\n…\n",  # another word
        "…\n1. paris 0.8678\n…\n",  # another probability
        "…\nerror 5.07e-07 (at most 1e-04)\n…",  # another limit
        "…\nerror 5.07e-09 (at most 1e-05)\n…",  # another order of magnitude
        "…\nlayers 528\n…",
        "…\nlayers 527\n…\n1. paris 0.9678\n…",  # another order
        "title\nlayers 527\n…",  # a line left out without saying so
        "title\n",  # the end left out
        "layers 527\nend\n",  # the beginning left out
    ],
)
def test_comparison_refuses(shown: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "LIKE_README", True)
    with pytest.raises(pytest.fail.Exception, match="but the output is"):
        assert_shows(shown, REAL)


# --- both READMEs, links and the picture --------------------------------------------------------------------


def test_both_readmes_show_the_same():
    def stripped(path: Path) -> list[tuple[str, list[str]]]:
        return [(info, [without_comment(line) for line in body.splitlines()]) for info, body in blocks(path)]

    assert stripped(CHINESE) == stripped(ENGLISH)
    assert first_column(CHINESE, "文件一览") == first_column(ENGLISH, "File map")
    texts = [path.read_text(encoding="utf-8") for path in (ENGLISH, CHINESE)]
    assert ERROR.findall(texts[1]) == ERROR.findall(texts[0])
    assert texts[1].count("\n## ") == texts[0].count("\n## ")
    links = [{target for _, target in local_links(path)} for path in (ENGLISH, CHINESE)]
    assert CHINESE.name in links[0]
    assert ENGLISH.name in links[1]
    # Each links to the pages in its own language.
    same = [{target.replace(".zh-CN.md", ".md") for target in found} for found in links]
    assert same[0] == same[1]


def test_marks_of_blocks_are_known():
    assert {info for info, _ in blocks(ENGLISH)} <= {"sh", "sh download", "sh gpu", "sh slow", "text"}


def test_file_map_is_complete():
    listed = first_column(ENGLISH, "File map")
    assert len(set(listed)) == len(listed)
    patterns = ("*.py", "benchmarks/*.py", "requirements*.txt")
    scripts = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    assert scripts <= set(listed), "not in the file map"


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_links(path: Path):
    links = local_links(path)
    assert len(links) > 30
    for text, target in links:
        place = ROOT / target
        assert place.exists(), target
        if place.suffix == ".py" and text.startswith("`"):  # a function or class
            assert re.search(rf"^\s*(?:def|class) {text.strip('`')}\b", place.read_text(), re.MULTILINE), text


def test_no_machine_shows_through():
    for path in (ENGLISH, CHINESE):
        assert not re.search(r"(?<![\w.…])/(?:work|home|root|tmp|opt|usr)/", path.read_text(encoding="utf-8"))


def test_pipeline_picture():
    picture = ElementTree.parse(ROOT / "docs" / "pipeline.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    scripts = {name for text in texts for name in re.findall(r"\w+\.py", text)}
    assert {"model2onnx.py", "builder.py", "onnx2trt.py", "network_runner.py"} <= scripts
    for name in scripts:
        assert (ROOT / name).is_file()
