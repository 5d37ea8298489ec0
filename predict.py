"""Answers every line of a file, for any task: a plan runs with TensorRT, a model folder with PyTorch.

    python predict.py out lines.txt --out answers.jsonl                                   with PyTorch, CPU or GPU
    python predict.py out/builder.fp16.packed.fused.plan lines.txt --out answers.jsonl    with TensorRT
    python predict.py out texts.jsonl --out vectors.npy                                   a model of embeddings

``python predict.py --help`` describes input and output. The answers are in the order of the lines; bad lines are
reported with their numbers and skipped. bert_trt/packing.py puts the texts into batches for the network.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_trt.command_line import predict_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(predict_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

from bert_trt.answer_files import form_of, partial_files
from bert_trt.console import UserError, run_script
from bert_trt.files import check_outputs, make_folder
from bert_trt.inference import InferHelper, execution_obstacle
from bert_trt.model_files import CONFIG_NAME, ModelFolder
from bert_trt.options import DEFAULT_OUT_DIR, PredictOptions
from bert_trt.plan import check_plan, info_path, read_info
from bert_trt.prediction import BatchRanges, Source, one_by_one, predict_file
from bert_trt.pytorch_network import PyTorchNetwork
from builder import assemble

FORMAT = 1  # of what an interrupted run leaves


def main() -> int:
    """Runs the script; returns its exit code."""
    options = predict_arguments()
    if options.model.is_dir():
        predict_with_pytorch(options)
    else:
        predict_with_plan(options)
    return 0


def predict_with_plan(options: PredictOptions) -> None:
    """Runs a plan with TensorRT.

    Raises:
        UserError: the plan or the model is missing or wrong, or plans cannot be executed here.
    """
    plan = options.model
    check_plan(plan)
    info = read_info(plan)
    if info is None:
        raise UserError(f"{plan}.json is missing; build the plan again with builder.py")
    has_model = (plan.parent / CONFIG_NAME).exists()
    folder = ModelFolder(options.model_dir or (plan.parent if has_model else DEFAULT_OUT_DIR))
    name = folder.config.output_name
    source = open_source(options, folder, BatchRanges.of_plan(info.profile))
    obstacle = execution_obstacle()
    if obstacle is not None:
        raise UserError(
            f"plans cannot be executed here: {obstacle}; to run the same network with PyTorch, name the model's "
            f"folder {folder.path} in place of the plan"
        )
    with InferHelper(plan) as helper:
        if name not in helper.outputs:
            raise UserError(
                f"{plan} has no output {name}: it is of another model than that in {folder.path}; name its folder "
                "with --model-dir"
            )
        run_all = one_by_one(lambda inputs: helper.infer(inputs)[name])
        predict_file(source, run_all, options.out, describe(options, folder), options.restart)


def predict_with_pytorch(options: PredictOptions) -> None:
    """Runs the network of a model folder with PyTorch, on a GPU where there is one."""
    folder = ModelFolder(options.model)
    network = PyTorchNetwork(folder, assemble, options.precision, options.fusion)
    source = open_source(options, folder, network.ranges)
    predict_file(source, network.run_all, options.out, describe(options, folder), options.restart)


def open_source(options: PredictOptions, folder: ModelFolder, ranges: BatchRanges) -> Source:
    """Checks input and output, before anything that takes long.

    Raises:
        UserError: an option does not suit the model, a file is missing, cannot be used or would be overwritten.
    """
    inputs = {"INPUT": options.input, "MODEL": options.model, "MODEL.json": info_path(options.model)}
    partial, state = partial_files(options.out)
    check_outputs(
        {"--out": options.out, "FILE.partial": partial, "FILE.partial.json": state}, inputs | folder.files()
    )
    source = Source(folder, options.input, ranges, options.answers)
    form_of(options.out, folder.config.task, folder.config.output_width)
    if source.size:  # what a pipe has can be read only once
        source.check()
    make_folder(options.out.parent)
    return source


def describe(options: PredictOptions, folder: ModelFolder) -> dict[str, Any]:
    """What the answers depend on: an interrupted run goes on only where all of it is the same."""

    def version(path: Path) -> str:
        status = path.stat()
        return f"{os.path.realpath(path)} ({status.st_size} bytes, time {status.st_mtime_ns})"

    files = {"model": options.model} | folder.files()
    return {
        "format": FORMAT,
        "input": version(options.input),
        **{name: version(path) for name, path in files.items() if path.is_file()},
        "--precision": options.precision,
        "--fusion": options.fusion,
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(options.answers).items()},
    }


if __name__ == "__main__":
    run_script(main)
