"""What each scheduler must do with a job."""

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ranks

from scratchnet.errors import ConfigError, WorkerError
from scratchnet.parallel.clusters import spark
from scratchnet.testing.schedulers import START


def check_contract(run, tmp_path, capsys):
    """What every scheduler does, on two ranks."""
    assert run(ranks.trained, ranks=2) == ranks.expected(2)
    folder = tmp_path / "run"
    found = run(ranks.trained, str(folder), "shard.written:7:1:SIGKILL", ranks=2, restarts=1)
    assert found == ranks.expected(2)
    assert "rank 1 was killed by SIGKILL; restart 1 of 1" in capsys.readouterr().err
    with pytest.raises(WorkerError, match=r"\.run: rank 0 raised ValueError: no such luck"):
        run(unlucky, ranks=2)
    with pytest.raises(ConfigError, match=r"\.run: expected 50 free slots, one for each rank, found 2; ask for fewer"):
        run(ranks.trained, ranks=50)
    assert run(talk, ranks=2) == [0, 1]
    assert sorted(capsys.readouterr().out.split("\n")[-3:]) == ["", "rank 0 talks", "rank 1 talks"]


def unlucky(comm):
    if comm.rank == 0:
        raise ValueError("no such luck")
    comm.barrier()


def talk(comm):
    print(f"rank {comm.rank} talks")
    return comm.rank


def check_loss(run, tmp_path, lose, comes_back=True):
    """`lose(pids)` takes a part of the cluster while ranks run: they all end, and start again where it comes back."""
    folder, seen = Path(tempfile.mkdtemp(dir=tmp_path)), []

    def watch():
        seen.extend(ranks.processes_in(folder, 2, START))
        (folder / ranks.AGAIN).touch()
        lose(seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.monotonic()
    if comes_back:
        assert run(ranks.wait_long, str(folder), ranks=2, restarts=1) == ranks.expected(2)
    else:
        with pytest.raises(WorkerError, match=r"\.run: rank (0 or 1|[01]) was lost: "):
            run(ranks.wait_long, str(folder), ranks=2, restarts=1)
    watcher.join()
    assert time.monotonic() - begin < START and len(seen) == 2 and ranks.gone(seen)


def wait_for_slots(session, count=2):
    """Until the executors of a session of Spark have so many free slots."""
    deadline = time.monotonic() + START
    while spark.scheduler(session).free() < count:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def ancestor(pid, words):
    """The nearest process above with these words in its command line."""
    while pid > 1:
        pid = ranks.parent(pid)
        if words in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
            return pid
    raise AssertionError(f"no process above has {words!r}")


def lose_task(pids):
    """Kills the process that started the proxy of a rank."""
    os.kill(ranks.parent(ranks.parent(pids[0])), signal.SIGKILL)
