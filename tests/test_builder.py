"""builder.py and onnx2trt.py: both networks say what PyTorch says."""

import json
import math
import os
import shutil
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import InProcess, Script, encoder_products, make_checkpoint
from plugin_build_for_tests import built_plugins
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

import builder
import demo
import model2onnx
import onnx2trt
from bert_trt import fusion as fusion_module
from bert_trt import pipeline, plan, tensorrt_product
from bert_trt.calibration import CalibrationContext, calibrate, quantization_of
from bert_trt.calibration_data import read_data
from bert_trt.comparison import relative_l2
from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.model_files import INPUT_NAMES, MASK_NAME, ModelFolder
from bert_trt.network_runner import NetworkRunner, read_layer
from bert_trt.options import (
    DEFAULT_DATA,
    DEFAULT_TEXT,
    GROUPS,
    LINEAR_GROUPS,
    TOLERANCES,
    CalibrationSettings,
    SequenceRange,
)
from bert_trt.plan import BuildOptions, build_plan, check_plan
from bert_trt.quantization import (
    MEASURABLE_BYTES,
    Quantization,
    check_quantized,
    in_groups,
    inspect,
)
from bert_trt.sentences import load_tokenizer
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt


def api_runner(folder, precision="fp32", gelu=None, **options):
    bert = builder.assemble(ModelFolder(folder), TrtLog(), precision, gelu)
    return NetworkRunner(bert.network, contents=bert.contents, **options), bert


def parser_runner(folder, precision="fp32"):
    parsed = onnx2trt.parse(ModelFolder(folder), precision, TrtLog())
    return NetworkRunner(parsed.network, contents=parsed.contents), parsed


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
    model2onnx.export(str(source), DEFAULT_TEXT, tmp_path / "out")
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


@pytest.fixture(scope="module")
def small_variances(tmp_path_factory):
    """Embeddings that hardly vary: before the first layer norm the variance of a row is about 1e-9."""
    source = make_checkpoint(tmp_path_factory.mktemp("source"), head=False)
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("_embeddings.weight"):
            weight.mul_(1e-4)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path_factory.mktemp("out")
    model2onnx.quiet_libraries()
    model2onnx.export(str(source), "the capital of france", folder)
    return folder


@pytest.mark.parametrize("way", ["api", "parser"])
def test_rows_of_small_variance_are_normalised_with_the_checkpoints_epsilon(small_variances, way):
    folder = ModelFolder(small_variances)
    demo = folder.demo()
    weights = folder.weights()
    tables = [("word", folder.config.vocab_size), ("position", 64), ("token_type", 2)]
    rows = [
        weights.get(f"embeddings.{kind}_embeddings.weight", (count, 128))[ids[0]]
        for (kind, count), ids in zip(tables, (demo.inputs[INPUT_NAMES[place]] for place in (0, 2, 1)), strict=True)
    ]
    variances = np.sum(rows, axis=0).var(axis=-1)
    assert 1e-10 < variances.min() <= variances.max() < 1e-8  # an epsilon of 1e-6 would make other rows of them
    runner, _owner = RUNNERS[way](small_variances)
    answer = runner.run(demo.inputs)["last_hidden_state"].numpy()
    assert relative_l2(answer, demo.output) <= 1e-5


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_parsers_softmax_computes_in_fp32(model_dir, precision):
    """In the parsed network, and by numbers: each row of probabilities sums to 1 as fp32 does, not as fp16."""
    parsed = onnx2trt.parse(ModelFolder(model_dir), precision, TrtLog())
    layers = [read_layer(parsed.network, index) for index in range(parsed.network.num_layers)]
    softmaxes = [layer for kind, layer in layers if kind == "SOFTMAX"]
    assert len(softmaxes) == 2
    for layer in softmaxes:
        assert layer.get_input(0).dtype == layer.get_output(0).dtype == trt.DataType.FLOAT
    names = [layer.get_output(0).name for layer in softmaxes]
    demo = ModelFolder(model_dir).demo()
    for probabilities in (
        NetworkRunner(parsed.network, outputs=names, contents=parsed.contents).run(demo.inputs).values()
    ):
        sums = probabilities.double().sum(-1)
        assert (sums - 1).abs().max() <= 1e-6


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
    model2onnx.export(str(source), DEFAULT_TEXT, tmp_path / "out")
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
    model2onnx.export(str(source), DEFAULT_TEXT, tmp_path / "out")
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


