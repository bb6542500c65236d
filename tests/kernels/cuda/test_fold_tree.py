"""Several arrays folded along a tree on the GPU: the bits are those of the tree over shards, which NumPy adds up."""

import numpy as np
import pytest
from sizes import SIMULATED

from scratchnet.parallel.comm.tree import tree_sum
from scratchnet.testing import interpreted

NEEDS = "simulated"
if SIMULATED:
    from scratchnet.kernels.cuda import ipc, memory
    from scratchnet.kernels.cuda.folds import fold_tree

RNG = np.random.default_rng(0)


def folded(arrays, keys, order="ascending"):
    """The fold of arrays of shards with these numbers, by the kernel."""
    there = [memory.from_host(x) for x in arrays]
    out = memory.from_host(np.full_like(arrays[0], 7))
    places = {k: i for i, k in enumerate(keys)}
    tree = tree_sum(keys, places.__getitem__, lambda left, right: (left, right))
    with interpreted(order):
        fold_tree(tree, there, out)
    assert all(memory.to_host(x).tobytes() == y.tobytes() for x, y in zip(there, arrays, strict=True))
    return memory.to_host(out)


def wild(n, dtype):
    """Numbers of many magnitudes, whose sum depends on the order; the last ones are special."""
    x = (RNG.standard_normal(n) * 10.0 ** RNG.integers(-6, 7, n)).astype(dtype)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 4, np.finfo(dtype).max], dtype)
    x[-4:] = RNG.choice(special, 4)
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shards", range(1, 10))
def test_the_bits_are_those_of_the_tree_over_shards(shards, dtype):
    for n in (5, 33, 67):
        arrays = [wild(n, dtype) for _ in range(shards)]
        with np.errstate(all="ignore"):
            expected = tree_sum(range(shards), arrays.__getitem__, np.add)
        found = {order: folded(arrays, range(shards), order) for order in ("ascending", "descending", "shuffled")}
        for x in found.values():
            np.testing.assert_array_equal(np.isnan(x), np.isnan(expected))
            there = ~np.isnan(x)
            assert x[there].tobytes() == expected[there].tobytes()


def test_shards_without_samples_have_no_leaf():
    keys, arrays = (0, 2, 3, 5), [wild(40, np.float32) for _ in range(4)]
    a, b, c, d = arrays
    with np.errstate(all="ignore"):
        expected, other = (a + (b + c)) + d, ((a + b) + c) + d
    found = folded(arrays, keys)
    assert found[:36].tobytes() == expected[:36].tobytes() != other[:36].tobytes()


def test_nothing_is_folded_of_empty_arrays():
    assert folded([np.zeros(0, np.float32)] * 2, (0, 1)).size == 0


def test_memory_that_is_held_is_the_same_bytes_where_it_is_opened():
    """In the simulator a process may open its own."""
    for make in (ipc.Held, ipc.Own):
        held = make(0, 100)
        there, back = ipc.opened(held.handle, 100), np.zeros(2, np.float32)
        assert not memory.to_host(there[:100]).any()
        held.send(8, np.array([1.5, -2], np.float32))
        assert memory.to_host(there[8:16].view(np.float32)).tolist() == [1.5, -2]
        memory.write(there[12:16].view(np.float32), np.array([3], np.float32))
        held.receive(8, back)
        assert back.tolist() == [1.5, 3]
        held.free()
