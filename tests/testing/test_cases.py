"""`kernel_cases`: random calls of a kernel of the table, for whoever writes that kernel again."""

import numpy as np
import pytest
from hypothesis import given, settings
from sizes import SIZES

import scratchnet as sn
from scratchnet.testing import kernel_cases


def test_a_kernel_of_ones_own_can_be_tested_against_the_table():
    def my_softmax(x, out):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        out[...] = e / e.sum(axis=1, keepdims=True)

    def unshifted(x, out):
        e = np.exp(x)
        out[...] = e / e.sum(axis=1, keepdims=True)

    @settings(max_examples=30)
    @given(kernel_cases("softmax", **SIZES))
    def check(kernel, case):
        with np.errstate(all="ignore"):
            case.check(kernel)

    check(my_softmax)
    with pytest.raises(sn.ContractError):
        check(unshifted)


@settings(max_examples=1)
@given(kernel_cases("take_rows", dtypes=[np.float32], sizes=[3]))
def test_a_case_is_printed_in_short(case):
    assert repr(case) == "KernelCase('take_rows', [float32[3, 3], int64[3]], {})"


def test_kernel_cases_of_an_unknown_kernel_is_an_error():
    with pytest.raises(sn.ConfigError, match="softmaxx"):
        kernel_cases("softmaxx")