def test_another_gelu_of_a_checkpoint_without_one(in_process: InProcess, tmp_path):
    source = make_checkpoint(tmp_path / "relu", hidden_act="relu")
    model2onnx.export(str(source), DEFAULT_TEXT, tmp_path / "out")
    done = in_process(builder.main, "--model-dir", tmp_path / "out", "--gelu", "erf")
    assert done.code == 1
    assert "--gelu has no effect: the checkpoint's activation is relu" in done.err
    assert not list((tmp_path / "out").glob("*.plan"))


def test_a_plan_that_does_not_take_the_sentence_is_compared_with_others(script: Script, model_dir, tmp_path):
    done = script("builder.py", "--model-dir", model_dir, "--plan", tmp_path / "p.plan", "--seq-len", "1,2,3")
    assert done.returncode == 0, done.stderr
    told = "the sentence has 14 tokens and does not fit the plan, which takes 1 to 3 tokens; other sequences of"
    assert told in " ".join(done.stdout.split())


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
        UserError, match=r"layer\.0\.intermediate\.dense\.weight.*\[256, 128\], expected.*\[512, 128\]"
    ):
        builder.assemble(ModelFolder(folder), TrtLog())


def test_input_names(model_dir):
    runner, _ = api_runner(model_dir)
    assert tuple(runner.input_names) == INPUT_NAMES


# --- int8 and fp8 -----------------------------------------------------------------------------------------


def quantization_for(folder, sentences, kind, groups=LINEAR_GROUPS, smoothing=None) -> Quantization:
    data = read_data(folder, sentences, 12, 0)
    subject = CalibrationContext(
        folder, encoder_products(folder), data.calibration, data.path, builder.assemble, TrtLog(), "cpu"
    )
    made = calibrate(subject, CalibrationSettings(kind, sentences=12, groups=groups, smoothing=smoothing))
    return quantization_of(made, in_groups(encoder_products(folder), groups))


def constants_of(network, dtype) -> dict[str, np.ndarray]:
    """The constants of one type by name, as the network holds them."""
    layers = [read_layer(network, index) for index in range(network.num_layers)]
    return {
        layer.name: layer.weights
        for kind, layer in layers
        if kind == "CONSTANT" and layer.get_output(0).dtype == dtype and layer.weights.size > 1
    }


@pytest.mark.parametrize("smoothing", [None, 0.5])
@pytest.mark.parametrize("groups", [LINEAR_GROUPS, GROUPS, ("attention",), ("output", "qkv")])
def test_both_ways_quantize_the_same(model_dir, sentence_file, groups, smoothing):
    """The same integers and scales. Activations differ by fp16 roundings (the parser's way sums residuals in fp16),
    which moves some to the next integer: measured 0.03 between the ways, with an error of 0.05 in each."""
    folder = ModelFolder(model_dir)
    demo = folder.demo()
    quantization = quantization_for(folder, sentence_file, "int8", groups, smoothing)
    api = builder.assemble(folder, TrtLog(), "int8", quantization=quantization)
    parsed = onnx2trt.parse(folder, "int8", TrtLog(), quantization=quantization, products=encoder_products(folder))
    parts = [check_quantized(made.network, "int8", len(quantization.products)) for made in (api, parsed)]
    weights = [constants_of(made.network, trt.DataType.INT8) for made in (api, parsed)]
    linear = [one for one in encoder_products(folder) if one.name in quantization.products and one.weight_shape]
    assert len(weights[0]) == len(linear)
    for product in linear:
        ours = weights[0][f"{product.name}.weight"].reshape(product.weight_shape)
        theirs = weights[1][f"{product.name}.weight.quantized"].reshape(ours.T.shape).T  # stored as (in, out)
        assert ours.dtype == np.int8
        np.testing.assert_array_equal(ours, theirs)
    for part in parts:
        assert part.quantized_weights == sum(array.nbytes for array in weights[0].values())
    outputs = [
        NetworkRunner(one.network, contents=one.contents).run(demo.inputs)["logit"].numpy() for one in (api, parsed)
    ]
    errors = [relative_l2(output, demo.output) for output in outputs]
    assert max(errors) <= TOLERANCES["int8"]
    assert relative_l2(*outputs) <= max(errors)


