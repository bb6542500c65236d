"""Kernels that work in chunks, tiles or stages, across several of them with a rest: sizes that random ones miss."""

from unittest import mock

import numpy as np
import pytest
from sizes import DEVICES, JIT, SIMULATED

from scratchnet.kernels.cpu import movement, norm, reduce, softmax
from scratchnet.native.compile import MAX_THREADS, get_num_threads, set_num_threads
from scratchnet.testing import KERNEL_ROWS, KernelCase, host_kernel

pytestmark = pytest.mark.skipif(SIMULATED, reason="blocks are tiny there, so that small sizes cross them")

# (outer, n, inner): several rows of three runs and a rest; runs of runs of runs; several tiles of columns and a rest
SHAPES = [
    (5, 3 * reduce.RUN_CONTIGUOUS + 1, 1),
    (3, reduce.RUN_CONTIGUOUS + 77, 1),
    (2, 2 * reduce.RUN_STRIDED + 33, 5),
    (1, reduce.RUN_STRIDED**2 + reduce.RUN_STRIDED + 3, 2),
    (3, 2 * reduce.RUN_ARGMAX + 5, 1),
    *[(2, reduce.RUN_STRIDED + 44, reduce.TILE + 13)] * JIT,  # too large for plain Python
]


def drawn(*shape):
    """Small integers: sums of them have no error, and extremes come several times."""
    return np.random.default_rng(sum(shape)).integers(-9, 10, shape).astype(np.float32)


@pytest.mark.threads
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["sum", "max", "min", "argmax"])
def test_reductions_across_runs_and_tiles(name, shape, device):
    x = drawn(*shape)
    if name != "sum":  # the first row's extreme is its last element, that of others comes several times, and not early
        x[:, shape[1] // 2 + 1 :] += -40 if name == "min" else 40
        x[0, -1] = -99 if name == "min" else 99
    out = np.empty((shape[0], shape[2]), np.int64 if name == "argmax" else np.float32)
    host_kernel(device, name)(x, out)
    np.testing.assert_array_equal(out, getattr(np, name)(x, axis=1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["standardize", "standardize_grad"])
@pytest.mark.parametrize("shape", [(3, 5, 2 * norm.STRIP + 44), (2, 7, norm.STRIP + 1), (4, 301, 1)])
def test_standardization_across_strips(name, shape, device):
    row = KERNEL_ROWS[name]
    inputs = tuple(np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(1 + ("_" in name)))
    case = KernelCase(name, inputs, {"eps": 0.5}, row.oracle, shape[1], row.roundings, row.magnitude)
    case.check(host_kernel(device, name), layouts=("C",))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [0, 1, movement.RANGES - 1, 2 * movement.RANGES + 5])
def test_rows_are_scattered_over_all_ranges_of_the_result(rows, device):
    g, index = drawn(70, 3), np.random.default_rng(rows).integers(0, max(rows, 1), 70 if rows else 0)
    expected, out = np.zeros((rows, 3), np.float32), np.full((rows, 3), np.nan, np.float32)
    np.add.at(expected, index, g[: len(index)])
    host_kernel(device, "scatter_rows")(g[: len(index)], index, out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["softmax", "cross_entropy", "cross_entropy_grad"])
def test_a_row_has_the_same_bits_alone_and_side_by_side(name, device):
    row, kernel = KERNEL_ROWS[name], host_kernel(device, name)
    for rows in (1, 9, 2 * softmax.SIDE + 1):
        for n in (1, 10, softmax.SHORT, softmax.SHORT + 1):
            random = np.random.default_rng(n)
            x, labels = 4 * random.standard_normal((rows, n)).astype(np.float32), random.integers(0, n, rows)
            inputs = {"softmax": (x,), "cross_entropy": (x, labels)}.get(name, (x[:, 0].copy(), x, labels))
            KernelCase(name, inputs, {}, row.oracle, n, row.roundings, row.magnitude).check(kernel, layouts=("C",))
            together = np.empty(rows if name == "cross_entropy" else (rows, n), np.float32)
            kernel(*inputs, together)
            for i in {0, rows // 2, rows - 1}:
                alone = np.empty_like(together[:1])
                kernel(*(array[i : i + 1].copy() for array in inputs), alone)
                assert alone.tobytes() == together[i : i + 1].tobytes()


LONG_ROWS = [softmax.SHORT + 1, softmax.BLOCK - 1, softmax.BLOCK, softmax.BLOCK + 1, 2 * softmax.BLOCK + 7]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["softmax", "logsumexp", "log_softmax", "cross_entropy"])
@pytest.mark.parametrize("n", LONG_ROWS if JIT else LONG_ROWS[:1])
def test_long_rows_match_the_oracle_wherever_their_maximum_is(n, name, device):
    row, last = KERNEL_ROWS[name], [0, n // 4, n // 2, n - n // 4, n - 2, n - 1]
    rows = np.random.default_rng(n).standard_normal((len(last), n)).astype(np.float32)
    rows[range(len(last)), last] = 200  # without this one's shift, the sum would overflow
    inputs = (rows, np.array(last))[: len(row.shapes.split())]
    KernelCase(name, inputs, {}, row.oracle, n, row.roundings, row.magnitude).check(host_kernel(device, name))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["softmax", "logsumexp", "log_softmax", "cross_entropy"])
@pytest.mark.parametrize("n", [1, 2, 5, 33, 67])
def test_a_nan_anywhere_in_a_row_is_in_all_its_results(n, name, device):
    rows = np.where(np.eye(n, dtype=bool), np.nan, drawn(n, n)).astype(np.float32)
    labels = (np.zeros(n, np.int64),) * (name == "cross_entropy")
    out = np.zeros((n, n) if "softmax" in name else n, np.float32)
    host_kernel(device, name)(rows, *labels, out)
    assert np.isnan(out).all()


@pytest.fixture
def two_threads():
    before = get_num_threads()
    set_num_threads(2)
    yield
    set_num_threads(before)


@pytest.mark.threads
@pytest.mark.skipif(not JIT or MAX_THREADS < 2, reason="NumPy copies")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_threads_make_a_large_copy(dtype, two_threads):
    source = drawn(movement.COPIED_TOGETHER + 77).astype(dtype)
    source[5] = np.nan
    target = np.full_like(source, 7)
    with mock.patch.object(np, "copyto", side_effect=AssertionError("by one thread")):
        host_kernel("cpu", "copy")(source, target)
    np.testing.assert_array_equal(target, source)


@pytest.mark.skipif(not JIT or MAX_THREADS < 2, reason="NumPy copies")
@pytest.mark.parametrize("shift", [3, -3])
def test_a_large_copy_may_overlap(shift, two_threads):
    memory = drawn(movement.COPIED_TOGETHER + 77)
    start, end = max(0, -shift), len(memory) - max(0, shift)
    expected = memory[start:end].copy()
    host_kernel("cpu", "copy")(memory[start:end], memory[start + shift : end + shift])
    np.testing.assert_array_equal(memory[start + shift : end + shift], expected)
