"""The inner loops that Numba's own cannot express: those of the matrix product, written in LLVM's language.

`tile`, `copy_rows` and `transpose` are called from kernels like any function. They take each array together with the
offset of an element in it; steps count elements; nothing is checked. Their code is one LLVM module, compiled once and
called by name. Under `NUMBA_DISABLE_JIT=1` their plain NumPy twins take their places.
"""

import functools
import inspect
import itertools
from typing import NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .cache import object_code
from .compile import JIT_ENABLED, before_first_kernel


class Tile(NamedTuple):
    """The block of `out` that stays in registers while a loop runs over k: at most `rows` rows.

    A tile of r rows is `vectors[r]` vectors wide: the fewer rows, the wider, since it takes about ten independent sums
    to hide the latency of a fused multiply-add. The tile and one row of `b` together fit into the registers.
    """

    vector_bytes: int
    rows: int
    vectors: tuple[int, ...]


TILES = {  # by the first feature that the CPU has
    "avx512f": Tile(64, 12, (0, 8, 6, 4, 4, 3, 3, 2, 2, 2, 2, 2, 2)),  # 32 registers
    "avx2": Tile(32, 6, (0, 8, 6, 4, 3, 2, 2)),  # 16 registers
    "neon": Tile(16, 8, (0, 8, 6, 4, 4, 3, 3, 2, 2)),  # 32 registers
    "": Tile(16, 4, (0, 6, 4, 3, 2)),  # SSE: 16 registers, no fused multiply-add
}


def _host_tile() -> Tile:
    features = llvm.get_host_cpu_features()
    return next(tile for feature, tile in TILES.items() if features.get(feature, feature == ""))


TILE = _host_tile()
SQUARE_BYTES = min(32, TILE.vector_bytes)  # one side of the block that `transpose` turns

# --- plain Python ---------------------------------------------------------------------------------------------------


def _tile(
    a, a_at, a_stride, turned, b, b_at, b_step, start, start_at, start_row, out, out_at, out_row, kept, kept_at,
    keeping, velocity, velocity_at, numbers, numbers_at, updating, k, last, rows, vectors, count, a_next, b_next,
    start_next, out_next,
):  # fmt: skip
    """out[i, j] = start[i, j] + sum over k of a[i, k] * b[k, j]: each sum one chain in the order of k.

    a[i, k] is `a_stride` elements after a[i - 1, k] and next to a[i, k - 1], or the other way round if `turned`. The
    columns are `vectors` whole vectors, the last of which begins at column `last` (it may overlap the one before); or,
    if `vectors` is 0, the first `last` lanes of one. If `keeping`, what is read of b is also written to `kept`, row
    after row. If `updating`, `start` is zero, and the sums are the gradient of the parameters in `out`, which take a
    step of SGD, as in optim.py, with a velocity stored like them and numbers (lr, momentum, nesterov, weight decay).
    All this for `count` tiles, each so many elements after the one before: `a_next` in a, and so on.
    """
    a, b, start, out, kept, velocity = (x.reshape(-1) for x in (a, b, start, out, kept, velocity))
    lr, momentum, nesterov, decay = numbers.reshape(-1)[numbers_at:][:4] if updating else (0, 0, 0, 0)
    a_row, a_step = (1, a_stride) if turned else (a_stride, 1)
    columns = last + TILE.vector_bytes // out.itemsize if vectors else last
    for t, i in itertools.product(range(count), range(rows)):
        if i == 0 and t:
            a_at, b_at, start_at, out_at = a_at + a_next, b_at + b_next, start_at + start_next, out_at + out_next
            kept_at, velocity_at = kept_at + k * columns, velocity_at + out_next
        total = start[start_at + i * start_row :][:columns]
        for step in range(k):
            row = b[b_at + step * b_step :][:columns]
            total = total + a[a_at + i * a_row + step * a_step] * row
            if keeping:
                kept[kept_at + step * columns :][:columns] = row
        place = slice(out_at + i * out_row, out_at + i * out_row + columns)
        if updating:
            total = total + decay * out[place]
            velocity[velocity_at + i * out_row :][:columns] *= momentum
            velocity[velocity_at + i * out_row :][:columns] += total
            speed = velocity[velocity_at + i * out_row :][:columns]
            total = out[place] - lr * (total + momentum * speed if nesterov else speed)
        out[place] = total


