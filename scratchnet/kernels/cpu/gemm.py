"""The matrix product: blocks of `out` for the threads, panels for the caches, tiles for the registers (simd.py).

Every element of `out` is one chain of fused multiply-adds in the order of k. How the work is cut, packed and shared
out changes nothing in that chain, so the bits of an element depend on its row of op(a), its column of op(b), and k.
"""

import threading
from types import SimpleNamespace

import numpy as np
from numba import get_thread_id
from numba.np.ufunc.parallel import _launch_threads

from ...errors import DtypeError, ShapeError
from ...native.compile import JIT_ENABLED, before_first_kernel, get_num_threads, jit
from ...native.loops import Task, constant, is_constant, ranged, scratch, workspace
from ...native.simd import SQUARE_BYTES, TILE, copy_rows, tile, transpose

# The one table of thresholds, as measured on Zen 3 (AVX2, 512 KiB of L2) and Zen 4 (AVX-512, 1 MiB of L2).
BLOCKS = {64: (1024, 144), 32: (800, 96), 16: (800, 96)}  # by the bytes of a vector
K_BLOCK, M_BLOCK = BLOCKS[TILE.vector_bytes]  # steps of k, and rows of a, at a time: with panels of b they share L2
PACKED_ELEMENTS = 1 << 23  # of b at a time: more columns than these wait for their turn
KEEP_TILES = 3  # one above the other, from which the first one keeps what it reads of b for the others
PACK_B_ROWS = 160  # for so many it is packed before, if it is not near
PACK_A_COLUMNS = 256  # pack a if it is used for so many columns, else read it where it is
PACK_TRANSPOSED_A_COLUMNS, PACK_TRANSPOSED_A_K = 64, 256  # a transposed is slower to read from many lines of cache
NEAR_K, NEAR_BYTES = 128, 256 << 10  # of b: it stays in L2, so that the tiles of a row may follow each other

ROWS, VECTORS = TILE.rows, np.array(TILE.vectors)
PANEL = TILE.vectors[ROWS]  # vectors of a panel of packed b: the width of the highest tile
WIDEST = max(TILE.vectors)
PAD = 16  # elements between packed rows of a, so that rows do not compete for the same lines of L1
KEPT = NEAR_BYTES // 4  # elements of b that tiles keep at most
CHUNK = 16  # rows of b that are packed together, for the sake of streaming reads
NARROW = ROWS  # columns at most, whose product is computed on its side, with rows along the vectors
FEW_ROWS, FEW_ROWS_ELEMENTS = 3, 8192  # so few rows take b in whole rows, so much at a time, as memory is read fastest
TURNED_K = 128  # steps of k of a transposed b that are turned at a time: they stay in L1
OWN_BYTES = 512 << 10  # of a weight and its velocity that a thread may count on to stay in L2
THIN_K = 4  # so few steps of k are written row by row, as memory is written fastest
LEAST = 4  # rows, and steps of k, whose multiplications take as long as memory does for one
DIRECT = 1 << 20  # multiplications that one thread does at once, without Python to plan them


# --- cutting ----------------------------------------------------------------------------------------------------------


