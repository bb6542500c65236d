"""`scripts/book_pictures.py` draws what the book shows, and every strategy and schedule."""

import re

import pytest

pytest.importorskip("matplotlib")

import book_pictures as script
from pages import ROOT

from scratchnet.parallel.phases import SCHEDULES
from scratchnet.parallel.strategies import STRATEGIES


def test_every_picture_of_the_pages_is_drawn_by_it_and_has_a_file():
    drawn = {draw.__name__ for draw in script.PICTURES}
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("**/*.md"))
    shown = {*re.findall(r"pictures/(\w+)\.svg\)", pages)}
    assert shown == drawn == {path.stem for path in (ROOT / "docs" / "pictures").glob("*.svg")}


def test_every_strategy_and_schedule_has_a_timeline():
    def kind(strategy):
        return type(strategy), getattr(strategy, "staleness", 0) is None

    missing = {kind(make()) for make in STRATEGIES.values()} - {kind(strategy) for strategy in script.RUNS.values()}
    assert [which.__name__ for which, _ in missing] == ["Pipeline"]  # `schedules` draws it
    assert all(f"{schedule}: workers wait" in words_of("schedules") for schedule in SCHEDULES)
    assert all(f"{name}: workers wait" in words_of("strategies") for name in script.RUNS)


def words_of(name, folder=ROOT / "docs" / "pictures"):
    """The texts of a picture, which matplotlib keeps as comments beside their outlines."""
    return " ".join(re.findall(r"<!-- (.*?) -->", (folder / f"{name}.svg").read_text()))


def test_the_messages_of_every_all_reduce_are_drawn(tmp_path):
    script.all_reduces(tmp_path / "all_reduces.svg", ranks=4, elements=64)  # pairs each message with its receipt
    shown = words_of("all_reduces", tmp_path)
    assert "ring 6 steps, 24 messages a rank sends up to 384 bytes" in shown
    assert "recursive_doubling 2 steps, 8 messages a rank sends up to 512 bytes" in shown
