"""The layouts (``--batching``): how the sequences of a batch lie in the tensors, and which tokens attend to which.

``RaggedLayout`` is the packed one as triton_repository.py builds it.

Letters in shapes: B batch, S sequence length, T tokens of all sequences, H hidden size, N heads, D head size.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, SEQUENCE_LENGTHS_NAME
from bert_trt.options import RAGGED
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper

MASKED_SCORE = 1e30  # subtracted from the score of a masked token, whose probability becomes 0


class SingleLayout:
    """One sequence: tensors are (S, H). A leading axis of length 1 would make the build slower.

    Args:
        helper: adds the layers.
        max_positions: P, the rows of the position table.
        max_length: the longest sequence that the network is for; None for ``max_positions``.

    Attributes:
        name: the layout's name for the QkvToContext plugin's field ``layout``.
        ids: input_ids, token_type_ids and position_ids.
        lengths: the attention mask of a padded batch, the cu_seqlens of a packed batch; None for one sequence.
        attention_axes: the leading axes of (B, S, N, D), in a reshape from (S, H).
        flat_axes: the leading axes of (S, H), in a reshape from (B, S, N, D).
        key_axes: one number for each token as the keys of a matrix (S, S) of tokens, in a reshape.
        query_axes: the same as its queries.
        heads_first: the transpose (S, S, N) -> (N, S, S); with padding (B, S, S, N) -> (B, N, S, S).
    """

    name: ClassVar[str] = "single"
    attention_axes: ClassVar[tuple[int, ...]] = (1, -1)
    flat_axes: ClassVar[tuple[int, ...]] = (-1,)
    key_axes: ClassVar[tuple[int, ...]] = (1, -1)
    query_axes: ClassVar[tuple[int, ...]] = (-1, 1)
    heads_first: ClassVar[tuple[int, ...]] = (2, 0, 1)

    def __init__(self, helper: TrtNetworkHelper, max_positions: int, max_length: int | None = None) -> None:
        self.helper = helper
        self.max_positions = max_positions
        self.max_length = max_positions if max_length is None else max_length
        self.ids, self.lengths = self.add_inputs()

    def add_inputs(self) -> tuple[list[trt.ITensor], trt.ITensor | None]:
        """Adds three inputs int32 (1, S); returns them as (S,)."""
        ids = [self.helper.addInput(name, trt.DataType.INT32, (1, -1)) for name in INPUT_NAMES]
        return [self.helper.addReshape(tensor, (-1,), f"{tensor.name}.flat") for tensor in ids], None

    @property
    def max_sequence_length(self) -> int:
        """The QkvToContext plugin's field of that name; 0 where the shape of its input has the length."""
        return 0

    def add_output(self, output: trt.ITensor, name: str, width: int, is_per_sequence: bool) -> None:
        """Marks (S, width) as the output ``name``, fp32 (1, S, width); or (1, width) as it is."""
        shaped = output if is_per_sequence else self.helper.addReshape(output, (1, -1, width), "output")
        self.helper.markOutput(shaped, name)

    def split_heads(self, x: trt.ITensor, num_heads: int, head_size: int, name: str) -> trt.ITensor:
        """(S, H) -> (S, N, D) -> (N, S, D)."""
        return self.helper.addShuffle(x, name, shape=(-1, num_heads, head_size), second_transpose=(1, 0, 2))

    def merge_heads(self, context: trt.ITensor, hidden_size: int, name: str) -> trt.ITensor:
        """(N, S, D) -> (S, N, D) -> (S, H)."""
        return self.helper.addShuffle(context, name, first_transpose=(1, 0, 2), shape=(-1, hidden_size))

    def first_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """(S, H) -> (1, H)."""
        return self.helper.addGather(x, self._number(0, (1,), name), 0, name)

    def mean_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The mean of a sequence's tokens, in fp32: (S, H) -> (1, H)."""
        return self.helper.addMean(self.helper.addCast(x, trt.DataType.FLOAT, f"{name}.fp32"), 0, name)

    def largest_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The largest value of each channel over a sequence's tokens: (S, H) -> (1, H)."""
        return self.helper.addLargest(x, 0, name, keep_axis=True)

    def distances(self) -> trt.ITensor:
        """p_key - p_query + P - 1 for every pair of tokens, int32 (S, S): a row of a table of 2 P - 1 distances."""
        helper, positions = self.helper, self.ids[2]
        shift = self._number(self.max_positions - 1, (1,) * len(positions.shape), "distance.shift")
        shifted = helper.addAdd(positions, shift, "distance.shifted")
        key = helper.addReshape(shifted, self.key_axes, "distance.key")
        query = helper.addReshape(positions, self.query_axes, "distance.query")
        return helper.addDifference(key, query, "distance")

    def spread_bias(self, bias: trt.ITensor, name: str) -> trt.ITensor:
        """A bias of the scores for each head, (S, S, N) -> (N, S, S)."""
        return self.helper.addShuffle(bias, name, first_transpose=self.heads_first)

    def _number(self, value: int, shape: tuple[int, ...], name: str) -> trt.ITensor:
        """An int32 constant."""
        return self.helper.addConstant(np.full(shape, value, np.int32), f"{name}.number", trt.DataType.INT32, shape)

    def additive_mask(self) -> trt.ITensor | None:
        """fp32, to be added to the scores (N, S, S), over which it broadcasts; None without a mask."""
        return None

    def boolean_mask(self) -> trt.ITensor | None:
        """bool (B, 1, S, S), true where the query may attend to the key; None without a mask."""
        return None

    def _additive(self, visible: trt.ITensor, name: str = "mask") -> trt.ITensor:
        """Turns 1 for a visible token into 0, and 0 for a masked token into −1e30."""
        shifted = self.helper.addShift(visible, -1.0, f"{name}.shifted")
        return self.helper.addScale(shifted, MASKED_SCORE, f"{name}.bias")


