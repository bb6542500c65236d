"""Folds of one row, which its length alone puts in order: the compiler adds in parallel lanes, always the same."""

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ...native.compile import JIT_ENABLED, jit


def _extreme(name, twin, flags=()):
    """The LLVM intrinsic `name` of two floats: unlike a comparison, LLVM vectorises it in a fold over an array."""

    @intrinsic
    def extreme(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            kind = arguments[0].type
            function = ir.FunctionType(kind, [kind, kind])
            return builder.call(builder.module.declare_intrinsic(name, [kind], function), arguments, fastmath=flags)

        return a(a, b), generate

    return extreme if JIT_ENABLED else twin


maximum, minimum = _extreme("llvm.maximum", np.maximum), _extreme("llvm.minimum", np.minimum)  # NaN if any is
_maximum_of_either_zero = _extreme("llvm.maximum", np.maximum, ("nsz",))  # half the instructions: 0 and -0 are one


@jit
def top(row):
    """The maximum of a row, either zero. If the row holds NaN: NaN, or the maximum of other elements.

    A comparison that may drop a NaN is one instruction, and LLVM's maximum three. So that is left for the largest of
    four elements, one of each quarter; the last quarters may overlap. A row of 1,024 takes a quarter of the time.
    """
    quarter = (row.size + 3) // 4
    last = row.size - quarter
    a, b = row[:quarter], row[min(quarter, last) :][:quarter]
    c, d = row[min(2 * quarter, last) :][:quarter], row[last:]
    result = row[0]
    for j in range(a.size):
        left, right = a[j] if a[j] > b[j] else b[j], c[j] if c[j] > d[j] else d[j]
        result = _maximum_of_either_zero(result, left if left > right else right)
    return result


@jit(reduction=True)
def total(row):
    """The sum in float64."""
    result = 0.0
    for j in range(row.size):
        result += row[j]
    return result


@jit(reduction=True)
def dot(a, b):
    """The sum of products in float64."""
    result = 0.0
    for j in range(a.size):
        result += a[j] * b[j]
    return result
