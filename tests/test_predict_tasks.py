"""predict.py's answers are those of Hugging Face's own model, tokenizer and pipeline, for every task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import InProcess
from hypothesis import given
from hypothesis import strategies as st
from random_families import make_family_checkpoint
from transformers import AutoTokenizer, pipeline

import model2onnx
import predict
from bert_trt.console import UserError
from bert_trt.corpus_actor import Job, ShardPredictor
from bert_trt.model_files import ModelFolder
from bert_trt.options import (
    EMBEDDING,
    FILL_MASK,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    AnswerOptions,
    Columns,
    CorpusOptions,
    SequenceRange,
)
from bert_trt.prediction import Source, Tokenization, predict_file
from bert_trt.pytorch_network import PyTorchNetwork
from bert_trt.records import Record
from bert_trt.shards import split_corpus
from bert_trt.tasks import Answers, NotFiniteError, Window, best_span, softmax, top_k
from builder import assemble

TEXTS = [
    "the tower of london",
    "Paris, Lyon , nice: the capital of france contains a tower!",
    "a",
    "rome ROME r o m e",
    "xyz 巴黎 café 😀 and what is not in the vocabulary",
    "the capital , the capital , the capital of the capital of rome .",
]
PAIRS = [
    ("what is the capital of france", "paris is the capital of france , london is not"),
    ("tower ?", "the eiffel tower is in paris 😀 . rome has none , nice and lyon neither"),
    ("a b c", "d e"),
    ("where", "Lyon"),
]
TAGS = {0: "O", 1: "B-LOC", 2: "I-LOC", 3: "B-PER", 4: "I-PER", 5: "MISC"}
NAMES = {"id2label": TAGS, "label2id": {name: number for number, name in TAGS.items()}}
Made = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """Exports random checkpoints, each once: checkpoint and folder."""
    done: dict[tuple[str, str, str], tuple[Path, Path]] = {}
    model2onnx.quiet_libraries()

    def make(family: str, task: str, **sizes: Any) -> tuple[Path, Path]:
        key = (family, task, repr(sizes))
        if key not in done:
            base = tmp_path_factory.mktemp("made")
            make_family_checkpoint(base / "checkpoint", family, task, **sizes)
            pooling = "mean" if task == EMBEDDING else None
            model2onnx.export(str(base / "checkpoint"), None, base / "model", task=task, pooling=pooling)
            done[key] = base / "checkpoint", base / "model"
        return done[key]

    return make


@pytest.fixture
def answers(tmp_path: Path, in_process: InProcess):
    """Runs predict.py on lines of text or on objects; the records of its output."""

    def run(folder: Path, lines: list[Any], *arguments: str, name: str = "answers.jsonl") -> list[dict[str, Any]]:
        is_text = isinstance(lines[0], str)
        source = tmp_path / ("lines.txt" if is_text else "lines.jsonl")
        source.write_text("".join((one if is_text else json.dumps(one)) + "\n" for one in lines), encoding="utf-8")
        ended = in_process(predict.main, folder, source, "--out", tmp_path / name, *arguments)
        assert ended.code == 0, ended.err
        return [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]

    return run


def hugging_face(name: str, checkpoint: Path, **options: Any) -> Any:
    """The pipeline of that name for a checkpoint."""
    classes = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "fill-mask": transformers.AutoModelForMaskedLM,
    }
    model = classes[name].from_pretrained(checkpoint, attn_implementation="eager")
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    make: Any = pipeline
    return make(name, model=model, tokenizer=tokenizer, device="cpu", **options)


def check_same(found: Any, expected: Any) -> None:
    """Compares objects of JSON types; numbers may differ by rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            check_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, float | np.floating):
        assert found == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    else:
        assert found == expected


# --- words ----------------------------------------------------------------------------------------------------


def test_words_of_another_family(made, answers):
    checkpoint, folder = made("roberta", FILL_MASK)
    lines = [f"the {'<mask>'} of france", "<mask> <mask>", "a\ttab <mask>"]
    reference = hugging_face("fill-mask", checkpoint, top_k=10)
    for record, line in zip(answers(folder, lines), lines, strict=True):
        expected = reference(line)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert record["text"] == line
        for words, others in zip(record["prediction"], expected, strict=True):
            assert [word["id"] for word in words] == [other["token"] for other in others]
            check_same([word["probability"] for word in words], [other["score"] for other in others])


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, np.nan, np.inf]), min_size=1, max_size=30),
    count=st.integers(1, 12),
)
def test_top_k_is_a_stable_sort(scores, count):
    values = np.array(scores, np.float32)
    assert top_k(values, count) == np.argsort(-values, kind="stable")[:count].tolist()


