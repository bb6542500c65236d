"""Samplers: orders that (seed, epoch) alone decides, with the frequencies that their names promise."""

import numpy as np
import pytest

from scratchnet.data import (
    BucketSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from scratchnet.errors import ConfigError, DataError, IndexOutOfRangeError, ShapeError

DATA = TensorDataset(np.arange(10.0, dtype=np.float32), np.arange(10))
LENGTHS = np.random.default_rng(0).integers(1, 1000, 2345)
SAMPLERS = {
    "sequential": lambda seed=0: SequentialSampler(DATA),
    "random": lambda seed=0: RandomSampler(DATA, seed=seed),
    "replacement": lambda seed=0: RandomSampler(DATA, replacement=True, num_samples=40, seed=seed),
    "subset": lambda seed=0: SubsetRandomSampler([7, 1, 3, 4, 8, 0], seed),
    "weighted": lambda seed=0: WeightedRandomSampler(np.arange(10), 30, seed=seed),
    "bucket": lambda seed=0: BucketSampler(LENGTHS[:99], 3, seed),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_order_depends_on_seed_and_epoch_alone(name):
    make = SAMPLERS[name]
    used = make()
    first, second = list(used), list(used)
    assert first == make().indices(0).tolist() and second == make().indices(1).tolist()
    assert len(first) == len(make())
    if name != "sequential":
        assert len({tuple(make(seed).indices(epoch)) for seed in (0, 5, 5 + 2**32) for epoch in (0, 5)}) == 6


def test_a_random_sampler_is_what_shuffle_does():
    shuffled = DataLoader(DATA, shuffle=True, seed=3)
    assert RandomSampler(DATA, seed=3).indices(4).tolist() == shuffled.indices(4).tolist()
    assert sorted(RandomSampler(DATA).indices(0)) == list(range(10))
    assert len(set(RandomSampler(DATA, num_samples=4).indices(0))) == 4


def test_weights_are_frequencies():
    drawn = WeightedRandomSampler([1, 0, 2, 5], 80_000).indices(0)
    counts = np.bincount(drawn, minlength=4)
    shares = np.array([1, 0, 2, 5]) / 8
    assert (np.abs(counts - 80_000 * shares) <= 5 * np.sqrt(80_000 * shares * (1 - shares))).all()
    alone = WeightedRandomSampler([1, 0, 2, 5], 3, replacement=False).indices(0)
    assert sorted(alone) == [0, 2, 3]


def test_a_subset_gives_its_samples_once():
    assert sorted(SAMPLERS["subset"]().indices(2)) == [0, 1, 3, 4, 7, 8]


def test_buckets_hold_samples_of_like_length():
    order = BucketSampler(LENGTHS, 10).indices(0)
    assert sorted(order) == list(range(len(LENGTHS)))
    batches = [LENGTHS[order[k : k + 10]] for k in range(0, 2340, 10)]
    widest = max(np.ptp(batch) for batch in batches[:-1])
    assert widest < 100  # drawn at random, a batch spans about 800
    firsts = [batch[0] for batch in batches]
    assert np.corrcoef(firsts[:-1], firsts[1:])[0, 1] < 0.3  # and batches of one length do not follow each other


def test_a_loader_takes_a_sampler_or_positions():
    loader = DataLoader(DATA, 4, sampler=[5, 5, 2, 0, 9])
    assert len(loader) == 2
    assert [y.numpy().tolist() for _, y in loader] == [[5, 5, 2, 0], [9]]
    weighted = DataLoader(DATA, 8, sampler=SAMPLERS["weighted"](), drop_last=True)
    assert len(weighted) == 3 and weighted.indices(1).tolist() == SAMPLERS["weighted"]().indices(1).tolist()


class Broken(Sampler):
    def __len__(self):
        return 3

    def indices(self, epoch):
        return np.arange(2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DataLoader(DATA, sampler=[10]).indices(0), IndexOutOfRangeError, "from 0 to 9, got 10"),
        (lambda: DataLoader(DATA, sampler=Broken()).indices(0), ShapeError, "Broken: expected 3 positions"),
        (lambda: DataLoader(DATA, shuffle=True, sampler=[1]), ConfigError, "shuffle or a sampler, got both"),
        (
            lambda: DataLoader(DATA, sampler=iter([1])),
            ConfigError,
            "subclass of sn.data.Sampler writes indices",
        ),
        (lambda: RandomSampler(DATA, num_samples=11), ConfigError, "from 0 to 10, got 11"),
        (lambda: RandomSampler([], replacement=True, num_samples=1), ConfigError, "an empty one"),
        (lambda: WeightedRandomSampler([1, -1], 1), DataError, "finite weights >= 0"),
        (lambda: WeightedRandomSampler([0, 0], 1), DataError, "some above 0"),
        (lambda: WeightedRandomSampler([[1]], 1), ShapeError, r"weights \(n,\)"),
        (lambda: WeightedRandomSampler([1, 0], 2, replacement=False), ConfigError, "at most 1 samples"),
        (lambda: BucketSampler([[1]], 2), ShapeError, r"lengths \(n,\)"),
    ],
)
def test_what_gives_no_order_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_repr_names_the_order():
    a, b = WeightedRandomSampler([1, 2], 2), WeightedRandomSampler([2, 1], 2)
    assert repr(a) == repr(WeightedRandomSampler([1, 2], 2)) != repr(b)
    list(a)
    assert repr(a) == repr(WeightedRandomSampler([1, 2], 2))
