"""Random graphs against an independent engine: reverse-mode differentiation of one Python float at a time.

Hypothesis builds graphs step by step (shared nodes, diamonds, x * x, broadcasting, views, gathers, reductions, detach,
no_grad) and calls backward whenever it likes. Every node exists twice: as a Tensor, and as an array of `Scalar`s,
which NumPy broadcasts, indexes and sums without knowing what they are.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sizes import DEVICES, JIT

import scratchnet as sn


class Scalar:
    """A float, and the (input, derivative with respect to it) pairs from which it was computed."""

    def __init__(self, value, parents=()):
        self.value, self.parents = float(value), parents

    def __add__(self, other):
        return Scalar(self.value + other.value, ((self, 1.0), (other, 1.0)))

    def __sub__(self, other):
        return Scalar(self.value - other.value, ((self, 1.0), (other, -1.0)))

    def __mul__(self, other):
        return Scalar(self.value * other.value, ((self, other.value), (other, self.value)))

    def __truediv__(self, other):
        quotient = self.value / other.value
        return Scalar(quotient, ((self, 1 / other.value), (other, -quotient / other.value)))

    def __neg__(self):
        return Scalar(-self.value, ((self, -1.0),))

    def maximum(self, other):
        share = 1.0 if self.value > other.value else 0.5 if self.value == other.value else 0.0
        return Scalar(max(self.value, other.value), ((self, share), (other, 1 - share)))

    def tanh(self):
        y = math.tanh(self.value)
        return Scalar(y, ((self, 1 - y * y),))

    def sigmoid(self):
        y = 1 / (1 + math.exp(-self.value))
        return Scalar(y, ((self, y * (1 - y)),))

    def relu(self):
        return Scalar(max(self.value, 0.0), ((self, float(self.value > 0)),))

    def exp(self):
        y = math.exp(self.value)
        return Scalar(y, ((self, y),))


def derivatives(outputs, weights) -> dict[Scalar, tuple[float, float]]:
    """The derivative of the sum of weights * outputs with respect to every Scalar before them, and its size: the sum
    of the absolute values of the paths that it is made of."""
    order, seen = [], set()
    stack = [(y, False) for y in outputs]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in node.parents)
    found = dict.fromkeys(order, (0.0, 0.0))
    for y, w in zip(outputs, weights, strict=True):
        found[y] = (found[y][0] + w, found[y][1] + abs(w))
    for node in reversed(order):
        g, size = found[node]
        for parent, slope in node.parents:
            before = found[parent]
            found[parent] = (before[0] + slope * g, before[1] + abs(slope) * size)
    return found


def objects(scalars):
    """An array again: NumPy's arithmetic on a 0-d array of objects returns the object."""
    return np.asarray(scalars, dtype=object)


def each(name):
    return lambda x: objects(np.vectorize(lambda a: getattr(a, name)(), otypes=[object])(x))


def maximum(x, y):
    return np.vectorize(lambda a, b: a.maximum(b), otypes=[object])(x, y)


def plain(x):
    """The values without their history."""
    return objects(np.vectorize(lambda a: Scalar(a.value), otypes=[object])(x))


def along(function):
    """A reduction by a function of a list of Scalars, along one axis."""
    by_line = np.vectorize(function, signature="(n)->()", otypes=[object])
    return lambda x, axis: objects(by_line(np.moveaxis(x, axis, -1)))


def largest(line):
    """Like Tensor.max: ties share the gradient evenly."""
    top = max(x.value for x in line)
    winners = [x for x in line if x.value == top]
    return Scalar(top, tuple((x, 1 / len(winners)) for x in winners))


total = along(lambda line: sum(line[1:], line[0]))
mean = along(lambda line: sum(line[1:], line[0]) / Scalar(len(line)))


def inner(a, b):
    return total(objects((a * b) * (a - b)).reshape(1, -1), 1)