class PaddedLayout(SingleLayout):
    """Sequences of one padded length: tensors are (B, S, H). The attention mask is 1 for a token, 0 for padding."""

    name = "padded"
    attention_axes = (0, 0)
    flat_axes = (0, 0)
    key_axes = (0, 1, -1)
    query_axes = (0, -1, 1)
    heads_first = (0, 3, 1, 2)

    def add_inputs(self) -> tuple[list[trt.ITensor], trt.ITensor | None]:
        """Adds three inputs and the attention mask, each int32 (B, S)."""
        ids, mask = (
            [self.helper.addInput(name, trt.DataType.INT32, (-1, -1)) for name in names]
            for names in (INPUT_NAMES, (MASK_NAME,))
        )
        return ids, mask[0]

    def add_output(self, output: trt.ITensor, name: str, width: int, is_per_sequence: bool) -> None:
        """Marks the output ``name``, fp32 (B, S, width) or (B, width)."""
        self.helper.markOutput(output, name)

    def split_heads(self, x: trt.ITensor, num_heads: int, head_size: int, name: str) -> trt.ITensor:
        """(B, S, H) -> (B, S, N, D) -> (B, N, S, D)."""
        return self.helper.addShuffle(x, name, shape=(0, 0, num_heads, head_size), second_transpose=(0, 2, 1, 3))

    def merge_heads(self, context: trt.ITensor, hidden_size: int, name: str) -> trt.ITensor:
        """(B, N, S, D) -> (B, S, N, D) -> (B, S, H)."""
        return self.helper.addShuffle(context, name, first_transpose=(0, 2, 1, 3), shape=(0, 0, hidden_size))

    def first_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """(B, S, H) -> (B, H)."""
        return self.helper.addGather(x, self._number(0, (), name), 1, name)

    def mean_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The mean of the real tokens, in fp32: (B, S, H) -> (B, H)."""
        helper, tokens = self.helper, self._real_tokens(name)
        x = helper.addCast(x, trt.DataType.FLOAT, f"{name}.fp32")
        total = helper.addSum(helper.addProduct(x, tokens, f"{name}.real"), 1, f"{name}.sum")  # (B, H)
        return helper.addQuotient(total, helper.addSum(tokens, 1, f"{name}.count"), name)

    def largest_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The largest value of each channel over the real tokens, in fp32: (B, S, H) -> (B, H)."""
        helper = self.helper
        x = helper.addCast(x, trt.DataType.FLOAT, f"{name}.fp32")
        padding = self._additive(self._real_tokens(name), f"{name}.padding")
        return helper.addLargest(helper.addAdd(x, padding, f"{name}.real"), 1, name)

    def _real_tokens(self, name: str) -> trt.ITensor:
        """fp32 (B, S, 1): 1 for a token, 0 for padding."""
        assert self.lengths is not None
        tokens = self.helper.addCast(self.lengths, trt.DataType.FLOAT, f"{name}.tokens.fp32")
        return self.helper.addReshape(tokens, (0, -1, 1), f"{name}.tokens")

    def additive_mask(self) -> trt.ITensor | None:
        """fp32 (B, 1, 1, S)."""
        assert self.lengths is not None
        # exercise 16 begins
        tokens = self.helper.addCast(self.lengths, trt.DataType.FLOAT, f"{MASK_NAME}.fp32")
        return self._additive(self.helper.addReshape(tokens, (0, 1, 1, -1), f"{MASK_NAME}.spread"))
        # exercise 16 ends

    def boolean_mask(self) -> trt.ITensor | None:
        """bool (B, 1, S, S): true if query and key are both tokens, or both padding.

        Padding attends to padding because no row of the mask may be false throughout; its output is not used.
        """
        mask, helper = self.lengths, self.helper
        assert mask is not None
        query = helper.addReshape(mask, (0, 1, -1, 1), f"{mask.name}.query")
        key = helper.addReshape(mask, (0, 1, 1, -1), f"{mask.name}.key")
        return helper.addEqual(query, key, f"{mask.name}.same")


