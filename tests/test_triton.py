"""triton_repository.py without a server: sizes, configurations, files, the network on what Triton's backend makes.

benchmarks/triton_batching.py makes the inputs of a batch as the backend does; the network runs with PyTorch on them.
test_triton_server.py starts the server.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import InProcess
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from random_families import make_family_checkpoint
from test_predict_tasks import PAIRS, TEXTS, check_same

import model2onnx
import triton_repository
from benchmarks import triton_stand_in
from benchmarks.triton_batching import (
    ACCUMULATED,
    BatchError,
    Request,
    empty_buffers,
    form_batch,
    split_output,
)
from bert_trt import triton_models, triton_text
from bert_trt.console import UserError
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, SEQUENCE_LENGTHS_NAME, ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import (
    EMBEDDING,
    FILL_MASK,
    HIDDEN_STATES,
    QUESTION_ANSWERING,
    RAGGED,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    AnswerOptions,
    PlanOptions,
    SequenceRange,
)
from bert_trt.packing import Limits, pack, ragged_batch
from bert_trt.plan import PlanInfo, info_path, profile_shapes, read_info
from bert_trt.prediction import BatchRanges, Predictor, Source
from bert_trt.pytorch_network import PyTorchNetwork
from bert_trt.records import Record
from bert_trt.tensorrt_log import TrtLog
from bert_trt.triton_models import Sizes, input_names, network_config, protobuf_text, text_config
from builder import assemble, run
from plugins.triton_loader import LOADER, build_loader

ROOT = Path(__file__).parent.parent
BATCHINGS = (RAGGED, "padded")
TASKS = (FILL_MASK, EMBEDDING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING)
POSITIONS = 40
ROUNDING = 2e-5  # of fp32, in other batches


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    """A random model of every task."""
    model2onnx.quiet_libraries()
    made = {}
    for task in TASKS:
        base = tmp_path_factory.mktemp("made")
        make_family_checkpoint(base / "checkpoint", "bert", task)
        pooling = "mean" if task == EMBEDDING else None
        model2onnx.export(str(base / "checkpoint"), None, base / "model", task=task, pooling=pooling)
        made[task] = ModelFolder(base / "model")
    return made


def profile_of(batching: str, sizes: Sizes) -> dict[str, list[list[int]]]:
    """The profile of the plan that is built for these sizes."""
    shape = [-1] if batching == RAGGED else [-1, -1]
    return {name: profile_shapes(name, shape, sizes.seq_len, sizes.batch) for name in input_names(batching)}


def info_of(profile: Mapping[str, Any], **changes: Any) -> PlanInfo:
    values = {"plugin_library": "", "plugins_embedded": False} | changes
    return PlanInfo("tensorrt", "11.1.0.106", [], 0, 4, dict(profile), 1, 1.0, **values)


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        (FILL_MASK, (None, None), 4096 // POSITIONS),
        (EMBEDDING, (None, None), 16384 // POSITIONS),
        (EMBEDDING, (3, None), 3),
        (EMBEDDING, (None, 3 * POSITIONS), 3),
        (EMBEDDING, (None, 4 * POSITIONS - 1), 3),
        (EMBEDDING, (3, 3 * POSITIONS), 3),
        (EMBEDDING, (2, 1000), 2),
    ],
)
def test_sizes_of_options(task, options, expected, folders):
    assert Sizes.of(folders[task].config, *options) == Sizes(expected, POSITIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, 39), r"--max-tokens 39: one sequence can have 40 tokens.*name at least 40"),
        (
            (3, 119),
            r"--max-batch 3: .*120 tokens, and --max-tokens is 119.*lower --max-batch to 2, or raise .* to 120",
        ),
        ((3, 7), r"Triton counts sequences, not tokens, so that both must fit: raise --max-tokens to 120"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message, folders):
    with pytest.raises(UserError, match=message):
        Sizes.of(folders[FILL_MASK].config, *options)


@st.composite
def batches(draw: st.DrawFn, most: int = 8, longest: int = POSITIONS, batching: str = RAGGED) -> list[list[int]]:
    """Requests that Triton's batcher may put together, each by the lengths of its items, which are equal."""
    requests, room = [], draw(st.integers(1, most))
    length = draw(st.integers(1, longest))
    while room > 0:
        items = draw(st.integers(1, min(room, 3)))
        requests.append([draw(st.integers(1, longest)) if batching == RAGGED else length] * items)
        room -= items
    return requests


def make_requests(lengths: Sequence[Sequence[int]], batching: str = RAGGED, seed: int = 0) -> list[Request]:
    """Requests of random tokens, each input int32 (n, S)."""
    random = np.random.default_rng(seed)
    requests = []
    for items in lengths:
        shape = (len(items), items[0])
        request = {"input_ids": random.integers(0, 60, shape), "token_type_ids": random.integers(0, 2, shape)}
        if batching == "padded":
            mask = np.arange(shape[1]) < random.integers(1, shape[1] + 1, (len(items), 1))
            request |= {"position_ids": np.tile(np.arange(shape[1]), (len(items), 1)), MASK_NAME: mask}
        requests.append({name: values.astype(np.int32) for name, values in request.items()})
    return requests


