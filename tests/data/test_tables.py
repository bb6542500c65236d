"""Tables: what stands in a CSV file comes out as numbers and classes; what is no good is named by its line."""

import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from messages import refused

import scratchnet as sn
from scratchnet.data import from_csv, from_npz, random_split, ratings_csv
from scratchnet.errors import ConfigError, DataError, DataNotFoundError, ShapeError

FLOWERS = "length,width,color,species\n1.5,2,red,setosa\n3,4.25,blue,virginica\n\n5,6,red,setosa\n-7,8e1,red,setosa\n"


@pytest.fixture
def write(tmp_path):
    """Writes a file, as bytes or as text in UTF-8; returns its path."""

    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_numbers_stay_text_becomes_one_feature_a_category_and_the_target_classes(write):
    dataset = from_csv(write(FLOWERS), target="species")
    x, y = dataset[:]
    assert dataset.feature_names == ("length", "width", "color=blue", "color=red")
    assert x.dtype == np.float32
    assert x.tolist() == [[1.5, 2, 0, 1], [3, 4.25, 1, 0], [5, 6, 0, 1], [-7, 80, 0, 1]]
    assert dataset.classes == ("setosa", "virginica") and y.tolist() == [0, 1, 0, 0] and y.dtype == np.int64


def test_a_name_of_digits_with_an_underscore_is_no_number(write):
    names = from_csv(write("flat,y\n1_2,0\n13_1,1\n1_2,1\n"), target="y")
    assert names.feature_names == ("flat=13_1", "flat=1_2") and names.arrays[0].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert from_csv(write("x,y\n1,1_2\n2,1_3\n"), target="y").classes == ("1_2", "1_3")
    with pytest.raises(DataError, match="line 3: column 'x': expected a number, found '1_000'"):
        from_csv(write("x,y\n5,0\n1_000,1\n"), target="y")


def test_a_class_with_several_signs_is_a_text(write):
    assert from_csv(write("x,y\n1,--1\n2,+-2\n"), target="y").classes == ("+-2", "--1")


@pytest.mark.parametrize("spellings", [("1", "+1"), ("01", "1"), ("1.0", "1")])
def test_a_number_that_is_spelled_in_two_ways_is_not_two_classes(write, spellings):
    first, second = spellings
    with pytest.raises(DataError, match=r"line [23]: column 'y': expected one spelling of each number, such as '"):
        from_csv(write(f"x,y\n1,{first}\n2,{second}\n3,2\n"), target="y", classes=True)


def test_a_view_knows_what_its_data_set_knows(write):
    dataset = from_csv(write(FLOWERS), target="species")
    part = random_split(dataset, [2, 2])[0].map(sn.data.Standardize.fit(dataset))
    assert part.classes == dataset.classes and part.feature_names == dataset.feature_names
    assert part.inputs is dataset.inputs


def test_whole_numbers_are_classes_in_the_order_of_numbers_and_others_are_values(write):
    path = write("x,label,value\n1,10,0.5\n2,9,1e3\n3,10,2\n")
    labels = from_csv(path, "label", features=["x"])
    assert labels.classes == ("9", "10") and labels[:][1].tolist() == [1, 0, 1]
    values = from_csv(path, "value", features=["x"])
    assert values.classes is None and values[:][1].tolist() == [[0.5], [1000], [2]] and values[:][1].dtype == np.float32
    assert from_csv(path, "label", features=["x"], classes=False)[:][1].tolist() == [[10], [9], [10]]
    assert from_csv(path, "value", features=["x"], classes=True).classes == ("0.5", "1e3", "2")
    (x,) = from_csv(path)[:]
    assert x.tolist() == [[1, 10, 0.5], [2, 9, 1000], [3, 10, 2]]


