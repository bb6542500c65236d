"""Products, training steps and accuracies in bfloat16 beside float32, and beside PyTorch's where it is installed.

    python scripts/bench/precision.py                               # times, the best round, on one thread and on two
    python scripts/bench/precision.py --sections memory             # of the largest step's process, at most
    python scripts/bench/precision.py --sections accuracy           # of 784-128-10, three seeds in two precisions
    env OMP_PROC_BIND=close python scripts/bench/precision.py       # binds PyTorch's threads, as ours are

All take turns in one process. PyTorch's products have operands that are bfloat16 beforehand, ours round theirs in that
time; its steps run under torch.autocast.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import multiprocess
import numpy as np
from convolution import peak_memory

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.kernels import order_of_bfloat16

SECTIONS = "products", "steps", "memory", "accuracy"
PRODUCTS = (1024, 1024, 1024), (512, 784, 1024), (64, 784, 128), (32, 1024, 1024), (512, 1024, 32), (512, 32, 1024)
PRODUCTS += (8, 784, 128), (512, 1024, 10), (512, 10, 1024)  # these are small: of a side below 32
STEPS = ((784, 128, 10), 64), ((784, 128, 10), 512), ((784, 1024, 1024, 10), 512)
PRECISIONS = "float32", "bfloat16"
Works = dict[str, Callable[[], object]]


@dataclass
class Config:
    """Time products and steps in two precisions, or train in both."""

    sections: tuple[str, ...] = flag(SECTIONS[:2], "what is measured", SECTIONS)
    rounds: int = flag(12, "how often; the best counts, and the rounds of all are interleaved")
    threads: tuple[int, ...] = flag((1, 2), "threads to use, one number after the other")
    data: str = flag("fashion-mnist", "data set of the accuracies, or a folder in MNIST format")
    epochs: int = flag(5, "of a run whose accuracy is measured")
    seeds: tuple[int, ...] = flag((0, 1, 2), "of the runs whose accuracy is measured")


def products(torch: Any, shape: tuple[int, int, int]) -> Works:
    """A product (m, k) @ (k, n) by each."""
    m, k, n = shape
    a, b = sn.randn(m, k), sn.randn(k, n)

    def product(precision: str) -> sn.Tensor:
        with sn.precision(precision):
            return a @ b

    works: Works = {name: lambda name=name: product(name) for name in PRECISIONS}
    for name in PRECISIONS if torch else ():
        x, y = (torch.tensor(operand.numpy()).to(getattr(torch, name)) for operand in (a, b))
        works[f"PyTorch {name}"] = lambda x=x, y=y: x @ y
    return works


def steps(torch: Any, network: tuple[tuple[int, ...], int]) -> Works:
    """A step of SGD with momentum on a batch by each: sizes of the layers, rows."""
    (widths, rows), works = network, Works()
    x, y = np.random.default_rng(0).random((rows, widths[0]), np.float32), np.arange(rows) % widths[-1]
    for name in PRECISIONS:
        works[name] = own_step(name, widths, sn.Tensor(x), sn.Tensor(y))
    for name in PRECISIONS if torch else ():
        works[f"PyTorch {name}"] = peer_step(torch, name, widths, torch.tensor(x), torch.tensor(y))
    return works


def own_step(precision: str, widths: tuple[int, ...], x: sn.Tensor, y: sn.Tensor) -> Callable[[], object]:
    sn.manual_seed(0)
    model, loss = sn.nn.MLP(*widths), sn.nn.CrossEntropyLoss()
    optimizer = sn.optim.SGD(model.parameters(), 0.01, 0.9)

    @sn.jit
    def step(x: sn.Tensor, y: sn.Tensor) -> sn.Tensor:
        optimizer.zero_grad()
        with sn.precision(precision):
            error = loss(model(x), y)
        error.backward()
        optimizer.step()
        return error

    return lambda: step(x, y)


def peer_step(torch: Any, precision: str, widths: tuple[int, ...], x: Any, y: Any) -> Callable[[], object]:
    layers = [layer for m, n in itertools.pairwise(widths) for layer in (torch.nn.Linear(m, n), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            error = torch.nn.functional.cross_entropy(model(x), y)
        error.backward()
        optimizer.step()

    return step


def best_of(works: Works, rounds: int) -> dict[str, float]:
    """Microseconds of each, the best round; short ones run several times in a round."""
    counts = {}
    for name, work in works.items():
        for _ in range(3):  # the first ones compile and record
            start = time.perf_counter()
            work()
        counts[name] = max(1, min(50, int(2e-3 / (time.perf_counter() - start))))
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                work()
            best[name] = min(best[name], (time.perf_counter() - start) / counts[name] * 1e6)
    return best


def show(title: str, best: dict[str, float]) -> None:
    line = f"{title:<34}"
    for wide, half in zip(*[iter(best)] * 2, strict=True):
        line += f" {best[wide]:>10,.0f} {best[half]:>10,.0f} {best[wide] / best[half]:>6.2f}x"
    print(line, flush=True)


def memory() -> None:
    """MB that a process takes at most for the largest step, in each precision, less what importing takes."""
    for name in PRECISIONS:
        receiver, sender = multiprocess.get_context("spawn").Pipe(duplex=False)
        process = multiprocess.get_context("spawn").Process(target=send_peak, args=(sender, name))
        process.start()
        print(f"memory, {name:<10} {receiver.recv():>6.0f} MB", flush=True)
        process.join()


def send_peak(sender: Any, precision: str) -> None:
    widths, rows = STEPS[-1]
    before = peak_memory()
    step = own_step(precision, widths, sn.rand(rows, widths[0]), sn.Tensor(np.arange(rows) % widths[-1]))
    for _ in range(3):
        step()
    sender.send(peak_memory() - before)


def accuracies(config: Config) -> None:
    """Test accuracy after some epochs of 784-128-10, by seed. The rate falls to 0: else epochs differ by a point."""
    train, test = sn.data.load(config.data)
    for precision in PRECISIONS:
        found = []
        for seed in config.seeds:
            sn.manual_seed(seed)
            model = sn.nn.MLP(784, 128, 10)
            rule = sn.optim.SGD(model.parameters(), 0.05, 0.9)
            loader = sn.data.DataLoader(train, 64, shuffle=True, seed=seed)
            falls = sn.optim.lr_scheduler.CosineAnnealingLR(rule, config.epochs * len(loader))
            trainer = sn.Trainer(model, rule, sn.nn.CrossEntropyLoss(), falls, progress=False, precision=precision)
            trainer.fit(loader, epochs=config.epochs)
            found.append(100 * trainer.evaluate(sn.data.DataLoader(test, 1000))["accuracy"])
        print(f"{precision:<10} {' '.join(f'{x:.2f}' for x in found)} %, median {np.median(found):.2f} %", flush=True)


def main(config: Config) -> None:
    sn.set_num_threads(max(config.threads))  # before PyTorch binds this thread to one core
    try:
        import torch
    except ImportError:
        torch = None
    print(f"bfloat16 takes the way {order_of_bfloat16()!r}")
    peers = f"  PyTorch {torch.__version__}: float32, bfloat16" if torch else ""
    for threads in config.threads if {"products", "steps"} & {*config.sections} else ():
        sn.set_num_threads(threads)
        if torch:
            torch.set_num_threads(threads)
        print(f"{threads} threads, microseconds; scratchnet: float32, bfloat16{peers}")
        for shape in PRODUCTS if "products" in config.sections else ():
            show(f"product {' x '.join(map(str, shape))}", best_of(products(torch, shape), config.rounds))
        for widths, rows in STEPS if "steps" in config.sections else ():
            title = f"step {'-'.join(map(str, widths))} @{rows}"
            show(title, best_of(steps(torch, (widths, rows)), config.rounds))
    if "memory" in config.sections:
        memory()
    if "accuracy" in config.sections:
        accuracies(config)


if __name__ == "__main__":
    run_script(main, Config)
