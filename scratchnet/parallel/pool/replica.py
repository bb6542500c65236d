"""What a worker computes with a model: the gradient of a shard, as a pure function of memory.

    slot k = gradient(page t, samples of shard k, random numbers of shard k)

It may be done again, by any worker, and gives the same bytes. Pages and slots (layout.py) are in the memory of the
host, and so are updates (slices.py); a gradient may be computed in copies of them on a GPU (device_memory.py).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ... import tracing
from ...data.dataset import selects
from ...errors import ConfigError
from ...jit.program import Outputs
from ...kernels import Device
from ...kernels import device as find_device
from ...native.vectors import is_finite
from ...nn import Module
from ...random import Generator
from ...row_gradient import RowGradient
from ...tensor import Tensor, default_device
from ..model.check import checked_plan
from ..model.plan import Plan
from ..settings import Settings
from ..shards import (
    first_full,
    first_stream,
    gathered,
    others_seeded,
    require_finite,
    shard_loss,
    streams_kept,
    tensors_of,
)
from .layout import Page, PageLayout


class Replica:
    """A model, a loss, an optimizer and a data set that compute on pages and slots; their own arrays stay as they are.

    trained, by_rows: see PageLayout. device: of the model, where gradients are computed. host: where pages and slots
    are. In another process, to which it travels, it arrives on the host.

    on_final: called with (batch, shard, parameters) while a replayed gradient still runs, as soon as the gradients of
    these parameters are final. See `Outputs`.
    """

    on_final: Callable[[int, int, list[int]], None] | None = None
    reading = 0.0  # seconds that the first shard took to be read
    streams_kept: Any = staticmethod(streams_kept)  # a worker process, in which nobody else draws, keeps none

    plan: Plan | None = None  # of a pipeline
    stages_here: Sequence[int] | None = None  # those whose numbers its pages hold, where other machines have the others

    def __init__(
        self,
        settings: Settings,
        dataset: Any,
        trained: Sequence[int],
        by_rows: Sequence[int] = (),
        plan: Plan | None = None,
    ):
        self.settings, self.dataset = settings, dataset
        self.model, self.optimizer, self.loss = settings.model, settings.optimizer, settings.loss
        self.shards, self.strategy = settings.shards, settings.strategy
        self.device: Device = next(iter(self.model.parameters()))._device
        self.host = self.device if self.device.is_host else find_device("cpu")
        self.generator = Generator(settings.seed)
        self.layout = PageLayout(self.model, self.optimizer, trained, by_rows)
        if plan is not None:
            self.follow(plan)
        self.loss_of_batch = settings.recorded(self.compute)
        self.model.train()

    @classmethod
    def of(cls, settings: Settings) -> Replica:
        """The replica of a run. Parameters that get no gradient are constants: the optimizer passes over them."""
        replica = cls(settings, settings.dataset, range(len(settings.optimizer.states)))
        states, buffers = settings.optimizer.states, list(settings.model.buffers())
        arrays = [state.param._data for state in states] + [buffer._data.copy() for buffer in buffers]
        with _bound([*(state.param for state in states), *buffers], arrays):
            positions = first_full(next(settings.loader.batch_indices(0)), settings.shards)
            with streams_kept():
                began = time.monotonic()
                samples = gathered(replica.dataset, positions, settings.seed, 0)
                replica.reading = time.monotonic() - began
                batch = tensors_of(samples, replica.tensor)
                generator = Generator(settings.seed)
                shard_loss(settings.model, settings.loss, batch, generator, settings.precision).sum().backward()
            trained = [i for i, state in enumerate(states) if state.param.grad is not None]
            by_rows = [i for i in trained if isinstance(states[i].param.grad, RowGradient)]
        replica.layout = PageLayout(settings.model, settings.optimizer, trained, by_rows)
        if by_rows and settings.strategy.compression is not None:
            name, came = replica.name_of(by_rows[0]), settings.strategy.compression
            raise ConfigError(f"fit: expected no compression of {name!r}, which has sparse=True, got {came}")
        if settings.strategy.divides(settings.workers):
            checked_plan(replica)
        return replica

    def follow(self, plan: Plan) -> None:
        """Let the model be computed in stages."""
        self.plan, states = plan, list(self.layout.parameters)
        members = [plan.members(stage) for stage in range(len(plan.names))]
        self.layout.stages = [({states[i] for i in own}, sorted(buffers)) for own, buffers in members]

    def __reduce__(self):
        parts: Any = self.model, self.optimizer, self.loss
        if not self.device.is_host:  # who opens it may have no GPU, or another one
            parts = copy.deepcopy(parts)
            _move(parts[0], parts[2], self.host.name)
            for state in parts[1].states:
                state.arrays = [self.at(array).to_host(array) for array in state.arrays]
        own = dict(zip(("model", "optimizer", "loss"), parts, strict=True))
        nothing: dict[str, Any] = dict.fromkeys(("scheduler", "loader", "placement", "timeline"))  # workers need none
        return Replica, (
            dataclasses.replace(self.settings, **own, **nothing),
            self.dataset,
            [*self.layout.parameters],
            self.layout.by_rows,
            self.plan,
        )

    def to(self, device: str) -> Replica:
        """Let gradients be computed on this device: the model and the loss move there."""
        _move(self.model, self.loss, device)
        self.device = find_device(device)
        return self

    def at(self, array: Any) -> Device:
        """The device that an array is on."""
        return self.host if isinstance(array, np.ndarray) else self.device

    def tensor(self, array: np.ndarray) -> Tensor:
        return Tensor(array, device=self.device.name)

    # --- pages ----------------------------------------------------------------------------------------------------

    def write(self, page: Page) -> None:
        """The state of the model and the optimizer goes to a page; where it is divided, that of the stages here."""
        for target, array in self._arrays(page, self.stages_here):
            np.copyto(target, self.at(array).to_host(array))

    def read(self, page: Page) -> None:
        """A page goes to the model and the optimizer."""
        for source, array in self._arrays(page):
            self.at(array).write(array, source)

    def let_go(self) -> None:
        """Drop the arrays of parameters and of the optimizer's states: a process that only computes on pages needs none
        of its own. Who reads them where no page is bound, such as a data set, reads NaN, not values of another time.
        """
        for i in self.layout.parameters:
            state = self.optimizer.states[i]
            nothing = np.broadcast_to(np.array(np.nan, state.dtype), state.shape)
            state.param._data, state.arrays = nothing, [nothing] * len(state.arrays)

    def _arrays(self, page: Page, stages: Sequence[int] | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Those of some stages, or all: (in the page, of the model or the optimizer)."""
        theta, layout, pairs, buffers = page[0], self.layout, [], list(self.model.buffers())
        whole: Any = [(layout.parameters, range(len(buffers)))]
        for states, numbers in whole if stages is None else [layout.stages[s] for s in stages]:
            for i in states:
                own = [self.optimizer.states[i].param._data, *self.optimizer.states[i].arrays]
                pairs += [(layout.parameters[i].of(part), array) for part, array in zip(page, own, strict=True)]
            pairs += [(layout.buffers[number].of(theta), buffers[number]._data) for number in numbers]
        return pairs

    def next_numbers(self) -> np.ndarray:
        """Advance the optimizer by a step, without its kernels: (segments, n) numbers that they take in that step."""
        numbers, *places = self._numbers
        self.optimizer.advance(*places)
        return numbers.copy()

    @functools.cached_property
    def _numbers(self) -> tuple[np.ndarray, list, list]:
        """Where the optimizer fills in its numbers, and what its `advance` takes for it."""
        states, segments, parameters = self.optimizer.states, self.layout.segments, self.layout.parameters
        numbers = np.empty((len(segments), self.optimizer.n_numbers))
        rows = list(zip(segments, numbers, strict=True))
        shared = {i: (states[segment.states[0]], row) for segment, row in rows for i in segment.states}
        return numbers, [states[i] for i in parameters], [shared[i] for i in parameters]

    def name_of(self, i: int) -> str:
        """The model's name of the parameter of the optimizer's state i."""
        parameter = self.optimizer.states[i].param
        return next((name for name, own in self.model.named_parameters() if own is parameter), f"number {i}")

    # --- the gradient of a shard ------------------------------------------------------------------------------------

    def compute(self, batch: Any, scale: Tensor, theta: np.ndarray, slot: np.ndarray, fresh: bool) -> Tensor:
        """The mean loss of a batch at parameters `theta`; `scale` times its gradient goes to `slot`. See `Gradient`."""
        device, layout = tracing.active(self.device), self.layout
        for extent in layout.buffers if fresh else []:  # each shard changes a copy
            device.copy(extent.of(theta), extent.of(slot))
        parameters = [self.optimizer.states[i].param for i in layout.parameters]
        arrays = [extent.of(theta) for extent in layout.parameters.values()]
        arrays += [extent.of(slot) for extent in layout.buffers]
        idle = [i for i in range(len(self.optimizer.states)) if i not in layout.parameters]
        for i in idle:
            self.optimizer.states[i].param.zero_grad()
        with self.bound(arrays):
            with self.streams_kept(), others_seeded(self.generator, self.settings.jit):
                loss = shard_loss(self.model, self.loss, batch, self.generator, self.settings.precision)
                require_finite(loss)
                loss.backward(Tensor._wrap(scale._data.reshape(loss.shape), self.device))
            gradients = {i: p.grad for i, p in zip(layout.parameters, parameters, strict=True)}
            if late := [i for i in idle if self.optimizer.states[i].param.grad is not None]:
                self._refuse("no gradient", late, "one")
            self.write_gradients(gradients, slot, fresh)
        return loss.detach()

    def bound(self, arrays: Sequence[np.ndarray]) -> Any:
        """A context in which the parameters that are trained, and the buffers, are these arrays."""
        parameters = [self.optimizer.states[i].param for i in self.layout.parameters]
        return _bound([*parameters, *self.model.buffers()], arrays)

    def write_gradients(self, gradients: Mapping[int, Any], slot: np.ndarray, fresh: bool) -> None:
        """Gradients, by the number of the optimizer's state, go to a slot, or are added to what is there."""
        if missing := [i for i, gradient in gradients.items() if gradient is None]:
            self._refuse("a gradient", missing, "none")
        device, layout = tracing.active(self.device), self.layout
        for i, gradient in gradients.items():
            own = layout.parameters[i].of(slot)
            if i in layout.by_rows or isinstance(gradient, RowGradient):
                self._write_rows(i, gradient, own, fresh)
            elif fresh:
                device.copy(gradient._data, own)
            else:
                device.add(own, gradient._data, own)

    def _refuse(self, expected: str, states: Sequence[int], came: str) -> None:
        """Raises ConfigError: in a pool it is fixed which parameters take part, as all shards are merged alike."""
        names = ", ".join([repr(self.name_of(i)) for i in states[:3]]) + ", ..." * (len(states) > 3)
        remedy = "let forward take it in each, if only with a factor 0"
        raise ConfigError(f"fit: expected {expected} of {names} in each shard, as in the first, got {came}; {remedy}")

    def _write_rows(self, i: int, gradient: Any, own: np.ndarray, fresh: bool) -> None:
        """A gradient by rows goes to a slot, as layout.py says; of one that is dense all rows occur."""
        if i not in self.layout.by_rows:
            name = self.name_of(i)
            raise ConfigError(f"fit: expected a gradient of {name!r} by rows from the first batch on, or never")
        if fresh:
            own.fill(-0.0)
        rows = gradient.rows if isinstance(gradient, RowGradient) else slice(None)
        own[rows] = own[rows] + gradient._data + 0.0  # never -0.0

    def unscale(self, slot: np.ndarray, scale: float) -> None:
        """Divides the gradients in a slot by a power of two, which changes no digit."""
        for segment in self.layout.segments if scale != 1 else ():
            gradients = segment.extent.of(slot)
            gradients *= gradients.dtype.type(1 / scale)

    def find_nonfinite(self, slot: np.ndarray) -> int:
        """The number of the first parameter whose gradient in the slot is NaN or infinite, or -1."""
        if all(is_finite(segment.extent.of(slot)) for segment in self.layout.segments):
            return -1
        return next(i for i, extent in self.layout.parameters.items() if not np.isfinite(extent.of(slot)).all())


