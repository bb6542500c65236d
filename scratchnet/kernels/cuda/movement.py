"""Kernels that move elements: fill, copies between any strides and dtypes, gathering and adding up rows by number."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from . import tuning
from .compile import Kernel, cuda, device, kernel, launch, load_wide, store_wide
from .grids import in_plane, in_row, is_wide

AXES = 4  # that a strided copy walks over in one launch


@cache
def filling(threads: int) -> Kernel:
    @kernel(threads)
    def loop(out, value):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] = value

    return loop


@cache
def copying(dtype: np.dtype, threads: int) -> Kernel:
    """A copy of contiguous elements of one dtype."""
    kind, WIDTH = numba.from_dtype(dtype), 16 // dtype.itemsize

    @kernel(threads)
    def loop(x, out, wide):
        i, step = cuda.grid(1), cuda.gridsize(1)
        if wide:
            own = cuda.local.array(WIDTH, kind)
            for group in range(i, out.size // WIDTH, step):
                load_wide(x, group * WIDTH, own, 0)
                store_wide(own, 0, out, group * WIDTH)
            i += out.size // WIDTH * WIDTH
        for j in range(i, out.size, step):
            out[j] = x[j]

    return loop


@cache
def strided_copying(threads: int) -> Kernel:
    @kernel(threads)
    def loop(x, out, size, shape, steps):
        """steps: where to start in x and out, then x's strides and out's, in elements, all for four axes."""
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            rest, d = i // shape[3], i % shape[3]
            rest, c = rest // shape[2], rest % shape[2]
            a, b = rest // shape[1], rest % shape[1]
            at = steps[0] + a * steps[2] + b * steps[3] + c * steps[4] + d * steps[5]
            out[steps[1] + a * steps[6] + b * steps[7] + c * steps[8] + d * steps[9]] = x[at]

    return loop


@cache
def taking(threads: int) -> Kernel:
    @kernel(threads)
    def loop(x, index, out, inner):
        column, row = cuda.grid(2)
        across, down = cuda.gridsize(2)
        for i in range(row, index.size, down):
            start = index[i] * inner
            for j in range(column, inner, across):
                out[i * inner + j] = x[start + j]

    return loop


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
def scattering(step: Callable[..., Any], start: Any, threads: int) -> Kernel:
    """Folds the rows that go to one row of out, by `step` from `start`, in the order of the index, without atomics.

    A block takes a position of the index. If an earlier position has the same row number, that block does the work;
    else this block searches the rest of the index, `threads` numbers at a time, for its row number. Each thread folds
    one column.
    """
    START = start

    @kernel(threads)
    def loop(x, source, index, scale, out, inner):
        hits = cuda.shared.array(threads, numba.uint8)
        own = cuda.threadIdx.x
        column = cuda.blockIdx.y * threads + own
        for position in range(cuda.blockIdx.x, index.size, cuda.gridDim.x):
            row, is_first, begin = index[position], True, 0
            while is_first and begin < position:
                at = begin + own
                if cuda.syncthreads_or(np.int32(at < position and index[min(at, position)] == row)):
                    is_first = False
                begin += threads
            total = START
            if is_first:
                for begin in range(position, index.size, threads):
                    at = begin + own
                    hit = at < index.size and index[min(at, index.size - 1)] == row
                    if cuda.syncthreads_or(np.int32(hit)):
                        hits[own] = hit
                        cuda.syncthreads()
                        if column < inner:
                            for i in range(begin, min(begin + threads, index.size)):
                                if hits[i - begin]:
                                    total = step(total, i, column, inner, x, source, scale)
                if column < inner:
                    out[row * inner + column] = total

    return loop


def fill(out, value):
    if out.size:
        out.set_limits(None)
        grid = in_row(out.size)
        launch(filling(grid[1]), *grid, out, bool(value) if out.dtype == bool else out.dtype.type(value))


def copy(x, out):
    if not out.size:
        return
    if x.shape != out.shape:
        x = np.broadcast_to(x, out.shape)  # type: ignore[call-overload]
    out.set_limits(x.known_limits if x.dtype.kind in "iu" and out.dtype == np.int64 else None)
    if x.flags.c_contiguous and out.flags.c_contiguous and x.dtype == out.dtype:
        grid = in_row(out.size, 16 // out.itemsize)
        launch(copying(out.dtype, grid[1]), *grid, x, out, is_wide(x, out))
    else:
        _copy_strided(x, out)


def _copy_strided(x: Any, out: Any) -> None:
    shape, x_steps, out_steps = _joined(x, out)
    if len(shape) > AXES:  # the outermost axes one by one
        axis = max(range(out.ndim), key=lambda i: (out.shape[i] != 1, -i))
        key = (slice(None),) * axis
        for i in range(out.shape[axis]):
            _copy_strided(x[(*key, slice(i, i + 1))], out[(*key, slice(i, i + 1))])
        return
    (source, x_start), (target, out_start) = x.span, out.span
    lead = AXES - len(shape)
    steps = (x_start, out_start, *(0,) * lead, *x_steps, *(0,) * lead, *out_steps)
    grid = in_row(out.size)
    launch(strided_copying(grid[1]), *grid, source, target, out.size, (*(1,) * lead, *shape), steps)


def _joined(x: Any, out: Any) -> tuple[list[int], list[int], list[int]]:
    """Shape and strides (in elements) of both, with neighbouring axes made one where they can be."""
    axes: list[list[int]] = []
    for n, a, b in zip(out.shape, x.strides, out.strides, strict=True):
        a, b = a // x.itemsize, b // out.itemsize
        if n == 1:
            continue
        if axes and axes[-1][1] == n * a and axes[-1][2] == n * b:
            axes[-1] = [axes[-1][0] * n, a, b]
        else:
            axes.append([n, a, b])
    shape, x_steps, out_steps = ([axis[i] for axis in axes] for i in range(3))
    return shape, x_steps, out_steps


def take_rows(x, index, out):
    if out.size:
        out.set_limits(x.known_limits)
        inner = out.size // index.size
        launch(taking(tuning.current().threads), *in_plane(index.size, inner), x, index, out, inner)


def _scatter(step, start, x, source, index, scale, out):
    fill(out, start)
    if out.size and index.size:
        inner, numbers = out.shape[1], tuning.current()
        blocks = (min(index.size, numbers.blocks), -(-inner // numbers.threads))
        loop = scattering(step, out.dtype.type(start), numbers.threads)
        launch(loop, blocks, numbers.threads, x, source, index, scale, out, inner)


def scatter_rows(g, index, out):
    _scatter(_plain, 0, g, index, index, g, out)


def add_rows(x, source, target, scale, out):
    _scatter(_weighted, 0, x, source, target, scale, out)


def argmax_rows(x, source, target, out):
    _scatter(_largest, -1, x, source, target, x, out)


KERNELS = {
    "fill": fill,
    "copy": copy,
    "take_rows": take_rows,
    "scatter_rows": scatter_rows,
    "add_rows": add_rows,
    "argmax_rows": argmax_rows,
}
