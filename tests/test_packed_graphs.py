"""bert_trt/packed_graphs.py: what a batch is padded with changes no row, and graphs give what the runner gives."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_trt import network_runner
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import EMBEDDING, FILL_MASK, QUESTION_ANSWERING, SequenceRange
from bert_trt.packed_graphs import SPARE_TOKENS, STEPS, PackedGraphs, graph_size, pad_inputs
from bert_trt.packing import Limits, pack, packed_batch
from bert_trt.prediction import BatchRanges
from bert_trt.pytorch_network import AHEAD, AHEAD_WITH_WORDS, PyTorchNetwork
from bert_trt.tensorrt_log import TrtLog
from builder import assemble

VOCABULARY = 1000
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, for CUDA graphs")


@pytest.fixture
def make_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a small random model for a task."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    random_model = importlib.import_module("random_model")

    def make(task: str, pooling: str = "mean") -> Any:
        config = random_model.random_config(2, 64, 2, VOCABULARY, task)
        return random_model.RandomModel(replace(config, pooling=pooling))

    return make


def inputs_of(lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """The inputs of one packed batch of random sequences."""
    generator = np.random.default_rng(sum(lengths))
    ids = [generator.integers(5, VOCABULARY, length, np.int32) for length in lengths]
    (batch,) = pack(ids, Limits(sum(lengths), len(lengths), 512))
    return packed_batch(batch).inputs


@given(tokens=st.integers(1, 2**20), sequences=st.integers(1, 2**12))
@settings(deadline=None)
def test_sizes(tokens, sequences):
    """At most a quarter more, and at least one token behind the last sequence."""
    inputs = {INPUT_NAMES[0]: np.empty(tokens, np.int8), LENGTHS_NAME: np.empty(sequences + 1, np.int8)}
    padded_tokens, padded_sequences = graph_size(inputs)
    assert tokens < padded_tokens < max(tokens, 256) * (1 + 1 / STEPS) + SPARE_TOKENS
    assert sequences <= padded_sequences < max(sequences, 16) * (1 + 1 / STEPS)


@pytest.mark.parametrize("fusion", ["none", "all"])
@pytest.mark.parametrize(
    ("task", "pooling"), [(EMBEDDING, "mean"), (EMBEDDING, "cls"), (EMBEDDING, "max"), (QUESTION_ANSWERING, "mean")]
)
def test_padding_changes_no_row(make_model, task, pooling, fusion):
    model = make_model(task, pooling)
    network = assemble(model, TrtLog(), "fp32", batching="packed", fusion=fusion)
    runner = NetworkRunner(network.network, "cpu", contents=network.contents, checks_batch=False)
    for lengths in ([1], [7, 3, 20], [1] * 16, [64, 64, 64, 64], [30] * 9):
        inputs = inputs_of(lengths)
        (expected,) = runner.run(inputs).values()
        (found,) = runner.run(pad_inputs(inputs, graph_size(inputs))).values()
        assert len(expected) == (len(lengths) if task == EMBEDDING else sum(lengths))
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("fusion", "precision"), [("none", "fp32"), ("all", "fp32"), ("all", "fp16")])
def test_means_of_sequences_are_those_of_the_network(make_model, fusion, precision):
    """Of short sequences and of long ones, which are computed in another way."""
    network = assemble(make_model(EMBEDDING), TrtLog(), precision, batching="packed", fusion=fusion)
    runner, faster = (
        NetworkRunner(network.network, "cpu", contents=network.contents, checks_batch=False) for _ in range(2)
    )
    faster.use_sequence_means()
    targets = [node.target for node in faster.module.graph.nodes]
    assert targets.count(network_runner.mean_of_sequences) == 1
    assert network_runner.strided_slice not in targets  # the matrix is no longer made
    for lengths in ([7, 3, 20, 1], [1] * 20, [400, 1, 300]):
        inputs = inputs_of(lengths)
        for made in (inputs, pad_inputs(inputs, graph_size(inputs))):
            (expected,), (found,) = (one.run(made).values() for one in (runner, faster))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("tokens", [30, 6 * network_runner.SHORT_ON_AVERAGE, 6 * network_runner.SHORT_ON_AVERAGE + 1])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_means_of_sequences_by_a_loop(tokens, device):
    """A huge value changes no other sequence's mean, and an empty sequence has none."""
    bounds = [0, 1, 11, 11, 12, tokens - 5, tokens - 5]
    x = torch.randn(tokens, 33, generator=torch.Generator().manual_seed(0))
    x[3, 5] = 1e30
    on_device = (x.to(device), torch.tensor(bounds, dtype=torch.int32, device=device))
    found = network_runner.mean_of_sequences(*on_device).cpu()
    for row, start, end in zip(found, bounds[:-1], bounds[1:], strict=True):
        expected = x[start:end].double().mean(dim=0).float()
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_another_computation_is_not_taken_for_a_mean(make_model):
    network = assemble(make_model(EMBEDDING), TrtLog(), "fp32", batching="packed", fusion="all")
    changes = {
        network_runner.strided_slice: lambda args: (args[0], (2,), *args[2:]),
        network_runner.cumulative: lambda args: (*args[:2], True, args[3]),
        torch.lt: lambda args: args[::-1],
    }
    for function, change in changes.items():
        runner = NetworkRunner(network.network, "cpu", contents=network.contents)
        node = next(node for node in runner.module.graph.nodes if node.target is function)
        node.args = change(node.args)
        runner.use_sequence_means()
        assert network_runner.mean_of_sequences not in [one.target for one in runner.module.graph.nodes]


