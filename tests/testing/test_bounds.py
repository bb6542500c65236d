"""Derived bounds: never false for correct kernels of every order and type, and tight enough to find small errors."""

import numpy as np
import pytest
from correct import DTYPES, ORDERS, chain, draw_function, draw_sum, function_of
from hypothesis import given
from hypothesis import strategies as st
from sizes import THOROUGH

import scratchnet as sn
from scratchnet.testing import ULPS, assert_matches_reference, blocked, drawn, pairwise, roundings_of

CORRECT = 10_000 if THOROUGH else 300  # random correct kernels, of sums and of functions


@pytest.mark.parametrize("order", ORDERS)
def test_no_correct_sum_is_rejected(order):
    rng = np.random.default_rng(0)
    for _ in range([*ORDERS].index(order), CORRECT, len(ORDERS)):
        call, options = draw_sum(order, rng)
        assert_matches_reference(*call, layouts=("C",), aliased=False, **options)


@given(st.integers(0, 5000), st.integers(1, 200))
def test_terms_are_the_additions_that_a_number_passes_and_one_more(n, block):
    def depth(n, block):
        return max(n - 1, 0) if n <= block else 1 + max(depth(n // 2, block), depth(n - n // 2, block))

    assert max(pairwise(n, block), 1) - 1 >= depth(n, block) >= max(pairwise(n, block) - 1 - block / 2 - 1, 0)
    assert blocked(n, block) == (min(n, block) + -(-n // block) - 1 if n else 0)
    assert pairwise(n, block) <= n and blocked(n, block) <= n


def bound_of(dtype, terms, roundings):
    u = np.finfo(dtype).eps / 2
    return np.expm1((max(terms, 1) - 1 + roundings) * np.log1p(u))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 9, 129, 1000])
def test_an_error_of_a_tenth_of_a_percent_or_of_four_bounds_is_found(n, order, dtype):
    terms = ORDERS[order][1](n)
    x = np.abs(drawn("normal", 0, (n,), dtype)).astype(dtype) + dtype(0.5)
    bound = bound_of(dtype, terms, 1)
    error = 1e-3 if bound < 5e-4 else 4 * bound
    exact = x.astype(np.result_type(dtype, np.longdouble)).sum()
    with pytest.raises(sn.ContractError):
        assert_matches_reference(
            lambda x: np.asarray(exact * (1 + error)).astype(x.dtype),
            lambda x: x.sum(),
            [x],
            terms=terms,
            roundings=1,
            layouts=("C",),
        )


@pytest.mark.parametrize("name", ULPS)
def test_no_correct_function_is_rejected(name):
    rng = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        for _ in range([*ULPS].index(name), CORRECT, len(ULPS)):
            call, options = draw_function(name, rng)
            assert_matches_reference(*call, layouts=("C",), **options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in ULPS if name not in "+-*/"])
def test_a_function_that_is_off_by_an_ulp_more_than_its_bound_is_found(name, dtype):
    binary = name in ("hypot", "power", "arctan2")
    x = (drawn("normal", 1, (100,), np.float64) / 8 + (1.5 if name == "arccosh" else 0.5)).clip(0.125, 2).astype(dtype)
    if name in ("arcsin", "arccos", "arctanh"):
        x = x.clip(0.125, 0.75)
    inputs, function = [x, x] if binary else [x], function_of(name)
    as_exact = 2 if name in ("erf", "erfc") and dtype is np.float64 else 1  # SciPy's reference has no more digits
    off = 1 + as_exact * (ULPS[name] + 1) * np.finfo(dtype).eps

    def check(kernel):
        assert_matches_reference(kernel, function, inputs, roundings=roundings_of(name), fills=False, layouts=("C",))

    check(function)
    # Higher precision, so that the kernel's own error does not make up for the one that is planted.
    exact = function(*[y.astype(np.float64) for y in inputs]) * off
    with pytest.raises(sn.ContractError, match="roundings in"):
        check(lambda *inputs: exact.astype(dtype))


def test_roundings_of_a_formula_are_those_of_its_functions():
    assert roundings_of() == 0 and roundings_of("+", "/", "sqrt") == 3 and roundings_of("exp", "+", "/") == 8
    x = drawn("normal", 3, (1000,), np.float32)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    assert_matches_reference(sigmoid, sigmoid, [x], roundings=roundings_of("exp", "+", "/"))
    with pytest.raises(sn.ConfigError, match=r"roundings_of: a function: .*got 'expp'"):
        roundings_of("expp")


def test_sums_that_are_kept_in_a_wider_type_have_its_bound():
    x = np.abs(drawn("normal", 2, (1000,), np.float16))

    def in_float32(x):
        return np.float16(chain(x.astype(np.float32)))

    options = {"terms": 1000, "roundings": 1, "layouts": ("C",)}
    assert_matches_reference(in_float32, lambda x: x.sum(), [x], accumulate=np.float32, **options)
    assert_matches_reference(chain, lambda x: x.sum(), [x], **options)
    with pytest.raises(sn.ContractError, match="999 additions in float32"):
        assert_matches_reference(chain, lambda x: x.sum(), [x], accumulate=np.float32, **options)


def test_rtol_and_atol_stand_beside_the_bound():
    x = np.ones(3, np.float32)

    def off(x):
        return x * np.float32(1.001)

    def check(**options):
        assert_matches_reference(off, lambda x: x, [x], **options)

    check(rtol=2e-3)
    check(atol=2e-3)
    check(rtol=5e-4, atol=6e-4)
    for options in ({}, {"rtol": 5e-4}, {"atol": 5e-4}):
        with pytest.raises(sn.ContractError, match="; the bound: 8 roundings in float32"):
            check(**options)


def test_small_numbers_of_half_precision_have_a_bound_of_their_size():
    x = np.full(3, 1e-3, np.float16)
    assert_matches_reference(lambda x: x * np.float16(3), lambda x: x * 3, [x], roundings=1)
    with pytest.raises(sn.ContractError):
        assert_matches_reference(lambda x: x * np.float16(3.01), lambda x: x * 3, [x], roundings=1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1 + 1e-3j, complex(1, np.nan)])
def test_complex_results_are_compared_by_their_distance(wrong):
    x = np.ones(3, np.complex64)
    assert_matches_reference(lambda x: x * np.complex64(1 + 1e-7j), lambda x: x, [x])
    with pytest.raises(sn.ContractError):
        assert_matches_reference(lambda x: np.full_like(x, wrong), lambda x: x, [x])


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_that_float64_cannot_tell_apart_are_not_equal(dtype):
    x = np.array([2**62 + 1, 5], dtype)
    assert_matches_reference(lambda x: x + dtype(1), lambda x: x + dtype(1), [x])
    with pytest.raises(sn.ContractError, match=r"element \(0,\): expected 4611686018427387905 within 0"):
        assert_matches_reference(lambda x: x ^ (x > 5).astype(dtype), lambda x: x, [x])
    assert_matches_reference(lambda x: x ^ (x > 5).astype(dtype), lambda x: x, [x], atol=1)
