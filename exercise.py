"""The exercise: makes a work folder in which the tasks are blank, and grades it.

    make exercise DIR=my_bert     or: python exercise.py make my_bert       a copy to work in, with blanks
    cd my_bert && make grade      or: python exercise.py grade              what is right, and what to do next
    make grade TASKS="1 6"        only these tasks
    make grade SEED=7 JSON=FILE   the shapes and values of seed 7; the grades as JSON
    make grade LANGUAGE=zh        in Chinese; without it, in the language of the locale

docs/tutorial/ has a page for each task. bert_trt/exercise/ holds the tasks and the grading.
"""

from __future__ import annotations

import random
import shlex
import time
from dataclasses import asdict
from pathlib import Path

from bert_trt.command_line import exercise_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(exercise_arguments)  # answers --help, wrong usage and Ctrl-C before anything else

from rich.text import Text

from bert_trt.console import console, run_script
from bert_trt.exercise.blanks import WorkFolder, make_work_folder
from bert_trt.exercise.grading import as_json, grade_folder, print_report
from bert_trt.exercise.messages import language_of_locale, say, set_language
from bert_trt.exercise.tasks import BY_NUMBER
from bert_trt.files import check_outputs, make_folder, write_json
from bert_trt.options import ExerciseOptions

ROOT = Path(__file__).resolve().parent
SEEDS = 1_000_000


def main() -> int:
    """Runs the script; returns its exit code: 0 also where tasks are wrong, since that was to be found out."""
    options = exercise_arguments()
    set_language(options.language or language_of_locale())
    if options.result is not None:
        return check_one(options, options.result)
    if options.folder is not None:
        make_work_folder(ROOT, options.folder)
        made = say(
            "{folder}: {count} tasks are blank; each is marked with TODO and its number\n"
            "next: cd {folder}, make grade, and docs/tutorial/README.md",
            folder=shlex.quote(str(options.folder)),
            count=len(BY_NUMBER),
        )
        console.print(Text(made), soft_wrap=True)
    else:
        grade(options)
    return 0


def grade(options: ExerciseOptions) -> None:
    """Grades the work folder that this script is in.

    Raises:
        UserError: it is in no work folder, or the file for the grades cannot be written.
    """
    work, start = WorkFolder.open(ROOT), time.monotonic()
    sources = {name: ROOT / name for task in BY_NUMBER.values() for name in task.files}
    check_outputs({"--json": options.json}, sources)
    if options.json is not None:
        make_folder(options.json.parent)
    seed = random.SystemRandom().randrange(SEEDS) if options.seed is None else options.seed
    grades = grade_folder(work, options, seed)
    seconds = time.monotonic() - start
    print_report(grades, seed, seconds)
    write_json(options.json, as_json(grades, seed, seconds))


def check_one(options: ExerciseOptions, result: Path) -> int:
    """Grades a single task in this process and writes the grade to a file."""
    from bert_trt.exercise.checks import check_task

    (number,) = options.tasks
    write_json(result, asdict(check_task(BY_NUMBER[number], options.seed or 0, ROOT)))
    return 0


if __name__ == "__main__":
    run_script(main)
