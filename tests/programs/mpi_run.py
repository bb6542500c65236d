"""`sn.parallel.run` under mpirun: mpi_run.py NAME runs that function on each rank."""

import contextlib
import sys
import time

import numpy as np

import scratchnet as sn


def result(comm, offset):
    return comm.rank + int(offset), comm.size, type(comm).__name__, int(comm.all_reduce(np.ones(3))[0])


def exception(comm):
    if comm.rank == 1:
        raise ValueError("no such luck")
    comm.barrier()


def late(comm):
    if comm.rank == comm.size - 1:
        time.sleep(600)
    comm.barrier()


def early_return(comm):
    if comm.rank != comm.size - 1:
        comm.barrier()


def suppressed(comm, callers):
    """So many ranks call, and take no notice of an error."""
    with contextlib.suppress(sn.CollectiveError):
        if comm.rank < int(callers):
            comm.barrier()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(sn.parallel.run(globals()[name], *arguments, workers=7, timeout=0.5 if name == "late" else None), flush=True)
