"""Measures one job under each scheduler of this machine: seconds until its ranks compute, seconds of a step, seconds
from the death of a rank until all compute again, and its bits.

    python scripts/bench/bench_clusters.py                   # plain, the pool, mpiexec, and what schedulers are there
    python scripts/bench/bench_clusters.py --only restarts   # what the death of a rank costs, by where checkpoints are
    python scripts/bench/bench_clusters.py --only large      # as root: a table of 2 GB, and 512 MB of memory for a rank
    python scripts/bench/bench_clusters.py --only links      # as root: two hosts, by the speed of the link between them

The baseline is MPICH's own mpiexec, with the same ranks. All jobs are alive at once and train an epoch in turn. A step
is compared with that of mpiexec's epoch beside it: the median of these ratios, and then of all starts, because one
start in four or five is a sixth slower to its end, whoever started it: `again`, a second job of mpiexec, shows it.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import json
import math
import os
import resource
import signal
import statistics
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
from scratchnet.parallel.clusters import hydra, launcher, processes
from scratchnet.testing.hosts import Hosts, reason_against_hosts
from scratchnet.testing.schedulers import spark_session

NET, BATCH, SAMPLES = (784, 512, 512, 10), 256, 8192
RATES = (1e8, 1e9, 1e10, None)
WARM = 3  # epochs that do not count: a Java machine compiles itself for a second
PATIENCE = 60.0  # seconds that a job waits for its turn
GROUP = Path("/sys/fs/cgroup/memory")  # of cgroup v1
NAMES = ("plain", "pool", "mpiexec", "again", "processes", "spark", "ray", "dask")
FEATURES, PART = 64, 1 << 18  # of the large table, and its rows a file
BLOCK = 4096  # rows that a batch takes from one place: a row of its own place each would cost a page of the disk
LIMIT = 512 << 20  # bytes of memory for each rank of it


@dataclass
class Config:
    """Measure one job under each scheduler."""

    only: tuple[str, ...] = flag(NAMES, "what is measured; also: restarts, links, large")
    ranks: int = flag(2, "of the job")
    rounds: int = flag(5, "starts of each")
    epochs: int = flag(12, "that each trains, in turn with the others")
    gigabytes: float = flag(2.0, "of the large table")


class Turns:
    """Jobs that are alive at the same time train one epoch each in turn, so that all of them meet the same machine.

    word: a file with the number of the turn, an int64; "" for a job that is alone. counts: does this process end turns?
    seconds: of each epoch of this job, number `number` of `count`.
    """

    def __init__(self, word: str, number: int, count: int, counts: bool):
        self.turn = np.memmap(word, np.int64, "r+") if word else np.zeros(1, np.int64)
        self.next, self.number, self.count, self.counts = number, number, count, counts
        self.began, self.seconds = 0.0, list[float]()

    def begin(self) -> None:
        self.end()
        self._wait_for(self.next)
        self.next, self.began = self.next + self.count, time.perf_counter()

    def end(self) -> None:
        if self.began:
            self.seconds.append(time.perf_counter() - self.began)
            self.turn[0] += self.counts
            self.began = 0.0

    def leave(self) -> None:
        """Waits for the last epoch of all jobs: processes that end take the cores from those that still train."""
        self.end()
        self._wait_for(self.next - self.number)

    def _wait_for(self, turn: int) -> None:
        late = time.monotonic() + PATIENCE
        while self.turn[0] < turn:
            if time.monotonic() > late:
                raise TimeoutError(f"turn {turn} has not come within {PATIENCE:.0f} s")
            time.sleep(1e-3)

    def __deepcopy__(self, memo: dict) -> "Turns":  # a Trainer copies its loader
        return self


class Timed(sn.data.DataLoader):
    """A loader whose epochs begin in turn."""

    turns: Turns

    def batch_indices(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        self.turns.begin()
        return super().batch_indices(epoch, start)


def job(
    comm: Any, word: str = "", number: int = 0, count: int = 0, epochs: int = 4, workers: int = 1
) -> dict[str, Any]:
    """Seconds of a step, for each epoch, and the digest of the parameters. word, number, count: see Turns."""
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
    loader.turns = Turns(word, number, count, bool(word) and comm.rank == 0)
    trainer.fit(loader, epochs=epochs)
    loader.turns.leave()
    state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    steps = [seconds / (SAMPLES // BATCH) for seconds in loader.turns.seconds]
    return {"steps": steps, "digest": hashlib.sha256(state).hexdigest()[:16]}


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


def now(comm: Any) -> float:
    comm.barrier()
    return time.time()


def mpiexec(fn: Callable, *args: Any, ranks: int) -> list:
    """Plain mpiexec, whose ranks run a function of this file; its results, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"import sys; sys.path[:0] = {sys.path!r}; import bench_clusters as b, json, scratchnet as sn\n"
        code += f"def run(comm): json.dump(b.{fn.__name__}(comm, *{args!r}), open(f'{folder}/{{comm.rank}}', 'w'))\n"
        line = [hydra.program(hydra.MPIEXEC), "-n", str(ranks), sys.executable, "-c", code + "sn.parallel.run(run)"]
        subprocess.run(line, env=os.environ | hydra.variables(), check=True)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(ranks)]


