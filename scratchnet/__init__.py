"""scratchnet: a neural-network engine from scratch, whose answer never depends on the hardware that computes it."""

from . import metrics, nn, optim
from .autograd import grad, value_and_grad
from .errors import *  # noqa: F403
from .functions import *  # noqa: F403
from .random import manual_seed
from .tensor import Tensor, default_device, no_grad, tensor

__version__ = "0.1.0"
