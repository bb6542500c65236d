"""Matrix products by NumPy's rules."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.testing import gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")


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
