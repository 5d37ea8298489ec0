"""Reads what sentence-transformers adds to an encoder: pooling, dense layers, normalisation (modules.json).

A checkpoint of that library names its modules in modules.json, each with a folder that has a config.json, and weights
where it has any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

from bert_trt.console import UserError
from bert_trt.options import POOLINGS

POOLING_FLAGS = {  # of 1_Pooling/config.json; the first three are those that we have
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
DENSE_ACTIVATIONS = {"Tanh": "hyperbolic_tangent", "ReLU": "relu", "GELU": "erf", "Identity": "identity"}
SETTINGS = "sentence_bert_config.json"  # older versions write it for other families under other names


@dataclass
class SentenceEmbedding:
    """How hidden states become an embedding.

    Attributes:
        pooling: mean, cls or max.
        entries: ``embedding_layers``, ``normalize`` and ``truncated_length`` for ``BertConfig.from_dict``.
        weights: the dense layers' weights, fp32, under the names of ``PyTorchBert``.
    """

    pooling: str
    entries: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def read_sentence_embedding(name: str, is_local: bool, options: dict[str, Any]) -> SentenceEmbedding | None:
    """Reads the modules of a checkpoint; None if it has no modules.json.

    Args:
        name: checkpoint folder or hub name.
        is_local: whether it is a folder.
        options: arguments for transformers.

    Raises:
        UserError: a file is damaged, or a module, a pooling or an activation is not supported; it is named.
    """
    files = _Files(name, options | {"local_files_only": is_local})
    modules = files.read_json("modules.json", list)
    if modules is None:
        return None
    try:
        kinds = [(str(module["path"]), str(module["type"]).rpartition(".")[2]) for module in modules]
    except (LookupError, TypeError) as error:
        raise files.damaged("modules.json", error) from error
    embedding, layers, normalize = SentenceEmbedding(""), [], False
    for path, kind in kinds:
        if kind == "Transformer":
            continue
        if kind == "Pooling" and not embedding.pooling:
            embedding.pooling = _read_pooling(files, f"{path}/config.json")
        elif kind == "Dense" and embedding.pooling and not normalize:
            layers.append(_read_dense(files, path, len(layers), embedding.weights))
        elif kind == "Normalize" and embedding.pooling:
            normalize = True
        elif kind != "Dropout":
            raise UserError(
                f"--model {name}: modules.json: the module {path or kind!r} is a {kind}; expected Transformer, "
                "Pooling, then Dense layers, then Normalize; to export the encoder without them, add "
                "--task hidden-states"
            )
    if not embedding.pooling:
        raise UserError(f"--model {name}: modules.json has no Pooling; name one with --pooling")
    settings = files.read_json(SETTINGS, dict) or {}
    embedding.entries = {"embedding_layers": layers, "normalize": normalize}
    if isinstance(settings.get("max_seq_length"), int):
        embedding.entries["truncated_length"] = settings["max_seq_length"]
    return embedding


def _read_pooling(files: _Files, path: str) -> str:
    """The pooling of 1_Pooling/config.json, in the form of older or of newer versions."""
    values = files.read_json(path, dict)
    if values is None:
        raise UserError(f"--model {files.name}: {path} is missing, though modules.json names it; get it again")
    modes = values.get("pooling_mode")
    chosen = [POOLING_FLAGS[key] for key, value in values.items() if key in POOLING_FLAGS and value]
    chosen = chosen or ([modes] if isinstance(modes, str) else list(modes or []))
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UserError(
            f"--model {files.name}: {path}: the pooling is {' and '.join(map(str, chosen)) or 'missing'}, expected "
            f"one of {', '.join(POOLINGS)}"
        )
    return chosen[0]


def _read_dense(files: _Files, path: str, index: int, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Reads a Dense module; adds its weights to ``weights`` and returns its entry of ``embedding_layers``."""
    values = files.read_json(f"{path}/config.json", dict) or {}
    activation = str(values.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in DENSE_ACTIVATIONS:
        raise UserError(
            f"--model {files.name}: {path}/config.json: activation_function is {activation}, expected one of "
            f"{', '.join(DENSE_ACTIVATIONS)}"
        )
    file = files.find(f"{path}/model.safetensors")
    if file is None:
        raise UserError(f"--model {files.name}: {path}/model.safetensors is missing; save the dense layer as that")
    try:
        state = {key.removeprefix("linear."): value.float() for key, value in load_file(file).items()}
        weight, bias = state["weight"], state.get("bias")
    except Exception as error:  # the type depends on what is damaged
        raise files.damaged(f"{path}/model.safetensors", error) from error
    weights[f"dense_{index}.weight"] = weight
    if bias is not None:
        weights[f"dense_{index}.bias"] = bias
    return {
        "width_in": weight.shape[1],
        "width_out": weight.shape[0],
        "has_bias": bias is not None,
        "activation": DENSE_ACTIVATIONS[activation],
    }


class _Files:
    """The files of a checkpoint, which need not exist."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name = name
        self.options = options | {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": False,  # without a network the hub's cache is read
        }

    def find(self, path: str) -> Path | None:
        """The file's path on this machine."""
        found = cached_file(self.name, path, **self.options)
        return None if found is None else Path(found)

    def read_json(self, path: str, kind: type) -> Any:
        """The content of a JSON file of a kind, list or dict; None if there is no such file."""
        file = self.find(path)
        if file is None:
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.damaged(path, error) from error
        if not isinstance(values, kind):
            raise self.damaged(path, TypeError(f"it holds a {type(values).__name__}"))
        return values

    def damaged(self, path: str, error: BaseException) -> UserError:
        """The error for a file that is not as sentence-transformers writes it."""
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return UserError(
            f"--model {self.name}: {path} is not as sentence-transformers writes it ({reason}); correct or remove it"
        )
