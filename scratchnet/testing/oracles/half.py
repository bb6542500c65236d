"""Oracles of half precision: numbers are rounded by their exponents, where the kernels look at bits."""

import numpy as np


def bfloat16(x):
    """Each number rounded to 8 significant bits, ties to even; from half a unit above the largest on, infinity."""
    fraction, exponent = np.frexp(x)
    last = np.maximum(exponent - 8, -133)  # the exponent of the last bit, which of subnormal numbers is fixed
    with np.errstate(over="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(fraction, exponent - last)), last)
        return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, x), rounded).astype(x.dtype)


def products(a, b, transpose_a, transpose_b):
    """Of each two matrices."""
    return np.einsum(f"{'bkm' if transpose_a else 'bmk'},{'bnk' if transpose_b else 'bkn'}->bmn", a, b)


def products_of_bfloat16(a, b, transpose_a, transpose_b):
    """The same of matrices that are rounded first."""
    return products(bfloat16(a), bfloat16(b), transpose_a, transpose_b)
