"""What is exported is what the checkpoint's weights say, not its configuration; nothing is left out without a word.

Each checkpoint here is one that tools write or hands make: an incomplete configuration, heads of other tasks, another
decoder, pickled weights, quantized weights.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import Script, make_checkpoint
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BertForPreTraining
from transformers.activations import ACT2FN

import builder
import model2onnx
import onnx2trt
from bert_trt.checkpoint import load_checkpoint, quiet_libraries
from bert_trt.comparison import relative_l2
from bert_trt.console import UserError
from bert_trt.model_files import ACTIVATIONS, CONFIG_NAME, BertConfig, ModelFolder, ReferenceSequence, load_onnx
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import TOLERANCES
from bert_trt.tensorrt_log import TrtLog

TEXT = "the capital of france is [MASK]"
HIDDEN, WORDS = 16, 71
SIZES: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 1}
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    quiet_libraries()


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A masked language model of one layer that a test may change."""
    return make_checkpoint(tmp_path / "masked", **SIZES)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The same without a head."""
    return make_checkpoint(tmp_path / "encoder", head=False, **SIZES)


def change_config(folder: Path, *dropped: str, **changes: object) -> None:
    path = folder / CONFIG_NAME
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in dropped}))


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def add_weights(folder: Path, prefix: str = "", **shapes: tuple[int, ...]) -> None:
    """Adds random weights, ``__`` in a name standing for a dot; the prefix goes before the names already there."""
    generator = torch.Generator().manual_seed(1)
    extra = {name.replace("__", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    change_weights(folder, lambda weights: {f"{prefix}{name}": weight for name, weight in weights.items()} | extra)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_checkpoint(str(folder), **options)
    told = str(raised.value)
    assert told.startswith(f"--model {folder}: ")
    assert "\n" not in told
    return told


def run_networks(folder: Path) -> dict[str, np.ndarray]:
    """The answers of builder.py's network and of the parser's to the folder's sentence."""
    model = ModelFolder(folder)
    demo, answers = model.demo(), {}
    bert = builder.assemble(model, TrtLog())
    answers["api"] = (
        NetworkRunner(bert.network, contents=bert.contents).run(demo.inputs)[model.config.output_name].numpy()
    )
    parsed = onnx2trt.parse(model, "fp32", TrtLog())
    runner = NetworkRunner(parsed.network, contents=parsed.contents)
    answers["parser"] = runner.run(demo.inputs)[model.config.output_name].numpy()
    return answers


def check_networks(folder: Path, reference: np.ndarray) -> None:
    for way, answer in run_networks(folder).items():
        assert answer.shape == reference.shape, way
        assert relative_l2(answer, reference) <= TOLERANCES["fp32"], way


def transformers_answer(source: Path, folder: Path) -> np.ndarray:
    """What transformers answers to the folder's sentence, from the checkpoint."""
    model: Any = BertForMaskedLM.from_pretrained(source, attn_implementation="eager").eval()
    inputs = {name: torch.from_numpy(ids) for name, ids in ModelFolder(folder).demo().inputs.items()}
    with torch.inference_mode():
        return model(**inputs).logits.numpy()


# --- architecture and head ---------------------------------------------------------------------------------


def test_a_head_that_the_configuration_claims_and_the_weights_lack_is_an_error(encoder):
    change_config(encoder, architectures=["BertForMaskedLM"])
    told = refusal(encoder)
    assert "config.json says BertForMaskedLM, but there are no weights cls.predictions.transform.*" in told
    assert told.endswith("export the bare encoder with --task hidden-states or --task embedding")
    assert load_checkpoint(str(encoder), task="hidden-states").config.output_name == "last_hidden_state"


@pytest.mark.parametrize("claimed", [None, [], ["BertForPreTraining"], ["BertModel"]])
@pytest.mark.parametrize("head", [True, False])
def test_the_head_is_the_one_that_was_loaded_whatever_the_configuration_claims(masked, encoder, claimed, head):
    source = masked if head else encoder
    change_config(source, architectures=claimed)
    loaded = load_checkpoint(str(source))
    model, config = loaded.reference, loaded.config
    assert config.has_head == head
    assert model.config.architectures == ["BertForMaskedLM" if head else "BertModel"]


