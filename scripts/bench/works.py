"""What bench.py measures: pieces of work, each a request to the engines that take part, and what came of it."""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from convolution import NETWORKS, operations
from engine import ARRAYS, BATCH, ELEMENTS
from engines import ENGINES

from scratchnet.errors import ConfigError

NETS = ((784, 128, 10), (784, 1024, 1024, 10))
STEPS = ("784-128-10@64", "784-128-10@512", "784-1024-1024-10@512")
ALL_REDUCES = (4096, 407_080, 4_000_000, 64_000_000)  # bytes; the second is all gradients of 784-128-10
SHARED = ((NETS[0], 64), (NETS[0], 512), (NETS[1], 512))  # networks and batch sizes of steps that processes share
MERGED = ((784, 1024, 256, 10), NETS[1], (784, 4096, 4096, 10))  # networks of 4, 7 and 80 MB
POOLS = tuple(name for name in ENGINES if name.startswith("pool-"))
OURS = ("pool-2", *POOLS, "scratchnet", "scratchnet-eager", "mpi-exact", "mpi-fast")


@dataclass
class Work:
    """What the engines are asked, how much arithmetic or memory it takes, and what came of it, by engine."""

    section: str
    title: str
    request: str  # a method of engine.Engine
    arguments: dict[str, Any]
    flops: float = 0.0
    bytes: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, dict] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, engine: str, answer: dict) -> None:
        if "error" in answer:
            self.errors[engine] = answer["error"]
        elif answer["seconds"] is not None:
            self.seconds.setdefault(engine, []).append(answer.pop("seconds"))
            self.facts[engine] = answer

    @property
    def ours(self) -> str | None:
        """The engine that others are compared with: ours, the recorded step before the eager one."""
        return next((name for name in OURS if name in self.seconds), None)

    @property
    def peers(self) -> list[str]:
        return [name for name in self.seconds if name not in OURS]

    @property
    def rival(self) -> str | None:
        """The fastest peer, where there is one and an engine of ours."""
        return min(self.peers, key=self.best) if self.ours and self.peers else None

    def best(self, engine: str) -> float:
        return min(self.seconds[engine])

    def ratios(self, engine: str, other: str | None = None) -> list[float]:
        """How many times as long as ours, or another, it takes: best, median. Above 1 ours is faster."""
        other = other or self.ours
        return [of(self.seconds[engine]) / of(self.seconds[other]) for of in (min, statistics.median)]


def name_of(widths: Sequence[int], batch: int) -> str:
    return f"{'-'.join(map(str, widths))}, batch {batch}"


def products(widths: Sequence[int], batch: int) -> Iterator[tuple[str, int, int, int, bool, bool]]:
    """The matrix products of a training step: (m, k) @ (k, n), with op(a) or op(b) stored transposed."""
    for layer, (i, o) in enumerate(itertools.pairwise(widths)):
        yield "forward", batch, i, o, False, False
        yield "weight grad", i, batch, o, True, False
        if layer:
            yield "input grad", batch, o, i, False, True


def kernels() -> list[Work]:
    cases = {
        f"{form} {m}x{k}x{n}": (m, k, n, *transposed)
        for net in NETS for batch in (1, 8, 64, 512) for form, m, k, n, *transposed in products(net, batch)
    } | {f"square {n}": (n, n, n, False, False) for n in (1024, 2048)}  # fmt: skip
    names = ("m", "k", "n", "transpose_a", "transpose_b")
    works = [
        Work("kernels", title, "products", dict(zip(names, case, strict=True)), flops=2.0 * case[0] * case[1] * case[2])
        for title, case in cases.items()
    ]
    size = 4.0 * ELEMENTS[0] * ELEMENTS[1]
    return works + [Work("kernels", k, "kernels", {"kernel": k}, bytes=n * size) for k, n in ARRAYS.items()]


def step_of(text: str) -> Work:
    """The work "784-128-10@64": a step of that network on 64 samples."""
    try:
        *widths, batch = map(int, text.replace("@", "-").split("-"))
    except ValueError:
        widths = []
    if len(widths) < 2 or min(*widths, batch) < 1 or text != f"{'-'.join(map(str, widths))}@{batch}":
        raise ConfigError(f"--steps: expected a network and a batch size, such as 784-128-10@64, got {text!r}")
    flops = sum(2.0 * m * k * n for _, m, k, n, *_ in products(widths, batch))
    return Work("steps", name_of(widths, batch), "steps", {"widths": widths, "batch_size": batch}, flops)


def inference() -> list[Work]:
    """One sample, and many: what a service that predicts waits for."""
    works = []
    for widths in NETS:
        for batch in (1, 512):
            flops = sum(2.0 * batch * i * o for i, o in itertools.pairwise(widths))
            arguments = {"widths": widths, "batch_size": batch}
            works.append(Work("inference", name_of(widths, batch), "inference", arguments, flops))
    return works


def convolution() -> list[Work]:
    """Training steps of convolutional networks."""
    return [
        Work("convolution", f"{name}, batch {network.batch}", "convolution", {"network": name}, operations(network))
        for name, network in NETWORKS.items()
    ]


def collectives() -> list[Work]:
    kinds = {"private": False, "rewritten before each call, ours in the arena": True}
    return [
        Work(
            "collectives", f"all-reduce of {n} bytes on 2 processes, {kind}", "collectives",
            {"elements": n // 4, "rewritten": rewritten}, bytes=float(n),
        )
        for kind, rewritten in kinds.items() for n in ALL_REDUCES
    ]  # fmt: skip


def pool() -> Iterator[Work]:
    """Steps of 2 and of 4 shards, merges, kills, starts; `what` is the method of a measure, see pool_engine.py."""

    def work(title: str, what: str, widths: Sequence[int], batch: int, shards: int = 2) -> Work:
        arguments = {"what": what, "widths": widths, "batch_size": batch, "shards": shards}
        return Work("pool", f"{title}, {name_of(widths, batch)}", "pool", arguments)

    for shards in (2, 4):
        yield from (work(f"step of {shards} shards", "measure", *case, shards) for case in SHARED)
    for widths in MERGED:
        parameters = sum((i + 1) * o for i, o in itertools.pairwise(widths))
        yield work(f"merge and update of {4e-6 * parameters:.1f} MB", "merge", widths, 2)
    yield work("a worker is killed, until its step is committed", "recover", *SHARED[1])
    yield work("4 workers, until the first step is committed", "start", *SHARED[0], 4)


def works_of(section: str, steps: Sequence[str], goal: float) -> list[Work]:
    whole = partial(Work, section, request=section)
    works: dict[str, Callable[[], Any]] = {
        "kernels": kernels,
        "steps": lambda: map(step_of, steps),
        "epochs": lambda: [whole(f"{name_of(NETS[0], BATCH)}, shuffled", arguments={"widths": NETS[0]})],
        "accuracy": lambda: [
            whole(
                f"{name_of(NETS[0], BATCH)}, to {goal:.0%} test accuracy", arguments={"widths": NETS[0], "goal": goal}
            )
        ],
        "inference": inference,
        "convolution": convolution,
        "collectives": collectives,
        "pool": pool,
    }
    return list(works[section]())
