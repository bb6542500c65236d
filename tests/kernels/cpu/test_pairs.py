"""Pairs of bfloat16: rounding, packing, and the order of sums, as their plain definition says."""

import math
from fractions import Fraction

import numpy as np
import pytest
from bfloat16_sums import check_sums, nearest_bfloat16

from scratchnet.kernels.cpu import pairs
from scratchnet.native.compile import JIT_ENABLED, jit
from scratchnet.native.llvm import Operand

needs_units = pytest.mark.skipif(not (JIT_ENABLED and pairs.are_there()), reason="a CPU without avx512_bf16")

KINDS = np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32)  # float32 of every sign and exponent
TIES = np.concatenate([np.arange(2**16, dtype=np.uint32) << 16 | half for half in (0x7FFF, 0x8000, 0x8001)])


@pytest.mark.parametrize("bits", [KINDS, TIES], ids=["kinds", "ties"])
def test_rounding_is_that_of_the_definition_by_exponents(bits):
    x = bits.view(np.float32)
    with np.errstate(all="ignore"):
        expected = nearest_bfloat16(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(pairs.bfloat16(x), expected)


def nearest(x):
    """A fraction as the nearest float32, ties to even."""
    shift = 23 - math.floor(math.log2(abs(x)))
    return np.float32(math.ldexp(round(x * Fraction(2) ** shift), -shift))


def test_multiply_add_is_rounded_once():
    """The cases of a float64 sum that ends in a tie of float32, which a part of the product breaks."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        c = np.float32(rng.integers(2**23, 2**24))
        a, b = (np.float32(rng.integers(128, 256)) for _ in "ab")
        a = np.float32(np.ldexp(a, int(rng.integers(-60, 8))))
        for sign in (1, -1):
            found = pairs.fused(np.float32([a * sign]), np.float32([b]), np.float32([c]))
            assert found[0] == nearest(Fraction(float(a)) * sign * Fraction(float(b)) + Fraction(float(c)))


def test_a_sum_by_pairs_takes_the_second_term_first():
    one, tiny = np.ones((1, 1), np.float32), 2.0**-24
    assert pairs.add_pairs(one, np.float32([[-1, tiny]]), np.ones((2, 1), np.float32)) == 0
    assert pairs.add_pairs(one, np.float32([[tiny, -1]]), np.ones((2, 1), np.float32)) == tiny


@needs_units
@pytest.mark.parametrize(("interleaved", "turned"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_packing_is_that_of_its_twin(interleaved, turned):
    x = np.resize(np.concatenate([TIES, KINDS]), (64, 64)).view(np.float32).copy()
    packed = [np.zeros(2 * pairs.WORDS, np.float32) for _ in range(2)]
    for function, target in zip((_pack, pairs._pack_tiles), packed, strict=True):
        function(Operand(x, 3, 64, 32), Operand(target, 0, 16, pairs.WORDS), 2, interleaved, turned)
    assert packed[0].tobytes() == packed[1].tobytes()


@needs_units
@pytest.mark.parametrize("kind", ["normal", "wide", "subnormal"])
@pytest.mark.parametrize(("rows", "columns", "add"), [(1, 1, 0), (2, 1, 1), (1, 2, 1), (2, 2, 1)])
def test_sums_have_the_order_of_the_definition(kind, rows, columns, add):
    check_sums(_multiply, pairs._multiply_pairs, kind, rows, columns, add)


def test_a_cpu_that_adds_up_in_another_order_is_not_used(monkeypatch):
    def other(a, b, out, *rest):
        for target, terms in pairs.each_tile(a, b, out, *rest[:3]):
            target[...] = sum(x @ y for x, y in terms)

    assert pairs._obey() or not pairs.are_there()
    monkeypatch.setattr(pairs, "_multiply_here", other)
    assert not pairs._obey()
    monkeypatch.setattr(pairs, "_multiply_here", pairs._multiply_pairs)
    assert pairs._obey()
    monkeypatch.setattr(pairs, "_multiply_here", _even_first)
    assert not pairs._obey()


def _even_first(a, b, out, k, rows, columns, add):
    for target, terms in pairs.each_tile(a, b, out, k, rows, columns):
        turned = np.arange(pairs.DEPTH) ^ 1
        sums = np.zeros_like(target)
        for x, y in terms:
            sums = pairs.add_pairs(sums, x[:, turned], y[turned])
        target[...] = sums


@jit
def _pack(source, target, count, interleaved, turned):
    pack_tiles(source, target, count, interleaved, turned)


@jit
def _multiply(left, right, out, k, rows, columns, add):
    multiply_pairs(left, right, out, k, rows, columns, add)


pack_tiles, multiply_pairs = pairs.pack_tiles, pairs.multiply_pairs
