"""Time series and speech: series of several channels and any length as arrays of one length, filled up by zeros."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..errors import DataError
from .dataset import TensorDataset
from .files.classes import class_folders
from .files.series import log_mel, read_ts, read_wav
from .tables import _inputs_of, _ranked, described

LONGEST = 2**20  # frames of a series


class SeriesInputs:
    """How series (channels, frames) become features (b, channels, length) float32.

    length: frames that count; longer series are cut, shorter ones filled up by 0. mels: bands, of series that are
    log-mel features of WAV files; the channels of a .ts file unless given. rate: samples a second that those files
    have, as bands reach to half of it; None takes any, one a file.
    """

    kind = "series"

    def __init__(self, channels: int, length: int, mels: int | None = None, rate: int | None = None):
        self.channels = checks.integer("SeriesInputs: channels", channels, 1)
        self.length = checks.integer("SeriesInputs: length", length, 1, LONGEST)
        self.mels = None if mels is None else checks.integer("SeriesInputs: mels", mels, 1, 1000)
        self.rate = None if rate is None else checks.integer("SeriesInputs: rate", rate, 1)

    def __call__(self, series: Any) -> np.ndarray:
        """The features of series (channels, any number of frames), in a list or an array."""
        given = [checks.array("predict", one) for one in checks.items("predict", series, "a list of series")]
        out = np.zeros((len(given), self.channels, self.length), np.float32)
        for row, one in zip(out, given, strict=True):
            if one.ndim != 2 or len(one) != self.channels:
                raise DataError(f"predict: expected series ({self.channels}, frames), got {one.shape}")
            row[:, : one.shape[1]] = one[:, : self.length]
        return out

    def read(self, path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
        """The features of the series in a .ts file, or of a WAV file, and where each stands."""
        if self.mels is not None:
            return self([_sound(path, self.mels, self.rate)[0]]), [str(path)]
        found = read_ts(path)
        return self(found.series), [f"{found.path} line {line}" for line in found.lines]

    def state_dict(self) -> dict[str, Any]:
        """All there is, as plain values."""
        return {"channels": self.channels, "length": self.length, "mels": self.mels, "rate": self.rate}

    def __repr__(self) -> str:
        return f"SeriesInputs({self.channels} channels, length {self.length})"


def from_ts(path: str | os.PathLike, *, length: int | None = None, like: Any = None) -> TensorDataset:
    """A .ts file of labelled series as a data set of features (n, channels, length) float32, and labels int64.

    length: frames that count, those of the longest series unless given. like: the data set of the training, whose
    length and classes are taken. Raises DataError naming file and line, DataNotFoundError.
    """
    length = None if length is None else checks.integer("from_ts: length", length, 1, LONGEST)
    inputs = _inputs_of("from_ts", like, SeriesInputs)
    found = read_ts(path)
    if not found.labels:
        raise DataError(f"{found.path}: expected labels (@classLabel true), found none")
    where = [f"{found.path}: line {line}" for line in found.lines]
    return _labelled(where, found.series, found.labels, length, inputs, like)


def audio_folder(
    path: str | os.PathLike, *, mels: int = 40, length: int | None = None, like: Any = None
) -> TensorDataset:
    """A folder with a folder of WAV files for each class as a data set of log-mel features (n, mels, length).

    mels: bands of the mel scale. length, like: as for `from_ts`. Raises DataError naming the file, also for one of
    another number of samples a second than the first; DataNotFoundError.
    """
    length = None if length is None else checks.integer("audio_folder: length", length, 1, LONGEST)
    inputs = _inputs_of("audio_folder", like, SeriesInputs)
    mels = checks.integer("audio_folder: mels", mels, 1, 1000) if inputs is None else inputs.mels
    root = Path(checks.path("audio_folder", path))
    files, numbers, names = class_folders(root, "WAV files", (".wav",))
    rate, series = None if inputs is None else inputs.rate, []
    for file in files:
        features, rate = _sound(file, mels, rate)
        series.append(features)
    labels = [names[number] for number in numbers]
    return _labelled(files, series, labels, length, inputs, like, mels, rate)


def _sound(path: str | os.PathLike, mels: int, rate: int | None) -> tuple[np.ndarray, int]:
    """The features of a WAV file and its samples a second, which must be `rate` if that is given."""
    samples, found = read_wav(path)
    if rate not in (None, found):
        raise DataError(f"{path}: expected {rate} samples a second, as the files before it have, found {found}")
    return log_mel(samples, found, mels), found


def _labelled(
    where: Sequence[str],
    series: list[np.ndarray],
    labels: list[str],
    length: int | None,
    inputs: Any,
    like: Any,
    mels: int | None = None,
    rate: int | None = None,
) -> TensorDataset:
    if inputs is None:
        inputs = SeriesInputs(len(series[0]), length or max(one.shape[1] for one in series), mels, rate)
    elif length is not None and length != inputs.length:
        checks.refuse("from_ts: length", f"that of `like`, {inputs.length}", length)
    elif len(series[0]) != inputs.channels:
        raise DataError(f"{where[0]}: expected {inputs.channels} channels as in the training, found {len(series[0])}")
    classes = tuple(_ranked(labels)) if like is None else like.classes
    number = {name: i for i, name in enumerate(classes)}
    for k, name in enumerate(labels):
        if name not in number:
            known = ", ".join(classes)
            raise DataError(f"{where[k]}: expected a class of the training ({known:.80}), found {name!r}")
    if len(classes) < 2:
        raise DataError(f"{where[0]}: expected at least two classes, found only {classes[0]!r}")
    return described(TensorDataset(inputs(series), np.array([number[name] for name in labels])), inputs, classes)
