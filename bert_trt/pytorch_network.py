"""``PyTorchNetwork`` runs the network of a model folder with PyTorch, in the batches that suit the device best."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from bert_trt.model_files import ModelFolder
from bert_trt.network import Assemble
from bert_trt.options import FILL_MASK, FUSIONS, SequenceRange
from bert_trt.prediction import TOKENS_PER_BATCH, TOKENS_PER_SMALL_BATCH, BatchRanges
from bert_trt.tensorrt_log import TrtLog

if TYPE_CHECKING:
    from bert_trt.network_runner import NetworkRunner
    from bert_trt.packed_graphs import Launched, PackedGraphs

MOST_SEQUENCES = 1024  # in a batch
CPU_TOKENS = 4096  # in a batch
AHEAD = 4  # batches that the GPU has to compute while the CPU makes more: those of the next chunk come all at once
AHEAD_WITH_WORDS = 2  # where an output has a row of the size of the vocabulary for each token, half a gigabyte in all


class PyTorchNetwork:
    """Runs the network that builder.py would build, without an engine, on CUDA where there is a GPU.

    On a GPU, batches are packed where plugins compute attention. Otherwise they are padded, and hold sequences of
    nearly the same length.

    Args:
        folder: the model.
        assemble: ``builder.assemble``.
        precision: fp32, fp16 or bf16; None for fp32.
        fusion: one of ``FUSIONS``; None for none.

    Attributes:
        ranges: the batches.
    """

    def __init__(
        self, folder: ModelFolder, assemble: Assemble, precision: str | None = None, fusion: str | None = None
    ) -> None:
        from bert_trt.network_runner import best_device  # imports PyTorch

        self.folder = folder
        self.assemble = assemble
        self.device = best_device()
        self.precision = precision or "fp32"
        self.fusion = fusion or "none"
        has_packed_kernel = "QkvToContext" in FUSIONS[self.fusion]
        positions = folder.config.max_positions
        on_gpu = TOKENS_PER_BATCH if folder.config.task == FILL_MASK else TOKENS_PER_SMALL_BATCH
        self.ranges = BatchRanges(
            "packed" if has_packed_kernel and self.device != "cpu" else "padded",
            SequenceRange(1, positions, positions),
            SequenceRange(1, MOST_SEQUENCES, MOST_SEQUENCES),
            tokens=CPU_TOKENS if self.device == "cpu" else on_gpu,
            bucket=None,
        )

    @functools.cached_property
    def runner(self) -> NetworkRunner:
        """The runner, made when it is first used."""
        from bert_trt.network_runner import NetworkRunner

        self._network = self.assemble(
            *(self.folder, TrtLog(), self.precision), batching=self.ranges.batching, fusion=self.fusion
        )
        runner = NetworkRunner(self._network.network, self.device, contents=self._network.contents)
        if self.device == "cpu" and self.precision == "fp32":
            runner.use_fast_kernels()
        if self.ranges.batching == "packed":
            runner.use_sequence_means()
        return runner

    @functools.cached_property
    def graphs(self) -> PackedGraphs | None:
        """The runner in CUDA graphs; None on a CPU, and for padded batches, which have too many shapes."""
        if self.device == "cpu" or self.ranges.batching != "packed":
            return None
        from bert_trt.packed_graphs import PackedGraphs  # imports PyTorch

        return PackedGraphs(self.runner, self.folder.config.is_per_sequence)

    def run_all(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[np.ndarray]:
        """The network's output for each batch, in their order.

        With graphs, the GPU computes batches while the next ones are made.
        """
        if self.graphs is None:
            yield from map(self.run, batches)
            return
        ahead = AHEAD_WITH_WORDS if self.folder.config.task == FILL_MASK else AHEAD
        launched: deque[Launched] = deque()
        for inputs in batches:
            launched.append(self.graphs.launch(inputs))
            if len(launched) > ahead:
                yield launched.popleft().result()
        yield from (one.result() for one in launched)

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The network's output for one batch."""
        return self.runner.run(inputs)[self.folder.config.output_name].cpu().numpy()
