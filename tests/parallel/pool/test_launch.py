"""`run` with real processes and real signals: results in order, errors that name the rank, and nothing left behind."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import multiprocess
import numpy as np
import pytest
import workers
from multiprocess import connection
from residue import alive, no_residue

import scratchnet as sn
from scratchnet.native.compile import JIT_ENABLED
from scratchnet.parallel.comm import server
from scratchnet.parallel.comm.arena import Arena
from scratchnet.parallel.pool import launch
from scratchnet.parallel.pool.launch import Process, Workers, describe


@pytest.fixture(autouse=True)
def nothing_is_left():
    with no_residue():
        yield


def test_results_come_in_rank_order_and_functions_may_be_local():
    scale = 10

    def fn(comm, offset):
        return comm.rank * scale + offset, comm.size, float(comm.all_reduce(np.ones(3))[0])

    assert sn.parallel.run(fn, 5, workers=3) == [(5, 3, 3.0), (15, 3, 3.0), (25, 3, 3.0)]


def test_arguments_and_results_of_any_size_pass():
    big = np.arange(3_000_000)  # 24 MB: more than a pipe holds
    results = sn.parallel.run(lambda comm, x: x + comm.rank, big, workers=2)
    assert all((result == big + rank).all() for rank, result in enumerate(results))


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, None])
def test_a_number_of_workers_that_is_none_is_refused(count):
    with pytest.raises(sn.ConfigError, match="workers: expected an integer >= 1"):
        sn.parallel.run(print, workers=count)


def test_what_cannot_be_sent_is_refused_before_a_process_starts():
    generator = (i for i in range(3))
    with pytest.raises(sn.ConfigError, match=r"^run: expected a function and arguments that can be sent.*TypeError.*$"):
        sn.parallel.run(lambda comm: next(generator), workers=2)
    with pytest.raises(sn.ConfigError, match="expected a function, got 3"):
        sn.parallel.run(3, workers=2)


def test_a_result_that_cannot_be_sent_is_an_error_of_its_worker():
    with pytest.raises(sn.WorkerError, match="worker 0 raised TypeError: cannot pickle"):
        sn.parallel.run(lambda comm: (i for i in range(3)), workers=1)


@pytest.mark.parametrize("how", workers.ENDS)
def test_a_worker_that_ends_is_named_and_the_others_do_not_wait(how):
    _, message, number = workers.ENDS[how]
    start = time.monotonic()
    with pytest.raises(sn.WorkerError) as caught:
        sn.parallel.run(workers.ends, how, workers=2)
    assert str(caught.value) == message and caught.value.rank == 1 and caught.value.signal == number
    assert time.monotonic() - start < 20
    if how == "raise":
        assert 'raise ValueError("no such luck' in caught.value.traceback
        assert caught.value.__notes__ == [caught.value.traceback]
        assert "launch.py" not in caught.value.traceback


def test_unequal_calls_are_named_on_all_ranks():
    """Rank 1 of three calls something else; all ranks that wait are told who called what, and stay told."""
    names = [name for name in workers.CALLS if name != "all_reduce"]
    with Workers(3, workers.calls_differ, [Arena(3) for _ in names], names) as group:
        told = group.results(lambda: None)
    for k, name in enumerate(names):
        first = told[0][k][0]
        assert "ranks 0, 2 called all_reduce(float32 (4,), sum, auto); rank 1 " in first and "\n" not in first
        assert told[0][k] == told[2][k] == [first, first]
        if name == "return":
            assert told[1][k] == [] and "rank 1 had returned from its function" in first
        else:
            assert told[1][k] == [first, first]


def test_a_rank_that_returns_while_others_wait_is_named():
    with pytest.raises(sn.WorkerError, match=r"CollectiveError: .*rank 2 had returned from its function"):
        sn.parallel.run(workers.returns_early, workers=3)


def test_a_wait_in_a_collective_ends_at_the_time_limit():
    with pytest.raises(sn.WorkerError, match=r"worker 1 raised .*barrier\(\): rank 1 waited 0.5 s for rank 0"):
        sn.parallel.run(workers.waits_for_a_sleeper, workers=2, timeout=0.5)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "1"])
def test_a_time_limit_that_is_none_is_refused(timeout):
    with pytest.raises(sn.ConfigError, match=r"^run: timeout: expected a number in \(0, inf\], got .*"):
        sn.parallel.run(print, timeout=timeout)


def test_threads_start_workers_at_once_and_leave_the_process_as_it_was():
    main, before, found = sys.modules["__main__"], dict(os.environ), {}

    def start(i):
        found[i] = sn.parallel.run(lambda comm: i + comm.rank, workers=1, timeout=float("inf"))

    threads = [threading.Thread(target=start, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert sys.modules["__main__"] is main and dict(os.environ) == before, "not even meanwhile"
        time.sleep(0.001)
    assert found == {i: [i] for i in range(3)}


def test_what_python_passes_over_in_its_path_is_no_trouble(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, None, Path("."), 3])
    assert sn.parallel.run(lambda comm: comm.rank, workers=1) == [0]


def test_a_process_without_a_folder_has_workers(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert sn.parallel.run(lambda comm: comm.rank, workers=1) == [0]


@pytest.mark.parametrize(
    ("is_possible", "end"),
    [(True, "status 0 before its function returned"), (False, "an unknown status")],
    ids=["forked", "started afresh"],
)
def test_children_may_be_reaped_by_somebody_else(monkeypatch, is_possible, end):
    """As in a server that ignores SIGCHLD: the status of a process that it starts is nobody's."""
    monkeypatch.setattr(server, "is_possible", lambda: is_possible)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert sn.parallel.run(lambda comm: comm.rank, workers=1) == [0]
        with pytest.raises(sn.WorkerError, match=f"worker 0 ended with {end}"):
            sn.parallel.run(lambda comm: os._exit(0), workers=1)
    finally:
        signal.signal(signal.SIGCHLD, before)


