"""Runs the source of cuda kernels thread by thread and sees every access to memory, as compute-sanitizer does.

All threads of a block take turns: each runs until it comes to a barrier or a shuffle, in any order that is asked for.
Between two barriers no two threads may touch one word of shared or global memory if one of them writes it; during a
launch no two blocks may. That is seen from the accesses alone, so a missing barrier is found in every run in which two
threads come to touch that word, whether or not it spoilt a result. Also checked: indices in range, words that were
written before they are read, 16-byte moves that are aligned, and that all threads come to the same barriers.

Works where kernels are Python: with NUMBA_ENABLE_CUDASIM=1. Unlike Numba's simulator it has warps and shuffles.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np

from ..errors import ContractError

_BARRIERS = {"syncthreads"}  # that can be taken out; "syncthreads_or" also says whether any thread said yes
_SHUFFLES = {"shfl_xor_sync"}
MANY = -1


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
    """Who touched which word since the last barrier (or, across blocks, since the launch)."""

    def __init__(self) -> None:
        self.writes: dict[Any, int] = {}
        self.reads: dict[Any, int] = {}

    def read(self, word: Any, who: int) -> int | None:
        """Notes a read; returns who wrote the word before, if that is somebody else."""
        writer = self.writes.get(word, who)
        reader = self.reads.get(word)
        if reader is None:
            self.reads[word] = who
        elif reader != who:
            self.reads[word] = MANY
        return None if writer == who else writer

    def write(self, word: Any, who: int) -> int | None:
        """Notes a write; returns who read or wrote the word before, if that is somebody else."""
        writer, reader = self.writes.get(word, who), self.reads.get(word, who)
        self.writes[word] = who
        return writer if writer != who else (reader if reader != who else None)

    def clear(self) -> None:
        self.writes.clear()
        self.reads.clear()


class _Words:
    """An array as a kernel sees it, which reports each access to the interpreter."""

    def __init__(self, run: Interpreter, data: np.ndarray, kind: str, address: int, known: set[int] | None):
        self.run, self.data, self.kind, self.address, self.known = run, data, kind, address, known
        self.dtype, self.size, self.shape = data.dtype, data.size, data.shape

    def __getitem__(self, i: Any) -> Any:
        self._check(i)
        if self.known is not None and i not in self.known:
            self.run.fail(f"word {i} of a {self.kind} array is read before it is written")
        if self.kind != "local":
            self.run.note("read", self, i)
        return self.data[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        self._check(i)
        if self.known is not None:
            self.known.add(int(i))
        if self.kind != "local":
            self.run.note("write", self, i)
        self.data[i] = value

    def _check(self, i: Any) -> None:
        if not 0 <= i < self.size:
            self.run.fail(f"index {i} of a {self.kind} array of {self.size}")

    def check_wide(self, i: int) -> None:
        if (self.address + int(i) * self.dtype.itemsize) % 16:
            self.run.fail(f"16 bytes at index {i} of a {self.kind} array are not aligned")


class _Dim:
    def __init__(self, x: int, y: int):
        self.x, self.y = x, y


class _Cuda:
    """What kernels call `cuda`."""

    def __init__(self, run: Interpreter):
        self._run = run
        self.shared, self.local = _Arrays(run, "shared"), _Arrays(run, "local")

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


class _Arrays:
    def __init__(self, run: Interpreter, kind: str):
        self._run, self._kind = run, kind

    def array(self, size: int, dtype: Any, alignment: int = 1) -> _Words:
        from numba.np.numpy_support import as_dtype

        run, dtype = self._run, as_dtype(dtype)
        if self._kind == "local":
            return _Words(run, np.empty(size, dtype), "local", 0, set())
        number = run.shared_counts[run.thread]  # all threads make the same arrays in the same order
        run.shared_counts[run.thread] += 1
        if number == len(run.shared):
            run.shared.append(_Words(run, np.empty(size, dtype), "shared", alignment % 16, set()))
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
        given = [self._argument(x) for x in arguments]
        with np.errstate(all="ignore"):
            for block in range(self.grid_dim.x * self.grid_dim.y):
                self.block, self.block_at = block, _Dim(block % self.grid_dim.x, block // self.grid_dim.x)
                self._run_block(body, count, given)

    def _argument(self, x: Any) -> Any:
        return _Words(self, x.layout.reshape(-1), "global", x.address, None) if hasattr(x, "layout") else x

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
        self.thread = t
        self.thread_at = _Dim(t % self.block_dim.x, t // self.block_dim.x)

    # --- what accesses tell ---------------------------------------------------------------------------------------

    def note(self, what: str, words: _Words, i: Any) -> None:
        if words.kind == "shared":
            word: Any = (id(words), int(i))
        else:
            word = words.address + int(i) * words.dtype.itemsize
            other = getattr(self.by_block, what)(word, self.block)
            if other is not None:
                self.fail(f"a {what} of word {i} of a global array that block {_name(other)} touches too")
        other = getattr(self.by_thread, what)(word, self.thread)
        if other is not None:
            self.fail(
                f"a {what} of word {i} of a {words.kind} array that thread {_name(other)} touches too, "
                "without a barrier between"
            )

    def fail(self, what: str) -> None:
        raise ContractError(f"{self.name}, block {self.block}, thread {self.thread}: {what}")

    # --- source -> generators -------------------------------------------------------------------------------------

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with barriers and shuffles as places at which it stops."""
        if function not in self.generators:
            self.generators[function] = self._rewritten(function)
        return self.generators[function]

    def _rewritten(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tree = _tree(function)
        scope = _scope(function)
        helpers = {name: f for name, f in scope.items() if isinstance(f, FunctionType) and stops(f)}
        dropped = self.without[1] if self.without and self.without[0] == function.__name__ else None
        tree = ast.fix_missing_locations(_Stops(set(helpers), dropped).visit(tree))
        definition = tree.body[0]
        definition.decorator_list = []
        definition.body.append(ast.parse("if False: yield").body[0])  # a generator, even without a barrier
        ast.fix_missing_locations(tree)
        space = scope | {name: self._generator(f) for name, f in helpers.items()} | {"cuda": self.cuda}
        space |= {"load_wide": _load_wide, "store_wide": _store_wide, "ALIGNED": 16}
        exec(compile(tree, inspect.getsourcefile(function) or "?", "exec"), space)
        return space[definition.name]


def _dim(n: Any) -> _Dim:
    return _Dim(*n) if isinstance(n, tuple) else _Dim(n, 1)


def _name(who: int) -> str:
    return "another" if who == MANY else str(who)


@functools.cache
def _parsed(function: Callable[..., Any]) -> str:
    lines, first = inspect.getsourcelines(function)
    return "\n" * (first - 1) + textwrap.dedent("".join(lines))


def _tree(function: Callable[..., Any]) -> Any:
    return ast.parse(_parsed(function))


def _scope(function: Callable[..., Any]) -> dict[str, Any]:
    """Every name that the function knows from outside."""
    closure = inspect.getclosurevars(function)
    return {**function.__globals__, **closure.nonlocals}  # type: ignore[attr-defined]


def _cuda_call(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.attr if node.func.value.id == "cuda" else None
    return None


@functools.cache
def stops(function: Callable[..., Any]) -> bool:
    """Does the function, or a helper that it calls, come to a barrier or a shuffle?"""
    if not function.__module__.startswith("scratchnet.kernels.cuda"):
        return False
    if any(_cuda_call(node) in _BARRIERS | _SHUFFLES | {"syncthreads_or"} for node in ast.walk(_tree(function))):
        return True
    return any(stops(helper) for helper in _helpers(function))


def barriers_of(function: Callable[..., Any]) -> list[tuple[str, int]]:
    """(function, number) of every barrier in a kernel's source and in that of its helpers."""
    found = [_cuda_call(node) for node in ast.walk(_tree(function))]
    own = [(function.__name__, n) for n in range(sum(name in _BARRIERS for name in found))]
    return own + [pair for helper in _helpers(function) if stops(helper) for pair in barriers_of(helper)]


def _helpers(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that a function calls by name."""
    scope, calls = _scope(function), [node for node in ast.walk(_tree(function)) if isinstance(node, ast.Call)]
    called = [scope.get(node.func.id) for node in calls if isinstance(node.func, ast.Name)]
    return [f for f in dict.fromkeys(called) if isinstance(f, FunctionType) and f is not function]


class _Stops(ast.NodeTransformer):
    """cuda.syncthreads() -> yield; a helper that stops -> yield from."""

    def __init__(self, helpers: set[str], dropped: int | None):
        self.helpers, self.dropped, self.seen = helpers, dropped, 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = _cuda_call(node)
        if name in _BARRIERS:
            self.seen += 1
            if self.seen - 1 == self.dropped:
                return ast.copy_location(ast.Constant(None), node)
            return self._stop(node, [ast.Constant("barrier"), ast.Constant(node.lineno), ast.Constant(False)])
        if name == "syncthreads_or":
            return self._stop(node, [ast.Constant("barrier"), ast.Constant(node.lineno), *node.args])
        if name in _SHUFFLES:
            return self._stop(node, [ast.Constant("shuffle"), ast.Constant(node.lineno), *node.args[1:]])
        if isinstance(node.func, ast.Name) and node.func.id in self.helpers:
            return ast.copy_location(ast.YieldFrom(node), node)
        return node

    def _stop(self, node: ast.Call, parts: list[ast.expr]) -> ast.AST:
        return ast.copy_location(ast.Yield(ast.Tuple(parts, ast.Load())), node)


def _load_wide(source: _Words, i: int, target: _Words, j: int) -> None:
    source.check_wide(i)
    for v in range(16 // source.dtype.itemsize):
        target[j + v] = source[i + v]


def _store_wide(source: _Words, i: int, target: _Words, j: int) -> None:
    target.check_wide(j)
    for v in range(16 // source.dtype.itemsize):
        target[j + v] = source[i + v]
