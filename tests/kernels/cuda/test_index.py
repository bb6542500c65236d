"""Indexing by tensors on the device "cuda": NumPy's rules, gradients, recorded steps, and what is refused."""

import numpy as np
import pytest
from gpu_arrays import floats, on_gpu
from messages import error_line

import scratchnet as sn

NEEDS = "simulated"
X = floats(3, 4)

KEYS = {
    "rows": ([0, 2],),
    "rows from the end": ([0, -1],),
    "rows of int32 from the end": (np.int32([0, -2]),),
    "rows of bytes": (np.uint8([2, 0]),),
    "a matrix of rows": ([[0, 1], [2, -1]],),
    "no row": (np.zeros(0, np.int64),),
    "one row": (np.int64(-1),),
    "elements": ([0, -3], [1, -1]),
    "elements, broadcast": ([[0], [2]], np.int32([1, -1])),
    "a mask": (X > 0,),
    "a mask of rows": (np.array([True, False, True]),),
    "columns": (slice(None), [0, -2]),
    "elements of a row": (1, [0, 2]),
}


def key_of(parts, place=on_gpu):
    parts = tuple(p if isinstance(p, slice | int) else place(p) for p in parts)
    return parts if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("parts", KEYS.values(), ids=KEYS)
def test_an_index_on_the_device_is_numpys_and_so_is_its_gradient(parts):
    x = on_gpu(X, requires_grad=True)
    found, expected = x[key_of(parts)], X[key_of(parts, np.asarray)]
    np.testing.assert_array_equal(found.detach().numpy(), expected)
    found.sum().backward()
    counts = np.zeros_like(X)
    np.add.at(counts, key_of(parts, np.asarray), 1)
    np.testing.assert_array_equal(x.grad.numpy(), counts)


def test_an_index_may_lie_here_and_there():
    np.testing.assert_array_equal(on_gpu(X)[on_gpu([0, -1]), np.array([1, 2])].numpy(), X[[0, -1], [1, 2]])


@pytest.mark.parametrize("parts", [([0, 3],), ([0, -4],), ([0, -1], [4, 0]), (np.array([True, False]),)], ids=str)
def test_an_index_outside_is_one_typed_line(parts):
    with pytest.raises(sn.IndexOutOfRangeError, match="index: ") as caught:
        on_gpu(X)[key_of(parts)]
    error_line(caught)


@pytest.mark.parametrize("parts", [([0, 1],), ([0, -1],), (X > 0,)], ids=["rows", "rows from the end", "a mask"])
def test_a_tensor_of_the_host_takes_no_index_on_the_device(parts):
    expected = r"index: expected one on 'cpu', got one on 'cuda'; use \.to\('cpu'\)"
    with pytest.raises(sn.DeviceError, match=expected) as caught:
        sn.Tensor(X, device="cpu")[key_of(parts)]
    error_line(caught)


def test_numbers_with_a_fraction_are_no_index():
    with pytest.raises(sn.DtypeError, match="index: expected integers or booleans, got float32") as caught:
        on_gpu(X)[on_gpu(np.float32([0, 1]))]
    error_line(caught)


STEPS = {
    "rows": (lambda x, i: x[i], lambda x, i: x[i]),
    "elements": (lambda x, i: x[i, i], lambda x, i: x[i, i]),
}


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize(("step", "expected"), STEPS.values(), ids=STEPS)
def test_a_recorded_step_indexes_by_the_numbers_of_each_call(step, expected, dtype):
    recorded, x = sn.jit(step), on_gpu(X)
    for rows in np.array([[0, -1], [2, 1], [-3, 2], [1, 1]], dtype):
        np.testing.assert_array_equal(recorded(x, on_gpu(rows)).numpy(), expected(X, rows))
    assert recorded.programs
    for rows, got in (([0, 3], "got 3"), ([-4, 0], "got -4")):
        with pytest.raises(sn.IndexOutOfRangeError, match=got):
            recorded(x, on_gpu(np.array(rows, dtype)))
    np.testing.assert_array_equal(recorded(x, on_gpu(np.array([2, 0], dtype))).numpy(), expected(X, [2, 0]))


def test_a_mask_in_a_recorded_step_is_refused():
    with pytest.raises(sn.JitError, match="index: booleans, or slices beside arrays"):
        sn.jit(lambda x, m: x[m])(on_gpu(X), on_gpu(X > 0))
