"""Finds the layer that goes wrong: compares the network with PyTorch after every encoder layer."""

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
    """Prints the difference to PyTorch's hidden states, layer by layer, and names the first one out of tolerance.

    Args:
        network: ours, whose tensors ``hidden_states`` are each (S, H).
        demo: holds PyTorch's hidden states.
        tolerance: largest relative L2 error that is accepted.
        inputs: the demo's sentence as the network takes it.

    Returns:
        Whether all layers are within tolerance.
    """
    names = network.hidden_states
    answers = NetworkRunner(network.network, outputs=names, contents=network.contents).run(inputs)
    table = Table(title="Difference to PyTorch's hidden states", title_justify="left")
    for heading in ("after", "relative L2 error", "largest difference", "largest value", ""):
        table.add_column(heading, justify="left" if heading in ("after", "") else "right")
    first_wrong = None
    for name, reference in zip(names, demo.hidden_states, strict=True):
        ours = _last(answers[name], reference)
        error = relative_l2(ours, reference)
        is_wrong = not error <= tolerance  # NaN is wrong
        first_wrong = first_wrong or (name if is_wrong else None)
        note = "[bold red]out of tolerance[/]" if is_wrong else ""
        largest = np.abs(ours - reference).max()
        table.add_row(name, f"{error:.2e}", f"{largest:.2e}", f"{np.abs(reference).max():.3g}", note)
    console.print(table)
    if first_wrong:
        console.print(f"first layer out of tolerance ({tolerance:.0e}): {first_wrong}", soft_wrap=True)
    return first_wrong is None


def fp32_errors(network: DefinedNetwork, demo: DemoIO, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 errors of the network without its roundings, see ``print_layer_comparison``: of each hidden state,
    and of the output where that is no hidden state, in the order of computation."""
    references = dict(zip(network.hidden_states, demo.hidden_states, strict=True))
    references |= {network.network.get_output(0).name: demo.output[0]}
    runner = NetworkRunner(network.network, outputs=list(references), contents=network.contents, in_fp32=True)
    answers = runner.run(inputs)
    return {name: relative_l2(_last(answers[name], reference), reference) for name, reference in references.items()}


def _last(answer: torch.Tensor, reference: np.ndarray) -> np.ndarray:
    """The last sentence's part of an answer, fp32, in the reference's shape (S, H)."""
    return answer.float().numpy().reshape(-1, *reference.shape)[-1]
