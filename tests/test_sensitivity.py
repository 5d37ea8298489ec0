"""sensitivity.py: errors against plain NumPy, a planted bad layer found and returned to fp16 first."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SENTENCES, InProcess, encoder_products, make_checkpoint
from plugin_build_for_tests import built_plugins
from transformers import BertForMaskedLM

import model2onnx
import sensitivity
from bert_trt import calibration
from bert_trt.calibration import CalibrationContext, calibrate, calibrate_best, quantization_of
from bert_trt.calibration_data import batch_inputs, batches, read_data, real_tokens
from bert_trt.comparison import relative_l2, top_k
from bert_trt.console import UserError
from bert_trt.evaluation import Evaluation, OutputChange, hide_word
from bert_trt.model_files import ModelFolder
from bert_trt.options import DEFAULT_TEXT, LINEAR_GROUPS, CalibrationSettings
from bert_trt.quantization import Quantization, in_groups, kernels_of
from bert_trt.quantized_model import rank_products, return_products
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

BAD = "bert.encoder.layer.1.intermediate.dense"
MASK = 4
SETTINGS = CalibrationSettings(sentences=6, smoothing=None, method="max")


@pytest.fixture(scope="module")
def sentences_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sentences.txt"
    path.write_text(SENTENCES)
    return path


@pytest.fixture(scope="module")
def outlier_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which one linear layer's input has a channel of 40 that it hardly reads."""
    place = tmp_path_factory.mktemp("outlier")
    source = make_checkpoint(place / "source")
    model: Any = BertForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        layer = model.bert.encoder.layer[1]
        layer.attention.output.LayerNorm.bias[5] = 40.0
        layer.intermediate.dense.weight[:, 5] = 1e-4
    model.save_pretrained(source)
    model2onnx.quiet_libraries()
    model2onnx.export(str(source), DEFAULT_TEXT, place / "out")
    return place / "out"


class Case:
    """A model with sentences to calibrate on and others to measure on."""

    def __init__(self, path: Path, sentences_path: Path) -> None:
        self.folder = ModelFolder(path)
        self.data = read_data(self.folder, sentences_path, 6, 6)
        self.log = TrtLog()
        self.subject = CalibrationContext(
            self.folder,
            encoder_products(self.folder),
            self.data.calibration,
            sentences_path,
            assemble,
            self.log,
            "cpu",
        )
        self.evaluation = Evaluation(self.folder, self.data.evaluation, MASK, assemble, self.log, "cpu")
        self.products = in_groups(encoder_products(self.folder), LINEAR_GROUPS)


@pytest.fixture(scope="module")
def case(model_dir: Path, sentences_path: Path) -> Case:
    return Case(model_dir, sentences_path)


@pytest.fixture(scope="module")
def bad_case(outlier_dir: Path, sentences_path: Path) -> Case:
    return Case(outlier_dir, sentences_path)


# --- [MASK] -----------------------------------------------------------------------------------------------


def test_one_word_is_hidden_and_neither_the_first_nor_the_last_token():
    for length in (3, 4, 9, 60):
        places = set()
        for line in range(1, 400):
            ids = np.arange(10, 10 + length, dtype=np.int32)
            hidden = hide_word(Sentence(line, "", ids, np.zeros_like(ids)), MASK)
            (place,) = np.flatnonzero(hidden.ids == MASK)
            assert 0 < place < length - 1
            np.testing.assert_array_equal(np.delete(hidden.ids, place), np.delete(ids, place))
            assert MASK not in ids  # the sentence itself is as it was
            places.add(int(place))
        assert len(places) == length - 2  # all of them, over many lines: 9 - 2 = 7 too


def test_a_sentence_with_a_mask_or_a_model_without_stays():
    for ids, mask in (([2, MASK, 9, 3], MASK), ([2, 9, 3], None)):
        sentence = Sentence(1, "", np.array(ids, np.int32), np.zeros(len(ids), np.int32))
        assert hide_word(sentence, mask) is sentence


# --- errors -----------------------------------------------------------------------------------------------


def test_the_same_outputs_have_no_error(case):
    change = case.evaluation.compare(case.evaluation.run("fp32", None))
    assert replace(change, cosine=1.0) == OutputChange(6, 0.0, 1.0, 1.0, 10.0)
    assert change.cosine == pytest.approx(1.0, abs=1e-6)


def test_errors_are_those_of_numpy(case):
    reference = [tensor.numpy() for tensor in case.evaluation.run("fp32", None)]
    generator = np.random.default_rng(0)
    outputs = [values + generator.normal(0, 0.5, values.shape).astype(np.float32) for values in reference]
    found = case.evaluation.compare([torch.from_numpy(values) for values in outputs])
    masks = [real_tokens(batch) == 1 for batch in batches(case.data.evaluation)]
    ours, theirs = (
        np.concatenate([x[mask] for x, mask in zip(part, masks, strict=True)]) for part in (outputs, reference)
    )
    assert found.rel_l2 == pytest.approx(relative_l2(ours, theirs), rel=1e-5)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert found.cosine == pytest.approx(cosines.mean(), rel=1e-5)
    same, ten = [], []
    for batch, x, y in zip(batches(case.data.evaluation), outputs, reference, strict=True):
        for row, sentence in enumerate(batch):
            position = int(np.flatnonzero(hide_word(sentence, MASK).ids == MASK)[0])
            a, b = top_k(x[row, position]), top_k(y[row, position])
            same.append(a[0] == b[0])
            ten.append(len(set(a) & set(b)))
    assert (found.first_word_same, found.ten_best_same) == (np.mean(same), np.mean(ten))
    assert found.ten_best_same < 10  # something has changed, or this would prove nothing


