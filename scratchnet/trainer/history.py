"""What a run gave: `Trainer.fit` returns it."""

from collections.abc import Sequence
from typing import Any

from .. import checks


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
        return [record.get(column) for record in self.records]

    def __repr__(self) -> str:
        return f"History({len(self)} epochs, last {self.records[-1] if self.records else None})"
