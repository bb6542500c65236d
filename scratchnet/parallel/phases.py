"""The phases of a training step: a strategy states them, workers do them. pool/claims.py says who may do what when."""

from typing import NamedTuple

NORMS = 8  # pieces of the norm of a gradient: part of the arithmetic, so their number does not depend on the workers


class Phase(NamedTuple):
    """A part of a step, done in so many pieces. `name` is the method of pool/worker.py that does one of them.

    slack: steps that it may be ahead of the phase before it. Before the first phase comes the last one: with slack 1 a
    step begins when the one before is committed, with more slack gradients run ahead of updates.
    paired: piece i waits for piece i of the phase before alone, not for all of them.
    exclusive: one worker at a time; the piece that was done least often is next, and all seals together count what was
    done: then each piece is an update of its own.
    """

    name: str
    pieces: int
    slack: int = 0
    paired: bool = False
    exclusive: bool = False
