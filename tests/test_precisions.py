"""The precision of products: which ops have it, where it is kept, and what is refused."""

import itertools
import threading

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet import precisions
from scratchnet.ops import OPS, products
from scratchnet.testing.oracles.half import ROUNDED, bfloat16

RNG = np.random.default_rng(0)
A, B = (RNG.standard_normal(shape).astype(np.float32) for shape in ((5, 40), (40, 3)))


@pytest.fixture(autouse=True)
def _device(device, monkeypatch):
    """Each device, where small products are rounded as well."""
    monkeypatch.setattr(precisions, "LEAST", {})


def product(a, b):
    return a.astype(np.float64) @ b.astype(np.float64)


def close(found, exact):
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_the_table_names_rows_of_the_op_table_and_what_has_no_entry_is_refused():
    assert {op for ops in precisions.TYPES.values() for op in ops} <= set(OPS)
    with pytest.raises(sn.ConfigError, match=r"one of float32, bfloat16, float16, tf32, tf32x3, got 'float8'") as error:
        sn.precision("float8")
    error_line(error)


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b, c: a @ b,
        lambda a, b, c: sn.nn.functional.linear(a, b),
        lambda a, b, c: sn.nn.functional.linear(a, b, c) - c,
        lambda a, b, c: sn.stack([a, a]).matmul(sn.stack([b, b]))[1],
        lambda a, b, c: sn.stack([a, a]).matmul(b)[1],
        lambda a, b, c: (b.T @ a.T).T,
    ],
)
def test_products_read_rounded_operands(compute):
    arguments = [sn.Tensor(x) for x in (A, B, np.float32([1, 2, 3]))]
    with sn.precision("bfloat16"):
        close(compute(*arguments).numpy(), product(bfloat16(A), bfloat16(B)))
    close(compute(*arguments).numpy(), product(A, B))
    assert abs(product(A, B) - product(bfloat16(A), bfloat16(B))).max() > 1e-3  # the two can be told apart


LAYERS = [lambda a, b, c: a @ b, sn.nn.functional.linear, lambda a, b, c: sn.stack([a, a]) @ b]


@pytest.mark.parametrize("sides", [(31, 96, 96), (96, 31, 96), (96, 96, 31), (64, 64, 64)], ids=str)
def test_small_products_and_their_gradients_stay_float32_and_others_do_not(sides, device, monkeypatch):
    """In any order of the sides the answer is the same, so a layer's three products are rounded, or none of them."""
    monkeypatch.undo()
    for order in ("pairs", "widened"):  # on all CPUs the limit of those with matrix units
        monkeypatch.delitem(precisions.LEAST, order)
    large = tuple(side + 1 for side in sides)
    assert not precisions.is_rounded("bfloat16", None, *sides) and precisions.is_rounded("float16", None, *sides)
    for (m, k, n), layer in itertools.product((sides, large) if device != "cuda" else (), LAYERS):
        shapes, found = ((m, k), (k, n), (n,)), {}
        a, b, c = (sn.Tensor(RNG.standard_normal(s).astype(np.float32), requires_grad=True) for s in shapes)
        for precision in ("float32", "bfloat16"):
            a.grad = b.grad = None
            with sn.precision(precision):
                y = layer(a, b, c)
            (y * y).sum().backward()
            found[precision] = [t.detach().numpy() for t in (y, a.grad, b.grad)]
        are_equal = [np.array_equal(*pair) for pair in zip(*found.values(), strict=True)]
        assert are_equal == [(m, k, n) == sides] * 3


def test_a_cpu_without_units_rounds_where_each_side_is_long(device, monkeypatch):
    monkeypatch.undo()
    limits = {("tiles", 31): False, ("tiles", 32): True, ("pairs", 63): False, ("pairs", 64): True}
    limits |= {("widened", 1023): False, ("widened", 1024): True}
    assert {key: precisions.is_rounded("bfloat16", *key, 1024, 1024) for key in limits} == limits
    monkeypatch.setattr(precisions, "LEAST", {"widened": (6, 0)})
    monkeypatch.setattr(products, "order_of", lambda precision, kinds: "widened" if "cpu" in kinds else None)
    for rows in (5, 6):
        a, b = (sn.Tensor(RNG.standard_normal(shape).astype(np.float32)) for shape in ((rows, 40), (40, 7)))
        with sn.precision("bfloat16"):
            rounded = a @ b
        assert np.array_equal(rounded.numpy(), (a @ b).numpy()) == (device == "cpu" and rows == 5)


