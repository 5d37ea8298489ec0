"""Puts sentences into batches, with and without padding, and results back into the caller's order.

Padding costs a batch as many tokens as its longest sentence has, times its sentences: lengths 10 and 100 cost 200.
Packed, the tokens of all sentences stand one after another, and 110 are computed. See ``pack`` and ``pad``.

Letters in shapes: B sentences of a batch, S its padded length, S_i the length of sentence i, T tokens of all
sentences of a batch together.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bert_trt.console import UserError
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME

Ids = Sequence[int] | np.ndarray  # of one sentence
CHECKED = (INPUT_NAMES[0], MASK_NAME, LENGTHS_NAME)  # what ``check_batch`` looks at


@dataclass(frozen=True)
class Limits:
    """What a batch and a sentence may be.

    Attributes:
        max_tokens: of a batch, padding included: the token budget.
        max_sequences: sentences of a batch.
        max_positions: rows of the position table, so tokens of a sentence.
        vocab_size: rows of the word table; None: word ids are only checked to be int32 and not negative.
        type_vocab_size: rows of the token type table; None likewise.

    Raises:
        UserError: one of them is less than 1.
    """

    max_tokens: int
    max_sequences: int
    max_positions: int
    vocab_size: int | None = None
    type_vocab_size: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected at least 1")


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Sentences one after another, without padding.

    Attributes:
        input_ids: int32 (T,).
        token_type_ids: int32 (T,).
        position_ids: int32 (T,), from 0 in every sentence.
        cu_seqlens: int32 (B + 1,), the running sum of lengths: sentence i is ``cu_seqlens[i]:cu_seqlens[i + 1]``.
        sentences: int64 (B,), where each sentence stands in the caller's list.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    position_ids: np.ndarray
    cu_seqlens: np.ndarray
    sentences: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int32 (B,)."""
        return np.diff(self.cu_seqlens)

    @property
    def max_length(self) -> int:
        """Length of the longest sentence."""
        return int(self.lengths.max())

    def split(self, result: np.ndarray) -> list[np.ndarray]:
        """(T, ...) -> views (S_i, ...), one for each of ``sentences``."""
        return np.split(result, self.cu_seqlens[1:-1])


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Sentences in rows of one length.

    Attributes:
        input_ids: int32 (B, S), 0 in the padding.
        token_type_ids: int32 (B, S), 0 in the padding.
        position_ids: int32 (B, S), 0 to S - 1 in every row.
        mask: int32 (B, S), 1 = word, 0 = padding.
        sentences: int64 (B,), where each sentence stands in the caller's list.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    position_ids: np.ndarray
    mask: np.ndarray
    sentences: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int32 (B,)."""
        return self.mask.sum(axis=1, dtype=np.int32)

    @property
    def max_length(self) -> int:
        """Length of the longest sentence; at most S."""
        return int(self.lengths.max())

    def split(self, result: np.ndarray) -> list[np.ndarray]:
        """(B, S, ...) -> views (S_i, ...), one for each of ``sentences``."""
        return [row[:length] for row, length in zip(result, self.lengths, strict=True)]


Batch = PackedBatch | PaddedBatch


@dataclass(frozen=True)
class NetworkBatch:
    """Inputs of a network, and which sentences they hold.

    Attributes:
        inputs: by name.
        sentences: places in the caller's list.
        split: the network's output to one array (S_i, vocabulary or H) for each sentence.
    """

    inputs: dict[str, np.ndarray]
    sentences: Sequence[int]
    split: Callable[[np.ndarray], list[np.ndarray]]


def single_batch(ids: np.ndarray, types: np.ndarray, place: int) -> NetworkBatch:
    """One sentence, ids and token types (S,), as the network for single sentences takes it."""
    values = (ids[None], types[None], np.arange(len(ids), dtype=np.int32)[None])  # each (1, S)
    return NetworkBatch(dict(zip(INPUT_NAMES, values, strict=True)), [place], lambda output: [output[0]])


def packed_batch(made: PackedBatch) -> NetworkBatch:
    """A packed batch as the network takes it."""
    values = (made.input_ids, made.token_type_ids, made.position_ids)
    inputs = dict(zip(INPUT_NAMES, values, strict=True)) | {LENGTHS_NAME: made.cu_seqlens}
    return NetworkBatch(inputs, made.sentences.tolist(), made.split)


def padded_batch(made: PaddedBatch) -> NetworkBatch:
    """A padded batch as the network takes it."""
    values = (made.input_ids, made.token_type_ids, made.position_ids)
    inputs = dict(zip(INPUT_NAMES, values, strict=True)) | {MASK_NAME: made.mask}
    return NetworkBatch(inputs, made.sentences.tolist(), made.split)


# --- into batches and back --------------------------------------------------------------------------------


def pack(
    sentences: Sequence[Ids],
    limits: Limits,
    token_types: Sequence[Ids] | None = None,
    lines: Sequence[int] | None = None,
) -> list[PackedBatch]:
    """Puts sentences into as few packed batches as a fast method finds.

    The method is best-fit decreasing: the longest first, each into the batch that it leaves the least room in, or
    into a new one. It needs at most 11/9 of the fewest possible batches and a constant more, like first-fit
    decreasing (Johnson, Demers, Ullman, Garey and Graham, SIAM J. Comput. 3(4), 1974; that is without a limit on
    sentences), but finds its batch by bisection: n log n. In a batch the longest sentence stands first, so that a
    kernel which starts blocks in this order does not end with the longest.

    Args:
        sentences: word ids of each sentence with those of [CLS] and [SEP].
        limits: what a batch may be.
        token_types: of each word; all 0 without.
        lines: line numbers of the sentences, for messages; 1, 2, ... without.

    Returns:
        Each sentence in exactly one batch.

    Raises:
        UserError: there are no sentences, or one is empty, longer than the position table or the token budget, or
            has an id outside its table; the message names its line.
    """
    tokens = _Tokens.of(sentences, limits, token_types, lines)
    return [_packed_batch(tokens, np.array(group)) for group in _best_fit_decreasing(tokens.lengths, limits)]


def pad(
    sentences: Sequence[Ids],
    limits: Limits,
    token_types: Sequence[Ids] | None = None,
    lines: Sequence[int] | None = None,
    buckets: int | Sequence[int] = 16,
) -> list[PaddedBatch]:
    """Puts sentences of similar length into padded batches, longest first.

    Args:
        sentences: as in ``pack``.
        limits: as in ``pack``; B · S counts against the token budget.
        token_types: as in ``pack``.
        lines: as in ``pack``.
        buckets: S is the next multiple of this, or the next of these; but no more than a sentence may have.

    Returns:
        Each sentence in exactly one batch.

    Raises:
        UserError: as in ``pack``; a sentence is longer than every bucket, or ``buckets`` holds no length.
    """
    tokens = _Tokens.of(sentences, limits, token_types, lines)
    padded = np.minimum(_bucket_of_each(tokens, buckets), min(limits.max_positions, limits.max_tokens))  # (n,)
    batches = []
    for length in np.unique(padded)[::-1].tolist():
        members = np.flatnonzero(padded == length)
        size = min(limits.max_sequences, limits.max_tokens // length)
        batches += [_padded_batch(tokens, members[i : i + size], length) for i in range(0, len(members), size)]
    return batches


def scatter(batches: Sequence[Batch], results: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Puts results for each token back into the caller's order.

    Args:
        batches: from ``pack`` or ``pad``: all, or some of them.
        results: one for each batch, (T, ...) if packed, (B, S, ...) if padded.

    Returns:
        For each sentence of the batches, in the caller's order, a view (S_i, ...).

    Raises:
        UserError: a result is missing or has another shape than its batch.
    """
    if len(batches) != len(results):
        raise UserError(f"{len(results)} results for {len(batches)} batches, expected one for each")
    parts: dict[int, np.ndarray] = {}
    for number, (batch, result) in enumerate(zip(batches, results, strict=True)):
        shape = batch.input_ids.shape
        if result.shape[: len(shape)] != shape:
            wanted = ", ".join(map(str, shape))
            raise UserError(f"result {number} is {list(result.shape)}, expected [{wanted}, ...] like its batch")
        parts |= zip(batch.sentences.tolist(), batch.split(result), strict=True)
    return [parts[index] for index in sorted(parts)]


