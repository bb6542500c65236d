"""Measures training under MPI: steps, links of a given speed, and what a cost model makes of more ranks.

    python scripts/bench/bench_mpi.py                                 # two ranks of one thread each
    python scripts/bench/bench_mpi.py --sections links simulation     # as root: hosts of network namespaces
    python scripts/bench/bench_mpi.py --sections schedules layouts    # stages and parts of a model

The cost model of a merge (mpi/slices.py) is Hockney's: a message of b bytes takes alpha + b / beta seconds. alpha and
beta are measured on the spot, between two ranks that send at the same time, as a step does it: as many bytes, in pieces
as small, after a pause as long; a limited link sends the first bytes after a pause faster. What a step computes is
measured, too.
"""

import functools
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
from typing import Any, NamedTuple

import numpy as np
from collectives import MPIRUN

import scratchnet as sn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.jit import passes
from scratchnet.native.limits import cores
from scratchnet.parallel import AllReduce, LocalSGD, Pipeline, is_first_rank, planner
from scratchnet.parallel.comm.collectives import ALGORITHMS
from scratchnet.parallel.compression import COMPRESSIONS
from scratchnet.parallel.model.timetable import bubble, timetable
from scratchnet.parallel.mpi.machines import MESSAGE_BYTES
from scratchnet.parallel.phases import SCHEDULES
from scratchnet.testing.hosts import Hosts, reason_against_hosts

SECTIONS = ("steps", "links", "simulation", "schedules", "layouts")
NET, BATCH = (784, 1024, 1024, 10), 512
RATES = (None, 10e9, 1e9, 3e8)  # bits a second of a link
HOSTS = (2, 4)
MERGES = ("tree", "late")  # late: nothing is sent before the gradient is computed
OVERHEAD = 2e-6  # seconds of a rank's time that it takes to send, or to receive, a message; over TCP, on a busy machine
COMPRESSED = [name for name in COMPRESSIONS if name != "none"]  # whole records of shards, in one exchange or two
EVERY = 8  # batches of a round of local SGD
RANKS_EACH = 16  # of a machine, in the simulation
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STAGED, LAYERS = 512, 16  # width and number of the layers of which schedules are measured
# Layouts: a network of equal layers, as a transformer has them, and workers with memory, speed and links of GPUs.
DEPTH, WIDTH, TOKENS = 48, 4096, 2048  # layers of 12 WIDTH^2 parameters; positions of a sample
SHARDS = 1024  # of a batch, a sample each
RATE, MEMORY = 15e12, 80e9  # float operations a second, and bytes, of a worker
NEAR, FAR, MACHINE = (5e-6, 200e9), (20e-6, 25e9), 8  # alpha and beta within a machine of so many workers, and beyond
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


# --- stages and parts of a model --------------------------------------------------------------------------------------


def schedules(config: Config) -> None:
    """Two stages of equal layers in two processes: what planner.py predicts, and what the timeline of the pool says.

    pieces: how much longer they took beside each other than alone, which explains most of the error.
    """
    rng, n = np.random.default_rng(0), 512
    samples = rng.normal(size=(n, STAGED)).astype(np.float32), rng.integers(0, STAGED, n)
    loader = sn.data.DataLoader(sn.data.TensorDataset(*samples), n)
    print(f"\nstages of {LAYERS // 2} layers of {STAGED} x {STAGED}, batch {n}, 8 shards, 2 workers of one thread")
    print(
        f"{'schedule':<12} {'predicted':>12} {'measured':>12} {'error':>7} {'waits':>7} {'measured':>9} {'formula':>8} "
        f"{'pieces':>7}"
    )
    link = planner.measured_link()
    for schedule in SCHEDULES:
        sn.manual_seed(0)
        model = sn.nn.Sequential(*(make() for _ in range(LAYERS) for make in (_layer, sn.nn.Tanh)))
        optimizer, strategy = sn.optim.SGD(model.parameters(), 0.01), Pipeline(2, [str(LAYERS)], schedule)
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), workers=2, shards=8, strategy=strategy)
        settings = trainer._settings(loader)
        predicted, (seconds, waits) = planner.predict(settings, 1, link), planner.measure(settings)
        print(
            f"{schedule:<12} {1e3 * predicted.seconds:>9.1f} ms {1e3 * seconds:>9.1f} ms "
            f"{predicted.seconds / seconds - 1:>+7.0%} {predicted.waits:>7.0%} {waits:>9.0%} "
            f"{bubble(schedule, 2, 8, 1, 1, 1):>8.0%} {planner.slowed(predicted, seconds, waits):>7.2f}"
        )


def _layer() -> sn.nn.Module:
    return sn.nn.Linear(STAGED, STAGED)


class Layout(NamedTuple):
    """stages x replicas x parts workers. seconds of a step; bytes of a worker; parts of the step that are no work."""

    stages: int
    replicas: int
    parts: int
    seconds: float
    bytes: float
    lost: dict[str, float]

    def efficiency(self) -> float:
        work = 3 * 2 * 12 * WIDTH**2 * DEPTH * TOKENS * SHARDS / RATE
        return work / (self.stages * self.replicas * self.parts * self.seconds)


