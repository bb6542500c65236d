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
from .rows import (
    as_rows,
    check_finite,
    check_lengths,
    checked_positions,
    collated,
    finite_rows,
    take,
    take_scaled,
)

Batch = tuple[np.ndarray, ...] | dict[str, Any]  # fields of b rows, features first and the target last


class Samples(Protocol):
    """All that a DataLoader needs: a length, and samples 0 to len - 1. A list of (features, label) will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Dataset(ABC):
    """Base class: write `__len__` and `__getitem__(i)`, which returns sample i as a tuple or a dict of fields.

    The first field holds the features, the last one the target: (image, label) or {"image": ..., "label": ...}.
    classes: the names of labels 0, 1, ...; feature_names: of the columns of features; inputs: what made features of
    files (see from_csv, image_folder, text_csv). None where nobody knows.
    """

    classes: Any = None
    feature_names: Any = None
    inputs: Any = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Any: ...

    def gather(self, positions: ArrayLike) -> Any:
        """The samples at `positions`, (b,) integers from 0 to len - 1: a tuple, or a dict, of arrays of b rows.

        Floats keep their type, other numbers come as int64, text as a list. Override it where a batch is cheaper than
        b samples.
        """
        chosen = checked_positions(positions, len(self))
        samples = [self[int(position)] for position in chosen]
        if not any(isinstance(sample, tuple | dict) for sample in samples):
            samples = [(sample,) for sample in samples]
        return collated(samples, "Dataset", chosen) if samples else ()

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Dataset:
        """This data set with `function` applied to each batch of features; it must treat rows independently."""
        return Mapped(self, function)

    def transform(self, function: Callable[[np.ndarray], Any]) -> Dataset:
        """This data set with `function` applied to the features of each sample alone, as torchvision's transforms."""
        return Mapped(self, _EachRow(checks.function("Dataset.transform", function)))


class _EachRow:
    """A function of rows that calls one of a single row."""

    def __init__(self, function: Callable[[np.ndarray], Any]):
        self.function = function

    def __call__(self, features: np.ndarray) -> np.ndarray:
        rows = [self.function(row) for row in features]
        return collated(rows, "Dataset.transform") if rows else features


class _BatchDataset(Dataset):
    """A data set that knows `gather`; its samples are batches of one."""

    selects: Any = False
    counts_epochs: Any = False

    def __getitem__(self, index):
        """Sample `index` as a tuple, or a dict, of rows; for a slice, of arrays of rows."""
        if isinstance(index, slice):
            return self.gather(range(*index.indices(len(self))))
        position, n = operator.index(index), len(self)
        if not -n <= position < n:
            raise IndexOutOfRangeError(f"expected an index from {-n} to {n - 1}, got {position}")
        return self._sample(position % n)

    def _sample(self, position):
        batch = self.gather([position])
        if isinstance(batch, dict):
            return {name: rows[0] for name, rows in batch.items()}
        return tuple(rows[0] for rows in batch)

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

    selects = True

    def __init__(self, *arrays: ArrayLike, scale: float | None = None):
        if not arrays:
            raise ShapeError("TensorDataset: expected at least one array, got none")
        self.arrays = tuple(as_rows(array, f"TensorDataset: array {k}") for k, array in enumerate(arrays))
        check_lengths(self.arrays, "TensorDataset")
        for k, array in enumerate(self.arrays):
            check_finite(array, f"TensorDataset: array {k}: row", remedy="; sn.data.clean leaves out such rows")
        self.scale = None if scale is None else np.float32(checks.number("TensorDataset: scale", scale))

    def __len__(self):
        return len(self.arrays[0])

    def __repr__(self):
        kinds = [np.dtype(np.float32) if self.scale is not None else self.arrays[0].dtype]
        kinds += [array.dtype for array in self.arrays[1:]]
        fields = ", ".join(f"{kind} {array.shape[1:]}" for kind, array in zip(kinds, self.arrays, strict=True))
        names = "" if self.classes is None else f", classes {', '.join(map(str, self.classes)):.60}"
        return f"TensorDataset({len(self)} samples: {fields}{names})"

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


class View(_BatchDataset):
    """A data set that shows the samples of another one, which it keeps as `dataset`, in another way.

    An augmented data set below it (see augment.py) has other samples in each epoch: there, position n + i is sample i
    in epoch 1, and so on. `counts_epochs` says so, and positions are handed down as they are.
    """

    def __init__(self, dataset: Samples):
        self.dataset = checked_samples(type(self).__name__, dataset)

    classes = property(lambda self: getattr(self.dataset, "classes", None))
    feature_names = property(lambda self: getattr(self.dataset, "feature_names", None))
    inputs = property(lambda self: getattr(self.dataset, "inputs", None))
    counts_epochs = property(lambda self: counts_epochs(self.dataset))
    selects = property(lambda self: selects(self.dataset))

    def __len__(self):
        return len(self.dataset)

    def __repr__(self):
        below = repr(self.dataset) if isinstance(self.dataset, Dataset) else f"a {type(self.dataset).__name__}"
        return f"{type(self).__name__}({len(self)} samples of {below})"


