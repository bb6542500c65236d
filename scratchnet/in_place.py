"""Writing into the memory of a tensor: `x += y` and its kin, their methods `x.add_(y)`, and `x[key] = y`.

PyTorch's rules. The tensor stays the same object with the same memory, shape and dtype, so views and NumPy arrays of
that memory see the change. A leaf that requires grad changes inside `no_grad` only. A result of recorded ops may change
while ops are recorded: from then on it is the result of the op in place too, and numbers that are written over it have
no gradient. Ops that read what was there before are found by `backward`, which refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks, ops, random, tracing
from .autograd import apply, check_view
from .errors import ConfigError, DtypeError, GradientError, ShapeError
from .grad_mode import is_recording, no_grad
from .kernels.signatures import FLOATS as WIDE
from .kernels.signatures import HALVES
from .ops.operands import FLOATS, ArrayLike, TensorBase, array_on, as_operand, assign, check_integers, copied
from .ops.table import Tensor

OPERATORS = {  # op: the operator, the method
    "add": ("__iadd__", "add_"),
    "sub": ("__isub__", "sub_"),
    "mul": ("__imul__", "mul_"),
    "div": ("__itruediv__", "div_"),
    "pow": ("__ipow__", "pow_"),
}


def change(t: Tensor, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """t = compute(), in the memory of t; returns t.

    Raises GradientError where that would break a record, ShapeError or DtypeError for a result that does not fit,
    ConfigError for memory that cannot be written element by element.
    """
    if is_recording() and t.requires_grad and (t.is_leaf or t._base is not None):
        what = "a leaf that requires grad" if t.is_leaf else "a view of one that requires grad"
        raise GradientError(f"{name}: expected a tensor that may change in place, got {what}; use `with sn.no_grad():`")
    _check_memory(t, name)
    if is_recording():
        check_view(name, t)
    y = compute()
    if y.shape != t.shape:
        raise ShapeError(f"{name}: expected a result of shape {t.shape}, which stays in place, got {y.shape}")
    if y.dtype != t.dtype:
        raise DtypeError(
            f"{name}: expected a result of {t.dtype}, which stays in place, got {y.dtype}; use .astype(...)"
        )
    if y._node is None and t._node is not None and is_recording():  # numbers from elsewhere: no gradient goes on
        y = ops.where(t._wrap(t._device.from_host(np.zeros((), bool)), t._device), t, y)
    if y._node is not None:
        _continue_record(t, name, y)
    assign(t, y)
    return t


def _check_memory(t: Tensor, name: str) -> None:
    flags = getattr(t._data, "flags", None)
    repeats = t.size and any(stride == 0 and n > 1 for stride, n in zip(t._data.strides, t.shape, strict=True))
    if repeats or not getattr(flags, "writeable", True):
        what = "elements that share memory" if repeats else "read-only memory"
        raise ConfigError(f"{name}: expected memory that can be changed in place, got {what}; sn.tensor(x) copies it")


def _continue_record(t: Tensor, name: str, y: Tensor) -> None:
    """From now on y's op made t; what it read of t is put aside, since the memory changes."""
    if t._base is not None:
        raise GradientError(
            f"{name}: expected a tensor of its own to record the change of, got a view; write y = x + ..."
        )
    old = t._wrap(copied(t._data, t.dtype, t._device), t._device, t._node)
    old._version = t._version
    if t._node is not None and t._node.out is t._data:
        t._node.out = old._data
    node = y._node
    node.inputs = tuple([old if x is t else x for x in node.inputs])
    t._node, t._requires_grad = node, True


def _operator(name: str, symbol: str) -> Callable[[Tensor, ArrayLike], Tensor]:
    op = ops.OPS[name]

    def method(self: Tensor, other: ArrayLike) -> Tensor:
        return change(self, symbol, lambda: apply(op, self, other))

    method.__name__, method.__doc__ = symbol, f"As the operator {op.name} with `=`: this tensor changes in place."
    return method


def copy_(self: Tensor, source: ArrayLike) -> Tensor:
    """Takes over the numbers of `source`, which broadcasts and is converted to this dtype."""
    return change(self, "copy_", lambda: _fitted(self, source, "copy_"))


def fill_(self: Tensor, value: float) -> Tensor:
    """One number everywhere."""
    return change(self, "fill_", lambda: _fitted(self, value, "fill_"))


def zero_(self: Tensor) -> Tensor:
    """0 everywhere."""
    return fill_(self, 0)


