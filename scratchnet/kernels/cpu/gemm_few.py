"""Products with a short side, which tiles over panels would leave half empty: few columns, one row, one step of k."""

from ...native.compile import jit
from ...native.llvm import Operand
from ...native.simd import TILE, Strip, copy_rows, tile
from .dot_rows import dot_rows
from .gemm_cuts import PACK_TRANSPOSED_B_K, PACKED_AS_READ, VECTORS, next_panel, span_of, steps_of
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
    span = span_of(k)
    packs, rounds = not transpose_a or factors.rounds, factors.rounds
    k_block = PACK_TRANSPOSED_B_K if packs else span
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
        totals_at, packed_at = scratch.at + n * columns, scratch.at + 2 * n * columns
        partial, totals = flat[scratch.at : totals_at], flat[totals_at:packed_at]
        transposed_out = Operand(work, scratch.at, columns, 0)
        k0 = 0
        while k0 < k:
            if k0 > 0 and k0 % span == 0:  # the last span is done
                for e in range(totals.size):
                    totals[e] = partial[e] if k0 == span else totals[e] + partial[e]
                partial[:] = 0
            depth = min(k_block, min(k, (k0 // span + 1) * span) - k0)
            if not transpose_a:
                pack_transposed_b(a, i, columns, k0, depth, work, packed_at, rounds)
            elif rounds:
                source = Operand(a, k0 * a.shape[1] + i, a.shape[1], 0)
                copy_rows(source, Operand(work, packed_at, columns, 0), depth, vectors, last, True)
            tile(
                Operand(b, k0 * b_step, b_row, 0),
                Operand(
                    work if packs else a,
                    packed_at if packs else k0 * a.shape[1] + i,
                    columns if packs else a.shape[1],
                    0,
                ),
                transposed_out, transposed_out, transposed_out, transposed_out, transposed_out, transposed_out,
                Strip(1, depth, n, vectors, last, not transpose_b, False, False),
            )  # fmt: skip
            k0 += depth
        if k > span:
            for e in range(totals.size):
                partial[e] += totals[e]
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
def multiply_one_row(a, b, start, out, j0, j1, scratch):
    """One row of a: four rows of b at a time, side by side from end to end, as memory is read fastest."""
    left, row, k = a.ravel(), out[0, j0:j1], b.shape[0]
    span = span_of(k)
    if start.shape[1] == out.shape[1]:
        for j in range(row.size):
            row[j] = start[0, j0 + j]
    else:
        row[:] = 0
    _add_rows(left, b, row, j0, 0, min(span, k))
    for k0 in range(span, k, span):
        for j in range(j0, j1, PACKED_AS_READ):
            columns = min(PACKED_AS_READ, j1 - j)
            partial, total = scratch.array.ravel()[scratch.at : scratch.at + columns], out[0, j : j + columns]
            partial[:] = 0
            _add_rows(left, b, partial, j, k0, min(k, k0 + span))
            for c in range(columns):
                total[c] += partial[c]


@jit
def multiply_row_transposed(a, b, start, out, j0, j1):
    """One row of a, b transposed: its rows, squares of which are transposed in registers."""
    k = b.shape[1]
    span = span_of(k)
    is_whole = start.shape[1] == out.shape[1]
    first = Operand(start, j0 if is_whole else 0, 0, 1 if is_whole else 0)
    for k0 in range(0, max(k, 1), span):
        dot_rows(
            Operand(a, k0, 0, 0), Operand(b, j0 * k + k0, k, 0), first, Operand(out, j0, 0, 0),
            min(span, k - k0), j1 - j0, k0 > 0,
        )  # fmt: skip


@jit(inline=True)
def _add_rows(left, b, row, j0, begin, end):
    """row += left[begin:end] @ b[begin:end, j0:]."""
    j1 = j0 + row.size
    whole = end - (end - begin) % 4
    for s in range(begin, whole, 4):
        f0, f1, f2, f3 = left[s], left[s + 1], left[s + 2], left[s + 3]
        b0, b1, b2, b3 = b[s, j0:j1], b[s + 1, j0:j1], b[s + 2, j0:j1], b[s + 3, j0:j1]
        for j in range(row.size):
            total = row[j]
            total += f0 * b0[j]
            total += f1 * b1[j]
            total += f2 * b2[j]
            total += f3 * b3[j]
            row[j] = total
    for s in range(whole, end):
        factor, next_row = left[s], b[s, j0:j1]
        for j in range(row.size):
            row[j] += factor * next_row[j]
