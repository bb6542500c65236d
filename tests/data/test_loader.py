"""DataLoader: every sample once an epoch, in an order that (seed, epoch) alone decides, from any batch on."""

import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet import Tensor
from scratchnet.data import DataLoader, TensorDataset
from scratchnet.data.loader import _read_ahead
from scratchnet.errors import ConfigError, DtypeError

sizes = st.tuples(st.integers(0, 70), st.integers(1, 80))  # samples, batch size
seeds, epochs = st.integers(0, 2**70), st.integers(0, 2**40)


def dataset(n):
    return TensorDataset(np.arange(3 * n, dtype=np.uint8).reshape(n, 3), np.arange(n), scale=1 / 255)


def labels(batches):
    return [y.tolist() for _, y in batches]


@settings(deadline=None, max_examples=100)
@given(sizes, st.booleans(), st.booleans(), seeds, epochs)
def test_every_sample_comes_once_an_epoch_in_batches_of_the_right_size(size, shuffle, drop_last, seed, epoch):
    n, batch_size = size
    loader = DataLoader(dataset(n), batch_size, shuffle, drop_last, seed)
    batches = labels(loader.batches(epoch))
    flat = [label for batch in batches for label in batch]
    whole, rest = divmod(n, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * whole + [rest] * (rest > 0 and not drop_last)
    assert len(loader) == len(batches)
    seen = sorted(flat)
    if drop_last:
        assert len(set(seen)) == len(seen) == whole * batch_size
    else:
        assert seen == list(range(n))
    assert shuffle or flat == list(range(len(seen)))


@settings(deadline=None, max_examples=60)
@given(sizes, st.booleans(), seeds, epochs, st.data())
def test_an_epoch_can_start_at_any_batch(size, shuffle, seed, epoch, data):
    loader = DataLoader(dataset(size[0]), size[1], shuffle, seed=seed)
    start = data.draw(st.integers(0, len(loader)))
    assert labels(loader.batches(epoch, start)) == labels(loader.batches(epoch))[start:]
    assert [i.tolist() for i in loader.batch_indices(epoch, start)] == labels(loader.batches(epoch, start))


def test_starting_late_computes_no_earlier_batch():
    class Watched(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    asked = []
    assert labels(DataLoader(Watched((i, i) for i in range(10)), 3).batches(0, start=2)) == [[6, 7, 8], [9]]
    assert asked == [6, 7, 8, 9]


def test_features_and_labels_stay_together():
    for x, y in DataLoader(dataset(50), 7, shuffle=True).batches(0):
        np.testing.assert_allclose(x, np.stack([3 * y, 3 * y + 1, 3 * y + 2], axis=1) / 255, rtol=1e-6)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return DataLoader(dataset(40), 7, shuffle=True, seed=seed).indices(epoch).tolist()

    used = DataLoader(dataset(40), 7, shuffle=True, seed=3)
    labels(used.batches(0))
    np.random.seed(5)  # noqa: NPY002 the global generator must not matter
    assert used.indices(1).tolist() == order(3, 1) == DataLoader(dataset(40), 9, True, True, 3).indices(1).tolist()
    orders = [order(seed, epoch) for seed in (0, 1, 2, 5, 5 + 2**32) for epoch in (0, 1, 2, 5)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_order_of_an_epoch_is_pinned():
    """A change here breaks the resuming of runs that older versions began."""
    assert DataLoader(dataset(10), 1, shuffle=True, seed=7).indices(2).tolist() == [1, 8, 7, 0, 9, 3, 6, 2, 4, 5]


def test_shuffling_is_uniform():
    counts = np.zeros((5, 5))
    loader = DataLoader(dataset(5), 1, shuffle=True)
    for epoch in range(2000):
        counts[np.arange(5), loader.indices(epoch)] += 1
    assert np.abs(counts / 2000 - 0.2).max() < 0.045  # 5 standard deviations of a fair draw


def test_iterating_gives_tensors_and_moves_on_to_the_next_epoch():
    loader = DataLoader(dataset(10), 4, shuffle=True)
    first, second = list(loader), list(loader)
    loader.set_epoch(1)
    again, third = list(loader), list(loader)
    x, y = first[0]
    assert isinstance(x, Tensor) and isinstance(y, Tensor)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((4, 3), np.float32, (4,), np.int64)

    def numbers(epoch):
        return [y.numpy().tolist() for _, y in epoch]

    for epoch, tensors in enumerate([first, second, again, third]):
        assert numbers(tensors) == labels(loader.batches([0, 1, 1, 2][epoch]))


def test_two_iterators_at_once_do_not_disturb_each_other():
    loader = DataLoader(dataset(10), 3, shuffle=True)
    pairs = list(zip(loader, loader, strict=True))
    assert [y.numpy().tolist() for (_, y), _ in pairs] == labels(loader.batches(0))
    assert [y.numpy().tolist() for _, (_, y) in pairs] == labels(loader.batches(1))


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None, True])
def test_a_bad_batch_size_is_refused(value):
    with pytest.raises(ConfigError, match="DataLoader: batch_size: expected an integer >= 1, got"):
        DataLoader(dataset(3), value)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda loader: DataLoader(loader.dataset, seed=-1), "seed: expected an integer >= 0, got -1"),
        (lambda loader: loader.set_epoch(-1), "epoch: expected an integer >= 0, got -1"),
        (lambda loader: loader.batches(1.5), "epoch: expected an integer >= 0, got 1.5"),
        (lambda loader: loader.batches(0, -1), "start: expected an integer >= 0, got -1"),
        (lambda loader: loader.batches(0, 4), "start: expected a batch from 0 to 3, got 4"),
    ],
)
def test_arguments_outside_their_range_are_refused_at_the_call(call, message):
    with pytest.raises(ConfigError, match=message):
        call(DataLoader(dataset(9), 3))


