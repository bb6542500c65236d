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

from .. import ops
from ..errors import ConfigError, DataError, DtypeError, IndexOutOfRangeError, ShapeError
from ..tensor import Tensor, current_device


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
        chosen = _positions(positions, len(self))
        samples = [self[int(position)] for position in chosen]
        rows = [sample if isinstance(sample, tuple) else (sample,) for sample in samples]
        if len({len(row) for row in rows}) > 1:
            raise ShapeError(f"Dataset: expected samples of equal length, got {[len(row) for row in rows]} fields")
        columns = zip(*rows, strict=True)
        fields = [_as_rows(column, f"Dataset: field {k} of the samples") for k, column in enumerate(columns)]
        for field in fields:
            _check_finite(field, "Dataset: sample", chosen)
        return tuple(_widen(field) for field in fields)

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
        """An array that the data set keeps, on the default device; to a GPU it is copied once."""
        if current_device() != "cuda":
            return Tensor(array)
        kept = self.__dict__.setdefault("_on_gpu", {})
        if id(array) not in kept:
            kept[id(array)] = Tensor(array)
        return kept[id(array)]

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_on_gpu"}


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
        self.arrays = tuple(_as_rows(array, f"TensorDataset: array {k}") for k, array in enumerate(arrays))
        _check_lengths(self.arrays, "TensorDataset")
        for k, array in enumerate(self.arrays):
            _check_finite(array, f"TensorDataset: array {k}: row")
        if scale is not None and not math.isfinite(scale):
            raise ConfigError(f"TensorDataset: expected a finite scale, got {scale}")
        self.scale = None if scale is None else np.float32(scale)

    def __len__(self):
        return len(self.arrays[0])

    def gather(self, positions):
        positions = _positions(positions, len(self))
        features, *others = self.arrays
        take = _take if self.scale is None else self._take_scaled
        return (take(features, positions), *(_take(array, positions) for array in others))

    def select(self, positions):
        """What `gather` gives, as tensors made by ops: a recorded step gathers its rows itself."""
        features, *others = (ops.take_rows(self._tensor(array), positions) for array in self.arrays)
        if self.scale is not None:
            features = features.astype(np.float32) * self.scale
        return (_widened(features), *map(_widened, others))

    def _take_scaled(self, array, positions):
        if array.dtype != np.uint8:  # only images are worth a kernel, and each further type would have to be compiled
            return array.take(positions, axis=0).astype(np.float32) * self.scale
        from .kernel import gather_rows  # here, not above: importing scratchnet does not load Numba

        row_shape = array.shape[1:]
        out = np.empty((len(positions), math.prod(row_shape)), np.float32)
        gather_rows(array.reshape(len(array), out.shape[1]), positions, self.scale, out)
        return out.reshape(len(positions), *row_shape)


class Subset(_BatchDataset):
    """The samples of `dataset` at `positions`, in that order."""

    def __init__(self, dataset: Samples, positions: ArrayLike):
        self.dataset = dataset
        self.positions = _positions(positions, len(dataset))

    def __len__(self):
        return len(self.positions)

    def gather(self, positions):
        return gather(self.dataset, self.positions[_positions(positions, len(self))])

    def select(self, positions):
        return self.dataset.select(ops.take_rows(self._tensor(self.positions), positions))  # type: ignore[attr-defined]


class Mapped(_BatchDataset):
    """`dataset` with `function` applied to each batch of features, (b, ...) -> (b, ...)."""

    def __init__(self, dataset: Samples, function: Callable[[np.ndarray], np.ndarray]):
        self.dataset, self.function = dataset, function

    def __len__(self):
        return len(self.dataset)

    def gather(self, positions):
        features, *others = gather(self.dataset, positions)
        mapped = self.function(features)
        if len(mapped) != len(features):
            raise ShapeError(f"Dataset.map: expected {len(features)} rows from {self.function}, got {len(mapped)}")
        return (mapped, *others)

    def select(self, positions):
        features, *others = self.dataset.select(positions)  # type: ignore[attr-defined]
        return (self.function(features), *others)


def selects(dataset: Samples) -> bool:
    """Has the data set a `select(positions)` that takes and returns tensors? Then a recorded step can call it."""
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
    return Dataset.gather(dataset, positions)  # type: ignore[arg-type]


