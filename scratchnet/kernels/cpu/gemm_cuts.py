"""How a matrix product is cut: the thresholds, the records that its functions pass on, blocks, panels and tiles.

  n columns of out (and of op(b))
+-----------+-----------+------+
| tile      |           |      |   A tile (rows x vectors, simd.py) stays in registers.
+-----------+           |      |   A panel is as wide as a tile. Its part of op(b) stays in L1 or L2.
| tile      |           |      |   A block is M_BLOCK rows, a span of k. Its part of op(a) stays in L2.
+-----------+           |      |   Threads share out the rows, or where there are few of them the panels.
  panel       panel       the last one may be narrower
"""

from typing import NamedTuple

import numpy as np

from ...native.compile import JIT_ENABLED, jit
from ...native.llvm import settings
from ...native.simd import TILE
from ..reference import SPAN

# What is best depends on the CPU: these numbers are tuned where they run (gemm_tuning.py), and read when kernels run.
M_BLOCK, PACK_A_COLUMNS, PACK_B_ROWS, SMALL_PRODUCT, SERIAL_PRODUCT = range(5)


class Cuts(NamedTuple):
    """The tuned numbers, in the order of their names above.

    m_block         rows of a at a time: with a panel of b they share L2; a multiple of BLOCK_UNIT
    pack_a_columns  a is packed if so many columns use it, else it is read where it is
    pack_b_rows     b is packed before the product if a thread uses it for so many rows, and it does not stay in L2
    small_product   multiplications that one thread does at once, without Python to plan them
    serial_product  the same where there is only one thread, which larger products keep waiting in vain
    """

    m_block: int
    pack_a_columns: int
    pack_b_rows: int
    small_product: int
    serial_product: int


BLOCK_UNIT, MOST_M_BLOCK = 72, 360  # rows: any height of tiles divides the unit; scratch memory has room for so many
NEVER = 1 << 40  # columns
_memory, _read = settings("scratchnet_cuts", len(Cuts._fields))
cut_now = _memory.item  # for Python
cut = _read if JIT_ENABLED else cut_now

# The others are the same everywhere, as measured on Zen 3 (AVX2, 512 KiB of L2) and Zen 4 (AVX-512, 1 MiB of L2).
L2_K, L2_BYTES = 128, 256 << 10  # b of so few rows and bytes stays in L2: each row of tiles may read all of it
LARGE_BYTES = 1 << 20  # of b, which no L2 keeps beside what else it needs: it pays sooner to pack it
PACKED_ELEMENTS = 1 << 23  # of b at a time: a wider b is packed part by part
PACK_AS_READ_TILES = 3  # else, of so many tiles one above the other, the first packs what it reads for the others
PACK_TRANSPOSED_A_COLUMNS, PACK_TRANSPOSED_A_K = 64, 256  # a transposed is slower to read from many lines of cache
PACK_TRANSPOSED_B_K = 128  # steps of k of a transposed b that are packed at a time: they stay in L1
FEW_ROWS, FEW_ROWS_ELEMENTS = 3, 8192  # so few rows take b in whole rows, so much at a time, as memory is read fastest
FEW_ROWS_COLUMNS = 16384  # of partial sums at a time
FEW_STEPS = 4  # so few steps of k are computed row by row, as memory is written fastest
MEMORY_BOUND = 4  # fewer rows, or fewer steps of k, take as long as so many: memory is the limit
WEIGHT_BYTES = 512 << 10  # of a weight and its velocity that a thread may count on to stay in its L2

ROWS, VECTORS = TILE.rows, np.array(TILE.vectors)
PANEL = TILE.vectors[ROWS]  # vectors of a panel of packed b: the width of the highest tile
SHARED = 2  # vectors: threads that share out columns take them in pieces so wide, which divide more evenly than panels
ZERO_VECTORS = max(TILE.vectors) + 1  # of the row of zeros that sums begin with: other rows are seldom as long
FEW_COLUMNS = TILE.most_rows  # a product of at most so many columns is computed transposed, with rows along the vectors
PAD = 16  # elements between packed rows of a, so that rows do not compete for the same lines of L1
CHUNK = 16  # rows of b that are packed together, so that memory is read in streams
PACKED_AS_READ = L2_BYTES // 4  # elements of b, at most, that tiles pack as they read them
NUMBERS = 16  # at most, that an update takes; they lie at the end of the scratch memory


