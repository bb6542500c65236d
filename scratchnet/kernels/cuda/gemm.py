"""Matrix products, one or many: out = op(a) @ op(b), with a bias added to each row where there is one.

The story of the kernel. One thread an element would read both factors from memory once for each product: memory is the
limit. So a block of threads computes a *tile* of the result: it brings `depth` columns of a and rows of b to shared
memory, and each element is used by a whole row or column of the tile. Reading shared memory would now be the limit:
so a thread computes own_rows x own_columns elements, which it holds in registers, and of each term of the sum it reads
own_rows + own_columns numbers, 16 bytes at a time, for own_rows * own_columns multiplications. While it computes with
one pair of tiles, the next is on its way to registers and then to the other half of shared memory: one barrier a tile.
Outside the matrices tiles are filled with zeros, so that the inner loop asks nothing. Of a small result there are too
few tiles for a GPU: gemm_few.py computes it, or where sums are long, they are cut into parts, which are added up in
order by a second kernel. So is a sum of more than SPAN terms, whose error would grow with its length.

A factor lies in memory along the tile's edge (b as it is, a transposed) or across it (the others); those two cases are
all that transposition changes.
"""

from functools import cache, lru_cache

import numba
import numpy as np

from ..reference import SPAN
from . import gemm_few, memory, reduce, tuning
from .compile import ALIGNED, Kernel, cuda, kernel, launch, store_wide
from .ends import PLAIN
from .gemm_tiles import factor, lines_of, multiplying
from .grids import is_wide
from .tuning import Tile, Tuning

SHORTEST, PARTS = 2, 4
PARTIAL_SUMS = 1 << 26  # elements, at most, of the parts of a sum that is long: beyond, a part has more than SPAN terms


