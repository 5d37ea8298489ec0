"""The grading of the projects. Their judges are tests, which pass for the real source; here they judge wrong ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression
from plugin_build_for_tests import built_plugins

from bert_trt.exercise import projects
from bert_trt.exercise.blanks import find_places, make_work_folder
from bert_trt.exercise.projects import grade_tests
from bert_trt.exercise.tasks import BY_NUMBER, WrongAnswer
from plugins import build

ROOT = Path(__file__).parent.parent

QKV = 'name}.{part}", hidden, hidden) for part in '
MISTAKES: tuple[dict[int, tuple[str, str]], ...] = (  # by task: a part of the solution, and what it becomes
    {
        15: (f"{QKV}QKV", f"{QKV}(QKV[1], QKV[0], QKV[2])"),  # K before Q
        16: ("return self._additive(", "return self.helper.addScale("),  # padding is visible, tokens are not
        17: ("return helper.addEqual(query, key,", "return helper.addEqual(key, key,"),  # every token sees all
    },
    {
        15: ("np.concatenate(biases)", "np.concatenate([biases[0]] * 3)"),
        16: ("(0, 1, 1, -1)", "(0, -1, 1, 1)"),  # the mask of a sentence for the rows of the batch
        17: ("addLess(ends, column,", 'addLess(ends, helper.addShift(column, -1.0, "token.late"),'),
    },
)
JUDGES = {15: "plugins-single-fp32", 16: "none-padded-fp32", 17: "none-packed-fp32"}  # of which no other one judges
RAGGED = "test_a_ragged_batch_equals_pytorch"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without any blank."""
    folder = tmp_path_factory.mktemp("projects") / "project"
    make_work_folder(ROOT, folder)
    for name in {name for task in BY_NUMBER.values() for name in task.files}:
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def sources(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, graded in place of this project."""
    monkeypatch.setenv(build.BUILD_DIR_VARIABLE, str(built_plugins()))
    monkeypatch.setattr(projects, "ROOT", project)
    return project


@pytest.mark.parametrize("mistakes", MISTAKES)
def test_a_mistake_in_each_project_is_wrong(mistakes, sources):
    """One run for three projects: each judge has a network that the other projects have no part in."""
    for number, change in mistakes.items():
        path = sources / BY_NUMBER[number].files[0]
        solutions = [place.body for place in find_places((ROOT / BY_NUMBER[number].files[0]).read_text())]
        assert change[0] in "".join(solutions)
        path.write_text(path.read_text().replace(*change))
    tests = [f"tests/test_batching_and_fusion.py::{RAGGED}[{judge}]" for judge in JUDGES.values()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=sources, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for number, change in mistakes.items():
        path = sources / BY_NUMBER[number].files[0]
        path.write_text(path.read_text().replace(change[1], change[0]))
    failed = re.findall(rf"^FAILED \S+::{RAGGED}\[(\S+)\]", done.stdout, re.MULTILINE)
    assert sorted(failed) == sorted(JUDGES.values()), done.stdout
    with pytest.raises(WrongAnswer, match=RAGGED):
        grade_tests(done.stdout, done.stderr)


@pytest.mark.parametrize("number", JUDGES)
def test_each_project_is_judged_by_its_judge(number):
    file, option, expression = BY_NUMBER[number].tests
    assert (file, option) == ("tests/test_batching_and_fusion.py", "-k")
    assert Expression.compile(expression).evaluate(lambda name, **_: name in f"{RAGGED}[{JUDGES[number]}]")
