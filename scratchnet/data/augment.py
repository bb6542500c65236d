"""Augmentation: samples that look a little different in each epoch, by random numbers that belong to the sample.

They are counted, not drawn: the numbers of a sample depend on (seed, epoch, sample) alone. So neither the size of a
batch, nor its shards, nor the number of workers changes what a sample looks like.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, ShapeError
from ..kernels.philox import four_words
from .dataset import Samples, View, counts_epochs, gather, on_features, split_epochs

WORD = np.uint64(32)
LOW = np.uint64(2**32 - 1)


class Augmented(View):
    """`dataset` with functions applied, one after the other, to each batch of features: (b, ...) -> (b, ...).

    functions: each is called as f(features, uniform), where uniform (b, 4) float64 in [0, 1) holds four random numbers
    of each sample, others for each function; `RandomCrop` and `RandomHorizontalFlip` are such. It must treat rows
    independently. seed: with the epoch and the number of the sample it determines them: Philox 4x32-10 with the key
    `seed` and the counter (sample, epoch, function).
    Position i, of n samples, is sample i in epoch 0, n + i the same one in epoch 1: a DataLoader counts so.
    """

    selects = False
    counts_epochs = True

    def __init__(self, dataset: Samples, functions: Iterable[Callable[[np.ndarray, np.ndarray], Any]], seed: int = 0):
        super().__init__(dataset)
        if counts_epochs(dataset):
            raise ConfigError("Augmented: expected a data set that is not augmented; give all functions in one list")
        given = functions if isinstance(functions, list | tuple) else [functions]
        self.functions = [checks.function("Augmented: functions", function) for function in given]
        self.seed = checks.integer("Augmented: seed", seed, 0, 2**64 - 1)

    def gather(self, positions):
        epochs, own = split_epochs(positions, len(self))
        batch = gather(self.dataset, own)
        for k, function in enumerate(self.functions):
            uniform = uniform_numbers(self.seed, own, epochs, k)
            batch = on_features(batch, functools.partial(_applied, function, uniform))
        return batch


def _applied(function: Any, uniform: np.ndarray, features: np.ndarray) -> np.ndarray:
    made = np.asarray(function(features, uniform))
    if made.shape[:1] != features.shape[:1]:
        raise ShapeError(f"Augmented: expected {len(features)} rows from {function}, got shape {made.shape}")
    return made


def uniform_numbers(seed: int, samples: np.ndarray, epochs: np.ndarray, k: int) -> np.ndarray:
    """(b, 4) float64 in [0, 1): four numbers for function k at each of these samples in these epochs."""
    samples, epochs = samples.astype(np.uint64), epochs.astype(np.uint64)
    counter = samples & LOW, samples >> WORD, epochs & LOW, epochs >> WORD | np.uint64(k << 24)
    words = four_words(*counter, np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32))
    return np.stack(words, axis=1) * 2.0**-32


class RandomCrop:
    """Cuts a window of `size` at random out of images (b, h, w) or (b, c, h, w), with zeros around them.

    size: one length, or (height, width). padding: rows and columns of zeros that are added on each side before.
    """

    def __init__(self, size: int | tuple[int, int], padding: int = 0):
        sizes = size if isinstance(size, tuple | list) else (size, size)
        if len(sizes) != 2:
            checks.refuse("RandomCrop: size", "one length, or (height, width)", size)
        self.size = tuple([checks.integer("RandomCrop: size", n, 1) for n in sizes])
        self.padding = checks.integer("RandomCrop: padding", padding, 0)

    def __call__(self, features: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        _check_images("RandomCrop", features)
        (*_, h, w), (height, width), pad = features.shape, self.size, self.padding
        rows, columns = h + 2 * pad - height, w + 2 * pad - width
        if rows < 0 or columns < 0:
            raise ShapeError(f"RandomCrop: expected images of at least {self.size} with padding {pad}, got {(h, w)}")
        tops = (uniform[:, 0] * (rows + 1)).astype(np.int64)
        lefts = (uniform[:, 1] * (columns + 1)).astype(np.int64)
        padded = np.pad(features, [(0, 0)] * (features.ndim - 2) + [(pad, pad)] * 2)
        out = np.empty((*features.shape[:-2], height, width), features.dtype)
        for target, image, top, left in zip(out, padded, tops, lefts, strict=True):
            target[...] = image[..., top : top + height, left : left + width]
        return out

    def __repr__(self) -> str:
        return f"RandomCrop({self.size}, padding={self.padding})"


class RandomHorizontalFlip:
    """Turns images (b, h, w) or (b, c, h, w) left to right, each with probability p."""

    def __init__(self, p: float = 0.5):
        self.p = checks.number("RandomHorizontalFlip: p", p, "[0, 1]")

    def __call__(self, features: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        _check_images("RandomHorizontalFlip", features)
        turned = (uniform[:, 0] < self.p).reshape(-1, *[1] * (features.ndim - 1))
        return np.where(turned, features[..., ::-1], features)

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip(p={self.p})"


def _check_images(what: str, features: np.ndarray) -> None:
    if features.ndim not in (3, 4):
        remedy = ".map(lambda x: x.reshape(-1, 28, 28)) makes images of flat rows"
        checks.refuse(what, "images (b, h, w) or (b, c, h, w)", features, ShapeError, remedy)
