"""Are ops recorded? A mode of each context: of a thread, and of an asyncio task. `no_grad` turns it off."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from . import checks
from .errors import ConfigError

_grad_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)
_modes: ContextVar[tuple[bool, ...]] = ContextVar("modes", default=())  # what it was before each open `no_grad`
is_recording = _grad_enabled.get  # True unless inside `no_grad`


class recording:
    """Inside, ops are recorded or not."""

    __slots__ = ("_before", "_enabled")

    def __init__(self, enabled: bool):
        self._enabled = enabled

    def __enter__(self) -> None:
        self._before = is_recording()
        _grad_enabled.set(self._enabled)

    def __exit__(self, *exc_info: Any) -> None:
        _grad_enabled.set(self._before)  # not reset(token): a generator may be closed in another context


class no_grad:
    """Inside, nothing is recorded: results have requires_grad False. Also a decorator: `@no_grad()`.

    A decorated generator records nothing while it runs; between its values the mode is the caller's. So do coroutines
    and asynchronous generators. One object may be entered again, also inside itself. Raises ConfigError for a class.
    """

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        made = super().__new__(cls)
        return made if function is None else made(function)  # `@no_grad` without brackets

    def __enter__(self) -> None:
        _modes.set((*_modes.get(), is_recording()))
        _grad_enabled.set(False)

    def __exit__(self, *exc_info: Any) -> None:
        *outer, before = _modes.get()
        _modes.set(tuple(outer))
        _grad_enabled.set(before)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(function, type) or not callable(function):
            checks.refuse("no_grad", "a function to decorate", function, remedy="decorate the methods of a class")
        return _kind_of(function)(function)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with recording(False):
            return function(*args, **kwargs)

    return call


def _coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        with recording(False):
            return await function(*args, **kwargs)

    return call


def _generator(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        resume = functools.partial(next, generator)
        while True:
            try:
                with recording(False):
                    value = resume()
            except StopIteration as stop:
                return stop.value
            try:
                resume = functools.partial(generator.send, (yield value))
            except GeneratorExit:
                with recording(False):
                    generator.close()
                raise
            except BaseException as error:
                resume = functools.partial(generator.throw, error)

    return generate


def _asynchronous_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def generate(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        resume = generator.__anext__
        while True:
            try:
                with recording(False):
                    value = await resume()
            except StopAsyncIteration:
                return
            try:
                resume = functools.partial(generator.asend, (yield value))
            except GeneratorExit:
                with recording(False):
                    await generator.aclose()
                raise
            except BaseException as error:
                resume = functools.partial(generator.athrow, error)

    return generate


_KINDS = (
    (inspect.isgeneratorfunction, _generator),
    (inspect.iscoroutinefunction, _coroutine),
    (inspect.isasyncgenfunction, _asynchronous_generator),
)


def _kind_of(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """How a function of its kind is run without a record."""
    return next((wrap for is_kind, wrap in _KINDS if is_kind(function)), _plain)


# --- models -----------------------------------------------------------------------------------------------------------


class _Turn:
    """Whose the modes of a model's modules are: of a thread that evaluates it, or of the one that trains it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.trains_in: int | None = None

    def take(self, what: str) -> None:
        if self.trains_in not in (None, threading.get_ident()):
            raise ConfigError(f"{what}: expected a model at rest, got one that trains in another thread")


_turns: weakref.WeakKeyDictionary[Any, _Turn] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def training(model: Any) -> Iterator[None]:
    """Inside, this thread trains the model, when those that evaluate it have come to their end."""
    turn = _turns.setdefault(model, _Turn())
    with turn.lock:
        turn.take("fit")
        before, turn.trains_in = turn.trains_in, threading.get_ident()
    try:
        yield
    finally:
        turn.trains_in = before


@contextlib.contextmanager
def evaluating(model: Any, what: str = "evaluate") -> Iterator[None]:
    """Evaluation mode without a graph; afterwards the mode of each module is as before. Threads take turns: modes are
    the model's, so that one would end evaluation while another computes. ConfigError where another one trains it."""
    turn = _turns.setdefault(model, _Turn())
    with turn.lock:
        turn.take(what)
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
