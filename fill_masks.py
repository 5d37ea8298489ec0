"""Fills every [MASK] of a text file, one sentence a line, and writes the ten best words as JSON lines.

    python builder.py --batching packed --fusion plugins --sentences FILE      builds a plan and fills
    python fill_masks.py out/builder.fp16.packed.fused.plan FILE               with a plan that is there already

The sentences are put into batches as the network wants them (packing.py), and the answers come in the file's order.
A line that cannot be used gets an error with its number, and does not cost the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_trt.interrupts import begin_script
from bert_trt.options import fill_masks_arguments

if __name__ == "__main__":
    begin_script(fill_masks_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import numpy as np
from rich.progress import track

from bert_trt.comparison import best_words, describe_words
from bert_trt.console import UserError, console, log_console, run_script, warn
from bert_trt.files import atomic_write, check_outputs, make_folder
from bert_trt.inference import InferHelper
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, ModelFolder
from bert_trt.network import NetworkContents
from bert_trt.options import SequenceRange, fillings_path
from bert_trt.packing import Limits, NetworkBatch, pack, packed_batch, pad, padded_batch, single_batch
from bert_trt.plan import info_path, read_info
from bert_trt.sentences import Problem, Sentence, load_tokenizer, read_sentences
from bert_trt.tensorrt_product import trt

if TYPE_CHECKING:
    from bert_trt.pipeline import Job

TOKENS_AT_ONCE = 4096  # the output of a batch has so many rows, each as wide as the vocabulary
BUCKET = 16  # padded lengths are multiples of it

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # a network's inputs to its output


def make_batches(
    sentences: Sequence[Sentence], batching: str, seq_len: SequenceRange, batch: SequenceRange
) -> list[NetworkBatch]:
    """Puts sentences, whose lengths ``seq_len`` allows, into batches that a plan with these ranges accepts."""
    if batching == "single":
        return [single_batch(one.ids, one.types, place) for place, one in enumerate(sentences)]
    budget = min(max(TOKENS_AT_ONCE, seq_len.maximum), batch.maximum * seq_len.maximum)
    limits = Limits(budget, batch.maximum, seq_len.maximum)
    ids, types = [sentence.ids for sentence in sentences], [sentence.types for sentence in sentences]
    lines = [sentence.line for sentence in sentences]
    if batching == "packed":
        return [packed_batch(made) for made in pack(ids, limits, types, lines)]
    return [padded_batch(made) for made in pad(ids, limits, types, lines, buckets=BUCKET)]


def fill(
    sentences: Sequence[Sentence], batches: Iterable[NetworkBatch], run: Run, mask_id: int, tokens: Sequence[str]
) -> dict[int, list[list[dict[str, Any]]] | None]:
    """Runs the batches.

    Returns:
        By line, for each [MASK] in it, the ten best words: ``{"word", "id", "probability"}``; None if a score of the
        line is not finite.
    """
    found: dict[int, list[list[dict[str, Any]]] | None] = {}
    for batch in batches:
        for place, all_scores in zip(batch.sentences, batch.split(run(batch.inputs)), strict=True):
            scores = all_scores[sentences[place].ids == mask_id]  # (number of [MASK], vocabulary)
            usable = np.isfinite(scores).all()
            words = [describe_words(row, best_words(row), tokens) for row in scores] if usable else None
            found[sentences[place].line] = words
    return found


@dataclass(frozen=True)
class Source:
    """A text file as a plan takes it.

    Attributes:
        path: the file.
        sentences: those with [MASK], at least one.
        problems: the lines that cannot be used.
    """

    path: Path
    sentences: list[Sentence]
    problems: list[Problem]


def check_source(folder: ModelFolder, path: Path, batch: SequenceRange) -> None:
    """Checks what can be checked before the tokenizer is loaded.

    Raises:
        UserError: the model has no head, the file is missing, or the smallest batch has several sentences.
    """
    if not folder.config.has_head:
        raise UserError(f"{folder.path} has no masked-language-model head; expected a BertForMaskedLM checkpoint")
    if not path.exists():
        raise UserError(f"no file {path}; name a text file with one sentence a line")
    if batch.minimum > 1:
        raise UserError(
            f"the plan's smallest batch has {batch.minimum} sentences, but the last ones of a file may be fewer; "
            "build with --batch 1,OPT,MAX"
        )


def read_source(folder: ModelFolder, path: Path, seq_len: SequenceRange, batch: SequenceRange) -> Source:
    """Reads the file, before a plan is built for it; a line that ``seq_len`` does not allow cannot be used.

    Raises:
        UserError: see ``check_source``; or no line can be used.
    """
    check_source(folder, path, batch)
    found, problems = read_sentences(path, load_tokenizer(folder), folder.config, need_mask=True)
    sentences = []
    for one in found:
        length = len(one.ids)
        if seq_len.minimum <= length <= seq_len.maximum:
            sentences.append(one)
            continue
        told = f"the plan takes {seq_len.minimum} to {seq_len.maximum}; build with a wider --seq-len"
        problems.append(Problem(one.line, f"{path}, line {one.line}: {length} tokens, but {told}"))
    problems.sort(key=lambda problem: problem.line)
    if not sentences:
        raise UserError(f"{path}: no line can be used; the first: {problems[0].message}")
    return Source(path, sentences, problems)


def fill_file(
    folder: ModelFolder,
    source: Source,
    target: Path,
    batching: str,
    seq_len: SequenceRange,
    batch: SequenceRange,
    run: Run,
) -> None:
    """Fills every [MASK] of ``source`` and writes ``target``: a JSON object for each line that is not blank.

    Raises:
        UserError: ``target`` cannot be written.
    """
    sentences, problems = source.sentences, list(source.problems)
    batches = make_batches(sentences, batching, seq_len, batch)
    shown = {"console": log_console, "transient": True, "disable": not log_console.is_terminal}
    progress: Iterator[NetworkBatch] = iter(track(batches, "filling", **shown))
    mask_id = load_tokenizer(folder).mask_token_id
    fillings = fill(sentences, progress, run, mask_id, folder.tokens())
    told = "the network's scores are not finite; build with --precision bf16 or fp32"
    overflown = [one.line for one in sentences if fillings[one.line] is None]
    problems += [Problem(line, f"{source.path}, line {line}: {told}") for line in overflown]
    records: dict[int, dict[str, Any]] = {
        one.line: {"line": one.line, "text": one.text, "fillings": fillings[one.line]} for one in sentences
    }
    for problem in problems:
        warn(problem.message)
        records[problem.line] = {"line": problem.line, "error": problem.message}
    with atomic_write(target) as file:
        for line in sorted(records):
            file.write((json.dumps(records[line], ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    filled = len(sentences) - len(overflown)
    console.print(
        f"{filled} sentences in {len(batches)} batches, {len(problems)} bad lines -> {target}", soft_wrap=True
    )


def fill_network(
    job: Job, network: trt.INetworkDefinition, contents: NetworkContents, source: Source, target: Path
) -> None:
    """Fills with the plan that builder.py has just built, or, where it cannot be executed, with its network."""
    ranges = (job.options.seq_len, job.options.batch)
    name = job.folder.config.output_name
    if job.executed_by == "tensorrt":
        with InferHelper(job.plan_path) as helper:
            fill_file(job.folder, source, target, job.batching, *ranges, lambda inputs: helper.infer(inputs)[name])
        return
    import torch

    from bert_trt.network_runner import NetworkRunner

    runner = NetworkRunner(network, "cuda" if torch.cuda.is_available() else "cpu", contents=contents)
    fill_file(
        job.folder, source, target, job.batching, *ranges, lambda inputs: runner.run(inputs)[name].cpu().numpy()
    )


def ranges_of_plan(profile: Mapping[str, Sequence[Sequence[int]]]) -> tuple[str, SequenceRange, SequenceRange]:
    """(batching, sequence lengths, sentences in a batch) of a plan, from the profile of its inputs.

    Raises:
        UserError: it is no plan of BERT.
    """
    if not profile.keys() >= set(INPUT_NAMES):
        raise UserError(f"the plan's inputs are {', '.join(profile)}; expected a plan of builder.py")
    ids = np.array(profile[INPUT_NAMES[0]])  # (3, rank): minimum, optimum, maximum
    if LENGTHS_NAME in profile:
        sentences = np.array(profile[LENGTHS_NAME])[:, 0] - 1
        return "packed", SequenceRange(*(ids[:, 0] // sentences).tolist()), SequenceRange(*sentences.tolist())
    lengths = SequenceRange(*ids[:, 1].tolist())
    return ("padded" if MASK_NAME in profile else "single"), lengths, SequenceRange(*ids[:, 0].tolist())


def main() -> int:
    """The script."""
    args = fill_masks_arguments()
    folder = ModelFolder(args.model_dir)
    info = read_info(args.plan)
    if info is None:
        raise UserError(f"{args.plan}.json is missing; build the plan again with builder.py")
    target = fillings_path(args.fillings, args.plan)
    inputs = {"PLAN": args.plan, "PLAN.json": info_path(args.plan), "FILE": args.sentences}
    check_outputs({"--fillings": target}, inputs | folder.files())
    make_folder(target.parent)
    batching, seq_len, batch = ranges_of_plan(info.profile)
    source = read_source(folder, args.sentences, seq_len, batch)
    with InferHelper(args.plan) as helper:
        name = folder.config.output_name
        fill_file(folder, source, target, batching, seq_len, batch, lambda inputs: helper.infer(inputs)[name])
    return 0


if __name__ == "__main__":
    run_script(main)
