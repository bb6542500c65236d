"""A program: what a trace becomes. Its parts run in order: compiled stages, launches, and what only Python can call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from ..kernels import device as find_device
from ..optim.lr_scheduler import LRScheduler
from ..tensor import Tensor
from ..tracing import Undo
from . import passes
from .passes import Instruction
from .trace import Call, Guard, Trace, is_array, memory_of
from .values import leaves_of, mapped


class Stopped(Exception):
    """A guard does not hold, or an effect failed. Nothing that outlives the step was changed."""


class Outputs(NamedTuple):
    """Arrays outside of a step that it fills. on_final(numbers): called while the step still runs, with the numbers of
    arrays that are final.

    The last ones are not reported, nor any while the step is recorded, or where a guard stops it.
    """

    arrays: Sequence[np.ndarray]
    on_final: Callable[[list[int]], None]


class Program:
    """A trace, ready to be replayed: `run(inputs)` does what the step did, for other inputs.

    trace: of one call of the step. inputs: the arrays that it was called with. kept: arrays that the caller reads
    afterwards; what else the step made is its own business, and dropped where nothing depends on it. outputs: then the
    program consists of several compiled calls, which has the bits of one.
    """

    def __init__(self, trace: Trace, inputs: list[np.ndarray], kept: list[np.ndarray], outputs: Outputs | None = None):
        from ..native.compile import get_num_threads  # here, not above: importing scratchnet does not load Numba

        self.trace, self.inputs, self.outputs, self.kept = trace, inputs, outputs, kept
        self.effects = trace.effects
        # A schedule may call a function of the user, which may set what the step, or the next one, reads.
        self.is_scheduled = any(isinstance(getattr(x, "__self__", None), LRScheduler) for x in self.effects)
        self.stop = np.zeros(1, np.int64)
        self.instructions = passes.compiled(trace, inputs, kept, self.stop)
        if outputs:
            self.instructions = passes.outputs_early(self.instructions, outputs.arrays)
        self.early = passes.changed_early(self.instructions, passes.Scope(trace, set()))
        self.count_threads = get_num_threads
        self._build(get_num_threads())

    def run(self, inputs: list[np.ndarray], holds: Callable[[], bool]) -> None:
        """Does the step. Raises Stopped, with all as it was, where a guard or an effect of it fails; see `begin`."""
        self.rearrange()
        self.take(inputs)
        saved = self._saved() if self.early else ()
        undo: list[Undo] = []
        try:
            self.begin(undo, holds)
            for part in self.parts:
                part()
                if self.stop[0]:
                    self.stop[0] = 0
                    for x, before in saved:
                        np.copyto(x, before)
                    raise Stopped
            give_back(inputs, self.sources)
        except BaseException:
            take_back(undo)
            raise

    def _saved(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What is written before a guard, as it is now: (memory, copy)."""
        given = dict(zip(map(id, self.inputs), self.sources, strict=True))
        return [(x, x.copy()) for x in (given.get(id(x), x) for x in self.early)]

    def rearrange(self) -> None:
        """For another number of threads."""
        threads = self.count_threads()
        if self.threads != threads:
            self._build(threads)

    def begin(self, undo: list[Undo], holds: Callable[[], bool]) -> None:
        """Runs the effects; `undo` collects what takes them back.

        holds: are the Python values that the step reads as they were? Raises Stopped if an effect fails or changes one.
        """
        try:
            for effect in self.effects:
                if (back := effect()) is not None:
                    undo.append(back)
        except Exception as error:
            raise Stopped from error
        if self.is_scheduled and not holds():
            raise Stopped

    # --- building -----------------------------------------------------------------------------------------------------

    def _build(self, threads: int) -> None:
        """self.parts: functions to call in order, of which the compiled ones are `executables`, too."""
        self.threads = threads
        self.parts: list[Callable[[], Any]] = []
        self.executables: list[Any] = []
        together: list[Instruction] = []  # loops of one compiled call, or launches on a GPU
        final = passes.final_after(self.instructions, self.outputs.arrays) if self.outputs else {}
        for number, instruction in enumerate(self.instructions):
            if together and together[-1].by != instruction.by:
                together = self._add(together)
            if instruction.by == "Python":
                self.parts.append(self._by_python(instruction.call))
            else:
                together.append(instruction)
            if self.outputs and number in final:
                together = self._add(together)
                self.parts.append(functools.partial(self.outputs.on_final, final[number]))
        self._add(together)
        self._find_inputs()

    def _by_python(self, call: Call | Guard) -> Callable[[], Any]:
        """What Python calls for it. Guards of arguments come before all else, so the step may still be done without."""
        if not isinstance(call, Guard):
            return call.run
        if id(memory_of(call.array)) not in {id(memory_of(x)) for x in self.inputs}:
            return call.check

        def check() -> None:
            try:
                call.check()
            except Exception as error:
                raise Stopped from error

        return check

    def _add(self, together: list[Instruction]) -> list[Instruction]:
        """Makes one part of instructions; returns the empty list that collects the next ones."""
        if together and together[0].loops:
            from ..native.execute import Executable
            from .fuse import arrange

            loops = [loop for instruction in together for loop in instruction.loops]
            stages = arrange([(loop, self._accesses(loop)) for loop in loops], self.threads)
            self.executables.append(Executable(stages, self.threads, self.stop))
            self.parts.append(self.executables[-1].run)
        elif together:
            calls: list[Any] = [instruction.call for instruction in together]
            elsewhere = [x for other in self.instructions if other not in together for x in other.touched]
            is_private = passes.Scope(self.trace, {id(memory_of(x)) for x in [*self.kept, *elsewhere]}).is_private
            self.parts += calls[0].device.replayed([(call.kernel, call.arguments) for call in calls], is_private)
        return []

    def _accesses(self, loop: Any) -> list[Any]:
        """What a loop does with memory. It reads `stop` before it writes what outlives the step: guards come first."""
        from .fuse import access

        found = [access(x, written, by_rows, x is self.stop) for x, written, by_rows in loop.arrays()]
        is_guard = any(x.is_stop for x in found)
        if not is_guard and any(written and not self.trace.owns(x) for x, written, _ in loop.arrays()):
            found.append(access(self.stop, False, False, is_stop=True))
        return found

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _find_inputs(self) -> None:
        """Where the addresses of the inputs stand in the tables: there, other ones can be put in their place."""
        by_python = [x for instruction in self.instructions if not instruction.loops for x in instruction.call.arrays]
        self.addresses: list[list[tuple[np.ndarray, int, int]] | None] = []  # (table, position, offset in the input)
        for x in self.inputs:
            if not isinstance(x, np.ndarray) or any(np.may_share_memory(x, y) for y in by_python):
                self.addresses.append(None)  # other inputs are copied there
                continue
            places = [
                (executable.words, *place) for executable in self.executables for place in executable.places_of(x)
            ]
            self.addresses.append(places)
        self.sources = list(self.inputs)

    def take(self, inputs: list[np.ndarray]) -> None:
        """The next run is for these arrays."""
        for i, (x, own, addresses) in enumerate(zip(inputs, self.inputs, self.addresses, strict=True)):
            if x is self.sources[i]:
                continue
            if not isinstance(x, np.ndarray):
                find_device("cuda").write(own, x)
                continue
            if addresses is None or not x.flags.carray:
                np.copyto(own, x)
                x = own
            self.sources[i] = x  # held, so that its memory stays
            start = x.__array_interface__["data"][0]
            for table, position, offset in addresses or ():
                table[position] = start + offset


