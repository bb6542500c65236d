"""Softmax, log-softmax and cross-entropy of rows (rows, n). An item is a row; its sums are in float64."""

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged
from .exponential import exp
from .folds import dot, top, total


@jit(reduction=True)
def _sum_exp(row, shift):
    total = 0.0
    for j in range(row.size):
        total += exp(row[j] - shift)
    return total


@jit
def _softmax_row(row, out):
    shift = top(row)
    for j in range(row.size):
        out[j] = exp(row[j] - shift)
    scale = out.dtype.type(total(out))
    for j in range(row.size):
        out[j] /= scale


@jit
def _softmax(lo, hi, x, out):
    for r in range(lo, hi):
        _softmax_row(x[r], out[r])


@jit
def _softmax_grad(lo, hi, g, y, out):
    for r in range(lo, hi):
        g_row, y_row, out_row = g[r], y[r], out[r]
        mean = out.dtype.type(dot(g_row, y_row))
        for j in range(out_row.size):
            out_row[j] = y_row[j] * (g_row[j] - mean)


@jit
def _logsumexp(lo, hi, x, out):
    for r in range(lo, hi):
        shift = top(x[r])
        shift = shift if np.isfinite(shift) else out.dtype.type(0)  # a row of -inf gives -inf, not NaN
        out[r] = np.log(_sum_exp(x[r], shift)) + shift


@jit
def _log_softmax(lo, hi, x, out):
    for r in range(lo, hi):
        row, out_row = x[r], out[r]
        shift = top(row)
        log_total = out.dtype.type(np.log(_sum_exp(row, shift)))
        for j in range(row.size):
            out_row[j] = (row[j] - shift) - log_total


@jit
def _cross_entropy(lo, hi, logits, labels, out):
    for r in range(lo, hi):
        row = logits[r]
        shift = top(row)
        out[r] = np.log(_sum_exp(row, shift)) - (row[labels[r]] - shift)


@jit
def _cross_entropy_grad(lo, hi, g, logits, labels, out):
    for r in range(lo, hi):
        row, scale = out[r], g[r]
        _softmax_row(logits[r], row)
        row[labels[r]] -= out.dtype.type(1)
        for j in range(row.size):
            row[j] *= scale


def _rows(name, template, inputs, weight=8):
    """The kernel (arrays..., out) that runs a template over the rows of its first two-dimensional array."""
    run = ranged(template, name, writes=(inputs,), weight=weight)

    def kernel(*arrays):
        x = arrays[0] if arrays[0].ndim == 2 else arrays[1]
        run(x.shape[0], x.shape[1], *arrays)

    return kernel


KERNELS = {
    "softmax": _rows("softmax", _softmax, 1),
    "softmax_grad": _rows("softmax_grad", _softmax_grad, 2, weight=1),
    "logsumexp": _rows("logsumexp", _logsumexp, 1),
    "log_softmax": _rows("log_softmax", _log_softmax, 1),
    "cross_entropy": _rows("cross_entropy", _cross_entropy, 2),
    "cross_entropy_grad": _rows("cross_entropy_grad", _cross_entropy_grad, 3),
}
