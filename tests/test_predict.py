"""predict.py fills masks: every line gets its answer or its error, in order, however texts are put into batches.

test_predict_tasks.py has the other tasks, test_answer_files.py the forms of the output and interrupted runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from transformers import AutoTokenizer, BertForMaskedLM

import builder
import model2onnx
import predict
from bert_trt import pipeline
from bert_trt.console import UserError, run_script
from bert_trt.inference import check_in_profile, execution_obstacle
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import BATCHINGS, ONE_SEQUENCE, AnswerOptions, SequenceRange
from bert_trt.packing import check_batch
from bert_trt.plan import info_path, profile_shapes, read_info
from bert_trt.prediction import BatchRanges, Source, make_batches, one_by_one, predict_file
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog

SEQ_LEN, BATCH = SequenceRange(1, 8, 24), SequenceRange(1, 2, 3)
COMBINATIONS = [(batching, fusion) for batching in BATCHINGS for fusion in ("none", "plugins")]  # in fp32
EVERY_COMBINATION = pytest.mark.parametrize(("batching", "fusion"), COMBINATIONS)

GOOD = {
    1: "the capital of [MASK] , contains the eiffel tower .",
    4: "[MASK] [MASK] of france , [MASK]",
    7: "paris [MASK]",
    9: "[MASK]",
    10: "lyon , nice , [MASK] a b c d e a b c d e a b c d e",
    11: "the [MASK] of france",
    12: "the [MASK] of paris [SEP] lyon [MASK] .",
}
BAD = {
    3: (b"a line without one", "no [MASK]"),
    5: (b"[MASK]" + b" a" * 30, "33 tokens, but the plan takes 1 to 24; build with a wider --seq-len"),
    6: (b"paris \xff [MASK]", "byte 7 (0xff) is not UTF-8"),
    8: (b"[MASK]" + b" b" * 80, "83 tokens, but the position table has 64; shorten the text, or add --truncate"),
}


def lines_of_file() -> list[bytes]:
    last = max(*GOOD, *BAD)
    content = {number: text.encode() for number, text in GOOD.items()} | {n: text for n, (text, _) in BAD.items()}
    return [content.get(number, b"") for number in range(1, last + 1)]  # line 2 is blank


@pytest.fixture(scope="module", autouse=True)
def plugins() -> Path:
    return built_plugins()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_bytes(b"\n".join(lines_of_file()) + b"\n")
    return path


def run_main(main: Callable[[], int], *arguments: object) -> int:
    """A script in this process: its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["script", *map(str, arguments)])
        run_script(main)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Filled:
    """What builder.py made."""

    plan: Path
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def filled(model_dir: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Filled]:
    """builder.py --sentences in every combination."""
    made = {}
    for batching, fusion in COMBINATIONS:
        plan = tmp_path_factory.mktemp("plan") / f"{batching}.{fusion}.plan"
        arguments = ["--model-dir", model_dir, "--plan", plan, "--batching", batching, "--fusion", fusion]
        arguments += ["--sentences", source, "--seq-len", "1,8,24"]
        arguments += [] if batching == "single" else ["--batch", "1,2,3"]
        assert run_main(builder.main, *arguments) == 0
        made[batching, fusion] = Filled(plan, read_lines(plan.with_suffix(".predictions.jsonl")))
    return made


# --- the answers --------------------------------------------------------------------------------------------


def test_a_record_for_every_line_in_order(filled):
    for made in filled.values():
        assert [record["line"] for record in made.records] == sorted([*GOOD, *BAD])
        for record in made.records:
            line = record["line"]
            if line in GOOD:
                assert record["text"] == GOOD[line]
                assert len(record["prediction"]) == GOOD[line].count("[MASK]")
                assert all(len(words) == 10 for words in record["prediction"])
            else:
                assert record.keys() == {"line", "error"}
                assert f"lines.txt, line {line}: " in record["error"]
                assert BAD[line][1] in record["error"]


def test_the_words_are_pytorchs(filled, checkpoint):
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = BertForMaskedLM.from_pretrained(checkpoint).eval()
    for record in filled["packed", "plugins"].records:
        if "error" in record:
            continue
        pair = [part.strip() for part in record["text"].split("[SEP]")]
        encoded = tokenizer(*pair, return_tensors="pt")
        with torch.inference_mode():
            probabilities = model(**encoded).logits[0].softmax(-1)  # (S, vocabulary)
        positions = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
        for words, position in zip(record["prediction"], positions, strict=True):
            best = probabilities[position].topk(10)
            assert [word["id"] for word in words] == best.indices.tolist()
            assert [word["word"] for word in words] == tokenizer.convert_ids_to_tokens(best.indices.tolist())
            np.testing.assert_allclose([word["probability"] for word in words], best.values, rtol=1e-3)


