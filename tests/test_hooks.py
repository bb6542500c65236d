"""Hooks on gradients: when they are called, with what, what they change; and that a recorded step refuses them."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn


def leaf(values=(1.0, 2.0)):
    return sn.Tensor(np.array(values), requires_grad=True)


def test_a_hook_on_a_leaf_sees_its_gradient_and_may_replace_it(device):
    x, seen = leaf(), []
    x.register_hook(lambda g: seen.append(g.numpy().tolist()))
    handle = x.register_hook(lambda g: g * 10)
    (x * x).sum().backward()
    assert seen == [[2, 4]] and x.grad.numpy().tolist() == [20, 40]  # the whole gradient, not a part for each use
    handle.remove(), handle.remove()
    x.zero_grad()
    (x * x).sum().backward()
    assert seen == [[2, 4], [2, 4]] and x.grad.numpy().tolist() == [2, 4]


def test_a_hook_on_a_result_changes_what_is_passed_on():
    x, seen = leaf(), []
    y = x * 3
    y.register_hook(lambda g: seen.append(g.numpy().copy()) or g + 1)
    (y * y + y).sum().backward()
    np.testing.assert_array_equal(seen, [[7, 13]])  # 2 y + 1, of both uses together
    assert x.grad.numpy().tolist() == [24, 42]


def test_hooks_run_in_order_and_within_a_with_block():
    x, order = leaf(), []
    with x.register_hook(lambda g: order.append(1)), x.register_hook(lambda g: order.append(2)):
        x.sum().backward()
    x.sum().backward()
    assert order == [1, 2]


def test_a_hook_sees_what_grad_asks_for():
    seen = []

    def f(x):
        x.register_hook(lambda g: seen.append(g.item()))
        return x * x

    assert sn.grad(f)(3.0).item() == 6 and seen == [6]


def test_retain_grad_keeps_the_gradient_of_a_result(device):
    x = leaf()
    y = x * 2
    y.retain_grad(), y.retain_grad(), x.retain_grad()
    (y * y).sum().backward(retain_graph=True)
    assert y.grad.numpy().tolist() == [4, 8] and x.grad.numpy().tolist() == [8, 16]
    (y * y).sum().backward()
    assert y.grad.numpy().tolist() == [8, 16]


def test_what_is_retained_is_what_the_hooks_made_of_it_whichever_came_first():
    def keep(g):  # a user may call it so
        return g * 3

    for retains_first in (False, True):
        x = leaf()
        y = x * 2
        steps = [lambda y=y: y.register_hook(keep), y.retain_grad]
        for step in steps[::-1] if retains_first else steps:
            step()
        (y * y).sum().backward()
        assert y.grad.numpy().tolist() == [12, 24] and x.grad.numpy().tolist() == [24, 48]  # 3 * 2 y, times 2


@pytest.mark.parametrize(
    ("hook", "error"), [(lambda g: 1.0, sn.GradientError), (lambda g: g.sum(), sn.ShapeError), (3, sn.ConfigError)]
)
def test_a_hook_that_returns_something_else_is_refused(hook, error):
    x = leaf()
    with pytest.raises(error, match="register_hook: expected") as caught:
        x.register_hook(hook)
        x.sum().backward()
    error_line(caught)


@pytest.mark.parametrize("method", [lambda t: t.register_hook(print), sn.Tensor.retain_grad])
def test_a_tensor_without_gradient_takes_no_hook(method):
    with pytest.raises(sn.GradientError, match="expected a tensor that requires grad"):
        method(sn.Tensor([1.0]))


def test_a_recorded_step_refuses_hooks_also_those_that_come_later():
    p, seen = sn.nn.Parameter(np.ones(2)), []

    def step(x):
        p.zero_grad()
        (p * x).sum().backward()
        return p.grad

    recorded, x = sn.jit(step), sn.Tensor(np.ones(2))
    for _ in range(3):
        recorded(x)
    with p.register_hook(lambda g: seen.append(1)), pytest.raises(sn.JitError, match=r"test_hooks.*a hook") as error:
        recorded(x)
    error_line(error)
    assert recorded(x).numpy().tolist() == [1, 1] and seen == []

    def hooked(x):
        y = p * x
        y.register_hook(lambda g: None)
        y.sum().backward()

    with pytest.raises(sn.JitError, match="register_hook"):
        sn.jit(hooked)(x)
