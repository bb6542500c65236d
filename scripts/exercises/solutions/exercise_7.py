"""The loop over shards may run anywhere: shards do not know of each other until the mean."""

import numpy as np


def local_round(theta, gradient, shards, every, lr):
    thetas = []
    for shard in range(shards):
        mine = theta.copy()
        for _ in range(every):
            mine -= lr * gradient(mine, shard)
        thetas.append(mine)
    return np.mean(thetas, axis=0)
