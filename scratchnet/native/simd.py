"""The inner loops of the matrix product, which Numba's own loops cannot express: `tile`, `copy_rows`, `transpose`.

Kernels call them like any function; nothing is checked. Each is defined here twice: as a plain NumPy twin, which says
what it does and takes its place under `NUMBA_DISABLE_JIT=1`, and as LLVM instructions on vectors (llvm.py).
"""

import functools
import itertools
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from .compile import JIT_ENABLED
from .llvm import DTYPES, Function, Operand, external, i64, provide, symbol, write_choice
from .updates import UPDATES, Plain


class Tile(NamedTuple):
    """The block of `out` that stays in registers while a loop runs over k: at most `most_rows` rows.

    A tile of r rows is `vectors[r]` vectors wide: the fewer rows, the wider, since it takes about ten independent sums
    to hide the latency of a fused multiply-add. The tile and one row of `b` together fit into the registers. Tiles of
    `rows` rows are the fastest: the nearer to a square, the fewer loads for each multiply-add.
    """

    vector_bytes: int
    rows: int
    most_rows: int
    vectors: tuple[int, ...]


TILES = {  # by the first feature that the CPU has
    "avx512f": Tile(64, 9, 12, (0, 8, 6, 6, 4, 4, 4, 3, 3, 3, 2, 2, 2)),  # 32 registers
    "avx2": Tile(32, 6, 6, (0, 8, 6, 4, 3, 2, 2)),  # 16 registers
    "neon": Tile(16, 8, 8, (0, 8, 6, 4, 4, 3, 3, 2, 2)),  # 32 registers
    "": Tile(16, 4, 4, (0, 6, 4, 3, 2)),  # SSE: 16 registers, no fused multiply-add
}


def _host_tile() -> Tile:
    features = llvm.get_host_cpu_features()
    return next(tile for feature, tile in TILES.items() if features.get(feature, feature == ""))


TILE = _host_tile()
SQUARE_BYTES = min(32, TILE.vector_bytes)  # one side of the block that `transpose` swaps in registers
ADDS, FROM_ZERO = 1, 2  # of a Strip


class Strip(NamedTuple):
    """What `tile` computes: `tiles` of equal size, each `rows` high, whose sums have `k` terms.

    A row of a tile is `vectors` whole vectors, the last of which begins at column `last` and may overlap the one
    before; or, if `vectors` is 0, the first `last` lanes of one vector. transposed, pack, add: see `tile`; `add` is 0,
    ADDS or FROM_ZERO.
    """

    tiles: int
    k: int
    rows: int
    vectors: int
    last: int
    transposed: bool
    pack: bool
    add: int


class Sums(NamedTuple):
    """What `tile_in_place` computes; as in a Strip. lists_rows: see there."""

    tiles: int
    k: int
    rows: int
    vectors: int
    last: int
    lists_rows: bool


# --- the twins --------------------------------------------------------------------------------------------------------


def _tile(
    a: Operand, b: Operand, start: Operand, out: Operand, packed: Operand, first: Operand, second: Operand,
    numbers: Operand, strip: Strip,
):  # fmt: skip
    """out[i, j] = start[i, j] + sum over k of a[i, k] * b[k, j]: each sum one chain in the order of k.

    a is stored as it is, or if `transposed` as a.T. If `pack`, what is read of b is also written to `packed`. If `add`
    is ADDS, the sum begins with zero and is added to what `out` holds; if FROM_ZERO, it begins with zero: to load zeros
    took 29 of 148 cycles of a tile of 8 steps on Zen 5. first, second, numbers: see `_tile_updating`.
    """
    width = _width(strip.vectors, strip.last, out)
    for t, i in itertools.product(range(strip.tiles), range(strip.rows)):
        total, old = _sums(a, b, start, packed, strip, (t, i, width)), _row(out, t, i, width)
        old[:] = old + total if strip.add == ADDS else total


def _sums(a, b, start, packed, strip, at):
    """Row i of tile t. at: t, i, its width."""
    t, i, width = at
    total = _row(start, t, i, width) * 0 if strip.add else _row(start, t, i, width)
    for k in range(strip.k):
        factor = _row(a, t, k, i + 1)[i] if strip.transposed else _row(a, t, i, k + 1)[k]
        total = total + factor * _row(b, t, k, width)
        if strip.pack:
            _row(packed, t, k, width)[:] = _row(b, t, k, width)
    return total


