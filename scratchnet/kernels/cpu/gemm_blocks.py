"""The product of a region of `out`, by one thread: blocks for its L2, panels for its L1, tiles for its registers.

Every element of `out` is a sum over spans of k (gemm_cuts.span_of), each a chain of fused multiply-adds in the order of
k. How the work is cut and packed changes nothing in a chain, so the bits of an element depend on its row of op(a), its
column of op(b), and k.
"""

from typing import NamedTuple

import numpy as np

from ...native.compile import jit, stamp
from ...native.llvm import Operand
from ...native.loops import uncounted
from ...native.simd import ADDS, FROM_ZERO, TILE, Strip, tile
from .gemm_cuts import (
    ADD,
    CONTINUE,
    FEW_COLUMNS,
    FEW_ROWS,
    FEW_ROWS_COLUMNS,
    FEW_ROWS_ELEMENTS,
    FEW_STEPS,
    L2_BYTES,
    L2_K,
    M_BLOCK,
    PACK_A_COLUMNS,
    PACK_AS_READ_TILES,
    PACK_TRANSPOSED_A_COLUMNS,
    PACK_TRANSPOSED_A_K,
    PACK_TRANSPOSED_B_K,
    PACKED_AS_READ,
    PANEL,
    ROWS,
    SPAN,
    START,
    VECTORS,
    Region,
    Sums,
    cut,
    equal_panels,
    even,
    next_panel,
    span_of,
    steps_of,
    tile_rows,
)
from .gemm_few import multiply_few_columns, multiply_one_row, multiply_one_step, multiply_row_transposed
from .gemm_pack import pack_a, pack_transposed_b, packed_row, packed_tile


class Left(NamedTuple):
    """op(a) as tiles read it: all of a, or packed the steps of a block, which then begin with element `at`."""

    array: np.ndarray
    at: int
    transposed: bool
    packed: bool


class Right(NamedTuple):
    """Some rows of op(b) as tiles read them: they begin with element `at`, and with the column `first` of `out`.

    They are stored row by row, or if `packed` panel by panel.
    """

    array: np.ndarray
    at: int
    first: int
    packed: bool


@jit
def multiply(factors, sums, region, scratch):
    """The sums of a region, computed in the way that suits its shape."""
    factors, sums, scratch = uncounted(factors), uncounted(sums), uncounted(scratch)
    k, n = steps_of(factors), sums.out.shape[1]
    rows, columns = region.i1 - region.i0, region.j1 - region.j0
    lanes = TILE.vector_bytes // sums.out.itemsize
    if factors.packed:
        multiply_in_blocks(factors, sums, region, scratch, span_of(k))
    elif n <= FEW_COLUMNS and rows >= 2 * lanes:
        multiply_few_columns(factors, sums, region, scratch)
    elif factors.rounds:
        multiply_in_blocks(factors, sums, region, scratch, span_of(k))
    elif k == 1 and columns >= lanes:
        multiply_one_step(factors.a, factors.b, sums.start, sums.out, region)
    elif not factors.transpose_b and sums.out.shape[0] == 1 and columns >= lanes:
        multiply_one_row(factors.a, factors.b, sums.start, sums.out, region.j0, region.j1, scratch)
    elif factors.transpose_b and sums.out.shape[0] == 1 and columns >= lanes:
        multiply_row_transposed(factors.a, factors.b, sums.start, sums.out, region.j0, region.j1)
    elif factors.transpose_b:
        _multiply_transposed_b(factors, sums, region, scratch)
    elif rows <= FEW_ROWS:
        _multiply_few_rows(factors, sums, region, scratch)
    else:
        multiply_in_blocks(factors, sums, region, scratch, span_of(k))


@jit
def multiply_in_blocks(factors, sums, region, scratch, k_block):
    """b as it is stored, or packed: `k_block` steps of k and about M_BLOCK rows at a time."""
    k = steps_of(factors)
    _multiply_steps(factors, sums, region, scratch, k_block, 0, max(k, 1), START)