def test_scales_of_activations_are_the_same_in_both_ways(model_dir, sentence_file):
    folder = ModelFolder(model_dir)
    quantization = quantization_for(folder, sentence_file, "int8", GROUPS)
    found = []
    for made in (
        builder.assemble(folder, TrtLog(), "int8", quantization=quantization),
        onnx2trt.parse(folder, "int8", TrtLog(), quantization=quantization, products=encoder_products(folder)),
    ):
        layers = [read_layer(made.network, index) for index in range(made.network.num_layers)]
        constants = {layer.get_output(0).name: layer for kind, layer in layers if kind == "CONSTANT"}
        scales = [constants[layer.get_input(1).name].weights.item() for kind, layer in layers if kind == "QUANTIZE"]
        found.append(sorted(scales))
    queries = sorted(value / 127 for name, value in quantization.ranges.items() if name.endswith(".scaled_query"))
    assert sorted(value / 127 for value in quantization.ranges.values()) == pytest.approx(found[0])
    rest = [sorted(set(scales) - set(some)) for scales, some in ((found[0], found[1]), (found[1], found[0]))]
    assert rest[0] == pytest.approx(queries)
    assert rest[1] == pytest.approx([value * folder.config.head_size**0.5 for value in queries])  # scaled later


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_no_zero_point_stands_beside_an_output_type(model_dir, sentence_file, monkeypatch, kind):
    """The parsers of TensorRT 10 refuse a DequantizeLinear that has both."""
    parsed = []
    parser = trt.OnnxParser

    class Listening:
        def __init__(self, network, logger):
            self.parser = parser(network, logger)

        def parse(self, model, path):
            parsed.append(onnx.ModelProto.FromString(model))
            return self.parser.parse(model, path)

    monkeypatch.setattr(trt, "OnnxParser", Listening)
    folder = ModelFolder(model_dir)
    quantization = quantization_for(folder, sentence_file, kind, GROUPS)
    onnx2trt.parse(folder, kind, TrtLog(), quantization=quantization, products=encoder_products(folder))
    (graph,) = (model.graph for model in parsed)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    narrow = onnx.helper.np_dtype_to_tensor_dtype(ELEMENT_TYPES[kind].numpy)
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(dequantized) > len(quantized) > 0
    for node in dequantized:
        assert [attribute.i for attribute in node.attribute if attribute.name == "output_dtype"] == [
            onnx.TensorProto.FLOAT16
        ]
        assert len(node.input) == 2, node.name
    for node in quantized:
        assert constants[node.input[2]].data_type == narrow  # the one place that says the type
        assert not [attribute for attribute in node.attribute if attribute.name == "output_dtype"]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_padded_batch_quantized_gives_what_single_sentences_give(model_dir, sentence_file, kind):
    folder = ModelFolder(model_dir)
    quantization = quantization_for(folder, sentence_file, kind, smoothing=0.5)
    inputs = dict(folder.demo().inputs)
    outputs = []
    for batching in ("single", "padded"):
        made = builder.assemble(folder, TrtLog(), kind, batching=batching, quantization=quantization)
        outputs.append(NetworkRunner(made.network, contents=made.contents).run(inputs)["logit"][0].numpy())
        inputs[MASK_NAME] = np.ones_like(inputs["input_ids"])
    assert relative_l2(*outputs) <= 5e-3