def take_back(undo: Sequence[Undo]) -> None:
    """All of them, the last one first."""
    for action in reversed(undo):
        action()


class Results:
    """What a step returns: tensors of their own; of what was an argument, or lives longer than the step, that itself.

    result: of the call that was recorded. memory: the arrays that a program fills for it.
    """

    def __init__(self, result: Any, inputs: list[np.ndarray], trace: Trace):
        self._positions, self._trace = {id(x): i for i, x in enumerate(inputs)}, trace
        self._give = mapped(result, self._planned)  # with functions, told where the arguments are, in place of values
        is_plain = type(result) is tuple and all(isinstance(give, FunctionType) for give in self._give)
        self._each = self._give if is_plain else None  # most results are a tuple of tensors: faster than `mapped`
        data = [x._data if isinstance(x, Tensor) else x for x in leaves_of(result)]
        self.memory = [*{id(x): x for x in map(memory_of, filter(is_array, data)) if trace.owns(x)}.values()]

    def _planned(self, x: Any) -> Callable[[Sequence[Any]], Any]:
        data = x._data if isinstance(x, Tensor) else x
        if not is_array(data):
            return lambda arguments: x
        memory, wrap = memory_of(data), isinstance(x, Tensor)
        if (i := self._positions.get(id(memory))) is not None:
            if data is memory and not wrap:
                return lambda arguments: arguments[i]
            part = functools.partial(_same_part, data, memory)
            if wrap:
                return lambda arguments: Tensor._wrap(part(arguments[i]).copy(), x._device)
            return lambda arguments: part(arguments[i]).copy()
        is_owned = id(memory) in self._trace.owned
        if wrap and (type(x) is Tensor or is_owned):
            device = x._device
            return lambda arguments: Tensor._wrap(data.copy(), device)
        return (lambda arguments: data.copy()) if is_owned else (lambda arguments: x)

    def of(self, arguments: Sequence[Any]) -> Any:
        """The results of the newest replay, for these arguments."""
        if isinstance(self._give, FunctionType):
            return self._give(arguments)
        if self._each is not None:
            return tuple([give(arguments) for give in self._each])
        return mapped(self._give, lambda give: give(arguments))


def _same_part(view: np.ndarray, memory: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The part of `other` that `view` is of `memory`; both have one shape."""
    if not isinstance(memory, np.ndarray):
        return view
    other = np.ascontiguousarray(other)
    offset = view.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    return np.ndarray(view.shape, view.dtype, other, offset, view.strides)


def give_back(arrays: list[np.ndarray], copies: list[np.ndarray]) -> None:
    """What the step wrote to copies of its arguments, to the arguments."""
    for x, copy in zip(arrays, copies, strict=True):
        if x is not copy and isinstance(x, np.ndarray) and x.flags.writeable and x.tobytes() != copy.tobytes():
            np.copyto(x, copy)
