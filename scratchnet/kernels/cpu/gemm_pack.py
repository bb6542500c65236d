"""Packing: parts of a and b are copied into the order in which tiles read them, so that they read memory in streams.

Packed a is tile after tile, each stored as a is: its rows of k, or if a is transposed, k rows. Packed b is panel after
panel, each row by row; so one row of a panel follows the other, wherever its columns stood in b.
"""

import numpy as np

from ...native.compile import jit
from ...native.llvm import Operand
from ...native.simd import SQUARE_BYTES, TILE, copy_rows, transpose
from .gemm_cuts import CHUNK, PAD, PANEL, ROWS, next_panel, panel_at, span_of, tile_rows


@jit(inline=True)
def _rounded(bits):
    """The bits of a float32, rounded to the nearest bfloat16, ties to even."""
    bits = np.uint32(bits)
    near = np.uint32(bits + np.uint32(0x7FFF)) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    is_nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint32(bits | np.uint32(0x400000) if is_nan else near) & np.uint32(0xFFFF0000)


@jit
def copy_rounded(x, out):
    """out = x rounded to bfloat16; two pieces of memory. In one, a loop of two arrays would not vectorise."""
    bits, target = x.view(np.uint32), out.view(np.uint32)
    for i in range(target.size):
        target[i] = _rounded(bits[i])


@jit
def packed_row(transposed, depth):
    """Elements between the rows of a packed tile of a; if it is transposed, between its steps of k."""
    return ROWS if transposed else depth + PAD


@jit
def packed_tile(transposed, depth, lanes):
    """Elements between packed tiles of a. What is copied in whole vectors reaches beyond the last step of a tile."""
    return ROWS * depth + lanes if transposed else ROWS * (depth + PAD)


@jit
def pack_a(a, transposed, i0, i1, k0, depth, target, at, rounds):
    """Copy op(a)[i0 : i1, k0 : k0 + depth] to `target`, from element `at` on, and if `rounds`, round it to bfloat16."""
    if transposed:
        _pack_transposed_a(a, i0, i1, k0, depth, target, at, rounds)
        return
    row = packed_row(transposed, depth)
    tiles = (i1 - i0 + ROWS - 1) // ROWS
    low, high_tiles = tile_rows(i1 - i0, tiles)
    flat, flat_a = target.ravel(), a.ravel()
    i = i0
    for t in range(tiles):
        rows = low + 1 if t < high_tiles else low
        for r in range(rows):
            begin, to = (i + r) * a.shape[1] + k0, at + r * row
            old, new = flat_a[begin : begin + depth], flat[to : to + depth]
            if rounds:
                copy_rounded(old, new)
            else:
                for k in range(depth):
                    new[k] = old[k]
        at += ROWS * row
        i += rows


@jit
def _pack_transposed_a(a, i0, i1, k0, depth, target, at, rounds):
    """A row of a is all rows of the block at one step of k: some of them go to all tiles, so memory is read in streams.

    A tile takes whole vectors, where a has as many elements: what is too much of a step, the next one overwrites.
    """
    lanes = TILE.vector_bytes // a.itemsize
    row, tile = packed_row(True, depth), packed_tile(True, depth, lanes)
    tiles = (i1 - i0 + ROWS - 1) // ROWS
    low, high_tiles = tile_rows(i1 - i0, tiles)
    for done in range(0, depth, CHUNK):
        steps, i = min(CHUNK, depth - done), i0
        for t in range(tiles):
            rows = low + 1 if t < high_tiles else low
            _, vectors, last = next_panel(rows, (rows + lanes - 1) // lanes, lanes)
            if vectors == 0 and i + lanes <= a.shape[1]:
                vectors, last = 1, 0
            to = at + t * tile + done * row
            source = Operand(a, (k0 + done) * a.shape[1] + i, a.shape[1], 0)
            copy_rows(source, Operand(target, to, row, 0), steps, vectors, last, rounds)
            i += rows


@jit
def transpose_block(source, rows, columns, target, rounds=False):
    """target[j, i] = source[i, j] for so many rows and columns: by squares, the last of which overlap their neighbours.

    source, target: Operands; if `rounds`, of float32 that is rounded to bfloat16.
    """
    side = SQUARE_BYTES // source.array.itemsize
    if rows < side or columns < side:
        flat, flat_target = source.array.ravel(), target.array.ravel()
        for i in range(rows):
            for j in range(columns):
                flat_target[target.at + j * target.row + i] = flat[source.at + i * source.row + j]
        if rounds:
            for j in range(columns):
                at = target.at + j * target.row
                copy_rounded(flat_target[at : at + rows], flat_target[at : at + rows])
        return
    array, into = source.array, target.array
    if columns < rows:  # as many squares as can be in one call: those of a column
        for next_j in range(0, columns, side):
            j, rest = min(next_j, columns - side), rows - side
            from_at, to_at = source.at + j, target.at + j * target.row
            squares = Operand(array, from_at, source.row, side * source.row)
            transpose(squares, Operand(into, to_at, target.row, side), rows // side, rounds)
            if rows % side:
                square = Operand(array, from_at + rest * source.row, source.row, 0)
                transpose(square, Operand(into, to_at + rest, target.row, 0), 1, rounds)
        return
    for next_i in range(0, rows, side):
        i, rest = min(next_i, rows - side), columns - side
        from_at, to_at = source.at + i * source.row, target.at + i
        squares = Operand(array, from_at, source.row, side)
        transpose(squares, Operand(into, to_at, target.row, side * target.row), columns // side, rounds)
        if columns % side:
            square = Operand(array, from_at + rest, source.row, 0)
            transpose(square, Operand(into, to_at + rest * target.row, target.row, 0), 1, rounds)


@jit
def pack_transposed_b(b, j, columns, k0, depth, target, at, rounds):
    """target[k, c] = b[j + c, k0 + k], from element `at` on: one panel; if `rounds`, rounded to bfloat16."""
    source = Operand(b, j * b.shape[1] + k0, b.shape[1], 0)
    transpose_block(source, columns, depth, Operand(target, at, columns, 0), rounds)


@jit
def pack_b(lo, hi, b, transposed, first, packed, rounds):
    """Copy columns of op(b), from `first` on, to `packed` (k, columns): panels lo to hi of each block of k.

    If `rounds`, they are rounded to bfloat16 on the way.
    """
    k, n = packed.shape
    lanes = TILE.vector_bytes // b.itemsize
    k_block = span_of(k)
    for k0 in range(0, k, k_block):
        depth = min(k_block, k - k0)
        chunk = depth if transposed else CHUNK
        for done in range(0, depth, chunk):
            count = min(chunk, depth - done)
            for panel in range(lo, hi):
                j = panel_at(panel, n, lanes)
                columns, vectors, last = next_panel(n - j, PANEL, lanes)
                at, row = k0 * n + j * depth + done * columns, k0 + done
                if transposed:
                    pack_transposed_b(b, first + j, columns, row, count, packed, at, rounds)
                else:
                    source = Operand(b, row * b.shape[1] + first + j, b.shape[1], 0)
                    copy_rows(source, Operand(packed, at, columns, 0), count, vectors, last, rounds)
