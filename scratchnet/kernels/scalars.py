"""What each elementwise kernel does to one element: every function once, for all devices that compile.

`@elementwise` adds a function to the table, with the dtypes of its kernel (see signatures.py). `lifted` compiles the
table for a device. Where NumPy computes here, as in exp, the device has a function of its own: cpu polynomials whose
loops vectorise (exponential.py), cuda those of the GPU's library. Constants become numbers of the device's type, since
a float64 constant would turn float32 arithmetic into float64. A function may call those above it.
"""

import math
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

CONSTANTS = {"ZERO": 0, "ONE": 1, "HALF": 0.5, "SQRT_HALF": math.sqrt(0.5), "DENSITY": 1 / math.sqrt(2 * math.pi)}
ZERO, ONE, HALF, SQRT_HALF, DENSITY = map(np.float32, CONSTANTS.values())  # a lifted function has those of its device


class Scalar(NamedTuple):
    """function(x) or function(a, b). dtypes: of the kernel, None if there is none. weight: as in native/loops.py."""

    function: Callable
    dtypes: str | None
    weight: float


SCALARS: dict[str, Scalar] = {}


def elementwise(
    dtypes: str | None = None, weight: float = 1, name: str | None = None
) -> Callable[[Callable], Callable]:
    """Adds a function to the table."""

    def add(function: Callable) -> Callable:
        SCALARS[name or function.__name__] = Scalar(function, dtypes, weight)
        return function

    return add


def kernels_of(inputs: int) -> dict[str, Scalar]:
    """The elementwise kernels of one or two arrays (`clip` with its two numbers is one of one array)."""
    return {name: scalar for name, scalar in SCALARS.items() if (scalar.dtypes or "").find("->") == inputs}


def lifted(compiled: Callable[[Callable], Any], number: Callable, own: Mapping[str, Any]) -> dict[str, Any]:
    """name -> every function of the table for one device.

    compiled: the device's decorator. number: the type of its constants. own: functions that it has already.
    """
    scope: dict[str, Any] = {name: number(value) for name, value in CONSTANTS.items()}
    functions: dict[str, Any] = {}
    for name, scalar in SCALARS.items():
        source: Any = scalar.function
        bound = FunctionType(source.__code__, {**source.__globals__, **scope, **functions}, name)
        functions[name] = own[name] if name in own else compiled(bound)
    return functions


# --- one input --------------------------------------------------------------------------------------------------------


@elementwise("f->f | l->l")
def neg(x):
    return -x


@elementwise("f->f | l->l", name="abs")
def absolute(x):
    return abs(x)


@elementwise("f->f | l->l")
def sign(x):
    return x if x != x else (ONE if x > ZERO else (-ONE if x < ZERO else ZERO))


@elementwise("f->f | l->l")
def clip(x, low, high):
    raised = low if x < low else x
    return high if raised > high else raised


@elementwise("f->f", weight=8)
def exp(x):
    return np.exp(x)


@elementwise("f->f", weight=8)
def log(x):
    return np.log(x)


@elementwise("f->f", weight=8)
def log1p(x):
    return np.log1p(x)


@elementwise("f->f", weight=16)
def log2(x):
    return np.log2(x)


@elementwise("f->f", weight=16)
def log10(x):
    return np.log10(x)


@elementwise("f->f", weight=16)
def expm1(x):
    return np.expm1(x)


@elementwise("f->f", weight=16)
def sin(x):
    return np.sin(x)


@elementwise("f->f", weight=16)
def cos(x):
    return np.cos(x)


@elementwise("f->f", weight=4)
def sqrt(x):
    return np.sqrt(x)


@elementwise("f->f")
def floor(x):
    return np.floor(x)


@elementwise("f->f")
def ceil(x):
    return np.ceil(x)


@elementwise("f->f", name="round")
def nearest(x):
    return np.rint(x)


@elementwise("f->f", weight=8)
def tanh(x):
    return np.tanh(x)


@elementwise("f->f", weight=16)
def erf(x):
    return math.erf(x)


@elementwise("f->f", weight=8)
def sigmoid(x):
    e = exp(-abs(x))  # at most 1: no overflow on either side
    return (ONE if x >= ZERO else e) / (ONE + e)


@elementwise("f->f")
def relu(x):
    return ZERO if x <= ZERO else x  # NaN is not <= 0


@elementwise("f->f", weight=8)
def silu(x):
    return x * sigmoid(x)


