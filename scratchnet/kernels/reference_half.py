"""The reference kernels of half precision and TF32: operands are rounded, products are added up in float32."""

import numpy as np

from . import reference


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


def matmul_bfloat16(a, b, out, transpose_a=False, transpose_b=False):
    """batched_matmul of a and b, float32, rounded to the nearest bfloat16, ties to even; sums are float32."""
    reference.batched_matmul(_bfloat16(a), _bfloat16(b), out, transpose_a, transpose_b)


def matmul_float16(a, b, out, transpose_a=False, transpose_b=False):
    """The same of operands rounded to the nearest float16, ties to even; from 65,520 on they are infinite."""
    a, b = (x.astype(np.float16).astype(x.dtype) for x in (a, b))
    reference.batched_matmul(a, b, out, transpose_a, transpose_b)


def matmul_tf32(a, b, out, transpose_a=False, transpose_b=False):
    """The same of operands rounded to TF32: 11 significant bits, with the range of float32."""
    reference.batched_matmul(_tf32(a), _tf32(b), out, transpose_a, transpose_b)


def matmul_tf32x3(a, b, out, transpose_a=False, transpose_b=False):
    """The same of operands that are two numbers of TF32 each, of which three products are added up.

    What is left out and rounded away is at most 8 half units in the last place of each product of two elements.
    """
    rest_a, rest_b = (_tf32(x - _tf32(x)) for x in (a, b))
    large, small = np.empty_like(out), np.empty_like(out)
    matmul_tf32(rest_a, b, small, transpose_a, transpose_b)
    matmul_tf32(a, rest_b, large, transpose_a, transpose_b)
    small += large
    matmul_tf32(a, b, large, transpose_a, transpose_b)
    np.add(large, small, out=out)
