"""A step of a table of which a batch has few rows: dense and sparse gradients, scratchnet beside PyTorch if installed.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python scripts/bench/tables.py

Each turn is a process of its own: it looks up `touched` rows of a table of `rows` x `dim`, adds them up, and updates
the table. Printed are the best step, the processor time of that step, and how much more memory the process has after
the steps, with the last gradient and the optimizer's state, than when the table was made.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratchnet.flags import flag, run_script

LAYERS, RULES, GRADIENTS = ("rows", "bags"), ("SGD", "Adagrad", "Adam"), ("dense", "sparse")


@dataclass
class Config:
    """Measure steps of large tables."""

    rows: int = flag(1_000_000, "of the table")
    dim: int = flag(64, "numbers in a row")
    touched: int = flag(8192, "rows of a batch; bags have 32 each")
    steps: int = flag(12, "of a turn")
    rounds: int = flag(3, "turns of each case, of which the best step counts")
    threads: int = flag(2, "of every engine")
    rules: tuple[str, ...] = flag(RULES, "optimizers", RULES)
    turn: str = flag("", "run this turn alone: engine,layer,rule,gradient")


def turn(config: Config, engine: str, layer: str, rule: str, gradient: str) -> dict[str, float]:
    """The best of the steps of one process: seconds, processor time; megabytes that they took."""
    sparse, batches = gradient == "sparse", np.random.default_rng(0).integers(0, config.rows, (4, config.touched))
    if engine == "torch":
        import torch as library

        library.set_num_threads(config.threads)
        make = library.tensor
    else:
        import scratchnet as library

        library.set_num_threads(config.threads)
        make = library.Tensor
    if layer == "bags":
        batches = batches.reshape(len(batches), -1, 32)
    kind = library.nn.EmbeddingBag if layer == "bags" else library.nn.Embedding
    table = kind(config.rows, config.dim, sparse=sparse)
    name = "SparseAdam" if (engine, rule, sparse) == ("torch", "Adam", True) else rule
    before, found = resident(), []
    optimizer = getattr(library.optim, name)(list(table.parameters()), lr=0.01)
    given = [make(batch) for batch in batches]
    for step in range(config.steps):
        began, processor = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        table(given[step % len(given)]).sum().backward()
        optimizer.step()
        found.append((time.perf_counter() - began, time.process_time() - processor))
    seconds, processor = min(found[2:] or found)
    return {"seconds": seconds, "processor": processor, "megabytes": resident() - before}


def resident() -> float:
    """Megabytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def main(config: Config) -> None:
    if config.turn:
        print(json.dumps(turn(config, *config.turn.split(","))))
        return
    engines = ["scratchnet", *["torch"] * (importlib.util.find_spec("torch") is not None)]
    cases = [(layer, rule, kind) for kind in GRADIENTS for layer in LAYERS for rule in config.rules]
    print(f"{config.rows:,} x {config.dim}, {config.touched:,} rows a step, {config.threads} threads")
    for layer, rule, kind in cases:
        if layer == "bags" and rule != config.rules[0]:
            continue
        best: dict[str, dict[str, float]] = {}
        for _ in range(config.rounds):
            for engine in engines:
                line = [sys.executable, *sys.argv, "--turn", f"{engine},{layer},{rule},{kind}"]
                got = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
                best[engine] = min(best.get(engine, got), got, key=lambda found: found["seconds"])
        for engine, got in best.items():
            times = f"{got['seconds'] * 1e3:9.2f} ms, {got['processor'] * 1e3:9.2f} ms of processors"
            print(f"{layer:5}{rule:8}{kind:7}{engine:11}{times}, {got['megabytes']:7.0f} MB more", flush=True)


if __name__ == "__main__":
    run_script(main, Config)
