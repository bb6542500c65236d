"""Loops that check values, and write 1 to `stop` where the check fails, which ends a program: see native/execute.py.

Item i checks the i-th value. So a guard may run block by block with those who read the values after it: where it stops
the program, the rest of the block is not run.
"""

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged


@jit
def _in_range(lo, hi, x, low, high, stop):
    for i in range(lo, hi):
        if x[i] < low or x[i] >= high:
            stop[0] = 1


@jit
def _finite(lo, hi, x, stop):
    for i in range(lo, hi):
        if not np.isfinite(x[i]):
            stop[0] = 1


# A guard counts as a writer of the array that it checks, so that every later reader waits for it.
_run_in_range = ranged(_in_range, "in_range", writes=(0, 3), whole=(3,))
_run_finite = ranged(_finite, "finite", writes=(0, 1), whole=(1,))


def in_range(x, low, high, stop):
    """Sets `stop` unless all of x (int64) is in [low, high)."""
    _run_in_range(x.size, 1, x.ravel(), low, high, stop)


def finite(x, stop):
    """Sets `stop` if any element of x is NaN or infinite."""
    _run_finite(x.size, 1, x.ravel(), stop)


GUARDS = {"in_range": in_range, "finite": finite}
