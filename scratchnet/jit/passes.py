"""The passes: from the calls of a trace to the instructions of a program, each a function from a list to a list.

    lower                  a call becomes the loops that it consists of
    drop_dead              what nobody reads is left out
    copies_in_place        a loop writes to where its result would be copied
    updates_in_products    a product that is a gradient updates the weight at once
    guards_first           guards of arguments come before all that they may stop
    changes_last           what outlives the step is written after all guards
    outputs_early          an output comes as soon as all that it depends on is there

They look at nothing but the memory that instructions read and write, and change the arithmetic of no loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from ..kernels import device
from ..native.updates import UPDATES
from .trace import Call, Guard, Trace, memory_of

WORTH = 1 << 18  # bytes of outputs that are reported at a time, and of those that follow, at least: a call ends there


@dataclass(frozen=True, eq=False)
class Instruction:
    """A kernel call or a guard, and the loops that it consists of on the CPU: native.loops.Task."""

    call: Call | Guard
    loops: tuple[Any, ...] = ()

    @cached_property
    def by(self) -> str:
        """Who runs it: "CPU" as compiled loops, "GPU" as launches, or "Python"."""
        return "CPU" if self.loops else "GPU" if self.call.is_launched else "Python"

    @cached_property
    def writes(self) -> list[np.ndarray]:
        """A kernel that Python calls may write to any of its arrays."""
        return [x for x, written, _ in self.data() if written] if self.loops else self.call.arrays

    @cached_property
    def touches(self) -> list[np.ndarray]:
        """All that it reads or writes."""
        return self.call.arrays + [x for x, _, _ in self.data()]

    @property
    def touched(self) -> list[Any]:
        """All arrays of its call, on a GPU too."""
        return self.call.touched() if isinstance(self.call, Call) else [self.call.array]

    def data(self) -> Iterator[tuple[np.ndarray, bool, bool]]:
        """What its loops do with memory; see Task.arrays."""
        return (data for loop in self.loops for data in loop.arrays())

    def is_loops_of(self, kernel: str) -> bool:
        """Is it a compiled call of this kernel?"""
        return bool(self.loops) and isinstance(self.call, Call) and self.call.kernel == kernel

    def writes_to(self, arrays: Sequence[np.ndarray]) -> bool:
        return any(np.may_share_memory(x, y) for x in self.writes for y in arrays)

    def changes(self, scope: Scope) -> list[np.ndarray]:
        """What it writes of the host's memory that outlives the step; nothing for a guard."""
        if isinstance(self.call, Guard):
            return []
        written = [x for x, written, _ in self.data() if written] if self.loops else self.call.written()
        return [x for x in written if isinstance(x, np.ndarray) and not scope.trace.owns(x)]

    def conflicts(self, other: Instruction) -> bool:
        """Must these two stay in order?"""
        return self.writes_to(other.touches) or other.writes_to(self.touches)


Instructions = list[Instruction]


class Scope(NamedTuple):
    """Whose memory is whose: `trace` knows what the step made; kept: the ids of memory that the caller reads later."""

    trace: Trace
    kept: set[int]

    def is_private(self, array: np.ndarray) -> bool:
        """Does nobody outside of the program see the memory of `array`?"""
        return self.trace.owns(array) and id(memory_of(array)) not in self.kept


def compiled(trace: Trace, inputs: Sequence[np.ndarray], kept: Sequence[np.ndarray], stop: np.ndarray) -> Instructions:
    """The instructions of a program that does what the trace did. stop: where guards write that they do not hold."""
    scope = Scope(trace, {id(memory_of(x)) for x in kept})
    instructions = drop_dead(lower(trace, stop), scope)
    instructions = copies_in_place(instructions, scope)
    instructions = updates_in_products(instructions, scope)
    return changes_last(guards_first(instructions, inputs), scope)


