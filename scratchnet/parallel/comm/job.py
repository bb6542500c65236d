"""Is this process a rank of a job that MPI started? Its environment says so; MPI itself is not touched."""

import atexit
import functools
import os
import sys
from collections.abc import Callable

# What a starter tells each process it starts: number of processes, number of this one.
STARTERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # of a job step, which may have nothing to do with MPI if it has one task
)
# Variable that mpi_train.py sets: how often the job was started before; see failpoints.armed. Open MPI takes to other
# machines, of all variables, those that begin like this.
RESTARTS = "OMPI_SCRATCHNET_RESTARTS"
ENDED = "scratchnet: all ranks have come to their end\n"  # what mpi_train.py waits to hear of rank 0


def started_as() -> tuple[int, int] | None:
    """(rank, number of ranks) as mpirun or srun told this process; None if neither started it. MPI is not touched."""
    for name in ("multiprocess", "multiprocessing"):
        if name in sys.modules and sys.modules[name].parent_process() is not None:
            return None  # a worker: it has its parent's environment, but is no rank
    for size, rank in STARTERS:
        if os.environ.get(size, "").isdigit() and os.environ.get(rank, "").isdigit():
            found = int(os.environ[rank]), int(os.environ[size])
            return found if found[1] > 1 or not size.startswith("SLURM") else None
    return None


def is_first_rank() -> bool:
    """Is this rank 0, or no job at all? Of several processes that compute the same, this one prints and writes."""
    job = started_as()
    return job is None or job[0] == 0


@functools.cache
def tell_end(met: Callable[[], bool] = lambda: True) -> None:
    """At the end of this process, if met() finds all other ranks at theirs, rank 0 tells mpi_train.py so."""

    def tell() -> None:
        if met() and is_first_rank() and RESTARTS in os.environ:
            sys.stderr.write(ENDED)  # one write: lines of ranks stay whole
            sys.stderr.flush()

    atexit.register(tell)
