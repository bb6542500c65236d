"""Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011), the same words as the reference's."""

import math
from functools import cache

import numpy as np

from .compile import Kernel, cuda, device, kernel, launch
from .elementwise import in_row

MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, SHIFT, TO_24_BITS = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(8)


@device
def philox(c0, c1, c2, c3, k0, k1):
    """Four 32-bit words for a counter of four and a key of two, all held in uint64."""
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & LOW, (p0 >> SHIFT) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL_0) & LOW, (k1 + WEYL_1) & LOW
    return c0, c1, c2, c3


@cache
def dropping(dtype: np.dtype, threads: int) -> Kernel:
    ZERO = dtype.type(0)

    @kernel(threads)
    def loop(x, out, limit, scale, seed, stream):
        """A thread takes groups of four elements, one Philox block each; where 24 bits are >= limit, x stays."""
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
        seed, stream = (np.uint64(word) for word in key)
        launch(dropping(out.dtype, grid[1]), *grid, x, out, limit, out.dtype.type(1 / (1 - p)), seed, stream)


KERNELS = {"dropout": dropout}
