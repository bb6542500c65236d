"""The pieces of a pipeline: stage s of shard k, forward and backward, as pure functions of memory.

    forward   page of stage s, activations that earlier stages sent  ->  activations that stage s sends
    backward  the same, gradients of what stage s sent  ->  its part of slot k, gradients of what it was sent

Any worker may do any of them again: same bytes. Who did a forward keeps its graph for the backward; anybody else, or
all with `recompute`, runs the forward once more.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ... import tracing
from ...autograd import initial_gradient
from ...errors import ConfigError
from ...native.vectors import is_finite
from ...tensor import Tensor
from ..shards import first_stream, gathered, others_seeded, require_finite, shard_loss, tensors_of
from .backward import backward
from .plan import Plan, Stage
from .trace import WHO, Left, StageRun


class Graph(NamedTuple):
    """What a forward leaves for the backward: the tensors of the stage's inputs and outputs, and the loss."""

    inputs: dict[int, Tensor]
    outputs: dict[int, Tensor]
    loss: Tensor | None


class Part(NamedTuple):
    """The samples of one batch that belong to a shard. number: of the batch in the run. weight: of their mean loss."""

    a: int
    number: int
    positions: np.ndarray
    weight: float


class Memory(NamedTuple):
    """Where a shard's numbers are: parameters and buffers; its slot; of each batch, activations and gradients."""

    theta: np.ndarray
    slot: np.ndarray
    activations: np.ndarray
    gradients: np.ndarray


