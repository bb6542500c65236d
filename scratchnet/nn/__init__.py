"""Layers, losses and what belongs to them, under PyTorch's names."""

from . import functional, init, utils
from .layers import (
    ACTIVATIONS,
    GELU,
    MLP,
    BatchNorm1d,
    Dropout,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
)
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss
from .module import Buffer, Module, Parameter

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "MLP",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "Buffer",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "LayerNorm",
    "Linear",
    "MSELoss",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "functional",
    "init",
    "utils",
]
