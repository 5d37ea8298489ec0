"""Loads a BERT checkpoint in Hugging Face layout, and refuses what could not be exported as it is.

``load_checkpoint`` returns the model, the tokenizer and the configuration. The rest of the file turns what is wrong
with a checkpoint into messages that name it: a configuration of another model, quantized, missing or superfluous
weights, values that are not finite, files that could run code, a tokenizer without [MASK].
"""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AttentionInterface, AutoConfig, AutoTokenizer, BertForMaskedLM, BertModel
from transformers.models.bert import modeling_bert
from transformers.utils.hub import cached_file

from bert_trt.console import UserError, note, warn
from bert_trt.model_files import CONFIG_NAME, BertConfig

EXTRA_WEIGHTS = {  # a pattern of names -> what weights belong to that BertForMaskedLM does not have
    r"(^|\.)pooler\.": "the pooler",
    r"^cls\.seq_relationship\.": "a next-sentence head",
    r"^cls\.predictions\.": "part of a masked-language head",
    r"^classifier\.": "a classification or tagging head",
    r"^qa_outputs\.": "a question answering head",
}
OTHER_FORMATS = (".h5", ".msgpack", ".ckpt", ".index", ".gguf", ".onnx", ".ot", ".bin", ".pt", ".pth")

# Hugging Face's plain attention under another name: transformers builds no attention mask for a name that it does
# not know. One sentence needs no mask, and a mask would end up in the ONNX graph.
ATTENTION = "plain"
AttentionInterface.register(ATTENTION, modeling_bert.eager_attention_forward)


def load_checkpoint(
    name: str, ignore_extra_weights: bool = False
) -> tuple[transformers.PreTrainedModel, Any, BertConfig]:
    """Loads a BERT checkpoint and its tokenizer.

    The weights decide whether it is a BertForMaskedLM or a BertModel, and whether its decoder is tied. config.json
    does not.

    Args:
        name: a local folder in Hugging Face layout, or the name of a model on the hub.
        ignore_extra_weights: warn of parts that cannot be exported instead of raising.

    Returns:
        The model in fp32 and eval mode, the tokenizer, and the configuration.

    Raises:
        UserError: the checkpoint cannot be found or read, is not a BERT, lacks weights, or has parts that cannot be
            exported.
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
    files = _describe_unexported_files(name, is_local, options)
    _check_unexported(name, model, extra, files, ignore_extra_weights)
    tokenizer = _load_tokenizer(name, options)
    return model.eval(), tokenizer, BertConfig.from_dict(model.config.to_dict(), f"--model {name}: config.json")


def check_special_tokens(tokenizer: Any, config: BertConfig) -> None:
    """Checks that the checkpoint's own files hold [CLS] and [SEP], and [MASK] where the model fills masks.

    transformers appends those that the files lack to the vocabulary, where the model has no embedding for them, or
    that of another token.

    Raises:
        UserError: the files lack one; the message names it.
    """
    own = set(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False))
    added = tokenizer.init_kwargs.get("added_tokens_decoder") or {}
    own |= {str(token) for token in added.values()}
    needed = [tokenizer.cls_token, tokenizer.sep_token, *([tokenizer.mask_token] if config.has_head else [])]
    lacking = [str(token) for token in needed if token is not None and str(token) not in own]
    if lacking:
        raise UserError(
            f"the checkpoint's tokenizer has no {', '.join(lacking)}, which every text of this model needs: its "
            "vocabulary is incomplete or damaged, or tokenizer_config.json names other words; get both again"
        )


def quiet_libraries() -> None:
    """Turns off progress bars and messages of Hugging Face's libraries and of the exporter."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers.logging.set_verbosity(logging.CRITICAL)  # its errors are exceptions too, which are reported
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _load_configuration(name: str, is_local: bool, options: dict[str, Any]) -> Any:
    """The configuration as transformers has it.

    It is checked before a large download: it must be a BERT's, and transformers must accept it.
    """
    try:
        hf_config = AutoConfig.from_pretrained(name, **options)
        BertConfig.from_dict(hf_config.to_dict(), f"--model {name}: config.json")
        _refuse_quantized(name, hf_config)
        _instantiate_without_weights(hf_config)
    except UserError:
        raise
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--model {name}: config.json: {reason}; correct the value") from error
    except Exception as error:  # a value of an unexpected type raises a different exception for each key
        values = _read_entries(name, options)
        if values and values.get("model_type") is None:
            raise UserError(
                f"--model {name}: config.json has no model_type; only BERT checkpoints can be used: "
                'if it is one, add "model_type": "bert"'
            ) from error
        rejected = _find_rejected_entry(values, options)
        if rejected is not None:
            raise UserError(
                f"--model {name}: config.json: {rejected}, which transformers cannot use ({first_line(error)}); "
                "correct or remove it"
            ) from error
        raise UserError(_explain_loading(name, is_local, error)) from error
    # These change how PyTorch computes and returns its output, and no value of it.
    hf_config.chunk_size_feed_forward, hf_config.return_dict = 0, True
    return hf_config


