"""What each rank of `clusters.*.run` runs: it reads the function, calls it, and keeps its result for its task."""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

FOLDER = "SCRATCHNET_TASK"  # of the task that started this rank: `work`, and the results of its ranks
WORK = "work"


def main() -> None:
    proxy = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: this rank dies with its proxy
    if proxy != os.getppid() or proxy == 1:
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from ..comm.job import started_as
    from ..mpi import communicator as mpi
    from ..objects import dumps, loads
    from ..pool.launch import describe

    folder, (rank, _) = Path(os.environ.pop(FOLDER)), started_as() or (0, 1)

    def keep(*reply) -> None:
        path = folder / f"{rank}.part"
        path.write_bytes(dumps(reply))
        path.rename(folder / str(rank))

    called: list[bool] = []
    keep("started", os.getpid())
    try:
        (current, path), work = loads((folder / WORK).read_bytes())
        sys.path += [place for place in path if place not in sys.path]  # where this machine has the user's modules
        with contextlib.suppress(OSError):  # it may have no such folder
            os.chdir(current)
        fn, args, timeout = loads(work)

        def call(comm, *args):
            called.append(True)
            try:
                keep("result", fn(comm, *args))
            except BaseException as error:
                keep("error", describe(error))
                raise

        mpi.run(call, args, timeout)
    except Exception as error:  # before the function was called
        if not called:
            keep("error", describe(error))
        raise


if __name__ == "__main__":
    main()
