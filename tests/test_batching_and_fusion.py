"""builder.py with masks, batches, packed sentences and fused layers: every combination says what PyTorch says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoder_products, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import built_plugins
from test_predict import run_main
from transformers import BertForMaskedLM

import builder
import model2onnx
from benchmarks.partial_fusion import ALONE, OnlySkipLayerNorm
from bert_trt.comparison import relative_l2
from bert_trt.console import UserError
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.fusion import fused_layers
from bert_trt.inference import check_in_profile
from bert_trt.layers import tensorrt_attention
from bert_trt.layers.native import NativeLayers
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, ModelFolder
from bert_trt.network import DefinedNetwork
from bert_trt.network_proof import check_definition
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import (
    BATCHINGS,
    DEFAULT_TEXT,
    FUSED_LAYERS,
    FUSIONS,
    LINEAR_GROUPS,
    ONE_SEQUENCE,
    TOLERANCES,
    PlanOptions,
    SequenceRange,
)
from bert_trt.packing import Limits, check_batch, pack, pad, scatter
from bert_trt.pipeline import Task
from bert_trt.plan import BuildOptions, build_plan, check_plan, read_info
from bert_trt.quantization import (
    Quantization,
    in_groups,
    inspect,
    smoothing_factors,
)
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt
from plugins import build

POSITIONS = 64  # of the fixture's checkpoint
LENGTHS = (7, 64, 1, 33, 2, 16)  # one token, the whole position table, both sides of a power of two
PRODUCTS = {"none": 6, "tensorrt": 6, "plugins": 4, "all": 4}  # of a layer: plugins take Q, K and V from one
WITHOUT_PLUGINS = ("none", "tensorrt")
EVERY_FUSION = pytest.mark.parametrize("fusion", list(FUSIONS))
FUSION_IN_FP32 = pytest.mark.parametrize(
    "fusion", ["none", "tensorrt", "plugins"]
)  # "all" is "plugins" there, which one test says
BATCHED = pytest.mark.parametrize("batching", ["padded", "packed"])
EVERY_BATCHING = pytest.mark.parametrize("batching", BATCHINGS)


@pytest.fixture(scope="module", autouse=True)
def plugins() -> Path:
    return built_plugins()


@dataclass(frozen=True)
class Words:
    """A sentence as ids and token types, each (S,)."""

    ids: np.ndarray
    types: np.ndarray


def make_sentences(lengths: Sequence[int], seed: int = 0) -> list[Words]:
    random = np.random.default_rng(seed)
    return [Words(random.integers(0, 71, length), random.integers(0, 2, length)) for length in lengths]


def padded_inputs(sentences: Sequence[Words], filling: int = 0) -> dict[str, np.ndarray]:
    """(B, S) each; ids and types of the padding are ``filling``."""
    shape = (len(sentences), max(len(one.ids) for one in sentences))
    ids, types = np.full(shape, filling, np.int32), np.full(shape, filling, np.int32)
    mask = np.zeros(shape, np.int32)
    for row, one in enumerate(sentences):
        inside = (row, slice(len(one.ids)))
        ids[inside], types[inside], mask[inside] = one.ids, one.types, 1
    positions = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
    return dict(zip(INPUT_NAMES, (ids, types, positions), strict=True)) | {MASK_NAME: mask}


def packed_inputs(sentences: Sequence[Words]) -> dict[str, np.ndarray]:
    """(T,) each, and cu_seqlens (B + 1,)."""
    lengths = [len(one.ids) for one in sentences]
    values = ([one.ids for one in sentences], [one.types for one in sentences], map(np.arange, lengths))
    joined = {name: np.concatenate(list(parts)) for name, parts in zip(INPUT_NAMES, values, strict=True)}
    return joined | {LENGTHS_NAME: np.cumsum([0, *lengths], dtype=np.int32)}


def run_sentences(runner: NetworkRunner, batching: str, sentences: Sequence[Words]) -> list[np.ndarray]:
    """The network's output for each sentence, (S_i, vocabulary)."""
    (name,) = runner.output_names
    lengths = [len(one.ids) for one in sentences]
    if batching == "single":
        alone = [padded_inputs([one]) for one in sentences]
        return [runner.run({key: one[key] for key in INPUT_NAMES})[name].cpu().numpy()[0] for one in alone]
    if batching == "padded":
        rows = runner.run(padded_inputs(sentences))[name].cpu().numpy()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return np.split(runner.run(packed_inputs(sentences))[name].cpu().numpy(), np.cumsum(lengths)[:-1])


