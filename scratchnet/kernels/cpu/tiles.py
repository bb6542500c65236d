"""Matrix units: Intel's AMX, which multiplies tiles of bfloat16, 16 x 32 by 32 x 16, and adds up in float32.

`multiply_tiles` multiplies what pairs.py has packed. As there each function has a plain NumPy twin.
"""

import ctypes
import functools
import itertools
import platform
import sys

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from ...native.compile import JIT_ENABLED
from ...native.llvm import Function, Operand, external, i64, provide, symbol, write_choice
from .pairs import DEPTH, SIDE, WORDS, each_tile, fused, tiny

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


def add_tiles(sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sums (m, n) + a (m, 32) @ b (32, n), by the unit's order: float32 arrays, a and b with values of bfloat16.

    The products of even terms are one chain of fused multiply-adds from zero, those of odd terms another; then
    sums + (even + odd). Subnormal operands and results count as zero (Intel 64 manual, TDPBF16PS: DAZ = FTZ = 1).
    """
    with np.errstate(all="ignore"):
        a, b, sums = (tiny(x.astype(np.float64)) for x in (a, b, sums))
        chains = []
        for first in (0, 1):
            total = np.zeros_like(sums)
            for k in range(first, DEPTH, 2):
                total = fused(a[:, k : k + 1], b[k], total)
            chains.append(total.astype(np.float64))
        pair = tiny(chains[0] + chains[1])
        return tiny(sums.astype(np.float64) + pair)


# --- the twins --------------------------------------------------------------------------------------------------------


def _begin_tiles(config: Operand):
    """Let this thread use tiles; config: what `configuration` returns."""


def _end_tiles(config: Operand):
    """This thread uses no tiles any more."""


def _multiply_tiles(a: Operand, b: Operand, out: Operand, k: int, rows: int, columns: int, add: int):
    """out = a @ b, or if `add`, plus what `out` holds: a has `rows` times 16 rows, b `columns` times 16 columns.

    rows, columns: 1 or 2. Each 16 rows of a, or columns of b, are k tiles one after the other; `next` words later begin
    the next 16. The order of sums: see `add_tiles`.
    """
    for target, terms in each_tile(a, b, out, k, rows, columns):
        sums = target.copy() if add else np.zeros_like(target)
        for x, y in terms:
            sums = add_tiles(sums, x, y)
        target[...] = sums


# --- LLVM -------------------------------------------------------------------------------------------------------------


def _bytes_at(f, pointer):
    return f.builder.bitcast(pointer, i8.as_pointer())


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
    multiplies = {key: _write_multiply(made, *key) for key in itertools.product((1, 2), (1, 2), (0, 1))}
    write_choice(made, _multiply_tiles, "float32", multiplies, rows=3, columns=3, add=2)
    return str(made)


begin_tiles, end_tiles, multiply_tiles = _TWINS = _begin_tiles, _end_tiles, _multiply_tiles
if JIT_ENABLED:
    provide("tiles-float32", module, [symbol(twin, "float32") for twin in _TWINS])
    begin_tiles, end_tiles, multiply_tiles = map(external, _TWINS)
