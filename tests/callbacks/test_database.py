"""Runs in a database: every row arrives, also after a kill of the run or of the server, and nothing waits for it."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

import scratchnet as sn
from scratchnet.callbacks import BestCheckpoint, Database, database
from scratchnet.callbacks.tables import connect, public, read_runs, read_steps
from scratchnet.errors import CallbackError, ConfigError, DatabaseError, ScratchnetError
from tests.trainer.test_moments import STEPS, Diary
from tests.trainer.test_trainer import make, weights

pytest.importorskip("sqlalchemy")
VICTIM = Path(__file__).parents[1] / "programs" / "database_victim.py"
SERVER = os.environ.get("SCRATCHNET_TEST_DATABASE")  # of a PostgreSQL server, which .ci/run starts


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runs.db"
    if SERVER is None:
        pytest.skip("SCRATCHNET_TEST_DATABASE names no server")
    from sqlalchemy import create_engine, text

    engine = create_engine(SERVER)
    with engine.begin() as connection:
        for table in ("checkpoints", "epochs", "steps", "runs"):
            connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    return SERVER


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_is_read_back(tmp_path, url, workers):
    diary, kept = Diary(), Database(url, name="first", every=3)
    trainer, loader = make(tmp_path / "run", shards=2, workers=workers, config={"hidden": 8}, callbacks=[kept, diary])
    history = trainer.fit(loader, loader, epochs=2)
    (run,) = read_runs(url)
    assert (run["name"], run["status"], run["run"]) == ("first", "done", kept.run)
    assert run["epochs"] == history.records and json.loads(run["config"]) == {"hidden": 8}
    assert run["started"] <= run["seen"] and run["started"] < run["ended"]
    steps = read_steps(kept.run, url)
    assert steps["step"] == list(range(1, 2 * STEPS + 1))
    assert steps["loss"] == pytest.approx(diary.losses)


def test_checkpoints_have_their_hashes(tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    best = BestCheckpoint("train_loss", path=tmp_path / "run" / "best-of-7.safetensors")
    trainer, loader = make(tmp_path / "run", callbacks=[best, Database(url)])
    last = trainer.fit(loader, epochs=2)["step"][-1]
    database = sqlite3.connect(tmp_path / "runs.db")
    rows = dict(database.execute("SELECT path, sha256 FROM checkpoints").fetchall())
    assert max(step for (step,) in database.execute("SELECT step FROM checkpoints WHERE path LIKE '%-7%'")) == last
    files = sorted((tmp_path / "run").glob("*.safetensors"))
    assert files and all(rows[str(file)] == hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def test_a_resumed_run_is_the_same_run_and_its_rows_are_those_of_a_whole_one(tmp_path, url):
    for epochs, resume in ((1, None), (3, "auto")):
        trainer, loader = make(tmp_path / "run", callbacks=[Database(url, every=1)])
        trainer.fit(loader, epochs=epochs, resume=resume)
    (run,) = read_runs(url)
    assert [record["epoch"] for record in run["epochs"]] == [1, 2, 3]
    assert read_steps(run["run"], url)["step"] == list(range(1, 3 * STEPS + 1))


def test_many_runs_write_at_a_time(tmp_path, url):
    def one(i):
        trainer, loader = make(tmp_path / str(i), jit=False, callbacks=[Database(url, name=str(i), every=1)])
        trainer.fit(loader, epochs=1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(4)))
    runs = read_runs(url)
    assert sorted(run["name"] for run in runs) == ["0", "1", "2", "3"]
    assert all(len(read_steps(run["run"], url)["step"]) == STEPS for run in runs)


def test_it_changes_no_bit(tmp_path):
    plain, loader = make(shards=2)
    plain.fit(loader, epochs=2)
    trainer, loader = make(shards=2, callbacks=[Database(f"sqlite:///{tmp_path}/runs.db")])
    trainer.fit(loader, epochs=2)
    assert weights(trainer) == weights(plain)


@pytest.mark.parametrize(
    ("callback", "status", "reason"),
    [
        (type("Stops", (), {"on_epoch_end": lambda self, run: run.stop("enough")}), "stopped", "enough"),
        (type("Fails", (), {"on_epoch_end": lambda self, run: 1 / 0}), "failed", "CallbackError: Fails.on_epoch_end"),
    ],
)
def test_how_a_run_ended_is_kept(tmp_path, callback, status, reason):
    url = f"sqlite:///{tmp_path}/runs.db"
    trainer, loader = make(callbacks=[callback(), Database(url)])
    try:
        trainer.fit(loader, epochs=2)
    except CallbackError:
        assert status == "failed"
    (run,) = read_runs(url)
    assert run["status"] == status and run["reason"].startswith(reason)


def test_a_killed_run_is_marked_and_loses_no_row_when_it_is_resumed(tmp_path, url):
    command = [sys.executable, VICTIM, url, tmp_path / "run"]
    dead = subprocess.run([*command, str(2 * STEPS + 3)], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    (run,) = read_runs(url)
    assert (run["status"], run["ended"]) == ("killed", None)
    done = subprocess.run([*command, "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = read_runs(url)
    assert run["status"] == "done" and len(run["epochs"]) == 4
    assert read_steps(run["run"], url)["step"] == list(range(1, 4 * STEPS + 1))


class Outage:
    """From one step to another the database refuses everything."""

    def __init__(self, first, last):
        self.first, self.last, self.patch = first, last, None

    def on_step_end(self, run):
        from sqlalchemy.exc import OperationalError

        if run.step == self.first:
            error = OperationalError("INSERT", {}, Exception("server closed the connection"))
            self.patch = mock.patch.object(database._Writer, "_replace", side_effect=error)
            self.patch.start()
        if run.step == self.last:
            self.patch.stop()

    def on_exception(self, run, error):
        self.patch.stop()


def test_a_server_that_goes_away_and_comes_back_loses_no_row(tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    kept = Database(url, every=1)
    trainer, loader = make(callbacks=[Outage(3, 12), kept])
    trainer.fit(loader, epochs=2)
    assert read_steps(kept.run, url)["step"] == list(range(1, 2 * STEPS + 1))


def test_what_no_server_takes_until_the_end_is_in_a_file_and_a_warning_names_it(tmp_path):
    kept, outage = Database(f"sqlite:///{tmp_path}/runs.db", every=1, patience=0.1), Outage(3, 10**9)
    trainer, loader = make(tmp_path / "run", callbacks=[outage, kept])
    try:
        with pytest.warns(RuntimeWarning, match=r"[0-9]+ rows .* in .*unsent.jsonl: .*server closed"):
            trainer.fit(loader, epochs=2)
    finally:
        outage.patch.stop()
    rows = [json.loads(line) for line in (tmp_path / "run" / "unsent.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if row["table"] == "steps"} >= set(range(4, 2 * STEPS + 1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("runs.db", "expected a URL such as 'sqlite:///runs.db', got 'runs.db'"),
        ("sqlite:////no/such/folder/runs.db", "expected a database at sqlite:////no/such/folder/runs.db: "),
        ("postgresql+psycopg://localhost:1/none", "expected a database at postgresql"),
        ("oracle+nothing://x", "expected a URL such as"),
    ],
)
def test_a_database_that_is_none_is_named_before_the_first_step(bad, message):
    pytest.importorskip("psycopg")
    diary = Diary()
    trainer, loader = make(callbacks=[Database(bad), diary])
    with pytest.raises(CallbackError, match=r"Database\.on_fit_start") as caught:
        trainer.fit(loader, epochs=1)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert [m[0] for m in diary.moments] == ["CallbackError"]


def test_reading_makes_no_database(tmp_path):
    with pytest.raises(DatabaseError, match=r"expected a database at sqlite:///.*none\.db, found no such file"):
        read_runs(f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())


def test_an_unknown_run_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    connect("test", url).dispose()
    with pytest.raises(ConfigError, match="expected a run of"):
        read_steps("nobody", url)


class Rates:
    """The learning rate of every step."""

    def __init__(self):
        self.next, self.seen = None, []

    def on_fit_start(self, run):
        self.next = run.optimizer.param_groups[0]["lr"]

    def on_step_end(self, run):
        self.seen.append(self.next)
        self.next = run.optimizer.param_groups[0]["lr"]

    on_epoch_end = on_fit_start


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_each_step_has_the_learning_rate_that_it_was_done_with(tmp_path, by, workers):
    url, rates, run = f"sqlite:///{tmp_path}/runs.db", Rates(), None
    for epochs, resume in ((2, None), (4, "auto")):
        kept = Database(url, every=5)
        trainer, loader = make(tmp_path / "run", shards=2, workers=workers, callbacks=[rates, kept])
        trainer.scheduler = sn.optim.lr_scheduler.StepLR(trainer.optimizer, 1, 0.9, by=by)
        trainer.fit(loader, epochs=epochs, resume=resume)
        run = run or kept.run
    assert read_steps(run, url)["lr"] == pytest.approx(rates.seen) and len(set(rates.seen)) > 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_null(tmp_path, bad):
    url, odd = f"sqlite:///{tmp_path}/runs.db", {"on_epoch_end": lambda self, run: run.record.update(odd=bad)}
    trainer, loader = make(callbacks=[type("Odd", (), odd)(), Database(url)])
    trainer.fit(loader, epochs=1)
    (text,) = sqlite3.connect(tmp_path / "runs.db").execute("SELECT record FROM epochs").fetchone()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word))["odd"] is None


@pytest.mark.parametrize("schema", ["runs (id)", "steps (a)", "runs (run, name)"])
def test_a_database_of_something_else_is_refused_before_the_first_step(tmp_path, schema):
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        connection.execute(f"CREATE TABLE {schema}")
    url = f"sqlite:///{tmp_path}/runs.db"
    trainer, loader = make(callbacks=[Database(url)])
    for action in (lambda: trainer.fit(loader, epochs=1), lambda: read_runs(url), lambda: read_steps("0", url)):
        with pytest.raises(ScratchnetError, match=r"expected a database of runs at .*, got one with a table") as caught:
            action()
        assert "\n" not in str(caught.value)


SECRETS = [
    "postgresql://me:s3cret@localhost:1/runs",
    "postgresql+psycopg://me:s3cret@localhost:1/runs",
    "postgresql+psycopg://localhost:1/runs?user=me&password=s3cret",
    "postgresql+psycopg://me:x@s3cret@localhost:1/runs",
    "postgresql://me:s3cret",
    "oracle+nothing://me:s3cret@x",
    "sqlite://me:x@s3cret@localhost/runs",
    "me:s3cret@localhost/runs",
    "host=localhost password=s3cret",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_password_is_never_said(tmp_path, url):
    kept = Database(url)
    assert "s3cret" not in repr(kept) and "***" in repr(kept)
    trainer, loader = make(tmp_path, callbacks=[kept])
    for action in (lambda: trainer.fit(loader, epochs=1), lambda: read_runs(url), lambda: read_steps("0", url)):
        with pytest.raises(ScratchnetError) as caught:
            action()
        assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


@pytest.mark.parametrize("url", ["sqlite:///a:b@c.db", "sqlite://", "postgresql+psycopg://me@host:5432/runs?port=1"])
def test_a_url_without_a_password_is_said_as_it_is(url):
    assert public(url) == url