@dataclass(frozen=True)
class Statistics:
    """What batches hold: their number, their sentences, these sentences' tokens, and padding besides."""

    batches: int
    sentences: int
    tokens: int
    padding: int

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Statistics:
        """Counts."""
        tokens = sum(int(batch.lengths.sum()) for batch in batches)
        computed = sum(batch.input_ids.size for batch in batches)
        return cls(len(batches), sum(len(batch.sentences) for batch in batches), tokens, computed - tokens)

    @property
    def padding_share(self) -> float:
        """Padding among all tokens that are computed, from 0 to 1."""
        return self.padding / (self.tokens + self.padding)


# --- checks of what a network is given ----------------------------------------------------------------------


def check_cu_seqlens(cu_seqlens: np.ndarray, tokens: int) -> None:
    """Checks the running sum of lengths: int32 (B + 1,), from 0, increasing, to T.

    Args:
        cu_seqlens: see ``PackedBatch``.
        tokens: T, the length of the packed tensors.

    Raises:
        UserError: it is something else; the message names the first entry that is wrong.
    """
    if cu_seqlens.dtype != np.int32 or cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        shape = list(cu_seqlens.shape)
        raise UserError(f"cu_seqlens is {cu_seqlens.dtype} {shape}, expected int32 [B + 1] with B at least 1")
    if cu_seqlens[0] != 0:
        raise UserError(f"cu_seqlens[0] is {cu_seqlens[0]}, expected 0: the first sentence starts there")
    wrong = np.flatnonzero(cu_seqlens[1:] <= cu_seqlens[:-1])
    if len(wrong):
        before, after = cu_seqlens[wrong[0]], cu_seqlens[wrong[0] + 1]
        told = "is empty; leave it out" if before == after else "ends before it starts"
        raise UserError(
            f"cu_seqlens[{wrong[0] + 1}] is {after} after {before}, expected more: "
            f"sentence {wrong[0] + 1} of the batch {told}"
        )
    if cu_seqlens[-1] != tokens:
        raise UserError(f"cu_seqlens ends with {cu_seqlens[-1]}, expected {tokens}, the number of packed tokens")


