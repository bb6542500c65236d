"""The two ways to a group of processes: `run` starts one, `world` is the one in which this process was started.

Under mpirun or srun the environment says so (comm/job.py), and then the ranks of that job are the group.
"""

from collections.abc import Callable
from typing import Any

from .. import checks
from .comm.communicator import Communicator, SerialCommunicator
from .comm.job import started_as
from .mpi import communicator as mpi

YEARS = 1e8  # seconds: a longer wait is one for ever


def world() -> Communicator:
    """All ranks of the job that MPI started, which all of them call; or a group of this process alone."""
    job = started_as()
    return SerialCommunicator() if job is None or job[1] == 1 else mpi.world()


def run(fn: Callable, *args: Any, workers: int = 2, timeout: float | None = None) -> list:
    """Runs `fn(comm, *args)` in `workers` new processes; returns their results in rank order.

    comm: the `Communicator` through which the workers work together. fn, args and results may be whatever cloudpickle
    can send, closures and classes of a notebook included. Each worker's libraries use cores // workers threads, or 1.
    timeout: seconds that a collective call may wait for the others; None or inf for ever. The wait for one that died,
    raised or returned ends at once in any case.

    In a job that MPI started (mpirun, srun) the job's ranks are the workers, whatever `workers` says: each rank calls
    fn(comm, *args) itself, nothing is sent, and each gets a list that holds its own result alone.

    Raises ConfigError for workers < 1, or what cannot be sent; SharedMemoryError where memory is too small; WorkerError
    if a worker raised (its traceback is a note of the error), was killed, or ended: then the others are ended, too.
    """
    workers = checks.integer("run: workers", workers, 1)
    checks.function("run", fn)
    if timeout is not None:
        checks.number("run: timeout", timeout, "(0, inf]")
        timeout = None if timeout > YEARS else float(timeout)
    if started_as():
        return mpi.run(fn, args, timeout)
    from .pool import launch  # here, not above: it loads multiprocess and cloudpickle

    return launch.run(fn, args, workers, timeout)
