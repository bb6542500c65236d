"""Elementwise kernels: grid-stride loops, stamped with the scalar functions that all devices share.

Where all operands have the shape of the result, a thread reads and writes 16 bytes at a time. Other operands are read
by row and column, with the strides of broadcasting.py; if two axes do not suffice, they are first copied to the full
shape.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numba
import numpy as np

from ..broadcasting import two_axes
from ..scalars import kernels_of
from . import memory, tuning
from .compile import Kernel, cuda, kernel, launch, load_wide, store_wide
from .grids import in_plane, in_row, is_wide
from .memory import DeviceArray
from .movement import copy
from .scalars import scalars


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
    function, kind, WIDTH = scalars(dtype)["clip"], numba.from_dtype(dtype), 16 // dtype.itemsize

    @kernel(threads)
    def loop(x, out, low, high, wide):
        i, step = cuda.grid(1), cuda.gridsize(1)
        if wide:
            own = cuda.local.array(WIDTH, kind)
            for group in range(i, out.size // WIDTH, step):
                load_wide(x, group * WIDTH, own, 0)
                for v in range(WIDTH):
                    own[v] = function(own[v], low, high)
                store_wide(own, 0, out, group * WIDTH)
            i += out.size // WIDTH * WIDTH
        for j in range(i, out.size, step):
            out[j] = function(x[j], low, high)

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
    def loop(a, b, out, columns, strides):
        rows = out.size // columns
        x, y = cuda.grid(2)
        across, down = cuda.gridsize(2)
        for row in range(y, rows, down):
            for column in range(x, columns, across):
                left = a[row * strides[0] + column * strides[1]]
                out[row * columns + column] = function(left, b[row * strides[2] + column * strides[3]])

    return loop


@cache
def choosing(threads: int) -> Kernel:
    @kernel(threads)
    def loop(condition, a, b, out, columns, strides):
        rows = out.size // columns
        x, y = cuda.grid(2)
        across, down = cuda.gridsize(2)
        for row in range(y, rows, down):
            for column in range(x, columns, across):
                yes, no = a[row * strides[2] + column * strides[3]], b[row * strides[4] + column * strides[5]]
                out[row * columns + column] = yes if condition[row * strides[0] + column * strides[1]] else no

    return loop


# --- where they run ---------------------------------------------------------------------------------------------------


def _readable(out: DeviceArray, *operands: DeviceArray) -> tuple[Sequence[DeviceArray], int, Sequence[int]]:
    """The operands, copied to the full shape where there is no other way to read them, columns and strides."""
    found = two_axes(out.shape, *[x.shape for x in operands])
    if found is not None:
        return operands, *found
    whole = [memory.empty(out.shape, x.dtype) for x in operands]
    for x, copied in zip(operands, whole, strict=True):
        copy(x, copied)
    return whole, out.size, (out.size, 1) * len(operands)


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
        (a, b), columns, strides = _readable(out, a, b)
        plane = in_plane(out.size // columns, columns)
        launch(broadcasting(name, a.dtype, tuning.current().threads), *plane, a, b, out, columns, strides)

    return run


def clip(x, out, low, high):
    if out.size:
        number, grid = out.dtype.type, in_row(out.size, 16 // out.itemsize)
        launch(clipping(out.dtype, grid[1]), *grid, x, out, number(low), number(high), is_wide(x, out))


def where(condition, a, b, out):
    if out.size:
        (condition, a, b), columns, strides = _readable(out, condition, a, b)
        grid = in_plane(out.size // columns, columns)
        launch(choosing(tuning.current().threads), *grid, condition, a, b, out, columns, strides)


KERNELS = {
    **{name: _one_input(name) for name in kernels_of(1)},
    **{name: _two_inputs(name) for name in kernels_of(2)},
    "clip": clip,
    "where": where,
}