def test_a_nan_is_an_infinite_error(case):
    outputs = [tensor.clone() for tensor in case.evaluation.run("fp32", None)]
    outputs[0][1, 0, 0] = math.nan
    assert case.evaluation.compare(outputs).rel_l2 == math.inf


def test_without_a_head_only_numbers_are_compared(tmp_path, sentences_path):
    source = make_checkpoint(tmp_path / "source", head=False)
    model2onnx.export(str(source), "paris", tmp_path / "out")
    folder = ModelFolder(tmp_path / "out")
    data = read_data(folder, sentences_path, 6, 6)
    assert data.mask_id is None
    change = Evaluation(folder, data.evaluation, data.mask_id, assemble, TrtLog(), "cpu").measure("fp16", None)
    assert (change.first_word_same, change.ten_best_same) == (None, None)
    assert 0 < change.rel_l2 < 5e-3


def test_the_reference_is_pytorch(case, checkpoint):
    model: Any = BertForMaskedLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    outputs = []
    for batch in batches([hide_word(one, MASK) for one in case.data.evaluation]):
        inputs = {name: torch.from_numpy(values) for name, values in batch_inputs(batch).items()}
        with torch.inference_mode():
            outputs.append(model(**inputs).logits)
    assert case.evaluation.compare(outputs).rel_l2 < 1e-5


# --- ranking and returning --------------------------------------------------------------------------------


def test_the_bad_layer_is_ranked_first_and_alone_returned(bad_case):
    quantization = quantization_of(calibrate(bad_case.subject, SETTINGS), bad_case.products)
    ranking = rank_products(bad_case.evaluation, quantization, kernels_of(bad_case.products, "none"))
    assert sorted(one.name for one in ranking) == sorted(product.name for product in bad_case.products)
    assert [one.rel_l2 for one in ranking] == sorted((one.rel_l2 for one in ranking), reverse=True)
    assert (ranking[0].name, ranking[0].group) == (BAD, "intermediate")
    assert ranking[0].rel_l2 > 3 * ranking[1].rel_l2

    whole = bad_case.evaluation.measure("int8", quantization).rel_l2
    rest = bad_case.evaluation.measure("int8", quantization.without(BAD)).rel_l2
    assert rest < 0.5 * whole
    returned = return_products(
        bad_case.evaluation, quantization, kernels_of(bad_case.products, "none"), (whole + rest) / 2
    )
    assert returned.steps == [(BAD, pytest.approx(rest))]
    assert returned.quantization.products == quantization.products - {BAD}
    assert returned.ranking == ranking


def test_nothing_is_returned_when_the_error_is_small_enough(case):
    quantization = quantization_of(calibrate(case.subject, SETTINGS), case.products)
    returned = return_products(case.evaluation, quantization, kernels_of(case.products, "none"), 0.9)
    assert returned.quantization is quantization
    assert (returned.steps, returned.ranking) == ([], [])


def test_products_are_returned_until_it_is_enough_even_all_of_them(case):
    products = case.products[:3]
    quantization = quantization_of(calibrate(case.subject, SETTINGS), products)
    best = case.evaluation.measure("fp16", None).rel_l2
    returned = return_products(case.evaluation, quantization, kernels_of(products, "none"), best * 1.0001)
    assert returned.quantization.products == frozenset()
    assert [name for name, _ in returned.steps] == [one.name for one in returned.ranking]
    assert returned.steps[-1][1] == pytest.approx(best)


def test_an_error_that_cannot_be_reached_says_the_best(case):
    quantization = quantization_of(calibrate(case.subject, SETTINGS), case.products)
    best = case.evaluation.measure("fp16", None).rel_l2
    with pytest.raises(UserError, match=r"--max-error 1e-06 cannot be met: with everything in fp16") as told:
        return_products(case.evaluation, quantization, kernels_of(case.products, "none"), 1e-6)
    assert f"{best:.2e}, the best that can be reached; with all 12 products in int8 it is" in str(told.value)


def test_a_ranking_with_infinite_errors(case, monkeypatch):
    errors = iter([0.1, math.inf, 0.3])
    monkeypatch.setattr(
        case.evaluation, "measure", lambda *_: OutputChange(1, next(errors), 1.0, None, None), raising=True
    )
    ranking = rank_products(case.evaluation, Quantization("int8"), kernels_of(case.products[:3], "none"))
    assert [one.rel_l2 for one in ranking] == [math.inf, 0.3, 0.1]


