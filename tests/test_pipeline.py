"""The comparison with PyTorch, which decides about exit codes, and the table."""

import argparse
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ended, InProcess, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wrong_networks import PADDED, instead_of, needs_plugins, one_weight
from transformers import BertForMaskedLM

import builder
import model2onnx
import onnx2trt
from bert_trt import network_proof, pipeline
from bert_trt.command_line import capability_list, sequence_range
from bert_trt.comparison import (
    OWN_NETWORK,
    PYTORCH,
    Comparison,
    SequenceError,
    profile_batch,
    reference_batches,
    relative_l2,
    sequence_reasons,
    top_k,
)
from bert_trt.inference import check_in_profile
from bert_trt.model_files import INPUT_NAMES, DemoIO, ReferenceSequence
from bert_trt.network_proof import WrongNetworkError
from bert_trt.options import BATCHINGS, DEFAULT_TEXT, ONE_SEQUENCE, SequenceRange
from bert_trt.packing import check_batch
from bert_trt.plan import profile_shapes
from bert_trt.tasks import Ranking

TOKENS = [f"word{number}" for number in range(50)]


def demo_of(output: np.ndarray, positions=(1,)) -> DemoIO:
    ids = np.zeros((1, output.shape[1]), np.int64)
    names = ("input_ids", "token_type_ids", "position_ids")
    return DemoIO("a [MASK]", dict.fromkeys(names, ids), output, np.zeros((1, 1, 1)), list(positions))


def ranked(positions=(1,)) -> Callable[[np.ndarray], list[Ranking]]:
    return lambda output: [Ranking(f"[MASK], token {position}", output[position], TOKENS) for position in positions]


@pytest.fixture
def output() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 50)).astype(np.float32)


def test_relative_l2_is_the_textbook_formula():
    assert relative_l2(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)


def test_relative_l2_of_large_fp16_values_does_not_overflow():
    values = np.full(100, 60000, np.float16)
    assert relative_l2(values, values) == 0.0


def test_the_same_output_agrees(output):
    compared = Comparison.of(output, demo_of(output), ranked())
    assert (compared.rel_l2, compared.max_abs, compared.top1_same, compared.top10_same) == (0.0, 0.0, True, True)
    assert compared.agrees("fp32")
    assert sum(entry["probability"] for entry in compared.top10) < 1.0
    assert [entry["id"] for entry in compared.top10] == top_k(output[0, 1])
    assert compared.top10[0]["word"] == TOKENS[int(output[0, 1].argmax())]


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 1, 7), (0, 2, 49)])
def test_one_nan_anywhere_does_not_agree(output, place):
    broken = output.copy()
    broken[place] = np.nan
    for precision in ("fp32", "fp16", "bf16"):
        assert not Comparison.of(broken, demo_of(output), ranked()).agrees(precision)


def test_all_zeros_do_not_agree(output):
    assert not Comparison.of(np.zeros_like(output), demo_of(output), ranked()).agrees("bf16")


def with_gap(output: np.ndarray, first: int, gap: float) -> np.ndarray:
    """Words of ranks ``first`` and ``first + 1`` at the mask so near to each other, in logits. The numbers of another
    token are large, so that no swap of two words shows in the relative error."""
    reference = output.copy()
    reference[0, 0] *= 1e4
    ranks = np.argsort(-reference[0, 1])
    reference[0, 1, ranks[first + 1 :]] -= 0.5  # so that no third word stands between
    reference[0, 1, ranks[first + 1]] = reference[0, 1, ranks[first]] - gap
    return reference


