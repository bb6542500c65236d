"""Images: PNG and JPEG files as arrays, and folders of them, one a class, as a data set. Pillow reads the files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, DataError, DataNotFoundError, ShapeError
from .dataset import TensorDataset, _BatchDataset
from .files.classes import class_folders
from .rows import checked_positions, take_scaled

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}  # Pillow's names of gray and of color
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
SCALE = np.float32(1 / 255)


def read_image(path: str | os.PathLike, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as uint8 (channels, height, width), the right way up (EXIF), transparency left out.

    channels: 1 for gray, 3 for red, green and blue. size: (height, width) to which it is resized (bilinear).
    Raises DataNotFoundError; DataError for a file that is no image, is cut, or has more than 8 bits or one frame;
    ConfigError where Pillow is not installed.
    """
    path = checks.path("read_image", path)
    channels = _channels("read_image", channels)
    height_width = None if size is None else _size("read_image: size", size)
    Image, ImageOps = _pillow()
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(f"{path}: expected an image file, found a folder, pipe or device")
        with Image.open(path) as image:
            if image.mode not in EIGHT_BITS:
                raise DataError(f"{path}: expected at most 8 bits a channel, found mode {image.mode!r}")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # in which cameras keep a preview behind the image
                raise DataError(f"{path}: expected one image, found {frames} frames or pages; save the one that counts")
            upright = ImageOps.exif_transpose(image).convert(MODES[channels])
            if height_width is not None and upright.size != height_width[::-1]:
                upright = upright.resize(height_width[::-1], Image.Resampling.BILINEAR)
            pixels = np.array(upright, np.uint8)
    except FileNotFoundError:
        raise DataNotFoundError(f"{path}: no such file") from None
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected an image ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ConfigError("images: expected Pillow, found none; pip install pillow") from None
    return Image, ImageOps


def _channels(what: str, channels: Any) -> int:
    if checks.integer(f"{what}: channels", channels) not in MODES:
        checks.refuse(f"{what}: channels", "1 for gray or 3 for color", channels)
    return int(channels)


def _size(what: str, size: Any) -> tuple[int, int]:
    sizes = size if isinstance(size, tuple | list) else (size, size)
    if len(sizes) != 2:
        checks.refuse(what, "one length, or (height, width)", size)
    height, width = (checks.integer(what, n, 1, 2**15) for n in sizes)
    return height, width


class ImageInputs:
    """How images become features float32 in [0, 1], (b, channels, height, width), or (b, all of them) if `flat`.

    resizes: images of other sizes are resized; else they are refused.
    """

    kind = "images"

    def __init__(self, size: tuple[int, int], channels: int, flat: bool = False, resizes: bool = True):
        self.size, self.channels = _size("ImageInputs: size", size), _channels("ImageInputs", channels)
        self.flat, self.resizes = checks.flag("ImageInputs: flat", flat), checks.flag("ImageInputs: resizes", resizes)

    def __call__(self, images: Any) -> np.ndarray:
        """Features of paths, or of arrays of uint8 (height, width), (channels, height, width), or n of them."""
        if isinstance(images, str | os.PathLike):
            images = [images]
        if isinstance(images, list | tuple) and images and all(isinstance(x, str | os.PathLike) for x in images):
            return self._scaled(np.stack([self.pixels(path) for path in images]))
        pixels = checks.array("predict", images)
        one = (self.channels, *self.size)
        if pixels.dtype != np.uint8:
            checks.refuse("predict", "pixels of uint8, from 0 to 255, or paths of images", images)
        if pixels.ndim < 4 and self.channels == 1 and pixels.shape != one:
            pixels = pixels[..., None, :, :] if pixels.ndim >= 2 else pixels
        if pixels.ndim == 3:
            pixels = pixels[None]
        if pixels.shape[1:] == one:
            return self._scaled(np.ascontiguousarray(pixels))
        raise ShapeError(f"predict: expected images of {one}, or n of them, got {pixels.shape}")

    def read(self, path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
        """The features of an image file, one row, and its name."""
        return self._scaled(self.pixels(path)[None]), [os.fspath(path)]

    def pixels(self, path: str | os.PathLike) -> np.ndarray:
        """The pixels of a file, uint8 (channels, height, width). Raises DataError for another size."""
        pixels = read_image(path, self.channels, self.size if self.resizes else None)
        if pixels.shape[1:] != self.size:
            expected, found = ("x".join(map(str, size)) for size in (self.size, pixels.shape[1:]))
            raise DataError(f"{os.fspath(path)}: expected {expected} pixels (height x width), found {found}")
        return pixels

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        features = take_scaled(pixels, np.arange(len(pixels)), SCALE)
        return features.reshape(len(features), math.prod(features.shape[1:])) if self.flat else features

    def state_dict(self) -> dict[str, Any]:
        """All there is, as plain values."""
        return {"size": self.size, "channels": self.channels, "flat": self.flat, "resizes": self.resizes}

    def __repr__(self) -> str:
        return f"ImageInputs({self.channels} x {self.size[0]} x {self.size[1]})"


class ImageFiles(_BatchDataset):
    """Images that are read from their files whenever a batch wants them, and their labels."""

    def __init__(self, paths: list[str], labels: np.ndarray, inputs: ImageInputs, classes: tuple[str, ...]):
        self.paths, self.labels, self.inputs, self.classes = paths, labels, inputs, classes

    def __len__(self):
        return len(self.paths)

    def pixels(self, positions):
        """(b, channels, height, width) uint8."""
        shape = len(positions), self.inputs.channels, *self.inputs.size
        out = np.empty(shape, np.uint8)
        for row, position in zip(out, positions, strict=True):
            row[...] = self.inputs.pixels(self.paths[position])
        return out

    def gather(self, positions):
        chosen = checked_positions(positions, len(self))
        return self.inputs._scaled(self.pixels(chosen)), self.labels[chosen]


def image_folder(
    path: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    channels: int = 3,
    transform: Callable[[np.ndarray], Any] | None = None,
    in_memory: bool = True,
) -> Any:
    """A folder with one folder of images a class as a data set: features float32 (channels, height, width) in [0, 1],
    and labels int64, numbers of the classes, which are the sorted names of the folders.

    size: one length, or (height, width), to which images are resized. None: all must have the size of the first.
    channels: 1 for gray, 3 for color. transform: a function of the features of one image, see `Dataset.transform`.
    in_memory: keep the pixels, as uint8; otherwise each batch reads its files.
    Raises DataNotFoundError, or DataError naming the file: for one that is no image, of another size, or in no class.
    """
    root, in_memory = Path(checks.path("image_folder", path)), checks.flag("image_folder: in_memory", in_memory)
    channels = _channels("image_folder", channels)
    wanted = None if size is None else _size("image_folder: size", size)
    if transform is not None:
        checks.function("image_folder: transform", transform)
    paths, labels, classes = class_folders(root, "images", SUFFIXES)
    inputs = ImageInputs(wanted or read_image(paths[0], channels).shape[1:], channels, resizes=wanted is not None)
    files_read = ImageFiles(paths, np.array(labels, np.int64), inputs, classes)
    dataset: Any = files_read
    if in_memory:
        dataset = TensorDataset(files_read.pixels(range(len(paths))), files_read.labels, scale=1 / 255)
        dataset.inputs, dataset.classes = inputs, files_read.classes
    return dataset if transform is None else dataset.transform(transform)
