"""The phases of a training step: a strategy states them, workers do them. pool/claims.py says who may do what when."""

from collections.abc import Sequence
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


class Place(NamedTuple):
    """What of a divided model: a stage of a pipeline, and of its layers one of so many parts that workers share."""

    stage: int
    part: int = 0
    parts: int = 1

    def owner(self, piece: int, stages: int, workers: int) -> int:
        """The worker that does a piece here. Up to one a stage, they share the stages; those of a stage share its
        parts, as evenly as that goes, and then its shards.
        """
        if workers <= stages:
            return self.stage * workers // stages
        lanes, replicas = self.lanes(stages, workers)
        return self.stage * (workers // stages) + self.part * lanes // self.parts * replicas + piece % replicas

    def lanes(self, stages: int, workers: int) -> tuple[int, int]:
        """Workers that share the parts of a stage, and how often there are as many: they share its shards."""
        of_stage = max(1, workers // stages)
        lanes = max(lanes for lanes in range(1, self.parts + 1) if of_stage % lanes == 0)
        return lanes, of_stage // lanes


class Link(NamedTuple):
    """How a stage, or a part of one, hangs together with others, by their numbers: `after` are those whose activations
    it reads, `before` those that give it gradients.
    """

    place: Place
    after: tuple[int, ...]
    before: tuple[int, ...]


class Phase(NamedTuple):
    """A part of a step, done in so many pieces. `name` is the method of pool/worker.py that does one of them.

    slack: steps that it may be ahead of the phase before it. Before the first phase comes the last one: with slack 1 a
    step begins when the one before is committed, with more slack gradients run ahead of updates.
    paired: piece i waits for piece i of the phase before alone, not for all of them.
    exclusive: one worker at a time; the piece that was done least often is next, and all seals together count what was
    done: then each piece is an update of its own.
    stage: the number of the stage, or part of one, that it computes, or None: the whole model. See model/.
    place: what that is; it says whose work it is.
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
    place: Place = Place(0)
    needs: tuple[Need, ...] = ()
    urgency: int = 0

    def waits(self) -> tuple[Need, ...]:
        """What its pieces wait for."""
        return self.needs or (Need(1, self.paired, self.slack),)


def chain(stages: int) -> list[Link]:
    """Stages each of which works on what the one before it sends."""
    last = stages - 1
    return [Link(Place(s), (s - 1,) if s else (), (s + 1,) if s < last else ()) for s in range(stages)]


def pipeline(links: Sequence[Link], shards: int, slices: int, clips: bool, schedule: str) -> list[Phase]:
    """The phases of a step of a pipeline; those of each stage, or part of one, have a piece for each shard.

    slices: of each stage, one for each worker that has it. The schedule is what a worker prefers, and how many shards
    of a stage may be under way. With "zero_bubble" a backward pass is two pieces: gradients of what a stage was sent,
    for which the stage before waits, and of its parameters, for which nobody waits before the update: a worker does
    those when it has nothing else to do.
    """
    count, stages, splits = len(links), links[-1].place.stage + 1, schedule == "zero_bubble"
    backward = [2 * count - 1 - s for s in range(count)]  # numbers of phases; forward s has number s
    weights = [3 * count - 1 - s for s in range(count)]
    urgency = 0 if schedule == "1f1b" else 1
    found = []
    for s, (place, after, _) in enumerate(links):
        needs = [Need(s - r, paired=True) for r in after] or [Need(1 + s + j, slack=1) for j in range(stages)]  # slices
        if schedule != "gpipe":  # as many shards under way as there are stages from here on; its backward comes later
            needs.append(Need(s - backward[s], paired=True, lag=slices * (stages - place.stage)))
        if splits:  # and a graph is kept until the gradients of parameters are there
            needs.append(Need(s - weights[s], paired=True, lag=slices * stages))
        found.append(Phase("forward", shards, stage=s, place=place, needs=tuple(needs), urgency=urgency))
    for s, (place, _, before) in reversed([*enumerate(links)]):
        needs = [Need(backward[s] - backward[r], paired=True) for r in before]
        if not any(s in links[r].after for r in before):
            needs.append(Need(backward[s] - s, paired=True))
        name = "backward_inputs" if splits else "backward"
        found.append(Phase(name, shards, stage=s, place=place, needs=tuple(needs)))
    for s, (place, _, _) in reversed([*enumerate(links)] if splits else []):
        own = (Need(count, paired=True),)
        found.append(Phase("backward_weights", shards, stage=s, place=place, needs=own, urgency=-1))
    waited_for = {r for link in links for r in link.before}
    ends = weights if splits else [backward[s] for s in range(count) if s not in waited_for]
    if clips:
        found.append(Phase("norm", NORMS, needs=tuple([Need(len(found) - end) for end in ends])))
        ends = [len(found) - 1]
    begin = len(found)
    for s in range(stages):
        needs = [Need(begin + s - end) for end in ends]
        found.append(Phase("slice", slices, stage=s, place=Place(s), needs=tuple(needs)))
    return found