@pytest.fixture(scope="module")
def hugging_face(checkpoint: Path) -> Any:
    return BertForMaskedLM.from_pretrained(checkpoint, attn_implementation="eager").eval()


def pytorchs_answer(model: Any, sentences: Sequence[Words]) -> list[np.ndarray]:
    """Hugging Face's own model on a padded batch with its own attention mask."""
    given = {name: torch.from_numpy(values) for name, values in padded_inputs(sentences).items()}
    with torch.inference_mode():
        scores = model(**given).logits.numpy()  # (B, S, vocabulary)
    return [row[: len(one.ids)] for row, one in zip(scores, sentences, strict=True)]


def error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Relative L2 of all sentences together; NaN if anything is NaN."""
    assert [one.shape for one in found] == [one.shape for one in expected]
    return relative_l2(np.concatenate(found), np.concatenate(expected))


Made = tuple[NetworkRunner, DefinedNetwork]  # the second owns what the first reads


def make_runner(folder: Path, precision: str, batching: str, fusion: str = "none", **options: Any) -> Made:
    bert = builder.assemble(ModelFolder(folder), TrtLog(), precision, batching=batching, fusion=fusion, **options)
    return NetworkRunner(bert.network, contents=bert.contents), bert


@pytest.fixture(scope="module")
def runner_of(model_dir: Path) -> Callable[[str, str, str], NetworkRunner]:
    """Makes each network once for all tests of this file."""
    made: dict[Any, Made] = {}

    def get(precision: str, batching: str, fusion: str) -> NetworkRunner:
        key = (precision, batching, fusion)
        if key not in made:
            made[key] = make_runner(model_dir, precision, batching, fusion)
        return made[key][0]

    return get


def layer_kinds(network: trt.INetworkDefinition) -> list[str]:
    return [network.get_layer(index).type.name for index in range(network.num_layers)]


def linear_layers(bert: DefinedNetwork) -> dict[str, Any]:
    """The layers of the plugins with a product: activation by name."""
    return {
        name: str(one.fields.get("activation", "none"))
        for name, one in bert.contents.plugins.items()
        if one.plugin in ("Linear", "LinearSkipLayerNorm")
    }


def num_inputs(bert: DefinedNetwork, name: str) -> int:
    layers = (bert.network.get_layer(index) for index in range(bert.network.num_layers))
    return next(layer.num_inputs for layer in layers if layer.name == name)


# --- against PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@EVERY_BATCHING
@EVERY_FUSION
def test_a_ragged_batch_equals_pytorch(runner_of, hugging_face, fusion, batching, precision):
    sentences = make_sentences(LENGTHS)
    found = run_sentences(runner_of(precision, batching, fusion), batching, sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@EVERY_BATCHING
@pytest.mark.parametrize("layer", FUSED_LAYERS)
def test_each_fused_layer_alone(model_dir, hugging_face, layer, batching, precision):
    sentences = make_sentences(LENGTHS, seed=1)
    runner, bert = make_runner(model_dir, precision, batching, layer_set=ALONE[layer][1])
    found = run_sentences(runner, batching, sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES[precision]
    assert {one.plugin for one in bert.contents.plugins.values()} == {layer}


@EVERY_BATCHING
def test_tensorrts_attention_takes_the_place_of_elementary_layers(model_dir, batching):
    _, bert = make_runner(model_dir, "fp16", batching, "tensorrt")
    kinds = layer_kinds(bert.network)
    assert kinds.count("ATTENTION_INPUT") == kinds.count("ATTENTION_OUTPUT") == 2
    assert kinds.count("SOFTMAX") == kinds.count("PLUGIN_V3") == 0
    assert kinds.count("MATRIX_MULTIPLY") == 2 * 6 + 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_packed_attention_where_tensorrt_has_it(model_dir, hugging_face, monkeypatch, precision):
    """The full TensorRT 11: cu_seqlens goes into each attention. RTX assembles this too, but builds no plan of it."""
    monkeypatch.setattr(tensorrt_attention, "has_packed_attention", lambda dtype: dtype != trt.DataType.FLOAT)
    sentences = make_sentences(LENGTHS)
    runner, bert = make_runner(model_dir, precision, "packed", "tensorrt")
    found = run_sentences(runner, "packed", sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES[precision]
    kinds = layer_kinds(bert.network)
    assert kinds.count("ATTENTION_INPUT") == 2
    assert kinds.count("CUMULATIVE") == 0  # of the mask


def test_a_tensorrt_without_attention_is_an_error_before_the_long_work(monkeypatch):
    monkeypatch.delattr(trt.INetworkDefinition, "add_attention")
    with pytest.raises(UserError, match=r"has no attention layer of its own .*from 10\.14 on"):
        fused_layers("tensorrt", "fp16")
    assert fused_layers("plugins", "fp16") == FUSED_LAYERS


@EVERY_BATCHING
def test_fused_layers_take_the_place_of_elementary_ones(model_dir, batching):
    _, bert = make_runner(model_dir, "fp16", batching, "plugins")
    kinds = layer_kinds(bert.network)
    assert kinds.count("PLUGIN_V3") == 1 + 2 * (1 + 2)  # embeddings; in each layer attention and two sums
    assert kinds.count("SOFTMAX") == 0
    assert kinds.count("NORMALIZATION") == 1  # of the head
    assert kinds.count("MATRIX_MULTIPLY") == 2 * 4 + 2
    _, plain = make_runner(model_dir, "fp16", batching)
    assert "PLUGIN_V3" not in layer_kinds(plain.network)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@EVERY_BATCHING
def test_the_linear_plugin_alone(model_dir, hugging_face, batching, precision):
    """Without the other plugins it has three products for Q, K and V, and every bias."""
    sentences = make_sentences(LENGTHS, seed=1)
    runner, bert = make_runner(model_dir, precision, batching, "all", layer_set=NativeLayers)
    found = run_sentences(runner, batching, sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES[precision]
    assert len(linear_layers(bert)) == len(bert.contents.plugins) == 2 * 6
    assert {num_inputs(bert, name) for name in linear_layers(bert)} == {3}


@EVERY_BATCHING
def test_all_products_of_the_encoder_are_the_plugins(model_dir, batching):
    """Those before a residual sum are one layer with it and its layer norm."""
    _, bert = make_runner(model_dir, "fp16", batching, "all")
    layers = [f"bert.encoder.layer.{index}" for index in range(2)]
    norms = {f"{layer}.{step}.LayerNorm" for layer in layers for step in ("attention.output", "output")}
    expected = dict.fromkeys((*norms, *(f"{layer}.attention.self.qkv" for layer in layers)), "none")
    assert linear_layers(bert) == expected | dict.fromkeys(
        (f"{layer}.intermediate.intermediate_act_fn" for layer in layers), "gelu"
    )
    plugins = bert.contents.plugins
    assert {name for name, one in plugins.items() if one.plugin == "LinearSkipLayerNorm"} == norms
    for name in linear_layers(bert):  # each with its bias
        assert num_inputs(bert, name) == (6 if name in norms else 3)
    kinds = layer_kinds(bert.network)
    assert kinds.count("PLUGIN_V3") == 1 + 2 * (1 + 4)
    assert kinds.count("MATRIX_MULTIPLY") == 2  # of the head
    assert kinds.count("ACTIVATION") == 1  # likewise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@EVERY_BATCHING
@EVERY_FUSION
def test_the_plugins_kernels_in_the_whole_network(model_dir, hugging_face, fusion, batching, precision):
    sentences = make_sentences(LENGTHS)
    bert = builder.assemble(ModelFolder(model_dir), TrtLog(), precision, batching=batching, fusion=fusion)
    runner = NetworkRunner(bert.network, "cuda", contents=bert.contents)
    found = run_sentences(runner, batching, sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES[precision]


def test_in_fp32_all_is_what_plugins_is(model_dir):
    """The Linear plugin has no fp32."""
    (_, bert), (_, same) = (make_runner(model_dir, "fp32", "packed", name) for name in ("all", "plugins"))
    assert bert.contents.plugins == same.contents.plugins
    assert layer_kinds(bert.network) == layer_kinds(same.network)
    assert fused_layers("all", "fp32") == fused_layers("plugins", "fp16") == FUSED_LAYERS
    for precision in ("fp16", "bf16", "int8"):
        assert fused_layers("all", precision) == FUSIONS["all"]
    assert fused_layers("none", "fp16") == ()


@pytest.mark.parametrize("gelu", ["tanh", "decomposed"])
def test_another_gelu_is_no_part_of_the_product(model_dir, hugging_face, gelu):
    sentences = make_sentences(LENGTHS)
    runner, bert = make_runner(model_dir, "fp16", "packed", "all", gelu=gelu)
    assert len(linear_layers(bert)) == 8
    assert set(linear_layers(bert).values()) == {"none"}
    found = run_sentences(runner, "packed", sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES["fp16"]


@BATCHED
def test_other_layer_norms_are_of_the_layer_norm_plugin(model_dir, hugging_face, batching):
    sentences = make_sentences(LENGTHS, seed=2)
    runner, bert = make_runner(model_dir, "fp32", batching, layer_norm="fast", layer_set=OnlySkipLayerNorm)
    assert error(run_sentences(runner, batching, sentences), pytorchs_answer(hugging_face, sentences)) <= 1e-5
    assert layer_kinds(bert.network).count("NORMALIZATION") == 0


@pytest.fixture(scope="module", params=["without a head", "relu and an untied decoder"])
def other_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("other")
    bare = request.param == "without a head"
    options: Any = {"head": False} if bare else {"hidden_act": "relu", "tie_word_embeddings": False}
    source = make_checkpoint(folder / "source", **options)
    model2onnx.export(str(source), "paris" if bare else DEFAULT_TEXT, folder / "out")
    return ModelFolder(folder / "out")


@EVERY_BATCHING
@pytest.mark.parametrize(("fusion", "precision"), [("none", "fp32"), ("plugins", "fp32"), ("all", "fp16")])
def test_other_checkpoints(other_model, fusion, precision, batching):
    demo = other_model.demo()
    sentence = Words(demo.inputs["input_ids"][0], demo.inputs["token_type_ids"][0])
    runner, _owner = make_runner(other_model.path, precision, batching, fusion)
    for found in run_sentences(runner, batching, [sentence, sentence]):
        assert relative_l2(found[None], demo.output) <= TOLERANCES[precision]


@FUSION_IN_FP32
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, POSITIONS), min_size=1, max_size=7), seed=st.integers(0, 9))
def test_packed_sentences_of_any_lengths(runner_of, hugging_face, fusion, lengths, seed):
    sentences = make_sentences(lengths, seed)
    runner = runner_of("fp32", "packed", fusion)
    found = run_sentences(runner, "packed", sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= 1e-5


@BATCHED
@FUSION_IN_FP32
def test_batches_of_packing_go_in_and_results_come_back_in_order(runner_of, hugging_face, fusion, batching):
    sentences = make_sentences((3, 40, 12, 12, 64, 5, 28, 1), seed=3)
    ids, types = [one.ids for one in sentences], [one.types for one in sentences]
    make, key = (pack, LENGTHS_NAME) if batching == "packed" else (pad, MASK_NAME)
    batches: Any = make(ids, Limits(100, 4, POSITIONS), token_types=types)
    assert len(batches) > 1
    runner = runner_of("fp32", batching, fusion)
    results = []
    for batch in batches:
        inputs = {name: getattr(batch, name) for name in INPUT_NAMES}
        separator = batch.cu_seqlens if batching == "packed" else batch.mask
        results.append(runner.run(inputs | {key: separator})["logit"].numpy())
    assert error(scatter(batches, results), pytorchs_answer(hugging_face, sentences)) <= 1e-5


# --- sentences do not see each other ------------------------------------------------------------------------


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@BATCHED
@EVERY_FUSION
def test_another_sentence_changes_nothing_for_the_others(runner_of, fusion, batching, precision):
    """Bit for bit: what is masked out must not even round differently."""
    before = make_sentences(LENGTHS)
    others = make_sentences(LENGTHS, seed=99)
    runner = runner_of(precision, batching, fusion)
    expected = run_sentences(runner, batching, before)
    for changed in (0, 3, len(LENGTHS) - 1):
        after = [*before[:changed], others[changed], *before[changed + 1 :]]
        found = run_sentences(runner, batching, after)
        same = [same_bits(*pair) for pair in zip(found, expected, strict=True)]
        assert same == [place != changed for place in range(len(LENGTHS))]


@EVERY_FUSION
def test_what_stands_in_the_padding_does_not_matter(runner_of, fusion):
    sentences = make_sentences(LENGTHS)
    runner = runner_of("fp16", "padded", fusion)
    results = [runner.run(padded_inputs(sentences, filling))["logit"].numpy() for filling in (0, 1)]
    assert not same_bits(*results)  # rows of the padding itself
    for row, one in enumerate(sentences):
        assert same_bits(*(result[row, : len(one.ids)] for result in results))


@BATCHED
@FUSION_IN_FP32
def test_the_order_of_sentences_does_not_matter(runner_of, fusion, batching):
    sentences = make_sentences(LENGTHS)
    order = np.random.default_rng(0).permutation(len(sentences))
    runner = runner_of("fp32", batching, fusion)
    found = run_sentences(runner, batching, [sentences[place] for place in order])
    expected = run_sentences(runner, batching, sentences)
    assert error(found, [expected[place] for place in order]) <= 2e-6  # a product sums in blocks of rows


@FUSION_IN_FP32
def test_without_the_mask_the_answers_are_wrong(runner_of, hugging_face, fusion):
    """The tests above can fail: a mask of ones lets words look at the padding."""
    sentences = make_sentences(LENGTHS)
    runner = runner_of("fp32", "padded", fusion)
    inputs = padded_inputs(sentences)
    rows = runner.run(inputs | {MASK_NAME: np.ones_like(inputs[MASK_NAME])})["logit"].numpy()
    found = [row[: len(one.ids)] for row, one in zip(rows, sentences, strict=True)]
    assert error(found, pytorchs_answer(hugging_face, sentences)) > 1e-2


# --- int8 ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def activations(model_dir: Path) -> dict[str, torch.Tensor]:
    """What the encoder's linear layers read, (T, H) each, for the very sentences of the tests."""
    products = in_groups(encoder_products(ModelFolder(model_dir)), LINEAR_GROUPS)
    names = sorted({tensor for product in products for tensor in product.activations})
    bert = builder.assemble(ModelFolder(model_dir), TrtLog(), batching="packed")
    return NetworkRunner(bert.network, outputs=names, contents=bert.contents).run(
        packed_inputs(make_sentences(LENGTHS))
    )