@EVERY_COMBINATION
def test_the_words_do_not_depend_on_batches_and_fusion(filled, batching, fusion):
    expected = filled["single", "none"].records
    for record, same in zip(filled[batching, fusion].records, expected, strict=True):
        assert record.get("error") == same.get("error")
        for words, others in zip(record.get("prediction", []), same.get("prediction", []), strict=True):
            assert [word["id"] for word in words] == [word["id"] for word in others]
            np.testing.assert_allclose(
                [word["probability"] for word in words], [word["probability"] for word in others], rtol=1e-3
            )


# --- with a plan --------------------------------------------------------------------------------------------


def test_products_of_our_own_fill_with_the_same_words(filled, model_dir, source, tmp_path):
    plan = tmp_path / "p.plan"
    arguments = ["--model-dir", model_dir, "--plan", plan, "--batching", "packed", "--seq-len", "1,8,24"]
    arguments += ["--batch", "1,2,3", "--fusion", "all", "--precision", "fp16", "--sentences", source]
    assert run_main(builder.main, *arguments) == 0
    found, expected = read_lines(plan.with_suffix(".predictions.jsonl")), filled["packed", "none"].records
    for record, same in zip(found, expected, strict=True):
        assert record.get("error") == same.get("error")
        for words, others in zip(record.get("prediction", []), same.get("prediction", []), strict=True):
            assert words[0]["id"] == others[0]["id"]
            np.testing.assert_allclose(
                [word["probability"] for word in words], [word["probability"] for word in others], rtol=2e-2
            )


@EVERY_COMBINATION
def test_ranges_are_those_that_the_plan_was_built_for(filled, batching, fusion):
    info = read_info(filled[batching, fusion].plan)
    assert info is not None
    expected = ONE_SEQUENCE if batching == "single" else BATCH
    assert BatchRanges.of_plan(info.profile) == BatchRanges(batching, SEQ_LEN, expected)


@pytest.mark.parametrize("batch", [(1, 8, 32), (4, 4, 4), (2, 3, 50)])
@pytest.mark.parametrize("seq_len", [(1, 32, 128), (7, 7, 7), (3, 64, 512)])
@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_ranges_of_any_profile(batching, seq_len, batch):
    shape, extra = {"padded": ((-1, -1), MASK_NAME), "packed": ((-1,), LENGTHS_NAME)}[batching]
    ranges = SequenceRange(*seq_len), SequenceRange(*batch)
    profile = {name: profile_shapes(name, shape, *ranges) for name in (*INPUT_NAMES, extra)}
    assert BatchRanges.of_plan(profile) == BatchRanges(batching, *ranges)


def test_a_plan_of_another_network_is_refused():
    with pytest.raises(UserError, match=r"the plan's inputs are x, y; expected a plan of builder\.py"):
        BatchRanges.of_plan({"x": [[1], [1], [1]], "y": [[1], [1], [1]]})


class StandIn:
    """Takes InferHelper's place: checks inputs as it does, and runs the same network with PyTorch."""

    folder: Path

    def __init__(self, plan: Path) -> None:
        info = read_info(plan)
        assert info is not None
        self.profile = info.profile
        batching, fusion, _ = plan.name.split(".")
        folder = ModelFolder(self.folder)
        self.bert = builder.assemble(folder, TrtLog(), batching=batching, fusion=fusion)
        self.runner = NetworkRunner(self.bert.network, contents=self.bert.contents)
        self.outputs = self.runner.output_names

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_batch(inputs)
        for name, values in inputs.items():
            check_in_profile(name, values.shape, self.profile[name])
        return {name: values.numpy() for name, values in self.runner.run(inputs).items()}

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.fixture
def stand_in(model_dir, monkeypatch):
    """Plans can be executed."""
    monkeypatch.setattr(StandIn, "folder", model_dir, raising=False)
    monkeypatch.setattr(predict, "InferHelper", StandIn)
    monkeypatch.setattr(predict, "execution_obstacle", lambda: None)


