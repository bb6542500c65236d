"""Time series: the .ts files of aeon and the UCR archive, WAV files, and the log-mel features of speech."""

from __future__ import annotations

import io
import os
import wave
from typing import NamedTuple

import numpy as np

from ... import checks
from ...errors import DataError
from .content import read_bytes

STREAM = 1 << 30  # bytes: a stream does not know its length, and claims this or more


class Series(NamedTuple):
    """Series (channels, length) float32 of one number of channels and any lengths, and their labels."""

    path: str
    series: list[np.ndarray]
    labels: list[str]  # empty where the file has none
    lines: list[int]


def read_ts(path: str | os.PathLike) -> Series:
    """The series of a .ts file: a line has the channels, between colons, and the label; lines of @ say what is there.

    Raises DataNotFoundError, or DataError that names the line of what is no number, missing, or of another shape.
    """
    path = checks.path("read_ts", path)
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeError as error:
        raise DataError(f"{path}: expected text in UTF-8 ({error})") from None
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line and not line.startswith("#")]
    start = next((k for k, (_, line) in enumerate(lines) if line.lower() == "@data"), None)
    if start is None:
        raise DataError(f"{path}: expected a line @data, found none")
    pairs = [line[1:].split(maxsplit=1) for _, line in lines[:start] if " " in line]
    header = {name.lower(): value.split() for name, value in pairs}
    if (stamps := header.get("timestamps", ["false"])[0]).lower() != "false":
        raise DataError(f"{path}: expected series without time stamps, found @timeStamps {stamps}")
    labelled, *classes = header.get("classlabel", ["false"])
    found = Series(path, [], [], [])
    for i, line in lines[start + 1 :]:
        cells = line.split(":")
        if labelled.lower() == "true":
            found.labels.append(label := cells.pop().strip())
            if classes and label not in classes:
                known = ", ".join(classes)
                raise DataError(f"{path}: line {i}: expected a class of @classLabel ({known:.80}), found {label!r:.60}")
        try:
            channels = [[float(cell) for cell in channel.split(",")] for channel in cells]
        except ValueError as error:
            raise DataError(f"{path}: line {i}: expected numbers ({error!s:.60})") from None
        lengths = {len(channel) for channel in channels}
        if len(lengths) != 1 or (found.series and len(channels) != len(found.series[0])):
            expected = f"{len(found.series[0])} channels" if found.series else "channels"
            raise DataError(
                f"{path}: line {i}: expected {expected} of one length, found {list(map(len, channels))!s:.60}"
            )
        series = np.array(channels, np.float32)
        if not np.isfinite(series).all():
            raise DataError(f"{path}: line {i}: expected finite numbers, found NaN or Inf")
        found.series.append(series)
        found.lines.append(i)
    if not found.series:
        raise DataError(f"{path}: expected a series after @data, found none")
    return found


def read_wav(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """(samples (n,) float32 in [-1, 1), samples a second) of a WAV file of 16 bits; of several channels the mean.

    Raises DataNotFoundError, or DataError for a file of another format, or one that is cut short.
    """
    path = checks.path("read_wav", path)
    try:
        with wave.open(io.BytesIO(read_bytes(path))) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            claimed = file.getnframes() * channels * width
            content = file.readframes(1 << 31)
    except (wave.Error, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: expected a WAV file of PCM ({str(error) or 'it ends too early'})") from None
    if width != 2:
        raise DataError(f"{path}: expected 16 bits a sample, found {8 * width}")
    if len(content) < claimed < STREAM:
        raise DataError(f"{path}: expected {claimed} bytes of samples, found {len(content)}: the file is cut short")
    samples = np.frombuffer(content[: len(content) // (2 * channels) * 2 * channels], "<i2").reshape(-1, channels)
    if not len(samples):
        raise DataError(f"{path}: expected samples, found none")
    return samples.mean(axis=1, dtype=np.float32) / np.float32(32768), rate


def log_mel(samples: np.ndarray, rate: int, mels: int = 40) -> np.ndarray:
    """(mels, frames) float32: the log of the energy in `mels` bands of each frame of 25 ms, one every 10 ms.

    Bands are triangles that stand evenly on the mel scale, m = 2595 log10(1 + f / 700), from 0 to rate / 2; a frame
    is weighted by Hann's window (Davis and Mermelstein 1980). Energy below 1e-10 counts as 1e-10.
    """
    size, step = round(0.025 * rate), round(0.010 * rate)
    padded = np.pad(samples.astype(np.float64), (0, max(size - len(samples), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::step] * np.hanning(size)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), mels + 2) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    points, bands = 2 ** int(np.ceil(np.log2(size))), np.zeros((mels, 1))
    while not bands.any(axis=1).all():  # until there is a frequency in each narrow band, too
        points *= 2
        at = np.fft.rfftfreq(points, 1 / rate)
        bands = np.clip(np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None)
    power = np.abs(np.fft.rfft(frames, points)) ** 2 / size
    return np.log(np.maximum(bands @ power.T, 1e-10)).astype(np.float32)
