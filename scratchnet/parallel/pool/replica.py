"""What a worker computes: gradients of shards, steps of its own, and slices of the merge. Pure functions of memory.

A *page* is all parameters and buffers side by side, and what the optimizer remembers of them. A *slot* is laid out like
the parameters and buffers of a page: it holds the gradients, and the new buffers, that one shard gave. So

    slot k   = gradient(page t, samples of shard k, random numbers of shard k)
    page t+1 = update(page t, slot 0, slot 1, ..., numbers of the step),  slice by slice

and either may be done again, by anyone, with the same bytes as its result. Pages and slots are in the memory of the
host, and so are updates; a gradient may be computed in copies of them on a GPU (device_memory.py).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import tracing
from ...data.dataset import gather, selects
from ...errors import ConfigError
from ...jit import Step
from ...jit.program import Outputs
from ...kernels import Device
from ...kernels import device as find_device
from ...native.vectors import is_finite, sum_of_squares
from ...nn import Module
from ...random import Generator
from ...tensor import Tensor, default_device
from ..comm.memory import round_up
from ..shards import first_stream, require_finite, shard_loss, weighted_mean
from ..strategies import AllReduce, Strategy

UNIT = 16  # elements: slices begin and end on whole cache lines


Page = list[np.ndarray]  # bytes: parameters and buffers, and each state of the optimizer


class Extent(NamedTuple):
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

    place: Extent
    slots: tuple[int, ...]


class PageLayout:
    """Places of parameters and buffers in a page, from the sizes that a model and an optimizer have.

    trained: the optimizer's slots that get gradients. The others' parameters are constants.
    """

    def __init__(self, model: Module, optimizer: Any, trained: Sequence[int]):
        self.parameters: dict[int, Extent] = {}  # by the number of the optimizer's slot
        self.segments: list[Segment] = []
        offset, alike = 0, None
        for i in trained:
            slot = optimizer.states[i]
            kind = id(slot.group), slot.step, slot.dtype
            if kind != alike:
                self.segments.append(Segment(Extent(offset, (0,), slot.dtype), ()))
                alike = kind
            self.parameters[i] = Extent(offset, slot.shape, slot.dtype)
            offset += round_up(self.parameters[i].nbytes)
            begin = self.segments[-1].place.offset
            place = Extent(begin, ((offset - begin) // slot.dtype.itemsize,), slot.dtype)
            self.segments[-1] = Segment(place, (*self.segments[-1].slots, i))
        self.parameter_bytes = offset
        self.buffers: list[Extent] = []
        for buffer in model.buffers():
            self.buffers.append(Extent(offset, buffer.shape, buffer.dtype))
            offset += round_up(self.buffers[-1].nbytes)
        self.nbytes = max(offset, 1)
        self.states = len(optimizer.state_names)

    @property
    def page_bytes(self) -> int:
        """Of a page with its optimizer state."""
        return round_up(self.nbytes) + self.states * round_up(self.parameter_bytes)

    @property
    def begins(self) -> list[int]:
        """Where, in a page, parameters begin, and each state of the optimizer, which is laid out like them."""
        return [0, *(round_up(self.nbytes) + j * round_up(self.parameter_bytes) for j in range(self.states))]

    def page(self, memory: np.ndarray) -> Page:
        """`page_bytes` bytes as a page: parameters and buffers, and each state of the optimizer."""
        sizes = [self.nbytes] + [max(self.parameter_bytes, 1)] * self.states
        return [memory[begin : begin + size] for begin, size in zip(self.begins, sizes, strict=True)]

    def arrays(self, slot: np.ndarray) -> list[np.ndarray]:
        """What a slot holds: gradients, and buffers; not the gaps between them."""
        return [place.of(slot) for place in (*self.parameters.values(), *self.buffers)]

    def cut(self, part: tuple[int, int]) -> list[Extent]:
        """Of each segment slice s of n, (s, n) = part, in whole units but for the end."""
        s, n = part
        places = []
        for segment in self.segments:
            offset, (size,), dtype = segment.place
            lo, hi = (size * i // n // UNIT * UNIT if i < n else size for i in (s, s + 1))
            places.append(Extent(offset + lo * dtype.itemsize, (hi - lo,), dtype))
        return places


class Replica:
    """A model, a loss and an optimizer that compute on pages and slots. What they hold themselves is left alone.

    shards, seed: see Trainer; clip_norm, skip_nonfinite, jit: too. trained: see PageLayout; None: all.

    device: of the model, where gradients are computed. host: where pages and slots are. A replica that is sent to
    another process arrives there on the host.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Any,
        loss: Callable[..., Tensor],
        shards: int,
        seed: int,
        strategy: Strategy | None = None,
        clip_norm: float | None = None,
        skip_nonfinite: bool = False,
        jit: bool = True,
        trained: Sequence[int] | None = None,
    ):
        self.model, self.optimizer, self.loss, self.shards, self.seed = model, optimizer, loss, shards, seed
        self.strategy, self.clip_norm = strategy or AllReduce(), clip_norm
        self.skip_nonfinite, self.jit = skip_nonfinite, jit
        self.device: Device = next(iter(model.parameters()))._device
        self.host = self.device if self.device.is_host else find_device("cpu")
        self.generator = Generator(seed)
        self.layout = PageLayout(model, optimizer, range(len(optimizer.states)) if trained is None else trained)
        self.told: Callable[[int, int, list[int]], None] | None = None  # see `Gradient`
        self._of_samples = _recorded(self._select, jit)
        self._of_batch = _recorded(self._gradient, jit)
        model.train()

    def __reduce__(self):
        parts: Any = self.model, self.optimizer, self.loss
        if not self.device.is_host:  # who opens it may have no GPU, or another one
            parts = copy.deepcopy(parts)
            _move(parts[0], parts[2], self.host.name)
            for slot in parts[1].states:
                slot.arrays = [self.at(array).to_host(array) for array in slot.arrays]
        arguments = *parts, self.shards, self.seed, self.strategy, self.clip_norm
        return Replica, (*arguments, self.skip_nonfinite, self.jit, tuple(self.layout.parameters))

    def to(self, device: str) -> Replica:
        """Let gradients be computed on this device: the model and the loss move there."""
        _move(self.model, self.loss, device)
        self.device = find_device(device)
        return self

    def at(self, array: Any) -> Device:
        """The device whose kernels an array is for."""
        return self.host if isinstance(array, np.ndarray) else self.device

    def leave_out_untrained(self, dataset: Any, positions: np.ndarray) -> None:
        """Parameters that get no gradient are constants: the optimizer passes them by."""
        slots, buffers = self.optimizer.states, list(self.model.buffers())
        kept = [buffer._data.copy() for buffer in buffers]
        with _bound([*(slot.param for slot in slots), *buffers], [*(slot.param._data for slot in slots), *kept]):
            batch = [self._tensor(array) for array in gather(dataset, positions)]
            shard_loss(self.model, self.loss, batch, Generator(self.seed)).sum().backward()
            trained = [i for i, slot in enumerate(slots) if slot.param.grad is not None]
        self.layout = PageLayout(self.model, self.optimizer, trained)

    # --- pages ----------------------------------------------------------------------------------------------------

    def write(self, page: Page) -> None:
        """The model's and the optimizer's state to a page."""
        for place, array in self._arrays(page):
            np.copyto(place, self.at(array).to_host(array))

    def read(self, page: Page) -> None:
        """A page to the model and the optimizer."""
        for place, array in self._arrays(page):
            self.at(array).write(array, place)

    def _arrays(self, page: Page) -> list[tuple[np.ndarray, np.ndarray]]:
        theta, *states = page
        pairs = []
        for i, place in self.layout.parameters.items():
            slot = self.optimizer.states[i]
            own = [slot.param._data, *slot.arrays]
            pairs += [(place.of(part), array) for part, array in zip([theta, *states], own, strict=True)]
        buffers = zip(self.layout.buffers, self.model.buffers(), strict=True)
        return pairs + [(place.of(theta), buffer._data) for place, buffer in buffers]

    def next_numbers(self) -> np.ndarray:
        """One more step of the optimizer, as far as Python knows of it: what its kernel takes for each segment."""
        slots = self.optimizer.states
        leaders = [(slots[segment.slots[0]], np.empty(self.optimizer.n_numbers)) for segment in self.layout.segments]
        self.optimizer.advance([slots[i] for i in self.layout.parameters], leaders)
        return np.array([numbers for _, numbers in leaders])

    def name_of(self, i: int) -> str:
        """The model's name of the parameter in the optimizer's slot i."""
        parameter = self.optimizer.states[i].param
        return next((name for name, own in self.model.named_parameters() if own is parameter), f"number {i}")

    # --- the gradient of a shard ------------------------------------------------------------------------------------

    def gradient(
        self,
        dataset: Any,
        positions: np.ndarray,
        weight: float,
        batch: int,
        k: int,
        page: Page,
        slot: np.ndarray,
        fresh: bool = True,
    ) -> float:
        """The mean loss of the samples at `positions`; `weight` times its gradient, and the new buffers, go to `slot`.

        batch, k: number of the batch in the run, and of the shard in it: they name the random numbers. fresh: if not,
        the gradient is added to what is in the slot, whose buffers move on.

        Raises NonFiniteError, before anything is written, if the loss is not finite.
        """
        self.generator.stream = first_stream(batch, k, self.shards)
        theta, scale = page[0], self._tensor(np.full((), weight, self.optimizer.states[0].dtype))
        if selects(dataset):
            return self._of_samples(dataset, self._tensor(positions), scale, theta, slot, fresh).item()
        tensors = [self._tensor(array) for array in gather(dataset, positions)]
        return self._of_batch(tensors, scale, theta, slot, fresh).item()

    def _tensor(self, array: np.ndarray) -> Tensor:
        return Tensor(array, device=self.device.name)

    def _select(
        self, dataset: Any, positions: Tensor, scale: Tensor, theta: np.ndarray, slot: np.ndarray, fresh: bool
    ) -> Tensor:
        with default_device(self.device.name):
            batch = dataset.select(positions)
        return self._gradient(batch, scale, theta, slot, fresh)

    def _gradient(
        self, batch: Sequence[Tensor], scale: Tensor, theta: np.ndarray, slot: np.ndarray, fresh: bool
    ) -> Tensor:
        device, layout = tracing.active(self.device), self.layout
        for place in layout.buffers if fresh else []:  # a shard moves a copy of its own
            device.copy(place.of(theta), place.of(slot))
        parameters = [self.optimizer.states[i].param for i in layout.parameters]
        places = [place.of(theta) for place in layout.parameters.values()]
        places += [place.of(slot) for place in layout.buffers]
        with _bound([*parameters, *self.model.buffers()], places):
            loss = shard_loss(self.model, self.loss, batch, self.generator)
            require_finite(loss)
            loss.backward(Tensor._wrap(scale._data.reshape(loss.shape), self.device))
            missing = [i for i, p in zip(layout.parameters, parameters, strict=True) if p.grad is None]
            if missing:
                raise ConfigError(f"fit: expected a gradient for every parameter in each shard, got none for {missing}")
            for parameter, place in zip(parameters, layout.parameters.values(), strict=True):
                gradient, own = parameter.grad._data, place.of(slot)  # type: ignore[union-attr]
                if fresh:
                    device.copy(gradient, own)
                else:
                    device.add(own, gradient, own)
        return loss.detach()

    def gradient_of(self, dataset: Any, n: int, page: Page, slot: np.ndarray, fresh: bool = True) -> Gradient:
        """`gradient` for n samples, from this page to this slot, again and again."""
        return Gradient(self, dataset, n, page, slot, fresh)

    def find_nonfinite(self, slot: np.ndarray) -> int:
        """The first parameter whose gradient in the slot is NaN or infinite, by its number; or -1."""
        if all(is_finite(segment.place.of(slot)) for segment in self.layout.segments):
            return -1
        return next(i for i, place in self.layout.parameters.items() if not np.isfinite(place.of(slot)).all())

    # --- the merge and update of a slice ----------------------------------------------------------------------------

    def slice_of(
        self,
        part: tuple[int, int],
        old: Page,
        new: Page,
        gradients: Sequence[np.ndarray],
        slots: Sequence[np.ndarray] | None = None,
    ) -> Slice:
        """Slice s of n, (s, n) = part, of the step from page `old` to page `new`, which may be the same.

        gradients: what is folded, laid out like slots. slots: those of the shards that are not empty, if not the same;
        their buffers belong to the last slice.
        """
        slots = gradients if slots is None else slots
        segments = [
            ([span.of(x) for x in old], [span.of(gradient) for gradient in gradients], [span.of(x) for x in new])
            for span in self.layout.cut(part)
        ]
        before = [buffer for _, buffer in self._buffers(part, (), old)]
        return Slice(self, segments, self._buffers(part, slots, new), before)

    def average_of(
        self, part: tuple[int, int], pages: Sequence[Page], new: Page, slots: Sequence[np.ndarray] | None = None
    ) -> Average:
        """Slice s of n, (s, n) = part, of the mean of pages: parameters and states of the optimizer.

        pages: what is folded to the sum. slots: as in `slice_of`, if they are not these pages.
        """
        slots = [page[0] for page in pages] if slots is None else slots
        arrays = [
            ([span.of(page[j]) for page in pages], span.of(new[j]))
            for span in self.layout.cut(part)
            for j in range(len(new))
        ]
        return Average(self, arrays, len(slots), self._buffers(part, slots, new))

    def _buffers(self, part: tuple[int, int], slots: Sequence[np.ndarray], new: Page) -> list[_Merged]:
        places = self.layout.buffers if part[0] == part[1] - 1 else []
        return [([place.of(slot) for slot in slots], place.of(new[0])) for place in places]

    def sum_of_squares(self, part: tuple[int, int], slots: Sequence[np.ndarray]) -> float:
        """Of slice s of n of the merged gradient, in float64."""
        total = 0.0
        for span in self.layout.cut(part):
            merged, *others = [span.of(slot) for slot in slots]
            for other in others:
                merged = merged + other
            total += sum_of_squares(merged)
        return total


