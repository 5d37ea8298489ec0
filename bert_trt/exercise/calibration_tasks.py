"""Grades tasks 11 and 12: the calibrator's ranges and its batches, on random histograms and sentences."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from bert_trt.exercise.checks import first_answer
from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import RIGHT, Grade, Task, WrongAnswer
from bert_trt.model_files import INPUT_NAMES, MASK_NAME
from bert_trt.sentences import Sentence

LARGEST = {"int8": 127.0, "fp8": 448.0}
STEPS = 161  # of the grid of ranges that mse_range may choose from

# --- ranges -------------------------------------------------------------------------------------------------------


def draw_histogram(rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Counts (bins,), limit and amax of absolute values with a few outliers."""
    size = int(rng.integers(50_000, 200_000))
    values = np.abs(rng.standard_normal(size)) * float(rng.uniform(0.1, 5))
    values[: int(rng.integers(3, 20))] *= float(rng.uniform(5, 30))
    amax = float(values.max())
    limit = 2.0 ** np.ceil(np.log2(amax * 1.01))
    counts, _ = np.histogram(values, int(rng.choice([512, 1024, 2048])), (0.0, limit))
    return counts.astype(np.int64), float(limit), amax


def check_percentile(rng: np.random.Generator) -> None:
    """Compares percentile_range with an interpolation of the cumulative counts.

    Raises:
        WrongAnswer: it differs.
    """
    from bert_trt import histograms  # not above: an error in one task's file leaves the other task alone

    for percentile in (99.99, float(rng.uniform(90, 99.9)), 50.0, 100.0):
        counts, limit, _ = draw_histogram(rng)
        bins, filled, cumulative = len(counts), np.flatnonzero(counts), np.cumsum(counts)
        ends = np.stack([filled, filled + 1], 1).reshape(-1)  # a bin without values adds nothing to walk through
        below = np.stack([(cumulative - counts)[filled], cumulative[filled]], 1).reshape(-1)
        target = percentile / 100 * cumulative[-1]
        expected = float(np.interp(target, below, ends)) * limit / bins
        found = histograms.percentile_range(counts, limit, percentile)
        if not isinstance(found, int | float | np.floating) or not abs(found - expected) <= 1e-6 * limit:
            bin_index = int(np.searchsorted(cumulative, target))
            width = limit / bins
            mistakes = {
                say("the bin's upper end: interpolate inside of the bin"): (bin_index + 1) * width,
                say("the bin's lower end: interpolate inside of the bin"): bin_index * width,
                say("the bin's centre: interpolate inside of the bin"): (bin_index + 0.5) * width,
                say("a share of the range, expected a share of the values"): percentile / 100 * limit,
                say("the number of the bin, expected a value: multiply by the width of a bin"): expected / width,
            }
            raise WrongAnswer(
                say(
                    "percentile_range of {count} values in {bins} bins up to {limit:g}, percentile "
                    "{percentile:.4g}: {found}, expected {expected:.7g}",
                    count=counts.sum(),
                    bins=bins,
                    limit=limit,
                    percentile=percentile,
                    found=_shown(found),
                    expected=expected,
                ),
                _nearest(found, mistakes, limit),
            )


def _shown(found: object) -> str:
    return f"{found:.7g}" if isinstance(found, int | float | np.floating) else repr(found)


def _nearest(found: object, mistakes: dict[str, float], limit: float) -> str:
    if not isinstance(found, int | float | np.floating):
        return say("return is missing") if found is None else ""
    near = next((cause for cause, value in mistakes.items() if abs(found - value) <= 1e-5 * limit), "")
    beyond = not found < 0.999 * limit  # NaN is not less
    return near or (say("the percentile is in percent: divide it by 100") if beyond else "")


def quantized(values: np.ndarray, amax: float, kind: str) -> np.ndarray:
    """Values after quantization with the range ``amax``, in fp64."""
    scale = amax / LARGEST[kind]
    clipped = np.minimum(values / scale, LARGEST[kind])
    rounded = np.rint(clipped) if kind == "int8" else clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return rounded * scale


