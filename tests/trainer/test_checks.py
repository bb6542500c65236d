"""A Trainer's model, optimizer and schedule belong together; what is set on a Trainer takes effect or is refused."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet.random import Generator
from scratchnet.trainer.run import phase_start

X = np.random.default_rng(0).random((16, 4), dtype=np.float32)
LOADER = sn.data.DataLoader(sn.data.TensorDataset(X, np.arange(16) % 3), 8)


def make(model, optimizer, scheduler=None, **options):
    return sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), scheduler, progress=False, **options)


def state(model):
    return {name: array.tolist() for name, array in model.state_dict().items()}


@pytest.mark.parametrize("workers", [1, 2, "auto"])
def test_an_optimizer_of_other_parameters_is_refused(workers):
    a, b = sn.nn.MLP(4, 8, 3), sn.nn.MLP(4, 8, 3)
    mixed = [a.linear1.weight, b.linear1.weight]
    for parameters, count in ((b.parameters(), "4 of 4"), (mixed, "1 of 2")):
        with pytest.raises(sn.ConfigError, match=rf"{count}.*model\.parameters\(\)") as error:
            make(a, sn.optim.Adam(parameters), workers=workers)
        error_line(error)


def test_parts_that_are_exchanged_later_are_checked_before_a_run():
    model = sn.nn.MLP(4, 8, 3)
    trainer = make(model, sn.optim.SGD(model.parameters(), lr=0.1))
    model.linear2 = sn.nn.Linear(8, 3)  # the optimizer still has the old one
    with pytest.raises(sn.ConfigError, match="2 of 4"):
        trainer.fit(LOADER)
    trainer.optimizer = sn.optim.SGD(model.parameters(), lr=0.1)
    before = state(model)
    trainer.fit(LOADER)
    assert all(state(model)[name] != before[name] for name in before)


def test_a_schedule_of_another_optimizer_is_refused():
    model = sn.nn.MLP(4, 3)
    optimizer, other = (sn.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(sn.ConfigError, match="schedule of its optimizer") as error:
        make(model, optimizer, sn.optim.lr_scheduler.StepLR(other, 1))
    error_line(error)


def test_training_a_head_alone_is_allowed_and_said():
    model = sn.nn.MLP(4, 8, 3)
    before = state(model)
    optimizer = sn.optim.SGD(model.linear2.parameters(), lr=0.1)
    with pytest.warns(
        UserWarning, match=r"^Trainer: 2 trainable parameters .*linear1\.weight, linear1\.bias; requires"
    ):
        make(model, optimizer)
    deep = sn.nn.MLP(4, 8, 8, 3)
    for n, end in ((3, "linear2.weight; requires"), (4, "linear2.weight, ...; requires")):
        with pytest.warns(UserWarning) as found:
            make(deep, sn.optim.SGD([*deep.parameters()][n:], lr=0.1))
        assert end in str(found[0].message)
    with pytest.warns(UserWarning) as record:
        make(model, optimizer).fit(LOADER)
    assert {warning.filename for warning in record} == {__file__}
    model.linear1.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make(model, optimizer)
        trainer.fit(LOADER)
    changed = [name for name in before if state(model)[name] != before[name]]
    assert changed == ["linear2.weight", "linear2.bias"]


@pytest.mark.parametrize("name", ["lr", "epochs", "batch_size", "learning_rate", "worker"])
def test_an_attribute_that_nothing_reads_is_refused(name):
    model = sn.nn.MLP(4, 3)
    trainer = make(model, sn.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(sn.UnknownAttributeError, match=rf"Trainer\.{name}: expected .*accumulate") as error:
        setattr(trainer, name, 1)
    assert len(str(error.value).splitlines()) == 1


BAD = [
    ("nonfinite", "ignore"),
    ("accumulate", 0),
    ("precision", "float16"),
    ("clip_norm", -1.0),
    ("shards", 0),
    ("save_every", True),
    ("strategy", "magic"),
    ("workers", "many"),
    ("devices", ("tpu",)),
    ("model", None),
    ("optimizer", None),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_setting_that_is_changed_later_is_checked_before_a_run(name, value):
    model = sn.nn.MLP(4, 3)
    trainer = make(model, sn.optim.SGD(model.parameters(), lr=0.1))
    setattr(trainer, name, value)
    with pytest.raises(sn.ScratchnetError) as error:
        trainer.fit(LOADER)
    error_line(error)


def test_a_setting_that_is_changed_later_takes_effect(tmp_path):
    def trained(change, **options):
        sn.manual_seed(0)
        model = sn.nn.MLP(4, 3)
        trainer = make(model, sn.optim.SGD(model.parameters(), lr=0.1), **options)
        for setting, value in change.items():
            setattr(trainer, setting, value)
        trainer.fit(LOADER)
        return state(model)

    for options in ({"clip_norm": 0.01}, {"accumulate": 2}, {"strategy": "local_sgd", "shards": 4}):
        assert trained(options) == trained({}, **options) != trained({})
    trained({"folder": str(tmp_path / "run")})
    assert list((tmp_path / "run").glob("checkpoint-*"))


class Sets:
    """After the first epoch, an attribute of the Trainer."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def on_epoch_end(self, run):
        if run.epoch == 1:
            setattr(run.trainer, self.name, self.value)


