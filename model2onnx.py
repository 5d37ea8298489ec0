"""Runs a BERT checkpoint in PyTorch and exports it to ONNX.

    python model2onnx.py                              the bundled checkpoint
    python model2onnx.py --model bert-base-uncased    a checkpoint from the model hub (downloads it)
    python model2onnx.py --model path/to/checkpoint   a local one, in Hugging Face layout
    python model2onnx.py --model DIR --task embedding another task than the checkpoint's own

It reads every family of bert_trt/families.py (BERT, RoBERTa, DistilBERT ...), whose parameters get BERT's names, and
finds the task in the checkpoint's own files.

It writes the folder that the other scripts read (see bert_trt/model_files.py): the ONNX model, whose weights carry
the checkpoint's own parameter names, the configuration, the tokenizer, and sentences with PyTorch's fp32 outputs.
``export`` at the end of this file is the whole job, step by step.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bert_trt.command_line import model2onnx_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(model2onnx_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common as ir_passes
from onnxscript import optimizer, rewriter
from rich.table import Table
from rich.text import Text

from bert_trt.checkpoint import Checkpoint, check_special_tokens, first_line, load_checkpoint, quiet_libraries
from bert_trt.console import UserError, console, log_console, run_script
from bert_trt.families import canonical_entries
from bert_trt.files import atomic_folder, check_outputs, make_folder
from bert_trt.model_files import (
    CONFIG_NAME,
    DATA_NAME,
    DEMO_NAME,
    FILE_NAMES,
    INPUT_NAMES,
    ONNX_NAME,
    REFERENCE_NAME,
    BertConfig,
    ReferenceSequence,
    check_inputs,
)
from bert_trt.options import DEFAULT_ANSWER, DEFAULT_QUESTION, DEFAULT_TEXT, MASK, QUESTION_ANSWERING
from bert_trt.pytorch_bert import PyTorchBert
from bert_trt.reference import reference_sequences, run_reference, write_reference
from bert_trt.sentences import pair_types

OPSET = 20  # the first with Gelu
# Largest relative L2 error of the ONNX graph, run in NumPy, against PyTorch. Both round to fp32 after every
# operation. Measured at the size of BERT-base: 4e-6.
EXPORT_TOLERANCE = 1e-4
CHECKED_LENGTH = 9  # tokens of the sequence on which the graph is run: the shortest with both token types


# --- the sentence and PyTorch's output ------------------------------------------------------------------------


def decode_text(text: str, option: str = "--text") -> str:
    """Decodes the text of an option as UTF-8 in any locale: in an ASCII one Python keeps other bytes as surrogates.

    Raises:
        UserError: the bytes are not UTF-8.
    """
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeError as error:
        raise UserError(f"{option} {text!a} is not valid text ({error}); write it in UTF-8") from error


def default_text(tokenizer: Any, config: BertConfig) -> tuple[str, str | None]:
    """The example that suits the task: a sentence with the tokenizer's mask token, a question with its context, or a
    plain sentence."""
    if config.has_head:
        return DEFAULT_TEXT.replace(MASK, str(tokenizer.mask_token)), None
    text = DEFAULT_TEXT.replace(MASK, DEFAULT_ANSWER)
    return (DEFAULT_QUESTION, text) if config.task == QUESTION_ANSWERING else (text, None)


def tokenize(
    text: str, tokenizer: Any, config: BertConfig, text_pair: str | None = None
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Turns a sentence, or a pair of them, into the network's inputs.

    Args:
        text: the sentence.
        tokenizer: the checkpoint's.
        config: the model's sizes.
        text_pair: the second sentence of a pair.

    Returns:
        ``input_ids``, ``token_type_ids`` and ``position_ids``, each int64 (1, S), and the positions of [MASK], none
        for a model without a head.

    Raises:
        UserError: the text has no [MASK] though the model fills masks, is longer than the position table,
            or has ids outside the vocabulary; or the vocabulary lacks a token that every text needs.
    """
    if config.has_head and tokenizer.mask_token is None:
        raise UserError("the checkpoint's tokenizer has no mask token; expected one, such as [MASK]")
    check_special_tokens(tokenizer, config)
    try:
        encoded = tokenizer(text, text_pair, return_tensors="np", return_token_type_ids=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(
            f"the checkpoint's tokenizer cannot read --text {text!r} ({first_line(error)}); "
            "its vocabulary is incomplete or damaged"
        ) from error
    ids = encoded["input_ids"].astype(np.int64)  # (1, S)
    types = encoded["token_type_ids"].astype(np.int64)
    if config.type_vocab_size == 1:
        types = np.zeros_like(ids)
    elif text_pair is None:
        types = pair_types(ids[0], tokenizer.sep_token_id, config.type_vocab_size)[None]
    inputs = {
        "input_ids": ids,
        "token_type_ids": types,
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
    }
    check_inputs(inputs, config, "--text")
    mask_positions = [int(position) for position in np.flatnonzero(ids[0] == tokenizer.mask_token_id)]
    if config.has_head and not mask_positions:
        options = f"--text {text!r}" + ("" if text_pair is None else f" --text-pair {text_pair!r}")
        raise UserError(f"{options} has no {tokenizer.mask_token}; write it where a word is to be filled in")
    return inputs, mask_positions if config.has_head else []


def run_pytorch(checkpoint: Checkpoint, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Runs the checkpoint in fp32, in transformers' own class.

    Args:
        checkpoint: loaded by ``load_checkpoint``.
        inputs: of ``tokenize``.

    Returns:
        The output, float32 (1, S, width), or (1, 1, width) where the task has one row for a sequence, and the hidden
        states, float32 (L + 1, S, H).

    Raises:
        UserError: a value is not finite.
    """
    tensors = {name: torch.from_numpy(inputs[name]) for name in INPUT_NAMES[:2]}
    tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    output, hidden_states = checkpoint.run_reference(tensors, output_hidden_states=True)
    if not output.isfinite().all():
        raise UserError(
            "PyTorch's answer in fp32 has values that are not finite, though the weights are: they are too large; "
            "the checkpoint is damaged"
        )
    return output.numpy(), torch.cat(hidden_states).numpy()


# --- ONNX -----------------------------------------------------------------------------------------------------


def export_onnx(model: PyTorchBert, inputs: dict[str, np.ndarray], config: BertConfig) -> ir.Model:
    """Exports the model with a dynamic length S. Its weights carry the names of its parameters.

    Raises:
        UserError: the exporter changed or lost a weight; the message names it.
    """
    length = torch.export.Dim("sequence", min=1, max=config.max_positions)
    example = tuple(torch.from_numpy(np.repeat(inputs[name][:, :1], 2, axis=1)) for name in INPUT_NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            optimize=False,  # see simplify
            opset_version=OPSET,
            input_names=list(INPUT_NAMES),
            output_names=[config.output_name],
            dynamic_shapes=tuple({1: length} for _ in INPUT_NAMES),
            verbose=False,
        )
    assert program is not None
    simplify(program.model)
    check_weights(program.model, model)
    return program.model


def simplify(onnx_model: ir.Model) -> None:
    """Folds constants and removes nodes without effect, in place.

    The exporter's own optimisation does the same and then merges equal weights (all zero biases into one), after
    which their names are lost.
    """
    ir_passes.InlinePass()(onnx_model)
    optimizer.fold_constants(onnx_model, should_fold=_should_fold)
    rewriter.rewrite(onnx_model)
    for clean in (
        ir_passes.RemoveUnusedNodesPass(),
        ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ir_passes.CommonSubexpressionEliminationPass(),
        ir_passes.OutputFixPass(),
        ir_passes.NameFixPass(),
        ir_passes.ClearMetadataAndDocStringPass(),  # stack traces with the exporting machine's paths
    ):
        clean(onnx_model)


def _should_fold(node: ir.Node) -> bool | None:
    """No for the Transpose of a weight, which keeps its name and PyTorch's shape (out, in).

    A folded weight would be a new constant, (in, out), without the name. TensorRT folds the Transpose itself when it
    builds: at BERT-base size time, memory and plan size are the same.
    """
    is_weight = node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    return False if is_weight else None


def check_weights(onnx_model: ir.Model, model: torch.nn.Module) -> None:
    """Proves bit for bit that every weight of the graph is the model's parameter of that name.

    Raises:
        UserError: a weight is no parameter, or a parameter is not in the graph; the message names it.
    """
    parameters = model.state_dict()
    missing = dict.fromkeys(parameters)
    for name, value in onnx_model.graph.initializers.items():
        array = value.const_value.numpy() if value.const_value is not None else np.empty(0)
        if array.dtype != np.float32 or array.ndim == 0:
            continue  # shapes, and scalars such as the attention's 1 / sqrt(D)
        parameter = parameters.get(name)
        if parameter is None or not _same_bits(array, parameter.numpy()):
            raise UserError(
                f"ONNX export: weight {name!r} {list(array.shape)} equals no parameter of the checkpoint of "
                "that name; the exporter changed it"
            )
        value.metadata_props.clear()  # names and kinds of the exporter's
        missing.pop(name)
    if missing:
        raise UserError(f"ONNX export: parameter {next(iter(missing))!r} of the checkpoint is not in the ONNX graph")


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a.view(np.int32), b.view(np.int32))


def separate_weights(onnx_model: ir.Model) -> dict[str, np.ndarray]:
    """Replaces every weight by a reference into ``model.onnx.data``, in place.

    Returns:
        The weights by name, float32, in the order of that file.
    """
    weights: dict[str, np.ndarray] = {}
    offset = 0
    for name, value in onnx_model.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.ndim > 0:
            weights[name] = np.ascontiguousarray(array)
            shape = ir.Shape(array.shape)
            value.const_value = ir.ExternalTensor(
                DATA_NAME, offset, array.nbytes, ir.DataType.FLOAT, shape=shape, name=name
            )
            offset += array.nbytes
    return weights


def check_onnx(
    onnx_model: ir.Model, weights: Mapping[str, np.ndarray], references: Sequence[ReferenceSequence]
) -> None:
    """Runs the graph on a short sequence and compares its output with PyTorch's.

    The reference evaluator of the onnx package runs it in NumPy, which needs neither TensorRT nor a GPU.

    Args:
        onnx_model: without weights, see ``separate_weights``.
        weights: its weights.
        references: sequences with PyTorch's outputs, the shortest first.

    Raises:
        UserError: the graph cannot be run, or its output is not PyTorch's.
    """
    sequence = [sequence for sequence in references if len(sequence.input_ids) <= CHECKED_LENGTH][-1]
    ids, types = sequence.input_ids[None], sequence.token_type_ids[None]  # (1, S)
    inputs = dict(zip(INPUT_NAMES, (ids, types, np.arange(ids.shape[1])[None]), strict=True))
    graph = ir.to_proto(onnx_model)
    constants = [tensor for tensor in graph.graph.initializer if tensor.name not in weights]
    for name, array in weights.items():
        graph.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(constants)
    try:
        outputs: Any = ReferenceEvaluator(graph).run(None, {**inputs, **weights})
    except Exception as error:  # NumPy and the evaluator raise many types for a wrong graph
        raise UserError(f"the exported ONNX graph cannot be run ({first_line(error)})") from error
    output = outputs[0] if outputs[0].ndim == 2 else outputs[0][0, sequence.checked]  # (1, width) or (P, width)
    difference = float(np.linalg.norm(output.astype(np.float64) - sequence.output))
    size = float(np.linalg.norm(sequence.output.astype(np.float64)))
    if not difference <= EXPORT_TOLERANCE * size:
        raise UserError(
            f"the exported ONNX graph answers otherwise than PyTorch (L2 norm of the difference {difference:.1e}, "
            f"of PyTorch's answer {size:.1e}); nothing is written"
        )


def write_onnx(onnx_model: ir.Model, weights: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes ``model.onnx`` and ``model.onnx.data``."""
    with (folder / DATA_NAME).open("wb") as file:
        for array in weights.values():
            file.write(array.data)
    (folder / ONNX_NAME).write_bytes(ir.to_proto(onnx_model).SerializeToString())


# --- the script -----------------------------------------------------------------------------------------------


def export(
    model_name: str,
    text: str | None,
    folder: Path,
    text_pair: str | None = None,
    ignore_extra_weights: bool = False,
    task: str | None = None,
    pooling: str | None = None,
    ignore_config: tuple[str, ...] = (),
) -> None:
    """Reads a checkpoint, exports it to a folder and prints PyTorch's predictions.

    Args:
        model_name: a checkpoint folder, or a name on the hub.
        text: the sentence, with the mask token for a model that fills masks; None for one that suits the task.
        folder: where the files go: all of them, or none after a failure.
        text_pair: the second sentence of a pair.
        ignore_extra_weights: warn of parts that cannot be exported instead of raising.
        task: one of ``options.TASKS``; None for the checkpoint's own.
        pooling: one of ``options.POOLINGS``, for an embedding; None for the checkpoint's own.
        ignore_config: entries of config.json that are unknown and without effect.

    Raises:
        UserError: the checkpoint or the text cannot be used, or the folder cannot be written.
    """
    text = None if text is None else decode_text(text)
    text_pair = None if text_pair is None else decode_text(text_pair, "--text-pair")
    check_not_itself(model_name, folder)
    with log_console.status(f"loading {model_name}"):
        checkpoint = load_checkpoint(model_name, task, pooling, ignore_extra_weights, ignore_config)
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    if text is None:
        text, default_pair = default_text(tokenizer, config)
        text_pair = text_pair or default_pair
    inputs, mask_positions = tokenize(text, tokenizer, config, text_pair)
    text = text if text_pair is None else f"{text} {tokenizer.sep_token} {text_pair}"
    make_folder(folder)  # an error here comes before the long work
    output, hidden_states = run_pytorch(checkpoint, inputs)
    references = run_reference(checkpoint, reference_sequences(tokenizer, config))
    with log_console.status("exporting to ONNX"):
        onnx_model = export_onnx(checkpoint.model, inputs, config)
        weights = separate_weights(onnx_model)
        check_onnx(onnx_model, weights, references)
    with atomic_folder(folder) as new:  # after a failure the old model is still whole
        write_onnx(onnx_model, weights, new)
        entries = checkpoint.reference.config.to_diff_dict() | canonical_entries(checkpoint.reference.config)
        entries |= config.task_entries() | {"tie_word_embeddings": config.tied_decoder}
        (new / CONFIG_NAME).write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _save_tokenizer(tokenizer, new)
        results = {
            "output": output,
            "hidden_states": hidden_states,
            "mask_positions": np.array(mask_positions, np.int64),
        }
        np.savez(new / DEMO_NAME, allow_pickle=False, text=np.array(text), **inputs, **results)
        write_reference(references, new / REFERENCE_NAME)
    size = (folder / DATA_NAME).stat().st_size / 2**20
    name = os.path.relpath(model_name) if Path(model_name).is_dir() else model_name
    console.print(
        f"{name}: {config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} heads, "
        f"vocabulary {config.vocab_size}, {size:.1f} MiB of weights -> {folder}",
        markup=False,
        soft_wrap=True,
    )
    if config.has_head:
        print_predictions(text, output[0], mask_positions[0], tokenizer)


def check_not_itself(model_name: str, folder: Path) -> None:
    """Refuses to write over the checkpoint.

    Raises:
        UserError: ``folder`` is the checkpoint's, or its files are the checkpoint's.
    """
    checkpoint = Path(model_name)
    with suppress(OSError):  # load_checkpoint reports a name that is no path
        if model_name and checkpoint.is_dir():
            outputs = {f"{name} of --out-dir": folder / name for name in FILE_NAMES}
            check_outputs(outputs, {f"{path.name} of --model": path for path in checkpoint.iterdir()})


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves into a temporary folder first: the tokenizers library refuses a path that is not valid UTF-8."""
    with TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        for path in Path(temporary).iterdir():
            shutil.copyfile(path, folder / path.name)


def print_predictions(text: str, logits: np.ndarray, position: int, tokenizer: Any) -> None:
    """Prints the top-10 predictions for the [MASK] at ``position``. ``logits`` is (S, vocabulary)."""
    top = torch.from_numpy(logits[position]).softmax(-1).topk(10)
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("word")
    table.add_column("probability", justify="right")
    for rank, (probability, token_id) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1):
        token = tokenizer.convert_ids_to_tokens(token_id) or f"[unknown id {token_id}]"
        table.add_row(str(rank), Text(token), f"{probability:.4f}")  # Text: [unused1] is no markup
    console.print(f"PyTorch fp32: {text}", markup=False, soft_wrap=True)
    console.print(table)


def main() -> int:
    """The script."""
    args = model2onnx_arguments()
    quiet_libraries()
    export(
        *(args.model, args.text, args.out_dir, args.text_pair, args.ignore_extra_weights),
        *(args.task, args.pooling, args.ignore_config),
    )
    return 0


if __name__ == "__main__":
    run_script(main)
