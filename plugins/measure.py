"""Times what runs on the GPU: CUDA graphs of many launches, contenders in turn, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch


def capture(function: Callable[[], object], launches: int) -> torch.cuda.CUDAGraph:
    """A graph that calls ``function`` ``launches`` times, one after another."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compilation and allocation are over before the capture
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
    """Microseconds of one launch of each function, the median over ``rounds``.

    Within a graph launches follow each other at the GPU's own pace, the same for all; Python takes no part.
    The functions take turns, so that a clock that drifts meets all of them. Each graph is replayed once before it is
    timed: what the one before left in the cache, above all what has still to be written to memory, is not its affair.
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
    return {name: statistics.median(found) for name, found in times.items()}
