"""Samplers: in which order the samples of an epoch come, as a function of (seed, epoch) and nothing else.

So any batch of any epoch can be had again, by a run that is resumed and by every process of a job.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import checks
from ..errors import ConfigError, DataError, ShapeError
from .dataset import Samples, checked_samples
from .rows import checked_positions


def _generator(seed: int, epoch: int) -> np.random.Generator:
    # As spawn_key, the epoch cannot run into the seed: SeedSequence((5, 1)) equals SeedSequence((5 + 2**32, 0)).
    sequence = np.random.SeedSequence(seed, spawn_key=(checks.integer("Sampler: epoch", epoch, 0),))
    return np.random.default_rng(sequence)


def _seed(sampler: Any, seed: Any) -> int:
    return checks.integer(f"{type(sampler).__name__}: seed", seed, 0)


class Sampler(ABC):
    """Base class: write `__len__` and `indices(epoch)`, the positions of the samples of an epoch, (len,) integers.

    Iterating gives the positions of epoch 0, then those of epoch 1, and so on.
    """

    _next_epoch = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def indices(self, epoch: int) -> np.ndarray:
        """The positions of the samples of an epoch, in order: int64 (samples,)."""

    def __iter__(self) -> Iterator[int]:
        epoch = self._next_epoch
        self._next_epoch += 1
        return iter(self.indices(epoch).tolist())

    def __repr__(self) -> str:
        """What names this order: its settings, and a checksum of its arrays."""
        settings = [(name, value) for name, value in vars(self).items() if name != "_next_epoch"]
        shown = (
            f"{name}={zlib.crc32(value.tobytes()):08x}" if isinstance(value, np.ndarray) else f"{name}={value!r}"
            for name, value in settings
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class SequentialSampler(Sampler):
    """Samples 0, 1, 2, ... of `data_source`."""

    def __init__(self, data_source: Samples):
        self.n = len(checked_samples("SequentialSampler", data_source))

    def __len__(self) -> int:
        return self.n

    def indices(self, epoch: int) -> np.ndarray:
        checks.integer("Sampler: epoch", epoch, 0)
        return np.arange(self.n)


class RandomSampler(Sampler):
    """The samples of `data_source` in a new order each epoch, as `DataLoader(shuffle=True)` with the same seed.

    num_samples: how many; all unless given. replacement: each is drawn from all, so that one may come twice.
    Raises ConfigError for more samples than there are without replacement.
    """

    def __init__(self, data_source: Samples, replacement: bool = False, num_samples: int | None = None, seed: int = 0):
        self.n = len(checked_samples("RandomSampler", data_source))
        self.replacement = checks.flag("RandomSampler: replacement", replacement)
        most = None if self.replacement else self.n
        self.num_samples = (
            self.n if num_samples is None else checks.integer("RandomSampler: num_samples", num_samples, 0, most)
        )
        if self.num_samples and not self.n:
            raise ConfigError("RandomSampler: expected a data set with samples to draw from, got an empty one")
        self.seed = _seed(self, seed)

    def __len__(self) -> int:
        return self.num_samples

    def indices(self, epoch: int) -> np.ndarray:
        generator = _generator(self.seed, epoch)
        if self.replacement:
            return generator.integers(self.n, size=self.num_samples)
        return generator.permutation(self.n)[: self.num_samples]


class SubsetRandomSampler(Sampler):
    """The samples at `indices` in a new order each epoch."""

    def __init__(self, indices: ArrayLike, seed: int = 0):
        self.chosen = checked_positions(indices, np.iinfo(np.int64).max)
        self.seed = _seed(self, seed)

    def __len__(self) -> int:
        return len(self.chosen)

    def indices(self, epoch: int) -> np.ndarray:
        return self.chosen[_generator(self.seed, epoch).permutation(len(self.chosen))]


class WeightedRandomSampler(Sampler):
    """`num_samples` samples an epoch, sample i drawn with probability weights[i] / sum(weights).

    weights: (n,) numbers >= 0, one a sample. Without replacement each sample comes at most once.
    Raises ConfigError, ShapeError or DataError for other weights, or fewer above 0 than are drawn without replacement.
    """

    def __init__(self, weights: ArrayLike, num_samples: int, replacement: bool = True, seed: int = 0):
        self.weights = checks.array("WeightedRandomSampler: weights", weights).astype(np.float64)
        self.replacement = checks.flag("WeightedRandomSampler: replacement", replacement)
        self.num_samples = checks.integer("WeightedRandomSampler: num_samples", num_samples, 0)
        self.seed = _seed(self, seed)
        if self.weights.ndim != 1 or not self.weights.size:
            raise ShapeError(f"WeightedRandomSampler: expected weights (n,), one a sample, got {self.weights.shape}")
        if not np.isfinite(self.weights).all() or self.weights.min() < 0 or not self.weights.sum() > 0:
            raise DataError("WeightedRandomSampler: expected finite weights >= 0, and some above 0")
        drawable = np.count_nonzero(self.weights)
        if not self.replacement and self.num_samples > drawable:
            raise ConfigError(
                f"WeightedRandomSampler: expected at most {drawable} samples without replacement, "
                f"got {self.num_samples}"
            )

    def __len__(self) -> int:
        return self.num_samples

    def indices(self, epoch: int) -> np.ndarray:
        shares = self.weights / self.weights.sum()
        return _generator(self.seed, epoch).choice(len(shares), self.num_samples, self.replacement, shares)


class BucketSampler(Sampler):
    """An order in which each `batch_size` samples in a row have about the same length: little padding is needed.

    lengths: (n,) integers, one a sample. Each epoch shuffles the samples, sorts pools of 100 batches by length, and
    shuffles the batches; the one that is not full comes last. Give the DataLoader the same batch_size.
    """

    def __init__(self, lengths: ArrayLike, batch_size: int, seed: int = 0):
        self.lengths = checks.array("BucketSampler: lengths", lengths, "iu")
        if self.lengths.ndim != 1:
            raise ShapeError(f"BucketSampler: expected lengths (n,), one a sample, got {self.lengths.shape}")
        self.batch_size = checks.integer("BucketSampler: batch_size", batch_size, 1)
        self.seed = _seed(self, seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def indices(self, epoch: int) -> np.ndarray:
        generator, size = _generator(self.seed, epoch), self.batch_size
        order = generator.permutation(len(self))
        pools = [order[k : k + 100 * size] for k in range(0, len(order), 100 * size)]
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools] or [order])
        full = len(order) // size * size
        batches = order[:full].reshape(-1, size)
        return np.concatenate([batches[generator.permutation(len(batches))].ravel(), order[full:]])


class FixedSampler(Sampler):
    """The same positions in each epoch."""

    def __init__(self, positions: np.ndarray):
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def indices(self, epoch: int) -> np.ndarray:
        return self.positions


def sampler_of(given: Any) -> Sampler:
    """What a DataLoader takes for `sampler`: a Sampler, or positions. Raises ConfigError for anything else."""
    if isinstance(given, Sampler):
        return given
    if isinstance(given, list | tuple | range | np.ndarray):
        return FixedSampler(checked_positions(given, np.iinfo(np.int64).max))
    remedy = "a subclass of sn.data.Sampler writes indices(epoch), so that each worker and a resumed run see one order"
    checks.refuse("DataLoader: sampler", "a Sampler or a list of positions", given, remedy=remedy)