def _copy_rows(source, source_at, source_step, target, target_at, target_step, count, last, vectors):
    """target[i, j] = source[i, j] for `count` rows; the columns are described as in `tile`."""
    source, target = source.reshape(-1), target.reshape(-1)
    columns = last + TILE.vector_bytes // target.itemsize if vectors else last
    for i in range(count):
        target[target_at + i * target_step :][:columns] = source[source_at + i * source_step :][:columns]


def _transpose(source, source_at, source_step, target, target_at, target_step, count, source_next, target_next):
    """target[j, i] = source[i, j] for `count` blocks of SQUARE_BYTES by SQUARE_BYTES, each so far after the last."""
    source, target = source.reshape(-1), target.reshape(-1)
    side = SQUARE_BYTES // target.itemsize
    for square, i in itertools.product(range(count), range(side)):
        row = source[source_at + square * source_next + i * source_step :][:side]
        target[target_at + square * target_next + i :][: side * target_step : target_step] = row


# --- LLVM -----------------------------------------------------------------------------------------------------------

# Arguments of the LLVM functions: names in capitals are pointers, the others integers.
SIGNATURES = {
    "tile": "A a_stride turned B b_step START start_row OUT out_row KEPT keeping VELOCITY NUMBERS updating k"
    " last rows vectors count"
    " a_next b_next start_next out_next",
    "copy_rows": "SOURCE source_step TARGET target_step count last vectors",
    "transpose": "SOURCE source_step TARGET target_step count source_next target_next",
}
DTYPES = {"float32": ir.FloatType(), "float64": ir.DoubleType()}

_i32, _i64 = ir.IntType(32), ir.IntType(64)