NEW = [("clip_norm", 0.01), ("seed", 1), ("shards", 2), ("optimizer", None), ("folder", "elsewhere"), ("callbacks", ())]
LIVE = [("save_every", 0, ">= 1 or None"), ("workers", 2, "arithmetic stays"), ("lr", 0.1, "Trainer.lr: .* is read")]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [*((name, value, f"{name} to stay as it is while fit runs, .*; set it before$") for name, value in NEW), *LIVE],
)
def test_a_setting_that_a_run_would_not_see_is_refused_while_it_runs(name, value, message, tmp_path):
    model = sn.nn.MLP(4, 3)
    trainer = make(model, sn.optim.SGD(model.parameters(), lr=0.1), callbacks=[Sets(name, value)])
    with pytest.raises(sn.CallbackError, match=message) as error:
        trainer.fit(LOADER, epochs=2)
    assert len(str(error.value).splitlines()) == 1
    if name in vars(trainer):
        assert vars(trainer)[name] is not value
        setattr(trainer, name, value)  # at rest


@pytest.mark.parametrize(("name", "value"), [("save_every", 1), ("workers", 2), ("progress", True)])
def test_what_a_run_reads_between_its_steps_takes_effect_while_it_runs(name, value, tmp_path, capsys):
    model = sn.nn.MLP(4, 3)
    options = {"shards": 2, "folder": tmp_path, "callbacks": [Sets(name, value)]}
    trainer = make(model, sn.optim.SGD(model.parameters(), lr=0.1), **options)
    history = trainer.fit(LOADER, epochs=2)
    seen = {
        "save_every": (tmp_path / "checkpoint-000000000003.safetensors").exists(),
        "workers": len(history.lines_of_workers()) == 2,
        "progress": "epoch 2" in capsys.readouterr().out,
    }
    assert seen == {key: key == name for key in seen}


def test_a_frozen_part_of_halves_leaves_samples_in_the_type_of_the_rest():
    class Encoded(sn.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = sn.nn.Linear(4, 4).to(dtype="bfloat16").requires_grad_(False)
            self.head = sn.nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.encoder(x.bfloat16()).float())

    model = Encoded()
    before = state(model)
    trainer = make(model, sn.optim.SGD(model.head.parameters(), lr=0.1))
    trainer.fit(LOADER, LOADER)
    assert [name for name in before if state(model)[name] != before[name]] == ["head.weight", "head.bias"]


