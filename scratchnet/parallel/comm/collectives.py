"""The classic all-reduce algorithms side by side, each with its cost.

An algorithm is a function of a `Link` (this rank's connections to the others), a flat array, which it reduces in place,
and `combine(low, high, out)`, which writes the sum, or the larger, of two arrays to out. It works for any number of
ranks W and any number of elements, and leaves the same bits on every rank: of two partial results, that of the lower
rank is the first operand, and a part that is finished on one rank is copied to the others, never computed again.

`ALGORITHMS` is the table. Hockney's cost model (Parallel Computing 20, 1994) prices an all-reduce at
steps * latency + bytes / bandwidth; `cost(W, n)` gives these figures for an array of n bytes, and a test counts them on
a virtual transport. The last two rows need memory that all ranks share; arena_kernels.py holds them.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from ... import checks

DTYPES = ("float32", "float64", "int32", "int64")
UFUNCS = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}  # a mean is divided in the end
Combine = Callable[[np.ndarray, np.ndarray, np.ndarray], object]  # (low, high, out); out may be one of the two


class Link(Protocol):
    """This rank's end of the connections between `size` ranks. Messages of a pair arrive in the order of sending."""

    rank: int
    size: int

    def send(self, array: np.ndarray, receiver: int) -> None: ...

    def receive(self, array: np.ndarray, sender: int) -> None: ...

    def exchange(self, outgoing: np.ndarray, receiver: int, incoming: np.ndarray, sender: int) -> None:
        """Send and receive at once: one step, where a send and then a receive could wait for each other for ever."""


class Cost(NamedTuple):
    """What an all-reduce costs: messages of all ranks together, the most bytes that a rank sends, and steps.

    Steps follow one another: a rank sends and receives at most one message in each. In shared memory, where there are
    no messages, `bytes` are those that a rank writes for others to read, and `steps` are barriers.
    """

    messages: int
    bytes: float
    steps: int


def naive(link: Link, x: np.ndarray, combine: Combine) -> None:
    """Rank 0 receives all arrays one after the other, folds them in rank order, and sends the result to each.

    2 (W - 1) messages in 2 (W - 1) steps, and rank 0 sends n (W - 1) bytes. It wins nowhere: the others are measured
    against it.
    """
    if link.rank:
        link.send(x, 0)
        link.receive(x, 0)
        return
    incoming = np.empty_like(x)
    for rank in range(1, link.size):
        link.receive(incoming, rank)
        combine(x, incoming, x)
    for rank in range(1, link.size):
        link.send(x, rank)


def tree(link: Link, x: np.ndarray, combine: Combine) -> None:
    """A binomial tree: pairs, then pairs of pairs, ... fold towards rank 0, and the result returns the same way.

    2 (W - 1) messages in 2 ceil(log2 W) steps; a rank sends up to n ceil(log2 W) bytes. Better than naive from 4 ranks
    on; recursive doubling needs half the steps. Thakur, Rabenseifner and Gropp, "Optimization of Collective
    Communication Operations in MPICH" (2005), section 4.
    """
    incoming, distance = np.empty_like(x), 1
    while distance < link.size and link.rank % (2 * distance) == 0:
        if link.rank + distance < link.size:
            link.receive(incoming, link.rank + distance)
            combine(x, incoming, x)
        distance *= 2
    if link.rank:  # `distance` is now this rank's lowest bit: its way to the parent
        link.send(x, link.rank - distance)
        link.receive(x, link.rank - distance)
    while distance > 1:
        distance //= 2
        if link.rank + distance < link.size:
            link.send(x, link.rank + distance)


def ring(link: Link, x: np.ndarray, combine: Combine) -> None:
    """Each part of the array travels once round a ring, growing into its sum, and once more as the finished sum.

    Each rank sends 2 n (W - 1) / W bytes, the least possible, in 2 (W - 1) steps: best for large arrays on few ranks,
    or where only neighbours have fast links. The fold of part r begins at rank r + 1, so parts have different orders of
    addition, but the same ones in every run. Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters
    of Workstations" (2009).
    """
    parts, incoming = _parts(x, link.size), np.empty_like(x)
    after, before = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for step in range(link.size - 1):
        part = parts[(link.rank - step - 2) % link.size]
        link.exchange(parts[(link.rank - step - 1) % link.size], after, incoming[: part.size], before)
        combine(incoming[: part.size], part, part)
    for step in range(link.size - 1):  # now part r of rank r is finished
        outgoing, part = parts[(link.rank - step) % link.size], parts[(link.rank - step - 1) % link.size]
        link.exchange(outgoing, after, part, before)