# --- labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("labels", [3, 1])
def test_labels_of_texts_and_pairs(made, answers, family, labels):
    checkpoint, folder = made(family, SEQUENCE_CLASSIFICATION, num_labels=labels)
    reference = hugging_face("text-classification", checkpoint, top_k=None)
    lines = [*TEXTS, *("\t".join(pair) for pair in PAIRS)]
    inputs = [*TEXTS, *({"text": text, "text_pair": pair} for text, pair in PAIRS)]
    for record, one in zip(answers(folder, lines), inputs, strict=True):
        expected = reference(one)
        expected = expected[0] if isinstance(expected[0], list) else expected
        check_same(record["prediction"], {**expected[0], "scores": expected})
        assert {key: record[key] for key in ("text", "text_pair") if key in record} == (
            one if isinstance(one, dict) else {"text": one}
        )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("softmax", lambda x: np.exp(x) / np.exp(x).sum()),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("none", lambda x: x),
    ],
)
def test_score_functions(function, expected):
    answers = object.__new__(Answers)
    config: Any = SimpleNamespace(score_function=function, labels=("a", "b", "a"))
    answers.config = config
    logits = np.array([-2.0, 3.0, 0.5], np.float32)
    found = answers._classes(logits)
    scores = expected(logits.astype(np.float64))
    assert (found["label"], found["score"]) == ("b", pytest.approx(scores[1]))
    assert [(one["label"], one["score"]) for one in found["scores"]] == [
        ("b", pytest.approx(scores[1])),
        ("a", pytest.approx(scores[2])),
        ("a", pytest.approx(scores[0])),
    ]
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite([one["score"] for one in answers._classes(np.array([-1e4, 1e4, 0]))["scores"]]).all()


# --- entities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("aggregate", [True, False])
def test_entities(made, answers, family, aggregate):
    checkpoint, folder = made(family, TOKEN_CLASSIFICATION, **NAMES)
    strategy = "simple" if aggregate else "none"
    reference = hugging_face("token-classification", checkpoint, aggregation_strategy=strategy)
    records = answers(folder, TEXTS, *(["--aggregate"] if aggregate else []))
    count = 0
    for record, text in zip(records, TEXTS, strict=True):
        expected = reference(text)
        check_same(record["prediction"], expected)
        count += len(expected)
    assert count > len(TEXTS)


# --- answers to questions -------------------------------------------------------------------------------------


class BruteForce:
    """Every span of every window of a context, from the logits of transformers' own model."""

    def __init__(self, checkpoint: Path) -> None:
        loaded: Any = transformers.AutoModelForQuestionAnswering
        self.model = loaded.from_pretrained(checkpoint, attn_implementation="eager").eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)

    def answer(self, question: str, context: str, longest: int = 30, **windows: Any) -> dict[str, Any]:
        encoded = self.tokenizer(question, context, return_overflowing_tokens=True, **windows)
        best: tuple[Any, ...] = (-1.0,)
        no_answer = np.inf
        for index, ids in enumerate(encoded["input_ids"]):
            inputs = {"input_ids": torch.tensor([ids])}
            if "token_type_ids" in encoded:
                inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][index]])
            with torch.inference_mode():
                result = self.model(**inputs)
            in_context = [sequence == 1 for sequence in encoded.sequence_ids(index)]
            begin, end = (
                self.probabilities(logits[0].double().numpy(), in_context)
                for logits in (result.start_logits, result.end_logits)
            )
            no_answer = min(no_answer, begin[0] * end[0])
            for first in range(len(ids)):
                for last in range(first, min(first + longest, len(ids))):
                    score = begin[first] * end[last]
                    if in_context[first] and in_context[last] and score > best[0]:
                        words = (encoded.token_to_word(index, first), encoded.token_to_word(index, last))
                        best = (
                            score,
                            encoded.word_to_chars(index, words[0], 1).start,
                            encoded.word_to_chars(index, words[1], 1).end,
                        )
        score, start, end = best
        return {
            "answer": context[start:end],
            "start": start,
            "end": end,
            "score": score,
            "no_answer_score": no_answer,
        }

    @staticmethod
    def probabilities(logits: np.ndarray, in_context: list[bool]) -> np.ndarray:
        chosen = np.array([True, *in_context[1:]])
        exponentials = np.where(chosen, np.exp(logits - logits[chosen].max()), 0)
        return exponentials / exponentials.sum()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_best_span(made, answers, family):
    checkpoint, folder = made(family, QUESTION_ANSWERING)
    reference = BruteForce(checkpoint)
    lines = ["\t".join(pair) for pair in PAIRS]
    for longest in (30, 2):
        records = answers(folder, lines, *(["--max-answer", "2"] if longest == 2 else []))
        for record, (question, context) in zip(records, PAIRS, strict=True):
            assert (record["question"], record["context"]) == (question, context)
            check_same(record["prediction"], reference.answer(question, context, longest))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_windows_of_a_long_context(made, answers, family):
    checkpoint, folder = made(family, QUESTION_ANSWERING)
    reference = BruteForce(checkpoint)
    context = " ".join(TEXTS[:4] * 4)
    questions = ["what is the capital", "a", "the tower of london in the capital of france , paris"]
    lines = [{"question": question, "context": context, "id": question} for question in questions]
    (long, *_) = answers(folder, [*lines, {"question": "a", "context": "b"}])
    assert "tokens, but the position table has 40; shorten the text, or add --truncate or --stride N" in long["error"]
    for stride in (3, 12):
        records = answers(folder, lines, "--stride", str(stride))
        for record, question in zip(records, questions, strict=True):
            assert record["id"] == question
            expected = reference.answer(question, context, truncation="only_second", max_length=40, stride=stride)
            check_same(record["prediction"], expected)
    for record, question in zip(answers(folder, lines, "--truncate"), questions, strict=True):
        encoded = reference.tokenizer(question, context, truncation="only_second", max_length=40)
        assert len(encoded["input_ids"]) == 40
        seen = context[: encoded.token_to_chars(len(encoded["input_ids"]) - 2).end]
        expected = reference.answer(question, seen)
        assert record["prediction"]["start"] == expected["start"]
        check_same(record["prediction"]["score"], expected["score"])


