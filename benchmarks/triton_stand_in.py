"""Starts Triton on this machine for a repository of triton_repository.py, without a GPU.

The package nvidia-pytriton has the server with its Python backend, but no TensorRT backend. So the model ``bert`` is
replaced: a model of the Python backend with the same configuration runs the same network with PyTorch. Python models
get their requests one by one, and make a batch of them by triton_batching.py, as the TensorRT backend does. Triton's
scheduler, the model ``bert_text`` and both protocols are the real ones.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = Path(sys.prefix) / "serving"  # where `make test` installs requirements-serving.txt
STAND_IN = "stand_in"  # the parameter that says which network the stand-in runs
BATCHES = "batches.jsonl"  # in the model's folder: what the stand-in has executed
START_SECONDS = 120

if str(PACKAGES) not in sys.path:
    sys.path.append(str(PACKAGES))


def obstacle() -> str | None:
    """Why Triton cannot be started here; None if it can."""
    for package in ("pytriton", "tritonclient"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (requirements-serving.txt)"
    if not _stub().is_file() or not (_packages() / "numpy").is_dir():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"there is no Python backend, or no NumPy 1 for it, for Python {version} (requirements-serving.txt)"
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for path in (library, f"{sysconfig.get_config_var('LIBDIR')}/{library}"):
        with suppress(OSError):
            ctypes.CDLL(path)
            return None
    return f"{library}, which Triton's Python backend needs, is not installed"


def _packages() -> Path:
    """The folder in which nvidia-pytriton is installed."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]).parent


def _server_folder() -> Path:
    return _packages() / "pytriton" / "tritonserver"


def _stub() -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _server_folder() / "python_backend_stubs" / version / "triton_python_backend_stub"


def replace_network(
    repository: Path, model_dir: Path, precision: str, fusion: str, batching: str, graphs: bool = True
) -> None:
    """Replaces ``bert`` in a repository by the stand-in.

    Args:
        repository: written by triton_repository.py.
        model_dir: the folder of its model.
        precision: the network's.
        fusion: the network's.
        batching: padded, or ``RAGGED``.
        graphs: whether batches get the sizes of CUDA graphs, as on a GPU. Without a GPU that is only more work.
    """
    model = repository / "bert"
    settings = {"model_dir": str(model_dir.resolve()), "precision": precision, "fusion": fusion, "batching": batching}
    config = (model / "config.pbtxt").read_text()
    for before, after in (('backend: "tensorrt"', 'backend: "python"'), ("KIND_GPU", "KIND_CPU")):
        assert before in config
        config = config.replace(before, after)
    if not graphs:
        config = config[: config.index("optimization {")]  # its last entry
    value = json.dumps(json.dumps(settings))
    config += f'parameters {{\n  key: "{STAND_IN}"\n  value {{\n    string_value: {value}\n  }}\n}}\n'
    (model / "config.pbtxt").write_text(config)
    folders = [str(ROOT), str(ROOT / "benchmarks")]
    (model / "1" / "model.py").write_text(
        f"import sys\n\nsys.path[:0] = {folders!r}\nfrom triton_stand_in import TritonPythonModel\n"
    )


@dataclass(frozen=True)
class Server:
    """A running Triton.

    Attributes:
        http: host and port of the HTTP interface.
        grpc: host and port of the gRPC interface.
        repository: what it serves.
    """

    http: str
    grpc: str
    repository: Path

    def batches(self) -> list[dict[str, Any]]:
        """What the stand-in has executed so far: the numbers of requests and tokens, and the sizes of the graph."""
        path = self.repository / "bert" / "1" / BATCHES
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def running_server(repository: Path) -> Iterator[Server]:
    """Starts Triton on the loopback interface and stops it at the end.

    Raises:
        RuntimeError: it does not start; the message has its log.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backend = folder / "backends" / "python"
        shutil.copytree(_server_folder() / "backends" / "python", backend)
        shutil.copy(_stub(), backend)
        http, grpc = _free_ports(2)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    str(_server_folder() / "bin" / "tritonserver"),
                    f"--model-repository={repository}",
                    f"--backend-directory={backend.parent}",
                    *(f"--{protocol}-address=127.0.0.1" for protocol in ("http", "grpc")),
                    f"--http-port={http}",
                    f"--grpc-port={grpc}",
                    "--allow-metrics=false",
                    "--disable-auto-complete-config",
                    "--exit-timeout-secs=10",
                ],
                env=_environment(),
                cwd=_packages(),  # where Python looks first: the backend was compiled for NumPy 1
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  it only calls the C library
            )
        try:
            _wait_until_ready(process, http, folder / "log")
            yield Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", repository)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    """The environment in which the backend's processes find this Python, by the PATH, and its packages."""
    libraries = [str(_packages() / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    return os.environ | {
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "HF_HUB_OFFLINE": "1",
    }


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _end_with_parent() -> None:
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    lines = log.read_text(errors="replace").splitlines()
    told = [line for line in lines if not line.startswith(("I", "|", "+"))]  # neither information nor tables
    raise RuntimeError("\n".join(["Triton does not start:", *told]))


class TritonPythonModel:
    """The stand-in for the plan, in a process that Triton's Python backend starts."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once."""
        from triton_batching import empty_buffers

        from bert_trt.model_files import ModelFolder
        from bert_trt.network_runner import NetworkRunner
        from bert_trt.plan import read_info
        from bert_trt.tensorrt_log import TrtLog
        from builder import assemble

        self.triton: Any = importlib.import_module("triton_python_backend_utils")
        self.config = json.loads(args["model_config"])
        settings = json.loads(self.config["parameters"][STAND_IN]["string_value"])
        version = Path(args["model_repository"]) / args["model_version"]
        info = read_info(version / "model.plan")
        assert info is not None
        self.profile = info.profile
        self.buffers = empty_buffers(self.profile)
        self.network = assemble(
            *(ModelFolder(Path(settings["model_dir"])), TrtLog(), settings["precision"]),
            batching=settings["batching"],
            fusion=settings["fusion"],
        )
        # Tokens that earlier batches have left are no error here.
        self.runner = NetworkRunner(self.network.network, contents=self.network.contents, checks_batch=False)
        if settings["precision"] == "fp32":
            self.runner.use_fast_kernels()
        self.log = (version / BATCHES).open("a", buffering=1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by Triton with the requests that its batcher has put together."""
        from triton_batching import BatchError, form_batch, split_output

        names = [entry["name"] for entry in self.config["input"]]
        inputs = [
            {name: self.triton.get_input_tensor_by_name(request, name).as_numpy() for name in names}
            for request in requests
        ]
        try:
            batch = form_batch(self.config, self.profile, inputs, self.buffers)
        except BatchError as error:
            failed = self.triton.TritonError(str(error))
            return [self.triton.InferenceResponse([], failed) for _ in requests]
        self.buffers = batch.buffers
        entry = {
            "requests": len(requests),
            "tokens": sum(request[names[0]].size for request in inputs),
            "graph": batch.graph,
        }
        self.log.write(json.dumps(entry) + "\n")
        (name,) = self.runner.output_names
        output = self.runner.run(batch.inputs)[name].numpy()
        return [
            self.triton.InferenceResponse([self.triton.Tensor(name, part)])
            for part in split_output(self.config, name, output, inputs)
        ]
