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

TOKENS_PER_BATCH = 4096  # bounds the output, which has a row of the size of the vocabulary for each token
BUCKET = 16  # padded lengths are multiples of it


def make_batches(
    sentences: Sequence[Sentence], batching: str, seq_len: SequenceRange, batch: SequenceRange
) -> list[NetworkBatch]:
    """Puts sentences into batches that a plan with these ranges accepts.

    Args:
        sentences: sentences whose lengths are within ``seq_len``.
        batching: single, padded or packed.
        seq_len: the plan's sequence lengths.
        batch: the plan's numbers of sequences in a batch.
    """
    if batching == "single":
        return [single_batch(sentence.ids, sentence.types, index) for index, sentence in enumerate(sentences)]
    budget = min(max(TOKENS_PER_BATCH, seq_len.maximum), batch.maximum * seq_len.maximum)
    limits = Limits(budget, batch.maximum, seq_len.maximum)
    ids, types = [sentence.ids for sentence in sentences], [sentence.types for sentence in sentences]
    lines = [sentence.line for sentence in sentences]
    if batching == "packed":
        return [packed_batch(packed) for packed in pack(ids, limits, types, lines)]
    return [padded_batch(padded) for padded in pad(ids, limits, types, lines, buckets=BUCKET)]


def predict(
    sentences: Sequence[Sentence], batches: Iterable[NetworkBatch], run: Run, mask_id: int, tokens: Sequence[str]
) -> dict[int, list[list[dict[str, Any]]] | None]:
    """Runs the batches.

    Args:
        sentences: the sentences from which ``batches`` were made.
        batches: what ``make_batches`` returned.
        run: runs the network.
        mask_id: the id of [MASK].
        tokens: the vocabulary, by id.

    Returns:
        By line number, for each [MASK] of the line, the top-10 predictions: ``{"word", "id", "probability"}``; None
        for a line with a logit that is not finite.
    """
    predictions: dict[int, list[list[dict[str, Any]]] | None] = {}
    for batch in batches:
        for index, logits in zip(batch.sequences, batch.split(run(batch.inputs)), strict=True):
            masked = logits[sentences[index].ids == mask_id]  # (number of [MASK], vocabulary)
            finite = np.isfinite(masked).all()
            words = [describe_words(row, top_k(row), tokens) for row in masked] if finite else None
            predictions[sentences[index].line] = words
    return predictions


@dataclass(frozen=True)
class Source:
    """The content of a text file.

    Attributes:
        path: the file.
        sentences: the sentences that a plan accepts and that have a [MASK]; at least one.
        problems: the lines that cannot be used.
    """

    path: Path
    sentences: list[Sentence]
    problems: list[Problem]


def check_source(folder: ModelFolder, path: Path, batch: SequenceRange) -> None:
    """Checks model, file and batch sizes before the tokenizer is loaded.

    Raises:
        UserError: the model has no head, the file is missing, or the plan's smallest batch has several sentences.
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
    """Reads a text file. A line whose length is outside ``seq_len`` becomes a problem.

    Raises:
        UserError: see ``check_source``; or no line can be used.
    """
    check_source(folder, path, batch)
    candidates, problems = read_sentences(path, load_tokenizer(folder), folder.config, need_mask=True)
    sentences = []
    for sentence in candidates:
        length = len(sentence.ids)
        if seq_len.minimum <= length <= seq_len.maximum:
            sentences.append(sentence)
            continue
        message = (
            f"{path}, line {sentence.line}: {length} tokens, but the plan takes {seq_len.minimum} to "
            f"{seq_len.maximum}; build with a wider --seq-len"
        )
        problems.append(Problem(sentence.line, message))
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
    """Fills every [MASK] of ``source`` and writes a JSON object for each line that is not blank.

    Args:
        folder: the model.
        source: what ``read_source`` returned.
        target: the file to write.
        batching: single, padded or packed.
        seq_len: the plan's sequence lengths.
        batch: the plan's numbers of sequences in a batch.
        run: runs the network.

    Raises:
        UserError: ``target`` cannot be written.
    """
    sentences, problems = source.sentences, list(source.problems)
    batches = make_batches(sentences, batching, seq_len, batch)
    bar = {"console": log_console, "transient": True, "disable": not log_console.is_terminal}
    progress: Iterator[NetworkBatch] = iter(track(batches, "filling", **bar))
    mask_id = load_tokenizer(folder).mask_token_id
    predictions = predict(sentences, progress, run, mask_id, folder.tokens())
    reason = "the network's scores are not finite; build with --precision bf16 or fp32"
    overflowed = [sentence.line for sentence in sentences if predictions[sentence.line] is None]
    problems += [Problem(line, f"{source.path}, line {line}: {reason}") for line in overflowed]
    records: dict[int, dict[str, Any]] = {
        sentence.line: {"line": sentence.line, "text": sentence.text, "fillings": predictions[sentence.line]}
        for sentence in sentences
    }
    for problem in problems:
        warn(problem.message)
        records[problem.line] = {"line": problem.line, "error": problem.message}
    with atomic_write(target) as file:
        for line in sorted(records):
            file.write((json.dumps(records[line], ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    filled = len(sentences) - len(overflowed)
    console.print(
        f"{filled} sentences in {len(batches)} batches, {len(problems)} bad lines -> {target}", soft_wrap=True
    )


def ranges_of_plan(profile: Mapping[str, Sequence[Sequence[int]]]) -> tuple[str, SequenceRange, SequenceRange]:
    """Batching, sequence lengths and sequences in a batch of a plan, from the profile of its inputs.

    Args:
        profile: by input, its [minimum, optimum, maximum] shape.

    Raises:
        UserError: the inputs are not those of BERT.
    """
    if not profile.keys() >= set(INPUT_NAMES):
        raise UserError(f"the plan's inputs are {', '.join(profile)}; expected a plan of builder.py")
    ids = np.array(profile[INPUT_NAMES[0]])  # (3, rank): minimum, optimum, maximum
    if LENGTHS_NAME in profile:
        batch = np.array(profile[LENGTHS_NAME])[:, 0] - 1  # cu_seqlens is (B + 1,)
        return "packed", SequenceRange(*(ids[:, 0] // batch).tolist()), SequenceRange(*batch.tolist())
    lengths = SequenceRange(*ids[:, 1].tolist())
    return ("padded" if MASK_NAME in profile else "single"), lengths, SequenceRange(*ids[:, 0].tolist())