@contextlib.contextmanager
def spark() -> Iterator[Callable[..., list]]:
    from scratchnet.parallel.clusters import spark

    with spark_session(f"local[{cores()}]") as session:
        yield lambda *args, **options: spark.run(*args, spark=session, **options)


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


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "mpiexec": lambda: contextlib.nullcontext(mpiexec),
    "again": lambda: contextlib.nullcontext(mpiexec),
    "processes": lambda: contextlib.nullcontext(processes.run),
    "spark": spark,
    "ray": ray,
    "dask": dask,
}
HERE = {"plain": 1, "pool": 0}  # without a launcher: the workers, 0 for as many as there are ranks


def compare(config: Config) -> None:
    one, ranks = sn.parallel.SerialCommunicator(), config.ranks
    with contextlib.ExitStack() as stack:
        runs: dict[str, Callable[..., list]] = {}
        for name in filter(SCHEDULERS.get, config.only):
            try:
                runs[name] = stack.enter_context(SCHEDULERS[name]())
            except ImportError as error:
                print(f"{name}: {error}")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        found = {
            name: job(one, epochs=config.epochs, workers=HERE[name] or ranks) for name in config.only if name in HERE
        }
        starts: dict[str, list[float]] = {name: [] for name in runs}
        ratios: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(config.rounds):
            for name, run in runs.items():
                begin = time.time()
                starts[name].append(max(run(now, ranks=ranks)) - begin)
            order = dict(reversed(runs.items())) if number % 2 else runs  # the first one has the machine as it starts
            side_by_side = in_turn(order, f"{folder}/turn{number}", config)
            found |= side_by_side
            for name in runs if "mpiexec" in runs else ():
                pairs = zip(side_by_side[name]["steps"], side_by_side["mpiexec"]["steps"], strict=True)
                ratios[name].append(statistics.median([own / base for own, base in pairs][WARM:]))
            shown = ", ".join(f"{name} {each[-1]:.3f}" for name, each in ratios.items() if each)
            print(f"start {number + 1} of {config.rounds}: steps beside those of mpiexec: {shown}", flush=True)
        lost = {
            name: max(run(die_once, f"{folder}/{name}", ranks=ranks, restarts=1))
            for name, run in runs.items()
            if run is not mpiexec
        }
    print(f"{'':<10} {'start s':>8} {'step ms':>8} {'of mpiexec, its range':>21} {'restart s':>9}  sha256")
    nothing = [math.nan]
    for name in filter(found.get, config.only):
        step = 1e3 * statistics.median(found[name]["steps"][WARM:])
        ratio = ratios.get(name) or nothing
        shown = f"{statistics.median(ratio):7.3f} {min(ratio):6.3f} {max(ratio):6.3f}"
        start, again = min(starts.get(name, nothing)), lost.get(name, math.nan)
        print(f"{name:<10} {start:8.2f} {step:8.2f} {shown} {again:9.2f}  {found[name]['digest']}")


def in_turn(runs: dict[str, Callable[..., list]], word: str, config: Config) -> dict[str, dict[str, Any]]:
    """What `job` returns under each launcher: all are alive at the same time."""
    np.zeros(1, np.int64).tofile(word)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(runs))) as pool:
        jobs = {
            name: pool.submit(run, job, word, number, len(runs), config.epochs, ranks=config.ranks)
            for number, (name, run) in enumerate(runs.items())
        }
    return {name: each.result()[0] for name, each in jobs.items()}


