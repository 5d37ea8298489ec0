"""Fills every [MASK] of a text file: batches as a network takes them, the top-k predictions as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from bert_trt.comparison import Run, describe_words, top_k
from bert_trt.console import UserError, console, log_console, warn
from bert_trt.files import atomic_write
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, ModelFolder
from bert_trt.options import SequenceRange
from bert_trt.packing import Limits, NetworkBatch, pack, packed_batch, pad, padded_batch, single_batch
from bert_trt.sentences import Problem, Sentence, load_tokenizer, read_sentences

TOKENS_AT_ONCE = 4096  # the output of a batch has so many rows, each as wide as the vocabulary
BUCKET = 16  # padded lengths are multiples of it


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


def predict(
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
            words = [describe_words(row, top_k(row), tokens) for row in scores] if usable else None
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


def fill_text_file(
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
    predictions = predict(sentences, progress, run, mask_id, folder.tokens())
    told = "the network's scores are not finite; build with --precision bf16 or fp32"
    overflown = [one.line for one in sentences if predictions[one.line] is None]
    problems += [Problem(line, f"{source.path}, line {line}: {told}") for line in overflown]
    records: dict[int, dict[str, Any]] = {
        one.line: {"line": one.line, "text": one.text, "fillings": predictions[one.line]} for one in sentences
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
