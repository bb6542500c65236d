"""The network in plain NumPy, by hand, and scikit-learn's."""

from functools import partial

import numpy as np
from engine import BATCH, LR, MOMENTUM, Engine, aligned, initial_layers, operands, product


class NumPy(Engine):
    """By hand: no allocation, one flat array of parameters, the learning rate folded into the gradient."""

    def network(self, widths, seed):
        arrays = [array for layer in initial_layers(widths, seed) for array in layer]
        self.flat = np.concatenate([array.ravel() for array in arrays])
        self.grad, self.velocity = np.empty_like(self.flat), np.zeros_like(self.flat)
        cuts = np.cumsum([array.size for array in arrays])[:-1]
        parameters, grads = (
            [part.reshape(a.shape) for part, a in zip(np.split(flat, cuts), arrays, strict=True)]
            for flat in (self.flat, self.grad)
        )
        self.layers = list(zip(parameters[::2], parameters[1::2], grads[::2], grads[1::2], strict=True))
        self.buffers = {}

    def memory(self, n):
        if n not in self.buffers:
            outputs = [np.empty((n, w.shape[1]), np.float32) for w, *_ in self.layers]
            self.buffers[n] = outputs, list(map(np.empty_like, outputs)), [np.empty(o.shape, bool) for o in outputs]
        return self.buffers[n]

    def step(self, x, y):
        outputs, grads, masks = self.memory(len(x))
        inputs, probabilities, rows = [x, *outputs], outputs[-1], np.arange(len(x))
        for k, (w, b, _, _) in enumerate(self.layers):
            np.dot(inputs[k], w, out=outputs[k])
            outputs[k] += b
            if k + 1 < len(self.layers):
                np.maximum(outputs[k], 0, out=outputs[k])
        probabilities -= probabilities.max(axis=1, keepdims=True)
        np.exp(probabilities, out=probabilities)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        loss = -np.log(probabilities[rows, y]).mean()
        probabilities[rows, y] -= 1
        np.multiply(probabilities, np.float32(LR / len(x)), out=grads[-1])
        for k in reversed(range(len(self.layers))):
            w, _, dw, db = self.layers[k]
            np.dot(inputs[k].T, grads[k], out=dw)
            np.add.reduce(grads[k], axis=0, out=db)
            if k:
                np.dot(grads[k], w.T, out=grads[k - 1])
                np.greater(outputs[k - 1], 0, out=masks[k - 1])
                grads[k - 1] *= masks[k - 1]
        self.velocity *= MOMENTUM
        self.velocity += self.grad
        self.flat -= self.velocity
        return loss

    def logits(self, x):
        for k, (w, b, _, _) in enumerate(self.layers):
            x = (np.maximum(x, 0) if k else x) @ w + b
        return x

    def gemm(self, a, b, transpose_a, transpose_b):
        out = product(a, b, transpose_a, transpose_b)
        return partial(np.matmul, a.T if transpose_a else a, b.T if transpose_b else b, out)

    def kernel(self, name):
        x, y = operands(2)
        out = aligned(x.shape)

        def softmax():
            np.subtract(x, x.max(axis=1, keepdims=True), out=out)
            np.exp(out, out=out)
            np.divide(out, out.sum(axis=1, keepdims=True), out=out)

        calls = {name: partial(getattr(np, name), x, out) for name in ("exp", "log", "tanh")}
        calls |= {"copy": partial(np.copyto, out, x), "relu": partial(np.maximum, x, np.float32(0), out)}
        return (calls | {"add": partial(np.add, x, y, out), "softmax": softmax}).get(name)


class ScikitLearn(Engine):
    def network(self, widths, seed):
        from sklearn.neural_network import MLPClassifier

        self.model = MLPClassifier(
            widths[1:-1], solver="sgd", alpha=0, learning_rate_init=LR, momentum=MOMENTUM, nesterovs_momentum=False,
            shuffle=False, batch_size=BATCH,
        )  # fmt: skip
        self.initial, self.classes = initial_layers(widths, seed), np.arange(widths[-1])

    def step(self, x, y):
        model = self.model
        if not hasattr(model, "coefs_"):  # its first call draws weights: put ours in their place
            model.partial_fit(x, y, classes=self.classes)
            for k, (weight, bias) in enumerate(self.initial):
                model.coefs_[k][...], model.intercepts_[k][...] = weight, bias
            for velocity in model._optimizer.velocities:
                velocity[...] = 0
        model.batch_size = len(x)
        model.partial_fit(x, y)
        return model.loss_
