"""Measures times on the GPU: the median over replays of CUDA graphs with many launches, contenders in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch


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
    drifting clock affects all of them. Each graph is replayed once before it is timed, so that the time does not
    include the write-back of cache lines that the function before it left.
    """
    graphs = {name: capture(function, launches) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for measured in (False, *[True] * rounds):  # the first round warms up
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            graph.replay()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if measured:
                times[name].append(start.elapsed_time(end) * 1000.0 / launches)
    return {name: statistics.median(samples) for name, samples in times.items()}
