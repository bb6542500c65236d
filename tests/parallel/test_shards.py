"""Random numbers of others: what the user's code draws from `random` and `np.random` is the shard's, wherever it runs.

Truth: the run of one process, and the generators themselves.
"""

import random

import numpy as np
import pytest
from residue import no_residue

import scratchnet as sn
from scratchnet.parallel.shards import COMPUTING, DRAWS, READING, first_stream, seed_others, streams_kept

ROWS, FEATURES, CLASSES, BATCH = 41, 5, 3, 12  # the last batch has 5 samples
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((ROWS, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, ROWS)


class Noisy(sn.data.Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return X[index] + np.float32(np.random.standard_normal() + random.random()), Y[index]  # noqa: NPY002


def noisy_loss(output, target):
    return sn.nn.functional.cross_entropy(output, target) * (1 + random.random() + np.random.rand())  # noqa: NPY002


def weights(workers, dataset=None, loss=None, seed=0, **options):
    sn.manual_seed(0)
    model = sn.nn.Linear(FEATURES, CLASSES)
    trainer = sn.Trainer(
        model, sn.optim.SGD(model.parameters(), 0.1), loss or sn.nn.CrossEntropyLoss(), workers=workers, shards=4,
        seed=seed, progress=False, **options,
    )  # fmt: skip
    trainer.fit(sn.data.DataLoader(dataset or Noisy(), BATCH, shuffle=True), epochs=2)
    return model.weight.detach().numpy().tobytes()


CASES = {
    "a data set": {},
    "a data set and a loss": {"jit": False, "loss": noisy_loss},
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_drawn_does_not_depend_on_the_number_of_workers(case):
    with no_residue():
        expected = weights(1, **CASES[case])
        assert weights(2, **CASES[case]) == expected
        assert weights(1, seed=1, **CASES[case]) != expected, "the seed of the Trainer enters"


@pytest.mark.parametrize("options", [{}, {"strategy": sn.parallel.LocalSGD(2)}, {"accumulate": 2}])
def test_a_run_leaves_the_streams_of_its_caller_alone(options):
    np.random.seed(1)  # noqa: NPY002
    np.random.standard_normal()  # noqa: NPY002 - of a pair, whose other half is kept
    random.seed(1)
    expected = np.random.RandomState(1).standard_normal(4), random.Random(1).random()
    weights(1, **options)
    assert np.array_equal(np.random.standard_normal(3), expected[0][1:])  # noqa: NPY002
    assert random.random() == expected[1]


def test_streams_of_a_generator_that_takes_no_seed_are_kept():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        with streams_kept():
            seed_others(0, 5, READING)
        assert np.random.rand() == np.random.RandomState(np.random.PCG64(3)).rand()  # noqa: NPY002
    finally:
        np.random.set_bit_generator(before)


def test_each_use_of_a_shard_has_a_stream_of_its_own():
    with streams_kept():
        drawn = []
        for key in [(0, 0, READING), (0, 0, COMPUTING), (0, 1, READING), (1, 0, READING), (-1, 2**63, READING)]:
            seed_others(*key)
            drawn.append((np.random.rand(), random.random()))  # noqa: NPY002
        assert len(set(drawn)) == 5
        seed_others(0, 0, READING)
        assert (np.random.rand(), random.random()) == drawn[0]  # noqa: NPY002


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_no_two_shards_of_a_run_draw_from_one_stream(shards):
    """Each has DRAWS streams of its own, whatever its batch."""
    firsts = sorted(first_stream(batch, k, shards) for batch in range(5) for k in range(shards))
    assert firsts == [i * DRAWS for i in range(5 * shards)]


class Skipping(sn.nn.Module):
    """Stochastic depth, by Python's own random numbers: a layer takes part in some shards and not in others."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = sn.nn.Linear(FEATURES, CLASSES), sn.nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.always(x) + self.sometimes(x) if random.random() < 0.5 else self.always(x)


@pytest.mark.parametrize("options", [{"workers": 2}, {"clip_norm": 1.0}, {"strategy": sn.parallel.LocalSGD(2)}])
def test_a_parameter_that_takes_part_in_some_shards_alone_is_refused_by_name_and_never_left_untrained(options):
    def change_of_the_layer(seed, **options):
        sn.manual_seed(0)
        model = Skipping()
        before = model.sometimes.weight.detach().numpy().copy()
        trainer = sn.Trainer(
            model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss(), shards=4, seed=seed, jit=False,
            progress=False, **options,
        )  # fmt: skip
        trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(X, Y), BATCH))
        return abs(model.sometimes.weight.detach().numpy() - before).max()

    refusals = []
    for seed in (0, 1):  # in the first shard the layer takes no part, and takes part
        assert change_of_the_layer(seed) > 0, "one program takes what comes, as a loop of one's own does"
        with pytest.raises(sn.ScratchnetError, match=r"'sometimes.weight', 'sometimes.bias' in each shard") as refused:
            change_of_the_layer(seed, **options)
        refusals.append(str(refused.value))
    assert "expected no gradient" in refusals[0] and "expected a gradient" in refusals[1]
