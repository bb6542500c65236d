"""The source of cuda kernels as generators, which stop at each barrier and each shuffle."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any

_BARRIERS = {"syncthreads"}  # that can be taken out; "syncthreads_or" also says whether any thread said yes
_SHUFFLES = {"shfl_xor_sync"}


def plain(kernel: Any) -> Any:
    """The function of Python that @cuda.jit was given, for a GPU or for Numba's simulator."""
    name = {"FakeCUDAKernel": "fn", "CUDADispatcher": "py_func"}.get(type(kernel).__name__)
    return getattr(kernel, name) if name else kernel


@functools.cache
def _parsed(function: Callable[..., Any]) -> str:
    lines, first = inspect.getsourcelines(function)
    return "\n" * (first - 1) + textwrap.dedent("".join(lines))


def tree_of(function: Callable[..., Any]) -> Any:
    return ast.parse(_parsed(function))


def scope_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Every name that the function knows from outside."""
    closure = inspect.getclosurevars(function)
    return {**function.__globals__, **closure.nonlocals}  # type: ignore[attr-defined]


def helpers_of(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """What the function calls by name and must stop with it: our own functions that stop, and all of @cuda.jit."""
    code = function.__code__  # type: ignore[attr-defined]
    scope = {name: f for name, f in scope_of(function).items() if name in code.co_names + code.co_freevars}
    found = {name: f for name, f in scope.items() if isinstance(f, FunctionType) and stops(f)}
    return found | {name: plain(f) for name, f in scope.items() if plain(f) is not f}


def _cuda_call(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.attr if node.func.value.id == "cuda" else None
    return None


@functools.cache
def stops(function: Callable[..., Any]) -> bool:
    """Does the function, or a helper that it calls, come to a barrier or a shuffle?"""
    if not function.__module__.startswith("scratchnet.kernels.cuda"):
        return False
    if any(_cuda_call(node) in _BARRIERS | _SHUFFLES | {"syncthreads_or"} for node in ast.walk(tree_of(function))):
        return True
    return any(stops(helper) for helper in _helpers(function))


def barriers_of(function: Callable[..., Any]) -> list[tuple[str, int]]:
    """(function, number) of every barrier in a kernel's source and in that of its helpers."""
    found = [_cuda_call(node) for node in ast.walk(tree_of(function))]
    own = [(function.__name__, n) for n in range(sum(name in _BARRIERS for name in found))]
    return own + [pair for helper in _helpers(function) if stops(helper) for pair in barriers_of(helper)]


def _helpers(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that a function calls by name."""
    scope, calls = scope_of(function), [node for node in ast.walk(tree_of(function)) if isinstance(node, ast.Call)]
    called = [scope.get(node.func.id) for node in calls if isinstance(node.func, ast.Name)]
    return [f for f in dict.fromkeys(called) if isinstance(f, FunctionType) and f is not function]


class Stops(ast.NodeTransformer):
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
