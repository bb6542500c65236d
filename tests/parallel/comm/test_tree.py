"""The tree over shards: against a definition of its own, and that all engines add along it."""

import math
import operator

import numpy as np
import pytest
from linear import BATCH, START, X, Y, squares, train
from sabotage import chain, compact

import scratchnet as sn
from scratchnet.parallel import AllReduce, LocalSGD, ParameterServer, PowerSGD, TopK
from scratchnet.parallel.comm.tree import subtrees, tree_sum
from scratchnet.parallel.shards import weighted_mean

COUNTS = [*range(1, 10), 16, 33]


def oracle(leaves):
    """The sum of a list, whose empty places are None: halved at the largest power of two below its length."""
    if len(leaves) == 1:
        return leaves[0]
    cut = 2 ** math.ceil(math.log2(len(leaves)) - 1)
    left, right = oracle(leaves[:cut]), oracle(leaves[cut:])
    if left is None or right is None:
        return right if left is None else left
    return left + right


def brackets(left, right):
    return f"({left}+{right})"


@pytest.mark.parametrize("count", COUNTS)
def test_shards_are_added_along_the_tree_of_the_definition(count):
    values = np.random.default_rng(count).standard_normal((count, 50)).astype(np.float32)
    assert tree_sum(range(count), values.__getitem__, np.add).tobytes() == oracle(list(values)).tobytes()


def test_the_tree_of_six_shards():
    assert tree_sum(range(6), str, brackets) == "(((0+1)+(2+3))+(4+5))"
    assert tree_sum([0, 2, 3, 5], str, brackets) == "((0+(2+3))+5)"


@pytest.mark.parametrize("count", COUNTS)
def test_shards_without_samples_leave_their_places_empty(count):
    rng = np.random.default_rng(count)
    values = rng.standard_normal((count, 50)).astype(np.float32)
    for _ in range(20):
        full = sorted(rng.choice(count, rng.integers(1, count + 1), replace=False).tolist())
        expected = oracle([values[k] if k in full else None for k in range(count)])
        assert tree_sum(full, values.__getitem__, np.add).tobytes() == expected.tobytes()


@pytest.mark.parametrize("count", COUNTS)
def test_few_sums_wait_at_the_same_time(count):
    alive = [0]

    def leaf(k):
        alive[0] += 1
        assert alive[0] <= 1 + math.ceil(math.log2(count))

    def add(left, right):
        alive[0] -= 1

    tree_sum(range(count), leaf, add)
    assert alive == [1]


@pytest.mark.parametrize("count", COUNTS)
def test_a_run_of_shards_is_few_subtrees_whose_sums_are_those_of_the_whole(count):
    values = np.random.default_rng(count).standard_normal(count)
    for start in range(count):
        for stop in range(start, count + 1):
            trees = list(subtrees(range(start, stop), count))
            assert [k for tree in trees for k in tree] == list(range(start, stop))
            assert len(trees) <= max(1, 2 * math.log2(count))
            rest = [range(k, k + 1) for k in range(count) if not start <= k < stop]
            sums = {tree.start: tree_sum(tree, values.__getitem__, operator.add) for tree in trees + rest}
            assert tree_sum(sorted(sums), sums.__getitem__, operator.add) == oracle(list(values))
    assert [*subtrees(range(4, 7), 7)] == [range(4, 7)] and len([*subtrees(range(8), 8)]) == 1
    assert [*subtrees(range(3, 8), 16)] == [range(3, 4), range(4, 8)]


# --- engines ----------------------------------------------------------------------------------------------------------


def descended(shards, rows):
    """The weight after an epoch of SGD on the first rows, with the sums of the oracle."""
    weight = sn.nn.Parameter(START.copy())
    optimizer = sn.optim.SGD([weight], 0.1)
    for begin in range(0, rows, BATCH):
        x, y = X[begin : min(begin + BATCH, rows)], Y[begin : min(begin + BATCH, rows)]
        leaves = []
        for k in range(shards):
            part = slice(k * len(x) // shards, (k + 1) * len(x) // shards)
            optimizer.zero_grad()
            if n := len(x[part]):
                loss = squares(sn.tensor(x[part]) @ weight, sn.tensor(y[part]))
                loss.backward(np.full((), n / len(x), loss.dtype))
            leaves.append(weight.grad.numpy() if n else None)
        weight.grad = sn.tensor(oracle(leaves))
        optimizer.step()
    return weight.detach().numpy()


ENGINES = {  # options, and numbers of shards: but for one program, at most as many as samples in a batch
    "one program": ({}, (*range(1, 10), 16)),
    "piece by piece": ({"nonfinite": "skip"}, range(1, 9)),
    "pool": ({"workers": 2}, (5, 8)),
}


@pytest.mark.parametrize(("options", "numbers"), ENGINES.values(), ids=ENGINES)
def test_every_engine_adds_along_the_tree(options, numbers):
    for shards in numbers:
        rows = BATCH + 5  # the last batch has 5 samples
        found, _ = train(AllReduce(), shards=shards, epochs=1, x=X[:rows], y=Y[:rows], **options)
        assert found.tobytes() == descended(shards, rows).tobytes(), shards


FOLDS = {  # all that adds up over shards
    "gradients": {"strategy": AllReduce()},
    "norm": {"strategy": AllReduce(), "clip_norm": 1.0},
    "accumulated": {"strategy": AllReduce(), "accumulate": 2},
    "averages": {"strategy": LocalSGD(2)},
    "delayed": {"strategy": ParameterServer(1)},
    "compressed": {"strategy": AllReduce(TopK(0.7))},
    "low rank": {"strategy": AllReduce(PowerSGD(1))},
}


NEVER_EMPTY = "accumulated", "averages"  # the shards of two batches


@pytest.mark.parametrize(
    ("name", "fault"), [(name, f) for name in FOLDS for f in (chain, compact) if f is chain or name not in NEVER_EMPTY]
)
def test_another_order_of_additions_is_seen_in_the_bits(name, fault, monkeypatch):
    """A chain, and shards that move up where one has no samples; the last batch has 6."""
    case = {**FOLDS[name], "shards": 8, "epochs": 3, "momentum": 0.9, "x": X[: BATCH + 6], "y": Y[: BATCH + 6]}
    expected = train(**case)[0].tobytes()
    fault(monkeypatch.setattr)
    assert train(**case)[0].tobytes() != expected


def test_running_statistics_are_added_along_the_tree(monkeypatch):
    parts = {k: sn.tensor(np.float32([value])) for k, value in enumerate((1e8, 1.0, -1e8, 1.0, 3.0))}
    found = weighted_mean(parts, [1.0] * 5)
    assert found.item() == oracle([part.numpy() for part in parts.values()]).item()
    chain(monkeypatch.setattr)
    assert weighted_mean(parts, [1.0] * 5).item() != found.item()
