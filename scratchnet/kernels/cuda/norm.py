"""Standardization of the middle axis of x (outer, n, inner): layer norm's rows (inner = 1) and batch norm's columns.

The mean, then the mean square of what is left, then the results: three passes, of which the later ones find the data in
the cache. Rows have a block each; of columns a block has `columns` side by side and walks down all of them at once.
"""

from functools import cache

import numba
import numpy as np

from . import tuning
from .compile import Kernel, cuda, device, kernel, launch, sqrt
from .folds import folding
from .reduce import row_threads


@cache
def standardizing_rows(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    fold, kind = folding("sum", dtype, threads, warp, shuffles), numba.from_dtype(dtype)
    ZERO, ONE = dtype.type(0), dtype.type(1)

    @kernel(threads)
    def loop(x, out, n, length, eps):
        """length: n as a number of the dtype."""
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, out.size // n, cuda.gridDim.x):
            first, end = row * n + own, row * n + n
            total = ZERO
            for i in range(first, end, threads):
                total += x[i]
            mean = fold(total, own, shared) / length
            total = ZERO
            for i in range(first, end, threads):
                total += (x[i] - mean) * (x[i] - mean)
            scale = ONE / sqrt(fold(total, own, shared) / length + eps)
            for i in range(first, end, threads):
                out[i] = (x[i] - mean) * scale

    return loop


@cache
def standardizing_rows_grad(dtype: np.dtype, threads: int, warp: int, shuffles: bool) -> Kernel:
    fold, kind = folding("sum", dtype, threads, warp, shuffles), numba.from_dtype(dtype)
    ZERO, ONE = dtype.type(0), dtype.type(1)

    @kernel(threads)
    def loop(g, x, out, n, length, eps):
        shared = cuda.shared.array(threads, kind)
        own = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, out.size // n, cuda.gridDim.x):
            first, end = row * n + own, row * n + n
            total, total_g = ZERO, ZERO
            for i in range(first, end, threads):
                total += x[i]
                total_g += g[i]
            mean, mean_g = fold(total, own, shared) / length, fold(total_g, own, shared) / length
            total, slope = ZERO, ZERO
            for i in range(first, end, threads):
                total += (x[i] - mean) * (x[i] - mean)
                slope += g[i] * (x[i] - mean)
            scale = ONE / sqrt(fold(total, own, shared) / length + eps)
            slope = fold(slope, own, shared) / length * scale
            for i in range(first, end, threads):
                out[i] = (g[i] - mean_g - (x[i] - mean) * scale * slope) * scale

    return loop


@cache
def _over_layers(dtype: np.dtype, columns: int, threads: int):
    """A helper: what the layers of a column hold, added up for all of them."""

    @device
    def fold(value, own, layer, shared):
        shared[own] = value
        cuda.syncthreads()
        step = threads // columns // 2
        while step > 0:
            if layer < step:
                shared[own] += shared[own + step * columns]
            cuda.syncthreads()
            step //= 2
        result = shared[own - layer * columns]
        cuda.syncthreads()
        return result

    return fold


@cache
def standardizing_columns(dtype: np.dtype, columns: int, threads: int) -> Kernel:
    fold, kind = _over_layers(dtype, columns, threads), numba.from_dtype(dtype)
    LAYERS, ZERO, ONE = threads // columns, dtype.type(0), dtype.type(1)

    @kernel(threads)
    def loop(x, out, n, inner, length, eps):
        shared = cuda.shared.array(threads, kind)
        column, layer = cuda.threadIdx.x, cuda.threadIdx.y
        own = layer * columns + column
        strips = (inner + columns - 1) // columns
        for item in range(cuda.blockIdx.x, out.size // (n * inner) * strips, cuda.gridDim.x):
            j = item % strips * columns + column
            start, rows = item // strips * n * inner + j, n if j < inner else 0
            total = ZERO
            for i in range(layer, rows, LAYERS):
                total += x[start + i * inner]
            mean = fold(total, own, layer, shared) / length
            total = ZERO
            for i in range(layer, rows, LAYERS):
                value = x[start + i * inner] - mean
                total += value * value
            scale = ONE / sqrt(fold(total, own, layer, shared) / length + eps)
            for i in range(layer, rows, LAYERS):
                out[start + i * inner] = (x[start + i * inner] - mean) * scale

    return loop


@cache
def standardizing_columns_grad(dtype: np.dtype, columns: int, threads: int) -> Kernel:
    fold, kind = _over_layers(dtype, columns, threads), numba.from_dtype(dtype)
    LAYERS, ZERO, ONE = threads // columns, dtype.type(0), dtype.type(1)

    @kernel(threads)
    def loop(g, x, out, n, inner, length, eps):
        shared = cuda.shared.array(threads, kind)
        column, layer = cuda.threadIdx.x, cuda.threadIdx.y
        own = layer * columns + column
        strips = (inner + columns - 1) // columns
        for item in range(cuda.blockIdx.x, out.size // (n * inner) * strips, cuda.gridDim.x):
            j = item % strips * columns + column
            start, rows = item // strips * n * inner + j, n if j < inner else 0
            total, total_g = ZERO, ZERO
            for i in range(layer, rows, LAYERS):
                total += x[start + i * inner]
                total_g += g[start + i * inner]
            mean, mean_g = fold(total, own, layer, shared) / length, fold(total_g, own, layer, shared) / length
            total, slope = ZERO, ZERO
            for i in range(layer, rows, LAYERS):
                value = x[start + i * inner] - mean
                total += value * value
                slope += g[start + i * inner] * value
            scale = ONE / sqrt(fold(total, own, layer, shared) / length + eps)
            slope = fold(slope, own, layer, shared) / length * scale
            for i in range(layer, rows, LAYERS):
                at = start + i * inner
                out[at] = (g[at] - mean_g - (x[at] - mean) * scale * slope) * scale

    return loop


def _standardizing(rows, columns):
    def run(*arguments):
        *arrays, eps = arguments
        outer, n, inner = arrays[0].shape
        if not arrays[0].size:
            return
        numbers, dtype = tuning.current(), arrays[0].dtype
        length, eps = dtype.type(n), dtype.type(eps)
        if inner == 1:
            threads = row_threads(n)
            loop = rows(dtype, threads, numbers.warp, numbers.shuffles)
            launch(loop, min(outer, numbers.blocks), threads, *arrays, n, length, eps)
        else:
            loop = columns(dtype, numbers.columns, numbers.threads)
            blocks = min(outer * -(-inner // numbers.columns), numbers.blocks)
            shape = (numbers.columns, numbers.threads // numbers.columns)
            launch(loop, blocks, shape, *arrays, n, inner, length, eps)

    return run


KERNELS = {
    "standardize": _standardizing(standardizing_rows, standardizing_columns),
    "standardize_grad": _standardizing(standardizing_rows_grad, standardizing_columns_grad),
}
