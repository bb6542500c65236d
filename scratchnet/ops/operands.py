"""What ops take: the fields of a tensor, and how data of any kind become the array of one.

The class Tensor stands above this package (tensor.py) and adds the methods. Ops and the backward pass need
no more of it than the fields of its base here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import checks, tracing
from ..errors import DeviceError, DtypeError, ScratchnetError
from ..kernels import Device
from ..kernels import device as find_device
from ..kernels.signatures import FLOATS as WIDE
from ..kernels.signatures import HALVES

ArrayLike = Any  # a Tensor, a NumPy array, a number, or a nested sequence of numbers

FLOATS = (*HALVES, *WIDE)  # in the order of their significant digits
_ALLOWED_KINDS = "fiub"
MOST_BITS = 1024  # an integer of fewer is a number of floats, though it may be infinity
_BEYOND_FLOAT16 = 65_520  # the least integer that float16 rounds to infinity
_DTYPES = frozenset({np.dtype(np.bool_), *FLOATS, *map(np.dtype, np.typecodes["AllInteger"])})  # of tensors


class TensorBase:
    """The fields of a Tensor.

    _data, _device: the array, and the kernels that compute with it. _node: how it was made (None: a leaf).
    _base: the tensor whose memory this view looks at. _version: how often the memory of this tensor was written since;
    of a view, that of its base counts, and its own says when it was made. _hooks: of a leaf, see hooks.py.
    """

    __slots__ = ("__weakref__", "_base", "_data", "_device", "_grad", "_hooks", "_node", "_requires_grad", "_version")
    _base: Any
    _data: np.ndarray
    _device: Device
    _node: Any
    _requires_grad: bool
    _version: int
    _grad: Any
    _hooks: tuple[Any, ...]

    @property
    def _owner(self) -> Any:
        """The tensor whose memory this one looks at."""
        return self if self._base is None else self._base

    @property
    def _kernels(self) -> Device:
        """The kernels of its device; a step that is traced notes the calls."""
        return tracing.active(self._device)

    @staticmethod
    def _wrap(data: np.ndarray, device: Device, node: Any = None) -> Any:
        """A new Tensor around an array that is known to be good."""
        raise NotImplementedError


def array_of(x: ArrayLike) -> np.ndarray:
    """The array of a tensor, or what NumPy makes of x."""
    if isinstance(x, TensorBase):
        return x._data
    x = tracing.current().given(x)
    return x if hasattr(x, "layout") else np.asarray(x)  # memory of a GPU is as it is


def as_operand(x: ArrayLike, like: TensorBase) -> Any:
    """x itself if it is a tensor, else a tensor around it. Numbers take the float dtype and the device of `like`."""
    if isinstance(x, TensorBase):
        return x
    if isinstance(x, int | float | np.number) and not isinstance(x, bool):
        dtype = like._data.dtype
        exact = dtype.kind in "iu" and isinstance(x, int | np.integer)
        if exact or (dtype in FLOATS and not isinstance(x, np.complexfloating)):
            if type(x) not in (int, float) and (given := tracing.current().given(x)) is not x:
                return like._wrap(copied(given, dtype, like._device), like._device)
            try:
                array = fitted("Tensor", np.asarray(x), dtype) if dtype in HALVES else np.array(x, dtype)
                return like._wrap(array, like._device)
            except OverflowError:
                bits = x.bit_length() if isinstance(x, int) else 0
                got = f"an integer of {bits} bits" if bits > 64 else x
                raise DtypeError(f"Tensor: expected a number that fits {dtype}, got {got}") from None
    return like._wrap(array_on(like._device, x), like._device)


def _does_not_fit(name: str, dtype: np.dtype, x: Any) -> DtypeError:
    remedy = f"use .astype('float32') on the tensor, or round it: Tensor(data).astype('{dtype}')"
    return DtypeError(f"{name}: expected a number that fits {dtype}, got {x}; {remedy}")


def fitted(name: str, numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers from outside in `dtype`. Raises DtypeError where a half would make 0 or infinity of one."""
    if dtype not in HALVES or numbers.dtype == dtype:
        return numbers.astype(dtype, copy=False)
    with np.errstate(over="ignore", under="ignore"):
        found = numbers.astype(np.float32).astype(dtype)
    wide = found.astype(np.float32)
    lost = ((wide == 0) & (numbers != 0)) | (np.isinf(wide) & ~np.isinf(numbers.astype(np.float64)))
    if lost.any():
        raise _does_not_fit(name, dtype, numbers[lost][0])
    return found