@given(max_batch=st.integers(1, 40), lengths=batches(40), batching=st.sampled_from(BATCHINGS))
def test_a_plan_takes_every_batch_that_triton_can_make(max_batch, lengths, batching, folders):
    """Whatever is put together: one batch that the plan refuses would be an error for everybody in it."""
    if batching == "padded":
        lengths = [[lengths[0][0]] * len(items) for items in lengths]
    if sum(map(len, lengths)) > max_batch:
        lengths = [[lengths[0][0]]]
    sizes = Sizes.of(folders[FILL_MASK].config, max_batch, None)
    profile, config = profile_of(batching, sizes), network_config(folders[FILL_MASK].config, batching, sizes)
    sizes.check_plan(Path("model.plan"), info_of(profile), batching)
    form_batch(config, profile, make_requests(lengths, batching), empty_buffers(profile))


def test_one_request_that_is_too_long_fails_its_batch(folders):
    """What the backend does, and why bert_text checks lengths before."""
    sizes = Sizes(2, POSITIONS)
    profile, config = profile_of(RAGGED, sizes), network_config(folders[FILL_MASK].config, RAGGED, sizes)
    with pytest.raises(BatchError, match=r"input input_ids is \[81\], outside \[1\] to \[80\]"):
        form_batch(config, profile, make_requests([[1], [80]]), empty_buffers(profile))


# --- configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("task", TASKS)
def test_configurations_are_those_of_tritons_own_protobuf(task, batching, folders):
    assert triton_stand_in.PACKAGES  # its import makes requirements-serving.txt's packages known
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import json_format, text_format

    config, sizes = folders[task].config, Sizes(8, POSITIONS)
    network, text = (
        text_format.Parse(protobuf_text(values), model_config_pb2.ModelConfig())
        for values in (
            network_config(config, batching, sizes),
            text_config(config, batching, sizes, AnswerOptions(top_k=3)),
        )
    )
    assert [network.name, text.name] == ["bert", "bert_text"]
    assert [network.backend, text.backend] == ["tensorrt", "python"]
    assert network.max_batch_size == text.max_batch_size == 8
    given_inputs = [one.name for one in network.input]
    made = [name for one in network.batch_input for name in one.target_name]
    profile = profile_of(batching, sizes)
    assert [*given_inputs, *made] == list(profile)  # the plan's inputs, in its order
    assert all(one.allow_ragged_batch == (batching == RAGGED) for one in network.input)
    (output,) = network.output
    assert [output.name, output.dims[-1]] == [config.output_name, config.output_width]
    assert len(output.dims) == (1 if config.is_per_sequence else 2)
    scattered = [name for one in network.batch_output for name in one.target_name]
    assert scattered == ([config.output_name] if batching == RAGGED and not config.is_per_sequence else [])
    graphs = network.optimization.cuda.graph_spec
    assert graphs
    for graph in graphs:
        assert set(graph.input) == set(profile)
        check_graph(graph, profile, batching)
    values = json.loads(text.parameters["settings"].string_value)
    assert values["batching"] == batching
    assert AnswerOptions(**values["answers"]) == AnswerOptions(top_k=3)
    # The rules of triton_batching.py read the form in which a Python model gets the configuration.
    as_json = json_format.MessageToDict(network, preserving_proto_field_name=True)
    requests = make_requests([[5, 5]] if batching == RAGGED else [[16, 16]], batching)
    assert form_batch(as_json, profile, requests, empty_buffers(profile)).graph is not None


def check_graph(graph: Any, profile: Mapping[str, Any], batching: str) -> None:
    """A graph's sizes are within the profile, and its batch is exact."""
    with_batch = [] if batching == RAGGED else [graph.batch_size]
    for name, shape in graph.input.items():
        smallest, _, largest = profile[name]
        sizes = [*with_batch, *shape.dim]
        assert all(low <= size <= high for low, size, high in zip(smallest, sizes, largest, strict=True))
    if batching == RAGGED:
        assert graph.graph_lower_bound.batch_size == graph.batch_size
        bound = graph.graph_lower_bound.input
        assert list(graph.input[SEQUENCE_LENGTHS_NAME].dim) == list(bound[SEQUENCE_LENGTHS_NAME].dim)
        assert list(bound["input_ids"].dim) <= list(graph.input["input_ids"].dim)
    else:  # a longer row than a request's would not begin where the request's does
        assert not graph.HasField("graph_lower_bound")


@given(
    tokens=st.integers(1, 300),
    batch=st.sampled_from([1, 2, 4, 8]),
    longest=st.integers(1, 600),
    most=st.sampled_from([1, 3, 8, 20]),
)
def test_graphs_leave_no_gap_between_their_sizes(tokens, batch, longest, most):
    """Up to the largest graph, every number of tokens of these batches has one graph."""
    graphs = [one for one in triton_models.ragged_graphs(Sizes(most, longest)) if one["batch_size"] == batch]
    if batch > most:
        assert not graphs
    elif batch <= tokens <= batch * longest:
        fitting = [
            one
            for one in graphs
            if one["graph_lower_bound"]["input"]["input_ids"]["dim"][0]
            <= tokens
            <= one["input"]["input_ids"]["dim"][0]
        ]
        assert len(fitting) == 1


def test_text_of_protobuf():
    message = {"name": 'a "b"\n', "kind": triton_models.Word("KIND_CPU"), "dims": [-1, 2], "on": True}
    nested = {"parameters": triton_models.Map({"k": {"string_value": "v"}}), "empty": {}}
    assert protobuf_text(message) == 'name: "a \\"b\\"\\n"\nkind: KIND_CPU\ndims: -1\ndims: 2\non: true\n'
    assert protobuf_text(nested) == (
        'parameters {\n  key: "k"\n  value {\n    string_value: "v"\n  }\n}\nempty {\n}\n'
    )


