"""Compares outputs of a network with PyTorch's: one example with its best words, and sequences of several lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_files import DemoIO, ReferenceSequence
from options import QUANTIZED_PRECISIONS, TOLERANCES, SequenceRange
from packing import Limits, NetworkBatch, pack, packed_batch, pad, padded_batch, single_batch

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # a network's inputs to its output


def relative_l2(values: np.ndarray, reference: np.ndarray) -> float:
    """‖values − reference‖ / ‖reference‖, computed in fp64; NaN if any value is NaN."""
    wide, wide_reference = values.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(wide - wide_reference) / np.linalg.norm(wide_reference))


@dataclass(frozen=True)
class Comparison:
    """How far an output is from PyTorch's.

    Attributes:
        rel_l2: relative L2 error over the whole output.
        max_abs: largest absolute difference.
        top1_same: the best word is the same at every [MASK]; None without a head.
        top10_same: the ten best words are the same, in the same order; None without a head.
        top10: the ten best words at the first [MASK], ``{"word", "id", "probability"}``; empty without a head.
    """

    rel_l2: float
    max_abs: float
    top1_same: bool | None
    top10_same: bool | None
    top10: list[dict[str, Any]]

    @classmethod
    def of(cls, output: np.ndarray, demo: DemoIO, tokens: Sequence[str]) -> Comparison:
        """Compares an output (1, S, vocabulary or H) with the demo's."""
        ours = [best_words(output[0, position]) for position in demo.mask_positions]
        theirs = [best_words(demo.output[0, position]) for position in demo.mask_positions]
        pairs = list(zip(ours, theirs, strict=True))
        has_masks = bool(pairs)
        return cls(
            rel_l2=relative_l2(output, demo.output),
            max_abs=float(np.abs(output.astype(np.float64) - demo.output).max()),
            top1_same=all(a[0] == b[0] for a, b in pairs) if has_masks else None,
            top10_same=all(a == b for a, b in pairs) if has_masks else None,
            top10=describe_words(output[0, demo.mask_positions[0]], ours[0], tokens) if has_masks else [],
        )

    def agrees(self, precision: str) -> bool:
        """Within tolerance, and the answer the same: all ten words for fp32, the first otherwise."""
        same = self.top10_same if precision == "fp32" else self.top1_same
        return self.rel_l2 <= TOLERANCES[precision] and same is not False  # a NaN is never <=


def best_words(scores: np.ndarray) -> list[int]:
    """Ids of the ten highest scores, best first; equal scores in the order of ids."""
    return [int(number) for number in np.argsort(-scores, kind="stable")[:10]]


def describe_words(scores: np.ndarray, ids: Sequence[int], tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Word, id and probability of the given ids; ``scores`` is (vocabulary,)."""
    wide = scores.astype(np.float64)
    exponentials = np.exp(wide - wide.max())
    probabilities = exponentials / exponentials.sum()
    return [{"word": tokens[number], "id": number, "probability": float(probabilities[number])} for number in ids]


# --- sequences of several lengths, in batches ------------------------------------------------------------------


@dataclass(frozen=True)
class SequenceError:
    """How far the output for one sequence is from PyTorch's.

    Attributes:
        tokens: S, its length.
        rel_l2: relative L2 error over the tokens that are compared.
        norm: L2 norm of PyTorch's output for them.
    """

    tokens: int
    rel_l2: float
    norm: float


def sequences_agree(errors: Sequence[SequenceError], precision: str) -> bool:
    """Whether the outputs for sequences are PyTorch's, within tolerance: each of them, or in 8 bits all together.

    Ranges in 8 bits are chosen for usual sentences. One of three tokens has been seen to be off by 7 % where all
    tokens together are off by 3 %.
    """
    compared = [together(errors)] if precision in QUANTIZED_PRECISIONS else [one.rel_l2 for one in errors]
    return all(error <= TOLERANCES[precision] for error in compared)  # a NaN is never <=


def together(errors: Sequence[SequenceError]) -> float:
    """The relative L2 error over all sequences; 0 without any."""
    difference = sum((one.rel_l2 * one.norm) ** 2 for one in errors)
    return math.sqrt(difference / sum(one.norm**2 for one in errors)) if errors else 0.0


def reference_batches(
    sequences: Sequence[ReferenceSequence], batching: str, seq_len: SequenceRange, batch: SequenceRange
) -> list[NetworkBatch]:
    """The sequences that a plan takes, as its network takes them.

    Args:
        sequences: of any length.
        batching: single, padded or packed.
        seq_len: lengths that the plan takes; in a batch a shorter sequence is padded, or packed beside others.
        batch: sequences in a batch. If it must be more than there are, they are repeated.

    Returns:
        The batches; none if no sequence fits. ``NetworkBatch.sentences`` counts in ``sequences``.
    """
    shortest = seq_len.minimum if batching == "single" else 1
    places = [i for i, one in enumerate(sequences) if shortest <= len(one.input_ids) <= seq_len.maximum]
    if batching == "single":
        return [single_batch(sequences[place].input_ids, sequences[place].token_type_ids, place) for place in places]
    batches = []
    for start in range(0, len(places), batch.maximum):
        members = places[start : start + batch.maximum]
        while len(members) < batch.minimum or (
            batching == "packed"
            and len(members) < batch.maximum
            and sum(len(sequences[place].input_ids) for place in members) < batch.minimum * seq_len.minimum
        ):
            members.append(places[len(members) % len(places)])
        batches.append(_batch([sequences[place] for place in members], members, batching, seq_len))
    return batches


def _batch(
    members: Sequence[ReferenceSequence], places: Sequence[int], batching: str, seq_len: SequenceRange
) -> NetworkBatch:
    """All members in one batch."""
    lengths = [len(one.input_ids) for one in members]
    padded_length = max(*lengths, seq_len.minimum)
    limits = Limits(padded_length * len(members), len(members), padded_length)
    ids, types = [one.input_ids for one in members], [one.token_type_ids for one in members]
    if batching == "packed":
        (batch,) = map(packed_batch, pack(ids, limits, types))
    else:
        (batch,) = map(padded_batch, pad(ids, limits, types, buckets=[padded_length]))
    return NetworkBatch(batch.inputs, [places[member] for member in batch.sentences], batch.split)


def compare_sequences(
    run: Run, batches: Sequence[NetworkBatch], sequences: Sequence[ReferenceSequence]
) -> list[SequenceError]:
    """Runs the batches and compares every sequence's output with PyTorch's.

    Returns:
        One error for each sequence that is in a batch, the worst where it is there more than once.
    """
    worst: dict[int, float] = {}
    for batch in batches:
        for place, output in zip(batch.sentences, batch.split(run(batch.inputs)), strict=True):
            sequence = sequences[place]
            error = relative_l2(output[sequence.checked], sequence.output)
            worst[place] = float(np.maximum(error, worst.get(place, 0.0)))  # NaN stays NaN
    return [
        SequenceError(
            len(sequences[place].input_ids),
            worst[place],
            float(np.linalg.norm(sequences[place].output.astype(np.float64))),
        )
        for place in sorted(worst)
    ]
