"""Kernels that move elements: fill, copies between any strides and dtypes, gathering rows by number."""

import math
from functools import cache
from typing import Any

import numba
import numpy as np

from ..signatures import FLOATS, HALVES
from . import tuning
from .compile import Kernel, cuda, kernel, launch, load_wide, store_wide
from .grids import in_plane, in_row, is_wide
from .scalars import scalars

AXES = 4  # that a strided copy walks over in one launch


FLOAT32 = FLOATS[0]


def _kind(dtype: np.dtype) -> Any:
    """What Numba calls a dtype; halves are moved as their bits."""
    return numba.from_dtype(np.dtype(np.uint16) if dtype in HALVES else dtype)


@cache
def converting(name: str, threads: int) -> Kernel:
    """Bits of float32 to those of a half, or back."""
    function = scalars(FLOAT32)[name]

    @kernel(threads)
    def loop(x, out):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] = function(x[i])

    return loop


CONVERSIONS = {
    (source, target): name
    for half in HALVES
    for source, target, name in ((FLOAT32, half, f"to_{half}"), (half, FLOAT32, f"from_{half}"))
}


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
    kind, WIDTH = _kind(dtype), 16 // dtype.itemsize

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


@cache
def transposing(dtype: np.dtype, edge: int, threads: int) -> Kernel:
    """A copy whose elements are neighbours along one axis in x and along another one in out: tile by tile.

    A warp reads a line of a tile as it lies in x, and after all are there, writes one as it lies in out.
    """
    kind, STRIDE = _kind(dtype), edge + 1  # a column of a tile is not in one bank of shared memory
    WORDS, DOWN = edge * STRIDE, threads // edge

    @kernel(threads)
    def loop(x, out, shape, steps):
        """shape, steps: as for strided_copying. The third axis has stride 1 in x, the last one in out."""
        tile = cuda.shared.array(WORDS, kind)
        own, first = cuda.threadIdx.x % edge, cuda.threadIdx.x // edge
        bands, strips = (shape[2] + edge - 1) // edge, (shape[3] + edge - 1) // edge
        for item in range(cuda.blockIdx.x, shape[0] * shape[1] * bands * strips, cuda.gridDim.x):
            rest, d = item // strips, item % strips * edge
            rest, c = rest // bands, rest % bands * edge
            a, b = rest // shape[1], rest % shape[1]
            for line in range(first, edge, DOWN):
                if c + own < shape[2] and d + line < shape[3]:
                    at = steps[0] + a * steps[2] + b * steps[3] + (c + own) * steps[4] + (d + line) * steps[5]
                    tile[line * STRIDE + own] = x[at]
            cuda.syncthreads()
            for line in range(first, edge, DOWN):
                if c + line < shape[2] and d + own < shape[3]:
                    at = steps[1] + a * steps[6] + b * steps[7] + (c + line) * steps[8] + (d + own) * steps[9]
                    out[at] = tile[own * STRIDE + line]
            cuda.syncthreads()

    return loop


def fill(out, value):
    if out.size:
        out.set_limits(None)
        grid = in_row(out.size)
        number: Any = bool(value) if out.dtype == bool else np.array(value).astype(out.dtype)[()]
        launch(filling(grid[1]), *grid, out, int(number.view(np.uint16)) if out.dtype in HALVES else number)


def copy(x, out):
    if not out.size:
        return
    if x.shape != out.shape:
        x = np.broadcast_to(x, out.shape)  # type: ignore[call-overload]
    if x.dtype != out.dtype and (x.dtype in HALVES or out.dtype in HALVES):
        _copy_half(x, out)
        return
    out.set_limits(x.known_limits if x.dtype.kind in "iu" and out.dtype == np.int64 else None)
    if x.flags.c_contiguous and out.flags.c_contiguous and x.dtype == out.dtype:
        grid = in_row(out.size, 16 // out.itemsize)
        launch(copying(out.dtype, grid[1]), *grid, x, out, is_wide(x, out))
    else:
        _copy_strided(x, out)


def _copy_half(x: Any, out: Any) -> None:
    """A conversion by way of float32, between contiguous memory."""
    name = CONVERSIONS.get((x.dtype, out.dtype))
    if name is None:
        copy(x.astype(FLOAT32), out)
    elif not x.flags.c_contiguous:
        copy(x.copy(), out)
    elif not out.flags.c_contiguous:
        copy(x.astype(out.dtype), out)
    else:
        bits = [y.view(np.uint32) if y.dtype == FLOAT32 else y for y in (x, out)]
        grid = in_row(out.size)
        launch(converting(name, grid[1]), *grid, *bits)


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
    shape, x_steps, out_steps = (1,) * lead + shape, (0,) * lead + x_steps, (0,) * lead + out_steps
    order = _crossed(shape, x_steps, out_steps)
    if order is not None:
        shape, x_steps, out_steps = (tuple(y[i] for i in order) for y in (shape, x_steps, out_steps))
    steps = (x_start, out_start, *x_steps, *out_steps)
    if order is None:
        grid = in_row(out.size)
        launch(strided_copying(grid[1]), *grid, source, target, out.size, shape, steps)
    else:
        numbers = tuning.current()
        tiles = math.prod(shape[:2]) * -(-shape[2] // numbers.warp) * -(-shape[3] // numbers.warp)
        loop = transposing(x.dtype, numbers.warp, numbers.threads)
        launch(loop, min(tiles, numbers.blocks), numbers.threads, source, target, shape, steps)


def _crossed(shape: tuple, x_steps: tuple, out_steps: tuple) -> tuple[int, ...] | None:
    """The axes in an order that ends with x's own fastest axis and out's own; None if they are the same, or short."""
    long = [i for i in range(AXES) if shape[i] >= tuning.current().warp // 4]
    fast = [next((i for i in long if steps[i] == 1), None) for steps in (x_steps, out_steps)]
    if None in fast or fast[0] == fast[1]:
        return None
    return *(i for i in range(AXES) if i not in fast), *fast  # type: ignore[arg-type]


def _joined(x: Any, out: Any) -> tuple[tuple[int, ...], ...]:
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
    return tuple(tuple(axis[i] for axis in axes) for i in range(3))


def take_rows(x, index, out):
    if out.size:
        out.set_limits(x.known_limits)
        inner = out.size // index.size
        launch(taking(tuning.current().threads), *in_plane(index.size, inner), x, index, out, inner)


KERNELS = {"fill": fill, "copy": copy, "take_rows": take_rows}
