"""What the elementwise kernels do to one element, as in the reference: `scalars(dtype)` are the functions of one dtype.

Their constants are of that dtype, because a float64 constant would turn float32 arithmetic into float64.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from . import compile
from .compile import device, erfc, exp, log1p


@cache
def scalars(dtype: np.dtype) -> dict[str, Callable]:
    """name -> function, helpers of kernels."""
    number = dtype.type
    ZERO, ONE = number(0), number(1)
    HALF, SQRT_HALF = number(0.5), number(math.sqrt(0.5))
    DENSITY = number(1 / math.sqrt(2 * math.pi))

    # --- one input

    def same(x):
        return x

    def neg(x):
        return -x

    def exponential(x):
        return exp(x)

    def logarithm(x):
        return compile.log(x)

    def root(x):
        return compile.sqrt(x)

    def absolute(x):
        return abs(x)

    def sign(x):
        return x if x != x else (ONE if x > ZERO else (-ONE if x < ZERO else ZERO))

    def tangent(x):
        return compile.tanh(x)

    def sigmoid(x):
        e = exp(-abs(x))  # at most 1: no overflow on either side
        return (ONE if x >= ZERO else e) / (ONE + e)

    def relu(x):
        return ZERO if x <= ZERO else x  # NaN is not <= 0

    def error_function(x):
        return compile.erf(x)

    def softplus(x):
        return (x if x > ZERO else (ZERO if x <= ZERO else x)) + log1p(exp(-abs(x)))

    def gelu(x):
        return x * (HALF * erfc(-x * SQRT_HALF))

    # --- gradients of the activations

    def tanh_grad(g, y):
        return g * (ONE - y * y)

    def sigmoid_grad(g, y):
        return g * y * (ONE - y)

    def relu_grad(g, y):
        return g if y > ZERO else ZERO

    def gelu_grad(g, x):
        return g * (HALF * erfc(-x * SQRT_HALF) + x * (exp(-HALF * x * x) * DENSITY))

    # --- two inputs

    def add(a, b):
        return a + b

    def sub(a, b):
        return a - b

    def mul(a, b):
        return a * b

    def div(a, b):
        return a / b

    def power(a, b):
        return a**b

    def maximum(a, b):
        return a if (a >= b) | (a != a) else b

    def minimum(a, b):
        return a if (a <= b) | (a != a) else b

    def lt(a, b):
        return a < b

    def le(a, b):
        return a <= b

    def gt(a, b):
        return a > b

    def ge(a, b):
        return a >= b

    def eq(a, b):
        return a == b

    def ne(a, b):
        return a != b

    named = dict(locals())
    renamed = {
        "exponential": "exp",
        "logarithm": "log",
        "root": "sqrt",
        "absolute": "abs",
        "tangent": "tanh",
        "error_function": "erf",
        "power": "pow",
    }
    return {renamed.get(name, name): device(f) for name, f in named.items() if callable(f) and not isinstance(f, type)}
