"""Dropout by counter-based random numbers, the same as the reference's (philox.py)."""

import math
from functools import cache

import numpy as np

from ..philox import LOW, SHIFT, TO_24_BITS, four_words
from .compile import Kernel, cuda, device, kernel, launch
from .grids import in_row
from .replay import numbers

philox, INT64 = device(four_words), np.dtype(np.int64)


@cache
def dropping(dtype: np.dtype, threads: int) -> Kernel:
    ZERO = dtype.type(0)

    @kernel(threads)
    def loop(x, out, limit, scale, key):
        """A thread takes groups of four elements, one Philox block each; where 24 bits are >= limit, x stays."""
        seed, stream = np.uint64(key[0]), np.uint64(key[1])
        k0, k1, c2, c3 = seed & LOW, seed >> SHIFT, stream & LOW, stream >> SHIFT
        for item in range(cuda.grid(1), (out.size + 3) // 4, cuda.gridsize(1)):
            group, at = np.uint64(item), 4 * item
            w0, w1, w2, w3 = philox(group & LOW, group >> SHIFT, c2, c3, k0, k1)
            out[at] = x[at] * scale if (w0 >> TO_24_BITS) >= limit else ZERO
            if at + 1 < out.size:
                out[at + 1] = x[at + 1] * scale if (w1 >> TO_24_BITS) >= limit else ZERO
            if at + 2 < out.size:
                out[at + 2] = x[at + 2] * scale if (w2 >> TO_24_BITS) >= limit else ZERO
            if at + 3 < out.size:
                out[at + 3] = x[at + 3] * scale if (w3 >> TO_24_BITS) >= limit else ZERO

    return loop


def dropout(x, out, p, key):
    if out.size:
        limit = np.uint64(math.ceil(p * 2**24))  # u = bits / 2**24 >= p, without rounding
        grid = in_row(out.size, 4)
        words = numbers(INT64, _signed, key)
        launch(dropping(out.dtype, grid[1]), *grid, x, out, limit, out.dtype.type(1 / (1 - p)), words)


def _signed(key):
    return key.view(INT64)


KERNELS = {"dropout": dropout}
