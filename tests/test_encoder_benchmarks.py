"""What benchmarks/encoder.py and quantized_encoder.py compare with, and the tables of the sweep, on a CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, InProcess
from plugin_build_for_tests import built_plugins

from bert_trt.model_files import INPUT_NAMES, MASK_NAME
from bert_trt.network_runner import NetworkRunner
from bert_trt.tensorrt_log import TrtLog
from builder import assemble


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmarks."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    names = ("encoder", "pytorch_encoder", "random_model")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def tiny(benchmarks) -> Any:
    return benchmarks.random_model.RandomModel(benchmarks.random_model.random_config(2, 128, 2, 1000))


def random_ids(batch: int, length: int) -> tuple[torch.Tensor, ...]:
    """Token ids, token types and positions, each int32 (B, S)."""
    ids = torch.from_numpy(np.random.default_rng(batch).integers(5, 1000, (batch, length), np.int32))
    return ids, ids % 2, torch.arange(length, dtype=torch.int32).repeat(batch, 1)


def relative_error(values: torch.Tensor, reference: torch.Tensor) -> float:
    return float((values.double() - reference.double()).norm() / reference.double().norm())


def test_peers_compute_the_network(benchmarks, tiny):
    """In fp16 within its roundings, in fp8 within those of 8 bits, from the same weights and ids."""
    network = assemble(tiny, TrtLog(), "fp32", batching="padded")
    runner = NetworkRunner(network.network, "cpu", contents=network.contents)
    ids = random_ids(3, 17)
    inputs = dict(zip(INPUT_NAMES, ids, strict=True)) | {MASK_NAME: torch.ones(3, 17, dtype=torch.int32)}
    (expected,) = runner.run(inputs).values()
    with torch.inference_mode():
        peer = benchmarks.pytorch_encoder.Peer(tiny.config, tiny.weights(), "cpu")
        assert relative_error(peer(peer.embed(*ids)), expected) < 2e-3
        quantized = benchmarks.pytorch_encoder.Fp8Peer(tiny.config, tiny.weights(), random_ids(8, 32))
        assert 1e-3 < relative_error(quantized(quantized.embed(*ids)), expected) < 0.03
    for layer in quantized.layers:
        for name in benchmarks.pytorch_encoder.PRODUCTS:
            assert layer[name].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("kind", ["Peer", "Fp8Peer"])
def test_one_function_is_compiled_for_all_layers(kind, benchmarks, tiny, monkeypatch):
    compiled = []

    def count(module: torch.fx.GraphModule, _inputs: Any) -> Any:
        compiled.append(module)
        return module.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend=count, **options))
    arguments = ("cpu",) if kind == "Peer" else (random_ids(2, 32),)
    with torch.inference_mode():
        peer = getattr(benchmarks.pytorch_encoder, kind)(tiny.config, tiny.weights(), *arguments)
        x = peer.embed(*random_ids(4, 64))
        torch.testing.assert_close(peer.compiled()(x), peer(x))
    assert len(compiled) == 1


def test_random_weights_are_the_same_from_the_same_seed(benchmarks):
    first, second, other = (benchmarks.random_model.RandomWeights(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.get("a.weight", (3, 4)), second.get("a.weight", (3, 4)))
    assert (first.get("a.weight", (3, 4)) != other.get("a.weight", (3, 4))).all()
    assert (first.get("a.weight", (3, 4)) != first.get("b.weight", (3, 4))).all()
    assert first.get("x.LayerNorm.weight", (1000,)).mean() == pytest.approx(1, abs=0.01)
    assert first.get("x.LayerNorm.bias", (1000,)).mean() == pytest.approx(0, abs=0.01)


def test_the_sweep_compares_the_same_work(benchmarks, tiny, monkeypatch):
    """On a CPU, where the contenders run once and nothing is timed."""
    built_plugins()
    outputs = []

    def run_once(functions: Mapping[str, Callable[[], Any]], _launches: int, _rounds: int) -> dict[str, float]:
        outputs.append({name: function() for name, function in functions.items()})
        return dict.fromkeys(functions, 1.0)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    monkeypatch.setattr(benchmarks.encoder, "DEVICE", "cpu")
    monkeypatch.setattr(benchmarks.encoder, "graph_times", run_once)
    monkeypatch.setattr(benchmarks.encoder, "fastest_attention", lambda *_arguments: "flash")
    results = list(benchmarks.encoder.sweep(tiny, [(1, 16), (3, 8)]))
    assert [(result["batch"], result["length"]) for result in results] == [(1, 16), (3, 8)]
    for size, by_name in zip(((1, 16), (3, 8)), outputs, strict=True):
        compiled, padded, packed = by_name["compiled"], by_name["padded"][0], by_name["packed"][0]
        assert compiled.shape == padded.shape == (*size, 128)
        assert relative_error(padded, compiled) < 5e-3
        assert relative_error(packed, compiled.flatten(0, 1)) < 5e-3


RESULTS = [
    {"batch": batch, "length": length, "backend": "flash", "microseconds": times}
    for batch, length, times in (
        (1, 32, {"compiled": 150.0, "padded": 100.0, "packed": 200.0}),
        (2, 32, {"compiled": 120.0, "padded": 100.0, "packed": 100.0}),
        (1, 64, {"compiled": 90.0, "padded": 100.0, "packed": 100.0}),
    )
]


def test_tables_of_the_sweep_show_losses_and_gaps(benchmarks):
    encoder = benchmarks.encoder
    assert encoder.ratio_rows(RESULTS, "padded") == [["1", "1.50", "0.90"], ["2", "1.20", "—"]]
    assert encoder.ratio_rows(RESULTS, "packed") == [["1", "0.75", "0.90"], ["2", "1.20", "—"]]
    assert len(encoder.sweep_rows(RESULTS)) == len(RESULTS)
    assert [title for title, *_ in encoder.sweep_tables(RESULTS)][:2] == [
        "torch.compile ÷ ours, padded",
        "torch.compile ÷ ours, packed",
    ]


def test_the_picture_of_the_sweep(benchmarks, tmp_path):
    benchmarks.encoder.draw(RESULTS, "title", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_sweep_goes_from_small_to_large(benchmarks):
    sizes = benchmarks.encoder.ALL_SIZES
    assert {batch for batch, _ in sizes} == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert {length for _, length in sizes} == {32, 64, 128, 256, 384, 512}
    assert len(sizes) == 9 * 6
    assert max(batch * length for batch, length in sizes) == 131072
    assert set(benchmarks.encoder.SIZES) <= set(sizes)


def test_a_picture_needs_a_sweep(benchmarks, in_process: InProcess):
    ended = in_process(benchmarks.encoder.main, "--plot", "x.png")
    assert ended.code == 2
    assert "--plot draws the ratios of --sweep; add it" in ended.err


def test_the_picture_does_not_go_over_the_results(benchmarks, in_process: InProcess):
    ended = in_process(benchmarks.encoder.main, "--sweep", "--json", "x", "--plot", "./x")
    assert ended.code == 1
    assert "--plot x would overwrite --json (x)" in ended.err
