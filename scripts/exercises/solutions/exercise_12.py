"""What is sent and what stays add up to the gradient and the old residual, in each step. So nothing is ever lost."""

import numpy as np


def compress(gradient, residual, keep):
    total = gradient + residual
    indices = np.argsort(-abs(total), kind="stable")[:keep]
    values = total[indices]
    total[indices] = 0
    return indices, values, total
