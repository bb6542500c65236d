"""A program: what a trace becomes. Its parts run in order: compiled stages, and kernels that only Python can call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..kernels import device as find_device
from ..tracing import Undo
from .trace import Call, Guard, Trace, memory_of

WORTH = 1 << 18  # bytes of outputs that are told at a time, and of those that follow, at least: a call ends there


class Outputs(NamedTuple):
    """Arrays outside of a step that it fills. `tell` gets, while it still runs, the numbers of those that are final.

    It is not told of the last ones, nor of any while the step is recorded; and if a guard stops the step, of all.
    """

    arrays: Sequence[np.ndarray]
    tell: Callable[[list[int]], None]


class Program:
    """A trace, ready to be replayed: `run(inputs)` does what the step did, for other inputs.

    trace: of one call of the step. inputs: the arrays that it was called with. kept: arrays that the caller reads
    afterwards; what else the step made is its own business, and dropped where nothing depends on it. outputs: then the
    program consists of several compiled calls, which has the bits of one.
    """

    def __init__(self, trace: Trace, inputs: list[np.ndarray], kept: list[np.ndarray], outputs: Outputs | None = None):
        self.trace, self.inputs, self.kept, self.outputs = trace, inputs, kept, outputs
        self.effects = trace.effects
        self.watched = [(thing, attribute, value) for (_, attribute), (thing, value) in trace.watched.items()]
        self.stop = np.zeros(1, np.int64)
        self.checks = [entry for entry in trace.calls if isinstance(entry, Guard)]
        self.threads = 0
        self._lower()

    def holds(self) -> bool:
        """Is all that the step read besides its arguments where it was?"""
        for thing, attribute, value in self.watched:  # noqa: SIM110 - `all` takes twice as long
            if getattr(thing, attribute) is not value:
                return False
        return True

    def run(self, inputs: list[np.ndarray]) -> None:
        threads = self.count_threads()
        if self.threads != threads:
            self._build(threads)
        self._take(inputs)
        undo: list[Undo | None] = [effect() for effect in self.effects]
        try:
            for part in self.parts:
                part()
            give_back(inputs, self.sources)
            if self.stop[0]:
                self.stop[0] = 0
                self._explain_stop(inputs)
        except BaseException:
            for action in reversed(undo):
                if action is not None:
                    action()
            raise

    # --- lowering -----------------------------------------------------------------------------------------------------

    def _lower(self) -> None:
        """self.steps: each live call with its loops; no loops where Python has to call the kernel."""
        steps = _live(_loops(self.trace, self.stop), self.trace, self.kept)
        steps = _without_copies(steps, self.trace, self.kept)
        steps = _with_updates(steps, self.trace, self.kept)
        given = {id(memory_of(x)) for x in self.inputs}
        self.steps = sorted(steps, key=lambda step: not (isinstance(step[0], Guard) and given & _memories(step[0])))
        if self.outputs:
            self.steps = _early(self.steps, self.outputs.arrays)
        from ..native.compile import get_num_threads  # here, not above: importing scratchnet does not load Numba

        self.count_threads = get_num_threads
        self._build(get_num_threads())

    def _build(self, threads: int) -> None:
        """self.parts: functions to call in order."""
        self.threads = threads
        self.parts: list[Callable[[], Any]] = []
        self.executables: list[Any] = []
        native: list[Any] = []
        final = _final(self.steps, self.outputs.arrays) if self.outputs else {}
        for number, (entry, tasks) in enumerate(self.steps):
            if tasks:
                native += [(task, self._accesses(task)) for task in tasks]
            else:
                self._flush(native)
                native = []
                self.parts += entry.parts()
            if self.outputs and number in final:
                self._flush(native)
                native = []
                self.parts.append(functools.partial(self.outputs.tell, final[number]))
        self._flush(native)
        self._find_inputs()

    def _flush(self, native: list[Any]) -> None:
        if not native:
            return
        from ..native.execute import Executable
        from .fuse import arrange

        executable = Executable(arrange(native, self.threads), self.threads, self.stop)
        self.executables.append(executable)
        self.parts.append(executable.run)

    def _accesses(self, task: Any) -> list[Any]:
        """What a task touches. What outlives the step is not written before the guards have spoken: it reads `stop`."""
        from .fuse import access

        found = [access(*data) for data in task.arrays()]
        if any(written and not _is_own(x, self.trace) for x, written, _ in task.arrays()):
            found.append(access(self.stop, False, False))
        return found

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _find_inputs(self) -> None:
        """Where the addresses of the inputs stand in the tables: there, other ones can be put in their place."""
        by_python = [x for entry, tasks in self.steps if not tasks for x in _arrays(entry)]
        self.slots = []
        for x in self.inputs:
            if not isinstance(x, np.ndarray):  # memory of a GPU: other inputs are copied there
                self.slots.append(None)
                continue
            start = x.__array_interface__["data"][0]
            places = []
            for executable in self.executables:
                flat = executable.arguments.reshape(-1)
                at = np.flatnonzero((flat >= start) & (flat < start + max(x.nbytes, 1)))
                places += [(flat, int(place), int(flat[place]) - start) for place in at]
            copied = any(np.may_share_memory(x, y) for y in by_python)
            self.slots.append(None if copied else places)
        self.sources = list(self.inputs)

    def _take(self, inputs: list[np.ndarray]) -> None:
        for i, (x, own, places) in enumerate(zip(inputs, self.inputs, self.slots, strict=True)):
            if x is self.sources[i]:
                continue
            if not isinstance(x, np.ndarray):
                find_device("cuda").copy(x, own)
                continue
            if places is None or not x.flags.carray:
                np.copyto(own, x)
                x = own
            self.sources[i] = x  # held, so that its memory stays
            start = x.__array_interface__["data"][0]
            for flat, place, offset in places or ():
                flat[place] = start + offset

    def _explain_stop(self, inputs: list[np.ndarray]) -> None:
        """Raises what the guard that stopped the run has to say; it looks at the arrays that were recorded."""
        for x, own in zip(inputs, self.inputs, strict=True):
            np.copyto(own, x)
        for guard in self.checks:
            guard.check()
        raise AssertionError("a guard stopped the program, but none of their checks fails")


def give_back(arrays: list[np.ndarray], copies: list[np.ndarray]) -> None:
    """What the step wrote to copies of its arguments, to the arguments."""
    for x, copy in zip(arrays, copies, strict=True):
        if x is not copy and isinstance(x, np.ndarray) and x.flags.writeable and x.tobytes() != copy.tobytes():
            np.copyto(x, copy)


def _arrays(entry: Call | Guard) -> list[np.ndarray]:
    if isinstance(entry, Guard):
        return [entry.array]
    return [x for x in entry.arguments if isinstance(x, np.ndarray)]


def _memories(entry: Call | Guard) -> set[int]:
    return {id(memory_of(x)) for x in _arrays(entry)}


def _is_own(array: np.ndarray, trace: Trace) -> bool:
    return id(memory_of(array)) in trace.owned


def _loops(trace: Trace, stop: np.ndarray) -> list[tuple[Call | Guard, list[Any]]]:
    """Each call with the loops that it consists of; with none if the device has none, or the kernel does more."""
    if any(isinstance(entry, Call) and entry.device.name != "cpu" for entry in trace.calls):
        return [(entry, []) for entry in trace.calls]
    from ..kernels.cpu import plan_call, plan_guard
    from ..native.loops import Plan

    shared, steps = Plan(), []
    for entry in trace.calls:
        tasks = Plan()
        tasks.scratch = shared.scratch
        if isinstance(entry, Guard):
            plan_guard(entry.kind, (entry.array, *entry.numbers, stop), tasks)
        else:
            plan_call(entry.kernel, entry.arguments, tasks)
        for task in tasks:  # memory between the loops of one kernel
            for x, _, _ in task.arrays():
                if not any(np.may_share_memory(x, y) for y in [*_arrays(entry), stop]):
                    trace.owned[id(memory_of(x))] = memory_of(x)
        steps.append((entry, list(tasks)))
    return steps


def _live(steps: list, trace: Trace, kept: list[np.ndarray]) -> list:
    """The steps that something depends on: what outlives the step, what the caller keeps, or another such step."""
    wanted = {id(memory_of(x)) for x in kept}
    live = []
    for entry, tasks in reversed(steps):
        arrays = [data for task in tasks for data in task.arrays()]
        made = {id(memory_of(x)) for x, written, _ in arrays if written}
        if tasks and not any(m in wanted or m not in trace.owned for m in made):
            continue
        wanted |= {id(memory_of(x)) for x, _, _ in arrays} | {id(memory_of(x)) for x in _arrays(entry)}
        live.append((entry, tasks))
    return live[::-1]


def _without_copies(steps: list, trace: Trace, kept: list[np.ndarray]) -> list:
    """Where a loop makes an array only to be copied, it writes to the copy's place at once."""
    steps, wanted = list(steps), {id(memory_of(x)) for x in kept}
    for at, (entry, tasks) in enumerate(tuple(steps)):
        if isinstance(entry, Guard) or entry.kernel != "copy" or not tasks:
            continue
        source, target = entry.arguments
        memory = memory_of(source)
        whole = source.size == memory.size and source.dtype == target.dtype and target.flags.carray
        if not whole or id(memory) not in trace.owned or id(memory) in wanted:
            continue
        users = [i for i, step in enumerate(steps) if i != at and any(memory_of(x) is memory for x in _touched(step))]
        if len(users) != 1 or users[0] > at or not steps[users[0]][1]:
            continue
        between = [x for step in steps[users[0] : at] for x in _touched(step)]
        if any(np.may_share_memory(target, x) for x in between):
            continue
        maker, loops = steps[users[0]]
        steps[users[0]] = maker, [loop._replace(arguments=_moved(loop.arguments, memory, target)) for loop in loops]
        steps[at] = None
    return [step for step in steps if step is not None]


