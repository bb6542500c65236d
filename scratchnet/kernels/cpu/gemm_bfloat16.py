"""Products of float32 matrices that are rounded to bfloat16 as they are read, in two ways with bits of their own.

widened   the float32 product, which rounds its factors as it packs them: the bits of the product of rounded factors.
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
from ...native.compile import JIT_ENABLED, get_num_threads, jit
from ...native.llvm import Operand
from ...native.loops import Plan, constant, planning, ranged, scratch, workspace
from ...native.simd import TILE
from ...native.tiles import DEPTH, SIDE, WORDS, begin_tiles, end_tiles, multiply_tiles, pack_tiles
from . import gemm
from .gemm import own_scratch
from .gemm_blocks import multiply
from .gemm_cuts import FEW_COLUMNS, MEMORY_BOUND, PANEL, SHARED, Factors, Region, Scratch, get_cuts, whole_sums
from .gemm_pack import copy_rounded, pack_b

BLOCK = 2 * SIDE  # rows and columns of a block of `out`
PART_BLOCKS, PART_TILES = 16, 32  # of op(b) that stays in L2: 512 columns and 1,024 terms, 1 MiB
SMALL, IN_L2 = (
    1 << 16,
    1 << 18,
)  # elements of two factors: one thread multiplies them; they are rounded, then multiplied
_SCRATCH = BLOCK * BLOCK  # elements: a block of `out` at the edge, or a block of a factor
_CONFIGURATION = constant(tiles.configuration())


# --- as the float32 product -------------------------------------------------------------------------------------------


@jit
def _multiply_widened(a, b, start, out, transpose_a, transpose_b, region, own):
    """A region of a product. op(b) is packed to this thread's scratch memory, op(a) where that is used."""
    columns = region.j1 - region.j0
    k, panel = b.shape[1] if transpose_b else b.shape[0], PANEL * (TILE.vector_bytes // out.itemsize)
    end = own.at + k * columns
    right = own.array.ravel()[own.at : end].reshape((k, columns))
    pack_b(0, (columns + panel - 1) // panel, b, transpose_b, region.j0, right, True)
    factors = Factors(a, right, transpose_a, False, out.shape[1] > FEW_COLUMNS, region.j0, True)
    multiply(factors, whole_sums(start, out), region, Scratch(own.array, end))


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


@jit
def _rows(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """Rows lo to hi of a product."""
    region = Region(lo, hi, 0, out.shape[1])
    _multiply_widened(a, b, start, out, transpose_a, transpose_b, region, own_scratch(work))


@jit
def _panels(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """Pieces lo to hi of the columns of a product."""
    width = SHARED * (TILE.vector_bytes // out.itemsize)
    region = Region(0, out.shape[0], lo * width, min(hi * width, out.shape[1]))
    _multiply_widened(a, b, start, out, transpose_a, transpose_b, region, own_scratch(work))


_by_products = ranged(_products, "widened_products", writes=(3,), whole=(2,), private=(6,), weight=1 / 8)
_by_rows = ranged(_rows, "widened_rows", writes=(3,), whole=(0, 1, 2), private=(6,), weight=1 / 8)
_by_panels = ranged(_panels, "widened_panels", writes=(3,), whole=(0, 1, 2, 3), private=(6,), weight=1 / 8)


def _widened(a, b, out, transpose_a, transpose_b):
    (count, m, n), k, float32 = out.shape, a.shape[1 if transpose_a else 2], np.dtype(np.float32)
    work, start = scratch(IN_L2 + gemm._SCRATCH[float32], float32), gemm.ZEROS[float32]
    cost, threads = max(m, MEMORY_BOUND) * n * max(k, MEMORY_BOUND), get_num_threads()
    flags = transpose_a, transpose_b
    if (m + n) * k <= SMALL and (count > 1 or cost <= get_cuts().small_product):
        _by_products(count, cost, a, b, start, out, *flags, work)
        return
    for left, right, product in zip(a, b, out, strict=True):
        if k * n > IN_L2:
            gemm.matmul(left, right, product, *flags, rounds=True)
        elif n > max(m, FEW_COLUMNS):  # each thread packs all of the shorter side
            panels = -(-n // (SHARED * gemm.LANES[float32]))
            _by_panels(panels, cost // panels, left, right, start, product, *flags, work, block=-(-panels // threads))
        else:
            block = gemm._even_rows(m, threads)
            _by_rows(m, cost // m, left, right, start, product, *flags, work, block=block)


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