@pytest.mark.parametrize("name", ["float16", "tf32", "tf32x3"])
def test_float16_and_tf32_are_of_gpus_alone(name, device):
    with sn.precision(name):
        if device == "cuda":
            rounded = ROUNDED.get(name, np.asarray)
            close((sn.Tensor(A) @ sn.Tensor(B)).numpy(), product(rounded(A), rounded(B)))
            return
        with pytest.raises(sn.ConfigError, match=f"on 'cuda' .*'{name}', got '{device}'; .*'bfloat16'") as error:
            sn.Tensor(A) @ sn.Tensor(B)
        error_line(error)


def test_gradients_of_float16_need_a_scale(device):
    if device != "cuda":
        return
    a, b = sn.Tensor(A, requires_grad=True), sn.Tensor(B)
    with sn.precision("float16"):
        y = a @ b
    g = np.full(y.shape, 1e-8, np.float32)  # below float16's least number
    y.backward(g)
    assert not a.grad.numpy().any()
    a.grad = None
    with sn.precision("float16"):
        y = a @ b
    y.backward(g * np.float32(2**16))
    np.testing.assert_allclose(a.grad.numpy() / 2**16, product(g, B.T), rtol=2e-2, atol=1e-9)


def test_other_ops_and_integers_are_as_they_were():
    x, n = sn.Tensor(A), sn.Tensor(np.arange(6).reshape(2, 3) * 1001)
    plain = (x * 1.001 + x.softmax(-1)).numpy(), (n @ n.T).numpy()
    with sn.precision("bfloat16"):
        for found, expected in zip(((x * 1.001 + x.softmax(-1)).numpy(), (n @ n.T).numpy()), plain, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_gradients_have_the_precision_of_the_product_wherever_backward_is_called():
    a, b = (sn.Tensor(x, requires_grad=True) for x in (A, B))
    with sn.precision("bfloat16"):
        y = a @ b
    g = RNG.standard_normal(y.shape).astype(np.float32)
    y.backward(g)
    close(a.grad.numpy(), product(bfloat16(g), bfloat16(B).T))
    close(b.grad.numpy(), product(bfloat16(A).T, bfloat16(g)))
    plain = a @ b
    a.grad = None
    with sn.precision("bfloat16"):
        plain.backward(g)
    close(a.grad.numpy(), product(g, B.T))


def test_the_mode_is_nested_and_ends_with_its_block():
    half = sn.precision("bfloat16")
    with half, sn.precision("float32"), half:
        assert precisions.current_precision() == "bfloat16"
    assert precisions.current_precision() == "float32"
    with pytest.raises(ZeroDivisionError), half:
        raise ZeroDivisionError
    assert precisions.current_precision() == "float32"


def test_threads_may_share_an_object_and_have_modes_of_their_own():
    shared, inside, done = sn.precision("bfloat16"), threading.Event(), threading.Event()
    found = {}

    def first():
        with sn.precision("bfloat16"), shared:
            inside.set()
            done.wait()
        found["first"] = precisions.current_precision()

    def second():
        inside.wait()
        with shared:
            done.set()
            thread.join()
        found["second"] = precisions.current_precision()

    thread = threading.Thread(target=first)
    other = threading.Thread(target=second)
    thread.start()
    other.start()
    other.join()
    assert found == {"first": "float32", "second": "float32"}


def test_a_recorded_step_has_the_precision_of_its_call():
    @sn.jit
    def step(a, b):
        return a @ b

    a, b = sn.Tensor(A), sn.Tensor(B)
    for _ in range(3):
        close(step(a, b).numpy(), product(A, B))
        with sn.precision("bfloat16"):
            close(step(a, b).numpy(), product(bfloat16(A), bfloat16(B)))


def test_products_of_float64_are_refused():
    with sn.precision("bfloat16"), pytest.raises(sn.DtypeError, match=r"expected float32 .* got float64") as error:
        sn.Tensor(A, dtype="float64") @ sn.Tensor(B, dtype="float64")
    error_line(error)


def test_what_float32_can_hold_does_not_underflow():
    """bfloat16 has the exponents of float32; the smallest number of float16, 6e-8, is 1e30 times as large."""
    a, b = np.full((1, 8), 3e-30, np.float32), np.full((8, 1), 2e-6, np.float32)
    with sn.precision("bfloat16"):
        found = (sn.Tensor(a) @ sn.Tensor(b)).numpy()
        np.testing.assert_allclose((sn.Tensor(b.T) @ sn.Tensor(a.T)).numpy(), found)
    np.testing.assert_allclose(found, 8 * 6e-36, rtol=2 * 2.0**-8)
    assert (np.float16(a) == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(value):
    a = A.copy()
    a[2, 7] = value
    with sn.precision("bfloat16"):
        found = (sn.Tensor(a) @ sn.Tensor(B)).numpy()
    assert (np.isfinite(found).all(axis=1) == [True, True, False, True, True]).all()
