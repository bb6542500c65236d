"""Elementwise kernels: grid-stride loops, stamped with the functions of scalars.py.

Where all operands have the shape of the result, a thread reads and writes 16 bytes at a time. Other operands broadcast:
the result is seen as rows and columns, and each operand is read at row * row stride + column * step, both 0 or more.
What does not fit this pattern is copied to the full shape first.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numba
import numpy as np

from . import memory, tuning
from .compile import Kernel, cuda, kernel, launch, load_wide, store_wide
from .memory import DeviceArray
from .scalars import scalars

UNARY = ("neg", "exp", "log", "sqrt", "abs", "sign", "tanh", "sigmoid", "relu", "erf", "gelu", "softplus")
GRADIENTS = ("tanh_grad", "sigmoid_grad", "relu_grad", "gelu_grad")
BINARY = ("add", "sub", "mul", "div", "pow", "maximum", "minimum")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


@cache
def unary(name: str, dtype: np.dtype, threads: int) -> Kernel:
    function, kind, WIDTH = scalars(dtype)[name], numba.from_dtype(dtype), 16 // dtype.itemsize

    @kernel(threads)
    def loop(x, out, wide):
        i, step = cuda.grid(1), cuda.gridsize(1)
        if wide:
            own = cuda.local.array(WIDTH, kind)
            for group in range(i, out.size // WIDTH, step):
                load_wide(x, group * WIDTH, own, 0)
                for v in range(WIDTH):
                    own[v] = function(own[v])
                store_wide(own, 0, out, group * WIDTH)
            i += out.size // WIDTH * WIDTH
        for j in range(i, out.size, step):
            out[j] = function(x[j])

    return loop


@cache
def clipping(dtype: np.dtype, threads: int) -> Kernel:
    kind, WIDTH = numba.from_dtype(dtype), 16 // dtype.itemsize

    @kernel(threads)
    def loop(x, out, low, high, wide):
        i, step = cuda.grid(1), cuda.gridsize(1)
        if wide:
            own = cuda.local.array(WIDTH, kind)
            for group in range(i, out.size // WIDTH, step):
                load_wide(x, group * WIDTH, own, 0)
                for v in range(WIDTH):
                    raised = low if own[v] < low else own[v]
                    own[v] = high if raised > high else raised
                store_wide(own, 0, out, group * WIDTH)
            i += out.size // WIDTH * WIDTH
        for j in range(i, out.size, step):
            raised = low if x[j] < low else x[j]
            out[j] = high if raised > high else raised

    return loop


@cache
def binary(name: str, dtype: np.dtype, threads: int) -> Kernel:
    function, kind, WIDTH = scalars(dtype)[name], numba.from_dtype(dtype), 16 // dtype.itemsize

    @kernel(threads)
    def loop(a, b, out, wide):
        i, step = cuda.grid(1), cuda.gridsize(1)
        if wide:
            left = cuda.local.array(WIDTH, kind)
            right = cuda.local.array(WIDTH, kind)
            for group in range(i, out.size // WIDTH, step):
                load_wide(a, group * WIDTH, left, 0)
                load_wide(b, group * WIDTH, right, 0)
                for v in range(WIDTH):
                    left[v] = function(left[v], right[v])
                store_wide(left, 0, out, group * WIDTH)
            i += out.size // WIDTH * WIDTH
        for j in range(i, out.size, step):
            out[j] = function(a[j], b[j])

    return loop


@cache
def broadcasting(name: str, dtype: np.dtype, threads: int) -> Kernel:
    function = scalars(dtype)[name]

    @kernel(threads)
    def loop(a, b, out, columns, steps):
        rows = out.size // columns
        x, y = cuda.grid(2)
        across, down = cuda.gridsize(2)
        for row in range(y, rows, down):
            for column in range(x, columns, across):
                left = a[row * steps[0] + column * steps[1]]
                out[row * columns + column] = function(left, b[row * steps[2] + column * steps[3]])

    return loop


@cache
def choosing(threads: int) -> Kernel:
    @kernel(threads)
    def loop(condition, a, b, out, columns, steps):
        rows = out.size // columns
        x, y = cuda.grid(2)
        across, down = cuda.gridsize(2)
        for row in range(y, rows, down):
            for column in range(x, columns, across):
                yes, no = a[row * steps[2] + column * steps[3]], b[row * steps[4] + column * steps[5]]
                out[row * columns + column] = yes if condition[row * steps[0] + column * steps[1]] else no

    return loop


# --- where they run ---------------------------------------------------------------------------------------------------


def is_wide(*arrays: DeviceArray) -> bool:
    """May 16 bytes be moved at once?"""
    return not any(x.address % 16 for x in arrays)


def in_row(size: int, per_thread: int = 1) -> tuple[int, int]:
    """(blocks, threads) of a grid-stride loop over so many elements."""
    numbers = tuning.current()
    return max(1, min(-(-size // (numbers.threads * per_thread)), numbers.blocks)), numbers.threads


def in_plane(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(blocks, threads) of a grid that strides over rows and columns, threadIdx.x along the columns."""
    numbers = tuning.current()
    across = 1
    while across < min(columns, numbers.threads):
        across *= 2
    down = numbers.threads // across
    wide = min(-(-columns // across), numbers.blocks)
    return (wide, max(1, min(-(-rows // down), numbers.blocks // wide))), (across, down)


def two_axes(shape: Sequence[int], operands: Sequence[DeviceArray]) -> tuple[list[DeviceArray], int, tuple[int, ...]]:
    """The operands, the columns of the result, and (row stride, step) of each operand, one after the other."""
    repeats = [tuple(n != m for n, m in zip(shape, _padded(x.shape, len(shape)), strict=True)) for x in operands]
    groups: list[tuple[int, tuple[bool, ...]]] = []  # neighbouring axes along which the same operands repeat
    for axis, n in enumerate(shape):
        who = tuple(repeat[axis] for repeat in repeats)
        if n == 1:
            continue
        if groups and groups[-1][1] == who:
            groups[-1] = groups[-1][0] * n, who
        else:
            groups.append((n, who))
    if len(groups) > 2:
        return two_axes(shape, [_expanded(x, shape) if any(r) else x for x, r in zip(operands, repeats, strict=True)])
    groups = [(1, (False,) * len(operands))] * (2 - len(groups)) + groups
    (_, rows), (columns, across) = groups
    steps: list[int] = []
    for i in range(len(operands)):
        own_columns = 1 if across[i] else columns
        steps += [0 if rows[i] else own_columns, int(not across[i])]
    return list(operands), columns, tuple(steps)


def _padded(shape: Sequence[int], ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - len(shape)) + tuple(shape)


def _expanded(x: DeviceArray, shape: Sequence[int]) -> DeviceArray:
    from .movement import copy

    whole = memory.empty(shape, x.dtype)
    copy(np.broadcast_to(x, shape), whole)  # type: ignore[call-overload]
    return whole


def _one_input(name: str) -> Callable[..., None]:
    def run(x, out):
        if out.size:
            grid = in_row(out.size, 16 // out.itemsize)
            launch(unary(name, out.dtype, grid[1]), *grid, x, out, is_wide(x, out))

    return run


def _two_inputs(name: str) -> Callable[..., None]:
    def run(a, b, out):
        if not out.size:
            return
        if a.shape == b.shape == out.shape and a.dtype == out.dtype:
            grid = in_row(out.size, 16 // out.itemsize)
            launch(binary(name, a.dtype, grid[1]), *grid, a, b, out, is_wide(a, b, out))
            return
        (a, b), columns, steps = two_axes(out.shape, (a, b))
        plane = in_plane(out.size // columns, columns)
        launch(broadcasting(name, a.dtype, tuning.current().threads), *plane, a, b, out, columns, steps)

    return run


def clip(x, out, low, high):
    if out.size:
        number, grid = out.dtype.type, in_row(out.size, 16 // out.itemsize)
        launch(clipping(out.dtype, grid[1]), *grid, x, out, number(low), number(high), is_wide(x, out))


def where(condition, a, b, out):
    if out.size:
        (condition, a, b), columns, steps = two_axes(out.shape, (condition, a, b))
        grid = in_plane(out.size // columns, columns)
        launch(choosing(tuning.current().threads), *grid, condition, a, b, out, columns, steps)


KERNELS = {
    **{name: _one_input(name) for name in UNARY},
    **{name: _two_inputs(name) for name in (*GRADIENTS, *BINARY, *COMPARISONS)},
    "clip": clip,
    "where": where,
}
