"""What make says where Python does not suffice, and that a second run installs nothing.

The interpreter is a script that answers as told and writes down what it is asked; nothing is really installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

INTERPRETER = """#!/bin/sh
# Stands in for Python, inside and outside of the environment.
echo "$@" >> "{log}"
case "$*" in
  "-c "*version_info*) exec "{python}" -c "import sys; sys.version_info = {version}
$2" ;;
  "-c "*venv*) {venv} ;;
  "-m venv "*) {make_venv} ;;
  *"-r requirements-gpu.txt"*) {install_gpu} ;;
  *"-r requirements-pycuda.txt"*) {install_pycuda} ;;
  *"-r plugins/requirements-cuda.txt"*) {install_cuda} ;;
  *"-r requirements-serving.txt"*) {install_serving} ;;
  *"plugins/build.py --check-tools"*) {check_tools} ;;
  *"-m pip install"*) {install} ;;
esac
"""
COPY_ITSELF = (
    'mkdir -p "$3/bin" && for name in python ruff basedpyright clang-format; do cp "$0" "$3/bin/$name"; done'
)


class Project:
    """A copy of the files that make reads, and an interpreter that behaves as told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "asked.log"
        for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
            shutil.copy(path, folder)
        (folder / "plugins").mkdir()
        shutil.copy(ROOT / "plugins" / "requirements-cuda.txt", folder / "plugins")

    def interpreter(self, **changes: str) -> Path:
        behaviour = {
            "log": str(self.log),
            "python": sys.executable,
            "version": "(3, 10, 0)",
            "venv": "exit 0",
            "make_venv": COPY_ITSELF,
            "install": "exit 0",
            "install_gpu": "exit 0",
            "install_pycuda": "exit 0",
            "install_cuda": "exit 0",
            "install_serving": "exit 0",
            "check_tools": "exit 0",
        }
        path = self.folder / "fake-python"
        path.write_text(INTERPRETER.format(**behaviour | changes))
        path.chmod(0o755)
        return path

    def make(
        self, target: str, python: Path | str | None = None, gpu: int = 0, variables: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        command = ["make", target, f"PYTHON={python or self.interpreter()}", f"GPU={gpu}", *variables]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def asked(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if word in line]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_a_python_without_venv_is_told_what_to_install(project, target):
    python = project.interpreter(venv="echo 'No module named venv' >&2; exit 1")
    answer = project.make(target, python)
    assert answer.returncode != 0
    assert f"error: {python} has no venv module" in answer.stderr
    assert "apt install python3-venv" in answer.stderr
    assert "make PYTHON=" in answer.stderr
    assert not (project.folder / ".venv").exists()
    assert project.asked("-m pip") == []


def test_the_question_for_venv_asks_for_what_venv_needs(project):
    """Debian splits off ensurepip: there venv can be imported, but not used."""
    project.make("demo")
    assert project.asked("-c import venv, ensurepip")


@pytest.mark.parametrize("version", ["(3, 9, 18)", "(2, 7, 18)"])
def test_a_python_that_is_too_old_is_told_which_is_needed(project, version):
    python = project.interpreter(version=version)
    answer = project.make("demo", python)
    assert answer.returncode != 0
    assert f"error: {python} is missing or older than Python 3.10; install Python 3.10 or newer" in answer.stderr
    assert "make PYTHON=" in answer.stderr
    assert project.asked("venv") == []


def test_a_python_that_does_not_exist_is_told_which_is_needed(project):
    answer = project.make("demo", "no-such-python")
    assert answer.returncode != 0
    assert "error: no-such-python is missing or older than Python 3.10" in answer.stderr


def test_the_first_run_makes_the_environment_installs_and_runs_the_demo(project):
    answer = project.make("demo")
    assert answer.returncode == 0, answer.stderr
    assert len(project.asked("-m venv .venv")) == 1
    assert [line.split("-r ")[-1] for line in project.asked("pip install")] == ["requirements.txt"]
    assert project.log.read_text().splitlines()[-1] == "demo.py"


def test_a_cuda_compiler_is_installed_where_there_is_none(project):
    """And only there, and only once."""
    without = project.interpreter(check_tools="exit 1")
    assert project.make("demo", without).returncode == 0
    assert project.asked("-r plugins/requirements-cuda.txt")
    assert project.make("demo", without).returncode == 0
    assert project.asked("pip install") == []


def test_the_demo_goes_on_without_a_cuda_compiler_that_cannot_be_installed(project):
    """And tries again the next time."""
    without = project.interpreter(check_tools="exit 1", install_cuda="exit 1")
    answer = project.make("demo", without)
    assert answer.returncode == 0
    assert "warning: plugins/requirements-cuda.txt could not be installed" in answer.stderr
    assert project.log.read_text().splitlines()[-1] == "demo.py"
    project.make("demo", without)
    assert project.asked("-r plugins/requirements-cuda.txt")


@pytest.mark.parametrize("target", ["test", "plugins"])
def test_what_needs_the_plugins_fails_without_a_cuda_compiler(project, target):
    answer = project.make(target, project.interpreter(check_tools="exit 1", install_cuda="exit 1"))
    assert answer.returncode != 0
    assert project.asked("-m pytest") == []


def test_the_demo_builds_the_plugins_itself(project):
    assert project.make("demo").returncode == 0
    assert project.asked("plugins/build.py") == ["plugins/build.py --check-tools"]


def test_the_plugins_are_built_before_the_tests_whose_output_pytest_keeps(project):
    assert project.make("test").returncode == 0
    asked = project.log.read_text().splitlines()
    assert asked.index("plugins/build.py") < next(
        i for i, line in enumerate(asked) if line.startswith("-m pytest tests")
    )


@pytest.mark.parametrize("variables", [(), ("ARCHITECTURES=all",), ("ARCHITECTURES=80,90",)])
def test_the_plugins_are_built_for_the_architectures_that_are_named(project, variables):
    assert project.make("plugins", variables=variables).returncode == 0
    options = [f"--architectures {one.partition('=')[2]}" for one in variables]
    assert project.log.read_text().splitlines()[-1] == " ".join(["plugins/build.py", *options])


def test_a_work_folder_is_made_where_it_is_named(project):
    assert project.make("exercise", variables=["DIR=my bert"]).returncode == 0
    assert project.log.read_text().splitlines()[-1].strip() == "exercise.py make my bert"
    assert project.make("exercise", variables=["DIR=b", "LANGUAGE=zh"]).returncode == 0
    assert project.log.read_text().splitlines()[-1] == "exercise.py make b --language zh"


def test_a_work_folder_needs_a_name(project):
    answer = project.make("exercise")
    assert answer.returncode != 0
    assert "error: name the new folder: make exercise DIR=my_bert" in answer.stderr
    assert project.asked("exercise.py") == []


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ((), ""),
        (("TASKS=1 6",), " 1 6"),
        (("SEED=7", "JSON=my grades.json"), " --seed 7 --json my grades.json"),
        (("LANGUAGE=zh",), " --language zh"),
    ],
)
def test_the_grading_gets_what_it_is_told(project, variables, arguments, monkeypatch):
    monkeypatch.setenv("LANGUAGE", "zh_CN:zh")  # is read by the script itself
    assert project.make("grade", variables=variables).returncode == 0
    asked = project.log.read_text().splitlines()[-1]
    assert " ".join(asked.split()) == f"exercise.py grade{arguments}"


