"""From one core to many processes and a GPU: one network, one program, and only one line of it says where it runs.

python scripts/from_cpu_to_gpu.py

It trains the same network on NumPy, on one and all threads of the CPU, on a GPU where there is one, and by 2 and 4
worker processes that merge their work in three ways. It prints seconds, the speed-up, and whether the bits agree.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.parallel import AllReduce, LocalSGD, ParameterServer


@dataclass
class Config:
    """Train one network in many places, and compare seconds and bits."""

    epochs: int = flag(4, "passes over the training data; the first one, which compiles and starts, is not timed")
    hidden: int = flag(128, "units of the hidden layer")
    samples: int = flag(6000, "images to train on, of the 6,000 that ship with the package")
    workers: tuple[int, ...] = flag((2, 4), "numbers of worker processes")


class Place(NamedTuple):
    """Where a step is computed, and how the gradients of its shards are merged."""

    name: str
    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    strategy: sn.parallel.AllReduce | ParameterServer | LocalSGD = AllReduce()


def places(workers: tuple[int, ...]) -> list[Place]:
    cores = sn.get_num_threads()
    found = [Place("NumPy, one process", "numpy"), Place("compiled, 1 thread")]
    found += [Place(f"compiled, {cores} threads", threads=cores)] * (cores > 1)
    found += [Place("GPU", "cuda")] * sn.cuda.is_available()
    for name, strategy in (
        ("all-reduce", AllReduce()),
        ("parameter server", ParameterServer()),
        ("local averaging", LocalSGD(every=4)),
    ):
        found += [Place(f"{n} workers, {name}", workers=n, strategy=strategy) for n in workers]
    return found


class Clock:
    """A callback that notes when each epoch ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_epoch_end(self, run: object) -> None:
        self.ends.append(time.perf_counter())


def train(place: Place, config: Config, data: sn.data.Dataset) -> tuple[float, np.ndarray]:
    """Seconds of the fastest epoch but the first, and all weights as one array."""
    sn.manual_seed(0)
    sn.set_num_threads(place.threads)
    model = sn.nn.MLP(784, config.hidden, 10).to(place.device)
    optimizer = sn.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = sn.data.DataLoader(data, batch_size=64, shuffle=True, seed=0)
    clock, loss = Clock(), sn.nn.CrossEntropyLoss()
    how = {"workers": place.workers, "strategy": place.strategy}  # the line that says where
    trainer = sn.Trainer(model, optimizer, loss, shards=8, progress=False, callbacks=[clock], **how)
    trainer.fit(loader, epochs=config.epochs)
    weights = np.concatenate([p.detach().cpu().numpy().ravel() for p in model.parameters()])
    return float(np.diff(clock.ends).min()), weights


def main(config: Config) -> None:
    if config.epochs < 2:
        raise sn.ConfigError(f"epochs: expected 2 or more, as the first is not timed, got {config.epochs}")
    data, _ = sn.data.load("fashion-mnist-mini")
    data = sn.data.Subset(data, range(config.samples))
    print(f"784-{config.hidden}-10, {config.samples:,} images, 8 shards a batch of 64, {os.cpu_count()} cores\n")
    print(f"{'':>2}  {'where':<28}{'s an epoch':>11}{'speed-up':>10}   {'weights':<9}")
    seconds, digests = [], []
    for number, place in enumerate(places(config.workers), 1):
        took, weights = train(place, config, data)
        seconds.append(took)
        digests.append(hashlib.sha256(weights.tobytes()).hexdigest()[:8])
        first = digests.index(digests[-1]) + 1
        note = f" same bits as row {first}" if first < number else ""
        print(f"{number:>2}  {place.name:<28}{took:>11.3f}{seconds[0] / took:>9.1f}x   {digests[-1]}{note}", flush=True)


if __name__ == "__main__":
    run_script(main, Config)
