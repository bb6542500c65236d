"""Workers that a server forks find what processes find that start afresh, and nobody depends on the server."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import multiprocess
import numba
import numpy as np
import pytest
from residue import no_residue

import scratchnet as sn
from scratchnet.native import cache
from scratchnet.native.compile import JIT_ENABLED, MAX_THREADS
from scratchnet.parallel.comm import server
from scratchnet.parallel.pool import launch

pytestmark = pytest.mark.skipif(not server.is_possible(), reason="no handles of processes here")


@pytest.fixture(autouse=True)
def nothing_is_left():
    with no_residue():
        yield


def parents():
    return {child.pid for child in multiprocess.active_children() if child.name == server.NAME}


def test_workers_are_children_of_one_server_and_start_in_no_time():
    first = sn.parallel.run(lambda comm: os.getppid(), workers=3)
    start = time.process_time(), time.monotonic()
    assert sn.parallel.run(lambda comm: os.getppid(), workers=3) == first and set(first) <= parents()
    assert len(set(first)) == 1 and time.process_time() - start[0] < 1


def found(comm):
    """What a worker inherits."""
    import resource

    with open("/proc/self/status") as file:
        mask = next(line for line in file if line.startswith("Umask"))
    names = "SCRATCHNET_FAIL", "SOMETHING"
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    return os.getcwd(), [os.environ.get(name) for name in names], mask, limit, os.sched_getaffinity(0)


def test_a_worker_inherits_what_its_program_has_changed(tmp_path, monkeypatch):
    import resource

    before, limits = sn.parallel.run(found, workers=1)[0], resource.getrlimit(resource.RLIMIT_CORE)
    mask = os.umask(0o027)
    try:
        assert before == (*found(None)[:2], f"Umask:\t{mask:04o}\n", *found(None)[3:])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SOMETHING", "new")
        monkeypatch.setenv("SCRATCHNET_FAIL", "never:1:1:raise")
        resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
        os.sched_setaffinity(0, {min(before[-1])})
        now = sn.parallel.run(found, workers=1)[0]
        assert now == found(None) and now[0] == str(tmp_path) and now[1] == ["never:1:1:raise", "new"]
        monkeypatch.delenv("SCRATCHNET_FAIL")
        assert sn.parallel.run(found, workers=1)[0] == found(None)
    finally:
        monkeypatch.undo()
        os.umask(mask)
        os.sched_setaffinity(0, before[-1])
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert sn.parallel.run(found, workers=1)[0] == before


def test_a_worker_writes_to_the_streams_that_its_program_has_now(capfd):
    def write(comm):
        print("out", comm.rank, flush=True)
        print("err", file=sys.stderr, flush=True)

    sn.parallel.run(write, workers=1)
    assert capfd.readouterr() == ("out 0\n", "err\n")


def test_workers_draw_numbers_of_their_own():
    def draw(comm):
        return np.random.rand(), random.random()  # noqa: NPY002

    drawn = [x for _ in range(2) for pair in sn.parallel.run(draw, workers=2) for x in pair]
    assert len({*drawn}) == 8


def compute(comm, dtype):
    """The kernels that this worker loaded and compiled, its threads, those that it started, and a product."""
    from scratchnet.native.compile import compile_stats

    before = len(os.listdir("/proc/self/task"))
    with sn.default_device("cpu"):
        product = sn.tensor(np.arange(1 << 16, dtype=dtype).reshape(256, 256)) @ sn.tensor(np.eye(256, dtype=dtype))
    started = len(os.listdir("/proc/self/task")) - before
    return compile_stats()[:2], sn.get_num_threads(), started, product.numpy().tobytes()


@pytest.mark.skipif(not JIT_ENABLED, reason="compiles nothing")
def test_a_server_loads_what_its_workers_needed_and_they_run_on_as_many_threads(monkeypatch):
    monkeypatch.setenv("SOMETHING", "its own server")
    sn.set_num_threads(MAX_THREADS)
    if numba.threading_layer() != "omp":
        pytest.skip("other threads would not survive a fork: nothing is loaded")
    (product,) = sn.parallel.run(lambda comm: compute(comm, np.float32)[-1], workers=1)
    assert sn.parallel.run(compute, np.float32, workers=1) == [((0, 0), MAX_THREADS, MAX_THREADS - 1, product)]
    assert sum(sn.parallel.run(compute, np.float64, workers=1)[0][0]) > 0  # others, which no worker needed yet


def test_a_server_compiles_nothing(tmp_path, monkeypatch):
    """Kernels that are not there are for a worker: nobody waits for a server."""
    monkeypatch.setattr(cache.session, "only_loads", True)
    with pytest.raises(cache.TakenError):
        cache.session.fetch("kernel", tmp_path / "kernel")
    assert not list(tmp_path.iterdir())  # nor did it ask for a lock


CLOSED = """
import os, signal, multiprocess, scratchnet as sn
from scratchnet.parallel.comm import server
server.ANSWERS = 2.0
os.close(0); os.close(2)
for _ in range(2):
    print(sn.parallel.run(lambda comm: comm.rank, workers=2))
    (child,) = (child for child in multiprocess.active_children() if child.name == server.NAME)
    os.kill(child.pid, signal.SIGSTOP)
