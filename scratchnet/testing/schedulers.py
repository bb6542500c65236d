"""Schedulers on one machine, for tests and comparisons: a cluster of Spark, and the pods of a Job of Kubernetes.

with spark_cluster(folder) as master, spark_session(master) as session: ...     # a master and two workers
with Hosts(2) as hosts:
    statuses = Pods(hosts, plan, folder).run()                                  # as the manifest says, without it
"""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..parallel.clusters import pod
from ..parallel.clusters.kubernetes import Plan, job
from ..parallel.clusters.task import MACHINE
from .hosts import Hosts

START = 120.0  # seconds that a scheduler may take to start, on a busy machine
END = 300.0  # and pods to end
LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def spark_session(master: str = "local[2]") -> Iterator[Any]:
    """A session of Spark, whose executors have one core each and this process's Python and modules."""
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(master).config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", LOOPBACK).config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.executor.cores", "1").config("spark.executor.memory", "512m")
    builder = builder.config("spark.executorEnv.PYTHONPATH", _python_path())
    builder = builder.config("spark.sql.shuffle.partitions", "4")
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("FATAL")
    try:
        yield session
    finally:
        session.stop()


@contextlib.contextmanager
def spark_cluster(folder: Path, start: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of a master with two workers of one core each, on the loopback. folder: for their logs and work.

    start: the words that start each worker, before its own command line, such as those of `own_disk`.
    """
    import pyspark

    program = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    deploy, listen = "org.apache.spark.deploy", ["--host", LOOPBACK, "--webui-port", "0"]
    master = f"spark://{LOOPBACK}:{port}"
    lines = [[program, f"{deploy}.master.Master", *listen, "--port", str(port)]]
    for number in range(2):
        limits = ["--cores", "1", "--memory", "1g", "--work-dir", str(folder / f"worker{number}")]
        lines.append([*start, program, f"{deploy}.worker.Worker", *listen, *limits, master])
    environment = {**os.environ, "SPARK_LOCAL_IP": LOOPBACK, "PYSPARK_PYTHON": sys.executable}
    processes: list[subprocess.Popen] = []
    try:
        for line in lines:
            with (folder / f"log{len(processes)}").open("w") as log:
                processes.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
        deadline = time.monotonic() + START
        while len(re.findall("Registering worker", said := (folder / "log0").read_text())) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected two workers of Spark within {START:.0f} s, the master says: {said}")
            time.sleep(0.1)
        yield master
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(START)


def own_disk(folder: Path) -> tuple[str, ...]:
    """Words before a command line: that program sees an empty disk at `folder`, as on a machine of its own. As root."""
    line = f'mount -t tmpfs none {shlex.quote(str(folder))} && export {MACHINE}=$$ && exec "$@"'
    return "unshare", "--mount", "sh", "-c", line, "sh"


def pod_of(plan: Plan, index: int, address: str) -> tuple[list[str], dict[str, str]]:
    """(command line, environment) of a pod, as Kubernetes makes them from the manifest of a Job."""
    _, manifest = job(plan)
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    told = {entry["name"]: entry.get("value", "the uid of this job") for entry in container["env"]}
    told |= {pod.INDEX: str(index), pod.DRIVER: address, pod.WAIT: "60"}
    told |= {"UCX_TLS": "self,tcp"}  # else MPICH finds that all namespaces are one machine, and uses its memory
    return container["command"], {**os.environ, **told, "PYTHONPATH": _python_path(), "SCRATCHNET_QUIET": "1"}


class Pods:
    """The pods of a plan, each on a host; one that ends with another status than 0 starts again, as `OnFailure` says.

    folder: for what they print, pod0.log and so on.
    """

    def __init__(self, hosts: Hosts, plan: Plan, folder: Path):
        self.hosts, self.plan, self.folder, self.statuses = hosts, plan, folder, list[int]()
        self.pods = [self._start(index) for index in range(plan.machines)]

    def _start(self, index: int) -> subprocess.Popen:
        (python, *words), environment = pod_of(self.plan, index, self.hosts.addresses[0])
        assert python == "python"
        space = ["ip", "netns", "exec", f"{self.hosts.name}-{index + 1}"]
        with (self.folder / f"pod{index}.log").open("a") as log:
            return subprocess.Popen([*space, sys.executable, *words], env=environment, stdout=log, stderr=log)

    def run(self, disturb: Callable[["Pods"], bool] = lambda pods: True) -> list[int]:
        """Until all have ended with status 0; returns the other statuses. disturb: is called until it returns True."""
        deadline, done, disturbed = time.monotonic() + END, set[int](), False
        while len(done) < len(self.pods):
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected pods to end within {END:.0f} s, they say: {self.said()}")
            for index, process in enumerate(self.pods):
                if index not in done and process.poll() is not None:
                    if process.returncode == 0:
                        done.add(index)
                    else:
                        self.statuses.append(process.returncode)
                        self.pods[index] = self._start(index)
            disturbed = disturbed or disturb(self)
            time.sleep(0.02)
        return self.statuses

    def said(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.folder.glob("*.log")}


def _python_path() -> str:
    return os.pathsep.join(filter(None, sys.path))