@jit
def _multiply_steps(factors, sums, region, scratch, k_block, begin, end, first_block):
    """The same for the steps of k from `begin` to `end`; first_block: with what the first of them begins.

    Blocks as long as a span are added up. Shorter ones are parts of one chain.
    """
    a, b, transpose_a, packed, first = factors.a, factors.b, factors.transpose_a, factors.packed, factors.first
    i0, i1, j0, j1 = region
    k = steps_of(factors)
    others = ADD if k_block == span_of(k) else CONTINUE
    packs = (
        (j1 - j0 >= cut(PACK_A_COLUMNS) and i1 - i0 > FEW_ROWS and k > FEW_STEPS)
        or (transpose_a and j1 - j0 >= PACK_TRANSPOSED_A_COLUMNS and k >= PACK_TRANSPOSED_A_K)
        or factors.rounds
    )
    left = Left(scratch.array if packs else a, scratch.at + PACKED_AS_READ, transpose_a, packs)
    m_block = even(i1 - i0, cut(M_BLOCK), ROWS)
    for i in range(i0, i1, m_block):
        block = Region(i, min(i1, i + m_block), j0, j1)
        for k0 in range(begin, end, k_block):
            depth = min(k_block, min(end, k) - k0)
            if packs:
                pack_a(a, transpose_a, block.i0, block.i1, k0, depth, left.array, left.at, factors.rounds)
            right = Right(b, k0 * b.shape[1], first, packed)
            multiply_block(left, right, sums, block, k0, depth, scratch, others if k0 > begin else first_block)