def test_a_question_that_leaves_no_room(made, answers):
    _, folder = made("bert", QUESTION_ANSWERING)
    context = "the tower of london " * 12
    lines = [f"{'a ' * count}\t{context}" for count in (3, 20, 33, 60)]
    strided = answers(folder, lines, "--stride", "20")
    assert ["error" in record for record in strided] == [False, True, True, True]
    assert (
        "the question has 20 tokens, which leaves 17 of 40 for the context; shorten it, or lower"
        in strided[1]["error"]
    )
    assert "leaves 0 of 40" in strided[3]["error"]
    cut = answers(folder, lines, "--truncate")
    assert ["error" in record for record in cut] == [False, False, False, True]


def test_windows_are_no_longer_than_the_plan_takes(made):
    checkpoint, path = made("bert", QUESTION_ANSWERING)
    tokenization = Tokenization(ModelFolder(path), SequenceRange(1, 16, 24), AnswerOptions(stride=4))
    context = " ".join(TEXTS[:4] * 4)
    (windows,) = tokenization.tokenise([Record(1, ("what is it", context))])
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    options: dict[str, Any] = {"truncation": "only_second", "max_length": 24, "stride": 4}
    expected = tokenizer("what is it", context, return_overflowing_tokens=True, **options)["input_ids"]
    assert [window.ids.tolist() for window in windows if isinstance(window, Window)] == expected
    assert len(expected) > 2


def test_no_answer(made, answers):
    _, folder = made("bert", QUESTION_ANSWERING)
    lines = ["\t".join(pair) for pair in PAIRS]
    always, sometimes = answers(folder, lines), answers(folder, lines, "--no-answer")
    empty = 0
    for one, other in zip(always, sometimes, strict=True):
        found, expected = other["prediction"], one["prediction"]
        if expected["no_answer_score"] > expected["score"]:
            score = expected["no_answer_score"]
            expected = {"answer": "", "start": 0, "end": 0, "score": score, "no_answer_score": score}
            empty += 1
        check_same(found, expected)
    assert empty > 0


@given(
    scores=st.lists(st.tuples(*[st.sampled_from([-np.inf, -3.0, -0.5, 0.0, 1.0, 4.0])] * 2), min_size=1, max_size=12),
    longest=st.integers(1, 14),
)
def test_the_best_span_is_that_of_a_search_over_all(scores, longest):
    begins, ends = np.array(scores).T
    spans = [(a, b) for a in range(len(begins)) for b in range(a, min(a + longest, len(begins)))]
    best = max(spans, key=lambda span: begins[span[0]] + ends[span[1]])  # the first of equal ones
    begin, end, score = best_span(begins, ends, longest)
    assert (begin, end) == best
    assert score == begins[best[0]] + ends[best[1]]


