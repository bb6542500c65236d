"""Training by parts: whose bits it has, on how many workers, through kills and checkpoints."""

import logging

import numpy as np
import pytest
from residue import no_residue

import scratchnet as sn
from scratchnet import nn
from scratchnet.parallel import AllReduce, TensorParallel
from scratchnet.parallel.failpoints import LOG, VARIABLE
from scratchnet.parallel.model.parts import network

RNG = np.random.default_rng(3)
X = RNG.normal(size=(28, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
PLAN = {"0": "columns", "3": "rows"}


class Skipping(nn.Module):
    """Layers that are called twice, and around; a buffer."""

    def __init__(self):
        self.first, self.norm, self.again, self.last = (
            nn.Linear(6, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 5),
            nn.Linear(5, 2),
        )

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.last(x + self.again(x.relu()) + self.again(x))


MODELS = {
    "a chain": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 2)), PLAN),
    "modules": (Skipping, {"first": "columns", "again": "rows"}),
}


def trainer_of(strategy, case="a chain", device="cpu", **options):
    sn.manual_seed(0)
    with sn.default_device(device):
        model = MODELS[case][0]()
    optimizer = sn.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    options = {"shards": 2, "progress": False, "seed": 5, **options}
    trainer = sn.Trainer(model, optimizer, nn.CrossEntropyLoss(), strategy=strategy, **options)
    return trainer, sn.data.DataLoader(sn.data.TensorDataset(X, Y), 8, shuffle=True, seed=1)


def trained(strategy, case="a chain", epochs=2, resume=None, **options):
    """The bytes of all parameters and buffers after a run, and its history."""
    trainer, loader = trainer_of(strategy, case, **options)
    history = trainer.fit(loader, epochs=epochs, resume=resume)
    return b"".join(array.tobytes() for array in trainer.model.state_dict().values()), history.records


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_bits_depend_on_the_parts_and_on_nothing_else(case, device):
    plan = MODELS[case][1]
    alone = trained(TensorParallel(3, plan), case, device=device)
    assert alone != trained(TensorParallel(2, plan), case, device=device)
    assert alone == trained(TensorParallel(3, plan), case, device=device, jit=False)
    if (case, device) == ("modules", "cpu"):  # the others see workers below
        with no_residue():
            assert alone == trained(TensorParallel(3, plan), case, device=device, workers=2)


def test_one_part_has_the_bits_of_all_reduce():
    expected = trained(AllReduce())
    assert trained(TensorParallel(1)) == trained(TensorParallel(1, PLAN)) == expected


def test_a_plan_that_is_found_has_the_bits_of_one_that_is_given():
    assert trained(TensorParallel(2)) == trained(TensorParallel(2, PLAN))


def test_steps_in_pieces_have_the_bits_of_one_program():
    """clip_norm makes no difference to small gradients, but takes the engine with slots."""
    assert trained(TensorParallel(2), clip_norm=1e6) == trained(TensorParallel(2))


@pytest.mark.parametrize("fault", ["shard.half_written:1:*:SIGKILL", "slice.written:3:*:SIGSEGV"])
def test_kills_change_no_bit(fault, monkeypatch, tmp_path):
    """Whoever comes first to that step: on a busy machine one worker may do it all."""
    expected = trained(TensorParallel(2))
    monkeypatch.setenv(VARIABLE, fault)
    monkeypatch.setenv(LOG, str(tmp_path / "fired"))
    with no_residue():
        assert trained(TensorParallel(2), workers=2) == expected
    assert (tmp_path / "fired").exists()