@pytest.mark.parametrize("head", [True, False])
def test_a_configuration_without_architectures_is_written_with_one(masked, encoder, tmp_path, head):
    source, folder = masked if head else encoder, tmp_path / "out"
    change_config(source, "architectures")
    model2onnx.export(str(source), TEXT, folder)
    written = json.loads((folder / CONFIG_NAME).read_text())
    assert written["architectures"] == ["BertForMaskedLM" if head else "BertModel"]
    reference = ModelFolder(folder).demo().output
    assert reference.shape[-1] == (WORDS if head else HIDDEN)
    check_networks(folder, reference)


def test_a_checkpoint_of_bert_for_pre_training_is_a_masked_language_model(tmp_path, capsys):
    """As bert-base-uncased is: a pooler and a next-sentence head, which no masked word depends on."""
    source, folder = make_checkpoint(tmp_path / "source", **SIZES), tmp_path / "out"
    BertForPreTraining.from_pretrained(source).save_pretrained(source)
    assert json.loads((source / CONFIG_NAME).read_text())["architectures"] == ["BertForPreTraining"]
    model2onnx.export(str(source), TEXT, folder)
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith(f"note: --model {source}: not exported: bert.pooler.dense.{{bias,weight}} (the pooler); ")
    assert "cls.seq_relationship.{bias,weight} (a next-sentence head)" in told
    check_networks(folder, transformers_answer(source, folder))


# --- tying -------------------------------------------------------------------------------------------------

OTHERS = {
    "other weight": {"cls__predictions__decoder__weight": (WORDS, HIDDEN)},
    "other bias": {"cls__predictions__decoder__bias": (WORDS,)},
    "both": {"cls__predictions__decoder__weight": (WORDS, HIDDEN), "cls__predictions__decoder__bias": (WORDS,)},
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_a_decoder_that_is_not_the_embeddings_is_used_though_the_configuration_ties_it(masked, tmp_path, kind):
    before = Path(shutil.copytree(masked, tmp_path / "before"))
    add_weights(masked, **OTHERS[kind])
    assert json.loads((masked / CONFIG_NAME).read_text())["tie_word_embeddings"]
    folder = tmp_path / "out"
    model2onnx.export(str(masked), TEXT, folder)
    reference = transformers_answer(masked, folder)
    assert relative_l2(reference, transformers_answer(before, folder)) > 0.1  # so that it matters
    check_networks(folder, reference)
    is_tied = kind == "other bias"
    assert ModelFolder(folder).config.tied_decoder == is_tied
    names = {tensor.name for tensor in load_onnx(ModelFolder(folder).onnx_path).graph.initializer}
    assert ("cls.predictions.decoder.weight" in names) != is_tied
    assert ("cls.predictions.bias" in names) == is_tied


@pytest.mark.parametrize("name", ["cls.predictions.decoder.bias", "cls.predictions.bias"])
def test_a_tied_head_may_hold_its_bias_under_either_name_and_its_weight_twice(masked, name):
    bias = load_file(masked / "model.safetensors")["cls.predictions.bias"]

    def change(weights: Weights) -> Weights:
        weights[name] = weights.pop("cls.predictions.bias")
        return weights | {"cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"].clone()}

    change_weights(masked, change)
    loaded = load_checkpoint(str(masked))
    model, config = loaded.reference, loaded.config
    assert config.tied_decoder
    assert torch.equal(model.get_parameter("cls.predictions.decoder.bias"), bias)
    assert torch.equal(loaded.model.get_parameter("cls.predictions.bias"), bias)


# --- the check of the exported graph -------------------------------------------------------------------------


Graph = tuple[ir.Model, dict[str, np.ndarray], list[ReferenceSequence]]


@pytest.fixture
def exported(model_dir: Path) -> Graph:
    """An exported graph, its weights and PyTorch's outputs, which a test may change."""
    folder = ModelFolder(model_dir)
    graph, weights = ir.load(folder.onnx_path), {}
    for name, value in graph.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            weights[name] = value.const_value.numpy().copy()
    return graph, weights, folder.reference()


def test_an_exported_graph_passes_the_check(exported):
    model2onnx.check_onnx(*exported)


@pytest.mark.parametrize("name", ["cls.predictions.bias", "bert.embeddings.token_type_embeddings.weight"])
def test_an_exported_graph_that_answers_otherwise_than_pytorch_is_refused(exported, name):
    """Small tensors, of which the second counts only where both token types are in the sequence."""
    exported[1][name][-1:] *= 1.5
    start = "the exported ONNX graph answers otherwise than PyTorch (L2 norm of the difference "
    with pytest.raises(UserError, match=re.escape(start)):
        model2onnx.check_onnx(*exported)