@EVERY_COMBINATION
@pytest.mark.usefixtures("stand_in")
def test_a_plan_fills_as_builder_does(filled, model_dir, source, tmp_path, capsys, batching, fusion):
    made, target = filled[batching, fusion], tmp_path / "made" / "f.jsonl"
    arguments = [made.plan, source, "--model-dir", model_dir, "--out", target]
    assert run_main(predict.main, *arguments) == 0
    assert read_lines(target) == made.records
    said = capsys.readouterr()
    assert f"{len(GOOD)} answers, {len(BAD)} bad lines -> {target}" in said.out
    assert [line.startswith("warning: ") for line in said.err.splitlines()] == [True] * len(BAD)


@pytest.mark.skipif(execution_obstacle() is None, reason="here plans can be executed")
def test_where_plans_cannot_be_executed_it_says_so(filled, model_dir, source, capsys):
    plan = filled["packed", "none"].plan
    target = plan.with_suffix(".predictions.jsonl")
    before = target.read_bytes()
    assert run_main(predict.main, plan, source, "--model-dir", model_dir, "--out", target) == 1
    told = capsys.readouterr().err
    assert "plans cannot be executed here: " in told
    assert f"name the model's folder {model_dir} in place of the plan" in " ".join(told.split())
    assert target.read_bytes() == before


def test_a_folder_fills_as_its_plans_do(filled, model_dir, source, tmp_path):
    """The same network, run by PyTorch; a plan takes at most 24 tokens, PyTorch what the position table has."""
    target = tmp_path / "f.jsonl"
    assert run_main(predict.main, model_dir, source, "--out", target) == 0
    records = read_lines(target)
    assert [record["line"] for record in records] == sorted([*GOOD, *BAD])
    for record, same in zip(records, filled["single", "none"].records, strict=True):
        if record["line"] == 5:
            assert len(record["prediction"]) == 1
            continue
        assert record.get("error") == same.get("error")
        for words, others in zip(record.get("prediction", []), same.get("prediction", []), strict=True):
            assert [word["id"] for word in words] == [word["id"] for word in others]
            np.testing.assert_allclose(
                [word["probability"] for word in words], [word["probability"] for word in others], rtol=1e-3
            )


def test_top_k_words(model_dir, source, tmp_path):
    assert run_main(predict.main, model_dir, source, "--out", tmp_path / "f.jsonl", "--top-k", "3") == 0
    words = [len(found) for record in read_lines(tmp_path / "f.jsonl") for found in record.get("prediction", [])]
    assert words
    assert set(words) == {3}


# --- batches ------------------------------------------------------------------------------------------------


def numbered(lengths: Sequence[int]) -> list[Sentence]:
    """Sentence i consists of the id 7 + i, so that its rows are known again."""
    return [
        Sentence(place + 1, f"text {place}", np.full(length, 7 + place, np.int32), np.zeros(length, np.int32))
        for place, length in enumerate(lengths)
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=30),
    batching=st.sampled_from(BATCHINGS),
    most=st.integers(1, 9),
    longest=st.integers(40, 64),
    bucket=st.sampled_from([None, 1, 16]),
)
def test_every_batch_is_in_the_profile_and_every_sentence_in_one(lengths, batching, most, longest, bucket):
    sentences = numbered(lengths)
    seq_len = SequenceRange(3, 16, longest)
    batch = ONE_SEQUENCE if batching == "single" else SequenceRange(1, 1, most)
    shape = {"single": (1, -1), "padded": (-1, -1), "packed": (-1,)}[batching]
    seen = []
    for one in make_batches(sentences, BatchRanges(batching, seq_len, batch, bucket=bucket)):
        check_batch(one.inputs)
        for name, values in one.inputs.items():
            check_in_profile(name, values.shape, profile_shapes(name, shape, seq_len, batch))
            assert values.dtype == np.int32
        ids, positions = (one.split(one.inputs[INPUT_NAMES[index]][..., None]) for index in (0, 2))  # each (S, 1)
        for place, part in zip(one.sequences, ids, strict=True):
            np.testing.assert_array_equal(part[:, 0], sentences[place].ids)
        for part in positions:
            np.testing.assert_array_equal(part[:, 0], np.arange(len(part)))
        assert not one.inputs[INPUT_NAMES[1]].any()
        seen += one.sequences
    assert sorted(seen) == list(range(len(sentences)))


