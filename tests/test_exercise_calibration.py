"""The grading of the calibration's tasks: the solution is right, and typical mistakes are wrong, with their cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_trt import calibration_data, histograms
from bert_trt.exercise.checks import check_task
from bert_trt.exercise.tasks import BY_NUMBER, RIGHT, WRONG
from bert_trt.model_files import INPUT_NAMES, MASK_NAME

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("number", [11, 12])
def test_the_solution_is_right(number):
    for seed in range(10):
        answer = check_task(BY_NUMBER[number], seed, ROOT)
        assert answer.status == RIGHT, answer


def percentile(inside: float | None = None, percent: float = 100, as_value: bool = True) -> Callable[..., float]:
    def find(counts, limit, percentile):
        cumulative = np.cumsum(counts)
        target = percentile / percent * cumulative[-1]
        index = min(int(np.searchsorted(cumulative, target)), len(counts) - 1)
        below = cumulative[index - 1] if index else 0
        place = index + ((target - below) / max(counts[index], 1) if inside is None else inside)
        return place * limit / len(counts) if as_value else place

    return find


def mse(
    rounds: bool = True, clips: bool = True, weights: bool = True, kind_: str | None = None
) -> Callable[..., float]:
    def find(counts, limit, amax, kind):
        filled = np.flatnonzero(counts)
        values = (filled + 0.5) * limit / len(counts)
        often = counts[filled] if weights else 1.0

        def error(candidate: float) -> float:
            whole = histograms._round_trip(values, candidate, kind_ or kind)
            exact = np.minimum(values, candidate)
            part = whole if rounds else exact
            return float((often * (part - values) ** 2 * (True if clips else values <= candidate)).sum())

        return float(min(amax * np.geomspace(1, 1 / 16, 161), key=error))

    return find


BATCHES, INPUTS, REAL = calibration_data.batches, calibration_data.batch_inputs, calibration_data.real_tokens


def unsorted(sentences, same_length=False):
    grouped: list[Any] = []
    for sentence in sentences:
        last = grouped[-1] if grouped else []
        longest = max([len(one.ids) for one in [*last, sentence]])
        if last and (len(last) + 1) * longest <= 1024 and (not same_length or len(last[0].ids) == len(sentence.ids)):
            last.append(sentence)
        else:
            grouped.append([sentence])
    return grouped


def counts_real_tokens(sentences, same_length=False):
    if same_length:
        return BATCHES(sentences, True)
    grouped: list[Any] = []
    for sentence in sorted(sentences, key=lambda one: len(one.ids)):
        last = grouped[-1] if grouped else []
        if last and sum(len(one.ids) for one in last) + len(sentence.ids) <= 1024:
            last.append(sentence)
        else:
            grouped.append([sentence])
    return grouped


def changed_inputs(change: Callable[[dict[str, np.ndarray], Any], None]) -> Callable[..., Any]:
    def make(batch):
        inputs = INPUTS(batch)
        change(inputs, batch)
        return inputs

    return make


def zero_padding(inputs, batch):
    inputs[INPUT_NAMES[0]] = inputs[INPUT_NAMES[0]] * REAL(batch)


def padding_first(inputs, batch):
    for row, sentence in enumerate(batch):
        count = len(sentence.ids)
        inputs[INPUT_NAMES[0]][row] = np.pad(sentence.ids, (inputs[INPUT_NAMES[0]].shape[1] - count, 0), mode="edge")


def wide_mask(inputs, batch):
    inputs[MASK_NAME] = inputs[MASK_NAME].astype(np.int64)


MISTAKES = {  # title: task, module, function, what is put there, the cause
    "upper end": (11, histograms, "percentile_range", percentile(1.0), "the bin's upper end"),
    "lower end": (11, histograms, "percentile_range", percentile(0.0), "the bin's lower end"),
    "bin number": (11, histograms, "percentile_range", percentile(as_value=False), "the number of the bin"),
    "not in percent": (11, histograms, "percentile_range", percentile(percent=1), "in percent"),
    "of the range": (11, histograms, "percentile_range", lambda c, limit, p: p / 100 * limit, "a share of the range"),
    "no return": (11, histograms, "percentile_range", lambda *_: None, "return is missing"),
    "only clipping": (11, histograms, "mse_range", mse(rounds=False), "only clipping counts"),
    "only rounding": (11, histograms, "mse_range", mse(clips=False), "only rounding counts"),
    "no weights": (11, histograms, "mse_range", mse(weights=False), "each bin counts the same"),
    "always int8": (11, histograms, "mse_range", mse(kind_="int8"), "the error is that of int8"),
    "amax": (11, histograms, "mse_range", lambda counts, limit, amax, kind: amax, ""),
    "not sorted": (12, calibration_data, "batches", unsorted, "not sorted by length"),
    "last batch lost": (12, calibration_data, "batches", lambda *a: BATCHES(*a)[:-1], "the last batch is lost"),
    "padding not counted": (12, calibration_data, "batches", counts_real_tokens, "padding counts as well"),
    "same_length ignored": (12, calibration_data, "batches", lambda s, _=False: BATCHES(s), "same_length is ignored"),
    "one by one": (12, calibration_data, "batches", lambda s, same=False: [[one] for one in s], "not filled"),
    "padding of 0": (12, calibration_data, "batch_inputs", changed_inputs(zero_padding), "padding is 0"),
    "padding first": (12, calibration_data, "batch_inputs", changed_inputs(padding_first), "before the tokens"),
    "mask of int64": (12, calibration_data, "batch_inputs", changed_inputs(wide_mask), "inputs are int32"),
    "mask of ones": (12, calibration_data, "real_tokens", lambda batch: 0 * REAL(batch) + 1, "the padding is"),
}  # fmt: skip


@pytest.mark.parametrize("title", MISTAKES)
def test_a_mistake_is_wrong_and_its_cause_is_named(title, monkeypatch):
    number, module, name, mistaken, cause = MISTAKES[title]
    monkeypatch.setattr(module, name, mistaken)
    for seed in range(5):
        answer = check_task(BY_NUMBER[number], seed, ROOT)
        assert answer.status == WRONG, answer
        assert cause in answer.cause, answer