class Gradient:
    """The gradient of a shard of n samples, from a page to a slot that stay where they are.

    fresh: if not, the gradient is added to what is in the slot, whose buffers go on from there. Of a data set with
    `select` the whole is one recorded step that looks nothing up, which takes a third less time than a call with
    arguments.
    """

    doing = (0, 0)

    def __init__(self, replica: Replica, n: int, page: Page, slot: np.ndarray, fresh: bool = True):
        self.replica, self.page, self.slot, self.fresh = replica, page, slot, fresh
        number, there = np.zeros((), replica.optimizer.states[0].dtype), replica.device.from_host
        self.positions, self.scale, self.loss = there(np.zeros(n, np.int64)), there(number), there(number.copy())
        gradients = [extent.of(slot) for extent in replica.layout.parameters.values()]
        outputs = Outputs(gradients, self._on_final) if replica.on_final else None
        self._step = replica.settings.recorded(self._compute, outputs) if selects(replica.dataset) else None

    def _on_final(self, parameters: list[int]) -> None:
        self.replica.on_final(*self.doing, parameters)  # type: ignore[misc]

    def compute(self, positions: np.ndarray, weight: float, batch: int, k: int) -> float:
        """The mean loss of the samples at `positions`; `weight` times its gradient and the new buffers go to the slot.

        batch, k: number of the batch in the run, and of the shard in it: they determine the random numbers. Raises
        NonFiniteError, before anything is written, if the loss is not finite.
        """
        replica = self.replica
        stream = replica.generator.stream = first_stream(batch, k, replica.shards)
        if self._step is not None:
            return self._replay(positions, weight, batch, k)
        with replica.streams_kept():
            arrays = gathered(replica.dataset, positions, replica.settings.seed, stream)
        scale = replica.tensor(np.full((), weight, self.scale.dtype))
        tensors = tensors_of(arrays, replica.tensor)
        return replica.loss_of_batch(tensors, scale, self.page[0], self.slot, self.fresh).item()

    def _replay(self, positions: np.ndarray, weight: float, batch: int, k: int) -> float:
        self.doing = batch, k
        self.replica.device.write(self.positions, positions)
        self.replica.device.write(self.scale, weight)
        self._step()  # type: ignore[misc]
        return self.loss.item()

    def _compute(self) -> None:
        replica, device = self.replica, tracing.active(self.replica.device)
        positions, scale = (Tensor._wrap(x, replica.device) for x in (self.positions, self.scale))
        with default_device(replica.device.name):
            batch = replica.dataset._select(positions)
        loss = replica.compute(batch, scale, self.page[0], self.slot, self.fresh)
        device.copy(loss._data.reshape(()), self.loss)


def _move(model: Module, loss: Any, device: str) -> None:
    for part in (model, loss):
        if isinstance(part, Module):
            part.to(device)


@contextlib.contextmanager
def _bound(tensors: Sequence[Tensor], arrays: Sequence[np.ndarray]) -> Iterator[None]:
    """Inside, the tensors have these arrays and no gradients; a recorded step does not rely on where their own lie."""
    own = [t._data for t in tensors]
    try:
        for t, array in zip(tensors, arrays, strict=True):
            t.zero_grad()
            t._data = array
        yield
    finally:
        for t, array in zip(tensors, own, strict=True):
            t._data, t.grad = array, None
            tracing.current().unwatch(t, "_data")
