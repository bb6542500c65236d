"""The laws of differentiation: what backward, no_grad, grad and value_and_grad promise."""

import gc
import itertools
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from messages import one_line
from sizes import JIT

import scratchnet as sn
from scratchnet.nonfinite import first_nonfinite
from scratchnet.testing import gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")


def leaf(*values, dtype=np.float64):
    return sn.Tensor(np.array(values if len(values) != 1 else values[0], dtype), requires_grad=True)


def gradient(x):
    return x.grad.numpy().tolist()


# --- one backward pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x * x, 6.0),
        (lambda x: x + x, 2.0),
        (lambda x: x - x, 0.0),
        (lambda x: x / x, 0.0),
        (lambda x: x * x * x, 27.0),
        (lambda x: x**2 * x, 27.0),
        (lambda x: sn.maximum(x, x), 1.0),
        (lambda x: sn.where(x > 2, x * x, x), 6.0),
        (lambda x: sn.stack([x, x, x]).sum(), 3.0),
        (lambda x: sn.cat([x.reshape(1), x.reshape(1)]) @ sn.Tensor([2.0, 5.0], dtype=np.float64), 7.0),
    ],
)
def test_a_tensor_used_more_than_once_gets_the_sum_of_its_gradients(f, expected):
    x = leaf(3.0)
    f(x).backward()
    assert x.grad.item() == pytest.approx(expected, rel=1e-12)


def test_the_square_of_a_matrix_differentiates_both_factors():
    gradcheck(lambda x: x @ x @ x, [np.random.default_rng(0).standard_normal((3, 3))], order=2)


def test_a_diamond_passes_each_node_once():
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y  # 2 ** 60 paths
    y.backward()
    assert x.grad.item() == 2.0**60


def test_a_node_waits_for_all_its_gradients_before_it_passes_them_on():
    x = leaf(0.5)
    a = x * 2
    b = a * a
    c = b * a
    d = c + b * c + a
    (d * a).backward()
    t = 1.0  # a = t: d * a = t**4 + t**6 + t**2
    assert x.grad.item() == pytest.approx(2 * (4 * t**3 + 6 * t**5 + 2 * t), rel=1e-12)


def test_an_unused_leaf_keeps_no_gradient():
    x, unused = leaf(1.0), leaf(2.0)
    (x * 3).backward()
    assert gradient(x) == 3.0 and unused.grad is None


def test_gradients_accumulate_until_they_are_forgotten():
    x = leaf(1.0, 2.0)
    for times in (1, 2, 3):
        (x * x).sum().backward()
        assert gradient(x) == [2.0 * times, 4.0 * times]
    x.zero_grad()
    assert x.grad is None


def test_a_result_of_several_elements_needs_a_gradient_of_its_shape():
    x = leaf(1.0, 2.0, 3.0)
    y = x * x
    with pytest.raises(sn.ShapeError, match=r"backward: expected a gradient for a tensor of shape \(3,\), got none"):
        y.backward()
    with pytest.raises(sn.ShapeError, match=r"expected a gradient of shape \(3,\), got \(1,\)"):
        y.backward([1.0])
    assert x.grad is None
    y.backward([1.0, 10.0, 100.0])
    assert gradient(x) == [2.0, 40.0, 600.0]


def test_a_result_of_one_element_needs_no_gradient_whatever_its_shape():
    x = leaf(3.0)
    (x * x).reshape(1, 1).backward()
    assert gradient(x) == 6.0


def test_a_gradient_from_another_device_is_an_error():
    y = leaf(1.0, 2.0) * 2
    with pytest.raises(sn.DeviceError, match="'numpy', got 'cpu'"):
        y.backward(sn.Tensor([1.0, 1.0], device="cpu"))


@pytest.mark.parametrize("make", [lambda: sn.Tensor([1.0]), lambda: leaf(1.0).detach(), lambda: leaf(1.0) > 0])
def test_backward_without_a_record_is_an_error(make):
    with pytest.raises(sn.GradientError, match="no record"):
        make().backward()


def test_a_leaf_is_its_own_gradient():
    x = leaf(2.0)
    x.backward()
    x.backward(np.array(3.0))
    assert gradient(x) == 4.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_have_the_dtype_of_their_leaf(dtype):
    x = leaf(1.0, 2.0, dtype=dtype)
    ((x * 0.5 + 1).exp() / 3).mean().backward(1)
    assert x.grad.dtype == dtype
    (x * 2).backward(np.ones(2, np.float64))  # a gradient of another type is converted
    assert x.grad.dtype == dtype


# --- backward twice --------------------------------------------------------------------------------------------------


def test_backward_twice_raises_and_leaves_gradients_alone():
    x = leaf(3.0)
    y = (x * x).exp()
    y.backward()
    before = gradient(x)
    with pytest.raises(sn.GradientError, match=r"exp: expected a live record.*retain_graph=True") as error:
        y.backward()
    one_line(error)
    assert gradient(x) == before


