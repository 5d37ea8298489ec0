"""``Evaluation`` measures the error of a network: its outputs for sentences against those of the fp32 network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bert_trt.calibration_data import batch_inputs, batches, num_tokens, real_tokens
from bert_trt.model_files import ModelFolder
from bert_trt.network import Assemble
from bert_trt.network_runner import NetworkRunner, best_device
from bert_trt.quantization import Quantization
from bert_trt.sentences import Sentence
from bert_trt.tasks import top_k
from bert_trt.tensorrt_log import TrtLog

SPREADING_PRIME = 7919  # larger than any sequence length, so that no length divides it


@dataclass(frozen=True)
class OutputChange:
    """The difference between outputs and those of the fp32 network. The names of the attributes are keys of --json.

    Attributes:
        sentences: number of sentences that were compared.
        rel_l2: relative L2 error over all outputs together; infinite if one of them is not finite.
        cosine: mean cosine similarity of a token's or a sequence's output to fp32's.
        first_word_same: share of sentences with the same top-1 prediction for [MASK]; None without a head.
        ten_best_same: mean number of common words in the top-10 predictions; None without a head.
    """

    sentences: int
    rel_l2: float
    cosine: float
    first_word_same: float | None
    ten_best_same: float | None


class Evaluation:
    """Compares networks with the fp32 network. If the model has a head, one token of each sentence becomes [MASK].

    Args:
        folder: the model.
        sentences: the sentences to compare on.
        mask_id: the id of [MASK]; None leaves the sentences as they are.
        assemble: ``builder.assemble``.
        log: for TensorRT's messages.
        device: "cpu" or "cuda"; default: CUDA where there is a GPU.
        advance: is told the number of tokens of each batch that the fp32 network was run on.
    """

    def __init__(
        self,
        folder: ModelFolder,
        sentences: Sequence[Sentence],
        mask_id: int | None,
        assemble: Assemble,
        log: TrtLog,
        device: str | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.folder = folder
        self.mask_id = mask_id
        self.device = device or best_device()
        self._assemble = assemble
        self._log = log
        self._batches = batches([hide_word(sentence, mask_id) for sentence in sentences])
        self._reference = list(self.run("fp32", None, advance))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all sentences."""
        return sum(map(num_tokens, self._batches))

    def run(
        self, precision: str, quantization: Quantization | None, advance: Callable[[int], None] | None = None
    ) -> Iterator[torch.Tensor]:
        """Runs a network; yields its output for each batch, fp32 (B, S, width), padding included, or (B, width)."""
        network = self._assemble(self.folder, self._log, precision, batching="padded", quantization=quantization)
        runner = NetworkRunner(network.network, self.device, contents=network.contents)
        name = self.folder.config.output_name
        for batch in self._batches:
            yield runner.run(batch_inputs(batch))[name]
            if advance is not None:
                advance(num_tokens(batch))

    def measure(
        self, precision: str, quantization: Quantization | None, advance: Callable[[int], None] | None = None
    ) -> OutputChange:
        """Runs a network and compares its outputs with those of the fp32 network."""
        return self.compare(self.run(precision, quantization, advance))

    def compare(self, outputs: Iterable[torch.Tensor]) -> OutputChange:
        """Compares outputs, (B, S, width) or (B, width) for each batch, with those of the fp32 network."""
        difference = square = cosine = 0.0
        tokens = 0
        first, ten = [], []
        for batch, our_rows, their_rows in zip(self._batches, outputs, self._reference, strict=True):
            ours, theirs = our_rows, their_rows  # (B, width) where the task has one row for a sequence
            if theirs.ndim > 2:
                is_real = torch.from_numpy(real_tokens(batch).astype(bool)).to(theirs.device)  # (B, S)
                ours, theirs = our_rows[is_real], their_rows[is_real]  # (T, width), without the padding
            difference += float((ours - theirs).square().sum(dtype=torch.float64))
            square += float(theirs.square().sum(dtype=torch.float64))
            cosine += float(torch.cosine_similarity(ours, theirs, dim=-1).sum())
            tokens += len(theirs)
            if self.mask_id is not None:
                for row, sentence in enumerate(batch):
                    position = int(np.flatnonzero(sentence.ids == self.mask_id)[0])
                    a, b = (top_k(x[row, position].cpu().numpy()) for x in (our_rows, their_rows))
                    first.append(a[0] == b[0])
                    ten.append(len({*a} & {*b}))
        count = sum(map(len, self._batches))
        masked = self.mask_id is not None
        return OutputChange(
            count,
            (difference / square) ** 0.5 if math.isfinite(difference) else math.inf,  # a NaN could not be ranked
            cosine / tokens,
            sum(first) / count if masked else None,
            sum(ten) / count if masked else None,
        )


def hide_word(sentence: Sentence, mask_id: int | None) -> Sentence:
    """The sentence with [MASK] in place of one token, at a position that depends on the line number. A sentence that
    has a [MASK] already, or no token besides [CLS] and [SEP], is returned unchanged."""
    if mask_id is None or mask_id in sentence.ids or len(sentence.ids) < 3:
        return sentence
    ids = sentence.ids.copy()
    ids[1 + sentence.line * SPREADING_PRIME % (len(ids) - 2)] = mask_id  # neither [CLS] nor [SEP]
    return replace(sentence, ids=ids)
