"""Finds the tasks that are marked in the sources, and makes a work folder in which they are blank.

A task is marked by two comments around what its work folder does not have:

    # exercise 4 begins
    return self.addGather(table, indices, 0, name)
    # exercise 4 ends

In C++ the comments begin with ``//``; where a function must return something, the first one says what the blank has:
``// exercise 8 begins; the blank has: return value;``. A task may have several such places, in several files.

The work folder has the project's files as they are, except that each place becomes a comment with ``TODO``, the
task's number, its hint and the shapes that stood beside the lines, and a statement that says that it is blank.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bert_trt.console import UserError
from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import BY_NUMBER, TASKS, Task
from bert_trt.files import explain_write_error, read_json

RECORD = ".exercise.json"  # in the work folder: the project that it was made of, and its blanks
ENVIRONMENT = ".venv"
LEFT_OUT = re.compile(r"\..*|out|build|__pycache__|.*\.plan(\.json)?")  # of a project that is no git repository
HIDDEN_BUT_WANTED = (".clang-format", ".gitignore", ".pre-commit-config.yaml", ".github")
WIDTH = {"#": 118, "//": 110}  # of a line of Python, of C++

MARK = re.compile(
    r"^(?P<indent> *)(?P<sign>#|//) exercise (?P<number>\d+) begins(?:; the blank has: (?P<leaves>[^\n]+))?\n"
    r"(?P<body>.*?)"
    r"^(?P=indent)(?P=sign) exercise (?P=number) ends\n",
    re.DOTALL | re.MULTILINE,
)
ANY_MARK = re.compile(r"^.*exercise \d+ (?:begins|ends).*$", re.MULTILINE)
SHAPES = re.compile(r"^ *(?P<name>\w+) = .*# (?:each )?(?P<shape>\([^)]*\))", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """One marked place of a source.

    Attributes:
        task: the task.
        marked: the text in the source, marks included.
        blank: the text in the work folder.
        body: the text between the marks: the solution.
    """

    task: Task
    marked: str
    blank: str
    body: str


def find_places(text: str, source: str = "the source") -> list[Place]:
    """The marked places of a source, in order.

    Raises:
        ValueError: a mark has no partner, or a number that no task has.
    """
    places: list[Place] = []
    hinted: set[int] = set()
    for match in MARK.finditer(text):
        number = int(match["number"])
        if number not in BY_NUMBER:
            raise ValueError(f"{source}: exercise {number} is not among the tasks")
        task = BY_NUMBER[number]
        blank = _blank(task, match, has_hint=number not in hinted)
        hinted.add(number)
        places.append(Place(task, match[0], blank, match["body"]))
    marks = ANY_MARK.findall(text)
    if len(marks) != 2 * len(places):
        raise ValueError(f"{source}: {len(marks)} marks for {len(places)} places: {marks}")
    return places


def _blank(task: Task, match: re.Match[str], has_hint: bool) -> str:
    """What a place becomes in the work folder."""
    indent, sign = match["indent"], match["sign"]
    words = [f"TODO {task.number}: {task.title}."]
    if has_hint:
        words.append(f"Hint: {task.hint}")
    shapes = dict.fromkeys(f"{found['name']} {found['shape']}" for found in SHAPES.finditer(match["body"]))
    if shapes:
        words.append(f"Shapes: {'; '.join(shapes)}.")
    begin = f"{indent}{sign} "
    lines = [
        line
        for part in words
        for line in textwrap.wrap(
            part, WIDTH[sign], initial_indent=begin, subsequent_indent=begin, break_long_words=False
        )
    ]
    page = f"docs/tutorial/{task.page}.md"
    if sign == "#":
        lines.append(f'{indent}raise NotImplementedError("TODO {task.number}: {task.title}, see {page}")')
    elif match["leaves"]:
        lines.append(f"{indent}{match['leaves']}")
    lines.append(f"{indent}{sign} end of TODO {task.number}")
    return "\n".join(lines) + "\n"


def blank_text(text: str, source: str = "the source") -> str:
    """The source as it is in the work folder."""
    for place in find_places(text, source):
        text = text.replace(place.marked, place.blank, 1)
    return text


# --- the work folder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkFolder:
    """A work folder.

    Attributes:
        path: the folder.
        project: the project that it was made of; it may be gone.
        blanks: the blanks of each task, by file.
    """

    path: Path
    project: Path
    blanks: dict[int, dict[str, list[str]]]

    @classmethod
    def open(cls, path: Path) -> WorkFolder:
        """Reads a work folder.

        Raises:
            UserError: it is none.
        """
        if not (path / RECORD).is_file():
            raise UserError(
                say(
                    "{path} is no work folder of the exercise: {record} is missing; make one with: make exercise "
                    "DIR=my_bert, and grade inside of it",
                    path=path,
                    record=RECORD,
                )
            )
        remedy = say("make the work folder again: make exercise DIR=...")
        values = read_json(path / RECORD, remedy)
        try:
            recorded = values["blanks"].items()
            blanks = {int(number): {name: list(of) for name, of in files.items()} for number, files in recorded}
            return cls(path, Path(values["project"]), blanks)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                say("{path} does not hold what it should; {remedy}", path=path / RECORD, remedy=remedy)
            ) from error

    def open_blanks(self, task: Task) -> list[str]:
        """The files in which a place of the task is still blank, once for each place.

        Raises:
            UserError: a file is missing or cannot be read.
        """
        left: list[str] = []
        for name, blanks in self.blanks.get(task.number, {}).items():
            text = self.read(name)
            for blank in set(blanks):  # places without a hint may have the same blank
                left += [name] * min(text.count(blank), blanks.count(blank))
        return left

    def count(self, task: Task) -> int:
        """How many places the task has."""
        return sum(map(len, self.blanks.get(task.number, {}).values()))

    def read(self, name: str) -> str:
        """A file of the folder.

        Raises:
            UserError: it is missing or cannot be read.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(say("cannot read {name}: {reason}", name=name, reason=reason)) from error


