"""Folds of one row, which its length alone puts in order: the compiler adds in parallel lanes, always the same."""

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ...native.compile import JIT_ENABLED, jit


def _extreme(name, twin):
    """The LLVM intrinsic `name` of two floats: unlike a comparison, LLVM vectorises it in a fold over an array."""

    @intrinsic
    def extreme(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            kind = arguments[0].type
            function = ir.FunctionType(kind, [kind, kind])
            return builder.call(builder.module.declare_intrinsic(name, [kind], function), arguments)

        return a(a, b), generate

    return extreme if JIT_ENABLED else twin


maximum, minimum = _extreme("llvm.maximum", np.maximum), _extreme("llvm.minimum", np.minimum)  # NaN if any is


@jit
def top(row):
    result = row[0]
    for j in range(1, row.size):
        result = maximum(result, row[j])
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