class Stages:
    """Runs stages of a replica's model."""

    def __init__(self, replica: Any, plan: Plan):
        self.replica, self.plan = replica, plan
        self._states = list(replica.layout.parameters)
        self._elsewhere = [np.zeros(extent.shape, extent.dtype) for extent in replica.layout.buffers]
        self._graphs: dict[tuple[int, int], tuple[int, list[Graph]]] = {}  # of (stage, shard): the step, each batch's
        self.keeps, self.learns = not replica.strategy.recompute, False

    # --- pieces -------------------------------------------------------------------------------------------------------

    def forward(self, s: int, k: int, step: int, parts: list[Part], memory: Memory) -> list[float]:
        """The mean losses of the parts, NaN before the last stage. Raises NonFiniteError for one that is not finite."""
        graphs, stage = self._run(s, k, parts, memory), self.plan.stages[s]
        for part, graph in zip(parts, graphs, strict=True):
            made = self.plan.made_of(len(part.positions))
            for op in stage.leaves:
                sent = made[op].of(memory.activations[part.a, self.plan.activation_at[op] :])
                self.replica.device.copy(graph.outputs[op]._data, sent)
        if self.keeps:
            self._graphs[s, k] = step, graphs
        return [math.nan if graph.loss is None else graph.loss.item() for graph in graphs]

    def backward(self, s: int, k: int, step: int, parts: list[Part], memory: Memory) -> None:
        """Gradients of the stage's parameters go to the slot, those of its inputs to `memory.gradients`."""
        done, graphs = self._graphs.pop((s, k), (-1, []))
        if done != step:
            graphs = self._run(s, k, parts, memory)
        stage, replica = self.plan.stages[s], self.replica
        own = [self._states[i] for i in stage.parameters]
        with self._bound(stage, memory):
            for part, graph in zip(parts, graphs, strict=True):
                inputs = {op: t for op, t in sorted(graph.inputs.items()) if t._node}
                parameters = [replica.optimizer.states[i].param for i in own]
                found = backward([*self._roots(s, part, graph, memory)], [*inputs.values(), *parameters])
                sent = {op: g for op, g in zip(inputs, found, strict=False) if g is not None}
                self._send_gradients(s, part, sent, memory)
                gradients = dict(zip(own, found[len(inputs) :], strict=True))
                replica.write_gradients(gradients, memory.slot, part is parts[0])

    def written_forward(self, s: int, parts: list[Part], memory: Memory) -> list[np.ndarray]:
        """What `forward` writes for others."""
        return [
            made[op].of(memory.activations[part.a, self.plan.activation_at[op] :])
            for part in parts
            for made in [self.plan.made_of(len(part.positions))]
            for op in self.plan.stages[s].leaves
        ]

    def written_backward(self, s: int, memory: Memory) -> list[np.ndarray]:
        """The gradients of parameters that `backward` writes."""
        extents = self.replica.layout.parameters
        return [extents[self._states[i]].of(memory.slot) for i in self.plan.stages[s].parameters]

    def find_nonfinite(self, s: int, memory: Memory) -> int:
        """The optimizer's state of the stage's first parameter whose gradient is not finite, or -1."""
        for i in self.plan.stages[s].parameters:
            gradient = self.replica.layout.parameters[self._states[i]].of(memory.slot)
            if not is_finite(gradient.reshape(-1)):
                return self._states[i]
        return -1

    # --- a forward ----------------------------------------------------------------------------------------------------

    def _run(self, s: int, k: int, parts: list[Part], memory: Memory) -> list[Graph]:
        stage = self.plan.stages[s]
        for i in stage.buffers:  # each shard changes a copy
            extent = self.replica.layout.buffers[i]
            self.replica.device.copy(extent.of(memory.theta), extent.of(memory.slot))
        with self._bound(stage, memory):
            return [self._run_part(stage, s, k, part, memory) for part in parts]

    def _run_part(self, stage: Stage, s: int, k: int, part: Part, memory: Memory) -> Graph:
        replica, plan, n = self.replica, self.plan, len(part.positions)
        made, settings = plan.made_of(n), replica.settings
        stream = replica.generator.stream = first_stream(part.number, k, replica.shards)
        given = {op: made[op].of(memory.activations[part.a, plan.activation_at[op] :]) for op in stage.takes}
        run = StageRun(made, stage.ops, given, stage.leaves)
        with replica.streams_kept():
            if stage.reads_batch:
                batch = tensors_of(gathered(replica.dataset, part.positions, settings.seed, stream), replica.tensor)
            else:
                batch = plan.stand_ins(n)
            loss = None
            with contextlib.suppress(Left), others_seeded(replica.generator, False), tracing.into(run):
                loss = shard_loss(replica.model, replica.loss, batch, replica.generator, replica.settings.precision)
        if missing := set(stage.leaves) - run.outputs.keys():
            raise ConfigError(f"{WHO}: expected a forward that reads what op {min(missing)} gives, as before")
        if s + 1 < len(plan.stages):
            return Graph(run.inputs, run.outputs, None)
        if loss is None or run._count != len(made):
            raise ConfigError(f"{WHO}: expected a forward of {len(made)} ops, as before, got {run._count}")
        require_finite(loss)
        return Graph(run.inputs, run.outputs, loss)

    def _bound(self, stage: Stage, memory: Memory) -> Any:
        """The model on a page; its buffers in the slot, or where nobody reads them if they are of other stages."""
        layout = self.replica.layout
        arrays = [extent.of(memory.theta) for extent in layout.parameters.values()]
        own = set(stage.buffers)
        for i, extent in enumerate(layout.buffers):
            arrays.append(extent.of(memory.slot) if i in own else self._elsewhere[i])
        return self.replica.bound(arrays)

    # --- a backward ---------------------------------------------------------------------------------------------------

    def _roots(self, s: int, part: Part, graph: Graph, memory: Memory) -> Iterator[tuple[Tensor, Any]]:
        if graph.loss is not None:
            scale = self.replica.tensor(np.full(graph.loss.shape, part.weight, self.replica.optimizer.states[0].dtype))
            yield graph.loss, initial_gradient(graph.loss, scale)
        made = self.plan.made_of(len(part.positions))
        for op, t in (*graph.outputs.items(), *graph.inputs.items()):
            if t._node and (later := self.plan.later(op, s)):
                memory_of_sum = memory.gradients[part.a, self.plan.gradient_at[later] :]
                yield t, self.replica.tensor(made[op].of(memory_of_sum))

    def _send_gradients(self, s: int, part: Part, gradients: dict[int, Any], memory: Memory) -> None:
        """To earlier stages, by op: sums over this stage and all later ones."""
        plan, stage, made = self.plan, self.plan.stages[s], self.plan.made_of(len(part.positions))
        if self.learns:
            plan.has_gradient |= {(op, s) for op in gradients}
        expected = {op for op in stage.takes if (op, s) in plan.has_gradient}
        if expected != gradients.keys():
            raise ConfigError(f"{WHO}: expected gradients for ops {expected} in each shard, got {set(gradients)}")
        for op, g in gradients.items():
            sent = made[op].of(memory.gradients[part.a, plan.gradient_at[op, s] :])
            self.replica.device.copy(g._data, sent)
