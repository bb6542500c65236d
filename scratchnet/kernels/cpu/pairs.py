"""Products of pairs: vectors of bfloat16 that are multiplied two by two and added up in float32 (avx512_bf16).

AMD's CPUs have it from Zen 4 on, Intel's from Cooper Lake on. `pack_tiles` rounds a factor to bfloat16 and puts it into
the order in which this file and tiles.py read it; `multiply_pairs` multiplies what is packed. As in simd.py each has a
plain NumPy twin, which says what it does, and takes its place under `NUMBA_DISABLE_JIT=1`.

A packed tile is 16 x 16 words of 32 bits, two bfloat16 each, in memory of float32. Of a left factor word (i, p) holds
elements (i, 2p) and (i, 2p + 1), of a right factor word (p, j) elements (2p, j) and (2p + 1, j).
"""

import functools
import itertools

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from ...native.compile import JIT_ENABLED, jit
from ...native.llvm import Function, Operand, external, i32, i64, provide, symbol, write_choice
from ...native.simd import bfloat16

SIDE, DEPTH, WORDS = 16, 32, 256  # rows or columns of a tile, terms of its sums, words
ROWS = 8  # of a tile at a time: with two vectors of sums each, they stay in registers


class _BFloat(ir.Type):
    """bfloat16, which llvmlite does not know."""

    def __str__(self):
        return "bfloat"


PAIRS = ir.VectorType(_BFloat(), 2 * SIDE)


@functools.cache
def are_there() -> bool:
    """Has this CPU the instructions, and do they add up in the order of `add_pairs`?"""
    return bool(llvm.get_host_cpu_features().get("avx512bf16")) and _obey()


def _obey():
    """A sum of ones that a pair is too small to change, and two of them, or one of another order, are not."""
    a, b = (np.zeros(2 * WORDS, np.float32) for _ in range(2))
    terms = np.array([1, 2**-24, 1.5 * 2**-24, 2**-25, -(2**-24), 1.25 * 2**-23], np.float32)
    x = np.resize(terms, SIDE * DEPTH)
    for target, turned in ((a, 0), (b, 1)):
        _pack_tiles(Operand(x, 0, DEPTH, 0), Operand(target, 0, SIDE, WORDS), 1, 0, turned)
    found, expected = (np.zeros((SIDE, SIDE), np.float32) for _ in range(2))
    for function, out in ((_multiply_here, found), (_multiply_pairs, expected)):
        function(Operand(a, 0, 0, WORDS), Operand(b, 0, 0, WORDS), Operand(out, 0, SIDE, 0), 1, 1, 1, 0)
    return found.tobytes() == expected.tobytes()


# --- the definition ---------------------------------------------------------------------------------------------------


def tiny(x):
    """x, float64, rounded once to float32, with 0 where that is subnormal."""
    flushed = np.where(np.abs(x) < np.finfo(np.float32).tiny * (1 - 2.0**-25), np.copysign(0, x), x)
    return flushed.astype(np.float32)


def fused(a, b, c):
    """a * b + c of float32, rounded once, where a * b has at most 16 significant bits."""
    product = a.astype(np.float64) * b
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)  # what the float64 sum rounded off, exactly (Knuth's two-sum)
    odd = total.view(np.int64) & 1
    # Round to odd: with 53 bits, of which the last says that there were more, the second rounding is right.
    away = np.where(np.sign(lost) == np.sign(total), np.inf, 0) * np.where(total == 0, 1, np.sign(total))
    nudge = (lost != 0) & (odd == 0) & np.isfinite(total)
    return tiny(np.where(nudge, np.nextafter(total, away), total))


