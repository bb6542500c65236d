"""Indexing, views, gathers and joins: NumPy's rules, gradients that add up, and errors of one line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from messages import error_line

import scratchnet as sn
from scratchnet.testing import gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")

X = np.random.default_rng(0).standard_normal((3, 4))
FLOATS = (np.float32, np.float64)


# --- indexing --------------------------------------------------------------------------------------------------------

Z = np.arange(60.0).reshape(3, 4, 5)

BASIC = [
    0,
    -1,
    np.int64(2),
    (1, 2, 3),
    slice(None),
    slice(2, 0, -1),
    slice(5, 9),
    ...,
    None,
    (),
    (..., 1),
    (1, ..., None),
    (slice(None), None, 2),
    (slice(0, 3, 2), slice(None, None, -1), slice(1, 2)),
]
ADVANCED = [
    [0, 2],
    [[0, 1], [2, 0]],
    np.array([2, -1, 2, 2]),
    np.array(1),
    np.array([], int),
    [],
    np.uint8([1, 1]),
    (np.array([0, 1]), np.array([1, 1])),
    (slice(None), np.array([0, 0, 3])),
    (np.array([[0], [2]]), slice(1, 3), np.array([0, 4])),
    (1, [0, 1]),
    (np.array(1), 2),
    (np.array(1), np.array(2), np.array(3)),
    (..., [1, 1]),
    (None, [1]),
    Z > 30,
    Z[:, :, 0] > 30,
    Z[:, 0, 0] > 1e9,
    (slice(None), np.array([True, False, True, True])),
    True,
    False,
    [True, False, True],
]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("key", [*BASIC, *ADVANCED], ids=repr)
def test_indexing_is_numpys_and_its_gradient_adds_up_repeated_elements(key):
    x = sn.Tensor(Z, requires_grad=True)
    y = x[key]
    np.testing.assert_array_equal(y.detach().numpy(), Z[key])
    weights = np.arange(1.0, y.size + 1).reshape(y.shape)
    y.backward(weights)
    expected = np.zeros_like(Z)
    np.add.at(expected, key, weights)
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize("key", BASIC, ids=repr)
def test_basic_indexing_copies_nothing(key):
    y = sn.Tensor(Z)[key]
    assert type(y.numpy()) is np.ndarray and np.may_share_memory(y.numpy(), Z) == bool(y.size)


def test_tensors_can_be_indices():
    t = sn.Tensor(Z)
    np.testing.assert_array_equal(t[sn.Tensor([2, 0])].numpy(), Z[[2, 0]])
    np.testing.assert_array_equal(t[sn.Tensor([2, 0]), sn.Tensor([1, 1])].numpy(), Z[[2, 0], [1, 1]])
    np.testing.assert_array_equal(t[t > 30].numpy(), Z[Z > 30])
    np.testing.assert_array_equal(t[t.argmax(0)[0, 0]].numpy(), Z[2])


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@given(st.data())
def test_any_basic_index_is_numpys(data):
    x = np.arange(float(np.prod(shape := data.draw(shapes)))).reshape(shape)
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    t = sn.Tensor(x, requires_grad=True)
    np.testing.assert_array_equal(t[key].detach().numpy(), x[key])
    t[key].sum().backward()
    expected = np.zeros(shape)
    expected[key] = 1
    np.testing.assert_array_equal(t.grad.numpy(), expected)


@given(st.data())
def test_any_integer_array_index_is_numpys(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    x = np.arange(float(np.prod(shape))).reshape(shape)
    key = data.draw(hnp.integer_array_indices(shape))
    t = sn.Tensor(x, requires_grad=True)
    y = t[key]
    np.testing.assert_array_equal(y.detach().numpy(), x[key])
    y.sum().backward()
    expected = np.zeros(shape)
    np.add.at(expected, key, 1)
    np.testing.assert_array_equal(t.grad.numpy(), expected)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (3, IndexError),
        (-4, IndexError),
        ((0, 0, 0, 0), IndexError),
        ([0, 3], IndexError),
        ([-4], IndexError),
        ((0, [5]), IndexError),
        (np.ones((3, 3), bool), IndexError),
        ((..., ...), IndexError),
        (1.0, TypeError),
        ([0.5], TypeError),
        ("a", TypeError),
        (sn.tensor([1.0], device="numpy"), TypeError),
    ],
    ids=repr,
)
def test_a_wrong_index_is_a_typed_error(key, error):
    with pytest.raises(sn.ScratchnetError, match=r"^index: ") as caught:
        sn.Tensor(Z)[key]
    assert isinstance(caught.value, error)
    error_line(caught)


# --- shapes ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "reshape": (lambda t: t.reshape(4, 3), lambda x: x.reshape(4, 3)),
    "reshape to a tuple": (lambda t: t.reshape((2, -1)), lambda x: x.reshape(2, -1)),
    "reshape a transposed": (lambda t: t.T.reshape(-1), lambda x: x.T.reshape(-1)),
    "T": (lambda t: t.T, lambda x: x.T),
    "transpose": (lambda t: t.transpose(0, -1), lambda x: x.swapaxes(0, -1)),
    "permute": (lambda t: t.permute(1, 0), lambda x: x.transpose(1, 0)),
    "permute by a list": (lambda t: t.permute([-1, 0]), lambda x: x.transpose(-1, 0)),
    "squeeze": (lambda t: t[:, :1].squeeze(), lambda x: x[:, :1].squeeze()),
    "squeeze an axis": (lambda t: t[:1, :1].squeeze(1), lambda x: x[:1, :1].squeeze(1)),
    "squeeze a longer axis": (lambda t: t.squeeze(0), lambda x: x),
    "unsqueeze": (lambda t: t.unsqueeze(-1), lambda x: x[..., None]),
    "broadcast_to": (lambda t: t.broadcast_to(2, 3, 4), lambda x: np.broadcast_to(x, (2, 3, 4))),
    "stack": (lambda t: sn.stack([t, t * 2], 1), lambda x: np.stack([x, x * 2], 1)),
    "stack at the end": (lambda t: sn.stack([t, t], -1), lambda x: np.stack([x, x], -1)),
    "cat": (lambda t: sn.cat([t, t[:1]]), lambda x: np.concatenate([x, x[:1]])),
    "cat at the end": (lambda t: sn.cat([t, t[:, :0], t], -1), lambda x: np.concatenate([x, x], -1)),
    "pad": (lambda t: t.pad(1), lambda x: np.pad(x, 1)),
    "pad one side": (lambda t: t.pad((1, 0), 2.5), lambda x: np.pad(x, (1, 0), constant_values=2.5)),
    "pad each side": (lambda t: t.pad(((1, 2), (0, 3))), lambda x: np.pad(x, ((1, 2), (0, 3)))),
    "pad a number": (lambda t: t[0, 0].pad(1), lambda x: x[0, 0]),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_change_as_in_numpy(name):
    of_tensor, of_array = SHAPES[name]
    np.testing.assert_array_equal(of_tensor(sn.Tensor(X)).numpy(), of_array(X))
    gradcheck(of_tensor, [X], order=2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda t: t.reshape(5, 3),
            ValueError,
            r"reshape: expected a shape of 12 elements, as \(3, 4\) has, got \(5, 3\)",
        ),
        (lambda t: t.reshape(-1, 5), ValueError, "reshape"),
        (lambda t: t.reshape(-1, -1), ValueError, "reshape"),
        (lambda t: t.transpose(0, 2), IndexError, r"transpose: expected an axis in \[-2, 2\), got 2"),
        (lambda t: t.permute(0, 0), ValueError, "permute: expected each of 2 axes once"),
        (lambda t: t.permute(0), ValueError, "permute"),
        (lambda t: t.squeeze(2), IndexError, "squeeze"),
        (lambda t: t.unsqueeze(4), IndexError, r"unsqueeze: expected an axis in \[-3, 3\), got 4"),
        (lambda t: t.broadcast_to(3, 5), ValueError, r"broadcast_to: expected a shape that \(3, 4\) broadcasts to"),
        (lambda t: t.broadcast_to(4), ValueError, "broadcast_to"),
        (lambda t: t.pad(-1), ValueError, "pad"),
        (lambda t: t.pad((1, 2, 3)), ValueError, "pad"),
        (lambda t: sn.cat([]), ValueError, "cat: expected at least one tensor, got none"),
        (
            lambda t: sn.cat([t, t.T]),
            ValueError,
            r"cat: expected shapes equal but for axis 0, got \(3, 4\) and \(4, 3\)",
        ),
        (lambda t: sn.cat([t, t], 2), IndexError, "cat"),
        (lambda t: sn.cat([t.sum()]), ValueError, r"cat: .* got shape \(\)"),
        (lambda t: sn.stack([t, t.T]), ValueError, "stack: expected equal shapes"),
        (lambda t: sn.stack([t], 5), IndexError, "stack"),
        (lambda t: t + t.T, ValueError, r"add: expected shapes that broadcast together, got \(3, 4\) and \(4, 3\)"),
        (lambda t: sn.where(t > 0, t, t.T), ValueError, "where: expected shapes that broadcast"),
        (lambda t: t @ t, ValueError, r"matmul: expected .*, got \(3, 4\) @ \(3, 4\)"),
        (lambda t: t @ 2.0, ValueError, r"matmul: .* got shapes \(3, 4\) and \(\)"),
        (
            lambda t: t.reshape(1, 3, 4) @ sn.Tensor(np.ones((2, 4, 1))) @ sn.Tensor(np.ones((3, 1, 1))),
            ValueError,
            "matmul",
        ),
        (lambda t: t.sum(2), IndexError, r"sum: expected an axis in \[-2, 2\) for 2 dimensions, got 2"),
        (lambda t: t.sum((0, 0)), ValueError, "sum: expected each axis once"),
        (lambda t: t.sum(0.5), IndexError, "sum"),
        (lambda t: t.mean(5), IndexError, "mean|sum"),
        (lambda t: t.argmax((0, 1)), IndexError, "argmax: expected one axis or None"),
        (lambda t: t[:0].max(), ValueError, r"max: expected at least one element to reduce, got shape \(0, 4\)"),
        (lambda t: t[:0].min(0), ValueError, "min"),
        (lambda t: t[:0].argmax(0), ValueError, "argmax"),
        (lambda t: t[:0].logsumexp(), ValueError, "logsumexp"),
        (lambda t: t.softmax(3), IndexError, "softmax"),
        (lambda t: t.clip(2, 1), ValueError, "clip: expected low <= high, got 2 and 1"),
    ],
)
def test_a_wrong_shape_or_axis_is_one_typed_line_that_names_the_op(call, error, words):
    with pytest.raises(sn.ScratchnetError, match=words) as caught:
        call(sn.Tensor(X))
    assert isinstance(caught.value, error)
    error_line(caught)


@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (4, 3), (2, 3, 4), (4, 3, 2), (0, 3), (3, 0, 2)])
def test_a_diagonal_is_numpys_of_any_two_axes_and_a_view(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    for axes in [(i, j) for i in range(len(shape)) for j in range(-len(shape), 0) if i != j % len(shape)]:
        for offset in range(-5, 6):
            expected = x.diagonal(offset, *axes)
            np.testing.assert_array_equal(sn.Tensor(x).diagonal(offset, *axes).numpy(), expected)
    own, theirs = sn.zeros(shape, dtype=sn.float64), np.zeros(shape)
    own.diagonal(1).fill_(7.0)
    on_it = np.arange(min(shape[0], max(shape[1] - 1, 0)))
    theirs[on_it, on_it + 1] = 7
    np.testing.assert_array_equal(own.numpy(), theirs)
    gradcheck(lambda x: x.diagonal(1), [x], max_elements=0)
