"""Tensors out of nothing: values, sizes, dtypes, random numbers that repeat, and new memory in recorded steps."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn

pytestmark = pytest.mark.usefixtures("numpy_device")

MADE = {
    "zeros": (lambda **o: sn.zeros(2, 3, **o), np.zeros((2, 3))),
    "zeros of a tuple": (lambda **o: sn.zeros((2, 3), **o), np.zeros((2, 3))),
    "zeros of a list": (lambda **o: sn.zeros([2, 0], **o), np.zeros((2, 0))),
    "a number": (lambda **o: sn.ones((), **o), np.ones(())),
    "ones": (lambda **o: sn.ones(2, 3, **o), np.ones((2, 3))),
    "empty": (lambda **o: sn.empty(2, **o), np.zeros(2)),
    "full": (lambda **o: sn.full((2,), 1.5, **o), np.full(2, 1.5)),
    "eye": (lambda **o: sn.eye(2, 3, **o), np.eye(2, 3)),
    "linspace": (lambda **o: sn.linspace(0, 1, 5, **o), np.linspace(0, 1, 5)),
    "arange of floats": (lambda **o: sn.arange(0.0, 1.0, 0.25, **o), np.arange(0, 1, 0.25)),
    "zeros_like": (lambda **o: sn.zeros_like(np.float32([1, 2]), **o), np.zeros(2)),
    "ones_like": (lambda **o: sn.ones_like(np.float32([1, 2]), **o), np.ones(2)),
    "full_like": (lambda **o: sn.full_like(np.float32([1, 2]), 3, **o), np.full(2, 3.0)),
}


@pytest.mark.parametrize("name", MADE)
def test_constructors_are_numpys_with_dtype_device_and_requires_grad(name):
    make, expected = MADE[name]
    t = make()
    assert (t.dtype, t.device, t.requires_grad) == (sn.float32, "numpy", False)
    np.testing.assert_array_equal(t.numpy(), expected)
    t = make(dtype=sn.float64, device=sn.device("cpu"), requires_grad=True)
    assert (t.dtype, t.device, t.requires_grad) == (sn.float64, "cpu", True)
    assert t.shape == expected.shape


@pytest.mark.parametrize(
    ("t", "dtype"),
    [
        (lambda: sn.arange(5), sn.int64),
        (lambda: sn.arange(5.0), sn.float32),
        (lambda: sn.full((1,), 3), sn.int64),
        (lambda: sn.full((1,), True), np.bool_),
        (lambda: sn.randint(0, 3, (2,)), sn.int64),
        (lambda: sn.randint(3, (2,), dtype=sn.uint8), sn.uint8),
        (lambda: sn.randperm(3), sn.int64),
        (lambda: sn.ones(2, dtype=sn.bool), np.bool_),
        (lambda: sn.zeros(2, dtype=sn.long), np.int64),
        (lambda: sn.zeros_like(sn.arange(2)), sn.int64),
        (lambda: sn.rand_like(sn.zeros(2, dtype=sn.float64)), sn.float64),
    ],
)
def test_dtypes_follow_what_is_given(t, dtype):
    assert t().dtype == dtype


@pytest.mark.parametrize(
    ("start", "end", "step"), [(5, None, 1), (2, 9, 3), (9, 2, -3), (3, 3, 1), (0, -1, 1), (10**15, 10**15 + 2, 1)]
)
def test_arange_counts_as_numpy_does(start, end, step):
    expected = np.arange(start) if end is None else np.arange(start, end, step)
    np.testing.assert_array_equal(sn.arange(start, end, step).numpy(), expected)


RANDOM = {
    "rand": lambda g=None: sn.rand(1000, generator=g),
    "randn": lambda g=None: sn.randn(1000, generator=g),
    "normal": lambda g=None: sn.normal(2.0, 3.0, (1000,), generator=g),
    "randint": lambda g=None: sn.randint(-2, 5, (1000,), generator=g),
    "randperm": lambda g=None: sn.randperm(1000, generator=g),
    "bernoulli": lambda g=None: sn.bernoulli(sn.full((1000,), 0.25), generator=g),
    "multinomial": lambda g=None: sn.multinomial([0.5, 0.0, 0.5], 1000, replacement=True, generator=g),
}
# (least, most, mean, its deviation for one number)
FACTS = {
    "rand": (0, 1, 0.5, 12**-0.5), "randn": (-9, 9, 0, 1), "normal": (-25, 29, 2, 3), "randint": (-2, 4, 1, 2),
    "randperm": (0, 999, 499.5, 1), "bernoulli": (0, 1, 0.25, 0.4331), "multinomial": (0, 2, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_repeat_after_manual_seed_and_have_their_distribution(name):
    sn.manual_seed(5)
    first, second = RANDOM[name]().numpy(), RANDOM[name]().numpy()
    sn.manual_seed(5)
    np.testing.assert_array_equal(RANDOM[name]().numpy(), first)
    assert (first != second).any()
    np.testing.assert_array_equal(RANDOM[name](sn.Generator().manual_seed(5)).numpy(), first)
    least, most, mean, deviation = FACTS[name]
    numbers = first.astype(np.float64)
    assert least <= numbers.min() and numbers.max() <= most
    assert abs(numbers.mean() - mean) < 5 * deviation / 1000**0.5
    if name == "randperm":
        np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    if name == "multinomial":
        assert not (first == 1).any()


def test_multinomial_without_replacement_draws_each_class_once():
    drawn = sn.multinomial(sn.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 5.0]]), 3).numpy()
    assert [sorted(row) for row in drawn.tolist()] == [[0, 1, 2], [1, 2, 3]]
    with pytest.raises(sn.ShapeError, match="expected 3 or more weights > 0"):
        sn.multinomial([1.0, 1.0, 0.0], 3)


@pytest.mark.parametrize("dtype", [sn.float32, sn.float64, sn.bfloat16])
def test_what_is_no_probability_draws_nan(dtype):
    p = sn.tensor([0.0, 1.0, -0.5, 1.5, np.nan, np.inf], dtype=dtype)
    drawn = sn.bernoulli(p)
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(drawn.float().numpy(), [0, 1, np.nan, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("name", ["rand", "randn", "randint", "randperm", "bernoulli", "normal"])
def test_a_recorded_step_draws_other_numbers_in_each_call_those_of_the_plain_step(name):
    def step(x):
        return RANDOM[name]() + x[0]

    recorded, x = sn.jit(step), np.zeros(1, np.float32)
    sn.manual_seed(1)
    expected = [step(sn.Tensor(x)).numpy() for _ in range(4)]
    sn.manual_seed(1)
    for numbers in expected:
        np.testing.assert_array_equal(recorded(x).numpy(), numbers)
    assert (expected[0] != expected[1]).any()


def test_memory_that_a_recorded_step_makes_is_new_in_each_call():
    def step(x):
        total = sn.zeros(2)
        total += sn.Tensor(x)
        total += sn.arange(2, dtype=sn.float32)
        return total

    recorded = sn.jit(step)
    for i in range(4):
        assert recorded(np.full(2, i, np.float32)).numpy().tolist() == [i, i + 1]


def test_from_numpy_and_as_tensor_share_memory_and_tensor_copies():
    array = np.zeros(2, np.float32)
    shared, again, copied = sn.from_numpy(array), sn.as_tensor(array), sn.tensor(array)
    array += 1
    assert shared.tolist() == again.tolist() == [1, 1] and copied.tolist() == [0, 0]
    assert sn.as_tensor(shared) is shared and sn.as_tensor(shared, dtype=sn.float64).dtype == sn.float64


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sn.zeros(2, -1), sn.ShapeError, "zeros: expected an integer"),
        (lambda: sn.zeros(2.0), sn.ShapeError, "zeros: expected an integer"),
        (lambda: sn.zeros(2, dtype="complex64"), sn.DtypeError, "expected bfloat16, float16, float32, float64"),
        (lambda: sn.full((2,), 300, dtype=sn.uint8), sn.DtypeError, "fits uint8"),
        (lambda: sn.arange(0, 1, 0), sn.ConfigError, "a step other than 0"),
        (lambda: sn.rand(2, dtype=sn.bfloat16), sn.DtypeError, "rand: expected float32 or float64"),
        (lambda: sn.rand(2, dtype=sn.int64), sn.DtypeError, "rand: expected float32 or float64"),
        (lambda: sn.randint(5, 5, (2,)), sn.ConfigError, "randint: high"),
        (lambda: sn.randint(0, 300, (2,), dtype=sn.uint8), sn.DtypeError, "fit uint8"),
        (lambda: sn.from_numpy([1.0]), sn.ConfigError, r"sn\.tensor\(...\) copies anything"),
        (lambda: sn.device("gpu"), sn.DeviceError, "one of 'numpy', 'cpu', 'cuda'"),
        (lambda: sn.zeros(2, requires_grad=1), sn.ConfigError, "True or False"),
        (lambda: sn.arange(3, requires_grad=True), sn.DtypeError, "floats for requires_grad"),
    ],
)
def test_what_makes_no_tensor_is_refused_in_a_line(make, error, words):
    with pytest.raises(error, match=words) as caught:
        make()
    error_line(caught)
