"""The exported graph is the checkpoint: its weights bit for bit under their own names, its answers, its lengths."""

from __future__ import annotations

import functools
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from conftest import Script, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForMaskedLM

import model2onnx
from bert_trt.checkpoint import Checkpoint, load_checkpoint, quiet_libraries
from bert_trt.console import UserError
from bert_trt.model_files import (
    CONFIG_NAME,
    DATA_NAME,
    DEMO_NAME,
    INPUT_NAMES,
    ONNX_NAME,
    REFERENCE_NAME,
    TOKENIZER_NAME,
    ModelFolder,
)
from bert_trt.reference import reference_sequences, run_reference

TEXT = "the capital of france is [MASK]"


# --- the graph --------------------------------------------------------------------------------------------


@dataclass
class Export:
    """A checkpoint, the model that it is, and what was made of it."""

    checkpoint: dict[str, torch.Tensor]
    loaded: Checkpoint
    config: Any
    folder: Path
    graph: onnx.ModelProto


def zero_and_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a fresh BERT is: every bias zero, every layer norm's weight one, so that many weights are equal."""
    for name, weight in weights.items():
        if name.endswith("bias"):
            weight.zero_()
        elif name.endswith("LayerNorm.weight"):
            weight.fill_(1)
    return weights


def one_matrix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Query, key and value of all layers share their bits, symmetric, so that the transposed is equal too."""
    for name, weight in weights.items():
        if re.search(r"self\.(query|key|value)\.weight", name):
            weight.copy_(torch.eye(len(weight)))
    return weights


def half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint stored in fp16."""
    return {name: weight.half() for name, weight in weights.items()}


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An untied checkpoint of older transformers holds the head's bias under its other name alone."""
    return {name: weight for name, weight in weights.items() if name != "cls.predictions.decoder.bias"}


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def change_weights(folder: Path, change: Change) -> None:
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


KINDS: dict[str, tuple[dict[str, Any], Change | None]] = {
    "random": ({}, None),
    "equal weights": ({}, zero_and_one),
    "equal symmetric matrices": ({"num_hidden_layers": 1}, one_matrix),
    "untied": ({"tie_word_embeddings": False}, zero_and_one),
    "untied, old names": ({"tie_word_embeddings": False, "num_hidden_layers": 1}, old_names),
    "no head": ({"head": False}, None),
    "gelu_new": ({"hidden_act": "gelu_new", "num_hidden_layers": 1}, None),
    "relu, fp16": ({"hidden_act": "relu", "num_hidden_layers": 1}, half),
    # Around the sizes at which the exporter's constant folding changes its mind: 8192 and 512 × 512 elements.
    "tiny": ({"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "type_vocab_size": 1}, None),
    "wide, square table": ({"num_hidden_layers": 1, "intermediate_size": 2100, "vocab_size": 128}, None),
}


@pytest.fixture(scope="module", params=list(KINDS))
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    sizes, change = KINDS[request.param]
    source = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), **sizes)
    if change is not None:
        change_weights(source, change)
    folder = tmp_path_factory.mktemp("model")
    quiet_libraries()
    model2onnx.export(str(source), TEXT, folder)
    loaded = load_checkpoint(str(source))
    return Export(
        load_file(source / "model.safetensors"), loaded, loaded.config, folder, onnx.load(folder / ONNX_NAME)
    )


def expected_weights(export: Export) -> dict[str, np.ndarray]:
    """What the checkpoint's file holds, in fp32."""
    weights = {name: weight.float().numpy() for name, weight in export.checkpoint.items()}
    if "cls.predictions.decoder.weight" in weights:  # untied: one bias, under the name of the module that adds it
        bias = weights.pop("cls.predictions.bias")
        weights.setdefault("cls.predictions.decoder.bias", bias)
    return weights


def test_initializers_are_the_checkpoints_weights_by_name_and_bit_for_bit(export):
    expected = expected_weights(export)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in export.graph.graph.initializer}
    floats = {name: array for name, array in found.items() if array.dtype.kind == "f" and array.ndim > 0}
    assert sorted(floats) == sorted(expected)
    for name, array in floats.items():
        assert array.dtype == np.float32, name
        assert array.shape == expected[name].shape, name
        assert array.tobytes() == expected[name].tobytes(), name


