"""Ops that move elements and compute nothing: views wherever NumPy can give one, gathers and joins where not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import checks, tracing
from ..errors import DeviceError, DtypeError, IndexOutOfRangeError, ShapeError
from ..grad_mode import is_recording
from ..kernels import device as find_device
from ..row_gradient import WHAT, RowGradient
from .operands import ArrayLike, TensorBase, array_of, as_operand, copied, limits_of
from .table import AnyNumber, Tensor, broadcast_shape, contiguous, define, method

# --- views -------------------------------------------------------------------------------------------------------


def _reshape(device, x, shape):
    try:
        return x.reshape(shape, copy=False)
    except ValueError:  # not a view: gather the elements first
        return contiguous(device, x).reshape(shape)


reshape_op = define("reshape", _reshape, lambda g, y, x, shape: reshape_op(g, shape=x.shape), is_view=True)
permute_op = define(
    "permute",
    lambda device, x, axes: x.transpose(axes),
    lambda g, y, x, axes: permute_op(g, axes=tuple(np.argsort(axes))),
    is_view=True,
)


def _broadcast_to(device, x, shape):
    if x.ndim == 0 and isinstance(x, np.ndarray):  # it is as writable as x, so that kernels take it as it is
        return np.ndarray(shape, x.dtype, x, 0, (0,) * len(shape))
    return np.broadcast_to(x, shape)


broadcast_to_op = define(
    "broadcast_to",
    _broadcast_to,
    lambda g, y, x, shape: g,  # the backward pass sums it to x's shape
    is_view=True,
)
# key: a tuple; it holds an Ellipsis if it could leave a single element, of which NumPy would give a number, not a view
getitem = define(
    "getitem",
    lambda device, x, key: x[key],
    lambda g, y, x, key: place(g, key=key, shape=x.shape),
    is_view=True,
)

# --- copies ------------------------------------------------------------------------------------------------------


def _place(device, x, key, shape, value=0):
    out = device.empty(shape, x.dtype)
    device.fill(out, value)
    device.copy(x, out[key])
    return out


place = define("place", _place, lambda g, y, x, key, shape, value=0: getitem(g, key=key), moves=True)


def _take_rows(device, x, index, sparse=None):
    index = contiguous(device, index)
    out = device.empty(index.shape + x.shape[1:], x.dtype)
    inner = math.prod(x.shape[1:])
    rows = contiguous(device, x).reshape(len(x), inner)
    device.take_rows(rows, index.reshape(-1), out.reshape(index.size, inner))
    return out


def _scatter_rows(device, g, index, n):
    rows = g.shape[index.ndim :]
    out = device.empty((n, *rows), g.dtype)
    flat = (index.size, math.prod(rows))
    device.scatter_rows(
        contiguous(device, g).reshape(flat), contiguous(device, index).reshape(-1), out.reshape(n, flat[1])
    )
    return out


# index: int64, already checked to lie in [0, n). sparse: None, or the number of a row that gets no gradient, -1 if all
# do; then the gradient of x, a table (n, dim), is a RowGradient.
take_rows = define(
    "take_rows",
    _take_rows,
    lambda g, y, x, index, sparse=None: (
        scatter_rows(g, index, n=x.shape[0]) if sparse is None else _by_rows(x, index, sparse, partial(_sums_of, g))
    ),
    None,
    promotes=(0,),
    moves=True,
)
scatter_rows = define("scatter_rows", _scatter_rows, lambda g, y, x, index, n: take_rows(g, index), None, promotes=(0,))


def _fold_rows(kernel: str):
    def forward(device, x, *arrays, n, sparse=None):
        out = device.empty((n, x.shape[1]), x.dtype if kernel == "add_rows" else np.int64)
        getattr(device, kernel)(*(contiguous(device, a) for a in (x, *arrays)), out)
        return out

    return forward


# A matrix (n, rows of x) with scale[i] at (target[i], source[i]), times x; its transpose exchanges source and target.
# source, target: int64 (m,), already checked. argmax_rows: the numbers of the rows that hold the largest elements.
add_rows = define(
    "add_rows",
    _fold_rows("add_rows"),
    lambda g, y, x, source, target, scale, n, sparse=None: (
        add_rows(g, target, source, scale, n=len(x))
        if sparse is None
        else _by_rows(x, source, sparse, partial(_weighted_sums_of, g, target, scale))
    ),
    None,
    None,
    lambda g, y, x, source, target, scale, n, sparse=None: (take_rows(g, target) * take_rows(x, source)).sum(1),
    promotes=(0, 3),
    floating=True,
)
argmax_rows = define("argmax_rows", _fold_rows("argmax_rows"), None, None, None, promotes=(0,))


def _by_rows(x: Tensor, index: Tensor, left_out: int, fold: Callable[[np.ndarray, np.ndarray, int], Tensor]) -> Any:
    """The gradient of a table x by rows. fold(kept, places, m): the sums (m, dim) of what positions `kept` of the index
    give to `places`, in order. Where the pass is recorded, it is dense, as derivatives of a RowGradient are not.
    """
    tracing.current().refuse(WHAT)
    numbers = index._data.reshape(-1)
    kept = np.flatnonzero(numbers != left_out)
    rows, places = np.unique(numbers[kept], return_inverse=True)
    values = fold(kept, places, len(rows))
    return scatter_rows(values, rows, n=len(x)) if is_recording() else RowGradient(rows, values, len(x))


def _sums_of(g: Tensor, kept: np.ndarray, places: np.ndarray, m: int) -> Tensor:
    g = reshape_op(g, shape=(math.prod(g.shape[:-1]), g.shape[-1]))
    return scatter_rows(g if len(kept) == len(g) else take_rows(g, kept), places, n=m)


def _weighted_sums_of(g: Tensor, target: Tensor, scale: Tensor, kept: np.ndarray, places: np.ndarray, m: int) -> Tensor:
    return add_rows(g, take_rows(target, kept), places, take_rows(scale, kept), n=m)


def _cat(device, *arrays, axis):
    shape = list(arrays[0].shape)
    shape[axis] = sum(a.shape[axis] for a in arrays)
    out = device.empty(tuple(shape), arrays[0].dtype)
    start = 0
    for a in arrays:
        device.copy(a, out[_span(axis, start, start + a.shape[axis])])
        start += a.shape[axis]
    return out


def _span(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)


def _cat_vjp(i, g, y, *tensors, axis):
    start = sum(t.shape[axis] for t in tensors[:i])
    return getitem(g, key=_span(axis, start, start + tensors[i].shape[axis]))


cat_op = define("cat", _cat, vjps=AnyNumber(_cat_vjp), moves=True)

# --- the forms that people call ------------------------------------------------------------------------------------


def cat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Joins tensors along an axis that they have; all other lengths must agree."""
    first = tensors[0].shape
    if not first:
        raise ShapeError("cat: expected tensors of at least one dimension, got shape ()")
    axis = checks.axis("cat", axis, len(first))
    for t in tensors[1:]:
        if len(t.shape) != len(first) or t.shape[:axis] + t.shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            raise ShapeError(f"cat: expected shapes equal but for axis {axis}, got {first} and {t.shape}")
    return cat_op(*tensors, axis=axis)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Joins tensors of one shape along a new axis."""
    for t in tensors[1:]:
        if t.shape != tensors[0].shape:
            raise ShapeError(f"stack: expected equal shapes, got {tensors[0].shape} and {t.shape}")
    axis = checks.axis("stack", axis, tensors[0].ndim + 1)
    return cat([unsqueeze(t, axis) for t in tensors], axis)


def integers(what: str, args: tuple) -> tuple[int, ...]:
    """Integers given one by one, or as one sequence."""
    if len(args) == 1 and isinstance(args[0], tuple | list):
        args = tuple(args[0])
    return tuple([n if type(n) is int else checks.integer(what, n, error=ShapeError) for n in args])


@method
def reshape(x: Tensor, *shape: Any) -> Tensor:
    """Another shape of as many elements; one length may be -1. A view where NumPy can give one."""
    shape = integers("reshape: a length", shape)
    known = math.prod(n for n in shape if n != -1)
    if -1 in shape and shape.count(-1) == 1 and known and x._data.size % known == 0:
        shape = tuple(x._data.size // known if n == -1 else n for n in shape)
    if min(shape, default=0) < 0 or math.prod(shape) != x._data.size:
        raise ShapeError(f"reshape: expected a shape of {x._data.size} elements, as {x.shape} has, got {shape}")
    return reshape_op(x, shape=shape)


@method
def broadcast_to(x: Tensor, *shape: Any) -> Tensor:
    """Repeated along axes of length 1 and along new leading axes, a view."""
    shape = integers("broadcast_to: a length", shape)
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"broadcast_to: expected a shape that {x.shape} broadcasts to, got {shape}")
    return broadcast_to_op(x, shape=shape)


@method
def permute(x: Tensor, *axes: Any) -> Tensor:
    """All axes in the given order, a view."""
    axes = integers("permute: an axis", axes)
    if sorted(a % x.ndim if x.ndim and -x.ndim <= a < x.ndim else -1 for a in axes) != list(range(x.ndim)):
        raise ShapeError(f"permute: expected each of {x.ndim} axes once, got {axes}")
    return permute_op(x, axes=tuple(a % x.ndim for a in axes))


@method
def transpose(x: Tensor, a: int, b: int) -> Tensor:
    """Two axes exchanged, a view."""
    a, b = checks.axis("transpose", a, x.ndim), checks.axis("transpose", b, x.ndim)
    axes = list(range(x.ndim or 1))
    axes[a], axes[b] = axes[b], axes[a]
    return permute_op(x, axes=tuple(axes[: x.ndim]))


@method
def squeeze(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Without its axes of length 1, or without those named (left alone if they are longer, as in PyTorch); a view."""
    gone = checks.axes("squeeze", axis, x.ndim)
    return reshape_op(x, shape=tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in gone))


