"""A script of kernels: it calls them, and prints their results, what was compiled, and what was imported, as JSON.

Tests of the cache copy it, sometimes with an edit, and run it in fresh processes.
"""

import json
import sys

import numpy as np
from numba import prange  # noqa: F401 - for an edit

from scratchnet.native.compile import compile_stats, jit, stamp


@jit
def square(x):
    return x * x


@jit
def twice(x):
    return 2 * x


def function(x):
    return x


@jit
def elementwise(x, out):
    for i in range(x.size):
        out[i] = function(x[i])


kernels = [stamp(elementwise, "kernel", function=f) for f in (square, twice)]  # of the same name, on purpose


def main():
    x, results = np.arange(4.0), []
    for kernel in kernels:
        out = np.empty_like(x)
        kernel(x, out)
        results.append(out.tolist())
    modules = [name for name in ("scipy.linalg", "numba.np.linalg") if name in sys.modules]
    print(json.dumps({"results": results, "stats": compile_stats(), "modules": modules}))