def test_each_module_reads_its_own_weight(export):
    """Names are right even where bits are equal: MatMul and Add of one Linear carry the same module's name."""
    names = set(expected_weights(export))
    readers = {name: node for node in export.graph.graph.node for name in node.input if name in names}
    assert set(readers) == names
    made_by = {output: node for node in export.graph.graph.node for output in node.output}
    for name, node in readers.items():
        if name.endswith("dense.bias") or re.search(r"(query|key|value)\.bias$", name):
            (product,) = [made_by[value] for value in node.input if value in made_by]
            assert list(made_by[product.input[1]].input) == [name.replace(".bias", ".weight")]
        if name.endswith("LayerNorm.weight"):
            assert node.op_type == "LayerNormalization"
            assert list(node.input[1:]) == [name, name.replace(".weight", ".bias")]
        if name.endswith("_embeddings.weight"):
            kind = name.split(".")[-2].removesuffix("_embeddings")
            gathers = [n for n in export.graph.graph.node if n.op_type == "Gather" and n.input[0] == name]
            source = {"word": "input_ids", "token_type": "token_type_ids", "position": "position_ids"}[kind]
            assert [gather.input[1] for gather in gathers] == [source]


def test_inputs_and_output_have_the_names_shapes_and_types_that_are_promised(export):
    described = {}
    for value in (*export.graph.graph.input, *export.graph.graph.output):
        tensor = value.type.tensor_type
        described[value.name] = (tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim])
    output = "logit" if export.config.has_head else "last_hidden_state"
    assert [value.name for value in export.graph.graph.input] == list(INPUT_NAMES)
    for name in INPUT_NAMES:
        assert described[name] == (onnx.TensorProto.INT64, [1, "sequence"])
    width = export.config.vocab_size if export.config.has_head else export.config.hidden_size
    assert list(described)[3:] == [output]
    assert described[output] == (onnx.TensorProto.FLOAT, [1, "sequence", width])


def random_inputs(config: Any, length: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(config.vocab_size, size=(1, length)),
        "token_type_ids": rng.integers(config.type_vocab_size, size=(1, length)),
        "position_ids": rng.permutation(config.max_positions)[None, :length],  # not 0, 1, 2: they must be read
    }


def relative_error(values: np.ndarray, reference: np.ndarray) -> float:
    assert values.shape == reference.shape
    return float(np.linalg.norm(values - reference.astype(np.float64)) / np.linalg.norm(reference))


def test_the_graph_answers_as_pytorch_does_at_every_length(export):
    evaluator = ReferenceEvaluator(export.graph)
    for length in (1, 2, 17, export.config.max_positions):
        inputs = random_inputs(export.config, length, seed=length)
        answers: Any = evaluator.run(None, inputs)
        with torch.inference_mode():  # at positions of the test's own
            output = export.loaded.reference(**{name: torch.from_numpy(ids) for name, ids in inputs.items()})
        reference = output.logits if export.config.has_head else output.last_hidden_state
        error = relative_error(answers[0], reference.numpy())
        # Both round to fp32 after every operation; measured: at most 1.3e-6.
        assert error <= 4e-6, (length, error)


def test_nothing_of_the_exporting_machine_is_in_the_files(export):
    for path in export.folder.iterdir():
        if path.name not in (DATA_NAME, DEMO_NAME):
            content = path.read_bytes()
            for trace in (b"site-packages", b".py", str(Path.home()).encode() + b"/", str(export.folder).encode()):
                assert trace not in content, (path.name, trace)


def test_the_folder_holds_what_the_other_scripts_read_and_nothing_else(export):
    names = {path.name for path in export.folder.iterdir()}
    answers = {DEMO_NAME, REFERENCE_NAME}
    assert names == {ONNX_NAME, DATA_NAME, CONFIG_NAME, TOKENIZER_NAME, "tokenizer_config.json", *answers}
    folder = ModelFolder(export.folder)
    assert folder.config == export.config
    weights = folder.weights()
    for tensor in export.graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = weights.get(tensor.name, tuple(tensor.dims))
            np.testing.assert_array_equal(array, numpy_helper.to_array(tensor), strict=True)


def test_the_example_is_the_sentence_and_pytorchs_answer(export):
    demo = ModelFolder(export.folder).demo()
    assert demo.text == TEXT
    tokens = ModelFolder(export.folder).tokens()
    pieces = [tokens[number] for number in demo.inputs["input_ids"][0]]
    assert pieces == ["[CLS]", "the", "capital", "of", "france", "i", "##s", "[MASK]", "[SEP]"]
    assert demo.inputs["position_ids"].tolist() == [list(range(9))]
    assert demo.inputs["token_type_ids"].tolist() == [[0] * 9]
    assert demo.mask_positions == ([7] if export.config.has_head else [])
    with torch.no_grad():
        answer = export.loaded.reference(
            input_ids=torch.from_numpy(demo.inputs["input_ids"]), output_hidden_states=True
        )  # token types and positions are these by default
    reference = answer.logits if export.config.has_head else answer.last_hidden_state
    assert demo.output.dtype == demo.hidden_states.dtype == np.float32
    assert relative_error(demo.output, reference.numpy()) <= 1e-6
    assert relative_error(demo.hidden_states, torch.cat(answer.hidden_states).numpy()) <= 1e-6


