"""Compares the outputs of a network with PyTorch's: ``Comparison`` for one example with its top-k predictions, and
``SequenceError`` for sequences of several lengths, in the batches that ``reference_batches`` makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_trt.model_files import DemoIO, ReferenceSequence
from bert_trt.options import QUANTIZED_PRECISIONS, TOLERANCES, SequenceRange
from bert_trt.packing import UNPADDED, Limits, NetworkBatch, pack, pad, padded_batch, single_batch
from bert_trt.tasks import Ranking, describe_words, top_k

PYTORCH = "PyTorch"
OWN_NETWORK = "the network without its roundings"  # itself compared with PyTorch at other lengths

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # runs a network: its inputs by name to its output


def relative_l2(values: np.ndarray, reference: np.ndarray) -> float:
    """‖values − reference‖ / ‖reference‖, computed in fp64; NaN if any value is NaN."""
    values_fp64, reference_fp64 = values.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(values_fp64 - reference_fp64) / np.linalg.norm(reference_fp64))


@dataclass(frozen=True)
class WordDifference:
    """The network and PyTorch have different words at one place of a ranking, such as the predictions for a [MASK].

    Attributes:
        ranking: what is ranked, see ``tasks.Ranking``.
        place: place among the ten best, from 1.
        word: the network's word, label or token.
        expected: PyTorch's word.
        probability: PyTorch's probability of ``expected``.
        margin: the difference between PyTorch's probabilities of the two words.
    """

    ranking: str
    place: int
    word: str
    expected: str
    probability: float
    margin: float

    def is_near_tie(self, precision: str) -> bool:
        """Whether the two words are too close to call.

        Their probabilities differ by no more than the accepted error, and by less than half. The second condition
        matters where all probabilities are small: 0.04 and 0.001 are no tie, whatever error is accepted.
        """
        return self.margin <= TOLERANCES[precision] and self.margin < self.probability / 2

    def describe(self) -> str:
        """The place, both words and the margin in one phrase."""
        return (
            f"place {self.place} for {self.ranking}: {self.word!r} instead of {self.expected!r} "
            f"({self.probability:.4f}), by PyTorch their probabilities differ by {self.margin:.1e}"
        )


@dataclass(frozen=True)
class Comparison:
    """The difference between an output and PyTorch's. The names of the attributes are keys of --json.

    Attributes:
        rel_l2: relative L2 error over the whole output.
        max_abs: largest absolute difference.
        top1_same: whether the first of every ranking is the same; None without rankings.
        top10_same: whether the ten best are the same, in the same order; None without rankings.
        top10: the ten best of the first ranking, ``{"word", "id", "probability"}``; empty without rankings, or where
            a logit is not finite.
        swaps: the places where the words differ, near-ties included; empty where a logit is not finite.
    """

    rel_l2: float
    max_abs: float
    top1_same: bool | None
    top10_same: bool | None
    top10: list[dict[str, Any]]
    swaps: list[WordDifference]

    @classmethod
    def of(cls, output: np.ndarray, demo: DemoIO, rank: Callable[[np.ndarray], list[Ranking]]) -> Comparison:
        """Compares ``output``, (1, R, width), with the demo's; ``rank`` is ``tasks.Rankings.of``."""
        pairs = list(zip(rank(output[0]), rank(demo.output[0]), strict=True))
        best = [(top_k(ours.scores), top_k(theirs.scores)) for ours, theirs in pairs]
        finite = [bool(np.isfinite(ours.scores).all()) for ours, _ in pairs]
        differences: list[WordDifference] = []
        for (_, theirs), is_finite, (a, b) in zip(pairs, finite, best, strict=True):
            if is_finite and a != b:
                differences += find_word_differences(theirs, a, b)
        return cls(
            rel_l2=relative_l2(output, demo.output),
            max_abs=float(np.abs(output.astype(np.float64) - demo.output).max()),
            top1_same=all(a[0] == b[0] for a, b in best) if best else None,
            top10_same=all(a == b for a, b in best) if best else None,
            top10=describe_words(pairs[0][0].scores, best[0][0], pairs[0][0].names) if any(finite[:1]) else [],
            swaps=differences,
        )

    def changed_words(self, precision: str) -> list[WordDifference]:
        """Differences that are no near-ties, among all ten predictions for fp32, else among the first ones."""
        return [difference for difference in self._counted(precision) if not difference.is_near_tie(precision)]

    def near_ties(self, precision: str) -> list[WordDifference]:
        """Differences that are near-ties, which count as the same."""
        return [difference for difference in self._counted(precision) if difference.is_near_tie(precision)]

    def _counted(self, precision: str) -> list[WordDifference]:
        return [difference for difference in self.swaps if precision == "fp32" or difference.place == 1]

    def agrees(self, precision: str) -> bool:
        """Whether the error is within tolerance and the predictions are the same: ten for fp32, else the first."""
        return not self.reasons(precision)

    def reasons(self, precision: str) -> list[str]:
        """Why the output does not agree with PyTorch's; empty if it does."""
        accepted = TOLERANCES[precision]
        reasons = []
        if not self.rel_l2 <= accepted:  # a NaN is never <=
            reasons.append(f"relative L2 error {self.rel_l2:.2e} for the sentence, accepted is {accepted:.0e}")
        changed = self.changed_words(precision)
        if changed:
            more = f"; {len(changed) - 1} other places differ too" if len(changed) > 1 else ""
            limit = f"a near-tie is at most {accepted:.0e}, and half the probability"
            reasons.append(f"{changed[0].describe()}: no near-tie ({limit}){more}")
        return reasons


