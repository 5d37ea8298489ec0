"""A BERT of any size with random weights, in memory: for benchmarks that need no tokenizer and no files."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from bert_trt.model_files import BertConfig, ModelFolder, WeightFile
from bert_trt.options import HIDDEN_STATES

SPREAD = 0.02  # Hugging Face's initializer_range


class RandomWeights(WeightFile):
    """Weights from a seed. The same name and shape always give the same values.

    Args:
        seed: another seed gives other weights.
    """

    def __init__(self, seed: int) -> None:
        self.path = Path("random weights")
        self.seed = seed
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The weight ``name``, float32 of shape ``shape``, read-only: normal around 0, gamma around 1."""
        if name not in self._arrays:
            generator = np.random.default_rng((self.seed, zlib.crc32(name.encode())))
            values = generator.standard_normal(shape, np.float32) * np.float32(SPREAD)
            values += np.float32(name.endswith("LayerNorm.weight"))
            values.flags.writeable = False
            self._arrays[name] = values
        return self._arrays[name]


class RandomModel(ModelFolder):
    """Takes the place of a model folder for ``builder.assemble``; only ``config`` and ``weights`` can be used.

    Args:
        config: the model's sizes.
        seed: for the weights.
    """

    def __init__(self, config: BertConfig, seed: int = 0) -> None:
        self.path = Path("random model")
        self.config = config
        self._weights = RandomWeights(seed)

    def weights(self) -> RandomWeights:
        """The weights."""
        return self._weights


def random_config(
    layers: int, hidden: int, heads: int, vocabulary: int = 30522, task: str = HIDDEN_STATES
) -> BertConfig:
    """The sizes of a BERT with 512 positions, without a head unless ``task`` has one."""
    entries = {
        "model_type": "bert",
        "task": task,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }
    return BertConfig.from_dict(entries, "random model")


def open_model(path: Path | None) -> ModelFolder:
    """The model of a folder that model2onnx.py wrote; without a folder one of BERT-base size with random weights."""
    return RandomModel(random_config(12, 768, 12)) if path is None else ModelFolder(path)
