"""Folders of Parquet and CSV files: the rows that from_csv would give, whatever the parts in which they are read."""

import os
import sys
import threading

import numpy as np
import pytest

from scratchnet.data import from_csv, from_folder
from scratchnet.data.large import folder as module
from scratchnet.errors import ConfigError, DataError, DataNotFoundError

needs_arrow = pytest.mark.usefixtures("arrow")


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow")


def tables(n=10, kind="word"):
    rng = np.random.default_rng(1)
    words = {"word": ["no", "yes", "perhaps"], "number": [3, 11, 2], "float": [0.5, 1.25, -3.0]}[kind]
    label = [words[k % 3] for k in range(n)]
    texts = [("Rome", "Oslo", "Lima", "Oslo")[k % 4] for k in range(n)]
    return {"a": rng.normal(size=n).tolist(), "city": texts, "b": rng.integers(0, 9, n).tolist(), "y": label}


def write(path, columns, rows=slice(None)):
    """A file of the kind that its name says."""
    columns = {name: cells[rows] for name, cells in columns.items()}
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
    else:
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    return path


@needs_arrow
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["word", "number", "float"])
def test_the_rows_are_those_of_from_csv_however_they_are_cut(tmp_path, monkeypatch, ending, kind):
    columns = tables(kind=kind)
    expected = from_csv(str(write(tmp_path / "all.csv", columns)), "y", classes=False if kind == "float" else None)
    for part, files in ((3, 1), (1 << 16, 4), (2, 3)):
        monkeypatch.setattr(module, "PART", part)
        source = tmp_path / f"source{part}"
        source.mkdir()
        edges = np.linspace(0, 10, files + 1).astype(int)
        for k in range(files):
            write(source / f"{k}{ending}", columns, slice(edges[k], edges[k + 1]))
        found = from_folder(source, "y", store=tmp_path / f"store{part}")
        for own, theirs in zip(found[:], expected[:], strict=True):
            assert own.dtype == theirs.dtype and np.array_equal(own, theirs)
        assert found.classes == expected.classes and found.feature_names == expected.feature_names
        cells = {"a": 0.5, "city": "Lima", "b": 3}
        assert np.array_equal(found.inputs(cells), expected.inputs(cells))


