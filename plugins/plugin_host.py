"""Runs TensorRT plugins without TensorRT: the Python side of ``host/plugin_host.h``.

    host = PluginHost(build.library_path())
    plugin = host.create("LayerNorm", fields={"epsilon": 1e-12, "kernel": "fast"})
    (y,) = plugin.run_torch([x, gamma, beta])  # CUDA tensors, current stream, CUDA graphs too

The host makes the same calls as TensorRT, in the same order. Everything but the kernels works without a GPU, so that
types, shapes, formats and serialisation can be checked on any machine.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_trt.console import UserError
from plugins import build

if TYPE_CHECKING:
    import torch

FieldValue = str | bytes | int | float | np.ndarray | np.generic

# nvinfer1::DataType by the names that NumPy and PyTorch use
DATA_TYPES = {
    "float32": 0,
    "float16": 1,
    "int8": 2,
    "int32": 3,
    "bool": 4,
    "uint8": 5,
    "float8_e4m3fn": 6,
    "bfloat16": 7,
    "int64": 8,
}
DATA_TYPE_NAMES = {number: name for name, number in DATA_TYPES.items()}
FIELD_TYPES = {"float16": 0, "float32": 1, "float64": 2, "int8": 3, "int16": 4, "int32": 5, "int64": 10}
FIELD_TYPE_NAMES = {number: name for name, number in FIELD_TYPES.items()}
CHAR_FIELD = 6  # PluginFieldType::kCHAR: strings
LINEAR = 0  # TensorFormat::kLINEAR
MAX_DIMS = 8


class PluginHostError(UserError):
    """A call of a plugin failed. The message names plugin and call, and contains the plugin's log."""


class _Field(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("nbDims", c_int32),
        ("dims", c_int64 * MAX_DIMS),
        ("type", c_int32),
        ("format", c_int32),
    ]


class _Creator(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("version", c_char_p),
        ("namespace", c_char_p),
        ("nbFields", c_int32),
        ("fields", POINTER(_Field)),
    ]


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor; a dimension that is not known yet is -1."""

    shape: tuple[int, ...]
    dtype: str  # a key of DATA_TYPES
    format: int = LINEAR

    def to_c(self) -> _Tensor:
        """The structure of the C interface."""
        if self.dtype not in DATA_TYPES:
            raise ValueError(f"unknown data type {self.dtype!r}; expected one of {', '.join(DATA_TYPES)}")
        if len(self.shape) > MAX_DIMS:
            raise ValueError(f"{self.shape} has more than {MAX_DIMS} dimensions")
        dims = (c_int64 * MAX_DIMS)(*self.shape)
        return _Tensor(len(self.shape), dims, DATA_TYPES[self.dtype], self.format)

    @staticmethod
    def from_c(tensor: _Tensor) -> TensorSpec:
        """The inverse of ``to_c``."""
        return TensorSpec(tuple(tensor.dims[: tensor.nbDims]), DATA_TYPE_NAMES[tensor.type], tensor.format)

    @staticmethod
    def of_torch(tensor: torch.Tensor) -> TensorSpec:
        """The specification of a PyTorch tensor."""
        return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class CreatorInfo:
    """A plugin creator of a library."""

    name: str
    version: str
    namespace: str
    field_names: tuple[str, ...]


def _load_host_library(path: Path) -> ctypes.CDLL:
    """Loads libplugin_host.so and declares its functions."""
    library = ctypes.CDLL(str(path))
    tensors, counts = POINTER(_Tensor), [c_int32, c_int32]
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "pluginHostError": (c_char_p, []),
        "pluginHostTakeMessages": (c_char_p, [c_void_p]),
        "pluginHostOpen": (c_void_p, [c_char_p]),
        "pluginHostClose": (None, [c_void_p]),
        "pluginHostPluginsAlive": (c_int64, [c_void_p]),
        "pluginHostNbCreators": (c_int32, [c_void_p]),
        "pluginHostCreator": (c_int32, [c_void_p, c_int32, POINTER(_Creator)]),
        "pluginHostCreate": (c_void_p, [c_void_p, c_char_p, c_char_p, c_char_p, POINTER(_Field), c_int32]),
        "hostedPluginClone": (c_void_p, [c_void_p]),
        "hostedPluginDestroy": (None, [c_void_p]),
        "hostedPluginNbOutputs": (c_int32, [c_void_p]),
        "hostedPluginOutputs": (c_int32, [c_void_p, tensors, c_int32, tensors, c_int32]),
        "hostedPluginSupports": (c_int32, [c_void_p, c_int32, tensors, *counts]),
        "hostedPluginConfigure": (c_int32, [c_void_p, tensors, *counts, POINTER(c_size_t)]),
        "hostedPluginFieldsToSerialize": (c_int32, [c_void_p, POINTER(POINTER(_Field))]),
        "hostedPluginMetadata": (c_char_p, [c_void_p]),
        "hostedPluginTimingCacheId": (c_char_p, [c_void_p]),
        "hostedPluginStart": (c_int32, [c_void_p]),
        "hostedPluginSetShapes": (c_int32, [c_void_p, tensors, *counts]),
        "hostedPluginEnqueue": (
            c_int32,
            [c_void_p, POINTER(c_void_p), POINTER(c_void_p), c_void_p, c_void_p],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _field_array(name: str, value: FieldValue) -> tuple[np.ndarray, int]:
    """The data and the plugin field type of a field: a str becomes chars, an int int32, a float float32."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return np.frombuffer(value, dtype=np.int8), CHAR_FIELD
    if isinstance(value, bool | int) and not isinstance(value, np.generic):
        value = np.int32(value)
    elif isinstance(value, float) and not isinstance(value, np.generic):
        value = np.float32(value)
    array = np.atleast_1d(np.ascontiguousarray(value))
    if array.dtype.name not in FIELD_TYPES:
        raise ValueError(f"field {name!r} has the type {array.dtype}, which plugin fields cannot have")
    return array, FIELD_TYPES[array.dtype.name]


