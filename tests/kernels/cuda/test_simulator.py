"""Every kernel in Numba's own simulator, where each thread of a kernel is a thread of Python.

It shows that kernels mean there what they mean to our interpreter, in which all dtypes and many more sizes are tested.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import SIMULATED, SLOW

from scratchnet.testing import KERNEL_ROWS, host_kernel, kernel_cases

NEEDS = "simulated"
if SIMULATED:
    from scratchnet.kernels.cuda import compile, tuning


@pytest.mark.parametrize("name", [name for name in KERNEL_ROWS if name not in SLOW])
@settings(max_examples=2)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kernels_match_the_oracle_in_numbas_simulator(name, data):
    dtype = KERNEL_ROWS[name].dtypes[0]
    case = data.draw(kernel_cases(name, dtypes=[dtype], sizes=(0, 1, 2, 3, 5, 8, 9), max_elements=24))
    token = compile.launcher.set(compile._run)
    try:
        with tuning.use(tuning.SIMULATED_SMALL):
            case.check(host_kernel("cuda", name), layouts=("offset",))
    finally:
        compile.launcher.reset(token)
