"""Products of few tiles: small ones, in which a GPU would be idle if each block computed a whole sum by one chain.

Tiles are small, and the threads of a block are several groups, each of which adds up a part of the sum for the whole
tile. The parts are folded in shared memory, in order, so no second launch is needed; the block then ends its elements.
Further blocks, where there are any, update the bias of a layer: they sum the rows of the second factor as reduce.py
does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np

from . import tuning
from .compile import ALIGNED, Kernel, cuda, kernel, launch
from .ends import End, ending
from .folds import folding
from .gemm_tiles import factor, multiplying
from .grids import is_wide
from .tuning import Tile


@cache
def product_of_few(
    dtype: np.dtype, tile: Tile, groups: int, transposed: tuple[bool, bool], has_bias: bool, name: str | None,
    layers: int, warp: int, shuffles: bool,
) -> Kernel:  # fmt: skip
    """The kernel (a, b, bias, out, more, beside, numbers, (m, n, k, span), wide).

    span: how many terms of the sum a group adds up, in whole tiles. more, beside, numbers: see ends.py.
    layers: of the threads that sum a column of b; 0 if there is no update beside.
    """
    kind, ZERO, WIDTH = numba.from_dtype(dtype), dtype.type(0), 16 // dtype.itemsize
    ROWS, COLUMNS, DEPTH, OWN_ROWS, OWN_COLUMNS = tile.rows, tile.columns, tile.depth, tile.own_rows, tile.own_columns
    ACROSS, MEMBERS, OWN, THREADS = COLUMNS // OWN_COLUMNS, tile.threads, OWN_ROWS * OWN_COLUMNS, groups * tile.threads
    DOWN, TILE = ROWS // OWN_ROWS, ROWS * COLUMNS
    A_WORDS, A_STRIDE, A_GROUPS, load_a, put_a = factor(dtype, ROWS, DEPTH, MEMBERS, not transposed[0])
    B_WORDS, B_STRIDE, B_GROUPS, load_b, put_b = factor(dtype, COLUMNS, DEPTH, MEMBERS, transposed[1])
    A_SHARED, B_SHARED, A_STAGED, B_STAGED = groups * A_WORDS, groups * B_WORDS, A_GROUPS * WIDTH, B_GROUPS * WIDTH
    add_products = multiplying(dtype, tile, A_STRIDE, B_STRIDE)
    PARTIAL, HAS_BESIDE = groups * TILE, layers > 0
    LAYERS = max(layers, 1)
    STRIP = THREADS // LAYERS
    end = ending(name, dtype)
    fold: Any = folding("sum", dtype, THREADS, STRIP, warp, shuffles) if HAS_BESIDE else None

    @kernel(THREADS)
    def multiply_few(a, b, bias, out, more, beside, numbers, sizes, wide):
        m, n, k, span = sizes
        a_tiles = cuda.shared.array(A_SHARED, kind, ALIGNED)
        b_tiles = cuda.shared.array(B_SHARED, kind, ALIGNED)
        partial = cuda.shared.array(PARTIAL, kind, ALIGNED)
        sums = cuda.local.array(OWN, kind)
        a_staged = cuda.local.array(A_STAGED, kind)
        b_staged = cuda.local.array(B_STAGED, kind)
        left = cuda.local.array(OWN_ROWS, kind)
        right = cuda.local.array(OWN_COLUMNS, kind)
        own = cuda.threadIdx.x
        group, thread = own // MEMBERS, own % MEMBERS
        x, y = thread % ACROSS, thread // ACROSS
        bands, strips = (m + ROWS - 1) // ROWS, (n + COLUMNS - 1) // COLUMNS
        block = cuda.blockIdx.x
        if block < bands * strips:
            first_row, first_column = block // strips * ROWS, block % strips * COLUMNS
            start, a_start, b_start = group * span, group * A_WORDS, group * B_WORDS
            for i in range(OWN):
                sums[i] = ZERO
            load_a(a, m, k, first_row, start, thread, a_staged, wide[0])
            load_b(b, n, k, first_column, start, thread, b_staged, wide[1])
            for term in range(start, start + span, DEPTH):  # as often in each group; beyond k there are zeros
                put_a(a_staged, a_tiles, a_start, thread)
                put_b(b_staged, b_tiles, b_start, thread)
                cuda.syncthreads()
                if term + DEPTH < start + span:
                    load_a(a, m, k, first_row, term + DEPTH, thread, a_staged, wide[0])
                    load_b(b, n, k, first_column, term + DEPTH, thread, b_staged, wide[1])
                add_products(a_tiles, a_start, b_tiles, b_start, left, right, sums, x, y)
                cuda.syncthreads()
            for i in range(OWN_ROWS):
                row = (i // WIDTH * DOWN + y) * WIDTH + i % WIDTH
                for j in range(OWN_COLUMNS):
                    column = (j // WIDTH * ACROSS + x) * WIDTH + j % WIDTH
                    partial[group * TILE + row * COLUMNS + column] = sums[i * OWN_COLUMNS + j]
            cuda.syncthreads()
            for at in range(own, TILE, THREADS):
                row, column = first_row + at // COLUMNS, first_column + at % COLUMNS
                if row < m and column < n:
                    value = partial[at]
                    for g in range(1, groups):
                        value += partial[g * TILE + at]
                    if has_bias:
                        value += bias[column]
                    end(value, row * n + column, out, more, numbers)
        elif HAS_BESIDE:
            column, value = (block - bands * strips) * STRIP + own % STRIP, ZERO
            for i in range(own // STRIP, k if column < n else 0, LAYERS):
                value += b[i * n + column]
            value = fold(value, own, partial)
            if own < STRIP and column < n:
                end(value, column, out, beside, numbers)

    return multiply_few


def tile_of(dtype: np.dtype) -> Tile:
    """Of a block."""
    numbers = tuning.current()
    return numbers.few if dtype.itemsize == 4 else numbers.few_of_8_bytes


def layers_of_sums() -> int:
    """Threads that sum a column, in reduce.py and so here."""
    return tuning.current().threads // tuning.current().columns


def takes_beside(dtype: np.dtype) -> bool:
    """Has a block enough threads to sum several columns?"""
    return tuning.current().groups * tile_of(dtype).threads >= 2 * layers_of_sums()


def multiply(a, b, bias, out, transposed: tuple[bool, bool], m: int, n: int, k: int, end: End) -> None:
    """out = op(a) @ op(b), or what `end` says."""
    numbers, dtype = tuning.current(), out.dtype
    tile, width = tile_of(dtype), 16 // dtype.itemsize
    span = max(-(-k // (numbers.groups * tile.depth)), 1) * tile.depth
    edges = m if transposed[0] else k, k if transposed[1] else n
    wide = tuple(is_wide(x) and edge % width == 0 for x, edge in zip((a, b), edges, strict=True))
    layers = layers_of_sums() if end.beside else 0
    threads = numbers.groups * tile.threads
    blocks = -(-m // tile.rows) * -(-n // tile.columns) + (-(-n // (threads // layers)) if layers else 0)
    loop = product_of_few(
        dtype, tile, numbers.groups, transposed, bias is not None, end.name, layers, numbers.warp, numbers.shuffles
    )
    a, b = (x if x.size else out for x in (a, b))  # k = 0: no element is read
    more, constants = end.arguments(out)
    beside = end.beside or more  # of the same type, where nobody reads it
    launch(
        loop, blocks, threads, a, b, out if bias is None else bias, out, more, beside, constants, (m, n, k, span), wide
    )
