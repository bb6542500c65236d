"""What machines take of memory, and send each other. Each rank counts as a machine."""

import re

import numpy as np
import pytest
from jobs import program

import scratchnet as sn
from scratchnet.parallel.mpi import machines, slices

EACH_ALONE = {machines.SHARE_VARIABLE: "1"}


def probed(ranks, what):
    status, text = program(ranks, "mpi_probe", what, **EACH_ALONE)
    assert status == 0, text
    return sorted(re.findall(r"<(.*?)>", text))


def test_a_machine_has_memory_for_the_gradients_of_its_own_shards():
    """Two machines of one rank: 4 slots of 8 shards, and two pages with momentum, are 8 times the parameters; by slices
    a slot of 2, what the machine owns of the other, and the pages, 5.5 times."""
    taken = [float(found) for found in probed(2, "memory")]
    assert len(taken) == 4 and all(5.5 <= times < 6.5 for times in taken[:2]), taken
    assert all(8 <= times < 9 for times in taken[2:]), taken


def test_messages_between_machines_are_freed_after_a_run():
    assert probed(2, "messages") == 4 * ["True 0"]


def test_an_unknown_way_to_merge_is_named(monkeypatch):
    monkeypatch.setenv(slices.MERGE_VARIABLE, "ring")
    with pytest.raises(sn.ConfigError, match=r"^SCRATCHNET_MPI_MERGE: expected 'chain' or 'slices', got 'ring'$"):
        slices.choose(None, None)


def test_machines_send_slices_while_they_compute_and_as_many_bytes_as_the_choice_is_made_by():
    """Four machines of one rank, n bytes of parameters: (K/M + 1) (M-1)/M n a step of each, or 2 n along the chain."""
    found = probed(4, "bytes")
    assert found[4:] == 4 * ["chain 2.02"], found
    figures = np.array([line.split() for line in found[:4]], float)
    np.testing.assert_array_equal(figures[:, 0], 1.59)  # 1.5, and once in 8 steps the optimizer's state, 3/4
    np.testing.assert_array_equal(figures[:, 1], 1.5)
    # Of the 3/4 n of a gradient the last two layers have 2/3, and of 8 steps two are traced.
    assert 0.33 < figures[:, 2].mean() < 0.38, found