def test_the_test_file_has_the_columns_categories_and_classes_of_the_training(write):
    train = from_csv(write(FLOWERS), target="species")
    again = "note,species,color,width,length\nx,virginica,red,1,2\n"
    x, y = from_csv(write(again, "test.csv"), target="species", like=random_split(train, [1, 3])[1])[:]
    assert x.tolist() == [[2, 1, 0, 1]] and y.tolist() == [1]
    values = from_csv(write("x,y\n1,0.5\n2,1.5\n"), target="y")
    assert from_csv(write("x,y\n1,3\n"), target="y", like=values)[:][1].tolist() == [[3]]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (FLOWERS.replace(",", ";"), {"delimiter": ";"}),
        (FLOWERS.replace(",", "\t"), {"delimiter": "\t"}),
        (FLOWERS.replace("\n", "\r\n"), {}),
        ("\ufeff" + FLOWERS, {}),
        (FLOWERS.encode("utf-16"), {"encoding": "utf-16"}),
        (FLOWERS.replace("red", '"red"').replace(",", ", "), {}),
        (FLOWERS.partition("\n")[2], {"names": ["length", "width", "color", "species"]}),
    ],
    ids=["semicolon", "tab", "CRLF", "BOM", "utf-16", "quotes and spaces", "names"],
)
def test_files_of_every_dialect_read_alike(write, content, options):
    expected, found = from_csv(write(FLOWERS), "species"), from_csv(write(content, "other.csv"), "species", **options)
    assert found.feature_names == expected.feature_names and found.classes == expected.classes
    np.testing.assert_array_equal(found[:][0], expected[:][0])


def test_rows_without_a_value_are_dropped_if_asked(write):
    path = write("a,b,y\n1,2,0\nNA,2,1\n3,,0\n4,5,1\n6,7,?\n")
    x, y = from_csv(path, "y", missing="drop")[:]
    assert x.tolist() == [[1, 2], [4, 5]] and y.tolist() == [0, 1]
    assert from_csv(path, "y", features=["a"], missing="drop")[:][0].tolist() == [[1], [3], [4]]


