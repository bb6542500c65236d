"""What is done along axes by compositions of other ops: products, running sums, orders, extrema with their places.

A product folds halves onto each other and a running sum adds shifted copies, so log2(n) ops do it, and gradients of any
order are right also where a factor is 0. Only `argsort` has a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..words import two_meanings
from . import reductions
from .elementwise import maximum, minimum, where_op
from .elementwise import pow as power
from .movement import cat, getitem, reshape_op, unsqueeze
from .operands import FLOATS, TensorBase
from .reductions import argmax_op, deviation, kept_shape, last_axis, not_empty, rows_of, sum
from .shapes import clone, constant, flip, take_along
from .table import METHODS, Tensor, contiguous, define, method


class Found(NamedTuple):
    """What PyTorch's max, min, sort and topk return: the values, and where along the axis they stood (int64)."""

    values: Tensor
    indices: Tensor


def _integral(x: Tensor) -> Tensor:
    """Booleans and small integers as int64, as sums and products of them are; others as they are."""
    return x if x.dtype in FLOATS else x.astype(np.int64)


# --- reductions ------------------------------------------------------------------------------------------------------


@method
def amax(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Largest element over any axes; its gradient is shared evenly among ties."""
    return reductions.max(x, axis, keepdims)


@method
def amin(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Smallest element over any axes; its gradient is shared evenly among ties."""
    return reductions.min(x, axis, keepdims)


@method
def argmin(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """int64 index of the first smallest element (or NaN) along one axis, or in the flattened tensor."""
    axes = reductions.one_axis("argmin", axis, x.ndim)
    not_empty("argmin", x.shape, axes)
    return argmax_op(_reversed(x), axes=axes, keepdims=checks.flag("argmin: keepdims", keepdims))


def _reversed(x: Tensor) -> Tensor:
    """Numbers in the opposite order, without overflow."""
    if x.dtype in FLOATS:
        return -x
    return int(np.iinfo(x.dtype).max) - x if x.dtype.kind == "u" else -1 - _numbers(x)


def _numbers(x: Tensor) -> Tensor:
    """Booleans as int64; others as they are."""
    return x.astype(np.int64) if x.dtype.kind == "b" else x


@method
def any(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Is any element other than 0? NaN is. Of no elements none is."""
    return sum(x != _zero(x), axis, keepdims) > 0


@method
def all(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Are all elements other than 0? NaN is. Of no elements all are."""
    return sum(x == _zero(x), axis, keepdims) == 0


def _zero(x: Tensor) -> Any:
    return constant(x, np.array(False)) if x.dtype.kind == "b" else 0


@method
def prod(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Product of elements, 1 of none; integers and booleans are multiplied as int64.

    Halves are multiplied first: they may overflow, or become 0, where the whole product does not.
    """
    axes, keepdims = checks.axes("prod", axis, x.ndim), checks.flag("prod: keepdims", keepdims)
    y = rows_of(_integral(x), axes)
    n = y.shape[-1]
    if n == 0:
        y = unsqueeze(sum(y, -1), -1) + 1
    while n > 1:
        half, rest = n // 2, y[..., 2 * (n // 2) :]
        y = y[..., :half] * y[..., half : 2 * half]
        y = cat([y, rest], -1) if n % 2 else y
        n -= half
    shape = kept_shape(x.shape, axes) if keepdims else tuple([n for i, n in enumerate(x.shape) if i not in axes])
    return reshape_op(clone(y), shape=shape)


@method
def norm(x: Tensor, p: Any = 2, axis: Any = None, keepdims: bool = False) -> Tensor:
    """(sum of |x|**p) ** (1 / p) over axes (None: of all elements); p > 0, "fro" for 2, or infinity for the largest.

    Its gradient is 0 where all elements are 0, as in PyTorch. Squares of very large elements overflow, as in NumPy.
    """
    size = abs(x * 1.0)
    if checks.is_number(p) and p == math.inf:
        return reductions.max(size, axis, keepdims)
    order = 2.0 if isinstance(p, str) and p == "fro" else checks.number("norm: p", p, "(0, inf)")
    if order == 1:
        return sum(size, axis, keepdims)
    if order == 2:
        return deviation(sum(size * size, axis, keepdims))
    total = sum(size**order, axis, keepdims)
    return where_op(total == 0, 0.0, power(where_op(total == 0, 1.0, total), 1 / order))


# --- running sums and products ---------------------------------------------------------------------------------------


def _scan(x: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Along the last axis: element i becomes the combination of elements 0 to i (Hillis and Steele 1986)."""
    y, shift = clone(_integral(x)), 1
    while shift < x.shape[-1]:
        y = cat([y[..., :shift], combine(y[..., shift:], y[..., :-shift])], -1)
        shift *= 2
    return y


@method
def cumsum(x: Tensor, axis: int) -> Tensor:
    """Sums of the elements up to each one along an axis; integers and booleans as int64."""
    return last_axis("cumsum", lambda rows: _scan(rows, lambda a, b: a + b), x, axis)


@method
def cumprod(x: Tensor, axis: int) -> Tensor:
    """Products of the elements up to each one along an axis; integers and booleans as int64.

    Parts are multiplied first: they may overflow, or become 0, where a product from the left does not.
    """
    return last_axis("cumprod", lambda rows: _scan(rows, lambda a, b: a * b), x, axis)


# --- order -----------------------------------------------------------------------------------------------------------


def _argsort(device, x):
    out = device.empty(x.shape, np.int64)
    device.argsort(contiguous(device, x), out)
    return out


argsort_op = define("argsort", _argsort, None)  # of rows (rows, n)


def _order(x: Tensor, descending: bool) -> Tensor:
    """argsort_op along the last axis, downwards if so wished: equal elements keep their order."""
    rows = reshape_op(_numbers(x), shape=(math.prod(x.shape[:-1]), x.shape[-1]))
    y = x.shape[-1] - 1 - flip(argsort_op(flip(rows, 1)), 1) if descending else argsort_op(rows)
    return reshape_op(y, shape=x.shape)


@method
def argsort(x: Tensor, axis: int = -1, descending: bool = False) -> Tensor:
    """int64 positions that sort along an axis; equal elements keep their order, NaN counts as the largest."""
    descending = checks.flag("argsort: descending", descending)
    return last_axis("argsort", lambda rows: _order(rows, descending), x, axis)


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> Found:
    """(values, indices) in ascending or descending order along an axis: `argsort` and what stands there.

    With NumPy's word, sort(axis=...), the values alone.
    """
    indices = argsort(x, dim, descending)
    return Found(_at(x, indices, dim), indices)


def _at(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return take_along(x, indices, axis % x.ndim) if x.ndim else clone(x)


@method
def topk(x: Tensor, k: int, axis: int = -1, largest: bool = True) -> Found:
    """(values, indices) of the k largest (or smallest) along an axis, the first of them first; of equals the first."""
    n = (x.shape or (1,))[checks.axis("topk", axis, x.ndim)]
    k = checks.integer("topk: k", k, 0, n)
    if not x.ndim:
        return Found(clone(x), argsort(x))
    indices = argsort(x, axis, checks.flag("topk: largest", largest))
    axis = axis % x.ndim
    indices = clone(getitem(indices, key=((slice(None),) * axis + (slice(k), ...))))
    return Found(take_along(x, indices, axis), indices)


# --- functions of two meanings ---------------------------------------------------------------------------------------


def _extremum(name: str, ordered: Callable[[Tensor], Tensor], of_two: Callable[[Tensor, Tensor], Tensor]):
    numpys = getattr(reductions, name)

    def extremum(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor | Found:
        if isinstance(dim, TensorBase):
            return of_two(x, dim)
        keepdim = checks.flag(f"{name}: keepdim", keepdim)
        if dim is None:
            return numpys(x, None, keepdim)
        axes = reductions.one_axis(name, dim, x.ndim)
        not_empty(name, x.shape, axes)
        places = argmax_op(ordered(x), axes=axes, keepdims=True)
        values = take_along(x, places, axes[0]) if x.ndim else clone(x)
        shape = x.shape if not x.ndim else kept_shape(x.shape, axes)
        shape = shape if keepdim else tuple([n for i, n in enumerate(x.shape) if i not in axes])
        return Found(reshape_op(values, shape=shape), reshape_op(places, shape=shape))

    word = {"max": "Largest", "min": "Smallest"}[name]
    extremum.__name__ = extremum.__qualname__ = name
    extremum.__doc__ = f"""{word} element (NaN if any is); its gradient is shared evenly among ties.

    With an axis: (values, indices) along it, the first of ties, which takes the gradient. With NumPy's words, axis= or
    keepdims=, values alone, over any axes. With another tensor: `{name}imum`.
    """
    return two_meanings(numpys, extremum)


def _spread(name: str):
    numpys = getattr(reductions, name)

    def spread(
        x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: int = 1
    ) -> Tensor:
        if isinstance(dim, bool):  # PyTorch's other order, of all elements
            dim, unbiased = None, dim
        if unbiased is not None:
            correction = int(checks.flag(f"{name}: unbiased", unbiased))
        return numpys(x, dim, keepdim, correction)

    what = {"var": "Squared distances from the mean, summed and", "std": "Square root of the variance, which is"}[name]
    spread.__name__ = spread.__qualname__ = name
    spread.__doc__ = f"""{what} divided by n - correction: by n - 1 unless asked otherwise, as in PyTorch.

    With NumPy's words, axis=, keepdims= or ddof=, divided by n - ddof, where ddof is 0, as in NumPy.
    """
    return two_meanings(numpys, spread)


METHODS["max"] = _extremum("max", _numbers, maximum)
METHODS["min"] = _extremum("min", _reversed, minimum)
METHODS |= {name: _spread(name) for name in ("var", "std")}


def _sorted(x: Tensor, axis: int = -1) -> Tensor:
    """The values in ascending order along an axis."""
    return sort(x, axis).values


METHODS["sort"] = two_meanings(_sorted, sort)
