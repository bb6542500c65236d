"""How the gradients of shards become new parameters: the strategies.

A strategy is a value: `Trainer(..., strategy=LocalSGD(every=8))`. It states all that the rest of the package asks of it
(the phases of a step, how many pages and slots there are, and how large), so a new strategy is one class in this file.
Notation: theta_t are the parameters after t steps, g_k(theta) is the gradient of the mean loss over the n_k samples of
shard k of a batch of n, so sum_k n_k/n g_k is the gradient of the batch.

    strategy                        same bits for any number of workers, any kill     wins when
    AllReduce()                     yes                                               almost always on one machine
    ParameterServer(0)              yes, those of AllReduce()                         never: it shows the cost
    ParameterServer(staleness=s)    yes: the delay is s, not "up to s"                shards take unequal time
    LocalSGD(every=H)               yes                                               merging is slow: slow networks
    Pipeline(stages=S)              yes, those of AllReduce()                         a model is too large for a worker
    TensorParallel(P)               yes, those of P                                   layers are very wide
    ParameterServer(None)           no                                                workers differ much in speed
    Hogwild()                       no                                                updates are sparse
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import checks
from ..errors import ConfigError
from .compression import Compression
from .phases import NORMS, SCHEDULES, Link, Phase, Place, chain, pipeline


def _check_compression(strategy: Any) -> None:
    if strategy.compression is not None and not isinstance(strategy.compression, Compression):
        raise ConfigError(
            f"{type(strategy).__name__}: expected compression to be Float16(), BFloat16(), TopK(), PowerSGD() or None, "
            f"got {checks.shown(strategy.compression)}"
        )


def _check_parts(strategy: Any) -> None:
    name, plan = type(strategy).__name__, strategy.plan
    checks.integer(f"{name}: parts", strategy.parts, 1)
    if plan is not None:
        remedy = "plan={'0': 'columns', '2': 'rows'}, say"
        checks.instance(f"{name}: plan", plan, Mapping, "a dict of names and kinds, or None", remedy)
        for layer, kind in plan.items():
            checks.instance(f"{name}: plan: a name", layer, str, "a text", remedy)
            checks.instance(f"{name}: plan: {layer!r}", kind, str, "a text", remedy)
        object.__setattr__(strategy, "plan", dict(plan))  # what the caller does with it later changes nothing


class Strategy:
    """Base of the strategies. What it says here describes a synchronous step; a subclass overrides what differs.

    name: what `Trainer(strategy=...)` and `--strategy` take for its defaults.
    is_exact: the bits do not depend on the number of workers, nor on the order in which they finish.
    merges_gradients: each step adds up the gradients of all shards (comm/tree.py), so they can be clipped or skipped.
    is_plain: a step of one batch is `optimizer.step()` on the gradient of that batch, at the newest parameters. In one
        process it then runs as one recorded program.
    has_local_steps: a shard may take steps of its own, in a slot that holds a whole page.
    compression: what is left out of a gradient. order: see AllReduce.
    lag: how many updates old the parameters are that a gradient is computed at.
    parts, plan: see TensorParallel. stages, cut, recompute: see Pipeline. splits: is a backward pass two pieces?
    """

    name: ClassVar[str]
    is_exact: bool = True
    merges_gradients: bool = True
    is_plain: bool = False
    has_local_steps: bool = False
    compression: Compression | None = None
    order: str = "exact"
    lag: int = 0
    parts: int = 1
    plan: Mapping[str, str] | None = None
    stages: int = 1
    cut: Any = "auto"
    recompute: bool = False
    splits: bool = False

    @property
    def arithmetic(self) -> Strategy:
        """The strategy whose bits these are, for checkpoints: those of a model that is divided are whole."""
        return self

    # --- the batches of a step ---

    def span(self, accumulate: int) -> int:
        """The most batches of the loader that a step takes."""
        return accumulate

    def batches(self, step: int, accumulate: int) -> int:
        """How many batches of the loader this step takes; the last step of an epoch may get fewer."""
        return self.span(accumulate)

    def trains_locally(self, step: int) -> bool:
        """Does each shard take local steps, one a batch, in this step?"""
        return False

    # --- the work of a step, see pool/claims.py ---

    def phases(self, shards: int, slices: int, clips: bool, links: Sequence[Link] = ()) -> list[Phase]:
        """What a step consists of. slices: pieces of the merge and update. clips: is the gradient's norm needed?
        links: of the pieces of a model that is divided.
        """
        phases = [Phase("shard", shards, slack=self.rings)]
        if self.compression:
            phases += self.compression.phases(shards)
        return [*phases, *[Phase("norm", NORMS)] * clips, Phase("slice", slices)]

    def slices(self, workers: int) -> int:
        """In how many pieces the merge and update is done: it changes the speed, not the bits."""
        return workers

    def check_workers(self, workers: int) -> None:
        """Raises ConfigError for a number of workers that cannot share the work."""

    def divides(self, workers: int) -> bool:
        """Do so many workers compute stages, or parts, of a shard?"""
        return False

    def owner(self, place: Place, piece: int, workers: int) -> int:
        """The worker that does a piece of a stage, while it lives."""
        return place.owner(piece, self.stages, workers)

    # --- memory, see pool/training_arena.py ---

    @property
    def rings(self) -> int:
        """Steps whose gradients wait in slots at the same time."""
        return self.lag + 1

    @property
    def pages(self) -> int:
        """Versions of the parameters that are kept: a step reads one and writes another."""
        return max(2, self.rings)

    def slot_bytes(self, layout: Any) -> int:
        """Bytes of a slot; layout: a PageLayout."""
        return layout.page_bytes if self.has_local_steps else layout.nbytes


@dataclass(frozen=True)
class AllReduce(Strategy):
    """Synchronous data-parallel SGD: all workers merge, each for its slice. The default.

        theta_{t+1} = update(theta_t, sum_k n_k/n g_k(theta_t)),    the sum along the tree of comm/tree.py

    It takes the mean gradient of the batch, whatever the number of workers, so it converges as one process does. Its
    bits depend on K, the number of shards, and not on workers. On one machine the parameters lie in the arena once, and
    each worker updates its slice. Machines of an MPI job do the same; each sends what its shards add up to
    (mpi/slices.py). Each step waits for the slowest shard.

    compression: see `Compression`; None sends all.
    order: "exact", or under MPI "fast": each machine adds up its own shards, and the library adds the sums of the
        machines in an order of its choice, so the bits depend on the number of machines. With compression, or on one
        machine, "fast" changes nothing.
    """

    compression: Compression | None = None
    order: str = "exact"
    name = "all_reduce"

    def __post_init__(self):
        _check_compression(self)
        checks.one_of("AllReduce: order", self.order, ("exact", "fast"))

    @property
    def is_plain(self):  # type: ignore[override]
        return self.compression is None


@dataclass(frozen=True)
class ParameterServer(Strategy):
    """One server holds the parameters; workers pull them and push gradients. Li et al., "Scaling Distributed Machine
    Learning with the Parameter Server" (2014).

    staleness=0: the server waits for all shards, then updates: synchronous, with the bits of `AllReduce`. All bytes go
        to one server, which is what all-reduce was invented to avoid; here one worker merges while the others wait.
    staleness=s > 0: the gradients of step t come from parameters that are s updates old,

            theta_{t+1} = update(theta_t, sum_k n_k/n g_k(theta_{max(t-s, 0)})),

        so a worker may be up to s steps ahead of the slowest one, as in stale synchronous parallel (Ho et al., "More
        Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", 2013). There the age varies up to
        s; here it is always s, so the bits do not depend on speed. A checkpoint holds the last s + 1 versions. It wins
        where the time of a shard varies from step to step. It costs s more copies of parameters and gradients, and it
        needs a lower learning rate (delays act like momentum: Mitliagkas et al. 2016).
    staleness=None: nobody waits. Each push is an update of its own, in the order of arrival, by the worker that has
        pushed and finds the server free:

            theta <- update(theta, n_k/n g_k(theta as it was when the gradient was begun))

        For plain SGD the K pushes of a batch add up to its mean gradient; with momentum or Adam they are K times as
        many updates, so take a lower learning rate. Results differ from run to run. A gradient may mix parameters of
        several versions.

    compression: see `Compression`; it needs staleness 0.
    """

    staleness: int | None = 0
    compression: Compression | None = None
    name = "parameter_server"

    def __post_init__(self):
        if self.staleness is not None:
            checks.integer("ParameterServer: staleness", self.staleness, 0)
        _check_compression(self)
        if self.compression is not None and self.staleness != 0:
            raise ConfigError(f"ParameterServer: expected staleness 0 with compression, got {self.staleness}")

    @property
    def is_exact(self):  # type: ignore[override]
        return self.staleness is not None

    @property
    def merges_gradients(self):  # type: ignore[override]
        return self.staleness is not None

    @property
    def lag(self):  # type: ignore[override]
        return self.staleness or 0

    @property
    def pages(self):
        return super().pages if self.is_exact else 3  # one more: gradients are being read while the server writes

    def slices(self, workers):
        return 1

    def phases(self, shards, slices, clips, links=()):
        if self.is_exact:
            return super().phases(shards, slices, clips)
        return [Phase("shard", shards, slack=1, paired=True), Phase("serve", shards, paired=True, exclusive=True)]


@dataclass(frozen=True)
class LocalSGD(Strategy):
    """Each shard takes `every` local steps from the same parameters; then all continue from the mean of the results.

        theta_k = theta_t, then `every` times theta_k = update(theta_k, g_k(theta_k))
        theta_{t+1} = 1/K sum_k theta_k

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), as FedAvg;
    Stich, "Local SGD Converges Fast and Communicates Little" (2019). The optimizer's state is averaged, too (Yu, Jin
    and Yang 2019), so a checkpoint holds one of each. A step is one such round: it takes `every` batches, fewer at the
    end of an epoch. It merges once in `every` batches, where AllReduce merges in each: it wins on slow networks. Each
    shard sees 1/K of a batch, so its steps are noisier; with a larger `every` the copies differ more, and the loss
    falls more slowly.

    warmup: the first steps are those of AllReduce, of one batch each: post-local SGD (Lin et al., "Don't Use Large
    Mini-Batches, Use Local SGD", 2020).
    """

    every: int = 8
    warmup: int = 0
    name = "local_sgd"
    merges_gradients = False
    has_local_steps = True

    def __post_init__(self):
        checks.integer("LocalSGD: every", self.every, 1)
        checks.integer("LocalSGD: warmup", self.warmup, 0)

    def span(self, accumulate):
        return self.every

    def batches(self, step, accumulate):
        return self.every if self.trains_locally(step) else 1

    def trains_locally(self, step):
        return step >= self.warmup


@dataclass(frozen=True)
class Hogwild(Strategy):
    """All workers read and write one set of parameters at the same time, in no order and without a lock.

        theta_i <- update(theta_i, n_k/n g_k(theta)_i)  for each number i, while others do the same

    Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent" (2011), for
    sparse problems, where two updates seldom meet. In a dense network they always meet, and a part of each is lost; it
    still converges with a lower learning rate, and nobody waits. Results differ from run to run, and a worker that is
    killed may leave half an update.
    """

    name = "hogwild"
    is_exact = False
    merges_gradients = False
    pages = 1  # type: ignore[assignment]

    def phases(self, shards, slices, clips, links=()):
        return [Phase("live", shards, slack=1, paired=True)]


@dataclass(frozen=True)
class TensorParallel(Strategy):
    """AllReduce of a model whose layers are computed in P parts, each with a block of the weights.

        columns  y_p = x @ W[:, p] + b[p], side by side;  rows  y = (x_0 @ W[0, :] + ... + x_P-1 @ W[P-1, :]) + b

    Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism" (2019).
    Between columns and rows each part computes activations and dropout of its block, so two layers need one exchange.
    Sums over parts are folded along the tree of comm/tree.py: the bits depend on P as they do on K, the shards, and on
    nothing else; for P = 1 they are those of AllReduce. Blocks may be of uneven sizes. See docs/model-parallel.md.

    plan: how layers are cut, by their names: {"0": "columns", "2": "rows"}. "columns" and "rows" of Linear, Conv1d and
        Conv2d (output and input channels), "rows" of Embedding, "heads" of MultiheadAttention; layers that it does not
        name are computed whole. None finds one: pairs of columns and rows along each Sequential, and heads.

    Raises ConfigError here or, for what does not fit the model, in Trainer.
    """

    parts: int = 2
    plan: Mapping[str, str] | None = None
    name = "tensor_parallel"
    is_plain = True

    def __post_init__(self):
        _check_parts(self)

    @property
    def arithmetic(self):
        return AllReduce()


@dataclass(frozen=True)
class Pipeline(Strategy):
    """The model is cut into `stages`, each in a worker of its own, which works on one shard while others have the next.

        forward   stage s of shard k, once stage s - 1 has sent its activations of shard k
        backward  stage s of shard k, once stage s + 1 has sent their gradients
        update    of the parameters of stage s, from the sum over shards along the tree: the step of AllReduce()

    The shards are the micro-batches, so K decides how long workers wait while the pipeline fills and drains: a part
    (S - 1) / (K + S - 1) of the step with "gpipe" and "1f1b", if all stages take equal time, and about a third of that
    with "zero_bubble" (model/timetable.py). The bits are those of AllReduce() with the same K, for any S, cut, schedule
    and number of workers. A worker holds the parameters and the optimizer's state of its own stages alone.

    cut: "auto" cuts into stages of equal measured time, "parameters" into ones of equal size, and names of S - 1
        modules say before which modules to cut. Tensors that skip stages are sent along.
    schedule: "gpipe" does all forwards, then all backwards (Huang et al. 2019). "1f1b" lets stage s have at most S - s
        shards under way, so it keeps fewer activations (Narayanan et al., PipeDream, 2019; Fan et al., DAPPLE, 2021).
        "zero_bubble" computes gradients of activations first, and those of parameters when a worker has nothing else to
        do; each stage keeps the graphs of up to S shards (ZB-H1 of Qi et al., ICLR 2024).
    recompute: run the forward again before each backward instead of keeping what it computed (Chen et al. 2016).
    parts, plan: of layers, as TensorParallel has them; then the bits are those of TensorParallel(parts, plan).

    Workers: up to S of them share the stages; beyond, their number is a multiple of S, and those of a stage share its
    parts, as evenly as that goes (not with "zero_bubble"), and then its shards. A forward must read no values of
    tensors, nor change activations in place; it runs op by op, without jit.
    """

    stages: int = 2
    cut: Any = "auto"
    schedule: str = "1f1b"
    recompute: bool = False
    parts: int = 1
    plan: Mapping[str, str] | None = None
    name = "pipeline"

    def __post_init__(self):
        _check_parts(self)
        checks.integer("Pipeline: stages", self.stages, 1, 1024)
        checks.one_of("Pipeline: schedule", self.schedule, SCHEDULES)
        checks.flag("Pipeline: recompute", self.recompute)
        if isinstance(self.cut, str):
            checks.one_of("Pipeline: cut", self.cut, ("auto", "parameters"))
            return
        names = self.cut if isinstance(self.cut, list | tuple) else [None]
        if not all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
            checks.refuse("Pipeline", "cut to be 'auto', 'parameters' or names of modules", self.cut)
        if len(names) != self.stages - 1:
            raise ConfigError(
                f"Pipeline: expected {self.stages - 1} names in cut for {self.stages} stages, got {len(names)}"
            )
        object.__setattr__(self, "cut", tuple(map(str, names)))

    @property
    def is_plain(self):  # type: ignore[override]
        return self.stages == 1

    @property
    def splits(self):  # type: ignore[override]
        return self.schedule == "zero_bubble"

    @property
    def arithmetic(self):
        return AllReduce()

    def phases(self, shards, slices, clips, links=()):
        if self.stages == 1 and not links:
            return super().phases(shards, slices, clips)
        return pipeline(links or chain(self.stages), shards, slices, clips, self.schedule)

    def slices(self, workers):
        return max(1, workers // self.stages)

    def check_workers(self, workers):
        if workers > self.stages and workers % self.stages:
            several = f"at most {self.stages} workers, one for each stage, or a multiple"
            raise ConfigError(f"Pipeline: expected {several}, got {workers}")

    def divides(self, workers):
        return self.stages > 1 or self.shares_parts(workers)

    def shares_parts(self, workers: int) -> bool:
        """Do so many workers compute parts of a stage?"""
        return self.parts > 1 and workers > self.stages and not self.splits


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "all_reduce": AllReduce,
    "parameter_server": ParameterServer,
    "asynchronous": functools.partial(ParameterServer, staleness=None),
    "local_sgd": LocalSGD,
    "pipeline": Pipeline,
    "hogwild": Hogwild,
    "tensor_parallel": TensorParallel,
}


def strategy_of(value: Any, **options: Any) -> Strategy:
    """`value` itself if it is a strategy, or the strategy of that name with these options; None leaves its default.

    Raises ConfigError for anything else, and for an option that the strategy does not have.
    """
    if isinstance(value, Strategy):
        return value
    if isinstance(value, str) and value in STRATEGIES:
        make, given = STRATEGIES[value], {name: option for name, option in options.items() if option is not None}
        has = inspect.signature(make).parameters.keys() - getattr(make, "keywords", {}).keys()
        if other := sorted(given.keys() - has):
            mine = ", ".join(sorted(has)) or "none"
            raise ConfigError(f"Trainer: expected options of strategy {value!r} ({mine}), got {', '.join(other)}")
        return make(**given)
    remedy = f"call it: {value.__name__}()" if isinstance(value, type) else ""
    checks.refuse("Trainer", f"strategy to be one of {', '.join(STRATEGIES)}, or an object", value, remedy=remedy)


def options_of(strategy: Strategy) -> dict[str, Any]:
    """What a checkpoint keeps of a strategy: all that its arithmetic depends on."""
    strategy = strategy.arithmetic
    found: dict[str, Any] = {"strategy": strategy.name}
    for field in dataclasses.fields(strategy):  # type: ignore[arg-type]
        value = getattr(strategy, field.name)
        found[field.name] = repr(value) if isinstance(value, Compression) else value
    return found
