"""The kernels of the `cuda` table as OpenCL C: their Python source, translated for the arguments of one launch.

A kernel is a small language: numbers, arrays of one dimension, tuples, helpers, `for` over a range, `while`, `if`. What
it closes over is known here, so it becomes a constant, and a branch that a constant decides is the only one that is
translated. Types are those that Numba would find: a number of NumPy's promotion rules, and a variable has the type of
all that is assigned to it. A tuple is never there at run time, except as what a helper returns.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import operator
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.np.numpy_support import as_dtype

from ...errors import DeviceError

TYPES = {  # NumPy's letter of a number -> OpenCL's name
    "?": "bool", "B": "uchar", "H": "ushort", "i": "int", "I": "uint", "q": "long", "Q": "ulong", "f": "float",
    "d": "double",
}  # fmt: skip
OPERATORS: dict[type, tuple[str, Callable]] = {
    ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv), ast.FloorDiv: ("", operator.floordiv), ast.Mod: ("", operator.mod),
    ast.BitAnd: ("&", operator.and_), ast.BitOr: ("|", operator.or_), ast.BitXor: ("^", operator.xor),
    ast.LShift: ("<<", operator.lshift), ast.RShift: (">>", operator.rshift), ast.Pow: ("", operator.pow),
    ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt), ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne),
}  # fmt: skip
LIBRARY = "exp log log1p log2 log10 expm1 sin cos sqrt tanh erf erfc floor ceil rint"
CASTS = {"bits_of_float": ("as_uint", "I"), "float_of_bits": ("as_float", "f")}
HEADER = """
#pragma OPENCL FP_CONTRACT OFF
long divided(long a, long b) { long q = a / b; return q - ((a % b != 0) & ((a < 0) != (b < 0))); }
long rest_of(long a, long b) { return a - divided(a, b) * b; }
"""


class Number(NamedTuple):
    """An expression of OpenCL C and its type, a letter of TYPES."""

    text: str
    kind: str


class Array(NamedTuple):
    """A pointer to elements of a type in a space ("__global", "__local" or "__private"), and how many there are."""

    text: str
    kind: str
    space: str
    size: str


class Constant(NamedTuple):
    """What is known before the kernel runs: a number, a function, a type, a module."""

    value: Any


def _argument(code: Any) -> Any:
    """What an argument of this code (see cuda/machine_code.py) is, but for its name."""
    if isinstance(code, tuple):
        return tuple(map(_argument, code))
    return Array("", letter(code[1]), "__global", "") if code[0] == "[" else Number("", code)


def letter(dtype: Any) -> str:
    """Of a dtype; NumPy has two for integers of 8 bytes."""
    return np.dtype(dtype).char.replace("l", "q").replace("L", "Q")


def _stored(kind: str) -> str:
    """A type in memory, where a bool is a byte."""
    return "uchar" if kind == "?" else TYPES[kind]


def translated(function: Callable, codes: Sequence[Any]) -> str:
    """The program whose kernel is called `run`."""
    program = _Program()
    _, declared, inside = _passed(map(_argument, codes), "a")
    body, _ = program.body(function, inside)
    return f"{HEADER}{''.join(program.helpers)}\n__kernel void run({', '.join(declared)}) {{\n{body}}}\n"


class _Program:
    """The helpers of a kernel, each once for all its calls with arguments of the same types."""

    def __init__(self) -> None:
        self.helpers: list[str] = []
        self.known: dict[Any, tuple[str, Any]] = {}
        self.numbers = itertools.count()

    def body(self, function: Callable, arguments: Sequence[Any]) -> tuple[str, Any]:
        """The statements of a function, declarations first, and the type of what it returns."""
        kinds: dict[str, str] = {}
        while True:  # until no variable gets a wider type
            before = dict(kinds)
            made = _Function(self, function, arguments, kinds)
            made.statements(made.definition.body)
            if kinds == before:
                return "".join(f"{TYPES[kind]} {name};\n" for name, kind in kinds.items()) + made.text, made.returned

    def call(self, function: Callable, arguments: Sequence[Any]) -> Any:
        """A call of a helper, as a value."""
        flat, declared, inside = _passed(arguments, "p")
        key = function, repr(inside)
        if key not in self.known:
            body, returned = self.body(function, inside)
            name = f"{function.__name__}_{next(self.numbers)}"
            result = "void"
            if isinstance(returned, tuple):
                result = f"{name}_t"
                body = body.replace("RESULT", result)
                fields = "".join(f"{TYPES[kind]} f{i}; " for i, kind in enumerate(returned))
                self.helpers.append(f"typedef struct {{ {fields}}} {result};\n")
            elif returned is not None:
                result = TYPES[returned]
            self.helpers.append(f"{result} {name}({', '.join(declared)}) {{\n{body}}}\n")
            self.known[key] = name, returned
        name, returned = self.known[key]
        return Number(f"{name}({', '.join(flat)})", returned)


def _passed(arguments: Iterable[Any], prefix: str) -> tuple[list[str], list[str], list[Any]]:
    """The arguments of a helper where it is called, its parameters, and what they are inside of it."""
    flat: list[str] = []
    declared: list[str] = []
    inside: list[Any] = []
    for i, x in enumerate(arguments):
        name = f"{prefix}{i}"
        if type(x) is tuple:
            parts = _passed(x, f"{name}_")
            flat, declared = flat + parts[0], declared + parts[1]
            inside.append(tuple(parts[2]))
        elif isinstance(x, Array):
            flat += [x.text, x.size]
            declared += [f"{x.space} {_stored(x.kind)} *{name}", f"long {name}_n"]
            inside.append(Array(name, x.kind, x.space, f"{name}_n"))
        elif isinstance(x, Number):
            flat.append(x.text)
            declared.append(f"{_stored(x.kind)} {name}")
            inside.append(Number(name, x.kind))
        else:
            inside.append(x)
    return flat, declared, inside


class _Function:
    """One translation of a function. `kinds`: the types of its variables, as far as they are known."""

    def __init__(self, program: _Program, function: Callable, arguments: Sequence[Any], kinds: dict[str, str]):
        self.program, self.function, self.kinds, self.text = program, function, kinds, ""
        self.returned: Any = None  # the type of what it returns, or the types of a tuple
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(function)))
        self.definition = tree.body[0]
        names = [x.arg for x in self.definition.args.args]
        self.values: dict[str, Any] = {}
        assigned = {x.id for x in ast.walk(self.definition) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        for name, value in zip(names, arguments, strict=True):
            if name in assigned and isinstance(value, Number | Constant):
                self.assign(name, value)
            else:
                self.values[name] = value
        known = inspect.getclosurevars(function)
        self.scope = {**vars(builtins), **vars(sys.modules[function.__module__]), **known.globals, **known.nonlocals}

    # --- statements -----------------------------------------------------------------------------------------------

    def statements(self, nodes: Iterable[ast.stmt]) -> None:
        for node in nodes:
            getattr(self, f"do_{type(node).__name__}", self._refuse)(node)

    def _refuse(self, node: Any) -> Any:
        what = f"{self.function.__name__}, line {getattr(node, 'lineno', '?')} of it"
        raise DeviceError(f"opencl: expected what source.py translates, got {type(node).__name__} in {what}")

    def put(self, text: str) -> None:
        self.text += text + "\n"

    def do_Expr(self, node: Any) -> None:
        if not isinstance(node.value, ast.Constant):
            self.put(f"{self.value(node.value).text};")

    def do_Assign(self, node: Any) -> None:
        (target,) = node.targets
        self.store(target, self.value(node.value))

    def do_AugAssign(self, node: Any) -> None:
        load = ast.parse(ast.unparse(node.target), mode="eval").body
        self.store(node.target, self.value(ast.copy_location(ast.BinOp(load, node.op, node.value), node)))

    def store(self, target: Any, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            # All is computed before anything is written; arrays and constants only get names.
            parts = [self._kept(x) if isinstance(x, Number) else x for x in value]
            for x, part in zip(target.elts, parts, strict=True):
                self.store(x, part)
        elif isinstance(target, ast.Name):
            self.assign(target.id, value)
        else:
            array = self.value(target.value)
            kind, number = array.kind, self.number(value)
            text = f"({number.text}) != 0" if kind == "?" else cast(number, kind)
            self.put(f"{array.text}[{self.number(self.value(target.slice)).text}] = {text};")

    def assign(self, name: str, value: Any) -> None:
        if isinstance(value, Constant) and isinstance(value.value, bool | int | float | np.generic):
            value = literal(value.value)
        if not isinstance(value, Number):
            self.values[name] = value  # an array, a tuple, a type
            return
        own = f"v_{name}"
        self.kinds[own] = promoted(self.kinds.get(own, value.kind), value.kind)
        self.values[name] = Number(own, self.kinds[own])
        self.put(f"{own} = {value.text};")

    def _kept(self, x: Number) -> Number:
        name = f"t{next(self.program.numbers)}"
        self.put(f"{TYPES[x.kind]} {name} = {x.text};")
        return Number(name, x.kind)

    def do_If(self, node: Any) -> None:
        test = self.value(node.test)
        if isinstance(test, Constant):
            self.statements(node.body if test.value else node.orelse)
            return
        self.put(f"if ({test.text}) {{")
        self.statements(node.body)
        if node.orelse:
            self.put("} else {")
            self.statements(node.orelse)
        self.put("}")

    def do_For(self, node: Any) -> None:
        bounds = [self.number(self.value(x)).text for x in node.iter.args]
        start, end, step = {1: ["0", *bounds, "1"], 2: [*bounds, "1"], 3: bounds}[len(bounds)]
        i = f"i{next(self.program.numbers)}"
        self.put(f"for (long {i} = {start}, {i}_end = {end}, {i}_step = {step}; {i} < {i}_end; {i} += {i}_step) {{")
        self.assign(node.target.id, Number(i, "q"))
        self.statements(node.body)
        self.put("}")

    def do_While(self, node: Any) -> None:
        self.put("while (1) {")  # the test may need statements of its own
        self.put(f"if (!({self.number(self.value(node.test)).text})) break;")
        self.statements(node.body)
        self.put("}")

    def do_Return(self, node: Any) -> None:
        value = None if node.value is None else self.value(node.value)
        if value is None:
            self.put("return;")
        elif type(value) is tuple:
            parts = [self.number(x) for x in value]
            self.returned = tuple(x.kind for x in parts)
            self.put(f"return (RESULT){{{', '.join(x.text for x in parts)}}};")
        else:
            number = self.number(value)
            self.returned = number.kind if self.returned is None else promoted(self.returned, number.kind)
            self.put(f"return {number.text};")

    # --- expressions ----------------------------------------------------------------------------------------------

    def value(self, node: Any) -> Any:
        return getattr(self, f"of_{type(node).__name__}", self._refuse)(node)

    def number(self, value: Any) -> Number:
        return literal(value.value) if isinstance(value, Constant) else value

    def of_Constant(self, node: Any) -> Any:
        return Constant(node.value)

    def of_Name(self, node: Any) -> Any:
        if node.id in self.values:
            return self.values[node.id]
        found = self.scope[node.id]
        return tuple(map(Constant, found)) if type(found) is tuple else Constant(found)

    def of_Tuple(self, node: Any) -> Any:
        return tuple(self.value(x) for x in node.elts)

    def of_Attribute(self, node: Any) -> Any:
        text = ast.unparse(node)
        if text.startswith("cuda."):
            return self._place(*text.split(".")[1:])
        value = self.value(node.value)
        if isinstance(value, Array) and node.attr == "size":
            return Number(value.size, "q")
        return Constant(getattr(value.value, node.attr))

    def _place(self, what: str, axis: str = "") -> Any:
        function = {"threadIdx": "get_local_id", "blockIdx": "get_group_id", "gridDim": "get_num_groups"}.get(what)
        return Number(f"(long){function}({'xy'.index(axis)})", "q") if function else Constant(f"cuda.{what}.{axis}")

    def of_Subscript(self, node: Any) -> Any:
        value, index = self.value(node.value), self.value(node.slice)
        if type(value) is tuple:
            return value[index.value]
        return Number(f"{value.text}[{self.number(index).text}]", value.kind)

    def of_UnaryOp(self, node: Any) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return Constant(not value.value) if isinstance(value, Constant) else Number(f"(!{value.text})", "?")
        if isinstance(value, Constant):
            return Constant(-value.value)
        return Number(f"(-{value.text})", value.kind)

    def of_BoolOp(self, node: Any) -> Any:
        decides, sign = (False, "&&") if isinstance(node.op, ast.And) else (True, "||")
        parts = []
        for x in node.values:
            value = self.value(x)
            if not isinstance(value, Constant):
                parts.append(value.text)
            elif bool(value.value) is decides:
                parts.append("01"[decides])
                break
        if not parts:
            return Constant(not decides)
        return Constant(decides) if parts == ["01"[decides]] else Number(f"({f' {sign} '.join(parts)})", "?")

    def of_Compare(self, node: Any) -> Any:
        values = [self.value(x) for x in (node.left, *node.comparators)]
        found = [self._operation(type(op), *pair) for op, *pair in zip(node.ops, values, values[1:], strict=False)]
        return found[0] if len(found) == 1 else Number(f"({' && '.join(x.text for x in found)})", "?")

    def of_IfExp(self, node: Any) -> Any:
        test = self.value(node.test)
        if isinstance(test, Constant):
            return self.value(node.body if test.value else node.orelse)
        a, b = self.number(self.value(node.body)), self.number(self.value(node.orelse))
        kind = promoted(a.kind, b.kind)
        return Number(f"({test.text} ? {cast(a, kind)} : {cast(b, kind)})", kind)

    def of_BinOp(self, node: Any) -> Any:
        return self._operation(type(node.op), self.value(node.left), self.value(node.right))

    def _operation(self, op: type, left: Any, right: Any) -> Any:
        sign, function = OPERATORS[op]
        if isinstance(left, Constant) and isinstance(right, Constant):
            return Constant(function(left.value, right.value))
        a, b = self.number(left), self.number(right)
        kind = promoted(a.kind, b.kind)
        if op in (ast.FloorDiv, ast.Mod):
            return Number(f"{'divided' if op is ast.FloorDiv else 'rest_of'}({a.text}, {b.text})", "q")
        if op is ast.Pow:
            return Number(f"pow({cast(a, kind)}, {cast(b, kind)})", kind)
        kind = "d" if op is ast.Div and kind not in "fd" else kind
        text = f"({cast(a, kind)} {sign} {cast(b, kind)})"
        if issubclass(op, ast.cmpop):
            return Number(text, "?")
        return Number(f"({text} != 0)" if kind == "?" else text, kind)  # of bools a sum is "or", a product "and"

    # --- calls ----------------------------------------------------------------------------------------------------

    def of_Call(self, node: Any) -> Any:
        text = ast.unparse(node.func)
        if text.startswith("cuda."):
            return self._of_cuda(text[5:], [self.value(x) for x in node.args])
        if node.keywords:
            self._refuse(node.keywords[0])
        function, arguments = self.value(node.func).value, [self.value(x) for x in node.args]
        name = getattr(function, "__name__", "")
        if function is type:
            return Constant(np.dtype(arguments[0].kind).type)
        if name in ("load_wide", "store_wide"):
            return self._moved(*arguments)
        if name in CASTS:
            return Number(f"{CASTS[name][0]}({self.number(arguments[0]).text})", CASTS[name][1])
        if function in (min, max):
            a, b = map(self.number, arguments)
            widest = promoted(a.kind, b.kind)
            return Number(f"{name}({cast(a, widest)}, {cast(b, widest)})", widest)
        if (kind := _kind_of(function)) is not None:
            return Number(cast(self.number(arguments[0]), kind), kind)
        if function is abs or name in LIBRARY.split():
            return self._of_library(name, self.number(arguments[0]))
        result = self.program.call(function, arguments)
        if not isinstance(result.kind, tuple):
            return result
        struct = f"t{next(self.program.numbers)}"
        self.put(f"{result.text.partition('(')[0]}_t {struct} = {result.text};")
        return tuple(Number(f"{struct}.f{i}", kind) for i, kind in enumerate(result.kind))

    def _of_library(self, name: str, x: Number) -> Number:
        if name == "abs":
            return Number(f"fabs({x.text})" if x.kind in "fd" else f"({x.text} < 0 ? -{x.text} : {x.text})", x.kind)
        kind = x.kind if x.kind in "fd" else "d"
        return Number(f"{name}({cast(x, kind)})", kind)

    def _moved(self, source: Array, i: Any, target: Array, j: Any) -> Number:
        width = 16 // np.dtype(source.kind).itemsize
        at, to = self.number(i).text, self.number(j).text
        return Number(f"vstore{width}(vload{width}(0, {source.text} + {at}), 0, {target.text} + {to})", "q")

    def _of_cuda(self, name: str, arguments: list[Any]) -> Any:
        if name in ("grid", "gridsize"):
            function = "get_global_id" if name == "grid" else "get_global_size"
            axes = tuple(Number(f"(long){function}({i})", "q") for i in range(arguments[0].value))
            return axes if len(axes) == 2 else axes[0]
        if name == "syncthreads":
            return Number("barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)", "q")
        if name in ("shared.array", "local.array"):
            size, kind = arguments[0].value, _kind_of(arguments[1].value)
            space = "__local" if name[0] == "s" else "__private"
            array = f"m{next(self.program.numbers)}"
            self.put(f"{space} {_stored(kind or '')} {array}[{size}] __attribute__((aligned(16)));")
            return Array(array, kind or "", space, str(size))
        raise DeviceError(f"opencl: expected what source.py translates, got cuda.{name} in {self.function.__name__}")


def _kind_of(x: Any) -> str | None:
    """The letter of a type of NumPy's or Numba's; None if it is none."""
    if isinstance(x, numba.types.Type):
        return letter(as_dtype(x))
    return letter(x) if isinstance(x, type) and issubclass(x, np.generic) else None


def promoted(a: str, b: str) -> str:
    """The type of a sum of two types."""
    return a if a == b else letter(np.promote_types(a, b))


def cast(x: Number, kind: str) -> str:
    """x as another type."""
    return x.text if x.kind == kind else f"(({TYPES[kind]}){x.text})"


def literal(x: Any) -> Number:
    """A number of Python's or NumPy's in OpenCL C."""
    kind = letter(x.dtype) if isinstance(x, np.generic) else {bool: "?", int: "q", float: "d"}[type(x)]
    if kind in "fd":
        text = float(x).hex() if np.isfinite(x) else f"{'-' if x < 0 else ''}INFINITY" if x == x else "NAN"
        return Number(f"{text}f" if np.isfinite(x) and kind == "f" else f"(({TYPES[kind]}){text})", kind)
    if kind == "?":
        return Number(str(int(x)), kind)
    if kind == "q" and x >= 0:
        return Number(f"{int(x)}L", kind)
    return Number(f"(({TYPES[kind]}){int(x) & 2**64 - 1}UL)", kind)
