"""Softmax, log-softmax and cross-entropy of rows (rows, n). An item is a row; its sums are in float64.

A short row, such as the logits of ten classes, does not fill a vector, and would be computed number by number. So
softmax and cross-entropy transpose short rows, SIDE at a time: then they lie side by side in the vectors. The loss of
200 rows of ten takes 3 us for 12 on a Xeon. A row has the same bits wherever it lies.
"""

from typing import NamedTuple

import numpy as np

from ...native.compile import jit
from ...native.llvm import Operand
from ...native.loops import ranged, scratch
from .exponential import exp, log
from .folds import dot, maximum, top, total
from .gemm import own_scratch
from .gemm_pack import transpose_block

SHORT, SIDE = 32, 64  # elements of a short row, at most; rows that are computed together
BLOCK = 1024  # elements whose exp is in scratch memory, and in L1


@jit
def _sum_exp(row, shift, work):
    """The sum of exp(row - shift), a block at a time: in one loop float64 would halve the vectors of exp.

    work: float64 scratch memory.
    """
    own, result = own_scratch(work), 0.0
    memory = own.array.ravel()[own.at : own.at + work.shape[1]].view(row.dtype)
    for at in range(0, row.size, BLOCK):
        part = row[at : at + BLOCK]
        exps = memory[: part.size]
        for j in range(exps.size):
            exps[j] = exp(part[j] - shift)
        result += total(exps)
    return result


@jit
def _softmax_row(row, out):
    shift = top(row)
    for j in range(row.size):
        out[j] = exp(row[j] - shift)
    scale = out.dtype.type(total(out))
    for j in range(row.size):
        out[j] /= scale


class _Side(NamedTuple):
    """Short rows, transposed: element j of row i is exps[j * SIDE + i]. Of each the maximum, and the sum of exps."""

    exps: np.ndarray
    tops: np.ndarray
    totals: np.ndarray


@jit
def _side_by_side(x, first, count, work):
    """exp(x - the row's maximum) of `count` rows from the first; work: float64 scratch memory."""
    n, own = x.shape[1], own_scratch(work)
    memory = own.array.ravel()[own.at : own.at + work.shape[1]]
    totals, memory = memory[:count], memory[SIDE:].view(x.dtype)
    tops, exps = memory[:count], memory[SIDE : SIDE + max(n, 1) * SIDE]
    transpose_block(Operand(x, first * n, n, 0), count, n, Operand(exps, 0, SIDE, 0))
    for i in range(count):
        tops[i] = exps[i]
    for j in range(1, n):
        column = exps[j * SIDE : j * SIDE + count]
        for i in range(count):
            tops[i] = maximum(tops[i], column[i])
    totals[:] = 0
    for j in range(n):
        column = exps[j * SIDE : j * SIDE + count]
        for i in range(count):
            column[i] = exp(column[i] - tops[i])
        for i in range(count):
            totals[i] += column[i]
    return _Side(exps, tops, totals)


@jit
def _divide(side):
    """exps become the softmax of their rows."""
    count, f = side.tops.size, side.tops.dtype.type
    for j in range(side.exps.size // SIDE):
        column = side.exps[j * SIDE : j * SIDE + count]
        for i in range(count):
            column[i] /= f(side.totals[i])


@jit
def _softmax(lo, hi, x, out, work):
    n = x.shape[1]
    if n > SHORT:
        for r in range(lo, hi):
            _softmax_row(x[r], out[r])
        return
    for r in range(lo, hi, SIDE):
        count = min(SIDE, hi - r)
        side = _side_by_side(x, r, count, work)
        _divide(side)
        transpose_block(Operand(side.exps, 0, SIDE, 0), n, count, Operand(out, r * n, n, 0))


@jit
def _softmax_grad(lo, hi, g, y, out):
    for r in range(lo, hi):
        g_row, y_row, out_row = g[r], y[r], out[r]
        mean = out.dtype.type(dot(g_row, y_row))
        for j in range(out_row.size):
            out_row[j] = y_row[j] * (g_row[j] - mean)


@jit
def _logsumexp(lo, hi, x, out, work):
    for r in range(lo, hi):
        shift = top(x[r])
        shift = shift if np.isfinite(shift) else out.dtype.type(0)  # a row of -inf gives -inf, not NaN
        out[r] = np.log(_sum_exp(x[r], shift, work)) + shift


@jit
def _log_softmax(lo, hi, x, out, work):
    for r in range(lo, hi):
        row, out_row = x[r], out[r]
        shift = top(row)
        log_total = out.dtype.type(np.log(_sum_exp(row, shift, work)))
        for j in range(row.size):
            out_row[j] = (row[j] - shift) - log_total


@jit
def _cross_entropy(lo, hi, logits, labels, out, work):
    if logits.shape[1] > SHORT:
        for r in range(lo, hi):
            row = logits[r]
            shift = top(row)
            out[r] = np.log(_sum_exp(row, shift, work)) - (row[labels[r]] - shift)
        return
    for r in range(lo, hi, SIDE):
        side = _side_by_side(logits, r, min(SIDE, hi - r), work)
        totals = side.totals
        for i in range(totals.size):
            totals[i] = log(totals[i])
        for i in range(totals.size):
            out[r + i] = totals[i] - (logits[r + i, labels[r + i]] - side.tops[i])


@jit
def _cross_entropy_grad(lo, hi, g, logits, labels, out, work):
    n = logits.shape[1]
    if n > SHORT:
        for r in range(lo, hi):
            row, scale = out[r], g[r]
            _softmax_row(logits[r], row)
            row[labels[r]] -= out.dtype.type(1)
            for j in range(row.size):
                row[j] *= scale
        return
    for r in range(lo, hi, SIDE):
        count = min(SIDE, hi - r)
        side, scale = _side_by_side(logits, r, count, work), g[r : r + count]
        _divide(side)
        for i in range(count):
            side.exps[labels[r + i] * SIDE + i] -= out.dtype.type(1)
        for j in range(n):
            column = side.exps[j * SIDE : j * SIDE + count]
            for i in range(count):
                column[i] *= scale[i]
        transpose_block(Operand(side.exps, 0, SIDE, 0), n, count, Operand(out, r * n, n, 0))


def _rows(name, template, inputs, weight=8, works=True):
    """The kernel (arrays..., out) that runs a template over the rows of its first two-dimensional array.

    works: does it take scratch memory?
    """
    run = ranged(template, name, writes=(inputs,), private=(inputs + 1,) if works else (), weight=weight)

    def kernel(*arrays):
        x = arrays[0] if arrays[0].ndim == 2 else arrays[1]
        work = (scratch((SHORT + 2) * SIDE, np.dtype(np.float64)),) if works else ()
        run(x.shape[0], x.shape[1], *arrays, *work)

    return kernel


KERNELS = {
    "softmax": _rows("softmax", _softmax, 1),
    "softmax_grad": _rows("softmax_grad", _softmax_grad, 2, weight=1, works=False),
    "logsumexp": _rows("logsumexp", _logsumexp, 1),
    "log_softmax": _rows("log_softmax", _log_softmax, 1),
    "cross_entropy": _rows("cross_entropy", _cross_entropy, 2),
    "cross_entropy_grad": _rows("cross_entropy_grad", _cross_entropy_grad, 3),
}
