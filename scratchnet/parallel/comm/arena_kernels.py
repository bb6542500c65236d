"""The compiled half of arena.py: how processes meet, and how they reduce and copy arrays through shared memory.

Every process runs the same kernel with the same `call`. What they share: `words`, int64, with a line for each writer
(`Words` says where); the stage, two places a rank for what it shows to the others; the heap, where the arrays of
`Communicator.empty` live; and the mail, boxes for messages. What a process keeps to itself is in `state`. Data is known
by its address, so that one kernel serves all dtypes.
"""

from typing import NamedTuple

import numpy as np

from ...native.atomics import LINE, NEVER, REACHED, clock, load_acquire, store_release, wait_a_turn, wait_until
from ...native.compile import jit
from .folds import copy, fold

MISMATCH = 3  # besides REACHED, ABORTED, LATE: this rank's call is not that of another rank

# Words of `state`. Addresses are those of this process.
RANK, SIZE, SYNCS, CALLS, CHUNKS, SPINS, TIMEOUT = range(7)
HEAP, HEAP_BYTES, STAGE, STAGE_BYTES, MAIL, PARCEL, SCRATCH = range(7, 14)
STATE_WORDS = SCRATCH + 2

# Words of `call`. The signature stands for all that must be equal on all ranks; FOLD and LAST are numbers of loops of
# folds.py: for the first arrays and for the last one.
KIND, ROOT, SIGNATURE, ITEM, FOLD, LAST = range(6)
ONE_SHOT, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST = range(5)

# Lines of `words`: line 0 holds the abort word, then each rank has five.
ABORT = 0
_SYNCS, _FIRST_CALL, _SECOND_CALL, _TEXT, LINES_A_RANK = range(5)

BLOCK = 8192  # bytes that are reduced at a time, so that a partial result stays in the first cache
ROUND = 16  # elements: slices begin on multiples, so that two writers do not share a cache line


class Words(NamedTuple):
    """Where the words of a group of `size` ranks are."""

    size: int

    @property
    def total(self) -> int:
        return self.mail(self.size, 0)

    def text(self, rank: int) -> int:
        return _word(rank, _TEXT)

    def call(self, rank: int, number: int) -> int:
        return _word(rank, _FIRST_CALL + number % 2)

    def syncs(self, rank: int) -> int:
        return _word(rank, _SYNCS)

    def mail(self, sender: int, receiver: int) -> int:
        """The line in which the sender counts the parcels of a mailbox; the receiver's count is on the next."""
        return _mail(self.size, sender, receiver)


@jit
def _word(rank, line):
    return LINE * (1 + rank * LINES_A_RANK + line)


@jit
def _mail(size, sender, receiver):
    return LINE * (1 + size * LINES_A_RANK + 2 * (sender * size + receiver))


