"""Functions for `run` in which workers fail, or make calls that differ."""

import os
import signal
import sys
import time

import numpy as np

import scratchnet as sn
from scratchnet.parallel.comm.arena import ArenaCommunicator
from scratchnet.parallel.objects import dumps


def others_wait(comm, act):
    """Rank 1 calls act(); all others wait in a collective call."""
    if comm.rank == 1:
        act()
    comm.all_reduce(np.ones(10, np.float32))
    comm.barrier()
    return "done"


def raises():
    raise ValueError("no such luck\nsecond line")


ENDS = {
    "raise": (raises, "worker 1 raised ValueError: no such luck", None),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), "worker 1 was killed by SIGKILL", signal.SIGKILL),
    "SIGSEGV": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "worker 1 was killed by SIGSEGV", signal.SIGSEGV),
    "sys.exit": (lambda: sys.exit(3), "worker 1 raised SystemExit: 3", None),
    "os._exit": (lambda: os._exit(0), "worker 1 ended with status 0 before its function returned", None),
}


def ends(comm, how):
    return others_wait(comm, ENDS[how][0])


def calls_differ(channel, rank, arenas, names):
    """In each arena rank 1 makes the call of another name, twice; sends the errors of each time."""
    found = []
    for arena, name in zip(arenas, names, strict=True):
        comm = ArenaCommunicator(arena, rank, timeout=30)
        found.append(list(filter(None, (error_of(comm, name if rank == 1 else "all_reduce") for _ in range(2)))))
        comm.finish()
    channel.send_bytes(dumps(("result", found)))


def error_of(comm, name):
    try:
        CALLS[name](comm)
    except sn.CollectiveError as error:
        return str(error)
    return None


def f32(*shape):
    return np.zeros(shape, np.float32)


CALLS = {
    "all_reduce": lambda comm: comm.all_reduce(f32(4)),
    "another op": lambda comm: comm.all_reduce(f32(4), "max"),
    "another shape": lambda comm: comm.all_reduce(f32(2, 2)),
    "another dtype": lambda comm: comm.all_reduce(np.zeros(4)),
    "another algorithm": lambda comm: comm.all_reduce(f32(4), algorithm="ring"),
    "large": lambda comm: comm.all_reduce(f32(10**6)),
    "of the arena": lambda comm: comm.all_reduce(comm.empty(5)),
    "barrier": lambda comm: comm.barrier(),
    "broadcast": lambda comm: comm.broadcast(f32(4)),
    "another root": lambda comm: comm.broadcast(f32(4), 1),
    "all_gather": lambda comm: comm.all_gather(f32(4)),
    "reduce_scatter": lambda comm: comm.reduce_scatter(f32(4)),
    "return": lambda comm: None,
}


def returns_early(comm):
    if comm.rank != 2:
        comm.all_reduce(f32(4))
    return comm.rank


def waits_for_a_sleeper(comm):
    if comm.rank == 0:
        time.sleep(60)
    comm.barrier()


def threads(comm):
    import numba

    return numba.config.NUMBA_NUM_THREADS, os.environ["OMP_NUM_THREADS"], hash("text")


def compiled(comm):
    from scratchnet.native.compile import compile_stats
    from scratchnet.parallel.comm.collectives import ALGORITHMS

    for dtype in (np.float32, np.float64, np.int32, np.int64):
        for algorithm in ALGORITHMS:
            comm.all_reduce(np.ones(3, dtype), algorithm=algorithm)
    comm.barrier()
    return compile_stats().compiled


def loaded_modules(comm):
    return [name for name in ("scipy.linalg", "matplotlib", "hypothesis", "tqdm", "pytest") if name in sys.modules]
