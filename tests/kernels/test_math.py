"""The mathematical functions of the `cpu` device: errors over the whole range of float32, special values, vectors."""

import re

import llvmlite.binding as llvm
import numpy as np
import pytest
from scipy import special
from sizes import JIT

from scratchnet.kernels import device
from scratchnet.kernels.cpu import elementwise, exponential
from scratchnet.kernels.cpu.elementwise import SCALARS
from scratchnet.native import cache
from scratchnet.native.compile import stamp
from scratchnet.parallel.comm import half

INF, NAN = np.inf, np.nan
STRIDE = 1021 if JIT else 2**22 - 3  # odd: all exponents, with other bits below
BITS = np.arange(0, 2**32, STRIDE, dtype=np.uint64).astype(np.uint32)
EDGES = [0, -0.0, INF, -INF, NAN, 1e-45, -1e-45, 1, -1, 0.625, 0.875, 88.7, 88.8, -103.9, -104.1, 3e38, -3e38]
NANS = np.uint32([sign | 0x7F800000 | 1 << k for sign in (0, 1 << 31) for k in range(23)]).view(np.float32)
EVERY_KIND = np.concatenate([BITS.view(np.float32), np.float32(EDGES), NANS])  # denormal, infinite, NaN


def applied(function, x):
    """The scalar function of each element of x, by the loop of the elementwise kernels."""
    out = np.empty_like(x)
    with np.errstate(all="ignore"):
        stamp(elementwise._unary, "applied", function=function)(0, x.size, x, out)
    return out