@pytest.fixture(scope="module")
def quantization(model_dir: Path, activations: dict[str, torch.Tensor]) -> Quantization:
    """Every linear layer of the encoder in int8, ranges from the very sentences."""
    products = in_groups(encoder_products(ModelFolder(model_dir)), LINEAR_GROUPS)
    ranges = {name: float(values.abs().max()) for name, values in activations.items()}
    return Quantization("int8", frozenset(product.name for product in products), ranges)


def smooth(
    quantization: Quantization, activations: dict[str, torch.Tensor], s: dict[str, np.ndarray]
) -> Quantization:
    """The quantization with these tensors divided by s, and their ranges."""
    ranges = {f"{name}.smoothed": float((activations[name] / torch.from_numpy(s[name])).abs().max()) for name in s}
    return replace(quantization, ranges={**quantization.ranges, **ranges}, smoothing=s)


@pytest.fixture(scope="module")
def smoothed(model_dir: Path, quantization: Quantization, activations: dict[str, torch.Tensor]) -> Quantization:
    """The same with SmoothQuant."""
    folder = ModelFolder(model_dir)
    products = in_groups(encoder_products(folder), LINEAR_GROUPS)
    channel_amax = {name: values.abs().amax(0).numpy() for name, values in activations.items()}
    return smooth(quantization, activations, smoothing_factors(products, folder.weights(), channel_amax, 0.5))


