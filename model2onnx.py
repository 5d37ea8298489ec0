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
import pickle
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
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
import transformers
from huggingface_hub.errors import StrictDataclassError
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common as ir_passes
from onnxscript import optimizer, rewriter
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from transformers import AttentionInterface, AutoConfig, AutoTokenizer, BertForMaskedLM, BertModel
from transformers.models.bert import modeling_bert
from transformers.utils.hub import cached_file

from bert_trt.console import UserError, console, log_console, note, run_script, warn
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
    ModelFolder,
    ReferenceSequence,
    check_inputs,
    load_onnx,
)
from bert_trt.sentences import pair_types

OPSET = 20  # the first with Gelu
REFERENCE_TEXT = Path(__file__).parent / "calibrator_data.txt"
REFERENCE_LENGTHS = (3, 9, 33, 128)  # one word, a few, and the longest of the plans that are built by default
CHECKED_TOKENS = 32  # of a reference sequence: every token's logits would take 62 MB for 512 tokens of BERT-base
# Largest relative L2 error of the ONNX file, run in NumPy, against PyTorch. Both round to fp32 after every operation;
# measured at the size of BERT-base: 4e-6.
WRITTEN_TOLERANCE = 1e-4
WRITTEN_LENGTH = 9  # tokens of the sequence on which the file is run: the shortest with both token types
EXTRA_WEIGHTS = {  # what weights besides those of BertForMaskedLM belong to, by a pattern of their names
    r"(^|\.)pooler\.": "the pooler",
    r"^cls\.seq_relationship\.": "a next-sentence head",
    r"^cls\.predictions\.": "part of a masked-language head",
    r"^classifier\.": "a classification or tagging head",
    r"^qa_outputs\.": "a question answering head",
}
OTHER_FORMATS = (".h5", ".msgpack", ".ckpt", ".index", ".gguf", ".onnx", ".ot", ".bin", ".pt", ".pth")

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


