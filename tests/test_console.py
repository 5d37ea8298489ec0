"""Files appear whole or not at all; errors reach the user as one literal line and exit code 1."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bert_trt import console
from bert_trt.console import UserError
from bert_trt.files import atomic_folder, atomic_write, make_folder

ROOT = Path(__file__).parent.parent
OLD = b"the old file"


def run_code(code: str, file_size_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own, which may write at most so many bytes to a file."""

    def limit() -> None:
        if file_size_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))

    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, preexec_fn=limit)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- atomic_write ------------------------------------------------------------------------------------------


def test_a_new_file_appears_with_its_content_and_nothing_beside_it(tmp_path):
    with atomic_write(tmp_path / "plan") as file:
        file.write(b"content")
    assert (tmp_path / "plan").read_bytes() == b"content"
    assert names_in(tmp_path) == ["plan"]


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "plan"
    path.write_bytes(OLD)
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("a bug"), UserError("a weight"), KeyboardInterrupt()])
def test_an_exception_inside_the_block_passes_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "plan"
    path.write_bytes(OLD)
    with pytest.raises(type(error)) as raised, atomic_write(path) as file:
        file.write(b"half of the new")
        raise error
    assert raised.value is error
    assert path.read_bytes() == OLD
    assert names_in(tmp_path) == ["plan"]


def test_an_exception_inside_the_block_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(ValueError, match="a bug"), atomic_write(tmp_path / "plan") as file:
        file.write(b"half")
        raise ValueError("a bug")
    assert names_in(tmp_path) == []


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "plan"):
        (tmp_path / "elsewhere").read_bytes()
    assert names_in(tmp_path) == []


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "plan"
    path.write_bytes(OLD)
    code = f"""
from pathlib import Path
from bert_trt.console import run_script
from bert_trt.files import atomic_write
def main():
    with atomic_write(Path({str(path)!r})) as file:
        for _ in range(100):
            file.write(bytes(1000))
    return 0
run_script(main)
"""
    answer = run_code(code, file_size_limit=50_000)
    assert answer.returncode == 1
    assert f"cannot write {path}: File too large" in answer.stderr
    assert "on another disk" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert path.read_bytes() == OLD
    assert names_in(tmp_path) == ["plan"]
    assert run_code(code).returncode == 0  # the same without the limit
    assert path.stat().st_size == 100_000


def test_a_full_device_is_an_error_and_is_never_replaced_by_a_file(tmp_path):
    device = tmp_path / "full"
    try:  # a twin of /dev/full: were it replaced, nothing of the machine would be lost
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 7))
        device.open("wb").close()
    except PermissionError:
        pytest.skip("device files cannot be made here")
    with pytest.raises(UserError) as raised, atomic_write(device) as file:
        file.write(b"x")
    assert f"cannot write {device}: No space left on device; free some space" in str(raised.value)
    assert device.is_char_device()
    assert names_in(tmp_path) == ["full"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(pipe) as file:
        file.write(b"answer")
    assert os.read(reader, 100) == b"answer"
    os.close(reader)
    assert pipe.is_fifo()


def test_standard_output_can_be_named_as_the_file():
    code = "from pathlib import Path\nfrom bert_trt.files import atomic_write\n"
    code += "with atomic_write(Path('/dev/stdout')) as file: file.write(b'answer')"
    answer = run_code(code)
    assert (answer.returncode, answer.stdout) == (0, "answer")


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.write_bytes(OLD)
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path / "elsewhere") == ["target"]


