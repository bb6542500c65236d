"""Batch norm of (n, c, l): what is known of a channel is two numbers, so each pass reads a batch once.

The row of a channel in one image stays in L1 while its mean and its variance are computed; rows are merged as Chan,
Golub and LeVeque (1979) merge samples, in float64 and in the order of the batch. An item is an image, so that in a
recorded step its moments are those of what a convolution has just written; where images are merged, it is a channel.
"""

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged, workspace
from .folds import total
from .norm import sum_of_products, sum_of_squares

FLOAT64 = np.dtype(np.float64)


@jit
def _image_moments(lo, hi, x, partial, length):
    """Of each image: the means of its channels, then the sums of squares around these."""
    channels = partial.shape[1] // 2
    for image in range(lo, hi):
        for c in range(channels):
            start = (image * channels + c) * length
            row = x[start : start + length]
            mean = total(row) / length
            partial[image, c], partial[image, channels + c] = mean, sum_of_squares(row, mean)


@jit
def _merge_moments(lo, hi, partial, out, length):
    n, channels = partial.shape[0], partial.shape[1] // 2
    for c in range(lo, hi):
        mean, squares = 0.0, 0.0
        for image in range(n):
            before = image * length
            apart, part = partial[image, c] - mean, length / (before + length)
            mean += apart * part
            squares += partial[image, channels + c] + apart * apart * before * part
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
def _image_sums(lo, hi, g, x, moments, partial, length):
    """Of each image and channel: the sum of g times x less its mean, then that of g."""
    channels = partial.shape[1] // 2
    for image in range(lo, hi):
        for c in range(channels):
            start = (image * channels + c) * length
            g_row = g[start : start + length]
            products = sum_of_products(g_row, x[start : start + length], np.float64(moments[c]))
            partial[image, c], partial[image, channels + c] = products, total(g_row)


@jit
def _merge_sums(lo, hi, partial, moments, out, eps):
    channels = partial.shape[1] // 2
    for c in range(lo, hi):
        products, plain = 0.0, 0.0
        for row in partial:
            products += row[c]
            plain += row[channels + c]
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


_run_moments = ranged(_image_moments, "channel_moments", writes=(1,), weight=4)
_run_merge_moments = ranged(_merge_moments, "channel_moments_merge", writes=(1,), whole=(0, 1), weight=4)
_run_normalise = ranged(_normalise, "batch_norm", writes=(4,), whole=(1, 2, 3))
_run_sums = ranged(_image_sums, "batch_norm_sums", writes=(3,), whole=(2,), weight=4)
_run_merge_sums = ranged(_merge_sums, "batch_norm_sums_merge", writes=(2,), whole=(0, 1, 2), weight=4)
_run_gradient = ranged(_gradient, "batch_norm_grad", writes=(5,), whole=(2, 3, 4), weight=2)


def channel_moments(x, out):
    n, c, length = x.shape
    partial = workspace((n, 2 * c), FLOAT64)
    _run_moments(n, c * length, x.ravel(), partial, length)
    _run_merge_moments(c, n, partial, out.ravel(), length)


def batch_norm(x, moments, weight, bias, out, eps):
    n, c, length = x.shape
    if x.size:
        _run_normalise(n, c * length, x.ravel(), moments.ravel(), weight, bias, out.ravel(), length, float(eps))


def batch_norm_sums(g, x, moments, out, eps):
    n, c, length = x.shape
    partial = workspace((n, 2 * c), FLOAT64)
    _run_sums(n, c * length, g.ravel(), x.ravel(), moments.ravel(), partial, length)
    _run_merge_sums(c, n, partial, moments.ravel(), out.ravel(), float(eps))


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
