"""Measures training under MPI: steps, links of a given speed, and what a cost model makes of more ranks.

    python scripts/bench/bench_mpi.py                                 # two ranks of one thread each
    python scripts/bench/bench_mpi.py --sections links simulation     # as root: hosts of network namespaces

The cost model of a merge (mpi/slices.py) is Hockney's: a message of b bytes takes alpha + b / beta seconds. alpha and
beta are measured on the spot, between two ranks that send at the same time, as a step does it: as many bytes, in pieces
as small, after a pause as long; a limited link sends the first bytes after a pause faster. What a step computes is
measured, too.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from collectives import MPIRUN

import scratchnet as sn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.jit import passes
from scratchnet.native.limits import cores
from scratchnet.parallel import AllReduce, LocalSGD, is_first_rank
from scratchnet.parallel.comm.collectives import ALGORITHMS
from scratchnet.parallel.compression import COMPRESSIONS
from scratchnet.parallel.mpi.machines import MESSAGE_BYTES
from scratchnet.testing.hosts import Hosts, reason_against_hosts

SECTIONS = ("steps", "links", "simulation")
NET, BATCH = (784, 1024, 1024, 10), 512
RATES = (None, 10e9, 1e9, 3e8)  # bits a second of a link
HOSTS = (2, 4)
MERGES = ("tree", "late")  # late: nothing is sent before the gradient is computed
OVERHEAD = 2e-6  # seconds of a rank's time that it takes to send, or to receive, a message; over TCP, on a busy machine
COMPRESSED = [name for name in COMPRESSIONS if name != "none"]  # whole records of shards, in one exchange or two
EVERY = 8  # batches of a round of local SGD
RANKS_EACH = 16  # of a machine, in the simulation
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TWO = [*MPIRUN, "-n", "2", "--bind-to", "core"]
ONE = ["taskset", "-c", "0"]
SIZES = [(a + 1) * b for a, b in itertools.pairwise(NET)]  # parameters of each layer
NBYTES = 4 * sum(SIZES)


@dataclass
class Config:
    """Measure training under MPI."""

    sections: tuple[str, ...] = flag(SECTIONS, "what is measured", SECTIONS)
    rounds: int = flag(3, "times that each engine has its turn")
    steps: int = flag(16, "steps of an epoch; the best of 4 epochs counts")
    rank: str | None = flag(None, "internal: what this process does as a rank of a job, and with what, as JSON")


# --- what ranks do ----------------------------------------------------------------------------------------------------


def time_steps(
    steps: int, workers: int = 1, shards: int = 2, batch: int = BATCH, every: int = 0, merge: str = "",
    order: str = "exact", compression: str = "none",
) -> float | None:  # fmt: skip
    """Milliseconds of a training step of NET, the best of four epochs. every: batches between averages of local SGD."""
    sn.set_num_threads(1)
    sn.manual_seed(0)
    rng, n = np.random.default_rng(0), steps * batch
    data = sn.data.TensorDataset(rng.normal(size=(n, NET[0])).astype(np.float32), rng.integers(0, NET[-1], n))
    model = sn.nn.MLP(*NET)
    if merge == "late":
        passes.WORTH = sys.maxsize
    strategy = LocalSGD(every) if every else AllReduce(COMPRESSIONS[compression], order)
    with tempfile.TemporaryDirectory() as folder:
        trainer = sn.Trainer(
            model,
            sn.optim.SGD(model.parameters(), 0.01, 0.9),
            sn.nn.CrossEntropyLoss(),
            workers=workers,
            shards=shards,
            strategy=strategy,
            folder=folder,
            progress=False,
        )
        trainer.fit(sn.data.DataLoader(data, batch, shuffle=True), epochs=4)
        if not is_first_rank():
            return None
        lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return 1e3 * min(json.loads(line)["seconds"] for line in lines[1:]) / steps


def time_link(pause: float) -> dict[str, float]:
    """alpha and beta of a link on which both ends send at once: from 8 bytes, and from all that a step sends."""
    from scratchnet.parallel.mpi.communicator import library

    MPI, seconds = library(), {}
    comm, other = MPI.COMM_WORLD, 1 - MPI.COMM_WORLD.rank
    for nbytes, count, wait in ((8, 200, 0.0), (NBYTES, 5, pause)):
        out, into = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        times = []
        for _ in range(count):
            time.sleep(wait)
            comm.Barrier()
            start = time.perf_counter()
            requests = [comm.Irecv(into[at : at + MESSAGE_BYTES], other) for at in range(0, nbytes, MESSAGE_BYTES)]
            requests += [comm.Isend(out[at : at + MESSAGE_BYTES], other) for at in range(0, nbytes, MESSAGE_BYTES)]
            MPI.Request.Waitall(requests)
            times.append(time.perf_counter() - start)
        seconds[nbytes] = statistics.median(times)
    return {"alpha": seconds[8], "beta": NBYTES / max(seconds[NBYTES] - seconds[8], 1e-9)}


# --- the parent -------------------------------------------------------------------------------------------------------


def ask(starter: list[str], function: Any, **arguments: Any) -> Any:
    """What rank 0 of a job found, of which each rank calls the function."""
    command = [*starter, sys.executable, __file__, "--rank", json.dumps([function.__name__, arguments])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"bench_mpi.py: {function.__name__}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def steps(config: Config) -> None:
    print(f"\ntraining step of {'-'.join(map(str, NET))}, batch {BATCH}, 2 shards, one thread a process, milliseconds")
    engines: dict[str, tuple[list[str], dict]] = {
        "one process": (ONE, {}),
        "pool of 2": ([], {"workers": 2}),
        "2 ranks, exact": (TWO, {}),
        "2 ranks, fast": (TWO, {"order": "fast"}),
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(config.rounds):
        for name, (starter, options) in engines.items():
            times[name].append(ask(starter, time_steps, steps=config.steps, **options))
    alone = statistics.median(times["one process"])
    for name, row in times.items():
        median = statistics.median(row)
        print(f"{name:16} best {min(row):7.2f}  median {median:7.2f}   {alone / median:.2f}x one process")


def exchange(machines: int, nbytes: int, alpha: float, beta: float, sums: int = 1) -> float:
    """Seconds that so many machines, each of which sends so many sums, take to exchange so many bytes of parameters:
    two hops, in which a machine begins its messages to the others one by one.
    """
    if machines == 1:
        return 0.0
    return 2 * alpha + 2 * (machines - 1) * OVERHEAD + (sums + 1) * (machines - 1) / machines * nbytes / beta


def overlapped(machines: int, compute: float, alpha: float, beta: float) -> float:
    """Seconds of a step, one shard a machine. The gradients of all layers but the first are there when what
    is left is to compute the first one's, and what it needs of the second layer: so long they travel meanwhile.
    """
    left = compute * (SIZES[0] + SIZES[1]) / (2 * sum(SIZES) + sum(SIZES[1:]))
    seconds = exchange(machines, NBYTES, alpha, beta)
    early = seconds / 2 * sum(SIZES[1:]) / sum(SIZES)  # half of it is gradients
    return compute + seconds - min(left, early)


def links(config: Config) -> None:
    if reason := reason_against_hosts():
        print(f"\nlinks: skipped: {reason}")
        return
    for count in HOSTS:
        alone = ask(ONE, time_steps, steps=config.steps, shards=1, batch=BATCH // count) * max(1.0, count / cores())
        print(
            f"\n{count} hosts, a shard each, {NBYTES:,} bytes of parameters; their gradients take "
            f"{alone:.1f} ms on {cores()} cores. Milliseconds a step, and what the model predicts"
        )
        titles = ("alpha us", "beta MB/s", *(f"{m:>8} {'model':>8}" for m in MERGES), "fast", *COMPRESSED)
        print(f"{'link, Mbit/s':>12} " + " ".join(f"{title:>9}" for title in titles))
        at_each_rate(count, alone, _link)
    alone = ask(ONE, time_steps, steps=config.steps, shards=1, batch=BATCH // 2)
    print(f"\n2 hosts, local SGD, {EVERY} batches a round: milliseconds a batch, and what the model predicts")
    at_each_rate(2, alone, _local_sgd)


def at_each_rate(count: int, alone: float, cells: Any) -> None:
    """A line a rate, with the cells of cells(starter of a job on all hosts, how many, ms of a gradient, the link)."""
    with Hosts(count) as hosts:
        for rate in RATES:
            hosts.limit(rate)
            link = ask([*hosts.mpirun(2), "-x", "PYTHONPATH"], time_link, pause=alone / 1e3)
            line = cells([*hosts.mpirun(count), "-x", "PYTHONPATH"], count, alone, link)
            print(f"{'unlimited' if rate is None else f'{rate / 1e6:.0f}':>12} {line}", flush=True)


def _link(starter: list[str], count: int, alone: float, link: dict[str, float]) -> str:
    options: dict[str, dict[str, Any]] = {name: {"merge": name} for name in MERGES} | {"fast": {"order": "fast"}}
    options |= {name: {"compression": name} for name in COMPRESSED}
    found = {name: ask(starter, time_steps, steps=EVERY, shards=count, **each) for name, each in options.items()}
    model = {
        "tree": 1e3 * overlapped(count, alone / 1e3, **link),
        "late": alone + 1e3 * exchange(count, NBYTES, **link),
    }
    cells = [f"{link['alpha'] * 1e6:9.1f}", f"{link['beta'] / 1e6:9.1f}"]
    cells += [f"{found[name]:8.1f} {model[name]:8.1f}" for name in model]
    return " ".join([*cells, *(f"{found[name]:9.1f}" for name in ("fast", *COMPRESSED))])


def _local_sgd(starter: list[str], count: int, alone: float, link: dict[str, float]) -> str:
    """A page has the momentum, too, and a round EVERY batches."""
    model = alone + 1e3 * exchange(count, 2 * NBYTES, **link) / EVERY
    return f"{ask(starter, time_steps, steps=EVERY, every=EVERY):9.1f} {model:9.1f}"


def simulation(config: Config) -> None:
    """Steps of W workers with BATCH / 2 samples each: the slowest of W is waited for, and then messages travel."""
    alone = ask(ONE, time_steps, steps=config.steps, shards=1, batch=BATCH // 2) / 1e3
    alpha, beta, deviation, every = 20e-6, 1.25e9, 0.05, EVERY
    print(
        f"\nsimulated: {BATCH // 2} samples a worker ({1e3 * alone:.1f} ms, measured, and {deviation:.0%} deviation), "
        f"links of 10 Gbit/s and {alpha * 1e6:.0f} us; samples a second over those of one worker, times W"
    )

    def hockney(algorithm: str, w: int, nbytes: int = NBYTES) -> float:
        cost = ALGORITHMS[algorithm].cost(w, nbytes)
        return cost.steps * alpha + cost.bytes / beta

    def in_machines(w: int) -> int:
        return -(-w // RANKS_EACH)

    merges = {
        "tree": lambda w: exchange(w, NBYTES, alpha, beta),
        f"tree, {RANKS_EACH} a machine": lambda w: exchange(in_machines(w), NBYTES, alpha, beta),
        f"fast, {RANKS_EACH} a machine": lambda w: hockney("rabenseifner", in_machines(w)),
        f"each shard, {RANKS_EACH}": lambda w: exchange(in_machines(w), NBYTES, alpha, beta, min(w, RANKS_EACH)),
        "ring": lambda w: hockney("ring", w),
        "rabenseifner": lambda w: hockney("rabenseifner", w),
        "naive (one server)": lambda w: hockney("naive", w),
        "rabenseifner, float16": lambda w: hockney("rabenseifner", w, NBYTES // 2),
        f"local SGD, every {every}": lambda w: exchange(w, 2 * NBYTES, alpha, beta),
    }
    print(f"{'workers':>8} " + " ".join(f"{name:>22}" for name in merges))
    rng = np.random.default_rng(0)
    for w in WORKERS:
        times = alone * (1 + deviation * np.abs(rng.standard_normal((200, every, w))))
        cells = []
        for name, merge in merges.items():
            batches = every if name.startswith("local") else 1
            rounds = times.reshape(-1, batches, w).sum(axis=1).max(axis=1) + (merge(w) if w > 1 else 0)
            cells.append(batches * alone / rounds.mean())
        print(f"{w:>8} " + " ".join(f"{cell:>22.2f}" for cell in cells))


def main(config: Config) -> None:
    if config.rank:
        name, arguments = json.loads(config.rank)
        found = {f.__name__: f for f in (time_steps, time_link)}[name](**arguments)
        if is_first_rank():
            print(json.dumps(found), flush=True)
        return
    for name in config.sections:
        {"steps": steps, "links": links, "simulation": simulation}[name](config)


if __name__ == "__main__":
    run_script(main, Config)
