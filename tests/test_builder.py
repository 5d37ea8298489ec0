"""builder.py and onnx2trt.py: both networks say what PyTorch says."""

import json
import shutil
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Script, make_checkpoint
from transformers import BertForMaskedLM

import builder
import model2onnx
import onnx2trt
from common import UserError
from model_files import INPUT_NAMES, ModelFolder
from network_runner import NetworkRunner
from pipeline import TOLERANCES, relative_l2
from trt_helper import TrtLog, check_plan


def api_runner(folder, precision="fp32", gelu=None, **options):
    bert = builder.assemble(ModelFolder(folder), TrtLog(), precision, gelu)
    return NetworkRunner(bert.network, known=bert.known, **options), bert


def parser_runner(folder, precision="fp32"):
    parsed = onnx2trt.parse(ModelFolder(folder), precision, TrtLog())
    return NetworkRunner(parsed.network, known=parsed.known), parsed


RUNNERS = {"api": api_runner, "parser": parser_runner}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("way", ["api", "parser"])
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_network_equals_pytorch_at_any_length(model_dir, checkpoint, way, precision, length):
    model: Any = BertForMaskedLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    generator = np.random.default_rng(length)
    inputs = {
        "input_ids": generator.integers(0, model.config.vocab_size, (1, length)),
        "token_type_ids": generator.integers(0, 2, (1, length)),
        "position_ids": generator.permutation(64)[None, :length].copy(),
    }
    with torch.inference_mode():
        reference = model(**{name: torch.from_numpy(ids) for name, ids in inputs.items()}).logits.numpy()
    runner, _owner = RUNNERS[way](model_dir, precision)
    output = runner.run(inputs)["logit"]
    assert output.dtype == torch.float32
    assert output.shape == reference.shape
    assert relative_l2(output.numpy(), reference) <= TOLERANCES[precision]


@pytest.mark.parametrize("way", ["api", "parser"])
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations_and_an_untied_decoder(tmp_path, way, activation):
    source = make_checkpoint(tmp_path / "source", hidden_act=activation, tie_word_embeddings=False)
    model2onnx.export(str(source), model2onnx.DEFAULT_TEXT, tmp_path / "out")
    demo = ModelFolder(tmp_path / "out").demo()
    runner, _owner = RUNNERS[way](tmp_path / "out")
    assert relative_l2(runner.run(demo.inputs)["logit"].numpy(), demo.output) <= 1e-5


@pytest.mark.parametrize("way", ["api", "parser"])
def test_a_checkpoint_without_a_head(tmp_path, way):
    source = make_checkpoint(tmp_path / "source", head=False)
    model2onnx.export(str(source), "paris", tmp_path / "out")
    demo = ModelFolder(tmp_path / "out").demo()
    runner, _owner = RUNNERS[way](tmp_path / "out")
    answer = runner.run(demo.inputs)
    assert list(answer) == ["last_hidden_state"]
    assert answer["last_hidden_state"].shape == (1, demo.inputs["input_ids"].shape[1], 128)
    assert relative_l2(answer["last_hidden_state"].numpy(), demo.output) <= 1e-5


def test_decomposed_gelu_is_the_erf_gelu_in_elementary_layers(model_dir):
    demo = ModelFolder(model_dir).demo()
    runner, bert = api_runner(model_dir, gelu="decomposed")
    assert relative_l2(runner.run(demo.inputs)["logit"].numpy(), demo.output) <= 1e-5
    assert len(bert.gelu_parts) == 5 * 3  # two encoder layers and the head
    names = {bert.network.get_layer(index).name for index in range(bert.network.num_layers)}
    assert set(bert.gelu_parts) <= names


def test_tanh_gelu_is_another_function(model_dir):
    demo = ModelFolder(model_dir).demo()
    runner, _owner = api_runner(model_dir, gelu="tanh")
    assert relative_l2(runner.run(demo.inputs)["logit"].numpy(), demo.output) > 1e-5


def test_layers_carry_the_names_of_modules(model_dir):
    _, bert = api_runner(model_dir)
    names = {bert.network.get_layer(index).name for index in range(bert.network.num_layers)}
    for expected in (
        "bert.embeddings.LayerNorm",
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.1.output.LayerNorm",
        "cls.predictions.decoder",
    ):
        assert expected in names
    assert not [name for name in names if name.startswith("(Unnamed")]


