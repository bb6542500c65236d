"""Products of float32 matrices that are rounded to bfloat16 as they are read, in three ways with bits of their own.

widened   the float32 product, which rounds its factors as it packs them: the bits of the product of rounded factors.
pairs     vectors of pairs (pairs.py): chains of 1,024 terms, of each two the second one first.
tiles     matrix units (tiles.py): sums go on by blocks of 32 terms, whose even and odd terms are chains apart.

`way` says which one this process takes. Blocks of `out` of pairs and tiles are 32 x 32,
and go over all of k; a part of a factor that fits into L2 meets all blocks of the other one before the next part is
taken.
"""

import functools
import os
import time
from functools import partial
from typing import Any

import numpy as np

from ... import checks
from ...native.cache import kept_text
from ...native.compile import JIT_ENABLED, jit, stamp
from ...native.llvm import Operand
from ...native.loops import Plan, constant, planning, ranged, scratch, workspace
from . import gemm, pairs, tiles
from .gemm import own_scratch
from .gemm_blocks import multiply
from .gemm_cuts import MEMORY_BOUND, Factors, Region, Scratch, get_cuts, whole_sums
from .gemm_pack import copy_rounded
from .pairs import DEPTH, SIDE, WORDS, multiply_pairs, pack_tiles
from .tiles import begin_tiles, end_tiles, multiply_tiles

BLOCK = 2 * SIDE  # rows and columns of a block of `out`
PART_BLOCKS, PART_TILES = 16, 32  # of op(b) that stays in L2: 512 columns and 1,024 terms, 1 MiB
SMALL = 1 << 16  # elements of two factors that are rounded apart from packing
_BLOCK_SCRATCH = BLOCK * BLOCK  # elements: a block of `out` at the edge, or a block of a factor
_SCRATCH = _BLOCK_SCRATCH + 2 * PART_TILES * WORDS  # and the panels of a block of the longer factor
TOGETHER = 2  # tiles of a panel along rows of memory that are packed before those beside them, in the same rows
PACKING = 24  # packing an element takes as long as so many multiplications of it
_CONFIGURATION = constant(tiles.configuration())


# --- as the float32 product -------------------------------------------------------------------------------------------


