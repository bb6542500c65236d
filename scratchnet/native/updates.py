"""The rules by which an optimizer's parameters change, as a tile applies them to the gradient that it holds.

A rule says it in operations of `f`, so that one text serves vectors in LLVM (llvm.Function) and NumPy (Plain):
`rule(f, number, p, g, *states)` gives the new parameter and states. number(i): the i-th of what kernels/cpu/optim.py
prepares of the numbers of a step. The order of operations is that of the loops there, and so are the bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Plain:
    """The operations of a rule on NumPy's arrays."""

    multiply_add = staticmethod(lambda a, b, c: a * b + c)
    add, multiply, divide, root, negative = map(staticmethod, (np.add, np.multiply, np.divide, np.sqrt, np.negative))
    where = staticmethod(lambda condition, a, b: np.where(condition != 0, a, b))
    flushed = staticmethod(lambda x, least=1: np.where(np.abs(x) < x.dtype.type(least) * np.finfo(x.dtype).tiny, 0, x))


def _sgd(f, number, p, g, v):
    rate, momentum, nesterov, decay = map(number, range(4))
    g = f.multiply_add(decay, p, g)
    v = f.multiply_add(momentum, v, g)
    step = f.where(nesterov, f.multiply_add(momentum, v, g), v)
    return f.multiply_add(f.negative(rate), step, p), f.flushed(v)


def _adam(f, number, p, g, m, v):
    rate, scale, beta1, beta2, rest1, rest2, eps, keep, decay, least = map(number, range(10))
    g = f.multiply_add(decay, p, g)
    m = f.multiply_add(beta1, m, f.multiply(rest1, g))
    v = f.multiply_add(beta2, v, f.multiply(f.multiply(rest2, g), g))
    step = f.multiply(rate, f.divide(m, f.multiply_add(f.root(v), scale, eps)))
    return f.flushed(f.multiply_add(keep, p, f.negative(step)), least), f.flushed(m), f.flushed(v)


def _rmsprop(f, number, p, g, v, u):
    rate, alpha, rest, eps, momentum, decay, least = map(number, range(7))
    g = f.multiply_add(decay, p, g)
    v = f.multiply_add(alpha, v, f.multiply(f.multiply(rest, g), g))
    u = f.multiply_add(momentum, u, f.divide(g, f.add(f.root(v), eps)))
    return f.flushed(f.multiply_add(f.negative(rate), u, p), least), f.flushed(v), f.flushed(u)


class Update(NamedTuple):
    """states: the arrays that an optimizer keeps of a parameter, 1 or 2."""

    rule: Callable
    states: int


UPDATES = {"sgd": Update(_sgd, 1), "adam": Update(_adam, 2), "rmsprop": Update(_rmsprop, 2)}