def test_a_part_that_an_earlier_backward_freed_cannot_be_used_again():
    x = leaf(3.0)
    shared = x * x
    (shared + 1).backward()
    with pytest.raises(sn.GradientError, match="mul: expected a live record"):
        (shared.exp() + x).backward()
    assert gradient(x) == 6.0


def test_retain_graph_keeps_the_record_for_another_backward():
    x = leaf(3.0)
    y = x * x
    for times in (1, 2, 3):
        y.backward(retain_graph=times < 3)
        assert gradient(x) == 6.0 * times
    with pytest.raises(sn.GradientError):
        y.backward()


# --- tensors that change in place ------------------------------------------------------------------------------------


def bump(x):
    """What an optimizer does to a parameter."""
    x._owner._version += 1


@pytest.mark.parametrize("use", [lambda x: x * x, lambda x: x.exp(), lambda x: x[0] * 2, lambda x: x.reshape(2, 1).T])
def test_a_leaf_that_changed_since_it_was_read_is_an_error(use):
    x = leaf(1.0, 2.0)
    y = use(x).sum()
    bump(x)
    with pytest.raises(sn.GradientError, match="changed in place since") as error:
        y.backward()
    assert one_line(error).split(":")[0] in ("mul", "exp", "getitem", "sum")  # who read it
    assert x.grad is None


def test_a_change_is_seen_through_views_and_detached_tensors():
    for other in (lambda x: x.detach(), lambda x: x[1:], lambda x: x.reshape(2, 1)):
        x = leaf(1.0, 2.0)
        y = (x * x).sum()
        bump(other(x))
        with pytest.raises(sn.GradientError):
            y.backward()


def test_a_change_before_reading_or_after_backward_does_no_harm():
    x, w = leaf(2.0), leaf(5.0)
    bump(x)
    y = x * x
    bump(w)  # not in the record
    y.backward()
    bump(x)
    (x * x).backward()
    assert gradient(x) == 8.0


def test_backward_with_create_graph_can_be_differentiated_again():
    x = leaf(2.0)
    (x**3).backward(create_graph=True)
    assert gradient_of_tensor(x.grad) == 12.0 and x.grad.requires_grad
    first = x.grad
    x.zero_grad()
    first.backward()
    assert gradient(x) == 12.0  # 6 x


def gradient_of_tensor(g):
    return g.detach().numpy().tolist()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_only_the_record_held_is_freed_by_backward():
    x = leaf(np.ones(1000))
    hidden = x.exp()
    array = weakref.ref(hidden._data)
    y = (hidden * hidden).sum()
    del hidden
    gc.disable()  # reference counts alone must do it
    try:
        assert array() is not None
        y.backward(retain_graph=True)
        assert array() is not None
        y.backward()
        assert array() is None
    finally:
        gc.enable()


def test_a_graph_without_backward_is_freed_with_its_result():
    x = leaf(np.ones(1000))
    hidden = x.exp()
    array = weakref.ref(hidden._data)
    y = (hidden * hidden).sum()
    gc.disable()
    try:
        del hidden, y
        assert array() is None
    finally:
        gc.enable()


def test_no_memory_grows_from_step_to_step():
    x = leaf(np.ones((100, 100)))

    def step():
        ((x @ x).tanh() + x.relu()).mean().backward()
        x.zero_grad()

    step()
    gc.collect()
    tracemalloc.start()
    try:
        step()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            step()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000  # a tenth of one matrix
    finally:
        tracemalloc.stop()


def test_nothing_is_recorded_where_nothing_requires_grad():
    x = sn.Tensor([1.0, 2.0])
    y = (x * x).exp()
    assert y._node is None and y.is_leaf and not y.requires_grad


LONG = 100_000 if JIT else 5_000


def test_a_long_chain_differentiates_without_recursion():
    assert sys.getrecursionlimit() < LONG
    x = leaf(1.0)
    y = x
    for _ in range(LONG):
        y = y + 1.0
    y.backward()
    assert gradient(x) == 1.0 and y.item() == LONG + 1.0


def test_a_long_chain_is_freed_without_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(LONG):
        y = -y
    assert first_nonfinite(y) is None
    del y


