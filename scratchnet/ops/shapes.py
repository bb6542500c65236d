"""Shapes by the words of PyTorch: compositions of the ops of movement.py, so there is no kernel and no row here.

Views share memory (view, flatten where it can, expand, split, swapaxes, diagonal); flip, roll, repeat and clone copy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import checks
from ..errors import ShapeError
from .elementwise import cast, where
from .movement import (
    broadcast_to,
    broadcast_to_op,
    cat,
    checked_index,
    getitem,
    integers,
    permute_op,
    reshape,
    reshape_op,
    take_rows,
    transpose,
)
from .operands import ArrayLike, TensorBase, as_operand
from .table import Tensor, method

# --- views -------------------------------------------------------------------------------------------------------


@method
def numel(x: Tensor) -> int:
    """Number of elements."""
    return math.prod(x.shape)


@method
def ravel(x: Tensor) -> Tensor:
    """All elements in one row; a view where NumPy can give one."""
    return reshape_op(x, shape=(math.prod(x.shape),))


@method
def view(x: Tensor, *shape: Any) -> Tensor:
    """The same memory in another shape; one length may be -1. Raises ShapeError where that would need a copy."""
    y = reshape(x, *shape)
    if math.prod(y.shape) and not _is_view(x, y):
        raise ShapeError(f"view: expected memory that lies in the order of {y.shape}, got a permuted one; use .reshape")
    return y


def _is_view(x: Tensor, y: Tensor) -> bool:
    """Is y, of another shape, in the memory of x? On the host x alone says so: in a pipeline y may come from others."""
    if not isinstance(x._data, np.ndarray):
        own, other = (np.asarray(t._data.span[0].address) for t in (x, y))
        return np.may_share_memory(own, other)
    try:
        np.reshape(x._data, y.shape, copy=False)
    except ValueError:
        return False
    return True


@method
def view_as(x: Tensor, other: Tensor) -> Tensor:
    """As `view`, in the shape of another tensor."""
    return view(x, *_shape_of("view_as", other))


@method
def reshape_as(x: Tensor, other: Tensor) -> Tensor:
    """As `reshape`, in the shape of another tensor."""
    return reshape(x, *_shape_of("reshape_as", other))


@method
def expand_as(x: Tensor, other: Tensor) -> Tensor:
    """As `expand`, to the shape of another tensor."""
    return broadcast_to(x, *_shape_of("expand_as", other))


def _shape_of(name: str, other: Any) -> tuple[int, ...]:
    return checks.instance(name, other, TensorBase, "a tensor").shape  # type: ignore[no-any-return]


@method
def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from start_dim to end_dim as one; a number becomes a vector of one element."""
    start, end = checks.axis("flatten", start_dim, x.ndim), checks.axis("flatten", end_dim, x.ndim)
    if start > end:
        raise ShapeError(f"flatten: expected start_dim <= end_dim, got {start_dim} and {end_dim}")
    return reshape_op(x, shape=(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


@method
def unflatten(x: Tensor, axis: int, sizes: Any) -> Tensor:
    """One axis as several, of these lengths; one of them may be -1."""
    axis = checks.axis("unflatten", axis, x.ndim)
    shape, n = integers("unflatten: a length", (sizes,)), (x.shape or (1,))[axis]
    known = math.prod(m for m in shape if m != -1)
    if shape.count(-1) == 1 and known and n % known == 0:
        shape = tuple(n // known if m == -1 else m for m in shape)
    if min(shape, default=0) < 0 or math.prod(shape) != n:
        raise ShapeError(f"unflatten: expected lengths whose product is {n}, got {shape}")
    return reshape_op(x, shape=(*x.shape[:axis], *shape, *x.shape[axis + 1 :]))


@method
def expand(x: Tensor, *sizes: Any) -> Tensor:
    """Repeated along axes of length 1 and along new leading axes, a view; -1 keeps a length."""
    shape = integers("expand: a length", sizes)
    own = (-1,) * (len(shape) - x.ndim) + x.shape
    return broadcast_to(x, *[m if n == -1 and m != -1 else n for n, m in zip(shape, own, strict=False)])


@method
def swapaxes(x: Tensor, a: int, b: int) -> Tensor:
    """Two axes exchanged, a view: another name of `transpose`."""
    return transpose(x, a, b)


@method
def movedim(x: Tensor, source: int, destination: int) -> Tensor:
    """One axis at another place, the others in their order; a view."""
    source, destination = (checks.axis("movedim", a, x.ndim) for a in (source, destination))
    axes = [i for i in range(x.ndim) if i != source]
    axes.insert(destination, source)
    return permute_op(x, axes=tuple(axes[: x.ndim]))


@method
def t(x: Tensor) -> Tensor:
    """A matrix transposed, a view; a vector or a number as it is."""
    if x.ndim > 2:
        raise ShapeError(f"t: expected at most two dimensions, got shape {x.shape}; use .transpose(a, b)")
    return permute_op(x, axes=tuple(range(x.ndim))[::-1])


@method
def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements (i, i + offset) of two axes, as the last axis; a view where the two can be one without a copy."""
    if x.ndim < 2:
        raise ShapeError(f"diagonal: expected at least two dimensions, got shape {x.shape}")
    offset = checks.integer("diagonal: offset", offset, -(2**48), 2**48)
    first, second = (checks.axis("diagonal", a, x.ndim) for a in (dim1, dim2))
    if first == second:
        raise ShapeError(f"diagonal: expected two axes, got {dim1} and {dim2}")
    if first > second:
        first, second, offset = second, first, -offset
    rows, columns = x.shape[first], x.shape[second]
    x = movedim(x, second, first + 1)
    x = reshape_op(x, shape=(*x.shape[:first], rows * columns, *x.shape[first + 2 :]))
    start = offset if offset >= 0 else -offset * columns
    n = max(min(rows + min(offset, 0), columns - max(offset, 0)), 0)
    own = slice(start, start + (n - 1) * (columns + 1) + 1, columns + 1) if n else slice(0)
    return movedim(getitem(x, key=(slice(None),) * first + (own,)), first, -1)


def _axis_of(name: str, x: Tensor, axis: int) -> int:
    """The axis, counted from the front, of a tensor that has one: a number has no parts."""
    if not x.ndim:
        raise ShapeError(f"{name}: expected at least one dimension, got shape ()")
    return checks.axis(name, axis, x.ndim)


@method
def split(x: Tensor, sizes: Any, axis: int = 0) -> tuple[Tensor, ...]:
    """Views along an axis: pieces of one length, of which the last may be shorter, or of each of a list of lengths."""
    axis = _axis_of("split", x, axis)
    n = x.shape[axis]
    if isinstance(sizes, tuple | list):
        lengths = integers("split: a length", (sizes,))
        if min(lengths, default=0) < 0 or sum(lengths) != n:
            raise ShapeError(f"split: expected lengths whose sum is {n}, got {lengths}")
    else:
        size = checks.integer("split", sizes, 1, error=ShapeError)
        lengths = tuple([min(size, n - start) for start in range(0, n, size)]) or (0,)
    starts = np.cumsum((0, *lengths)).tolist()
    keys = [slice(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    return tuple([getitem(x, key=((slice(None),) * axis + (key, ...))) for key in keys])


@method
def chunk(x: Tensor, chunks: int, axis: int = 0) -> tuple[Tensor, ...]:
    """At most so many views of one length along an axis; the last may be shorter."""
    n = x.shape[_axis_of("chunk", x, axis)]
    return split(x, max(-(-n // checks.integer("chunk", chunks, 1)), 1), axis)


@method
def unbind(x: Tensor, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices along an axis, without it; views."""
    axis = _axis_of("unbind", x, axis)
    return tuple([getitem(x, key=((slice(None),) * axis + (i, ...))) for i in range(x.shape[axis])])


# --- copies ------------------------------------------------------------------------------------------------------


@method
def clone(x: Tensor) -> Tensor:
    """A copy in memory of its own; gradients pass through."""
    return cast(x, dtype=x.dtype)


@method
def contiguous(x: Tensor) -> Tensor:
    """This tensor itself if its elements lie in C order without gaps, else a copy that does."""
    return x if x._data.flags.c_contiguous else clone(x)


@method
def flip(x: Tensor, dims: Any = None, *more: int) -> Tensor:
    """A copy in reverse order along some axes (None: all)."""
    axes = checks.axes("flip", (dims, *more) if more else dims, x.ndim)
    key = tuple([slice(None, None, -1) if i in axes else slice(None) for i in range(x.ndim)])
    return clone(getitem(x, key=(*key, ...)))


@method
def roll(x: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """A copy whose elements are shifted along axes, those from the end to the front; without axes as one long row."""
    if dims is None:
        return reshape_op(roll(reshape_op(x, shape=(math.prod(x.shape),)), shifts, 0), shape=x.shape)
    steps, axes = integers("roll: a shift", (shifts,)), dims if isinstance(dims, tuple | list) else (dims,)
    if len(steps) != len(axes):
        raise ShapeError(f"roll: expected one shift for each axis, got {len(steps)} for {len(axes)}")
    x = clone(x)
    for step, a in zip(steps, axes, strict=True):
        axis = checks.axis("roll", a, x.ndim)
        at = -step % max(x.shape[axis], 1) if x.ndim else 0
        if at:
            parts = slice(at, None), slice(at)
            x = cat([getitem(x, key=((slice(None),) * axis + (part, ...))) for part in parts], axis)
    return x


@method
def repeat(x: Tensor, *sizes: Any) -> Tensor:
    """A copy that holds x so many times along each axis; sizes for new leading axes come first."""
    counts = checks.lengths("repeat", integers("repeat: a count", sizes))
    if len(counts) < x.ndim:
        raise ShapeError(f"repeat: expected at least {x.ndim} counts, got {counts}")
    shape = (1,) * (len(counts) - x.ndim) + x.shape
    column = reshape_op(x, shape=tuple([m for n in shape for m in (1, n)]))
    whole = broadcast_to_op(column, shape=tuple([m for k, n in zip(counts, shape, strict=True) for m in (k, n)]))
    return reshape_op(clone(whole), shape=tuple([k * n for k, n in zip(counts, shape, strict=True)]))


@method
def tile(x: Tensor, *sizes: Any) -> Tensor:
    """As `repeat`; missing counts are 1."""
    counts = integers("tile: a count", sizes)
    return repeat(x, *(1,) * (x.ndim - len(counts)), *counts)


@method
def repeat_interleave(x: Tensor, repeats: int, axis: int | None = None) -> Tensor:
    """A copy with each element so many times in a row along an axis (None: of all elements in one row)."""
    repeats = checks.integer("repeat_interleave: repeats", repeats, 0, 2**48)
    if axis is None:
        x, axis = reshape_op(x, shape=(math.prod(x.shape),)), 0
    axis = checks.axis("repeat_interleave", axis, x.ndim)
    before, n, after = x.shape[:axis], (x.shape or (1,))[axis], x.shape[axis + 1 :]
    whole = broadcast_to_op(reshape_op(x, shape=(*before, n, 1, *after)), shape=(*before, n, repeats, *after))
    return reshape_op(clone(whole), shape=(*before, n * repeats, *after))


# --- parts of matrices -----------------------------------------------------------------------------------------------


def constant(x: Tensor, array: Any) -> Tensor:
    """An array of the host as a tensor on the device of x."""
    return x._wrap(x._device.from_host(array), x._device)


def _part(name: str, x: Tensor, diagonal: int, is_lower: bool) -> Tensor:
    if x.ndim < 2:
        raise ShapeError(f"{name}: expected at least two dimensions, got shape {x.shape}")
    diagonal = checks.integer(f"{name}: diagonal", diagonal, -(2**48), 2**48)
    rows, columns = x.shape[-2:]
    below = np.tri(rows, columns, diagonal if is_lower else diagonal - 1, bool)
    zero = as_operand(0, x) if x.dtype.kind != "b" else constant(x, np.array(False))
    return where(constant(x, below if is_lower else ~below), x, zero)


@method
def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two axes, 0 elsewhere; diagonal: how many diagonals above the main one belong."""
    return _part("tril", x, diagonal, True)


@method
def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two axes, 0 elsewhere; diagonal: the first diagonal that belongs to it."""
    return _part("triu", x, diagonal, False)


@method
def diag(x: Tensor) -> Tensor:
    """The diagonal of a matrix, or the matrix with this diagonal and 0 elsewhere."""
    if x.ndim == 2:
        return clone(diagonal(x))
    if x.ndim != 1:
        raise ShapeError(f"diag: expected one or two dimensions, got shape {x.shape}")
    n = x.shape[0]
    return tril(triu(broadcast_to_op(x, shape=(n, n))))


# --- elements by number ----------------------------------------------------------------------------------------------


def row_numbers(name: str, index: ArrayLike, n: int, x: Tensor) -> Tensor:
    """The numbers as an int64 tensor on the device of x. Raises IndexOutOfRangeError outside [0, n), DtypeError."""
    return as_operand(checked_index(name, index, n, from_end=False), x)


def _given(name: str, index: ArrayLike, x: Tensor) -> Tensor:
    """Numbers of elements as a tensor."""
    return index if isinstance(index, TensorBase) else constant(x, checks.array(name, index))


@method
def index_select(x: Tensor, axis: int, index: ArrayLike) -> Tensor:
    """The slices of an axis with these numbers, a vector of integers."""
    axis, index = checks.axis("index_select", axis, x.ndim), _given("index_select", index, x)
    if not x.ndim or index.ndim > 1:
        raise ShapeError(f"index_select: expected a vector of numbers, got shape {index.shape} for {x.shape}")
    numbers = row_numbers("index_select", index, x.shape[axis], x)
    return transpose(take_rows(transpose(x, 0, axis), reshape_op(numbers, shape=(math.prod(numbers.shape),))), 0, axis)


def take_along(x: Tensor, numbers: Tensor, axis: int) -> Tensor:
    """y[i, j, k] = x[i, numbers[i, j, k], k] for axis 1: numbers int64 in [0, n), no longer than x on other axes."""
    strides = [math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]
    at = numbers * strides[axis]
    for i, n in enumerate(numbers.shape):
        if i != axis and n > 1:
            along = [1] * i + [n] + [1] * (x.ndim - i - 1)
            at = at + constant(x, (np.arange(n) * strides[i]).reshape(along))
    return take_rows(reshape_op(x, shape=(math.prod(x.shape),)), at)


@method
def gather(x: Tensor, axis: int, index: ArrayLike) -> Tensor:
    """y[i, j] = x[index[i, j], j] along axis 0, x[i, index[i, j]] along axis 1: y has the shape of index."""
    axis = checks.axis("gather", axis, x.ndim)
    index = _given("gather", index, x)
    shape = index.shape
    if len(shape) != x.ndim or any(m > n for i, (m, n) in enumerate(zip(shape, x.shape, strict=True)) if i != axis):
        raise ShapeError(f"gather: expected an index no longer than {x.shape} but along {axis}, got shape {shape}")
    numbers = row_numbers("gather", index, (x.shape or (1,))[axis], x)
    return take_along(x, numbers, axis) if x.ndim else clone(x)