def lower(trace: Trace, stop: np.ndarray) -> Instructions:
    """Each call with the loops that it consists of; with none if the device has none, or the kernel does more."""
    if any(isinstance(call, Call) and call.device.name != "cpu" for call in trace.calls):
        return [Instruction(call) for call in trace.calls]
    from ..kernels.cpu import plan_call, plan_guard  # here, not above: importing scratchnet does not load Numba
    from ..native.loops import Plan

    shared, instructions = Plan(), []
    for call in trace.calls:
        loops = Plan()
        loops.scratch = shared.scratch
        if isinstance(call, Guard):
            plan_guard(call.kind, (call.array, *call.numbers, stop), loops)
        elif call.function is None:
            plan_call(call.kernel, call.arguments, loops)
        for loop in loops:  # memory between the loops of one kernel
            for x, _, _ in loop.arrays():
                if not any(np.may_share_memory(x, y) for y in [*call.arrays, stop]):
                    trace.owned[id(memory_of(x))] = memory_of(x)
        instructions.append(Instruction(call, tuple(loops)))
    return instructions


def drop_dead(instructions: Instructions, scope: Scope) -> Instructions:
    """Those that something depends on: what outlives the step, what the caller keeps, or another live one."""
    wanted, live = set(scope.kept), []
    for instruction in reversed(instructions):
        if instruction.loops and all(
            scope.trace.owns(x) and id(memory_of(x)) not in wanted for x in instruction.writes
        ):
            continue
        wanted |= {id(memory_of(x)) for x in instruction.touches}
        live.append(instruction)
    return live[::-1]


def copies_in_place(instructions: Instructions, scope: Scope) -> Instructions:
    """Where a loop makes an array only to be copied, it writes to the target of the copy at once."""
    left = list(instructions)
    for copy in instructions:
        if not copy.is_loops_of("copy"):
            continue
        source, target = copy.call.arrays
        memory = memory_of(source)
        whole = source.size == memory.size and source.dtype == target.dtype and target.flags.carray
        if not whole or not scope.is_private(source):
            continue
        made, at = _only_use(memory, copy, left), left.index(copy)
        if made is None or not left[made].loops:
            continue
        if any(np.may_share_memory(target, x) for between in left[made:at] for x in between.touches):
            continue
        loops = [
            loop._replace(arguments=tuple(_at_target(x, memory, target) for x in loop.arguments))
            for loop in left[made].loops
        ]
        left[made] = replace(left[made], loops=tuple(loops))
        del left[at]
    return left


def _at_target(x: Any, memory: np.ndarray, target: np.ndarray) -> Any:
    """An argument that lies in `memory`, at the same offset of `target`; any other as it is."""
    if not isinstance(x, np.ndarray) or memory_of(x) is not memory:
        return x
    return np.ndarray(x.shape, x.dtype, target, _address(x) - _address(memory), x.strides)


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def updates_in_products(instructions: Instructions, scope: Scope) -> Instructions:
    """Where only an update reads a gradient that is a product, the product's tiles do it and write no gradient."""
    left = list(instructions)
    for update in instructions:
        kernel = update.call.kernel if isinstance(update.call, Call) and update.loops else ""
        if kernel not in UPDATES:
            continue
        from ..kernels.cpu.gemm_update import with_update

        parameter, gradient, *others, numbers = update.call.arrays
        states, new = others[: UPDATES[kernel].states], others[UPDATES[kernel].states :]
        made, at = _only_use(memory_of(gradient), update, left), left.index(update)
        in_place = all(map(is_, (parameter, *states), new))
        if not in_place or not scope.is_private(gradient) or made is None or not left[made].loops:
            continue
        product = left[made]
        fused = with_update(product.loops[-1], kernel, parameter, states, numbers)
        read = [x for x, written, _ in product.data() if not written]
        if fused is None or any(between.writes_to(read) for between in left[made + 1 : at]):
            continue
        call = Call(f"matmul_{kernel}", device("cpu"), (*product.call.arrays[:2], *states, numbers, parameter))
        left[at] = Instruction(call, (*product.loops[:-1], fused))
        del left[made]
    return left


