"""The exercise: marks in the sources, the work folder, and the grading as a student sees it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from plugin_build_for_tests import built_plugins

from bert_trt.console import UserError
from bert_trt.exercise import blanks
from bert_trt.exercise.blanks import RECORD, WorkFolder, blank_text, find_places, make_work_folder, project_files
from bert_trt.exercise.grading import as_json, grade_folder, next_task, plugin_library, reached_level
from bert_trt.exercise.projects import grade_tests
from bert_trt.exercise.tasks import (
    ADVANCED,
    BY_NUMBER,
    COMPILED,
    EXCELLENT,
    LEVELS,
    NOT_GRADED,
    NOT_STARTED,
    PASS,
    RIGHT,
    TASKS,
    WRONG,
    Grade,
    WrongAnswer,
)
from bert_trt.options import ExerciseOptions
from plugins import build

ROOT = Path(__file__).parent.parent
MARKED = sorted({name for task in TASKS for name in task.files})


# --- marks and blanks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKED)
def test_blanks_filled_with_the_bodies_are_the_source_without_its_marks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    places = find_places(text, name)
    blank, unmarked = blank_text(text, name), text
    for place in places:
        assert place.body.strip() not in blank, f"the solution of task {place.task.number} is in the blank"
        blank = blank.replace(place.blank, place.body, 1)
        unmarked = unmarked.replace(place.marked, place.body, 1)
    assert blank == unmarked


def test_every_task_is_marked_where_it_says_and_only_there():
    found: dict[int, set[str]] = {}
    for name in project_files(ROOT):
        path = ROOT / name
        if path.suffix in (".py", ".cu", ".cuh", ".cpp", ".h") and "exercise" not in name:
            for place in find_places(path.read_text(encoding="utf-8"), name):
                found.setdefault(place.task.number, set()).add(name)
    assert found == {task.number: set(task.files) for task in TASKS}


def test_a_blank_keeps_name_signature_docstring_shapes_and_has_a_hint():
    blank = blank_text((ROOT / "trt_helper.py").read_text(encoding="utf-8"))
    start = blank.index("    def addLinear(")
    method = blank[start : blank.index("    def ", start + 10)]
    assert "weight: (out, in), PyTorch's ``Linear.weight``." in method
    assert "# TODO 1: addLinear." in method
    assert "# Hint: " in method
    assert "# Shapes: w (1 ..., out, in); product (..., out)." in method
    assert 'raise NotImplementedError("TODO 1: addLinear, see docs/tutorial/linear.md")' in method
    compile(blank, "trt_helper.py", "exec")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# exercise 1 begins\nx\n", "1 marks for 0 places"),
        ("# exercise 1 begins\nx\n# exercise 2 ends\n", "2 marks for 0 places"),
        ("# exercise 99 begins\nx\n# exercise 99 ends\n", "exercise 99 is not among the tasks"),
        ("    # exercise 1 begins\nx\n# exercise 1 ends\n", "2 marks for 0 places"),
    ],
)
def test_marks_without_partners_are_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        find_places(text)


def test_every_task_has_a_page_in_both_languages():
    for task in TASKS:
        for end in (".md", ".zh-CN.md"):
            assert (ROOT / "docs" / "tutorial" / f"{task.page}{end}").is_file()


# --- the work folder --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("exercise") / "my_bert"
    make_work_folder(ROOT, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the work folder."""
    return Path(shutil.copytree(made, tmp_path / "my_bert", symlinks=True))


def test_the_work_folder_is_the_project_with_blanks(made):
    for name in project_files(ROOT):
        original, copy = (ROOT / name).read_bytes(), (made / name).read_bytes()
        assert (original == copy) == (name not in MARKED), name
        assert name in MARKED or (made / name).stat().st_mtime == (ROOT / name).stat().st_mtime
    work = WorkFolder.open(made)
    for task in TASKS:
        assert len(work.open_blanks(task)) == work.count(task) > 0
    assert (made / ".venv").exists() == (ROOT / ".venv").exists()


