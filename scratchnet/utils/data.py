"""scratchnet.data, under the name that PyTorch's notebooks import."""

from ..data import *  # noqa: F403 - whatever it has