def test_a_checkpoint_is_whole_and_by_name(tmp_path, caplog):
    """Saved under two parts: goes on with other workers, exactly; with other parts it says so."""
    whole = trained(TensorParallel(2), epochs=3)
    trained(TensorParallel(2), epochs=1, folder=tmp_path)
    file = next(tmp_path.glob("checkpoint-*"))
    plain, _ = trainer_of(AllReduce())
    assert list(sn.load(file)["model"]) == list(plain.model.state_dict())
    assert trained(TensorParallel(2), epochs=3, resume=file, workers=2) == whole
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert trained(AllReduce(), epochs=3, resume=file) != whole
    assert [record.message for record in caplog.records] == [
        "resume: saved with 2 parts (0 by columns, 3 by rows); from here on the bits follow 1 part"
    ]
    trained(TensorParallel(3, {"0": "rows"}), epochs=3, resume=file)
    assert caplog.records[-1].message.endswith("from here on the bits follow 3 parts (0 by rows)")


CHANGES = {  # what a callback may do to the chain in the middle of a run
    "another probability": lambda model: setattr(model[2], "p", 0.8),
    "another weight": lambda model: setattr(model[0], "weight", nn.Parameter(np.zeros((6, 5), np.float32))),
    "no bias": lambda model: setattr(model[3], "bias", None),
    "another layer": lambda model: model.__setitem__(1, nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_during_a_run_is_seen(change):
    """With recorded steps and without."""

    class Change:
        def on_epoch_end(self, run):
            if len(run.history) == 2:
                CHANGES[change](run.model)

    recorded, plain = (trained(TensorParallel(2), epochs=4, jit=jit, callbacks=[Change()]) for jit in (True, False))
    assert recorded == plain != trained(TensorParallel(2), epochs=4)


def test_a_run_says_who_has_what(capsys):
    trained(TensorParallel(2), progress=True, epochs=1)
    said = capsys.readouterr().out
    assert "0 Linear  columns of 5  0:2     2:5\n" in said


@pytest.mark.parametrize("case", MODELS)
def test_a_network_has_the_parameters_of_the_model_by_the_same_names(case):
    make, plan = MODELS[case]
    model = make()
    by_parts = network(model, 2, plan)
    for find in ("named_parameters", "named_buffers"):
        ours, theirs = (list(getattr(m, find)()) for m in (by_parts, model))
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        assert all(a is b for (_, a), (_, b) in zip(ours, theirs, strict=True))
    assert network(model, 1, plan) is model


class Walking(nn.Module):
    """Calls layers of a Sequential by other ways than as a whole."""

    def __init__(self, way):
        self.net, self.way = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), way

    def forward(self, x):
        return self.way(self, x)


def noted(self, x):
    y = self.net(x)
    self.penalty = (y * y).mean()
    return y


WAYS = {
    "iterated": (lambda self, x: [x := x + layer(x) for layer in self.net][-1], "a Sequential to be called as a whole"),
    "by position": (lambda self, x: self.net[0](x), "a Sequential to be called as a whole"),
    "by a slice": (lambda self, x: self.net[:2](x), "a Sequential to be called as a whole"),
    "sets an attribute": (noted, "sets no attribute of a module around layers that are cut, .* Walking.penalty"),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_forward_that_would_give_other_numbers_is_refused(name, numpy_device):
    way, message = WAYS[name]
    with pytest.raises(sn.ConfigError, match=message):
        network(Walking(way), 2, None)(X)


def test_a_forward_that_was_set_and_pools_across_the_cut_are_left_whole_or_refused(numpy_device):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    forward = model[0].forward
    model[0].forward = lambda x: forward(x) * 3
    with pytest.raises(sn.ConfigError, match="expected two layers in a row"):
        network(model, 2, None)
    with pytest.raises(sn.ConfigError, match="expected the forward of its class, got one that was set"):
        network(model, 2, {"0": "columns"})
    for pool in (nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(3, 1, 1)):  # along the axis that would be cut
        with pytest.raises(sn.ConfigError, match="expected two layers in a row"):
            network(nn.Sequential(nn.Linear(6, 8), pool, nn.Linear(8, 2)), 2, None)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    whole = nn.Sequential(model)
    model.forward = lambda x: x
    with pytest.raises(sn.ConfigError, match="in a module around layers that are cut, got one that was set, in Seq"):
        network(whole, 2, {"0.0": "columns"})(X)
