"""Optimizer steps: one pass over flat arrays, from the old parameter and state to the new.

Outputs may be the inputs themselves: each element is read before it is written. An optimizer is two functions:
`prepare(numbers)` turns the numbers of a step into the constants that an element needs, and
`rule(p, g, *states, constants)` gives an element's new parameter and states.

A state that only decays, as the velocity of a unit that died, ends in subnormal numbers, and 0.9 times the smallest of
them is itself again: they never go. Arithmetic on them takes a hundred times as long on some CPUs, so that a step of
784-128-10 went from 0.3 to 1.3 ms. So a state is stored as zero once it is subnormal, on every device, and a rate
multiplies what was divided: the product of a rate and a state is subnormal for some hundred steps before. Weight decay
through Adam or RMSprop, whose steps do not shrink with the gradient, halves the weights of a dead unit every few steps,
until their decay is subnormal, and there they stay: below FADES times the smallest normal number they become zero.
"""

import math
from collections.abc import Callable
from operator import is_

import numpy as np

from ...native.compile import jit
from ...native.loops import ranged
from ..scalars import FADES
from .elementwise import SCALARS
from .movement import run_copy

# ruff: noqa: F821 - bound by each stamp
prepare: Callable
rule: Callable

flushed = SCALARS["flushed"]


@jit
def _faded(p, least):
    """p, or 0 where it is below so many times the smallest normal number."""
    return type(p)(0) if abs(p) < type(p)(least) * np.finfo(type(p)).tiny else p


@jit
def _prepare_sgd(numbers):
    return numbers[0], numbers[1], numbers[2], numbers[3]


@jit
def _sgd(p, g, v, constants):
    lr, momentum, nesterov, weight_decay = constants
    f = type(p)
    g += f(weight_decay) * p
    v = f(momentum) * v + g
    return p - f(lr) * (g + f(momentum) * v if nesterov else v), flushed(v)


@jit
def _prepare_adam(numbers):
    lr, beta1, beta2, eps, weight_decay = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    decoupled, step = numbers[5] != 0, numbers[6]
    rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    return rate, scale, beta1, beta2, 1 - beta1, 1 - beta2, eps, keep, decay, FADES if decay != 0 else 0.0


@jit
def _adam(p, g, m, v, constants):
    rate, scale, beta1, beta2, rest1, rest2, eps, keep, weight_decay, least = constants
    f = type(p)
    g += f(weight_decay) * p
    m = f(beta1) * m + f(rest1) * g
    v = f(beta2) * v + f(rest2) * g * g
    p = f(keep) * p - f(rate) * (m / (np.sqrt(v) * f(scale) + f(eps)))
    return _faded(p, least), flushed(m), flushed(v)


@jit
def _amsgrad(p, g, m, v, top, constants):
    rate, scale, beta1, beta2, rest1, rest2, eps, keep, weight_decay, least = constants
    f = type(p)
    g += f(weight_decay) * p
    m = f(beta1) * m + f(rest1) * g
    v = f(beta2) * v + f(rest2) * g * g
    top = v if (v > top) | (v != v) else top
    p = f(keep) * p - f(rate) * (m / (np.sqrt(top) * f(scale) + f(eps)))
    return _faded(p, least), flushed(m), flushed(v), flushed(top)


@jit
def _prepare_rmsprop(numbers):
    return numbers[0], numbers[1], 1 - numbers[1], numbers[2], numbers[3], numbers[4], FADES if numbers[4] != 0 else 0.0


@jit
def _rmsprop(p, g, v, u, constants):
    lr, alpha, rest, eps, momentum, weight_decay, least = constants
    f = type(p)
    g += f(weight_decay) * p
    v = f(alpha) * v + f(rest) * g * g
    u = f(momentum) * u + g / (np.sqrt(v) + f(eps))
    return _faded(p - f(lr) * u, least), flushed(v), flushed(u)


@jit
def _prepare_adagrad(numbers):
    return numbers[0], numbers[1], numbers[2]


@jit
def _adagrad(p, g, s, constants):
    rate, eps, weight_decay = constants
    f = type(p)
    g += f(weight_decay) * p
    s += g * g
    return p - f(rate) * (g / (np.sqrt(s) + f(eps))), flushed(s)


@jit
def _prepare_adadelta(numbers):
    return numbers[0], numbers[1], 1 - numbers[1], numbers[2], numbers[3]