def load_checkpoint(
    name: str, ignore_extra_weights: bool = False
) -> tuple[transformers.PreTrainedModel, Any, BertConfig]:
    """Loads a BERT checkpoint and its tokenizer.

    Which of the two models it is, and whether its decoder is tied, comes from the weights, not from config.json.

    Args:
        name: a local folder in Hugging Face layout, or the name of a model on the hub.
        ignore_extra_weights: go on without the parts that are not exported (see ``_check_left_out``).

    Returns:
        (model in fp32 and eval mode, tokenizer, configuration).

    Raises:
        UserError: it cannot be found or read, is not a BERT, lacks weights, or has parts that are not exported.
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
    model, extra = _load_weights(name, is_local, hf_config)
    _check_left_out(name, model, extra, _find_left_out_files(name, is_local, options), ignore_extra_weights)
    tokenizer = _load_tokenizer(name, options)
    return model.eval(), tokenizer, BertConfig.from_dict(model.config.to_dict(), f"--model {name}: config.json")


def _load_configuration(name: str, is_local: bool, options: dict[str, Any]) -> Any:
    """transformers' own configuration, checked before a large download: it is a BERT's, and a model can be made."""
    try:
        hf_config = AutoConfig.from_pretrained(name, **options)
        BertConfig.from_dict(hf_config.to_dict(), f"--model {name}: config.json")
        _refuse_quantized(name, hf_config)
        _make_without_weights(hf_config)
    except UserError:
        raise
    except StrictDataclassError as error:
        told = " ".join(str(error).split())
        raise UserError(f"--model {name}: config.json: {told}; correct the value") from error
    except Exception as error:  # what transformers does with a value of an unexpected type is different for each key
        values = _read_entries(name, options)
        if values and values.get("model_type") is None:
            raise UserError(
                f"--model {name}: config.json has no model_type; only BERT checkpoints can be used: "
                'if it is one, add "model_type": "bert"'
            ) from error
        rejected = _find_rejected_entry(values, options)
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


def _refuse_quantized(name: str, hf_config: Any) -> None:
    for key in ("quantization_config", "compression_config"):
        entry = getattr(hf_config, key, None)
        if entry is not None:
            method = entry.get("quant_method") if isinstance(entry, dict) else entry
            told = key if method is None else f"{key} ({_shorten(str(method))})"
            raise UserError(
                f"--model {name}: config.json: {told} says that the weights are quantized, expected plain weights in "
                "fp32, fp16 or bf16; take the checkpoint that it was made from (builder.py --precision int8 or fp8 "
                "quantizes that one), or remove the entry if the weights are plain"
            )


def _read_entries(name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """config.json as it is; None where it is no JSON object, or is missing."""
    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(name, **options)
    except Exception:  # of many types, by what is damaged
        return None
    return values if isinstance(values, dict) else None


def _find_rejected_entry(values: dict[str, Any] | None, options: dict[str, Any]) -> str | None:
    """Which entry of config.json it is without which a BERT can be made; None if it is not for one entry."""

    def is_accepted(values: dict[str, Any]) -> bool:
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_NAME).write_text(json.dumps(values), encoding="utf-8")
            try:
                _make_without_weights(AutoConfig.from_pretrained(folder, **options | {"local_files_only": True}))
            except Exception:  # as above
                return False
            return True

    if values is None or is_accepted(values):
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


def _load_weights(name: str, is_local: bool, hf_config: Any) -> tuple[transformers.PreTrainedModel, list[str]]:
    """Loads BertForMaskedLM, or BertModel where the checkpoint has no head; the model's configuration says which.

    Returns:
        (model, names of the checkpoint's weights that it does not have).
    """
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # which a service of the hub would do with pickled weights
    options: dict[str, Any] = {
        "config": hf_config,
        "local_files_only": is_local,
        "weights_only": True,  # of a pickle, where there is no safetensors file: an object in it could run code
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
        told = _explain_pickle(name, is_local, error) or _explain_loading(name, is_local, error)
        raise UserError(told) from error
    for weight, found, expected in sorted(info["mismatched_keys"]):
        raise UserError(
            f"--model {name}: weight {weight!r} is {list(found)}, expected {list(expected)}; "
            "config.json and the weights do not belong together"
        )
    missing = set(info["missing_keys"])
    if has_head:
        missing -= _settle_head(model, missing)
    if missing:
        raise UserError(
            f"--model {name}: the checkpoint lacks {len(missing)} weights of a BERT, first {sorted(missing)[0]!r}"
            f"{_tell_others(info['unexpected_keys'])}; it is incomplete or not a BERT checkpoint"
        )
    _check_finite(name, model)
    model.config.architectures = [type(model).__name__]
    return model, sorted(info["unexpected_keys"])


def _tell_others(names: Collection[str]) -> str:
    return f", and has {len(names)} that a BERT does not have, first {min(names)!r}" if names else ""


def _check_left_out(
    name: str, model: Any, extra: Sequence[str], modules: Sequence[str], ignore_extra_weights: bool
) -> None:
    """Tells what of a checkpoint is not exported.

    The pooler, and the next-sentence head beside a masked-language head, as in bert-base-uncased, are what the
    exported model never had a use for: they get a note.

    Args:
        name: the checkpoint, for the message.
        model: BertForMaskedLM or BertModel.
        extra: names of the checkpoint's weights that it does not have.
        modules: descriptions of other parts of the checkpoint.
        ignore_extra_weights: warn only.

    Raises:
        UserError: another part would be left out; the message names all of them.
    """
    unused = [r"(^|\.)pooler\."] + ([r"^cls\.seq_relationship\."] if isinstance(model, BertForMaskedLM) else [])
    is_harmless = not modules and all(any(re.search(one, weight) for one in unused) for weight in extra)
    parts = [*_describe_weights(extra, model.config.num_hidden_layers), *modules]
    if not parts:
        return
    told = f"--model {name}: not exported: {'; '.join(parts)}"
    if is_harmless:
        note(f"{told}; the exported model's answer does not depend on them")
    elif ignore_extra_weights:
        warn(told)
    else:
        raise UserError(
            f"{told}. The encoder and a masked-language head are all that can be exported; "
            "to go on without the rest, add --ignore-extra-weights"
        )


def _describe_weights(names: Sequence[str], num_layers: int) -> list[str]:
    """Names every weight, those of a module together, with what it belongs to: ``a.{bias,weight} (the pooler)``."""
    modules: dict[str, list[str]] = defaultdict(list)
    layers: dict[str, int] = defaultdict(int)
    for name in names:
        layer = re.match(r"(.*\bencoder\.layer\.(\d+))\.", name)
        if layer is not None and int(layer[2]) >= num_layers:
            layers[layer[1]] += 1
        else:
            module, _, parameter = name.rpartition(".")
            modules[module].append(parameter)
    parts = []
    for module, parameters in modules.items():
        whole = [f"{module}.{parameter}".removeprefix(".") for parameter in parameters]
        title = next((part for key, part in EXTRA_WEIGHTS.items() if re.search(key, whole[0])), None)
        told = whole[0] if len(whole) == 1 else f"{module}.{{{','.join(parameters)}}}"
        parts.append(told + (f" ({title})" if title is not None else ""))
    for layer, count in sorted(layers.items(), key=lambda item: int(item[0].rpartition(".")[2])):
        parts.append(f"{layer}.* ({count} weights; num_hidden_layers in config.json is {num_layers})")
    return parts


def _find_left_out_files(name: str, is_local: bool, options: dict[str, Any]) -> list[str]:
    """Describes what other libraries would apply to the encoder: modules of sentence-transformers, an adapter."""
    optional = {
        "local_files_only": is_local,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,  # without a network, from the cache of the hub
    }
    parts = []
    listed = cached_file(name, "modules.json", **options | optional)
    if listed is not None:
        try:
            modules = json.loads(Path(listed).read_text(encoding="utf-8"))
            kinds = {str(module["path"]) or str(module["name"]): str(module["type"]) for module in modules}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"--model {name}: modules.json is not as sentence-transformers writes it ({_first_line(error)}); "
                "correct or remove it"
            ) from error
        parts = [
            f"{path} ({kind}, see modules.json)" for path, kind in kinds.items() if not kind.endswith(".Transformer")
        ]
    if cached_file(name, "adapter_config.json", **options | optional) is not None:
        parts.append("the adapter of adapter_config.json (merge it into the weights first)")
    return parts


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


def _settle_head(model: Any, missing: set[str]) -> set[str]:
    """Leaves one bias in the head, the one that PyTorch adds, and notes in the configuration whether it is tied.

    The head is tied if its decoder is the word embeddings: a checkpoint whose configuration says so may hold another
    weight, and then transformers loads that one. The bias is called ``cls.predictions.bias`` in a tied head and
    ``cls.predictions.decoder.bias`` in an untied one. Older checkpoints may hold either name, and newer ones both,
    with different values; then PyTorch adds the decoder's.

    Returns:
        The names that need not be in the checkpoint.
    """
    head = model.cls.predictions
    used, other = "cls.predictions.decoder.bias", "cls.predictions.bias"
    replaced = {used, other} if not {used, other} <= missing else set()
    if used in missing and other not in missing:
        head.decoder.bias = head.bias
    model.config.tie_word_embeddings = head.decoder.weight is model.bert.embeddings.word_embeddings.weight
    if model.config.tie_word_embeddings:
        head.bias = head.decoder.bias
    else:
        del head.bias
    return replaced


def _explain_pickle(name: str, is_local: bool, error: Exception) -> str | None:
    """What to say where the weights were to be read from pytorch_model.bin; None where they were not."""
    files = [path.name for path in sorted(Path(name).iterdir())] if is_local else []
    pickles = [file for file in files if file.startswith("pytorch_model") and file.endswith(".bin")]
    is_refused = isinstance(error, pickle.UnpicklingError)
    if not is_refused and (not pickles or any(file.endswith(".safetensors") for file in files)):
        return None
    held = re.search(r"GLOBAL (\S+)", str(error))
    found = "" if held is None else f" such as {held[1]}"
    reason = "" if is_refused else f" ({_first_line(error)})"  # torch's own would advise to load the objects
    return (
        f"--model {name}: {', '.join(pickles) or 'pytorch_model.bin'} is damaged{reason}, or holds objects besides "
        f"tensors{found}, which are not loaded, since they could run code; save the weights as model.safetensors"
    )


def _explain_loading(name: str, is_local: bool, error: Exception) -> str:
    reason = _first_line(error)
    if is_local:
        others = sorted(path.name for path in Path(name).iterdir() if path.suffix in OTHER_FORMATS)
        found = f", found {', '.join(others)}" if others else ""
        return (
            f"--model {name}: not a readable checkpoint ({reason}); expected config.json, model.safetensors (or "
            f"pytorch_model.bin with nothing but tensors) and tokenizer files in Hugging Face layout{found}"
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
            or has ids outside the vocabulary; or the vocabulary lacks a word that every text needs.
    """
    if config.has_head and tokenizer.mask_token is None:
        raise UserError("the checkpoint's tokenizer has no mask token; expected one, such as [MASK]")
    _check_special_words(tokenizer, config)
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


def _check_special_words(tokenizer: Any, config: BertConfig) -> None:
    """Checks that the checkpoint's own files hold the words between which a text stands, and [MASK].

    transformers appends those that they lack behind the vocabulary, where the model has no embedding for them, or
    that of some other word.
    """
    own = set(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False))
    added = tokenizer.init_kwargs.get("added_tokens_decoder") or {}
    own |= {str(word) for word in added.values()}
    needed = [tokenizer.cls_token, tokenizer.sep_token, *([tokenizer.mask_token] if config.has_head else [])]
    lacking = [str(word) for word in needed if word is not None and str(word) not in own]
    if lacking:
        raise UserError(
            f"the checkpoint's tokenizer has no {', '.join(lacking)}, which every text of this model needs: its "
            "vocabulary is incomplete or damaged, or tokenizer_config.json names other words; get both again"
        )


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
        raise UserError(
            f"the checkpoint's tokenizer cannot read {REFERENCE_TEXT} ({_first_line(error)}); "
            "its vocabulary is incomplete or damaged"
        ) from error
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
    lost = [name for names in names_by_bits.values() for name in names if name not in found]
    if lost:
        raise UserError(f"ONNX export: parameter {lost[0]!r} of the checkpoint is not in the ONNX graph")
    for name, value in found.items():
        value.name = name


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


