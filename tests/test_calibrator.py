"""calibrator.py: histograms against NumPy, each method against another implementation, the cache, bad data."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import WORDS, InProcess, Script, encoder_products, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector
from transformers import BertForMaskedLM

import calibrator
import model2onnx
from bert_trt import histograms
from bert_trt.calibration import BertCalibrator, Calibration, CalibrationContext, calibrate, tensors_of
from bert_trt.calibration_cache import calibrate_cached, fingerprint, read_cache, write_cache
from bert_trt.calibration_data import BATCH_TOKENS, batch_inputs, batches, read_data, spread
from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.histograms import BINS, COUNTED_AT_ONCE, Histogram, find_range
from bert_trt.model_files import MASK_NAME, ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import GROUPS, LINEAR_GROUPS, METHODS, QUANTIZED_PRECISIONS, CalibrationSettings
from bert_trt.quantization import Quantization, in_groups, range_name
from bert_trt.sentences import Sentence, load_tokenizer
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

BIN = 2.0 / BINS  # a bin's width, relative to the largest value: the limit is at most twice that


# --- histograms -------------------------------------------------------------------------------------------


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram(torch.device("cpu"))
    for part in parts:
        magnitudes = torch.from_numpy(np.abs(part).astype(np.float32))
        histogram.add(magnitudes, float(magnitudes.max()))
    return histogram


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


magnitudes = st.lists(st.floats(0, 2.0**40, width=32), min_size=1, max_size=20).map(
    lambda values: np.array(values, np.float32)
)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(magnitudes, min_size=1, max_size=5))
def test_histogram_counts_exactly_in_any_order(parts):
    found = histogram_of(*parts)
    values = np.concatenate(parts).astype(np.float64)
    places = np.floor(values / found.limit * BINS).astype(int)
    np.testing.assert_array_equal(found.on_cpu(), np.bincount(places, minlength=BINS))
    assert found.amax == values.max() < found.limit
    assert found.limit == 2.0**-60 or found.limit <= 2 * found.amax
    backwards = histogram_of(*parts[::-1])
    np.testing.assert_array_equal(found.on_cpu(), backwards.on_cpu())
    assert (found.limit, found.amax) == (backwards.limit, backwards.amax)


@pytest.mark.parametrize("order", [1, -1])
def test_a_power_of_two_is_in_the_same_bin_whether_it_came_before_a_larger_value_or_after(order):
    found = histogram_of(*[np.array([1.0]), np.array([2.0])][::order])
    assert np.flatnonzero(found.on_cpu()).tolist() == [BINS // 4, BINS // 2]


def test_more_values_in_one_bin_than_fp32_can_count():
    """Attention probabilities of long sentences: almost all of them are nearly zero."""
    values = torch.zeros(COUNTED_AT_ONCE + 3)
    values[-1] = 1.0
    found = Histogram(torch.device("cpu"))
    found.add(values, 1.0)
    assert found.on_cpu()[[0, BINS // 2]].tolist() == [COUNTED_AT_ONCE + 2, 1]


# --- the methods ------------------------------------------------------------------------------------------


def range_of(values: np.ndarray, method: str, kind: str = "int8", percentile: float = 99.99) -> float:
    found = histogram_of(values)
    return find_range(found.on_cpu(), found.limit, found.amax, method, kind, percentile)


HARD = {
    "normal": random(20000),
    "heavy tails": np.random.default_rng(1).laplace(size=20000).astype(np.float32),
    "half of it zero, as after GELU": np.maximum(random(20000), 0),
    "three planted outliers": np.concatenate([random(20000), np.array([40, -40, 39], np.float32)]),
    "one value": np.array([0.3], np.float32),
    "a power of two": np.full(50, 4, np.float32),
    "tiny": random(1000, scale=1e-12),
    "huge": random(1000, scale=1e30),
}
VALID = [
    (method, kind) for method in METHODS for kind in QUANTIZED_PRECISIONS if (method, kind) != ("entropy", "fp8")
]


@pytest.mark.parametrize(("method", "kind"), VALID)
@pytest.mark.parametrize("case", HARD)
def test_ranges_are_positive_and_at_most_the_largest_value(case, method, kind):
    found = range_of(HARD[case], method, kind)
    assert 0 < found <= np.abs(HARD[case]).max()
    assert method != "max" or found == np.abs(HARD[case]).max()


@pytest.mark.parametrize(("method", "kind"), VALID)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-30, 30))
def test_data_times_a_power_of_two_has_the_range_times_that(method, kind, seed, exponent):
    values = np.random.default_rng(seed).standard_t(3, 500).astype(np.float32)
    assert range_of(np.ldexp(values, exponent), method, kind) == pytest.approx(
        math.ldexp(range_of(values, method, kind), exponent), rel=1e-12
    )


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("percentile", [10, 50, 99, 99.9, 99.99, 100])
def test_percentile_is_numpys_to_a_bin(case, percentile):
    values = np.abs(HARD[case]).astype(np.float64)
    expected = [np.percentile(values, percentile, method=how) for how in ("lower", "higher")]  # between two values
    found = range_of(HARD[case], "percentile", percentile=percentile)
    bin_width = BIN * values.max()
    assert expected[0] - bin_width <= found <= expected[1] + bin_width


def test_percentile_leaves_outliers_out():
    values = HARD["three planted outliers"]
    assert range_of(values, "percentile", percentile=99.9) < 4
    assert range_of(values, "percentile", percentile=100) == 40


def plain_entropy(fine: np.ndarray, levels: int) -> int:
    """The candidate with the least divergence, in loops: number of bins."""
    best, least = 0, math.inf
    for end in range(levels, len(fine) + 1):
        p = [float(count) for count in fine[:end]]
        p[-1] += float(sum(fine[end:]))
        q = [0.0] * end
        for level in range(levels):
            group = range(level * end // levels, (level + 1) * end // levels)
            filled = [place for place in group if fine[place] > 0]
            for place in filled:
                q[place] = sum(float(fine[one]) for one in group) / len(filled)
        sums = sum(p), sum(q)
        divergence = 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                divergence += a / sums[0] * math.log(a / sums[0] / max(b / max(sums[1], 1e-300), 1e-12))
        if divergence < least:
            best, least = end, divergence
    return best


@pytest.mark.parametrize("seed", range(3))
def test_entropy_is_the_published_algorithm(monkeypatch, seed):
    """Beside a literal version in loops, with fewer bins; the largest value is at the very end of the last one."""
    monkeypatch.setattr(histograms, "ENTROPY_BINS", 96)
    monkeypatch.setattr(histograms, "ENTROPY_LEVELS", 16)
    counts = np.random.default_rng(seed).poisson(3000 * np.exp(-np.linspace(0, 9, 96)))
    counts[-1] = 2
    assert histograms.entropy_range(counts, 1.0, 1 - 1e-9) == pytest.approx(plain_entropy(counts, 16) / 96)


@pytest.mark.parametrize("case", ["normal", "half of it zero, as after GELU", "three planted outliers"])
def test_entropy_is_near_onnx_runtimes(case):
    """ONNX Runtime puts the bins that 255 does not divide into its last level, and smooths: hence not the same."""
    values = np.abs(HARD[case]).astype(np.float64)
    largest = values.max()
    histogram = np.histogram(np.concatenate([values, -values]), 2 * histograms.ENTROPY_BINS + 1, (-largest, largest))
    collector: Any = object.__new__(HistogramCollector)
    _, theirs = collector.get_entropy_threshold((*histogram, -largest, largest), 255)
    assert range_of(HARD[case], "entropy") == pytest.approx(float(theirs), rel=0.25)


def brute_force_error(values: np.ndarray, largest: float, kind: str) -> float:
    """Sum of squared errors of the values themselves, quantized and dequantized."""
    top = ELEMENT_TYPES[kind].largest
    scaled = np.clip(values.astype(np.float64) / (largest / top), -top, top)
    rounded = np.rint(scaled) if kind == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return float(np.sum((rounded * (largest / top) - values) ** 2))


@pytest.mark.parametrize("kind", QUANTIZED_PRECISIONS)
@pytest.mark.parametrize(
    "case", ["normal", "heavy tails", "three planted outliers", "half of it zero, as after GELU"]
)
def test_mse_is_the_least_error_of_the_values_themselves(case, kind):
    values = HARD[case]
    candidates = np.abs(values).max() * np.geomspace(1, 1 / 16, 300)
    least = min(brute_force_error(values, candidate, kind) for candidate in candidates)
    assert brute_force_error(values, range_of(values, "mse", kind), kind) <= 1.02 * least


def test_mse_of_even_values_is_near_the_largest():
    """Nothing is gained by cutting off: half the range would cost a thousand times as much as the whole."""
    values = np.linspace(0, 1, 100_000, dtype=np.float32)
    assert 0.97 <= range_of(values, "mse") <= 1


@pytest.mark.parametrize(("outlier", "bulk"), [(8.0, 1e5), (20.0, 1e7), (60.0, 1e9)])
def test_mse_finds_ranges_far_below_the_largest(outlier, bulk):
    """So many ordinary values that a single outlier is better cut off: to about a half, a quarter, a twelfth."""
    limit = 64.0
    middles = (np.arange(BINS) + 0.5) * limit / BINS
    counts = np.round(bulk * np.exp(-(middles**2) / 2) * limit / BINS).astype(np.int64)
    counts[int(outlier / limit * BINS)] = 1

    def error(candidate: float) -> float:
        rounded = np.rint(np.minimum(middles / candidate, 1) * 127) / 127 * candidate
        return float(np.sum(counts * (rounded - middles) ** 2))

    least = min(error(candidate) for candidate in outlier * np.linspace(1 / 16, 1, 2000))
    found = histograms.mse_range(counts, limit, outlier, "int8")
    # Of a histogram the error goes up and down by some percent, by how many bins there are in a step.
    assert error(found) <= 1.1 * least
    assert outlier / 16 <= found < 0.75 * outlier


def test_one_outlier_makes_max_coarse_and_mse_not():
    values = np.concatenate([random(200_000), np.array([15.0], np.float32)])
    found = {method: range_of(values, method) for method in METHODS}
    assert found["max"] == 15
    assert max(found["mse"], found["percentile"], found["entropy"]) < 8
    assert brute_force_error(values, found["mse"], "int8") < 0.5 * brute_force_error(values, 15, "int8")


# --- running over sentences -------------------------------------------------------------------------------


def sentence(line: int, length: int) -> Sentence:
    return Sentence(line, "", np.arange(length, dtype=np.int32), np.zeros(length, np.int32))


@pytest.mark.parametrize("same_length", [False, True])
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, BATCH_TOKENS + 5), min_size=1, max_size=40))
def test_each_sentence_is_in_one_batch(same_length, lengths):
    given_sentences = [sentence(line, length) for line, length in enumerate(lengths)]
    made = batches(given_sentences, same_length)
    assert sorted(one.line for batch in made for one in batch) == list(range(len(lengths)))
    for batch in made:
        assert not same_length or len({len(one.ids) for one in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(len(one.ids) for one in batch) <= BATCH_TOKENS


def test_sentences_of_several_lengths_fill_batches():
    made = batches([sentence(line, 20 + line % 10) for line in range(200)])
    assert len(made) == 6  # 200 sentences of at most 29 tokens; batches of one length would be 10
    assert [len(one.ids) for batch in made for one in batch] == sorted(20 + line % 10 for line in range(200))


def test_padding_repeats_the_last_token_behind_the_mask():
    made = batch_inputs([sentence(1, 3), sentence(2, 5)])
    assert made["input_ids"].tolist() == [[0, 1, 2, 2, 2], [0, 1, 2, 3, 4]]
    assert made["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert made[MASK_NAME].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert made["token_type_ids"].tolist() == [[0] * 5] * 2


@given(total=st.integers(1, 2000), data=st.data())
def test_spread_takes_different_places_from_all_over(total, data):
    wanted = data.draw(st.integers(1, total))
    places = spread(total, wanted)
    assert len(set(places)) == len(places) == wanted
    assert places == sorted(places)
    assert 0 <= min(places) <= max(places) < total
    assert max(places) >= total - 1 - total / wanted


@pytest.fixture(scope="module")
def folder(model_dir: Path) -> ModelFolder:
    return ModelFolder(model_dir)


def subject_of(folder: ModelFolder, path: Path, wanted: int) -> CalibrationContext:
    data = read_data(folder, path, wanted, 0)
    return CalibrationContext(
        folder, encoder_products(folder), data.calibration, data.path, assemble, TrtLog(), "cpu"
    )


PLAIN = CalibrationSettings(sentences=12, smoothing=None, method="max", groups=GROUPS)


@pytest.mark.parametrize("groups", [GROUPS, LINEAR_GROUPS])  # without attention, sentences are padded
def test_maxima_are_those_of_the_sentences_one_by_one(folder, sentence_file, groups):
    subject = subject_of(folder, sentence_file, 12)
    found = calibrate(subject, replace(PLAIN, groups=groups))
    names = tensors_of(in_groups(encoder_products(folder), groups))
    assert list(found.ranges) == names
    made = assemble(folder, TrtLog())
    runner = NetworkRunner(made.network, outputs=names)
    largest = dict.fromkeys(names, 0.0)
    counted = dict.fromkeys(names, 0)
    for one in subject.sentences:
        inputs = batch_inputs([one])
        inputs.pop(MASK_NAME)
        for name, tensor in runner.run(inputs).items():
            largest[name] = max(largest[name], float(tensor.abs().max()))
            counted[name] += tensor.numel()
    assert found.amax == pytest.approx(largest, rel=1e-5)
    assert found.ranges == found.amax
    assert {name: int(one.counts.sum()) for name, one in found.histograms.items()} == counted


def test_smoothing_levels_the_channels(folder, sentence_file):
    subject = subject_of(folder, sentence_file, 12)
    settings_ = replace(PLAIN, groups=LINEAR_GROUPS, smoothing=1.0)
    found = calibrate(subject, settings_)
    assert all(name.endswith(".smoothed") for name in found.ranges)
    # x / max|x|; channels that are only on in GELU's negative tail have few digits
    assert found.amax == pytest.approx(dict.fromkeys(found.amax, 1.0), rel=1e-2)


@pytest.mark.parametrize("groups", [GROUPS, LINEAR_GROUPS])
def test_smoothed_histograms_are_those_of_a_smoothed_network(folder, sentence_file, groups):
    """The network is not run once for each alpha: x / s is computed from the plain network's x."""
    subject = subject_of(folder, sentence_file, 12)
    settings_ = replace(PLAIN, groups=groups)
    plain = subject.observe(settings_)
    smoothings = [subject.smoothing(settings_, plain, alpha) for alpha in (0.5, 0.85)]
    for smoothing, found in zip(smoothings, subject.histograms(settings_, smoothings, plain), strict=True):
        assert any(not np.allclose(s, 1) for s in smoothing.values())
        network = assemble(
            folder, TrtLog(), batching="padded", quantization=Quantization("int8", smoothing=smoothing)
        )
        names = [range_name(name, smoothing) for name in plain.histograms[0]]
        assert list(found) == names
        smoothed = BertCalibrator(NetworkRunner(network.network, outputs=names, contents=network.contents))
        smoothed.run(subject.sentences, subject.source, same_length=True)
        expected = {name: one.amax for name, one in smoothed.histograms[0].items()}
        assert {name: one.amax for name, one in found.items()} == pytest.approx(expected, rel=1e-5)
        for name, one in smoothed.histograms[0].items():
            assert one.counts.sum() == found[name].counts.sum()
            moved = np.abs(np.cumsum(one.on_cpu() - found[name].on_cpu())).sum()  # by one bin, at its edge
            assert moved <= 5e-3 * one.counts.sum()


