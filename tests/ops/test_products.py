"""Matrix products by NumPy's rules."""

import numpy as np
import pytest
from sizes import SIMULATED

import scratchnet as sn
from scratchnet.testing import gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")


@pytest.mark.usefixtures("device")
def test_the_error_of_a_long_sum_does_not_grow_with_its_length():
    """In one chain, 0.1 is added to a sum so large that it is rounded to 0.125 or less each time."""
    k = 2_000_000 if not SIMULATED else 2100
    x = sn.Tensor(np.full(k, 0.1, np.float32))
    ones = sn.Tensor(np.ones((k, 2), np.float32))
    weight = sn.Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    (x.reshape(k, 1) @ weight).sum().backward()  # a gradient summed over a large batch
    exact = k * float(np.float32(0.1))
    for result in (x @ ones, weight.grad, x @ x * 10.0, x.sum()):
        np.testing.assert_allclose(result.numpy(), exact, rtol=(1024 + k / 1024) * 2**-24)  # a rounding a term, a span


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((4, 3), (3,)),
        ((4, 3), (3, 2)),
        ((2, 4, 3), (3,)),
        ((3,), (2, 3, 2)),
        ((2, 4, 3), (3, 2)),
        ((2, 1, 2, 3), (2, 3, 1)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
    ],
)
def test_matmul_has_numpys_shapes_and_right_gradients(a, b):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(a), rng.standard_normal(b)
    np.testing.assert_allclose((sn.Tensor(x) @ sn.Tensor(y)).numpy(), x @ y, rtol=1e-12, atol=1e-12)
    gradcheck(lambda x, y: x @ y, [x, y], order=2)