# --- the backend's rules ------------------------------------------------------------------------------------------


def packed_config(kind: str, graph: Sequence[int] = ()) -> dict[str, Any]:
    """A configuration with one batch input ``x``, and perhaps a graph for (sequences, tokens, elements of x)."""
    names = ("input_ids", "x")
    spec = {
        "batch_size": graph[0] if graph else 1,
        "input": {name: {"dim": [size]} for name, size in zip(names, graph[1:], strict=False)},
        "graph_lower_bound": {"batch_size": 1, "input": {name: {"dim": [1]} for name in names}},
    }
    return {
        "input": [{"name": "input_ids", "dims": [-1], "allow_ragged_batch": True}],
        "batch_input": [{"kind": kind, "target_name": ["x"], "source_input": ["input_ids"]}],
        "output": [{"name": "y", "dims": [-1, 3]}, {"name": "z", "dims": [2]}],
        "batch_output": [{"target_name": ["y"], "source_input": ["input_ids"]}],
        "optimization": {"cuda": {"graph_spec": [spec] if graph else []}},
    }


PACKED_PROFILE = {"input_ids": [[1], [8], [64]], "x": [[1], [3], [9]]}


def test_accumulated_counts_are_of_requests_and_shapes_of_items():
    """A request with two sequences is one of twice the length by its count: why bert takes the lengths of items."""
    requests = [{"input_ids": np.full((2, 3), 7)}, {"input_ids": np.full((1, 4), 8)}]
    formed = {
        kind: form_batch(packed_config(kind), PACKED_PROFILE, requests, empty_buffers(PACKED_PROFILE)).inputs
        for kind in (ACCUMULATED, "BATCH_ITEM_SHAPE_FLATTEN")
    }
    assert formed[ACCUMULATED]["x"].tolist() == [0, 6, 10]
    assert formed["BATCH_ITEM_SHAPE_FLATTEN"]["x"].tolist() == [3, 3, 4]
    for inputs in formed.values():
        assert inputs["input_ids"].tolist() == [7] * 6 + [8] * 4


def test_a_graph_of_larger_sizes_sees_what_is_left_in_the_buffers():
    earlier = [{"input_ids": np.arange(20, 32)[None]}]
    requests = [{"input_ids": np.array([[1, 2]])}, {"input_ids": np.array([[3]])}]
    for kind, graph, expected in (
        (ACCUMULATED, (4, 10, 6), [0, 2, 3, 3, 3, 3]),  # goes on with the total
        ("BATCH_ITEM_SHAPE_FLATTEN", (4, 10, 3), [2, 1, 0]),  # the buffer's
    ):
        config = packed_config(kind, graph)
        first = form_batch(packed_config(kind), PACKED_PROFILE, earlier, empty_buffers(PACKED_PROFILE))
        kept = {name: values.copy() for name, values in first.buffers.items()}
        formed = form_batch(config, PACKED_PROFILE, requests, first.buffers)
        assert formed.graph == {"input_ids": [10], "x": [graph[2]]}
        assert formed.inputs["input_ids"].tolist() == [1, 2, 3, *range(23, 30)]
        assert formed.inputs["x"].tolist() == expected
        assert all(np.array_equal(first.buffers[name], kept[name]) for name in kept)


def test_a_larger_batch_than_the_graph_has_runs_without_it():
    requests = [{"input_ids": np.array([[1, 2, 3]])}]
    formed = form_batch(
        packed_config(ACCUMULATED, (1, 2, 2)), PACKED_PROFILE, requests, empty_buffers(PACKED_PROFILE)
    )
    assert formed.graph is None
    assert formed.inputs["input_ids"].tolist() == [1, 2, 3]


def test_outputs_of_tokens_are_scattered_and_others_split_by_items():
    requests = [{"input_ids": np.zeros((2, 3))}, {"input_ids": np.zeros((1, 4))}]
    config = packed_config(ACCUMULATED)
    tokens, rows = np.arange(36.0).reshape(12, 3), np.arange(10.0).reshape(5, 2)  # both with a tail
    first, second = split_output(config, "y", tokens, requests)
    np.testing.assert_array_equal(first, tokens[:6].reshape(2, 3, 3))
    np.testing.assert_array_equal(second, tokens[6:10].reshape(1, 4, 3))
    first, second = split_output(config, "z", rows, requests)
    np.testing.assert_array_equal(first, rows[:2])
    np.testing.assert_array_equal(second, rows[2:3])


@given(lengths=batches())
def test_without_a_graph_a_batch_is_what_our_own_code_makes(lengths, folders):
    sizes = Sizes(8, POSITIONS)
    profile, config = profile_of(RAGGED, sizes), network_config(folders[FILL_MASK].config, RAGGED, sizes)
    config["optimization"] = {}
    requests = make_requests(lengths)
    inputs = form_batch(config, profile, requests, empty_buffers(profile)).inputs
    ids = [row for request in requests for row in request["input_ids"]]
    types = [row for request in requests for row in request["token_type_ids"]]
    for batch in pack(ids, Limits(320, 8, POSITIONS), types):
        order = np.argsort(batch.sequences)
        own = ragged_batch(batch)
        assert inputs[SEQUENCE_LENGTHS_NAME].tolist() == own.inputs[SEQUENCE_LENGTHS_NAME][order].tolist()
        for name in INPUT_NAMES[:2]:
            parts = batch.split(own.inputs[name])
            assert inputs[name].tolist() == np.concatenate([parts[index] for index in order]).tolist()


