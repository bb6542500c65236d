"""Standardization of the middle axis of (outer, n, inner): layer norm's rows (inner = 1) and batch norm's columns.

A row stays in L1 while its mean, its variance and its results are computed; a strip of columns, wide enough for
vectors, in L2. Sums are in float64: of a row in lanes that depend on its length alone, of a column in order.
"""

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged
from .folds import total

STRIP = 128  # columns


@jit(reduction=True)
def sum_of_squares(row, shift):
    result = 0.0
    for j in range(row.size):
        result += (row[j] - shift) * (row[j] - shift)
    return result


@jit(reduction=True)
def sum_of_products(a, b, shift):
    result = 0.0
    for j in range(a.size):
        result += a[j] * (b[j] - shift)
    return result


@jit
def _standardize_rows(lo, hi, x, out, n, eps):
    for r in range(lo, hi):
        row, result = x[r * n : (r + 1) * n], out[r * n : (r + 1) * n]
        mean = total(row) / n
        scale = 1.0 / np.sqrt(sum_of_squares(row, mean) / n + eps)
        for j in range(n):
            result[j] = (row[j] - mean) * scale


@jit
def _standardize_rows_grad(lo, hi, g, x, out, n, eps):
    for r in range(lo, hi):
        row, g_row, result = x[r * n : (r + 1) * n], g[r * n : (r + 1) * n], out[r * n : (r + 1) * n]
        mean, g_mean = total(row) / n, total(g_row) / n
        scale = 1.0 / np.sqrt(sum_of_squares(row, mean) / n + eps)
        slope = sum_of_products(g_row, row, mean) / n * scale * scale
        for j in range(n):
            result[j] = (g_row[j] - g_mean - (row[j] - mean) * slope) * scale


@jit
def _standardize_columns(lo, hi, x, out, n, inner, eps, sums):
    """An item is a strip of columns. sums (2, outer * inner) float64: the strip's means, then its scales."""
    strips = (inner + STRIP - 1) // STRIP
    for item in range(lo, hi):
        column = item % strips * STRIP
        width, at = min(STRIP, inner - column), item // strips * n * inner + column
        first = item // strips * inner + column
        mean, scale = sums[0, first : first + width], sums[1, first : first + width]
        _means(x, at, n, inner, mean)
        _scales(x, at, n, inner, mean, eps, scale)
        for i in range(n):
            row, result = x[at + i * inner : at + i * inner + width], out[at + i * inner : at + i * inner + width]
            for j in range(width):
                result[j] = (row[j] - mean[j]) * scale[j]


@jit
def _standardize_columns_grad(lo, hi, g, x, out, n, inner, eps, sums):
    """sums (4, outer * inner) float64: means, scales, means of g, and slopes."""
    strips = (inner + STRIP - 1) // STRIP
    for item in range(lo, hi):
        column = item % strips * STRIP
        width, at = min(STRIP, inner - column), item // strips * n * inner + column
        first = item // strips * inner + column
        mean, scale = sums[0, first : first + width], sums[1, first : first + width]
        g_mean, slope = sums[2, first : first + width], sums[3, first : first + width]
        _means(x, at, n, inner, mean)
        _scales(x, at, n, inner, mean, eps, scale)
        _means(g, at, n, inner, g_mean)
        slope[:] = 0.0
        for i in range(n):
            row, g_row = x[at + i * inner : at + i * inner + width], g[at + i * inner : at + i * inner + width]
            for j in range(width):
                slope[j] += g_row[j] * (row[j] - mean[j])
        for j in range(width):
            slope[j] = slope[j] / n * scale[j] * scale[j]
        for i in range(n):
            row, g_row = x[at + i * inner : at + i * inner + width], g[at + i * inner : at + i * inner + width]
            result = out[at + i * inner : at + i * inner + width]
            for j in range(width):
                result[j] = (g_row[j] - g_mean[j] - (row[j] - mean[j]) * slope[j]) * scale[j]


@jit
def _means(x, at, n, inner, mean):
    """Four rows at a time, added up in order: the sums, twice as wide as what is added, are read and written less."""
    width = mean.size
    mean[:] = 0.0
    for i in range(0, n - 3, 4):
        first = at + i * inner
        a, b = x[first : first + width], x[first + inner : first + inner + width]
        c, d = x[first + 2 * inner :][:width], x[first + 3 * inner :][:width]
        for j in range(width):
            mean[j] = mean[j] + a[j] + b[j] + c[j] + d[j]
    for i in range(n - n % 4, n):
        row = x[at + i * inner : at + i * inner + width]
        for j in range(width):
            mean[j] += row[j]
    for j in range(width):
        mean[j] /= n


@jit
def _scales(x, at, n, inner, mean, eps, scale):
    """1 / sqrt(variance + eps). Four rows at a time, as in `_means`."""
    width = mean.size
    scale[:] = 0.0
    for i in range(0, n - 3, 4):
        first = at + i * inner
        a, b = x[first : first + width], x[first + inner : first + inner + width]
        c, d = x[first + 2 * inner :][:width], x[first + 3 * inner :][:width]
        for j in range(width):
            total, shift = scale[j], mean[j]
            total += (a[j] - shift) * (a[j] - shift)
            total += (b[j] - shift) * (b[j] - shift)
            total += (c[j] - shift) * (c[j] - shift)
            total += (d[j] - shift) * (d[j] - shift)
            scale[j] = total
    for i in range(n - n % 4, n):
        row = x[at + i * inner : at + i * inner + width]
        for j in range(width):
            scale[j] += (row[j] - mean[j]) * (row[j] - mean[j])
    for j in range(width):
        scale[j] = 1.0 / np.sqrt(scale[j] / n + eps)


def _kernel(name, rows, columns, inputs):
    """The kernel (inputs..., out, eps)."""
    by_rows = ranged(rows, name, writes=(inputs,), weight=4)
    by_columns = ranged(columns, f"{name}_columns", writes=(inputs, inputs + 4), whole=range(inputs + 1), weight=4)

    def kernel(*arguments):
        *arrays, eps = arguments
        outer, n, inner = arrays[0].shape
        if arrays[0].size == 0:
            return
        flat = [x.ravel() for x in arrays]
        if inner == 1:
            by_rows(outer, n, *flat, n, float(eps))
        else:
            strips = outer * -(-inner // STRIP)
            by_columns(strips, n * STRIP, *flat, n, inner, float(eps), np.empty((2 * inputs, outer * inner)))

    return kernel


KERNELS = {
    "standardize": _kernel("standardize", _standardize_rows, _standardize_columns, 1),
    "standardize_grad": _kernel("standardize_grad", _standardize_rows_grad, _standardize_columns_grad, 2),
}
