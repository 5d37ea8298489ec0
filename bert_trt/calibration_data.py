"""The calibration data: reads a text file, divides it into sentences for calibration and for measuring the error, and
puts sentences of similar lengths into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_trt.console import UserError, warn
from bert_trt.model_files import INPUT_NAMES, MASK_NAME, ModelFolder
from bert_trt.sentences import Sentence, load_tokenizer, read_sentences

UNKNOWN_SHARE = 0.05  # a larger share of [UNK] tokens is warned of; a tokenizer that suits the text has less than 1 %
BATCH_TOKENS = 1024  # the most tokens in a batch; a CPU multiplies 128 rows with less than half the speed of 1024


@dataclass(frozen=True)
class Data:
    """The sentences of a file, in two parts.

    Attributes:
        path: the file.
        calibration: the sentences to calibrate on.
        evaluation: other sentences, to measure the error on.
        mask_id: the id of [MASK]; None if the tokenizer has none.
    """

    path: Path
    calibration: list[Sentence]
    evaluation: list[Sentence]
    mask_id: int | None


def read_data(folder: ModelFolder, path: Path, wanted: int, evaluation: int) -> Data:
    """Reads the calibration file and divides it into two parts, both spread evenly over it.

    Args:
        folder: the model, for its tokenizer.
        path: the file.
        wanted: number of sentences to calibrate on.
        evaluation: number of sentences to measure on; fewer if the file has no more.

    Raises:
        UserError: the file cannot be read, a line is bad, or there are too few.
    """
    sentences, problems = read_sentences(path, load_tokenizer(folder), folder.config, truncate=True)
    if problems:
        raise UserError(f"{problems[0].message} ({len(problems)} bad lines in all)")
    if len(sentences) < wanted:
        raise UserError(
            f"{path} has {len(sentences)} sentences, fewer than the {wanted} asked for; add some, or ask for fewer "
            "with --calibration-sentences"
        )
    chosen = set(spread(len(sentences), wanted))
    rest = [sentence for index, sentence in enumerate(sentences) if index not in chosen]
    kept = [rest[index] for index in spread(len(rest), min(evaluation, len(rest)))]
    mask_id = load_tokenizer(folder).mask_token_id if folder.config.has_head else None
    calibration = [sentences[index] for index in sorted(chosen)]
    _warn_of_unknown_words([*calibration, *kept], load_tokenizer(folder), path)
    return Data(path, calibration, kept, mask_id)


def _warn_of_unknown_words(sentences: Sequence[Sentence], tokenizer: Any, path: Path) -> None:
    """Warns if too many tokens are [UNK]: the ranges of such a text are not those of real text."""
    unknown = tokenizer.unk_token_id  # None for a tokenizer without [UNK], so that no token equals it
    ids = np.concatenate([sentence.ids for sentence in sentences])
    other_special_ids = [number for number in tokenizer.all_special_ids if number != unknown]
    words = ids[~np.isin(ids, other_special_ids)]
    share = float((words == unknown).mean()) if len(words) else 0.0
    if share > UNKNOWN_SHARE:
        warn(
            f"{share:.0%} of the {len(words)} tokens of {path} are {tokenizer.unk_token}: the model's tokenizer does "
            "not know its words, so that neither ranges nor the measured error are those of real text; name text "
            "of the model's language and field with --calibration-data FILE"
        )


def spread(total: int, wanted: int) -> list[int]:
    """``wanted`` of the indices 0 to ``total`` - 1, evenly spread, ascending."""
    return [number * total // wanted for number in range(wanted)]


def batches(sentences: Sequence[Sentence], same_length: bool = False) -> list[list[Sentence]]:
    """Groups sentences of similar lengths into batches of up to BATCH_TOKENS tokens each, padding included.

    Args:
        sentences: the sentences.
        same_length: a batch only has sentences of one length, so that it has no padding.
    """
    # exercise 12 begins
    grouped: list[list[Sentence]] = []
    for sentence in sorted(sentences, key=lambda sentence: len(sentence.ids)):  # the batch's longest is the last
        length, last = len(sentence.ids), grouped[-1] if grouped else []
        fits = (len(last) + 1) * length <= BATCH_TOKENS
        if last and fits and (not same_length or len(last[0].ids) == length):
            last.append(sentence)
        else:
            grouped.append([sentence])
    return grouped
    # exercise 12 ends


def batch_inputs(batch: Sequence[Sentence]) -> dict[str, np.ndarray]:
    """The inputs of a network for padded batches, each int32 (B, S): S is the longest sentence's length.

    Padding repeats a sentence's last token: then no value enters the network that the sentences themselves do not
    have, which matters in a damaged model, since 0 · NaN is NaN.
    """
    # exercise 12 begins
    length = max(len(sentence.ids) for sentence in batch)

    def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(row, (0, length - len(row)), mode="edge") for row in rows])

    ids, types = padded([sentence.ids for sentence in batch]), padded([sentence.types for sentence in batch])
    positions = np.tile(np.arange(length, dtype=np.int32), (len(batch), 1))
    return dict(zip(INPUT_NAMES, (ids, types, positions), strict=True)) | {MASK_NAME: real_tokens(batch)}
    # exercise 12 ends


def num_tokens(sentences: Sequence[Sentence]) -> int:
    """Number of tokens of the sentences, without padding."""
    return sum(len(sentence.ids) for sentence in sentences)


def real_tokens(batch: Sequence[Sentence]) -> np.ndarray:
    """The attention mask of a batch, int32 (B, S): 1 for the sentences' own tokens, 0 for padding."""
    # exercise 12 begins
    lengths = np.array([len(sentence.ids) for sentence in batch])
    return (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    # exercise 12 ends