@given(
    heads=st.integers(1, 3),
    head_size=st.integers(1, 20),
    inner=st.integers(1, 300),
    types=st.integers(1, 3),
    extra_words=st.integers(0, 100),
    positions=st.integers(3, 70),
    tied=st.booleans(),
    head=st.booleans(),
)
@settings(max_examples=3, deadline=None)
def test_checkpoints_of_any_size_keep_their_weights(
    tmp_path_factory: Any, heads: int, head_size: int, inner: int, types: int, extra_words: int, **options: Any
):
    source = make_checkpoint(
        tmp_path_factory.mktemp("any"),
        head=options["head"],
        tie_word_embeddings=options["tied"],
        max_position_embeddings=options["positions"],
        num_hidden_layers=1,
        num_attention_heads=heads,
        hidden_size=heads * head_size,
        intermediate_size=inner,
        type_vocab_size=types,
        vocab_size=71 + extra_words,
    )
    folder = tmp_path_factory.mktemp("any_model")
    model2onnx.export(str(source), "[MASK]", folder)
    loaded = load_checkpoint(str(source))
    made = Export(
        load_file(source / "model.safetensors"), loaded, loaded.config, folder, onnx.load(folder / ONNX_NAME)
    )
    test_initializers_are_the_checkpoints_weights_by_name_and_bit_for_bit(made)


# --- weights that the exporter changed or lost --------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_again(checkpoint: Path) -> tuple[Any, Callable[[], ir.Model]]:
    """The model, and a function that copies its graph."""
    quiet_libraries()
    loaded = load_checkpoint(str(checkpoint))
    model, config = loaded.model, loaded.config
    inputs, _ = model2onnx.tokenize(TEXT, loaded.tokenizer, config)
    proto = ir.to_proto(model2onnx.export_onnx(model, inputs, config))
    return model, lambda: ir.from_proto(proto)


QUERY = "bert.encoder.layer.1.attention.self.query"


def test_naming_weights_again_changes_nothing(exported_again):
    model, fresh = exported_again
    onnx_model = fresh()
    before = list(onnx_model.graph.initializers)
    model2onnx.check_weights(onnx_model, model)
    assert list(onnx_model.graph.initializers) == before


@pytest.mark.parametrize("name", [f"{QUERY}.weight", f"{QUERY}.bias", "bert.embeddings.word_embeddings.weight"])
def test_one_changed_bit_of_a_weight_is_an_error_that_names_it(exported_again, name):
    model, fresh = exported_again
    onnx_model = fresh()
    value = onnx_model.graph.initializers[name]
    changed = value.const_value.numpy().copy()
    changed.reshape(-1).view(np.uint32)[-1] ^= 1
    value.const_value = ir.tensor(changed, name=name)
    with pytest.raises(UserError) as raised:
        model2onnx.check_weights(onnx_model, model)
    assert f"weight '{name}' {list(changed.shape)} equals no parameter of the checkpoint" in str(raised.value)
    assert "the exporter changed it" in str(raised.value)


def test_a_reshaped_weight_is_an_error_that_names_it(exported_again):
    model, fresh = exported_again
    onnx_model = fresh()
    value = onnx_model.graph.initializers[f"{QUERY}.bias"]
    value.const_value = ir.tensor(value.const_value.numpy().reshape(2, 64), name=value.name)
    with pytest.raises(UserError, match=re.escape(f"weight '{QUERY}.bias' [2, 64] equals no parameter")):
        model2onnx.check_weights(onnx_model, model)


def test_a_parameter_that_the_graph_lacks_is_named(exported_again):
    model, fresh = exported_again
    onnx_model = fresh()
    del onnx_model.graph.initializers[f"{QUERY}.bias"]
    with pytest.raises(UserError) as raised:
        model2onnx.check_weights(onnx_model, model)
    assert f"parameter '{QUERY}.bias' of the checkpoint is not in the ONNX graph" in str(raised.value)


def test_equal_weights_that_were_merged_are_an_error_that_names_the_lost_one(exported_again):
    model, fresh = exported_again
    onnx_model = fresh()
    kept, merged = (onnx_model.graph.initializers[f"{QUERY}.{part}"] for part in ("bias", "weight"))
    merged.const_value = kept.const_value
    with pytest.raises(UserError, match="equals no parameter"):
        model2onnx.check_weights(onnx_model, model)


# --- bad checkpoints --------------------------------------------------------------------------------------


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "damaged"))


