"""A model that learns: the losses of scikit-learn's perceptrons, and the steps that the engine records.

The estimators hand over rows and targets of a batch; what comes back is the loss, and new parameters or gradients.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..errors import ConfigError, ShapeError
from ..functions import maximum
from ..grad_mode import no_grad
from ..jit.step import Step
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
        self._rows: tuple[Tensor | None, ...] | None = None

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

    def _output(self, x: Tensor) -> Tensor:
        output = self.module(x)
        if output.shape != (len(x), self.width):
            raise ShapeError(f"module: expected outputs of shape {(len(x), self.width)}, got {output.shape}")
        return output

    def predict(self, x: Any) -> np.ndarray:
        """Probabilities or predictions for rows, without a graph."""
        with no_grad():
            return OUTPUTS[self.kind].prediction(self._output(self._tensor(self.rows(x)))).numpy()

    def _losses(self, x: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
        """The loss to differentiate, the loss to report, and the sum of the squares of all weights."""
        outputs = OUTPUTS[self.kind]
        losses = outputs.losses(self._output(x), target)
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
        batch: rows, targets, weights; or numbers of the rows that `training_on` was given.
        """
        self.optimizer.zero_grad()
        given: list[Any] = [None if x is None else self._tensor(x) for x in batch]
        if self._rows is not None:
            given = [None if x is None else ops.take_rows(x, given[0]) for x in self._rows]
        loss, *reported = self._losses(*given)
        (loss * self._tensor(rate)).backward()
        self.optimizer.step()
        return tuple(reported)

    def _gradient(self, *batch: Any) -> tuple[Tensor, ...]:
        """The loss to report, the sum of squares, and the gradients of weights and biases."""
        self.module.zero_grad()
        given: list[Any] = [None if x is None else self._tensor(x) for x in batch]
        loss, *reported = self._losses(*given)
        loss.backward()
        return *reported, *(p * 0.0 if p.grad is None else p.grad for p in (*self.weights, *self.biases))

    def batch(self, x: Any, target: np.ndarray, sample_weight: np.ndarray | None) -> tuple[Any, ...]:
        """A batch as `gradient` takes it."""
        target = target if target.ndim == 1 else target.astype(self.dtype, copy=False)  # class numbers stay
        return self.rows(x), target, None if sample_weight is None else sample_weight.astype(self.dtype, copy=False)

    @contextlib.contextmanager
    def training_on(self, x: Any, target: np.ndarray, sample_weight: np.ndarray | None, once: bool) -> Iterator[Any]:
        """Gives `steps(rate, chosen, before)`, whose items are (loss to report, sum of squares before it) of steps.

        chosen: for each step the numbers of its rows. before(i): called before step i begins. Rows in memory as the
        module takes them are gathered by the steps themselves, many of which are one compiled call; all others become
        such rows batch by batch, and so do all if `once`: if nobody trains on them again.
        """
        fits = isinstance(x, np.ndarray) and x.dtype == self.dtype and x.flags.c_contiguous and self.device == "cpu"
        if once or not fits:

            def batch(rows: np.ndarray) -> tuple[Any, ...]:
                return self.batch(x[rows], target[rows], None if sample_weight is None else sample_weight[rows])

            def steps(rate: np.ndarray, chosen: list[np.ndarray], before: Callable[[int], Any]) -> Iterator[Any]:
                for i, rows in enumerate(chosen):
                    before(i)
                    yield self.step(rate, *batch(rows))

            yield steps
            return
        self._rows = tuple([None if a is None else self._tensor(a) for a in self.batch(x, target, sample_weight)])
        step = Step(self._step, relies_on=self.step.relies_on, tolerant=True)
        try:
            yield lambda rate, chosen, before: step.series([(rate, rows) for rows in chosen], before)
        finally:
            self._rows = None

    def rows(self, x: Any) -> np.ndarray:
        """Rows as the module takes them; sparse ones become dense here."""
        return np.ascontiguousarray(x if isinstance(x, np.ndarray) else x.toarray(), self.dtype)

    def set_decay(self, decay: float) -> None:
        """What the next step adds to the gradient of the weights: so many times the weights."""
        if not self.weights:
            return
        group = self.optimizer.param_groups[0]
        if 0.0 <= decay < math.inf:  # all that `take` checks, which takes 12 us
            dict.__setitem__(group, "weight_decay", decay)
        else:
            group.take({"weight_decay": decay})


def _mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()
