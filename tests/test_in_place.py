"""x += y, x.add_(y) and x[key] = y: what PyTorch gives for the same lines, written out here as numbers."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet import in_place

pytestmark = pytest.mark.usefixtures("device")


def leaf(*values):
    return sn.Tensor(np.array(values, np.float32), requires_grad=True)


def plain(*values, dtype=np.float32):
    return sn.Tensor(np.array(values, dtype))


def numbers(t):
    return t.detach().numpy().tolist()


def add(x, y):
    x += y
    return x


def subtract(x, y):
    x -= y
    return x


def multiply(x, y):
    x *= y
    return x


def divide(x, y):
    x /= y
    return x


def power(x, y):
    x **= y
    return x


OPERATORS = {
    "add": (add, "add_", 5.0),
    "sub": (subtract, "sub_", 1.0),
    "mul": (multiply, "mul_", 6.0),
    "div": (divide, "div_", 1.5),
    "pow": (power, "pow_", 9.0),
}


@pytest.mark.parametrize(("operator", "method", "expected"), OPERATORS.values(), ids=OPERATORS)
def test_operators_and_methods_write_into_the_same_memory_of_the_same_object(operator, method, expected):
    for change in (operator, lambda x, y: getattr(x, method)(y)):
        x = plain(3.0, 3.0)
        alias, data = x.detach(), x._data
        for y in (2.0, plain(2.0)):
            x[:] = 3.0
            assert change(x, y) is x
            assert x._data is data and x.dtype == np.float32 and numbers(x) == numbers(alias) == [expected] * 2


def test_the_hand_written_update_of_the_tutorials_trains():
    w = sn.nn.Parameter(np.zeros(1, np.float32))
    losses = []
    for _ in range(4):
        loss = ((w - 3.0) ** 2).sum()
        loss.backward()
        with sn.no_grad():
            for p in [w]:
                p -= 0.25 * p.grad
            w.grad.zero_()
        losses.append(loss.item())
    assert losses == [9.0, 2.25, 0.5625, 0.140625] and type(w) is sn.nn.Parameter and w.requires_grad


def test_a_leaf_that_requires_grad_changes_inside_no_grad_only():
    w = leaf(1.0, 2.0)
    changes = [
        *(lambda operator=operator: operator(w, 1.0) for operator, _, _ in OPERATORS.values()),
        lambda: w.copy_(w),
        lambda: w.fill_(0.0),
        lambda: w.__setitem__(0, 1.0),
        lambda: add(w[0], 1.0),
        lambda: plain(1.0).__setitem__(0, w[0]),
    ]
    for change in changes:
        with pytest.raises(sn.GradientError, match=r"no_grad|sn\.where") as error:
            change()
        error_line(error)
    assert numbers(w) == [1.0, 2.0]
    with sn.no_grad():
        w[0] += 4.0
        w *= 2.0
    assert numbers(w) == [10.0, 4.0] and w.requires_grad and w.is_leaf


def test_a_result_that_changes_in_place_goes_on_with_its_record():
    x = leaf(1.0, 2.0)
    y = x * 2
    y += x  # 3 x
    y *= y  # 9 x ** 2
    y -= 1.0
    y.sum().backward()
    assert numbers(y) == [8.0, 35.0] and numbers(x.grad) == [18.0, 36.0]
    total = plain(0.0, 1.0)  # it needs no gradient until something with one is added
    total += x
    total *= 3.0
    total.sum().backward()
    assert numbers(total) == [3.0, 9.0] and numbers(x.grad) == [21.0, 39.0]


WRITTEN = {
    "zero_": lambda y: y.zero_(),
    "fill_": lambda y: y.fill_(2.0),
    "copy_": lambda y: y.copy_(plain(5.0, 6.0)),
    "uniform_": lambda y: y.uniform_(),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_over_has_no_gradient(name):
    x = leaf(1.0, 2.0)
    y = x * 2
    if name == "uniform_" and y.device == "cuda":
        return  # drawn on the host alone
    assert WRITTEN[name](y) is y and y.requires_grad
    (y * 3 + x).sum().backward()
    assert numbers(x.grad) == [1.0, 1.0]


def test_what_is_written_over_by_the_numbers_of_a_tensor_has_its_gradient():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = x * 2
    y.copy_(w)
    y.copy_(y)
    (y * 3 + x).sum().backward()
    assert numbers(x.grad) == [1.0, 1.0] and numbers(w.grad) == [3.0, 3.0]


def test_a_view_that_is_older_than_the_record_of_its_tensor_is_refused():
    x, total = leaf(1.0, 2.0), plain(0.0, 1.0)
    view, alias = total[1:], total.detach()
    with sn.no_grad():
        total += 1.0
    assert numbers(view * x[1:]) == [4.0]
    total += x
    for use in (lambda: view * 3.0, lambda: view[0], lambda: view.zero_(), lambda: view.__setitem__(0, 1.0)):
        with pytest.raises(sn.GradientError, match="expected a view made after its tensor was changed") as error:
            use()
        error_line(error)
    with sn.no_grad():
        assert numbers(view * 2.0) == [8.0]
    assert numbers(alias) == [2.0, 4.0] and not (alias * 1.0).requires_grad
    (total[1:] * 3.0).sum().backward()
    assert numbers(x.grad) == [0.0, 3.0]


def test_what_was_read_before_the_change_is_refused_by_backward():
    for change in (lambda y: add(y, 1.0), lambda y: y.detach().zero_(), lambda y: y.detach().__setitem__(0, 5.0)):
        x = leaf(1.0, 2.0)
        y = x * 2
        z = y * y
        change(y)
        with pytest.raises(sn.GradientError, match="changed in place since"):
            z.sum().backward()
    w = leaf(1.0)
    z = w * w
    with sn.no_grad():
        w += 1.0
    with pytest.raises(sn.GradientError, match="changed in place since"):
        z.backward()


@pytest.mark.parametrize(
    "change",
    [lambda y: add(y, 1.0), lambda y: y.detach().fill_(7.0), lambda y: sn.nn.init.zeros_(y)],
    ids=["operator", "alias", "init"],
)
def test_the_derivative_of_an_op_keeps_the_value_that_the_op_gave(change):
    x = leaf(0.0, 1.0)
    y = x.exp()
    with sn.no_grad():
        change(y)
    y.sum().backward()
    np.testing.assert_allclose(numbers(x.grad), [1.0, np.e], rtol=1e-6)


def test_what_changed_before_it_was_read_is_no_change_since():
    x, w = plain(1.0, 2.0, 3.0), leaf(1.0, 1.0)
    x += 1.0
    (x[1:] * w).sum().backward()  # a view's changes are those of its memory
    assert numbers(w.grad) == [3.0, 4.0]


def test_views_and_arrays_of_the_same_memory_see_the_change():
    x = plain(1.0, 2.0, 3.0)
    view, array = x[1:], x.numpy()
    view *= 2.0
    x += 1.0
    assert numbers(view) == [5.0, 7.0] and numbers(x) == [2.0, 5.0, 7.0]
    if x.device != "cuda":  # else `numpy` is a copy
        assert array.tolist() == [2.0, 5.0, 7.0]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (0, 9.0, [[9, 9, 9], [3, 4, 5]]),
        ((slice(None), 1), [7.0, 8.0], [[0, 7, 2], [3, 8, 5]]),
        (Ellipsis, 1, [[1, 1, 1], [1, 1, 1]]),
        ((1, -1), 2.5, [[0, 1, 2], [3, 4, 2.5]]),
        ([1, 0], np.float64([[1.0, 2.0, 3.0]]), [[1, 2, 3], [1, 2, 3]]),
        (np.array([[True, False, False], [False, True, True]]), -1.0, [[-1, 1, 2], [3, -1, -1]]),
        (([0, 1], [2, 2]), [6.0, 7.0], [[0, 1, 6], [3, 4, 7]]),
    ],
)
def test_items_are_assigned_by_numpys_keys(key, value, expected):
    x = sn.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    alias = x.detach()
    x[key] = value
    assert numbers(alias) == expected
    x = sn.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    x[x > 3] = plain(0.0)
    assert numbers(x) == [[0, 1, 2], [3, 0, 0]]


def test_overlapping_memory_is_read_before_it_is_written():
    x = sn.Tensor(np.arange(2000, dtype=np.float32))
    x[1:] = x[:-1]
    np.testing.assert_array_equal(x.numpy(), [0, *range(1999)])
    x.copy_(x[::-1] if x.device != "cuda" else sn.Tensor(x.numpy()[::-1].copy()))
    np.testing.assert_array_equal(x.numpy(), [*range(1998, -1, -1), 0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda: add(plain(1.0, 2.0), plain([1.0], [2.0])), sn.ShapeError, r"shape \(2,\).*got \(2, 2\)"),
        (lambda: add(plain(1, dtype=np.int64), 1.5), sn.DtypeError, "int64.*float32"),
        (lambda: divide(plain(1, dtype=np.int64), 2), sn.DtypeError, "int64.*float32"),
        (lambda: plain(1, dtype=np.int64).__setitem__(0, 1.5), sn.DtypeError, "int64.*float32"),
        (lambda: plain(1.0).fill_([1.0, 2.0]), sn.ShapeError, r"\(1,\).*\(2,\)"),
        (lambda: plain(1.0).__setitem__(3, 1.0), sn.IndexOutOfRangeError, "index"),
        (lambda: plain(1.0).__setitem__(0, [1.0, 2.0]), sn.ShapeError, r"\(\).*\(2,\)"),
        (lambda: add(plain(1.0).broadcast_to(3), 1.0), sn.ConfigError, "share memory"),
    ],
)
def test_what_does_not_fit_is_a_typed_error(change, error, words):
    with pytest.raises(error, match=words) as raised:
        change()
    error_line(raised)


def test_read_only_arrays_are_not_written():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    for change in (lambda x: add(x, 1.0), lambda x: x.__setitem__(0, 1.0)):
        x = sn.Tensor(array)
        if x.device == "cuda":  # it has memory of its own
            change(x)
        else:
            with pytest.raises(sn.ConfigError, match=r"read-only.*sn\.tensor"):
                change(x)
    assert array.tolist() == [0.0, 0.0, 0.0]


def test_optimizers_and_loaded_states_go_on_after_a_change_in_place():
    model = sn.nn.Linear(2, 1)
    optimizer = sn.optim.SGD(model.parameters(), lr=0.5)
    with sn.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    model(plain([1.0, 2.0])).sum().backward()
    for p in model.parameters():
        p.grad *= 2.0
    optimizer.step()
    assert numbers(model.weight) == [[0.0], [-1.0]] and numbers(model.bias) == [0.0]
    before, weight = model.weight.detach(), model.weight
    model.load_state_dict({"weight": np.ones((2, 1), np.float32), "bias": np.zeros(1, np.float32)})
    assert model.weight is weight and numbers(before) == [[1.0], [1.0]]


@pytest.mark.parametrize("name", in_place.IN_PLACE.split())
def test_a_function_in_place_gives_what_the_function_gives_in_the_same_memory(name):
    args = {"clamp": (0.5, 1.0), "clip": (0.5, 1.0), "masked_fill": (np.array([True, False]), 3.0)}.get(name, ())
    t = sn.tensor([0.25, 1.75])
    expected, memory = getattr(t, name)(*args).numpy(), t.numpy()
    assert getattr(t, f"{name}_")(*args) is t
    np.testing.assert_array_equal(memory, expected)
    leaf = sn.tensor([0.25, 1.75], requires_grad=True)
    with pytest.raises(sn.GradientError, match=f"{name}_: expected a tensor that may change in place"):
        getattr(leaf, f"{name}_")(*args)


def test_random_numbers_in_place_repeat_and_keep_to_their_bounds():
    sn.manual_seed(2)
    a, b = sn.zeros(500).normal_(1.0, 2.0), sn.zeros(500).uniform_(-1.0, 3.0)
    assert abs(a.mean().item() - 1) < 0.4 and abs(a.std().item() - 2) < 0.3
    assert b.min().item() >= -1 and b.max().item() < 3
    sn.manual_seed(2)
    assert sn.equal(sn.zeros(500).normal_(1.0, 2.0), a)
    with pytest.raises(sn.ConfigError, match="uniform_: expected"):
        sn.zeros(1).uniform_(2.0, 1.0)
