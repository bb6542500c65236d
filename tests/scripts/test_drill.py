"""scripts/drill/drill.py finds what it is there for: each guarantee broken, hangs, leaks, and faults that did not fire.

The trials of a sound pool run in CI as `python scripts/drill/drill.py`; here are a few.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import drill
import pytest
import trials
from drill import Drill
from trials import Trial

SABOTAGED = Path(__file__).parents[1] / "programs" / "sabotaged_victim.py"
KILLED = trials.ended_by("shard.half_written", "SIGKILL", 2)
(KILLED_STAGE,) = trials.in_stages([trials.ended_by("forward.half_written", "SIGKILL", 2)])
SEEN = "silently wrong, or lost"  # lost: the NaN of half a gradient, or activation, are seen in a loss
BROKEN = [  # what is broken, a trial that shows it, and what comes of it
    ("arrival_order", trials.slow(2), "silently wrong"),
    ("in_place", trials.ended_by("slice.written", "SIGKILL", 2), "silently wrong"),
    ("seal_first", KILLED, SEEN),
    ("seal_first", KILLED_STAGE, SEEN),
    ("no_checksum", trials.flipped(2), "silently wrong"),
]


@pytest.mark.parametrize(("guarantee", "trial", "outcome"), BROKEN, ids=lambda value: getattr(value, "name", value))
def test_the_drill_fails_without(guarantee, trial, outcome, monkeypatch):
    monkeypatch.setenv("SABOTAGE", guarantee)
    result = Drill(SABOTAGED).run(trial)
    assert result.outcome in outcome and result.fired and not result.leaks, result


def test_without_sabotage_the_same_victim_passes():
    result = Drill(SABOTAGED).run(KILLED)
    assert result.ok(KILLED), result


def test_what_stays_behind_is_a_failure(monkeypatch):
    monkeypatch.setenv("SABOTAGE", "leave_something")
    trial = Trial("leaves", "leaves", mark="shard.claimed", fail="shard.claimed:0:*:sleep=0")
    result = Drill(SABOTAGED).run(trial)
    assert result.outcome == "EXACT" and not result.ok(trial)
    assert sorted(leak.split()[0] for leak in result.leaks) == ["file", "process"]


def test_a_run_that_hangs_is_ended_and_is_a_failure(monkeypatch):
    trial = Trial("stops", "parent: stops", flags="--strike starting:0:SIGSTOP", mark="starting")
    drill.reference(*trial.job())
    monkeypatch.setattr(drill, "LIMIT", 3.0)
    result = Drill().run(trial)
    assert result.outcome == "hung" and not result.leaks and not result.ok(trial)


def test_a_fault_that_does_not_fire_is_a_failure():
    trial = replace(KILLED, fail="shard.half_written:1000000:1:SIGKILL")
    result = Drill().run(trial)
    assert (result.outcome, result.fired) == ("EXACT", False) and not result.ok(trial)


def test_the_command_prints_a_table_and_counts():
    command = [sys.executable, drill.__file__, "--only", "SIGKILL at start", "--random", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows, last = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert head == "fault injected fired EXACT RESUME CLEAN hung silently wrong lost leaked"
    assert rows[-1] == "all 1 1 1 0 0 0 0 0 0"
    assert last.startswith("1 trials in ") and last.endswith(" 0 failed")


def test_a_choice_of_no_trial_is_a_failure():
    command = [sys.executable, drill.__file__, "--only", "no such trial", "--random", "0"]
    assert subprocess.run(command, capture_output=True).returncode == 1


def test_the_quick_set_has_every_point_and_every_end_of_a_worker_and_each_name_once():
    chosen = trials.quick()
    assert len({trial.name for trial in chosen}) == len(chosen)
    points, ends = (*trials.POINTS, *trials.STAGE_POINTS), (*trials.DEADLY, "SIGSTOP", "loop")
    for word in (*points, *ends, *trials.STRIKES, *trials.STRATEGIES[1:], *trials.STAGED):
        assert any(word in trial.name for trial in chosen), word