def find_word_differences(reference: Ranking, ours: Sequence[int], theirs: Sequence[int]) -> list[WordDifference]:
    """The places at which two lists of the best predictions differ.

    Args:
        reference: PyTorch's ranking.
        ours: numbers of the network's predictions, the best first.
        theirs: numbers of PyTorch's predictions.
    """
    a, b = (describe_words(reference.scores, ids, reference.names) for ids in (ours, theirs))
    return [
        WordDifference(
            reference.place,
            place,
            word["word"],
            expected["word"],
            expected["probability"],
            abs(expected["probability"] - word["probability"]),
        )
        for place, (word, expected) in enumerate(zip(a, b, strict=True), start=1)
        if word["id"] != expected["id"]
    ]


# --- sequences of several lengths, in batches ------------------------------------------------------------------


@dataclass(frozen=True)
class SequenceError:
    """The error of the output for one sequence. The names of the attributes are keys of --json.

    Attributes:
        tokens: S, the length of the sequence.
        rel_l2: relative L2 error over the tokens that are compared.
        norm: L2 norm of the expected output for these tokens.
        expected_from: what computed the expected output, ``PYTORCH`` or ``OWN_NETWORK``.
    """

    tokens: int
    rel_l2: float
    norm: float
    expected_from: str = PYTORCH

    @classmethod
    def of(cls, tokens: int, values: np.ndarray, expected: np.ndarray, expected_from: str = PYTORCH) -> SequenceError:
        """The error of ``values`` for a sequence of ``tokens``; NaN if any value is NaN."""
        norm = float(np.linalg.norm(expected.astype(np.float64)))
        return cls(tokens, relative_l2(values, expected), norm, expected_from)