def test_the_grading_goes_on_without_a_cuda_compiler_that_cannot_be_installed(project):
    answer = project.make("grade", project.interpreter(check_tools="exit 1", install_cuda="exit 1"))
    assert answer.returncode == 0
    assert "kernels are not graded" in answer.stderr
    assert project.log.read_text().splitlines()[-1].startswith("exercise.py grade")


def test_pip_shows_its_progress(project):
    project.make("demo")
    (asked,) = project.asked("-r requirements.txt")
    assert asked.startswith("bert_trt/progress.py installing ")
    assert "--quiet" not in asked


def test_a_second_run_installs_nothing_again(project):
    assert project.make("demo").returncode == 0
    assert project.make("demo").returncode == 0
    assert project.asked("-m ") == []  # neither pip nor venv
    assert project.log.read_text().splitlines()[-1] == "demo.py"


def test_a_second_test_run_installs_nothing_again(project):
    assert project.make("test").returncode == 0
    installed = [line for line in project.asked("pip install") if "-r " in line]
    wanted = [f"requirements{kind}.txt" for kind in ("", "-dev", "-serving")]
    assert [line.split("-r ")[-1] for line in installed] == wanted
    assert project.make("test").returncode == 0
    assert project.asked("-m pip") == project.asked("venv") == []
    assert project.asked("-m pytest tests")


