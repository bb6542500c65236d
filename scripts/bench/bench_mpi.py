"""Measures training under MPI: calls, steps, links of a given speed, and what a cost model makes of more ranks.

    python scripts/bench/bench_mpi.py                                 # two ranks of one thread each
    python scripts/bench/bench_mpi.py --sections links simulation     # as root: hosts of network namespaces

The cost model is that by which training chooses how machines merge (mpi_slices.py), Hockney's: a message of b bytes
takes alpha + b / beta seconds. alpha and beta are measured on the spot, between two ranks that send at the same time,
as a step does it: as many bytes, in pieces as small, after a pause as long; a limited link sends the first bytes after
a pause faster. What a step computes is measured, too.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.jit import program
from scratchnet.parallel.comm.collectives import ALGORITHMS
from scratchnet.parallel.comm.memory import cores
from scratchnet.parallel.compression import COMPRESSIONS
from scratchnet.parallel.mpi.machines import PIECE
from scratchnet.parallel.mpi.slices import FORCED, chain_seconds, slices_seconds
from scratchnet.testing.hosts import Hosts, reason_against_hosts

SECTIONS = ("calls", "steps", "links", "simulation")
NET, BATCH = (784, 1024, 1024, 10), 512
BYTES = (4096, 407_080, 4_000_000, 64_000_000)
RATES = (None, 10e9, 1e9, 3e8)  # bits a second of a link
HOSTS = (2, 4)
MERGES = ("slices", "late", "chain", "fast")  # late: by slices, and nothing is sent before the gradient is computed
COMPRESSED = [name for name in COMPRESSIONS if name != "none"]  # whole records of shards, in one exchange or two
EVERY = 8  # batches of a round of local SGD
RANKS_EACH = 16  # of a machine, in the simulation
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MPIRUN = ["mpirun", *["--allow-run-as-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)]


@dataclass
class Config:
    """Measure training under MPI."""

    sections: tuple[str, ...] = flag(SECTIONS, "what is measured", SECTIONS)
    rounds: int = flag(3, "times that each engine has its turn; calls take 20 times as many")
    steps: int = flag(16, "steps of an epoch; the best of 4 epochs counts")
    rank: str | None = flag(None, "internal: what this process does as a rank")
    order: str = flag("exact", "internal: of additions", ["exact", "fast"])
    workers: int = flag(1, "internal: processes of a pool")
    compression: str = flag("none", "internal: of gradients", [*COMPRESSIONS])
    merge: str = flag("", "internal: how machines merge", ["", "slices", "late", "chain"])
    every: int = flag(0, "internal: batches between averages of local SGD")
    shards: int = flag(2, "internal: shards")
    batch: int = flag(BATCH, "internal: samples a step")
    pause: float = flag(0.0, "internal: seconds between two messages")


# --- what ranks do ----------------------------------------------------------------------------------------------------


def time_steps(config: Config) -> dict[str, float]:
    """Milliseconds of a training step of NET, the best of four epochs."""
    sn.set_num_threads(1)
    sn.manual_seed(0)
    rng = np.random.default_rng(0)
    n = config.steps * config.batch
    data = sn.data.TensorDataset(rng.normal(size=(n, NET[0])).astype(np.float32), rng.integers(0, NET[-1], n))
    model, parallel = sn.nn.MLP(*NET), sn.parallel
    os.environ[FORCED] = "slices" if config.merge == "late" else config.merge
    if config.merge == "late":
        program.WORTH = sys.maxsize
    strategy = parallel.AllReduce(COMPRESSIONS[config.compression], config.order)
    if config.every:
        strategy = parallel.LocalSGD(config.every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = sn.Trainer(
            model, sn.optim.SGD(model.parameters(), 0.01, 0.9), sn.nn.CrossEntropyLoss(), workers=config.workers,
            shards=config.shards, strategy=strategy, folder=folder, progress=False,
        )  # fmt: skip
        trainer.fit(sn.data.DataLoader(data, config.batch, shuffle=True), epochs=4)
        if not sn.parallel.is_first_rank():
            return {}
        lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return {"ms": 1e3 * min(seconds[1:]) / config.steps}


def time_calls(config: Config) -> dict[str, Any]:
    """Best and median microseconds of all-reduces: the library's alone, and ours in both orders, in turns."""
    from scratchnet.parallel.mpi.communicator import MpiCommunicator, library

    MPI, comms = library(), {order: MpiCommunicator(order=order) for order in ("exact", "fast")}
    found = {}
    for nbytes in BYTES:
        x = np.ones(nbytes // 4, np.float32)
        calls: dict[str, Callable[[], Any]] = {"bare": lambda x=x: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, x)}
        calls |= {order: lambda x=x, comm=comm: comm.all_reduce(x) for order, comm in comms.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(config.rounds * (20 if nbytes < 1e7 else 4)):
            for name, call in calls.items():
                call()  # so that caches hold what it left: after `exact` even the bare one of 4 MB took 480 us, not 415
                x[:] = 1
                MPI.COMM_WORLD.Barrier()
                start = time.perf_counter()
                call()
                times[name].append(1e6 * (time.perf_counter() - start))
        found[nbytes] = {name: (min(times[name]), statistics.median(times[name])) for name in calls}
    for comm in comms.values():
        comm.close()
    return found


def time_link(config: Config) -> dict[str, float]:
    """alpha and beta of a link on which both ends send at once: from 8 bytes, and from all that a step sends."""
    from scratchnet.parallel.mpi.communicator import library

    MPI, seconds, whole = library(), {}, parameter_bytes()
    comm, other = MPI.COMM_WORLD, 1 - MPI.COMM_WORLD.rank
    for nbytes, count, pause in ((8, 200, 0.0), (whole, 5, config.pause)):
        out, into = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        times = []
        for _ in range(count):
            time.sleep(pause)
            comm.Barrier()
            start = time.perf_counter()
            requests = [comm.Irecv(into[at : at + PIECE], other) for at in range(0, nbytes, PIECE)]
            requests += [comm.Isend(out[at : at + PIECE], other) for at in range(0, nbytes, PIECE)]
            MPI.Request.Waitall(requests)
            times.append(time.perf_counter() - start)
        seconds[nbytes] = statistics.median(times)
    return {"alpha": seconds[8], "beta": whole / max(seconds[whole] - seconds[8], 1e-9)}


RANKS = {"steps": time_steps, "calls": time_calls, "link": time_link}


# --- the parent -------------------------------------------------------------------------------------------------------


def ask(starter: list[str], what: str, config: Config, **flags: Any) -> Any:
    """What rank 0 of a job found."""
    given = {"rank": what, "rounds": config.rounds, "steps": config.steps} | flags
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*starter, sys.executable, __file__, *options], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"bench_mpi.py: {what}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def calls(config: Config) -> None:
    print("\nall-reduce of two ranks, float32, microseconds: best (median); in turns")
    print(f"{'bytes':>10} {'bare Allreduce':>20} {'fast':>20} {'exact':>20}   fast / bare, exact / fast, medians")
    for nbytes, row in ask([*MPIRUN, "-n", "2", "--bind-to", "core"], "calls", config).items():
        cells = [f"{best:,.0f} ({median:,.0f})" for best, median in (row[name] for name in ("bare", "fast", "exact"))]
        bare, fast, exact = (row[name][1] for name in ("bare", "fast", "exact"))
        print(
            f"{int(nbytes):>10,} "
            + " ".join(f"{cell:>20}" for cell in cells)
            + f"   {fast / bare:.2f} {exact / fast:.2f}"
        )


