"""Reductions over axes, and softmax along any of them, against NumPy."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.testing import gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")

X = np.random.default_rng(0).standard_normal((3, 4))
FLOATS = (np.float32, np.float64)


def logsumexp(x, axis=None, keepdims=False):
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


REDUCTIONS = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "var": np.var,
    "std": np.std,
    "logsumexp": logsumexp,
    "argmax": np.argmax,
}
AXES = [None, 0, 1, -1, (0, 1), (0, -1), (2, 0), [1], ()]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("name", "axis"),
    [(name, axis) for name in REDUCTIONS for axis in AXES if name != "argmax" or not isinstance(axis, tuple | list)],
)
def test_reductions_are_numpys(name, axis):
    x = np.random.default_rng(0).standard_normal((2, 3, 2))
    numpy_axis = tuple(axis) if isinstance(axis, list) else axis
    for keepdims in (False, True):
        y = getattr(sn.Tensor(x), name)(axis=axis, keepdims=keepdims)
        expected = REDUCTIONS[name](x, axis=numpy_axis, keepdims=keepdims)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)
    if name != "argmax" and not (name == "std" and axis == ()):  # 0 everywhere, with a kink there
        gradcheck(lambda t: getattr(t, name)(axis=axis), [x], order=2, max_elements=0)


@pytest.mark.usefixtures("device")
def test_the_gradient_of_std_is_0_where_all_elements_are_equal():
    x = sn.Tensor(np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]]), requires_grad=True)
    for ddof in (0, 1):
        x.grad = None
        x.std(1, ddof=ddof).sum().backward()
        slope = (3 - ddof) ** -0.5 * 2**-0.5  # (x - mean) / (n - ddof) / std
        np.testing.assert_allclose(x.grad.numpy(), [[0, 0, 0], [-slope, 0, slope]], rtol=1e-12)
    second = sn.grad(lambda x: (sn.grad(lambda x: x.std())(x) ** 2).sum())(sn.Tensor([1.0, 1.0]))
    assert second.numpy().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_var_and_std_divide_by_n_minus_ddof(ddof):
    for name in ("var", "std"):
        y = getattr(sn.Tensor(X), name)(axis=1, ddof=ddof)
        np.testing.assert_allclose(y.numpy(), getattr(np, name)(X, axis=1, ddof=ddof), rtol=1e-13)


def test_the_mean_of_integers_whose_sum_does_not_fit_is_right():
    x = np.array([[2**62, 2**62, 2**62], [-(2**63), -(2**63), 1]])
    found = sn.Tensor(x).mean(axis=1)
    assert found.dtype == np.float32 and sn.Tensor(x[:1]).var().item() == 0
    np.testing.assert_array_equal(found.numpy(), x.mean(axis=1).astype(np.float32))


def test_sums_of_nothing_are_zero_and_means_of_nothing_are_nan():
    empty = sn.Tensor(np.zeros((0, 3)))
    assert empty.sum().item() == 0 and empty.sum(0).numpy().tolist() == [0.0] * 3
    assert np.isnan(empty.mean().item())
    assert empty.sum(1).shape == (0,)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_works_along_any_axis_and_does_not_overflow(axis):
    x = np.array([[1000.0, 0.0, -1000.0], [1.0, 2.0, 3.0]])
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    expected = e / e.sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(sn.softmax(sn.Tensor(x), axis).numpy(), expected, rtol=1e-14)
    small = x / 1000
    np.testing.assert_allclose(
        sn.log_softmax(sn.Tensor(small), axis).numpy(),
        np.log(sn.softmax(sn.Tensor(small), axis).numpy()),
        rtol=1e-12,
        atol=1e-12,
    )
    assert sn.logsumexp(sn.Tensor(x)).item() == 1000.0
    for f in (sn.softmax, sn.log_softmax):
        gradcheck(lambda t, f=f: f(t, axis), [small], order=2)


def test_integers_of_64_bits_are_summed_exactly():
    """Modulo 2^64, as NumPy does."""
    for values in ([2**60 + 1, 1, 1], [2**64 - 1, 3, 2**63]):
        x = np.array([values, values], np.uint64)
        for axis in (None, 0, 1):
            np.testing.assert_array_equal(sn.Tensor(x).sum(axis=axis).numpy().view(np.uint64), x.sum(axis=axis))
    np.testing.assert_array_equal(sn.Tensor(x.astype(np.int64)).sum().numpy(), x.astype(np.int64).sum())
