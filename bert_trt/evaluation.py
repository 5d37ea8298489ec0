"""How far the answers of a network are from those of the fp32 network, on sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bert_trt.calibration_data import batch_inputs, batches
from bert_trt.comparison import top_k
from bert_trt.model_files import ModelFolder
from bert_trt.network import DefinedNetwork
from bert_trt.network_runner import NetworkRunner
from bert_trt.quantization import Quantization
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog

SPREADING_PRIME = 7919  # beyond any length, so that no length divides it

Assemble = Callable[..., DefinedNetwork]  # of the signature of builder.assemble, which no library imports


def best_device() -> str:
    """CUDA where there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class OutputChange:
    """How far answers are from those of the fp32 network.

    Attributes:
        sentences: how many were compared.
        rel_l2: relative L2 error over all outputs together; infinite if one of them is not finite.
        cosine: mean cosine similarity of a token's output to fp32's.
        first_word_same: share of sentences whose best word for [MASK] is the same; None without a head.
        ten_best_same: how many of the ten best words are the same, mean; None without a head.
    """

    sentences: int
    rel_l2: float
    cosine: float
    first_word_same: float | None
    ten_best_same: float | None


class Evaluation:
    """Compares networks with the fp32 one on sentences. One word of each is [MASK], if the model has a head.

    Args:
        folder: the model.
        sentences: what to compare on.
        mask_id: the id of [MASK]; None leaves the sentences as they are.
        assemble: ``builder.assemble``.
        log: for TensorRT's messages.
        device: "cpu" or "cuda"; default: CUDA where there is a GPU.
    """

    def __init__(
        self,
        folder: ModelFolder,
        sentences: Sequence[Sentence],
        mask_id: int | None,
        assemble: Assemble,
        log: TrtLog,
        device: str | None = None,
    ) -> None:
        self.folder = folder
        self.mask_id = mask_id
        self.device = device or best_device()
        self._assemble = assemble
        self._log = log
        self._batches = batches([hide_word(sentence, mask_id) for sentence in sentences])
        self._reference = self.run("fp32", None)

    def run(self, precision: str, quantization: Quantization | None) -> list[torch.Tensor]:
        """The outputs of one network, for each batch fp32 (B, S, vocabulary or H)."""
        made = self._assemble(self.folder, self._log, precision, batching="padded", quantization=quantization)
        runner = NetworkRunner(made.network, self.device, contents=made.contents)
        name = self.folder.config.output_name
        return [runner.run(batch_inputs(batch))[name] for batch in self._batches]

    def measure(self, precision: str, quantization: Quantization | None) -> OutputChange:
        """How far a network's answers are from those in fp32."""
        return self.compare(self.run(precision, quantization))

    def compare(self, outputs: Sequence[torch.Tensor]) -> OutputChange:
        """How far these outputs are from those in fp32."""
        difference = square = cosine = 0.0
        tokens = 0
        first, ten = [], []
        for batch, ours, theirs in zip(self._batches, outputs, self._reference, strict=True):
            difference += float((ours - theirs).square().sum(dtype=torch.float64))
            square += float(theirs.square().sum(dtype=torch.float64))
            cosine += float(torch.cosine_similarity(ours, theirs, dim=-1).sum())
            tokens += theirs.shape[0] * theirs.shape[1]
            if self.mask_id is not None:
                for row, sentence in enumerate(batch):
                    position = int(np.flatnonzero(sentence.ids == self.mask_id)[0])
                    a, b = (top_k(x[row, position].cpu().numpy()) for x in (ours, theirs))
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
    """The sentence with [MASK] in place of one token, a different place in each line; as it is if it has one."""
    if mask_id is None or mask_id in sentence.ids or len(sentence.ids) < 3:
        return sentence
    ids = sentence.ids.copy()
    ids[1 + sentence.line * SPREADING_PRIME % (len(ids) - 2)] = mask_id  # neither [CLS] nor [SEP]
    return replace(sentence, ids=ids)
