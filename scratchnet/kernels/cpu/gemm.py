"""The matrix product: checks, and the plan of who computes what; gemm_blocks.py computes it.

gemm_cuts.py holds the thresholds and says how `out` is cut, gemm_pack.py copies operands into the order in which they
are read, gemm_few.py has the products with a short side; the innermost loops are native/simd.py. How the bits of a
result come to be the same whatever the cut, see gemm_blocks.py. The way from three plain loops to this, step by step,
with times: docs/matmul.md.
"""

import threading
from types import SimpleNamespace

import numpy as np
from numba import get_thread_id
from numba.np.ufunc.parallel import _launch_threads

from ...errors import DtypeError, ShapeError
from ...native.compile import JIT_ENABLED, before_first_kernel, get_num_threads, jit
from ...native.loops import constant, is_planning, ranged, scratch, workspace
from ...native.simd import TILE
from .gemm_blocks import multiply
from .gemm_cuts import (
    FEW_COLUMNS,
    L2_BYTES,
    L2_K,
    LARGE_BYTES,
    MEMORY_BOUND,
    MOST_M_BLOCK,
    NUMBERS,
    PACK_B_ROWS,
    PACKED_AS_READ,
    PACKED_ELEMENTS,
    PAD,
    PANEL,
    ROWS,
    SERIAL_PRODUCT,
    SHARED,
    SMALL_PRODUCT,
    SPAN,
    WEIGHT_BYTES,
    ZERO_VECTORS,
    Factors,
    Region,
    Scratch,
    cut,
    cut_now,
    whole_sums,
)
from .gemm_few import multiply_one_row
from .gemm_pack import pack_b

if JIT_ENABLED:
    before_first_kernel(_launch_threads)  # it makes `get_thread_id` known to code that comes from the cache
else:

    def get_thread_id() -> int:
        return 0


# --- loops ------------------------------------------------------------------------------------------------------------


@jit
def own_scratch(work):
    """The row of `work` that is this thread's."""
    return Scratch(work, max(0, get_thread_id()) * work.shape[1])  # under tbb, a thread in no region has number -1


@jit
def _product(lo, hi, a, b, start, out, transpose_a, transpose_b, rounds, work):
    """Rows lo to hi of out = start + op(a) @ op(b); start: see Sums, rounds: see Factors."""
    factors, sums = Factors(a, b, transpose_a, transpose_b, False, 0, rounds), whole_sums(start, out)
    multiply(factors, sums, Region(lo, hi, 0, out.shape[1]), own_scratch(work))


@jit
def _product_packed(lo, hi, a, panels, start, out, transpose_a, first, rounds, work):
    """The same for columns from `first` on, with the panels that `_packed` made of op(b)."""
    factors, sums = Factors(a, panels, transpose_a, False, True, first, rounds), whole_sums(start, out)
    multiply(factors, sums, Region(lo, hi, first, first + panels.shape[1]), own_scratch(work))


