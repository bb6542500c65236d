"""A model that learns: the losses of scikit-learn's perceptrons, and the steps that the engine records.

The estimators hand over rows and targets of a batch; what comes back is the loss, and new parameters or gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, ShapeError
from ..functions import maximum
from ..grad_mode import no_grad
from ..jit.step import Step
from ..kernels import device as kernels
from ..native.aligned import aligned
from ..nn import Module
from ..nn import functional as F
from ..optim import Adam
from ..random import Generator
from ..tensor import Tensor

# --- by out_activation_: what outputs z become, and their losses ------------------------------------------------------


def _softmax_loss(z: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(z, labels, reduction="none").unsqueeze(1)


def _logistic_loss(z: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, target, reduction="none")


def _squared_loss(z: Tensor, target: Tensor) -> Tensor:
    difference = z - target
    return difference * difference * 0.5


def _poisson_loss(z: Tensor, target: Tensor) -> Tensor:
    """Half the deviance, y log(y / exp(z)) - y + exp(z)."""
    tiny = float(np.finfo(target.dtype).tiny)  # 0 log 0 = 0
    return target * (maximum(target, tiny).log() - z - 1.0) + z.exp()


class Outputs(NamedTuple):
    """What the outputs z of a module mean.

    prediction: of z. losses: of z and targets, (rows, outputs), or (rows, 1) for class numbers.
    is_clipped: does scikit-learn report losses of probabilities clipped to [eps, 1 - eps]? is_averaged: does it report
    the mean over outputs? Gradients are those of the sum over outputs, of probabilities as they are.
    """

    prediction: Callable[[Tensor], Tensor]
    losses: Callable[[Tensor, Tensor], Tensor]
    is_clipped: bool = False
    is_averaged: bool = False


OUTPUTS = {
    "softmax": Outputs(lambda z: F.softmax(z, axis=1), _softmax_loss, is_clipped=True),
    "logistic": Outputs(lambda z: z.sigmoid(), _logistic_loss, is_clipped=True),
    "identity": Outputs(lambda z: z, _squared_loss, is_averaged=True),
    "exp": Outputs(lambda z: z.exp(), _poisson_loss),
}


# --- a model that learns ----------------------------------------------------------------------------------------------


class EpsilonHat(Adam):
    """Adam as at the end of section 2 of Kingma and Ba 2015, and in scikit-learn: p -= lr_t * m / (sqrt(v) + eps)."""

    def numbers(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        lr, beta_1, beta_2, epsilon, *others = super().numbers(group, step)
        return lr, beta_1, beta_2, epsilon / math.sqrt(1.0 - beta_2**step), *others


class Learner:
    """A module, what its outputs mean, and once it trains the optimizer.

    kind: a name in OUTPUTS. width: the number of outputs. generator: of the random numbers that training draws.
    weights, biases: the parameters that train, of two axes or more and of fewer; the penalty is of the weights alone.
    step, gradient: `_step` and `_gradient`, recorded. They rely on what a user may change: the module, the optimizer.
    """

    step: Step

    def __init__(self, module: Module, kind: str, width: int, generator: Generator):
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError("module: expected at least one parameter that trains, got none")
        self.module, self.kind, self.width, self.generator = module, kind, width, generator
        self.weights = [p for p in parameters if p.ndim > 1]
        self.biases = [p for p in parameters if p.ndim < 2]
        self.dtype, self.device = parameters[0].dtype, parameters[0].device
        self.gradient = Step(self._gradient, relies_on=(module,), tolerant=True)
        self._taken: dict[tuple[int, ...], np.ndarray] = {}  # memory for the rows of a batch, by its shape

    def train_with(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.step = Step(self._step, relies_on=(self.module, optimizer), tolerant=True)

    @property
    def is_read_only(self) -> bool:
        """Was it loaded with joblib's mmap_mode="r"?"""
        return not all(p.detach().numpy().flags.writeable for p in (*self.weights, *self.biases))

    def read(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Copies of the weights and the biases."""
        return [p.detach().numpy().copy() for p in self.weights], [p.detach().numpy().copy() for p in self.biases]

    def buffers(self) -> dict[str, np.ndarray]:
        """Copies of the module's buffers, such as running means."""
        return {name: buffer.numpy().copy() for name, buffer in self.module.named_buffers()}

    def write(self, weights: list[np.ndarray], biases: list[np.ndarray]) -> None:
        """Takes parameters where they are others than its own, so that threads may predict at the same time."""
        with no_grad():
            for parameter, array in zip((*self.weights, *self.biases), (*weights, *biases), strict=True):
                if not np.array_equal(parameter.detach().numpy(), array):
                    parameter.copy_(np.asarray(array, self.dtype))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return Tensor(array, device=self.device)

    def _output(self, x: np.ndarray) -> Tensor:
        output = self.module(self._tensor(x))
        if output.shape != (len(x), self.width):
            raise ShapeError(f"module: expected outputs of shape {(len(x), self.width)}, got {output.shape}")
        return output

    def predict(self, x: Any) -> np.ndarray:
        """Probabilities or predictions for rows, without a graph."""
        with no_grad():
            return OUTPUTS[self.kind].prediction(self._output(self.rows(x))).numpy()

    def _losses(self, x: np.ndarray, target: np.ndarray, sample_weight: np.ndarray | None) -> tuple[Tensor, ...]:
        """The loss to differentiate, the loss to report, and the sum of the squares of all weights."""
        outputs = OUTPUTS[self.kind]
        losses = outputs.losses(self._output(x), self._tensor(target))
        weight = None if sample_weight is None else self._tensor(sample_weight)
        loss = _mean(losses.sum(axis=1), weight)
        with no_grad():
            reported = loss.detach()
            if outputs.is_clipped:
                eps = np.finfo(self.dtype).eps
                reported = _mean(losses.detach().clip(-math.log1p(-eps), -math.log(eps)).sum(axis=1), weight)
            if outputs.is_averaged:
                reported = reported / self.width
            squares = sum(((w * w).sum() for w in self.weights), start=self._tensor(np.zeros((), self.dtype)))
        return loss, reported, squares

    def _step(self, rate: np.ndarray, *batch: Any) -> tuple[Tensor, ...]:
        """Takes one step; the loss to report and the sum of squares before it.

        rate: multiplies the gradient. scikit-learn's velocities contain the learning rates of their steps.
        """
        self.optimizer.zero_grad()
        loss, *reported = self._losses(*batch)
        (loss * self._tensor(rate)).backward()
        self.optimizer.step()
        return tuple(reported)

    def _gradient(self, *batch: Any) -> tuple[Tensor, ...]:
        """The loss to report, the sum of squares, and the gradients of weights and biases."""
        self.module.zero_grad()
        loss, *reported = self._losses(*batch)
        loss.backward()
        return *reported, *(p * 0.0 if p.grad is None else p.grad for p in (*self.weights, *self.biases))

    def batch(self, x: Any, target: np.ndarray, sample_weight: np.ndarray | None) -> tuple[Any, ...]:
        """A batch as `step` and `gradient` take it."""
        target = target if target.ndim == 1 else target.astype(self.dtype, copy=False)  # class numbers stay
        return self.rows(x), target, None if sample_weight is None else sample_weight.astype(self.dtype, copy=False)

    def end_of_training(self) -> None:
        """Nothing that only steps need stays in a fitted estimator."""
        self._taken.clear()

    def take(self, x: Any, chosen: Any) -> Any:
        """Rows of x by number, for one step: on all threads, into memory that the next call fills anew."""
        fits = isinstance(x, np.ndarray) and x.dtype == self.dtype and x.ndim == 2 and self.device == "cpu"
        if isinstance(chosen, slice) or not fits or not x.flags.c_contiguous:
            return x[chosen]
        shape = len(chosen), x.shape[1]
        if shape not in self._taken:
            self._taken[shape] = aligned(shape, x.dtype)
        kernels(self.device).take_rows(x, chosen, self._taken[shape])
        return self._taken[shape]

    def rows(self, x: Any) -> np.ndarray:
        """Rows as the module takes them; sparse ones become dense here."""
        return np.ascontiguousarray(x if isinstance(x, np.ndarray) else x.toarray(), self.dtype)

    def set_decay(self, decay: float) -> None:
        """What the next step adds to the gradient of the weights: so many times the weights."""
        if self.weights and self.optimizer.param_groups[0].get("weight_decay") != decay:  # checks take 12 us
            self.optimizer.param_groups[0].take({"weight_decay": decay})


def _mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()
