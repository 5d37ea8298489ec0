"""Finds the layer that goes wrong: compares the network with PyTorch after every encoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from common import console
from comparison import relative_l2
from model_files import DemoIO, ModelFolder
from network_runner import NetworkRunner
from plugin_layers import Known
from tensorrt_product import trt


def print_layer_comparison(
    network: trt.INetworkDefinition,
    names: Sequence[str],
    folder: ModelFolder,
    tolerance: float,
    known: Known,
    inputs: Mapping[str, np.ndarray],
) -> bool:
    """Prints the difference to PyTorch's hidden states, layer by layer, and names the first one out of tolerance.

    Args:
        network: our network.
        names: its tensors that correspond to PyTorch's hidden states, L + 1 of them, each (S, H).
        folder: where PyTorch's hidden states lie.
        tolerance: largest relative L2 error that is accepted.
        known: for the runner.
        inputs: the demo's sentence as the network takes it.

    Returns:
        Whether all layers are within tolerance.
    """
    demo = folder.demo()
    states = run_hidden_states(network, names, demo, known, inputs)
    table = Table(title="Difference to PyTorch's hidden states", title_justify="left")
    for heading in ("after", "relative L2 error", "largest difference", "largest value", ""):
        table.add_column(heading, justify="left" if heading in ("after", "") else "right")
    first_wrong = None
    for name, ours, reference in zip(names, states, demo.hidden_states, strict=True):
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


def hidden_state_errors(
    network: trt.INetworkDefinition,
    names: Sequence[str],
    demo: DemoIO,
    known: Known,
    inputs: Mapping[str, np.ndarray],
    in_fp32: bool,
) -> list[float]:
    """Relative L2 error of each hidden state, see ``print_layer_comparison``; ``in_fp32``: without roundings."""
    states = run_hidden_states(network, names, demo, known, inputs, in_fp32)
    return [relative_l2(ours, reference) for ours, reference in zip(states, demo.hidden_states, strict=True)]


def run_hidden_states(
    network: trt.INetworkDefinition,
    names: Sequence[str],
    demo: DemoIO,
    known: Known,
    inputs: Mapping[str, np.ndarray],
    in_fp32: bool = False,
) -> list[np.ndarray]:
    """Our hidden states for the last sentence of ``inputs``, each fp32 (S, H)."""
    answers = NetworkRunner(network, outputs=names, known=known, in_fp32=in_fp32).run(inputs)
    shape = demo.hidden_states.shape[1:]
    return [answers[name].float().numpy().reshape(-1, *shape)[-1] for name in names]
