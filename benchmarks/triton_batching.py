"""How Triton's TensorRT backend makes the inputs of a plan from requests, as a function without Triton.

``form_batch`` does what the backend does with the requests that the dynamic batcher has put together, and
``split_output`` what it does with an output (repositories triton-inference-server/tensorrt_backend and backend, read
in 2026):

* It joins ragged inputs to one axis, and concatenates the others along the first.
* It adds batch inputs: accumulated element counts, one for each request, or the shape of each item.
* A batch that the plan's profile does not hold is an error for every request in it.
* If a CUDA graph was captured for larger sizes, that graph runs. Tensors then have the sizes of the graph; after the
  data, buffers keep what an earlier batch has left. Accumulated counts go on with the total, shapes of items do not.

The stand-in for the plan (triton_stand_in.py) and the tests use it; no plan runs here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Request = Mapping[str, np.ndarray]  # inputs by name, with the items of the request along the first axis
Profile = Mapping[str, Sequence[Sequence[int]]]  # [minimum, optimum, maximum] shape by input, in the plan's order
ACCUMULATED = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
ITEM_SHAPES = "BATCH_ITEM_SHAPE_FLATTEN"


class BatchError(Exception):
    """Every request of the batch is answered with this error."""


@dataclass(frozen=True, eq=False)
class FormedBatch:
    """The inputs of one execution.

    Attributes:
        inputs: what the network reads, by name.
        graph: the sizes of the CUDA graph that runs, by input; None without a graph.
        buffers: what the buffers of the inputs hold from now on, each flat.
    """

    inputs: dict[str, np.ndarray]
    graph: dict[str, list[int]] | None
    buffers: dict[str, np.ndarray]


def empty_buffers(profile: Profile) -> dict[str, np.ndarray]:
    """The buffers of the inputs before the first batch: zeros, as many as the profile's largest shape."""
    return {name: np.zeros(math.prod(largest), np.int32) for name, (_, _, largest) in profile.items()}


def form_batch(
    config: Mapping[str, Any], profile: Profile, requests: Sequence[Request], buffers: Mapping[str, np.ndarray]
) -> FormedBatch:
    """The inputs for requests that the batcher has put together.

    Args:
        config: the model's configuration, as JSON has it.
        profile: the plan's.
        requests: at least one, all of them valid by themselves.
        buffers: what the buffers of the inputs hold from earlier batches; not changed.

    Raises:
        BatchError: the profile does not hold the batch.
    """
    joined: dict[str, np.ndarray] = {}
    for entry in config["input"]:
        parts = [np.asarray(request[entry["name"]]) for request in requests]
        is_ragged = entry.get("allow_ragged_batch", False)
        joined[entry["name"]] = np.concatenate([part.ravel() for part in parts] if is_ragged else parts)
    for entry in config.get("batch_input", []):
        sources = [np.asarray(request[_only(entry["source_input"])]) for request in requests]
        joined[_only(entry["target_name"])] = _batch_input(entry["kind"], sources)
    joined = {name: joined[name].astype(np.int32) for name in profile}
    for name, values in joined.items():
        smallest, _, largest = profile[name]
        if any(not low <= size <= high for low, size, high in zip(smallest, values.shape, largest, strict=True)):
            raise BatchError(f"input {name} is {list(values.shape)}, outside {list(smallest)} to {list(largest)}")
    items = sum(len(next(iter(request.values()))) for request in requests)
    graph = _find_graph(config, items, {name: list(values.shape) for name, values in joined.items()})
    inputs, filled = {}, {}
    accumulated = {
        _only(entry["target_name"]) for entry in config.get("batch_input", []) if entry["kind"] == ACCUMULATED
    }
    for name, values in joined.items():
        shape = values.shape if graph is None else graph[name]
        count = math.prod(shape)
        filled[name] = buffers[name].copy()
        filled[name][: values.size] = values.ravel()
        if name in accumulated:
            filled[name][values.size : count] = values[-1]
        inputs[name] = filled[name][:count].reshape(shape)
    return FormedBatch(inputs, graph, filled)


def split_output(
    config: Mapping[str, Any], name: str, output: np.ndarray, requests: Sequence[Request]
) -> list[np.ndarray]:
    """The part of an output for each request, with its items along the first axis.

    Args:
        config: the model's configuration.
        name: the output's.
        output: with a graph it may have more rows than the requests need.
        requests: as for ``form_batch``.
    """
    dims = next([int(size) for size in entry["dims"]] for entry in config["output"] if entry["name"] == name)
    scattered = {
        _only(entry["target_name"]): _only(entry["source_input"]) for entry in config.get("batch_output", [])
    }
    flat, position, parts = output.ravel(), 0, []
    for request in requests:
        source = np.asarray(request[scattered.get(name, config["input"][0]["name"])])
        if name in scattered:  # dynamic axes have the lengths of the input's axes
            shape = [source.shape[axis] if size == -1 else size for axis, size in enumerate([-1, *dims])]
        else:
            shape = [len(source), *output.shape[1:]]
        count = math.prod(shape)
        parts.append(flat[position : position + count].reshape(shape))
        position += count
    return parts


def _only(value: Any) -> Any:
    """The one element of a repeated field."""
    (one,) = [value] if isinstance(value, str) else value
    return one


def _batch_input(kind: str, sources: Sequence[np.ndarray]) -> np.ndarray:
    """A batch input for the requests' arrays, without what follows it in a graph."""
    if kind == ACCUMULATED:
        return np.cumsum([0, *(source.size for source in sources)])
    assert kind == ITEM_SHAPES, kind
    return np.array([size for source in sources for _ in source for size in source.shape[1:]])


def _find_graph(
    config: Mapping[str, Any], items: int, shapes: Mapping[str, Sequence[int]]
) -> dict[str, list[int]] | None:
    """The sizes, by input, of the graph that runs: the one for exactly these sizes, or the first for larger ones."""
    names = list(shapes)
    key = [items, *(size for name in names for size in shapes[name])]
    graphs = []
    for spec in config.get("optimization", {}).get("cuda", {}).get("graph_spec", []):
        sizes = _graph_shapes(config, spec, names)
        bound = spec.get("graph_lower_bound")
        lowest = sizes if bound is None else _graph_shapes(config, bound, names)
        graphs.append((_key(spec, sizes), _key(spec if bound is None else bound, lowest), sizes))
    for largest, lowest, sizes in sorted(graphs, key=lambda graph: graph[0]):
        if largest == key or all(low <= size <= high for low, size, high in zip(lowest, key, largest, strict=True)):
            return sizes
    return None


def _graph_shapes(config: Mapping[str, Any], spec: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[int]]:
    """The shapes of the inputs in a graph; those of inputs that are not ragged have the batch in front."""
    with_batch = {entry["name"] for entry in config["input"] if not entry.get("allow_ragged_batch", False)}
    batch = int(spec["batch_size"])
    return {
        name: [*([batch] if name in with_batch else []), *(int(size) for size in spec["input"][name]["dim"])]
        for name in names
    }


def _key(spec: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> list[int]:
    return [int(spec["batch_size"]), *(size for shape in shapes.values() for size in shape)]
