"""Ranks that are threads: an algorithm of one's own is counted, and one that cannot end says which rank waits."""

import numpy as np
import pytest
from messages import refused

from scratchnet.errors import CollectiveError, ConfigError, DtypeError, ShapeError
from scratchnet.parallel import simulate_all_reduce
from scratchnet.parallel.comm.collectives import Cost, naive


def arrays(count=3):
    return [np.full(4, rank + 1, np.float32) for rank in range(count)]


def test_an_algorithm_of_ones_own_is_run_and_counted():
    given = arrays()
    assert simulate_all_reduce(naive, given) == Cost(messages=4, bytes=32, steps=4)
    assert all((x == 6).all() for x in given)


def test_a_message_arrives_no_earlier_than_it_was_sent():
    def relay(link, x, combine):  # 0 -> 1 -> 2 -> 0: three steps, though no rank has more than two things to do
        if link.rank:
            link.receive(x, link.rank - 1)
        link.send(x, (link.rank + 1) % 3)
        if link.rank == 0:
            link.receive(x, 2)

    assert simulate_all_reduce(relay, arrays()).steps == 3


@pytest.mark.parametrize(("op", "result"), [("sum", 6), ("mean", 2), ("max", 3), ("min", 1)])
def test_each_op_has_its_result(op, result):
    given = arrays()
    simulate_all_reduce("ring", given, op)
    assert all((x == result).all() for x in given)


def test_what_cannot_end_is_named():
    def nobody_sends(link, x, combine):
        if link.rank == 0:
            link.receive(x, 2)

    def fails(link, x, combine):
        if link.rank:
            raise ValueError("no such part")
        link.receive(x, 1)

    def forgets(link, x, combine):
        link.send(x, (link.rank + 1) % link.size)

    def run(algorithm):
        return refused(CollectiveError, lambda: simulate_all_reduce(algorithm, arrays(), patience=0.1))

    assert "rank 0 waits for a message from rank 2, which sends none" in run(nobody_sends)
    assert "rank 1: ValueError: no such part" in run(fails)
    assert "3 were left over" in run(forgets)


@pytest.mark.parametrize(
    ("algorithm", "given", "error", "message"),
    [
        ("star", arrays(), ConfigError, "one of naive, tree, ring, recursive_doubling, rabenseifner, got 'star'"),
        ("arena", arrays(), ConfigError, "got 'arena'"),
        ("ring", [], ConfigError, "1 to 64 arrays"),
        ("ring", [np.ones((2, 2))], ShapeError, "flat arrays of one length"),
        ("ring", [np.ones(2), np.ones(3)], ShapeError, "flat arrays of one length"),
        ("ring", [np.ones(2, np.float16)], DtypeError, "float32, float64"),
    ],
)
def test_other_arguments_are_refused(algorithm, given, error, message):
    assert message in refused(error, lambda: simulate_all_reduce(algorithm, given))