def _with_updates(steps: list, trace: Trace, kept: list[np.ndarray]) -> list:
    """Where a product is a gradient that only SGD reads, its tiles update the weights and are not written at all."""
    steps, wanted = list(steps), {id(memory_of(x)) for x in kept}
    for at, (entry, tasks) in enumerate(tuple(steps)):
        if isinstance(entry, Guard) or entry.kernel != "sgd" or not tasks:
            continue
        from ..kernels.cpu.gemm import with_update

        parameter, gradient, velocity, new_parameter, new_velocity, numbers = entry.arguments
        memory = memory_of(gradient)
        users = [i for i, step in enumerate(steps) if i != at and any(memory_of(x) is memory for x in _touched(step))]
        in_place = parameter is new_parameter and velocity is new_velocity
        if not in_place or id(memory) not in trace.owned or id(memory) in wanted or len(users) != 1 or users[0] > at:
            continue
        maker, loops = steps[users[0]]
        fused = with_update(loops[-1], parameter, velocity, numbers) if loops else None
        read = [x for loop in loops for x, is_written, _ in loop.arrays() if not is_written]
        if fused is None or any(_writes(step, read) for step in steps[users[0] + 1 : at]):
            continue
        arguments = *maker.arguments[:2], velocity, numbers, parameter
        steps[at] = Call("matmul_sgd", entry.device, arguments), [*loops[:-1], fused]
        steps[users[0]] = None
    return [step for step in steps if step is not None]