@jit
def _products(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """The products lo to hi of as many matrices, so small that rounding them apart from packing takes less time."""
    own, flat, region = own_scratch(work), work.ravel(), Region(0, out.shape[1], 0, out.shape[2])
    middle, end = own.at + a[0].size, own.at + a[0].size + b[0].size
    for i in range(lo, hi):
        left, right = flat[own.at : middle], flat[middle:end]
        copy_rounded(a[i].ravel(), left)
        copy_rounded(b[i].ravel(), right)
        left, right = left.reshape(a[i].shape), right.reshape(b[i].shape)
        factors = Factors(left, right, transpose_a, transpose_b, False, 0, False)
        multiply(factors, whole_sums(start, out[i]), region, Scratch(work, end))


_by_products = ranged(_products, "widened_products", writes=(3,), whole=(2,), private=(6,), weight=1 / 8)


def _widened(a, b, out, transpose_a, transpose_b):
    (count, m, n), k, float32 = out.shape, a.shape[1 if transpose_a else 2], np.dtype(np.float32)
    cost = max(m, MEMORY_BOUND) * n * max(k, MEMORY_BOUND)
    if (m + n) * k <= SMALL and (count > 1 or cost <= get_cuts().small_product):
        work = scratch(SMALL + gemm._SCRATCH[float32], float32)
        _by_products(count, cost, a, b, gemm.ZEROS[float32], out, transpose_a, transpose_b, work)
        return
    for left, right, product in zip(a, b, out, strict=True):
        gemm.matmul(left, right, product, transpose_a, transpose_b, rounds=True)


# --- units of bfloat16 ------------------------------------------------------------------------------------------------
# The shorter side of `out` has a factor that is packed first. Each block of the other factor is packed by the thread
# that uses it, right before; or first as well, if so many blocks of the shorter side make it be used several times.


@jit
def _pack_panel(x, matrix, first, k_first, left, tile, tiles, target, at, own):
    """Panel `first` of a matrix of x, its tiles from `tile` on, are packed to `target`, from element `at` on.

    A panel is 16 rows of a left factor, or 16 columns of a right one; x: (count, ...) matrices as they lie in memory,
    k_first: with an axis of k before the other one.
    """
    flat, room = x.ravel(), own.array.ravel()[own.at : own.at + SIDE * DEPTH]
    k, edge = (x.shape[1], x.shape[2]) if k_first else (x.shape[2], x.shape[1])
    row = x.shape[2]
    turned = 1 if k_first == left else 0
    first *= SIDE
    base, lines = matrix * x.shape[1] * row, min(SIDE, edge - first)
    whole = max(0, min(tiles, k // DEPTH - tile)) if lines == SIDE else 0
    start, step = (base + first, DEPTH * row) if k_first else (base + first * row, DEPTH)
    start += tile * step
    pack_tiles(Operand(x, start, row, step), Operand(target, at, SIDE, WORDS), whole, 1 if k_first else 0, turned)
    for t in range(whole, tiles):  # what hangs over is filled with zeros
        room[:] = 0
        terms, begin = min(DEPTH, k - (tile + t) * DEPTH), start + t * step
        count, length, width = (terms, lines, SIDE) if k_first else (lines, terms, DEPTH)
        for i in range(count):
            old, new = flat[begin + i * row : begin + i * row + length], room[i * width : i * width + length]
            for e in range(length):
                new[e] = old[e]
        block = Operand(own.array, own.at, SIDE if k_first else DEPTH, 0)
        pack_tiles(block, Operand(target, at + t * WORDS, SIDE, 0), 1, 1 if k_first else 0, turned)


@jit
def _pack(lo, hi, x, k_first, left, packed, work):
    """Panels lo to hi of all matrices; packed: (1, panels, words of a panel)."""
    panels = ((x.shape[2] if k_first else x.shape[1]) + SIDE - 1) // SIDE
    words, flat = packed.shape[2], packed.ravel()
    for item in range(lo, hi):
        at, own = item * words, own_scratch(work)
        _pack_panel(x, item // panels, item % panels, k_first, left, 0, words // WORDS, flat, at, own)


@jit
def _multiply_block(left, right, target, height, width, depth, add, room):
    """A block of `out`, which is `target`: `height` rows, `width` columns, `depth` tiles; see multiply_tiles."""
    rows, columns = (height + SIDE - 1) // SIDE, (width + SIDE - 1) // SIDE
    if height % SIDE == 0 and width % SIDE == 0:
        multiply_tiles(left, right, target, depth, rows, columns, add)
        return
    out, own = target.array, room.array
    if add:
        for r in range(height):
            at, to = target.at + r * target.row, room.at + r * room.row
            old, new = out[at : at + width], own[to : to + width]
            for c in range(width):
                new[c] = old[c]
    multiply_tiles(left, right, room, depth, rows, columns, add)
    for r in range(height):
        at, to = room.at + r * room.row, target.at + r * target.row
        old, new = own[at : at + width], out[to : to + width]
        for c in range(width):
            new[c] = old[c]


@jit
def _part_blocks(k_tiles):
    """Blocks of the shorter side that stay in L2 while those of the other one go by."""
    return PART_BLOCKS * (PART_TILES // min(PART_TILES, k_tiles))


@jit
def _multiply(lo, hi, longer, k_first, short, out, by_columns, packs, config, work):
    """Rows, or if `by_columns` columns, of blocks of the products: items lo to hi, counted through all matrices.

    longer, short: the factor of the items and the other one, in panels; if `packs`, `longer` is as it lies in memory.
    """
    own, room, flat, other = own_scratch(work), work.ravel(), out.ravel(), short.ravel()
    _, m, n = out.shape
    edge, short_edge = (n, m) if by_columns else (m, n)
    items, blocks = (edge + BLOCK - 1) // BLOCK, (short_edge + BLOCK - 1) // BLOCK
    panels, short_panels = (edge + SIDE - 1) // SIDE, (short_edge + SIDE - 1) // SIDE
    panel, mine = short.shape[2], room if packs else longer.ravel()
    k_tiles = panel // WORDS
    part_blocks = _part_blocks(k_tiles)
    begin_tiles(Operand(config, 0, 0, 0))
    for matrix in range(lo // items, (hi + items - 1) // items):
        for part in range(0, blocks, part_blocks):
            for first in range(0, k_tiles, PART_TILES):
                depth = min(PART_TILES, k_tiles - first)
                for i in range(max(lo - matrix * items, 0), min(hi - matrix * items, items)):
                    at, next_at = (matrix * panels + 2 * i) * panel + first * WORDS, panel
                    if packs:
                        at, next_at = own.at + _BLOCK_SCRATCH, depth * WORDS
                        together = TOGETHER if k_first else depth
                        for t in range(0, depth, together):
                            for p in range(2 * i, min(2 * i + 2, panels)):
                                to, few = at + (p - 2 * i) * next_at + t * WORDS, min(together, depth - t)
                                _pack_panel(longer, matrix, p, k_first, not by_columns, first + t, few, room, to, own)
                    for j in range(part, min(part + part_blocks, blocks)):
                        this = Operand(mine, at, 0, next_at)
                        that = Operand(other, (matrix * short_panels + 2 * j) * panel + first * WORDS, 0, panel)
                        row, column = (j * BLOCK, i * BLOCK) if by_columns else (i * BLOCK, j * BLOCK)
                        _multiply_block(
                            that if by_columns else this,
                            this if by_columns else that,
                            Operand(flat, (matrix * m + row) * n + column, n, 0),
                            min(BLOCK, m - row),
                            min(BLOCK, n - column),
                            depth,
                            1 if first > 0 else 0,
                            Operand(room, own.at, BLOCK, 0),
                        )
    end_tiles(Operand(config, 0, 0, 0))


@jit
def _nothing(config):
    """Pairs need no units to be prepared."""


_packing = ranged(_pack, "pack_bfloat16", writes=(3,), whole=(0, 3), private=(4,), weight=0.25)
_LOOP: dict[str, Any] = {"writes": (3,), "whole": (0, 2, 3), "private": (7,), "weight": 1 / 64}
_by_tiles = ranged(_multiply, "multiply_tiles", **_LOOP)
_by_pairs = ranged(
    _multiply,
    "multiply_pairs",
    begin_tiles=_nothing,
    end_tiles=_nothing,
    _multiply_block=stamp(_multiply_block, "multiply_block_of_pairs", multiply_tiles=multiply_pairs),
    **_LOOP,
)


def _by_units(loop, a, b, out, transpose_a, transpose_b):
    count, m, n = out.shape
    k, float32 = a.shape[1 if transpose_a else 2], np.dtype(np.float32)
    k_tiles = max(1, -(-k // DEPTH))
    by_columns = n > m and k_tiles > 1  # with few terms, `out` takes longest, which is faster to write by rows
    sides: list[Any] = [(a, transpose_a, True, m), (b, not transpose_b, False, n)]  # ..., is k first, is it left, edge
    side, short = sides[::-1] if by_columns else sides
    longer, k_first, _, edge = side
    packs, work = short[3] <= BLOCK * _part_blocks(k_tiles), scratch(_SCRATCH, float32)
    if not packs:
        longer = _packed(count, k_tiles, side, work)
    items, cost = count * -(-edge // BLOCK), BLOCK * k * (short[3] + packs * PACKING)
    packed = _packed(count, k_tiles, short, work)
    loop(items, cost, longer, k_first, packed, out, by_columns, packs, _CONFIGURATION, work)


def _packed(count, k_tiles, side, work):
    """The panels of a factor; a left one and a right one have memory of their own, until the next product."""
    x, k_first, is_left, edge = side
    panels = count * -(-edge // SIDE)
    packed = workspace((1, panels, k_tiles * WORDS), np.dtype(np.float32 if is_left else np.int32)).view(np.float32)
    _packing(panels, k_tiles * DEPTH * SIDE, x, k_first, is_left, packed, work)
    return packed


# --- which way --------------------------------------------------------------------------------------------------------

WAYS: dict[str, Any] = {
    "widened": _widened,
    "pairs": partial(_by_units, _by_pairs),
    "tiles": partial(_by_units, _by_tiles),
}
UNITS: dict[str, Any] = {"pairs": pairs, "tiles": tiles}  # what a way needs
VARIABLE = "SCRATCHNET_BFLOAT16"
SIZE, ROUNDS, WORTH = 384, 3, 1.2  # of the product that is timed; how often; how much faster another way has to be


@functools.cache
def way() -> str:
    """The way of this process: that of SCRATCHNET_BFLOAT16, or the fastest here, which is measured once.

    All processes of a machine take the same one: where the measurement cannot be kept, "tiles" if there are any.
    """
    there = ["widened", *(name for name, unit in UNITS.items() if JIT_ENABLED and unit.are_there())]
    if given := os.environ.get(VARIABLE):
        return checks.one_of(f"{VARIABLE} on this CPU", given, there)
    if len(there) == 1:
        return "widened"
    found = kept_text("bfloat16", lambda: _fastest(there))
    return found if found in there else "tiles" if "tiles" in there else "widened"


def _fastest(ways):
    seconds = measured(ways)
    best = min(ways, key=seconds.__getitem__)
    return best if seconds[best] * WORTH < seconds["widened"] else "widened"


def measured(ways, size=SIZE):
    """Seconds of a product of two (size, size) matrices on one thread, the shortest of a few: {way: seconds}."""
    a = np.random.default_rng(0).standard_normal((1, size, size)).astype(np.float32)
    found = {}
    for name in ways:
        plan, times = Plan(), list[float]()
        with planning(plan):
            WAYS[name](a, a, np.empty_like(a), False, False)
        for _ in range(ROUNDS + 1):  # the first one may compile
            start = time.perf_counter()
            for task in plan:
                task.loop.serial(0, task.size, *task.arguments)
            times.append(time.perf_counter() - start)
        found[name] = min(times[1:])
    return found


def matmul_bfloat16(a, b, out, transpose_a=False, transpose_b=False):
    """See the reference. The order of sums depends on `way`."""
    if out.size:
        WAYS[way()](a, b, out, bool(transpose_a), bool(transpose_b))