@method
def unsqueeze(x: Tensor, axis: int) -> Tensor:
    """With a new axis of length 1, a view."""
    axis = checks.axis("unsqueeze", axis, x.ndim + 1)
    return reshape_op(x, shape=(*x.shape[:axis], 1, *x.shape[axis:]))


@method
def pad(x: Tensor, widths: Any, value: float = 0) -> Tensor:
    """With `value` around it; widths as in np.pad: n, (before, after), or one such pair an axis."""
    try:
        before_after = np.broadcast_to(widths, (x.ndim, 2))
        fits = before_after.dtype.kind in "iu" and not (before_after < 0).any()
    except (ValueError, TypeError):
        fits = False
    if not fits:
        expected = f"n, (before, after) or {x.ndim} such pairs, integers of at least 0"
        checks.refuse("pad", expected, widths, ShapeError)
    pairs = [(int(before), int(after)) for before, after in before_after]
    value = element("pad: value", value, x)
    shape = checks.elements("pad", tuple(n + sum(pair) for n, pair in zip(x.shape, pairs, strict=True)))
    key = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, pairs, strict=True))
    return place(x, key=(*key, Ellipsis), shape=shape, value=value)


def element(what: str, value: Any, x: Tensor) -> Any:
    """A number as an element of x, whose dtype holds it."""
    if isinstance(value, bool | np.bool_) and x.dtype.kind == "b":
        return bool(value)
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return as_operand(value, x)._data.item()
    checks.refuse(what, f"a number for {x.dtype}", value, DtypeError)


