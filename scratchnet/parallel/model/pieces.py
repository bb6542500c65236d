"""The pieces of a pipeline: stage s of shard k, forward and backward, as pure functions of memory.

    forward   page of stage s, activations that earlier stages sent  ->  activations that stage s sends
    backward  the same, gradients of what stage s sent  ->  its part of slot k, gradients of what it was sent

Without bubbles a backward pass is two pieces: `backward_inputs` gives the latter, `backward_weights` the part of the
slot.

Any worker may do any of them again: same bytes. Who did a forward keeps its graph for the backward; anybody else, or
all with `recompute`, runs the forward once more.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import tracing
from ...autograd import initial_gradient
from ...errors import ConfigError
from ...native.vectors import is_finite
from ...tensor import Tensor
from ..shards import first_stream, gathered, others_seeded, require_finite, shard_loss, tensors_of
from .backward import Rest, Term, backward, backward_inputs, backward_weights
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
        self._buffers = list(replica.model.buffers())
        self._versions: dict[tuple[int, int], list[int]] = {}  # of buffers, after the forward of (stage, shard)
        self._graphs: dict[tuple[int, int], tuple[int, list[Graph]]] = {}  # of (stage, shard): the step, each batch's
        self._rests: dict[tuple[int, int], tuple[int, list[Rest]]] = {}  # of backward passes that are half done
        self.keeps, self.learns = not replica.strategy.recompute, False
        self.backwards = [self.backward_inputs, self.backward_weights] if replica.strategy.splits else [self.backward]

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
        stage, graphs = self.plan.stages[s], self._graphs_of(s, k, step, parts, memory)
        with self._bound(stage, memory, self._versions[s, k]):
            for part, graph in zip(parts, graphs, strict=True):
                inputs, parameters = self._inputs_of(graph), self._parameters_of(stage)
                found = backward(self._roots(s, part, graph, memory), [*inputs.values(), *parameters.values()])
                self._send_gradients(s, part, dict(zip(inputs, found, strict=False)), memory)
                self._write(stage, found[len(inputs) :], memory, part is parts[0])

    def backward_inputs(self, s: int, k: int, step: int, parts: list[Part], memory: Memory) -> None:
        """Gradients of the stage's inputs go to `memory.gradients`."""
        self._rests[s, k] = step, self._rests_of(s, k, step, parts, memory, True)

    def backward_weights(self, s: int, k: int, step: int, parts: list[Part], memory: Memory) -> None:
        """Gradients of the stage's parameters go to the slot."""
        done, rests = self._rests.pop((s, k), (-1, []))
        if done != step:
            rests = self._rests_of(s, k, step, parts, memory, False)
        stage = self.plan.stages[s]
        with self._bound(stage, memory, self._versions[s, k]):
            for part, rest in zip(parts, rests, strict=True):
                found = backward_weights(rest, [*self._parameters_of(stage).values()])
                self._write(stage, found, memory, part is parts[0])

    def _rests_of(self, s: int, k: int, step: int, parts: list[Part], memory: Memory, sends: bool) -> list[Rest]:
        graphs, rests = self._graphs_of(s, k, step, parts, memory), []
        with self._bound(self.plan.stages[s], memory, self._versions[s, k]):
            for part, graph in zip(parts, graphs, strict=True):
                inputs = self._inputs_of(graph)
                found, rest = backward_inputs(self._roots(s, part, graph, memory), [*inputs.values()])
                rests.append(rest)
                if sends:
                    self._send_gradients(s, part, dict(zip(inputs, found, strict=True)), memory)
        return rests

    def _graphs_of(self, s: int, k: int, step: int, parts: list[Part], memory: Memory) -> list[Graph]:
        done, graphs = self._graphs.pop((s, k), (-1, []))
        return graphs if done == step else self._run(s, k, parts, memory)

    def _inputs_of(self, graph: Graph) -> dict[int, Tensor]:
        """Those that get a gradient, by op."""
        return {op: t for op, t in sorted(graph.inputs.items()) if t._node}

    def _parameters_of(self, stage: Stage) -> dict[int, Tensor]:
        """By the optimizer's state."""
        return {i: self.replica.optimizer.states[i].param for i in (self._states[j] for j in stage.parameters)}

    def _write(self, stage: Stage, found: list[Any], memory: Memory, fresh: bool) -> None:
        """Gradients of the stage's parameters go to the slot; of those that parts share, its blocks."""
        whole = {}
        for j, i, gradient in zip(stage.parameters, self._parameters_of(stage), found, strict=True):
            if j not in stage.blocks or gradient is None:
                whole[i] = gradient
                continue
            own = self.replica.layout.parameters[i].of(memory.slot)
            for key in stage.blocks[j]:  # 0.0 is what the other parts add to it in one process: never -0.0
                own[key] = (0.0 if fresh else own[key]) + gradient._data[key]
        self.replica.write_gradients(whole, memory.slot, fresh)

    def _gradients_in(self, s: int, memory: Memory) -> Iterator[tuple[int, np.ndarray]]:
        """What the stage has in the slot: (the optimizer's state, an array)."""
        stage = self.plan.stages[s]
        for j, i in zip(stage.parameters, self._parameters_of(stage), strict=True):
            own = self.replica.layout.parameters[i].of(memory.slot)
            yield from ((i, own[key]) for key in stage.blocks.get(j, [...]))

    def written_forward(self, s: int, parts: list[Part], memory: Memory) -> list[np.ndarray]:
        """What `forward` writes for others."""
        return [
            made[op].of(memory.activations[part.a, self.plan.activation_at[op] :])
            for part in parts
            for made in [self.plan.made_of(len(part.positions))]
            for op in self.plan.stages[s].leaves
        ]

    def written_inputs(self, s: int, parts: list[Part], memory: Memory) -> list[np.ndarray]:
        """The gradients that `backward_inputs` writes for others."""
        at = self.plan.gradient_at
        return [
            made[op].of(memory.gradients[part.a, at[op, s] :])
            for part in parts
            for made in [self.plan.made_of(len(part.positions))]
            for op in self.plan.stages[s].takes
            if (op, s) in self.plan.has_gradient
        ]

    def written_backward(self, s: int, memory: Memory) -> list[np.ndarray]:
        """The gradients of parameters that `backward` and `backward_weights` write."""
        return [gradient for _, gradient in self._gradients_in(s, memory)]

    def find_nonfinite(self, s: int, memory: Memory) -> int:
        """The optimizer's state of the stage's first parameter whose gradient is not finite, or -1."""
        for i, gradient in self._gradients_in(s, memory):
            if not is_finite(np.ascontiguousarray(gradient).reshape(-1)):
                return i
        return -1

    # --- a forward ----------------------------------------------------------------------------------------------------

    def _run(self, s: int, k: int, parts: list[Part], memory: Memory) -> list[Graph]:
        stage = self.plan.stages[s]
        for i in stage.buffers:  # each shard changes a copy
            extent = self.replica.layout.buffers[i]
            self.replica.device.copy(extent.of(memory.theta), extent.of(memory.slot))
        with self._bound(stage, memory):
            graphs = [self._run_part(stage, s, k, part, memory) for part in parts]
            self._versions[s, k] = [buffer._version for buffer in self._buffers]
        return graphs

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

    @contextlib.contextmanager
    def _bound(self, stage: Stage, memory: Memory, versions: Sequence[int] = ()) -> Iterator[None]:
        """The model on a page; its buffers in the slot, or where nobody reads them if they are of other stages.

        versions: of the buffers when the stage's forward of the shard ended. Until its backward nobody changes them in
        its slot; that the same tensors stood for those of other shards meanwhile is no change.
        """
        layout, before = self.replica.layout, [buffer._version for buffer in self._buffers]
        arrays = [extent.of(memory.theta) for extent in layout.parameters.values()]
        own = set(stage.buffers)
        for i, extent in enumerate(layout.buffers):
            arrays.append(extent.of(memory.slot) if i in own else self._elsewhere[i])
        self._set_versions(versions or before)
        try:
            with self.replica.bound(arrays):
                yield
        finally:
            self._set_versions(before)

    def _set_versions(self, versions: Sequence[int]) -> None:
        for buffer, version in zip(self._buffers, versions, strict=True):
            buffer._version = version

    # --- a backward ---------------------------------------------------------------------------------------------------

    def _roots(self, s: int, part: Part, graph: Graph, memory: Memory) -> list[Term]:
        return [*self._each_root(s, part, graph, memory)]

    def _each_root(self, s: int, part: Part, graph: Graph, memory: Memory) -> Iterator[Term]:
        if graph.loss is not None:
            scale = self.replica.tensor(np.full(graph.loss.shape, part.weight, self.replica.optimizer.states[0].dtype))
            yield graph.loss, initial_gradient(graph.loss, scale)
        made = self.plan.made_of(len(part.positions))
        for op, t in (*graph.outputs.items(), *graph.inputs.items()):
            if t._node and (later := self.plan.later(op, s)):
                memory_of_sum = memory.gradients[part.a, self.plan.gradient_at[later] :]
                yield t, self.replica.tensor(made[op].of(memory_of_sum))

    def _send_gradients(self, s: int, part: Part, found: dict[int, Any], memory: Memory) -> None:
        """To earlier stages, by op: sums over this stage and all later ones; None is no gradient."""
        gradients = {op: g for op, g in found.items() if g is not None}
        plan, stage, made = self.plan, self.plan.stages[s], self.plan.made_of(len(part.positions))
        if self.learns:
            plan.has_gradient |= {(op, s) for op in gradients}
        expected = {op for op in stage.takes if (op, s) in plan.has_gradient}
        if expected != gradients.keys():
            raise ConfigError(f"{WHO}: expected gradients for ops {expected} in each shard, got {set(gradients)}")
        for op, g in gradients.items():
            sent = made[op].of(memory.gradients[part.a, plan.gradient_at[op, s] :])
            self.replica.device.copy(g._data, sent)
