"""Shards: the K equal parts of a batch, which are all that enters the arithmetic of data-parallel training."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import tracing
from ..autograd import no_grad
from ..errors import NonFiniteError, ShapeError
from ..nn import Module
from ..random import Generator, using
from ..tensor import Tensor

DRAWS = 1 << 20  # streams of random numbers that a shard may use


class StepResult(NamedTuple):
    """What came of a step: its number, that of its first batch in the run, the positions of each batch's samples, and
    the mean loss of each batch's shards: (batches, shards), NaN where there are no samples or the step was skipped.
    """

    number: int
    first: int
    batches: list[np.ndarray]
    losses: np.ndarray


def split(batch: Sequence[Any], k: int, shards: int) -> tuple[Any, ...]:
    """Shard k of K: consecutive rows, n // K or one more of them; views."""
    n = len(batch[0])
    return tuple(rows[k * n // shards : (k + 1) * n // shards] for rows in batch)


def starts_of(n: int, size: int) -> list[int]:
    """n things shared out among `size`, each consecutive ones, n // size or one more: where they begin, and the end."""
    return [i * n // size for i in range(size + 1)]


def first_stream(batch: int, k: int, shards: int) -> int:
    """Where the random numbers of shard k of a batch begin: they depend on nothing else."""
    return (batch * shards + k) * DRAWS


def shard_loss(model: Module, loss: Callable[..., Tensor], shard: Sequence[Tensor], generator: Generator) -> Tensor:
    """The mean loss over the samples of a shard, with what is random in it from `generator`."""
    *inputs, target = shard
    with using(generator):
        value = loss(model(*inputs), target)
    if value.size != 1:
        raise ShapeError(f"fit: expected a loss of one element, the mean over the batch, got shape {value.shape}")
    return value


def require_finite(loss: Tensor) -> None:
    """Raises NonFiniteError, in this step and when it is replayed."""

    def check() -> None:
        if not np.isfinite(loss._device.to_host(loss._data)).all():
            raise NonFiniteError("fit: expected a finite loss, got one that is not")

    check()
    tracing.guard("finite", loss._data, (), check)


def weighted_mean(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Buffers of shards merged: the sum of weight times buffer, in shard order; of counters, the first."""
    if parts[0].dtype.kind != "f" or len(parts) == 1:
        return parts[0]
    with no_grad():
        return functools.reduce(operator.add, [part * weight for part, weight in zip(parts, weights, strict=True)])
