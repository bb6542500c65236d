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
@given(kernel_cases("clip", sizes=[3], dtypes=[np.float32]))
def test_a_case_takes_the_options_of_assert_matches_reference(case):
    def off(x, out, low, high):
        out[...] = np.clip(x, low, high) * out.dtype.type(1.001)

    def not_in_place(x, out, low, high):
        out[...] = 99 if np.may_share_memory(x, out) else np.clip(x, low, high)

    with np.errstate(all="ignore"):
        case.check(off, rtol=2e-3)
        with pytest.raises(sn.ContractError, match=r"0 roundings in float32, rtol=0.0005"):
            case.check(off, rtol=5e-4)
        with pytest.raises(sn.ContractError, match="in place, inputs"):
            case.check(not_in_place, inplace=0)
    with pytest.raises(
        sn.ConfigError, match=r"KernelCase.check: expected an option, as the case gives low=-\d, got 'low'"
    ):
        case.check(off, low=3)
    with pytest.raises(sn.ConfigError, match="write layouts"):
        case.check(off, layout=("C",))


@settings(max_examples=1)
@given(kernel_cases("take_rows", dtypes=[np.float32], sizes=[3]))
def test_a_case_is_printed_in_short(case):
    assert repr(case) == "KernelCase('take_rows', [float32[3, 3], int64[3]], {})"


def test_kernel_cases_of_an_unknown_kernel_is_an_error():
    with pytest.raises(sn.ConfigError, match="softmaxx"):
        kernel_cases("softmaxx")
