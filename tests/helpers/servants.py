"""Groups of processes that serve many tests: each test sends a function, which all ranks run."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from multiprocess import connection

from scratchnet.parallel.comm.arena import Arena, ArenaCommunicator, warm_up
from scratchnet.parallel.objects import dumps, loads
from scratchnet.parallel.pool.launch import Workers


def serve(channel, rank, arena):
    comm = ArenaCommunicator(arena, rank, timeout=60)
    while True:
        fn, args = loads(channel.recv_bytes())
        channel.send_bytes(dumps(fn(comm, *args)))


def ask(channels, fn, args):
    call = dumps((fn, args))
    for channel in channels:
        channel.send_bytes(call)
    return [loads(channel.recv_bytes()) for channel in channels]


class Group:
    """`ask(fn, *args)` gives what fn(comm, *args) returns on each rank."""

    def __init__(self, size):
        self.size, self.arena = size, Arena(size)
        warm_up()
        self.workers = Workers(size, serve, self.arena)

    def ask(self, fn, *args):
        return ask(self.workers.channels, fn, args)

    def end(self):
        self.workers.end()
        self.workers = self.arena = None


MPIRUN = shutil.which("mpirun")
NO_MPI = None if MPIRUN and importlib.util.find_spec("mpi4py") else "expected mpi4py and mpirun, found no such pair"


@functools.cache
def is_open_mpi():
    return "Open MPI" in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout


def mpirun(ranks, *command):
    """The command line for `ranks` ranks on however few cores."""
    if not is_open_mpi():
        return [MPIRUN, "-n", str(ranks), *command]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    quiet = ["--mca", "btl_vader_single_copy_mechanism", "none"]  # containers may not allow any, and then it complains
    quiet += ["--mca", "mpi_yield_when_idle", "1"]  # ranks that wait in the library leave their core to others
    return [MPIRUN, *root, "--oversubscribe", "--bind-to", "none", *quiet, "-n", str(ranks), *command]


class MpiGroup:
    """A `Group` of ranks that mpirun started."""

    def __init__(self, size, folder):
        self.size, address = size, str(folder / "group")
        with connection.Listener(address, "AF_UNIX") as listener:
            servant = Path(__file__).parents[1] / "programs" / "mpi_servant.py"
            environment = {**os.environ, "GROUP": address, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self.process = subprocess.Popen(mpirun(size, sys.executable, str(servant)), env=environment)
            listener._listener._socket.settimeout(60)
            channels = [listener.accept() for _ in range(size)]
        ranks = {channel.recv(): channel for channel in channels}
        self.channels = [ranks[rank] for rank in range(size)]

    def ask(self, fn, *args):
        return ask(self.channels, fn, args)

    def end(self):
        for channel in self.channels:
            channel.send_bytes(b"end")
            channel.close()
        assert self.process.wait() == 0
