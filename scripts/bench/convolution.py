"""The convolutional networks of the benchmark, as data: the modules of both libraries, and their arithmetic."""

import resource
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Network(NamedTuple):
    """Layers: the name of a class that scratchnet and PyTorch both have, and its arguments."""

    shape: tuple[int, int, int]
    batch: int
    layers: tuple[tuple, ...]


def _stage(before: int, after: int) -> list[tuple]:
    """Two convolutions with batch norm, then half the size."""
    pairs = ((before, after), (after, after))
    rows = [(("Conv2d", i, o, 3, 1, 1), ("BatchNorm2d", o), ("ReLU",)) for i, o in pairs]
    return [layer for row in rows for layer in row] + [("MaxPool2d", 2)]


NETWORKS = {
    "LeNet-5": Network(
        (1, 28, 28), 64,
        (
            ("Conv2d", 1, 6, 5, 1, 2), ("ReLU",), ("MaxPool2d", 2), ("Conv2d", 6, 16, 5), ("ReLU",), ("MaxPool2d", 2),
            ("Flatten",), ("Linear", 400, 120), ("ReLU",), ("Linear", 120, 84), ("ReLU",), ("Linear", 84, 10),
        ),
    ),
    "six convolutions": Network(
        (3, 32, 32), 128, (*_stage(3, 32), *_stage(32, 64), *_stage(64, 128), ("Flatten",), ("Linear", 2048, 10))
    ),
}  # fmt: skip


def products(network: Network) -> Iterator[tuple[int, int, int]]:
    """(outputs, terms of each, samples) of each layer that is a product."""
    channels, height, width = network.shape
    for name, *options in network.layers:
        if name == "Conv2d":
            before, channels, kernel, _, padding = (*options, 1, 0)[:5]
            height, width = (n + 2 * padding - kernel + 1 for n in (height, width))
            yield channels * height * width, before * kernel**2, network.batch
        elif name == "MaxPool2d":
            height, width = height // 2, width // 2
        elif name == "Linear":
            yield options[1], options[0], network.batch


def operations(network: Network) -> float:
    """Additions and multiplications of a training step: forward, weights, and inputs but for the first layer."""
    sizes = [2.0 * outputs * terms * samples for outputs, terms, samples in products(network)]
    return 3 * sum(sizes) - sizes[0]


def built(network: Network, nn: Any) -> Any:
    return nn.Sequential(*[getattr(nn, name)(*options) for name, *options in network.layers])


def values(network: Network, seed: int = 0) -> list[np.ndarray]:
    """Parameters in PyTorch's order and layout, U(-b, b), b = terms ** -0.5; batch norm's are 1 and 0."""
    rng, found = np.random.default_rng(seed), []
    for name, *options in network.layers:
        if name in ("Conv2d", "Linear"):
            shape = (options[1], options[0], options[2], options[2]) if name == "Conv2d" else (options[1], options[0])
            bound = np.prod(shape[1:]) ** -0.5
            found += [rng.uniform(-bound, bound, s).astype(np.float32) for s in (shape, shape[:1])]
        elif name == "BatchNorm2d":
            found += [np.ones(options[0], np.float32), np.zeros(options[0], np.float32)]
    return found


def samples(network: Network) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.random((network.batch, *network.shape), np.float32), rng.integers(0, 10, network.batch)


def peak_memory() -> float:
    """MB of memory that this process had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