@pytest.mark.parametrize(
    ("first", "gap", "fp32", "fp16"),
    [
        (3, 2e-6, True, True),
        (3, 1e-3, False, True),
        (0, 2e-6, True, True),
        (0, 5e-3, False, True),
        (0, 0.1, False, False),
    ],
)
def test_a_near_tie_is_no_disagreement_and_another_word_is(output, first, gap, fp32, fp16):
    """fp32 looks at all ten words, the other types at the first; all of them let near-ties be."""
    reference = with_gap(output, first, gap)
    ranks = top_k(reference[0, 1])
    ours = reference.copy()
    ours[0, 1, [ranks[first], ranks[first + 1]]] = ours[0, 1, [ranks[first + 1], ranks[first]]]
    compared = Comparison.of(ours, demo_of(reference), ranked())
    assert compared.rel_l2 < 1e-5
    assert compared.top10_same is False
    assert compared.top1_same is (first > 0)
    assert [swap.place for swap in compared.swaps] == [first + 1, first + 2]
    probabilities = np.exp(reference[0, 1].astype(np.float64))
    probabilities /= probabilities.sum()
    margin = probabilities[ranks[first]] - probabilities[ranks[first + 1]]
    assert compared.swaps[0].margin == pytest.approx(margin, rel=1e-3)
    assert (compared.agrees("fp32"), compared.agrees("fp16")) == (fp32, fp16)
    for precision, agrees in (("fp32", fp32), ("fp16", fp16)):
        told = compared.reasons(precision)
        assert (told == []) is agrees
        assert agrees or f"place {first + 1} for [MASK], token 1: 'word{ranks[first + 1]}'" in told[0]
        assert agrees or f"differ by {margin:.1e}: no near-tie" in told[0]
    assert bool(compared.near_ties("fp32")) is fp32


def test_small_probabilities_are_near_ties_only_if_of_one_size(output):
    """0.013 for 0.0007: less than the 5e-2 that int8 accepts, and no tie."""
    reference = output / 10
    reference[0, 0] *= 1e5
    reference[0, 1, 7] = reference[0, 1].min() - 3.0
    ours = reference.copy()
    ours[0, 1, 7] = reference[0, 1].max() + 0.1
    compared = Comparison.of(ours, demo_of(reference), ranked())
    assert compared.swaps[0].margin < 5e-2
    assert [swap.word for swap in compared.changed_words("int8")] == ["word7"]
    assert not compared.agrees("int8")


def test_words_of_scores_that_are_not_finite_are_not_told(output):
    broken = output.copy()
    broken[0, 1, 3] = np.nan
    compared = Comparison.of(broken, demo_of(output), ranked())
    assert (compared.top10, compared.swaps) == ([], [])
    assert compared.reasons("fp16") == ["relative L2 error nan for the sentence, accepted is 5e-03"]


def test_every_reason_of_sequences_names_lengths_and_errors():
    one, two, bad = SequenceError(3, 1e-7, 1.0), SequenceError(33, 2e-2, 1.0), SequenceError(128, math.nan, 1.0)
    assert sequence_reasons([], "fp32") == sequence_reasons([one], "fp32") == []
    assert sequence_reasons([one, two], "fp16") == [
        "relative L2 error 2.00e-02 for a sequence of 33 tokens, accepted is 5e-03"
    ]
    assert sequence_reasons([one, two, bad], "fp16") == [
        "relative L2 error nan at 128 tokens, the worst of sequences of 33 and 128 tokens, accepted is 5e-03"
    ]
    assert sequence_reasons([one, two], "int8") == []
    assert "over sequences of 3, 33 and 128 tokens together" in sequence_reasons([one, two, bad], "int8")[0]


def test_every_mask_counts(output):
    other = output.copy()
    other[0, 2] = other[0, 2, ::-1]
    compared = Comparison.of(other, demo_of(output, (1, 2)), ranked((1, 2)))
    assert not compared.top1_same
    assert not compared.top10_same


def test_without_a_head_only_the_numbers_count(output):
    compared = Comparison.of(output, demo_of(output, ()), ranked(()))
    assert (compared.top1_same, compared.top10_same, compared.top10) == (None, None, [])
    assert compared.agrees("fp32")


@pytest.mark.parametrize(("text", "expected"), [("1,8,64", (1, 8, 64)), (" 2, 2 ,2", (2, 2, 2))])
def test_sequence_range(text, expected):
    chosen = sequence_range(text)
    assert (chosen.minimum, chosen.optimum, chosen.maximum) == expected
    assert chosen.as_tuple() == expected


