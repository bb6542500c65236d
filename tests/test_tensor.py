"""Tensor: making one, its dtype and device, indexing, shapes, reductions, operators, and what it says to bad input."""

import copy
import itertools
import pickle
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from messages import error_line

import scratchnet as sn
from scratchnet.testing import LAYOUTS, gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")

X = np.random.default_rng(0).standard_normal((3, 4))
FLOATS = (np.float32, np.float64)


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
        (lambda: sn.Tensor(None), TypeError, "got None"),
        (lambda: sn.Tensor([2**70]), TypeError, "got dtype object"),
        (lambda: sn.Tensor(np.datetime64("2020")), TypeError, "got dtype datetime64"),
        (lambda: sn.Tensor(np.float16([1])) + 1e5, TypeError, "a number that fits float16, got 100000.0"),
        (lambda: sn.ones(1, dtype=sn.float16) * 1e-8, TypeError, "a number that fits float16, got 1e-08"),
        (lambda: sn.Tensor(np.longdouble([1])), TypeError, "float128|longdouble"),
        (lambda: sn.Tensor(np.ma.masked_greater([1.0, 9.0], 5)), TypeError, "masked elements.*filled"),
        (lambda: sn.ones(2) + np.ma.masked_greater([1.0, 9.0], 5), TypeError, "masked elements.*filled"),
        (lambda: sn.Tensor([[np.ma.masked_greater([1.0, 9.0], 5)]]), TypeError, "masked elements.*filled"),
        (lambda: sn.data.TensorDataset(np.ma.masked_greater([1.0, 9.0], 5)), TypeError, "masked elements.*filled"),
        (lambda: sn.Tensor([[1.0], [1.0, 2.0]]), ValueError, "rectangular"),
        (lambda: sn.Tensor([1, 2], requires_grad=True), TypeError, "floats for requires_grad, got int64"),
        (lambda: sn.Tensor([1.0], dtype="complex64"), TypeError, "expected bfloat16, float16, float32, float64"),
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
    for convert in (sn.Tensor.item, float, int):
        with pytest.raises(sn.ShapeError, match=r"item: expected one element, got shape \(2,\)"):
            convert(sn.Tensor([1.0, 2.0]))
    with pytest.raises(
        sn.ShapeError, match=r"bool: expected one element, got shape \(2,\); write .any\(\) or .all\(\)"
    ):
        assert sn.Tensor([1.0, 2.0]) > 1.0
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


def test_a_notebook_shows_the_values_as_a_table_below_what_the_tensor_is():
    x = sn.Tensor([[1.0, 0.25], [3.0, -4.0]], requires_grad=True)
    shown = ElementTree.fromstring(x._repr_html_())
    assert shown.find("p").text == "Tensor of shape (2, 2), float32, on numpy, requires grad"
    assert [cell.text for cell in shown.iter("td")] == ["0", "1", "0.25", "1", "3", "-4"]
    made = ElementTree.fromstring((x * 2)._repr_html_())
    assert made.find("p").text.endswith("on numpy, made by mul")
    large = [cell.text for cell in ElementTree.fromstring(sn.zeros(21, 13)._repr_html_()).iter("td")]
    assert len(large) == 7 * 8 and large[3 * 8] == "..."  # three rows and columns on each side
    for data, dtype in ((True, None), (1.5, "bfloat16"), (np.ones((2, 2, 2)), None), ([], None)):
        ElementTree.fromstring(sn.Tensor(data, dtype=dtype)._repr_html_())
    with pytest.raises(sn.JitError, match="repr"):
        sn.jit(lambda x: x._repr_html_())(x.detach())


def test_numpy_arrays_out_of_a_tensor_share_memory_or_point_to_detach():
    t = sn.Tensor(X)
    assert np.shares_memory(np.asarray(t), X) and not np.shares_memory(np.array(t), X)
    assert np.asarray(t, dtype=np.float32).dtype == np.float32
    t = sn.Tensor(X, requires_grad=True)
    for use in (np.asarray, np.array, lambda t: t.numpy(), lambda t: np.median(t)):
        with pytest.raises(sn.GradientError, match=r"\.detach\(\)") as error:
            use(t)
        error_line(error)
    assert np.shares_memory(t.detach().numpy(), X)


