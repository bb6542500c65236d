"""What a worker computes: the gradient of a shard, and a slice of the merge and update. Pure functions of memory.

A *page* is all parameters and buffers side by side, and what the optimizer remembers of them. A *slot* is laid out like
the parameters and buffers of a page: it holds the gradients, and the new buffers, that one shard gave. So

    slot k   = gradient(page t, samples of shard k, random numbers of (step, k))
    page t+1 = update(page t, slot 0, slot 1, ..., numbers of the step),  slice by slice

and either may be done again, by anyone, with the same bytes as its result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import trace
from ..data.dataset import gather, selects
from ..errors import ConfigError
from ..jit import jit
from ..kernels import Device
from ..nn import Module
from ..random import Generator
from ..tensor import Tensor, default_device
from .memory import round_up
from .shards import first_stream, require_finite, shard_loss, weighted_mean

UNIT = 16  # elements: slices begin and end on whole cache lines


Page = list[np.ndarray]  # bytes: parameters and buffers, and each state of the optimizer


class Place(NamedTuple):
    """Where an array lies in a page."""

    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def of(self, page: np.ndarray) -> np.ndarray:
        """The array, in a page of bytes."""
        return page[self.offset : self.offset + self.nbytes].view(self.dtype).reshape(self.shape)


class Segment(NamedTuple):
    """Parameters side by side that take the same numbers in each update: one place, and their optimizer slots."""

    place: Place
    slots: tuple[int, ...]


class PageLayout:
    """Places of parameters and buffers in a page, from the sizes that a model and an optimizer have.

    trained: the optimizer's slots that get gradients. The others' parameters are constants.
    """

    def __init__(self, model: Module, optimizer: Any, trained: Sequence[int]):
        self.parameters: dict[int, Place] = {}  # by the number of the optimizer's slot
        self.segments: list[Segment] = []
        offset, alike = 0, None
        for i in trained:
            slot = optimizer._slots[i]
            kind = id(slot.group), slot.step, slot.dtype
            if kind != alike:
                self.segments.append(Segment(Place(offset, (0,), slot.dtype), ()))
                alike = kind
            self.parameters[i] = Place(offset, slot.shape, slot.dtype)
            offset += round_up(self.parameters[i].nbytes)
            begin = self.segments[-1].place.offset
            place = Place(begin, ((offset - begin) // slot.dtype.itemsize,), slot.dtype)
            self.segments[-1] = Segment(place, (*self.segments[-1].slots, i))
        self.parameter_bytes = offset
        self.buffers: list[Place] = []
        for buffer in model.buffers():
            self.buffers.append(Place(offset, buffer.shape, buffer.dtype))
            offset += round_up(self.buffers[-1].nbytes)
        self.nbytes = max(offset, 1)
        self.states = len(optimizer.state_names)

    @property
    def page_bytes(self) -> int:
        """Of a page with its optimizer state."""
        return round_up(self.nbytes) + self.states * round_up(self.parameter_bytes)

    def page(self, memory: np.ndarray) -> Page:
        """`page_bytes` bytes as a page: parameters and buffers, and each state of the optimizer."""
        begin, step = round_up(self.nbytes), round_up(self.parameter_bytes)
        states = [memory[begin + j * step :][: max(self.parameter_bytes, 1)] for j in range(self.states)]
        return [memory[: self.nbytes], *states]


class Replica:
    """A model, a loss and an optimizer that compute on pages and slots. What they hold themselves is left alone."""

    def __init__(
        self,
        model: Module,
        optimizer: Any,
        loss: Callable[..., Tensor],
        shards: int,
        seed: int,
        trained: Sequence[int] | None = None,
    ):
        self.model, self.optimizer, self.loss, self.shards, self.seed = model, optimizer, loss, shards, seed
        self.device: Device = next(iter(model.parameters()))._device
        self.generator = Generator(seed)
        self.layout = PageLayout(model, optimizer, range(len(optimizer._slots)) if trained is None else trained)
        self._of_samples, self._of_batch = jit(self._select), jit(self._gradient)
        model.train()

    def __reduce__(self):
        trained = tuple(self.layout.parameters)
        return Replica, (self.model, self.optimizer, self.loss, self.shards, self.seed, trained)

    def leave_out_untrained(self, dataset: Any, positions: np.ndarray) -> None:
        """Parameters that get no gradient are constants: the optimizer passes them by."""
        slots, buffers = self.optimizer._slots, list(self.model.buffers())
        kept = [buffer._data.copy() for buffer in buffers]
        with _bound([*(slot.param for slot in slots), *buffers], [*(slot.param._data for slot in slots), *kept]):
            batch = [Tensor(array, device=self.device.name) for array in gather(dataset, positions)]
            shard_loss(self.model, self.loss, batch, Generator(self.seed)).sum().backward()
            trained = [i for i, slot in enumerate(slots) if slot.param.grad is not None]
        self.layout = PageLayout(self.model, self.optimizer, trained)

    # --- pages ----------------------------------------------------------------------------------------------------

    def write(self, page: Page) -> None:
        """The model's and the optimizer's state to a page."""
        for place, array in self._arrays(page):
            np.copyto(place, array)

    def read(self, page: Page) -> None:
        """A page to the model and the optimizer."""
        for place, array in self._arrays(page):
            np.copyto(array, place)

    def _arrays(self, page: Page) -> list[tuple[np.ndarray, np.ndarray]]:
        theta, *states = page
        pairs = []
        for i, place in self.layout.parameters.items():
            slot = self.optimizer._slots[i]
            own = [slot.param._data, *slot.arrays]
            pairs += [(place.of(part), array) for part, array in zip([theta, *states], own, strict=True)]
        buffers = zip(self.layout.buffers, self.model.buffers(), strict=True)
        return pairs + [(place.of(theta), buffer._data) for place, buffer in buffers]

    def next_numbers(self) -> np.ndarray:
        """One more step of the optimizer, as far as Python knows of it: what its kernel takes for each segment."""
        slots = self.optimizer._slots
        leaders = [(slots[segment.slots[0]], np.empty(self.optimizer.n_numbers)) for segment in self.layout.segments]
        self.optimizer._count([slots[i] for i in self.layout.parameters], leaders)
        return np.array([numbers for _, numbers in leaders])

    # --- the gradient of a shard ------------------------------------------------------------------------------------

    def gradient(
        self, dataset: Any, positions: np.ndarray, weight: float, step: int, k: int, page: Page, slot: np.ndarray
    ) -> float:
        """The mean loss of the samples at `positions`; `weight` times its gradient, and the new buffers, go to `slot`.

        Raises NonFiniteError, before anything is written, if the loss is not finite.
        """
        self.generator.stream = first_stream(step, k, self.shards)
        theta, scale = page[0], np.full((), weight, self.optimizer._slots[0].dtype)
        if selects(dataset):
            return self._of_samples(dataset, Tensor(positions), scale, theta, slot).item()
        batch = [Tensor(array, device=self.device.name) for array in gather(dataset, positions)]
        return self._of_batch(batch, scale, theta, slot).item()

    def _select(
        self, dataset: Any, positions: Tensor, scale: np.ndarray, theta: np.ndarray, slot: np.ndarray
    ) -> Tensor:
        with default_device(self.device.name):
            batch = dataset.select(positions)
        return self._gradient(batch, scale, theta, slot)

    def _gradient(self, batch: Sequence[Tensor], scale: np.ndarray, theta: np.ndarray, slot: np.ndarray) -> Tensor:
        device, layout = trace.active(self.device), self.layout
        for place in layout.buffers:  # a shard moves a copy of its own
            device.copy(place.of(theta), place.of(slot))
        parameters = [self.optimizer._slots[i].param for i in layout.parameters]
        places = [place.of(theta) for place in layout.parameters.values()]
        places += [place.of(slot) for place in layout.buffers]
        with _bound([*parameters, *self.model.buffers()], places):
            loss = shard_loss(self.model, self.loss, batch, self.generator)
            require_finite(loss)
            loss.backward(Tensor._wrap(scale.reshape(loss.shape), self.device))
            missing = [i for i, p in zip(layout.parameters, parameters, strict=True) if p.grad is None]
            if missing:
                raise ConfigError(f"fit: expected a gradient for every parameter in each shard, got none for {missing}")
            for parameter, place in zip(parameters, layout.parameters.values(), strict=True):
                device.copy(parameter.grad._data, place.of(slot))  # type: ignore[union-attr]
        return loss.detach()

    # --- the merge and update of a slice ----------------------------------------------------------------------------

    def slice_of(self, part: tuple[int, int], old: Page, new: Page, slots: Sequence[np.ndarray]) -> Slice:
        """Slice s of n, (s, n) = part, of the step from page `old` to page `new`.

        slots: those of the shards that are not empty. The buffers belong to the last slice.
        """
        spans = [_slice(segment.place, *part) for segment in self.layout.segments]
        buffers = self.layout.buffers if part[0] == part[1] - 1 else []
        return Slice(
            self.device,
            self.optimizer.kernel,
            np.empty((len(spans), self.optimizer.n_numbers)),
            [
                ([span.of(x) for x in old], [span.of(slot) for slot in slots], [span.of(x) for x in new])
                for span in spans
            ],
            [([place.of(slot) for slot in slots], place.of(new[0])) for place in buffers],
        )


@dataclass
class Slice:
    """A piece of merge and update: for each segment, parts of the old page and states, gradients, and parts of the new
    ones; for each buffer, those of the shards, and the place of the new one.
    """

    device: Device
    kernel: str
    numbers: np.ndarray
    segments: list[tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]]
    buffers: list[tuple[list[np.ndarray], np.ndarray]]

    def __post_init__(self) -> None:
        self._step = jit(self._merge)  # of arrays that stay where they are: a replay has nothing to look up

    def update(self, numbers: np.ndarray, weights: Sequence[float]) -> None:
        """numbers: see `Replica.next_numbers`. weights: what the buffers of each slot count."""
        self.numbers[...] = numbers
        self._step(tuple(weights) if self.buffers else ())

    def _merge(self, weights: Sequence[float]) -> None:
        device = trace.active(self.device)
        for (old, gradients, new), own in zip(self.segments, self.numbers, strict=True):
            gradient = gradients[0]
            for other in gradients[1:]:  # in the order of shards, as one process adds them
                total = device.empty(gradient.shape, gradient.dtype)
                device.add(gradient, other, total)
                gradient = total
            getattr(device, self.kernel)(old[0], gradient, *old[1:], *new, own)
        for parts, buffer in self.buffers:
            merged = weighted_mean([Tensor._wrap(x, self.device) for x in parts], weights)
            device.copy(merged._data, buffer)


def _slice(place: Place, s: int, n: int) -> Place:
    """Slice s of n of a flat place, in whole units but for the end."""
    (size,) = place.shape
    lo, hi = (size * i // n // UNIT * UNIT if i < n else size for i in (s, s + 1))
    return Place(place.offset + lo * place.dtype.itemsize, (hi - lo,), place.dtype)


@contextlib.contextmanager
def _bound(tensors: Sequence[Tensor], arrays: Sequence[np.ndarray]) -> Iterator[None]:
    """Inside, the tensors have these arrays, and no gradients; what is recorded does not rely on where they lie."""
    own = [t._data for t in tensors]
    try:
        for t, array in zip(tensors, arrays, strict=True):
            t.zero_grad()
            t._data = array
        yield
    finally:
        written = trace.current()
        for t, array in zip(tensors, own, strict=True):
            t._data, t.grad = array, None
            if written is not None:
                written.watched.pop((id(t), "_data"), None)