@cache
def product(dtype: np.dtype, tile: Tile, transpose_a: bool, transpose_b: bool, has_bias: bool, many: bool) -> Kernel:
    """The kernel (a, b, bias, out, sizes, wide) of one product, or of `many`, one after the other in memory.

    `bias` is read only if has_bias. sizes: (m, n, k, span). span: how many terms of the sum a block adds up, in one
    chain; with less than k, `out` of one product is (parts, m, n), to be folded. Many have no parts.
    wide: may 16 bytes be moved at once from a, from b, and to out? Then their rows are multiples of that.
    """
    kind, ZERO, WIDTH = numba.from_dtype(dtype), dtype.type(0), 16 // dtype.itemsize
    ROWS, COLUMNS, DEPTH, OWN_ROWS, OWN_COLUMNS = tile.rows, tile.columns, tile.depth, tile.own_rows, tile.own_columns
    ACROSS, THREADS, OWN = COLUMNS // OWN_COLUMNS, tile.threads, OWN_ROWS * OWN_COLUMNS
    DOWN, COLUMN_GROUPS = ROWS // OWN_ROWS, OWN_COLUMNS // WIDTH
    A_ACROSS, B_ACROSS = not transpose_a, transpose_b
    A_WORDS, A_STRIDE, A_GROUPS, load_a, put_a = factor(dtype, ROWS, DEPTH, THREADS, A_ACROSS)
    B_WORDS, B_STRIDE, B_GROUPS, load_b, put_b = factor(dtype, COLUMNS, DEPTH, THREADS, B_ACROSS)
    A_SHARED, B_SHARED, A_STAGED, B_STAGED = 2 * A_WORDS, 2 * B_WORDS, A_GROUPS * WIDTH, B_GROUPS * WIDTH
    add_products = multiplying(dtype, tile, A_STRIDE, B_STRIDE)

    @kernel(THREADS, resident=2)
    def multiply(a, b, bias, out, sizes, wide):
        a_tiles = cuda.shared.array(A_SHARED, kind, ALIGNED)
        b_tiles = cuda.shared.array(B_SHARED, kind, ALIGNED)
        sums = cuda.local.array(OWN, kind)
        a_staged = cuda.local.array(A_STAGED, kind)
        b_staged = cuda.local.array(B_STAGED, kind)
        left = cuda.local.array(OWN_ROWS, kind)
        right = cuda.local.array(OWN_COLUMNS, kind)
        m, n, k, span = sizes
        thread = cuda.threadIdx.x
        x, y = thread % ACROSS, thread // ACROSS
        # Blocks are numbered along one axis: of the other two a grid has 65,535 at most, and a long matrix more tiles.
        bands, strips = (m + ROWS - 1) // ROWS, (n + COLUMNS - 1) // COLUMNS
        band, first_column = cuda.blockIdx.x // strips, cuda.blockIdx.x % strips * COLUMNS
        item, first_row = band // bands, band % bands * ROWS
        part, matrix = (0, item) if many else (item, 0)
        start, end = part * span, min(part * span + span, k)
        a_edges, a_first, a_terms, a_term = lines_of(matrix, m, first_row, k, A_ACROSS)
        b_edges, b_first, b_terms, b_term = lines_of(matrix, n, first_column, k, B_ACROSS)
        for i in range(OWN):
            sums[i] = ZERO

        load_a(a, a_edges, a_terms, a_first, a_term + start, thread, a_staged, wide[0])
        load_b(b, b_edges, b_terms, b_first, b_term + start, thread, b_staged, wide[1])
        put_a(a_staged, a_tiles, 0, thread)
        put_b(b_staged, b_tiles, 0, thread)
        cuda.syncthreads()
        half = 0
        for term in range(start, end, DEPTH):
            if term + DEPTH < end:
                load_a(a, a_edges, a_terms, a_first, a_term + term + DEPTH, thread, a_staged, wide[0])
                load_b(b, b_edges, b_terms, b_first, b_term + term + DEPTH, thread, b_staged, wide[1])
            add_products(a_tiles, half * A_WORDS, b_tiles, half * B_WORDS, left, right, sums, x, y)
            if term + DEPTH < end:
                half = 1 - half
                put_a(a_staged, a_tiles, half * A_WORDS, thread)
                put_b(b_staged, b_tiles, half * B_WORDS, thread)
            cuda.syncthreads()

        for g in range(COLUMN_GROUPS):
            column = first_column + (g * ACROSS + x) * WIDTH
            if has_bias and part == 0:
                for v in range(WIDTH):
                    if column + v < n:
                        for i in range(OWN_ROWS):
                            sums[i * OWN_COLUMNS + g * WIDTH + v] += bias[column + v]
            for i in range(OWN_ROWS):
                row = first_row + (i // WIDTH * DOWN + y) * WIDTH + i % WIDTH
                if row < m:
                    at = (item * m + row) * n + column
                    if wide[2] and column < n:
                        store_wide(sums, i * OWN_COLUMNS + g * WIDTH, out, at)
                    else:
                        for v in range(WIDTH):
                            if column + v < n:
                                out[at + v] = sums[i * OWN_COLUMNS + g * WIDTH + v]

    return multiply


def chosen_cut(dtype: np.dtype, m: int, n: int, k: int) -> tuple[Tile, int]:
    """`cut` with the numbers for the next launch."""
    return cut(tuning.current(), dtype, m, n, k)


@lru_cache(1024)
def cut(numbers: Tuning, dtype: np.dtype, m: int, n: int, k: int) -> tuple[Tile, int]:
    """The tile and the span of a block."""
    return span_of(numbers, numbers.tiles if dtype.itemsize == 4 else numbers.tiles_of_8_bytes, 1, m, n, k)


def span_of(numbers: Tuning, tiles: tuple[Tile, ...], count: int, m: int, n: int, k: int) -> tuple[Tile, int]:
    """The largest tile that leaves no multiprocessor without a block, or else the smallest; and the span of a block.

    With the smallest, whose blocks are small too, the sum is cut into parts of at least SHORTEST tiles where that gives
    a multiprocessor up to PARTS blocks. All this depends on the shapes and on a number of multiprocessors that is the
    same for every GPU, and so do the bits. count: of products.
    """
    blocks = [count * -(-m // tile.rows) * -(-n // tile.columns) for tile in tiles]
    size = count * m * n
    for tile, found in zip(tiles[:-1], blocks, strict=False):
        if found >= numbers.multiprocessors:
            return tile, _span(tile, size, k, 1)
    tile, steps = tiles[-1], -(-k // tiles[-1].depth)
    parts = max(1, min(PARTS * numbers.multiprocessors // blocks[-1], steps // SHORTEST))
    return tile, _span(tile, size, k, parts)


def _span(tile: Tile, size: int, k: int, parts: int) -> int:
    """The terms of a part, in whole tiles; parts: how many there are at least, of `size` elements each."""
    parts = max(parts, min(-(-k // SPAN), PARTIAL_SUMS // max(size, 1)))
    return max(-(-k // (parts * tile.depth)) * tile.depth, 1)


def is_few(dtype: np.dtype, m: int, n: int, k: int) -> bool:
    """Are there fewer of the smallest tiles than multiprocessors, for a sum that a block may add up alone?"""
    numbers = tuning.current()
    tile = (numbers.tiles if dtype.itemsize == 4 else numbers.tiles_of_8_bytes)[-1]
    return k <= numbers.few_terms and -(-m // tile.rows) * -(-n // tile.columns) < numbers.multiprocessors


def multiply(a, b, bias, out, transpose_a=False, transpose_b=False, end=PLAIN):
    """op(a) @ op(b) + bias, and of it what `end` says; that has to be PLAIN unless `is_few`."""
    (m, n), k = out.shape, a.shape[0] if transpose_a else a.shape[1]
    if not out.size:
        return
    if is_few(out.dtype, m, n, k):
        gemm_few.multiply(a, b, bias, out, (transpose_a, transpose_b), m, n, k, end)
        return
    tile, span = chosen_cut(out.dtype, m, n, k)
    parts = max(-(-k // span), 1)
    target = out if parts == 1 else memory.empty((1, parts, m * n), out.dtype)
    _by_tiles(tile, a, b, bias, target, (transpose_a, transpose_b), (m, n, k, span))
    if parts > 1:
        reduce.KERNELS["sum"](target, out.reshape(1, m * n))


def _by_tiles(tile: Tile, a, b, bias, out, transposed: tuple[bool, bool], sizes: tuple[int, ...]) -> None:
    """Launches `product`."""
    m, n, k, _ = sizes
    width, edges = 16 // out.itemsize, (m if transposed[0] else k, k if transposed[1] else n, n)
    wide = tuple(is_wide(x) and edge % width == 0 for x, edge in zip((a, b, out), edges, strict=True))
    loop = product(out.dtype, tile, *transposed, bias is not None, a.ndim == 3)
    blocks = -(-n // tile.columns) * -(-m // tile.rows) * (out.size // (m * n))
    a, b = (x if x.size else out for x in (a, b))  # k = 0: no element is read
    launch(loop, blocks, tile.threads, a, b, out if bias is None else bias, out, sizes, wide)


def matmul(a, b, out, transpose_a=False, transpose_b=False):
    multiply(a, b, None, out, bool(transpose_a), bool(transpose_b))


def linear(x, weight, bias, out):
    multiply(x, weight, bias, out)


@lru_cache(1024)
def tile_of_many(numbers: Tuning, dtype: np.dtype, count: int, m: int, n: int) -> Tile:
    """The largest tile that is less than half empty along each side and leaves no multiprocessor without a block."""
    is_narrow = dtype.itemsize == 4
    for tile in numbers.tiles if is_narrow else numbers.tiles_of_8_bytes:
        blocks = count * -(-m // tile.rows) * -(-n // tile.columns)
        if tile.rows < 2 * m and tile.columns < 2 * n and blocks >= numbers.multiprocessors:
            return tile
    return numbers.few if is_narrow else numbers.few_of_8_bytes


def batched_matmul(a, b, out, transpose_a=False, transpose_b=False):
    """An element is one chain of k terms, in order."""
    if out.size:
        (count, m, n), k = out.shape, a.shape[1 if transpose_a else 2]
        tile = tile_of_many(tuning.current(), out.dtype, count, m, n)
        _by_tiles(tile, a, b, None, out, (bool(transpose_a), bool(transpose_b)), (m, n, k, k))


KERNELS = {"matmul": matmul, "linear": linear, "batched_matmul": batched_matmul}
