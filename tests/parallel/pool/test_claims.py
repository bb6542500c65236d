"""Who takes which piece: random workers, deaths and orders of events, against a set of what may be done."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet.native.atomics import LINE, publish
from scratchnet.parallel.pool.claims import NOTHING, OWNERS, STOPPED, Phase, allow, lay_out, stop, table_of, take

STEPS = 4

CASES = {
    "lockstep": [Phase("shard", 3, slack=1), Phase("slice", 2)],
    "three phases": [Phase("shard", 2, slack=1), Phase("norm", 3), Phase("slice", 1)],
    "two steps behind": [Phase("shard", 3, slack=3), Phase("slice", 2)],
    "asynchronous": [Phase("shard", 3, slack=1, paired=True), Phase("serve", 3, paired=True, exclusive=True)],
    "lock-free": [Phase("live", 3, slack=1, paired=True)],
}


def may_do(phases, done, p, piece, held):
    """May piece `piece` of phase p do its next step? done: {(phase, piece): steps}; held: pieces in hand."""
    phase, step, before = phases[p], done[p, piece], (p - 1) % len(phases)
    if (p, piece) in held or (phase.exclusive and any(q == p for q, _ in held)) or (p == 0 and step >= STEPS):
        return False
    others = [piece] if phase.paired else range(phases[before].pieces)
    return all(done[before, other] + phase.slack > step for other in others)


@pytest.mark.parametrize("phases", CASES.values(), ids=CASES)
@given(seed=st.integers(0, 2**32))
def test_each_piece_is_done_once_a_step_after_what_it_needs(phases, seed):
    dice = random.Random(seed)
    pieces = lay_out(phases)
    words, table, scratch = np.zeros(pieces[-1].end, np.int64), table_of(pieces), np.zeros(2, np.int64)
    allow(words, STEPS)
    done = {(p, i): 0 for p, phase in enumerate(phases) for i in range(phase.pieces)}
    in_hand = dict.fromkeys(range(3))  # by rank
    for _ in range(400):
        if min(done.values()) == STEPS:
            break
        rank = dice.randrange(3)
        held = [x for x in in_hand.values() if x is not None]
        possible = {key for key in done if may_do(phases, done, *key, held)}
        if in_hand[rank] is None:
            taken = int(take(words, table, rank, -1, scratch))
            if taken == NOTHING:
                assert not possible
                continue
            assert divmod(taken, OWNERS) in possible
            in_hand[rank] = divmod(taken, OWNERS)
        elif dice.random() < 0.6:
            p, piece = in_hand[rank]
            done[p, piece] += 1
            publish(words, pieces[p].seals + piece * LINE, done[p, piece])
            in_hand[rank] = None
        else:  # it dies: the parent frees what it had
            found = [(p, *owned) for p, kind in enumerate(pieces) for owned in kind.owned(words, rank)]
            assert len(found) == 1
            p, piece, step = found[0]
            assert p == in_hand[rank][0]
            if not phases[p].exclusive:
                assert (piece, step) == (in_hand[rank][1], done[in_hand[rank]])
            pieces[p].release(words, piece, step)
            in_hand[rank] = None
    else:
        pytest.fail("after 400 events not all steps are done")


@pytest.mark.parametrize("name", ["lockstep", "asynchronous"])
def test_a_worker_takes_those_pieces_of_the_first_phase_that_it_may(name):
    pieces = lay_out(CASES[name])
    words, scratch = np.zeros(pieces[-1].end, np.int64), np.zeros(2, np.int64)
    allow(words, 1)
    tables = [table_of(pieces, [np.array(may)]) for may in ([False, True, False], [True, False, True])]
    done = []
    while (taken := [int(take(words, table, rank, -1, scratch)) for rank, table in enumerate(tables)]) != [NOTHING] * 2:
        for rank, (p, piece) in ((rank, divmod(t, OWNERS)) for rank, t in enumerate(taken) if t != NOTHING):
            done.append((p, piece))
            assert p or rank == (0 if piece == 1 else 1)
            publish(words, pieces[p].seals + piece * LINE, 1)
    assert sorted(done) == [(p, i) for p, phase in enumerate(CASES[name]) for i in range(phase.pieces)]


def test_a_worker_that_waits_leaves_when_told():
    pieces = lay_out(CASES["lockstep"])
    words = np.zeros(pieces[-1].end, np.int64)
    stop(words)
    assert take(words, table_of(pieces), 0, 10, np.zeros(2, np.int64)) == STOPPED
