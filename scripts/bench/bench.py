"""Measures scratchnet and the peers that are installed on the same work, in turns, and says who is faster by how much.

    python scripts/bench/bench.py                                    # steps, epochs, time to 88 %; some minutes
    python scripts/bench/bench.py --sections kernels --threads 1     # products against every BLAS, bandwidth of others
    python scripts/bench/bench.py --sections collectives             # all-reduces of two processes
    python scripts/bench/bench.py --sections pool                    # steps that processes share, and what a pool costs
    pip install -e ".[bench]"                                        # the peers: PyTorch, JAX, scikit-learn

Each engine (engines.py) runs in a process of its own with the same number of threads, on the same cores. In a round
each engine has its turn; the tables give the best and the median round. The peak is that of fused multiply-adds on
registers, measured in the same rounds.
"""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from engines import ARRAYS, BATCH, ELEMENTS, ENGINES

from scratchnet.data import load
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script

SECTIONS = ("kernels", "steps", "epochs", "accuracy", "collectives", "pool")
NETS = ((784, 128, 10), (784, 1024, 1024, 10))
ALL_REDUCES = (4096, 407_080, 4_000_000, 64_000_000)  # bytes; the second is all gradients of 784-128-10
STEPS = ("784-128-10@64", "784-128-10@512", "784-1024-1024-10@512")
SHARED = ((NETS[0], 64), (NETS[0], 512), (NETS[1], 512))  # networks and batch sizes of steps that processes share
MERGED = ((784, 1024, 256, 10), NETS[1], (784, 4096, 4096, 10))  # networks of 4, 7 and 80 MB
POOLS = tuple(name for name in ENGINES if name.startswith("pool-"))
OURS = ("pool-2", *POOLS, "scratchnet", "scratchnet-eager")
PEERS = tuple(name for name in ENGINES if name != "registers")


@dataclass
class Config:
    """Measure scratchnet and its peers on the same work, in turns, each in its own process."""

    sections: tuple[str, ...] = flag(SECTIONS[1:4], "what is measured", SECTIONS)
    engines: tuple[str, ...] = flag(PEERS, "who takes part, if installed", PEERS)
    steps: tuple[str, ...] = flag(STEPS, "networks and batch sizes of the section steps")
    data: str = flag("fashion-mnist", "data set, or a folder in MNIST format")
    threads: int = flag(2, "threads of every engine")
    rounds: int = flag(11, "rounds of kernels and steps; a quarter as many of epochs and of whole runs")
    seconds: float = flag(0.2, "length of one turn; a tenth for a kernel")
    goal: float = flag(0.88, "test accuracy that ends a run")
    json: str | None = flag(None, "file for all figures and the machine's description")
    picture: str | None = flag(None, "file for a picture of the ratios")
    speedup: str | None = flag(None, "file for a picture of the section pool: speed by number of workers")


# --- processes --------------------------------------------------------------------------------------------------------


