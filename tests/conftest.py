"""What tests share: a small random checkpoint, and its exported folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer

import builder
import model2onnx
from bert_trt.console import run_script
from bert_trt.model_files import ModelFolder
from bert_trt.options import DEFAULT_TEXT
from bert_trt.quantization import Product
from bert_trt.tensorrt_log import TrtLog

ROOT = Path(__file__).parent.parent
# How long an example takes says something of the machine, which others may be using, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# Where several processes run tests, each leaves the others their cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of scripts that tests start
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the capital of france , contains eiffel tower . paris lyon nice london rome a b c d e".split()


def make_checkpoint(folder: Path, head: bool = True, seed: int = 0, weights: float = 0.15, **sizes: object) -> Path:
    """Saves a random BERT: 2 layers, hidden size 128, 2 heads of 64, all parameters different from zero and one.

    ``weights`` is their standard deviation; the smaller, the less errors of 8 bits grow from layer to layer.
    """
    vocabulary = (
        SPECIAL + WORDS + [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + list("fghijklmnopqrstuvwxyz")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    options = {
        "vocab_size": len(vocabulary),
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 64,
    } | sizes
    config = BertConfig(**options)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(seed)
    model = BertForMaskedLM(config) if head else BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if "LayerNorm" in name else weights
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, spread)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random masked language model in Hugging Face layout."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def model_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What model2onnx.py makes of it. Tests that change files copy it first."""
    folder = tmp_path_factory.mktemp("model")
    model2onnx.quiet_libraries()
    model2onnx.export(str(checkpoint), DEFAULT_TEXT, folder)
    return folder


@pytest.fixture(scope="session")
def small_weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a checkpoint with small weights, which 8 bits leave well within what is accepted."""
    folder = tmp_path_factory.mktemp("small_weights")
    model2onnx.quiet_libraries()
    model2onnx.export(str(make_checkpoint(folder / "checkpoint", weights=0.05)), DEFAULT_TEXT, folder / "model")
    return folder / "model"


Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs one of the project's scripts as a user does; there is no network and no model hub."""

    def run(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        variables = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")} | environment
        return subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


@dataclass(frozen=True)
class Ended:
    """What a script left: exit code, standard output and standard error."""

    code: object
    out: str
    err: str


InProcess = Callable[..., Ended]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """Runs a script's ``main`` with arguments as a user's call does, without importing PyTorch once more."""

    def run(main: Callable[[], int], *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_script(main)
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    return run


SENTENCES = """The capital of France contains the Eiffel tower .
paris , lyon , nice .
london a b c d e
rome
the tower of london
the capital , the capital , the capital of rome
e d c b a
nice tower
lyon contains the the tower .
a b c paris d e france of
eiffel , london .
capital of the tower of the capital
"""


@pytest.fixture
def sentence_file(tmp_path: Path) -> Path:
    """Twelve sentences in the random checkpoint's vocabulary, of different lengths."""
    (tmp_path / "sentences.txt").write_text(SENTENCES)
    return tmp_path / "sentences.txt"


def encoder_products(folder: ModelFolder) -> list[Product]:
    """All products of the model's encoder, in the order of computation."""
    return builder.assemble(folder, TrtLog(), batching="padded").products