def test_an_exported_graph_that_gives_nan_is_refused(exported):
    exported[1]["cls.predictions.bias"][0] = np.nan
    with pytest.raises(UserError, match=r"answers otherwise than PyTorch \(L2 norm of the difference nan"):
        model2onnx.check_onnx(*exported)


def test_an_exported_graph_that_does_not_run_is_refused(exported):
    next(node for node in exported[0].graph if node.op_type == "MatMul").op_type = "MatMull"
    with pytest.raises(UserError, match=r"the exported ONNX graph cannot be run \(.*MatMull"):
        model2onnx.check_onnx(*exported)


def test_an_export_that_fails_the_check_leaves_the_old_one(masked, model_dir, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(model_dir, tmp_path / "old"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def check(*_: object) -> None:
        raise UserError("checked")

    monkeypatch.setattr(model2onnx, "check_onnx", check)
    with pytest.raises(UserError, match="checked"):
        model2onnx.export(str(masked), TEXT, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_for_two_tokens_is_checked_too(tmp_path):
    source = make_checkpoint(tmp_path / "source", head=False, max_position_embeddings=2, **SIZES)
    model2onnx.export(str(source), "", tmp_path / "out")  # [CLS] and [SEP]


# --- what is left out --------------------------------------------------------------------------------------

POOLER = {"bert__pooler__dense__weight": (HIDDEN, HIDDEN), "bert__pooler__dense__bias": (HIDDEN,)}
NEXT_SENTENCE = {"cls__seq_relationship__weight": (2, HIDDEN), "cls__seq_relationship__bias": (2,)}
CLASSIFIER = {"classifier__weight": (3, HIDDEN), "classifier__bias": (3,)}
HEADS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "next sentence": (POOLER | NEXT_SENTENCE, "cls.seq_relationship.{bias,weight} (a next-sentence head)"),
    "of one's own": ({"my__head__2__weight": (5, HIDDEN)}, "my.head.2.weight"),
    "relative positions": (
        {"bert__encoder__layer__0__attention__self__distance_embedding__weight": (7, 8)},
        "bert.encoder.layer.0.attention.self.distance_embedding.weight",
    ),
    "part of a head": ({"cls__predictions__bias": (WORDS,)}, "cls.predictions.bias (part of a masked-language head)"),
}


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_head_that_cannot_be_exported_is_an_error_that_names_its_weights(encoder, capsys, kind):
    shapes, described = HEADS[kind]
    add_weights(encoder, prefix="bert.", **shapes)
    told = refusal(encoder)
    assert described in told
    assert ("bert.pooler.dense.{bias,weight} (the pooler)" in told) == ("bert__pooler__dense__bias" in shapes)
    assert "The encoder and one head are exported" in told
    assert told.endswith("to go on without the rest, add --ignore-extra-weights")
    assert capsys.readouterr().err == ""
    assert not load_checkpoint(str(encoder), ignore_extra_weights=True).config.has_head
    assert capsys.readouterr().err.startswith(f"warning: --model {encoder}: not exported: ")


def test_another_head_beside_a_masked_language_head_is_an_error_too(masked):
    add_weights(masked, **CLASSIFIER, **NEXT_SENTENCE, **POOLER)
    told = refusal(masked)
    assert "classifier.{bias,weight} (a classification or tagging head); cls.seq_relationship.{bias,weight}" in told
    assert load_checkpoint(str(masked), ignore_extra_weights=True).config.has_head


@pytest.mark.parametrize("head", [True, False])
def test_layers_that_the_configuration_does_not_count_are_an_error_that_names_them(tmp_path, capsys, head):
    source = make_checkpoint(tmp_path / "source", head=head, **SIZES | {"num_hidden_layers": 4})
    change_config(source, num_hidden_layers=2)
    prefix = "bert." if head else ""
    layers = "; ".join(
        f"{prefix}encoder.layer.{layer}.* (16 weights; num_hidden_layers in config.json is 2)" for layer in (2, 3)
    )
    assert f"not exported: {layers}. " in refusal(source)
    assert load_checkpoint(str(source), ignore_extra_weights=True).config.num_layers == 2
    assert layers in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("ignore", [True, False])
def test_a_pooler_alone_is_a_note(encoder, capsys, ignore):
    """Most encoders are saved with one. Its input is what is exported."""
    add_weights(encoder, pooler__dense__weight=(HIDDEN, HIDDEN), pooler__dense__bias=(HIDDEN,))
    load_checkpoint(str(encoder), ignore_extra_weights=ignore)
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("note: ")
    assert told.endswith(
        "pooler.dense.{bias,weight} (the pooler); the exported model's answer does not depend on them"
    )


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_positions_in_old_checkpoints_are_no_weight(encoder, capsys, prefix):
    positions = {f"{prefix}embeddings.position_ids": torch.arange(64)[None]}
    change_weights(encoder, lambda weights: {f"{prefix}{name}": one for name, one in weights.items()} | positions)
    load_checkpoint(str(encoder))
    assert capsys.readouterr().err == ""


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.mark.parametrize("content", ["", "5", "[1]", '[{"idx": 0}]', "{}{", '"x"'])
def test_damaged_modules_are_told(encoder, content):
    (encoder / "modules.json").write_text(content)
    assert "modules.json is not as sentence-transformers writes it" in refusal(encoder)


def test_an_adapter_is_an_error(masked):
    (masked / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    assert "not exported: the adapter of adapter_config.json (merge it into the weights first)" in refusal(masked)
    load_checkpoint(str(masked), ignore_extra_weights=True)


def in_hub_cache(checkpoint: Path, place: Path) -> dict[str, str]:
    """Puts a checkpoint where it lies after a download, as ``me/bert``. Returns the environment that finds it."""
    model = place / "hub" / "models--me--bert"
    shutil.copytree(checkpoint, model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    return {"HF_HOME": str(place), "HF_HUB_OFFLINE": "1"}


def test_a_model_of_the_hub_is_read_from_its_cache_and_its_modules_are_seen(script: Script, encoder, tmp_path):
    environment = in_hub_cache(encoder, tmp_path / "home")
    command = ["model2onnx.py", "--model", "me/bert", "--out-dir", tmp_path / "out"]
    cache = tmp_path / "home" / "hub" / "models--me--bert" / "snapshots" / "abc"
    (cache / "modules.json").write_text(json.dumps(MODULES))
    done = script(*command, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --model me/bert: 1_Pooling/config.json is missing")
    (cache / "1_Pooling").mkdir()
    (cache / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    done = script(*command, **environment)
    assert done.returncode == 0, done.stderr
    config = ModelFolder(tmp_path / "out").config
    assert (config.task, config.pooling) == ("embedding", "cls")


# --- how PyTorch computes ----------------------------------------------------------------------------------


def test_a_feed_forward_in_chunks_is_exported_whole(masked, tmp_path):
    """Chunks of four would ask for lengths that four divides; the arithmetic is the same without."""
    change_config(masked, chunk_size_feed_forward=4)
    folder = tmp_path / "out"
    model2onnx.export(str(masked), TEXT, folder)  # nine tokens
    assert json.loads((folder / CONFIG_NAME).read_text()).get("chunk_size_feed_forward", 0) == 0
    model = ModelFolder(folder)
    bert, parsed = builder.assemble(model, TrtLog()), onnx2trt.parse(model, "fp32", TrtLog())
    for network in (bert, parsed):
        runner = NetworkRunner(network.network, contents=network.contents)
        for one in model.reference():
            ids, types = one.input_ids[None], one.token_type_ids[None]
            inputs = {"input_ids": ids, "token_type_ids": types, "position_ids": np.arange(ids.shape[1])[None]}
            answer = runner.run(inputs)["logit"].numpy()[0, one.checked]
            assert relative_l2(answer, one.output) <= TOLERANCES["fp32"], ids.shape


@pytest.mark.parametrize(("name", "kind"), ACTIVATIONS.items())
def test_every_name_of_an_activation_is_the_function_that_it_is_taken_for(name, kind):
    x = torch.linspace(-10, 10, 10001, dtype=torch.float64)
    cubic = (2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)
    expected = {"erf": x / 2 * (1 + torch.erf(x / 2**0.5)), "tanh": x / 2 * (1 + torch.tanh(cubic)), "relu": x.relu()}
    expected |= {"silu": x * torch.sigmoid(x), "quick_gelu": x * torch.sigmoid(1.702 * x)}
    assert torch.allclose(ACT2FN[name](x), expected[kind], rtol=0, atol=1e-9)  # gelu_fast rounds sqrt(2 / pi)


@pytest.mark.parametrize("activation", ["gelu_python", "gelu_fast"])
def test_an_activation_in_elementary_operations_is_that_function_in_both_networks(tmp_path, activation):
    source, folder = make_checkpoint(tmp_path / "source", hidden_act=activation, **SIZES), tmp_path / "out"
    model2onnx.export(str(source), TEXT, folder)
    check_networks(folder, transformers_answer(source, folder))


# --- configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantization_config (bitsandbytes)"),
        ({"load_in_8bit": True}, "quantization_config"),
        ({}, "quantization_config"),
        ({"quant_method": "gptq", "bits": 4}, "quantization_config (gptq)"),
        ({"quant_method": "awq", "bits": 4}, "quantization_config (awq)"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "quantization_config (fp8)"),
        ({"quant_method": "one of tomorrow"}, "quantization_config (one of tomorrow)"),
    ],
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantized_weights_are_refused_by_the_configurations_entry(masked, key, entry, told):
    change_config(masked, **{key: entry})
    answer = refusal(masked)
    assert f"config.json: {told.replace('quantization_config', key)} says that the weights are quantized" in answer
    assert "take the checkpoint that it was made from" in answer


def test_an_entry_about_quantization_that_is_null_is_none(masked):
    change_config(masked, quantization_config=None, compression_config=None)
    load_checkpoint(str(masked))


@pytest.mark.parametrize("number", [WORDS, 1000, 2**40, -WORDS - 1])
def test_a_padding_token_beyond_the_vocabulary_is_named(masked, number):
    change_config(masked, pad_token_id=number)
    assert f"config.json: pad_token_id is {number}, which transformers cannot use (" in refusal(masked)


@pytest.mark.parametrize("others", [(), ("architectures",)])
def test_a_configuration_without_a_model_type_is_told_what_to_add(masked, others):
    change_config(masked, "model_type", *others)
    told = refusal(masked)
    assert 'config.json has no model_type; add it, for a BERT "model_type": "bert"; the others are bert, rob' in told
    change_config(masked, model_type="bert")
    load_checkpoint(str(masked))


# --- the vocabulary ----------------------------------------------------------------------------------------


def drop_word(folder: Path, word: str, spare_rows: int = 0) -> None:
    """Leaves vocab.txt alone, without a word; the embeddings have as many rows as it has words, and spare ones."""
    words = [line for line in (folder / "vocab.txt").read_text().splitlines() if line != word]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    change_config(folder, vocab_size=len(words) + spare_rows)
    rows = len(words) + spare_rows

    def cut(weights: Weights) -> Weights:
        return {
            name: weight[:rows].clone() if "word_embeddings" in name or name == "cls.predictions.bias" else weight
            for name, weight in weights.items()
        }

    change_weights(folder, cut)


@pytest.mark.parametrize("word", ["[MASK]", "[CLS]", "[SEP]"])
@pytest.mark.parametrize("spare_rows", [0, 1])
def test_a_vocabulary_that_lacks_a_word_every_text_needs_is_named(masked, word, spare_rows):
    """transformers would give the word a number behind the vocabulary: no row, or a spare one that means nothing."""
    drop_word(masked, word, spare_rows)
    loaded = load_checkpoint(str(masked))
    tokenizer, config = loaded.tokenizer, loaded.config
    with pytest.raises(UserError) as raised:
        model2onnx.tokenize(TEXT, tokenizer, config)
    assert str(raised.value).startswith(f"the checkpoint's tokenizer has no {word}, which every text of this model")
    assert "vocabulary is incomplete or damaged" in str(raised.value)


def test_an_encoder_needs_no_mask_word(encoder):
    drop_word(encoder, "[MASK]")
    loaded = load_checkpoint(str(encoder))
    tokenizer, config = loaded.tokenizer, loaded.config
    model2onnx.tokenize("paris", tokenizer, config)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"[MASK]": WORDS - 1}),
        (
            "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "added_tokens_decoder": {str(WORDS - 1): {"content": "[MASK]", "special": True}},
            },
        ),
    ],
)
def test_words_that_a_checkpoint_adds_to_its_vocabulary_are_its_own(masked, name, content):
    drop_word(masked, "[MASK]", spare_rows=1)
    (masked / name).write_text(json.dumps(content))
    loaded = load_checkpoint(str(masked))
    tokenizer, config = loaded.tokenizer, loaded.config
    inputs, positions = model2onnx.tokenize("paris [MASK]", tokenizer, config)
    assert [inputs["input_ids"][0, place] for place in positions] == [WORDS - 1]


