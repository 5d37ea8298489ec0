"""Triton Inference Server itself, on the loopback interface, serves what triton_repository.py writes.

The model ``bert`` is the stand-in of benchmarks/triton_stand_in.py, since the server that pip installs has no
TensorRT backend. Scheduler, protocols and ``bert_text`` are the real ones; several clients ask at once.
"""

from __future__ import annotations

import importlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_families import make_family_checkpoint
from test_predict_tasks import check_same
from test_triton import POSITIONS, ROUNDING, Alone, make_requests

import builder
import model2onnx
import triton_repository
from benchmarks import triton_stand_in
from benchmarks.triton_batching import Request
from benchmarks.triton_stand_in import Server
from bert_trt.model_files import INPUT_NAMES, MASK_NAME, ModelFolder
from bert_trt.options import EMBEDDING, FILL_MASK, RAGGED, AnswerOptions, PlanOptions
from bert_trt.prediction import Predictor, Source
from bert_trt.pytorch_network import PyTorchNetwork
from bert_trt.records import Chunk, Record

obstacle = triton_stand_in.obstacle()
pytestmark = pytest.mark.skipif(obstacle is not None, reason=f"Triton cannot be started here: {obstacle}")

CLIENTS = ("http", "grpc") * 4
MAX_BATCH = 8


@dataclass(frozen=True)
class Served:
    """A server and its model."""

    server: Server
    folder: ModelFolder