@jit
def cut(n, size, rank):
    """The first of the elements of a flat array of n that belong to `rank`; that of the next rank is their end."""
    return min(n, (n * rank // size + ROUND - 1) // ROUND * ROUND)


# --- meeting ----------------------------------------------------------------------------------------------------------


@jit
def _deadline(state):
    return clock(state[SCRATCH:]) + state[TIMEOUT] if state[TIMEOUT] else NEVER


@jit
def meet(words, state):
    """All ranks come here: then all go on, and see what the others wrote before."""
    state[SYNCS] += 1
    store_release(words, _word(state[RANK], _SYNCS), state[SYNCS])
    deadline = _deadline(state)
    for rank in range(state[SIZE]):
        status = wait_until(words, _word(rank, _SYNCS), state[SYNCS], ABORT, deadline, state[SPINS], state[SCRATCH:])
        if status != REACHED:
            return status
    return REACHED


@jit
def enter(words, state, signature, place):
    """Meet at the start of a call, and compare signatures; `place` says to the others where this rank's array is.

    Two lines take turns: a rank may be in its next call while another still reads what it wrote for this one, but not
    in the one after, because that begins with a meeting, too.
    """
    line = _FIRST_CALL + state[CALLS] % 2
    own = _word(state[RANK], line)
    words[own], words[own + 1] = signature, place
    state[CALLS] += 1
    status = meet(words, state)
    if status != REACHED:
        return status
    for rank in range(state[SIZE]):
        if words[_word(rank, line)] != signature:
            return MISMATCH
    return REACHED


@jit
def leave(words, state, signature):
    """Tell the others, should they wait for this rank, that it is gone; do not wait for them."""
    own = _word(state[RANK], _FIRST_CALL + state[CALLS] % 2)
    words[own], words[own + 1] = signature, -1
    state[SYNCS] += 1
    store_release(words, _word(state[RANK], _SYNCS), state[SYNCS])


@jit
def _arrays_in_heap(words, state):
    """How many ranks gave a place in the heap when they entered this call."""
    count = 0
    for rank in range(state[SIZE]):
        if words[_place(state, rank)] >= 0:
            count += 1
    return count


@jit
def _place(state, rank):
    return _word(rank, _FIRST_CALL + (state[CALLS] - 1) % 2) + 1


@jit
def _array(words, state, rank):
    """The address of the array, in the heap, with which a rank entered this call."""
    return state[HEAP] + words[_place(state, rank)]


# --- collectives ------------------------------------------------------------------------------------------------------


@jit
def _stage(state, rank, chunk):
    """The address of a rank's place on the stage for chunk number `chunk`: two halves take turns."""
    return state[STAGE] + (2 * rank + chunk % 2) * state[STAGE_BYTES]


@jit
def _one_shot(x, n, words, state, call):
    """Each rank shows all of its array, and folds all arrays itself: one meeting, for small arrays."""
    size, item, chunk = state[SIZE], call[ITEM], state[CHUNKS]
    state[CHUNKS] += 1
    copy(x, _stage(state, state[RANK], chunk), n * item)
    status = enter(words, state, call[SIGNATURE], -1)
    if status != REACHED or size == 1:
        return status
    last = call[LAST] if size == 2 else call[FOLD]
    fold(last, size, _stage(state, 0, chunk), _stage(state, 1, chunk), x, x, n)
    for rank in range(2, size):
        fold(call[LAST] if rank == size - 1 else call[FOLD], size, x, _stage(state, rank, chunk), x, x, n)
    return status


@jit
def _fold_staged(x, n, at, state, call):
    """The n elements at x, which the other ranks show `at` bytes behind `_stage`, folded in rank order.

    The result goes to x and to this rank's place on the stage.
    """
    size, own, item, chunk = state[SIZE], state[RANK], call[ITEM], state[CHUNKS]
    step = BLOCK // item
    for lo in range(0, n, step):
        count, offset = min(step, n - lo), at + lo * item
        mine, out = x + lo * item, _stage(state, own, chunk) + offset
        total = mine if own == 0 else _stage(state, 0, chunk) + offset
        for rank in range(1, size):
            other = mine if rank == own else _stage(state, rank, chunk) + offset
            if rank < size - 1:
                fold(call[FOLD], size, total, other, out, out, count)
            else:
                fold(call[LAST], size, total, other, out, mine, count)
            total = out


@jit
def _staged(x, n, words, state, call, entered):
    """Private arrays, chunk by chunk over the stage, whose two halves take turns.

    A rank shows its chunk of the others' parts, meets, folds its own part, and fetches the others' results of the chunk
    before. So one meeting a chunk is enough: whoever overwrites a half has met all ranks since they last read it.
    """
    kind, own, size, item = call[KIND], state[RANK], state[SIZE], call[ITEM]
    slot = state[STAGE_BYTES] // size // 64 * 64  # bytes of a part in a chunk
    room = slot // item
    longest = 0
    for rank in range(size):
        longest = max(longest, cut(n, size, rank + 1) - cut(n, size, rank))
    chunks = max(1, (longest + room - 1) // room)
    lag = 1 if kind == ALL_REDUCE else 0
    for chunk in range(chunks + lag):
        if chunk < chunks:
            for rank in range(size):
                if (own == call[ROOT]) if kind == BROADCAST else ((rank == own) == (kind == ALL_GATHER)):
                    lo, count = _piece(n, size, rank, chunk, room)
                    copy(x + lo * item, _stage(state, own, state[CHUNKS]) + rank * slot, count * item)
        if chunk == 0 and not entered:
            status = enter(words, state, call[SIGNATURE], -1)
            if status == REACHED and _arrays_in_heap(words, state) > 0:
                status = meet(words, state)  # those whose array is there have entered, and meet once more
        else:
            status = meet(words, state)
        if status != REACHED:
            return status
        if kind != REDUCE_SCATTER and chunk >= lag:
            for rank in range(size):
                source = call[ROOT] if kind == BROADCAST else rank
                if source != own:
                    lo, count = _piece(n, size, rank, chunk - lag, room)
                    copy(_stage(state, source, state[CHUNKS] - lag) + rank * slot, x + lo * item, count * item)
        if chunk < chunks:
            if kind in (ALL_REDUCE, REDUCE_SCATTER):
                lo, count = _piece(n, size, own, chunk, room)
                _fold_staged(x + lo * item, count, own * slot, state, call)
            state[CHUNKS] += 1
    return REACHED


@jit
def _piece(n, size, rank, chunk, room):
    """Chunk number `chunk` of the part of `rank`: its first element, and how many."""
    end = cut(n, size, rank + 1)
    lo = min(cut(n, size, rank) + chunk * room, end)
    return lo, min(room, end - lo)


@jit
def _fold_in_place(x, lo, hi, words, state, call):
    """Elements lo to hi of the arrays of all ranks folded in rank order: into all of them, or into this rank's x."""
    size, item = state[SIZE], call[ITEM]
    spare = _stage(state, state[RANK], 0)  # after a meeting nobody reads this rank's place any more
    step = BLOCK // item
    for at in range(lo, hi, step):
        count, offset = min(step, hi - at), at * item
        total = _array(words, state, 0) + offset
        for rank in range(1, size):
            other = _array(words, state, rank) + offset
            if rank < size - 1:
                fold(call[FOLD], size, total, other, spare, spare, count)
                total = spare
            elif call[KIND] == REDUCE_SCATTER:
                fold(call[LAST], size, total, other, x + offset, x + offset, count)
            else:
                fold(call[LAST], size, total, other, _array(words, state, 0) + offset, other, count)
        if call[KIND] == ALL_REDUCE:
            for rank in range(1, size - 1):
                copy(_array(words, state, 0) + offset, _array(words, state, rank) + offset, count * item)


@jit
def _in_place(x, n, words, state, call):
    """Arrays of the heap: every rank reads and writes those of the others where they are. All have entered."""
    kind, own, size, item = call[KIND], state[RANK], state[SIZE], call[ITEM]
    if kind in (ALL_REDUCE, REDUCE_SCATTER):
        _fold_in_place(x, cut(n, size, own), cut(n, size, own + 1), words, state, call)
    else:
        for rank in range(size):
            source = call[ROOT] if kind == BROADCAST else rank
            if source != own:
                lo, hi = cut(n, size, rank), cut(n, size, rank + 1)
                copy(_array(words, state, source) + lo * item, x + lo * item, (hi - lo) * item)
    return meet(words, state)


@jit
def _collective(x, n, words, state, call):
    if call[KIND] == ONE_SHOT:
        return _one_shot(x, n, words, state, call)
    if state[SIZE] == 1:
        return enter(words, state, call[SIGNATURE], -1)
    place = x - state[HEAP]
    if place < 0 or place >= state[HEAP_BYTES]:
        return _staged(x, n, words, state, call, False)
    status = enter(words, state, call[SIGNATURE], place)
    if status != REACHED:
        return status
    if _arrays_in_heap(words, state) < state[SIZE]:
        return _staged(x, n, words, state, call, True)
    return _in_place(x, n, words, state, call)


@jit
def collective(x, words, state, call):
    """One collective call on the flat array x, in place. Returns how it ended: REACHED, ABORTED, LATE or MISMATCH.

    x (n,): contiguous, of the dtype that `call` is for. words, state, call: int64. Folds go over ranks in their order,
    element by element, whatever the kind: the same bits everywhere, every time.
    """
    return _collective(np.int64(x.ctypes.data), x.size, words, state, call)


# --- messages ---------------------------------------------------------------------------------------------------------


@jit
def exchange(outgoing, receiver, incoming, sender, words, state):
    """Send the bytes of `outgoing` to `receiver`, and fill `incoming` with those that `sender` sends to this rank.

    Both are uint8. A message goes in parcels through the two places of the pair's box; sending and receiving take
    turns, so that two ranks who send to each other never wait for each other.
    """
    size, own, room = state[SIZE], state[RANK], state[PARCEL]
    out_line, in_line = _mail(size, own, receiver), _mail(size, sender, own)
    out_box = state[MAIL] + 2 * room * (own * size + receiver)
    in_box = state[MAIL] + 2 * room * (sender * size + own)
    target, source = np.int64(incoming.ctypes.data), np.int64(outgoing.ctypes.data)
    sent, got, turn, deadline = 0, 0, 0, _deadline(state)
    while sent < outgoing.size or got < incoming.size:
        turn += 1
        count = words[out_line]
        if sent < outgoing.size and count - load_acquire(words, out_line + LINE) < 2:
            n = min(room, outgoing.size - sent)
            copy(source + sent, out_box + count % 2 * room, n)
            store_release(words, out_line, count + 1)
            sent += n
            turn = 0
        count = words[in_line + LINE]
        if got < incoming.size and load_acquire(words, in_line) > count:
            n = min(room, incoming.size - got)
            copy(in_box + count % 2 * room, target + got, n)
            store_release(words, in_line + LINE, count + 1)
            got += n
            turn = 0
        if turn:
            status = wait_a_turn(words, ABORT, turn, deadline, state[SPINS], state[SCRATCH:])
            if status != REACHED:
                return status
    return REACHED
