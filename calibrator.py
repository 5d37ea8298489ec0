"""Finds the ranges of activations for int8 and fp8 from the sentences in calibrator_data.txt.

    python model2onnx.py                              writes out/
    python calibrator.py                              ranges for int8, a table of them, out/calibration.json
    python calibrator.py --calibration entropy --plot ranges.png

``builder.py --precision int8`` does the same by itself. bert_trt/network_runner.py runs the fp32 network over the
sentences, on CUDA where there is a GPU; no padding reaches the statistics. Each tensor that will be quantized has a
histogram of absolute values. A method (bert_trt/histograms.py) chooses its range from the histogram, the absolute
value that becomes 127. amax is the largest absolute value:

    max         amax itself: nothing is clipped, but one outlier makes the steps of all values coarse
    percentile  the value below which 99.99 % of the values lie (--percentile)
    entropy     the value whose int8 distribution diverges least from the true one (TensorRT's retired calibrator)
    mse         the value with the least mean squared error of rounding and clipping
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from bert_trt.command_line import calibrator_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(calibrator_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

import numpy as np
from rich.table import Table

from bert_trt.calibration import Calibration, CalibrationContext, calibrate_best
from bert_trt.calibration_cache import fingerprint, write_cache
from bert_trt.calibration_data import read_data
from bert_trt.console import console, run_script
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.files import atomic_write, check_outputs, make_folder, write_json
from bert_trt.histograms import BINS, Histogram, percentile_range
from bert_trt.model_files import ModelFolder
from bert_trt.network_runner import best_device
from bert_trt.options import CACHE_NAME
from bert_trt.pictures import load_pyplot
from bert_trt.tensorrt_log import TrtLog
from builder import assemble


def print_ranges(calibration: Calibration) -> None:
    """Prints a table with a row for each tensor."""
    table = Table(title=f"Ranges by {calibration.settings.method}", title_justify="left")
    table.add_column("tensor", overflow="fold")
    for heading in ("largest value", "range", "cut off at", "step"):
        table.add_column(heading, justify="right")
    top = ELEMENT_TYPES[calibration.settings.kind].largest
    for name, chosen in calibration.ranges.items():
        amax = calibration.amax[name]
        step = f"{chosen / top:.2e}" if calibration.settings.kind == "int8" else "of fp8"
        table.add_row(name, f"{amax:.4g}", f"{chosen:.4g}", f"{chosen / amax:.1%}", step)
    console.print(table)


def plot_histograms(calibration: Calibration, path: Path) -> None:
    """Plots the histograms of the six tensors with the furthest outliers, by amax over the 99th percentile."""
    pyplot = load_pyplot()
    worst = sorted(calibration.histograms, key=lambda name: -_outlyingness(calibration.histograms[name]))[:6]
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    for axis in axes.flat[len(worst) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, worst, strict=False):
        histogram = calibration.histograms[name]
        used = math.floor(histogram.amax / histogram.limit * BINS) + 1
        counts = np.add.reduceat(histogram.on_cpu()[:used], np.arange(0, used, max(1, used // 128)))
        edges = np.linspace(0, histogram.amax, len(counts) + 1)
        axis.stairs(counts, edges, fill=True)
        axis.axvline(calibration.ranges[name], color="tab:red", label=f"range {calibration.ranges[name]:.3g}")
        axis.set(
            yscale="log", title=name.replace("encoder.", "").replace("attention.", "att."), xlabel="absolute value"
        )
        axis.title.set_fontsize(8)
        axis.legend()
    figure.suptitle(f"The tensors with the furthest outliers, and their {calibration.settings.method} ranges")
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=120)
    pyplot.close(figure)


def _outlyingness(histogram: Histogram) -> float:
    return histogram.amax / percentile_range(histogram.on_cpu(), histogram.limit, 99)


def main() -> int:
    """Runs the script; returns its exit code."""
    options = calibrator_arguments()
    folder, settings = ModelFolder(options.model_dir), options.quantization.settings
    cache = options.cache or folder.path / CACHE_NAME
    outputs = {"--cache": cache, "--json": options.json, "--plot": options.plot}
    check_outputs(outputs, {"--calibration-data": options.quantization.data} | folder.files())
    for path in outputs.values():
        if path is not None:
            make_folder(path.parent)
    data, log = read_data(folder, options.quantization.data, settings.sentences, 0), TrtLog()
    products = assemble(folder, log, batching="padded").products
    context = CalibrationContext(folder, products, data.calibration, data.path, assemble, log)
    calibration = calibrate_best(context, settings, data.mask_id)
    write_cache(cache, calibration, fingerprint(folder, data.calibration, settings))
    print_ranges(calibration)
    speed = len(data.calibration) / calibration.seconds
    console.print(
        f"{len(calibration.ranges)} tensors, {len(data.calibration)} sentences in {calibration.seconds:.1f} s on "
        f"{best_device()} ({speed:.0f} a second) -> {cache}",
        soft_wrap=True,
    )
    if options.plot is not None:
        plot_histograms(calibration, options.plot)
    results = {
        "settings": asdict(settings),
        "seconds": calibration.seconds,
        "ranges": calibration.ranges,
        "largest": calibration.amax,
    }
    write_json(options.json, results)
    return 0


if __name__ == "__main__":
    run_script(main)