CLONES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def by_joblib(thing):
    joblib = pytest.importorskip("joblib", reason="joblib, which comes with scikit-learn, is not installed")
    file = io.BytesIO()
    joblib.dump(thing, file)
    file.seek(0)
    return joblib.load(file)


CLONES["joblib"] = by_joblib
SCHEDULES = {
    "StepLR": lambda optimizer: sn.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    "OneCycleLR": lambda optimizer: sn.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 20),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_a_copy_of_a_fitted_trainer_goes_on_with_the_same_bits_and_alone(clone, schedule):
    sn.manual_seed(0)
    model = sn.nn.MLP(4, 8, 3)
    model.linear1.tied = model.linear1.weight
    optimizer = sn.optim.Adam(model.parameters(), lr=0.01)
    trainer = make(model, optimizer, schedule(optimizer))
    trainer.fit(LOADER, epochs=1)
    other = clone(trainer)
    before = state(model)
    other.fit(LOADER, epochs=2)
    assert state(model) == before
    trainer.fit(LOADER, epochs=2)
    assert state(model) == state(other.model) != before
    copied = other.optimizer
    assert other.scheduler.optimizer is copied and copied.param_groups[0] is copied.states[0].group
    assert other.model.linear1.tied is other.model.linear1.weight is copied.states[0].param
    with pytest.raises(sn.UnknownAttributeError):
        copied.lr = 0.1
    with pytest.raises(sn.ConfigError, match="momentum"):
        copied.param_groups[0]["momentum"] = 0.1


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_parts_can_be_copied_and_a_device_stays_the_one_that_it_is(clone):
    model = sn.nn.Sequential(sn.nn.BatchNorm1d(4), sn.nn.Dropout(0.5))
    optimizer = sn.optim.SGD(model.parameters(), lr=0.1)
    parts = [model, optimizer, sn.optim.lr_scheduler.StepLR(optimizer, 2), LOADER, LOADER.dataset, Generator(3)]
    parts += [sn.nn.CrossEntropyLoss(), optimizer.param_groups[0], optimizer.states[0], sn.Tensor(X)]
    assert [type(copied) for copied in clone(parts)] == [type(part) for part in parts]
    device = sn.Tensor(X)._device
    assert clone(device) is device


def test_a_mean_that_is_not_one_of_samples_is_said_where_a_batch_has_parts():
    model = sn.nn.MLP(4, 3)
    optimizer = sn.optim.SGD(model.parameters(), lr=0.1)
    for loss in (sn.nn.CrossEntropyLoss([1.0, 2.0, 3.0]), sn.nn.NLLLoss(ignore_index=0)):
        with pytest.warns(UserWarning, match=r"Loss\(.* divides by the weights of the labels, each of the 2") as found:
            sn.Trainer(model, optimizer, loss, shards=2)
        assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss([1.0, 2.0, 3.0]), shards=1)
        sn.Trainer(model, optimizer, sn.nn.BCEWithLogitsLoss([1.0, 2.0, 3.0]), shards=2)


# --- what a schedule steps by ----------------------------------------------------------------------------------------

schedules = sn.optim.lr_scheduler
UNITS = {  # the rates after each of three epochs of two steps, from 1.0
    "step": (lambda o: schedules.ExponentialLR(o, 0.5), [0.25, 0.0625, 0.015625]),
    "epoch": (lambda o: schedules.ExponentialLR(o, 0.5, by="epoch"), [0.5, 0.25, 0.125]),
    "metric": (
        lambda o: schedules.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=10.0, monitor="train_loss"),
        [1.0, 0.5, 0.25],
    ),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("make_schedule", "expected"), UNITS.values(), ids=UNITS)
