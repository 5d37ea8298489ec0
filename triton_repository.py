"""Writes a model repository for Triton Inference Server: the plan as the model ``bert``, texts in as ``bert_text``.

    python triton_repository.py --out models --precision fp16 --fusion plugins
    python triton_repository.py --out models --batching padded --max-batch 8
    python triton_repository.py --out models --plan out/triton_repository.fp16.ragged.fused.plan

``python triton_repository.py --help`` lists the rest. The plan is built and checked as builder.py does it, in the
model folder, and copied. README.md in the repository has the commands that start Triton; docs/serving.md explains
both models.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from bert_trt.command_line import triton_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(triton_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

from bert_trt.console import UserError, console, run_script, warn
from bert_trt.model_files import ModelFolder
from bert_trt.options import PlanOptions, TritonOptions
from bert_trt.pipeline import plan_name
from bert_trt.plan import PlanInfo, check_plan, read_info
from bert_trt.prediction import check_options
from bert_trt.report import print_report
from bert_trt.tensorrt_product import IS_RTX
from bert_trt.triton_models import Repository, Sizes, check_empty
from bert_trt.triton_text import TextModel
from builder import run
from plugins.build import library_path


def main() -> int:
    """Runs the script; returns its exit code."""
    options = triton_arguments()
    folder = ModelFolder(options.model_dir)
    check_options(folder, options.answers)
    check_empty(options.out)
    sizes = Sizes.of(folder.config, options.max_batch, options.max_tokens)
    TextModel(folder, options.batching, options.answers)  # its tokenizer is there and suits the options
    plan = options.plan or build(options, folder, sizes)
    if plan is None:
        return 1
    info = read_plan(plan)
    sizes.check_plan(plan, info, options.batching)
    library = library_path() if info.plugin_library else None
    command = shlex.join(["python", "triton_repository.py", *sys.argv[1:]])
    Repository(folder, plan, info, options.batching, sizes, options.answers, library, command).write(options.out)
    console.print(
        f"{options.out}: bert and bert_text, batches of at most {sizes.max_batch} sequences of {sizes.max_length} "
        f"tokens; {options.out / 'README.md'} has the commands",
        soft_wrap=True,
        markup=False,
    )
    if IS_RTX:
        warn(
            "the plan is one of tensorrt_rtx, which Triton's TensorRT backend does not load; write the repository "
            f"again where the full tensorrt is installed, see {options.out / 'README.md'}"
        )
    return 0


def build(options: TritonOptions, folder: ModelFolder, sizes: Sizes) -> Path | None:
    """Builds the plan and checks it. Returns its path; None if its answers are not PyTorch's, as the report says."""
    plan = PlanOptions(
        model_dir=options.model_dir,
        precision=options.precision or "fp32",
        fusion=options.fusion or "none",
        batching=options.batching,
        seq_len=sizes.seq_len,
        batch=sizes.batch,
        no_embed_plugins=options.no_embed_plugins,
        quantization=options.quantization,
    )
    plan = replace(plan, plan=folder.path / plan_name("triton_repository.py", plan))
    result = run(plan)
    print_report(result)
    return plan.plan if result.agrees else None


def read_plan(plan: Path) -> PlanInfo:
    """The description of a plan that is whole and of the installed TensorRT.

    Raises:
        UserError: it is not.
    """
    check_plan(plan)
    info = read_info(plan)
    if info is None:
        raise UserError(f"{plan}.json is missing, which says what the plan takes; build the plan again")
    return info


if __name__ == "__main__":
    run_script(main)
