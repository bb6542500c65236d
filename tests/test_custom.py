"""An op of the user's own has gradients of any order, is called again by recorded steps, and is checked."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet.testing import gradcheck

X = np.array([0.5, -1.5, 2.0])
cube = sn.op(lambda x: x**3, lambda g, y, x: g * 3.0 * x * x, name="cube")
scaled = sn.op(lambda x, y, factor: x * y * factor, lambda g, z, x, y, factor: g * y * factor,
               lambda g, z, x, y, factor: g * x * factor, name="scaled")  # fmt: skip


@pytest.mark.usefixtures("device")
def test_an_op_of_ones_own_has_values_and_gradients_of_any_order():
    np.testing.assert_allclose(cube(X).detach().to("numpy").numpy(), X**3)
    gradcheck(cube, [X], order=2)
    gradcheck(lambda x, y: scaled(x, y, factor=2.0), [X, X[:1]], order=2)  # broadcasts


@pytest.mark.usefixtures("numpy_device")
def test_a_recorded_step_calls_it_in_each_replay():
    def step(x):
        x = sn.tensor(x, requires_grad=True)
        cube(x).sum().backward()
        return x.grad

    recorded = sn.jit(step)
    for shift in range(4):
        np.testing.assert_allclose(recorded(X + shift).numpy(), 3 * (X + shift) ** 2)


@pytest.mark.usefixtures("numpy_device")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sn.op(3), sn.ConfigError, "op: forward: expected a function"),
        (lambda: sn.op(np.exp, 3), sn.ConfigError, "op: a vjp: expected a function"),
        (lambda: cube(X, X), sn.ShapeError, "cube: expected 1 inputs"),
        (lambda: sn.op(lambda x: "no", None, name="bad")(X), sn.DtypeError, "bad: forward: expected an array"),
        (lambda: sn.op(lambda x: x.astype("f4"), None, name="bad")(X), sn.DtypeError, "bad: expected .* float64"),
    ],
)
def test_what_makes_no_op_is_refused_in_a_line(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    error_line(caught)
