"""scratchnet: a neural-network engine from scratch, whose answer never depends on the hardware that computes it."""

from typing import TYPE_CHECKING

from . import callbacks, cuda, data, errors, functions, metrics, nn, optim, parallel, testing
from .errors import *
from .formats.checkpoint import load, save
from .functions import *
from .functions import grad, value_and_grad
from .grad_mode import no_grad
from .jit import jit
from .kernels import get_num_threads, set_num_threads
from .predictor import Predictor, load_model, save_model
from .random import manual_seed
from .tensor import Tensor, default_device, tensor
from .trainer import History, Trainer
from .version import __version__

if TYPE_CHECKING:  # the functions that are public in the op table

    def __getattr__(name): ...


__all__ = [
    "History",
    "Predictor",
    "Tensor",
    "Trainer",
    "callbacks",
    "cuda",
    "data",
    "default_device",
    "get_num_threads",
    "grad",
    "jit",
    "load",
    "load_model",
    "manual_seed",
    "metrics",
    "nn",
    "no_grad",
    "optim",
    "parallel",
    "save",
    "save_model",
    "set_num_threads",
    "tensor",
    "testing",
    "value_and_grad",
    *errors.__all__,
    *functions.__all__,
]
