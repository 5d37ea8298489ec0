"""How much quantization changes the answers: altogether, and product by product.

    python model2onnx.py        writes out/
    python sensitivity.py       int8: every product of the encoder alone, ranked by the error that it brings
    python sensitivity.py --precision fp8 --plot sensitivity.png --json sensitivity.json

``builder.py --precision int8 --max-error X`` uses the ranking: it returns the worst products to fp16, one by one,
until the error is at most X. Errors are measured with network_runner.py on sentences that were not calibrated on.
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
from bert_trt.model_files import ModelFolder
from bert_trt.options import CACHE_NAME
from bert_trt.pictures import load_pyplot
from bert_trt.quantization import BASE_PRECISION, Product, in_groups
from bert_trt.quantized_model import Sensitivity, quantize, rank_products
from bert_trt.tensorrt_log import TrtLog
from builder import assemble


def print_ranking(ranking: Sequence[Sensitivity], kind: str, plain_error: float) -> None:
    """One row for each product."""
    title = f"Relative L2 error with one product in {kind} (with none: {plain_error:.2e})"
    table = Table(title=title, title_justify="left")
    for heading in ("product", "group", "relative L2 error"):
        table.add_column(heading, overflow="fold")
    for one in ranking:
        table.add_row(one.name, one.group, f"{one.rel_l2:.2e}")
    console.print(table)


def plot_ranking(ranking: Sequence[Sensitivity], kind: str, products: Sequence[Product], path: Path) -> None:
    """Error by layer, a line for each group (the worst product of the group), as a picture."""
    pyplot = load_pyplot()
    errors = {one.name: one.rel_l2 for one in ranking}
    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for group in dict.fromkeys(product.group for product in products):
        by_layer: dict[int, float] = {}
        for product in in_groups(products, [group]):
            layer = int(product.name.split("layer.")[1].split(".")[0])
            by_layer[layer] = max(by_layer.get(layer, 0.0), errors[product.name])
        axis.plot(list(by_layer), list(by_layer.values()), marker="o", label=group)
    axis.set(xlabel="encoder layer", ylabel="relative L2 error of the output", title=f"One product alone in {kind}")
    axis.set_ylim(bottom=0)
    axis.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=120)
    pyplot.close(figure)


def main() -> int:
    """The script."""
    options = sensitivity_arguments()
    folder, log = ModelFolder(options.model_dir), TrtLog()
    outputs = {"the calibration cache": folder.path / CACHE_NAME, "--json": options.json, "--plot": options.plot}
    check_outputs(outputs, {"--calibration-data": options.quantization.data} | folder.files())
    for path in outputs.values():
        if path is not None:
            make_folder(path.parent)
    model = quantize(folder, options.quantization, assemble, log, folder.path / CACHE_NAME)
    evaluation = model.evaluation
    if evaluation is None:
        raise UserError(
            f"{options.quantization.data}: no sentence is left over to measure on; lower --calibration-sentences"
        )
    products = in_groups(model.products, options.quantization.settings.groups)
    ranking = model.returned.ranking if model.returned else []
    if not ranking:  # --max-error ranks only if it has to return something
        ranking = rank_products(evaluation, quantization_of(model.calibration, products), products)
    print_ranking(ranking, options.quantization.settings.kind, evaluation.measure(BASE_PRECISION, None).rel_l2)
    model.print_change()
    if options.plot is not None:
        plot_ranking(ranking, options.quantization.settings.kind, products, options.plot)
    write_json(options.json, {**model.as_dict(), "ranking": [asdict(one) for one in ranking]})
    return 0


if __name__ == "__main__":
    run_script(main)