def test_the_tests_run_without_triton_where_it_cannot_be_installed(project):
    answer = project.make("test", project.interpreter(install_serving="exit 1"))
    assert answer.returncode == 0
    assert "warning: requirements-serving.txt could not be installed" in answer.stderr
    assert project.asked("-m pytest tests")


def test_triton_is_installed_apart(project):
    """Beside the other packages, its NumPy and its protobuf would replace theirs."""
    project.make("test")
    (asked,) = project.asked("-r requirements-serving.txt")
    assert "--no-deps" in asked
    assert "--target .venv/serving" in asked
    project.make("demo")
    assert project.asked("serving") == []


def test_demo_after_test_installs_nothing(project):
    project.make("test")
    assert project.make("demo").returncode == 0
    assert project.asked("-m pip") == []


def test_a_changed_requirement_is_installed(project):
    project.make("demo")
    earlier = time.time() - 10
    for stamp in (project.folder / ".venv").glob(".installed*"):
        os.utime(stamp, (earlier, earlier))
    for requirements in project.folder.glob("plugins/requirements*.txt"):
        os.utime(requirements, (earlier - 10, earlier - 10))
    (project.folder / "requirements.txt").touch()
    project.make("demo")
    assert len(project.asked("pip install")) == 1
    assert project.asked("-m venv") == []


def test_a_failed_installation_stops_and_is_tried_again(project):
    python = project.interpreter(install="exit 7")
    answer = project.make("demo", python)
    assert answer.returncode != 0
    assert project.asked("demo.py") == []
    fake = (project.folder / ".venv" / "bin" / "python").read_text()
    (project.folder / ".venv" / "bin" / "python").write_text(fake.replace("exit 7", "exit 0"))
    assert project.make("demo", python).returncode == 0
    assert len(project.asked("pip install")) == 1


def test_an_environment_that_could_not_be_made_is_made_anew(project):
    python = project.interpreter(make_venv=f"{COPY_ITSELF}; exit 1")
    assert project.make("demo", python).returncode != 0
    assert project.asked("-m pip") == []
    assert project.make("demo").returncode == 0
    assert project.asked("-m venv .venv")


def test_a_gpu_adds_its_requirements(project):
    assert project.make("demo", gpu=1).returncode == 0
    assert [line.split("-r ")[-1] for line in project.asked("pip install")] == [
        "requirements.txt",
        "requirements-gpu.txt",
        "requirements-pycuda.txt",
    ]


def test_gpu_requirements_that_cannot_be_installed_are_a_warning(project):
    answer = project.make("demo", project.interpreter(install_gpu="exit 1"), gpu=1)
    assert answer.returncode == 0
    assert "warning: requirements-gpu.txt could not be installed" in answer.stderr
    assert "plans will be built but not executed" in answer.stderr
    assert project.asked("demo.py")


def test_a_pycuda_that_cannot_be_compiled_does_not_cost_tensorrt(project):
    answer = project.make("demo", project.interpreter(install_pycuda="exit 1"), gpu=1)
    assert answer.returncode == 0
    assert "warning: pycuda could not be compiled" in answer.stderr
    assert "requirements-gpu.txt could not" not in answer.stderr
    assert project.asked("-r requirements-gpu.txt")
    wanted = [line for line in (ROOT / "requirements-gpu.txt").read_text().splitlines() if not line.startswith("#")]
    assert any(line.startswith("tensorrt==") for line in wanted)
    assert not any(line.startswith("pycuda") for line in wanted)
    assert project.asked("demo.py")


def test_a_failed_demo_is_a_failed_make(project):
    assert project.make("demo").returncode == 0
    (project.folder / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert project.make("demo").returncode != 0


def test_clean_leaves_the_environment(project):
    project.make("demo")
    (project.folder / "out").mkdir()
    assert project.make("clean").returncode == 0
    assert not (project.folder / "out").exists()
    assert (project.folder / ".venv" / "bin" / "python").exists()


def test_every_target_that_the_makefile_explains_exists(project):
    told = [line.split()[2] for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("# make ")]
    assert {"demo", "test"} <= set(told)
    for target in told:
        command: list[str] = ["make", "-n", target, "GPU=0"]
        answer = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