def check_mse(rng: np.random.Generator, kind: str) -> None:
    """Compares the squared error of mse_range's range with the least on a grid.

    Raises:
        WrongAnswer: it is larger, or the range is not within amax / 16 and amax.
    """
    from bert_trt import histograms

    counts, limit, amax = draw_histogram(rng)
    values, weights = (np.arange(len(counts)) + 0.5) * limit / len(counts), counts.astype(np.float64)
    grid = amax * np.geomspace(1, 1 / 16, STEPS)

    def error(candidate: float, of: np.ndarray = weights, kind: str = kind) -> float:
        return float((of * (quantized(values, candidate, kind) - values) ** 2).sum())

    def least(measure: Callable[[float], float]) -> float:
        return float(min(grid, key=measure))

    found = histograms.mse_range(counts, limit, amax, kind)
    best = error(least(error))
    given = say(
        "mse_range of {count} values in {bins} bins, amax {amax:.5g}, {kind}",
        count=counts.sum(),
        bins=len(counts),
        amax=amax,
        kind=kind,
    )
    if not isinstance(found, int | float | np.floating) or not np.isfinite(found):
        raise WrongAnswer(
            say("{given}: {found!r}, expected a number", given=given, found=found),
            say("return is missing") if found is None else "",
        )
    if amax / 16.01 <= found <= amax * 1.0001 and error(float(found)) <= 1.02 * best:
        return

    def clipping(candidate: float) -> float:
        return float((weights * np.maximum(values - candidate, 0) ** 2).sum())

    def rounding(candidate: float) -> float:
        inside = values <= candidate
        return float((weights * inside * (quantized(values, candidate, kind) - values) ** 2).sum())

    other = "fp8" if kind == "int8" else "int8"
    mistakes = {
        say("only clipping counts, not rounding"): least(clipping),
        say("only rounding counts, not clipping"): least(rounding),
        say("each bin counts the same: weight its error with the number of its values"): least(
            lambda candidate: error(candidate, (counts > 0).astype(np.float64))
        ),
        say("the error is that of {other}", other=other): least(lambda candidate: error(candidate, kind=other)),
        say("the range with the largest error"): least(lambda candidate: -error(candidate)),
    }
    near = [cause for cause, value in mistakes.items() if abs(found / value - 1) < 0.02]
    raise WrongAnswer(
        say(
            "{given}: the range {found:.6g} has the squared error {error:.4g}; expected about "
            "{wanted:.6g} with {least:.4g}",
            given=given,
            found=found,
            error=error(float(found)),
            wanted=least(error),
            least=best,
        ),
        say("; or ").join(near),
    )


# --- batches ------------------------------------------------------------------------------------------------------


