"""Matrix products by tensor cores, one or many: operands in bfloat16, float16 or TF32, sums in float32.

As in gemm.py a block computes a tile of the result, and its threads bring `depth` columns of a and rows of b to shared
memory while they compute with the ones before. What they read is float32; it is rounded on its way, as words of
tensor_cores.py, so no pass over memory is added. A warp computes a part of the tile, in pieces of 16 x 8 elements.

A word holds neighbouring terms of a sum. So where memory runs along the sum, a thread reads four terms of a row (or
column) and writes words that lie side by side; where it runs along the tile's edge, it reads four elements of as many
terms as a word has, and writes a word for each. Rows of words are as far apart as lets a warp read its words at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numba
import numpy as np

from . import gemm, memory, reduce, tuning
from .compile import ALIGNED, Kernel, cuda, device, kernel, launch, load_wide, machine, store_wide
from .gemm_tiles import lines_of
from .grids import in_row, is_wide
from .tensor_cores import COLUMNS as PIECE_COLUMNS
from .tensor_cores import LANES, PRECISIONS, WORDS, float_of_bits, multiplying, sum_place, word, word_of_tf32
from .tensor_cores import ROWS as PIECE_ROWS
from .tuning import Tile, Tuning

ZERO = np.float32(0)
THREE_PRODUCTS = "tf32x3"  # a precision: nearly float32, by three products in TF32


class _Factor(NamedTuple):
    """How a block brings the tiles of one factor to shared memory.

    words: of one tile. steps: how far its next (row or column, word) is. numbers: float32, that a thread is moving.
    load(x, edges, terms, first, term, thread, own, wide), put(own, words, tile, start, thread): see gemm_tiles.py.
    edges, terms: where a matrix ends in memory; of many, its own may begin beyond 0. words: four of the thread itself.
    """

    words: int
    steps: tuple[int, int]
    numbers: int
    load: Callable
    put: Callable


def layout(name: str, edge: int, depth: int, across: bool) -> tuple[tuple[int, int], int]:
    """(how far the next (row or column, word) of a tile is, the words of one). across: words of a sum lie side by side.

    Rows of words are as far apart as lets a warp read its words at once.
    """
    words = depth // PRECISIONS[name].terms
    return ((words + 4, 1), edge * (words + 4)) if across else ((1, edge + 8), words * (edge + 8))


@cache
def factor(name: str, edge: int, depth: int, threads: int, across: bool) -> _Factor:
    """edge: how many rows of op(a), or columns of op(b), a tile has. across: memory runs along the sum."""
    TERMS = PRECISIONS[name].terms
    (EDGE, WORD), WHOLE_WORDS = layout(name, edge, depth, across)
    LINE = (depth if across else edge) // 4  # groups of 16 bytes in a line of memory
    TOTAL = edge * depth // 4 // (1 if across else TERMS)  # groups, or where words need several lines, sets of them
    SETS, LINES = -(-TOTAL // threads), 1 if across else TERMS
    OWN, EACH = 4 * LINES, 4 // TERMS if across else 4  # numbers and words of a set
    WHOLE, APART = TOTAL % threads == 0, TERMS if across else 1  # APART: the first terms of two words of a set
    LINE_WORDS = EDGE if across else WORD
    SECOND = (1 if across else 4) * (TERMS - 1)  # from the first term of a word to its last one
    made = word(name)

    @device
    def load(x, edges, terms, first, term, thread, own, wide):
        for s in range(SETS):
            group = thread + s * threads
            for n in range(LINES):
                if across:
                    line, at, room_from = first + group // LINE, term + group % LINE * 4, terms
                    inside, start = line < edges, line * terms + at
                else:
                    line, at, room_from = term + group // LINE * LINES + n, first + group % LINE * 4, edges
                    inside, start = line < terms, line * edges + at
                if not WHOLE:
                    inside = inside and group < TOTAL
                to = s * OWN + n * 4
                if wide and inside and at + 4 <= room_from:
                    load_wide(x, start, own, to)
                else:
                    for v in range(4):
                        own[to + v] = ZERO
                        if inside and at + v < room_from:
                            own[to + v] = x[start + v]

    @device
    def put(own, words, tile, start, thread):
        for s in range(SETS):
            group = thread + s * threads
            if WHOLE or group < TOTAL:
                at = start + group // LINE * LINE_WORDS + group % LINE * EACH
                for v in range(EACH):
                    words[v] = made(own[s * OWN + v * APART], own[s * OWN + v * APART + SECOND])
                if EACH == 4:
                    store_wide(words, 0, tile, at)
                else:
                    for v in range(EACH):
                        tile[at + v] = words[v]

    return _Factor(WHOLE_WORDS, (EDGE, WORD), SETS * OWN, load, put)


class Warps(NamedTuple):
    """What the warps of a block make of a pair of tiles. A thread has `sums` numbers, of which the first are elements.

    add_products(a_tiles, a_start, b_tiles, b_start, thread, sums): the terms of both tiles, which begin there.
    place(thread, own): (row, column) in the tile of element `own` of a thread. finish(sums): makes elements of sums.
    elements: how many. words: how many of a precision's words a pair of numbers is, each in a tile of its own.
    """

    sums: int
    elements: int
    words: int
    add_products: Callable
    place: Callable
    finish: Callable


@cache
def warps(name: str, tile: Tile, a_steps: tuple[int, int], b_steps: tuple[int, int], rests: tuple[int, int]) -> Warps:
    """steps: see tensor_cores.multiplying. name: may be THREE_PRODUCTS: then what rounding leaves of a is multiplied by
    b, too, and that of b by a: sums that are added last. rests: how far behind a tile that of its rests begins.
    """
    OWN_ROWS, OWN_COLUMNS = tile.own_rows * 8, tile.own_columns * 4  # of a warp, whose threads are 8 x 4
    DOWN, ACROSS, WARPS = OWN_ROWS // PIECE_ROWS, OWN_COLUMNS // PIECE_COLUMNS, tile.columns // OWN_COLUMNS
    (A_EDGE, A_WORD), (B_EDGE, B_WORD), (A_REST, B_REST) = a_steps, b_steps, rests
    THRICE, ELEMENTS = name == THREE_PRODUCTS, DOWN * ACROSS * 4
    STEPS = tile.depth // (WORDS * PRECISIONS[once(name)].terms)
    multiply_add = multiplying(once(name), a_steps, b_steps)

    @device
    def add_products(a_tiles, a_start, b_tiles, b_start, thread, sums):
        lane, warp = thread % LANES, thread // LANES
        own_row, own_column = warp // WARPS * OWN_ROWS, warp % WARPS * OWN_COLUMNS
        for step in range(STEPS):
            for i in range(DOWN):
                a_at = a_start + (own_row + i * PIECE_ROWS) * A_EDGE + step * WORDS * A_WORD
                for j in range(ACROSS):
                    b_at = b_start + (own_column + j * PIECE_COLUMNS) * B_EDGE + step * WORDS * B_WORD
                    first = (i * ACROSS + j) * 4
                    if THRICE:
                        multiply_add(a_tiles, A_REST + a_at, b_tiles, b_at, lane, sums, ELEMENTS + first)
                        multiply_add(a_tiles, a_at, b_tiles, B_REST + b_at, lane, sums, ELEMENTS + first)
                    multiply_add(a_tiles, a_at, b_tiles, b_at, lane, sums, first)

    @device
    def place(thread, own):
        warp, piece = thread // LANES, own // 4
        row, column = sum_place(thread % LANES, own % 4)
        row += warp // WARPS * OWN_ROWS + piece // ACROSS * PIECE_ROWS
        return row, column + warp % WARPS * OWN_COLUMNS + piece % ACROSS * PIECE_COLUMNS

    @device
    def finish(sums):
        if THRICE:
            for own in range(ELEMENTS):
                sums[own] += sums[ELEMENTS + own]

    words = 2 if THRICE else 1
    return Warps(words * ELEMENTS, ELEMENTS, words, add_products, place, finish)


def once(name: str) -> str:
    """The precision of one of its products."""
    return "tf32" if name == THREE_PRODUCTS else name


@cache
def product_in_warps(name: str, tile: Tile, transpose_a: bool, transpose_b: bool) -> Kernel:
    """The kernel (a, b, out, sizes, wide) of `count` products: a, b, out are float32 (count, ...), one after the other.

    sizes: (count, m, n, k, span); span, and out where it is less than k: as in gemm.py, with (parts, count, m, n).
    """
    ROWS, COLUMNS, DEPTH, THREADS = tile.rows, tile.columns, tile.depth, tile.threads
    A_ACROSS, B_ACROSS, THRICE = not transpose_a, transpose_b, name == THREE_PRODUCTS
    A_WORDS, a_steps, A_NUMBERS, load_a, put_a = factor(once(name), ROWS, DEPTH, THREADS, A_ACROSS)
    B_WORDS, b_steps, B_NUMBERS, load_b, put_b = factor(once(name), COLUMNS, DEPTH, THREADS, B_ACROSS)
    A_REST, B_REST = 2 * A_WORDS, 2 * B_WORDS  # behind both halves
    SUMS, ELEMENTS, TILES, add_products, place, finish = warps(name, tile, a_steps, b_steps, (A_REST, B_REST))
    A_SHARED, B_SHARED, LINE = TILES * A_REST, TILES * B_REST, min(ELEMENTS, 16)
    LINES = ELEMENTS // LINE
    put_a_rest = factor("rest of tf32", ROWS, DEPTH, THREADS, A_ACROSS).put
    put_b_rest = factor("rest of tf32", COLUMNS, DEPTH, THREADS, B_ACROSS).put
    WORD, NUMBER = numba.uint32, numba.float32

    @kernel(THREADS, resident=2)
    def multiply(a, b, out, sizes, wide):
        a_tiles = cuda.shared.array(A_SHARED, WORD, ALIGNED)
        b_tiles = cuda.shared.array(B_SHARED, WORD, ALIGNED)
        sums = cuda.local.array(SUMS, NUMBER)
        a_staged = cuda.local.array(A_NUMBERS, NUMBER)
        b_staged = cuda.local.array(B_NUMBERS, NUMBER)
        words = cuda.local.array(4, WORD)
        count, m, n, k, span = sizes
        thread = cuda.threadIdx.x
        bands, strips = (m + ROWS - 1) // ROWS, (n + COLUMNS - 1) // COLUMNS
        band, first_column = cuda.blockIdx.x // strips, cuda.blockIdx.x % strips * COLUMNS
        item, first_row = band // bands, band % bands * ROWS
        part, item = item // count, item % count
        start, end = part * span, min(part * span + span, k)
        a_edges, a_first, a_terms, a_term = lines_of(item, m, first_row, k, A_ACROSS)
        b_edges, b_first, b_terms, b_term = lines_of(item, n, first_column, k, B_ACROSS)
        for i in range(SUMS):
            sums[i] = ZERO

        load_a(a, a_edges, a_terms, a_first, a_term + start, thread, a_staged, wide[0])
        load_b(b, b_edges, b_terms, b_first, b_term + start, thread, b_staged, wide[1])
        put_a(a_staged, words, a_tiles, 0, thread)
        put_b(b_staged, words, b_tiles, 0, thread)
        if THRICE:
            put_a_rest(a_staged, words, a_tiles, A_REST, thread)
            put_b_rest(b_staged, words, b_tiles, B_REST, thread)
        cuda.syncthreads()
        half = 0
        for term in range(start, end, DEPTH):
            if term + DEPTH < end:
                load_a(a, a_edges, a_terms, a_first, a_term + term + DEPTH, thread, a_staged, wide[0])
                load_b(b, b_edges, b_terms, b_first, b_term + term + DEPTH, thread, b_staged, wide[1])
            add_products(a_tiles, half * A_WORDS, b_tiles, half * B_WORDS, thread, sums)
            if term + DEPTH < end:
                half = 1 - half
                put_a(a_staged, words, a_tiles, half * A_WORDS, thread)
                put_b(b_staged, words, b_tiles, half * B_WORDS, thread)
                if THRICE:
                    put_a_rest(a_staged, words, a_tiles, A_REST + half * A_WORDS, thread)
                    put_b_rest(b_staged, words, b_tiles, B_REST + half * B_WORDS, thread)
            cuda.syncthreads()

        finish(sums)
        out_at = ((part * count + item) * m + first_row) * n + first_column
        for line in range(LINES):  # in two loops, each of which is short enough to be unrolled
            for i in range(LINE):
                row, column = place(thread, line * LINE + i)
                if row < m - first_row and column < n - first_column:
                    out[out_at + row * n + column] = sums[line * LINE + i]

    return multiply


@lru_cache(1024)
def cut(numbers: Tuning, thrice: bool, count: int, m: int, n: int, k: int) -> tuple[Tile, int]:
    """The tile and the span of a block, by the law of gemm.py; with twice the words and sums no large one has room."""
    tiles = numbers.tensor_tiles
    return gemm.span_of(numbers, tiles[1:] or tiles if thrice else tiles, count, m, n, k)


def multiply(name: str, a, b, out, transpose_a: bool, transpose_b: bool) -> None:
    """out = op(a) @ op(b) of each two matrices, float32 (count, ...), whose elements are read in a precision."""
    (count, m, n), k = out.shape, a.shape[1 if transpose_a else 2]
    thrice = name == THREE_PRODUCTS
    tile, span = cut(tuning.current(), thrice, count, m, n, k)
    parts = max(-(-k // span), 1)
    target = out if parts == 1 else memory.empty((1, parts, out.size), out.dtype)
    edges = m if transpose_a else k, k if transpose_b else n
    wide = tuple(is_wide(x) and edge % 4 == 0 for x, edge in zip((a, b), edges, strict=True))
    loop = product_in_warps(name, tile, transpose_a, transpose_b)
    blocks = -(-n // tile.columns) * -(-m // tile.rows) * parts * count
    a, b = (x if x.size else out for x in (a, b))  # k = 0: no element is read
    launch(loop, blocks, tile.threads, a, b, target, (count, m, n, k, span), wide)
    if parts > 1:
        reduce.KERNELS["sum"](target, out.reshape(1, out.size))


# --- GPUs without tensor cores for these types: operands are rounded first, and multiplied as float32 -----------------


@cache
def rounding(threads: int) -> Kernel:
    @kernel(threads)
    def loop(x, out):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] = float_of_bits(word_of_tf32(x[i], ZERO))

    return loop


def rounded(name: str, x):
    if name == THREE_PRODUCTS:
        return x
    if name != "tf32":
        return x.astype(name).astype(x.dtype)
    out, grid = memory.empty(x.shape, x.dtype), in_row(x.size)
    if x.size:
        launch(rounding(grid[1]), *grid, x, out)
    return out


def _matmul(name: str) -> Callable[..., None]:
    def run(a, b, out, transpose_a=False, transpose_b=False):
        if not out.size:
            return
        if machine.has_tensor_cores():
            multiply(name, a, b, out, bool(transpose_a), bool(transpose_b))
            return
        a, b = (rounded(name, x) for x in (a, b))
        if len(out) == 1:
            gemm.matmul(a[0], b[0], out[0], transpose_a, transpose_b)
        else:
            gemm.batched_matmul(a, b, out, transpose_a, transpose_b)

    return run


KERNELS = {f"matmul_{name}": _matmul(name) for name in ("bfloat16", "float16", "tf32", THREE_PRODUCTS)}
