"""Runs a BERT checkpoint in PyTorch and exports it to ONNX.

    python model2onnx.py                              the bundled checkpoint
    python model2onnx.py --model bert-base-uncased    a checkpoint from the model hub (downloads it)
    python model2onnx.py --model path/to/checkpoint   a local one, in Hugging Face layout

The output folder then holds everything that the other scripts read (see model_files.py): the ONNX model,
whose weights carry the checkpoint's own parameter names, the configuration, the tokenizer, and one sentence
with PyTorch's fp32 answer to it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from interrupts import begin_script
from options import model2onnx_arguments

if __name__ == "__main__":
    begin_script(model2onnx_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

import numpy as np
import onnx_ir as ir
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from onnx_ir.passes import common as ir_passes
from onnxscript import optimizer, rewriter
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from transformers import AttentionInterface, AutoConfig, AutoTokenizer, BertForMaskedLM, BertModel
from transformers.models.bert import modeling_bert

from common import UserError, check_outputs, console, log_console, make_folder, run_script, write_together
from model_files import (
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
from sentences import pair_types

OPSET = 20  # the first with Gelu
REFERENCE_TEXT = Path(__file__).parent / "calibrator_data.txt"
REFERENCE_LENGTHS = (3, 9, 33, 128)  # one word, a few, and the longest of the plans that are built by default
CHECKED_TOKENS = 32  # of a reference sequence: every token's logits would take 62 MB for 512 tokens of BERT-base

# Hugging Face's plain attention, registered under a name of its own: for a name that it does not know it
# builds no attention mask, which one sentence does not need and which would end up in the ONNX graph.
ATTENTION = "plain"
AttentionInterface.register(ATTENTION, modeling_bert.eager_attention_forward)


class ExportWrapper(torch.nn.Module):
    """BERT as the ONNX graph is to look: three inputs (1, S), one output."""

    def __init__(self, model: torch.nn.Module, has_head: bool) -> None:
        """Wraps ``model``; call ``eval()`` on the wrapper, or dropout is exported."""
        super().__init__()
        self.model = model
        self.has_head = has_head

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Three int64 (1, S) -> float32 (1, S, vocabulary), or (1, S, H) without a head."""
        answer = self.model(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        return answer.logits if self.has_head else answer.last_hidden_state


# --- the checkpoint ---------------------------------------------------------------------------------------


def load_checkpoint(name: str) -> tuple[transformers.PreTrainedModel, Any, BertConfig]:
    """Loads a BERT checkpoint and its tokenizer.

    Args:
        name: a local folder in Hugging Face layout, or the name of a model on the hub.

    Returns:
        (model in fp32 and eval mode, tokenizer, configuration).

    Raises:
        UserError: it cannot be found or read, is not a BERT, or lacks weights.
    """
    if not name:
        raise UserError("--model is empty; give a checkpoint folder or a hub name such as bert-base-uncased")
    try:
        is_local, exists = Path(name).is_dir(), Path(name).exists()
    except OSError as error:
        raise UserError(f"--model {name}: {error.strerror}; give a checkpoint folder or a hub name") from error
    if not is_local and (exists or name.startswith((".", "/", "~"))):
        raise UserError(f"--model {name}: no such folder; expected a checkpoint folder with config.json")
    options = {"local_files_only": is_local, "trust_remote_code": False}  # never code that comes with a checkpoint
    hf_config = _load_configuration(name, is_local, options)
    model, has_head = _load_weights(name, is_local, hf_config)
    hf_config.architectures = [type(model).__name__]
    tokenizer = _load_tokenizer(name, options)
    config = BertConfig.from_dict(hf_config.to_dict(), f"--model {name}: config.json")
    assert config.has_head == has_head
    return model.eval(), tokenizer, config


def _load_configuration(name: str, is_local: bool, options: dict[str, Any]) -> Any:
    """transformers' own configuration, checked before a large download: it is a BERT's, and a model can be made."""
    try:
        hf_config = AutoConfig.from_pretrained(name, **options)
        BertConfig.from_dict(hf_config.to_dict(), f"--model {name}: config.json")
        _make_without_weights(hf_config)
    except UserError:
        raise
    except StrictDataclassError as error:
        told = " ".join(str(error).split())
        raise UserError(f"--model {name}: config.json: {told}; correct the value") from error
    except Exception as error:  # what transformers does with a value of an unexpected type is different for each key
        rejected = _find_rejected_entry(name, options)
        if rejected is not None:
            told = f"{rejected}, which transformers cannot use ({_first_line(error)}); correct or remove it"
            raise UserError(f"--model {name}: config.json: {told}") from error
        raise UserError(_explain_loading(name, is_local, error)) from error
    # How PyTorch is to compute and return, which changes no answer, and which ``run_pytorch`` relies on.
    hf_config.chunk_size_feed_forward, hf_config.return_dict = 0, True
    return hf_config


def _make_without_weights(hf_config: Any) -> None:
    with torch.device("meta"):
        BertForMaskedLM(copy.deepcopy(hf_config))


def _find_rejected_entry(name: str, options: dict[str, Any]) -> str | None:
    """Which entry of config.json it is without which a BERT can be made; None if it is not for one entry."""

    def is_accepted(values: dict[str, Any]) -> bool:
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_NAME).write_text(json.dumps(values), encoding="utf-8")
            try:
                _make_without_weights(AutoConfig.from_pretrained(folder, **options | {"local_files_only": True}))
            except Exception:  # as above
                return False
            return True

    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(name, **options)
    except Exception:  # it is not even JSON
        return None
    if not isinstance(values, dict) or is_accepted(values):
        return None
    for key in values:
        others = {other: value for other, value in values.items() if other != key}
        if is_accepted({"model_type": "bert"} | others):
            return f"{key} is {_shorten(repr(values[key]))}"
    return None