def test_a_project_without_git_makes_the_same_folder(made, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(
        ROOT,
        project,
        ignore=shutil.ignore_patterns(".git", ".venv", "build", "out", "__pycache__", ".*_cache", ".hypothesis"),
    )
    (project / "out").mkdir()
    (project / "out" / "model.onnx").write_text("made")
    make_work_folder(project, project / "my_bert")
    make_work_folder(project, project / "another")  # without the first one in it
    files = {name for name in project_files(ROOT) if not name.startswith(".ci/")}
    assert set(project_files(project / "another")) >= files
    assert not (project / "another" / "my_bert").exists()
    assert not (project / "another" / "out").exists()


@pytest.mark.parametrize("what", ["file", "folder with a file"])
def test_what_exists_is_left_as_it_is(what, tmp_path):
    target = tmp_path / "mine"
    if what == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine exists already and is left as it is; .*make exercise DIR=other"):
        make_work_folder(ROOT, target)
    assert (target if what == "file" else target / "notes.txt").read_text() == "mine"


def test_no_work_folder_is_made_of_a_work_folder(made, tmp_path):
    with pytest.raises(UserError, match="is a work folder itself"):
        make_work_folder(made, tmp_path / "other")


def test_a_place_that_cannot_be_written_to_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        make_work_folder(ROOT, tmp_path / "file" / "my_bert")


def test_the_project_itself_cannot_be_graded(script):
    done = script("exercise.py", "grade")
    assert done.returncode == 1
    assert "is no work folder of the exercise" in done.stderr
    assert "make exercise DIR=my_bert" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "record", ["{", "[]", "{}", '{"project": 1, "blanks": {}}', '{"project": "a", "blanks": {"x": {}}}']
)
def test_a_damaged_record_is_an_error(record, tmp_path):
    (tmp_path / RECORD).write_text(record)
    with pytest.raises(UserError, match=r"\.exercise\.json .*; make the work folder again: make exercise DIR="):
        WorkFolder.open(tmp_path)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_interrupted_leaves_no_half_of_a_folder(exists, error, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    target = tmp_path / "mine"
    if exists:
        target.mkdir()
    monkeypatch.setattr(blanks, "blank_text", fail)
    with pytest.raises((KeyboardInterrupt, UserError)):
        make_work_folder(ROOT, target)
    assert list(tmp_path.rglob("*")) == [target] * exists
    monkeypatch.undo()
    assert make_work_folder(ROOT, target).count(BY_NUMBER[1])


def test_the_next_step_can_be_copied(script, tmp_path):
    done = script("exercise.py", "make", tmp_path / "my bert", "--language", "zh")
    assert f"cd '{tmp_path / 'my bert'}'" in done.stdout
    assert "docs/tutorial/README.zh-CN.md" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grade", "99"], "'99' is no task; the tasks are 1 to 17"),
        (["grade", "1,6"], "'1,6' is no task; the tasks are 1 to 17; several have spaces between them: 1 6"),
        (["grade", "--language", "fr"], "invalid choice: 'fr'"),
        (["grade", "--seed", "x"], "'x' is no seed"),
        (["make"], "FOLDER"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage(script, arguments, message):
    done = script("exercise.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


# --- grading as a student sees it ---------------------------------------------------------------------------------


def grade(folder: Path, *arguments: object) -> tuple[dict[int, dict[str, Any]], dict[str, Any], str]:
    """Grades a folder. Returns the grades by task, the whole report, and what was printed."""
    report = folder.parent / "grades.json"
    command = [sys.executable, "exercise.py", "grade", *map(str, arguments), "--json", str(report)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    values = json.loads(report.read_text())
    return {entry["number"]: entry for entry in values["tasks"]}, values, done.stdout


def solve(folder: Path, *numbers: int) -> None:
    """Puts the solution of tasks in place of their blanks."""
    for name in MARKED:
        text = (folder / name).read_text()
        for place in find_places((ROOT / name).read_text()):
            if place.task.number in numbers:
                text = text.replace(place.blank, place.body, 1)
        (folder / name).write_text(text)


def write(folder: Path, number: int, body: str, name: str | None = None) -> None:
    """Puts a text in place of the first blank of a task."""
    for place in find_places((ROOT / (name or BY_NUMBER[number].files[0])).read_text()):
        if place.task.number == number:
            path = folder / (name or BY_NUMBER[number].files[0])
            assert place.blank in path.read_text()
            path.write_text(path.read_text().replace(place.blank, body, 1))
            return


def test_a_fresh_folder_is_not_started(made):
    grades, report, printed = grade(made, "--seed", 7)
    assert {entry["status"] for entry in grades.values()} == {NOT_STARTED}
    assert report["level"] is None
    assert report["next"] == 1
    assert "next: task 1, addLinear: docs/tutorial/linear.md" in printed
    assert "make grade SEED=7" in printed
    assert report["seconds"] < 5


def test_each_task_is_graded_whatever_the_others_do(folder):
    """Right ones, ones with a part left, and one that calls a blank one."""
    solve(folder, 1, 3)
    write(folder, 4, "        return self.addGather(table, indices, 0, name)\n")
    write(folder, 11, "    return = 3\n")
    write(folder, 12, "    while True:\n        pass\n")
    write(folder, 6, "        return self.linear(x, f'{name}.query')\n")
    write(folder, 8, "    return value\n")
    grades, report, _ = grade(folder, *range(1, 13), "--time-limit", 25)
    assert {number for number, entry in grades.items() if entry["status"] == RIGHT} == {1, 3}
    assert {number for number, entry in grades.items() if entry["status"] == NOT_STARTED} == {2, 5, 7, 9, 10}
    assert grades[4]["status"] == WRONG
    assert grades[4]["found"] == "1 of 2 places are still blank, in trt_helper.py"
    assert grades[11]["status"] == WRONG
    assert grades[11]["found"].startswith("1 of 2 places are still blank")
    assert grades[6]["status"] == NOT_GRADED
    assert "task 2, addSoftmax, which is not started" in grades[6]["found"]
    assert report["next"] == 2


def test_what_ends_badly_is_named_and_the_others_are_graded(folder):
    solve(folder, 11, 12)
    text = (folder / "bert_trt" / "histograms.py").read_text()
    (folder / "bert_trt" / "histograms.py").write_text(
        text.replace("cumulative = np.cumsum(counts)", "cumulative = = 1")
    )
    write(folder, 1, "        import time\n        while True:\n            time.sleep(1)\n")
    write(folder, 2, "        import os\n        os.kill(os.getpid(), 11)\n")
    write(folder, 5, "        return self.network.no_such_call(x)\n")
    grades, _, printed = grade(folder, 1, 2, 5, 11, 12, "--time-limit", 20)
    assert grades[12]["status"] == RIGHT
    assert grades[11]["found"].startswith("bert_trt/histograms.py, line ")
    assert "invalid syntax" in grades[11]["found"]
    assert "syntax error" in grades[11]["cause"]
    assert grades[1]["found"] == "stopped after 20 s (--time-limit)"
    assert "never ends" in grades[1]["cause"]
    assert "SIGSEGV" in grades[2]["found"]
    assert grades[5]["found"].startswith("trt_helper.py, line ")
    assert "no_such_call" in grades[5]["found"]
    assert {grades[number]["status"] for number in (1, 2, 5, 11)} == {WRONG}
    assert "docs/tutorial/calibration_range.md" in printed


@pytest.mark.skipif(build.find_compiler() is None, reason="needs a CUDA compiler")
def test_a_kernel_that_does_not_compile_is_named_and_another_one_compiles(folder):
    solve(folder, 8, 10)
    path = folder / "plugins" / "layer_norm" / "layer_norm_fast.cu"
    path.write_text(path.read_text().replace("Width const width{hidden}", "Width const width{no_such_width}"))
    grades, _, _ = grade(folder, 8, 9, 10)
    assert grades[8]["status"] in (COMPILED, RIGHT)
    assert grades[9]["status"] == NOT_STARTED
    assert grades[10]["status"] == WRONG
    assert grades[10]["found"].startswith("plugins/layer_norm/layer_norm_fast.cu, line ")
    assert 'identifier "no_such_width" is undefined' in grades[10]["found"]
    assert "does not compile" in grades[10]["cause"]


def test_a_file_that_is_gone_and_a_broken_one_are_named(folder):
    solve(folder, 1, 11)
    (folder / "bert_trt" / "histograms.py").unlink()
    path = folder / "bert_trt" / "exercise" / "network_tasks.py"
    path.write_text(path.read_text() + "def (\n")
    grades, _, _ = grade(folder, 1, 11, 12)
    assert grades[11]["status"] == WRONG
    assert grades[11]["found"] == "cannot read bert_trt/histograms.py: No such file or directory"
    assert grades[12]["status"] == NOT_STARTED
    assert grades[1]["status"] == NOT_GRADED
    assert grades[1]["found"].startswith("bert_trt/exercise/network_tasks.py, line ")
    path = folder / "bert_trt" / "exercise" / "checks.py"
    path.write_text(path.read_text() + "def (\n")
    grades, _, _ = grade(folder, 1)
    assert grades[1]["found"].startswith("the grading ended with code 1: checks.py, line ")


def test_a_folder_is_graded_in_chinese(folder):
    write(folder, 4, "        return self.addGather(table, indices, 0, name)\n")
    grades, _, printed = grade(folder, 4, "--language", "zh")
    assert grades[4]["status"] == WRONG
    assert grades[4]["found"] == "2 处空白中还有 1 处没有写，在 trt_helper.py"
    assert "可能的原因：请搜索 TODO 4" in printed
    assert "docs/tutorial/embedding.zh-CN.md" in printed


def test_the_plugin_is_graded_with_the_projects_library(folder, monkeypatch):
    """A work folder has none of its own."""
    solve(folder, 7)
    monkeypatch.setenv(build.BUILD_DIR_VARIABLE, str(built_plugins()))
    grades, _, _ = grade(folder, 7)
    assert grades[7]["status"] == RIGHT, grades[7]


def test_ctrl_c_ends_the_grading_with_all_its_processes(folder):
    body = (
        "        import os, pathlib, time\n"
        "        pathlib.Path('started').write_text(str(os.getpid()))\n"
        "        time.sleep(600)\n"
    )
    write(folder, 1, body)
    process = subprocess.Popen(
        [sys.executable, "exercise.py", "grade", "1"], cwd=folder, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  what tests run under is set
    )  # fmt: skip
    started = folder / "started"
    for _ in range(600):
        if started.is_file() and started.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "grading 1 ...\ninterrupted\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_the_library_is_the_projects_or_else_the_work_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "mine" / build.LIBRARY)
    monkeypatch.delenv(build.BUILD_DIR_VARIABLE, raising=False)
    assert plugin_library(tmp_path) == {build.BUILD_DIR_VARIABLE: str(tmp_path / "mine")}
    built = tmp_path / "plugins" / "build"
    built.mkdir(parents=True)
    (built / build.LIBRARY).write_text("")
    assert plugin_library(tmp_path) == {build.BUILD_DIR_VARIABLE: str(built)}
    monkeypatch.setenv(build.BUILD_DIR_VARIABLE, "chosen")
    assert plugin_library(tmp_path) == {}


def test_a_library_that_cannot_be_built_is_named_with_the_compilers_error(folder, monkeypatch):
    def fail() -> Path:
        raise build.BuildError("nvcc ...\n/x/kernel.cu(7): error: expected a ;\nfailed: cmake --build")

    solve(folder, 7)
    monkeypatch.setattr(build, "library_path", fail)
    monkeypatch.delenv(build.BUILD_DIR_VARIABLE, raising=False)
    work = WorkFolder(folder, folder / "gone", WorkFolder.open(folder).blanks)
    answer = grade_folder(work, ExerciseOptions("grade", tasks=(7,)), 0)[7]
    assert answer.status == NOT_GRADED
    assert answer.found == "the plugin library cannot be built: kernel.cu, line 7: expected a ;"


def test_the_json_file_may_not_be_a_source(folder):
    done = subprocess.run(
        [sys.executable, "exercise.py", "grade", "--json", "trt_helper.py"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "would overwrite" in done.stderr


# --- levels -----------------------------------------------------------------------------------------------------


def grades_with(*right: int, **other: Grade) -> dict[int, Grade]:
    return {task.number: Grade(RIGHT if task.number in right else NOT_STARTED) for task in TASKS}


@pytest.mark.parametrize(
    ("right", "level", "following"),
    [
        ((), None, 1),
        ((1, 2, 3, 4, 5, 6), None, 7),
        ((2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), None, 1),
        (range(1, 8), PASS, 8),
        ((*range(1, 8), 8, 9), EXCELLENT, 10),
        (range(1, 13), ADVANCED, 13),
        (range(1, 18), ADVANCED, None),
    ],
)
def test_levels_and_what_comes_next(right, level, following):
    grades = grades_with(*right)
    assert reached_level(grades) == level
    found = next_task(grades)
    assert (found.number if found else None) == following
    assert as_json(grades, 1, 2.0)["level"] == level


def test_a_kernel_that_was_not_run_reaches_no_level():
    grades = grades_with(*range(1, 13)) | {8: Grade(COMPILED)}
    assert reached_level(grades) == PASS
    assert LEVELS == (PASS, EXCELLENT, ADVANCED)


# --- projects: what pytest says ------------------------------------------------------------------------------------


def test_a_project_is_right_if_all_its_tests_pass():
    assert grade_tests("....\n4 passed, 2 skipped in 3.1s\n", "").status == RIGHT


def test_a_project_whose_tests_call_a_blank_is_not_graded():
    answer = grade_tests("E   NotImplementedError: TODO 1: addLinear, see x\nFAILED tests/a.py::b\n1 failed\n", "")
    assert answer.status == NOT_GRADED
    assert "TODO 1: addLinear" in answer.found


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (
            "E   assert 1 == 2\nFAILED tests/a.py::test_b[x]\n1 failed, 3 passed in 1s\n",
            "tests/a.py::test_b[x]: assert 1 == 2",
        ),
        ("ERROR tests/a.py - ImportError\n1 error in 1s\n", "tests/a.py - ImportError"),
        ("no tests ran in 0.1s\n", "no tests ran in 0.1s"),
        ("3 skipped in 0.1s\n", "3 skipped in 0.1s"),
    ],
)
def test_a_project_with_a_failed_test_is_wrong(output, found):
    with pytest.raises(WrongAnswer) as raised:
        grade_tests(output, "")
    assert raised.value.found == found


def test_the_tests_of_projects_exist():
    for task in TASKS:
        for argument in task.tests:
            assert not argument.endswith(".py") or (ROOT / argument).is_file()


def test_the_record_names_the_project(made):
    assert json.loads((made / RECORD).read_text())["project"] == str(ROOT.resolve())