def test_a_numpy_integer_is_an_integer():
    assert len(DataLoader(dataset(9), np.int32(3), seed=np.uint8(3))) == 3


# --- threads, types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_that_read_ahead_change_nothing(threads):
    plain = DataLoader(dataset(50), 7, shuffle=True)
    ahead = DataLoader(dataset(50), 7, shuffle=True, num_workers=threads)
    assert labels(ahead.batches(2)) == labels(plain.batches(2))
    assert labels(ahead.batches(2, 3)) == labels(plain.batches(2))[3:]


def test_a_loader_reads_ahead_no_more_than_it_says_and_leaves_no_thread():
    class Watched(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    asked, before = [], threading.active_count()
    batches = DataLoader(Watched((i, i) for i in range(100)), 1, num_workers=2).batches(0)
    assert next(batches)[1].tolist() == [0]
    batches.close()
    assert max(asked) <= 5  # 2 a thread ahead of the first
    assert threading.active_count() == before
    taken = iter(range(100))
    assert next(_read_ahead(str, taken, 2)) == "0"
    assert next(taken) == 5


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(DtypeError, match="expected bool, integers or floats"):
        list(DataLoader([object()] * 3, num_workers=2))


def test_float64_comes_as_float32_with_one_sentence_that_names_the_cast():
    double = TensorDataset(np.ones((4, 2)), np.arange(4))
    loader = DataLoader(double, 2)
    with pytest.warns(
        UserWarning, match=r"field 0 .* is float64 and comes as float32.*dtype='float64' keeps it"
    ) as said:
        found = [x.dtype for _ in range(2) for x, _ in loader]
    assert set(found) == {np.dtype(np.float32)} and len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in ("float64", "float32"):
            assert [x.dtype for x, _ in DataLoader(double, 4, dtype=dtype)] == [np.dtype(dtype)]
        assert [x.dtype for x, _ in DataLoader(dataset(3), 3)] == [np.dtype(np.float32)]
    with pytest.raises(ConfigError, match="expected float32, float64 or None, got int64"):
        DataLoader(double, dtype=np.int64)
