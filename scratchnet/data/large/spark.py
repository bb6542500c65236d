"""A DataFrame of Spark as stored rows: executors sort, check and write their own parts, through Arrow.

The driver learns how many rows each part has, and the names of classes. No row passes through it.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ... import checks
from ...errors import ConfigError, DataError
from ..files.cells import names_of
from ..tables import MOST, _ranked
from .stored import FEATURES, LABELS, StoredRows, Writer, begin, finish

REPORT = "part long, rows long, problem string"  # what a task says about its part


def from_spark(
    df: Any,
    *,
    features: Iterable[str],
    label: str,
    order_by: Iterable[str] | str,
    store: str | os.PathLike,
    classes: bool | None = None,
) -> StoredRows:
    """A DataFrame of Spark as a data set of features float32 and of labels or values, whose rows are in a fixed order.

    features: names of columns of numbers. label: a column; texts and whole numbers become classes, other numbers
    values, (n, 1); classes=True or False says which. order_by: the columns that order the rows; rows equal in them are
    ordered by all others, so the order, and what is trained on it, does not depend on partitions. store: a folder that
    all executors and ranks reach, such as one of a network file system; each executor writes its own rows there.

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
    classes = _is_of_classes(df, label) if classes is None else checks.flag("from_spark: classes", classes)
    texts = _vocabulary(df, label) if classes else None
    columns = [df[f"`{name}`"].cast("double").alias(f"f{i}") for i, name in enumerate(names)]
    target = df[f"`{label}`"].cast("string" if classes else "double").alias("label")
    keys = [f"`{name}`" for name in dict.fromkeys([*order, *names, label])]
    ordered = df.orderBy(*keys).select(*columns, target).persist()
    try:
        counts = {part: rows for part, rows, _ in _collected(ordered.mapInArrow(_count, REPORT))}
        parts = sorted(counts)
        starts = dict(zip(parts, itertools.accumulate((counts[p] for p in parts), initial=0), strict=False))
        total = sum(counts.values())
        if not total:
            raise DataError("from_spark: expected at least one row, found none")
        folder.mkdir(parents=True, exist_ok=True)
        begin(folder)
        os.truncate(folder / FEATURES, 4 * len(names) * total)
        os.truncate(folder / LABELS, (4 if texts is None else 8) * total)
        write = functools.partial(_write, os.fspath(folder), names, label, texts, starts)
        reports = _collected(ordered.mapInArrow(write, REPORT))
    finally:
        ordered.unpersist()
    for _, _, problem in sorted(reports):
        if problem:
            raise DataError(f"from_spark: {problem}")
    written = {part: rows for part, rows, _ in reports}
    if written != counts:
        raise DataError(f"from_spark: expected {total} rows of {len(counts)} parts, wrote {sum(written.values())}")
    finish(folder, total, names, texts, {"spark": [*names, label, *order]})
    return StoredRows(folder)


def _collected(frame: Any) -> list[Any]:
    try:
        return frame.collect()
    except Exception as error:
        raise DataError(f"from_spark: {reason_of(error)}") from None


def _is_of_classes(df: Any, label: str) -> bool:
    kind = dict(df.dtypes)[label]
    return not kind.startswith(("float", "double", "decimal"))


def _vocabulary(df: Any, label: str) -> list[str]:
    texts = _collected(df.select(df[f"`{label}`"].cast("string").alias("label")).distinct().limit(MOST + 2))
    found = {row.label for row in texts} - {None}
    if not 2 <= len(found) <= MOST:
        raise DataError(
            f"from_spark: column {label!r}: expected 2 to {MOST} classes, found {len(found)}"
            f"{'; classes=False makes values of them' if len(found) > MOST else ''}"
        )
    return _ranked(found)


# --- Spark's errors ------------------------------------------------------------------------------------------------


def reason_of(error: BaseException) -> str:
    """Spark's errors hold stacks of Java and Python: the last line of Python's says what happened, if there is one."""
    lines = [line.strip() for line in str(error).splitlines()]
    raised = [
        line for line in lines if re.match(r"(?!org\.|java\.|py4j\.)[\w.]*(Error|Exception|Mismatch)\b.*: ", line)
    ]
    aborted = [line for line in lines if "Job aborted" in line or "cancelled" in line]
    unfit = [line for line in lines if "Cannot run program" in line]  # the Python of executors is not there
    return [f"{type(error).__name__}: {next(iter(lines), '')}", *aborted[:1], *unfit[:1], *raised[-1:]][-1][:500]


# --- what tasks do ---------------------------------------------------------------------------------------------------


def _count(batches: Iterator[Any]) -> Iterator[Any]:
    yield _report(sum(batch.num_rows for batch in batches))


def _write(
    folder: str, names: list[str], label: str, texts: Any, starts: dict[int, int], batches: Iterator[Any]
) -> Iterator[Any]:
    """Writes a part to its place: a task that is tried again writes the same bytes to the same place."""
    from pyspark import TaskContext

    first = starts[TaskContext.get().partitionId()]  # type: ignore[union-attr]
    with Writer(Path(folder), names, texts, first) as writer:
        for batch in batches:
            *columns, labels = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
            columns = [np.asarray(column, np.float64) for column in columns]
            if wrong := writer.write(columns, labels.tolist() if texts else np.asarray(labels, np.float64)):
                at, name, expected = wrong
                name = name or label
                value = batch.columns[names.index(name) if name in names else -1][at].as_py()
                where = f"row {writer.rows + at} in the order of order_by"
                yield _report(0, f"column {name!r}: {where}: expected {expected}, found {value!r:.60}")
                return
        rows = writer.rows - first
    yield _report(rows)


def _report(rows: int, problem: str = "") -> Any:
    import pyarrow
    from pyspark import TaskContext

    part = TaskContext.get().partitionId()  # type: ignore[union-attr]
    return pyarrow.record_batch(
        [pyarrow.array([part], pyarrow.int64()), pyarrow.array([rows], pyarrow.int64()), pyarrow.array([problem])],
        names=["part", "rows", "problem"],
    )
