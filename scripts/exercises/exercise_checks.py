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


def serve(function: Callable) -> None:
    """Gradients that are exactly so many updates old."""
    start, curvature = np.array([4.0, -2.0, 1.0]), np.array([1.0, 0.5, 3.0])

    def gradient(theta: np.ndarray) -> np.ndarray:
        return curvature * theta

    def expected(updates: int, staleness: int) -> np.ndarray:
        versions = [start]
        for t in range(updates):
            versions.append(versions[t] - 0.1 * gradient(versions[max(t - staleness, 0)]))
        return versions[-1]

    for updates, staleness in ((5, 0), (1, 3), (3, 3), (12, 3), (12, 1)):
        given, case = start.copy(), f"{updates} updates with a staleness of {staleness}"
        came = np.asarray(function(given, gradient, updates, staleness, 0.1))
        if not np.array_equal(given, start):
            raise Wrong(f"{case}: the parameters that were given are changed; an update needs an array of its own")
        if close(came, expected(updates, staleness)):
            continue
        if staleness and close(came, expected(updates, 0)):
            raise Wrong(f"{case}: these gradients are fresh; an old version that is changed in place is no old version")
        for other in (staleness - 1, staleness + 1):
            if other >= 0 and close(came, expected(updates, other)):
                raise Wrong(f"{case}: these gradients are {other} updates old")
        raise Wrong(f"{case}: expected {expected(updates, staleness).round(4).tolist()}, got {came.round(4).tolist()}")


def schedule(function: Callable) -> None:
    """Plans of all stages that fit together, in the shortest time and with the least memory."""
    for stages, microbatches in ((1, 2), (2, 4), (4, 8), (3, 2), (4, 4)):
        plans, case = function(stages, microbatches), f"{stages} stages, {microbatches} micro-batches"
        work = {(kind, m) for kind in "FB" for m in range(microbatches)}
        if len(plans) != stages:
            raise Wrong(f"{case}: expected a list for each of the {stages} stages, got {len(plans)}")
        plans = [[tuple(piece) for piece in plan] for plan in plans]
        for k, plan in enumerate(plans):
            wrong = sorted(work.symmetric_difference(plan)) or sorted(
                {piece for piece in plan if plan.count(piece) > 1}
            )
            if wrong:
                raise Wrong(f"{case}: stage {k} has to do {wrong[0]} once, and does it {plan.count(wrong[0])} times")
        took = run_pipeline(plans, case)
        for k, plan in enumerate(plans):
            kept = list(np.cumsum([1 if kind == "F" else -1 for kind, _ in plan]))
            if max(kept) > min(stages - k, microbatches):
                raise Wrong(
                    f"{case}: stage {k} keeps {max(kept)} micro-batches at a time, and {min(stages - k, microbatches)} "
                    "are enough; a backward pass that can be done comes before the next forward pass"
                )
        if took > 2 * (microbatches + stages - 1):
            raise Wrong(
                f"{case}: it takes {took} units of time, and {2 * (microbatches + stages - 1)} are enough; stages wait "
                "where they could do the forward pass of the next micro-batch"
            )


def run_pipeline(plans: list[list[tuple[str, int]]], case: str) -> int:
    """The units of time that stages need, each piece of work one; raises Wrong if they wait for each other."""
    done: dict[tuple[int, str, int], int] = {}  # when each piece is done
    waiting, free = [list(plan) for plan in plans], [0] * len(plans)
    while any(waiting):
        before = len(done)
        for k, plan in enumerate(waiting):
            while plan:
                kind, m = plan[0]
                needs = [(k, "F", m)] if kind == "B" else []
                needs += [(k + 1, "B", m)] if kind == "B" and k + 1 < len(plans) else []
                needs += [(k - 1, "F", m)] if kind == "F" and k else []
                if any(need not in done for need in needs):
                    break
                done[k, kind, m] = free[k] = max([free[k], *(done[need] for need in needs)]) + 1
                plan.pop(0)
        if len(done) == before:
            k = next(k for k, plan in enumerate(waiting) if plan)
            raise Wrong(f"{case}: all stages wait for ever; stage {k} waits to do {waiting[k][0]}")
    return max(free)


REASONS = {  # what the interpreter says: what that means here
    "without a barrier": "one thread reads what another writes; let all threads meet in between: cuda.syncthreads()",
    "before it is written": "each thread writes its word of `shared`, beyond the end of x a 0, and all threads meet "
    "before another one reads it: cuda.syncthreads()",
    "of a global array of": "the last block has more threads than there are numbers left; compare with x.size",
    "at different places": "some threads come to a barrier and others do not; a barrier belongs outside of an `if`",
    "touches too": "several blocks touch one word of `out`; block b writes out[b] alone",
}