def test_a_long_chain_can_be_differentiated_by_grad():
    def f(x):
        for _ in range(LONG // 20):
            x = x * 1.0
        return x

    assert sn.grad(f)(2.0).item() == 1.0


def test_an_empty_axis_beside_a_repeated_one_stays_empty():
    x = sn.Tensor(np.zeros((0, 1)), requires_grad=True)
    (x * np.zeros((0, 3))).sum().backward()
    assert x.grad.shape == (0, 1)


# --- .grad has memory of its own -------------------------------------------------------------------------------------

SHARING = {
    "add": lambda a, b: a + b,
    "add twice": lambda a, b: a + b + a,
    "a view": lambda a, b: a.reshape(2, 2).T.reshape(4) + b[::-1],
    "broadcast": lambda a, b: a.sum() + b,
    "mean": lambda a, b: (a + b).mean() + sn.Tensor(np.zeros(4)),
    "another device and back": lambda a, b: a.to("cpu").to("numpy") + b,
    "itself": lambda a, b: a,
}


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("name", SHARING)
def test_a_gradient_shares_memory_with_no_other_array(name, retain):
    a, b = leaf(np.arange(4.0)), leaf(np.ones(4))
    given = np.array([1.0, 2.0, 3.0, 4.0])
    y = SHARING[name](a, b)
    y.backward(given, retain_graph=retain)
    held = [a.detach(), b.detach(), y.detach(), sn.Tensor(given), *[t.grad for t in (a, b) if t.grad is not None]]
    unique = {id(t._data): t.numpy() for t in held}.values()
    for first, second in itertools.combinations(unique, 2):
        if first is not a._data and second is not a._data:
            assert not np.may_share_memory(first, second)
    assert not np.may_share_memory(a.grad.numpy(), a._data)
    assert a.grad.numpy().flags.writeable


def test_a_second_backward_does_not_change_the_gradient_that_somebody_kept():
    x = leaf(1.0, 2.0)
    (x * 2).sum().backward()
    kept = x.grad
    (x * 2).sum().backward()
    assert kept.numpy().tolist() == [2.0, 2.0] and gradient(x) == [4.0, 4.0]


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_detach_shares_memory_and_stops_gradients():
    x = leaf(1.0, 2.0)
    y = x.detach()
    assert np.shares_memory(y.numpy(), x._data) and not y.requires_grad
    (x * y).sum().backward()
    assert gradient(x) == [1.0, 2.0]


def test_inside_no_grad_nothing_is_recorded():
    x = leaf(2.0)
    with sn.no_grad():
        y = x * x
    assert not y.requires_grad and (x * x).requires_grad


def test_no_grad_is_a_decorator_nests_and_survives_exceptions():
    x = leaf(2.0)

    @sn.no_grad()
    def square(x):
        return x * x

    assert not square(x).requires_grad
    assert not square(x).requires_grad  # it can be called again
    with sn.no_grad():
        with sn.no_grad():
            pass
        assert not (x * x).requires_grad
    with pytest.raises(ZeroDivisionError), sn.no_grad():
        raise ZeroDivisionError
    assert (x * x).requires_grad


def in_a_thread(f):
    results = []
    thread = threading.Thread(target=lambda: results.append(f()))
    thread.start()
    thread.join()
    return results[0]


def test_no_grad_and_default_device_hold_in_one_thread_only():
    x = leaf(2.0)
    with sn.no_grad(), sn.default_device("numpy"):
        assert in_a_thread(lambda: (x * x).requires_grad)
        assert in_a_thread(lambda: sn.Tensor(1.0).device) == "cpu"
        assert sn.Tensor(1.0).device == "numpy"

    def enter():
        with sn.no_grad(), sn.default_device("cpu"):
            inside.set()
            leave.wait(10)

    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=enter)
    thread.start()
    inside.wait(10)
    try:
        assert (x * x).requires_grad and sn.Tensor(1.0).device == "numpy"
    finally:
        leave.set()
        thread.join()


def test_threads_differentiate_at_the_same_time_without_disturbing_each_other():
    start = threading.Barrier(4)

    def work(k):
        x = leaf(np.full(3, float(k)))
        start.wait(10)
        for _ in range(5):
            x.zero_grad()
            (x * x * x).sum().backward()
        results[k] = gradient(x)

    results = {}
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: [3.0 * k * k] * 3 for k in range(4)}


def test_gradients_travel_between_devices():
    x = leaf(1.0, 2.0)
    y = x.to("cpu")
    assert y.device == "cpu" and (y * y).device == "cpu"
    (y * y).sum().backward()
    assert gradient(x) == [2.0, 4.0] and x.grad.device == "numpy"


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [lambda d: d, lambda d: d[:2], lambda d: d.reshape(3, 1)[:2, 0]])
def test_a_change_of_memory_that_a_derivative_needs_is_found_through_views_of_it(part):
    factor, leaf = sn.nn.Parameter([1.0, 2.0, 3.0]), sn.Tensor([3.0, 4.0, 5.0], requires_grad=True)
    product = (leaf[: len(part(factor.detach()))] * part(factor.detach())).sum()
    with sn.no_grad():
        factor.add_(1.0)
    with pytest.raises(sn.GradientError, match="in place"):
        product.backward()


def test_gradients_share_no_memory_with_each_other_or_with_what_was_given():
    a, b = (sn.Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    given = sn.Tensor([5.0, 6.0])
    (a + b).backward(given)
    assert not np.shares_memory(a.grad.numpy(), b.grad.numpy())
    assert not any(np.shares_memory(x.grad.numpy(), given.numpy()) for x in (a, b))
    given.zero_()
    a.grad.zero_()
    assert b.grad.tolist() == [5.0, 6.0]