def damaged(tmp_path: Path, change: Any) -> ModelFolder:
    source = make_checkpoint(tmp_path / "source")
    model: Any = BertForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        change(model.bert)
    model.save_pretrained(source)
    model2onnx.export(str(source), "paris [MASK]", tmp_path / "out")
    return ModelFolder(tmp_path / "out")


def test_a_tensor_that_is_zero_is_named(tmp_path, sentence_file):
    def change(bert):
        bert.encoder.layer[1].intermediate.dense.weight.zero_()
        bert.encoder.layer[1].intermediate.dense.bias.zero_()

    subject = subject_of(damaged(tmp_path, change), sentence_file, 12)
    with pytest.raises(
        UserError, match=r"'bert\.encoder\.layer\.1\.intermediate\.intermediate_act_fn' is zero"
    ) as told:
        calibrate(subject, PLAIN)
    assert "in all 12 sentences" in str(told.value)
    assert f"{sentence_file}, line 1 on" in str(told.value)
    assert "--quantize" in str(told.value)
    calibrate(subject, replace(PLAIN, groups=("qkv", "intermediate")))  # what the message advises


def test_a_tensor_that_is_not_finite_is_named_with_the_sentence(tmp_path, sentence_file):
    """Two huge values are finite each; their sum is not, and only in line 6 do they meet: "rome" in place 10."""

    def change(bert):
        bert.embeddings.word_embeddings.weight[5 + WORDS.index("rome"), 7] = 3e38
        bert.embeddings.position_embeddings.weight[10, 7] = 3e38

    subject = subject_of(damaged(tmp_path, change), sentence_file, 12)
    with pytest.raises(UserError, match=r"tensor 'bert\.embeddings\.LayerNorm' has the value nan") as told:
        calibrate(subject, PLAIN)
    assert f"{sentence_file}, line 6;" in str(told.value)
    others = [one for one in subject.sentences if one.line != 6]
    calibrate(replace(subject, sentences=others), PLAIN)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_bad_values_in_a_padded_batch_name_their_sentence_and_padding_does_not_count(value):
    runner: Any = SimpleNamespace(output_names=["a"], device=torch.device("cpu"))
    tensor = torch.ones(3, 4, 2)
    tensor[0, 2:] = tensor[1, 3:] = value  # behind the sentences
    batch = [sentence(line, length) for line, length in ((7, 2), (8, 3), (9, 4))]
    calibrator = BertCalibrator(runner)
    calibrator.add({"a": tensor}, batch, Path("file.txt"))
    assert calibrator.histograms[0]["a"].amax == 1.0
    assert calibrator.histograms[0]["a"].counts.sum() == (2 + 3 + 4) * 2
    tensor[1, 2, 0] = -value
    with pytest.raises(
        UserError, match=r"tensor 'a' has the value .* in the sentence of file\.txt, line 8; expected"
    ):
        calibrator.add({"a": tensor}, batch, Path("file.txt"))


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_values_that_cannot_be_counted_are_refused(value):
    runner: Any = SimpleNamespace(output_names=["a", "b"], device=torch.device("cpu"))
    tensors = {"a": torch.ones(3, 4, 2), "b": torch.ones(3, 4, 2)}
    tensors["b"][1, 3, 0] = -value
    with pytest.raises(
        UserError, match=r"tensor 'b' has the value .* in the sentence of file\.txt, line 8; expected"
    ):
        BertCalibrator(runner).add(tensors, [sentence(line, 4) for line in (7, 8, 9)], Path("file.txt"))


