"""Reads the folder that model2onnx.py writes.

======================  ============================================================================
``model.onnx``          the graph; its weights carry the checkpoint's own parameter names
``model.onnx.data``     the weights themselves, read through a memory map
``config.json``         sizes, in Hugging Face's format
``tokenizer.json`` ...  the tokenizer
``demo_io.npz``         one tokenised sentence and PyTorch's fp32 output for it
``reference_batch.npz`` sequences of several lengths and PyTorch's fp32 outputs for them in a padded batch
======================  ============================================================================
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from bert_trt.console import UserError
from bert_trt.files import read_json
from bert_trt.options import (
    EMBEDDING,
    FILL_MASK,
    HIDDEN_STATES,
    POOLINGS,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TASKS,
    TOKEN_CLASSIFICATION,
)

ONNX_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.json"
DEMO_NAME = "demo_io.npz"
REFERENCE_NAME = "reference_batch.npz"
FILE_NAMES = (  # written by model2onnx.py, or read if they are there
    *(ONNX_NAME, DATA_NAME, CONFIG_NAME, DEMO_NAME, REFERENCE_NAME, TOKENIZER_NAME),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
)

INPUT_NAMES = ("input_ids", "token_type_ids", "position_ids")
MASK_NAME = "attention_mask"  # of a padded batch: 1 for a token, 0 for padding
LENGTHS_NAME = "cu_seqlens"  # of a packed batch: the running sum of the lengths, from 0
SEQUENCE_LENGTHS_NAME = "sequence_lengths"  # of a ragged batch: a packed one with the lengths themselves
ACTIVATIONS = {  # Hugging Face's name of an activation -> the kind that addActivation takes
    "gelu": "erf",
    "gelu_python": "erf",  # the same function in elementary operations
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_accurate": "tanh",  # these three compute the same function
    "gelu_fast": "tanh",
    "gelu_python_tanh": "tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}
ENCODER_MODULES = ("embeddings.", "encoder.", "pooler.")  # their names have a prefix in a model with a head
SCORE_FUNCTIONS = ("softmax", "sigmoid", "none")
POOLER_ACTIVATIONS = ("hyperbolic_tangent", "relu", "erf", "identity")
KINDS = {"i": "whole numbers", "U": "text", "f": "floating point"}  # NumPy's letters for dtypes
FOREIGN_PATTERNS = ("*.onnx", "onnx/*.onnx")  # where exports of other tools lie
FOREIGN_FILES = (
    "write one from the checkpoint: python model2onnx.py --model CHECKPOINT; an ONNX file by itself is built with "
    "python onnx2trt.py --onnx FILE"
)
NOT_TOGETHER = "the files in this folder do not belong together: write them again with model2onnx.py"


@dataclass(frozen=True)
class DenseLayer:
    """A dense layer after the pooling of an embedding: activation(x @ weightᵀ + bias)."""

    width_in: int
    width_out: int
    has_bias: bool
    activation: str


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT and what it is made of. H = ``hidden_size``, N = ``num_heads``, D = ``head_size``, H = N D.

    Attributes:
        vocab_size: rows of the word embeddings.
        hidden_size: H, the width of the encoder.
        num_layers: L, the number of encoder layers.
        num_heads: N, the number of attention heads.
        intermediate_size: the width of the feed-forward layers.
        max_positions: rows of the position embeddings, the length of the longest sequence.
        type_vocab_size: rows of the token type embeddings.
        layer_norm_eps: the epsilon of every layer norm.
        activation: the feed-forward layers' activation, a value of ``ACTIVATIONS``.
        tied_decoder: the decoder's weight is the word embeddings.
        task: one of ``options.TASKS``; it decides the head.
        embedding_size: E, the width of the embeddings; H in most models.
        has_projection: whether a Linear E -> H follows the embeddings.
        has_relative_positions: whether the scores have a bias by the distance of two tokens.
        head_activation: the activation in the masked-language head.
        pooler_activation: the activation of the pooler, one of ``POOLER_ACTIVATIONS``.
        labels: the names of the classes, by number; empty for other tasks.
        score_function: what turns logits of a sequence classification into scores, one of ``SCORE_FUNCTIONS``.
        pooling: how an embedding is pooled, one of ``options.POOLINGS``.
        embedding_layers: the dense layers after the pooling.
        normalize: whether an embedding is divided by its L2 norm.
        truncated_length: the most tokens that --truncate leaves of a text.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int
    layer_norm_eps: float
    activation: str
    tied_decoder: bool
    task: str
    embedding_size: int
    has_projection: bool
    has_relative_positions: bool
    head_activation: str
    pooler_activation: str
    labels: tuple[str, ...]
    score_function: str
    pooling: str
    embedding_layers: tuple[DenseLayer, ...]
    normalize: bool
    truncated_length: int

    @property
    def has_head(self) -> bool:
        """Whether it is a masked language model."""
        return self.task == FILL_MASK

    @property
    def has_pooler(self) -> bool:
        """Whether the answer comes from the first token, through a Linear and an activation."""
        return self.task == SEQUENCE_CLASSIFICATION or (self.task == EMBEDDING and self.pooling == "pooler")

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def prefix(self) -> str:
        """The prefix of the encoder's parameter names: ``bert.`` in a model with a head."""
        return "" if self.task in (HIDDEN_STATES, EMBEDDING) else "bert."

    @property
    def output_name(self) -> str:
        """The network's output: ``last_hidden_state`` (1, S, H), ``embedding`` (1, E), or ``logit``.

        Logits are (1, S, vocabulary), (1, S, labels) for the tokens' labels, (1, S, 2) for the begin and the end of
        an answer, and (1, labels) for those of a sequence.
        """
        return {HIDDEN_STATES: "last_hidden_state", EMBEDDING: "embedding"}.get(self.task, "logit")

    @property
    def is_per_sequence(self) -> bool:
        """Whether the output has one row for a sequence, not one for a token."""
        return self.task in (EMBEDDING, SEQUENCE_CLASSIFICATION)

    @property
    def output_width(self) -> int:
        """Length of the output's last axis."""
        if self.task == EMBEDDING:
            return self.embedding_layers[-1].width_out if self.embedding_layers else self.hidden_size
        widths = {FILL_MASK: self.vocab_size, HIDDEN_STATES: self.hidden_size, QUESTION_ANSWERING: 2}
        return widths.get(self.task, len(self.labels))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> BertConfig:
        """Reads a configuration in our form: the entries of Hugging Face's BERT, and those of the task.

        Args:
            values: the entries of config.json.
            source: names the file in messages.

        Raises:
            UserError: it is not a BERT, a size is missing or wrong, or a variant that is not supported.
        """
        entries = _Entries(values, source)
        if values.get("model_type") != "bert":
            raise UserError(
                f"{source}: model_type is {values.get('model_type')!r}, expected 'bert'; write the folder again with "
                "model2onnx.py"
            )
        epsilon = values.get("layer_norm_eps", 1e-12)
        if not isinstance(epsilon, int | float) or isinstance(epsilon, bool) or not 0 < epsilon < 1:
            raise UserError(f"{source}: layer_norm_eps is {epsilon!r}, expected a number between 0 and 1")
        activation = entries.choice("hidden_act", ACTIVATIONS, "gelu")
        hidden_size, max_positions = entries.size("hidden_size"), entries.size("max_position_embeddings")
        num_heads, task = entries.size("num_attention_heads"), entries.choice("task", TASKS, "")
        if hidden_size % num_heads:
            raise UserError(
                f"{source}: hidden_size is {hidden_size}, expected a multiple of num_attention_heads, {num_heads}"
            )
        labels = entries.names("labels")
        if (not labels) == (task in (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION)):
            wanted = "the names of the classes" if not labels else "none"
            raise UserError(f"{source}: labels is {list(labels)}, expected {wanted} for the task {task}")
        return cls(
            vocab_size=entries.size("vocab_size"),
            hidden_size=hidden_size,
            num_layers=entries.size("num_hidden_layers"),
            num_heads=num_heads,
            intermediate_size=entries.size("intermediate_size"),
            max_positions=max_positions,
            type_vocab_size=entries.size("type_vocab_size"),
            layer_norm_eps=float(epsilon),
            activation=ACTIVATIONS[activation],
            tied_decoder=entries.flag("tie_word_embeddings", True),
            task=task,
            embedding_size=entries.size("embedding_size", hidden_size),
            has_projection=entries.flag("has_projection", False),
            has_relative_positions=entries.flag("relative_positions", False),
            head_activation=ACTIVATIONS[entries.choice("head_act", ACTIVATIONS, activation)],
            pooler_activation=entries.choice("pooler_activation", POOLER_ACTIVATIONS, "hyperbolic_tangent"),
            labels=labels,
            score_function=entries.choice("score_function", SCORE_FUNCTIONS, "softmax"),
            pooling=entries.choice("pooling", POOLINGS, "mean"),
            embedding_layers=entries.dense_layers("embedding_layers"),
            normalize=entries.flag("normalize", False),
            truncated_length=min(entries.size("truncated_length", max_positions), max_positions),
        )

    def task_entries(self) -> dict[str, Any]:
        """The entries of config.json that Hugging Face's BERT does not have, for ``from_dict``."""
        return {
            "task": self.task,
            "embedding_size": self.embedding_size,
            "has_projection": self.has_projection,
            "relative_positions": self.has_relative_positions,
            "head_act": next(name for name, kind in ACTIVATIONS.items() if kind == self.head_activation),
            "pooler_activation": self.pooler_activation,
            "labels": list(self.labels),
            "score_function": self.score_function,
            "pooling": self.pooling,
            "embedding_layers": [vars(layer) for layer in self.embedding_layers],
            "normalize": self.normalize,
            "truncated_length": self.truncated_length,
        }


