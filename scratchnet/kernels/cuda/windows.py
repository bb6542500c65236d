"""Pooling, and gather and scatter along rows: a thread computes one element of the result, in order.

Its formula is the definition, read backwards where the result is a gradient: which outputs did this element meet?
Nothing is shared between threads, so there is no barrier, no atomic, and no order that a launch could change.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from . import tuning
from .compile import Kernel, cuda, device, kernel, launch
from .grids import in_row
from .movement import fill

WINDOWS = 4  # of max pooling, that a thread has at a time

# --- pooling: x (n, h, w), out (n, oh, ow); a shape is (h, w, oh, ow, window 2, stride 2, padding 2) ------------------


@cache
def max_pooling(dtype: np.dtype, threads: int) -> Kernel:
    """A thread has WINDOWS windows, and asks for an element of each before it compares the first."""
    kind, ZERO, INDEX = numba.from_dtype(dtype), dtype.type(0), numba.int64

    @kernel(threads, resident=3)
    def loop(x, out, shape, dilation):
        h, w, oh, ow, kh, kw, sh, sw, ph, pw = shape
        corners = cuda.local.array(WINDOWS, INDEX)
        tops = cuda.local.array(WINDOWS, INDEX)
        lefts = cuda.local.array(WINDOWS, INDEX)
        places = cuda.local.array(WINDOWS, INDEX)
        found = cuda.local.array(WINDOWS, INDEX)
        values = cuda.local.array(WINDOWS, kind)
        best = cuda.local.array(WINDOWS, kind)
        step = cuda.gridsize(1)
        for first in range(cuda.grid(1), out.size, step * WINDOWS):
            for v in range(WINDOWS):
                i = min(first + v * step, out.size - 1)
                tops[v], lefts[v] = i // ow % oh * sh - ph, i % ow * sw - pw
                corners[v] = (i // (oh * ow) * h + tops[v]) * w + lefts[v]
                best[v], found[v] = ZERO, -1
            r, s = 0, 0
            while r < kh:
                down, right = r * dilation[0], s * dilation[1]
                for v in range(WINDOWS):
                    y, at = tops[v] + down, lefts[v] + right
                    is_inside = (y >= 0) & (y < h) & (at >= 0) & (at < w)
                    places[v] = corners[v] + down * w + right if is_inside else -1
                    values[v] = x[max(places[v], 0)]  # without a branch, which would wait for it
                for v in range(WINDOWS):
                    value, other = values[v], best[v]
                    is_better = (found[v] < 0) | (value > other) | ((value != value) & (other == other))
                    is_better = is_better & (places[v] >= 0)
                    best[v] = value if is_better else other
                    found[v] = places[v] if is_better else found[v]
                s += 1
                if s == kw:
                    r, s = r + 1, 0
            for v in range(WINDOWS):
                i = first + v * step
                if i < out.size:
                    out[i] = found[v] - i // (oh * ow) * h * w if found[v] >= 0 else -1

    return loop


@device
def _bounds(i, window, stride, padding, size):
    """Of window i along one axis: its elements inside of x, and its length with the padding around them."""
    begin = i * stride - padding
    end = min(begin + window, size + padding)
    return max(begin, 0), min(end, size), end - begin


@cache
def averaging(dtype: np.dtype, threads: int) -> Kernel:
    kind, ZERO = numba.from_dtype(dtype), dtype.type(0)

    @kernel(threads)
    def loop(x, out, shape, counts_padding):
        h, w, oh, ow, kh, kw, sh, sw, ph, pw = shape
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            plane = i // (oh * ow) * h * w
            y0, y1, rows = _bounds(i // ow % oh, kh, sh, ph, h)
            x0, x1, columns = _bounds(i % ow, kw, sw, pw, w)
            total = ZERO
            for y in range(y0, y1):
                for at in range(x0, x1):
                    total += x[plane + y * w + at]
            size = rows * columns if counts_padding else (y1 - y0) * (x1 - x0)
            out[i] = total / kind(size)

    return loop


@cache
def averaging_back(dtype: np.dtype, threads: int) -> Kernel:
    kind, ZERO = numba.from_dtype(dtype), dtype.type(0)

    @kernel(threads)
    def loop(g, out, shape, counts_padding):
        h, w, oh, ow, kh, kw, sh, sw, ph, pw = shape
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            plane, y, x = i // (h * w) * oh * ow, i // w % h, i % w
            total = ZERO
            for row in range(max(0, (y + ph - kh) // sh + 1), min(oh, (y + ph) // sh + 1)):
                y0, y1, rows = _bounds(row, kh, sh, ph, h)
                for column in range(max(0, (x + pw - kw) // sw + 1), min(ow, (x + pw) // sw + 1)):
                    x0, x1, columns = _bounds(column, kw, sw, pw, w)
                    size = rows * columns if counts_padding else (y1 - y0) * (x1 - x0)
                    total += g[plane + row * ow + column] / kind(size)
            out[i] = total

    return loop


def _pooled(make: Callable[[np.dtype, int], Kernel], backwards: bool, each: int = 1) -> Callable[..., None]:
    """each: elements of a thread at a time."""

    def run(x, out, window, stride, padding, last):
        if not out.size:
            return
        whole, pooled = (out, x) if backwards else (x, out)
        blocks, threads = in_row(out.size, each)
        shape = (*whole.shape[1:], *pooled.shape[1:], *window, *stride, *padding)
        launch(make(x.dtype, threads), blocks, threads, x, out, shape, last)

    return run


def max_pool2d(x, out, window, stride, padding, dilation):
    out.set_limits(None)
    if x.size:
        _pooled(max_pooling, False, WINDOWS)(x, out, window, stride, padding, dilation)
    else:
        fill(out, -1)


def avg_pool2d(x, out, window, stride, padding, counts_padding):
    _pooled(averaging, False)(x, out, window, stride, padding, counts_padding)


def avg_pool2d_grad(g, out, window, stride, padding, counts_padding):
    _pooled(averaging_back, True)(g, out, window, stride, padding, counts_padding)


# --- along rows -------------------------------------------------------------------------------------------------------


@cache
def taking_in_rows(threads: int) -> Kernel:
    @kernel(threads)
    def loop(x, index, out, n, m):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] = x[i // m * n + index[i]]

    return loop


@cache
def scattering_in_rows(dtype: np.dtype, lanes: int, threads: int) -> Kernel:
    """A row has `lanes` threads, and each of them every so-many-th column. So two elements of g that go to one place
    are added by one thread, in order, and neighbours fill a row with zeros.
    """
    ZERO = dtype.type(0)

    @kernel(threads)
    def loop(g, index, out, n, m):
        for i in range(cuda.grid(1), out.size // n * lanes, cuda.gridsize(1)):
            row, lane = i // lanes, i % lanes
            for k in range(lane, n, lanes):
                out[row * n + k] = ZERO
            for j in range(row * m, row * m + m):
                if index[j] % lanes == lane:
                    out[row * n + index[j]] += g[j]

    return loop


def take_in_rows(x, index, out):
    if out.size:
        blocks, threads = in_row(out.size)
        launch(taking_in_rows(threads), blocks, threads, x, index, out, x.shape[1], out.shape[1])


def scatter_in_rows(g, index, out):
    if out.size:
        lanes = min(2 * tuning.current().columns, 1 << (out.shape[1] - 1).bit_length())
        blocks, threads = in_row(len(out) * lanes)
        g, index = (g, index) if g.size else (out, out)  # no element is read
        loop = scattering_in_rows(out.dtype, lanes, threads)
        launch(loop, blocks, threads, g, index, out, out.shape[1], index.shape[1] if g is not out else 0)


KERNELS = {
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_grad": avg_pool2d_grad,
    "take_in_rows": take_in_rows,
    "scatter_in_rows": scatter_in_rows,
}
