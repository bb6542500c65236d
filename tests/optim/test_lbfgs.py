"""L-BFGS against dense BFGS matrices, SciPy's minima and the Wolfe conditions; its state; what it refuses."""

import copy
import json

import numpy as np
import pytest
import scipy.optimize
from messages import error_line

import scratchnet as sn
from scratchnet.optim.lbfgs import CURVATURE, DECREASE, Point, strong_wolfe

LBFGS = sn.optim.LBFGS
A = np.random.default_rng(0).standard_normal((5, 5))
A = A @ A.T + np.eye(5)
START = np.linspace(-1, 1, 5)


def bowl(x):
    return (x @ A @ x) * 0.5 + (x * x * x * x).sum() * 0.1


def bowl_gradient(x):
    return A @ x + 0.4 * x**3


def made(function=bowl, start=START, **options):
    """An optimizer of one parameter, a closure that counts its calls, and the parameter."""
    p = sn.nn.Parameter(np.array(start))
    optimizer = LBFGS([p], **options)

    def closure():
        closure.calls += 1
        optimizer.zero_grad()
        loss = function(p)
        loss.backward()
        return loss

    closure.calls = 0
    return optimizer, closure, p


def dense(start, steps, lr, history):
    """The same method with the inverse Hessian as a matrix (Nocedal and Wright 2006, (7.16) and (7.19))."""
    x, pairs, last = start, [], None
    for k in range(steps):
        g = bowl_gradient(x)
        if last is not None:
            pairs = [*pairs, (x - last[0], g - last[1])][-history:]
            s, y = pairs[-1]
            h = np.eye(5) * (s @ y) / (y @ y)
            for s, y in pairs:
                v = np.eye(5) - np.outer(y, s) / (y @ s)
                h = v.T @ h @ v + np.outer(s, s) / (y @ s)
        d, t = (-g, lr * min(1, 1 / np.abs(g).sum())) if not k else (-h @ g, lr)
        last, x = (x, g), x + t * d
        yield x


@pytest.mark.parametrize("history", [2, 100])
def test_each_iteration_is_that_of_the_dense_matrix(history):
    optimizer, closure, p = made(lr=0.5, max_iter=1, history_size=history)
    for expected in dense(START, 8, 0.5, history):
        optimizer.step(closure)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-8, atol=1e-10)


