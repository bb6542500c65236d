"""Spark, Ray and Dask on this machine for the time of a test, and what each must do with a job."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ranks

from scratchnet.errors import ConfigError, WorkerError

START = 60.0  # seconds that a scheduler has to start


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
        with pytest.raises(WorkerError, match=r"\.run: rank [01] was lost: "):
            run(ranks.wait_long, str(folder), ranks=2, restarts=1)
    watcher.join()
    assert time.monotonic() - begin < START and len(seen) == 2 and ranks.gone(seen)


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


@contextlib.contextmanager
def spark(master="local[2]"):
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(master).config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.executor.cores", "1").config("spark.executor.memory", "512m")
    builder = builder.config("spark.executorEnv.PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    builder = builder.config("spark.sql.shuffle.partitions", "4")
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("FATAL")
    try:
        yield session
    finally:
        session.stop()


@contextlib.contextmanager
def spark_cluster(folder):
    """The address of a master with two workers of one core each, on the loopback."""
    import pyspark

    program = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    master = f"spark://127.0.0.1:{port}"
    worker = "org.apache.spark.deploy.worker.Worker"
    lines = [["org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]]
    for number in range(2):
        lines.append(
            [worker, "--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "1g", "--work-dir"]
        )
        lines[-1] += [str(folder / f"worker{number}"), master]
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    processes = []
    try:
        for line in lines:
            log = (folder / f"log{len(processes)}").open("w")
            processes.append(subprocess.Popen([program, *line], env=environment, stdout=log, stderr=log))
            log.close()
        deadline = time.monotonic() + START
        while len(re.findall("Registering worker", (folder / "log0").read_text())) < 2:
            assert time.monotonic() < deadline, (folder / "log0").read_text()
            time.sleep(0.1)
        yield master
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(START)
