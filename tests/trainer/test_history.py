"""What a run gave, to look at: a table, and curves in a notebook."""

from xml.etree import ElementTree

import pytest
from messages import error_line

import scratchnet as sn

RECORDS = [{"epoch": i + 1, "step": 8 * (i + 1), "train_loss": 1 / (i + 1), "val_loss": 0.5} for i in range(3)]


def test_a_history_prints_as_a_table():
    assert repr(sn.History(RECORDS)).splitlines() == [
        "History of 3 epochs",
        "epoch  step  train_loss  val_loss",
        "    1     8      1.0000    0.5000",
        "    2    16      0.5000    0.5000",
        "    3    24      0.3333    0.5000",
    ]
    assert repr(sn.History([])) == "History of 0 epochs"
    assert len(repr(sn.History(RECORDS * 40)).splitlines()) == 23  # of many the first and the last


def test_a_column_that_no_record_has_is_refused_and_one_that_some_have_is_none_elsewhere():
    history = sn.History([*RECORDS, {"epoch": 4, "val_accuracy": 0.5}])
    assert history["val_accuracy"] == [None, None, None, 0.5] and sn.History([])["val_loss"] == []
    with pytest.raises(sn.ConfigError, match=r"History: expected one of epoch, step, .*, got 'val_los'") as error:
        history["val_los"]
    error_line(error)


def test_how_workers_spent_their_time_is_a_line_each_unless_there_is_one():
    row = {"computing": 3.0, "merging": 1.0, "waiting": 0.0, "shards": 1200, "starts": 1}
    assert sn.History([], [row]).lines_of_workers() == []
    lines = sn.History([], [row, {**row, "starts": 2}]).lines_of_workers()
    assert lines[0] == "worker 0   75% computing   25% merging    0% waiting  1,200 shards"
    assert lines[1] == lines[0].replace("worker 0", "worker 1") + ", started 2 times"


def test_a_notebook_gets_a_table_and_curves():
    shown = ElementTree.fromstring(f"<div>{sn.History(RECORDS)._repr_html_()}</div>")
    assert [cell.text for cell in shown.iter("th")] == ["epoch", "step", "train_loss", "val_loss"]
    assert len([*shown.iter("td")]) == 12 and len([*shown.iter("polyline")]) == 2
    assert next(shown.iter("polyline")).get("points") == "40.0,10.0 240.0,85.0 440.0,110.0"
    for records in ([], RECORDS[:1], [{"epoch": 1, "train_loss": float("nan"), "<b>": None}] * 2):
        ElementTree.fromstring(f"<div>{sn.History(records)._repr_html_()}</div>")