def sequence_reasons(errors: Sequence[SequenceError], precision: str) -> list[str]:
    """Why the outputs for the sequences are out of tolerance; empty if they are within it.

    The tolerance holds for each sequence; in int8 and fp8 it holds for all sequences together. Scales of 8 bits are
    chosen for usual text: a sequence of three tokens has been seen with an error of 7 % where all tokens together had
    3 %.
    """
    accepted = TOLERANCES[precision]
    if precision in QUANTIZED_PRECISIONS:
        error = combined_rel_l2(errors)
        described = f"{error:.2e} over {_describe_lengths(errors)} together"
        return [] if error <= accepted else [f"relative L2 error {described}, accepted is {accepted:.0e}"]
    exceeding = [error for error in errors if not error.rel_l2 <= accepted]  # a NaN is never <=
    if not exceeding:
        return []
    worst = worst_of(exceeding)
    if len(exceeding) > 1:
        described = f"{worst.rel_l2:.2e} at {worst.tokens} tokens, the worst of {_describe_lengths(exceeding)}"
    else:
        described = f"{worst.rel_l2:.2e} for a sequence of {worst.tokens} tokens"
    return [f"relative L2 error {described}, accepted is {accepted:.0e}"]


def worst_of(errors: Sequence[SequenceError]) -> SequenceError:
    """The largest error; an error that is not finite counts as larger than any other."""
    return max(errors, key=lambda error: (not math.isfinite(error.rel_l2), error.rel_l2))


def _describe_lengths(errors: Sequence[SequenceError]) -> str:
    return f"sequences of {enumerate_in_text([str(error.tokens) for error in errors])} tokens"


def enumerate_in_text(parts: Sequence[str]) -> str:
    """The parts as an enumeration, such as ``3, 9 and 33``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def combined_rel_l2(errors: Sequence[SequenceError]) -> float:
    """The relative L2 error over all sequences together; 0 without any sequence."""
    difference = sum((error.rel_l2 * error.norm) ** 2 for error in errors)
    return math.sqrt(difference / sum(error.norm**2 for error in errors)) if errors else 0.0


def reference_batches(
    sequences: Sequence[ReferenceSequence], batching: str, seq_len: SequenceRange, batch: SequenceRange
) -> list[NetworkBatch]:
    """Puts those sequences that a plan accepts into batches that it accepts.

    Args:
        sequences: sequences of any length, with PyTorch's outputs.
        batching: single, padded, packed or ``RAGGED``.
        seq_len: the lengths that the plan accepts. In a padded batch a shorter sequence is padded; in a packed one
            other sequences make up for the missing tokens.
        batch: the number of sequences in a batch. Sequences are repeated where there are fewer than its minimum.

    Returns:
        The batches; none if no sequence fits. ``NetworkBatch.sequences`` holds indices into ``sequences``.
    """
    shortest = seq_len.minimum if batching == "single" else 1
    indices = [
        index for index, sequence in enumerate(sequences) if shortest <= len(sequence.input_ids) <= seq_len.maximum
    ]
    if batching == "single":
        return [single_batch(sequences[index].input_ids, sequences[index].token_type_ids, index) for index in indices]
    min_tokens = batch.minimum * seq_len.minimum if batching in UNPADDED else 0
    batches = []
    for start in range(0, len(indices), batch.maximum):
        chunk = indices[start : start + batch.maximum]
        members = list(chunk)
        while len(members) < batch.minimum or (
            len(members) < batch.maximum and _num_tokens(sequences, members) < min_tokens
        ):
            members.append(indices[len(members) % len(indices)])
        if _num_tokens(sequences, members) >= min_tokens:
            batches.append(_batch([sequences[index] for index in members], members, batching, seq_len))
            continue
        for index in chunk:
            fillers = _filler_sequences(sequences, min_tokens - len(sequences[index].input_ids), seq_len, batch)
            if fillers:
                batches.append(_batch([sequences[index], *fillers], [index], batching, seq_len))
    return batches


def _num_tokens(sequences: Sequence[ReferenceSequence], indices: Sequence[int]) -> int:
    return sum(len(sequences[index].input_ids) for index in indices)


def _filler_sequences(
    sequences: Sequence[ReferenceSequence], missing: int, seq_len: SequenceRange, batch: SequenceRange
) -> list[ReferenceSequence]:
    """Made-up sequences with the ``missing`` tokens of a packed batch that holds one short sequence so far; none
    where even sequences of the maximum length would be too few. ``missing`` is at least the number of sequences, see
    ``reference_batches``."""
    count = max(batch.minimum - 1, -(-missing // seq_len.maximum))
    if count > batch.maximum - 1:
        return []
    lengths = [missing // count + (number < missing % count) for number in range(count)]
    return [_made_up(sequences, length, number) for number, length in enumerate(lengths)]


def _made_up(sequences: Sequence[ReferenceSequence], length: int, number: int) -> ReferenceSequence:
    """``length`` tokens of the longest sequence, rotated by ``number`` tokens; without an expected output."""
    longest = max(sequences, key=lambda sequence: len(sequence.input_ids))
    ids, types = (
        np.roll(np.resize(values, length), number) for values in (longest.input_ids, longest.token_type_ids)
    )
    return ReferenceSequence(ids, types, np.arange(0), np.empty((0, 0), np.float32))


def profile_batch(
    sequences: Sequence[ReferenceSequence], batching: str, seq_len: SequenceRange, batch: SequenceRange
) -> NetworkBatch:
    """A batch of the optimum size of a plan's profile: tokens of ``sequences``, without an expected output."""
    members = [_made_up(sequences, seq_len.optimum, number) for number in range(batch.optimum)]
    if batching == "single":
        return single_batch(members[0].input_ids, members[0].token_type_ids, 0)
    return _batch(members, range(len(members)), batching, seq_len)


