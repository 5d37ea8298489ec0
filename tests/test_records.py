"""What a line of the input may be: text, a pair in two columns, a JSON object; and what is told of other lines."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from bert_trt import records
from bert_trt.console import UserError
from bert_trt.options import (
    EMBEDDING,
    FILL_MASK,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TASKS,
    TOKEN_CLASSIFICATION,
)
from bert_trt.records import CHUNK_LINES, FIRST_LINES, Record, check_input, read_chunks, read_section

ONE_TEXT = (FILL_MASK, EMBEDDING, TOKEN_CLASSIFICATION)


def read(path: Path, task: str, done: int = 0) -> list[Record]:
    return [record for chunk in read_chunks(path, task, done) for record in chunk.records]


@pytest.fixture
def read_text(tmp_path):
    def run(content: bytes | str, task: str, name: str = "lines.txt") -> list[Record]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read(path, task)

    return run


# --- text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"a\nb\n", b"a\nb", b"a\r\nb\r\n", b"a\rb\r", b"\xef\xbb\xbfa\nb\n"])
def test_line_ends_and_byte_order_mark(read_text, content):
    assert read_text(content, EMBEDDING) == [Record(1, ("a",)), Record(2, ("b",))]


def test_lines_are_split_at_line_ends_only_and_kept_as_they_are(read_text):
    text = " a \u2028b\u0085c\x0cd "
    assert read_text(f"{text}\n", EMBEDDING) == [Record(1, (text,))]


def test_blank_lines_have_records(read_text):
    found = read_text("\n \t\u3000\na\n\n", EMBEDDING)
    assert [record.is_blank for record in found] == [True, True, False, True]
    assert [record.line for record in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("task", ONE_TEXT)
def test_a_tab_is_text_where_one_text_is_wanted(read_text, task):
    assert read_text("a\tb\n", task) == [Record(1, ("a\tb",))]


def test_a_tab_separates_a_pair(read_text):
    assert read_text("a\nb\tc\n", SEQUENCE_CLASSIFICATION) == [Record(1, ("a",)), Record(2, ("b", "c"))]
    assert read_text("who?\tme .\n", QUESTION_ANSWERING) == [Record(1, ("who?", "me ."))]


@pytest.mark.parametrize(
    ("line", "task", "told"),
    [
        (
            b"who?",
            QUESTION_ANSWERING,
            "one text, but question-answering takes a pair; write QUESTION, a tab, CONTEXT",
        ),
        (b"a\tb\tc", SEQUENCE_CLASSIFICATION, "3 columns, expected TEXT and TEXT_PAIR with one tab between them"),
        (b"a\tb\tc", QUESTION_ANSWERING, "3 columns, expected QUESTION and CONTEXT with one tab between them"),
        (b"caf\xe9", EMBEDDING, "byte 4 (0xe9) is not UTF-8; save the file as UTF-8"),
        (b"a\xed\xa0\x80", EMBEDDING, "byte 2 (0xed) is not UTF-8"),
        (b"par\x00is", EMBEDDING, "byte 4 is NUL, which no text has"),
    ],
)
def test_bad_lines(read_text, line, task, told):
    good = b"who?\tme" if task == QUESTION_ANSWERING else b"good"
    before, bad, after = read_text(good + b"\n" + line + b"\n" + good + b"\n", task)
    assert before.problem is None
    assert after.problem is None
    assert bad.line == 2
    assert bad.problem.startswith(told)
    assert not bad.texts
    assert not bad.is_blank


def test_a_line_of_any_length_takes_bounded_memory(read_text, monkeypatch):
    monkeypatch.setattr(records, "LINE_LIMIT", 10)
    found = read_text("1234567890\n12345678901\n" + "x" * 57 + "\nafter\n" + "y" * 22, EMBEDDING)
    assert [record.texts for record in found] == [("1234567890",), (), (), ("after",), ()]
    assert [record.problem for record in found if record.problem] == ["more than 10 characters; split the text"] * 3


# --- JSON lines -----------------------------------------------------------------------------------------------


def test_objects(read_text):
    lines = [
        {"text": "a", "id": 7, "tags": ["x", None]},
        {"text": "b", "text_pair": None},
        {"id": "é", "text": "c\td"},
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    assert read_text(content, EMBEDDING, "x.jsonl") == [
        Record(1, ("a",), {"id": 7, "tags": ["x", None]}),
        Record(2, ("b",)),
        Record(3, ("c\td",), {"id": "é"}),
    ]
    pair = '{"text": "a\\tb", "text_pair": "c"}\n\n{"text": "d"}\n'
    assert read_text(pair, SEQUENCE_CLASSIFICATION, "x.JSONL") == [
        Record(1, ("a\tb", "c")),
        Record(2),
        Record(3, ("d",)),
    ]
    question = '{"context": "c", "question": "q", "text": "kept"}'
    assert read_text(question, QUESTION_ANSWERING, "x.jsonl") == [Record(1, ("q", "c"), {"text": "kept"})]


@pytest.mark.parametrize(
    ("line", "task", "told"),
    [
        ("a", EMBEDDING, "not valid JSON (Expecting value"),
        ('{"text": "a"', EMBEDDING, "not valid JSON ("),
        ('{"text": "a", "x": NaN}', EMBEDDING, "not valid JSON (NaN is no JSON value)"),
        ('{"text": "a", "x": -1e999}', EMBEDDING, "not valid JSON (-1e999 is too large a number)"),
        ("[" * 100_000, EMBEDDING, "not valid JSON ("),
        ('["a"]', EMBEDDING, 'a JSON list, expected an object: {"text": ...}'),
        ("{}", EMBEDDING, "no 'text', which embedding takes; expected {\"text\": ...}"),
        ('{"text": null}', EMBEDDING, "no 'text', which embedding takes"),
        ('{"text": 7}', EMBEDDING, "'text' is a JSON int, expected text"),
        *(
            ('{"text": "a", "text_pair": "b"}', task, f"a pair ('text_pair'), but {task} takes one text")
            for task in ONE_TEXT
        ),
        ('{"question": "a"}', QUESTION_ANSWERING, "no 'context', which question-answering takes; expected"),
        ('{"text": "a"}', QUESTION_ANSWERING, "no 'question', which question-answering takes; expected"),
        ('{"question": "a", "context": ["b"]}', QUESTION_ANSWERING, "'context' is a JSON list, expected text"),
        ('{"text": "a", "prediction": 1}', EMBEDDING, "the key 'prediction' is one of the output; rename it"),
        ('{"text": "a\\u0000"}', EMBEDDING, "'text' has a NUL"),
        ('{"text": "a\\ud83d"}', EMBEDDING, "'text' has half of a surrogate pair at character 2"),
    ],
)
def test_bad_objects(read_text, line, task, told):
    (record,) = read_text(line, task, "x.jsonl")
    assert record.problem.startswith(told), record.problem
    assert not record.texts


# --- files ----------------------------------------------------------------------------------------------------


def test_chunks_continue_where_lines_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_LINES", 4)
    monkeypatch.setattr(records, "FIRST_LINES", 1)
    path = tmp_path / "x.txt"
    path.write_text("".join(f"line {number}\n" for number in range(1, 16)))
    chunks = list(read_chunks(path, EMBEDDING))
    assert [len(chunk.records) for chunk in chunks] == [1, 1, 2, 4, 4, 3]  # small at first, so that work starts early
    assert chunks[-1].position == path.stat().st_size
    assert read(path, EMBEDDING, done=7) == read(path, EMBEDDING)[7:]
    assert read(path, EMBEDDING, done=15) == []


def test_a_run_that_goes_on_has_the_chunks_of_one_without_a_break(tmp_path, monkeypatch):
    """Others would be other batches, whose rounding differs; a long line that ends a chunk early changes nothing."""
    monkeypatch.setattr(records, "CHUNK_CHARACTERS", 10_000)
    path = tmp_path / "x.txt"
    long = FIRST_LINES + 44
    lengths = [20_000 if number in (long, 3000) else 1 for number in range(8000)]
    path.write_text("".join("x" * length + "\n" for length in lengths))
    whole = [chunk.records for chunk in read_chunks(path, EMBEDDING)]
    assert [len(chunk) for chunk in whole[:3]] == [FIRST_LINES, 45, long + 1]
    assert max(map(len, whole)) == CHUNK_LINES
    done = 0
    for number, chunk in enumerate(whole):
        assert [other.records for other in read_chunks(path, EMBEDDING, done)] == whole[number:]
        done += len(chunk)


def test_a_shard_has_chunks_of_full_size(tmp_path):
    """Each is answered by itself, so that a small one would be a small batch."""
    path = tmp_path / "x.txt"
    path.write_text("x\n" * (CHUNK_LINES + 1))
    assert [len(chunk) for chunk in read_section(path, EMBEDDING, 0, 1, CHUNK_LINES + 1)] == [CHUNK_LINES, 1]


def test_a_chunk_has_few_long_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_CHARACTERS", 100)
    (tmp_path / "x.txt").write_text(("x" * 60 + "\n") * 5)
    assert [len(chunk.records) for chunk in read_chunks(tmp_path / "x.txt", EMBEDDING)] == [2, 2, 1]


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(lines: int) -> int:
        path = tmp_path / f"{lines}.txt"
        path.write_text("a line of some words that is not short\n" * lines)
        tracemalloc.start()
        for _ in read_chunks(path, EMBEDDING):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20 * CHUNK_LINES) <= 1.1 * peak(4 * CHUNK_LINES)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_that_cannot_be_read(tmp_path, task):
    with pytest.raises(UserError, match=r"no file .*none\.txt .*; name a file of texts"):
        check_input(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is a folder; name a file of texts"):
        check_input(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path, task)
