"""The commands on the pages (README, docs/, CONTRIBUTING) do what the pages show.

test_pages.py checks the rest of the pages, and that the Chinese ones have the same commands.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import pytest
from plugin_build_for_tests import built_plugins
from test_pages import RESULTS, ROOT, blocks, page_name, pages, section, without_comment

from bert_trt.inference import execution_obstacle
from bert_trt.tensorrt_product import IS_RTX

FIRST = "make demo"  # every other command needs what it writes
NOT_RUN = "make test"  # it runs this file

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\.?\d)")
ERROR = re.compile(r"\d\.\d\de-\d\d")
RULES = str.maketrans("━─┏┳┓┡╇┩├┼┤└┴┘┌┬┐┃│", " " * 19)

# The pages show a machine without a GPU. On another one only these lines of its output need be the same.
LIKE_PAGES = IS_RTX and execution_obstacle() == "no NVIDIA GPU (no driver is installed)"
SAME_ANYWHERE = re.compile(r"^\d+\. |^relative L2|^agrees with|^first layer|^True$")
VARIES = re.compile(r"^seconds for network")


# --- what the pages say -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One shell command of a page and the output that the page shows, if any."""

    page: str
    block: int
    line: str
    exit_code: int
    shown: str | None

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def commands() -> list[Command]:
    """The commands of every ``sh`` block of every page, in their order."""
    found: list[Command] = []
    for page in pages():
        all_blocks = blocks(page)
        for number, (info, body) in enumerate(all_blocks):
            following = all_blocks[number + 1] if number + 1 < len(all_blocks) else ("", "")
            if info != "sh":
                continue
            lines = body.splitlines()
            for line in lines:
                stated = re.search(r"# exit code (\d+)", line)
                is_last = line is lines[-1]
                shown = following[1] if is_last and following[0] == "text" else None
                exit_code = int(stated[1]) if stated else 0
                found.append(Command(page_name(page), number, without_comment(line), exit_code, shown))
    return [command for command in found if command.line != NOT_RUN]


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
    if not LIKE_PAGES:
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
PIP = echo 'the page tests must not install packages:' && false
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


class Runs:
    """Runs each command line once, however many blocks and threads ask for it."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._folder, self._variables = folder, variables
        self._lock, self._runs = Lock(), dict[str, Future[Done]]()

    def __call__(self, line: str) -> Done:
        with self._lock:
            is_new = line not in self._runs
            run = self._runs.setdefault(line, Future())
        if is_new:
            try:
                run.set_result(self._run(["bash", "-c", line]))
            except BaseException as error:  # others may be waiting for it
                run.set_exception(error)
        return run.result()

    def _run(self, command: list[str]) -> Done:
        return subprocess.run(
            command, cwd=self._folder, env=self._variables, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def outputs(workplace: Path) -> dict[str, Done]:
    """Every command as it was run: ``make demo`` alone, then the blocks two at a time, each block in its order."""
    variables = os.environ | {
        "PATH": f"{workplace / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "BERT_PLUGINS_BUILD_DIR": str(built_plugins()),
    }
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "COLUMNS"):  # of the make that runs this test
        variables.pop(name, None)
    run = Runs(workplace, variables)
    lines: dict[tuple[str, int], list[str]] = {}
    for command in commands():
        lines.setdefault((command.page, command.block), []).append(command.line)

    def run_block(block: list[str]) -> dict[str, Done]:
        return {line: run(line) for line in block}

    done = run_block([FIRST])
    with ThreadPoolExecutor(2) as pool:
        for answers in pool.map(run_block, lines.values()):
            done |= answers
    return done


@pytest.mark.parametrize("command", commands(), ids=str)
def test_command(command: Command, outputs: dict[str, Done]):
    done = outputs[command.line]
    assert done.returncode == command.exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if command.shown is not None:
        assert_shows(command.shown, done.stdout)


def test_results_table(outputs: dict[str, Done]):
    """The errors in the first results table are those of the commands, and within what is accepted."""
    text = section(RESULTS, "fp32, fp16 and bf16")
    rows = re.findall(r"^\| (fp32|fp16|bf16) \| (\S+) \| (\S+) \| (\S+) \|", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["fp32", "fp16", "bf16"]
    for precision, accepted, *shown in rows:
        if precision == "fp32":
            printed = normalised(outputs[FIRST].stdout)
        else:
            scripts = (f"python {script} --precision {precision}" for script in ("builder.py", "onnx2trt.py"))
            printed = [line for script in scripts for line in normalised(outputs[script].stdout)]
        lines = " ".join(line for line in printed if line.startswith("relative L2 error"))
        assert {float(limit) for limit in re.findall(r"at most (\S+)\)", lines)} == {float(accepted)}
        in_the_table = ERROR.findall(lines)[:2]  # the demo's third network is that with plugins
        for real, number in zip(in_the_table, shown, strict=True):
            assert float(real) <= float(accepted)
            assert not LIKE_PAGES or 1 / 3 <= float(real) / float(number) <= 3


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
    monkeypatch.setitem(globals(), "LIKE_PAGES", True)
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
    monkeypatch.setitem(globals(), "LIKE_PAGES", True)
    with pytest.raises(pytest.fail.Exception, match="but the output is"):
        assert_shows(shown, REAL)
