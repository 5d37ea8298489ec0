"""The forms of predict.py's output, and runs that are interrupted and go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from random_families import make_family_checkpoint
from safetensors.numpy import load_file

import model2onnx
import predict
from bert_trt import answer_files, records
from bert_trt.answer_files import Answer, JsonLines, NumpyRows, form_of, open_answers, partial_files
from bert_trt.console import UserError
from bert_trt.model_files import MASK_NAME, ModelFolder
from bert_trt.options import EMBEDDING, FILL_MASK, AnswerOptions, SequenceRange
from bert_trt.prediction import BatchRanges, Source, one_ahead, one_by_one, predict_file
from bert_trt.records import Record

WIDTH = 64
LINES = ["the tower of london", "", "paris , lyon , nice .", "\0", "a b c d e", "rome", "a " * 60, "of the"]
BAD, BLANK = (4, 7), (2,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of embeddings."""
    made = tmp_path_factory.mktemp("embedding")
    make_family_checkpoint(made / "checkpoint", "bert", EMBEDDING)
    model2onnx.quiet_libraries()
    model2onnx.export(str(made / "checkpoint"), None, made / "model", task=EMBEDDING, pooling="mean")
    return made / "model"


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def no_partial_file(path: Path) -> bool:
    return not any(part.exists() for part in partial_files(path))