def _only_use(memory: np.ndarray, instruction: Instruction, instructions: Instructions) -> int | None:
    """The position of the only other instruction that touches `memory`, if it comes before; else None."""
    at = instructions.index(instruction)
    uses = [i for i, other in enumerate(instructions) if i != at and any(memory_of(x) is memory for x in other.touches)]
    return uses[0] if len(uses) == 1 and uses[0] < at else None


def guards_first(instructions: Instructions, inputs: Sequence[np.ndarray]) -> Instructions:
    """Guards of the arguments come before all others. Python asks each question once."""
    given = {id(memory_of(x)) for x in inputs}
    asked: set[tuple] = set()

    def is_new(instruction: Instruction) -> bool:
        guard = instruction.call
        if instruction.loops or not isinstance(guard, Guard) or comes_later(instruction):
            return True
        question = guard.kind, guard.numbers, id(guard.array)
        is_known = question in asked
        asked.add(question)
        return not is_known

    def comes_later(instruction: Instruction) -> bool:
        call = instruction.call
        return not (isinstance(call, Guard) and id(memory_of(call.array)) in given)

    return sorted(filter(is_new, instructions), key=comes_later)


def changes_last(instructions: Instructions, scope: Scope) -> Instructions:
    """What outlives the step is written after all guards, unless what a guard checks depends on it.

    A guard that Python calls raises the error itself, so all is as after the plain call, and nothing is done twice.
    """
    end = _end_of_guards(instructions)
    first: Instructions = []
    late: Instructions = []
    for instruction in instructions[:end]:
        waits = any(instruction.conflicts(other) for other in late)
        if isinstance(instruction.call, Guard):
            first, late = (first + late, []) if waits else (first, late)
            first.append(instruction)
        else:
            (late if waits or instruction.changes(scope) else first).append(instruction)
    return first + late + instructions[end:]


def _end_of_guards(instructions: Instructions) -> int:
    """How many instructions there are up to the last compiled guard."""
    return 1 + max((at for at, x in enumerate(instructions) if x.loops and isinstance(x.call, Guard)), default=-1)


def changed_early(instructions: Instructions, scope: Scope) -> list[np.ndarray]:
    """The memory that outlives the step and is written before a guard."""
    end = _end_of_guards(instructions)
    found = {id(memory_of(y)): memory_of(y) for x in instructions[:end] for y in x.changes(scope)}
    return list(found.values())


def outputs_early(instructions: Instructions, outputs: Sequence[np.ndarray]) -> Instructions:
    """Each output comes after what it depends on, and after nothing else than guards."""
    left, order = list(range(len(instructions))), []
    for output in [at for at, instruction in enumerate(instructions) if instruction.writes_to(outputs)]:
        pulled = [output] if output in left else []
        for at in reversed([i for i in left if i < output]):
            instruction = instructions[at]
            if isinstance(instruction.call, Guard) or any(instruction.conflicts(instructions[i]) for i in pulled):
                pulled.append(at)
        order += pulled[::-1]
        left = [at for at in left if at not in pulled]
    return [instructions[at] for at in order + left]


def final_after(instructions: Instructions, outputs: Sequence[np.ndarray]) -> dict[int, list[int]]:
    """By the position of an instruction: the numbers of the outputs to report as final after it."""
    last = [max((at for at, x in enumerate(instructions) if x.writes_to([y])), default=-1) for y in outputs]
    found, waiting, left = {}, [], sum(x.nbytes for x in outputs)
    for at in range(len(instructions)):
        waiting += [i for i, final in enumerate(last) if final == at]
        size = sum(outputs[i].nbytes for i in waiting)
        if size >= WORTH and left - size >= WORTH:
            found[at], waiting, left = waiting, [], left - size
    return found