# --- reading the sentences --------------------------------------------------------------------------------


def test_calibration_and_evaluation_have_no_sentence_in_common(folder, sentence_file):
    data = read_data(folder, sentence_file, 5, 4)
    lines = [[one.line for one in part] for part in (data.calibration, data.evaluation)]
    assert [len(part) for part in lines] == [5, 4]
    assert not {*lines[0]} & {*lines[1]}
    assert data.mask_id == 4
    assert len(read_data(folder, sentence_file, 10, 64).evaluation) == 2


def test_lines_are_cut_to_the_position_table(folder, tmp_path):
    (tmp_path / "long.txt").write_text("a " * 200)
    data = read_data(folder, tmp_path / "long.txt", 1, 0)
    assert len(data.calibration[0].ids) == 64
    assert data.calibration[0].ids[-1] == 3  # [SEP]


BAD_DATA = [
    (None, r"cannot read .*bad\.txt: No such file"),
    (b"", r"bad\.txt holds no sentence, only blank lines"),
    (b"  \n\t\n\n", r"bad\.txt holds no sentence, only blank lines"),
    (b"paris\nly\xf6n\n", r"bad\.txt, line 2: byte 3 \(0xf6\) is not UTF-8.*\(1 bad lines in all\)"),
    (b"paris\nlyon\n", r"bad\.txt has 2 sentences, fewer than the 3 asked for.*--calibration-sentences"),
]


