"""Training steps at three sizes: ours, eager and recorded; PyTorch's and JAX's, where they are installed."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from gpu_phases import Note, failure, is_simulated

import scratchnet as sn

JOBS = [((784, 128, 10), 64), ((784, 1024, 1024, 10), 1024), ((1024, 4096, 4096, 10), 4096)]
LR, MOMENTUM = 0.01, 0.9


def steps(config: Any, note: Note) -> None:
    """Seconds of a step: the least of five means, so the host's part is in it."""
    jobs = [((6, 5, 3), 4)] if is_simulated() else JOBS
    for sizes, batch in jobs:
        rng = np.random.default_rng(config.seed)
        x, y = rng.random((batch, sizes[0]), np.float32), rng.integers(0, sizes[-1], batch)
        job = f"{'-'.join(map(str, sizes))}, batch {batch}"
        for whose in (_ours,) if is_simulated() else (_ours, _torch, _jax):
            for name, make in whose(sizes, x, y):
                found: dict = {}
                error = failure(partial(_time, make, found))
                note(job=job, step=name, **found, **{"missing" if "No module" in str(error) else "wrong": error})


def _time(make: Callable[[], tuple[Callable, Callable]], found: dict) -> None:
    step, wait = make()
    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    step()
    wait()
    count, means = max(1, min(200, int(0.2 / (time.perf_counter() - start)))), []
    for _ in range(1 if is_simulated() else 5):
        start = time.perf_counter()
        for _ in range(1 if is_simulated() else count):
            step()
        wait()
        means.append((time.perf_counter() - start) / count)
    found["seconds"] = min(means)


def _ours(sizes: tuple, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Callable]]:
    def make(recorded: bool) -> tuple[Callable, Callable]:
        sn.manual_seed(0)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (sn.nn.Linear(a, b), sn.nn.ReLU())]
        model, loss_of = sn.nn.Sequential(*layers[:-1]).to("cuda"), sn.nn.CrossEntropyLoss()
        optimizer = sn.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        a, b = sn.Tensor(x).to("cuda"), sn.Tensor(y).to("cuda")

        def step(a, b):
            optimizer.zero_grad()
            loss = loss_of(model(a), b)
            loss.backward()
            optimizer.step()
            return loss

        return partial(sn.jit(step) if recorded else step, a, b), sn.cuda.synchronize

    yield "scratchnet", partial(make, False)
    yield "scratchnet jit", partial(make, True)


def _torch(sizes: tuple, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Callable]]:
    def make(options: dict | None) -> tuple[Callable, Callable]:
        import torch

        torch.manual_seed(0)
        layers: list = []
        for a, b in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1]).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        forward = model if options is None else torch.compile(model, **options)
        a, b = torch.from_numpy(x).cuda(), torch.from_numpy(y).cuda()

        def step():
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(forward(a), b).backward()
            optimizer.step()

        return step, torch.cuda.synchronize

    yield "PyTorch", partial(make, None)
    yield "PyTorch compiled", partial(make, {})
    yield "PyTorch reduce-overhead", partial(make, {"mode": "reduce-overhead"})


def _jax(sizes: tuple, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Callable]]:
    def make() -> tuple[Callable, Callable]:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_default_matmul_precision", "highest")  # float32, as ours
        rng = np.random.default_rng(0)
        parameters = [
            (jnp.asarray(rng.normal(0, a**-0.5, (a, b)).astype(np.float32)), jnp.zeros(b))
            for a, b in itertools.pairwise(sizes)
        ]
        a, b = jnp.asarray(x), jnp.asarray(y.astype(np.int32))

        def loss_of(parameters):
            h = a
            for i, (weight, bias) in enumerate(parameters):
                h = h @ weight + bias
                h = jax.nn.relu(h) if i + 1 < len(parameters) else h
            return -jnp.take_along_axis(jax.nn.log_softmax(h), b[:, None], 1).mean()

        def update(parameters, velocity):
            g = jax.grad(loss_of)(parameters)
            velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, g)
            return jax.tree.map(lambda p, v: p - LR * v, parameters, velocity), velocity

        compiled, state = jax.jit(update, donate_argnums=(0, 1)), [parameters, jax.tree.map(jnp.zeros_like, parameters)]

        def step():
            state[:] = compiled(*state)

        return step, lambda: jax.block_until_ready(state[0])

    yield "JAX", make
