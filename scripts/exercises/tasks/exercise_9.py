"""Exercise 9: a parameter server.

A server holds the parameters theta. It sends them to workers, and they send gradients back. Meanwhile the server has
made other updates, so a gradient is stale. With a fixed staleness s, update t uses the gradient at the parameters of s
updates before: theta_{t+1} = theta_t - lr * gradient(theta_{t-s}). In the first s updates there are no older ones than
theta_0, so these use theta_0.
"""


def serve(theta, gradient, updates, staleness, lr):
    """The parameters after so many updates. theta itself stays as it is.

    gradient(theta): an array like theta. updates, staleness: whole numbers from 0 on. lr: the learning rate.
    """
    raise NotImplementedError  # your lines
