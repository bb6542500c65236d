"""All-reduces of two processes: scratchnet's in shared memory and over MPI, MPI's alone, and PyTorch's Gloo.

`mpirun -n 2 python collectives.py [ORDER]` is what MpiRanks starts: ranks that answer requests.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
from engine import RANKS, Engine, Measure, bind

MPIRUN = ["mpirun", *["--allow-run-as-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)]


class Ranks:
    """Processes of this machine, each in target(channel, rank, *args); all are idle between requests."""

    def __init__(self, target, *args):
        from scratchnet.parallel.pool.launch import Workers

        self.workers = Workers(RANKS, target, *args)

    def ask(self, request):
        self.workers.send_all(request)
        return [channel.recv() for channel in self.workers.channels]

    def close(self):
        self.workers.end()


class MpiRanks:
    """The same under mpirun; rank 0 reads requests from its stdin. order: of MpiCommunicator; "" for MPI alone."""

    def __init__(self, order):
        command = [*MPIRUN, "-n", str(RANKS), "--oversubscribe", sys.executable, __file__, order]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.communicate()


class Reducing(Measure):
    """All-reduces of so many numbers by ranks, of which the slower counts."""

    def __init__(self, elements, rewritten, ranks):
        self.work, self.ranks, self.close = (elements, rewritten), ranks, ranks.close

    def measure(self, seconds):
        return {"seconds": max(self.ranks.ask((*self.work, seconds)))}


class Mpi(Engine):
    def __init__(self, threads, folder, order=""):
        super().__init__(threads, folder)
        self.order = order

    def collectives(self, elements, rewritten):
        return Reducing(elements, rewritten, MpiRanks(self.order))


class Gloo(Engine):
    def collectives(self, elements, rewritten):
        return Reducing(elements, rewritten, Ranks(gloo_rank, tempfile.mktemp()))


# --- what ranks do ----------------------------------------------------------------------------------------------------


def time_all_reduces(all_reduce, barrier, array, rewritten, seconds):
    """Seconds that a call takes this rank, the mean over about `seconds`; all ranks make the same number of calls."""
    count, total = max(2, int(seconds / (5e-6 + array.nbytes * 3e-10))), 0.0
    for k in range(count):
        if rewritten or k % 16 == 0:
            array[:] = 1
        barrier()
        start = time.perf_counter()
        all_reduce(array)
        total += time.perf_counter() - start
    if array[0] != RANKS ** ((count - 1) % 16 + 1 if not rewritten else 1):
        raise RuntimeError(f"the sum is wrong: {array[0]}")
    return total / count


def serve(channel, all_reduce, barrier, empty=np.empty):
    while True:
        elements, rewritten, seconds = channel.recv()
        array = (empty if rewritten else np.empty)(elements, np.float32)
        channel.send(time_all_reduces(all_reduce, barrier, array, rewritten, seconds))


def arena_rank(channel, rank, arena):
    from scratchnet.parallel.comm.arena import ArenaCommunicator

    bind(rank)
    comm = ArenaCommunicator(arena, rank)
    serve(channel, comm.all_reduce, comm.barrier, comm.empty)


def gloo_rank(channel, rank, file):
    import torch
    import torch.distributed as dist

    bind(rank)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=RANKS)
    serve(channel, lambda x: dist.all_reduce(torch.from_numpy(x)), dist.barrier)


def mpi_rank(order):
    from scratchnet.parallel.mpi.communicator import MpiCommunicator, library

    MPI = library()
    comm = MPI.COMM_WORLD
    all_reduce = MpiCommunicator(order=order).all_reduce if order else partial(comm.Allreduce, MPI.IN_PLACE)
    while True:
        if comm.rank == 0:
            request = json.loads(sys.stdin.readline() or "null")
            comm.send(request, 1)
        else:
            while not comm.iprobe(source=0):  # a plain receive would keep a core busy while others are measured
                time.sleep(0.001)
            request = comm.recv(source=0)
        if request is None:
            return
        elements, rewritten, seconds = request
        array = np.empty(elements, np.float32)
        mean = time_all_reduces(all_reduce, comm.Barrier, array, rewritten, seconds)
        if means := comm.gather(mean):
            print(json.dumps(means), flush=True)


if __name__ == "__main__":
    mpi_rank(sys.argv[1])