def errors(got, exact, scale=None):
    """Errors of `got` in units in the last place of `scale`, or of the exact result."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(got.dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~finite], rounded[~finite])  # infinities and NaN
    size = abs(rounded if scale is None else scale)[finite]
    return abs(got[finite] - exact[finite]) / np.spacing(np.maximum(size, np.finfo(got.dtype).tiny))


@pytest.mark.parametrize(
    ("function", "oracle", "ulps"),
    [
        (exponential.exp, np.exp, 1.1),
        (exponential.tanh, np.tanh, 1.4),
        (exponential.log, np.log, 0.9),
        (exponential.erf, special.erf, 1.2),
        (SCALARS["sigmoid"], special.expit, 3),
    ],
    ids=["exp", "tanh", "log", "erf", "sigmoid"],
)
def test_functions_keep_their_bound_for_every_kind_of_float32(function, oracle, ulps):
    with np.errstate(all="ignore"):
        exact = oracle(EVERY_KIND.astype(np.float64))
    got = applied(function, EVERY_KIND)
    assert errors(got, exact).max() <= ulps
    np.testing.assert_array_equal(np.signbit(got[exact == 0]), np.signbit(exact[exact == 0]))


RANDOM = np.random.default_rng(0)
DOUBLES = np.concatenate(
    [
        RANDOM.integers(0, 2**64, 100_000 if JIT else 500, dtype=np.uint64).view(np.float64),  # every kind
        RANDOM.uniform(-746, 710, 50_000 if JIT else 500),
        RANDOM.standard_normal(50_000 if JIT else 500),
        1 + 0.01 * RANDOM.standard_normal(50_000 if JIT else 500),
        [0, -0.0, INF, -INF, NAN, 5e-324, -5e-324, 709.7, 709.8, 0.625, 1e-310],
    ]
)


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 2e-19, reason="no type is more precise than float64")
@pytest.mark.parametrize(("name", "ulps"), [("exp", 1.1), ("tanh", 1.4), ("log", 0.9)])
def test_functions_keep_their_bound_for_every_kind_of_float64(name, ulps):
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(DOUBLES.astype(np.longdouble))
    got = applied(getattr(exponential, name), DOUBLES)
    assert errors(got, exact).max() <= ulps
    np.testing.assert_array_equal(np.signbit(got[exact == 0]), np.signbit(exact[exact == 0]))


def test_softplus_keeps_its_bound_for_every_kind_of_float32():
    with np.errstate(all="ignore"):
        exact = np.logaddexp(0, EVERY_KIND.astype(np.float64))
    assert errors(applied(SCALARS["softplus"], EVERY_KIND), exact).max() <= 3


def test_gelu_keeps_its_bound_relative_to_x_for_every_kind_of_float32():
    with np.errstate(all="ignore"):
        x = EVERY_KIND.astype(np.float64)
        exact = x * special.ndtr(x)
    assert errors(applied(SCALARS["gelu"], EVERY_KIND), exact, scale=EVERY_KIND).max() <= 4


def test_the_left_tail_of_gelu_is_not_cut_off():
    x = np.linspace(-12, -1, 500).astype(np.float32)
    exact = x * special.ndtr(x.astype(np.float64))
    np.testing.assert_allclose(applied(SCALARS["gelu"], x), exact, rtol=1e-5)


def test_gelu_keeps_its_bound_relative_to_the_result():
    """Of a rounded square, half a unit in the last place is x**2 / 4 of them in its exponential."""
    x = np.linspace(-14, 14, 1_000_001 if JIT else 3001).astype(np.float32)
    found = errors(applied(SCALARS["gelu"], x), x * special.ndtr(x.astype(np.float64)))
    assert found[x >= 0].max() <= 4
    assert (found - x**2)[x < 0].max() <= 5


@pytest.mark.threads
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_derivative_of_gelu_keeps_its_bound_for_every_kind_of_number(dtype):
    """Also for -0.0, which is not below zero: a half."""
    x = EVERY_KIND[np.isfinite(EVERY_KIND)].astype(dtype)
    wide, got = x.astype(np.float64), np.empty_like(x)
    device("cpu").gelu_grad(np.ones_like(x), x, got)
    exact = special.ndtr(wide) + wide * np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi)
    assert errors(got, exact, scale=np.ones_like(x)).max() <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("function", "points"),
    [
        (exponential.log, {-0.0: -INF, -1.0: NAN, -INF: NAN, INF: INF, 1.0: 0.0}),
        (exponential.erf, {INF: 1.0, -INF: -1.0, 30.0: 1.0, -30.0: -1.0, 0.0: 0.0}),
        (exponential.exp, {INF: INF, -INF: 0.0, 0.0: 1.0, 1e3: INF, -1e3: 0.0}),
        (exponential.tanh, {INF: 1.0, -INF: -1.0, 0.0: 0.0, 50.0: 1.0}),
        (SCALARS["gelu"], {INF: INF, -INF: NAN, 0.0: 0.0, 50.0: 50.0, -50.0: 0.0}),
    ],
    ids=["log", "erf", "exp", "tanh", "gelu"],
)
def test_special_values_are_exact(function, points, dtype):
    x = np.array([*points, NAN], dtype)
    np.testing.assert_array_equal(applied(function, x), np.array([*points.values(), NAN], dtype))


UNARY = ["exp", "log", "tanh", "sigmoid", "erf", "gelu", "softplus"]


@pytest.mark.skipif(not JIT, reason="about compiled code")
@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="looks for AVX instructions")
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "f4") for name in [*UNARY, "gelu_grad"]), *((name, "f8") for name in UNARY[:4])]
)
def test_loops_use_vectors_and_not_the_c_library(name, dtype, monkeypatch):
    monkeypatch.setattr(cache, "_folder", lambda: None)  # code from the cache cannot be inspected
    x = np.linspace(0.1, 3, 64, dtype=dtype)
    template, arguments = (
        (elementwise._unary, (0, 64, x, x.copy()))
        if name in UNARY
        else (elementwise._binary, (0, 64, x, x, x.copy(), elementwise._ONE_ROW[True, True]))
    )
    loop = stamp(template, f"inspected_{name}", function=SCALARS[name])
    loop(*arguments)
    (assembly,) = loop.inspect_asm().values()
    widest = "z" if llvm.get_host_cpu_features().get("avx512f") else "y"
    assert re.search(rf"vfn?m(add|sub)\w+p{'s' if dtype == 'f4' else 'd'}.*%{widest}mm", assembly)
    (code,) = loop.inspect_llvm().values()
    assert '"prefer-vector-width"="512"' in code  # of CPUs with AVX-512 some need to be asked for it
    assert not re.search(r"\b(exp|log|tanh|erf|erfc)f?\b", assembly)  # the C library's


# --- float16, in which compressed gradients travel --------------------------------------------------------------------

HALVES = np.arange(0, 2**16, 1 if JIT else 37, dtype=np.uint16)
TIES = np.arange(0, 2**15, dtype=np.uint16)[: 2**15 - 2**10 - 1]  # of each finite one and the next, half way
NEAR_TIES = TIES.view(np.float16).astype(np.float32) / 2 + (TIES + 1).astype(np.uint16).view(np.float16) / np.float32(2)


def test_every_float16_is_read_as_numpy_reads_it():
    found, exact = np.empty(HALVES.size, np.float32), HALVES.view(np.float16).astype(np.float32)
    half.read_half(HALVES, found)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(found[finite].view(np.int32), exact[finite].view(np.int32))
    assert np.isnan(found[np.isnan(exact)]).all()


@pytest.mark.threads
def test_float32_is_rounded_to_float16_as_numpy_does_it():
    ties = NEAR_TIES[:: 1 if JIT else 37]
    beside = [np.nextafter(ties, np.float32(toward)) for toward in (-INF, INF)]
    x = np.concatenate([EVERY_KIND, ties, -ties, *beside]).astype(np.float32)
    exact = np.clip(x, -65504, 65504).astype(np.float16)
    bits, rounded, number = half.half_bits(x), np.empty_like(x), ~np.isnan(x)
    half.round_half(x, rounded)
    np.testing.assert_array_equal(bits[number], exact.view(np.uint16)[number])
    np.testing.assert_array_equal(rounded[number].view(np.int32), exact.astype(np.float32).view(np.int32)[number])
    assert np.isnan(bits.view(np.float16)[~number]).all() and np.isnan(rounded[~number]).all()
