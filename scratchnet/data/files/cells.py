"""Tables of cells: CSV, Orange's .tab and Parquet files as columns of text. The content decides, not the name."""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from ... import checks
from ...errors import ConfigError, DataError
from .content import read_bytes

# Cells without a value. (Looking for spellings takes a twentieth of the time of turning all cells to small letters.)
NAMES = "NA", "N/A", "NaN", "Null", "None"
MISSING = frozenset(["", "?", *NAMES, *(name.lower() for name in NAMES), *(name.upper() for name in NAMES)])


class Table(NamedTuple):
    """The cells of a file as text: of each column by name, and the line on which each row ends."""

    path: str
    columns: dict[str, tuple[str, ...]]
    lines: list[int]
    unit: str = "line"  # what `lines` count

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.path} {self.unit} {self.lines[row]}"

    def refuse(self, row: int, name: str, expected: str, remedy: str = "") -> DataError:
        """The error for a cell."""
        found = f"{self.path}: {self.unit} {self.lines[row]}: column {name!r}: expected {expected}"
        return DataError(f"{found}, found {self.columns[name][row]!r:.60}{f'; {remedy}' if remedy else ''}")

    def kept(self, rows: np.ndarray) -> Table:
        """The rows for which `rows` is true."""
        chosen = np.flatnonzero(rows).tolist()
        columns = {name: tuple([cells[i] for i in chosen]) for name, cells in self.columns.items()}
        return self._replace(columns=columns, lines=[self.lines[i] for i in chosen])


def names_of(what: str, values: Any) -> tuple[str, ...]:
    """The values as texts. Raises ConfigError for anything else."""
    given = checks.items(what, values, "a list of names")
    if not all(isinstance(value, str) for value in given):
        checks.refuse(what, "a list of names", values)
    return tuple(given)


def checked_dialect(what: str, delimiter: Any, encoding: Any) -> tuple[str, str]:
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        checks.refuse(f"{what}: delimiter", "one character, such as ';' or '\\t'", delimiter)
    return delimiter, checks.instance(f"{what}: encoding", encoding, str, "a name, such as 'utf-8' or 'cp1252'")


GROUPING = "_"  # float() reads 1_2 as 12, as in a program; in a file it is a name


def is_number(cell: str) -> bool:
    """Does float() read it, and is it no name such as 1_2?"""
    try:
        float(cell)
    except ValueError:
        return False
    return GROUPING not in cell


def is_whole(cell: str) -> bool:
    """Is it a whole number, with one sign at most?"""
    return cell.removeprefix("-" if cell.startswith("-") else "+").isdecimal()


def spelled_twice(texts: Iterable[str]) -> tuple[str, str] | None:
    """Two of the texts that are one number, such as 01 and 1, or 1.0; None if there are none."""
    first: dict[Decimal, str] = {}
    numbers = [text for text in texts if is_number(text)]
    return next(((other, text) for text in numbers if (other := first.setdefault(Decimal(text), text)) != text), None)


EXACT = 1 << 24  # integers up to this are numbers of float32


NO_NUMBER = "if it counts or names something, leave it out or read it as text: categories=[...]"


def warn_if_one(path: Any, name: str, numbers: np.ndarray, remedy: str = NO_NUMBER) -> None:
    """Warns of a column (n,) float64, or of several (n, ...), with different numbers that are one in float32."""
    columns = numbers.reshape(len(numbers), math.prod(numbers.shape[1:])).T
    with np.errstate(over="ignore"):
        for column in columns[(np.abs(columns) > EXACT).any(axis=1)]:
            if len(np.unique(column.astype(np.float32))) < len(np.unique(column)):
                why = f"{path}: column {name!r}: different numbers become one as float32, which has 24 bits"
                warnings.warn(f"{why}; {remedy}", stacklevel=3)
                return


def read_table(
    path: str | os.PathLike, delimiter: str = ",", encoding: str = "utf-8", names: Iterable[str] | None = None
) -> Table:
    """The cells of a CSV, a Parquet, or Orange's .tab file, which may lie in an archive (see read_bytes).

    delimiter, encoding: of a CSV file; the others have their own. names: of the columns, where the first line does not
    hold them. Raises DataNotFoundError, or DataError for a file that is empty, has rows of other lengths, two columns
    of one name, or another encoding.
    """
    path = checks.path("read_csv", path)
    delimiter, encoding = checked_dialect("read_csv", delimiter, encoding)
    given = None if names is None else list(names_of("read_csv: names", names))
    content = read_bytes(path)
    if content[:4] == b"PAR1":
        if given is not None:
            raise ConfigError(f"{path}: expected no names beside those of a Parquet file, got {', '.join(given):.60}")
        return _parquet(path, content)
    return _csv(path, _decoded(path, content, encoding), delimiter, given)


def _decoded(path: str, content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise ConfigError(f"read_csv: encoding: expected one that Python knows, got {encoding!r:.60}") from None
    except UnicodeDecodeError as error:
        line, found = content[: error.start].count(b"\n") + 1, content[error.start : error.start + 1].hex()
        is_wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # the mark that begins a file of UTF-16
        remedy = "encoding='utf-16'" if is_wide else "encoding='cp1252' reads what older programs of Windows wrote"
        raise DataError(f"{path}: line {line}: expected text in {encoding}, found byte {found}; {remedy}") from None
    except UnicodeError as error:
        raise DataError(f"{path}: expected text in {encoding} ({error})") from None


def _csv(path: str, text: str, delimiter: str, names: list[str] | None) -> Table:
    orange = path.endswith(".tab") and names is None  # lines 2 and 3 say what columns are
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if orange else delimiter, skipinitialspace=True, strict=True
    )
    try:
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: expected a row of CSV ({error})") from None
    if names is not None:
        header, before = names, "columns in `names`"
    elif rows:
        header, before = rows.pop(0), "cells, as in the first line"
        lines.pop(0)
        if all(is_number(name) for name in header):
            remedy = "names=[...] gives names to a file without them"
            raise DataError(f"{path}: line 1: expected names of columns, found numbers; {remedy}")
    if orange:
        del rows[:2], lines[:2]
    if not rows:
        raise DataError(f"{path}: expected at least one row of cells, found {'an empty file' if not text else 'none'}")
    _require_different(path, header)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise DataError(f"{path}: line {line}: expected {len(header)} {before}, found {len(row)}")
    return Table(path, dict(zip(header, zip(*rows, strict=True), strict=True)), lines)


def _require_different(path: str, header: list[str]) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: expected columns of different names, found {twice[0]!r} twice")


def _parquet(path: str, content: bytes) -> Table:
    """The cells as Python prints them: numbers keep all their digits, what is missing is an empty cell."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(f"{path}: expected pyarrow for a Parquet file, found none; pip install pyarrow") from None
    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: expected a Parquet file ({str(error).splitlines()[0]:.80})") from None
    if nested := [field.name for field in table.schema if pyarrow.types.is_nested(field.type)]:
        raise DataError(
            f"{path}: expected columns of numbers and text, found {table.schema.field(nested[0]).type} in {nested[0]!r}"
        )
    if not table.num_rows:
        raise DataError(f"{path}: expected at least one row of cells, found none")
    names = [str(name) for name in table.column_names]
    _require_different(path, names)
    columns = {
        name: tuple(["" if cell is None else str(cell).strip() for cell in column.to_pylist()])
        for name, column in zip(names, table.columns, strict=True)
    }
    return Table(path, columns, [*range(1, table.num_rows + 1)], "row")