def _instantiate_without_weights(hf_config: Any) -> None:
    with torch.device("meta"):
        BertForMaskedLM(copy.deepcopy(hf_config))


def _refuse_quantized(name: str, hf_config: Any) -> None:
    for key in ("quantization_config", "compression_config"):
        entry = getattr(hf_config, key, None)
        if entry is not None:
            method = entry.get("quant_method") if isinstance(entry, dict) else entry
            entry_name = key if method is None else f"{key} ({_shorten(str(method))})"
            raise UserError(
                f"--model {name}: config.json: {entry_name} says that the weights are quantized, expected plain "
                "weights in fp32, fp16 or bf16; take the checkpoint that it was made from (builder.py --precision "
                "int8 or fp8 quantizes that one), or remove the entry if the weights are plain"
            )


def _read_entries(name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The entries of config.json; None where it is missing or no JSON object."""
    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(name, **options)
    except Exception:  # the type depends on what is damaged
        return None
    return values if isinstance(values, dict) else None


def _find_rejected_entry(values: dict[str, Any] | None, options: dict[str, Any]) -> str | None:
    """The entry of config.json without which transformers accepts the rest; None if there is no such entry."""

    def is_accepted(values: dict[str, Any]) -> bool:
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_NAME).write_text(json.dumps(values), encoding="utf-8")
            try:
                _instantiate_without_weights(
                    AutoConfig.from_pretrained(folder, **options | {"local_files_only": True})
                )
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
        raise UserError(f"--model {name}: the tokenizer cannot be loaded ({first_line(error)}); {remedy}") from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers' answer to missing files
        raise UserError(f"--model {name}: the tokenizer has no words; {remedy}")
    if not tokenizer.is_fast:
        raise UserError(f"--model {name}: {type(tokenizer).__name__} has no tokenizer.json; only such can be used")
    return tokenizer


def _load_weights(name: str, is_local: bool, hf_config: Any) -> tuple[transformers.PreTrainedModel, list[str]]:
    """Loads BertForMaskedLM, or BertModel where the checkpoint has no head.

    Returns:
        The model, whose configuration names the class, and the names of the checkpoint's weights that it lacks.
    """
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # a service of the hub would convert pickled weights
    options: dict[str, Any] = {
        "config": hf_config,
        "local_files_only": is_local,
        "weights_only": True,  # other objects in pytorch_model.bin could run code
        "attn_implementation": ATTENTION,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported below, with the weight's name
    }
    try:
        model, info = BertForMaskedLM.from_pretrained(name, **options)  # pyright: ignore[reportGeneralTypeIssues]
        transform = {key for key in model.state_dict() if key.startswith("cls.predictions.transform.")}
        # A checkpoint that lacks only some weights of the head is a damaged BertForMaskedLM, no BertModel.
        has_head = not transform <= set(info["missing_keys"])
        if not has_head:
            model, info = BertModel.from_pretrained(name, add_pooling_layer=False, **options)  # pyright: ignore[reportGeneralTypeIssues]
    except SafetensorError as error:
        if not _is_utf8(name):
            raise UserError(
                f"--model {name}: the safetensors library reads no path that is not valid UTF-8; rename the folder"
            ) from error
        raise UserError(
            f"--model {name}: model.safetensors is corrupt ({first_line(error)}); copy or download it again"
        ) from error
    except Exception as error:  # the type depends on what is damaged
        message = _explain_pickle(name, is_local, error) or _explain_loading(name, is_local, error)
        raise UserError(message) from error
    for weight, shape, expected in sorted(info["mismatched_keys"]):
        raise UserError(
            f"--model {name}: weight {weight!r} is {list(shape)}, expected {list(expected)}; "
            "config.json and the weights do not belong together"
        )
    missing = set(info["missing_keys"])
    if has_head:
        missing -= _resolve_decoder_bias(model, missing)
    if missing:
        raise UserError(
            f"--model {name}: the checkpoint lacks {len(missing)} weights of a BERT, first {sorted(missing)[0]!r}"
            f"{_describe_unexpected(info['unexpected_keys'])}; it is incomplete or not a BERT checkpoint"
        )
    _check_finite(name, model)
    model.config.architectures = [type(model).__name__]
    return model, sorted(info["unexpected_keys"])


def _describe_unexpected(names: Collection[str]) -> str:
    return f", and has {len(names)} that a BERT does not have, first {min(names)!r}" if names else ""


def _check_unexported(
    name: str, model: Any, extra: Sequence[str], modules: Sequence[str], ignore_extra_weights: bool
) -> None:
    """Reports the parts of a checkpoint that are not exported.

    A note is enough for the pooler, and for a next-sentence head beside a masked-language head, as in
    bert-base-uncased: the exported model's output does not depend on them.

    Args:
        name: the checkpoint, for the message.
        model: BertForMaskedLM or BertModel.
        extra: names of the checkpoint's weights that ``model`` lacks.
        modules: descriptions of other parts of the checkpoint.
        ignore_extra_weights: warn instead of raising.

    Raises:
        UserError: another part would not be exported; the message names all of them.
    """
    unused = [r"(^|\.)pooler\."] + ([r"^cls\.seq_relationship\."] if isinstance(model, BertForMaskedLM) else [])
    is_harmless = not modules and all(any(re.search(key, weight) for key in unused) for weight in extra)
    parts = [*_describe_weights(extra, model.config.num_hidden_layers), *modules]
    if not parts:
        return
    message = f"--model {name}: not exported: {'; '.join(parts)}"
    if is_harmless:
        note(f"{message}; the exported model's answer does not depend on them")
    elif ignore_extra_weights:
        warn(message)
    else:
        raise UserError(
            f"{message}. The encoder and a masked-language head are all that can be exported; "
            "to go on without the rest, add --ignore-extra-weights"
        )


def _describe_weights(names: Sequence[str], num_layers: int) -> list[str]:
    """Names every weight and what it belongs to, module by module: ``a.{bias,weight} (the pooler)``."""
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
        full_names = [f"{module}.{parameter}".removeprefix(".") for parameter in parameters]
        title = next((part for key, part in EXTRA_WEIGHTS.items() if re.search(key, full_names[0])), None)
        names_together = full_names[0] if len(full_names) == 1 else f"{module}.{{{','.join(parameters)}}}"
        parts.append(names_together + (f" ({title})" if title is not None else ""))
    for layer, count in sorted(layers.items(), key=lambda item: int(item[0].rpartition(".")[2])):
        parts.append(f"{layer}.* ({count} weights; num_hidden_layers in config.json is {num_layers})")
    return parts


def _describe_unexported_files(name: str, is_local: bool, options: dict[str, Any]) -> list[str]:
    """Describes what other libraries add to the encoder: modules of sentence-transformers, an adapter."""
    optional = {
        "local_files_only": is_local,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,  # without a network the hub's cache is read
    }
    parts = []
    modules_path = cached_file(name, "modules.json", **options | optional)
    if modules_path is not None:
        try:
            modules = json.loads(Path(modules_path).read_text(encoding="utf-8"))
            kinds = {str(module["path"]) or str(module["name"]): str(module["type"]) for module in modules}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"--model {name}: modules.json is not as sentence-transformers writes it ({first_line(error)}); "
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
        not_finite = ~torch.isfinite(weight)
        if not_finite.any():
            place = not_finite.nonzero()[0].tolist()
            raise UserError(
                f"--model {name}: weight {key!r} has {int(not_finite.sum())} values that are not finite, of "
                f"{weight.numel()}; the first is {weight[tuple(place)].item()} at {place}; the checkpoint is damaged "
                "or its values were too large for the type in which it was saved, such as fp16; get it again"
            )


def _resolve_decoder_bias(model: Any, missing: set[str]) -> set[str]:
    """Leaves one bias in the head, the one that PyTorch adds, and records in the configuration whether it is tied.

    The head is tied if its decoder's weight is the word embeddings. (A checkpoint whose configuration says so may
    hold another weight, which transformers then loads.) The bias of a tied head is called ``cls.predictions.bias``,
    that of an untied head ``cls.predictions.decoder.bias``. Older checkpoints hold either name. Newer ones hold both,
    with different values; PyTorch adds the decoder's.

    Args:
        model: a BertForMaskedLM.
        missing: names of weights that the checkpoint lacks.

    Returns:
        Names that the checkpoint need not have.
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
    """The message for weights in pytorch_model.bin; None where the weights are in another file."""
    files = [path.name for path in sorted(Path(name).iterdir())] if is_local else []
    pickles = [file for file in files if file.startswith("pytorch_model") and file.endswith(".bin")]
    is_refused = isinstance(error, pickle.UnpicklingError)
    if not is_refused and (not pickles or any(file.endswith(".safetensors") for file in files)):
        return None
    object_type = re.search(r"GLOBAL (\S+)", str(error))
    example = "" if object_type is None else f" such as {object_type[1]}"
    reason = "" if is_refused else f" ({first_line(error)})"  # PyTorch's message would advise to load the objects
    return (
        f"--model {name}: {', '.join(pickles) or 'pytorch_model.bin'} is damaged{reason}, or holds objects besides "
        f"tensors{example}, which are not loaded, since they could run code; save the weights as model.safetensors"
    )


def _explain_loading(name: str, is_local: bool, error: Exception) -> str:
    reason = first_line(error)
    if is_local:
        others = sorted(path.name for path in Path(name).iterdir() if path.suffix in OTHER_FORMATS)
        others_found = f", found {', '.join(others)}" if others else ""
        return (
            f"--model {name}: not a readable checkpoint ({reason}); expected config.json, model.safetensors (or "
            f"pytorch_model.bin with nothing but tensors) and tokenizer files in Hugging Face layout{others_found}"
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


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
