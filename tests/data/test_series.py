"""Series as data sets: one length, classes by name, the same for the files of a test."""

import wave

import numpy as np
import pytest

from scratchnet.data import SeriesInputs, audio_folder, from_ts, random_split
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


def test_sounds_of_another_rate_whose_bands_would_mean_other_tones_are_refused(tmp_path):
    def tone(path, rate):
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes((16000 * np.sin(2000 * np.pi * np.arange(rate // 10) / rate)).astype("<i2").tobytes())
        return path

    for name in "ab":
        tone(tmp_path / "train" / name / "1.wav", 8000)
    train = audio_folder(tmp_path / "train")
    other = tone(tmp_path / "test" / "a" / "1.wav", 16000)
    again = SeriesInputs(**train.inputs.state_dict())
    for read in (
        lambda: audio_folder(tmp_path / "test", like=train),
        lambda: again.read(other),
        lambda: audio_folder(tone(tmp_path / "train" / "b" / "2.wav", 16000).parents[1]),
    ):
        with pytest.raises(DataError, match=r"\.wav: expected 8000 samples a second, .* found 16000"):
            read()
    before = SeriesInputs(**{name: value for name, value in train.inputs.state_dict().items() if name != "rate"})
    assert before.read(other)[0].shape == again.read(tmp_path / "train" / "a" / "1.wav")[0].shape