def random_split(dataset: Samples, lengths: Sequence[float], seed: int = 0) -> list[Subset]:
    """Split a data set at random into disjoint parts; the same seed gives the same parts.

    lengths: integers whose sum is len(dataset), or fractions whose sum is 1 (samples that are left over by rounding
    down go to the first parts, one each). Returns a list of Subset. Raises ConfigError for other lengths or a bad seed.
    """
    counts = _counts(lengths, len(dataset))
    check_integer(seed, 0, "random_split: seed")
    order = np.random.default_rng(np.random.SeedSequence(int(seed))).permutation(len(dataset))
    return [Subset(dataset, part) for part in np.split(order, np.cumsum(counts)[:-1])]


def clean(*arrays: ArrayLike) -> tuple[np.ndarray, ...]:
    """The arrays without the rows in which any of them has NaN or Inf: the first step of preparing data.

    Returns a tuple of arrays of equal length, ready for TensorDataset. Raises ShapeError or DtypeError as that does.
    """
    rows = [_as_rows(array, f"clean: array {k}") for k, array in enumerate(arrays)]
    _check_lengths(rows, "clean")
    keep = np.logical_and.reduce([_finite_rows(array) for array in rows])
    return tuple(array if keep.all() else array[keep] for array in rows)


def check_integer(value: Any, least: int, what: str) -> None:
    """Raise ConfigError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{what}: expected an integer >= {least}, got {value!r}")


def _as_rows(values, what):
    """`values` as a contiguous native array of bool, integers, float32 or float64, with at least one dimension."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ShapeError(f"{what}: expected rows of one shape ({error})") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DtypeError(f"{what}: expected bool, integers or floats of at most 64 bits, got {array.dtype}")
    if array.ndim == 0:
        raise ShapeError(f"{what}: expected at least one dimension, got a single number")
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{what}: expected integers that fit in int64, found {array.max()}")
    dtype = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, np.float32 if dtype == np.float16 else dtype)


def _check_lengths(arrays, what):
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ShapeError(f"{what}: expected arrays of equal length, got lengths {', '.join(map(str, lengths))}")


def _finite_rows(array):
    """For each row, whether all its numbers are finite: (n,) bool."""
    if array.dtype.kind != "f":
        return np.ones(len(array), bool)
    return np.isfinite(array).all(axis=tuple(range(1, array.ndim)))


def _check_finite(array, what, names=None):
    finite = _finite_rows(array)
    if not finite.all():
        row = np.argmin(finite)
        raise DataError(f"{what} {row if names is None else names[row]}: expected finite numbers, found NaN or Inf")


def _take(array, positions):
    return _widen(array.take(positions, axis=0))


def _widen(array):
    """Floats as they are, other numbers as int64."""
    return array if array.dtype.kind == "f" else array.astype(np.int64, copy=False)


def _positions(positions, n):
    """(b,) integers from 0 to n - 1, as an int64 array. Checked here: the kernel would read outside the array."""
    positions = np.asarray(positions)
    if positions.size == 0:
        return np.empty(0, np.int64)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise DtypeError(f"expected a list of integer positions, got {positions.dtype} of shape {positions.shape}")
    low, high = positions.min(), positions.max()
    if low < 0 or high >= n:
        raise IndexOutOfRangeError(f"expected positions from 0 to {n - 1}, got {low if low < 0 else high}")
    return np.ascontiguousarray(positions, np.int64)


def _counts(lengths, n):
    lengths = list(lengths)
    if not lengths or not all(0 <= length < math.inf for length in lengths):
        raise ConfigError(f"random_split: expected lengths >= 0, got {lengths}")
    if sum(lengths) == n and all(length == int(length) for length in lengths):
        return [int(length) for length in lengths]
    if not math.isclose(sum(lengths), 1, abs_tol=1e-6):
        raise ConfigError(f"random_split: expected lengths with sum {n} or fractions with sum 1, got {lengths}")
    counts = [math.floor(n * length) for length in lengths]
    for k in range(n - sum(counts)):
        counts[k % len(counts)] += 1
    return counts
