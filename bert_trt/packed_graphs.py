"""Runs a network for packed batches in CUDA graphs, so that the GPU starts one kernel after another without Python.

A graph has fixed shapes. A batch is therefore padded to the size of a graph: with tokens that belong to no sequence,
which attention skips, and with empty sequences behind the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME

STEPS = 4  # sizes between two powers of 2, so that at most a fifth of a batch is padding
SPARE_TOKENS = 64  # behind the last sequence: an empty sequence begins at the token after it, which must exist
FEWEST_TOKENS, FEWEST_SEQUENCES = 256, 16

Size = tuple[int, int]  # tokens and sequences


class Runner(Protocol):
    """What a graph captures, such as ``network_runner.NetworkRunner``."""

    def run(self, inputs: Mapping[str, torch.Tensor], /) -> dict[str, torch.Tensor]:
        """The outputs for a packed batch, on CUDA."""
        ...


def graph_size(inputs: Mapping[str, np.ndarray]) -> Size:
    """The size of the graph for a packed batch."""
    tokens = _round_up(max(len(inputs[INPUT_NAMES[0]]), FEWEST_TOKENS))
    return tokens + SPARE_TOKENS, _round_up(max(len(inputs[LENGTHS_NAME]) - 1, FEWEST_SEQUENCES))


def _round_up(number: int) -> int:
    step = 2 ** ((number - 1).bit_length() - 1) // STEPS
    return -(-number // step) * step


def pad_inputs(inputs: Mapping[str, np.ndarray], size: Size) -> dict[str, np.ndarray]:
    """The inputs of a packed batch, padded: ids, token types and positions (T,) -> (T',), cu_seqlens (B + 1,) ->
    (B' + 1,)."""
    tokens, sequences = size
    padded = {name: np.pad(inputs[name], (0, tokens - len(inputs[name]))) for name in INPUT_NAMES}
    bounds = inputs[LENGTHS_NAME]
    return padded | {LENGTHS_NAME: np.pad(bounds, (0, sequences + 1 - len(bounds)), mode="edge")}


@dataclass(frozen=True)
class Launched:
    """An output that the GPU is computing.

    Attributes:
        output: the memory that it is copied to, on the CPU.
        copied: the event after the copy.
    """

    output: torch.Tensor
    copied: torch.cuda.Event

    def result(self) -> np.ndarray:
        """Waits for the output."""
        self.copied.synchronize()
        return self.output.numpy()


class _Graph:
    """The network for batches of one size.

    Args:
        runner: the network.
        size: tokens and sequences.
        pool: the memory that all graphs share. Each output is copied before the next graph begins.
    """

    def __init__(self, runner: Runner, size: Size, pool: Any) -> None:
        tokens, sequences = size
        lengths = dict.fromkeys(INPUT_NAMES, tokens) | {LENGTHS_NAME: sequences + 1}
        self._inputs = {
            name: torch.zeros(length, dtype=torch.int32, device="cuda") for name, length in lengths.items()
        }
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            (self._output,) = runner.run(self._inputs).values()

    def replay(self, inputs: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Starts the graph; returns the output on the GPU, which the next replay overwrites."""
        for name, values in inputs.items():
            self._inputs[name].copy_(torch.from_numpy(values).pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._output


class PackedGraphs:
    """A network for packed batches in CUDA graphs, one for each size of batch.

    A size is captured when it comes for the second time: a capture takes as long as several runs.

    Args:
        runner: the network, on CUDA, with one output.
        is_per_sequence: whether the output has a row for a sequence, not for a token.
    """

    def __init__(self, runner: Runner, is_per_sequence: bool) -> None:
        self._runner = runner
        self._is_per_sequence = is_per_sequence
        self._graphs: dict[Size, _Graph | None] = {}  # None for a size that came once
        self._pool = torch.cuda.graph_pool_handle()

    def launch(self, inputs: Mapping[str, np.ndarray]) -> Launched:
        """Starts to compute a batch, and returns before that is done.

        Args:
            inputs: of one packed batch, as ``packing.packed_batch`` makes them.
        """
        size = graph_size(inputs)
        padded = pad_inputs(inputs, size)
        if size not in self._graphs:
            self._graphs[size] = None
            on_gpu = {name: torch.from_numpy(values).cuda() for name, values in padded.items()}
            (output,) = self._runner.run(on_gpu).values()
        else:
            graph = self._graphs[size] or _Graph(self._runner, size, self._pool)
            self._graphs[size] = graph
            output = graph.replay(padded)
        rows = len(inputs[LENGTHS_NAME]) - 1 if self._is_per_sequence else len(inputs[INPUT_NAMES[0]])
        on_cpu = torch.empty(output[:rows].shape, dtype=output.dtype, pin_memory=True)
        on_cpu.copy_(output[:rows], non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return Launched(on_cpu, copied)