@pytest.mark.parametrize(("content", "message"), BAD_DATA)
def test_bad_data(folder, tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_data(folder, tmp_path / "bad.txt", 3, 0)


@pytest.mark.parametrize(
    ("content", "share"),
    [
        ("paris\n" * 4, None),
        ("東京 北京\n" * 4, "100% of the 16 tokens"),
        ("東 paris lyon nice\n" * 4, "25% of the 16 tokens"),
        ("東 " + "paris " * 19 + "\n" + "lyon " * 19 + "a\n" + "a\nb\n", None),  # 1 of 42
    ],
)
def test_text_that_the_tokenizer_does_not_know_is_told(folder, tmp_path, capsys, content, share):
    path = tmp_path / "text.txt"
    path.write_text(content, encoding="utf-8")
    read_data(folder, path, 3, 1)
    told = capsys.readouterr().err
    if share is None:
        assert not told
    else:
        assert told.startswith(f"warning: {share} of {path} are [UNK]: ")
        assert "name text of the model's language and field with --calibration-data FILE" in told


def test_a_tokenizer_without_unk_knows_all(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text("paris\n" * 4)
    monkeypatch.setattr(type(load_tokenizer(folder)), "unk_token_id", None, raising=False)
    read_data(folder, tmp_path / "text.txt", 3, 1)
    assert not capsys.readouterr().err


def test_a_pair_is_calibrated_as_a_pair(folder, tmp_path):
    """The network gets its token types, and a cache of the same tokens in one sentence is none of it."""
    (tmp_path / "text.txt").write_text("paris [SEP] lyon\n")
    (pair,) = read_data(folder, tmp_path / "text.txt", 1, 0).calibration
    assert batch_inputs([pair])["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]
    flat = replace(pair, types=np.zeros_like(pair.types))
    assert fingerprint(folder, [pair], CalibrationSettings()) != fingerprint(folder, [flat], CalibrationSettings())


# --- the cache --------------------------------------------------------------------------------------------

MADE = Calibration(
    CalibrationSettings(),
    {"x.smoothed": 0.1, "y": 3.0},
    {"x.smoothed": 0.2, "y": 4.0},
    {"x": np.array([1, 2], np.float32)},
)


class Cache:
    """A cache in a copy of a model's folder, and what a calibration would be made of."""

    def __init__(self, model: Path, place: Path) -> None:
        shutil.copytree(model, place)
        self.folder = ModelFolder(place)
        self.sentences = [sentence(1, 5), sentence(2, 7)]
        self.settings = CalibrationSettings()
        self.path = place / "calibration.json"
        self.made = 0

    def get(self) -> Calibration:
        def make() -> Calibration:
            self.made += 1
            return replace(MADE, settings=self.settings)

        return calibrate_cached(self.folder, self.sentences, self.settings, self.path, make)


@pytest.fixture
def cache(model_dir, tmp_path) -> Cache:
    return Cache(model_dir, tmp_path / "model")


def test_the_cache_is_used_again(cache, capsys):
    first, second = cache.get(), cache.get()
    assert cache.made == 1
    assert second.ranges == first.ranges == MADE.ranges
    assert second.amax == MADE.amax
    np.testing.assert_array_equal(second.smoothing["x"], MADE.smoothing["x"])
    assert "model, sentences and settings are the same" in capsys.readouterr().err
    assert sorted(path.name for path in cache.path.parent.iterdir() if "calibration" in path.name) == [
        cache.path.name
    ]


def test_a_range_comes_back_bit_for_bit(cache):
    ranges = {"x.smoothed": 0.1 + 0.2, "y": float(np.float32(1e-7))}
    write_cache(cache.path, replace(MADE, ranges=ranges), fingerprint(cache.folder, cache.sentences, cache.settings))
    assert cache.get().ranges == ranges


def append(name: str) -> Any:
    def change(cache: Cache) -> None:
        with (cache.folder.path / name).open("ab") as file:
            file.write(b" ")

    return change


def set_to(**changed: object) -> Any:
    def change(cache: Cache) -> None:
        cache.settings = replace(cache.settings, **changed)

    return change


CHANGES = [
    (append("model.onnx.data"), "Changed: weights"),
    (append("config.json"), "Changed: configuration"),
    (lambda cache: cache.sentences.reverse(), "Changed: calibration sentences"),
    (lambda cache: cache.sentences.pop(), "Changed: calibration sentences"),
    (set_to(method="max"), "Changed: setting method (mse -> max)"),
    (set_to(method="percentile"), "Changed: setting method (mse -> percentile)"),
    (set_to(sentences=2), "Changed: setting sentences (128 -> 2)"),
    (set_to(groups=("qkv",)), "Changed: setting groups (["),
    (set_to(smoothing=None), "Changed: setting smoothing (auto -> None)"),
    (set_to(smoothing=0.5, method="max"), "setting method (mse -> max), setting smoothing (auto -> 0.5)"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[told for _, told in CHANGES])
def test_a_cache_that_does_not_fit_is_made_again_and_says_why(cache, capsys, change, told):
    cache.get()
    change(cache)
    cache.get()
    assert cache.made == 2
    assert told in " ".join(capsys.readouterr().err.split())
    cache.get()
    assert cache.made == 2


def test_a_cache_of_an_earlier_format_is_made_again_and_says_so(cache, capsys):
    """Earlier ones of 8-bit plugins have no factors for layer norms and GELU."""
    cache.get()
    entry = json.loads(cache.path.read_text())["int8"]
    entry["fingerprint"] |= {"format": 1, "setting smoothed": ["attention-output"]}
    cache.path.write_text(json.dumps({"int8": entry}))
    cache.get()
    assert cache.made == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "does not fit any more, calibrating again. Changed: format (1 -> 2: an earlier version wrote it)" in told


def test_the_fusion_is_part_of_the_fingerprint_where_alpha_is_searched(cache):
    """The best alpha is that of one network; a fixed one is the same for all."""
    for smoothing, made in (("auto", 2), (0.5, 3)):
        for fusion in ("none", "all"):
            cache.settings = CalibrationSettings(smoothing=smoothing, fusion=fusion)
            cache.get()
        assert cache.made == made


@pytest.mark.parametrize("method", ["mse", "max", "entropy"])
def test_a_percentile_that_the_method_does_not_read_leaves_the_cache(cache, method):
    cache.settings = CalibrationSettings(method=method)
    cache.get()
    cache.settings = replace(cache.settings, percentile=90.0)
    cache.get()
    assert cache.made == 1


def test_a_percentile_that_the_method_reads_is_part_of_the_fingerprint(cache, capsys):
    cache.settings = CalibrationSettings(method="percentile")
    cache.get()
    cache.settings = replace(cache.settings, percentile=90.0)
    cache.get()
    assert cache.made == 2
    assert "Changed: setting percentile (99.99 -> 90.0)" in " ".join(capsys.readouterr().err.split())


def test_smoothing_is_read_for_linear_layers_alone(cache):
    for groups, made in ((("attention",), 1), (("qkv", "attention"), 3)):
        for smoothing in ("auto", 0.5):
            cache.settings = CalibrationSettings(groups=groups, smoothing=smoothing)
            cache.get()
        assert cache.made == made


def test_a_cache_of_an_earlier_version_that_holds_more_settings_is_used(cache):
    """It has the percentile, whatever the method."""
    cache.get()
    entry = json.loads(cache.path.read_text())["int8"]
    entry["fingerprint"]["setting percentile"] = 99.99
    cache.path.write_text(json.dumps({"int8": {**entry, "checksum": "0123"}}))
    cache.get()
    assert cache.made == 1


def test_int8_and_fp8_are_kept_beside_each_other(cache):
    for kind in ("int8", "fp8", "int8", "fp8"):
        cache.settings = CalibrationSettings(kind)
        assert cache.get().settings.kind == kind
    assert cache.made == 2
    assert set(json.loads(cache.path.read_text())) == {"int8", "fp8"}


def changed_entry(**parts: object) -> Any:
    return lambda text: json.dumps({"int8": json.loads(text)["int8"] | parts})


DAMAGE = {
    "empty": lambda text: "",
    "cut off": lambda text: text[:-20],
    "no JSON": lambda text: "ranges: 1",
    "a list": lambda text: "[]",
    "an entry that is a list": lambda text: '{"int8": []}',
    "an entry that is a number": lambda text: '{"int8": 5}',
    "an empty entry": lambda text: '{"int8": {}}',
    "a negative range": lambda text: text.replace("3.0", "-3.0"),
    "a range that is NaN": lambda text: text.replace("3.0", "NaN"),
    "a range that is text": lambda text: text.replace("3.0", '"3.0"'),
    "a range that is missing": changed_entry(ranges={"y": 3.0}),
    "ranges that are a list": changed_entry(ranges=[3.0]),
    "divisors that are negative": changed_entry(smoothing={"x": [1.0, -2.0]}),
    "divisors of another tensor": changed_entry(smoothing={"y": [1.0, 2.0]}),
    "smoothing that is null": changed_entry(smoothing=None),
    "a fingerprint that is null": changed_entry(fingerprint=None),
    "too deep": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again_and_says_so(cache, capsys, damage):
    cache.get()
    text = cache.path.read_text()
    broken = DAMAGE[damage](text)
    assert broken != text
    cache.path.write_text(broken)
    found = cache.get()
    assert cache.made == 2
    assert found.ranges == MADE.ranges
    assert f"{cache.path} is damaged (" in capsys.readouterr().err
    assert cache.path.read_text() == text


def test_a_cache_that_is_not_utf8(cache, capsys):
    cache.path.write_bytes(b"\xff\xfe{}")
    assert cache.get().ranges == MADE.ranges
    assert "is damaged" in capsys.readouterr().err


def test_no_cache_yet_is_nothing_to_tell(cache, capsys):
    wanted = fingerprint(cache.folder, cache.sentences, cache.settings)
    assert read_cache(cache.path, wanted, cache.settings) is None
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_is_named(cache):
    cache.path.mkdir()
    with pytest.raises(UserError, match=r"cannot write .*calibration\.json: Is a directory"):
        cache.get()


def test_a_failed_write_leaves_the_old_cache(cache, monkeypatch):
    cache.get()
    before = cache.path.read_bytes()
    cache.settings = CalibrationSettings("fp8")
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_cache(cache.path, replace(MADE, settings=cache.settings), {})
    monkeypatch.undo()
    assert cache.path.read_bytes() == before


# --- the script -------------------------------------------------------------------------------------------


def test_the_script_writes_table_cache_json_and_picture(in_process: InProcess, model_dir, sentence_file, tmp_path):
    cache, result, picture = tmp_path / "new" / "c.json", tmp_path / "r.json", tmp_path / "p.png"
    options = ["--model-dir", model_dir, "--calibration-data", sentence_file, "--calibration-sentences", 8]
    options += ["--cache", cache, "--json", result, "--plot", picture, "--calibration", "percentile"]
    done = in_process(calibrator.main, *options)
    assert done.code == 0, done.err
    assert "Ranges by percentile" in done.out
    assert f"-> {cache}" in " ".join(done.out.split())
    assert "8 tensors, 8 sentences in" in done.out
    assert "relative L2 error by alpha: off " in done.err
    said = json.loads(result.read_text())
    entry = json.loads(cache.read_text())["int8"]
    assert said["ranges"] == entry["ranges"]
    assert all(name.removesuffix(".smoothed") in done.out for name in said["ranges"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_fp8_and_all_groups(in_process: InProcess, model_dir, sentence_file, tmp_path):
    options = ["--model-dir", model_dir, "--calibration-data", sentence_file, "--calibration-sentences", 4]
    options += ["--precision", "fp8", "--quantize", ",".join(GROUPS), "--smooth", "off", "--plot", tmp_path / "p.svg"]
    done = in_process(calibrator.main, *options, "--cache", tmp_path / "c.json")
    assert done.code == 0, done.err
    assert len(json.loads((tmp_path / "c.json").read_text())["fp8"]["ranges"]) == 2 * (4 + 4)
    assert "of fp8" in done.out
    assert (tmp_path / "p.svg").read_bytes().lstrip().startswith(b"<?xml")


WRONG = [
    (["--calibration", "median"], 2, "invalid choice: 'median'"),
    (["--precision", "fp16"], 2, "invalid choice: 'fp16'"),
    (["--percentile", "0"], 2, "'0': expected more than 0 and at most 100, such as 99.99"),
    (["--percentile", "nan"], 2, "'nan': expected more than 0"),
    (["--calibration-sentences", "0"], 2, "'0': expected a whole number from 1"),
    (["--calibration-sentences", "1.5"], 2, "'1.5': expected a whole number from 1"),
    (["--quantize", "qkv,head"], 2, "'head' is none of qkv, attention-output, intermediate, output, attention"),
    (["--quantize", ""], 2, "'' is none of qkv"),
    (["--smooth", "1.1"], 2, "'1.1': expected off, auto, or a number from 0 to 1"),
    (
        ["--percentile", "99"],
        2,
        "--percentile has no effect with --calibration mse; it needs --calibration percentile",
    ),
    (
        ["--quantize", "attention", "--smooth", "0.5"],
        2,
        "--smooth has no effect with --quantize attention: only inputs",
    ),
    (["--plot", "ranges.txt"], 2, "'ranges.txt': expected a name that ends in .png, .svg or .pdf"),
    (["--precision", "fp8", "--calibration", "entropy"], 1, "choose max, percentile or mse"),
    (["--model-dir", "nowhere"], 1, "no model folder at nowhere"),
    (["--calibration-data", "none.txt"], 1, "cannot read none.txt: No such file"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_wrong_options(in_process: InProcess, model_dir, tmp_path, arguments, code, message):
    cache = tmp_path / "c.json"
    done = in_process(calibrator.main, "--model-dir", model_dir, "--cache", cache, *arguments)
    assert done.code == code
    assert message in " ".join(done.err.split())
    assert not cache.exists()


def test_as_a_script_a_wrong_option_is_exit_code_2(script: Script):
    done = script("calibrator.py", "--smooth", "much")
    assert done.returncode == 2
    assert "'much': expected off, auto" in done.stderr


def test_a_model_without_tokenizer_says_so(model_dir, tmp_path, sentence_file):
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing; write it again with model2onnx\.py"):
        read_data(ModelFolder(tmp_path / "model"), sentence_file, 1, 0)


def test_groups_of_products(folder):
    assert len(in_groups(encoder_products(folder), ["attention"])) == 4
