"""Cells of CSV, .tab and Parquet files: the content decides how a file is read, and numbers keep all their digits."""

import numpy as np
import pytest

from scratchnet.data import from_csv
from scratchnet.data.files.cells import read_table
from scratchnet.errors import ConfigError, DataError


@pytest.fixture
def parquet(tmp_path):
    """Writes columns as a Parquet file, compressed by brotli; returns its path."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name="table.parquet", **columns):
        parquet.write_table(pyarrow.table(columns), tmp_path / name, compression="brotli")
        return tmp_path / name

    return write


def test_orange_writes_three_lines_before_the_rows(tmp_path):
    (tmp_path / "news.tab").write_text("Category\tLength\nd\tcontinuous\nclass\t\n\na\t1\nb\t2.5\n")
    table = read_table(tmp_path / "news.tab")
    assert table.columns == {"Category": ("a", "b"), "Length": ("1", "2.5")} and table.lines == [5, 6]
    (tmp_path / "news.tab").write_text("Category\tLength\nd\tcontinuous\nclass\t\n")
    with pytest.raises(DataError, match="expected at least one row of cells, found none"):
        read_table(tmp_path / "news.tab")


def test_a_parquet_file_reads_as_the_csv_file_of_the_same_cells(parquet, tmp_path):
    numbers, texts = np.random.default_rng(0).normal(size=9), list("abcabcabc")
    path = parquet(number=numbers, whole=list(range(9)), text=texts, label=[i % 2 for i in range(9)])
    rows = "\n".join(f"{x!r},{i},{t},{i % 2}" for i, (x, t) in enumerate(zip(numbers.tolist(), texts, strict=True)))
    (tmp_path / "table.csv").write_text(f"number,whole,text,label\n{rows}\n")
    one, other = (from_csv(p, "label") for p in (path, tmp_path / "table.csv"))
    assert one.feature_names == other.feature_names and one.classes == other.classes
    for a, b in zip(one[:], other[:], strict=True):
        assert a.tobytes() == b.tobytes()
    assert one.inputs.read(path)[1][0] == f"{path} row 1"


def test_what_is_missing_in_a_parquet_file_is_an_empty_cell_of_a_row(parquet):
    path = parquet(a=[1.0, None, 3.0], y=["u", "v", "w"])
    assert from_csv(path, "y", missing="drop")[:][0].tolist() == [[1], [3]]
    with pytest.raises(DataError, match="row 2: column 'a': expected a value, found ''"):
        from_csv(path, "y")


def test_a_parquet_file_that_is_none_or_holds_lists_is_refused(parquet, tmp_path):
    path = parquet(a=[[1, 2], [3]], y=[0, 1])
    with pytest.raises(DataError, match="expected columns of numbers and text, found list<"):
        read_table(path)
    with pytest.raises(ConfigError, match="expected no names beside those of a Parquet file, got a, b"):
        read_table(path, names=["a", "b"])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="parquet: expected a Parquet file"):
        read_table(path)
    with pytest.raises(DataError, match="expected at least one row of cells, found none"):
        read_table(parquet(a=np.empty(0)))


def test_without_pyarrow_a_parquet_file_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "table.bin").write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(ConfigError, match="expected pyarrow for a Parquet file, found none; pip install pyarrow"):
        read_table(tmp_path / "table.bin")