class Lock:
    """One that notes that somebody wants it."""

    def __init__(self):
        self.lock, self.asked = threading.RLock(), threading.Event()

    def __enter__(self):
        self.asked.set()
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


@pytest.mark.parametrize("is_possible", [True, False], ids=["forked", "started afresh"])
def test_another_thread_that_looks_at_all_processes_takes_no_status_away(is_possible, monkeypatch):
    """It does when it starts one; here while the thread whose process it is takes the status."""
    monkeypatch.setattr(server, "is_possible", lambda: is_possible)
    ending = Process({}, launch._begin, (os._exit, 7), "scratchnet-worker-0")
    ending.start()
    looker, take, lock = threading.Thread(target=multiprocess.active_children), launch._Popen._status, Lock()

    def status(popen, flag):
        if looker.ident is None:
            lock.asked.clear()
            looker.start()
            while looker.is_alive() and not lock.asked.wait(0.01):
                pass
        return take(popen, flag)

    monkeypatch.setattr(ending._popen, "_taking", lock, raising=False)
    monkeypatch.setattr(launch._Popen, "_status", status)
    connection.wait([ending.sentinel])
    ending.join()
    looker.join()
    assert ending.exitcode == 7
    ending.close()


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def test_an_error_is_described_whatever_its_words_are():
    assert describe(Wordless())["message"] == "Wordless: (its __str__ raises)"
    long = describe(ValueError("x" * 50_000_000))
    assert len(long["message"]) < 2100 and " characters ... " in long["message"] and len(long["traceback"]) < 101_000
    assert describe(ValueError(""))["message"] == "ValueError: " and describe(ValueError("a\nb"))["message"].endswith(
        "a"
    )


WAITING = """
import signal
import scratchnet as sn

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
print(flush=True)
sn.parallel.run(lambda comm: signal.pause(), workers=3)
"""


def test_ctrl_c_while_workers_start_prints_one_traceback():
    """The terminal sends SIGINT to all processes, also to those that are just reading their libraries."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, "-c", WAITING], start_new_session=True, **pipes)
    parent.stdout.readline()
    while not Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().strip():
        assert parent.poll() is None
        time.sleep(0.001)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate()
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors


def test_a_worker_starts_no_workers():
    with pytest.raises(sn.WorkerError, match="expected a process that is no worker itself"):
        sn.parallel.run(lambda comm: sn.parallel.run(print, workers=1), workers=1)


def test_workers_share_the_cores():
    cores = len(os.sched_getaffinity(0))
    before = dict(os.environ)
    (first, second) = sn.parallel.run(workers.threads, workers=2)
    assert first[:2] == (max(1, cores // 2), str(max(1, cores // 2)))
    assert first == second, "also in how they hash texts"
    assert dict(os.environ) == before


def test_workers_share_the_threads_that_were_set():
    before = sn.get_num_threads()
    sn.set_num_threads(1)
    try:
        assert sn.parallel.run(workers.threads, workers=1)[0][:2] == (1, "1")
    finally:
        sn.set_num_threads(before)


@pytest.mark.skipif(not JIT_ENABLED, reason="without the JIT nothing is compiled")
def test_a_fresh_worker_compiles_nothing():
    assert sn.parallel.run(workers.compiled, workers=2) == [0, 0]


def test_a_worker_imports_no_more_than_it_needs():
    assert sn.parallel.run(workers.loaded_modules, workers=1) == [[]]


def test_a_worker_looks_through_its_imports_neither_at_its_start_nor_at_its_end():
    """That took 0.2 of 0.6 s of processor time; its collections go on as in any process."""

    def collections(comm):
        import gc

        return gc.isenabled(), gc.get_freeze_count() > 10_000, gc.get_threshold()[0] > 0

    assert sn.parallel.run(collections, workers=1) == [(True, True, True)]


# --- main programs of every kind --------------------------------------------------------------------------------------

PROGRAMS = Path(__file__).parents[2] / "programs"
UNGUARDED = (PROGRAMS / "launch_main.py").read_text()
body, found, start = UNGUARDED.partition("results = ")
GUARDED = body + "if __name__ == '__main__':\n" + textwrap.indent(found + start, "    ")
EXPECTED = (
    "main program runs\n[[Answer(value=10.0), child of Child(value=1.0)], [Answer(value=10.0), child of "
    "Child(value=1.0)]] {True} True\n"
)


def python(*arguments, text=None, cwd=None):
    environment = os.environ | {"SCRATCHNET_QUIET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("program", [UNGUARDED, GUARDED], ids=["without a guard", "with a guard"])
def test_a_script_runs_once_and_not_again_in_its_workers(tmp_path, program):
    (tmp_path / "script.py").write_text(program)
    done = python("script.py", cwd=tmp_path)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


def test_a_program_from_stdin_or_a_notebook_has_no_file_and_runs():
    assert python("-", text=UNGUARDED).stdout == EXPECTED


def test_an_interactive_prompt_runs_it():
    lines = (
        "import scratchnet as sn\nk = 7\ndef fn(comm):\n    return comm.rank + k\n\nsn.parallel.run(fn, workers=2)\n"
    )
    assert "[7, 8]" in python("-i", text=lines).stdout


def test_a_module_runs_with_dash_m(tmp_path):
    (tmp_path / "prog.py").write_text(UNGUARDED)
    assert python("-m", "prog", cwd=tmp_path).stdout == EXPECTED


FORKED = """
import multiprocessing, os, sys
import numpy as np
import scratchnet as sn

