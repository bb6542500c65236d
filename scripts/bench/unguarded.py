"""A pool without what keeps it exact, for bench.py to measure what that costs; nothing else uses it.

"pages": updates go in place instead of to the page after. "claims": each worker has its own piece of each phase instead
of claiming one, so that what is left of the protocol is one barrier between phases, which any synchronous pool needs;
but then nobody helps a worker that the system makes wait. It takes two phases with as many pieces as there are workers.
"""

from scratchnet.native.atomics import NEVER, REACHED, load_acquire, wait_a_turn
from scratchnet.native.compile import jit
from scratchnet.parallel.pool import claims, worker
from scratchnet.parallel.pool.claims import COUNT, GO, LINE, OWNERS, SEALS, STOP, STOPPED


@jit
def take_own(words, phases, rank, spins, scratch):
    """As claims.take: this rank's piece of the phase that comes next, once all pieces of the phase before are done."""
    computed, merged = words[phases[0, SEALS] + rank * LINE], words[phases[1, SEALS] + rank * LINE]
    phase = 0 if computed == merged else 1
    turn = 0
    while True:
        ready = phase == 1 or load_acquire(words, GO) > computed
        for i in range(phases[1 - phase, COUNT]):
            ready = ready and load_acquire(words, phases[1 - phase, SEALS] + i * LINE) >= computed
        if ready:
            return phase * OWNERS + rank
        if wait_a_turn(words, STOP, turn, NEVER, spins, scratch) != REACHED:
            return STOPPED
        turn += 1


def unguard(without):
    """In this process, from now on; without: "pages", "claims"."""
    if "claims" in without:
        claims.take = worker.take = take_own
    if "pages" not in without or worker.Worker.__init__.__name__ == "one_page":
        return
    new = worker.Worker.__init__

    def one_page(self, *args, **kwargs):
        new(self, *args, **kwargs)
        self.pages[:] = [self.pages[0]] * len(self.pages)

    worker.Worker.__init__ = one_page
