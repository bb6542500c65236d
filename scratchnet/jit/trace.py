"""The trace of a step: which kernels ran on which memory, and what Python did beside. It hangs in tracing.py.

What a replay does must be what the step would do. So the trace knows where each array that a kernel reads comes from:

    given       an argument of the step, or a view of one: another one in each call
    made        by a recorded kernel, in this call
    filled      by an effect, which each replay runs again: numbers of an optimizer, keys of random numbers
    outside     anything else: memory that outlives the step, such as a parameter, or what Python or NumPy made in it

Only the last kind may deceive: see agreement.py.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import JitError
from ..kernels import Device
from ..kernels import device as find_device
from ..kernels.signatures import SIGNATURES, arrays_of
from ..native.aligned import aligned
from ..tensor import Tensor
from ..tracing import Tracing, Undo
from .values import Argument, content_of

_PACKAGE = str(Path(__file__).parent.parent)
REMEMBERED = 1 << 20  # bytes of an array from outside whose numbers are kept, to see if they are the same again


class Call(NamedTuple):
    """One kernel call; or one of `function`, if it is not a kernel of the device."""

    kernel: str
    device: Device
    arguments: tuple
    function: Callable[..., None] | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        return [x for x in self.arguments if isinstance(x, np.ndarray)]

    def touched(self) -> list[Any]:
        """The arrays, on a GPU too, that it reads or writes."""
        return [x for x in self.arguments if is_array(x)]

    def written(self) -> list[Any]:
        """Those that it writes, besides memory that the step made; all, of a kernel that is not in the table."""
        if self.function is not None:
            return []
        reads, arrays = arrays_of(self.kernel) if self.kernel in SIGNATURES else (0, len(self.arguments))
        return Call(self.kernel, self.device, self.arguments[reads:arrays]).touched()

    def run(self) -> None:
        (self.function or self.device.kernels[self.kernel])(*self.arguments)

    @property
    def is_launched(self) -> bool:
        """Is it a kernel on a GPU?"""
        return not self.device.is_host and self.function is None


class Guard(NamedTuple):
    """A condition on the values of an array; `check` raises the error to report where it does not hold.

    kind, numbers: the compiled check, "in_range" with (low, high), or "finite" without any.
    """

    kind: str
    array: np.ndarray
    numbers: tuple[int, ...]
    check: Callable[[], Any]

    @property
    def arrays(self) -> list[np.ndarray]:
        return [self.array]

    @property
    def is_launched(self) -> bool:
        return False


class Outside(NamedTuple):
    """Memory from outside of the step. numbers: what was there when it was first read; None if that is too much."""

    memory: Any
    numbers: bytes | None


class Trace(Tracing):
    """What a step did, in order. inputs: the arrays whose content is another one in each call.

    named: small arrays that Python can reach by name, their numbers before the step, and the names: where anything but
    a kernel writes to them, the step changed what it relies on.

    refusal: a tolerant trace notes here what it should have refused, and lets the step go on, in plain Python.
    """

    def __init__(
        self,
        inputs: list[np.ndarray],
        generator: Any = None,
        tolerant: bool = False,
        named: Iterable[tuple[np.ndarray, bytes, str]] = (),
    ):
        self.generator, self.tolerant = generator, tolerant
        self.refusal: JitError | None = None
        self.caught: JitError | None = None  # the refusal of a step that goes on after an error of its arguments
        self.calls: list[Call | Guard] = []
        self.lines: list[str] = []  # of the user's code, one for each call
        self.effects: list[Callable[[], Undo | None]] = []
        self.watched: dict[tuple[int, str], tuple[Any, Any]] = {}  # (object, value of the attribute) to rely on
        self.items: dict[tuple[int, Any], tuple[dict, Any, Any]] = {}  # (dictionary, key, value) to rely on
        self.written: dict[tuple[int, str], tuple[Any, Any, str]] = {}  # (object, value before, line that set it)
        self.new: dict[int, Any] = {}  # objects that the step made
        self.forgotten: dict[int, Any] = {}  # leaves whose gradient the step forgot before it looked at it
        self.touched: dict[int, tuple[Any, Any]] = {}  # leaves that got a gradient, and the one they had before
        self.consumed: set[int] = set()  # leaves that an optimizer updated
        self.owned: dict[int, np.ndarray] = {}  # memory that the step made, by id
        self.filled: dict[int, np.ndarray] = {}
        self.outside: dict[int, Outside] = {}
        self.rewritten: set[int] = set()  # memory that a kernel wrote to
        self.varying = {id(memory_of(x)): x for x in inputs}
        self.named: dict[int, list[tuple[np.ndarray, bytes, str]]] = {}  # by memory
        for entry in named:
            self.named.setdefault(id(memory_of(entry[0])), []).append(entry)
        self.by_kernels: set[int] = set()  # those of them that a kernel wrote to
        self.by_python: str | None = None  # the first one that was found to be written to otherwise

    def owns(self, array: np.ndarray) -> bool:
        """Did the step make the memory of `array`?"""
        return id(memory_of(array)) in self.owned

    def changed(self) -> str | None:
        """What is not as it was before the step, because the step set it, and where; None if all is."""
        for key in self.named:
            self._compare(key)
        for (_, attribute), (thing, before, line) in self.written.items():
            if getattr(thing, attribute, None) is not before:
                return f"{line}: sets {type(thing).__name__}.{attribute}"
        return self.by_python

    def _compare(self, key: int) -> None:
        """Did Python write to arrays by name, since a kernel did last?"""
        for array, numbers, name in self.named[key]:
            if self.by_python is None and content_of(array) != numbers:
                self.by_python = f"{user_line()}: writes to {name}"

    def wrote(self, array: Any) -> None:
        """A kernel wrote to `array`."""
        key = id(memory_of(array))
        self.rewritten.add(key)
        if key in self.named:
            self.by_kernels.add(key)
            self.named[key] = [(x, content_of(x), name) for x, _, name in self.named[key]]

    # --- the verbs --------------------------------------------------------------------------------------------------

    def on(self, device: Device, inputs: tuple[Any, ...] = ()) -> Device:
        """The device whose kernels are run and noted. Parameters and buffers are read where they lie now."""
        for t in inputs:
            if t._node is None and (t._requires_grad or type(t) is not Tensor) and not self.is_inside(t._data):
                self.watch(t, "_data", "_requires_grad", "_device")
        return _Recorder(device, self)  # type: ignore[return-value]

    def run(self, op: Any, device: Device, inputs: tuple[Any, ...], params: dict[str, Any]) -> np.ndarray:
        """A row of the package consists of kernels, which are noted. Any other may use NumPy: it is called again."""
        kernels, arrays = self.on(device, inputs), [t._data for t in inputs]
        if _is_of_package(op.forward):
            return op.forward(kernels, *arrays, **params)
        out = op.forward(device, *arrays, **params)
        if not isinstance(out, type(arrays[0])) or any(np.may_share_memory(out, x) for x in arrays):
            return out

        self.owned[id(memory_of(out))] = memory_of(out)
        self._note_again(op.name, device, lambda *given: op.forward(device, *given, **params), arrays, out)
        return out

    def repeat(
        self, what: str, function: Callable[..., Any], arrays: list[np.ndarray], others: list[Any]
    ) -> tuple[Any, type]:
        """What NumPy computes of arrays, now and in each replay, and its type. others: what else it computes with."""
        result = function(*arrays)
        if not isinstance(result, np.ndarray | np.generic):
            if result is not NotImplemented:
                self.refuse(f"NumPy's {what} of an argument")
            return result, type(result)
        out = np.array(result)
        self.owned[id(out)] = out
        self._note_again(what, find_device("cpu"), lambda *given: np.asarray(function(*given)), arrays, out, *others)
        return out, np.ndarray if isinstance(result, np.ndarray) else type(result)

    def _note_again(
        self, name: str, device: Device, function: Callable[..., Any], arrays: list[Any], out: Any, *others: Any
    ) -> None:
        """A replay computes `out` by calling the function again."""

        def again(*arguments: Any) -> None:
            result = function(*arguments[: len(arrays)])
            if (result.shape, result.dtype) != (out.shape, out.dtype):
                expected, got = f"{out.dtype} {out.shape}", f"{result.dtype} {result.shape}"
                raise JitError(f"jit: expected {name} to give {expected}, as when it was recorded, got {got}")
            device.copy(result, out)

        for x in (*arrays, *others):
            if is_array(x):
                self.enters(x)
        self._note(Call(name, device, (*arrays, out, *others), again))

    def given(self, x: Any) -> Any:
        return x._given if type(x) is Argument else x

    def varies(self, array: np.ndarray) -> bool:
        return self.is_inside(array) or id(memory_of(array)) in self.rewritten

    def is_inside(self, array: np.ndarray) -> bool:
        """Is it an argument's, or made by the step?"""
        return id(memory_of(array)) in self.varying or self.owns(array)

    def watch(self, thing: Any, *attributes: str) -> None:
        for attribute in attributes:
            key = id(thing), attribute
            self.watched[key] = thing, self.written[key][1] if key in self.written else getattr(thing, attribute)

    def watch_item(self, holder: dict, key: Any) -> None:
        self.items.setdefault((id(holder), key), (holder, key, dict.get(holder, key)))

    def unwatch(self, thing: Any, attribute: str) -> None:
        self.watched.pop((id(thing), attribute), None)

    def makes(self, thing: Any) -> None:
        self.new[id(thing)] = thing

    def writes(self, thing: Any, attribute: str) -> None:
        if id(thing) in self.new or (isinstance(thing, Tensor) and self.is_inside(thing._data)):
            return
        self.written.setdefault((id(thing), attribute), (thing, getattr(thing, attribute, None), user_line()))

    def effect(self, action: Callable[[], Undo | None], fills: tuple[np.ndarray, ...] = ()) -> None:
        self.effects.append(action)
        self.filled |= {id(memory_of(x)): memory_of(x) for x in fills}

    def touch(self, leaf: Any) -> None:
        """A gradient that was there before the step is an input: it is read from a copy."""
        if id(leaf) in self.touched:
            return
        before = None
        grad = leaf._grad
        if isinstance(grad, Tensor) and not self.is_inside(grad._data):
            before = leaf._grad = Tensor._wrap(grad._data.copy(), grad._device)
            self.varying[id(before._data)] = before._data
        self.touched[id(leaf)] = leaf, before

    def updated(self, leaf: Any) -> None:
        self.consumed.add(id(leaf))
        self.watch(leaf, "_data")

    def zeroed(self, leaf: Any) -> None:
        if id(leaf) not in self.touched:
            self.forgotten[id(leaf)] = leaf

    def guard(self, kind: str, array: np.ndarray, numbers: tuple[int, ...], check: Callable[[], Any]) -> None:
        if self.varies(array) or id(memory_of(array)) in self.outside:
            self._note(Guard(kind, array, numbers, check))

    def fails(self, what: str) -> None:
        self.caught = self.caught or self._error(f"{what} is caught")

    def refuse(self, what: str) -> None:
        error = self._error(what)
        self.refusal = self.refusal or error
        if not self.tolerant:
            raise error

    def _error(self, what: str) -> JitError:
        return JitError(
            f"{user_line()}: {what}: expected a step that does not look at the values of its tensors, nor sets any by "
            "Python, because it is recorded and replayed without; do that outside of the step, with what it returns"
        )

    # --- what it notes ----------------------------------------------------------------------------------------------

    def _note(self, call: Call | Guard) -> None:
        self.calls.append(call)
        self.lines.append(user_line())

    def enters(self, array: Any) -> None:
        """A kernel is about to use `array`: if it comes from outside, its numbers are remembered."""
        memory = memory_of(array)
        key = id(memory)
        if key in self.named:
            self._compare(key)
        if not (key in self.outside or key in self.owned or key in self.varying or key in self.filled):
            small = memory.size * memory.dtype.itemsize <= REMEMBERED
            where = find_device("numpy" if isinstance(memory, np.ndarray) else "cuda")
            self.outside[key] = Outside(memory, where.to_host(memory).tobytes() if small else None)


