"""The layouts (``--batching``): how the sequences of a batch lie in the tensors, and which tokens attend to which.

Letters in shapes: B batch, S sequence length, T tokens of all sequences, H hidden size, N heads, D head size.
"""

from __future__ import annotations

from typing import ClassVar

from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper

MASKED_SCORE = 1e30  # subtracted from the score of a masked token, whose probability becomes 0


class SingleLayout:
    """One sequence: tensors are (S, H). A leading axis of length 1 would make the build slower.

    Attributes:
        name: the layout's name for ``--batching`` and for the QkvToContext plugin's field ``layout``.
        ids: input_ids, token_type_ids and position_ids.
        lengths: the attention mask of a padded batch, the cu_seqlens of a packed batch; None for one sequence.
        attention_axes: the leading axes of (B, S, N, D), in a reshape from (S, H).
        flat_axes: the leading axes of (S, H), in a reshape from (B, S, N, D).
    """

    name: ClassVar[str] = "single"
    attention_axes: ClassVar[tuple[int, ...]] = (1, -1)
    flat_axes: ClassVar[tuple[int, ...]] = (-1,)

    def __init__(self, helper: TrtNetworkHelper) -> None:
        self.helper = helper
        self.ids, self.lengths = self.add_inputs()

    def add_inputs(self) -> tuple[list[trt.ITensor], trt.ITensor | None]:
        """Adds three inputs int32 (1, S); returns them as (S,)."""
        ids = [self.helper.addInput(name, trt.DataType.INT32, (1, -1)) for name in INPUT_NAMES]
        return [self.helper.addReshape(tensor, (-1,), f"{tensor.name}.flat") for tensor in ids], None

    def add_output(self, output: trt.ITensor, name: str, width: int) -> None:
        """Marks (S, width) as the output ``name``, fp32 (1, S, width)."""
        self.helper.markOutput(self.helper.addReshape(output, (1, -1, width), "output"), name)

    def split_heads(self, x: trt.ITensor, num_heads: int, head_size: int, name: str) -> trt.ITensor:
        """(S, H) -> (S, N, D) -> (N, S, D)."""
        return self.helper.addShuffle(x, name, shape=(-1, num_heads, head_size), second_transpose=(1, 0, 2))

    def merge_heads(self, context: trt.ITensor, hidden_size: int, name: str) -> trt.ITensor:
        """(N, S, D) -> (S, N, D) -> (S, H)."""
        return self.helper.addShuffle(context, name, first_transpose=(1, 0, 2), shape=(-1, hidden_size))

    def additive_mask(self) -> trt.ITensor | None:
        """fp32, to be added to the scores (N, S, S), over which it broadcasts; None without a mask."""
        return None

    def boolean_mask(self) -> trt.ITensor | None:
        """bool (B, 1, S, S), true where the query may attend to the key; None without a mask."""
        return None

    def _additive(self, visible: trt.ITensor) -> trt.ITensor:
        """Turns 1 for a visible token into 0, and 0 for a masked token into −1e30."""
        return self.helper.addScale(self.helper.addShift(visible, -1.0, "mask.shifted"), MASKED_SCORE, "mask.bias")


class PaddedLayout(SingleLayout):
    """Sequences of one padded length: tensors are (B, S, H). The attention mask is 1 for a token, 0 for padding."""

    name = "padded"
    attention_axes = (0, 0)
    flat_axes = (0, 0)

    def add_inputs(self) -> tuple[list[trt.ITensor], trt.ITensor | None]:
        """Adds three inputs and the attention mask, each int32 (B, S)."""
        ids, mask = (
            [self.helper.addInput(name, trt.DataType.INT32, (-1, -1)) for name in names]
            for names in (INPUT_NAMES, (MASK_NAME,))
        )
        return ids, mask[0]

    def add_output(self, output: trt.ITensor, name: str, width: int) -> None:
        """Marks the output ``name``, fp32 (B, S, width)."""
        self.helper.markOutput(output, name)

    def split_heads(self, x: trt.ITensor, num_heads: int, head_size: int, name: str) -> trt.ITensor:
        """(B, S, H) -> (B, S, N, D) -> (B, N, S, D)."""
        return self.helper.addShuffle(x, name, shape=(0, 0, num_heads, head_size), second_transpose=(0, 2, 1, 3))

    def merge_heads(self, context: trt.ITensor, hidden_size: int, name: str) -> trt.ITensor:
        """(B, N, S, D) -> (B, S, N, D) -> (B, S, H)."""
        return self.helper.addShuffle(context, name, first_transpose=(0, 2, 1, 3), shape=(0, 0, hidden_size))

    def additive_mask(self) -> trt.ITensor | None:
        """fp32 (B, 1, 1, S)."""
        assert self.lengths is not None
        tokens = self.helper.addCast(self.lengths, trt.DataType.FLOAT, f"{MASK_NAME}.fp32")
        return self._additive(self.helper.addReshape(tokens, (0, 1, 1, -1), f"{MASK_NAME}.spread"))

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

    def add_inputs(self) -> tuple[list[trt.ITensor], trt.ITensor | None]:
        """Adds three inputs int32 (T,) and cu_seqlens int32 (B + 1,)."""
        ids = [self.helper.addInput(name, trt.DataType.INT32, (-1,)) for name in INPUT_NAMES]
        return ids, self.helper.addInput(LENGTHS_NAME, trt.DataType.INT32, (-1,))

    def add_output(self, output: trt.ITensor, name: str, width: int) -> None:
        """Marks the output ``name``, fp32 (T, width)."""
        self.helper.markOutput(output, name)

    def additive_mask(self) -> trt.ITensor | None:
        """fp32 (1, T, T)."""
        return self._additive(self.helper.addCast(self._block_diagonal(), trt.DataType.FLOAT, "token.same.fp32"))

    def boolean_mask(self) -> trt.ITensor | None:
        """bool (1, 1, T, T)."""
        return self.helper.addReshape(self._block_diagonal(), (1, 1, 0, -1), "mask")

    def _block_diagonal(self) -> trt.ITensor:
        """The block-diagonal mask, bool (1, T, T): true if two tokens belong to the same sequence.

        The number of a token's sequence is the count of elements of cu_seqlens at or before the token.
        """
        helper, fp32, input_ids, cu_seqlens = self.helper, trt.DataType.FLOAT, self.ids[0], self.lengths
        assert cu_seqlens is not None
        ones = helper.addCast(helper.addEqual(input_ids, input_ids, "token.true"), fp32, "token.one")
        count = helper.addRunningSum(ones, "token.count")
        column = helper.addReshape(count, (-1, 1), "token.column")  # (T, 1): 1 to T
        ends = helper.addCast(helper.addReshape(cu_seqlens, (1, -1), "ends.row"), fp32, "ends.fp32")  # (1, B + 1)
        passed = helper.addCast(helper.addLess(ends, column, "ends.passed"), fp32, "ends.passed.fp32")  # (T, B + 1)
        sequence = helper.addSum(passed, 1, "token.sequence")  # (T,)
        query = helper.addReshape(sequence, (1, -1, 1), "token.sequence.query")
        key = helper.addReshape(sequence, (1, 1, -1), "token.sequence.key")
        return helper.addEqual(query, key, "token.same")


LAYOUTS = {layout.name: layout for layout in (SingleLayout, PaddedLayout, PackedLayout)}
