"""What a tensor says of itself and becomes, by PyTorch's words: methods of Tensor without a function beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks, tracing
from .dtypes import CONVERSIONS, bfloat16
from .errors import ConfigError, DeviceError, DtypeError
from .ops.operands import FLOATS, TensorBase
from .ops.table import Tensor


class Size(int):
    """The number of elements, as in NumPy; when called, the shape or the length of an axis, as in PyTorch."""

    shape: tuple[int, ...]

    def __call__(self, dim: int | None = None) -> Any:
        """The shape, or the length of the axis `dim`. Raises IndexOutOfRangeError."""
        return self.shape if dim is None else self.shape[checks.axis("size", dim, len(self.shape))]


def size(self: Tensor) -> Size:
    """Number of elements; x.size() is the shape, and x.size(0) a length."""
    found = Size(self._data.size)
    found.shape = self._data.shape
    return found


def dim(self: Tensor) -> int:
    """Number of axes."""
    return self._data.ndim  # type: ignore[no-any-return]


def tolist(self: Tensor) -> Any:
    """The elements as nested lists of Python numbers; of a tensor without axes the number."""
    tracing.current().refuse("tolist")
    return self._device.to_host(self._data).tolist()


def is_contiguous(self: Tensor) -> bool:
    """Do the elements lie in C order without gaps?"""
    return bool(self._data.flags.c_contiguous)


def stride(self: Tensor) -> tuple[int, ...]:
    """For each axis, how many elements its next one is away in memory."""
    return tuple([n // self._data.itemsize for n in self._data.strides])


def is_floating_point(self: Tensor) -> bool:
    """Is it of floats?"""
    return self.dtype in FLOATS  # type: ignore[no-any-return]


def to(self: Tensor, *targets: Any, device: Any = None, dtype: Any = None) -> Tensor:
    """This tensor on another device, in another dtype, or both; itself if it is so already. Gradients travel back.

    targets: devices by name, dtypes such as sn.float64, or a tensor whose device and dtype are taken.
    Raises DeviceError, DtypeError, ConfigError.
    """
    wanted: dict[str, Any] = {}
    for target in targets:
        if isinstance(target, TensorBase):
            wanted |= {"device": target._device.name, "dtype": target._data.dtype}
        else:
            wanted["dtype" if isinstance(target, np.dtype | type) else "device"] = target
    wanted |= {word: target for word, target in (("device", device), ("dtype", dtype)) if target is not None}
    if not wanted:
        raise ConfigError("to: expected a device, a dtype or a tensor, got none of them")
    moved = self._moved(wanted["device"]) if "device" in wanted else self
    return moved.astype(wanted["dtype"]) if "dtype" in wanted else moved


def type_(self: Tensor, dtype: Any = None) -> Any:
    """This tensor in another dtype; without one, the name of its own."""
    return str(self.dtype) if dtype is None else self.astype(dtype)


def _on(name: str) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return self._moved(name)

    method.__name__, method.__doc__ = name, f"This tensor on the device {name!r}; itself if it is there already."
    return method


def _in(name: str, dtype: np.dtype) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return self.astype(dtype)

    method.__name__, method.__doc__ = name, f"This tensor in {dtype}; itself if it has it already."
    return method


def bfloat16_capsule(self: Tensor, dl_device: Any = None, copy: bool | None = None, **others: Any) -> Any:
    """The capsule of DLPack with a bfloat16 tensor of the host, which NumPy cannot share; None of other tensors.

    Raises DeviceError for another device, DtypeError for read-only memory, of which the struct cannot tell.
    """
    if self.dtype != bfloat16 or not self._device.is_host:
        return None
    from .kernels import dlpack

    if dl_device is not None and tuple(dl_device) != (dlpack.CPU, 0):
        raise DeviceError(f"__dlpack__: expected dl_device {(dlpack.CPU, 0)} or None, got {dl_device}")
    data = self._data.copy() if copy else self._data
    if not data.flags.writeable:
        raise DtypeError("__dlpack__: expected memory that can be written, got read-only bfloat16; .clone() copies it")
    return dlpack.capsule(data, data.__array_interface__["data"][0], dlpack.CPU, 0)


METHODS: dict[str, Callable[..., Any]] = {
    "dim": dim,
    "ndimension": dim,
    "tolist": tolist,
    "is_contiguous": is_contiguous,
    "stride": stride,
    "is_floating_point": is_floating_point,
    "to": to,
    "type": type_,
    **{name: _on(name) for name in ("cpu", "cuda")},
    **{name: _in(name, dtype) for name, dtype in CONVERSIONS.items()},
}
