"""Products of float32 matrices that are rounded to bfloat16 as they are read, in two ways with bits of their own.

widened   the rounded factors, as float32, go to the float32 product: its bits, on every CPU.
tiles     matrix units (native/tiles.py): sums go on by blocks of 32 terms, whose even and odd terms are chains apart.

`way` says which one this process takes. Blocks of `out` are 32 x 32, and go over all of k; a part of op(b) that fits
into L2 meets all rows before the next part is taken.
"""

import functools
import os
import time

import numpy as np

from ... import checks
from ...native import tiles
from ...native.cache import kept_text
from ...native.compile import JIT_ENABLED, jit
from ...native.llvm import Operand
from ...native.loops import Plan, constant, planning, ranged, scratch, workspace
from ...native.tiles import DEPTH, SIDE, WORDS, begin_tiles, end_tiles, multiply_tiles, pack_tiles
from . import gemm
from .gemm import own_scratch

BLOCK = 2 * SIDE  # rows and columns of a block of `out`
PART_BLOCKS, PART_TILES = 16, 32  # of op(b) that stays in L2: 512 columns and 1,024 terms, 1 MiB
_SCRATCH = BLOCK * BLOCK  # elements: a block of `out` at the edge, or a block of a factor
_CONFIGURATION = constant(tiles.configuration())


# --- rounding to float32 ----------------------------------------------------------------------------------------------