def _tile_updating(update):
    """`tile` where a is transposed, and the sums, which begin with zero, are the gradient of the parameters in `out`.

    Those take a step by a rule of UPDATES, with the states `first` and `second`, or `first` alone, and with `numbers`.
    """

    def twin(
        a: Operand, b: Operand, start: Operand, out: Operand, packed: Operand, first: Operand, second: Operand,
        numbers: Operand, strip: Strip,
    ):  # fmt: skip
        rule, states = UPDATES[update]
        width, number = _width(strip.vectors, strip.last, out), numbers.array.reshape(-1)[numbers.at :].__getitem__
        for t, i in itertools.product(range(strip.tiles), range(strip.rows)):
            gradient = _sums(a, b, start, packed, strip._replace(add=FROM_ZERO), (t, i, width))
            arrays = [_row(x, t, i, width) for x in (out, first, second)[: 1 + states]]
            for old, new in zip(arrays, rule(Plain, number, arrays[0], gradient, *arrays[1:]), strict=True):
                old[:] = new

    twin.__name__ = twin.__qualname__ = f"_tile_{update}"
    return twin


def _tile_in_place(a: Operand, b: Operand, out: Operand, places: Operand, sums: Sums):
    """out[i, j] += sum over k of a[i, k] * b[k, j], each sum one chain: a tile of which an operand is no matrix.

    places: int64. Row i of a begins places[i] elements after a if `lists_rows`, else row k of b places[k] after b.
    """
    width, at = _width(sums.vectors, sums.last, out), places.array.reshape(-1)[places.at :]
    for t, i in itertools.product(range(sums.tiles), range(sums.rows)):
        row = at[t * sums.rows + i] if sums.lists_rows else t * a.next + i * a.row
        factors = a.array.reshape(-1)[a.at + row :]
        total = _row(out, t, i, width) * 0
        for k in range(sums.k):
            begin = b.at + (k * b.row if sums.lists_rows else at[k])
            total = total + factors[k] * b.array.reshape(-1)[begin : begin + width]
        _row(out, t, i, width)[:] += total


def bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 x rounded to the nearest bfloat16, ties to even, as float32: bfloat16 is its upper half."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), bits | np.uint32(0x400000), rounded).view(np.float32) if x.size else x.copy()


def _copy_rows(source: Operand, target: Operand, count: int, vectors: int, last: int, rounds: int):
    """target[i, j] = source[i, j] for `count` rows as wide as those of a Strip, if `rounds` rounded to bfloat16."""
    width = _width(vectors, last, target)
    for i in range(count):
        row = _row(source, 0, i, width)
        _row(target, 0, i, width)[:] = bfloat16(row) if rounds else row


def _transpose(source: Operand, target: Operand, count: int, rounds: int):
    """target[j, i] = source[i, j] for `count` squares of SQUARE_BYTES by SQUARE_BYTES, if `rounds` rounded as well."""
    side = SQUARE_BYTES // target.array.itemsize
    for t, i in itertools.product(range(count), range(side)):
        column = target.array.reshape(-1)[target.at + t * target.next + i :][: side * target.row : target.row]
        row = _row(source, t, i, side)
        column[:] = bfloat16(row) if rounds else row


def _width(vectors, last, operand):
    """Columns of a row, see Strip."""
    return last + TILE.vector_bytes // operand.array.itemsize if vectors else last


def _row(operand, block, i, width):
    """Row i of a block of an operand."""
    return operand.array.reshape(-1)[operand.at + block * operand.next + i * operand.row :][:width]


# --- LLVM -------------------------------------------------------------------------------------------------------------


def _copies(sums):
    """Steps of k between two jumps. A jump every 12 cycles took 8 % of the time on a Xeon."""
    return 2 if len(sums) >= 16 else 1


