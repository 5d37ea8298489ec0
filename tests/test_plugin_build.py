"""The plugins' build: own header and NVIDIA's, loggers of old and new TensorRT, what is said when it fails.

TENSORRT_INCLUDE_DIR may name folders of NVIDIA's headers (separated as in PATH) to compare with.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from plugin_build_for_tests import ROOT, built_plugins, compile_and_run

from bert_trt.console import UserError
from plugins import build, rtx_parser_shim

TESTS = Path(__file__).parent
HEADERS = [path for path in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if path]
needs_headers = pytest.mark.skipif(
    not HEADERS, reason="needs NVIDIA's headers: set TENSORRT_INCLUDE_DIR to the folder of NvInferRuntime.h"
)
headers = pytest.mark.parametrize("include", HEADERS or ["none"])


@needs_headers
@headers
def test_own_header_has_nvidias_layout(include, tmp_path):
    own = compile_and_run("plugin_abi_probe.cpp", tmp_path, [], [])
    nvidia = ["-DBERT_USE_NVIDIA_HEADERS", f"-I{include}"]
    assert own == compile_and_run("plugin_abi_probe.cpp", tmp_path, nvidia, [])
    assert own.count("slot ") == 34


def test_own_header_has_the_layout_that_nvidias_headers_had(tmp_path):
    """Without NVIDIA's headers: their answer for 10.16 and 11.1, which agree, is kept beside the probe."""
    kept = (TESTS / "plugin_abi_expected.txt").read_text()
    assert compile_and_run("plugin_abi_probe.cpp", tmp_path, [], []) == kept


