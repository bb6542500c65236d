"""Folders of classes: each file counts, whatever the case of its ending, or is refused by name."""

import pytest

from scratchnet.data.files.classes import class_folders
from scratchnet.errors import DataError, DataNotFoundError


def folder(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_every_file_of_a_class_counts_but_those_that_systems_hide(tmp_path):
    folder(tmp_path, "b/2.WAV", "b/1.wav", "a/9.wav", ".cache/x.wav", "a/.x.wav", "b/Thumbs.db", ".DS_Store")
    paths, labels, names = class_folders(tmp_path, "sounds", (".wav",))
    assert [path.removeprefix(f"{tmp_path}/") for path in paths] == ["a/9.wav", "b/1.wav", "b/2.WAV"]
    assert labels == [0, 1, 1] and names == ("a", "b")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("b/1.flac", r"b/1\.flac: expected sounds \(\.wav\) alone, found something else"),
        ("b/more.wav/1.wav", r"more\.wav: expected sounds \(\.wav\) alone, found something else"),
        ("1.wav", "expected a folder for each class in .*, found a file"),
        ("c/.hidden", "c: expected sounds of the class 'c', found none"),
    ],
)
def test_what_would_be_left_out_is_refused(tmp_path, extra, message):
    with pytest.raises(DataError, match=message):
        class_folders(folder(tmp_path, "a/1.wav", "b/2.wav", extra), "sounds", (".wav",))


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataNotFoundError, match="expected a folder of sounds, found no such folder"):
        class_folders(tmp_path / "none", "sounds", (".wav",))
