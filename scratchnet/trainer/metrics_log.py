"""The metrics log of a run, `metrics.jsonl`: one JSON object a line. The Trainer appends; plots and tables read.

A log is a comfort, not a result: on a full disk it loses lines and training goes on; a torn line spoils no other.
"""

import json
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DataError, DataNotFoundError, DtypeError
from ..formats.atomic import write_atomically


def append_jsonl(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Append `record` to the log at `path` as one line, with a single write.

    NumPy scalars and arrays become numbers and lists; NaN and infinities become null, the one way to say them in JSON
    that pandas and browsers read. Raises DtypeError for a `record` that JSON cannot hold. A line that cannot be written
    is no error but a `RuntimeWarning`, with the same words each time, so that Python shows it once.
    """
    _try_to_write(path, _append, _line(path, record))


def write_jsonl(path: str | os.PathLike[str], records: list[dict[str, Any]]) -> None:
    """Replace the log at `path` by `records`, atomically; values and errors are those of `append_jsonl`."""
    _try_to_write(path, write_atomically, b"".join(_line(path, record) for record in records))


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of the log at `path`, oldest first; lines torn by a crash or a full disk are skipped."""
    try:
        with open(path, "rb") as file:
            records = [_parse(line) for line in file]
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{os.fsdecode(path)}: expected a metrics log, found no such file") from error
    except OSError as error:
        raise DataError(f"{os.fsdecode(path)}: expected a metrics log: {error.strerror}") from error
    return [record for record in records if isinstance(record, dict)]


def trim_jsonl(path: str | os.PathLike[str], epochs: int) -> None:
    """Drop the records of epochs that a resumed run will do again, so that the log at `path` holds each epoch once."""
    if not os.path.exists(path):
        return
    records = read_jsonl(path)
    kept = [record for record in records if record.get("epoch", 0) <= epochs]
    if kept != records:
        write_jsonl(path, kept)


def _line(path: str | os.PathLike[str], record: dict[str, Any]) -> bytes:
    if not isinstance(record, dict):
        raise DtypeError(f"{os.fsdecode(path)}: expected a dict as a metrics record, got {type(record).__name__}")
    try:
        return json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DtypeError(f"{os.fsdecode(path)}: expected a metrics record of JSON values: {error}") from error


def _try_to_write(path: str | os.PathLike[str], write: Callable[..., Any], data: bytes) -> None:
    try:
        write(path, data)
    except OSError as error:
        warnings.warn(f"{os.fsdecode(path)}: metrics not written: {error.strerror}", RuntimeWarning, stacklevel=3)


def _append(path: str | os.PathLike[str], line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a torn line: begin a new one
            line = b"\n" + line
        written = os.write(descriptor, line)
    finally:
        os.close(descriptor)
    if written < len(line):
        raise OSError(0, "the disk took only a part of a line")


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """`value` in types that JSON has."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _plain(child) for key, child in value.items()}
        case list() | tuple():
            return [_plain(child) for child in value]
    return value