class PackedLayout(SingleLayout):
    """Sequences one after another, without padding: tensors are (T, H), cu_seqlens (B + 1,) the sums of lengths."""

    name = "packed"
    _count: trt.ITensor | None = None

    def add_inputs(self) -> tuple[list[trt.ITensor], trt.ITensor | None]:
        """Adds three inputs int32 (T,) and cu_seqlens int32 (B + 1,)."""
        ids = [self.helper.addInput(name, trt.DataType.INT32, (-1,)) for name in INPUT_NAMES]
        return ids, self.helper.addInput(LENGTHS_NAME, trt.DataType.INT32, (-1,))

    @property
    def max_sequence_length(self) -> int:
        """The QkvToContext plugin's field of that name."""
        return self.max_length

    def add_output(self, output: trt.ITensor, name: str, width: int, is_per_sequence: bool) -> None:
        """Marks the output ``name``, fp32 (T, width) or (B, width)."""
        self.helper.markOutput(output, name)

    def first_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """(T, H) -> (B, H)."""
        assert self.lengths is not None
        return self.helper.addGather(x, self.helper.addWithout(self.lengths, 0, 1, f"{name}.starts"), 0, name)

    def mean_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The mean of each sequence's tokens, in fp32: (T, H) -> (B, H).

        A product with a matrix (B, T) that has 1 where the token belongs to the sequence, divided by the lengths.
        """
        helper, fp32 = self.helper, trt.DataType.FLOAT
        assert self.lengths is not None
        bounds = helper.addCast(self.lengths, fp32, f"{name}.bounds")
        start, end = (
            helper.addReshape(helper.addWithout(bounds, *dropped, f"{name}.{part}"), (-1, 1), f"{name}.{part}.column")
            for part, dropped in (("starts", (0, 1)), ("ends", (1, 0)))
        )  # each (B, 1)
        count = helper.addReshape(self._token_count(), (1, -1), f"{name}.count")  # (1, T): 1 to T
        after_start, after_end = (
            helper.addCast(helper.addLess(bound, count, f"{name}.{part}"), fp32, f"{name}.{part}.fp32")
            for part, bound in (("after_start", start), ("after_end", end))
        )
        members = helper.addDifference(after_start, after_end, f"{name}.members")  # (B, T)
        total = helper.addMatMul(members, helper.addCast(x, fp32, f"{name}.fp32"), f"{name}.sum")  # (B, H)
        return helper.addQuotient(total, helper.addDifference(end, start, f"{name}.lengths"), name)

    def largest_token(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The largest value of each channel over a sequence's tokens: (T, H) -> (B, H).

        After step k, each row has the largest of the 2^k rows up to its own, as far as they are of its sequence; a
        row may be taken twice. At last the row of each sequence's last token has the result.
        """
        helper = self.helper
        assert self.lengths is not None
        row = self._rows(name)
        first = helper.addDifference(row, self.ids[2], f"{name}.first")  # (T,), the sequence's first row
        distance = 1
        while distance < self.max_positions:
            step = f"{name}.up_to_{2 * distance}"
            back = helper.addDifference(row, self._number(distance, (1,), step), f"{step}.back")
            other = helper.addGather(x, helper.addMaximum(back, first, f"{step}.rows"), 0, f"{step}.before")
            x = helper.addMaximum(x, other, step)
            distance *= 2
        end = helper.addWithout(self.lengths, 1, 0, f"{name}.ends")
        last = helper.addDifference(end, self._number(1, (1,), f"{name}.last"), f"{name}.last")
        return helper.addGather(x, last, 0, name)

    def _token_count(self) -> trt.ITensor:
        """fp32 (T,): 1 to T."""
        if self._count is None:
            helper, input_ids = self.helper, self.ids[0]
            ones = helper.addCast(
                helper.addEqual(input_ids, input_ids, "token.true"), trt.DataType.FLOAT, "token.one"
            )
            self._count = helper.addRunningSum(ones, "token.count")
        return self._count

    def additive_mask(self) -> trt.ITensor | None:
        """fp32 (1, T, T)."""
        return self._additive(self.helper.addCast(self._block_diagonal(), trt.DataType.FLOAT, "token.same.fp32"))

    def boolean_mask(self) -> trt.ITensor | None:
        """bool (1, 1, T, T)."""
        return self.helper.addReshape(self._block_diagonal(), (1, 1, 0, -1), "mask")

    def _rows(self, name: str) -> trt.ITensor:
        """int32 (T,): 0 to T - 1."""
        helper = self.helper
        count = helper.addCast(self._token_count(), trt.DataType.INT32, f"{name}.count")
        return helper.addDifference(count, self._number(1, (1,), f"{name}.row"), f"{name}.row")

    def _block_diagonal(self) -> trt.ITensor:
        """The block-diagonal mask, bool (1, T, T): true if two tokens belong to the same sequence.

        The number of a token's sequence is the count of elements of cu_seqlens at or before the token.
        """
        helper, fp32, cu_seqlens = self.helper, trt.DataType.FLOAT, self.lengths
        assert cu_seqlens is not None
        # exercise 17 begins
        column = helper.addReshape(self._token_count(), (-1, 1), "token.column")  # (T, 1): 1 to T
        ends = helper.addCast(helper.addReshape(cu_seqlens, (1, -1), "ends.row"), fp32, "ends.fp32")  # (1, B + 1)
        passed = helper.addCast(helper.addLess(ends, column, "ends.passed"), fp32, "ends.passed.fp32")  # (T, B + 1)
        sequence = helper.addSum(passed, 1, "token.sequence")  # (T,)
        query = helper.addReshape(sequence, (1, -1, 1), "token.sequence.query")
        key = helper.addReshape(sequence, (1, 1, -1), "token.sequence.key")
        return helper.addEqual(query, key, "token.same")
        # exercise 17 ends