def kinds_of(network) -> list[str]:
    return [read_layer(network, index)[0] for index in range(network.num_layers)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_parser_makes_tensorrts_own_attention(model_dir, sentence_file, tmp_path, precision):
    folder, log = ModelFolder(model_dir), TrtLog()
    demo = folder.demo()
    quantization = quantization_for(folder, sentence_file, "int8", LINEAR_GROUPS) if precision == "int8" else None
    parsed = onnx2trt.parse(
        folder, precision, log, quantization=quantization, fusion="tensorrt", products=encoder_products(folder)
    )
    kinds = kinds_of(parsed.network)
    assert kinds.count("ATTENTION_INPUT") == kinds.count("ATTENTION_OUTPUT") == folder.config.num_layers
    assert "SOFTMAX" not in kinds
    output = NetworkRunner(parsed.network, contents=parsed.contents).run(demo.inputs)["logit"].numpy()
    assert relative_l2(output, demo.output) <= TOLERANCES[precision]
    options = BuildOptions(SequenceRange(1, 8, 64))
    assert build_plan(parsed.builder, parsed.network, log, options, tmp_path / "p.plan").num_bytes > 0


def test_attention_in_one_layer_through_the_parser_is_not_int8(in_process: InProcess, small_weights_dir, tmp_path):
    arguments = [
        "--model-dir",
        small_weights_dir,
        "--plan",
        tmp_path / "p.plan",
        "--fusion",
        "tensorrt",
        "--precision",
        "int8",
    ]
    ended = in_process(onnx2trt.main, *arguments, "--quantize", "qkv,attention")
    assert ended.code == 1
    assert "leave attention out, or build with --fusion none" in " ".join(ended.err.split())
    ended = in_process(onnx2trt.main, *arguments, "--json", tmp_path / "r.json")
    assert ended.code == 0
    assert json.loads((tmp_path / "r.json").read_text())["fused"] == ["Attention"]


@pytest.fixture(scope="module")
def mid_size(tmp_path_factory) -> ModelFolder:
    """Large enough that the plan's size shows how wide the weights are: 21 million of them can be quantized."""
    place = tmp_path_factory.mktemp("mid")
    sizes: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
    }
    source = make_checkpoint(place / "source", **sizes)
    model2onnx.quiet_libraries()
    model2onnx.export(str(source), "paris [MASK]", place / "out")
    return ModelFolder(place / "out")


@pytest.mark.parametrize("way", ["api", "parser"])
def test_a_plan_is_smaller_by_a_byte_for_each_quantized_weight(mid_size, tmp_path, way):
    products = in_groups(encoder_products(mid_size), LINEAR_GROUPS)
    ranges = {tensor: 6.0 for product in products for tensor in product.activations}
    names = frozenset(product.name for product in products)
    count = sum(math.prod(product.weight_shape or ()) for product in products)
    assert count == 3 * 12 * 768**2 > MEASURABLE_BYTES
    sizes = {}
    for kind in ("fp16", "int8", "fp8"):
        quantization = None if kind == "fp16" else Quantization(kind, names, ranges)
        log = TrtLog()
        if way == "api":
            made = builder.assemble(mid_size, log, kind, quantization=quantization)
        else:
            made = onnx2trt.parse(mid_size, kind, log, quantization=quantization, products=encoder_products(mid_size))
        options = BuildOptions(SequenceRange(1, 2, 8))
        sizes[kind] = build_plan(made.builder, made.network, log, options, tmp_path / "p.plan").num_bytes
        parts = inspect(made.network)
        assert parts.quantized_weights == (0 if quantization is None else count)
        assert parts.plan_has_quantized_weights(sizes[kind]) is (None if quantization is None else True)
        assert parts.plan_has_quantized_weights(sizes["fp16"]) is (None if quantization is None else False)
    for kind in ("int8", "fp8"):  # scales, and the code of other kernels, are the rest
        assert sizes["fp16"] - sizes[kind] == pytest.approx(count, abs=1e6)


