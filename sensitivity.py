"""Measures the error of quantization: of all products together, and of each product of the encoder alone.

    python model2onnx.py        writes out/
    python sensitivity.py       int8: quantizes each product alone and ranks the products by their error
    python sensitivity.py --precision fp8 --plot sensitivity.png --json sensitivity.json

``builder.py --precision int8 --max-error X`` uses the ranking: it returns the most sensitive products to fp16, one by
one, until the error is at most X. Errors are measured with bert_trt/network_runner.py, on sentences that were not
used for calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bert_trt.command_line import sensitivity_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(sensitivity_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

from rich.table import Table

from bert_trt.calibration import quantization_of
from bert_trt.console import UserError, console, run_script
from bert_trt.files import atomic_write, check_outputs, make_folder, write_json
from bert_trt.fusion import check_quantized_groups
from bert_trt.model_files import ModelFolder
from bert_trt.options import CACHE_NAME, GROUPS
from bert_trt.pictures import load_pyplot
from bert_trt.quantization import BASE_PRECISION
from bert_trt.quantized_model import Sensitivity, quantize, rank_products
from bert_trt.tensorrt_log import TrtLog
from builder import assemble


def print_ranking(ranking: Sequence[Sensitivity], kind: str, plain_error: float) -> None:
    """Prints a table with a row for each product."""
    title = f"Relative L2 error with one product in {kind} (with none: {plain_error:.2e})"
    table = Table(title=title, title_justify="left")
    for heading in ("product", "group", "relative L2 error"):
        table.add_column(heading, overflow="fold")
    for sensitivity in ranking:
        table.add_row(sensitivity.name, sensitivity.group, f"{sensitivity.rel_l2:.2e}")
    console.print(table)


def plot_ranking(ranking: Sequence[Sensitivity], kind: str, path: Path) -> None:
    """Plots the error over the encoder layers, a line for each group: the most sensitive product of the group."""
    pyplot = load_pyplot()
    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for group in (group for group in GROUPS if any(one.group == group for one in ranking)):
        by_layer: dict[int, float] = {}
        for one in ranking:
            if one.group == group:
                layer = int(one.name.split("layer.")[1].split(".")[0])
                by_layer[layer] = max(by_layer.get(layer, 0.0), one.rel_l2)
        layers = sorted(by_layer)
        axis.plot(layers, [by_layer[layer] for layer in layers], marker="o", label=group)
    axis.set(xlabel="encoder layer", ylabel="relative L2 error of the output", title=f"One product alone in {kind}")
    axis.set_ylim(bottom=0)
    axis.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=120)
    pyplot.close(figure)


def main() -> int:
    """Runs the script; returns its exit code."""
    options = sensitivity_arguments()
    folder, log = ModelFolder(options.model_dir), TrtLog()
    outputs = {"the calibration cache": folder.path / CACHE_NAME, "--json": options.json, "--plot": options.plot}
    check_outputs(outputs, {"--calibration-data": options.quantization.data} | folder.files())
    for path in outputs.values():
        if path is not None:
            make_folder(path.parent)
    settings = options.quantization.settings
    check_quantized_groups(options.fusion, settings.kind, settings.groups)
    model = quantize(folder, options.quantization, assemble, log, folder.path / CACHE_NAME, options.fusion)
    evaluation = model.evaluation
    if evaluation is None:
        raise UserError(
            f"{options.quantization.data}: no sentence is left over to measure on; lower --calibration-sentences"
        )
    ranking = model.returned.ranking if model.returned else []
    if not ranking:  # --max-error ranks only if it has to return something
        products = [product for kernel in model.kernels.values() for product in kernel]
        ranking = rank_products(evaluation, quantization_of(model.calibration, products), model.kernels)
    print_ranking(ranking, settings.kind, evaluation.measure(BASE_PRECISION, None).rel_l2)
    model.print_change()
    if options.plot is not None:
        plot_ranking(ranking, settings.kind, options.plot)
    write_json(options.json, {**model.as_dict(), "ranking": [asdict(sensitivity) for sensitivity in ranking]})
    return 0


if __name__ == "__main__":
    run_script(main)
