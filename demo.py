"""The whole job on the bundled checkpoint: export, two plans, both networks run, one table.

    make demo                      or: python demo.py [--precision fp16] [--model-dir out]

Exits with 0 only if both networks agree with PyTorch.
"""

from __future__ import annotations

import argparse

import builder
import model2onnx
import onnx2trt
from common import console, run_script
from pipeline import add_common_arguments, print_report, write_json


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description="Export the bundled checkpoint, build both plans, run and compare.")
    parser.add_argument("--model", default=str(model2onnx.BUNDLED_MODEL), help="checkpoint folder or hub name")
    parser.add_argument("--text", default=model2onnx.DEFAULT_TEXT, help="the sentence, with [MASK]")
    add_common_arguments(parser)
    builder.add_network_arguments(parser)
    args = parser.parse_args()
    if args.plan is not None:
        parser.error("--plan names one file, and here are two plans; use builder.py or onnx2trt.py")
    args.gelu, args.compare_layers = None, False

    model2onnx.quiet_libraries()
    console.print("[bold]1. model2onnx.py[/]: the checkpoint in PyTorch, and as ONNX")
    model2onnx.export(args.model, args.text, args.model_dir)
    console.print("[bold]2. builder.py[/]: the network layer by layer through the API")
    ours = builder.run(args)
    console.print("[bold]3. onnx2trt.py[/]: the same ONNX file through the parser")
    parsed = onnx2trt.run(args)
    print_report(ours, parsed)
    write_json(args.json, [ours.as_dict(), parsed.as_dict()])
    return 0 if ours.agrees and parsed.agrees else 1


if __name__ == "__main__":
    run_script(main)
