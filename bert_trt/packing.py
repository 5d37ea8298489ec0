"""Puts sequences into batches, with and without padding, and results back into the caller's order.

A padded batch computes B · S tokens, with S the length of its longest sequence: lengths 10 and 100 cost 200 tokens.
A packed batch holds the tokens of all sequences one after another: the same two cost 110. See ``pad`` and ``pack``.

Letters in shapes: B sequences in a batch, S their padded length, S_i the length of sequence i, T the number of tokens
of a packed batch, n the number of sequences of the caller.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bert_trt.console import UserError
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, SEQUENCE_LENGTHS_NAME
from bert_trt.options import RAGGED

Ids = Sequence[int] | np.ndarray  # one number for each token of a sequence
CHECKED = (INPUT_NAMES[0], MASK_NAME, LENGTHS_NAME, SEQUENCE_LENGTHS_NAME)  # the inputs that ``check_batch`` reads


@dataclass(frozen=True)
class Limits:
    """How large batches and sequences may be.

    Attributes:
        max_tokens: the token budget: the most tokens in a batch, padding included.
        max_sequences: the most sequences in a batch.
        max_positions: rows of the position table, and so the most tokens in a sequence.
        vocab_size: rows of the word table; None only checks that word ids are not negative and fit int32.
        type_vocab_size: rows of the token type table; None as for ``vocab_size``.

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
        position_ids: int32 (T,), counted from 0 in every sequence.
        cu_seqlens: int32 (B + 1,), the running sum of lengths: sequence i is ``cu_seqlens[i]:cu_seqlens[i + 1]``.
        sequences: int64 (B,), the index of each sequence in the caller's list.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    position_ids: np.ndarray
    cu_seqlens: np.ndarray
    sequences: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int32 (B,)."""
        return np.diff(self.cu_seqlens)

    @property
    def max_length(self) -> int:
        """Length of the longest sequence."""
        return int(self.lengths.max())

    def split(self, result: np.ndarray) -> list[np.ndarray]:
        """(T, ...) -> views (S_i, ...), one for each of ``sequences``."""
        return np.split(result, self.cu_seqlens[1:-1])


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Sentences in rows of one length.

    Attributes:
        input_ids: int32 (B, S), 0 in the padding.
        token_type_ids: int32 (B, S), 0 in the padding.
        position_ids: int32 (B, S), 0 to S - 1 in every row.
        mask: int32 (B, S), the attention mask: 1 for a token, 0 for padding.
        sequences: int64 (B,), the index of each sequence in the caller's list.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    position_ids: np.ndarray
    mask: np.ndarray
    sequences: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int32 (B,)."""
        return self.mask.sum(axis=1, dtype=np.int32)

    @property
    def max_length(self) -> int:
        """Length of the longest sequence; at most S."""
        return int(self.lengths.max())

    def split(self, result: np.ndarray) -> list[np.ndarray]:
        """(B, S, ...) -> views (S_i, ...), one for each of ``sequences``."""
        return [row[:length] for row, length in zip(result, self.lengths, strict=True)]


Batch = PackedBatch | PaddedBatch


@dataclass(frozen=True)
class NetworkBatch:
    """The inputs of a network for one batch, and the sequences that they hold.

    Attributes:
        inputs: arrays by the name of the input.
        sequences: the index of each sequence in the caller's list.
        split: splits the network's output into one array (S_i, width) for each sequence, or (1, width) where the
            network has one row for a sequence.
    """

    inputs: dict[str, np.ndarray]
    sequences: Sequence[int]
    split: Callable[[np.ndarray], list[np.ndarray]]


def single_batch(ids: np.ndarray, types: np.ndarray, index: int) -> NetworkBatch:
    """The inputs of a network for single sequences.

    Args:
        ids: (S,).
        types: token types, (S,).
        index: the sequence's index in the caller's list.
    """
    values = (ids[None], types[None], np.arange(len(ids), dtype=np.int32)[None])  # each (1, S)
    inputs: dict[str, np.ndarray] = dict(zip(INPUT_NAMES, values, strict=True))
    return NetworkBatch(inputs, [index], lambda output: [output.reshape(-1, output.shape[-1])])


