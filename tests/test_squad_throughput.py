"""benchmarks/squad_throughput.py: the work that it counts, its batches, and the network that it runs, on a CPU."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, InProcess
from plugin_build_for_tests import built_plugins

from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import QUESTION_ANSWERING, TOLERANCES
from bert_trt.packing import Limits, pack
from bert_trt.tensorrt_log import TrtLog
from builder import assemble


@pytest.fixture
def squad(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("squad_throughput")


@pytest.fixture
def tiny(squad):
    return squad.RandomModel(squad.random_config(*squad.MODELS["tiny"], task=QUESTION_ANSWERING))


def test_lengths_are_those_of_squad(squad):
    lengths = squad.read_lengths(None)
    assert len(lengths) == 10_833
    assert lengths.mean() == pytest.approx(178.49, abs=0.005)
    assert lengths.max() == 384
    assert sorted(squad.read_lengths(100)) != sorted(lengths)[:100]  # not the shortest ones first
    np.testing.assert_array_equal(squad.read_lengths(100), lengths[:100])


def test_work_is_that_of_the_products(squad, tiny):
    """Counted from the network's own products, and two products of each pair of tokens in attention."""
    lengths = np.array([5, 1, 17])
    products = assemble(tiny, TrtLog(), batching="padded").products
    weights = sum(product.weight_shape[0] * product.weight_shape[1] for product in products if product.weight_shape)
    expected = 2 * weights * 23 + 2 * tiny.config.hidden_size * 2 * 23
    for length in lengths.tolist():
        pairs = length * length
        expected += tiny.config.num_layers * 2 * 2 * pairs * tiny.config.hidden_size
    assert squad.operations(tiny.config, lengths) == expected


def test_batches_have_few_sizes_and_hardly_any_padding(squad):
    lengths = squad.read_lengths(None)
    for budget in squad.BUDGETS:
        packed = pack([np.zeros(length, np.int32) for length in lengths], Limits(budget, len(lengths), 512))
        batches = [squad.HostBatch.of(batch, budget, pin=False) for batch in packed]
        assert len({batch.size for batch in batches}) <= squad.GRAPH_STEPS
        assert sum(batch.size[0] for batch in batches) < 1.01 * lengths.sum()


def test_a_padded_batch_has_the_sequences_and_nothing_else(squad):
    sequences = [np.arange(1, length + 1, dtype=np.int32) for length in (3, 70, 5)]
    (packed,) = pack(sequences, Limits(1024, 3, 512))
    batch = squad.HostBatch.of(packed, 1024, pin=False)
    assert batch.size == (128, 128)
    tokens, ends = batch.inputs[INPUT_NAMES[0]].numpy(), batch.inputs[LENGTHS_NAME].numpy()
    assert tokens[:78].all()
    assert not tokens[78:].any()
    assert ends.tolist() == [0, 70, 75, *[78] * 126]  # the longest first, then empty sequences
    assert len(batch.result) == 78


@pytest.mark.parametrize(("precision", "accepted"), [("fp16", TOLERANCES["fp16"]), ("int8", 0.05), ("fp8", 0.05)])
def test_logits_are_those_of_single_sequences_in_fp32(precision, accepted, squad, tiny):
    """Packed and padded to the size of a graph, in several batches, each result at the place of its sequence."""
    built_plugins()
    sequences = squad.random_sequences(np.array([40, 7, 300, 1, 128, 384, 64, 200]), tiny.config.vocab_size)
    quantization = None if precision == "fp16" else squad.find_quantization(tiny, precision)
    network = squad.SpanNetwork(tiny, precision, "cpu", quantization)
    workload = squad.Workload(network, sequences, 512, tiny.config)
    assert len(workload.batches) > 1
    with torch.inference_mode():
        workload.run()
    single = assemble(tiny, TrtLog(), "fp32")
    runner = NetworkRunner(single.network, "cpu", contents=single.contents)
    expected = []
    for ids in sequences:
        values = (ids[None], np.zeros_like(ids)[None], np.arange(len(ids), dtype=np.int32)[None])
        (logits,) = runner.run(dict(zip(INPUT_NAMES, values, strict=True))).values()
        expected.append(logits[0].numpy())
    assert squad.relative_error(workload.results(), np.concatenate(expected)) <= accepted


KIND_OF_BEGINNING = {
    "linear": "Linear",
    "qkvToContext": "attention",
    "skipLayerNorm": "norms",
    "layerNorm": "norms",
    "embLayerNorm": "embedding",
}


def test_every_kernel_has_a_kind(squad):
    kernels = set()
    for path in (ROOT / "plugins").glob("*/*.cu*"):
        if path.parent.name != "build" and not path.stem.endswith(("_check", "_functions")):
            for rest in re.split(r"\b__global__\b", path.read_text(encoding="utf-8"))[1:]:
                kernels.update(re.findall(r"(\w+Kernel)\(", rest)[:1])
    kernels.add("linearSkipLayerNormKernel")  # a product first of all
    kinds = {name: squad.kind_of(f"void bert::(anonymous namespace)::{name}<__half, 64>(int)") for name in kernels}
    for name, kind in kinds.items():
        beginning = next(beginning for beginning in KIND_OF_BEGINNING if name.startswith(beginning))
        assert kind == KIND_OF_BEGINNING[beginning], name
    assert set(kinds.values()) == set(KIND_OF_BEGINNING.values())  # the search has found some of each


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", "head"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_f16_s16816gemm_f16_64x64_32x6_tn_align2>", "head"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>>", "other"),
    ],
)
def test_the_kind_of_other_kernels(kernel, kind, squad):
    assert squad.kind_of(kernel) == kind


def test_it_measures_a_tiny_model_on_a_cpu(squad, in_process: InProcess, tmp_path: Path, monkeypatch):
    built_plugins()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    files = {kind: tmp_path / f"x.{kind}" for kind in ("json", "markdown")}
    arguments = "--model tiny --precision fp16 fp8 --budget 512 1024 --sequences 5 --passes 1".split()
    ended = in_process(squad.main, *arguments, "--json", files["json"], "--markdown", files["markdown"])
    assert ended.code == 0, ended.err
    results = json.loads(files["json"].read_text())["results"]
    assert [result["precision"] for result in results] == ["fp16", "fp8"]
    lengths = squad.read_lengths(5)
    for result in results:
        assert result["tokens"] == lengths.sum()
        assert result["samples_per_second"] == pytest.approx(5 / result["seconds"])
        assert set(result["samples_per_second_by_budget"]) == {"512", "1024"}
        assert result["peak_tflops"] is None
    assert 0 < results[1]["rel_l2_to_fp16"] < 0.05
    page = files["markdown"].read_text()
    for text in (ended.out, page):
        assert "9,224" in text
        assert "weights trained for it" in text
        assert "without that proof" in " ".join(text.split())
    assert "by kind" not in page  # a CPU has no kernels


@pytest.mark.parametrize("text", ["0", "-512", "100", "1000", "x", "512.0"])
def test_a_wrong_budget_is_refused(text, squad):
    with pytest.raises(argparse.ArgumentTypeError, match="expected at least 512 tokens, a multiple of 128"):
        squad.budget(text)


def test_a_large_model_needs_a_gpu(squad, in_process: InProcess):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ended = in_process(squad.main, "--model", "large")
    assert ended.code == 1
    assert "needs an NVIDIA GPU; a CPU can only run --model tiny" in ended.err
