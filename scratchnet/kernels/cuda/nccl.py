"""NCCL, as far as it is needed: bytes of one GPU go to another, of the same machine or not, by no way through the host.

It only moves them. Who adds up what, and in which order, is not its business: its own sums depend on the number of
GPUs. The library is the wheel's (`nvidia-nccl-cu13`), the system's, or the one that another package has loaded.
tests/helpers/stub_nccl.c is a library without a GPU, under which all of this runs.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import DeviceError
from .compile import OPENCL, Event, machine, stream
from .memory import DeviceArray

LIBRARY = "libnccl.so.2"
LEAST_VERSION = 20700  # 2.7 has messages between two ranks
BYTES = 1  # ncclUint8
NAME = 128  # bytes
_Pointer = ctypes.c_void_p


class _Name(ctypes.Structure):
    """What all ranks of a link bring: ncclUniqueId."""

    _fields_ = (("bytes", ctypes.c_char * NAME),)


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ncclGetVersion": (_Pointer,),
    "ncclGetUniqueId": (_Pointer,),
    "ncclCommInitRank": (_Pointer, ctypes.c_int, _Name, ctypes.c_int),
    "ncclCommGetAsyncError": (_Pointer, _Pointer),
    "ncclCommAbort": (_Pointer,),
    "ncclCommDestroy": (_Pointer,),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
    "ncclSend": (_Pointer, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, _Pointer, _Pointer),
    "ncclRecv": (_Pointer, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, _Pointer, _Pointer),
}


@functools.cache
def _library() -> Any:
    """Raises OSError where there is none, AttributeError where it lacks a function."""
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError:
        package = importlib.util.find_spec("nvidia.nccl") if importlib.util.find_spec("nvidia") else None
        folders = package.submodule_search_locations if package else None
        if not folders:
            raise
        found = ctypes.CDLL(str(Path(folders[0], "lib", LIBRARY)))
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
    found.ncclGetErrorString.restype = ctypes.c_char_p
    return found


def why_not() -> str | None:
    """Why this process can link its GPU by NCCL to those of others; None if it can."""
    if OPENCL:
        return "OpenCL has no NCCL"
    try:
        found = version()
    except (OSError, AttributeError) as error:
        return f"expected NCCL (the package nvidia-nccl-cu13, or -cu12), got {str(error).splitlines()[-1]}"
    return None if found >= LEAST_VERSION else f"expected NCCL {LEAST_VERSION} or newer, got {found}"


def version() -> int:
    """2.28.9 is 22809."""
    found = ctypes.c_int()
    _call("ncclGetVersion", ctypes.byref(found))
    return found.value


def new_name() -> bytes:
    """What one rank makes and all of them bring to a `Link`."""
    name = _Name()
    _call("ncclGetUniqueId", ctypes.byref(name))
    return bytes(name)


def _call(name: str, *arguments: Any) -> None:
    _check(name, getattr(_library(), name)(*arguments))


def _check(name: str, code: int) -> None:
    """Raises DeviceError."""
    if code != 0:
        said = _library().ncclGetErrorString(code).decode()
        raise DeviceError(f"NCCL: expected {name} to work, got {said}; SCRATCHNET_GRADIENTS=host does without NCCL")


class Link:
    """The GPUs of `size` ranks, of which this is `rank`; all of them make one at once, each on a GPU of its own.

    After a DeviceError only `abort` is of use. It looks like a request of MPI: see `Test`.
    """

    def __init__(self, size: int, rank: int, name: bytes):
        machine.gpu()
        self._handle = _Pointer()
        own = _Name()
        ctypes.memmove(ctypes.byref(own), name, NAME)
        _call("ncclCommInitRank", ctypes.byref(self._handle), size, own, rank)
        self._arrived = Event()

    def exchange(self, sends: Iterable[tuple[int, DeviceArray]], receives: Iterable[tuple[int, DeviceArray]]) -> None:
        """Start to send bytes to ranks, and to receive from ranks, each (rank, contiguous bytes).

        It is queued like a kernel: after what was launched until now, and before what is launched from now on. Between
        two ranks messages are received in the order in which they are sent.
        """
        machine.gpu()
        by = stream()
        _call("ncclGroupStart")
        try:
            for name, messages in (("ncclSend", sends), ("ncclRecv", receives)):
                for rank, x in messages:
                    _call(name, x.address, x.nbytes, BYTES, rank, self._handle, by.handle)
        except BaseException:
            _library().ncclGroupEnd()
            raise
        _call("ncclGroupEnd")
        self._arrived.record(by)

    def Test(self) -> bool:
        """Is the last exchange done? Raises DeviceError if it cannot be any more, as where a rank is gone."""
        if self._arrived.is_done():
            return True
        code = ctypes.c_int()
        _call("ncclCommGetAsyncError", self._handle, ctypes.byref(code))
        _check("an exchange", code.value)
        return False

    def abort(self) -> None:
        """End what is under way, whatever the others do. It may be called again."""
        handle, self._handle = self._handle, _Pointer()
        if handle:
            machine.gpu()
            _library().ncclCommAbort(handle)

    def close(self) -> None:
        """The end, if all exchanges are done. All ranks call it."""
        handle, self._handle = self._handle, _Pointer()
        if handle:
            machine.gpu()
            _call("ncclCommDestroy", handle)
