"""Reductions of the middle axis of (outer, n, inner): of runs of fixed length, then of their results, and so on.

The order of a sum is a tree that depends on n alone: no run is longer than RUN, and within a contiguous run the
compiler adds in parallel lanes, always the same. So the error grows with RUN and the depth of the tree, not with n.
"""

from collections.abc import Callable

import numpy as np

from ...native.compile import jit, stamp
from ...native.loops import ranged
from .. import reference
from .folds import maximum, minimum

RUN_CONTIGUOUS, RUN_STRIDED = 4096, 256  # elements of a run: summed in 16 or more lanes, or one after the other
RUN_ARGMAX = 512  # elements that are searched twice: for the maximum, then for its index
TILE = 2048  # columns that a strided run takes at a time: a tile of `out` stays in the L1 cache
# ruff: noqa: F821 - bound by each stamp
combine: Callable
fold: Callable


@jit(reduction=True)
def _add(a, b):  # not the add of scalars.py, which must not be reassociated
    return a + b


@jit(reduction=True)
def _fold(x):
    result = x[0]
    for i in range(1, x.size):
        result = combine(result, x[i])
    return result


@jit
def _reduce_contiguous(lo, hi, x, out, n, run):
    """out[i] = the i-th run of x (rows, n) flat; the runs of a row follow each other."""
    runs = (n + run - 1) // run
    for i in range(lo, hi):
        start = i % runs * run
        row = x[i // runs * n :]
        out[i] = fold(row[start : min(start + run, n)])


@jit
def _reduce_strided(lo, hi, x, out, n, inner, run):
    """out (outer, runs, inner) = runs over the middle axis of x (outer, n, inner), flat; an item is a tile of a run."""
    runs, tiles = (n + run - 1) // run, (inner + TILE - 1) // TILE
    for i in range(lo, hi):
        column, target = i % tiles * TILE, i // tiles
        width = min(TILE, inner - column)
        outer, first = target // runs, target % runs * run
        at = (outer * n + first) * inner + column
        total = out[target * inner + column : target * inner + column + width]
        for j in range(width):
            total[j] = x[at + j]
        for _ in range(first + 1, min(first + run, n)):
            at += inner
            values = x[at : at + width]
            for j in range(width):
                total[j] = combine(total[j], values[j])


@jit
def _argmax_strided(lo, hi, x, out, n, inner):
    for i in range(lo, hi):
        column = x[(i // inner * n) * inner + i % inner :]
        best, best_index = column[0], 0
        for k in range(1, n):
            value = column[k * inner]
            if value > best or (value != value and best == best):
                best, best_index = value, k
        out[i] = best_index


@jit
def _first(x, top):
    """The first index of `top` or NaN in x, of fewer than 2**31 elements: a minimum of indices, which vectorises."""
    size = np.int32(x.size)
    first = size
    for k in range(x.size):
        index = np.int32(k) if (x[k] == top) | (x[k] != x[k]) else size
        first = index if index < first else first
    return np.int64(first)


@jit
def _argmax_contiguous(lo, hi, x, out, n):
    """The maximum of each run of a row (NaN if any element is), then its index in the first run that has it."""
    for i in range(lo, hi):
        row = x[i * n : (i + 1) * n]
        top, start = fold(row[:RUN_ARGMAX]), 0
        for at in range(RUN_ARGMAX, n, RUN_ARGMAX):
            value = fold(row[at : at + RUN_ARGMAX])
            if value > top or (value != value and top == top):
                top, start = value, at
        out[i] = start + _first(row[start : start + RUN_ARGMAX], top)


def reduction(name, combine, empty):
    """The kernel (x, out) that folds the middle axis with `combine`; `empty(x, out)` answers for n = 0."""
    fold = stamp(_fold, f"fold_{name}", combine=combine)
    contiguous = ranged(_reduce_contiguous, name, writes=(1,), fold=fold)
    contiguous_in_runs = contiguous.reading_whole(0)  # the last run of a row is shorter
    strided = ranged(_reduce_strided, f"{name}_strided", writes=(1,), whole=(0, 1), combine=combine)

    def kernel(x, out):
        outer, n, inner = x.shape
        if n == 0:
            empty(x, out)
            return
        x, limit = x.ravel(), RUN_CONTIGUOUS if inner == 1 else RUN_STRIDED
        while True:
            run = min(n, limit)
            runs = -(-n // run)
            target = out.ravel() if runs == 1 else np.empty(outer * runs * inner, x.dtype)
            if inner == 1:
                loop = contiguous if runs == 1 else contiguous_in_runs
                loop(outer * runs, run, x, target, n, run)
            else:
                strided(outer * runs * -(-inner // TILE), run * min(inner, TILE), x, target, n, inner, run)
            if runs == 1:
                return
            x, n = target, runs

    return kernel


_fold_max = stamp(_fold, "fold_max", combine=maximum)
_run_argmax = ranged(_argmax_contiguous, "argmax", writes=(1,), weight=2, fold=_fold_max)
_run_argmax_strided = ranged(_argmax_strided, "argmax_strided", writes=(1,), whole=(0,), weight=8)


def argmax(x, out):
    _, n, inner = x.shape
    if inner == 1:
        _run_argmax(out.size, n, x.ravel(), out.ravel(), n)
    else:
        _run_argmax_strided(out.size, n, x.ravel(), out.ravel(), n, inner)


KERNELS = {
    "sum": reduction("sum", _add, reference.sum),
    "max": reduction("max", maximum, reference.max),
    "min": reduction("min", minimum, reference.min),
    "argmax": argmax,
}