# --- the network on what the backend makes ------------------------------------------------------------------------


class Network:
    """A network that runs as Triton runs its plan: with buffers that keep their contents."""

    def __init__(self, folder: ModelFolder, batching: str, fusion: str = "none", precision: str = "fp32") -> None:
        self.sizes = Sizes(8, folder.config.max_positions)
        self.config = network_config(folder.config, batching, self.sizes)
        self.profile = profile_of(batching, self.sizes)
        self.buffers = empty_buffers(self.profile)
        self.defined = assemble(folder, TrtLog(), precision, batching=batching, fusion=fusion)
        self.runner = NetworkRunner(self.defined.network, contents=self.defined.contents, checks_batch=False)
        (self.name,) = self.runner.output_names

    def answer(self, requests: Sequence[Request], graphs: bool = True) -> list[np.ndarray]:
        """The output for each request."""
        config = self.config if graphs else self.config | {"optimization": {}}
        batch = form_batch(config, self.profile, requests, self.buffers)
        self.buffers = batch.buffers
        return split_output(config, self.name, self.runner.run(batch.inputs)[self.name].numpy(), requests)


class Alone:
    """builder.py's network for single sequences."""

    def __init__(self, folder: ModelFolder) -> None:
        self.defined = assemble(folder, TrtLog())
        self.runner = NetworkRunner(self.defined.network, contents=self.defined.contents)
        (self.name,) = self.runner.output_names

    def answer(self, request: Request) -> list[np.ndarray]:
        """The output for each item of a request: (S, width) of its real tokens, or (width,)."""
        rows = []
        for row in range(len(request["input_ids"])):
            values = {name: request[name][[row]] for name in INPUT_NAMES[:2]}
            values["position_ids"] = np.arange(values["input_ids"].shape[1], dtype=np.int32)[None]
            if MASK_NAME in request:
                real = int(request[MASK_NAME][row].sum())
                values = {name: one[:, :real] for name, one in values.items()}
            rows.append(self.runner.run(values)[self.name].numpy()[0])
        return rows


@pytest.fixture(scope="module")
def networks(folders) -> Any:
    """Networks of every task, each defined once."""
    made: dict[Any, Any] = {}

    def network(kind: type, task: str, *options: str) -> Any:
        key = (kind, task, options)
        if key not in made:
            made[key] = kind(folders[task], *options)
        return made[key]

    return network


