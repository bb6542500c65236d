"""Callbacks: what a Trainer calls while it trains. They look at a run, keep it, or end it; no bit of it changes.

    sn.Trainer(..., callbacks=[EarlyStopping(patience=3), BestCheckpoint(), TensorBoard(), Database()])

One of your own is a class with the methods it wants, of one argument, a `Progress`:

    class Printer:
        def on_epoch_end(self, run):
            print(run.epoch, run.metric("train_loss"))

See `scratchnet.trainer.moments` for the moments, and for what a Progress shows.
"""

from ..trainer.moments import Progress
from .database import Database
from .finder import LearningRateFinder
from .monitors import BestCheckpoint, EarlyStopping
from .tensorboard import TensorBoard

__all__ = ["BestCheckpoint", "Database", "EarlyStopping", "LearningRateFinder", "Progress", "TensorBoard"]