def _write_tile(module, dtype, lanes, rows, vectors, transposed, pack, update=None):
    twin = UPDATING[update] if update else _tile
    f = Function(module, f"{twin.__name__[1:]}_{dtype}_{rows}x{vectors}_{transposed}{pack}", twin, dtype, lanes)
    states = UPDATES[update].states if update else 0
    walking = ["a", "b", "start", "out", "packed", *("first", "second")[:states]]
    columns, mask = f.columns(vectors)
    a_row, a_step = (1, f["a_row"]) if transposed else (f["a_row"], 1)
    a_rows = [i if transposed else f.times(i, a_row) for i in range(rows)]
    elements = [(i, column) for i in range(rows) for column in columns]
    starts = [f.times(i, f["start_row"]) for i in range(rows)]
    outs = [f.times(i, f["out_row"]) for i in range(rows)]
    zeros = [f.vector(None)] * len(elements)

    def step(values):
        a, b, packed, *sums = values
        # Hold the shorter of a's column and b's row in registers, and load the elements of the longer one by one.
        pairs = [(i, j) for i in range(rows) for j in range(len(columns))]
        pairs.sort(key=lambda ij: ij if rows > len(columns) else ij[::-1])
        factor = functools.cache(lambda i: f.splat(f.builder.load(f.at(a, a_rows[i]))))
        right = functools.cache(lambda j: f.load(f.at(b, columns[j]), mask))
        for i, j in pairs:
            at = i * len(columns) + j
            sums[at] = f.multiply_add(factor(i), right(j), sums[at])
        if pack:
            for j, column in enumerate(columns):
                f.store(right(j), f.at(packed, column))
        return [f.at(a, a_step), f.at(b, f["b_row"]), f.at(packed, f["packed_row"] if pack else 0), *sums]

    def step_and_fetch(values):
        """A step, and a row of what the next tile updates: all of them at once would keep a and b waiting."""
        lines, others = values[: 1 + states], values[1 + states :]
        for column, line in itertools.product(columns, lines):
            f.prefetch(f.at(line, column))
        return [*(f.at(line, f["out_row"]) for line in lines), *step(others)]

    def update_row(i, gradient, pointers):
        """A step of an optimizer for row i, all of it read before it is written: vectors may overlap."""
        numbers = functools.cache(lambda n: f.splat(f.builder.load(f.at(f["numbers"], n))))  # no register before
        places = [[f.at(x, outs[i], column) for x in pointers] for column in columns]
        old = [[f.load(at, mask) for at in place] for place in places]
        for g, place, (p, *state) in zip(gradient, places, old, strict=True):
            for at, new in zip(place, UPDATES[update].rule(f, numbers, p, g, *state), strict=True):
                f.store(new, at, mask)

    def one(values):
        left, *pointers = values
        a, b, start, out, packed, *state = pointers
        # What lies behind the last tile may be another thread's, which a prefetch for writing would take away from it.
        is_last = f.builder.icmp_signed("==", left, i64(1))
        ahead = f.builder.select(is_last, i64(0), f["out_next"])
        if update:  # the sums of a gradient begin with zero; meanwhile, lines that the next tile updates are fetched
            next_lines = [f.at(x, ahead) for x in (out, *state)]
            first = f.builder.select(f.builder.icmp_signed("<", f["k"], i64(rows)), f["k"], i64(rows))
            values = f.loop(first, [*next_lines, a, b, packed, *zeros], step_and_fetch)[1 + states :]
            rest = f.builder.sub(f["k"], first)
        else:
            for i in range(rows):  # where the next tile will be may be far away: fetch it while this one runs
                f.prefetch(f.at(out, ahead, outs[i], columns[0]))
            begin = f.when(
                f.equal(f["add"], 0),
                zeros,
                lambda: [f.load(f.at(start, starts[i], column), mask) for i, column in elements],
            )
            values, rest = [a, b, packed, *begin], f["k"]
        _, _, _, *sums = f.loop(rest, values, step, copies=1 if pack else _copies(elements))
        if update:
            for i in range(rows):
                update_row(i, sums[i * len(columns) : (i + 1) * len(columns)], (out, *state))
        else:
            places = [f.at(out, outs[i], column) for i, column in elements]
            pairs = list(zip(sums, places, strict=True))
            adds = f.equal(f["add"], ADDS)
            sums = f.when(adds, sums, lambda: [f.builder.fadd(f.load(at, mask), total) for total, at in pairs])
            for total, (i, column) in zip(sums, elements, strict=True):
                f.store(total, f.at(out, outs[i], column), mask)
        moved = [f.at(x, f[f"{name}_next"]) for name, x in zip(walking, pointers, strict=True)]
        return [f.builder.sub(left, i64(1)), *moved]

    f.loop(f["tiles"], [f["tiles"], *(f[name] for name in walking)], one)
    f.builder.ret_void()
    return f.llvm


