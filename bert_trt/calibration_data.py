"""The sentences to calibrate and to measure on: a text file, parted, in batches without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_trt.console import UserError, warn
from bert_trt.model_files import INPUT_NAMES, MASK_NAME, ModelFolder
from bert_trt.sentences import Sentence, load_tokenizer, read_sentences

UNKNOWN_SHARE = 0.05  # of the tokens; a tokenizer that was made for the text has less than 1 %
BATCH_TOKENS = 4096  # sentences of one length are run together, up to so many tokens


@dataclass(frozen=True)
class Data:
    """The sentences of a file, parted.

    Attributes:
        path: the file.
        calibration: those to calibrate on.
        evaluation: others, to measure the error on.
        mask_id: the id of [MASK]; None if the tokenizer has none.
    """

    path: Path
    calibration: list[Sentence]
    evaluation: list[Sentence]
    mask_id: int | None


def read_data(folder: ModelFolder, path: Path, wanted: int, evaluation: int) -> Data:
    """Reads the calibration file and parts it; both parts are spread evenly over it.

    Args:
        folder: the model, for its tokenizer.
        path: the file.
        wanted: sentences to calibrate on.
        evaluation: at most so many others; fewer if the file has no more.

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
    rest = [sentence for place, sentence in enumerate(sentences) if place not in chosen]
    kept = [rest[place] for place in spread(len(rest), min(evaluation, len(rest)))]
    mask_id = load_tokenizer(folder).mask_token_id if folder.config.has_head else None
    calibration = [sentences[place] for place in sorted(chosen)]
    _warn_of_unknown_words([*calibration, *kept], load_tokenizer(folder), path)
    return Data(path, calibration, kept, mask_id)


def _warn_of_unknown_words(sentences: Sequence[Sentence], tokenizer: Any, path: Path) -> None:
    """Warns where too many tokens are [UNK]: ranges of a text without words are not those of real text."""
    unknown = tokenizer.unk_token_id
    ids = np.concatenate([sentence.ids for sentence in sentences])
    others = [number for number in tokenizer.all_special_ids if number != unknown]
    words = ids[~np.isin(ids, others)]  # a tokenizer without [UNK] has none of them unknown
    share = float((words == unknown).mean()) if len(words) else 0.0
    if share > UNKNOWN_SHARE:
        warn(
            f"{share:.0%} of the {len(words)} tokens of {path} are {tokenizer.unk_token}: the model's tokenizer does "
            "not know its words, so that neither ranges nor the measured error are those of real text; name text "
            "of the model's language and field with --calibration-data FILE"
        )


def spread(total: int, wanted: int) -> list[int]:
    """``wanted`` of ``total`` places, evenly spread, in order."""
    return [place * total // wanted for place in range(wanted)]


def batches(sentences: Sequence[Sentence]) -> list[list[Sentence]]:
    """Sentences of one length together, up to BATCH_TOKENS tokens: batches without padding."""
    by_length: dict[int, list[Sentence]] = {}
    for sentence in sentences:
        by_length.setdefault(len(sentence.ids), []).append(sentence)
    made = []
    for length, group in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        made += [group[start : start + size] for start in range(0, len(group), size)]
    return made


def batch_inputs(batch: Sequence[Sentence]) -> dict[str, np.ndarray]:
    """Inputs of a network for padded batches, each int32 (B, S); there is no padding in it."""
    ids = np.stack([sentence.ids for sentence in batch])
    positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    values = (ids, np.stack([sentence.types for sentence in batch]), positions)
    return dict(zip(INPUT_NAMES, values, strict=True)) | {MASK_NAME: np.ones_like(ids)}