def recursive_doubling(link: Link, x: np.ndarray, combine: Combine) -> None:
    """Exchange all with the neighbour, then with the rank 2 away, then 4 away, ...; each sum has twice as many ranks.

    ceil(log2 W) steps, the fewest possible, of n bytes: best for small arrays. Thakur et al. (2005), section 4.5.
    If W is no power of two, see `_with_power_of_two`.
    """
    _with_power_of_two(link, x, combine, _doubling)


def rabenseifner(link: Link, x: np.ndarray, combine: Combine) -> None:
    """Recursive halving, then doubling: half of the array to the partner W/2 away, a quarter W/4 away, ...; and back.

    2 log2 W steps and 2 n (W - 1) / W bytes a rank: as few bytes as the ring in far fewer steps, so best for large
    arrays on many ranks. Rabenseifner, "Optimization of Collective Reduction Operations" (2004). If W is no power of
    two, see `_with_power_of_two`.
    """
    _with_power_of_two(link, x, combine, _halving_and_doubling)


def _parts(x: np.ndarray, count: int) -> list[np.ndarray]:
    """x cut into parts of nearly equal size, which begin on multiples of 16 elements: no two share a cache line."""
    ends = [min(x.size, -(-(x.size * k // count) // 16) * 16) for k in range(count + 1)]
    return [x[lo:hi] for lo, hi in itertools.pairwise(ends)]


def _with_power_of_two(link: Link, x: np.ndarray, combine: Combine, reduce: Callable) -> None:
    """Run `reduce` among the largest 2^k ranks. Before, the even rank of each of the first W - 2^k pairs adds its array
    to that of its neighbour; afterwards it gets the result: 2 steps and n bytes more.
    """
    power = 1 << (link.size.bit_length() - 1)
    pairs = link.size - power
    if link.rank < 2 * pairs and link.rank % 2 == 0:
        link.send(x, link.rank + 1)
        link.receive(x, link.rank + 1)
        return
    incoming = np.empty_like(x)
    if link.rank < 2 * pairs:
        link.receive(incoming, link.rank - 1)
        combine(incoming, x, x)
    ranks = [*range(1, 2 * pairs, 2), *range(2 * pairs, link.size)]
    reduce(link, x, combine, ranks, incoming)
    if link.rank < 2 * pairs:
        link.send(x, link.rank - 1)


def _fold_pair(me: int, peer: int, x: np.ndarray, incoming: np.ndarray, combine: Combine) -> None:
    low, high = (x, incoming) if me < peer else (incoming, x)
    combine(low, high, x)


def _doubling(link: Link, x: np.ndarray, combine: Combine, ranks: list[int], incoming: np.ndarray) -> None:
    me, distance = ranks.index(link.rank), 1
    while distance < len(ranks):
        peer = me ^ distance
        link.exchange(x, ranks[peer], incoming, ranks[peer])
        _fold_pair(me, peer, x, incoming, combine)
        distance *= 2


def _halving_and_doubling(link: Link, x: np.ndarray, combine: Combine, ranks: list[int], incoming: np.ndarray) -> None:
    me, parts = ranks.index(link.rank), _parts(x, len(ranks))
    starts = [0, *np.cumsum([part.size for part in parts])]

    def block(rank: int, width: int) -> np.ndarray:
        """The aligned block of `width` parts that holds the part of `rank`."""
        first = rank // width * width
        return x[starts[first] : starts[first + width]]

    distance = len(ranks) // 2
    while distance:
        peer = me ^ distance
        mine = block(me, distance)
        link.exchange(block(peer, distance), ranks[peer], incoming[: mine.size], ranks[peer])
        _fold_pair(me, peer, mine, incoming[: mine.size], combine)
        distance //= 2
    distance = 1
    while distance < len(ranks):
        peer = me ^ distance
        link.exchange(block(me, distance), ranks[peer], block(peer, distance), ranks[peer])
        distance *= 2


# --- the table --------------------------------------------------------------------------------------------------------


class Algorithm(NamedTuple):
    """The function (None: in shared memory by a kernel), and the cost of n bytes on W ranks."""

    run: Callable[[Link, np.ndarray, Combine], None] | None
    cost: Callable[[int, int], Cost]


def _log2(ranks: int) -> int:
    """ceil(log2 ranks)"""
    return (ranks - 1).bit_length()


def _powered(ranks: int, n: int, cost: Callable[[int, int], Cost]) -> Cost:
    """The cost among the largest 2^k ranks, and that of `_with_power_of_two` for the others."""
    power = 1 << (ranks.bit_length() - 1)
    messages, most, steps = cost(power, n)
    if power == ranks:
        return Cost(messages, most, steps)
    return Cost(messages + 2 * (ranks - power), most + n, steps + 2)


ALGORITHMS = {
    "naive": Algorithm(naive, lambda w, n: Cost(2 * (w - 1), (w - 1) * n, 2 * (w - 1))),
    "tree": Algorithm(tree, lambda w, n: Cost(2 * (w - 1), _log2(w) * n, 2 * _log2(w))),
    "ring": Algorithm(ring, lambda w, n: Cost(2 * w * (w - 1), 2 * n * (w - 1) / w, 2 * (w - 1))),
    "recursive_doubling": Algorithm(
        recursive_doubling, lambda w, n: _powered(w, n, lambda p, n: Cost(p * _log2(p), n * _log2(p), _log2(p)))
    ),
    "rabenseifner": Algorithm(
        rabenseifner,
        lambda w, n: _powered(w, n, lambda p, n: Cost(2 * p * _log2(p), 2 * n * (p - 1) / p, 2 * _log2(p))),
    ),
    "one_shot": Algorithm(None, lambda w, n: Cost(0, n, 1)),
    "arena": Algorithm(None, lambda w, n: Cost(0, n, 2)),
}

# `auto` takes the first row whose bytes the array does not exceed. Measured by scripts/bench/bench.py --sections
# collectives; where there is memory to share, no algorithm that sends messages was faster than these.
AUTO = ((32768, "one_shot"), (float("inf"), "arena"))


def algorithm_of(name: str, nbytes: int = 0) -> str:
    """The algorithm that `name` stands for ("auto" depends on the size). Raises ConfigError for an unknown one."""
    if isinstance(name, str) and name == "auto":
        return next(algorithm for most, algorithm in AUTO if nbytes <= most)
    if not isinstance(name, str) or name not in ALGORITHMS:
        checks.refuse("all_reduce", f"algorithm to be auto, {', '.join(ALGORITHMS)}", name)
    return name


def all_reduce_cost(algorithm: str, ranks: int, nbytes: int) -> Cost:
    """What an all-reduce of an array of so many bytes costs: messages, the most bytes that a rank sends, steps.

    algorithm: a key of ALGORITHMS. Hockney's model makes a time of it: steps * latency + bytes / bandwidth.
    Raises ConfigError for an unknown algorithm, ranks < 1 or nbytes < 0.
    """
    name = checks.one_of("all_reduce_cost: algorithm", algorithm, ALGORITHMS)
    ranks = checks.integer("all_reduce_cost: ranks", ranks, 1)
    return ALGORITHMS[name].cost(ranks, checks.integer("all_reduce_cost: nbytes", nbytes, 0))


def reduce_by_messages(run: Callable[[Link, np.ndarray, Combine], None], link: Link, x: np.ndarray, op: str) -> None:
    """x = the sum, mean, max or min over all ranks, by an algorithm above, with NumPy's arithmetic."""
    ufunc = UFUNCS[op]
    run(link, x, lambda low, high, out: ufunc(low, high, out=out))
    if op == "mean":
        np.divide(x, link.size, out=x)
