"""corpus.py gives predict.py's answers, whatever is killed or interrupted meanwhile. Ray is the real one.

test_shards.py has the reading of files, test_predict_tasks.py the answers of every task.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Ended, InProcess

import corpus
import predict
from bert_trt import corpus_folder, ray_cluster
from bert_trt.console import UserError
from bert_trt.corpus_actor import Job, ShardPredictor
from bert_trt.corpus_folder import bad_path, open_folder, part_path
from bert_trt.options import CorpusOptions
from bert_trt.ray_cluster import Actors, choose_actors
from bert_trt.shards import split_corpus
from builder import assemble

pa: Any = pytest.importorskip("pyarrow", reason="needs requirements-predict.txt")
parquet: Any = pytest.importorskip("pyarrow.parquet")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pandas") is None,
    reason="Ray Data is not installed: pip install -r requirements-cluster.txt",
)

WORDS = "the capital of france , contains tower . paris lyon nice london rome a b c d e".split()
SHARD_LINES = 100


def text_of(number: int) -> str:
    """A text of its own for each number, of 3 to 30 words, one of them masked."""
    words = [WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] for place in range(3 + number % 28)]
    words[number % len(words)] = "[MASK]"
    return " ".join(words)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Text with a blank line and bad ones, JSON lines with further keys, and Parquet."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = [text_of(number).encode() for number in range(950)]
    lines[5], lines[120], lines[333] = b"no mask", b"", b"paris \xff [MASK]"
    (folder / "a.txt").write_bytes(b"\r\n".join(lines))
    objects = [{"text": text_of(number), "key": f"é{number}"} for number in range(950, 1230)]
    objects[17]["text"] = "a"
    (folder / "b.jsonl").write_text("".join(json.dumps(one) + "\n" for one in objects))
    numbers = list(range(1230, 1600))
    texts = [text_of(number) for number in numbers]
    parquet.write_table(pa.table({"body": texts, "doc": numbers}), folder / "c.parquet", row_group_size=150)
    return [folder / name for name in ("a.txt", "b.jsonl", "c.parquet")]


OPTIONS = ["--columns", "body", "--keep", "doc", "--shard-lines", SHARD_LINES, "--top-k", 3]
NUM_LINES, NUM_PARTS = 1600, 10 + 3 + 4


@pytest.fixture(scope="module")
def expected(inputs: list[Path], model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """predict.py's answers, with ids; the rows of Parquet as JSON lines."""
    folder = tmp_path_factory.mktemp("expected")
    rows = parquet.read_table(inputs[2]).to_pylist()
    copy = folder / "c.jsonl"
    copy.write_text("".join(json.dumps({"text": row["body"], "doc": row["doc"]}) + "\n" for row in rows))
    records, before = [], 0
    for path, name, lines in zip([*inputs[:2], copy], inputs, (950, 280, 370), strict=True):
        out = folder / f"{path.name}.jsonl"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["predict.py", *map(str, (model_dir, path, "--out", out, "--top-k", 3))])
            assert predict.main() == 0
        for line in out.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            records.append(record | {"id": before + record["line"], "file": str(name)})
        before += lines
    return records


