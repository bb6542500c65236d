"""How a kernel gets its parallel path: every kernel is a loop over a range of items, each item on its own.

`ranged` makes a `Loop` of a function `body(lo, hi, *arguments)` that does the items lo to hi. Small work is one call
for all items; large work is cut into blocks that threads take. No item knows its block, so bits do not depend on it.
Inside `planning`, a loop does not run but becomes a `Task`: so a training step becomes a program (execute.py).
"""

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange
from numba.core import cgutils, types
from numba.extending import intrinsic

from .aligned import aligned, unwritten
from .compile import JIT_ENABLED, MAX_THREADS, entry_of, get_num_threads, jit, stamp

# The one table of thresholds. Work is counted in light operations: reading, adding and writing one element, 0.1-0.3 ns.
PARALLEL_FROM = 131072  # 15 us or more: a parallel region costs 2 us under omp or tbb, and more where it wakes threads
BLOCK = 8192  # work of one block of a parallel loop


class Task(NamedTuple):
    """A loop that was not run yet: `size` items, `work` light operations in all, to be cut by `block` items."""

    loop: "Loop"
    size: int
    work: int
    block: int | None
    arguments: tuple

    def arrays(self) -> Iterator[tuple[np.ndarray, bool, bool]]:
        """The arrays of the body: (array, is it written?, does item i use only the i-th of its `size` parts?)."""
        for i, x in enumerate(self.arguments):
            if isinstance(x, np.ndarray) and i not in self.loop.private and not is_constant(x):
                yield x, i in self.loop.writes, i not in self.loop.whole and x.size % max(self.size, 1) == 0


class Plan(list):
    """Tasks, and the memory that they share for scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch: dict[Any, np.ndarray] = {}


_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextlib.contextmanager
def planning(plan: Plan) -> Iterator[None]:
    """Inside, in this thread, loops do not run: they become tasks of the plan."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def is_planning() -> bool:
    return _plan.get() is not None


def scratch(size: int, dtype: np.dtype) -> np.ndarray:
    """(MAX_THREADS, size) elements, a row for each thread that runs a loop: this Python thread's, or the plan's."""
    plan = _plan.get()
    known = _memory.scratch if plan is None else plan.scratch
    if (size, dtype) not in known:
        known[size, dtype] = unwritten((MAX_THREADS, size), dtype)
    return known[size, dtype]