def _early(steps: list, outputs: Sequence[np.ndarray]) -> list:
    """The same in another order: each output comes after what it depends on, and after nothing else than guards."""
    left, order = list(range(len(steps))), []
    for output in [at for at, step in enumerate(steps) if _writes(step, outputs)]:
        pulled = [output] if output in left else []
        for at in reversed([i for i in left if i < output]):
            if isinstance(steps[at][0], Guard) or any(_conflict(steps[at], steps[i]) for i in pulled):
                pulled.append(at)
        order += pulled[::-1]
        left = [at for at in left if at not in pulled]
    return [steps[at] for at in order + left]


def _conflict(step: Any, other: Any) -> bool:
    """Must these two stay in order?"""
    return _writes(step, _touched(other)) or _writes(other, _touched(step))


def _final(steps: list, outputs: Sequence[np.ndarray]) -> dict[int, list[int]]:
    """The outputs that are to be told after a step, by the step's number."""
    last = [max((at for at, step in enumerate(steps) if _writes(step, [x])), default=len(steps)) for x in outputs]
    found, waiting, left = {}, [], sum(x.nbytes for x in outputs)
    for at in range(len(steps)):
        waiting += [i for i, final in enumerate(last) if final == at]
        size = sum(outputs[i].nbytes for i in waiting)
        if size >= WORTH and left - size >= WORTH:
            found[at], waiting, left = waiting, [], left - size
    return found


def _writes(step: Any, arrays: Sequence[np.ndarray]) -> bool:
    if step is None:
        return False
    entry, tasks = step  # a kernel that Python calls may write to any of its arrays
    written = [x for task in tasks for x, is_written, _ in task.arrays() if is_written] if tasks else _arrays(entry)
    return any(np.may_share_memory(x, y) for x in written for y in arrays)


def _touched(step: Any) -> list[np.ndarray]:
    if step is None:
        return []
    entry, tasks = step
    return _arrays(entry) + [x for task in tasks for x, _, _ in task.arrays()]


def _moved(arguments: tuple, memory: np.ndarray, target: np.ndarray) -> tuple:
    """The arguments of a loop with what lies in `memory` at the same place of `target`."""
    start = memory.__array_interface__["data"][0]

    def moved(x: Any) -> Any:
        if not isinstance(x, np.ndarray) or memory_of(x) is not memory:
            return x
        offset = x.__array_interface__["data"][0] - start
        return np.ndarray(x.shape, x.dtype, target, offset, x.strides)

    return tuple(moved(x) for x in arguments)
