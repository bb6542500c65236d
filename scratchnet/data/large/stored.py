"""Rows of numbers in a folder: written once, a part at a time and by any number of processes, then mapped.

    rows.json            what they are; written last, so a folder without it holds nothing
    rows-.../features    float32, (rows, features)
    rows-.../labels      int64 numbers of classes, (rows,), or float32 values, (rows, 1)

A batch reads its own rows alone, and the system keeps in memory what fits and forgets it when it needs the room.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ... import checks
from ...errors import DataError, DataNotFoundError
from ...formats.atomic import write_atomically
from ..dataset import TensorDataset
from ..tables import TableInputs

ABOUT, FEATURES, LABELS, LOCK = "rows.json", "features", "labels", "lock"
FILES = "rows-"  # and random digits: the folder of the files
FORMAT = 2


class StoredRows(TensorDataset):
    """The rows of a folder that `from_folder` or `from_spark` filled, as a data set that is never in memory as a whole.

    It travels to workers and ranks as the name of its folder, which they must have, too.
    Raises DataNotFoundError without rows, DataError for files of another size.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(checks.path("StoredRows", folder))
        about = read_about(self.folder)
        if about is None:
            raise DataNotFoundError(
                f"{self.folder}: expected rows that from_folder or from_spark stored, on every machine, found none"
            )
        n, self.scale = about["rows"], None
        self.inputs = TableInputs(about["features"], about.get("categories", {}))
        self.feature_names = self.inputs.feature_names
        label = (np.int64, (n,)) if about["classes"] is not None else (np.float32, (n, 1))
        files = self.folder / about["files"]
        self.arrays = (
            _mapped(files / FEATURES, np.float32, (n, len(self.feature_names))),
            _mapped(files / LABELS, *label),
        )
        self.classes = None if about["classes"] is None else tuple(about["classes"])

    def __getstate__(self):
        return {"folder": os.fspath(self.folder)}

    def __setstate__(self, state):
        self.__init__(state["folder"])  # type: ignore[misc]


def read_about(folder: Path) -> dict[str, Any] | None:
    """What the folder holds; None if nothing whole."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        is_ours = about["format"] == FORMAT and isinstance(about["rows"], int) and about["files"].startswith(FILES)
        return about if is_ours else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.is_file() else 0
    if found != expected:
        raise DataError(f"{path}: expected {expected} bytes, as {ABOUT} says, found {found}; remove the folder")
    if not expected:
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Inside, nobody else of this machine fills the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def begin(folder: Path) -> Path:
    """From now on the folder holds nothing whole. Returns the folder in it for the files of the next rows."""
    (folder / ABOUT).unlink(missing_ok=True)
    files = folder / f"{FILES}{secrets.token_hex(8)}"
    files.mkdir()
    forget_others(files)
    return files


def forget_others(files: Path) -> None:
    """Removes the files of rows that the folder held before. Who has mapped them reads on."""
    for old in files.parent.glob(f"{FILES}*"):
        if old != files:
            shutil.rmtree(old, ignore_errors=True)


def why_not_shared(files: Path) -> str | None:
    """In a process of another machine: why this is not the folder that `begin` made for the driver; None if it is."""
    if files.is_dir():
        return None
    return (
        f"{socket.gethostname()}: expected the driver's folder {files.parent}, found none or another; store= must name "
        "one that all machines share, such as one of NFS; with shared=False each machine keeps its own rows"
    )


def finish(
    files: Path,
    rows: int,
    features: Sequence[str],
    classes: Sequence[str] | None,
    source: Any,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """All rows are there. source: what tells these rows from others, see `read_about`. features, categories: the
    columns, and the texts of those that hold text, as for TableInputs."""
    for name in (FEATURES, LABELS):
        with (files / name).open("rb") as file:
            os.fsync(file.fileno())
    classes = None if classes is None else list(classes)
    about = {"format": FORMAT, "files": files.name, "rows": rows, "features": list(features), "classes": classes}
    about |= {"source": source, "categories": dict(categories or {})}
    write_atomically(files.parent / ABOUT, json.dumps(about).encode())


def opened(path: Path) -> IO[bytes]:
    """A file to read and write, which others may be writing to; made if it is not there."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")


def row_sizes(features: int, classes: Sequence[str] | None) -> tuple[int, int]:
    """Bytes of a row in each of the two files."""
    return 4 * features, 4 if classes is None else 8


class Writer:
    """Writes rows from number `first` on, of `total` in all if that is known; a context."""

    def __init__(
        self,
        files: Path,
        features: Sequence[str],
        classes: Sequence[str] | None,
        first: int = 0,
        total: int | None = None,
    ):
        self.numbers = None if classes is None else {text: i for i, text in enumerate(classes)}
        self.names, self.rows = list(features), first
        self._files = [opened(files / name) for name in (FEATURES, LABELS)]
        for file, size in zip(self._files, row_sizes(len(self.names), classes), strict=True):
            if total is not None:
                file.truncate(total * size)  # whoever comes first: it changes nothing for the others
            file.seek(first * size)

    def write(self, columns: Sequence[np.ndarray], labels: Any) -> tuple[int, str, str] | None:
        """Appends b rows, columns of float64 with NaN for what is missing, labels texts or numbers.

        Returns what is wrong with the first bad row, and then writes none: (its number from 0, column, expected).
        """
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.stack(columns, axis=1).astype(np.float32) if len(labels) else np.empty((0, len(columns)))
        bad = ~np.isfinite(rows)
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            return row, self.names[int(bad[row].argmax())], "a finite number of float32"
        if self.numbers is None:
            values = np.asarray(labels, np.float64).astype(np.float32)
            if not np.isfinite(values).all():
                return int(np.isfinite(values).argmin()), "", "a finite number of float32"
        else:
            known = [self.numbers.get(text, -1) for text in labels]
            if -1 in known:
                return known.index(-1), "", "a class"
            values = np.asarray(known, np.int64)
        for file, array in zip(self._files, (rows, values), strict=True):
            file.write(np.ascontiguousarray(array).tobytes())
        self.rows += len(labels)
        return None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files:
            file.close()
