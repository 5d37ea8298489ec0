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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from bert_trt.console import UserError
from bert_trt.files import read_json

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
ACTIVATIONS = {  # Hugging Face's name of an activation -> the kind that addActivation takes
    "gelu": "erf",
    "gelu_python": "erf",  # the same function in elementary operations
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_accurate": "tanh",  # these three compute the same function
    "gelu_fast": "tanh",
    "gelu_python_tanh": "tanh",
    "relu": "relu",
}
KINDS = {"i": "whole numbers", "U": "text", "f": "floating point"}  # NumPy's letters for dtypes
FOREIGN_PATTERNS = ("*.onnx", "onnx/*.onnx")  # where exports of other tools lie
FOREIGN_FILES = (
    "write one from the checkpoint: python model2onnx.py --model CHECKPOINT; an ONNX file by itself is built with "
    "python onnx2trt.py --onnx FILE"
)
NOT_TOGETHER = "the files in this folder do not belong together: write them again with model2onnx.py"


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
        activation: "erf", "tanh" or "relu", as ``addActivation`` takes it.
        tied_decoder: the decoder's weight is the word embeddings.
        has_head: the checkpoint is a BertForMaskedLM, whose output is logits; else a BertModel, whose output is
            hidden states.
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
    has_head: bool

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def prefix(self) -> str:
        """The prefix of the encoder's parameter names: ``bert.`` in a masked language model."""
        return "bert." if self.has_head else ""

    @property
    def output_name(self) -> str:
        """Name of the network's output: ``logit`` (1, S, vocabulary) or ``last_hidden_state`` (1, S, H)."""
        return "logit" if self.has_head else "last_hidden_state"

    @property
    def output_width(self) -> int:
        """Length of the output's last axis."""
        return self.vocab_size if self.has_head else self.hidden_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> BertConfig:
        """Reads a Hugging Face configuration.

        Args:
            values: the entries of config.json.
            source: names the file in messages.

        Raises:
            UserError: it is not a BERT, a size is missing or wrong, or a variant that is not supported.
        """
        if values.get("model_type") != "bert":
            raise UserError(
                f"{source}: model_type is {values.get('model_type')!r}, expected 'bert'; "
                "only BERT checkpoints can be used"
            )
        for option in ("is_decoder", "add_cross_attention"):
            if values.get(option):
                raise UserError(
                    f"{source}: {option} is {values[option]!r}, expected false; only BERT encoders can be used"
                )
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(
                f"{source}: position_embedding_type is {values['position_embedding_type']!r}, expected 'absolute'"
            )
        activation = values.get("hidden_act", "gelu")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UserError(f"{source}: hidden_act is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        epsilon = values.get("layer_norm_eps", 1e-12)
        if not isinstance(epsilon, int | float) or isinstance(epsilon, bool) or not 0 < epsilon < 1:
            raise UserError(f"{source}: layer_norm_eps is {epsilon!r}, expected a number between 0 and 1")
        tied = values.get("tie_word_embeddings", True)
        if not isinstance(tied, bool):
            raise UserError(f"{source}: tie_word_embeddings is {tied!r}, expected true or false")
        architectures = values.get("architectures") or []
        if not isinstance(architectures, list):
            raise UserError(f"{source}: architectures is {architectures!r}, expected a list of names")

        def size(key: str) -> int:
            value = values.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{source}: {key} is {value!r}, expected a positive whole number")
            return value

        config = cls(
            vocab_size=size("vocab_size"),
            hidden_size=size("hidden_size"),
            num_layers=size("num_hidden_layers"),
            num_heads=size("num_attention_heads"),
            intermediate_size=size("intermediate_size"),
            max_positions=size("max_position_embeddings"),
            type_vocab_size=size("type_vocab_size"),
            layer_norm_eps=float(epsilon),
            activation=ACTIVATIONS[activation],
            tied_decoder=tied,
            has_head="BertForMaskedLM" in architectures,
        )
        if config.hidden_size % config.num_heads:
            raise UserError(
                f"{source}: hidden_size is {config.hidden_size}, expected a multiple of "
                f"num_attention_heads, {config.num_heads}"
            )
        return config


@dataclass(frozen=True)
class DemoIO:
    """One sentence and PyTorch's fp32 output for it.

    Attributes:
        text: the sentence.
        inputs: ``input_ids``, ``token_type_ids``, ``position_ids``, each int64 (1, S).
        output: float32, (1, S, vocabulary) or (1, S, H) without a head.
        hidden_states: float32 (L + 1, S, H): after the embeddings and after each encoder layer.
        mask_positions: positions of [MASK] in the sentence; empty without a head.
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
        checked: int64 (P,), positions whose output is kept, ascending: all of a short sequence, some of a long one.
        output: float32 (P, vocabulary or H).
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
        raise UserError(f"no ONNX file at {path}; write it first: python model2onnx.py --out-dir {path.parent}")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable ONNX file ({error}); write it again with model2onnx.py") from error
    if not model.graph.node or not model.opset_import:
        raise UserError(
            f"{path} holds no complete graph: it is empty or truncated; write it again with model2onnx.py"
        )
    return model


class ModelFolder:
    """A folder written by model2onnx.py. Each file is read on request.

    Attributes:
        path: the folder.
        config: the model's sizes.
    """

    def __init__(self, path: Path) -> None:
        """Reads the configuration.

        Raises:
            UserError: the folder or its configuration is missing or wrong.
        """
        self.path = path
        if path.is_file():
            raise UserError(f"{path} is a file, expected a folder by model2onnx.py; {FOREIGN_FILES}")
        ours = any((path / name).exists() for name in (DEMO_NAME, REFERENCE_NAME))
        if not ours and any(next(path.glob(pattern), None) for pattern in FOREIGN_PATTERNS):
            raise UserError(f"{path} was not written by model2onnx.py: it has no {DEMO_NAME}; {FOREIGN_FILES}")
        if not path.is_dir():
            raise UserError(f"no model folder at {path}; write it first: python model2onnx.py --out-dir {path}")
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
            "output": (1, length, config.output_width),
            "hidden_states": (config.num_layers + 1, length, config.hidden_size),
            "mask_positions": (values["mask_positions"].size,),
        }
        for key, shape in shapes.items():
            if values[key].shape != shape:
                raise UserError(f"{path}: {key} is {list(values[key].shape)}, expected {list(shape)}; {NOT_TOGETHER}")
        positions = values["mask_positions"]
        if (positions.size > 0) != config.has_head or ((positions < 0) | (positions >= length)).any():
            wanted = f"positions from 0 to {length - 1}" if config.has_head else "none, since the model has no head"
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