class Gradient:
    """The gradient of a shard of n samples, from a page to a slot that stay where they are: see `Replica.gradient`.

    A replay has nothing to look up, which takes a third of the time that a call with arguments does. If there is a
    `told` of the replica, the replay tells it, before it is through, of the batch and shard that `compute` was given,
    which parameters' gradients are final: numbers, in the order of the layout.
    """

    doing = (0, 0)

    def __init__(self, replica: Replica, dataset: Any, n: int, page: Page, slot: np.ndarray, fresh: bool):
        self.replica, self.dataset, self.page, self.slot, self.fresh = replica, dataset, page, slot, fresh
        number, there = np.zeros((), replica.optimizer.states[0].dtype), replica.device.from_host
        self.positions, self.scale, self.loss = there(np.zeros(n, np.int64)), there(number), there(number.copy())
        gradients = [place.of(slot) for place in replica.layout.parameters.values()]
        outputs = Outputs(gradients, self._tell) if replica.told else None
        self._step = _recorded(self._compute, replica.jit, outputs) if selects(dataset) else None

    def _tell(self, final: list[int]) -> None:
        self.replica.told(*self.doing, final)  # type: ignore[misc]

    def compute(self, positions: np.ndarray, weight: float, batch: int, k: int) -> float:
        """The mean loss; see `Replica.gradient`."""
        replica = self.replica
        if self._step is None:
            return replica.gradient(self.dataset, positions, weight, batch, k, self.page, self.slot, self.fresh)
        self.doing = batch, k
        replica.generator.stream = first_stream(batch, k, replica.shards)
        replica.device.write(self.positions, positions)
        replica.device.write(self.scale, weight)
        self._step()
        return self.loss.item()

    def _compute(self) -> None:
        replica, device = self.replica, tracing.active(self.replica.device)
        positions, scale = (Tensor._wrap(x, replica.device) for x in (self.positions, self.scale))
        loss = replica._select(self.dataset, positions, scale, self.page[0], self.slot, self.fresh)
        device.copy(loss._data.reshape(()), self.loss)


