"""Derived bounds: never false for correct kernels of every order and type, and tight enough to find small errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sizes import THOROUGH

import scratchnet as sn
from scratchnet.testing import assert_matches_reference, blocked, drawn, pairwise

CORRECT = 10_000 if THOROUGH else 300  # random correct kernels


def chain(x, axis=-1):
    """One after the other, in the type of x."""
    total = np.zeros(x.shape[:-1], x.dtype)
    for i in range(x.shape[-1]):
        total = (total + x[..., i]).astype(x.dtype)
    return total


def halves(x, block):
    n = x.shape[-1]
    return chain(x) if n <= block else halves(x[..., : n // 2], block) + halves(x[..., n // 2 :], block)


def in_blocks(x, block):
    n = x.shape[-1]
    return chain(np.stack([chain(x[..., i : i + block]) for i in range(0, n, block)], axis=-1)) if n else chain(x)


# name -> (the sum of n numbers, its terms)
ORDERS = {
    "chain": (lambda x: chain(x), lambda n: n),
    "backward": (lambda x: chain(x[..., ::-1]), lambda n: n),
    "pairwise": (lambda x: halves(x, 1), lambda n: pairwise(n)),
    "pairwise from blocks of 8": (lambda x: halves(x, 8), lambda n: pairwise(n, 8)),
    "blocks of 16": (lambda x: in_blocks(x, 16), lambda n: blocked(n, 16)),
    "of NumPy": (lambda x: np.sum(x, axis=-1), lambda n: pairwise(n, 128)),
}
# name -> (terms from two arrays, their exact sum, roundings of a term)
TERMS = {
    "sum": (lambda a, b: a, lambda a, b: a.sum(axis=-1), 0),
    "dot product": (lambda a, b: a * b, lambda a, b: (a * b).sum(axis=-1), 1),
    "product of three": (lambda a, b: a * b * a, lambda a, b: (a * b * a).sum(axis=-1), 2),
}
DTYPES = (np.float16, np.float32, np.float64, np.complex64, np.complex128)
MORE_FOR_COMPLEX = 3  # roundings of a complex product for one of a real one


@pytest.mark.parametrize("order", ORDERS)
def test_no_correct_sum_is_rejected(order):
    add, terms = ORDERS[order]
    rng = np.random.default_rng(0)
    for _ in range(CORRECT // len(ORDERS)):
        product, reference, roundings = TERMS[rng.choice([*TERMS])]
        dtype, n, kind = (
            DTYPES[rng.integers(len(DTYPES))],
            rng.integers(0, 130),
            rng.choice(["integers", "normal", "wide"]),
        )
        a, b = (drawn(kind, rng.integers(2**16), (3, n), dtype) for _ in range(2))
        if dtype is np.float16 and kind == "wide":
            b = np.sign(b)  # a b a would pass 65504
        assert_matches_reference(
            lambda a, b, product=product: add(product(a, b)),
            reference,
            [a, b],
            terms=terms(n),
            roundings=roundings * (MORE_FOR_COMPLEX if np.dtype(dtype).kind == "c" else 1),
            layouts=("C",),
            aliased=False,
        )


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


ELEMENTWISE = {  # name -> (function, roundings: two make one ulp; NumPy's are within 4)
    "sqrt": (np.sqrt, 1),
    "exp": (np.exp, 8),
    "sin": (np.sin, 8),
    "multiply and add": (lambda x: x * x + x, 3),
    "divide": (lambda x: 1 / x, 1),
}


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_ulp_bounds_pass_correct_functions_and_find_one_that_is_off_by_more(name, dtype):
    function, roundings = ELEMENTWISE[name]
    x = np.abs(drawn("normal", 1, (100,), dtype)) + dtype(0.125)
    assert_matches_reference(function, function, [x], roundings=roundings, fills=False)
    ulps = dtype(1 + 2 * (roundings + 1) * np.finfo(dtype).eps)
    with pytest.raises(sn.ContractError, match="roundings in"):
        assert_matches_reference(lambda x: function(x) * ulps, function, [x], roundings=roundings, fills=False)


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