# name -> (what tensors do, what arrays of Scalars do)
UNARY = {
    "neg": (lambda x: -x, lambda x: -x),
    "tanh": (sn.tanh, each("tanh")),
    "sigmoid": (sn.sigmoid, each("sigmoid")),
    "relu": (sn.relu, each("relu")),
    "exp of tanh": (lambda x: x.tanh().exp(), lambda x: each("exp")(each("tanh")(x))),
    "square": (lambda x: x * x, lambda x: x * x),
    "half": (lambda x: 0.5 * x, lambda x: x * Scalar(0.5)),
}
BINARY = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "sub": (lambda a, b: a - b, lambda a, b: a - b),
    "mul": (lambda a, b: a * b, lambda a, b: a * b),
    "div": (lambda a, b: a / (b * b + 1), lambda a, b: a / (b * b + Scalar(1))),
    "maximum": (sn.maximum, maximum),
    "outer": (
        lambda a, b: a.reshape(-1, 1) @ b.reshape(1, -1),
        lambda a, b: a.reshape(-1, 1) @ b.reshape(1, -1),
    ),
    "inner": (lambda a, b: (a * b).reshape(1, -1) @ (a - b).reshape(-1), inner),
}
VIEWS = {
    "flat": (lambda x: x.reshape(-1), lambda x: x.reshape(-1)),
    "transposed": (lambda x: x.T, lambda x: x.T),
    "first": (lambda x: x[(0,) * min(x.ndim, 1)], lambda x: x[(0,) * min(x.ndim, 1) + (...,)]),
    "backwards": (lambda x: x[..., ::-1] if x.ndim else x[...], lambda x: x[..., ::-1] if x.ndim else x[...]),
    "new axis": (lambda x: x.unsqueeze(0), lambda x: x[None]),
    "twice": (lambda x: x.broadcast_to(2, *x.shape), lambda x: np.broadcast_to(x, (2, *x.shape))),
}
MOVES = {
    "rows again": (lambda x: x.reshape(-1)[[0, 0, -1]], lambda x: x.reshape(-1)[[0, 0, -1]]),
    "joined": (
        lambda x: sn.cat([x.reshape(-1), x.reshape(-1) * x.reshape(-1)]),
        lambda x: np.concatenate([x.reshape(-1), x.reshape(-1) * x.reshape(-1)]),
    ),
    "padded": (lambda x: x.pad(1), lambda x: np.pad(x, 1, constant_values=Scalar(0)) if x.ndim else x),
}
REDUCTIONS = {
    "sum": (lambda x, axis: x.sum(axis), total),
    "mean": (lambda x, axis: x.mean(axis), mean),
    "max": (lambda x, axis: x.max(axis=axis), along(largest)),
}


@dataclass(eq=False)
class Entry:
    """One node in both worlds. `made_from` are the entries that its record leads to, `freed` if it is gone."""

    tensor: sn.Tensor
    scalars: np.ndarray
    made_from: tuple["Entry", ...] = ()
    freed: bool = False
    grad: np.ndarray | None = None
    size: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def record(self):
        """This entry and all those before it, if its tensor requires grad."""
        found, stack = [], [self] if self.tensor.requires_grad else []
        while stack:
            entry = stack.pop()
            if entry not in found:
                found.append(entry)
                stack.extend(e for e in entry.made_from if e.tensor.requires_grad)
        return found


def values(scalars):
    return np.vectorize(lambda x: x.value, otypes=[float])(scalars)


