"""The whole job on the bundled checkpoint: export, three plans, their networks run, one table.

    make demo                      or: python demo.py [--precision fp16] [--model-dir out]

Exits with 0 only if all networks agree with PyTorch.
"""

from __future__ import annotations

import argparse

from bert_trt.interrupts import begin_script
from bert_trt.options import demo_arguments

if __name__ == "__main__":
    begin_script(demo_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import builder
import model2onnx
import onnx2trt
from bert_trt.console import console, run_script, warn
from bert_trt.files import check_outputs, write_json
from bert_trt.fusion import fused_layers
from bert_trt.layers.fused import UnsuitableFusionError
from bert_trt.model_files import FILE_NAMES
from bert_trt.pipeline import Job, plan_name, print_report
from bert_trt.plan import info_path
from plugins.build import BuildError


def run_with_plugins(args: argparse.Namespace) -> Job | None:
    """builder.py --fusion plugins; None, and the reason told, where the plugins cannot be built or do not suit."""
    try:
        return builder.run(argparse.Namespace(**vars(args) | {"fusion": "plugins"}))
    except (BuildError, UnsuitableFusionError) as error:
        warn(f"the network with plugins is left out: {error}")
        return None


def parsers_fusion(args: argparse.Namespace) -> str:
    """--fusion for onnx2trt.py, which has no plugins but LayerNorm."""
    return args.fusion if args.fusion == "tensorrt" else "none"


def check_files(args: argparse.Namespace) -> None:
    """Refuses --json and --fillings that a later step would only find to be another step's file."""
    ways = [("builder.py", args.batching, args.fusion), ("onnx2trt.py", "single", parsers_fusion(args))]
    ways += [("builder.py", args.batching, "plugins")] if args.fusion == "none" else []
    plans = []
    for way, batching, fusion in ways:
        fused = fused_layers(fusion, args.precision)
        plans.append(args.model_dir / plan_name(way, args.precision, args.layer_norm, batching, fused))
    written = {f"the plan {plan.name}": plan for plan in plans}
    written |= {f"the description {info_path(plan).name}": info_path(plan) for plan in plans}
    written |= {f"the model's {name}": args.model_dir / name for name in FILE_NAMES}
    check_outputs({"--json": args.json, "--fillings": args.fillings}, written | {"--sentences": args.sentences})


def main() -> int:
    """The script."""
    args = demo_arguments()
    args.gelu, args.compare_layers = None, False
    check_files(args)
    model2onnx.quiet_libraries()
    console.print("[bold]1. model2onnx.py[/]: the checkpoint in PyTorch, and as ONNX")
    model2onnx.export(args.model, args.text, args.model_dir, args.text_pair, args.ignore_extra_weights)
    console.print("[bold]2. builder.py[/]: the network layer by layer through the API")
    jobs = [builder.run(args)]
    console.print("[bold]3. onnx2trt.py[/]: the same ONNX file through the parser")
    jobs.append(onnx2trt.run(argparse.Namespace(**vars(args) | {"fusion": parsers_fusion(args)})))
    if args.fusion == "none":
        console.print("[bold]4. builder.py --fusion plugins[/]: fused layers by our CUDA plugins")
        fused = run_with_plugins(args)
        jobs += [fused] if fused is not None else []
    print_report(*jobs)
    write_json(args.json, [job.as_dict() for job in jobs])
    return 0 if all(job.agrees for job in jobs) else 1


if __name__ == "__main__":
    run_script(main)
