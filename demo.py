"""The whole job on the bundled checkpoint: export, three plans, their networks run, one table.

    make demo                      or: python demo.py [--precision fp16] [--model-dir out]

Exits with 0 only if all networks agree with PyTorch.
"""

from __future__ import annotations

import argparse

from interrupts import begin_script
from options import demo_arguments

if __name__ == "__main__":
    begin_script(demo_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import builder
import model2onnx
import onnx2trt
from common import console, run_script, warn
from pipeline import Job, print_report, write_json
from plugins.build import BuildError


def run_with_plugins(args: argparse.Namespace) -> Job | None:
    """builder.py --fusion plugins; None, and the reason told, where the plugins cannot be built or do not suit."""
    try:
        return builder.run(argparse.Namespace(**vars(args) | {"fusion": "plugins"}))
    except (BuildError, builder.UnsuitableFusionError) as error:
        warn(f"the network with plugins is left out: {error}")
        return None


def main() -> int:
    """The script."""
    args = demo_arguments()
    args.gelu, args.compare_layers = None, False

    model2onnx.quiet_libraries()
    console.print("[bold]1. model2onnx.py[/]: the checkpoint in PyTorch, and as ONNX")
    model2onnx.export(args.model, args.text, args.model_dir)
    console.print("[bold]2. builder.py[/]: the network layer by layer through the API")
    jobs = [builder.run(args)]
    console.print("[bold]3. onnx2trt.py[/]: the same ONNX file through the parser")
    jobs.append(onnx2trt.run(args))
    if args.fusion == "none":
        console.print("[bold]4. builder.py --fusion plugins[/]: fused layers by our CUDA plugins")
        fused = run_with_plugins(args)
        jobs += [fused] if fused is not None else []
    print_report(*jobs)
    write_json(args.json, [job.as_dict() for job in jobs])
    return 0 if all(job.agrees for job in jobs) else 1


if __name__ == "__main__":
    run_script(main)
