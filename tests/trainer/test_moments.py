"""Callbacks are called at their moments, on settled state; they change no bit, and what they raise is named."""

from types import SimpleNamespace

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet.errors import CallbackError, ConfigError
from tests.trainer.test_trainer import make, newest, weights

STEPS = 7  # an epoch of 50 samples in batches of 8


class Diary:
    """Notes each moment, and the weights that it finds."""

    def __init__(self, every=1):
        self.every, self.moments, self.weights, self.losses = every, [], [], []

    def on_fit_start(self, run):
        self.moments.append(("start", run.epoch, run.step))

    def on_step_end(self, run):
        self.moments.append(("step", run.epoch, run.step))
        self.losses += run.losses
        self.weights.append(next(iter(run.model.parameters())).detach().numpy().copy())

    def on_epoch_end(self, run):
        self.moments.append(("epoch", run.epoch, run.step))
        assert run.record is run.history[-1] and run.metric("train_loss") == run.record["train_loss"]

    def on_fit_end(self, run):
        self.moments.append(("end", run.epoch, run.step))

    def on_exception(self, run, error):
        self.moments.append((type(error).__name__, run.epoch, run.step))


class Meddler:
    """Only looks, but with everything that could go wrong."""

    every = 3

    def on_step_end(self, run):
        np.random.seed(0)  # noqa: NPY002
        np.random.standard_normal(3)  # noqa: NPY002
        sn.nn.Dropout(0.5)(sn.Tensor(np.ones(4, np.float32)))

    def on_epoch_end(self, run):
        run.trainer.evaluate(run.loader)
        run.trainer.predict(np.zeros((2, 6), np.float32))


class Halves:
    """Changes values in the midst of a run, or at the end of an epoch an attribute."""

    every = 3

    def __init__(self, change=lambda model: None):
        self.change = change

    def on_step_end(self, run):
        for parameter in run.model.parameters():
            with sn.no_grad():
                parameter.copy_(parameter * 0.5)

    def on_epoch_end(self, run):
        self.change(run.model)
        run.model.eval()  # an epoch begins in training mode


def raises_at(moment):
    def method(self, run):
        raise KeyError("no such thing")

    return type("Raises", (), {moment: method})()


@pytest.mark.parametrize("options", [{"workers": 2}, {"clip_norm": 1e9}, {"strategy": "pipeline"}], ids=str)
def test_values_that_a_callback_changes_count_with_any_engine(options):
    found = []
    for own in ({}, options):
        trainer, loader = make(shards=2, callbacks=[Halves()], **own)
        trainer.fit(loader, epochs=1)
        found.append(weights(trainer))
    assert found[0] == found[1]


def test_what_workers_cannot_see_is_refused():
    def freeze(model):
        next(iter(model.parameters())).requires_grad_(False)

    trainer, loader = make(workers=2, shards=2, callbacks=[Halves(freeze)])
    with pytest.raises(CallbackError, match=r"of 2 workers has a copy .*weight.requires_grad; workers=1 sees it"):
        trainer.fit(loader, epochs=2)


class Weighted:
    weight = 1.0

    def __call__(self, outputs, labels):
        return sn.nn.functional.cross_entropy(outputs, labels) * self.weight


