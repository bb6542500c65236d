"""Rows of numbers in a folder: written once, a part at a time and by any number of processes, then mapped.

    rows.json   what they are; written last, so a folder without it holds nothing
    features    float32, (rows, features)
    labels      int64 numbers of classes, (rows,), or float32 values, (rows, 1)

A batch reads its own rows alone, and the system keeps in memory what fits and forgets it when it needs the room.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import checks
from ...errors import DataError, DataNotFoundError
from ...formats.atomic import write_atomically
from ..dataset import TensorDataset
from ..tables import TableInputs

ABOUT, FEATURES, LABELS, LOCK, TOKEN = "rows.json", "features", "labels", "lock", "token"
FORMAT = 1


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
        self.arrays = (
            _mapped(self.folder / FEATURES, np.float32, (n, len(self.feature_names))),
            _mapped(self.folder / LABELS, *label),
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
        return about if about["format"] == FORMAT and isinstance(about["rows"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
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


def begin(folder: Path) -> str:
    """From now on the folder holds nothing whole. Returns a token, by which others know it, see `why_not_shared`."""
    (folder / ABOUT).unlink(missing_ok=True)
    for name in (FEATURES, LABELS):
        (folder / name).write_bytes(b"")
    (folder / TOKEN).write_text(token := secrets.token_hex(8))
    return token


def why_not_shared(folder: Path, token: str) -> str | None:
    """In a process of another machine: why this is not the folder in which `begin` gave this token; None if it is."""
    with contextlib.suppress(OSError):
        if (folder / TOKEN).read_text() == token:
            return None
    return (
        f"{socket.gethostname()}: expected the driver's folder {folder}, found none or another; rows of a batch come "
        "from all executors, so store= must name a folder that all machines share, such as one of NFS"
    )


def finish(
    folder: Path,
    rows: int,
    features: Sequence[str],
    classes: Sequence[str] | None,
    source: Any,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """All rows are there. source: what tells these rows from others, see `read_about`. features, categories: the
    columns, and the texts of those that hold text, as for TableInputs."""
    for name in (FEATURES, LABELS):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    classes = None if classes is None else list(classes)
    about = {"format": FORMAT, "rows": rows, "features": list(features), "classes": classes, "source": source}
    write_atomically(folder / ABOUT, json.dumps(about | {"categories": dict(categories or {})}).encode())
    (folder / TOKEN).unlink()


class Writer:
    """Writes rows from number `first` on; a context."""

    def __init__(self, folder: Path, features: Sequence[str], classes: Sequence[str] | None, first: int = 0):
        self.numbers = None if classes is None else {text: i for i, text in enumerate(classes)}
        self.names, self.rows = list(features), first
        self._files = [(folder / name).open("r+b") for name in (FEATURES, LABELS)]
        for file, size in zip(self._files, (4 * len(self.names), 4 if classes is None else 8), strict=True):
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
