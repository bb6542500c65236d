"""scratchnet: a neural-network engine from scratch, whose answer never depends on the hardware that computes it."""

from math import e, inf, nan, pi
from typing import TYPE_CHECKING

from . import (
    caffe,
    callbacks,
    constructors,
    cuda,
    data,
    dtypes,
    errors,
    functions,
    metrics,
    networks,
    nn,
    onnx,
    optim,
    parallel,
    pytorch,
    report,
    testing,
    utils,
)
from .constructors import *
from .custom import op
from .draw import draw
from .dtypes import *
from .errors import *
from .formats.checkpoint import load, save
from .functions import *
from .functions import grad, value_and_grad
from .grad_mode import no_grad
from .grad_mode import no_grad as inference_mode
from .jit import jit
from .kernels import get_num_threads, set_num_threads
from .precisions import precision
from .predictor import Predictor, load_model, save_model
from .random import Generator, manual_seed
from .tensor import Tensor, default_device, tensor
from .trainer import History, Trainer
from .version import __version__

globals().update(
    dtypes.CONVERSIONS
)  # sn.float, sn.long, sn.bool, ...: not in __all__, as Python has some of these names

if TYPE_CHECKING:  # the functions that are public in the op table

    def __getattr__(name): ...


__all__ = [
    "Generator",
    "History",
    "Predictor",
    "Tensor",
    "Trainer",
    "caffe",
    "callbacks",
    "cuda",
    "data",
    "default_device",
    "draw",
    "get_num_threads",
    "grad",
    "jit",
    "load",
    "load_model",
    "manual_seed",
    "metrics",
    "networks",
    "nn",
    "no_grad",
    "onnx",
    "op",
    "optim",
    "parallel",
    "precision",
    "pytorch",
    "report",
    "save",
    "save_model",
    "set_num_threads",
    "tensor",
    "testing",
    "utils",
    "value_and_grad",
    *constructors.__all__,
    *dtypes.__all__,
    *errors.__all__,
    *functions.__all__,
]
