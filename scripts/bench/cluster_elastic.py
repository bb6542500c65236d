"""Trains while one of the two machines of a cluster goes and another comes: SHA-256, numbers of ranks, seconds lost.

    python scripts/bench/cluster_elastic.py                  # on what is installed of Spark, Ray, Dask
    python scripts/bench/cluster_elastic.py --only ray

After step 7 the second machine is killed: a worker of Spark and its executor, a node of Ray, a worker of Dask. The job
waits for it for 20 s, and goes on with one rank. After step 11 another one comes, the rank dies, and two go on. A line
that has another SHA-256 than one process, or other ranks than 2, 1, 2, is an error.
"""

import concurrent.futures
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet.errors import ScratchnetError
from scratchnet.flags import flag, run_script
from scratchnet.parallel import SerialCommunicator
from scratchnet.testing.schedulers import PARTS, Parts

GOES, COMES, EVERY = 7, 11, 4  # the steps after which that happens; steps from checkpoint to checkpoint
WAIT = 300.0  # seconds that a job waits for what must happen to it


@dataclass
class Config:
    """Train while machines go and come."""

    only: tuple[str, ...] = flag(tuple(PARTS), "which of them", list(PARTS))


class Steps:
    """A callback: rank 0 notes when each step is done and by how many ranks, and lets happen what must."""

    def __init__(self, folder: Path, ranks: int):
        self.folder, self.ranks = folder, ranks

    def on_step_end(self, run: Any) -> None:
        with (self.folder / "steps").open("a") as file:
            file.write(f"{run.step} {self.ranks} {time.time()}\n")
        if run.step == GOES and self._is_first("goes"):
            time.sleep(WAIT)
        if run.step == COMES and self._is_first("comes"):
            wait_for(self.folder / "has come")
            (self.folder / "dies").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self, name: str) -> bool:
        is_first = not (self.folder / name).exists()
        (self.folder / name).touch()
        return is_first


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected {path.name} within {WAIT:.0f} s")
        time.sleep(0.02)


def train(comm: Any, folder: str | None) -> str:
    """SHA-256 of the parameters at the end."""
    sn.manual_seed(1)
    x = np.random.default_rng(0).normal(size=(96, 32)).astype(np.float32)
    model = sn.nn.Sequential(sn.nn.Linear(32, 64), sn.nn.Dropout(0.2), sn.nn.ReLU(), sn.nn.Linear(64, 2))
    trainer = sn.Trainer(
        model, sn.optim.Adam(model.parameters(), 0.01), sn.nn.CrossEntropyLoss(), shards=4, progress=False,
        folder=folder and f"{folder}/run", save_every=EVERY,
        callbacks=[Steps(Path(folder), comm.size)] if folder else [],
    )  # fmt: skip
    data = sn.data.TensorDataset(x, (x[:, 0] > 0).astype(np.int64))
    loader = sn.data.DataLoader(data, 16, shuffle=True, seed=3)
    trainer.fit(loader, epochs=3, resume="auto" if folder else None)
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def disturb(folder: Path, parts: Parts) -> None:
    wait_for(folder / "goes")
    parts.lose()
    (folder / "lost").write_text(str(time.time()))
    wait_for(folder / "comes")
    parts.come()
    (folder / "has come").touch()


def measure(make: Callable[[Path], Any], folder: Path) -> tuple[set[str], list[int], float, float]:
    """(SHA-256 of all ranks, how many there were at each start, seconds lost as one goes, and as one comes)."""
    with make(folder) as parts, concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(parts.run, train, str(folder), ranks=2, restarts=2, at_least=1)
        disturb(folder, parts)  # here: Ray starts a node in the main thread alone
        found = set(job.result())
    steps = [line.split() for line in (folder / "steps").read_text().splitlines()]
    again = [float([when for step, _, when in steps if int(step) == at][-1]) for at in (GOES, COMES)]
    lost = [end - float((folder / name).read_text()) for name, end in zip(("lost", "dies"), again, strict=True)]
    starts = [int(ranks) for i, (step, ranks, _) in enumerate(steps) if not i or int(step) <= int(steps[i - 1][0])]
    return found, starts, lost[0], lost[1]


def main(config: Config) -> None:
    expected = train(SerialCommunicator(), None)
    print(f"{'one process':<12} {'':>10} {'':>12} {'':>12}  {expected}")
    print(f"{'':<12} {'ranks':>10} {'one goes, s':>12} {'one comes, s':>12}  sha256")
    for name in config.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found, starts, goes, comes = measure(PARTS[name], Path(folder))
            except ImportError as error:
                print(f"{name:<12} not here: {error}")
                continue
        shown = ", ".join(map(str, starts))
        print(f"{name:<12} {shown:>10} {goes:>12.1f} {comes:>12.1f}  {' '.join(found)}", flush=True)
        if found != {expected} or starts != [2, 1, 2]:
            raise ScratchnetError(f"{name}: expected {expected} by 2, 1, 2 ranks, got {' '.join(found)} by {shown}")


if __name__ == "__main__":
    run_script(main, Config)