_BASIC = (int, np.integer, slice, type(None), type(Ellipsis))


def index(x: Tensor, key: Any) -> Tensor:
    """x[key] for every key that NumPy takes: a view for basic keys, a gather for integer and boolean arrays."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(p, TensorBase) for p in parts):
        parts = tuple(p._data if isinstance(p, TensorBase) else p for p in parts)
        key = parts if isinstance(key, tuple) else parts[0]
    if all(isinstance(p, _BASIC) and not isinstance(p, bool | np.bool_) for p in parts):
        _check_key(x, key)
        return getitem(x, key=parts if any(p is Ellipsis for p in parts) else (*parts, Ellipsis))
    if on_gpu := [p for p in parts if hasattr(p, "layout")]:
        if x._device.is_host:
            raise DeviceError(f"index: expected one on {x.device!r}, got one on 'cuda'; use .to({x.device!r})")
        if len(on_gpu) == len(parts) <= x.ndim and all(p.dtype.kind in "iu" for p in on_gpu):
            return _index_by_arrays(x, parts)
        if any(tracing.current().varies(p) for p in on_gpu):
            tracing.current().refuse("index: booleans, or slices beside arrays")
        parts = tuple(x._device.to_host(p) if hasattr(p, "layout") else p for p in parts)
    arrays = tuple(p if isinstance(p, _BASIC) else array_of(p) for p in parts)
    for a in arrays:
        if isinstance(a, np.ndarray) and a.size and a.dtype.kind not in "iub":
            raise DtypeError(f"index: expected integers or booleans, got {a.dtype}")
    arrays = tuple(
        a.astype(np.int64) if isinstance(a, np.ndarray) and not a.size and a.dtype.kind == "f" else a for a in arrays
    )
    if len(arrays) == 1 and x.ndim and isinstance(arrays[0], np.ndarray) and arrays[0].dtype.kind != "b":
        return take_rows(x, checked_index("index", arrays[0], x.shape[0]))
    if any(tracing.current().varies(a) for a in arrays if isinstance(a, np.ndarray)):
        if len(arrays) <= x.ndim and all(isinstance(a, np.ndarray) and a.dtype.kind in "iu" for a in arrays):
            return _index_by_arrays(x, arrays)
        tracing.current().refuse("index: booleans, or slices beside arrays")
    _check_key(x, arrays)
    positions = np.arange(x._data.size).reshape(x.shape)[arrays]  # which element lands where, by NumPy's own rules
    return take_rows(reshape_op(x, shape=(x._data.size,)), np.asarray(positions))


def _index_by_arrays(x: Tensor, arrays: tuple) -> Tensor:
    """x[i, j, ...] by arrays of integers whose numbers only kernels may look at: rows of the first axes as one."""
    n = len(arrays)
    device, shape = x._kernels, broadcast_shape("index", *arrays)
    row: Any = None
    for a, length in zip(arrays, x.shape, strict=False):
        a = contiguous(device, np.broadcast_to(checked_index("index", a, length), shape))
        row = a if row is None else _elementwise(device, "add", a, _elementwise(device, "mul", row, length))
    return take_rows(reshape_op(x, shape=(math.prod(x.shape[:n]), *x.shape[n:])), row)


def _elementwise(device: Any, kernel: str, a: np.ndarray, b: Any, dtype: Any = np.int64) -> np.ndarray:
    """a kernel of two arrays of integers, or of one and a number."""
    out = device.empty(a.shape, dtype)
    getattr(device, kernel)(a, b if hasattr(b, "layout") else np.asarray(b, np.int64), out)
    return out


def _check_key(x, key):
    """Raises what NumPy raises, as one of our errors, without touching x's elements."""
    try:
        np.broadcast_to(np.empty((), bool), x.shape)[key]
    except IndexError as error:
        raise IndexOutOfRangeError(f"index: {error} (shape {x.shape})") from None