def steps(config: Config) -> None:
    print(f"\ntraining step of {'-'.join(map(str, NET))}, batch {BATCH}, 2 shards, one thread a process, milliseconds")
    two = [*MPIRUN, "-n", "2", "--bind-to", "core"]
    engines = {
        "one process": (["taskset", "-c", "0"], {}),
        "pool of 2": ([], {"workers": 2}),
        "2 ranks, exact": (two, {}),
        "2 ranks, fast": (two, {"order": "fast"}),
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(config.rounds):
        for name, (starter, flags) in engines.items():
            times[name].append(ask(starter, "steps", config, **flags)["ms"])
    alone = statistics.median(times["one process"])
    for name, row in times.items():
        median = statistics.median(row)
        print(f"{name:16} best {min(row):7.2f}  median {median:7.2f}   {alone / median:.2f}x one process")


def parameter_bytes() -> int:
    return 4 * sum((a + 1) * b for a, b in itertools.pairwise(NET))


def overlapped(machines: int, compute: float, alpha: float, beta: float) -> float:
    """Seconds of a step by slices, one shard a machine. The gradients of all layers but the first are there when what
    is left is to compute the first one's, and what it needs of the second layer: so long they travel meanwhile.
    """
    sizes = [(a + 1) * b for a, b in itertools.pairwise(NET)]
    left = compute * (sizes[0] + sizes[1]) / (2 * sum(sizes) + sum(sizes[1:]))
    exchange = slices_seconds([1] * machines, [1 / machines] * machines, parameter_bytes(), alpha, beta)
    early = exchange / 2 * sum(sizes[1:]) / sum(sizes)  # half of it is gradients
    return compute + exchange - min(left, early)


def links(config: Config) -> None:
    if reason := reason_against_hosts():
        print(f"\nlinks: skipped: {reason}")
        return
    for count in HOSTS:
        flags = {"shards": 1, "batch": BATCH // count}
        alone = ask(["taskset", "-c", "0"], "steps", config, **flags)["ms"] * max(1.0, count / cores())
        print(
            f"\n{count} hosts, a shard each, {parameter_bytes():,} bytes of parameters; their gradients take "
            f"{alone:.1f} ms on {cores()} cores. Milliseconds a step, and what the model predicts"
        )
        titles = ("alpha us", "beta MB/s", *(f"{m:>8} {'model':>8}" for m in MERGES[:-1]), "fast", *COMPRESSED)
        print(f"{'link, Mbit/s':>12} " + " ".join(f"{title:>9}" for title in titles))
        with Hosts(count) as hosts:
            for rate in RATES:
                hosts.limit(rate)
                _print_link(hosts, rate, alone)
    local_sgd(config)


def _print_link(hosts: Hosts, rate: float | None, alone: float) -> None:
    count, few, n = hosts.count, Config(steps=EVERY), parameter_bytes()
    link = ask([*hosts.mpirun(2), "-x", "PYTHONPATH"], "link", few, pause=alone / 1e3)
    starter = [*hosts.mpirun(count), "-x", "PYTHONPATH"]
    by_name: dict[str, dict[str, Any]] = {name: {"merge": name} for name in MERGES[:-1]} | {"fast": {"order": "fast"}}
    by_name |= {name: {"compression": name} for name in COMPRESSED}
    found = {name: ask(starter, "steps", few, shards=count, **flags)["ms"] for name, flags in by_name.items()}
    late = slices_seconds([1] * count, [1 / count] * count, n, **link)
    model = {
        "slices": 1e3 * overlapped(count, alone / 1e3, **link),
        "late": alone + 1e3 * late,
        "chain": alone + 1e3 * chain_seconds(count, n, **link),
    }
    cells = [f"{link['alpha'] * 1e6:9.1f}", f"{link['beta'] / 1e6:9.1f}"]
    cells += [f"{found[name]:8.1f} {model[name]:8.1f}" for name in model]
    cells += [f"{found[name]:9.1f}" for name in ("fast", *COMPRESSED)]
    print(f"{'unlimited' if rate is None else f'{rate / 1e6:.0f}':>12} " + " ".join(cells), flush=True)


def local_sgd(config: Config) -> None:
    """A page has the momentum, too, and a round EVERY batches."""
    alone = ask(["taskset", "-c", "0"], "steps", config, shards=1, batch=BATCH // 2)["ms"]
    print(f"\n2 hosts, local SGD, {EVERY} batches a round: milliseconds a batch, and what the model predicts")
    with Hosts(2) as hosts:
        for rate in RATES:
            hosts.limit(rate)
            starter = [*hosts.mpirun(2), "-x", "PYTHONPATH"]
            link = ask(starter, "link", config, pause=alone / 1e3)
            found = ask(starter, "steps", Config(steps=EVERY), every=EVERY)["ms"]
            model = alone + 1e3 * slices_seconds([1, 1], [0.5, 0.5], 2 * parameter_bytes(), **link) / EVERY
            print(f"{'unlimited' if rate is None else f'{rate / 1e6:.0f}':>12} {found:9.1f} {model:9.1f}", flush=True)


def simulation(config: Config) -> None:
    """Steps of W workers with BATCH / 2 samples each: the slowest of W is waited for, and then messages travel."""
    alone = ask(["taskset", "-c", "0"], "steps", config, shards=1, batch=BATCH // 2)["ms"] / 1e3
    alpha, beta, n, spread, every = 20e-6, 1.25e9, parameter_bytes(), 0.05, EVERY
    print(
        f"\nsimulated: {BATCH // 2} samples a worker ({1e3 * alone:.1f} ms, measured; a spread of {spread:.0%}), "
        f"links of 10 Gbit/s and {alpha * 1e6:.0f} us; samples a second over those of one worker, times W"
    )

    def slices(w: int, each: int, nbytes: float) -> float:
        """w workers, so many on each machine."""
        machines = -(-w // each)
        return slices_seconds([min(w, each)] * machines, [1 / machines] * machines, nbytes, alpha, beta)

    merges = {
        "slices": lambda w: slices(w, 1, n),
        "chain": lambda w: chain_seconds(w, n, alpha, beta),
        f"slices, {RANKS_EACH} a machine": lambda w: slices(w, RANKS_EACH, n),
        f"chain, {RANKS_EACH} a machine": lambda w: chain_seconds(-(-w // RANKS_EACH), n, alpha, beta),
        "ring": lambda w: hockney(ALGORITHMS["ring"].cost(w, n)),
        "rabenseifner": lambda w: hockney(ALGORITHMS["rabenseifner"].cost(w, n)),
        "naive (one server)": lambda w: hockney(ALGORITHMS["naive"].cost(w, n)),
        "rabenseifner, float16": lambda w: hockney(ALGORITHMS["rabenseifner"].cost(w, n // 2)),
        f"local SGD, every {every}": lambda w: slices(w, 1, 2 * n),
    }

    def hockney(cost: Any) -> float:
        return cost.steps * alpha + cost.bytes / beta

    print(f"{'workers':>8} " + " ".join(f"{name:>22}" for name in merges))
    rng = np.random.default_rng(0)
    for w in WORKERS:
        times = alone * (1 + spread * np.abs(rng.standard_normal((200, every, w))))
        cells = []
        for name, merge in merges.items():
            apart = every if name.startswith("local") else 1
            rounds = times.reshape(-1, apart, w).sum(axis=1).max(axis=1) + (merge(w) if w > 1 else 0)
            cells.append(apart * alone / rounds.mean())
        print(f"{w:>8} " + " ".join(f"{cell:>22.2f}" for cell in cells))


def main(config: Config) -> None:
    if config.rank:
        found = RANKS[config.rank](config)
        if sn.parallel.is_first_rank():
            print(json.dumps(found), flush=True)
        return
    for name in config.sections:
        globals()[name](config)


if __name__ == "__main__":
    run_script(main, Config)