class Graphs(RuleBasedStateMachine):
    device = "numpy"
    nodes = Bundle("nodes")

    def __init__(self):
        super().__init__()
        self.leaves: list[Entry] = []

    def leaf(self, shape, seed, requires_grad):
        x = np.random.default_rng(seed).integers(-8, 9, shape) / 4
        scalars = np.vectorize(Scalar, otypes=[object])(x)
        entry = Entry(sn.Tensor(x, requires_grad=requires_grad, device=self.device), scalars)
        self.leaves.append(entry)
        return entry

    def make(self, functions, *entries, **params):
        """The result of one step, kept small in size and in value."""
        of_tensors, of_scalars = functions
        tensor = of_tensors(*[e.tensor for e in entries], **params)
        scalars = objects(of_scalars(*[e.scalars for e in entries], **params))
        while tensor.size > 48:
            tensor, scalars = tensor.mean(0), mean(scalars, 0)
        if np.abs(values(scalars)).max() > 20:
            tensor, scalars = tensor.tanh(), each("tanh")(scalars)
        entry = Entry(tensor, scalars, entries)
        assert tensor.requires_grad == any(e.tensor.requires_grad for e in entries)
        self.check_values(entry)
        return entry

    def check_values(self, entry):
        expected = values(entry.scalars)
        assert entry.tensor.shape == expected.shape and entry.tensor.dtype == np.float64
        np.testing.assert_allclose(entry.tensor.detach().numpy(), expected, rtol=1e-10, atol=1e-10)

    @initialize(target=nodes, seed=st.integers(0, 99))
    def first(self, seed):
        return self.leaf((2, 3), seed, True)

    shapes = st.sampled_from([(), (3,), (2, 3), (2, 1), (1, 3)])

    @rule(target=nodes, shape=shapes, seed=st.integers(0, 99), requires_grad=st.sampled_from([True, True, False]))
    def new_leaf(self, shape, seed, requires_grad):
        return self.leaf(shape, seed, requires_grad)

    @rule(target=nodes, name=st.sampled_from(sorted({**UNARY, **VIEWS})), x=nodes)
    def one_input(self, name, x):
        return self.make({**UNARY, **VIEWS}[name], x)

    @rule(target=nodes, name=st.sampled_from(sorted(MOVES)), x=nodes)
    def moved(self, name, x):
        return self.make(MOVES[name], x)

    @rule(target=nodes, name=st.sampled_from(sorted(BINARY)), a=nodes, b=nodes)
    def two_inputs(self, name, a, b):
        try:
            np.broadcast_shapes(a.tensor.shape, b.tensor.shape)
        except ValueError:
            b = self.make((lambda x: x.sum(), lambda x: total(x.reshape(-1), 0)), b)
        return self.make(BINARY[name], a, b)

    @rule(target=nodes, name=st.sampled_from(sorted(REDUCTIONS)), x=nodes, axis=st.integers(-3, 2))
    def reduced(self, name, x, axis):
        if not x.tensor.ndim:
            return x
        return self.make(REDUCTIONS[name], x, axis=axis % x.tensor.ndim)

    @rule(target=nodes, x=nodes)
    def detached(self, x):
        return Entry(x.tensor.detach(), plain(x.scalars))

    @rule(target=nodes, x=nodes)
    def not_recorded(self, x):
        with sn.no_grad():
            tensor = x.tensor * x.tensor
        assert not tensor.requires_grad
        return Entry(tensor.tanh(), each("tanh")(plain(x.scalars * x.scalars)))

    @rule(y=nodes, seed=st.integers(0, 99), retain=st.booleans())
    def backward(self, y, seed, retain):
        weights = np.random.default_rng(seed).integers(-4, 5, y.tensor.shape) / 2
        if not y.tensor.requires_grad or any(e.freed for e in y.record()):
            with pytest.raises(sn.GradientError):
                y.tensor.backward(weights, retain_graph=True)
            return
        y.tensor.backward(weights, retain_graph=retain)
        found = derivatives(y.scalars.ravel(), weights.ravel())
        for leaf in self.leaves:
            if leaf in y.record():
                pairs = [found.get(s, (0.0, 0.0)) for s in leaf.scalars.ravel()]
                g, size = np.array(pairs).T.reshape(2, *leaf.scalars.shape)
                leaf.grad = g if leaf.grad is None else leaf.grad + g
                leaf.size = leaf.size + size
        for entry in y.record():
            entry.freed = bool(entry.made_from) and (entry.freed or not retain)

    @rule(x=nodes)
    def forget(self, x):
        x.tensor.zero_grad()
        x.grad, x.size = None, np.zeros(())

    @invariant()
    def gradients_agree(self):
        for leaf in self.leaves:
            if leaf.grad is None:
                assert leaf.tensor.grad is None
            else:
                error = np.abs(leaf.tensor.grad.numpy() - leaf.grad)
                assert leaf.tensor.grad.shape == leaf.tensor.shape and (error <= 1e-10 * (1 + leaf.size)).all()

    @invariant()
    def leaves_are_as_they_were(self):
        for leaf in self.leaves:
            assert (leaf.tensor.detach().numpy() == values(leaf.scalars)).all()

    @invariant()
    def gradients_share_no_memory(self):
        held = [a for x in self.leaves for a in (x.tensor.detach(), x.tensor.grad) if a is not None]
        for i, a in enumerate(held):
            assert not any(np.may_share_memory(a.numpy(), b.numpy()) for b in held[:i])


def machine(name):
    case = type(f"Graphs_{name}", (Graphs,), {"device": name}).TestCase
    case.settings = settings(max_examples=80 if JIT else 5, stateful_step_count=20)
    return case


globals().update({f"TestGraphs_{name}": machine(name) for name in DEVICES})
