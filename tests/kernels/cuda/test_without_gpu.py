"""Where something is missing, `.to("cuda")` says in one line what it is."""

import importlib.util
from unittest import mock

import numpy as np
import pytest
from sizes import SIMULATED

import scratchnet as sn
from scratchnet import kernels
from scratchnet.kernels.cuda import compile

MACHINE_HAS_GPU = sn.cuda.is_available()
HAS_PACKAGE = importlib.util.find_spec("numba_cuda") is not None


@pytest.fixture(autouse=True)
def _looks_again():
    kernels._check_cuda.cache_clear()
    yield
    kernels._check_cuda.cache_clear()


def message():
    with pytest.raises(sn.DeviceError) as caught:
        sn.Tensor(np.ones(3, np.float32)).to("cuda")
    with pytest.raises(sn.DeviceError):
        sn.nn.Linear(2, 2).to("cuda")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(SIMULATED or MACHINE_HAS_GPU or not HAS_PACKAGE, reason="needs numba-cuda, and no GPU")
def test_without_a_driver():
    assert message() == "cuda: expected an NVIDIA GPU and its driver, got none"
    assert not sn.cuda.is_available()


@pytest.mark.skipif(SIMULATED, reason="the simulator needs no package")
def test_without_the_package():
    with mock.patch.object(importlib.util, "find_spec", lambda name: None):
        assert message() == "cuda: expected the package numba-cuda; pip install 'numba-cuda[cu13]', got none"
        assert not sn.cuda.is_available()


@pytest.mark.skipif(SIMULATED or not HAS_PACKAGE, reason="needs numba-cuda")
def test_whatever_a_driver_raises_is_one_line():
    with mock.patch.object(compile.machine, "why_unavailable", side_effect=ValueError("first\nthe last line")):
        assert message() == "cuda: expected an NVIDIA GPU and its driver, got the last line"
