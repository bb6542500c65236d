"""exp, its inverse and its integrals of one number, without branches or calls: so a loop around them vectorises.

Each function is a polynomial after a reduction of its range. Largest errors, denormal inputs and results included, in
units in the last place: exp 1.02, tanh 1.30, log 0.84 of float32 and float64; erf 1.10 of float32; of float32 the
normal distribution 3, and gelu 4, where x >= 0, and below 6 + x**2, and 5 + x**2, in the left tail. Infinities, zeros
with their signs and NaN are exact. erf, the normal distribution and gelu of float64 go to the C library, a call an
element.
"""

import math

import numpy as np
from numba.core import types
from numba.extending import overload

from ...native.compile import jit

f = np.float32
ZERO, HALF, ONE, TWO, INF, NAN = map(f, (0, 0.5, 1, 2, math.inf, math.nan))

# --- exp and tanh -----------------------------------------------------------------------------------------------------

LOG2_E, LN_2_HIGH, LN_2_LOW = f(1.442695041), f(0.693145751953125), f(1.428606820e-6)  # n * LN_2_HIGH is exact
OVERFLOW, DENORMAL, UNDERFLOW = f(88.722835), f(-87), f(-104)  # beyond these infinity, denormal numbers, 0
ROUND = f(1.5 * 2**23)  # x + ROUND has the integer next to x in its lowest bits, and above them 9 zeros
LIFT, LOWER = 64 << 23, f(2**-64)
TANH_SPLIT, FLAT = f(0.625), f(20)  # 1 - exp(-FLAT) is 1

# The coefficients of expf and tanhf in the Cephes library (Moshier 1992), highest power first.
E5, E4, E3, E2, E1, E0 = map(f, (1.9875691e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 0.16666665459, 0.5))
T4, T3, T2, T1, T0 = map(f, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 0.133314422036, -0.333332819422))


@jit(inline=True)
def _exp_bits(x):
    """The bits of exp(x), a normal number: 2**n * exp(r) with x = n * log(2) + r and abs(r) <= log(2) / 2.

    n is added to the exponent. Of these integers only the lower 32 bits count, so LLVM computes no more.
    """
    shifted = x * LOG2_E + ROUND
    rounded = shifted - ROUND
    r = (x - rounded * LN_2_HIGH) - rounded * LN_2_LOW
    square = r * r  # by pairs of terms: a shorter chain than by single ones
    y = (((E5 * r + E4) * square + (E3 * r + E2)) * square + (E1 * r + E0)) * square + r + ONE
    return np.float32(y).view(np.int32) + (np.float32(shifted).view(np.int32) << 23)


@jit(inline=True)
def _exp_32(x):
    low = x < DENORMAL
    y = np.int32(_exp_bits(x) + (LIFT if low else 0)).view(np.float32) * (LOWER if low else ONE)
    return ZERO if x < UNDERFLOW else (y if x <= OVERFLOW else x + INF)  # NaN stays NaN


@jit(inline=True)
def _tanh_32(x):
    square, size = x * x, abs(x)
    near = size + size * square * ((((T4 * square + T3) * square + T2) * square + T1) * square + T0)
    e = np.int32(_exp_bits(FLAT if size > HALF * FLAT else TWO * size)).view(np.float32)
    far = ONE - TWO / (e + ONE)
    return np.copysign(far if size >= TANH_SPLIT else near, x)  # NaN is near


# --- log --------------------------------------------------------------------------------------------------------------

TINY, UP, UP_BITS = f(2**-126), f(2**23), f(23)  # a denormal number times UP is normal
SQRT_HALF_BITS = int(f(math.sqrt(0.5)).view(np.int32))

# log(1 + r) = r - r**2 / 2 + r**3 * polynomial, for r from sqrt(1/2) - 1 to sqrt(2) - 1: relative error 7.5e-10
L8, L7, L6, L5 = map(f, (0.0674660123744891, -0.11675641266456561, 0.11888174620162756, -0.12405591425061056))
L4, L3, L2, L1 = map(f, (0.1421955090617209, -0.1666799566654316, 0.2000211873229197, -0.2500000960366635))
L0 = f(0.3333331260280148)


@jit(inline=True)
def _log_32(x):
    """n * log(2) + log(1 + r) with x = 2**n * (1 + r) and 1 + r between sqrt(1/2) and sqrt(2)."""
    bits = np.float32(x * UP if x < TINY else x).view(np.int32)
    above = np.int32(bits - SQRT_HALF_BITS) >> 23
    r = np.int32(bits - (above << 23)).view(np.float32) - ONE
    n = np.float32(np.int32(above)) - (UP_BITS if x < TINY else ZERO)
    square = r * r
    tail = ((L8 * square + (L7 * r + L6)) * square + (L5 * r + L4)) * square + (L3 * r + L2)
    tail = tail * square + (L1 * r + L0)
    y = (n * LN_2_LOW + (tail * r - HALF) * square) + r + n * LN_2_HIGH
    return (y if x < INF else x) if x > ZERO else (-INF if x == ZERO else NAN)