def refusal(folder: Path | str) -> str:
    quiet_libraries()
    with pytest.raises(UserError) as raised:
        load_checkpoint(str(folder))
    assert str(raised.value).startswith(f"--model {folder}: ")
    return str(raised.value)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_kind_of_model_is_refused(damaged):
    change_config(damaged, model_type="gpt2")
    assert "config.json: model_type is 'gpt2', expected one of bert, roberta, xlm-roberta, " in refusal(damaged)


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "abc"), ("vocab_size", None), ("layer_norm_eps", "x")])
def test_a_wrong_type_in_the_configuration_is_named(damaged, key, value):
    change_config(damaged, **{key: value})
    told = refusal(damaged)
    assert f"'{key}' expected" in told
    assert "correct the value" in told


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "\0"])
def test_an_unreadable_configuration_is_refused_with_what_was_expected(damaged, content):
    (damaged / "config.json").unlink()
    if content is not None:
        (damaged / "config.json").write_text(content)
    told = refusal(damaged)
    assert "expected config.json, model.safetensors (or pytorch_model.bin with nothing but tensors)" in told
    assert "and tokenizer files in Hugging Face layout" in told


def test_code_that_comes_with_a_checkpoint_is_never_run(damaged):
    (damaged / "evil.py").write_text("raise SystemExit('run')\nclass Config: pass\n")
    change_config(damaged, model_type="new_bert", auto_map={"AutoConfig": "evil.Config"})
    start = time.perf_counter()
    refusal(damaged)
    assert time.perf_counter() - start < 5  # without asking, which would wait for an answer


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "../nowhere/x"])
def test_a_path_that_is_no_folder_is_refused(name):
    assert "no such folder; expected a checkpoint folder with config.json" in refusal(name)


def test_a_file_in_the_place_of_the_folder_is_refused(damaged):
    assert "no such folder" in refusal(damaged / "config.json")


@pytest.mark.parametrize("name", ["a b", "a/b/c", "x" * 5000])
def test_a_name_that_cannot_be_a_model_is_refused_with_the_remedy(name):
    told = refusal(name)
    assert "checkpoint folder" in told


def test_an_empty_name_is_refused():
    with pytest.raises(UserError, match="--model is empty; give a checkpoint folder or a hub name"):
        load_checkpoint("")


def test_safetensors_truncated_anywhere_are_corrupt(damaged):
    path = damaged / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 100, 1000, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        told = refusal(damaged)
        assert "model.safetensors is corrupt" in told, length
        assert "copy or download it again" in told, length


def test_garbage_in_the_place_of_safetensors_is_corrupt(damaged):
    (damaged / "model.safetensors").write_bytes(b"garbage " * 1000)
    assert "model.safetensors is corrupt" in refusal(damaged)


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY}.weight",
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.LayerNorm.bias",
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",  # not a reason to drop the whole head
        "cls.predictions.transform.LayerNorm.bias",
    ],
)
def test_a_missing_weight_is_named(damaged, name):
    change_weights(damaged, lambda weights: {key: weight for key, weight in weights.items() if key != name})
    told = refusal(damaged)
    assert f"first '{name}'" in told
    assert "incomplete, or not a checkpoint of that kind" in told


def test_a_missing_weight_of_a_model_without_a_head_is_named(tmp_path):
    make_checkpoint(tmp_path, head=False)
    name = "encoder.layer.0.output.dense.bias"
    change_weights(tmp_path, lambda weights: {key: weight for key, weight in weights.items() if key != name})
    assert f"lacks 1 weights of a BertModel, first '{name}'" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["cls.predictions.decoder.weight", "both biases"])
def test_a_missing_weight_of_an_untied_head_is_named(tmp_path, name):
    make_checkpoint(tmp_path, tie_word_embeddings=False)
    gone = ["cls.predictions.bias", "cls.predictions.decoder.bias"] if name == "both biases" else [name]
    change_weights(tmp_path, lambda weights: {key: weight for key, weight in weights.items() if key not in gone})
    assert f"lacks {len(gone)} weights of a BertForMaskedLM, first '{gone[0]}'" in refusal(tmp_path)


def test_a_wrongly_shaped_weight_is_named_with_both_shapes(damaged):
    change_weights(damaged, lambda weights: weights | {f"{QUERY}.weight": torch.zeros(128, 127)})
    told = refusal(damaged)
    assert f"weight '{QUERY}.weight' is [128, 127], expected [128, 128]" in told
    assert "config.json and the weights do not belong together" in told


def test_names_of_the_first_bert_checkpoints_are_read(damaged):
    def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        return {re.sub(r"LayerNorm\.\w+", lambda found: old[found[0]], name): w for name, w in weights.items()}

    loaded = load_checkpoint(str(damaged))
    before, _ = loaded.reference, loaded.config
    change_weights(damaged, rename)
    loaded = load_checkpoint(str(damaged))
    after, _ = loaded.reference, loaded.config
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]), name


def test_weights_that_bert_does_not_read_are_ignored(damaged):
    extra = {"bert.pooler.dense.weight": torch.ones(128, 128), "cls.seq_relationship.weight": torch.ones(2, 128)}
    change_weights(damaged, lambda weights: weights | extra)
    assert load_checkpoint(str(damaged)).config.has_head