@pytest.mark.parametrize("data", [[1, 2], [True], np.uint8([1])])
def test_integers_require_grad_by_no_door(data):
    doors = [
        lambda: sn.Tensor(data, requires_grad=True),
        lambda: sn.tensor(data, requires_grad=True),
        lambda: sn.nn.Parameter(data),
        lambda: setattr(sn.Tensor(data), "requires_grad", True),
        lambda: sn.Tensor(data).requires_grad_(),
        lambda: setattr(sn.nn.Buffer(data), "requires_grad", True),
    ]
    for door in doors:
        with pytest.raises(sn.DtypeError, match="floats for requires_grad") as error:
            door()
        error_line(error)
    x = sn.Tensor([1.5], requires_grad=True)
    assert not x.astype(np.int64).requires_grad and x.requires_grad_(False) is x and not x.requires_grad


def test_the_result_of_an_op_always_requires_grad():
    y = sn.Tensor([1.0], requires_grad=True) * 2
    y.requires_grad = True
    with pytest.raises(sn.GradientError, match=r"\.detach\(\)") as error:
        y.requires_grad = False
    error_line(error)
    with pytest.raises(sn.ConfigError, match="requires_grad"):
        y.detach().requires_grad = "no"


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


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_of_views_look_at_the_copy_of_what_they_looked_at(clone):
    base = sn.Tensor(np.arange(12.0).reshape(3, 4))
    views = [base[1:, ::2], base.T, base.reshape(4, 3)[::-1], base.detach(), base[2, 3], base[3:]]
    expected = [view.numpy() * 2 for view in views]
    for things in ([base, *views], [*views, base]):
        copies = clone(things)
        other = copies[0] if things[0] is base else copies[-1]
        other *= 2.0
        for t, numbers in zip([t for t in copies if t is not other], expected, strict=True):
            np.testing.assert_array_equal(t.numpy(), numbers)
            assert t._base is other
    assert base.numpy()[0].tolist() == [0.0, 1.0, 2.0, 3.0]
    turned = sn.from_numpy(np.arange(12.0).reshape(3, 4).T)  # in no order that a copy has
    for part, numbers in zip(clone([turned[1], turned[2:, 1:]]), ([1, 5, 9], [[6, 10], [7, 11]]), strict=True):
        assert part.numpy().tolist() == numbers
    x = sn.Tensor([1.0, 2.0], requires_grad=True)
    alone = clone((x * 2).detach())  # what it looks at has a record, which no copy takes along
    assert alone.numpy().tolist() == [2.0, 4.0] and alone._base is None


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


def test_numpys_functions_take_the_numbers_of_tensors():
    x = sn.Tensor(X)
    assert np.median(x) == np.median(X) and type(np.median(x)) is np.float64
    np.testing.assert_array_equal(np.percentile(x, 30, axis=0), np.percentile(X, 30, axis=0))
    parameter = sn.Tensor(X, requires_grad=True)
    with pytest.raises(sn.GradientError, match="detach"):
        np.median(parameter)
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


# --- arrays of others ------------------------------------------------------------------------------------------------


class Refusing:
    """An array that NumPy may not read, as PyTorch's of bfloat16 and CuPy's."""

    def __init__(self, error, dtype="float32"):
        self.error, self.dtype, self.shape = error, dtype, (2,)

    def __array__(self, dtype=None, copy=None):
        raise self.error


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            Refusing(RuntimeError("Use tensor.detach().numpy() instead.")),
            r"\(Use tensor.detach\(\).numpy\(\) instead.\)$",
        ),
        (Refusing(TypeError("Got unsupported ScalarType"), "torch.bfloat16"), r"; .float\(\) makes float32 of it$"),
        (Refusing(TypeError("Please use `.get()`\nor so")), r"Refusing of float32 \(2,\) \(Please use `.get\(\)`\)$"),
    ],
)
def test_arrays_that_numpy_cannot_read_are_one_line_with_the_remedy(array, message):
    with pytest.raises(sn.DtypeError, match=message):
        sn.Tensor(array)


OTHERS = {
    "pandas": lambda m: m.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}),
    "polars": lambda m: m.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}),
    "pyarrow": lambda m: m.table({"a": [1.0, 2.0], "b": [3.0, 4.0]}),
    "torch": lambda m: m.tensor([[1.0, 3.0], [2.0, 4.0]], dtype=m.float64),
    "jax.numpy": lambda m: m.array([[1.0, 3.0], [2.0, 4.0]]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_arrays_of_other_libraries_are_taken(name):
    x = OTHERS[name](pytest.importorskip(name))
    assert sn.Tensor(x).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_memory_of_others_is_shared():
    memory = np.arange(3, dtype=np.float32)
    for view in (memoryview(memory), memory):
        t = sn.Tensor(view)
        assert np.shares_memory(t.numpy(), memory)
