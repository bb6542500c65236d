"""Every row of the op table keeps the whole contract: values, gradients of two orders, dtypes, layouts, memory.

CASES holds the calls of each op with an oracle from outside; the tests below turn each of them into the contract.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.special
from sizes import DEVICES, SIMULATED

import scratchnet as sn
from scratchnet.kernels import device
from scratchnet.kernels.signatures import HALVES
from scratchnet.ops import OPS
from scratchnet.testing import DOMAINS, KERNEL_ROWS, LAYOUTS, assert_matches_reference, gradcheck

FLOATS = (np.float32, np.float64)


@dataclass(frozen=True)
class Case:
    """One call of an op: a shape stands for random floats of the domain, an array for itself.

    oracle, terms, roundings, magnitude: as in `assert_matches_reference`. flat: the float inputs on which the result
    does not depend smoothly.
    """

    inputs: Sequence[tuple[int, ...] | np.ndarray]
    oracle: Callable[..., Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    domain: str = "real"
    terms: int = 1
    roundings: int = 8
    magnitude: Callable[..., Any] | None = None
    flat: Sequence[int] = ()

    def arrays(self, dtype, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        shapes = [x.shape if isinstance(x, np.ndarray) else x for x in self.inputs]
        drawn = [DOMAINS[self.domain](rng.standard_normal(shape)).astype(dtype) for shape in shapes]
        return [x if isinstance(x, np.ndarray) else d for x, d in zip(self.inputs, drawn, strict=True)]

    @property
    def floats(self) -> list[int]:
        """The inputs that are drawn."""
        return [i for i, x in enumerate(self.inputs) if not isinstance(x, np.ndarray)]


def of_kernel(name: str, shapes: Sequence, domain: str = "real", flat: Sequence[int] = (), **params) -> list[Case]:
    """Cases of an elementwise op, by the oracle of the kernel that has its name."""
    row = KERNEL_ROWS[name]
    return [Case(s, row.oracle, params, domain, 1, row.roundings, row.magnitude, flat) for s in shapes]


ONE = [[(3, 4)], [()], [(0, 3)], [(2, 1, 5)]]
TWO = [
    [(3, 4), (3, 4)],
    [(3, 4), (4,)],
    [(2, 1, 3), (4, 1)],
    [(), (3,)],
    [(2, 2), ()],
    [(0, 3), (1, 3)],
    [(3, 1), (1,)],
]
MASK = np.array([[True, False, True, True], [False, True, False, True], [True, False, False, False]])
LABELS = np.array([1, 0, 4, 1, 2])
INDEX = np.array([[2, 0], [2, 2]])
IN_TABLE, IN_BAGS, NO_ROWS = np.array([3, 1, 1, 0]), np.array([0, 2, 0, 2]), np.array([], int)


def reduced(function: Callable, **options) -> list[Case]:
    """Cases of a reduction of some axes, kept or not."""
    calls = [
        ((3, 4), (0,)),
        ((3, 4), (1,)),
        ((3, 4), (0, 1)),
        ((2, 3, 4), (0, 2)),
        ((5,), (0,)),
        ((), ()),
        ((3, 0, 2), (0,)),
    ]
    return [
        Case(
            [shape],
            lambda x, axes, keepdims: function(x, axis=axes, keepdims=keepdims),
            {"axes": axes, "keepdims": k},
            **options,
        )
        for shape, axes in calls
        for k in (False, True)
    ]


def mean_grads() -> list[Case]:
    """Of a mean of `shape` over some axes, kept or not: each element has the same share."""

    def oracle(g, shape, axes, keepdims):
        kept = g if keepdims else np.expand_dims(g, axes)
        return np.broadcast_to(kept, shape) / g.dtype.type(math.prod([shape[i] for i in axes]))

    return [
        Case([given], oracle, {"shape": shape, "axes": axes, "keepdims": keepdims}, terms=1)
        for shape, axes, given, keepdims in [
            ((3, 4), (0,), (4,), False),
            ((3, 4), (1,), (3, 1), True),
            ((3, 4), (0, 1), (), False),
            ((2, 3, 4), (0, 2), (3,), False),
            ((2, 3, 4), (0, 2), (1, 3, 1), True),
            ((), (), (), False),
            ((3, 0, 2), (0,), (0, 2), False),
        ]
    ]


def argmaxed() -> list[Case]:
    def oracle(x, axes, keepdims):
        axis = axes[0] if len(axes) < x.ndim else None
        return np.asarray(np.argmax(x, axis=axis, keepdims=keepdims))

    return [
        Case([shape], oracle, {"axes": axes, "keepdims": k}, flat=[0])
        for shape, axes in [((3, 4), (0,)), ((3, 4), (1,)), ((3, 4), (0, 1)), ((2, 3, 4), (1,)), ((), ())]
        for k in (False, True)
    ]


EPS, SIZED = {"eps": 0.5}, {"terms": 8, "roundings": 60, "magnitude": lambda *_, eps: np.float64(30)}


def normed(x, eps):
    return (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + eps)


def normed_grad(g, x, w, eps):
    y = normed(x, eps)
    bracket = g - g.mean((0, 2), keepdims=True) - y * (g * y).mean((0, 2), keepdims=True)
    return bracket * w[:, None] / np.sqrt(x.var((0, 2), keepdims=True) + eps)


def recurrent(x, weight, bias, state, alive, cell, reverse):
    """The states after each step, one step after the other."""
    kernel = cell.partition("_")[0] + "_cell"
    numbers = {"relu": cell == "rnn_relu"} if "rnn" in cell else {}
    slots = {"rnn_cell": 1, "gru_cell": 5, "lstm_cell": 6}[kernel]
    known, results = state, np.empty((len(x), *state.shape), x.dtype)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        before = np.concatenate([known, np.zeros((slots - len(state), *state.shape[1:]), x.dtype)])
        h = (known[0] @ weight.T + bias).reshape(x.shape[1:])
        results[t] = known = KERNEL_ROWS[kernel].oracle(x[t], h, before, alive[t], **numbers)[: len(state)]
    return results


def recurrences() -> list[Case]:
    alive = np.array([[True, True], [True, False], [True, False]])
    cases = []
    for cell, gates, states in (("rnn_tanh", 1, 1), ("rnn_relu", 1, 1), ("gru", 3, 1), ("lstm", 4, 2)):
        for reverse in (False, True):
            shapes = [(3, 2, gates, 2), (2 * gates, 2), (2 * gates,), (states, 2, 2)]
            size = {"terms": 9, "roundings": 99, "magnitude": lambda *_, **__: np.float64(20)}
            cases.append(Case([*shapes, alive], recurrent, {"cell": cell, "reverse": reverse}, **size))
    return cases


IN_ROWS = np.array([[3, 0, 3], [1, 1, 2]])
GEOMETRIES = [((1, 1), (1, 2), (2, 1), 1), ((2, 3), (1, 2), (1, 1), 2), ((2, 1), (0, 0), (1, 1), 4)]
POOLS = [((3, 2), (1, 2), (1, 1)), ((2, 2), (2, 2), (0, 0))]


def windowed(name: str) -> list[Case]:
    """Cases of a convolution or pooling: those of its kernel, with the size of the result."""
    row, convolves = KERNEL_ROWS[name], name.startswith("conv2d")
    cases = []
    for geometry in GEOMETRIES if convolves else POOLS:
        last = {} if convolves else {"dilation": (1, 1)} if name == "max_pool2d" else {"counts_padding": False}
        params = dict(zip(row.params, geometry, strict=False)) | last
        words = (row.shapes if isinstance(row.shapes, str) else row.shapes(**params)).replace("p", "n").split()
        shapes = [tuple(2 if letter == "n" else int(letter) for letter in word) for word in words]
        shapes = shapes if convolves else [(1, *shape) for shape in shapes]

        def oracle(*arrays, size, convolves=convolves, **params):
            y = row.oracle(*(arrays if convolves else [x[0] for x in arrays]), **params)
            return y if convolves else y[None]

        size = np.shape(oracle(*map(np.zeros, shapes), size=None, **params))[2:]
        flat = [0] if name == "max_pool2d" else []
        cases.append(Case(shapes, oracle, {"size": size} | params, terms=300, flat=flat))
    return cases


def rows(oracle: Callable, *shapes, count: int = 1, **options) -> list[Case]:
    """Cases of an op on the last axis."""
    return [Case([s] * count, oracle, terms=s[-1], roundings=16, **options) for s in shapes]


def softmax(x):
    return scipy.special.softmax(x, axis=-1)


def softmax_grad(g, y):
    return y * (g - (g * y).sum(axis=-1, keepdims=True))


def one_hot(labels, n):
    return np.eye(n)[labels]


def placed(x, key, shape, value=0):
    out = np.full(shape, value, x.dtype)
    out[key] = x
    return out


def scattered(g, index, n):
    out = np.zeros((n, *g.shape[index.ndim :]), g.dtype)
    for at in np.ndindex(index.shape):
        out[index[at]] += g[at]
    return out


EXACT = {"roundings": 0}
ROW_SIZE = {"magnitude": lambda *x, **_: 20.0}  # rows of up to 8 normal numbers: every term is smaller

CASES: dict[str, list[Case]] = {
    # elementwise: each by its kernel's row, but those that are not smooth everywhere
    **{name: of_kernel(name, ONE) for name, row in KERNEL_ROWS.items() if row.shapes == "*" and name != "copy"},
    **{name: of_kernel(name, TWO) for name, row in KERNEL_ROWS.items() if row.shapes == "* *"},
    **{name: of_kernel(name, ONE, "positive") for name in ("log", "log1p", "log2", "log10", "sqrt")},
    "deviation": of_kernel("sqrt", ONE, "positive"),
    "bounded_log": of_kernel("log", ONE, "positive"),
    **{name: of_kernel(name, ONE, "nonzero") for name in ("abs", "relu")},
    **{name: of_kernel(name, ONE, "nonzero", flat=[0]) for name in ("sign", "floor", "ceil", "round")},
    "clip": of_kernel("clip", ONE, "nonzero", low=-0.125, high=1.0),
    "dropout": of_kernel("dropout", ONE, p=0.5, key=np.array([3, 1], np.uint64)),
    "cast": [],  # its result has a dtype of its own: tested below
    "div": of_kernel("div", TWO, "nonzero"),
    "pow": of_kernel("pow", TWO, "positive"),
    "sigmoid_grad": of_kernel("sigmoid_grad", TWO, "unit"),
    "relu_grad": of_kernel("relu_grad", TWO, "nonzero", flat=[1]),
    **{name: of_kernel(name, TWO, flat=[0, 1]) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "where": [
        Case([MASK, a, b], np.where, **EXACT)
        for a, b in [((3, 4), (3, 4)), ((4,), (3, 1)), ((2, 3, 4), ()), ((1, 1), (3, 4))]
    ],
    # reductions
    "sum": reduced(np.sum, terms=12),
    "mean": reduced(np.mean, terms=13),
    "mean_grad": mean_grads(),
    "max": [case for case in reduced(np.max, **EXACT) if case.inputs[0] != (3, 0, 2)],
    "min": [case for case in reduced(np.min, **EXACT) if case.inputs[0] != (3, 0, 2)],
    "argmax": argmaxed(),
    "argsort": [
        Case([shape], lambda x: np.argsort(x, axis=1, kind="stable"), flat=[0]) for shape in [(3, 4), (2, 1), (0, 3)]
    ],
    # views
    "reshape": [
        Case([a], lambda x, shape: x.reshape(shape), {"shape": b}, **EXACT)
        for a, b in [((3, 4), (2, 6)), ((3, 4), (12,)), ((), (1, 1)), ((1,), ()), ((0, 3), (5, 0)), ((2, 3, 4), (6, 4))]
    ],
    "permute": [
        Case([a], lambda x, axes: np.transpose(x, axes), {"axes": b}, **EXACT)
        for a, b in [((3, 4), (1, 0)), ((2, 3, 4), (2, 0, 1)), ((2, 3, 4), (0, 1, 2)), ((), ()), ((0, 3), (1, 0))]
    ],
    "broadcast_to": [
        Case([a], lambda x, shape: np.broadcast_to(x, shape), {"shape": b}, **EXACT)
        for a, b in [((3, 1), (3, 4)), ((4,), (3, 4)), ((), (2, 2)), ((3, 4), (3, 4)), ((1, 3), (0, 3)), ((1,), (1, 1))]
    ],
    "getitem": [
        Case([(4, 5)], lambda x, key: x[key], {"key": key}, **EXACT)
        for key in [
            (2,),
            (-1,),
            (slice(1, 3),),
            (slice(None, None, -2),),
            (slice(None), 2),
            (1, 2, ...),
            (..., 0),
            (None, 2),
            (slice(4, 1), slice(None)),
            (slice(0, 4, 3), None, slice(-2, None)),
            (..., None),
            (np.int64(1), slice(2)),
            (),
        ]
    ],
    # copies
    "place": [
        Case([a], placed, {"key": key, "shape": shape, **value}, **EXACT)
        for a, key, shape, value in [
            ((2, 3), (slice(1, 3), slice(0, 3)), (4, 5), {}),
            ((2, 3), (slice(1, 3), slice(0, 3)), (4, 5), {"value": 1.5}),
            ((5,), (1,), (2, 5), {}),
            ((), (1, 2, ...), (3, 4), {}),
            ((2,), (slice(None, None, -2), 0), (4, 3), {}),
            ((0, 3), (slice(0), slice(None)), (2, 3), {}),
        ]
    ],
    "take_rows": [
        Case([shape, index], lambda x, index: x[index], **EXACT)
        for shape, index in [
            ((3, 4), np.array([2, 0, 2, 2])),
            ((3,), INDEX),
            ((3, 2, 2), INDEX),
            ((3, 0), np.array([1, 1])),
            ((3, 4), np.array([], int)),
            ((0, 4), np.array([], int)),
        ]
    ],
    "scatter_rows": [
        Case([shape, index], scattered, {"n": n}, terms=4)
        for shape, index, n in [
            ((4, 3), np.array([2, 0, 2, 2]), 3),
            ((2, 2), INDEX, 5),
            ((2, 2, 3), INDEX, 3),
            ((0, 3), np.array([], int), 2),
            ((2, 0), np.array([1, 1]), 2),
        ]
    ],
    "add_rows": [
        Case([x, source, target, source.shape], KERNEL_ROWS["add_rows"].oracle, {"n": 3}, terms=4, roundings=9)
        for x, source, target in [((4, 3), IN_TABLE, IN_BAGS), ((4, 0), IN_TABLE, IN_BAGS), ((0, 3), NO_ROWS, NO_ROWS)]
    ],
    "argmax_rows": [
        Case([x, source, target], KERNEL_ROWS["argmax_rows"].oracle, {"n": 3}, flat=[0], **EXACT)
        for x, source, target in [((4, 3), IN_TABLE, IN_BAGS), ((0, 3), NO_ROWS, NO_ROWS)]
    ],
    "cat": [
        Case(shapes, lambda *xs, axis: np.concatenate(xs, axis=axis), {"axis": axis}, **EXACT)
        for shapes, axis in [
            ([(2, 3), (4, 3)], 0),
            ([(2, 3), (2, 1), (2, 0)], 1),
            ([(5,)], 0),
            ([(2, 2, 1), (2, 2, 2)], 2),
        ]
    ],
    # products
    "matmul": [
        Case([a, b], np.matmul, terms=a[-1] + 1)
        for a, b in [
            ((3, 4), (4, 5)),
            ((1, 1), (1, 1)),
            ((2, 3, 4), (4, 5)),
            ((2, 1, 3, 4), (5, 4, 2)),
            ((3, 4), (2, 4, 1)),
            ((3, 0), (0, 2)),
            ((0, 3), (3, 2)),
        ]
    ],
    "linear": [
        Case([(m, k), (k, n), (n,)], lambda x, w, b: x @ w + b, terms=k + 2)
        for m, k, n in [(3, 4, 5), (1, 1, 1), (0, 3, 2), (3, 0, 2)]
    ],
    # windows
    **{name: windowed(name) for name in ("conv2d", "conv2d_input", "conv2d_weight")},
    **{name: windowed(name) for name in ("max_pool2d", "avg_pool2d", "avg_pool2d_grad")},
    "channel_moments": of_kernel("channel_moments", [[(2, 3, 4)], [(3, 2, 1)]]),
    "batch_norm": [
        Case([(2, 3, 4), (3,), (3,)], lambda x, w, b, eps: normed(x, eps) * w[:, None] + b[:, None], EPS, **SIZED)
    ],
    "channel_affine": [
        Case(
            [(2, 3, 4), (2, 3), (3,), (3,)],
            lambda x, m, w, b, eps: (x - m[0][:, None]) / np.sqrt(m[1] + eps)[:, None] * w[:, None] + b[:, None],
            {"eps": 0.5},
            domain="positive",
            **SIZED,
        )
    ],
    "batch_norm_sums": [
        Case(
            [(2, 3, 4)] * 2, lambda g, x, eps: np.stack([(g * normed(x, eps)).sum((0, 2)), g.sum((0, 2))]), EPS, **SIZED
        )
    ],
    "batch_norm_grad": [Case([(2, 3, 4), (2, 3, 4), (3,)], normed_grad, EPS, **SIZED)],
    "take_in_rows": [Case([(2, 4), IN_ROWS], KERNEL_ROWS["take_in_rows"].oracle)],
    "scatter_in_rows": [Case([(2, 3), IN_ROWS], KERNEL_ROWS["scatter_in_rows"].oracle, {"n": 4}, terms=3)],
    # recurrent layers
    "recurrent": recurrences(),
    # rows
    "softmax": rows(softmax, (3, 4), (2, 3, 5), (7,), (0, 3), (2, 1)),
    "standardize": of_kernel("standardize", [[(2, 5, 3)], [(4, 6, 1)], [(1, 7, 2)]], eps=0.5),
    "standardize_grad": of_kernel(
        "standardize_grad", [[(2, 5, 3), (2, 5, 3)], [(4, 6, 1), (4, 6, 1)], [(1, 7, 2), (1, 7, 2)]], eps=0.5
    ),
    "softmax_grad": rows(softmax_grad, (3, 4), (2, 3, 5), (1,), count=2, **ROW_SIZE),
    "log_softmax": rows(lambda x: scipy.special.log_softmax(x, axis=-1), (3, 4), (2, 3, 5), (7,), (0, 3), **ROW_SIZE),
    "logsumexp": rows(lambda x: scipy.special.logsumexp(x, axis=-1), (3, 4), (2, 3, 5), (7,), (2, 1), **ROW_SIZE),
    "cross_entropy": [
        Case(
            [(5, 6), LABELS],
            lambda x, labels: -(scipy.special.log_softmax(x, axis=1) * one_hot(labels, x.shape[1])).sum(axis=1),
            terms=6,
            **ROW_SIZE,
        ),
        Case(
            [(5, 6), LABELS],
            lambda x, labels, mean: -(scipy.special.log_softmax(x, axis=1) * one_hot(labels, 6)).sum(axis=1).mean(),
            {"mean": True},
            terms=11,
            **ROW_SIZE,
        ),
    ],
    "cross_entropy_grad": [
        Case(
            [(5,), (5, 6), LABELS],
            lambda g, x, labels: g[:, None] * (softmax(x) - one_hot(labels, x.shape[1])),
            terms=6,
            **ROW_SIZE,
        )
    ],
}


def is_smooth(case: Case) -> bool:
    return len(case.flat) < len(case.floats)


def tensors(case: Case, arrays: Sequence[np.ndarray], requires_grad: bool = False) -> list[sn.Tensor]:
    """The arrays as tensors; those that were drawn are leaves that require grad, if so wished."""
    return [sn.Tensor(x, requires_grad=requires_grad and i in case.floats) for i, x in enumerate(arrays)]


def test_every_op_has_a_case_and_every_case_an_op():
    assert set(CASES) == set(OPS)
    assert [name for name, cases in CASES.items() if not cases] == ["cast"]


@pytest.mark.parametrize("name", CASES)
def test_an_input_has_a_derivative_unless_the_result_is_flat_in_it(name):
    for case in CASES[name]:
        with_vjp = [i for i in range(len(case.inputs)) if OPS[name].vjps[i] is not None]
        assert with_vjp == [i for i in case.floats if i not in case.flat]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_values_match_the_oracle_on_every_layout_and_inputs_are_left_alone(name, dtype):
    for case in CASES[name]:

        def op(*arrays, case=case):
            y = OPS[name](*tensors(case, arrays), **case.params)
            assert type(y._data) is type(y._device.empty((), dtype))
            return y.numpy().copy() if OPS[name].is_view else y.numpy()

        op.__name__ = f"{name} {dict(case.params)}"
        assert_matches_reference(
            op,
            partial(case.oracle, **case.params),
            case.arrays(dtype),
            terms=case.terms,
            roundings=case.roundings,
            magnitude=case.magnitude and partial(case.magnitude, **case.params),
            layouts=tuple(LAYOUTS),
        )


HALF_EPS = {str(dtype): float(ml_dtypes.finfo(dtype).eps) for dtype in HALVES}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_an_op_of_halves_is_the_op_of_float32_rounded_and_so_are_its_gradients(name, dtype):
    for case in CASES[name]:
        drawn = [case.arrays(np.float32)[i].astype(dtype) if i in case.floats else x for i, x in enumerate(case.inputs)]
        wide = [x.astype(np.float32) if i in case.floats else x for i, x in enumerate(drawn)]
        leaves, wide_leaves = (tensors(case, xs, requires_grad=True) for xs in (drawn, wide))
        y, exact = OPS[name](*leaves, **case.params), OPS[name](*wide_leaves, **case.params)
        expected = exact.detach().numpy()
        if exact.dtype == np.float32:
            expected = expected.astype(dtype).astype(np.float32)
            assert y.dtype == dtype
        assert y.detach().numpy().astype(expected.dtype).tobytes() == expected.tobytes()
        if not is_smooth(case):
            continue
        gradient = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        y.backward(gradient)
        exact.backward(gradient.astype(np.float32))
        for i in set(case.floats) - set(case.flat):
            g, right = leaves[i].grad.numpy(), wide_leaves[i].grad.numpy()
            assert g.dtype == dtype and g.shape == right.shape
            size = 8 * np.abs(right).max(initial=1)
            np.testing.assert_allclose(g.astype(np.float32), right, rtol=0, atol=HALF_EPS[str(dtype)] * size)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", CASES)
def test_gradients_and_their_gradients_match_differences(name):
    for case in CASES[name]:
        arrays = case.arrays(np.float64)

        def op(*floats, case=case, arrays=arrays):
            drawn = iter(floats)
            inputs = [next(drawn) if i in case.floats else sn.Tensor(x) for i, x in enumerate(arrays)]
            return OPS[name](*inputs, **case.params)

        op.__name__ = f"{name} {dict(case.params)}"
        floats = [arrays[i] for i in case.floats]
        if op(*map(sn.Tensor, floats)).dtype.kind == "f":
            gradcheck(op, floats, order=2, max_elements=2 if SIMULATED else 12)  # larger ones in random directions
        else:
            assert not is_smooth(case)


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_given_c_contiguous_arrays(name, monkeypatch):
    """Only `copy` takes any layout: a device with its own memory relies on it."""

    def checked(kernel):
        def call(*args, **params):
            assert all(x.flags.c_contiguous for x in args if isinstance(x, np.ndarray)), kernel.__name__
            kernel(*args, **params)

        return call

    numpy = device("numpy")
    for key, kernel in numpy.kernels.items():
        if key != "copy":
            monkeypatch.setattr(numpy, key, checked(kernel))
    for case, layout in itertools.product(CASES[name], LAYOUTS.values()):
        arrays = [layout(x) for x in case.arrays(np.float32)]
        inputs = [
            sn.Tensor(x, device="numpy", requires_grad=i in case.floats and is_smooth(case))
            for i, x in enumerate(arrays)
        ]
        y = OPS[name](*inputs, **case.params)
        if y.requires_grad:
            y.backward(sn.Tensor(LAYOUTS["Fortran"](np.ones(y.shape, y.dtype)), device="numpy"))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [name for name, cases in CASES.items() if any(map(is_smooth, cases))])
def test_gradients_keep_dtype_and_shape_on_every_layout_and_own_their_memory(name, dtype):
    names = ("C", "reversed") if SIMULATED else LAYOUTS  # a GPU has a copy, which is C in any case
    for case, layout in itertools.product(CASES[name], map(LAYOUTS.get, names)):
        arrays = [layout(x) for x in case.arrays(dtype)]
        wide = [x.astype(np.float64) if x.dtype == dtype else x for x in arrays]
        leaves, wide_leaves = (tensors(case, xs, requires_grad=True) for xs in (arrays, wide))
        y = OPS[name](*leaves, **case.params)
        gradient = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
        held = [*arrays, gradient, y.detach().numpy()]
        before = [x.tobytes() for x in held]
        y.backward(gradient)
        OPS[name](*wide_leaves, **case.params).backward(gradient)

        assert [x.tobytes() for x in held] == before
        for i in case.floats:
            if i in case.flat:
                assert leaves[i].grad is None
                continue
            g, exact = leaves[i].grad.numpy(), wide_leaves[i].grad.numpy()
            assert g.dtype == dtype and g.shape == arrays[i].shape
            assert not any(np.may_share_memory(g, other) for other in held)
            held.append(g)
            np.testing.assert_allclose(g, exact, rtol=0, atol=100 * np.finfo(dtype).eps * np.abs(exact).max(initial=1))


@pytest.mark.skipif("cuda" in DEVICES, reason="numpy() copies")
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.is_view])
def test_a_view_shares_memory_wherever_numpy_shares_it(name):
    for case, layout in itertools.product(CASES[name], LAYOUTS.values()):
        (x,) = (layout(x) for x in case.arrays(np.float32))
        y = OPS[name](sn.Tensor(x), **case.params)
        assert np.shares_memory(y.numpy(), x) == np.shares_memory(case.oracle(x, **case.params), x)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.floating])
def test_integers_become_float32_where_the_result_is_a_real_number(name):
    for case in CASES[name]:
        integers = [np.ones(x, np.int64) if i in case.floats else x for i, x in enumerate(case.inputs)]
        y = OPS[name](*map(sn.Tensor, integers), **case.params)
        assert y.dtype == np.float32
        floats = [x.astype(np.float32) if i in case.floats else x for i, x in enumerate(integers)]
        np.testing.assert_allclose(y.numpy(), case.oracle(*floats, **case.params), rtol=1e-5)


# Of `pow` a negative exponent could not be refused there; the others have kernels of floats alone.
FLOATS_ON_CUDA = "pow", "max_pool2d", "argmax_rows", "take_in_rows", "scatter_in_rows"
KEEPING_INTEGERS = [name for name, op in OPS.items() if not op.floating and not name.endswith("_grad")]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", KEEPING_INTEGERS)
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_integers_stay_integers_elsewhere(name, dtype):
    for case in CASES[name]:
        drawn = [np.random.default_rng(i).integers(0, 3, np.shape(x)) for i, x in enumerate(case.arrays(np.float32))]
        integers = [d.astype(dtype) if i in case.floats else case.inputs[i] for i, d in enumerate(drawn)]
        params = {key: 1 if key == "value" else value for key, value in case.params.items()}
        params |= {key: {"low": 1, "high": 2}[key] for key in params if key in ("low", "high")}
        if "cuda" in DEVICES and name in FLOATS_ON_CUDA:
            with pytest.raises(sn.DtypeError, match=f"{name}: .* on 'cuda', got {np.dtype(dtype)}"):
                OPS[name](*map(sn.Tensor, integers), **params)
            continue
        y = OPS[name](*map(sn.Tensor, integers), **params)
        expected = np.asarray(case.oracle(*integers, **params))
        assert y.dtype == (np.int64 if name == "sum" else expected.dtype)
        np.testing.assert_array_equal(y.numpy(), expected)