BAD = {  # content, options, what the line says
    "empty file": ("", {}, "an empty file"),
    "names alone": ("a,y\n", {}, "at least one row of cells"),
    "NaN": ("a,y\n1,0\nNaN,1\n", {}, "line 3: column 'a': expected a value, found 'NaN'; missing='drop'"),
    "empty cell": ("a,y\n1,0\n2,\n", {}, "line 3: column 'y': expected a value, found ''"),
    "infinite": ("a,y\n1,0\ninf,1\n", {}, "line 3: column 'a': expected a finite number of float32, found 'inf'"),
    "too large": ("a,y\n1,0\n1e39,1\n", {}, "line 3: column 'a': expected a finite number"),
    "text among numbers": ("a,y\n1,0\n\n2x,1\n", {}, "line 4: column 'a': expected a number, found '2x'"),
    "long row": ("a,y\n1,0\n1,2,3\n", {}, "line 3: expected 2 cells, as in the first line, found 3"),
    "short row": ("a,b,y\n1,0,1\n1,2\n", {}, "line 3: expected 3 cells, as in the first line, found 2"),
    "quoted line break": ('a,y\n"1\n",0\n2,x\n3,4,5\n', {}, "line 5: expected 2 cells"),
    "open quote": ('a,y\n"1,0\n', {}, "expected a row of CSV"),
    "latin-1": (
        "a,y\n1,caf\u00e9\n".encode("latin-1"), {},
        "line 2: expected text in utf-8, found byte e9; encoding='cp1252'",
    ),
    "utf-16": ("a,y\n1,0\n".encode("utf-16"), {}, "line 1: expected text in utf-8, found byte ff; encoding='utf-16'"),
    "target alone": ("y\n1\n0\n", {}, "expected a column to learn from beside 'y', found none"),
    "no column": ("a,y\n1,0\n", {"features": ["b"]}, "expected a column 'b', found 'a', 'y'"),
    "no target": ("a,z\n1,0\n", {}, "expected a column 'y', found 'a', 'z'"),
    "delimiter": ("a;y\n1;0\n", {}, "expected a column 'y', found 'a;y'; delimiter=';'?"),
    "duplicate": ("a,a,y\n1,2,0\n", {}, "columns of different names, found 'a' twice"),
    "index of pandas": (",a,y\n0,1,0\n1,2,1\n", {}, "expected a name for each column"),
    "no header": ("1,0\n2,1\n", {}, "line 1: expected names of columns, found numbers; names="),
    "one class": ("a,y\n1,cat\n2,cat\n", {}, "column 'y': expected at least two classes, found only 'cat'"),
    "text as ids": (
        "a,y\n" + "".join(f"id{i},{i % 2}\n" for i in range(101)), {},
        "column 'a': expected numbers or at most 100 categories, found 101 texts, such as 'id0'",
    ),
    "decimal comma": (
        "a;y\n" + "".join(f"{i},5;{i % 2}\n" for i in range(101)), {"delimiter": ";"},
        "found 101 texts, such as '0,5'",
    ),
    "class that is new": (
        "a,y\n1,dog\n", {"like": "a,y\n1,cat\n2,cow\n"},
        "line 2: column 'y': expected a class of the training (cat, cow), found 'dog'",
    ),
    "category that is new": (
        "a,y\nc,0\n", {"like": "a,y\nb,0\na,1\n"},
        "line 2: column 'a': expected one of the categories of the training (a, b), found 'c'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_good_table_is_named_by_file_and_line(write, case):
    content, options, message = BAD[case]
    if "like" in options:
        options = {"like": from_csv(write(options["like"], "train.csv"), target="y")}
    path = write(content)
    line = refused(DataError, lambda: from_csv(path, target="y", **options))
    assert line.startswith(path) and message in line


def test_a_target_of_many_whole_numbers_is_not_guessed(write):
    path = write("a,price\n" + "".join(f"{i},{i}\n" for i in range(101)))
    assert "classes=False makes values of them" in refused(ConfigError, lambda: from_csv(path, "price"))
    assert from_csv(path, "price", classes=False)[100][1].tolist() == [100]
    assert len(from_csv(path, "price", classes=True).classes) == 101


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(DataNotFoundError, match="no such file"):
        from_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="expected a file, found a folder"):
        from_csv(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="expected a file, found a folder, pipe"):
        from_csv(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "a", "features": ["a"]}, "features other than the target"),
        ({"delimiter": ", "}, "one character"),
        ({"encoding": "no-such"}, "one that Python knows"),
        ({"missing": "ignore"}, "one of refuse, drop"),
        ({"like": sn.data.TensorDataset([1.0])}, "like: expected a data set of from_csv"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(write, options, message):
    assert message in refused(ConfigError, lambda: from_csv(write("a,b\n1,2\n"), **options))


def test_what_is_as_in_another_data_set_is_not_given_again(write):
    dataset = from_csv(write("a,b\n1,2\n"))
    assert "as in `like`" in refused(ConfigError, lambda: from_csv(write("a,b\n1,2\n"), features=["a"], like=dataset))


def test_a_table_of_which_no_row_is_left_is_refused(write):
    assert "in all columns, found none" in refused(DataError, lambda: from_csv(write("a,b\n?,2\n"), missing="drop"))


# --- what is not in a file --------------------------------------------------------------------------------------------


def test_cells_in_memory_have_the_features_of_the_file(write):
    inputs = from_csv(write(FLOWERS), target="species").inputs
    expected = [[1.5, 2, 0, 1]]
    for rows in (
        {"length": 1.5, "width": 2, "color": "red"},
        {"color": ["red"], "length": np.array([1.5]), "width": ["2"], "more": [0]},
        [{"width": 2, "color": "red", "length": "1.5"}],
        [[1.5, 2, "red"]],
        [1.5, 2, "red"],
    ):
        assert inputs(rows).tolist() == expected
    assert inputs([[1, 2, "red"], [3, 4, "blue"]]).tolist() == [[1, 2, 0, 1], [3, 4, 1, 0]]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[1, 2]], ShapeError, "rows of 3 cells, length, width, color, got 2"),
        ([[1, None, "red"]], DataError, "column 'width': expected a value, found 'None'"),
        ([[1, 2, "green"]], DataError, "categories of the training"),
        ({"length": [1, 2], "width": [1], "color": ["red"]}, ShapeError, "columns of equal length"),
        ({"length": 1, "width": 2}, DataError, "expected a column 'color'"),
        (5, ConfigError, "rows of cells"),
    ],
)
def test_cells_that_the_training_did_not_have_are_refused(write, rows, error, message):
    inputs = from_csv(write(FLOWERS), target="species").inputs
    assert message in refused(error, lambda: inputs(rows))


