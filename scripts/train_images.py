"""Trains a convolutional network on images: the steps and flags of train.py, with another model and folders of images.

python scripts/train_images.py                                  # the images that the package brings, 20 seconds
python scripts/train_images.py --data fashion-mnist --epochs 12
python scripts/train_images.py --data pictures --size 64        # pictures/cat/*.jpg, pictures/dog/*.png, ...
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import train

import scratchnet as sn
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script


@dataclass
class Config(train.Config):
    """Train a convolutional network on images."""

    data: str = flag(
        "fashion-mnist-mini",
        "data set: fashion-mnist-mini, fashion-mnist, a folder in MNIST or CIFAR-10 format, or of class folders",
    )
    hidden: tuple[int, ...] = flag((128,), "widths of the layers between the last stage and the classes")
    channels: tuple[int, ...] = flag((32, 64), "channels of each stage: convolutions, then pooling to half the size")
    convolutions: int = flag(1, "convolutions a stage, each with batch norm and activation")
    size: int | None = flag(None, "side to which images in class folders are resized; that of the first unless given")
    test: float = flag(0.2, "fraction of the images in class folders that is held back to test on")
    dropout: float = flag(0.25, "probability of dropping a hidden unit")
    epochs: int = flag(6, "passes over the training data")
    batch_size: int = flag(128, "samples an optimizer step")
    validation: float = flag(0.02, "fraction of the training data kept for validation")
    lr: float = flag(0.1, "highest learning rate of the one-cycle schedule")

    def datasets(self) -> tuple[sn.data.Dataset, sn.data.Dataset]:
        root = Path(self.data)
        if not root.is_dir() or any(entry.is_file() for entry in root.iterdir()):  # a name, or files of a known format
            return sn.data.load(self.data, flat=False)
        images = sn.data.image_folder(root, self.size)
        return tuple(sn.data.random_split(images, [1 - self.test, self.test], seed=self.seed))

    def model(self, shape: tuple[int, ...], classes: int) -> sn.nn.Module:
        if self.convolutions < 1:
            raise ConfigError(f"--convolutions: expected at least 1, got {self.convolutions}")
        nn = sn.nn
        activation = nn.ACTIVATIONS[self.activation]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((shape[0], *self.channels)):
            for i in range(self.convolutions):
                layers += [
                    nn.Conv2d(after if i else before, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    activation(),
                ]
            layers.append(nn.MaxPool2d(2))
        height, width = (n // 2 ** len(self.channels) for n in shape[1:])
        widths = (self.channels[-1] * height * width, *self.hidden, classes)
        return nn.Sequential(*layers, nn.Flatten(), nn.MLP(*widths, activation=self.activation, dropout=self.dropout))


if __name__ == "__main__":
    run_script(train.main, Config)
