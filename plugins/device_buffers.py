"""Device memory and a stream for tests, through pycuda if it is installed, else through PyTorch.

Each buffer has a guard on both sides. Guards and new buffers are filled with bytes of 0xFF, which are NaN in every
floating-point type. So an element that a kernel does not write stays NaN, a read outside a row makes the row NaN, and
a write outside a buffer changes the guard.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import torch

GUARD = 4096  # bytes; keeps the address between the guards aligned
POISON = 0xFF


class Device(Protocol):
    """Allocates and copies device memory, and has one stream."""

    name: str
    stream: int  # cudaStream_t as a number

    def allocate(self, size: int) -> Any:
        """Allocates ``size`` bytes of poison."""
        ...

    def address(self, memory: Any) -> int:
        """The address of memory from ``allocate``."""
        ...

    def write(self, memory: Any, offset: int, data: torch.Tensor) -> None:
        """Copies a CUDA tensor of uint8 into memory, and waits."""
        ...

    def read(self, memory: Any, offset: int, size: int) -> torch.Tensor:
        """Copies memory into a CUDA tensor of uint8, and waits."""
        ...

    def synchronize(self) -> None:
        """Waits for the stream; raises where a kernel failed."""
        ...


class PycudaDevice:
    """Device memory through pycuda, in the context that PyTorch and the CUDA runtime use as well."""

    name = "pycuda"

    def __init__(self) -> None:
        """Raises ImportError where pycuda is not installed."""
        torch.cuda.init()
        importlib.import_module("pycuda.autoprimaryctx")
        self._driver = importlib.import_module("pycuda.driver")
        self._stream = self._driver.Stream()
        self.stream: int = self._stream.handle

    def allocate(self, size: int) -> Any:
        """See ``Device``."""
        memory = self._driver.mem_alloc(size)
        self._driver.memset_d8(int(memory), POISON, size)
        self._driver.Context.synchronize()
        return memory

    def address(self, memory: Any) -> int:
        """See ``Device``."""
        return int(memory)

    def write(self, memory: Any, offset: int, data: torch.Tensor) -> None:
        """See ``Device``."""
        torch.cuda.synchronize()  # PyTorch may still be writing the data
        self._driver.memcpy_dtod(int(memory) + offset, data.data_ptr(), data.numel())
        self._driver.Context.synchronize()

    def read(self, memory: Any, offset: int, size: int) -> torch.Tensor:
        """See ``Device``."""
        data = torch.empty(size, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        self._driver.memcpy_dtod(data.data_ptr(), int(memory) + offset, size)
        self._driver.Context.synchronize()
        return data

    def synchronize(self) -> None:
        """See ``Device``."""
        self._stream.synchronize()


class TorchDevice:
    """Device memory through PyTorch."""

    name = "PyTorch"

    def __init__(self) -> None:
        """Needs a GPU and nothing else."""
        self._stream = torch.cuda.Stream()
        self.stream: int = self._stream.cuda_stream

    def allocate(self, size: int) -> Any:
        """See ``Device``."""
        memory = torch.full((size,), POISON, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        return memory

    def address(self, memory: Any) -> int:
        """See ``Device``."""
        return memory.data_ptr()

    def write(self, memory: Any, offset: int, data: torch.Tensor) -> None:
        """See ``Device``."""
        memory[offset : offset + data.numel()].copy_(data)
        torch.cuda.synchronize()

    def read(self, memory: Any, offset: int, size: int) -> torch.Tensor:
        """See ``Device``."""
        return memory[offset : offset + size].clone()

    def synchronize(self) -> None:
        """See ``Device``."""
        self._stream.synchronize()


class Buffer:
    """Memory for one tensor, with its guards."""

    def __init__(self, device: Device, size: int, content: torch.Tensor | None = None, shift: int = 0):
        """Allocates ``size`` bytes of poison, or of ``content``, ``shift`` bytes after an aligned address."""
        self._device, self._size, self._offset = device, size, GUARD + shift
        self._memory = device.allocate(size + 2 * GUARD + shift)
        self.address = device.address(self._memory) + self._offset
        if content is not None and size:
            device.write(self._memory, self._offset, content.contiguous().view(-1).view(torch.uint8))

    @staticmethod
    def of(device: Device, tensor: torch.Tensor, shift: int = 0) -> Buffer:
        """A buffer with the content of a CUDA tensor."""
        return Buffer(device, tensor.numel() * tensor.element_size(), tensor, shift)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The content as a CUDA tensor."""
        if self._size == 0:
            return torch.empty(shape, dtype=dtype, device="cuda")
        return self._device.read(self._memory, self._offset, self._size).view(dtype).view(shape)

    def guards_intact(self) -> bool:
        """Whether nothing was written outside the buffer."""
        before = self._device.read(self._memory, 0, self._offset)
        after = self._device.read(self._memory, self._offset + self._size, GUARD)
        return bool((before == POISON).all() and (after == POISON).all())


def open_device() -> tuple[Device, str]:
    """The device to test with, and a text that describes it."""
    try:
        return PycudaDevice(), "buffers and streams through pycuda"
    except ImportError as error:
        reason = f"pycuda cannot be imported ({error}); install it: pip install pycuda==2026.1"
        return TorchDevice(), f"buffers and streams through PyTorch, because {reason}"
