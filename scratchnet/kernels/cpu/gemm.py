"""The matrix product: blocks of `out` for the threads, panels for the caches, tiles for the registers (simd.py).

Every element of `out` is one chain of fused multiply-adds in the order of k. How the work is cut, packed and shared
out changes nothing in that chain, so the bits of an element depend on its row of op(a), its column of op(b), and k.
"""

from types import SimpleNamespace

import numpy as np
from numba import get_thread_id
from numba.np.ufunc.parallel import _launch_threads

from scratchnet.errors import DtypeError, ShapeError

from .blocks import constant, ranged, scratch
from .compile import JIT_ENABLED, before_first_kernel, get_num_threads, jit
from .simd import SQUARE_BYTES, TILE, copy_rows, tile, transpose

# The one table of thresholds, as measured on Zen 3 (32 KiB of L1, 512 KiB of L2).
K_BLOCK = 800  # steps of k at a time
M_BLOCK = 96  # rows of a at a time: if packed, they share L2 with panels of b
N_BLOCK = 1024  # columns of packed b at a time, in L3
PACK_B_ROWS, PACK_B_COLUMNS = 48, 32  # pack b if it is used for so many rows, and is so wide, else read it where it is
PACK_A_COLUMNS = 256  # likewise for a
PACK_TRANSPOSED_A_COLUMNS, PACK_TRANSPOSED_A_K = 64, 256  # a transposed is slower to read from many lines of cache

ROWS, VECTORS = TILE.rows, np.array(TILE.vectors)
WIDEST = max(TILE.vectors)
PAD = 16  # elements between packed rows of a, so that rows do not compete for the same lines of L1
CHUNK = 16  # rows of b that are packed together, for the sake of streaming reads


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
def _tile_rows(i0, i1, t, tiles):
    """The first row, and the number of rows, of tile number t of the rows i0 to i1."""
    i = i0 + (i1 - i0) * t // tiles
    return i, i0 + (i1 - i0) * (t + 1) // tiles - i


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
    flat, flat_a = work.ravel(), a.ravel()
    for t in range(tiles):
        i, rows = _tile_rows(i0, i1, t, tiles)
        if transposed:
            vectors = (rows + lanes - 1) // lanes
            last = (vectors - 1) * lanes
            if i + vectors * lanes > a.shape[1]:  # else what follows the rows is copied too, which spares the mask
                _, vectors, last = _panel(rows, vectors, lanes)
            copy_rows(a, k0 * a.shape[1] + i, a.shape[1], work, at, stride, depth, last, vectors)
            at += depth * stride
            continue
        for row in range(i, i + rows):
            begin = row * a.shape[1] + k0
            source, target = flat_a[begin : begin + depth], flat[at : at + depth]
            for k in range(depth):
                target[k] = source[k]
            at += stride
        at += (ROWS - rows) * stride


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
        for next_k in range(0, depth, side):
            k = min(next_k, depth - side)
            transpose(b, (j + c) * row + k0 + k, row, work, at + k * step + c, step)


@jit
def _pack_b(b, transposed, j_begin, j_end, most, lanes, k0, depth, work, at):
    """Copy op(b)[k0 : k0 + depth, j_begin : j_end] panel by panel, each row by row."""
    chunk = max(1, depth) if transposed else CHUNK
    for k in range(k0, k0 + depth, chunk):
        count = min(chunk, k0 + depth - k)
        j = j_begin
        while j < j_end:
            columns, vectors, last = _panel(j_end - j, most, lanes)
            to = at + (j - j_begin) * depth + (k - k0) * columns
            if transposed:
                _pack_transposed_b(b, j, columns, k, count, work, to, columns)
            else:
                copy_rows(b, k * b.shape[1] + j, b.shape[1], work, to, columns, count, last, vectors)
            j += columns


if JIT_ENABLED:
    before_first_kernel(_launch_threads)  # it makes `get_thread_id` known to code that comes from the cache
else:

    def get_thread_id() -> int:
        return 0


# --- the product ------------------------------------------------------------------------------------------------------


