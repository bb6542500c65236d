"""Time series, WAV files and log-mel features: the file's numbers, and energies where a tone is."""

import wave

import numpy as np
import pytest

from scratchnet.data.files.series import log_mel, read_ts, read_wav
from scratchnet.errors import DataError, DataNotFoundError

HEAD = "# of a test\n@problemName x\n@timeStamps false\n@classLabel true a b\n@data\n"


def test_series_of_any_length_are_read_with_their_labels(tmp_path):
    (tmp_path / "x.ts").write_text(HEAD + "1,2,3:4,5,6:b\n\n7:-8e-1: a \n")
    found = read_ts(tmp_path / "x.ts")
    assert [one.tolist() for one in found.series] == [[[1, 2, 3], [4, 5, 6]], [[7], [np.float32(-0.8)]]]
    assert found.labels == ["b", "a"] and found.lines == [6, 8]
    (tmp_path / "x.ts").write_text("@timeStamps false\n@classLabel false\n@data\n1,2\n")
    assert read_ts(tmp_path / "x.ts").labels == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + "1,2:a\n1,x:b\n", "line 7: expected numbers .could not convert string to float: 'x'"),
        (HEAD + "1,?:a\n", "line 6: expected numbers"),
        (HEAD + "1,nan:a\n", "line 6: expected finite numbers, found NaN or Inf"),
        (HEAD + "1,2:3:a\n", "line 6: expected channels of one length, found .2, 1."),
        (HEAD + "1,2:3,4:a\n1,2:b\n", "line 7: expected 2 channels of one length, found .2."),
        (HEAD.replace("false", "true") + "1:a\n", "expected series without time stamps"),
        (HEAD + "1:a\n2:A\n", r"line 7: expected a class of @classLabel .a, b., found 'A'"),
        (HEAD, "expected a series after @data, found none"),
        ("1,2,3\n", "expected a line @data, found none"),
        (b"\xff\xfe", "expected text in UTF-8"),
    ],
)
def test_what_is_no_good_in_a_series_is_named_by_its_line(tmp_path, content, message):
    (tmp_path / "x.ts").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_ts(tmp_path / "x.ts")


def write(path, samples, channels=1, width=2, rate=8000):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.asarray(samples, f"<i{width}").tobytes())
    return path


def test_samples_of_a_wav_file_and_the_mean_of_its_channels(tmp_path):
    samples, rate = read_wav(write(tmp_path / "x.wav", [-32768, 0, 16384], rate=16000))
    assert samples.tolist() == [-1, 0, 0.5] and samples.dtype == np.float32 and rate == 16000
    assert read_wav(write(tmp_path / "y.wav", [0, 16384, 8192, 8192], channels=2))[0].tolist() == [0.25, 0.25]


def test_other_sounds_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected 16 bits a sample, found 32"):
        read_wav(write(tmp_path / "x.wav", [0], width=4))
    with pytest.raises(DataError, match="expected samples, found none"):
        read_wav(write(tmp_path / "x.wav", []))
    (tmp_path / "x.wav").write_bytes(b"RIFFxxxxOggS")
    with pytest.raises(DataError, match="expected a WAV file of PCM"):
        read_wav(tmp_path / "x.wav")
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"expected a WAV file of PCM \(it ends too early\)"):
        read_wav(tmp_path / "x.wav")
    with pytest.raises(DataNotFoundError, match="no such file"):
        read_wav(tmp_path / "y.wav")
    file = write(tmp_path / "x.wav", [1, 2, 3])
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="expected 6 bytes of samples, found 5: the file is cut short"):
        read_wav(file)


def test_a_stream_claims_the_most_and_has_what_is_there(tmp_path):
    whole = write(tmp_path / "x.wav", [1, 2, 3]).read_bytes()
    for claim in (0x7FFFF000, 0xFFFFFFFF):  # of espeak-ng, of ffmpeg
        (tmp_path / "x.wav").write_bytes(whole[:40] + claim.to_bytes(4, "little") + whole[44:])
        assert (read_wav(tmp_path / "x.wav")[0] * 32768).tolist() == [1, 2, 3]


def test_a_tone_is_in_the_band_around_its_frequency():
    seconds = np.arange(8000) / 8000
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 22) / 2595) - 1)
    for band in (4, 10, 17):
        features = log_mel(np.sin(2 * np.pi * edges[band + 1] * seconds), 8000, mels=20)
        assert features.shape == (20, 98) and features.dtype == np.float32
        assert (features.argmax(axis=0) == band).all()
    silence = log_mel(np.zeros(10), 8000, mels=3)
    assert silence.tolist() == [[np.float32(np.log(1e-10))]] * 3
    noise = np.random.default_rng(0).normal(size=800)
    assert (log_mel(noise, 8000, mels=500) > np.log(1e-6)).all()  # there is noise in each of the narrowest bands, too
    louder = log_mel(2 * noise, 8000) - log_mel(noise, 8000)
    np.testing.assert_allclose(louder, np.log(4), atol=1e-4)  # twice the amplitude is four times the energy