# --- .npz -------------------------------------------------------------------------------------------------------------


def test_an_archive_gives_its_arrays_with_float64_as_float32(tmp_path):
    x, y = np.random.default_rng(0).random((5, 3)), np.arange(5, dtype=np.uint8)
    np.savez_compressed(tmp_path / "data.npz", x=x, labels=y, more=y)
    features, labels = from_npz(tmp_path / "data.npz", target="labels")[:]
    np.testing.assert_array_equal(features, x.astype(np.float32))
    assert labels.tolist() == [0, 1, 2, 3, 4]
    (scaled,) = from_npz(tmp_path / "data.npz", features="more", target=None, scale=0.5)[:]
    assert scaled.dtype == np.float32 and scaled.tolist() == [0, 0.5, 1, 1.5, 2]


def archive(path, **arrays):
    np.savez(path, **arrays)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w", force_zip64=True) as member:
        for _ in range(64):
            member.write(bytes(1 << 20))


BAD_ARCHIVES = {
    "text": (lambda path: path.write_text("no"), "expected an .npz archive"),
    "cut": (lambda path: (archive(path, x=np.ones(999)), path.write_bytes(path.read_bytes()[:-50])), "an .npz archive"),
    "an array": (lambda path: np.save(path.open("wb"), np.ones(3)), "expected an .npz archive"),
    "objects": (lambda path: archive(path, x=np.array([{}, 1], object), y=np.ones(2)), "it holds Python objects"),
    "no target": (lambda path: archive(path, x=np.ones(3)), "expected an array 'y', found x"),
    "lengths": (lambda path: archive(path, x=np.ones(3), y=np.ones(2)), "arrays of equal length"),
    "NaN": (lambda path: archive(path, x=np.array([1, np.nan]), y=np.ones(2)), "row 1: expected finite"),
    "large": (bomb, "expected at most 1000000 bytes"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_an_archive_that_is_none_is_refused_before_it_is_unpacked(tmp_path, case):
    make, message = BAD_ARCHIVES[case]
    make(tmp_path / "data.npz")
    tracemalloc.start()
    line = refused((DataError, ShapeError), lambda: from_npz(tmp_path / "data.npz", max_bytes=10**6))
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    assert message in line
    with pytest.raises(DataNotFoundError):
        from_npz(tmp_path / "none.npz")


def test_numbers_that_float32_cannot_tell_apart_are_named(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("id,big,y\n9007199254740992,40000000,0\n9007199254740994,50000000,1\n")
    with pytest.warns(UserWarning, match="column 'id': different numbers become one as float32") as said:
        sn.data.from_csv(file, "y")
    assert len(said) == 1  # not of the large ones that stay apart
    np.savez(tmp_path / "x.npz", x=[[1.0, 2.0**53], [2.0, 2.0**53 + 2]])
    with pytest.warns(UserWarning, match="column 'x': different numbers become one as float32") as said:
        from_npz(tmp_path / "x.npz", target=None)
    assert len(said) == 1


# --- missing cells that are filled, ratings ---------------------------------------------------------------------------


def test_missing_numbers_become_the_mean_and_say_so_and_missing_text_a_category(write):
    dataset = from_csv(write("a,b,c,y\n1,u,1,0\nNA,u,2,1\n4,?,3,0\n5,v,4,?\n"), "y", missing="fill")
    assert dataset.feature_names == ("a", "a missing", "b=", "b=u", "c")
    x, y = dataset[:]  # the row without a target is left out, its 5 and 4 are in no mean
    assert x.tolist() == [[1, 0, 0, 1, 1], [2.5, 1, 0, 1, 2], [4, 0, 1, 0, 3]] and y.tolist() == [0, 1, 0]
    test = write("a,b,c,y\nnull,,?,1\n", "test.csv")
    assert from_csv(test, "y", missing="fill", like=dataset)[:][0].tolist() == [[2.5, 1, 1, 0, 2]]
    again = type(dataset.inputs)(**dataset.inputs.state_dict())
    assert again({"a": "", "b": "u", "c": "7"}).tolist() == [[2.5, 1, 0, 1, 7]]


def test_what_cannot_be_filled_is_refused(write):
    full = from_csv(write("a,b,y\n1,u,0\n2,v,1\n"), "y")
    with pytest.raises(DataError, match="line 2: column 'a': expected a value, as all rows of the training have"):
        from_csv(write("a,b,y\n,u,0\n", "test.csv"), "y", missing="fill", like=full)
    filled = from_csv(write("a,b,y\n1,u,0\n2,v,1\n"), "y", missing="fill")
    with pytest.raises(DataError, match="line 2: column 'b': expected a value, as all rows of the training have"):
        from_csv(write("a,b,y\n,,0\n", "test.csv"), "y", missing="fill", like=filled)
    with pytest.raises(DataError, match="column 'a': expected a value, found none in all rows"):
        from_csv(write("a,y\n,0\n,1\n"), "y", missing="fill")


def test_ratings_are_pairs_of_numbers_in_the_order_of_names(write):
    path = write("user,item,rating\n10,b,4.5\n9,a,3\n10,a,1\n")
    dataset = ratings_csv(path)
    pairs, values = dataset[:]
    assert pairs.tolist() == [[1, 1], [0, 0], [1, 0]] and pairs.dtype == np.int64
    assert values.tolist() == [[4.5], [3], [1]] and values.dtype == np.float32
    assert dataset.inputs.categories == {"user": ("9", "10"), "item": ("a", "b")}
    assert ratings_csv(write("item,user\nb,9\n"), rating=None, like=dataset)[:][0].tolist() == [[0, 1]]
    again = type(dataset.inputs)(**dataset.inputs.state_dict())
    assert again(["10", "b"]).tolist() == [[1, 1]]
    plain = ratings_csv(write("1\t7\t5\t0\n", "u.data"), "u", "i", "r", delimiter="\t", names=["u", "i", "r", "time"])
    assert plain[:][1].tolist() == [[5]]


def test_ratings_that_are_none_are_refused(write):
    dataset = ratings_csv(write("user,item,rating\n1,2,3\n"))
    for content, message in {
        "user,item,rating\n,2,3\n": "line 2: column 'user': expected a value, found ''",
        "user,item,rating\n1,2,x\n": "line 2: column 'rating': expected a number, found 'x'",
        "user,film,rating\n1,2,3\n": "expected a column 'item', found 'user', 'film', 'rating'",
    }.items():
        with pytest.raises(DataError, match=message):
            ratings_csv(write(content))
    with pytest.raises(
        DataError, match=r"column 'user': expected one of the categories of the training .1., found '5'"
    ):
        ratings_csv(write("user,item,rating\n5,2,3\n"), like=dataset)
    with pytest.raises(ConfigError, match="expected three different columns, got 'a', 'a' and 'b'"):
        ratings_csv(write(FLOWERS), "a", "a", "b")
    with pytest.raises(ConfigError, match="expected the columns of `like`, user, item, got length, color"):
        ratings_csv(write(FLOWERS), "length", "color", "width", like=dataset)
    with pytest.raises(ConfigError, match="one_hot=False: expected categories alone, got 'a'"):
        sn.data.TableInputs(["a"], {}, one_hot=False)
