"""Elementwise kernels: four loops, stamped with the scalar functions of scalars.py.

Broadcasting is reduced to two axes before a loop starts, and each operand to two strides: in (row, column) it is read
at row * row stride + column * step. The strides of the whole array are (columns, 1), of one row for all (0, 1), of one
column for all (1, 0), of a scalar (0, 0). What does not fit this pattern is copied to the full shape first.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from ...native.compile import jit
from ...native.loops import constant, ranged
from . import scalars

# ruff: noqa: F821 - bound by each stamp
function: Callable


@jit
def _unary(lo, hi, x, out):
    x, out = x[lo:hi], out[lo:hi]  # slices start at 0: indices that may be negative would not vectorise
    for i in range(out.size):
        out[i] = function(x[i])


@jit
def _clip(lo, hi, x, out, low, high):
    x, out = x[lo:hi], out[lo:hi]
    low, high = out.dtype.type(low), out.dtype.type(high)
    for i in range(out.size):
        out[i] = scalars.clip(x[i], low, high)


@jit
def _binary(lo, hi, a, b, out, layout):
    columns, a_row, a_step, b_row, b_step = layout[0], layout[1], layout[2], layout[3], layout[4]
    row, start = lo // columns, lo % columns
    while lo < hi:
        size = min(columns - start, hi - lo)
        left, right, result = a[row * a_row + start * a_step :], b[row * b_row + start * b_step :], out[lo : lo + size]
        if a_step and b_step:
            for i in range(size):
                result[i] = function(left[i], right[i])
        elif a_step:
            scalar = right[0]
            for i in range(size):
                result[i] = function(left[i], scalar)
        else:
            scalar = left[0]
            for i in range(size):
                result[i] = function(scalar, right[i])
        row, start, lo = row + 1, 0, lo + size


@jit
def _where(lo, hi, condition, a, b, out, layout):
    columns, c_row, c_step = layout[0], layout[1], layout[2]
    a_row, a_step, b_row, b_step = layout[3], layout[4], layout[5], layout[6]
    row, start = lo // columns, lo % columns
    while lo < hi:
        size = min(columns - start, hi - lo)
        test, result = condition[row * c_row + start * c_step :], out[lo : lo + size]
        yes, no = a[row * a_row + start * a_step :], b[row * b_row + start * b_step :]
        if c_step and a_step and b_step:
            for i in range(size):
                result[i] = yes[i] if test[i] else no[i]
        elif c_step and a_step:
            other = no[0]
            for i in range(size):
                result[i] = yes[i] if test[i] else other
        elif c_step and b_step:
            one = yes[0]
            for i in range(size):
                result[i] = one if test[i] else no[i]
        else:
            for i in range(size):
                result[i] = yes[i * a_step] if test[i * c_step] else no[i * b_step]
        row, start, lo = row + 1, 0, lo + size


# --- broadcasting as strides ------------------------------------------------------------------------------------------

_ENDLESS = 2**62  # columns, where one row is all there is
_FLAT = {count: constant(np.array([_ENDLESS] + [0, 1] * count)) for count in (2, 3)}
_ONE_ROW = {  # full or scalar
    (i, j): constant(np.array([_ENDLESS, 0, i, 0, j])) for i in (True, False) for j in (True, False)
}


@cache
def _layout(shape, *operands):
    """[columns, a's row stride, a's step, b's row stride, ...] to read the shapes `operands` as `shape`, or None."""
    padded = [(1,) * (len(shape) - len(operand)) + operand for operand in operands]
    groups: list[tuple[tuple[bool, ...], int]] = []  # neighbouring axes along which the same operands repeat are one
    for axis, size in enumerate(shape):
        varies = tuple(operand[axis] == size for operand in padded)
        if size != 1 and groups and groups[-1][0] == varies:
            groups[-1] = varies, groups[-1][1] * size
        elif size != 1:
            groups.append((varies, size))
    if len(groups) > 2 or (groups and not any(groups[-1][0])):
        return None
    repeated = (False,) * len(operands), 1
    along, columns = groups.pop() if groups else repeated
    down, _ = groups.pop() if groups else repeated
    strides = [(row * (columns if step else 1), step) for row, step in zip(down, along, strict=True)]
    return constant(np.array([max(columns, 1), *(stride for pair in strides for stride in pair)], np.int64))


# --- kernels ----------------------------------------------------------------------------------------------------------


# Light operations that one element takes (native/loops.py), where it takes more than one.
_WEIGHTS = {
    "pow": 32,
    **dict.fromkeys(("erf", "gelu", "gelu_grad"), 16),
    **dict.fromkeys(("exp", "tanh", "sigmoid", "log", "softplus"), 8),
    **dict.fromkeys(("sqrt", "div"), 4),
}


def unary(name, function):
    """The kernel (x, out) that applies a scalar function."""
    run = ranged(_unary, name, writes=(1,), weight=_WEIGHTS.get(name, 1), function=function)

    def kernel(x, out):
        if x.size != out.size:
            x = np.broadcast_to(x, out.shape)
        run(out.size, 1, x.ravel(), out.ravel())

    return kernel


def binary(name, function):
    """The kernel (a, b, out) that applies a scalar function of two numbers."""
    run = ranged(_binary, name, writes=(2,), weight=_WEIGHTS.get(name, 1), function=function)

    def kernel(a, b, out):
        size = out.size
        a_full, b_full = a.size == size, b.size == size
        if (a_full and b_full) or (a_full and b.size == 1) or (b_full and a.size == 1):
            run(size, 1, a.ravel(), b.ravel(), out.ravel(), _ONE_ROW[a_full, b_full])
        else:
            layout = _layout(out.shape, a.shape, b.shape)
            if layout is None:
                a, b, layout = np.broadcast_to(a, out.shape), np.broadcast_to(b, out.shape), _FLAT[2]
            run(size, 1, a.ravel(), b.ravel(), out.ravel(), layout)

    return kernel


_run_clip = ranged(_clip, "clip", writes=(1,))
_run_where = ranged(_where, "where", writes=(3,))


def clip(x, out, low, high):
    if x.size != out.size:
        x = np.broadcast_to(x, out.shape)
    low, high = -np.inf if low is None else float(low), np.inf if high is None else float(high)
    _run_clip(out.size, 1, x.ravel(), out.ravel(), low, high)


def where(condition, a, b, out):
    layout = _layout(out.shape, condition.shape, a.shape, b.shape)
    if layout is None:
        condition, a, b = (np.broadcast_to(x, out.shape) for x in (condition, a, b))
        layout = _FLAT[3]
    _run_where(out.size, 1, condition.ravel(), a.ravel(), b.ravel(), out.ravel(), layout)


UNARY = {
    "neg": scalars.neg,
    "exp": scalars.exp,
    "log": scalars.log,
    "sqrt": scalars.sqrt,
    "abs": scalars.absolute,
    "sign": scalars.sign,
    "tanh": scalars.tanh,
    "sigmoid": scalars.sigmoid,
    "relu": scalars.relu,
    "erf": scalars.erf,
    "gelu": scalars.gelu,
    "softplus": scalars.softplus,
}
BINARY = {
    "tanh_grad": scalars.tanh_grad,
    "sigmoid_grad": scalars.sigmoid_grad,
    "relu_grad": scalars.relu_grad,
    "gelu_grad": scalars.gelu_grad,
    "add": scalars.add,
    "sub": scalars.sub,
    "mul": scalars.mul,
    "div": scalars.div,
    "pow": scalars.pow,
    "maximum": scalars.maximum,
    "minimum": scalars.minimum,
    "lt": scalars.lt,
    "le": scalars.le,
    "gt": scalars.gt,
    "ge": scalars.ge,
    "eq": scalars.eq,
    "ne": scalars.ne,
}

KERNELS = {
    **{name: unary(name, function) for name, function in UNARY.items()},
    **{name: binary(name, function) for name, function in BINARY.items()},
    "clip": clip,
    "where": where,
}
