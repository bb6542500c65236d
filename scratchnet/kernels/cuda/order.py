"""The order of rows, as the numbers of their elements: equal ones stay as they are, and NaN comes last. And sums of
rows by number, which the order brings together.

Short runs first: a thread counts how many elements of its run come before its own, which is its place. Then two runs
become one, until a row is one run: a thread looks for its place in the other run by halves. Nothing is shared between
threads, so there is no barrier, and a place is a number that no order of threads changes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from . import memory, tuning
from .compile import Kernel, cuda, device, kernel, launch
from .grids import in_plane, in_row
from .movement import fill


@device
def comes_before(a, b):
    return (a < b) | ((a == a) & (b != b))


@cache
def ranking(threads: int) -> Kernel:
    @kernel(threads)
    def loop(x, out, n, run):
        """Sorts each `run` elements of each row of n."""
        for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            own = i % n
            start, first = i - own, own // run * run
            value, place = x[i], first
            for j in range(first, min(first + run, n)):
                other = x[start + j]
                if comes_before(other, value) | ((not comes_before(value, other)) & (j < own)):
                    place += 1
            out[start + place] = own

    return loop


@cache
def merging(threads: int) -> Kernel:
    @kernel(threads)
    def loop(x, runs, out, n, run):
        """Makes one of each two sorted runs of each row of n. runs, out: numbers of elements of the row."""
        for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            at = i % n
            start, first = i - at, at // (2 * run) * (2 * run)
            middle, end, own = min(first + run, n), min(first + 2 * run, n), runs[i]
            is_left, value = at < middle, x[start + own]
            low, high = (middle, end) if is_left else (first, middle)
            begin = low
            while low < high:  # how many of the other run come before: of equals, those on the left do
                half = (low + high) // 2
                other = x[start + runs[start + half]]
                if comes_before(other, value) | ((not is_left) & (not comes_before(value, other))):
                    low = half + 1
                else:
                    high = half
            out[start + (at if is_left else at - middle + first) + low - begin] = own

    return loop


def argsort(x, out):
    if not out.size:
        return
    n, threads, grid = x.shape[1], tuning.current().threads, in_row(out.size)
    run = threads
    passes = max(-(-n // run) - 1, 0).bit_length()
    steps = [out if (passes - i) % 2 == 0 else None for i in range(passes + 1)]
    spare = memory.empty(out.shape, out.dtype) if passes else None
    runs, *others = [spare if step is None else step for step in steps]
    launch(ranking(threads), *grid, x, runs, n, run)
    for target in others:
        launch(merging(threads), *grid, x, runs, target, n, run)
        runs, run = target, 2 * run


# --- what goes to one row ---------------------------------------------------------------------------------------------

# What a row that goes to a row of `out` changes there: step(total, i, column, inner, x, source, scale).


@device
def _plain(total, i, column, inner, x, source, scale):
    return total + x[i * inner + column]


@device
def _weighted(total, i, column, inner, x, source, scale):
    return total + scale[i] * x[source[i] * inner + column]


@device
def _largest(total, i, column, inner, x, source, scale):
    if total < 0:
        return source[i]
    value, best = x[source[i] * inner + column], x[total * inner + column]
    return source[i] if value > best or (value != value and best == best) else total


@cache
def folding_rows(step: Callable[..., Any], dtype: np.dtype, start: int, threads: int) -> Kernel:
    """Folds the rows that go to one row of out, by `step` from `start`, in the order of the index, without atomics.

    `order` is the index sorted, equal numbers in their order: where one begins, a row of threads takes all of it, each
    thread one column.
    """
    START = dtype.type(start)  # made here: as a key of the cache, 0 is the same in every dtype

    @kernel(threads)
    def loop(x, source, index, order, scale, out, inner):
        column, row = cuda.grid(2)
        across, down = cuda.gridsize(2)
        for first in range(row, index.size, down):
            number = index[order[first]]
            if first == 0 or index[order[max(first - 1, 0)]] != number:
                for j in range(column, inner, across):
                    total, last, at, is_own = START, first, order[first], True
                    while is_own:
                        last += 1
                        following = order[min(last, index.size - 1)]  # is on its way while the row is
                        follows = index[following] == number
                        total = step(total, at, j, inner, x, source, scale)
                        at, is_own = following, (last < index.size) & follows
                    out[number * inner + j] = total

    return loop


def _fold(step, start, x, source, index, scale, out):
    fill(out, start)
    if out.size and index.size:
        inner, order = out.shape[1], memory.empty((1, index.size), np.int64)
        argsort(index.reshape(1, index.size), order)
        loop = folding_rows(step, out.dtype, start, tuning.current().threads)
        launch(loop, *in_plane(index.size, inner), x, source, index, order, scale, out, inner)


def scatter_rows(g, index, out):
    _fold(_plain, 0, g, index, index, g, out)


def add_rows(x, source, target, scale, out):
    _fold(_weighted, 0, x, source, target, scale, out)


def argmax_rows(x, source, target, out):
    _fold(_largest, -1, x, source, target, x, out)


KERNELS = {"argsort": argsort, "scatter_rows": scatter_rows, "add_rows": add_rows, "argmax_rows": argmax_rows}
