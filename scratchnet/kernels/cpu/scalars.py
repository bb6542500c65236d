"""What the elementwise kernels do to one element, as in the reference: elementwise.py makes loops of them.

Constants are float32 where they are exact, because a float64 constant would turn float32 arithmetic into float64.
NumPy's functions, not those of `math`, so that the answers for 0, infinity and NaN are the same without the JIT.
"""

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ...native.compile import JIT_ENABLED, jit
from . import exponential

ZERO, ONE = np.float32(0), np.float32(1)

# --- one input --------------------------------------------------------------------------------------------------------


@jit
def neg(x):
    return -x


@jit
def exp(x):
    return exponential.exp(x)


@jit(inline=True)
def log(x):
    return exponential.log(x)


@jit
def sqrt(x):
    return np.sqrt(x)


@jit
def absolute(x):
    return abs(x)


@jit
def sign(x):
    return x if x != x else (ONE if x > ZERO else (-ONE if x < ZERO else ZERO))


@jit(inline=True)
def tanh(x):
    return exponential.tanh(x)


@jit(inline=True)
def sigmoid(x):
    e = exponential.exp(-abs(x))  # at most 1: no overflow on either side
    return (ONE if x >= ZERO else e) / (ONE + e)


@jit
def relu(x):
    return ZERO if x <= ZERO else x  # NaN is not <= 0


@jit(inline=True)
def erf(x):
    return exponential.erf(x)


@jit(inline=True)
def gelu(x):
    return x * exponential.normal(x)[0]


@jit(inline=True)
def softplus(x):
    e = exponential.exp(-abs(x))
    u = ONE + e  # log(1 + e) = log(u) * e / (u - 1) undoes the rounding of u (Goldberg 1991, theorem 4)
    tail = e if u == ONE else exponential.log(u) * (e / (u - ONE))
    return (x if x > ZERO else (ZERO if x <= ZERO else x)) + tail


@jit
def clip(x, low, high):
    raised = low if x < low else x
    return high if raised > high else raised


# --- gradients of the activations -------------------------------------------------------------------------------------


@jit
def tanh_grad(g, y):
    return g * (ONE - y * y)


@jit
def sigmoid_grad(g, y):
    return g * y * (ONE - y)


@jit
def relu_grad(g, y):
    return g if y > ZERO else ZERO


@jit(inline=True)
def gelu_grad(g, x):
    cdf, density = exponential.normal(x)
    return g * (cdf + x * density)


# --- two inputs -------------------------------------------------------------------------------------------------------


@jit
def add(a, b):
    return a + b


@jit
def sub(a, b):
    return a - b


@jit
def mul(a, b):
    return a * b


@jit
def div(a, b):
    return a / b


@jit
def pow(a, b):
    return a**b


@jit
def maximum(a, b):
    return a if (a >= b) | (a != a) else b  # `|` makes no branch, so the loop around vectorises


@jit
def minimum(a, b):
    return a if (a <= b) | (a != a) else b


def _folding(name, twin):
    """The LLVM intrinsic `name` of two floats: unlike a comparison, LLVM vectorises it in a fold over an array."""

    @intrinsic
    def fold(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            kind = arguments[0].type
            return builder.call(
                builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind, kind])), arguments
            )

        return a(a, b), generate

    return fold if JIT_ENABLED else twin


fold_maximum, fold_minimum = _folding("llvm.maximum", np.maximum), _folding("llvm.minimum", np.minimum)  # NaN if any is


@jit
def lt(a, b):
    return a < b


@jit
def le(a, b):
    return a <= b


@jit
def gt(a, b):
    return a > b


@jit
def ge(a, b):
    return a >= b


@jit
def eq(a, b):
    return a == b


@jit
def ne(a, b):
    return a != b