# --- pickled weights ---------------------------------------------------------------------------------------


def pickle_weights(folder: Path, change: Callable[[Weights], Any] = dict, **options: Any) -> Weights:
    """Puts pytorch_model.bin in the place of model.safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(change(weights), folder / "pytorch_model.bin", **options)
    return weights


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_tensors_are_read(masked, zipped):
    weights = pickle_weights(masked, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(str(masked))
    model, config = loaded.reference, loaded.config
    assert config.has_head
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())


def test_pickled_tensors_that_share_their_storage_are_tied(masked):
    """As torch.save writes a tied model: both names, one storage."""

    def tie(weights: Weights) -> Weights:
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
        weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
        return weights

    pickle_weights(masked, tie)
    assert load_checkpoint(str(masked)).config.tied_decoder


def test_pickled_tensors_in_several_files_are_read(masked):
    weights = load_file(masked / "model.safetensors")
    (masked / "model.safetensors").unlink()
    names, parts = sorted(weights), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    places = {name: parts[index % 2] for index, name in enumerate(names)}
    for part in parts:
        torch.save({name: weights[name] for name in names if places[name] == part}, masked / part)
    (masked / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    loaded = load_checkpoint(str(masked))
    model, _ = loaded.reference, loaded.config
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())


class Evil:
    """An object whose loading makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_among_pickled_tensors_are_never_made(masked, tmp_path, zipped):
    evil = {"evil": Evil(tmp_path / "made")}
    pickle_weights(masked, lambda weights: weights | evil, _use_new_zipfile_serialization=zipped)
    told = refusal(masked)
    assert re.search(
        r"pytorch_model\.bin is damaged, or holds objects besides tensors such as posix\.mkdir, which", told
    )
    assert told.endswith("since they could run code; save the weights as model.safetensors")
    assert "weights_only" not in told  # torch's own advice, which is to load them all the same
    assert not (tmp_path / "made").exists()