# --- embeddings -----------------------------------------------------------------------------------------------


def test_embeddings(made, answers, tmp_path):
    checkpoint, folder = made("mpnet", EMBEDDING)
    records = answers(folder, TEXTS)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = transformers.AutoModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    for record, text in zip(records, TEXTS, strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]  # (S, H)
        np.testing.assert_allclose(record["prediction"], states.mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_a_text_is_cut_as_the_checkpoints_tokenizer_cuts_it(made, answers):
    checkpoint, folder = made("mpnet", EMBEDDING)
    text = "the tower of london , " * 12
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(text, truncation=True, max_length=40)["input_ids"]
    assert len(ids) == 40
    cut = tokenizer.decode(ids[1:-1])
    (long, short) = answers(folder, [text, cut], "--truncate")
    assert tokenizer(cut)["input_ids"] == ids
    np.testing.assert_allclose(long["prediction"], short["prediction"], rtol=1e-5, atol=1e-6)


# --- token types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_ids_and_types_are_those_of_the_checkpoints_tokenizer(made, family):
    checkpoint, path = made(family, SEQUENCE_CLASSIFICATION, num_labels=3)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    tokenization = Tokenization(ModelFolder(path), SequenceRange(1, 40, 40), AnswerOptions())
    texts: list[tuple[str, ...]] = [*((text,) for text in TEXTS), *PAIRS]
    found: Any = tokenization.tokenise([Record(number, one) for number, one in enumerate(texts)])
    for (window,), one in zip(found, texts, strict=True):
        expected = tokenizer(*one)
        assert window.ids.tolist() == expected["input_ids"]
        assert window.types.tolist() == expected.get("token_type_ids", [0] * len(window.ids))
    assert any(window.types.any() for (window,) in found) == (family == "bert")


@pytest.mark.parametrize("type_of_text", [0, 1])
def test_types_of_texts_without_a_second_one(made, tmp_path, type_of_text):
    _, path = made("bert", SEQUENCE_CLASSIFICATION, num_labels=3)
    shutil.copytree(path, tmp_path / "model")
    file = tmp_path / "model/tokenizer.json"
    saved = json.loads(file.read_text())
    for piece in saved["post_processor"]["single"]:
        piece.get("Sequence", {}).update(type_id=type_of_text)
    file.write_text(json.dumps(saved))
    tokenization = Tokenization(ModelFolder(tmp_path / "model"), SequenceRange(1, 40, 40), AnswerOptions())
    found: Any = tokenization.tokenise([Record(number, (text,)) for number, text in enumerate(TEXTS)])
    for (window,) in found:
        assert window.types[1:-1].tolist() == [type_of_text] * (len(window.ids) - 2)
        assert window.types[[0, -1]].tolist() == [0, 0]  # of [CLS] and [SEP]


# --- what goes wrong ------------------------------------------------------------------------------------------


def test_a_mask_that_is_cut_off_is_a_problem(made):
    _, path = made("bert", FILL_MASK)
    tokenization = Tokenization(ModelFolder(path), SequenceRange(1, 40, 40), AnswerOptions(truncate=True))
    kept, cut = tokenization.tokenise([Record(1, ("[MASK] .",)), Record(2, ("a " * 60 + "[MASK]",))])
    assert isinstance(kept, list)
    assert cut == "no [MASK] among its first 40 tokens; write it where a word is to be filled in"


def test_a_tokenizer_without_a_mask_token_is_refused(made, monkeypatch):
    _, path = made("bert", FILL_MASK)
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "mask_token", None, raising=False)
    with pytest.raises(UserError, match=r"tokenizer has no mask token; expected one, such as \[MASK\]"):
        Tokenization(ModelFolder(path), SequenceRange(1, 40, 40), AnswerOptions())