class PluginHost:
    """A loaded plugin library. It is a private copy, since TensorRT may have loaded the same file."""

    def __init__(self, library: Path | str | None = None, host_library: Path | str | None = None):
        """Loads ``library``, by default the built one. Raises build.BuildError if it is not built."""
        self.path = Path(library) if library is not None else build.library_path()
        if not self.path.is_file():
            raise PluginHostError(f"{self.path} does not exist")
        self._c = _load_host_library(Path(host_library) if host_library is not None else build.host_path())
        self._handle = self._c.pluginHostOpen(str(self.path).encode())
        if not self._handle:
            raise PluginHostError(f"{self.path} cannot be loaded: {self._c.pluginHostError().decode()}")

    def take_messages(self) -> list[str]:
        """The messages that the plugins logged since the last call."""
        return self._c.pluginHostTakeMessages(self._handle).decode(errors="replace").splitlines()

    def plugins_alive(self) -> int:
        """The number of plugin objects in this copy of the library; -1 if it does not count them."""
        return self._c.pluginHostPluginsAlive(self._handle)

    def creators(self) -> list[CreatorInfo]:
        """The plugin creators of the library."""
        creators = []
        for index in range(self._c.pluginHostNbCreators(self._handle)):
            creator = _Creator()
            self._check(self._c.pluginHostCreator(self._handle, index, byref(creator)), self.path.name)
            names = tuple(creator.fields[i].name.decode() for i in range(creator.nbFields))
            creators.append(
                CreatorInfo(creator.name.decode(), creator.version.decode(), creator.namespace.decode(), names)
            )
        return creators

    def create(
        self,
        name: str,
        version: str = "1",
        namespace: str = "",
        fields: Mapping[str, FieldValue] | None = None,
    ) -> Plugin:
        """Creates a plugin as TensorRT does for the build phase."""
        arrays = {key: _field_array(key, value) for key, value in (fields or {}).items()}
        c_fields = (_Field * len(arrays))(
            *(_Field(key.encode(), array.ctypes.data, kind, array.size) for key, (array, kind) in arrays.items())
        )
        handle = self._c.pluginHostCreate(
            self._handle, name.encode(), version.encode(), namespace.encode(), c_fields, len(c_fields)
        )
        title = f"{name} plugin, version {version}"
        if not handle:
            raise self._error(title)
        return Plugin(self, handle, title)

    def _check(self, status: int, what: str) -> int:
        if status < 0:
            raise self._error(what)
        return status

    def _error(self, what: str) -> PluginHostError:
        """The exception for the call that just failed."""
        reason = self._c.pluginHostError().decode(errors="replace")
        return PluginHostError("\n  ".join([f"{what}: {reason}", *self.take_messages()]))

    # The library is not closed, since plugins and running kernels may outlive this object.


