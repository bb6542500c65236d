"""The search for the op that made a NaN."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.nonfinite import first_nonfinite

pytestmark = pytest.mark.usefixtures("numpy_device")


def leaf(*values, dtype=np.float64):
    return sn.Tensor(np.array(values if len(values) != 1 else values[0], dtype), requires_grad=True)


def gradient(x):
    return x.grad.numpy().tolist()


def test_the_first_op_with_a_result_that_is_not_finite_is_named():
    x = leaf(-1.0, 2.0)
    with np.errstate(all="ignore"):
        assert first_nonfinite((x.exp() * x).log() + x.exp()) == "log"
        assert first_nonfinite((x / 0.0) * x) == "div"
    assert first_nonfinite(x.exp() * x) is None
    assert first_nonfinite(leaf(np.nan) * 2) == "an input"