def test_smoothing_is_chosen_where_there_are_outliers(bad_case, capsys):
    plain = calibrate(bad_case.subject, SETTINGS)
    best = calibrate_best(bad_case.subject, replace(SETTINGS, smoothing="auto"), MASK)
    assert set(best.ranges) == {f"{name}.smoothed" for name in plain.ranges}
    errors = [
        bad_case.evaluation.measure("int8", quantization_of(one, bad_case.products)).rel_l2 for one in (plain, best)
    ]
    assert errors[1] < 0.5 * errors[0]
    told = " ".join(capsys.readouterr().err.split())
    assert "relative L2 error by alpha: off " in told
    assert all(f", {alpha} " in told for alpha in (0.5, 0.7, 0.85))


def test_nothing_is_smoothed_where_no_linear_layer_is_quantized(bad_case, monkeypatch):
    monkeypatch.setattr(calibration, "Evaluation", None)  # nothing is measured
    made = calibrate_best(bad_case.subject, replace(SETTINGS, smoothing="auto", groups=("attention",)), MASK)
    assert made.smoothing == {}
    assert len(made.ranges) == 2 * 4


def test_a_fixed_strength_is_taken_as_it_is(bad_case, monkeypatch):
    monkeypatch.setattr(calibration, "Evaluation", None)  # nothing is measured
    made = calibrate_best(bad_case.subject, replace(SETTINGS, smoothing=0.5), MASK)
    assert made.settings.smoothing == 0.5
    assert made.smoothing.keys() == {name.removesuffix(".smoothed") for name in made.ranges}
    assert calibrate_best(bad_case.subject, SETTINGS, MASK).smoothing == {}


def test_a_channel_that_is_almost_never_on_can_be_smoothed(tmp_path, sentences_path):
    """GELU of -5 is -1e-6: smoothing must not ask for a factor beyond fp16."""
    source = make_checkpoint(tmp_path / "source")
    model: Any = BertForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        dense = model.bert.encoder.layer[0].intermediate.dense
        dense.weight[3], dense.bias[3] = 0.0, -5.3
    model.save_pretrained(source)
    model2onnx.export(str(source), "paris [MASK]", tmp_path / "out")
    case = Case(tmp_path / "out", sentences_path)
    made = calibrate(case.subject, replace(SETTINGS, smoothing=0.85))
    change = case.evaluation.measure("int8", quantization_of(made, case.products))
    assert change.rel_l2 < 0.1  # 0.06; random weights gain nothing by so much smoothing


# --- the script -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["none", "all"])
def test_the_script_ranks_and_returns(in_process: InProcess, outlier_dir, sentences_path, tmp_path, fusion):
    """With 8-bit plugins Q, K and V are one product."""
    if fusion == "all":
        built_plugins()
    result, picture = tmp_path / "new" / "r.json", tmp_path / "p.png"
    options = ["--model-dir", outlier_dir, "--calibration-data", sentences_path, "--calibration-sentences", 6]
    options += ["--smooth", "off", "--calibration", "max", "--max-error", 0.03, "--json", result, "--plot", picture]
    options += ["--fusion", fusion]
    done = in_process(sensitivity.main, *options)
    assert done.code == 0, done.err
    assert "Relative L2 error with one product in int8" in done.out
    assert "Returned to fp16, the worst first" in done.out
    assert "int8 against fp32 on 6 sentences not used for calibration: relative L2 error" in done.out
    said = json.loads(result.read_text())
    assert said["returned_to_fp16"][0][0] == said["ranking"][0]["name"] == BAD
    assert BAD not in said["quantized_products"]
    assert len(said["ranking"]) == (8 if fusion == "all" else 12)
    merged = [one["name"] for one in said["ranking"] if one["name"].endswith(".qkv")]
    assert len(merged) == (2 if fusion == "all" else 0)
    assert said["change"]["rel_l2"] <= 0.03
    assert picture.read_bytes().startswith(b"\x89PNG")


WRONG = [
    (["--max-error", "0"], 2, "'0': expected a number greater than 0, such as 0.02"),
    (["--precision", "bf16"], 2, "invalid choice: 'bf16'"),
    (["--plot", "x.gif"], 2, "expected a name that ends in .png, .svg or .pdf"),
    (["--calibration-sentences", "13"], 1, "has 12 sentences, fewer than the 13 asked for"),
    (["--calibration-sentences", "12", "--max-error", "0.1"], 1, "all are calibrated on; --max-error needs others"),
    (["--calibration-sentences", "12", "--smooth", "off"], 1, "no sentence is left over to measure on"),
    (
        ["--calibration-sentences", "6", "--smooth", "off", "--max-error", "1e-9"],
        1,
        "--max-error 1e-09 cannot be met",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_wrong_options(
    in_process: InProcess, model_dir, sentences_path, tmp_path, monkeypatch, arguments, code, message
):
    monkeypatch.setattr(sensitivity, "CACHE_NAME", str(tmp_path / "calibration.json"))
    done = in_process(sensitivity.main, "--model-dir", model_dir, "--calibration-data", sentences_path, *arguments)
    assert done.code == code
    assert message in " ".join(done.err.split())
