"""Tests of the cuda table: with NUMBA_ENABLE_CUDASIM=1 those that run kernels, without it those that compile."""

import importlib.util

import pytest
from sizes import SIMULATED

NEEDS = {
    "simulated": (SIMULATED, "set NUMBA_ENABLE_CUDASIM=1"),
    "compiled": (
        not SIMULATED and importlib.util.find_spec("numba_cuda") is not None,
        "needs numba-cuda, not simulated",
    ),
}


def pytest_collection_modifyitems(items):
    for item in items:
        need = getattr(item.module, "NEEDS", None)
        if need and not NEEDS[need][0]:
            item.add_marker(pytest.mark.skip(reason=NEEDS[need][1]))
