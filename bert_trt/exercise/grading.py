"""Grades a work folder and prints what is right, what is wrong and why, and what to do next.

Each task is graded in a process of its own, with a time limit: whatever a task does, the others are graded all the
same. Tasks whose blanks are as they were are not started, and need no process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bert_trt.console import UserError, console, log_console
from bert_trt.exercise.blanks import WorkFolder
from bert_trt.exercise.compiler_errors import first_compiler_error
from bert_trt.exercise.messages import language, say
from bert_trt.exercise.tasks import (
    BY_NUMBER,
    COMPILED,
    LEVELS,
    NOT_GRADED,
    NOT_STARTED,
    RIGHT,
    TASKS,
    WRONG,
    Grade,
    Task,
)
from bert_trt.options import CHINESE, ExerciseOptions
from plugins import build

SCRIPT = "exercise.py"
MAX_AT_ONCE = 4
TIME_LIMITS = {  # seconds
    "network_tasks": 60,
    "calibration_tasks": 60,
    "kernel_tasks": 600,
    "sum_tasks": 600,
    "projects": 600,
}
STYLES = {NOT_STARTED: "dim", WRONG: "bold red", RIGHT: "bold green", COMPILED: "yellow", NOT_GRADED: "yellow"}

PLACE = re.compile(r'^ *File "(.+)", line (\d+)', re.MULTILINE)  # of a traceback

Grades = dict[int, Grade]  # by the task's number


class Processes:
    """Starts the processes that grade, and ends them with all that they started.

    Args:
        work: the work folder.
        seed: the seed.
        time_limit: seconds for one task; None for the limit of its kind.
        library: the environment variable that names the plugin library, for tasks that need any.
    """

    def __init__(self, work: WorkFolder, seed: int, time_limit: int | None, library: dict[str, str]) -> None:
        self._work = work
        self._library = library
        self._seed = seed
        self._time_limit = time_limit
        self._one_kernel = threading.Lock()  # kernels are timed: one at a time
        self._running: set[subprocess.Popen[str]] = set()
        self._interrupted = False

    def grade(self, tasks: Sequence[Task]) -> Grades:
        """Grades tasks, several at a time."""
        workers = max(1, min(MAX_AT_ONCE, len(os.sched_getaffinity(0))))
        with ThreadPoolExecutor(workers) as pool:
            try:
                return dict(zip([task.number for task in tasks], pool.map(self._grade, tasks), strict=True))
            except BaseException:
                self._interrupted = True  # what these processes say from now on is no grade
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    _end(process)
                raise

    def _grade(self, task: Task) -> Grade:
        with self._one_kernel if task.is_kernel else nullcontext():
            grade = self._run(task)
        if self._interrupted:
            return grade
        log_console.print(
            say(
                "task {number}: {status} ({seconds:.0f} s)",
                number=task.number,
                status=say(grade.status),
                seconds=grade.seconds,
            )
        )
        return grade

    def _run(self, task: Task) -> Grade:
        limit = self._time_limit or TIME_LIMITS[task.grader]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "grade.json"
            command = [
                sys.executable, SCRIPT, "grade", str(task.number), "--seed", str(self._seed),
                "--language", language(), "--result", str(result),
            ]  # fmt: skip
            process = subprocess.Popen(
                command,
                cwd=self._work.path,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | (self._library if task.needs_library else {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that what it starts can be ended with it
            )
            self._running.add(process)
            try:
                written, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                _end(process)
                cause = say("a loop that never ends, or threads of a kernel that wait for each other")
                return Grade(
                    WRONG,
                    say("stopped after {limit} s (--time-limit)", limit=limit),
                    cause,
                    {},
                    time.monotonic() - start,
                )
            finally:
                self._running.discard(process)
            if result.is_file():
                return Grade(**json.loads(result.read_text(encoding="utf-8")))
        return _without_result(process.returncode, written, time.monotonic() - start)


def plugin_library(project: Path) -> dict[str, str]:
    """The environment variable that names a built plugin library: the project's, or else that of the work folder.

    The project's is preferred: that of a work folder takes a minute to build, and does not build while a kernel of
    another task has an error. Networks need only the plugins' classes of it.

    Raises:
        BuildError: the library of the work folder cannot be built.
    """
    if os.environ.get(build.BUILD_DIR_VARIABLE):
        return {}
    folder = project / "plugins" / "build"
    if not (folder / build.LIBRARY).is_file():
        folder = build.library_path().parent
    return {build.BUILD_DIR_VARIABLE: str(folder)}


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _without_result(code: int, written: str, seconds: float) -> Grade:
    """The grade of a process that ended before it had one."""
    lines = [line for line in written.splitlines() if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    places = PLACE.findall(written)
    if places and code > 0:
        name, line = places[-1]
        last = ": " + say("{file}, line {line}: {error}", file=Path(name).name, line=line, error=lines[-1])
    if code < 0:
        cause = say(
            "memory that is no longer there: TensorRT reads weights when it builds, and they must live until then"
        )
        return Grade(
            WRONG,
            say("the process ended by {signal}{last}", signal=signal.Signals(-code).name, last=last),
            cause,
            {},
            seconds,
        )
    return Grade(NOT_GRADED, say("the grading ended with code {code}{last}", code=code, last=last), "", {}, seconds)


def grade_folder(work: WorkFolder, options: ExerciseOptions, seed: int) -> Grades:
    """Grades the chosen tasks of a work folder."""
    chosen = [task for task in TASKS if not options.tasks or task.number in options.tasks]
    grades: Grades = {}
    for task in chosen:
        try:
            blank = work.open_blanks(task)
        except UserError as error:
            grades[task.number] = Grade(WRONG, str(error), say("the file was moved or deleted, or is not UTF-8"))
            continue
        if blank and len(blank) == work.count(task):
            grades[task.number] = Grade(NOT_STARTED)
        elif blank:
            found = say(
                "{blank} of {count} places are still blank, in {files}",
                blank=len(blank),
                count=work.count(task),
                files=", ".join(sorted(set(blank))),
            )
            grades[task.number] = Grade(WRONG, found, say("search for TODO {number}", number=task.number))
    started = [task for task in chosen if task.number not in grades]
    if started:
        numbers = ", ".join(str(task.number) for task in started)
        log_console.print(say("grading {numbers} ...", numbers=numbers))
    library: dict[str, str] = {}
    if any(task.needs_library for task in started):
        try:
            library = plugin_library(work.project)
        except build.BuildError as error:
            first = first_compiler_error(str(error)) or str(error).splitlines()[0]
            reason = say("the plugin library cannot be built: {error}", error=first)
            grades |= {task.number: Grade(NOT_GRADED, reason) for task in started if task.needs_library}
            started = [task for task in started if not task.needs_library]
    processes = Processes(work, seed, options.time_limit, library)
    grades |= processes.grade([task for task in started if not task.needs])
    for task in (task for task in started if task.needs):
        unmet = _unmet(task, grades, work)
        if unmet:
            grades[task.number] = Grade(NOT_GRADED, say("its code calls that of {unmet}", unmet=unmet))
    return grades | processes.grade([task for task in started if task.number not in grades])


def _unmet(task: Task, grades: Grades, work: WorkFolder) -> str:
    """The first of the tasks that this one needs and that is not right; empty if all are."""
    for number in task.needs:
        needed = BY_NUMBER[number]
        status = grades[number].status if number in grades else _status_by_blanks(needed, work)
        if status not in (RIGHT, COMPILED):
            return say(
                "task {number}, {title}, which is {status}",
                number=number,
                title=say(needed.title),
                status=say(status),
            )
    return ""


def _status_by_blanks(task: Task, work: WorkFolder) -> str:
    """What is known of a task that is not graded this time."""
    try:
        return NOT_STARTED if work.open_blanks(task) else RIGHT
    except UserError:
        return WRONG


# --- the report ---------------------------------------------------------------------------------------------------


def reached_level(grades: Grades) -> str | None:
    """The highest level of which, and of those below which, all tasks are right; None for none."""
    reached = None
    for level in LEVELS:
        if any(task.number not in grades or grades[task.number].status != RIGHT for task in _of(level)):
            return reached
        reached = level
    return reached


def _of(level: str) -> list[Task]:
    return [task for task in TASKS if task.level == level]


def next_task(grades: Grades) -> Task | None:
    """The first task that is not right and can be worked on here; None if there is none."""
    return next(
        (task for task in TASKS if task.number in grades and grades[task.number].status in (NOT_STARTED, WRONG)), None
    )


def print_report(grades: Grades, seed: int, seconds: float) -> None:
    """Prints the table, the findings and what to do next."""
    table = Table(title=say("The exercise"), title_justify="left")
    table.add_column(say("task"), justify="right")
    for heading in ("", say("level"), say("grade")):
        table.add_column(heading)
    for task in TASKS:
        if task.number in grades:
            status = grades[task.number].status
            table.add_row(str(task.number), say(task.title), say(task.level), Text(say(status), STYLES[status]))
    console.print(table)
    for task in TASKS:
        grade = grades.get(task.number, Grade(NOT_STARTED))
        if grade.found:
            console.print()
            title = say("{number} {title}: ", number=task.number, title=say(task.title))
            console.print(Text.assemble(title, (say(grade.status), STYLES[grade.status])))
            _print_line(say("found"), grade.found)
            if grade.cause:
                _print_line(say("likely cause"), grade.cause)
            if grade.status == WRONG:
                _print_line(say("page"), page_of(task))
    console.print()
    if len(grades) == len(TASKS):
        for level in LEVELS:
            right = sum(grades[task.number].status == RIGHT for task in _of(level))
            counts = {"right": right, "count": len(_of(level))}
            console.print(say("{level}: {right} of {count} right", level=say(level), **counts))
        console.print(say("level reached: {level}", level=say(reached_level(grades) or "none yet")))
    following = next_task(grades)
    if following is not None:
        console.print(
            say(
                "next: task {number}, {title}: {page}",
                number=following.number,
                title=say(following.title),
                page=page_of(following),
            )
        )
    elif any(grade.status == COMPILED for grade in grades.values()):
        console.print(say("next: grade the kernels on a machine with an NVIDIA GPU"))
    console.print(
        say(
            "seed {seed}, {seconds:.0f} s; the same shapes and values again: make grade SEED={seed}",
            seed=seed,
            seconds=seconds,
        )
    )


def _print_line(label: str, text: str) -> None:
    console.print(Text(say("  {label}: {text}", label=label, text=text)), soft_wrap=True)


def page_of(task: Task) -> str:
    """The path of a task's page, in the chosen language."""
    return f"docs/tutorial/{task.page}{'.zh-CN' if language() == CHINESE else ''}.md"


def as_json(grades: Grades, seed: int, seconds: float) -> dict[str, Any]:
    """The report for ``--json``."""
    following = next_task(grades)
    return {
        "seed": seed,
        "seconds": seconds,
        "level": reached_level(grades) if len(grades) == len(TASKS) else None,
        "levels": {
            level: {
                "tasks": len(_of(level)),
                "right": sum(task.number in grades and grades[task.number].status == RIGHT for task in _of(level)),
            }
            for level in LEVELS
        },
        "next": None if following is None else following.number,
        "tasks": [
            {"number": task.number, "title": task.title, "level": task.level, "page": page_of(task)}
            | asdict(grades[task.number])
            for task in TASKS
            if task.number in grades
        ],
    }
