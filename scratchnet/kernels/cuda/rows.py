"""Softmax and cross-entropy: one block a row, which reads it from memory once and then from the cache.

The row's maximum, then the sum of exp(x - maximum), then the results; threads walk along the row side by side.
"""

from functools import cache

import numba
import numpy as np

from . import tuning
from .compile import Kernel, cuda, device, exp, kernel, launch, log
from .folds import folding, neutral
from .reduce import row_threads


@cache
def _parts(dtype: np.dtype, threads: int, warp: int, shuffles: bool):
    """Helpers (shared memory has `threads` words): the largest of a row, and the sum of exp(x - shift)."""
    fold_max = folding("max", dtype, threads, 1, warp, shuffles)
    fold_sum = folding("sum", dtype, threads, 1, warp, shuffles)
    LOWEST, ZERO = neutral("max", dtype), dtype.type(0)

    @device
    def top_of(x, start, n, own, shared):
        top = LOWEST
        for i in range(own, n, threads):
            value = x[start + i]
            top = top if (top >= value) | (top != top) else value
        return fold_max(top, own, shared)

    @device
    def sum_of(x, start, n, own, shared, shift):
        total = ZERO
        for i in range(own, n, threads):
            total += exp(x[start + i] - shift)
        return fold_sum(total, own, shared)

    return top_of, sum_of, fold_sum


@cache
def softmax_rows(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    top_of, sum_of, _ = _parts(dtype, threads, warp, shuffles)
    kind = numba.from_dtype(dtype)

    @kernel(threads)
    def loop(x, out, n):
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, out.size // n, cuda.gridDim.x):
            top = top_of(x, row * n, n, own, shared)
            total = sum_of(x, row * n, n, own, shared, top)
            for i in range(row * n + own, row * n + n, threads):
                out[i] = exp(x[i] - top) / total

    return loop


@cache
def log_softmax_rows(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    top_of, sum_of, _ = _parts(dtype, threads, warp, shuffles)
    kind = numba.from_dtype(dtype)

    @kernel(threads)
    def loop(x, out, n):
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, out.size // n, cuda.gridDim.x):
            top = top_of(x, row * n, n, own, shared)
            shift = log(sum_of(x, row * n, n, own, shared, top))
            for i in range(row * n + own, row * n + n, threads):
                out[i] = x[i] - top - shift

    return loop


@cache
def logsumexp_rows(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    top_of, sum_of, _ = _parts(dtype, threads, warp, shuffles)
    kind, ZERO = numba.from_dtype(dtype), dtype.type(0)

    @kernel(threads)
    def loop(x, out, n):
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, out.size, cuda.gridDim.x):
            top = top_of(x, row * n, n, own, shared)
            shift = top if top - top == ZERO else ZERO  # a row of -inf gives -inf, not NaN
            total = sum_of(x, row * n, n, own, shared, shift)
            if own == 0:
                out[row] = log(total) + shift

    return loop


@cache
def cross_entropy_rows(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    top_of, sum_of, _ = _parts(dtype, threads, warp, shuffles)
    kind = numba.from_dtype(dtype)

    @kernel(threads)
    def loop(x, labels, out, n):
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, out.size, cuda.gridDim.x):
            top = top_of(x, row * n, n, own, shared)
            total = sum_of(x, row * n, n, own, shared, top)
            if own == 0:
                out[row] = log(total) - (x[row * n + labels[row]] - top)

    return loop


@cache
def cross_entropy_grad_rows(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    top_of, sum_of, _ = _parts(dtype, threads, warp, shuffles)
    kind, ZERO, ONE = numba.from_dtype(dtype), dtype.type(0), dtype.type(1)

    @kernel(threads)
    def loop(g, x, labels, out, n):
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, g.size, cuda.gridDim.x):
            top = top_of(x, row * n, n, own, shared)
            total = sum_of(x, row * n, n, own, shared, top)
            scale, label = g[row], labels[row]
            for i in range(own, n, threads):
                one = ONE if i == label else ZERO
                out[row * n + i] = (exp(x[row * n + i] - top) / total - one) * scale

    return loop


@cache
def softmax_grad_rows(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    _, _, fold_sum = _parts(dtype, threads, warp, shuffles)
    kind, ZERO = numba.from_dtype(dtype), dtype.type(0)

    @kernel(threads)
    def loop(g, y, out, n):
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, out.size // n, cuda.gridDim.x):
            total = ZERO
            for i in range(row * n + own, row * n + n, threads):
                total += g[i] * y[i]
            total = fold_sum(total, own, shared)
            for i in range(row * n + own, row * n + n, threads):
                out[i] = y[i] * (g[i] - total)

    return loop


def _by_rows(make, matrix: int):
    """The kernel `run(*arrays)`, of which number `matrix` is (rows, n)."""

    def run(*arrays):
        rows, n = arrays[matrix].shape
        if rows and n:
            numbers, threads = tuning.current(), row_threads(n)
            loop = make(arrays[matrix].dtype, threads, numbers.warp, numbers.shuffles)
            launch(loop, min(rows, numbers.blocks), threads, *arrays, n)

    return run


KERNELS = {
    "softmax": _by_rows(softmax_rows, 0),
    "softmax_grad": _by_rows(softmax_grad_rows, 0),
    "logsumexp": _by_rows(logsumexp_rows, 0),
    "log_softmax": _by_rows(log_softmax_rows, 0),
    "cross_entropy": _by_rows(cross_entropy_rows, 0),
    "cross_entropy_grad": _by_rows(cross_entropy_grad_rows, 1),
}
