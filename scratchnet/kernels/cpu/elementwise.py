"""Elementwise kernels: four loops, stamped with the scalar functions of scalars.py.

Broadcasting is reduced to two axes before a loop starts. An operand is read at [row * its row stride + column * its
step]: the whole array has (columns, 1), one row for all (0, 1), one column for all (1, 0), a scalar (0, 0). What
does not fit this pattern is copied to the full shape first.
"""

from functools import lru_cache

import numpy as np

from . import scalars
from .blocks import ranged
from .compile import jit

# ruff: noqa: F821 - `function` is a global of each stamp


@jit
def _unary(x, out, lo, hi):
    x, out = x[lo:hi], out[lo:hi]  # slices start at 0: indices that may be negative would not vectorise
    for i in range(out.size):
        out[i] = function(x[i])


@jit
def _clip(x, out, low, high, lo, hi):
    x, out = x[lo:hi], out[lo:hi]
    low, high = out.dtype.type(low), out.dtype.type(high)
    for i in range(out.size):
        out[i] = scalars.clip(x[i], low, high)


@jit
def _binary(a, b, out, columns, a_row, a_step, b_row, b_step, lo, hi):
    row, start = lo // columns, lo % columns
    while lo < hi:
        size = min(columns - start, hi - lo)
        left, right, result = a[row * a_row + start * a_step :], b[row * b_row + start * b_step :], out[lo : lo + size]
        if a_step and b_step:
            left, right = left[:size], right[:size]
            for i in range(result.size):
                result[i] = function(left[i], right[i])
        elif a_step:
            left, scalar = left[:size], right[0]
            for i in range(result.size):
                result[i] = function(left[i], scalar)
        else:
            right, scalar = right[:size], left[0]
            for i in range(result.size):
                result[i] = function(scalar, right[i])
        row, start, lo = row + 1, 0, lo + size


@jit
def _where(condition, a, b, out, columns, c_row, c_step, a_row, a_step, b_row, b_step, lo, hi):
    row, start = lo // columns, lo % columns
    while lo < hi:
        size = min(columns - start, hi - lo)
        test, result = condition[row * c_row + start * c_step :], out[lo : lo + size]
        yes, no = a[row * a_row + start * a_step :], b[row * b_row + start * b_step :]
        for i in range(result.size):
            result[i] = yes[i * a_step] if test[i * c_step] else no[i * b_step]
        row, start, lo = row + 1, 0, lo + size


# --- broadcasting as strides ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _strides(shape, *operands):
    """(columns, a row, a step, b row, b step, ...) to read the shapes `operands` as `shape`; None: copy the operands."""
    padded = [(1,) * (len(shape) - len(operand)) + operand for operand in operands]
    groups: list[tuple[tuple[bool, ...], int]] = []  # neighbouring axes along which the same operands repeat are one
    for axis, size in enumerate(shape):
        varies = tuple(operand[axis] == size for operand in padded)
        if size != 1 and groups and groups[-1][0] == varies:
            groups[-1] = varies, groups[-1][1] * size
        elif size != 1:
            groups.append((varies, size))
    groups = groups or [((True,) * len(operands), 1)]
    if len(groups) > 2 or not any(groups[-1][0]):
        return None
    (by_row, _), (by_column, columns) = groups if len(groups) == 2 else (((False,) * len(operands), 1), groups[0])
    pairs = ((row * (columns if step else 1), int(step)) for row, step in zip(by_row, by_column, strict=True))
    return columns, *(stride for pair in pairs for stride in pair)


def _full(x, shape):
    return x.ravel() if x.shape == shape else np.broadcast_to(x, shape).ravel()


# --- kernels -----------------------------------------------------------------------------------------------------------------


def unary(name, function):
    """The kernel (x, out) that applies a scalar function."""
    run = ranged(_unary, name, function=function)

    def kernel(x, out):
        size = out.size
        run(size, 1, x.ravel() if x.size == size else _full(x, out.shape), out.ravel())

    return kernel


def binary(name, function):
    """The kernel (a, b, out) that applies a scalar function of two numbers."""
    run = ranged(_binary, name, function=function)

    def kernel(a, b, out):
        size = out.size
        if a.size == b.size == size:
            run(size, 1, a.ravel(), b.ravel(), out.ravel(), size, 0, 1, 0, 1)
        elif size:
            strides = _strides(out.shape, a.shape, b.shape)
            if strides is None:
                a, b, strides = _full(a, out.shape), _full(b, out.shape), (size, 0, 1, 0, 1)
            run(size, 1, a.ravel(), b.ravel(), out.ravel(), *strides)

    return kernel


_run_clip = ranged(_clip, "clip")
_run_where = ranged(_where, "where")


def clip(x, out, low, high):
    run_low, run_high = -np.inf if low is None else float(low), np.inf if high is None else float(high)
    _run_clip(out.size, 1, _full(x, out.shape), out.ravel(), run_low, run_high)


def where(condition, a, b, out):
    size = out.size
    if not size:
        return
    strides = _strides(out.shape, condition.shape, a.shape, b.shape)
    if strides is None:
        condition, a, b = (_full(x, out.shape) for x in (condition, a, b))
        strides = (size, 0, 1, 0, 1, 0, 1)
    _run_where(size, 1, condition.ravel(), a.ravel(), b.ravel(), out.ravel(), *strides)


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
