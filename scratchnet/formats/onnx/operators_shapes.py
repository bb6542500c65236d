"""Operators of ONNX that move elements, and those that compute with shapes; see operators.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import functions as sn
from ...errors import CheckpointError
from ...tensor import FLOATS, as_tensor
from .operators import axis_of, dtype_of, ints, number, only, operator, room


@operator("Shape")
def shape(x, *, start=0, end=None):
    return np.array(x.shape[start:end], np.int64)


@operator("Size")
def size(x):
    return np.array(math.prod(x.shape), np.int64)


@operator("Constant")
def constant(*, value=None, value_float=None, value_floats=None, value_int=None, value_ints=None):
    if value is not None:
        return value
    given = [
        (x, dtype)
        for x, dtype in (
            (value_float, np.float32),
            (value_floats, np.float32),
            (value_int, np.int64),
            (value_ints, np.int64),
        )
        if x is not None
    ]
    if len(given) != 1:
        raise CheckpointError(f"expected a constant of one value, found {len(given)}")
    return np.array(*given[0])


@operator("ConstantOfShape")
def constant_of_shape(shape, *, value=None):
    value = np.zeros(1, np.float32) if value is None else value
    return np.full(room(*ints("lengths", shape)), number("a value", value), value.dtype)


@operator("Range")
def arange(start, limit, delta):
    first, last, step = number("a start", start), number("a limit", limit), number("a step", delta)
    if not step:
        raise CheckpointError("expected a step other than 0, found 0")
    room(max(math.ceil((last - first) / step), 0))
    return np.arange(first, last, step).astype(start.dtype)


@operator("Reshape")
def reshape(x, shape, *, allowzero=0):
    x, given = as_tensor(x), ints("lengths", shape)
    if not allowzero:
        if any(n == 0 and i >= x.ndim for i, n in enumerate(given)):
            raise CheckpointError(f"expected lengths for {x.shape}, found {given}")
        given = [x.shape[i] if n == 0 else n for i, n in enumerate(given)]
    return x.reshape(given)


@operator("Transpose")
def transpose(x, *, perm=None):
    x = as_tensor(x)
    return x.permute(*(range(x.ndim)[::-1] if perm is None else perm))


@operator("Squeeze")
def squeeze(x, axes=None):
    x = as_tensor(x)
    given = None if axes is None else ints("axes", axes)
    gone = [i for i, n in enumerate(x.shape) if n == 1] if given is None else [axis_of(a, x.ndim) for a in given]
    if any(x.shape[a] != 1 for a in gone):
        raise CheckpointError(f"expected axes of length 1, found {gone} of the shape {x.shape}")
    return x.reshape([n for i, n in enumerate(x.shape) if i not in gone])


@operator("Unsqueeze")
def unsqueeze(x, axes=None):
    x = as_tensor(x)
    given = [] if axes is None else ints("axes", axes)
    ndim = x.ndim + len(given)
    new = {axis_of(a, ndim) for a in given}
    if len(new) != len(given) or ndim > 32:
        raise CheckpointError(f"expected each new axis once, found {given!r:.60}")
    left = iter(x.shape)
    return x.reshape([1 if i in new else next(left) for i in range(ndim)])


@operator("Concat")
def concat(*x, axis):
    given = [as_tensor(t, *x) for t in x]
    axis = axis_of(axis, given[0].ndim)
    room(sum(math.prod(t.shape) for t in given))
    given = [t for t in given if t.shape != (0,)] or given[:1]  # of no elements, which older files add
    return sn.cat(given, axis)


@operator("Split")
def split(x, split=None, *, outputs, axis=0, num_outputs=None):
    x = as_tensor(x)
    axis = axis_of(axis, x.ndim)
    given = None if split is None else ints("lengths", split)
    if given is None:
        each = -(-x.shape[axis] // (num_outputs or outputs))
        given = [min(each, x.shape[axis] - i * each) for i in range(outputs)]
    return tuple(x.split(given, axis))


@operator("Slice")
def cut(x, starts=None, ends=None, axes=None, steps=None):
    x = as_tensor(x)
    first = None if starts is None else ints("starts", starts)
    last = None if ends is None else ints("ends", ends)
    if first is None or last is None:
        raise CheckpointError("expected starts and ends, found none")
    along = [*range(len(first))] if axes is None else ints("axes", axes)
    by = [1] * len(first) if steps is None else ints("steps", steps)
    key: list[Any] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        axis = axis_of(axis, x.ndim)
        n = x.shape[axis]
        if not step:
            raise CheckpointError("expected steps other than 0, found 0")
        low, high = (0, n) if step > 0 else (-1, n - 1)  # as the specification clamps them, a start to what is there
        start, end = (min(max(p + n if p < 0 else p, least), high) for p, least in ((start, 0), (end, low)))
        key[axis] = slice(start, None if end < 0 else end, step)
    return x[tuple(key)]


@operator("Gather")
def gather(x, index, *, axis=0):
    x = as_tensor(x, index)
    axis, n = axis_of(axis, x.ndim), x.shape[axis]
    room(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    numbers = as_tensor(index, x)
    if isinstance(index, np.ndarray):
        if index.size and not -n <= index.min() <= index.max() < n:
            raise CheckpointError(f"expected positions in [{-n}, {n}), found others")
        numbers = as_tensor(np.where(index < 0, index + n, index).astype(np.int64), x)
    if axis == 0:
        return x[numbers]
    rows = x.index_select(axis, sn.where(numbers < 0, numbers + n, numbers).reshape(-1))
    return rows.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(x, index, *, axis=0):
    x = as_tensor(x, index)
    index = as_tensor(index, x)
    n = x.shape[axis_of(axis, x.ndim)]
    return x.gather(axis, sn.where(index < 0, index + n, index))


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml")
def columns(x, index):
    x = as_tensor(x, index)
    return x.index_select(x.ndim - 1, as_tensor(index, x).reshape(-1)).reshape(*(x.shape[:-1] or (1,)), -1)


@operator("Expand")
def expand(x, shape):
    x = as_tensor(x)
    return x.broadcast_to(room(*np.broadcast_shapes(x.shape, tuple(ints("lengths", shape)))))


@operator("Tile")
def tile(x, repeats):
    x, counts = as_tensor(x), ints("counts", repeats)
    room(*[n * k for n, k in zip(x.shape, counts, strict=True)])
    return x.repeat(counts)


@operator("Pad")
def pad(x, pads=None, value=None, axes=None, *, mode="constant"):
    x = as_tensor(x)
    only("mode", mode, "constant")
    given = None if pads is None else ints("widths", pads)
    along = [*range(x.ndim)] if axes is None else [axis_of(a, x.ndim) for a in ints("axes", axes)]
    if given is None or len(given) != 2 * len(along):
        raise CheckpointError(f"expected two widths for each of {len(along)} axes, found {given!r:.60}")
    widths = [(0, 0)] * x.ndim
    for i, a in enumerate(along):
        widths[a] = given[i], given[i + len(along)]
    key = tuple(slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(x.shape, widths, strict=True))
    x, widths = x[key], [(max(low, 0), max(high, 0)) for low, high in widths]
    room(*[n + low + high for n, (low, high) in zip(x.shape, widths, strict=True)])
    number_ = 0.0 if value is None else number("a value", value)
    return sn.pad(x, widths, x.dtype.type(number_)) if widths else x


@operator("Trilu")
def trilu(x, k=None, *, upper=1):
    x = as_tensor(x)
    diagonal = 0 if k is None else int(number("k", k))
    return x.triu(diagonal) if upper else x.tril(diagonal)


@operator("OneHot")
def one_hot(index, depth, values, *, axis=-1):
    n = int(number("a depth", depth))
    index = as_tensor(index)
    index = index if index.dtype in FLOATS else index.astype(np.int64)
    index = sn.where(index < 0, index + n, index)
    room(*index.shape, n)
    off, on = as_tensor(values)[0], as_tensor(values)[1]
    place = axis_of(axis, index.ndim + 1)
    at = index.unsqueeze(place) == as_tensor(
        np.arange(n).reshape([-1 if i == place else 1 for i in range(index.ndim + 1)])
    )
    return sn.where(at, on, off)


@operator("EyeLike")
def eye_like(x, *, dtype=None, k=0):
    rows, columns = room(*x.shape)
    return np.eye(rows, columns, k).astype(x.dtype if dtype is None else dtype_of(dtype))