@jit
def _even(size, largest, unit):
    """The length of the equal pieces, none above `largest`, that `size` is cut into, in whole units."""
    pieces = max(1, (size + largest - 1) // largest)
    return max(unit, (size + pieces * unit - 1) // (pieces * unit) * unit)


@jit
def _panel(rest, most, lanes):
    """The next panel of `rest` remaining columns: its columns, vectors, and last vector's place (see simd.tile)."""
    if rest > (most - 1) * lanes and rest > lanes:
        columns, vectors = min(rest, most * lanes), most
    elif rest > lanes:
        columns, vectors = min(rest, 2 * lanes), 2
    elif rest == lanes:
        columns, vectors = rest, 1
    else:
        return rest, 0, rest
    return columns, vectors, columns - lanes


@jit
def _tile_rows(i0, i1, tiles):
    """Rows i0 to i1 in tiles as even as can be: the first `higher` tiles have one row more than the others' `rows`."""
    rows = (i1 - i0) // tiles
    return rows, i1 - i0 - rows * tiles


# --- packing ----------------------------------------------------------------------------------------------------------


@jit
def _packed_stride(transposed, depth, lanes):
    """Elements between the rows of a packed tile of a; if it is transposed, between its steps of k."""
    return (ROWS + lanes - 1) // lanes * lanes if transposed else depth + PAD


@jit
def _pack_a(a, transposed, i0, i1, k0, depth, work, at):
    """Copy op(a)[i0 : i1, k0 : k0 + depth] tile by tile, stored as before: rows of k, or if transposed k of rows."""
    lanes = TILE.vector_bytes // a.itemsize
    stride = _packed_stride(transposed, depth, lanes)
    tiles = (i1 - i0 + ROWS - 1) // ROWS
    least, higher = _tile_rows(i0, i1, tiles)
    flat, flat_a = work.ravel(), a.ravel()
    i = i0
    for t in range(tiles):
        rows = least + 1 if t < higher else least
        if transposed:
            vectors = (rows + lanes - 1) // lanes
            last = (vectors - 1) * lanes
            if i + vectors * lanes > a.shape[1]:  # else what follows the rows is copied too, which spares the mask
                _, vectors, last = _panel(rows, vectors, lanes)
            copy_rows(a, k0 * a.shape[1] + i, a.shape[1], work, at, stride, depth, last, vectors)
            at += depth * stride
            i += rows
            continue
        for row in range(i, i + rows):
            begin = row * a.shape[1] + k0
            source, target = flat_a[begin : begin + depth], flat[at : at + depth]
            for k in range(depth):
                target[k] = source[k]
            at += stride
        at += (ROWS - rows) * stride
        i += rows


@jit
def _pack_transposed_b(b, j, columns, k0, depth, work, at, step):
    """work[k, c] = b[j + c, k0 + k]: by squares, the last of which overlap their neighbours."""
    side = SQUARE_BYTES // b.itemsize
    row = b.shape[1]
    if columns < side or depth < side:
        flat, flat_b = work.ravel(), b.ravel()
        for c in range(columns):
            for k in range(depth):
                flat[at + k * step + c] = flat_b[(j + c) * row + k0 + k]
        return
    for next_c in range(0, columns, side):
        c = min(next_c, columns - side)
        source, target, rest = (j + c) * row + k0, at + c, depth - side
        transpose(b, source, row, work, target, step, depth // side, side, side * step)
        if depth % side:
            transpose(b, source + rest, row, work, target + rest * step, step, 1, 0, 0)


@jit
def _pack_b(lo, hi, b, transposed, j0, packed):
    """Copy columns of op(b), from j0 on, to `packed`: panels lo to hi of each block of k, each panel row by row."""
    k, n = packed.shape
    lanes = TILE.vector_bytes // b.itemsize
    k_block = _even(k, K_BLOCK, CHUNK)
    for k0 in range(0, k, k_block):
        depth = min(k_block, k - k0)
        chunk = depth if transposed else CHUNK
        for first in range(0, depth, chunk):
            count = min(chunk, depth - first)
            for panel in range(lo, hi):
                j = panel * PANEL * lanes
                columns, vectors, last = _panel(n - j, PANEL, lanes)
                to, row = k0 * n + j * depth + first * columns, k0 + first
                if transposed:
                    _pack_transposed_b(b, j0 + j, columns, row, count, packed, to, columns)
                else:
                    copy_rows(b, row * b.shape[1] + j0 + j, b.shape[1], packed, to, columns, count, last, vectors)


if JIT_ENABLED:
    before_first_kernel(_launch_threads)  # it makes `get_thread_id` known to code that comes from the cache
else:

    def get_thread_id() -> int:
        return 0


# --- the product ------------------------------------------------------------------------------------------------------


@jit
def _place(work):
    """Where the row of `work` begins that is this thread's."""
    return max(0, get_thread_id()) * work.shape[1]  # under tbb, a thread that is in no region has number -1


@jit
def _product(lo, hi, a, b, start, out, transpose_a, transpose_b, packed, j0, j1, work):
    """Rows lo to hi of out = start + op(a) @ b, columns j0 to j1, which are all that `b` holds if it is packed.

    start is (1, n), a row for all rows; or `out`; or zeros.
    """
    _multiply(a, b, start, out, transpose_a, transpose_b, packed, work, _place(work), lo, hi, j0, j1, j0)


@jit
def _product_and_update(lo, hi, a, b, zeros, parameter, velocity, packed, numbers, work):
    """A step of SGD for rows lo to hi of a parameter whose gradient is a.T @ b, with no more than K_BLOCK terms."""
    _update(a, b, zeros, parameter, velocity, packed, numbers, work, _place(work), lo, hi, 0, parameter.shape[1])


@jit
def _update(a, b, zeros, parameter, velocity, packed, numbers, work, at, i0, i1, j0, j1):
    numbers_at = at + work.shape[1] - numbers.size
    flat = work.ravel()
    for i in range(numbers.size):
        flat[numbers_at + i] = numbers[i]
    own = flat[numbers_at : numbers_at + numbers.size].reshape((1, numbers.size))
    _multiply_plainly(
        a, b, zeros, parameter, True, packed, velocity, own, True, work, at, i0, i1, j0, j1, 0, max(1, a.shape[0])
    )  # fmt: skip


@jit
def _product_and_update_by_columns(lo, hi, a, b, zeros, parameter, velocity, packed, numbers, work):
    """The same for groups of columns, each as wide as a panel."""
    at, columns = _place(work), PANEL * (TILE.vector_bytes // parameter.itemsize)
    j1 = min(hi * columns, parameter.shape[1])
    _update(a, b, zeros, parameter, velocity, packed, numbers, work, at, 0, parameter.shape[0], lo * columns, j1)


@jit
def _product_by_columns(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """The same for groups of columns, each as wide as a panel: for fewer rows than threads could share."""
    columns = PANEL * (TILE.vector_bytes // out.itemsize)
    j1 = min(hi * columns, out.shape[1])
    _multiply(
        a, b, start, out, transpose_a, transpose_b, False, work, _place(work), 0, out.shape[0], lo * columns, j1, 0
    )  # fmt: skip


@jit
def _multiply(a, b, start, out, transpose_a, transpose_b, packed, work, at, i0, i1, j0, j1, b0):
    """Rows i0 to i1, columns j0 to j1; packed, b begins with column b0, and is not transposed any more.

    work: scratch, ours from `at` on.
    """
    k = a.shape[0] if transpose_a else a.shape[1]
    lanes = TILE.vector_bytes // out.itemsize
    if not packed and out.shape[1] <= NARROW and i1 - i0 >= 2 * lanes:
        _multiply_on_its_side(a, b, start, out, transpose_a, transpose_b, work, at, i0, i1)
    elif not packed and k == 1 and j1 - j0 >= lanes:
        _multiply_vectors(a, b, start, out, i0, i1, j0, j1)
    elif not transpose_b and out.shape[0] == 1 and j1 - j0 >= lanes:
        _multiply_one_row(a, b, start, out, j0, j1)
    elif transpose_b:
        _multiply_turned(a, b, start, out, transpose_a, work, at, i0, i1, j0, j1)
    else:
        few = i1 - i0 <= FEW_ROWS and not packed
        k_block = max(4, FEW_ROWS_ELEMENTS // b.shape[1]) if few else _even(k, K_BLOCK, CHUNK)
        _multiply_plainly(
            a, b, start, out, transpose_a, packed, out, start, False, work, at, i0, i1, j0, j1, b0, k_block
        )


@jit
def _multiply_plainly(
    a, b, start, out, transpose_a, packed, velocity, numbers, updating, work, at, i0, i1, j0, j1, b0, k_block
):  # fmt: skip
    """b as it is stored, or packed, so many rows at a time."""
    k = a.shape[0] if transpose_a else a.shape[1]
    pack_a = (j1 - j0 >= PACK_A_COLUMNS and i1 - i0 > FEW_ROWS and k > THIN_K) or (
        transpose_a and j1 - j0 >= PACK_TRANSPOSED_A_COLUMNS and k >= PACK_TRANSPOSED_A_K
    )
    m_block = _even(i1 - i0, M_BLOCK, ROWS)
    for i in range(i0, i1, m_block):
        i_end = min(i1, i + m_block)
        for k0 in range(0, max(k, 1), k_block):
            depth = min(k_block, k - k0)
            if pack_a:
                _pack_a(a, transpose_a, i, i_end, k0, depth, work, at + KEPT)
            _multiply_block(
                work if pack_a else a, b, k0 * b.shape[1], out if k0 else start, out, transpose_a, pack_a, packed,
                velocity, numbers, updating, work, at, i, i_end, j0, j1, b0, k0, depth,
            )  # fmt: skip


@jit
def _multiply_vectors(a, b, start, out, i0, i1, j0, j1):
    """One step of k: the outer product of two vectors, each row of `out` in one go."""
    left, right, zero = a.ravel(), b.ravel()[j0:j1], out.dtype.type(0)
    for i in range(i0, i1):
        row, factor = out[i, j0:j1], left[i]
        if start.shape[1] == out.shape[1]:
            first = start[i if start.shape[0] > 1 else 0, j0:j1]
            for j in range(row.size):
                row[j] = first[j] + factor * right[j]
        else:
            for j in range(row.size):
                row[j] = zero + factor * right[j]


@jit
def _multiply_one_row(a, b, start, out, j0, j1):
    """One row of a: four rows of b at a time, side by side from end to end, as memory is read fastest."""
    left, row, k = a.ravel(), out[0, j0:j1], b.shape[0]
    if start.shape[1] == out.shape[1]:
        row[:] = start[0, j0:j1]
    else:
        row[:] = 0
    whole = k - k % 4
    for s in range(0, whole, 4):
        f0, f1, f2, f3 = left[s], left[s + 1], left[s + 2], left[s + 3]
        b0, b1, b2, b3 = b[s, j0:j1], b[s + 1, j0:j1], b[s + 2, j0:j1], b[s + 3, j0:j1]
        for j in range(row.size):
            total = row[j]
            total += f0 * b0[j]
            total += f1 * b1[j]
            total += f2 * b2[j]
            total += f3 * b3[j]
            row[j] = total
    for s in range(whole, k):
        factor, next_row = left[s], b[s, j0:j1]
        for j in range(row.size):
            row[j] += factor * next_row[j]


@jit
def _multiply_turned(a, b, start, out, transpose_a, work, at, i0, i1, j0, j1):
    """With b transposed: it is turned panel by panel, and used while it is in L1."""
    k = a.shape[0] if transpose_a else a.shape[1]
    panel = PANEL * (TILE.vector_bytes // out.itemsize)
    for j in range(j0, j1, panel):
        columns = min(panel, j1 - j)
        for k0 in range(0, max(k, 1), TURNED_K):
            depth = min(TURNED_K, k - k0)
            _pack_transposed_b(b, j, columns, k0, depth, work, at, columns)
            _multiply_block(
                a, work, at, out if k0 else start, out, transpose_a, False, True,
                out, start, False, work, at, i0, i1, j, j + columns, j, k0, depth,
            )  # fmt: skip


@jit
def _multiply_on_its_side(a, b, start, out, transpose_a, transpose_b, work, at, i0, i1):
    """Few columns: out.T = op(b).T @ op(a).T, in which the long rows of op(a).T fill the vectors."""
    k, n = a.shape[0] if transpose_a else a.shape[1], out.shape[1]
    lanes, side = TILE.vector_bytes // out.itemsize, SQUARE_BYTES // out.itemsize
    flat, flat_out, flat_start = work.ravel(), out.ravel(), start.ravel()
    b_stride, b_step = (b.shape[1], 1) if transpose_b else (n, n)
    k_block = _even(k, K_BLOCK if transpose_a else TURNED_K, CHUNK)
    i = i0
    while i < i1:
        columns, vectors, last = _panel(i1 - i, VECTORS[n], lanes)
        for c in range(n):
            sums = flat[at + c * columns : at + (c + 1) * columns]
            if start.shape[0] > 1:
                for r in range(columns):
                    sums[r] = flat_start[(i + r) * n + c]
            else:
                first = flat_start[c]
                for r in range(columns):
                    sums[r] = first
        turned_at = at + n * columns
        for k0 in range(0, k, k_block):
            depth = min(k_block, k - k0)
            if not transpose_a:
                _pack_transposed_b(a, i, columns, k0, depth, work, turned_at, columns)
            tile(
                b, k0 * b_step, b_stride, not transpose_b,
                a if transpose_a else work, k0 * a.shape[1] + i if transpose_a else turned_at,
                a.shape[1] if transpose_a else columns,
                work, at, columns, work, at, columns, work, at, 0, work, at, work, at, 0, depth, last, n, vectors,
                1, 0, 0, 0, 0,
            )  # fmt: skip
        if columns >= side and n >= side:
            for next_c in range(0, n, side):
                c = min(next_c, n - side)
                source, target, rest = at + c * columns, i * n + c, columns - side
                transpose(work, source, columns, out, target, n, columns // side, side, side * n)
                if columns % side:
                    transpose(work, source + rest, columns, out, target + rest * n, n, 1, 0, 0)
        else:
            for r in range(columns):
                for c in range(n):
                    flat_out[(i + r) * n + c] = flat[at + c * columns + r]
        i += columns


@jit
def _multiply_block(
    a, b, b_at, start, out, turned, packed_a, packed_b, velocity, numbers, updating, work, at, i0, i1, j0, j1, b0, k0,
    depth,
):  # fmt: skip
    """out = start + op(a)[:, k0 : k0 + depth] @ b[k0 : k0 + depth, :] for rows i0 to i1, columns j0 to j1.

    b_at: where row k0 of b begins.

    A run of equal panels at a time: tile after tile in each row of tiles if what they read of b is near, else panel
    after panel. The topmost tiles keep what they read of b, panel by panel, for those below.
    """
    n = out.shape[1]
    lanes = TILE.vector_bytes // out.itemsize
    start_row, start_column = n if start.shape[0] > 1 else 0, 1 if start.shape[1] == n else 0
    a_at, a_stride = at + KEPT, _packed_stride(turned, depth, lanes) if packed_a else a.shape[1]
    thin = depth <= THIN_K and not packed_a
    tiles = i1 - i0 if thin else (i1 - i0 + ROWS - 1) // ROWS
    least, higher = _tile_rows(i0, i1, tiles)
    keeps = tiles >= KEEP_TILES and not packed_b and not thin
    most = PANEL if packed_b or keeps else VECTORS[least + 1 if higher else least]
    j = j0
    while j < j1:
        columns, vectors, last = _panel(j1 - j, most, lanes)
        panels = (j1 - j) // columns if vectors == most else 1
        near = panels > 1 and depth <= NEAR_K and depth * columns * panels * out.itemsize <= NEAR_BYTES
        keep = 1 if keeps and vectors == PANEL else 0
        for panel in range(1 if near else panels):
            column = j + panel * columns
            for part in range(3):  # the topmost tile, if it keeps; the other high ones; the lower ones
                if part == 0:
                    first, count, rows = 0, keep, least + 1 if higher else least
                elif part == 1:
                    first, count, rows = min(keep, higher), higher - min(keep, higher), least + 1
                else:
                    first, count, rows = max(keep, higher), tiles - max(keep, higher), least
                if count == 0:
                    continue
                i = i0 + first * least + min(first, higher)
                if packed_a:
                    a_next = a_stride * (depth if turned else ROWS)
                    left = a_at + first * a_next
                else:
                    a_next = rows if turned else rows * a_stride
                    left = k0 * a_stride + i if turned else i * a_stride + k0
                in_work = keep and part > 0
                if in_work:
                    right, b_step, b_next = at, columns, depth * columns
                elif packed_b:
                    right, b_step, b_next = b_at + (column - b0) * depth, columns, depth * columns
                else:
                    right, b_step, b_next = b_at + column, n, columns
                for step in range(count if near else 1):
                    tile(
                        a, left + step * a_next, a_stride, turned,
                        work if in_work else b, right, b_step,
                        start, (i + step * rows) * start_row + column * start_column, start_row,
                        out, (i + step * rows) * n + column, n,
                        work, at, keep if part == 0 else 0,
                        velocity, (i + step * rows) * n + column, numbers, 0, updating, depth, last, rows, vectors,
                        panels if near else count, 0 if near else a_next, b_next if near else 0,
                        columns * start_column if near else rows * start_row, columns if near else rows * n,
                    )  # fmt: skip
        j += panels * columns


# --- the public function ----------------------------------------------------------------------------------------------

_LANES = {np.dtype(t): TILE.vector_bytes // np.dtype(t).itemsize for t in (np.float32, np.float64)}
_ZEROS = {dtype: constant(np.zeros((1, WIDEST * lanes), dtype)) for dtype, lanes in _LANES.items()}
_SCRATCH = {  # elements of b that tiles keep, of packed a, and the numbers of an update
    dtype: 16 + KEPT + M_BLOCK // ROWS * max(-(-ROWS // lanes) * lanes * K_BLOCK, ROWS * (K_BLOCK + PAD))
    for dtype, lanes in _LANES.items()
}

_WEIGHT = 1 / 8  # of one multiplication and addition (native/loops.py)
_pack = ranged(_pack_b, "pack", writes=(3,), whole=(0, 3))
_by_rows = ranged(_product, "matmul", writes=(3,), whole=(1, 2), private=(9,), weight=_WEIGHT)
_by_rows_of_turned = _by_rows.reading_whole(0, 1, 2)  # a row of a transposed `a` lies all over it
_updating = ranged(_product_and_update, "matmul_sgd", writes=(3, 4), whole=(0, 1, 2, 6), private=(7,), weight=_WEIGHT)
_updating_by_columns = ranged(
    _product_and_update_by_columns,
    "matmul_sgd_columns",
    writes=(3, 4),
    whole=(0, 1, 2, 3, 4, 6),
    private=(7,),
    weight=_WEIGHT,
)
_by_columns = ranged(
    _product_by_columns, "matmul_columns", writes=(3,), whole=(0, 1, 2, 3), private=(6,), weight=_WEIGHT
)


def matmul(a, b, out, transpose_a=False, transpose_b=False, bias=None, accumulate=False):
    """out (m, n) = op(a) (m, k) @ op(b) (k, n), plus bias (n,) if given, plus what `out` held if `accumulate`.

    op transposes if told so; a, b, out are stored row by row, all float32 or all float64, and `out` overlaps neither a
    nor b. Each element is one sum in the order of k, begun with the bias and the old value: its bits depend neither on
    threads nor on the other rows and columns. Raises ShapeError, DtypeError.
    """
    dtype = out.dtype
    if dtype not in _LANES or a.dtype != dtype or b.dtype != dtype or (bias is not None and bias.dtype != dtype):
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
    start = _ZEROS[dtype] if bias is None else bias.reshape(1, n)
    if accumulate:
        if bias is not None:
            out += bias
        start = out
    if not (a.flags.carray and b.flags.carray and start.flags.carray):
        a, b, start = _plain(a), _plain(b), _plain(start)
    work, threads, lanes = scratch(_SCRATCH[dtype], dtype), get_num_threads(), _LANES[dtype]
    transpose_a = bool(transpose_a)
    transpose_b = bool(transpose_b)
    near = k <= NEAR_K and k * n * out.itemsize <= NEAR_BYTES
    turning = transpose_b and not near and m < PACK_B_ROWS  # by rows, every thread would turn all of b
    by_columns = not (transpose_a or transpose_b) and _by_own_columns(m, k, n, threads, out.itemsize)
    if by_columns or ((turning or m < ROWS * threads) and n >= 4 * lanes):
        groups = _panels(n, dtype)
        block = -(-groups // threads)
        cost = max(m, LEAST) * n * k // groups
        _by_columns(groups, cost, a, b, start, out, transpose_a, transpose_b, work, block=block)
        return
    run = _by_rows_of_turned if transpose_a else _by_rows
    if m < PACK_B_ROWS or n <= NARROW or near:
        block = _even_rows(m, threads)
        run(m, n * max(k, LEAST), a, b, start, out, transpose_a, transpose_b, False, 0, n, work, block=block)
        return
    columns = max(1, PACKED_ELEMENTS // (max(k, 1) * PANEL * lanes)) * PANEL * lanes
    for j in range(0, n, columns):
        j_end = min(n, j + columns)
        packed = _packed(b, transpose_b, j, j_end)
        block = _even_rows(m, threads)
        run(m, (j_end - j) * k, a, packed, start, out, transpose_a, False, True, j, j_end, work, block=block)


def _by_own_columns(m, k, n, threads, itemsize):
    """Do threads share out the columns of a weight (k, n) for a batch of m rows, in the product and in its update?

    Then what a thread updates of it, with its velocity, is in that core's L2 for the next product; by rows, each core
    would fetch half of the weight from another. In return every thread reads the whole batch.
    """
    enough = n >= threads * PANEL * TILE.vector_bytes // itemsize
    return threads > 1 and m <= n and enough and 2 * k * n * itemsize <= threads * OWN_BYTES


@jit
def _direct(a, b, out, transpose_a, transpose_b, work):
    """out = op(a) @ op(b), if that is little enough to do at once; was it? work: float32, for scratch."""
    (m, n), (rows, k), (depth, columns) = out.shape, a.shape, b.shape
    if transpose_a:
        rows, k = k, rows
    if transpose_b:
        depth, columns = columns, depth
    if rows != m or depth != k or columns != n or m * n == 0 or max(m, LEAST) * n * max(k, LEAST) > DIRECT:
        return False
    lanes = TILE.vector_bytes // out.itemsize
    memory = work.view(out.dtype)
    zeros = memory[: WIDEST * lanes]
    zeros[:] = 0
    start = zeros.reshape((1, zeros.size))
    _multiply(
        a, b, start, out, transpose_a, transpose_b, False, memory.reshape((1, memory.size)), zeros.size, 0, m, 0, n, 0
    )
    return True


class _Scratch(threading.local):
    """Memory of this Python thread for `_direct`."""

    def __init__(self):
        self.work = np.empty(WIDEST * TILE.vector_bytes // 4 + 2 * max(_SCRATCH.values()), np.float32)


def at_once(general):
    """`matmul` for a table: small products spend more time in Python than in arithmetic, so they go to compiled code
    as they are; whatever that does not take goes to `general`, the kernel with all its checks.
    """
    compile_for, scratch = _direct._compile_for_args, _Scratch()

    def compile_for_floats(a, b, out, transpose_a, transpose_b, work):
        arrays, dtype = (a, b, out), getattr(out, "dtype", None)
        plain = dtype in _LANES and all(x.dtype == dtype and x.ndim == 2 and x.flags.carray for x in arrays)
        if not plain or not type(transpose_a) is type(transpose_b) is bool:
            raise TypeError
        return compile_for(a, b, out, transpose_a, transpose_b, work)

    _direct._compile_for_args = compile_for_floats

    def matmul(a, b, out, transpose_a=False, transpose_b=False):
        try:
            if _direct(a, b, out, transpose_a, transpose_b, scratch.work):
                return
        except TypeError:
            pass
        general(a, b, out, transpose_a, transpose_b)

    matmul.__doc__ = general.__doc__
    return matmul


def with_update(task, parameter, velocity, numbers):
    """A loop that is planned of a product which is the gradient of `parameter`, made one that also updates it by SGD.

    None where the sums are cut, so that no tile ever holds the gradient.
    """
    if task.loop is not _by_rows_of_turned:
        return None
    a, b, start, out, _, _, packed, j0, j1, work = task.arguments
    whole = (j0, j1) == (0, out.shape[1]) and is_constant(start) and _even(a.shape[0], K_BLOCK, CHUNK) >= a.shape[0]
    if not whole or out.shape != parameter.shape or out.shape[1] <= NARROW:
        return None
    arguments = a, b, start, parameter, velocity, packed, numbers, work
    (m, k), n = a.shape, out.shape[1]
    if not packed and _by_own_columns(m, k, n, get_num_threads(), out.itemsize):
        return Task(_updating_by_columns, _panels(n, out.dtype), task.work, None, arguments)
    return task._replace(loop=_updating, arguments=arguments)


def _packed(b, transposed, j0, j1):
    """Columns j0 to j1 of op(b), in panels; the memory is this thread's, until its next product."""
    packed = workspace((b.shape[1] if transposed else b.shape[0], j1 - j0), b.dtype)
    panels = _panels(j1 - j0, b.dtype)
    _pack(panels, packed.size // panels, b, transposed, j0, packed)
    return packed


def _panels(columns, dtype):
    """Panels, the last of which may be narrower."""
    return -(-columns // (PANEL * _LANES[dtype]))


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
