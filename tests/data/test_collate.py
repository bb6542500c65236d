"""Collate: samples of every kind as batches, sequences filled up, data sets put together; what is refused."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.data import ConcatDataset, DataLoader, TensorDataset, TextInputs, default_collate, gather, pad_sequence
from scratchnet.errors import ConfigError, DataError, DtypeError, IndexOutOfRangeError, ShapeError

POEMS = [{"words": np.arange(n), "title": f"poem {n}", "label": n % 2} for n in (3, 1, 2, 4, 2)]


def padded(samples):
    return {
        "words": pad_sequence([sample["words"] for sample in samples], batch_first=True, padding_value=-1),
        "label": np.array([sample["label"] for sample in samples]),
    }


def test_tuples_dicts_numbers_and_text_are_collated_field_by_field():
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    batch = default_collate([{"x": (ones, 1), "name": "a"}, {"x": (zeros, 2), "name": "b"}])
    x, number = batch["x"]
    assert x.tolist() == [[1, 1], [0, 0]] and x.dtype == np.float32
    assert number.tolist() == [1, 2] and number.dtype == np.int64
    assert batch["name"] == ["a", "b"]


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ShapeError, "at least one sample"),
        ([{"x": 1}, {"y": 1}], ShapeError, r"samples of equal length, got \[\('x',\), \('y',\)\] fields"),
        ([{"x": 1}, 1], ShapeError, "equal length"),
        ([(1, 2), (1,)], ShapeError, r"got \[2, 1\] fields"),
        ([np.ones(2), np.ones(3)], ShapeError, "collate_fn with pad_sequence"),
        ([np.ones(2), np.array([1, np.nan])], DataError, "expected finite numbers"),
        ([object(), object()], DtypeError, "got object"),
        (["a", 1], DtypeError, "expected bool, integers or floats"),
        ("ab", ConfigError, "a list of samples"),
    ],
)  # fmt: skip
def test_what_does_not_collate_is_refused_in_one_line(samples, error, message):
    with pytest.raises(error, match=message) as caught:
        default_collate(samples)
    assert "\n" not in str(caught.value)


def test_dict_samples_come_as_dict_batches_of_tensors_and_text():
    batches = list(DataLoader([{"x": np.float32(i), "name": f"n{i}", "y": i} for i in range(5)], 2))
    assert [batch["name"] for batch in batches] == [["n0", "n1"], ["n2", "n3"], ["n4"]]
    assert all(isinstance(batch[name], sn.Tensor) for batch in batches for name in "xy")
    assert [batch["y"].numpy().tolist() for batch in batches] == [[0, 1], [2, 3], [4]]


def test_nested_samples_come_as_they_are_nested():
    ((x, (y, z)),) = DataLoader([((i, (i + 1, i + 2))) for i in range(3)], 3)
    assert [t.numpy().tolist() for t in (x, y, z)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_a_sequence_is_padded_at_its_end_in_both_orders():
    sequences = [np.array([1, 2, 3]), [4], np.array([5, 6])]
    rows = [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert pad_sequence(sequences, batch_first=True).tolist() == rows
    assert pad_sequence(sequences).tolist() == np.transpose(rows).tolist()
    assert pad_sequence([np.ones((2, 3)), np.ones((1, 3))], True, 7.0)[1].tolist() == [[1, 1, 1], [7, 7, 7]]


@pytest.mark.parametrize("batch_first", [True, False])
def test_padded_tensors_keep_their_gradients(batch_first):
    a, b = sn.Tensor([1.0, 2.0, 3.0], requires_grad=True), sn.Tensor([4.0], requires_grad=True)
    out = pad_sequence([a, b], batch_first, 0.5)
    expected = np.array([[1, 2, 3], [4, 0.5, 0.5]])
    np.testing.assert_array_equal(out.detach().numpy(), expected if batch_first else expected.T)
    (out * out).sum().backward()
    assert a.grad.numpy().tolist() == [2, 4, 6] and b.grad.numpy().tolist() == [8]


@pytest.mark.parametrize(
    ("sequences", "got"),
    [([], "none"), ([1.0], r"\(\)"), ([np.ones((2, 3)), np.ones((2, 4))], r"\(2, 3\), \(2, 4\)")],
    ids=["none", "numbers", "other axes"],
)
def test_sequences_that_cannot_be_padded_are_refused(sequences, got):
    with pytest.raises(ShapeError, match=rf"pad_sequence: expected sequences \(length, ...\) .*, got {got}$"):
        pad_sequence(sequences)


def test_collate_fn_makes_the_batches():
    batches = list(DataLoader(POEMS, 2, collate_fn=padded))
    assert [batch["words"].numpy().tolist() for batch in batches] == [
        [[0, 1, 2], [0, -1, -1]],
        [[0, 1, -1, -1], [0, 1, 2, 3]],
        [[0, 1]],
    ]
    x, y = next(iter(DataLoader(POEMS, 5, collate_fn=lambda samples: [sn.Tensor([1.0]), samples[0]["label"]])))
    assert x.numpy().tolist() == [1.0] and y == 1


def test_collate_fn_that_makes_nan_is_refused():
    with pytest.raises(DataError, match="collate_fn: field 0: row 1: expected finite numbers"):
        list(DataLoader(POEMS, 2, collate_fn=lambda samples: np.array([0.0, np.nan])))


# --- ConcatDataset ----------------------------------------------------------------------------------------------------


def numbered(start, n):
    return TensorDataset(np.arange(start, start + n, dtype=np.float32), np.arange(start, start + n))


def named(classes):
    dataset = numbered(0, 2)
    dataset.classes = classes
    return dataset


def of_words(*words):
    dataset = numbered(0, 2)
    dataset.inputs = TextInputs(words, length=1)
    return dataset


def test_data_sets_one_after_the_other_are_one():
    whole = ConcatDataset([numbered(0, 3), numbered(3, 0), numbered(3, 4), [(np.float32(7), 7)]])
    assert len(whole) == 8
    x, y = gather(whole, [7, 0, 5, 2, 3, 0])
    assert x.tolist() == y.tolist() == [7, 0, 5, 2, 3, 0]
    assert [int(y) for _, y in whole] == list(range(8))
    assert whole[-1][1] == 7 and [len(field) for field in gather(whole, [])] == [0, 0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConcatDataset([]), ConfigError, "at least one data set"),
        (lambda: ConcatDataset([3]), ConfigError, "a data set with len"),
        (lambda: ConcatDataset([numbered(0, 2), [(1.0,)]])[:], ShapeError, "data sets of equal fields"),
        (lambda: ConcatDataset([numbered(0, 2), [(np.ones(2, np.float32), 1)]])[:], ShapeError, "equal rows"),
        (lambda: ConcatDataset([numbered(0, 2)])[2], IndexOutOfRangeError, "from -2 to 1, got 2"),
        (
            lambda: ConcatDataset([named(["a", "b"]), named(["b", "a"])]),
            ConfigError,
            r"classes, got \['a', 'b'\] and \['b",
        ),
        (
            lambda: ConcatDataset([numbered(0, 2), of_words("a", "b"), of_words("b", "a")]),
            ConfigError,
            r"vocabulary, got \['a', 'b'\] and \['b', 'a'\]; read the second with like=the first",
        ),
    ],
    ids=["none", "a number", "fields", "rows", "index", "classes", "words"],
)
def test_data_sets_that_do_not_go_together_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(("dtype", "value"), [("uint8", -1), ("uint8", 256), ("int64", 0.5)])
def test_padding_that_the_dtype_cannot_hold_is_refused(dtype, value):
    sequences = [np.ones(2, dtype), np.ones(1, dtype)]
    for given in (sequences, [sn.tensor(x) for x in sequences]):
        with pytest.raises(ConfigError, match=f"expected a padding_value that {dtype} can hold"):
            pad_sequence(given, padding_value=value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_raises_StopIteration_does_not_end_the_epoch_in_silence(workers):
    class Ends:
        def __len__(self):
            return 8

        def __getitem__(self, i):
            if i == 5:
                raise StopIteration
            return np.ones(2, np.float32), i

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(DataLoader(Ends(), 2, num_workers=workers))
