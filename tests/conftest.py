"""How all tests run: on which devices, with how many random examples, and on arrays of what size.

HYPOTHESIS_PROFILE=thorough draws many more examples, new ones each time. With NUMBA_DISABLE_JIT=1 the kernels are plain
Python: few examples, small arrays.
"""

import os

import numba
import pytest
from hypothesis import HealthCheck, settings

import scratchnet as sn
from scratchnet.kernels import TABLES
from scratchnet.testing import EDGES

JIT = not numba.config.DISABLE_JIT
SIZES = {"sizes": EDGES, "max_elements": 2**13} if JIT else {"sizes": EDGES[:7], "max_elements": 2**7}

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
