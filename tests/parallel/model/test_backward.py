"""A backward pass in two halves: each half computes what it is for, and together they give the bytes of one pass."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet import tracing
from scratchnet.parallel.model.backward import backward, backward_inputs, backward_weights


class Counts(tracing.Tracing):
    """Names the ops that run."""

    def __init__(self):
        self.ops = []

    def run(self, op, device, inputs, params):
        self.ops.append(op.name)
        return super().run(op, device, inputs, params)


def stage():
    """(roots, inputs, parameters) of a graph with several terms for an input, and for a weight that is transposed."""
    rng = np.random.default_rng(0)
    x, y, w, v, b = (
        sn.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)
        for shape in [(5, 4), (5, 4), (4, 4), (4, 4), (4,)]
    )
    before = [t * 1.0 for t in (x, y)]  # another stage made them: the pass ends here
    a, c = before
    turned = w.T * v
    out = (a @ w).tanh() @ turned + (c @ turned.T + b) * a
    last = out @ w + turned.sum() + (b * v).sum() + b
    g = [sn.Tensor(rng.standard_normal(t.shape).astype(np.float32)) for t in (last, out, turned, a)]
    return [(last, g[0]), (out, g[1]), (turned, g[2]), (a, g[3])], before, [w, v, b]


def test_two_halves_have_the_bytes_of_one_pass():
    roots, inputs, parameters = stage()
    expected = backward(roots, [*inputs, *parameters])
    roots, inputs, parameters = stage()
    first, rest = backward_inputs(roots, inputs)
    found = [*first, *backward_weights(rest, parameters)]
    assert [g.numpy().tobytes() for g in found] == [g.numpy().tobytes() for g in expected]


@pytest.mark.parametrize("has_inputs", [True, False])
def test_each_half_computes_its_own_products(has_inputs):
    x = sn.Tensor(np.ones((3, 4), np.float32), requires_grad=has_inputs) * 1.0
    layers = [sn.nn.Linear(4, 4), sn.nn.Linear(4, 4)]
    y = layers[1](layers[0](x))
    first, second = Counts(), Counts()
    with tracing.into(first):
        _, rest = backward_inputs([(y, sn.ones(3, 4))], [x] if has_inputs else [])
    with tracing.into(second):
        backward_weights(rest, [p for layer in layers for p in layer.parameters()])
    counts = [sum(op == "matmul" for op in found.ops) for found in (first, second)]
    assert counts == ([2, 2] if has_inputs else [0, 3])  # without inputs, the first layer's is not wanted


def test_a_hook_on_an_activation_runs_once():
    calls = []
    x = sn.Tensor(np.ones((3, 4), np.float32), requires_grad=True) * 1.0
    w = sn.Tensor(np.ones((4, 4), np.float32), requires_grad=True)
    y = x @ w
    y.register_hook(lambda g: calls.append(1) or g * 2)
    found, rest = backward_inputs([(y, sn.ones(3, 4))], [x])
    (g,) = backward_weights(rest, [w])
    assert calls == [1]
    assert (found[0].numpy() == 8).all() and (g.numpy() == 6).all()
