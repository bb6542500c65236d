"""Exercise 2: broadcasting backwards.

In `x + b` with x of shape (3, 4) and b of shape (4,), NumPy repeats b three times. In the backward pass the gradient g
has the shape (3, 4) of the result, and b needs one of shape (4,): each repetition sends its gradient back, and they add
up.
"""


def unbroadcast(g, shape):
    """g is an array, shape that of the input, which was broadcast to g.shape. Returns an array of that shape."""
    raise NotImplementedError  # your lines
