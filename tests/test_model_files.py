"""Whatever happens to a model folder: either it is read as it was written, or the error says what to do."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import make_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tokenizers import Tokenizer, models

from bert_trt.console import UserError
from bert_trt.files import read_json
from bert_trt.model_files import (
    ACTIVATIONS,
    DATA_NAME,
    DEMO_NAME,
    INPUT_NAMES,
    ONNX_NAME,
    REFERENCE_NAME,
    TOKENIZER_NAME,
    BertConfig,
    ModelFolder,
    WeightFile,
    check_inputs,
    load_onnx,
)

REMEDY = "model2onnx.py"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
GOOD = {
    "model_type": "bert",
    "task": "fill-mask",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


# --- the configuration ------------------------------------------------------------------------------------


def test_sizes_come_from_the_configuration():
    config = BertConfig.from_dict(GOOD | {"layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}, "config.json")
    sizes = (config.vocab_size, config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size)
    assert sizes == (100, 64, 2, 4, 256)
    assert (config.max_positions, config.type_vocab_size, config.embedding_size) == (32, 2, 64)
    assert (config.layer_norm_eps, config.activation, config.head_activation) == (1e-5, "tanh", "tanh")
    assert config.tied_decoder
    assert config.has_head
    assert not config.has_projection
    assert config.head_size == 16
    assert (config.output_name, config.output_width) == ("logit", 100)


def test_without_a_head_the_output_is_hidden_states():
    config = BertConfig.from_dict(GOOD | {"task": "hidden-states", "tie_word_embeddings": False}, "config.json")
    assert (config.output_name, config.output_width) == ("last_hidden_state", 64)
    assert not config.tied_decoder


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
    ],
)
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "12", True, [2]])
def test_a_wrong_size_is_named_with_its_value_and_what_was_expected(key, value):
    with pytest.raises(UserError) as raised:
        BertConfig.from_dict(GOOD | {key: value}, "x/config.json")
    assert str(raised.value) == f"x/config.json: {key} is {value!r}, expected a positive whole number"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model_type", "roberta", "expected 'bert'; write the folder again with model2onnx.py"),
        ("model_type", None, "expected 'bert'"),
        ("task", None, "expected one of fill-mask, hidden-states"),
        ("task", "translation", "expected one of fill-mask, hidden-states"),
        ("labels", ["yes"], "expected none for the task fill-mask"),
        ("labels", "yes", "expected a list of names"),
        ("pooling", "median", "expected one of mean, cls, max, pooler"),
        ("score_function", 3, "expected one of softmax, sigmoid, none"),
        ("pooler_activation", "gelu", "expected one of"),
        ("head_act", "mish", f"expected one of {', '.join(ACTIVATIONS)}"),
        ("embedding_size", 0, "expected a positive whole number"),
        ("truncated_length", "64", "expected a positive whole number"),
        ("normalize", 1, "expected true or false"),
        ("relative_positions", None, "expected true or false"),
        ("embedding_layers", [{"width": 3}], "expected a list of dense layers"),
        ("hidden_act", "mish", f"expected one of {', '.join(ACTIVATIONS)}"),
        ("hidden_act", ["gelu"], "expected one of"),
        ("layer_norm_eps", "1e-12", "expected a number between 0 and 1"),
        ("layer_norm_eps", -1e-12, "expected a number between 0 and 1"),
        ("layer_norm_eps", float("nan"), "expected a number between 0 and 1"),
        ("layer_norm_eps", None, "expected a number between 0 and 1"),
        ("tie_word_embeddings", "false", "expected true or false"),
        ("num_attention_heads", 3, None),
    ],
)
def test_a_wrong_entry_is_named_with_its_value_and_what_was_expected(key, value, expected):
    with pytest.raises(UserError) as raised:
        BertConfig.from_dict(GOOD | {key: value}, "x/config.json")
    expected = expected or "hidden_size is 64, expected a multiple of num_attention_heads, 3"
    assert str(raised.value).startswith("x/config.json: ")
    assert key in str(raised.value)
    assert repr(value) in str(raised.value)
    assert expected in str(raised.value)


json_values = st.none() | st.booleans() | st.integers(-2, 200) | st.floats() | st.text(max_size=5) | st.just(["bert"])


@given(st.dictionaries(st.sampled_from([*GOOD, "hidden_act", "layer_norm_eps", "tie_word_embeddings"]), json_values))
def test_any_configuration_is_read_or_refused_with_its_file_named(changes: dict[str, Any]):
    try:
        config = BertConfig.from_dict(GOOD | changes, "x/config.json")
    except UserError as error:
        assert str(error).startswith("x/config.json: ")
    else:
        assert config.head_size * config.num_heads == config.hidden_size
        assert config.head_size >= 1


# --- the weights ------------------------------------------------------------------------------------------


def test_weights_are_what_onnx_itself_reads(folder):
    expected = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(folder / ONNX_NAME).graph.initializer
    }
    weights = WeightFile(folder / ONNX_NAME)
    assert QUERY in expected
    for name, array in expected.items():
        if array.dtype == np.float32:
            np.testing.assert_array_equal(weights.get(name, array.shape), array, strict=True)


def test_weights_are_views_that_cannot_be_written_to(folder):
    weight = WeightFile(folder / ONNX_NAME).get(QUERY, (128, 128))
    with pytest.raises(ValueError, match="read-only"):
        weight[0, 0] = 0


def test_a_missing_weight_is_named_with_the_remedy(folder):
    with pytest.raises(UserError) as raised:
        WeightFile(folder / ONNX_NAME).get("cls.nothing", (1,))
    assert "weight 'cls.nothing' is missing" in str(raised.value)
    assert REMEDY in str(raised.value)


def test_a_wrongly_shaped_weight_is_named_with_both_shapes(folder):
    with pytest.raises(UserError) as raised:
        WeightFile(folder / ONNX_NAME).get(QUERY, (128, 64))
    assert f"weight '{QUERY}' is float32 [128, 128], expected float32 [128, 64]" in str(raised.value)
    assert "config.json and model.onnx do not belong together" in str(raised.value)


def test_a_weight_of_another_type_is_named(tmp_path):
    path = save_graph(tmp_path, numpy_helper.from_array(np.ones(2, np.float16), "w"))
    with pytest.raises(UserError, match=r"weight 'w' is float16 \[2\], expected float32 \[2\]"):
        WeightFile(path).get("w", (2,))


def test_a_truncated_data_file_names_the_file_the_weight_and_the_remedy(folder):
    weights = WeightFile(folder / ONNX_NAME)
    size = (folder / DATA_NAME).stat().st_size
    name = [name for name, array in weights._arrays.items() if array.dtype == np.float32 and array.ndim][-1]
    (folder / DATA_NAME).write_bytes((folder / DATA_NAME).read_bytes()[:-1])
    with pytest.raises(UserError) as raised:
        WeightFile(folder / ONNX_NAME)
    assert f"{folder / DATA_NAME} has {size - 1} bytes" in str(raised.value)
    assert f"weight {name!r} ends at byte {size}" in str(raised.value)
    assert "truncated" in str(raised.value)
    assert REMEDY in str(raised.value)


@pytest.mark.parametrize("damage", ["missing", "empty", "a folder"])
def test_a_data_file_that_cannot_be_read_is_named_with_the_remedy(folder, damage):
    (folder / DATA_NAME).unlink()
    if damage == "empty":
        (folder / DATA_NAME).touch()
    elif damage == "a folder":
        (folder / DATA_NAME).mkdir()
    with pytest.raises(UserError) as raised:
        WeightFile(folder / ONNX_NAME)
    assert f"cannot read {folder / DATA_NAME}" in str(raised.value)
    assert REMEDY in str(raised.value)


def save_graph(folder: Path, *tensors: onnx.TensorProto) -> Path:
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "g", [], [output], list(tensors))
    path = folder / ONNX_NAME
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def external(
    name: str, dims: list[int], data_type: int = onnx.TensorProto.FLOAT, **place: object
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=dims, data_type=data_type)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/hostname", "other.data", ""])
def test_weights_elsewhere_are_refused(tmp_path, location):
    inner = tmp_path / "model"
    inner.mkdir()
    for path in (tmp_path / DATA_NAME, inner / "other.data", inner / DATA_NAME):
        path.write_bytes(bytes(64))
    path = save_graph(inner, external("w", [4], location=location))
    with pytest.raises(UserError) as raised:
        WeightFile(path)
    assert f"weights lie in {location!r}, expected {DATA_NAME!r}" in str(raised.value)


@pytest.mark.parametrize(
    "tensor",
    [
        external("w", [4], location=DATA_NAME, offset="x"),
        external("w", [4], location=DATA_NAME, offset=-4),
        external("w", [-1], location=DATA_NAME),
        external("w", [2**40, 2**40], location=DATA_NAME),
        external("w", [2**32, 2**32], location=DATA_NAME),  # the product is 0 in 64 bits
        external("w", [4], data_type=99, location=DATA_NAME),
        external("w", [4], data_type=onnx.TensorProto.STRING, location=DATA_NAME),
        onnx.TensorProto(name="w", dims=[4], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(15)),
        onnx.TensorProto(name="w", dims=[4], data_type=0),
    ],
    ids=["no offset", "negative offset", "negative size", "huge", "overflow", "type", "strings", "raw", "no type"],
)
def test_a_damaged_description_of_a_weight_is_an_error_with_the_remedy(tmp_path, tensor):
    (tmp_path / DATA_NAME).write_bytes(bytes(64))
    with pytest.raises(UserError) as raised:
        WeightFile(save_graph(tmp_path, tensor))
    assert str(tmp_path) in str(raised.value)
    assert REMEDY in str(raised.value)


# --- the graph --------------------------------------------------------------------------------------------


def test_a_missing_onnx_file_is_named_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(UserError) as raised:
        load_onnx(tmp_path / ONNX_NAME)
    assert str(raised.value) == (
        f"no ONNX file at {tmp_path / ONNX_NAME}; write it first: python model2onnx.py --out-dir {tmp_path}"
    )


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"not ONNX", bytes(1000), b"\xff" * 1000, b"\x0a\xff\xff\xff\xff\x0f"]
)
def test_what_is_no_onnx_file_is_an_error_with_the_remedy(tmp_path, content):
    (tmp_path / ONNX_NAME).write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_onnx(tmp_path / ONNX_NAME)
    assert str(tmp_path / ONNX_NAME) in str(raised.value)
    assert REMEDY in str(raised.value)


def test_an_onnx_file_truncated_anywhere_is_an_error_with_the_remedy(folder):
    whole = (folder / ONNX_NAME).read_bytes()
    for length in [*range(100), *range(100, len(whole), 97), *range(len(whole) - 100, len(whole))]:
        (folder / ONNX_NAME).write_bytes(whole[:length])
        with pytest.raises(UserError) as raised:
            WeightFile(folder / ONNX_NAME)
        assert str(folder / ONNX_NAME) in str(raised.value), length
        assert REMEDY in str(raised.value), length


def damaged(whole: bytes, seed: int) -> bytes:
    """Some bytes of it changed: half of the time near its start or end, where headers and directories lie."""
    rng = random.Random(seed)
    changed = bytearray(whole)
    for _ in range(rng.randint(1, 5)):
        place = rng.choice([rng.randrange(len(whole)), rng.randrange(2000), -1 - rng.randrange(1500)])
        changed[place] = rng.randrange(256)
    return bytes(changed)


def test_a_damaged_onnx_file_is_read_or_refused_and_never_a_traceback(folder):
    whole = (folder / ONNX_NAME).read_bytes()
    refused = 0
    for seed in range(1000):
        (folder / ONNX_NAME).write_bytes(damaged(whole, seed))
        try:
            WeightFile(folder / ONNX_NAME)
        except UserError as error:
            assert str(folder) in str(error)
            refused += 1
    assert refused > 100  # or the test damaged nothing that matters


# --- the example ------------------------------------------------------------------------------------------


def test_the_example_is_read_as_it_was_written(folder):
    demo = ModelFolder(folder).demo()
    length = demo.inputs["input_ids"].shape[1]
    assert demo.text == "The capital of France, [MASK], contains the Eiffel Tower."
    assert demo.output.shape == (1, length, 71)
    assert demo.hidden_states.shape == (3, length, 128)
    assert demo.mask_positions == [6]
    assert {name: (ids.dtype, ids.shape) for name, ids in demo.inputs.items()} == dict.fromkeys(
        INPUT_NAMES, (np.dtype(np.int64), (1, length))
    )


def test_a_missing_example_is_named_with_the_remedy(folder):
    (folder / DEMO_NAME).unlink()
    with pytest.raises(UserError) as raised:
        ModelFolder(folder).demo()
    assert str(raised.value) == f"no {folder / DEMO_NAME}; write it with model2onnx.py --out-dir {folder}"


def refused_demo(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        ModelFolder(folder).demo()
    assert str(raised.value).startswith(str(folder / DEMO_NAME))
    assert REMEDY in str(raised.value)
    return str(raised.value)


def test_an_example_truncated_anywhere_is_corrupt(folder):
    whole = (folder / DEMO_NAME).read_bytes()
    for length in [*range(60), *range(60, len(whole), 331), *range(len(whole) - 60, len(whole))]:
        (folder / DEMO_NAME).write_bytes(whole[:length])
        assert "is corrupt" in refused_demo(folder)


def test_a_damaged_example_is_read_or_refused_and_never_a_traceback(folder):
    original = ModelFolder(folder).demo()
    whole = (folder / DEMO_NAME).read_bytes()
    refused = 0
    for seed in range(1000):
        (folder / DEMO_NAME).write_bytes(damaged(whole, seed))
        try:
            demo = ModelFolder(folder).demo()
        except UserError as error:
            assert str(error).startswith(str(folder / DEMO_NAME))
            assert REMEDY in str(error)
            refused += 1
        else:  # the checksums of the archive let no changed value through
            np.testing.assert_array_equal(demo.output, original.output)
            np.testing.assert_array_equal(demo.inputs["input_ids"], original.inputs["input_ids"])
    assert refused > 500


def test_an_array_in_the_place_of_the_archive_is_corrupt(folder):
    with (folder / DEMO_NAME).open("wb") as file:
        np.save(file, np.zeros(3))
    assert "is corrupt" in refused_demo(folder)


def test_pickled_objects_in_the_example_are_refused(folder):
    change_demo(folder, text=np.array([{"any": "object"}], dtype=object))
    assert "is corrupt" in refused_demo(folder)


def change_demo(folder: Path, **changes: np.ndarray | None) -> None:
    with np.load(folder / DEMO_NAME) as file:
        values = {key: file[key] for key in file.files} | changes
    kept: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    np.savez(folder / DEMO_NAME, **kept)


@pytest.mark.parametrize("key", [*INPUT_NAMES, "text", "output", "hidden_states", "mask_positions"])
def test_a_key_that_the_example_lacks_is_named(folder, key):
    change_demo(folder, **{key: None})
    assert f"lacks {key};" in refused_demo(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("input_ids", np.full((1, 14), 1.5), "input_ids is float64, expected whole numbers"),
        ("input_ids", np.full((1, 14), 71), "input_ids[0, 0] is 71, outside the vocabulary (0 to 70)"),
        ("input_ids", np.zeros(14, np.int64), "input_ids is [14], expected [1, S]"),
        ("position_ids", np.zeros((1, 3), np.int64), "position_ids is [1, 3], expected [1, 14] like input_ids"),
        ("output", np.zeros((1, 14, 71), np.int64), "output is int64, expected floating point"),
        ("output", np.zeros((1, 14, 72), np.float32), "output is [1, 14, 72], expected [1, 14, 71]"),
        ("hidden_states", np.zeros((4, 14, 128), np.float32), "hidden_states is [4, 14, 128], expected [3, 14, 128]"),
        ("text", np.zeros(1), "text is float64, expected text"),
        ("mask_positions", np.array([14]), "mask_positions is [14], expected positions from 0 to 13"),
        ("mask_positions", np.array([-1]), "mask_positions is [-1], expected positions from 0 to 13"),
        ("mask_positions", np.array([], np.int64), "mask_positions is [], expected positions from 0 to 13"),
        ("mask_positions", np.array(6), "mask_positions is [], expected [1]"),
        ("mask_positions", np.array([6.0]), "mask_positions is float64, expected whole numbers"),
    ],
)
def test_a_wrong_entry_of_the_example_is_named_with_what_was_expected(folder, key, value, told):
    assert ModelFolder(folder).demo().inputs["input_ids"].shape == (1, 14)
    change_demo(folder, **{key: value})
    assert told in refused_demo(folder)


@pytest.mark.parametrize("shape", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_the_example_of_another_model_is_refused(folder, shape):
    config = read_json(folder / "config.json")
    config[shape] = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 8}[
        shape
    ]
    (folder / "config.json").write_text(json.dumps(config))
    refused_demo(folder)


def test_the_example_of_a_model_with_a_head_is_refused_by_one_without(folder):
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"task": "hidden-states"}))
    assert "output is [1, 14, 71], expected [1, 14, 128]" in refused_demo(folder)
    change_demo(folder, output=np.zeros((1, 14, 128), np.float32))
    assert "mask_positions is [6], expected none" in refused_demo(folder)


# --- inputs -----------------------------------------------------------------------------------------------

CONFIG = BertConfig.from_dict(GOOD, "config.json")
TABLES = {
    "input_ids": ("the vocabulary", 100),
    "token_type_ids": ("the token types", 2),
    "position_ids": ("the pos", 32),
}


@st.composite
def inputs_and_errors(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], tuple[str, int, int] | None]:
    """Inputs, some ids of them outside of their tables, and the first such: (name, column, id)."""
    length = draw(st.integers(1, CONFIG.max_positions))
    inputs, first = {}, None
    for name, (_, size) in TABLES.items():
        ids = draw(st.lists(st.integers(0, size - 1), min_size=length, max_size=length))
        bad = draw(
            st.dictionaries(
                st.integers(0, length - 1), st.integers(-(2**62), -1) | st.integers(size, 2**62), max_size=3
            )
        )
        for column, number in bad.items():
            ids[column] = number
        if bad and first is None:
            first = (name, min(bad), bad[min(bad)])
        inputs[name] = np.array([ids], dtype=np.int64)
    return inputs, first


@given(inputs_and_errors())
def test_the_first_id_outside_its_table_is_named_with_the_range(case: Any):
    inputs, first = case
    if first is None:
        check_inputs(inputs, CONFIG, "--text")
        return
    with pytest.raises(UserError) as raised:
        check_inputs(inputs, CONFIG, "--text")
    name, column, number = first
    table, size = TABLES[name]
    assert str(raised.value).startswith(f"--text: {name}[0, {column}] is {number}, outside {table}")
    assert f"(0 to {size - 1})" in str(raised.value)


@given(st.integers(0, 80))
@example(32)
@example(33)
def test_a_sequence_longer_than_the_position_table_is_refused(length: int):
    inputs = {name: np.zeros((1, length), np.int64) for name in INPUT_NAMES}
    if 1 <= length <= 32:
        check_inputs(inputs, CONFIG, "--text")
        return
    with pytest.raises(UserError) as raised:
        check_inputs(inputs, CONFIG, "--text")
    expected = f"{length} tokens, but the position table has 32; shorten the text" if length else "S at least 1"
    assert expected in str(raised.value)


@given(st.sampled_from(INPUT_NAMES[1:]), st.tuples(st.integers(0, 3), st.integers(0, 8)))
@settings(max_examples=30)
def test_inputs_of_different_shapes_are_refused(name: str, shape: tuple[int, int]):
    inputs = {key: np.zeros((1, 5), np.int64) for key in INPUT_NAMES} | {name: np.zeros(shape, np.int64)}
    if shape == (1, 5):
        check_inputs(inputs, CONFIG, "--text")
        return
    with pytest.raises(UserError) as raised:
        check_inputs(inputs, CONFIG, "--text")
    assert f"{name} is {list(shape)}, expected [1, 5] like input_ids" in str(raised.value)


# --- tokens and the folder --------------------------------------------------------------------------------


def test_tokens_are_the_vocabulary_by_id(model_dir, checkpoint):
    assert ModelFolder(model_dir).tokens() == (checkpoint / "vocab.txt").read_text().split()


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "lyon", "p", "a", "pa"]
IDS = {piece: number for number, piece in enumerate(PIECES)}
VOCABULARIES = {
    "WordPiece": models.WordPiece(IDS, unk_token="[UNK]"),
    "BPE": models.BPE(IDS, [("p", "a")], unk_token="[UNK]"),
    "Unigram": models.Unigram([(piece, -float(number)) for number, piece in enumerate(PIECES)], unk_id=1),
    "WordLevel": models.WordLevel(IDS, unk_token="[UNK]"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_tokens_of_every_kind_of_vocabulary_with_added_and_unknown_ids(folder, kind):
    tokenizer = Tokenizer(VOCABULARIES[kind])
    tokenizer.add_special_tokens(["[MASK]", "[NEW]"])  # the first is in the vocabulary, the second gets the next id
    tokenizer.save(str(folder / TOKENIZER_NAME))
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 12}))
    assert ModelFolder(folder).tokens() == [*PIECES, "[NEW]", "[unknown id 11]"]


def test_a_model_with_fewer_words_than_its_tokenizer_has_its_own_alone(folder):
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 5}))
    assert ModelFolder(folder).tokens() == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"vocab": [1]}}',
        '{"model": {"vocab": {"a": "x"}}}',
        "[" * 100_000,
        "\xff",  # no UTF-8
        None,
    ],
)
def test_a_tokenizer_without_a_vocabulary_is_named_with_the_remedy(folder, content):
    path = folder / TOKENIZER_NAME
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as raised:
        ModelFolder(folder).tokens()
    assert str(path) in str(raised.value)
    assert REMEDY in str(raised.value)


def test_a_missing_folder_is_named_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(UserError) as raised:
        ModelFolder(tmp_path / "x")
    path = tmp_path / "x"
    assert str(raised.value) == f"no model folder at {path}; write it first: python model2onnx.py --out-dir {path}"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_configuration_is_named_with_the_remedy(folder, content):
    path = folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        ModelFolder(folder)
    assert str(path) in str(raised.value)
    assert REMEDY in str(raised.value)


def test_a_checkpoint_folder_is_no_model_folder_yet(tmp_path):
    make_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"no ONNX file at .*; write it first: python model2onnx\.py"):
        ModelFolder(tmp_path).weights()


# --- the reference batch ----------------------------------------------------------------------------------------


def changed_reference(model_dir: Path, tmp_path: Path, **changes: Any) -> ModelFolder:
    """A copy of the folder in which arrays of the reference batch are others, or are missing (None)."""
    folder = shutil.copytree(model_dir, tmp_path / "out")
    with np.load(folder / REFERENCE_NAME) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(folder / REFERENCE_NAME, **{name: values for name, values in arrays.items() if values is not None})
    return ModelFolder(folder)


REFERENCE_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "lengths missing": ({"lengths": None}, "lacks lengths"),
    "output as integers": ({"output": np.zeros((3, 3), np.int64)}, "output is int64, expected floating point"),
    "lengths too short": ({"lengths": np.array([3, 9])}, "expected sequences and answers of width"),
    "an empty sequence": ({"lengths": np.array([0, 109])}, "expected sequences and answers of width"),
    "no sequence": ({"lengths": np.zeros(0, np.int64)}, "expected sequences and answers of width"),
    "a token that is not there": ({"checked": np.array([0, 500])}, "expected sequences and answers of width"),
    "another vocabulary": ({"output": np.zeros((76, 5), np.float32)}, "expected sequences and answers of width"),
    "ids outside": ({"input_ids": np.full(109, 10**6)}, "outside the vocabulary"),
    "types outside": ({"token_type_ids": np.full(109, -1)}, "outside the token types"),
}


@pytest.mark.parametrize("case", REFERENCE_CHANGES)
def test_a_damaged_reference_batch_is_named(model_dir, tmp_path, case):
    changes, message = REFERENCE_CHANGES[case]
    with pytest.raises(UserError, match=message) as error:
        changed_reference(model_dir, tmp_path, **changes).reference()
    assert REFERENCE_NAME in str(error.value)
    assert "model2onnx.py" in str(error.value)


def test_a_folder_of_an_older_version_is_to_be_written_again(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "out")
    (folder / REFERENCE_NAME).unlink()
    with pytest.raises(UserError, match=r"no .*reference_batch\.npz; write it with model2onnx\.py"):
        ModelFolder(folder).reference()
