"""The decorator: which program serves a call, and how arguments and results pass through it."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MethodType
from typing import Any

import numpy as np

from .. import random, tracing
from ..errors import JitError
from ..grad_mode import is_recording
from ..precisions import current_precision
from ..tensor import USED_UP, Tensor, current_device
from . import graph
from .agreement import Account
from .aliases import Aliases
from .explain import explain
from .names import Names
from .program import Outputs, Program, Results, Stopped, give_back
from .series import TURNS, Series
from .trace import Trace, line_of, user_line
from .values import Argument, detached, is_constant, is_same, key_of, leaves_of, mapped

MOST = 64  # programs of a step; the oldest makes room for a new one
FRUITLESS = 16  # recordings without a replay in between, after which the step is called as it is


class Step:
    """A function that is recorded for each kind of arguments, and then replayed. Made by `jit`.

    outputs: see `Outputs`. relies_on: objects whose Python values the function reads, besides those that it can reach
    by name. tolerant: where a program could not stand for the function, the function is called as it is, and a warning
    says why, instead of a JitError; the function is one of this package, which watches what it reads itself (relies_on
    are the user's parts), hands arrays to kernels alone, and seeds `random` and `np.random` for the user's code in it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        outputs: Outputs | None = None,
        relies_on: Iterable[Any] = (),
        tolerant: bool = False,
    ):
        functools.update_wrapper(self, function)
        self.function, self.outputs, self.relies_on, self.tolerant = function, outputs, tuple(relies_on), tolerant
        self._forget()

    def _forget(self) -> None:
        self._recorded: dict[Any, list[_Recorded]] = {}
        self._lock = threading.RLock()  # a program has memory of its own, so one thread at a time
        self._fruitless: dict[Any, int] = {}  # recordings for arrays of some shapes since the last replay
        self._unsettled = 0  # recordings in a row that changed what they rely on
        self._refusal: JitError | None = None  # of all calls from now on
        self._is_plain = False  # call the function as it is, where no program is at hand
        self._bound: dict[int, tuple[Any, Step]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tracing.current(), Trace):  # a step within a step is a part of it
            return self.function(*args, **kwargs)
        key, arrays = _key_of(args, kwargs)
        with self._lock:
            known = self._recorded.get(key, ())
            for recorded in known:
                if recorded.program is not None and recorded.holds():
                    self._fruitless.clear()
                    if recorded.aliases.found(arrays) is not None:
                        return self.function(*args, **kwargs)
                    try:
                        return recorded.replay(arrays)
                    except Stopped:  # the step itself knows what is wrong
                        return detached(self.function(*args, **kwargs))
            if self._refusal is not None:
                raise self._refusal
            if self._is_plain:
                return self.function(*args, **kwargs)
            return self._record(key, args, kwargs, arrays, [x for x in known if x.program is None and x.holds()])

    def series(self, calls: Sequence[tuple], before: Callable[[int], Any]) -> Iterator[Any]:
        """The results of calls with these arguments, in order, each of which does what `self(*arguments)` does.

        before(i): called before call i begins. Where only numbers differ, many calls become one compiled call: then it
        is called for all of these first. A call that raises ends the series; those before it are done.
        """
        at = 0
        while at < len(calls):
            results = self._together(calls[at : at + TURNS], at, before)
            at += len(results)
            yield from results
            if not results:
                before(at)
                at += 1
                yield self(*calls[at - 1])

    def _together(self, calls: Sequence[tuple], first: int, before: Callable[[int], Any]) -> list[Any]:
        """The results of calls from number `first` on, as many as are done together, which may be none."""
        if isinstance(tracing.current(), Trace):
            return []
        key, given = _key_of(calls[0], {})
        with self._lock:
            recorded = next((x for x in self._recorded.get(key, ()) if x.program is not None and x.holds()), None)
            if recorded is None or recorded.series() is None:
                return []
            alike = [given]
            for arguments in calls[1:]:
                other, given = _key_of(arguments, {})
                if other != key:
                    break
                alike.append(given)
            if any(recorded.aliases.found(given) is not None for given in alike):
                return []
            self._fruitless.clear()
            return recorded.replay_series(alike, lambda turn: before(first + turn))

    def _record(self, key: Any, args: tuple, kwargs: dict, arrays: list[np.ndarray], alike: list[_Recorded]) -> Any:
        """Runs the step once more and notes what it does; with what an earlier call did, that makes a program."""
        others = [x for x in leaves_of((args, kwargs)) if not isinstance(x, Tensor | np.ndarray)]
        roots = (*self.relies_on, *others) if self.tolerant else (self.function, *self.relies_on, *others)
        recorded, result = _Recorded.of(self.function, args, kwargs, arrays, Names(roots, self.tolerant), self.tolerant)
        shapes = tuple([(x.shape, x.dtype) for x in arrays])
        self._fruitless[shapes] = count = self._fruitless.get(shapes, 0) + 1
        self._unsettled = 0 if recorded.unsettled is None else self._unsettled + 1
        different = [why for known in alike if (why := known.account.differs(recorded.account)) is not None]
        if recorded.refusal is not None:
            self._refuse(recorded.refusal)
        elif self._unsettled > 1:
            self._refuse(_refusal(str(recorded.unsettled), "a replay would not change that"))
        elif different:
            self._refuse(_refusal(different[0], "it was something else in the call before, with arguments alike"))
        elif count > FRUITLESS:
            self._is_plain = True
            new = next(filter(None, (x.names.changed() for x in self._recorded.get(key, ()))), "one")
            self._warn(f"jit: expected Python values that stay the same, but in {count} calls in a row {new} was new")
        elif recorded.unsettled is None:
            if alike:
                recorded.build(self.outputs)
                self._recorded[key] = [x for x in self._recorded[key] if x not in alike]
            else:
                recorded.forget_trace()
            self._recorded.setdefault(key, []).append(recorded)
            self._make_room()
        return result

    def _refuse(self, error: JitError) -> None:
        if not self.tolerant:
            self._refusal = error
            raise error
        self._is_plain = True
        self._warn(str(error))

    def _warn(self, text: str) -> None:
        name = getattr(self.function, "__qualname__", "the step")
        warnings.warn(f"{text}; {name} goes on without a program, at the speed of Python", stacklevel=5)

    def _make_room(self) -> None:
        if sum(map(len, self._recorded.values())) > MOST:
            oldest = next(iter(self._recorded))
            del self._recorded[oldest]

    @property
    def programs(self) -> list[Program]:
        """Every program that is ready."""
        return [x.program for found in self._recorded.values() for x in found if x.program is not None]

    def explain(self) -> str:
        """The newest program as text: what was recorded, what is run, how long each stage takes."""
        ready = [x for found in self._recorded.values() for x in found if x.program is not None]
        if not ready:
            raise JitError("explain: expected a step that was called at least twice, got one without a program")
        return explain(ready[-1])

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the newest program as a graph; nothing of its own before there is one."""
        return graph.draw(self, {}).svg if self.programs else None

    # --- methods, copies --------------------------------------------------------------------------------------------

    def __get__(self, instance: Any, owner: type | None = None) -> Step:
        """The step of one object, with programs of its own: `jit` may stand above a method."""
        if instance is None:
            return self
        key = id(instance)
        if key not in self._bound:
            try:
                alive: Any = weakref.ref(instance, lambda _: self._bound.pop(key, None))
            except TypeError:
                alive = instance
            step = Step(MethodType(self.function, instance), self.outputs, self.relies_on, self.tolerant)
            self._bound[key] = alive, step
        return self._bound[key][1]

    def __getstate__(self) -> dict[str, Any]:
        """Programs stay here: they are bound to memory of this process."""
        return {name: value for name, value in vars(self).items() if name in KEPT or name.startswith("__")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


KEPT = ("function", "outputs", "relies_on", "tolerant")


def jit(step: Callable[..., Any]) -> Step:
    """Records a training step in its first two calls, and replays it as one compiled program in all later ones.

        @sn.jit
        def step(x, y):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

    A replay has the values, effects and errors of the step itself. Arguments: tensors and arrays may have other values
    in each call; with other shapes or dtypes, or another value of any other argument, the step is recorded again. So it
    is if a Python value changed that the step can reach by name: a global, a variable around it, an attribute of an
    object or a layer, `requires_grad`, the groups of an optimizer. Counters of optimizers and schedules and random
    numbers go on. Results are tensors of their own, without a record. The gradient of a parameter that is forgotten at
    the start and used by the optimizer is not kept: to read `.grad` afterwards is a JitError.

    What no replay could do is refused with a JitError that names the line: a look at the value of a tensor, NumPy with
    an array argument (make a tensor of it first), random numbers of NumPy, a count that goes on. It compares its first
    two calls for that; what it cannot see is Python that behaves alike in both, and otherwise later, by something that
    has no name in the step: a file, the clock, an array of more than 16 KiB that NumPy reads.

    One thread at a time runs a step; others wait. Above a method, each object has programs of its own.
    """
    if not callable(step) or isinstance(step, type):
        raise JitError(f"jit: expected a function, got {type(step).__name__}")
    if inspect.isgeneratorfunction(step) or inspect.iscoroutinefunction(step) or inspect.isasyncgenfunction(step):
        raise JitError(
            f"jit: expected a function that returns its results, got {step.__name__}, which yields or awaits"
        )
    return Step(step)


def _key_of(args: tuple, kwargs: dict) -> tuple[tuple, list[np.ndarray]]:
    """What a program for a call depends on beside the content of arrays, and those arrays."""
    arrays: list[np.ndarray] = []
    key = [key_of(value, arrays) for value in args]
    key.append(key_of(kwargs, arrays) if kwargs else None)
    return (*key, is_recording(), current_device(), current_precision()), arrays


def _refusal(what: str, why: str) -> JitError:
    return JitError(
        f"{what}: expected a step that does the same in each call, as it is recorded and replayed without Python, but "
        f"{why}; do it outside of the step, or pass it as a tensor"
    )


class _Recorded:
    """One recorded call: what must hold for a replay, the results, and what becomes of gradients.

    program: None until a second call agreed. unsettled: what the call itself changed, so that nothing can be said yet.
    """

    program: Program | None = None
    _series: tuple[int, Series | None] | None = None  # for a number of threads
    trace: Trace | None
    results: Results | None
    names: Names
    account: Account
    aliases: Aliases
    refusal: JitError | None
    unsettled: str | None
    watched: list[tuple[Any, str, Any]]
    items: list[tuple[dict, Any, Any]]
    inputs: list[np.ndarray]
    gradients: list[_Gradient]

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        args: tuple,
        kwargs: dict,
        arrays: list[np.ndarray],
        names: Names,
        tolerant: bool,
    ) -> tuple[_Recorded, Any]:
        """Runs the step; also its result."""
        self = cls()
        self.names = names
        self.inputs = inputs = [x.copy() for x in arrays]
        self.trace = trace = Trace(inputs, random.current(), tolerant, names.arrays)
        tensors: list[Tensor] = []
        copies = {id(x): copy for x, copy in zip(arrays, inputs, strict=True)}

        def replaced(x: Any) -> Any:
            if isinstance(x, Tensor):
                tensors.append(Tensor._wrap(copies[id(x._data)], x._device))
                return tensors[-1]
            if isinstance(x, np.ndarray):
                return copies[id(x)] if tolerant else Argument(copies[id(x)], trace)
            return x

        replaced_args, replaced_kwargs = mapped(args, replaced), mapped(kwargs, replaced)
        try:
            with tracing.into(trace):
                result = function(*replaced_args, **replaced_kwargs)
        except Exception as error:
            if Argument.__name__ not in str(error):
                raise
            raise JitError(
                f"{line_of(error)}: {error}; an array that is given to a recorded step is for kernels and "
                "NumPy's functions alone; do this outside of the step"
            ) from error
        finally:
            self._give_back(trace, arrays)
        if any(t._requires_grad or t._grad is not None for t in tensors):
            trace.refuse("the gradient of an argument; use x.detach()")
        self._take_gradients(trace)
        if any(type(x) is Argument and x._kind is not np.ndarray for x in leaves_of(result)):
            trace.refuse("returns a number of NumPy, made of an argument")
        self.result = result = mapped(result, lambda x: x._given if type(x) is Argument else x)
        self._check_result(trace)
        names.pass_over(trace.by_kernels)
        self.unsettled = trace.changed() or names.changed()
        if (drawn := names.drew()) is not None:
            trace.refuse(drawn)
        self.refusal = trace.refusal or trace.caught
        self.account = Account(trace, inputs, result, self.gradients)
        self.watched = [(thing, attribute, value) for (_, attribute), (thing, value) in trace.watched.items()]
        self.items = list(trace.items.values())
        self.results = Results(result, inputs, trace)
        result = self.results.of(arrays)
        for gradient in self.gradients:
            gradient.after()
        return self, result

    def _give_back(self, trace: Trace, arrays: list[np.ndarray]) -> None:
        """What kernels wrote to the copies of the arguments, to the arguments."""
        self.aliases = Aliases(trace, self.inputs)
        if (shared := self.aliases.found(arrays)) is not None:
            raise JitError(f"{user_line()}: expected arguments with memory of their own, but {shared}; pass copies")
        written = self.aliases.written
        give_back([arrays[i] for i in written], [self.inputs[i] for i in written])

    def _take_gradients(self, trace: Trace) -> None:
        self.gradients = []
        for key, (leaf, old) in trace.touched.items():
            if trace.is_inside(leaf._data) or id(leaf) in trace.new:
                continue  # it does not outlive the step
            zeroed = key in trace.forgotten
            self.gradients.append(_Gradient(leaf, old, zeroed, dropped=zeroed and key in trace.consumed))
        for leaf in trace.forgotten.values():
            if id(leaf) not in trace.touched:
                self.gradients.append(_Gradient(leaf, None, True, dropped=False))
        self.looked_at = [gradient for gradient in self.gradients if not gradient.zeroed]

    def _check_result(self, trace: Trace) -> None:
        for x in leaves_of(self.result):
            if isinstance(x, Tensor | np.ndarray):
                trace.enters(x._data if isinstance(x, Tensor) else x)
            elif not is_constant(x):
                trace.refuse(f"returns {type(x).__name__}")

    def build(self, outputs: Outputs | None) -> None:
        """The call agreed with one before: a program is made of it."""
        assert self.trace is not None
        kept = [g.left for g in self.gradients if g.left is not None]
        kept += [x._data for x in leaves_of(self.result) if isinstance(x, Tensor)]
        self.program = Program(self.trace, self.inputs, kept, outputs)

    def forget_trace(self) -> None:
        """Until a second call the memory of the first one is not needed."""
        self.trace = self.result = self.results = None
        self.inputs = []
        for gradient in self.gradients:
            gradient.left = None

    def holds(self) -> bool:
        """Is all that the step read besides its arguments where it was?"""
        for thing, attribute, value in self.watched:
            if getattr(thing, attribute) is not value:
                return False
        if self.items and not all(is_same(dict.get(holder, key), value) for holder, key, value in self.items):
            return False
        return all(gradient.holds() for gradient in self.looked_at) and self.names.hold()

    def replay(self, arrays: list[np.ndarray]) -> Any:
        for gradient in self.looked_at:
            gradient.before()
        program = self.program
        assert program is not None
        program.run(arrays, self.holds)
        for gradient in self.gradients:
            gradient.after()
        assert self.results is not None
        return self.results.of(arrays)

    def series(self) -> Series | None:
        """The series of the program as it is arranged now, if there can be one."""
        program, results = self.program, self.results
        assert program is not None and results is not None
        program.rearrange()
        if self._series is None or self._series[0] != program.threads:
            can_be = not self.looked_at and not self.aliases.written
            self._series = program.threads, Series.of(program, results.memory) if can_be else None
        return self._series[1]

    def replay_series(self, calls: Sequence[list[np.ndarray]], before: Callable[[int], Any]) -> list[Any]:
        """The results of the first calls, as many as are done together: see Series.run."""
        series, results = self.series(), self.results
        assert series is not None and results is not None
        done = series.run(calls, before, self.holds)
        if done:
            for gradient in self.gradients:
                gradient.after()
        found = []
        for turn in range(done):
            series.results(turn)
            found.append(results.of(calls[turn]))
        return found


class _Gradient:
    """The gradient of one leaf before and after the step: arrays of the trace, or None.

    read: the step added to the gradient that was there. dropped: nobody needs the one that it leaves.
    """

    def __init__(self, leaf: Tensor, old: Tensor | None, zeroed: bool, dropped: bool):
        self.leaf, self.zeroed = leaf, zeroed
        self.read = None if zeroed or old is None else old._data
        self.dropped = dropped
        self.left = None if dropped or leaf._grad is None else leaf._grad._data

    def holds(self) -> bool:
        grad = self.leaf._grad
        return (grad is None) if self.read is None else (isinstance(grad, Tensor) and grad.shape == self.read.shape)

    def before(self) -> None:
        if self.read is not None:
            self.leaf._device.copy(self.leaf._grad._data, self.read)

    def after(self) -> None:
        if self.left is None:
            self.leaf._grad = USED_UP if self.dropped else None
        else:
            self.leaf._grad = Tensor._wrap(self.left.copy(), self.leaf._device)
