"""What the machine itself can do: arithmetic on registers, copies of memory, copies by several processes."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from collectives import Ranks
from engine import ELEMENTS, RANKS, Engine, Measure, aligned, bind, random_array, time_calls

from scratchnet.kernels.cpu.peak import multiply_adds, operations


class Registers(Measure):
    """The peak of the machine, on every thread: fused multiply-adds on registers, and copies of memory."""

    COPIES = 32  # so many that starting the threads does not count

    def __init__(self, threads, folder):
        self.threads, self.pool = threads, ThreadPoolExecutor(threads)
        together = threading.Barrier(threads)
        list(self.pool.map(lambda rank: (together.wait(), bind(rank)), range(threads)))
        cut = ELEMENTS[0] // threads * ELEMENTS[1]
        self.copies = [(aligned((cut,)), random_array((cut,), rank)) for rank in range(threads)]

    def peak(self):
        return self

    def measure(self, seconds):
        """Seconds of arithmetic and of a copy, the best of several, and how much of each there is."""
        return {
            "seconds": min(time_calls(self.compute, seconds / 8) for _ in range(8)),
            "flops": operations(self.threads),
            "copy": min(time_calls(self.copy, seconds / 8) for _ in range(8)),
            "bytes": self.COPIES * sum(x.nbytes for pair in self.copies for x in pair),
        }

    def compute(self):
        values = np.full((self.threads, 16), 0.5, np.float32)
        list(self.pool.map(multiply_adds(), values))

    def copy(self):
        """Copies of an array of the kernels' size, a part of it on each thread."""
        list(self.pool.map(lambda pair: [np.copyto(*pair) for _ in range(self.COPIES)], self.copies))


class Copies(Engine):
    """What a merge and update would take if it only moved its bytes."""

    def pool(self, what, widths, batch_size, shards):
        parameters = sum((i + 1) * o for i, o in itertools.pairwise(widths))
        return Moving(4 * parameters * (shards + 4)) if what == "merge" else None
        # it reads the gradients of all shards, parameters and momentum, and writes the latter two


class Moving(Measure):
    """So many bytes read and written by processes as fast as they copy."""

    def __init__(self, nbytes):
        from scratchnet.parallel.comm.memory import SharedMemory

        self.ranks = Ranks(copying_rank, SharedMemory(nbytes))
        self.close = self.ranks.close

    def merge(self, seconds):
        return {"seconds": max(self.ranks.ask(max(2, round(seconds / 0.005))))}


def copying_rank(channel, rank, memory):
    """Copies one half of its part of the shared memory to the other, as often as it is asked to."""
    bind(rank)
    half = memory.size // (2 * RANKS)
    source, target = (memory.array((2 * rank + i) * half, half, np.uint8) for i in (0, 1))
    source[:] = target[:] = 1
    while True:
        count = channel.recv()
        start = time.perf_counter()
        for _ in range(count):
            np.copyto(target, source)
        channel.send((time.perf_counter() - start) / count)