@jit
def _product_by_columns(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """Pieces lo to hi of the columns of out = start + op(a) @ op(b): for fewer rows than threads could share."""
    columns = SHARED * (TILE.vector_bytes // out.itemsize)
    region = Region(0, out.shape[0], lo * columns, min(hi * columns, out.shape[1]))
    factors, sums = Factors(a, b, transpose_a, transpose_b, False, 0, False), whole_sums(start, out)
    multiply(factors, sums, region, own_scratch(work))


@jit
def _products(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """The products lo to hi of as many matrices; start: see Sums."""
    scratch, region = own_scratch(work), Region(0, out.shape[1], 0, out.shape[2])
    for i in range(lo, hi):
        factors, sums = Factors(a[i], b[i], transpose_a, transpose_b, False, 0, False), whole_sums(start, out[i])
        multiply(factors, sums, region, scratch)


# --- the public function ----------------------------------------------------------------------------------------------

LANES = {np.dtype(t): TILE.vector_bytes // np.dtype(t).itemsize for t in (np.float32, np.float64)}
ZEROS = {dtype: constant(np.zeros((1, ZERO_VECTORS * lanes), dtype)) for dtype, lanes in LANES.items()}
# Elements of b packed as it is read, of packed a, and the numbers of an update.
_SCRATCH = dict.fromkeys(LANES, NUMBERS + PACKED_AS_READ + MOST_M_BLOCK * (SPAN + PAD))

WEIGHT = 1 / 8  # of one multiplication and addition (native/loops.py)
_pack = ranged(pack_b, "pack", writes=(3,), whole=(0, 3))
_by_rows = ranged(_product, "matmul", writes=(3,), whole=(1, 2), private=(7,), weight=WEIGHT)
_one_by_one = ranged(_products, "batched_matmul", writes=(3,), whole=(2,), private=(6,), weight=WEIGHT)
_packed_by_rows = ranged(_product_packed, "matmul_packed", writes=(3,), whole=(1, 2), private=(7,), weight=WEIGHT)
by_rows_transposed = _by_rows.reading_whole(0, 1, 2)  # a row of a transposed `a` lies all over it
packed_by_rows_transposed = _packed_by_rows.reading_whole(0, 1, 2)
_by_columns = ranged(
    _product_by_columns, "matmul_columns", writes=(3,), whole=(0, 1, 2, 3), private=(6,), weight=WEIGHT
)


def matmul(a, b, out, transpose_a=False, transpose_b=False, bias=None, accumulate=False, rounds=False):
    """out (m, n) = op(a) (m, k) @ op(b) (k, n), plus bias (n,) if given, plus what `out` held if `accumulate`.

    op transposes its matrix if its flag is set. a, b, out are stored row by row, all float32 or all float64, and `out`
    overlaps neither a nor b. If `rounds`, a and b, float32, are rounded to bfloat16 as they are packed.
    Each element is a sum in the order of k, begun with the bias and the old value, and cut into spans
    (gemm_cuts.span_of): its bits depend neither on threads nor on the other rows and columns.
    Raises ShapeError, DtypeError.
    """
    dtype = out.dtype
    if dtype not in LANES or a.dtype != dtype or b.dtype != dtype or (bias is not None and bias.dtype != dtype):
        dtypes = ", ".join(str(x.dtype) for x in (a, b, bias, out) if x is not None)
        raise DtypeError(f"matmul: expected arrays of float32 or of float64, got {dtypes}")
    left, right = a.shape[::-1] if transpose_a else a.shape, b.shape[::-1] if transpose_b else b.shape
    if not len(left) == len(right) == 2 or left[1] != right[0] or out.shape != (left[0], right[1]):
        raise ShapeError(f"matmul: expected shapes (m, k) @ (k, n) -> (m, n), got {left} @ {right} -> {out.shape}")
    if bias is not None and bias.shape != out.shape[1:]:
        raise ShapeError(f"matmul: expected a bias of shape {out.shape[1:]}, got {bias.shape}")
    if not out.flags.carray:
        raise ShapeError("matmul: expected an `out` that is writable and stored row by row")
    if out.size == 0:
        return

    (m, k), n = left, right[1]
    start = ZEROS[dtype] if bias is None else bias.reshape(1, n)
    if accumulate:
        if bias is not None:
            out += bias
        start = out
    if not (a.flags.carray and b.flags.carray and start.flags.carray):
        a, b, start = _plain(a), _plain(b), _plain(start)
    work, threads, lanes = scratch(_SCRATCH[dtype], dtype), get_num_threads(), LANES[dtype]
    transpose_a = bool(transpose_a)
    transpose_b = bool(transpose_b)
    pack_b_rows = threads * cut_now(PACK_B_ROWS)
    if is_planning() and k * n * out.itemsize > LARGE_BYTES:  # a program packs beside other work, in an earlier stage
        pack_b_rows //= 2
    in_l2 = k <= L2_K and k * n * out.itemsize <= L2_BYTES
    packing = transpose_b and not in_l2 and m < pack_b_rows  # by rows, every thread would pack all of b
    is_plain = not (transpose_a or transpose_b)
    by_columns = is_plain and is_planning() and shares_columns(m, k, n, threads, out.itemsize)  # an update may follow
    if rounds and n <= FEW_COLUMNS:
        b, transpose_b = _packed(b, transpose_b, 0, n, rounds), False  # one panel: op(b) as it is
    elif not rounds and (by_columns or ((packing or m < ROWS * threads) and n >= 4 * lanes)):
        groups = pieces_of(n, SHARED, dtype)
        block = -(-groups // threads)
        cost = max(m, MEMORY_BOUND) * n * k // groups
        _by_columns(groups, cost, a, b, start, out, transpose_a, transpose_b, work, block=block)
        return
    if n <= FEW_COLUMNS or (not rounds and (m < pack_b_rows or in_l2)):
        block = _even_rows(m, threads)
        run = by_rows_transposed if transpose_a else _by_rows
        run(m, n * max(k, MEMORY_BOUND), a, b, start, out, transpose_a, transpose_b, rounds, work, block=block)
        return
    columns = max(1, PACKED_ELEMENTS // (max(k, 1) * PANEL * lanes)) * PANEL * lanes
    for j in range(0, n, columns):
        j_end = min(n, j + columns)
        packed = _packed(b, transpose_b, j, j_end, rounds)
        block = _even_rows(m, threads)
        run = packed_by_rows_transposed if transpose_a else _packed_by_rows
        run(m, (j_end - j) * k, a, packed, start, out, transpose_a, j, rounds, work, block=block)


def batched_matmul(a, b, out, transpose_a=False, transpose_b=False):
    """The product of each two matrices of a (count, ...) and b (count, ...); an item is a product. See matmul."""
    count, m, n = out.shape
    k = a.shape[1 if transpose_a else 2]
    if out.size:
        work, cost = scratch(_SCRATCH[out.dtype], out.dtype), max(m, MEMORY_BOUND) * n * max(k, MEMORY_BOUND)
        _one_by_one(count, cost, a, b, ZEROS[out.dtype], out, bool(transpose_a), bool(transpose_b), work)


def shares_columns(m, k, n, threads, itemsize):
    """Should threads share out the columns of a weight (k, n) for a batch of m rows, in the product and in its update?

    Then what a thread updates of it, with its velocity, is in that core's L2 for the next product; by rows, each core
    would fetch half of the weight from another. In return every thread reads the whole batch.
    """
    enough = n >= threads * SHARED * TILE.vector_bytes // itemsize
    return threads > 1 and m <= n and enough and 2 * k * n * itemsize <= threads * WEIGHT_BYTES


@jit
def _direct(a, b, start, out, transpose_a, transpose_b, alone, work):
    """out = start + op(a) @ op(b), if that is little enough to do at once; was it? work: float32, for scratch.

    start: (1, n), or a row of zeros of another length. alone: is there no other thread that could help?
    """
    (m, n), (rows, k), (depth, columns) = out.shape, a.shape, b.shape
    if transpose_a:
        rows, k = k, rows
    if transpose_b:
        depth, columns = columns, depth
    cost = max(m, MEMORY_BOUND) * n * max(k, MEMORY_BOUND)
    if rows != m or depth != k or columns != n or m * n == 0 or cost > cut(SERIAL_PRODUCT if alone else SMALL_PRODUCT):
        return False
    if m >= cut(PACK_B_ROWS) and n > FEW_COLUMNS and (k > L2_K or k * n * out.itemsize > L2_BYTES):
        return False
    memory = work.view(out.dtype)
    memory = memory.reshape((1, memory.size))
    if m == 1 and not transpose_b and n >= TILE.vector_bytes // out.itemsize:  # as `multiply` does; called from here,
        multiply_one_row(a, b, start, out, 0, n, Scratch(memory, 0))  # it takes a tenth less time
        return True
    factors, sums = Factors(a, b, transpose_a, transpose_b, False, 0, False), whole_sums(start, out)
    multiply(factors, sums, Region(0, m, 0, n), Scratch(memory, 0))
    return True


class _Scratch(threading.local):
    """Memory of this Python thread for `_direct`."""

    def __init__(self):
        self.work = np.empty(2 * max(_SCRATCH.values()), np.float32)


_own = _Scratch()


def _at_once(a, b, start, out, transpose_a, transpose_b):
    """Was this product done at once? No, if arrays or flags are others than there is machine code for."""
    try:
        return _direct(a, b, start, out, transpose_a, transpose_b, False, _own.work) or (
            get_num_threads() == 1 and _direct(a, b, start, out, transpose_a, transpose_b, True, _own.work)
        )
    except TypeError:
        return False


def _only_for_floats(compile_for):
    """What compiles `_direct` for new types, if they are such that its general twin would compute with them, too."""

    def compile_for_floats(a, b, start, out, transpose_a, transpose_b, alone, work):
        arrays, dtype = (a, b, start, out), getattr(out, "dtype", None)
        plain = dtype in LANES and all(x.dtype == dtype and x.ndim == 2 and x.flags.carray for x in arrays)
        if not plain or not type(transpose_a) is type(transpose_b) is bool:
            raise TypeError
        return compile_for(a, b, start, out, transpose_a, transpose_b, alone, work)

    return compile_for_floats


if JIT_ENABLED:
    _direct._compile_for_args = _only_for_floats(_direct._compile_for_args)


def at_once(general):
    """`matmul` for a table: small products spend more time in Python than in arithmetic, so they go to compiled code
    as they are; whatever that does not take goes to `general`, the kernel with all its checks.
    """
    if not JIT_ENABLED:
        return general

    def matmul(a, b, out, transpose_a=False, transpose_b=False):
        if not _at_once(a, b, ZEROS.get(out.dtype), out, transpose_a, transpose_b):
            general(a, b, out, transpose_a, transpose_b)

    matmul.__doc__ = general.__doc__
    return matmul


def linear_at_once(general):
    """The same for `linear`."""

    def linear(x, weight, bias, out):
        fits = bias.ndim == 1 and bias.shape == out.shape[1:]
        if not (fits and _at_once(x, weight, bias.reshape(1, -1), out, False, False)):
            general(x, weight, bias, out)

    linear.__doc__ = general.__doc__
    return linear


def _packed(b, transposed, j0, j1, rounds):
    """Columns j0 to j1 of op(b), in panels; the memory is this thread's, until its next product."""
    packed = workspace((b.shape[1] if transposed else b.shape[0], j1 - j0), b.dtype)
    panels = pieces_of(j1 - j0, PANEL, b.dtype)
    _pack(panels, packed.size // panels, b, transposed, j0, packed, rounds)
    return packed


def pieces_of(columns, vectors, dtype):
    """Pieces of so many vectors, the last of which may be narrower."""
    return -(-columns // (vectors * LANES[dtype]))


def _even_rows(m, threads):
    """Rows of a block: one block a thread, the larger ones in whole tiles."""
    rows = -(-m // threads)
    return rows if rows < 4 * ROWS else -(-rows // ROWS) * ROWS


def _plain(x):
    """x as kernels take it: row by row, aligned, and of a type that Numba calls writable, since others compile anew."""
    x = np.require(x, requirements=("C", "A"))
    if x.flags.writeable:
        return x
    pointer = x.__array_interface__["data"][0]
    return np.asarray(SimpleNamespace(__array_interface__={**x.__array_interface__, "data": (pointer, False)}, owner=x))
