"""Where data sets come from: the embedded one, the full Fashion-MNIST, any MNIST folder.

Every source ends in a folder with the four files of MNIST; one function reads and checks such a folder.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import checks
from ..errors import ConfigError, DataError, DataNotFoundError
from .dataset import TensorDataset
from .files.idx import idx_header, parse_idx, read_idx, write_whole
from .images import ImageInputs
from .tables import described

Progress = Callable[[str, int, int | None], object]

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# SHA-256 of each file's content, unpacked: it is the same however a mirror packed it (Debian strips the gzip header).
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MNIST_FILES = tuple(FASHION_MNIST_SHA256)
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # SCRATCHNET_DATA_URL overrides it
FASHION_MNIST_HINT = (
    "get it with `apt-get install dataset-fashion-mnist`, or set SCRATCHNET_DATA to a folder that holds its four files"
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
EMBEDDED_FOLDER = Path(__file__).parent / "fashion_mnist_mini"

PARTS = "train", "t10k"
LAYOUTS = "", "raw", "MNIST/raw", "FashionMNIST/raw", "EMNIST/raw"  # where the files lie below a folder of torchvision

CIFAR_FOLDER, CIFAR_TEST, CIFAR_PICKLED = "cifar-10-batches-bin", "test_batch.bin", "cifar-10-batches-py"
CIFAR_ROW = 1 + 3 * 32 * 32
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

STALL_SECONDS = 10.0  # the longest wait for the next bytes of a download
DOWNLOAD_SECONDS = 600.0  # the longest download of one file
MAX_DOWNLOAD = 1 << 26  # bytes of one file, packed or unpacked; the largest has 47,040,016


def load(
    name_or_folder: str | os.PathLike, progress: Progress | None = None, flat: bool = True, split: str | None = None
) -> tuple[TensorDataset, TensorDataset]:
    """Load a data set by name or folder: (train, test), two TensorDatasets.

    Their samples are flat float32 rows in [0, 1], (channels * height * width,), and int64 labels; with flat=False
    images (channels, height, width). Images stay uint8, and on disk where the file is not gzipped
    (`read_idx(mapped=True)`). `classes` names the labels, `inputs` makes features of other images.

    name_or_folder: "fashion-mnist-mini" (6,000 + 1,000 images, part of this package); "fashion-mnist" (60,000 + 10,000,
    from $SCRATCHNET_DATA, the user's cache or Debian's folder, else downloaded into the cache); a folder with the
    files of MNIST (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-..., t10k-labels-...), gzipped or not,
    or one above MNIST/raw, FashionMNIST/raw or EMNIST/raw, as torchvision has them; or CIFAR-10's binary version.
    progress: called as progress(file_name, bytes_done, bytes_in_all or None) while downloading.
    split: which of EMNIST's parts, such as "letters". Its files hold images with rows and columns exchanged; `load`
    exchanges them back.
    Raises DataNotFoundError for a data set that is not to be had (it says how to get it), DataError for damaged files.
    """
    checks.instance("load", name_or_folder, str | os.PathLike, "a name or a folder")
    flat = checks.flag("load: flat", flat)
    if split is not None:
        checks.instance("load: split", split, str, "a part of EMNIST, such as 'letters', or None")
    if progress is not None:
        checks.function("load: progress", progress)
    find_folder = SOURCES.get(name_or_folder) if isinstance(name_or_folder, str) else None
    folder = find_folder(progress) if find_folder else Path(name_or_folder)
    if cifar := next((place for place in (folder, folder / CIFAR_FOLDER) if (place / CIFAR_TEST).is_file()), None):
        return _load_cifar(cifar, flat)
    files, split = _find_files(folder, split)
    train, test = (_read_part(files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"]) for part in PARTS)
    expected, found = (images.shape[1:] for images, _ in (train, test))
    if found != expected:
        path, sizes = files["t10k-images-idx3-ubyte"], [math.prod(shape) for shape in (expected, found)]
        raise DataError(f"{path}: expected images of {sizes[0]} pixels as for training, found {sizes[1]}")
    is_fashion = find_folder is not None or "fashion" in str(files["train-images-idx3-ubyte"].parent).lower()
    numbers = tuple(map(str, range(int(train[1].max()) + 1)))
    classes = FASHION_MNIST_CLASSES[: len(numbers)] if is_fashion and len(numbers) <= 10 else numbers
    if split is not None:
        train, test = ((images.swapaxes(1, 2), labels) for images, labels in (train, test))
    return _images(train[0][:, None], train[1], classes, flat), _images(test[0][:, None], test[1], classes, flat)


def _images(pixels, labels, classes, flat):
    """A data set of images (n, channels, height, width)."""
    _, channels, *size = pixels.shape
    rows = pixels.reshape(len(pixels), -1) if flat else pixels
    inputs = ImageInputs(tuple(size), channels, flat, resizes=False)
    return described(TensorDataset(rows, labels, scale=1 / 255), inputs, classes)


# --- a folder of four files -----------------------------------------------------------------------------------------


def _find_files(folder, split=None):
    """({canonical name: path} of MNIST's four files, whichever of their spellings is there, the part of EMNIST)."""
    place = next((folder / below for below in LAYOUTS if list((folder / below).glob("*train-images?idx3*"))), folder)
    try:
        names = sorted(os.listdir(place))
    except OSError as error:
        known = ", ".join(SOURCES)
        raise DataNotFoundError(
            f"{folder}: expected {known} or a folder with MNIST files ({error.strerror})"
        ) from error
    if CIFAR_PICKLED in names or folder.name == CIFAR_PICKLED:
        raise DataError(f"{folder}: expected CIFAR-10's binary version (cifar-10-binary.tar.gz), found pickled files")
    splits = [match[1] for name in names if (match := re.match(r"emnist-(\w+)-train-images", name))]
    if split is None and len(splits) > 1:
        raise ConfigError(f"{folder}: expected split=... with one of {', '.join(splits)}, got none")
    if split is None and splits:
        split = splits[0]
    prefix = "" if split is None else f"emnist-{split}-"
    return {
        name: place / _spelling(prefix + (name.replace("t10k", "test") if prefix else name), names, place)
        for name in MNIST_FILES
    }, split


def _spelling(name, names, folder):
    for spelling in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
        if spelling in names:
            return spelling
    found = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"
    raise DataNotFoundError(f"{folder}: expected {name} or {name}.gz, found {found}")


def _read_part(images_path, labels_path):
    """Images uint8 (n, height, width), and labels int64 (n,)."""
    images, labels = read_idx(images_path, mapped=True), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3 or images.size == 0:
        found = f"{images.dtype} {images.shape}"
        raise DataError(f"{images_path}: expected images, uint8 (n, height, width), found {found}")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{labels_path}: expected labels, integers (n,), found {labels.dtype} {labels.shape}")
    if len(labels) != len(images):
        raise DataError(f"{labels_path}: expected {len(images)} labels, one an image, found {len(labels)}")
    if labels.min() < 0 or labels.max() > 255:
        raise DataError(f"{labels_path}: expected labels from 0 to 255, found {labels.min()} to {labels.max()}")
    return images, labels.astype(np.int64)


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------


def _load_cifar(folder, flat):
    """The binary version: each image is a byte for its label, then 32 x 32 bytes of red, green and blue."""
    found = []
    for names in ([f"data_batch_{k}.bin" for k in range(1, 6)], [CIFAR_TEST]):
        pixels, labels = zip(*[_read_cifar(folder / name) for name in names], strict=True)
        found.append(_images(np.concatenate(pixels), np.concatenate(labels), CIFAR_CLASSES, flat))
    train, test = found
    return train, test


def _read_cifar(path):
    try:
        rows = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise DataNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not rows.size or rows.size % CIFAR_ROW:
        raise DataError(f"{path}: expected images of {CIFAR_ROW} bytes each, found {rows.size} bytes")
    rows = rows.reshape(-1, CIFAR_ROW)
    if rows[:, 0].max() >= len(CIFAR_CLASSES):
        raise DataError(f"{path}: expected labels from 0 to 9, found {rows[:, 0].max()}")
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


# --- the full Fashion-MNIST -----------------------------------------------------------------------------------------


def _fashion_mnist(progress):
    """The first folder that holds the full set; else the cache folder, filled by a download."""
    chosen = os.environ.get("SCRATCHNET_DATA")
    places = [Path(chosen, "fashion-mnist"), Path(chosen)] if chosen else []
    cache = _cache_folder()
    for folder in (*places, cache, DEBIAN_FOLDER):
        with contextlib.suppress(DataNotFoundError):
            _find_files(folder)
            return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"no cache folder {cache}: {error.strerror}"
        raise DataNotFoundError(f"fashion-mnist: {reason}; {FASHION_MNIST_HINT}") from error
    for name, sha256 in FASHION_MNIST_SHA256.items():
        if not (cache / f"{name}.gz").exists():
            write_whole(cache / f"{name}.gz", _download(f"{name}.gz", sha256, progress))
    return cache


def _cache_folder():
    """Where downloads are kept, beside the cache of compiled kernels."""
    if chosen := os.environ.get("SCRATCHNET_CACHE_DIR"):
        return Path(chosen, "fashion-mnist")
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "scratchnet", "fashion-mnist")