def serve(base: Path, task: str, batching: str) -> Iterator[Served]:
    """Starts a server for a random model."""
    model2onnx.quiet_libraries()
    make_family_checkpoint(base / "checkpoint", "bert", task)
    pooling = "mean" if task == EMBEDDING else None
    model2onnx.export(str(base / "checkpoint"), None, base / "model", task=task, pooling=pooling)
    command = ["triton_repository.py", "--model-dir", base / "model", "--out", base / "models"]
    command += ["--batching", "padded" if batching == "padded" else "packed", "--max-batch", MAX_BATCH]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(one) for one in command])
        assert triton_repository.main() == 0
    triton_stand_in.replace_network(base / "models", base / "model", "fp32", "none", batching)
    with triton_stand_in.running_server(base / "models") as server:
        yield Served(server, ModelFolder(base / "model"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A packed masked language model."""
    yield from serve(tmp_path_factory.mktemp("packed"), FILL_MASK, RAGGED)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Padded embeddings."""
    yield from serve(tmp_path_factory.mktemp("padded"), EMBEDDING, "padded")


# --- clients ------------------------------------------------------------------------------------------------------

TYPES = {np.dtype(np.int32): "INT32", np.dtype(object): "BYTES"}
Ask = Callable[[str, Request, str], np.ndarray]


class Client:
    """A client of one protocol, for one thread."""

    def __init__(self, server: Server, protocol: str) -> None:
        self.module: Any = importlib.import_module(f"tritonclient.{protocol}")
        self.client = self.module.InferenceServerClient(getattr(server, protocol))

    def ask(self, model: str, inputs: Request, output: str) -> np.ndarray:
        """An output of a model; the server's error is raised."""
        tensors = []
        for name, values in inputs.items():
            tensor = self.module.InferInput(name, list(values.shape), TYPES[values.dtype])
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        return self.client.infer(model, tensors).as_numpy(output)

    def __enter__(self) -> Ask:
        return self.ask

    def __exit__(self, *exception: object) -> None:
        self.client.close()


def from_all_clients(server: Server, work: Callable[[Ask, Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """Does the tasks from several clients at once, each client every n-th; the results, or the server's errors."""

    def own(number: int, protocol: str) -> list[Any]:
        results: list[Any] = []
        with Client(server, protocol) as ask:
            for task in tasks[number :: len(CLIENTS)]:
                try:
                    results.append(work(ask, task))
                except Exception as error:  # of tritonclient
                    results.append(error)
        return results

    with ThreadPoolExecutor(len(CLIENTS)) as threads:
        parts = list(threads.map(own, range(len(CLIENTS)), CLIENTS))
    results: list[Any] = [None] * len(tasks)
    for number, part in enumerate(parts):
        results[number :: len(CLIENTS)] = part
    return results


def text_tensor(*texts: str) -> np.ndarray:
    """BYTES (n, 1)."""
    return np.array([[text.encode()] for text in texts], object)


def random_texts(count: int, words: int, ends_with: str = "") -> list[str]:
    chosen = random.Random(0)
    vocabulary = "the capital of france contains paris , lyon nice tower eiffel".split()
    return [
        " ".join([*chosen.choices(vocabulary, k=chosen.randint(1, words)), ends_with]).strip() for _ in range(count)
    ]


# --- packed -------------------------------------------------------------------------------------------------------


def test_texts_get_the_answers_of_builder(packed, tmp_path):
    texts = random_texts(64, 30, "[MASK]")
    lines, target = tmp_path / "lines.txt", tmp_path / "answers.jsonl"
    lines.write_text("\n".join(texts) + "\n")
    builder.run(PlanOptions(packed.folder.path, plan=tmp_path / "p.plan", sentences=lines, predictions=target))
    expected = [json.loads(line)["prediction"] for line in target.read_text().splitlines()]

    def work(ask: Ask, text: str) -> Any:
        return json.loads(ask("bert_text", {"text": text_tensor(text)}, "prediction")[0, 0])

    before = len(packed.server.batches())
    for answer, words in zip(from_all_clients(packed.server, work, texts), expected, strict=True):
        assert not isinstance(answer, Exception), str(answer)
        assert [one["id"] for one in answer[0]] == [one["id"] for one in words[0]]
        check_same(answer, words)
    assert max(batch["requests"] for batch in packed.server.batches()[before:]) > 1


def test_tokens_of_many_lengths_from_several_clients(packed):
    """Requests of one and of several sequences; batches with and without graphs of larger sizes."""
    chosen = random.Random(1)
    lengths = [[chosen.randint(1, POSITIONS)] * chosen.choice([1, 1, 1, 2, 3]) for _ in range(120)]
    requests = make_requests(lengths)
    before = len(packed.server.batches())
    answers = from_all_clients(packed.server, lambda ask, request: ask("bert", request, "logit"), requests)
    alone = Alone(packed.folder)
    for answer, request in zip(answers, requests, strict=True):
        assert not isinstance(answer, Exception), str(answer)
        np.testing.assert_allclose(answer, np.stack(alone.answer(request)), rtol=0, atol=ROUNDING)
    batches = packed.server.batches()[before:]
    assert max(batch["requests"] for batch in batches) > 1
    assert any(batch["graph"] and batch["graph"]["input_ids"][0] > batch["tokens"] for batch in batches)
    assert any(batch["graph"] is None for batch in batches)


def test_a_text_that_is_too_long_is_named_and_harms_no_other(packed):
    good = "the capital of [MASK]"
    texts = [good, "[MASK] " + "a " * 50, good, "no mask token"] * 8

    def work(ask: Ask, text: str) -> Any:
        return json.loads(ask("bert_text", {"text": text_tensor(text)}, "prediction")[0, 0])

    answers = from_all_clients(packed.server, work, texts)
    for answer, text in zip(answers, texts, strict=True):
        if text == good:
            check_same(answer, answers[0])
        elif "no mask" in text:
            assert "no [MASK]; write it where a word is to be filled in" in str(answer)
        else:
            assert "53 tokens, but the position table has 40; shorten the text" in str(answer)


def test_tokens_beyond_the_position_table_get_no_number(packed):
    requests = make_requests([[7], [POSITIONS + 3], [20, 20], [1]] * 6)
    answers = from_all_clients(packed.server, lambda ask, request: ask("bert", request, "logit"), requests)
    alone = Alone(packed.folder)
    for answer, request in zip(answers, requests, strict=True):
        assert not isinstance(answer, Exception), str(answer)
        if request["input_ids"].shape[1] > POSITIONS:
            assert not np.isfinite(answer).any()
        else:
            np.testing.assert_allclose(answer, np.stack(alone.answer(request)), rtol=0, atol=ROUNDING)


def test_several_texts_in_one_request(packed):
    with Client(packed.server, "grpc") as ask:
        both = ask("bert_text", {"text": text_tensor("a [MASK]", "the [MASK] of france")}, "prediction")
        alone = ask("bert_text", {"text": text_tensor("the [MASK] of france")}, "prediction")
    assert both.shape == (2, 1)
    check_same(json.loads(both[1, 0]), json.loads(alone[0, 0]))


def test_more_texts_than_a_batch_are_refused(packed):
    with Client(packed.server, "http") as ask, pytest.raises(Exception, match="batch-size must be <= 8"):
        ask("bert_text", {"text": text_tensor(*["a [MASK]"] * (MAX_BATCH + 1))}, "prediction")


# --- padded -------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_predict(padded):
    texts = random_texts(64, 24)
    network = PyTorchNetwork(padded.folder, builder.assemble)
    predictor = Predictor(Source(padded.folder, Path(__file__), network.ranges, AnswerOptions()), network.run_all)
    ((_, expected),) = predictor.answer([Chunk([Record(1, (text,)) for text in texts], 0)])

    def work(ask: Ask, text: str) -> Any:
        return ask("bert_text", {"text": text_tensor(text)}, "embedding")[0]

    answers = from_all_clients(padded.server, work, texts)
    for answer, other in zip(answers, expected, strict=True):
        assert not isinstance(answer, Exception), str(answer)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, other.prediction, rtol=0, atol=ROUNDING)
    batches = padded.server.batches()
    assert max(batch["requests"] for batch in batches) > 1
    lengths = {batch["tokens"] // batch["requests"] for batch in batches}
    assert lengths <= {16, 32, 40}  # only requests of one length are together


def test_padded_tokens(padded):
    (request,) = make_requests([[24, 24, 24]], "padded")
    assert set(request) == {*INPUT_NAMES, MASK_NAME}
    with Client(padded.server, "http") as ask:
        answer = ask("bert", request, "embedding")
    np.testing.assert_allclose(answer, np.stack(Alone(padded.folder).answer(request)), rtol=0, atol=ROUNDING)


# --- the server's own messages ------------------------------------------------------------------------------------


def test_a_server_that_does_not_start_shows_its_log(packed, tmp_path):
    broken = Path(shutil.copytree(packed.server.repository, tmp_path / "models"))
    shutil.rmtree(broken / "bert_text")
    (broken / "bert" / "config.pbtxt").write_text("max_batch_size: nothing\n")
    with (
        pytest.raises(RuntimeError, match=r"Triton does not start:\n(?s:.*)Expected integer, got: nothing"),
        triton_stand_in.running_server(broken),
    ):
        pass