def check_answers(network: Network, alone: Alone, requests: Sequence[Request]) -> None:
    for request, found in zip(requests, network.answer(requests), strict=True):
        assert found.ndim == 2 or found.shape[:2] == request["input_ids"].shape
        for row, expected in zip(found, alone.answer(request), strict=True):
            np.testing.assert_allclose(row[: len(expected)], expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("fusion", ["none", "tensorrt", "plugins"])
@pytest.mark.parametrize("task", [FILL_MASK, EMBEDDING, SEQUENCE_CLASSIFICATION])
@settings(max_examples=12)
@given(rounds=st.lists(st.tuples(batches(), st.integers(0, 99)), min_size=1, max_size=3))
def test_ragged_batches_give_every_sequence_its_own_answer(task, fusion, rounds, networks):
    """With graphs or without, after other batches, with several items in a request: as if it were alone."""
    built_plugins()
    network, alone = networks(Network, task, RAGGED, fusion), networks(Alone, task)
    for lengths, seed in rounds:
        check_answers(network, alone, make_requests(lengths, seed=seed))


@pytest.mark.parametrize("task", [FILL_MASK, EMBEDDING])
@settings(max_examples=12)
@given(lengths=batches(batching="padded"), seed=st.integers(0, 99))
def test_padded_batches_give_every_sequence_its_own_answer(task, lengths, seed, networks):
    network, alone = networks(Network, task, "padded"), networks(Alone, task)
    check_answers(network, alone, make_requests(lengths, "padded", seed))


@pytest.mark.parametrize("pooling", ["max", "cls"])
def test_every_pooling_ignores_what_is_left_in_the_buffers(pooling, tmp_path):
    make_family_checkpoint(tmp_path / "checkpoint", "bert", EMBEDDING)
    model2onnx.export(str(tmp_path / "checkpoint"), None, tmp_path / "model", task=EMBEDDING, pooling=pooling)
    folder = ModelFolder(tmp_path / "model")
    network, alone = Network(folder, RAGGED), Alone(folder)
    for lengths in ([[40], [40]], [[3], [5]], [[1], [1]]):
        check_answers(network, alone, make_requests(lengths))


@pytest.mark.parametrize("fusion", ["none", "plugins"])
def test_what_is_left_in_the_buffers_changes_no_bit(fusion, networks):
    """The same graph with other rubbish after the tokens gives the same answers, bit for bit."""
    built_plugins()
    network = networks(Network, FILL_MASK, RAGGED, fusion)
    requests = make_requests([[5], [9]])
    answers = []
    for rubbish in (0, 1, 59):
        network.buffers = empty_buffers(network.profile)
        network.buffers["input_ids"][:] = rubbish
        network.buffers["token_type_ids"][:] = rubbish % 2
        answers.append(network.answer(requests))
    for one, other, another in zip(*answers, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, another)


def test_attention_of_tokens_after_the_last_sequence_is_zero(folders):
    """With the lengths of a graph that repeat the total, too: the plugin's kernels give zeros there."""
    built_plugins()
    folder = folders[FILL_MASK]
    defined = assemble(folder, TrtLog(), batching="packed", fusion="plugins")
    name = "bert.encoder.layer.0.attention.self"
    outputs = ["logit", name]
    runner = NetworkRunner(
        defined.network, outputs=outputs, contents=defined.contents, in_fp32=True, checks_batch=False
    )
    (request,) = make_requests([[12]])
    ids = {key: request[key][0] for key in INPUT_NAMES[:2]} | {
        "position_ids": np.array([*range(4), *range(3), *[0] * 5])
    }
    tail, exact = (
        runner.run(
            {key: values[:length].astype(np.int32) for key, values in ids.items()}
            | {LENGTHS_NAME: np.array(cu_seqlens, np.int32)}
        )
        for cu_seqlens, length in (([0, 4, 7, 7, 7], 12), ([0, 4, 7], 7))
    )
    assert (tail[name][7:] == 0).all()
    assert (tail[name][:7] != 0).any(dim=1).all()
    np.testing.assert_allclose(tail["logit"][:7], exact["logit"], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("fusion", ["none", "plugins"])
@pytest.mark.parametrize("task", [FILL_MASK, EMBEDDING])
def test_a_sequence_beyond_the_position_table_harms_no_other(task, fusion, networks):
    """bert gives it no number that could pass for an answer; bert_text refuses it before."""
    built_plugins()
    network, alone = networks(Network, task, RAGGED, fusion), networks(Alone, task)
    requests = make_requests([[7], [POSITIONS + 1], [20, 20]])
    short, too_long, last = network.answer(requests)
    assert not np.isfinite(too_long).any()
    for found, request in ((short, requests[0]), (last, requests[2])):
        np.testing.assert_allclose(found, np.stack(alone.answer(request)), rtol=0, atol=ROUNDING)
    check_answers(network, alone, make_requests([[POSITIONS], [1]]))


def test_fp16_and_bf16_have_the_layout_too(folders):
    """builder.py's own comparison with PyTorch, which checks the values in the network as well."""
    built_plugins()
    path = folders[EMBEDDING].path / "ragged.plan"
    for precision, fusion in (("fp16", "plugins"), ("bf16", "tensorrt")):
        result = run(
            PlanOptions(
                model_dir=folders[EMBEDDING].path,
                precision=precision,
                fusion=fusion,
                plan=path,
                batching=RAGGED,
                batch=SequenceRange(1, 4, 8),
                seq_len=SequenceRange(1, 8, POSITIONS),
            )
        )
        assert result.agrees, result.reasons
    info = read_info(path)
    assert info is not None
    ranges = BatchRanges.of_plan(info.profile)  # so that predict.py takes the plan
    assert (ranges.batching, ranges.seq_len.maximum, ranges.batch.maximum) == (RAGGED, POSITIONS, 8)
    Sizes(8, POSITIONS).check_plan(path, info, RAGGED)


# --- plans that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batching", "name", "position", "value", "message"),
    [
        (
            RAGGED,
            "input_ids",
            2,
            [319],
            r"takes input_ids from \[1\] to \[319\].*8 sequences of 1 to 40 .*to \[320\]",
        ),
        (RAGGED, SEQUENCE_LENGTHS_NAME, 2, [7], r"takes sequence_lengths from \[1\] to \[7\].*need \[1\] to \[8\]"),
        (RAGGED, "token_type_ids", 0, [2], r"takes token_type_ids from \[2\]"),
        ("padded", MASK_NAME, 2, [8, 39], r"takes attention_mask from \[1, 1\] to \[8, 39\]"),
    ],
)
def test_a_plan_of_another_profile_is_refused(batching, name, position, value, message):
    sizes = Sizes(8, POSITIONS)
    profile = profile_of(batching, sizes)
    profile[name][position] = value
    with pytest.raises(UserError, match=f"{message}.*leave out --plan"):
        sizes.check_plan(Path("some.plan"), info_of(profile), batching)


def test_a_wider_plan_is_taken():
    Sizes(8, POSITIONS).check_plan(Path("some.plan"), info_of(profile_of(RAGGED, Sizes(9, 50))), RAGGED)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_plan_with_other_inputs_is_refused(batching):
    other = {name: [[1], [2], [3]] for name in (*INPUT_NAMES, LENGTHS_NAME)}
    with pytest.raises(UserError, match=r"some.plan has the inputs .*cu_seqlens; --batching .* needs input_ids"):
        Sizes(8, POSITIONS).check_plan(Path("some.plan"), info_of(other), batching)


# --- the repository -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repositories(folders, tmp_path_factory) -> dict[str, Path]:
    """Repositories whose plan is a file of four bytes: what the plan holds is not read."""
    made = {}
    library = tmp_path_factory.mktemp("library") / "libbert_plugins.so"
    library.write_bytes(b"library")
    for task in TASKS:
        for batching in BATCHINGS:
            out = tmp_path_factory.mktemp("repository") / "models"
            sizes = Sizes(8, POSITIONS)
            write(folders[task], out, info_of(profile_of(batching, sizes)), batching)
            made[f"{task} {batching}"] = out
    for name, embedded in (("embedded", True), ("apart", False)):
        out = tmp_path_factory.mktemp("repository") / "models"
        info = info_of(
            profile_of(RAGGED, Sizes(8, POSITIONS)), plugin_library=library.name, plugins_embedded=embedded
        )
        write(folders[FILL_MASK], out, info, RAGGED, library)
        made[name] = out
    return made


def write(folder: ModelFolder, out: Path, info: PlanInfo, batching: str, library: Path | None = None) -> None:
    plan = folder.path / "some.plan"
    plan.write_bytes(b"plan")
    info_path(plan).write_text(json.dumps(vars(info)))
    options = AnswerOptions(stride=8) if folder.config.task == QUESTION_ANSWERING else AnswerOptions()
    command = "python triton_repository.py --out models"
    triton_models.Repository(folder, plan, info, batching, Sizes(8, POSITIONS), options, library, command).write(out)


def test_files_of_a_repository(repositories, folders):
    out = repositories[f"{FILL_MASK} {RAGGED}"]
    assert {path.name for path in out.iterdir()} == {
        "bert",
        "bert_text",
        "README.md",
    }  # a folder is a model to Triton
    assert (out / "bert" / "1" / "model.plan").read_bytes() == b"plan"
    text = out / "bert_text" / "1"
    assert {path.name for path in text.iterdir()} == {"model.py", "bert_trt", "model"}
    assert {path.name for path in (text / "model").iterdir()} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json")
    }
    wanted = (ROOT / "requirements.txt").read_text().splitlines()
    packages = (out / "bert_text" / "requirements.txt").read_text().splitlines()
    assert {line.partition("=")[0] for line in packages} == set(triton_models.PACKAGES)
    assert set(packages) <= set(wanted)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("embedded", " --backend-config=tensorrt,version-compatible=true"),
        ("apart", " --backend-config=tensorrt,plugins=/models/bert/libbert_plugins_loader.so"),
        (f"{FILL_MASK} {RAGGED}", ""),
    ],
)
def test_the_readme_has_the_command_for_the_plugins(name, option, repositories):
    text = (repositories[name] / "README.md").read_text()
    assert f'tritonserver --model-repository=/models{option}"' in text
    assert (repositories[name] / "bert" / "libbert_plugins.so").exists() == bool(option)
    assert (repositories[name] / "bert" / "libbert_plugins_loader.so").exists() == (name == "apart")
    assert "tensorrt 11.1.0.106" in text
    assert "python triton_repository.py --out models" in text
    assert ("plugins/requirements-cuda.txt" in text) == bool(option)
    assert "{" not in text.replace(text[text.index("'{") : text.index("}'") + 2], "")  # nothing left to fill in