def draw_sentences(rng: np.random.Generator) -> list[Sentence]:
    """Sentences of many lengths, in no order."""
    lengths = rng.integers(2, 120, int(rng.integers(60, 100)))
    return [
        Sentence(
            line + 1,
            "",
            rng.integers(1, 1000, length).astype(np.int32),
            (np.arange(length) > length // 2).astype(np.int32),
        )
        for line, length in enumerate(lengths)
    ]


def check_batches(rng: np.random.Generator, same_length: bool) -> None:
    """Checks what batches must be: every sentence once, not too large, little padding.

    Raises:
        WrongAnswer: something is wrong.
    """
    from bert_trt import calibration_data

    sentences, largest = draw_sentences(rng), calibration_data.BATCH_TOKENS
    found = calibration_data.batches(sentences, same_length)
    given = say("batches of {count} sentences", count=len(sentences)) + (" (same_length)" if same_length else "")
    if found is None:
        raise WrongAnswer(say("{given}: None", given=given), say("return is missing"))
    lines = [sentence.line for batch in found for sentence in batch]
    missing = sorted({sentence.line for sentence in sentences} - set(lines))
    if missing:
        longest = max(len(sentence.ids) for sentence in sentences)
        lost = [len(sentence.ids) for sentence in sentences if sentence.line in missing]
        cause = say("the last batch is lost") if longest in lost or len(missing) > 1 else ""
        raise WrongAnswer(
            say(
                "{given}: {count} sentences are in no batch, first that of line {line}",
                given=given,
                count=len(missing),
                line=missing[0],
            ),
            cause,
        )
    if len(lines) != len(set(lines)):
        raise WrongAnswer(say("{given}: a sentence is in two batches", given=given))
    if any(not batch for batch in found):
        raise WrongAnswer(
            say("{given}: a batch is empty", given=given), say("a batch is begun before there is a sentence for it")
        )
    for number, batch in enumerate(found):
        lengths = [len(sentence.ids) for sentence in batch]
        if same_length and len(set(lengths)) > 1:
            raise WrongAnswer(
                say(
                    "{given}: batch {number} has the lengths {lengths}",
                    given=given,
                    number=number,
                    lengths=sorted(set(lengths)),
                ),
                say("same_length is ignored"),
            )
        if len(batch) * max(lengths) > largest:
            cause = (
                say("the limit is for tokens without padding; padding counts as well")
                if sum(lengths) <= largest
                else ""
            )
            raise WrongAnswer(
                say(
                    "{given}: batch {number} has {rows} rows of {longest} tokens, more than {largest}",
                    given=given,
                    number=number,
                    rows=len(batch),
                    longest=max(lengths),
                    largest=largest,
                ),
                cause,
            )
    padded = sum(len(batch) * max(len(sentence.ids) for sentence in batch) for batch in found)
    real = sum(len(sentence.ids) for sentence in sentences)
    if padded > 1.5 * real:
        raise WrongAnswer(
            say("{given}: {padded} tokens with padding for {real} without", given=given, padded=padded, real=real),
            say("the sentences are not sorted by length"),
        )
    if not same_length and len(found) > 2 * padded / largest + 2:
        raise WrongAnswer(
            say("{given}: {count} batches of {padded} tokens in all", given=given, count=len(found), padded=padded),
            say("the batches are not filled"),
        )


def check_inputs(rng: np.random.Generator) -> None:
    """Compares the inputs of one batch, sentence by sentence.

    Raises:
        WrongAnswer: something is wrong.
    """
    from bert_trt import calibration_data

    batch = draw_sentences(rng)[: int(rng.integers(3, 8))]
    length = max(len(sentence.ids) for sentence in batch)
    found = calibration_data.batch_inputs(batch)
    names = {*INPUT_NAMES, MASK_NAME}
    if found is None or set(found) != names:
        has = "None" if found is None else sorted(found)
        raise WrongAnswer(
            say("batch_inputs: {has}; expected {wanted}", has=has, wanted=sorted(names)),
            say("return is missing") if found is None else "",
        )
    shape = (len(batch), length)
    for name, array in found.items():
        if array.shape != shape or array.dtype != np.int32:
            cause = (
                say("TensorRT's inputs are int32")
                if array.shape == shape
                else say("S is the longest sentence's length")
            )
            raise WrongAnswer(
                say(
                    "batch_inputs: {name} is {dtype} {found}; expected int32 {wanted}",
                    name=name,
                    dtype=array.dtype,
                    found=array.shape,
                    wanted=shape,
                ),
                cause,
            )
    ids, types, positions = (found[name] for name in INPUT_NAMES)
    for row, sentence in enumerate(batch):
        count = len(sentence.ids)
        expected = {
            INPUT_NAMES[0]: (ids[row], np.concatenate([sentence.ids, np.repeat(sentence.ids[-1:], length - count)])),
            INPUT_NAMES[1]: (types[row, :count], sentence.types),
            INPUT_NAMES[2]: (positions[row, :count], np.arange(count)),
            MASK_NAME: (found[MASK_NAME][row], np.arange(length) < count),
        }
        for name, (has, wanted) in expected.items():
            if not np.array_equal(has, wanted):
                begins = [np.asarray(array).astype(int).tolist()[:12] for array in (has, wanted)]
                raise WrongAnswer(
                    say(
                        "batch_inputs: {name}, row {row}, a sentence of {count} tokens, begins with {found}; "
                        "expected {wanted}",
                        name=name,
                        row=row,
                        count=count,
                        found=begins[0],
                        wanted=begins[1],
                    ),
                    _input_cause(name, has, count, sentence),
                )


def _input_cause(name: str, has: np.ndarray, count: int, sentence: Sentence) -> str:
    if name == MASK_NAME:
        return say("the mask does not say where the padding is: 1 for a token, 0 for padding") if has.all() else ""
    if name == INPUT_NAMES[0] and np.array_equal(has[:count], sentence.ids) and not has[count:].any():
        return say("padding is 0; expected the sentence's last token, so that no other value enters the network")
    if name == INPUT_NAMES[0] and np.array_equal(has[len(has) - count :], sentence.ids):
        return say("the padding stands before the tokens")
    return ""


def check(task: Task, seed: int) -> Grade:
    """Grades a task of the calibration.

    Raises:
        WrongAnswer: something is wrong.
    """
    rng = np.random.default_rng([seed, task.number])
    if task.number == 11:
        first_answer([lambda: check_percentile(rng), lambda: check_mse(rng, "int8"), lambda: check_mse(rng, "fp8")])
    else:
        first_answer([lambda: check_batches(rng, False), lambda: check_batches(rng, True), lambda: check_inputs(rng)])
    return Grade(RIGHT)
