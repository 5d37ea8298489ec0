"""Shards hold every line of a file once, as reading the whole file gives it, wherever they are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_trt import shards
from bert_trt.console import UserError
from bert_trt.options import EMBEDDING, QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION, Columns
from bert_trt.records import Record, read_chunks
from bert_trt.shards import Shard, read_shard, split_corpus

pa: Any = pytest.importorskip("pyarrow", reason="needs requirements-predict.txt")
parquet: Any = pytest.importorskip("pyarrow.parquet")

PIECES = [b"a", b"bc", b"\n", b"\r", b"\r\n", "é".encode(), b"\xff", b"\x0b", b"\xef\xbb\xbf", "\u2028".encode()]
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(paths: list[Path], task: str, columns: Columns, lines: int) -> tuple[list[Shard], list[Record]]:
    """The shards of files, and the records of all of them."""
    parts = list(split_corpus(paths, task, columns, lines))
    chunks = [chunk for part in parts for chunk in read_shard(part, Path("/"), task, columns)]
    return parts, [record for chunk in chunks for record in chunk]


@IN_ONE_FOLDER
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=60),
    lines=st.integers(1, 9),
    block=st.integers(1, 9),
)
def test_a_text_is_cut_where_lines_end(pieces, lines, block, tmp_path):
    """Line ends of every kind, at the ends of blocks too, bytes that are not UTF-8, and what is no line end."""
    path = tmp_path / "lines.txt"
    path.write_bytes(b"".join(pieces))
    expected = [record for chunk in read_chunks(path, EMBEDDING) for record in chunk.records]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_BYTES", block)
        parts, found = read([path], EMBEDDING, Columns(), lines)
    assert found == expected
    assert all(part.count == lines for part in parts[:-1])


@IN_ONE_FOLDER
@given(
    texts=st.lists(st.sampled_from(["a b", "", None, "x\0", "é"]), min_size=1, max_size=40),
    lines=st.integers(1, 30),
    group=st.integers(1, 20),
    kind=st.sampled_from(["string", "large_string", "dictionary"]),
)
def test_the_rows_of_a_table(texts, lines, group, kind, tmp_path):
    """Shards that begin and end in the middle of row groups."""
    path = tmp_path / "rows.parquet"
    column = pa.array(texts, pa.large_string() if kind == "large_string" else pa.string())
    column = column.dictionary_encode() if kind == "dictionary" else column
    numbers = list(range(len(texts)))
    table = pa.table({"n": numbers, "body": column, "name": pa.array([None, *map(str, numbers[1:])], pa.string())})
    parquet.write_table(table, path, row_group_size=group)
    _, found = read([path], EMBEDDING, Columns(("body",), ("n", "name")), lines)
    assert [record.line for record in found] == [number + 1 for number in numbers]
    assert [record.extra for record in found] == [{"n": n, "name": str(n) if n else None} for n in numbers]
    for record, text in zip(found, texts, strict=True):
        if text is None or "\0" in text:
            assert record.problem is not None
        else:
            assert record.texts == (text,)


def test_ids_run_through_all_files(tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 5)
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n' * 3)
    parquet.write_table(pa.table({"text": ["x"] * 4}), tmp_path / "c.parquet")
    paths = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.parquet", "a.txt")]
    parts, found = read(paths, EMBEDDING, Columns(), 3)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [(part.path, part.first, part.count, part.first_id) for part in parts] == [
        *((str(paths[0]), 1, 3, 1), (str(paths[0]), 4, 2, 4), (str(paths[1]), 1, 3, 6)),
        *((str(paths[2]), 1, 3, 9), (str(paths[2]), 4, 1, 12), (str(paths[3]), 1, 3, 13), (str(paths[3]), 4, 2, 16)),
    ]
    assert [record.texts for record in found] == [("x",)] * 17


def test_the_texts_of_pairs(tmp_path):
    path = tmp_path / "pairs.parquet"
    parquet.write_table(pa.table({"question": ["q"], "context": ["c"], "text": ["t"], "text_pair": ["p"]}), path)
    for task, texts in [(QUESTION_ANSWERING, ("q", "c")), (SEQUENCE_CLASSIFICATION, ("t", "p")), (EMBEDDING, ("t",))]:
        assert read([path], task, Columns(), 9)[1] == [Record(1, texts)]
    assert read([path], SEQUENCE_CLASSIFICATION, Columns(("text",)), 9)[1] == [Record(1, ("t",))]


def test_text_that_is_not_utf_8_is_a_bad_row(tmp_path):
    """pyarrow does not check it on reading."""
    raw = pa.array([b"good", b"bad \xff"])
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    parquet.write_table(pa.table({"text": text, "name": text}), tmp_path / "x.parquet")
    good, bad = read([tmp_path / "x.parquet"], EMBEDDING, Columns(kept=("name",)), 9)[1]
    assert (good.texts, good.extra) == (("good",), {"name": "good"})
    assert (bad.problem, bad.extra) == (
        "'text': byte 5 (0xff) is not UTF-8; save the file as UTF-8",
        {"name": "bad \ufffd"},
    )


@pytest.mark.parametrize(
    ("make", "columns", "message"),
    [
        (lambda path: None, Columns(), r"no file .*x\.parquet"),
        (lambda path: path.mkdir(), Columns(), "is a folder"),
        (
            lambda path: path.write_bytes(b""),
            Columns(),
            r"cannot read .*x\.parquet \(.*\); expected a whole Parquet file",
        ),
        (lambda path: path.write_bytes(b"text\n" * 99), Columns(), r"cannot read .*x\.parquet \(.*magic bytes"),
        (
            lambda path: write(path, {"text": pa.array([], pa.string())}),
            Columns(),
            r"x\.parquet has no rows; leave it",
        ),
        (
            lambda path: write(path, {"body": ["x"], "n": [1]}),
            Columns(),
            r"x\.parquet has no column 'text', only body, n; name one of them with --columns",
        ),
        (lambda path: write(path, {"text": ["x"]}), Columns(("body",)), "no column 'body', only text; .* --columns"),
        (lambda path: write(path, {"text": ["x"]}), Columns(kept=("id",)), "no column 'id', only text; .* --keep"),
        (lambda path: write(path, {"text": [1]}), Columns(), "the column 'text' is int64, expected text"),
        (lambda path: write(path, {"text": ["x"], "v": [0.5]}), Columns(kept=("v",)), "'v' is double; --keep copies"),
    ],
)
def test_a_table_that_cannot_be_used(make, columns, message, tmp_path):
    path = tmp_path / "x.parquet"
    make(path)
    with pytest.raises(UserError, match=message):
        list(split_corpus([path], EMBEDDING, columns, 9))


def write(path: Path, columns: dict[str, Any]) -> None:
    parquet.write_table(pa.table(columns), path)


def test_a_table_that_is_damaged_inside(tmp_path):
    """The footer is whole, so that it shows only when the rows are read."""
    path = tmp_path / "x.parquet"
    write(path, {"text": [f"a text {number}" for number in range(1000)]})
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    (part,) = split_corpus([path], EMBEDDING, Columns(), 1000)
    with pytest.raises(UserError, match=r"cannot read .*x\.parquet \(.*\); expected a whole Parquet file"):
        list(read_shard(part, Path("/"), EMBEDDING, Columns()))


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_an_empty_text(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is empty"):
        list(split_corpus([tmp_path / name], EMBEDDING, Columns(), 9))
