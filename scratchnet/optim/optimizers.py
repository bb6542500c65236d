"""The update rules: each optimizer names its kernel, the arrays that it keeps and the numbers of a step.

All take `maximize=True`, to climb instead: with -lr and -weight_decay a rule that descends climbs, as each is linear in
its learning rate and, but for squares, in the gradient. (What SGD and Adam remember of gradients has the sign of the
gradient then, where PyTorch keeps it negated.)
"""

from collections.abc import Mapping
from typing import Any

from .. import checks
from ..errors import ConfigError
from .optimizer import Optimizer, Parameters


class SGD(Optimizer):
    """g += weight_decay * p;  v = momentum * v + g;  p -= lr * (g + momentum * v if nesterov else v).

    As torch.optim.SGD (Sutskever et al. 2013, with the learning rate outside).
    """

    kernel, n_numbers, state_names = "sgd", 4, ("velocity",)

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ):
        super().__init__(params, maximize, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        if checks.flag("SGD: nesterov", group["nesterov"]) and not group["momentum"] > 0:
            raise ConfigError(f"SGD: expected momentum > 0 with nesterov, got {group['momentum']}")

    def numbers(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        return float(group["lr"]), float(group["momentum"]), bool(group["nesterov"]), float(group["weight_decay"])


class Adam(Optimizer):
    """m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g**2;  p -= lr/(1-b1**t) * m / (sqrt(v)/sqrt(1-b2**t) + eps).

    Kingma and Ba 2015, as torch.optim.Adam. g includes weight_decay * p; t counts the parameter's updates from 1.
    amsgrad: the largest v so far takes the place of v in the step (Reddi, Kale and Kumar 2018).
    """

    n_numbers = 7
    decoupled = False
    _VARIANTS = {False: ("adam", ("m", "v")), True: ("amsgrad", ("m", "v", "v_max"))}  # noqa: RUF012 - never changed

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ):
        self.amsgrad = checks.flag(f"{self._name}: amsgrad", amsgrad)
        self.kernel, self.state_names = self._VARIANTS[self.amsgrad]
        super().__init__(params, maximize, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def numbers(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        options = float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"])
        return *options, self.decoupled, step


class AdamW(Adam):
    """Adam whose weight decay does not pass through the moments: p -= lr * weight_decay * p comes first.

    Loshchilov and Hutter 2019, as torch.optim.AdamW.
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


class RMSprop(Optimizer):
    """g += weight_decay * p;  v = alpha*v + (1-alpha)*g**2;  u = momentum*u + g / (sqrt(v) + eps);  p -= lr * u.

    Tieleman and Hinton 2012 (lecture 6.5), as torch.optim.RMSprop.
    """

    kernel, n_numbers, state_names = "rmsprop", 5, ("v", "velocity")

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        *,
        maximize: bool = False,
    ):
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, maximize, **options)

    def numbers(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        options = float(group["lr"]), float(group["alpha"]), float(group["eps"])
        return *options, float(group["momentum"]), float(group["weight_decay"])


class Adagrad(Optimizer):
    """g += weight_decay * p;  s += g**2;  p -= lr / (1 + (t-1) * lr_decay) * g / (sqrt(s) + eps).

    Duchi, Hazan and Singer 2011, as torch.optim.Adagrad; t counts the parameter's updates from 1, and s starts at
    initial_accumulator_value.
    """

    kernel, n_numbers, state_names = "adagrad", 3, ("sum",)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ):
        self.initial_accumulator_value = checks.number(
            "Adagrad: initial_accumulator_value", initial_accumulator_value, "[0, inf)"
        )
        super().__init__(params, maximize, lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps)

    def add_param_group(self, group: dict[str, Any]) -> None:
        before = len(self.states)
        super().add_param_group(group)
        for state in self.states[before:]:
            state.param._device.fill(state.arrays[0], self.initial_accumulator_value)

    def numbers(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        rate = float(group["lr"]) / (1 + (step - 1) * float(group["lr_decay"]))
        return rate, float(group["eps"]), float(group["weight_decay"])


class Adadelta(Optimizer):
    """g += weight_decay * p;  v = rho*v + (1-rho)*g**2;  d = sqrt(u + eps) / sqrt(v + eps) * g;  p -= lr * d;
    u = rho*u + (1-rho)*d**2.

    Zeiler 2012, as torch.optim.Adadelta.
    """

    kernel, n_numbers, state_names = "adadelta", 4, ("v", "u")

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ):
        super().__init__(params, maximize, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)

    def numbers(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        return float(group["lr"]), float(group["rho"]), float(group["eps"]), float(group["weight_decay"])