@EVERY_BATCHING
@EVERY_FUSION
def test_int8_equals_pytorch(model_dir, hugging_face, smoothed, fusion, batching):
    sentences = make_sentences(LENGTHS)
    runner, bert = make_runner(model_dir, "int8", batching, fusion, quantization=smoothed)
    found = run_sentences(runner, batching, sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES["int8"]
    expected = 2 * PRODUCTS[fusion]
    assert bert.num_quantized == inspect(bert.network).quantized_products == expected
    assert len(linear_layers(bert)) == (expected if fusion == "all" else 0)


def mean_error(runner: NetworkRunner, batching: str, model: Any) -> float:
    """The mean over several sets of sentences: that of one set varies by a sixth with the order of roundings."""
    sets = [make_sentences(LENGTHS, seed) for seed in range(4)]
    return float(np.mean([error(run_sentences(runner, batching, one), pytorchs_answer(model, one)) for one in sets]))


@EVERY_BATCHING
@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("ranges", ["quantization", "smoothed"])
def test_8_bit_plugins_are_as_accurate_as_q_dq(model_dir, hugging_face, request, ranges, precision, batching):
    """This model's random weights lose more than a trained model's: the elementary network is the measure."""
    chosen, errors = replace(request.getfixturevalue(ranges), kind=precision), {}
    for fusion in ("none", "all"):
        runner, bert = make_runner(model_dir, precision, batching, fusion, quantization=chosen)
        errors[fusion] = mean_error(runner, batching, hugging_face)
        assert bert.num_quantized == inspect(bert.network).quantized_products == 2 * PRODUCTS[fusion]
        check_definition(bert.network, bert.contents, 1e-12)
    assert len(linear_layers(bert)) == 2 * PRODUCTS["all"]
    assert errors["all"] <= 1.1 * errors["none"]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_plugins_write_8_bits_for_products_and_fp16_for_residuals(model_dir, quantization, precision):
    _, bert = make_runner(model_dir, precision, "packed", "all", quantization=replace(quantization, kind=precision))
    narrow = ELEMENT_TYPES[precision].trt
    written = {
        name.removeprefix("bert."): [dtype for dtype, _ in one.outputs] for name, one in bert.contents.plugins.items()
    }
    both, half = [trt.DataType.HALF, narrow], [trt.DataType.HALF]
    layer = {
        "attention.self.qkv": half,
        "attention.self": [narrow],
        "attention.output.LayerNorm": both,
        "intermediate.intermediate_act_fn": [narrow],
        "output.LayerNorm": both,
    }
    expected = {f"encoder.layer.{index}.{name}": types for index in (0, 1) for name, types in layer.items()}
    last = {"encoder.layer.1.output.LayerNorm": half}  # only the head reads it
    assert written == {"embeddings.LayerNorm": both} | expected | last
    kinds = layer_kinds(bert.network)
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 0


@pytest.mark.parametrize(
    ("kept", "half"),
    [
        ("attention.self.query", ["bert.encoder.layer.0.output.LayerNorm"]),
        ("attention.output.dense", ["bert.encoder.layer.1.attention.self"]),
        ("intermediate.dense", ["bert.encoder.layer.1.attention.output.LayerNorm"]),
        ("output.dense", ["bert.encoder.layer.1.intermediate.intermediate_act_fn"]),
    ],
)
def test_a_product_that_is_returned_reads_fp16(model_dir, hugging_face, quantization, kept, half):
    returned = f"bert.encoder.layer.1.{kept}"
    runner, bert = make_runner(model_dir, "int8", "padded", "all", quantization=quantization.without(returned))
    assert bert.num_quantized == inspect(bert.network).quantized_products == 7
    only_half = [
        name
        for name, one in bert.contents.plugins.items()
        if one.plugin in ("EmbLayerNorm", "LinearSkipLayerNorm", "QkvToContext") or name.endswith("act_fn")
        if trt.DataType.INT8 not in [dtype for dtype, _ in one.outputs]
    ]
    quantized_alone = [bert.network.get_layer(i).name for i in range(bert.network.num_layers)]
    last = "bert.encoder.layer.1.output.LayerNorm"
    expected = {*half, last}
    if kept == "intermediate.dense":  # the fp16 kernel writes fp16; a quantize layer follows for the next product
        name = "bert.encoder.layer.1.intermediate.intermediate_act_fn"
        expected.add(name)
        assert f"{name}.quantized" in quantized_alone
    assert {*only_half} == expected
    whole, _owner = make_runner(model_dir, "int8", "padded", "all", quantization=quantization)
    assert mean_error(runner, "padded", hugging_face) <= 1.02 * mean_error(whole, "padded", hugging_face)
    check_definition(bert.network, bert.contents, 1e-12)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("tensor", "changed"),
    [
        ("embeddings.LayerNorm", "embeddings.LayerNorm.output_factors"),
        ("encoder.layer.0.attention.self", "encoder.layer.0.attention.self.qkv.weight"),
        ("encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.attention.output.LayerNorm.output_factors"),
        ("encoder.layer.0.intermediate.intermediate_act_fn", "encoder.layer.0.intermediate.dense.output_factors"),
        ("encoder.layer.0.output.LayerNorm", "encoder.layer.0.output.LayerNorm.output_factors"),
    ],
)
def test_smoothing_adds_no_layer_and_changes_nothing_but_rounding(
    model_dir, hugging_face, quantization, activations, precision, tensor, changed
):
    """One tensor is smoothed: by the weight in front of it, or by the kernel that writes it in 8 bits."""
    sentences, name = make_sentences(LENGTHS), f"bert.{tensor}"
    divisors = np.random.default_rng(0).uniform(0.25, 4, activations[name].shape[-1]).astype(np.float32)
    smoothed = smooth(replace(quantization, kind=precision), activations, {name: divisors})
    _, plain = make_runner(model_dir, precision, "packed", "all", quantization=replace(quantization, kind=precision))
    q_dq, _owner = make_runner(model_dir, precision, "packed", "none", quantization=smoothed)
    runner, bert = make_runner(model_dir, precision, "packed", "all", quantization=smoothed)
    without_constants = [kind for kind in layer_kinds(bert.network) if kind != "CONSTANT"]
    assert without_constants == [kind for kind in layer_kinds(plain.network) if kind != "CONSTANT"]
    before, after = (one.contents.sources.get(f"bert.{changed}") for one in (plain, bert))
    assert after is not None
    assert before is None or not np.array_equal(before, after)
    check_definition(bert.network, bert.contents, 1e-12)
    answers = pytorchs_answer(hugging_face, sentences)
    assert mean_error(runner, "packed", hugging_face) <= 1.1 * mean_error(q_dq, "packed", hugging_face)
    unrounded = NetworkRunner(bert.network, contents=bert.contents, in_fp32=True)
    assert error(run_sentences(unrounded, "packed", sentences), answers) <= TOLERANCES["fp32"]


