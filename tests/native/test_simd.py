"""The rules of optimizers in tiles: the twins, against the reference kernels. The tiles: tests/jit/test_step.py."""

import numpy as np
import pytest

from scratchnet.kernels import device
from scratchnet.kernels.cpu.optim import PREPARE
from scratchnet.native.llvm import Operand
from scratchnet.native.simd import TILE, UPDATING, Strip
from scratchnet.native.updates import UPDATES

NUMBERS = {
    "sgd": [[0.1, 0.9, 0.0, 0.01], [0.1, 0.9, 1.0, 0.01]],
    "adam": [[0.1, 0.9, 0.99, 1e-8, 0.01, 0.0, 3.0], [0.1, 0.9, 0.99, 1e-8, 0.01, 1.0, 3.0]],
    "rmsprop": [[0.1, 0.9, 1e-8, 0.5, 0.01]],
}


@pytest.mark.parametrize(("update", "numbers"), [(update, row) for update, rows in NUMBERS.items() for row in rows])
def test_a_tile_that_updates_does_what_the_optimizer_does_with_the_sums(update, numbers):
    draw, steps, rows, columns = np.random.default_rng(0), 5, 3, TILE.vector_bytes // 8 + 2
    a, b = draw.random((steps, rows)), draw.random((steps, columns))
    old = [draw.random((rows, columns)) for _ in range(1 + UPDATES[update].states)]
    new, (p, *states) = [x.copy() for x in old], [np.empty((rows, columns)) for _ in old]
    device("numpy").kernels[update](old[0], a.T @ b, *old[1:], p, *states, np.array(numbers))
    constants = np.array(getattr(PREPARE[update], "py_func", PREPARE[update])(np.array(numbers)), np.float64)
    out, first, second = (Operand(new[min(i, len(new) - 1)], 0, columns, 0) for i in range(3))
    start, left, right = Operand(np.zeros(columns), 0, 0, 0), Operand(a, 0, rows, 0), Operand(b, 0, columns, 0)
    strip = Strip(1, steps, rows, 1, 2, True, False, False)
    UPDATING[update](left, right, start, out, out, first, second, Operand(constants, 0, 0, 0), strip)
    for found, expected in zip(new, (p, *states), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14)
