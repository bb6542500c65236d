"""The loop around a model: prepare, split, compute, merge, report."""

from .trainer import History, Trainer

__all__ = ["History", "Trainer"]
