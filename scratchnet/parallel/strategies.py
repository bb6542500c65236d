"""How the gradients of shards become new parameters: the strategies, and what may be left out of a gradient on its way.

A strategy is a value: `Trainer(..., strategy=LocalSGD(every=8))`. It says which phases a step has (claims.py) and the
worker knows how to do each (worker.py). Notation: theta_t are the parameters after t steps, g_k(theta) the gradient of
the mean loss over the n_k samples of shard k of a batch of n, so sum_k n_k/n g_k is the gradient of the batch.

    strategy                        same bits for any number of workers, any kill     wins when
    AllReduce()                     yes                                               almost always on one machine
    ParameterServer(0)              yes, those of AllReduce()                         a measure for the others
    ParameterServer(staleness=s)    yes: the delay is s, not "up to s"                shards take unequal time
    LocalSGD(every=H)               yes                                               merging is dear: slow networks
    ParameterServer(None)           no                                                workers differ much in speed
    Hogwild()                       no                                                updates are sparse
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError


def _require(value: Any, least: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what}: expected an integer of at least {least}, got {value!r}")


def _check_compression(strategy: Any) -> None:
    if strategy.compression is not None and not isinstance(strategy.compression, Compression):
        raise ConfigError(
            f"{type(strategy).__name__}: expected compression to be Float16(), TopK(), PowerSGD() or None, "
            f"got {strategy.compression!r}"
        )


# --- what may be left out of a gradient -------------------------------------------------------------------------------


class Compression:
    """Sends less than the gradient; what was left out is added to the next one (error feedback).

    Shard k keeps a residual e_k, at first 0, and with its gradient g, weighted by n_k/n, it does

        v = g + e_k;    sends C(v);    e_k = v - C(v)

    (Seide et al. 2014; Karimireddy et al. 2019 show that this keeps the rate of convergence of SGD). The merge folds
    what was sent. On one machine, where gradients lie in shared memory, it saves nothing; it is there to be studied,
    and for slow networks (MPI): there each machine gets what every shard sent. The residuals are part of a checkpoint.
    """

    def compress(self, v: np.ndarray, out: np.ndarray) -> None:
        """out = C(v), in full; v is one parameter's gradient, of its shape, float32 or float64."""
        raise NotImplementedError

    def sent_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes that C(v) takes on the way, for v of this shape."""
        raise NotImplementedError

    def pack(self, sent: np.ndarray) -> np.ndarray:
        """C(v), from `compress`, as it travels: `sent_bytes` bytes. All of it, unless told otherwise."""
        return sent.reshape(-1).view(np.uint8)

    def unpack(self, data: np.ndarray, out: np.ndarray) -> None:
        """out = C(v), bit by bit, from what `pack` gave."""
        out.reshape(-1)[...] = data.view(out.dtype)


@dataclass(frozen=True)
class Float16(Compression):
    """Half precision: C(v) rounds to float16, the nearest even one; what is beyond its range, 65504, stays behind.

    Half the bytes of float32, an error of at most 2^-11 a number. The one to try first.
    """

    def compress(self, v, out):
        _half().round_half(v, out)

    def sent_bytes(self, shape, itemsize):
        return 2 * int(np.prod(shape))

    def pack(self, sent):
        return _half().half_bits(sent).view(np.uint8)

    def unpack(self, data, out):
        _half().read_half(data.view(np.uint16), out)


def _half() -> Any:
    from .comm import half  # here, not above: importing scratchnet does not load Numba

    return half


@dataclass(frozen=True)
class TopK(Compression):
    """Of each parameter's gradient only the ceil(ratio * size) numbers of largest magnitude, the first among equals.

    8 bytes a number that is sent, its position and value, so a ratio of 0.01 sends 2 % of float32. Stich, Cordonnier
    and Jaggi, "Sparsified SGD with Memory" (2018). Small ratios delay what is left out, which needs a lower rate.
    """

    ratio: float = 0.01

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"TopK: expected ratio in (0, 1], got {self.ratio!r}")

    def _count(self, size: int) -> int:
        return min(size, int(np.ceil(self.ratio * size)))

    def compress(self, v, out):
        size, count = np.abs(v.reshape(-1)), self._count(v.size)
        least = np.partition(size, size.size - count)[size.size - count]
        kept = size > least
        equal = np.flatnonzero(size == least)
        kept[equal[: count - np.count_nonzero(kept)]] = True
        np.copyto(out.reshape(-1), np.where(kept, v.reshape(-1), 0))

    def sent_bytes(self, shape, itemsize):
        return (4 + itemsize) * self._count(int(np.prod(shape)))

    def pack(self, sent):
        flat, count = sent.reshape(-1), self._count(sent.size)
        at = np.flatnonzero(flat)[:count]
        if len(at) < count:  # then zeros were among the largest
            at = np.concatenate([at, np.flatnonzero(flat == 0)[: count - len(at)]])
        return np.concatenate([at.astype(np.uint32).view(np.uint8), flat[at].view(np.uint8)])

    def unpack(self, data, out):
        count = self._count(out.size)
        out[...] = 0
        out.reshape(-1)[data[: 4 * count].view(np.uint32)] = data[4 * count :].view(out.dtype)


@dataclass(frozen=True)
class PowerSGD(Compression):
    """Matrices of rank `rank`: a step of the power iteration that finds the best ones, started from the last step's.

    For each gradient matrix V = sum_k V_k (rows, columns), with Q (columns, rank) of the step before:

        P = orthonormal basis of the columns of sum_k V_k Q;   Q_k = V_k^T P;   shard k's part is C(V_k) = P Q_k^T

    so two small matrices travel, (rows + columns) * rank numbers. Vogels, Karimireddy and Jaggi, "PowerSGD: Practical
    Low-Rank Gradient Compression for Distributed Optimization" (2019). Vectors are sent whole. Arrays of more axes
    count as matrices of their first axis by all others.
    """

    rank: int = 2

    def __post_init__(self):
        _require(self.rank, 1, "PowerSGD: rank")

    def compress(self, v, out):
        np.copyto(out, v)  # what has one axis

    def is_low_rank(self, shape: tuple[int, ...]) -> bool:
        """Are arrays of this shape sent as two factors?"""
        return len(shape) > 1 and self.rank * (shape[0] + int(np.prod(shape[1:]))) < int(np.prod(shape))

    def sent_bytes(self, shape, itemsize):
        if not self.is_low_rank(shape):
            return itemsize * int(np.prod(shape))
        return itemsize * self.rank * (shape[0] + int(np.prod(shape[1:])))


# --- strategies -------------------------------------------------------------------------------------------------------


class Strategy:
    """Base of the strategies; `name` is what `Trainer(strategy=...)` and `--strategy` take for its defaults.

    merges_gradients: each step folds the gradients of all shards in shard order, so they can be clipped or skipped.
    lag: how many updates the parameters of a gradient are behind, at most; the gradients of so many steps wait at once.
    """

    name: ClassVar[str]
    merges_gradients: ClassVar[bool] = True
    compression: Compression | None = None
    lag: int = 0

    def span(self, accumulate: int) -> int:
        """How many batches of the loader a step takes, at most."""
        return accumulate

    def batches(self, step: int, accumulate: int) -> int:
        """How many batches of the loader this step takes; the last one of an epoch may have to do with fewer."""
        return self.span(accumulate)

    def trains_apart(self, step: int) -> bool:
        """Does each shard take steps of its own in this one?"""
        return False

    def slices(self, workers: int) -> int:
        """In how many pieces the merge and update is done: a choice of speed alone."""
        return workers


@dataclass(frozen=True)
class AllReduce(Strategy):
    """Synchronous data-parallel SGD: all workers merge, each for its slice. The default.

        theta_{t+1} = update(theta_t, sum_k n_k/n g_k(theta_t)),    the sum in the order of k

    The mean gradient of the batch, however many workers there are, so it converges as one process does; its bits depend
    on the number of shards K alone. On one machine the parameters lie in the arena once, and each worker updates its
    slice. Machines of an MPI job do so, too, if a gradient of each shard is not too much to send (mpi_slices.py); else
    they fold along a chain, in the order of k, and each updates all (mpi_machines.py). It waits, each step, for the
    slowest shard.

    compression: see `Compression`; None sends all.
    order: "exact", or under MPI "fast": each machine adds up its own shards, and the library adds the machines', in an
        order of its choice, so the bits depend on their number. Without compression alone does it change anything.
    """

    compression: Compression | None = None
    order: str = "exact"
    name = "all_reduce"

    def __post_init__(self):
        _check_compression(self)
        if self.order not in ("exact", "fast"):
            raise ConfigError(f"AllReduce: expected order 'exact' or 'fast', got {self.order!r}")


@dataclass(frozen=True)
class ParameterServer(Strategy):
    """One server holds the parameters; workers pull them and push gradients. Li et al., "Scaling Distributed Machine
    Learning with the Parameter Server" (2014).

    staleness=0: the server waits for all shards, then updates: synchronous, the bits of `AllReduce`. All bytes go to
        one place, which is what all-reduce was invented to avoid; here one worker merges while the others wait.
    staleness=s > 0: the gradients of step t come from parameters s updates old,

            theta_{t+1} = update(theta_t, sum_k n_k/n g_k(theta_{max(t-s, 0)})),

        so a worker may be up to s steps ahead of the slowest one, as in stale synchronous parallel (Ho et al., "More
        Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", 2013). There the age is whatever it
        happens to be, up to s; here it is s, and so the bits depend on nothing else; a checkpoint holds the last s + 1
        versions. Wins where shards take unequal time from step
        to step; costs s more copies of parameters and gradients, and a lower rate that still converges (delays act like
        momentum: Mitliagkas et al. 2016).
    staleness=None: no one waits. Each push is an update of its own, in the order of arrival, by whoever has just pushed
        and finds the server free:

            theta <- update(theta, n_k/n g_k(theta as it was when the gradient was begun))

        K pushes a batch add up to its mean gradient for plain SGD; with momentum or Adam it is K times as many updates,
        so take a lower rate. Results differ from run to run. A gradient may mix parameters of several versions.

    compression: with staleness 0 alone.
    """

    staleness: int | None = 0
    compression: Compression | None = None
    name = "parameter_server"

    def __post_init__(self):
        if self.staleness is not None:
            _require(self.staleness, 0, "ParameterServer: staleness")
        _check_compression(self)
        if self.compression is not None and self.staleness != 0:
            raise ConfigError(f"ParameterServer: expected staleness 0 with compression, got {self.staleness}")

    @property
    def merges_gradients(self):  # type: ignore[override]
        return self.staleness is not None

    @property
    def lag(self):  # type: ignore[override]
        return self.staleness or 0

    def slices(self, workers):
        return 1


@dataclass(frozen=True)
class LocalSGD(Strategy):
    """Train apart, then average: each shard takes `every` steps of its own, then all continue from the mean.

        theta_k = theta_t, then `every` times theta_k = update(theta_k, g_k(theta_k))
        theta_{t+1} = 1/K sum_k theta_k

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), as FedAvg;
    Stich, "Local SGD Converges Fast and Communicates Little" (2019). The optimizer's state is averaged, too (Yu, Jin
    and Yang 2019), so that a checkpoint holds one of each. A step is one such round: it takes `every` batches, fewer at
    the end of an epoch. Merging costs 1/every of AllReduce's. Wins on slow networks. Each shard sees 1/K of a batch, so
    its steps are noisier; larger `every` let the copies drift apart and the loss falls more slowly.

    warmup: so many steps are those of AllReduce first, of one batch each: post-local SGD (Lin et al., "Don't Use Large
    Mini-Batches, Use Local SGD", 2020).
    """

    every: int = 8
    warmup: int = 0
    name = "local_sgd"
    merges_gradients = False

    def __post_init__(self):
        _require(self.every, 1, "LocalSGD: every")
        _require(self.warmup, 0, "LocalSGD: warmup")

    def span(self, accumulate):
        return self.every

    def batches(self, step, accumulate):
        return self.every if self.trains_apart(step) else 1

    def trains_apart(self, step):
        return step >= self.warmup


@dataclass(frozen=True)
class Hogwild(Strategy):
    """All workers read and write one set of parameters at any time, without any order or lock.

        theta_i <- update(theta_i, n_k/n g_k(theta)_i)  for each number i, while others do the same

    Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent" (2011), for
    sparse problems, where two updates seldom meet. In a dense network they always meet, and some of each is lost;
    it still converges at a lower rate, and no one waits. Results differ from run to run, and a worker that is killed
    may leave half an update.
    """

    name = "hogwild"
    merges_gradients = False


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "all_reduce": AllReduce,
    "parameter_server": ParameterServer,
    "asynchronous": functools.partial(ParameterServer, staleness=None),
    "local_sgd": LocalSGD,
    "hogwild": Hogwild,
}
COMPRESSIONS: dict[str, Compression | None] = {
    "none": None,
    "float16": Float16(),
    "top_k": TopK(0.05),
    "power_sgd": PowerSGD(2),
}


def strategy_of(value: Any, **options: Any) -> Strategy:
    """A strategy by its name, with those of the options that it has; or itself. ConfigError for anything else."""
    if isinstance(value, Strategy):
        return value
    if isinstance(value, str) and value in STRATEGIES:
        make = STRATEGIES[value]
        parameters = inspect.signature(make).parameters
        return make(**{k: v for k, v in options.items() if k in parameters and k not in getattr(make, "keywords", ())})
    raise ConfigError(f"Trainer: expected strategy to be one of {', '.join(STRATEGIES)}, or an object, got {value!r}")


def options_of(strategy: Strategy) -> dict[str, Any]:
    """What a checkpoint remembers of a strategy: all that its arithmetic depends on."""
    found: dict[str, Any] = {"strategy": strategy.name}
    for field in dataclasses.fields(strategy):  # type: ignore[arg-type]
        value = getattr(strategy, field.name)
        found[field.name] = repr(value) if isinstance(value, Compression) else value
    return found