@dataclass
class _Prepared:
    """Data for the calls with one combination of input shapes and types."""

    tensors: ctypes.Array[_Tensor]  # inputs, then outputs
    nb_inputs: int
    outputs: list[TensorSpec]
    workspace_size: int
    input_pointers: ctypes.Array[c_void_p] = field(init=False)
    output_pointers: ctypes.Array[c_void_p] = field(init=False)

    def __post_init__(self) -> None:
        self.input_pointers = (c_void_p * self.nb_inputs)()
        self.output_pointers = (c_void_p * len(self.outputs))()


class Plugin:
    """A plugin in its build phase, and from the first ``enqueue`` on in its runtime phase."""

    def __init__(self, host: PluginHost, handle: int, title: str):
        """Called by ``PluginHost.create`` and ``clone``."""
        self._host, self._c, self._handle, self._title = host, host._c, handle, title
        self._prepared: dict[tuple[TensorSpec, ...], _Prepared] = {}
        self._started_types: tuple[str, ...] | None = None
        self._current: _Prepared | None = None  # the shapes that the runtime object was given last
        self._destroy = weakref.finalize(self, host._c.hostedPluginDestroy, handle)

    def close(self) -> None:
        """Destroys the plugin's objects; the garbage collector does the same."""
        self._destroy()

    def clone(self) -> Plugin:
        """Clones the plugin."""
        handle = self._c.hostedPluginClone(self._handle)
        if not handle:
            raise self._host._error(self._title)
        return Plugin(self._host, handle, self._title)

    def output_specs(self, inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
        """Types and shapes of the outputs; dimensions of -1 are allowed in the inputs."""
        count = self._c.hostedPluginNbOutputs(self._handle)
        c_inputs = (_Tensor * len(inputs))(*(spec.to_c() for spec in inputs))
        c_outputs = (_Tensor * count)()
        self._check(self._c.hostedPluginOutputs(self._handle, c_inputs, len(inputs), c_outputs, count))
        return [TensorSpec.from_c(tensor) for tensor in c_outputs]

    def supports(self, position: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
        """Whether the plugin supports the type and format of the tensor at ``position``, inputs first."""
        tensors = (_Tensor * (len(inputs) + len(outputs)))(*(spec.to_c() for spec in [*inputs, *outputs]))
        answer = self._c.hostedPluginSupports(self._handle, position, tensors, len(inputs), len(outputs))
        return bool(self._check(answer))

    def configure(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] | None = None) -> int:
        """Checks formats, then calls ``configurePlugin`` and ``getWorkspaceSize``. Returns the workspace's bytes."""
        outputs = self.output_specs(inputs) if outputs is None else outputs
        tensors = (_Tensor * (len(inputs) + len(outputs)))(*(spec.to_c() for spec in [*inputs, *outputs]))
        size = c_size_t()
        self._check(self._c.hostedPluginConfigure(self._handle, tensors, len(inputs), len(outputs), byref(size)))
        return size.value

    def serialized_fields(self) -> dict[str, FieldValue]:
        """The fields that a plan stores."""
        fields = POINTER(_Field)()
        count = self._check(self._c.hostedPluginFieldsToSerialize(self._handle, byref(fields)))
        values: dict[str, FieldValue] = {}
        for item in (fields[i] for i in range(count)):
            if item.type == CHAR_FIELD:
                values[item.name.decode()] = ctypes.string_at(item.data, item.length).decode()
            else:
                dtype = np.dtype(FIELD_TYPE_NAMES[item.type])
                data = ctypes.string_at(item.data, item.length * dtype.itemsize)
                values[item.name.decode()] = np.frombuffer(data, dtype)
        return values

    def metadata(self) -> str | None:
        """The plugin's metadata string, which TensorRT's engine inspector shows; None if the plugin has none."""
        return self._text(self._c.hostedPluginMetadata(self._handle))

    def timing_cache_id(self) -> str | None:
        """The key of the plugin's timings in a timing cache; None if they are not stored."""
        return self._text(self._c.hostedPluginTimingCacheId(self._handle))

    def start(self) -> None:
        """Creates the runtime object from the serialised fields and attaches it to a context."""
        self._check(self._c.hostedPluginStart(self._handle))

    def prepare(self, inputs: Sequence[TensorSpec]) -> tuple[list[TensorSpec], int]:
        """Configures the plugin for these inputs. Returns (outputs, bytes of workspace)."""
        prepared = self._prepare(tuple(inputs))
        return prepared.outputs, prepared.workspace_size

    def enqueue(
        self,
        inputs: Sequence[TensorSpec],
        input_pointers: Sequence[int],
        output_pointers: Sequence[int],
        workspace_pointer: int = 0,
        stream: int = 0,
    ) -> None:
        """Enqueues the plugin's kernels on a CUDA stream. Pointers and stream are integers."""
        prepared = self._prepare(tuple(inputs))
        self._enqueue(prepared, input_pointers, output_pointers, workspace_pointer, stream)

    def run_torch(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Runs on CUDA tensors in PyTorch's current stream; allocates ``outputs`` if they are None."""
        import torch

        device = inputs[0].device
        for index, tensor in enumerate(inputs):
            if tensor.device != device or device.type != "cuda" or not tensor.is_contiguous():
                raise ValueError(
                    f"{self._title}: input {index} must be contiguous and on one CUDA device with the others"
                )
        prepared = self._prepare(tuple(TensorSpec.of_torch(tensor) for tensor in inputs))
        with torch.cuda.device(device):
            if outputs is None:
                outputs = [
                    torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
                    for spec in prepared.outputs
                ]
            workspace = torch.empty(prepared.workspace_size, dtype=torch.uint8, device=device)
            self._enqueue(
                prepared,
                [tensor.data_ptr() for tensor in inputs],
                [tensor.data_ptr() for tensor in outputs],
                workspace.data_ptr(),
                torch.cuda.current_stream(device).cuda_stream,
            )
        return list(outputs)

    def _prepare(self, inputs: tuple[TensorSpec, ...]) -> _Prepared:
        prepared = self._prepared.get(inputs)
        if prepared is not None:
            return prepared
        outputs = self.output_specs(inputs)
        workspace_size = self.configure(inputs, outputs)
        types = tuple(spec.dtype for spec in inputs)
        if self._started_types != types:  # the serialised fields may depend on the configured types
            self.start()
            self._started_types, self._current = types, None
            self._prepared.clear()
        tensors = (_Tensor * (len(inputs) + len(outputs)))(*(spec.to_c() for spec in [*inputs, *outputs]))
        prepared = _Prepared(tensors, len(inputs), outputs, workspace_size)
        self._prepared[inputs] = prepared
        return prepared

    def _enqueue(
        self,
        prepared: _Prepared,
        input_pointers: Sequence[int],
        output_pointers: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        if self._current is not prepared:
            self._current = None
            self._check(
                self._c.hostedPluginSetShapes(
                    self._handle, prepared.tensors, prepared.nb_inputs, len(prepared.outputs)
                )
            )
            self._current = prepared
        prepared.input_pointers[:] = list(input_pointers)
        prepared.output_pointers[:] = list(output_pointers)
        self._check(
            self._c.hostedPluginEnqueue(
                self._handle, prepared.input_pointers, prepared.output_pointers, workspace, stream
            )
        )

    def _text(self, text: bytes | None) -> str | None:
        return None if text is None else text.decode()

    def _check(self, status: int) -> int:
        return self._host._check(status, self._title)