def _load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    remedy = "expected tokenizer.json or vocab.txt in Hugging Face layout beside the weights"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"--model {name}: the tokenizer cannot be loaded ({_first_line(error)}); {remedy}") from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes of no files
        raise UserError(f"--model {name}: the tokenizer has no words; {remedy}")
    if not tokenizer.is_fast:
        raise UserError(f"--model {name}: {type(tokenizer).__name__} has no tokenizer.json; only such can be used")
    return tokenizer


def _load_weights(name: str, is_local: bool, hf_config: Any) -> tuple[transformers.PreTrainedModel, bool]:
    """Loads BertForMaskedLM, or BertModel where the checkpoint has no head. Returns (model, has_head)."""
    options: dict[str, Any] = {
        "config": hf_config,
        "local_files_only": is_local,
        "use_safetensors": True,  # the older format is a pickle, which can run code
        "attn_implementation": ATTENTION,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported below, by name
    }
    try:
        model, info = BertForMaskedLM.from_pretrained(name, **options)  # pyright: ignore[reportGeneralTypeIssues]
        transform = {key for key in model.state_dict() if key.startswith("cls.predictions.transform.")}
        # One lost weight of the head does not make a BertModel of it.
        has_head = not transform <= set(info["missing_keys"])
        if not has_head:
            model, info = BertModel.from_pretrained(name, add_pooling_layer=False, **options)  # pyright: ignore[reportGeneralTypeIssues]
    except SafetensorError as error:
        if not _is_utf8(name):
            raise UserError(
                f"--model {name}: the safetensors library reads no path that is not valid UTF-8; rename the folder"
            ) from error
        raise UserError(
            f"--model {name}: model.safetensors is corrupt ({_first_line(error)}); copy or download it again"
        ) from error
    except Exception as error:  # of many types, by what is damaged
        raise UserError(_explain_loading(name, is_local, error)) from error
    for weight, found, expected in sorted(info["mismatched_keys"]):
        raise UserError(
            f"--model {name}: weight {weight!r} is {list(found)}, expected {list(expected)}; "
            "config.json and the weights do not belong together"
        )
    missing = set(info["missing_keys"])
    if has_head and not hf_config.tie_word_embeddings:
        missing -= _join_head_biases(model.cls.predictions, missing)
    if missing:
        raise UserError(
            f"--model {name}: the checkpoint lacks {len(missing)} weights of a BERT, first {sorted(missing)[0]!r}; "
            "it is incomplete or not a BERT checkpoint"
        )
    _check_finite(name, model)
    return model, has_head


def _check_finite(name: str, model: torch.nn.Module) -> None:
    for key, weight in model.state_dict().items():
        wrong = ~torch.isfinite(weight)
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            raise UserError(
                f"--model {name}: weight {key!r} has {int(wrong.sum())} values that are not finite, of "
                f"{weight.numel()}; the first is {weight[tuple(place)].item()} at {place}; the checkpoint is damaged "
                "or its values were too large for the type in which it was saved, such as fp16; get it again"
            )