@pytest.mark.parametrize("text", ["", "8", "1,2", "1,2,3,4", "0,1,2", "3,2,4", "1,5,4", "a,b,c", "1.5,2,3"])
def test_wrong_sequence_ranges(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"MIN,OPT,MAX|MIN <= OPT <= MAX"):
        sequence_range(text)


@pytest.mark.parametrize("text", ["", "86", "8.6,", "a.b", "8.6;8.9"])
def test_wrong_capabilities(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected e\.g\. 8\.6"):
        capability_list(text)


def test_capabilities():
    parsed: Any = capability_list("8.6, 12.0")
    assert parsed == ["8.6", "12.0"]


# --- what fits a profile --------------------------------------------------------------------------------------

LENGTHS = (3, 9, 33, 128)
NETWORK_SHAPES = {"single": (1, -1), "padded": (-1, -1), "packed": (-1,)}


def sequence_of(length: int) -> ReferenceSequence:
    ids = np.random.default_rng(length).integers(0, 1000, length)
    return ReferenceSequence(ids, ids % 2, np.arange(length), np.zeros((length, 4), np.float32))


REFERENCE = [sequence_of(length) for length in LENGTHS]


@st.composite
def ranges(draw: st.DrawFn, largest: int) -> SequenceRange:
    return SequenceRange(*sorted(draw(st.tuples(*[st.integers(1, largest)] * 3))))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BATCHINGS), ranges(128), ranges(9))
def test_whatever_is_run_lies_in_the_profile(batching, seq_len, batch):
    """Reference sequences as far as they fit, and made-up ones of the profile's size, for every profile."""
    batch = ONE_SEQUENCE if batching == "single" else batch
    real = reference_batches(REFERENCE, batching, seq_len, batch)
    own = profile_batch(REFERENCE, batching, seq_len, batch)
    for made in (*real, own):
        for name, values in made.inputs.items():
            shape = NETWORK_SHAPES[batching] if name in INPUT_NAMES else (-1,) * values.ndim
            check_in_profile(name, values.shape, profile_shapes(name, shape, seq_len, batch))
        check_batch({name: values.astype(np.int32) for name, values in made.inputs.items()})
    for made in real:
        for place, found in zip(made.sequences, made.split(made.inputs["input_ids"][..., None]), strict=True):
            np.testing.assert_array_equal(found[:, 0], REFERENCE[place].input_ids)
    lengths = [len(one) for one in own.split(own.inputs["input_ids"][..., None])]
    assert lengths == [seq_len.optimum] * batch.optimum


@pytest.mark.parametrize(
    ("batching", "seq_len", "batch", "compared"),
    [
        ("single", (128, 128, 128), (1, 1, 1), [3]),
        ("single", (50, 50, 50), (1, 1, 1), []),
        ("padded", (128, 128, 128), (4, 4, 4), [0, 1, 2, 3]),
        ("padded", (2, 2, 2), (4, 4, 4), []),
        ("packed", (128, 128, 128), (4, 4, 4), [3]),
        ("packed", (50, 50, 50), (4, 4, 4), []),
        ("packed", (128, 128, 128), (4, 8, 16), [0, 1, 2, 3]),
        ("packed", (110, 128, 128), (6, 6, 6), [2, 3]),  # 660 tokens; five others have 640 at most
        ("packed", (1, 1, 128), (30, 30, 30), [0, 1, 2, 3]),
    ],
)
def test_what_fits(batching, seq_len, batch, compared):
    batches = reference_batches(REFERENCE, batching, SequenceRange(*seq_len), SequenceRange(*batch))
    assert sorted({place for made in batches for place in made.sequences}) == compared


Run = Any


