"""The matrix units: rounding, packing, and the order of sums, as their plain definition says."""

import math
from fractions import Fraction

import numpy as np
import pytest

from scratchnet.native import tiles
from scratchnet.native.compile import JIT_ENABLED
from scratchnet.native.llvm import Operand
from scratchnet.testing.oracles.half import bfloat16

needs_units = pytest.mark.skipif(not (JIT_ENABLED and tiles.are_there()), reason="a CPU without matrix units")

KINDS = np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32)  # float32 of every sign and exponent
TIES = np.concatenate([np.arange(2**16, dtype=np.uint32) << 16 | half for half in (0x7FFF, 0x8000, 0x8001)])


@pytest.mark.parametrize("bits", [KINDS, TIES], ids=["kinds", "ties"])
def test_rounding_is_that_of_the_definition_by_exponents(bits):
    x = bits.view(np.float32)
    with np.errstate(all="ignore"):
        expected = bfloat16(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(tiles.bfloat16(x), expected)


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
            found = tiles._fused(np.float32([a * sign]), np.float32([b]), np.float32([c]))
            assert found[0] == nearest(Fraction(float(a)) * sign * Fraction(float(b)) + Fraction(float(c)))


@needs_units
@pytest.mark.parametrize(("interleaved", "turned"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_packing_is_that_of_its_twin(interleaved, turned):
    x = np.resize(np.concatenate([TIES, KINDS]), (64, 64)).view(np.float32).copy()
    packed = [np.zeros(2 * tiles.WORDS, np.float32) for _ in range(2)]
    for function, target in zip((_pack, tiles._pack_tiles), packed, strict=True):
        function(Operand(x, 3, 64, 32), Operand(target, 0, 16, tiles.WORDS), 2, interleaved, turned)
    assert packed[0].tobytes() == packed[1].tobytes()


@needs_units
@pytest.mark.parametrize("kind", ["normal", "wide", "subnormal"])
@pytest.mark.parametrize(("rows", "columns", "add"), [(1, 1, 0), (2, 1, 1), (1, 2, 1), (2, 2, 1)])
def test_sums_have_the_order_of_the_definition(kind, rows, columns, add):
    rng = np.random.default_rng(rows + 2 * columns)
    scale = {"normal": 1.0, "wide": 10.0 ** rng.integers(-12, 12, (2, 3, 512)), "subnormal": 1e-19}[kind]
    factors = (rng.standard_normal((2, 3, 512)) * scale).astype(np.float32)
    words = [np.zeros(2 * 3 * tiles.WORDS, np.float32) for _ in range(2)]
    for side, target in enumerate(words):
        blocks = np.ascontiguousarray(np.roll(factors, side, axis=2)).reshape(-1)
        tiles._pack_tiles(Operand(blocks, 0, 32, 512), Operand(target, 0, 16, tiles.WORDS), 6, 0, side)
    start = rng.standard_normal((32, 40)).astype(np.float32)
    results = []
    for function in (_multiply, tiles._multiply_tiles):
        out, panel = start.copy(), 3 * tiles.WORDS
        left, right = (Operand(target, 0, 0, panel) for target in words)
        function(left, right, Operand(out, 0, 40, 0), 3, rows, columns, add)
        results.append(out)
    assert results[0].tobytes() == results[1].tobytes()
    untouched = np.ones(start.shape, bool)
    untouched[: 16 * rows, : 16 * columns] = False
    np.testing.assert_array_equal(results[0][untouched], start[untouched])


if JIT_ENABLED:
    from scratchnet.native.compile import jit

    @jit
    def _pack(source, target, count, interleaved, turned):
        tiles_pack(source, target, count, interleaved, turned)

    @jit
    def _run_multiply(config, left, right, out, k, rows, columns, add):
        tiles_begin(config)
        tiles_multiply(left, right, out, k, rows, columns, add)
        tiles_end(config)

    tiles_pack, tiles_begin, tiles_end = tiles.pack_tiles, tiles.begin_tiles, tiles.end_tiles
    tiles_multiply = tiles.multiply_tiles

    def _multiply(*arguments):
        _run_multiply(Operand(tiles.configuration(), 0, 0, 0), *arguments)