# --- the forms ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(folder, tmp_path_factory) -> dict[int, Any]:
    """The embeddings of the lines, from JSON lines."""
    made = tmp_path_factory.mktemp("json")
    (made / "lines.txt").write_text("\n".join(LINES) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", *map(str, (folder, made / "lines.txt", "--out", made / "x.jsonl"))])
        assert predict.main() == 0
    return {record["line"]: record.get("prediction") for record in read_lines(made / "x.jsonl")}


def test_json_lines(vectors):
    assert list(vectors) == [number for number in range(1, len(LINES) + 1) if number not in BLANK]
    assert [number for number, vector in vectors.items() if vector is None] == list(BAD)
    assert all(len(vector) == WIDTH for number, vector in vectors.items() if number not in BAD)


def check_rows(rows: np.ndarray, vectors: dict[int, Any]) -> None:
    assert rows.shape == (len(LINES), WIDTH)
    assert rows.dtype == np.float32
    for number, row in enumerate(rows, start=1):
        if number in (*BAD, *BLANK):
            assert np.isnan(row).all()
        else:
            np.testing.assert_array_equal(row, np.array(vectors[number], np.float32))


def test_npy_and_safetensors_have_a_row_for_each_line(folder, source, vectors, tmp_path, in_process):
    for name in ("x.npy", "x.safetensors"):
        ended = in_process(predict.main, folder, source, "--out", tmp_path / name)
        assert ended.code == 0
        assert "warning: 3 of the 8 rows are NaN: those of bad and of blank lines" in ended.err
        assert "lines.txt, line 4: byte 1 is NUL" in ended.err
        assert "lines.txt, line 7: 62 tokens, but the position table has 40" in ended.err
        assert f"5 answers, 2 bad lines -> {tmp_path / name}" in ended.out
        assert no_partial_file(tmp_path / name)
    check_rows(np.load(tmp_path / "x.npy", mmap_mode="r"), vectors)
    check_rows(load_file(tmp_path / "x.safetensors")["embedding"], vectors)


def test_parquet(folder, tmp_path, vectors, in_process):
    parquet = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "x.jsonl"
    objects = [
        "" if not text else '{"text": 1}' if text == "\0" else json.dumps({"text": text, "id": [text]})
        for text in LINES
    ]
    source.write_text("\n".join(objects) + "\n")
    ended = in_process(predict.main, folder, source, "--out", tmp_path / "x.parquet")
    assert ended.code == 0, ended.err
    assert no_partial_file(tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    check_rows(np.array(table["embedding"], np.float32), vectors)
    assert table["line"] == list(range(1, len(LINES) + 1))
    assert [number for number, error in zip(table["line"], table["error"], strict=True) if error] == list(BAD)
    assert json.loads(table["extra"][0]) == {"id": [LINES[0]]}


def test_parquet_without_pyarrow_names_the_file_to_install(folder, source, tmp_path, monkeypatch, in_process):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ended = in_process(predict.main, folder, source, "--out", tmp_path / "x.parquet")
    assert ended.code == 1
    assert "pip install -r requirements-predict.txt; or name a file that ends in .npy" in " ".join(ended.err.split())
    requirements = (ROOT / "requirements-predict.txt").read_text()
    assert re.search(r"^pyarrow==", requirements, re.MULTILINE)
    assert "-r requirements-predict.txt" in (ROOT / "requirements-dev.txt").read_text()


@pytest.mark.parametrize("form", [NumpyRows, answer_files.SafetensorsRows])
@pytest.mark.parametrize("width", [1, 64, 4096])
def test_the_header_has_room_for_any_number_of_rows(form, width):
    made = form(EMBEDDING, width)
    assert len({len(made._header(rows)) for rows in (0, 1, 999, 10**6, 10**12)}) == 1


def test_the_name_says_the_form(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.txt, expected one of \.jsonl, \.npy, \.parquet, \.safetensors"):
        form_of(tmp_path / "x.txt", EMBEDDING, 4)
    with pytest.raises(UserError, match="ends in nothing"):
        form_of(tmp_path / "x", EMBEDDING, 4)
    with pytest.raises(
        UserError, match=r"\.npy holds a vector for each line, which the task fill-mask does not give"
    ):
        form_of(tmp_path / "x.npy", FILL_MASK, 4)
    assert isinstance(form_of(Path("/dev/null"), FILL_MASK, 4), JsonLines)


def test_keys_of_the_input_are_copied(folder, tmp_path, in_process):
    source = tmp_path / "x.jsonl"
    source.write_text('{"text": "paris", "id": "é\\ud83d", "n": {"a": [1.5]}}\n{"id": 8}\n', encoding="utf-8")
    assert in_process(predict.main, folder, source, "--out", tmp_path / "y.jsonl").code == 0
    good, bad = read_lines(tmp_path / "y.jsonl")
    assert list(good) == ["line", "id", "n", "text", "prediction"]
    assert good["id"] == "é\ud83d"
    assert good["n"] == {"a": [1.5]}
    assert bad.keys() == {"line", "id", "error"}
    assert bad["id"] == 8
    assert "x.jsonl, line 2: no 'text'" in bad["error"]


def test_few_of_many_bad_lines_are_shown(folder, tmp_path, in_process):
    source = tmp_path / "x.jsonl"
    source.write_text('{"text": "paris"}\n' + '{"text": 7}\n' * 20)
    ended = in_process(predict.main, folder, source, "--out", tmp_path / "y.jsonl")
    assert ended.code == 0
    assert ended.err.count("'text' is a JSON int") == 5
    assert f"warning: 15 more bad lines; {tmp_path / 'y.jsonl'} has the reason of each" in " ".join(ended.err.split())
    assert sum("error" in record for record in read_lines(tmp_path / "y.jsonl")) == 20


def test_a_device_gets_the_lines(folder, source, vectors, script):
    done = script("predict.py", folder, source, "--out", "/dev/stdout")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "note: 5 answers, 2 bad lines -> /dev/stdout" in done.stderr
    assert {line["line"]: line.get("prediction") for line in lines} == vectors


def test_a_pipe_is_read_once(folder, tmp_path):
    command = [sys.executable, ROOT / "predict.py", folder, "/dev/stdin", "--out", tmp_path / "x.jsonl"]
    text = "paris\nlyon\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [record["text"] for record in read_lines(tmp_path / "x.jsonl")] == ["paris", "lyon"]
    assert no_partial_file(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("lines.txt", "INPUT"),
        ("model/model.onnx", "the model's model.onnx"),
        ("model/config.json", "the model's config"),
    ],
)
def test_no_input_is_overwritten(folder, source, tmp_path, in_process, out, named):
    (tmp_path / "model").symlink_to(folder)
    ended = in_process(predict.main, tmp_path / "model", source, "--out", tmp_path / out)
    assert ended.code == 1
    assert f"would overwrite {named}" in ended.err
    partial = tmp_path / "x.jsonl.partial"
    partial.write_text("paris\n")
    ended = in_process(predict.main, folder, partial, "--out", tmp_path / "x.jsonl")
    assert ended.code == 1
    assert "FILE.partial" in ended.err
    assert partial.read_text() == "paris\n"


# --- interrupted runs -----------------------------------------------------------------------------------------


def means(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """A network whose vector has the mean of the ids: (B, S) -> (B, 64)."""
    ids, mask = inputs["input_ids"], inputs[MASK_NAME]
    return np.repeat((ids * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True), WIDTH, 1).astype(np.float32)


class Interrupted:
    """The same, until a number of calls; then Ctrl-C or an error."""

    def __init__(self, calls: int, error: BaseException) -> None:
        self.left = calls
        self.error = error
        self.calls = 0

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        self.calls += 1
        if self.calls > self.left:
            raise self.error
        return means(inputs)


@pytest.fixture
def many(tmp_path, monkeypatch) -> Path:
    """100 lines in chunks of 10, each of which is one batch; some are bad or blank."""
    monkeypatch.setattr(records, "CHUNK_LINES", 10)
    lines = [LINES[number % len(LINES)] if number % 3 else "a " * (number % 20 + 1) for number in range(100)]
    (tmp_path / "many.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "many.txt"


@pytest.fixture
def start(folder, many):
    """Runs a part of predict.py: the network is a function."""

    def run(network: Any, target: Path, command: dict[str, Any] | None = None, restart: bool = False) -> None:
        ranges = BatchRanges("padded", SequenceRange(1, 40, 40), SequenceRange(1, 99, 99), bucket=40)
        source = Source(ModelFolder(folder), many, ranges, AnswerOptions())
        predict_file(source, one_by_one(network), target, {"text": "many"} if command is None else command, restart)

    return run


FORM_NAMES = ["x.jsonl", "x.npy", "x.safetensors", "x.parquet"]


def content(path: Path) -> Any:
    """The bytes of a file, or the table of a Parquet file, whose bytes depend on its row groups."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return repr(parquet.read_table(path).to_pydict())
    return path.read_bytes()


@pytest.mark.parametrize("name", FORM_NAMES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("TensorRT could not execute the plan")])
def test_an_interrupted_run_goes_on(start, tmp_path, capsys, name, error):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    whole, target = tmp_path / f"whole_{name}", tmp_path / name
    start(means, whole)
    target.write_text("old")
    first = Interrupted(4, error)
    with pytest.raises(type(error)):
        start(first, target)
    assert "40 lines are done; the same command goes on from there" in capsys.readouterr().err
    assert target.read_text() == "old"
    partial, _ = partial_files(target)
    with partial.open("ab") as file:
        file.write(b"half of a line that was being written")
    with pytest.raises(type(error)):
        start(Interrupted(3, error), target)
    rest = Interrupted(100, error)
    start(rest, target)
    assert rest.calls == 3  # 10 chunks, 4 and 3 done before
    said = capsys.readouterr()
    assert "70 lines were done before; going on from there" in said.err
    assert content(target) == content(whole)
    assert no_partial_file(target)
    bad = sum(len(line) > 80 or "\0" in line for line in (tmp_path / "many.txt").read_text().split("\n"))
    assert f"{bad} bad lines -> {target}" in said.out


def test_a_run_that_stops_after_its_last_line_goes_on(start, tmp_path, monkeypatch):
    """Killed between the last line and the rename."""
    target = tmp_path / "x.npy"
    with monkeypatch.context() as patch:
        patch.setattr(NumpyRows, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            start(means, target)
    start(Interrupted(0, AssertionError("nothing is left to run")), target)
    assert np.load(target).shape == (100, WIDTH)


def test_nothing_is_left_where_nothing_was_done(start, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        start(Interrupted(0, KeyboardInterrupt()), tmp_path / "x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["many.txt"]


def test_a_partial_file_of_another_command_is_kept(start, tmp_path):
    target = tmp_path / "x.jsonl"
    with pytest.raises(KeyboardInterrupt):
        start(Interrupted(2, KeyboardInterrupt()), target)
    parts = [path.read_bytes() for path in partial_files(target)]
    told = "x.jsonl.partial is of another command: its text is many, here it is few; to discard it, add --restart"
    with pytest.raises(UserError, match=told):
        start(means, target, {"text": "few"})
    assert [path.read_bytes() for path in partial_files(target)] == parts
    assert not target.exists()
    start(means, target, {"text": "few"}, restart=True)
    assert len(read_lines(target)) > 50
    assert no_partial_file(target)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda partial, state: state.unlink(), "exists without x.jsonl.partial.json, which says whose it is"),
        (lambda partial, state: state.write_text("{"), "x.jsonl.partial.json is damaged"),
        (lambda partial, state: state.write_text("[]"), "x.jsonl.partial.json is damaged"),
        (lambda partial, state: partial.write_bytes(partial.read_bytes()[:-1]), "are done: it is damaged"),
    ],
)
def test_a_damaged_partial_file_is_kept(start, tmp_path, damage, told):
    target = tmp_path / "x.jsonl"
    with pytest.raises(KeyboardInterrupt):
        start(Interrupted(2, KeyboardInterrupt()), target)
    damage(*partial_files(target))
    partial = partial_files(target)[0].read_bytes()
    with pytest.raises(UserError, match=f"{told}.*--restart"):
        start(means, target)
    assert partial_files(target)[0].read_bytes() == partial
    start(means, target, restart=True)
    assert no_partial_file(target)


def test_two_processes_do_not_write_one_file(tmp_path):
    form = JsonLines(EMBEDDING, 4)
    with open_answers(tmp_path / "x.jsonl", form, {}, False) as answers:
        answers.add([Answer(Record(1, ("a",)), [1])], 0)
        with (
            pytest.raises(UserError, match=r"another process is writing .*x\.jsonl\.partial"),
            open_answers(tmp_path / "x.jsonl", form, {}, True),
        ):
            pass
        answers.add([Answer(Record(2, ("b",)), [2])], 0)
        answers.finish()
    assert [record["text"] for record in read_lines(tmp_path / "x.jsonl")] == ["a", "b"]


@pytest.mark.parametrize("changed", ["input", "option", "model"])
def test_what_a_run_depends_on(folder, many, tmp_path, changed, monkeypatch):
    def described(*arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["", *map(str, arguments), "--out", str(tmp_path / "x.jsonl")])
        options = predict.predict_arguments()
        return json.loads(json.dumps(predict.describe(options, ModelFolder(options.model))))

    before = described(folder, many)
    assert described(folder, many) == before
    extra = ["--truncate"] if changed == "option" else []
    assert all(isinstance(value, str | int | bool | None) for value in before.values())  # readable in a message
    if changed == "input":
        many.write_text("paris\n")
    if changed == "model":
        config = folder / "config.json"
        status = config.stat()
        os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert described(folder, many, *extra) != before


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_goes_on(folder, tmp_path, ended_by):
    source, target = tmp_path / "lines.txt", tmp_path / "x.npy"
    source.write_text("the tower of london\nparis , lyon\n" * 20_000)
    command = [sys.executable, ROOT / "predict.py", folder, source, "--out", target]
    _, state = partial_files(target)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  a background job ignores it
    ) as process:
        while process.poll() is None and not (state.exists() and '"lines": 0' not in state.read_text()):
            time.sleep(0.05)
        assert process.poll() is None, process.stderr
        process.send_signal(ended_by)
        _, told = process.communicate()
    assert process.returncode == (130 if ended_by == signal.SIGINT else -ended_by)
    assert "Traceback" not in told
    assert not target.exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "lines were done before; going on from there" in done.stderr
    rows = np.load(target)
    assert rows.shape == (40_000, WIDTH)
    np.testing.assert_allclose(rows, np.tile(rows[:2], (20_000, 1)), rtol=1e-4, atol=1e-4)


def test_what_is_computed_ahead_can_be_closed_by_its_own_thread():
    """As Python does after Ctrl-C, when it collects what nobody refers to in whatever thread runs."""
    paused, ended = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def compute(number: int) -> int:
        if number == 1:
            paused.wait(60)  # the generator has returned the first result, and is not running
            try:
                ahead.close()
            except BaseException as failure:
                failures.append(failure)
            ended.set()
        return number

    ahead = one_ahead(compute, range(3))
    assert next(ahead) == 0
    paused.set()
    assert ended.wait(60)
    assert not failures
    assert list(ahead) == []


def test_memory_does_not_grow_with_the_file(folder, tmp_path):
    ranges = BatchRanges("padded", SequenceRange(1, 40, 40), SequenceRange(1, 99, 99))

    def peak(lines: int) -> int:
        path = tmp_path / f"{lines}.txt"
        path.write_text("the tower of london , a b c\n" * lines)
        source = Source(ModelFolder(folder), path, ranges, AnswerOptions())
        tracemalloc.start()
        predict_file(source, one_by_one(means), tmp_path / f"{lines}.npy")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # what the first run imports
    # At most three chunks are in memory: one with batches to run, the next one, and one that is being tokenised.
    assert peak(16 * records.CHUNK_LINES) <= 1.2 * peak(8 * records.CHUNK_LINES)
