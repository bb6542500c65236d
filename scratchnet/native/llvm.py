"""Functions on vectors written in LLVM's own language, and how kernels call them.

Numba compiles loops over numbers, and the compiler may or may not turn them into loops over vectors. Where that is not
good enough (simd.py), a `Function` is written instruction by instruction. `provide` compiles a module of functions when
it is needed; `external` makes a kernel's call of the plain Python twin a call of the function with the twin's name.
"""

import inspect
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .aligned import aligned
from .cache import define_functions_in, define_later, object_code


class Operand(NamedTuple):
    """A matrix in memory: it begins with element `at` of `array`, read as one long row; a row is `row` elements long.

    Functions that do several blocks in one call find the next block `next` elements after the one before.
    """

    array: np.ndarray
    at: int
    row: int
    next: int


DTYPES = {"float32": ir.FloatType(), "float64": ir.DoubleType()}

i32, i64 = ir.IntType(32), ir.IntType(64)


def _parameters(twin):
    """The parameters of the LLVM function for a twin: {name: is it a pointer?}; the others are integers.

    An Operand `a` becomes the pointer `a` and the integers `a_row` and `a_next`, any other record its fields.
    """
    found: dict[str, bool] = {}
    for name, parameter in inspect.signature(twin).parameters.items():
        if parameter.annotation is Operand:
            found |= {name: True, f"{name}_row": False, f"{name}_next": False}
        else:
            found |= dict.fromkeys(getattr(parameter.annotation, "_fields", (name,)), False)
    return found


