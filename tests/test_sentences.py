"""sentences.py: what a line is, which lines can be used, and that bad lines are reported and skipped."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

import model2onnx
from bert_trt.console import UserError
from bert_trt.sentences import pair_types, read_sentences


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> tuple[Any, Any]:
    """Tokenizer and configuration; the position table has 64 rows."""
    model2onnx.quiet_libraries()
    loaded = model2onnx.load_checkpoint(str(checkpoint))
    return loaded.tokenizer, loaded.config


@pytest.fixture
def read(loaded, tmp_path):
    """Writes bytes or text to a file and reads it; returns {line: text}, {line: message}."""

    def run(content: bytes | str, **options: bool) -> tuple[dict[int, str], dict[int, str]]:
        path = tmp_path / "text.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        sentences, problems = read_sentences(path, *loaded, **options)
        told = {problem.line: problem.message for problem in problems}
        assert all(message.startswith(f"{path}, line {line}: ") for line, message in told.items())
        return {sentence.line: sentence.text for sentence in sentences}, told

    return run


# --- what is read -----------------------------------------------------------------------------------------


def test_ids_are_those_of_the_tokenizer(loaded, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The capital of [MASK].\n\n  paris  \n")
    sentences, problems = read_sentences(path, *loaded)
    assert not problems
    assert [(sentence.line, sentence.text) for sentence in sentences] == [(1, "The capital of [MASK]."), (3, "paris")]
    for sentence in sentences:
        assert sentence.ids.dtype == np.int32
        assert sentence.ids.tolist() == loaded[0](sentence.text)["input_ids"]
    for sentence in sentences:  # the same as for one sentence on the command line
        inputs, _ = model2onnx.tokenize(sentence.text, loaded[0], dataclasses.replace(loaded[1], task="embedding"))
        assert sentence.ids.tolist() == inputs["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"paris\nlyon", {1: "paris", 2: "lyon"}),  # no line end at the end
        (b"paris\r\nlyon\r\n", {1: "paris", 2: "lyon"}),
        (b"paris\rlyon\r", {1: "paris", 2: "lyon"}),
        (b"\xef\xbb\xbfparis\n", {1: "paris"}),  # a byte order mark is no part of the first word
        (b"\n \t\n\xc2\xa0\xe3\x80\x80\nparis\n\n", {4: "paris"}),  # Unicode's spaces are blank too
        ("paris\u2028lyon\x85nice\x0crome\n".encode(), {1: "paris\u2028lyon\x85nice\x0crome"}),  # these end no line
        ("París 東京 🗼\n".encode(), {1: "París 東京 🗼"}),
    ],
)
def test_lines(read, content, expected):
    assert read(content) == (expected, {})


def test_a_line_may_be_as_long_as_the_position_table_and_no_longer(read, loaded, tmp_path):
    assert set(read("a " * 62)[0]) == {1}
    texts, problems = read("a " * 62 + "\n" + "a " * 63 + "\nparis\n")
    assert set(texts) == {1, 3}
    assert problems[2].endswith("65 tokens, but the position table has 64; shorten the text")


SEP, CLS, X = 3, 2, 9


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([CLS, X, X, SEP], [0, 0, 0, 0]),
        ([CLS, X, SEP, X, SEP], [0, 0, 0, 1, 1]),
        ([CLS, X, SEP, X, SEP, X, SEP], [0, 0, 0, 1, 1, 1, 1]),  # there are two types only
        ([CLS, SEP, X, SEP], [0, 0, 1, 1]),
        ([CLS, X, SEP, SEP], [0, 0, 0, 0]),  # written at the end: no second text
        ([CLS, X, X], [0, 0, 0]),
        ([], []),
    ],
)
def test_token_types_of_a_text_that_says_sep(ids, expected):
    given = np.array(ids, np.int32)
    assert pair_types(given, SEP, 2).tolist() == expected
    assert pair_types(given, SEP, 2).dtype == np.int32
    assert not pair_types(given, SEP, 1).any()  # a model with one type
    assert not pair_types(given, None, 2).any()  # a tokenizer without [SEP]


def test_a_line_that_says_sep_is_a_pair(loaded, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("paris [SEP] lyon nice\nparis lyon nice\n" + "a " * 30 + "[SEP]" + " b" * 60)
    (pair, single, cut), _ = read_sentences(path, *loaded, truncate=True)
    assert pair.types.tolist() == loaded[0]("paris", "lyon nice")["token_type_ids"] == [0, 0, 0, 1, 1, 1]
    assert pair.types.dtype == pair.ids.dtype
    assert not single.types.any()
    assert cut.types.tolist() == [0] * 32 + [1] * 32


def test_truncation_keeps_the_beginning_and_the_last_special_word(loaded, tmp_path):
    tokenizer, config = loaded
    path = tmp_path / "text.txt"
    path.write_text("lyon " + "a " * 200 + "paris\nrome\n")
    (long, short), problems = read_sentences(path, tokenizer, config, truncate=True)
    assert not problems
    words = tokenizer.convert_ids_to_tokens(long.ids)
    assert words == ["[CLS]", "lyon", *["a"] * 61, "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(short.ids) == ["[CLS]", "rome", "[SEP]"]
    (again,), problems = read_sentences(path, tokenizer, config)  # the tokenizer does not go on cutting
    assert again.text == "rome"
    assert "264" not in problems[0].message
    assert "204 tokens" in problems[0].message


def test_a_long_line_costs_no_warning_of_the_library(read, loaded, monkeypatch, caplog):
    """It is told as a problem, by its number."""
    monkeypatch.setattr(loaded[0], "model_max_length", 64)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.WARNING)
    assert set(read("paris\n" + "a " * 600)[1]) == {2}
    assert not caplog.records


LINES = st.sampled_from(["", "  ", *WORDS, "[MASK] of france", "a " * 63, "\u200b", "\0", b"\xff caf\xe9"])


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=12))
def test_every_line_that_is_not_blank_is_a_sentence_or_a_problem(loaded, tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
    bad = [n for n, line in enumerate(lines, 1) if line in ("a " * 63, "\u200b", "\0", b"\xff caf\xe9")]
    good = [n for n, line in enumerate(lines, 1) if n not in bad and str(line).strip()]
    if not good:
        with pytest.raises(UserError):
            read_sentences(path, *loaded)
        return
    sentences, problems = read_sentences(path, *loaded)
    assert [sentence.line for sentence in sentences] == good
    assert [problem.line for problem in problems] == bad


# --- bad lines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"caf\xe9", "byte 4 (0xe9) is not UTF-8; save the file as UTF-8"),  # Latin-1
        (b"a\xed\xa0\x80", "byte 2 (0xed) is not UTF-8"),  # half of a surrogate pair
        (b"par\0is", "byte 4 is NUL, which no text has"),
        ("\u200b\u200d".encode(), r"'\u200b\u200d' has no word; write a sentence or leave the line blank"),
        (b"[MASK] " * 63, "65 tokens, but the position table has 64; shorten the text"),
    ],
)
def test_a_bad_line_does_not_cost_the_others(read, line, told):
    texts, problems = read(b"paris\n" + line + b"\nlyon\n")
    assert texts == {1: "paris", 3: "lyon"}
    assert set(problems) == {2}
    assert told in problems[2]


def test_utf16_is_not_taken_for_text(read):
    """Its second line is valid UTF-8 with NULs, which the tokenizer would pass over."""
    with pytest.raises(UserError, match=r"no line can be used \(3 are bad\); the first: .*line 1: byte 1 \(0xff\)"):
        read("paris\nlyon\n".encode("utf-16"))


def test_a_word_outside_the_vocabulary_is_a_problem(loaded, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("capital\nparis\n")
    paris = loaded[0].convert_tokens_to_ids("paris")
    too_few = dataclasses.replace(loaded[1], vocab_size=paris)  # "capital" and the special words stand before it
    sentences, problems = read_sentences(path, loaded[0], too_few)
    assert [sentence.line for sentence in sentences] == [1]
    assert f"input_ids[0, 1] is {paris}, outside the vocabulary (0 to {paris - 1})" in problems[0].message


def test_a_damaged_vocabulary_is_told(loaded, tmp_path):
    make_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "vocab.txt").write_text("the\ncapital\n")
    damaged = model2onnx.load_checkpoint(str(tmp_path))
    tokenizer, config = damaged.tokenizer, damaged.config
    (tmp_path / "text.txt").write_text("paris\n")
    with pytest.raises(UserError, match=r"line 1: the checkpoint's tokenizer cannot read it .*incomplete or damaged"):
        read_sentences(tmp_path / "text.txt", tokenizer, config)


# --- bad files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \t \n\xc2\xa0\r\n", b"\xef\xbb\xbf"])
def test_a_file_of_nothing_but_spaces_is_refused(read, content):
    with pytest.raises(UserError, match=r"holds no sentence, only blank lines or none; expected one sentence a line"):
        read(content)


def test_a_file_that_cannot_be_read_is_named(loaded, tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent\.txt: No such file or directory; name a text file"):
        read_sentences(tmp_path / "absent.txt", *loaded)
    with pytest.raises(UserError, match="Is a directory"):
        read_sentences(tmp_path, *loaded)


def test_a_pipe_is_read(loaded):
    reading, writing = os.pipe()
    os.write(writing, b"paris\nlyon\n")
    os.close(writing)
    sentences, _ = read_sentences(Path(f"/dev/fd/{reading}"), *loaded)
    os.close(reading)
    assert [sentence.text for sentence in sentences] == ["paris", "lyon"]
