"""Reductions over axes. Every one becomes a kernel call on x seen as (outer, n, inner) with the middle axis reduced.

`axis` is None (all), an int or a tuple; `keepdims` keeps reduced axes with length 1.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import checks
from ..errors import IndexOutOfRangeError, ShapeError
from .elementwise import exp, sqrt, where_op
from .movement import broadcast_to_op, reshape_op
from .operands import FLOATS
from .table import Op, Tensor, contiguous, define, method


def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the reduced axes at length 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def outer_n_inner(device, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """x as a contiguous (outer, n, inner) array whose middle axis holds `axes`."""
    if axes and axes[-1] - axes[0] != len(axes) - 1:  # not neighbours: bring them together at the end
        x = x.transpose([i for i in range(x.ndim) if i not in axes] + list(axes))
        axes = tuple(range(x.ndim - len(axes), x.ndim))
    x = contiguous(device, x)
    if len(axes) == x.ndim:
        return x.reshape(1, x.size, 1)
    first, last = (axes[0], axes[-1] + 1) if axes else (0, 0)
    shape = x.shape
    return x.reshape(math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:]))


def not_empty(name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Raises ShapeError if there is nothing to reduce."""
    if _count(shape, axes) == 0:
        raise ShapeError(f"{name}: expected at least one element to reduce, got shape {shape} and axis {axes}")


def _reduce(name: str, dtype=lambda x: x.dtype, empty_is_error: bool = True):
    """The forward of a reduction whose kernel has the op's name."""

    def forward(device, x, axes, keepdims):
        if empty_is_error:
            not_empty(name, x.shape, axes)
        if name == "sum" and x.dtype == np.uint64:  # which NumPy would add to int64 as float64
            wide = device.empty(x.shape, np.dtype(np.int64))
            device.copy(x, wide)
            x = wide
        x3 = outer_n_inner(device, x, axes)
        shape = kept_shape(x.shape, axes) if keepdims else tuple([n for i, n in enumerate(x.shape) if i not in axes])
        out = device.empty(shape, dtype(x))
        getattr(device, name)(x3, out.reshape(x3.shape[0], x3.shape[2]))
        return out

    return forward


def _expand(g, x, axes):
    """g, reduced over axes with or without keepdims, broadcast to x's shape."""
    kept = g if g.ndim in (0, x.ndim) else reshape_op(g, shape=kept_shape(x.shape, axes))
    return broadcast_to_op(kept, shape=x.shape)


def _extremum_vjp(g, y, x, axes, keepdims):
    """Shares g evenly among the elements equal to the extremum."""
    kept = kept_shape(x.shape, axes)
    winners = x == reshape_op(y, shape=kept)
    share = reshape_op(g, shape=kept) / sum(winners, axis=axes, keepdims=True).astype(x.dtype)
    return share * winners


sum_op = define(
    "sum",
    _reduce("sum", lambda x: x.dtype if x.dtype in FLOATS else np.dtype(np.int64), empty_is_error=False),
    lambda g, y, x, axes, keepdims: _expand(g, x, axes),
)


def _shared_out(device, total, shape, axes):
    """total divided by the number of elements of `shape` that each of its own stands for."""
    out = device.empty(total.shape, total.dtype)
    device.div(contiguous(device, total), np.array(_count(shape, axes), total.dtype), out)
    return out


def _mean_forward(device, x, axes, keepdims):
    return _shared_out(device, sum_op.forward(device, x, axes, keepdims), x.shape, axes)


def _mean_grad_forward(device, g, shape, axes, keepdims):
    share = _shared_out(device, g, shape, axes)
    kept = share if share.ndim in (0, len(shape)) else share.reshape(kept_shape(shape, axes))
    return broadcast_to_op.forward(device, kept, shape)


