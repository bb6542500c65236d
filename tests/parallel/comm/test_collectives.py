"""The algorithms on a virtual transport: right results, and exactly the messages, bytes and steps of the cost model."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.parallel import all_reduce_cost, simulate_all_reduce
from scratchnet.parallel.comm import virtual
from scratchnet.parallel.comm.collectives import ALGORITHMS, AUTO, UFUNCS, algorithm_of

MESSAGES = [name for name, algorithm in ALGORITHMS.items() if algorithm.run]
N = 16 * 420  # elements: whole parts for every number of ranks up to 7


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("name", MESSAGES)
def test_messages_bytes_and_steps_are_those_of_the_cost_model(name, size):
    n = N * 72
    counted = simulate_all_reduce(name, [np.ones(n, np.float32) for _ in range(size)])
    assert counted == all_reduce_cost(name, size, 4 * n)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("n", [0, 1, 15, 17, 1000])
def test_every_rank_gets_the_same_bits_and_the_right_sum(name, size, n):
    values = np.random.default_rng(n).normal(size=(size, n)).astype(np.float32)
    arrays = [row.copy() for row in values]
    simulate_all_reduce(name, arrays)
    assert len({array.tobytes() for array in arrays}) == 1
    np.testing.assert_allclose(arrays[0], values.sum(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("name", ["naive", "tree", "recursive_doubling"])
def test_whole_arrays_are_folded_in_rank_order(name, size, monkeypatch):
    """With concatenation for a sum: only an order that respects the ranks gives them sorted."""

    def concatenate(low, high, out):
        out[0] = low[0] + high[0]

    arrays = [np.array([str(rank)], object) for rank in range(size)]
    monkeypatch.setitem(UFUNCS, "sum", concatenate)
    virtual._run(ALGORITHMS[name].run, arrays, "sum", 10.0)
    assert {array[0] for array in arrays} == {"".join(map(str, range(size)))}


def test_auto_is_the_first_row_of_the_table_that_fits():
    most, first = AUTO[0]
    assert algorithm_of("auto", most) == first
    assert algorithm_of("auto", most + 1) == AUTO[1][1]


def test_an_unknown_algorithm_is_refused_by_name():
    with pytest.raises(sn.ConfigError, match=r"ring.*got 'star'"):
        algorithm_of("star")