def _write_tile_in_place(module, dtype, lanes, rows, vectors, lists_rows):
    f = Function(module, f"tile_in_place_{dtype}_{rows}x{vectors}_{lists_rows}", _tile_in_place, dtype, lanes)
    columns, mask = f.columns(vectors)
    outs = [f.times(i, f["out_row"]) for i in range(rows)]
    place = f.builder.bitcast(f["places"], i64.as_pointer())

    def one(pointers):
        a, out, places = pointers
        if lists_rows:
            a_rows = [f.at(a, f.builder.load(f.at(places, i))) for i in range(rows)]
        else:
            a_rows = [f.at(a, f.times(i, f["a_row"])) for i in range(rows)]

        def step(values):
            k, b, *sums = values
            row = f["b"] if not lists_rows else b
            if not lists_rows:
                row = f.at(row, f.builder.load(f.at(place, k)))
            factor = functools.cache(lambda i: f.splat(f.builder.load(f.at(a_rows[i], k))))
            right = functools.cache(lambda j: f.load(f.at(row, columns[j]), mask))
            pairs = [(i, j) for i in range(rows) for j in range(len(columns))]
            pairs.sort(key=lambda ij: ij if rows > len(columns) else ij[::-1])
            for i, j in pairs:
                at = i * len(columns) + j
                sums[at] = f.multiply_add(factor(i), right(j), sums[at])
            return [f.builder.add(k, i64(1)), f.at(b, f["b_row"]), *sums]

        zeros = [f.vector(None)] * (rows * len(columns))
        _, _, *sums = f.loop(f["k"], [i64(0), f["b"], *zeros], step, copies=_copies(zeros))
        for i, row in enumerate(outs):  # a row is read before it is written: its vectors may overlap
            at = [f.at(out, row, column) for column in columns]
            old, own = [f.load(p, mask) for p in at], sums[i * len(columns) : (i + 1) * len(columns)]
            for p, before, total in zip(at, old, own, strict=True):
                f.store(f.builder.fadd(before, total), p, mask)
        return [f.at(a, f["a_next"]), f.at(out, f["out_next"]), f.at(places, rows)]

    f.loop(f["tiles"], [f["a"], f["out"], place], one)
    f.builder.ret_void()
    return f.llvm


def _write_copy_rows(module, dtype, lanes, vectors, rounds):
    f = Function(module, f"copy_rows_{dtype}_{vectors}_{rounds}", _copy_rows, dtype, lanes)
    columns, mask = f.columns(vectors)

    def copy_row(pointers):
        source, target = pointers
        for x, column in [(f.load(f.at(source, column), mask), column) for column in columns]:
            f.store(f.rounded(x) if rounds else x, f.at(target, column), mask)
        return [f.at(source, f["source_row"]), f.at(target, f["target_row"])]

    f.loop(f["count"], [f["source"], f["target"]], copy_row)
    f.builder.ret_void()
    return f.llvm


def _write_transpose(module, dtype, side, rounds):
    f = Function(module, f"transpose_{dtype}_{rounds}", _transpose, dtype, side)

    def square(pointers):
        source, target = pointers
        rows = [f.load(f.at(source, f.times(i, f["source_row"]))) for i in range(side)]
        for i, row in enumerate(f.transposed(rows)):
            f.store(f.rounded(row) if rounds else row, f.at(target, f.times(i, f["target_row"])))
        return [f.at(source, f["source_next"]), f.at(target, f["target_next"])]

    f.loop(f["count"], [f["source"], f["target"]], square)
    f.builder.ret_void()
    return f.llvm


