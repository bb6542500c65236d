"""Standardization of the middle axis of x (outer, n, inner): layer norm's rows (inner = 1) and batch norm's columns.

Three passes: the mean, the variance, the results. The later ones find the data in the cache. A block works on a row, or
on some columns side by side.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from .compile import Kernel, cuda, kernel, launch, sqrt
from .grids import in_row
from .movement import fill
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


@cache
def channel_moments_loop(dtype: np.dtype, threads: int) -> Kernel:
    ZERO = dtype.type(0)

    @kernel(threads)
    def loop(x, out, n, channels, size, count):
        """count: n * size as a number of the dtype. A thread has a channel."""
        for c in range(cuda.grid(1), channels, cuda.gridsize(1)):
            mean, variance = ZERO, ZERO
            for image in range(n):
                part = ZERO  # of one image: a sum over all would lose digits with their number
                for i in range((image * channels + c) * size, (image * channels + c + 1) * size):
                    part += x[i]
                mean += part / count
            for image in range(n):
                part = ZERO
                for i in range((image * channels + c) * size, (image * channels + c + 1) * size):
                    part += (x[i] - mean) * (x[i] - mean)
                variance += part / count
            out[c], out[channels + c] = mean, variance

    return loop


@cache
def normalising(dtype: np.dtype, threads: int) -> Kernel:
    @kernel(threads)
    def loop(x, moments, weight, bias, out, channels, size, eps):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            c = i // size % channels
            out[i] = (x[i] - moments[c]) / sqrt(moments[channels + c] + eps) * weight[c] + bias[c]

    return loop


@cache
def channel_sums_loop(dtype: np.dtype, threads: int) -> Kernel:
    ZERO = dtype.type(0)

    @kernel(threads)
    def loop(g, x, moments, out, n, channels, size, eps):
        for c in range(cuda.grid(1), channels, cuda.gridsize(1)):
            products, plain = ZERO, ZERO
            for image in range(n):
                product, part = ZERO, ZERO
                for i in range((image * channels + c) * size, (image * channels + c + 1) * size):
                    product += g[i] * (x[i] - moments[c])
                    part += g[i]
                products += product
                plain += part
            out[c], out[channels + c] = products / sqrt(moments[channels + c] + eps), plain

    return loop


@cache
def normalising_back(dtype: np.dtype, threads: int) -> Kernel:
    @kernel(threads)
    def loop(g, x, moments, weight, sums, out, channels, size, count, eps):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            c = i // size % channels
            root = sqrt(moments[channels + c] + eps)
            y = (x[i] - moments[c]) / root
            out[i] = weight[c] / root * (g[i] - (sums[channels + c] + y * sums[c]) / count)

    return loop


def channel_moments(x, out):
    (n, channels, size), dtype = x.shape, x.dtype
    if channels:
        blocks, threads = in_row(channels)
        loop = channel_moments_loop(dtype, threads)
        launch(loop, blocks, threads, x, out, n, channels, size, dtype.type(n * size))


def batch_norm(x, moments, weight, bias, out, eps):
    if x.size:
        blocks, threads = in_row(x.size)
        loop, (_, channels, size) = normalising(x.dtype, threads), x.shape
        launch(loop, blocks, threads, x, moments, weight, bias, out, channels, size, x.dtype.type(eps))


def batch_norm_sums(g, x, moments, out, eps):
    n, channels, size = x.shape
    if not x.size:
        fill(out, 0)
        return
    blocks, threads = in_row(channels)
    loop = channel_sums_loop(x.dtype, threads)
    launch(loop, blocks, threads, g, x, moments, out, n, channels, size, x.dtype.type(eps))


def batch_norm_grad(g, x, moments, weight, sums, out, eps):
    if x.size:
        blocks, threads = in_row(x.size)
        loop, (n, channels, size) = normalising_back(x.dtype, threads), x.shape
        numbers = channels, size, x.dtype.type(n * size), x.dtype.type(eps)
        launch(loop, blocks, threads, g, x, moments, weight, sums, out, *numbers)


def _over_strips(make):
    def run(*arguments):
        *arrays, eps = arguments
        (outer, n, inner), dtype = arrays[0].shape, arrays[0].dtype
        if arrays[0].size:
            strip = Strip.of(n, inner)
            loop = make(dtype, strip, strip.folding("sum", dtype))
            launch(loop, strip.blocks(outer, inner), strip.threads, *arrays, n, inner, dtype.type(n), dtype.type(eps))

    return run


KERNELS = {
    "standardize": _over_strips(standardizing),
    "standardize_grad": _over_strips(standardizing_grad),
    "channel_moments": channel_moments,
    "batch_norm": batch_norm,
    "batch_norm_sums": batch_norm_sums,
    "batch_norm_grad": batch_norm_grad,
}