@needs_headers
@headers
def test_builds_with_nvidias_headers_and_loads_into_tensorrt(include, tmp_path):
    library = build.build(build.NATIVE, include, tmp_path)
    command = [sys.executable, "plugins/testLayerNormPlugin.py", "--kernel", "fast", "--no-benchmark"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {build.BUILD_DIR_VARIABLE: str(library.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loads the library and builds 3 engines" in done.stdout


def test_logs_through_the_logger_of_tensorrt_10(tmp_path):
    library = built_plugins() / build.LIBRARY
    output = compile_and_run("plugin_logger_probe.cpp", tmp_path, [], [str(library)])
    assert output == ('severity 1: LayerNorm plugin, createPlugin: layer "encoder": field epsilon is missing\n')


def test_second_build_does_nothing():
    folder = built_plugins()
    if os.environ.get(build.BUILD_DIR_VARIABLE):
        pytest.skip("the libraries were given, not built here")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.o")}
    assert before
    build.build(directory=folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.o")}


# --- What is built when, with a CMake and compilers that only say what they are asked


CMAKE = """#!{python}
import pathlib, sys
log = pathlib.Path({log!r})
log.open("a").write(" ".join(sys.argv[1:]) + "\\n")
if "--build" in sys.argv:
    folder = pathlib.Path(sys.argv[sys.argv.index("--build") + 1])
    print("[ 50%] Building CUDA object CMakeFiles/bert_plugins.dir/linear/linear_tensor.cu.o", flush=True)
    if (folder / "broken").exists():
        sys.exit("linear_tensor.cu(1): error: broken")
    for name in ("{library}", "{host}"):
        (folder / name).touch()
else:
    folder = pathlib.Path(sys.argv[sys.argv.index("-B") + 1])
    cache = folder / "CMakeCache.txt"
    old = cache.read_text() if cache.exists() else ""
    given = [one[2:].replace("=", ":STRING=", 1) for one in sys.argv if one.startswith("-D")]
    lines = ["CMAKE_HOME_DIRECTORY:INTERNAL=" + sys.argv[sys.argv.index("-S") + 1],
             "CMAKE_CXX_COMPILER:FILEPATH={tool}", "CMAKE_MAKE_PROGRAM:FILEPATH={tool}", *given]
    if old and lines[0] not in old:
        sys.exit("CMake Error: the source does not match the source used to generate cache")
    cache.write_text("\\n".join(lines) + "\\n")
    (folder / "CMakeFiles").mkdir(exist_ok=True)
"""


class Machine:
    """A checkout with one source file, and tools that stand in for the real ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.log, self.cmake, self.nvcc, self.tool = (folder / name for name in ("log", "cmake", "nvcc", "tool"))
        text = {"python": sys.executable, "log": str(self.log), "library": build.LIBRARY, "host": build.HOST}
        self.cmake.write_text(CMAKE.format(**text, tool=self.tool))
        for path in (self.cmake, self.nvcc, self.tool):
            path.touch()
            path.chmod(0o755)
        monkeypatch.delenv(build.BUILD_DIR_VARIABLE, raising=False)
        monkeypatch.setenv("CUDACXX", str(self.nvcc))
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        self.gpus("")
        (folder / "checkout").mkdir()
        (folder / "checkout" / "one.cu").write_text("// one")
        self.stand_in("checkout")

    def stand_in(self, name: str) -> None:
        """From now on the checkout is the folder of that name."""
        self.patch.setattr(build, "PLUGINS", self.folder / name)
        self.patch.setattr(build, "BUILD_DIR", self.folder / name / "build")

    def gpus(self, capabilities: str) -> None:
        """What the driver answers; nothing where there is no GPU."""
        path = self.folder / "nvidia-smi"
        path.write_text(f"#!/bin/sh\nprintf '{capabilities}'\n" if capabilities else "#!/bin/sh\nexit 9\n")
        path.chmod(0o755)

    def asked(self) -> list[str]:
        """CMake's calls since the last question."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return lines

    def architectures(self) -> list[str]:
        """Those of each configuration since the last question."""
        return re.findall(r"-DBERT_ARCHITECTURES=(\S*)", "\n".join(self.asked()))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("gpus", "expected"), [("", "80"), ("9.0\\n", "90"), ("8.9\\n7.5\\n8.9\\n", "75;89"), ("12.0\\n", "120")]
)
def test_what_needs_the_library_builds_it_for_the_gpu_that_is_there(machine, gpus, expected):
    machine.gpus(gpus)
    assert build.library_path().is_file()
    assert machine.architectures() == [expected]


def test_nothing_is_asked_of_cmake_where_the_library_is_up_to_date(machine):
    build.library_path()
    assert len(machine.asked()) == 2
    build.library_path()
    build.host_path()
    assert machine.asked() == []


def test_a_changed_source_is_built_whatever_its_time(machine):
    build.library_path()
    source = build.PLUGINS / "one.cu"
    times = source.stat()
    source.write_text("// two")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    machine.asked()
    build.library_path()
    assert len(machine.asked()) == 2


def test_a_failed_build_is_tried_again_and_tells_what_the_compiler_said(machine):
    build.library_path()
    (build.PLUGINS / "one.cu").write_text("// two")
    broken = build.BUILD_DIR / "broken"
    broken.touch()
    for _ in range(2):
        with pytest.raises(build.BuildError, match=r"linear_tensor\.cu\(1\): error: broken"):
            build.library_path()
    broken.unlink()
    build.library_path()


@pytest.mark.parametrize("asked", ["all", "80,90"])
def test_a_default_does_not_throw_away_a_build(machine, asked):
    build.build(asked)
    (build.PLUGINS / "one.cu").write_text("// two")
    build.library_path()
    build.build()
    assert machine.architectures() == [asked.replace(",", ";")] * 3
    build.build("native")
    assert machine.architectures() == ["80"]


@pytest.mark.parametrize("how", [Path.rename, shutil.copytree])
def test_a_checkout_that_was_moved_or_copied_is_configured_afresh(machine, how):
    """CMake refuses a cache that names another folder."""
    build.build("all", "OFF")
    how(build.PLUGINS, machine.folder / "moved")
    machine.stand_in("moved")
    machine.asked()
    build.library_path()
    assert machine.asked() == []  # what is built is right, wherever it was built
    (build.PLUGINS / "one.cu").write_text("// two")
    assert build.library_path().is_relative_to(machine.folder / "moved")
    configured = machine.asked()[0]
    assert "-DBERT_ARCHITECTURES=all" in configured
    assert "-DTENSORRT_INCLUDE_DIR=OFF" in configured


@pytest.mark.parametrize("gone", ["nvcc", "tool"])
def test_a_cache_whose_compiler_has_gone_is_configured_afresh(machine, monkeypatch, gone):
    build.build("all")
    mark = build.BUILD_DIR / "CMakeFiles" / "of_the_old_compiler"
    mark.touch()
    getattr(machine, gone).rename(machine.folder / "another")
    monkeypatch.setenv("CUDACXX", str(machine.folder / "another" if gone == "nvcc" else machine.nvcc))
    machine.asked()
    build.build()
    assert machine.architectures() == ["all"]
    assert not mark.exists()


def test_ccache_is_used_where_it_exists(machine):
    build.build()
    assert "-DCMAKE_CUDA_COMPILER_LAUNCHER= " in machine.asked()[0]
    ccache = machine.folder / "ccache"
    ccache.touch()
    ccache.chmod(0o755)
    build.build()
    configured = machine.asked()[0]
    assert f"-DCMAKE_CUDA_COMPILER_LAUNCHER={ccache} " in configured
    assert f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache} " in configured


def test_every_file_that_is_compiled_is_named(machine, capfd):
    build.library_path()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "compiling linear/linear_tensor.cu" in captured.err


@pytest.mark.parametrize(
    ("gpus", "asked", "expected", "has_fp8"),
    [
        ("", None, "8.0", False),
        ("8.6\\n", None, "8.6", False),
        ("9.0\\n", None, "9.0", True),
        ("", "8.0,8.9", "8.0, 8.9", True),
        ("", "75,120", "7.5, 12.0", True),
        ("", "all", "all", True),
    ],
)
def test_a_build_says_for_which_gpus_it_is_and_that_fp8_needs_newer_ones(
    machine, capfd, gpus, asked, expected, has_fp8
):
    machine.gpus(gpus)
    build.build(asked)
    line = capfd.readouterr().err.splitlines()[0]
    named, _, rest = line.partition("; ")
    assert named == f"building the plugins for the GPU architectures: {expected}"
    assert ("fp8 on a GPU of 8.9 or newer" in rest and "--architectures" in rest) != has_fp8
    assert has_fp8 == (not rest)


def test_two_processes_build_one_after_the_other(machine, capfd):
    """The second waits, and says that it does."""
    with build._locked(build.BUILD_DIR):
        waiting = threading.Thread(target=build.build)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert machine.asked() == []
    waiting.join()
    assert "waiting for another process" in capfd.readouterr().err
    assert len(machine.asked()) == 2


def test_given_libraries_are_taken_as_they_are(machine, monkeypatch, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / build.LIBRARY).touch()
    monkeypatch.setenv(build.BUILD_DIR_VARIABLE, str(given))
    assert build.library_path() == given / build.LIBRARY
    with pytest.raises(build.BuildError, match=rf"{build.HOST} is missing: .* --build-dir {given}"):
        build.host_path()
    assert machine.asked() == []


def test_missing_tools_are_named_by_what_needs_the_library(machine, monkeypatch):
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    with pytest.raises(build.BuildError, match=r"cannot build the plugins, CUDA compiler \(nvcc\) missing"):
        build.library_path()


def test_machine_code_ptx_and_kernels_of_each_choice(tmp_path):
    """PTX of 7.5, which has no bf16 products, is left out: a newer GPU would run it and compute nonsense. Without it
    CUDA says that there is no code for that GPU."""
    compiler, cmake = build.find_compiler(), build.find_cmake()
    if build.missing_tools() or compiler is None or cmake is None:
        pytest.skip(f"needs {', '.join(build.missing_tools())}")
    codes = {
        "75": ({"[sm_75]"}, False),
        "80": ({"[compute_80,sm_80]"}, False),
        "75;90": ({"[sm_75]", "[compute_90,sm_90]"}, True),
    }
    for architectures, (expected, has_hopper_kernels) in codes.items():
        options = [f"-DCMAKE_CUDA_COMPILER={compiler.nvcc}", f"-DBERT_ARCHITECTURES={architectures}"]
        command = [*cmake, "-S", str(build.PLUGINS), "-B", str(tmp_path), *options]
        subprocess.run(command, env=os.environ | compiler.environment, capture_output=True, check=True)
        flags = (tmp_path / "CMakeFiles/bert_plugins.dir/flags.make").read_text()
        assert set(re.findall(r"code=(\[\S+?\])", flags)) == expected
        assert ("-DBERT_HOPPER" in flags) == has_hopper_kernels


def test_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    with pytest.raises(build.BuildError, match=r"CUDA compiler \(nvcc\) missing") as error:
        build.build(directory=tmp_path)
    assert "pip install -r plugins/requirements-cuda.txt" in str(error.value)


LISTED = (build.PLUGINS / "CMakeLists.txt").read_text().partition("add_library(hopper_kernels")[2].partition(")")[0]
HOPPER = re.findall(r"\S+\.cu", LISTED)


DISPATCH = [f"{name}/{name}_dispatch.cpp" for name in ("linear", "linear_skip_layer_norm", "qkv_to_context")]


@pytest.mark.parametrize("source", [*HOPPER, *DISPATCH])
def test_what_only_a_build_for_hopper_has_compiles(source, tmp_path):
    """As far as PTX, which takes seconds: elsewhere the library is built without it."""
    compiler = build.find_compiler()
    if build.missing_tools() or compiler is None:
        pytest.skip(f"needs {', '.join(build.missing_tools())}")
    how = ["-arch=compute_90a", "-ptx"] if source.endswith(".cu") else ["-c", "-DBERT_HOPPER"]
    command = [str(compiler.nvcc), "-std=c++17", *how, f"-I{build.PLUGINS}", str(build.PLUGINS / source)]
    environment = os.environ | compiler.environment
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_unknown_architecture_is_an_error(tmp_path):
    if build.missing_tools():
        pytest.skip(f"needs {', '.join(build.missing_tools())}")
    command = [sys.executable, "plugins/build.py", "--architectures", "12345", "--build-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "\nerror: " in done.stderr
    assert "12345" in done.stderr.partition("\nerror: ")[2]


def test_wrong_usage_exits_with_2():
    done = subprocess.run(
        [sys.executable, "plugins/build.py", "--nonsense"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2


def test_pip_toolkit_gets_its_library_folder(monkeypatch, tmp_path):
    """nvcc from pip looks in lib64 and finds its libraries in lib only where it is told."""
    nvcc = tmp_path / "nvidia" / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("")
    (tmp_path / "nvidia" / "cu13" / "lib").mkdir()
    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    compiler = build.find_compiler()
    assert compiler is not None
    assert compiler.environment == {"LIBRARY_PATH": str(tmp_path / "nvidia" / "cu13" / "lib")}


@pytest.fixture
def mappings(monkeypatch, tmp_path):
    """What /proc/self/maps says; a name of a file in ``tmp_path`` is made one."""

    def say(*names: str) -> None:
        lines = ["7f00-7f01 r-xp 00000000 fe:00 12                  /usr/lib/libm.so.6", "7f02-7f03 rw-p 0 00:00 0"]
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
            lines += [f"7f04-7f05 r--p 00000000 fe:00 13                  {tmp_path / name}"] * 2
        (tmp_path / "maps").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(rtx_parser_shim, "MAPPINGS", tmp_path / "maps")
    monkeypatch.setattr(rtx_parser_shim, "build_dir", lambda: tmp_path / "build")
    rtx_parser_shim.load.cache_clear()
    yield say
    rtx_parser_shim.load.cache_clear()


def test_the_shim_finds_the_loaded_library_in_any_package(mappings, tmp_path):
    mappings("a package/libtensorrt_rtx.so.2", "a package/libtensorrt_onnxparser_rtx.so.2")
    assert rtx_parser_shim.loaded_library() == tmp_path / "a package" / "libtensorrt_rtx.so.2"


def test_the_shim_finds_the_library_of_this_process():
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx")
    assert re.fullmatch(r"libtensorrt_rtx\.so\.\d+", rtx_parser_shim.loaded_library().name)


def test_a_shim_without_a_library_is_an_error_with_a_remedy(mappings, tmp_path):
    mappings()
    with pytest.raises(
        build.BuildError, match=r"no libtensorrt_rtx\.so\.\* is loaded.*pip install --force-reinstall"
    ):
        rtx_parser_shim.load()
    (tmp_path / "maps").unlink()
    with pytest.raises(build.BuildError, match=r"maps is not readable \(No such file.*or the full tensorrt"):
        rtx_parser_shim.load()


def test_a_compiler_that_is_missing_or_fails_is_an_error_with_a_remedy(mappings, monkeypatch, tmp_path):
    mappings("libs/libtensorrt_rtx.so.1")
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    with pytest.raises(build.BuildError, match=r"cannot run the C compiler .*no-compiler: No such file.* set .* CC"):
        rtx_parser_shim.load()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(build.BuildError, match=r"failed: false .*(?s:.)*set CC, or BERT_PLUGINS_BUILD_DIR"):
        rtx_parser_shim.load()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match=r"no C compiler found.*apt install gcc"):
        rtx_parser_shim.load()


def test_a_shim_that_cannot_be_written_or_loaded_is_an_error_with_a_remedy(mappings, tmp_path):
    mappings("libs/libtensorrt_rtx.so.1")
    (tmp_path / "build").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot create the folder .*build"):
        rtx_parser_shim.load()
    (tmp_path / "build").unlink()
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "libtensorrt_rtx.so").write_text("no library")
    with pytest.raises(build.BuildError, match=r"cannot load .*libtensorrt_rtx\.so .*remove it"):
        rtx_parser_shim.load()


def test_shim_is_built_once(tmp_path):
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx")
    shim = rtx_parser_shim.build_shim(tmp_path)
    built = shim.stat().st_mtime_ns
    assert rtx_parser_shim.build_shim(tmp_path) == shim
    assert shim.stat().st_mtime_ns == built
