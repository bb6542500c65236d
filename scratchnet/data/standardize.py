"""Features made ready for a network, with figures of the training part alone: Standardize shifts and scales them to
mean 0 and standard deviation 1, PiecewiseLinear says for each bin of a feature how far its value got through it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import checks
from ..errors import DataError, ShapeError
from ..tensor import Tensor
from .dataset import Dataset, TensorDataset, features_of, gather

CHUNK = 4096  # rows at a time: bounds memory, and fixes the order of the sums
SMALLEST_STD = np.finfo(np.float32).tiny  # what is smaller would be 0 in float32
FAR = 1000  # deviations from 0: what lies beyond, such as a time, loses digits that count in float32


class Standardize:
    """(x - mean) / std, row by row. `Standardize.fit(train)` measures; `train.map(s)` and `test.map(s)` apply.

    mean, std: float64, one figure a feature or one for all (shape ()).
    """

    takes_tensors = True

    def __init__(self, mean: ArrayLike = 0.0, std: ArrayLike = 1.0):
        self.load_state_dict({"mean": mean, "std": std})

    @classmethod
    def fit(cls, data: Dataset | ArrayLike, per_feature: bool = True, comm: Any = None) -> Standardize:
        """Measure the features of a Dataset, or an array (n, ...), in two passes in float64.

        per_feature=False gives one mean and one std for all features, the usual choice for images.
        The std is that of the population (ddof 0). A feature that never changes (std below 1.2e-38) gets std 1.
        comm: a scratchnet.parallel.Communicator of processes that all call this with the same data; each reads a part
        of the rows, and all get the figures that one process does, to the bit.
        """
        per_feature = checks.flag("Standardize.fit: per_feature", per_feature)
        if comm is not None and not hasattr(comm, "all_reduce"):
            checks.refuse("Standardize.fit: comm", "a Communicator or None", comm)
        dataset = data if isinstance(data, Dataset) else TensorDataset(data)
        if len(dataset) == 0:
            raise DataError("Standardize.fit: expected at least one row, got none")
        axis = 0 if per_feature else None
        row = features_of(gather(dataset, [0]))
        numbers = len(dataset) * (1 if per_feature else row.size)

        def each(*measures: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            """(measures, chunks, ...): what each of these functions gives of each chunk."""
            return _of_chunks(dataset, measures, row.shape[1:] if per_feature else (), comm)

        sums, lows, highs = each(lambda x: x.sum(axis=axis), lambda x: x.min(axis=axis), lambda x: x.max(axis=axis))
        low, high, mean = lows.min(axis=0), highs.max(axis=0), functools.reduce(np.add, sums, 0.0) / numbers
        (squares,) = each(lambda x: np.square(x - mean).sum(axis=axis))
        std = np.sqrt(functools.reduce(np.add, squares, 0.0) / numbers)
        # A constant feature whose sum was rounded has a small std and no meaning: so look at its range, not its std.
        return cls(mean, np.where((low == high) | (std < SMALLEST_STD), 1.0, std))

    def __call__(self, batch: Any) -> Any:
        """batch: (b, ...) features, array or tensor -> the same shape, in its float type (float32 for integers).

        Computed in that type; in float64 where it is float16 or where a mean is more than 1000 std from 0.
        """
        batch = batch if isinstance(batch, Tensor) else np.asarray(batch)
        if self.mean.ndim and batch.shape[1:] != self.mean.shape:
            raise ShapeError(f"Standardize: expected rows of shape {self.mean.shape}, got {batch.shape[1:]}")
        dtype = batch.dtype if batch.dtype.kind == "f" else np.dtype(np.float32)
        is_near = dtype.itemsize > 2 and (np.abs(self.mean) <= FAR * self.std).all()
        wide = dtype if is_near else np.dtype(np.float64)
        mean, std = self.mean.astype(wide), self.std.astype(wide)
        if isinstance(batch, Tensor):
            return ((batch.astype(wide) - Tensor(mean)) / Tensor(std)).astype(dtype)
        out = np.subtract(batch, mean, dtype=wide)
        out /= std
        return out.astype(dtype, copy=False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """{"mean", "std"}: copies."""
        return {"mean": self.mean.copy(), "std": self.std.copy()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take the figures of a `state_dict`. Raises DataError unless all are there, finite, and no std is 0."""
        if not isinstance(state, Mapping) or set(state) != {"mean", "std"}:
            checks.refuse("Standardize", "a state with mean and std", state, DataError)
        mean, std = (checks.array(f"Standardize: {name}", state[name]).astype(np.float64) for name in ("mean", "std"))
        if mean.shape != std.shape:
            raise ShapeError(f"Standardize: expected mean and std of one shape, got {mean.shape} and {std.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= SMALLEST_STD).all()):
            raise DataError(f"Standardize: expected finite means, and finite stds of at least {SMALLEST_STD:.1e}")
        self.mean, self.std = mean, std


class PiecewiseLinear:
    """clip((x[column] - low) / (high - low), 0, 1): one feature for each bin from `low` to `high` of a column of x.

    A network on them is piecewise linear in each number, with as many kinks as bins, as trees are (Gorishniy, Rubachev
    and Babenko 2022, "On embeddings for numerical features"). Columns of 0 and 1 stay as they are.
    `PiecewiseLinear.fit(train)` finds the bins; `train.map(p)` and `test.map(p)` apply.
    column: (k,) integers; low, high: (k,) float64.
    """

    def __init__(self, column: ArrayLike, low: ArrayLike, high: ArrayLike):
        self.load_state_dict({"column": column, "low": low, "high": high})

    @classmethod
    def fit(cls, data: Dataset | ArrayLike, bins: int = 64) -> PiecewiseLinear:
        """Bins whose edges are quantiles of a column's values and of its different values: `bins` of each, or fewer.

        data: a data set, or an array, of features (n, columns). The different values give edges where values are rare.
        A column that never changes gets one bin above its value, so it is 0.
        """
        bins = checks.integer("PiecewiseLinear.fit: bins", bins, 1, CHUNK)
        dataset = data if isinstance(data, Dataset) else TensorDataset(data)
        if len(dataset) == 0:
            raise DataError("PiecewiseLinear.fit: expected at least one row, got none")
        rows = np.asarray(features_of(gather(dataset, np.arange(len(dataset)))))
        if rows.ndim != 2 or not rows.shape[1]:
            raise ShapeError(f"PiecewiseLinear.fit: expected features (n, columns), got {rows.shape}")
        shares, found = np.linspace(0, 1, bins + 1), []
        for column, values in enumerate(rows.T):
            ranked = [np.sort(values), np.unique(values)]
            edges = np.unique([np.quantile(some, shares, method="nearest") for some in ranked])
            if len(edges) == 1:
                edges = np.array([edges[0], edges[0] + max(1, abs(edges[0]))])
            found += [(column, *pair) for pair in itertools.pairwise(edges)]
        return cls(*zip(*found, strict=True))

    def __call__(self, batch: Any) -> np.ndarray:
        """batch: (b, columns) -> (b, k) float32; computed in float64 unless batch and edges are numbers of float32."""
        batch = np.asarray(batch)
        if batch.ndim != 2 or batch.shape[1] <= self.column.max(initial=-1):
            raise ShapeError(f"PiecewiseLinear: expected rows of {self.column.max() + 1} columns, got {batch.shape}")
        wide: Any = np.float32 if self._is_narrow and batch.dtype == np.float32 else np.float64
        low, high = self.low.astype(wide), self.high.astype(wide)
        out = np.clip(batch[:, self.column], low, high, dtype=wide)
        out -= low
        out /= high - low
        return out.astype(np.float32, copy=False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """{"column", "low", "high"}: copies."""
        return {name: getattr(self, name).copy() for name in ("column", "low", "high")}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take the bins of a `state_dict`. Raises DataError unless all are there, finite, and each has a width."""
        if not isinstance(state, Mapping) or set(state) != {"column", "low", "high"}:
            checks.refuse("PiecewiseLinear", "a state with column, low and high", state, DataError)
        column = checks.array("PiecewiseLinear: column", state["column"], "iu").astype(np.int64)
        low, high = (
            checks.array(f"PiecewiseLinear: {name}", state[name]).astype(np.float64) for name in ("low", "high")
        )
        if column.ndim != 1 or not column.size or not column.shape == low.shape == high.shape:
            shapes = ", ".join(str(each.shape) for each in (column, low, high))
            raise ShapeError(f"PiecewiseLinear: expected column, low and high of one length, got {shapes}")
        with np.errstate(over="ignore", invalid="ignore"):
            widths = high - low
        if column.min() < 0 or not (np.isfinite(widths).all() and (widths > 0).all()):
            raise DataError("PiecewiseLinear: expected columns from 0, and bins of finite, positive width")
        self.column, self.low, self.high = column, low, high
        with np.errstate(over="ignore"):
            self._is_narrow = all((edges == edges.astype(np.float32)).all() for edges in (low, high))


def _of_chunks(
    dataset: Any,
    measures: Sequence[Callable[[np.ndarray], np.ndarray]],
    shape: tuple[int, ...],
    comm: Any,
) -> np.ndarray:
    """(measures, chunks, *shape) float64: what each function gives, of that shape, of each chunk of rows; see `fit`."""
    starts, rank, size = range(0, len(dataset), CHUNK), comm.rank if comm else 0, comm.size if comm else 1
    found = np.zeros((len(measures), len(starts), *shape))
    for i in range(rank * len(starts) // size, (rank + 1) * len(starts) // size):
        batch = gather(dataset, np.arange(starts[i], min(starts[i] + CHUNK, len(dataset))))
        chunk = features_of(batch).astype(np.float64)
        for figures, measure in zip(found, measures, strict=True):
            figures[i] = measure(chunk)
    return comm.all_reduce(found) if comm else found  # to a chunk's figures the others add nothing but zeros
