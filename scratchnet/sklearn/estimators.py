"""The estimators: scikit-learn's own classes, with the arithmetic replaced."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import joblib
import numpy as np
import scipy.sparse
from sklearn import neural_network
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.utils import gen_batches
from sklearn.utils.validation import validate_data

from .. import checks
from ..errors import ConfigError, DtypeError, ShapeError
from ..grad_mode import recording
from ..kernels import get_num_threads, set_num_threads
from ..native.compile import MAX_THREADS
from ..nn import Identity, Linear, Module, ReLU, Sequential, Sigmoid, Tanh
from ..optim import SGD
from ..random import Generator, using
from ..tensor import Tensor
from .learner import EpsilonHat, Learner

ACTIVATIONS = {"identity": Identity, "logistic": Sigmoid, "tanh": Tanh, "relu": ReLU}
ROWS = 4096  # that one forward pass of a prediction takes; activations of more would not stay in the cache


@contextlib.contextmanager
def _threads(n_jobs: int | None) -> Iterator[None]:
    """Inside, kernels use so many threads, but no more than there are; None: as many as before."""
    if n_jobs is None:
        yield
        return
    before = get_num_threads()
    set_num_threads(min(joblib.effective_n_jobs(n_jobs), MAX_THREADS))
    try:
        yield
    finally:
        set_num_threads(before)


class _Engine(BaseMultilayerPerceptron):
    """What takes the place of scikit-learn's arithmetic, in front of one of its estimators."""

    _no_improvement_count: int
    _made_of: Any = None  # the `module` that training began with

    def _initialize(self, y: np.ndarray, layer_units: list[int], dtype: Any) -> None:
        super()._initialize(y, layer_units, dtype)
        self.__dict__.pop("_learner", None)
        self._best_buffers: dict[str, np.ndarray] = {}
        self._made_of = self.module
        if self.module is not None:
            generator = Generator(int(self._random_state.randint(2**31 - 1)))
            with using(generator):
                module = copy.deepcopy(self.module) if isinstance(self.module, Module) else self.module()
            if not isinstance(module, Module):
                checks.refuse("module", "a scratchnet.nn.Module, or a function that makes one", module)
            self._learner = Learner(module.to(dtype=dtype), self.out_activation_, self.n_outputs_, generator)
            self.coefs_, self.intercepts_ = self._learner.read()
            self._best_coefs, self._best_intercepts = self._learner.read()
            self._best_buffers = self._learner.buffers()

    def _ready(self) -> Learner:
        """The learner, with the parameters that `coefs_` and `intercepts_` hold, whoever set them."""
        if not hasattr(self, "_learner"):
            self._learner = Learner(self._perceptron(), self.out_activation_, self.n_outputs_, Generator())
        if self._made_of is None:  # another activation counts from here on, as in scikit-learn
            layers: Any = self._learner.module
            for i in range(1, len(layers), 2):
                if type(layers[i]) is not ACTIVATIONS[self.activation]:
                    layers[i] = ACTIVATIONS[self.activation]()
        self._learner.write(self.coefs_, self.intercepts_)
        return self._learner

    def _perceptron(self) -> Module:
        layers: list[Module] = []
        with using(Generator()):  # what layers draw here is overwritten, and nobody else's random numbers go on
            for weight in self.coefs_:
                layers += [Linear(*weight.shape), ACTIVATIONS[self.activation]()]
        return Sequential(*layers[:-1]).to(dtype=self.coefs_[0].dtype)

    @property
    def module_(self) -> Module:
        """The fitted module, whose outputs are logits, or before the exponential of a "poisson" loss."""
        return self._ready().module

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        as_they_come = self.activation == "relu" and list(np.ravel(self.hidden_layer_sizes)) == [100]
        if self.module is not None and not as_they_come:
            raise ConfigError(
                "module: expected hidden_layer_sizes and activation to be left out, as the module has its own, got "
                f"{self.hidden_layer_sizes!r} and {self.activation!r}"
            )
        if hasattr(self, "coefs_") and (incremental or self.warm_start):
            self._check_that_it_can_go_on()
        if hasattr(self, "_learner") and self._learner.is_read_only:
            self._learner = copy.deepcopy(self._learner)
        with _threads(self.n_jobs), recording(True):
            return super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)

    def _check_that_it_can_go_on(self) -> None:
        """Raises ConfigError for a parameter that describes another network than the one that was trained so far."""
        sizes = [weight.shape[1] for weight in self.coefs_[:-1]]
        changed = {
            "module": self.module is not self._made_of,
            "hidden_layer_sizes": self._made_of is None and list(np.ravel(self.hidden_layer_sizes)) != sizes,
            "loss": not is_classifier(self) and (self.loss == "poisson") != (self.out_activation_ == "exp"),
        }
        for name in [name for name, is_so in changed.items() if is_so]:
            remedy = "take a new estimator, or fit with warm_start=False"
            checks.refuse(name, "the one that training began with", getattr(self, name), ConfigError, remedy)

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> np.ndarray:
        """Probabilities or predictions: (rows, n_outputs_)."""
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        X, learner = _by_rows(X), self._ready()
        learner.module.eval()
        with _threads(self.n_jobs):
            return np.concatenate([learner.predict(X[i : i + ROWS]) for i in range(0, X.shape[0], ROWS)])

    # --- gradients of all rows: lbfgs ---

    def _fit_lbfgs(self, X: Any, y: np.ndarray, *others: Any) -> None:
        learner = self._ready()
        *scratch, _ = others
        super()._fit_lbfgs(X, y, *scratch, [0] * self.n_layers_)  # sizes of layers, which `_unpack` has no need of
        learner.write(self.coefs_, self.intercepts_)
        self.coefs_, self.intercepts_ = learner.read()  # SciPy's are float64

    def _unpack(self, packed: np.ndarray) -> None:
        shapes = [array.shape for array in (*self.coefs_, *self.intercepts_)]
        ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
        arrays = [part.reshape(shape) for part, shape in zip(np.split(packed, ends[:-1]), shapes, strict=True)]
        self.coefs_, self.intercepts_ = arrays[: len(self.coefs_)], arrays[len(self.coefs_) :]

    def _backprop(self, X: Any, y: np.ndarray, sample_weight: Any, *scratch: Any) -> tuple[float, list, list]:
        """The loss with its penalty, and the gradients of `coefs_` and `intercepts_`."""
        learner = self._ready()
        learner.module.train()
        total = _total(X.shape[0], sample_weight)
        with using(learner.generator):
            loss, squares, *found = learner.gradient(*learner.batch(X, self._target(y), sample_weight))
        gradients = [gradient.numpy() for gradient in found]
        weights = len(self.coefs_)
        coefs = [g + self.alpha / total * w for g, w in zip(gradients[:weights], self.coefs_, strict=True)]
        return self._value(loss, squares, total), coefs, gradients[weights:]

    def _target(self, y: np.ndarray) -> np.ndarray:
        """Targets as the loss takes them: class numbers, or numbers for each output. Raises DtypeError, ShapeError or
        ConfigError for targets that it would take for something else.
        """
        if y.dtype.kind not in "biufO":
            raise DtypeError(f"y: expected numbers, got {y.dtype}; convert them first")
        if y.shape[1] != self._learner.width:
            raise ShapeError(f"y: expected {self._learner.width} columns, as training began with, got {y.shape[1]}")
        if self.loss == "poisson" and (y < 0).any():
            raise ConfigError(f"y: expected no negative numbers with loss='poisson', got {y.min()}")
        return y.argmax(axis=1) if self.out_activation_ == "softmax" else y

    def _value(self, loss: Tensor, squares: Tensor, total: float) -> float:
        """The loss as scikit-learn reports it."""
        return loss.item() + 0.5 * self.alpha * squares.item() / total

    # --- batches: sgd and adam ---

    def _fit_stochastic(
        self, X: Any, y: Any, sample_weight: Any, activations: Any, deltas: Any, coef_grads: Any, intercept_grads: Any,
        layer_units: Any, incremental: bool,
    ) -> None:  # fmt: skip
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        learner = self._ready()
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer, optimizer = self._rules(learner)
            learner.train_with(optimizer)
        held_out: tuple[Any, ...] = None, None, None
        if self.early_stopping:
            (X, y, sample_weight), held_out = self._split(X, y, sample_weight)
        X, target = _by_rows(X), self._target(y)
        order = np.arange(X.shape[0])
        try:
            self.n_iter_ = 0
            with learner.training_on(X, target, sample_weight, once=incremental) as steps:
                while self.n_iter_ < self.max_iter:
                    if self.shuffle:
                        order = order[self._random_state.permutation(len(order))]  # as their `shuffle` does, slowly
                    with using(learner.generator):
                        self.loss_ = self._epoch(learner, steps, sample_weight, order)
                    if self._has_ended(learner, X.shape[0], held_out) or incremental:
                        break
                    if self.n_iter_ == self.max_iter:
                        warnings.warn(
                            f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                            "hasn't converged yet.",
                            ConvergenceWarning,
                            stacklevel=5,
                        )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=5)
        self.coefs_, self.intercepts_ = learner.read()
        if self.early_stopping:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts
            learner.module.load_state_dict(self._best_buffers, strict=False)

    def _rules(self, learner: Learner) -> tuple[Any, Any]:
        """scikit-learn's optimizer, which only has the schedule of the learning rate, and the engine's."""
        groups = [{"params": params} for params in (learner.weights, learner.biases) if params]
        rate = float(self.learning_rate_init)
        if self.solver == "adam":
            rules = AdamOptimizer([], rate, self.beta_1, self.beta_2, self.epsilon)
            return rules, EpsilonHat(groups, rate, (self.beta_1, self.beta_2), self.epsilon)
        momentum, nesterov = float(self.momentum), bool(self.nesterovs_momentum and self.momentum > 0)
        rules = SGDOptimizer([], rate, self.learning_rate, momentum, nesterov, self.power_t)
        return rules, SGD(groups, 1.0, momentum, nesterov)  # the gradients that it gets contain the rate

    def _split(self, X: Any, y: np.ndarray, sample_weight: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """(X, y, weights) to train on, and to score on, where y has labels."""
        has_strata = is_classifier(self) and self.n_outputs_ == 1  # as scikit-learn: so not with three classes or more
        given = [X, y] if sample_weight is None else [X, y, sample_weight]
        parts = train_test_split(
            *given,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if has_strata else None,
        )
        train, held_out = parts[::2], parts[1::2]
        if held_out[0].shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if is_classifier(self):
            held_out[1] = self._label_binarizer.inverse_transform(held_out[1])
        return (*train, None)[:3], (*held_out, None)[:3]

    def _epoch(self, learner: Learner, steps: Any, sample_weight: Any, order: np.ndarray) -> float:
        """One pass over the rows in an order; their mean loss."""
        n, accumulated = len(order), np.float64(0.0)
        if self.n_iter_ == 0 or self.early_stopping:  # after which rows were predicted
            learner.module.train()
        is_sgd = isinstance(self._optimizer, SGDOptimizer)  # partial_fit goes on with it, whatever `solver` says by now
        rate = np.asarray(self._optimizer.learning_rate if is_sgd else 1.0, learner.dtype)
        chosen = [order[batch] for batch in gen_batches(n, self._rows_of_batch(n))]
        totals = [_total(len(rows), None if sample_weight is None else sample_weight[rows]) for rows in chosen]

        def before(i: int) -> None:
            learner.set_decay(float(rate) * self.alpha / totals[i])

        for rows, total, (loss, squares) in zip(chosen, totals, steps(rate, chosen, before), strict=True):
            accumulated += self._value(loss, squares, total) * len(rows)
        return accumulated / n

    def _rows_of_batch(self, n: int) -> int:
        if self.batch_size == "auto":
            return min(200, n)
        if self.batch_size > n and self.n_iter_ == 0:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=7
            )
        return min(int(self.batch_size), n)

    def _has_ended(self, learner: Learner, n: int, held_out: tuple[Any, ...]) -> bool:
        """What scikit-learn does after an epoch of n rows; does training stop?"""
        self.n_iter_ += 1
        self.t_ += n
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
        if self.early_stopping:
            self.coefs_, self.intercepts_ = learner.read()
        best = self.best_validation_score_ if self.early_stopping else None
        self._update_no_improvement_count(self.early_stopping, *held_out)
        if self.early_stopping and self.best_validation_score_ != best:
            self._best_buffers = learner.buffers()
        self._optimizer.iteration_ends(self.t_)
        if self._no_improvement_count <= self.n_iter_no_change:
            return False
        what = "Validation score" if self.early_stopping else "Training loss"
        said = f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        ends = self._optimizer.trigger_stopping(said, self.verbose)
        if not ends:
            self._no_improvement_count = 0
        return ends


