"""What the output of each task means: which scores rank which names, and the answers that predict.py writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_trt.model_files import BertConfig, ModelFolder
from bert_trt.options import FILL_MASK, QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION


@dataclass(frozen=True)
class Ranking:
    """Scores of which the highest is the answer.

    Attributes:
        place: what is answered, in words, such as ``[MASK], token 6``.
        scores: logits, (n,).
        names: what each of them stands for.
    """

    place: str
    scores: np.ndarray
    names: Sequence[str]


class Rankings:
    """Finds the rankings in a task's output.

    Args:
        folder: the model.
        mask_positions: the positions of the mask token in the sequence.
    """

    def __init__(self, folder: ModelFolder, mask_positions: Sequence[int]) -> None:
        self.config: BertConfig = folder.config
        self.mask_positions = mask_positions
        self.names: Sequence[str] = folder.tokens() if mask_positions else self.config.labels

    def of(self, output: np.ndarray) -> list[Ranking]:
        """The rankings of one sequence's output, (R, width); none for vectors, scores and classes that exclude no
        other."""
        if self.config.task == FILL_MASK:
            return [Ranking(f"[MASK], token {row}", output[row], self.names) for row in self.mask_positions]
        if self.config.task == TOKEN_CLASSIFICATION:
            return [Ranking(f"token {row}", scores, self.names) for row, scores in enumerate(output)]
        if self.config.task == QUESTION_ANSWERING:
            tokens = [f"token {row}" for row in range(len(output))]
            return [Ranking(f"the answer's {part}", output[:, i], tokens) for i, part in enumerate(("begin", "end"))]
        if self.config.task == SEQUENCE_CLASSIFICATION and self.config.score_function == "softmax":
            return [Ranking("the sequence", output[0], self.names)]
        return []
