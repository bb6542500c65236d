"""Kernels of @cuda.jit against references, in Numba's simulator; started by tests/testing/test_calls.py."""

import sys

import numpy as np
from numba import cuda

from scratchnet.errors import ContractError
from scratchnet.testing import assert_matches_reference


@cuda.jit
def doubled(x, out):
    i = cuda.grid(1)
    if i < x.size:
        out[i] = 2 * x[i]


@cuda.jit
def forgets_the_last_thread(x, out):
    i = cuda.grid(1)
    if i < x.size - 1:
        out[i] = 2 * x[i]


@cuda.jit
def writes_to_its_input(x, out):
    i = cuda.grid(1)
    if i < x.size:
        x[i] *= 2
        out[i] = x[i]


@cuda.jit
def outer(x, y, out):
    i, j = cuda.grid(2)
    if i < x.size and j < y.size:
        out[i, j] = x[i] * y[j]


def found(kernel):
    try:
        assert_matches_reference(kernel, lambda x: 2 * x, [X], roundings=0)
    except ContractError as error:
        return str(error)
    return None


X = np.arange(1, 38, dtype=np.float32)
assert found(doubled) is None
assert "element (36,)" in found(forgets_the_last_thread)
assert "inputs as they were" in found(writes_to_its_input)
assert_matches_reference(outer, np.multiply.outer, [X[:5], X[:9]], roundings=1, launch=((2, 3), (4, 4)))
sys.exit(0)
