"""Memory on the GPUs of one machine that processes share, by CUDA IPC: one process holds it, others open it.

A `Held` piece lies on any GPU, and lives as long as the process that holds it; that process computes nothing there. The
others open it by its handle and use it as their own, also from another GPU, by peer access. In the simulator a piece is
a file in memory, which other processes map.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import DeviceError
from . import memory
from .compile import OPENCL, SIMULATED, machine
from .host import Address
from .memory import DeviceArray
from .staging import PinnedTransfer

HANDLE = 64  # bytes
GRAIN = 1 << 21  # bytes: what is smaller may share a block with other memory of the process, which would be seen, too
PEERS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS: memory of another GPU, too


def why_not_shared() -> str | None:
    """What stands against sharing memory between the GPUs that this process may use; None if nothing does.

    It looks at all of them, so that the answer does not depend on how many are used.
    """
    if OPENCL:
        return "OpenCL shares no memory of a device between processes"
    if SIMULATED:
        return None if hasattr(os, "memfd_create") else "the simulator shares memory on Linux only"
    numbers = range(machine.count_gpus())
    for number in numbers:
        if not machine.attribute("ipc_event_supported", number):
            return f"'cuda:{number}' shares no memory between processes"
        if machine.attribute("compute_mode", number):
            return f"'cuda:{number}' is kept to one process"
    for a, b in itertools.permutations(numbers, 2):
        if not machine.call("cuDeviceCanAccessPeer", a, b):
            return f"'cuda:{a}' has no access to the memory of 'cuda:{b}'"
    return None


class _Held:
    """Zero bytes on GPU `number`, which this process keeps until `free`. handle: for `opened` in other processes.

    The stream of the copies is the default one, and nothing else is in it. Raises DeviceError if there is no room.
    """

    def __init__(self, number: int, nbytes: int):
        self.number, self._address = number, 0
        machine.count_gpus()  # which starts the driver
        self._context = machine.call("cuDevicePrimaryCtxRetain", number)
        try:
            with self._inside():
                try:
                    nbytes = -(-nbytes // GRAIN) * GRAIN
                    self._address = int(machine.call("cuMemAlloc", nbytes))
                except MemoryError:
                    free = machine.call("cuMemGetInfo")[0]
                    raise DeviceError(
                        f"cuda:{number}: expected {nbytes:,} bytes of free device memory, got {free:,}"
                    ) from None
                machine.call("cuMemsetD8Async", self._address, 0, nbytes, 0)
                machine.call("cuCtxSynchronize")
                handle = machine.call("cuIpcGetMemHandle", self._address)
                self.handle = ctypes.string_at(handle.getPtr(), HANDLE)
        except BaseException:
            self._address or machine.call("cuDevicePrimaryCtxRelease", number)
            self.free()
            raise

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """This thread may have another context, in which it goes on afterwards."""
        machine.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            machine.call("cuCtxPopCurrent")

    def send(self, offset: int, flat: np.ndarray) -> None:
        """Copies bytes there; when it returns they have arrived."""
        with self._inside():
            machine.call("cuMemcpyHtoD", self._address + offset, flat.__array_interface__["data"][0], flat.nbytes)
            machine.call("cuCtxSynchronize")  # of pageable memory, a copy returns before it is there

    def receive(self, offset: int, flat: np.ndarray) -> None:
        """Copies bytes from there."""
        with self._inside():
            machine.call("cuMemcpyDtoH", flat.__array_interface__["data"][0], self._address + offset, flat.nbytes)

    def free(self) -> None:
        """Gives them back. Whoever opened them must have ended."""
        address, self._address = self._address, 0
        if address:
            with self._inside():
                machine.call("cuMemFree", address)
            machine.call("cuDevicePrimaryCtxRelease", self.number)


def _opened(handle: bytes, nbytes: int) -> DeviceArray:
    machine.gpu()
    own = machine._api.CUipcMemHandle()
    ctypes.memmove(own.getPtr(), handle, HANDLE)
    address = int(machine.call("cuIpcOpenMemHandle", own, PEERS))
    return DeviceArray(np.asarray(Address(address, nbytes)), None)


# --- in the simulator -------------------------------------------------------------------------------------------------

_FILE = struct.Struct("<qq")  # the process that holds it, the number of the file there


class _HeldFile:
    def __init__(self, number: int, nbytes: int):
        self.number, self._file = number, os.memfd_create("scratchnet-gpu")
        os.ftruncate(self._file, nbytes)
        self._bytes: Any = np.frombuffer(mmap.mmap(self._file, nbytes), np.uint8)
        self.handle = _FILE.pack(os.getpid(), self._file).ljust(HANDLE, b"\0")

    def send(self, offset: int, flat: np.ndarray) -> None:
        self._bytes[offset : offset + flat.nbytes] = flat.view(np.uint8)

    def receive(self, offset: int, flat: np.ndarray) -> None:
        flat.view(np.uint8)[...] = self._bytes[offset : offset + flat.nbytes]

    def free(self) -> None:
        if self._bytes is not None:
            self._bytes = None
            os.close(self._file)


def _opened_file(handle: bytes, nbytes: int) -> DeviceArray:
    holder, number = _FILE.unpack_from(handle)
    with open(f"/proc/{holder}/fd/{number}", "r+b") as file:
        return DeviceArray(np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8), None)


Held = _HeldFile if SIMULATED else _Held


class Own:
    """The same for this process alone, on the GPU on which it computes. handle: for `opened` here."""

    def __init__(self, number: int, nbytes: int):
        self.handle = PinnedTransfer.memory(-(-nbytes // 4) * 4)

    def send(self, offset: int, flat: np.ndarray) -> None:
        memory.write(self.handle[offset : offset + flat.nbytes], flat.view(np.uint8))

    def receive(self, offset: int, flat: np.ndarray) -> None:
        flat.view(np.uint8)[...] = memory.to_host(self.handle[offset : offset + flat.nbytes])

    def free(self) -> None:
        del self.handle


def opened(handle: bytes | DeviceArray, nbytes: int) -> DeviceArray:
    """The bytes that another process holds, until this process ends, or those of an `Own`."""
    if isinstance(handle, DeviceArray):
        return handle
    return (_opened_file if SIMULATED else _opened)(handle, nbytes)
