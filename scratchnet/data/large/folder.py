"""Folders of Parquet or CSV files as stored rows, read a part at a time: memory holds one part at any time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import checks
from ...errors import ConfigError, DataError, DataNotFoundError
from ..files.cells import MISSING, checked_dialect, is_number, is_whole, names_of, spelled_twice, warn_if_one
from ..tables import MOST, _ranked
from .stored import StoredRows, Writer, begin, filling, finish, read_about

PART = 1 << 16  # rows
TOO_MANY = {
    1: ("texts", "features=[...] names columns without it"),
    2: ("classes", "classes=False makes values of them"),
}  # of features, of a target
ENDINGS = {".parquet": "parquet", ".csv": "csv"}
PACKED = ".gz", ".bz2", ".xz", ".zst", ".zip"


def from_folder(
    path: str | os.PathLike,
    target: str,
    *,
    store: str | os.PathLike,
    features: Iterable[str] | None = None,
    classes: bool | None = None,
    delimiter: str = ",",
) -> StoredRows:
    """A folder of Parquet or CSV files, however large, as a data set of features float32 and of labels or values.

    path: the folder, below which all .parquet or .csv files are read, in the order of their names, or one such file;
    not what is hidden, nor what is in folders whose names begin with _, where Spark keeps what it has not finished.
    store: a folder that is filled once with the rows as numbers (about 4 bytes a number), and found again while the
    files stay as they are. target: the column of labels; texts and whole numbers become classes, other numbers values,
    (n, 1); classes=True or False says which. features: names of columns; all others than the target, if None. Numbers
    stay as they are; a column of text becomes a feature for each of its texts, as `from_csv` makes them. Ranks and
    workers of one machine fill a store once; those of several need one that all reach.

    Needs pyarrow. Raises DataNotFoundError, or DataError that names the file, row and column that has no finite number.
    """
    path = Path(checks.path("from_folder", path))
    target = checks.instance("from_folder: target", target, str, "the name of a column")
    store = Path(checks.path("from_folder: store", store))
    chosen = None if features is None else list(names_of("from_folder: features", features))
    classes = None if classes is None else checks.flag("from_folder: classes", classes)
    delimiter, _ = checked_dialect("from_folder", delimiter, "utf-8")
    files = _files(path)
    stamps = [[os.fspath(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    source = {"files": stamps, "target": target, "features": chosen, "classes": classes, "delimiter": delimiter}
    folders = {folder for file in files for folder in file.relative_to(path).parts[:-1] if "=" in folder}
    if folders and chosen is None:
        found = f"found {min(folders)!r:.60} in names of folders"
        raise DataError(f"{path}: expected all columns in the files, {found}; features=[...] names those to take")
    try:
        with filling(store):
            if (read_about(store) or {}).get("source") != source:
                _fill(store, files, target, chosen, classes, delimiter, source)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{store}: cannot be written ({error.strerror})") from error
    return StoredRows(store)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataNotFoundError(f"{path}: no such file or folder")
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file, path))
    if packed := [file for file in found if file.suffix.lower() in PACKED]:
        raise DataError(f"{packed[0]}: expected files of rows that are not compressed, found one that is")
    kinds = {file.suffix.lower() for file in found}
    if len(kinds) != 1 or not kinds <= set(ENDINGS):
        there = " and ".join(sorted(kinds)) or "none"
        raise DataError(f"{path}: expected files that end in {' or in '.join(ENDINGS)}, of one kind, found {there}")
    return found


def _counts(file: Path, root: Path) -> bool:
    """Is it a file of rows? One of Spark may be a folder with the name of a file, in which the files are."""
    *folders, name = file.relative_to(root).parts
    is_hidden = name.startswith(".") or any(folder.startswith((".", "_")) for folder in folders)
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    ending = suffixes[0] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes[-1] if suffixes else ""
    return ending in ENDINGS and not is_hidden and file.is_file()


def _fill(
    store: Path,
    files: list[Path],
    target: str,
    chosen: list[str] | None,
    classes: bool | None,
    delimiter: str,
    source: Any,
) -> None:
    try:
        from pyarrow import types
    except ImportError:
        raise ConfigError(f"{files[0]}: expected pyarrow, found none; pip install pyarrow") from None
    into = begin(store)
    tables = [_Table(file, delimiter) for file in files]
    names = chosen or [name for name in tables[0].types if name != target]
    if target in names:
        raise ConfigError(f"from_folder: expected features other than the target, got {target!r} as both")
    for table in tables:
        table.require([*names, target])
    kind = tables[0].types[target]
    if guessed := classes is None:
        classes = not types.is_floating(kind)
    texts = _ranked(_texts(tables, target, 2)) if classes else None
    if guessed and texts and (fractions := [text for text in texts if is_number(text) and not is_whole(text)]):
        raise DataError(
            f"{files[0]}: column {target!r}: expected classes, texts or whole numbers, found {fractions[0]!r:.40}; "
            "classes=False makes values of them"
        )
    if texts and (twice := spelled_twice(texts)):
        found = " and ".join(map(repr, twice))
        raise DataError(f"{files[0]}: column {target!r}: expected one spelling of each number, found {found:.80}")
    are_texts = types.is_string, types.is_large_string, types.is_dictionary
    of_text = [name for name in names if any(is_text(tables[0].types[name]) for is_text in are_texts)]
    categories = {name: sorted(_texts(tables, name, 1)) for name in of_text}
    named = [name for name in names for _ in categories.get(name, (None,))]
    as_text = [*categories, *([target] if classes else ())]
    with Writer(into, named, texts) as writer:
        for table in tables:
            row = 1
            for part in table.parts([*names, target], as_text):
                columns = [column for name in names for column in _columns(table, part, name, categories.get(name))]
                labels = part[target].to_pylist() if classes else _numbers(table, part, target)
                if wrong := writer.write(columns, labels):
                    at, name, expected = wrong
                    name = name or target
                    found = part[name][at].as_py()
                    expected = "a value" if found is None else expected
                    raise DataError(
                        f"{table.path}: row {row + at}: column {name!r}: expected {expected}, found {found!r:.60}"
                    )
                row += part.num_rows
        if not writer.rows:
            raise DataError(f"{files[0].parent}: expected at least one row, found none")
    finish(into, writer.rows, names, texts, source, categories)


class _Table:
    """A file, and the types of its columns."""

    def __init__(self, path: Path, delimiter: str):
        self.path, self._delimiter = path, delimiter
        self.types = self._ask(lambda: {field.name: field.type for field in self._opened({}).schema})

    def _opened(self, forced: dict[str, str]) -> Any:
        import pyarrow
        from pyarrow import csv, dataset

        if self.path.suffix.lower() == ".parquet":
            return dataset.dataset(self.path, format="parquet")
        kinds = {name: getattr(pyarrow, "float64" if kind == "double" else kind)() for name, kind in forced.items()}
        options = csv.ConvertOptions(column_types=kinds, strings_can_be_null=True)
        parsing = csv.ParseOptions(delimiter=self._delimiter)
        return dataset.dataset(self.path, format=dataset.CsvFileFormat(parsing, convert_options=options))

    def parts(self, names: Sequence[str], as_text: Sequence[str]) -> Iterator[Any]:
        """Parts of at most PART rows of these columns: of numbers, or where `as_text` names them of text."""
        forced = dict.fromkeys(names, "double") | dict.fromkeys(as_text, "string")
        bounds = {"batch_size": PART, "batch_readahead": 1, "fragment_readahead": 1}
        parts = self._ask(lambda: iter(self._opened(forced).to_batches(columns=list(names), **bounds)))
        while (part := self._ask(lambda: next(parts, None))) is not None:
            for name in as_text:
                at = part.schema.get_field_index(name)
                part = part.set_column(at, name, _cells(part[name]))
            yield part

    def require(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.types:
                there = ", ".join(map(repr, self.types))
                raise DataError(f"{self.path}: expected a column {name!r:.60}, found {there:.200}")

    def _ask(self, question: Any) -> Any:
        import pyarrow

        try:
            return question()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            text = str(error).splitlines()[0]
            why = text[max(0, text.find("In CSV column")) :]  # of a long line, in which Arrow says what it was doing
            raise DataError(f"{self.path}: cannot be read ({why:.200})") from None


def _cells(column: Any) -> Any:
    """Texts as from_csv takes them: without spaces around them, and none where a cell says that it is missing."""
    from pyarrow import array, compute, scalar, string

    texts = compute.utf8_trim_whitespace(column.cast(string()))
    return compute.if_else(compute.is_in(texts, array(sorted(MISSING))), scalar(None, string()), texts)


def _numbers(table: _Table, part: Any, name: str) -> np.ndarray:
    """A column as float64, NaN where a value is missing."""
    import pyarrow

    try:
        numbers = part[name].cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
        warn_if_one(table.path, name, numbers)
        return numbers
    except pyarrow.ArrowException:
        kind = table.types[name]
        raise DataError(
            f"{table.path}: column {name!r}: expected numbers, found {kind}; features=[...] names columns"
        ) from None


def _columns(table: _Table, part: Any, name: str, texts: Sequence[str] | None) -> list[np.ndarray]:
    """A column of numbers, or those that say which text a column has; NaN where a value is missing."""
    from pyarrow import compute, float64

    if texts is None:
        return [_numbers(table, part, name)]
    return [compute.equal(part[name], text).cast(float64()).to_numpy(zero_copy_only=False) for text in texts]


def _texts(tables: list[_Table], name: str, least: int) -> set[str]:
    """The different texts of a column, at least so many."""
    found: set[str] = set()
    for table in tables:
        for part in table.parts([name], [name]):
            found |= set(part[name].unique().to_pylist()) - {None}
            if len(found) > MOST:
                what, remedy = TOO_MANY[least]
                raise DataError(f"{table.path}: column {name!r}: expected at most {MOST} {what}, found more; {remedy}")
    if len(found) < least:
        what, _ = TOO_MANY[least]
        raise DataError(f"{tables[0].path}: column {name!r}: expected at least {least} {what}, found {sorted(found)}")
    if least == 1 and (numbers := sorted(filter(is_number, found))):
        where = f"{tables[0].path}: column {name!r}"
        raise DataError(f"{where}: expected numbers alone or texts, found both, such as {numbers[0]!r:.40}")
    return found
