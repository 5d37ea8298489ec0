"""Every family and every task: the networks answer as transformers' own class does, in every batching."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_families import make_family_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import builder
import model2onnx
import onnx2trt
from bert_trt.checkpoint import load_checkpoint, quiet_libraries
from bert_trt.comparison import combined_rel_l2, compare_sequences, find_word_differences, reference_batches, top_k
from bert_trt.console import UserError
from bert_trt.families import FAMILIES
from bert_trt.model_files import CONFIG_NAME, ModelFolder
from bert_trt.network import DefinedNetwork
from bert_trt.network_proof import check_definition
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import (
    BATCHINGS,
    EMBEDDING,
    FILL_MASK,
    HIDDEN_STATES,
    ONE_SEQUENCE,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TASKS,
    TOKEN_CLASSIFICATION,
    TOLERANCES,
    CalibrationSettings,
    QuantizationOptions,
    SequenceRange,
)
from bert_trt.quantized_model import quantize
from bert_trt.tasks import Rankings
from bert_trt.tensorrt_log import TrtLog

BATCH = SequenceRange(1, 4, 8)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    quiet_libraries()


def export(place: Path, family: str, task: str, **sizes: Any) -> ModelFolder:
    """A random checkpoint's folder. All tasks but the embedding are those of the checkpoint's own files."""
    source = make_family_checkpoint(place / "checkpoint", family, task, **sizes)
    model2onnx.export(str(source), None, place / "out", task=EMBEDDING if task == EMBEDDING else None)
    return ModelFolder(place / "out")


def check(folder: ModelFolder, network: DefinedNetwork, batching: str, precision: str) -> None:
    """Compares a network's outputs for the reference sequences with those of transformers' class."""
    runner, name = NetworkRunner(network.network, "cpu", contents=network.contents), folder.config.output_name
    sequences = folder.reference()
    lengths = SequenceRange(1, 16, folder.config.max_positions)
    batches = reference_batches(sequences, batching, lengths, ONE_SEQUENCE if batching == "single" else BATCH)
    errors = compare_sequences(lambda inputs: runner.run(inputs)[name].numpy(), batches, sequences)
    assert len(errors) == len(sequences)
    for error in errors:
        assert error.rel_l2 <= TOLERANCES[precision], (batching, precision, error)
    for batch in batches:
        rank = 2 if folder.config.is_per_sequence or batching == "packed" else 3
        assert runner.run(batch.inputs)[name].ndim == rank
        for index, output in zip(batch.sequences, batch.split(runner.run(batch.inputs)[name].numpy()), strict=True):
            compare_answers(folder, output[sequences[index].checked], sequences[index].output, precision)


def compare_answers(folder: ModelFolder, output: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """The same words, labels and spans, and vectors of the same direction."""
    if folder.config.task == EMBEDDING:
        lengths = np.linalg.norm(output[0]) * np.linalg.norm(expected[0])
        assert output[0] @ expected[0] / lengths >= (0.99999 if precision == "fp32" else 0.9999)
    rankings = Rankings(folder, [0] if folder.config.has_head else [])
    for ours, theirs in zip(rankings.of(output), rankings.of(expected), strict=True):
        for difference in find_word_differences(theirs, top_k(ours.scores), top_k(theirs.scores)):
            assert difference.is_near_tie(precision) or difference.place > 1, difference


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_task_of_every_family_answers_as_transformers_does(tmp_path, family, task):
    """The heads, which all families share, in every way for BERT."""
    folder = export(tmp_path, family, task)
    assert folder.config.task == task
    for batching in BATCHINGS if family == "bert" else ["padded"]:
        check(folder, builder.assemble(folder, TrtLog(), batching=batching), batching, "fp32")
    fused = builder.assemble(folder, TrtLog(), "fp16", batching="packed", fusion="all")
    check(folder, fused, "packed", "fp16")
    if family in ("bert", "mpnet"):
        check(folder, onnx2trt.parse(folder, "fp32", TrtLog()), "single", "fp32")


@pytest.mark.parametrize("family", ["albert", "electra", "mpnet", "distilbert"])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_the_plugins_take_every_family_in_fp32(tmp_path, family, batching):
    """Narrow embeddings, relative positions, no token types."""
    folder = export(tmp_path, family, SEQUENCE_CLASSIFICATION)
    fused = builder.assemble(folder, TrtLog(), batching=batching, fusion="plugins")
    check(folder, fused, batching, "fp32")
    plugins = {layer.plugin for layer in fused.contents.plugins.values()}
    attention = set() if family == "mpnet" else {"QkvToContext"}
    assert plugins == {"EmbLayerNorm", "SkipLayerNorm"} | attention


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("family", ["electra", "albert", "mpnet"])
def test_8_bit_plugins_are_as_accurate_as_q_dq_in_every_family(tmp_path, family, precision):
    """Projected embeddings, GELU by the hyperbolic tangent, native attention: what no kernel writes in 8 bits is
    quantized where it is read."""
    folder, errors = export(tmp_path, family, HIDDEN_STATES), {}
    options = QuantizationOptions(CalibrationSettings(precision, sentences=32))
    for fusion in ("none", "all"):
        made = quantize(folder, options, builder.assemble, TrtLog(), tmp_path / fusion, fusion)
        network = builder.assemble(
            *(folder, TrtLog(), precision), batching="packed", quantization=made.quantization, fusion=fusion
        )
        check_definition(network.network, network.contents, folder.config.layer_norm_eps)
        assert network.num_quantized == (4 if fusion == "all" and family != "mpnet" else 6) * 2
        runner, sequences = NetworkRunner(network.network, "cpu", contents=network.contents), folder.reference()
        found = compare_sequences(
            lambda inputs, runner=runner: runner.run(inputs)["last_hidden_state"].numpy(),
            *(reference_batches(sequences, "packed", SequenceRange(1, 16, 40), BATCH), sequences),
        )
        errors[fusion] = combined_rel_l2(found)
    assert 0 < errors["all"] <= 1.2 * errors["none"] < 0.2


SHAPES = st.fixed_dictionaries(
    {
        "num_attention_heads": st.integers(1, 3),
        "num_hidden_layers": st.integers(1, 3),
        "intermediate_size": st.sampled_from([24, 40, 128]),
        "max_position_embeddings": st.sampled_from([33, 40, 130]),
        "layer_norm_eps": st.sampled_from([1e-12, 1e-7, 1e-5]),
        "hidden_act": st.sampled_from(
            ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu"]
        ),
        "tie_word_embeddings": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=8)
@given(
    st.sampled_from(list(FAMILIES)), st.sampled_from(TASKS), SHAPES, st.sampled_from([8, 32, 40, 64, 80]), st.data()
)
def test_any_shape_answers_as_transformers_does(
    tmp_path_factory: pytest.TempPathFactory,
    family: str,
    task: str,
    shape: dict[str, Any],
    head_size: int,
    data: st.DataObject,
):
    sizes = shape | {"hidden_size": shape["num_attention_heads"] * head_size}
    if family in ("electra", "albert"):
        sizes["embedding_size"] = data.draw(st.sampled_from([8, 24, sizes["hidden_size"]]))
    if family == "albert":
        sizes["num_hidden_groups"] = data.draw(st.integers(1, sizes["num_hidden_layers"]))
    if family == "distilbert":
        del sizes["layer_norm_eps"]
    folder = export(tmp_path_factory.mktemp("shape"), family, task, **sizes)
    batching = data.draw(st.sampled_from(BATCHINGS))
    fusion = data.draw(st.sampled_from(["none", "plugins"]))
    check(folder, builder.assemble(folder, TrtLog(), batching=batching, fusion=fusion), batching, "fp32")


@pytest.mark.parametrize("head_size", [40, 80, 256])
def test_attention_is_native_for_other_head_sizes_and_the_other_plugins_stay(tmp_path, head_size):
    folder = export(tmp_path, "bert", TOKEN_CLASSIFICATION, hidden_size=2 * head_size)
    network = builder.assemble(folder, TrtLog(), "fp16", batching="padded", fusion="all")
    check(folder, network, "padded", "fp16")
    assert {layer.plugin for layer in network.contents.plugins.values()} == {
        "EmbLayerNorm",
        "Linear",
        "LinearSkipLayerNorm",
    }


def test_a_checkpoint_without_token_types(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", FILL_MASK, type_vocab_size=1)
    types = "bert.embeddings.token_type_embeddings.weight"
    path = source / "model.safetensors"
    weights = load_file(path)
    expected = {name: weight for name, weight in weights.items() if name != types}
    save_file(expected, path, metadata={"format": "pt"})
    change_config(source, type_vocab_size=0)
    model2onnx.export(str(source), None, tmp_path / "out")
    folder = ModelFolder(tmp_path / "out")
    assert not folder.weights().get(types, (1, 64)).any()
    check(folder, builder.assemble(folder, TrtLog(), batching="packed", fusion="plugins"), "packed", "fp32")


def change_config(source: Path, **changes: Any) -> None:
    path = source / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- sentence embeddings ----------------------------------------------------------------------------------


def write_modules(source: Path, pooling: dict[str, Any], dense: str | None = None, normalize: bool = False) -> None:
    """Writes what sentence-transformers adds to an encoder; ``dense`` is the activation of a layer 64 -> 48."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += ([("2_Dense", "Dense")] if dense is not None else []) + (
        [("3_Normalize", "Normalize")] if normalize else []
    )
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    (source / "modules.json").write_text(json.dumps(entries))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | pooling))
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    if dense is not None:
        (source / "2_Dense").mkdir()
        settings = {"in_features": 64, "out_features": 48, "bias": True}
        settings["activation_function"] = f"torch.nn.modules.activation.{dense}"
        (source / "2_Dense" / "config.json").write_text(json.dumps(settings))
        torch.manual_seed(5)
        layer = {"linear.weight": torch.randn(48, 64) / 8, "linear.bias": torch.randn(48)}
        save_file(layer, source / "2_Dense" / "model.safetensors")