def test_safetensors_are_preferred_and_a_pickle_beside_them_is_not_opened(masked, tmp_path):
    torch.save(Evil(tmp_path / "made"), masked / "pytorch_model.bin")
    load_checkpoint(str(masked))
    (masked / "model.safetensors").write_bytes(b"garbage " * 1000)
    assert "model.safetensors is corrupt" in refusal(masked)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("length", [0, 1, 100, 1000, -1])
def test_a_truncated_pickle_is_damaged(masked, length):
    pickle_weights(masked)
    path = masked / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:length])
    assert "pytorch_model.bin is damaged" in refusal(masked)


@pytest.mark.parametrize("content", [[1, 2], 5, {}, {"a": 1}, {1: torch.ones(2)}])
def test_a_pickle_of_something_else_is_refused(masked, content):
    pickle_weights(masked, lambda _: content)
    told = refusal(masked)
    assert "pytorch_model.bin is damaged" in told or "the checkpoint lacks" in told


def test_weights_under_other_names_are_told_with_the_first(masked):
    """Of a training loop: the state dict one level deeper."""
    pickle_weights(masked, lambda weights: {f"module.{name}": weight for name, weight in weights.items()})
    told = refusal(masked)
    assert re.search(r"lacks \d+ weights of a BertForMaskedLM, first '", told)
    assert ", and has 26 that it does not have, first 'module.bert.embeddings.LayerNorm.bias'; " in told


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.gguf"])
def test_weights_of_another_format_are_told(masked, name):
    (masked / "model.safetensors").rename(masked / name)
    told = refusal(masked)
    assert "expected config.json, model.safetensors (or pytorch_model.bin with nothing but tensors)" in told
    assert told.endswith(f"in Hugging Face layout, found {name}")


def test_a_folder_of_pickled_weights_with_a_damaged_configuration_is_told_so(masked):
    pickle_weights(masked)
    (masked / CONFIG_NAME).write_text("{")
    told = refusal(masked)
    assert "config.json" in told
    assert "damaged, or holds objects" not in told


def test_the_configuration_names_every_activation_that_it_takes():
    with pytest.raises(UserError, match="expected one of gelu, gelu_python, "):
        BertConfig.from_dict({"model_type": "bert", "hidden_act": "gelu_10"}, "config.json")
