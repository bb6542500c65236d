"""The phases of a training step: a strategy states them, workers do them. pool/claims.py says who may do what when."""

from typing import NamedTuple

SCHEDULES = ("gpipe", "1f1b", "zero_bubble")
NORMS = 8  # pieces of the norm of a gradient: part of the arithmetic, so their number does not depend on the workers


class Need(NamedTuple):
    """What a piece waits for: `back` phases before its own (negative: behind it), all pieces of that phase.

    paired: piece i waits for piece i - lag of it alone, and for none if there is no such piece.
    slack: by how many steps the piece may be ahead of them.
    """

    back: int = 1
    paired: bool = False
    slack: int = 0
    lag: int = 0


class Phase(NamedTuple):
    """A part of a step, done in so many pieces. `name` is the method of pool/worker.py that does one of them.

    slack: steps that it may be ahead of the phase before it. Before the first phase comes the last one: with slack 1 a
    step begins when the one before is committed, with more slack gradients run ahead of updates.
    paired: piece i waits for piece i of the phase before alone, not for all of them.
    exclusive: one worker at a time; the piece that was done least often is next, and all seals together count what was
    done: then each piece is an update of its own.
    stage: the stage of the model that it computes, or None: all of it. See model/.
    needs: what its pieces wait for, if that is not the phase before it alone.
    urgency: of the pieces that it could do, a worker takes one of a phase with the highest urgency, and of the latest
    phase among equals: others wait for it.
    """

    name: str
    pieces: int
    slack: int = 0
    paired: bool = False
    exclusive: bool = False
    stage: int | None = None
    needs: tuple[Need, ...] = ()
    urgency: int = 0

    def waits(self) -> tuple[Need, ...]:
        """What its pieces wait for."""
        return self.needs or (Need(1, self.paired, self.slack),)


def pipeline(stages: int, shards: int, slices: int, clips: bool, schedule: str) -> list[Phase]:
    """The phases of a step of a pipeline; those of each stage have a piece for each shard.

    slices: of each stage, one for each worker that has it. The schedule is what a worker prefers, and how many shards
    of a stage may be under way. With "zero_bubble" a backward pass is two pieces: gradients of what a stage was sent,
    for which the stage before waits, and of its parameters, for which nobody waits before the update: a worker does
    those when it has nothing else to do.
    """
    splits, last = schedule == "zero_bubble", stages - 1
    names = ("backward_inputs", "backward_weights") if splits else ("backward",)
    found = []
    for s in range(stages):  # phase s
        needs = [Need(1, paired=True)] if s else [Need(1 + j, slack=1) for j in range(stages)]  # all slices
        if schedule != "gpipe":  # as many shards under way as there are stages from here on; its backward comes later
            needs.append(Need(s - (2 * stages - 1 - s), paired=True, lag=slices * (stages - s)))
        if splits:  # and a graph is kept until the gradients of parameters are there
            needs.append(Need(s - (3 * stages - 1 - s), paired=True, lag=slices * stages))
        found.append(Phase("forward", shards, stage=s, needs=tuple(needs), urgency=0 if schedule == "1f1b" else 1))
    for name, back, urgency in zip(names, (1, stages), (0, -1), strict=False):
        need = Need(back, paired=True)  # of the stage after it, or of the same stage
        found += [Phase(name, shards, stage=s, needs=(need,), urgency=urgency) for s in range(last, -1, -1)]
    ends = range(1, 1 + stages if splits else 2)  # the last phases: stage 0 ends last, but of parameters any may
    if clips:
        found, ends = [*found, Phase("norm", NORMS, needs=tuple(map(Need, ends)))], range(1, 2)
    return found + [Phase("slice", slices, stage=s, needs=tuple(Need(s + end) for end in ends)) for s in range(stages)]
