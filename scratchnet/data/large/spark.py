"""A DataFrame of Spark as stored rows: executors sort, check and write their own parts, through Arrow.

The driver learns how many rows each part has, and the names of classes. No row passes through it.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from ... import checks
from ...errors import ConfigError, DataError
from ..files.cells import names_of
from ..tables import MOST, _ranked
from .scattered import ScatteredRows, seal
from .stored import FILES, StoredRows, Writer, begin, finish, why_not_shared

REPORT = "part long, rows long, problem string"  # what a task says about its part


@overload
def from_spark(
    df: Any, *, features: Iterable[str], label: str, order_by: Iterable[str] | str, store: str | os.PathLike,
    classes: bool | None = None, missing: str = "refuse", shared: Literal[True] = True,
) -> StoredRows: ...  # fmt: skip
@overload
def from_spark(
    df: Any, *, features: Iterable[str], label: str, order_by: Iterable[str] | str, store: str | os.PathLike,
    classes: bool | None = None, missing: str = "refuse", shared: Literal[False],
) -> ScatteredRows: ...  # fmt: skip
def from_spark(
    df: Any,
    *,
    features: Iterable[str],
    label: str,
    order_by: Iterable[str] | str,
    store: str | os.PathLike,
    classes: bool | None = None,
    missing: str = "refuse",
    shared: bool = True,
) -> StoredRows | ScatteredRows:
    """A DataFrame of Spark as a data set of features float32 and of labels or values, whose rows are in a fixed order.

    features: names of columns. Numbers stay as they are; a column of text becomes a feature for each of its texts, 1
    where it is that one, as `from_csv` makes them; executors find the texts. missing: "refuse" names the first row
    that lacks a value, "drop" leaves such rows out. label: a column; texts and whole numbers become classes, other
    numbers values, (n, 1); classes=True or False says which. order_by: the columns that order the rows; rows equal in
    them are ordered by all others, so the order, and what is trained on it, does not depend on partitions. store: a
    folder that all executors and ranks share, such as one of a network file system; executors write their rows there.
    shared=False: a folder on the disk of each machine, and rows that ranks bring together, see `ScatteredRows`.

    Pass the data set to `clusters.spark.run` as an argument: it travels as the name of the folder, and each rank reads
    the rows that it computes on. Raises DataError that names a column and a row in that order, or ConfigError.
    """
    if not hasattr(df, "mapInArrow"):
        checks.refuse("from_spark", "a DataFrame of Spark", df)
    names = list(names_of("from_spark: features", features))
    order = [order_by] if isinstance(order_by, str) else list(names_of("from_spark: order_by", order_by))
    label = checks.instance("from_spark: label", label, str, "the name of a column")
    folder = Path(checks.path("from_spark: store", store)).absolute()
    for name in [*names, label, *order]:
        if name not in df.columns:
            raise DataError(f"from_spark: expected a column {name!r:.60}, found {', '.join(df.columns):.200}")
    if label in names or not names or not order:
        raise ConfigError("from_spark: expected features other than the label, and columns to order by")
    shared = checks.flag("from_spark: shared", shared)
    classes = _is_of_classes(df, label) if classes is None else checks.flag("from_spark: classes", classes)
    if checks.one_of("from_spark: missing", missing, ("refuse", "drop")) == "drop":
        df = df.dropna(subset=[f"`{name}`" for name in (*names, label)])
    categories = {name: sorted(_texts(df, name, 1)) for name, kind in df.dtypes if kind == "string" and name in names}
    texts = _ranked(_texts(df, label, 2)) if classes else None
    columns = [(name, column) for name in names for column in _columns(df, name, categories.get(name))]
    target = df[f"`{label}`"].cast("string" if classes else "double").alias("label")
    keys = [f"`{name}`" for name in dict.fromkeys([*order, *names, label])]
    numbered = [column.alias(f"f{i}") for i, (_, column) in enumerate(columns)]
    ordered = _asked(lambda: df.orderBy(*keys).select(*numbered, target)).persist()
    try:
        counts = {part: rows for part, rows, _ in _collected(ordered.mapInArrow(_count, REPORT))}
        parts = sorted(counts)
        starts = dict(zip(parts, itertools.accumulate((counts[p] for p in parts), initial=0), strict=False))
        total = sum(counts.values())
        if not total:
            raise DataError("from_spark: expected at least one row, found none")
        if shared:
            folder.mkdir(parents=True, exist_ok=True)
        files = begin(folder) if shared else folder / f"{FILES}{secrets.token_hex(8)}"
        named = [name for name, _ in columns]
        write = functools.partial(_write, os.fspath(files), shared, named, label, texts, starts, total)
        reports = _collected(ordered.mapInArrow(write, REPORT))
    finally:
        ordered.unpersist()
    for _, _, problem in sorted(reports):
        if problem:
            raise DataError(f"from_spark: {problem}")
    written = {part: rows for part, rows, _ in reports}
    if written != counts:
        raise DataError(f"from_spark: expected {total} rows of {len(counts)} parts, wrote {sum(written.values())}")
    source = {"spark": [*names, label, *order]}
    if not shared:
        bounds = [*sorted(starts[part] for part, rows in counts.items() if rows), total]
        about = {"features": names, "classes": texts, "source": source, "categories": categories}
        return ScatteredRows(os.fspath(files), bounds, len(columns), about)
    finish(files, total, names, texts, source, categories)
    return StoredRows(folder)


def _collected(frame: Any) -> list[Any]:
    return _asked(frame.collect)


def _asked(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception as error:
        raise DataError(f"from_spark: {reason_of(error)}") from None


def _is_of_classes(df: Any, label: str) -> bool:
    kind = dict(df.dtypes)[label]
    return not kind.startswith(("float", "double", "decimal"))


def _texts(df: Any, name: str, least: int) -> set[str]:
    """The different texts of a column, at least so many."""
    texts = _collected(df.select(df[f"`{name}`"].cast("string").alias("text")).distinct().limit(MOST + 2))
    found = {row.text for row in texts} - {None}
    if not least <= len(found) <= MOST:
        remedy = "cast it to double if it holds numbers" if least == 1 else "classes=False makes values of them"
        what = "texts" if least == 1 else "classes"
        raise DataError(
            f"from_spark: column {name!r}: expected {least} to {MOST} {what}, found {len(found)}"
            f"{f'; {remedy}' if len(found) > MOST else ''}"
        )
    return found


def _columns(df: Any, name: str, texts: list[str] | None) -> list[Any]:
    """A column of numbers, or those that say which text a column has; null where a value is missing."""
    column = df[f"`{name}`"]
    if texts is None:
        return [column.cast("double")]
    return [(column == text).cast("double") for text in texts]


# --- Spark's errors ------------------------------------------------------------------------------------------------


def reason_of(error: BaseException) -> str:
    """Spark's errors hold stacks of Java and Python: the last line of Python's says what happened, if there is one."""
    lines = [line.strip() for line in str(error).splitlines()]
    raised = [
        line for line in lines if re.match(r"(?!org\.|java\.|py4j\.)[\w.]*(Error|Exception|Mismatch)\b.*: ", line)
    ]
    thrown = [line[2:] for line in lines if line.startswith(": ")]  # what Java threw, below the call that Python made
    aborted = [line for line in lines if "Job aborted" in line or "cancelled" in line]
    unfit = [line for line in lines if "Cannot run program" in line]  # the Python of executors is not there
    return [f"{type(error).__name__}: {next(iter(lines), '')}", *thrown[:1], *aborted[:1], *unfit[:1], *raised[-1:]][
        -1
    ][:500]


# --- what tasks do ---------------------------------------------------------------------------------------------------


def _count(batches: Iterator[Any]) -> Iterator[Any]:
    yield _report(sum(batch.num_rows for batch in batches))


def _write(
    folder: str,
    shared: bool,
    names: list[str],
    label: str,
    texts: Any,
    starts: dict[int, int],
    total: int,
    batches: Iterator[Any],
) -> Iterator[Any]:
    """Writes a part to its place: a task that is tried again writes the same bytes to the same place."""
    from pyspark import TaskContext

    files = Path(folder)
    if shared and (problem := why_not_shared(files)):
        yield _report(0, problem)
        return
    files.mkdir(parents=True, exist_ok=True)
    first = starts[TaskContext.get().partitionId()]  # type: ignore[union-attr]
    with Writer(files, names, texts, first, total) as writer:
        for batch in batches:
            *columns, labels = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
            columns = [np.asarray(column, np.float64) for column in columns]
            if wrong := writer.write(columns, labels.tolist() if texts else np.asarray(labels, np.float64)):
                at, name, expected = wrong
                name = name or label
                value = batch.columns[names.index(name) if name in names else -1][at].as_py()
                where = f"row {writer.rows + at} in the order of order_by"
                expected = "a value" if value is None else expected
                yield _report(0, f"column {name!r}: {where}: expected {expected}, found {value!r:.60}")
                return
        rows = writer.rows - first
    if rows and not shared:
        seal(files, first)
    yield _report(rows)


def _report(rows: int, problem: str = "") -> Any:
    import pyarrow
    from pyspark import TaskContext

    part = TaskContext.get().partitionId()  # type: ignore[union-attr]
    return pyarrow.record_batch(
        [pyarrow.array([part], pyarrow.int64()), pyarrow.array([rows], pyarrow.int64()), pyarrow.array([problem])],
        names=["part", "rows", "problem"],
    )