class RaggedLayout(PackedLayout):
    """The packed layout as an inference server fills it, with one length for each sequence (docs/serving.md).

    The network makes cu_seqlens and the position ids itself. After the last sequence there may be more tokens, those
    that an earlier batch has left: they are a sequence of their own, whose output nobody reads. The outputs for a
    sequence with more tokens than the position table are not finite; the other sequences do not depend on it.
    """

    _sequence: trt.ITensor  # int32 (T,): the index of each token's sequence; B for the tokens after the last one
    _fits: trt.ITensor  # fp32 (B + 1,): 1 for a sequence that the position table is long enough for, else 0

    def add_inputs(self) -> tuple[list[trt.ITensor], trt.ITensor | None]:
        """Adds two inputs int32 (T,) and the lengths int32 (B,). Returns three ids (T,), and cu_seqlens (B + 1,)."""
        helper, int32, fp32 = self.helper, trt.DataType.INT32, trt.DataType.FLOAT
        self.ids = [helper.addInput(name, int32, (-1,)) for name in INPUT_NAMES[:2]]  # which _token_count reads
        lengths = helper.addInput(SEQUENCE_LENGTHS_NAME, int32, (-1,))
        zero = self._number(0, (1,), "sequence.zero")
        ends = helper.addRunningSum(lengths, "sequence.ends")  # (B,)
        # A token comes after the ends of as many sequences as its own sequence has before it.
        ends_row = helper.addReshape(helper.addCast(ends, fp32, "sequence.ends.fp32"), (1, -1), "sequence.ends.row")
        column = helper.addReshape(self._token_count(), (-1, 1), "token.number")  # (T, 1): 1 to T
        passed = helper.addCast(helper.addLess(ends_row, column, "token.ends"), fp32, "token.ends.fp32")  # (T, B)
        self._sequence = helper.addCast(helper.addSum(passed, 1, "token.passed"), int32, "token.index")
        # The tokens after the last sequence count as one of length 0.
        limit = self._number(self.max_positions + 1, (1,), "sequence.limit")
        fits = helper.addLess(helper.addConcatenation([lengths, zero], "sequence.lengths"), limit, "sequence.fits")
        self._fits = helper.addCast(fits, fp32, "sequence.fits.fp32")
        cu_seqlens = helper.addConcatenation([zero, ends], "sequence.bounds")
        return [*self.ids, self._positions(cu_seqlens)], cu_seqlens

    def add_output(self, output: trt.ITensor, name: str, width: int, is_per_sequence: bool) -> None:
        """Marks the output ``name``, fp32 (T, width) or (B, width)."""
        helper = self.helper
        if is_per_sequence:
            fits = helper.addWithout(self._fits, 0, 1, "output.fits")  # (B,)
        else:
            fits = helper.addGather(self._fits, self._sequence, 0, "output.fits")  # (T,)
        output = helper.addCast(output, trt.DataType.FLOAT, "output.fp32")
        column = helper.addReshape(fits, (-1, 1), "output.fits.column")
        helper.markOutput(helper.addQuotient(output, column, "output.checked"), name)

    def _positions(self, cu_seqlens: trt.ITensor) -> trt.ITensor:
        """int32 (T,): counted from 0 in every sequence, and at most the last row of the position table."""
        helper, name = self.helper, "position"
        row = self._rows(name)
        start = helper.addGather(cu_seqlens, self._sequence, 0, f"{name}.start")
        last = self._number(self.max_positions - 1, (1,), f"{name}.last")
        start = helper.addMaximum(start, helper.addDifference(row, last, f"{name}.earliest"), f"{name}.start.limited")
        return helper.addDifference(row, start, name)


LAYOUTS = {"single": SingleLayout, "padded": PaddedLayout, "packed": PackedLayout, RAGGED: RaggedLayout}
