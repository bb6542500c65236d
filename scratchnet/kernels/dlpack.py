"""DLPack: memory shared with other libraries through a struct in a capsule (dmlc.github.io/dlpack, version 0.8).

Of memory on the host NumPy does this itself, but for bfloat16.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from ..errors import DtypeError
from .signatures import HALVES

CPU, CUDA, OPENCL = 1, 2, 4
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # kDLInt, kDLUInt, kDLFloat, kDLBool
_BFLOAT16, _BFLOAT16_CODE = HALVES[0], 4


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
_offered: dict[int, Any] = {}  # the capsules of bfloat16 among it
_example = {0: object()}
_ALONE = sys.getrefcount(_example[0])  # of what a dictionary alone holds


@_Deleter
def _forget(address: int) -> None:
    _shared.pop(address, None)
    _offered.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _drop(capsule: int) -> None:
    if _api.PyCapsule_IsValid(capsule, _FRESH):  # nobody took what is in it
        _forget(_api.PyCapsule_GetPointer(capsule, _FRESH))


def _forget_what_nobody_took() -> None:
    """NumPy drops a capsule of bfloat16 with its error set, when no Python can run: so none of them has _drop."""
    for at in list(_offered):
        if sys.getrefcount(_offered[at]) == _ALONE and _api.PyCapsule_IsValid(id(_offered[at]), _FRESH):
            _forget(at)


def capsule(x: Any, address: int, device: int, number: int) -> Any:
    """A capsule with the memory of an array on the device of this type and number."""
    _forget_what_nobody_took()
    lengths = ctypes.c_int64 * max(x.ndim, 1)
    shape, strides = lengths(*x.shape), lengths(*(s // x.itemsize for s in x.strides))
    code = _BFLOAT16_CODE if x.dtype == _BFLOAT16 else _CODES[x.dtype.kind]
    tensor = _Tensor(address, device, number, x.ndim, code, 8 * x.itemsize, 1, shape, strides, 0)
    managed = _Managed(tensor, None, _forget)
    at = ctypes.addressof(managed)
    _shared[at] = managed, shape, strides, x
    if x.dtype != _BFLOAT16:
        return _api.PyCapsule_New(at, _FRESH, ctypes.cast(_drop, ctypes.c_void_p))
    made = _offered[at] = _api.PyCapsule_New(at, _FRESH, None)
    return made


class _Borrowed:
    """Memory of another library; its deleter runs when the last array on it is forgotten."""

    def __init__(self, managed: _Managed, source: Any):
        self.managed, self.source = managed, source

    def __del__(self) -> None:
        if self.managed.deleter:
            self.managed.deleter(ctypes.addressof(self.managed))


def opened(taken: Any, source: Any) -> tuple[_Tensor, Any]:
    """The struct in a capsule, which is used up, and the owner of its memory."""
    managed = _Managed.from_address(_api.PyCapsule_GetPointer(id(taken), _FRESH))
    _api.PyCapsule_SetName(id(taken), _USED)
    return managed.tensor, _Borrowed(managed, source)


def dtype_of(tensor: _Tensor) -> np.dtype:
    """NumPy's dtype of a struct's elements. Raises DtypeError where there is none."""
    if tensor.lanes == 1 and (tensor.code, tensor.bits) == (_BFLOAT16_CODE, 16):
        return _BFLOAT16
    kind = next((kind for kind, code in _CODES.items() if code == tensor.code), None)
    if kind is None or tensor.lanes != 1:
        raise DtypeError(f"from_dlpack: expected numbers, got type code {tensor.code} in {tensor.lanes} lanes")
    return np.dtype(f"{kind}{tensor.bits // 8}")
