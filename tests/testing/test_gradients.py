"""`gradcheck`, tested with gradients that are right, wrong by a tenth of a percent, and near kinks."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import one_line

import scratchnet as sn
from scratchnet.ops import Op
from scratchnet.testing import gradcheck

RNG = np.random.default_rng(0)


def op(forward, *vjps):
    """An op outside of the table, which may be as wrong as it likes."""
    return Op("test", lambda device, *arrays: np.asarray(forward(*arrays)), vjps)


A, B = RNG.standard_normal((3, 3)), RNG.standard_normal((3, 3))
V = RNG.standard_normal(3)

RIGHT = {
    "cube": (lambda x: x**3, [A]),
    "matmul": (lambda a, b: a @ b, [A, B]),
    "broadcasting": (lambda a, v: a * v + v, [A, V]),
    "softmax of a product": (lambda a, b: sn.softmax((a @ b).tanh()), [A, B]),
    "variance": (lambda a: a.var(axis=0), [A + 100]),
    "a scalar": (lambda x: x * x, [2.0]),
    "nothing": (lambda x: x * 2, [np.zeros((0, 3))]),
    "many": (lambda x: (x * x).sum(axis=0), [RNG.standard_normal((40, 30))]),
    "flat": (lambda x: x * 0 + 1, [A]),
    "large numbers": (lambda x: x.exp(), [A + 20]),
    "small numbers": (lambda x: x.exp(), [A - 20]),
    "relu away from 0": (lambda x: x.relu(), [np.array([-1.0, 1.0])]),
    "unused input": (lambda a, b: a * 2, [A, B]),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", RIGHT)
def test_right_gradients_pass(name, order):
    f, inputs = RIGHT[name]
    before = [np.array(x) for x in inputs]
    gradcheck(f, inputs, order=order)
    for x, y in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.usefixtures("numpy_device")
@given(seed=st.integers(0, 10**6))
def test_right_gradients_pass_for_any_numbers(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 3, 4)) * 10.0 ** rng.uniform(-3, 2, (2, 1, 1))
    gradcheck(lambda a, b: sn.sigmoid(a) * b + a.tanh() * (b * b).sum(axis=0), [a, b], seed=seed, order=2)


def square(a):
    return a * a


def once(values):
    """1, but 1.001 for the element (1, 2) of a matrix."""
    y = np.ones_like(values)
    y[1, 2] = 1.001
    return y


WRONG_GRADIENTS = {
    "by a tenth of a percent": (op(square, lambda g, y, x: 2.002 * g * x), [A]),
    "by a tenth of a percent in one element": (op(square, lambda g, y, x: 2.0 * g * x * once(A)), [A]),
    "by a tenth of a percent in one of many": (
        op(square, lambda g, y, x: 2.0 * g * x * np.where(np.arange(400) == 7, 1.001, 1)),
        [RNG.standard_normal(400) + 3],
    ),
    "in sign": (op(square, lambda g, y, x: -2.0 * g * x), [A]),
    "in the sign of one input": (op(np.subtract, lambda g, y, a, b: g, lambda g, y, a, b: g), [A, B]),
    "as a term is missing": (op(lambda a: a * np.tanh(a), lambda g, y, x: g * x.tanh()), [A]),
    "as it is transposed": (op(np.matmul, lambda g, y, a, b: (g @ b.T).T, lambda g, y, a, b: a.T @ g), [A, B]),
    "as the wrong factor is transposed": (op(np.matmul, lambda g, y, a, b: g @ b, lambda g, y, a, b: a.T @ g), [A, B]),
    "as it forgets the gradient from above": (op(square, lambda g, y, x: 2.0 * x), [A]),
    "as part of it is detached": (lambda x: x * x.detach(), [A]),
    "as there is none": (lambda a, b: a * b.detach(), [A, B]),
    "for tiny gradients": (op(lambda a: 1e-6 * a, lambda g, y, x: 1.001e-6 * g), [A]),
    "as it is not a number": (op(square, lambda g, y, x: g * np.nan), [A]),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("how", WRONG_GRADIENTS)
def test_a_gradient_that_is_wrong_is_caught(how):
    f, inputs = WRONG_GRADIENTS[how]
    called = f if not isinstance(f, Op) else lambda *xs: sn.Tensor._apply(f, *xs)
    with pytest.raises(sn.GradcheckError, match=r"gradient at .*: expected .*, got .* \(\d+ of \d+ wrong\)") as error:
        gradcheck(called, inputs)
    assert "lambda" in one_line(error)


@pytest.mark.usefixtures("numpy_device")
def test_the_worst_element_is_named():
    f = op(square, lambda g, y, x: 2.0 * g * x * once(A))
    with pytest.raises(sn.GradcheckError, match=r"element \(1, 2\) of input 0"):
        gradcheck(lambda x: sn.Tensor._apply(f, x), [A])
    for n, found in ((64, r"element \(7,\)"), (65, "(?!element)")):  # of more, only all together are checked
        f = op(square, lambda g, y, x, n=n: 2.0 * g * x * np.where(np.arange(n) == 7, 1.001, 1))
        with pytest.raises(sn.GradcheckError, match=f"gradient at {found}"):
            gradcheck(lambda x, f=f: sn.Tensor._apply(f, x), [np.linspace(1, 2, n)])


@pytest.mark.usefixtures("numpy_device")
def test_a_gradient_that_is_not_summed_over_broadcast_axes_is_caught(monkeypatch):
    monkeypatch.setattr(sys.modules["scratchnet.autograd"], "unbroadcast", lambda g, shape: g)
    with pytest.raises(sn.GradcheckError, match=r"shape \(3,\) for input 1, got float64 of shape \(3, 3\)"):
        gradcheck(lambda a, v: a * v, [A, V])


@pytest.mark.usefixtures("numpy_device")
def test_a_second_derivative_that_is_wrong_is_caught_though_the_first_is_right():
    wrong = op(lambda g, y: g * (1 - y * y), lambda h, z, g, y: h * (1.0 - y * y), lambda h, z, g, y: 2.0 * h * g * y)
    tanh = op(np.tanh, lambda g, y, x: sn.Tensor._apply(wrong, g, y))
    gradcheck(lambda x: sn.Tensor._apply(tanh, x), [A])
    with pytest.raises(sn.GradcheckError, match="derivative of"):
        gradcheck(lambda x: sn.Tensor._apply(tanh, x), [A], order=2)


@pytest.mark.usefixtures("numpy_device")
def test_a_second_derivative_with_respect_to_the_gradient_from_above_is_checked_too():
    wrong = op(lambda g, y: g * (1 - y * y), lambda h, z, g, y: h * y, lambda h, z, g, y: -2.0 * h * g * y)
    tanh = op(np.tanh, lambda g, y, x: sn.Tensor._apply(wrong, g, y))
    with pytest.raises(sn.GradcheckError, match="of input 1"):
        gradcheck(lambda x: sn.Tensor._apply(tanh, x), [V], order=2)


KINKS = {
    "abs": (lambda x: abs(x), 0.0),
    "relu": (lambda x: x.relu(), 0.0),
    "relu of a shifted": (lambda x: (x - 1.0).relu(), 1.0),
    "clip": (lambda x: x.clip(-1, 1), 1.0),
    "maximum": (lambda x: x.maximum(0.5), 0.5),
    "a jump": (lambda x: x.sign() * (1.0 + x), 0.0),
}


@pytest.mark.usefixtures("numpy_device")
@pytest.mark.parametrize("beside", [0.0, 1e-9, -2e-5, 3e-5, 6e-5, -8e-5])
@pytest.mark.parametrize("name", KINKS)
def test_a_kink_is_reported_or_left_out(name, beside):
    f, at = KINKS[name]
    x = np.array([-3.0, at + beside, 4.0])
    with pytest.raises(sn.GradcheckError, match=r"kink near element \(1,\) of input 0") as error:
        gradcheck(f, [x])
    one_line(error)
    gradcheck(f, [x], kinks="skip")
    gradcheck(f, [np.array([-3.0, at + 0.01, 4.0])])


@pytest.mark.usefixtures("numpy_device")
def test_leaving_out_a_kink_does_not_hide_a_wrong_gradient_elsewhere():
    f = op(np.abs, lambda g, y, x: g * x.sign() * 1.001)
    with pytest.raises(sn.GradcheckError, match=r"element \((0|2),\).*2 of 2 wrong"):
        gradcheck(lambda x: sn.Tensor._apply(f, x), [np.array([-3.0, 0.0, 4.0])], kinks="skip")


@pytest.mark.usefixtures("numpy_device")
def test_gradcheck_says_what_it_cannot_check():
    with pytest.raises(sn.DtypeError, match="float64 tensor, got a float32 tensor"):
        gradcheck(lambda x: x.astype(np.float32), [A])
    with pytest.raises(sn.DtypeError, match="float64 tensor, got ndarray"):
        gradcheck(lambda x: np.ones(3), [A])
    with pytest.raises(sn.ConfigError, match="'ignore'"):
        gradcheck(lambda x: x, [A], kinks="ignore")
    with pytest.raises(sn.GradcheckError, match="kink"):  # float32 on the way: too rough to tell
        gradcheck(lambda x: x.astype(np.float32).exp().astype(np.float64), [A])


def test_gradcheck_works_on_the_device_of_its_inputs():
    seen = []

    def f(x):
        seen.append(x.device)
        return x * 2

    gradcheck(f, [sn.Tensor(A, device="numpy")], order=2)
    assert set(seen) == {"numpy"}
