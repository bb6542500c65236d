"""The place where PyTorch keeps its data sets: `scratchnet.utils.data` is `scratchnet.data` under that name."""

from . import data

__all__ = ["data"]
