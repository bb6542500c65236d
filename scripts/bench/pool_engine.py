"""scratchnet's worker processes: steps that they share, what a pool costs, and what its guarantees cost.

Between turns the workers are stopped, so that they do not disturb other engines.
"""

import atexit
import os
import queue
import signal
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
from engine import BATCHES, LR, MOMENTUM, Measure, Turns
from scratchnet_engine import Scratchnet

import scratchnet as sn
from scratchnet.native.atomics import NEVER, REACHED, load_acquire, wait_a_turn
from scratchnet.native.compile import jit
from scratchnet.parallel.pool import claims, pool, worker
from scratchnet.parallel.pool.claims import COUNT, GO, LINE, OWNERS, SEALS, STOP, STOPPED


class Pool(Scratchnet):
    """sn.Trainer with so many workers, one thread each. without: see `unguard`."""

    def __init__(self, threads, folder, workers, without=()):
        super().__init__(threads, folder)
        self.workers, self.without = workers, without

    def pool(self, what, widths, batch_size, shards):
        wanted = {"measure": self.workers, "start": 4}.get(what, 2)
        if self.workers > shards or self.workers != wanted or (self.without and (what, shards) != ("measure", 2)):
            return None

        def turns():
            self.network(widths, seed=0)
            return PoolTurns(self.workers, self.without, self.model, self.first_rows(batch_size), batch_size, shards)

        return Start(turns) if what == "start" else turns()


class Loss:
    """Cross entropy, which takes guards off in each process that it comes to."""

    def __init__(self, without):
        self.criterion, self.without = sn.nn.CrossEntropyLoss(), without

    def __call__(self, output, target):
        return self.criterion(output, target)

    def __setstate__(self, state):
        self.__dict__.update(state)
        unguard(self.without)


class Stop(Exception):
    """Ends a run that has no other end."""


class PoolTurns(Turns):
    """A run of sn.Trainer whose epochs are turns: its loader waits at the start of each to be asked for steps."""

    def __init__(self, workers, without, model, data, batch_size, shards):
        super().__init__()
        rows = np.arange(BATCHES * batch_size).reshape(BATCHES, batch_size)
        requests, answers = self.requests, self.answers = queue.Queue(), queue.Queue()

        class Loader(sn.data.DataLoader):
            first, probed = 0, workers == 1

            def batch_indices(self, epoch, first=0):
                if not self.probed:  # a pool looks at the first batch before the run begins
                    self.probed = True
                    yield rows[0]
                    return
                answers.put(time.perf_counter())
                steps = requests.get()
                if steps is None:
                    raise Stop
                answers.put(time.perf_counter())
                for k in range(self.first, self.first + steps):
                    yield rows[k % BATCHES]
                self.first += steps

        loader = Loader(sn.data.TensorDataset(*data, scale=1 / 255), batch_size)
        optimizer = sn.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        loss = Loss(without)
        trainer = sn.Trainer(model, optimizer, loss, workers=workers, shards=shards, progress=False)
        self.thread = threading.Thread(target=self._run, args=(trainer, loader), daemon=True)
        start, new_pool, self.pool = time.perf_counter(), pool.Pool, None
        with mock.patch.object(pool, "Pool", lambda *args, **options: self._keep(new_pool(*args, **options))):
            self.thread.start()
            self._answer()
        atexit.register(self.close)  # who waits for processes that are stopped waits for ever
        self.turn(1)
        self.seconds_to_first_step = time.perf_counter() - start
        self.turn(15)
        x, y = map(sn.Tensor, loader.dataset.gather(rows[0]))
        self.facts["loss"] = loss(model(x), y).item()

    def _keep(self, pool):
        self.pool = pool
        return pool

    def _run(self, trainer, loader):
        try:
            trainer.fit(loader, epochs=10**9)
        except Stop:
            pass
        except BaseException as error:
            self.answers.put(error)

    def turn(self, steps):
        self.signal(signal.SIGCONT)
        self.requests.put(steps)
        start, end = self._answer(), self._answer()
        self.signal(signal.SIGSTOP)
        return end - start

    def _answer(self):
        answer = self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def pids(self):
        return [process.pid for process in self.pool._processes.processes] if self.pool else []

    def signal(self, number):
        for pid in self.pids():
            os.kill(pid, number)

    def close(self):
        atexit.unregister(self.close)
        self.signal(signal.SIGCONT)
        self.requests.put(None)
        self.thread.join()

    # --- what a pool costs ---

    def measure(self, seconds):
        if self.pool is not None and "USS MB" not in self.facts:
            super().measure(seconds)  # so that all they need is there
            found = [memory_of(pid) for pid in self.pids()]
            self.facts |= {name: sum(row[name] for row in found) / len(found) for name in found[0]}
        return super().measure(seconds)

    def merge(self, seconds):
        """Seconds that the merge and update of a step take: of the worker that takes longest."""
        before = [row["merging"] for row in self.pool.report()]
        steps = max(4, round(seconds / self.seconds)) if self.seconds else 4
        self.seconds = self.turn(steps) / steps
        after = [row["merging"] for row in self.pool.report()]
        return {"seconds": max(new - old for new, old in zip(after, before, strict=True)) / steps}

    def recover(self, seconds):
        """Kill worker 1 while it has a piece of a step: seconds until that step is committed."""
        arena, begun = self.pool.arena, self.pool.arena.committed()
        self.signal(signal.SIGCONT)
        self.requests.put(2000)
        self._answer()
        while arena.committed() < begun + 200:
            time.sleep(0.001)
        pid = self.pids()[1]
        while not any(pieces.owned(arena.words, 1) for pieces in arena.pieces):
            pass
        step, start = arena.committed(), time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while arena.committed() <= step:
            time.sleep(0.0001)
        seconds = time.perf_counter() - start
        self._answer()
        self.signal(signal.SIGSTOP)
        return {"seconds": seconds}


class Start(Measure):
    """A pool from nothing to its first step, again and again."""

    def __init__(self, turns):
        super().__init__()
        self.turns = turns
        self.start(0)

    def start(self, seconds):
        turns = self.turns()
        turns.close()
        return {"seconds": turns.seconds_to_first_step}


def memory_of(pid):
    """USS: private bytes. PSS beyond the arena: those, and its part of libraries that others have mapped, too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return {
        "USS MB": (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024,
        "PSS beyond the arena MB": (kb["Pss"] - kb["Pss_Shmem"]) / 1024,
    }


# --- a pool without what keeps it exact -------------------------------------------------------------------------------


def unguard(without):
    """In this process, from now on, without "pages": updates go in place instead of to the page after; and without
    "claims": each worker has its own piece of each phase instead of claiming one.

    What is then left of the protocol is one barrier between phases, which any synchronous pool needs; but nobody helps
    a worker that the system makes wait. It takes two phases with as many pieces as there are workers.
    """
    if "claims" in without:
        claims.take = worker.take = take_own
    if "pages" in without:
        new = worker.Worker.__init__

        def one_page(self, *args, **kwargs):
            new(self, *args, **kwargs)
            self.pages[:] = [self.pages[0]] * len(self.pages)

        worker.Worker.__init__ = one_page


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
