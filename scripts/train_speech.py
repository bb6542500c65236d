"""Trains a network on speech: prepare, split, compute, merge, report.

python scripts/train_speech.py                                   # synthetic vowels, in a few seconds
python scripts/train_speech.py --data japanese-vowels            # after `pip download --no-deps aeon`
python scripts/train_speech.py --data words --test-data others   # folders words/yes/*.wav, words/no/*.wav
python scripts/make_digits.py digits && python scripts/train_speech.py --data digits/train --test-data digits/test
"""

import itertools
import os
from dataclasses import dataclass

import scratchnet as sn
from scratchnet import nn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.jobs import AdamFlags
from scratchnet.report import plot_confusion, plot_curves


@dataclass
class Config(AdamFlags):
    """Train a convolutional network on the frames of speech, or of other time series."""

    data: str = flag("vowels", "a .ts file, or a folder of classes with WAV files; or vowels, japanese-vowels")
    test_data: str | None = flag(None, "file or folder to test on; a random part of the data unless given or known")
    length: int | None = flag(None, "frames that count; those of the longest series unless given")
    mels: int = flag(40, "bands of the log-mel features of WAV files")
    channels: tuple[int, ...] = flag((64, 64), "channels of each convolution over 5 frames")
    dropout: float = flag(0.3, "probability of dropping a unit before the classes")
    epochs: int = flag(30, "passes over the training data")
    batch_size: int = flag(32, "samples an optimizer step")
    lr: float = flag(0.005, "highest learning rate of the one-cycle schedule")

    def read(self, path: str, **options) -> sn.data.Dataset:
        """The series of a .ts file, or of a folder of WAV files."""
        if os.path.isdir(path):
            return sn.data.audio_folder(path, mels=self.mels, **options)
        return sn.data.from_ts(path, **options)

    def datasets(self) -> list[sn.data.Dataset]:
        """Series to train on, to validate on, and to test on."""
        path, *known = sn.data.data_files(self.data)
        full = self.read(path, length=self.length)
        for test in [self.test_data] if self.test_data else known:
            return [*self.held_back(full, "validation"), self.read(test, like=full)]
        train, test = self.held_back(full, "test")
        return [*self.held_back(train, "validation"), test]


def model_of(config: Config, channels: int, length: int, classes: int) -> nn.Module:
    """Convolutions over frames; what the last one finds is averaged over quarters of the time."""
    layers: list[nn.Module] = [nn.BatchNorm1d(channels)]
    for before, after in itertools.pairwise((channels, *config.channels)):
        layers += [nn.Conv1d(before, after, 5, padding=2, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    quarter = max(length // 4, 1)
    features = config.channels[-1] * (length // quarter)
    return nn.Sequential(
        *layers, nn.AvgPool1d(quarter), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(features, classes)
    )


def main(config: Config) -> float | None:
    config.begin()
    if not config.channels:
        raise ConfigError("--channels: expected at least one convolution, got none")

    # 1. Prepare: read, fill up to one length; hold series back to validate and to test on.
    train, val, test = config.datasets()
    channels, length = train[0][0].shape

    # 2. Split series into batches, and batches into shards, 3. compute their gradients, 4. merge them into steps.
    model, folder = model_of(config, channels, length, len(train.classes)), config.run_folder()
    trainer, history = config.fit(model, nn.CrossEntropyLoss(), train, val, folder)

    if not sn.parallel.is_first_rank():  # under mpirun one rank reports
        return None

    # 5. Report: measure on series that nothing above has seen; write the curves, and who is taken for whom.
    features, labels = test[:]
    counts = sn.metrics.confusion_matrix(trainer.predict(features), labels)
    accuracy = counts.trace() / counts.sum()
    plot_curves(history, folder / "curves.png")
    plot_confusion(counts, folder / "confusion.png", train.classes)
    print(f"test accuracy {accuracy:.2%}  results in {folder}")
    return float(accuracy)


if __name__ == "__main__":
    run_script(main, Config)