class WeightedModule(sn.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = 1.0

    forward = Weighted.__call__


@pytest.mark.parametrize("kind", [Weighted, WeightedModule])
def test_a_loss_that_workers_cannot_see_changed_is_refused_and_one_process_follows_it(kind):
    def run(**options):
        weighted = kind()
        anneals = type("Anneals", (), {"on_step_end": lambda self, run: setattr(weighted, "weight", 0.5)})
        trainer, loader = make(shards=2, callbacks=[anneals()], **options)
        trainer.loss = weighted
        trainer.fit(loader, epochs=2)
        return weights(trainer)

    with pytest.raises(CallbackError, match=r"of 2 workers has a copy of the .* another Weighted.*; workers=1 sees it"):
        run(workers=2)
    assert run() == run(jit=False)


def test_a_change_deep_in_the_model_that_workers_cannot_see_is_a_warning():
    class Scaled(sn.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.config = sn.nn.Linear(6, 4), {"scale": 1.0}

        def forward(self, x):
            return self.layer(x) * self.config["scale"]

    class Doubles:
        def on_epoch_end(self, run):
            run.model.config["scale"] *= 2.0

    trainer, loader = make(workers=2, shards=2, model=Scaled(), callbacks=[Doubles()])
    with pytest.warns(RuntimeWarning, match=r"of 2 workers has a copy of the model, got another Scaled.config"):
        trainer.fit(loader, epochs=2)


CHANGES = {
    "groups": (
        lambda run: run.optimizer.add_param_group({"params": run.model.linear1.parameters()}),
        "got new groups of",
    ),
    "dtype": (lambda run: run.model.to(dtype="float64"), "'linear1.weight' of float64 .* instead of float32"),
    "callbacks": (lambda run: run.trainer.callbacks.append(Diary()), "got new callbacks of the Trainer"),
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("groups", {"jit": False}),
        ("groups", {}),
        ("dtype", {}),
        ("dtype", {"clip_norm": 1.0}),
        ("dtype", {"workers": 2}),
        ("callbacks", {}),
    ],
    ids=str,
)
def test_a_callback_that_changes_more_than_values_ends_the_run_with_any_engine(kind, options, tmp_path):
    """Nothing of it is saved: the checkpoint before goes on with the bits of a run without the callback."""

    def changes(moment, epoch):
        def method(self, run):
            if run.epoch == epoch:
                change(run)

        return type("Changes", (), {moment: method})()

    def run(callbacks, resume=None, **more):
        sn.manual_seed(0)
        model = sn.nn.MLP(4, 8, 3)
        optimizer = sn.optim.SGD(model.linear2.parameters(), lr=0.1)
        model.linear1.requires_grad_(False)
        more |= {"shards": 2, "progress": False, "callbacks": callbacks}
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), **more)
        x = np.random.default_rng(0).random((8, 4), dtype=np.float32)
        trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, np.arange(8) % 3), 4), epochs=3, resume=resume)
        return {name: value.tolist() for name, value in model.state_dict().items()}

    change, message = CHANGES[kind]
    with pytest.raises(CallbackError, match=f"step 4: expected .* values alone, .*{message}.*; end the run") as error:
        run([changes("on_epoch_end", 2)], folder=tmp_path, **options)
    error_line(error)
    if "workers" not in options:
        assert run([], resume="auto", folder=tmp_path, **options) == run([], **options)
        run([changes("on_fit_end", 3)], **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_moments_of_a_run(workers):
    diary, thrice = Diary(), Diary(every=3)
    trainer, loader = make(workers=workers, shards=2, callbacks=[diary, thrice])
    trainer.fit(loader, epochs=2)
    steps = [("step", (i - 1) // STEPS, i) for i in range(1, 2 * STEPS + 1)]
    ends = [("epoch", 1, STEPS), ("epoch", 2, 2 * STEPS), ("end", 2, 2 * STEPS)]
    assert diary.moments == [("start", 0, 0), *steps[:STEPS], ends[0], *steps[STEPS:], *ends[1:]]
    assert [m for m in thrice.moments if m[0] == "step"] == [step for step in steps if step[2] % 3 == 0]
    assert thrice.losses == diary.losses[: len(thrice.losses)] and len(thrice.losses) == 12
    assert all((a != b).any() for a, b in zip(diary.weights, diary.weights[1:], strict=False))
    np.testing.assert_array_equal(thrice.weights[0], diary.weights[2])


def test_weights_at_a_step_are_those_of_a_run_that_ends_there():
    diary = Diary()
    trainer, loader = make(workers=2, shards=2, callbacks=[diary])
    trainer.fit(loader, epochs=2)
    alone, loader = make(shards=2)
    alone.fit(loader, epochs=1)
    np.testing.assert_array_equal(diary.weights[STEPS - 1], next(iter(alone.model.parameters())).detach().numpy())


def test_losses_of_steps_are_means_over_their_samples():
    diary = Diary()
    trainer, loader = make(shards=3, callbacks=[diary])
    history = trainer.fit(loader, epochs=1)
    sizes = np.array([8] * 6 + [2])
    assert history["train_loss"][0] == pytest.approx(np.dot(diary.losses, sizes) / sizes.sum())


@pytest.mark.parametrize(
    "options", [{}, {"workers": 2}, {"accumulate": 2}, {"strategy": sn.parallel.LocalSGD(every=2)}]
)
def test_callbacks_that_only_look_change_no_bit(options):
    plain, loader = make(shards=2, **options)
    plain.fit(loader, epochs=2)
    watched, loader = make(shards=2, callbacks=[Meddler(), Diary()], **options)
    watched.fit(loader, epochs=2)
    assert weights(plain) == weights(watched)


class Noisy(sn.data.Dataset):
    """Draws from the caller's own stream when it is evaluated."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return np.random.standard_normal(6).astype(np.float32), i % 3  # noqa: NPY002


def test_callbacks_draw_nothing_from_the_random_numbers_of_the_caller():
    losses = []
    for callbacks in ([], [Meddler()]):
        np.random.seed(5)  # noqa: NPY002
        trainer, loader = make(callbacks=callbacks)
        losses.append(trainer.fit(loader, sn.data.DataLoader(Noisy(), 8), epochs=3)["val_loss"])
    assert losses[0] == losses[1] and len(set(losses[0])) == 3


# --- stopping, raising, resuming --------------------------------------------------------------------------------------


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, run):
        if run.step == self.step:
            run.stop("enough")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_stopped_in_an_epoch_goes_on_from_there(tmp_path, workers):
    whole, loader = make(tmp_path / "whole", shards=2)
    whole.fit(loader, epochs=2)
    trainer, loader = make(tmp_path / "parts", shards=2, workers=workers, callbacks=[StopAt(9)])
    history = trainer.fit(loader, epochs=2)
    assert (history.stopped, len(history)) == ("enough", 1)
    trainer, loader = make(tmp_path / "parts", shards=2)
    assert trainer.fit(loader, epochs=2, resume="auto").stopped is None
    assert weights(trainer) == weights(whole)


@pytest.mark.parametrize("moment", ["on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end"])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_callback_raises_is_named_and_the_run_is_saved(tmp_path, moment, workers):
    diary = Diary(every=100)
    trainer, loader = make(tmp_path, shards=2, workers=workers, callbacks=[raises_at(moment), diary])
    with pytest.raises(CallbackError, match=f"Raises.{moment}, after step [0-9]+: KeyError: 'no such thing'") as caught:
        trainer.fit(loader, epochs=1)
    assert isinstance(caught.value.__cause__, KeyError)
    assert diary.moments[-1][0] == "CallbackError"
    trainer, loader = make(tmp_path, shards=2)
    trainer.fit(loader, epochs=1, resume="auto")
    whole, loader = make(shards=2)
    whole.fit(loader, epochs=1)
    assert weights(trainer) == weights(whole)


def test_callbacks_are_told_of_an_exception_and_their_own_is_a_warning():
    diary = Diary(every=100)
    trainer, loader = make(lr=1e38, callbacks=[diary, raises_at("on_exception")])
    with pytest.warns(RuntimeWarning, match=r"Raises.on_exception: "), pytest.raises(sn.NonFiniteError):
        trainer.fit(loader, epochs=3)
    assert diary.moments[-1][0] == "NonFiniteError"


class Counter:
    every = 4

    def __init__(self):
        self.calls, self.losses = 0, []

    def on_step_end(self, run):
        self.calls += 1
        self.losses += run.losses

    def state_dict(self):
        return {"calls": self.calls, "losses": self.losses}

    def load_state_dict(self, state):
        self.calls, self.losses = state["calls"], state["losses"]


def test_a_resumed_run_keeps_the_state_of_its_callbacks(tmp_path):
    whole = [Counter(), Counter()]
    trainer, loader = make(tmp_path / "whole", callbacks=whole)
    trainer.fit(loader, epochs=3)
    trainer, loader = make(tmp_path / "parts", callbacks=[Counter(), Counter()])
    trainer.fit(loader, epochs=1)  # ends three steps after the last call
    parts = [Counter(), Counter()]
    trainer, loader = make(tmp_path / "parts", callbacks=parts)
    trainer.fit(loader, epochs=3, resume="auto")
    assert [c.state_dict() for c in parts] == [c.state_dict() for c in whole]
    assert newest(tmp_path / "parts") == newest(tmp_path / "whole")


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([object()], "expected an object with a method on_fit_start"),
        ([Counter], "give an object, not its class"),
        (
            [type("Timer", (Counter,), {"on_epoch_start": print})()],
            r"expected methods of moments, .* got Timer\.on_epoch_s",
        ),
        ([SimpleNamespace(on_step_end=print, on_epoch_start=print)], "got SimpleNamespace.on_epoch_start"),
        (7, "expected a list of callbacks"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, message):
    with pytest.raises(ConfigError, match=message):
        make(callbacks=callbacks)


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_a_step_callback_with_another_rhythm_is_refused(every):
    with pytest.raises(sn.ScratchnetError, match=r"Diary\.every"):
        make(callbacks=[Diary(every)])


def test_a_metric_that_a_run_does_not_have_names_those_that_it_has():
    class Asks:
        def on_epoch_end(self, run):
            run.metric("val_los")

    trainer, loader = make(callbacks=[Asks()])
    with pytest.raises(CallbackError, match=r"expected a metric of the run, train_loss, got 'val_los'"):
        trainer.fit(loader, epochs=1)


def test_a_trainer_or_callback_whose_run_goes_on_takes_no_other_run():
    def again(self, run):
        run.trainer.fit(run.loader, epochs=1)

    trainer, loader = make(callbacks=[type("Again", (), {"on_epoch_end": again})()])
    with pytest.raises(CallbackError, match=r"Again\.on_epoch_end, after step [0-9]+: fit: expected a Trainer at rest"):
        trainer.fit(loader, epochs=1)
    diary = Diary()

    def another(self, run):
        make(callbacks=[diary])[0].fit(run.loader, epochs=1)

    trainer, loader = make(callbacks=[diary, type("Another", (), {"on_epoch_end": another})()])
    with pytest.raises(CallbackError, match=r"expected an object for each run that goes on, got .*; make another"):
        trainer.fit(loader, epochs=1)
    assert [moment[0] for moment in diary.moments].count("CallbackError") == 1
    make(callbacks=[diary])[0].fit(loader, epochs=1)  # it has ended


def test_what_a_callback_raises_is_said_in_one_line():
    def fails(self, run):
        raise ValueError("one\ntwo")

    trainer, loader = make(callbacks=[type("Fails", (), {"on_epoch_end": fails, "on_exception": lambda *_: 1 / 0})()])
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"), pytest.raises(CallbackError) as caught:
        trainer.fit(loader, epochs=1)
    assert str(caught.value).endswith("ValueError: one")
