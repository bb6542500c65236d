"""Tensor: making one, its dtype and device, indexing, shapes, reductions, operators, and what it says to bad input."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import scratchnet as sn
from scratchnet.testing import LAYOUTS, gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")

X = np.random.default_rng(0).standard_normal((3, 4))
FLOATS = (np.float32, np.float64)


def error_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 300
    return message


# --- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        ([1.0, 2], np.float32),
        ([], np.float32),
        (3, np.int64),
        ([[1], [2]], np.int64),
        (True, np.bool_),
        (range(3), np.int64),
        (np.float64(1.5), np.float64),
        (np.float32([1]), np.float32),
        (np.float64([1]), np.float64),
        (np.uint8([1]), np.uint8),
        (np.array([True]), np.bool_),
        (np.array([1, 2], ">f8"), np.float64),
        (np.array([1, 2], ">i2"), np.int16),
        (np.ma.masked_array([1.0]), np.float64),
    ],
)
def test_numbers_arrays_and_lists_become_tensors_of_the_documented_dtype(data, dtype):
    for make in (sn.Tensor, sn.tensor):
        t = make(data)
        assert t.dtype == dtype and t.dtype.isnative and type(t.numpy()) is np.ndarray
        np.testing.assert_array_equal(t.numpy(), np.asarray(data))


def test_tensors_are_made_from_tensors_and_lists_of_them():
    a, b = sn.Tensor([1.0, 2.0], requires_grad=True), sn.Tensor([3.0, 4.0])
    assert sn.Tensor([a, b]).numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert sn.Tensor(a).numpy().tolist() == [1.0, 2.0]
    assert sn.Tensor([b.sum(), b.sum()]).dtype == np.float32


def test_dtype_converts():
    assert sn.Tensor([1, 2], dtype=np.float64).dtype == np.float64
    assert sn.Tensor([1.7], dtype="int32").numpy().tolist() == [1]
    assert sn.Tensor([1.5]).astype(np.float64).dtype == np.float64
    t = sn.Tensor([1.5])
    assert t.astype(np.float32) is t


def test_a_tensor_shares_an_array_and_a_copy_does_not():
    assert np.shares_memory(sn.Tensor(X).numpy(), X)
    assert not np.shares_memory(sn.tensor(X).numpy(), X)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_every_layout_become_tensors(layout):
    x = LAYOUTS[layout](X)
    t = sn.Tensor(x)
    np.testing.assert_array_equal(t.numpy(), x)
    np.testing.assert_allclose((t * 2 + t.T.T).sum(0).numpy(), (3 * x).sum(0), rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sn.Tensor("a"), TypeError, "Tensor: expected numbers, got dtype <U1"),
        (lambda: sn.Tensor([1j]), TypeError, "got dtype complex128"),
        (lambda: sn.Tensor(None), TypeError, "got dtype object"),
        (lambda: sn.Tensor([2**70]), TypeError, "got dtype object"),
        (lambda: sn.Tensor(np.datetime64("2020")), TypeError, "got dtype datetime64"),
        (lambda: sn.Tensor(np.float16([1])), TypeError, "float16"),
        (lambda: sn.Tensor(np.longdouble([1])), TypeError, "float128|longdouble"),
        (lambda: sn.Tensor([[1.0], [1.0, 2.0]]), ValueError, "rectangular"),
        (lambda: sn.Tensor([1, 2], requires_grad=True), TypeError, "float32 or float64 for requires_grad, got int64"),
        (lambda: sn.Tensor([1.0], dtype="float16"), TypeError, "float16"),
        (lambda: sn.Tensor([1.0], device="gpu"), RuntimeError, "expected one of 'numpy', 'cpu', 'cuda', got 'gpu'"),
        (lambda: sn.default_device("gpu"), RuntimeError, "got 'gpu'"),
    ],
)
def test_what_cannot_be_a_tensor_is_a_typed_error(make, error, words):
    with pytest.raises(sn.ScratchnetError, match=words) as caught:
        make()
    assert isinstance(caught.value, error)
    error_line(caught)


# --- what it is ------------------------------------------------------------------------------------------------------


def test_attributes_are_those_of_the_array():
    t = sn.Tensor(np.zeros((2, 0, 3), np.float32))
    assert (t.shape, t.ndim, t.size, t.dtype, t.device, len(t)) == ((2, 0, 3), 3, 0, np.float32, "numpy", 2)
    assert t.T.shape == (3, 0, 2)
    assert not t.requires_grad and t.grad is None and t.is_leaf


def test_one_element_is_a_python_number():
    assert type(sn.Tensor([[2.5]]).item()) is float and type(sn.Tensor(2).item()) is int
    assert float(sn.Tensor(2.5)) == 2.5 and int(sn.Tensor(2.5)) == 2 and bool(sn.Tensor([0.0])) is False
    assert [10, 20, 30][sn.Tensor(1)] == 20 and f"{sn.Tensor(2.5):.3f}" == "2.500"
    for convert in (sn.Tensor.item, float, int, bool):
        with pytest.raises(sn.ShapeError, match=r"item: expected one element, got shape \(2,\)"):
            convert(sn.Tensor([1.0, 2.0]))
    with pytest.raises(sn.DtypeError, match="index"):
        [10, 20][sn.Tensor(1.0)]


def test_iteration_gives_rows():
    assert [row.numpy().tolist() for row in sn.Tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]
    for use in (len, iter, list):
        with pytest.raises(sn.ShapeError):
            use(sn.Tensor(1.0))


def test_printing_says_what_is_not_usual():
    with sn.default_device("cpu"):
        assert repr(sn.Tensor([1.0, 2.0])) == "Tensor([1., 2.])"
        assert repr(sn.Tensor([1, 2])) == "Tensor([1, 2])"
        t = sn.Tensor(np.ones(1), device="numpy", requires_grad=True)
        assert repr(t) == "Tensor([1.], dtype=float64, device='numpy', requires_grad=True)"


def test_numpy_arrays_out_of_a_tensor_share_memory_or_point_to_detach():
    t = sn.Tensor(X)
    assert np.shares_memory(np.asarray(t), X) and not np.shares_memory(np.array(t), X)
    assert np.asarray(t, dtype=np.float32).dtype == np.float32
    t = sn.Tensor(X, requires_grad=True)
    for use in (np.asarray, np.array, lambda t: t.numpy(), lambda t: np.concatenate([t, t])):
        with pytest.raises(sn.GradientError, match=r"\.detach\(\)") as error:
            use(t)
        error_line(error)
    assert np.shares_memory(t.detach().numpy(), X)


def test_elements_cannot_be_assigned():
    with pytest.raises(sn.GradientError, match=r"sn\.where"):
        sn.Tensor([1.0])[0] = 2.0


def test_tensors_can_be_in_sets_and_dictionaries():
    a, b = sn.Tensor([1.0]), sn.Tensor([1.0])
    assert len({a, b, a}) == 2


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_leaves_can_be_copied_and_pickled(clone, requires_grad):
    t = sn.Tensor(X.astype(np.float32), requires_grad=requires_grad)
    other = clone(t)
    assert other.requires_grad == requires_grad and other.dtype == t.dtype and other.device == t.device
    np.testing.assert_array_equal(other.detach().numpy(), t.detach().numpy())
    assert not np.shares_memory(other.detach().numpy(), t.detach().numpy())


def test_a_deep_copy_keeps_gradients_apart_and_shared_tensors_shared():
    t = sn.Tensor(X, requires_grad=True)
    (t * t).sum().backward()
    other, same = copy.deepcopy([t, t])
    assert other is same
    np.testing.assert_array_equal(other.grad.numpy(), t.grad.numpy())
    assert not np.shares_memory(other.grad.numpy(), t.grad.numpy())
    with pytest.raises(sn.GradientError, match=r"deepcopy.*\.detach\(\)"):
        copy.deepcopy(t * t)


# --- dtypes and devices do not mix silently --------------------------------------------------------------------------

BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "@": lambda a, b: a @ b,
    "maximum": sn.maximum,
    "minimum": sn.minimum,
    "where": lambda a, b: sn.where(np.array([[True, False], [False, True]]), a, b),
}
A, B = np.array([[1.5, 2.0], [0.5, 3.0]]), np.array([[2.0, 1.0], [0.5, 2.0]])
NUMPY = {**BINARY, "maximum": np.maximum, "minimum": np.minimum}
NUMPY["where"] = lambda a, b: np.where([[True, False], [False, True]], a, b)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY)
def test_arrays_may_stand_on_either_side(name, dtype):
    a, b = A.astype(dtype), B.astype(dtype)
    expected = NUMPY[name](a, b)
    for left, right in ((sn.Tensor(a), sn.Tensor(b)), (a, sn.Tensor(b)), (sn.Tensor(a), b)):
        y = BINARY[name](left, right)
        assert type(y) is sn.Tensor and y.dtype == expected.dtype
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_float32_and_float64_do_not_mix(name):
    for a, b in itertools.permutations((A.astype(np.float32), A)):
        for left, right in ((sn.Tensor(a), sn.Tensor(b)), (a, sn.Tensor(b)), (sn.Tensor(a), b)):
            with pytest.raises(sn.DtypeError, match="expected one float dtype, got float32 and float64") as error:
                BINARY[name](left, right)
            error_line(error)


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.int64(2)])
@pytest.mark.parametrize("name", [name for name in BINARY if name != "@"])
def test_numbers_take_the_dtype_of_the_tensor(name, number):
    for dtype in FLOATS:
        t = sn.Tensor(A.astype(dtype))
        for y, expected in (
            (BINARY[name](t, number), NUMPY[name](A.astype(dtype), dtype(2))),
            (BINARY[name](number, t), NUMPY[name](dtype(2), A.astype(dtype))),
        ):
            assert type(y) is sn.Tensor and y.dtype == expected.dtype
            np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("f", "dtype"),
    [
        (lambda i: i + 1, np.int32),
        (lambda i: i * 2.5, np.float32),
        (lambda i: i / 2, np.float32),
        (lambda i: i.mean(), np.float32),
        (lambda i: i.sum(), np.int64),
        (lambda i: i.max(), np.int32),
        (lambda i: i.exp(), np.float32),
        (lambda i: i + sn.Tensor([1], dtype=np.int64), np.int64),
        (lambda i: i * sn.Tensor([1.5]), np.float32),
        (lambda i: i * np.float64([1.5]), np.float64),
        (lambda i: (i > 1) + i, np.int32),
        (lambda i: (i > 1).sum(), np.int64),
        (lambda i: (i > 1) * 2.0, np.float32),
        (lambda i: i.softmax(), np.float32),
        (lambda i: i.var(), np.float32),
        (lambda i: i @ i, np.int32),
        (lambda i: i.astype(np.uint8), np.uint8),
    ],
)
def test_integers_stay_integers_until_a_real_number_is_asked_for(f, dtype):
    assert f(sn.Tensor([1, 2, 3], dtype=np.int32)).dtype == dtype


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda: -sn.Tensor([True]), "neg: expected floats, got bool"),
        (lambda: sn.Tensor([True]) - sn.Tensor([True]), "sub: expected floats, got bool and bool"),
        (lambda: sn.Tensor([2]) ** -1, "pow: expected floats, got int64 and int64"),
        (lambda: sn.Tensor(np.uint8([1])) + 300, "a number that fits uint8, got 300"),
        (lambda: sn.Tensor(np.uint64([1])) + sn.Tensor([1]), "integers of one kind, got int64, uint64"),
        (lambda: sn.Tensor([1.0]) * 1j, "complex"),
        (lambda: sn.Tensor([1.0]) * np.complex64(1j), "complex"),
        (lambda: sn.Tensor([1.0]) * "a", "expected numbers"),
        (lambda: sn.Tensor([1.0]) + None, "expected numbers"),
        (lambda: sn.where(sn.Tensor([1.0]), 1.0, 2.0), "where: expected a boolean condition, got float32"),
    ],
)
def test_numbers_that_do_not_go_together_are_a_type_error(f, words):
    with pytest.raises(sn.DtypeError, match=words) as error:
        f()
    assert isinstance(error.value, TypeError)
    error_line(error)


@pytest.mark.parametrize("name", BINARY)
def test_tensors_of_two_devices_do_not_mix(name):
    with pytest.raises(sn.DeviceError, match=r"expected one device, got 'numpy' and 'cpu'; use .to"):
        BINARY[name](sn.Tensor(A, device="numpy"), sn.Tensor(B, device="cpu"))


def test_results_stay_on_the_device_of_their_inputs():
    for name in ("numpy", "cpu"):
        t = sn.Tensor(A, device=name)
        for y in (t + 1, 1 - t, A * t, t[0], t.sum(), sn.where(t > 1, t, 0.0), sn.cat([t, t]), t.to(name), sn.exp(t)):
            assert y.device == name
        assert sn.maximum(2.0, t).device == name


def test_the_default_device_is_set_for_a_block_or_for_good():
    with sn.default_device("cpu"):
        assert sn.Tensor(1.0).device == "cpu"
        with sn.default_device("numpy"):
            assert sn.Tensor(1.0).device == "numpy"
        assert sn.Tensor(1.0).device == "cpu"
        sn.default_device("numpy")
        assert sn.Tensor(1.0).device == "numpy" and sn.Tensor(1.0, device="cpu").device == "cpu"


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
        (lambda t: sn.stack([t], 5), IndexError, "unsqueeze"),
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
        (lambda t: t[:0].softmax(0), ValueError, "softmax: expected at least one element along axis 0"),
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


# --- products, reductions, functions ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((4, 3), (3,)),
        ((4, 3), (3, 2)),
        ((2, 4, 3), (3,)),
        ((3,), (2, 3, 2)),
        ((2, 4, 3), (3, 2)),
        ((2, 1, 2, 3), (2, 3, 1)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
    ],
)
def test_matmul_has_numpys_shapes_and_right_gradients(a, b):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(a), rng.standard_normal(b)
    np.testing.assert_allclose((sn.Tensor(x) @ sn.Tensor(y)).numpy(), x @ y, rtol=1e-12, atol=1e-12)
    gradcheck(lambda x, y: x @ y, [x, y], order=2)


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
    if name != "argmax" and not (name == "std" and axis == ()):  # sqrt has no slope at 0
        gradcheck(lambda t: getattr(t, name)(axis), [x], order=2, max_elements=0)


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_var_and_std_divide_by_n_minus_ddof(ddof):
    for name in ("var", "std"):
        y = getattr(sn.Tensor(X), name)(axis=1, ddof=ddof)
        np.testing.assert_allclose(y.numpy(), getattr(np, name)(X, axis=1, ddof=ddof), rtol=1e-13)


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


def test_clip_takes_one_bound_or_two():
    t = sn.Tensor([-2.0, 0.5, 2.0])
    assert t.clip(-1, 1).numpy().tolist() == [-1.0, 0.5, 1.0]
    assert t.clip(0).numpy().tolist() == [0.0, 0.5, 2.0]
    assert t.clip(high=0).numpy().tolist() == [-2.0, 0.0, 0.0]
    assert sn.Tensor([-2, 5]).clip(0).numpy().tolist() == [0, 5]


def test_every_function_is_its_method_and_takes_what_can_become_a_tensor():
    from scratchnet import functions

    x = np.abs(X)
    arguments = {
        "clip": (0.1, 0.9),
        "maximum": (0.5,),
        "minimum": (0.5,),
        "reshape": (4, 3),
        "transpose": (0, 1),
        "permute": (1, 0),
        "unsqueeze": (0,),
        "broadcast_to": (2, 3, 4),
        "pad": (1,),
        "matmul": (x.T,),
    }
    for name in set(functions.__all__) - {"cat", "stack", "where"}:
        args = arguments.get(name, ())
        by_method = getattr(sn.Tensor(x), name)(*args)
        by_function = getattr(sn, name)(x, *args)
        assert type(by_function) is sn.Tensor and by_function.device == "numpy"
        np.testing.assert_array_equal(by_function.numpy(), by_method.numpy())
    assert sn.where([True, False], 1.0, sn.Tensor([2.0, 3.0])).numpy().tolist() == [1.0, 3.0]
    assert sn.maximum(1.0, sn.Tensor([0.0, 2.0])).numpy().tolist() == [1.0, 2.0]
    assert sn.cat([sn.Tensor([1.0]), np.float32([2.0]), [3.0]]).numpy().tolist() == [1.0, 2.0, 3.0]


def test_what_is_public_in_the_op_table_is_a_method_and_a_function_with_its_docstring():
    from scratchnet.ops import METHODS

    assert {"exp", "softplus", "maximum", "clip", "sum", "softmax", "reshape", "matmul"} <= set(METHODS)
    for name, function in METHODS.items():
        assert getattr(sn.Tensor, name) is function and function.__name__ == name and function.__doc__
        assert getattr(sn, name).__doc__ == function.__doc__ and name in sn.__all__
        assert not hasattr(sn.Tensor, f"{name}_grad")


def test_numpys_functions_take_the_numbers_of_tensors():
    x = sn.Tensor(X)
    assert np.sum(x) == X.sum() and type(np.sum(x)) is np.float64
    np.testing.assert_array_equal(np.max(x, axis=0), X.max(axis=0))
    np.testing.assert_array_equal(np.concatenate([x, X]), np.concatenate([X, X]))
    parameter = sn.Tensor(X, requires_grad=True)
    with pytest.raises(sn.GradientError, match="detach"):
        np.sum(parameter)
    assert np.shape(parameter) == X.shape


@pytest.mark.parametrize(
    "use",
    [
        lambda x, n: x * n,
        lambda x, n: n + x,
        lambda x, n: x**n,
        lambda x, n: x < n,
        lambda x, n: x.clip(0, n),
        lambda x, n: sn.where(x > 0, x, n),
    ],
)
def test_an_integer_that_no_float_holds_is_refused(use):
    with pytest.raises(sn.DtypeError, match="fits float32, got an integer of 1329 bits") as error:
        use(sn.Tensor([1.0, 2.0]), 10**400)
    error_line(error)


@settings(max_examples=20)
@given(st.data())
def test_broadcasting_is_numpys_and_its_gradient_has_the_shape_of_each_input(data):
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3, min_side=0))
    a, b, c = (np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(shapes.input_shapes))
    y = sn.Tensor(a) * sn.Tensor(b) + sn.Tensor(c)
    np.testing.assert_allclose(y.numpy(), a * b + c, rtol=1e-14)
    gradcheck(lambda a, b, c: a * b + c, [a, b, c], order=2)
