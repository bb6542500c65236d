"""The algorithms on a virtual transport: right results, and exactly the messages, bytes and steps of the cost model."""

import queue
import threading

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.parallel.comm.collectives import ALGORITHMS, AUTO, algorithm_of

MESSAGES = [name for name, algorithm in ALGORITHMS.items() if algorithm.run]
N = 16 * 420  # elements: whole parts for every number of ranks up to 7


class CountingLink:
    """A rank's end of queues between threads; it counts what it sends, and keeps a clock of steps (Lamport's)."""

    def __init__(self, rank, size, boxes):
        self.rank, self.size, self.boxes = rank, size, boxes
        self.messages = self.bytes = self.clock = 0

    def _put(self, array, receiver, clock):
        self.messages += 1
        self.bytes += array.nbytes
        self.boxes[self.rank, receiver].put((array.copy(), clock))

    def send(self, array, receiver):
        self.clock += 1
        self._put(array, receiver, self.clock)

    def receive(self, array, sender):
        array[...], clock = self.boxes[sender, self.rank].get(timeout=10)
        self.clock = max(self.clock + 1, clock)

    def exchange(self, outgoing, receiver, incoming, sender):
        self._put(outgoing, receiver, self.clock + 1)
        self.receive(incoming, sender)


def reduce_virtually(name, arrays, combine):
    """All-reduces `arrays`, one a rank, in threads; returns the links."""
    size = len(arrays)
    boxes = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    links = [CountingLink(rank, size, boxes) for rank in range(size)]
    run = ALGORITHMS[name].run
    threads = [threading.Thread(target=run, args=(links[r], arrays[r], combine), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert all(box.empty() for box in boxes.values())
    return links


def add(low, high, out):
    np.add(low, high, out=out)


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("name", MESSAGES)
def test_messages_bytes_and_steps_are_those_of_the_cost_model(name, size):
    n = N * 72
    links = reduce_virtually(name, [np.ones(n, np.float32) for _ in range(size)], add)
    cost = ALGORITHMS[name].cost(size, 4 * n)
    assert sum(link.messages for link in links) == cost.messages
    assert max(link.bytes for link in links) == cost.bytes
    assert max(link.clock for link in links) == cost.steps


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("n", [0, 1, 15, 17, 1000])
def test_every_rank_gets_the_same_bits_and_the_right_sum(name, size, n):
    values = np.random.default_rng(n).normal(size=(size, n)).astype(np.float32)
    arrays = [row.copy() for row in values]
    reduce_virtually(name, arrays, add)
    assert len({array.tobytes() for array in arrays}) == 1
    np.testing.assert_allclose(arrays[0], values.sum(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("name", ["naive", "tree", "recursive_doubling"])
def test_whole_arrays_are_folded_in_rank_order(name, size):
    """With concatenation for a sum: only an order that respects the ranks gives them sorted."""

    def concatenate(low, high, out):
        out[0] = low[0] + high[0]

    arrays = [np.array([str(rank)], object) for rank in range(size)]
    reduce_virtually(name, arrays, concatenate)
    assert {array[0] for array in arrays} == {"".join(map(str, range(size)))}


def test_auto_is_the_first_row_of_the_table_that_fits():
    most, first = AUTO[0]
    assert algorithm_of("auto", most) == first
    assert algorithm_of("auto", most + 1) == AUTO[1][1]


def test_an_unknown_algorithm_is_refused_by_name():
    with pytest.raises(sn.ConfigError, match=r"ring.*got 'star'"):
        algorithm_of("star")
