"""Finds the first incorrect layer: compares the network with PyTorch after every encoder layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from rich.table import Table

from bert_trt.comparison import relative_l2
from bert_trt.console import console
from bert_trt.model_files import DemoIO
from bert_trt.network import DefinedNetwork
from bert_trt.network_runner import NetworkRunner


def print_layer_comparison(
    network: DefinedNetwork, demo: DemoIO, tolerance: float, inputs: Mapping[str, np.ndarray]
) -> bool:
    """Prints the difference to PyTorch's hidden states, layer by layer, and names the first layer out of tolerance.

    Args:
        network: a network of builder.py.
        demo: the example, with PyTorch's hidden states.
        tolerance: the largest relative L2 error that is accepted.
        inputs: the network's inputs for the example, see ``pipeline.Task.inputs``.

    Returns:
        Whether all layers are within tolerance.
    """
    names = network.hidden_states
    answers = NetworkRunner(network.network, outputs=names, contents=network.contents).run(inputs)
    table = Table(title="Difference to PyTorch's hidden states", title_justify="left")
    for heading in ("after", "relative L2 error", "largest difference", "largest value", ""):
        table.add_column(heading, justify="left" if heading in ("after", "") else "right")
    first_exceeding = None
    for name, reference in zip(names, demo.hidden_states, strict=True):
        ours = _last(answers[name], reference)
        error = relative_l2(ours, reference)
        exceeds = not error <= tolerance  # a NaN is never <=
        first_exceeding = first_exceeding or (name if exceeds else None)
        note = "[bold red]out of tolerance[/]" if exceeds else ""
        difference = np.abs(ours - reference).max()
        table.add_row(name, f"{error:.2e}", f"{difference:.2e}", f"{np.abs(reference).max():.3g}", note)
    console.print(table)
    if first_exceeding:
        console.print(f"first layer out of tolerance ({tolerance:.0e}): {first_exceeding}", soft_wrap=True)
    return first_exceeding is None


def fp32_errors(network: DefinedNetwork, demo: DemoIO, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 errors of the network without its roundings, in the order of computation.

    Args:
        network: a network of builder.py.
        demo: the example, with PyTorch's hidden states.
        inputs: the network's inputs for the example.

    Returns:
        The error of each hidden state and of the output, by tensor name.
    """
    references = dict(zip(network.hidden_states, demo.hidden_states, strict=True))
    references |= {network.network.get_output(0).name: demo.output[0]}
    runner = NetworkRunner(network.network, outputs=list(references), contents=network.contents, in_fp32=True)
    answers = runner.run(inputs)
    return {name: relative_l2(_last(answers[name], reference), reference) for name, reference in references.items()}


def _last(answer: torch.Tensor, reference: np.ndarray) -> np.ndarray:
    """The values of the last sequence in a batch, fp32, in the reference's shape (S, H)."""
    return answer.float().numpy().reshape(-1, *reference.shape)[-1]
