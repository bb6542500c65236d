"""Folders with a folder of files for each class: each file in them counts, or is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError, DataNotFoundError


def class_folders(root: Path, what: str, suffixes: Sequence[str]) -> tuple[list[str], list[int], tuple[str, ...]]:
    """(paths, the number of the class of each, names of the classes), all in the order of names.

    what: the files, in messages. suffixes: how their names may end, in small letters. Raises DataNotFoundError, or
    DataError for a class without files, and a file that is in no class or none of these.
    """
    folders = [entry for entry in _entries(root, what) if entry.is_dir()]
    if loose := [entry for entry in _entries(root, what) if not entry.is_dir()]:
        raise DataError(f"{loose[0]}: expected a folder for each class in {root}, found a file")
    if not folders:
        raise DataError(f"{root}: expected a folder of {what} for each class, found none")
    paths: list[str] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        files = _entries(folder, what)
        if not files:
            raise DataError(f"{folder}: expected {what} of the class {folder.name!r}, found none")
        for file in files:
            if file.suffix.lower() not in suffixes or file.is_dir():
                names = " ".join(suffixes[:3]) + " ..." * (len(suffixes) > 3)
                raise DataError(f"{file}: expected {what} ({names}) alone, found something else")
        paths += map(str, files)
        labels += [number] * len(files)
    return paths, labels, tuple(folder.name for folder in folders)


def _entries(folder: Path, what: str) -> list[Path]:
    """What is in a folder, sorted, without hidden files and those that systems leave there."""
    try:
        return sorted(
            x for x in folder.iterdir() if not x.name.startswith(".") and x.name not in ("Thumbs.db", "desktop.ini")
        )
    except FileNotFoundError:
        raise DataNotFoundError(f"{folder}: expected a folder of {what}, found no such folder") from None
    except OSError as error:
        raise DataError(f"{folder}: expected a folder of {what} ({error.strerror})") from error
