"""What machines take of memory, and send each other. Each rank counts as a machine."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from jobs import program

from scratchnet.parallel.comm.tree import subtrees
from scratchnet.parallel.mpi import machines

EACH_ALONE = {machines.SHARE_VARIABLE: "1"}


def probed(ranks, what):
    status, text = program(ranks, "mpi_probe", what, **EACH_ALONE)
    assert status == 0, text
    return sorted(re.findall(r"<(.*?)>", text))


def test_a_machine_has_memory_for_the_gradients_of_its_own_shards():
    """Two machines of one rank, in sizes of the parameters: two pages with momentum are 4; a slot for each own shard,
    4 of 8 or 1 of 2; and of the other machine's sum what this machine owns, 1/2."""
    taken = [float(found) for found in probed(2, "memory")]
    assert len(taken) == 4 and all(5.5 <= times < 6.5 for times in taken[:2]), taken
    assert all(8.5 <= times < 9.5 for times in taken[2:]), taken


def test_messages_between_machines_are_freed_after_a_run():
    assert probed(2, "messages") == 4 * ["True 0"]


def test_a_machine_sends_its_sums_while_it_computes_and_no_shard_alone():
    """Four machines of one rank, n bytes of parameters: (S + 1) (M-1)/M n a step of each, for S sums."""
    found = [[float(figure) for figure in line.split()] for line in probed(4, "bytes")]
    assert sorted(line[:2] for line in found) == [*4 * [[4, 1]], *4 * [[8, 1]], *2 * [[10, 1]], *2 * [[10, 2]]]
    for _, sums, sent, early in found:  # once in 8 steps the optimizer's state travels, 3/4
        assert sent == pytest.approx((sums + 1) * 0.75 + 0.75 / 8, abs=0.01)
        # Of the 3/4 n of a sum the last two layers have 2/3; of 8 steps four are recorded, two for each of two pages.
        assert 0.22 * sums < early < 0.28 * sums, found


# --- whose shards -----------------------------------------------------------------------------------------------------


def parts(ranks, shards):
    """The shards of each machine, for ranks[i] ranks on machine i."""
    machine = object.__new__(machines.Machine)
    machine.comm, machine.count, machine._starts = SimpleNamespace(size=sum(ranks)), len(ranks), {}
    machine._firsts = [sum(ranks[:i]) for i in range(len(ranks))]
    starts = machine.starts(shards)
    assert starts[0] == 0 and starts[-1] == shards and len(starts) == sum(ranks) + 1
    each = np.diff(starts)
    assert each.min() >= shards // sum(ranks) and each.max() <= -(-shards // sum(ranks))  # nobody waits longer
    return [(r.start, r.stop) for r in (machine.shards(i, shards) for i in range(len(ranks)))]


def test_machines_end_where_subtrees_end_as_far_as_nobody_waits_longer():
    assert parts([1, 1, 1], 4) == [(0, 2), (2, 3), (3, 4)]
    assert parts([1, 1, 1, 1], 10) == [(0, 2), (2, 4), (4, 7), (7, 10)]
    assert parts([2, 2, 2], 16) == [(0, 4), (4, 10), (10, 16)]
    assert parts([4, 4], 4) == [(0, 2), (2, 4)]
    assert parts([2, 2, 1], 8) == [(0, 4), (4, 6), (6, 8)]
    assert parts([16] * 64, 1024) == [(16 * i, 16 * (i + 1)) for i in range(64)]


@pytest.mark.parametrize("ranks", [[1, 1], [1, 1, 1], [2, 3, 1], [4, 4, 4], [3, 1, 1, 2, 2], [1, 5]])
def test_machines_have_no_more_sums_than_with_equal_parts(ranks):
    def sums(ranges, shards):
        return sum(len(list(subtrees(range(*part), shards))) for part in ranges)

    total = 0
    for shards in range(1, 65):
        bounds = [shards * sum(ranks[:i]) // sum(ranks) for i in range(len(ranks) + 1)]
        total += sums(itertools.pairwise(bounds), shards) - sums(parts(ranks, shards), shards)
    assert total >= 0
