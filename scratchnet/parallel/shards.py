"""Shards: the K equal parts of a batch. Of all that divides work, only they enter the arithmetic of a step."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import tracing
from ..data.dataset import Batch, features_of, gather
from ..errors import NonFiniteError, ShapeError
from ..grad_mode import no_grad
from ..nn import Module
from ..nonfinite import first_nonfinite
from ..precisions import precision
from ..random import Generator, using
from ..tensor import Tensor
from .comm.tree import tree_sum
from .settings import Settings

DRAWS = 1 << 20  # streams of random numbers that a shard may use
SHARDS = 8  # of a batch where several workers share it and nobody chose: their number must not choose the arithmetic
READING, COMPUTING = range(2)  # what a data set draws from `random` and `np.random`, and what a model and a loss draw


class StepResult(NamedTuple):
    """What a step gave."""

    number: int
    first: int  # number of its first batch in the run
    batches: list[np.ndarray]  # positions of the samples of each
    losses: np.ndarray  # (batches, shards) float64, means; NaN where there are no samples or the step was skipped


class Shares(NamedTuple):
    """How the samples of a step, which may have several batches, are shared out among the shards."""

    parts: list[list[tuple[int, int, int]]]  # of each shard: (batch, first sample, end)
    samples: int  # in all
    full: tuple[int, ...]  # the shards that have any
    weights: list[float]  # of those shards: their part of the samples

    @classmethod
    def of(cls, counts: Sequence[int], shards: int) -> Shares:
        """counts: samples of each batch."""
        ends = [sum(counts[:a]) for a in range(len(counts))]
        parts = [
            [(a, ends[a] + k * n // shards, ends[a] + (k + 1) * n // shards) for a, n in enumerate(counts)]
            for k in range(shards)
        ]
        sizes = [sum(hi - lo for _, lo, hi in part) for part in parts]
        full = tuple([k for k, size in enumerate(sizes) if size])
        return cls(parts, sum(counts), full, [sizes[k] / sum(counts) for k in full])


def split(batch: Sequence[Any], k: int, shards: int) -> tuple[Any, ...]:
    """Shard k of K of each array or tensor: views of n // K consecutive rows, or of one more."""
    n = len(batch[0])
    return tuple(rows[k * n // shards : (k + 1) * n // shards] for rows in batch)


@functools.cache
def sizes_of(n: int, shards: int) -> list[int]:
    """The rows that each of K shards gets of n by `split`."""
    return [(k + 1) * n // shards - k * n // shards for k in range(shards)]


def first_full(batch: np.ndarray, shards: int) -> np.ndarray:
    """The first of K shards that is not empty; with fewer samples than shards that is a later one."""
    return split((batch,), -(-shards // len(batch)) - 1, shards)[0]


def starts_of(n: int, size: int) -> list[int]:
    """n things cut into `size` runs of n // size, or one more: where each begins, and where the last one ends."""
    return [i * n // size for i in range(size + 1)]


def first_stream(batch: int, k: int, shards: int) -> int:
    """The first stream of random numbers of shard k of a batch; it depends on nothing else."""
    return (batch * shards + k) * DRAWS


def seed_others(seed: int, stream: int, use: int) -> None:
    """`random` and `np.random`, from which the user's code may draw, begin anew: at what the arguments determine.

    use: READING or COMPUTING. Only inside `streams_kept`.
    """
    mask = 2**32 - 1
    np.random.seed([seed & mask, seed >> 32 & mask, stream & mask, stream >> 32 & mask, use])  # noqa: NPY002
    random.seed((seed % 2**64) << 65 | stream << 1 | use)


@contextlib.contextmanager
def others_seeded(generator: Generator, may_be_recorded: bool) -> Iterator[None]:
    """Inside, a model and a loss draw from `random` and `np.random` what (seed, stream) of `generator` determine.

    may_be_recorded: a step that is recorded is refused if they draw, as a replay would not. Only inside `streams_kept`.
    """
    seed_others(generator.seed, generator.stream, COMPUTING)
    before = _state_of_others() if may_be_recorded else None
    yield
    if may_be_recorded and _state_of_others() != before:
        tracing.current().refuse("random numbers of random or np.random")


def _state_of_others() -> tuple[Any, ...]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    return state["state"]["key"].tobytes(), state["state"]["pos"], state["has_gauss"], random.getstate()


@contextlib.contextmanager
def streams_kept() -> Iterator[None]:
    """Inside, `random` and `np.random` may be seeded; afterwards they go on where they were before.

    There is one of each in a process: threads that train at the same time take turns. A generator of NumPy that is
    swapped may be in use by another thread, so none of ours is ever freed.
    """
    with _turn:
        before, python = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
        generator, swap = np.random.mtrand.get_bit_generator(), np.random.mtrand.set_bit_generator
        own = _spare.pop() if _spare else np.random.MT19937(0)
        swap(own)  # the user's may be of a kind that takes no seed
        try:
            yield
        finally:
            swap(generator)  # at once, where setting the state takes 70 us
            _spare.append(own)
            if before["has_gauss"]:  # half of a pair of normal numbers, which belongs to no generator
                np.random.set_state(before)  # noqa: NPY002
            random.setstate(python)


_turn = threading.RLock()
_spare: list[Any] = []  # generators that nobody uses now


def gathered(dataset: Any, positions: np.ndarray, seed: int, stream: int) -> Batch:
    """The samples of a shard; what the data set draws from `random`, `np.random` and scratchnet's own random numbers
    depends on (seed, stream) alone. Of the shard's streams it has the second half, a model and a loss have the first.
    """
    seed_others(seed, stream, READING)
    with using(Generator(seed, stream + DRAWS // 2)):
        return gather(dataset, positions)


def tensors_of(batch: Batch, make: Callable[[Any], Tensor]) -> Any:
    """A batch, or a shard of one, with a tensor for each field."""
    if isinstance(batch, dict):
        return {name: make(field) for name, field in batch.items()}
    return [make(field) for field in batch]


def rows_of(shard: Any) -> int:
    """How many samples a shard has."""
    return len(features_of(shard))


def output_and_target(model: Module, batch: Any) -> tuple[Any, Any]:
    """What the model makes of a batch of tensors, and the last field, the target. It takes the fields before that as
    arguments, by name if they have names.
    """
    if isinstance(batch, dict):
        *inputs, last = batch
        return model(**{name: batch[name] for name in inputs}), batch[last]
    *others, target = batch
    return model(*others), target


def shard_loss(model: Module, loss: Callable[..., Tensor], shard: Any, generator: Generator, products: str) -> Tensor:
    """The mean loss over the samples of a shard; random numbers come from `generator`. products: their precision."""
    with using(generator), precision(products):
        value = loss(*output_and_target(model, shard))
    if value.size != 1:
        raise ShapeError(f"fit: expected a loss of one element, the mean over the batch, got shape {value.shape}")
    return value


def require_finite(loss: Tensor) -> None:
    """Raises NonFiniteError if the loss is not finite, in this step and whenever it is replayed."""

    def check() -> None:
        if not np.isfinite(loss._device.to_host(loss._data)).all():
            raise NonFiniteError("fit: expected a finite loss, got one that is not")

    check()
    tracing.current().guard("finite", loss._data, (), check)


def weighted_mean(parts: Mapping[int, Tensor], weights: Sequence[float]) -> Tensor:
    """A buffer of a batch from those of its shards, by number: sum of weight * buffer, along the tree; of integers the
    first.
    """
    first = next(iter(parts.values()))
    if first.dtype.kind != "f" or len(parts) == 1:
        return first
    weight_of = dict(zip(parts, weights, strict=True))
    with no_grad():
        return tree_sum(parts, lambda k: parts[k] * weight_of[k], operator.add)


def nonfinite_loss(settings: Settings, positions: np.ndarray, batch: int, step: int) -> NonFiniteError | None:
    """The shard of a batch whose loss is not finite, and the op that made it so: the batch is computed once more."""
    device = next(iter(settings.model.parameters())).device
    for k in range(settings.shards):
        own, generator = split((positions,), k, settings.shards)[0], Generator(settings.seed)
        generator.stream = first_stream(batch, k, settings.shards)
        if not len(own):
            continue
        with streams_kept():
            arrays = gathered(settings.dataset, own, settings.seed, generator.stream)
            seed_others(settings.seed, generator.stream, COMPUTING)
            shard = tensors_of(arrays, lambda array: Tensor(array, device=device))
            loss = shard_loss(settings.model, settings.loss, shard, generator, settings.precision)
        if not math.isfinite(value := loss.item()):
            origin = first_nonfinite(loss)
            return NonFiniteError(f"fit: expected a finite loss, got {value} at step {step}, shard {k}, from {origin}")
    return None