def _batch(
    members: Sequence[ReferenceSequence], indices: Sequence[int], batching: str, seq_len: SequenceRange
) -> NetworkBatch:
    """All members in one batch. ``indices`` belong to the first members; the others only fill the batch."""
    lengths = [len(sequence.input_ids) for sequence in members]
    padded_length = max(*lengths, seq_len.minimum)
    limits = Limits(padded_length * len(members), len(members), padded_length)
    ids, types = [sequence.input_ids for sequence in members], [sequence.token_type_ids for sequence in members]
    if batching in UNPADDED:
        (batch,) = map(UNPADDED[batching], pack(ids, limits, types))
    else:
        (batch,) = map(padded_batch, pad(ids, limits, types, buckets=[padded_length]))
    rows = [row for row, member in enumerate(batch.sequences) if member < len(indices)]
    compared = [indices[batch.sequences[row]] for row in rows]

    def split(output: np.ndarray) -> list[np.ndarray]:
        outputs = batch.split(output)
        return [outputs[row] for row in rows]

    return NetworkBatch(batch.inputs, compared, split)


def compare_with_own(batch: NetworkBatch, outputs: Sequence[np.ndarray], run: Run) -> list[SequenceError]:
    """Compares the outputs for made-up sequences with those of the same network without its roundings.

    Args:
        batch: what ``profile_batch`` returned.
        outputs: the network's outputs, (S, vocabulary or H) for each sequence.
        run: runs the network without its roundings.
    """
    return [
        SequenceError.of(len(ours), ours, theirs, OWN_NETWORK)
        for ours, theirs in zip(outputs, batch.split(run(batch.inputs)), strict=True)
    ]


def compare_sequences(
    run: Run, batches: Sequence[NetworkBatch], sequences: Sequence[ReferenceSequence]
) -> list[SequenceError]:
    """Runs the batches and compares every sequence's output with PyTorch's.

    Returns:
        One error for each sequence that is in a batch; the largest for a sequence that is in several.
    """
    worst: dict[int, float] = {}
    for batch in batches:
        for index, output in zip(batch.sequences, batch.split(run(batch.inputs)), strict=True):
            sequence = sequences[index]
            error = relative_l2(output[sequence.checked], sequence.output)
            worst[index] = float(np.maximum(error, worst.get(index, 0.0)))  # NaN stays NaN
    return [
        SequenceError(
            len(sequences[index].input_ids),
            worst[index],
            float(np.linalg.norm(sequences[index].output.astype(np.float64))),
        )
        for index in sorted(worst)
    ]