def test_a_checkpoint_in_several_files_is_read(damaged):
    model = BertForMaskedLM.from_pretrained(damaged)
    (damaged / "model.safetensors").unlink()
    model.save_pretrained(damaged, max_shard_size="300KB")
    parts = sorted(damaged.glob("model-*.safetensors"))
    assert len(parts) > 1
    load_checkpoint(str(damaged))
    parts[1].unlink()
    assert parts[1].name in refusal(damaged)


# The keys of a configuration that transformers knows, those of a BERT and those of every model, besides its sizes.
CONFIG_KEYS = sorted(
    set(transformers.BertConfig().to_dict())
    | set(transformers.PretrainedConfig().to_dict())
    | {
        *("attn_implementation", "attribute_map", "auto_map", "base_model_pp_plan", "base_model_tp_plan", "decoder"),
        *("experts_implementation", "generation_config", "gradient_checkpointing", "is_encoder_decoder", "label2id"),
        *("layer_types", "name_or_path", "num_labels", "pruned_heads", "quantization_config", "rope_parameters"),
        *("rope_scaling", "sub_configs", "task_specific_params", "tokenizer_class", "torch_dtype"),
    }
)
WRONG_VALUES = [5, "text", ["a"], {"a": {"b": [1]}}, None, False]
SIZES = {"vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "type_vocab_size"}
TOLD_OTHERWISE = dict.fromkeys(
    SIZES, "do not belong together"
) | {  # where the value is right, and the weights differ
    "num_hidden_layers": "the checkpoint lacks",
    "tie_word_embeddings": "the checkpoint lacks",
    "quantization_config": "quantization config",  # in words of transformers
    "rope_parameters": "rope",
    "rope_scaling": "rope",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_libraries()
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), num_hidden_layers=1, hidden_size=16, intermediate_size=24)


@pytest.mark.parametrize("key", CONFIG_KEYS)
def test_a_configuration_value_of_another_type_is_refused_by_name_or_changes_nothing(tiny, key):
    path = tiny / "config.json"
    before = path.read_text()
    loaded = load_checkpoint(str(tiny))
    inputs, _ = model2onnx.tokenize(TEXT, loaded.tokenizer, loaded.config)
    expected, _ = model2onnx.run_pytorch(loaded, inputs)
    try:
        for value in WRONG_VALUES:
            path.write_text(json.dumps(json.loads(before) | {key: value}))
            try:
                loaded = load_checkpoint(str(tiny))
            except UserError as error:
                told = str(error)
                assert told.startswith(f"--model {tiny}: "), told
                assert key in told or TOLD_OTHERWISE.get(key, key) in told, (value, told)
                assert "\n" not in told
            else:
                answer, _ = model2onnx.run_pytorch(loaded, inputs)
                if answer.shape == expected.shape:  # not those of a model whose head is left out
                    assert np.array_equal(answer, expected) or key == "hidden_act", value
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("layer_types", 5, "an entry that no supported model has"),
        ("rope_scaling", "text", "an entry that no supported model has"),
        ("auto_map", {"AutoModel": "code.Model"}, "expected None; only plain encoders can be used"),
        ("position_embedding_type", "relative_key", "expected 'absolute'"),
        ("is_decoder", True, "expected False"),
        ("pruned_heads", {"0": [1]}, "expected {}"),
    ],
)
def test_an_entry_that_may_change_the_computation_is_refused_by_name_and_can_be_ignored(damaged, key, value, reason):
    path = damaged / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    told = refusal(damaged)
    assert told.startswith(f"--model {damaged}: config.json: {key} is {value!r}, {reason}")
    assert told.endswith(f"if it has no effect on the answer, add --ignore-config {key}")


def test_an_entry_of_the_users_own_can_be_ignored(damaged):
    path = damaged / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"my_note": 5}))
    assert "my_note is 5, an entry that no supported model has" in refusal(damaged)
    assert load_checkpoint(str(damaged), ignore_config=("my_note",)).config.has_head


def test_the_entry_that_transformers_cannot_use_is_shown_with_its_value_and_the_remedy(damaged):
    path = damaged / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 1000}))
    told = refusal(damaged)
    assert told.startswith(f"--model {damaged}: config.json: pad_token_id is 1000, which transformers cannot use (")
    assert told.endswith("); correct or remove it")


# --- weights that are no numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_place_and_their_number(damaged, value, dtype):
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
        weights[f"{QUERY}.weight"][3, 7] = value
        weights[f"{QUERY}.weight"][100, 2] = value
        weights["cls.predictions.bias"][1] = value  # a later one
        return weights

    change_weights(damaged, change)
    told = refusal(damaged)
    assert (
        f"weight '{QUERY}.weight' has 2 values that are not finite, of 16384; the first is {value} at [3, 7]" in told
    )


