"""Tiles of the factors of a matrix product: how a block of threads brings them to shared memory.

A factor lies in memory along the tile's edge (b as it is, a transposed) or across it (the others).
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from .compile import device, load_wide, store_wide


class _Factor(NamedTuple):
    """How a block brings the tiles of one factor to shared memory. words: of one tile; stride: of one term in it.

    load(x, edge, k, first, term, thread, own, wide): what the thread brings, from memory to its own registers.
    put(own, tile, start, thread): from there to shared memory.
    """

    words: int
    stride: int
    groups: int
    load: Callable
    put: Callable


@cache
def factor(dtype: np.dtype, edge: int, depth: int, threads: int, across: bool) -> _Factor:
    """edge: how many rows of op(a), or columns of op(b), a tile has. across: memory runs along the sum."""
    WIDTH, ZERO = 16 // dtype.itemsize, dtype.type(0)
    STRIDE = edge + WIDTH if across else edge  # what comes across is put a word here, a word there: not in one bank
    TOTAL = edge * depth // WIDTH  # groups of 16 bytes
    GROUPS, LINE = -(-TOTAL // threads), (depth if across else edge) // WIDTH
    WHOLE = TOTAL % threads == 0

    @device
    def load(x, length, k, first, term, thread, own, wide):
        """length: of the edge in the whole matrix."""
        for g in range(GROUPS):
            group = thread + g * threads
            if across:
                line, at = first + group // LINE, term + group % LINE * WIDTH  # x[line, at], rows of k
                inside, room, start = line < length, k - at, line * k + at
            else:
                line, at = term + group // LINE, first + group % LINE * WIDTH  # x[line, at], rows of `length`
                inside, room, start = line < k, length - at, line * length + at
            if not WHOLE:
                inside = inside and group < TOTAL
            if wide and inside and room >= WIDTH:
                load_wide(x, start, own, g * WIDTH)
            else:
                for v in range(WIDTH):
                    own[g * WIDTH + v] = ZERO
                    if inside and v < room:
                        own[g * WIDTH + v] = x[start + v]

    @device
    def put(own, tile, start, thread):
        for g in range(GROUPS):
            group = thread + g * threads
            if WHOLE or group < TOTAL:
                if across:
                    for v in range(WIDTH):
                        tile[start + (group % LINE * WIDTH + v) * STRIDE + group // LINE] = own[g * WIDTH + v]
                else:
                    store_wide(own, g * WIDTH, tile, start + group // LINE * STRIDE + group % LINE * WIDTH)

    return _Factor(STRIDE * depth, STRIDE, GROUPS, load, put)
