"""Tools for property tests: arrays of every layout, kernels against a reference, gradients against differences.

They check scratchnet's own kernels and ops, and yours. A property test of a kernel takes ten lines::

    from hypothesis import given
    from scratchnet.testing import arrays, assert_matches_reference

    def row_sums(x, out):                     # the kernel: it reads x and fills out
        for i in range(len(out)):
            out[i] = x[i].sum()

    @given(arrays("mn"))                      # one array, m rows of n numbers; "mk,kn" draws two that fit
    def test_row_sums(inputs):                # the bound comes from the number of terms in one sum
        assert_matches_reference(row_sums, lambda x: x.sum(axis=1), inputs, terms=inputs[0].shape[1])

To write a kernel of scratchnet's own table again, for another device, take inputs, oracle and bound from that table::

    @given(kernel_cases("softmax"))
    def test_my_softmax(case):
        case.check(my_softmax)

To check derivatives of any order call `gradcheck(f, inputs)`. Strategies need Hypothesis, and the oracles of kernels
SciPy: `pip install hypothesis scipy`.
"""

from .bounds import ULPS, blocked, pairwise, roundings_of
from .cases import KernelCase, kernel_cases
from .contract import assert_matches_reference
from .devices import host_kernel
from .gradients import gradcheck
from .kernels import KERNEL_ROWS
from .strategies import CONTIGUOUS, DOMAINS, EDGES, LAYOUTS, SPECIAL, arrays, drawn
from .threads import barriers_of, find_races, interpreted

__all__ = [
    "CONTIGUOUS",
    "DOMAINS",
    "EDGES",
    "KERNEL_ROWS",
    "LAYOUTS",
    "SPECIAL",
    "ULPS",
    "KernelCase",
    "arrays",
    "assert_matches_reference",
    "barriers_of",
    "blocked",
    "drawn",
    "find_races",
    "gradcheck",
    "host_kernel",
    "interpreted",
    "kernel_cases",
    "pairwise",
    "roundings_of",
]
