"""Batch norm of (n, c, l): what is known of a channel is two numbers, so each pass reads a batch once.

The row of a channel in one image stays in L1 while its mean and its variance are computed; rows are merged as Chan,
Golub and LeVeque (1979) merge samples, in float64 and in the order of the batch. Of sums an item is a channel, of
results an image.
"""

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged
from .folds import total
from .norm import sum_of_products, sum_of_squares


@jit
def _moments(lo, hi, x, out, n, channels, length):
    for c in range(lo, hi):
        mean, squares = 0.0, 0.0
        for image in range(n):
            start, before = (image * channels + c) * length, image * length
            row = x[start : start + length]
            own = total(row) / length
            apart, part = own - mean, length / (before + length)
            mean += apart * part
            squares += sum_of_squares(row, own) + apart * apart * before * part
        out[c], out[channels + c] = mean, squares / (n * length)


@jit
def _normalise(lo, hi, x, moments, weight, bias, out, length, eps):
    for image in range(lo, hi):
        for c in range(weight.size):
            start = (image * weight.size + c) * length
            row, result = x[start : start + length], out[start : start + length]
            scale = x.dtype.type(weight[c] / np.sqrt(moments[weight.size + c] + eps))
            mean, shift = moments[c], bias[c]
            for j in range(length):
                result[j] = (row[j] - mean) * scale + shift


@jit
def _sums(lo, hi, g, x, moments, out, n, channels, length, eps):
    for c in range(lo, hi):
        products, plain, mean = 0.0, 0.0, np.float64(moments[c])
        for image in range(n):
            start = (image * channels + c) * length
            g_row = g[start : start + length]
            plain += total(g_row)
            products += sum_of_products(g_row, x[start : start + length], mean)
        out[c], out[channels + c] = products / np.sqrt(moments[channels + c] + eps), plain


@jit
def _gradient(lo, hi, g, x, moments, weight, sums, out, length, eps):
    count = x.size // weight.size
    for image in range(lo, hi):
        for c in range(weight.size):
            start = (image * weight.size + c) * length
            row, g_row, result = x[start : start + length], g[start : start + length], out[start : start + length]
            root = 1.0 / np.sqrt(moments[weight.size + c] + eps)
            scale, slope = x.dtype.type(weight[c] * root), x.dtype.type(sums[c] * root / count)
            mean, shift = moments[c], x.dtype.type(sums[weight.size + c] / count)
            for j in range(length):
                result[j] = (g_row[j] - shift - (row[j] - mean) * slope) * scale


_run_moments = ranged(_moments, "channel_moments", writes=(1,), whole=(0, 1), weight=4)
_run_normalise = ranged(_normalise, "batch_norm", writes=(4,), whole=(1, 2, 3))
_run_sums = ranged(_sums, "batch_norm_sums", writes=(3,), whole=(0, 1, 2, 3), weight=4)
_run_gradient = ranged(_gradient, "batch_norm_grad", writes=(5,), whole=(2, 3, 4), weight=2)


def channel_moments(x, out):
    n, c, length = x.shape
    _run_moments(c, n * length, x.ravel(), out.ravel(), n, c, length)


def batch_norm(x, moments, weight, bias, out, eps):
    n, c, length = x.shape
    if x.size:
        _run_normalise(n, c * length, x.ravel(), moments.ravel(), weight, bias, out.ravel(), length, float(eps))


def batch_norm_sums(g, x, moments, out, eps):
    n, c, length = x.shape
    _run_sums(c, n * length, g.ravel(), x.ravel(), moments.ravel(), out.ravel(), n, c, length, float(eps))


def batch_norm_grad(g, x, moments, weight, sums, out, eps):
    n, c, length = x.shape
    if x.size:
        arrays = (a.ravel() for a in (g, x, moments, weight, sums, out))
        _run_gradient(n, c * length, *arrays, length, float(eps))


KERNELS = {
    "channel_moments": channel_moments,
    "batch_norm": batch_norm,
    "batch_norm_sums": batch_norm_sums,
    "batch_norm_grad": batch_norm_grad,
}
