"""Every kernel in Numba's own simulator, where each thread of a kernel is a thread of Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import SIMULATED

from scratchnet.testing import KERNEL_ROWS, host_kernel, kernel_cases

NEEDS = "simulated"
if SIMULATED:
    from scratchnet.kernels.cuda import compile, tuning


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("name", KERNEL_ROWS)
@settings(max_examples=3)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kernels_match_the_oracle_in_numbas_simulator(name, dtype, data):
    row = KERNEL_ROWS[name]
    if dtype not in row.dtypes and not (dtype == np.int64 and row.integers):
        pytest.skip("a dtype that the kernel does not take")
    case = data.draw(kernel_cases(name, dtypes=[dtype], sizes=(0, 1, 2, 3, 5, 8, 9), max_elements=24))
    token = compile.launcher.set(compile._run)
    try:
        with tuning.use(tuning.SIMULATED_SMALL):
            case.check(host_kernel("cuda", name), layouts=("offset",))
    finally:
        compile.launcher.reset(token)