def test_a_checkpoint_that_overflowed_when_it_was_saved_in_fp16_is_refused(damaged):
    def overflow(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["bert.embeddings.word_embeddings.weight"][5] = 1e5
        return half(weights)

    change_weights(damaged, overflow)
    told = refusal(damaged)
    assert "weight 'bert.embeddings.word_embeddings.weight' has 128 values that are not finite" in told
    assert "too large for the type in which it was saved, such as fp16" in told


def test_the_largest_finite_weights_are_accepted_and_an_answer_that_overflows_is_refused(damaged):
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["bert.encoder.layer.0.intermediate.dense.weight"].fill_(torch.finfo(torch.float32).max)
        return weights

    change_weights(damaged, change)
    loaded = load_checkpoint(str(damaged))
    inputs, _ = model2onnx.tokenize(TEXT, loaded.tokenizer, loaded.config)
    with pytest.raises(UserError, match="PyTorch's answer in fp32 has values that are not finite"):
        model2onnx.run_pytorch(loaded, inputs)


def test_weights_that_bert_does_not_read_may_be_anything(damaged):
    change_weights(damaged, lambda weights: weights | {"bert.pooler.dense.bias": torch.full((128,), float("nan"))})
    load_checkpoint(str(damaged))


def remove_tokenizer(folder: Path, *kept: str) -> None:
    for name in {"tokenizer.json", "tokenizer_config.json", "vocab.txt"} - set(kept):
        (folder / name).unlink()


def test_vocab_txt_is_tokenizer_enough(damaged, checkpoint):
    remove_tokenizer(damaged, "vocab.txt")
    tokenizers = [load_checkpoint(str(folder)).tokenizer for folder in (damaged, checkpoint)]
    assert tokenizers[0](TEXT)["input_ids"] == tokenizers[1](TEXT)["input_ids"]


def test_a_checkpoint_without_a_tokenizer_is_refused(damaged):
    remove_tokenizer(damaged)
    told = refusal(damaged)
    assert "the tokenizer has no words; expected tokenizer.json or vocab.txt" in told


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"added_tokens": []}'])
def test_a_damaged_tokenizer_is_refused(damaged, content):
    (damaged / "tokenizer.json").write_text(content)
    told = refusal(damaged)
    assert "the tokenizer" in told
    assert "expected tokenizer.json or vocab.txt" in told


def test_a_vocabulary_without_its_special_words_is_refused(damaged):
    remove_tokenizer(damaged, "vocab.txt")
    (damaged / "vocab.txt").write_text("the\ncapital\n")
    loaded = load_checkpoint(str(damaged))
    tokenizer, config = loaded.tokenizer, loaded.config
    with pytest.raises(UserError, match="vocabulary is incomplete or damaged"):
        model2onnx.tokenize("paris [MASK]", tokenizer, config)


# --- the sentence -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> tuple[Any, Any]:
    quiet_libraries()
    loaded = load_checkpoint(str(checkpoint))
    tokenizer, config = loaded.tokenizer, loaded.config
    return tokenizer, config


@pytest.mark.parametrize("text", ["caf\u00e9 [MASK]", "the capital [MASK]", "\u5317\u4eac [MASK]"])
def test_the_text_is_the_same_in_an_ascii_locale(text):
    """There Python makes of every other byte of the command line a surrogate."""
    assert model2onnx.decode_text(text.encode().decode("ascii", "surrogateescape")) == text
    assert model2onnx.decode_text(text) == text


@pytest.mark.parametrize("text", ["[MASK] \udcff", "[MASK] \ud800"])
def test_bytes_of_the_command_line_that_are_no_text_are_refused(text):
    with pytest.raises(UserError) as raised:
        model2onnx.decode_text(text)
    assert str(raised.value).startswith(f"--text {text!a} is not valid text (")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("the capital", "--text 'the capital' has no [MASK]; write it where a word is to be filled in"),
        ("", "--text '' has no [MASK]"),
        ("a " * 62 + "[MASK]", "--text: 65 tokens, but the position table has 64; shorten the text"),
    ],
)
def test_a_sentence_that_cannot_be_used_is_refused_with_the_remedy(loaded, text, told):
    with pytest.raises(UserError) as raised:
        model2onnx.tokenize(text, *loaded)
    assert told in str(raised.value)


def test_a_sentence_may_be_as_long_as_the_position_table_and_no_longer(loaded):
    inputs, positions = model2onnx.tokenize("a " * 61 + "[MASK]", *loaded)
    assert inputs["input_ids"].shape == (1, 64)
    assert positions == [62]


def test_all_masks_are_found(loaded):
    assert model2onnx.tokenize("[MASK] of [MASK]", *loaded)[1] == [1, 3]


PAIR = ("the capital of [MASK]", "paris , lyon")