def test_options_without_effect(made, tmp_path, in_process):
    _, folder = made("mpnet", EMBEDDING)
    (tmp_path / "x.txt").write_text("paris\n")
    for arguments, wanted in [
        (["--top-k", "3"], FILL_MASK),
        (["--aggregate"], TOKEN_CLASSIFICATION),
        (["--max-answer", "3"], QUESTION_ANSWERING),
        (["--no-answer"], QUESTION_ANSWERING),
        (["--stride", "3"], QUESTION_ANSWERING),
    ]:
        ended = in_process(predict.main, folder, tmp_path / "x.txt", "--out", tmp_path / "y.npy", *arguments)
        assert ended.code == 1
        told = f"{arguments[0]} has no effect on the task embedding; it is for {wanted}; leave it out"
        assert told in " ".join(ended.err.split())
    ended = in_process(predict.main, folder, tmp_path / "x.txt", "--out", "y.npy", "--stride", "3", "--truncate")
    assert ended.code == 2
    ended = in_process(predict.main, folder, tmp_path / "x.txt", "--out", "y.npy", "--model-dir", folder)
    assert ended.code == 2
    assert "--model-dir is for a plan" in ended.err
    ended = in_process(predict.main, tmp_path / "x.plan", tmp_path / "x.txt", "--out", "y.npy", "--fusion", "all")
    assert ended.code == 2
    assert "--precision and --fusion are for a folder" in ended.err


def test_a_stride_that_leaves_no_room(made, tmp_path, in_process):
    _, folder = made("bert", QUESTION_ANSWERING)
    (tmp_path / "x.txt").write_text("a\tparis\n")
    ended = in_process(predict.main, folder, tmp_path / "x.txt", "--out", tmp_path / "y.jsonl", "--stride", "36")
    assert ended.code == 1
    assert "--stride 36: windows have 40 tokens, the question among them" in " ".join(ended.err.split())


def test_a_text_without_a_word_is_the_lines_error(made, answers):
    _, folder = made("bert", QUESTION_ANSWERING)
    lines = [
        {"question": "a", "context": "b"},
        {"question": "a", "context": " "},
        {"question": "\u200b", "context": "b"},
    ]
    good, *bad = answers(folder, lines)
    assert "prediction" in good
    assert "lines.jsonl, line 2: ' ' has no word; write a text" in bad[0]["error"]
    assert "line 3: '\\u200b' has no word" in bad[1]["error"]


@pytest.mark.parametrize("task", [EMBEDDING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_output_that_is_not_finite_is_no_answer(task, wrong):
    answers = object.__new__(Answers)
    config: Any = SimpleNamespace(task=task)
    answers.config = config
    window = Window(np.array([2, 5, 3], np.int32), np.zeros(3, np.int32), None)
    output = np.zeros((3, 2), np.float32)
    output[2, 1] = wrong
    with pytest.raises(NotFiniteError):
        answers.of(("a", "b"), [window], [output])


def test_softmax_does_not_overflow():
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4], [-1e4, 0]], np.float32)), [[0.5, 0.5], [0, 1]])


# --- corpus.py ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "task", "sizes", "options"),
    [
        ("roberta", FILL_MASK, {}, AnswerOptions(top_k=3)),
        ("mpnet", EMBEDDING, {}, AnswerOptions(truncate=True)),
        ("bert", SEQUENCE_CLASSIFICATION, {"num_labels": 3}, AnswerOptions()),
        ("bert", SEQUENCE_CLASSIFICATION, {"num_labels": 1}, AnswerOptions()),
        ("bert", TOKEN_CLASSIFICATION, NAMES, AnswerOptions()),
        ("bert", TOKEN_CLASSIFICATION, NAMES, AnswerOptions(aggregate=True)),
        ("bert", QUESTION_ANSWERING, {}, AnswerOptions(stride=5, no_answer=True)),
    ],
)
def test_the_actors_of_a_corpus_give_the_same_answers(made, tmp_path, family, task, sizes, options):
    """For each task, exactly what predict.py writes as JSON lines; Parquet has a type for each of its parts."""
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="needs requirements-predict.txt")
    _, folder = made(family, task, **sizes)
    is_pair = task == QUESTION_ANSWERING
    mask = " <mask>" if task == FILL_MASK else ""
    lines = ["\t".join(pair) for pair in PAIRS] if is_pair else [text + mask for text in TEXTS]
    source, out = tmp_path / "lines.txt", tmp_path / "out"
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    out.mkdir()
    job = Job(CorpusOptions((source,), out, folder, answers=options), tmp_path, assemble)
    (shard,) = split_corpus([source], task, Columns(), 100)
    ShardPredictor(job).run(shard)
    model = ModelFolder(folder)
    network = PyTorchNetwork(model, assemble)
    predict_file(Source(model, source, network.ranges, options), network.run_all, tmp_path / "answers.jsonl")
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    found = parquet.read_table(out).to_pylist()
    assert len(found) == len(lines)
    assert [row["line"] for row in found] == [record["line"] for record in records]
    assert [row["prediction"] for row in found] == [record["prediction"] for record in records]