def test_layer_norm_and_softmax_compute_in_fp32_in_an_fp16_network(model_dir):
    _, bert = api_runner(model_dir, "fp16")
    types = {
        layer.name: (layer.type.name, layer.get_output(0).dtype.name)
        for layer in (bert.network.get_layer(index) for index in range(bert.network.num_layers))
    }
    wide = [dtype for kind, dtype in types.values() if kind in ("NORMALIZATION", "SOFTMAX")]
    assert wide == ["FLOAT"] * (2 * 2 + 2 + 2)
    products = [dtype for kind, dtype in types.values() if kind == "MATRIX_MULTIPLY"]
    assert products == ["HALF"] * (2 * 8 + 2)


@pytest.mark.parametrize("way", ["api", "parser"])
def test_large_residuals_do_not_overflow_fp16(tmp_path, way):
    """The residual sum is where trained models have their largest values; 2 x 40000 is no fp16 number."""
    source = make_checkpoint(tmp_path / "source")
    model: Any = BertForMaskedLM.from_pretrained(source)
    bert = model.bert
    with torch.no_grad():
        for norm in (bert.embeddings.LayerNorm, *(layer.attention.output.LayerNorm for layer in bert.encoder.layer)):
            norm.bias[5] = 40000.0
        for layer in bert.encoder.layer:
            layer.attention.output.dense.bias[5] = layer.output.dense.bias[5] = 40000.0
            layer.output.LayerNorm.bias[5] = 40000.0
            attention = layer.attention.self
            for reader in (attention.query, attention.key, attention.value, layer.intermediate.dense):
                reader.weight[:, 5] = 0.0  # nobody reads the large value, it only passes through the sums
        model.cls.predictions.transform.dense.weight[:, 5] = 0.0
    model.save_pretrained(source)
    model2onnx.export(str(source), model2onnx.DEFAULT_TEXT, tmp_path / "out")
    demo = ModelFolder(tmp_path / "out").demo()
    runner, _owner = RUNNERS[way](tmp_path / "out", "fp16")
    output = runner.run(demo.inputs)["logit"].numpy()
    if way == "api":
        assert relative_l2(output, demo.output) <= TOLERANCES["fp16"]
    else:  # the plain conversion has no such care: this is what the API path is for
        assert not np.isfinite(output).all()


def test_a_weight_that_does_not_fit_fp16_is_named(tmp_path, model_dir):
    source = make_checkpoint(tmp_path / "source")
    model: Any = BertForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 4] = 70000.0
    model.save_pretrained(source)
    model2onnx.export(str(source), model2onnx.DEFAULT_TEXT, tmp_path / "out")
    for runner in RUNNERS.values():
        with pytest.raises(UserError, match=r"'bert\.encoder\.layer\.1\.output\.dense\.weight'.*70000.*HALF.*bf16"):
            runner(tmp_path / "out", "fp16")


@pytest.mark.parametrize("name", ["builder.py", "onnx2trt.py"])
def test_script_builds_a_plan_and_says_so_in_json(script: Script, model_dir, tmp_path, name):
    plan, result = tmp_path / "made" / "bert.plan", tmp_path / "result.json"
    done = script(name, "--model-dir", model_dir, "--plan", plan, "--json", result, "--precision", "fp16")
    assert done.returncode == 0, done.stderr
    said = json.loads(result.read_text())
    assert said["precision"] == "fp16"
    assert said["executed_by"] in ("tensorrt", "pytorch")
    assert said["plan_bytes"] == plan.stat().st_size == len(check_plan(plan))
    assert 0 < said["rel_l2"] <= said["tolerance"] == 5e-3
    assert said["top1_same"] is True
    assert len(said["top10"]) == 10
    assert said["num_layers"] > 50
    assert said["seconds_network"] > 0 < said["seconds_build"]
    assert said["tensorrt"].split()[0] in ("tensorrt", "tensorrt_rtx")
    if said["executed_by"] == "pytorch":
        assert "run by PyTorch" in done.stdout
        assert said["not_executed_because"]