def check_integers(name: str, t: TensorBase, dtype: np.dtype) -> None:
    """Raises DtypeError if float16 would make infinity of an integer of t; a recorded step asks in each call."""
    array = t._data
    if dtype != np.float16 or array.dtype.kind not in "iu" or array.dtype.itemsize == 1 or not array.size:
        return
    least, most = limits_of(array)
    if not -_BEYOND_FLOAT16 < least <= most < _BEYOND_FLOAT16:
        tracing.current().fails(f"DtypeError of {name}")
        raise _does_not_fit(name, dtype, most if most >= _BEYOND_FLOAT16 else least)
    if tracing.current().varies(array):
        if array.dtype != np.int64:
            array = copied(array, np.dtype(np.int64), t._device)
        tracing.current().guard(
            "in_range", array, (1 - _BEYOND_FLOAT16, _BEYOND_FLOAT16), lambda: check_integers(name, t, dtype)
        )


def limits_of(array: Any) -> tuple[int, int]:
    """The smallest and the largest element; of memory on a GPU they are often known without a look."""
    return array.limits if hasattr(array, "limits") else (array.min(), array.max())


def array_on(device: Device, data: ArrayLike, dtype: Any = None) -> np.ndarray:
    """The array of a tensor on `device`, made of any data."""
    if not device.is_host:
        if isinstance(data, TensorBase):
            data = moved(data, device)
        elif tracing.current().given(data) is not data:
            tracing.current().refuse("an array argument to a GPU")
        if hasattr(data, "__cuda_array_interface__"):
            array = device.from_host(data)
            return array if dtype is None or array.dtype == dtype else copied(array, np.dtype(dtype), device)
    return device.from_host(as_array(data, dtype))


def as_array(data: ArrayLike, dtype: Any = None) -> np.ndarray:
    """What NumPy makes of data, in a dtype that tensors may have. Raises ShapeError or DtypeError."""
    data = tracing.current().given(data)
    if type(data) is np.ndarray and dtype is None and data.dtype in _DTYPES:
        return data  # as most are
    if isinstance(data, TensorBase):
        data = data._device.to_host(data._data)
    elif isinstance(data, list | tuple) and any(isinstance(item, TensorBase) for item in data):
        if hasattr(data, "_fields"):  # (values, indices)
            checks.refuse("Tensor", "numbers", data, DtypeError, f"take .{' or .'.join(data._fields)}")
        data = [item.detach().numpy() if isinstance(item, TensorBase) else item for item in data]  # type: ignore[attr-defined]
    from_python = not isinstance(data, np.ndarray | np.generic) and not hasattr(data, "__array__")
    array = checks.array("Tensor", data, _ALLOWED_KINDS)
    if dtype is None and from_python and array.dtype == np.float64:
        dtype = np.float32
    target = checked_dtype("Tensor", array.dtype.newbyteorder("=") if dtype is None else dtype)
    if array.dtype != target and tracing.current().varies(array):
        if target in HALVES:  # whose numbers are looked at
            tracing.current().refuse(f"Tensor(array, dtype={str(target)!r})")
        return copied(array, target, find_device("cpu"))
    return fitted("Tensor", array, target)


def checked_dtype(name: str, dtype: Any) -> np.dtype:
    """dtype as NumPy's. Raises DtypeError if no tensor may have it."""
    dtype = checks.dtype(name, dtype)
    if dtype not in FLOATS and dtype.kind not in "iub":
        names = ", ".join(map(str, FLOATS))
        raise DtypeError(f"{name}: expected {names}, integers or booleans, got dtype {dtype}")
    return dtype


def moved(t: TensorBase, target: Device) -> np.ndarray:
    """The array of t on another device: the same one between the host's devices, which share memory."""
    if t._device is target or (target.is_host and t._device.is_host):
        return t._data
    tracing.current().refuse(f"to({target.name!r})")
    return target.from_host(t._device.to_host(t._data))


def copied(data: np.ndarray, dtype: np.dtype, device: Device) -> np.ndarray:
    """A copy of an array, in another dtype."""
    device = tracing.active(device)
    out = device.empty(data.shape, dtype)
    device.copy(data, out)
    return out


