"""Standardization of the middle axis of x (outer, n, inner): layer norm's rows (inner = 1) and batch norm's columns.

Three passes: the mean, the variance, the results. The later ones find the data in the cache. A block works on a row, or
on some columns side by side.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from .compile import Kernel, cuda, kernel, launch, sqrt
from .reduce import Strip


@cache
def standardizing(dtype: np.dtype, strip: Strip, fold: Callable) -> Kernel:
    kind, (COLUMNS, THREADS), LAYERS = numba.from_dtype(dtype), strip, strip.threads // strip.columns
    ZERO, ONE = dtype.type(0), dtype.type(1)

    @kernel(THREADS)
    def loop(x, out, n, inner, length, eps):
        """length: n as a number of the dtype."""
        shared = cuda.shared.array(THREADS, kind)
        own = cuda.threadIdx.x
        column, layer = own % COLUMNS, own // COLUMNS
        strips = (inner + COLUMNS - 1) // COLUMNS
        for item in range(cuda.blockIdx.x, out.size // (n * inner) * strips, cuda.gridDim.x):
            j = item % strips * COLUMNS + column
            start, rows = item // strips * n * inner + j, n if j < inner else 0
            total = ZERO
            for i in range(layer, rows, LAYERS):
                total += x[start + i * inner]
            mean = fold(total, own, shared) / length
            total = ZERO
            for i in range(layer, rows, LAYERS):
                value = x[start + i * inner] - mean
                total += value * value
            scale = ONE / sqrt(fold(total, own, shared) / length + eps)
            for i in range(layer, rows, LAYERS):
                out[start + i * inner] = (x[start + i * inner] - mean) * scale

    return loop


@cache
def standardizing_grad(dtype: np.dtype, strip: Strip, fold: Callable) -> Kernel:
    kind, (COLUMNS, THREADS), LAYERS = numba.from_dtype(dtype), strip, strip.threads // strip.columns
    ZERO, ONE = dtype.type(0), dtype.type(1)

    @kernel(THREADS)
    def loop(g, x, out, n, inner, length, eps):
        shared = cuda.shared.array(THREADS, kind)
        own = cuda.threadIdx.x
        column, layer = own % COLUMNS, own // COLUMNS
        strips = (inner + COLUMNS - 1) // COLUMNS
        for item in range(cuda.blockIdx.x, out.size // (n * inner) * strips, cuda.gridDim.x):
            j = item % strips * COLUMNS + column
            start, rows = item // strips * n * inner + j, n if j < inner else 0
            total, total_g = ZERO, ZERO
            for i in range(layer, rows, LAYERS):
                total += x[start + i * inner]
                total_g += g[start + i * inner]
            mean, mean_g = fold(total, own, shared) / length, fold(total_g, own, shared) / length
            total, slope = ZERO, ZERO
            for i in range(layer, rows, LAYERS):
                value = x[start + i * inner] - mean
                total += value * value
                slope += g[start + i * inner] * value
            scale = ONE / sqrt(fold(total, own, shared) / length + eps)
            slope = fold(slope, own, shared) / length * scale
            for i in range(layer, rows, LAYERS):
                at = start + i * inner
                out[at] = (g[at] - mean_g - (x[at] - mean) * scale * slope) * scale

    return loop


def _over_strips(make):
    def run(*arguments):
        *arrays, eps = arguments
        (outer, n, inner), dtype = arrays[0].shape, arrays[0].dtype
        if arrays[0].size:
            strip = Strip.of(n, inner)
            loop = make(dtype, strip, strip.folding("sum", dtype))
            launch(loop, strip.blocks(outer, inner), strip.threads, *arrays, n, inner, dtype.type(n), dtype.type(eps))

    return run


KERNELS = {"standardize": _over_strips(standardizing), "standardize_grad": _over_strips(standardizing_grad)}
