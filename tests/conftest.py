"""How all tests run: on which devices, and with how many random examples.

HYPOTHESIS_PROFILE=thorough draws many more examples, new ones each time. With NUMBA_DISABLE_JIT=1 there are few.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from sizes import JIT

import scratchnet as sn
from scratchnet.kernels import TABLES

COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=10 if JIT else 4, **COMMON)
settings.register_profile("thorough", max_examples=300, **{**COMMON, "derandomize": False})
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(params=TABLES)
def device(request):
    """The name of each device in turn, on which new tensors are made."""
    with sn.default_device(request.param):
        yield request.param


@pytest.fixture
def numpy_device():
    """The reference device, for tests of what happens above the kernels."""
    with sn.default_device("numpy"):
        yield "numpy"
