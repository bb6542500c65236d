"""Schedules without processes: each has the bubble of its formula, and keeps as many shards as it says."""

import itertools
from collections import Counter

import pytest

from scratchnet.parallel import AllReduce, Pipeline
from scratchnet.parallel.model.timetable import Sizes, bubble, held, idle, timetable

SIZES = [*itertools.product((2, 3, 4, 7), (1, 2, 3, 4, 8, 13))]  # stages, shards
UNITS = {"forward": 1, "backward": 2, "backward_inputs": 1, "backward_weights": 1}


def spans_of(schedule, stages, shards, units=UNITS, workers=None):
    strategy = Pipeline(stages, schedule=schedule)
    workers = workers or stages
    phases = [phase for phase in strategy.phases(shards, strategy.slices(workers), False) if phase.name in units]
    return timetable(strategy, phases, workers, lambda phase, _: units[phase.name])


def most_kept(spans, stage, until):
    """The most shards of a stage that are under way, from the begin of forward to the end of `until`."""
    own = [span for span in spans if span.phase.stage == stage]
    changes = [(span.start, 1) for span in own if span.phase.name == "forward"]
    changes += [(span.end, -1) for span in own if span.phase.name == until]
    return max(itertools.accumulate(change for _, change in sorted(changes)))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
def test_a_schedule_waits_as_long_as_its_formula_says(schedule):
    for stages, shards in SIZES:
        spans = spans_of(schedule, stages, shards)
        assert idle(spans, stages) == pytest.approx(bubble(schedule, stages, shards, 1, 1, 1)), (stages, shards)
        assert len(spans) == len({(span.phase, span.piece) for span in spans})


def test_the_formula_is_that_of_the_papers():
    assert bubble("gpipe", 4, 8, 1, 1, 1) == bubble("1f1b", 4, 8, 1, 1, 1) == 3 / 11
    assert bubble("zero_bubble", 4, 8, 1, 1, 1) == 3 / 27


@pytest.mark.parametrize(("schedule", "until"), [("1f1b", "backward"), ("zero_bubble", "backward_weights")])
def test_a_stage_keeps_no_more_shards_than_its_schedule_allows(schedule, until):
    for stages, shards in SIZES:
        spans = spans_of(schedule, stages, shards)
        kept = [most_kept(spans, s, until) for s in range(stages)]
        allowed = range(stages, 0, -1) if schedule == "1f1b" else [stages] * stages
        assert all(k <= min(most, shards) for k, most in zip(kept, allowed, strict=True)), (stages, shards, kept)


def test_the_order_of_pieces_of_a_stage_without_bubbles():
    letters = {"forward": "F", "backward_inputs": "B", "backward_weights": "W"}
    spans, table = spans_of("zero_bubble", 3, 4), {}
    for span in spans:
        table[span.worker] = table.get(span.worker, "") + f"{letters[span.phase.name]}{span.piece} "
    assert table == {
        0: "F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3 ",
        1: "F0 F1 B0 F2 B1 W0 F3 B2 W1 B3 W2 W3 ",
        2: "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3 ",
    }


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("slowest", range(3))
def test_an_update_waits_for_the_gradients_of_all_stages(schedule, clips, slowest):
    strategy, gradients = Pipeline(3, schedule=schedule), ("backward", "backward_weights")
    spans = timetable(strategy, strategy.phases(4, 1, clips), 3, lambda phase, _: 1 + 9 * (phase.stage == slowest))
    ends = max(span.end for span in spans if span.phase.name in gradients)
    assert min(span.start for span in spans if span.phase.name in ("norm", "slice")) >= ends


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
def test_workers_that_share_a_stage_wait_as_two_pipelines_do(schedule):
    for stages, shards in SIZES:
        spans = spans_of(schedule, stages, 2 * shards, workers=2 * stages)
        assert idle(spans, 2 * stages) == pytest.approx(bubble(schedule, stages, shards, 1, 1, 1)), (stages, shards)


def test_fewer_workers_than_stages_and_more():
    assert Counter(span.worker for span in spans_of("1f1b", 4, 4, workers=2)) == {0: 16, 1: 16}
    spans = spans_of("1f1b", 2, 4, workers=4)
    assert Counter(span.worker for span in spans) == dict.fromkeys(range(4), 4)
    assert {span.worker for span in spans if span.phase.stage == 0} == {0, 1}


def test_shards_of_one_process_are_shared_out():
    phases = AllReduce().phases(6, 2, False)
    spans = timetable(AllReduce(), phases, 4, lambda phase, _: {"shard": 2.0, "slice": 1.0}[phase.name])
    assert max(span.end for span in spans) == 5.0


def test_what_a_worker_holds():
    """By hand: 2 pages with one state of each parameter, K slots, what travels, and the graphs that are under way."""
    sizes = [Sizes(100, 10, 1), Sizes(40, 20, 0)]

    def bytes_of(schedule, recompute=False, workers=2):
        strategy = Pipeline(2, schedule=schedule, recompute=recompute)
        phases = strategy.phases(4, strategy.slices(workers), False)
        spans = timetable(strategy, phases, workers, lambda phase, _: UNITS.get(phase.name, 1))
        return held(strategy, spans, workers, sizes, 1)

    first, second, sent = 100 * (2 * 2 + 4), 40 * (2 * 2 + 4), 2 * 4
    assert bytes_of("gpipe") == [first + sent + 4 * 10, second + sent + 4 * 20]
    assert bytes_of("1f1b") == [first + sent + 2 * 10, second + sent + 1 * 20]
    assert bytes_of("zero_bubble") == [first + sent + 2 * 10, second + sent + 2 * 20]
    assert bytes_of("gpipe", recompute=True) == [first + sent + 10, second + sent + 20]
    first = 100 * (2 * (1 + 1 / 2) + 2 + 2 / 2)
    assert bytes_of("1f1b", workers=4)[0] == first + sent // 2 + 2 * 10


def test_what_workers_hold_that_share_shards():
    phases = AllReduce().phases(4, 2, False)
    spans = timetable(AllReduce(), phases, 2, lambda phase, _: 1)
    assert held(AllReduce(), spans, 2, [Sizes(100, 10)], 2) == [100 * (2 * (1 + 2 / 2) + 2 + 2 / 2) + 10] * 2
