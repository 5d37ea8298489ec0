"""``bert_text``, a model of Triton's Python backend: texts in, the answers of predict.py out.

triton_repository.py copies this package into the model repository, where Triton imports it; it needs neither TensorRT
nor PyTorch. Every text is tokenised, and each of its windows becomes one request to the model ``bert``, which Triton
puts into batches with the others that wait. A text that cannot be used is the error of its own request.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_trt.console import UserError
from bert_trt.files import read_json
from bert_trt.model_files import CONFIG_NAME, INPUT_NAMES, MASK_NAME, BertConfig, ModelFolder
from bert_trt.options import EMBEDDING, AnswerOptions, SequenceRange
from bert_trt.prediction import BUCKET, Tokenization
from bert_trt.records import Record, Wanted, read_row
from bert_trt.tasks import Answers, NotFiniteError, Window

NETWORK = "bert"  # the names of the two models
TEXT = "bert_text"
FOLDER = "model"  # in the folder of a version: configuration and tokenizer
SETTINGS = "settings"  # the parameter of the configuration that holds ``AnswerOptions`` and the batching, as JSON
PREDICTION = "prediction"  # the output: JSON, but for embeddings


class TokenizerFolder(ModelFolder):
    """A folder with only the configuration and the tokenizer of a model folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = BertConfig.from_dict(read_json(path / CONFIG_NAME), str(path / CONFIG_NAME))


def answer_name(config: BertConfig) -> str:
    """The output of ``bert_text``: ``prediction``, or ``embedding``."""
    return config.output_name if config.task == EMBEDDING else PREDICTION


class TextModel:
    """What ``bert_text`` does before and after ``bert``.

    Args:
        folder: the model.
        batching: padded, or ``RAGGED``: what ``bert`` takes.
        options: how outputs become answers.
    """

    def __init__(self, folder: ModelFolder, batching: str, options: AnswerOptions) -> None:
        positions = folder.config.max_positions
        self.config = folder.config
        self.wanted = Wanted.by(folder.config.task)
        self.batching = batching
        self.tokenization = Tokenization(folder, SequenceRange(1, positions, positions), options)
        self.answers = Answers(folder, self.tokenization.tokenizer, options)

    def read(self, texts: Mapping[str, bytes | None]) -> Record:
        """The record of one text or pair, given by the keys of ``records.Wanted``."""
        record = read_row(1, texts, {}, self.wanted)
        if record.problem is None and not any(text.strip() for text in record.texts):
            return Record(1, problem="the text is blank; write one")
        return record

    def inputs(self, window: Window) -> dict[str, np.ndarray]:
        """The request to ``bert`` for a window, each int32 (1, S).

        A padded request has a multiple of ``BUCKET`` tokens, since Triton only puts requests of one length together.
        """
        length = len(window.ids)
        if self.batching != "padded":
            return dict(zip(INPUT_NAMES[:2], (window.ids[None], window.types[None]), strict=True))
        padded = min(-(-length // BUCKET) * BUCKET, self.config.max_positions)
        ids, types, mask = np.zeros((3, 1, padded), np.int32)
        ids[0, :length], types[0, :length], mask[0, :length] = window.ids, window.types, 1
        positions = np.arange(padded, dtype=np.int32)[None]
        return dict(zip((*INPUT_NAMES, MASK_NAME), (ids, types, positions, mask), strict=True))

    def answer(self, record: Record, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Any:
        """The answer for a text.

        Args:
            record: the text.
            windows: its windows.
            outputs: what ``bert`` gave for each: (1, S, width) or (1, width).

        Raises:
            UserError: a value on which the answer depends is not finite.
        """
        rows = [
            output if self.config.is_per_sequence else output[0, : len(window.ids)]
            for window, output in zip(windows, outputs, strict=True)
        ]
        try:
            return self.answers.of(record.texts, windows, rows)
        except NotFiniteError:
            raise UserError(
                "the network's output is not finite; build the repository with --precision bf16 or fp32"
            ) from None


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once."""
        self.triton: Any = importlib.import_module("triton_python_backend_utils")  # it exists inside the server only
        config = json.loads(args["model_config"])
        settings = json.loads(config["parameters"][SETTINGS]["string_value"])
        folder = TokenizerFolder(Path(args["model_repository"]) / args["model_version"] / FOLDER)
        self.model = TextModel(folder, settings["batching"], AnswerOptions(**settings["answers"]))
        self.on_cpu = self.triton.PreferredMemory(self.triton.TRITONSERVER_MEMORY_CPU, 0)

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by Triton with the requests that it has put together; each has one text or more."""
        records = [[self.model.read(texts) for texts in self._texts(request)] for request in requests]
        flat = [record for one in records for record in one]
        tokenised = iter(self.model.tokenization.tokenise(flat))
        parts = [[(record, next(tokenised)) for record in one] for one in records]
        return list(await asyncio.gather(*(self._respond(one) for one in parts)))

    def _texts(self, request: Any) -> Iterator[dict[str, bytes | None]]:
        """The texts of a request by their keys."""
        columns = {}
        for key in self.model.wanted.keys[: self.model.wanted.maximum]:
            tensor = self.triton.get_input_tensor_by_name(request, key)
            columns[key] = None if tensor is None else tensor.as_numpy()[:, 0]
        count = max(len(column) for column in columns.values() if column is not None)
        for row in range(count):
            yield {key: None if column is None else column[row] for key, column in columns.items()}

    async def _respond(self, parts: Sequence[tuple[Record, list[Window] | str]]) -> Any:
        """The response to one request; an error names the text where there are several."""
        answers: list[Any] = await asyncio.gather(*(self._answer(*part) for part in parts))
        for number, answer in enumerate(answers, start=1):
            if isinstance(answer, UserError):
                place = f"text {number} of {len(answers)}: " if len(answers) > 1 else ""
                return self.triton.InferenceResponse([], self.triton.TritonError(f"{place}{answer}"))
        config = self.model.config
        if config.task == EMBEDDING:
            values = np.stack(answers)  # (n, width)
        else:
            texts = [json.dumps(answer, ensure_ascii=False, allow_nan=False).encode() for answer in answers]
            values = np.array(texts, np.object_)[:, None]  # (n, 1)
        return self.triton.InferenceResponse([self.triton.Tensor(answer_name(config), values)])

    async def _answer(self, record: Record, windows: list[Window] | str) -> Any:
        """The answer for one text, or the error in its place: the text or the network's output cannot be used."""
        if isinstance(windows, str):
            return UserError(windows)
        try:
            outputs = await asyncio.gather(*(self._run(self.model.inputs(window)) for window in windows))
            return self.model.answer(record, windows, outputs)
        except UserError as error:
            return error

    async def _run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """What ``bert`` gives for one window.

        Raises:
            UserError: ``bert`` answers with an error.
        """
        name = self.model.config.output_name
        request = self.triton.InferenceRequest(
            model_name=NETWORK,
            requested_output_names=[name],
            inputs=[self.triton.Tensor(key, values) for key, values in inputs.items()],
            preferred_memory=self.on_cpu,
        )
        response = await request.async_exec()
        if response.has_error():
            raise UserError(f"{NETWORK}: {response.error().message()}")
        return self.triton.get_output_tensor_by_name(response, name).as_numpy()
