"""Conversion to and from float16 (IEEE 754's binary16), held as bits in integers, because Numba has no such type.

NumPy converts one number at a time. For contiguous float32 arrays the loops here are arithmetic without branches, which
vectorises and takes a twentieth of the time. NumPy converts all other arrays.
"""

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged

MAGNITUDE, NAN = 0x7FFF, 0x7E00
LIMIT = 65504  # the largest finite one
LARGEST = int(np.float32(LIMIT).view(np.int32))
SMALLEST = int(np.float32(2**-14).view(np.int32))  # normal number; smaller ones are multiples of 2**-24
INFINITY = int(np.float32(np.inf).view(np.int32))
HALF, STEP = np.float32(0.5), np.float32(2**-24)  # the lowest bit of a float32 sum with 0.5 stands for 2**-24
HALF_BITS = int(HALF.view(np.int32))
BIAS = 127 - 15  # of the exponents of the two formats


@jit(inline=True)
def _bits(x):
    """The bits of the float16 nearest to a float32, ties to even; magnitudes above LIMIT become LIMIT."""
    raw = np.float32(x).view(np.int32)
    size = raw & 0x7FFFFFFF
    capped = LARGEST if size > LARGEST else size
    normal = ((capped + 0xFFF + ((capped >> 13) & 1)) >> 13) - (BIAS << 10)
    small = np.float32(np.int32(capped).view(np.float32) + HALF).view(np.int32) - HALF_BITS
    found = small if capped < SMALLEST else normal
    return (NAN if size > INFINITY else found) | ((raw >> 16) & 0x8000)


@jit(inline=True)
def _value(bits):
    size = bits & MAGNITUDE
    normal = np.int32((size << 13) + (BIAS << 23)).view(np.float32)
    found = np.float32(np.int32(size)) * STEP if size < 0x400 else normal
    found = np.float32(np.nan) if size > 0x7C00 else found
    return -found if bits & 0x8000 else found


@jit
def _round(lo, hi, x, out):
    x, out = x[lo:hi], out[lo:hi]
    for i in range(out.size):
        out[i] = _value(_bits(x[i]))


@jit
def _write(lo, hi, x, out):
    x, out = x[lo:hi], out[lo:hi]
    for i in range(out.size):
        out[i] = _bits(x[i])


@jit
def _read(lo, hi, bits, out):
    bits, out = bits[lo:hi], out[lo:hi]
    for i in range(out.size):
        out[i] = _value(np.int32(bits[i]))


_run_round, _run_write = ranged(_round, "round_half", writes=(1,)), ranged(_write, "write_half", writes=(1,))
_run_read = ranged(_read, "read_half", writes=(1,))


def _is_plain(*arrays):
    return all(x.dtype == np.float32 and x.flags.carray for x in arrays)


def round_half(x, out):
    """out = x rounded to the nearest float16, ties to even; magnitudes above 65504, the largest, become 65504.

    x, out: float32 or float64, of one shape; may be the same array. NaN stays NaN.
    """
    if _is_plain(x, out):
        _run_round(out.size, 1, x.reshape(-1), out.reshape(-1))
    else:
        np.copyto(out, np.clip(x, -LIMIT, LIMIT).astype(np.float16), casting="unsafe")


def half_bits(x):
    """The bits of `round_half` of x: (x.size,) uint16."""
    if not _is_plain(x):
        return np.clip(x.reshape(-1), -LIMIT, LIMIT).astype(np.float16).view(np.uint16)
    bits = np.empty(x.size, np.uint16)
    _run_write(x.size, 1, x.reshape(-1), bits)
    return bits


def read_half(bits, out):
    """out = the finite float16 numbers with these bits. bits: (out.size,) uint16; out: float32 or float64."""
    if _is_plain(out) and bits.flags.aligned:
        _run_read(out.size, 1, bits, out.reshape(-1))
    else:
        out.reshape(-1)[...] = bits.view(np.float16)
