"""Times the training step of the reference network beside PyTorch: the same work, in turns, each in its own process.

    python scripts/bench.py                  # needs pip install "scratchnet[bench]" for the PyTorch rows

Every engine runs the same step: forward, cross-entropy, backward, SGD with momentum 0.9, on one batch of float32
images. A round times each engine once (a burst of steps); the table gives the best and the median round.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scratchnet.flags import flag, run_script


@dataclass
class Config:
    """Time a training step of multi-layer perceptrons, in turns with PyTorch's eager mode."""

    engines: tuple[str, ...] = flag(("scratchnet", "torch"), "who takes part: scratchnet, torch")
    batch_sizes: tuple[int, ...] = flag((64, 512), "samples a step")
    widths: tuple[int, ...] = flag((784, 128, 10), "the network's layers")
    threads: int = flag(2, "threads of every engine")
    rounds: int = flag(15, "rounds of each engine")
    seconds: float = flag(0.3, "length of one round")
    serve: str | None = flag(None, "internal: run one engine and answer requests on standard input")


def batch(config: Config, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, config.widths[0]), np.float32)
    return x, rng.integers(0, config.widths[-1], batch_size)


def scratchnet_step(config: Config, batch_size: int) -> Callable[[], object]:
    import scratchnet as sn

    sn.set_num_threads(config.threads)
    x, y = map(sn.Tensor, batch(config, batch_size))
    model, loss_of = sn.nn.MLP(*config.widths), sn.nn.CrossEntropyLoss()
    optimizer = sn.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()

    return step


def torch_step(config: Config, batch_size: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(config.threads)
    x, y = map(torch.from_numpy, batch(config, batch_size))
    layers = []
    for i, o in zip(config.widths, config.widths[1:], strict=False):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    model, loss_of = torch.nn.Sequential(*layers[:-1]), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()

    return step


ENGINES = {"scratchnet": scratchnet_step, "torch": torch_step}


def serve(config: Config) -> None:
    """Answers each line "batch_size" with the seconds that a step took, as the mean of one round."""
    steps: dict[int, Callable[[], object]] = {}
    for line in sys.stdin:
        size = int(line)
        if size not in steps:
            steps[size] = ENGINES[config.serve](config, size)
            for _ in range(20):
                steps[size]()
        done, start = 0, time.perf_counter()
        while (now := time.perf_counter() - start) < config.seconds:
            for _ in range(10):
                steps[size]()
            done += 10
        print(json.dumps(now / done), flush=True)


class Engine:
    """An engine in a process of its own."""

    def __init__(self, name: str, argv: list[str]):
        command = [sys.executable, __file__, *argv, "--serve", name]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time_step(self, batch_size: int) -> float:
        self.process.stdin.write(f"{batch_size}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"bench: {self.name} ended with status {self.process.wait()}")
        return float(json.loads(answer))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main(config: Config) -> None:
    if config.serve:
        return serve(config)
    engines = [Engine(name, sys.argv[1:]) for name in config.engines]
    net = "-".join(map(str, config.widths))
    print(f"eager training step of {net}, float32, {config.threads} threads, {config.rounds} rounds in turns")
    print(f"{'batch':>6} {'engine':<12} {'best us':>9} {'median us':>10} {'GFLOP/s':>8} {'speed-up of scratchnet':>23}")
    for size in config.batch_sizes:
        times: dict[str, list[float]] = {engine.name: [] for engine in engines}
        for _ in range(config.rounds):
            for engine in engines:
                times[engine.name].append(engine.time_step(size))
        # forward and weight gradient of every layer, input gradient of all but the first
        products = [i * o for i, o in zip(config.widths, config.widths[1:], strict=False)]
        flops = 2 * size * (3 * sum(products) - products[0])
        ours = statistics.median(times["scratchnet"]) if "scratchnet" in times else float("nan")
        for name, seconds in times.items():
            median = statistics.median(seconds)
            print(
                f"{size:>6} {name:<12} {min(seconds) * 1e6:>9.0f} {median * 1e6:>10.0f} "
                f"{flops / median / 1e9:>8.1f} {median / ours:>22.2f}x"
            )
    for engine in engines:
        engine.close()


if __name__ == "__main__":
    run_script(main, Config)