@pytest.fixture
def run(in_process: InProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs builder.py, or another main, without building the plan, and returns what it told and its JSON."""

    def build(*arguments: Any) -> Any:
        return SimpleNamespace(num_bytes=1, seconds_build=0.0)

    monkeypatch.setattr(pipeline, "build_plan", build)

    def call(model: Path, *options: object, main: Any = builder.main) -> tuple[dict[str, Any], Ended]:
        result = tmp_path / "result.json"
        done = in_process(main, "--model-dir", model, "--plan", tmp_path / "p.plan", "--json", result, *options)
        assert done.code in (0, 1), done.err
        assert result.is_file(), done.err

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        said = json.loads(result.read_text(), parse_constant=refuse)
        assert done.code == (0 if said["within_tolerance"] else 1)
        assert bool(said["reasons"]) is not said["within_tolerance"]
        return said, done

    return call


FIXED = {
    "a reference sequence": (("--seq-len", "64,64,64"), {64}, PYTORCH),
    "nothing": (("--seq-len", "50,50,50"), {50}, OWN_NETWORK),
    "too short for any": (("--seq-len", "2,2,2"), {2}, OWN_NETWORK),
    "padded": (("--seq-len", "2,2,2", "--batching", "padded", "--batch", "4,4,4"), {2}, OWN_NETWORK),
    "packed": (("--seq-len", "50,50,50", "--batching", "packed", "--batch", "4,4,4"), {50}, OWN_NETWORK),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("case", FIXED)
def test_a_plan_that_does_not_take_the_sentence_is_compared(run, model_dir, case, precision):
    chosen, lengths, expected_from = FIXED[case]
    said, done = run(model_dir, *chosen, "--precision", precision)
    assert done.code == 0, done.out
    assert said["rel_l2"] is said["top10"] is None
    assert {one["tokens"] for one in said["sequences"]} == lengths
    assert {one["expected_from"] for one in said["sequences"]} == {expected_from}
    assert all(0 <= one["rel_l2"] <= said["tolerance"] for one in said["sequences"])
    assert precision == "fp32" or said["sequences"][0]["rel_l2"] > 1e-5  # fp16 rounds
    assert "the sentence has 14 tokens and does not fit the plan" in done.out
    assert "not run" in done.out
    if expected_from == OWN_NETWORK:  # then the network is compared with PyTorch at every length
        assert [one["tokens"] for one in said["structure"]] == [3, 9, 33, 64]
        assert "and that one with PyTorch at 3, 9, 33 and 64 tokens" in done.out


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_sentence_is_padded_or_packed_beside_others_and_its_words_are_shown(run, model_dir, batching):
    """Four sequences of at least 20 tokens on average, while the sentence has 14."""
    said, done = run(model_dir, "--seq-len", "20,20,64", "--batch", "3,4,6", "--batching", batching)
    assert done.code == 0, done.out
    assert len(said["top10"]) == 10
    assert said["rel_l2"] < 1e-5
    assert "does not fit" not in done.out


def test_a_fixed_length_through_the_parser(run, model_dir):
    said, done = run(model_dir, "--seq-len", "50,50,50", main=onnx2trt.main)
    assert done.code == 0, done.out
    assert {one["tokens"] for one in said["sequences"]} == {50}


@pytest.mark.parametrize("options", [(), ("--no-structure-check",)])
def test_a_wrong_network_that_takes_no_known_sequence_is_called_wrong(run, model_dir, monkeypatch, options):
    """Compared with itself alone it would be right."""
    wrong, right = (f"bert.encoder.layer.{layer}.intermediate.dense.weight" for layer in (1, 0))
    instead_of(wrong, right)(monkeypatch)
    said, done = run(model_dir, "--seq-len", "50,50,50", "--precision", "fp16", *options)
    assert done.code == 1
    assert {one["rel_l2"] <= 5e-3 for one in said["sequences"]} == {True}
    assert "the network itself is not PyTorch's" in said["reasons"][0]
    assert said["reasons"][0] in done.out


def test_a_plan_is_run_and_timed_with_what_it_takes(run, model_dir, monkeypatch):
    """As TensorRT would execute it; here a stand-in checks the shapes."""
    given: list[tuple[int, ...]] = []

    class Helper:
        def __init__(self, plan: Path) -> None: ...

        def __enter__(self) -> "Helper":
            return self

        def __exit__(self, *exception: object) -> None: ...

        def infer(self, inputs: Any) -> dict[str, np.ndarray]:
            given.append(inputs["input_ids"].shape)
            return {"logit": answers(inputs)}

        def benchmark(self, inputs: Any, runs: int, cuda_graph: bool = False) -> Any:
            given.append(inputs["input_ids"].shape)
            return pipeline.Latency.of([1.0, 1.0])

    answers: Any = None
    build_and_check = pipeline.build_and_check

    def capture(task: Any, log: Any, network: Any, *rest: Any) -> Any:
        nonlocal answers
        answers = pipeline._pytorch_run(pipeline.Result(task), network)
        return build_and_check(task, log, network, *rest)

    monkeypatch.setattr(builder, "build_and_check", capture)
    monkeypatch.setattr(pipeline, "InferHelper", Helper)
    monkeypatch.setattr(pipeline, "execution_obstacle", lambda: None)
    monkeypatch.setattr(pipeline, "graph_obstacle", lambda: None)
    said, done = run(model_dir, "--seq-len", "50,50,50")
    assert done.code == 0, done.out
    assert given == [(1, 50)] * 3  # compared, enqueued, as a graph
    assert said["executed_by"] == "tensorrt"
    assert "of 1 x 50 tokens" in done.out
    given.clear()
    run(model_dir)
    assert (1, 14) in given
    assert (1, 50) not in given


def test_a_long_sentence_widens_the_default_profile(tmp_path, run):
    source = make_checkpoint(tmp_path / "long", max_position_embeddings=200)
    model2onnx.export(str(source), "paris " * 150 + "[MASK]", tmp_path / "out")
    said, done = run(tmp_path / "out")
    assert done.code == 0, done.out
    assert said["rel_l2"] is not None


# --- why not --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose last feed-forward layer makes values beyond 65504, of weights that fit fp16."""
    place = tmp_path_factory.mktemp("overflow")
    source = make_checkpoint(place / "source")
    model: Any = BertForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.weight *= 100
        model.bert.encoder.layer[1].output.dense.weight *= 2000
    model.save_pretrained(source)
    model2onnx.quiet_libraries()
    model2onnx.export(str(source), DEFAULT_TEXT, place / "out")
    return place / "out"


LAST = "bert.encoder.layer.1.output.dense"
OVERFLOWS = {
    "builder": (builder.main, ("--precision", "fp16"), f"'{LAST}'"),
    "parser": (onnx2trt.main, ("--precision", "fp16"), f"(of '{LAST}.weight')"),
    "int8": (builder.main, ("--precision", "int8", "--smooth", "off", "--calibration-sentences", "4"), f"'{LAST}"),
    "plugins": (builder.main, ("--precision", "fp16", "--fusion", "plugins", "--batching", "packed"), f"'{LAST}"),
    "all, padded": (builder.main, ("--precision", "fp16", "--fusion", "all", "--batching", "padded"), f"'{LAST}"),
    "all, int8": (
        builder.main,
        ("--precision", "int8", "--fusion", "all", "--smooth", "off", "--calibration-sentences", "4"),
        f"'{LAST}",
    ),
    "no sentence": (builder.main, ("--precision", "fp16", "--seq-len", "50,50,50"), f"'{LAST}'"),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[needs_plugins] if c.startswith(("plugins", "all")) else []) for c in OVERFLOWS]
)
def test_an_overflow_is_named_with_its_layer_and_the_remedy(run, overflowing, case):
    main, options, layer = OVERFLOWS[case]
    said, done = run(overflowing, *options, main=main)
    assert done.code == 1
    (reason,) = said["reasons"]
    assert reason.startswith("overflow in fp16, after layer ")
    assert layer in reason
    assert "--precision bf16 has the range of fp32 and will do" in reason
    assert reason in done.out
    assert said["rel_l2"] is None
    assert not said["top10"]
    assert "nan 0" not in done.out
    assert " nan\n" not in done.out.replace("│", "").split("relative L2 error")[0]


