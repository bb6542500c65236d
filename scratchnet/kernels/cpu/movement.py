"""Kernels that move elements. Plain copies are NumPy's: memory is their limit. So is its sort, which is compiled."""

from collections.abc import Callable

import numpy as np

from ...native.compile import get_num_threads, jit
from ...native.loops import PARALLEL_FROM, is_planning, ranged, workspace
from .. import reference
from ..signatures import HALVES
from .elementwise import SCALARS

F4, F8, U1 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.uint8)
PLANNED_COPIES = {(F4, F4), (F8, F8), (U1, F4), (U1, F8)}  # these become loops of a program; NumPy does the others
FLOATS = (F4, F8)  # all threads copy these, from so many numbers on: of fewer, waking a thread takes longer
COPIED_TOGETHER = 4 * PARALLEL_FROM
BITS = {F4: np.dtype(np.uint32), **dict.fromkeys(HALVES, np.dtype(np.uint16))}  # as which halves are converted
RANGES = 16  # of destination rows, each an item of scatter_rows, which reads the whole index


# ruff: noqa: F821 - bound by each stamp
function: Callable


@jit
def _copy(lo, hi, x, out):
    x, out = x[lo:hi], out[lo:hi]
    for i in range(out.size):
        out[i] = x[i]


@jit
def _convert(lo, hi, x, out):
    x, out = x[lo:hi], out[lo:hi]
    for i in range(out.size):
        out[i] = function(x[i])


@jit
def _repeat(lo, hi, x, out):
    for i in range(lo, hi):
        out[i] = x[0]


@jit
def _take_rows(lo, hi, x, index, out):
    for i in range(lo, hi):
        source, target = x[index[i]], out[i]
        for j in range(target.size):
            target[j] = source[j]


@jit
def _scatter_rows(lo, hi, g, index, out, lists):
    """Each row of `out` is written once: from the list of its rows of g. lists (rows of out and g,): int64 memory."""
    first, last = out.shape[0] * lo // RANGES, out.shape[0] * hi // RANGES
    firsts, followers = lists[: out.shape[0]], lists[out.shape[0] :]  # -1: none
    firsts[first:last] = -1
    for i in range(index.size - 1, -1, -1):
        if first <= index[i] < last:
            followers[i], firsts[index[i]] = firsts[index[i]], i
    zero = out.dtype.type(0)
    for row in range(first, last):
        i, target = firsts[row], out[row]
        if i < 0:
            target[:] = zero
            continue
        source = g[i]
        for j in range(target.size):
            target[j] = zero + source[j]
        i = followers[i]
        while i >= 0:
            source = g[i]
            for j in range(target.size):
                target[j] += source[j]
            i = followers[i]


@jit
def _add_rows(lo, hi, x, source, target, scale, out):
    first, last = out.shape[0] * lo // RANGES, out.shape[0] * hi // RANGES
    for row in out[first:last]:
        for j in range(row.size):
            row[j] = 0
    for i in range(target.size):
        if first <= target[i] < last:
            row, into, factor = x[source[i]], out[target[i]], scale[i]
            for j in range(into.size):
                into[j] += factor * row[j]


@jit
def _argmax_rows(lo, hi, x, source, target, out):
    first, last = out.shape[0] * lo // RANGES, out.shape[0] * hi // RANGES
    for row in out[first:last]:
        for j in range(row.size):
            row[j] = -1
    for i in range(target.size):
        if first <= target[i] < last:
            row, into = x[source[i]], out[target[i]]
            for j in range(into.size):
                if into[j] < 0:
                    into[j] = source[i]
                    continue
                value, best = row[j], x[into[j], j]
                if value > best or (value != value and best == best):
                    into[j] = source[i]


_CONVERSIONS = {
    (source, target): ranged(_convert, name, writes=(1,), weight=2, function=SCALARS[name])
    for half in HALVES
    for source, target, name in ((F4, half, f"to_{half}"), (half, F4, f"from_{half}"))
}
run_copy, _run_repeat = ranged(_copy, "copy", writes=(1,)), ranged(_repeat, "repeat", writes=(1,), whole=(0,))
_run_take = ranged(_take_rows, "take_rows", writes=(2,), whole=(0,))
_run_scatter = ranged(_scatter_rows, "scatter_rows", writes=(2, 3), whole=(0, 1, 2, 3))
_run_add = ranged(_add_rows, "add_rows", writes=(4,), whole=(0, 1, 2, 3, 4))
_run_argmax = ranged(_argmax_rows, "argmax_rows", writes=(3,), whole=(0, 1, 2, 3))


def fill(out, value):
    out.fill(value)


def copy(x, out):
    if x.dtype != out.dtype and (x.dtype in HALVES or out.dtype in HALVES):
        _copy_half(x, out)
    elif (
        is_planning()
        and (x.dtype, out.dtype) in PLANNED_COPIES
        and x.shape == out.shape
        and out.flags.carray
        and x.size
    ):
        _plan_copy(x, out)
    elif x.dtype == out.dtype:
        threads_pay = out.size >= COPIED_TOGETHER and get_num_threads() > 1 and x.dtype in FLOATS
        if (
            threads_pay
            and x.shape == out.shape
            and x.flags.carray
            and out.flags.carray
            and not np.may_share_memory(x, out)
        ):
            run_copy(out.size, 1, x.ravel(), out.ravel())
        else:
            np.copyto(out, x)
    else:
        with np.errstate(all="ignore"):  # a conversion that overflows has an IEEE answer
            np.copyto(out, x, casting="unsafe")


def _copy_half(x, out):
    """A conversion by way of float32: a loop between contiguous memory, else all by NumPy, as a program plans a call as
    a whole.
    """
    convert = _CONVERSIONS.get((x.dtype, out.dtype))
    if convert is not None and x.shape == out.shape and x.flags.carray and out.flags.carray:
        convert(out.size, 1, x.view(BITS[x.dtype]).ravel(), out.view(BITS[out.dtype]).ravel())
    else:
        with np.errstate(all="ignore"):
            np.copyto(out, x.astype(F4).astype(out.dtype), casting="unsafe")


def _plan_copy(x, out):
    """A copy as a loop, if x is contiguous or one repeated element."""
    if not any(x.strides):
        _run_repeat(out.size, 1, x[(slice(1),) * x.ndim].reshape(1), out.ravel())
    elif x.flags.carray:
        run_copy(out.size, 1, x.ravel(), out.ravel())


def take_rows(x, index, out):
    _run_take(index.size, out.shape[1], x, index, out)


def scatter_rows(g, index, out):
    lists = workspace((len(out) + len(g),), np.dtype(np.int64))
    _run_scatter(RANGES, (g.size + out.size) // RANGES, g, index, out, lists)


def add_rows(x, source, target, scale, out):
    _run_add(RANGES, (target.size * out.shape[1] + out.size) // RANGES, x, source, target, scale, out)


def argmax_rows(x, source, target, out):
    _run_argmax(RANGES, (4 * target.size * out.shape[1] + out.size) // RANGES, x, source, target, out)


KERNELS = {
    "argsort": reference.argsort,
    "fill": fill,
    "copy": copy,
    "take_rows": take_rows,
    "scatter_rows": scatter_rows,
    "add_rows": add_rows,
    "argmax_rows": argmax_rows,
}
