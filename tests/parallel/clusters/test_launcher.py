"""The launcher, on plain processes: tasks become ranks of one MPI job, whatever happens to them."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import ranks
from residue import no_residue
from sizes import THOROUGH

from scratchnet.errors import ConfigError, WorkerError
from scratchnet.parallel.clusters import launcher, processes, task

pytestmark = ranks.needs_hydra


def test_results_come_in_rank_order_and_what_ranks_print_comes_here(capfd, monkeypatch):
    monkeypatch.setenv("OF_THE_DRIVER", "1")
    local = 7

    def talk(comm, text):
        print(f"{text} of rank {comm.rank}")
        shared = os.environ["MPI_LOCALNRANKS"]
        return local + comm.rank, comm.size, type(comm).__name__, shared

    with no_residue():
        found = processes.run(talk, "words", ranks=3, machines=2)
    # The tasks of a machine follow each other: 0 and 2 on the first, whose ranks share memory, 1 on the other.
    assert found == [(7 + rank, 3, "MpiCommunicator", "2" if rank < 2 else "1") for rank in range(3)]
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == [f"words of rank {rank}" for rank in range(3)]


def test_a_restart_after_a_death_has_the_bytes_of_one_process_on_the_slots_that_are_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launcher, "RECOVER", 0.0)
    slots = iter([2, 1])
    shrinking = dataclasses.replace(ranks.in_threads(), free=lambda: next(slots))
    job = ranks.trained, (str(tmp_path), "shard.written:7:1:SIGKILL")
    with no_residue():
        found = launcher.run(shrinking, *job, ranks=2, restarts=1, at_least=1)
    assert found == ranks.expected(1)
    assert "threads.run: rank 1 was killed by SIGKILL; restart 1 of 1" in capsys.readouterr().err


def test_ranks_end_with_their_driver(tmp_path):
    code = "import sys, ranks; from scratchnet.parallel.clusters import processes; "
    code += "processes.run(ranks.wait_long, sys.argv[1], ranks=2)"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=path) as driver:
        started = ranks.processes_in(tmp_path, 2)
        driver.kill()
    assert ranks.gone(started)


def test_an_exception_of_a_rank_comes_with_its_traceback_and_is_not_tried_again():
    def unlucky(comm):
        if comm.rank == 1:
            raise ValueError("no such luck")
        comm.barrier()

    with (
        no_residue(),
        pytest.raises(WorkerError, match=r"^threads.run: rank 1 raised ValueError: no such luck") as e,
    ):
        launcher.run(ranks.in_threads(), unlucky, (), 2, restarts=3)
    assert e.value.rank == 1 and 'raise ValueError("no such luck")' in e.value.traceback


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM] if THOROUGH else [signal.SIGKILL])
def test_a_killed_task_ends_all_ranks(tmp_path, number):
    """Of the second of two machines: the task, two generations above its rank."""

    def kill():
        pids = ranks.processes_in(tmp_path, 2)
        started.extend(pids)
        os.kill(ranks.parent(ranks.parent(pids[0])), number)

    started = []
    killer = threading.Thread(target=kill)
    killer.start()
    with no_residue(), pytest.raises(WorkerError, match=r"rank (0 or 1|[01]) was lost: "):
        processes.run(ranks.wait_long, str(tmp_path), ranks=2, machines=2)
    killer.join()
    assert ranks.gone(started)


def test_who_cancels_the_tasks_ends_all_ranks_and_wants_no_restart(tmp_path):
    """The ranks that end are no reason, though Hydra then reports one that SIGTERM killed."""

    def tasks(do, n):
        with contextlib.suppress(WorkerError):  # of those that the driver's end takes by surprise
            base.collect(do, n)

    def collect(do, n):
        threads.append(threading.Thread(target=tasks, args=(do, n)))
        threads[0].start()
        started.extend(ranks.processes_in(tmp_path, 2))
        raise RuntimeError("somebody has cancelled it")

    started, threads, base = [], [], ranks.in_threads()
    cancelled = dataclasses.replace(base, collect=collect)
    with no_residue():
        with pytest.raises(WorkerError, match=r"rank 0 was lost: RuntimeError: somebody has cancelled it$"):
            launcher.run(cancelled, ranks.wait_long, (str(tmp_path),), 2, restarts=1)
        threads[0].join(ranks.END)
    assert ranks.gone(started)


def few(free):
    return launcher.Scheduler("processes", "127.0.0.1", lambda: free, lambda do, n: [], lambda: None)


def test_what_cannot_start_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(launcher, "SETTLE", 0.0)
    with pytest.raises(
        ConfigError, match=r"processes.run: expected 3 free slots, one for each rank, found 2; ask for fewer"
    ):
        launcher.run(few(2), print, (), 3)
    with pytest.raises(
        ConfigError,
        match=r"can be sent, got .*<lambda>: TypeError: cannot pickle .generator. object, in .*stream; make it in",
    ):
        stream = (line for line in "text")
        launcher.run(few(2), lambda comm: stream, (), 2)
    with pytest.raises(WorkerError, match=r"expected 2 tasks to call this process before the others ended, got 0"):
        launcher.run(few(2), print, (), 2)


def test_a_restart_waits_for_the_least_number_of_slots_longer_than_for_all(monkeypatch):
    slots = iter([0, 1])
    back = dataclasses.replace(few(2), free=lambda: next(slots))
    assert launcher._slots(back, most=2, least=1, patience=0.0, limit=60.0) == 1
    with pytest.raises(ConfigError, match="expected 3 free slots, one for each rank, found 2"):
        launcher._slots(few(2), most=4, least=3, patience=60.0, limit=0.0)


def test_a_scheduler_that_has_gone_is_one_line():
    def free():
        raise ConnectionError("nobody there\n  stack")

    gone = dataclasses.replace(few(2), free=free)
    words = "processes.run: expected a scheduler that answers, got ConnectionError: nobody there"
    with pytest.raises(ConfigError, match=f"^{words}$"):
        launcher.run(gone, print, (), 2)


def test_of_ranks_that_end_without_a_word_none_is_accused():
    def end(comm):
        if comm.rank:
            os._exit(0)
        comm.barrier()

    with pytest.raises(WorkerError, match=r"^threads.run: rank 0 or 1 ended before its function returned"):
        launcher.run(ranks.in_threads(), end, (), 2)


def test_another_version_on_a_machine_is_named(monkeypatch):
    here = {"host": "there", **task.versions()}
    assert task.misfit([here]) is None
    assert re.fullmatch(r"expected python .* on there, as here, got 2.7", task.misfit([here, here | {"python": "2.7"}]))
    assert re.fullmatch(r"expected mpich .* on there, as here, got none", task.misfit([here, here | {"mpich": ""}]))
    monkeypatch.setattr(launcher, "misfit", lambda hellos: f"expected others than {len(list(hellos))}")
    with pytest.raises(ConfigError, match=r"^threads.run: expected others than 2$"):
        launcher.run(ranks.in_threads(), print, (), 2)


def test_another_mpi_than_hydras_is_named(monkeypatch):
    monkeypatch.setenv("MPI4PY_MPIABI", "openmpi")  # mpi4py takes Open MPI's library, if there is one
    with pytest.raises(
        WorkerError, match=r"rank \d raised ConfigError: MPI: (expected 2 ranks|needs mpi4py and an MPI)"
    ):
        launcher.run(ranks.in_threads(), print, (), 2)
