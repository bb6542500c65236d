"""DataLoader: a data set in batches.

The order depends on (seed, epoch) alone, so any batch of any epoch can be had again: that is what resuming needs.
"""

from __future__ import annotations

import contextvars
import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, ShapeError
from ..kernels import device as find_device
from ..kernels.signatures import FLOATS
from ..tensor import Tensor, current_device
from .collate import Cast, Collated, cast
from .dataset import Samples, checked_samples, counts_epochs, fields_of, gather
from .rows import checked_positions
from .samplers import RandomSampler, Sampler, SequentialSampler, sampler_of

AHEAD = 2  # batches that each thread reads ahead, as PyTorch's prefetch_factor


class DataLoader:
    """Iterate over `dataset` in batches of Tensors, such as x float32 (b, features) and y int64 (b,).

    A batch is a tuple where samples are tuples, a dict where they are dicts; text comes as a list.
    batch_size: samples a batch; the last batch is shorter if need be, or left out with `drop_last`.
    shuffle: a new order each epoch, drawn from (seed, epoch). The first iteration is epoch 0, each later one the next.
    sampler: which samples come, in which order, instead of shuffle: a Sampler, or a list of positions.
    collate_fn: makes a batch, a tuple or a dict, of a list of samples; see default_collate and pad_sequence. A Trainer
        calls it for each shard of a batch, in the worker that computes it.
    num_workers: threads that read batches ahead. The batches are the same, unless the data set itself draws random
        numbers. A Trainer does not use them: its workers, which are processes, read their own samples.
    dtype: the float type of batches. None: floats keep their type, but float64 becomes float32, the type of layers,
        and a warning says so once. A Trainer takes the type of its model.
    Raises ConfigError for arguments outside their range.
    """

    def __init__(
        self,
        dataset: Samples,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        *,
        sampler: Any = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        dtype: Any = None,
    ):
        self.dataset = checked_samples("DataLoader", dataset)
        self.batch_size = checks.integer("DataLoader: batch_size", batch_size, 1)
        self.shuffle = checks.flag("DataLoader: shuffle", shuffle)
        self.drop_last = checks.flag("DataLoader: drop_last", drop_last)
        self.seed = checks.integer("DataLoader: seed", seed, 0)
        self.sampler = None if sampler is None else sampler_of(sampler)
        if self.sampler is not None and self.shuffle:
            raise ConfigError("DataLoader: expected shuffle or a sampler, got both; RandomSampler shuffles")
        self.collate_fn = None if collate_fn is None else checks.function("DataLoader: collate_fn", collate_fn)
        self.num_workers = checks.integer("DataLoader: num_workers", num_workers, 0, 256)
        self.dtype = None if dtype is None else _float("DataLoader: dtype", dtype)
        self._next_epoch, self._has_said = 0, False
        self._say: Callable[[Any, Any, Any], None] | None = None

    @property
    def order(self) -> Sampler:
        """The sampler that says which samples an epoch has."""
        if self.sampler is not None:
            return self.sampler
        return RandomSampler(self.dataset, seed=self.seed) if self.shuffle else SequentialSampler(self.dataset)

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        epoch = self._next_epoch
        self._next_epoch += 1
        return self._tensors(self.batches(epoch))

    def _tensors(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches with tensors on the default device in place of arrays, which a GPU fetches ahead."""
        device, forms = find_device(current_device()), deque[Any]()

        def arrays_of() -> Iterator[tuple[np.ndarray, ...]]:
            for batch in batches:
                arrays: list[np.ndarray] = []
                forms.append(_without_arrays(batch, arrays))
                yield tuple(arrays)

        return (
            _with_arrays(forms.popleft(), (Tensor(x, device=device.name) for x in arrays))
            for arrays in device.prefetch(arrays_of())
        )

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one to iterate over."""
        self._next_epoch = checks.integer("DataLoader: epoch", epoch, 0)

    def indices(self, epoch: int) -> np.ndarray:
        """The order of the samples in `epoch`: (n,) int64."""
        order = self.order
        found = checked_positions(order.indices(checks.integer("DataLoader: epoch", epoch, 0)), len(self.dataset))
        if len(found) != len(order):
            raise ShapeError(f"{type(order).__name__}: expected {len(order)} positions, its length, got {len(found)}")
        return found

    def batch_indices(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """The positions of the samples of each batch of `epoch`, from batch `start` on: an iterator of (b,) int64.

        Of an augmented data set of n samples they are epoch * n higher, see `Augmented`.
        """
        checks.integer("DataLoader: start", start, 0)
        batches, size, order = len(self), self.batch_size, self.indices(epoch)
        if start > batches:
            raise ConfigError(f"DataLoader: start: expected a batch from 0 to {batches}, got {start}")
        if counts_epochs(self.dataset):
            n = len(self.dataset)
            order = order + epoch % (2**62 // max(n, 1)) * n
        return (order[k * size : (k + 1) * size] for k in range(start, batches))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of `epoch` as tuples or dicts of arrays, from batch `start` on; earlier ones are not read."""
        positions = self.batch_indices(epoch, start)
        if self.num_workers:
            return _read_ahead(self._read, positions, self.num_workers)
        return (self._read(chosen) for chosen in positions)  # no map, which a StopIteration of a data set would end

    def _read(self, positions: np.ndarray) -> Any:
        batch = gather(self.source, positions)
        if self.dtype is not None:
            return batch
        double = [name for name, field in fields_of(batch) if getattr(field, "dtype", None) == np.float64]
        if double and not self._has_said:
            self._has_said = True
            warnings.warn(
                f"DataLoader: field {double[0]} of the samples is float64 and comes as float32, the type of layers; "
                "dtype='float64' keeps it, x.astype('float32') says that this is meant",
                stacklevel=2,
            )
        return cast(batch, np.float32) if double else batch

    @property
    def source(self) -> Any:
        """The data set that batches are read from: `dataset`, its samples collated, in one float type."""
        collated = self.dataset if self.collate_fn is None else Collated(self.dataset, self.collate_fn)
        return collated if self.dtype is None else Cast(collated, self.dtype, self._say)

    def typed(self, dtype: Any, say: Callable[[Any, Any, Any], None] | None = None) -> DataLoader:
        """This loader with another `dtype`, unless it has one. say: see `Cast`."""
        other = copy.copy(self)
        if self.dtype is None:
            other.dtype, other._say = _float("DataLoader: dtype", dtype), say
        return other


def _float(what: str, dtype: Any) -> np.dtype:
    found = checks.dtype(what, dtype)
    return found if found in FLOATS else checks.refuse(what, "float32, float64 or None", found)


def _read_ahead(read: Callable[[Any], Any], positions: Iterator[Any], threads: int) -> Iterator[Any]:
    """map(read, positions), with so many threads that read up to AHEAD batches each before they are asked for."""
    with ThreadPoolExecutor(threads, "scratchnet-loader") as pool:
        waiting: deque[Future] = deque()
        try:
            for chosen in positions:
                waiting.append(pool.submit(contextvars.copy_context().run, read, chosen))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# --- arrays in batches ------------------------------------------------------------------------------------------------


def _without_arrays(batch: Any, arrays: list[np.ndarray]) -> Any:
    """The form of a batch, of tuples, dicts and lists, with `_Place` for its arrays, which go to `arrays`."""
    match batch:
        case np.ndarray() if batch.dtype.kind in "biuf":
            arrays.append(batch)
            return _Place
        case tuple():
            return tuple(_without_arrays(field, arrays) for field in batch)
        case dict():
            return {name: _without_arrays(field, arrays) for name, field in batch.items()}
    return batch


def _with_arrays(form: Any, arrays: Iterator[Any]) -> Any:
    match form:
        case type() if form is _Place:
            return next(arrays)
        case tuple():
            return tuple(_with_arrays(field, arrays) for field in form)
        case dict():
            return {name: _with_arrays(field, arrays) for name, field in form.items()}
    return form


class _Place:
    """Where an array stands in the form of a batch."""