class _Recorder:
    """Stands in for a device: its kernels, run and noted; memory that it gives belongs to the trace."""

    def __init__(self, device: Device, trace: Trace):
        self._device, self._trace = device, trace
        self.name, self.is_host = device.name, device.is_host

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        array = aligned(shape, dtype) if self.name == "cpu" else self._device.empty(shape, dtype)
        self._trace.owned[id(array)] = array
        return array

    def __getattr__(self, name: str) -> Callable[..., None]:
        kernel, trace, device = getattr(self._device, name), self._trace, self._device

        def record(*arguments: Any, **numbers: Any) -> None:
            call = Call(name, device, (*arguments, *numbers.values()))
            for x in call.touched():
                trace.enters(x)
            kernel(*arguments, **numbers)
            for x in call.written():
                trace.wrote(x)
            trace._note(call)

        return record


def is_array(x: Any) -> bool:
    """Is it memory, of the host or of a GPU?"""
    return isinstance(x, np.ndarray) or hasattr(x, "layout")


def memory_of(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray) or type(array.base) is type(array):  # views on a GPU have bases too
        array = array.base
    return array


def user_line() -> str:
    """file:line of the innermost caller outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def line_of(error: BaseException) -> str:
    """file:line of the innermost line outside of this package that an error passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_PACKAGE)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a step"


def _is_of_package(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] == __package__.partition(".")[0]