def _by_rows(X: Any) -> Any:
    """Rows that can be chosen by number: sparse ones in the format for that."""
    return X.tocsr() if scipy.sparse.issparse(X) else X


def _total(rows: int, sample_weight: np.ndarray | None) -> float:
    """What a batch weighs."""
    total = float(rows if sample_weight is None else sample_weight.sum())
    if not total > 0:
        raise ConfigError(f"sample_weight: expected a positive sum in each batch, got {total:g}; shuffle or drop rows")
    return total


def _estimator(parent: type) -> Callable[..., None]:
    """scikit-learn's constructor, and our parameters after its own; `get_params`, `clone` and `help` read them here."""

    @functools.wraps(parent.__init__)  # type: ignore[misc]
    def __init__(self: Any, *args: Any, module: Any = None, n_jobs: int | None = None, **params: Any) -> None:
        parent.__init__(self, *args, **params)  # type: ignore[misc]
        self.module, self.n_jobs = module, n_jobs

    theirs = inspect.signature(parent.__init__)  # type: ignore[misc]
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in OURS]
    __init__.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *ours])  # type: ignore[attr-defined]
    return __init__


OURS = {"module": [Module, callable, None], "n_jobs": [Integral, None]}


class MLPClassifier(_Engine, neural_network.MLPClassifier):
    """scikit-learn's MLPClassifier, computed by this engine; its parameters and attributes, and these:

    module: any scratchnet module, which is copied, or a function that makes one, instead of the perceptron that
        hidden_layer_sizes and activation describe. It takes rows, (n, features), and gives logits: (n, classes), but
        (n, 1) for two classes, and (n, labels) for labels that go together. alpha penalises its parameters of two axes
        or more, `coefs_`; the others are `intercepts_`. `module_` is the fitted one.
    n_jobs: threads; None: as many as `sn.get_num_threads()` says, -1: all. Their number changes no bit.

    float32 rows are computed in float32, all others in float64. Sparse rows become dense batch by batch; lbfgs, which
    takes all rows at once, makes all dense.
    """

    _parameter_constraints = neural_network.MLPClassifier._parameter_constraints | OURS
    __init__ = _estimator(neural_network.MLPClassifier)


class MLPRegressor(_Engine, neural_network.MLPRegressor):
    """scikit-learn's MLPRegressor, computed by this engine; `module`, `n_jobs` and types as of MLPClassifier.

    A module gives predictions, (n, targets), or their logarithms if loss="poisson".
    """

    _parameter_constraints = neural_network.MLPRegressor._parameter_constraints | OURS
    __init__ = _estimator(neural_network.MLPRegressor)