def check_answers(folder: Path, expected: list[dict[str, Any]], num_parts: int = NUM_PARTS) -> None:
    """The folder has each expected answer once, in order, each bad line in the side files, and nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == [
        *("_bad", "_corpus.json"),
        *(part_path(folder, number).name for number in range(num_parts)),
    ]
    good = [record for record in expected if "prediction" in record]
    found = parquet.read_table(folder).to_pylist()
    assert [row["id"] for row in found] == [record["id"] for record in good]
    for row, record in zip(found, good, strict=True):
        assert (row["file"], row["line"]) == (record["file"], record["line"])
        assert json.loads(row["extra"] or "{}") == {key: record[key] for key in ("key", "doc") if key in record}
        for words, others in zip(row["prediction"], record["prediction"], strict=True):
            assert [word["id"] for word in words] == [other["id"] for other in others]
            assert [word["word"] for word in words] == [other["word"] for other in others]
            probabilities = [other["probability"] for other in others]
            assert [word["probability"] for word in words] == pytest.approx(probabilities, rel=1e-4)
    bad = [record for record in expected if "error" in record]
    lines = [line for path in sorted((folder / "_bad").iterdir()) for line in path.read_text("utf-8").splitlines()]
    assert [(one["id"], one["file"], one["line"], one["error"]) for one in map(json.loads, lines)] == [
        (record["id"], record["file"], record["line"], record["error"]) for record in bad
    ]


# --- with Ray -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two machines with one CPU each, both of which are this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        cluster_utils = importlib.import_module("ray.cluster_utils")
        machine = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 * 2**20}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
        try:
            cluster.add_node(**machine)
            yield cluster.address
        finally:
            cluster.shutdown()


@needs_ray
def test_the_work_of_a_killed_actor_is_done_again(
    address, inputs, model_dir, expected, tmp_path, in_process, monkeypatch
):
    """One actor is killed in the middle of a shard: its pid is in the name of the file that it is writing.

    Tasks have several shards, as with a large corpus, and the second of a task is the one that is lost.
    """
    monkeypatch.setattr(ray_cluster, "MOST_TASKS", 5)
    out, killed = tmp_path / "out", []

    def kill_one() -> None:
        while not killed:
            for path in out.glob(".part-00000001*.tmp"):
                killed.append(path.name)
                os.kill(int(path.name.split(".")[-2]), signal.SIGKILL)
            time.sleep(0.001)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    arguments = [*inputs, "--model-dir", model_dir, "--out", out, "--address", address, "--actors", 2, *OPTIONS]
    ended = in_process(corpus.main, *arguments)
    killer.join(10)
    assert len(killed) == 1
    assert ended.code == 0, ended.err
    assert ended.out.endswith(f"1596 answers, 3 bad lines -> {out}\n")
    assert "note: actors: 2, each with 0 GPUs and 1 CPUs\n" in ended.err
    check_answers(out, expected)


@needs_ray
def test_an_actors_error_ends_the_script(address, inputs, model_dir, tmp_path, in_process):
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    os.truncate(model / "model.onnx.data", 1000)
    ended = in_process(corpus.main, inputs[0], "--model-dir", model, "--out", tmp_path / "out", "--address", address)
    assert ended.code == 1
    assert "model.onnx.data has 1000 bytes" in ended.err
    assert "Traceback" not in ended.err
    assert not part_path(tmp_path / "out", 0).exists()


@needs_ray
def test_more_actors_than_there_is_room_for(address, inputs, model_dir, tmp_path, in_process):
    arguments = ["--model-dir", model_dir, "--out", tmp_path / "out", "--address", address, "--actors", 3]
    ended = in_process(corpus.main, inputs[0], *arguments)
    assert ended.code == 1
    assert "error: --actors 3: there is room for 2 (a CPU each; 0 GPUs, 2 CPUs); name fewer\n" in ended.err


@needs_ray
def test_an_interrupted_run_goes_on(address, inputs, model_dir, expected, tmp_path, in_process):
    """It begins on this machine alone, where Ctrl-C reaches every process of the terminal, and ends on a cluster.

    Its parts are small, so that most of them are missing when this process sees three, however busy the machine is.
    """
    out, num_parts = tmp_path / "out", 95 + 28 + 37
    arguments = [*inputs, "--model-dir", model_dir, "--out", out, "--actors", 1, *OPTIONS]
    arguments[arguments.index(SHARD_LINES)] = SHARD_LINES // 10
    process = subprocess.Popen(
        [sys.executable, *map(str, (ROOT / "corpus.py", *arguments))],
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  a background job ignores it
    )
    while process.poll() is None and len(list(out.glob("part-*.parquet"))) < 3:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    printed, err = process.communicate(timeout=120)
    assert process.returncode == 130, printed + err
    assert err.endswith("interrupted\n")
    assert "lines are done; the same command goes on from there\n" in err
    assert "Traceback" not in err
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 3 <= len(before) < num_parts
    again = in_process(corpus.main, *arguments, "--address", address)
    assert again.code == 0, again.err
    assert again.out.endswith(f"1596 answers, 3 bad lines -> {out}\n")
    assert " of 1600 lines were done before; going on from there" in again.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    check_answers(out, expected, num_parts)
    for path, error in [(inputs[0], "line 6: no [MASK]"), (inputs[1], "line 18: no [MASK]")]:
        assert f"warning: {path}, {error}" in again.err
    finished = in_process(corpus.main, *arguments)  # nothing is left to do, and Ray does not start
    assert finished.code == 0
    assert finished.out == f"1596 answers, 3 bad lines -> {out}\n"
    assert "1600 of 1600 lines were done before" in finished.err


# --- before anything takes long -------------------------------------------------------------------------------


@pytest.fixture
def run(model_dir: Path, tmp_path: Path, in_process: InProcess) -> Callable[..., Ended]:
    """corpus.py with the folder ``out``; ends before Ray starts."""

    def run_corpus(*arguments: object) -> Ended:
        return in_process(corpus.main, *arguments, "--model-dir", model_dir, "--out", tmp_path / "out")

    return run_corpus


@needs_ray
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{}", "nothing answers there ([Errno 111] Connection refused); start one with `ray start --head`"),
        ("nowhere", "expected HOST:PORT, as `ray start --head` prints it"),
        ("ray://127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_a_cluster_that_cannot_be_reached(address, reason, run, inputs):
    with socket.socket() as free:  # bound, but it does not listen
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        ended = run(inputs[0], "--address", address.format(port))
    assert ended.code == 1
    assert f"error: --address {address.format(port)}: {reason}" in ended.err


@needs_ray
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["A", "missing.txt"], "no file missing.txt"),
        (
            ["A", "--columns", "body"],
            "--columns and --keep are for Parquet files, and no INPUT is one; leave them out",
        ),
        (["C", "--columns", "a,b"], "--columns names 2 columns, but fill-mask takes text"),
        (["C"], "c.parquet has no column 'text', only body, doc; name one of them with --columns"),
        (["A", "--stride", "3"], "--stride has no effect on the task fill-mask"),
    ],
)
def test_inputs_and_options_that_cannot_be_used(arguments, message, run, inputs, tmp_path):
    ended = run(*({"A": inputs[0], "C": inputs[2]}.get(word, word) for word in arguments))
    assert ended.code == 1
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_without_ray_the_error_names_its_requirements(run, inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = run(inputs[0])
    assert ended.code == 1
    assert "corpus.py needs Ray Data, which cannot be imported" in ended.err
    assert "pip install -r requirements-cluster.txt; or take predict.py" in ended.err
    assert "\nray[data]==" in (ROOT / "requirements-cluster.txt").read_text()
    assert "\n-r requirements-cluster.txt\n" in (ROOT / "requirements-dev.txt").read_text()


@pytest.mark.parametrize("names", ["a,", ",", ""])
def test_an_empty_name_is_wrong_usage(names, run, inputs):
    assert run(inputs[0], "--keep", names).code == 2


# --- an actor without Ray -------------------------------------------------------------------------------------


@pytest.fixture
def actor(inputs: list[Path], model_dir: Path, tmp_path: Path) -> ShardPredictor:
    """What Ray makes an actor of."""
    options = CorpusOptions(inputs=(inputs[0],), out=tmp_path, model_dir=model_dir, shard_lines=SHARD_LINES)
    return ShardPredictor(Job(options, Path.cwd(), assemble))


def test_a_part_appears_whole_or_not_at_all(actor, inputs, tmp_path, monkeypatch):
    columns = actor.job.options.columns
    actor.run(next(split_corpus(inputs[:1], "fill-mask", columns, SHARD_LINES)))
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {part_path(tmp_path, 0).name, "_bad", bad_path(tmp_path, 0).name}

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus_folder, "_bad_line", fail)  # while the part is written
    with pytest.raises(UserError, match="No space left on device; free some space"):
        actor.run([*split_corpus(inputs[:1], "fill-mask", columns, SHARD_LINES)][3])
    assert {path.name for path in tmp_path.rglob("*")} == names


def test_a_finished_part_is_not_written_again(actor, inputs, tmp_path):
    part_path(tmp_path, 0).write_bytes(b"done")
    actor.run(next(split_corpus(inputs[:1], "fill-mask", actor.job.options.columns, SHARD_LINES)))
    assert part_path(tmp_path, 0).read_bytes() == b"done"


def test_an_error_is_a_column(actor, inputs):
    shard = {"number": 0, "path": "gone.txt", "start": 0, "first": 1, "count": 1, "first_id": 1}
    (row,) = actor(pa.table({name: [value] for name, value in shard.items()})).to_pylist()
    assert row["error"].startswith("cannot read ")
    assert {name: row[name] for name in shard} == shard


# --- the folder -----------------------------------------------------------------------------------------------


def test_a_folder_of_another_command(tmp_path):
    with open_folder(tmp_path / "out", {"input 1": "a", "--top-k": 10}, restart=False):
        part_path(tmp_path / "out", 0).touch()
        bad_path(tmp_path / "out", 0).parent.mkdir()
        bad_path(tmp_path / "out", 0).touch()
    with open_folder(tmp_path / "out", {"input 1": "a", "--top-k": 10}, restart=False):
        assert part_path(tmp_path / "out", 0).exists()
    other = {"input 1": "a", "--top-k": 3}
    message = "is of another command: its --top-k is 10, here it is 3; to discard it, add --restart"
    with pytest.raises(UserError, match=message), open_folder(tmp_path / "out", other, restart=False):
        pass
    assert part_path(tmp_path / "out", 0).exists()
    with open_folder(tmp_path / "out", other, restart=True):
        assert not part_path(tmp_path / "out", 0).exists()
        assert not bad_path(tmp_path / "out", 0).exists()
    with open_folder(tmp_path / "out", other, restart=False):
        pass


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_with_other_files(restart, tmp_path):
    (tmp_path / "part-mine.parquet").touch()
    with (
        pytest.raises(UserError, match="has files of other programs; name an empty folder or a new one"),
        open_folder(tmp_path, {}, restart),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["part-mine.parquet"]


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    with (
        open_folder(tmp_path, {}, restart=False),
        pytest.raises(UserError, match="another process is writing to"),
        open_folder(tmp_path, {}, restart=False),
    ):
        pass


def test_damaged_settings(tmp_path):
    (tmp_path / "_corpus.json").write_text("{")
    with (
        pytest.raises(UserError, match=r"_corpus\.json is not valid JSON .* add --restart"),
        open_folder(tmp_path, {}, restart=False),
    ):
        pass
    with open_folder(tmp_path, {}, restart=True):
        assert json.loads((tmp_path / "_corpus.json").read_text()) == {}


def test_what_a_killed_process_left_is_removed(tmp_path):
    with open_folder(tmp_path, {}, restart=False):
        (tmp_path / ".part-00000000.parquet.17.tmp").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["_corpus.json"]


def test_a_corpus_without_an_answer(tmp_path):
    bad_path(tmp_path, 0).parent.mkdir()
    bad_path(tmp_path, 0).write_text('{"error": "x.txt, line 1: no [MASK]"}\n')
    with pytest.raises(UserError, match=r"no line can be used \(1 are bad\); the first: x\.txt, line 1: no \[MASK\]"):
        corpus.report(tmp_path)


# --- the choice of actors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "count", "actors"),
    [
        ([{"CPU": 2}], None, Actors(1, 2, 0)),
        ([{"CPU": 2}], 2, Actors(2, 1, 0)),
        ([{"CPU": 64}], None, Actors(16, 4, 0)),
        ([{"CPU": 64}], 3, Actors(3, 21, 0)),
        ([{"CPU": 4}, {"CPU": 8}], 2, Actors(2, 4, 0)),  # 6 of each would not fit on the first
        ([{"CPU": 4}, {"CPU": 8}], 3, Actors(3, 4, 0)),
        ([{"CPU": 16, "GPU": 2}], None, Actors(2, 8, 1)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 8, "GPU": 1}, {"CPU": 64}], None, Actors(3, 8, 1)),
        ([{"CPU": 16, "GPU": 8}], 1, Actors(1, 16, 1)),
    ],
)
def test_actors_share_what_there_is(machines, count, actors):
    assert choose_actors(machines, count) == actors


@pytest.mark.parametrize(
    ("machines", "count", "message"),
    [
        ([{"CPU": 2}], 3, r"--actors 3: there is room for 2 \(a CPU each; 0 GPUs, 2 CPUs\)"),
        ([{"CPU": 16, "GPU": 2}], 3, r"there is room for 2 \(a GPU and a CPU each; 2 GPUs, 16 CPUs\)"),
        ([{}], None, "there is room for 0"),
    ],
)
def test_no_room(machines, count, message):
    with pytest.raises(UserError, match=message):
        choose_actors(machines, count)


# --- progress -------------------------------------------------------------------------------------------------


def test_progress_without_a_terminal(capsys, monkeypatch):
    seconds = iter([0.0, 30.0, 70.0, 90.0])
    monkeypatch.setattr(corpus.time, "monotonic", lambda: next(seconds))
    with corpus.progress(100, 1000) as advance:
        for _ in range(3):
            advance(70)
    assert capsys.readouterr().err == "note: 240 of 1000 lines, 2 a second\n"
