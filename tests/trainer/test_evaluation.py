"""What `evaluate` says is the mean over all rows together, and neither it nor `predict` leaves a trace in the model."""

import threading
import warnings

import numpy as np
import pytest
import scipy.special
from messages import error_line

import scratchnet as sn
from scratchnet.grad_mode import evaluating

X = np.random.default_rng(0).standard_normal((37, 4)).astype(np.float32)
Y = np.arange(37) % 3
WEIGHTS = np.array([1.0, 5.0, 0.25], np.float32)


def trainer_of(model, loss):
    return sn.Trainer(model, sn.optim.SGD(model.parameters(), lr=0.1), loss, progress=False)


def evaluated(loss, labels, batch_size):
    """The result, and -log p of the label and the class of each row, by SciPy."""
    sn.manual_seed(0)
    trainer = trainer_of(sn.nn.Linear(4, 3), loss)
    found = trainer.evaluate(sn.data.DataLoader(sn.data.TensorDataset(X, labels), batch_size))
    logits = trainer.predict(X).astype(np.float64)
    return found, -scipy.special.log_softmax(logits, axis=1), logits.argmax(axis=1)


def test_data_whose_numbers_mean_something_else_are_refused():
    def data(**meaning):
        dataset = sn.data.TensorDataset(X, Y)
        vars(dataset).update(meaning)
        return sn.data.DataLoader(dataset.map(np.negative), 37)

    trainer = trainer_of(sn.nn.Linear(4, 3), sn.nn.CrossEntropyLoss())
    columns = [sn.data.TableInputs(["a", "b"], {"a": list(texts)}) for texts in ("uv", "vu")]
    train, others = (
        data(classes=("x", "y", "z"), feature_names=("a", "b", "c", "d"), inputs=columns[0]),
        {
            "classes": data(classes=("x", "z")),
            "feature_names": data(feature_names=("b", "a", "c", "d")),
            "categories": data(inputs=columns[1]),
        },
    )
    trainer.fit(train, data(), epochs=1)
    trainer.evaluate(data(classes=["x", "y", "z"]))
    for name, other in others.items():
        with pytest.raises(sn.ConfigError, match=f"evaluate: expected equal {name}, got .*; read the second with like"):
            trainer.evaluate(other)
        with pytest.raises(sn.ConfigError, match=f"fit: val_loader: expected equal {name}"):
            trainer.fit(train, other, epochs=1)


@pytest.mark.parametrize("batch_size", [1, 8, 36, 37, 100])
@pytest.mark.parametrize("ignored", [None, -100, 1])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_labels_weigh_alike_whichever_batch_they_come_in_and_what_is_ignored_counts_for_nothing(
    batch_size, ignored, weight
):
    labels = Y.copy()
    if ignored is not None:
        labels[5:25] = ignored  # whole batches of them
    found, losses, classes = evaluated(sn.nn.CrossEntropyLoss(weight, ignored), labels, batch_size)
    rows = np.flatnonzero(labels != ignored) if ignored is not None else np.arange(37)
    shares = np.ones(3) if weight is None else weight
    expected = np.average(losses[rows, labels[rows]], weights=shares[labels[rows]])
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == (classes[rows] == labels[rows]).mean()


def test_a_mean_of_labels_that_are_all_ignored_is_nan():
    found, _, _ = evaluated(sn.nn.CrossEntropyLoss(ignore_index=-100), np.full(37, -100), 8)
    assert np.isnan(found["loss"]) and np.isnan(found["accuracy"])


def test_probabilities_as_targets_weigh_by_rows():
    targets = np.random.default_rng(1).dirichlet(np.ones(3), 37).astype(np.float32)
    found, losses, _ = evaluated(sn.nn.CrossEntropyLoss(WEIGHTS), targets, 8)
    assert found == {"loss": pytest.approx((losses * targets * WEIGHTS).sum(axis=1).mean(), rel=1e-5)}


@pytest.mark.parametrize("is_broken", [False, True])
def test_each_module_is_in_its_own_mode_afterwards(is_broken):
    model = sn.nn.Sequential(sn.nn.Linear(4, 5), sn.nn.BatchNorm1d(5), sn.nn.Dropout(), sn.nn.Linear(5, 3))
    model[1].eval()  # frozen, as in fine-tuning
    trainer = trainer_of(model, sn.nn.CrossEntropyLoss())
    modes = [module.training for module in model.modules()]
    for call in (
        lambda: trainer.predict(X[:, : 3 if is_broken else 4]),
        lambda: trainer.evaluate(sn.data.DataLoader(sn.data.TensorDataset(X, Y + 3 * is_broken), 8)),
    ):
        if is_broken:
            with pytest.raises(sn.ScratchnetError):
                call()
        else:
            call()
        assert [module.training for module in model.modules()] == modes == [True, True, False, True, True]


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_loss_that_is_no_mean_is_refused(reduction):
    with pytest.raises(sn.ConfigError, match=f"a mean over the batch, got MSELoss.reduction='{reduction}'") as error:
        trainer_of(sn.nn.Linear(4, 3), sn.nn.MSELoss(reduction))
    error_line(error)


def test_the_loss_of_an_epoch_whose_steps_were_all_skipped_is_nan():
    def overflowing(output, target):
        return (output * 1e38 * 1e38).mean()

    model = sn.nn.Linear(4, 3)
    trainer = sn.Trainer(model, sn.optim.SGD(model.parameters(), 0.1), overflowing, nonfinite="skip", progress=False)
    loader = sn.data.DataLoader(sn.data.TensorDataset(X, Y), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(trainer.fit(loader, epochs=2)["train_loss"]).all()


class InAnotherThread:
    """Calls something in another thread after an epoch, and keeps what it raised."""

    def __init__(self, call):
        self.call, self.raised = call, []

    def on_epoch_end(self, run):
        thread = threading.Thread(target=self.tried)
        thread.start()
        thread.join()

    def tried(self):
        try:
            self.call()
        except sn.ConfigError as error:
            self.raised.append(str(error))


def test_threads_that_evaluate_a_model_take_turns_as_its_modes_are_one():
    trainer = trainer_of(sn.nn.Sequential(sn.nn.Linear(4, 3), sn.nn.Dropout(0.5)), sn.nn.CrossEntropyLoss())
    expected, found = trainer.predict(X), []
    thread = threading.Thread(target=lambda: found.append(trainer.predict(X)))
    with evaluating(trainer.model):
        thread.start()
        thread.join(0.1)
        assert not found
    thread.join()
    assert np.array_equal(found[0], expected) and all(module.training for module in trainer.model.modules())


def test_a_model_that_one_thread_trains_no_other_evaluates():
    data = sn.data.DataLoader(sn.data.TensorDataset(X, Y), 37)
    trainer = trainer_of(sn.nn.Linear(4, 3), sn.nn.CrossEntropyLoss())
    calls = {"predict": lambda: trainer.predict(X), "evaluate": lambda: trainer.evaluate(data)}
    trainer.callbacks = [InAnotherThread(call) for call in calls.values()]
    trainer.fit(data, data, epochs=1)  # its own thread evaluates
    for name, callback in zip(calls, trainer.callbacks, strict=True):
        assert callback.raised == [f"{name}: expected a model at rest, got one that trains in another thread"]
        callback.call()
