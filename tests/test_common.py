"""Files appear whole or not at all; errors reach the user as one literal line and exit code 1."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from common import UserError, make_folder, write_together, write_whole

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


# --- write_whole ------------------------------------------------------------------------------------------


def test_a_new_file_appears_with_its_content_and_nothing_beside_it(tmp_path):
    with write_whole(tmp_path / "plan") as file:
        file.write(b"content")
    assert (tmp_path / "plan").read_bytes() == b"content"
    assert names_in(tmp_path) == ["plan"]


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "plan"
    path.write_bytes(OLD)
    with write_whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("a bug"), UserError("a weight"), KeyboardInterrupt()])
def test_an_exception_inside_the_block_passes_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "plan"
    path.write_bytes(OLD)
    with pytest.raises(type(error)) as raised, write_whole(path) as file:
        file.write(b"half of the new")
        raise error
    assert raised.value is error
    assert path.read_bytes() == OLD
    assert names_in(tmp_path) == ["plan"]


def test_an_exception_inside_the_block_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(ValueError, match="a bug"), write_whole(tmp_path / "plan") as file:
        file.write(b"half")
        raise ValueError("a bug")
    assert names_in(tmp_path) == []


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), write_whole(tmp_path / "plan"):
        (tmp_path / "elsewhere").read_bytes()
    assert names_in(tmp_path) == []


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "plan"
    path.write_bytes(OLD)
    code = f"""
from pathlib import Path
from common import run_script, write_whole
def main():
    with write_whole(Path({str(path)!r})) as file:
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
    with pytest.raises(UserError) as raised, write_whole(device) as file:
        file.write(b"x")
    assert f"cannot write {device}: No space left on device; free some space" in str(raised.value)
    assert device.is_char_device()
    assert names_in(tmp_path) == ["full"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with write_whole(pipe) as file:
        file.write(b"answer")
    assert os.read(reader, 100) == b"answer"
    os.close(reader)
    assert pipe.is_fifo()


def test_standard_output_can_be_named_as_the_file():
    code = "from pathlib import Path\nfrom common import write_whole\n"
    code += "with write_whole(Path('/dev/stdout')) as file: file.write(b'answer')"
    answer = run_code(code)
    assert (answer.returncode, answer.stdout) == (0, "answer")


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.write_bytes(OLD)
    link.symlink_to(target)
    with write_whole(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path / "elsewhere") == ["target"]


def test_a_missing_folder_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "missing" / "plan"
    with pytest.raises(UserError) as raised, write_whole(path):
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
    with pytest.raises(UserError) as raised, write_whole(tmp_path / name):
        pytest.fail("the block must not run")
    assert str(raised.value).startswith(f"cannot write {tmp_path / name}: {told}; ")
    assert "name another" in str(raised.value)
    assert names_in(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("path", [Path("/"), Path()])
def test_a_folder_without_a_name_is_an_error_as_well(path):
    with pytest.raises(UserError, match="Is a directory"), write_whole(path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error_with_the_remedy(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="choose a place that you may write to"), write_whole(tmp_path / "plan"):
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
    with write_together(tmp_path) as new:
        (new / "a").write_bytes(b"new a")
        (new / "b").write_bytes(b"new b")
        assert (tmp_path / "a").read_bytes() == OLD
    assert names_in(tmp_path) == ["a", "b", "timing.cache"]
    assert (tmp_path / "a").read_bytes() == b"new a"
    assert (tmp_path / "timing.cache").read_bytes() == OLD


def test_none_of_the_files_written_together_appears_after_a_failure(tmp_path):
    (tmp_path / "a").write_bytes(OLD)
    with pytest.raises(ValueError, match="a bug"), write_together(tmp_path) as new:
        (new / "a").write_bytes(b"new a")
        raise ValueError("a bug")
    assert names_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == OLD


# --- run_script -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_what_main_returns(code):
    assert run_code(f"from common import run_script\nrun_script(lambda: {code})").returncode == code


LITERAL = (
    r"text has no [MASK], [unused1] or [/bold]; shape [1, S] [red]x[/red] in C:\[b] for :warning: --model a:b:c \ "
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_user_error_is_one_literal_line_without_a_traceback_and_exit_code_1(encoding):
    code = f"""
import sys
sys.stderr.reconfigure(encoding={encoding!r})
from common import UserError, run_script
def main():
    raise UserError({LITERAL!r})
run_script(main)
"""
    answer = run_code(code)
    assert answer.returncode == 1
    assert answer.stderr == f"error: {LITERAL}\n"
    assert answer.stdout == ""


def test_a_warning_is_one_literal_line_on_standard_error():
    answer = run_code(f"from common import warn\nwarn({LITERAL!r})")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", f"warning: {LITERAL}\n")


def test_a_long_message_is_not_broken_into_lines():
    message = "weight " * 200
    answer = run_code(
        f"from common import UserError, run_script\ndef main(): raise UserError({message!r})\nrun_script(main)"
    )
    assert answer.stderr == f"error: {message}\n"


def test_a_bug_is_not_hidden():
    answer = run_code("from common import run_script\nrun_script(lambda: 1 // 0)")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "ZeroDivisionError" in answer.stderr


def test_an_interrupt_ends_with_130_and_without_a_traceback():
    answer = run_code("from common import run_script\ndef main(): raise KeyboardInterrupt\nrun_script(main)")
    assert (answer.returncode, answer.stderr) == (130, "interrupted\n")
