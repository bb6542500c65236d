"""The learning rate finder, on a loss whose best rate is known; the run itself is as it was."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.callbacks import LearningRateFinder
from scratchnet.errors import CallbackError, ConfigError
from tests.trainer.test_trainer import make, weights


def quadratic(curvature):
    """A run whose loss is curvature / 2 * |w|^2: gradient descent is stable below lr = 2 / curvature."""
    layer = sn.nn.Linear(4, 1, bias=False)
    x = np.eye(4, dtype=np.float32) * np.sqrt(2 * curvature).astype(np.float32)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, np.zeros((4, 1), np.float32)), batch_size=4)
    return sn.Trainer(layer, sn.optim.SGD(layer.parameters(), 0.1), sn.nn.MSELoss(), progress=False), loader


@pytest.mark.parametrize("curvature", [1.0, 100.0])
def test_the_suggestion_lies_below_where_steps_diverge(curvature):
    finder = LearningRateFinder(1e-4 / curvature, 100 / curvature, steps=80)
    trainer, loader = quadratic(curvature)
    trainer.callbacks = [finder]
    trainer.fit(loader, epochs=1)
    assert 1e-3 < finder.suggestion * curvature < 5
    assert len(finder.rates) == len(finder.losses) < 80  # it ends where the loss grows
    np.testing.assert_allclose(np.diff(np.log(finder.rates)), np.log(1e6) / 79)


def test_batches_of_other_difficulty_do_not_count_as_a_fall():
    """As the quadratic of curvature 1, beside rows of zeros whose loss nothing changes, from batch to batch less."""
    layer = sn.nn.Linear(4, 1, bias=False)
    x = np.tile(np.concatenate([2 * np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)]), (10, 1))
    y = np.repeat(np.linspace(2.5, 2.0, 10, dtype=np.float32), 8)[:, None] * (x.sum(axis=1, keepdims=True) == 0)
    trainer = sn.Trainer(layer, sn.optim.SGD(layer.parameters(), 0.1), sn.nn.MSELoss(), progress=False)
    trainer.callbacks = [finder := LearningRateFinder(1e-6, 100, steps=100)]
    trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x, y), 8), epochs=1)
    assert 1e-2 < finder.suggestion < 5


def test_the_test_leaves_the_run_as_it_was():
    plain, loader = make()
    plain.fit(loader, epochs=1)
    trainer, loader = make(callbacks=[LearningRateFinder(steps=20)])
    trainer.fit(loader, epochs=1)
    assert weights(trainer) == weights(plain)


def test_where_the_loss_only_grows_nothing_is_suggested(tmp_path, capsys):
    trainer, loader = quadratic(1.0)
    for parameter in trainer.model.parameters():
        parameter._data[...] = 1e-8  # next to the minimum, from which large steps lead away
    trainer.callbacks = [finder := LearningRateFinder(2.05, 2.3, steps=5)]
    trainer.fit(loader, epochs=1)
    assert finder.suggestion is None and "the loss falls nowhere" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    finder.plot(tmp_path / "rates.png")


def test_a_resumed_run_is_not_tested_again(tmp_path):
    trainer, loader = make(tmp_path)
    trainer.fit(loader, epochs=1)
    finder = LearningRateFinder()
    trainer, loader = make(tmp_path, callbacks=[finder])
    trainer.fit(loader, epochs=2, resume="auto")
    assert finder.suggestion is None


def test_the_finder_draws_its_curve(tmp_path):
    pytest.importorskip("matplotlib")
    finder = LearningRateFinder(steps=10)
    with pytest.raises(ConfigError, match="expected a finder that fit has called"):
        finder.plot(tmp_path / "rates.png")
    trainer, loader = make(callbacks=[finder])
    trainer.fit(loader, epochs=1)
    finder.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_is_not_finite_from_the_start_is_named():
    trainer, loader = quadratic(1e30)
    trainer.callbacks = [LearningRateFinder(1e-3, 1.0)]
    with pytest.raises(CallbackError, match=r"LearningRateFinder.on_fit_start.*expected a loss that is finite"):
        trainer.fit(loader, epochs=1)
    with pytest.raises(ConfigError, match="expected smallest < largest"):
        LearningRateFinder(1.0, 0.1)