def block_sums(kernel: Callable) -> None:
    """A sum by the threads of a block, with no race, and the same bits in whichever order threads come."""
    rng = np.random.default_rng(0)
    for size in (64, 50, 1, 96):
        x, blocks, sums = rng.normal(size=size).astype(np.float32), -(-size // 32), {}
        expected = np.add.reduceat(x.astype(np.float64), range(0, size, 32))
        for order in ("ascending", "descending"):
            sums[order] = np.full(blocks, np.nan, np.float32)
            try:
                sn.testing.find_races(kernel, (blocks, 32), x, sums[order], order=order)
            except sn.ContractError as error:
                meaning = next((f" ({why})" for what, why in REASONS.items() if what in str(error)), "")
                raise Wrong(f"{size} numbers: {error}{meaning}") from error
            if np.isnan(sums[order]).any():
                raise Wrong(f"{size} numbers: out[{np.isnan(sums[order]).argmax()}] is not written, or only added to")
            if not np.allclose(sums[order], expected, atol=1e-4):
                raise Wrong(f"{size} numbers: expected sums {expected.round(4).tolist()}, got {sums[order].tolist()}")
        if sums["ascending"].tobytes() != sums["descending"].tobytes():
            raise Wrong(
                f"{size} numbers: the bits depend on the order in which threads come; fix the order of additions"
            )


def compress(function: Callable) -> None:
    """The largest elements are sent, the others stay in the residual."""
    rng = np.random.default_rng(0)
    residual, sent = np.array([0.0, 0, 0, 0, 3, 0, 0, 0]), np.zeros(8)
    gradients = [np.array([0.0, -5, 1, 2, 0, 0, 0, 0.1])]  # first one for which the sign and the residual matter
    total = residual.copy()
    for step, gradient in enumerate(gradients + [rng.normal(size=8) for _ in range(20)]):
        given, total = (gradient.copy(), residual.copy()), total + gradient
        both, case = gradient + residual, f"step {step + 1}"
        indices, values, after = function(*given, 2)
        indices, values, after = np.asarray(indices), np.asarray(values), np.asarray(after)
        if not (np.array_equal(given[0], gradient) and np.array_equal(given[1], residual)):
            raise Wrong(f"{case}: the arrays that were given are changed")
        if len(indices) != 2 or len(values) != 2 or len(after) != 8:
            raise Wrong(f"{case}: expected 2 elements and a residual of 8, got {len(indices)} and {len(after)}")
        if set(indices) == set(np.argsort(-both)[:2]) != set(np.argsort(-abs(both))[:2]):
            raise Wrong(f"{case}: these are the largest elements; -5 is larger in absolute value than 3")
        if set(indices) == set(np.argsort(-abs(gradient))[:2]) != set(np.argsort(-abs(both))[:2]):
            raise Wrong(f"{case}: add the residual before you choose, or an element that is always small is never sent")
        if set(indices) != set(np.argsort(-abs(both))[:2]):
            raise Wrong(
                f"{case}: {sorted(indices.tolist())} are not the two elements that are largest in absolute value"
            )
        if close(values, abs(both[indices])) and not close(values, both[indices]):
            raise Wrong(f"{case}: the signs are lost; only the choice is by absolute value")
        sent[indices] += values
        residual = after
        if not close(sent + residual, total):
            lost = abs(total - sent - residual).argmax()
            raise Wrong(
                f"{case}: of element {lost} {total[lost]:.3f} came, and {sent[lost]:.3f} were sent or "
                f"{residual[lost]:.3f} are kept; what is sent and what stays must add up to what came"
            )


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
    9: Exercise(
        5, "a parameter server with stale gradients", "serve", serve,
        "Keep a list of versions. The gradient belongs to the oldest that is kept, the update to the newest. `-=` "
        "would change a version that somebody still computes with.",
    ),
    10: Exercise(
        7, "the schedule of a pipeline", "schedule", schedule,
        "The last stage does F0 B0 F1 B1 ...; the one before it F0 F1 B0 F2 B1 ...: it runs one forward pass further "
        "ahead. How far ahead is stage k?",
    ),
    11: Exercise(
        9, "a sum on a GPU, in the interpreter", "block_sums", block_sums,
        "Write to `shared`, meet, then: step = 16; while step > 0: threads below step add shared[own + step] to "
        "theirs; all meet; step //= 2. In the end thread 0 has the sum.",
    ),
    12: Exercise(
        8, "compression that forgets nothing", "compress", compress,
        "total = gradient + residual is a new array. Send its largest elements, set them to 0 there, and what is left "
        "is the new residual.",
    ),
}  # fmt: skip
