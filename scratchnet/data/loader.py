"""DataLoader: a data set in batches.

The order depends on (seed, epoch) alone, so any batch of any epoch can be had again: that is what resuming needs.
"""

from collections.abc import Iterator

import numpy as np

from .. import checks
from ..errors import ConfigError
from ..kernels import device as find_device
from ..tensor import Tensor, current_device
from .dataset import Samples, checked_samples, gather


class DataLoader:
    """Iterate over `dataset` in batches of Tensors, such as x float32 (b, features) and y int64 (b,).

    batch_size: samples a batch; the last batch is shorter if need be, or left out with `drop_last`.
    shuffle: a new order each epoch, drawn from (seed, epoch). The first iteration is epoch 0, each later one the next.
    Raises ConfigError for arguments outside their range.
    """

    def __init__(
        self, dataset: Samples, batch_size: int = 1, shuffle: bool = False, drop_last: bool = False, seed: int = 0
    ):
        self.dataset = checked_samples("DataLoader", dataset)
        self.batch_size = checks.integer("DataLoader: batch_size", batch_size, 1)
        self.shuffle = checks.flag("DataLoader: shuffle", shuffle)
        self.drop_last = checks.flag("DataLoader: drop_last", drop_last)
        self.seed = checks.integer("DataLoader: seed", seed, 0)
        self._next_epoch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch = self._next_epoch
        self._next_epoch += 1
        device = find_device(current_device())
        return (tuple(Tensor(x, device=device.name) for x in batch) for batch in device.prefetch(self.batches(epoch)))

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate over."""
        self._next_epoch = checks.integer("DataLoader: epoch", epoch, 0)

    def indices(self, epoch: int) -> np.ndarray:
        """The order of the samples in `epoch`: (n,) int64."""
        checks.integer("DataLoader: epoch", epoch, 0)
        if not self.shuffle:
            return np.arange(len(self.dataset))
        # As spawn_key, the epoch cannot run into the seed: SeedSequence((5, 1)) equals SeedSequence((5 + 2**32, 0)).
        sequence = np.random.SeedSequence(self.seed, spawn_key=(int(epoch),))
        return np.random.default_rng(sequence).permutation(len(self.dataset))

    def batch_indices(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """The positions of the samples of each batch of `epoch`, from batch `start` on: an iterator of (b,) int64."""
        checks.integer("DataLoader: start", start, 0)
        if start > len(self):
            raise ConfigError(f"DataLoader: start: expected a batch from 0 to {len(self)}, got {start}")
        order, size = self.indices(epoch), self.batch_size
        return (order[k * size : (k + 1) * size] for k in range(start, len(self)))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of `epoch` as tuples of NumPy arrays, from batch `start` on; earlier ones are not computed."""
        return (gather(self.dataset, positions) for positions in self.batch_indices(epoch, start))