def workspace(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that the loops of one kernel call share: its content is theirs until this Python thread's next call."""
    size = math.prod(shape)
    if is_planning():
        return aligned(shape, dtype)
    memory = _memory.workspace.get(dtype)
    if memory is None or memory.size < size:
        memory = _memory.workspace[dtype] = aligned(size, dtype)
    return memory[:size].reshape(shape)


_constants: dict[int, np.ndarray] = {}


def constant(x: np.ndarray) -> np.ndarray:
    """x, an array of the kernels' own that never changes, known as such."""
    _constants[id(x)] = x
    return x


def is_constant(x: np.ndarray) -> bool:
    return id(x) in _constants


class Loop:
    """A body for ranges of items. `loop(size, cost, *arguments)` does `size` items, each of `cost` elements.

    weight: light operations that one element takes.
    writes, whole, private: the positions of the arguments that are written, of the arrays that an item may read or
    write anywhere, and of scratch. Of every other array whose elements `size` divides, item i uses the i-th of `size`
    equal parts, and nothing else.
    """

    def __init__(
        self,
        template: Callable,
        name: str,
        writes: Sequence[int],
        whole: Sequence[int],
        private: Sequence[int],
        weight: float,
        bindings: dict,
    ):
        self.name, self.weight = name, weight
        self.writes, self.whole, self.private = frozenset(writes), frozenset(whole), frozenset(private)
        self.serial = stamp(template, name, **bindings)
        self._entries: dict[tuple, int] = {}

    def __call__(self, size: int, cost: int, *arguments: Any, block: int | None = None) -> None:
        """block: items that a thread should do at a time; by BLOCK if None."""
        work = int(size * cost * self.weight)
        tasks = _plan.get()
        if tasks is not None:
            tasks.append(Task(self, size, work, block, arguments))
        elif work < PARALLEL_FROM or not JIT_ENABLED or get_num_threads() == 1:
            self.serial(0, size, *arguments)
        else:
            function = self.pack(_memory.address, *arguments)
            over_blocks(size, block or max(1, BLOCK * size // work), function, _memory.address)

    def pack(self, address: int, *arguments: Any) -> int:
        """Write the arguments to memory; the address of a function that reads them there and runs the body."""
        kinds = tuple([x.dtype if isinstance(x, np.ndarray) else type(x) for x in arguments])
        entry = self._entries.get(kinds)
        if entry is None:
            entry = self._entries[kinds] = entry_of(self.serial, (0, 0, *arguments))
        return _pack(entry, address, *arguments)

    def reading_whole(self, *whole: int) -> "Loop":
        """This loop for arguments of which other ones are read anywhere."""
        twin = copy.copy(self)
        twin.whole = frozenset(whole)
        return twin


def ranged(
    template: Callable,
    name: str,
    writes: Sequence[int],
    whole: Sequence[int] = (),
    private: Sequence[int] = (),
    weight: float = 1,
    **bindings: Any,
) -> Loop:
    """A Loop over a stamp of `template`."""
    return Loop(template, name, writes, whole, private, weight, bindings)


# --- calling a body by its address: a parallel loop takes Numba a second to compile, so there is one for all ----------
# What unpacks arguments depends on their types alone, so loops share it, and each body is compiled once.

_RANGE = types.intp, types.intp, types.intp  # lo, hi, the address of the arguments
PACKED_WORDS = 512  # 64-bit words: more than the arguments of any body take


class _Memory(threading.local):
    """Memory of one Python thread: the arguments of the loop that it is about to run, scratch, workspace."""

    def __init__(self):
        self.words = np.empty(PACKED_WORDS, np.int64)
        self.address = self.words.ctypes.data
        self.scratch: dict[Any, np.ndarray] = {}
        self.workspace: dict[Any, np.ndarray] = {}


_memory = _Memory()


def _typed_call(typing_context, function, lo, hi, arguments):
    """Call the function at an address that `_pack` returned."""

    def generate(context, builder, signature, values):
        kind = context.call_conv.get_function_type(types.none, _RANGE)
        pointer = builder.inttoptr(values[0], kind.as_pointer())
        context.call_conv.call_function(builder, pointer, types.none, _RANGE, values[1:])
        return context.get_dummy_value()

    return types.void(types.intp, *_RANGE), generate


call: Callable = intrinsic(_typed_call)


def _without_count(context, builder, kind, value):
    """An array, or a tuple with arrays in it, without what Numba counts references by."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo, array.parent = (cgutils.get_null_value(x.type) for x in (array.meminfo, array.parent))
        return array._getvalue()
    for i, item in enumerate(kind.types if isinstance(kind, types.BaseTuple) else ()):
        part = _without_count(context, builder, item, builder.extract_value(value, i))
        value = builder.insert_value(value, part, i)
    return value


def _typed_uncounted(typing_context, record):
    """The record, whose arrays live as long as its caller's: references to them cost nothing, and hold nothing."""

    def generate(context, builder, signature, values):
        return _without_count(context, builder, record, values[0])

    return record(record), generate


uncounted: Callable = intrinsic(_typed_uncounted) if JIT_ENABLED else lambda record: record


def _typed_store(typing_context, body, address, arguments):
    """Write the address of a body and its arguments to memory; the address of a function that calls it with them."""

    def generate(context, builder, signature, values):
        body, address, packed = values
        record = context.make_tuple(builder, types.Tuple((types.intp, arguments)), (body, packed))
        record = _without_count(context, builder, types.Tuple((types.intp, arguments)), record)
        pointer = record.type.as_pointer()
        unpacked = ir.Function(
            builder.module, context.call_conv.get_function_type(types.none, _RANGE), f"{builder.function.name}.unpacked"
        )
        unpacked.linkage = "internal"
        inner = ir.IRBuilder(unpacked.append_basic_block())
        lo, hi, address_inside = context.call_conv.get_arguments(unpacked)
        body_inside, packed_inside = cgutils.unpack_tuple(inner, inner.load(inner.inttoptr(address_inside, pointer)))
        kinds = *_RANGE[:2], *arguments.types
        function = inner.inttoptr(body_inside, context.call_conv.get_function_type(types.none, kinds).as_pointer())
        items = [lo, hi, *cgutils.unpack_tuple(inner, packed_inside)]
        context.call_conv.call_function(inner, function, types.none, kinds, items)
        context.call_conv.return_value(inner, context.get_dummy_value())

        assert context.get_abi_sizeof(record.type) <= 8 * PACKED_WORDS
        builder.store(record, builder.inttoptr(address, pointer))
        return builder.ptrtoint(unpacked, address.type)

    return types.intp(types.intp, types.intp, arguments), generate


_store: Callable = intrinsic(_typed_store)


@jit
def _pack(body, address, *arguments):
    return _store(body, address, arguments)


@jit(parallel=True)
def over_blocks(size, block, function, arguments):
    for i in prange((size + block - 1) // block):
        lo = np.int64(i) * block  # the index of a prange is unsigned
        call(function, lo, min(lo + block, size), arguments)
