"""Runs the source of cuda kernels thread by thread and sees every access to memory, as compute-sanitizer does.

All threads of a block take turns: each runs until it comes to a barrier or a shuffle, in any order that is asked for.
Between two barriers no two threads may touch one word of shared or global memory if one of them writes it; during a
launch no two blocks may. That is seen from the accesses alone, so a missing barrier is found in every run in which two
threads come to touch that word, whether or not it spoilt a result. Also checked: indices in range, words that were
written before they are read, 16-byte moves that are aligned, and that all threads come to the same barriers.

`find_races` takes any kernel of @cuda.jit. `interpreted` is for kernels of our own table, where those are Python: with
NUMBA_ENABLE_CUDASIM=1. Unlike Numba's simulator it has warps and shuffles.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from .. import checks
from ..errors import ContractError
from ..kernels.signatures import bits_of
from .stops import Stops, barriers_of, helpers_of, plain, scope_of, stops, tree_of

__all__ = ["ORDERS", "barriers_of", "find_races", "interpreted"]

MANY = -1
SHARED = 1 << 40  # bytes between the addresses that shared arrays are given, below zero


def find_races(kernel: Any, launch: tuple[Any, Any], *arguments: Any, order: str = "ascending") -> None:
    """Runs a kernel of @cuda.jit thread by thread, without a GPU, and fills its arrays.

    launch: (blocks, threads), each a number or (x, y). arguments: numbers, and NumPy arrays in C order.
    order: as for `interpreted`.

    Known are threadIdx, blockIdx, blockDim, gridDim, grid, gridsize, syncthreads, syncthreads_or, shfl_xor_sync,
    shared.array, local.array and atomic.add, .max, .min; arrays are read and written element by element. Raises
    ContractError: one line with the kernel, the block, the thread and the word of the first race, of the first index
    out of range, of a barrier that not all threads come to, or of what is not known here.
    """
    checks.one_of("find_races: order", order, ORDERS)
    function = plain(kernel)
    if not isinstance(function, FunctionType):
        checks.refuse("find_races", "a kernel of @cuda.jit", kernel)
    for x in arguments:
        if isinstance(x, np.ndarray) and not x.flags.c_contiguous:
            checks.refuse("find_races", "arrays in C order", x, remedy="write np.ascontiguousarray(...)")
    try:
        Interpreter(order, None)(_Launched(function), *launch, arguments)
    except AttributeError as error:
        if "is not known to find_races" not in str(error):
            raise
        raise ContractError(f"{function.__name__}: {error}") from None


@dataclass(frozen=True)
class _Launched:
    function: Callable[..., Any]
    threads: int = 1024


ORDERS = ("ascending", "descending", "shuffled")


@contextmanager
def interpreted(order: str = "ascending", without: tuple[str, int] | None = None) -> Iterator[Interpreter]:
    """Inside, cuda kernels are interpreted and checked.

    order: in which the threads of a block take turns: "ascending", "descending", or "shuffled".
    without: (a function's name, n): its n-th barrier is taken out, to see that this is found.

    Launches raise ContractError: one line with the kernel, the block, the threads and the word.
    """
    from ..kernels.cuda.compile import SIMULATED, launcher

    if not SIMULATED:
        raise ContractError("interpreted: expected NUMBA_ENABLE_CUDASIM=1, got kernels that are compiled")
    interpreter = Interpreter(order, without)
    token = launcher.set(interpreter)
    try:
        yield interpreter
    finally:
        launcher.reset(token)


class _Log:
    """Which thread touched which word since the last barrier, or which block since the launch. who: the one that runs.

    Each access returns who else touched the word before in a way that forbids it, or None.
    """

    def __init__(self) -> None:
        self.who = 0
        self.writes: dict[int, int] = {}
        self.reads: dict[int, int] = {}
        self.atomics: dict[int, int] = {}

    def read(self, word: int) -> int | None:
        who = self.who
        if self.reads.setdefault(word, who) != who:
            self.reads[word] = MANY
        if self.writes.get(word, who) == who and not self.atomics:
            return None
        return self._other(word, self.writes, self.atomics)

    def write(self, word: int) -> int | None:
        who = self.who
        other = None
        if self.writes.get(word, who) != who or self.reads.get(word, who) != who or self.atomics:
            other = self._other(word, self.writes, self.reads, self.atomics)
        self.writes[word] = who
        return other

    def atomic(self, word: int) -> int | None:
        """Beside an atomic update there may be others."""
        if self.atomics.setdefault(word, self.who) != self.who:
            self.atomics[word] = MANY
        return self._other(word, self.writes, self.reads)

    def _other(self, word: int, *logs: dict[int, int]) -> int | None:
        found = (log.get(word, self.who) for log in logs)
        return next((other for other in found if other != self.who), None)

    def clear(self) -> None:
        for log in (self.writes, self.reads, self.atomics):
            log.clear()


class _Words:
    """An array as a kernel sees it, which reports each access to the logs of the interpreter.

    address: of its first word, in memory or, below zero, in the shared memory of a block. known: the words that were
    written, unless all were.
    """

    def __init__(self, run: Interpreter, data: np.ndarray, kind: str, address: int, known: set[int] | None):
        self.run, self.data, self.kind, self.address, self.known = run, data, kind, address, known
        self.dtype, self.size, self.shape, self.ndim = data.dtype, data.size, data.shape, data.ndim
        self.flat, self.itemsize = data.reshape(-1), data.dtype.itemsize
        self.length = self.size if self.ndim == 1 else 0  # of what one number may index
        self.logs = run.logs[kind]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        i = index if index.__class__ is int and 0 <= index < self.length else self._word(index)
        if self.known is not None and i not in self.known:
            self.run.fail(f"word {i} of a {self.kind} array is read before it is written")
        for log in self.logs:
            if (other := log.read(self.address + i * self.itemsize)) is not None:
                self._refuse("a read", i, log, other)
        return self.flat[i]

    def __setitem__(self, index: Any, value: Any) -> None:
        i = index if index.__class__ is int and 0 <= index < self.length else self._word(index)
        if self.known is not None:
            self.known.add(i)
        for log in self.logs:
            if (other := log.write(self.address + i * self.itemsize)) is not None:
                self._refuse("a write", i, log, other)
        self.flat[i] = value

    def update(self, index: Any, function: Callable[[Any, Any], Any], value: Any) -> Any:
        """An atomic update; returns what stood there."""
        i = self._word(index)
        for log in self.logs:
            if (other := log.atomic(self.address + i * self.itemsize)) is not None:
                self._refuse("an atomic update", i, log, other)
        before = self.flat[i]
        self.flat[i] = function(before, value)
        return before

    def _word(self, index: Any) -> int:
        """The number of an element in memory."""
        if isinstance(index, np.integer) and 0 <= index < self.length:
            return int(index)
        numbers = index if isinstance(index, tuple) else (index,)
        if len(numbers) != self.ndim or isinstance(numbers[0], slice):
            self.run.fail(f"index {index} of a {self.kind} array of {self.ndim} dimensions; index every one")
        word = 0
        for i, n in zip(numbers, self.shape, strict=True):
            if not 0 <= i < n:
                self.run.fail(f"index {index} of a {self.kind} array of {n if self.ndim == 1 else self.shape}")
            word = word * n + int(i)
        return word

    def _refuse(self, what: str, i: int, log: _Log, other: int) -> None:
        unit, end = ("block", "") if log is self.run.by_block else ("thread", ", without a barrier between")
        who = f"another {unit}" if other == MANY else f"{unit} {other}"
        self.run.fail(f"{what} of word {i} of a {self.kind} array that {who} touches too{end}")

    def check_wide(self, i: int) -> None:
        if (self.address + int(i) * self.itemsize) % 16:
            self.run.fail(f"16 bytes at index {i} of a {self.kind} array are not aligned")


class _Dim:
    def __init__(self, x: int, y: int):
        self.x, self.y = x, y


class _Cuda:
    """What kernels call `cuda`."""

    def __init__(self, run: Interpreter):
        self._run = run
        self.shared, self.local = _Arrays(run, "shared"), _Arrays(run, "local")
        self.atomic = _Atomic()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"cuda.{name} is not known to find_races; test this kernel in Numba's simulator")

    threadIdx = property(lambda self: self._run.thread_at)
    blockIdx = property(lambda self: self._run.block_at)
    blockDim = property(lambda self: self._run.block_dim)
    gridDim = property(lambda self: self._run.grid_dim)

    def grid(self, ndim: int) -> Any:
        run = self._run
        x = run.block_at.x * run.block_dim.x + run.thread_at.x
        return x if ndim == 1 else (x, run.block_at.y * run.block_dim.y + run.thread_at.y)

    def gridsize(self, ndim: int) -> Any:
        run = self._run
        x = run.grid_dim.x * run.block_dim.x
        return x if ndim == 1 else (x, run.grid_dim.y * run.block_dim.y)


class _Atomic:
    """cuda.atomic: updates that other threads may make of the same word."""

    def add(self, words: _Words, index: Any, value: Any) -> Any:
        return words.update(index, lambda a, b: a + b, value)

    def max(self, words: _Words, index: Any, value: Any) -> Any:
        return words.update(index, max, value)

    def min(self, words: _Words, index: Any, value: Any) -> Any:
        return words.update(index, min, value)


class _Arrays:
    def __init__(self, run: Interpreter, kind: str):
        self._run, self._kind = run, kind

    def array(self, shape: Any, dtype: Any, alignment: int = 1) -> _Words:
        from numba.np.numpy_support import as_dtype

        run, dtype = self._run, as_dtype(dtype)
        if self._kind == "local":
            return _Words(run, np.empty(shape, dtype), "local", 0, set())
        number = run.shared_counts[run.thread]  # all threads make the same arrays in the same order
        run.shared_counts[run.thread] += 1
        if number == len(run.shared):
            run.shared.append(
                _Words(run, np.empty(shape, dtype), "shared", alignment % 16 - (number + 1) * SHARED, set())
            )
        return run.shared[number]


class Interpreter:
    """A launcher (see kernels/cuda/compile.py) that runs kernels as Python and checks them."""

    def __init__(self, order: str, without: tuple[str, int] | None):
        self.order, self.without = order, without
        self.rng = np.random.default_rng(0)
        self.cuda = _Cuda(self)
        self.generators: dict[Any, Callable[..., Any]] = {}
        self.barriers = 0  # that a block came to
        self.launches: list[str] = []
        self.name, self.block, self.thread = "", 0, 0

    def __call__(self, kernel: Any, blocks: Any, threads: Any, arguments: Sequence[Any]) -> None:
        body = self._generator(kernel.function)
        self.name = kernel.function.__qualname__.replace(".<locals>", "")
        self.launches.append(self.name)
        self.grid_dim, self.block_dim = _dim(blocks), _dim(threads)
        count = self.block_dim.x * self.block_dim.y
        if count > kernel.threads:
            self.fail(f"{count} threads in a block, for which at most {kernel.threads} were promised")
        self.by_thread, self.by_block = _Log(), _Log()
        among_threads = (self.by_thread,) if count > 1 else ()
        among_blocks = (self.by_block,) if self.grid_dim.x * self.grid_dim.y > 1 else ()
        self.logs = {"local": (), "shared": among_threads, "global": among_blocks + among_threads}
        given = [self._argument(x) for x in arguments]
        with np.errstate(all="ignore"):
            for block in range(self.grid_dim.x * self.grid_dim.y):
                self.block = self.by_block.who = block
                self.block_at = _Dim(block % self.grid_dim.x, block // self.grid_dim.x)
                self._run_block(body, count, given)

    def _argument(self, x: Any) -> Any:
        if type(x) is tuple:
            return tuple(map(self._argument, x))
        if isinstance(x, np.ndarray):
            return _Words(self, x, "global", x.ctypes.data, None)
        return _Words(self, bits_of(x.layout.reshape(-1)), "global", x.address, None) if hasattr(x, "layout") else x

    # --- one block ------------------------------------------------------------------------------------------------

    def _run_block(self, body: Callable[..., Any], count: int, arguments: list[Any]) -> None:
        self.shared: list[_Words] = []
        self.shared_counts = [0] * count
        self.by_thread.clear()
        running: dict[int, Generator] = {}
        for t in range(count):
            self._enter(t)
            running[t] = body(*arguments)
        answers: dict[int, Any] = dict.fromkeys(running)
        waiting: dict[int, tuple] = {}
        while running:
            for t in self._turns(answers):
                self._enter(t)
                try:
                    waiting[t] = running[t].send(answers[t])
                except StopIteration:
                    del running[t]
            answers = self._released(waiting, running, count)
            if running and not answers:
                found = sorted({f"line {w[1]}" for w in waiting.values()})
                self.fail(f"threads wait for each other at different places: {', '.join(found)}, or have returned")
            for t in answers:
                del waiting[t]

    def _released(self, waiting: dict[int, tuple], running: dict, count: int) -> dict[int, Any]:
        """The threads that may go on, and what their barrier or shuffle returns."""
        places = {w[:2] for w in waiting.values()}
        if len(waiting) == count and len(places) == 1 and next(iter(places))[0] == "barrier":
            self.barriers += 1
            self.by_thread.clear()
            return dict.fromkeys(waiting, any(w[2] for w in waiting.values()))
        from ..kernels.cuda.tuning import current

        warp = current().warp
        answers: dict[int, Any] = {}
        for first in range(0, count, warp):
            lanes = range(first, min(first + warp, count))
            asked = [waiting.get(t, ("nothing",)) for t in lanes]  # ("shuffle", line, value, distance)
            if all(a[0] == "shuffle" and (a[1], a[3]) == (asked[0][1], asked[0][3]) for a in asked):
                answers |= {t: asked[i ^ asked[i][3]][2] for i, t in enumerate(lanes)}
        return answers

    def _turns(self, threads: Any) -> list[int]:
        turns = sorted(threads)
        if self.order == "shuffled":
            self.rng.shuffle(turns)
        return turns[::-1] if self.order == "descending" else turns

    def _enter(self, t: int) -> None:
        self.thread = self.by_thread.who = t
        self.thread_at = _Dim(t % self.block_dim.x, t // self.block_dim.x)

    def fail(self, what: str) -> None:
        raise ContractError(f"{self.name}, block {self.block}, thread {self.thread}: {what}")

    # --- source -> generators -------------------------------------------------------------------------------------

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with barriers and shuffles as places at which it stops."""
        if function not in self.generators:
            self.generators[function] = self._rewritten(function)
        return self.generators[function]

    def _rewritten(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tree = tree_of(function)
        scope = scope_of(function)
        helpers = helpers_of(function)
        dropped = self.without[1] if self.without and self.without[0] == function.__name__ else None
        tree = ast.fix_missing_locations(Stops(set(helpers), dropped).visit(tree))
        definition = tree.body[0]
        definition.decorator_list = []
        definition.body.append(ast.parse("if False: yield").body[0])  # a generator, even without a barrier
        ast.fix_missing_locations(tree)
        space = scope | {name: self._generator(f) for name, f in helpers.items()} | {"cuda": self.cuda}
        space |= {name: _checking(f) for name, f in space.items() if _moves_wide(f)}
        space |= {**_WIDE, "ALIGNED": 16}
        exec(compile(tree, inspect.getsourcefile(function) or "?", "exec"), space)
        return space[definition.name]


def _dim(n: Any) -> _Dim:
    return _Dim(*n) if isinstance(n, tuple) else _Dim(n, 1)


def _load_wide(source: _Words, i: int, target: _Words, j: int) -> None:
    source.check_wide(i)
    for v in range(16 // source.dtype.itemsize):
        target[j + v] = source[i + v]


def _store_wide(source: _Words, i: int, target: _Words, j: int) -> None:
    target.check_wide(j)
    for v in range(16 // source.dtype.itemsize):
        target[j + v] = source[i + v]


_WIDE = {"load_wide": _load_wide, "store_wide": _store_wide}


def _moves_wide(f: Any) -> bool:
    """Is this a helper that moves 16 bytes at once? One that stops is rewritten as kernels are."""
    return isinstance(f, FunctionType) and not set(_WIDE).isdisjoint(f.__code__.co_names) and not stops(f)


def _checking(f: FunctionType) -> FunctionType:
    """The helper with moves that are checked."""
    return FunctionType(f.__code__, {**f.__globals__, **_WIDE}, f.__name__, f.__defaults__, f.__closure__)
