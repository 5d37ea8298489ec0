"""Answers every line of many files with Ray: several processes of one machine, or of a cluster.

    python corpus.py texts.txt more.jsonl --out answers                    the model in the folder out
    python corpus.py texts.parquet --out answers --actors 2 --keep doc_id  two processes
    python corpus.py texts.txt --out answers --address HOST:6379           a cluster's machines

``python corpus.py --help`` describes input and output. predict.py does the same in one process, without Ray.
bert_trt/shards.py splits the files, bert_trt/corpus_actor.py is what Ray runs, bert_trt/corpus_folder.py writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bert_trt.command_line import corpus_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(corpus_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

from bert_trt.console import UserError, console, log_console, note, remaining_time, run_script, warn
from bert_trt.corpus_actor import Job, ShardPredictor, any_lengths
from bert_trt.corpus_folder import BAD_FOLDER, open_folder, part_path, summarise
from bert_trt.files import file_version
from bert_trt.model_files import ModelFolder
from bert_trt.options import Columns, CorpusOptions
from bert_trt.prediction import SHOWN_PROBLEMS
from bert_trt.ray_cluster import choose_actors, cluster, import_ray, machines_of, run_shards
from bert_trt.records import Wanted
from bert_trt.shards import Shard, is_parquet, split_corpus
from builder import assemble

FORMAT = 1  # of what an interrupted run leaves
SECONDS_BETWEEN_NOTES = 60.0  # where there is no terminal to show a bar on


def main() -> int:
    """Runs the script; returns its exit code."""
    predict_corpus(corpus_arguments())
    return 0


def predict_corpus(options: CorpusOptions) -> None:
    """Answers every line of the inputs.

    Raises:
        UserError: an option does not suit the model, a file is missing or cannot be used, the output folder belongs
            to something else, the cluster cannot be joined, or no line can be used.
    """
    import_ray()
    job = Job(options, Path.cwd(), assemble)
    folder = job.open_model()
    check_columns(options, folder.config.task)
    shards = list(split_corpus(options.inputs, folder.config.task, options.columns, options.shard_lines))
    job.source(folder, any_lengths(folder))  # checks the options of answers
    with open_folder(options.out, describe(options, folder), options.restart):
        missing = [shard for shard in shards if not part_path(options.out, shard.number).exists()]
        total = sum(shard.count for shard in shards)
        done = total - sum(shard.count for shard in missing)
        if done:
            note(f"{done} of {total} lines were done before; going on from there (--restart would begin again)")
        if missing:
            answer_shards(job, missing, done, total)
        report(options.out)


def check_columns(options: CorpusOptions, task: str) -> None:
    """Checks --columns and --keep.

    Raises:
        UserError: they have no effect, or name more or fewer texts than the task takes.
    """
    texts, wanted = options.columns.texts, Wanted.by(task)
    if options.columns != Columns() and not any(map(is_parquet, options.inputs)):
        raise UserError("--columns and --keep are for Parquet files, and no INPUT is one; leave them out")
    if texts is not None and not wanted.minimum <= len(texts) <= wanted.maximum:
        expected = " and ".join(wanted.keys[: wanted.maximum])
        raise UserError(f"--columns names {len(texts)} columns, but {task} takes {expected}")


def describe(options: CorpusOptions, folder: ModelFolder) -> dict[str, Any]:
    """What the answers depend on: an interrupted run goes on only where all of it is the same."""
    return {
        "format": FORMAT,
        **{f"input {number}": file_version(path) for number, path in enumerate(options.inputs, start=1)},
        **{name: file_version(path) for name, path in folder.files().items() if path.is_file()},
        "--precision": options.precision,
        "--fusion": options.fusion,
        "--shard-lines": options.shard_lines,
        "--columns": options.columns.texts and list(options.columns.texts),
        "--keep": list(options.columns.kept),
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(options.answers).items()},
    }


def answer_shards(job: Job, shards: Sequence[Shard], done: int, total: int) -> None:
    """Answers shards with Ray.

    Args:
        job: what the actors have to know.
        shards: at least one.
        done: lines of other shards, which were answered before.
        total: lines of the corpus.
    """
    with cluster(job.options.address) as ray, ExitStack() as shown:
        actors = choose_actors(machines_of(ray), job.options.actors)
        note(f"actors: {actors.count}, each with {actors.gpus} GPUs and {actors.cpus} CPUs")
        advance = shown.enter_context(progress(done, total))
        try:
            for shard in run_shards(ray, shards, ShardPredictor, replace(job, threads=actors.cpus), actors):
                done += shard.count
                advance(shard.count)
        except BaseException:
            if done:
                note(f"{done} lines are done; the same command goes on from there")
            raise


@contextmanager
def progress(done: int, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal, else a line from time to time; yields a function that is told of finished lines."""
    if log_console.is_terminal:
        with remaining_time("predicting", total) as advance:
            advance(done)
            yield advance
        return
    start = last = time.monotonic()
    first = done

    def advance_silently(lines: int) -> None:
        nonlocal done, last
        done += lines
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_NOTES:
            note(f"{done} of {total} lines, {(done - first) / (now - start):.0f} a second")
            last = now

    yield advance_silently


def report(folder: Path) -> None:
    """Tells what the finished folder has.

    Raises:
        UserError: there is no answer in it.
    """
    summary = summarise(folder, SHOWN_PROBLEMS)
    if not summary.answered:
        first = f"; the first: {summary.first_bad[0]}" if summary.bad else ""
        raise UserError(f"no line can be used ({summary.bad} are bad){first}")
    for problem in summary.first_bad:
        warn(problem)
    more = summary.bad - len(summary.first_bad)
    if more:
        warn(f"{more} more bad lines; {folder / BAD_FOLDER} has the reason of each")
    console.print(f"{summary.answered} answers, {summary.bad} bad lines -> {folder}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    run_script(main)