class Subset(View):
    """The samples of `dataset` at `positions`, in that order."""

    def __init__(self, dataset: Samples, positions: ArrayLike):
        super().__init__(dataset)
        self.positions = checked_positions(positions, len(dataset))

    def __len__(self):
        return len(self.positions)

    def gather(self, positions):
        if not self.counts_epochs:
            return gather(self.dataset, self.positions[checked_positions(positions, len(self))])
        epochs, own = split_epochs(positions, len(self))
        return gather(self.dataset, self.positions[own] + epochs * len(self.dataset))

    def _select(self, positions):
        return self.dataset._select(ops.take_rows(self._tensor(self.positions), positions))  # type: ignore[attr-defined]


class Mapped(View):
    """`dataset` with `function` applied to each batch of features, (b, ...) -> (b, ...)."""

    def __init__(self, dataset: Samples, function: Callable[[np.ndarray], np.ndarray]):
        super().__init__(dataset)
        self.function = checks.function("Dataset.map", function)

    selects = property(lambda self: selects(self.dataset) and getattr(self.function, "takes_tensors", False))

    def gather(self, positions):
        return on_features(gather(self.dataset, positions), self._mapped)

    def _mapped(self, features):
        mapped = self.function(features)
        if len(mapped) != len(features):
            raise ShapeError(f"Dataset.map: expected {len(features)} rows from {self.function}, got {len(mapped)}")
        return mapped

    def _select(self, positions):
        features, *others = self.dataset._select(positions)  # type: ignore[attr-defined]
        return (self.function(features), *others)


def selects(dataset: Samples) -> bool:
    """Has the data set a `_select(positions)` that takes and returns tensors? Then a recorded step can call it."""
    return isinstance(dataset, _BatchDataset) and dataset.selects


def counts_epochs(dataset: Samples) -> bool:
    """Is position n + i sample i in epoch 1, for which `gather` may give another one than in epoch 0?"""
    return isinstance(dataset, _BatchDataset) and dataset.counts_epochs


def positions_of(dataset: Samples) -> int:
    """Positions from 0 to this number - 1 are samples."""
    return np.iinfo(np.int64).max if counts_epochs(dataset) else len(dataset)


def split_epochs(positions: ArrayLike, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, positions from 0 to n - 1), of positions that count epochs."""
    epochs, own = np.divmod(checked_positions(positions, np.iinfo(np.int64).max), n)
    return epochs, own


def fields_of(batch: Batch) -> list[tuple[Any, Any]]:
    """(name, field) of each field of a batch; those of a tuple are numbered."""
    return list(batch.items() if isinstance(batch, dict) else enumerate(batch))


def features_of(batch: Batch) -> Any:
    """The first field of a batch."""
    return next(iter(batch.values())) if isinstance(batch, dict) else batch[0]


def on_features(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    """The batch with `function` applied to its first field."""
    if isinstance(batch, dict):
        return batch | {next(iter(batch)): function(features_of(batch))}
    features, *others = batch
    return (function(features), *others)


def _widened(t: Tensor) -> Tensor:
    """Integers other than int64 as int64, as `gather` gives them."""
    return t if t.dtype.kind == "f" else t.astype(np.int64)


def gather(dataset: Samples, positions: ArrayLike) -> Any:
    """The samples of any data set at `positions`, as `Dataset.gather`; `len()` and `[i]` are all that it needs."""
    if hasattr(dataset, "gather") and not isinstance(dataset, Tensor):  # which gathers elements, not samples
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


def meaning_of(dataset: Any) -> dict[str, list[Any]]:
    """What the numbers of a data set mean: the names of labels and features, and how those were made, where known."""
    inputs: Any = getattr(dataset, "inputs", None)
    made = inputs.state_dict() if hasattr(inputs, "state_dict") else {}
    found = {name: getattr(dataset, name, None) for name in ("classes", "feature_names")}
    found |= {name: made.get(name) for name in ("vocabulary", "mels", "rate")}
    for name in ("categories", "fills"):
        found[name] = list(made[name].items()) if made.get(name) else None
    numbers = {name: [x] for name, x in found.items() if isinstance(x, int)}
    return numbers | {name: list(x) for name, x in found.items() if isinstance(x, list | tuple | np.ndarray)}


def check_meanings(what: str, *meanings: dict[str, list[Any]]) -> None:
    """Raises ConfigError for data sets of which a number means something in one and something else in another."""
    for name in dict.fromkeys(name for meaning in meanings for name in meaning):
        known = [meaning[name] for meaning in meanings if name in meaning]
        for other in known:
            if other != known[0]:
                found = f"{checks.shown(known[0])} and {checks.shown(other)}"
                raise ConfigError(f"{what}: expected equal {name}, got {found}; read the second with like=the first")


def checked_samples(what: str, dataset: Any) -> Any:
    """dataset itself. Raises ConfigError unless it has a length and numbered samples."""
    is_by_name = isinstance(dataset, str | bytes | dict) or hasattr(dataset, "iloc")  # [0] of pandas is a column
    try:
        if hasattr(dataset, "__getitem__") and not is_by_name and len(dataset) >= 0:
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