def weights(workers):
    sn.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    model = sn.nn.MLP(4, 8, 2)
    parts = model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss()
    trainer = sn.Trainer(*parts, workers=workers, shards=4, progress=False)
    trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, (x[:, 0] > 0).astype(int)), 8), epochs=1)
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

expected = weights(1)  # kernels ran before the fork, as in a web server that loads the application first
pid = os.fork()
if not pid:
    os._exit(0 if weights(2) == expected else 3)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
work = multiprocessing.get_context("fork").Process(
    target=lambda: sys.exit(0 if weights(2) == expected else 4), daemon=True)  # as a worker of a task queue
work.start(), work.join()
print(status, work.exitcode)
"""


def test_a_process_that_was_forked_after_kernels_ran_has_workers_too():
    assert python("-c", FORKED).stdout == "0 0\n"


LOOKS = """
import os
import multiprocess
from multiprocess import connection
from scratchnet.parallel.pool import launch

ending = launch.Process({}, launch._begin, (os._exit, 7), "scratchnet-worker-0")
ending.start()
connection.wait([ending.sentinel])
if not (pid := os.fork()):
    multiprocess.active_children()  # as when it starts one of its own
    os._exit(0)
os.waitpid(pid, 0)
ending.join()
print(ending.exitcode)
"""


def test_a_forked_process_takes_no_status_away_from_the_one_that_it_was_forked_from():
    assert python("-c", LOOKS).stdout == "7\n"


# --- the parent ends --------------------------------------------------------------------------------------------------


@pytest.fixture
def parent_and_workers():
    parent = subprocess.Popen(
        [sys.executable, PROGRAMS / "launch_parent.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    pids = [int(parent.stdout.readline()) for _ in range(3)]
    yield parent, pids
    for pid in (parent.pid, *pids):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    parent.communicate()


def gone_within(seconds, pids):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        os.sched_yield()
    return not any(map(alive, pids))


def test_workers_end_with_a_parent_that_is_killed_even_a_stopped_one(parent_and_workers):
    parent, pids = parent_and_workers
    os.kill(pids[1], signal.SIGSTOP)
    parent.kill()
    assert gone_within(2, pids)


def test_ctrl_c_ends_all_with_one_traceback(parent_and_workers):
    parent, pids = parent_and_workers
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    _, errors = parent.communicate()
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors
    assert gone_within(2, pids)


def test_a_system_without_room_for_processes_is_an_error_and_leaves_none(monkeypatch):
    from scratchnet.parallel.pool import launch

    original, started = launch.multiprocess.context.SpawnProcess.start, []

    def start(process):
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(process)
        original(process)

    monkeypatch.setattr(launch.multiprocess.context.SpawnProcess, "start", start)
    with pytest.raises(sn.WorkerError, match=r"worker 1 could not be started: .*temporarily unavailable; take fewer"):
        sn.parallel.run(print, workers=2)


def test_a_process_with_too_many_open_files_is_an_error_that_says_what_to_do(monkeypatch):
    pipes, original = [], connection.Pipe

    def pipe():
        if pipes:
            raise OSError(errno.EMFILE, "Too many open files")
        pipes.append(original())
        return pipes[0]

    monkeypatch.setattr(launch.connection, "Pipe", pipe)
    with pytest.raises(sn.WorkerError, match=r"worker 1 could not be started: .*open files; `ulimit -n 1024` allows"):
        sn.parallel.run(print, workers=2)
    assert all(end.closed for end in pipes[0])
