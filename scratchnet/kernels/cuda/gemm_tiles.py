"""Tiles of the factors of a matrix product: how a block of threads brings them to shared memory.

A factor lies in memory along the tile's edge (b as it is, a transposed) or across it (the others). `multiplying` is
what each thread then does with a pair of tiles.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from .compile import device, load_wide, store_wide
from .tuning import Tile


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


@device
def lines_of(item, edges, first, terms, across):
    """(edges, first, terms, term) of matrix `item` of many that follow each other in memory, as `load` takes them.

    Where memory runs along the sum, the rows of all matrices are one column of rows; or else their terms are.
    """
    rows, others = (item, 0) if across else (0, item)
    return edges + rows * edges, first + rows * edges, terms + others * terms, others * terms


@cache
def multiplying(dtype: np.dtype, tile: Tile, a_stride: int, b_stride: int) -> Callable:
    """add_products(a_tiles, a_start, b_tiles, b_start, left, right, sums, x, y): `depth` terms of a thread's elements.

    Its groups of 16 bytes of rows are number y, y + DOWN, ..., and of columns number x, x + ACROSS, ... of the tiles,
    which begin at a_start and b_start. left, right: as many words of its own as it has rows and columns.
    """
    WIDTH, DEPTH, OWN_ROWS, OWN_COLUMNS = 16 // dtype.itemsize, tile.depth, tile.own_rows, tile.own_columns
    ACROSS, DOWN = tile.columns // OWN_COLUMNS, tile.rows // OWN_ROWS
    ROW_GROUPS, COLUMN_GROUPS = OWN_ROWS // WIDTH, OWN_COLUMNS // WIDTH

    @device
    def add_products(a_tiles, a_start, b_tiles, b_start, left, right, sums, x, y):
        for t in range(DEPTH):
            for g in range(ROW_GROUPS):
                load_wide(a_tiles, a_start + t * a_stride + (g * DOWN + y) * WIDTH, left, g * WIDTH)
            for g in range(COLUMN_GROUPS):
                load_wide(b_tiles, b_start + t * b_stride + (g * ACROSS + x) * WIDTH, right, g * WIDTH)
            for i in range(OWN_ROWS):
                for j in range(OWN_COLUMNS):
                    sums[i * OWN_COLUMNS + j] += left[i] * right[j]

    return add_products
