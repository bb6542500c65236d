"""DLPack: device memory shared with other libraries through a struct in a capsule (dmlc.github.io/dlpack, version 0.8).

In the simulator the memory is the host's, and is called so: NumPy can read it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ...errors import DeviceError, DtypeError
from .compile import SIMULATED, Event, machine, stream

CPU, CUDA = 1, 2
HERE = CPU if SIMULATED else CUDA
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # kDLInt, kDLUInt, kDLFloat, kDLBool


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; null for C order
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_api = ctypes.PyDLL(None)  # not ctypes.pythonapi, whose functions other libraries (dill) give types of their own
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
for _name, _result in {"IsValid": ctypes.c_int, "GetPointer": ctypes.c_void_p, "SetName": ctypes.c_int}.items():
    getattr(_api, f"PyCapsule_{_name}").restype = _result
    getattr(_api, f"PyCapsule_{_name}").argtypes = ctypes.c_void_p, ctypes.c_char_p
_FRESH, _USED = ctypes.c_char_p(b"dltensor"), ctypes.c_char_p(b"used_dltensor")  # kept: capsules hold their addresses

_shared: dict[int, Any] = {}  # what is lent out, by the address of its struct, until its deleter is called


@_Deleter
def _forget(address: int) -> None:
    _shared.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _drop(capsule: int) -> None:
    if _api.PyCapsule_IsValid(capsule, _FRESH):  # nobody took what is in it
        _forget(_api.PyCapsule_GetPointer(capsule, _FRESH))


def order_after_us(consumer: int | None) -> None:
    """What a consumer puts into its stream from now on begins after our kernels. None: its default stream; -1: no."""
    if SIMULATED or consumer == -1:
        return
    mark = Event()
    mark.record(stream())
    mark.wait(_theirs("__dlpack__", machine.LEGACY_STREAM if consumer is None else consumer))


def order_before_us(producer: int) -> None:
    """Our kernels begin after what a producer has put into its stream."""
    if SIMULATED:
        return
    mark = Event()
    mark.record(_theirs("__cuda_array_interface__", producer))
    mark.wait(stream())


def _theirs(what: str, handle: int) -> machine.Stream:
    if isinstance(handle, bool) or not isinstance(handle, int) or handle < 1:  # 0 would be ambiguous, says the protocol
        raise DeviceError(f"{what}: expected a stream as a positive integer, 1 for the default one, got {handle!r}")
    return machine.Stream(handle)


def export(x: Any) -> Any:
    """A capsule with the memory of a DeviceArray."""
    lengths = ctypes.c_int64 * max(x.ndim, 1)
    shape, strides = lengths(*x.shape), lengths(*(s // x.itemsize for s in x.strides))
    code, bits = _CODES[x.dtype.kind], 8 * x.itemsize
    tensor = _Tensor(x.address, HERE, machine.gpu().number, x.ndim, code, bits, 1, shape, strides, 0)
    managed = _Managed(tensor, None, _forget)
    address = ctypes.addressof(managed)
    _shared[address] = managed, shape, strides, x
    return _api.PyCapsule_New(address, _FRESH, ctypes.cast(_drop, ctypes.c_void_p))


class _Borrowed:
    """Memory of another library; its deleter runs when the last array on it is forgotten."""

    def __init__(self, managed: _Managed, source: Any):
        self.managed, self.source = managed, source

    def __del__(self) -> None:
        if self.managed.deleter:
            self.managed.deleter(ctypes.addressof(self.managed))


def take(source: Any) -> tuple[np.ndarray, Any]:
    """The memory of an object with __dlpack__ as a layout (see DeviceArray), and its owner.

    Raises DeviceError or DtypeError if it cannot be shared.
    """
    if not hasattr(source, "__dlpack__"):
        raise DeviceError(f"from_dlpack: expected an object with __dlpack__, got {type(source).__name__}")
    kind, number = source.__dlpack_device__()
    if kind != HERE:
        raise DeviceError(f"from_dlpack: expected memory of device type {HERE}, got {kind}")
    if number != machine.gpu().number:
        own = machine.gpu().number
        raise DeviceError(f"from_dlpack: expected memory of 'cuda:{own}', on which we compute, got 'cuda:{number}'")
    capsule = source.__dlpack__(**({} if SIMULATED else {"stream": stream().handle}))
    managed = _Managed.from_address(_api.PyCapsule_GetPointer(id(capsule), _FRESH))
    _api.PyCapsule_SetName(id(capsule), _USED)
    owner, tensor = _Borrowed(managed, source), managed.tensor
    kind = next((kind for kind, code in _CODES.items() if code == tensor.code), None)
    if kind is None or tensor.lanes != 1:
        raise DtypeError(f"from_dlpack: expected numbers, got type code {tensor.code} in {tensor.lanes} lanes")
    dtype = np.dtype(f"{kind}{tensor.bits // 8}")
    interface = {
        "shape": tuple(tensor.shape[: tensor.ndim]),
        "strides": tuple(s * dtype.itemsize for s in tensor.strides[: tensor.ndim]) if tensor.strides else None,
        "typestr": dtype.str,
        "data": ((tensor.data or 0) + tensor.byte_offset, False),
        "version": 3,
    }
    return np.asarray(_Described(interface)), owner


class _Described:
    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = interface