OPENING = """
import ctypes, sys
sys.path.insert(0, {root!r})
from bert_trt import tensorrt_product
from bert_trt.plugin_layers import NAMESPACE, VERSION
registry = tensorrt_product.trt.get_plugin_registry()
plugins = ["LayerNorm", "EmbLayerNorm", "QkvToContext", "SkipLayerNorm", "Linear", "LinearSkipLayerNorm"]
found = lambda: [registry.get_creator(name, VERSION, NAMESPACE) is not None for name in plugins]
before = found()
ctypes.CDLL({library!r})  # what Triton does with plugins=
print(any(before), all(found()))
"""


@pytest.mark.parametrize(("name", "registers"), [("libbert_plugins.so", False), (LOADER, True)])
def test_opening_the_loader_registers_the_plugins(name, registers, tmp_path):
    """The library itself registers nothing, which is why there is a loader."""
    shutil.copy(built_plugins() / "libbert_plugins.so", tmp_path)
    build_loader(tmp_path)
    program = OPENING.format(root=str(ROOT), library=str(tmp_path / name))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == f"False {registers}\n", done.stderr


@pytest.mark.parametrize("has_tensorrt", [False, True])
def test_a_loader_that_cannot_register_says_why(has_tensorrt, tmp_path):
    loader = build_loader(tmp_path)  # without a library beside it
    first = "import tensorrt_rtx" if has_tensorrt else ""
    if has_tensorrt:
        pytest.importorskip("tensorrt_rtx")
    program = f"{first}\nimport ctypes\nctypes.CDLL({str(loader)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    reason = "TensorRT cannot load libbert_plugins.so beside it" if has_tensorrt else "no TensorRT 10 or 11 is loaded"
    assert f"libbert_plugins_loader.so: {reason}; the plugins are not registered" in done.stderr
    assert done.returncode == 0


def test_a_loader_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    with pytest.raises(UserError, match=r"cannot run the C compiler .*no-compiler"):
        build_loader(tmp_path)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(UserError, match=r"failed: false .*(?s:.)*set the variable CC"):
        build_loader(tmp_path)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"no C compiler found.*or leave out --no-embed-plugins"):
        build_loader(tmp_path)


@pytest.mark.parametrize("there", ["folder", "file"])
def test_a_repository_that_is_not_empty_is_refused(there, folders, tmp_path, in_process: InProcess):
    out = tmp_path / "models"
    if there == "folder":
        out.mkdir()
        (out / "old").mkdir()
    else:
        out.write_text("")
    ended = in_process(triton_repository.main, "--model-dir", folders[FILL_MASK].path, "--out", out)
    assert ended.code == 1
    assert ended.err.startswith(f"error: --out {out} is ")
    assert "name a new folder" in " ".join(ended.err.split())
    assert "Traceback" not in ended.err