def _tiles(module, dtype, tile, update=None):
    """All sizes of tiles, by what `write_choice` chooses them by."""
    lanes, found = tile.vector_bytes // (int(dtype[-2:]) // 8), {}
    panel, sides = tile.vectors[tile.rows], (1,) if update else (0, 1)  # a gradient of weights has a transposed factor
    for rows in range(1, tile.rows + 1):
        # Two tile heights that differ by one may stand side by side and then have one width: the larger's. Packed b has
        # panels of one width, whatever the height.
        for vectors in sorted({0, 1, 2, panel, *tile.vectors[rows : rows + 2]}):
            packs = (0, 1) if vectors in (2, panel) and 3 * rows >= 2 * tile.rows else (0,)
            for transposed, pack in itertools.product(sides, packs):
                key = rows, vectors, transposed, pack
                found[key] = _write_tile(module, dtype, lanes, *key, update)
    for rows in range(tile.rows + 1, tile.most_rows + 1):  # the heights of narrow panels
        narrow = () if update else ((0, 0), (1, 0))
        for transposed, (vectors, pack) in itertools.product(sides, (*narrow, (2, 0), (2, 1))):
            key = rows, vectors, transposed, pack
            found[key] = _write_tile(module, dtype, lanes, *key, update)
    write_choice(module, UPDATING[update] if update else _tile, dtype, found, rows=1, vectors=16, transposed=2, pack=2)


def llvm_module(dtype, tile=TILE) -> str:
    """The source of `tile`, `copy_rows` and `transpose`, for float32 or float64, for a CPU with the given tile."""
    module = ir.Module("scratchnet")
    size = int(dtype[-2:]) // 8
    _tiles(module, dtype, tile)
    rounding = (0, 1) if dtype == "float32" else (0,)
    keys = list(itertools.product(sorted({0, 1, *tile.vectors}), rounding))
    copies = {key: _write_copy_rows(module, dtype, tile.vector_bytes // size, *key) for key in keys}
    write_choice(module, _copy_rows, dtype, copies, vectors=16, rounds=2)
    squares = {(r,): _write_transpose(module, dtype, min(32, tile.vector_bytes) // size, r) for r in rounding}
    write_choice(module, _transpose, dtype, squares, rounds=2)
    return str(module)


def updating_module(update, dtype, tile=TILE) -> str:
    """The source of the tile that updates by a rule of UPDATES."""
    module = ir.Module("scratchnet")
    _tiles(module, dtype, tile, update)
    return str(module)


def in_place_module(dtype, tile=TILE) -> str:
    """The source of `tile_in_place`."""
    module = ir.Module("scratchnet")
    lanes = tile.vector_bytes // (int(dtype[-2:]) // 8)
    keys = [
        (rows, vectors, listed)
        for rows in range(1, tile.rows + 1)
        for vectors in sorted({0, 1, 2, *tile.vectors[rows : rows + 2]})
        for listed in (0, 1)
    ]
    tiles = {key: _write_tile_in_place(module, dtype, lanes, *key) for key in keys}
    write_choice(module, _tile_in_place, dtype, tiles, rows=1, vectors=16, lists_rows=2)
    return str(module)


UPDATING = {update: _tile_updating(update) for update in UPDATES}  # the twins
tile, copy_rows, transpose = _TWINS = _tile, _copy_rows, _transpose
tile_in_place, tile_updating = _tile_in_place, dict(UPDATING)
if JIT_ENABLED:
    for _dtype in DTYPES:
        provide(f"simd-{_dtype}", functools.partial(llvm_module, _dtype), [symbol(twin, _dtype) for twin in _TWINS])
        provide(f"windows-{_dtype}", functools.partial(in_place_module, _dtype), [symbol(_tile_in_place, _dtype)])
        for _update, _twin in UPDATING.items():
            _source = functools.partial(updating_module, _update, _dtype)
            provide(f"{_update}-{_dtype}", _source, [symbol(_twin, _dtype)])
    tile, copy_rows, transpose = map(external, _TWINS)
    tile_in_place = external(_tile_in_place)
    tile_updating = {update: external(twin) for update, twin in UPDATING.items()}