@pytest.mark.parametrize("text", [PAIR, (" [SEP] ".join(PAIR), None)])
def test_a_pair_has_two_token_types_however_it_is_given(loaded, text):
    tokenizer, config = loaded
    first, second = text
    inputs, positions = model2onnx.tokenize(first, tokenizer, config, second)
    expected = tokenizer(*PAIR)  # [CLS] the capital of [MASK] [SEP] paris , lyon [SEP]
    assert inputs["input_ids"].tolist() == [expected["input_ids"]]
    assert inputs["token_type_ids"].tolist() == [expected["token_type_ids"]] == [[0] * 6 + [1] * 4]
    assert inputs["token_type_ids"].dtype == np.int64
    assert positions == [4]


def test_the_mask_of_a_pair_may_be_in_either(loaded):
    assert model2onnx.tokenize("paris", *loaded, text_pair="[MASK]")[1] == [3]
    with pytest.raises(UserError, match=re.escape("--text 'paris' --text-pair 'lyon' has no [MASK]")):
        model2onnx.tokenize("paris", *loaded, text_pair="lyon")


def test_a_pair_is_exported_and_answered(checkpoint, tmp_path, in_process):
    ended = in_process(
        model2onnx.main, *("--model", checkpoint, "--out-dir", tmp_path, "--text", PAIR[0], "--text-pair", PAIR[1])
    )
    assert ended.code == 0, ended.err
    assert "PyTorch fp32: the capital of [MASK] [SEP] paris , lyon" in ended.out
    demo = ModelFolder(tmp_path).demo()
    assert demo.text == "the capital of [MASK] [SEP] paris , lyon"
    assert demo.inputs["token_type_ids"].tolist() == [[0] * 6 + [1] * 4]
    model: Any = BertForMaskedLM.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        answer = model(**{name: torch.from_numpy(ids) for name, ids in demo.inputs.items()}).logits
    assert relative_error(demo.output, answer.numpy()) <= 1e-6


def test_a_tokenizer_with_more_words_than_the_embedding_table_is_refused(tmp_path):
    make_checkpoint(tmp_path)
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("berlin\n")
    remove_tokenizer(tmp_path, "vocab.txt")
    loaded = load_checkpoint(str(tmp_path))
    tokenizer, config = loaded.tokenizer, loaded.config
    model2onnx.tokenize("paris [MASK]", tokenizer, config)
    with pytest.raises(UserError) as raised:
        model2onnx.tokenize("berlin [MASK]", tokenizer, config)
    assert str(raised.value) == "--text: input_ids[0, 1] is 71, outside the vocabulary (0 to 70)"


def test_a_tokenizer_without_a_mask_word_is_refused(loaded, monkeypatch):
    tokenizer, config = loaded
    monkeypatch.setattr(type(tokenizer), "mask_token", None, raising=False)
    with pytest.raises(UserError, match=r"tokenizer has no mask token; expected one, such as \[MASK\]"):
        model2onnx.tokenize("[MASK]", tokenizer, config)


def test_words_with_brackets_and_rows_without_a_word_are_shown(loaded, capsys):
    class Tokenizer:
        def convert_ids_to_tokens(self, number: int) -> str | None:
            return None if number == 11 else f"[unused{number}]"

    logits = np.full((2, 30), -100, np.float32)
    logits[1, 2:12] = np.arange(10)
    model2onnx.print_predictions("[red] [MASK]", logits, 1, Tokenizer())
    shown = capsys.readouterr().out
    assert "[red] [MASK]" in shown
    assert "[unknown id 11]" in shown
    assert all(f"[unused{number}]" in shown for number in range(2, 11))
    assert "0.6321" in shown  # softmax of 0 … 9: 1 − 1/e for the largest, to four places


# --- the command line -------------------------------------------------------------------------------------


def fails(answer: Any, *told: str) -> None:
    assert answer.returncode == 1, answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stderr.startswith("error: ")
    for part in told:
        assert part in answer.stderr


def test_the_script_exports_and_shows_ten_words(script: Script, checkpoint, model_dir, tmp_path):
    text = "The capital of France, [MASK], contains the Eiffel Tower."
    answer = script("model2onnx.py", "--model", checkpoint, "--out-dir", tmp_path / "a" / "[b]:b:", "--text", text)
    assert answer.returncode == 0, answer.stderr
    assert f"1.1 MiB of weights -> {tmp_path / 'a' / '[b]:b:'}" in answer.stdout
    assert len(re.findall(r"│ +\d+ │ \S+ +│ +0\.\d{4} │", answer.stdout)) == 10
    for name in (ONNX_NAME, DATA_NAME, CONFIG_NAME, TOKENIZER_NAME):  # from run to run the same
        assert (tmp_path / "a" / "[b]:b:" / name).read_bytes() == (model_dir / name).read_bytes(), name


def test_a_hub_name_without_network_fails_quickly_with_the_remedy(script: Script):
    start = time.perf_counter()
    answer = script("model2onnx.py", "--model", "bert-base-uncased")
    assert time.perf_counter() - start < 30
    fails(answer, "bert-base-uncased", "check the name and the network, or give a local checkpoint folder")


