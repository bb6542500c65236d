"""`scripts/runs.py` lists, compares and plots what the Database callback kept."""

import json

import pytest

pytest.importorskip("sqlalchemy")

import runs as script

from scratchnet.callbacks import Database
from scratchnet.callbacks.tables import connect
from scratchnet.errors import ConfigError, DatabaseError
from tests.trainer.test_trainer import make


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Two finished runs, "slow" and "fast"."""
    url = f"sqlite:///{tmp_path_factory.mktemp('runs')}/runs.db"
    for name, lr in (("slow", 0.001), ("fast", 0.05)):
        trainer, loader = make(lr=lr, config={"lr": lr, "hidden": 8}, callbacks=[Database(url, name)])
        trainer.fit(loader, loader, epochs=3)
    return url


def test_a_line_for_each_run(url, capsys):
    script.main(script.Config(url=url))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:5] for line in lines] == [["slow", "done", "3", "epochs"], ["fast", "done", "3", "epochs"]]
    assert all("val_accuracy" in line for line in lines)


def test_two_runs_are_compared(url, capsys):
    script.main(script.Config(("slow", "fast"), url, metric="val_loss"))
    out = capsys.readouterr().out
    assert "lr: 0.001 | 0.05" in out and "hidden" not in out
    rows = [line.split()[2:] for line in out.splitlines() if line.startswith("epoch")]
    (slow, fast) = [[f"{record['val_loss']:.4f}" for record in run["epochs"]] for run in script.read_runs(url)]
    assert rows == [list(pair) for pair in zip(slow, fast, strict=True)]


def test_json_is_all_that_is_known(url, capsys):
    script.main(script.Config(("fast",), url, json=True))
    (run,) = json.loads(capsys.readouterr().out)
    assert run["name"] == "fast" and len(run["epochs"]) == 3


def test_a_picture(url, tmp_path):
    pytest.importorskip("matplotlib")
    script.main(script.Config(url=url, plot=str(tmp_path / "runs.png")))
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_a_word_that_names_no_run_and_an_empty_database(url, tmp_path, capsys):
    with pytest.raises(ConfigError, match="expected a name, or how one number begins, got 'other', as 0 do"):
        script.main(script.Config(("other",), url))
    missing = f"sqlite:///{tmp_path}/none.db"
    with pytest.raises(DatabaseError, match=r"none\.db, found no such file"):
        script.main(script.Config(url=missing))
    assert not (tmp_path / "none.db").exists()
    connect("test", missing).dispose()
    script.main(script.Config(url=missing))
    assert capsys.readouterr().out.startswith("no runs in sqlite")


@pytest.mark.parametrize("name", ["no/such/folder.png", "picture.nothing"])
def test_a_picture_that_cannot_be_written_is_named_in_one_line(url, tmp_path, name):
    with pytest.raises(ConfigError, match="expected an image file to write to: ") as caught:
        script.main(script.Config(url=url, plot=str(tmp_path / name)))
    assert "\n" not in str(caught.value)
