"""Optimizer steps: one pass over flat arrays, from the old parameter and state to the new.

Outputs may be the inputs themselves: each element is read before it is written.
"""

import math
from collections.abc import Callable
from operator import is_

import numpy as np

from .blocks import ranged
from .compile import jit

# ruff: noqa: F821 - bound by each stamp
rule: Callable


@jit
def _sgd(p, g, v, lr, momentum, nesterov, weight_decay):
    f = type(p)
    g += f(weight_decay) * p
    v = f(momentum) * v + g
    return p - f(lr) * (g + f(momentum) * v if nesterov else v), v


@jit
def _adam(p, g, m, v, rate, scale, beta1, beta2, rest1, rest2, eps, keep, weight_decay):
    f = type(p)
    g += f(weight_decay) * p
    m = f(beta1) * m + f(rest1) * g
    v = f(beta2) * v + f(rest2) * g * g
    return f(keep) * p - f(rate) * m / (np.sqrt(v) * f(scale) + f(eps)), m, v


@jit
def _rmsprop(p, g, v, u, lr, alpha, rest, eps, momentum, weight_decay):
    f = type(p)
    g += f(weight_decay) * p
    v = f(alpha) * v + f(rest) * g * g
    u = f(momentum) * u + g / (np.sqrt(v) + f(eps))
    return p - f(lr) * u, v, u


# A step in place has loops of its own: where `param` and `new_param` may be one array, LLVM would not vectorise.


@jit
def _one_state(lo, hi, param, grad, s, new_param, new_s, numbers):
    param, grad, s, new_param, new_s = param[lo:hi], grad[lo:hi], s[lo:hi], new_param[lo:hi], new_s[lo:hi]
    for i in range(param.size):
        new_param[i], new_s[i] = rule(param[i], grad[i], s[i], *numbers)


@jit
def _one_state_in_place(lo, hi, param, grad, s, numbers):
    param, grad, s = param[lo:hi], grad[lo:hi], s[lo:hi]
    for i in range(param.size):
        param[i], s[i] = rule(param[i], grad[i], s[i], *numbers)


@jit
def _two_states(lo, hi, param, grad, s, t, new_param, new_s, new_t, numbers):
    param, grad, s, t = param[lo:hi], grad[lo:hi], s[lo:hi], t[lo:hi]
    new_param, new_s, new_t = new_param[lo:hi], new_s[lo:hi], new_t[lo:hi]
    for i in range(param.size):
        new_param[i], new_s[i], new_t[i] = rule(param[i], grad[i], s[i], t[i], *numbers)


@jit
def _two_states_in_place(lo, hi, param, grad, s, t, numbers):
    param, grad, s, t = param[lo:hi], grad[lo:hi], s[lo:hi], t[lo:hi]
    for i in range(param.size):
        param[i], s[i], t[i] = rule(param[i], grad[i], s[i], t[i], *numbers)


def _stepper(name, rule, loop, loop_in_place):
    """step(inputs, outputs, numbers) with inputs (param, grad, states...) and outputs (param, states...)."""
    run, run_in_place = ranged(loop, name, rule=rule), ranged(loop_in_place, f"{name}_in_place", rule=rule)

    def step(inputs, outputs, numbers):
        size, cost, arrays = inputs[0].size, 2 * len(inputs), [x.ravel() for x in inputs]
        numbers = tuple(map(float, numbers))
        param, _, *states = inputs
        if all(map(is_, (param, *states), outputs)):
            run_in_place(size, cost, *arrays, numbers)
        else:
            run(size, cost, *arrays, *[x.ravel() for x in outputs], numbers)

    return step


_step_sgd = _stepper("sgd", _sgd, _one_state, _one_state_in_place)
_step_adam = _stepper("adam", _adam, _two_states, _two_states_in_place)
_step_rmsprop = _stepper("rmsprop", _rmsprop, _two_states, _two_states_in_place)


def sgd(param, grad, velocity, new_param, new_velocity, lr, momentum, nesterov, weight_decay):
    _step_sgd((param, grad, velocity), (new_param, new_velocity), (lr, momentum, nesterov, weight_decay))


def adam(param, grad, m, v, new_param, new_m, new_v, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    keep, decay = (1 - lr * weight_decay, 0) if decoupled else (1, weight_decay)
    numbers = rate, scale, beta1, beta2, 1 - beta1, 1 - beta2, eps, keep, decay
    _step_adam((param, grad, m, v), (new_param, new_m, new_v), numbers)


def rmsprop(param, grad, v, velocity, new_param, new_v, new_velocity, lr, alpha, eps, momentum, weight_decay):
    numbers = lr, alpha, 1 - alpha, eps, momentum, weight_decay
    _step_rmsprop((param, grad, v, velocity), (new_param, new_v, new_velocity), numbers)


KERNELS = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop}