def set_data(self: Tensor, value: Tensor) -> None:
    """x.data = value: takes over the numbers of a tensor of this shape and dtype, without a record."""
    if not hasattr(value, "_owner"):
        checks.refuse("data", "a tensor", value, DtypeError, "with sn.no_grad(): x.copy_(...) takes anything")
    if value.shape != self.shape or value.dtype != self.dtype:
        expected, got = f"{self.dtype} {self.shape}", f"{value.dtype} {value.shape}"
        raise ShapeError(f"data: expected a tensor of {expected}, as it is, got {got}")
    if value._owner is not self._owner:
        with no_grad():
            copy_(self, value)


def _method(name: str) -> Callable[..., Tensor]:
    function = ops.METHODS[name]

    def method(self: Tensor, *args: Any, **words: Any) -> Tensor:
        return change(self, f"{name}_", lambda: function(self, *args, **words))

    method.__name__, method.__doc__ = f"{name}_", f"As `{name}`, in the memory of this tensor."
    return method


def _drawn(name: str, draw: Callable[..., Any], doc: str) -> Callable[..., Tensor]:
    def method(self: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
        a, b = checks.number(f"{name}: the first", a), checks.number(f"{name}: the second", b)
        if not (b >= 0 if name == "normal_" else a <= b):
            raise ConfigError(f"{name}: expected a deviation >= 0, or bounds in order, got {a} and {b}")
        if self.dtype not in WIDE or not self._device.is_host:
            raise DtypeError(f"{name}: expected float32 or float64 on the host, got {self.dtype} on {self.device!r}")
        numbers = random.current().filled(np.empty(self.shape, self.dtype), lambda g: draw(g, a, b, self.shape))
        return change(self, name, lambda: self._wrap(numbers, self._device))

    method.__name__, method.__doc__ = name, doc
    return method


# Functions whose result may take the place of their first input.
IN_PLACE = (
    "abs ceil clamp clip cos exp floor log masked_fill neg reciprocal relu round rsqrt sigmoid sin sqrt square tanh"
)

METHODS = (
    {"copy_": copy_, "fill_": fill_, "zero_": zero_}
    | {method: _operator(name, method) for name, methods in OPERATORS.items() for method in methods}
    | {f"{name}_": _method(name) for name in IN_PLACE.split()}
    | {
        "normal_": _drawn("normal_", np.random.Generator.normal, "Normal with mean a and standard deviation b."),
        "uniform_": _drawn("uniform_", np.random.Generator.uniform, "Uniform on [a, b)."),
    }
)


def set_items(t: Tensor, key: Any, value: ArrayLike) -> None:
    """t[key] = value, for every key that NumPy takes; value broadcasts, and is converted to t's dtype without loss.

    While ops are recorded neither may require grad: GradientError. Raises IndexOutOfRangeError, ShapeError, DtypeError.
    """
    name = "item assignment"
    if is_recording() and (t.requires_grad or getattr(value, "requires_grad", False)):
        raise GradientError(
            f"{name}: expected tensors without a gradient, got one; use sn.where or `with sn.no_grad():`"
        )
    _check_memory(t, name)
    if is_recording():
        check_view(name, t)
    key = _host_key(key)
    with no_grad():
        target = ops.index(t, key)
        if target._base is not None:  # a view
            assign(target, _fitted(target, value, name))
            return
        # An integer or boolean array: which element lands where is NumPy's own business.
        tracing.current().refuse(f"{name}: keys with arrays")
        host = t._device.to_host(t._data).copy()
        host[key] = t._device.to_host(_fitted(target, value, name)._data)
        assign(t, t._wrap(t._device.from_host(host), t._device))


def _host_key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_host_key(part) for part in key)
    return key._device.to_host(key._data) if hasattr(key, "_device") else key


def _fitted(t: Tensor, value: ArrayLike, name: str) -> Tensor:
    """value in t's shape and dtype, in other memory than t's."""
    if isinstance(value, list | tuple | np.ndarray) and t.dtype in HALVES:
        value = t._wrap(array_on(t._device, value, t.dtype), t._device)
    elif not isinstance(value, TensorBase):  # also a number becomes memory of the device, so that it can broadcast
        value = t._wrap(t._device.from_host(as_operand(value, t)._data), t._device)
    try:
        fits = np.broadcast_shapes(value.shape, t.shape) == t.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"{name}: expected a value that broadcasts to {t.shape}, got shape {value.shape}")
    if t.dtype not in FLOATS and not np.can_cast(value.dtype, t.dtype, "same_kind"):
        raise DtypeError(f"{name}: expected numbers for {t.dtype}, got {value.dtype}; use .astype(...)")
    check_integers(name, value, t.dtype)
    value = value.to(t.device).astype(t.dtype)
    if value._owner is t._owner or (t._device.is_host and np.may_share_memory(value._data, t._data)):
        value = ops.cast(value, dtype=value.dtype)
        if value.shape == t.shape:
            return value
    return value.broadcast_to(t.shape)