def _download(file_name, sha256, progress):
    """The bytes of one upstream file, checked against the digest of its unpacked content."""
    from http.client import HTTPException  # with `urllib` a tenth of the time of `import scratchnet`

    url = os.environ.get("SCRATCHNET_DATA_URL", FASHION_MNIST_URL).rstrip("/") + f"/{file_name}"
    try:
        packed = _fetch(url, lambda done, total: progress and progress(file_name, done, total))
        array = parse_idx(io.BytesIO(packed), url, MAX_DOWNLOAD)
    except (OSError, HTTPException, ValueError) as error:  # a DataError is a ValueError
        reason = " ".join(str(error).split())  # a server's nonsense may hold line breaks
        raise DataNotFoundError(f"fashion-mnist: download of {url} failed ({reason}); {FASHION_MNIST_HINT}") from error
    found = hashlib.sha256(idx_header(array) + array.tobytes()).hexdigest()
    if found != sha256:
        raise DataError(f"{url}: expected content with SHA-256 {sha256}, found {found}; {FASHION_MNIST_HINT}")
    return packed


def _fetch(url, progress):
    """All bytes behind a URL, in bounded time and memory. Raises OSError, HTTPException or ValueError."""
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + DOWNLOAD_SECONDS
    content = bytearray()
    try:
        response = urllib.request.urlopen(url, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()  # it is also the server's answer, with an open socket
        raise
    with response:
        total = response.length  # None if the server does not say
        while piece := response.read1(1 << 16):  # not `read`: it would wait for all 64 KiB of a trickle
            content += piece
            progress(len(content), total)
            if len(content) > MAX_DOWNLOAD:
                raise DataError(f"expected at most {MAX_DOWNLOAD} bytes, found more")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(content)} bytes in {DOWNLOAD_SECONDS:.0f} s")
    if total is not None and len(content) != total:
        raise DataError(f"expected {total} bytes, found {len(content)}")
    return content


SOURCES = {
    "fashion-mnist-mini": lambda progress: EMBEDDED_FOLDER,
    "fashion-mnist": _fashion_mnist,
}
