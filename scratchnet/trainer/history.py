"""What a run gave: `Trainer.fit` returns it."""

import html
import math
from collections.abc import Sequence
from typing import Any

from .. import checks
from ..drawing import COLOURS, html_table


class History:
    """A list of records, one an epoch, and their columns by name: `history["val_loss"]`.

    records: `epoch`, `step`, `train_loss`, and `val_loss` and `val_accuracy` if there was a validation loader.
    workers: of each worker of a pool the seconds spent `computing`, `merging` and `waiting`, the `shards` it did, and
    `starts`, the processes it had. stopped: why a callback ended the run, or None.
    """

    def __init__(
        self, records: list[dict[str, Any]], workers: Sequence[dict[str, float]] = (), stopped: str | None = None
    ):
        self.records = checks.items("History: records", records, "a list of records")
        self.workers = checks.items("History: workers", workers, "a list, one record a worker")
        self.stopped = stopped

    def lines_of_workers(self) -> list[str]:
        """A line for each worker: how it spent its time. None if there was only one."""
        lines = []
        for rank, row in enumerate(self.workers if len(self.workers) > 1 else []):
            total = sum(row[name] for name in ("computing", "merging", "waiting")) or 1.0
            parts = [f"{row[name] / total:4.0%} {name}" for name in ("computing", "merging", "waiting")]
            again = f", started {row['starts']} times" if row["starts"] > 1 else ""
            lines.append(f"worker {rank}  {'  '.join(parts)}  {row['shards']:,.0f} shards{again}")
        return lines

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, column: str) -> list[Any]:
        """A column, with None where a record lacks it. Raises ConfigError for a name that no record has."""
        if self.records:
            checks.one_of("History", column, self.columns)
        return [record.get(column) for record in self.records]

    @property
    def columns(self) -> list[str]:
        """The names that the records have, in order."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def _table(self) -> list[list[str]]:
        """The records as texts, below their names; of many the first and the last."""
        rows = [[_text(record.get(name)) for name in self.columns] for record in self.records]
        if len(rows) > MANY:
            rows[MANY // 2 : -MANY // 2] = [["..."] * len(self.columns)]
        return [self.columns, *rows]

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(f"{x:>{n}}" for x, n in zip(row, widths, strict=True)) for row in table]
        return "\n".join([f"History of {len(self)} epoch{'s' * (len(self) != 1)}", *lines[: len(lines) * bool(widths)]])

    def _repr_html_(self) -> str:
        """What a notebook shows: the table, and the losses as curves."""
        head, *rows = self._table()
        return html_table(head, rows) + self._curves()

    def _curves(self) -> str:
        """The losses over the epochs as a picture (SVG); none of fewer than two epochs."""
        curves = {name: self[name] for name in self.columns if name.endswith("loss")}
        known = [y for ys in curves.values() for y in ys if isinstance(y, float) and math.isfinite(y)]
        if len(self) < 2 or not known:
            return ""
        low, high = min(known), max(known)
        parts: list[str] = []
        for (name, ys), colour in zip(curves.items(), COLOURS, strict=False):
            points = [
                f"{40 + 400 * i / (len(ys) - 1):.1f},{110 - 100 * (y - low) / ((high - low) or 1):.1f}"
                for i, y in enumerate(ys)
                if isinstance(y, float) and math.isfinite(y)
            ]
            y, stroke = 26 + 20 * len(parts), f'fill="none" stroke="{colour}" stroke-width="2"'
            label = f'<path {stroke} d="M450 {y}h16"/><text x="472" y="{y + 4}">{html.escape(name)}</text>'
            parts.append(f'<polyline {stroke} points="{" ".join(points)}"/>{label}')
        axis = f'<text x="0" y="14">{high:.3g}</text><text x="0" y="114">{low:.3g}</text>'
        return f'<svg width="580" height="120" font-size="12" fill="currentColor">{axis}{"".join(parts)}</svg>'


MANY = 20  # rows of a table


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
