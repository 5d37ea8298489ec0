"""Fills every [MASK] of a text file, one sentence a line, and writes the ten best words as JSON lines.

    python builder.py --batching packed --fusion plugins --sentences FILE      builds a plan and fills
    python fill_mask.py out/builder.fp16.packed.fused.plan FILE                with a plan that is there already

The sentences are put into batches as the network takes them (bert_trt/packing.py); the answers come in the file's
order. Bad lines are reported with their numbers and skipped.
"""

from __future__ import annotations

from bert_trt.command_line import fill_mask_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(fill_mask_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

from bert_trt.console import UserError, run_script
from bert_trt.files import check_outputs, make_folder
from bert_trt.inference import InferHelper
from bert_trt.mask_filling import fill_text_file, ranges_of_plan, read_source
from bert_trt.model_files import ModelFolder
from bert_trt.options import predictions_path
from bert_trt.plan import info_path, read_info


def main() -> int:
    """The script."""
    options = fill_mask_arguments()
    folder = ModelFolder(options.model_dir)
    info = read_info(options.plan)
    if info is None:
        raise UserError(f"{options.plan}.json is missing; build the plan again with builder.py")
    target = predictions_path(options.fillings, options.plan)
    inputs = {"PLAN": options.plan, "PLAN.json": info_path(options.plan), "FILE": options.sentences}
    check_outputs({"--fillings": target}, inputs | folder.files())
    make_folder(target.parent)
    batching, seq_len, batch = ranges_of_plan(info.profile)
    source = read_source(folder, options.sentences, seq_len, batch)
    with InferHelper(options.plan) as helper:
        name = folder.config.output_name
        fill_text_file(folder, source, target, batching, seq_len, batch, lambda inputs: helper.infer(inputs)[name])
    return 0


if __name__ == "__main__":
    run_script(main)