def packed_batch(batch: PackedBatch) -> NetworkBatch:
    """The inputs of a network for packed batches."""
    values = (batch.input_ids, batch.token_type_ids, batch.position_ids)
    inputs = dict(zip(INPUT_NAMES, values, strict=True)) | {LENGTHS_NAME: batch.cu_seqlens}

    def split(output: np.ndarray) -> list[np.ndarray]:  # (T, width) or (B, width); of tokens where both are the same
        return batch.split(output) if len(output) == len(batch.input_ids) else list(output[:, None])

    return NetworkBatch(inputs, batch.sequences.tolist(), split)


def ragged_batch(batch: PackedBatch) -> NetworkBatch:
    """The inputs of a network that makes positions and cu_seqlens itself, from the sequences' lengths."""
    packed = packed_batch(batch)
    inputs = {name: packed.inputs[name] for name in INPUT_NAMES[:2]} | {SEQUENCE_LENGTHS_NAME: batch.lengths}
    return NetworkBatch(inputs, packed.sequences, packed.split)


UNPADDED: dict[str, Callable[[PackedBatch], NetworkBatch]] = {"packed": packed_batch, RAGGED: ragged_batch}


def padded_batch(batch: PaddedBatch) -> NetworkBatch:
    """The inputs of a network for padded batches."""
    values = (batch.input_ids, batch.token_type_ids, batch.position_ids)
    inputs = dict(zip(INPUT_NAMES, values, strict=True)) | {MASK_NAME: batch.mask}

    def split(output: np.ndarray) -> list[np.ndarray]:  # (B, S, width) or (B, width)
        return batch.split(output) if output.ndim > 2 else list(output[:, None])

    return NetworkBatch(inputs, batch.sequences.tolist(), split)


# --- into batches and back --------------------------------------------------------------------------------


def pack(
    sequences: Sequence[Ids],
    limits: Limits,
    token_types: Sequence[Ids] | None = None,
    lines: Sequence[int] | None = None,
) -> list[PackedBatch]:
    """Puts sequences into packed batches, by best-fit decreasing bin packing.

    The longest sequence goes first. Each goes into the batch in which it leaves the least room, or into a new one.
    Without a limit on the number of sequences this needs at most 11/9 of the fewest possible batches plus a constant,
    like first-fit decreasing (Johnson, Demers, Ullman, Garey and Graham, SIAM J. Comput. 3(4), 1974). A bisection
    finds the batch, so that the whole takes O(n log n). The longest sequence of a batch comes first in it, so that a
    kernel that starts its blocks in this order does not end with the longest one.

    Args:
        sequences: token ids of each sequence, those of [CLS] and [SEP] included.
        limits: how large a batch may be.
        token_types: the type of each token; None means 0 for all.
        lines: line numbers of the sequences, for messages; None means 1, 2, ...

    Returns:
        Each sequence in exactly one batch.

    Raises:
        UserError: there are no sequences, or one is empty, is longer than the position table or the token budget, or
            has an id outside its table; the message names its line.
    """
    tokens = _Tokens.of(sequences, limits, token_types, lines)
    return [_packed_batch(tokens, group) for group in _best_fit_decreasing(tokens.lengths, limits)]