def test_a_step_of_many_iterations_is_as_many_steps_of_one():
    optimizer, closure, p = made(lr=0.5, max_iter=6, tolerance_change=0)
    loss = optimizer.step(closure)
    *_, expected = dense(START, 6, 0.5, 100)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-8, atol=1e-10)
    assert loss.item() == pytest.approx(START @ A @ START / 2 + 0.1 * (START**4).sum())
    assert closure.calls == 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_valley_of_rosenbrock_is_gone_down_as_far_as_scipy_does(dtype):
    optimizer, closure, p = made(
        lambda x: (x[1:] - x[:-1] ** 2).__pow__(2).sum() * 100 + ((1 - x[:-1]) ** 2).sum(),
        np.array([-1.2, 1.0], dtype), max_iter=200, line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimizer.step(closure)
    found = scipy.optimize.minimize(scipy.optimize.rosen, [-1.2, 1.0], jac=scipy.optimize.rosen_der)
    np.testing.assert_allclose(p.detach().numpy(), found.x, atol=1e-4 if dtype is np.float64 else 0.05)
    assert p.dtype == dtype and closure.calls < 250


def test_several_parameters_are_one_vector_and_those_without_gradient_stay():
    a, b, idle = (sn.nn.Parameter(np.full(shape, 3.0)) for shape in ((2, 2), (), (3,)))
    optimizer = LBFGS([a, idle, b], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = ((a - 1) ** 2).sum() + (b + a.sum()) ** 2
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(a.detach().numpy(), np.ones((2, 2)), atol=1e-5)
    assert b.item() == pytest.approx(-4, abs=1e-5) and idle.detach().numpy().tolist() == [3, 3, 3]


CURVES = {  # loss and slope along a line, which begins at 0 and goes down
    "parabola": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "far": (lambda t: (t - 300) ** 2, lambda t: 2 * (t - 300)),
    "near": (lambda t: (t - 0.001) ** 2, lambda t: 2 * (t - 0.001)),
    "waves": (lambda t: np.cos(3 * t + 1) + 0.1 * t, lambda t: -3 * np.sin(3 * t + 1) + 0.1),
    "well": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
    "narrow": (lambda t: (t + 0.01) ** 5 - 2 * (t + 0.01) ** 4, lambda t: 5 * (t + 0.01) ** 4 - 8 * (t + 0.01) ** 3),
}  # fmt: skip


@pytest.mark.parametrize("first", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", CURVES)
def test_a_line_search_ends_where_both_wolfe_conditions_hold(name, first):
    loss, slope = CURVES[name]
    start = Point(0.0, loss(0.0), np.zeros(1), slope(0.0))
    tried = []

    def at(t):
        tried.append(t)
        return Point(t, loss(t), np.zeros(1), slope(t))

    found, trials = strong_wolfe(at, start, first, 1.0)
    assert found.loss <= start.loss + DECREASE * found.t * start.slope
    assert abs(found.slope) <= CURVATURE * abs(start.slope) and found.t > 0 and trials == len(tried) <= 26


def test_a_loss_that_becomes_nan_is_left_behind():
    """log(x) beyond 0 is NaN: the search comes back."""
    optimizer, closure, p = made(lambda x: (x - x.log()).sum(), [0.05, 4.0], line_search_fn="strong_wolfe", lr=10)
    for _ in range(3):
        optimizer.step(closure)
    np.testing.assert_allclose(p.detach().numpy(), [1, 1], atol=1e-5)


def test_the_end_comes_by_calls_by_gradient_or_by_change():
    optimizer, closure, _ = made(max_eval=3, tolerance_change=0)
    optimizer.step(closure)
    assert closure.calls == 3
    optimizer, closure, p = made(start=np.zeros(5))
    optimizer.step(closure)
    assert closure.calls == 1 and not p.detach().numpy().any()
    optimizer, closure, _ = made(lr=1e-3, tolerance_change=10.0)
    optimizer.step(closure)
    assert closure.calls == 2


def test_it_goes_on_bit_for_bit_from_its_state(tmp_path):
    optimizer, closure, p = made(lr=0.5, max_iter=3)
    optimizer.step(closure)
    sn.save(tmp_path / "state", optimizer=optimizer, p=p.detach().numpy().copy())
    saved = sn.load(tmp_path / "state")
    optimizer.step(closure)
    other, again, q = made(start=saved["p"], lr=0.5, max_iter=3)
    other.load_state_dict(saved["optimizer"])
    other.step(again)
    assert q.detach().numpy().tobytes() == p.detach().numpy().tobytes()
    state = other.state_dict()
    for damage in ({"memory": {}}, {"memory": {**state["memory"], "s": np.zeros((1, 2))}}, {"memory": 3}):
        with pytest.raises(sn.CheckpointError, match="memory") as error:
            other.load_state_dict(state | damage)
        error_line(error)
    assert json.dumps(copy.deepcopy(other).state_dict()["param_groups"])


def test_what_it_cannot_do_is_refused():
    optimizer, closure, p = made()
    data = sn.data.TensorDataset(np.ones((4, 2), np.float32), np.zeros(4, np.int64))
    model = sn.nn.Linear(2, 2)
    trainer = lambda: sn.Trainer(model, LBFGS(model.parameters()), sn.nn.CrossEntropyLoss()).fit(  # noqa: E731
        sn.data.DataLoader(data, 2)
    )
    for call, error, message in [
        (optimizer.step, sn.ConfigError, "expected a closure"),
        (lambda: optimizer.step(lambda: None), sn.ConfigError, "returns the loss, got None"),
        (lambda: optimizer.step(lambda: 1.0), sn.GradientError, "calls backward"),
        (lambda: optimizer.add_param_group({"params": [sn.nn.Parameter([1.0])]}), sn.ConfigError, "one group"),
        (lambda: sn.jit(lambda: optimizer.step(closure))(), sn.JitError, r"LBFGS\.step"),
        (lambda: LBFGS([p], line_search_fn="wolfe"), sn.ConfigError, "strong_wolfe"),
        (lambda: LBFGS([p], max_iter=0), sn.ConfigError, "max_iter"),
        (lambda: LBFGS([p], max_eval=0.5), sn.ConfigError, "max_eval"),
        (lambda: LBFGS([p], tolerance_grad=-1), sn.ConfigError, "tolerance_grad"),
        (trainer, sn.ConfigError, "got LBFGS, which evaluates the loss several times"),
    ]:
        with pytest.raises(error, match=message) as caught:
            call()
        error_line(caught)