def test_a_failure_leaves_no_half_of_a_repository(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(triton_models.Repository, "readme", lambda self, name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(folders[FILL_MASK], tmp_path / "models", info_of({}), RAGGED)
    assert not any((tmp_path / "models").iterdir())


def test_the_code_of_bert_text_needs_neither_pytorch_nor_tensorrt(repositories):
    """In Triton's container there are only the packages of requirements.txt in bert_text."""
    version = repositories[f"{FILL_MASK} {RAGGED}"] / "bert_text" / "1"
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'tensorrt', 'tensorrt_rtx', 'plugins', 'builder']))\n"
        "from model import TritonPythonModel\n"
        "from bert_trt.triton_text import TextModel, TokenizerFolder\n"
        "from bert_trt.options import AnswerOptions\n"
        "from pathlib import Path\n"
        "model = TextModel(TokenizerFolder(Path('model')), 'ragged', AnswerOptions())\n"
        "(windows,) = model.tokenization.tokenise([model.read({'text': b'the [MASK] of france'})])\n"
        "print(sys.modules['bert_trt'].__file__, model.inputs(windows[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=version, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(version / "bert_trt"))


# --- the script ---------------------------------------------------------------------------------------------------


def test_the_script_builds_checks_and_writes(folders, tmp_path, in_process: InProcess):
    folder, out = folders[SEQUENCE_CLASSIFICATION].path, tmp_path / "models"
    ended = in_process(triton_repository.main, "--model-dir", folder, "--out", out, "--max-batch", 3)
    assert ended.code == 0, ended.err
    assert "agrees with PyTorch" in ended.out
    assert f"{out}: bert and bert_text, batches of at most 3 sequences of 40 tokens" in ended.out
    plan = folder / "triton_repository.fp32.ragged.plan"
    assert (out / "bert" / "1" / "model.plan").read_bytes() == plan.read_bytes()
    assert "max_batch_size: 3" in (out / "bert" / "config.pbtxt").read_text()
    info = read_info(out / "bert" / "1" / "model.plan")
    assert info is not None
    assert info.profile == profile_of(RAGGED, Sizes(3, POSITIONS))
    if info.product == "tensorrt_rtx":
        assert "Triton's TensorRT backend does not load" in " ".join(ended.err.split())
    again = tmp_path / "again"
    ended = in_process(
        triton_repository.main, "--model-dir", folder, "--out", again, "--max-batch", 3, "--plan", plan
    )
    assert ended.code == 0, ended.err
    assert (again / "bert" / "config.pbtxt").read_text() == (out / "bert" / "config.pbtxt").read_text()
    wider = ("--model-dir", folder, "--out", tmp_path / "more", "--max-batch", 4, "--plan", plan)
    ended = in_process(triton_repository.main, *wider)
    assert ended.code == 1
    assert "batches of 1 to 4 sequences" in " ".join(ended.err.split())
    assert not (tmp_path / "more").exists()
    info_path(plan).unlink()
    ended = in_process(triton_repository.main, *wider)
    assert "some of" not in ended.err
    assert "which says what the plan takes; build the plan again" in " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "x.plan", "--precision", "fp16"], "--precision has no effect on a plan that is built"),
        (["--plan", "x.plan", "--no-embed-plugins"], "--no-embed-plugins has no effect on a plan that is built"),
        (["--no-embed-plugins"], "--no-embed-plugins has no effect without plugins"),
        (["--smooth", "off"], "--smooth has no effect with --precision fp32"),
        (["--max-batch", "0"], "expected a whole number from 1"),
        (["--batching", "single"], "invalid choice"),
    ],
)
def test_wrong_usage(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["triton_repository.py", "--out", "models", *arguments])
    with pytest.raises(SystemExit) as ended:
        triton_repository.main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (FILL_MASK, ["--stride", "8"], "--stride has no effect on the task fill-mask"),
        (HIDDEN_STATES, [], "is a bare encoder, and hidden states are no answer"),
        (FILL_MASK, ["--plan", "missing.plan"], "cannot read the plan missing.plan"),
        (FILL_MASK, ["--max-tokens", "8"], "name at least 40"),
    ],
)
def test_options_that_do_not_suit_the_model(task, arguments, message, folders, tmp_path, in_process: InProcess):
    if task == HIDDEN_STATES:
        make_family_checkpoint(tmp_path / "checkpoint", "bert", task)
        model2onnx.export(str(tmp_path / "checkpoint"), None, tmp_path / "model", task=task)
    path = folders[task].path if task in folders else tmp_path / "model"
    ended = in_process(triton_repository.main, "--model-dir", path, "--out", tmp_path / "models", *arguments)
    assert ended.code == 1
    assert message in " ".join(ended.err.split())
    assert not (tmp_path / "models").exists()


# --- bert_text ----------------------------------------------------------------------------------------------------


class FakeTriton:
    """What the module triton_python_backend_utils has, with ``bert`` run at once."""

    TRITONSERVER_MEMORY_CPU = 0

    def __init__(self, network: Network) -> None:
        self.network = network
        self.fails = False

    def Tensor(self, name: str, values: np.ndarray) -> Any:
        return SimpleNamespace(name=name, as_numpy=lambda: values)

    def TritonError(self, message: str) -> Any:
        return message

    def PreferredMemory(self, *place: int) -> Any:
        return place

    def InferenceResponse(self, tensors: list[Any], error: str | None = None) -> Any:
        return SimpleNamespace(tensors=tensors, error_text=error)

    def get_input_tensor_by_name(self, request: Any, name: str) -> Any:
        return request.get(name)

    def get_output_tensor_by_name(self, response: Any, name: str) -> Any:
        return next(one for one in response.tensors if one.name == name)

    def InferenceRequest(self, model_name: str, inputs: list[Any], **options: Any) -> Any:
        assert model_name == "bert"
        values = {one.name: one.as_numpy() for one in inputs}

        async def run() -> Any:
            if self.fails:
                failed = SimpleNamespace(message=lambda: "out of luck")
                return SimpleNamespace(has_error=lambda: True, error=lambda: failed)
            (output,) = self.network.answer([values])
            return SimpleNamespace(has_error=lambda: False, tensors=[self.Tensor(self.network.name, output)])

        return SimpleNamespace(async_exec=run)


