"""Prints the SHA-256 of what one training saves, whoever starts its processes: all lines that come are the same.

    python scripts/bench/cluster_bits.py                      # what of Spark, Ray, Dask is installed; pods as root
    python scripts/bench/cluster_bits.py --only plain spark-cluster

The training is `python -m scratchnet train` with the flags below; the sum is of its last checkpoint: model, optimizer.
"""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_clusters import dask, ray, spark

from scratchnet.errors import ScratchnetError
from scratchnet.flags import flag, run_script
from scratchnet.parallel.clusters import hydra, processes
from scratchnet.parallel.clusters import spark as on_spark
from scratchnet.parallel.clusters.kubernetes import Plan
from scratchnet.testing.hosts import Hosts, reason_against_hosts
from scratchnet.testing.schedulers import Pods, SparkCluster, spark_session

WORDS = ("train", "--epochs", "2", "--batch-size", "256", "--hidden", "16", "--shards", "4", "--folder")
RANKS = 2


def train(comm: Any, folder: str) -> None:
    """The command, in a process that is a rank already."""
    from scratchnet.__main__ import main

    sys.argv = ["scratchnet", *WORDS, folder]
    with contextlib.redirect_stdout(io.StringIO()):
        main()


def call(folder: str, *flags: str, under: tuple[str, ...] = ()) -> None:
    """The command, in a process of its own, or in those that another program starts."""
    line = [*under, sys.executable, "-m", "scratchnet", *WORDS, folder, *flags]
    done = subprocess.run(line, env=os.environ | hydra.variables(), capture_output=True, text=True)
    if done.returncode:
        raise ScratchnetError(done.stderr.strip().splitlines()[-1])


def under_mpirun(folder: str) -> None:
    call(folder, under=(hydra.program(hydra.MPIEXEC), "-n", str(RANKS)))


def in_pods(folder: str) -> None:
    if reason := reason_against_hosts():
        raise ScratchnetError(reason)
    with Hosts(RANKS) as hosts, tempfile.TemporaryDirectory() as logs:
        Pods(hosts, Plan("image", (*WORDS, folder), machines=RANKS), Path(logs)).run()


@contextlib.contextmanager
def spark_on_executors() -> Iterator[Callable[..., Any]]:
    with (
        tempfile.TemporaryDirectory() as logs,
        SparkCluster(Path(logs)) as cluster,
        spark_session(cluster.master) as session,
    ):
        yield lambda *args, **options: on_spark.run(*args, spark=session, **options)


def by(scheduler: Callable[[], Any]) -> Callable[[str], None]:
    def do(folder: str) -> None:
        with scheduler() as run:
            run(train, folder, ranks=RANKS)

    return do


WAYS: dict[str, tuple[str, Callable[[str], None]]] = {
    "plain": ("one process", call),
    "pool": ("a pool of two workers", lambda folder: call(folder, "--workers", str(RANKS))),
    "mpirun": ("mpirun -n 2", under_mpirun),
    "processes": ("processes.run", by(lambda: contextlib.nullcontext(processes.run))),
    "spark": ("Spark, a local session", by(spark)),
    "spark-cluster": ("Spark, a master and two executors", by(spark_on_executors)),
    "ray": ("Ray", by(ray)),
    "dask": ("Dask", by(dask)),
    "pods": ("two pods, in network namespaces", in_pods),
}


@dataclass
class Config:
    """Print the SHA-256 of one training under each scheduler."""

    only: tuple[str, ...] = flag(tuple(WAYS), "which of them", list(WAYS))


def digest(folder: Path) -> str:
    newest = sorted(folder.glob("**/*.safetensors"))[-1]
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def main(config: Config) -> None:
    found = set()
    for way in config.only:
        name, do = WAYS[way]
        with tempfile.TemporaryDirectory() as folder:
            try:
                do(folder)
            except (ImportError, ScratchnetError) as error:
                said = f"not here: {error}".splitlines()[0]
            else:
                found.add(said := digest(Path(folder)))
        print(f"{name:<34} {said}", flush=True)
    if len(found) > 1:
        raise ScratchnetError(f"expected one SHA-256, got {len(found)}")


if __name__ == "__main__":
    run_script(main, Config)
