"""Matrix units: Intel's AMX, which multiplies tiles of bfloat16, 16 x 32 by 32 x 16, and adds up in float32.

`pack_tiles` rounds a factor to bfloat16 and puts it into the order in which tiles are read; `multiply_tiles` multiplies
what is packed. As in simd.py each function has a plain NumPy twin, which says what it does, and takes its place under
`NUMBA_DISABLE_JIT=1`.

A packed tile is 16 x 16 words of 32 bits, two bfloat16 each, in memory of float32. Of a left factor word (i, p) holds
elements (i, 2p) and (i, 2p + 1), of a right factor word (p, j) elements (2p, j) and (2p + 1, j).
"""

import ctypes
import functools
import itertools
import platform
import sys

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from .compile import JIT_ENABLED
from .llvm import Function, Operand, external, i32, i64, provide, symbol, write_choice

SIDE, DEPTH, WORDS = 16, 32, 256  # rows or columns of a tile, terms of its sums, words

i8 = ir.IntType(8)


@functools.cache
def are_there() -> bool:
    """Has this CPU matrix units, and does the system let this process use them? It is asked for that once."""
    features = llvm.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-bf16") and features.get("avx512bf16")):
        return False
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None, use_errno=True).syscall(arch_prctl, request_permission, tile_data) == 0


def configuration() -> np.ndarray:
    """What `begin_tiles` reads: palette 1, and 8 tiles of 16 rows of 64 bytes."""
    memory = np.zeros(64, np.uint8)
    memory[0] = 1
    memory[16:32].view(np.uint16)[:] = 4 * SIDE
    memory[48:56] = SIDE
    return memory.view(np.float32)


# --- the definition ---------------------------------------------------------------------------------------------------


def bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 x rounded to the nearest bfloat16, ties to even, as float32: bfloat16 is its upper half."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), bits | np.uint32(0x400000), rounded).view(np.float32) if x.size else x.copy()


def _tiny(x):
    """float64 x rounded once to float32, with 0 where that is subnormal."""
    flushed = np.where(np.abs(x) < np.finfo(np.float32).tiny * (1 - 2.0**-25), np.copysign(0, x), x)
    return flushed.astype(np.float32)


def _fused(a, b, c):
    """a * b + c of float32, rounded once, where a * b has at most 16 significant bits."""
    product = a.astype(np.float64) * b
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)  # what the float64 sum rounded off, exactly (Knuth's two-sum)
    odd = total.view(np.int64) & 1
    # Round to odd: with 53 bits, of which the last says that there were more, the second rounding is right.
    away = np.where(np.sign(lost) == np.sign(total), np.inf, 0) * np.where(total == 0, 1, np.sign(total))
    nudge = (lost != 0) & (odd == 0) & np.isfinite(total)
    return _tiny(np.where(nudge, np.nextafter(total, away), total))


