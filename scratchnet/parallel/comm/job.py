"""Is this process a rank of a job that MPI started? Its environment says so; MPI itself is not touched."""

import atexit
import functools
import importlib
import os
import sys
from collections.abc import Callable

# The variables in which a launcher gives each process the number of ranks and its own rank.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # of a job step; with one task it may have nothing to do with MPI
)
# How often mpi_train.py has restarted the job, see failpoints.armed. Open MPI passes to other machines only variables
# whose names begin with OMPI_.
RESTARTS = "OMPI_SCRATCHNET_RESTARTS"
# What tells one launch of ranks from another, in which the same variables may be set again.
LAUNCHES = (
    "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "PMI_FD", "PMI_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID"
)  # fmt: skip
# The modules that start worker processes, and know in one of them who its parent is.
WORKERS = ("multiprocess", "multiprocessing")
# "pid launch" of the process that is the rank: one that it starts inherits all variables, but is none.
RANK = "SCRATCHNET_RANK"
ENDED = "scratchnet: all ranks have come to their end\n"  # rank 0 writes it for mpi_train.py


def started_as() -> tuple[int, int] | None:
    """(rank, number of ranks) as mpirun or srun told this process; None if neither started it.

    A program that a rank starts, for a plot or a trial, has the rank's environment and is none.
    """
    for name in WORKERS:
        # By import: another thread may be in the middle of importing it, and this one waits for that.
        if name in sys.modules and importlib.import_module(name).parent_process() is not None:
            return None  # a worker process: it has the environment of a rank, but is none
    for size, rank in LAUNCHERS:
        if os.environ.get(size, "").isdigit() and os.environ.get(rank, "").isdigit():
            found = int(os.environ[rank]), int(os.environ[size])
            is_job = found[1] > 1 or not size.startswith("SLURM")
            return found if is_job and _is_the_rank(found) else None
    return None


def _is_the_rank(found: tuple[int, int]) -> bool:
    """Is this process the rank itself, and not one that the rank has started?"""
    launch = "/".join([f"{found}", *(os.environ.get(name, "") for name in LAUNCHES)])
    pid, _, known = os.environ.get(RANK, "").partition(" ")
    if known != launch:
        os.environ[RANK] = f"{os.getpid()} {launch}"
        return True
    return pid == str(os.getpid())


started_as()  # by now: what this process starts, before it asks again, is no rank


def is_first_rank() -> bool:
    """Is this rank 0, or a process that MPI did not start? Of several processes that compute the same, this one prints
    and writes files."""
    job = started_as()
    return job is None or job[0] == 0


@functools.cache
def report_end(all_ended: Callable[[], bool] = lambda: True) -> None:
    """When this process exits, rank 0 tells mpi_train.py so, if all_ended() finds that the other ranks exit, too."""

    def report() -> None:
        if all_ended() and is_first_rank() and RESTARTS in os.environ:
            sys.stderr.write(ENDED)  # in one write, so that lines of ranks do not mix
            sys.stderr.flush()

    atexit.register(report)
