"""What elementwise ops promise beyond the contract of all ops: casts, kinks, bounds."""

import warnings

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.ops import OPS
from scratchnet.testing import gradcheck

FLOATS = (np.float32, np.float64)


@pytest.mark.usefixtures("numpy_device")
def test_clip_takes_one_bound_or_two():
    t = sn.Tensor([-2.0, 0.5, 2.0])
    assert t.clip(-1, 1).numpy().tolist() == [-1.0, 0.5, 1.0]
    assert t.clip(0).numpy().tolist() == [0.0, 0.5, 2.0]
    assert t.clip(high=0).numpy().tolist() == [-2.0, 0.0, 0.0]
    assert sn.Tensor([-2, 5]).clip(0).numpy().tolist() == [0, 5]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_a_cast_converts_and_its_gradient_comes_back_in_the_dtype_it_left(source, target):
    x = sn.Tensor(np.array([1.1, 2.2], source), requires_grad=True)
    y = OPS["cast"](x, dtype=np.dtype(target))
    y.backward(np.array([1.3, 1.4], target))
    assert y.dtype == target and x.grad.dtype == source
    np.testing.assert_array_equal(y.detach().numpy(), x.detach().numpy().astype(target))
    np.testing.assert_array_equal(x.grad.numpy(), np.array([1.3, 1.4], target).astype(source))
    gradcheck(lambda x: OPS["cast"](x, dtype=np.dtype(np.float64)), [np.array([1.1, 2.2])], order=2)


@pytest.mark.parametrize("target", [np.uint8, np.int32, np.int64])
def test_a_cast_of_what_an_integer_type_cannot_hold_is_silent(device, target):
    if device == "cuda":
        pytest.skip("a GPU clamps, and the simulator's Python integers do not fit")
    values = np.array([1e10, -1e20, np.nan, np.inf, 300.0, -1.0], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sn.Tensor(values).astype(target).numpy()
    with np.errstate(all="ignore"):
        assert found.tolist() == values.astype(target).tolist()


TIES = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("base", "exponent", "gradients"),
    [  # of the base and of the exponent; 0 ** b is 1 at b = 0 and 0 above, so flat from the right
        (0.0, 0.0, (0.0, 0.0)),
        (0.0, 2.0, (0.0, 0.0)),
        (0.0, 1.0, (1.0, 0.0)),
        (3.0, 0.0, (0.0, np.log(3.0))),
        (2.0, -1.0, (-0.25, 0.5 * np.log(2.0))),
    ],
)
def test_a_power_has_finite_gradients_where_it_is_flat(base, exponent, gradients):
    a, b = (sn.Tensor(np.array([value]), requires_grad=True) for value in (base, exponent))
    (a**b).sum().backward()
    np.testing.assert_allclose([a.grad.item(), b.grad.item()], gradients, rtol=1e-15)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x.max(axis=1), [[0, 0.5, 0.5], [1 / 3] * 3]),
        (lambda x: (-x).min(axis=1), [[0, -0.5, -0.5], [-1 / 3] * 3]),
        (lambda x: x.max(), [[0, 0.5, 0.5], [0, 0, 0]]),
        (lambda x: x.maximum(2.0), [[0, 1, 1], [0.5] * 3]),
        (lambda x: x.minimum(2.0), [[1, 0, 0], [0.5] * 3]),
        (lambda x: abs(x - 3.0), [[-1, 0, 0], [-1, -1, -1]]),
        (lambda x: (x - 2.0).relu(), [[0, 1, 1], [0, 0, 0]]),
        (lambda x: x.clip(2.0, 3.0), [[0, 1, 1], [1, 1, 1]]),
        (lambda x: x.sign(), None),
    ],
)
def test_at_a_kink_the_gradient_is_the_documented_one(f, expected):
    x = sn.Tensor(TIES, requires_grad=True)
    y = f(x)
    if expected is None:
        assert not y.requires_grad
        return
    y.backward(np.ones(y.shape))
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-15)


def test_the_gradient_of_silu_is_exact_for_large_elements():
    x = sn.Tensor(np.array([1e4 + 0.3, 3e7, 1e30, -1e30], np.float32), requires_grad=True)
    x.silu().sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0]
