"""The tables in which a database keeps runs, and how they are read. By SQLAlchemy: SQLite, PostgreSQL, ...

runs         one row a run: what it is, where it ran, how it ended
steps        (run, step): the loss and the learning rate
epochs       (run, epoch): the record of the epoch, as JSON
checkpoints  (run, path): the step, and the SHA-256 of the file
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

from .. import checks
from ..errors import ConfigError, DatabaseError

URL = "sqlite:///runs.db"
HEARTBEAT = 10.0  # seconds between two signs of life of a run
ATTEMPTS = 3  # at making the tables
SILENT = 6 * HEARTBEAT  # a run that was silent for so long was killed


def sqlalchemy() -> Any:
    """The module. Raises ConfigError if it is not installed."""
    try:
        import sqlalchemy
    except ImportError:
        raise ConfigError("expected SQLAlchemy, found none; pip install sqlalchemy") from None
    return sqlalchemy


@functools.cache
def tables() -> Any:
    """SQLAlchemy's MetaData of the four tables."""
    sql = sqlalchemy()
    metadata, text, number, integer = sql.MetaData(), sql.Text, sql.Float, sql.Integer
    words = ("name", "status", "reason", "folder", "host", "version", "config", "system")
    times = ("started", "seen", "ended")  # seconds since 1970

    def table(name: str, key: Any, **columns: Any) -> None:
        of_run = sql.Column("run", sql.String(32), sql.ForeignKey("runs.run"), primary_key=True)
        sql.Table(name, metadata, of_run, key, *[sql.Column(*column) for column in columns.items()])

    run = sql.Column("run", sql.String(32), primary_key=True)
    rest = {**dict.fromkeys(words, text), "process": integer, **dict.fromkeys(times, number)}
    sql.Table("runs", metadata, run, *[sql.Column(*column) for column in rest.items()])
    table("steps", sql.Column("step", integer, primary_key=True), loss=number, lr=number)
    table("epochs", sql.Column("epoch", integer, primary_key=True), step=integer, record=sql.JSON)
    table("checkpoints", sql.Column("path", sql.String(500), primary_key=True), step=integer, sha256=text)
    return metadata


def connect(what: str, url: str, reads: bool = False) -> Any:
    """An engine of SQLAlchemy whose tables exist; one that reads makes no file of SQLite.

    Raises ConfigError for no URL, DatabaseError where no database of runs answers.
    """
    sql, expected = sqlalchemy(), "a URL such as 'sqlite:///runs.db'"
    checks.instance(f"{what}: url", url, str, expected)
    try:
        made = sql.create_engine(url, pool_pre_ping=True)
    except (sql.exc.ArgumentError, ImportError, ValueError) as error:
        why = first_line(error) if not isinstance(error, ValueError) else "what follows host: is no number"
        raise ConfigError(f"{what}: expected {expected}, got {public(url)!r}: {public(why)}") from None
    if "@" in (made.url.host or ""):  # or the rest of the password would be in what a driver says of its host
        raise ConfigError(f"{what}: expected @ in a user or password as %40, got {public(url)!r}")
    file = made.url.database if made.dialect.name == "sqlite" else None
    if reads and file and not file.startswith("file:") and not os.path.exists(file):
        raise DatabaseError(f"{what}: expected a database at {public(url)}, found no such file")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            tables().create_all(made)
            break
        except sql.exc.SQLAlchemyError as error:
            if attempt == ATTEMPTS:  # until then somebody else may have made them at the same time
                raise DatabaseError(f"{what}: expected a database at {public(url)}: {first_line(error)}") from None
    with answers(what, url):
        inspector = sql.inspect(made)
        for name, table in tables().tables.items():
            found = [column["name"] for column in inspector.get_columns(name)]
            if missing := [column.name for column in table.columns if column.name not in found]:
                wrong = f"{name!r} without {missing[0]!r}; give another one"
                raise DatabaseError(
                    f"{what}: expected a database of runs at {public(url)}, got one with a table {wrong}"
                )
    return made


@contextlib.contextmanager
def answers(what: str, url: str) -> Iterator[None]:
    """Inside, what SQLAlchemy raises is a DatabaseError of one line."""
    try:
        yield
    except sqlalchemy().exc.SQLAlchemyError as error:
        raise DatabaseError(f"{what}: expected an answer of {public(url)}: {first_line(error)}") from None


def public(url: str) -> str:
    """A URL, or what was meant as one, as it may be printed: with *** for a password."""
    url = re.sub(r"^((?:[^:/]*://)?[^:/]*:)(?!//).*@", r"\1***@", url)
    url = re.sub(r"^([^:/]*://[^:/]*:)(?!\d*(?:[/?]|$)|\*\*\*@)[^/?]*", r"\1***", url)
    return re.sub(r"((?:pass|pwd|secret|token|key)\w*=)[^&\s]*", r"\1***", url, flags=re.IGNORECASE)


def first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"


def read_runs(url: str = URL) -> list[dict[str, Any]]:
    """All runs of a database, oldest first, each as a dict of its columns and `epochs`, the records so far.

    `status` is "running", "done", "stopped" by a callback, "failed", or "killed": its process ended without a word.
    """
    sql, metadata, engine = sqlalchemy(), tables(), connect("read_runs", url, reads=True)
    runs, epochs = metadata.tables["runs"], metadata.tables["epochs"]
    with answers("read_runs", url), engine.connect() as connection:
        found = [dict(row._mapping) for row in connection.execute(sql.select(runs).order_by(runs.c.started))]
        records: dict[str, list[Any]] = {row["run"]: [] for row in found}
        for row in connection.execute(sql.select(epochs).order_by(epochs.c.epoch)):
            records[row.run].append(row.record)
    engine.dispose()
    return [{**row, "status": _status(row), "epochs": records[row["run"]]} for row in found]


def read_steps(run: str, url: str = URL) -> dict[str, list[Any]]:
    """The columns `step`, `loss` and `lr` of a run. Raises ConfigError for an unknown one."""
    sql, metadata, engine = sqlalchemy(), tables(), connect("read_steps", url, reads=True)
    runs, steps = metadata.tables["runs"], metadata.tables["steps"]
    with answers("read_steps", url), engine.connect() as connection:
        known = connection.execute(sql.select(runs.c.run).where(runs.c.run == run)).first()
        rows = connection.execute(sql.select(steps).where(steps.c.run == run).order_by(steps.c.step)).all()
    engine.dispose()
    if known is None:
        raise ConfigError(f"read_steps: expected a run of {public(url)}, got {run!r}; read_runs(url) names them")
    return {name: [getattr(row, name) for row in rows] for name in ("step", "loss", "lr")}


def _status(row: dict[str, Any]) -> str:
    if row["status"] != "running":
        return row["status"]
    is_here = row["host"] == socket.gethostname()
    lives = os.path.exists(f"/proc/{row['process']}") if is_here else time.time() - row["seen"] < SILENT
    return "running" if lives else "killed"
