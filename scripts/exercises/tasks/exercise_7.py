"""Exercise 7: a round of local SGD.

Each shard begins at the same parameters and takes `every` steps of gradient descent of its own. Then all average their
parameters: theta = 1/K sum_k theta_k. Nothing is sent in between, which is why it is used where links are slow.
"""

import numpy as np


def local_round(theta, gradient, shards, every, lr):
    """The parameters after one round. theta itself stays as it is.

    gradient(theta, shard): an array like theta, for shard 0, 1, ..., shards - 1. lr: the learning rate.
    """
    raise NotImplementedError  # your lines
