"""The compiled half of arena.py: how processes wait for each other, and reduce and copy arrays in shared memory.

Every process runs the same kernel with the same `call`. They share `words`, int64, with a cache line for each writer;
two staging buffers a rank, into which it copies what the others are to read; the heaps, where the arrays of
`Communicator.empty` lie; and message buffers, two chunks for each pair of ranks. `state` belongs to one process.
Kernels know arrays by their addresses, so that one kernel serves all dtypes.
"""

import numpy as np

from ...native.atomics import LINE, NEVER, REACHED, clock, load_acquire, store_release, wait_a_turn, wait_until
from ...native.compile import jit
from .folds import copy, fold

MISMATCH = 3  # besides REACHED, ABORTED, LATE: this rank's call is not that of another rank

# Words of `state`: counts of barriers, calls and staged chunks so far, and addresses in this process.
RANK, SIZE, BARRIERS, CALLS, STAGED, SPINS, TIMEOUT = range(7)
HEAP, HEAP_BYTES, STAGING, STAGING_BYTES, MESSAGES, CHUNK_BYTES, SCRATCH = range(7, 14)
STATE_WORDS = SCRATCH + 2

# Words of `call`. The signature stands for all that must be equal on all ranks; FOLD and LAST are loops of folds.py:
# LAST, which also divides by W for a mean, takes the array of the last rank, FOLD those before it.
KIND, ROOT, SIGNATURE, ITEM, FOLD, LAST = range(6)
ONE_SHOT, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST = range(5)

# Lines of `words`: line 0 holds the abort word, then each rank has five.
ABORT = 0
BARRIERS_LINE, CALL_LINE, _, TEXT_LINE, LINES_A_RANK = range(5)

BLOCK = 8192  # bytes that are reduced at a time, so that a partial result stays in the first-level cache
ROUND = 16  # elements: parts begin on multiples, so that two writers do not share a cache line


@jit
def word(rank, line):
    """The index of the first word of a rank's line."""
    return LINE * (1 + rank * LINES_A_RANK + line)


@jit
def call_word(rank, number):
    """Where a rank writes the signature of call `number`, and one word on the offset of its array: two lines take
    turns. A rank may be in its next call while another still reads what it wrote for this one, but not in the call
    after that, which begins with a barrier, too.
    """
    return word(rank, CALL_LINE + number % 2)


@jit
def message_word(size, sender, receiver):
    """Where the sender counts the chunks that it has sent; one line on, the receiver counts those it has taken."""
    return LINE * (1 + size * LINES_A_RANK + 2 * (sender * size + receiver))


@jit
def total_words(size):
    return message_word(size, size, 0)