@jit
def _product(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """Rows lo to hi of out = start + op(a) @ op(b). start is (1, n), a row for all rows; or `out`; or zeros."""
    _multiply(a, b, start, out, transpose_a, transpose_b, work, lo, hi, 0, out.shape[1])


@jit
def _product_by_columns(lo, hi, a, b, start, out, transpose_a, transpose_b, work):
    """The same for groups of columns, each of two vectors: for fewer rows than threads could share."""
    columns = 2 * (TILE.vector_bytes // out.itemsize)
    _multiply(
        a, b, start, out, transpose_a, transpose_b, work, 0, out.shape[0], lo * columns, min(hi * columns, out.shape[1])
    )


@jit
def _multiply(a, b, start, out, transpose_a, transpose_b, work, i0, i1, j0, j1):
    k = a.shape[0] if transpose_a else a.shape[1]
    k_block = _even(k, K_BLOCK, CHUNK)
    at = max(0, get_thread_id()) * work.shape[1]  # under tbb, a thread that is in no region has number -1
    for k0 in range(0, max(k, 1), k_block):
        depth = min(k_block, k - k0)
        _multiply_block(a, b, out if k0 else start, out, transpose_a, transpose_b, work, at, i0, i1, j0, j1, k0, depth)


@jit
def _multiply_block(a, b, start, out, transpose_a, transpose_b, work, at, i0, i1, j0, j1, k0, depth):
    """out = start + op(a)[:, k0 : k0 + depth] @ op(b)[k0 : k0 + depth, :] for rows i0 to i1, columns j0 to j1."""
    lanes = TILE.vector_bytes // out.itemsize
    pack_a = j1 - j0 >= PACK_A_COLUMNS
    if transpose_a and j1 - j0 >= PACK_TRANSPOSED_A_COLUMNS and depth >= PACK_TRANSPOSED_A_K:
        pack_a = True
    pack_b = transpose_b or (i1 - i0 >= PACK_B_ROWS and j1 - j0 >= PACK_B_COLUMNS)

    m_block = _even(i1 - i0, M_BLOCK, ROWS)
    tiles = (min(m_block, i1 - i0) + ROWS - 1) // ROWS
    most = VECTORS[(min(m_block, i1 - i0) + tiles - 1) // tiles]
    strip = j1 - j0
    if pack_b:  # used once, a strip stays in L2 until then; used again and again, it should be packed once
        columns = WIDEST * lanes if m_block >= i1 - i0 else N_BLOCK
        strip = columns // (most * lanes) * most * lanes
    a_at = at + N_BLOCK * K_BLOCK
    for j in range(j0, j1, strip):
        j_end = min(j1, j + strip)
        if pack_b:
            _pack_b(b, transpose_b, j, j_end, most, lanes, k0, depth, work, at)
        for i in range(i0, i1, m_block):
            i_end = min(i1, i + m_block)
            if pack_a and (j == j0 or m_block < i1 - i0):
                _pack_a(a, transpose_a, i, i_end, k0, depth, work, a_at)
            _multiply_panels(
                work if pack_a else a, work if pack_b else b, start, out, transpose_a, pack_a, pack_b, a_at, at,
                i, i_end, j, j_end, most, k0, depth,
            )  # fmt: skip


@jit
def _multiply_panels(a, b, start, out, transpose_a, packed_a, packed_b, a_at, b_at, i0, i1, j0, j1, most, k0, depth):
    """_multiply_block for operands where they are, or packed at a_at and b_at."""
    n = out.shape[1]
    lanes = TILE.vector_bytes // out.itemsize
    start_row, start_column = n if start.shape[0] > 1 else 0, 1 if start.shape[1] == n else 0
    a_stride = _packed_stride(transpose_a, depth, lanes) if packed_a else a.shape[1]
    tiles = (i1 - i0 + ROWS - 1) // ROWS
    j = j0
    while j < j1:
        columns, vectors, last = _panel(j1 - j, most, lanes)
        right, b_step = (b_at + (j - j0) * depth, columns) if packed_b else (k0 * n + j, n)
        for t in range(tiles):
            i, rows = _tile_rows(i0, i1, t, tiles)
            if packed_a:
                left = a_at + t * a_stride * (depth if transpose_a else ROWS)
            else:
                left = k0 * a_stride + i if transpose_a else i * a_stride + k0
            tile(
                a, left, a_stride, transpose_a, b, right, b_step,
                start, i * start_row + j * start_column, start_row, out, i * n + j, n, depth, last, rows, vectors,
            )  # fmt: skip
        j += columns


# --- the public function ----------------------------------------------------------------------------------------------

_LANES = {np.dtype(t): TILE.vector_bytes // np.dtype(t).itemsize for t in (np.float32, np.float64)}
_ZEROS = {dtype: constant(np.zeros((1, WIDEST * lanes), dtype)) for dtype, lanes in _LANES.items()}
_SCRATCH = {  # elements for packed pieces of b and a
    dtype: N_BLOCK * K_BLOCK + M_BLOCK // ROWS * max(-(-ROWS // lanes) * lanes * K_BLOCK, ROWS * (K_BLOCK + PAD))
    for dtype, lanes in _LANES.items()
}

_by_rows = ranged(_product, "matmul", writes=(3,), whole=(1, 2), private=(6,))
_by_rows_of_turned = _by_rows.reading_whole(0, 1, 2)  # a row of a transposed `a` lies all over it
_by_columns = ranged(_product_by_columns, "matmul_columns", writes=(3,), whole=(0, 1, 2, 3), private=(6,))


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
    arguments = a, b, start, out, bool(transpose_a), bool(transpose_b), scratch(_SCRATCH[dtype], dtype)
    threads = get_num_threads()
    if m >= ROWS * threads or n < 4 * _LANES[dtype]:
        run = _by_rows_of_turned if transpose_a else _by_rows
        run(m, n * k, *arguments, block=_even_rows(m, threads))
    else:
        groups = -(-n // (2 * _LANES[dtype]))
        _by_columns(groups, m * n * k // groups, *arguments, block=-(-groups // threads))


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