class _Function:
    """An LLVM function on vectors of `lanes` elements, being written. Its arguments are its items."""

    def __init__(self, module, name, signature, dtype, lanes):
        self.size, self.lanes, self.vector = int(dtype[-2:]) // 8, lanes, ir.VectorType(DTYPES[dtype], lanes)
        self.suffix = f"v{lanes}f{8 * self.size}"
        names = SIGNATURES[signature].split()
        kinds = [DTYPES[dtype].as_pointer() if name.isupper() else _i64 for name in names]
        self.llvm = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.builder = ir.IRBuilder(self.llvm.append_basic_block())
        self.arguments = dict(zip(names, self.llvm.args, strict=True))

    def __getitem__(self, name):
        return self.arguments[name]

    def at(self, pointer, *offsets):
        """The element after `pointer` by the sum of `offsets`, which are LLVM integers or Python's."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [_i64(offset) if isinstance(offset, int) else offset])
        return pointer

    def times(self, n, value):
        return self.builder.mul(value, _i64(n))

    def intrinsic(self, name, result, *values):
        signature = ir.FunctionType(result, [value.type for value in values])
        known = self.llvm.module.globals
        return self.builder.call(known.get(name) or ir.Function(self.llvm.module, signature, name), values)

    def load(self, pointer, mask=None):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(pointer, align=self.size)
        return self.intrinsic(
            f"llvm.masked.load.{self.suffix}.p0", self.vector, pointer, _i32(self.size), mask, self.vector(None)
        )

    def store(self, value, pointer, mask=None):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, pointer, align=self.size)
        else:
            self.intrinsic(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), value, pointer, _i32(self.size), mask)

    def prefetch(self, pointer):
        """Fetch the cache line of `pointer` into the first cache, for writing."""
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, _i32(1), _i32(3), _i32(1))

    def shuffle(self, low, high, lanes):
        """Lane i of the result is lane `lanes[i]` of `low` and `high` side by side."""
        return self.builder.shuffle_vector(low, high, ir.VectorType(_i32, self.lanes)(lanes))

    def splat(self, scalar):
        """`scalar` in every lane."""
        undefined = ir.VectorType(scalar.type, self.lanes)(ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, _i32(0))
        return self.shuffle(first, first, [0] * self.lanes)

    def multiply_add(self, a, b, c):
        return self.intrinsic(f"llvm.fmuladd.{self.suffix}", self.vector, a, b, c)

    def columns(self, vectors):
        """Offsets of the vectors of a row, and the mask of a row that is shorter than one vector."""
        if vectors:
            return [*(v * self.lanes for v in range(vectors - 1)), self["last"]], None
        numbers = ir.VectorType(_i64, self.lanes)(list(range(self.lanes)))
        return [0], self.builder.icmp_signed("<", numbers, self.splat(self["last"]))

    def loop(self, count, carried, body):
        """Run `body(values) -> values` `count` times on the LLVM values `carried`; return what they are at the end."""
        builder, before = self.builder, self.builder.block
        inside, after = self.llvm.append_basic_block(), self.llvm.append_basic_block()
        builder.cbranch(builder.icmp_signed(">", count, _i64(0)), inside, after)
        builder.position_at_end(inside)
        starts = [count, *carried]
        values = [builder.phi(value.type) for value in starts]
        changed = [builder.sub(values[0], _i64(1)), *body(values[1:])]
        end = builder.block  # not `inside`, if the body has a loop of its own
        builder.cbranch(builder.icmp_signed(">", changed[0], _i64(0)), inside, after)
        builder.position_at_end(after)
        results = [builder.phi(value.type) for value in carried]
        for phi, start, value in zip([*values, *results], [*starts, *carried], [*changed, *changed[1:]], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, end)
        return results


_RADIXES = 1, 16, 2, 2, 2  # of the number of a kind of tile


def _write_tile(module, name, dtype, lanes, rows, vectors, turned, keeping, updating):
    f = _Function(module, name, "tile", dtype, lanes)
    columns, mask = f.columns(vectors)
    a_row, a_step = (1, f["a_stride"]) if turned else (f["a_stride"], 1)
    a_rows = [i if turned else f.times(i, a_row) for i in range(rows)]
    places = [(i, column) for i in range(rows) for column in columns]
    starts = [f.times(i, f["start_row"]) for i in range(rows)]
    outs = [f.times(i, f["out_row"]) for i in range(rows)]
    width = f.builder.add(f["last"], _i64(lanes))
    zeros = [f.vector(None)] * len(places)

    def step(values):
        a, b, kept, *sums = values
        # Hold the shorter of a's column and b's row in registers, and load the elements of the longer one by one.
        pairs = [(i, j) for i in range(rows) for j in range(len(columns))]
        pairs.sort(key=lambda ij: ij if rows > len(columns) else ij[::-1])
        factor = functools.cache(lambda i: f.splat(f.builder.load(f.at(a, a_rows[i]))))
        right = functools.cache(lambda j: f.load(f.at(b, columns[j]), mask))
        for i, j in pairs:
            at = i * len(columns) + j
            sums[at] = f.multiply_add(factor(i), right(j), sums[at])
        if keeping:
            for j, column in enumerate(columns):
                f.store(right(j), f.at(kept, column))
        return [f.at(a, a_step), f.at(b, f["b_step"]), f.at(kept, width if keeping else 0), *sums]

    def step_and_fetch(values):
        """A step, and a row of what the next tile updates: all of them at once would keep a and b waiting."""
        out, velocity, *sums = values
        for column, line in itertools.product(columns, (out, velocity)):
            f.prefetch(f.at(line, column))
        return [f.at(out, f["out_row"]), f.at(velocity, f["out_row"]), *step(sums)]

    def update(i, gradient, out, velocity):
        """A step of SGD for row i, all of it read before it is written: vectors may overlap."""
        numbers = [f.builder.load(f.at(f["NUMBERS"], i)) for i in range(4)]  # here, so as to need no register before
        rate, momentum, decay = f.splat(f.builder.fneg(numbers[0])), f.splat(numbers[1]), f.splat(numbers[3])
        nesterov = f.builder.fcmp_unordered("!=", numbers[2], numbers[2].type(0))
        at = [(f.at(out, outs[i], column), f.at(velocity, outs[i], column)) for column in columns]
        old = [(f.load(p, mask), f.load(v, mask)) for p, v in at]
        for g, (p, v), (p_at, v_at) in zip(gradient, old, at, strict=True):
            g = f.multiply_add(decay, p, g)
            v = f.multiply_add(momentum, v, g)
            speed = f.builder.select(nesterov, f.multiply_add(momentum, v, g), v)
            f.store(f.multiply_add(rate, speed, p), p_at, mask)
            f.store(v, v_at, mask)

    def one(pointers):
        a, b, start, out, velocity, kept = pointers
        if updating:  # the sums of a gradient begin with zero; meanwhile, lines that the next tile updates are fetched
            places_next, values = [f.at(x, f["out_next"]) for x in (out, velocity)], [a, b, kept, *zeros]
            first = f.builder.select(f.builder.icmp_signed("<", f["k"], _i64(rows)), f["k"], _i64(rows))
            _, _, *values = f.loop(first, [*places_next, *values], step_and_fetch)
            rest = f.builder.sub(f["k"], first)
        else:
            for i in range(rows):  # where the next tile will be may be far away: fetch it while this one runs
                f.prefetch(f.at(out, f["out_next"], outs[i], columns[0]))
            begin = [f.load(f.at(start, starts[i], column), mask) for i, column in places]
            values, rest = [a, b, kept, *begin], f["k"]
        _, _, kept, *sums = f.loop(rest, values, step)
        if updating:
            for i in range(rows):
                update(i, sums[i * len(columns) : (i + 1) * len(columns)], out, velocity)
        else:
            for total, (i, column) in zip(sums, places, strict=True):
                f.store(total, f.at(out, outs[i], column), mask)
        nexts = f["a_next"], f["b_next"], f["start_next"], f["out_next"], f["out_next"]
        return [*(f.at(pointer, offset) for pointer, offset in zip(pointers, nexts, strict=False)), kept]

    f.loop(f["count"], [f[name] for name in ("A", "B", "START", "OUT", "VELOCITY", "KEPT")], one)
    f.builder.ret_void()
    return f.llvm


def _write_copy_rows(module, name, dtype, lanes, vectors):
    f = _Function(module, name, "copy_rows", dtype, lanes)
    columns, mask = f.columns(vectors)

    def copy_row(pointers):
        source, target = pointers
        for column in columns:
            f.store(f.load(f.at(source, column), mask), f.at(target, column), mask)
        return [f.at(source, f["source_step"]), f.at(target, f["target_step"])]

    f.loop(f["count"], [f["SOURCE"], f["TARGET"]], copy_row)
    f.builder.ret_void()
    return f.llvm


def _write_transpose(module, name, dtype, side):
    """Swap the off-diagonal quarters of ever larger squares: 2x2, 4x4, 8x8."""
    f = _Function(module, name, "transpose", dtype, side)

    def square(pointers):
        source, target = pointers
        rows = [f.load(f.at(source, f.times(i, f["source_step"]))) for i in range(side)]
        distance = 1
        while distance < side:
            keep = [lane + (side - distance if lane & distance else 0) for lane in range(side)]
            swap = [lane + (side if lane & distance else distance) for lane in range(side)]
            for i in [i for i in range(side) if not i & distance]:
                low, high = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = f.shuffle(low, high, keep), f.shuffle(low, high, swap)
            distance *= 2
        for i, row in enumerate(rows):
            f.store(row, f.at(target, f.times(i, f["target_step"])))
        return [f.at(source, f["source_next"]), f.at(target, f["target_next"])]

    f.loop(f["count"], [f["SOURCE"], f["TARGET"]], square)
    f.builder.ret_void()


def _write_choice(module, name, signature, dtype, key, cases):
    """A function that hands its arguments on to the one of `cases` whose number is `key(function)`."""
    f = _Function(module, name, signature, dtype, 1)
    end = f.llvm.append_basic_block()
    choice = f.builder.switch(key(f), end)
    for number, case in cases.items():
        case.linkage = "internal"
        choice.add_case(_i64(number), f.llvm.append_basic_block())
        f.builder.position_at_end(f.llvm.blocks[-1])
        f.builder.call(case, f.llvm.args, tail=True)
        f.builder.ret_void()
    f.builder.position_at_end(end)
    f.builder.ret_void()


def _tile_number(f):
    number = _i64(0)
    for radix, digit in zip(_RADIXES, ("rows", "vectors", "turned", "keeping", "updating"), strict=True):
        number = f.builder.add(f.times(radix, number), f[digit])
    return number


def llvm_module(tile=TILE) -> str:
    """The source of `tile_float32` and its like for a CPU of the given kind."""
    module = ir.Module("scratchnet")
    for dtype in DTYPES:
        size = int(dtype[-2:]) // 8
        lanes = tile.vector_bytes // size
        tiles = {}
        for rows in range(1, tile.rows + 1):
            # Two tile heights that differ by one may stand side by side and then have one width: the larger's.
            for vectors in sorted({0, 1, 2, *tile.vectors[rows : rows + 2]}):
                keeps = (0, 1) if vectors == tile.vectors[-1] else (0,)
                for turned, keeping, updating in itertools.product((0, 1), keeps, (0, 1)):
                    name = f"tile_{dtype}_{rows}x{vectors}_{turned}{keeping}{updating}"
                    number = (((rows * 16 + vectors) * 2 + turned) * 2 + keeping) * 2 + updating
                    if turned or not updating:  # a gradient of weights has a transposed factor
                        kind = rows, vectors, turned, keeping, updating
                        tiles[number] = _write_tile(module, name, dtype, lanes, *kind)
        copies = {v: _write_copy_rows(module, f"copy_rows_{dtype}_{v}", dtype, lanes, v) for v in {0, 1, *tile.vectors}}
        _write_choice(module, f"scratchnet_tile_{dtype}", "tile", dtype, _tile_number, tiles)
        _write_choice(module, f"scratchnet_copy_rows_{dtype}", "copy_rows", dtype, lambda f: f["vectors"], copies)
        _write_transpose(module, f"scratchnet_transpose_{dtype}", dtype, min(32, tile.vector_bytes) // size)
    return str(module)


def _target_machine():
    host, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(cpu=host, features=features, opt=3, jit=True)


_engines: list = []  # own the machine code


def _load():
    """Make the functions callable by name from compiled kernels."""
    code = object_code("simd", lambda: _target_machine().emit_object(llvm.parse_assembly(llvm_module())))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    for name in SIGNATURES:
        for dtype in DTYPES:
            llvm.add_symbol(f"scratchnet_{name}_{dtype}", engine.get_function_address(f"scratchnet_{name}_{dtype}"))
    _engines.append(engine)


def _external(twin):
    """The intrinsic that calls the LLVM function of that name: an array and the offset behind it become a pointer."""
    name = twin.__name__.strip("_")

    def call(typing_context, *arguments):
        symbol = f"scratchnet_{name}_{arguments[0].dtype.name}"
        signature = types.void(*(a if isinstance(a, types.Array) else types.intp for a in arguments))

        def generate(context, builder, signature, values):
            passed = []
            pairs = zip(signature.args, values, strict=True)
            for kind, value in pairs:
                if isinstance(kind, types.Array):
                    data = context.make_array(kind)(context, builder, value).data
                    value = builder.gep(data, [next(pairs)[1]])
                passed.append(value)
            function_type = ir.FunctionType(ir.VoidType(), [value.type for value in passed])
            known = builder.module.globals
            builder.call(known.get(symbol) or ir.Function(builder.module, function_type, symbol), passed)
            return context.get_dummy_value()

        return signature, generate

    parameters = inspect.signature(twin).parameters.values()
    first = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([first, *parameters])
    return intrinsic(call)


tile, copy_rows, transpose = _tile, _copy_rows, _transpose
if JIT_ENABLED:
    before_first_kernel(_load)
    tile, copy_rows, transpose = _external(_tile), _external(_copy_rows), _external(_transpose)