@pytest.mark.parametrize("returned", ["attention.self.query", "attention.output.dense", "intermediate.dense"])
def test_a_smoothed_tensor_whose_product_is_returned_reads_it_undivided(model_dir, hugging_face, smoothed, returned):
    """Where the intermediate product is in fp16, its output is divided by a layer of its own, then quantized."""
    sentences, name = make_sentences(LENGTHS), f"bert.encoder.layer.1.{returned}"
    runner, bert = make_runner(model_dir, "int8", "packed", "all", quantization=smoothed.without(name))
    check_definition(bert.network, bert.contents, 1e-12)
    assert mean_error(runner, "packed", hugging_face) <= TOLERANCES["int8"]
    unrounded = NetworkRunner(bert.network, contents=bert.contents, in_fp32=True)
    answers = pytorchs_answer(hugging_face, sentences)
    assert error(run_sentences(unrounded, "packed", sentences), answers) <= TOLERANCES["fp32"]


@pytest.mark.parametrize("fusion", ["plugins", "all"])
@pytest.mark.parametrize("kept", [("query",), ("key", "value"), ("query", "key", "value")])
def test_a_merged_product_with_a_part_in_fp16_is_in_fp16(model_dir, hugging_face, quantization, kept, fusion):
    sentences, layer = make_sentences(LENGTHS), "bert.encoder.layer.1.attention.self"
    partly = replace(quantization, products=quantization.products - {f"{layer}.{part}" for part in kept})
    runner, bert = make_runner(model_dir, "int8", "packed", fusion, quantization=partly)
    types = {name: one.outputs[0][0] for name, one in bert.contents.plugins.items()}
    assert fusion != "all" or types[f"{layer.replace('1', '0')}.qkv"] == types[f"{layer}.qkv"] == trt.DataType.HALF
    assert bert.num_quantized == inspect(bert.network).quantized_products == 7
    names = {bert.network.get_layer(index).name for index in range(bert.network.num_layers)}
    suffix = "weight.scales" if fusion == "all" else "weight.dequantized"
    assert f"{layer}.qkv.weight" in names
    assert f"{layer}.qkv.{suffix}" not in names
    assert f"{layer.replace('1', '0')}.qkv.{suffix}" in names
    found = run_sentences(runner, "packed", sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES["int8"]


@pytest.mark.parametrize(("fusion", "precision"), [("none", "fp32"), ("plugins", "fp32"), ("all", "fp16")])
def test_smoothed_channels_change_nothing_but_rounding(model_dir, hugging_face, quantization, fusion, precision):
    sentences = make_sentences(LENGTHS)
    divisors = np.random.default_rng(0).uniform(0.25, 4, 128).astype(np.float32)
    tensors = ("bert.embeddings.LayerNorm", "bert.encoder.layer.0.attention.self")
    smoothed = Quantization("int8", smoothing=dict.fromkeys(tensors, divisors))
    runner, _owner = make_runner(model_dir, precision, "packed", fusion, quantization=smoothed)
    found = run_sentences(runner, "packed", sentences)
    assert error(found, pytorchs_answer(hugging_face, sentences)) <= TOLERANCES[precision]


@pytest.mark.parametrize("part", ["scores", "context"])
@pytest.mark.parametrize("fusion", ["tensorrt", "plugins"])
def test_attentions_own_products_cannot_be_int8_in_one_layer(model_dir, quantization, part, fusion):
    own = replace(quantization, products=frozenset({f"bert.encoder.layer.0.attention.self.{part}"}))
    with pytest.raises(UserError, match=r"--quantize attention: .* leave attention out, or .*--fusion none"):
        make_runner(model_dir, "int8", "single", fusion, quantization=own)


# --- plans --------------------------------------------------------------------------------------------------

PROFILES = {
    "single": {INPUT_NAMES[0]: [[1, 1], [1, 8], [1, 64]]},
    "padded": {INPUT_NAMES[0]: [[2, 1], [4, 8], [16, 64]], MASK_NAME: [[2, 1], [4, 8], [16, 64]]},
    "packed": {INPUT_NAMES[0]: [[2], [32], [1024]], LENGTHS_NAME: [[3], [5], [17]]},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@EVERY_BATCHING
@EVERY_FUSION
def test_tensorrt_builds_the_plan(model_dir, quantization, tmp_path, fusion, batching, precision):
    chosen = {"quantization": quantization} if precision == "int8" else {}
    _, bert = make_runner(model_dir, precision, batching, fusion, **chosen)
    batch = ONE_SEQUENCE if batching == "single" else SequenceRange(2, 4, 16)
    library = None if fusion in WITHOUT_PLUGINS else build.library_path()
    options = BuildOptions(SequenceRange(1, 8, 64), batch, plugin_library=library)
    build_plan(bert.builder, bert.network, TrtLog(), options, tmp_path / "p.plan")
    assert len(check_plan(tmp_path / "p.plan")) > 0
    info = read_info(tmp_path / "p.plan")
    assert info is not None
    assert info.profile == dict.fromkeys(INPUT_NAMES, PROFILES[batching][INPUT_NAMES[0]]) | PROFILES[batching]
    assert info.plugins_embedded == (fusion not in WITHOUT_PLUGINS)


@BATCHED
def test_a_plan_for_several_sentences_at_least_is_checked_with_so_many(model_dir, tmp_path, batching):
    """The demo's one sentence would be outside such a plan's profile."""
    plan, result = tmp_path / "p.plan", tmp_path / "r.json"
    arguments = [
        "--model-dir",
        model_dir,
        "--plan",
        plan,
        "--json",
        result,
        "--batching",
        batching,
        "--compare-layers",
    ]
    arguments += ["--batch", "3,4,8", "--fusion", "plugins", "--compare-layers"]
    assert run_main(builder.main, *arguments) == 0
    said = json.loads(result.read_text())
    assert (said["batching"], said["fused"]) == (batching, list(FUSED_LAYERS))
    assert said["within_tolerance"] is True
    task = Task.prepare(
        "builder.py",
        ModelFolder(model_dir),
        PlanOptions(model_dir, batching=batching, batch=SequenceRange(3, 4, 8)),
    )
    info = read_info(plan)
    assert info is not None
    for name, values in task.inputs.items():
        check_in_profile(name, values.shape, info.profile[name])
    check_batch(task.inputs)


@EVERY_FUSION
def test_plans_of_different_networks_have_different_names(model_dir, fusion):
    options = PlanOptions(model_dir, "fp16", fusion, batching="packed", batch=SequenceRange(1, 2, 3))
    task = Task.prepare("builder.py", ModelFolder(model_dir), options)
    mark = {"none": "", "tensorrt": ".attention", "plugins": ".fused", "all": ".fused.linear"}[fusion]
    assert task.plan_path.name == f"builder.fp16.packed{mark}.plan"
    assert (task.build.plugin_library is None) == (fusion in WITHOUT_PLUGINS)


@EVERY_FUSION
def test_builder_calibrates_and_builds_int8(small_weights_dir, tmp_path, fusion):
    """The whole way: calibration, plan, and the products counted in the network that was built."""
    result = tmp_path / "r.json"
    arguments = ["--model-dir", small_weights_dir, "--plan", tmp_path / "p.plan", "--json", result, "--smooth", "off"]
    arguments += ["--precision", "int8", "--batching", "packed", "--fusion", fusion, "--calibration-sentences", "8"]
    assert run_main(builder.main, *arguments) == 0
    said = json.loads(result.read_text())
    assert said["quantized_parts"]["quantized_products"] == 2 * PRODUCTS[fusion]
    assert said["rel_l2"] <= TOLERANCES["int8"]
