"""Data sets: things with a length and numbered samples, that can hand out many samples at once.

`DataLoader` asks a data set for a batch with `gather(positions)`. A TensorDataset answers from its arrays in one pass;
any other data set is asked sample by sample.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from .. import checks, ops
from ..errors import ConfigError, IndexOutOfRangeError, ShapeError
from ..kernels import device as find_device
from ..tensor import Tensor, current_device
from .rows import as_rows, check_finite, check_lengths, checked_positions, finite_rows, take, take_scaled, widen


class Samples(Protocol):
    """All that a DataLoader needs: a length, and samples 0 to len - 1. A list of (features, label) will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Dataset(ABC):
    """Base class: write `__len__` and `__getitem__(i)`, which returns sample i as a tuple (features, label, ...)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Any: ...

    def gather(self, positions: ArrayLike) -> tuple[np.ndarray, ...]:
        """The samples at `positions`, (b,) integers from 0 to len - 1, as a tuple of arrays of b rows.

        Floats keep their type, other numbers come as int64. Override it where a batch is cheaper than b samples.
        """
        chosen = checked_positions(positions, len(self))
        samples = [self[int(position)] for position in chosen]
        rows = [sample if isinstance(sample, tuple) else (sample,) for sample in samples]
        if len({len(row) for row in rows}) > 1:
            raise ShapeError(f"Dataset: expected samples of equal length, got {[len(row) for row in rows]} fields")
        columns = zip(*rows, strict=True)
        fields = [as_rows(column, f"Dataset: field {k} of the samples") for k, column in enumerate(columns)]
        for field in fields:
            check_finite(field, "Dataset: sample", chosen)
        return tuple(widen(field) for field in fields)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Dataset:
        """This data set with `function` applied to each batch of features; it must treat rows independently."""
        return Mapped(self, function)


class _BatchDataset(Dataset):
    """A data set that knows `gather`; its samples are batches of one."""

    def __getitem__(self, index):
        """Sample `index` as a tuple of rows; for a slice, a tuple of arrays of rows."""
        if isinstance(index, slice):
            return self.gather(range(*index.indices(len(self))))
        position, n = operator.index(index), len(self)
        if not -n <= position < n:
            raise IndexOutOfRangeError(f"expected an index from {-n} to {n - 1}, got {position}")
        return tuple(rows[0] for rows in self.gather([position % n]))

    def _tensor(self, array: np.ndarray) -> Tensor:
        """An array of the data set, on the default device; where that has memory of its own, it is copied once."""
        if find_device(current_device()).is_host:
            return Tensor(array)
        copies = self.__dict__.setdefault("_copies", {})
        if id(array) not in copies:
            copies[id(array)] = Tensor(array)
        return copies[id(array)]

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_copies"}


class TensorDataset(_BatchDataset):
    """Samples that are the rows of one or more arrays of equal length: features first, then labels.

    arrays: anything that NumPy reads as bool, integers or floats. Each is kept in its own type (uint8 images stay
    uint8), as it is if contiguous and in native byte order, else as a copy. Do not change it afterwards.
    scale: features come out as float32(x) * float32(scale). Without it floats keep their type, integers come as int64.
    Raises ShapeError for unequal lengths, DtypeError for other types, DataError naming the first row with NaN or Inf.
    """

    def __init__(self, *arrays: ArrayLike, scale: float | None = None):
        if not arrays:
            raise ShapeError("TensorDataset: expected at least one array, got none")
        self.arrays = tuple(as_rows(array, f"TensorDataset: array {k}") for k, array in enumerate(arrays))
        check_lengths(self.arrays, "TensorDataset")
        for k, array in enumerate(self.arrays):
            check_finite(array, f"TensorDataset: array {k}: row")
        self.scale = None if scale is None else np.float32(checks.number("TensorDataset: scale", scale))

    def __len__(self):
        return len(self.arrays[0])

    def gather(self, positions):
        positions = checked_positions(positions, len(self))
        features, *others = self.arrays
        taken = take(features, positions) if self.scale is None else take_scaled(features, positions, self.scale)
        return (taken, *(take(array, positions) for array in others))

    def _select(self, positions):
        """What `gather` gives, as tensors made by ops: a recorded step gathers its rows itself.

        positions: an int64 tensor of a loader's, which are in range; nobody checks them here.
        """
        features, *others = (ops.take_rows(self._tensor(array), positions) for array in self.arrays)
        if self.scale is not None:
            features = features.astype(np.float32) * self.scale
        return (_widened(features), *map(_widened, others))


class Subset(_BatchDataset):
    """The samples of `dataset` at `positions`, in that order."""

    def __init__(self, dataset: Samples, positions: ArrayLike):
        self.dataset = checked_samples("Subset", dataset)
        self.positions = checked_positions(positions, len(dataset))

    def __len__(self):
        return len(self.positions)

    def gather(self, positions):
        return gather(self.dataset, self.positions[checked_positions(positions, len(self))])

    def _select(self, positions):
        return self.dataset._select(ops.take_rows(self._tensor(self.positions), positions))  # type: ignore[attr-defined]


class Mapped(_BatchDataset):
    """`dataset` with `function` applied to each batch of features, (b, ...) -> (b, ...)."""

    def __init__(self, dataset: Samples, function: Callable[[np.ndarray], np.ndarray]):
        self.dataset, self.function = checked_samples("Mapped", dataset), checks.function("Dataset.map", function)

    def __len__(self):
        return len(self.dataset)

    def gather(self, positions):
        features, *others = gather(self.dataset, positions)
        mapped = self.function(features)
        if len(mapped) != len(features):
            raise ShapeError(f"Dataset.map: expected {len(features)} rows from {self.function}, got {len(mapped)}")
        return (mapped, *others)

    def _select(self, positions):
        features, *others = self.dataset._select(positions)  # type: ignore[attr-defined]
        return (self.function(features), *others)


def selects(dataset: Samples) -> bool:
    """Has the data set a `_select(positions)` that takes and returns tensors? Then a recorded step can call it."""
    if isinstance(dataset, Subset):
        return selects(dataset.dataset)
    if isinstance(dataset, Mapped):
        return selects(dataset.dataset) and getattr(dataset.function, "takes_tensors", False)
    return isinstance(dataset, TensorDataset)


def _widened(t: Tensor) -> Tensor:
    """Integers other than int64 as int64, as `gather` gives them."""
    return t if t.dtype.kind == "f" else t.astype(np.int64)


def gather(dataset: Samples, positions: ArrayLike) -> tuple[np.ndarray, ...]:
    """The samples of any data set at `positions`, as a tuple of arrays; `len()` and `[i]` are all that it needs."""
    if hasattr(dataset, "gather"):
        return dataset.gather(positions)
    return Dataset.gather(checked_samples("gather", dataset), positions)  # type: ignore[arg-type]


def random_split(dataset: Samples, lengths: Sequence[float], seed: int = 0) -> list[Subset]:
    """Split a data set at random into disjoint parts; the same seed gives the same parts.

    lengths: integers whose sum is len(dataset), or fractions whose sum is 1 (samples that are left over by rounding
    down go to the first parts, one each). Returns a list of Subset. Raises ConfigError for other lengths or a bad seed.
    """
    counts = _counts(lengths, len(checked_samples("random_split", dataset)))
    seed = checks.integer("random_split: seed", seed, 0)
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(dataset))
    return [Subset(dataset, part) for part in np.split(order, np.cumsum(counts)[:-1])]


def clean(*arrays: ArrayLike) -> tuple[np.ndarray, ...]:
    """The arrays without the rows in which any of them has NaN or Inf: the first step of preparing data.

    Returns a tuple of arrays of equal length, ready for TensorDataset. Raises ShapeError or DtypeError as that does.
    """
    rows = [as_rows(array, f"clean: array {k}") for k, array in enumerate(arrays)]
    check_lengths(rows, "clean")
    keep = np.logical_and.reduce([finite_rows(array) for array in rows])
    return tuple(array if keep.all() else array[keep] for array in rows)


def checked_samples(what: str, dataset: Any) -> Any:
    """dataset itself. Raises ConfigError unless it has a length and numbered samples."""
    try:
        if hasattr(dataset, "__getitem__") and not isinstance(dataset, str | bytes | dict) and len(dataset) >= 0:
            return dataset
    except TypeError:  # an array without dimensions, a class
        pass
    remedy = "TensorDataset(features, labels) makes one"
    checks.refuse(what, "a data set with len() and [i]", dataset, remedy=remedy)


def _counts(lengths, n):
    lengths = checks.items("random_split: lengths", lengths, "a list of numbers")
    if not lengths or not all(checks.is_number(length) and 0 <= length < math.inf for length in lengths):
        checks.refuse("random_split", "lengths >= 0", lengths)
    if sum(lengths) == n and all(length == int(length) for length in lengths):
        return [int(length) for length in lengths]
    if not math.isclose(sum(lengths), 1, abs_tol=1e-6):
        raise ConfigError(f"random_split: expected lengths with sum {n} or fractions with sum 1, got {lengths}")
    counts = [math.floor(n * length) for length in lengths]
    for k in range(n - sum(counts)):
        counts[k % len(counts)] += 1
    return counts