def test_bf16_does_where_fp16_overflows(run, overflowing):
    said, _ = run(overflowing, "--precision", "bf16")
    assert said["within_tolerance"]


def test_a_sentence_that_pytorch_answers_otherwise_is_a_reason(run, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    demo = dict(np.load(folder / "demo_io.npz"))
    demo["output"] = demo["output"] * 1.02
    np.savez(folder / "demo_io.npz", **demo)
    said, _ = run(folder, "--precision", "fp16")
    assert "for the sentence, accepted is 5e-03" in said["reasons"][0]
    assert "without roundings the network is PyTorch's, so that it is the roundings of fp16" in said["reasons"][1]


def test_a_near_tie_is_told_and_agrees(run, tmp_path):
    """Two words of one embedding, of which PyTorch has the other first."""
    source = make_checkpoint(tmp_path / "source")
    model: Any = BertForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        for parameter in (model.bert.embeddings.word_embeddings.weight, model.cls.predictions.bias):
            parameter[-1] = parameter[-2]
        model.cls.predictions.bias[-2:] += 30  # the two best words
    model.save_pretrained(source)
    model2onnx.export(str(source), DEFAULT_TEXT, tmp_path / "out")
    first, second = (one["id"] for one in run(tmp_path / "out")[0]["top10"][:2])
    demo = dict(np.load(tmp_path / "out" / "demo_io.npz"))
    scores = demo["output"][0, demo["mask_positions"][0]]
    scores[second] = scores[first] + 8e-6
    np.savez(tmp_path / "out" / "demo_io.npz", **demo)
    said, done = run(tmp_path / "out")
    assert said["top1_same"] is said["top10_same"] is False
    assert done.code == 0, done.out
    assert [swap["place"] for swap in said["swaps"]] == [1, 2]
    assert 0 < said["swaps"][0]["margin"] < 1e-5
    assert "builder.py fp32: a near-tie, which counts as the same: place 1 for [MASK]" in done.out


def test_a_wrong_network_is_named_with_the_layer(run, model_dir):
    said, done = run(model_dir, "--gelu", "tanh", "--precision", "fp16")
    assert "the network itself is not PyTorch's, whatever its types" in said["reasons"][0]
    assert said["reasons"][1].endswith("differs from PyTorch's is 'bert.encoder.layer.0.output.LayerNorm'")
    assert "builder.py fp16 does not agree with PyTorch:" in done.out


def test_a_wrong_head_is_named(run, model_dir, monkeypatch):
    one_weight("cls.predictions.bias", np.zeros_like)(monkeypatch)
    for precision in ("fp32", "bf16"):
        said, _ = run(model_dir, "--precision", precision)
        assert said["reasons"][1] == "every encoder layer gives what PyTorch's does: it is the head that differs"


def test_a_wrong_mask_is_told_from_wrong_layers(run, model_dir, monkeypatch):
    PADDED["mask ignored"](monkeypatch)
    said, _ = run(model_dir, "--batching", "padded")
    assert said["reasons"][1].startswith("for the sentence alone every layer gives what PyTorch's does")


def test_other_values_than_asked_for_are_a_reason(run, model_dir, monkeypatch):
    def refuse(*_: object) -> None:
        raise WrongNetworkError("layer 'x' has epsilon 1e-05, the model 1e-12")

    monkeypatch.setattr(network_proof, "check_definition", refuse)
    said, done = run(model_dir)
    told = "other values than defined: layer 'x' has epsilon 1e-05, the model 1e-12"
    assert said["reasons"] == [told]
    assert f"- {told}" in done.out


def test_compare_layers_is_a_reason(run, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    demo = dict(np.load(folder / "demo_io.npz"))
    demo["hidden_states"][1] += 0.01
    np.savez(folder / "demo_io.npz", **demo)
    said, _ = run(folder, "--compare-layers")
    assert said["reasons"] == ["--compare-layers: a layer is out of tolerance, see the table of layers"]