def test_a_file_in_the_place_of_the_out_dir_is_told_before_the_long_work(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    monkeypatch.setattr(model2onnx, "export_onnx", lambda *_: pytest.fail("exported for nothing"))
    with pytest.raises(UserError) as raised:
        model2onnx.export(str(checkpoint), TEXT, tmp_path / "file")
    assert str(raised.value) == f"cannot create the folder {tmp_path / 'file'}: File exists; name another"
    assert (tmp_path / "file").read_text() == "precious"


def test_text_without_a_mask_fails_before_anything_is_written(script: Script, checkpoint, tmp_path):
    answer = script(
        "model2onnx.py", "--model", checkpoint, "--out-dir", tmp_path / "new", "--text", "[unused1] paris"
    )
    fails(answer, "--text '[unused1] paris' has no [MASK]; write it where a word is to be filled in")
    assert not (tmp_path / "new").exists()


def test_wrong_usage_ends_with_exit_code_2(script: Script):
    answer = script("model2onnx.py", "--nonsense")
    assert answer.returncode == 2
    assert "usage: model2onnx.py" in answer.stderr
    assert "--nonsense" in answer.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_disk_that_fills_up_leaves_the_old_model_whole(checkpoint, model_dir, tmp_path, monkeypatch):
    """The last file does not fit: of the files before it none may have been replaced either."""
    folder = Path(shutil.copytree(model_dir, tmp_path / "model"))
    (folder / "timing.cache").write_bytes(b"cache")
    before = contents(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError) as raised:
        patch.setattr(np, "savez", full)
        model2onnx.export(str(checkpoint), TEXT, folder)
    assert str(raised.value).startswith(f"cannot write {folder}: No space left on device; free some space")
    assert contents(folder) == before
    model2onnx.export(str(checkpoint), TEXT, folder)
    assert ModelFolder(folder).demo().text == TEXT
    assert (folder / "timing.cache").read_bytes() == b"cache"


# --- sequences of several lengths -----------------------------------------------------------------------------


def test_reference_sequences_have_both_types_masks_and_every_length(checkpoint, model_dir):
    sequences = ModelFolder(model_dir).reference()
    assert [len(one.input_ids) for one in sequences] == [3, 9, 33, 64]
    mask_id = AutoTokenizer.from_pretrained(checkpoint).mask_token_id
    for one in sequences[1:]:
        assert set(one.token_type_ids) == {0, 1}
        assert (one.input_ids == mask_id).sum() == 3
    assert [len(one.checked) for one in sequences] == [3, 9, 32, 32]
    for one in sequences:
        assert {0, len(one.input_ids) - 1} <= set(one.checked)
        assert len(set(one.input_ids)) > len(one.input_ids) // 3  # no text of unknown words


def test_reference_answers_are_those_of_each_sequence_alone(checkpoint, model_dir):
    """PyTorch's own attention mask was used: padding changes nothing."""
    loaded = load_checkpoint(str(checkpoint))
    model, _ = loaded.reference, loaded.config
    for one in ModelFolder(model_dir).reference():
        with torch.inference_mode():
            ids, types = torch.from_numpy(one.input_ids[None]), torch.from_numpy(one.token_type_ids[None])
            logits = model(input_ids=ids, token_type_ids=types).logits[0].numpy()
        np.testing.assert_allclose(one.output, logits[one.checked], rtol=1e-4, atol=1e-4)


def test_without_an_attention_mask_the_answers_would_be_others(checkpoint, monkeypatch):
    loaded = load_checkpoint(str(checkpoint))
    sequences = reference_sequences(loaded.tokenizer, loaded.config)
    right = run_reference(loaded, sequences)
    forward = loaded.reference.forward

    def without_mask(attention_mask: torch.Tensor, **inputs: Any) -> Any:
        return forward(attention_mask=torch.ones_like(attention_mask), **inputs)

    monkeypatch.setattr(loaded.reference, "forward", functools.wraps(forward)(without_mask))
    wrong = run_reference(loaded, sequences)
    assert np.abs(right[0].output - wrong[0].output).max() > 0.01
    np.testing.assert_array_equal(right[1].output, wrong[1].output)  # the longest of its batch


@pytest.mark.parametrize("positions", [1, 2, 3, 8])
def test_reference_sequences_fit_short_position_tables(tmp_path, positions):
    source = make_checkpoint(tmp_path / "source", max_position_embeddings=positions, type_vocab_size=1)
    loaded = load_checkpoint(str(source))
    sequences = reference_sequences(loaded.tokenizer, loaded.config)
    assert [len(ids) for ids, _ in sequences] == sorted({min(3, positions), positions})
    assert all((types == 0).all() for _, types in sequences)
    assert len(run_reference(loaded, sequences)) == len(sequences)
