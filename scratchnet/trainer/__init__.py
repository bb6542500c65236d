"""The loop around a model: prepare, split, compute, merge, report."""

from .history import History
from .trainer import Trainer

__all__ = ["History", "Trainer"]
