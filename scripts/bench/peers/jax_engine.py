"""JAX: a compiled step, and an epoch as one compiled function."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from engine import BATCH, LR, MOMENTUM, Engine, initial_layers, operands, orders


class Jax(Engine):
    def network(self, widths, seed):
        layers = [tuple(map(jnp.array, layer)) for layer in initial_layers(widths, seed)]
        self.state = layers, jax.tree.map(jnp.zeros_like, layers)

        def forward(layers, x):
            x = x.astype(jnp.float32) * (1 / 255) if x.dtype == jnp.uint8 else x
            for k, (w, b) in enumerate(layers):
                x = (jax.nn.relu(x) if k else x) @ w + b
            return x

        def loss_of(layers, x, y):
            z = forward(layers, x)
            return (jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]).mean()

        def update(state, x, y):
            layers, velocity = state
            loss, grads = jax.value_and_grad(loss_of)(layers, x, y)
            velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
            return (jax.tree.map(lambda p, v: p - LR * v, layers, velocity), velocity), loss

        self.forward, self.plain_update = jax.jit(forward), update
        self.update = jax.jit(update, donate_argnums=0)

    def step(self, x, y):
        self.state, loss = self.update(self.state, x, y)
        return loss

    def place(self, array):
        return jnp.asarray(array)

    def load(self, images, labels, seed):  # NumPy gathers bytes, the compiled step scales them: faster than floats
        self.x, self.y, self.orders = images, labels.astype(np.int32), orders(len(labels), seed)

    def wait(self, result):
        jax.block_until_ready(result)

    def logits(self, x):
        return np.asarray(self.forward(self.state[0], x))

    def gemm(self, a, b, transpose_a, transpose_b):
        call = jax.jit(lambda a, b: (a.T if transpose_a else a) @ (b.T if transpose_b else b))
        return partial(call, self.place(a), self.place(b))

    def kernel(self, name):
        x, y, z = map(self.place, operands(3))
        if name == "sgd":
            update = jax.jit(lambda p, g, v: (p - LR * (MOMENTUM * v + g), MOMENTUM * v + g), donate_argnums=(0, 2))
            state = [x, z]

            def sgd():
                state[:] = update(state[0], y, state[1])
                return state

            return sgd
        if name == "add":
            return partial(jax.jit(jnp.add), x, y)
        calls = {"copy": jnp.copy, "exp": jnp.exp, "log": jnp.log, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}
        calls |= {"gelu": partial(jax.nn.gelu, approximate=False), "relu": jax.nn.relu, "softmax": jax.nn.softmax}
        return partial(jax.jit(calls[name]), x) if name in calls else None


class Scan(Jax):
    """An epoch as one compiled function: lax.scan over the batches, gathered inside."""

    def load(self, images, labels, seed):
        super().load(images, labels, seed)
        self.x, self.y = self.place(self.x), self.place(self.y)

        @partial(jax.jit, donate_argnums=0)
        def epoch(state, x, y, order):
            return jax.lax.scan(lambda s, rows: self.plain_update(s, x[rows], y[rows]), state, order)

        self.compiled = epoch

    def epoch(self):
        order = next(self.orders)
        whole = len(order) // BATCH * BATCH
        self.state, loss = self.compiled(self.state, self.x, self.y, order[:whole].reshape(-1, BATCH))
        if whole < len(order):
            loss = self.step(self.x[order[whole:]], self.y[order[whole:]])
        self.wait(loss)
