"""Runs all scripts on the bundled checkpoint: the export, three plans, their networks, and one table of the results.

    make demo                      or: python demo.py [--precision fp16] [--model-dir out]

The exit code is 0 only if all networks agree with PyTorch.
"""

from __future__ import annotations

from dataclasses import replace

from bert_trt.command_line import demo_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(demo_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import builder
import model2onnx
import onnx2trt
from bert_trt.console import console, run_script, warn
from bert_trt.files import check_outputs, write_json
from bert_trt.layers.fused import UnsuitableFusionError
from bert_trt.model_files import FILE_NAMES
from bert_trt.options import PlanOptions
from bert_trt.pipeline import Result, plan_name
from bert_trt.plan import info_path
from bert_trt.report import print_report
from plugins.build import BuildError


def run_with_plugins(options: PlanOptions) -> Result | None:
    """Runs builder.py --fusion plugins; returns None, after a warning, if the plugins cannot be built or do not suit
    the model."""
    try:
        return builder.run(replace(options, fusion="plugins"))
    except (BuildError, UnsuitableFusionError) as error:
        warn(f"the network with plugins is left out: {error}")
        return None


def parser_options(options: PlanOptions) -> PlanOptions:
    """The options for onnx2trt.py, which has no batches and no plugins but LayerNorm."""
    fusion = options.fusion if options.fusion == "tensorrt" else "none"
    return replace(options, fusion=fusion, batching="single", batch=None, sentences=None, predictions=None)


def check_files(options: PlanOptions) -> None:
    """Checks, before the first step, that --json and --predictions name no file of a later step."""
    names = [plan_name("builder.py", options), plan_name("onnx2trt.py", parser_options(options))]
    names += [plan_name("builder.py", replace(options, fusion="plugins"))] if options.fusion == "none" else []
    plans = [options.model_dir / name for name in names]
    written = {f"the plan {plan.name}": plan for plan in plans}
    written |= {f"the description {info_path(plan).name}": info_path(plan) for plan in plans}
    written |= {f"the model's {name}": options.model_dir / name for name in FILE_NAMES}
    outputs = {"--json": options.json, "--predictions": options.predictions}
    check_outputs(outputs, written | {"--sentences": options.sentences})


def main() -> int:
    """Runs the script; returns its exit code."""
    export, options = demo_arguments()
    check_files(options)
    model2onnx.quiet_libraries()
    console.print("[bold]1. model2onnx.py[/]: the checkpoint in PyTorch, and as ONNX")
    model2onnx.export(
        *(export.model, export.text, export.out_dir, export.text_pair, export.ignore_extra_weights),
        *(export.task, export.pooling, export.ignore_config),
    )
    console.print("[bold]2. builder.py[/]: the network layer by layer through the API")
    results = [builder.run(options)]
    console.print("[bold]3. onnx2trt.py[/]: the same ONNX file through the parser")
    results.append(onnx2trt.run(parser_options(options)))
    if options.fusion == "none":
        console.print("[bold]4. builder.py --fusion plugins[/]: fused layers by our CUDA plugins")
        fused = run_with_plugins(options)
        results += [fused] if fused is not None else []
    print_report(*results)
    write_json(options.json, [result.as_dict() for result in results])
    return 0 if all(result.agrees for result in results) else 1


if __name__ == "__main__":
    run_script(main)