@jit
def _round(lo, hi, bits, out):
    """out = the bits of float32 numbers, rounded to bfloat16: to the nearest, ties to even."""
    for i in range(lo, hi):
        x = bits[i]
        rounded = np.uint32(np.uint32(x + np.uint32(0x7FFF)) + np.uint32(np.uint32(x >> np.uint32(16)) & np.uint32(1)))
        quiet = np.uint32(x | np.uint32(0x400000))
        is_nan = np.uint32(x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = quiet if is_nan else np.uint32(rounded & np.uint32(0xFFFF0000))


_rounding = ranged(_round, "round_bfloat16", writes=(1,), weight=0.25)


def _widened(a, b, out, transpose_a, transpose_b):
    memory = workspace((a.size + b.size,), np.dtype(np.uint32))
    rounded = []
    for x, place in ((a, memory[: a.size]), (b, memory[a.size :])):
        _rounding(x.size, 1, x.reshape(-1).view(np.uint32), place)
        rounded.append(place.view(np.float32).reshape(x.shape))
    if len(out) == 1:
        gemm.matmul(rounded[0][0], rounded[1][0], out[0], transpose_a, transpose_b)
    else:
        gemm.batched_matmul(rounded[0], rounded[1], out, transpose_a, transpose_b)


# --- matrix units -----------------------------------------------------------------------------------------------------


@jit
def _pack(lo, hi, x, k_first, left, k_tiles, packed, work):
    """Panels lo to hi of op(x), 16 rows of a left factor or 16 columns of a right one, become tiles.

    x: (count, ...) matrices as they lie in memory, k_first: with an axis of k before the other one.
    """
    own = own_scratch(work)
    flat, room = x.ravel(), work.ravel()
    k, edge = (x.shape[1], x.shape[2]) if k_first else (x.shape[2], x.shape[1])
    row = x.shape[2]
    panels = (edge + SIDE - 1) // SIDE
    turned = 1 if k_first == left else 0
    for item in range(lo, hi):
        matrix, first = item // panels, item % panels * SIDE
        base, at = matrix * x.shape[1] * row, item * k_tiles * WORDS
        lines = min(SIDE, edge - first)
        whole = k // DEPTH if lines == SIDE else 0
        start, step = (base + first, DEPTH * row) if k_first else (base + first * row, DEPTH)
        pack_tiles(Operand(x, start, row, step), Operand(packed, at, SIDE, WORDS), whole, 1 if k_first else 0, turned)
        for tile in range(whole, k_tiles):  # what hangs over is filled with zeros
            for e in range(SIDE * DEPTH):
                room[own.at + e] = 0
            terms, begin = min(DEPTH, k - tile * DEPTH), start + tile * step
            if k_first:
                for t in range(terms):
                    for i in range(lines):
                        room[own.at + t * SIDE + i] = flat[begin + t * row + i]
            else:
                for i in range(lines):
                    for t in range(terms):
                        room[own.at + i * DEPTH + t] = flat[begin + i * row + t]
            block = Operand(work, own.at, SIDE if k_first else DEPTH, 0)
            pack_tiles(block, Operand(packed, at + tile * WORDS, SIDE, 0), 1, 1 if k_first else 0, turned)


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
            for c in range(width):
                own[room.at + r * room.row + c] = out[target.at + r * target.row + c]
    multiply_tiles(left, right, room, depth, rows, columns, add)
    for r in range(height):
        for c in range(width):
            out[target.at + r * target.row + c] = own[room.at + r * room.row + c]


@jit
def _multiply(lo, hi, packed, right_at, out, k_tiles, by_columns, config, work):
    """Rows, or if `by_columns` columns, of blocks of the products: items lo to hi, counted through all matrices."""
    own, room, flat, panel = own_scratch(work), work.ravel(), out.ravel(), k_tiles * WORDS
    _, m, n = out.shape
    down, across = (m + BLOCK - 1) // BLOCK, (n + BLOCK - 1) // BLOCK
    a_panels, b_panels = (m + SIDE - 1) // SIDE, (n + SIDE - 1) // SIDE
    items = across if by_columns else down
    begin_tiles(Operand(config, 0, 0, 0))
    for matrix in range(lo // items, (hi + items - 1) // items):
        begin, end = max(lo - matrix * items, 0), min(hi - matrix * items, items)
        i0, i1 = (0, down) if by_columns else (begin, end)
        j0, j1 = (begin, end) if by_columns else (0, across)
        a_at, b_at = matrix * a_panels * panel, right_at + matrix * b_panels * panel
        for part in range(j0, j1, PART_BLOCKS):
            for first in range(0, k_tiles, PART_TILES):
                for i in range(i0, i1):
                    left = Operand(packed, a_at + i * 2 * panel + first * WORDS, 0, panel)
                    for j in range(part, min(part + PART_BLOCKS, j1)):
                        _multiply_block(
                            left,
                            Operand(packed, b_at + j * 2 * panel + first * WORDS, 0, panel),
                            Operand(flat, (matrix * m + i * BLOCK) * n + j * BLOCK, n, 0),
                            min(BLOCK, m - i * BLOCK),
                            min(BLOCK, n - j * BLOCK),
                            min(PART_TILES, k_tiles - first),
                            1 if first > 0 else 0,
                            Operand(room, own.at, BLOCK, 0),
                        )
    end_tiles(Operand(config, 0, 0, 0))


_packing = ranged(_pack, "pack_bfloat16", writes=(4,), whole=(0, 4), private=(5,), weight=0.25)
_by_blocks = ranged(_multiply, "matmul_bfloat16", writes=(2,), whole=(0, 2), private=(6,), weight=1 / 64)


def _by_tiles(a, b, out, transpose_a, transpose_b):
    count, m, n = out.shape
    k = a.shape[1 if transpose_a else 2]
    k_tiles, float32 = max(1, -(-k // DEPTH)), np.dtype(np.float32)
    a_panels, b_panels = count * -(-m // SIDE), count * -(-n // SIDE)
    b_at = a_panels * k_tiles * WORDS
    packed, work = workspace((b_at + b_panels * k_tiles * WORDS,), float32), scratch(_SCRATCH, float32)
    _packing(a_panels, k * SIDE, a, transpose_a, True, k_tiles, packed[:b_at], work)
    _packing(b_panels, k * SIDE, b, not transpose_b, False, k_tiles, packed[b_at:], work)
    by_columns = n > m
    items = count * -(-(n if by_columns else m) // BLOCK)
    _by_blocks(items, out.size * k // items, packed, b_at, out, k_tiles, by_columns, _CONFIGURATION, work)


# --- which way --------------------------------------------------------------------------------------------------------

WAYS = {"widened": _widened, "tiles": _by_tiles}
VARIABLE = "SCRATCHNET_BFLOAT16"
SIZE, ROUNDS, WORTH = 384, 3, 1.2  # of the product that is timed; how often; how much faster another way has to be


@functools.cache
def way() -> str:
    """The way of this process: that of SCRATCHNET_BFLOAT16, or the fastest here, which is measured once.

    All processes of a machine take the same one: where the measurement cannot be kept, it is the last one of WAYS.
    """
    there = ["widened"] + ["tiles"] * (JIT_ENABLED and tiles.are_there())
    if given := os.environ.get(VARIABLE):
        return checks.one_of(f"{VARIABLE} on this CPU", given, there)
    if len(there) == 1:
        return "widened"
    found = kept_text("bfloat16", lambda: _fastest(there))
    return found if found in there else there[-1]


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
