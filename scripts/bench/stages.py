"""Measures what stages of a model cost: memory of a worker, one stage against none, and steps that are not recorded.

    python scripts/bench/stages.py
    python scripts/bench/stages.py --sections memory

Two ways take turns, a step each, so that both see the same machine; what is printed is the median of the ratios of such
pairs, and the interval that holds it in 95 of 100 cases (a binomial one: it assumes no distribution of times).
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.parallel import Pipeline
from scratchnet.parallel.engines import engine_of
from scratchnet.parallel.settings import Start

SECTIONS = ("memory", "one stage", "recorded")
BATCH, SHARDS = 256, 8


@dataclass
class Config:
    """Measure stages."""

    sections: tuple[str, ...] = flag(SECTIONS, "what is measured", SECTIONS)
    pairs: int = flag(60, "of steps that are compared")


def settings(strategy: Any, workers: int, width: int, layers: int, **options: Any) -> Any:
    """Of a run with a network of equal layers and Adam."""
    sn.manual_seed(0)
    rng = np.random.default_rng(0)
    data = sn.data.TensorDataset(rng.normal(size=(BATCH, width)).astype(np.float32), rng.integers(0, width, BATCH))
    model = sn.nn.Sequential(*(sn.nn.Linear(width, width) for _ in range(layers)))
    trainer = sn.Trainer(
        model, sn.optim.Adam(model.parameters(), 1e-6), sn.nn.CrossEntropyLoss(), workers=workers, shards=SHARDS,
        strategy=strategy, progress=False, **options,
    )  # fmt: skip
    return trainer._settings(sn.data.DataLoader(data, BATCH))


@contextlib.contextmanager
def running(own: Any) -> Iterator[Any]:
    """An engine, and after it the end of its processes."""
    engine = engine_of(own, Start())
    try:
        yield engine
    finally:
        engine.close()


def step(engine: Any) -> float:
    """Seconds that a step takes."""
    began = time.perf_counter()
    engine.submit(np.arange(BATCH))
    engine.settled()
    return time.perf_counter() - began


def memory(config: Config) -> None:
    """Megabytes of each worker: PSS, in which what several share counts in parts."""
    print("PSS of a worker, MB: the arena, and beyond it Python with its libraries, and graphs of shards under way")
    for layers, width, stages in ((1, 8, 1), (12, 1024, 1), (12, 1024, 2), (12, 1024, 4)):
        own = settings(
            Pipeline(stages), stages, width, layers, jit=False, devices=stages * ("cpu",)
        )  # 1: a process, too
        with running(own) as engine:
            for _ in range(4):
                step(engine)
            found = [_memory(process.pid) for process in engine._processes.processes]
        rows = "  ".join(f"{shared:,.0f} + {rest:,.0f}" for shared, rest in found)
        print(f"  {layers:>2} layers of {width:>4} x {width:<4}  {stages} worker{'s' * (stages > 1):<1}  {rows}")


def _memory(pid: int) -> tuple[float, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return kb["Pss_Shmem"] / 1024, (kb["Pss"] - kb["Pss_Shmem"]) / 1024


def one_stage(config: Config) -> None:
    """Pipeline(1) against AllReduce()."""
    for width in (64, 256, 512):
        pair = [settings(strategy, 1, width, 8) for strategy in (Pipeline(1), "all_reduce")]
        report(f"one stage / none, 8 layers of {width} x {width}", pair, config.pairs)


def recorded(config: Config) -> None:
    """Shards op by op against recorded ones: what stages, which run op by op, could win at most."""
    for width in (64, 256, 512, 1024):
        plain = settings("all_reduce", 1, width, 8, nonfinite="skip")  # of the engine that has shards and slices
        pair = [dataclasses.replace(plain, jit=False), settings("all_reduce", 1, width, 8, nonfinite="skip")]
        report(f"op by op / recorded, 8 layers of {width} x {width}", pair, config.pairs)


def report(what: str, pair: list[Any], pairs: int) -> None:
    """A line with the ratio of two runs."""
    with running(pair[0]) as first, running(pair[1]) as second:
        for _, engine in itertools.product(range(4), (first, second)):
            step(engine)
        times = [(step(first), step(second)) for _ in range(pairs)]
    ratios, (a, b) = sorted(x / y for x, y in times), np.median(times, axis=0)
    reach = math.ceil(0.98 * math.sqrt(pairs))  # 1.96 standard deviations of a binomial number, sqrt(n) / 2
    low, high = (ratios[max(0, min(pairs - 1, pairs // 2 + side * reach))] for side in (-1, 1))
    print(f"{what}: {ratios[pairs // 2]:.3f} ({low:.3f} to {high:.3f}), {1e3 * a:.2f} and {1e3 * b:.2f} ms", flush=True)


def main(config: Config) -> None:
    for name in config.sections:
        {"memory": memory, "one stage": one_stage, "recorded": recorded}[name](config)


if __name__ == "__main__":
    run_script(main, Config)