def check_written(folder: Path, config: BertConfig) -> None:
    """Reads a folder as the other scripts do, and runs its ONNX file on a short sequence.

    The reference evaluator of the onnx package runs it, in NumPy: it reads the file itself, needs neither TensorRT
    nor a GPU, and is installed with every export. The weights stay in their memory map.

    Raises:
        UserError: a file does not belong to the others, or the answer is not PyTorch's.
    """
    written = ModelFolder(folder)
    written.demo()
    sequence = [one for one in written.reference() if len(one.input_ids) <= WRITTEN_LENGTH][-1]
    ids, types = sequence.input_ids[None], sequence.token_type_ids[None]  # (1, S)
    feeds = dict(zip(INPUT_NAMES, (ids, types, np.arange(ids.shape[1])[None]), strict=True))
    graph, weights = load_onnx(written.onnx_path), written.weights().arrays()
    for tensor in graph.graph.initializer:
        graph.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.graph.ClearField("initializer")
    try:
        answers: Any = ReferenceEvaluator(graph).run(None, feeds | weights)
    except Exception as error:  # whatever NumPy and the evaluator do with a graph that is wrong
        raise UserError(f"the ONNX file that was written cannot be run ({_first_line(error)})") from error
    answer = answers[0][0, sequence.checked]
    difference = float(np.linalg.norm(answer.astype(np.float64) - sequence.output))
    size = float(np.linalg.norm(sequence.output.astype(np.float64)))
    if written.config != config or not difference <= WRITTEN_TOLERANCE * size:
        raise UserError(
            f"the ONNX file that was written answers otherwise than PyTorch (L2 norm of the difference "
            f"{difference:.1e}, of PyTorch's answer {size:.1e}), or its configuration has changed; nothing is kept"
        )


