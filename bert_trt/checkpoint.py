"""Loads a BERT checkpoint in Hugging Face layout, and refuses what could not be exported as it is.

``load_checkpoint`` finds the family and the task in the checkpoint's own files, and returns the model, the tokenizer
and the configuration. The rest of the file turns what is wrong with a checkpoint into messages that name it: a
configuration of another model, a head that is missing, quantized, missing or superfluous weights, values that are not
finite, files that could run code, a tokenizer without [MASK].
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.hub import cached_file

from bert_trt.console import UserError, note, warn
from bert_trt.families import (
    CLASS_SUFFIXES,
    DECODER,
    DECODER_BIAS,
    FAMILIES,
    HEAD_WEIGHTS,
    TIED_BIAS,
    canonical_entries,
    canonical_name,
    canonical_state,
    check_entries,
    class_name,
    find_family,
    needs_pooler,
    uses_bare_encoder,
)
from bert_trt.model_files import CONFIG_NAME, BertConfig
from bert_trt.options import (
    EMBEDDING,
    FILL_MASK,
    HIDDEN_STATES,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TASKS,
    TOKEN_CLASSIFICATION,
)
from bert_trt.pytorch_bert import PyTorchBert
from bert_trt.sentence_embedding import SentenceEmbedding, read_sentence_embedding

EXTRA_WEIGHTS = {  # a pattern of names -> what weights belong to that another task's model does not have
    r"(^|\.)pooler\.": "the pooler",
    r"^cls\.seq_relationship\.": "a next-sentence head",
    r"^(cls\.predictions|predictions|lm_head|generator_predictions|generator_lm_head|vocab_\w+)\.": (
        "part of a masked-language head"
    ),
    r"^(classifier|pre_classifier)\.": "a classification or tagging head",
    r"^qa_outputs\.": "a question answering head",
}
ReadWeights = Callable[[str, str | None], tuple[Any, dict[str, Any]]]  # ``_read_weights``, by task and pooling
OTHER_FORMATS = (".h5", ".msgpack", ".ckpt", ".index", ".gguf", ".onnx", ".ot", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint.

    Attributes:
        reference: transformers' own class, in fp32 and eval mode: what a network is compared with.
        model: the same parameters in the form of all families, which is exported.
        tokenizer: transformers'.
        config: sizes, family's peculiarities and task.
    """

    reference: Any
    model: PyTorchBert
    tokenizer: Any
    config: BertConfig

    def run_reference(self, inputs: Mapping[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, Any]:
        """Runs transformers' model.

        Args:
            inputs: its inputs, each (B, S); the attention mask among them.
            options: further arguments.

        Returns:
            The task's output, fp32 (B, S, width), or (B, 1, width) where the task has one row for a sequence; and the
            hidden states, L + 1 of (B, S, H), if ``options`` asked for them.
        """
        accepted = inspect.signature(self.reference.forward).parameters  # DistilBERT and MPNet have no token types
        with torch.inference_mode():
            result = self.reference(**{name: inputs[name] for name in inputs if name in accepted}, **options)
            states = getattr(result, "hidden_states", None)
            if self.config.task == EMBEDDING:
                return self._embed(result, inputs["attention_mask"])[:, None], states
        if self.config.task == QUESTION_ANSWERING:
            return torch.stack([result.start_logits, result.end_logits], -1), states
        if self.config.task == HIDDEN_STATES:
            return result.last_hidden_state, states
        return (result.logits[:, None] if self.config.is_per_sequence else result.logits), states

    def _embed(self, result: Any, mask: torch.Tensor) -> torch.Tensor:
        """The hidden states of padded sequences to embeddings (B, width), as sentence-transformers computes them."""
        x, pooling = result.last_hidden_state, self.config.pooling
        weights = mask[..., None].to(x.dtype)  # (B, S, 1)
        if pooling == "pooler":
            pooled = result.pooler_output
        elif pooling == "mean":
            pooled = (x * weights).sum(1) / weights.sum(1)
        else:
            pooled = x[:, 0] if pooling == "cls" else x.masked_fill(weights == 0, -torch.inf).amax(1)
        return self.model.finish_embedding(pooled)


def load_checkpoint(
    name: str,
    task: str | None = None,
    pooling: str | None = None,
    ignore_extra_weights: bool = False,
    ignore_config: tuple[str, ...] = (),
) -> Checkpoint:
    """Loads a checkpoint of one of ``families.FAMILIES``, and its tokenizer.

    The weights decide which tasks are possible, and whether a masked-language decoder is tied. Where several tasks
    are possible, ``architectures`` of config.json says which. A modules.json of sentence-transformers means an
    embedding.

    Args:
        name: a local folder in Hugging Face layout, or the name of a model on the hub.
        task: one of ``options.TASKS``; None for the checkpoint's own.
        pooling: the pooling of an embedding; None for the checkpoint's own.
        ignore_extra_weights: warn of parts that cannot be exported instead of raising.
        ignore_config: unknown entries of config.json that have no effect.

    Raises:
        UserError: the checkpoint cannot be found or read, is of no supported family, lacks weights or the head of the
            task, or has parts that cannot be exported.
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
    hf_config = _load_configuration(name, is_local, options, ignore_config)
    sentence = read_sentence_embedding(name, is_local, options) if task in (None, EMBEDDING) else None
    is_named = task is not None
    read = functools.cache(functools.partial(_read_weights, name, is_local, hf_config))  # once for each class
    task, pooling = _choose_task(name, read, hf_config, sentence, task, pooling)
    model, extra = _load_weights(name, is_local, read, task, pooling)
    modules = _describe_unexported_files(name, is_local, options)
    if is_named:  # the user has chosen one head and left the others
        extra = [weight for weight in extra if not any(re.search(key, weight) for key in EXTRA_WEIGHTS)]
    _check_unexported(name, model, extra, modules, ignore_extra_weights)
    tokenizer = _load_tokenizer(name, options)
    entries = canonical_entries(model.config) | _task_entries(name, model.config, task, pooling, sentence)
    config = BertConfig.from_dict(entries, f"--model {name}: config.json")
    state = canonical_state(model, config)
    if task == EMBEDDING and sentence is not None:
        state |= sentence.weights
    return Checkpoint(model.eval(), PyTorchBert(config, state), tokenizer, config)


# --- the task -------------------------------------------------------------------------------------------------


def _choose_task(
    name: str,
    read: ReadWeights,
    hf_config: Any,
    sentence: SentenceEmbedding | None,
    task: str | None,
    pooling: str | None,
) -> tuple[str, str | None]:
    """The task and the pooling of the checkpoint; see ``load_checkpoint``."""
    if task is None:
        is_embedding = sentence is not None or pooling is not None
        task = EMBEDDING if is_embedding else _task_of_weights(name, read, hf_config)
    elif task in HEAD_WEIGHTS:
        found, has_encoder = _tasks_with_weights(read, hf_config)
        if task not in found and has_encoder:
            raise UserError(
                f"--model {name}: the checkpoint has no head for --task {task}: no weights {HEAD_WEIGHTS[task]}*; "
                f"possible are {', '.join([*found, EMBEDDING, HIDDEN_STATES])}"
            )
    if task != EMBEDDING:
        if pooling is not None:
            raise UserError(f"--pooling {pooling} has no effect on the task {task}; it needs --task embedding")
        return task, None
    if pooling is None and sentence is None:
        note(f"--model {name}: no modules.json says how an embedding is pooled; the mean of the tokens is taken")
    return task, pooling or (sentence.pooling if sentence is not None else "mean")


def _task_of_weights(name: str, read: ReadWeights, hf_config: Any) -> str:
    """The task of a checkpoint that is no sentence embedding.

    Raises:
        UserError: the checkpoint has another head than those supported, lacks the head that config.json names, or
            has several.
    """
    found, has_encoder = _tasks_with_weights(read, hf_config)
    architectures = [str(architecture) for architecture in hf_config.architectures or []]
    named = [task for task, suffix in CLASS_SUFFIXES.items() for one in architectures if one.endswith(suffix)]
    for task in named:
        if task in found:
            return task
    supported = f"the tasks are {', '.join(TASKS)}; name one with --task"
    others = [
        one
        for one in architectures
        if "For" in one and not one.endswith(("BertForPreTraining", *CLASS_SUFFIXES.values()))
    ]
    if others:
        raise UserError(f"--model {name}: config.json: a {others[0]} cannot be exported; {supported}")
    if named and not has_encoder:
        return named[0]  # which then lacks weights of every kind
    if named:
        raise UserError(
            f"--model {name}: config.json says {architectures[0]}, but there are no weights "
            f"{HEAD_WEIGHTS[named[0]]}*: the head is missing; get the checkpoint again, or export the bare encoder "
            f"with --task {HIDDEN_STATES} or --task {EMBEDDING}"
        )
    if len(found) > 1:
        raise UserError(f"--model {name}: its weights suit several tasks: name one with --task: {', '.join(found)}")
    return found[0] if found else HIDDEN_STATES


def _tasks_with_weights(read: ReadWeights, hf_config: Any) -> tuple[list[str], bool]:
    """The tasks for whose head the checkpoint has weights, and whether it has weights of an encoder."""
    family = FAMILIES[hf_config.model_type]
    model, info = read(FILL_MASK, None)
    names = (set(model.state_dict()) - set(info["missing_keys"])) | set(info["unexpected_keys"])
    names |= {weight for weight, _, _ in info["mismatched_keys"]}
    ours = [canonical_name(weight, model.base_model_prefix, family) for weight in names]
    has_encoder = any(weight.startswith("embeddings.word_embeddings.") for weight in ours)
    tasks = [task for task, start in HEAD_WEIGHTS.items() if any(weight.startswith(start) for weight in ours)]
    if SEQUENCE_CLASSIFICATION in tasks and not any(weight.startswith("pooler.") for weight in ours):
        tasks.remove(SEQUENCE_CLASSIFICATION)  # its head begins with a pooler
    elif TOKEN_CLASSIFICATION in tasks and any(
        _is_of_head(weight, model.base_model_prefix, family) for weight in names
    ):
        tasks.remove(TOKEN_CLASSIFICATION)
    return tasks, has_encoder


def _is_of_head(name: str, hf_prefix: str, family: Any) -> bool:
    """Whether a weight is the first layer of a sequence classification's head, which is no pooler of the encoder."""
    ours = canonical_name(name, hf_prefix, family)
    return ours.startswith("pooler.") and not name.removeprefix(f"{hf_prefix}.").startswith("pooler.")


def _task_entries(
    name: str, hf_config: Any, task: str, pooling: str | None, sentence: SentenceEmbedding | None
) -> dict[str, Any]:
    """The entries of the configuration that say what the head does."""
    entries: dict[str, Any] = {"task": task}
    if task == EMBEDDING:
        entries["pooling"] = pooling
        if sentence is not None:
            entries |= sentence.entries
    if task in (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION):
        labels = {int(number): str(label) for number, label in (hf_config.id2label or {}).items()}
        if sorted(labels) != list(range(len(labels))):
            raise UserError(
                f"--model {name}: config.json: id2label has the numbers {sorted(labels)}, expected 0 to "
                f"{len(labels) - 1}, a name for each class"
            )
        entries["labels"] = [labels[number] for number in range(len(labels))]
    if task == SEQUENCE_CLASSIFICATION:
        entries["score_function"] = _score_function(hf_config)
    if task == QUESTION_ANSWERING and hf_config.num_labels != 2:
        raise UserError(
            f"--model {name}: config.json: {hf_config.num_labels} labels, expected 2 for question answering: the "
            "logits of the answer's begin and of its end"
        )
    return entries


def _score_function(hf_config: Any) -> str:
    """What turns logits into scores: as transformers' pipeline, or as a cross-encoder's configuration says."""
    cross_encoder = getattr(hf_config, "sentence_transformers", None)
    named = cross_encoder.get("activation_fn") if isinstance(cross_encoder, dict) else None
    named = str(named or getattr(hf_config, "sbert_ce_default_activation_function", None) or "").rpartition(".")[2]
    if named in ("Identity", "Sigmoid"):
        return {"Identity": "none", "Sigmoid": "sigmoid"}[named]
    if hf_config.problem_type == "regression":
        return "none"
    is_multi = hf_config.problem_type == "multi_label_classification"
    return "sigmoid" if is_multi or hf_config.num_labels == 1 else "softmax"


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


def _load_configuration(name: str, is_local: bool, options: dict[str, Any], ignored: tuple[str, ...]) -> Any:
    """The configuration as transformers has it.

    It is checked before a large download: it must be that of a supported family, and transformers must accept it.
    """
    source = f"--model {name}: config.json"
    try:
        values = _read_entries(name, options)
        if values:
            if values.get("model_type") is None:
                raise UserError(
                    f'{source} has no model_type; add it, for a BERT "model_type": "bert"; the others are '
                    f"{', '.join(FAMILIES)}"
                )
            find_family(values, source)
            check_entries(values, source, ignored)
        hf_config = AutoConfig.from_pretrained(name, **options)
        BertConfig.from_dict(canonical_entries(hf_config) | {"task": HIDDEN_STATES}, source)
        _refuse_quantized(name, hf_config)
        hf_config.type_vocab_size = getattr(hf_config, "type_vocab_size", 0) or 1  # transformers cannot run 0
        _instantiate_without_weights(hf_config)
    except UserError:
        raise
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--model {name}: config.json: {reason}; correct the value") from error
    except Exception as error:  # a value of an unexpected type raises a different exception for each key
        rejected = _find_rejected_entry(_read_entries(name, options), options)
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
        _transformers_class(hf_config, FILL_MASK)(copy.deepcopy(hf_config))


def _transformers_class(hf_config: Any, task: str) -> Any:
    """transformers' class for a family and a task."""
    return getattr(transformers, class_name(FAMILIES[hf_config.model_type], task))


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
        if is_accepted(others):
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


def _read_weights(
    name: str, is_local: bool, hf_config: Any, task: str, pooling: str | None
) -> tuple[Any, dict[str, Any]]:
    """Loads the checkpoint in transformers' class for the task; returns it and the report on its weights."""
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # a service of the hub would convert pickled weights
    options: dict[str, Any] = {
        "config": copy.deepcopy(hf_config),
        "local_files_only": is_local,
        "weights_only": True,  # other objects in pytorch_model.bin could run code
        "attn_implementation": "eager",
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported by _load_weights, with the weight's name
    }
    if uses_bare_encoder(task) and FAMILIES[hf_config.model_type].has_pooler:
        options["add_pooling_layer"] = needs_pooler(task, pooling)
    try:
        return _transformers_class(hf_config, task).from_pretrained(name, **options)
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


def _load_weights(
    name: str, is_local: bool, read: ReadWeights, task: str, pooling: str | None
) -> tuple[Any, list[str]]:
    """Loads transformers' class for the task.

    Returns:
        The model, whose configuration names the class, and the names of the checkpoint's weights that it lacks.
    """
    model, info = read(task, pooling)
    for weight, shape, expected in sorted(info["mismatched_keys"]):
        what = (
            "id2label in config.json"
            if weight.startswith("classifier") and len(shape) and shape[0] != expected[0]
            else "config.json"
        )
        raise UserError(
            f"--model {name}: weight {weight!r} is {list(shape)}, expected {list(expected)}; "
            f"{what} and the weights do not belong together"
        )
    missing = set(info["missing_keys"])
    if task == FILL_MASK:
        missing -= _resolve_decoder_bias(model, missing)
    types = [key for key in missing if key.endswith("embeddings.token_type_embeddings.weight")]
    if types and _has_no_types(name, is_local):
        missing -= set(types)
        torch.nn.init.zeros_(model.get_parameter(types[0]))
    if missing:
        raise UserError(
            f"--model {name}: the checkpoint lacks {len(missing)} weights of a {type(model).__name__}, first "
            f"{sorted(missing)[0]!r}{_describe_unexpected(info['unexpected_keys'])}; it is incomplete, or not a "
            "checkpoint of that kind"
        )
    _check_finite(name, model)
    model.config.architectures = [type(model).__name__]
    return model, sorted(info["unexpected_keys"])


def _has_no_types(name: str, is_local: bool) -> bool:
    """Whether config.json says that the model has no token types."""
    values = _read_entries(name, {"local_files_only": is_local, "trust_remote_code": False})
    return (values or {}).get("type_vocab_size") == 0


def _describe_unexpected(names: Collection[str]) -> str:
    return f", and has {len(names)} that it does not have, first {min(names)!r}" if names else ""


def _check_unexported(
    name: str, model: Any, extra: Sequence[str], modules: Sequence[str], ignore_extra_weights: bool
) -> None:
    """Reports the parts of a checkpoint that are not exported.

    A note is enough for the pooler, and for a next-sentence head beside a masked-language head, as in
    bert-base-uncased: the exported model's output does not depend on them.

    Args:
        name: the checkpoint, for the message.
        model: transformers' class for the task.
        extra: names of the checkpoint's weights that ``model`` lacks.
        modules: descriptions of other parts of the checkpoint.
        ignore_extra_weights: warn instead of raising.

    Raises:
        UserError: another part would not be exported; the message names all of them.
    """
    has_head = type(model).__name__.endswith(CLASS_SUFFIXES[FILL_MASK])
    unused = [r"(^|\.)pooler\.", r"(^|\.)position_ids$"] + ([r"^cls\.seq_relationship\."] if has_head else [])
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
            f"{message}. The encoder and one head are exported (--task); to go on without the rest, add "
            "--ignore-extra-weights"
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
    """Describes what other libraries add to the encoder: an adapter."""
    optional = {
        "local_files_only": is_local,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,  # without a network the hub's cache is read
    }
    if cached_file(name, "adapter_config.json", **options | optional) is not None:
        return ["the adapter of adapter_config.json (merge it into the weights first)"]
    return []


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
    """Leaves one bias in a masked-language head, and records in the configuration whether the head is tied.

    The head is tied if its decoder's weight is the word embeddings. (A checkpoint whose configuration says so may
    hold another weight, which transformers then loads.) PyTorch adds the decoder's bias. Older checkpoints hold this
    bias or another one beside the decoder, newer ones hold both, with different values.

    Args:
        model: transformers' class for masked language models.
        missing: names of weights that the checkpoint lacks.

    Returns:
        Names that the checkpoint need not have.
    """
    family = FAMILIES[model.config.model_type]
    names = {canonical_name(name, model.base_model_prefix, family): name for name in model.state_dict()}
    used, other = names[DECODER_BIAS], names.get(TIED_BIAS)
    both = {used} if other is None else {used, other}
    if used in missing and other is not None and other not in missing:
        model.get_parameter(used).data = model.get_parameter(other).data
    table = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = model.get_parameter(names[DECODER]).data_ptr() == table.data_ptr()
    return both if not both <= missing else set()


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