def expected_embedding(source: Path, ids: np.ndarray, pooling: str, dense: str | None, normalize: bool) -> np.ndarray:
    """The embedding of one sequence (S,), in float64."""
    with torch.inference_mode():
        x = AutoModel.from_pretrained(source)(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    x = x.astype(np.float64)  # (S, H)
    vector = {"mean": x.mean(0), "max": x.max(0), "cls": x[0]}[pooling]
    if dense is not None:
        weights = load_file(source / "2_Dense" / "model.safetensors")
        vector = weights["linear.weight"].double().numpy() @ vector + weights["linear.bias"].double().numpy()
        vector = np.tanh(vector) if dense == "Tanh" else vector
    return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize(
    ("pooling", "entries"),
    [
        ("mean", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        ("max", {"pooling_mode_max_tokens": True}),
        ("cls", {"pooling_mode": "cls"}),
    ],
)
@pytest.mark.parametrize(("dense", "normalize"), [(None, True), ("Tanh", False), ("Identity", True)])
def test_pooling_dense_layers_and_normalisation_are_those_of_sentence_transformers(
    tmp_path, pooling, entries, dense, normalize
):
    source = make_family_checkpoint(tmp_path / "checkpoint", "roberta", EMBEDDING)
    write_modules(source, entries, dense, normalize)
    model2onnx.export(str(source), None, tmp_path / "out")
    folder = ModelFolder(tmp_path / "out")
    config = folder.config
    assert (config.task, config.pooling, config.truncated_length) == (EMBEDDING, pooling, 24)
    assert config.output_width == (64 if dense is None else 48)
    for sequence in folder.reference():
        expected = expected_embedding(source, sequence.input_ids, pooling, dense, normalize)
        np.testing.assert_allclose(sequence.output[0], expected, rtol=2e-5, atol=2e-6)
    for batching in BATCHINGS:
        check(folder, builder.assemble(folder, TrtLog(), batching=batching), batching, "fp32")


def test_the_pooler_can_be_the_embedding(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", HIDDEN_STATES, pooler=True)
    model2onnx.export(str(source), None, tmp_path / "out", task=EMBEDDING, pooling="pooler")
    folder = ModelFolder(tmp_path / "out")
    with torch.inference_mode():
        ids = torch.from_numpy(folder.reference()[0].input_ids)[None]
        expected = AutoModel.from_pretrained(source)(ids).pooler_output.numpy()
    np.testing.assert_allclose(folder.reference()[0].output, expected, rtol=1e-5, atol=1e-6)
    check(folder, builder.assemble(folder, TrtLog(), batching="packed"), "packed", "fp32")


def refusal(source: Path, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_checkpoint(str(source), **options)
    told = str(raised.value)
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean and max"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({}, "missing"),
    ],
)
def test_a_pooling_that_we_do_not_have_is_named(tmp_path, entries, named):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", EMBEDDING)
    write_modules(source, entries)
    assert f"1_Pooling/config.json: the pooling is {named}, expected one of mean, cls, max, pooler" in refusal(source)


def test_a_module_that_we_do_not_have_is_named(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", EMBEDDING)
    write_modules(source, {"pooling_mode": "mean"}, dense="Softmax")
    assert "2_Dense/config.json: activation_function is Softmax, expected one of Tanh, ReLU" in refusal(source)
    modules = json.loads((source / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.LSTM"
    (source / "modules.json").write_text(json.dumps(modules))
    assert "the module '2_Dense' is a LSTM; expected Transformer, Pooling, then Dense layers" in refusal(source)
    assert load_checkpoint(str(source), task=HIDDEN_STATES).config.output_name == "last_hidden_state"


# --- which task -------------------------------------------------------------------------------------------


def test_a_task_whose_head_the_checkpoint_lacks_is_refused_with_those_that_it_has(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "electra", TOKEN_CLASSIFICATION)
    told = refusal(source, task=QUESTION_ANSWERING)
    assert "has no head for --task question-answering: no weights qa_outputs.*" in told
    assert told.endswith("possible are token-classification, embedding, hidden-states")


def test_another_task_than_the_checkpoints_leaves_its_head_out(tmp_path, capsys):
    source = make_family_checkpoint(tmp_path / "checkpoint", "roberta", SEQUENCE_CLASSIFICATION)
    assert load_checkpoint(str(source), task=EMBEDDING, pooling="cls").config.pooling == "cls"
    assert capsys.readouterr().err == ""


def test_two_possible_tasks_are_listed(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", SEQUENCE_CLASSIFICATION)
    change_config(source, architectures=None)
    assert refusal(source).endswith("name one with --task: sequence-classification, token-classification")
    assert load_checkpoint(str(source), task=SEQUENCE_CLASSIFICATION).config.task == SEQUENCE_CLASSIFICATION


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "BertForMultipleChoice"),
        ("electra", "ElectraForPreTraining"),
        ("bert", "BertForNextSentencePrediction"),
    ],
)
def test_a_head_of_another_kind_is_refused_by_name(tmp_path, family, name):
    source = make_family_checkpoint(tmp_path / "checkpoint", family, HIDDEN_STATES)
    change_config(source, architectures=[name])
    told = refusal(source)
    assert f"config.json: a {name} cannot be exported; the tasks are fill-mask, hidden-states, embedding" in told


def test_names_of_labels_of_another_number_are_told(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "distilbert", TOKEN_CLASSIFICATION)
    change_config(source, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    told = refusal(source)
    assert (
        "weight 'classifier.bias' is [2], expected [3]; id2label in config.json and the weights do not belong" in told
    )


def test_labels_without_names_get_numbers(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "distilbert", TOKEN_CLASSIFICATION)
    change_config(source, id2label=None, label2id=None)
    assert load_checkpoint(str(source)).config.labels == ("LABEL_0", "LABEL_1")


def test_question_answering_with_other_than_two_logits_is_refused(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", QUESTION_ANSWERING, num_labels=3)
    assert "3 labels, expected 2 for question answering" in refusal(source)


@pytest.mark.parametrize(
    ("entries", "function"),
    [
        ({"num_labels": 3}, "softmax"),
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, "none"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "none"),
    ],
)
def test_what_turns_logits_into_scores(tmp_path, entries, function):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", SEQUENCE_CLASSIFICATION, **entries)
    assert load_checkpoint(str(source)).config.score_function == function


def test_a_pooling_without_an_embedding_is_refused(tmp_path):
    source = make_family_checkpoint(tmp_path / "checkpoint", "bert", FILL_MASK)
    assert "--pooling cls has no effect on the task fill-mask" in refusal(source, task=FILL_MASK, pooling="cls")