class _Entries:
    """Reads entries of config.json; a wrong one is a UserError that names it."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def _refuse(self, key: str, expected: str) -> UserError:
        return UserError(f"{self.source}: {key} is {self.values.get(key)!r}, expected {expected}")

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._refuse(key, "a positive whole number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self._refuse(key, "true or false")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of several names."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self._refuse(key, f"one of {', '.join(choices)}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names; empty if it is missing."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._refuse(key, "a list of names")
        return tuple(value)

    def dense_layers(self, key: str) -> tuple[DenseLayer, ...]:
        """A list of dense layers; empty if it is missing."""
        try:
            return tuple(DenseLayer(**layer) for layer in self.values.get(key, []))
        except TypeError:
            raise self._refuse(key, "a list of dense layers, as model2onnx.py writes it") from None


@dataclass(frozen=True)
class DemoIO:
    """One sentence and PyTorch's fp32 output for it.

    Attributes:
        text: the sentence.
        inputs: ``input_ids``, ``token_type_ids``, ``position_ids``, each int64 (1, S).
        output: float32 (1, R, width): R is S, or 1 where the task has one row for a sequence.
        hidden_states: float32 (L + 1, S, H): after the embeddings and after each encoder layer.
        mask_positions: positions of [MASK] in the sentence; empty for other tasks than filling masks.
    """

    text: str
    inputs: dict[str, np.ndarray]
    output: np.ndarray
    hidden_states: np.ndarray
    mask_positions: list[int]


@dataclass(frozen=True)
class ReferenceSequence:
    """One sequence of a padded batch, and PyTorch's fp32 output for it.

    Attributes:
        input_ids: int64 (S,).
        token_type_ids: int64 (S,).
        checked: int64 (P,), the rows of the output that are kept, ascending: all tokens of a short sequence, some of
            a long one; just 0 where the task has one row for a sequence.
        output: float32 (P, width).
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    checked: np.ndarray
    output: np.ndarray