@needs_arrow
def test_a_store_is_filled_once_while_the_files_stay_as_they_are(tmp_path, monkeypatch):
    file, store, fills = write(tmp_path / "t.csv", tables()), tmp_path / "store", []
    monkeypatch.setattr(module, "finish", lambda *args, finish=module.finish: (fills.append(1), finish(*args)))
    ranks = [threading.Thread(target=from_folder, args=(file, "y"), kwargs={"store": store}) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(from_folder(file, "y", store=store)) == 10 and len(fills) == 1
    assert from_folder(file, "y", features=["b"], store=store)[:][0].shape == (10, 1) and len(fills) == 2
    os.utime(file, ns=(1, 1))
    from_folder(file, "y", features=["b"], store=store)
    assert len(fills) == 3


@needs_arrow
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_each_file_counts_once_and_those_that_are_hidden_or_unfinished_do_not(tmp_path, ending):
    rows, source = tables(), tmp_path / "source"
    files = "1", "2", f"spark{ending}/part-0", ".ipynb_checkpoints/1-checkpoint", "_temporary/0/part-1", ".3"
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write(source / f"{name}{ending}", rows)
    (source / f"2{ending}").rename(source / f"2{ending.upper()}")
    assert len(from_folder(source, "y", store=tmp_path / "store")) == 30
    (source / f"4{ending}.gz").touch()
    with pytest.raises(DataError, match=rf"4{ending}.gz: expected files of rows that are not compressed"):
        from_folder(source, "y", store=tmp_path / "store")


@needs_arrow
def test_columns_that_are_names_of_folders_are_not_left_out_unasked(tmp_path):
    for country in ("de", "fr"):
        (tmp_path / "source" / f"country={country}").mkdir(parents=True)
        write(tmp_path / "source" / f"country={country}" / "0.csv", tables())
    with pytest.raises(DataError, match=r"expected all columns in the files, found 'country=de' in names of folders"):
        from_folder(tmp_path / "source", "y", store=tmp_path / "store")
    assert len(from_folder(tmp_path / "source", "y", features=["a"], store=tmp_path / "store")) == 20


@needs_arrow
def test_a_store_that_cannot_be_written_is_one_line(tmp_path):
    file = write(tmp_path / "t.csv", tables())
    with pytest.raises(DataError, match=r"t\.csv/store: cannot be written \(Not a directory\)"):
        from_folder(file, "y", store=file / "store")


@needs_arrow
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_texts_are_those_of_from_csv(tmp_path, ending):
    columns = {"a": [1 << 24, (1 << 24) + 1, 3], "c": [" u", "v", "u"], "y": ["p ", "q", "p"]}
    file = write(tmp_path / f"t{ending}", columns)
    with pytest.warns(UserWarning, match="column 'a': different numbers become one as float32"):
        found = from_folder(file, "y", store=tmp_path / "store")
    assert found.classes == ("p", "q") and found.feature_names == ("a", "c=u", "c=v")
    write(file, columns | {"c": ["?", "v", "u"]})
    with (
        pytest.warns(UserWarning, match="different numbers"),
        pytest.raises(DataError, match="row 1: column 'c': expected a value, found None"),
    ):
        from_folder(file, "y", store=tmp_path / "store")
    for name, labels in (("t", [1, 2, 3]), ("u", [1.0, 1.5, 2.0])):
        write(tmp_path / f"{name}{ending}", columns | {"y": labels})
    with pytest.raises(DataError, match=r"column 'y': expected classes, texts or whole numbers, found '1\.[05]'"):
        from_folder(tmp_path, "y", features=["c"], store=tmp_path / "other")


@needs_arrow
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize(("changes", "options", "words"), [
    ({"a": [1.0, None, 2.0]}, {}, r"t{}: row 2: column 'a': expected a value, found None"),
    ({"a": [1.0, 2.0, 1e300]}, {}, r"t{}: row 3: column 'a': expected a finite number of float32, found 1e\+300"),
    ({"y": ["x", "y", None]}, {}, r"t{}: row 3: column 'y': expected a value, found None"),
    ({"y": ["x", "x", "x"]}, {}, r"t{}: column 'y': expected at least 2 classes, found \['x'\]"),
    ({"a": ["u", "v", None]}, {}, r"t{}: row 3: column 'a': expected a value, found None"),
    ({"a": ["u", "3", "w"]}, {}, r"t{}: column 'a': expected numbers alone or texts, found both, such as '3'"),
    ({"a": [f"t{k}" for k in range(300)]}, {}, r"t{}: column 'a': expected at most 100 texts, found more; fe"),
    ({"a": [None] * 3}, {}, r"t{}: row 1: column 'a': expected a value, found None"),
    ({}, {"features": ["c"]}, r"t{}: expected a column 'c', found 'a', 'b', 'y'"),
    ({}, {"features": ["y"]}, r"expected features other than the target, got 'y' as both"),
    ({"y": list(map(str, range(300)))}, {}, r"t{}: column 'y': expected at most 100 classes, found more; cl"),
])  # fmt: skip
def test_what_is_no_good_is_named(tmp_path, ending, changes, options, words):
    n = len(next(iter(changes.values()), [0] * 3))
    columns = {"a": [0.5] * n, "b": [1] * n, "y": [("p", "q")[k % 2] for k in range(n)]} | changes
    if ending == ".csv":
        columns = {name: ["" if cell is None else cell for cell in cells] for name, cells in columns.items()}
    file = write(tmp_path / f"t{ending}", columns)
    with pytest.raises((DataError, ConfigError), match=words.format(ending)):
        from_folder(file, "y", store=tmp_path / "store", **options)
    with pytest.raises(DataNotFoundError):
        module.StoredRows(tmp_path / "store")


def test_what_is_no_folder_of_tables_is_refused(tmp_path, monkeypatch):
    store = tmp_path / "store"
    with pytest.raises(DataNotFoundError, match="nothing: no such file or folder"):
        from_folder(tmp_path / "nothing", "y", store=store)
    with pytest.raises(DataError, match=r"expected files that end in .parquet or in .csv, of one kind, found none"):
        from_folder(tmp_path, "y", store=store)
    file = write(tmp_path / "t.csv", tables())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"t.csv: expected pyarrow, found none; pip install pyarrow"):
        from_folder(file, "y", store=store)
    (tmp_path / "u.parquet").touch()
    with pytest.raises(DataError, match=r"of one kind, found .csv and .parquet"):
        from_folder(tmp_path, "y", store=store)
