"""Early stopping and the best checkpoint, against metrics that are known."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.callbacks import BestCheckpoint, EarlyStopping
from scratchnet.errors import CallbackError, ConfigError
from scratchnet.trainer.moments import Callbacks
from tests.trainer.test_trainer import make, weights


class Scripted:
    """Sets a metric of each epoch to the next of some values."""

    def __init__(self, *values, name="val_loss"):
        self.values, self.name = values, name

    def on_epoch_end(self, run):
        run.record[self.name] = self.values[run.epoch - 1]


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ((5, 4, 3, 2, 1), {"patience": 1}, 5, 5),
        ((5, 4, 4, 3, 3, 3), {"patience": 1}, 3, 2),
        ((5, 4, 4, 3, 3, 3), {"patience": 2}, 6, 4),
        ((5, 4.9, 4.8, 4.7, 4.6), {"patience": 2, "min_delta": 0.15}, 5, 5),
        ((5, 4.9, 4.8, 4.7, 4.6), {"patience": 2, "min_delta": 0.5}, 3, 1),
        ((1, 2, 3, 2, 2), {"patience": 2, "mode": "max"}, 5, 3),
        ((1, np.nan, np.nan, 0), {"patience": 2}, 3, 1),
        ((np.nan, 3, 2, 1), {"patience": 2}, 4, 4),
        ((0.5, 0.6, 0.6), {"patience": 1, "monitor": "val_accuracy"}, 3, 2),
    ],
)
def test_early_stopping_counts_epochs_without_a_better_value(values, options, epochs, best):
    stopping = EarlyStopping(**options)
    trainer, loader = make(callbacks=[Scripted(*values, name=options.get("monitor", "val_loss")), stopping])
    history = trainer.fit(loader, epochs=len(values))
    assert (len(history), stopping.best_epoch, stopping.best) == (epochs, best, values[best - 1])
    assert (history.stopped is None) == (epochs == len(values) and epochs - best < options["patience"])


def test_early_stopping_without_any_value_that_is_a_number_ends_too():
    trainer, loader = make(callbacks=[Scripted(*[np.nan] * 9), EarlyStopping(patience=3)])
    history = trainer.fit(loader, epochs=9)
    assert (len(history), history.stopped) == (3, "val_loss has not been a number for 3 epochs")


def test_the_best_of_one_metric_is_nothing_to_another():
    loss, accuracy = EarlyStopping("val_loss"), EarlyStopping("val_accuracy")
    loss.best, accuracy.best = 0.3, 0.9
    state = Callbacks([loss, accuracy]).state_dict()
    other, again, more = EarlyStopping("train_loss"), EarlyStopping("val_accuracy"), EarlyStopping()
    Callbacks([other, again, more]).load_state_dict(state)
    assert (other.best, again.best, more.best) == (None, 0.9, 0.3)
    older = {"losses": [], "states": {"EarlyStopping": loss.state_dict()}}  # of a version that knew the class alone
    Callbacks([again]).load_state_dict(older)
    assert again.best == 0.3


def test_a_resumed_run_goes_on_counting_and_a_stopped_one_stays_stopped(tmp_path):
    values = (5, 4, 4, 4, 4, 4)
    trainer, loader = make(tmp_path, callbacks=[Scripted(*values), EarlyStopping(patience=3)])
    trainer.fit(loader, epochs=3)
    trainer, loader = make(tmp_path, callbacks=[Scripted(*values), EarlyStopping(patience=3)])
    assert len(trainer.fit(loader, epochs=6, resume="auto")) == 5
    trainer, loader = make(tmp_path, callbacks=[Scripted(*values), EarlyStopping(patience=3)])
    history = trainer.fit(loader, epochs=6, resume="auto")
    assert len(history) == 5 and history.stopped.startswith("val_loss has not been better than 4, of epoch 2")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_best_checkpoint_is_that_of_the_best_epoch(tmp_path, workers):
    best = BestCheckpoint()
    trainer, loader = make(tmp_path, shards=2, workers=workers, callbacks=[Scripted(3, 1, 2), best])
    trainer.fit(loader, epochs=3)
    alone, loader = make(shards=2)
    alone.fit(loader, epochs=2)
    assert best.file == tmp_path / "best.safetensors"
    saved = sn.load(best.file)
    assert {name: array.tobytes() for name, array in saved["model"].items()} == weights(alone)
    assert saved["position"]["epoch"] == 2


def test_a_run_goes_on_from_its_best_checkpoint(tmp_path):
    best = BestCheckpoint(path=tmp_path / "best")
    trainer, loader = make(callbacks=[Scripted(3, 1, 2), best])
    trainer.fit(loader, epochs=3)
    again, loader = make()
    again.fit(loader, epochs=3, resume=best.file)
    assert weights(again) == weights(trainer)


def test_without_validation_the_training_loss_is_watched():
    stopping = EarlyStopping(patience=50)
    trainer, loader = make(callbacks=[stopping])
    history = trainer.fit(loader, epochs=2)
    assert stopping.best == min(history["train_loss"])


def test_a_best_checkpoint_without_a_place_and_an_unknown_metric_are_refused():
    trainer, loader = make(callbacks=[BestCheckpoint()])
    with pytest.raises(CallbackError, match="expected a path, or a Trainer with a folder"):
        trainer.fit(loader, epochs=1)
    trainer, loader = make(callbacks=[EarlyStopping("val_f1")])
    with pytest.raises(CallbackError, match="expected a metric of the run, train_loss, got 'val_f1'"):
        trainer.fit(loader, epochs=1)
    with pytest.raises(ConfigError, match="EarlyStopping: mode"):
        EarlyStopping(mode="lowest")


def test_a_callback_that_has_watched_another_run_begins_anew(tmp_path):
    stopping, best = EarlyStopping(patience=2), BestCheckpoint()
    for k, values in enumerate([(1, 2, 2), (5, 4, 6)]):
        trainer, loader = make(tmp_path / str(k), callbacks=[Scripted(*values), stopping, best])
        trainer.fit(loader, epochs=3)
        assert (stopping.best, stopping.best_epoch) == (min(values), k + 1) == (best.best, best.best_epoch)
        assert sn.load(tmp_path / str(k) / "best.safetensors")["position"]["epoch"] == k + 1


def test_epochs_that_early_stopping_did_not_watch_do_not_count(tmp_path):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, loader, epochs=3)
    trainer, loader = make(tmp_path, callbacks=[Scripted(0, 0, 0, 4, 3, 2), EarlyStopping(patience=2)])
    assert len(trainer.fit(loader, loader, epochs=6, resume="auto")) == 6


def test_a_new_phase_counts_anew_and_so_does_its_resume(tmp_path):
    values = (5, 6, 6, 6, 6, 6, 6)
    for epochs, options, done in ((7, {}, 3), (4, {"new_phase": True}, 4), (7, {}, 5)):
        lr = 0.05 if done == 3 else 0.01
        trainer, loader = make(tmp_path, lr=lr, callbacks=[Scripted(*values), EarlyStopping(patience=2)])
        history = trainer.fit(loader, epochs=epochs, resume="auto", **options)
        assert len(history) == done and (history.stopped is None) == (done == 4)


def test_two_best_checkpoints_do_not_write_the_same_file(tmp_path):
    first, second = BestCheckpoint("train_loss"), BestCheckpoint("val_loss")
    trainer, loader = make(tmp_path, callbacks=[first, second])
    with pytest.raises(CallbackError, match="expected a path of its own for each BestCheckpoint"):
        trainer.fit(loader, loader, epochs=1)
    with pytest.raises(ConfigError, match="each object once"):
        make(tmp_path, callbacks=[first, first])
    trainer, loader = make(tmp_path, callbacks=[first, BestCheckpoint("val_loss", path=tmp_path / "other.safetensors")])
    trainer.fit(loader, loader, epochs=1)
