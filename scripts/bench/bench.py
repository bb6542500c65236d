"""Measures scratchnet and the peers that are installed on the same work, in turns, and says who is faster by how much.

    python scripts/bench/bench.py                                    # steps, epochs, time to 88 %; some minutes
    python scripts/bench/bench.py --sections kernels --threads 1     # products against every BLAS, bandwidth of others
    python scripts/bench/bench.py --sections inference               # latency of one sample, throughput of 512
    python scripts/bench/bench.py --sections convolution             # steps of LeNet-5 and of six convolutions
    python scripts/bench/bench.py --sections collectives             # all-reduces of two processes
    python scripts/bench/bench.py --sections pool                    # steps that processes share, and what a pool costs
    pip install torch jax scikit-learn onnx onnxruntime              # the peers

Each engine (engines.py) runs in a process of its own with the same number of threads, on the same cores. In a round
each engine has its turn; the tables give the best and the median round. The peak is that of fused multiply-adds on
registers, measured in the same rounds.
"""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from engine import ELEMENTS
from report import Roof, draw, draw_speedup, print_kernels, print_pool, print_work, verdict
from works import ENGINES, POOLS, STEPS, Work, works_of

from scratchnet.data import load
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script

SECTIONS = ("kernels", "steps", "epochs", "accuracy", "inference", "convolution", "collectives", "pool")
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

    def ask(self, request: str, arguments: dict, seconds: float) -> dict:
        self.process.stdin.write(json.dumps((request, arguments, seconds)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}

    def close(self) -> None:
        self.process.communicate()


def write_data(name: str, folder: str) -> None:
    """The data set as the .npy files that all engines read: images uint8 (n, features), labels int64 (n,)."""
    for part, dataset in zip(("train", "test"), load(name), strict=True):
        for what, array in zip(("images", "labels"), dataset.arrays, strict=True):
            np.save(f"{folder}/{part}-{what}.npy", array)


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    flags, versions = facts.get("flags", "").split(), {}
    for name in ("numpy", "numba", "torch", "jax", "scikit-learn", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": facts.get("model name", platform.processor()).strip(),
        "simd": [name for name in ("avx2", "fma", "avx512f", "asimd") if name in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


# --- measuring --------------------------------------------------------------------------------------------------------


def measure_in_turns(works: Sequence[Work], engines: list[str], config: Config, folder: str) -> list[dict]:
    """Fills the works of one section: its engines live side by side, and each round asks all of them, and then for the
    peak of the machine. Returns the answers to the latter.
    """
    peaks: list[dict] = []
    threads = {name: 1 if name in ("ddp-gloo", *POOLS) else config.threads for name in [*engines, "registers"]}
    *processes, registers = (Process(name, count, folder) for name, count in threads.items())
    rounds = max(1, config.rounds // 4) if works[0].section == "epochs" else config.rounds
    seconds = config.seconds / 10 if works[0].section in ("kernels", "collectives") else config.seconds
    for work in works:
        print(f"... {work.title}", file=sys.stderr)
        takes_seconds = work.arguments.get("what") in ("start", "recover")
        for _ in range(max(2, rounds // 3) if takes_seconds else rounds):
            for process in processes:
                if process.name not in work.errors:
                    work.add(process.name, process.ask(work.request, work.arguments, seconds))
            peaks.append(registers.ask("peak", {}, 0.02))
    for process in (*processes, registers):
        process.close()
    return peaks


def measure_runs(work: Work, engines: list[str], config: Config, folder: str) -> list[dict]:
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
    return []


def take_cores(config: Config) -> None:
    """Every engine inherits so many cores as there are threads; JAX counts the cores that it may use."""
    for name in ("threads", "rounds"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {getattr(config, name)}")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if {"collectives", "pool"} & set(config.sections) and config.threads < 2:
            raise ConfigError("--threads: expected a core for each of the 2 processes of collectives and pool, got 1")
        if config.threads > len(cores):
            raise ConfigError(f"--threads: expected at most {len(cores)}, the cores here, got {config.threads}")
        os.sched_setaffinity(0, cores[: config.threads])


def main(config: Config) -> None:
    take_cores(config)
    here = [name for name in config.engines if importlib.util.find_spec(ENGINES[name].needs)]
    facts = machine(config.threads)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if missing := set(config.engines) - set(here):
        print(f"not installed, so not measured: {', '.join(sorted(missing))}")
    works: dict[str, list[Work]] = {}
    peaks: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        write_data(config.data, folder)
        for section in config.sections:
            works[section] = works_of(section, config.steps, config.goal)
            engines = [name for name in here if section in ENGINES[name].sections]
            if section == "accuracy":
                measure_runs(works[section][0], engines, config, folder)
            else:
                peaks += measure_in_turns(works[section], engines, config, folder)
    roof = Roof.of(peaks)
    print(f"peak: {roof.flops / 1e9:.0f} GFLOP/s on {config.threads} threads, float32, a loop on registers only")
    print(f"copy: {roof.bytes / 1e9:.0f} GB/s read and written, {4 * ELEMENTS[0] * ELEMENTS[1] >> 20} MiB arrays")
    all_works = list(itertools.chain(*works.values()))
    others = [work for work in all_works if work.section != "kernels"]
    for work in others:
        print_work(work, roof)
    if "kernels" in works:
        print_kernels(works["kernels"], roof)
    print(f"\nscratchnet against the fastest peer\n{verdict(others)}")
    if "pool" in works:
        print_pool(works["pool"])
        if config.speedup:
            draw_speedup([work for work in works["pool"] if work.arguments["shards"] == 4], config.speedup)
    if config.json:
        report = {
            "machine": facts,
            "config": asdict(config),
            "roof": roof._asdict(),
            "works": list(map(asdict, all_works)),
        }
        Path(config.json).write_text(json.dumps(report, indent=1))
    if config.picture:
        draw(others, config.picture, roof, facts["cpu"])


if __name__ == "__main__":
    run_script(main, Config)
