"""packing.py: each sequence in exactly one batch, within the limits, and back in the caller's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bert_trt.console import UserError
from bert_trt.packing import (
    Batch,
    Limits,
    PackedBatch,
    PaddedBatch,
    check_batch,
    check_cu_seqlens,
    check_mask,
    check_sequence_lengths,
    pack,
    pad,
    scatter,
)

VOCABULARY = 1000


def make_sequences(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCABULARY, length) for length in lengths]


def make_limits(max_tokens: int = 128, max_sequences: int = 8, max_positions: int = 64, **sizes: Any) -> Limits:
    return Limits(max_tokens, max_sequences, max_positions, **sizes)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], Limits]:
    """Sequences, their token types, and limits that no sequence is over; some sequences are as long as allowed."""
    longest = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.integers(1, longest) | st.just(longest), min_size=1, max_size=50))
    limits = Limits(
        max_tokens=longest + draw(st.integers(0, 100)),
        max_sequences=draw(st.integers(1, 9)),
        max_positions=longest + draw(st.integers(0, 20)),
        vocab_size=VOCABULARY,
        type_vocab_size=2,
    )
    types = [np.arange(length) % 2 for length in lengths]
    return make_sequences(lengths, draw(st.integers(0, 9))), types, limits


BUCKETS = st.integers(1, 50) | st.lists(st.integers(1, 60), min_size=1, max_size=5).map(lambda some: [*some, 40])


# --- the batches ------------------------------------------------------------------------------------------


def check_common(batches: Sequence[Batch], sequences: Sequence[np.ndarray], types: Sequence[np.ndarray]) -> None:
    """What both kinds promise: each sequence once, int32, and every array back in the caller's order."""
    assert sorted(np.concatenate([batch.sequences for batch in batches])) == list(range(len(sequences)))
    for batch in batches:
        lengths = [len(sequences[index]) for index in batch.sequences]
        assert batch.lengths.tolist() == lengths
        assert batch.max_length == max(lengths)
        for array in (batch.input_ids, batch.token_type_ids, batch.position_ids):
            assert array.dtype == np.int32
            assert array.shape == batch.input_ids.shape
    for name, expected in (
        ("input_ids", sequences),
        ("token_type_ids", types),
        ("position_ids", [np.arange(len(sequence)) for sequence in sequences]),
    ):
        found = scatter(batches, [getattr(batch, name) for batch in batches])
        assert [part.tolist() for part in found] == [part.tolist() for part in expected]


@settings(max_examples=150, deadline=None)
@given(job=jobs())
def test_packed(job):
    sequences, types, limits = job
    batches = pack(sequences, limits, types)
    check_common(batches, sequences, types)
    for batch in batches:
        (tokens,) = batch.input_ids.shape
        assert tokens <= limits.max_tokens
        assert len(batch.sequences) <= limits.max_sequences
        assert batch.cu_seqlens.dtype == np.int32
        assert np.flatnonzero(batch.position_ids == 0).tolist() == batch.cu_seqlens[:-1].tolist()
        check_cu_seqlens(batch.cu_seqlens, tokens)
        assert (np.diff(batch.lengths) <= 0).all()  # the longest first
    assert all(batch.lengths.sum() == batch.input_ids.size for batch in batches)  # no padding


@settings(max_examples=150, deadline=None)
@given(job=jobs(), buckets=BUCKETS)
def test_padded(job, buckets):
    sequences, types, limits = job
    batches = pad(sequences, limits, types, buckets=buckets)
    check_common(batches, sequences, types)
    bounds = np.arange(buckets, 100 + buckets, buckets) if isinstance(buckets, int) else np.sort(buckets)
    for batch in batches:
        rows, columns = batch.input_ids.shape
        assert rows * columns <= limits.max_tokens
        assert rows <= limits.max_sequences
        assert columns <= limits.max_positions
        for length in batch.lengths:  # the next bucket, which ends where the longest sequence that is allowed does
            assert columns == min(bounds[bounds >= length][0], limits.max_positions, limits.max_tokens)
        check_mask(batch.mask, (rows, columns))
        assert (np.diff(batch.mask, axis=1) <= 0).all()  # tokens, then padding
        assert not batch.input_ids[batch.mask == 0].any()
        assert not batch.token_type_ids[batch.mask == 0].any()
        assert (batch.position_ids == np.arange(columns)).all()
    assert all(batch.lengths.sum() == batch.mask.sum() for batch in batches)


