"""Sequences of several lengths: into batches that a plan takes, compared one by one, and judged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bert_trt.comparison import (
    SequenceError,
    combined_rel_l2,
    compare_sequences,
    reference_batches,
    relative_l2,
    sequence_reasons,
)
from bert_trt.model_files import LENGTHS_NAME, MASK_NAME, ReferenceSequence
from bert_trt.options import TOLERANCES, SequenceRange

WIDTH = 3
SHAPES = {"single": (1, -1), "padded": (-1, -1), "packed": (-1,)}


def sequences(lengths, seed=0) -> list[ReferenceSequence]:
    """Random ones; every second token is checked. The output of a token is its id, its type and its position."""
    random = np.random.default_rng(seed)
    made = []
    for length in lengths:
        ids, types = random.integers(1, 1000, length), random.integers(0, 2, length)
        checked = np.arange(0, length, 2)
        output = np.stack([ids, types, np.arange(length)], -1)[checked].astype(np.float32)
        made.append(ReferenceSequence(ids, types, checked, output))
    return made


def answer(inputs) -> np.ndarray:
    """A network that gives each token's id, type and position."""
    return np.stack([inputs[name] for name in ("input_ids", "token_type_ids", "position_ids")], -1).astype(np.float32)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_batch_holds_sequences_of_different_lengths(batching):
    (batch,) = reference_batches(sequences([3, 9, 33]), batching, SequenceRange(1, 32, 64), SequenceRange(1, 8, 32))
    lengths = np.diff(batch.inputs[LENGTHS_NAME]) if batching == "packed" else batch.inputs[MASK_NAME].sum(-1)
    assert sorted(lengths) == [3, 9, 33]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_sequence_that_is_wrong_is_named(wrong):
    """Each sequence of a batch is looked at by itself: an average over all would hide a short one."""
    given_sequences = sequences([3, 9, 33])
    given_sequences[wrong].output[-1, 0] += 100
    batches = reference_batches(given_sequences, "padded", SequenceRange(1, 32, 64), SequenceRange(1, 8, 32))
    errors = compare_sequences(answer, batches, given_sequences)
    assert [error.rel_l2 > 0 for error in errors] == [place == wrong for place in range(3)]


def test_of_a_sequence_that_is_repeated_the_worst_counts():
    given_sequences = sequences([4])
    batches = reference_batches(given_sequences, "padded", SequenceRange(1, 4, 4), SequenceRange(3, 3, 3))

    def last_row_is_wrong(inputs):
        output = answer(inputs)
        output[-1] *= 2
        return output

    (error,) = compare_sequences(last_row_is_wrong, batches, given_sequences)
    assert error.rel_l2 == pytest.approx(1.0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_in_any_of_the_repetitions_counts(place):
    given_sequences = sequences([4])
    batches = reference_batches(given_sequences, "padded", SequenceRange(1, 4, 4), SequenceRange(3, 3, 3))

    def one_nan(inputs):
        output = answer(inputs)
        output[place, 0, 0] = np.nan
        return output

    errors = compare_sequences(one_nan, batches, given_sequences)
    assert math.isnan(errors[0].rel_l2)
    for precision in TOLERANCES:
        assert sequence_reasons(errors, precision)


def test_in_narrow_types_every_sequence_must_be_right_in_8_bits_all_together():
    short = SequenceError(3, 7e-2, norm=10.0)
    long = SequenceError(128, 1.6e-2, norm=40.0)
    assert combined_rel_l2([short, long]) == pytest.approx(math.sqrt((0.7**2 + 0.64**2) / (10**2 + 40**2)))
    for precision in TOLERANCES:
        assert (not sequence_reasons([short, long], precision)) == (precision in ("int8", "fp8"))
    assert sequence_reasons([SequenceError(3, 0.3, norm=10.0), long], "int8")


def test_nothing_to_compare_is_no_disagreement():
    assert reference_batches(sequences([3, 9]), "single", SequenceRange(5, 6, 7), SequenceRange(1, 1, 1)) == []
    assert not sequence_reasons([], "fp32")


def test_together_is_the_error_over_all_values():
    random = np.random.default_rng(0)
    pairs = [(random.standard_normal((n, 4)), random.standard_normal((n, 4))) for n in (2, 5)]
    errors = [SequenceError(len(a), relative_l2(a, b), float(np.linalg.norm(b))) for a, b in pairs]
    ours, theirs = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    assert combined_rel_l2(errors) == pytest.approx(relative_l2(ours, theirs))
