"""Training in stages, from outside: the bytes of one process with as many shards, whatever the cut and the schedule."""

import dataclasses
import hashlib

import multiprocess
import numpy as np
import pytest
from residue import no_residue

import scratchnet as sn
from scratchnet import nn
from scratchnet.formats import checkpoint
from scratchnet.parallel import Pipeline, TensorParallel
from scratchnet.parallel.failpoints import LOG, VARIABLE
from scratchnet.parallel.model import pieces
from scratchnet.parallel.model.backward import backward
from scratchnet.parallel.model.parts import network
from scratchnet.parallel.model.pieces import Memory, Part, Stages
from scratchnet.parallel.model.timetable import timetable
from scratchnet.parallel.phases import Place
from scratchnet.parallel.pool.replica import Replica
from scratchnet.row_gradient import total

FEATURES, CLASSES, BATCH = 6, 3, 12
SCHEDULES = ("gpipe", "1f1b", "zero_bubble")


class Skips(nn.Module):
    """Tensors that cross several stages, once and twice; a product of transposed activations; a reshape."""

    def __init__(self):
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.third, self.drop, self.head = nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, CLASSES)

    def forward(self, x):
        a = self.first(x).tanh()
        b = self.drop(self.second(a) + a)
        c = self.third(b.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)) * b + a
        return self.head(self.drop(c) - b)


class Remembers(nn.Module):
    """Updates a buffer and reads it, in one forward."""

    def __init__(self):
        self.first, self.second, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.register_buffer("mean", np.zeros(8, np.float32))

    def forward(self, x):
        x = self.first(x).tanh()
        with sn.no_grad():
            self.mean.copy_(self.mean * 0.9 + x.mean(0) * 0.1)
        return self.head(self.second(x * self.mean).tanh())


class OneHead(nn.Module):
    """Asks for contiguous memory where there may be some already."""

    def __init__(self):
        self.attention, self.head = nn.MultiheadAttention(FEATURES, 1, batch_first=True), nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        x = x.unsqueeze(1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].squeeze(1).contiguous())