def test_a_schedule_steps_by_what_it_says_and_resumes(make_schedule, expected, workers, tmp_path):
    def run(epochs, folder, resume=None):
        sn.manual_seed(0)
        model = sn.nn.MLP(4, 3)
        optimizer = sn.optim.SGD(model.parameters(), lr=1.0)
        trainer = make(model, optimizer, make_schedule(optimizer), workers=workers, shards=2, folder=folder)
        trainer.fit(LOADER, epochs=epochs, resume=resume)
        return optimizer.param_groups[0]["lr"], state(model)

    found = [run(epochs, tmp_path / str(epochs)) for epochs in (1, 3)]
    assert [lr for lr, _ in found] == [expected[0], expected[2]]
    assert run(3, tmp_path / "1", "auto") == found[1]


def test_a_metric_that_a_run_does_not_have_is_refused_before_it_starts():
    model = sn.nn.MLP(4, 3)
    optimizer = sn.optim.SGD(model.parameters(), lr=1.0)
    before = state(model)
    for schedule, epochs, message in [
        (schedules.ReduceLROnPlateau(optimizer), 1, "a val_loader for ReduceLROnPlateau, which watches 'val_loss'"),
        (schedules.ReduceLROnPlateau(optimizer, "max"), 1, "watches 'val_accuracy'"),
    ]:
        with pytest.raises(sn.ConfigError, match=message) as error:
            make(model, optimizer, schedule).fit(LOADER, epochs=epochs)
        error_line(error)
    assert state(model) == before
    with pytest.raises(
        sn.ConfigError, match="expected monitor to be one of epoch, step, train_loss, got 'f1'"
    ) as error:
        make(model, optimizer, schedules.ReduceLROnPlateau(optimizer, monitor="f1")).fit(LOADER)
    error_line(error)


NONE = sn.data.DataLoader(LOADER.dataset, 32, drop_last=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda trainer, path: trainer.fit(LOADER, epochs=-1), sn.ConfigError, "fit: expected epochs >= 0, got -1"),
        (lambda trainer, path: trainer.fit(NONE), sn.ConfigError, "fit: expected at least one batch to train on"),
        (lambda trainer, path: trainer.evaluate(NONE), sn.ConfigError, "evaluate: expected at least one batch, got"),
        (lambda trainer, path: trainer.predict(1.0), sn.ShapeError, "predict: expected rows, got"),
        (
            lambda trainer, path: trainer.predict(sn.data.TensorDataset(X)),
            sn.DtypeError,
            r"predict: expected rows, got a TensorDataset; dataset\[:\]\[0\] are those of a data set",
        ),
        (lambda trainer, path: trainer.fit(LOADER, resume="auto"), sn.ConfigError, r"Trainer\(folder=\.\.\.\) with"),
        (lambda trainer, path: trainer.fit(LOADER, resume=path), sn.CheckpointError, "got one without .identity."),
    ],
)  # fmt: skip
def test_what_nothing_can_be_computed_of_is_refused_and_changes_nothing(call, error, message, tmp_path):
    sn.save(tmp_path / "other", weights=X)
    model = sn.nn.Linear(4, 3)
    before, trainer = state(model), make(model, sn.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(error, match=message) as caught:
        call(trainer, tmp_path / "other")
    error_line(caught)
    assert state(model) == before


@pytest.mark.parametrize("workers", [True, 0, 1.5, "two"])
def test_a_number_of_workers_is_an_integer_or_auto(workers):
    model = sn.nn.Linear(4, 3)
    with pytest.raises(sn.ConfigError, match="workers to be 'auto' or an integer of at least 1"):
        make(model, sn.optim.SGD(model.parameters(), 0.1), workers=workers)


def test_a_schedule_begins_where_its_phase_did(tmp_path):
    assert phase_start(tmp_path, None) == phase_start(tmp_path, "auto") == 0
    model = sn.nn.Linear(4, 3)
    make(model, sn.optim.SGD(model.parameters(), 0.1), folder=tmp_path).fit(LOADER, epochs=2)
    assert [phase_start(tmp_path, "auto", new_phase=new) for new in (False, True)] == [0, 2]
