"""The host's share of a training step on a GPU: launches, and CPU seconds of this thread, eager and recorded.

Under the stub driver, where a GPU takes no time, that is all there is:

    LD_LIBRARY_PATH=FOLDER_OF_THE_STUB python scripts/gpu/gpu_host.py

tests/helpers/stub_driver.py builds the stub. docs/gpu.md has these figures.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script


@dataclass
class Config:
    """Measure the host's share of a step on a GPU."""

    batch: int = flag(64, "samples of a batch")
    steps: int = flag(40, "of a mean; the least of seven means counts")


def main(config: Config) -> None:
    sn.manual_seed(0)
    model = sn.nn.MLP(784, 128, 10).to("cuda")
    optimizer, loss_of = sn.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), sn.nn.CrossEntropyLoss()
    x = sn.Tensor(np.zeros((config.batch, 784), np.float32)).to("cuda")
    y = sn.Tensor(np.zeros(config.batch, np.int64)).to("cuda")

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    start = time.perf_counter()
    step(x, y)
    sn.cuda.synchronize()
    print(f"first step: {time.perf_counter() - start:.2f} s")
    recorded = sn.jit(step)
    for name, run in {"eager": step, "recorded": recorded}.items():
        print(f"{name}: {_mean(lambda run=run: run(x, y), config.steps) * 1e6:.0f} us of CPU time a step")


def _mean(run: Callable[[], object], steps: int) -> float:
    means = []
    for _ in range(7):
        for _ in range(3):
            run()
        start = time.thread_time()
        for _ in range(steps):
            run()
        means.append((time.thread_time() - start) / steps)
        sn.cuda.synchronize()
    return min(means)


if __name__ == "__main__":
    run_script(main, Config)
