"""Long commands are seen to work, their output is kept, and their exit code is passed on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bert_trt.progress import run_with_progress

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "bert_trt" / "progress.py")
SLOW = "import sys, time; print('one', flush=True); time.sleep(0.5); print('two', file=sys.stderr); sys.exit(3)"


def test_silence_is_broken(capfd):
    code, written = run_with_progress([sys.executable, "-c", SLOW], "working", silence=0.1)
    told = capfd.readouterr().err.splitlines()
    assert code == 3
    assert written == "one\ntwo\n"
    assert [line for line in told if not line.startswith("working: ")] == ["one", "two"]
    between = told[told.index("one") + 1 : told.index("two")]
    assert len(between) >= 2


def test_lines_are_shown_as_wished_and_kept_as_they_are(capfd):
    code, written = run_with_progress(
        [sys.executable, "-c", "print('a'); print('b')"], "x", lambda line: line.upper() if line == "b" else None
    )
    assert (code, written) == (0, "a\nb\n")
    assert capfd.readouterr() == ("", "B\n")


@pytest.mark.parametrize("code", [0, 7])
def test_the_script_ends_as_its_command_does(code):
    command = [
        sys.executable,
        SCRIPT,
        "label",
        sys.executable,
        "-c",
        f"print('said'); raise SystemExit({code})",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "said\n")


def test_wrong_usage_exits_with_2():
    done = subprocess.run([sys.executable, SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: progress.py LABEL COMMAND")


def test_the_standard_library_is_enough():
    """make installs everything else through it."""
    command = [
        sys.executable,
        "-I",
        "-S",
        SCRIPT,
        "label",
        sys.executable,
        "-c",
        "print('said')",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "said\n")
