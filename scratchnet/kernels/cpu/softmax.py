"""Row kernels: softmax and its relatives on (rows, n). Rows are independent; sums over a row are in float64."""

import numpy as np

from .blocks import ranged
from .compile import jit


@jit
def _top(row):
    top = row[0]
    for j in range(1, row.size):
        top = row[j] if (row[j] > top) | (row[j] != row[j]) else top
    return top


@jit
def _sum_exp(row, shift):
    total = 0.0
    for j in range(row.size):
        total += np.exp(row[j] - shift)
    return total


@jit
def _softmax_row(row, out):
    top, total = _top(row), 0.0
    for j in range(row.size):
        out[j] = np.exp(row[j] - top)
        total += out[j]
    total = out.dtype.type(total)
    for j in range(row.size):
        out[j] /= total


@jit
def _softmax(x, out, lo, hi):
    for r in range(lo, hi):
        _softmax_row(x[r], out[r])


@jit
def _softmax_grad(g, y, out, lo, hi):
    for r in range(lo, hi):
        dot = 0.0
        for j in range(y.shape[1]):
            dot += g[r, j] * y[r, j]
        dot = out.dtype.type(dot)
        for j in range(y.shape[1]):
            out[r, j] = y[r, j] * (g[r, j] - dot)


@jit
def _logsumexp(x, out, lo, hi):
    for r in range(lo, hi):
        top = _top(x[r])
        shift = top if np.isfinite(top) else out.dtype.type(0)  # a row of -inf gives -inf, not NaN
        out[r] = np.log(_sum_exp(x[r], shift)) + shift


@jit
def _log_softmax(x, out, lo, hi):
    for r in range(lo, hi):
        top = _top(x[r])
        log_total = out.dtype.type(np.log(_sum_exp(x[r], top)))
        for j in range(x.shape[1]):
            out[r, j] = (x[r, j] - top) - log_total


@jit
def _cross_entropy(logits, labels, out, lo, hi):
    for r in range(lo, hi):
        top = _top(logits[r])
        out[r] = np.log(_sum_exp(logits[r], top)) - (logits[r, labels[r]] - top)


@jit
def _cross_entropy_grad(g, logits, labels, out, lo, hi):
    one = out.dtype.type(1)
    for r in range(lo, hi):
        _softmax_row(logits[r], out[r])
        out[r, labels[r]] -= one
        for j in range(logits.shape[1]):
            out[r, j] *= g[r]


def _rows(name, template):
    """The kernel (arrays..., out) that runs a template over the rows of `out`; the last 2-D array has the columns."""
    run = ranged(template, name)

    def kernel(*arrays):
        x = arrays[0] if arrays[0].ndim == 2 else arrays[1]
        run(x.shape[0], x.shape[1], *arrays)

    return kernel


KERNELS = {
    "softmax": _rows("softmax", _softmax),
    "softmax_grad": _rows("softmax_grad", _softmax_grad),
    "logsumexp": _rows("logsumexp", _logsumexp),
    "log_softmax": _rows("log_softmax", _log_softmax),
    "cross_entropy": _rows("cross_entropy", _cross_entropy),
    "cross_entropy_grad": _rows("cross_entropy_grad", _cross_entropy_grad),
}