_Merged = tuple[list[np.ndarray], np.ndarray]  # what is merged, and where to


class Slice:
    """A piece of merge and update.

    segments: of each, parts of the old page and states, gradients, and parts of the new ones. buffers: of each, those
    of the shards, and the place of the new one. before: the buffers of the old page.
    """

    def __init__(
        self,
        replica: Replica,
        segments: list[tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]],
        buffers: list[_Merged],
        before: Sequence[np.ndarray] = (),
    ):
        self.before = before
        self.kernel, self.segments, self.buffers = replica.optimizer.kernel, segments, buffers
        self.device = replica.at(segments[0][0][0])
        self.numbers = np.empty((len(segments), replica.optimizer.n_numbers))
        self.factors = [np.ones((), old[0].dtype) for old, _, _ in segments] if replica.clip_norm is not None else None
        # Of arrays that stay where they are: a replay has nothing to look up.
        self._step = _recorded(self._merge, replica.jit)

    def update(self, numbers: np.ndarray, weights: Sequence[float], factor: float = 1.0) -> None:
        """numbers: see `Replica.next_numbers`. weights: of the buffers of each slot. factor: of the gradient."""
        self.numbers[...] = numbers
        for own in self.factors or []:
            own[...] = factor
        self._step(tuple(weights) if self.buffers else ())

    def skip(self) -> None:
        """The new page is the old one."""
        for old, _, new in self.segments:
            for source, target in zip(old, new, strict=True):
                np.copyto(target, source)
        for source, (_, target) in zip(self.before, self.buffers, strict=True):
            np.copyto(target, source)

    @property
    def written(self) -> list[np.ndarray]:
        return [x for _, _, new in self.segments for x in new]

    def _merge(self, weights: Sequence[float]) -> None:
        device = tracing.active(self.device)
        for i, (old, gradients, new) in enumerate(self.segments):
            gradient = _folded(device, gradients)
            if self.factors is not None:
                scaled = device.empty(gradient.shape, gradient.dtype)
                device.mul(gradient, self.factors[i], scaled)
                gradient = scaled
            getattr(device, self.kernel)(old[0], gradient, *old[1:], *new, self.numbers[i])
        _merge_buffers(self.device, self.buffers, weights)