# --- what a death costs -----------------------------------------------------------------------------------------------


class Death:
    """Kills rank 0 after step `step`, and when that step is done again notes the seconds that were lost."""

    def __init__(self, note: str, step: int):
        self.note, self.step, self.passed = Path(note), step, list[float]()

    def on_step_end(self, run: Any) -> None:
        if run.step == self.step and not self.note.exists():
            self.note.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if run.step >= self.step:
            self.passed.append(time.time())


def resumed(comm: Any, folder: str, every: int, step: int) -> tuple[float, float]:
    """(seconds lost by a death after step `step`, seconds of a step), with a checkpoint every `every` steps."""
    death = Death(f"{folder}/death", step)
    model = sn.nn.MLP(*NET)
    trainer = sn.Trainer(
        model, sn.optim.Adam(model.parameters()), sn.nn.CrossEntropyLoss(), shards=8, progress=False,
        folder=f"{folder}/run", save_every=every, callbacks=[death],
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(SAMPLES, NET[0])).astype(np.float32)
    data = sn.data.TensorDataset(x, (x[:, :10].argmax(axis=1)).astype(np.int64))
    trainer.fit(sn.data.DataLoader(data, BATCH), epochs=-(-2 * step // (SAMPLES // BATCH)), resume="auto")
    if comm.rank:
        return math.nan, math.nan
    begin, *_, end = death.passed
    return begin - float(death.note.read_text()), (end - begin) / (len(death.passed) - 1)


def restarts(config: Config) -> None:
    print(f"{'checkpoint every':>16} {'in':>10} {'lost s':>8} {'step ms':>8}")
    for every in (8, 64):
        for place in (None, "/dev/shm"):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                lost, step = processes.run(resumed, folder, every, 127, ranks=config.ranks, restarts=1)[0]
            print(f"{every:>16} {place or tempfile.gettempdir():>10} {lost:8.2f} {1e3 * step:8.2f}", flush=True)


# --- links ------------------------------------------------------------------------------------------------------------


def on_host(name: str, do: Callable[[int], Any], host: int) -> Any:
    """The calling thread, and what it starts, moves to the network namespace of a host, to do what is asked."""
    with Path(f"/run/netns/{name}-{host + 1}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {file.name}")
    os.environ["UCX_TLS"] = "self,tcp"  # else MPICH finds that both are one machine, and uses its memory
    return do(host)


def links(config: Config) -> None:
    """The launcher, with a host for each rank."""
    if reason := reason_against_hosts():
        print(f"links: skipped: {reason}")
        return
    count, base = config.ranks, processes.scheduler(config.ranks)
    print(f"{count} hosts, a rank each\n{'link, Mbit/s':>12} {'step ms':>8}  sha256")
    with Hosts(count) as hosts:
        hosts_of_tasks = dataclasses.replace(
            base,
            address=hosts.addresses[0],
            collect=lambda do, n: base.collect(functools.partial(on_host, hosts.name, do), n),
        )
        with concurrent.futures.ThreadPoolExecutor(1, initializer=on_host, initargs=(hosts.name, str, 0)) as first_host:
            for rate in RATES:
                hosts.limit(rate)
                asked = first_host.submit(launcher.run, hosts_of_tasks, job, ("", 0, 0, 2), count)
                found, name = asked.result()[0], "unlimited" if rate is None else f"{rate / 1e6:.0f}"
                print(f"{name:>12} {1e3 * min(found['steps'][1:]):8.1f}  {found['digest']}", flush=True)


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


MORE = {"large": measure_large, "links": links, "restarts": restarts}


def main(config: Config) -> None:
    known = {*MORE, *HERE, *SCHEDULERS}
    if unknown := set(config.only) - known:
        raise ConfigError(f"expected --only of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    for name in MORE.keys() & set(config.only):
        MORE[name](config)
    if rest := tuple(name for name in config.only if name not in MORE):
        config.only = rest
        compare(config)


if __name__ == "__main__":
    run_script(main, Config)