def add_pairs(sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sums (m, n) + a (m, k) @ b (k, n), by pairs of terms: float32 arrays, a and b with values of bfloat16, k even.

    A sum is one chain of fused multiply-adds: of each two terms, the second one comes first. Subnormal operands and
    results count as zero (Intel 64 manual, VDPBF16PS: DAZ = FTZ = 1).
    """
    with np.errstate(all="ignore"):
        a, b, sums = (tiny(x.astype(np.float64)) for x in (a, b, sums))
        for k in range(a.shape[1]):
            sums = fused(a[:, k ^ 1, None], b[k ^ 1], sums)
        return sums


# --- the twins --------------------------------------------------------------------------------------------------------


def _pack_tiles(source: Operand, target: Operand, count: int, interleaved: int, turned: int):
    """Round `count` blocks of `source` to bfloat16, and pack them to `target`.

    A block is 16 rows of 32 elements; if `interleaved`, it is 32 rows of 16 elements, two of which make a row of words.
    If `turned`, word (i, j) goes to (j, i). Subnormal numbers count as zero.
    """
    flat, words = source.array.reshape(-1), target.array.reshape(-1).view(np.uint32)
    for t in range(count):
        rows = [source.at + t * source.next + i * source.row for i in range(DEPTH if interleaved else SIDE)]
        block = np.stack([flat[row : row + (SIDE if interleaved else DEPTH)] for row in rows])
        bits = bfloat16(tiny(block.astype(np.float64))).view(np.uint32)
        even, odd = (bits[0::2], bits[1::2]) if interleaved else (bits[:, 0::2], bits[:, 1::2])
        packed = even >> 16 | odd
        at = target.at + t * target.next
        words[at : at + WORDS] = (packed.T if turned else packed).reshape(-1)


def unpacked(words: np.ndarray, is_left: bool) -> np.ndarray:
    """The values (16, 32) of a packed tile of a left factor, or (32, 16) of a right one, as float32."""
    words = words.reshape(SIDE, SIDE)
    halves = np.stack([words << 16, words & np.uint32(0xFFFF0000)], axis=2 if is_left else 1)
    return halves.reshape((SIDE, DEPTH) if is_left else (DEPTH, SIDE)).view(np.float32)


def each_tile(a, b, out, k, rows, columns):
    """What the twins multiply: (a view of 16 x 16 sums, its pairs of unpacked tiles)."""
    left, right, target = a.array.reshape(-1).view(np.uint32), b.array.reshape(-1).view(np.uint32), out.array
    for i, j in itertools.product(range(rows), range(columns)):
        flat, at = target.reshape(-1), out.at + 16 * i * out.row + 16 * j
        places = np.lib.stride_tricks.as_strided(flat[at:], (SIDE, SIDE), (4 * out.row, 4))
        terms = [
            (unpacked(left[x : x + WORDS], True), unpacked(right[y : y + WORDS], False))
            for t in range(k)
            for x, y in [(a.at + i * a.next + t * WORDS, b.at + j * b.next + t * WORDS)]
        ]
        yield places, terms


def _multiply_pairs(a: Operand, b: Operand, out: Operand, k: int, rows: int, columns: int, add: int):
    """out = a @ b, or if `add`, what `out` holds + a @ b: a has `rows` times 16 rows, b `columns` times 16 columns.

    rows, columns: 1 or 2. Each 16 rows of a, or columns of b, are k tiles one after the other; `next` words later begin
    the next 16. The order of sums: see `add_pairs`; they begin with zero.
    """
    for target, terms in each_tile(a, b, out, k, rows, columns):
        sums = np.zeros((SIDE, SIDE), np.float32)
        for x, y in terms:
            sums = add_pairs(sums, x, y)
        target[...] = target + sums if add else sums


# --- LLVM -------------------------------------------------------------------------------------------------------------


def _write_pack(module, interleaved, turned):
    f = Function(module, f"pack_tiles_{interleaved}{turned}", _pack_tiles, "float32", SIDE)
    # Of two rows side by side, element 2j is that of the first one, 2j + 1 of the second.
    both = [j // 2 + SIDE * (j % 2) for j in range(2 * SIDE)]

    def row_of_words(source, i):
        if interleaved:
            places = [f.at(source, f.times(2 * i + half, f["source_row"])) for half in (0, 1)]
        else:
            places = [f.at(source, f.times(i, f["source_row"]), offset) for offset in (0, SIDE)]
        low, high = map(f.load, places)
        halves = f.intrinsic("llvm.x86.avx512bf16.cvtne2ps2bf16.512", PAIRS, high, low)
        if interleaved:
            order = ir.VectorType(i32, 2 * SIDE)(both)
            halves = f.builder.shuffle_vector(halves, halves, order)
        return f.builder.bitcast(halves, f.vector)

    def block(pointers):
        source, target = pointers
        rows = [row_of_words(source, i) for i in range(SIDE)]
        for i, row in enumerate(f.transposed(rows) if turned else rows):
            f.store(row, f.at(target, SIDE * i))
        return [f.at(source, f["source_next"]), f.at(target, f["target_next"])]

    f.loop(f["count"], [f["source"], f["target"]], block)
    f.builder.ret_void()
    return f.llvm


def _write_multiply(module, rows, columns, add):
    f = Function(module, f"multiply_pairs_{rows}{columns}{add}", _multiply_pairs, "float32", SIDE)
    b = f.builder
    for top in range(0, SIDE * rows, ROWS):
        left = f.at(f["a"], f.times(top // SIDE, f["a_next"]), top % SIDE * SIDE)
        rights = [f.at(f["b"], f.times(j, f["b_next"])) for j in range(columns)]
        places = [f.at(f["out"], f.times(top + r, f["out_row"]), SIDE * j) for r in range(ROWS) for j in range(columns)]

        def step(values):
            a, *values = values
            right, sums = values[:columns], values[columns:]
            vectors = [b.bitcast(f.load(pointer), PAIRS) for pointer in right]
            for r in range(ROWS):
                word = b.load(b.bitcast(f.at(a, SIDE * r), i32.as_pointer()))
                pair = b.bitcast(f.splat(word), PAIRS)
                for j, vector in enumerate(vectors):
                    at = r * columns + j
                    sums[at] = f.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", f.vector, sums[at], pair, vector)
            return [f.at(a, 1), *(f.at(pointer, SIDE) for pointer in right), *sums]

        def tile(values):
            a, *rest = values
            _, *rest = f.loop(i64(SIDE), [a, *rest], step)
            return [f.at(a, WORDS), *rest]

        zeros = [f.vector(None)] * len(places)
        sums = f.loop(f["k"], [left, *rights, *zeros], tile)[1 + columns :]
        for place, total in zip(places, sums, strict=True):
            f.store(b.fadd(f.load(place), total) if add else total, place)
    f.builder.ret_void()
    return f.llvm


def module() -> str:
    """The source of all functions."""
    made = ir.Module("scratchnet")
    packs = {key: _write_pack(made, *key) for key in itertools.product((0, 1), (0, 1))}
    write_choice(made, _pack_tiles, "float32", packs, interleaved=2, turned=2)
    multiplies = {key: _write_multiply(made, *key) for key in itertools.product((1, 2), (1, 2), (0, 1))}
    write_choice(made, _multiply_pairs, "float32", multiplies, rows=3, columns=3, add=2)
    return str(made)


pack_tiles, multiply_pairs = _TWINS = _pack_tiles, _multiply_pairs
if JIT_ENABLED:
    provide("pairs-float32", module, [symbol(twin, "float32") for twin in _TWINS])
    pack_tiles, multiply_pairs = map(external, _TWINS)


@jit
def _multiply_here(a, b, out, k, rows, columns, add):
    multiply_pairs(a, b, out, k, rows, columns, add)
