"""Data sets: any array in, the same numbers out as float32 or int64; splits, subsets, maps; what is refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scratchnet.data import Dataset, Mapped, Subset, TensorDataset, clean, gather, random_split
from scratchnet.data.rows import take_scaled
from scratchnet.errors import ConfigError, DataError, DtypeError, IndexOutOfRangeError, ShapeError

LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "list": lambda a: a.tolist(),
}
NUMBERS = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
OUT = {"f2": np.float32, "f4": np.float32, "f8": np.float64}  # all others: int64


def some(dtype, shape=(7, 3)):
    return np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, shape).astype(dtype)


class Squares(Dataset):
    """A user's data set: sample i is ((i, i * i), i)."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return np.array([index, index**2], np.float32), index


# --- TensorDataset: values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_arrays_of_every_type_and_layout_come_out_as_their_numbers(dtype, layout):
    array = some(dtype)
    (rows,) = TensorDataset(LAYOUTS[layout](array)).gather([6, 0, 0, 3])
    if layout != "list":
        assert rows.dtype == OUT.get(dtype, np.int64) and rows.dtype.isnative
    np.testing.assert_array_equal(rows, array[[6, 0, 0, 3]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_scaled_features_of_every_type_and_layout_are_float32(dtype, layout):
    array = some(dtype, (7, 2, 3))
    (rows,) = TensorDataset(LAYOUTS[layout](array), scale=0.1).gather([6, 0, 0, 3])
    assert rows.dtype == np.float32 and rows.shape == (4, 2, 3)
    np.testing.assert_array_equal(rows, array[[6, 0, 0, 3]].astype(np.float32) * np.float32(0.1))


def test_all_256_pixels_scale_into_0_to_1():
    (rows,) = TensorDataset(np.arange(256, dtype=np.uint8), scale=1 / 255).gather(np.arange(256))
    assert rows[0] == 0.0 and rows[255] == 1.0
    np.testing.assert_allclose(rows, np.arange(256) / 255, rtol=2**-23)


@settings(deadline=None, max_examples=60)
@given(
    array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=33)),
    data=st.data(),
)
def test_a_gather_is_what_numpy_indexing_gives(array, data):
    positions = data.draw(st.lists(st.integers(0, len(array) - 1), max_size=40)) if len(array) else []
    dataset = TensorDataset(array, np.arange(len(array)), scale=1 / 255)
    x, y = dataset.gather(positions)
    index = np.array(positions, np.int64)
    np.testing.assert_array_equal(x, array[index].astype(np.float32) * np.float32(1 / 255))
    np.testing.assert_array_equal(y, index)


def test_the_kernel_is_one_line_of_numpy():
    rows, index = some("u1", (129, 33)), np.random.default_rng(1).integers(0, 129, 65)
    out = take_scaled(rows, index, np.float32(1 / 255))
    np.testing.assert_array_equal(out, rows[index].astype(np.float32) * np.float32(1 / 255))


def test_images_stay_uint8_and_uncopied_in_memory():
    images = some("u1", (7, 5))
    dataset = TensorDataset(images, scale=1 / 255)
    assert dataset.arrays[0].dtype == np.uint8 and np.shares_memory(dataset.arrays[0], images)


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f4"])
def test_a_batch_is_fresh_memory(dtype, scale):
    array = some(dtype)
    before = array.copy()
    (rows,) = TensorDataset(array, scale=scale).gather(range(7))
    rows[:] = 77
    np.testing.assert_array_equal(array, before)


def test_a_sample_is_a_tuple_of_rows_and_a_slice_a_tuple_of_batches():
    dataset = TensorDataset(some("f4"), np.arange(7))
    assert len(dataset) == 7
    x, y = dataset[-1]
    np.testing.assert_array_equal(x, some("f4")[6])
    assert y == 6
    x, y = dataset[5:2:-1]
    np.testing.assert_array_equal(x, some("f4")[5:2:-1])
    assert y.tolist() == [5, 4, 3]
    assert [int(y) for _, y in dataset] == list(range(7))


@pytest.mark.parametrize("index", [7, -8])
def test_a_sample_outside_the_data_set_is_an_index_error(index):
    with pytest.raises(IndexOutOfRangeError, match=f"from -7 to 6, got {index}"):
        TensorDataset(some("f4"))[index]


@pytest.mark.parametrize("positions", [[0, 7], [-1], np.array([2**63], np.uint64)])
@pytest.mark.parametrize("dataset", [TensorDataset(some("u1"), scale=1.0), list(range(7))], ids=["own", "list"])
def test_positions_outside_the_data_set_never_reach_memory(dataset, positions):
    with pytest.raises(IndexOutOfRangeError, match="expected positions from 0 to 6, got"):
        gather(dataset, positions)


