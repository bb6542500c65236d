"""Random numbers by counting: a number depends on (seed, stream, position) alone, not on what was drawn before.

Dropout and initialisers take one stream each from the current generator. A trainer that runs a piece of work under
`using(Generator(seed, stream))` makes its randomness a function of that pair, wherever and whenever it runs.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

from . import checks, tracing
from .errors import CheckpointError, ConfigError
from .stateful import Stateful

_WORD = 2**64


def _word(name: str, value: Any) -> int:
    return checks.integer(name, value) % _WORD


class Generator(Stateful):
    """A seed and a counter of streams.

    seed: any integer; it counts modulo 2**64, so -1 is 2**64 - 1.
    stream: the number of the first stream to hand out, modulo 2**64 too.

    A generator is not for use by two threads at a time: give each its own, with `using`.
    """

    def __init__(self, seed: int = 0, stream: int = 0):
        self.seed = _word("seed", seed)
        self.stream = _word("stream", stream)

    def next_stream(self) -> int:
        """The number of a stream that this generator has not handed out before."""
        stream = self.stream
        self.stream = (stream + 1) % _WORD
        return stream

    def key(self) -> np.ndarray:
        """(seed, the next stream) as two uint64: what names the random numbers of one draw."""
        key = np.array([self.seed, self.next_stream()], np.uint64)
        own = tracing.current().generator is not self  # otherwise a replay draws from the one that is current then
        self._repeats(lambda: _draw_into(key, self if own else current()), (key,))
        return key

    def numpy(self) -> np.random.Generator:
        """NumPy's generator over the next stream: Philox 4x64 whose key is (seed, stream)."""
        self._outside_of_steps("random numbers of NumPy")
        return _over_next_stream(self)

    def filled(self, array: np.ndarray, draw: Callable[[np.random.Generator], Any]) -> np.ndarray:
        """array, with what `draw` makes of NumPy's generator over the next stream; a replay draws anew."""
        own = tracing.current().generator is not self  # as for `key`
        _fill(array, draw, self)
        self._repeats(lambda: _fill(array, draw, self if own else current()), (array,))
        return array

    def manual_seed(self, seed: int) -> "Generator":
        """Starts again from another seed, and returns this generator."""
        self._outside_of_steps("manual_seed")
        self.seed, self.stream = _word("manual_seed", seed), 0
        return self

    def state_dict(self) -> dict[str, int]:
        """{"seed": ..., "stream": ...}: all there is."""
        return {"seed": self.seed, "stream": self.stream}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a saved state. Raises CheckpointError for anything else, and then changes nothing."""
        self._outside_of_steps("load_state_dict")
        try:
            loaded = Generator(**{"seed": "none", **state})  # type: ignore[arg-type]  # it must be there
        except (ConfigError, TypeError):
            raise CheckpointError(f"Generator: expected integers seed and stream, got {checks.shown(state)}") from None
        self.seed, self.stream = loaded.seed, loaded.stream

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, stream={self.stream})"


def _draw_into(key: np.ndarray, generator: Generator) -> Callable[[], None]:
    before = generator.stream
    key[:] = generator.seed, generator.next_stream()
    return lambda: setattr(generator, "stream", before)


def _over_next_stream(generator: Generator) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=generator.seed | generator.next_stream() << 64))


def _fill(array: np.ndarray, draw: Callable[[np.random.Generator], Any], generator: Generator) -> Callable[[], None]:
    before = generator.stream
    array[...] = draw(_over_next_stream(generator))
    return lambda: setattr(generator, "stream", before)


_default = Generator(0)
_seeded: ContextVar[Generator] = ContextVar("seeded", default=_default)  # of a thread that called `manual_seed`
_used: ContextVar[Generator | None] = ContextVar("used", default=None)


def current() -> Generator:
    """The generator that layers and initialisers draw from: that of the innermost `using`, or the default one."""
    return _used.get() or _seeded.get()


@contextlib.contextmanager
def using(generator: Generator) -> Iterator[Generator]:
    """Inside, in this thread, random numbers come from `generator`."""
    checks.instance("using", generator, Generator, "a Generator")
    token = _used.set(generator)
    try:
        yield generator
    finally:
        _used.reset(token)


def manual_seed(seed: int) -> Generator:
    """Starts the default generator again from `seed` (any integer, modulo 2**64), and returns it.

    Its seed is 0 until then, so a program draws the same numbers each time it runs. A thread that is not the main one
    gets a generator of its own, so threads that seed and build models at once do not draw from each other's numbers.
    Raises ConfigError for a seed that is not an integer.
    """
    if threading.current_thread() is threading.main_thread():
        return _default.manual_seed(seed)
    generator = Generator(0).manual_seed(seed)
    _seeded.set(generator)
    return generator