def environment(threads: int, folder: str) -> dict[str, str]:
    """What holds every library to `threads` threads, and lets each at its own best kernels."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    xla = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" if threads == 1 else ""
    jax = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax", "XLA_FLAGS": xla}
    jax["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return kept | {f"{name}_NUM_THREADS": str(threads) for name in names} | jax | {"TF_CPP_MIN_LOG_LEVEL": "3"}


class Process:
    """An engine in a process of its own."""

    def __init__(self, name: str, threads: int, folder: str):
        command = [sys.executable, Path(__file__).with_name("engines.py"), name, str(threads), folder]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment(threads, folder),
        )  # fmt: skip

    def ask(self, section: str, work: dict, seconds: float) -> dict:
        self.process.stdin.write(json.dumps({"section": section, "work": work, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def write_data(name: str, folder: str) -> None:
    """The data set as the .npy files that all engines read: images uint8 (n, features), labels int64 (n,)."""
    for part, dataset in zip(("train", "test"), load(name), strict=True):
        for what, array in zip(("images", "labels"), dataset.arrays, strict=True):
            np.save(f"{folder}/{part}-{what}.npy", array)


def machine(config: Config) -> dict:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    flags = facts.get("flags", "").split()
    modules = ("numpy", "numba", "torch", "jax", "scikit-learn")
    versions = {}
    for name in modules:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": facts.get("model name", platform.processor()).strip(),
        "simd": [name for name in ("avx2", "fma", "avx512f", "asimd") if name in flags],
        "cores": os.cpu_count(),
        "threads": config.threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """One row of work: what the engines are asked, how much arithmetic or memory it takes, and what came of it."""

    section: str
    title: str
    request: str
    arguments: dict
    flops: float = 0.0
    bytes: float = 0.0

    def __post_init__(self):
        self.seconds: dict[str, list[float]] = {}
        self.facts: dict[str, dict] = {}
        self.errors: dict[str, str] = {}

    def add(self, engine: str, answer: dict) -> None:
        if "error" in answer:
            self.errors[engine] = answer["error"]
        elif answer["seconds"] is not None:
            self.seconds.setdefault(engine, []).append(answer.pop("seconds"))
            self.facts[engine] = answer

    @property
    def ours(self) -> str | None:
        """The engine that others are compared with: ours, the recorded step before the eager one."""
        return next((name for name in OURS if name in self.seconds), None)

    @property
    def peers(self) -> list[str]:
        return [name for name in self.seconds if name not in OURS]

    @property
    def rival(self) -> str:
        """The fastest peer."""
        return min(self.peers, key=lambda name: min(self.seconds[name]))

    def ratio(self, engine: str, of=min) -> float:
        """How many times as long as ours it takes: above 1 we are faster."""
        return of(self.seconds[engine]) / of(self.seconds[self.ours])

    def report(self) -> dict:
        """Everything, as JSON holds it."""
        return asdict(self) | {"seconds": self.seconds, "facts": self.facts, "errors": self.errors}


def name_of(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def products(widths: Sequence[int], batch: int) -> dict[str, dict]:
    """The matrix products of a training step: (m, k) @ (k, n), with op(a) or op(b) stored transposed."""
    works = {}
    for layer, (i, o) in enumerate(itertools.pairwise(widths)):
        forms = {"forward": (batch, i, o, False, False), "weight grad": (i, batch, o, True, False)}
        forms |= {"input grad": (batch, o, i, False, True)} if layer else {}
        for form, (m, k, n, ta, tb) in forms.items():
            works[f"{form} {m}x{k}x{n}"] = {"m": m, "k": k, "n": n, "transpose_a": ta, "transpose_b": tb}
    return works


def step_of(text: str) -> Work:
    """The work "784-128-10@64": a step of that network on 64 samples."""
    try:
        *widths, batch = (int(number) for number in text.replace("@", "-").split("-"))
    except ValueError:
        widths = []
    if len(widths) < 2 or min(*widths, batch) < 1 or text != f"{name_of(widths)}@{batch}":
        raise ConfigError(f"--steps: expected a network and a batch size, such as 784-128-10@64, got {text!r}")
    flops = sum(2.0 * c["m"] * c["k"] * c["n"] for c in products(widths, batch).values())
    arguments = {"widths": widths, "batch_size": batch}
    return Work("steps", f"{name_of(widths)}, batch {batch}", "steps", arguments, flops)


def works_of(section: str, config: Config) -> list[Work]:
    if section == "kernels":
        cases = {k: v for net in NETS for batch in (1, 8, 64, 512) for k, v in products(net, batch).items()}
        for n in (1024, 2048):
            cases[f"square {n}"] = {"m": n, "k": n, "n": n, "transpose_a": False, "transpose_b": False}
        works = [Work(section, t, "gemms", c, flops=2.0 * c["m"] * c["k"] * c["n"]) for t, c in cases.items()]
        size = 4 * ELEMENTS[0] * ELEMENTS[1]
        return works + [Work(section, k, "others", {"kernel": k}, bytes=float(n * size)) for k, n in ARRAYS.items()]
    if section == "steps":
        return [step_of(text) for text in config.steps]
    if section == "epochs":
        return [Work(section, f"{name_of(NETS[0])}, batch {BATCH}, shuffled", section, {"widths": NETS[0]})]
    if section == "collectives":
        kinds = {"private": False, "rewritten before each call, ours in the arena": True}
        return [
            Work(section, f"all-reduce of {n} bytes on 2 processes, {kind}", section, arguments, bytes=float(n))
            for kind, rewritten in kinds.items()
            for n in ALL_REDUCES
            for arguments in [{"elements": n // 4, "rewritten": rewritten}]
        ]
    if section == "pool":
        return list(pool_works())
    title = f"{name_of(NETS[0])}, batch {BATCH}, to {config.goal:.0%} test accuracy"
    return [Work(section, title, section, {"widths": NETS[0], "goal": config.goal})]


def pool_works() -> Iterator[Work]:
    """Steps of 2 and of 4 shards, merges, kills, starts; `what` says to pool_engines.py which it is."""

    def work(title: str, what: str, widths: Sequence[int], batch: int, shards: int = 2) -> Work:
        arguments = {"what": what, "widths": widths, "batch_size": batch, "shards": shards}
        return Work("pool", f"{title}, {name_of(widths)}, batch {batch}", "pool", arguments)

    for shards in (2, 4):
        yield from (work(f"step of {shards} shards", "measure", *case, shards) for case in SHARED)
    for widths in MERGED:
        parameters = sum((i + 1) * o for i, o in itertools.pairwise(widths))
        yield work(f"merge and update of {4e-6 * parameters:.1f} MB", "merge", widths, 2)
        # it reads the gradients of 2 shards, parameters and momentum, and writes the latter two
    yield work("a worker is killed, until its step is committed", "recover", *SHARED[1])
    yield work("4 workers, until the first step is committed", "start", *SHARED[0], 4)


class Roof(NamedTuple):
    """What the machine can do a second: operations on registers, bytes that a copy reads and writes."""

    flops: float
    bytes: float

    def share(self, work: Work, seconds: float) -> str:
        if work.flops:
            return f"{work.flops / seconds / 1e9:.1f} GFLOP/s, {work.flops / seconds / self.flops:.0%} of peak"
        if work.bytes and work.section == "kernels":
            return f"{work.bytes / seconds / 1e9:.1f} GB/s, {work.bytes / seconds / self.bytes:.0%} of a copy"
        return f"{work.bytes / seconds / 1e9:.1f} GB/s" if work.bytes else ""


@dataclass
class Peak:
    """The machine's own limits, as measured in every round."""

    answers: list[dict] = field(default_factory=list)

    def roof(self) -> Roof:
        if not self.answers:  # only whole runs were measured
            return Roof(math.nan, math.nan)
        return Roof(
            *(max(x[what] / x[time] for x in self.answers) for what, time in (("flops", "seconds"), ("bytes", "copy")))
        )