def text_server(repository: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model ``bert_text`` of a repository, in this process."""
    fake = FakeTriton(network)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    text = (repository / "bert_text" / "config.pbtxt").read_text()
    line = next(line for line in text.splitlines() if "string_value" in line)
    settings = json.loads(line.partition(": ")[2])
    config = {"parameters": {"settings": {"string_value": settings}}}
    model = triton_text.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(repository / "bert_text"),
            "model_version": "1",
        }
    )
    return model


def ask(model: Any, requests: Sequence[Mapping[str, Sequence[str | bytes]]]) -> list[Any]:
    """The responses to requests, each with texts by key."""

    def column(texts: Sequence[str | bytes]) -> Any:
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        return SimpleNamespace(as_numpy=lambda: np.array(encoded, np.object_)[:, None])

    given_requests = [{key: column(texts) for key, texts in request.items()} for request in requests]
    return asyncio.run(model.execute(given_requests))


def texts_of(task: str) -> list[dict[str, str]]:
    """Texts or pairs by key."""
    if task == QUESTION_ANSWERING:
        long = {"question": "where is the tower", "context": "paris , lyon and nice . " * 12}
        return [long, *({"question": question, "context": context} for question, context in PAIRS)]
    if task == SEQUENCE_CLASSIFICATION:
        return [{"text": text} for text in TEXTS] + [{"text": one, "text_pair": other} for one, other in PAIRS]
    return [{"text": f"{text} [MASK]" if task == FILL_MASK else text} for text in TEXTS]


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("task", TASKS)
def test_bert_text_answers_as_predict_does(task, batching, folders, repositories, networks, monkeypatch):
    folder, texts = folders[task], texts_of(task)
    model = text_server(repositories[f"{task} {batching}"], networks(Network, task, batching), monkeypatch)
    responses = ask(model, [{key: [text] for key, text in one.items()} for one in texts])
    network = PyTorchNetwork(folder, assemble)
    options = AnswerOptions(stride=8) if task == QUESTION_ANSWERING else AnswerOptions()
    predictor = Predictor(Source(folder, ROOT / "README.md", network.ranges, options), network.run_all)
    expected = predictor.answer([Record(1, tuple(one.values())) for one in texts])
    for response, answer in zip(responses, expected, strict=True):
        assert response.error_text is None
        assert answer.problem is None
        (tensor,) = response.tensors
        if task == EMBEDDING:
            assert (tensor.name, tensor.as_numpy().dtype) == ("embedding", np.float32)
            np.testing.assert_allclose(tensor.as_numpy()[0], answer.prediction, rtol=0, atol=ROUNDING)
        else:
            assert tensor.name == "prediction"
            check_same(json.loads(tensor.as_numpy()[0, 0]), answer.prediction)


def test_a_bad_text_is_the_error_of_its_own_request(repositories, networks, monkeypatch):
    network = networks(Network, FILL_MASK, RAGGED)
    model = text_server(repositories[f"{FILL_MASK} {RAGGED}"], network, monkeypatch)
    good = "the capital of [MASK]"
    requests: list[dict[str, list[str | bytes]]] = [
        {"text": [good]},
        {"text": ["[MASK] " + "a " * 50]},
        {"text": [" \t "]},
        {"text": [b"\xff [MASK]"]},
        {"text": ["no mask token"]},
        {"text": [good, good]},
        {"text": [good, "no mask token", good]},
    ]
    responses = ask(model, requests)
    errors = [response.error_text for response in responses]
    assert [error is None for error in errors] == [True, False, False, False, False, True, False]
    assert errors[1] == "53 tokens, but the position table has 40; shorten the text, or add --truncate"
    assert errors[2] == "the text is blank; write one"
    assert "is not UTF-8" in errors[3]
    assert errors[4].startswith("no [MASK]")
    assert errors[6].startswith("text 2 of 3: no [MASK]")
    first = json.loads(responses[0].tensors[0].as_numpy()[0, 0])
    both = [json.loads(one) for one in responses[5].tensors[0].as_numpy()[:, 0]]
    check_same(both, [first, first])


def test_errors_of_bert_and_values_that_are_not_finite(repositories, networks, monkeypatch):
    network = networks(Network, EMBEDDING, RAGGED)
    model = text_server(repositories[f"{EMBEDDING} {RAGGED}"], network, monkeypatch)
    model.triton.fails = True
    assert ask(model, [{"text": ["a"]}])[0].error_text == "bert: out of luck"
    model.triton.fails = False
    monkeypatch.setattr(network, "answer", lambda requests: [np.full((1, 64), np.nan, np.float32)])
    assert "is not finite; build the repository with --precision bf16" in ask(model, [{"text": ["a"]}])[0].error_text


def test_padded_requests_have_few_lengths(folders):
    """Triton only puts requests of one length together."""
    model = triton_text.TextModel(folders[EMBEDDING], "padded", AnswerOptions())
    records = [Record(1, ("a " * count,)) for count in range(1, 39)]
    lengths = set()
    for windows in model.tokenization.tokenise(records):
        assert not isinstance(windows, str)
        (window,) = windows
        inputs = model.inputs(window)
        lengths.add(inputs["input_ids"].shape[1])
        assert inputs[MASK_NAME].sum() == len(window.ids)
    assert lengths == {16, 32, 40}
