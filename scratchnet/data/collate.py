"""Collate: samples become batches in the user's own way, rows of several data sets one, sequences equally long."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, ShapeError
from ..functions import stack
from ..tensor import FLOATS, Tensor
from .dataset import (
    Batch,
    Samples,
    View,
    _BatchDataset,
    check_meanings,
    checked_samples,
    counts_epochs,
    fields_of,
    gather,
    meaning_of,
    positions_of,
)
from .rows import check_finite, checked_positions, collated, widen


def default_collate(samples: Sequence[Any]) -> Any:
    """A list of samples as one batch: tuples become a tuple, dicts a dict, numbers and arrays an array with one axis
    more, text a list. Floats keep their type, other numbers come as int64.

    It is what a DataLoader does without `collate_fn`. PyTorch's gives tensors; here the loader makes them of arrays.
    Raises ShapeError for samples of different fields or shapes, DataError naming the sample with NaN or Inf.
    """
    samples = checks.items("default_collate", samples, "a list of samples")
    if not samples:
        raise ShapeError("default_collate: expected at least one sample, got none")
    return collated(samples, "default_collate")


def pad_sequence(sequences: Iterable[Any], batch_first: bool = False, padding_value: float = 0.0) -> Any:
    """Sequences (length, ...) of several lengths as one array, filled up at their ends: (longest, b, ...), or
    (b, longest, ...) with batch_first, as PyTorch's. Of tensors it makes a tensor, of arrays and lists an array.

    Raises ShapeError for no sequence, or for some whose further axes differ; DtypeError for several dtypes; ConfigError
    for a padding_value that integers would change.
    """
    given = checks.items("pad_sequence", sequences, "a list of sequences")
    batch_first = checks.flag("pad_sequence: batch_first", batch_first)
    padding_value = checks.number("pad_sequence: padding_value", padding_value)
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else checks.array("pad_sequence", x) for x in given]
    if not arrays or any(not x.ndim or x.shape[1:] != arrays[0].shape[1:] for x in arrays):
        shapes = ", ".join(str(x.shape) for x in arrays) or "none"
        raise ShapeError(f"pad_sequence: expected sequences (length, ...) with equal further axes, got {shapes:.200}")
    longest = max(len(x) for x in arrays)
    dtype = np.result_type(*arrays)
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if padding_value != padding_value // 1 or not low <= padding_value <= high:
            checks.refuse("pad_sequence", f"a padding_value that {dtype} can hold", padding_value)
    if any(isinstance(x, Tensor) for x in given):
        tensors = [x if isinstance(x, Tensor) else Tensor(x) for x in given]
        rests = [((0, longest - len(x)), *[(0, 0)] * (x.ndim - 1)) for x in tensors]
        padded = [x.pad(rest, padding_value) for x, rest in zip(tensors, rests, strict=True)]
        return stack(padded, 0 if batch_first else 1)
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), padding_value, dtype)
    for row, x in zip(out, arrays, strict=True):
        row[: len(x)] = x
    return out if batch_first else np.ascontiguousarray(out.swapaxes(0, 1))


class ConcatDataset(_BatchDataset):
    """The samples of several data sets, one after the other; `classes` and the like are those of the first."""

    def __init__(self, datasets: Iterable[Samples]):
        given = checks.items("ConcatDataset", datasets, "a list of data sets")
        self.datasets = [checked_samples("ConcatDataset", dataset) for dataset in given]
        if not self.datasets:
            raise ConfigError("ConcatDataset: expected at least one data set, got none")
        if any(map(counts_epochs, self.datasets)):
            raise ConfigError("ConcatDataset: expected data sets that are not augmented; augment the whole of them")
        check_meanings("ConcatDataset", *map(meaning_of, self.datasets))
        self.ends = list(itertools.accumulate(map(len, self.datasets)))
        for name in ("classes", "feature_names", "inputs"):
            setattr(self, name, getattr(self.datasets[0], name, None))

    def __len__(self):
        return self.ends[-1]

    def gather(self, positions):
        chosen, starts = checked_positions(positions, len(self)), [0, *self.ends]
        owners = np.searchsorted(self.ends, chosen, side="right")
        parts, places = [], []
        for k in np.unique(owners) if len(chosen) else [0]:
            places.append(np.flatnonzero(owners == k))
            parts.append(gather(self.datasets[k], chosen[places[-1]] - starts[k]))
        order = np.argsort(np.concatenate(places), kind="stable")
        return _joined(parts, lambda fields: _in_order(fields, order))

    def _sample(self, position):
        k = bisect.bisect_right(self.ends, position)
        return self.datasets[k][position - [0, *self.ends][k]]


def _joined(parts: list[Any], join: Callable[[list[Any]], Any]) -> Any:
    """Batches of the same fields as one."""
    fields = [list(part) if isinstance(part, dict) else len(part) for part in parts]
    if fields.count(fields[0]) < len(fields):
        raise ShapeError(f"ConcatDataset: expected data sets of equal fields, got {fields}")
    if isinstance(parts[0], dict):
        return {name: join([part[name] for part in parts]) for name in parts[0]}
    return tuple(join(list(column)) for column in zip(*parts, strict=True))


def _in_order(fields: list[Any], order: np.ndarray) -> Any:
    if isinstance(fields[0], list):  # text
        together = [text for field in fields for text in field]
        return [together[i] for i in order]
    if len({(x.shape[1:], x.dtype) for x in fields}) > 1:
        found = ", ".join(f"{x.dtype} {x.shape[1:]}" for x in fields)
        raise ShapeError(f"ConcatDataset: expected data sets of equal rows, got {found}")
    return np.concatenate(fields)[order]


class Collated(View):
    """`dataset` whose samples `function` makes a batch of: what a DataLoader with `collate_fn` reads from."""

    selects = False

    def __init__(self, dataset: Samples, function: Callable[[list[Any]], Any]):
        super().__init__(dataset)
        self.function = checks.function("DataLoader: collate_fn", function)

    def gather(self, positions):
        chosen = checked_positions(positions, positions_of(self))
        read = self.dataset._sample if self.counts_epochs else self.dataset.__getitem__
        return _checked_batch(self.function([read(int(position)) for position in chosen]))


def _checked_batch(batch: Any) -> Batch:
    """What a collate_fn made, as a tuple or dict of arrays; text and nested fields stay as they are."""
    if isinstance(batch, dict):
        return {name: _field(value, name) for name, value in batch.items()}
    fields = batch if isinstance(batch, tuple | list) else [batch]
    return tuple(_field(value, k) for k, value in enumerate(fields))


def _field(value: Any, name: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        check_finite(value if value.ndim else value[None], f"collate_fn: field {name}: row")
        return widen(value)
    return value


class Cast(View):
    """`dataset` with its fields of floats in one dtype, that of a model.

    say: called as say(name of a field, its dtype, dtype) for each field that is cast, in this process alone.
    """

    def __init__(self, dataset: Samples, dtype: Any, say: Callable[[Any, Any, Any], None] | None = None):
        super().__init__(dataset)
        self.dtype, self.say = np.dtype(dtype), say

    def __getstate__(self):
        return super().__getstate__() | {"say": None}

    def gather(self, positions):
        batch = gather(self.dataset, positions)
        if self.say is not None:
            for name, field in fields_of(batch):
                if hasattr(field, "dtype") and field.dtype in FLOATS and field.dtype != self.dtype:
                    self.say(name, field.dtype, self.dtype)
        return cast(batch, self.dtype)

    def _select(self, positions):
        return cast(self.dataset._select(positions), self.dtype)  # type: ignore[attr-defined]


def cast(batch: Any, dtype: Any) -> Any:
    """A batch, or a tuple of tensors, with its fields of floats in one dtype."""

    def field(x: Any) -> Any:
        return x.astype(dtype) if hasattr(x, "dtype") and x.dtype in FLOATS and x.dtype != dtype else x

    if isinstance(batch, dict):
        return {name: field(x) for name, x in batch.items()}
    return tuple(map(field, batch))
