"""Database: a run as rows, written beside it by a thread, so that no step waits for a server."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import queue
import socket
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..native.limits import cores
from ..sealed import Sealed
from ..trainer.moments import Progress
from ..version import __version__
from .tables import HEARTBEAT, URL, answers, connect, first_line, public, sqlalchemy, tables

RETRY = 0.2, 5.0  # seconds after the first failure, and at most, doubled each time
MOST_ROWS = 5000  # of a transaction
UNSENT = "unsent.jsonl"

Row = tuple[str, dict[str, Any]]  # the name of a table, and the columns


class Database(Sealed):
    """Keeps a run in a database: configuration, losses and learning rates by step, records by epoch, checkpoints.

    url: of any database that SQLAlchemy knows: "sqlite:///runs.db", "postgresql+psycopg://user@host/runs". Several runs
    may write to one at a time. name: of the run, for people. every: steps between two writes. patience: seconds that
    the end of the run waits for a server that does not answer.
    `scratchnet.callbacks.tables.read_runs(url)` reads, and `python -m scratchnet runs` shows them.

    A server that goes away does not stop the run: rows wait until it is back. Rows that wait are in the checkpoint, so
    that no row is lost with a run that is killed and resumed; what cannot be sent until the end goes to `unsent.jsonl`
    in the folder of the run, with a warning. A resumed run is the same run.
    ConfigError without SQLAlchemy (`pip install sqlalchemy`), DatabaseError where no database answers at the start.
    """

    def __init__(self, url: str = URL, name: str | None = None, every: int = 50, patience: float = 30.0):
        self.url = checks.instance("Database: url", url, str, "a URL such as 'sqlite:///runs.db'")
        self.name = None if name is None else checks.instance("Database: name", name, str, "a name or None")
        self.every = checks.integer("Database: every", every, 1)
        self.patience = checks.number("Database: patience", patience, "[0, inf)")
        self.run: str | None = None
        self._writer: _Writer | None = None
        self._files: set[str] = set()
        self._unsent: list[Row] = []
        self._rates: list[tuple[int, float]] = []  # the step from which on there was this learning rate

    def on_fit_start(self, run: Progress) -> None:
        is_new = self.run is None or not run.step
        if is_new:
            self.run, self._unsent, self._rates = uuid.uuid4().hex, [], []
        self._note_rate(run)
        self._writer = _Writer(self.url, str(self.run))
        with answers("Database", self.url):
            self._writer.forget_after(run.step, run.epoch)
        row = {"name": self.name, "folder": None if run.folder is None else str(run.folder.absolute())}
        row |= {"host": socket.gethostname(), "process": os.getpid(), "version": __version__, "system": _system()}
        row |= {"config": json.dumps(run.config, default=str)} | ({"started": time.time()} if is_new else {})
        self._writer.put([("runs", {**row, "status": "running", "reason": None, "ended": None}), *self._unsent])
        self._unsent = []

    def on_step_end(self, run: Progress) -> None:
        losses = list(enumerate(map(_finite, run.losses), run.step - len(run.losses) + 1))
        self._put([("steps", {"step": i, "loss": loss, "lr": self._rate_of(i, run)}) for i, loss in losses])
        self._rates = self._rates[-1:]
        self._note_rate(run)

    def on_epoch_end(self, run: Progress) -> None:
        self._note_rate(run)
        record = {name: _finite(value) for name, value in json.loads(json.dumps(run.record, default=float)).items()}
        self._put([("epochs", {"epoch": run.epoch, "step": run.step, "record": record})])
        self._put(self._new_checkpoints(run))

    def on_fit_end(self, run: Progress) -> None:
        self.on_step_end(run)  # the steps since the last one
        status = "stopped" if run.stopped else "done"
        self._put(self._new_checkpoints(run))
        self._put([("runs", {"status": status, "reason": run.stopped, "ended": time.time()})])
        self._close(run.folder)

    def on_exception(self, run: Progress, error: BaseException) -> None:
        if self._writer is not None:
            self.on_step_end(run)
            self._put([("runs", {"status": "failed", "reason": first_line(error), "ended": time.time()})])
            self._close(run.folder)

    def _note_rate(self, run: Progress) -> None:
        """For the next steps."""
        rate = run.optimizer.param_groups[0]["lr"]
        if not self._rates or self._rates[-1][1] != rate:
            self._rates.append((run.step + 1, rate))

    def _rate_of(self, step: int, run: Progress) -> float | None:
        """The learning rate of a step that is done: of a schedule by steps, in closed form. None if it is not known."""
        schedule = run.trainer.scheduler
        if schedule is None or getattr(schedule, "by", "step") != "step":
            return next((rate for first, rate in reversed(self._rates) if first <= step), None)
        if not hasattr(schedule, "values"):
            return None
        before = schedule.last_step - (run.step - step) - 1
        return schedule.values(0, before)["lr"] if before >= 0 else None

    def _put(self, rows: list[Row]) -> None:
        assert self._writer is not None
        self._writer.put(rows)

    def _new_checkpoints(self, run: Progress) -> list[Row]:
        """A row for each checkpoint in the folder of the run that has none yet."""
        found = [] if run.folder is None else sorted(run.folder.glob("*.safetensors"))
        rows: list[Row] = []
        for path in found:
            key = f"{path.name} {path.stat().st_mtime_ns}"
            if key not in self._files:
                self._files.add(key)
                numbered = path.stem.removeprefix("checkpoint-")
                step = int(numbered) if numbered.isdecimal() else run.step
                rows.append(("checkpoints", {"path": str(path.absolute()), "step": step}))
        return rows

    def _close(self, folder: Path | None) -> None:
        assert self._writer is not None
        left, why = self._writer.close(self.patience), self._writer.why
        self._writer = None
        if left:
            path = (folder or Path()) / UNSENT
            with path.open("a") as file:
                file.writelines(json.dumps({"table": table, **row}) + "\n" for table, row in left)
            warnings.warn(f"Database: {len(left)} rows were not taken and are in {path}: {why}", RuntimeWarning, 2)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the number of the run, and rows that no database took yet."""
        unsent = [] if self._writer is None else self._writer.unsent()
        rates = [list(pair) for pair in self._rates]
        return {"run": self.run, "unsent": [[table, row] for table, row in unsent], "rates": rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on as the run of that state."""
        self.run, self._unsent = state["run"], [(table, row) for table, row in state["unsent"]]
        self._rates = [(first, rate) for first, rate in state.get("rates", [])]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_writer": None}  # of a copy

    def __repr__(self) -> str:
        return f"Database({public(self.url)!r}, name={self.name!r})"


class _Writer(threading.Thread):
    """Writes rows in the order in which they came, many in a transaction, again and again until it is committed.

    A row has a key, and takes the place of the one with that key: so it does no harm to write one twice.
    """

    def __init__(self, url: str, run: str):
        super().__init__(name="scratchnet database", daemon=True)
        self.engine, self.metadata, self.of_run = connect("Database", url), tables(), run
        self._queue: queue.SimpleQueue[list[Row] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: list[Row] = []
        self._gives_up = threading.Event()
        self.why = "no answer"  # the last error
        self.start()

    # --- from the run ---

    def forget_after(self, step: int, epoch: int) -> None:
        """Rows of steps and epochs that a resumed run does again."""
        with self.engine.begin() as connection:
            for name, column, last in (("steps", "step", step), ("epochs", "epoch", epoch)):
                table = self.metadata.tables[name]
                connection.execute(table.delete().where(table.c.run == self.of_run, table.c[column] > last))

    def put(self, rows: list[Row]) -> None:
        with self._lock:
            self._waiting += rows
        self._queue.put(rows)

    def unsent(self) -> list[Row]:
        with self._lock:
            return list(self._waiting)

    def close(self, patience: float) -> list[Row]:
        """What could not be written in so many seconds."""
        self._queue.put(None)
        self.join(patience)
        self._gives_up.set()
        self.join(RETRY[1])  # a server that neither answers nor refuses may hold it longer: rows twice do no harm
        self.engine.dispose()
        return self.unsent()

    # --- the thread ---

    def run(self) -> None:
        ends = False
        while not ends:
            rows: list[Row] = []
            try:
                found = self._queue.get(timeout=HEARTBEAT)
                while True:
                    ends = ends or found is None
                    rows += found or []
                    found = self._queue.get_nowait()
            except queue.Empty:
                pass
            for i in range(0, max(len(rows), 1), MOST_ROWS):
                some = rows[i : i + MOST_ROWS]
                if not self._write([*some, ("runs", {"seen": time.time()})]):
                    return
                with self._lock:
                    del self._waiting[: len(some)]

    def _write(self, rows: list[Row]) -> bool:
        """False: it was told to give up."""
        wait, longest = RETRY
        while True:
            try:
                with self.engine.begin() as connection:
                    for name in ("runs", "steps", "epochs", "checkpoints"):  # rows of a run need the run
                        if mine := [row for table, row in rows if table == name]:
                            self._replace(connection, name, mine)
                return True
            except sqlalchemy().exc.SQLAlchemyError as error:
                self.why = first_line(error)
                self.engine.dispose()  # with connections that may be broken
                if self._gives_up.wait(wait):
                    return False
                wait = min(2 * wait, longest)

    def _replace(self, connection: Any, name: str, rows: list[dict[str, Any]]) -> None:
        table = self.metadata.tables[name]
        if name == "runs":  # each row has some columns of the same run
            values = {key: value for row in rows for key, value in row.items()}
            mine = table.c.run == self.of_run
            if not connection.execute(table.update().where(mine).values(**values)).rowcount:
                connection.execute(table.insert().values(run=self.of_run, **values))
            return
        if name == "checkpoints":
            rows = [{**row, "sha256": digest} for row in rows if (digest := _digest(row["path"])) is not None]
        (key,) = [column for column in table.primary_key if column.name != "run"]
        newest = {row[key.name]: {"run": self.of_run, **row} for row in rows}
        if newest:
            connection.execute(table.delete().where(table.c.run == self.of_run, key.in_(list(newest))))
            connection.execute(table.insert(), list(newest.values()))


def _finite(value: Any) -> Any:
    """None for NaN and inf, which JSON does not have, and a server refuses."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digest(path: str) -> str | None:
    """Of a file; None if it is gone: only the newest checkpoints stay."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _system() -> str:
    found = {"python": platform.python_version(), "numpy": np.__version__, "cores": cores(), "os": platform.platform()}
    return json.dumps(found)
