"""``ShardPredictor`` answers the shards of a corpus, with the code of predict.py. Ray makes an actor of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bert_trt.answer_files import Answer
from bert_trt.console import UserError
from bert_trt.corpus_folder import answer_schema, part_path, write_part
from bert_trt.model_files import ModelFolder
from bert_trt.network import Assemble
from bert_trt.options import CorpusOptions, SequenceRange
from bert_trt.prediction import BatchRanges, Predictor, Source
from bert_trt.shards import Shard, read_shard


@dataclass(frozen=True)
class Job:
    """What an actor has to know. On every machine of a cluster the paths lead to the same files.

    Attributes:
        options: the command line.
        root: the folder to which the relative paths of the options belong.
        assemble: ``builder.assemble``.
        threads: CPU threads of an actor.
    """

    options: CorpusOptions
    root: Path
    assemble: Assemble
    threads: int = 1

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.root / self.options.out

    def open_model(self) -> ModelFolder:
        """The model."""
        return ModelFolder(self.root / self.options.model_dir)

    def source(self, folder: ModelFolder, ranges: BatchRanges) -> Source:
        """The first input; the tokenizer is that of all.

        Raises:
            UserError: an option does not suit the model.
        """
        return Source(folder, self.root / self.options.inputs[0], ranges, self.options.answers)


def any_lengths(folder: ModelFolder) -> BatchRanges:
    """The sequences that ``PyTorchNetwork`` takes, for checks without the network."""
    positions = folder.config.max_positions
    return BatchRanges("single", SequenceRange(1, positions, positions), SequenceRange(1, 1, 1))


class ShardPredictor:
    """Answers shards. The network is made for the first one.

    A UserError is part of what a call returns: of an exception Ray hands just the text to the driver.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: Any) -> Any:
        """Answers the shards in a batch of Ray Data.

        Args:
            batch: an Arrow table with the fields of ``Shard``.

        Returns:
            The table with a column ``error``: what is wrong, or null for a shard that is done.
        """
        import pyarrow as pa

        errors = [self._try(Shard(**row)) for row in batch.to_pylist()]
        return batch.append_column("error", pa.array(errors, pa.string()))

    def _try(self, shard: Shard) -> str | None:
        try:
            self.run(shard)
        except UserError as error:
            return str(error)
        return None

    def run(self, shard: Shard) -> None:
        """Answers a shard and writes its part, unless it is there: then a lost actor had finished it.

        Raises:
            UserError: the network cannot be made, or a file cannot be read or written.
        """
        if not part_path(self.job.out, shard.number).exists():
            write_part(self.job.out, shard, self.schema, self._answers(shard))

    @cached_property
    def schema(self) -> Any:
        """See ``answer_schema``."""
        return answer_schema(self.job.open_model().config, self.job.options.answers.aggregate)

    @cached_property
    def predictor(self) -> Predictor:
        """The network with its tokenizer, as predict.py has them."""
        os.environ["RAYON_NUM_THREADS"] = str(self.job.threads)  # of the tokenizers library
        import torch

        from bert_trt.pytorch_network import PyTorchNetwork

        torch.set_num_threads(self.job.threads)
        folder, options = self.job.open_model(), self.job.options
        network = PyTorchNetwork(folder, self.job.assemble, options.precision, options.fusion)
        return Predictor(self.job.source(folder, network.ranges), network.run_all)

    def _answers(self, shard: Shard) -> Iterator[Sequence[Answer]]:
        self.predictor.source = self.predictor.source.of_file(Path(shard.path))
        for records in read_shard(shard, self.job.root, self.predictor.source.task, self.job.options.columns):
            yield self.predictor.answer(records)
