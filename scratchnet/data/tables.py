"""Tables: CSV files and .npz archives as data sets. A cell that is no number, or not there, is named by file and line.

A column of numbers is a feature; a column of text becomes a feature a category, 1 where it is that one (one-hot).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..errors import ConfigError, DataError, DataNotFoundError, ShapeError
from .dataset import TensorDataset
from .files.cells import (
    GROUPING,
    MISSING,
    Table,
    checked_dialect,
    is_number,
    is_whole,
    names_of,
    read_table,
    spelled_twice,
    warn_if_one,
)
from .files.idx import MAX_BYTES
from .rows import as_rows

MOST = 100  # different texts of a column, or whole numbers of a target, that are taken for categories unasked


class TableInputs:
    """How cells become features: what `from_csv` found out, and a saved model keeps.

    columns: names, in order. categories: of each column of text the texts that it may have. fills: of columns of
    numbers, what stands for a missing one. flagged: those of them with a further feature, 1 where the cell is missing.
    one_hot: features (b, features) float32, one for each category; else the numbers of categories, (b, columns) int64.
    """

    kind = "table"

    def __init__(
        self,
        columns: Sequence[str],
        categories: Mapping[str, Sequence[str]],
        delimiter: str = ",",
        encoding: str = "utf-8",
        fills: Mapping[str, float] | None = None,
        flagged: Sequence[str] = (),
        one_hot: bool = True,
    ):
        self.columns = names_of("TableInputs: columns", columns)
        checks.instance("TableInputs: categories", categories, Mapping, "a dict of texts")
        self.categories = {n: names_of("TableInputs: categories", texts) for n, texts in categories.items()}
        self.delimiter, self.encoding = checked_dialect("TableInputs", delimiter, encoding)
        given = {} if fills is None else checks.instance("TableInputs: fills", fills, Mapping, "a dict of numbers")
        self.fills = {name: checks.number("TableInputs: fills", value) for name, value in given.items()}
        self.flagged = names_of("TableInputs: flagged", flagged)
        self.one_hot = checks.flag("TableInputs: one_hot", one_hot)
        if not self.one_hot and (numbers := [name for name in self.columns if name not in self.categories]):
            remedy = "categories=[...] names those to read as text"
            raise ConfigError(f"TableInputs: one_hot=False: expected categories alone, got {numbers[0]!r}; {remedy}")
        self.feature_names = tuple(
            feature for name in self.columns for feature in (self._names_of(name) if self.one_hot else (name,))
        )

    def _names_of(self, name: str) -> list[str]:
        if name in self.categories:
            return [f"{name}={text}" for text in self.categories[name]]
        return [name, f"{name} missing"] if name in self.flagged else [name]

    def __call__(self, rows: Any) -> np.ndarray:
        """Rows as features. rows: dicts of cells, one dict of columns (a DataFrame counts), or a 2-D array of cells in
        the order of `columns`. Raises DataError for what is missing, no number, or an unknown category.
        """
        return self._features(_table_of(rows, self.columns))

    def read(self, path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
        """The features of a file with names of columns, and where each row stands; further columns rest."""
        table = read_table(path, self.delimiter, self.encoding)
        return self._features(table), [table.where(row) for row in range(len(table.lines))]

    def _features(self, table: Table) -> np.ndarray:
        require_columns(table, self.columns)
        found = [self._column(table, name) for name in self.columns]
        empty = np.empty((len(table.lines), 0), np.float32 if self.one_hot else np.int64)
        return np.concatenate(found, axis=1) if found else empty

    def _column(self, table: Table, name: str) -> np.ndarray:
        """The features that a column gives: (rows, 1), or more."""
        if name in self.categories:
            texts = self.categories[name]
            known = _without_missing(table, name) if "" in texts else table
            numbers = numbers_of(known, name, texts, "one of the categories of the training")
            return np.eye(len(texts), dtype=np.float32)[numbers] if self.one_hot else numbers[:, None]
        if name not in self.fills:
            return _floats(table, name)[:, None]
        missing = np.array([cell in MISSING for cell in table.columns[name]], bool)
        filled = _floats(_without_missing(table, name, repr(self.fills[name])), name)[:, None]
        return np.column_stack([filled, missing]).astype(np.float32) if name in self.flagged else filled

    def state_dict(self) -> dict[str, Any]:
        """All there is, as plain values."""
        return {
            "columns": list(self.columns),
            "categories": {name: list(texts) for name, texts in self.categories.items()},
            "delimiter": self.delimiter,
            "encoding": self.encoding,
            "fills": dict(self.fills),
            "flagged": list(self.flagged),
            "one_hot": self.one_hot,
        }

    def __repr__(self) -> str:
        return f"TableInputs({len(self.columns)} columns, {len(self.feature_names)} features)"


def _without_missing(table: Table, name: str, value: str = "") -> Table:
    """The table with `value` for the missing cells of a column."""
    cells = table.columns[name]
    if not MISSING.intersection(cells):
        return table
    return table._replace(columns=table.columns | {name: tuple([value if c in MISSING else c for c in cells])})


def from_csv(
    path: str | os.PathLike,
    target: str | None = None,
    *,
    features: Iterable[str] | None = None,
    categories: Iterable[str] = (),
    classes: bool | None = None,
    missing: str = "refuse",
    like: Any = None,
    delimiter: str = ",",
    encoding: str = "utf-8",
    names: Iterable[str] | None = None,
) -> TensorDataset:
    """A CSV or Parquet file as a data set of features (n, f) float32 and, with `target`, of labels.

    target: the column to learn. Text, or whole numbers, are classes: labels are int64 (n,), and `dataset.classes`
        names them, sorted. Other numbers are values: float32 (n, 1), as a layer with one output gives them.
    features: the columns to learn from; all others unless given. Numbers stay as they are; text becomes a feature for
        each category. categories: columns of numbers that are none, such as a postcode.
    classes: True or False says what the target is. Nobody guesses where it has more than 100 different whole numbers.
    missing: "refuse" names the first cell without a value ("", NA, NaN, null, ?), "drop" leaves out such rows. "fill"
        takes the mean of a column of numbers, with a further feature that says so, and makes a category of text that is
        missing; rows without a target are left out.
    like: the data set of the training, whose columns, categories and classes this file must have.
    path: also of a file in an archive, such as data.zip/table.csv, or of Orange's .tab; Parquet needs pyarrow.
    delimiter, encoding, names: of a CSV file; names of columns where its first line does not hold them.

    `dataset.feature_names` names the features; `dataset.inputs` makes features of other cells, and a Trainer's
    checkpoint keeps it. Raises DataError, which names file, line and column, for cells that are no numbers, rows of
    other lengths, and targets of one class; DataNotFoundError; ConfigError.
    """
    checks.one_of("from_csv: missing", missing, ("refuse", "drop", "fill"))
    chosen = None if features is None else names_of("from_csv: features", features)
    forced = names_of("from_csv: categories", categories)
    if classes is not None:
        classes = checks.flag("from_csv: classes", classes)
    if target is not None:
        checks.instance("from_csv: target", target, str, "the name of a column, or None")
    inputs = _inputs_of("from_csv", like, TableInputs)
    if inputs is not None:
        if chosen is not None or forced or classes is not None:
            raise ConfigError("from_csv: expected features, categories and classes as in `like`, got some beside it")
        classes = like.classes is not None
    table = read_table(path, delimiter, encoding, names)
    if inputs is None:
        require_columns(table, [*(chosen or ()), *forced, *([target] if target is not None else ())])
    columns = list(inputs.columns if inputs else chosen or (name for name in table.columns if name != target))
    require_columns(table, columns)
    if target in columns:
        raise ConfigError(f"from_csv: expected features other than the target, got {target!r} as both")
    if "" in columns:
        remedy = "features=[...] names the columns to take"
        raise DataError(f"{table.path}: expected a name for each column, found one without (pandas' index?); {remedy}")
    if not columns:
        raise DataError(f"{table.path}: expected a column to learn from beside {target!r:.60}, found none")
    used = [*columns, *([target] if target is not None else ())]
    empty = np.zeros(len(table.lines), bool)
    for name in used:
        cells = table.columns[name]
        if absent := MISSING.intersection(cells):
            row = next(i for i, cell in enumerate(cells) if cell in absent)
            if missing == "refuse":
                remedy = "missing='drop' leaves out such rows, missing='fill' fills them"
                raise table.refuse(row, name, "a value", remedy)
            if missing == "drop" or name == target:
                empty |= [cell in absent for cell in cells]
            elif inputs is not None and not (name in inputs.fills or "" in inputs.categories.get(name, ())):
                raise table.refuse(row, name, "a value, as all rows of the training have")
    if empty.any():
        table = table.kept(~empty)
        if not table.lines:
            raise DataError(f"{table.path}: expected rows with values in all columns, found none")
    if inputs is None:
        texts = {name: found for name in columns if (found := _categories(table, name, name in forced)) is not None}
        numbers = [name for name in columns if name not in texts] if missing == "fill" else []
        fills = {name: _mean(table, name) for name in numbers}
        flagged = [name for name in numbers if MISSING.intersection(table.columns[name])]
        inputs = TableInputs(columns, texts, delimiter, encoding, fills, flagged)
    arrays, known = [inputs._features(table)], None
    if target is not None:
        labels, known = _labels(table, target, classes, None if like is None else like.classes)
        arrays.append(labels)
    return described(TensorDataset(*arrays), inputs, known)


def ratings_csv(
    path: str | os.PathLike,
    user: str = "user",
    item: str = "item",
    rating: str | None = "rating",
    *,
    like: Any = None,
    delimiter: str = ",",
    encoding: str = "utf-8",
    names: Iterable[str] | None = None,
) -> TensorDataset:
    """A file of ratings as a data set of the numbers of users and items, (n, 2) int64, and of ratings, (n, 1) float32.

    user, item, rating: names of columns; rating=None reads pairs alone. Users and items are numbered in the order of
    their names, numbers as numbers; `dataset.inputs.categories` has them. like: the data set of the training, whose
    users and items these must be. path, delimiter, encoding, names: as for `from_csv`, whose errors it raises.
    """
    for what, value in {"user": user, "item": item, "rating": rating}.items():
        if not (isinstance(value, str) or (what == "rating" and value is None)):
            checks.refuse(f"ratings_csv: {what}", "the name of a column", value)
    inputs = _inputs_of("ratings_csv", like, TableInputs)
    if len({user, item, rating}) < 3:
        raise ConfigError(f"ratings_csv: expected three different columns, got {user!r}, {item!r} and {rating!r}")
    table = read_table(path, delimiter, encoding, names)
    columns = [user, item]
    require_columns(table, [*columns, *([rating] if rating is not None else ())])
    for name in columns:
        if absent := MISSING.intersection(table.columns[name]):
            raise table.refuse(next(i for i, c in enumerate(table.columns[name]) if c in absent), name, "a value")
    if inputs is None:
        inputs = TableInputs(
            columns, {n: _ranked(table.columns[n]) for n in columns}, delimiter, encoding, one_hot=False
        )
    elif inputs.columns != tuple(columns) or inputs.one_hot:
        raise ConfigError(
            f"ratings_csv: expected the columns of `like`, {', '.join(inputs.columns)}, got {user}, {item}"
        )
    values = [] if rating is None else [_floats(table, rating)[:, None]]
    return described(TensorDataset(inputs._features(table), *values), inputs)


def _ranked(cells: Iterable[str]) -> list[str]:
    """The different cells in order: that of numbers, where all are whole numbers."""
    different = set(cells)
    return sorted(different, key=(lambda cell: (int(cell), cell)) if all(map(is_whole, different)) else None)


def described(dataset: TensorDataset, inputs: Any, classes: Any = None) -> TensorDataset:
    """The data set, which now knows how its features were made, and the names of its classes."""
    dataset.inputs, dataset.classes = inputs, None if classes is None else tuple(classes)
    dataset.feature_names = getattr(inputs, "feature_names", None)
    return dataset


def _inputs_of(what: str, like: Any, kind: type) -> Any:
    """The inputs of the data set of the training, if there is one; that may be a view of it."""
    found = getattr(like, "inputs", None)
    if like is not None and not isinstance(found, kind):
        checks.refuse(f"{what}: like", f"a data set of {what}", like)
    return found


# --- columns ----------------------------------------------------------------------------------------------------------


def require_columns(table: Table, names: Iterable[Any]) -> None:
    """Raises DataError for a column that is not there."""
    for name in names:
        if name not in table.columns:
            there = ", ".join(map(repr, table.columns))
            hint = next((f"; delimiter={mark!r}?" for mark in ";\t|" if len(table.columns) == 1 and mark in there), "")
            raise DataError(f"{table.path}: expected a column {name!r:.60}, found {there:.200}{hint}")


def _floats(table: Table, name: str) -> np.ndarray:
    cells = table.columns[name]
    try:
        if any(GROUPING in cell for cell in cells):
            raise ValueError(GROUPING)
        numbers = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        row = next(i for i, cell in enumerate(cells) if not is_number(cell))
        empty = cells[row] in MISSING
        raise table.refuse(row, name, "a value" if empty else "a number", "" if empty else NO_NUMBER) from None
    with np.errstate(over="ignore"):
        floats = numbers.astype(np.float32)
    if not np.isfinite(floats).all():
        raise table.refuse(int(np.argmin(np.isfinite(floats))), name, "a finite number of float32")
    warn_if_one(table.path, name, numbers)
    return floats


NO_NUMBER = "numbers have a decimal point and no other signs; categories=[...] reads a column as text"


def _categories(table: Table, name: str, forced: bool) -> tuple[str, ...] | None:
    """The different texts of a column, sorted, "" for what is missing; None for one of numbers."""
    different = set(_without_missing(table, name).columns[name])
    if not forced and any(map(is_number, different)):  # one with both is refused when it is read
        return None
    if different == {""}:
        raise DataError(f"{table.path}: column {name!r}: expected a value, found none in all rows; leave it out")
    if not forced and len(different) > MOST:
        raise DataError(
            f"{table.path}: column {name!r}: expected numbers or at most {MOST} categories, found {len(different)} "
            f"texts, such as {min(different - {''})!r:.40}; "
            "leave it out by features=[...], or name it in categories=[...]"
        )
    return tuple(sorted(different))


def _mean(table: Table, name: str) -> float:
    """The mean of the values of a column that are there."""
    there = table.kept(np.array([cell not in MISSING for cell in table.columns[name]]))
    return float(_floats(there, name).mean(dtype=np.float64))


def numbers_of(table: Table, name: str, texts: Sequence[str], expected: str) -> np.ndarray:
    """The number of each cell of a column among `texts`. Raises DataError for the first that is not there."""
    number = {text: i for i, text in enumerate(texts)}
    cells = table.columns[name]
    try:
        return np.fromiter((number[cell] for cell in cells), np.int64, len(cells))
    except KeyError:
        row = next(i for i, cell in enumerate(cells) if cell not in number)
        raise table.refuse(row, name, f"{expected} ({', '.join(texts):.80})") from None


def _labels(table: Table, name: str, classes: bool | None, known: Any) -> tuple[np.ndarray, Any]:
    """(labels, names of the classes), or (values, None). known: the names, in the training."""
    if known is not None:
        return numbers_of(table, name, known, "a class of the training"), known
    different = set(table.columns[name])
    whole = all(map(is_whole, different))
    if classes is None and whole and len(different) > MOST:
        raise ConfigError(
            f"{table.path}: column {name!r}: expected at most {MOST} classes, found {len(different)} different whole "
            "numbers; classes=False makes values of them, classes=True classes"
        )
    if classes is None:
        classes = whole or not any(map(is_number, different))
    if not classes:
        return _floats(table, name)[:, None], None
    if len(different) < 2:
        raise DataError(f"{table.path}: column {name!r}: expected at least two classes, found only {min(different)!r}")
    found = _ranked(different)
    if twice := spelled_twice(found):
        row = table.columns[name].index(twice[1])
        raise table.refuse(row, name, f"one spelling of each number, such as {twice[0]!r}")
    return numbers_of(table, name, found, "a class"), found


def label_numbers(table: Table, name: str, like: Any) -> tuple[np.ndarray, Any]:
    """(labels, names of the classes) of a column of classes. Raises DataError for a number with a fraction."""
    for row, cell in enumerate(table.columns[name] if like is None else ()):
        if is_number(cell) and not is_whole(cell):
            raise table.refuse(row, name, "a class, a name or a whole number")
    return _labels(table, name, True, None if like is None else like.classes)


def _table_of(rows: Any, columns: Sequence[str]) -> Table:
    """Cells that are in memory, as the text of a table."""
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # a DataFrame
        rows = {str(name): list(rows[name]) for name in rows.columns}
    if isinstance(rows, Mapping):
        cells = {str(name): value if _is_row(value) else [value] for name, value in rows.items()}
    else:
        given = rows.tolist() if isinstance(rows, np.ndarray) else checks.items("predict", rows, "rows of cells")
        given = given if given and all(_is_row(row) or isinstance(row, Mapping) for row in given) else [given]
        if all(isinstance(row, Mapping) for row in given):
            return _table_of({name: [row.get(name, "") for row in given] for name in given[0]}, columns)
        if lengths := [len(row) for row in given if len(row) != len(columns)]:
            raise ShapeError(f"predict: expected rows of {len(columns)} cells, {', '.join(columns)}, got {lengths[0]}")
        cells = dict(zip(columns, zip(*given, strict=True), strict=True))
    lengths = [len(value) for value in cells.values()]
    if len(set(lengths)) > 1:
        raise ShapeError(f"predict: expected columns of equal length, got {lengths}")
    texts = {
        name: tuple([cell if isinstance(cell, str) else str(cell) for cell in value]) for name, value in cells.items()
    }
    return Table("predict", texts, [*range(1, (lengths or [0])[0] + 1)])


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


# --- archives of NumPy ------------------------------------------------------------------------------------------------


def from_npz(
    path: str | os.PathLike,
    features: str = "x",
    target: str | None = "y",
    scale: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> TensorDataset:
    """The arrays of an .npz archive as a data set; float64 is read as float32. Nothing is unpickled.

    features, target: names of arrays of equal length; target=None reads features alone. scale: see TensorDataset.
    max_bytes: the most that the archive may claim to unpack to.
    Raises DataNotFoundError, or DataError for a file that is no archive, lacks an array, or holds objects.
    """
    path, max_bytes = checks.path("from_npz", path), checks.integer("from_npz: max_bytes", max_bytes, 0)
    for what, value in {"features": features, "target": target}.items():
        if not (isinstance(value, str) or (what == "target" and value is None)):
            checks.refuse(f"from_npz: {what}", "the name of an array", value)
    arrays = []
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > max_bytes:
            raise DataError(
                f"{path}: expected at most {max_bytes} bytes of data (`max_bytes`), found a claim of {claimed}"
            )
        with np.load(path, allow_pickle=False) as archive:
            for name in [features] if target is None else [features, target]:
                if name not in archive.files:
                    there = ", ".join(archive.files)
                    raise DataError(
                        f"{path}: expected an array {name!r:.60}, found {there:.200}; features= and target= name them"
                    )
                array = as_rows(archive[name], f"{path}: {name}")
                if array.dtype == np.float64:
                    warn_if_one(path, name, array, "save float32, or differences to the first of such numbers")
                arrays.append(array.astype(np.float32) if array.dtype == np.float64 else array)
    except FileNotFoundError:
        raise DataNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
        if isinstance(error, DataError | ShapeError):
            raise
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error).splitlines()[0]
        raise DataError(f"{path}: expected an .npz archive of numbers ({reason})") from error
    return TensorDataset(*arrays, scale=scale)
