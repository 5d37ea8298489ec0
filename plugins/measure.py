"""Measures times on the GPU: the median over replays of CUDA graphs with many launches, contenders in turn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping

import torch

TURNS = 3  # of each function
SETTLING = 0.15  # seconds of a function's own load before it is timed


def capture(function: Callable[[], object], launches: int) -> torch.cuda.CUDAGraph:
    """Captures ``launches`` calls of ``function`` in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # functions compile and allocate before the capture
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            function()
    return graph


def graph_times(
    functions: Mapping[str, Callable[[], object]], launches: int = 50, rounds: int = 30
) -> dict[str, float]:
    """The microseconds of one launch of each function, the median over ``rounds``.

    Within a graph, the GPU starts one launch after another without Python. The functions take turns, so that a
    drifting clock affects all of them. Before each turn the function runs for ``SETTLING`` seconds: at the board's
    power limit, clocks are still those of the function before, which has changed times by up to 10 %.
    """
    graphs = {name: capture(function, launches) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(TURNS):
        for name, graph in graphs.items():
            milliseconds = replay_time(graph)
            for _ in range(math.ceil(SETTLING * 1000.0 / milliseconds)):
                graph.replay()
            times[name] += [replay_time(graph) * 1000.0 / launches for _ in range(-(-rounds // TURNS))]
    return {name: statistics.median(samples) for name, samples in times.items()}


def replay_time(graph: torch.cuda.CUDAGraph) -> float:
    """The milliseconds of one replay."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