@needs_gpu
@pytest.mark.parametrize("task", [EMBEDDING, QUESTION_ANSWERING])
def test_graphs_give_what_the_runner_gives(make_model, task):
    """Each size several times: at first without a graph, then with one, in between with those of others."""
    model = make_model(task)
    network = assemble(model, TrtLog(), "fp16", batching="packed", fusion="all")
    runner = NetworkRunner(network.network, "cuda", contents=network.contents)
    runner.use_sequence_means()
    graphs = PackedGraphs(runner, model.config.is_per_sequence)
    generator = np.random.default_rng(0)
    batches = [
        inputs_of(generator.integers(1, 60, count).tolist()) for count in (3, 40, 3, 2, 40, 100, 41, 3, 100, 99)
    ]
    launched = [graphs.launch(inputs) for inputs in batches]
    for inputs, one in zip(batches, launched, strict=True):
        (expected,) = runner.run(inputs).values()
        np.testing.assert_allclose(one.result(), expected.cpu().numpy(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("fusion", "batching"), [("none", "padded"), ("tensorrt", "padded"), ("plugins", "packed"), ("all", "packed")]
)
def test_batches_are_packed_where_a_plugin_computes_attention_on_a_gpu(make_model, monkeypatch, fusion, batching):
    for device, expected in (("cuda", batching), ("cpu", "padded")):
        monkeypatch.setattr(network_runner, "best_device", lambda device=device: device)
        network = PyTorchNetwork(make_model(EMBEDDING), assemble, "fp16", fusion)
        assert network.ranges.batching == expected


@pytest.mark.parametrize(("task", "ahead"), [(EMBEDDING, AHEAD), (FILL_MASK, AHEAD_WITH_WORDS)])
def test_batches_are_launched_before_outputs_are_read(make_model, task, ahead):
    class Graphs:
        """In place of ``PackedGraphs``; an output is the batch's number."""

        def __init__(self) -> None:
            self.events: list[str] = []

        def launch(self, inputs: dict[str, np.ndarray]) -> Any:
            number = int(inputs["number"])
            self.events.append(f"launch {number}")

            def result() -> np.ndarray:
                self.events.append(f"read {number}")
                return np.array(number)

            return SimpleNamespace(result=result)

    network, graphs = PyTorchNetwork(make_model(task), assemble), Graphs()
    network.__dict__["graphs"] = graphs
    assert list(network.run_all({"number": np.array(number)} for number in range(9))) == list(range(9))
    assert graphs.events.index("read 0") == ahead + 1
    assert graphs.events.index("read 1") == ahead + 3


@needs_gpu
def test_outputs_come_in_order(make_model):
    network = PyTorchNetwork(make_model(EMBEDDING), assemble, "fp16", "all")
    assert network.graphs is not None
    network.ranges = BatchRanges("packed", SequenceRange(1, 512, 512), SequenceRange(1, 1024, 1024))
    batches = [inputs_of([length] * 5) for length in (3, 30, 3, 90, 3, 30, 90)]
    for inputs, output in zip(batches, network.run_all(batches), strict=True):
        np.testing.assert_allclose(output, network.run(inputs), rtol=2e-3, atol=2e-3)
