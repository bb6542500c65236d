"""Oracles of half precision and TF32: numbers are rounded by their exponents, where the kernels look at bits."""

import numpy as np


def _rounded(bits, lowest, end):
    """A function that rounds to so many significant bits, to multiples of 2**lowest at least; infinite from 2**end."""

    def rounded(x):
        fraction, exponent = np.frexp(x)
        last = np.maximum(exponent - bits, lowest)  # the exponent of the last bit, which of subnormal numbers is fixed
        with np.errstate(over="ignore"):
            y = np.ldexp(np.rint(np.ldexp(fraction, exponent - last)), last)
            return np.where(np.abs(y) >= 2.0**end, np.copysign(np.inf, x), y).astype(x.dtype)

    return rounded


bfloat16, float16, tf32 = _rounded(8, -133, 128), _rounded(11, -24, 16), _rounded(11, -136, 128)
ROUNDED = {"bfloat16": bfloat16, "float16": float16, "tf32": tf32}


def products(a, b, transpose_a, transpose_b):
    """Of each two matrices."""
    return np.einsum(f"{'bkm' if transpose_a else 'bmk'},{'bnk' if transpose_b else 'bkn'}->bmn", a, b)


def _rounded_products(rounded):
    """The same of matrices that are rounded first."""
    return lambda a, b, transpose_a, transpose_b: products(rounded(a), rounded(b), transpose_a, transpose_b)


def convolution(oracle):
    """An oracle of a convolution or of one of its gradients, of operands that are rounded first."""

    def rounded(a, b, *bias, precision, **windows):
        made = ROUNDED.get(precision, np.asarray)  # two numbers of TF32 are nearly one of float32
        return oracle(made(a), made(b), *bias, **windows)

    return rounded


PRODUCTS = {name: _rounded_products(rounded) for name, rounded in ROUNDED.items()}
PRODUCTS["tf32x3"] = products  # of float32: two numbers of TF32 are nearly one of those
