"""min(1, limit / norm) is 1 where nothing is to be done: arithmetic in the place of a decision."""

import scratchnet as sn


def scale_gradients(parameters, limit):
    norm = sum((p.grad * p.grad).sum() for p in parameters).sqrt()
    factor = sn.minimum(limit / (norm + 1e-12), 1.0)
    for p in parameters:
        p.grad = p.grad * factor
