"""Measures one job under each scheduler of this machine: seconds until its ranks compute, seconds of a step, seconds
from the death of a rank until all compute again, and its bits.

    python scripts/bench/bench_clusters.py                   # plain, the pool, mpiexec, and what schedulers are there
    python scripts/bench/bench_clusters.py --only large      # as root: a table of 2 GB, and 512 MB of memory for a rank

The baseline is MPICH's own mpiexec, with the same ranks. Schedulers take turns, and the best epoch of all turns counts.
"""

import contextlib
import hashlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.native.limits import cores
from scratchnet.parallel.clusters import hydra, processes

NET, BATCH, SAMPLES, EPOCHS = (784, 512, 512, 10), 256, 8192, 4
GROUP = Path("/sys/fs/cgroup/memory")  # of cgroup v1
NAMES = ("plain", "pool", "mpiexec", "processes", "spark", "ray", "dask")
FEATURES, PART = 64, 1 << 18  # of the large table, and its rows a file
BLOCK = 4096  # rows that a batch takes from one place: a row of its own place each would cost a page of the disk
LIMIT = 512 << 20  # bytes of memory for each rank of it


@dataclass
class Config:
    """Measure one job under each scheduler."""

    only: tuple[str, ...] = flag(NAMES, "what is measured; also: large")
    ranks: int = flag(2, "of the job")
    rounds: int = flag(3, "turns of each")
    gigabytes: float = flag(2.0, "of the large table")


class Timed(sn.data.DataLoader):
    """A loader that notes when epochs begin."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.begins: list[float] = []

    def batch_indices(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        self.begins.append(time.perf_counter())
        return super().batch_indices(epoch, start)


def job(comm: Any, workers: int = 1) -> dict[str, Any]:
    """When the function began, the seconds of the fastest step, and the digest of the parameters."""
    began = time.time()
    sn.set_num_threads(max(1, cores() // max(comm.size, workers)))
    sn.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, NET[0])).astype(np.float32)
    data = sn.data.TensorDataset(x, (x[:, :10].argmax(axis=1)).astype(np.int64))
    model = sn.nn.MLP(*NET)
    trainer = sn.Trainer(
        model, sn.optim.Adam(model.parameters()), sn.nn.CrossEntropyLoss(), shards=8, workers=workers, progress=False
    )
    loader = Timed(data, BATCH, shuffle=True)
    trainer.fit(loader, epochs=EPOCHS)
    loader.begins.append(time.perf_counter())
    state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    step = min(after - before for before, after in itertools.pairwise(loader.begins)) / (SAMPLES // BATCH)
    return {"began": began, "step": step, "digest": hashlib.sha256(state).hexdigest()[:16]}


def die_once(comm: Any, note: str) -> float:
    """The last rank kills itself at the first start; at the second: the seconds since then."""
    now, noted = time.time(), Path(note)
    comm.barrier()
    if noted.exists():
        return now - float(noted.read_text())
    comm.barrier()
    if comm.rank == comm.size - 1:
        noted.write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()
    raise AssertionError("unreachable")


def ranks_of_mpiexec(ranks: int) -> dict[str, Any]:
    """Plain mpiexec, whose ranks run `job`."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"import sys; sys.path[:0] = {sys.path!r}; import bench_clusters as b, json, scratchnet as sn; "
        code += "found = sn.parallel.run(lambda comm: b.job(comm) | {'rank': comm.rank})[0]; "
        code += f"open({folder!r} + '/' + str(found['rank']), 'w').write(json.dumps(found))"
        line = [hydra.program(hydra.MPIEXEC), "-n", str(ranks), sys.executable, "-c", code]
        subprocess.run(line, env=os.environ | hydra.variables(), check=True)
        return json.loads(Path(folder, "0").read_text())


@contextlib.contextmanager
def spark() -> Iterator[Callable[..., list]]:
    from pyspark.sql import SparkSession

    from scratchnet.parallel.clusters import spark

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
    yield lambda *args, **options: spark.run(*args, spark=session, **options)
    session.stop()


@contextlib.contextmanager
def ray() -> Iterator[Callable[..., list]]:
    import ray as library

    from scratchnet.parallel.clusters import ray

    library.init(include_dashboard=False, log_to_driver=False)
    yield ray.run
    library.shutdown()