class Average:
    """A piece of the mean of `count` pages. arrays: parts of their sum, and of the new one; buffers: as in Slice."""

    def __init__(self, replica: Replica, arrays: list[_Merged], count: int, buffers: list[_Merged]):
        self.device, self.arrays, self.count, self.buffers = replica.host, arrays, count, buffers
        self._step = _recorded(self._merge, replica.jit)

    def update(self, weights: Sequence[float]) -> None:
        self._step(tuple(weights) if self.buffers else ())

    @property
    def written(self) -> list[np.ndarray]:
        return [out for _, out in self.arrays]

    def _merge(self, weights: Sequence[float]) -> None:
        device = tracing.active(self.device)
        for parts, out in self.arrays:
            device.mul(_folded(device, parts), np.full((), 1 / self.count, out.dtype), out)
        _merge_buffers(self.device, self.buffers, weights)


def _folded(device: Device, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum, in the order of shards, as one process adds them."""
    total = arrays[0]
    for other in arrays[1:]:
        merged = device.empty(total.shape, total.dtype)
        device.add(total, other, merged)
        total = merged
    return total


def _merge_buffers(device: Device, buffers: Sequence[_Merged], weights: Sequence[float]) -> None:
    for parts, buffer in buffers:
        merged = weighted_mean([Tensor._wrap(x, device) for x in parts], weights)
        tracing.active(device).copy(merged._data, buffer)


def _recorded(step: Callable, is_jitted: bool, outputs: Outputs | None = None) -> Callable:
    return Step(step, outputs) if is_jitted else step


def _move(model: Module, loss: Any, device: str) -> None:
    for part in (model, loss):
        if isinstance(part, Module):
            part.to(device)


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
        written = tracing.current()
        for t, array in zip(tensors, own, strict=True):
            t._data, t.grad = array, None
            if written is not None:
                written.watched.pop((id(t), "_data"), None)