class Function:
    """An LLVM function on vectors of `lanes` elements, being written. Its arguments are its items."""

    def __init__(self, module, name, twin, dtype, lanes):
        self.size, self.lanes, self.vector = int(dtype[-2:]) // 8, lanes, ir.VectorType(DTYPES[dtype], lanes)
        self.suffix = f"v{lanes}f{8 * self.size}"
        names = _parameters(twin)
        kinds = [DTYPES[dtype].as_pointer() if is_pointer else i64 for is_pointer in names.values()]
        self.llvm = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.builder = ir.IRBuilder(self.llvm.append_basic_block())
        self.arguments = dict(zip(names, self.llvm.args, strict=True))

    def __getitem__(self, name):
        return self.arguments[name]

    def at(self, pointer, *offsets):
        """The element after `pointer` by the sum of `offsets`, which are LLVM integers or Python's."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [i64(offset) if isinstance(offset, int) else offset])
        return pointer

    def times(self, n, value):
        return self.builder.mul(value, i64(n))

    def equal(self, value, n):
        """Is this integer n? 1 or 0."""
        return self.builder.zext(self.builder.icmp_signed("==", value, i64(n)), i64)

    def intrinsic(self, name, result, *values):
        signature = ir.FunctionType(result, [value.type for value in values])
        known = self.llvm.module.globals
        return self.builder.call(known.get(name) or ir.Function(self.llvm.module, signature, name), values)

    def load(self, pointer, mask=None):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(pointer, align=self.size)
        return self.intrinsic(
            f"llvm.masked.load.{self.suffix}.p0", self.vector, pointer, i32(self.size), mask, self.vector(None)
        )

    def store(self, value, pointer, mask=None):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, pointer, align=self.size)
        else:
            self.intrinsic(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), value, pointer, i32(self.size), mask)

    def prefetch(self, pointer, writes=1):
        """Fetch the cache line of `pointer` into the first cache, for writing or reading."""
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, i32(writes), i32(3), i32(1))

    def shuffle(self, low, high, lanes):
        """Lane i of the result is lane `lanes[i]` of `low` and `high` side by side."""
        return self.builder.shuffle_vector(low, high, ir.VectorType(i32, self.lanes)(lanes))

    def transposed(self, rows):
        """As many vectors as they have lanes, transposed: blocks of 16 bytes change places, then elements within them.

        The latter costs least, as no element leaves its block.
        """
        per_block, count = 16 // self.size, self.lanes * self.size // 16
        blocks = [self._transposed_blocks(rows[i::per_block], per_block, count) for i in range(per_block)]
        return [
            column for group in zip(*blocks, strict=True) for column in self._transposed_blocks(group, 1, per_block)
        ]

    def _transposed_blocks(self, rows, size, count):
        """`count` vectors, transposed in each run of `count` blocks of `size` elements; count: 1, 2 or 4."""
        runs = range(0, self.lanes, size * count)

        def pick(pair, blocks):
            """Of each run the blocks (of the first or the second vector, which one)."""
            places = [run + size * i + self.lanes * k for run in runs for k, i in blocks]
            low, high = pair
            return self.shuffle(low, high, [place + j for place in places for j in range(size)])

        if count == 1:
            return list(rows)
        if count == 2:
            return [pick(rows, [(0, i), (1, i)]) for i in (0, 1)]
        halves = [[pick(rows[k : k + 2], [(0, i), (0, i + 1), (1, i), (1, i + 1)]) for i in (0, 2)] for k in (0, 2)]
        pairs = list(zip(*halves, strict=True))
        return [pick(pair, [(0, i), (0, i + 2), (1, i), (1, i + 2)]) for pair in pairs for i in (0, 1)]

    def splat(self, scalar):
        """`scalar` in every lane."""
        undefined = ir.VectorType(scalar.type, self.lanes)(ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, i32(0))
        return self.shuffle(first, first, [0] * self.lanes)

    def multiply_add(self, a, b, c):
        return self.intrinsic(f"llvm.fmuladd.{self.suffix}", self.vector, a, b, c)

    def add(self, a, b):
        return self.builder.fadd(a, b)

    def multiply(self, a, b):
        return self.builder.fmul(a, b)

    def divide(self, a, b):
        return self.builder.fdiv(a, b)

    def negative(self, x):
        return self.builder.fneg(x)

    def root(self, x):
        return self.intrinsic(f"llvm.sqrt.{self.suffix}", self.vector, x)

    def where(self, condition, a, b):
        """a if `condition`, which is one number in every lane, is not 0, else b."""
        number = self.builder.extract_element(condition, i32(0))
        return self.builder.select(self.builder.fcmp_unordered("!=", number, number.type(0)), a, b)

    def flushed(self, x, least=None):
        """x, with 0 where it is subnormal, as in scalars.py: one test of the exponent, which needs one constant.

        least: a vector; 0 is where x is below so many times the smallest normal number.
        """
        if least is not None:
            smallest = self.vector([float(np.finfo(f"float{8 * self.size}").tiny)] * self.lanes)
            magnitude = self.intrinsic(f"llvm.fabs.{self.suffix}", self.vector, x)
            small = self.builder.fcmp_ordered("<", magnitude, self.builder.fmul(least, smallest))
            return self.builder.select(small, self.vector(None), x)
        mask = ir.VectorType(ir.IntType(1), self.lanes)
        classes = i32(0xF0)  # both subnormals and both zeros
        small = self.intrinsic(f"llvm.is.fpclass.{self.suffix}", mask, x, classes)
        return self.builder.select(small, self.vector(None), x)

    def rounded(self, x):
        """x, float32, rounded to the nearest bfloat16, ties to even: the upper half of its bits; a NaN stays one."""
        numbers = ir.VectorType(i32, self.lanes)
        constant = lambda value: numbers([value] * self.lanes)  # noqa: E731
        bits = self.builder.bitcast(x, numbers)
        last = self.builder.and_(self.builder.lshr(bits, constant(16)), constant(1))
        near = self.builder.add(self.builder.add(bits, constant(0x7FFF)), last)
        is_nan = self.builder.fcmp_unordered("uno", x, x)
        near = self.builder.select(is_nan, self.builder.or_(bits, constant(0x400000)), near)
        return self.builder.bitcast(self.builder.and_(near, constant(-0x10000)), self.vector)

    def columns(self, vectors):
        """Offsets of the vectors of a row, and the mask of a row that is shorter than one vector."""
        if vectors:
            return [*(v * self.lanes for v in range(vectors - 1)), self["last"]], None
        numbers = ir.VectorType(i64, self.lanes)(list(range(self.lanes)))
        return [0], self.builder.icmp_signed("<", numbers, self.splat(self["last"]))

    def loop(self, count, carried, body, copies=1):
        """Run `body(values) -> values` `count` times on the LLVM values `carried`; return what they are at the end.

        copies: of the body, one after the other, so that only the last of them jumps back. Each may be the last run.
        """
        builder, before = self.builder, self.builder.block
        inside, after = [self.llvm.append_basic_block() for _ in range(copies)], self.llvm.append_basic_block()
        builder.cbranch(builder.icmp_signed(">", count, i64(0)), inside[0], after)
        builder.position_at_end(inside[0])
        starts = [count, *carried]
        values = phis = [builder.phi(value.type) for value in starts]
        ends = [(before, starts)]
        for following in [*inside[1:], inside[0]]:
            values = [builder.sub(values[0], i64(1)), *body(values[1:])]
            ends.append((builder.block, values))  # not the block that `body` began in, if it has a loop of its own
            builder.cbranch(builder.icmp_signed(">", values[0], i64(0)), following, after)
            builder.position_at_end(following)
        for phi, start, value in zip(phis, starts, values, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, ends[-1][0])
        builder.position_at_end(after)
        results = [builder.phi(value.type) for value in carried]
        for block, at_end in ends:
            for phi, value in zip(results, at_end[1:], strict=True):
                phi.add_incoming(value, block)
        return results

    def when(self, condition, carried, body):
        """`body()` where the integer `condition` is not 0, else `carried`: LLVM values."""
        builder, before = self.builder, self.builder.block
        inside, after = self.llvm.append_basic_block(), self.llvm.append_basic_block()
        builder.cbranch(builder.icmp_signed("!=", condition, i64(0)), inside, after)
        builder.position_at_end(inside)
        values = body()
        end = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        results = [builder.phi(value.type) for value in carried]
        for phi, value, unchanged in zip(results, values, carried, strict=True):
            phi.add_incoming(value, end)
            phi.add_incoming(unchanged, before)
        return results


def write_choice(module, twin, dtype, cases, **radixes):
    """The function that kernels call: it hands its arguments on to one of `cases`.

    A case is a function, and its key the values of those arguments that are the names in `radixes`. Each such value is
    below its radix, so together they are the digits of one number, by which the function jumps.
    """
    f = Function(module, symbol(twin, dtype), twin, dtype, 1)
    end, number = f.llvm.append_basic_block(), i64(0)
    for name, radix in radixes.items():
        number = f.builder.add(f.times(radix, number), f[name])
    choice = f.builder.switch(number, end)
    for key, case in cases.items():
        code = 0
        for digit, radix in zip(key, radixes.values(), strict=True):
            code = code * radix + digit
        case.linkage = "internal"
        choice.add_case(i64(code), f.llvm.append_basic_block())
        f.builder.position_at_end(f.llvm.blocks[-1])
        f.builder.call(case, f.llvm.args, tail=True)
        f.builder.ret_void()
    f.builder.position_at_end(end)
    f.builder.ret_void()


def symbol(twin, dtype):
    """The name of the LLVM function for a twin."""
    return f"scratchnet{twin.__name__}_{dtype}"


def _target_machine():
    host, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(cpu=host, features=features, opt=3, jit=True)


_engines: list = []  # own the machine code


def provide(file, source, names):
    """Let kernels call the functions of these names, which the LLVM text `source()` defines.

    It is compiled, or its code taken from the cache, before a kernel that calls one of them runs. Most programs never
    need float64, and the tiles of one type take seconds.
    """

    def load():
        code = object_code(file, lambda: _target_machine().emit_object(llvm.parse_assembly(source())))
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        for name in names:
            llvm.add_symbol(name, engine.get_function_address(name))
        _engines.append(engine)

    define_later(names, load)


def settings(name, count):
    """(int64 memory for `count` numbers, the function by which kernels read number `at` of it when they run).

    So these numbers can change without compiling anything anew: machine code knows the memory by `name`.
    """
    memory = aligned(count, np.dtype(np.int64))
    llvm.add_symbol(name, memory.ctypes.data)

    def typed(typing_context, at):
        def generate(context, builder, signature, values):
            module, kind = builder.module, ir.ArrayType(i64, count)
            known = module.globals.get(name)
            if known is None:
                known = ir.GlobalVariable(module, kind, name)  # external: it has no initial value
            return builder.load(builder.gep(known, [i64(0), context.cast(builder, values[0], at, types.intp)]))

        return types.int64(types.intp), generate

    return memory, intrinsic(typed)


def call(builder, name, values):
    """Write a call of a function of `provide`."""
    define_functions_in(name.encode())
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), values)


def external(twin):
    """The intrinsic that calls the LLVM function for a twin."""

    def flat(context, builder, kind, value):
        """The LLVM arguments that an argument becomes, see `_parameters`."""
        if not isinstance(kind, types.BaseTuple):
            return [context.cast(builder, value, kind, types.intp)]
        kinds, values = list(kind.types), cgutils.unpack_tuple(builder, value)
        first = []
        if isinstance(kinds[0], types.Array):
            data = context.make_array(kinds[0])(context, builder, values[0]).data
            first = [builder.gep(data, [context.cast(builder, values[1], kinds[1], types.intp)])]
            kinds, values = kinds[2:], values[2:]
        return first + [context.cast(builder, v, k, types.intp) for k, v in zip(kinds, values, strict=True)]

    def typed(typing_context, *arguments):
        name = symbol(twin, arguments[0].types[0].dtype.name)
        signature = types.void(*arguments)

        def generate(context, builder, signature, values):
            pairs = zip(signature.args, values, strict=True)
            call(builder, name, [x for kind, value in pairs for x in flat(context, builder, kind, value)])
            return context.get_dummy_value()

        return signature, generate

    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(twin).parameters.values()]
    first = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    typed.__signature__ = inspect.Signature([first, *parameters])
    return intrinsic(typed)
