"""Jobs for ranks that tasks of a scheduler became, and how such a rank or task meets its end."""

import concurrent.futures
import hashlib
import importlib.util
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from residue import alive
from sizes import THOROUGH

import scratchnet as sn
from scratchnet.parallel.clusters import hydra, launcher

NO_HYDRA = (
    None if hydra.version() and importlib.util.find_spec("mpi4py") else "expected mpich and mpi4py, found no such pair"
)
needs_hydra = pytest.mark.skipif(NO_HYDRA is not None, reason=str(NO_HYDRA))
END = 20.0  # seconds in which processes have to be gone


def needs(*modules):
    """Marks tests of a scheduler, which takes seconds to start: `make thorough` runs them, where it is installed."""
    absent = [name for name in modules if not importlib.util.find_spec(name)]
    reason = NO_HYDRA or (
        f"expected {', '.join(absent)}, found none" if absent else "a scheduler starts slowly: make thorough"
    )
    return pytest.mark.skipif(bool(NO_HYDRA or absent or not THOROUGH), reason=reason)


def in_threads(free=2):
    """A scheduler whose tasks are threads of this process, so that no other processes start than ranks."""

    def collect(do, n):
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            return list(pool.map(do, range(n)))

    return launcher.Scheduler("threads", "127.0.0.1", lambda: free, collect, lambda: None)


def trained(comm, folder=None, fail=""):
    """(rank, ranks, digest of the parameters) of a short training, in which a point of failure is armed.

    folder: of checkpoints.
    """
    os.environ["SCRATCHNET_FAIL"] = fail
    sn.manual_seed(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6)).astype(np.float32)
    data = sn.data.TensorDataset(x, (x[:, 0] > 0).astype(np.int64))
    model = sn.nn.Sequential(sn.nn.Linear(6, 20), sn.nn.Dropout(0.2), sn.nn.ReLU(), sn.nn.Linear(20, 2))
    optimizer = sn.optim.Adam(model.parameters(), 0.01)
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), shards=4, progress=False, folder=folder, save_every=4
    )  # fmt: skip
    loader = sn.data.DataLoader(data, 16, shuffle=True, seed=3)
    trainer.fit(loader, epochs=3, resume="auto" if folder else None)
    state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return comm.rank, comm.size, hashlib.sha256(state).hexdigest()


def expected(ranks):
    """What `trained` gives on so many ranks, by one process."""
    digest = trained(sn.parallel.SerialCommunicator())[2]
    return [(rank, ranks, digest) for rank in range(ranks)]


def kill_self(comm, rank, folder):
    """Rank `rank` kills itself at its first start; the others wait for it."""
    first = not Path(folder, "started").exists()
    comm.barrier()
    if comm.rank == rank and first:
        Path(folder, "started").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()
    return comm.rank


AGAIN = "again"


def wait_long(comm, folder):
    """Each rank writes a file with its process number, and waits for a minute; once AGAIN is there, it trains."""
    if Path(folder, AGAIN).exists():
        return trained(comm)
    Path(folder, f"{os.getpid()}").touch()
    time.sleep(60)


def processes_in(folder, count, seconds=40.0):
    """The processes of `wait_long`, once there are so many."""
    deadline = time.monotonic() + seconds
    while len(found := [int(path.name) for path in Path(folder).iterdir() if path.name.isdigit()]) < count:
        assert time.monotonic() < deadline, f"only {len(found)} ranks started"
        time.sleep(0.05)
    return found


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def gone(pids, seconds=END):
    """Are all of these processes gone, or are within so many seconds?"""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))
