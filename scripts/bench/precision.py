"""Products and training steps in bfloat16 beside float32, and beside PyTorch's where it is installed.

python scripts/bench/precision.py                # milliseconds, the best of 12, on one thread and on two
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.kernels import order_of_bfloat16

WIDTHS, BATCH, SIDE = (784, 1024, 1024, 10), 512, 1024
PRECISIONS = "float32", "bfloat16"


@dataclass
class Config:
    """Time products and steps in two precisions."""

    rounds: int = flag(12, "how often; the best counts, and the rounds of all are interleaved")
    threads: tuple[int, ...] = flag((1, 2), "threads to use, one number after the other")


def own(precision: str) -> dict[str, Callable[[], object]]:
    """What scratchnet computes, by name."""
    sn.manual_seed(0)
    model, loss = sn.nn.MLP(*WIDTHS), sn.nn.CrossEntropyLoss()
    optimizer = sn.optim.SGD(model.parameters(), 0.01, 0.9)
    x, y, a = sn.randn(BATCH, WIDTHS[0]), sn.Tensor(np.arange(BATCH) % WIDTHS[-1]), sn.randn(SIDE, SIDE)

    @sn.jit
    def step(x: sn.Tensor, y: sn.Tensor) -> sn.Tensor:
        optimizer.zero_grad()
        with sn.precision(precision):
            error = loss(model(x), y)
        error.backward()
        optimizer.step()
        return error

    def product() -> sn.Tensor:
        with sn.precision(precision):
            return a @ a

    return {f"product, {precision}": product, f"step, {precision}": lambda: step(x, y)}


def peer(torch: Any, precision: str) -> dict[str, Callable[[], object]]:
    """The same in PyTorch: operands of the product are bfloat16 beforehand, the step is under autocast."""
    layers = [torch.nn.Linear(m, n) for m, n in itertools.pairwise(WIDTHS)]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    x, y, a = torch.randn(BATCH, WIDTHS[0]), torch.arange(BATCH) % WIDTHS[-1], torch.randn(SIDE, SIDE)
    a = a.to(getattr(torch, precision))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            error = torch.nn.functional.cross_entropy(model(x), y)
        error.backward()
        optimizer.step()

    return {f"product, {precision}, PyTorch": lambda: a @ a, f"step, {precision}, PyTorch": step}


def main(config: Config) -> None:
    try:
        import torch
    except ImportError:
        torch = None
    works = {name: work for precision in PRECISIONS for name, work in own(precision).items()}
    if torch is not None:
        works |= {name: work for precision in PRECISIONS for name, work in peer(torch, precision).items()}
    print(f"bfloat16 takes the way {order_of_bfloat16()!r}")
    for threads in config.threads:
        sn.set_num_threads(threads)
        if torch is not None:
            torch.set_num_threads(threads)
        best = dict.fromkeys(works, float("inf"))
        for number in range(config.rounds + 3):  # the first ones compile and record
            for name, work in works.items():
                start = time.perf_counter()
                work()
                if number >= 3:
                    best[name] = min(best[name], time.perf_counter() - start)
        for name in sorted(best):
            print(f"{threads} threads  {name:<28} {best[name] * 1e3:>8.2f} ms")


if __name__ == "__main__":
    run_script(main, Config)