def _join_head_biases(head: Any, missing: set[str]) -> set[str]:
    """Leaves one bias in an untied head, ``cls.predictions.decoder.bias``, the one that PyTorch adds.

    ``cls.predictions.bias`` is the same parameter in older checkpoints, which may hold either name; in an untied
    head of today's transformers it is a second one that nothing reads.

    Returns:
        The names that need not be in the checkpoint.
    """
    used, other = "cls.predictions.decoder.bias", "cls.predictions.bias"
    if used in missing and other not in missing:
        head.decoder.bias = head.bias
    replaced = {used, other} if not {used, other} <= missing else set()
    del head.bias
    return replaced


def _explain_loading(name: str, is_local: bool, error: Exception) -> str:
    reason = _first_line(error)
    if is_local:
        return (
            f"--model {name}: not a readable checkpoint ({reason}); expected config.json, model.safetensors and "
            "tokenizer files in Hugging Face layout (pickled .bin weights are not read)"
        )
    return (
        f"--model {name}: no folder of that name, and it could not be had from the model hub ({reason}); "
        "check the name and the network, or give a local checkpoint folder"
    )


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is_utf8(path: str) -> bool:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- the sentence and PyTorch's answer --------------------------------------------------------------------


def decode_text(text: str, option: str = "--text") -> str:
    """The text of an option, whatever the locale: where that is ASCII, Python keeps other bytes as surrogates.

    Raises:
        UserError: the bytes of the command line are no UTF-8.
    """
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeError as error:
        raise UserError(f"{option} {text!a} is not valid text ({error}); write it in UTF-8") from error


def tokenize(
    text: str, tokenizer: Any, config: BertConfig, text_pair: str | None = None
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Turns a sentence, or a pair of them, into the network's inputs.

    Returns:
        (``input_ids``, ``token_type_ids``, ``position_ids``, each int64 (1, S); positions of [MASK]).

    Raises:
        UserError: the text has no [MASK] though the model fills masks, is longer than the position table,
            or has ids outside the vocabulary.
    """
    if config.has_head and tokenizer.mask_token is None:
        raise UserError("the checkpoint's tokenizer has no mask token; expected one, such as [MASK]")
    try:
        encoded = tokenizer(text, text_pair, return_tensors="np", return_token_type_ids=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(
            f"the checkpoint's tokenizer cannot read --text {text!r} ({_first_line(error)}); "
            "its vocabulary is incomplete or damaged"
        ) from error
    ids = encoded["input_ids"].astype(np.int64)  # (1, S)
    types = encoded["token_type_ids"].astype(np.int64)
    if text_pair is None:
        types = pair_types(ids[0], tokenizer.sep_token_id, config.type_vocab_size)[None]
    inputs = {
        "input_ids": ids,
        "token_type_ids": types,
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
    }
    check_inputs(inputs, config, "--text")
    positions = [int(position) for position in np.flatnonzero(ids[0] == tokenizer.mask_token_id)]
    if config.has_head and not positions:
        given = f"--text {text!r}" + ("" if text_pair is None else f" --text-pair {text_pair!r}")
        raise UserError(f"{given} has no {tokenizer.mask_token}; write it where a word is to be filled in")
    return inputs, positions if config.has_head else []


def run_pytorch(
    model: torch.nn.Module, inputs: dict[str, np.ndarray], has_head: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the checkpoint in fp32.

    Returns:
        (output (1, S, vocabulary or H), hidden states (L + 1, S, H)), both float32.

    Raises:
        UserError: a value is not finite.
    """
    with torch.inference_mode():
        answer = model(**{name: torch.from_numpy(ids) for name, ids in inputs.items()}, output_hidden_states=True)
    output = answer.logits if has_head else answer.last_hidden_state
    if not output.isfinite().all():
        raise UserError(
            "PyTorch's answer in fp32 has values that are not finite, though the weights are: they are too large; "
            "the checkpoint is damaged"
        )
    return output.numpy(), torch.cat(answer.hidden_states).numpy()


# --- sequences of several lengths, in a padded batch --------------------------------------------------------


def reference_sequences(tokenizer: Any, config: BertConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sequences on which a network that ignores mask, token types or positions is seen to be wrong.

    Their tokens come from the calibration text. A token that the tokenizer does not know is replaced by some other of
    its vocabulary, so that tokens differ. From nine tokens on a sequence is a pair with both token types and has
    [MASK] at its beginning, in its middle and at its end.

    Returns:
        (``input_ids``, ``token_type_ids``), each int64 (S,), for each of ``REFERENCE_LENGTHS`` and the longest that
        the position table allows, the shortest first.
    """
    lengths = sorted({min(length, config.max_positions) for length in (*REFERENCE_LENGTHS, config.max_positions)})
    words = _known_words(tokenizer, config, sum(lengths))
    sequences = []
    for length in lengths:
        ids, words = words[:length].copy(), words[length:]
        types = np.zeros(length, np.int64)
        middle = length // 2
        if length >= 9:
            types[middle + 1 :] = min(1, config.type_vocab_size - 1)
        special = {0: tokenizer.cls_token_id, length - 1: tokenizer.sep_token_id} if length >= 3 else {}
        if length >= 9:
            special |= {middle: tokenizer.sep_token_id}
            special |= dict.fromkeys((1, middle + 1, length - 2), tokenizer.mask_token_id)
        for place, number in special.items():
            if number is not None:
                ids[place] = number
        sequences.append((ids, types))
    return sequences


def _known_words(tokenizer: Any, config: BertConfig, count: int) -> np.ndarray:
    """The ids of the calibration text's first tokens, int64 (count,), none of them special."""
    random = np.random.default_rng(0)
    vocabulary = np.setdiff1d(np.arange(config.vocab_size), tokenizer.all_special_ids)
    words = random.choice(vocabulary if len(vocabulary) else np.arange(config.vocab_size), count)
    text = REFERENCE_TEXT.read_text(encoding="utf-8")[: 16 * count]  # far more letters than that many tokens have
    try:
        found = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:count], np.int64)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"the checkpoint's tokenizer cannot read {REFERENCE_TEXT} ({_first_line(error)})") from error
    known = np.isin(found, vocabulary)
    words[: len(found)][known] = found[known]
    return words