def test_a_result_out_of_tolerance_is_exit_code_1(script: Script, model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    demo = dict(np.load(folder / "demo_io.npz"))
    demo["output"] = demo["output"] * 1.001
    np.savez(folder / "demo_io.npz", **demo)
    done = script("builder.py", "--model-dir", folder)
    assert done.returncode == 1
    assert "NO" in done.stdout


def test_a_nan_is_out_of_tolerance(script: Script, model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("bert."))
    place = {entry.key: entry.value for entry in weight.external_data}
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[int(place["offset"]) : int(place["offset"]) + 4] = np.float32(np.nan).tobytes()
    (folder / "model.onnx.data").write_bytes(data)
    done = script("builder.py", "--model-dir", folder)
    assert done.returncode == 1
    assert weight.name in done.stderr
    assert "not finite" in done.stderr


def test_compare_layers_names_the_first_wrong_layer(script: Script, model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    demo = dict(np.load(folder / "demo_io.npz"))
    demo["hidden_states"][1] += 0.01  # as if PyTorch had seen something else after the first encoder layer
    np.savez(folder / "demo_io.npz", **demo)
    result = tmp_path / "result.json"
    done = script("builder.py", "--model-dir", folder, "--compare-layers", "--json", result)
    assert done.returncode == 1
    assert json.loads(result.read_text())["within_tolerance"] is False
    assert "first layer out of tolerance (1e-05): bert.encoder.layer.0.output.LayerNorm" in done.stdout


def test_compare_layers_agrees(script: Script, model_dir, tmp_path):
    done = script("builder.py", "--model-dir", model_dir, "--plan", tmp_path / "p.plan", "--compare-layers")
    assert done.returncode == 0, done.stderr
    assert "out of tolerance" not in done.stdout


def test_verbose_decomposed_says_what_became_of_the_layers(script: Script, model_dir, tmp_path):
    plan = tmp_path / "p.plan"
    done = script("builder.py", "--model-dir", model_dir, "--plan", plan, "--gelu", "decomposed", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "What became of 15 decomposed GELU layers" in done.stdout
    assert (tmp_path / "p.log").stat().st_size > 1000


WRONG = [
    (["--precision", "int3"], 2, "invalid choice: 'int3'"),
    (["--gelu", "swish"], 2, "invalid choice: 'swish'"),
    (["--seq-len", "1,2"], 2, "'1,2' is not three whole numbers MIN,OPT,MAX"),
    (["--seq-len", "9,5,20"], 2, "expected 1 <= MIN <= OPT <= MAX"),
    (["--seq-len", "1,8,65"], 1, "maximum 65 is more than the 64 positions"),
    (["--compute-capability", "eight"], 2, "'eight' is no compute capability; expected e.g. 8.6"),
    (["--compute-capability", "3.5"], 1, "--compute-capability 3.5: not a target of"),
    (["--model-dir", "nowhere"], 1, "no model folder at nowhere; write it first: python model2onnx.py"),
    (["--plan", "/proc/none/x.plan"], 1, "/proc/none"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_wrong_options(script: Script, model_dir, tmp_path, arguments, code, message):
    model = [] if "--model-dir" in arguments else ["--model-dir", model_dir]
    plan = [] if "--plan" in arguments else ["--plan", tmp_path / "p.plan"]
    done = script("builder.py", *model, *plan, *arguments)
    assert done.returncode == code
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.plan"))


def test_a_sequence_longer_than_the_profile_is_refused_when_run(script: Script, model_dir, tmp_path):
    done = script("builder.py", "--model-dir", model_dir, "--plan", tmp_path / "p.plan", "--seq-len", "1,2,3")
    assert done.returncode == 1
    assert "outside the plan's profile [1, 1] to [1, 3]" in done.stderr
    assert "--seq-len MIN,OPT,MAX" in done.stderr


@pytest.mark.parametrize("name", ["builder.py", "onnx2trt.py"])
def test_a_damaged_onnx_file(script: Script, model_dir, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:500])
    done = script(name, "--model-dir", folder)
    assert done.returncode == 1
    assert "model.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrongly_shaped_weight_is_named(model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 512}))
    with pytest.raises(
        UserError, match=r"layer\.0\.intermediate\.dense\.weight.*\[128, 256\], expected.*\[128, 512\]"
    ):
        builder.assemble(ModelFolder(folder), TrtLog())


def test_input_names(model_dir):
    runner, _ = api_runner(model_dir)
    assert tuple(runner.input_names) == INPUT_NAMES
