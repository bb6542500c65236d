"""The reference kernels of half precision and TF32: operands are rounded, products are added up in float32."""

from functools import partial

import numpy as np

from . import reference, reference_windows


def _bfloat16(x):
    """float32 x rounded to the nearest bfloat16, ties to even: bfloat16 is the upper half of a float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), bits | np.uint32(0x400000), rounded).view(np.float32).astype(x.dtype)


def _tf32(x):
    """float32 x rounded to 11 significant bits, the nearest, ties to even; the exponent stays that of a float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(x), bits | np.uint32(0x400000), rounded).view(np.float32).astype(x.dtype)


def _float16(x):
    """x rounded to the nearest float16, ties to even; from 65,520 on it is infinite."""
    return x.astype(np.float16).astype(x.dtype)


_ROUNDED = {"bfloat16": _bfloat16, "float16": _float16, "tf32": _tf32}


def _multiply(precision, kernel, a, b, out):
    """kernel(a, b, out), which adds up products of a and b, of operands rounded to a precision.

    In "tf32x3" they are two numbers of TF32 each, of which three products are added up. What is left out and rounded
    away is at most 8 half units in the last place of each product of two elements.
    """
    if precision != "tf32x3":
        kernel(*(_ROUNDED[precision](x) for x in (a, b)), out)
        return
    (a, rest_a), (b, rest_b) = ((_tf32(x), _tf32(x - _tf32(x))) for x in (a, b))
    large, small = np.empty_like(out), np.empty_like(out)
    kernel(rest_a, b, small)
    kernel(a, rest_b, large)
    small += large
    kernel(a, b, large)
    np.add(large, small, out=out)


def _matmul(precision, a, b, out, transpose_a, transpose_b):
    product = partial(reference.batched_matmul, transpose_a=transpose_a, transpose_b=transpose_b)
    _multiply(precision, product, a, b, out)


def matmul_bfloat16(a, b, out, transpose_a=False, transpose_b=False):
    """batched_matmul of a and b, float32, rounded to the nearest bfloat16, ties to even; sums are float32."""
    _matmul("bfloat16", a, b, out, transpose_a, transpose_b)


def matmul_float16(a, b, out, transpose_a=False, transpose_b=False):
    """The same of operands rounded to the nearest float16, ties to even; from 65,520 on they are infinite."""
    _matmul("float16", a, b, out, transpose_a, transpose_b)


def matmul_tf32(a, b, out, transpose_a=False, transpose_b=False):
    """The same of operands rounded to TF32: 11 significant bits, with the range of float32."""
    _matmul("tf32", a, b, out, transpose_a, transpose_b)


def matmul_tf32x3(a, b, out, transpose_a=False, transpose_b=False):
    """The same of operands that are two numbers of TF32 each."""
    _matmul("tf32x3", a, b, out, transpose_a, transpose_b)


def conv2d_rounded(x, weight, bias, out, stride, padding, dilation, groups, precision):
    """conv2d of x and weight, float32, rounded to a precision; the bias is not. Sums are float32."""

    def kernel(x, weight, y):
        reference_windows.conv2d(x, weight, np.zeros(1, y.dtype), y, stride, padding, dilation, groups)

    _multiply(precision, kernel, x, weight, out)
    out += bias[:, None, None]


def conv2d_input_rounded(g, weight, out, stride, padding, dilation, groups, precision):
    """conv2d_input of g and weight, float32, rounded to a precision; sums are float32."""

    def kernel(g, weight, y):
        reference_windows.conv2d_input(g, weight, y, stride, padding, dilation, groups)

    _multiply(precision, kernel, g, weight, out)


def conv2d_weight_rounded(g, x, out, stride, padding, dilation, groups, precision):
    """conv2d_weight of g and x, float32, rounded to a precision; sums are float32."""

    def kernel(g, x, y):
        reference_windows.conv2d_weight(g, x, y, stride, padding, dilation, groups)

    _multiply(precision, kernel, g, x, out)