# --- erf and the normal distribution ----------------------------------------------------------------------------------

ERF_SPLIT = f(0.875)
# erf(x) = x + x * polynomial in x**2 below the split (relative error 8.5e-9); above it -log(erfc(x)) / x, as accurate
# as erf needs it, since erfc is small there (1e-9 of erf).
N5, N4, N3 = map(f, (-0.000620338561971045, 0.005032208991815598, -0.02679148440676358))
N2, N1, N0 = map(f, (0.11282456053320936, -0.3761255056446771, 0.12837915753075155))
F6, F5, F4 = map(f, (9.364864876022915e-06, -0.0003043335637857858, 0.003568276162927167))
F3, F2, F1, F0 = map(f, (-0.02360722648792392, 0.10605964545562498, 0.6352568765860053, 1.1286229093010285))


@jit(inline=True)
def _erf_32(x):
    square, size = x * x, abs(x)
    near = size + size * (((((N5 * square + N4) * square + N3) * square + N2) * square + N1) * square + N0)
    power = ((((((F6 * size + F5) * size + F4) * size + F3) * size + F2) * size + F1) * size + F0) * size
    far = ONE - np.int32(_exp_bits(-FLAT if power > FLAT else -power)).view(np.float32)
    return np.copysign(far if size > ERF_SPLIT else near, x)  # NaN is not above the split


LIFTED = f(1.5 * 2**23 + 64)  # ROUND for 2**64 times a power, of which none is denormal then
HALF_LOG2_E, NEARLY = f(-0.5 * math.log2(math.e)), np.nextafter(f(-0.5 * math.log2(math.e)), ZERO)
# 2**r for abs(r) <= 1/2: relative error 9.2e-8.
G5, G4, G3 = map(f, (0.0013264727065427362, 0.00967151264889976, 0.05550733743690811))
G2, G1 = map(f, (0.24022242085173423, 0.6931469775988571))

MILLS_CENTRE, FAR = f(3.75), f(16)  # the density is 0 beyond FAR
LOWER_BY_CENTRE, LOWER_BY_ROOT = f(2**-64 / 3.75), f(2**-64 / math.sqrt(2 * math.pi))
# exp(x**2 / 2) * (1 - Phi(x)) * (x + c) for x >= 0 as a polynomial in x / (x + c) - 1/2, c = MILLS_CENTRE: relative
# error 1.5e-8 up to infinity (the form of Shepherd and Laframboise 1981).
M8, M7, M6 = map(f, (0.11352344, 0.06523272, -0.26681715))
M5, M4, M3 = map(f, (0.038402308, 0.5998801, -1.2121667))
M2, M1, M0 = map(f, (1.4117584, -1.1763766, 0.7502941))


@jit(inline=True)
def _tail_32(x):
    """(s / (s + c), exp(s**2 / 2) * (1 - Phi(s)) * (s + c), 2**64 * exp(-s**2 / 2)) of s = abs(x), FAR at most."""
    size = FAR if abs(x) > FAR else abs(x)
    square = size * size
    shifted = square * NEARLY + LIFTED  # NEARLY: with one factor, LLVM would round one product for this and for r
    r = square * HALF_LOG2_E - (shifted - LIFTED)
    r_square = r * r
    y = ((G5 * r + G4) * r_square + (G3 * r + G2)) * r_square + (G1 * r + ONE)
    peak = np.int32(np.float32(y).view(np.int32) + (np.float32(shifted).view(np.int32) << 23)).view(np.float32)
    share = size / (size + MILLS_CENTRE)
    w = share - HALF
    w_square = w * w
    mills = ((M8 * w_square + (M7 * w + M6)) * w_square + (M5 * w + M4)) * w_square + (M3 * w + M2)
    return share, mills * w_square + (M1 * w + M0), peak


@jit(inline=True)
def _normal_32(x):
    """(Phi(x), phi(x)). phi of NaN may be any number."""
    share, mills, peak = _tail_32(x)
    tail = mills * ((ONE - share) * peak)  # (1 - share) / c is 1 / (s + c)
    below = x < ZERO  # -0.0 is not, whatever its sign says
    return (ZERO if below else ONE) - (-LOWER_BY_CENTRE if below else LOWER_BY_CENTRE) * tail, peak * LOWER_BY_ROOT


@jit(inline=True)
def _gelu_32(x):
    """max(x, 0) - s * (1 - Phi(s)): without 1 / (s + c) and a product; of -inf NaN, as by definition."""
    share, mills, peak = _tail_32(x)
    return (x - x if x < ZERO else x) - LOWER * (mills * (share * peak))


# --- float64 ----------------------------------------------------------------------------------------------------------


OVERFLOW_64, UNDERFLOW_64 = 710.0, -746.0
LOG2_E_64, ROUND_64 = 1.4426950408889634, 1.5 * 2.0**52
ROUND_BITS_64 = int(np.float64(ROUND_64).view(np.int64))
LN_2_LOW_64 = 1.42860682030941723212e-6  # of Cephes, to go with LN_2_HIGH
TINY_64, UP_64, UP_BITS_64 = 2.0**-1022, 2.0**54, 54.0
SQRT_HALF_BITS_64 = int(np.float64(math.sqrt(0.5)).view(np.int64))

