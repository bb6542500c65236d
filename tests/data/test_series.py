"""Series as data sets: one length, classes by name, the same for the files of a test."""

import numpy as np
import pytest

from scratchnet.data import SeriesInputs, from_ts, random_split
from scratchnet.errors import ConfigError, DataError, DataNotFoundError

HEAD = "@classLabel true 9 10\n@data\n"


@pytest.fixture
def write(tmp_path):
    def write(lines, name="x.ts"):
        (tmp_path / name).write_text(HEAD + lines)
        return tmp_path / name

    return write


def test_series_are_filled_up_by_zeros_and_classes_ranked(write):
    dataset = from_ts(write("1,2,3:4,5,6:10\n7:8:9\n"))
    x, y = dataset[:]
    assert x.tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 0, 0], [8, 0, 0]]] and x.dtype == np.float32
    assert y.tolist() == [1, 0] and dataset.classes == ("9", "10")
    assert from_ts(write("1,2,3:10\n7:9\n"), length=2)[:][0].tolist() == [[[1, 2]], [[7, 0]]]


def test_the_test_file_takes_length_and_classes_of_the_training(write):
    train = random_split(from_ts(write("1,2:10\n7:9\n")), [1, 1])[0]
    x, y = from_ts(write("5,6,7:10\n", "test.ts"), like=train)[:]
    assert x.tolist() == [[[5, 6]]] and y.tolist() == [1]
    again = SeriesInputs(**train.inputs.state_dict())
    features, names = again.read(write("5,6,7:10\n", "test.ts"))
    assert features.tolist() == x.tolist() and names[0].endswith("test.ts line 3")


def test_what_does_not_fit_is_refused(write, tmp_path):
    train = from_ts(write("1,2:10\n7:9\n"))
    with pytest.raises(DataError, match=r"line 3: expected a class of the training .9, 10., found '8'"):
        (tmp_path / "test.ts").write_text("@classLabel true 8 9\n@data\n1:8\n")
        from_ts(tmp_path / "test.ts", like=train)
    with pytest.raises(DataError, match="expected 1 channels as in the training, found 2"):
        from_ts(write("1:2:9\n", "test.ts"), like=train)
    with pytest.raises(ConfigError, match="length: expected that of `like`, 2, got 3"):
        from_ts(write("1:9\n", "test.ts"), like=train, length=3)
    with pytest.raises(DataError, match="expected at least two classes, found only '9'"):
        from_ts(write("1:9\n2:9\n"))
    (tmp_path / "plain.ts").write_text("@data\n1\n")
    with pytest.raises(DataError, match=r"expected labels .@classLabel true., found none"):
        from_ts(tmp_path / "plain.ts")
    with pytest.raises(DataError, match=r"expected series \(2, frames\), got \(3, 4\)"):
        SeriesInputs(2, 5)([np.zeros((3, 4))])
    with pytest.raises(DataNotFoundError, match="no such file"):
        from_ts(tmp_path / "nothing.ts")