def add_tiles(sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sums (m, n) + a (m, 32) @ b (32, n), by the unit's order: float32 arrays, a and b with values of bfloat16.

    The products of even terms are one chain of fused multiply-adds from zero, those of odd terms another; then
    sums + (even + odd). Subnormal operands and results count as zero (Intel 64 manual, TDPBF16PS: DAZ = FTZ = 1).
    """
    with np.errstate(all="ignore"):
        a, b, sums = (_tiny(x.astype(np.float64)) for x in (a, b, sums))
        chains = []
        for first in (0, 1):
            total = np.zeros_like(sums)
            for k in range(first, DEPTH, 2):
                total = _fused(a[:, k : k + 1], b[k], total)
            chains.append(total.astype(np.float64))
        pair = _tiny(chains[0] + chains[1])
        return _tiny(sums.astype(np.float64) + pair)


# --- the twins --------------------------------------------------------------------------------------------------------


def _begin_tiles(config: Operand):
    """Let this thread use tiles; config: what `configuration` returns."""


def _end_tiles(config: Operand):
    """This thread uses no tiles any more."""


def _pack_tiles(source: Operand, target: Operand, count: int, interleaved: int, turned: int):
    """Round `count` blocks of `source` to bfloat16, and pack them to `target`.

    A block is 16 rows of 32 elements; if `interleaved`, it is 32 rows of 16 elements, two of which make a row of words.
    If `turned`, word (i, j) goes to (j, i).
    """
    flat, words = source.array.reshape(-1), target.array.reshape(-1).view(np.uint32)
    for t in range(count):
        rows = [source.at + t * source.next + i * source.row for i in range(DEPTH if interleaved else SIDE)]
        block = np.stack([flat[row : row + (SIDE if interleaved else DEPTH)] for row in rows])
        bits = bfloat16(block).view(np.uint32)
        even, odd = (bits[0::2], bits[1::2]) if interleaved else (bits[:, 0::2], bits[:, 1::2])
        packed = even >> 16 | odd
        at = target.at + t * target.next
        words[at : at + WORDS] = (packed.T if turned else packed).reshape(-1)


def _multiply_tiles(a: Operand, b: Operand, out: Operand, k: int, rows: int, columns: int, add: int):
    """out = a @ b, or if `add`, plus what `out` holds: a has `rows` times 16 rows, b `columns` times 16 columns.

    rows, columns: 1 or 2. Each 16 rows of a, or columns of b, are k tiles one after the other; `next` words later begin
    the next 16. The order of sums: see `add_tiles`.
    """
    left, right, target = (
        a.array.reshape(-1).view(np.uint32),
        b.array.reshape(-1).view(np.uint32),
        out.array.reshape(-1),
    )
    for i, j in itertools.product(range(rows), range(columns)):
        places = [slice(out.at + (16 * i + r) * out.row + 16 * j, None) for r in range(SIDE)]
        sums = np.stack([target[place][:SIDE] for place in places]) * (1 if add else 0)
        for t in range(k):
            x, y = (
                words[at + t * WORDS :][:WORDS].reshape(SIDE, SIDE)
                for words, at in ((left, a.at + i * a.next), (right, b.at + j * b.next))
            )
            x = np.stack([x << 16, x & np.uint32(0xFFFF0000)], axis=2).reshape(SIDE, DEPTH)
            y = np.stack([y << 16, y & np.uint32(0xFFFF0000)], axis=1).reshape(DEPTH, SIDE)
            sums = add_tiles(sums, x.view(np.float32), y.view(np.float32))
        for place, row in zip(places, sums, strict=True):
            target[place][:SIDE] = row


# --- LLVM -------------------------------------------------------------------------------------------------------------


def _bytes_at(f, pointer):
    return f.builder.bitcast(pointer, i8.as_pointer())


def _write_pack(module, interleaved, turned):
    f = Function(module, f"pack_tiles_{interleaved}{turned}", _pack_tiles, "float32", SIDE)
    b, words = f.builder, ir.VectorType(i32, SIDE)

    def every(number):
        return words([number] * SIDE)

    def rounded(x):
        """As in `bfloat16`, but for the lower half of each word, which is not cleared."""
        bits = b.bitcast(x, words)
        even = b.and_(b.lshr(bits, every(16)), every(1))
        moved = b.add(b.add(bits, every(0x7FFF)), even)
        return b.select(b.fcmp_unordered("uno", x, x), b.or_(bits, every(0x400000)), moved)

    def row_of_words(source, i):
        if interleaved:
            even, odd = (f.load(f.at(source, f.times(2 * i + half, f["source_row"]))) for half in (0, 1))
        else:
            low, high = (f.load(f.at(source, f.times(i, f["source_row"]), offset)) for offset in (0, SIDE))
            even, odd = (f.shuffle(low, high, list(range(first, 2 * SIDE, 2))) for first in (0, 1))
        low, high = b.lshr(rounded(even), every(16)), b.and_(rounded(odd), every(0xFFFF0000))
        return b.bitcast(b.or_(low, high), f.vector)

    def block(pointers):
        source, target = pointers
        rows = [row_of_words(source, i) for i in range(SIDE)]
        distance = 1
        while turned and distance < SIDE:  # as in simd.py
            keep = [lane + (SIDE - distance if lane & distance else 0) for lane in range(SIDE)]
            swap = [lane + (SIDE if lane & distance else distance) for lane in range(SIDE)]
            for i in [i for i in range(SIDE) if not i & distance]:
                low, high = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = f.shuffle(low, high, keep), f.shuffle(low, high, swap)
            distance *= 2
        for i, row in enumerate(rows):
            f.store(row, f.at(target, SIDE * i))
        return [f.at(source, f["source_next"]), f.at(target, f["target_next"])]

    f.loop(f["count"], [f["source"], f["target"]], block)
    f.builder.ret_void()
    return f.llvm


def _write_multiply(module, rows, columns, add):
    f = Function(module, f"multiply_tiles_{rows}{columns}{add}", _multiply_tiles, "float32", SIDE)
    void, line = ir.VoidType(), i64(4 * SIDE)
    pairs = list(itertools.product(range(rows), range(columns)))
    sums = {(i, j): i8(2 * i + j) for i, j in pairs}
    lefts, rights = [i8(4 + i) for i in range(rows)], [i8(6 + j) for j in range(columns)]
    out_bytes = f.times(4, f["out_row"])
    places = {(i, j): f.at(f["out"], f.times(SIDE * i, f["out_row"]), SIDE * j) for i, j in pairs}
    for pair, tile in sums.items():
        if add:
            f.intrinsic("llvm.x86.tileloadd64", void, tile, _bytes_at(f, places[pair]), out_bytes)
        else:
            f.intrinsic("llvm.x86.tilezero", void, tile)

    def step(values):
        a, b = values
        for i, tile in enumerate(lefts):
            f.intrinsic("llvm.x86.tileloadd64", void, tile, _bytes_at(f, f.at(a, f.times(i, f["a_next"]))), line)
        for j, tile in enumerate(rights):
            f.intrinsic("llvm.x86.tileloadd64", void, tile, _bytes_at(f, f.at(b, f.times(j, f["b_next"]))), line)
        for (i, j), tile in sums.items():
            f.intrinsic("llvm.x86.tdpbf16ps", void, tile, lefts[i], rights[j])
        return [f.at(a, WORDS), f.at(b, WORDS)]

    f.loop(f["k"], [f["a"], f["b"]], step)
    for pair, tile in sums.items():
        f.intrinsic("llvm.x86.tilestored64", void, tile, _bytes_at(f, places[pair]), out_bytes)
    f.builder.ret_void()
    return f.llvm


def module() -> str:
    """The source of all functions."""
    made = ir.Module("scratchnet")
    void = ir.VoidType()
    begin = Function(made, symbol(_begin_tiles, "float32"), _begin_tiles, "float32", SIDE)
    begin.intrinsic("llvm.x86.ldtilecfg", void, _bytes_at(begin, begin["config"]))
    begin.builder.ret_void()
    end = Function(made, symbol(_end_tiles, "float32"), _end_tiles, "float32", SIDE)
    end.intrinsic("llvm.x86.tilerelease", void)
    end.builder.ret_void()
    packs = {key: _write_pack(made, *key) for key in itertools.product((0, 1), (0, 1))}
    write_choice(made, _pack_tiles, "float32", packs, interleaved=2, turned=2)
    multiplies = {key: _write_multiply(made, *key) for key in itertools.product((1, 2), (1, 2), (0, 1))}
    write_choice(made, _multiply_tiles, "float32", multiplies, rows=3, columns=3, add=2)
    return str(made)


begin_tiles, end_tiles, pack_tiles, multiply_tiles = _TWINS = _begin_tiles, _end_tiles, _pack_tiles, _multiply_tiles
if JIT_ENABLED:
    provide("tiles-float32", module, [symbol(twin, "float32") for twin in _TWINS])
    begin_tiles, end_tiles, pack_tiles, multiply_tiles = map(external, _TWINS)
