"""The matrix units: the order of their sums, as the plain definition says."""

import pytest
from bfloat16_sums import check_sums

from scratchnet.kernels.cpu import tiles
from scratchnet.native.compile import JIT_ENABLED, jit
from scratchnet.native.llvm import Operand

needs_units = pytest.mark.skipif(not (JIT_ENABLED and tiles.are_there()), reason="a CPU without matrix units")


@needs_units
@pytest.mark.parametrize("kind", ["normal", "wide", "subnormal"])
@pytest.mark.parametrize(("rows", "columns", "add"), [(1, 1, 0), (2, 1, 1), (1, 2, 1), (2, 2, 1)])
def test_sums_have_the_order_of_the_definition(kind, rows, columns, add):
    def compiled(*arguments):
        _multiply(Operand(tiles.configuration(), 0, 0, 0), *arguments)

    check_sums(compiled, tiles._multiply_tiles, kind, rows, columns, add)


@jit
def _multiply(config, left, right, out, k, rows, columns, add):
    begin(config)
    multiply(left, right, out, k, rows, columns, add)
    end(config)


begin, multiply, end = tiles.begin_tiles, tiles.multiply_tiles, tiles.end_tiles