"""


def test_a_program_may_have_closed_its_streams_and_starts_workers_and_ends_while_its_server_is_stopped():
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, text=True)
    assert done.stdout == "[0, 1]\n" * 2 and done.returncode == 0


# --- its end ----------------------------------------------------------------------------------------------------------


def test_workers_of_a_server_that_is_killed_are_dead_and_others_start():
    def kill_it(comm):
        comm.barrier()
        if comm.rank == 0:
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(sn.WorkerError, match=r"worker \d was killed by SIGKILL"):
        sn.parallel.run(kill_it, workers=2)
    assert sn.parallel.run(lambda comm: comm.rank, workers=2) == [0, 1]


def kill():
    """Servers, and with them workers: these do no further step, because a server that is joined has struck them."""
    killed = [child for child in multiprocess.active_children() if child.name == server.NAME]
    for child in killed:
        child.kill()
        child.join()
    return [child.exitcode == -signal.SIGKILL for child in killed]


def stop_as_a_worker_dies():
    (worker, *_) = (child.pid for child in multiprocess.active_children() if child.name != server.NAME)
    for pid in (stopped := parents()):
        os.kill(pid, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    return stopped


@pytest.mark.parametrize(("strike", "steps"), [(kill, (3, 4)), (stop_as_a_worker_dies, (3,))])
def test_a_run_whose_server_is_killed_or_stopped_goes_on_to_the_same_bytes(strike, steps, monkeypatch):
    monkeypatch.setattr(server, "ANSWERS", 2.0)

    def weights(workers, *callbacks):
        sn.manual_seed(0)
        model = sn.nn.MLP(4, 8, 2)
        parts = model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss()
        trainer = sn.Trainer(*parts, workers=workers, shards=4, progress=False, callbacks=callbacks)
        x = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
        trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, (x[:, 0] > 0).astype(int)), 8), epochs=2)
        return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    class Strike:
        def on_step_end(self, run):
            if run.step in steps:
                struck.append(strike())

    struck = []
    assert weights(2, Strike()) == weights(1)
    assert len(struck) == len(steps) and all(any(each) for each in struck)


def test_two_threads_may_forget_a_server_at_once(monkeypatch):
    is_closed, together, process = server.Server._is_closed, threading.Barrier(2), mock.Mock()

    def both_see_it_open(self):
        found = is_closed(self)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.3)
        return found

    own = server.Server(lambda serve, sock: process)
    monkeypatch.setattr(server.Server, "_is_closed", both_see_it_open)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: own.close(), range(2))) == [None] * 2
    process.close.assert_called_once()  # which may be called once alone


def test_a_server_without_workers_ends_after_a_while():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = launch.Process({}, launch._begin, (server.serve, theirs, None, 0.01), server.NAME, forks=False)
    process.start()
    theirs.close()
    assert ours.recv(1) == b""
    process.join()
    assert process.exitcode == 0
    ours.close()
    process.close()


def test_of_many_surroundings_the_newest_servers_stay_and_older_ones_end(monkeypatch):
    seen = []
    for value in ("a", "b", "c", "a"):
        monkeypatch.setenv("SOMETHING", value)
        ((names, parent),) = sn.parallel.run(lambda comm: (os.environ["SOMETHING"], os.getppid()), workers=1)
        assert names == value
        seen.append(parent)
    while set(seen) & parents() != set(seen[-server.MOST :]):
        time.sleep(0.01)


def test_a_server_that_is_to_end_does_so_after_its_workers(monkeypatch, caplog):
    def fit(workers, callbacks):
        sn.manual_seed(0)
        model, x = sn.nn.Linear(4, 2), np.ones((24, 4), np.float32)
        parts = model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss()
        trainer = sn.Trainer(*parts, workers=workers, shards=2, progress=False, callbacks=callbacks)
        trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, np.ones(24, int)), 4), epochs=1)
        return model.weight.detach().numpy().tobytes()

    class Meanwhile:
        def on_step_end(self, run):
            if run.step == 2:
                for value in "abc":
                    os.environ["SOMETHING"] = value
                    others.append(sn.parallel.run(lambda comm: os.getppid(), workers=1)[0])

    others = []
    monkeypatch.setenv("SOMETHING", "")
    assert fit(2, [Meanwhile()]) == fit(1, []) and len(set(others)) == 3 > server.MOST
    assert caplog.records == []  # no worker died


GONE = """
import os
import numpy as np
import scratchnet as sn
if __name__ == "__main__":
    model = sn.nn.Linear(4, 2)
    loader = sn.data.DataLoader(sn.data.TensorDataset(np.ones((8, 4), np.float32), np.ones(8, int)), 4)
    parts = model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss()
    model(sn.ones(1, 4))
    os.rmdir(os.getcwd())
    sn.Trainer(*parts, workers=2, shards=2, progress=False).fit(loader, epochs=1)
    print("fitted")
"""


def test_a_program_whose_folder_was_deleted_starts_workers(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    ended = subprocess.run([sys.executable, "-c", GONE], cwd=folder, capture_output=True, text=True)
    assert ended.stdout == "fitted\n", ended.stderr


def test_without_a_server_workers_start_afresh(monkeypatch):
    monkeypatch.setattr(server, "of_this_thread", lambda *args: (_ for _ in ()).throw(BlockingIOError(11, "no room")))
    assert sn.parallel.run(lambda comm: os.getppid(), workers=1) == [os.getpid()]