@contextlib.contextmanager
def dask() -> Iterator[Callable[..., list]]:
    from distributed import Client, LocalCluster

    from scratchnet.parallel.clusters import dask

    options = {"n_workers": cores(), "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield lambda *args, **options: dask.run(*args, client=client, **options)


SCHEDULERS = {"processes": lambda: contextlib.nullcontext(processes.run), "spark": spark, "ray": ray, "dask": dask}


def once(name: str, ranks: int, run: Any) -> dict[str, Any]:
    """One start of the job: with the seconds until its function began."""
    start = time.time()
    if name == "plain":
        found = job(sn.parallel.SerialCommunicator())
    elif name == "pool":
        found = job(sn.parallel.SerialCommunicator(), workers=ranks)
    elif name == "mpiexec":
        found = ranks_of_mpiexec(ranks)
    else:
        found = run(job, ranks=ranks)[0]
    return found | {"start": found["began"] - start}


def compare(config: Config) -> None:
    with contextlib.ExitStack() as stack:
        runs: dict[str, Any] = {}
        for name in config.only:
            try:
                runs[name] = stack.enter_context(SCHEDULERS[name]()) if name in SCHEDULERS else None
            except ImportError as error:
                print(f"{name}: {error}")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
        for _ in range(config.rounds):
            for name, run in runs.items():
                found[name].append(once(name, config.ranks, run))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        lost = {
            name: max(run(die_once, f"{folder}/{name}", ranks=config.ranks, restarts=1))
            for name, run in runs.items()
            if run
        }
    base = min(each["step"] for each in found.get("mpiexec", [{"step": float("nan")}]))
    print(f"{'':<10} {'start s':>8} {'step ms':>8} {'of mpiexec':>10} {'restart s':>9}  sha256")
    for name, each in found.items():
        step, start = min(e["step"] for e in each), min(e["start"] for e in each)
        digests = ", ".join(sorted({e["digest"] for e in each}))
        again = lost.get(name, float("nan"))
        print(f"{name:<10} {start:8.2f} {1e3 * step:8.2f} {step / base:10.3f} {again:9.2f}  {digests}")


# --- a table larger than the memory of a rank -------------------------------------------------------------------------


def make_table(folder: Path, gigabytes: float) -> int:
    """Parquet files with so many bytes of numbers; returns their rows."""
    import pyarrow
    from pyarrow import parquet

    rows = int(gigabytes * 1e9) // (4 * FEATURES)
    for first in range(0, rows, PART):
        n = min(PART, rows - first)
        x = np.random.default_rng(first).standard_normal((n, FEATURES), np.float32)
        columns = {f"x{i}": x[:, i] for i in range(FEATURES)} | {"y": (x[:, 0] + x[:, 1] > 0).astype(np.int64)}
        parquet.write_table(
            pyarrow.table(columns),
            folder / f"{first:010}.parquet",
            row_group_size=1 << 15,
            compression="none",
            use_dictionary=False,
        )
    return rows


def large(comm: Any, source: str, store: str, groups: str) -> dict[str, Any]:
    """Fills the store and trains an epoch on it, in a control group that holds LIMIT bytes for this rank alone."""
    if groups:
        own = Path(groups, f"rank{comm.rank}")
        own.mkdir()
        (own / "memory.limit_in_bytes").write_text(str(LIMIT))
        (own / "cgroup.procs").write_text(str(os.getpid()))
    start = time.perf_counter()
    data = sn.data.from_folder(source, "y", store=store)
    comm.barrier()
    filled = time.perf_counter() - start
    scale = sn.data.Standardize.fit(data, comm=comm)
    sn.manual_seed(0)
    model = sn.nn.MLP(FEATURES, 64, 2)
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), 0.05, momentum=0.9), sn.nn.CrossEntropyLoss(), shards=8, progress=False
    )
    blocks = np.random.default_rng(0).permutation(-(-len(data) // BLOCK))  # in random order; rows within stay in theirs
    order = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    trainer.fit(sn.data.DataLoader(data.map(scale), BLOCK, sampler=order[order < len(data)]), epochs=1)
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if line[:3] == "Rss")
    return {
        "seconds to fill": round(filled, 1),
        "seconds in all": round(time.perf_counter() - start, 1),
        "private MB": int(status["RssAnon"].split()[0]) >> 10,
        "most resident MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "most in its group MB": int((own / "memory.max_usage_in_bytes").read_text()) >> 20 if groups else None,
        "killed for memory": (own / "memory.oom_control").read_text().split()[-1] if groups else None,
        "digest": hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()[:16],
    }


def measure_large(config: Config) -> None:
    with tempfile.TemporaryDirectory(prefix="scratchnet-large-") as folder:
        source, groups = Path(folder, "source"), Path(GROUP, f"scratchnet{os.getpid()}")
        source.mkdir()
        rows = make_table(source, config.gigabytes)
        size = sum(file.stat().st_size for file in source.iterdir())
        print(f"{rows} rows, {rows * FEATURES * 4 / 1e9:.2f} GB as numbers, {size / 1e9:.2f} GB of Parquet files")
        try:
            groups.mkdir()
        except OSError:
            print("no control group of cgroup v1 can be made here: memory is not limited")
            groups = Path()
        try:
            name = str(groups) if groups.name else ""
            for found in processes.run(large, str(source), f"{folder}/store", name, ranks=config.ranks):
                print(found)
        finally:
            for own in groups.glob("rank*") if groups.name else ():
                own.rmdir()
            if groups.name:
                groups.rmdir()


def main(config: Config) -> None:
    known = {"plain", "pool", "mpiexec", "large", *SCHEDULERS}
    if unknown := set(config.only) - known:
        raise ConfigError(f"expected --only of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    if "large" in config.only:
        measure_large(config)
    if rest := tuple(name for name in config.only if name != "large"):
        config.only = rest
        compare(config)


if __name__ == "__main__":
    run_script(main, Config)