def project_files(project: Path) -> list[str]:
    """The project's files: those that git tracks, or without git all but what is made from them."""
    if (project / ".git").exists():
        command = ["git", "-C", str(project), "ls-files", "-z"]
        try:
            names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        except (OSError, subprocess.CalledProcessError):
            names = list(_walk(project))
    else:
        names = list(_walk(project))
    return sorted(name for name in names if name and (project / name).is_file())


def _walk(project: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(project):
        if Path(parent) != project and RECORD in files:  # another work folder
            folders.clear()
            continue
        folders[:] = [name for name in folders if name in HIDDEN_BUT_WANTED or not LEFT_OUT.fullmatch(name)]
        for name in files:
            if name in HIDDEN_BUT_WANTED or not LEFT_OUT.fullmatch(name):
                yield (Path(parent) / name).relative_to(project).as_posix()


def make_work_folder(project: Path, folder: Path) -> WorkFolder:
    """Makes a work folder: the project's files with blanks, and a link to the project's environment if it has one.

    Args:
        project: the project's folder.
        folder: the new folder; it must not exist, or be empty.

    Raises:
        UserError: the folder has files, cannot be written to, or the project is a work folder itself.
    """
    if (project / RECORD).is_file():
        raise UserError(
            say(
                "{project} is a work folder itself; make another one from the project that it was made of",
                project=project,
            )
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            say(
                "{folder} exists already and is left as it is; grade it with make grade inside of it, or name "
                "another folder: make exercise DIR=other",
                folder=folder,
            )
        )
    blanks: dict[int, dict[str, list[str]]] = {task.number: {} for task in TASKS}
    marked = {name for task in TASKS for name in task.files}
    names = project_files(project)
    is_new = not folder.exists()
    try:
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(project / name, target)  # with its time: packages are installed again for newer requirements
            if name in marked:
                places = find_places(target.read_text(encoding="utf-8"), name)
                target.write_text(blank_text(target.read_text(encoding="utf-8"), name), encoding="utf-8")
                for place in places:
                    blanks[place.task.number].setdefault(name, []).append(place.blank)
        if (project / ENVIRONMENT).exists():
            (folder / ENVIRONMENT).symlink_to((project / ENVIRONMENT).resolve(), target_is_directory=True)
        record = {"project": str(project.resolve()), "blanks": blanks}
        (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except BaseException as error:  # Ctrl-C as well: half a folder would be taken for a whole one
        shutil.rmtree(folder, ignore_errors=True)
        if not is_new:
            folder.mkdir(exist_ok=True)
        if isinstance(error, OSError):
            raise UserError(explain_write_error(folder, error)) from error
        raise
    return WorkFolder(folder, project, blanks)
