"""Standardize: shift and scale features to mean 0 and standard deviation 1, with figures of the training part alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scratchnet.data.dataset import Dataset, TensorDataset, gather
from scratchnet.errors import DataError, ShapeError
from scratchnet.tensor import Tensor

CHUNK = 4096  # rows at a time: bounds memory, and fixes the order of the sums
SMALLEST_STD = np.finfo(np.float32).tiny  # what is smaller would be 0 in float32


class Standardize:
    """(x - mean) / std, row by row. `Standardize.fit(train)` measures; `train.map(s)` and `test.map(s)` apply.

    mean, std: float64, one figure a feature or one for all (shape ()).
    """

    takes_tensors = True

    def __init__(self, mean: ArrayLike = 0.0, std: ArrayLike = 1.0):
        self.load_state_dict({"mean": mean, "std": std})

    @classmethod
    def fit(cls, data: Dataset | ArrayLike, per_feature: bool = True) -> Standardize:
        """Measure the features of a Dataset, or an array (n, ...), in two passes in float64.

        per_feature=False gives one mean and one std for all features, the usual choice for images.
        The std is that of the population (ddof 0). A feature that never changes (std below 1.2e-38) gets std 1.
        """
        dataset = data if isinstance(data, Dataset) else TensorDataset(data)
        if len(dataset) == 0:
            raise DataError("Standardize.fit: expected at least one row, got none")
        axis = 0 if per_feature else None

        total, low, high, rows = 0.0, np.inf, -np.inf, 0
        for chunk in _chunks(dataset):
            total = total + chunk.sum(axis=axis)
            low, high = np.minimum(low, chunk.min(axis=axis)), np.maximum(high, chunk.max(axis=axis))
            rows += len(chunk) if per_feature else chunk.size
        mean = total / rows
        squares = sum(np.square(chunk - mean).sum(axis=axis) for chunk in _chunks(dataset))
        std = np.sqrt(squares / rows)
        # A constant feature whose sum was rounded has a small std and no meaning: so look at its range, not its std.
        return cls(mean, np.where((low == high) | (std < SMALLEST_STD), 1.0, std))

    def __call__(self, batch: Any) -> Any:
        """batch: (b, ...) features, array or tensor -> the same shape, in its float type (float32 for integers)."""
        batch = batch if isinstance(batch, Tensor) else np.asarray(batch)
        if self.mean.ndim and batch.shape[1:] != self.mean.shape:
            raise ShapeError(f"Standardize: expected rows of shape {self.mean.shape}, got {batch.shape[1:]}")
        dtype = batch.dtype if batch.dtype.kind == "f" else np.dtype(np.float32)
        if isinstance(batch, Tensor):
            return (batch - Tensor(self.mean.astype(dtype))) / Tensor(self.std.astype(dtype))
        out = np.subtract(batch, self.mean.astype(dtype), dtype=dtype)
        out /= self.std.astype(dtype)
        return out

    def state_dict(self) -> dict[str, np.ndarray]:
        """{"mean", "std"}: copies."""
        return {"mean": self.mean.copy(), "std": self.std.copy()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take the figures of a `state_dict`. Raises DataError unless all are there, finite, and no std is 0."""
        if set(state) != {"mean", "std"}:
            raise DataError(f"Standardize: expected a state with mean and std, got {sorted(state)}")
        mean, std = np.array(state["mean"], np.float64), np.array(state["std"], np.float64)
        if mean.shape != std.shape:
            raise ShapeError(f"Standardize: expected mean and std of one shape, got {mean.shape} and {std.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= SMALLEST_STD).all()):
            raise DataError(f"Standardize: expected finite means, and finite stds of at least {SMALLEST_STD:.1e}")
        self.mean, self.std = mean, std


def _chunks(dataset):
    for start in range(0, len(dataset), CHUNK):
        features, *_ = gather(dataset, np.arange(start, min(start + CHUNK, len(dataset))))
        yield features.astype(np.float64)
