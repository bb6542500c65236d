"""Products with a short side, which tiles over panels would leave half empty: few columns, one row, one step of k."""

from ...native.compile import jit
from ...native.llvm import Operand
from ...native.simd import TILE, Strip, tile
from .gemm_cuts import CHUNK, K_BLOCK, PACK_TRANSPOSED_B_K, VECTORS, even, next_panel, steps_of
from .gemm_pack import pack_transposed_b, transpose_block


@jit(inline=True)
def multiply_few_columns(factors, sums, region, scratch):
    """All columns, which are few: out.T = op(b).T @ op(a).T, so the long rows of op(a).T fill the vectors."""
    a, b, out, work = factors.a, factors.b, sums.out, scratch.array
    transpose_a, transpose_b = factors.transpose_a, factors.transpose_b
    k, n = steps_of(factors), out.shape[1]
    lanes = TILE.vector_bytes // out.itemsize
    flat, flat_start = work.ravel(), sums.start.ravel()
    b_row, b_step = (b.shape[1], 1) if transpose_b else (n, n)
    k_block = even(k, K_BLOCK if transpose_a else PACK_TRANSPOSED_B_K, CHUNK)
    i = region.i0
    while i < region.i1:
        columns, vectors, last = next_panel(region.i1 - i, VECTORS[n], lanes)
        for c in range(n):
            at = scratch.at + c * columns
            row = flat[at : at + columns]
            if sums.start.shape[0] > 1:
                for r in range(columns):
                    row[r] = flat_start[(i + r) * n + c]
            else:
                first = flat_start[c]
                for r in range(columns):
                    row[r] = first
        packed_at = scratch.at + n * columns
        transposed_out = Operand(work, scratch.at, columns, 0)
        for k0 in range(0, k, k_block):
            depth = min(k_block, k - k0)
            if not transpose_a:
                pack_transposed_b(a, i, columns, k0, depth, work, packed_at)
            tile(
                Operand(b, k0 * b_step, b_row, 0),
                Operand(
                    a if transpose_a else work,
                    k0 * a.shape[1] + i if transpose_a else packed_at,
                    a.shape[1] if transpose_a else columns,
                    0,
                ),
                transposed_out, transposed_out, transposed_out, transposed_out, transposed_out,
                Strip(1, depth, n, vectors, last, not transpose_b, False, False),
            )  # fmt: skip
        transpose_block(transposed_out, n, columns, Operand(out, i * n, n, 0))
        i += columns


@jit
def multiply_one_step(a, b, start, out, region):
    """One step of k: the outer product of two vectors, each row of `out` in one go."""
    i0, i1, j0, j1 = region
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
def multiply_one_row(a, b, start, out, j0, j1):
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