def fill_with(run, model_dir: Path, text: str, target: Path, seq_len=SEQ_LEN, batch=BATCH) -> list[dict[str, Any]]:
    source = target.with_suffix(".txt")
    source.write_text(text, encoding="utf-8")
    ranges = BatchRanges("packed", seq_len, batch)
    predict_file(Source(ModelFolder(model_dir), source, ranges, AnswerOptions()), one_by_one(run), target)
    return read_lines(target)


def word_itself(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """A network for which word i stands where word i + 1 is: (T,) -> (T, 71)."""
    return 10 * np.eye(71, dtype=np.float32)[np.roll(inputs[INPUT_NAMES[0]], -1)]


def test_the_scores_at_the_mask_count(model_dir, tmp_path, checkpoint):
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    records = fill_with(word_itself, model_dir, "[MASK] paris [MASK] tower\nlyon [MASK] nice\n", tmp_path / "f.jsonl")
    best = [[words[0]["word"] for words in record["prediction"]] for record in records]
    assert best == [["paris", "tower"], ["nice"]]
    first = records[0]["prediction"][0][0]
    assert first["id"] == tokenizer.convert_tokens_to_ids("paris")
    assert first["probability"] == pytest.approx(np.exp(10) / (np.exp(10) + 70))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_the_lines_error(model_dir, tmp_path, capsys, wrong):
    """An fp16 network that overflows: JSON has no NaN, and a NaN is no answer."""

    def overflows(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        scores, bounds = word_itself(inputs), inputs[LENGTHS_NAME]
        longest = int(np.diff(bounds).argmax())
        scores[bounds[longest] : bounds[longest + 1], 5] = wrong
        return scores

    records = fill_with(overflows, model_dir, "paris [MASK] a b c\n[MASK] lyon\n", tmp_path / "f.jsonl")
    assert records[0].keys() == {"line", "error"}
    assert "f.txt, line 1: the network's output is not finite" in records[0]["error"]
    assert records[1]["prediction"][0][0]["word"] == "lyon"
    said = capsys.readouterr()
    assert "1 answers, 1 bad lines" in said.out
    assert "line 1: the network's output is not finite; take --precision bf16 or fp32" in said.err


def test_a_sentence_shorter_than_the_plan_takes_is_the_lines_error(model_dir, tmp_path):
    records = fill_with(
        word_itself, model_dir, "[MASK]\n[MASK] of the a\n", tmp_path / "f.jsonl", SequenceRange(5, 8, 24)
    )
    assert "line 1: 3 tokens, but the plan takes 5 to 24" in records[0]["error"]
    assert len(records[1]["prediction"]) == 1


def test_text_beyond_ascii_stays_readable(model_dir, tmp_path):
    fill_with(word_itself, model_dir, "Île-de-France: [MASK] 巴黎\n", tmp_path / "f.jsonl")
    assert "Île-de-France: [MASK] 巴黎" in (tmp_path / "f.jsonl").read_text(encoding="utf-8")


# --- what cannot be filled ----------------------------------------------------------------------------------


def never(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    raise AssertionError("nothing must be run")


def test_a_failure_leaves_the_old_file(model_dir, tmp_path):
    (tmp_path / "f.jsonl").write_text("old")

    def fails(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        raise UserError("TensorRT could not execute the plan")

    with pytest.raises(UserError, match="could not execute"):
        fill_with(fails, model_dir, "[MASK]\n", tmp_path / "f.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.jsonl", "f.txt"]
    assert (tmp_path / "f.jsonl").read_text() == "old"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no text"),
        ("\n \n", "holds no text"),
        ("paris\nlyon\n", r"no line can be used \(2 are bad\); the first: .*line 1: no \[MASK\]"),
        (
            "[MASK]" + " a" * 30,
            r"no line can be used \(1 are bad\); the first: .*line 1: 33 tokens, but the plan takes 1 to 24",
        ),
    ],
)
def test_a_file_without_a_line_to_fill(model_dir, tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        fill_with(never, model_dir, text, tmp_path / "f.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["f.txt"]


def test_a_smallest_batch_of_several_sentences_is_refused(model_dir, tmp_path):
    with pytest.raises(UserError, match=r"smallest batch has 4 sequences.*--batch 1,OPT,MAX"):
        fill_with(never, model_dir, "[MASK]\n", tmp_path / "f.jsonl", batch=SequenceRange(4, 8, 8))


def test_a_bare_encoder_has_no_answers(tmp_path, capsys):
    source = make_checkpoint(tmp_path / "source", head=False)
    model2onnx.export(str(source), "paris", tmp_path / "out")
    told = "is a bare encoder, and hidden states are no answer: 128 numbers for every token; export a task"
    with pytest.raises(UserError, match=told):
        fill_with(never, tmp_path / "out", "[MASK]\n", tmp_path / "f.jsonl")
    assert run_main(builder.main, "--model-dir", tmp_path / "out", "--sentences", tmp_path / "f.txt") == 1
    assert told in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "out").glob("*.plan"))  # told before the long work


WRONG = [
    (["--sentences", "none.txt"], 1, "no file none.txt (No such file or directory); name a file of texts"),
    (["--predictions", "f.jsonl"], 1, "--predictions: nothing is predicted without --sentences FILE"),
    (["--batch", "1,2,3"], 1, "--batch: one sentence has no batch; add --batching padded or --batching packed"),
    (["--batching", "packed", "--batch", "0,1,2"], 2, "expected 1 <= MIN <= OPT <= MAX"),
    (["--batching", "ragged"], 2, "invalid choice: 'ragged'"),
    (["--fusion", "some"], 2, "invalid choice: 'some'"),
    (["--batching", "padded", "--batch", "2,4,8", "--sentences", __file__], 1, "smallest batch has 2 sequences"),
    (["--precision", "int8", "--fusion", "plugins", "--quantize", "qkv,attention"], 1, "leave attention out, or"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_wrong_options_of_builder(model_dir, tmp_path, capsys, arguments, code, message):
    assert run_main(builder.main, "--model-dir", model_dir, "--plan", tmp_path / "p.plan", *arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_wrong_options_of_predict(filled, model_dir, source, tmp_path, capsys):
    plan = filled["packed", "none"].plan
    alone = tmp_path / "alone.plan"
    alone.write_bytes(plan.read_bytes())
    damaged = tmp_path / "damaged.plan"
    damaged.write_bytes(plan.read_bytes()[:-1])
    info_path(damaged).write_bytes(info_path(plan).read_bytes())
    cases = [
        ([], 2, "the following arguments are required: MODEL, INPUT, --out"),
        ([alone, source], 1, "alone.plan.json is missing; build the plan again with builder.py"),
        ([damaged, source], 1, "is corrupt or truncated; build it again"),
        ([plan, source, "--model-dir", tmp_path / "none"], 1, "no model folder at"),
    ]
    for arguments, code, message in cases:
        given = arguments if "--model-dir" in arguments else [*arguments, "--model-dir", model_dir]
        given += ["--out", tmp_path / "f.jsonl"] if arguments else []
        assert run_main(predict.main, *given) == code
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("stand_in")
def test_a_place_that_cannot_be_written(filled, model_dir, source, capsys):
    plan = filled["packed", "none"].plan
    assert run_main(predict.main, plan, source, "--model-dir", model_dir, "--out", "/proc/none/f.jsonl") == 1
    assert "/proc/none" in capsys.readouterr().err


def test_the_script_itself(script, filled, model_dir):
    plan = filled["single", "none"].plan
    done = script("predict.py", plan, "none.txt", "--model-dir", model_dir, "--out", "f.jsonl")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


# --- before the plan ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (b"paris\nlyon\n", [], "no line can be used (2 are bad); the first"),
        (b"\n \n", [], "holds no text"),
        (b"\xff\xfe", [], "is not UTF-8"),
        (b"[MASK] a b c d e\n", ["--seq-len", "1,2,4"], "8 tokens, but the plan takes 1 to 4"),
        (None, [], "no file"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_without_a_usable_line_is_found_before_the_work(
    content, options, told, precision, in_process, model_dir, tmp_path, monkeypatch
):
    source = tmp_path / "lines.txt"
    if content is not None:
        source.write_bytes(content)
    for work in ("assemble", "build_and_check"):
        monkeypatch.setattr(builder, work, None)  # a call would be a TypeError
    monkeypatch.setattr(pipeline.Task, "quantize", None if precision == "int8" else lambda *_arguments: None)
    arguments = ["--model-dir", model_dir, "--plan", tmp_path / "x.plan", "--precision", precision]
    ended = in_process(builder.main, *arguments, "--sentences", source, *options)
    assert ended.code == 1
    assert told in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["lines.txt"])