def kept(data: np.ndarray, device: Device) -> np.ndarray:
    """A copy in memory of its own, aligned, for what lives long: C-contiguous."""
    if tracing.current().varies(data):
        return copied(data, data.dtype, device)
    out = device.aligned(data.shape, data.dtype)
    device.copy(data, out)
    return out


def overwrite(target: TensorBase, values: np.ndarray) -> None:
    """Writes an array of the host, of the same shape and dtype, over the numbers of `target`, in place."""
    tracing.current().refuse("numbers of Python written into a tensor")
    overwritten(target)
    target._device.write(target._data, values)


def assign(target: TensorBase, value: TensorBase) -> None:
    """Writes the numbers of `value` over those of `target`, in place. Both have one shape, dtype and device."""
    overwritten(target)
    target._kernels.copy(value._data, target._data)


def overwritten(t: TensorBase) -> None:
    """The memory of t is about to change: whoever read it can tell, and the op that made it keeps what it gave."""
    owner = t._owner
    node = owner._node
    if node is not None and node.out is owner._data:
        node.out = copied(node.out, node.out.dtype, owner._device)

    def count() -> None:
        owner._version += 1

    count()
    tracing.current().effect(count)


# --- before an op runs: inputs become tensors of one device and, by NumPy's rules without the surprises, of one dtype.
# float32 and float64 do not mix, Python numbers take the dtype of the tensors, integers become the float that is there.


def prepare(op: Any, inputs: tuple) -> tuple[tuple[Any, ...], bool]:
    """The inputs as tensors of one device, those that the op promotes in one dtype; and is that a half?"""
    like = inputs[0] if isinstance(inputs[0], TensorBase) else next(x for x in inputs if isinstance(x, TensorBase))
    device, dtype = like._device, like._data.dtype
    if dtype is WIDE[0] or dtype is WIDE[1]:  # the usual case: tensors of one dtype, and Python numbers
        weak, promotes = False, op.promotes
        for i, x in enumerate(inputs):
            if isinstance(x, TensorBase):
                if x._data.dtype is not dtype and (promotes is None or i in promotes):
                    break
                if x._device is not device:
                    break
            elif type(x) is float or (type(x) is int and x.bit_length() < MOST_BITS):
                weak = True
            else:
                break
        else:
            if not weak:
                return inputs, False
            weakly = [x if isinstance(x, TensorBase) else like._wrap(np.array(x, dtype), device) for x in inputs]
            return tuple(weakly), False
    like = next((x for x in inputs if isinstance(x, TensorBase) and x._data.dtype in FLOATS), like)
    tensors = tuple([as_operand(x, like) for x in inputs])
    for x in tensors:
        if x._device is not device:
            raise DeviceError(f"{op.name}: expected one device, got {device.name!r} and {x.device!r}; use .to(...)")
    return _promoted(op, tensors)


def _promoted(op: Any, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], bool]:
    group = range(len(inputs)) if op.promotes is None else op.promotes
    dtypes = {inputs[i]._data.dtype for i in group}
    floats = sorted([dtype for dtype in dtypes if dtype in FLOATS], key=FLOATS.index)
    if len(floats) > 1:
        raise DtypeError(
            f"{op.name}: expected one float dtype, got {' and '.join(map(str, floats))}; use "
            f".astype('{floats[0]}') on the data, or model.to(dtype='{floats[-1]}')"
        )
    of_halves = bool(floats) and floats[0] in HALVES
    if len(dtypes) == 1 and (floats or not op.floating):
        return inputs, of_halves
    if floats:
        target = floats[0]
    elif op.floating:
        target = np.dtype(np.float32)
    else:
        target = np.result_type(*dtypes)
        if target.kind == "f":  # NumPy has no integer type that holds both
            raise DtypeError(f"{op.name}: expected integers of one kind, got {', '.join(sorted(map(str, dtypes)))}")
    for i in group:
        check_integers(op.name, inputs[i], target)
    return tuple(t.astype(target) if i in group else t for i, t in enumerate(inputs)), of_halves


def refusal(op: Any, tensors: tuple[Any, ...], error: Exception) -> Exception:
    """What to raise for an error of a forward: DtypeError where NumPy has no such function of integers or booleans."""
    if isinstance(error, ScratchnetError) or any(t._data.dtype in FLOATS for t in tensors):
        return error
    dtypes = " and ".join(str(t._data.dtype) for t in tensors)
    return DtypeError(f"{op.name}: expected floats, got {dtypes} ({str(error).splitlines()[0]})")
