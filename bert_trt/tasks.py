"""What the output of each task means: which scores rank which names, and the answers that predict.py writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_trt.model_files import BertConfig, ModelFolder
from bert_trt.options import (
    EMBEDDING,
    FILL_MASK,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    AnswerOptions,
)

OUTSIDE = "O"  # the label of tokens that belong to no entity


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


def top_k(scores: np.ndarray, count: int = 10) -> list[int]:
    """Ids of the highest logits, the highest first; equal logits in the order of ids. NaN comes last."""
    if count < len(scores) and not np.isnan(scores).any():
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])  # at least ``count``
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")[:count]
    return candidates[order].tolist()


def describe_words(scores: np.ndarray, ids: Sequence[int], tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Word, id and probability of each of ``ids``, by the softmax of ``scores``, (vocabulary,), in fp64."""
    probabilities = softmax(scores)
    return [{"word": tokens[number], "id": number, "probability": float(probabilities[number])} for number in ids]


def softmax(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis, in fp64."""
    logits = logits.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


# --- answers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Window:
    """A tokenised text, or pair of texts; or a part of it, where a long context is read in several windows.

    Attributes:
        ids: token ids, int32 (S,).
        types: token types, int32 (S,).
        encoding: the tokenizers library's encoding, which knows characters and words.
    """

    ids: np.ndarray
    types: np.ndarray
    encoding: Any


class NotFiniteError(Exception):
    """The network's output has values that are not finite."""


class Answers:
    """Makes a task's answers of the network's output.

    Args:
        folder: the model.
        tokenizer: the model's, from transformers.
        options: how the output becomes answers.
    """

    def __init__(self, folder: ModelFolder, tokenizer: Any, options: AnswerOptions) -> None:
        self.config = folder.config
        self.tokenizer = tokenizer
        self.options = options
        self.tokens: Sequence[str] = folder.tokens() if folder.config.has_head else ()

    def of(
        self, texts: Sequence[str], windows: Sequence[Window], outputs: Sequence[np.ndarray], is_finite: bool = False
    ) -> Any:
        """The answer for one line.

        Args:
            texts: the line's text, or its two texts.
            windows: the windows into which it was tokenised; one, but for question answering.
            outputs: the network's output for each, (R, width): R is S, or 1 where the task has one row for a
                sequence.
            is_finite: whether the outputs are known to be finite; otherwise they are looked at.

        Returns:
            An object of JSON types; for an embedding float32 (width,).

        Raises:
            NotFiniteError: a value on which the answer depends is not finite.
        """
        if self.config.task == FILL_MASK:
            return self._words(outputs[0][windows[0].ids == self.tokenizer.mask_token_id])
        if not is_finite and not all(np.isfinite(output).all() for output in outputs):
            raise NotFiniteError
        if self.config.task == EMBEDDING:
            return outputs[0][0].astype(np.float32)
        if self.config.task == SEQUENCE_CLASSIFICATION:
            return self._classes(outputs[0][0])
        if self.config.task == TOKEN_CLASSIFICATION:
            entities = self._entities(texts[0], windows[0], outputs[0])
            return self._groups(entities) if self.options.aggregate else entities
        return self._span(texts[1], windows, outputs)

    def _words(self, masked: np.ndarray) -> list[list[dict[str, Any]]]:
        """The best words for each mask token, from their logits (number of them, vocabulary)."""
        if not np.isfinite(masked).all():
            raise NotFiniteError
        return [describe_words(scores, top_k(scores, self.options.top_k), self.tokens) for scores in masked]

    def _classes(self, logits: np.ndarray) -> dict[str, Any]:
        """The best label with its score, and the scores of all, the best first. One label has just a score."""
        scores = logits.astype(np.float64)
        if self.config.score_function == "softmax":
            scores = softmax(logits)
        elif self.config.score_function == "sigmoid":
            scores = 0.5 * (1 + np.tanh(scores / 2))  # 1 / (1 + exp(-x)), which overflows
        order = np.argsort(-scores, kind="stable")
        ranked = [{"label": self.config.labels[number], "score": float(scores[number])} for number in order]
        return {**ranked[0], "scores": ranked}

    def _entities(self, text: str, window: Window, logits: np.ndarray) -> list[dict[str, Any]]:
        """The labels of tokens other than "O", as transformers' pipeline for token classification gives them.

        Args:
            text: the text.
            window: its tokens.
            logits: (S, labels).
        """
        encoding, scores, best = window.encoding, softmax(logits), logits.argmax(axis=-1)
        words = self.tokenizer.convert_ids_to_tokens(window.ids.tolist())
        entities = []
        for index, (word, (start, end)) in enumerate(zip(words, encoding.offsets, strict=True)):
            label = self.config.labels[best[index]]
            if encoding.special_tokens_mask[index]:
                continue
            unknown = window.ids[index] == self.tokenizer.unk_token_id
            entities.append(
                {
                    "entity": label,
                    "score": float(scores[index, best[index]]),
                    "index": index,
                    "word": text[start:end] if unknown else word,
                    "start": start,
                    "end": end,
                }
            )
        return entities if self.options.aggregate else [one for one in entities if one["entity"] != OUTSIDE]

    def _groups(self, entities: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Joins consecutive tokens of one entity, as transformers' aggregation strategy "simple" does."""
        groups: list[list[dict[str, Any]]] = []
        last_kind = None
        for entity in entities:
            begins, kind = _tag(entity["entity"])
            if not groups or begins or kind != last_kind:
                groups.append([])
            groups[-1].append(entity)
            last_kind = kind
        joined = [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([entity["score"] for entity in group])),
                "word": self.tokenizer.convert_tokens_to_string([entity["word"] for entity in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]
        return [group for group in joined if group["entity_group"] != OUTSIDE]

    def _span(self, context: str, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> dict[str, Any]:
        """The best span of the context, as transformers' pipeline for question answering chose it.

        In each window, the probabilities of the answer's begin and end are softmaxes over [CLS] and the context. A
        span's score is their product; that of no answer is the product for [CLS], the smallest of all windows.

        Args:
            context: the context.
            windows: windows of question and context.
            outputs: the logits of begin and end in each window, (S, 2).
        """
        best, best_score, no_answer = (windows[0], 0, 0), -np.inf, np.inf
        for window, logits in zip(windows, outputs, strict=True):
            in_context = np.array(window.encoding.sequence_ids) == 1  # (S,); None for special tokens
            allowed = in_context.copy()
            allowed[0] = True  # [CLS]
            # (S, 2): logarithms of the probabilities, which cannot underflow
            scores = np.where(allowed[:, None], logits.astype(np.float64), -np.inf)
            scores -= scores.max(axis=0)
            scores -= np.log(np.exp(scores).sum(axis=0))
            no_answer = min(no_answer, scores[0].sum())
            scores[~in_context] = -np.inf
            begin, end, score = best_span(scores[:, 0], scores[:, 1], self.options.max_answer)
            if score > best_score:
                best, best_score = (window, begin, end), score
        start, end = _characters(*best)
        answer = {"answer": context[start:end], "start": start, "end": end, "score": float(np.exp(best_score))}
        if self.options.no_answer and no_answer > best_score:
            answer = {"answer": "", "start": 0, "end": 0, "score": float(np.exp(no_answer))}
        return {**answer, "no_answer_score": float(np.exp(no_answer))}


def best_span(begins: np.ndarray, ends: np.ndarray, longest: int) -> tuple[int, int, float]:
    """The span of at most ``longest`` tokens for which the sum of two scores is the largest.

    Args:
        begins: the score of each token as the first, (S,); -inf where a span cannot begin.
        ends: the score of each token as the last, (S,).
        longest: the most tokens of a span.

    Returns:
        The first and the last token, and the sum. Of equal sums the first one counts.
    """
    length = min(longest, len(begins))
    padded = np.concatenate([ends, np.full(length - 1, -np.inf)])
    sums = begins[:, None] + np.lib.stride_tricks.sliding_window_view(padded, length)  # (S, length)
    begin, distance = np.unravel_index(sums.argmax(), sums.shape)
    return int(begin), int(begin + distance), float(sums[begin, distance])


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the entity's kind: B-LOC, I-LOC, or just LOC."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _characters(window: Window, begin: int, end: int) -> tuple[int, int]:
    """The characters of a span, widened to whole words where the tokenizer knows words, as transformers does it."""
    encoding = window.encoding
    try:
        start, _ = encoding.word_to_chars(encoding.token_to_word(begin), 1)
        _, stop = encoding.word_to_chars(encoding.token_to_word(end), 1)
    except TypeError:  # a token that belongs to no word
        start, stop = encoding.offsets[begin][0], encoding.offsets[end][1]
    return start, stop
