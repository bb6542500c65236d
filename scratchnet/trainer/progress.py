"""What a run shows while it trains: a progress bar over the batches of an epoch, and a line at its end."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..parallel.engines import Engine
from ..parallel.shards import SHARDS

SHOW_EVERY = 0.5  # seconds between two looks at the workers


def first_line(count: int, what: str, shards: int, is_default: bool, is_exact: bool) -> str:
    """What the bits of a run depend on, in one line. count: of workers or ranks, `what`; is_default: nobody chose K."""
    each = f"{count} {what}{'s' * (count > 1)}, {shards} shard{'s' * (shards > 1)} a batch"
    if count > shards:
        each += f" ({count - shards} {what}{'s' * (count - shards > 1)} without one)"
    if not is_exact:
        return f"{each}: with this strategy the bits differ from run to run"
    if not is_default:
        return f"{each}: any number of {what}s gives the same bits"
    if shards == 1:
        return f"{each}: several {what}s take {SHARDS} and get other bits, unless shards=1 is given"
    return f"{each}: any other number gives the same bits, one with shards={shards}"


ORDERS = {  # what precision_lines says of kernels/cpu/gemm_bfloat16.py, WAYS, and of a GPU
    "widened": "rounded as they are packed, and multiplied as float32: none is faster here",
    "pairs": "multiplied by this CPU's vectors of pairs (avx512_bf16); a CPU without them gets other last bits",
    "tiles": "multiplied by this CPU's matrix units (AMX); a CPU without them gets other last bits",
    "tensor cores": "rounded as they are read, and multiplied by tensor cores; a GPU without them gets other last bits",
}


def precision_lines(identity: Mapping[str, Any]) -> list[str]:
    """In which type a run computes products, how this machine does it, what that brings; nothing for float32."""
    if (products := identity["products"]) is None:
        return []
    rows = -(-identity["batch_size"] // identity["shards"])
    how = ORDERS.get(products["order"] or "", "rounded as they are read, and multiplied as float32")
    lines = [f"{identity['precision']} products, added up in float32: {how}"]
    if side := products["sides from"]:
        helps = rows < side and products["order"] != "widened"
        few = f"; a shard has {rows} rows: more rows, or fewer shards, let bfloat16 help" if helps else ""
        small = f"of at most {products['multiplications above']:,} multiplications"
        lines += [f"products with fewer than {side} rows, columns or terms, or {small}, stay float32{few}"]
    return lines


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """An epoch in one line."""
    names = {"train_loss": "train loss", "val_loss": "val loss", "val_accuracy": "val accuracy"}
    parts = [f"{label} {record[name]:.4f}" for name, label in names.items() if name in record]
    if "loss_scale" in record:
        parts.append(f"loss scale {record['loss_scale']:,.0f}, {record['skipped']} steps skipped")
    speed = f"{record['seconds']:.2f} s  {record['samples_per_second']:,.0f} samples/s"
    return "  ".join([f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}", *parts, speed])


def say(line: str) -> None:
    """Print a line, if somebody listens: a run goes on without its output, as it does without its log."""
    with contextlib.suppress(OSError, ValueError):  # a reader that is gone, or a closed stream
        print(line, flush=True)


def progress_bar(epoch: int, epochs: int, batch: int, batches: int, show: bool) -> Any:
    """A context manager: tqdm's bar, if it is installed, in a terminal or a notebook; from `batch` of `batches` on."""
    make = _bar()
    if make is None or sys.stderr is None:
        return _NoBar()
    return make(
        total=batches,
        initial=batch,
        desc=f"epoch {epoch + 1}/{epochs}",
        leave=False,
        unit="batch",
        disable=not (show and _shows_bars()),
    )


def _shows_bars() -> bool:
    """Terminals and notebooks obey the carriage return with which a bar overwrites itself; a file would fill up."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


@functools.cache  # tqdm gives each class a thread of its own
def _bar() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None

    class Bar(tqdm):
        monitor_interval = 0  # no thread: batches come often enough to show the bar
        shown, before = 0.0, np.zeros(0)

        def show_workers(self, engine: Engine) -> None:
            """The part of the time since the last look that each worker was busy."""
            if self.disable or time.monotonic() < self.shown + SHOW_EVERY:
                return
            self.shown = time.monotonic()
            seconds = np.array([[row["computing"] + row["merging"], row["waiting"]] for row in engine.report()])
            new = seconds - self.before if seconds.shape == self.before.shape else seconds
            self.before = seconds
            if len(new) and (new.sum(axis=1) > 0).all():
                self.set_postfix_str("busy " + " ".join(f"{x:.0%}" for x in new[:, 0] / new.sum(axis=1)), refresh=False)

    return Bar


class _NoBar(contextlib.nullcontext):
    def __enter__(self) -> _NoBar:
        return self

    def update(self) -> None:
        pass

    def show_workers(self, engine: Engine) -> None:
        pass