@pytest.mark.parametrize("positions", [[0.5], [True], [[0, 1]], ["a"], 3])
def test_positions_that_are_no_list_of_integers_are_refused(positions):
    with pytest.raises(DtypeError, match="expected a list of integer positions, got"):
        TensorDataset(some("u1")).gather(positions)


def test_a_data_set_survives_a_pickle():
    dataset = random_split(TensorDataset(some("u1"), scale=0.5), [3, 4])[1]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[:][0], dataset[:][0])


# --- TensorDataset: what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "c8", "M8[s]", "m8[s]", "f4,f4", np.longdouble])
def test_an_array_that_is_no_numbers_is_refused(dtype):
    with pytest.raises(DtypeError, match=r"TensorDataset: array 1: expected bool, integers or floats .* got"):
        TensorDataset(some("f4"), np.zeros(7, dtype))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_first_row_that_is_not_finite_is_named(dtype, bad):
    array = some(dtype, (9, 2, 2))
    array[[4, 6], 1, 0] = bad
    with pytest.raises(DataError, match="array 1: row 4: expected finite numbers, found NaN or Inf"):
        TensorDataset(some("u1", (9,)), array)


def test_huge_but_finite_numbers_are_taken():
    huge = np.full((3, 400), np.finfo(np.float32).max, np.float32)  # their sum is not finite
    np.testing.assert_array_equal(TensorDataset(huge)[:][0], huge)