mean_op = define(
    "mean",
    _mean_forward,
    lambda g, y, x, **over: mean_grad(g, shape=x.shape, **over),
    floating=True,
)
mean_grad = define(
    "mean_grad",
    _mean_grad_forward,
    lambda h, z, g, shape, **over: mean_op(h, **over),
)
max_op = define("max", _reduce("max"), _extremum_vjp)
min_op = define("min", _reduce("min"), _extremum_vjp)
argmax_op = define("argmax", _reduce("argmax", lambda x: np.int64), None)


@method
def sum(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Sum of elements; integers and booleans are summed as int64."""
    return sum_op(x, axes=checks.axes("sum", axis, x.ndim), keepdims=checks.flag("sum: keepdims", keepdims))


def max(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Largest element (NaN if any is); its gradient is shared evenly among ties. Values alone, as in NumPy."""
    return max_op(x, axes=checks.axes("max", axis, x.ndim), keepdims=checks.flag("max: keepdims", keepdims))


def min(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Smallest element (NaN if any is); its gradient is shared evenly among ties. Values alone, as in NumPy."""
    return min_op(x, axes=checks.axes("min", axis, x.ndim), keepdims=checks.flag("min: keepdims", keepdims))


@method
def argmax(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """int64 index of the first largest element along one axis, or in the flattened tensor."""
    axes = one_axis("argmax", axis, x.ndim)
    return argmax_op(x, axes=axes, keepdims=checks.flag("argmax: keepdims", keepdims))


def one_axis(name: str, axis: int | None, ndim: int) -> tuple[int, ...]:
    """The axis, or all of them for None."""
    if isinstance(axis, tuple | list):
        checks.refuse(name, "one axis or None", axis, IndexOutOfRangeError)
    return checks.axes(name, axis, ndim)


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Number of elements that a reduction over `axes` folds into one."""
    return math.prod([shape[i] for i in axes])


@method
def mean(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean, in x's float dtype (float32 for integers)."""
    axes, keepdims = checks.axes("mean", axis, x.ndim), checks.flag("mean: keepdims", keepdims)
    if x.dtype in FLOATS:
        return mean_op(x, axes=axes, keepdims=keepdims)
    if x.dtype.itemsize < 8:  # their sum is exact
        return sum_op(x, axes=axes, keepdims=keepdims) / _count(x.shape, axes)
    return mean_op(x.astype(np.float64), axes=axes, keepdims=keepdims).astype(np.float32)  # theirs may not fit


def var(x: Tensor, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """Mean squared distance from the mean, divided by n - ddof (0 by default, as in NumPy; PyTorch's is 1)."""
    return _variance("var", x, axis, keepdims, ddof)


def _deviation_vjp(g, y, x):
    flat = y == 0
    return where_op(flat, 0.0, g * 0.5 / where_op(flat, 1.0, y))


deviation = define("deviation", sqrt.forward, _deviation_vjp, floating=True)  # a sqrt that is flat at 0


def std(x: Tensor, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """Square root of the variance; its gradient is 0 where all elements are equal (as in PyTorch)."""
    return deviation(_variance("std", x, axis, keepdims, ddof))


def _variance(name: str, x: Tensor, axis: Any, keepdims: bool, ddof: int) -> Tensor:
    axes, keepdims = checks.axes(name, axis, x.ndim), checks.flag(f"{name}: keepdims", keepdims)
    count = _count(x.shape, axes) - checks.integer(f"{name}: ddof", ddof, 0)
    d = x - mean(x, axes, keepdims=True)
    return sum(d * d, axes, keepdims) / builtins.max(count, 0)


# --- standardization over the middle axis of (outer, n, inner): layer norm's rows, batch norm's columns --------------


def _standardize(device, *arrays, eps):
    out = device.empty(arrays[0].shape, arrays[0].dtype)
    name = ("standardize", "standardize_grad")[len(arrays) - 1]
    getattr(device, name)(*(contiguous(device, x) for x in arrays), out, eps)
    return out


def standardize_grad_vjp_x(h, z, g, x, eps):
    """With y = standardize(x), r = 1 / sqrt(variance + eps), m the mean: z = r * (g - m(g) - y * m(g * y)).

    So <h, z> = n r (m(h g) - m(h) m(g) - s t) with s = m(g y), t = m(h y); r' = -r**2 y / n; s' = z / n, t' alike.
    """
    y, d = standardize(x, eps), x - mean(x, 1, True)
    r = 1.0 / sqrt(mean(d * d, 1, True) + eps)
    s, t = mean(g * y, 1, True), mean(h * y, 1, True)
    bracket = mean(h * g, 1, True) - mean(h, 1, True) * mean(g, 1, True) - s * t
    return -r * r * y * bracket - r * (standardize_grad(g, x, eps=eps) * t + s * standardize_grad(h, x, eps=eps))


standardize_op = define(
    "standardize", _standardize, lambda g, y, x, eps: standardize_grad(g, x, eps=eps), floating=True
)
standardize_grad = define(
    "standardize_grad",
    _standardize,
    lambda h, z, g, x, eps: standardize_grad(h, x, eps=eps),  # as a function of g it is its own transpose
    standardize_grad_vjp_x,
)


def standardize(x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the middle axis of x (outer, n, inner), n >= 1."""
    return standardize_op(x, eps=float(eps))


# --- row softmax: the same view with axes last, so each kernel sees (rows, n) ------------------------------------


def _rows(device, x):
    return contiguous(device, x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _row_op(name: str, keep: bool):
    def forward(device, *arrays):
        rows = [_rows(device, a) for a in arrays]
        out = device.empty(rows[0].shape if keep else rows[0].shape[:1], arrays[0].dtype)
        getattr(device, name)(*rows, out)
        return out.reshape(arrays[0].shape if keep else arrays[0].shape[:-1])

    return forward


softmax_op = define("softmax", _row_op("softmax", True), lambda g, y, x: softmax_grad(g, y), floating=True)
softmax_grad = define(
    "softmax_grad",
    _row_op("softmax_grad", True),
    lambda h, z, g, y: softmax_grad(h, y),
    lambda h, z, g, y: h * (g - sum(g * y, -1, True)) - g * sum(h * y, -1, True),
)
log_softmax_op = define(
    "log_softmax",
    _row_op("log_softmax", True),
    lambda g, y, x: g - exp(y) * sum(g, -1, True),
    floating=True,
)
logsumexp_op = define(
    "logsumexp",
    _row_op("logsumexp", False),
    lambda g, y, x: reshape_op(g, shape=(*g.shape, 1)) * softmax_op(x),
    floating=True,
)


def last_axis(name: str, function: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """A function of the last axis that keeps the shape, over any one axis; a number is a row of one element."""
    axis = checks.axis(name, axis, x.ndim)
    if x.ndim == 0:
        return reshape_op(function(reshape_op(x, shape=(1,))), shape=())
    if axis == x.ndim - 1:
        return function(x)
    return function(x.transpose(axis, -1)).transpose(axis, -1)


def _normalized(name: str, op: Op, x: Tensor, axis: int) -> Tensor:
    """A row op along an axis; of no elements it is as empty."""
    return last_axis(name, lambda rows: op(rows) if rows.shape[-1] else rows * 1.0, x, axis)


def rows_of(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """x with these axes as one, the last."""
    rest = [i for i in range(x.ndim) if i not in axes]
    return x.permute(*rest, *axes).reshape([x.shape[i] for i in rest] + [_count(x.shape, axes)])


@method
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along one axis, shifted by the maximum so that nothing overflows."""
    return _normalized("softmax", softmax_op, x, axis)


@method
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """log(softmax(x)) along one axis, without the loss of digits of taking the log afterwards."""
    return _normalized("log_softmax", log_softmax_op, x, axis)


@method
def logsumexp(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, shifted by the maximum so that nothing overflows."""
    axes, keepdims = checks.axes("logsumexp", axis, x.ndim), checks.flag("logsumexp: keepdims", keepdims)
    not_empty("logsumexp", x.shape, axes)
    y = logsumexp_op(rows_of(x, axes))
    return reshape_op(y, shape=kept_shape(x.shape, axes)) if keepdims else y