@jit
def _adadelta(p, g, v, u, constants):
    lr, rho, rest, eps, weight_decay = constants
    f = type(p)
    g += f(weight_decay) * p
    v = f(rho) * v + f(rest) * g * g
    step = np.sqrt(u + f(eps)) / np.sqrt(v + f(eps)) * g
    return p - f(lr) * step, flushed(v), flushed(f(rho) * u + f(rest) * step * step)


# A step in place has loops of its own: where `param` and `new_param` may be one array, LLVM would not vectorise.


@jit
def _one_state(lo, hi, param, grad, s, new_param, new_s, numbers):
    param, grad, s, new_param, new_s = param[lo:hi], grad[lo:hi], s[lo:hi], new_param[lo:hi], new_s[lo:hi]
    constants = prepare(numbers)
    for i in range(param.size):
        new_param[i], new_s[i] = rule(param[i], grad[i], s[i], constants)


@jit
def _one_state_in_place(lo, hi, param, grad, s, numbers):
    param, grad, s = param[lo:hi], grad[lo:hi], s[lo:hi]
    constants = prepare(numbers)
    for i in range(param.size):
        param[i], s[i] = rule(param[i], grad[i], s[i], constants)


@jit
def _two_states(lo, hi, param, grad, s, t, new_param, new_s, new_t, numbers):
    param, grad, s, t = param[lo:hi], grad[lo:hi], s[lo:hi], t[lo:hi]
    new_param, new_s, new_t = new_param[lo:hi], new_s[lo:hi], new_t[lo:hi]
    constants = prepare(numbers)
    for i in range(param.size):
        new_param[i], new_s[i], new_t[i] = rule(param[i], grad[i], s[i], t[i], constants)


@jit
def _two_states_in_place(lo, hi, param, grad, s, t, numbers):
    param, grad, s, t = param[lo:hi], grad[lo:hi], s[lo:hi], t[lo:hi]
    constants = prepare(numbers)
    for i in range(param.size):
        param[i], s[i], t[i] = rule(param[i], grad[i], s[i], t[i], constants)


@jit
def _three_states_in_place(lo, hi, param, grad, s, t, u, numbers):
    param, grad, s, t, u = param[lo:hi], grad[lo:hi], s[lo:hi], t[lo:hi], u[lo:hi]
    constants = prepare(numbers)
    for i in range(param.size):
        param[i], s[i], t[i], u[i] = rule(param[i], grad[i], s[i], t[i], u[i], constants)


LOOPS = {  # by the number of states; more are not common enough for a loop that is not in place
    1: (_one_state, _one_state_in_place),
    2: (_two_states, _two_states_in_place),
    3: (None, _three_states_in_place),
}


def _stepper(name, states, **bindings):
    """The kernel (param, grad, *states, new_param, *new_states, numbers)."""
    loop, loop_in_place = LOOPS[states]
    run = loop and ranged(loop, name, writes=range(2 + states, 3 + 2 * states), whole=(3 + 2 * states,), **bindings)
    written = (0, *range(2, 2 + states))
    run_in_place = ranged(loop_in_place, f"{name}_in_place", writes=written, whole=(2 + states,), **bindings)

    def kernel(*arguments):
        *arrays, numbers = arguments
        inputs, outputs = arrays[: 2 + states], arrays[2 + states :]
        param, grad, *old = inputs
        cost, is_in_place = 2 * len(inputs), all(map(is_, (param, *old), outputs))
        if run and not is_in_place:
            run(param.size, cost, *[x.ravel() for x in (*inputs, *outputs)], numbers)
            return
        if not is_in_place:
            for before, new in zip((param, *old), outputs, strict=True):
                run_copy(param.size, 2, before.ravel(), new.ravel())
        new_param, *new = outputs
        run_in_place(param.size, cost, *[x.ravel() for x in (new_param, grad, *new)], numbers)

    return kernel


PREPARE = {"sgd": _prepare_sgd, "adam": _prepare_adam, "rmsprop": _prepare_rmsprop}  # of native/updates.py, too
KERNELS = {
    "sgd": _stepper("sgd", 1, prepare=_prepare_sgd, rule=_sgd),
    "adam": _stepper("adam", 2, prepare=_prepare_adam, rule=_adam),
    "amsgrad": _stepper("amsgrad", 3, prepare=_prepare_adam, rule=_amsgrad),
    "rmsprop": _stepper("rmsprop", 2, prepare=_prepare_rmsprop, rule=_rmsprop),
    "adagrad": _stepper("adagrad", 1, prepare=_prepare_adagrad, rule=_adagrad),
    "adadelta": _stepper("adadelta", 2, prepare=_prepare_adadelta, rule=_adadelta),
}