def test_a_missing_folder_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "missing" / "plan"
    with pytest.raises(UserError) as raised, atomic_write(path):
        pass
    assert f"cannot write {path}: No such file or directory; create the folder {path.parent} first" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file/plan", "Not a directory"),  # a file where the folder should be
        ("folder", "Is a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_path_that_cannot_be_a_file_is_an_error_that_names_it(tmp_path, name, told):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as raised, atomic_write(tmp_path / name):
        pytest.fail("the block must not run")
    assert str(raised.value).startswith(f"cannot write {tmp_path / name}: {told}; ")
    assert "name another" in str(raised.value)
    assert names_in(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("path", [Path("/"), Path()])
def test_a_folder_without_a_name_is_an_error_as_well(path):
    with pytest.raises(UserError, match="Is a directory"), atomic_write(path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error_with_the_remedy(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="choose a place that you may write to"), atomic_write(tmp_path / "plan"):
        pass


# --- folders ----------------------------------------------------------------------------------------------


def test_make_folder_makes_parents_and_accepts_what_is_there(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_make_folder_names_what_is_in_the_way(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(UserError) as raised:
        make_folder(tmp_path / "file")
    assert str(raised.value) == f"cannot create the folder {tmp_path / 'file'}: File exists; name another"


def test_files_written_together_replace_the_old_ones_and_leave_the_others(tmp_path):
    (tmp_path / "a").write_bytes(OLD)
    (tmp_path / "timing.cache").write_bytes(OLD)
    with atomic_folder(tmp_path) as new:
        (new / "a").write_bytes(b"new a")
        (new / "b").write_bytes(b"new b")
        assert (tmp_path / "a").read_bytes() == OLD
    assert names_in(tmp_path) == ["a", "b", "timing.cache"]
    assert (tmp_path / "a").read_bytes() == b"new a"
    assert (tmp_path / "timing.cache").read_bytes() == OLD


def test_none_of_the_files_written_together_appears_after_a_failure(tmp_path):
    (tmp_path / "a").write_bytes(OLD)
    with pytest.raises(ValueError, match="a bug"), atomic_folder(tmp_path) as new:
        (new / "a").write_bytes(b"new a")
        raise ValueError("a bug")
    assert names_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == OLD


# --- run_script -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_what_main_returns(code):
    assert run_code(f"from bert_trt.console import run_script\nrun_script(lambda: {code})").returncode == code


LITERAL = (
    r"text has no [MASK], [unused1] or [/bold]; shape [1, S] [red]x[/red] in C:\[b] for :warning: --model a:b:c \ "
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_user_error_is_one_literal_line_without_a_traceback_and_exit_code_1(encoding):
    code = f"""
import sys
sys.stderr.reconfigure(encoding={encoding!r})
from bert_trt.console import UserError, run_script
def main():
    raise UserError({LITERAL!r})
run_script(main)
"""
    answer = run_code(code)
    assert answer.returncode == 1
    assert answer.stderr == f"error: {LITERAL}\n"
    assert answer.stdout == ""


def test_a_warning_is_one_literal_line_on_standard_error():
    answer = run_code(f"from bert_trt.console import warn\nwarn({LITERAL!r})")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", f"warning: {LITERAL}\n")


def test_a_long_message_is_not_broken_into_lines():
    message = "weight " * 200
    answer = run_code(
        "from bert_trt.console import UserError, run_script\n"
        f"def main(): raise UserError({message!r})\nrun_script(main)"
    )
    assert answer.stderr == f"error: {message}\n"


def test_a_bug_is_not_hidden():
    answer = run_code("from bert_trt.console import run_script\nrun_script(lambda: 1 // 0)")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "ZeroDivisionError" in answer.stderr


def test_an_interrupt_ends_with_130_and_without_a_traceback():
    answer = run_code(
        "from bert_trt.console import run_script\ndef main(): raise KeyboardInterrupt\nrun_script(main)"
    )
    assert (answer.returncode, answer.stderr) == (130, "interrupted\n")


# --- standard output and standard error -------------------------------------------------------------------

# What a script does: a table, lines, a warning, a file; then it ends with its code.
PRINTS = """
import sys
from pathlib import Path
from rich.table import Table
from bert_trt.console import console, log_console, run_script, warn
from bert_trt.files import atomic_write
def main():
    table = Table(title="caf\\u00e9 \\u2192 \\udcff")
    table.add_column("word")
    table.add_row("\\u5317\\u4eac")
    console.print(table)
    with log_console.status("working"):
        warn("\\u00e9 \\udcff")
    for number in range(20_000):
        print("line", number)
    with atomic_write(Path(sys.argv[1])) as file:
        file.write(b"whole")
    return int(sys.argv[2])
run_script(main)
"""


def run_in_shell(tmp_path: Path, rest: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs PRINTS by a shell, which closes or redirects as ``rest`` says; {} in it is the command."""
    (tmp_path / "prints.py").write_text(PRINTS)
    command = rest.replace("{}", f"{sys.executable} prints.py file")
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(["bash", "-c", command], env=variables, cwd=tmp_path, capture_output=True, check=False)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize(
    ("closed", "out_is_closed", "error_is_closed"),
    [(">&-", True, False), ("2>&-", False, True), (">&- 2>&-", True, True), ("<&- >&- 2>&-", True, True)],
)
def test_with_closed_streams_the_work_is_done_and_the_code_is_that_of_the_result(
    tmp_path, closed, out_is_closed, error_is_closed, code
):
    answer = run_in_shell(tmp_path, f"{{}} {code} {closed}")
    assert answer.returncode == code
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert (answer.stdout == b"") == out_is_closed
    assert answer.stderr == (b"" if error_is_closed else b"warning: \xc3\xa9 \\udcff\n")


def test_what_a_library_writes_to_a_closed_standard_output_does_not_get_into_a_file(tmp_path):
    """The lowest free number would be 1, and the next file that is opened would get it."""
    code = "import os\nfrom bert_trt.console import run_script\ndef main():\n    file = open('file', 'wb')\n"
    code += "    os.write(1, b'from C')\n    os.write(2, b'from C')\n    return file.fileno()\nrun_script(main)"
    (tmp_path / "writes.py").write_text(code)
    command = ["bash", "-c", f"{sys.executable} writes.py <&- >&- 2>&-"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=False)
    assert done.returncode > 2
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(("code", "ended"), [(0, 1), (3, 3)])
def test_a_full_standard_output_is_an_error_that_names_it_and_files_are_whole(tmp_path, code, ended):
    answer = run_in_shell(tmp_path, f"{{}} {code} > /dev/full")
    assert answer.returncode == ended
    last = answer.stderr.decode().splitlines()[-1]
    assert last.startswith("error: cannot write to standard output: No space left on device; ")
    assert b"Traceback" not in answer.stderr
    assert b"Exception" not in answer.stderr
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_full_standard_error_is_a_failure_too(tmp_path):
    answer = run_in_shell(tmp_path, "{} 0 2> /dev/full")
    assert answer.returncode == 1
    assert answer.stdout.endswith(b"line 19999\n")
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("code", [0, 3])
def test_after_the_reader_has_ended_the_work_goes_on_in_silence(tmp_path, code):
    answer = run_in_shell(tmp_path, f"set -o pipefail; {{}} {code} | head -1")
    assert answer.returncode == code
    assert answer.stdout.count(b"\n") == 1
    assert answer.stderr == b"warning: \xc3\xa9 \\udcff\n"
    assert (tmp_path / "file").read_bytes() == b"whole"


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("left_out", [None, "PYTHONIOENCODING"])
def test_where_only_ascii_can_be_written_other_characters_are_escaped(tmp_path, left_out):
    answer = run_in_shell(tmp_path, "{} 0", **{key: value for key, value in ASCII.items() if key != left_out})
    assert answer.returncode == 0
    out = answer.stdout.decode("ascii")
    assert "caf\\xe9 \\u2192 \\udcff" in out
    assert "| \\u5317\\u4eac |" in out  # the table's lines are ASCII too, not escapes
    assert answer.stderr == b"warning: \\xe9 \\udcff\n"


def test_a_name_that_is_no_utf8_is_shown_with_escapes_in_an_error():
    told = run_code("from bert_trt.console import *\ndef main(): raise UserError('no bad\\udcff')\nrun_script(main)")
    assert (told.returncode, told.stderr) == (1, "error: no bad\\udcff\n")


@pytest.mark.parametrize(
    ("rest", "code"),
    [("{} > /dev/full", 1), ("{} >&-", 0), ("set -o pipefail; {} | true", 0), ("{} 2> /dev/full --wrong", 2)],
)
def test_help_and_wrong_usage_end_like_everything_else(tmp_path, rest, code):
    (tmp_path / "script.py").write_text(
        "import argparse\nfrom bert_trt.console import run_script\n"
        "def main():\n    argparse.ArgumentParser().parse_args()\n    return 0\nrun_script(main)"
    )
    arguments = "--help" if "--wrong" not in rest else ""
    command = rest.replace("{}", f"{sys.executable} script.py {arguments}")
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(["bash", "-c", command], env=variables, cwd=tmp_path, capture_output=True, check=False)
    assert answer.returncode == code
    assert b"Traceback" not in answer.stderr
    assert b"Exception" not in answer.stderr


SCRIPTS = [
    *("model2onnx.py", "builder.py", "onnx2trt.py", "calibrator.py", "sensitivity.py", "predict.py", "demo.py"),
    *("corpus.py", "plugins/build.py", "plugins/testLayerNormPlugin.py"),
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_runs_by_run_script(name):
    assert (ROOT / name).read_text().endswith('\n\nif __name__ == "__main__":\n    run_script(main)\n')


@pytest.mark.parametrize(("kind", "shown"), [("UserError", "error: [told] \n"), ("ValueError", "Traceback")])
def test_a_users_error_while_modules_are_imported_has_no_traceback(kind, shown):
    """Before ``run_script`` is there; every other error is shown as Python does."""
    code = f"from bert_trt.console import UserError; raise {kind}('[told] ')"
    done = run_code(code)
    assert done.returncode == 1
    assert done.stderr.startswith(shown)


def test_notes_and_warnings_go_to_standard_error_as_they_are(capsys):
    console.note("[one] " + "x" * 200)
    console.warn("[two]")
    assert capsys.readouterr().err == f"note: [one] {'x' * 200}\nwarning: [two]\n"