@jit(inline=True)
def _multiply_few_rows(factors, sums, region, scratch):
    """Few rows take b in whole rows, a few at a time. This cuts spans, so later ones have memory of their own."""
    k, (i0, i1, j0, j1) = steps_of(factors), region
    span, k_block = span_of(k), max(4, FEW_ROWS_ELEMENTS // factors.b.shape[1])
    if k_block >= span:
        multiply_in_blocks(factors, sums, region, scratch, span)
        return
    _multiply_steps(factors, sums, region, scratch, k_block, 0, min(span, max(k, 1)), START)
    flat, out = scratch.array.ravel(), sums.out
    for k0 in range(span, k, span):
        for j in range(j0, j1, FEW_ROWS_COLUMNS):
            columns = min(FEW_ROWS_COLUMNS, j1 - j)
            flat[scratch.at : scratch.at + (i1 - i0) * columns] = 0
            partial = Sums(out, scratch.array, scratch.array, scratch.array, 0, scratch.at - i0 * columns - j, columns)
            part = Region(i0, i1, j, j + columns)
            _multiply_steps(factors, partial, part, scratch, k_block, k0, min(k, k0 + span), CONTINUE)
            for i in range(i0, i1):
                at, row = scratch.at + (i - i0) * columns, out[i, j : j + columns]
                new = flat[at : at + columns]
                for c in range(columns):
                    row[c] += new[c]


@jit(inline=True)
def _multiply_transposed_b(factors, sums, region, scratch):
    """b transposed: it is packed, if all of it stays in L2, else panel by panel, and used while that is in L1."""
    k, work = steps_of(factors), scratch.array
    i0, i1, j0, j1 = region
    left = Left(factors.a, 0, factors.transpose_a, False)
    lanes = TILE.vector_bytes // work.itemsize
    in_l2 = k <= L2_K and k * (j1 - j0) * work.itemsize <= L2_BYTES
    steps = PACK_TRANSPOSED_B_K if k <= SPAN else span_of(k)
    others = CONTINUE if k <= SPAN else ADD
    j = j0
    while j < j1:
        columns, _, _ = next_panel(j1 - j, PANEL, lanes)
        for k0 in range(0, max(k, 1), steps):
            depth = min(steps, k - k0)
            at = scratch.at + ((j - j0) * k if in_l2 else 0)
            pack_transposed_b(factors.b, j, columns, k0, depth, work, at, False)
            if not in_l2:
                right, block = Right(work, scratch.at, j, True), Region(i0, i1, j, j + columns)
                multiply_block(left, right, sums, block, k0, depth, scratch, others if k0 else START)
        j += columns
    if in_l2:
        multiply_block(left, Right(work, scratch.at, j0, True), sums, region, 0, k, scratch, START)


@jit
def multiply_block(left, right, sums, region, k0, depth, scratch, begin):
    """out = begin + op(a)[:, k0 : k0 + depth] @ op(b)[k0 : k0 + depth, :] for a region; begin: START, CONTINUE or ADD.

    Equal panels are taken together. If what they read of b stays in L2, each row of tiles goes over all of them, else
    each panel goes over all rows of tiles. b that is not packed, and that many tiles read one below the other, is
    packed by the topmost one as it reads it, for those below.
    """
    a, b, out, work = left.array, right.array, sums.out, scratch.array
    n, transposed = sums.row, left.transposed
    lanes = TILE.vector_bytes // out.itemsize
    start, start_from, start_row, start_column = sums.start, 0, 0, 0
    if begin == CONTINUE:
        start, start_from, start_row, start_column = out, sums.at, n, 1
    elif begin == START:
        start_row, start_column = n if start.shape[0] > 1 else 0, 1 if start.shape[1] == n else 0
    add = ADDS if begin == ADD else 0 if start_column else FROM_ZERO
    a_row = packed_row(transposed, depth) if left.packed else a.shape[1]
    few_steps = depth <= FEW_STEPS and not left.packed
    rows_in_all = region.i1 - region.i0
    tiles = rows_in_all if few_steps else (rows_in_all + ROWS - 1) // ROWS
    low, high_tiles = tile_rows(rows_in_all, tiles)
    packs = tiles >= PACK_AS_READ_TILES and not right.packed and not few_steps
    most = PANEL if right.packed or packs else VECTORS[low + 1 if high_tiles else low]
    j = region.j0
    while j < region.j1:
        columns, vectors, last = next_panel(region.j1 - j, most, lanes)
        panels = equal_panels(region.j1 - j, vectors, most, lanes)
        height = 1 if few_steps else TILE.most_rows if vectors == 2 and not left.packed else ROWS
        tiles = (rows_in_all + height - 1) // height
        low, high_tiles = tile_rows(rows_in_all, tiles)
        along_rows = panels > 2 and depth <= L2_K and depth * columns * panels * out.itemsize <= L2_BYTES
        top = 1 if packs and vectors > 1 else 0  # tiles that pack
        for panel in range(1 if along_rows else panels):
            column = j + panel * columns
            for part in range(3):  # the topmost tile, if it packs; the other high ones; the low ones
                if part == 0:
                    first, count, rows = 0, top, low + 1 if high_tiles else low
                elif part == 1:
                    first, count, rows = min(top, high_tiles), high_tiles - min(top, high_tiles), low + 1
                else:
                    first, count, rows = max(top, high_tiles), tiles - max(top, high_tiles), low
                if count == 0:
                    continue
                i = region.i0 + first * low + min(first, high_tiles)
                if left.packed:
                    a_next = packed_tile(transposed, depth, lanes)
                    a_at = left.at + first * a_next
                else:
                    a_next = rows if transposed else rows * a_row
                    a_at = k0 * a_row + i if transposed else i * a_row + k0
                packs_now, reads_packed = top > 0 and part == 0, top > 0 and part > 0
                if reads_packed:
                    b_at, b_row, b_next = scratch.at, columns, depth * columns
                elif right.packed:
                    b_at, b_row, b_next = right.at + (column - right.first) * depth, columns, depth * columns
                else:
                    b_at, b_row, b_next = right.at + column, b.shape[1], columns
                for step in range(count if along_rows else 1):
                    row = i + step * rows
                    out_at, out_next = sums.at + row * n + column, columns if along_rows else rows * n
                    start_at = start_from + row * start_row + column * start_column
                    start_next = columns * start_column if along_rows else rows * start_row
                    tile(
                        Operand(a, a_at + step * a_next, a_row, 0 if along_rows else a_next),
                        Operand(work if reads_packed else b, b_at, b_row, b_next if along_rows else 0),
                        Operand(start, start_at, start_row, start_next),
                        Operand(out, out_at, n, out_next),
                        Operand(work, scratch.at, columns, depth * columns),
                        Operand(sums.first, out_at, n, out_next),
                        Operand(sums.second, out_at, n, out_next),
                        Operand(work, sums.numbers_at, 0, 0),
                        Strip(
                            panels if along_rows else count, depth, rows, vectors, last,
                            transposed, packs_now, add,
                        ),
                    )  # fmt: skip
        j += panels * columns


def in_blocks_with(tile, name):
    """`multiply_in_blocks` with another tile."""
    block = stamp(multiply_block, f"multiply_block_{name}", tile=tile)
    steps = stamp(_multiply_steps, f"multiply_steps_{name}", multiply_block=block)
    return stamp(multiply_in_blocks, f"multiply_in_blocks_{name}", _multiply_steps=steps)
