"""Schedulers on one machine, for tests and comparisons: a cluster of Spark, and the pods of a Job of Kubernetes.

with SparkCluster(folder) as cluster, spark_session(cluster.master) as session: ...     # a master and two workers
with PARTS["ray"](folder) as parts: ...                                                 # a part can go, and come
with Hosts(2) as hosts:
    statuses = Pods(hosts, plan, folder).run()                                  # as the manifest says, without it
"""

import contextlib
import functools
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..parallel.clusters import dask, pod, ray, spark
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


class SparkCluster:
    """A context: `master` is the address of a master with two workers of one core each, on the loopback.

    folder: for their logs and work. start: the words that start each worker, before its own command line, such as those
    of `own_disk`.
    """

    def __init__(self, folder: Path, start: tuple[str, ...] = ()):
        self.folder, self.start = folder, start
        with socket.create_server((LOOPBACK, 0)) as server:
            port = server.getsockname()[1]
        self.master, self.processes = f"spark://{LOOPBACK}:{port}", list[subprocess.Popen]()
        self._run("master.Master", "--port", str(port))

    def start_worker(self) -> None:
        """One more, which has come when this returns."""
        number = len(self.processes)
        limits = ["--cores", "1", "--memory", "1g", "--work-dir", str(self.folder / f"worker{number}")]
        self._run("worker.Worker", *limits, self.master, start=(*self.start, "env", f"{MACHINE}={number}"))
        deadline = time.monotonic() + START
        while len(re.findall("Registering worker", said := (self.folder / "log0").read_text())) < number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {number} workers of Spark within {START:.0f} s, the master says: {said}")
            time.sleep(0.1)

    def _run(self, name: str, *words: str, start: tuple[str, ...] = ()) -> None:
        import pyspark

        program = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
        line = [*start, program, f"org.apache.spark.deploy.{name}", "--host", LOOPBACK, "--webui-port", "0", *words]
        environment = {**os.environ, "SPARK_LOCAL_IP": LOOPBACK, "PYSPARK_PYTHON": sys.executable}
        with (self.folder / f"log{len(self.processes)}").open("w") as log:
            self.processes.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))

    def __enter__(self) -> "SparkCluster":
        try:
            self.start_worker()
            self.start_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(START)


@dataclass(frozen=True)
class Parts:
    """A cluster of two parts with a slot each, which count as machines. run: as in the module of its scheduler.

    lose: the second part is killed. come: another one comes.
    """

    run: Callable[..., list]
    lose: Callable[[], Any]
    come: Callable[[], Any]


@contextlib.contextmanager
def spark_parts(folder: Path) -> Iterator[Parts]:
    with SparkCluster(folder) as cluster, spark_session(cluster.master) as session:
        while spark.scheduler(session).free() < 2:
            time.sleep(0.2)
        yield Parts(functools.partial(spark.run, spark=session), cluster.processes[2].kill, cluster.start_worker)


@contextlib.contextmanager
def ray_parts(folder: Path) -> Iterator[Parts]:
    import ray as library
    from ray.cluster_utils import Cluster

    def add() -> Any:
        nodes.append(cluster.add_node(num_cpus=1, env_vars={MACHINE: f"{len(nodes)}", "PYTHONPATH": _python_path()}))

    cluster, nodes = Cluster(), list[Any]()
    try:
        add()
        library.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        add()
        yield Parts(ray.run, lambda: cluster.remove_node(nodes[1], allow_graceful=False), add)
    finally:
        library.shutdown()
        cluster.shutdown()


@contextlib.contextmanager
def dask_parts(folder: Path) -> Iterator[Parts]:
    from distributed import Client, LocalCluster

    def add() -> None:
        line = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
        line += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
        own = {**os.environ, MACHINE: f"{len(workers)}", "PYTHONPATH": _python_path()}
        with (folder / f"log{len(workers)}").open("w") as log:
            workers.append(subprocess.Popen(line, env=own, stdout=log, stderr=log))

    workers = list[subprocess.Popen]()
    with LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster, Client(cluster) as client:
        try:
            add()
            add()
            client.wait_for_workers(2, timeout=START)
            yield Parts(functools.partial(dask.run, client=client), workers[1].kill, add)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


PARTS = {"spark": spark_parts, "ray": ray_parts, "dask": dask_parts}


def own_disk(folder: Path) -> tuple[str, ...]:
    """Words before a command line: that program sees an empty disk at `folder`, as on a machine of its own. As root."""
    line = f'mount -t tmpfs none {shlex.quote(str(folder))} && exec "$@"'
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
