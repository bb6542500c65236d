"""The exercises of the book, and how each is checked: a check raises Wrong, which says in words what is wrong."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet.errors import CollectiveError, JitError
from scratchnet.parallel import all_reduce_cost, simulate_all_reduce


class Wrong(Exception):
    """A solution that is not right yet."""


class Exercise(NamedTuple):
    """Its chapter, its title, the function with the blank, how it is checked, and a hint."""

    chapter: int
    title: str
    function: str
    check: Callable[[Callable], None]
    hint: str


def close(a: object, b: np.ndarray) -> bool:
    return np.shape(a) == b.shape and np.allclose(np.asarray(a, np.float64), b, rtol=1e-4, atol=1e-5)


def softsign_vjp(function: Callable) -> None:
    """y = x / (1 + |x|), so its derivative is 1 / (1 + |x|)^2."""
    x, g = np.array([-2.0, -0.5, 0.25, 3.0]), np.array([1.0, 2.0, -3.0, 0.5])
    y, slope = x / (1 + abs(x)), 1 / (1 + abs(x)) ** 2
    tensors = [sn.Tensor(a) for a in (g, y, x)]
    came = function(*tensors)
    if not isinstance(came, sn.Tensor):
        raise Wrong("the result is no tensor; write it with operators and methods of g, y and x, such as x.abs()")
    came = came.numpy()
    if close(came, slope):
        raise Wrong("the derivative is right, but the chain rule is missing: multiply it by g")
    if close(came[x > 0], (g * slope)[x > 0]) and not close(came[x < 0], (g * slope)[x < 0]):
        raise Wrong("right for x > 0 and wrong for x < 0: the derivative of |x| is sign(x)")
    if not close(came, g * slope):
        raise Wrong(f"at x = {x[0]}, g = {g[0]}: expected {(g * slope)[0]:.4f}, got {np.ravel(came)[0]:.4f}")
    op = sn.op(lambda x: x / (1 + abs(x)), function, name="softsign")
    sn.testing.gradcheck(op, [sn.Tensor(x)], order=2)


def unbroadcast(function: Callable) -> None:
    """The sum over the axes along which an array of that shape was repeated."""
    for shape, small in (((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 4), (3, 1)), ((2, 3, 4), (1, 4)), ((3,), ())):
        g = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        ones = np.zeros(small)  # adding g to it repeats it; each repetition sends one gradient back
        expected = np.zeros(small)
        at = np.broadcast_to(np.arange(ones.size).reshape(small), shape)
        np.add.at(expected.reshape(-1), at.reshape(-1), g.reshape(-1))
        came, case = function(g.copy(), small), f"for g of shape {shape} and an input of shape {small}"
        if np.shape(came) != small:
            raise Wrong(
                f"{case}: expected a result of shape {small}, got {np.shape(came)}; keepdims=True keeps an axis"
            )
        if expected.size and close(came, expected * expected.size / g.size) and not close(came, expected):
            raise Wrong(f"{case}: that is the mean; each repetition sends its gradient back, so they add up")
        if not close(came, expected):
            raise Wrong(f"{case}: expected {expected.tolist()}, got {np.asarray(came).tolist()}")


def tiled_product(function: Callable) -> None:
    """out = a @ b, tile by tile, for sizes that are multiples of the tile and such that are not."""
    rng = np.random.default_rng(0)
    for m, k, n, tile in ((8, 8, 8, 4), (8, 8, 10, 4), (9, 8, 8, 4), (8, 11, 8, 4), (3, 2, 5, 4)):
        a, b, out = rng.normal(size=(m, k)), rng.normal(size=(k, n)), np.ones((m, n))
        function(a, b, out, tile)
        case = f"({m}, {k}) @ ({k}, {n}) with tiles of {tile}"
        if close(out, a @ b + 1):
            raise Wrong(f"{case}: out held ones before, and they are still in the sum; set it to 0 first")
        if close(out, a[:, : k // tile * tile] @ b[: k // tile * tile]) and k % tile:
            raise Wrong(f"{case}: the terms beyond the last whole tile of the sum are missing")
        if not close(out, a @ b) and (np.isclose(out, a @ b) | (out == 1) | (out == 0)).all():
            raise Wrong(f"{case}: rows or columns beyond the last whole tile are not computed")
        if not close(out, a @ b):
            raise Wrong(f"{case}: element (0, 0): expected {(a @ b)[0, 0]:.4f}, got {out[0, 0]:.4f}")


def parallel_sum(function: Callable) -> None:
    """A sum whose bits do not depend on the number of threads."""
    rng = np.random.default_rng(0)
    for size in (100_000, 12_345, 1, 0):
        x = rng.normal(size=size).astype(np.float32)
        exact, sums = x.sum(dtype=np.float64), {}
        for threads in (1, 2, 3, 7):
            sums[threads] = np.float32(function(x, threads))
            if abs(sums[threads] - exact) > 1e-4 * max(abs(x).sum(), 1):
                raise Wrong(f"{size} numbers on {threads} threads: expected {exact:.4f}, got {sums[threads]:.4f}")
        other = next((t for t in sums if sums[t].tobytes() != sums[1].tobytes()), None)
        if other is not None:
            raise Wrong(
                f"the bits depend on the number of threads: {size:,} numbers give {sums[1]!r} on 1 and "
                f"{sums[other]!r} on {other}; where a chunk ends must depend on the length of x alone"
            )


def scale_gradients(function: Callable) -> None:
    """Gradients scaled to a joint norm of at most `limit`, in a step that sn.jit can record."""

    def train(jit: bool, limit: float) -> tuple[list[float], np.ndarray]:
        sn.manual_seed(0)
        model = sn.nn.MLP(3, 4, 1)
        optimizer = sn.optim.SGD(model.parameters(), lr=0.0)

        def step(x: sn.Tensor) -> sn.Tensor:
            loss = (model(x) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            function(list(model.parameters()), limit)
            return sum((p.grad * p.grad).sum() for p in model.parameters()) ** 0.5

        run = sn.jit(step) if jit else step
        xs = [np.full((2, 3), k, np.float32) for k in (1, 2, 3, 4, 5)]
        return [run(sn.Tensor(x)).item() for x in xs], np.concatenate(
            [p.grad.numpy().ravel() for p in model.parameters()]
        )

    free, gradient = train(False, 1e30)
    if not np.isfinite(free).all() or max(free) == 0:
        raise Wrong("with a very large limit the gradients are not as they were")
    limit = float(np.median(free))
    norms, clipped = train(False, limit)
    if max(norms) > limit * 1.001:
        raise Wrong(f"the joint norm is {max(norms):.4f}, with a limit of {limit:.4f}")
    if not np.allclose(norms, np.minimum(free, limit), rtol=1e-3):
        raise Wrong("gradients whose norm is below the limit must stay as they are")
    if not np.allclose(clipped, gradient * (limit / free[-1]), rtol=1e-3):
        raise Wrong("the gradients have another direction than before: all of them must be scaled by one number")
    try:
        replayed, _ = train(True, limit)
    except JitError as error:
        raise Wrong(f"sn.jit refuses the step, since it looks at numbers: {error}") from error
    if not np.allclose(replayed, norms, rtol=1e-3):
        raise Wrong("recorded and replayed, the step gives other norms: a decision was made once, when it was recorded")


def ring(function: Callable) -> None:
    """An all-reduce that sends each part of the array once round a ring, and once more."""
    for ranks in (2, 3, 4, 5, 6, 1):
        for length in (ranks * 16, ranks * 16 + 5):
            arrays = [np.arange(length, dtype=np.float64) + 100 * rank for rank in range(ranks)]
            expected, case = sum(arrays), f"{ranks} ranks, {length} numbers"
            try:
                cost = simulate_all_reduce(function, arrays, patience=2.0)
            except CollectiveError as error:
                if isinstance(error.__cause__, NotImplementedError):
                    raise error.__cause__ from None
                raise Wrong(f"{case}: {str(error).partition('but ')[2]}") from error
            wrong = [rank for rank in range(ranks) if not close(arrays[rank], expected)]
            if wrong:
                parts = np.flatnonzero(~np.isclose(arrays[wrong[0]], expected))
                raise Wrong(f"{case}: rank {wrong[0]} has a wrong sum, first at number {parts[0]}")
            least = all_reduce_cost("ring", ranks, 8 * length)
            if cost.bytes > least.bytes + 16 * 8 * ranks:
                raise Wrong(f"{case}: a rank sends {cost.bytes:,.0f} bytes, and a ring {least.bytes:,.0f}; send parts")
            if cost.steps > least.steps:
                raise Wrong(f"{case}: it takes {cost.steps} steps, and a ring {least.steps}; link.exchange is one step")


def local_round(function: Callable) -> None:
    """Each shard takes some steps of its own; then the parameters are averaged."""
    targets, start = [np.array([1.0, -2.0]), np.array([3.0, 0.0]), np.array([-1.0, 5.0])], np.array([10.0, 10.0])
    curvature = (1.0, 0.5, 2.0)

    def gradient(theta: np.ndarray, shard: int) -> np.ndarray:
        return curvature[shard] * (theta - targets[shard])

    def expected(steps: int) -> np.ndarray:
        thetas = [start.copy() for _ in targets]
        for shard, theta in enumerate(thetas):
            for _ in range(steps):
                theta -= 0.1 * gradient(theta, shard)
        return np.mean(thetas, axis=0)

    given = start.copy()
    came = np.asarray(function(given, gradient, 3, 4, 0.1))
    if not np.array_equal(given, start):
        raise Wrong("the parameters that were given are changed; each shard needs a copy of its own")
    together = start.copy()
    for _ in range(4):
        together = together - 0.1 * np.mean([gradient(together, shard) for shard in range(3)], axis=0)
    if close(came, together):
        raise Wrong("that averages gradients after each step, which is all-reduce; here only parameters are averaged")
    if close(came, expected(1)):
        raise Wrong("each shard takes one step; it should take `every` steps before the average")
    if not close(came, expected(4)):
        raise Wrong(f"expected {expected(4).round(4).tolist()}, got {came.round(4).tolist()}")


def take(function: Callable) -> None:
    """Pieces that are each sealed once, whoever dies at which point."""
    for deaths in ({}, {(1, 0): "claimed"}, {(1, 0): "sealed"}, {(1, 0): "claimed", (2, 1): "claimed"}):
        claims, seals, alive = [-1] * 6, [False] * 6, {0, 1, 2}
        taken = dict.fromkeys(alive, 0)
        names = {0: "first", 1: "second"}
        story = " and ".join(f"worker {r} dies with its {names[k]} piece {how}" for (r, k), how in deaths.items())
        story = story or "nobody dies"
        working: dict[int, int] = {}  # the piece that a worker has in hand
        for turn in range(60):
            rank = turn % 3
            if rank not in alive:
                continue
            if rank in working:  # its piece is done, unless it died first
                seals[working.pop(rank)] = True
                continue
            before = list(claims)
            piece = function(claims, list(seals), rank, set(alive))
            if piece is None:
                continue
            if piece not in range(6):
                raise Wrong(f"expected the number of a piece, 0 to 5, or None, got {piece!r}")
            if seals[piece]:
                raise Wrong(f"{story}: worker {rank} takes piece {piece}, which is sealed; that is done for ever")
            if before[piece] in alive:
                raise Wrong(f"{story}: worker {rank} takes piece {piece} from worker {before[piece]}, which is alive")
            if claims[piece] != rank:
                raise Wrong(f"{story}: worker {rank} takes piece {piece} without setting claims[{piece}]")
            working[rank] = piece
            how = deaths.get((rank, taken[rank]))
            taken[rank] += 1
            if how:
                seals[piece] = how == "sealed"
                alive.discard(rank)
                del working[rank]
        if not all(seals):
            raise Wrong(f"{story}: piece {seals.index(False)} is never done; what a dead worker left is free again")


EXERCISES = {
    1: Exercise(
        1, "the derivative of an op (a VJP)", "softsign_vjp", softsign_vjp,
        "For x > 0, y = x / (1 + x). Differentiate this. For x < 0, what changes? Then the chain rule: g times that.",
    ),
    2: Exercise(
        1, "broadcasting backwards", "unbroadcast", unbroadcast,
        "Broadcasting first adds axes in front, then stretches axes of length 1. Undo both by sums, in this order.",
    ),
    3: Exercise(
        2, "a tiled matrix product", "tiled_product", tiled_product,
        "Three loops over tiles; range(0, n, tile) also begins the last, shorter one. Slices may reach past the end.",
    ),
    4: Exercise(
        3, "a sum with the same bits on any number of threads", "parallel_sum", parallel_sum,
        "Cut x into chunks of 1,000, however many threads there are. Threads may do them in any order; pool.map gives "
        "the results in the order of the chunks. Then add up these.",
    ),
    5: Exercise(
        4, "a step that decides without looking", "scale_gradients", scale_gradients,
        "An `if` looks at a number. The factor min(1, limit / norm) needs none: sn.minimum, or .clip(max=1).",
    ),
    6: Exercise(
        5, "a ring all-reduce", "ring", ring,
        "First W - 1 rounds of sums: in round s rank r sends part (r - s - 1) mod W to the next rank, and adds what "
        "comes to part (r - s - 2) mod W. Then part r of rank r is complete; W - 1 rounds more hand these on.",
    ),
    7: Exercise(
        5, "a round of local SGD", "local_round", local_round,
        "A loop over shards, in it a copy of theta, and in it a loop of `every` steps. The mean comes last.",
    ),
    8: Exercise(
        6, "a claim protocol that survives a death", "take", take,
        "Two questions about each piece: is it sealed? And does somebody who is alive have it?",
    ),
}  # fmt: skip