def run_reference(
    model: Any, sequences: Sequence[tuple[np.ndarray, np.ndarray]], config: BertConfig
) -> list[ReferenceSequence]:
    """PyTorch's fp32 answers, sequences of neighbouring lengths two by two in a padded batch, with its own mask."""
    answers = []
    for start in range(0, len(sequences), 2):
        pair = sequences[start : start + 2]
        longest = max(len(ids) for ids, _ in pair)
        padded = {name: np.zeros((len(pair), longest), np.int64) for name in INPUT_NAMES[:2]}  # (B, S)
        mask = np.zeros((len(pair), longest), np.int64)
        for row, (ids, types) in enumerate(pair):
            padded["input_ids"][row, : len(ids)], padded["token_type_ids"][row, : len(ids)] = ids, types
            mask[row, : len(ids)] = 1
        tensors = {name: torch.from_numpy(values) for name, values in padded.items()}
        with torch.inference_mode(), _own_attention_mask(model):
            answer = model(**tensors, attention_mask=torch.from_numpy(mask))
        output = (answer.logits if config.has_head else answer.last_hidden_state).numpy()
        for row, (ids, types) in enumerate(pair):
            spread = np.linspace(0, len(ids) - 1, min(CHECKED_TOKENS, len(ids))).astype(np.int64)
            answers.append(ReferenceSequence(ids, types, spread, output[row, spread]))
    return answers


