"""How a kernel gets its parallel path: every kernel is written once, for a range of its work, and stamped twice.

`ranged` takes a function `body(lo, hi, *arguments)` that does the items lo to hi of some work, each on its own. Small
work is one call for all items; large work is one parallel loop over blocks of items. Which of the two, and where the
blocks end, depends on sizes only, and no item knows its block: so bits depend on neither.
"""

from collections.abc import Callable

import numpy as np
from numba import prange

from .compile import jit, stamp

# The one table of thresholds. Work is counted in light operations: reading, adding and writing one element, 0.1-0.3 ns.
PARALLEL_FROM = 65536  # a parallel region costs 1-2 us under omp and tbb, as much as 10,000 light operations
BLOCK = 8192  # work of one block of a parallel loop
WEIGHT = {  # of one element, where the operation is not light
    **dict.fromkeys(("log", "pow"), 32),
    **dict.fromkeys(("erf", "gelu", "gelu_grad"), 64),
    **dict.fromkeys(("softmax", "logsumexp", "log_softmax", "cross_entropy", "cross_entropy_grad"), 8),
    **dict.fromkeys(("exp", "tanh", "sigmoid", "argmax"), 8),
    **dict.fromkeys(("sqrt", "div"), 4),
    "dropout": 32,
}

# ruff: noqa: F821 - bound by each stamp
body: Callable


@jit(parallel=True)
def _over_blocks(size, block, *arguments):
    for i in prange((size + block - 1) // block):
        lo = np.int64(i) * block  # the index of a prange is unsigned
        body(lo, min(lo + block, size), *arguments)


def ranged(template, name, **bindings):
    """A function run(size, cost, *arguments) that does `size` items, each of `cost` elements, by stamps of `template`.

    run.serial is the stamp for a range, run.parallel the loop over blocks; each compiles when it is first needed.
    """
    serial = stamp(template, name, **bindings)
    parallel = stamp(_over_blocks, f"{name}_parallel", body=serial)
    weight = WEIGHT.get(name, 1)

    def run(size, cost, *arguments):
        work = size * cost * weight
        if work < PARALLEL_FROM:
            serial(0, size, *arguments)
        else:
            parallel(size, max(1, BLOCK * size // work), *arguments)

    run.serial, run.parallel = serial, parallel
    return run