# exp(r) = the sum of r**k / k!, log((1 + s) / (1 - s)) = 2 * the sum of s**(2 * k + 1) / (2 * k + 1): the next term is
# less than 1e-17 of the result. The coefficients of tanh are those of Cephes.
X13, X12, X11, X10, X9, X8, X7, X6, X5, X4, X3 = (1 / math.factorial(k) for k in range(13, 2, -1))
A10, A9, A8, A7, A6, A5, A4, A3, A2, A1 = (2 / (2 * k + 1) for k in range(10, 0, -1))
P2, P1, P0 = -9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3
Q2, Q1, Q0 = 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3


@jit(inline=True)
def _power_of_two_64(n):
    return np.int64((n + 1023) << 52).view(np.float64)


@jit(inline=True)
def _exp_64(x):
    x = OVERFLOW_64 if x > OVERFLOW_64 else (UNDERFLOW_64 if x < UNDERFLOW_64 else x)
    shifted = x * LOG2_E_64 + ROUND_64
    rounded = shifted - ROUND_64
    r = (x - rounded * LN_2_HIGH) - rounded * LN_2_LOW_64
    y = ((((((((X13 * r + X12) * r + X11) * r + X10) * r + X9) * r + X8) * r + X7) * r + X6) * r + X5) * r + X4
    y = ((y * r + X3) * r + HALF) * (r * r) + r + ONE
    n = np.float64(shifted).view(np.int64) - ROUND_BITS_64
    half = np.int64(np.int32(n) >> 1)
    return y * _power_of_two_64(half) * _power_of_two_64(n - half)


@jit(inline=True)
def _tanh_64(x):
    square, size = x * x, abs(x)
    ratio = ((P2 * square + P1) * square + P0) / (((square + Q2) * square + Q1) * square + Q0)
    near = size + size * square * ratio
    far = ONE - TWO / (_exp_64(TWO * size) + ONE)
    return np.copysign(near if size < TANH_SPLIT else far, x)


@jit(inline=True)
def _log_64(x):
    """As _log_32, with log(1 + r) = 2 * atanh(s), s = r / (2 + r), in a form in which r itself is exact."""
    bits = np.float64(x * UP_64 if x < TINY_64 else x).view(np.int64)
    above = np.int32((bits - SQRT_HALF_BITS_64) >> 52)
    r = np.int64(bits - (np.int64(above) << 52)).view(np.float64) - ONE
    n = np.float64(above) - (UP_BITS_64 if x < TINY_64 else 0.0)
    s = r / (TWO + r)
    z, square = s * s, HALF * r * r
    tail = ((((((((A10 * z + A9) * z + A8) * z + A7) * z + A6) * z + A5) * z + A4) * z + A3) * z + A2) * z + A1
    y = n * LN_2_HIGH - ((square - (s * (square + tail * z) + n * LN_2_LOW_64)) - r)
    return (y if x < INF else x) if x > ZERO else (-INF if x == ZERO else NAN)


@jit
def _erf_64(x):
    return math.erf(x)


@jit
def _normal_64(x):
    return 0.5 * math.erfc(-x / math.sqrt(2)), math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@jit
def _gelu_64(x):
    return x * (0.5 * math.erfc(-x / math.sqrt(2)))


# --- for both types ---------------------------------------------------------------------------------------------------


def _by_type(name, single, double):
    """The function that is `single` of a float32 and `double` of a float64, in kernels and in plain Python."""

    def function(x):
        return single(x) if x.dtype == np.float32 else double(x)

    @overload(function, jit_options={"forceinline": True})
    def typed(x):
        return (lambda x: single(x)) if x == types.float32 else (lambda x: double(x))

    function.__name__ = function.__qualname__ = name  # tells stamps with these functions apart
    return function


exp = _by_type("exp", _exp_32, _exp_64)
tanh = _by_type("tanh", _tanh_32, _tanh_64)
log = _by_type("log", _log_32, _log_64)
erf = _by_type("erf", _erf_32, _erf_64)
normal = _by_type("normal", _normal_32, _normal_64)  # (Phi(x), phi(x)): the distribution function and its density
gelu = _by_type("gelu", _gelu_32, _gelu_64)


@jit(inline=True)
def log1p(x):
    """log(1 + x) = log(u) * x / (u - 1) undoes the rounding of u = 1 + x (Goldberg 1991, theorem 4)."""
    u = ONE + x
    return x if (u == ONE) | (u == INF) else log(u) * (x / (u - ONE))


# Why cpu has definitions of its own: NumPy's functions, and erfc in `normal`, would be calls to the C library.
FUNCTIONS = {"exp": exp, "log": log, "log1p": log1p, "tanh": tanh, "erf": erf, "normal": normal, "gelu": gelu}