def checked_index(name: str, array: ArrayLike, n: int, from_end: bool = True) -> Any:
    """Row numbers as int64 in [0, n); negative ones count from the end, or are refused.

    Raises IndexOutOfRangeError or DtypeError.
    """
    given, array = array, array_of(array)
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{name}: expected integers, got {array.dtype}")
    if not array.size:
        return array.astype(np.int64, copy=False)
    lowest, (least, most) = -n if from_end else 0, limits_of(array)
    if least < lowest or most >= n:
        tracing.current().fails(f"IndexOutOfRangeError of {name}")
        raise IndexOutOfRangeError(
            f"{name}: expected integers in [{lowest}, {n}), got {least if least < lowest else most}"
        )
    if tracing.current().varies(array) or (least < 0 and hasattr(array, "layout")):
        return _index_by_kernels(name, given, array, n, from_end)
    if least < 0:
        array = array.astype(np.int64, copy=False)
        return np.where(array < 0, array + n, array)
    return given if array.dtype == np.int64 else array.astype(np.int64, copy=False)


def _index_by_kernels(name: str, given: ArrayLike, array: Any, n: int, from_end: bool) -> Any:
    """The same of numbers on a GPU; or, with a guard, of an argument of a step, whose numbers differ in each call."""
    home = "cuda" if hasattr(array, "layout") else "cpu"
    device = given._kernels if isinstance(given, TensorBase) else tracing.active(find_device(home))
    if array.dtype != np.int64:
        given = array = copied(array, np.dtype(np.int64), find_device(device.name))
    lowest = -n if from_end else 0
    tracing.current().guard("in_range", array, (lowest, n), lambda: checked_index(name, array, n, from_end))
    if not from_end:
        return given
    array = contiguous(device, array)
    below = _elementwise(device, "lt", array, 0, bool)
    out = device.empty(array.shape, np.int64)
    device.where(below, _elementwise(device, "add", array, n), array, out)
    return out