@elementwise("f->f", weight=8)
def softplus(x):
    return relu(x) + log1p(exp(-abs(x)))


@elementwise()
def normal(x):
    """(Phi(x), phi(x)): the normal distribution function and its density."""
    return HALF * math.erfc(-x * SQRT_HALF), exp(-HALF * x * x) * DENSITY


@elementwise("f->f", weight=16)
def gelu(x):
    return x * normal(x)[0]


FADES = 2.0**26  # times the smallest normal number: a parameter that weight decay brought below is zero (cpu/optim.py)


@elementwise()
def flushed(x):
    """x, or 0 where it is subnormal."""
    return type(x)(0) if abs(x) < np.finfo(type(x)).tiny else x


# --- half precision: bits of one type to those of another, as integers; to the nearest, ties to even ------------------


@elementwise()
def to_bfloat16(x):
    """The bits of a bfloat16, the upper half of a float32; NaN stays NaN."""
    x = np.int64(x)
    if x & 0x7FFFFFFF > 0x7F800000:
        return x >> 16 | 0x40
    return x + 0x7FFF + (x >> 16 & 1) >> 16


@elementwise()
def from_bfloat16(x):
    return np.int64(x) << 16


@elementwise()
def to_float16(x):
    """The bits of a float16: 5 of the exponent, 10 of the fraction; 0x7C00 is infinity."""
    x = np.int64(x)
    sign, x = x >> 16 & 0x8000, x & 0x7FFFFFFF
    if x > 0x7F800000:  # NaN
        return sign | 0x7E00 | (x >> 13 & 0x3FF)
    if x >= 0x38800000:  # normal numbers, from 2**-14 on; a carry of the rounding goes into the exponent
        x -= 112 << 23
        return sign | min(x + 0xFFF + (x >> 13 & 1) >> 13, 0x7C00)
    last = min(126 - (x >> 23), 26)  # subnormal ones are multiples of 2**-24: bits below `last` are rounded
    x = x & 0x7FFFFF | 0x800000
    return sign | x + (1 << last - 1) - 1 + (x >> last & 1) >> last


@elementwise()
def from_float16(x):
    x = np.int64(x)
    sign, exponent, fraction = (x & 0x8000) << 16, x >> 10 & 31, x & 0x3FF
    if exponent == 31:
        return sign | 0x7F800000 | fraction << 13
    if exponent == 0:
        if fraction == 0:
            return sign
        exponent = exponent + 1
        while fraction < 0x400:
            exponent, fraction = exponent - 1, fraction << 1
    return sign | exponent + 112 << 23 | (fraction & 0x3FF) << 13


# --- gradients of the activations -------------------------------------------------------------------------------------


@elementwise("ff->f")
def tanh_grad(g, y):
    return g * (ONE - y * y)


@elementwise("ff->f")
def sigmoid_grad(g, y):
    return g * y * (ONE - y)


@elementwise("ff->f")
def relu_grad(g, y):
    return g if y > ZERO else ZERO


@elementwise("ff->f", weight=16)
def gelu_grad(g, x):
    cdf, density = normal(x)
    return g * (cdf + x * density)


# --- two inputs -------------------------------------------------------------------------------------------------------


@elementwise("ff->f | ll->l ??->?")
def add(a, b):
    return a + b


@elementwise("ff->f | ll->l")
def sub(a, b):
    return a - b


@elementwise("ff->f | ll->l ??->?")
def mul(a, b):
    return a * b


@elementwise("ff->f", weight=4)
def div(a, b):
    return a / b


@elementwise("ff->f", weight=32)
def pow(a, b):
    return a**b


@elementwise("ff->f | ll->l")
def maximum(a, b):
    return a if (a >= b) | (a != a) else b  # `|` makes no branch, so a loop around it vectorises


@elementwise("ff->f | ll->l")
def minimum(a, b):
    return a if (a <= b) | (a != a) else b


@elementwise("ff->? | ll->? ??->?")
def lt(a, b):
    return a < b


@elementwise("ff->? | ll->? ??->?")
def le(a, b):
    return a <= b


@elementwise("ff->? | ll->? ??->?")
def gt(a, b):
    return a > b


@elementwise("ff->? | ll->? ??->?")
def ge(a, b):
    return a >= b


@elementwise("ff->? | ll->? ??->?")
def eq(a, b):
    return a == b


@elementwise("ff->? | ll->? ??->?")
def ne(a, b):
    return a != b