REFUSED = {
    "no arrays": ((), {}, ShapeError, "at least one array, got none"),
    "other lengths": ((some("f4"), some("i8", (6,))), {}, ShapeError, "equal length, got lengths 7, 6"),
    "a number": ((3.0,), {}, ShapeError, "at least one dimension, got a single number"),
    "masked rows": (([np.ma.arange(2), np.ma.array([1, 2], mask=[0, 1])],), {}, DtypeError, "without masked elements"),
    "a ragged list": (([[1, 2], [3]],), {}, ShapeError, "expected rows of one shape"),
    "too large for int64": ((np.array([2**63], np.uint64),), {}, DataError, f"fit in int64, found {2**63}"),
    "scale NaN": ((some("u1"),), {"scale": float("nan")}, ConfigError, "scale: expected a finite number, got nan"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_make_no_data_set_are_refused(case):
    arrays, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as caught:
        TensorDataset(*arrays, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_an_empty_data_set_is_one(scale):
    dataset = TensorDataset(np.zeros((0, 3), np.uint8), np.zeros(0, np.int64), scale=scale)
    assert len(dataset) == 0 and list(dataset) == []
    x, y = dataset.gather([])
    assert x.shape == (0, 3) and y.shape == (0,)


# --- clean ----------------------------------------------------------------------------------------------------------


def test_clean_drops_the_rows_with_nan_or_inf_from_all_arrays():
    x, y, n = some("f4"), some("f8", (7,)), np.arange(7)
    x[2, 1], y[5] = np.nan, np.inf
    cleaned = clean(x, y, n)
    for got, array in zip(cleaned, (x, y, n), strict=True):
        np.testing.assert_array_equal(got, array[[0, 1, 3, 4, 6]])
    assert len(TensorDataset(*cleaned)) == 5


def test_clean_keeps_what_is_clean():
    x, n = clean(some("f4"), np.arange(7))
    np.testing.assert_array_equal(x, some("f4"))
    assert n.tolist() == list(range(7))


# --- other people's data sets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [Squares(), [Squares()[i] for i in range(10)]], ids=["Dataset", "list"])
def test_the_samples_of_any_data_set_are_stacked(dataset):
    x, y = gather(dataset, [3, 1, 1])
    np.testing.assert_array_equal(x, np.array([[3, 9], [1, 1], [1, 1]], np.float32))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(y, [3, 1, 1])
    assert y.dtype == np.int64


def test_bare_samples_are_fields_of_one():
    (x,) = gather([np.float32(0.5), np.float32(1.5)], [1, 0])
    np.testing.assert_array_equal(x, [1.5, 0.5])


BAD_SAMPLES = {
    "of other shapes": ([np.zeros(2), np.zeros(3)], ShapeError, "field 0 of the samples: expected rows of one shape"),
    "of other lengths": ([(1, 2), (1,)], ShapeError, r"samples of equal length, got \[2, 1\] fields"),
    "objects": (
        [(object(), 1), (object(), 2)],
        DtypeError,
        "field 0 of the samples: expected bool, integers",
    ),
    "with NaN": ([0.0, float("nan")], DataError, "sample 1: expected finite numbers"),
    "masked": ([np.ma.arange(2), np.ma.array([1, 2], mask=[0, 1])], DtypeError, "without masked elements, got"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_samples_that_do_not_stack_are_refused(case):
    samples, error, message = BAD_SAMPLES[case]
    with pytest.raises(error, match=message):
        gather(samples, [0, 1])


def test_tables_of_pandas_whose_brackets_take_names_are_no_samples():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    for table in (pandas.DataFrame(np.eye(2)), pandas.Series([5, 6], index=[1, 0])):
        with pytest.raises(ConfigError, match=r"len\(\) and \[i\], got a .*; TensorDataset\(features, labels\) makes"):
            gather(table, [0, 1])
    assert TensorDataset(table)[:][0].tolist() == [5, 6]


def test_a_data_set_without_its_two_methods_cannot_be_made():
    class Nothing(Dataset):
        pass

    with pytest.raises(TypeError, match="__getitem__"):
        Nothing()


# --- subsets and maps -----------------------------------------------------------------------------------------------


def test_a_subset_of_a_subset_holds_the_right_samples():
    base = TensorDataset(np.arange(100, 110))
    subset = Subset(Subset(base, [9, 7, 5, 3]), [3, 0])
    assert subset[:][0].tolist() == [103, 109]
    assert int(subset[-1][0]) == 109
    with pytest.raises(IndexOutOfRangeError):
        Subset(base, [10])


def test_map_changes_the_features_and_not_the_labels():
    dataset = TensorDataset(some("f4"), np.arange(7)).map(lambda x: x + 1).map(lambda x: x * 2)
    x, y = dataset.gather([2, 5])
    np.testing.assert_array_equal(x, (some("f4")[[2, 5]] + 1) * 2)
    assert y.tolist() == [2, 5] and len(dataset) == 7
    np.testing.assert_array_equal(Mapped(Squares(), np.negative)[3][0], [-3, -9])


def test_a_map_that_loses_rows_is_refused():
    with pytest.raises(ShapeError, match=r"expected 7 rows from .* got 6"):
        TensorDataset(some("f4")).map(lambda x: x[1:])[:]


# --- random_split ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5), seed=st.integers(0, 2**64))
def test_the_parts_of_a_split_hold_every_sample_once(lengths, seed):
    dataset = TensorDataset(np.arange(sum(lengths)))
    parts = random_split(dataset, lengths, seed=seed)
    assert [len(part) for part in parts] == lengths
    assert sorted(value for part in parts for value in part[:][0]) == list(range(sum(lengths)))


@pytest.mark.parametrize(
    "n, fractions, lengths",
    [
        (10, [0.8, 0.2], [8, 2]),
        (10, [1.0], [10]),
        (11, [0.5, 0.5], [6, 5]),
        (10, [1 / 3, 1 / 3, 1 / 3], [4, 3, 3]),
        (1, [0.5, 0.5], [1, 0]),
        (0, [0.5, 0.5], [0, 0]),
    ],
)
def test_fractions_round_down_and_the_rest_goes_to_the_first_parts(n, fractions, lengths):
    assert [len(part) for part in random_split(TensorDataset(np.arange(n)), fractions)] == lengths


def test_a_split_depends_on_its_seed_alone():
    def first(seed):
        return random_split(TensorDataset(np.arange(50)), [0.5, 0.5], seed=seed)[0].positions.tolist()

    np.random.seed(1)  # noqa: NPY002 the global generator must not matter
    assert first(3) == first(3)
    assert first(3) != first(4)
    assert first(3) != sorted(first(3))


@pytest.mark.parametrize("lengths", [[], [3, 3], [0.5, 0.4], [-1, 8], [float("nan"), 1], [0.5, 0.6], [7.5, -0.5]])
def test_lengths_that_do_not_add_up_are_refused(lengths):
    with pytest.raises(ConfigError, match="random_split: expected lengths"):
        random_split(TensorDataset(np.arange(7)), lengths)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_a_split_with_a_bad_seed_is_refused(seed):
    with pytest.raises(ConfigError, match="random_split: seed: expected an integer >= 0"):
        random_split(TensorDataset(np.arange(7)), [7], seed=seed)


def test_a_data_set_says_what_it_holds():
    images = TensorDataset(some("u1", (7, 2, 3)), np.arange(7), scale=1 / 255)
    assert repr(images) == "TensorDataset(7 samples: float32 (2, 3), int64 ())"
    images.classes = ("cat", "dog")
    assert repr(images).endswith("int64 (), classes cat, dog)")
    assert repr(Subset([1, 2, 3], [0, 1])) == "Subset(2 samples of a list)"
    assert repr(images.map(np.negative)) == f"Mapped(7 samples of {images!r})"
