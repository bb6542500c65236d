"""Dropout by counter-based random numbers, the same as the reference's (philox.py)."""

import math

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged
from ..philox import LOW, SHIFT, TO_24_BITS, four_words

ONE, TWO, THREE, FOUR = map(np.uint64, (1, 2, 3, 4))

philox = jit(inline=True)(four_words)


@jit
def _dropout(lo, hi, x, out, drop_below, scale, key):
    """Items are groups of four elements, one Philox block each; an element stays if its 24 bits are >= drop_below."""
    scale, zero = out.dtype.type(scale), out.dtype.type(0)
    limit, seed, stream = np.uint64(drop_below), np.uint64(key[0]), np.uint64(key[1])
    k0, k1, c2, c3 = seed & LOW, seed >> SHIFT, stream & LOW, stream >> SHIFT
    whole = min(hi, out.size // 4)
    x4, out4 = x[4 * lo : 4 * whole], out[4 * lo : 4 * whole]
    for i in range(whole - lo):
        group, at = np.uint64(lo + i), FOUR * np.uint64(i)  # unsigned: indices that may be negative would not vectorise
        w0, w1, w2, w3 = philox(group & LOW, group >> SHIFT, c2, c3, k0, k1)
        y0, y1, y2, y3 = x4[at] * scale, x4[at + ONE] * scale, x4[at + TWO] * scale, x4[at + THREE] * scale
        out4[at] = y0 if (w0 >> TO_24_BITS) >= limit else zero  # a load in a branch would not vectorise either
        out4[at + ONE] = y1 if (w1 >> TO_24_BITS) >= limit else zero
        out4[at + TWO] = y2 if (w2 >> TO_24_BITS) >= limit else zero
        out4[at + THREE] = y3 if (w3 >> TO_24_BITS) >= limit else zero
    if whole < hi:
        group = np.uint64(whole)
        words = philox(group & LOW, group >> SHIFT, c2, c3, k0, k1)
        for j in range(4 * whole, out.size):
            out[j] = x[j] * scale if (words[j - 4 * whole] >> TO_24_BITS) >= limit else zero


_run_dropout = ranged(_dropout, "dropout", writes=(1,), whole=(4,), weight=8)
_run_uneven_dropout = _run_dropout.reading_whole(0, 1, 4)  # the last group is shorter


def dropout(x, out, p, key):
    drop_below = math.ceil(p * 2**24)  # u = bits / 2**24 >= p, without rounding
    run = _run_uneven_dropout if out.size % 4 else _run_dropout
    run((out.size + 3) // 4, 4, x.ravel(), out.ravel(), drop_below, 1 / (1 - p), key)


KERNELS = {"dropout": dropout}