SOME = [line for line in DEFAULT_DATA.read_text().splitlines()[::8] if len(line.split()) <= 20][:32]


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "some.txt").write_text("\n".join(SOME) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_bundled_checkpoint_in_both_ways(in_process: InProcess, monkeypatch, demo_dir, kind):
    monkeypatch.setattr(demo, "run_with_plugins", lambda args: None)  # test_demo.py has it
    options = ["--calibration-data", demo_dir / "some.txt", "--calibration-sentences", 24, "--smooth", "off"]
    result = demo_dir / "result.json"
    done = in_process(demo.main, "--model-dir", demo_dir, "--precision", kind, "--json", result, *options)
    assert done.code == 0, done.out + done.err
    assert "model, sentences and settings are the same" in done.err  # the second way takes the first one's ranges
    for said in json.loads(result.read_text()):
        assert said["rel_l2"] <= said["tolerance"] == 5e-2
        assert said["quantized_parts"]["quantized_products"] == 12 * 6 == len(said["quantized"]["quantized_products"])
        assert said["quantized_parts"]["products"] == 12 * 8 + 2
        assert said["quantized_parts"]["quantized_weights"] == 12 * 12 * 128**2
        assert said["quantized"]["change"]["sentences"] == 8
        assert said["quantized"]["change"]["rel_l2"] <= 5e-2
        told = f"{said['way']}: 72 of 98 products have both factors in {kind}; their weights take 2.36 MB at 1 byte"
        assert told in done.out
    assert f"{kind} against fp32 on 8 sentences not used for calibration" in done.out


def short_options(sentence_file, *more) -> list[Any]:
    return ["--calibration-data", sentence_file, "--calibration-sentences", 6, "--smooth", "off", *more]


def test_an_int8_plan_from_the_script_and_max_error(in_process: InProcess, model_dir, sentence_file, tmp_path):
    result, plan = tmp_path / "r.json", tmp_path / "b.plan"
    common = ["--model-dir", model_dir, "--plan", plan, "--json", result, "--precision", "int8"]
    done = in_process(builder.main, *common, *short_options(sentence_file))
    assert done.code in (0, 1), done.err  # six sentences are few
    first = json.loads(result.read_text())
    assert len(check_plan(plan)) == first["plan_bytes"]
    target = 0.7 * first["quantized"]["change"]["rel_l2"]

    done = in_process(builder.main, *common, *short_options(sentence_file, "--max-error", target))
    assert done.code == 0, done.err
    assert "model, sentences and settings are the same" in done.err  # ranges do not depend on --max-error
    second = json.loads(result.read_text())
    returned = [name for name, _ in second["quantized"]["returned_to_fp16"]]
    assert 0 < len(returned) < 12
    assert second["quantized"]["change"]["rel_l2"] <= target
    assert not set(returned) & set(second["quantized"]["quantized_products"])
    assert second["quantized_parts"]["quantized_products"] == 12 - len(returned)
    assert f"{12 - len(returned)} of 18" in done.out
    assert all(name in done.out for name in returned)


def test_int8_out_of_tolerance_is_exit_code_1(in_process: InProcess, model_dir, sentence_file, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    values = dict(np.load(folder / "demo_io.npz"))
    values["output"] = values["output"] * 1.2
    np.savez(folder / "demo_io.npz", **values)
    done = in_process(builder.main, "--model-dir", folder, "--precision", "int8", *short_options(sentence_file))
    assert done.code == 1
    assert "NO" in done.out
    assert (folder / "calibration.json").is_file()


WRONG_QUANTIZATION = [
    (["--precision", "int8", "--max-error", "0"], 2, "'0': expected a number greater than 0, such as 0.02"),
    (["--precision", "int8", "--quantize", "all"], 2, "'all' is none of qkv"),
    (["--precision", "int8", "--smooth", "2"], 2, "expected off, auto, or a number from 0 to 1"),
    (["--precision", "int8", "--calibration-data", "no.txt"], 1, "cannot read no.txt"),
    (["--precision", "fp8", "--calibration", "entropy"], 1, "choose max, percentile or mse"),
    (["--precision", "int8", "--max-error", "1e-7"], 1, "--max-error 1e-07 cannot be met: with everything in fp16"),
]


@pytest.mark.parametrize("main", [builder.main, onnx2trt.main], ids=["builder.py", "onnx2trt.py"])
@pytest.mark.parametrize(("arguments", "code", "message"), WRONG_QUANTIZATION)
def test_wrong_quantization_options(
    in_process: InProcess, model_dir, sentence_file, tmp_path, main, arguments, code, message
):
    options = ["--model-dir", model_dir, "--plan", tmp_path / "p.plan", *short_options(sentence_file)]
    done = in_process(main, *options, *arguments)
    assert done.code == code
    assert message in " ".join(done.err.split())
    assert not list(tmp_path.glob("*.plan"))


# --- what is said before the long work ----------------------------------------------------------------------


def ends_here(where: str):
    def end(*_arguments, **_options):
        raise UserError(f"ended in {where}")

    return end


@pytest.mark.parametrize("main", [builder.main, onnx2trt.main], ids=["builder.py", "onnx2trt.py"])
def test_missing_bindings_are_told_before_the_build(in_process: InProcess, model_dir, tmp_path, monkeypatch, main):
    monkeypatch.setattr(pipeline, "warn_of_missing_bindings", ends_here("the warning"))
    monkeypatch.setattr(plan, "build_plan", ends_here("the build"))
    done = in_process(main, "--model-dir", model_dir, "--plan", tmp_path / "p.plan")
    assert "ended in the warning" in done.err


@pytest.mark.parametrize(
    ("is_rtx", "capability", "told"),
    [
        (True, None, "does not execute there"),
        (True, (9, 0), "does not execute there"),
        (True, (8, 9), "does not execute there"),
        (False, (8, 9), "this GPU is 8.9"),
        (False, (12, 0), "this GPU is 12.0"),
        (False, (9, 0), None),
        (False, None, None),
    ],
)
def test_the_linear_plugin_off_hopper_is_a_warning(
    in_process: InProcess, model_dir, tmp_path, monkeypatch, is_rtx, capability, told
):
    monkeypatch.setattr(fusion_module, "IS_RTX", is_rtx)
    monkeypatch.setattr(fusion_module, "gpu_capability", lambda: capability)
    monkeypatch.setattr(builder, "assemble", ends_here("assemble"))
    options = ["--model-dir", model_dir, "--plan", tmp_path / "p.plan"]
    done = in_process(builder.main, *options, "--fusion", "all", "--precision", "fp16")
    assert "ended in assemble" in done.err
    if told is None:
        assert "warning" not in done.err
    else:
        assert "warning: --fusion all: the Linear plugin has been measured" in done.err
        err = done.err.replace(f"{tensorrt_product.describe()} ", "")
        assert f"compute capability 9.0 (Hopper) only, and {told}" in err
    for fusion, precision in (("plugins", "fp16"), ("none", "fp16"), ("all", "fp32")):  # none has the Linear plugin
        done = in_process(builder.main, *options, "--fusion", fusion, "--precision", precision)
        assert "ended in assemble" in done.err
        assert "warning" not in done.err


@pytest.mark.parametrize(
    ("here", "given", "told"),
    [
        ((8, 6), (), "8.6"),
        ((7, 5), (), "7.5"),
        ((9, 0), ("--compute-capability", "8.6"), "8.6"),
        ((8, 9), (), None),
        ((12, 0), (), None),
        (None, (), None),
    ],
)
def test_fp8_for_a_gpu_that_has_none_is_refused_before_the_calibration(
    in_process: InProcess, model_dir, tmp_path, monkeypatch, here, given, told
):
    monkeypatch.setattr(pipeline, "gpu_capability", lambda: here)
    monkeypatch.setattr(pipeline, "warn_of_missing_bindings", lambda: None)
    monkeypatch.setattr(builder, "assemble", ends_here("assemble"))
    options = ["--model-dir", model_dir, "--plan", tmp_path / "p.plan", *given]
    done = in_process(builder.main, *options, "--precision", "fp8")
    if told is None:
        assert "ended in assemble" in done.err
    else:
        assert done.code == 1
        assert f"--precision fp8: GPUs of compute capability {told} do not multiply fp8; those from 8.9" in done.err
    assert "ended in assemble" in in_process(builder.main, *options, "--precision", "fp16").err


# --- names that are no UTF-8 ------------------------------------------------------------------------------


@pytest.fixture
def bad_name(tmp_path):
    """A folder that Python knows by a name with a surrogate, as every non-ASCII name in an ASCII locale."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("builder.py", ["--batching", "packed", "--sentences", "s.txt", "--predictions", "f.jsonl"]),
        ("onnx2trt.py", ["--verbose", "--precision", "fp16"]),
    ],
)
def test_folders_and_files_may_have_names_that_are_no_utf8(script, model_dir, bad_name, name, options):
    shutil.copytree(model_dir, bad_name / "out")
    (bad_name / "s.txt").write_bytes(b"the capital of [MASK]\nno mask\n")
    options = [str(bad_name / option) if "." in option else option for option in options]
    done = script(
        name, "--model-dir", bad_name / "out", "--plan", bad_name / "p.plan", "--json", bad_name / "j.json", *options
    )
    assert done.returncode == 0, done.stderr
    assert (bad_name / "p.plan").stat().st_size > 0
    assert json.loads((bad_name / "j.json").read_text())["plan"] == str(bad_name / "p.plan")
    if name == "builder.py":
        records = [json.loads(line) for line in (bad_name / "f.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(records[0]["prediction"][0]) == 10
        assert records[1]["error"].startswith(f"{bad_name / 's.txt'}, line 2: no [MASK]")


def test_a_plugin_library_may_lie_in_a_folder_that_is_no_utf8(bad_name, model_dir, script):
    folder = bad_name / "plugins"
    folder.mkdir()
    for library in built_plugins().glob("*.so"):
        shutil.copy(library, folder)
    options = ("--model-dir", model_dir, "--plan", bad_name / "p.plan", "--layer-norm", "fast")
    done = script("onnx2trt.py", *options, BERT_PLUGINS_BUILD_DIR=str(folder))
    assert done.returncode == 0, done.stderr


def test_the_output_folder_may_have_a_name_that_is_no_utf8(checkpoint, bad_name):
    model2onnx.export(str(checkpoint), DEFAULT_TEXT, bad_name / "out")
    assert len(load_tokenizer(ModelFolder(bad_name / "out"))) == ModelFolder(bad_name / "out").config.vocab_size
    assert sorted(path.name for path in bad_name.iterdir()) == ["out"]


def test_a_checkpoint_in_a_folder_that_is_no_utf8_is_refused_with_the_remedy(checkpoint, bad_name):
    shutil.copytree(checkpoint, bad_name / "checkpoint")
    with pytest.raises(UserError, match="the safetensors library reads no path that is not valid UTF-8; rename the"):
        model2onnx.load_checkpoint(str(bad_name / "checkpoint"))


def test_a_script_works_where_names_and_text_are_not_of_the_locale(tmp_path, checkpoint, script):
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = script(
        "model2onnx.py",
        *("--model", checkpoint, "--text", "caf\u00e9 [MASK]", "--out-dir", tmp_path / "caf\u00e9"),
        **environment,
    )
    assert done.returncode == 0, done.stderr
    assert ModelFolder(tmp_path / "caf\u00e9").demo().text == "caf\u00e9 [MASK]"
    assert "PyTorch fp32: caf\\xe9 [MASK]" in done.stdout