@functools.cache
def layout(stages: int, replicas: int, parts: int) -> Layout:
    """What a step takes. A part has its block of each layer, and two sums over the parts a layer, in each direction."""
    parameters, sent = 12 * WIDTH**2 * DEPTH // stages // parts, 4 * WIDTH * TOKENS
    product = 2 * parameters * TOKENS / RATE
    cost = ALGORITHMS["ring"].cost(parts, sent)
    sums = 2 * DEPTH / stages * (cost.steps * NEAR[0] + cost.bytes / NEAR[1]) if parts > 1 else 0.0
    handed = FAR[0] + sent / parts / FAR[1] if stages > 1 else 0.0
    seconds = {
        "forward": product + sums + handed,
        "backward_inputs": product + sums + handed,
        "backward_weights": product,
    }
    shards = -(-SHARDS // replicas)
    busy = step = shards * sum(seconds.values())
    if stages > 1:
        strategy, rounds = Pipeline(stages, schedule="zero_bubble"), min(shards, 3 * stages)  # more add nothing new
        phases = [phase for phase in strategy.phases(rounds, 1, False) if phase.name in seconds]
        spans = timetable(strategy, phases, stages, lambda phase, _: seconds[phase.name])
        step = max(span.end for span in spans) + (shards - rounds) * sum(seconds.values())
    merge = exchange(replicas, 4 * parameters, *FAR)
    kept, slots = min(stages, shards), shards.bit_length()
    activations = 16 * sent * DEPTH / stages / parts  # about so many of a layer are kept
    held = 4 * parameters * (2 + 2 * 2 / replicas + slots) + kept * activations
    whole = step + merge
    lost = {
        "bubble": step - busy,
        "sums of parts": 2 * shards * sums,
        "hand-overs": 2 * shards * handed,
        "merge": merge,
    }
    return Layout(stages, replicas, parts, whole, held, {name: cost / whole for name, cost in lost.items()})


def layouts(config: Config) -> None:
    """Workers of an S x R x P job, to 1,024: the best layout of each kind, and what keeps it from being better."""
    print(
        f"\nsimulated: {DEPTH} layers of 12 x {WIDTH}^2 parameters, {SHARDS} shards of {TOKENS} positions; workers of "
        f"{RATE / 1e12:.0f} TFLOP/s and {MEMORY / 1e9:.0f} GB, {MACHINE} a machine, "
        f"{NEAR[1] / 1e9:.0f} GB/s within and {FAR[1] / 1e9:.0f} GB/s between"
    )
    print(f"{'workers':>8} {'kind':>10} {'S x R x P':>14} {'efficiency':>11} {'bubble':>7} {'GB':>6}  stops at")
    kinds = {"replicas": (1, 0, 1), "stages": (0, 1, 1), "parts": (1, 1, 0), "all": (0, 0, 0)}
    for workers in WORKERS[1:]:
        for kind, fixed in kinds.items():
            found = [
                layout(stages, workers // stages // parts, parts)
                for stages in _divisors(DEPTH)
                for parts in (1, 2, 4, 8)
                if workers % (stages * parts) == 0 and workers // stages // parts <= SHARDS
            ]
            found = [x for x in found if all(want in (0, got) for want, got in zip(fixed, x[:3], strict=True))]
            if not found:
                limits = {
                    "stages": f"{DEPTH} layers, which {workers} do not divide",
                    "parts": f"{MACHINE} of a machine",
                }
                print(f"{workers:>8} {kind:>10} {'-':>14} {'':>11} {'':>7} {'':>6}  {limits[kind]}")
                continue
            fits = [x for x in found if x.bytes <= MEMORY]
            best = max(fits, key=Layout.efficiency) if fits else min(found, key=lambda x: x.bytes)
            where = f"{best.stages} x {best.replicas} x {best.parts}"
            if not fits:
                print(f"{workers:>8} {kind:>10} {where:>14} {'':>11} {'':>7} {best.bytes / 1e9:>6.0f}  memory")
                continue
            why, part = max(best.lost.items(), key=lambda item: item[1])
            print(
                f"{workers:>8} {kind:>10} {where:>14} {best.efficiency():>11.0%} {best.lost['bubble']:>7.1%} "
                f"{best.bytes / 1e9:>6.0f}  {why}, {part:.1%}"
            )


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def main(config: Config) -> None:
    if config.rank:
        name, arguments = json.loads(config.rank)
        found = {f.__name__: f for f in (time_steps, time_link)}[name](**arguments)
        if is_first_rank():
            print(json.dumps(found), flush=True)
        return
    for name in config.sections:
        {
            "steps": steps,
            "links": links,
            "simulation": simulation,
            "schedules": schedules,
            "layouts": layouts,
        }[name](config)


if __name__ == "__main__":
    run_script(main, Config)
