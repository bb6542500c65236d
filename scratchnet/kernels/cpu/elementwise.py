"""Elementwise kernels: four loops, stamped with the scalar functions that all devices share.

An operand is read by row and column, with the strides of broadcasting.py; if two axes do not suffice, it is first
copied to the full shape.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from ...native.compile import jit
from ...native.loops import constant, ranged
from ..broadcasting import two_axes
from ..scalars import kernels_of, lifted
from . import exponential

# float32 constants for float64 too, as those that are used here are exact in both.
SCALARS = lifted(jit(inline=True), np.float32, exponential.FUNCTIONS)

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
    for i in range(out.size):
        out[i] = function(x[i], low, high)


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


_ONE_ROW = {  # of two operands, full or scalar, in columns without end
    (i, j): constant(np.array([2**62, 0, i, 0, j])) for i in (True, False) for j in (True, False)
}


@cache
def _layout(shape, *operands):
    """`two_axes` as an array for loops: columns, then the strides; None where it is."""
    found = two_axes(shape, *operands)
    return None if found is None else constant(np.array([found[0], *found[1]], np.int64))


def _expanded(out, *operands):
    """The operands in the full shape, and their layout."""
    return [np.broadcast_to(x, out.shape) for x in operands], _layout(out.shape, *[out.shape] * len(operands))


def unary(name, weight):
    """The kernel (x, out) that applies a scalar function."""
    run = ranged(_unary, name, writes=(1,), weight=weight, function=SCALARS[name])

    def kernel(x, out):
        if x.size != out.size:
            x = np.broadcast_to(x, out.shape)
        run(out.size, 1, x.ravel(), out.ravel())

    return kernel


_run_clip = ranged(_clip, "clip", writes=(1,), function=SCALARS["clip"])


def clip(x, out, low, high):
    if x.size != out.size:
        x = np.broadcast_to(x, out.shape)
    number = out.dtype.type
    low, high = number(-np.inf if low is None else low), number(np.inf if high is None else high)
    _run_clip(out.size, 1, x.ravel(), out.ravel(), low, high)


def binary(name, weight):
    """The kernel (a, b, out) that applies a scalar function of two numbers."""
    run = ranged(_binary, name, writes=(2,), weight=weight, function=SCALARS[name])

    def kernel(a, b, out):
        size = out.size
        a_full, b_full = a.size == size, b.size == size
        if (a_full and b_full) or (a_full and b.size == 1) or (b_full and a.size == 1):
            layout = _ONE_ROW[a_full, b_full]  # without a look at the shapes, which takes longer than a small loop
        else:
            layout = _layout(out.shape, a.shape, b.shape)
            if layout is None:
                (a, b), layout = _expanded(out, a, b)
        run(size, 1, a.ravel(), b.ravel(), out.ravel(), layout)

    return kernel


_run_where = ranged(_where, "where", writes=(3,))


def where(condition, a, b, out):
    layout = _layout(out.shape, condition.shape, a.shape, b.shape)
    if layout is None:
        (condition, a, b), layout = _expanded(out, condition, a, b)
    _run_where(out.size, 1, condition.ravel(), a.ravel(), b.ravel(), out.ravel(), layout)


KERNELS = {
    **{name: unary(name, scalar.weight) for name, scalar in kernels_of(1).items()},
    **{name: binary(name, scalar.weight) for name, scalar in kernels_of(2).items()},
    "clip": clip,
    "where": where,
}
