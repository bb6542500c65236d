"""Folds: within a block the values of its threads become one value that all of them get, in a fixed order; and of
several arrays their sum, in the order of a tree.

In a block of several columns, thread t is layer t // columns of column t % columns, and the layers of a column are
folded. With one column, the lanes of a warp exchange values by shuffles; with `shuffles=False` all values go through
shared memory, for the simulator, which has no shuffles. Every thread of the block must take part.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from .compile import Kernel, cuda, device, kernel, launch
from .grids import in_row
from .scalars import scalars

OPERATIONS = {"sum": "add", "max": "maximum", "min": "minimum"}
ALL_LANES = 0xFFFFFFFF


def neutral(name: str, dtype: np.dtype):
    """The neutral element of a fold."""
    if name == "sum":
        return dtype.type(0)
    if dtype.kind == "f":
        return dtype.type(-np.inf if name == "max" else np.inf)
    limits = np.iinfo(dtype)
    return dtype.type(limits.min if name == "max" else limits.max)


@cache
def folding(name: str, dtype: np.dtype, threads: int, columns: int, warp: int, shuffles: bool) -> Callable:
    """fold(value, own, shared) -> the fold over the thread's column. own: its number; shared: `threads` words."""
    function, START = scalars(dtype)[OPERATIONS[name]], neutral(name, dtype)
    WARPS, LAYERS = threads // warp, threads // columns

    if columns > 1 or not shuffles:

        @device
        def fold_in_memory(value, own, shared):
            shared[own] = value
            cuda.syncthreads()
            step = LAYERS // 2
            while step > 0:
                if own < step * columns:
                    shared[own] = function(shared[own], shared[own + step * columns])
                cuda.syncthreads()
                step //= 2
            result = shared[own % columns]
            cuda.syncthreads()
            return result

        return fold_in_memory

    @device
    def fold_warp(value):
        step = warp // 2
        while step > 0:
            value = function(value, cuda.shfl_xor_sync(ALL_LANES, value, step))
            step //= 2
        return value

    @device
    def fold(value, own, shared):
        value = fold_warp(value)
        if WARPS > 1:
            if own % warp == 0:
                shared[own // warp] = value
            cuda.syncthreads()
            value = START
            if own % warp < WARPS:
                value = shared[own % warp]
            value = fold_warp(value)
            cuda.syncthreads()
        return value

    return fold


@cache
def folding_lanes(name: str, dtype: np.dtype, lanes: int, shuffles: bool) -> Callable:
    """fold(value, own, shared) -> the fold over the `lanes` neighbours, a power of two up to a warp, of a thread."""
    function = scalars(dtype)[OPERATIONS[name]]
    if shuffles:

        @device
        def fold_lanes(value, own, shared):
            step = lanes // 2
            while step > 0:
                value = function(value, cuda.shfl_xor_sync(ALL_LANES, value, step))
                step //= 2
            return value

        return fold_lanes

    @device
    def fold_lanes_in_memory(value, own, shared):
        shared[own] = value
        cuda.syncthreads()
        step = lanes // 2
        while step > 0:
            if own % lanes < step:
                shared[own] = function(shared[own], shared[own + step])
            cuda.syncthreads()
            step //= 2
        result = shared[own - own % lanes]
        cuda.syncthreads()
        return result

    return fold_lanes_in_memory


# --- several arrays, along a tree -------------------------------------------------------------------------------------


@cache
def folding_tree(tree: Any, dtype: np.dtype, threads: int) -> Kernel:
    """tree: the number of an array, or a pair of trees, whose sums are added."""
    add = scalars(dtype)["add"]

    def sum_of(tree: Any) -> Callable:
        if isinstance(tree, int):
            NUMBER = tree

            @device
            def leaf(arrays, i):
                return arrays[NUMBER][i]

            return leaf
        left, right = map(sum_of, tree)

        @device
        def fork(arrays, i):
            return add(left(arrays, i), right(arrays, i))

        return fork

    total = sum_of(tree)

    @kernel(threads)
    def fold_tree(arrays, out):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] = total(arrays, i)

    return fold_tree


def fold_tree(tree: Any, arrays: Sequence[Any], out: Any) -> None:
    """out = the sum of the arrays, all of one length, in the order of a tree: ((0, 1), 2) is (a0 + a1) + a2."""
    if out.size:
        grid = in_row(out.size)
        launch(folding_tree(tree, out.dtype, grid[1]), *grid, tuple(arrays), out)