def measure_in_turns(works: list[Work], engines: list[str], config: Config, folder: str, peak: Peak) -> None:
    """Fills the works of one section: its engines live side by side, and each round asks all of them."""
    threads = {name: 1 if name in ("ddp-gloo", *POOLS) else config.threads for name in [*engines, "registers"]}
    processes = [Process(name, count, folder) for name, count in threads.items()]
    rounds = max(1, config.rounds // 4) if works[0].section == "epochs" else config.rounds
    seconds = config.seconds / 10 if works[0].section in ("kernels", "collectives") else config.seconds
    few = ("start", "recover")  # what takes seconds
    for work in works:
        print(f"... {work.title}", file=sys.stderr)
        for _ in range(max(2, rounds // 3) if work.arguments.get("what") in few else rounds):
            for process in processes[:-1]:
                if process.name not in work.errors:
                    work.add(process.name, process.ask(work.request, work.arguments, seconds))
            peak.answers.append(processes[-1].ask("peak", {}, 0.02))
    for process in processes:
        process.close()


def measure_runs(work: Work, engines: list[str], config: Config, folder: str) -> None:
    """Whole processes, from start to the goal. Run 0 fills each engine's cache of compiled code and is not counted."""
    for run in range(1 + max(1, config.rounds // 4)):
        print(f"... {work.title}, run {run}", file=sys.stderr)
        for name in engines:
            start = time.perf_counter()
            process = Process(name, config.threads, folder)
            answer = process.ask(work.request, work.arguments | {"seed": run}, 0)
            seconds = time.perf_counter() - start
            answer |= {"seconds": seconds, "seconds an epoch": seconds / answer.get("epochs", 1)}
            process.close()
            if run or "error" in answer:
                work.add(name, answer)


# --- the report -------------------------------------------------------------------------------------------------------


def scaled(seconds: float) -> str:
    unit, factor = next(
        (u, f) for u, f, least in (("s", 1, 0.1), ("ms", 1e3, 2e-3), ("us", 1e6, 0)) if seconds >= least
    )
    return f"{seconds * factor:.{2 if unit == 's' else 1}f} {unit}"


def print_work(work: Work, roof: Roof) -> None:
    """One table: an engine a line, the fastest first."""
    print(f"\n{work.section}: {work.title}")
    print(f"  {'engine':<18}{'best':>10}{'median':>10}   {'ours is faster: best, median':<31}")
    for name in sorted(work.seconds, key=lambda name: min(work.seconds[name])):
        best, median = min(work.seconds[name]), statistics.median(work.seconds[name])
        ratio = f"{work.ratio(name):.2f}x, {work.ratio(name, statistics.median):.2f}x" if work.ours else ""
        note = roof.share(work, best) or ", ".join(f"{k} {v:.4g}" for k, v in work.facts[name].items())
        print(f"  {name:<18}{scaled(best):>10}{scaled(median):>10}   {ratio:<20} {note}")
    for name, error in work.errors.items():
        print(f"  {name:<18} did not run: {error}")
    losses = {name: facts["loss"] for name, facts in work.facts.items() if "loss" in facts}
    middle = statistics.median(losses.values()) if losses else 0
    for name, loss in losses.items():
        if abs(loss - middle) > 1e-3 * middle:
            print(f"  {name} does OTHER WORK: loss {loss:.6g} after 16 steps, the median engine has {middle:.6g}")
    if losses:
        print(f"  loss after 16 steps: {min(losses.values()):.6f} to {max(losses.values()):.6f}")


def print_kernels(works: list[Work], roof: Roof) -> None:
    """One line a kernel: the best round of each engine in us, and ours against the fastest peer."""
    names = [n for n in ENGINES if any(n in work.seconds for work in works)]
    print(
        "\nkernels: best round, us"
        + f"\n  {'':<26}"
        + "".join(f"{n:>12}" for n in names)
        + "   ours is faster: best, median; than; speed"
    )
    for work in works:
        cells = [f"{min(work.seconds[n]) * 1e6:>12.1f}" if n in work.seconds else f"{'-':>12}" for n in names]
        note = ""
        if work.ours and work.peers:
            best, median = work.ratio(work.rival), work.ratio(work.rival, statistics.median)
            note = f"{best:5.2f}x, {median:5.2f}x  {work.rival:<8}" + ("LOSE" if max(best, median) < 1 else "")
        ours = roof.share(work, min(work.seconds[work.ours])) if work.ours else ""
        print(f"  {work.title:<26}{''.join(cells)}   {note:<28} {ours}")
        for name, error in work.errors.items():
            print(f"    {name} did not run: {error}")


def verdict(works: list[Work]) -> str:
    """Where we win and where we lose, against the fastest peer of each work; losses first."""
    lines = []
    for work in works:
        if not (work.ours and work.peers):
            continue
        rival = work.rival
        best, median = work.ratio(rival), work.ratio(rival, statistics.median)
        word = "ahead of" if min(best, median) >= 1 else "LOSE to" if max(best, median) < 1 else "level with"
        shown = [1 / r if word == "LOSE to" else r for r in (best, median)]
        note = f"{shown[0]:5.2f}x best, {shown[1]:5.2f}x median"
        lines.append(f"  {word:<10} {rival:<14} {note}   {work.section}: {work.title}")
    return "\n".join(sorted(lines, key=lambda line: "LOSE" not in line))


def draw(works: list[Work], path: str) -> None:
    """A bar a peer: how many times as long as ours its best round takes."""
    import matplotlib.pyplot as plt

    works = [work for work in works if work.ours and work.peers and work.section != "kernels"]
    if not works:
        raise ConfigError("--picture: expected figures of scratchnet and a peer in steps, epochs or accuracy, got none")
    sizes = [len(work.peers) for work in works]
    figure, axes = plt.subplots(
        len(works), 1, figsize=(8, 0.9 * len(works) + 0.28 * sum(sizes)), sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": sizes}, layout="constrained",
    )  # fmt: skip
    for ax, work in zip(axes[:, 0], works, strict=True):
        names = sorted(work.peers, key=work.ratio, reverse=True)
        ratios = [work.ratio(name) for name in names]
        bars = ax.barh(names, ratios, color=["#4878a8" if ratio >= 1 else "#b8503c" for ratio in ratios])
        ax.bar_label(bars, [f"{ratio:.2f}x" for ratio in ratios], padding=3, fontsize=8)
        ax.axvline(1, color="black", linewidth=1)
        ax.set_title(
            f"{work.section}: {work.title} ({work.ours} {scaled(min(work.seconds[work.ours]))})", fontsize=9, loc="left"
        )
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.12)
    axes[-1, 0].set_xlabel("time of its best round / time of ours; right of the line we are faster", fontsize=8)
    figure.savefig(path, dpi=150)


def print_pool(works: list[Work]) -> None:
    """What the pool's figures say together, best rounds and medians."""
    print("\npool, in short: best, median")
    for work in works:
        of = {name: [f(times) for f in (min, statistics.median)] for name, times in work.seconds.items()}

        def say(text: str, name: str, other: str, work: Work = work, of: dict = of) -> None:
            """How many times as long `name` takes as `other`."""
            if name in of and other in of:
                best, median = (a / b for a, b in zip(of[name], of[other], strict=True))
                print(f"  {best:6.3f} {median:6.3f}  {text}: {work.title}")

        what = work.arguments["what"]
        if what == "measure" and work.arguments["shards"] == 2:
            say("times as fast as PyTorch's DDP over Gloo, 2 processes each", "ddp-gloo", "pool-2")
            say("times as fast as one process with 2 threads", "scratchnet", "pool-2")
            say("times as long as with one page instead of two", "pool-2", "pool-2-one-page")
            say("times as long as with one page and without claims", "pool-2", "pool-2-unguarded")
        if what == "measure":
            for n in (2, 3, 4):
                say(f"speed-up of {n} workers", "pool-1", f"pool-{n}")
        if what == "merge":
            say("of the speed at which copies move as many bytes", "copies", "pool-2")
        if what in ("recover", "start") and work.ours:
            times = work.seconds[work.ours]
            figures = f"{min(times):6.3f} {statistics.median(times):6.3f} {max(times):6.3f}"
            print(f"  {figures}  s, best, median, worst: {work.title}")
    memory = next((work.facts["pool-2"] for work in works if "USS MB" in work.facts.get("pool-2", {})), {})
    print("  a worker adds " + ", ".join(f"{k} {memory[k]:.1f}" for k in memory if k.endswith("MB")))


def draw_speedup(works: list[Work], path: str) -> None:
    """Speed against one worker, by number of workers; the cores that there are end the straight line."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    cores, most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 1
    for work in works:
        times = {n: min(work.seconds[f"pool-{n}"]) for n in range(1, 9) if f"pool-{n}" in work.seconds}
        if 1 in times:
            label = work.title.partition(", ")[2]
            ax.plot(list(times), [times[1] / t for t in times.values()], marker="o", label=label)
            most = max(times)
    ax.plot([1, cores, most], [1, cores, cores], color="black", linewidth=0.8, linestyle=":", label=f"{cores} cores")
    ax.set(
        xlabel="workers, one thread each", ylabel="speed, of one worker's", xticks=range(1, most + 1), ylim=(0, None)
    )
    ax.legend(fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(config: Config) -> None:
    for name in ("threads", "rounds"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {getattr(config, name)}")
    if hasattr(os, "sched_setaffinity"):  # every engine inherits it; JAX counts the cores that it may use
        cores = sorted(os.sched_getaffinity(0))
        if {"collectives", "pool"} & set(config.sections) and config.threads < 2:
            raise ConfigError("--threads: expected a core for each of the 2 processes of collectives and pool, got 1")
        if config.threads > len(cores):
            raise ConfigError(f"--threads: expected at most {len(cores)}, the cores here, got {config.threads}")
        os.sched_setaffinity(0, cores[: config.threads])
    here = [name for name in config.engines if importlib.util.find_spec(ENGINES[name][1])]
    facts = machine(config)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if missing := set(config.engines) - set(here):
        print(f"not installed, so not measured: {', '.join(sorted(missing))}")
    peak, done = Peak(), []
    with tempfile.TemporaryDirectory() as folder:
        write_data(config.data, folder)
        for section in config.sections:
            works = works_of(section, config)
            engines = [name for name in here if section in ENGINES[name][2]]
            if section == "accuracy":
                measure_runs(works[0], engines, config, folder)
            else:
                measure_in_turns(works, engines, config, folder, peak)
            done += works
    roof = peak.roof()
    print(f"peak: {roof.flops / 1e9:.0f} GFLOP/s on {config.threads} threads, float32, a loop on registers only")
    print(f"copy: {roof.bytes / 1e9:.0f} GB/s read and written, {4 * ELEMENTS[0] * ELEMENTS[1] >> 20} MiB arrays")
    for work in done:
        if work.section != "kernels":
            print_work(work, roof)
    if kernels := [work for work in done if work.section == "kernels"]:
        print_kernels(kernels, roof)
    print(f"\nscratchnet against the fastest peer\n{verdict([w for w in done if w.section != 'kernels'])}")
    if shared := [work for work in done if work.section == "pool"]:
        print_pool(shared)
        if config.speedup:
            draw_speedup([work for work in shared if work.arguments["shards"] == 4], config.speedup)
    if config.json:
        report = {
            "machine": facts,
            "config": asdict(config),
            "roof": roof._asdict(),
            "works": [w.report() for w in done],
        }
        Path(config.json).write_text(json.dumps(report, indent=1))
    if config.picture:
        draw(done, config.picture)


if __name__ == "__main__":
    run_script(main, Config)