def check_batch(inputs: Mapping[str, np.ndarray]) -> None:
    """Checks what keeps the sentences of a batch apart, where the inputs of a network have it.

    Args:
        inputs: by name: ids, and the mask of a padded batch or the cu_seqlens of a packed one.

    Raises:
        UserError: see ``check_cu_seqlens`` and ``check_mask``.
    """
    ids = inputs.get(INPUT_NAMES[0])
    if ids is not None and LENGTHS_NAME in inputs:
        check_cu_seqlens(np.asarray(inputs[LENGTHS_NAME]), len(ids))
    if ids is not None and MASK_NAME in inputs:
        check_mask(np.asarray(inputs[MASK_NAME]), tuple(ids.shape))


def check_mask(mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Checks a key padding mask: int32 (B, S), 1 = word and 0 = padding, at least one word in every row.

    Args:
        mask: see ``PaddedBatch``.
        shape: (B, S) of the ids.

    Raises:
        UserError: it is something else; the message names the first entry or row that is wrong.
    """
    if mask.dtype != np.int32 or mask.shape != shape:
        raise UserError(f"the mask is {mask.dtype} {list(mask.shape)}, expected int32 {list(shape)} like the ids")
    wrong = np.argwhere((mask != 0) & (mask != 1))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(f"mask[{row}, {column}] is {mask[row, column]}, expected 1 for a word or 0 for padding")
    empty = np.flatnonzero(~mask.any(axis=-1))
    if len(empty):
        raise UserError(f"row {empty[0]} of the mask has no 1: sentence {empty[0] + 1} of the batch is empty")


# --- inside -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    """All sentences one after another, checked. Arrays are (all tokens,) or, for the last three, (n,)."""

    input_ids: np.ndarray  # int32
    token_type_ids: np.ndarray  # int32
    starts: np.ndarray
    lengths: np.ndarray
    lines: np.ndarray

    @classmethod
    def of(
        cls,
        sentences: Sequence[Ids],
        limits: Limits,
        token_types: Sequence[Ids] | None,
        line_numbers: Sequence[int] | None,
    ) -> _Tokens:
        if not len(sentences):
            raise UserError("there is no sentence to put into a batch; give at least one")
        lines = np.arange(1, len(sentences) + 1) if line_numbers is None else np.asarray(line_numbers)
        lengths = np.array([len(sentence) for sentence in sentences])
        if len(lines) != len(lengths):
            raise UserError(f"{len(lines)} line numbers for {len(lengths)} sentences, expected one for each")
        _refuse(lengths == 0, lengths, lines, "no words; leave the line out or write a sentence")
        told = f"{{}} tokens, but the position table has {limits.max_positions}; shorten the sentence"
        _refuse(lengths > limits.max_positions, lengths, lines, told)
        told = (
            f"{{}} tokens, but the token budget of a batch is {limits.max_tokens}; raise it or shorten the sentence"
        )
        _refuse(lengths > limits.max_tokens, lengths, lines, told)
        ids = _join(sentences, "word ids", limits.vocab_size, lengths, lines)
        if token_types is None:
            types = np.zeros_like(ids)
        else:
            types = _join(token_types, "token types", limits.type_vocab_size, lengths, lines)
        return cls(ids, types, np.cumsum(lengths) - lengths, lengths, lines)


def _refuse(wrong: np.ndarray, lengths: np.ndarray, lines: np.ndarray, told: str) -> None:
    """Raises for the first sentence that is ``wrong``; {} in the message stands for its length."""
    if wrong.any():
        first = np.argmax(wrong)
        raise UserError(f"line {lines[first]}: {told.format(lengths[first])}")


def _join(values: Sequence[Ids], name: str, size: int | None, lengths: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """One row of whole numbers for each sentence -> int32 (all tokens,), each from 0 to ``size`` - 1."""
    if len(values) != len(lengths):
        raise UserError(f"{name} of {len(values)} sentences, expected {len(lengths)}")
    rows = [np.asarray(row) for row in values]
    for row, length, line in zip(rows, lengths, lines, strict=True):
        if row.dtype.kind not in "iu" or row.shape != (length,):
            raise UserError(f"line {line}: {name} are {row.dtype} {list(row.shape)}, expected integers [{length}]")
    joined = np.concatenate([row.astype(np.int64) for row in rows])
    limit = np.iinfo(np.int32).max + 1 if size is None else size
    wrong = (joined < 0) | (joined >= limit)
    if wrong.any():
        first = np.argmax(wrong)
        line = np.repeat(lines, lengths)[first]
        raise UserError(f"line {line}: {joined[first]} among its {name}, outside the table (0 to {limit - 1})")
    return joined.astype(np.int32)


def _best_fit_decreasing(lengths: np.ndarray, limits: Limits) -> list[list[int]]:
    """(n,) -> indices of each batch; see ``pack``."""
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, group) in this order, of the groups that may still grow
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = bisect_left(room, (length,))  # (length,) stands before every (length, group)
        if place < len(room):
            left, group = room.pop(place)
        else:
            left, group = limits.max_tokens, len(groups)
            groups.append([])
        groups[group].append(index)
        if len(groups[group]) < limits.max_sequences:
            insort(room, (left - length, group))
    return groups


def _bucket_of_each(tokens: _Tokens, buckets: int | Sequence[int]) -> np.ndarray:
    """The padded length of each sentence, (n,)."""
    bounds = np.unique(buckets)  # sorted
    if not len(bounds) or bounds.dtype.kind not in "iu" or bounds[0] < 1:
        raise UserError(f"buckets are {buckets!r}, expected a whole number or a list of them, each at least 1")
    if np.ndim(buckets) == 0:
        return -(-tokens.lengths // bounds[0]) * bounds[0]
    told = f"{{}} tokens, but the longest bucket has {bounds[-1]}; add a longer one or shorten the sentence"
    _refuse(tokens.lengths > bounds[-1], tokens.lengths, tokens.lines, told)
    return bounds[np.searchsorted(bounds, tokens.lengths)]


def _packed_batch(tokens: _Tokens, chosen: np.ndarray) -> PackedBatch:
    """``chosen``: indices of sentences, (B,)."""
    lengths = tokens.lengths[chosen]
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)  # (T,)
    source = np.repeat(tokens.starts[chosen], lengths) + positions  # (T,), where each token stands in ``tokens``
    return PackedBatch(
        input_ids=tokens.input_ids[source],
        token_type_ids=tokens.token_type_ids[source],
        position_ids=positions.astype(np.int32),
        cu_seqlens=np.concatenate([[0], ends]).astype(np.int32),
        sentences=chosen,
    )


def _padded_batch(tokens: _Tokens, chosen: np.ndarray, padded_length: int) -> PaddedBatch:
    """``chosen``: indices of sentences, (B,)."""
    packed = _packed_batch(tokens, chosen)
    columns = np.arange(padded_length, dtype=np.int32)
    is_word = columns < packed.lengths[:, None]  # (B, S)
    ids, types = np.zeros(is_word.shape, np.int32), np.zeros(is_word.shape, np.int32)
    ids[is_word], types[is_word] = packed.input_ids, packed.token_type_ids
    positions = np.tile(columns, (len(chosen), 1))
    return PaddedBatch(ids, types, positions, is_word.astype(np.int32), chosen)