def best_fit_decreasing_by_loops(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    """The method word by word: every batch is looked at for every sequence."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):  # stable
        best, least = None, limits.max_tokens + 1
        for group in groups:
            left = limits.max_tokens - sum(lengths[member] for member in group) - lengths[index]
            if len(group) < limits.max_sequences and 0 <= left < least:
                best, least = group, left
        if best is None:
            best = []
            groups.append(best)
        best.append(index)
    return groups


@settings(max_examples=150, deadline=None)
@given(job=jobs())
def test_packed_batches_are_those_of_the_method(job):
    sequences, _, limits = job
    expected = best_fit_decreasing_by_loops([len(sequence) for sequence in sequences], limits)
    assert [batch.sequences.tolist() for batch in pack(sequences, limits)] == expected


@settings(max_examples=100, deadline=None)
@given(job=jobs())
def test_no_sentence_is_in_a_later_batch_than_it_needs_to_be(job):
    """What every any-fit method gives: where a batch was begun, its first sequence fitted into none before."""
    sequences, _, limits = job
    batches = pack(sequences, limits)
    for number, batch in enumerate(batches):
        for earlier in batches[:number]:
            too_long = earlier.input_ids.size + int(batch.lengths[0]) > limits.max_tokens
            assert too_long or len(earlier.sequences) == limits.max_sequences


def test_an_example():
    sequences = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
    first, second = pack(sequences, make_limits(max_tokens=6), [[0, 0, 1], [1], [0, 0, 0, 0], [1, 1]])
    assert first.sequences.tolist() == [2, 3]
    assert first.input_ids.tolist() == [9, 10, 11, 12, 13, 14]
    assert first.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert first.position_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert first.cu_seqlens.tolist() == [0, 4, 6]
    assert second.sequences.tolist() == [0, 1]
    batch, *_ = pad([[5, 6, 7], [8]], make_limits(), [[0, 0, 1], [1]], buckets=4)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_ten_and_a_hundred_cost_110_tokens_packed_and_200_padded():
    sequences = make_sequences([10, 100])
    limits = make_limits(max_tokens=256, max_positions=128)
    (packed,) = pack(sequences, limits)
    assert packed.input_ids.shape == (110,)
    assert packed.cu_seqlens.tolist() == [0, 100, 110]
    (padded,) = pad(sequences, limits, buckets=[100])
    assert padded.input_ids.shape == (2, 100)
    assert (padded.mask == 0).sum() == 90
    assert [batch.input_ids.shape for batch in pad(sequences, limits)] == [(1, 112), (1, 16)]


def test_a_bucket_ends_where_the_longest_sentence_does():
    """Rounded up, 61 tokens would be 64: over the position table, and over the token budget."""
    sequences = make_sequences([61])
    assert pad(sequences, make_limits(max_positions=62))[0].input_ids.shape == (1, 62)
    assert pad(sequences, make_limits(max_tokens=61))[0].input_ids.shape == (1, 61)


def test_without_token_types_they_are_zero():
    for batch in (*pack([[1, 2]], make_limits()), *pad([[1, 2]], make_limits())):
        assert not batch.token_type_ids.any()


# --- results ----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(job=jobs(), trailing=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3), in_rows=st.booleans())
def test_results_of_any_width_come_back_in_order(job, trailing, in_rows):
    """The result for a token tells which it is; in the padding it is NaN, which must not come back."""
    sequences, _, limits = job
    batches: Sequence[Batch] = pad(sequences, limits) if in_rows else pack(sequences, limits)

    def compute(batch: Batch) -> np.ndarray:
        values = batch.input_ids + batch.position_ids / 128
        if isinstance(batch, PaddedBatch):
            values[batch.mask == 0] = np.nan
        return np.broadcast_to(values.reshape(values.shape + (1,) * len(trailing)), values.shape + trailing)

    parts = scatter(batches, [compute(batch) for batch in batches])
    assert len(parts) == len(sequences)
    for part, sequence in zip(parts, sequences, strict=True):
        expected = sequence + np.arange(len(sequence)) / 128
        np.testing.assert_array_equal(part, np.broadcast_to(expected.reshape(-1, *(1 for _ in trailing)), part.shape))
        assert part.shape == (len(sequence), *trailing)


def test_some_of_the_batches_are_scattered_too():
    batches = pack(make_sequences([9, 8, 7]), make_limits(max_tokens=9))
    parts = scatter(batches[::2], [batch.input_ids for batch in batches[::2]])
    assert [len(part) for part in parts] == [9, 7]


def test_results_that_do_not_belong_to_the_batches_are_refused():
    (packed,), (padded,) = pack([[1, 2], [3]], make_limits()), pad([[1, 2], [3]], make_limits(), buckets=2)
    with pytest.raises(UserError, match="0 results for 1 batches, expected one for each"):
        scatter([packed], [])
    with pytest.raises(UserError, match=r"result 0 is \[4, 8\], expected \[3, \.\.\.\] like its batch"):
        scatter([packed], [np.zeros((4, 8))])
    with pytest.raises(UserError, match=r"result 1 is \[2, 3\], expected \[2, 2, \.\.\.\] like its batch"):
        scatter([packed, padded], [np.zeros(3), np.zeros((2, 3))])


# --- sequences that cannot be used ------------------------------------------------------------------------


Maker = Callable[..., "list[PackedBatch] | list[PaddedBatch]"]


@pytest.fixture(params=[pack, pad])
def make(request: pytest.FixtureRequest) -> Maker:
    return request.param


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([], "no words; leave the line out or write a sentence"),
        ([1] * 65, "65 tokens, but the position table has 64; shorten the sentence"),
        ([1] * 61, "61 tokens, but the token budget of a batch is 60; raise it or shorten the sentence"),
        ([1, VOCABULARY], f"{VOCABULARY} among its token ids, outside the table (0 to {VOCABULARY - 1})"),
        ([1, -1], "-1 among its token ids, outside the table"),
        ([1.0, 2.0], "token ids are float64 [2], expected integers [2]"),
        ([[1, 2]], "token ids are int64 [1, 2], expected integers [1]"),
    ],
)
def test_a_bad_sentence_is_named_by_its_line(make, bad, told):
    limits = make_limits(max_tokens=60, vocab_size=VOCABULARY)
    good = make_sequences([3, 4])
    for lines, number in ((None, 2), ([10, 70, 80], 70)):
        with pytest.raises(UserError) as raised:
            make([good[0], bad, good[1]], limits, lines=lines)
        assert str(raised.value).startswith(f"line {number}: ")
        assert told in str(raised.value)


def test_the_first_bad_sentence_is_named(make):
    with pytest.raises(UserError, match="line 2: 70 tokens"):
        make(make_sequences([3, 70, 80]), make_limits())
    with pytest.raises(UserError, match="line 2: 1000 among"):
        make([[999], [1, 1000], [2000]], make_limits(vocab_size=1000))


def test_sentences_at_the_limits_are_taken(make):
    limits = make_limits(max_tokens=64, vocab_size=1000, type_vocab_size=2)
    (batch,) = make([[999] * 64], limits, [[1] * 64])
    assert batch.input_ids.tolist() in ([999] * 64, [[999] * 64])


def test_without_a_vocabulary_an_id_that_does_not_fit_int32_is_refused(make):
    make([[2**31 - 1]], make_limits())
    for wrong in (2**31, 2**40, 2**63):  # as int32 they would be others; as int64, the last would
        with pytest.raises(UserError, match="among its token ids, outside the table"):
            make([[1], np.array([wrong], np.uint64)], make_limits())


def test_token_types_belong_to_the_sentences(make):
    limits = make_limits(type_vocab_size=2)
    with pytest.raises(UserError, match="token types of 1 sequences, expected 2"):
        make([[1], [2]], limits, [[0]])
    with pytest.raises(UserError, match=r"line 2: token types are int64 \[3\], expected integers \[2\]"):
        make([[1], [2, 3]], limits, [[0], [0, 0, 0]])
    with pytest.raises(UserError, match=r"line 2: 2 among its token types, outside the table \(0 to 1\)"):
        make([[1], [2, 3]], limits, [[0], [0, 2]])


def test_no_sentence_is_an_error(make):
    with pytest.raises(UserError, match="there is no sequence to put into a batch; give at least one"):
        make([], make_limits())


def test_line_numbers_are_as_many_as_sentences(make):
    with pytest.raises(UserError, match="3 line numbers for 2 sequences"):
        make([[1], [2]], make_limits(), lines=[1, 2, 3])


@pytest.mark.parametrize("name", ["max_tokens", "max_sequences", "max_positions", "vocab_size", "type_vocab_size"])
def test_limits_are_at_least_one(name):
    with pytest.raises(UserError, match=f"{name} is 0, expected at least 1"):
        make_limits(**{name: 0})


@pytest.mark.parametrize("buckets", [0, -16, [], [0, 16], [16.0]])
def test_buckets_are_lengths(buckets):
    with pytest.raises(UserError, match="expected a whole number or a list of them, each at least 1"):
        pad([[1]], make_limits(), buckets=buckets)


def test_a_sentence_longer_than_every_bucket_is_named():
    with pytest.raises(UserError, match="line 9: 33 tokens, but the longest bucket has 32; add a longer one"):
        pad(make_sequences([32, 33]), make_limits(), lines=[4, 9], buckets=[32, 16])


# --- checks of what a network is given ----------------------------------------------------------------------


def test_right_cu_seqlens_are_accepted():
    check_cu_seqlens(np.array([0, 1], np.int32), 1)
    check_cu_seqlens(np.array([0, 10, 110], np.int32), 110)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1, 10, 12], "cu_seqlens[0] is 1, expected 0"),
        ([0, 4, 4, 12], "cu_seqlens[2] is 4 after 4, expected more: sequence 2 of the batch is empty; leave it out"),
        ([0, 4, 3, 12], "cu_seqlens[2] is 3 after 4, expected more: sequence 2 of the batch ends before it starts"),
        ([0, 2**31 - 1, -(2**31), 12], "sequence 2 of the batch ends before it starts"),  # the difference overflows
        ([0, 4, 11], "cu_seqlens ends with 11, expected 12, the number of packed tokens"),
        ([0, 4, 13], "cu_seqlens ends with 13, expected 12"),
        ([0], "cu_seqlens is int32 [1], expected int32 [B + 1] with B at least 1"),
        ([], "cu_seqlens is int32 [0], expected int32 [B + 1]"),
        ([[0, 12]], "cu_seqlens is int32 [1, 2], expected int32 [B + 1]"),
    ],
)
def test_wrong_cu_seqlens_are_refused(values, told):
    with pytest.raises(UserError) as raised:
        check_cu_seqlens(np.array(values, np.int32), 12)
    assert told in str(raised.value)


def test_cu_seqlens_of_another_type_are_refused():
    for dtype in (np.int64, np.float32):
        with pytest.raises(UserError, match=rf"cu_seqlens is {np.dtype(dtype)} \[2\], expected int32 \[B \+ 1\]"):
            check_cu_seqlens(np.array([0, 12], dtype), 12)


def test_right_masks_are_accepted():
    check_mask(np.array([[1, 1], [1, 0]], np.int32), (2, 2))
    check_mask(np.array([[0, 1]], np.int32), (1, 2))  # padding on the left, as some tokenizers put it


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.ones((2, 3), np.int64), "the mask is int64 [2, 3], expected int32 [2, 3] like the ids"),
        (np.ones((2, 3), np.bool_), "the mask is bool [2, 3], expected int32 [2, 3]"),
        (np.ones((3, 2), np.int32), "the mask is int32 [3, 2], expected int32 [2, 3]"),
        (np.ones((2, 1, 3), np.int32), "the mask is int32 [2, 1, 3], expected int32 [2, 3]"),
        (np.array([[1, 1, 0], [1, 2, 0]], np.int32), "mask[1, 1] is 2, expected 1 for a token or 0 for padding"),
        (np.array([[1, 1, 0], [0, 0, 0]], np.int32), "row 1 of the mask has no 1: sequence 2 of the batch is empty"),
    ],
)
def test_wrong_masks_are_refused(mask, told):
    with pytest.raises(UserError) as raised:
        check_mask(mask, (2, 3))
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (np.array([[3]], np.int32), r"sequence_lengths is int32 \[1, 1\], expected int32 \[B\]"),
        (np.array([3], np.int64), r"sequence_lengths is int64 \[1\]"),
        (np.array([], np.int32), r"with B at least 1"),
        (np.array([2, 0, 1], np.int32), r"sequence_lengths\[1\] is 0, expected at least 1: sequence 2 .* is empty"),
        (np.array([4, -1], np.int32), r"sequence_lengths\[1\] is -1"),
        (np.array([2, 2], np.int32), r"sequence_lengths add up to 4, expected 3, the number of packed tokens"),
    ],
)
def test_wrong_lengths_of_a_ragged_batch(lengths, message):
    with pytest.raises(UserError, match=message):
        check_sequence_lengths(lengths, 3)


def test_a_batch_is_checked_by_what_its_inputs_have():
    ids = np.zeros((2, 3), np.int32)
    check_batch({"input_ids": ids[:1]})  # one sequence: nothing keeps it apart from others
    check_batch({"input_ids": ids, "attention_mask": np.ones((2, 3), np.int32)})
    check_batch({"input_ids": ids[0], "cu_seqlens": np.array([0, 1, 3], np.int32)})
    check_batch({"hidden": ids, "cu_seqlens": np.array([7], np.int32)})  # a part of a network, without the ids
    check_batch({"input_ids": ids[0], "sequence_lengths": np.array([1, 2], np.int32)})
    with pytest.raises(UserError, match="sequence_lengths add up to 2, expected 3"):
        check_batch({"input_ids": ids[0], "sequence_lengths": np.array([2], np.int32)})
    with pytest.raises(UserError, match="the mask is"):
        check_batch({"input_ids": ids, "attention_mask": np.ones((1, 3), np.int32)})
    with pytest.raises(UserError, match="cu_seqlens ends with 2, expected 3"):
        check_batch({"input_ids": ids[0], "cu_seqlens": np.array([0, 2], np.int32)})