def make(strategy="all_reduce", workers=1, shards=4, model=Skips, samples=29, **options):
    """A trainer and its loader; of the default samples, the last batch has 5, for shards of 1 and 2."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, samples)
    x = (rng.standard_normal((samples, FEATURES)) + y[:, None]).astype(np.float32)
    sn.manual_seed(1)
    network = model()
    rule = sn.optim.Adam(network.parameters(), 0.01)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, y), BATCH, shuffle=True, seed=3, drop_last=samples == 29)
    loss = sn.nn.CrossEntropyLoss()
    options = {"workers": workers, "shards": shards, "strategy": strategy, "progress": False, "jit": False, **options}
    return sn.Trainer(network, rule, loss, **options), loader


def digest(trainer, history):
    state = {"model": trainer.model, "optimizer": trainer.optimizer, "history": history.records}
    return hashlib.sha256(checkpoint.dumps(state)).hexdigest()


def trained(strategy="all_reduce", workers=1, **options):
    trainer, loader = make(strategy, workers, **options)
    return digest(trainer, trainer.fit(loader, epochs=2))


@pytest.fixture(scope="module")
def expected():
    return trained()


# --- the promise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_give_the_bytes_of_one_process(expected, stages, schedule):
    assert trained(Pipeline(stages, schedule=schedule)) == expected


@pytest.mark.parametrize("cut", [["second"], ["second.1"], ["drop"], ["head"]])
def test_no_cut_changes_a_byte(expected, cut):
    assert trained(Pipeline(2, cut)) == expected


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_recomputing_activations_changes_no_byte(expected, schedule):
    assert trained(Pipeline(3, recompute=True, schedule=schedule)) == expected


@pytest.mark.parametrize(
    "options", [{"accumulate": 2, "clip_norm": 0.3}, {"shards": 3}, {"nonfinite": "skip"}], ids=str
)
def test_options_of_a_step_keep_their_bytes(options):
    found = trained(Pipeline(3), **options)
    assert found == trained(Pipeline(3, schedule="zero_bubble"), **options) == trained(**options)


def test_stages_of_layers_in_parts_have_the_bytes_of_the_parts():
    options = {"model": by_rows}
    parts = {"parts": 2, "plan": {"0": "columns", "2": "rows"}}
    expected = trained(TensorParallel(**parts), **options)
    assert trained(Pipeline(2, ["3"], **parts), **options) == expected
    assert expected != trained(**options)


def by_rows():
    return nn.Sequential(nn.Linear(FEATURES, 9), nn.Tanh(), nn.Linear(9, 8), nn.Linear(8, CLASSES))


class Heads(nn.Module):
    def __init__(self):
        self.layers = nn.Sequential(nn.Linear(FEATURES, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 8))
        self.attend, self.head = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.attend(self.layers(x).unsqueeze(1)).squeeze(1))


class Convolutions(nn.Module):
    def __init__(self):
        self.layers = nn.Sequential(nn.Conv1d(1, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 3), nn.Flatten())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layers(x.unsqueeze(1)))


class Embeds(nn.Module):
    """Rows of a table by numbers that an op of another stage gave: a stand-in for them must be in its range."""

    def __init__(self):
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.embed(x.abs().clip(0, 6).long()).mean(1))


PARTED = [
    (by_rows, 3, {"0": "rows", "2": "columns"}),
    (Heads, 2, None),
    (Convolutions, 2, None),
    (Embeds, 2, {"embed": "rows"}),
]


@pytest.mark.parametrize(("model", "parts", "plan"), PARTED)
def test_parts_of_layers_are_pieces_with_the_bytes_of_one_process(model, parts, plan):
    """The check of the plan compares the bytes."""
    strategy = Pipeline(1, parts=parts, plan=plan)
    trainer, loader = make(strategy, parts, model=model)
    settings = trainer._settings(loader)
    replica = Replica.of(dataclasses.replace(settings, model=network(trainer.model, parts, plan)))
    units = [stage.place.part for stage in replica.plan.stages if stage.blocks]
    assert units == [*range(parts)] * (len(units) // parts) and units
    phases = strategy.phases(4, 1, False, replica.plan.links)
    spans = timetable(strategy, phases, parts, lambda phase, _: 1 + phase.place.part)
    ends = {(span.phase, span.piece): span.end for span in spans}
    for span in (span for span in spans if span.phase.name in ("forward", "backward")):
        s, back = span.phase.stage, span.phase.name == "backward"
        others = replica.plan.links[s].before if back else replica.plan.links[s].after
        waited = [ends[p, span.piece] for p in phases if p.name == span.phase.name and p.stage in others]
        assert len(waited) == len(others) and span.start >= max(waited, default=0)
    assert {span.worker for span in spans} == {*range(parts)}


@pytest.mark.parametrize(("stages", "workers"), [(1, 2), (2, 4)])
def test_workers_share_the_parts_of_a_shard_and_die_without_a_trace(stages, workers, monkeypatch, tmp_path):
    faults = "forward.half_written:1:1:SIGKILL,backward.half_written:2:0:SIGKILL"
    monkeypatch.setenv(VARIABLE, faults if stages == 1 else "")
    monkeypatch.setenv(LOG, str(tmp_path / "fired"))
    with no_residue():
        found = trained(Pipeline(stages, parts=2), workers, model=Heads)
    assert found == trained(TensorParallel(2), model=Heads)
    assert stages > 1 or len((tmp_path / "fired").read_text().splitlines()) == 2


def test_a_parameter_that_is_used_around_parts_keeps_them_together():
    class Twice(Heads):
        def forward(self, x):
            return self.head(self.attend(self.layers(x).unsqueeze(1)).squeeze(1)) + self.head(self.layers(x))

    trainer, loader = make(Pipeline(1, parts=2), 2, model=Twice)
    settings = trainer._settings(loader)
    replica = Replica.of(dataclasses.replace(settings, model=network(trainer.model, 2, None)))
    assert len(replica.plan.stages) == 1


@pytest.mark.parametrize(
    ("stages", "parts", "workers", "expected"),
    [
        (2, 2, 4, [[0, 0, 1, 1], [2, 2, 3, 3]]),
        (1, 3, 2, [[0, 0, 0, 0, 1, 1]]),
        (2, 2, 2, [[0, 0, 0, 0], [1, 1, 1, 1]]),
        (1, 2, 4, [[0, 1, 2, 3]]),
    ],
)
def test_the_owner_of_a_part(stages, parts, workers, expected):
    """Of each stage: of each part the owners of shards 0 and 1."""
    for stage, owners in enumerate(expected):
        found = [Place(stage, p, parts).owner(k, stages, workers) for p in range(parts) for k in range(2)]
        assert found == owners


def test_shards_of_several_sizes_and_empty_ones_keep_their_bytes():
    options = {"samples": 27, "shards": 4, "model": lambda: nn.MLP(FEATURES, 8, CLASSES, dropout=0.3)}
    assert trained(Pipeline(2), **options) == trained(**options)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_buffer_is_updated_and_read_in_one_forward(schedule):
    assert trained(Pipeline(2, ["second"], schedule=schedule), model=Remembers) == trained(model=Remembers)


def test_what_stands_for_another_stages_numbers_lies_in_memory_as_they_do():
    assert trained(Pipeline(2, ["head"]), model=OneHead) == trained(model=OneHead)


@pytest.mark.parametrize(("stages", "workers"), [(2, 2), (3, 2), (2, 4)])
def test_no_number_of_workers_changes_a_byte(expected, stages, workers):
    with no_residue():
        assert trained(Pipeline(stages), workers) == expected


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("1f1b", ["forward.half_written:1:1"]),
        ("1f1b", ["backward.half_written:1:1"]),
        ("1f1b", ["backward.claimed:1:1"]),
        ("zero_bubble", ["backward_inputs.half_written:1:1", "backward_weights.half_written:1:0"]),
    ],
    ids=str,
)
def test_a_kill_in_a_stage_changes_no_byte(expected, schedule, points, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, ",".join(f"{point}:SIGKILL" for point in points))
    monkeypatch.setenv(LOG, str(tmp_path / "fired"))
    with no_residue():
        assert trained(Pipeline(2, schedule=schedule), 2) == expected
    assert sorted((tmp_path / "fired").read_text().split()) == [f"{point}:SIGKILL" for point in points]


class Holds(nn.CrossEntropyLoss):
    """A loss that looks, in a worker, at what the optimizer has of its own."""

    def __init__(self, optimizer):
        super().__init__()
        self.optimizer = optimizer

    def __call__(self, output, target):
        if multiprocess.parent_process():
            held = [array for state in self.optimizer.states for array in state.arrays]
            assert not any(any(array.strides) for array in held), "a worker keeps states"
        return super().__call__(output, target)


def test_a_worker_keeps_no_parameters_and_states_of_its_own(expected):
    trainer, loader = make(Pipeline(2), 2)
    trainer.loss = Holds(trainer.optimizer)
    assert digest(trainer, trainer.fit(loader, epochs=2)) == expected


@pytest.mark.parametrize("backward", [["backward"], ["backward_inputs", "backward_weights"]], ids=str)
def test_a_graph_of_an_older_step_is_not_taken_for_that_of_this_step(backward):
    """Pieces of a stage are done here, then by others, then its last one here: with other parameters by now."""
    trainer, loader = make(Pipeline(2))
    replica = Replica.of(trainer._settings(loader))
    layout, plan = replica.layout, replica.plan
    pages = [layout.page(np.zeros(layout.page_bytes, np.uint8)) for _ in range(2)]
    replica.write(pages[0])
    for extent in layout.parameters.values():
        extent.of(pages[1][0])[...] = 2 * extent.of(pages[0][0])
    here, there, found = Stages(replica, plan), Stages(replica, plan), []
    sent = [np.zeros((1, size), np.uint8) for size in (plan.activation_bytes, plan.gradient_bytes)]
    parts = [Part(0, 0, loader.indices(0)[:3], 1.0)]
    for back in (there, here):
        old, new = (Memory(page[0], np.zeros(layout.nbytes, np.uint8), *sent) for page in pages)
        for stages, step, memory in ((here, 0, old), (there, 1, new)):
            for piece in ("forward", *backward[:-1]):
                for stage in (0, 1) if piece == "forward" else (1, 0):
                    getattr(stages, piece)(stage, 0, step, parts, memory)
        for stage in (1, 0):
            getattr(back, backward[-1])(stage, 0, 1, parts, new)
        found.append(new.slot.tobytes())
    assert found[0] == found[1]


def test_a_run_resumes_in_other_stages(expected, tmp_path):
    trainer, loader = make(Pipeline(3), folder=tmp_path)
    trainer.fit(loader, epochs=1)
    trainer, loader = make("all_reduce", folder=tmp_path)
    trainer.fit(loader, epochs=1, resume="auto")
    trainer, loader = make(Pipeline(2, ["head"]), folder=tmp_path)
    assert digest(trainer, trainer.fit(loader, epochs=2, resume="auto")) == expected


def test_terms_of_a_gradient_that_come_in_another_order_are_found(monkeypatch):
    """`a` is read twice in stage 1 and once later: what stage 2 gives must come before both, not after their sum."""

    def late(roots, targets):
        places = {id(t): i for i, t in enumerate(targets)}
        found = backward([root for root in roots if id(root[0]) not in places], targets)
        for t, g in roots:
            if id(t) in places:
                found[places[id(t)]] = total(found[places[id(t)]], g)
        return found

    monkeypatch.setattr(pieces, "backward", late)
    with pytest.raises(sn.errors.ConfigError, match="expected stages that give the bytes of one process"):
        trained(Pipeline(3, ["second", "third"]))


# --- what is refused --------------------------------------------------------------------------------------------------


class Looks(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.first(x)
        return self.second(x * (1.0 if x.sum().item() > 0 else 2.0))


class Ties(nn.Module):
    def __init__(self):
        self.first, self.middle, self.last = (nn.Linear(FEATURES, FEATURES) for _ in range(3))
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class InPlace(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.first(x) * 2
        x += 1
        return self.second(x)


@pytest.mark.parametrize(
    ("strategy", "model", "message"),
    [
        (Pipeline(9), Skips, "at most . stages, one for each layer that can be cut off, got 9"),
        (Pipeline(2, ["nowhere"]), Skips, "cut to name modules that the model calls .*first.*, got 'nowhere'"),
        (Pipeline(3, ["head", "second"]), Skips, "in the order in which modules are called"),
        (Pipeline(2, ["first"]), Skips, "nothing is left for the stage before 'first'"),
        (Pipeline(2, ["middle"]), Ties, "'first.weight' in stages 0, 1"),
        (Pipeline(2), Ties, "at most 1 stages"),
        (Pipeline(2), Looks, "looks at no values, as another stage may have them, got item"),
        (Pipeline(2), InPlace, "changes no activation in place"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_in_a_line(strategy, model, message):
    with pytest.raises(sn.errors.ConfigError, match=message) as error:
        trained(strategy, model=model)
    assert "\n" not in str(error.value)


def test_one_stage_is_the_engine_of_a_model_that_is_not_divided():
    """So it costs nothing."""
    for workers in (1, 2):
        trainer, loader = make(Pipeline(1), workers)
        assert trainer.strategy.is_plain and not trainer.strategy.divides(workers)
        assert Replica.of(trainer._settings(loader)).plan is None


def test_more_workers_than_stages_must_be_a_multiple():
    with pytest.raises(sn.errors.ConfigError, match="at most 2 workers, one for each stage, or a multiple, got 3"):
        make(Pipeline(2), 3)


def test_a_cut_has_a_name_for_each_stage_but_the_first():
    with pytest.raises(sn.errors.ConfigError, match="expected 2 names in cut for 3 stages, got 1"):
        Pipeline(3, ["head"])