class WeightFile:
    """The initializers of ``model.onnx`` by name, as read-only views into a memory map.

    Nothing is copied: the system reads the file's pages when TensorRT reads the weights. They count as resident
    memory, but they are the system's file cache, which it reclaims when memory is short.
    """

    def __init__(self, onnx_path: Path) -> None:
        """Opens the file and checks that every weight is inside the data file.

        Raises:
            UserError: the file is missing, corrupt or truncated.
        """
        self.path = onnx_path
        self._map: mmap.mmap | None = None
        model = load_onnx(onnx_path)
        self._arrays: dict[str, np.ndarray] = {}
        for index, tensor in enumerate(model.graph.initializer):
            try:
                self._arrays[tensor.name] = self._view(tensor)
            except (ValueError, LookupError, TypeError, OverflowError) as error:  # of NumPy and onnx
                raise UserError(
                    f"{onnx_path}: initializer {index} is damaged ({error}); write it again with model2onnx.py"
                ) from error

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The weight ``name``, float32 of shape ``shape``, read-only.

        Raises:
            UserError: no such weight, or it has another shape or type; the message names it.
        """
        if name not in self._arrays:
            raise UserError(
                f"{self.path}: weight {name!r} is missing (the file has {len(self._arrays)} weights); "
                "write the file again with model2onnx.py"
            )
        array = self._arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise UserError(
                f"{self.path}: weight {name!r} is {array.dtype} {list(array.shape)}, expected float32 {list(shape)}; "
                "config.json and model.onnx do not belong together, or the file is damaged"
            )
        return array

    def _view(self, tensor: onnx.TensorProto) -> np.ndarray:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        reference = {entry.key: entry.value for entry in tensor.external_data}
        offset = int(reference.get("offset", 0))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = math.prod(tensor.dims)
        data = self._open_data(reference.get("location", ""))
        if min(tensor.dims, default=0) < 0:
            raise ValueError(f"shape {list(tensor.dims)}")
        end = offset + count * dtype.itemsize
        if end > len(data):
            raise UserError(
                f"{self.path.with_name(DATA_NAME)} has {len(data)} bytes, but weight {tensor.name!r} ends at byte "
                f"{end}: the file is truncated; write it again with model2onnx.py"
            )
        return np.frombuffer(data, dtype, count, offset).reshape(tuple(tensor.dims))

    def _open_data(self, location: str) -> mmap.mmap:
        if location != DATA_NAME:  # never follow a path out of the folder
            raise UserError(f"{self.path}: weights lie in {location!r}, expected {DATA_NAME!r}")
        if self._map is None:
            path = self.path.with_name(location)
            try:
                with path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {path}: {error}; write it again with model2onnx.py") from error
        return self._map


def load_onnx(path: Path) -> onnx.ModelProto:
    """Reads ``model.onnx`` without the weights in the data file.

    Raises:
        UserError: the file is missing, empty, or not ONNX.
    """
    if not path.is_file():
        raise _no_onnx_file(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable ONNX file ({error}); write it again with model2onnx.py") from error
    if not model.graph.node or not model.opset_import:
        raise UserError(
            f"{path} holds no complete graph: it is empty or truncated; write it again with model2onnx.py"
        )
    return model


def _no_onnx_file(path: Path) -> UserError:
    return UserError(f"no ONNX file at {path}; write it first: python model2onnx.py --out-dir {path.parent}")


class ModelFolder:
    """A folder written by model2onnx.py. Each file is read on request.

    Attributes:
        path: the folder.
        config: the model's sizes.
    """

    def __init__(self, path: Path) -> None:
        """Reads the configuration.

        Raises:
            UserError: the folder, its ONNX file or its configuration is missing or wrong.
        """
        self.path = path
        if path.is_file():
            raise UserError(f"{path} is a file, expected a folder by model2onnx.py; {FOREIGN_FILES}")
        ours = any((path / name).exists() for name in (DEMO_NAME, REFERENCE_NAME))
        if not ours and any(next(path.glob(pattern), None) for pattern in FOREIGN_PATTERNS):
            raise UserError(f"{path} was not written by model2onnx.py: it has no {DEMO_NAME}; {FOREIGN_FILES}")
        if not path.is_dir():
            raise UserError(f"no model folder at {path}; write it first: python model2onnx.py --out-dir {path}")
        if not self.onnx_path.is_file():
            raise _no_onnx_file(self.onnx_path)
        self.config = BertConfig.from_dict(read_json(path / CONFIG_NAME), str(path / CONFIG_NAME))

    @property
    def onnx_path(self) -> Path:
        """The file of the ONNX graph."""
        return self.path / ONNX_NAME

    def files(self) -> dict[str, Path]:
        """Every file of the folder, by its name in messages."""
        return {f"the model's {name}": self.path / name for name in FILE_NAMES}

    def weights(self) -> WeightFile:
        """Opens the weights."""
        return WeightFile(self.onnx_path)

    def demo(self) -> DemoIO:
        """Reads ``demo_io.npz`` and checks it against the configuration.

        Raises:
            UserError: it is missing, corrupt, or does not belong to this model.
        """
        path = self.path / DEMO_NAME
        values = _read_npz(path)
        kinds = dict.fromkeys((*INPUT_NAMES, "mask_positions"), "i") | {
            "text": "U",
            "output": "f",
            "hidden_states": "f",
        }
        _check_kinds(path, values, kinds)
        inputs = {name: values[name].astype(np.int64, copy=False) for name in INPUT_NAMES}
        try:
            check_inputs(inputs, self.config, str(path))
        except UserError as error:
            raise UserError(f"{error}; {NOT_TOGETHER}") from error
        self._check_outputs(values, inputs["input_ids"].shape[1], path)
        return DemoIO(
            text=str(values["text"]),
            inputs=inputs,
            output=values["output"],
            hidden_states=values["hidden_states"],
            mask_positions=values["mask_positions"].tolist(),
        )

    def _check_outputs(self, values: Mapping[str, np.ndarray], length: int, path: Path) -> None:
        config = self.config
        shapes = {
            "input_ids": (1, length),
            "output": (1, 1 if config.is_per_sequence else length, config.output_width),
            "hidden_states": (config.num_layers + 1, length, config.hidden_size),
            "mask_positions": (values["mask_positions"].size,),
        }
        for key, shape in shapes.items():
            if values[key].shape != shape:
                raise UserError(f"{path}: {key} is {list(values[key].shape)}, expected {list(shape)}; {NOT_TOGETHER}")
        positions = values["mask_positions"]
        if (positions.size > 0) != config.has_head or ((positions < 0) | (positions >= length)).any():
            wanted = f"positions from 0 to {length - 1}" if config.has_head else f"none for the task {config.task}"
            raise UserError(
                f"{path}: mask_positions is {positions.tolist()}, expected {wanted}; "
                "write it again with model2onnx.py"
            )

    def reference(self) -> list[ReferenceSequence]:
        """Reads ``reference_batch.npz`` and checks it against the configuration. The shortest sequence comes first.

        Raises:
            UserError: it is missing, corrupt, or does not belong to this model.
        """
        path, width = self.path / REFERENCE_NAME, self.config.output_width
        values = _read_npz(path)
        kinds = dict.fromkeys(("input_ids", "token_type_ids", "lengths", "checked"), "i") | {"output": "f"}
        _check_kinds(path, values, kinds)
        ids, types, lengths, checked = (values[name].astype(np.int64) for name in list(kinds)[:4])
        ends = np.cumsum(lengths)
        fits = min(lengths, default=0) > 0 and len(ids) == len(types) == ends[-1] and len(checked) > 0
        if (
            not fits
            or values["output"].shape != (len(checked), width)
            or not 0 <= min(checked) <= max(checked) < len(ids)
        ):
            shapes = ", ".join(f"{name} {list(values[name].shape)}" for name in kinds)
            raise UserError(f"{path}: {shapes}, expected sequences and answers of width {width}; {NOT_TOGETHER}")
        sequences = []
        for start, end in zip(ends - lengths, ends, strict=True):
            inputs = {
                "input_ids": ids[None, start:end],
                "token_type_ids": types[None, start:end],
                "position_ids": np.arange(end - start)[None],
            }
            try:
                check_inputs(inputs, self.config, str(path))
            except UserError as error:
                raise UserError(f"{error}; {NOT_TOGETHER}") from error
            in_sequence = (checked >= start) & (checked < end)
            positions, output = checked[in_sequence] - start, values["output"][in_sequence]
            sequences.append(ReferenceSequence(ids[start:end], types[start:end], positions, output))
        return sequences

    def tokens(self) -> list[str]:
        """The vocabulary's tokens by id, of any kind of tokenizer: WordPiece, BPE, Unigram or WordLevel.

        Raises:
            UserError: the tokenizer is missing or damaged.
        """
        from tokenizers import Tokenizer  # imported here, since most builds need no tokenizer

        path = self.path / TOKENIZER_NAME
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; write it with model2onnx.py") from error
        except Exception as error:  # the tokenizers library raises plain Exception
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is no usable tokenizer ({reason}); write it again with model2onnx.py") from error
        tokens = map(tokenizer.id_to_token, range(self.config.vocab_size))
        return [f"[unknown id {token_id}]" if token is None else token for token_id, token in enumerate(tokens)]


def _check_kinds(path: Path, values: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> None:
    """Checks that every array is in the file and has its kind of dtype (``KINDS``)."""
    missing = [key for key in kinds if key not in values]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; write it again with model2onnx.py")
    for key, kind in kinds.items():
        if values[key].dtype.kind != kind:
            raise UserError(
                f"{path}: {key} is {values[key].dtype}, expected {KINDS[kind]}; write it again with model2onnx.py"
            )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise UserError(f"no {path}; write it with model2onnx.py --out-dir {path.parent}") from error
    except Exception as error:  # damaged bytes: zipfile, zlib, tokenize and numpy each raise errors of their own
        raise UserError(f"{path} is corrupt ({error!r}); write it again with model2onnx.py") from error


def check_inputs(inputs: Mapping[str, np.ndarray], config: BertConfig, source: str) -> None:
    """Checks ids against the sizes of the tables that they index.

    Args:
        inputs: ``input_ids``, ``token_type_ids``, ``position_ids``, each integer (B, S).
        config: the model's sizes.
        source: where the inputs come from, for the message.

    Raises:
        UserError: shapes differ, the sequence is longer than the position table, or an id is outside its
            table; the message names the first one.
    """
    limits = {
        "input_ids": ("the vocabulary", config.vocab_size),
        "token_type_ids": ("the token types", config.type_vocab_size),
        "position_ids": ("the position table", config.max_positions),
    }
    shape = inputs["input_ids"].shape
    if len(shape) != 2 or shape[1] < 1:
        raise UserError(f"{source}: input_ids is {list(shape)}, expected [1, S] with S at least 1")
    if shape[1] > config.max_positions:
        raise UserError(
            f"{source}: {shape[1]} tokens, but the position table has {config.max_positions}; shorten the text"
        )
    for name, (table, size) in limits.items():
        ids = inputs[name]
        if ids.shape != shape:
            raise UserError(f"{source}: {name} is {list(ids.shape)}, expected {list(shape)} like input_ids")
        wrong = np.argwhere((ids < 0) | (ids >= size))
        if len(wrong):
            row, column = wrong[0]
            raise UserError(
                f"{source}: {name}[{row}, {column}] is {ids[row, column]}, outside {table} (0 to {size - 1})"
            )
