"""Tensor: an array on a device, plus the record of how it was made.

The methods that compute come from the op table (ops/table.py, METHODS), those that write from in_place.py, gradients
from autograd.py, and what may become a tensor is decided in ops/operands.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from copy import deepcopy
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import autograd, checks, conversions, hooks, in_place, numpy_protocol, ops, tracing
from .autograd import Node, apply
from .drawing import html_array
from .dtypes import device as named_device
from .errors import DtypeError, GradientError, JitError, ShapeError
from .grad_mode import is_recording, no_grad
from .kernels import TABLES, Device
from .kernels import device as find_device
from .kernels.signatures import HALVES
from .ops.logic import of_booleans
from .ops.operands import FLOATS, ArrayLike, TensorBase, array_on, as_operand, checked_dtype, copied, moved
from .row_gradient import RowGradient
from .stateful import count_change

_default_device: ContextVar[str] = ContextVar("default_device", default="cpu")
_DEVICES = {name: named_device(name) for name in TABLES}
_new = object.__new__


class _UsedUp:
    """Stands for a gradient that a recorded step made, used and did not keep."""

    def __reduce__(self) -> str:
        return "USED_UP"


USED_UP: Any = _UsedUp()


class default_device:
    """Sets the device of new tensors ("cpu" at the start): for good when called, for a block in a `with`."""

    def __init__(self, name: str):
        find_device(name)
        self._token = _default_device.set(name)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info) -> None:
        _default_device.reset(self._token)


def current_device() -> str:
    """The device of new tensors."""
    return _default_device.get()


def _operator(name: str) -> tuple[Callable[[Any, ArrayLike], Tensor], Callable[[Any, ArrayLike], Tensor]]:
    """The methods of an operator, x + y and its reflected form, from the row of that name."""
    op = ops.OPS[name]

    def forward(self: Tensor, other: ArrayLike) -> Tensor:
        return apply(op, self, other)

    def reflected(self: Tensor, other: ArrayLike) -> Tensor:
        return apply(op, other, self)

    forward.__name__, reflected.__name__ = f"__{name}__", f"__r{name}__"
    return forward, reflected


def _of_booleans(symbol: str, name: str) -> Callable[..., Tensor]:
    """The method of an operator that takes booleans alone."""
    function = ops.METHODS[name]

    def method(self: Tensor, *other: ArrayLike) -> Tensor:
        operands = [self, *(as_operand(x, self) for x in other)]
        of_booleans(symbol, *operands)
        return function(*operands)

    return method


class Tensor(TensorBase):
    """An n-dimensional array that remembers how it was made.

    data: array-like of numbers. NumPy float32 and float64 keep their type, Python floats become float32,
        integers and booleans stay integers and booleans. A NumPy array is shared, not copied, where it can be.
    requires_grad: record what is done with this tensor, so that `backward` can fill `.grad`. Floats only.
    dtype, device: convert to them; `device` is "cpu" (Numba kernels), "numpy" (the reference) or "cuda" (a GPU, to
        which the data are copied; an array with __cuda_array_interface__, of CuPy or PyTorch, is shared).

    Raises DtypeError for data that are not numbers, DeviceError for an unknown device.
    """

    __slots__ = ()

    def __init__(self, data: ArrayLike, requires_grad: bool = False, dtype: Any = None, device: str | None = None):
        tracing.current().makes(self)
        self._device = find_device(_default_device.get() if device is None else device)
        self._data = array_on(self._device, data, dtype)
        self._node = self._base = self._grad = None
        self._version, self._hooks = 0, ()
        self._requires_grad = False
        if requires_grad is not False:
            self.requires_grad = requires_grad

    @staticmethod
    def _wrap(data: np.ndarray, device: Device, node: Node | None = None) -> Tensor:
        """A tensor around an array that is known to be good."""
        t = _new(Tensor)
        t._data, t._device, t._node = data, device, node
        t._base = t._grad = None
        t._version, t._hooks = 0, ()
        t._requires_grad = node is not None
        return t

    _apply = staticmethod(apply)

    # --- what it is ---------------------------------------------------------------------------------------------

    shape, dtype, ndim = (property(attrgetter(f"_data.{name}")) for name in ("shape", "dtype", "ndim"))  # no calls
    size = property(conversions.size)

    @property
    def device(self) -> str:
        return _DEVICES[self._device.name]

    @property
    def requires_grad(self) -> bool:
        """Is a gradient wanted of it? May be set on leaves of floats. Raises DtypeError, GradientError."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        wanted = checks.flag("requires_grad", wanted)
        if wanted and self._data.dtype not in FLOATS:
            raise DtypeError(f"Tensor: expected a dtype of floats for requires_grad, got {self._data.dtype}")
        if not wanted and self._node is not None:
            raise GradientError("requires_grad: expected a leaf tensor, got the result of an op; call .detach()")
        if wanted != self._requires_grad:
            tracing.current().writes(self, "_requires_grad")
            count_change()
            self._requires_grad = wanted

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Sets requires_grad, and returns this tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """True unless an op that recorded itself made this tensor."""
        return self._node is None

    def item(self) -> float | int | bool:
        """The one element, as a Python number. Raises ShapeError if there are more or none."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        tracing.current().refuse("item")
        return self._data.item()

    def numpy(self) -> np.ndarray:
        """The array itself (shared memory), or a copy of one that is on a GPU.

        Raises GradientError if the tensor requires grad: use .detach() first.
        """
        if self.requires_grad:
            raise GradientError("numpy: expected a tensor that does not require grad; call .detach() first")
        tracing.current().refuse("numpy")
        return self._device.to_host(self._data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """By which CuPy, PyTorch and Numba share the memory of a tensor on a GPU; others have no such attribute."""
        if self._device.is_host:
            raise AttributeError(f"__cuda_array_interface__: expected a tensor on 'cuda', got one on {self.device!r}")
        if self.dtype == HALVES[0]:
            raise AttributeError("__cuda_array_interface__: it has no name for bfloat16; DLPack has")
        return self._data.__cuda_array_interface__  # type: ignore[attr-defined]

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule that shares the memory. Raises GradientError if the tensor requires grad."""
        if self.requires_grad:
            raise GradientError("__dlpack__: expected a tensor that does not require grad; call .detach() first")
        tracing.current().refuse("__dlpack__")
        return conversions.bfloat16_capsule(self, **options) or self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    __array_ufunc__, __array_function__ = numpy_protocol.array_ufunc, numpy_protocol.array_function

    def detach(self) -> Tensor:
        """The same memory without the record."""
        t = Tensor._wrap(self._data, self._device)
        t._base = self._owner
        return t

    data = property(detach, in_place.set_data)  # without the record, as in older notebooks

    def _moved(self, device: str) -> Tensor:
        """This tensor on another device; itself if it is there already. Gradients travel back."""
        target = find_device(device)
        if target is self._device:
            return self
        data = moved(self, target)
        node = None
        if self.requires_grad and is_recording():
            node = Node(_to_device, (self,), {}, data, target)
        t = Tensor._wrap(data, target, node)
        t._base = self._owner if data is self._data else None
        return t

    def astype(self, dtype: Any) -> Tensor:
        """This tensor in another dtype; itself if it has it already."""
        dtype = checked_dtype("astype", dtype)
        if dtype == self.dtype:
            return self
        return ops.cast(self if dtype in FLOATS else self.detach(), dtype=dtype)

    def __repr__(self) -> str:
        tracing.current().refuse("repr")
        body = np.array2string(self._device.to_host(self._data), separator=", ", prefix="Tensor(", threshold=100)
        notes = [f"dtype={self.dtype}"] * (self.dtype not in (np.float32, np.int64, np.bool_))
        notes += [f"device={self.device!r}"] * (self.device != _default_device.get())
        notes += ["requires_grad=True"] * self.requires_grad
        return f"Tensor({', '.join([body, *notes])})"

    def _repr_html_(self) -> str:
        """What a notebook shows: shape, dtype, device and record in a line, and the values as a table."""
        tracing.current().refuse("repr")
        title = f"Tensor of shape {self.shape}, {self.dtype}, on {self.device}"
        title += f", made by {self._node.op.name}" if self._node else ", requires grad" * self.requires_grad
        return html_array(title, self._device.to_host(self._data))

    def __len__(self) -> int:
        if not self.ndim:
            raise ShapeError("len: expected at least one dimension, got shape ()")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(f"bool: expected one element, got shape {self.shape}; write .any() or .all()")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise DtypeError(f"index: expected an integer tensor, got {self.dtype}")
        return int(self.item())

    def __round__(self, digits: int | None = None) -> float | int:
        return round(self.item(), digits)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self._node is not None:
            raise GradientError("deepcopy: expected a leaf tensor, got the result of an op; call .detach() first")
        if (view := self._view()) is not None:
            copy = _rebuild_view(type(self), deepcopy(self._base, memo), *view)
        else:
            copy = _rebuild(type(self), copied(self._data, self.dtype, self._device), self.requires_grad, self.device)
        copy._grad = self._grad.__deepcopy__(memo) if isinstance(self._grad, Tensor) else self._grad
        return copy

    def _view(self) -> tuple[int, tuple[int, ...], tuple[int, ...], bool] | None:
        """(bytes from where its base begins, shape, strides, requires_grad) of a view, to make it again.

        None for others, and where the base has a record or lies in other memory by now.
        """
        base = self._base
        if base is None or base._node is not None or not self._device.is_host or base.dtype != self.dtype:
            return None
        start = self._data.__array_interface__["data"][0] - base._data.__array_interface__["data"][0]
        if not (base._data.flags.c_contiguous and 0 <= start <= base._data.nbytes):
            return None
        return start, self.shape, self._data.strides, self.requires_grad

    def __reduce__(self):
        if (view := self._view()) is not None:
            return _rebuild_view, (type(self), self._base, *view)
        return _rebuild, (type(self), self.detach().numpy(), self.requires_grad, self.device)

    # --- gradients ----------------------------------------------------------------------------------------------

    @property
    def grad(self) -> Any:
        """What `backward` added up for this leaf, of its shape: a Tensor, or a RowGradient of a table that is used with
        sparse=True; None before.

        Raises JitError if a recorded step used it up, and so did not keep it.
        """
        tracing.current().touch(self)
        if self._grad is USED_UP:
            raise JitError(
                "grad: expected a gradient that was kept, got one that a recorded step used up; it forgets it first: "
                "return it from the step, or call zero_grad()"
            )
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | RowGradient | None) -> None:
        if value is None:
            tracing.current().zeroed(self)
        elif not isinstance(value, Tensor | RowGradient):
            checks.refuse("grad", "a Tensor or None", value, GradientError, "write p.grad = sn.Tensor(...)")
        else:
            tracing.current().touch(self)
        self._grad = value

    backward, register_hook, retain_grad = autograd.backward, hooks.register_hook, hooks.retain_grad

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradient, or with set_to_none=False fills it with 0, if there is one."""
        if checks.flag("zero_grad: set_to_none", set_to_none):
            self.grad = None
        elif isinstance(self.grad, RowGradient):
            self.grad = self.grad.cleared()
        elif self.grad is not None:
            with no_grad():
                self.grad.zero_()

    def _updated(self) -> None:
        """An optimizer wrote over this parameter."""
        tracing.current().updated(self)

    # --- operators ----------------------------------------------------------------------------------------------

    __add__ = __radd__ = _operator("add")[0]
    __sub__, __rsub__ = _operator("sub")
    __mul__ = __rmul__ = _operator("mul")[0]
    __truediv__, __rtruediv__ = _operator("div")
    __pow__, __rpow__ = _operator("pow")
    __lt__, __le__, __gt__, __ge__ = (_operator(name)[0] for name in ("lt", "le", "gt", "ge"))
    __eq__, __ne__ = _operator("eq")[0], _operator("ne")[0]  # type: ignore[assignment]
    __and__ = __rand__ = _of_booleans("&", "logical_and")
    __or__ = __ror__ = _of_booleans("|", "logical_or")
    __xor__ = __rxor__ = _of_booleans("^", "logical_xor")
    __invert__ = _of_booleans("~", "logical_not")
    __hash__ = object.__hash__
    __matmul__ = ops.matmul
    __getitem__ = ops.index

    def __rmatmul__(self, other: ArrayLike) -> Tensor:
        return as_operand(other, self) @ self

    def __neg__(self) -> Tensor:
        return apply(ops.OPS["neg"], self)

    def __abs__(self) -> Tensor:
        return apply(ops.OPS["abs"], self)

    @property
    def T(self) -> Tensor:
        """The matrix transposed (all axes reversed), a view."""
        return ops.permute_op(self, axes=tuple(range(self.ndim))[::-1])

    __setitem__ = in_place.set_items

    if TYPE_CHECKING:  # the methods that are public in the op table; below

        def __getattr__(self, name: str) -> Callable[..., Tensor]: ...


for _name, _method in (ops.METHODS | in_place.METHODS | conversions.METHODS).items():
    setattr(Tensor, _name, _method)

# --- making tensors ----------------------------------------------------------------------------------------------


def tensor(data: ArrayLike, requires_grad: bool = False, dtype: Any = None, device: str | None = None) -> Tensor:
    """A Tensor with memory of its own; arguments as for Tensor."""
    t = Tensor(data, requires_grad, dtype, device)
    t._data = copied(t._data, t.dtype, t._device)
    return t


def as_tensor(x: ArrayLike, *like: ArrayLike | None) -> Tensor:
    """x itself if it is a Tensor, else a Tensor around it.

    Numbers take the float dtype and the device of the first tensor among `like`.
    """
    if isinstance(x, Tensor):
        return x
    known = next((t for t in like if isinstance(t, Tensor)), None)
    return Tensor(x) if known is None else as_operand(x, known)


def _rebuild(cls: type, data: np.ndarray, requires_grad: bool, device: str) -> Tensor:
    t: Tensor = _new(cls)
    Tensor.__init__(t, data, requires_grad, None, device)
    return t


def _rebuild_view(
    cls: type, base: Tensor, start: int, shape: tuple[int, ...], strides: tuple[int, ...], requires_grad: bool
) -> Tensor:
    data = np.ndarray(shape, base.dtype, base._data.reshape(-1).view(np.uint8), start, strides)
    t = _rebuild(cls, data, requires_grad, base.device)
    t._base = base
    return t


_to_device = ops.Op("to", lambda device, x: x, (lambda g, y, x: g.to(x.device),))