def set_cuts(cuts):
    """Cut by these numbers from now on. The bits of products do not depend on them."""
    _memory[:] = cuts


def get_cuts():
    return Cuts(*map(int, _memory))


class Factors(NamedTuple):
    """op(a) (m, k) and op(b) (k, n). If `packed`, b holds the panels (gemm_pack.py) of op(b) from column `first` on.

    If `rounds`, a is rounded to bfloat16 as it is packed, and b is already: so it is packed.
    """

    a: np.ndarray
    b: np.ndarray
    transpose_a: bool
    transpose_b: bool
    packed: bool
    first: int
    rounds: bool


class Sums(NamedTuple):
    """Where sums begin and end: in `start`, which is `out`, or (1, n), a row for all rows, or a row of zeros of another
    length; and in `out`.

    Element (i, j) of the result lies at `at + i * row + j` of `out`; that is `out` itself but for partial sums.

    If a tile updates (simd.tile_updating), the sums are the gradient of the parameters in `out`; first, second: the
    states that an optimizer keeps of them; its numbers lie at `numbers_at` in the scratch memory.
    """

    start: np.ndarray
    out: np.ndarray
    first: np.ndarray
    second: np.ndarray
    numbers_at: int
    at: int
    row: int


START, CONTINUE, ADD = 0, 1, 2  # with what the sums of a block begin: `start`, `out`, or zero, to be added to `out`


class Region(NamedTuple):
    """Rows i0 to i1, columns j0 to j1 of `out`."""

    i0: int
    i1: int
    j0: int
    j1: int


class Scratch(NamedTuple):
    """This thread's scratch memory: `array` from element `at` on."""

    array: np.ndarray
    at: int


@jit
def even(size, largest, unit):
    """The length of the equal pieces, none above `largest`, that `size` is cut into, in whole units."""
    pieces = max(1, (size + largest - 1) // largest)
    return max(unit, (size + pieces * unit - 1) // (pieces * unit) * unit)


@jit
def span_of(k):
    """Into spans of so many terms, the last of which may be shorter, a sum of k terms is cut.

    Each is one chain from zero, and they are added up in order. So the error grows with SPAN + k / SPAN, not with k.
    """
    return even(k, SPAN, 16)


@jit
def next_panel(rest, most, lanes):
    """The next panel of `rest` remaining columns, at most `most` vectors wide: (columns, vectors, last), see Strip.

    Two panels of two vectors are better than one of three and one of one.
    """
    if most == 3 and 3 * lanes < rest <= 4 * lanes:
        columns, vectors = 2 * lanes, 2
    elif rest > (most - 1) * lanes and rest > lanes:
        columns, vectors = min(rest, most * lanes), most
    elif rest > lanes:
        columns, vectors = min(rest, 2 * lanes), 2
    elif rest == lanes:
        columns, vectors = rest, 1
    else:
        return rest, 0, rest
    return columns, vectors, columns - lanes


@jit
def equal_panels(rest, vectors, most, lanes):
    """How many panels of so many vectors stand side by side, the first of which is what `next_panel` returned."""
    panels = rest // (vectors * lanes) if vectors > 1 else 1
    remains = rest - panels * vectors * lanes
    return max(1, panels - 1 if vectors == most == 3 and 0 < remains <= lanes else panels)


@jit
def panel_at(panel, n, lanes):
    """The first column of a packed panel of n columns: where `next_panel` puts it."""
    j = panel * PANEL * lanes
    before = j - PANEL * lanes
    return before + 2 * lanes if PANEL == 3 and panel > 0 and 3 * lanes < n - before <= 4 * lanes else j


@jit
def tile_rows(rows, tiles):
    """`rows` rows in tiles as even as can be: (rows of a low tile, number of high tiles, which have one row more)."""
    return rows // tiles, rows % tiles


@jit
def whole_sums(start, out):
    """The sums of a product without an update."""
    return Sums(start, out, out, out, 0, 0, out.shape[1])


@jit
def steps_of(factors):
    """k: the terms of each sum."""
    return factors.a.shape[0] if factors.transpose_a else factors.a.shape[1]