@contextmanager
def _own_attention_mask(model: Any) -> Iterator[None]:
    """Inside, Hugging Face's model makes an attention mask, which it does for attention that it knows by name."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)


def write_reference(sequences: Sequence[ReferenceSequence], path: Path) -> None:
    """Writes what ``ModelFolder.reference`` reads: all sequences one after another."""
    lengths = np.array([len(one.input_ids) for one in sequences], np.int64)
    starts = np.cumsum(lengths) - lengths
    np.savez(
        path,
        allow_pickle=False,
        input_ids=np.concatenate([one.input_ids for one in sequences]),
        token_type_ids=np.concatenate([one.token_type_ids for one in sequences]),
        lengths=lengths,
        checked=np.concatenate([one.checked + start for one, start in zip(sequences, starts, strict=True)]),
        output=np.concatenate([one.output for one in sequences]),
    )


# --- ONNX -------------------------------------------------------------------------------------------------


def export_onnx(model: torch.nn.Module, inputs: dict[str, np.ndarray], config: BertConfig) -> ir.Model:
    """Exports the model, S dynamic, and gives its weights the checkpoint's names."""
    wrapper = ExportWrapper(model, config.has_head).eval()
    length = torch.export.Dim("sequence", min=1, max=config.max_positions)
    example = tuple(torch.from_numpy(np.repeat(inputs[name][:, :1], 2, axis=1)) for name in INPUT_NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            wrapper,
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
    restore_names(program.model, model)
    return program.model


def simplify(onnx_model: ir.Model) -> None:
    """Folds constants and removes what has no effect, in place.

    The exporter's own optimisation does the same and then merges equal weights (all zero biases into one),
    after which their names are lost.
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
    """Of a weight that is read elsewhere too, such as a tied decoder's, no second, transposed copy is made.

    The optimiser makes one where the weight is small.
    """
    shared = node.op_type == "Transpose" and node.inputs[0] is not None and len(node.inputs[0].uses()) > 1
    return False if shared else None


def restore_names(onnx_model: ir.Model, model: torch.nn.Module) -> None:
    """Renames every weight of the graph to the checkpoint's parameter name, proved bit for bit.

    The exporter keeps some names (behind the wrapper's ``model.``) and makes up others: the weight of a
    ``Linear`` is stored transposed, (in, out), as ``MatMul`` wants it. Each is matched by its bits against
    the state dict. Of tied parameters the first name in the state dict is used.

    Raises:
        UserError: a weight equals no parameter, or a parameter is not in the graph; the message names it.
    """
    names_by_bits: dict[str, list[str]] = {}
    aliases: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or aliases.setdefault(tensor.data_ptr(), name) != name:
            continue  # a buffer of positions, or tied to a parameter seen before
        array = tensor.numpy()
        for version in [array, array.T] if array.ndim == 2 else [array]:
            names = names_by_bits.setdefault(_bits(version), [])
            if name not in names:
                names.append(name)
    found: dict[str, ir.Value] = {}
    for value in list(onnx_model.graph.initializers.values()):
        array = value.const_value.numpy() if value.const_value is not None else np.empty(0)
        if array.dtype != np.float32 or array.ndim == 0:
            continue  # shapes, and scalars such as the attention's 1 / sqrt(D)
        candidates = [name for name in names_by_bits.get(_bits(array), []) if name not in found]
        kept = (value.name or "").removeprefix("model.")
        name = kept if kept in candidates else next(iter(candidates), None)
        if name is None:
            raise UserError(
                f"ONNX export: weight {value.name!r} {list(array.shape)} equals no parameter of the checkpoint, "
                "neither as it is nor transposed; the exporter changed it, and the names cannot be restored"
            )
        found[name] = value
    lost = [
        name
        for names in names_by_bits.values()
        for name in names
        if name not in found and not _is_unused(name, found)
    ]
    if lost:
        raise UserError(f"ONNX export: parameter {lost[0]!r} of the checkpoint is not in the ONNX graph")
    for name, value in found.items():
        value.name = name


def _is_unused(name: str, found: Container[str]) -> bool:
    """With an untied decoder Hugging Face's head has two biases and adds only the decoder's."""
    return name == "cls.predictions.bias" and "cls.predictions.decoder.bias" in found


def _bits(array: np.ndarray) -> str:
    """A digest of shape and bits."""
    return f"{array.shape}{hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()}"


def write_onnx(onnx_model: ir.Model, folder: Path) -> None:
    """Writes ``model.onnx`` and ``model.onnx.data``."""
    offset = 0
    arrays = []
    for value in onnx_model.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.ndim > 0:
            value.const_value = ir.ExternalTensor(
                DATA_NAME,
                offset,
                array.nbytes,
                ir.DataType.FLOAT,
                shape=ir.Shape(array.shape),
                name=value.name or "",
            )
            arrays.append(np.ascontiguousarray(array))
            offset += array.nbytes
    with (folder / DATA_NAME).open("wb") as file:
        for array in arrays:
            file.write(array.data)
    (folder / ONNX_NAME).write_bytes(ir.to_proto(onnx_model).SerializeToString())


# --- the script -------------------------------------------------------------------------------------------


def export(model_name: str, text: str, folder: Path, text_pair: str | None = None) -> None:
    """The whole job: checkpoint in, folder out. Prints what PyTorch answers."""
    text = decode_text(text)
    text_pair = None if text_pair is None else decode_text(text_pair, "--text-pair")
    check_not_itself(model_name, folder)
    with log_console.status(f"loading {model_name}"):
        model, tokenizer, config = load_checkpoint(model_name)
    inputs, positions = tokenize(text, tokenizer, config, text_pair)
    text = text if text_pair is None else f"{text} {tokenizer.sep_token} {text_pair}"
    make_folder(folder)  # a place that cannot be written to is told before the long work
    output, hidden_states = run_pytorch(model, inputs, config.has_head)
    reference = run_reference(model, reference_sequences(tokenizer, config), config)
    with log_console.status("exporting to ONNX"):
        onnx_model = export_onnx(model, inputs, config)
    answers = {"output": output, "hidden_states": hidden_states, "mask_positions": np.array(positions, np.int64)}
    sizes = model.config.to_diff_dict() | _sizes(model.config)
    with write_together(folder) as new:  # after a failure the model that was there before is still whole
        write_onnx(onnx_model, new)
        (new / CONFIG_NAME).write_text(json.dumps(sizes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _save_tokenizer(tokenizer, new)
        np.savez(new / DEMO_NAME, allow_pickle=False, text=np.array(text), **inputs, **answers)
        write_reference(reference, new / REFERENCE_NAME)
    size = (folder / DATA_NAME).stat().st_size / 2**20
    name = os.path.relpath(model_name) if Path(model_name).is_dir() else model_name
    console.print(
        f"{name}: {config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} heads, "
        f"vocabulary {config.vocab_size}, {size:.1f} MiB of weights -> {folder}",
        markup=False,
        soft_wrap=True,
    )
    if config.has_head:
        print_answer(text, output[0], positions[0], tokenizer)


def check_not_itself(model_name: str, folder: Path) -> None:
    """Refuses to write over the checkpoint.

    Raises:
        UserError: ``folder`` is the checkpoint's, or its files are the checkpoint's.
    """
    checkpoint = Path(model_name)
    with suppress(OSError):  # load_checkpoint tells of a name that is no path
        if model_name and checkpoint.is_dir():
            outputs = {f"{name} of --out-dir": folder / name for name in FILE_NAMES}
            check_outputs(outputs, {f"{path.name} of --model": path for path in checkpoint.iterdir()})


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """By way of a folder with a plain name: the tokenizers library refuses a path that is not valid UTF-8."""
    with TemporaryDirectory() as plain:
        tokenizer.save_pretrained(plain)
        for path in Path(plain).iterdir():
            shutil.copyfile(path, folder / path.name)


def _sizes(hf_config: Any) -> dict[str, Any]:
    """The entries that the other scripts read, written even where they equal Hugging Face's defaults."""
    keys = (
        "model_type architectures vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
        "max_position_embeddings type_vocab_size layer_norm_eps hidden_act tie_word_embeddings"
    )
    return {key: getattr(hf_config, key) for key in keys.split()}


def print_answer(text: str, logits: np.ndarray, position: int, tokenizer: Any) -> None:
    """Prints the ten best fillings of the first mask. ``logits`` is (S, vocabulary)."""
    probabilities = torch.from_numpy(logits[position]).softmax(-1)
    best = probabilities.topk(10)
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("word")
    table.add_column("probability", justify="right")
    for rank, (probability, number) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
        word = tokenizer.convert_ids_to_tokens(number) or f"[unknown id {number}]"
        table.add_row(str(rank), Text(word), f"{probability:.4f}")  # Text: [unused1] is no markup
    console.print(f"PyTorch fp32: {text}", markup=False, soft_wrap=True)
    console.print(table)


def quiet_libraries() -> None:
    """Hugging Face and the exporter print progress bars and notes that say nothing to our users."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers.logging.set_verbosity(logging.CRITICAL)  # its errors are exceptions too, and those are told
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def main() -> int:
    """The script."""
    args = model2onnx_arguments()
    quiet_libraries()
    export(args.model, args.text, args.out_dir, args.text_pair)
    return 0


if __name__ == "__main__":
    run_script(main)
