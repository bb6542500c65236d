"""One row times a transposed matrix: sums along its rows, each in the order of k, where vectors would like another one.

So squares of the matrix are transposed in registers, and a vector holds the sums of as many rows as it has lanes. As in
native/simd.py there is a plain NumPy twin, which says what it does, and takes its place under `NUMBA_DISABLE_JIT=1`.
"""

import functools

import numpy as np
from llvmlite import ir

from ...native.compile import JIT_ENABLED
from ...native.llvm import DTYPES, Function, Operand, external, i64, provide, symbol
from ...native.simd import TILE


def _dot_rows(a: Operand, b: Operand, start: Operand, out: Operand, k: int, columns: int, add: int):
    """out[j] = start[j] + sum over k of a[k] * b[j, k] for j < `columns`, a vector of them or more: each one chain.

    start: `next` is 1, or 0 if it is a vector of zeros. If `add`, a sum begins with zero, and is added to `out`.
    """
    factors, target = a.array.reshape(-1)[a.at :], out.array.reshape(-1)[out.at : out.at + columns]
    first = start.array.reshape(-1)[start.at :][: columns if start.next else 1]
    total = np.zeros_like(target) if add else np.broadcast_to(first, target.shape)
    for i in range(k):
        total = total + factors[i] * b.array.reshape(-1)[b.at + i :: b.row][:columns]
    target[:] = target + total if add else total


def _write_dot_rows(module, dtype, lanes):
    """Two squares take turns: while the chains of one wait for each other, the other is transposed."""
    f = Function(module, symbol(_dot_rows, dtype), _dot_rows, dtype, lanes)
    builder = f.builder
    lane = ir.VectorType(i64, lanes)(list(range(lanes)))
    whole, rest = builder.sdiv(f["k"], i64(lanes)), builder.srem(f["k"], i64(lanes))
    more = builder.select(builder.icmp_signed(">", rest, i64(0)), i64(2), i64(0))
    rows = [f.times(i, f["b_row"]) for i in range(lanes)]

    def times(sums, factors, square):
        for factor, column in zip(factors, f.transposed(square), strict=True):
            sums = f.multiply_add(factor, column, sums)
        return sums

    def step(values):
        a, b, sums, *other = values
        for row in rows:
            f.prefetch(f.at(b, row, lanes), writes=0)
        factors = [f.splat(builder.load(f.at(a, i))) for i in range(lanes)]
        sums = times(sums, factors, [f.load(f.at(b, row)) for row in rows])
        return [*other, f.at(a, lanes), f.at(b, lanes), sums]

    def last_step(values):
        a, b, sums, *other = values
        mask = builder.icmp_signed("<", lane, f.splat(rest))
        factors = builder.select(mask, f.load(a, mask), f.vector([-0.0] * lanes))  # -0 times 0 changes no sum
        factors = [f.shuffle(factors, factors, [i] * lanes) for i in range(lanes)]
        return [*other, a, b, times(sums, factors, [f.load(f.at(b, row), mask) for row in rows])]

    def block(values):
        (j,) = values
        triples, places = [], []
        for at in (j, builder.add(j, i64(lanes))):
            most = builder.sub(f["columns"], i64(lanes))
            first = builder.select(builder.icmp_signed("<", at, most), at, most)
            new = builder.icmp_signed(">=", lane, f.splat(builder.sub(at, first)))  # the others were done before
            begin = f.at(f["start"], builder.mul(first, f["start_next"]))
            zeros = [f.vector(None)]
            begin = f.when(builder.sub(i64(1), f["add"]), zeros, lambda begin=begin: [f.load(begin)])
            triples += [f["a"], f.at(f["b"], builder.mul(first, f["b_row"])), *begin]
            places.append((f.at(f["out"], first), new))
        sums = f.loop(more, f.loop(f.times(2, whole), triples, step), last_step)[2::3]
        pairs = list(zip(sums, places, strict=True))
        sums = f.when(f["add"], sums, lambda: [builder.fadd(f.load(place), s) for s, (place, _) in pairs])
        for total, (place, new) in zip(sums, places, strict=True):
            f.store(total, place, new)
        return [builder.add(j, i64(2 * lanes))]

    f.loop(builder.sdiv(builder.add(f["columns"], i64(2 * lanes - 1)), i64(2 * lanes)), [i64(0)], block)
    builder.ret_void()


def module(dtype, vector_bytes=TILE.vector_bytes) -> str:
    """The source of `dot_rows`."""
    made = ir.Module("scratchnet")
    _write_dot_rows(made, dtype, vector_bytes // (int(dtype[-2:]) // 8))
    return str(made)


dot_rows = _dot_rows
if JIT_ENABLED:
    for _dtype in DTYPES:
        provide(f"dot-rows-{_dtype}", functools.partial(module, _dtype), [symbol(_dot_rows, _dtype)])
    dot_rows = external(_dot_rows)
