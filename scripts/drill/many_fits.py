"""Shows that fits leave nothing behind in their process: threads, open files, children and memory stay as they were.

    python scripts/drill/many_fits.py

Each fit has a model, optimizer and data set of its own; fits 1, 51, 101, ... have worker processes. The first tenth
fills caches. After it nothing may grow but memory, by less than 8 MB. The exit status is 1 if something did.
"""

import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script

MEMORY = 8.0  # MB by which the last fit may exceed the first counted one


@dataclass
class Config:
    """Fit small networks one after the other in one process, and count what they leave behind."""

    fits: int = flag(1000, "networks to fit")
    workers: int = flag(2, "processes of every 50th fit")
    jit: bool = flag(True, "record the steps")


def fit(number: int, workers: int, jit: bool) -> None:
    rng = np.random.default_rng(number)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, (x[:, 0] > 0).astype(np.int64)), batch_size=16, shuffle=True)
    model = sn.nn.MLP(8, 16, 2)
    optimizer = sn.optim.Adam(model.parameters(), lr=0.01)
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), workers=workers, shards=4, progress=False, jit=jit)
    trainer.fit(loader, loader, epochs=2)


def left_behind() -> dict[str, float]:
    """What this process has now: threads, open files, children, and MB of memory that it alone has."""
    gc.collect()
    task = Path("/proc/self/task")
    return {
        "threads": len(list(task.iterdir())),
        "files": len(os.listdir("/proc/self/fd")),
        "children": sum(len((thread / "children").read_text().split()) for thread in task.iterdir()),
        "MB": round(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
    }


def main(config: Config) -> None:
    first: dict[str, float] = {}
    print("   fit  threads  files  children      MB")
    for number in range(1, config.fits + 1):
        fit(number, config.workers if number % 50 == 1 else 1, config.jit)
        if number % max(config.fits // 10, 1) == 0:
            now = left_behind()
            first = first or now
            print(f"{number:6}  {now['threads']:7}  {now['files']:5}  {now['children']:8}  {now['MB']:6}", flush=True)
    grown = [name for name, value in now.items() if value > first[name] + (MEMORY if name == "MB" else 0)]
    if grown:
        sys.exit(f"many_fits.py: expected nothing left behind, but {', '.join(grown)} grew")


if __name__ == "__main__":
    run_script(main, Config)