@jit
def cut(n, size, rank):
    """The first element of a flat array of n that belongs to `rank`; that of the next rank is the end."""
    return min(n, (n * rank // size + ROUND - 1) // ROUND * ROUND)


# --- barriers ---------------------------------------------------------------------------------------------------------


@jit
def _deadline(state):
    return clock(state[SCRATCH:]) + state[TIMEOUT] if state[TIMEOUT] else NEVER


@jit
def barrier(words, state):
    """Returns when all ranks have called it; each then sees what the others wrote before."""
    state[BARRIERS] += 1
    store_release(words, word(state[RANK], BARRIERS_LINE), state[BARRIERS])
    deadline = _deadline(state)
    for rank in range(state[SIZE]):
        at = word(rank, BARRIERS_LINE)
        status = wait_until(words, at, state[BARRIERS], ABORT, deadline, state[SPINS], state[SCRATCH:])
        if status != REACHED:
            return status
    return REACHED


@jit
def handshake(words, state, signature, offset):
    """The barrier that begins a call: ranks compare signatures, and learn the others' `offset`, their array's in the
    heaps, or -1 if it lies elsewhere.
    """
    number = state[CALLS]
    own = call_word(state[RANK], number)
    words[own], words[own + 1] = signature, offset
    state[CALLS] += 1
    status = barrier(words, state)
    if status != REACHED:
        return status
    for rank in range(state[SIZE]):
        if words[call_word(rank, number)] != signature:
            return MISMATCH
    return REACHED


@jit
def finish(words, state, ending):
    """Tell the others, should they wait for this rank, that it makes no more calls; do not wait for them."""
    own = call_word(state[RANK], state[CALLS])
    words[own], words[own + 1] = ending, -1
    state[BARRIERS] += 1
    store_release(words, word(state[RANK], BARRIERS_LINE), state[BARRIERS])


@jit
def _offset(words, state, rank):
    """What a rank brought to the handshake of this call."""
    return words[call_word(rank, state[CALLS] - 1) + 1]


@jit
def _arrays_in_heaps(words, state):
    """How many ranks entered this call with an array in the heaps."""
    count = 0
    for rank in range(state[SIZE]):
        if _offset(words, state, rank) >= 0:
            count += 1
    return count


@jit
def _array(words, state, rank):
    """The address of the array in the heaps with which a rank entered this call."""
    return state[HEAP] + _offset(words, state, rank)


# --- collectives ------------------------------------------------------------------------------------------------------


@jit
def _staging(state, rank, chunk):
    """The address of a rank's staging buffer for chunk number `chunk`: two take turns."""
    return state[STAGING] + (2 * rank + chunk % 2) * state[STAGING_BYTES]


@jit
def _one_shot(x, n, words, state, call):
    """For small arrays, with one barrier: each rank stages all of its array, and folds all arrays itself."""
    size, item, chunk = state[SIZE], call[ITEM], state[STAGED]
    state[STAGED] += 1
    copy(x, _staging(state, state[RANK], chunk), n * item)
    status = handshake(words, state, call[SIGNATURE], -1)
    if status != REACHED or size == 1:
        return status
    last = call[LAST] if size == 2 else call[FOLD]
    fold(last, size, _staging(state, 0, chunk), _staging(state, 1, chunk), x, x, n)
    for rank in range(2, size):
        fold(call[LAST] if rank == size - 1 else call[FOLD], size, x, _staging(state, rank, chunk), x, x, n)
    return status


@jit
def _fold_staged(x, n, at, state, call):
    """Fold in rank order the n elements at x and those that the other ranks staged `at` bytes into their buffers.

    The result goes to x and to this rank's staging buffer.
    """
    size, own, item, chunk = state[SIZE], state[RANK], call[ITEM], state[STAGED]
    step = BLOCK // item
    for lo in range(0, n, step):
        count, offset = min(step, n - lo), at + lo * item
        mine, out = x + lo * item, _staging(state, own, chunk) + offset
        total = mine if own == 0 else _staging(state, 0, chunk) + offset
        for rank in range(1, size):
            other = mine if rank == own else _staging(state, rank, chunk) + offset
            if rank < size - 1:
                fold(call[FOLD], size, total, other, out, out, count)
            else:
                fold(call[LAST], size, total, other, out, mine, count)
            total = out


@jit
def _staged(x, n, words, state, call, entered):
    """Private arrays, chunk by chunk through the staging buffers.

    A rank stages its chunk of the others' parts, waits at a barrier, folds its own part, and fetches the others'
    results of the chunk before. One barrier a chunk is enough: whoever overwrites a part of a buffer has
    passed a barrier that all ranks entered after they had last read this part.
    """
    kind, own, size, item = call[KIND], state[RANK], state[SIZE], call[ITEM]
    part_bytes = state[STAGING_BYTES] // size // 64 * 64  # of a part in a chunk
    room = part_bytes // item
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
                    copy(x + lo * item, _staging(state, own, state[STAGED]) + rank * part_bytes, count * item)
        if chunk == 0 and not entered:
            status = handshake(words, state, call[SIGNATURE], -1)
            if status == REACHED and _arrays_in_heaps(words, state) > 0:
                status = barrier(words, state)  # ranks whose array is there wait for it, see `_collective`
        else:
            status = barrier(words, state)
        if status != REACHED:
            return status
        if kind != REDUCE_SCATTER and chunk >= lag:
            for rank in range(size):
                source = call[ROOT] if kind == BROADCAST else rank
                if source != own:
                    lo, count = _piece(n, size, rank, chunk - lag, room)
                    copy(_staging(state, source, state[STAGED] - lag) + rank * part_bytes, x + lo * item, count * item)
        if chunk < chunks:
            if kind in (ALL_REDUCE, REDUCE_SCATTER):
                lo, count = _piece(n, size, own, chunk, room)
                _fold_staged(x + lo * item, count, own * part_bytes, state, call)
            state[STAGED] += 1
    return REACHED


@jit
def _piece(n, size, rank, chunk, room):
    """Chunk number `chunk` of the part of `rank`: its first element, and how many."""
    end = cut(n, size, rank + 1)
    lo = min(cut(n, size, rank) + chunk * room, end)
    return lo, min(room, end - lo)


@jit
def _fold_in_place(x, lo, hi, words, state, call):
    """Fold elements lo to hi of all ranks' arrays in rank order: into all of them, or into this rank's x."""
    size, item = state[SIZE], call[ITEM]
    spare = _staging(state, state[RANK], 0)  # after a handshake nobody reads this rank's buffers any more
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
    """Arrays in the heaps: every rank reads and writes those of the others where they lie, after the handshake."""
    kind, own, size, item = call[KIND], state[RANK], state[SIZE], call[ITEM]
    if kind in (ALL_REDUCE, REDUCE_SCATTER):
        _fold_in_place(x, cut(n, size, own), cut(n, size, own + 1), words, state, call)
    else:
        for rank in range(size):
            source = call[ROOT] if kind == BROADCAST else rank
            if source != own:
                lo, hi = cut(n, size, rank), cut(n, size, rank + 1)
                copy(_array(words, state, source) + lo * item, x + lo * item, (hi - lo) * item)
    return barrier(words, state)


@jit
def _collective(x, n, words, state, call):
    if call[KIND] == ONE_SHOT:
        return _one_shot(x, n, words, state, call)
    if state[SIZE] == 1:
        return handshake(words, state, call[SIGNATURE], -1)
    offset = x - state[HEAP]
    if offset < 0 or offset >= state[HEAP_BYTES]:
        return _staged(x, n, words, state, call, False)
    status = handshake(words, state, call[SIGNATURE], offset)
    if status != REACHED:
        return status
    if _arrays_in_heaps(words, state) < state[SIZE]:
        return _staged(x, n, words, state, call, True)
    return _in_place(x, n, words, state, call)


@jit
def collective(x, words, state, call):
    """One collective call on the flat array x, in place. Returns REACHED, ABORTED, LATE or MISMATCH.

    x: (n,) contiguous, of the dtype that `call` is for. words, state, call: int64. Every kind folds element by element
    in rank order, so results have the same bits everywhere, every time.
    """
    return _collective(np.int64(x.ctypes.data), x.size, words, state, call)


# --- messages ---------------------------------------------------------------------------------------------------------


@jit
def exchange(outgoing, receiver, incoming, sender, words, state):
    """Send the bytes of `outgoing` to `receiver`, and fill `incoming` with those that `sender` sends to this rank.

    Both are uint8. A message passes in chunks through the buffer of its pair of ranks, which holds two. Sending and
    receiving take turns, so that two ranks that send to each other never wait for each other.
    """
    size, own, room = state[SIZE], state[RANK], state[CHUNK_BYTES]
    out_line, in_line = message_word(size, own, receiver), message_word(size, sender, own)
    out_buffer = state[MESSAGES] + 2 * room * (own * size + receiver)
    in_buffer = state[MESSAGES] + 2 * room * (sender * size + own)
    target, source = np.int64(incoming.ctypes.data), np.int64(outgoing.ctypes.data)
    sent, got, turn, deadline = 0, 0, 0, _deadline(state)
    while sent < outgoing.size or got < incoming.size:
        turn += 1
        count = words[out_line]
        if sent < outgoing.size and count - load_acquire(words, out_line + LINE) < 2:
            n = min(room, outgoing.size - sent)
            copy(source + sent, out_buffer + count % 2 * room, n)
            store_release(words, out_line, count + 1)
            sent += n
            turn = 0
        count = words[in_line + LINE]
        if got < incoming.size and load_acquire(words, in_line) > count:
            n = min(room, incoming.size - got)
            copy(in_buffer + count % 2 * room, target + got, n)
            store_release(words, in_line + LINE, count + 1)
            got += n
            turn = 0
        if turn:
            status = wait_a_turn(words, ABORT, turn, deadline, state[SPINS], state[SCRATCH:])
            if status != REACHED:
                return status
    return REACHED


@jit
def count_final(words, rows, steps, found):
    """found[i + 1] = how many of the words 0 to i have reached `steps` in all rows."""
    for i in range(found.size - 1):
        found[i + 1] = found[i] + 1
        for row in rows:
            if load_acquire(words, row + i) < steps:
                found[i + 1] = found[i]
                break