# --- the script -------------------------------------------------------------------------------------------


def export(
    model_name: str, text: str, folder: Path, text_pair: str | None = None, ignore_extra_weights: bool = False
) -> None:
    """The whole job: checkpoint in, folder out. Prints what PyTorch answers."""
    text = decode_text(text)
    text_pair = None if text_pair is None else decode_text(text_pair, "--text-pair")
    check_not_itself(model_name, folder)
    with log_console.status(f"loading {model_name}"):
        model, tokenizer, config = load_checkpoint(model_name, ignore_extra_weights)
    inputs, positions = tokenize(text, tokenizer, config, text_pair)
    text = text if text_pair is None else f"{text} {tokenizer.sep_token} {text_pair}"
    make_folder(folder)  # a place that cannot be written to is told before the long work
    output, hidden_states = run_pytorch(model, inputs, config.has_head)
    reference = run_reference(model, reference_sequences(tokenizer, config), config)
    with log_console.status("exporting to ONNX"):
        onnx_model = export_onnx(model, inputs, config)
    answers = {"output": output, "hidden_states": hidden_states, "mask_positions": np.array(positions, np.int64)}
    sizes = model.config.to_diff_dict() | _sizes(model.config)
    with atomic_folder(folder) as new:  # after a failure the model that was there before is still whole
        write_onnx(onnx_model, new)
        (new / CONFIG_NAME).write_text(json.dumps(sizes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _save_tokenizer(tokenizer, new)
        np.savez(new / DEMO_NAME, allow_pickle=False, text=np.array(text), **inputs, **answers)
        write_reference(reference, new / REFERENCE_NAME)
        check_written(new, config)
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
    export(args.model, args.text, args.out_dir, args.text_pair, args.ignore_extra_weights)
    return 0


if __name__ == "__main__":
    run_script(main)