def pad(
    sequences: Sequence[Ids],
    limits: Limits,
    token_types: Sequence[Ids] | None = None,
    lines: Sequence[int] | None = None,
    buckets: int | Sequence[int] = 16,
) -> list[PaddedBatch]:
    """Puts sequences of similar length into padded batches, the longest first.

    Args:
        sequences: as in ``pack``.
        limits: as in ``pack``; B · S counts against the token budget.
        token_types: as in ``pack``.
        lines: as in ``pack``.
        buckets: lengths are rounded up to S: to a multiple of this number, or to the next one of a list; S is never
            more than ``limits`` allow.

    Returns:
        Each sequence in exactly one batch.

    Raises:
        UserError: as in ``pack``; a sequence is longer than every bucket, or ``buckets`` holds no length.
    """
    tokens = _Tokens.of(sequences, limits, token_types, lines)
    padded = np.minimum(_bucket_of_each(tokens, buckets), min(limits.max_positions, limits.max_tokens))  # (n,)
    batches = []
    for length in np.unique(padded)[::-1].tolist():
        members = np.flatnonzero(padded == length)
        size = min(limits.max_sequences, limits.max_tokens // length)
        batches += [_padded_batch(tokens, members[i : i + size], length) for i in range(0, len(members), size)]
    return batches


def scatter(batches: Sequence[Batch], results: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Puts results that are one row for each token back into the caller's order.

    Args:
        batches: all or some of what ``pack`` or ``pad`` returned.
        results: one for each batch, (T, ...) if packed, (B, S, ...) if padded.

    Returns:
        A view (S_i, ...) for each sequence of the batches, in the caller's order.

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
        parts |= zip(batch.sequences.tolist(), batch.split(result), strict=True)
    return [parts[index] for index in sorted(parts)]


# --- checks of a network's inputs ---------------------------------------------------------------------------


def check_cu_seqlens(cu_seqlens: np.ndarray, tokens: int) -> None:
    """Checks the running sum of lengths: int32 (B + 1,), which increases from 0 to T.

    Args:
        cu_seqlens: see ``PackedBatch``.
        tokens: T, the length of the packed tensors.

    Raises:
        UserError: it does not; the message names the first invalid entry.
    """
    if cu_seqlens.dtype != np.int32 or cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        shape = list(cu_seqlens.shape)
        raise UserError(f"cu_seqlens is {cu_seqlens.dtype} {shape}, expected int32 [B + 1] with B at least 1")
    if cu_seqlens[0] != 0:
        raise UserError(f"cu_seqlens[0] is {cu_seqlens[0]}, expected 0: the first sequence starts there")
    not_increasing = np.flatnonzero(cu_seqlens[1:] <= cu_seqlens[:-1])
    if len(not_increasing):
        index = not_increasing[0]
        before, after = cu_seqlens[index], cu_seqlens[index + 1]
        reason = "is empty; leave it out" if before == after else "ends before it starts"
        raise UserError(
            f"cu_seqlens[{index + 1}] is {after} after {before}, expected more: "
            f"sequence {index + 1} of the batch {reason}"
        )
    if cu_seqlens[-1] != tokens:
        raise UserError(f"cu_seqlens ends with {cu_seqlens[-1]}, expected {tokens}, the number of packed tokens")


def check_batch(inputs: Mapping[str, np.ndarray]) -> None:
    """Checks the attention mask of a padded batch, the cu_seqlens of a packed one, or the lengths of a ragged one.

    Args:
        inputs: arrays by name; without ids, or without any of these, nothing is checked.

    Raises:
        UserError: see ``check_cu_seqlens``, ``check_mask`` and ``check_sequence_lengths``.
    """
    ids = inputs.get(INPUT_NAMES[0])
    if ids is not None and SEQUENCE_LENGTHS_NAME in inputs:
        check_sequence_lengths(np.asarray(inputs[SEQUENCE_LENGTHS_NAME]), len(ids))
    if ids is not None and LENGTHS_NAME in inputs:
        check_cu_seqlens(np.asarray(inputs[LENGTHS_NAME]), len(ids))
    if ids is not None and MASK_NAME in inputs:
        check_mask(np.asarray(inputs[MASK_NAME]), tuple(ids.shape))


def check_sequence_lengths(lengths: np.ndarray, tokens: int) -> None:
    """Checks the lengths of a ragged batch: int32 (B,), each at least 1, and T together.

    Args:
        lengths: see ``ragged_batch``.
        tokens: T, the length of the packed tensors.

    Raises:
        UserError: they are not; the message names the first invalid one.
    """
    if lengths.dtype != np.int32 or lengths.ndim != 1 or not len(lengths):
        shape = list(lengths.shape)
        raise UserError(f"{SEQUENCE_LENGTHS_NAME} is {lengths.dtype} {shape}, expected int32 [B] with B at least 1")
    empty = np.flatnonzero(lengths < 1)
    if len(empty):
        raise UserError(
            f"{SEQUENCE_LENGTHS_NAME}[{empty[0]}] is {lengths[empty[0]]}, expected at least 1: sequence "
            f"{empty[0] + 1} of the batch is empty; leave it out"
        )
    if lengths.sum() != tokens:
        raise UserError(
            f"{SEQUENCE_LENGTHS_NAME} add up to {lengths.sum()}, expected {tokens}, the number of packed tokens"
        )


def check_mask(mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Checks an attention mask: int32 (B, S), 1 for a token and 0 for padding, at least one token in every row.

    Args:
        mask: see ``PaddedBatch``.
        shape: (B, S) of the ids.

    Raises:
        UserError: it is not so; the message names the first invalid entry or row.
    """
    if mask.dtype != np.int32 or mask.shape != shape:
        raise UserError(f"the mask is {mask.dtype} {list(mask.shape)}, expected int32 {list(shape)} like the ids")
    invalid = np.argwhere((mask != 0) & (mask != 1))
    if len(invalid):
        row, column = invalid[0]
        raise UserError(f"mask[{row}, {column}] is {mask[row, column]}, expected 1 for a token or 0 for padding")
    empty = np.flatnonzero(~mask.any(axis=-1))
    if len(empty):
        raise UserError(f"row {empty[0]} of the mask has no 1: sequence {empty[0] + 1} of the batch is empty")


# --- private helpers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    """The caller's sequences one after another, checked. The first two arrays are (all tokens,), the rest (n,)."""

    input_ids: np.ndarray  # int32
    token_type_ids: np.ndarray  # int32
    starts: np.ndarray
    lengths: np.ndarray
    lines: np.ndarray

    @classmethod
    def of(
        cls,
        sequences: Sequence[Ids],
        limits: Limits,
        token_types: Sequence[Ids] | None,
        line_numbers: Sequence[int] | None,
    ) -> _Tokens:
        if not len(sequences):
            raise UserError("there is no sequence to put into a batch; give at least one")
        lines = np.arange(1, len(sequences) + 1) if line_numbers is None else np.asarray(line_numbers)
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        if len(lines) != len(lengths):
            raise UserError(f"{len(lines)} line numbers for {len(lengths)} sequences, expected one for each")
        _refuse(lengths == 0, lengths, lines, "no words; leave the line out or write a sentence")
        message = f"{{}} tokens, but the position table has {limits.max_positions}; shorten the sentence"
        _refuse(lengths > limits.max_positions, lengths, lines, message)
        message = (
            f"{{}} tokens, but the token budget of a batch is {limits.max_tokens}; raise it or shorten the sentence"
        )
        _refuse(lengths > limits.max_tokens, lengths, lines, message)
        ids = _join(sequences, "token ids", limits.vocab_size, lengths, lines)
        if token_types is None:
            types = np.zeros_like(ids)
        else:
            types = _join(token_types, "token types", limits.type_vocab_size, lengths, lines)
        return cls(ids, types, np.cumsum(lengths) - lengths, lengths, lines)


def _refuse(refused: np.ndarray, lengths: np.ndarray, lines: np.ndarray, message: str) -> None:
    """Raises a UserError for the first true in ``refused``, bool (n,); {} in the message is the sequence's length."""
    if refused.any():
        first = np.argmax(refused)
        raise UserError(f"line {lines[first]}: {message.format(lengths[first])}")


def _join(values: Sequence[Ids], name: str, size: int | None, lengths: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Concatenates one row of integers for each sequence to int32 (all tokens,), each from 0 to ``size`` - 1."""
    if len(values) != len(lengths):
        raise UserError(f"{name} of {len(values)} sequences, expected {len(lengths)}")
    rows = [np.asarray(row) for row in values]
    # Attributes are looked at all at once, which takes a third of the time of a check of each row.
    are_rows = {row.ndim for row in rows} == {1} and {row.dtype.kind for row in rows} <= {"i", "u"}
    if not are_rows or [len(row) for row in rows] != lengths.tolist():
        for row, length, line in zip(rows, lengths.tolist(), lines.tolist(), strict=True):
            if row.dtype.kind not in "iu" or row.shape != (length,):
                found = f"{row.dtype} {list(row.shape)}"
                raise UserError(f"line {line}: {name} are {found}, expected integers [{length}]")
    joined = np.concatenate(rows)
    limit = np.iinfo(np.int32).max + 1 if size is None else size
    if joined.min() < 0 or joined.max() >= limit:
        first = np.argmax((joined < 0) | (joined >= limit))
        line = np.repeat(lines, lengths)[first]
        raise UserError(f"line {line}: {joined[first]} among its {name}, outside the table (0 to {limit - 1})")
    return joined.astype(np.int32, copy=False)


def _best_fit_decreasing(lengths: np.ndarray, limits: Limits) -> list[np.ndarray]:
    """Lengths (n,) to the indices of the sequences of each batch; see ``pack``.

    Sequences of the same length are placed together: a batch that one of them fits best has even less room after it,
    so it stays the best for the next one, as long as that fits.
    """
    order = np.argsort(-lengths, kind="stable")
    groups: list[list[np.ndarray]] = []
    sizes: list[int] = []
    room: list[tuple[int, int]] = []  # (tokens left, group), sorted, for the groups that may still grow
    for same in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        length, placed = int(lengths[same[0]]), 0
        while placed < len(same):
            best_fit = bisect_left(room, (length,))  # (length,) sorts before every (length, group)
            if best_fit < len(room):
                left, group = room.pop(best_fit)
            else:
                left, group = limits.max_tokens, len(groups)
                groups.append([])
                sizes.append(0)
            count = min(len(same) - placed, left // length, limits.max_sequences - sizes[group])
            groups[group].append(same[placed : placed + count])
            sizes[group] += count
            placed += count
            if sizes[group] < limits.max_sequences:
                insort(room, (left - count * length, group))
    return [np.concatenate(group) for group in groups]


def _bucket_of_each(tokens: _Tokens, buckets: int | Sequence[int]) -> np.ndarray:
    """The padded length of each sequence, (n,)."""
    bounds = np.unique(buckets)  # sorted
    if not len(bounds) or bounds.dtype.kind not in "iu" or bounds[0] < 1:
        raise UserError(f"buckets are {buckets!r}, expected a whole number or a list of them, each at least 1")
    if np.ndim(buckets) == 0:
        return -(-tokens.lengths // bounds[0]) * bounds[0]
    message = f"{{}} tokens, but the longest bucket has {bounds[-1]}; add a longer one or shorten the sentence"
    _refuse(tokens.lengths > bounds[-1], tokens.lengths, tokens.lines, message)
    return bounds[np.searchsorted(bounds, tokens.lengths)]


def _packed_batch(tokens: _Tokens, chosen: np.ndarray) -> PackedBatch:
    """The batch of the sequences with the indices ``chosen``, (B,)."""
    lengths = tokens.lengths[chosen]
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)  # (T,)
    source = np.repeat(tokens.starts[chosen], lengths) + positions  # (T,), the index of each token in ``tokens``
    return PackedBatch(
        input_ids=tokens.input_ids[source],
        token_type_ids=tokens.token_type_ids[source],
        position_ids=positions.astype(np.int32),
        cu_seqlens=np.concatenate([[0], ends]).astype(np.int32),
        sequences=chosen,
    )


def _padded_batch(tokens: _Tokens, chosen: np.ndarray, padded_length: int) -> PaddedBatch:
    """The batch of the sequences with the indices ``chosen``, (B,)."""
    packed = _packed_batch(tokens, chosen)
    columns = np.arange(padded_length, dtype=np.int32)
    is_token = columns < packed.lengths[:, None]  # (B, S)
    ids, types = np.zeros(is_token.shape, np.int32), np.zeros(is_token.shape, np.int32)
    ids[is_token], types[is_token] = packed.input_ids, packed.token_type_ids
    positions = np.tile(columns, (len(chosen), 1))
    return PaddedBatch(ids, types, positions, is_token.astype(np.int32), chosen)
